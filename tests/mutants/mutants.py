#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""mutants.py -- bugs that peers had, or this project: each is put back, and a test must see it

usage: mutants.py [--list] [--only NAME[,NAME...]] [--jobs N] [--json FILE] [--table FILE]

The tree is copied to build-mutants/tree and built there. Each mutant is one change of one place, or one fix that stands in several;
the program of its test is built again, the case that is named runs, or the whole test where none is, and must fail. Without any mutant it must
pass, which is looked at first. Exit status 1: a mutant lived, or does not apply any more (a lint looks for that, too)."""
import argparse
import collections
import concurrent.futures
import json
import os
import re
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))

# name, what it is; file, text and what stands there instead (or a list of such); ctest name, program, and the case that must fail.
# A simulation gets a minute, and its seed is what is named.
Mutant = collections.namedtuple("Mutant", "name story file old new test program case")
MUTANTS = [
    Mutant("status-ignored", "a completion with an error counts as done (UCX and NIXL had it)",
           "transport/ib/poll.c", "bool failed = wc->status != IBV_WC_SUCCESS;", "bool failed = false;",
           "ib_fault_test", "ib_fault_test", "every_completion_status_becomes_a_typed_error"),
    Mutant("zero-psn", "packet sequence numbers begin at 0: a packet of an earlier connection is taken",
           "transport/ib/qp.c", "lane->psn = psn & 0xffffff;", "lane->psn = 0;",
           "ib_path_test", "ib_path_test", ""),
    Mutant("notify-before-the-bytes", "the rest of a span goes into the ring behind the notify",
           "transport/shm/send.c", "if (sc->rest.op == op && !send_rest(sc))", "if (sc->rest.op == op && false)",
           "loop_tr_paths", "loop_tr_paths", ""),
    Mutant("success-without-proof", "a write ends when its own side is done, not when the receiver has said so",
           "kvapi/op/kv_op.c", "else if (kv_op_is_proven(op))", "else if (op->engine)",
           "kv_async_test", "kv_async_test", "no_acknowledgement_is_a_timeout_and_the_commit_still_arrives_once"),
    Mutant("release-without-fence", "a lease is given back although its writer has not answered",
           "kvapi/api/kv_blocks.c", "ret = fence(peer, lease, deadline_ns, &claimed, err);", "ret = 0, (void)fence;",
           "kv_life_test", "kv_life_test", ""),
    Mutant("lease-asked-at-admission-only", "A1: what waits for a slot posts although its lease was revoked meanwhile",
           "kvapi/op/kv_op.c", "int ret = kv_op_admit(op, err);", "int ret = op->admitted ? 0 : kv_op_admit(op, err);",
           "kv_fence_test", "kv_fence_test", "ids_are_asked_again_when_they_are_posted"),
    Mutant("freed-while-grouped", "A2: an operation is freed while its group still has it",
           "kvapi/api/kv_wait.c", "if (atomic_load(&op->grouped))", "if (atomic_load(&op->grouped) && false)",
           "kv_hold_test", "kv_hold_test", "an_operation_is_not_freed_before_its_group_has_ended"),
    Mutant("shared-after-deregistration", "A4: a region is shared after an owner was given 0 for deregistering it",
           "transport/mem.c", "			if (mem->in_part)\n				range_remove(m, mem);\n", "			(void)mem->in_part;\n",
           "ib_hold_test", "ib_hold_test", "a_region_is_not_shared_after_an_owner_gave_it_back"),
    Mutant("close-while-bytes-land", "G1: closeRecv says success while the sender still copies",
           "net_plugin/np_close.c", "if (tr_fence(comm->conn, comm->linger_ns, NULL) && waits_for_peer(comm))",
           "if (tr_fence(comm->conn, comm->linger_ns, NULL) && waits_for_peer(comm) && false)",
           "np_close_test", "np_close_test", ""),
    Mutant("per-read-timeout", "each byte of a handshake begins its deadline anew",
           "transport/handshake.c", "if (hs->got && conn->deadline_ns == INT64_MAX)", "if (hs->got)",
           "handshake_test", "handshake_test", "single_bytes_of_a_later_frame_end_at_the_total_deadline"),
    Mutant("duplicate-destination", "two blocks of one call may have one destination",
           "kvapi/wire/kv_plan.c", "if (mark[to] == round)", "if (mark[to] == round && false)",
           "kv_plan_test", "kv_plan_test", ""),
    Mutant("generation-ignored", "an acknowledgement of an earlier operation of a slot counts for the next",
           "kvapi/op/kv_op.c", "return slot && slot->generation == kv_id_serial(id) ? slot : NULL;", "return slot;",
           "kv_lie_test", "kv_lie_test", "an_acknowledgement_is_of_the_operation_that_has_the_slot_now"),
    Mutant("deadline-forgotten", "an operation that its peer does not answer waits for ever",
           "kvapi/loop/kv_progress.c", "kv_op_timeout(op);", "(void)kv_op_timeout;",
           "kv_deadline_test", "kv_deadline_test", ""),
    Mutant("tail-believed", "what the peer says of a ring is not checked",
           "transport/shm/ring.c", "if (used > in->size || used % RING_ALIGN)", "if (false)",
           "loop_tr_shm_hostile", "loop_tr_shm_hostile", ""),
    Mutant("mac-ignored", "a frame is taken although its MAC is wrong",
           "transport/auth.c", "if (!auth_equal(mac, right, MAC_BYTES))", "if (!auth_equal(mac, right, 0))",
           "auth_test", "auth_test", "an_old_handshake_is_of_no_use"),
    Mutant("key-optional", "a peer that proves no key is let in where one is set",
           "transport/handshake.c", "else if (conn->tr->psk && conn->accepting && hs->in.type == FRAME_HELLO) {", "else if (false) {",
           "auth_test", "auth_test", "an_end_without_the_key_learns_that_it_needs_one"),
    Mutant("key-for-everybody", "a key file that others may read is used",
           "transport/psk.c", "if (st->st_mode & (S_IRWXG | S_IRWXO))", "if (false)",
           "psk_test", "psk_test", "a_key_file_that_is_not_right_is_refused_with_the_cause"),
    Mutant("deregistered-under-a-send", "G5: deregMr does not look whether a send still waits, and stale bytes go out",
           "net_plugin/np_reg.c", "result = held ? np_end_use(comm, mr, \"deregMr\") : ncclSuccess;", "result = held ? ncclSuccess : ncclSuccess;",
           "np_close_test", "np_close_test", "deregistering_under_a_send_ends_it"),
    Mutant("last-byte-polling", "the first lane that says so publishes an operation of several, as a poll of its last byte would",
           "transport/ib/notify.c", "if (!in->want || __builtin_popcountll(in->lanes) < in->want)", "if (!in->want)",
           "ib_data_test", "ib_data_test", "after_a_notify_every_byte_is_there"),
    Mutant("list-from-its-head", "a list that was taken in part is posted again from its beginning (FastDeploy had it)",
           "transport/ib/doorbell.c", "	took(lane, ret ? taken_of(chain, bad) : n, ",
           "	if (ret && taken_of(chain, bad))\n		ret = lane->c->v->post_send(lane->qp, &chain->request[0].wr, &bad);\n	took(lane, n, ",
           "ib_sweep_test", "ib_sweep_test", "every_early_work_request_is_refused_once"),
    Mutant("rnr-for-ever", "a receiver without a receive request is waited for without an end (7: FastDeploy, Mooncake, UCX)",
           "transport/ib/qp.c", ".rnr_retry = (uint8_t)kv_option_int(options, KV_OPT_IB_RNR_RETRY),", ".rnr_retry = 7,",
           "ib_path_test", "ib_path_test", "retries_are_finite_and_numbers_begin_at_random"),
    Mutant("late-completion", "a completion of an earlier life of the connection ends the request that has its number now",
           "transport/ib/poll.c", "if (IB_WR_GENERATION(wc->wr_id) != c->generation || IB_WR_LANE(wc->wr_id) >= c->lanes)",
           "if (IB_WR_LANE(wc->wr_id) >= c->lanes)",
           "ib_fault_test", "ib_fault_test", "completions_of_another_life_are_counted_and_ignored"),
    Mutant("lease-with-an-old-id", "a lease gets the id of the one that was revoked: what was meant for that lands",
           "kvapi/lease/kv_lease.c", "lease->serial = atomic_fetch_add(&req->peer->engine->lease_serial, 1) + 1;",
           "lease->serial = req->peer->engine->lease_serial = 1;",
           "kv_lease_test", "kv_lease_test", "a_write_may_be_made_before_the_word_of_its_lease_comes"),
    Mutant("begin-unchecked", "A5: what a BEGIN says of its bytes is not compared with its blocks",
           "kvapi/lease/kv_incoming.c", "begin->bytes == map->block_bytes * begin->blocks * begin->count;", "true;",
           "kv_lie_test", "kv_lie_test", "a_begin_agrees_with_the_cache"),
    Mutant("any-user", "B1: the user of the other end is not looked at before it gets the pool",
           "transport/shm/trust.c", "if (sc->ctx->uid[i] == sc->uid)", "if (sc->ctx->uids)",
           "loop_tr_shm_trust", "loop_tr_shm_trust", ""),
    Mutant("readable-for-all", "every region has the right to be read by the peer (Mooncake, NCCL)",
           "transport/ib/mem.c", "if (mem->access & TR_REMOTE_READ)", "if (mem->access)",
           "kv_rights_test", "kv_rights_test", "nothing_is_open_that_need_not_be"),
    Mutant("retries-of-the-other-door", "G2: the plugin takes the block API's retries, and a wire that is out for 4 s ends the job",
           "net_plugin/np_env.c", '{ "NCCL_IB_RETRY_CNT", "KVCACHE_IB_RETRY",', '{ "NCCL_IB_RETRY_NONE", "KVCACHE_IB_RETRY",',
           "np_qp_test", "np_qp_test", "nccls_variables_reach_the_queue_pair"),
    Mutant("oldest-of-all", "of too many unfinished handshakes the oldest gives way, and not one of those that fill the places",
           "kvapi/loop/kv_accept.c", "uint32_t n = is_in_handshake(peer) ? of_address[peer_bucket(peer)] : 0;",
           "uint32_t n = is_in_handshake(peer) && of_address[peer_bucket(peer)];",
           "listener_cost_test", "listener_cost_test", "of_unfinished_handshakes_the_busiest_address_loses_its_oldest"),
    Mutant("proof-not-compared", "the answer to a challenge counts without the key",
           "transport/auth.c", "if (!auth_equal(mac, challenge + AUTH_HEADER + AUTH_NONCE, MAC_BYTES))", "if (false)",
           "psk_test", "psk_test", "an_id_is_not_a_key"),
    Mutant("order-ignored", "the MAC of a frame does not depend on the frames before it: one may come twice",
           "transport/auth.c", "	ratchet(auth->in, right);\n", "	(void)ratchet;\n",
           "psk_test", "psk_test", "a_frame_counts_once_and_in_its_place"),
    Mutant("notify-before-another-stream", "a notify over TCP is taken before the bytes that come by another stream",
           "transport/tcp/receive.c", "return st->in.behind ? TR_AGAIN : 0;", "return 0;",
           "loop_tr_tcp_streams", "loop_tr_tcp_streams", ""),
    Mutant("one-stream-is-all", "an operation over TCP ends when its first stream is done, and the others still read its source",
           "transport/tcp/send.c", "if (op->at[st->index] > (land", "if (!st->index && op->at[st->index] > (land",
           "loop_tr_tcp_streams", "loop_tr_tcp_streams", ""),
    Mutant("a-stream-twice", "a second socket with the number of a stream that is there takes its place",
           "transport/tcp/door.c", "index < tc->streams && tc->proven[index] < 0 &&", "index < tc->streams &&",
           "loop_tr_tcp_hostile", "loop_tr_tcp_hostile", ""),
    Mutant("same-nonce", "the nonces of a handshake are always the same: an old one is taken again",
           "transport/auth.c", ": getrandom(nonce, AUTH_NONCE, 0) != AUTH_NONCE)", ": (memset(nonce, 7, AUTH_NONCE), getrandom(NULL, 0, 0)))",
           "auth_test", "auth_test", "an_old_handshake_is_of_no_use"),
    Mutant("socket-without-proof", "the local socket is taken from anybody who knows the token",
           "transport/auth.c", "memcpy(proof, auth->on ? mac : nonce, 16);", "memcpy(proof, nonce, 16);",
           "auth_test", "auth_test", "the_local_socket_needs_the_key"),
    Mutant("goodbye-from-anybody", "a goodbye counts without its MAC",
           "transport/control.c", "return !auth.on || (n == GOODBYE_MOST && auth_opens(&auth, bytes, 1, bytes + 1));",
           "return auth_opens(&auth, bytes, 1, bytes + 1) || true;",
           "auth_test", "auth_test", "a_goodbye_needs_the_key"),
    Mutant("refusal-that-talks", "a refusal tells a stranger the path of the key file and whose it is",
           "transport/handshake.c", "	if (is_own_affair(conn, cause)) {", "	if (is_own_affair(conn, cause) && false) {",
           "auth_test", "auth_test", "what_is_wrong_here_is_not_told_to_strangers"),
    Mutant("child-keeps-the-port", "D7: a forked child keeps the sockets of its parent",
           "transport/base/fds.c", "			close(i * 64 + __builtin_ctzll(noted[i]));\n", "			(void)i;\n",
           "kv_fork_test", "kv_fork_test", "a_child_that_stays_keeps_neither_port_nor_connection"),
    Mutant("revoked-and-placed", "bytes over TCP are placed whatever was revoked meanwhile",
           "transport/tcp/place.c", "in->verdict[i] = may == TR_PLACE ? TR_PLACE : TR_DROP;", "in->verdict[i] = TR_PLACE;",
           "kv_lease_test_tcp", "kv_lease_test", "what_was_sent_before_a_revoke_and_comes_after_it_goes_nowhere"),
    Mutant("agent-release-without-fence", "a region is given back although a peer has not said that it has left it",
           "agent/ag_mem.c", "if (mem->told || mem->giving || atomic_load(&mem->uses))", "if (mem->giving || atomic_load(&mem->uses))",
           "agent_end_test", "agent_end_test", "nothing_lands_in_a_region_after_it_was_deregistered"),
    Mutant("agent-serves-a-withdrawn-region", "a transfer begins although the peer has withdrawn its region",
           "agent/ag_move.c", "		if (state == AG_RMEM_GONE) {\n", "		if (state == AG_RMEM_GONE && !xfer->plan.spans) {\n",
           "agent_end_test", "agent_end_test", "a_late_region_is_found_and_a_withdrawn_one_refuses"),
    Mutant("nixl-forgets-while-it-lands", "the NIXL plugin's last release of a request does not wait until nothing of it can land",
           "nixl_plugin/nixl_engine.cpp", "if (!request->stopping || std::chrono::steady_clock::now() >= until) {",
           "if (std::chrono::steady_clock::now() != until) {",
           "nixl_peers", "kvrail_nixl", "a_release_is_a_fence"),
    Mutant("simulation-A1", "a revoke misses what has no slot yet, which is not asked again when it gets one", "", [
        ("kvapi/op/kv_op.c", "int ret = kv_op_admit(op, err);", "int ret = op->admitted ? 0 : kv_op_admit(op, err);"),
        ("kvapi/op/kv_op.c", "for (struct kv_op *op = peer->link->collected, *after; op; op = after) {",
         "for (struct kv_op *op = NULL, *after; op; op = after) {")], "", "kv_sim", "kv_sim", ""),
    Mutant("simulation-A2", "operations do not hold their peer", "", [
        ("kvapi/api/kv_transfer.c", "	kv_peer_hold(op->peer);\n", ""),
        ("kvapi/op/kv_op_pool.c", "	if (peer)\n		kv_peer_drop(peer);\n", "	(void)peer;\n"),
        ("kvapi/op/kv_op_pool.c", "			if (chunk->op[i].peer) /* the application did not free it */\n"
         "				kv_peer_drop(chunk->op[i].peer);\n", "")], "", "kv_sim", "kv_sim", ""),
    Mutant("simulation-A4", "a region is shared after an owner was given 0 for deregistering it", "", [
        ("transport/mem.c", "			if (mem->in_part)\n				range_remove(m, mem);\n", "			(void)mem->in_part;\n")],
           "", "kv_sim", "kv_sim", ""),
    Mutant("simulation-G1", "closeRecv says success while the peer can still write", "", [
        ("net_plugin/np_close.c", "if (tr_fence(comm->conn, comm->linger_ns, NULL) && waits_for_peer(comm))",
         "if (tr_fence(comm->conn, comm->linger_ns, NULL) && waits_for_peer(comm) && false)")], "", "np_sim", "np_sim", ""),
    Mutant("simulation-G5", "deregMr says success while a send of the region waits, which then goes with what is mapped there by then", "", [
        ("net_plugin/np_reg.c", 'result = held ? np_end_use(comm, mr, "deregMr") : ncclSuccess;', "result = ncclSuccess, (void)held;")],
           "", "np_sim", "np_sim", ""),
]
SKIPPED = ["its test cannot run here"]
SIMULATIONS = ("kv_sim", "np_sim")
SECONDS, SECONDS_BEFORE = 60, 20  # of a simulation with a mutant, and without any


def read(root, path):
    with open(os.path.join(root, path), encoding="utf-8") as file:
        return file.read()


def write(root, path, text):
    with open(os.path.join(root, path), "w", encoding="utf-8") as file:
        file.write(text)


def edits(mutant):
    return mutant.old if isinstance(mutant.old, list) else [(mutant.file, mutant.old, mutant.new)]


def misfits(root):
    """Mutants whose text does not stand in their file exactly once."""
    for mutant in MUTANTS:
        for path, old, _ in edits(mutant):
            n = read(root, path).count(old) if os.path.exists(os.path.join(root, path)) else 0
            if n != 1:
                yield f"tests/mutants/mutants.py: {mutant.name}: its text stands {n} times in {path}"


def run(*command, cwd, timeout=900, **environment):
    return subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False,
                          timeout=timeout, env=dict(os.environ, **environment))


class Copy:
    """The tree, built once; a file that is changed is built again."""

    def __init__(self, jobs):
        self.root, self.jobs = os.path.join(ROOT, "build-mutants", "tree"), str(jobs)
        self.build = os.path.join(ROOT, "build-mutants", "build")
        os.makedirs(self.root, exist_ok=True)
        files = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, stdout=subprocess.PIPE,
                               check=True).stdout.decode().split("\0")
        for path in filter(None, files):
            source, to = os.path.join(ROOT, path), os.path.join(self.root, path)
            if not os.path.isfile(source):
                continue
            with open(source, "rb") as file:
                data = file.read()
            if os.path.exists(to):
                with open(to, "rb") as file:
                    if file.read() == data:
                        continue
            os.makedirs(os.path.dirname(to), exist_ok=True)
            with open(to, "wb") as file:
                file.write(data)
            os.chmod(to, os.stat(source).st_mode)
        done = run("cmake", "--preset", "dev", "-B", self.build, "--log-level=WARNING", "-DKVRAIL_MPI=OFF", cwd=self.root)
        if done.returncode:
            sys.exit(f"mutants: the copy cannot be configured\n{done.stdout}")

    def make(self, programs):
        return run("cmake", "--build", self.build, "-j", self.jobs, "--target", *programs, cwd=self.root, timeout=3600)

    def passes(self, mutants):
        """Their tests, without any mutant, or an end."""
        once = list({(mutant.test, mutant.case): mutant for mutant in mutants}.values())
        with concurrent.futures.ThreadPoolExecutor(int(self.jobs)) as pool:
            for mutant, failed in zip(once, pool.map(lambda mutant: self.test(mutant, SECONDS_BEFORE), once)):
                if failed not in (None, SKIPPED):
                    sys.exit(f"mutants: {mutant.test} fails without any mutant: {' '.join(failed)}")

    def test(self, mutant, seconds=SECONDS):
        """Names of the cases that failed; "" where the program ended without naming one; None: it passed."""
        if mutant.program in SIMULATIONS:
            return self.simulate(mutant.program, seconds)
        done = run("ctest", "--output-on-failure", "--timeout", "240", "-R", f"^{mutant.test}$", cwd=self.build,
                   **({"KVRAIL_CASE": mutant.case} if mutant.case else {}))
        if "***Skipped" in done.stdout:
            return SKIPPED
        if not done.returncode:
            return None
        return sorted(set(re.findall(r"\[  FAILED  \] ([a-z]\w+)$", done.stdout, re.M))) or [""]

    def simulate(self, program, seconds):
        """The seed that failed, after how many seconds, and how; None: none did."""
        done = run(os.path.join(self.build, "tests", "sim", program), "--seconds", str(seconds), cwd=self.root, timeout=1200)
        failed = re.search(r"seed (\d+) FAILED at [\d.]+ s of its time: (.*)", done.stdout)
        took = re.search(r'"seconds": ([\d.]+)', done.stdout)
        return [failed[1], took[1], failed[2]] if failed else None


def verdict(copy, mutant):
    before = {path: read(copy.root, path) for path, _, _ in edits(mutant)}
    for path, old, new in edits(mutant):
        write(copy.root, path, read(copy.root, path).replace(old, new))
    try:
        done = copy.make([mutant.program])
        if done.returncode:
            return "does not compile", re.findall(r"error: .*", done.stdout)[:1]
        failed = copy.test(mutant)
    finally:
        for path, text in before.items():
            write(copy.root, path, text)
    if failed is SKIPPED:
        return "skipped", failed
    if failed is None or (mutant.case and mutant.case not in failed):
        return "LIVES", failed or []
    return "caught", failed


def describe():
    return subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def write_table(path, rows):
    """What the simulations found, between the two marks of a document."""
    table = ["| fix that is taken out | found by | seed | seconds | what it says |", "| --- | --- | --- | --- | --- |"]
    stories = {mutant.name: mutant.story for mutant in MUTANTS}
    for row in rows:
        if row["test"] in SIMULATIONS and row["result"] == "caught":
            seed, seconds, what = row["cases"]
            table.append(f"| {row['mutant'].split('-')[1]}: {stories[row['mutant']]} | `{row['test']}` | {seed} | {seconds} | {what.split(';')[0][:110]} |")
    with open(path, encoding="utf-8") as file:
        text = file.read()
    with open(path, "w", encoding="utf-8") as file:
        file.write(re.sub(r"(?s)(<!-- mutants -->\n).*(<!-- end -->)", lambda m: m[1] + "\n".join(table) + "\n" + m[2], text))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print the mutants and end")
    parser.add_argument("--only", metavar="NAMES", help="these, comma separated")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="of the build (%(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write the results there as well")
    parser.add_argument("--table", metavar="FILE", help="write what the simulations found into this document")
    arguments = parser.parse_args()
    bad = list(misfits(ROOT))
    if bad:
        sys.exit("\n".join(bad))
    names = arguments.only.split(",") if arguments.only else [mutant.name for mutant in MUTANTS]
    chosen = [mutant for mutant in MUTANTS if mutant.name in names]
    if len(chosen) != len(names):
        sys.exit("mutants: unknown: " + ", ".join(set(names) - {mutant.name for mutant in chosen}))
    if arguments.list:
        for mutant in chosen:
            print(f"{mutant.name:32} {mutant.test:22} {mutant.story}")
        return 0
    copy = Copy(arguments.jobs)
    print("mutants: building the copy", file=sys.stderr)
    done = copy.make(sorted({mutant.program for mutant in chosen}))
    if done.returncode:
        sys.exit(done.stdout[-4000:])
    copy.passes(chosen)
    rows = []
    for mutant in chosen:
        since = time.monotonic()
        result, failed = verdict(copy, mutant)
        rows.append({"mutant": mutant.name, "result": result, "test": mutant.test, "cases": failed})
        print(f"{mutant.name:32} {result:17} {time.monotonic() - since:5.0f} s  {mutant.test}: {' '.join(failed[:3])}", flush=True)
    rows = [row for row in rows if row["result"] != "skipped"]
    lived = [row for row in rows if row["result"] != "caught"]
    print(f"{len(rows) - len(lived)} of {len(rows)} mutants were caught")
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump({"command": "./dev mutants", "commit": describe(), "rows": rows,
                       "figures": {"bugs put back one at a time, and found by the case that is named":
                                   f"{len(rows) - len(lived)} of {len(rows)}"}}, file, indent=1)
            file.write("\n")
    if arguments.table:
        write_table(arguments.table, rows)
    return 1 if lived else 0


if __name__ == "__main__":
    sys.exit(main())
