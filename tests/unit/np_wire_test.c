/* SPDX-License-Identifier: Apache-2.0 */
/* np_wire_test.c -- the pure parts of the NCCL plugin: its bytes, and NCCL's lists of names */
#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <string.h>

#include "lib/test.h"
#include "np.h"

CASE(a_handle_comes_back_and_its_cookie_is_not_part_of_it)
{
	struct np_handle in = { .port = 4711, .host = "fe80::1%eth0" }, out;
	uint8_t bytes[NCCL_HANDLE_MAX + 8];

	memset(bytes, 0xa5, sizeof(bytes));
	memset(in.nonce, 7, sizeof(in.nonce));
	np_handle_put(bytes, &in);
	for (size_t i = NCCL_HANDLE_MAX; i < sizeof(bytes); i++)
		assert_int_equal(bytes[i], 0xa5);
	assert_int_equal(np_handle_cookie(bytes), 0);
	np_handle_set_cookie(bytes, 0x1122334455667788);
	assert_true(np_handle_get(bytes, &out));
	assert_int_equal(np_handle_cookie(bytes), 0x1122334455667788);
	assert_int_equal(out.port, 4711);
	assert_string_equal(out.host, "fe80::1%eth0");
	assert_memory_equal(out.nonce, in.nonce, sizeof(in.nonce));
}

CASE(every_flipped_bit_of_a_handle_is_noticed)
{
	struct np_handle in = { .port = 1, .host = "127.0.0.1" }, out;
	uint8_t bytes[NCCL_HANDLE_MAX];
	unsigned int noticed = 0;

	np_handle_put(bytes, &in);
	for (unsigned int bit = 0; bit < 84 * 8; bit++) {
		bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
		noticed += !np_handle_get(bytes, &out);
		bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
	}
	assert_int_equal(noticed, 84 * 8);
	assert_true(np_handle_get(bytes, &out));
}

CASE(a_message_ahead_comes_back_and_one_that_is_too_long_does_not)
{
	uint8_t payload[NP_AHEAD_BYTES + 1], bytes[TR_MSG_MAX + 16];
	struct np_ahead in = { .seq = NP_SEQ_MASK, .tag = -7, .bytes = payload }, out;
	struct wire_reader r;
	size_t len;

	memset(payload, 0x5a, sizeof(payload));
	for (in.len = 0; in.len <= NP_AHEAD_BYTES; in.len += NP_AHEAD_BYTES / 3) {
		len = np_ahead_put(bytes, TR_MSG_MAX, &in);
		assert_int_equal(len, 8 + in.len);
		r = wire_reader_of(bytes, len);
		assert_int_equal(wire_get_u8(&r), NP_MSG_AHEAD);
		assert_true(np_ahead_get(&r, &out));
		assert_int_equal(out.seq, in.seq);
		assert_int_equal(out.tag, in.tag);
		assert_int_equal(out.len, in.len);
		if (in.len)
			assert_memory_equal(out.bytes, payload, in.len);
	}
	in.len = NP_AHEAD_BYTES + 1;
	len = np_ahead_put(bytes, sizeof(bytes), &in);
	r = wire_reader_of(bytes + 1, len - 1);
	assert_false(np_ahead_get(&r, &out));
	r = wire_reader_of(bytes + 1, 5);
	assert_false(np_ahead_get(&r, &out));
}

CASE(a_clear_to_send_of_eight_fits_into_a_message_and_comes_back)
{
	struct np_cts in = { .slot = 31, .n = NP_GROUP, .seq = NP_SEQ_MASK, .any_order = true },
		      out;
	uint8_t bytes[TR_MSG_MAX];
	struct wire_reader r;
	size_t len;

	for (unsigned int i = 0; i < NP_GROUP; i++)
		in.row[i] = (struct np_row){ .offset = UINT64_MAX - i,
					     .size = (uint64_t)i << 40,
					     .tag = -(int32_t)i,
					     .mem = (uint16_t)(65535 - i) };
	len = np_cts_put(bytes, sizeof(bytes), &in);
	assert_in_range(len, 1, TR_MSG_MAX);
	r = wire_reader_of(bytes, len);
	assert_int_equal(wire_get_u8(&r), NP_MSG_CTS);
	assert_true(np_cts_get(&r, &out));
	assert_int_equal(out.slot, 31);
	assert_int_equal(out.n, NP_GROUP);
	assert_int_equal(out.seq, NP_SEQ_MASK);
	assert_true(out.any_order);
	for (unsigned int i = 0; i < NP_GROUP; i++) {
		assert_int_equal(out.row[i].offset, in.row[i].offset);
		assert_int_equal(out.row[i].size, in.row[i].size);
		assert_int_equal(out.row[i].tag, in.row[i].tag);
		assert_int_equal(out.row[i].mem, in.row[i].mem);
	}
}

CASE(a_clear_to_send_that_is_cut_or_has_impossible_numbers_is_refused)
{
	struct np_cts in = { .slot = 1, .n = 2, .seq = 3 }, out;
	uint8_t bytes[TR_MSG_MAX];
	size_t len = np_cts_put(bytes, sizeof(bytes), &in);

	for (size_t cut = 1; cut <= len + 1; cut++) {
		struct wire_reader r = wire_reader_of(bytes + 1, cut - 1);

		assert_int_equal(np_cts_get(&r, &out), cut == len);
	}
	for (unsigned int n = 0; n < 256; n++) {
		struct wire_reader r = wire_reader_of(bytes + 1, len - 1);

		bytes[2] = (uint8_t)n;
		assert_int_equal(np_cts_get(&r, &out), n == 2);
	}
	bytes[2] = 2;
	bytes[1] = NCCL_REQUESTS_MAX;
	assert_false(np_cts_get(&(struct wire_reader){ .buf = bytes + 1, .len = len - 1 }, &out));
}

