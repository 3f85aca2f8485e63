# SPDX-License-Identifier: Apache-2.0
"""Every public callable with every kind of wrong argument: an error that names the argument, and nothing moved."""

from __future__ import annotations

import inspect
import math
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Set, Tuple

import numpy as np
import pytest
from children import PATIENCE
from conftest import Pair

import kvrail
import rdma_comm
from kvrail import _core


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


HOSTILE: List[Any] = [
    None, True, -1, 2**31, 2**32, 2**63, 2**64, 10**40, 0.5, -0.5, math.nan, math.inf, -math.inf, 1j,
    "", "x", "12", "\0", "a\0b", "\udc80", "ü" * 200, b"", b"\xff", bytearray(3), memoryview(b"abc"),
    [], [None], [[]], [2**70], [-1], ["1"], [1.5], (), (1,), (1, 2, 3), ("a", "b"), {}, {"k": 1}, {1: 2}, {"a\0": 1}, set(), range(0),
    range(5, 1), range(0, 9, 3), range(-4, -1), object(), type, len, lambda: 0, iter([1]), (i for i in [1]), Liar(), NotImplemented, ...,
    np.zeros(3), np.zeros((2, 2), int), np.array(1), np.array("x"), np.array([None]), np.zeros(0), np.float32(1.5), np.datetime64(1, "s"),
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
    transfer: Dict[str, Any] = {"cache": cache, **ids, "tag": 1, "lease": 0}
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
                "blocks": None,
                "cache_id": 3,
                "tp_size": 1,
                "tp_rank": 0,
                "block_tokens": 0,
                "dtype": 0,
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
        "Peer.write_blocks": Target(peer.write_blocks, transfer),
        "Peer.write_blocks_async": Target(peer.write_blocks_async, {**transfer, "group": None}),
        "Peer.read_blocks": Target(peer.read_blocks, {"cache": cache, **ids}),
        "Peer.read_blocks_async": Target(peer.read_blocks_async, {"cache": cache, **ids, "group": None}),
        "Peer.send_blocks": Target(peer.send_blocks, {"cache": cache, **two}),
        "Peer.send_blocks_async": Target(peer.send_blocks_async, {"cache": cache, **two, "group": None}),
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
            if argument == "timeout" and name in WAITING and (value is None or isinstance(value, float) and value > 0):
                continue
            before = pair.to.copy()
            try:
                target.call(**{**target.good, argument: value})
            except ALLOWED as exc:
                refused += 1
                if isinstance(exc, ZeroDivisionError):
                    assert isinstance(value, Liar)
                elif not isinstance(exc, kvrail.KvError) and not named(exc, argument):
                    complaints.append(f"{argument}={value!r}: {type(exc).__name__}: {exc}")
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
