/* SPDX-License-Identifier: Apache-2.0 */
/*
 * copy.c -- pieces gathered into batches in pinned memory, one kernel a batch, whose end its blocks
 * write there; an event, which costs a call to make and one to ask for, shows the copy engines'
 * end, and of a kernel that does not end in ASK_NS whether it failed
 *
 * Or the copy engines take a batch: they need no multiprocessor, so an owner
 * whose peer's kernels hold all of them until the bytes come gets them there. The stream has the
 * greatest priority, for that reason, too: its kernel takes the first multiprocessors that are
 * free, and does not stand in the queue of the application's streams.
 *
 * Batches are numbered from 1 and end in their order. Batch n uses slot n % BATCHES, whose memory
 * is written again only after its kernel has ended.
 */
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/fault.h"
#include "gpu.h"

/* As copy.cu has it. */
struct start {
	uint32_t piece, chunk;
};
enum { LANES = 32, THREADS = 1024 };

enum {
	BATCHES = 4,
	/*
	 * Of a batch: at 1 KiB its kernel takes ten times what launching it does. None is begun
	 * with fewer while there are more to put: a second launch takes as long as to gather them.
	 */
	PIECES = 2048,
	ASK_NS = 100000,   /* the driver is asked for the error of a kernel that does not end */
	LINEAR = 32 << 10, /* bytes from which on a copy needs no rows, and */
	ROW_GAP = 64,	   /* between those */
	COPIES = 64,	   /* of one call for the copy engines */
	LARGE_SMS = 8,	   /* an owner who gives the kernel more has it used */
	SMS_MAX = 256,
	STARTS = SMS_MAX * (THREADS / LANES) + 1,
};
_Static_assert((int)PIECES >= (int)GPU_ROOM, "what gpu_kind promises");
_Static_assert(GPU_BLOCK_MAX / GPU_CHUNK <= UINT32_MAX / PIECES, "the kernel counts in 32 bits");

/* Pinned, and read by the kernel. */
struct batch {
	union {
		struct gpu_piece piece[PIECES];
		struct gpu_block block[PIECES];
	};
	struct start start[STARTS];
	_Atomic uint32_t ended[SMS_MAX]; /* the kernel's blocks: the number of their last batch */
};

struct gpu_queue {
	const struct gpu_device *gpu;
	int sms;
	void *stream;
	struct batch *batch; /* BATCHES of them */
	cuda_ptr batch_at;   /* the same as the GPU sees it */
	uint8_t *stage;	     /* apart: GPU_STAGE bytes of each, and */
	cuda_ptr stage_at;
	void *event[BATCHES];
	unsigned int blocks[BATCHES]; /* of its kernel; 0: the copy engines have it */
	bool recorded[BATCHES];	      /* its event is, behind it or behind later ones, too */
	int64_t asked_ns;	      /* the driver for an event, or when a kernel was begun */
	uint64_t launched, done;      /* batches */
	unsigned int pieces;	      /* in the one that is open: launched + 1 */
	bool engines;		      /* copy that one, */
	size_t row;		      /* its only piece, in two rows from the stage; 0: not so */
	bool fresh;		      /* pieces were put into it since gpu_queue_go */
	uint64_t chunks;
	struct gpu_piece base; /* of the blocks in the open one; len 0: they are pieces */
	struct kv_error failed;
	struct gpu_queue *next_kept;
};

static int queue_failed(struct gpu_queue *queue, const char *what, int rc, struct kv_error *err)
{
	if (!queue->failed.code) {
		kv_fail(&queue->failed, KV_ERR_DEVICE, "gpu", "%s on GPU %d: %s", what,
			queue->gpu->device, cuda_error(rc));
		kv_error_hint(&queue->failed,
			      "an error of any kernel in this process ends its context: "
			      "compute-sanitizer names the first");
	}
	return kv_error_copy(err, &queue->failed);
}

