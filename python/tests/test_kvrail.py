# SPDX-License-Identifier: Apache-2.0
"""The package kvrail: transfers in two processes, operations, errors, memory of every kind."""

from __future__ import annotations

import array
import asyncio
import ctypes
import gc
import ipaddress
import logging
import threading
import time
import weakref
from typing import Any, List, Tuple, get_type_hints

import children as far
import numpy as np
import pytest
from children import AGES, PATIENCE, Child, eventually, held_port
from conftest import BLOCKS, BYTES, LAYERS, Pair, expect_only, pattern

import kvrail
from kvrail import _core

SHAPE = (LAYERS, BLOCKS, BYTES)

# -- two processes


@pytest.mark.parametrize("path", ["pool", "cma", "ring"])
def test_blocks_arrive_in_another_process_by_every_path(child: Child, path: str) -> None:
    port = child.call(far.open_engine, SHAPE, {"KVCACHE_SHM_PATH": "auto" if path == "pool" else path}, {"open": True})
    with kvrail.Engine(options={"KVCACHE_SHM_PATH": "auto" if path == "pool" else path}) as engine:
        source = pattern(1, *SHAPE)
        cache = engine.register({"k": source})
        peer = engine.connect("127.0.0.1", port)
        assert peer.info().transport == "shm" and peer.connected
        peer.write_blocks(cache, [3, 1, 4], [30, 7, 23], tag=1001)
        peer.write_blocks(cache, [5], [0], 1, tag=1002)
        want = np.zeros(SHAPE, np.uint8)
        want[:, [30, 7, 23]] = source[:, [3, 1, 4]]
        want[1, 0] = source[1, 5]
        assert np.array_equal(child.call(far.memory), want)
        assert child.call(far.arrivals, 3)[1:] == [
            ("BLOCKS", range(0, LAYERS), 1001, 0, 3, 3 * LAYERS * BYTES),
            ("BLOCKS", range(1, 2), 1002, 0, 1, BYTES),
        ]


def test_reads_leases_and_two_sided_transfers(child: Child) -> None:
    port = child.call(far.open_engine, SHAPE, {}, {"readable": True})
    with kvrail.Engine() as engine:
        mine = pattern(1, *SHAPE)
        cache = engine.register({"k": mine})
        peer = engine.connect("127.0.0.1", port)
        child.call(far.arrivals, 1)
        with pytest.raises(kvrail.ArgumentError) as caught:
            peer.write_blocks(cache, [1], [2])
        assert caught.value.name == "LEASE" and caught.value.scope is kvrail.Scope.CALL
        lease = child.call(far.open_blocks, [2, 3], 5)
        peer.write_blocks(cache, [1, 0], [2, 3], lease=lease)
        with pytest.raises(kvrail.ArgumentError, match="LEASE"):
            peer.write_blocks(cache, [1], [4], lease=lease)
        child.call(far.revoke)
        with pytest.raises(kvrail.KvError):
            peer.write_blocks(cache, [1], [2], lease=lease)
        child.call(far.recv_blocks, [8, 9], 77)
        peer.send_blocks(cache, [6, 7], 77)
        child.call(far.recv_wait)
        want = np.zeros(SHAPE, np.uint8)
        want[:, [2, 3, 8, 9]] = mine[:, [1, 0, 6, 7]]
        assert np.array_equal(child.call(far.memory), want)
        child.call(far.fill, 9)
        peer.read_blocks(cache, [20, 21], [0, 1], range(1, 3))
        want = pattern(1, *SHAPE)
        want[1:3, [20, 21]] = pattern(9, *SHAPE)[1:3, [0, 1]]
        assert np.array_equal(mine, want)


def test_a_killed_peer_ends_the_wait(child: Child) -> None:
    port = child.call(far.open_engine, SHAPE, {}, {"open": True})
    with kvrail.Engine() as engine:
        cache = engine.register({"k": pattern(1, *SHAPE)})
        peer = engine.connect("127.0.0.1", port)
        op = peer.recv_blocks_async(cache, [1], tag=3, timeout=AGES)  # nobody will send
        threading.Timer(0.2, child.kill).start()
        start = time.monotonic()
        with pytest.raises(kvrail.PeerLostError) as caught:
            op.wait(AGES)
        assert time.monotonic() - start < PATIENCE
        assert isinstance(caught.value, (kvrail.PeerError, ConnectionError))
        assert caught.value.peer and caught.value.cause and caught.value.code == _core.ERR_PEER_LOST
        assert not peer.connected and op.done() and isinstance(op.error(), kvrail.PeerLostError)
        arrival = engine.next_arrival(PATIENCE)
        assert arrival is not None and arrival.kind == kvrail.ArrivalKind.PEER_LOST and arrival.peer is peer


