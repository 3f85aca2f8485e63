# SPDX-License-Identifier: Apache-2.0
"""Every public callable with every kind of wrong argument: an error that names the argument, and nothing moved."""

from __future__ import annotations

import array
import copy
import ctypes
import gc
import inspect
import math
import os
import pickle
import sys
import time
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Set, Tuple

import numpy as np
import pytest
from children import PATIENCE
from conftest import Pair

import kvrail
import rdma_comm
from kvrail import _core
from kvrail._check import shown


class Liar:
    """Claims to be everything and fails at each."""

    def __index__(self) -> int:
        raise ZeroDivisionError("index")

    def __float__(self) -> float:
        raise ZeroDivisionError("float")

    def __len__(self) -> int:
        return 3

    def __getitem__(self, at: int) -> int:
        raise ZeroDivisionError("item")

    def __iter__(self) -> Iterator[int]:
        raise ZeroDivisionError("iter")


class Number(int):
    """An integer of a class of its own."""


class NoCapsule:
    """Memory, it says."""

    __array_struct__ = 5

    def __dlpack__(self, **kwargs: Any) -> int:
        return 5


def frozen() -> Any:
    memory = np.zeros((2, 4, 8), np.uint8)
    memory.flags.writeable = False
    return memory


HOSTILE: List[Any] = [
    None, True, -1, 2**31, 2**32, 2**63, 2**64, 10**40, 0.5, -0.5, math.nan, math.inf, -math.inf, 1j,
    "", "x", "12", "\0", "a\0b", "\udc80", "ü" * 200, b"", b"\xff", bytearray(3), memoryview(b"abc"),
    [], [None], [[]], [2**70], [-1], ["1"], [1.5], (), (1,), (1, 2, 3), ("a", "b"), {}, {"k": 1}, {1: 2}, {"a\0": 1}, set(), range(0),
    range(5, 1), range(0, 9, 3), range(-4, -1), object(), type, len, lambda: 0, iter([1]), (i for i in [1]), Liar(), NotImplemented, ...,
    np.zeros(3), np.zeros((2, 2), int), np.array(1), np.array("x"), np.array([None]), np.zeros(0), np.float32(1.5), np.datetime64(1, "s"),
    10**5000, -(10**5000), [10**5000], 1.0, np.float64(1.0), "9" * 5000, "a" * 5000, "a\nb", {1}, frozenset([1]), Number(-7), [Number(-7)], [True, None],
    np.zeros(3)[::-1], np.array([3, 2, 1])[::-1].astype(">i8"), np.zeros(3, bool), np.zeros(3, complex), np.zeros(2, [("a", "i8")]), frozen(),
    np.ma.array([1, 2], mask=[True, False]), np.zeros((2, 4, 8), object), memoryview(np.zeros((2, 2))), memoryview(np.zeros(3)), array.array("d", [1.0]), NoCapsule(), [NoCapsule()],
]  # fmt: skip

#: Errors that a wrong argument may raise. Liar's own comes through, as any exception of an argument's own code does.
ALLOWED = (TypeError, ValueError, OverflowError, kvrail.KvError, ZeroDivisionError)
#: By what other words an error may name an argument.
ALIASES = {
    "timeout": {"timeout", "deadline"},
    "local_block_ids": {"local_ids"},
    "remote_block_ids": {"remote_ids", "destination"},
    "remote_ids": {"remote", "local ids"},
    "local_ids": {"local", "remote_ids"},
    "ids": {"local", "remote", "block"},
    "dst_port": {"port"},
    "dst_ip": {"host", "connect to"},
    "ip": {"dst_ip", "not connected"},
    "layer_idx": {"layer"},
    "layers": {"layer"},
    "tensors": {"tensor", "memory", "cache", "buffer"},
    "host": {"connect", "resolve", "127", "name"},
    "nbytes": {"len", "memory", "bytes", "alloc"},
    "rank": {"rank"},
    "blocks": {"block", "memory"},
    "cache_id": {"cache"},
    "block_tokens": {"tokens"},
    "options": {"option"},
    "group": {"group", "rank"},
    "stream": {"stream", "CUDA"},
    "allgather": {"allgather", "<lambda>"},
}


class Target(NamedTuple):
    call: Callable[..., Any]
    good: Dict[str, Any]
    skip: Tuple[str, ...] = ()  # arguments of which every value is a good one


