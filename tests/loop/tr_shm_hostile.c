/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tr_shm_hostile.c -- a peer that writes nonsense into the shared ring: the connection ends with
 * KV_ERR_PROTOCOL, the process and its memory stay as they were
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "lib/process.h"
#include "lib/test.h"
#include "shm/shm.h"
#include "tr_pair.h"

enum { REGION = 1 << 16, SOURCE_SEED = 1, RING = 65536 };

struct attack {
	void (*act)(struct pair_side *s, struct shm_conn *sc);
	const char *text;    /* in the victim's cause */
	unsigned int access; /* of the victim's region */
};

/* The first record that the victim will take. */
static void put(struct shm_conn *sc, struct ring_record record)
{
	memcpy(sc->out.data + (sc->out.tail & (sc->out.size - 1)), &record, sizeof(record));
}

static void publish(struct shm_conn *sc, uint64_t tail)
{
	atomic_store(&sc->out.shared->tail, tail);
	send(sc->sock, &(struct link_message){ .kind = LINK_DOORBELL }, sizeof(struct link_message),
	     0);
}

static void put_and_publish(struct shm_conn *sc, struct ring_record record)
{
	put(sc, record);
	publish(sc, sc->out.tail + ring_record_bytes(record.len));
}

static void tail_between_records(struct pair_side *s, struct shm_conn *sc)
{
	publish(sc, sc->out.tail + 7);
}

static void tail_far_ahead(struct pair_side *s, struct shm_conn *sc)
{
	publish(sc, sc->out.tail + sc->out.size + RING_ALIGN);
}

static void tail_behind(struct pair_side *s, struct shm_conn *sc)
{
	publish(sc, sc->out.tail - RING_ALIGN);
}

static void unknown_type(struct pair_side *s, struct shm_conn *sc)
{
	put_and_publish(sc, (struct ring_record){ .type = 99 });
}

static void longer_than_published(struct pair_side *s, struct shm_conn *sc)
{
	put(sc, (struct ring_record){ .type = RING_MSG, .len = 200 });
	publish(sc, sc->out.tail + RING_ALIGN);
}

static void longer_than_the_ring(struct pair_side *s, struct shm_conn *sc)
{
	put(sc, (struct ring_record){ .type = RING_DATA, .len = UINT32_MAX, .mem = s->rmem->id });
	publish(sc, sc->out.tail + sc->out.size);
}

/* A whole ring of PADs but one unit, then a record that would cross the end. */
static void across_the_end(struct pair_side *s, struct shm_conn *sc)
{
	struct ring_record pad = { .type = RING_PAD, .len = RING - 3 * RING_ALIGN };

	put(sc, pad);
	sc->out.tail += RING - 2 * RING_ALIGN;
	put(sc, (struct ring_record){ .type = RING_PAD, .len = 4 * RING_ALIGN });
	publish(sc, sc->out.tail + 2 * RING_ALIGN);
}

static void unknown_region(struct pair_side *s, struct shm_conn *sc)
{
	put_and_publish(
		sc, (struct ring_record){ .type = RING_DATA, .len = 8, .mem = s->rmem->id + 1 });
}

static void beyond_the_region(struct pair_side *s, struct shm_conn *sc)
{
	put_and_publish(sc,
			(struct ring_record){
				.type = RING_DATA, .len = 8, .mem = s->rmem->id, .a = REGION - 7 });
}

static void offset_that_overflows(struct pair_side *s, struct shm_conn *sc)
{
	put_and_publish(
		sc, (struct ring_record){
			    .type = RING_DATA, .len = 8, .mem = s->rmem->id, .a = UINT64_MAX - 3 });
}

static void write_without_access(struct pair_side *s, struct shm_conn *sc)
{
	put_and_publish(sc,
			(struct ring_record){ .type = RING_DATA, .len = 8, .mem = s->rmem->id });
}

static void read_without_access(struct pair_side *s, struct shm_conn *sc)
{
	put_and_publish(sc, (struct ring_record){ .type = RING_READ, .b = 8, .mem = s->rmem->id });
}

