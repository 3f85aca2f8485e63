# SPDX-License-Identifier: Apache-2.0
"""Move blocks of a paged KV cache between processes.

    with kvrail.Engine() as engine:
        keys = np.zeros((layers, blocks, block_bytes), np.uint8)
        cache = engine.register({"k": keys})
        peer = engine.connect("127.0.0.1", port)
        peer.write_blocks(cache, [3, 1, 4], [40, 7, 23])     # returns when the other side has them

Every failure is a KvError whose class says what to do: CallError (fix the call), RequestError (try again), PeerError
(connect again), DeviceError (fix the device or the limit, then open a new engine). The rest is in docs/python.md.
"""

from ._core import version as _version
from ._engine import Cache, Engine, Ids, Layers, Memory, Peer
from ._errors import (
    ArgumentError,
    CallError,
    CancelledError,
    ClosedError,
    DeviceError,
    KvError,
    KvTimeoutError,
    PeerError,
    PeerLostError,
    RequestError,
    ResourceError,
    Scope,
    UnreachableError,
    UnsupportedError,
)
from ._arrivals import Arrival, ArrivalKind
from ._info import Device, Option, PeerInfo
from ._memory import MemoryLike, Tensor
from ._ops import ACKED, SENT, VISIBLE, Comm, Group, Lease, Op

__version__ = _version()

__all__ = [
    "ACKED",
    "SENT",
    "VISIBLE",
    "ArgumentError",
    "Arrival",
    "ArrivalKind",
    "Cache",
    "CallError",
    "CancelledError",
    "ClosedError",
    "Comm",
    "Device",
    "DeviceError",
    "Engine",
    "Group",
    "Ids",
    "KvError",
    "KvTimeoutError",
    "Layers",
    "Lease",
    "Memory",
    "MemoryLike",
    "Op",
    "Option",
    "Peer",
    "PeerError",
    "PeerInfo",
    "PeerLostError",
    "RequestError",
    "ResourceError",
    "Scope",
    "Tensor",
    "UnreachableError",
    "UnsupportedError",
    "__version__",
]
