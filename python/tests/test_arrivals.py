# SPDX-License-Identifier: Apache-2.0
"""What was acknowledged to a writer reaches the reader's program, whatever fails in between."""

from __future__ import annotations

import asyncio
import logging
import os
import select
import threading
from typing import Any, List

import numpy as np
import pytest

import kvrail
from conftest import Pair
from children import PATIENCE, eventually
from kvrail import _core
from kvrail._engine import Engine
from kvrail._log import LogPipe

LONG = "\u00e9" * 40  # a name holds 63 bytes: it is cut inside a character


def write(pair: Pair, tags: Any) -> None:
    for tag in tags:
        pair.peer.write_blocks(pair.source, [1], [2], tag=tag)


def tags_of(engine: kvrail.Engine, n: int) -> List[int]:
    """Of the next n arrivals of blocks, by poll()."""
    got: List[kvrail.Arrival] = []
    assert eventually(lambda: (got.extend(engine.poll()), len(got) >= n)[1])
    return [a.tag for a in got if a.kind == kvrail.ArrivalKind.BLOCKS]


def test_a_name_that_is_not_utf8_costs_nothing() -> None:
    with kvrail.Engine() as reader, kvrail.Engine(LONG) as writer:
        reader.register({"k": np.zeros((1, 4, 64), np.uint8)}, open=True)
        source = writer.register({"k": np.zeros((1, 4, 64), np.uint8)})
        peer = writer.connect("127.0.0.1", reader.listen())
        for tag in range(5):
            peer.write_blocks(source, [1], [2], tag=tag)
        assert tags_of(reader, 6) == [0, 1, 2, 3, 4]
        (back,) = reader.peers
        assert back.name == LONG[:31] + "\\xc3" == back.info().name
        assert LONG[:31] + "?" in reader.dump() and "\u00e9" in reader.dump()
        late = reader.register({"k": np.zeros((1, 4, 64), np.uint8)}, cache_id=1)
        with pytest.raises(kvrail.KvError, match=r"\\xc3 and this engine did not both have cache 1"):
            back.write_blocks(late, [1], [2])


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt, ValueError])
def test_an_exception_in_the_middle_of_a_poll_loses_nothing(
    pair: Pair, error: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(pair, range(10))
    honest, left = Engine._arrival, [4]

    def failing(engine: Engine, row: Any) -> kvrail.Arrival:
        left[0] -= 1
        if left[0] == 0:
            raise error
        return honest(engine, row)

    with monkeypatch.context() as patched:
        patched.setattr(Engine, "_arrival", failing)
        with pytest.raises(error):
            pair.reader.poll()
    assert tags_of(pair.reader, 10) == list(range(10))
    write(pair, [10])
    assert tags_of(pair.reader, 1) == [10]


def test_a_peer_whose_first_arrival_could_not_be_told_stays_connected(monkeypatch: pytest.MonkeyPatch) -> None:
    with kvrail.Engine() as reader, kvrail.Engine() as writer:
        target = np.zeros((1, 4, 64), np.uint8)
        reader.register({"k": target}, open=True)
        source = writer.register({"k": np.ones((1, 4, 64), np.uint8)})
        peer = writer.connect("127.0.0.1", reader.listen())
        assert select.select([reader.fileno()], [], [], PATIENCE)[0]
        for _ in range(3):
            with monkeypatch.context() as patched, pytest.raises(MemoryError):

                def failing(engine: Engine, row: Any) -> kvrail.Arrival:
                    raise MemoryError

                patched.setattr(Engine, "_arrival", failing)
                reader.poll()
        arrival = reader.next_arrival(PATIENCE)
        assert arrival is not None and arrival.kind == kvrail.ArrivalKind.PEER_UP and arrival.peer is not None
        peer.write_blocks(source, [1], [2])
        assert target[0, 2].all() and arrival.peer.connected


def test_arrivals_that_were_kept_go_with_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    with kvrail.Engine() as reader, kvrail.Engine() as writer:
        writer.connect("127.0.0.1", reader.listen())

        def failing(engine: Engine, row: Any) -> kvrail.Arrival:
            raise MemoryError

        monkeypatch.setattr(Engine, "_arrival", failing)
        assert select.select([reader.fileno()], [], [], PATIENCE)[0]
        with pytest.raises(MemoryError):
            reader.poll()


def test_poll_takes_no_more_than_asked_of_what_was_kept(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    write(pair, range(6))
    with monkeypatch.context() as patched:
        patched.setattr(Engine, "_arrival", lambda engine, row: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pair.reader.poll()
    for tag in range(6):
        assert [a.tag for a in pair.reader.poll(1)] == [tag]
    assert pair.reader.poll() == []


def test_poll_without_memory_loses_nothing(pair: Pair) -> None:
    """Each allocation of a poll fails once, and the next poll has all of them."""
    testcapi = pytest.importorskip("_testcapi")
    for point in range(60):
        write(pair, [point, 1000 + point])
        try:
            testcapi.set_nomemory(point, point + 1)
            try:
                got = pair.reader.poll()
            finally:
                testcapi.remove_mem_hooks()
        except MemoryError:
            got = []
        got += pair.reader.poll()
        assert [a.tag for a in got] == [point, 1000 + point]


def test_a_kind_of_tomorrow_is_shown_and_costs_nothing() -> None:
    with kvrail.Engine() as engine:
        kind = engine._arrival((77, 0, None, 1, 2, 0, 1, 5, 0, 1, 64)).kind
    assert kind == 77 and kind.name == "KIND_77" and kvrail.ArrivalKind(1) is kvrail.ArrivalKind.BLOCKS


def test_an_iterator_that_is_left_early_takes_only_what_it_gave(pair: Pair) -> None:
    write(pair, range(8))

    async def first(n: int) -> List[int]:
        got: List[int] = []
        async for arrival in pair.reader.arrivals():
            got.append(arrival.tag)
            if len(got) == n:
                return got
        return got

    assert asyncio.run(first(2)) == [0, 1]
    assert asyncio.run(first(3)) == [2, 3, 4]
    assert tags_of(pair.reader, 3) == [5, 6, 7]


def test_a_filter_that_fails_costs_its_line_only(caplog: pytest.LogCaptureFixture) -> None:
    def fails_once(record: logging.LogRecord) -> bool:
        logging.getLogger("kvrail").removeFilter(fails_once)
        raise RuntimeError("a filter's fault")

    logging.getLogger("kvrail").addFilter(fails_once)
    pipe = LogPipe()
    os.write(pipe.fd, b"2one\n2t\xffo\n")
    pipe.close()
    assert caplog.messages == ["t\\xffo"]


def test_options_that_are_not_utf8_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVCACHE_ERROR_FILE", "/tmp/\udcff")
    values = {row[0]: row[5] for row in _core.options(None)}
    assert values["KVCACHE_ERROR_FILE"] == "/tmp/\\xff"


def test_next_arrival_drives_an_engine_without_a_thread() -> None:
    with kvrail.Engine(progress="caller") as reader, kvrail.Engine() as writer:
        reader.register({"k": np.zeros((1, 4, 64), np.uint8)}, open=True)
        source = writer.register({"k": np.zeros((1, 4, 64), np.uint8)})
        port, got = reader.listen(), []  # type: ignore[var-annotated]
        work = threading.Thread(target=lambda: writer.connect("127.0.0.1", port, PATIENCE).write_blocks(source, [1], [2], tag=9))
        work.start()
        while len(got) < 2:
            arrival = reader.next_arrival(PATIENCE)
            assert arrival is not None
            got.append(arrival.tag)
        work.join(PATIENCE)
        assert got == [0, 9] and reader.next_arrival(0.01) is None