# -- operations


def test_operations_have_grades_and_end_once(pair: Pair) -> None:
    op = pair.peer.write_blocks_async(pair.source, [1, 2], [3, 4], 0)
    op.wait(PATIENCE, grade=kvrail.SENT)
    op.wait(PATIENCE)
    op.result(0.1)
    assert op.done() and op.grade() == kvrail.ACKED and op.error() is None
    op.cancel()  # it had ended
    expect_only(pair, [0], [1, 2], [3, 4])


def test_a_wait_that_is_too_short_is_a_timeout_error_and_the_operation_goes_on(pair: Pair) -> None:
    op = pair.back.recv_blocks_async(pair.target, [1], tag=9)
    with pytest.raises(TimeoutError) as caught:
        op.wait(0.05)
    assert isinstance(caught.value, kvrail.KvTimeoutError) and not op.done()
    pair.peer.send_blocks(pair.source, [2], 9)
    op.wait(PATIENCE)
    expect_only(pair, range(LAYERS), [2], [1])


def test_a_deadline_that_passes_is_a_timeout_error_with_the_peer(pair: Pair) -> None:
    with pytest.raises(kvrail.KvTimeoutError) as caught:
        pair.back.recv_blocks(pair.target, [1], 9, timeout=0.1)
    assert caught.value.op == "recv_blocks" and caught.value.peer and caught.value.scope is kvrail.Scope.REQUEST


def test_cancel_ends_an_operation(pair: Pair) -> None:
    op = pair.back.recv_blocks_async(pair.target, [1], tag=9)
    op.cancel()
    assert op.done() and isinstance(op.error(), kvrail.CancelledError)


def test_operations_and_arrivals_are_awaited(pair: Pair) -> None:
    async def scene() -> List[kvrail.Arrival]:
        arrivals = pair.reader.arrivals()

        async def collect() -> List[kvrail.Arrival]:
            return [await arrivals.__anext__() for _ in range(LAYERS)]

        collector = asyncio.create_task(collect())
        for layer in range(LAYERS):
            await asyncio.sleep(0.01)
            await pair.peer.write_blocks_async(pair.source, [1], [2], layer, tag=layer)
        with pytest.raises(kvrail.KvTimeoutError):
            await pair.back.recv_blocks_async(pair.target, [5], tag=1, timeout=0.05)
        return await asyncio.wait_for(collector, PATIENCE)

    got = asyncio.run(scene())
    assert [(a.kind, a.layers, a.tag, a.peer, a.cache) for a in got] == [
        (kvrail.ArrivalKind.BLOCKS, range(n, n + 1), n, pair.back, pair.target) for n in range(LAYERS)
    ]
    expect_only(pair, range(LAYERS), [1], [2])


def test_the_arrivals_end_with_the_engine(pair: Pair) -> None:
    async def scene() -> int:
        asyncio.get_running_loop().call_later(0.05, pair.reader.close)
        return len([arrival async for arrival in pair.reader.arrivals()])

    assert asyncio.run(asyncio.wait_for(scene(), PATIENCE)) == 0


def test_a_group_is_one_result(pair: Pair) -> None:
    with pair.writer.group(timeout=PATIENCE) as group:
        for n in range(10):
            ids = [n]  # the list is gone before the group ends
            pair.peer.write_blocks_async(pair.source, ids, np.array([n + 10]), group=group)
        assert not any(op.done() for op in group.ops)
    assert all(op.error() is None and op.done() for op in group.ops)
    expect_only(pair, range(LAYERS), list(range(10)), list(range(10, 20)))


def test_a_group_whose_body_fails_posts_nothing(pair: Pair) -> None:
    with pytest.raises(ZeroDivisionError):
        with pair.writer.group(timeout=PATIENCE) as group:
            pair.peer.write_blocks_async(pair.source, [1], [1], group=group)
            1 / 0
    assert pair.to.sum() == 0
    pair.peer.write_blocks(pair.source, [1], [2])


