# SPDX-License-Identifier: Apache-2.0
"""Operations, leases and groups: what a peer's methods return."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import TYPE_CHECKING, Any, Dict, Generator, List, Optional, Type, TypeVar

from . import _core
from ._check import integer, milliseconds
from ._errors import KvError, KvTimeoutError

if TYPE_CHECKING:
    from ._engine import Engine, Peer

#: Grades of an operation: the source may be reused; all bytes are visible; the receiver has the arrival.
SENT, VISIBLE, ACKED = _core.SENT, _core.VISIBLE, _core.ACKED

_POLL_MAX_S = 0.001  # await looks this often in the end


C = TypeVar("C", bound="Closing")


class Closing:
    """`with`, for what has a close()."""

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self: C) -> C:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Op:
    """A transfer that goes on by itself. Dropping it neither cancels it nor waits for it; its source must stay as it is."""

    __slots__ = ("_handle", "name", "peer")

    def __init__(self, handle: _core.Handle, name: str, peer: "Peer") -> None:
        self._handle = handle
        self.name = name
        self.peer = peer

    def grade(self) -> int:
        """The highest of 0, SENT, VISIBLE, ACKED that it has reached. Raises what it ended with."""
        return _core.op_test(self._handle)

    def done(self) -> bool:
        """Whether it has ended, well or not."""
        try:
            return _core.op_test(self._handle) >= ACKED
        except KvError:
            return True

    def wait(self, timeout: Optional[float] = None, grade: int = ACKED) -> None:
        """Wait until it has reached `grade`. KvTimeoutError after `timeout` seconds, while the operation goes on."""
        if not _core.op_wait(self._handle, integer(grade, "grade", SENT, ACKED), milliseconds(timeout)):
            exc = KvTimeoutError(f"{self.name} has not ended within {timeout} s; it is still running")
            exc.code, exc.name, exc.op, exc.cause = _core.ERR_TIMEOUT, "TIMEOUT", "wait", str(exc)
            raise exc

    def result(self, timeout: Optional[float] = None) -> None:
        """The same as wait(timeout)."""
        self.wait(timeout)

    def error(self) -> Optional[KvError]:
        """What it failed with, None if it is still running or went well."""
        try:
            _core.op_test(self._handle)
        except KvError as exc:
            return exc
        return None

    def cancel(self, timeout: float = 5.0) -> None:
        """Stop it: after the return nothing of it can land and the source is the caller's again."""
        _core.op_cancel(self._handle, milliseconds(timeout))

    def __await__(self) -> Generator[Any, None, None]:
        """Ends when the operation has. Cancelling the task leaves the operation alone: see cancel()."""
        pause = 0.0
        while _core.op_test(self._handle) < ACKED:
            yield from asyncio.sleep(pause).__await__()
            pause = min(_POLL_MAX_S, pause * 2 or 0.00005)

    def __repr__(self) -> str:
        return f"<kvrail.Op {self.name} to {self.peer.name}>"


class Lease(Closing):
    """Blocks that one peer may write. close() (or leaving `with`) takes them back: then no byte can land any more."""

    def __init__(self, handle: _core.Handle, number: int, peer: "Peer") -> None:
        self._handle = handle
        self.id = number  #: what the writer names as lease=
        self.peer = peer

    def revoke(self, timeout: float = 5.0) -> None:
        """BUSY (CallError): a writer on this host does not answer; the blocks stay closed to others. Call again."""
        _core.close(self._handle, milliseconds(timeout))

    def close(self, timeout: float = 5.0) -> None:
        self.revoke(timeout)

    def __repr__(self) -> str:
        return f"<kvrail.Lease {self.id} for {self.peer.name}>"


class Group:
    """Transfers to many peers, posted together at the end of `with`, which raises if one of them failed.

        with engine.group(timeout=5.0) as group:
            for peer, ids in work:
                peer.write_blocks_async(cache, ids, ids, group=group)
        failed = [op for op in group.ops if op.error()]
    """

    def __init__(self, engine: "Engine", handle: _core.Handle, timeout: Optional[float]) -> None:
        self._handle = handle
        self._timeout = timeout
        self.engine = engine
        self.ops: List[Op] = []

    def end(self) -> None:
        """Post everything and wait for all. Raises the first failure; every op keeps its own."""
        _core.close(self._handle, milliseconds(self._timeout, default=60.0))

    def __enter__(self) -> "Group":
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], exc: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        if kind is None:
            self.end()
            return
        # The body failed: nothing was posted yet, and nothing shall be.
        for op in self.ops:
            try:
                op.cancel(0.0)
            except KvError:
                pass
        try:
            _core.close(self._handle, 0)
        except KvError:
            pass

    def __repr__(self) -> str:
        return f"<kvrail.Group {len(self.ops)} operations>"


class Comm(Closing):
    """The engines of several processes, connected with each other: what Engine.comm() returns.

    peers: the peer of each rank that this one is connected to. They are closed with the communicator, not by themselves.
    """

    def __init__(self, engine: "Engine", handle: _core.Handle, rank: int, peers: "Dict[int, Peer]") -> None:
        self._handle = handle
        self.engine = engine
        self.rank = rank
        self.peers = peers

    def close(self, timeout: float = 5.0) -> None:
        _core.close(self._handle, milliseconds(timeout))
        for peer in self.peers.values():
            self.engine._peers.pop(peer._ident, None)

    def __repr__(self) -> str:
        return f"<kvrail.Comm rank {self.rank}, peers {sorted(self.peers)}>"
