/* SPDX-License-Identifier: Apache-2.0 */
/* doctor_dcb.h -- the answer of DCB netlink to "which priorities have flow control" */
#ifndef KVRAIL_DOCTOR_DCB_H
#define KVRAIL_DOCTOR_DCB_H

#include <stddef.h>
#include <stdint.h>

/* Asks the kernel about an interface: as doctor_dcb_parse, or the errno of asking. */
int doctor_dcb_ask(const char *netdev, uint8_t *mask);
/*
 * The pure half. 0 and the mask, or the errno that the answer carries; EBADMSG: it is not such an
 * answer; ENODATA: the device reports nothing.
 */
int doctor_dcb_parse(const uint8_t *reply, size_t len, uint8_t *mask);

#endif