def targets(p: Pair, comm: rdma_comm.RDMACommunicator, port: int) -> Dict[str, Target]:
    """Every public method with arguments that are good."""
    memory = np.zeros((2, 4, 64), np.uint8)
    peer, cache, ids = p.peer, p.source, {"local_ids": [1], "remote_ids": [2], "layers": 0, "timeout": PATIENCE}
    two = {"ids": [1], "tag": 7, "layers": 0, "timeout": 0.01}
    transfer: Dict[str, Any] = {"cache": cache, **ids, "tag": 1, "lease": 0, "stream": None}
    read, send = {"cache": cache, **ids, "stream": None}, {"cache": cache, **two, "stream": None}
    ends: Dict[str, Any] = {"rank": 0, "ranks": 1, "allgather": lambda mine: [mine], "group": None, "host": None, "timeout": PATIENCE}
    engine = p.writer

    def op() -> kvrail.Op:
        made = peer.write_blocks_async(cache, [1], [2], 0)
        made.wait(PATIENCE)
        return made

    def registered(**arguments: Any) -> None:
        engine.register(**arguments).close()

    def made(**arguments: Any) -> None:
        kvrail.Engine(**arguments).close()

    def communicator(**arguments: Any) -> None:
        rdma_comm.RDMACommunicator(**arguments).close()

    def joined(**arguments: Any) -> None:
        engine.comm(**arguments).close()

    def opened(**arguments: Any) -> None:
        p.back.open_blocks(p.target, **arguments).close()

    return {
        "Engine.__init__": Target(made, {"name": "n", "progress": "auto", "options": {}, "arrivals": True}, ("arrivals",)),
        "Engine.alloc": Target(engine.alloc, {"nbytes": 4096}),
        "Engine.register": Target(
            registered,
            {
                "tensors": {"k": memory},
                "layers": None,
                "blocks": None,
                "cache_id": 3,
                "tp_size": 1,
                "tp_rank": 0,
                "block_tokens": 0,
                "dtype": 0,
                "order": None,
                "kv_heads": 0,
                "open": False,
                "readable": False,
            },
            ("open", "readable"),
        ),
        "Engine.listen": Target(engine.listen, {"host": None, "port": 0}),
        "Engine.connect": Target(engine.connect, {"host": "127.0.0.1", "port": 1, "timeout": 0.1}),
        "Engine.comm": Target(joined, ends),
        "Engine.group": Target(lambda **a: engine.group(**a).end(), {"timeout": PATIENCE}),
        "Engine.poll": Target(engine.poll, {"max": 4}),
        "Engine.next_arrival": Target(engine.next_arrival, {"timeout": 0.0}),
        "Engine.progress": Target(engine.progress, {"timeout": 0.0}),
        "Peer.write_blocks": Target(peer.write_blocks, {**transfer, "timeout": 0.1}),  # a lease that is not there is waited for
        "Peer.write_blocks_async": Target(peer.write_blocks_async, {**transfer, "group": None}),
        "Peer.read_blocks": Target(peer.read_blocks, read),
        "Peer.read_blocks_async": Target(peer.read_blocks_async, {**read, "group": None}),
        "Peer.send_blocks": Target(peer.send_blocks, send),
        "Peer.send_blocks_async": Target(peer.send_blocks_async, {**send, "group": None}),
        "Peer.recv_blocks": Target(peer.recv_blocks, {"cache": cache, **two}),
        "Peer.recv_blocks_async": Target(peer.recv_blocks_async, {"cache": cache, **two, "group": None}),
        "Peer.open_blocks": Target(
            lambda cache, **a: p.back.open_blocks(cache, **a).close(), {"cache": p.target, "ids": [1], "tag": 1, "lifetime": 1.0}
        ),
        "Op.wait": Target(lambda **a: op().wait(**a), {"timeout": PATIENCE, "grade": kvrail.ACKED}),
        "Op.result": Target(lambda **a: op().result(**a), {"timeout": PATIENCE}),
        "Op.cancel": Target(lambda **a: op().cancel(**a), {"timeout": PATIENCE}),
        "Lease.revoke": Target(lambda **a: p.back.open_blocks(p.target, [3]).revoke(**a), {"timeout": PATIENCE}),
        "Comm.close": Target(lambda **a: engine.comm(0, 1, lambda mine: [mine]).close(**a), {"timeout": PATIENCE}),
        "RDMACommunicator.__init__": Target(
            communicator,
            {
                "splitwise_role": "prefill",
                "gpu_idx": 0,
                "port": "0",
                "key_cache_ptrs": [4096],
                "value_cache_ptrs": [4096],
                "block_number": 4,
                "block_bytes": 64,
                "key_scale_ptrs": [4096],
                "value_scale_ptrs": [4096],
                "scale_block_bytes": 16,
                "prefill_tp_size": 1,
                "prefill_tp_idx": 0,
                "kv_heads": 0,
            },
        ),
        "RDMACommunicator.connect": Target(comm.connect, {"dst_ip": "127.0.0.1", "dst_port": port, "dst_tp_size": 0}),
        "RDMACommunicator.is_connected": Target(
            comm.is_connected, {"dst_ip": "127.0.0.1", "dst_port": port}, ("dst_port",)
        ),
        "RDMACommunicator.write_cache": Target(
            comm.write_cache,
            {"dst_ip": "127.0.0.1", "dst_port": port, "local_block_ids": [0], "remote_block_ids": [1], "layer_idx": 0},
        ),
    }


