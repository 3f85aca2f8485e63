# SPDX-License-Identifier: Apache-2.0
"""Communicators: several processes connected with each other in one call."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any, Callable, Dict, List

import children as far
import numpy as np
import pytest
from children import PATIENCE, Child

import kvrail

RANKS, SHAPE = 4, (2, 16, 256)


def meeting(folder: Path, rank: int, ranks: int) -> Callable[[bytes], List[bytes]]:
    """An allgather through files, as any rendezvous does it."""

    def allgather(mine: bytes) -> List[bytes]:
        (folder / f".{rank}").write_bytes(mine)
        (folder / f".{rank}").rename(folder / str(rank))
        end = time.monotonic() + PATIENCE
        while not all((folder / str(r)).exists() for r in range(ranks)):
            assert time.monotonic() < end
            time.sleep(0.01)
        return [(folder / str(r)).read_bytes() for r in range(ranks)]

    return allgather


def join(world: Dict[str, Any], folder: str, rank: int, group: Any) -> List[int]:
    far.open_engine(world, SHAPE, {}, {"open": True})
    far.fill(world, rank)
    world["comm"] = world["engine"].comm(rank, RANKS, meeting(Path(folder), rank, RANKS), group=group)
    return sorted(world["comm"].peers)


def write_own_block_to_all(world: Dict[str, Any]) -> None:
    with world["engine"].group(timeout=PATIENCE) as group:
        for peer in world["comm"].peers.values():
            block = [world["comm"].rank]
            peer.write_blocks_async(world["cache"], block, block, tag=block[0], group=group)


def leave(world: Dict[str, Any]) -> bool:
    peer = next(iter(world["comm"].peers.values()))
    world["comm"].close()
    return not peer.connected and not world["engine"].peers


@pytest.mark.parametrize("groups", [None, [0, 0, 1, 1]], ids=["all with all", "prefill with decode"])
def test_every_rank_writes_to_every_rank_that_it_is_connected_to(
    children: Callable[[], Child], tmp_path: Path, groups: Any
) -> None:
    ranks = [children() for _ in range(RANKS)]
    met: List[Any] = [None] * RANKS

    def meet(rank: int) -> None:
        met[rank] = ranks[rank].call(join, str(tmp_path), rank, groups[rank] if groups else None)

    threads = [threading.Thread(target=meet, args=(r,)) for r in range(RANKS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    others = [[o for o in range(RANKS) if o != r and not (groups and groups[o] == groups[r])] for r in range(RANKS)]
    assert met == others
    for child in ranks:
        child.call(write_own_block_to_all)
    filled = [np.random.default_rng(r).integers(1, 255, SHAPE, np.uint8) for r in range(RANKS)]
    for rank, child in enumerate(ranks):
        want = filled[rank].copy()
        for other in others[rank]:
            want[:, other] = filled[other][:, other]
        assert np.array_equal(child.call(far.memory), want)
        assert sorted(a[2] for a in child.call(far.arrivals, len(others[rank]))) == others[rank]
    for child in ranks[:1]:
        assert child.call(leave)


class Strange(Exception):
    pass


def raising(mine: bytes) -> List[bytes]:
    raise Strange("the rendezvous is down")


@pytest.mark.parametrize(
    "allgather, error, says",
    [
        (raising, Strange, "rendezvous is down"),
        (lambda mine: [mine], ValueError, "allgather returned 1 items for 2 ranks"),
        (lambda mine: [mine, mine[1:]], ValueError, "allgather returned 127 bytes for rank 1"),
        (lambda mine: [mine, "text"], TypeError, "no bytes object for rank 1"),
        (lambda mine: 7, TypeError, "allgather returned 7"),
        (lambda mine: [mine, mine], kvrail.ArgumentError, "stands at place 1"),
        (lambda mine: [mine, bytes(len(mine))], kvrail.PeerError, "PROTOCOL"),
    ],
)
def test_a_rendezvous_that_fails_is_the_reason(allgather: Any, error: Any, says: str) -> None:
    with kvrail.Engine() as engine:
        engine.register({"k": np.zeros((1, 4, 64), np.uint8)})
        with pytest.raises(error, match=says):
            engine.comm(0, 2, allgather, timeout=PATIENCE)
        assert engine.peers == []
        with engine.comm(0, 1, lambda mine: [mine]) as alone:
            assert alone.peers == {}


def test_a_rank_that_does_not_come_is_a_timeout() -> None:
    with kvrail.Engine() as engine, kvrail.Engine() as other:
        blobs: List[bytes] = []

        def of_a_rank_that_never_connects(mine: bytes) -> List[bytes]:
            blobs.append(mine)
            raise Strange

        with pytest.raises(Strange):
            other.comm(0, 2, of_a_rank_that_never_connects)
        with pytest.raises(kvrail.KvTimeoutError, match="rank 0 has not connected"):
            engine.comm(1, 2, lambda mine: [blobs[0], mine], timeout=0.3)


def test_a_peer_of_a_communicator_is_closed_with_it_and_not_before() -> None:
    with kvrail.Engine() as a, kvrail.Engine() as b:
        memory = [np.zeros((1, 4, 64), np.uint8) for _ in range(2)]
        memory[0][:] = 7
        caches = [engine.register({"k": m}, open=True) for engine, m in zip((a, b), memory)]
        blobs: Dict[int, bytes] = {}

        def gather(rank: int) -> Callable[[bytes], List[bytes]]:
            def allgather(mine: bytes) -> List[bytes]:
                blobs[rank] = mine
                while len(blobs) < 2:
                    time.sleep(0.01)
                return [blobs[0], blobs[1]]

            return allgather

        comms: Dict[int, kvrail.Comm] = {}
        thread = threading.Thread(target=lambda: comms.update({1: b.comm(1, 2, gather(1))}))
        thread.start()
        comms[0] = a.comm(0, 2, gather(0))
        thread.join()
        peer = comms[0].peers[1]
        assert a.peers == [peer] and peer.connected
        with pytest.raises(kvrail.CallError, match="communicator"):
            peer.close()
        op = peer.write_blocks_async(caches[0], [1], [2])
        op.wait(PATIENCE)
        assert memory[1][0, 2].all() and not memory[1][0, :2].any()
        comms[0].close()
        assert a.peers == []
        with pytest.raises(kvrail.ClosedError):
            peer.write_blocks(caches[0], [1], [2])
        assert op.done()