static void read_beyond(struct pair_side *s, struct shm_conn *sc)
{
	put_and_publish(sc,
			(struct ring_record){
				.type = RING_READ, .b = UINT64_MAX, .mem = s->rmem->id, .a = 1 });
}

static void too_many_reads(struct pair_side *s, struct shm_conn *sc)
{
	for (int i = 0; i <= SHM_READS_MAX; i++) {
		put(sc, (struct ring_record){ .type = RING_READ, .b = REGION, .mem = s->rmem->id });
		sc->out.tail += RING_ALIGN;
	}
	publish(sc, sc->out.tail);
}

static void answer_without_a_read(struct pair_side *s, struct shm_conn *sc)
{
	put_and_publish(sc, (struct ring_record){ .type = RING_READ_DATA, .len = 8 });
}

static void pieces_asked_for_twice(struct pair_side *s, struct shm_conn *sc)
{
	for (int i = 0; i < 2; i++) {
		put(sc, (struct ring_record){ .type = RING_PIECES, .mem = s->rmem->id });
		sc->out.tail += RING_ALIGN;
	}
	publish(sc, sc->out.tail);
}

static void message_too_long(struct pair_side *s, struct shm_conn *sc)
{
	put_and_publish(sc, (struct ring_record){ .type = RING_MSG, .len = TR_MSG_MAX + 1 });
}

static void head_that_was_never_written(struct pair_side *s, struct shm_conn *sc)
{
	atomic_store(&sc->in.shared->head, 1 << 20);
	publish(sc, sc->out.tail);
}

static void strange_word_on_the_socket(struct pair_side *s, struct shm_conn *sc)
{
	send(sc->sock, "x", 1, 0);
}

static void strange_kind_on_the_socket(struct pair_side *s, struct shm_conn *sc)
{
	send(sc->sock, &(struct link_message){ .kind = 77 }, sizeof(struct link_message), 0);
}

/* A pool whose size its owner could still change. */
static void pool_without_seals(struct pair_side *s, struct shm_conn *sc)
{
	struct link_message message = { .kind = LINK_POOL, .id = 1234, .len = 4096 };
	FILE *f = tmpfile();
	struct kv_error err;

	PAIR_CHECK(f && !link_send(sc, &message, &(struct link_fds){ 1, { fileno(f) } }, &err));
}

static void pass(struct shm_conn *sc, int fd)
{
	struct link_message message = { .kind = LINK_POOL, .id = 1234, .len = 2 << 20 };
	struct kv_error err;

	PAIR_CHECK(fd >= 0 && !link_send(sc, &message, &(struct link_fds){ 1, { fd } }, &err));
	close(fd);
}

static int sealed(unsigned int flags, int seals)
{
	int fd = memfd_create("pool", MFD_CLOEXEC | MFD_ALLOW_SEALING | flags);

	PAIR_CHECK(fd < 0 || (!ftruncate(fd, 2 << 20) && !fcntl(fd, F_ADD_SEALS, seals)));
	return fd;
}

/*
 * Its owner can punch a hole and keep every huge page: then who writes there dies. Where there are
 * no huge pages at all, the memfd can still be made.
 */
static void pool_of_huge_pages(struct pair_side *s, struct shm_conn *sc)
{
	pass(sc, sealed(MFD_HUGETLB, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL));
}

static void pool_that_must_not_be_written(struct pair_side *s, struct shm_conn *sc)
{
	pass(sc, sealed(0, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE));
}

static void pool_that_is_a_pipe(struct pair_side *s, struct shm_conn *sc)
{
	int fd[2];

	PAIR_CHECK(!pipe2(fd, O_CLOEXEC));
	pass(sc, fd[0]);
	close(fd[1]);
}

static void pool_shorter_than_it_says(struct pair_side *s, struct shm_conn *sc)
{
	int fd = memfd_create("pool", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	PAIR_CHECK(!ftruncate(fd, 4096) && !fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK));
	pass(sc, fd);
}

