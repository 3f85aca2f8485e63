# SPDX-License-Identifier: Apache-2.0
"""Fixtures: another process, two engines of this one, and memory whose every byte says where it belongs."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path
from typing import Any, Callable, Iterator, List, NamedTuple

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # children.py, also in the spawned process
os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
for variable in [v for v in os.environ if v.startswith("KVCACHE_")]:
    del os.environ[variable]
# Where no test is about them, a busy machine may take its time.
os.environ.update(KVCACHE_HANDSHAKE_MS="20000", KVCACHE_OP_TIMEOUT_MS="20000")
if "KVRAIL_TEST_TRANSPORT" in os.environ:  # tests/rxe runs a part of this over ib
    os.environ["KVCACHE_TRANSPORT"] = os.environ["KVRAIL_TEST_TRANSPORT"]

import kvrail  # noqa: E402
from children import PATIENCE, Child  # noqa: E402

LAYERS, BLOCKS, BYTES = 3, 32, 1024


def pattern(seed: int, *shape: int) -> Any:
    """Never 0, so that an untouched byte is told from a written one."""
    return np.random.default_rng(seed).integers(1, 255, shape, np.uint8)


@pytest.fixture
def child() -> Iterator[Child]:
    other = Child()
    yield other
    other.close()


@pytest.fixture
def children() -> Iterator[Callable[[], Child]]:
    made: List[Child] = []

    def make() -> Child:
        made.append(Child())
        return made[-1]

    yield make
    for other in made:
        other.close()


class Pair(NamedTuple):
    writer: kvrail.Engine
    reader: kvrail.Engine
    source: kvrail.Cache
    target: kvrail.Cache
    from_: Any
    to: Any
    peer: kvrail.Peer  # the reader, as the writer sees it
    back: kvrail.Peer  # the writer, as the reader sees it


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Two engines of this process, connected; the target is open and readable."""
    with kvrail.Engine("writer") as writer, kvrail.Engine("reader") as reader:
        from_, to = pattern(1, LAYERS, BLOCKS, BYTES), np.zeros((LAYERS, BLOCKS, BYTES), np.uint8)
        source = writer.register({"k": from_}, readable=True)
        target = reader.register({"k": to}, open=True, readable=True)
        peer = writer.connect("127.0.0.1", reader.listen())
        arrival = reader.next_arrival(PATIENCE)
        assert arrival is not None and arrival.kind == kvrail.ArrivalKind.PEER_UP and arrival.peer is not None
        yield Pair(writer, reader, source, target, from_, to, peer, arrival.peer)
    gc.collect()


def expect_only(pair: Pair, layers: Any, local: Any, remote: Any) -> None:
    """Exactly these blocks were written, all else is untouched."""
    want = np.zeros_like(pair.to)
    for layer in layers:
        want[layer, remote] = pair.from_[layer, local]
    assert np.array_equal(pair.to, want)