/* The slot and the stream of a queue. In its context. */
static int make_queue(struct gpu_queue *queue)
{
	const struct cuda_driver *cuda = queue->gpu->cuda;
	void *memory = NULL;
	int least, greatest, rc = cuda->priorities(&least, &greatest);

	if (!rc)
		rc = cuda->stream_create(&queue->stream, STREAM_NON_BLOCKING, greatest);
	if (!rc)
		rc = cuda->host_alloc(&memory, BATCHES * sizeof(struct batch),
				      HOST_PORTABLE_MAPPED);
	queue->batch = memory;
	for (int i = 0; i < BATCHES && memory; i++)
		memset(queue->batch[i].ended, 0, sizeof(queue->batch[i].ended));
	if (!rc)
		rc = cuda->host_pointer(&queue->batch_at, memory, 0);
	memory = NULL;
	if (!rc && gpu_is_apart(queue->gpu->gpu)) {
		rc = cuda->host_alloc(&memory, BATCHES * GPU_STAGE, HOST_PORTABLE_MAPPED);
		queue->stage = memory;
		if (!rc)
			rc = cuda->host_pointer(&queue->stage_at, memory, 0);
	}
	for (int i = 0; i < BATCHES && !rc; i++)
		rc = cuda->event_create(&queue->event[i], EVENT_DISABLE_TIMING);
	return rc;
}

/* In its context. */
static void unmake_queue(struct gpu_queue *queue)
{
	const struct cuda_driver *cuda = queue->gpu->cuda;

	for (int i = 0; i < BATCHES; i++)
		if (queue->event[i])
			cuda->event_destroy(queue->event[i]);
	if (queue->batch)
		cuda->host_free(queue->batch);
	if (queue->stage)
		cuda->host_free(queue->stage);
	if (queue->stream)
		cuda->stream_destroy(queue->stream);
}

int gpu_queue_open(struct gpu *gpu, int device, int sms, struct gpu_queue **queue_p,
		   struct kv_error *err)
{
	struct gpu_queue *queue = kv_fault(GPU_ALLOC) ? NULL : calloc(1, sizeof(*queue));
	int ret, rc, mode;

	if (!queue)
		return kv_fail(err, KV_ERR_NOMEM, "gpu", "cannot allocate a queue");
	ret = gpu_device(gpu, device, &queue->gpu, err);
	if (ret) {
		free(queue);
		return ret;
	}
	queue->sms = sms < SMS_MAX ? sms : SMS_MAX;
	rc = gpu_enter(queue->gpu, &mode);
	if (!rc) {
		rc = make_queue(queue);
		if (rc)
			unmake_queue(queue);
		gpu_leave(queue->gpu, &mode);
	}
	if (rc) {
		ret = queue_failed(queue, "cannot make a queue", rc, err);
		free(queue);
		return ret;
	}
	*queue_p = queue;
	return 0;
}

bool gpu_queue_close(struct gpu_queue *queue)
{
	int mode;

	if (!gpu_queue_quiet(queue)) {
		gpu_keep(queue->gpu->gpu, queue, &queue->next_kept);
		return false;
	}
	if (!gpu_enter(queue->gpu, &mode)) {
		unmake_queue(queue);
		gpu_leave(queue->gpu, &mode);
	}
	free(queue);
	return true;
}

int gpu_queue_device(const struct gpu_queue *queue)
{
	return queue->gpu->device;
}

/* ---------------------------------------------------------------- the peer's memory */

int gpu_map(struct gpu_queue *queue, const struct cuda_ipc_handle *handle, uint64_t *at_p,
	    struct kv_error *err)
{
	const struct cuda_driver *cuda = queue->gpu->cuda;
	cuda_ptr at = 0;
	int mode, rc = gpu_enter(queue->gpu, &mode);

	if (!rc) {
		rc = cuda->ipc_open(&at, *handle, IPC_LAZY_ENABLE_PEER_ACCESS);
		gpu_leave(queue->gpu, &mode);
	}
	if (rc)
		return kv_fail(err, KV_ERR_UNREACHABLE, "gpu",
			       "the peer's GPU memory cannot be mapped on GPU %d: %s",
			       queue->gpu->device, cuda_error(rc));
	*at_p = at;
	return 0;
}

void gpu_unmap(struct gpu_queue *queue, uint64_t at)
{
	int mode;

	if (gpu_enter(queue->gpu, &mode))
		return;
	queue->gpu->cuda->ipc_close(at);
	gpu_leave(queue->gpu, &mode);
}

/* ---------------------------------------------------------------- batches */

static struct batch *open_batch(const struct gpu_queue *queue)
{
	return &queue->batch[(queue->launched + 1) % BATCHES];
}

/*
 * Equal shares of chunks, each from one chunk of one piece to another: that of warp w begins at
 * w * chunks / warps.
 */