/* Each is sound, of a page, and has a number of its own. */
static void one_pool_too_many(struct pair_side *s, struct shm_conn *sc)
{
	int64_t deadline_ns = kv_deadline_ns(PAIR_SOON_MS);

	for (uint64_t i = 0; i <= SHM_POOLS_MAX; i++) {
		struct link_message message = { .kind = LINK_POOL, .id = 5000 + i, .len = 4096 };
		int fd = memfd_create("pool", MFD_CLOEXEC | MFD_ALLOW_SEALING);
		int ret;

		PAIR_CHECK(!ftruncate(fd, 4096) &&
			   !fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL));
		while ((ret = link_send(sc, &message, &(struct link_fds){ 1, { fd } }, NULL)) ==
		       TR_AGAIN)
			PAIR_CHECK(kv_now_ns() < deadline_ns);
		PAIR_CHECK(!ret);
		close(fd);
	}
}

/* The first `len` bytes of a doorbell, and descriptors. */
static void ring_with(struct shm_conn *sc, size_t len, size_t n)
{
	struct link_message message = { .kind = LINK_DOORBELL };
	struct iovec iov = { &message, len };
	int fd[2] = { sealed(0, F_SEAL_SHRINK), sealed(0, F_SEAL_SHRINK) };
	union {
		struct cmsghdr header;
		char bytes[CMSG_SPACE(sizeof(fd))];
	} control = { .header = { CMSG_LEN(n * sizeof(int)), SOL_SOCKET, SCM_RIGHTS } };
	struct msghdr msg = { .msg_iov = &iov,
			      .msg_iovlen = 1,
			      .msg_control = control.bytes,
			      .msg_controllen = CMSG_SPACE(n * sizeof(int)) };

	memcpy(CMSG_DATA(&control.header), fd, n * sizeof(int));
	PAIR_CHECK(sendmsg(sc->sock, &msg, MSG_NOSIGNAL) == (ssize_t)len);
	close(fd[0]);
	close(fd[1]);
}

/* Padding after the control message has room for the second. */
static void two_descriptors_in_one_message(struct pair_side *s, struct shm_conn *sc)
{
	ring_with(sc, sizeof(struct link_message), 2);
}

/* It looks like the end of the socket. */
static void a_descriptor_without_a_message(struct pair_side *s, struct shm_conn *sc)
{
	ring_with(sc, 0, 1);
}

static void pieces_that_were_not_asked_for(struct pair_side *s, struct shm_conn *sc)
{
	struct link_message message = { .kind = LINK_PIECES, .id = 0, .len = 1 << 21 };
	int fd = sealed(0, F_SEAL_SHRINK);

	PAIR_CHECK(!link_send(sc, &message, &(struct link_fds){ 1, { fd } }, NULL));
	close(fd);
}

static const struct attack attacks[] = {
	{ tail_between_records, "corrupt", 0 },
	{ tail_far_ahead, "corrupt", 0 },
	{ tail_behind, "corrupt", 0 },
	{ unknown_type, "unknown type", 0 },
	{ longer_than_published, "corrupt", 0 },
	{ longer_than_the_ring, "corrupt", 0 },
	{ across_the_end, "corrupt", 0 },
	{ unknown_region, "writes outside", 0 },
	{ beyond_the_region, "writes outside", 0 },
	{ offset_that_overflows, "writes outside", 0 },
	{ write_without_access, "writes outside", TR_REMOTE_READ },
	{ read_without_access, "reads outside", TR_REMOTE_WRITE },
	{ read_beyond, "reads outside", 0 },
	{ too_many_reads, "one read too many", 0 },
	{ answer_without_a_read, "answers no read", 0 },
	{ message_too_long, "too long", 0 },
	{ head_that_was_never_written, "position", 0 },
	{ strange_word_on_the_socket, "malformed", 0 },
	{ strange_kind_on_the_socket, "does not belong", 0 },
	{ pool_without_seals, "no new sealed memfd", 0 },
	{ pool_of_huge_pages, "no new sealed memfd", 0 },
	{ pool_that_must_not_be_written, "cannot be written", 0 },
	{ pool_that_is_a_pipe, "no new sealed memfd", 0 },
	{ pool_shorter_than_it_says, "no new sealed memfd", 0 },
	{ one_pool_too_many, "one too many", 0 },
	{ two_descriptors_in_one_message, "malformed", 0 },
	{ a_descriptor_without_a_message, "malformed", 0 },
	{ pieces_that_were_not_asked_for, "does not belong", 0 },
	{ pieces_asked_for_twice, "not lent", 0 },
};

