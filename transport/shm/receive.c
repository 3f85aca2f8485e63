/* SPDX-License-Identifier: Apache-2.0 */
/* receive.c -- progress: the peer's records, answers to its reads, its death; and going to sleep */
#include <string.h>

#include "base/error.h"
#include "shm.h"

static int refuse_record(struct kv_error *err, const struct ring_record *r, const char *what)
{
	return kv_fail(err, KV_ERR_PROTOCOL, "shm",
		       "the peer's record (type %u, %u bytes, region %u, offset %llu) %s", r->type,
		       r->len, r->mem, (unsigned long long)r->a, what);
}

static int take_data(struct shm_conn *sc, const struct ring_record *r, const uint8_t *payload,
		     struct kv_error *err)
{
	struct tr_mem *mem = tr_conn_reach(sc->conn, r->mem, r->a, r->len, TR_REMOTE_WRITE);
	int ret = 0;
	int may = mem ? tr_conn_may(sc->conn, mem, r->a, r->len, TR_REMOTE_WRITE, r->b)
		      : KV_ERR_PROTOCOL;
	uint8_t *dst;

	if (may != TR_PLACE && mem)
		tr_mem_put(mem);
	if (may < 0)
		return refuse_record(err, r, "writes outside the memory that was opened to it");
	if (may == TR_DROP)
		return 0;
	dst = mem->addr + r->a;
	if (stage_region(mem))
		ret = scatter_put(sc, mem, payload, dst, r->len, err);
	else if (sc->line_order)
		store_ordered(dst, payload, r->len, (struct store_ahead){ payload, dst });
	else
		memcpy(dst, payload, r->len);
	tr_mem_put(mem);
	return ret;
}

static int take_read(struct shm_conn *sc, const struct ring_record *r, struct kv_error *err)
{
	struct tr_mem *mem =
		r->b ? tr_conn_reach(sc->conn, r->mem, r->a, r->b, TR_REMOTE_READ) : NULL;

	bool may = mem && tr_conn_may(sc->conn, mem, r->a, r->b, TR_REMOTE_READ, 0) == TR_PLACE;

	if (mem)
		tr_mem_put(mem);
	if (!may)
		return refuse_record(err, r, "reads outside the memory that was opened to it");
	if (sc->answer_tail - sc->answer_head == SHM_READS_MAX)
		return refuse_record(err, r, "is one read too many");
	sc->answer[sc->answer_tail++ % SHM_READS_MAX] = (struct shm_answer){
		.mem = r->mem, .offset = r->a, .left = r->b, .line = r->line & 127
	};
	return 0;
}

static int take_answer(struct shm_conn *sc, const struct ring_record *r, const uint8_t *payload,
		       struct kv_error *err)
{
	struct shm_read *read = &sc->read[sc->read_next % SHM_READS_MAX];
	int ret;

	if (sc->read_next == sc->read_tail || r->len > read->left)
		return refuse_record(err, r, "answers no read");
	if (read->dst && read->of) {
		ret = scatter_put(sc, read->of, payload, read->dst, r->len, err);
		if (ret)
			return ret;
	} else if (read->dst && sc->line_order) {
		store_ordered(read->dst, payload, r->len,
			      (struct store_ahead){ payload, read->dst });
	} else if (read->dst) {
		memcpy(read->dst, payload, r->len);
	}
	if (read->dst)
		read->dst += r->len;
	read->left -= r->len;
	if (read->left)
		return 0;
	sc->read_next++;
	reads_end(sc);
	return 0;
}

/* One record: 0, TR_AGAIN if the events it makes have no room, or the connection's failure. */
static int take_one_record(struct shm_conn *sc, const struct ring_record *r, const uint8_t *payload,
			   struct kv_error *err)
{
	switch (r->type) {
	case RING_PAD:
		return 0;
	case RING_DATA:
		return take_data(sc, r, payload, err);
	case RING_NOTIFY:
		if (!tr_conn_room(sc->conn))
			return TR_AGAIN;
		tr_conn_notified(sc->conn, r->a);
		return 0;
	case RING_MSG:
		if (r->len > TR_MSG_MAX)
			return refuse_record(err, r, "is too long for a message");
		if (!tr_conn_room(sc->conn))
			return TR_AGAIN;
		tr_conn_message(sc->conn, payload, r->len);
		return 0;
	case RING_READ:
		return take_read(sc, r, err);
	case RING_READ_DATA:
		return take_answer(sc, r, payload, err);
	case RING_PIECES:
		return range_asked(sc, r->mem, r->a)
			       ? 0
			       : refuse_record(err, r, "asks for memory that is not lent");
	default:
		return refuse_record(err, r, "is of an unknown type");
	}
}