#: Public, and judged elsewhere or without an argument that can be wrong.
WITHOUT = {
    "Peer.close",  # Lease.revoke is the same check
    "Lease.close",
}

#: These wait for as long as they are told.
WAITING = {"Peer.send_blocks", "Peer.recv_blocks", "Engine.next_arrival"}


def waits(name: str, argument: str, value: Any) -> bool:
    if argument != "timeout" or name not in WAITING:
        return False
    try:
        return value is None or 0 < float(value) < 1e6
    except (TypeError, ValueError, ArithmeticError):
        return False


def public() -> Set[str]:
    """Every method with arguments that the packages offer."""
    found = set()
    classes: List[Any] = [kvrail.Engine, kvrail.Cache, kvrail.Peer, kvrail.Memory, kvrail.Op, kvrail.Lease, kvrail.Group, kvrail.Comm]
    for cls in [*classes, rdma_comm.RDMACommunicator]:
        for name, member in vars(cls).items():
            made_by_users = cls in (kvrail.Engine, rdma_comm.RDMACommunicator) and name == "__init__"
            if inspect.isfunction(member) and (not name.startswith("_") or made_by_users):
                if len(inspect.signature(member).parameters) > 1:
                    found.add(f"{cls.__name__}.{name}")
    return found


@pytest.fixture
def all_targets(pair: Pair) -> Iterator[Dict[str, Target]]:
    memory = np.zeros((1, 4, 64), np.uint8)
    at = [memory.ctypes.data]
    with rdma_comm.RDMACommunicator("decode", 0, 0, at, [], 4, 64) as decode:
        with rdma_comm.RDMACommunicator("prefill", 0, 0, at, [], 4, 64) as comm:
            assert comm.connect("127.0.0.1", decode.port)
            yield targets(pair, comm, decode.port)


def test_every_public_method_is_walked(all_targets: Dict[str, Target]) -> None:
    assert public() - WITHOUT == set(all_targets)
    for name, target in all_targets.items():
        if name != "RDMACommunicator.__init__":
            cls = getattr(kvrail, name.split(".")[0], None) or rdma_comm.RDMACommunicator
            wanted = list(inspect.signature(getattr(cls, name.split(".")[1])).parameters)[1:]
            assert set(target.good) >= set(wanted) - {"ip", "port"}, name


def named(exc: BaseException, argument: str) -> bool:
    words = {argument} | ALIASES.get(argument, set())
    return any(word in str(exc) for word in words)


@pytest.mark.parametrize("name", sorted(public() - WITHOUT))
def test_a_wrong_argument_is_refused_by_name(all_targets: Dict[str, Target], name: str, pair: Pair) -> None:
    target = all_targets[name]
    complaints = []
    for argument in target.good:
        refused = 0
        for value in HOSTILE:
            if waits(name, argument, value):
                continue
            before = pair.to.copy()
            try:
                target.call(**{**target.good, argument: value})
            except ALLOWED as exc:
                refused += 1
                if isinstance(exc, ZeroDivisionError):
                    assert isinstance(value, Liar)
                elif not isinstance(exc, kvrail.KvError) and not named(exc, argument):
                    complaints.append(f"{argument}={shown(value)}: {type(exc).__name__}: {exc}")
                if isinstance(exc, (TypeError, ValueError)) and not isinstance(exc, kvrail.KvError):
                    assert np.array_equal(pair.to, before)
        if argument not in target.skip:
            assert refused > len(HOSTILE) // 3 or name.startswith("RDMACommunicator"), (argument, refused)
    assert not complaints, "\n".join(complaints)