def test_the_failure_of_one_of_a_group_is_raised(pair: Pair) -> None:
    with pytest.raises(kvrail.KvTimeoutError):
        with pair.writer.group(timeout=PATIENCE) as group:
            pair.peer.write_blocks_async(pair.source, [1], [1], group=group)
            pair.peer.send_blocks_async(pair.source, [2], 5, group=group, timeout=0.1)  # no lease of this tag
    assert [op.error() is None for op in group.ops] == [True, False]


# -- lifetimes


def test_operations_dropped_in_flight_leak_nothing_and_harm_nothing(pair: Pair) -> None:
    for n in range(300):
        try:
            pair.peer.write_blocks_async(pair.source, [n % BLOCKS], [(n + 1) % BLOCKS], n % LAYERS)
        except kvrail.CallError as exc:
            assert exc.name == "BUSY"  # 128 are unfinished: how fast they end is the machine's affair
    for tag in range(5):
        pair.back.recv_blocks_async(pair.target, [tag], tag=tag, timeout=0.2)
    gc.collect()
    pair.peer.write_blocks(pair.source, [1], [2])
    assert eventually(lambda: pair.writer.stats()["in_flight"] + pair.reader.stats()["in_flight"] == 0)


def test_a_blocking_call_waits_for_room_and_an_async_one_is_refused(pair: Pair) -> None:
    held = [pair.peer.send_blocks_async(pair.source, [1], 1000 + n, timeout=AGES) for n in range(128)]
    with pytest.raises(kvrail.CallError) as caught:
        pair.peer.write_blocks_async(pair.source, [1], [2])
    assert caught.value.name == "BUSY"
    with pytest.raises(kvrail.CallError, match="BUSY"):
        pair.peer.write_blocks(pair.source, [1], [2], timeout=0.1)
    threading.Timer(0.2, held[5].cancel).start()
    pair.peer.write_blocks(pair.source, [1], [2], timeout=PATIENCE)
    expect_only(pair, range(LAYERS), [1], [2])


def test_memory_lives_as_long_as_the_cache() -> None:
    class Array(np.ndarray):  # type: ignore[type-arg]
        pass

    memory = np.zeros((1, 4, 64), np.uint8).view(Array)
    alive = weakref.ref(memory)
    engine = kvrail.Engine()
    engine.register({"k": memory})
    del memory
    gc.collect()
    assert alive() is not None
    engine.close()
    del engine
    gc.collect()
    assert alive() is None


def test_arrays_of_a_pool_outlive_the_engine() -> None:
    with kvrail.Engine() as engine:
        view = np.asarray(engine.alloc(1 << 16))
        view[:] = 7
    assert view.sum() == 7 << 16
    view[:] = 1  # and can be written


def test_pools_are_written_directly(child: Child) -> None:
    with kvrail.Engine() as reader, kvrail.Engine() as writer:
        to = np.asarray(reader.alloc(LAYERS * BLOCKS * BYTES)).reshape(SHAPE)
        cache = reader.register({"k": to}, open=True)
        from_ = pattern(1, *SHAPE)
        mine = writer.register({"k": from_})
        peer = writer.connect("127.0.0.1", reader.listen())
        assert "pool" in peer.info().path
        peer.write_blocks(mine, [1], [2])
        assert np.array_equal(to[:, 2], from_[:, 1])
        assert cache.blocks == BLOCKS


def test_everything_says_closed_after_close(pair: Pair) -> None:
    op = pair.peer.write_blocks_async(pair.source, [1], [1])
    lease = pair.back.open_blocks(pair.target, [5])
    pair.writer.close()
    pair.reader.close()
    pair.writer.close()
    for call in (
        lambda: pair.peer.write_blocks(pair.source, [1], [1]),
        lambda: pair.writer.connect("127.0.0.1", 1),
        lambda: pair.writer.register({"k": pair.from_}),
        lambda: pair.writer.alloc(10),
        lambda: pair.writer.stats(),
        lambda: pair.writer.poll(),
        lambda: op.wait(1),
        lambda: pair.back.open_blocks(pair.target, [6]),
    ):
        with pytest.raises(kvrail.ClosedError):
            call()
    lease.close()
    assert not pair.peer.connected