static void publish_head(struct shm_conn *sc)
{
	if (!sc->scattering && ring_publish_head(&sc->in))
		link_wake(sc, WAKE_ROOM);
}

/* acquire: pairs with the release in stop_announce. Look at it before the ring. */
static bool must_stop(const struct shm_conn *sc)
{
	return atomic_load_explicit(&sc->seg.theirs->stop, memory_order_acquire);
}

static bool carries_bytes(const struct ring_record *r)
{
	return r->type == RING_DATA || r->type == RING_READ_DATA;
}

/* It tells of the bytes before it, or needs them. */
static bool follows_bytes(const struct ring_record *r)
{
	return !carries_bytes(r) && r->type != RING_PAD;
}

/* Number of records, or the connection's failure. */
static int take_records(struct shm_conn *sc, struct kv_error *err)
{
	uint64_t end = sc->in.head + SHM_PROGRESS_BYTES;
	struct ring_record record;
	const uint8_t *payload;
	int done = 0, ret = scatter_end(sc, 0, err);

	if (ret)
		return ret; /* TR_AGAIN: a kernel works, and what follows still counts */
	while (sc->in.head < end && done < SHM_PROGRESS_RECORDS) {
		ret = ring_next(&sc->in, &record, &payload);
		if (ret < 0)
			return kv_fail(err, KV_ERR_PROTOCOL, "shm",
				       "the ring that the peer writes is corrupt");
		if (!ret)
			break;
		/*
		 * Bytes that are not placed must not be followed by a notify or a message: stop
		 * here.
		 */
		if (carries_bytes(&record) && must_stop(sc))
			break;
		ret = sc->scattering && follows_bytes(&record) ? scatter_await(sc, 0, err) : 0;
		if (!ret)
			ret = take_one_record(sc, &record, payload, err);
		if (ret < 0)
			return ret;
		if (ret == TR_AGAIN)
			break;
		ring_consume(&sc->in, &record);
		done++;
		if (sc->in.head - sc->in.published >= SHM_PUBLISH_BYTES)
			publish_head(sc);
	}
	ret = scatter_end(sc, 0, err);
	if (ret < 0)
		return ret;
	publish_head(sc);
	return done + ret;
}

/* Number of answers that advanced, or the connection's failure. */
static int answer_reads(struct shm_conn *sc, struct kv_error *err)
{
	int done = 0;

	while (sc->answer_head != sc->answer_tail) {
		struct shm_answer *a = &sc->answer[sc->answer_head % SHM_READS_MAX];
		struct ring_record record = { .type = RING_READ_DATA,
					      .mem = a->mem,
					      .a = a->offset };
		struct tr_mem *mem =
			tr_conn_reach(sc->conn, a->mem, a->offset, a->left, TR_REMOTE_READ);
		uint64_t n = 0;
		int ret;

		if (!mem)
			return refuse_record(err, &record, "reads a region that was deregistered");
		ret = stage_region(mem) ? staged_open(sc, &sc->gather, mem, err) : 0;
		if (!ret)
			n = send_piece(sc, &record, mem->addr + a->offset, stage_region(mem),
				       a->left, a->line);
		tr_mem_put(mem);
		if (ret)
			return ret;
		a->line = (uint32_t)(a->line + n) & 127;
		a->offset += n;
		a->left -= n;
		done += n > 0;
		if (a->left)
			break;
		sc->answer_head++;
	}
	return done;
}

/* The socket and the pidfd: everything else is in the ring. */
static int look_at_link(struct shm_conn *sc, struct kv_error *err)
{
	int ret = link_drain(sc, err);

	if (!ret && !sc->hung_up && link_peer_is_dead(sc))
		sc->hung_up = true;
	return ret;
}

