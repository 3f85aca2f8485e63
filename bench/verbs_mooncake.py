#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""verbs_mooncake.py -- Mooncake's engine over tests/softnic, for verbs.py: a batch of shuffled blocks from one process to another,
from the call until the engine says that it is done

usage: verbs_mooncake.py BLOCKS BYTES ROUNDS

In an environment that softnic is in, by a Python that has the package mooncake-transfer-engine-non-cuda, as bench/peers.sh makes
one. Prints the nanoseconds of a block in the quickest batch.
"""
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time

DEVICE, GID_INDEX = "softnic0", "3"  # RoCE v2 over IPv4


def checked(ret, what):
    if ret:
        sys.exit(f"verbs_mooncake.py: {what} returned {ret}")


def one_side(role, blocks, size, rounds):
    """Its address and where its memory is go out as a line; the writer reads the other one's."""
    import numpy
    from mooncake.engine import TransferEngine
    memory = numpy.ones(blocks * size, numpy.uint8)
    engine = TransferEngine()
    checked(engine.initialize("127.0.0.1", "P2PHANDSHAKE", "rdma", DEVICE), "initialize")
    checked(engine.register_memory(memory.ctypes.data, memory.nbytes), "register_memory")
    with os.fdopen(3, "w", buffering=1) as out:
        out.write(json.dumps([f"127.0.0.1:{engine.get_rpc_port()}", memory.ctypes.data]) + "\n")
        line = sys.stdin.readline()  # of the reader: its end
        if role == "writer":
            name, base = json.loads(line)
            mine, theirs = [(at + numpy.random.default_rng(seed).permutation(blocks) * size).tolist()
                            for seed, at in enumerate((memory.ctypes.data, base))]
            times = []
            for _ in range(rounds):
                begun = time.perf_counter()
                checked(engine.batch_transfer_sync_write(name, mine, theirs, [size] * blocks), "batch_transfer_sync_write")
                times.append(time.perf_counter() - begun)
            out.write(f"{min(times) * 1e9 / blocks:.1f}\n")
    os._exit(0)  # its own end may wait for a peer


def start(role, words, env, log):
    """The process, and what it says: not by its stdout, where the engine logs."""
    reads, writes = os.pipe()
    child = subprocess.Popen(["sh", "-c", 'exec "$@" 3>&"$0"', str(writes), sys.executable, "-B", __file__, role, *words], env=env,
                             stdin=subprocess.PIPE, stdout=log, stderr=log, text=True, pass_fds=[writes])
    os.close(writes)
    return child, os.fdopen(reads)


def figure(words, env, log):
    (reader, its_words), (writer, said) = [start(role, words, env, log) for role in ("reader", "writer")]
    try:
        writer.stdin.write(its_words.readline())
        writer.stdin.flush()
        said.readline()
        return said.readline()
    finally:
        for child in (reader, writer):
            child.kill()
            child.wait()


def main():
    world = f"mooncake{os.getpid()}"
    with tempfile.NamedTemporaryFile("w", suffix=".json") as topology, tempfile.TemporaryFile("w+") as log:
        json.dump({"cpu:0": [[DEVICE], []]}, topology)  # it looks for a device file otherwise
        topology.flush()
        env = dict(os.environ, SOFTNIC_WORLD=world, MC_GID_INDEX=GID_INDEX, MC_CUSTOM_TOPO_JSON=topology.name)
        try:
            seen = figure(sys.argv[1:], env, log)
        finally:
            with contextlib.suppress(FileNotFoundError):  # who is killed leaves it
                os.unlink(f"/dev/shm/softnic.{os.geteuid()}.{world}")
        log.seek(0)
        print(seen or sys.exit(log.read() + "verbs_mooncake.py: no figure: Mooncake says why above"), end="")


if __name__ == "__main__":
    if sys.argv[1:2] in (["reader"], ["writer"]):
        one_side(sys.argv[1], *map(int, sys.argv[2:]))
    elif len(sys.argv) == 4:
        main()
    else:
        sys.exit(__doc__)
