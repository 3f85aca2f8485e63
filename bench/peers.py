#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""peers.py -- in the guest: other engines' programs beside ours, the same transfer and the same faults

usage: peers.py SITE_PACKAGES [ENGINE...]

64 blocks of 64 KiB go from a process on rxe0 to one on rxe1. Each engine is driven through its Python API as its users do.
Soft-RoCE in an emulated machine: no time here is a network's, but ratios of one run, packets and what a fault is
reported as are fair. Run by peers.sh; the results as JSON go to the file that PEERS_JSON names.
"""
import glob
import importlib.metadata
import json
import os
import re
import select
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import traceback

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../tests/rxe"))
import perftest  # noqa: E402
import results  # noqa: E402

BLOCKS, BYTES, BATCHES = 64, 65536, 5
LEN = BLOCKS * BYTES
ANSWER_S = 300  # for what surely comes, in an emulation on a busy machine
LAST_LINES = 60  # of what the engines print themselves
REPORT_S = 45  # a fault that was not reported by then hangs
ENGINES = {"kvrail": "kvrail", "nixl": "nixl-cu12", "nixl over kvrail": "nixl-cu12", "mooncake": "mooncake-transfer-engine-non-cuda"}  # and their packages
ADDRESSES = {"target": "10.77.0.2", "initiator": "10.77.0.1"}
FIELDS = "time_ratio", "packets", "work_requests", "killed", "outside", "withdrawn", "failed"
DEVICES = {"target": "rxe1", "initiator": "rxe0"}


def order():
    """Block i of the initiator goes to block order()[i] of the target."""
    return [(i * 27 + 5) % BLOCKS for i in range(BLOCKS)]


# ---------------------------------------------------------------- engines: what the two processes of each do

class Kvrail:
    def __init__(self, role):
        os.environ.update(KVCACHE_TRANSPORT="ib", KVCACHE_RDMA_NICS=DEVICES[role])
        import kvrail
        import numpy
        self.engine = kvrail.Engine(role)
        self.bytes = numpy.asarray(self.engine.alloc(LEN)).view(numpy.uint8).reshape(BLOCKS, BYTES)
        self.cache = self.engine.register({"k": self.bytes.reshape(1, BLOCKS, BYTES)}, open=True)

    def address(self):
        return self.engine.listen(ADDRESSES["target"])

    def connect(self, port):
        self.peer = self.engine.connect(ADDRESSES["target"], port)
        self.requests = 0

    def write(self):
        before = self.engine.stats()["work_requests"]
        self.peer.write_blocks(self.cache, list(range(BLOCKS)), order())
        self.requests = self.engine.stats()["work_requests"] - before

    def write_outside(self):
        self.peer.write_blocks(self.cache, [0], [BLOCKS])

    def withdraw(self):
        self.cache.close()


class Nixl:
    BACKEND = "UCX"

    def environ(self, role):
        os.environ.update(UCX_TLS="rc_v,ud_v", UCX_NET_DEVICES=DEVICES[role] + ":1", UCX_IB_GID_INDEX="1", UCX_RC_RETRY_COUNT="6",
                          UCX_UD_TIMEOUT="30s")

    def __init__(self, role):
        self.environ(role)
        import numpy
        from nixl_cu12._api import nixl_agent, nixl_agent_config
        self.bytes = numpy.zeros((BLOCKS, BYTES), numpy.uint8)
        self.agent = nixl_agent(role, nixl_agent_config(backends=[self.BACKEND]))
        self.region = self.agent.register_memory([(self.bytes.ctypes.data, LEN, 0, "")], "DRAM")

    def address(self):
        return [self.agent.get_agent_metadata().hex(), self.bytes.ctypes.data]

    def connect(self, theirs):
        self.name = self.agent.add_remote_agent(bytes.fromhex(theirs[0]))
        self.remote = theirs[1]

    def transfer(self, pairs):
        lists = [self.agent.get_xfer_descs([(address, BYTES, 0) for address in side], "DRAM") for side in zip(*pairs)]
        handle = self.agent.initialize_xfer("WRITE", lists[0], lists[1], self.name)
        state = self.agent.transfer(handle)
        while state == "PROC":
            state = self.agent.check_xfer_state(handle)
        if state != "DONE":
            raise RuntimeError(f"state {state}")
        self.agent.release_xfer_handle(handle)

    def write(self):
        mine = self.bytes.ctypes.data
        self.transfer([(mine + i * BYTES, self.remote + to * BYTES) for i, to in enumerate(order())])

    def write_outside(self):
        self.transfer([(self.bytes.ctypes.data, self.remote + LEN + (1 << 30))])

    def withdraw(self):
        self.agent.deregister_memory(self.region)


class NixlOverKvrail(Nixl):
    BACKEND = "KVRAIL"

    def environ(self, role):
        os.environ.update(KVCACHE_TRANSPORT="ib", KVCACHE_RDMA_NICS=DEVICES[role], KVCACHE_AGENT_ADDRESS=ADDRESSES[role])
        import kvrail.nixl
        kvrail.nixl.add_to_nixl()


class Mooncake:
    def __init__(self, role):
        os.environ.update(MC_GID_INDEX="1", GLOG_minloglevel="0", GLOG_logtostderr="1")
        import numpy
        from mooncake.engine import TransferEngine
        self.bytes = numpy.zeros((BLOCKS, BYTES), numpy.uint8)
        self.engine = TransferEngine()
        self.check(self.engine.initialize(ADDRESSES[role], "P2PHANDSHAKE", "rdma", DEVICES[role]), "initialize")
        self.check(self.engine.register_memory(self.bytes.ctypes.data, LEN), "register_memory")

    @staticmethod
    def check(ret, what):
        if ret:
            raise RuntimeError(f"{what} returned {ret}")

    def address(self):
        return [f"{ADDRESSES['target']}:{self.engine.get_rpc_port()}", self.bytes.ctypes.data]

    def connect(self, theirs):
        self.name, self.remote = theirs

    def write(self):
        mine = self.bytes.ctypes.data
        self.check(self.engine.batch_transfer_sync_write(
            self.name, [mine + i * BYTES for i in range(BLOCKS)], [self.remote + to * BYTES for to in order()], [BYTES] * BLOCKS),
            "batch_transfer_sync_write")

    def write_outside(self):
        self.check(self.engine.transfer_sync_write(self.name, self.bytes.ctypes.data, self.remote + LEN + (1 << 30), BYTES),
                   "transfer_sync_write")

    def withdraw(self):
        self.check(self.engine.unregister_memory(self.bytes.ctypes.data), "unregister_memory")


def fill(engine, epoch):
    import numpy
    engine.bytes[:] = numpy.random.default_rng(epoch).integers(0, 256, (BLOCKS, BYTES), numpy.uint8)


def holds(engine, epoch):
    """Whether each block is in its place."""
    import numpy
    want = numpy.empty((BLOCKS, BYTES), numpy.uint8)
    want[order()] = numpy.random.default_rng(epoch).integers(0, 256, (BLOCKS, BYTES), numpy.uint8)
    return bool((engine.bytes == want).all())


def timed_write(engine):
    before, begun = perftest.packets(), time.monotonic()
    engine.write()
    return {"begun": begun, "s": time.monotonic() - begun, "packets": perftest.packets() - before,
            "requests": getattr(engine, "requests", None)}


def serve(name, role):
    """A process of an engine: does what the driver says, one JSON line each way."""
    with os.fdopen(os.dup(1), "w", buffering=1) as out:
        os.dup2(2, 1)  # what the engines print themselves
        engine = {"kvrail": Kvrail, "nixl": Nixl, "nixl over kvrail": NixlOverKvrail, "mooncake": Mooncake}[name](role)
        calls = {"address": engine.address, "connect": engine.connect, "fill": lambda epoch: fill(engine, epoch),
                 "holds": lambda epoch: holds(engine, epoch), "write": lambda: timed_write(engine),
                 "write_outside": engine.write_outside, "withdraw": engine.withdraw}
        for line in sys.stdin:
            call, *arguments = json.loads(line)
            try:
                answer = {"is": calls[call](*arguments)}
            except Exception as error:  # whatever an engine raises is its report
                answer = {"error": re.sub(r"\s+", " ", f"{type(error).__name__}: {error}")[:300]}
                traceback.print_exc()
            out.write(json.dumps(answer) + "\n")
    os._exit(0)  # an engine's own end may wait for a peer that is gone


# ---------------------------------------------------------------- the driver

class Process:
    def __init__(self, name, role, log):
        self.child = subprocess.Popen([sys.executable, "-B", __file__, name, role], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                      stderr=log, text=True, bufsize=1)

    def say(self, *words):
        self.child.stdin.write(json.dumps(words) + "\n")

    def hear(self, limit=ANSWER_S):
        """The answer; None where none came in time."""
        ready = select.select([self.child.stdout], [], [], limit)[0]
        line = self.child.stdout.readline() if ready else None
        if line == "":
            return {"error": f"its process ended with {self.child.wait()}"}
        return json.loads(line) if line else None

    def ask(self, *words):
        self.say(*words)
        answer = self.hear()
        if answer is None or "error" in answer:
            raise RuntimeError(f"{words[0]}: {answer['error'] if answer else 'no answer'}")
        return answer["is"]

    def kill(self):
        self.child.kill()
        self.child.wait()
        self.child.stdin.close()
        self.child.stdout.close()


class Pair:
    """Two connected processes of an engine that have moved one batch."""

    def __init__(self, name, log):
        self.target, self.initiator = Process(name, "target", log), Process(name, "initiator", log)

    def __enter__(self):
        try:
            self.initiator.ask("connect", self.target.ask("address"))
            self.batch(1)
        except BaseException:  # nothing of it may run beside the next pair
            self.__exit__()
            raise
        return self

    def __exit__(self, *unused):
        self.initiator.kill()
        self.target.kill()

    def batch(self, epoch):
        self.initiator.ask("fill", epoch)
        row = self.initiator.ask("write")
        if not self.target.ask("holds", epoch):
            raise RuntimeError("wrong bytes")
        return row


def report(answer, since):
    if answer is None:
        return f"hangs (nothing in {REPORT_S} s)"
    if "error" in answer:
        return f"{answer['error']} ({time.monotonic() - since:.1f} s)"
    return f"says success ({time.monotonic() - since:.1f} s)"


def quiet(name, log):
    with Pair(name, log) as pair:
        rows = [pair.batch(epoch) for epoch in range(2, 2 + BATCHES)]
    return {key: statistics.median(row[key] for row in rows) if rows[0][key] is not None else None
            for key in ("s", "packets", "requests")}


def killed(name, log):
    """The target dies while batches are written, one after the other."""
    with Pair(name, log) as pair:
        pair.initiator.say("write")
        time.sleep(0.02)
        pair.target.child.kill()
        died = time.monotonic()
        pair.target.child.wait()
        late = 0
        while (answer := pair.initiator.hear(REPORT_S)) and "is" in answer and late < 3:
            late += answer["is"]["begun"] > died
            pair.initiator.say("write")
        said = report(answer, died)
        return f"{late} writes to the dead process succeed; then {said}" if late else said


def outside(name, log):
    with Pair(name, log) as pair:
        begun = time.monotonic()
        pair.initiator.say("write_outside")
        return report(pair.initiator.hear(REPORT_S), begun)


def withdrawn(name, log):
    """The target takes its memory back while the other side still has its key."""
    with Pair(name, log) as pair:
        pair.target.say("withdraw")
        owner = pair.target.hear(REPORT_S)
        pair.initiator.ask("fill", 9)
        begun = time.monotonic()
        pair.initiator.say("write")
        said = "writer: " + report(pair.initiator.hear(REPORT_S), begun)
        landed = pair.target.ask("holds", 9)
        if owner is None or "error" in owner:
            said = f"owner: {owner['error'] if owner else 'hangs'}; {said}"
        return said + ("; the bytes landed" if landed else "; no whole batch landed")


def let_nixl_find_rxe(site_packages):
    """The wheel's own libibverbs knows no rxe: the system's takes its place, in the guest's writable layer only."""
    system = glob.glob("/usr/lib/*/libibverbs.so.1")[0]
    for path in glob.glob(os.path.join(site_packages, "nixl*.libs", "libibverbs-*.so*")):
        shutil.copy(system, path)


