# SPDX-License-Identifier: Apache-2.0
"""bench_pair_test.py -- kvrail bench in two processes: over shared memory, and between two network namespaces

usage: bench_pair_test.py PROGRAM
"""
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import unittest
from unittest import mock

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../bench"))
import plot  # noqa: E402
import results  # noqa: E402

PROGRAM = sys.argv.pop(1)
LIMIT_S = 100
SMALL = "-b", "1000", "-e", "64K", "-f", "8", "-n", "16", "-i", "40", "-w", "8"
LONG = "-b", "64K", "-e", "64K", "-i", "1G"
CLEAN = {k: v for k, v in os.environ.items() if not k.startswith("KVCACHE_")}


def start(*command, **keywords):
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **keywords)


class Pair(unittest.TestCase):
    def run_out(self, process):
        """What it printed and its status, once it has ended."""
        out, err = process.communicate(timeout=LIMIT_S)
        return process.returncode, out, err

    def begin(self, *command, **keywords):
        process = start(*command, **keywords)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        for stream in process.stdout, process.stderr:
            self.addCleanup(stream.close)
        return process

    def listen(self, *arguments, address="127.0.0.1", inside=(), env=CLEAN, **keywords):
        """The listening side, and the address that it says is to be connected to."""
        side = self.begin(*inside, PROGRAM, "bench", "--listen", address + ":0", *arguments, env=env, **keywords)
        line = side.stdout.readline()
        self.assertIn("; there: kvrail bench " + address, line)
        return side, line.split()[-1]

    def await_peer(self, side):
        """Until the listening side says that somebody has connected; what it said instead, if it ends before."""
        for line in side.stdout:
            if line.startswith("127.0.0.1:"):
                return
        self.fail(f"nobody connected, exit status {side.wait(LIMIT_S)}: {side.stderr.read()}")

    def connect(self, target, *arguments, env=CLEAN, inside=()):
        return self.run_out(self.begin(*inside, PROGRAM, "bench", target, *arguments, env=env))


