/* SPDX-License-Identifier: Apache-2.0 */
/* np_reg.c -- regMr, deregMr: they need no connection and may run beside the data path */
#include <stdlib.h>

#include "base/fault.h"
#include "np.h"

/* What NCCL registers. */
struct range {
	void *data;
	size_t size;
	bool is_gpu;
	int fd; /* its DMA-BUF, or -1 */
	uint64_t offset;
};

static int register_range(struct np_comm *comm, const struct range *range, unsigned int access,
			  struct tr_mem **mem_p, struct kv_error *err)
{
	return range->fd < 0
		       ? tr_mem_reg(comm->tr, range->data, range->size,
				    range->is_gpu ? TR_MEM_CUDA : TR_MEM_HOST, access, mem_p, err)
		       : tr_mem_reg_dmabuf(comm->tr, range->data, range->size, range->fd,
					   range->offset, access, mem_p, err);
}

static int register_region(struct np_comm *comm, const struct range *range, struct np_mr **mr_p,
			   struct kv_error *err)
{
	unsigned int access = comm->side->is_send ? 0 : TR_REMOTE_WRITE;
	struct np_mr *mr = kv_fault(NP_MR) ? NULL : calloc(1, sizeof(*mr));
	int ret;

	if (!mr)
		return kv_fail(err, KV_ERR_NOMEM, "register", "cannot allocate a region's record");
	mr->is_gpu = range->is_gpu;
	ret = register_range(comm, range, access, &mr->mem, err);
	if (ret)
		goto free_mr;
	ret = tr_mem_usable(comm->conn, mr->mem, err);
	if (ret)
		goto dereg;
	pthread_mutex_lock(&comm->mr_lock);
	if (!comm->side->is_send)
		ret = np_mem_take_slot(np_recv_of(comm), &mr->slot, err);
	if (!ret) {
		mr->serial = ++comm->serials;
		mr->next = comm->mrs;
		mr->prev = &comm->mrs;
		if (mr->next)
			mr->next->prev = &mr->next;
		comm->mrs = mr;
	}
	pthread_mutex_unlock(&comm->mr_lock);
	if (!ret) {
		*mr_p = mr;
		return 0;
	}
dereg:
	tr_mem_dereg(mr->mem, NULL);
free_mr:
	free(mr);
	return ret;
}

static ncclResult_t reg(struct np_comm *comm, const struct range *range, int offered,
			void **mhandle, const char *what)
{
	struct np_mr *mr;
	struct kv_error err;

	np_end_step();
	if (!comm || !mhandle)
		return np_misuse("%s: a pointer is NULL", what);
	if (!(comm->ptr_support & offered))
		return np_misuse("%s: memory of type %d was not offered", what, offered);
	if (register_region(comm, range, &mr, &err))
		return np_fail(&err, what);
	*mhandle = mr;
	return ncclSuccess;
}

ncclResult_t np_reg(void *comm, void *data, size_t size, int type, void **mhandle)
{
	struct range range = {
		.data = data, .size = size, .is_gpu = type != NCCL_PTR_HOST, .fd = -1
	};

	return reg(comm, &range, type & (NCCL_PTR_HOST | NCCL_PTR_CUDA), mhandle, "regMr");
}

/* `type` is that of the address; the descriptor says more. */
ncclResult_t np_reg_dmabuf(void *comm, void *data, size_t size, int type, uint64_t offset, int fd,
			   void **mhandle)
{
	struct range range = {
		.data = data, .size = size, .is_gpu = true, .fd = fd, .offset = offset
	};

	if (fd < 0)
		return np_misuse("regMrDmaBuf: descriptor %d", fd);
	return reg(comm, &range, NCCL_PTR_DMABUF, mhandle, "regMrDmaBuf");
}

/* Under mr_lock: those that no request names any more. */
static void free_gone(struct np_comm *comm)
{
	struct np_mr **at = &comm->gone;

	while (*at) {
		struct np_mr *mr = *at;

		if (atomic_load_explicit(&mr->held, memory_order_acquire)) {
			at = &mr->next;
			continue;
		}
		*at = mr->next;
		free(mr);
	}
}

ncclResult_t np_dereg(void *c, void *mhandle)
{
	struct np_comm *comm = c;
	struct np_mr *mr = mhandle;
	struct kv_error err;
	ncclResult_t result;
	unsigned int held;

	np_end_step();
	if (!comm)
		return np_misuse("deregMr: a pointer is NULL");
	if (!mr)
		return ncclSuccess;
	/* With requests under way this is the communicator's end: NCCL frees the memory next. */
	held = atomic_load_explicit(&mr->held, memory_order_relaxed);
	result = held ? np_end_use(comm, mr, "deregMr") : ncclSuccess;
	if (result)
		return result;
	if (tr_mem_dereg(mr->mem, &err))
		return np_fail(&err, "deregMr");
	pthread_mutex_lock(&comm->mr_lock);
	if (!comm->side->is_send)
		np_mem_give_slot(np_recv_of(comm), mr->slot);
	*mr->prev = mr->next;
	if (mr->next)
		mr->next->prev = mr->prev;
	mr->next = comm->gone;
	comm->gone = mr;
	free_gone(comm);
	pthread_mutex_unlock(&comm->mr_lock);
	return ncclSuccess;
}
