/* SPDX-License-Identifier: Apache-2.0 */
/* reject.h -- the code of the REJECT frame that a raw socket gets at its end */
#ifndef REJECT_H
#define REJECT_H

#include <sys/socket.h>

#include "frame.h"
#include "test.h"

static inline int code_of_reject(int fd)
{
	uint8_t back[FRAME_HEADER + FRAME_REJECT_MAX];
	struct frame_header h;
	struct frame_reject reject;
	ssize_t n = recv(fd, back, sizeof(back), MSG_WAITALL);

	assert_true(n > FRAME_HEADER);
	assert_int_equal(frame_get_header(back, &h), 0);
	assert_int_equal(h.type, FRAME_REJECT);
	assert_int_equal(frame_get_reject(back + FRAME_HEADER, h.len, &reject), 0);
	return reject.code;
}

#endif