class Loopback(Pair):
    def test_every_byte_is_checked_and_the_table_says_so(self):
        side, target = self.listen()
        status, out, err = self.connect(target, *SMALL)
        self.assertEqual((status, err), (0, ""))
        self.assertRegex(out, r"# transport shm, path: \w.*\n# waiting: spin \d+ us")
        rows = [line.split() for line in out.splitlines() if not line.startswith("#")]
        self.assertEqual([row[0] for row in rows], ["1000", "8000", "64000"])
        self.assertTrue(all(float(row[3]) > 0 and float(row[6]) > 0 and row[9] == "0" for row in rows), rows)
        self.assertLessEqual(max(map(len, out.splitlines())), 100)
        status, out, err = self.run_out(side)
        self.assertEqual((status, err), (0, ""))
        moved = 48 * 16 * (1000 + 8000 + 64000) / 2 ** 20
        self.assertIn(f"{moved:.2f} MiB checked, 0 wrong bytes: OK", out)

    def test_json_on_stdout_and_the_table_beside_it(self):
        side, target = self.listen(env={**CLEAN, "KVCACHE_SHM_PATH": "ring"})
        status, out, err = self.connect(target, *SMALL, "--json", "-")
        document = json.loads(out)
        self.assertEqual((status, self.run_out(side)), (0, (0, mock.ANY, "")), err)
        self.assertIn("# wrong bytes: 0 OK", err)
        self.assertEqual((document["exit_code"], document["transport"], len(document["rows"])), (0, "shm", 3))
        fields = results.documented()
        self.assertEqual([key for key in document if key in fields["The JSON files"]], fields["The JSON files"])
        self.assertIn("ring", document["path"])
        for row in document["rows"]:
            self.assertEqual(list(row), fields["kvrail bench"])
            self.assertEqual((row["wrong"], row["bytes"]), (0, 16 * row["block_bytes"]))
            self.assertTrue(0 < row["p1_us"] <= row["p50_us"] <= row["p99_us"] <= row["p999_us"], row)
            self.assertAlmostEqual(row["ratio"], row["bytes"] / row["p50_us"] / row["floor_gb_per_s"] / 1e3, delta=1e-3 * row["ratio"])
        (panel,) = plot.series(document)["panels"]
        self.assertEqual([curve["kind"] for curve in panel["curves"]], ["line", "ceiling"])

    def test_a_wrong_byte_fails_both_sides(self):
        side, target = self.listen("--corrupt")
        status, out, err = self.connect(target, *SMALL)
        self.assertEqual(status, 1)
        self.assertRegex(out, r"# block \d+ of 1000 bytes: 1 wrong bytes, the first at 0")
        self.assertIn("# wrong bytes: 1 FAILED", out)
        status, out, err = self.run_out(side)
        self.assertEqual(status, 1)
        self.assertIn("1 wrong bytes: FAILED", out)

    def test_ctrl_c_ends_it_and_a_listener_that_keeps_on_serves_the_next(self):
        side, target = self.listen("--keep")
        first = self.begin(PROGRAM, "bench", target, *LONG, env=CLEAN)
        self.await_peer(side)
        status, out, err = self.connect(target, *SMALL)
        self.assertEqual(status, 1)
        self.assertRegex(err, "PEER_LOST.*\nfix: it serves one run at a time")
        first.send_signal(signal.SIGINT)
        status, out, err = self.run_out(first)
        self.assertEqual(status, 130)
        self.assertIn("kvrail bench: interrupted", err)
        self.assertIn("not finished", side.stdout.readline())
        self.assertEqual(self.connect(target, *SMALL)[0], 0)
        side.send_signal(signal.SIGTERM)
        self.assertEqual(self.run_out(side)[0], 130)

    def test_ctrl_c_ends_a_wait_for_a_side_that_is_stopped(self):
        side, target = self.listen()
        first = self.begin(PROGRAM, "bench", target, *LONG, env=CLEAN)
        self.await_peer(side)
        side.send_signal(signal.SIGSTOP)
        first.send_signal(signal.SIGINT)
        self.assertEqual(self.run_out(first)[0], 130)
        side.send_signal(signal.SIGCONT)
        status, out, err = self.run_out(side)
        self.assertEqual(status, 1)
        self.assertIn("the connecting side ended while its next message was awaited", err)

    def test_memory_that_the_listener_does_not_have_is_refused_with_the_cause(self):
        limit = 64 << 20
        side, target = self.listen(restore_signals=False, preexec_fn=lambda: resource.setrlimit(
            resource.RLIMIT_FSIZE, (limit, limit)))
        status, out, err = self.connect(target, "-b", "1M", "-e", "1M")
        self.assertEqual(status, 1)
        self.assertRegex(err, "the listening side refused: .*KV_ERR_")
        self.assertEqual(self.run_out(side)[0], 1)

    def test_nobody_listens(self):
        side, target = self.listen()
        side.kill()
        side.wait()
        status, out, err = self.connect(target)
        self.assertEqual((status, out), (1, ""))
        self.assertRegex(err, "cannot connect: .*PEER_LOST.*\nfix: there: kvrail bench --listen")

    def test_nobody_comes(self):
        side, target = self.listen("--wait", "1")
        status, out, err = self.run_out(side)
        self.assertEqual(status, 1)
        self.assertIn("nothing came while a connection was awaited", err)

    def test_a_json_file_that_cannot_be_written_is_said_before_the_measurement(self):
        with tempfile.TemporaryDirectory() as folder:
            status, out, err = self.connect("127.0.0.1:1", "--json", folder + "/none/x.json")
            self.assertEqual((status, out), (1, ""))
            self.assertIn("none/x.json cannot be written: No such file or directory", err)
            self.assertNotIn("connect", err)
            status, out, err = self.connect("127.0.0.1:1", "--json", folder + "/x.json")
            with open(folder + "/x.json", encoding="utf-8") as file:
                document = json.load(file)
            self.assertEqual((document["exit_code"], document["rows"]), (1, []))
            self.assertIn("PEER_LOST", document["why"])

    def test_wrong_usage(self):
        for arguments in ([], ["a", "b"], ["--json", "x", "--listen"], ["--keep", "a"], ["a:0"], ["a:99999"], ["[::1"],
                          ["a", "-n", "0"], ["a", "-b", "2K", "-e", "1K"], ["a", "-e", "1G", "-n", "100"], ["--what"]):
            status, out, err = self.run_out(self.begin(PROGRAM, "bench", *arguments, env=CLEAN))
            self.assertEqual((status, out), (2, ""), arguments)
            self.assertIn("usage: kvrail bench", err)
        status, out, err = self.run_out(self.begin(PROGRAM, "bench", "--help"))
        self.assertEqual((status, err), (0, ""))