static int move_rings(struct shm_conn *sc, struct kv_error *err)
{
	int taken, answered, passed;

	if (!ring_refresh(&sc->out))
		return kv_fail(err, KV_ERR_PROTOCOL, "shm",
			       "the peer's position in the ring is impossible");
	taken = take_records(sc, err);
	if (taken < 0)
		return taken;
	answered = answer_reads(sc, err);
	if (answered < 0)
		return answered;
	passed = range_answer(sc, err);
	if (passed < 0)
		return passed;
	return taken + answered + passed + send_progress(sc);
}

/*
 * After it was ready to sleep: the peer has rung, or may be gone. That costs system calls, and most
 * who were ready did not sleep; what else made the descriptor readable still does.
 */
static bool may_be_told(struct shm_conn *sc)
{
	_Atomic uint32_t *asleep = &sc->seg.mine->asleep;
	bool rung = !atomic_exchange_explicit(asleep, 0, memory_order_relaxed);

	if (!rung && ++sc->unlooked < SHM_UNLOOKED)
		return false;
	sc->unlooked = 0;
	return true;
}

int shm_progress(struct tr_conn *conn)
{
	struct shm_conn *sc = tr_conn_priv(conn);
	struct kv_error cause;
	bool stop;
	int ret = 0;

	if (sc->armed) {
		sc->armed = false;
		if (may_be_told(sc))
			ret = look_at_link(sc, &cause);
	}

	link_wake_again(sc);
	stop = must_stop(sc);
	if (!ret)
		ret = move_rings(sc, &cause);
	/* Last: what the peer sent before it went still counts, an acknowledgement among it. */
	if (ret >= 0 && sc->failure.code)
		ret = kv_error_copy(&cause, &sc->failure);
	if (!ret && (stop || sc->hung_up) && tr_conn_room(conn))
		ret = kv_fail(&cause, KV_ERR_PEER_LOST, "poll",
			      stop ? "%s stopped the connection" : "the process of %s is gone",
			      tr_conn_address(conn));
	if (ret < 0) {
		shm_lose(sc, &cause);
		return 1;
	}
	return ret;
}

/* The local socket and the pidfd show it, whatever TCP does, and the peer's memory sooner. */
bool shm_ask(struct tr_conn *conn)
{
	struct shm_conn *sc = tr_conn_priv(conn);
	struct kv_error cause;
	int ret = look_at_link(sc, &cause);

	if (!ret && !sc->hung_up)
		sc->hung_up = cma_peer_is_ending(sc);
	if (ret)
		shm_lose(sc, &cause);
	else if (!sc->hung_up)
		return sc->sock >= 0 || sc->pidfd >= 0;
	return false;
}

int shm_arm(struct tr_conn *conn)
{
	struct shm_conn *sc = tr_conn_priv(conn);
	bool room = sc->blocked || sc->rest.op || sc->wait || sc->answer_head != sc->answer_tail;

	/* Once for each refusal: a caller that gave up must be able to sleep. */
	if (sc->cut || (sc->blocked && sc->blocked_at != sc->out.head)) {
		sc->cut = sc->blocked = false;
		return 1;
	}
	if (sc->hung_up || sc->copies || sc->gathering || sc->scattering || sc->failure.code ||
	    (sc->cuda && sc->cuda->stopping) ||
	    (sc->late && sc->bell < 0)) /* nothing rings a bell */
		return 1;
	if (sc->unrung)
		return 1;
	sc->armed = true;
	atomic_store_explicit(&sc->seg.mine->asleep, WAKE_DATA | (room ? (uint32_t)WAKE_ROOM : 0),
			      memory_order_relaxed);
	/*
	 * seq_cst fence: `asleep` is stored before the words below are looked at; the partner is in
	 * link_wake.
	 */
	atomic_thread_fence(memory_order_seq_cst);
	if (atomic_load_explicit(&sc->in.shared->tail, memory_order_relaxed) != sc->in.head ||
	    must_stop(sc))
		return 1;
	return room &&
	       atomic_load_explicit(&sc->out.shared->head, memory_order_relaxed) != sc->out.head;
}
