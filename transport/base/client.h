/* SPDX-License-Identifier: Apache-2.0 */
/* client.h -- a question of a local client, and its answer; the descriptor does not block */
#ifndef BASE_CLIENT_H
#define BASE_CLIENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A line, or the head of a request: what follows is not read. false: it did not come whole. */
bool kv_client_question(int fd, char *buf, size_t cap, bool line, int64_t deadline_ns);
/* As far as the client reads it in time. */
void kv_client_send(int fd, const char *p, size_t len, int64_t deadline_ns);

#endif
