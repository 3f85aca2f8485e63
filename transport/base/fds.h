/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fds.h -- descriptors that a forked child closes
 *
 * A child that keeps a listening socket keeps its port: the parent that was killed cannot be
 * started again. A child that keeps a connection keeps it open: the peer does not notice that the
 * parent has died. So every socket of the library is made and closed here, and pthread_atfork's
 * handler closes them in the child before fork returns there. (FD_CLOEXEC helps only a child that
 * calls exec.)
 *
 *     fd = kv_fd_new(socket(...));       a descriptor, or -1 and errno
 *     kv_fd_close(fd);
 *
 * A lock is held around each of the two, and by fork: no child is made between the system call and
 * the note of it. Nothing that can wait may stand in kv_fd_new.
 */
#ifndef BASE_FDS_H
#define BASE_FDS_H

void kv_fd_begin(void);
int kv_fd_end(int fd); /* notes it; returns it, errno kept */
void kv_fd_close(int fd); /* -1: nothing to close */
/* The same for one that something else made and closes: a device's, librdmacm's. */
void kv_fd_lend(int fd);
void kv_fd_unlend(int fd);

#define kv_fd_new(call) (kv_fd_begin(), kv_fd_end(call))

#endif