static void share_out(struct batch *batch, unsigned int pieces, uint64_t chunks, unsigned int warps)
{
	uint64_t each = chunks / warps, more = chunks % warps, rest = 0;
	uint64_t here = 0, end = gpu_chunks(batch->piece[0].len); /* chunk `here` of piece i */
	uint32_t i = 0;

	for (unsigned int w = 0; w < warps; w++) {
		while (here >= end) {
			here -= end;
			end = gpu_chunks(batch->piece[++i].len);
		}
		batch->start[w] = (struct start){ i, (uint32_t)here };
		here += each;
		rest += more;
		if (rest >= warps) {
			rest -= warps;
			here++;
		}
	}
	i = pieces - 1;
	batch->start[warps] = (struct start){ i, (uint32_t)gpu_chunks(batch->piece[i].len) };
}

/* In the context. */
static int start_kernel(struct gpu_queue *queue, uint64_t slot)
{
	unsigned int warps = (unsigned int)queue->sms * (THREADS / LANES);
	cuda_ptr pieces = queue->batch_at + slot * sizeof(struct batch);
	cuda_ptr starts = pieces + offsetof(struct batch, start);
	cuda_ptr ended = pieces + offsetof(struct batch, ended);
	uint32_t number = (uint32_t)(queue->launched + 1);
	void *params[] = {
		&pieces, &starts, &warps, &queue->pieces, &queue->base, &ended, &number
	};

	if (warps > queue->chunks)
		warps = (unsigned int)queue->chunks;
	if (!queue->base.len)
		share_out(open_batch(queue), queue->pieces, queue->chunks, warps);
	queue->blocks[slot] = (warps * LANES + THREADS - 1) / THREADS;
	queue->asked_ns = kv_now_ns();
	return queue->gpu->cuda->launch(queue->gpu->kernel, queue->blocks[slot], 1, 1, THREADS, 1,
					1, 0, queue->stream, params, NULL);
}

/* In the context. */
static int copy_together(const struct gpu_queue *queue, const struct gpu_piece *piece, size_t n)
{
	const struct cuda_copies alike = { .source_order = SOURCE_ORDER_STREAM };
	cuda_ptr to[COPIES], from[COPIES];
	size_t len[COPIES], first = 0, bad;

	for (size_t i = 0; i < n; i++) {
		to[i] = piece[i].to;
		from[i] = piece[i].from;
		len[i] = piece[i].len;
	}
	return queue->gpu->cuda->copy_batch(to, from, len, n, &alike, &first, 1, &bad,
					    queue->stream);
}

/* Of n pieces from the first on: how many large ones go by one call. */
static unsigned int count_large(const struct gpu_piece *piece, unsigned int n)
{
	unsigned int i = 0;

	while (i < n && i < COPIES && piece[i].len >= GPU_LARGE)
		i++;
	return i;
}

/* In the context. */
static int start_engines(struct gpu_queue *queue, uint64_t slot)
{
	const struct gpu_piece *piece = open_batch(queue)->piece;
	unsigned int n = queue->pieces, some;
	int rc = 0;

	queue->blocks[slot] = 0;
	if (queue->row) {
		struct cuda_rows rows = {
			.from = { .type = MEMORY_TYPE_HOST,
				  .host = queue->stage + slot * GPU_STAGE,
				  .pitch = queue->row + ROW_GAP },
			.to = { .type = MEMORY_TYPE_DEVICE,
				.device = piece->to,
				.pitch = queue->row },
			.width = queue->row,
			.height = 2,
		};
		return queue->gpu->cuda->copy_rows(&rows, queue->stream);
	}
	for (unsigned int i = 0; i < n && !rc; i += some) {
		some = gpu_queue_takes_large(queue) ? count_large(&piece[i], n - i) : 0;
		some = some ? some : 1;
		rc = some > 1 ? copy_together(queue, &piece[i], some)
			      : queue->gpu->cuda->copy(piece[i].to, piece[i].from, piece[i].len,
						       queue->stream);
	}
	return rc;
}

