# SPDX-License-Identifier: Apache-2.0
"""The receiver is killed, the event loop closes the peer, and other threads are in groups with its operations."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

from children import AGES, PATIENCE

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


def writer(port, other_port, victim, seed):
    random.seed(seed)
    engine = kvrail.Engine("writer")
    source = engine.register({"k": np.ones((2, 64, 4096), np.uint8)})
    peer, other = (engine.connect("127.0.0.1", p, PATIENCE) for p in (port, other_port))
    wrong, begun, stop = [], threading.Barrier(4), threading.Event()

    def work(kind):
        begun.wait()
        while not stop.is_set():
            try:
                group = engine.group(timeout=PATIENCE)
                for i in range(24):
                    peer.write_blocks_async(source, range(16), range(16), group=group)
                    if i % 8 == kind:  # which the group still waits for when the first peer is closed
                        other.send_blocks_async(source, [1], 7, group=group, timeout=0.05)
                if kind == 2:
                    peer.write_blocks(source, [1], [2])
                group.end()
            except (kvrail.ClosedError, kvrail.PeerLostError, kvrail.KvTimeoutError):
                pass
            except BaseException as exc:
                wrong.append(repr(exc))
                return

    workers = [threading.Thread(target=work, args=(kind,)) for kind in range(3)]
    for worker in workers:
        worker.start()
    begun.wait()
    time.sleep(random.random() * 0.02)
    os.kill(victim, signal.SIGKILL)
    arrival = engine.next_arrival(PATIENCE)
    assert arrival.kind == kvrail.ArrivalKind.PEER_LOST and arrival.peer is peer
    peer.close()
    time.sleep(random.random() * 0.02)
    stop.set()
    for worker in workers:
        worker.join(PATIENCE)
    assert not wrong and not any(w.is_alive() for w in workers), wrong
    assert engine.peers == [other]
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


read_end, write_end = os.pipe()
stays = forked(receiver, write_end)
other_port = int.from_bytes(os.read(read_end, 4), "little")
for seed in range(int(sys.argv[1])):
    victim = forked(receiver, write_end)
    port = int.from_bytes(os.read(read_end, 4), "little")
    status = os.waitpid(forked(writer, port, other_port, victim, seed), 0)[1]
    os.waitpid(victim, 0)
    if status:
        os.kill(stays, signal.SIGKILL)
        print("round", seed, "status", status)
        sys.exit(1)
os.kill(stays, signal.SIGKILL)
print("all ended")
"""


def test_groups_end_when_the_peer_is_closed_under_them() -> None:
    rounds = "100" if "KVRAIL_LONG" in os.environ else "12"
    ran = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", textwrap.dedent(PROGRAM), rounds, str(PATIENCE)],
        capture_output=True,
        text=True,
        timeout=AGES,
        # glibc overwrites what is freed, so that a use of it shows: as a crash, or as a wait without end.
        env={**os.environ, "MALLOC_PERTURB_": "165", "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0"},
    )
    assert (ran.returncode, ran.stdout) == (0, "all ended\n"), ran.stdout + ran.stderr