def test_close_ends_the_waits_of_other_threads(pair: Pair) -> None:
    errors: List[BaseException] = []

    def wait() -> None:
        try:
            pair.back.recv_blocks(pair.target, [1], 9, timeout=AGES)
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    start = time.monotonic()
    pair.reader.close()
    for thread in threads:
        thread.join()
    assert time.monotonic() - start < PATIENCE
    # One of them waits; the others were refused, because the block is open under another lease.
    assert len(errors) == 3 and any(isinstance(e, kvrail.ClosedError) for e in errors)


def test_close_ends_a_wait_for_arrivals(pair: Pair) -> None:
    threading.Timer(0.2, pair.reader.close).start()
    start = time.monotonic()
    with pytest.raises(kvrail.ClosedError):
        pair.reader.next_arrival(AGES)
    assert time.monotonic() - start < PATIENCE


def test_threads_hammer_one_peer(pair: Pair) -> None:
    errors: List[BaseException] = []

    def work(block: int) -> None:
        try:
            for i in range(150):
                pair.peer.write_blocks(pair.source, [block], [block + 8], i % LAYERS, tag=i)
                pair.peer.write_blocks_async(pair.source, [block], [block + 8], i % LAYERS).wait(PATIENCE)
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    drain = threading.Thread(target=lambda: [pair.reader.next_arrival(0.5) for _ in range(8 * 300)])
    for thread in [drain, *threads]:
        thread.start()
    for thread in [drain, *threads]:
        thread.join()
    assert not errors
    expect_only(pair, range(LAYERS), list(range(8)), list(range(8, 16)))


def test_an_engine_that_is_forgotten_warns_and_is_closed() -> None:
    engine = kvrail.Engine()
    with held_port() as holder:
        port = engine.listen(port=holder.getsockname()[1])
        with pytest.warns(ResourceWarning, match="not closed"):
            del engine
            gc.collect()
        with kvrail.Engine() as other:
            assert other.listen(port=port) == port


# -- errors and arguments


def test_an_error_carries_what_is_known(pair: Pair) -> None:
    with pytest.raises(kvrail.ArgumentError) as caught:
        pair.peer.write_blocks(pair.source, [1, 2], [3, BLOCKS])
    e = caught.value
    assert isinstance(e, (kvrail.CallError, kvrail.KvError, ValueError))
    assert (e.name, e.code, e.scope) == ("BLOCK_ID", _core.ERR_BLOCK_ID, kvrail.Scope.CALL)
    assert (e.op, e.block_index, e.block_id) == ("write_blocks", 1, BLOCKS)
    assert e.peer.startswith("127.0.0.1:") and "remote_ids[1]" in e.cause and e.cause in str(e)
    assert pair.to.sum() == 0


