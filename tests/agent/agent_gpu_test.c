/* SPDX-License-Identifier: Apache-2.0 */
/*
 * agent_gpu_test.c -- agents whose regions are a GPU's: a stand-in for libcuda, of which a CPU that
 * touches the memory by CUDA's address ends the test
 */
#include "agent_rig.h"

#include <string.h>

#include "fake_cuda.h"

enum { LEN = 1 << 20, ROWS = 64, ROW = 8192 };

static const char *path;

/* An agent and its region: where CUDA has it, and where this process sees it. */
struct end {
	struct rig_end rig;
	struct ag_mem *mem;
	uint8_t *at, *seen;
};

static void end_open(struct end *end, const char *name, bool gpu)
{
	struct kv_error err;

	rig_open(&end->rig, name, LEN);
	end->mem = end->rig.mem;
	end->at = end->seen = end->rig.buf;
	if (!gpu)
		return;
	end->seen = fake_cuda_alloc(LEN, &end->at);
	assert_non_null(end->seen);
	assert_int_equal(ag_mem_reg(end->rig.agent, end->at, LEN, AG_CUDA, &end->mem, &err), 0);
}

/* Two of them: a has loaded b and its region; the rows of a are those of b in reverse. */
struct ends {
	struct end a, b;
	struct ag_rmem *rmem;
	struct ag_pair pairs[ROWS];
};

static void ends_open(struct ends *e, bool gpu_a, bool gpu_b)
{
	end_open(&e->a, "a", gpu_a);
	end_open(&e->b, "b", gpu_b);
	rig_load(&e->a.rig, &e->b.rig);
	e->rmem = rig_see(&e->a.rig, &e->b.rig, e->b.mem);
	for (size_t i = 0; i < ROWS; i++)
		e->pairs[i] = (struct ag_pair){ e->a.mem, e->rmem, (uintptr_t)e->a.at + i * ROW,
						(uintptr_t)e->b.at + (ROWS - 1 - i) * ROW, ROW };
}

static void ends_close(struct ends *e)
{
	ag_rmem_unload(e->rmem);
	rig_close(&e->a.rig);
	rig_close(&e->b.rig);
	assert_int_equal(fake_cuda.open, 0);
	fake_cuda_reset();
}

static void rows_are_of(const uint8_t *seen, unsigned int seed)
{
	static uint8_t want[LEN];

	rig_fill(want, seed, LEN);
	for (size_t i = 0; i < ROWS; i++)
		assert_memory_equal(seen + (ROWS - 1 - i) * ROW, want + i * ROW, ROW);
}

static void moves(bool gpu_a, bool gpu_b)
{
	struct ends e;
	char note[8];

	ends_open(&e, gpu_a, gpu_b);
	rig_fill(e.a.seen, 1, LEN);
	rig_move(&e.a.rig, "b", AG_WRITE, e.pairs, ROWS, "there", 6);
	assert_int_equal(rig_note(&e.b.rig, NULL, note, sizeof(note)), 6);
	rows_are_of(e.b.seen, 1); /* the bytes come before it */
	for (size_t i = 0; i < ROWS; i++)
		rig_fill(e.b.seen + (ROWS - 1 - i) * ROW, 2, ROW);
	rig_move(&e.a.rig, "b", AG_READ, e.pairs, ROWS, NULL, 0);
	for (size_t i = 0; i < ROWS; i++)
		assert_true(rig_is(e.a.seen + i * ROW, 2, ROW));
	ends_close(&e);
}

CASE(rows_go_to_and_from_a_gpu)
{
	for (int slow = 0; slow < 4; slow += 3) {
		fake_cuda.slow = slow; /* looks that a kernel takes */
		moves(true, true);
		fake_cuda.slow = slow;
		moves(false, true);
		fake_cuda.slow = slow;
		if (!strcmp(path,
			    "tcp")) /* on one host a GPU does not reach another's ordinary memory */
			moves(true, false);
	}
}

/* As long as a kernel may still write, the blocks are not given back. */
CASE(a_release_waits_for_the_kernel)
{
	struct ag_xfer *xfer;
	struct kv_error err;
	struct ends e;
	uint8_t *untouched;

	ends_open(&e, true, true);
	rig_move(&e.a.rig, "b", AG_READ, e.pairs, 1, NULL, 0);
	fake_cuda.hold = true;
	assert_int_equal(ag_xfer_prepare(e.a.rig.agent, "b", AG_READ, e.pairs, ROWS, &xfer, &err),
			 0);
	fake_cuda.launched = 0;
	assert_true(ag_xfer_post(xfer, NULL, 0, &err) >= 0);
	while (!fake_cuda.launched)
		assert_int_equal(ag_xfer_check(xfer, &err), AG_AGAIN);
	if (strcmp(path, "tcp")) {
		assert_int_equal(ag_xfer_release(xfer), AG_AGAIN);
		fake_cuda.hold = false;
		rig_release(xfer);
	} else { /* the kernel is the other end's, and what it sends is thrown away */
		rig_release(xfer);
		fake_cuda.hold = false;
	}
	untouched = malloc(LEN);
	assert_non_null(untouched);
	memcpy(untouched, e.a.seen, LEN);
	rig_fill(e.b.seen, 3, LEN);
	rig_move(&e.a.rig, "b", AG_WRITE, e.pairs, 1, NULL, 0);
	assert_memory_equal(e.a.seen, untouched, LEN);
	free(untouched);
	ends_close(&e);
}

CASE(what_is_not_a_gpus_memory_is_refused)
{
	uint8_t *addr;
	struct kv_error err;
	struct ag_mem *mem;
	struct end a;

	assert_true(ag_has_cuda());
	end_open(&a, "a", false);
	assert_int_equal(ag_mem_reg(a.rig.agent, a.at, LEN, AG_CUDA, &mem, &err), KV_ERR_ARG);
	assert_non_null(strstr(err.message, "CUDA does not know the address"));
	assert_non_null(fake_cuda_alloc(4096, &addr));
	assert_int_equal(ag_mem_reg(a.rig.agent, addr, 8192, AG_CUDA, &mem, &err), KV_ERR_ARG);
	rig_close(&a.rig);
	fake_cuda_reset();
}

int main(int argc, char **argv)
{
	path = argc > 1 ? argv[1] : "cma";
	rig_path(path);
	return run_cases(NULL, NULL);
}