def measure(names, log):
    """The rows; each is said on stderr when it is there."""
    rate, packets = perftest.ib_write_bw(BYTES, BLOCKS * BATCHES)
    base_s = LEN / 1e6 / rate
    rows = [{"engine": "ib_write_bw", **dict.fromkeys(FIELDS), "time_ratio": 1, "packets": round(packets * BLOCKS), "work_requests": BLOCKS}]
    for name in names:
        row = {"engine": name, **dict.fromkeys(FIELDS)}
        rows.append(row)
        try:
            moved = quiet(name, log)
            row.update(time_ratio=round(moved["s"] / base_s, 1), packets=round(moved["packets"]), work_requests=moved["requests"])
        except RuntimeError as error:
            row["failed"] = str(error)
        for scenario in killed, outside, withdrawn:
            try:
                row[scenario.__name__] = scenario(name, log)
            except (RuntimeError, BrokenPipeError) as error:
                row[scenario.__name__] = f"could not be tried: {error}"
        print(json.dumps(row), file=sys.stderr, flush=True)
    return rows


def tables(told, rows):
    """As Markdown, for the page."""
    versions = ", ".join(f"{package} {version}" for package, version in told["settings"]["versions"].items())
    lines = [f"{versions}. Soft-RoCE in an emulated machine: correctness, not speed. {BLOCKS} blocks of {BYTES} bytes, bytes checked, "
             f"medians of {BATCHES}, commit {told['commit']}.", "",
             "| engine | time, ib_write_bw = 1 | packets | work requests |", "| --- | ---: | ---: | ---: |"]
    lines += [f"| {row['engine']} | " + (row["failed"] + " | | |" if row["failed"] else
              f"{row['time_ratio']} | {row['packets']} | {row['work_requests'] or 'not reported'} |") for row in rows]
    lines += ["", "| engine | the target is killed | an address outside | the target withdraws its memory |", "| --- | --- | --- | --- |"]
    lines += [f"| {row['engine']} | " + " | ".join(row[what].replace("|", "/") for what in FIELDS[3:6]) + " |" for row in rows[1:]]
    return "\n".join(lines) + "\n"