static int launch(struct gpu_queue *queue, struct kv_error *err)
{
	const struct cuda_driver *cuda = queue->gpu->cuda;
	uint64_t slot = (queue->launched + 1) % BATCHES;
	int mode, rc = kv_fault(GPU_LAUNCH) ? CUDA_OUT_OF_MEMORY : gpu_enter(queue->gpu, &mode);

	if (!rc) {
		rc = queue->engines ? start_engines(queue, slot) : start_kernel(queue, slot);
		queue->recorded[slot] = queue->engines;
		if (!rc && queue->engines)
			rc = cuda->event_record(queue->event[slot], queue->stream);
		gpu_leave(queue->gpu, &mode);
	}
	if (rc)
		return queue_failed(queue, "cannot launch a copy", rc, err);
	queue->launched++;
	gpu_queue_drop(queue);
	return 0;
}

/* All blocks of its kernel have said so. */
static bool kernel_ended(const struct gpu_queue *queue, uint64_t batch)
{
	const struct batch *b = &queue->batch[batch % BATCHES];
	unsigned int blocks = queue->blocks[batch % BATCHES], i = 0;

	/* acquire: the words come after the bytes that the kernel has stored */
	while (i < blocks &&
	       atomic_load_explicit(&b->ended[i], memory_order_acquire) == (uint32_t)batch)
		i++;
	return i && i == blocks;
}

static int ask_events(struct gpu_queue *queue, struct kv_error *err)
{
	const struct cuda_driver *cuda = queue->gpu->cuda;
	int mode, rc = gpu_enter(queue->gpu, &mode);

	if (rc)
		return queue_failed(queue, "cannot enter the context", rc, err);
	while (queue->done != queue->launched && !rc) {
		uint64_t slot = (queue->done + 1) % BATCHES;

		if (!queue->recorded[slot])
			rc = cuda->event_record(queue->event[slot], queue->stream);
		queue->recorded[slot] |= !rc;
		if (!rc)
			rc = cuda->event_query(queue->event[slot]);
		queue->done += !rc;
	}
	gpu_leave(queue->gpu, &mode);
	return !rc || rc == CUDA_NOT_READY ? 0 : queue_failed(queue, "a copy failed", rc, err);
}

/* Counts the batches that have ended; `ask`: at least the driver knows. */
static int count_ended(struct gpu_queue *queue, bool ask, struct kv_error *err)
{
	int64_t now;

	while (queue->done != queue->launched && kernel_ended(queue, queue->done + 1))
		queue->done++;
	if (queue->done == queue->launched)
		return 0;
	now = kv_now_ns();
	if (!ask && queue->blocks[(queue->done + 1) % BATCHES] && now - queue->asked_ns < ASK_NS)
		return 0;
	queue->asked_ns = now;
	return ask_events(queue, err);
}

/* engines: what the open batch has for the others goes before. */
static int room_of(struct gpu_queue *queue, bool engines, struct kv_error *err)
{
	int ret = queue->failed.code ? kv_error_copy(err, &queue->failed) : 0;

	if (!ret && (queue->pieces == PIECES || (queue->pieces && queue->engines != engines)))
		ret = launch(queue, err);
	if (!ret && queue->launched - queue->done == BATCHES)
		ret = count_ended(queue, false, err);
	if (ret || queue->launched - queue->done == BATCHES)
		return ret;
	queue->engines = engines;
	return (int)(PIECES - queue->pieces);
}

/* From the last to the first: a piece lies behind the blocks that are still to be read. */
static void make_pieces(struct gpu_queue *queue)
{
	struct batch *batch = open_batch(queue);
	struct gpu_piece base = queue->base;

	for (size_t i = base.len ? queue->pieces : 0; i-- > 0;) {
		struct gpu_block block = batch->block[i];

		batch->piece[i].to = base.to + (uint64_t)block.to * GPU_STEP;
		batch->piece[i].from = base.from + (uint64_t)block.from * GPU_STEP;
		batch->piece[i].len = base.len;
	}
	queue->base.len = 0;
}

int gpu_queue_room(struct gpu_queue *queue, bool engines, struct gpu_piece **piece_p,
		   struct kv_error *err)
{
	int room = room_of(queue, engines, err);

	if (room <= 0)
		return room;
	make_pieces(queue);
	*piece_p = &open_batch(queue)->piece[queue->pieces];
	return room;
}

/* Addresses that blocks of this base can have. */
static bool reaches(uint64_t base, const struct gpu_bounds *in)
{
	return in->first >= base && in->end - base <= (uint64_t)GPU_STEP << 32;
}

static uint64_t base_of(const struct gpu_bounds *in)
{
	uint64_t below = (uint64_t)GPU_STEP << 31, first = in->first;

	return first > below ? (first - below) / GPU_STEP * GPU_STEP : 0;
}

