#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""nixl_calls.py -- the same NIXL calls with the backends KVRAIL and UCX, between two processes of one host

usage: nixl_calls.py PLUGIN [--passes N] [--json FILE]

NIXL is that of tests/nixl/wheels.py. UCX twice: without its progress thread, where it is fastest, and with what vLLM gives it
(a progress thread and four more). What the memory itself takes at its first use and at the tenth is measured without NIXL: the same blocks
by process_vm_writev alone. Each case has two processes of its own, and nothing else runs beside them; a pass has all cases
one after the other, and a figure is the median of the passes. Blocks are in another order on each side; the last are compared.
"""
import argparse
import ctypes
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
import zlib

import results

HERE = os.path.dirname(os.path.abspath(__file__))
CASES = {"KVRAIL": ("KVRAIL", {}), "UCX": ("UCX", {"enable_prog_thread": False}), "UCX as vLLM starts it": ("UCX", {"num_threads": 4})}
FLOOR = "process_vm_writev alone"
KIB, BLOCKS = 1024, 1538
SPANS = 256  # of one call of it, as KVRAIL makes them
SIZES = (KIB, 4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB)
NOTE = 300
ROW_S, ROW_ROUNDS, PINGS, REQUESTS = 0.7, 40, 400, 10
WAIT_S = 300
POLL_S = 0.0005
now = time.perf_counter


def memory(most=SIZES[-1]):
    import numpy

    ones = numpy.ones(BLOCKS * most, numpy.uint8)
    numpy.random.default_rng(0)  # numpy imports it at its first use: tens of milliseconds that are no engine's
    return ones


def addresses(base, block, seed):
    """The blocks of a cache, in an order that the seed gives: their addresses and lengths."""
    import numpy

    rows = numpy.zeros((BLOCKS, 3), numpy.uint64)
    rows[:, 0] = base + numpy.random.default_rng(seed).permutation(BLOCKS) * block
    rows[:, 1] = block
    return rows


class End:
    def __init__(self, name, case, most):
        from nixl_cu12._api import nixl_agent, nixl_agent_config

        backend, more = CASES[case]
        self.agent = nixl_agent(name, nixl_agent_config(backends=[backend], **more))
        if backend not in self.agent.backends:
            sys.exit(f"nixl_calls.py: NIXL has no backend {backend}")
        self.memory = memory(most)
        self.agent.register_memory([(self.base(), self.memory.nbytes, 0, "")], "DRAM")

    def base(self):
        return self.memory.ctypes.data

    def rows(self, base, block, seed):
        return self.agent.get_xfer_descs(addresses(base, block, seed), "DRAM")

    def crc(self):
        return zlib.crc32(self.memory)

    def fill(self, seed):
        import numpy

        self.memory[:] = numpy.random.default_rng(seed).integers(0, 256, self.memory.size, numpy.uint8)

    def wait_note(self):
        limit = time.monotonic() + WAIT_S
        while time.monotonic() < limit:
            notes = self.agent.get_new_notifs()
            if notes:
                return [note for every in notes.values() for note in every]
        sys.exit("nixl_calls.py: no notification came")

    def echo(self, pipe, times):
        pipe.send("ready")  # from here on every note is seen in this function
        for _ in range(times):
            for note in self.wait_note():
                self.agent.send_notif("writer", note)


def target(pipe, case, most):
    end = End("target", case, most)
    pipe.send((end.agent.get_agent_metadata(), end.base()))
    end.agent.add_remote_agent(pipe.recv())
    do = {"crc": end.crc, "echo": lambda times: end.echo(pipe, times)}
    while True:
        while not pipe.poll(POLL_S):
            end.agent.get_new_notifs()  # as an engine does at each step: without its thread UCX connects in such calls
        try:
            what, *rest = pipe.recv()
        except EOFError:
            return
        pipe.send(do[what](*rest))


def transfer(agent, handle):
    """(seconds until the call has returned, until the transfer is done)"""
    begun = now()
    state = agent.transfer(handle)
    posted = now() - begun
    limit = begun + WAIT_S
    while state == "PROC":
        if now() > limit:
            sys.exit("nixl_calls.py: a transfer does not end")
        state = agent.check_xfer_state(handle)
    if state != "DONE":
        sys.exit(f"nixl_calls.py: a transfer ended with {state}")
    return posted, now() - begun


class Writer:
    def __init__(self, case, most=SIZES[-1]):
        self.most = most
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        context.Process(target=target, args=(theirs, case, most), daemon=True).start()
        theirs.close()
        self.end = End("writer", case, most)
        metadata, self.base = self.pipe.recv()
        self.pipe.send(self.end.agent.get_agent_metadata())
        self.end.agent.add_remote_agent(metadata)

    def ask(self, *words):
        self.pipe.send(words)
        return self.pipe.recv()

    def handle(self, way, block):
        lists = self.end.rows(self.end.base(), block, 1), self.end.rows(self.base, block, 2)
        return self.end.agent.initialize_xfer(way, *lists, "target")

    def requests(self):
        """Each prepared, posted and waited for: what an engine's first ones take after it has the metadata."""
        took = []
        for _ in range(REQUESTS):
            begun = now()
            handle = self.handle("WRITE", 4 * KIB)
            transfer(self.end.agent, handle)
            took.append(1e3 * (now() - begun))
            self.end.agent.release_xfer_handle(handle)
        return {"first_ms": took[0], "tenth_ms": took[-1]}

    def ping(self):
        """Half a round trip."""
        times, note = [], b"n" * NOTE
        self.ask("echo", PINGS)
        for _ in range(PINGS):
            begun = now()
            self.end.agent.send_notif("target", note)
            self.end.wait_note()
            times.append(now() - begun)
        self.pipe.recv()
        return {"note_us": 1e6 * statistics.median(times) / 2}

    def size(self, way, block):
        handle, marks, begun = self.handle(way, block), [], now()
        transfer(self.end.agent, handle)
        while not marks or (now() - begun < ROW_S and len(marks) < ROW_ROUNDS):
            marks.append(transfer(self.end.agent, handle))
        self.end.agent.release_xfer_handle(handle)
        posted, done = (statistics.median(column) for column in zip(*marks))
        return {"post_us": 1e6 * posted, "gb_per_s": BLOCKS * block / done / 1e9}

    def compare(self):
        """The last blocks, those of the largest size: the target's, brought into the writer's order."""
        import numpy

        self.end.fill(7)
        handle = self.handle("WRITE", self.most)
        transfer(self.end.agent, handle)
        mine, theirs = (numpy.random.default_rng(seed).permutation(BLOCKS) for seed in (1, 2))
        blocks = self.end.memory.reshape(BLOCKS, -1)
        want = numpy.empty_like(blocks)
        want[theirs] = blocks[mine]
        if zlib.crc32(want) != self.ask("crc"):
            sys.exit("nixl_calls.py: wrong bytes")