class Namespaces(Pair):
    """Two hosts for TCP: shared memory does not reach from one to the other."""

    def skip(self, why):
        print(f"skipped: {why}", flush=True)
        self.skipTest(why)

    def setUp(self):
        # Each namespace lives as long as its holder; the cable goes with the namespaces.
        self.holders = [self.begin("unshare", "--net", "sh", "-c", "echo there; exec cat", stdin=subprocess.PIPE)
                        for _ in range(2)]
        for holder in self.holders:
            self.addCleanup(holder.stdin.close)
            if not holder.stdout.readline():
                self.skip("this container may make no network namespace (unshare --net)")
        first, second = (str(holder.pid) for holder in self.holders)
        cable = subprocess.run(["ip", "link", "add", "kv0", "netns", first, "type", "veth", "peer", "name", "kv0", "netns",
                                second], capture_output=True, text=True)
        if cable.returncode:
            self.skip("this kernel makes no veth pair: " + cable.stderr.strip())
        for number, holder in enumerate(self.holders, 1):
            for command in (f"addr add 10.99.0.{number}/24 dev kv0", "link set kv0 up", "link set lo up"):
                subprocess.run([*self.inside(holder), "ip", *command.split()], check=True)

    @staticmethod
    def inside(holder):
        return "nsenter", "--net", "--target", str(holder.pid)

    def test_each_transport_s_reason_is_named(self):
        side, target = self.listen(address="10.99.0.1", inside=self.inside(self.holders[0]))
        status, out, err = self.connect(target, inside=self.inside(self.holders[1]), env={**CLEAN, "KVCACHE_TRANSPORT": "shm,ib"})
        self.assertEqual((status, out), (1, ""))
        self.assertRegex(err, "UNREACHABLE.*shm: .* in another network namespace; ib: [^;]+; tcp: KVCACHE_TRANSPORT is shm,ib here; "
                              "peer .*one network namespace")
        err = self.connect(target, inside=self.inside(self.holders[1]), env={**CLEAN, "KVCACHE_TRANSPORT": "shm"})[2]
        self.assertIn("; ib: KVCACHE_TRANSPORT is shm here; tcp: ", err)
        target = self.listen(address="10.99.0.1", inside=self.inside(self.holders[0]), env={**CLEAN, "KVCACHE_TRANSPORT": "shm,ib"})[1]
        err = self.connect(target, inside=self.inside(self.holders[1]))[2]
        self.assertRegex(err, "UNREACHABLE.*; tcp: the peer does not have it")

    def test_without_rdma_it_goes_over_tcp_and_says_once_what_was_missing(self):
        side, target = self.listen(address="10.99.0.1", inside=self.inside(self.holders[0]))
        status, out, err = self.connect(target, "-b", "4K", "-e", "64K", inside=self.inside(self.holders[1]),
                                        env={**CLEAN, "KVCACHE_DEBUG": "1"})
        self.assertEqual(status, 0, err)
        self.assertIn("TCP, 1 stream", out)
        connections = len(re.findall("info: connected to 10.99.0.1", err))
        self.assertEqual(len(re.findall("fell back to TCP: shm: .* in another network namespace; ib: .", err)), connections, err)

    def test_the_doctor_connects_over_tcp_or_has_the_reasons_and_a_fix(self):
        for transports, expected in (("auto", r"(?m)^ok +connect +tcp: .*1 stream"),
                                     ("shm,ib", r"(?m)^fail +connect +.*shm: .*; ib: .*\n +fix: KVCACHE_TRANSPORT")):
            side = self.begin(*self.inside(self.holders[0]), PROGRAM, "doctor", "--listen", "10.99.0.1", env=CLEAN)
            self.assertIn("listening", side.stdout.readline())
            out = self.run_out(self.begin(*self.inside(self.holders[1]), PROGRAM, "doctor", "--peer", "10.99.0.1",
                                          env={**CLEAN, "KVCACHE_TRANSPORT": transports}))[1]
            self.assertRegex(out, expected)
            side.kill()
            self.run_out(side)

    def test_an_interface_that_does_not_lead_to_the_peer_is_named(self):
        inside = self.inside(self.holders[1])
        side, target = self.listen(inside=inside)
        status, out, err = self.connect(target, "--timeout", "1", inside=inside,
                                        env={**CLEAN, "KVCACHE_SOCKET_IFNAME": "kv0"})
        self.assertEqual((status, out), (1, ""))
        self.assertRegex(err, "connecting through kv0: 127.0.0.1:.*KVCACHE_SOCKET_IFNAME is kv0: ")


if __name__ == "__main__":
    unittest.main()
