/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_load.h -- the functions of the CUDA driver that are used, as cuda.h of CUDA 11.7 and later
 * declares them
 *
 * cuda_load.c is the only file that names libcuda's symbols.
 */
#ifndef GPU_CUDA_LOAD_H
#define GPU_CUDA_LOAD_H

#include <stdbool.h>
#include <stddef.h>

#include <kvrail/kv_error.h>

/* As cuda.h numbers them. */
enum {
	CUDA_INVALID_VALUE = 1,
	CUDA_OUT_OF_MEMORY = 2,
	CUDA_NOT_READY = 600,
	CUDA_ALREADY_REGISTERED = 712,
	POINTER_CONTEXT = 1,
	POINTER_MEMORY_TYPE = 2,
	POINTER_SYNC_MEMOPS = 6,
	POINTER_DEVICE_ORDINAL = 9,
	POINTER_IPC_CAPABLE = 10,
	POINTER_RANGE_START = 11,
	POINTER_RANGE_SIZE = 12,
	POINTER_HANDLE_TYPES = 14,
	POINTER_MEMORY_POOL = 17,
	POINTER_MAPPING_SIZE = 18,
	POINTER_MAPPING_BASE = 19,
	MEMORY_TYPE_HOST = 1,
	MEMORY_TYPE_DEVICE = 2,
	DEVICE_RDMA_WRITES_ORDERING = 118,
	ORDERED_FOR_OWNER = 100,
	RANGE_HANDLE_DMA_BUF = 1,
	HANDLE_POSIX_FD = 1,
	LOCATION_DEVICE = 1,
	ACCESS_READ_WRITE = 3,
	IPC_LAZY_ENABLE_PEER_ACCESS = 1,
	HOST_PORTABLE_MAPPED = 1 | 2,
	STREAM_NON_BLOCKING = 1,
	CAPTURE_RELAXED = 2,
	SOURCE_ORDER_STREAM = 1,
	EVENT_DISABLE_TIMING = 2,
};

typedef unsigned long long cuda_ptr;
struct cuda_ipc_handle {
	char bytes[64];
};

struct cuda_access { /* CUmemAccessDesc */
	int location, device, rights;
};

struct cuda_rows_end { /* half of a CUDA_MEMCPY2D */
	size_t x, y;
	int type; /* MEMORY_TYPE_ */
	void *host;
	cuda_ptr device;
	void *array;
	size_t pitch; /* bytes from one row to the next */
};
struct cuda_rows { /* CUDA_MEMCPY2D */
	struct cuda_rows_end from, to;
	size_t width, height; /* of a row, in bytes; rows */
};

struct cuda_copies { /* CUmemcpyAttributes */
	int source_order, places[4]; /* these are asked for managed memory only */
	unsigned int flags;
};

struct cuda_driver {
	int (*init)(unsigned int flags);
	int (*error_name)(int error, const char **name_p);
	int (*device_get)(int *device_p, int ordinal);
	int (*device_count)(int *count_p);
	int (*device_uuid)(char uuid[16], int device);
	int (*device_attribute)(int *value, int attribute, int device);
	int (*can_access)(int *can_p, int from, int to);
	int (*pointer_get)(void *value, int attribute, cuda_ptr ptr);
	int (*pointer_set)(const void *value, int attribute, cuda_ptr ptr);
	int (*primary_retain)(void **context_p, int device);
	int (*primary_release)(int device);
	int (*context_create)(void **context_p, unsigned int flags, int device);
	int (*context_destroy)(void *context);
	int (*push)(void *context);
	int (*pop)(void **context_p);
	int (*exchange_capture_mode)(int *mode);
	int (*get_handle)(void *handle, cuda_ptr ptr, size_t len, int type,
			  unsigned long long flags); /* NULL before CUDA 11.7 */
	int (*ipc_get)(struct cuda_ipc_handle *handle, cuda_ptr ptr);
	int (*ipc_open)(cuda_ptr *ptr_p, struct cuda_ipc_handle handle, unsigned int flags);
	int (*ipc_close)(cuda_ptr ptr);
	int (*address_range)(cuda_ptr *first_p, size_t *len_p, cuda_ptr ptr);
	int (*piece_retain)(unsigned long long *piece_p, void *ptr);
	int (*piece_release)(unsigned long long piece);
	int (*piece_export)(void *fd_p, unsigned long long piece, int type,
			    unsigned long long flags);
	int (*piece_import)(unsigned long long *piece_p, void *fd, int type);
	int (*reserve)(cuda_ptr *ptr_p, size_t len, size_t alignment, cuda_ptr at,
		       unsigned long long flags);
	int (*unreserve)(cuda_ptr ptr, size_t len);
	int (*map)(cuda_ptr ptr, size_t len, size_t offset, unsigned long long piece,
		   unsigned long long flags);
	int (*unmap)(cuda_ptr ptr, size_t len);
	int (*set_access)(cuda_ptr ptr, size_t len, const struct cuda_access *access, size_t n);
	int (*mem_alloc)(cuda_ptr *ptr_p, size_t len);
	int (*mem_free)(cuda_ptr ptr);
	int (*host_alloc)(void **ptr_p, size_t len, unsigned int flags);
	int (*host_free)(void *ptr);
	int (*host_register)(void *ptr, size_t len, unsigned int flags);
	int (*host_unregister)(void *ptr);
	int (*host_pointer)(cuda_ptr *ptr_p, void *host, unsigned int flags);
	int (*module_load)(void **module_p, const void *image);
	int (*module_unload)(void *module);
	int (*module_function)(void **function_p, void *module, const char *name);
	int (*priorities)(int *least_p, int *greatest_p);
	int (*stream_create)(void **stream_p, unsigned int flags, int priority);
	int (*stream_destroy)(void *stream);
	int (*stream_context)(void *stream, void **context_p);
	int (*current)(void **context_p);
	int (*event_create)(void **event_p, unsigned int flags);
	int (*event_destroy)(void *event);
	int (*event_record)(void *event, void *stream);
	int (*event_query)(void *event);
	int (*copy)(cuda_ptr to, cuda_ptr from, size_t len, void *stream);
	int (*copy_rows)(const struct cuda_rows *rows, void *stream);
	/* NULL before CUDA 12.8 */
	int (*copy_batch)(cuda_ptr *to, cuda_ptr *from, size_t *len, size_t n,
			  const struct cuda_copies *copies, size_t *first, size_t kinds,
			  size_t *bad_p, void *stream);
	int (*launch)(void *function, unsigned int gx, unsigned int gy, unsigned int gz,
		      unsigned int bx, unsigned int by, unsigned int bz, unsigned int shared,
		      void *stream, void **params, void **extra);
};

/*
 * The table, or NULL and UNSUPPORTED: CUDA does not run in this process, or it lacks a symbol. It
 * is not loaded here: a process that has memory of a GPU has loaded it. op: of the error.
 */
const struct cuda_driver *cuda_driver(const char *op, struct kv_error *err);
/* The same for memory of a peer: loads and starts CUDA. */
const struct cuda_driver *cuda_driver_start(struct kv_error *err);
bool cuda_is_installed(void); /* without starting it */
/* CUDA_ERROR_... of a number. */
const char *cuda_error(int error);

#endif