def floor_target(pipe):
    kept = memory()
    pipe.send((os.getpid(), kept.ctypes.data))
    pipe.poll(WAIT_S)  # until the other end has closed it


def measure_floor():
    """As Writer.requests: the same blocks, by the call that moves them and nothing else."""
    import numpy

    write = ctypes.CDLL(None, use_errno=True).process_vm_writev
    write.argtypes = [ctypes.c_int, *[ctypes.c_void_p, ctypes.c_ulong] * 2, ctypes.c_ulong]
    write.restype = ctypes.c_ssize_t
    pipe, theirs = multiprocessing.get_context("spawn").Pipe()
    multiprocessing.get_context("spawn").Process(target=floor_target, args=(theirs,), daemon=True).start()
    mine, (pid, base), took = memory(), pipe.recv(), []
    for _ in range(REQUESTS):
        begun = now()
        ours, other = (numpy.ascontiguousarray(addresses(*of)[:, :2]) for of in ((mine.ctypes.data, 4 * KIB, 1), (base, 4 * KIB, 2)))
        for at in range(0, BLOCKS, SPANS):
            n, skip = min(SPANS, BLOCKS - at), at * ours.strides[0]
            if write(pid, ours.ctypes.data + skip, n, other.ctypes.data + skip, n, 0) != n * 4 * KIB:
                sys.exit(f"nixl_calls.py: process_vm_writev: {os.strerror(ctypes.get_errno())}")
        took.append(1e3 * (now() - begun))
    return [{"case": FLOOR, "first_ms": took[0], "tenth_ms": took[-1]}]


