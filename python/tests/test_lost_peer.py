# SPDX-License-Identifier: Apache-2.0
"""The receiver is killed, the event loop closes the peer, and other threads are in groups with its operations."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

from children import AGES

# One import, and for each round two forks that open their own engines. The writer must end by itself, with 0.
PROGRAM = """
import os, random, signal, sys, threading, time
import numpy as np
import kvrail

PATIENCE = float(sys.argv[2])


def receiver(out):
    engine = kvrail.Engine("receiver")
    engine.register({"k": np.zeros((2, 64, 4096), np.uint8)}, open=True)
    os.write(out, engine.listen().to_bytes(4, "little"))
    signal.pause()


def writer(port, victim, seed):
    random.seed(seed)
    engine = kvrail.Engine("writer")
    source = engine.register({"k": np.ones((2, 64, 4096), np.uint8)})
    peer = engine.connect("127.0.0.1", port, PATIENCE)
    wrong, begun = [], threading.Barrier(4)

    def work(kind):
        begun.wait()
        try:
            while True:
                group = engine.group(timeout=PATIENCE)
                for i in range(24):
                    peer.write_blocks_async(source, range(16), range(16), group=group)
                if kind == 2:
                    peer.write_blocks(source, [1], [2])
                group.end()
                for op in group.ops:
                    op.wait(PATIENCE)
        except (kvrail.ClosedError, kvrail.PeerLostError):
            pass
        except BaseException as exc:
            wrong.append(repr(exc))

    workers = [threading.Thread(target=work, args=(kind,)) for kind in range(3)]
    for worker in workers:
        worker.start()
    begun.wait()
    time.sleep(random.random() * 0.02)
    os.kill(victim, signal.SIGKILL)
    arrival = engine.next_arrival(PATIENCE)
    assert arrival.kind == kvrail.ArrivalKind.PEER_LOST and arrival.peer is peer
    peer.close()
    for worker in workers:
        worker.join(PATIENCE)
    assert not wrong and not any(w.is_alive() for w in workers), wrong
    assert peer not in engine.peers
    engine.close()


def forked(function, *args):
    pid = os.fork()
    if not pid:
        code = 1
        try:
            function(*args)
            code = 0
        finally:
            sys.stderr.flush()
            os._exit(code)
    return pid


for seed in range(int(sys.argv[1])):
    read_end, write_end = os.pipe()
    victim = forked(receiver, write_end)
    port = int.from_bytes(os.read(read_end, 4), "little")
    status = os.waitpid(forked(writer, port, victim, seed), 0)[1]
    os.kill(victim, signal.SIGKILL)
    os.waitpid(victim, 0)
    os.close(read_end), os.close(write_end)
    if status:
        print("round", seed, "status", status)
        sys.exit(1)
print("all ended")
"""


def test_groups_end_when_the_peer_is_closed_under_them() -> None:
    rounds = "100" if "KVRAIL_LONG" in os.environ else "12"
    ran = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", textwrap.dedent(PROGRAM), rounds, str(AGES)],
        capture_output=True,
        text=True,
        timeout=AGES,
    )
    assert (ran.returncode, ran.stdout) == (0, "all ended\n"), ran.stdout + ran.stderr
