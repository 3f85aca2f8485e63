/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_range.c -- a region of a peer's GPU that consists of pieces (gpu/vmm.c): asked for by the
 * ring and passed by the local socket, SHM_PIECES at a time, when the first copy needs them
 *
 * A cache of 100 GiB is 5000 pieces. So neither side ever has more than SHM_PIECES descriptors of
 * them open, and a process whose own engine copies nothing starts no CUDA for its peers' sake.
 */
#include <unistd.h>

#include "base/error.h"
#include "shm.h"

/* ---------------------------------------------------------------- asking */

static int ask_for_pieces(struct shm_conn *sc, const struct tr_rmem *rmem)
{
	struct shm_rmem *rm = rmem->priv;
	struct ring_record record = { .type = RING_PIECES, .a = rm->range.filled, .mem = rmem->id };

	ring_refresh(&sc->out);
	if (ring_fit(&sc->out, 0, 0, 0) < 0)
		return TR_AGAIN;
	ring_put(&sc->out, &record, NULL);
	publish_tail(sc);
	sc->pieces.asked = true;
	sc->pieces.rm = rm;
	sc->pieces.mem = rmem->id;
	return 0;
}

/* Those that came, into the address space of their region. */
static int place_pieces(struct shm_conn *sc, int device, struct kv_error *err)
{
	struct shm_pieces *p = &sc->pieces;
	struct shm_rmem *rm = p->rm;
	int ret = 0;

	if (p->error)
		return kv_fail(err, KV_ERR_UNREACHABLE, "gpu",
			       "the peer cannot pass its GPU memory: %s",
			       cuda_error((int)p->error));
	if (!p->len || p->len > (rm->share.span - rm->range.filled) / p->fds.n)
		return kv_fail(err, KV_ERR_PROTOCOL, "gpu",
			       "the peer passed %u pieces of %llu bytes for %llu", p->fds.n,
			       (unsigned long long)p->len,
			       (unsigned long long)(rm->share.span - rm->range.filled));
	if (!rm->range.len && !pool_take_budget(sc, rm->share.span))
		return kv_fail(err, KV_ERR_UNREACHABLE, "gpu",
			       "the peer's GPU memory is not mapped: one peer's may have %llu "
			       "bytes, those of all peers %llu",
			       (unsigned long long)SHM_MAP_PEER_BYTES,
			       (unsigned long long)SHM_MAP_ALL_BYTES);
	rm->range.len = rm->share.span;
	for (unsigned int i = 0; i < p->fds.n && !ret; i++)
		ret = gpu_range_add(sc->ctx->gpu, device, &rm->range, p->fds.fd[i], p->len, err);
	return ret;
}

int range_map(struct shm_conn *sc, struct tr_rmem *rmem, int device, struct kv_error *err)
{
	struct shm_pieces *p = &sc->pieces;
	struct shm_rmem *rm = rmem->priv;
	struct kv_error why;
	int ret;

	while (rm->range.filled < rm->share.span) {
		const struct shm_rmem *whose;

		ret = p->asked ? 0 : ask_for_pieces(sc, rmem);
		if (!ret)
			ret = link_drain(sc, err);
		if (ret)
			return ret;
		if (!p->came)
			return TR_AGAIN;
		whose = p->rm;
		ret = whose ? place_pieces(sc, device, &why) : 0;
		link_close_fds(&p->fds);
		p->asked = p->came = false;
		/* Another region's trouble is reported when that one is mapped. */
		if (ret && whose == rm)
			return kv_error_copy(err, &why);
	}
	return gpu_range_allow(sc->ctx->gpu, device, &rm->range, err);
}

void range_forget(struct shm_conn *sc, const struct shm_rmem *rm)
{
	if (sc->pieces.rm == rm)
		sc->pieces.rm = NULL;
}

void range_unmap(struct shm_conn *sc, struct shm_rmem *rm, int device)
{
	if (!rm->range.len)
		return;
	pool_give_budget(sc, rm->range.len);
	gpu_range_free(sc->ctx->gpu, device, &rm->range);
}

/* ---------------------------------------------------------------- answering */

bool range_asked(struct shm_conn *sc, uint32_t mem, uint64_t from)
{
	if (!sc->we_allow_direct || sc->pieces.due)
		return false;
	sc->pieces.due = true;
	sc->pieces.due_mem = mem;
	sc->pieces.due_from = from;
	return true;
}

/* Pieces of one size; none: message->len is the driver's reason. */
static void export_pieces(struct shm_conn *sc, int device, const uint8_t *at, uint64_t left,
			  struct link_message *message, struct link_fds *fds)
{
	while (left && fds->n < SHM_PIECES) {
		uint64_t len;
		int fd, rc = gpu_export(sc->ctx->gpu, device, at, &fd, &len);

		if (rc) {
			message->len = fds->n ? message->len : (uint64_t)rc;
			return;
		}
		if (len > left || (fds->n && len != message->len)) {
			close(fd);
			return;
		}
		message->len = len;
		fds->fd[fds->n++] = fd;
		at += len;
		left -= len;
	}
}

/* Since it was described to the peer its memory may have been mapped anew. */
static void answer_with(struct shm_conn *sc, struct tr_mem *mem, uint64_t from,
			struct link_message *message, struct link_fds *fds)
{
	const struct gpu_share *share = cuda_share(mem);
	int rc;

	if (share->piece) {
		rc = from ? CUDA_INVALID_VALUE : gpu_export_whole(share, &fds->fd[0]);
		fds->n = !rc;
		message->len = rc ? (uint64_t)rc : share->span;
	} else if (from < share->span)
		export_pieces(sc, share->device, mem->addr - share->offset + from,
			      share->span - from, message, fds);
}

int range_pass(struct shm_conn *sc, struct kv_error *err)
{
	struct shm_pieces *p = &sc->pieces;
	struct link_message message = { .kind = LINK_PIECES,
					.id = p->due_mem,
					.len = CUDA_INVALID_VALUE };
	struct link_fds fds = { 0 };
	struct tr_mem *mem;
	int ret;

	if (sc->sock < 0)
		return 0;
	mem = tr_mem_lent(sc->conn, p->due_mem);
	if (mem) {
		answer_with(sc, mem, p->due_from, &message, &fds);
		tr_mem_put(mem);
	}
	ret = link_send(sc, &message, &fds, err);
	link_close_fds(&fds);
	p->due = ret == TR_AGAIN;
	if (ret == KV_ERR_PEER_LOST) /* noticed elsewhere, after what it has sent */
		return 0;
	return ret < 0 ? ret : !p->due;
}