@pytest.mark.parametrize(
    "call, error",
    [
        (lambda p: kvrail.Engine(progress="never"), ValueError),
        (lambda p: kvrail.Engine(options={"KVCACHE_SPIN_US": "many"}), kvrail.ArgumentError),
        (lambda p: kvrail.Engine(3), TypeError),
        (lambda p: p.writer.alloc(-1), ValueError),
        (lambda p: p.writer.alloc(0), kvrail.ArgumentError),
        (lambda p: p.writer.alloc("1"), TypeError),
        (lambda p: p.writer.connect(None, 1), TypeError),
        (lambda p: p.writer.connect("127.0.0.1", -1), ValueError),
        (lambda p: p.writer.connect("127.0.0.1", 1 << 20), ValueError),
        (lambda p: p.writer.connect("127.0.0.1", 1, timeout=-1), ValueError),
        (lambda p: p.writer.connect("127.0.0.1", 1, timeout=float("nan")), ValueError),
        (lambda p: p.writer.register({}), ValueError),
        (lambda p: p.writer.register({"k": 4096}), ValueError),
        (lambda p: p.writer.register({"k": []}), ValueError),
        (lambda p: p.writer.register({"k": "bytes"}), TypeError),
        (lambda p: p.writer.register({"k": b"bytes"}), ValueError),
        (lambda p: p.writer.register({"k": np.zeros((2, 4, 8))[:, :, ::2]}, cache_id=1), ValueError),
        (lambda p: p.writer.register({"k": [np.zeros((4, 8)), np.zeros((5, 8))]}, cache_id=1), ValueError),
        (lambda p: p.writer.register({"k": np.zeros((2, 4, 8))}, blocks=5, cache_id=1), TypeError),
        (lambda p: p.writer.register({"k": kvrail.Tensor(bytearray(64), 16)}, blocks=5, cache_id=1), ValueError),
        (lambda p: p.writer.register({"k" * 40: np.zeros((2, 4, 8))}, cache_id=1), kvrail.ArgumentError),
        (lambda p: p.writer.register({"k": np.zeros((2, 4, 8))}, cache_id=0), kvrail.CallError),
        (lambda p: p.writer.register({"k": np.zeros((2, 4, 8))}, cache_id=-1), ValueError),
        (lambda p: p.writer.register({"k": np.zeros((2, 4, 8)), "v": np.zeros((3, 4, 8))}, cache_id=1), ValueError),
        (lambda p: p.writer.register({"k": np.zeros((2, 4, 8))}, tp_size=2, tp_rank=2, cache_id=1), kvrail.ArgumentError),
        (lambda p: p.source.close(), kvrail.CallError),
        (lambda p: p.peer.write_blocks(p.source, [1], [2], range(0, 4, 2)), ValueError),
        (lambda p: p.peer.write_blocks(p.source, [1], [2], range(0)), ValueError),
        (lambda p: p.peer.write_blocks(p.source, [1], [2], (0, LAYERS + 1)), kvrail.ArgumentError),
        (lambda p: p.peer.write_blocks(p.source, [1], [2], "0"), TypeError),
        (lambda p: p.peer.write_blocks(p.source, [1], [2], tag=-1), OverflowError),
        (lambda p: p.peer.write_blocks(p.source, [1], [2], timeout=1e9), ValueError),
        (lambda p: p.peer.write_blocks(p.source, [1], [2], stream="0"), TypeError),
        (lambda p: p.peer.send_blocks(p.source, [1], 3, stream=0), kvrail.UnsupportedError),  # there is no CUDA
        (lambda p: p.peer.read_blocks_async(p.source, [1], [2], stream=7), kvrail.UnsupportedError),
        (lambda p: p.peer.write_blocks(p.target, [1], [2]), kvrail.ArgumentError),
        (lambda p: p.peer.write_blocks(p.source, [1], "ab"), TypeError),
        (lambda p: p.peer.write_blocks(p.source, np.zeros((2, 2), int), [1]), TypeError),
        (lambda p: p.peer.open_blocks(p.source, [], 1), kvrail.ArgumentError),
        (lambda p: p.peer.recv_blocks(p.source, [1, 1], 1), kvrail.ArgumentError),
        (lambda p: _core.transfer(1), TypeError),
        (lambda p: _core.listen(p.source._handle, None, 0), TypeError),
        (lambda p: _core.Handle(), TypeError),
        (lambda p: _core.op_test(7), TypeError),
        (lambda p: _core.dlpack_info(7), (TypeError, ValueError)),
    ],
)
def test_wrong_arguments_of_every_kind(pair: Pair, call: Any, error: Any) -> None:
    with pytest.raises(error):
        call(pair)
    assert pair.to.sum() == 0
    pair.peer.write_blocks(pair.source, [1], [2])


class Shrinking:
    """An id that empties the list it stands in."""

    def __init__(self, victim: List[Any]) -> None:
        self.victim = victim

    def __index__(self) -> int:
        self.victim.clear()
        return 1


def test_a_list_that_changes_while_it_is_read(pair: Pair) -> None:
    ids: List[Any] = []
    ids += [Shrinking(ids), 2, 3]
    with pytest.raises(IndexError):
        pair.peer.write_blocks(pair.source, ids, [1, 2, 3])