enum { ATTACKS = sizeof(attacks) / sizeof(attacks[0]) };

static void victim(struct pair_side *s)
{
	const struct attack *attack = s->config->arg;
	int before;

	pair_up(s);
	before = count_descriptors();
	pair_suffer(s, SOURCE_SEED, attack->text); /* asleep: what comes wakes it */
	PAIR_CHECK(count_descriptors() <= before);
	pair_say(s, 1);
	pair_down(s);
}

static void attacker(struct pair_side *s)
{
	const struct attack *attack = s->config->arg;

	pair_up(s);
	pair_meet(s);
	poll(NULL, 0, 5); /* mostly the victim sleeps by now */
	attack->act(s, tr_conn_priv(s->conn));
	PAIR_CHECK(pair_hear(s) == 1);
	pair_down(s);
}

static bool has_huge_memfd(void)
{
	int fd = memfd_create("huge", MFD_CLOEXEC | MFD_HUGETLB);

	if (fd < 0)
		print_message("no memfd of huge pages here: %s\n", strerror(errno));
	else
		close(fd);
	return fd >= 0;
}

CASE(each_lie_in_the_ring_ends_the_connection_and_nothing_else)
{
	for (size_t i = 0; i < ATTACKS; i++) {
		if (attacks[i].act == pool_of_huge_pages && !has_huge_memfd())
			continue;
		struct pair_config config = { .parent_path = "ring",
					      .child_path = "ring",
					      .region = REGION,
					      .ring = RING,
					      .access = attacks[i].access,
					      .arg = (void *)(uintptr_t)&attacks[i] };

		assert_int_equal(pair_run(&config, victim, attacker), 0);
	}
}

/* ---------------------------------------------------------------- random bytes */

enum { ROUNDS = 60 };

static void noise_victim(struct pair_side *s)
{
	int64_t deadline_ns;
	struct kv_error err;

	pair_open(s);
	for (int i = 0; i < ROUNDS; i++) {
		PAIR_CHECK(!pair_connect(s, &err));
		deadline_ns = kv_deadline_ns(PAIR_WAIT_MS);
		while (!s->lost && kv_now_ns() < deadline_ns)
			pair_poll(s, 5);
		PAIR_CHECK(s->lost); /* by a lie, or by the end of the liar */
		tr_conn_close(s->conn);
		s->conn = NULL;
		s->lost = false;
	}
	pair_down(s);
}

static void noise_maker(struct pair_side *s)
{
	uint64_t random = 20261122;
	struct kv_error err;

	pair_open(s);
	for (int i = 0; i < ROUNDS; i++) {
		struct shm_conn *sc;

		PAIR_CHECK(!pair_connect(s, &err));
		sc = tr_conn_priv(s->conn);
		for (size_t at = 0; at < RING; at += 8) {
			uint64_t word = pair_random(&random);

			/*
			 * every second header is near the truth, so that checks behind the first
			 * are met
			 */
			if (i % 2 && at % RING_ALIGN == 0)
				word = (1 + word % 7) | ((word >> 32) % 2000 << 32);
			memcpy(sc->out.data + at, &word, 8);
		}
		publish(sc, pair_random(&random) % (RING / RING_ALIGN) * RING_ALIGN);
		atomic_store(&sc->in.shared->head, i % 3 ? 0 : pair_random(&random));
		poll(NULL, 0, 2);
		tr_conn_close(s->conn);
		s->conn = NULL;
	}
	pair_down(s);
}

CASE(random_bytes_in_the_ring_never_crash)
{
	struct pair_config config = {
		.parent_path = "ring", .child_path = "ring", .region = REGION, .ring = RING
	};

	assert_int_equal(pair_run(&config, noise_victim, noise_maker), 0);
}
