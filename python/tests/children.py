# SPDX-License-Identifier: Apache-2.0
"""The other process of a test: runs one function at a time on objects that live there."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import time
import traceback
from typing import Any, Callable, Dict, List

import numpy as np

_context = multiprocessing.get_context("spawn")

#: For what surely comes, on whatever machine (KVRAIL_TEST_SLOW: tests/lib/slow.h); AGES: for what must not be waited for.
PATIENCE = 30.0 * int(os.environ.get("KVRAIL_TEST_SLOW", "1"))
AGES = 10 * PATIENCE


def eventually(holds: Callable[[], bool]) -> bool:
    """What another thread does a moment later."""
    end = time.monotonic() + PATIENCE
    while not holds() and time.monotonic() < end:
        time.sleep(0.005)
    return holds()


def held_port() -> "socket.socket":
    """A socket whose port nobody else is given while it is open; a listener of ours may share it."""
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", 0))
    return holder


def _serve(pipe: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    world: Dict[str, Any] = {}
    while True:
        try:
            function, args = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((True, function(world, *args)))
        except BaseException:
            pipe.send((False, traceback.format_exc()))


class Child:
    """call(f, *args) runs f(world, *args) there and returns what it returns."""

    def __init__(self) -> None:
        self._pipe, other = _context.Pipe()
        self.process = _context.Process(target=_serve, args=(other,), daemon=True)
        self.process.start()
        other.close()

    def call(self, function: Callable[..., Any], *args: Any, timeout: float = PATIENCE) -> Any:
        self._pipe.send((function, args))
        assert self._pipe.poll(timeout), f"{function.__name__} did not return"
        ok, value = self._pipe.recv()
        assert ok, value
        return value

    def kill(self) -> None:
        self.process.kill()
        self.process.join()

    def close(self) -> None:
        self._pipe.close()
        self.process.join(PATIENCE)
        if self.process.is_alive():
            self.kill()


# -- functions for Child.call


def open_decode(world: Dict[str, Any], shapes: List[Any], *args: Any, **kwargs: Any) -> int:
    """A communicator over arrays [layers, blocks, bytes] for keys, values, key scales, value scales."""
    from rdma_comm import RDMACommunicator

    arrays = [np.zeros(shape, np.uint8) for shape in shapes]
    port = args[0]
    lists = [[a[l].ctypes.data for l in range(a.shape[0])] for a in arrays]
    rest = list(args[1:])
    blocks, block_bytes = shapes[0][1:]
    call = ["decode", 0, port, lists[0], lists[1] if len(lists) > 1 else [], blocks, block_bytes]
    if len(lists) > 2:
        call += [lists[2], lists[3], shapes[2][2]]
    world["comm"] = RDMACommunicator(*call, *rest, **kwargs)
    world["arrays"] = arrays
    return int(world["comm"].port)


def set_environment(world: Dict[str, Any], variables: Dict[str, str]) -> None:
    os.environ.update(variables)


def arrays(world: Dict[str, Any]) -> List[Any]:
    return [a.copy() for a in world["arrays"]]


def close_decode(world: Dict[str, Any]) -> None:
    world.pop("comm").close()


def open_engine(world: Dict[str, Any], shape: Any, options: Dict[str, object], kwargs: Dict[str, Any]) -> int:
    import kvrail

    world["engine"] = kvrail.Engine("decode", options=options)
    world["memory"] = np.zeros(shape, np.uint8)
    world["cache"] = world["engine"].register({"k": world["memory"]}, **kwargs)
    return int(world["engine"].listen())


def memory(world: Dict[str, Any]) -> Any:
    return world["memory"].copy()


def fill(world: Dict[str, Any], seed: int) -> None:
    world["memory"][:] = np.random.default_rng(seed).integers(1, 255, world["memory"].shape, np.uint8)


def arrivals(world: Dict[str, Any], n: int) -> List[Any]:
    """The next n, without the objects."""
    got = []
    for _ in range(n):
        a = world["engine"].next_arrival(PATIENCE)
        assert a is not None, "no arrival"
        got.append((a.kind.name, a.layers, a.tag, a.lease, a.blocks, a.bytes))
    return got


def open_blocks(world: Dict[str, Any], ids: List[int], tag: int) -> int:
    world["lease"] = world["engine"].peers[0].open_blocks(world["cache"], ids, tag)
    return int(world["lease"].id)


def revoke(world: Dict[str, Any]) -> None:
    world.pop("lease").revoke()


def recv_blocks(world: Dict[str, Any], ids: List[int], tag: int) -> None:
    world["recv"] = world["engine"].peers[0].recv_blocks_async(world["cache"], ids, tag)


def recv_wait(world: Dict[str, Any]) -> None:
    world.pop("recv").wait(PATIENCE)