@pytest.mark.parametrize(
    "ids",
    [
        np.array([1, 2]),
        np.arange(10)[1:3],
        np.arange(10)[1:5][::2],
        np.array([1, 2], np.int32),
        np.array([1, 2], ">i8").astype("i8"),
        [True, 2],
        array.array("q", [1, 2]),
        memoryview(array.array("i", [1, 2])),
    ],
    ids=repr,
)
def test_ids_mean_the_same_in_every_form(pair: Pair, ids: Any) -> None:
    pair.peer.write_blocks(pair.source, ids, [8, 9])
    pair.peer.write_blocks(pair.source, [0, 3], ids)
    want = np.zeros_like(pair.to)
    want[:, [8, 9]], want[:, list(ids)] = pair.from_[:, list(ids)], pair.from_[:, [0, 3]]
    assert np.array_equal(pair.to, want)


def test_ids_of_another_byte_order_or_beyond_64_bits_are_refused(pair: Pair) -> None:
    pair.peer.write_blocks(pair.source, np.array([], np.int64), [])
    with pytest.raises(TypeError):
        pair.peer.write_blocks(pair.source, np.array([1, 2], ">i8"), [1, 2])
    with pytest.raises(OverflowError):
        pair.peer.write_blocks(pair.source, np.array([2**63], np.uint64), [1])
    assert not pair.to.any()


# -- memory


class OnlyDlpack:
    def __init__(self, held: Any) -> None:
        self._held = held

    def __dlpack__(self, **kwargs: Any) -> Any:
        return self._held.__dlpack__(**kwargs)


class OnCuda:
    __cuda_array_interface__ = {"shape": (2, 4, 8), "typestr": "<f2", "data": (1 << 40, False), "version": 3}


def written(kind: str) -> Any:
    """A cache of 2 layers x 4 blocks x 16 bytes from memory of this kind, after block 1 was written: its bytes."""
    plain = np.zeros((2, 4, 16), np.uint8)
    given: Any = plain
    more: Any = {}
    if kind == "list":
        given = [plain[0], plain[1]]
    elif kind == "dlpack":
        given = OnlyDlpack(plain)
    elif kind == "dlpack list":
        given = [OnlyDlpack(plain[0]), OnlyDlpack(plain[1])]
    elif kind == "bytearray":
        held = [bytearray(64), bytearray(64)]
        plain = held
        given = kvrail.Tensor(held, block_bytes=16)
    elif kind == "ctypes":
        held = [(ctypes.c_uint8 * 64)(), (ctypes.c_uint8 * 64)()]
        plain = held
        given = kvrail.Tensor(held, block_bytes=16)
    elif kind == "address":
        given, more = kvrail.Tensor([int(p.ctypes.data) for p in plain], 16), {"blocks": 4}
    elif kind == "strided":
        wide = np.zeros((2, 3, 4, 24), np.uint8)
        plain = given = wide[:, 1, :, 8:]
    with kvrail.Engine() as reader, kvrail.Engine() as writer:
        reader.register({"k": given}, open=True, **more)
        source = writer.register({"k": pattern(5, 2, 4, 16)})
        writer.connect("127.0.0.1", reader.listen()).write_blocks(source, [3], [1])
    return np.stack([np.frombuffer(p, np.uint8).reshape(4, 16) for p in plain]) if isinstance(plain, list) else plain


@pytest.mark.parametrize(
    "kind", ["array", "list", "dlpack", "dlpack list", "bytearray", "ctypes", "address", "strided"]
)
def test_memory_of_every_kind(kind: str) -> None:
    want = np.zeros((2, 4, 16), np.uint8)
    want[:, 1] = pattern(5, 2, 4, 16)[:, 3]
    assert np.array_equal(written(kind), want)


def dlpack_on(device: int, held: Any) -> Any:
    """As if the array lay in a device of this type."""
    capsule = held.__dlpack__()
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    ctypes.c_int32.from_address(pointer(capsule, b"dltensor") + 8).value = device
    return type("Tensor", (), {"__dlpack__": lambda self, **kwargs: capsule})()


HELD = np.zeros((2, 4, 16), np.uint8)
ON_A_GPU: List[Tuple[Any, List[int], int, int]] = [  # what, bases, block_bytes, stride
    (OnCuda(), [1 << 40, (1 << 40) + 64], 16, 16),
    (dlpack_on(2, HELD), [HELD.ctypes.data, HELD.ctypes.data + 64], 16, 16),
    (kvrail.Tensor([1 << 40, 1 << 41], 32, 48, cuda=True), [1 << 40, 1 << 41], 32, 48),
]