@pytest.mark.parametrize("name", sorted(n for n in dir(_core) if callable(getattr(_core, n)) and n != "Handle"))
def test_the_extension_survives_anything(pair: Pair, name: str) -> None:
    """Wrong kinds of handle, wrong numbers of arguments, wrong types at each place."""
    if name == "set_error_factory":
        return  # takes any object, once, from the package itself
    function = getattr(_core, name)
    handles = [pair.writer._handle, pair.peer._handle, pair.source._handle, _core.alloc(pair.writer._handle, 64)]
    for count in range(13):
        for value in [*HOSTILE, *handles]:
            try:
                function(*[value] * count)
            except ALLOWED:
                pass
            except (ZeroDivisionError, UnicodeError, BufferError):
                pass
    first: List[Any] = [pair.writer._handle] if name != "close" else [_core.alloc(pair.writer._handle, 64)]
    for value in HOSTILE:
        for count in (1, 2, 3, 5, 6, 9):
            try:
                function(*first, *[value] * count)
            except ALLOWED:
                pass


class Heap(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]


def heap_bytes() -> int:
    """What malloc has given out, in all threads; 0 where the C library cannot tell."""
    try:
        mallinfo2 = ctypes.CDLL(None).mallinfo2
    except AttributeError:
        return 0
    mallinfo2.restype = Heap
    return int(mallinfo2().uordblks)


def refused(name: str, target: Target) -> List[Dict[str, Any]]:
    """Every wrong call that is refused at once."""
    found = []
    for argument in target.good:
        for value in HOSTILE:
            if waits(name, argument, value):
                continue
            arguments = {**target.good, argument: value}
            begun = time.monotonic()
            try:
                target.call(**arguments)
            except ALLOWED:
                if time.monotonic() - begun < 0.005:
                    found.append(arguments)
    return found


@pytest.mark.parametrize("name", sorted(public() - WITHOUT))
def test_what_is_refused_again_and_again_costs_nothing(all_targets: Dict[str, Target], name: str) -> None:
    target, kept = all_targets[name], [*HOSTILE, *all_targets[name].good.values()]
    calls = refused(name, target)

    def play(times: int) -> None:
        for _ in range(times):
            for arguments in calls:
                try:
                    target.call(**arguments)
                except ALLOWED:
                    pass
        gc.collect()

    long = "KVRAIL_LONG" in os.environ
    rounds = 1000 if long else 10
    play(rounds)  # caches and free lists fill
    before = [sys.getrefcount(value) for value in kept], sys.getallocatedblocks(), heap_bytes()
    play(rounds)
    blocks, heap = sys.getallocatedblocks() - before[1], heap_bytes() - before[2]
    few = rounds if long else 100 + rounds * len(calls) // 3  # what one wrong call in so many may leave
    assert blocks < few, f"{blocks} blocks of Python's in {rounds} rounds of {len(calls)} calls"
    assert heap < max(64 * 1024, 16 * few), f"{heap} bytes of malloc's in {rounds} rounds of {len(calls)} calls"
    grown = [shown(v) for v, n in zip(kept, before[0]) if sys.getrefcount(v) > n + 2 and type(v) not in (bool, int, type(None))]
    assert not grown


def test_memory_whose_parts_overlap_is_refused_whatever_its_shape_says() -> None:
    memory, strided = np.zeros((2, 8, 64), np.uint8), np.lib.stride_tricks.as_strided
    for wrong in (
        strided(memory, (2, 1000, 64), (512, 0, 1)),
        strided(memory, (2, 8, 64), (512, 32, 1)),
        memory[:, ::-1],
        memory[:, :, ::-1],
        memory[:, :, ::2],
        strided(memory, (2**40, 8, 64), (0, 64, 1)),
    ):
        with kvrail.Engine() as engine, pytest.raises(ValueError, match="tensor k"):
            engine.register({"k": wrong})


