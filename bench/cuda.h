/* SPDX-License-Identifier: Apache-2.0 */
/* cuda.h -- what programs that have memory of a GPU call of CUDA's driver, and how they end */
#ifndef BENCH_CUDA_H
#define BENCH_CUDA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef unsigned long long cuda_ptr;
struct cuda_ipc_handle {
	char bytes[64];
};

struct cuda_functions {
	int (*init)(unsigned int flags);
	int (*device_get)(int *device_p, int ordinal);
	int (*primary_retain)(void **context_p, int device);
	int (*set_current)(void *context);
	int (*mem_info)(size_t *free_p, size_t *total_p);
	int (*mem_alloc)(cuda_ptr *ptr_p, size_t len);
	int (*piece_create)(unsigned long long *piece_p, size_t len, const void *properties,
			    unsigned long long flags);
	int (*piece_release)(unsigned long long piece);
	int (*reserve)(cuda_ptr *ptr_p, size_t len, size_t alignment, cuda_ptr at,
		       unsigned long long flags);
	int (*map)(cuda_ptr ptr, size_t len, size_t offset, unsigned long long piece,
		   unsigned long long flags);
	int (*set_access)(cuda_ptr ptr, size_t len, const void *access, size_t n);
	int (*to_host)(void *to, cuda_ptr from, size_t len);
	int (*to_device)(cuda_ptr to, const void *from, size_t len);
	int (*fill_async)(cuda_ptr ptr, unsigned int word, size_t words, void *stream);
	int (*synchronize)(void);
	int (*host_alloc)(void **ptr_p, size_t len, unsigned int flags);
	int (*ipc_get)(struct cuda_ipc_handle *handle, cuda_ptr ptr);
	int (*ipc_open)(cuda_ptr *ptr_p, struct cuda_ipc_handle handle, unsigned int flags);
	int (*module_load)(void **module_p, const void *image);
	int (*module_function)(void **function_p, void *module, const char *name);
	int (*stream_create)(void **stream_p, unsigned int flags);
	int (*stream_destroy)(void *stream);
	int (*stream_query)(void *stream);
	int (*launch)(void *function, unsigned int gx, unsigned int gy, unsigned int gz,
		      unsigned int bx, unsigned int by, unsigned int bz, unsigned int shared,
		      void *stream, void **params, void **extra);
};
extern struct cuda_functions cuda;

/* Prints both and exits with 1. */
_Noreturn void fail(const char *what, const char *why);
void must(int rc, const char *what); /* fails unless it is 0 */
bool cuda_start(int ordinal);	     /* false: there is no CUDA here */
/* As PyTorch's expandable segments are: pieces of 20 MiB, and a shorter one at the end. */
cuda_ptr cuda_alloc_pieces(int ordinal, uint64_t len);

#endif
