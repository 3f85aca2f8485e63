# SPDX-License-Identifier: Apache-2.0
"""The events of a receiver, and an async iterator over them."""

from __future__ import annotations

import asyncio
import enum
from typing import TYPE_CHECKING, AsyncIterator, NamedTuple, Optional

from . import _core
from ._errors import ClosedError

if TYPE_CHECKING:
    from ._engine import Cache, Engine, Peer


class ArrivalKind(enum.IntEnum):
    BLOCKS = _core.ARRIVAL_BLOCKS  #: `blocks` blocks of `layers` are visible
    PEER_UP = _core.ARRIVAL_PEER_UP  #: a peer has connected to us
    PEER_LOST = _core.ARRIVAL_PEER_LOST  #: `peer` is gone; close it
    EXPIRED = _core.ARRIVAL_EXPIRED  #: a lease has passed its lifetime
    UNFINISHED = _core.ARRIVAL_UNFINISHED  #: before PEER_LOST: an open lease, or an operation without one, may be written in part

    @classmethod
    def _missing_(cls, value: object) -> Optional["ArrivalKind"]:
        """A kind that this version does not know is shown as such: it must not cost the arrivals beside it."""
        if not isinstance(value, int):
            return None
        kind = int.__new__(cls, value)
        kind._name_, kind._value_ = f"KIND_{value}", value
        return kind


class Arrival(NamedTuple):
    kind: ArrivalKind
    peer: Optional[Peer]  #: None if it was closed meanwhile
    cache: Optional[Cache]
    layers: range
    tag: int
    lease: int  #: 0: written without one
    blocks: int
    bytes: int
    status: int


class Arrivals(AsyncIterator[Arrival]):
    """Sleeps on the engine's descriptor in the running loop. Ends when the engine is closed."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __aiter__(self) -> Arrivals:
        return self

    async def __anext__(self) -> Arrival:
        loop = asyncio.get_running_loop()
        while not self._engine.closed:
            try:
                # One at a time: what an iterator that is left early had taken would be lost with it.
                got = self._engine.poll(1)
                if got:
                    return got[0]
                await self._readable(loop)
            except ClosedError:
                break
        raise StopAsyncIteration

    async def _readable(self, loop: asyncio.AbstractEventLoop) -> None:
        fd = self._engine.fileno()
        ready: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            if not ready.done():
                ready.set_result(None)

        loop.add_reader(fd, wake)
        try:
            # The descriptor goes with the engine, so an engine closed elsewhere is looked for too.
            await asyncio.wait_for(ready, 0.5)
        except asyncio.TimeoutError:
            pass
        finally:
            loop.remove_reader(fd)