def test_blocks_of_two_tensors_or_layers_that_share_bytes_are_refused() -> None:
    memory = np.zeros((2, 8, 2, 64), np.uint8)
    k, v, layers_in_blocks = memory[:, :, 0], memory[:, :, 1], np.moveaxis(np.zeros((8, 2, 64), np.uint8), 1, 0)
    with kvrail.Engine() as engine:
        for wrong in ({"k": k, "v": k}, {"k": k, "v": memory[:, :, 0, 32:]}, {"k": [k[0], k[0]]}, {"k": np.broadcast_to(k[0], k.shape)}):
            with pytest.raises((kvrail.KvError, ValueError), match="share bytes|read-only"):
                engine.register(wrong)
        with pytest.raises(kvrail.ArgumentError) as caught:
            engine.register({"k": [k[0], k[1]], "v": [v[0], k[1]]})
        assert "tensor[0] (k) of layer 1 and tensor[1] (v) of layer 1 share bytes" in str(caught.value)
        assert "move the memory of a tensor or a layer so that each block" in caught.value.hint
        engine.register({"k": k, "v": v}, cache_id=1).close()
        engine.register({"k": layers_in_blocks}, cache_id=1).close()


@pytest.mark.parametrize("block_bytes, stride", [(0, None), (-1, None), (2**64 + 64, None), (64, -64), (64, 2**64 + 64)])
def test_sizes_beyond_any_field_are_refused_and_not_cut_off(block_bytes: int, stride: Any) -> None:
    memory = np.zeros((1, 8, 64), np.uint8)
    for layers in (memory, [memory.ctypes.data]):
        with kvrail.Engine() as engine, pytest.raises(ValueError, match="of tensor k is -?[0-9]"):
            engine.register({"k": kvrail.Tensor(layers, block_bytes, stride)}, blocks=8)


def test_nobody_gets_a_second_owner_of_an_engine(pair: Pair) -> None:
    at = [pair.from_[0].ctypes.data]
    with rdma_comm.RDMACommunicator("prefill", 0, 0, at, [], 4, 64) as comm:
        for owner in (pair.writer, comm):
            for way in (copy.copy, copy.deepcopy, pickle.dumps):
                with pytest.raises(TypeError, match="cannot be copied"):
                    way(owner)
    pair.peer.write_blocks(pair.source, [1], [2])


def test_a_port_is_an_integer_or_digits_in_every_call() -> None:
    memory = np.zeros((4, 64), np.uint8)
    at = [memory.ctypes.data]
    with rdma_comm.RDMACommunicator("decode", 0, 0, at, [], 4, 64) as decode:
        with rdma_comm.RDMACommunicator("prefill", 0, 0, at, [], 4, 64) as comm:
            assert comm.connect("127.0.0.1", decode.port)
            with pytest.raises(TypeError, match="port is a float"):
                comm.write_cache("127.0.0.1", float(decode.port), [0], [1], 0)
            with pytest.raises(TypeError, match="two values for 'dst_ip'"):
                comm.write_cache("127.0.0.1", decode.port, [0], [1], 0, ip="127.0.0.1")
            with pytest.raises(TypeError, match="two values for 'dst_port'"):
                comm.write_cache("127.0.0.1", decode.port, [0], [1], 0, port=decode.port)
            assert comm.write_cache("127.0.0.1", decode.port, [0], [1], 10**5000) == -1
            assert "an integer of 16610 bits" in comm.last_error()
            assert not comm.connect("a\nb", "9" * 5000) and "\n" not in comm.last_error() and len(comm.last_error()) < 400
        assert not comm.connect("127.0.0.1", decode.port) and "was closed" in comm.last_error()
        assert comm.write_cache("127.0.0.1", decode.port, [0], [1], 0) == -1 and "was closed" in comm.last_error()


def test_pointers_without_an_order_and_misspelt_keywords_are_refused() -> None:
    for pointers in ({1, 2}, frozenset([1, 2]), {1: 2}, bytearray(b"abc"), "abc"):
        with pytest.raises(TypeError, match="key_cache_ptrs must be a list"):
            rdma_comm.RDMACommunicator("prefill", 0, 0, pointers, [], 4, 64)
    with pytest.raises(TypeError, match="'block_nmber'; did you mean 'block_number'"):
        rdma_comm.RDMACommunicator("prefill", 0, 0, [1], [], block_nmber=4, block_bytes=64)
