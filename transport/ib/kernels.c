/* SPDX-License-Identifier: Apache-2.0 */
/* kernels.c -- kernels of staged memory (slot.h): whether they run, and the end of all of it */
#include "slot.h"

#include <stdlib.h>
#include <sys/mman.h>

#include "base/text.h"

void ib_staged_dump(struct kv_text *t, const struct ib_conn *c)
{
	const struct ib_staged *s = c->staged;

	if (!s)
		return;
	kv_text_add(t,
		    "  pinned memory for GPUs: slots out %u, of which %u are not posted and %u not "
		    "taken by the peer, in %u, reads %u, answers %u%s%s%s\n",
		    s->begun, s->begun - s->posted, s->begun - s->taken, s->placed,
		    s->read_tail - s->read_ended, s->answer_tail - s->answer_head,
		    s->open ? "" : ", waits for the peer's",
		    stage_runs(s->gather) ? ", a GPU gathers" : "",
		    stage_runs(s->scatter) ? ", a GPU scatters" : "");
}

/* Kernels run, and nothing but a look shows that they have ended. */
bool ib_staged_runs(const struct ib_conn *c)
{
	return c->staged && (stage_runs(c->staged->gather) || stage_runs(c->staged->scatter));
}

bool ib_staged_quit(struct ib_conn *c)
{
	bool gathered = !c->staged || stage_quit(c->staged->gather);

	return (!c->staged || stage_quit(c->staged->scatter)) && gathered;
}

/* A cancelled read into which a kernel runs on is not over: it ends in doubt. */
void ib_staged_stop(struct ib_conn *c)
{
	bool quiet = ib_staged_quit(c);

	for (unsigned int i = 0; !quiet && i < tr_conn_ops(c->conn); i++) {
		struct tr_op *op = tr_conn_op(c->conn, i);

		if (op->kind == TR_READ_OP && op->state == TR_OP_STOPPING && ib_op_of(op)->staged)
			op->state = TR_OP_COMMITTED;
	}
}

void ib_staged_close(struct ib_conn *c)
{
	struct ib_staged *s = c->staged;

	if (!s)
		return;
	ib_staged_quit(c);
	s->mapped = !stage_close(s->gather);
	s->mapped |= !stage_close(s->scatter);
}

/* The queue pairs are gone. */
void ib_staged_free(struct ib_conn *c)
{
	struct ib_staged *s = c->staged;

	if (!s)
		return;
	if (s->mr_in)
		c->v->dereg_mr(s->mr_in);
	if (s->mr_out)
		c->v->dereg_mr(s->mr_out);
	if (s->bytes && !s->mapped)
		munmap(s->bytes, 2 * STAGED_HALF);
	free(s);
	c->staged = NULL;
}