CASE(a_notify_carries_slot_row_sequence_and_forty_one_bits_of_size)
{
	unsigned int slot, row, seq;
	uint64_t size;

	np_notify_get(np_notify_put(31, 7, NP_SEQ_MASK, (UINT64_C(1) << 41) - 1), &slot, &row, &seq,
		      &size);
	assert_int_equal(slot, 31);
	assert_int_equal(row, 7);
	assert_int_equal(seq, NP_SEQ_MASK);
	assert_int_equal(size, (UINT64_C(1) << 41) - 1);
	np_notify_get(np_notify_put(0, 0, 1, 0), &slot, &row, &seq, &size);
	assert_int_equal(slot + row, 0);
	assert_int_equal(seq, 1);
	assert_int_equal(size, 0);
}

CASE(a_piece_of_a_description_past_its_total_is_refused)
{
	uint8_t description[300] = { 1, 2, 3 }, bytes[TR_MSG_MAX];
	struct np_mem_piece piece = {
		.slot = 5, .total = 300, .at = 60, .bytes = description, .len = NP_MEM_PIECE
	};
	size_t len = np_mem_piece_put(bytes, sizeof(bytes), &piece);
	struct wire_reader r = wire_reader_of(bytes + 1, len - 1);

	assert_int_equal(len, NP_MEM_HEADER + NP_MEM_PIECE);
	assert_true(np_mem_piece_get(&r, &piece));
	assert_int_equal(piece.slot, 5);
	assert_int_equal(piece.len, NP_MEM_PIECE);
	assert_memory_equal(piece.bytes, description, NP_MEM_PIECE);
	bytes[6] = 61; /* 61 + 240 > 300 */
	r = wire_reader_of(bytes + 1, len - 1);
	assert_false(np_mem_piece_get(&r, &piece));
}

CASE(lists_of_names_are_read_as_nccl_reads_them)
{
	assert_true(np_name_matches("", "mlx5_0", 1));
	assert_true(np_name_matches("mlx5", "mlx5_0", 1));
	assert_false(np_name_matches("mlx4", "mlx5_0", 1));
	assert_true(np_name_matches("=mlx5_1", "mlx5_1", 1));
	assert_false(np_name_matches("=mlx5_1", "mlx5_10", 1));
	assert_true(np_name_matches("mlx5_1", "mlx5_10", 1));
	assert_false(np_name_matches("^mlx5_1", "mlx5_10", 1));
	assert_true(np_name_matches("^=mlx5_1", "mlx5_10", 1));
	assert_true(np_name_matches("a,=b", "a1", 1));
	assert_true(np_name_matches("mlx5_0:2", "mlx5_0", 2));
	assert_false(np_name_matches("mlx5_0:2", "mlx5_0", 1));
	assert_true(np_name_matches("mlx5_3:1,mlx5_0:2:0:1", "mlx5_0", 2));
	assert_false(np_name_matches("^docker,lo", "lo", 0));
	assert_true(np_name_matches("^docker,lo", "eth0", 0));
}

/* ---------------------------------------------------------------- the address of a listener */

enum { UP = IFF_UP | IFF_RUNNING };

static struct host {
	struct ifaddrs ifa[8];
	struct sockaddr_in6 sa[8]; /* large enough for both */
	int n;
} host;

static void add(const char *name, unsigned int flags, const char *address)
{
	struct ifaddrs *ifa = &host.ifa[host.n];
	struct sockaddr_in6 *six = &host.sa[host.n];
	struct sockaddr_in *four = (struct sockaddr_in *)six;

	*ifa = (struct ifaddrs){ .ifa_name = (char *)name, .ifa_flags = flags };
	ifa->ifa_addr = (struct sockaddr *)six;
	if (inet_pton(AF_INET, address, &four->sin_addr) == 1) {
		four->sin_family = AF_INET;
	} else {
		six->sin6_family = AF_INET6;
		assert_int_equal(inet_pton(AF_INET6, address, &six->sin6_addr), 1);
	}
	if (host.n++)
		host.ifa[host.n - 2].ifa_next = ifa;
}

static void expect(const char *list, int family, int index)
{
	const struct ifaddrs *best = np_address_best(host.n ? host.ifa : NULL, list, family);

	assert_ptr_equal(best, index < 0 ? NULL : &host.ifa[index]);
}

CASE(the_address_is_chosen_in_nccls_order)
{
	memset(&host, 0, sizeof(host));
	expect("", 0, -1);
	add("lo", UP | IFF_LOOPBACK, "127.0.0.1");
	expect("", 0, 0);
	add("usb0", UP, "169.254.3.1"); /* a management controller's */
	expect("", 0, 0);
	expect("usb", 0, 1);
	add("docker0", UP, "172.17.0.1");
	expect("", 0, 2);
	add("eth1", IFF_UP, "10.9.9.9"); /* no carrier */
	expect("", 0, 2);
	add("eth0", UP, "fd00::3");
	expect("", 0, 4);
	add("eth0", UP, "10.1.2.3");
	expect("", 0, 5);
	expect("", AF_INET6, 4);
	expect("^eth", 0, 2);
	expect("=eth", 0, -1);
	expect("^eth,docker,lo", 0, 1);
	add("eth0", UP, "fe80::1");
	expect("eth", AF_INET6, 4);
	add("ib0", UP, "10.2.0.1");
	expect("", 0, 7);
	expect("=eth0", 0, 5);
}