def wrong(rows):
    """What must not be, of NIXL's two: both move every byte, and over kvrail each fault is reported as what it is."""
    findings = [f"{row['engine']}: {row['failed']}" for row in rows if row["failed"]]
    wanted = {"killed": "nixlRemoteDisconnectError", "outside": "nixlNotFoundError", "withdrawn": "writer: nixlNotFoundError"}
    for row in rows:
        if row["engine"] == "nixl over kvrail":
            findings += [f"{row['engine']}, {what}: {row[what]}" for what, begin in wanted.items() if not row[what].startswith(begin)]
    return "\n".join(findings)


def main():
    site, *names = sys.argv[1:]
    if len(names) == 1 and names[0] in DEVICES:
        return serve(site, names[0])
    names = names or list(ENGINES)
    if unknown := set(names) - set(ENGINES):
        sys.exit(f"peers.py: no engine {', '.join(unknown)}; there are {', '.join(ENGINES)}")
    let_nixl_find_rxe(site)
    versions = {package: importlib.metadata.version(package) for package in dict.fromkeys(("kvrail", *(ENGINES[name] for name in names)))}
    with tempfile.TemporaryFile("w+", encoding="utf-8") as log:
        rows = measure(names, log)
        if wrong(rows):
            log.seek(0)
            sys.stderr.writelines(log.readlines()[-LAST_LINES:])
    told = results.head("peers", "ib", wait=None, blocks=BLOCKS, block_bytes=BYTES, batches=BATCHES, versions=versions)
    print(tables(told, rows), end="")
    if file := os.environ.get("PEERS_JSON"):
        told["command"] = shlex.join(["bench/peers.sh", os.path.basename(file), *sys.argv[2:]])
        results.write(file, told, rows)
    return wrong(rows) or 0


if __name__ == "__main__":
    sys.exit(main())