bool gpu_queue_takes_blocks(const struct gpu_queue *queue, const struct gpu_bounds *to,
			    const struct gpu_bounds *from, uint64_t len)
{
	return !queue->pieces || queue->pieces == PIECES || queue->engines ||
	       (queue->base.len == len && reaches(queue->base.to, to) &&
		reaches(queue->base.from, from));
}

int gpu_queue_room_blocks(struct gpu_queue *queue, const struct gpu_bounds *to,
			  const struct gpu_bounds *from, uint64_t len, struct gpu_block **block_p,
			  struct gpu_piece *base_p, struct kv_error *err)
{
	int room = room_of(queue, false, err);

	if (room <= 0)
		return room;
	if (!queue->pieces)
		queue->base = (struct gpu_piece){ base_of(to), base_of(from), len };
	*base_p = queue->base;
	*block_p = &open_batch(queue)->block[queue->pieces];
	return room;
}

bool gpu_queue_takes_large(const struct gpu_queue *queue)
{
	return queue->gpu->cuda->copy_batch && queue->sms <= LARGE_SMS;
}

int gpu_queue_put(struct gpu_queue *queue, unsigned int n, uint64_t chunks, struct kv_error *err)
{
	queue->chunks += chunks;
	queue->pieces += n;
	queue->fresh = true;
	/* Small ones are for an owner who waits for them; several large ones go together. */
	return queue->engines && chunks / n < gpu_chunks(GPU_LARGE) ? launch(queue, err) : 0;
}

/*
 * A short linear copy is done by the driver in the channel that kernels use, and while a kernel of
 * another context holds the GPU that has its turn after 2.5 ms (H200, driver 580: 16 bytes to 8 KiB
 * from pinned memory 2,517 us; rows 8 us; 32 KiB and more 9 us either way). Rows go to a copy
 * engine. So that they are rows to the driver, there is a gap between them here.
 */
int gpu_queue_put_host(struct gpu_queue *queue, uint64_t to, const void *from, size_t len,
		       struct kv_error *err)
{
	uint64_t at = (queue->launched + 1) % BATCHES * GPU_STAGE;
	uint8_t *stage = queue->stage + at;

	queue->row = !queue->pieces && len < LINEAR && len % 16 == 0 ? len / 2 : 0;
	if (queue->row) {
		memcpy(stage, from, queue->row);
		memcpy(stage + queue->row + ROW_GAP, (const uint8_t *)from + queue->row,
		       queue->row);
	} else {
		memcpy(stage, from, len);
	}
	open_batch(queue)->piece[queue->pieces] =
		(struct gpu_piece){ to, queue->stage_at + at, len };
	return gpu_queue_put(queue, 1, gpu_chunks(len), err);
}

void gpu_queue_go(struct gpu_queue *queue)
{
	struct kv_error err;

	if (queue->pieces && !queue->fresh && !queue->failed.code)
		launch(queue, &err); /* what fails is the queue's */
	queue->fresh = false;
}

uint64_t gpu_queue_last(const struct gpu_queue *queue)
{
	return queue->launched + (queue->pieces > 0);
}

int gpu_queue_end(struct gpu_queue *queue, uint64_t batch, struct kv_error *err)
{
	int ret = queue->failed.code ? kv_error_copy(err, &queue->failed) : 0;

	if (!ret && batch > queue->launched && queue->pieces)
		ret = launch(queue, err);
	if (!ret)
		ret = count_ended(queue, false, err);
	return ret ? ret : queue->done < batch;
}

bool gpu_queue_runs(const struct gpu_queue *queue)
{
	return queue->launched != queue->done;
}

void gpu_queue_drop(struct gpu_queue *queue)
{
	queue->pieces = 0;
	queue->chunks = 0;
	queue->row = 0;
}

/* After a failure of the context no kernel of it runs any more. */
bool gpu_queue_quiet(struct gpu_queue *queue)
{
	struct kv_error err;

	return count_ended(queue, true, &err) || queue->done == queue->launched;
}

bool gpu_queue_quit(struct gpu_queue *queue, int64_t deadline_ns)
{
	gpu_queue_drop(queue);
	while (!gpu_queue_quiet(queue)) {
		if (kv_now_ns() >= deadline_ns)
			return false;
		sched_yield();
	}
	return true;
}