def measure(case):
    """In a process of its own: the rows of one case as a line of JSON."""
    if case == FLOOR:
        print(json.dumps(measure_floor()), flush=True)
        os._exit(0)
    writer = Writer(case)
    rows = [{"case": case, **writer.requests(), **writer.ping()}]
    rows += [{"case": case, "way": way, "block_bytes": block, **writer.size(way, block)} for way in ("WRITE", "READ") for block in SIZES]
    writer.compare()
    print(json.dumps(rows), flush=True)
    os._exit(0)  # an engine may not survive its own end


FIELDS = ("case", "way", "block_bytes", "gb_per_s", "post_us", "note_us", "first_ms", "tenth_ms")
DIGITS = {"gb_per_s": 4}


def medians(passes):
    rows = []
    for same in zip(*passes):
        row = {field: same[0].get(field) for field in FIELDS}
        for field in FIELDS[3:]:
            if row[field] is not None:
                row[field] = round(statistics.median(one[field] for one in same), DIGITS.get(field, 1))
        rows.append(row)
    return rows


def tables(rows):
    """As Markdown, for the page: bandwidths with their ratios, then the rest."""
    def find(field, **wanted):
        return next(row[field] for row in rows if all(row[key] == value for key, value in wanted.items()))

    lines = ["| GB/s | " + " | ".join(CASES) + " | KVRAIL / UCX | KVRAIL / as vLLM starts it |", "| --- |" + " ---: |" * 5]
    for way in ("WRITE", "READ"):
        for block in SIZES:
            speed = [find("gb_per_s", case=case, way=way, block_bytes=block) for case in CASES]
            ratios = [f"{speed[0] / other:.2f}" for other in speed[1:]]
            lines.append(" | ".join([f"| {way}, {block // KIB} KiB x {BLOCKS}", *(f"{one:.2f}" for one in speed), *ratios]) + " |")
    lines += ["", "| | " + " | ".join(CASES) + " |", "| --- |" + " ---: |" * 3]
    rest = (("`transfer()` of 64 KiB x 1538 returns after, us", "post_us", {"way": "WRITE", "block_bytes": 64 * KIB}),
            (f"a notification of {NOTE} bytes, us", "note_us", {"way": None}),
            ("first request of 4 KiB x 1538 after the start, ms", "first_ms", {"way": None}), ("the tenth, ms", "tenth_ms", {"way": None}))
    lines += [" | ".join([f"| {what}", *(f"{find(field, case=case, **wanted):.1f}" for case in CASES)]) + " |" for what, field, wanted in rest]
    floor = next((row for row in rows if row["case"] == FLOOR), None)
    if floor:
        first, tenth = (find(field, case="KVRAIL", way=None) - floor[field] for field in ("first_ms", "tenth_ms"))
        lines += ["", f"The first finds cold memory: {FLOOR}, without NIXL, takes {floor['first_ms']:.1f} ms for the first of the same blocks and "
                  f"{floor['tenth_ms']:.1f} ms for the tenth. KVRAIL takes {first:.1f} ms more for its first, which waits for the connection, too, and "
                  f"{tenth:.1f} ms more for its tenth."]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plugin", metavar="PLUGIN", help="libplugin_KVRAIL.so")
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--case", choices=[*CASES, FLOOR], help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.case:
        return measure(asked.case)
    results.can_write(asked.json)
    sys.path.append(os.path.join(HERE, "..", "tests", "nixl"))
    import wheels

    passes, load = [], os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="kvrail-nixl-") as folder:
        try:
            site = wheels.site_with(os.path.abspath(asked.plugin), os.path.join(folder, "site"))
        except wheels.Unavailable as error:
            wheels.skip(error)
        environ = {"NIXL_LOG_LEVEL": "FATAL", "KVCACHE_AGENT_ADDRESS": "127.0.0.1", **os.environ, "PYTHONPATH": site}
        for _ in range(asked.passes):
            rows = []
            for case in (*CASES, FLOOR):
                command = [sys.executable, os.path.abspath(__file__), asked.plugin, "--case", case]
                run = subprocess.run(command, env=environ, stdout=subprocess.PIPE, text=True, timeout=600, check=False)
                if run.returncode:
                    sys.exit(f"nixl_calls.py: {case}: exit code {run.returncode}")
                rows += json.loads(next(line for line in run.stdout.splitlines() if line.startswith("[{")))
            passes.append(rows)
    rows = medians(passes)
    told = results.head("nixl_calls", "shm", nixl=wheels.VERSION, passes=asked.passes, blocks=BLOCKS, load=round(load, 1))
    print(tables(rows), end="")
    if asked.json:
        results.write(asked.json, told, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