@pytest.mark.parametrize("what, bases, block_bytes, stride", ON_A_GPU)
def test_memory_on_a_gpu_is_registered_as_such(
    what: Any, bases: List[int], block_bytes: int, stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: List[Any] = []
    with kvrail.Engine() as engine:
        with monkeypatch.context() as patched, pytest.raises(StopIteration):

            def keep(*row: Any) -> Any:
                rows.extend(row)
                raise StopIteration

            patched.setattr("kvrail._core.cache_register", keep)
            engine.register({"k": what}, blocks=4)
        assert rows[4] == [("k", block_bytes, stride, 0, 0, bases)] and rows[-1] == 1
        # The library itself: no CUDA runs here, so nothing can have it.
        with pytest.raises(kvrail.UnsupportedError, match="CUDA does not run in this process"):
            engine.register({"k": what}, blocks=4)


def test_memory_of_other_devices_and_of_two_kinds_at_once_is_refused() -> None:
    with kvrail.Engine() as engine:
        with pytest.raises(kvrail.UnsupportedError, match="DLPack device type 10"):
            engine.register({"k": dlpack_on(10, HELD)})
        with pytest.raises(ValueError, match="some tensors are in a GPU's memory"):
            engine.register({"k": OnCuda(), "v": HELD})
        with pytest.raises(ValueError, match="some layers are in a GPU's memory"):
            engine.register({"k": [dlpack_on(2, HELD[0]), HELD[1]]})


def test_read_only_memory_is_refused() -> None:
    frozen = np.zeros((2, 4, 8))
    frozen.flags.writeable = False
    with kvrail.Engine() as engine, pytest.raises(ValueError, match="read-only"):
        engine.register({"k": frozen})


# -- looking inside


def test_stats_state_options_and_devices(pair: Pair) -> None:
    pair.peer.write_blocks(pair.source, [1, 2], [3, 4])
    assert pair.writer.stats()["blocks_out"] >= 2 and pair.writer.stats()["ok"] == 1
    assert "reader" in pair.writer.dump()
    options = {row[0]: row for row in pair.writer.options()}
    assert options["KVCACHE_SPIN_US"][6] == "default"


def test_devices_say_what_they_are_field_by_field(pair: Pair) -> None:
    devices = pair.writer.devices()
    (shm,) = [device for device in devices if device.transport == "shm"]
    assert shm.usable is True and shm.detail
    assert (shm.link, shm.gid, shm.pci, shm.distance, shm.reason) == ("", "", "", "", "")
    assert shm.speed_mbps == shm.mtu_bytes == shm.lid == 0
    kinds = get_type_hints(kvrail.Device)
    for device in devices:
        assert {name: type(value) for name, value in device._asdict().items()} == kinds


def test_a_port_in_use_tells_its_link_address_and_speed() -> None:
    with kvrail.Engine() as engine:
        ports = [device for device in engine.devices() if device.transport == "ib" and device.usable]
        if not ports:
            pytest.skip("no RDMA port is usable here")
        for port in ports:
            assert port.link in ("RoCE", "InfiniBand") and port.gid and port.reason
            assert port.speed_mbps > 0 and port.mtu_bytes in (256, 512, 1024, 2048, 4096)
            assert ipaddress.IPv6Address(port.gid)


def test_log_lines_reach_logging(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "kvrail"):
        with kvrail.Engine("logged", options={"KVCACHE_DEBUG": 1}) as engine:
            engine.listen()
    assert any(record.name == "kvrail" for record in caplog.records)


def test_progress_by_the_caller() -> None:
    with kvrail.Engine(progress="caller") as reader, kvrail.Engine() as writer:
        to = np.zeros((1, 4, 64), np.uint8)
        reader.register({"k": to}, open=True)
        port = reader.listen()
        source = writer.register({"k": pattern(1, 1, 4, 64)})
        done = threading.Event()

        def write() -> None:
            writer.connect("127.0.0.1", port).write_blocks(source, [1], [2])
            done.set()

        thread = threading.Thread(target=write)
        thread.start()
        end = time.monotonic() + PATIENCE
        while not done.is_set() and time.monotonic() < end:
            reader.progress(0.01)
        thread.join()
        assert np.array_equal(to[0, 2], pattern(1, 1, 4, 64)[0, 1])
