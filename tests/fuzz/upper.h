/* SPDX-License-Identifier: Apache-2.0 */
/* upper.h -- an upper layer that describes one region each way, for the targets of a provider */
#ifndef UPPER_H
#define UPPER_H

#include "tr.h"

struct upper { /* tr_conn_config.arg */
	struct tr_mem *mem;
	struct tr_rmem *rmem; /* NULL: none was described */
};
extern const struct tr_upper_ops upper_ops;

#endif
