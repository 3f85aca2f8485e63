# SPDX-License-Identifier: Apache-2.0
"""Engine, Cache, Peer: the objects of kv.h with Python's manners."""

from __future__ import annotations

import select
import time
import warnings
from typing import Any, AsyncIterator, Callable, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple, Union

from . import _core
from ._arrivals import Arrival, ArrivalKind, Arrivals
from ._check import I63, U32, U64, flag, instance, integer, layers as layers_of, milliseconds, optional_text, shown, text
from ._check import stream as stream_of
from ._errors import KvError, python_words
from ._info import Device, Option, PeerInfo
from ._log import LogPipe
from ._memory import Meant, MemoryLike, Tensor, blocks_of_all, slabs_of
from ._ops import Closing, Comm, Group, Lease, Op

#: Block ids: a list, a numpy array (int64 in one piece: used without a copy), a tensor, any sequence of integers.
Ids = Any
#: Which layers: None = all, one number, a range, or (first, count).
Layers = Union[None, int, range, "tuple[int, int]"]
_Transfer = Tuple[_core.Handle, _core.Handle, int, int, Any, Any, int]
_NAMES = {_core.WRITE: "write_blocks", _core.READ: "read_blocks", _core.SEND: "send_blocks", _core.RECV: "recv_blocks"}


class Memory:
    """A pool that peers of this host write directly. numpy.asarray(memory) is a view of its bytes."""

    def __init__(self, handle: _core.Handle) -> None:
        self._handle = handle
        self.address, self.engine_address, self.nbytes = _core.memory_info(handle)

    @property
    def __array_interface__(self) -> Dict[str, Any]:
        return {"version": 3, "typestr": "|u1", "shape": (self.nbytes,), "data": (self.address, False)}

    def free(self) -> None:
        """Give the pool back. Arrays made of it stay valid; peers reach it no longer."""
        _core.close(self._handle, 0)

    def __repr__(self) -> str:
        return f"<kvrail.Memory {self.nbytes} bytes>"


class Cache(Closing):
    """Registered memory. Closing it is refused (CallError) while a connected peer knows it."""

    def __init__(self, engine: "Engine", handle: _core.Handle, layers: int, blocks: int, keep: List[object]) -> None:
        self._handle = handle
        self._keep = keep
        self._ident = _core.ident(handle)
        self.engine = engine
        self.layers = layers
        self.blocks = blocks

    def close(self) -> None:
        _core.close(self._handle, 0)
        self.engine._caches.pop(self._ident, None)

    def __repr__(self) -> str:
        return f"<kvrail.Cache of {self.engine.name}: {self.layers} layers, {self.blocks} blocks>"


class Peer(Closing):
    """A connection, good for both directions. Methods may be called from many threads."""

    def __init__(self, engine: "Engine", handle: _core.Handle) -> None:
        self._handle = handle
        self._ident = _core.ident(handle)
        self.engine = engine
        try:
            self.name = self.info().name
        except KvError:  # it is busy or gone; the caller can ask again
            self.name = "?"
        self.user: Any = None  #: whatever the application wants to find here

    def info(self) -> PeerInfo:
        name, address, transport, path, incarnation, connected, incoming = _core.peer_info(self._handle)
        return PeerInfo(name, address, transport, path, incarnation, bool(connected), bool(incoming))

    @property
    def connected(self) -> bool:
        try:
            return self.info().connected
        except KvError:
            return False

    def _arguments(self, cache: Cache, local: Ids, remote: Ids, layers: Layers, timeout: Optional[float]) -> _Transfer:
        first, count = layers_of(layers)
        ms = 0 if timeout is None else max(1, milliseconds(timeout))
        return self._handle, instance(cache, Cache, "cache")._handle, first, count, local, remote, ms

    def _start(
        self, kind: int, arguments: _Transfer, tag: int, lease: int, group: Optional[Group], stream: Any = None
    ) -> Op:
        in_group = instance(group, Group, "group")._handle if group is not None else None
        op = Op(_core.start(kind, *arguments, tag, lease, in_group, stream_of(stream)), _NAMES[kind], self)
        if group is not None:
            group.ops.append(op)
        return op

    def write_blocks(
        self,
        cache: Cache,
        local_ids: Ids,
        remote_ids: Ids,
        layers: Layers = None,
        *,
        timeout: Optional[float] = None,
        tag: int = 0,
        lease: int = 0,
        stream: Any = None,
    ) -> None:
        """Write local block local_ids[i] to the peer's block remote_ids[i]; return when the peer's engine has them all.

        timeout None is KVCACHE_OP_TIMEOUT_MS. On failure the destination blocks are undefined if the error's in_doubt is set.
        stream, of all transfers: a CUDA stream (torch, CuPy, a number); no byte moves before what is on it now has ended.
        """
        arguments = self._arguments(cache, local_ids, remote_ids, layers, timeout)
        _core.transfer(_core.WRITE, *arguments, tag, lease, None, stream_of(stream))

    def write_blocks_async(
        self,
        cache: Cache,
        local_ids: Ids,
        remote_ids: Ids,
        layers: Layers = None,
        *,
        timeout: Optional[float] = None,
        tag: int = 0,
        lease: int = 0,
        group: Optional[Group] = None,
        stream: Any = None,
    ) -> Op:
        """The same, as an operation. The source blocks must not change before it is SENT."""
        arguments = self._arguments(cache, local_ids, remote_ids, layers, timeout)
        return self._start(_core.WRITE, arguments, tag, lease, group, stream)

    def read_blocks(
        self,
        cache: Cache,
        local_ids: Ids,
        remote_ids: Ids,
        layers: Layers = None,
        *,
        timeout: Optional[float] = None,
        stream: Any = None,
    ) -> None:
        """Copy the peer's block remote_ids[i] into local block local_ids[i]; its cache must be readable."""
        arguments = self._arguments(cache, local_ids, remote_ids, layers, timeout)
        _core.transfer(_core.READ, *arguments, 0, 0, None, stream_of(stream))

    def read_blocks_async(
        self,
        cache: Cache,
        local_ids: Ids,
        remote_ids: Ids,
        layers: Layers = None,
        *,
        timeout: Optional[float] = None,
        group: Optional[Group] = None,
        stream: Any = None,
    ) -> Op:
        arguments = self._arguments(cache, local_ids, remote_ids, layers, timeout)
        return self._start(_core.READ, arguments, 0, 0, group, stream)

    def send_blocks(
        self,
        cache: Cache,
        ids: Ids,
        tag: int,
        layers: Layers = None,
        *,
        timeout: Optional[float] = None,
        stream: Any = None,
    ) -> None:
        """Fill the blocks that the peer's recv_blocks has opened under `tag`: ids[i] goes to its i-th block."""
        arguments = self._arguments(cache, ids, None, layers, timeout)
        _core.transfer(_core.SEND, *arguments, tag, 0, None, stream_of(stream))

    def send_blocks_async(
        self,
        cache: Cache,
        ids: Ids,
        tag: int,
        layers: Layers = None,
        *,
        timeout: Optional[float] = None,
        group: Optional[Group] = None,
        stream: Any = None,
    ) -> Op:
        return self._start(_core.SEND, self._arguments(cache, ids, None, layers, timeout), tag, 0, group, stream)

    def recv_blocks(
        self, cache: Cache, ids: Ids, tag: int, layers: Layers = None, *, timeout: Optional[float] = None
    ) -> None:
        """Open blocks and wait until the peer's send_blocks has filled them in every named layer."""
        _core.transfer(_core.RECV, *self._arguments(cache, ids, None, layers, timeout), tag, 0, None)

    def recv_blocks_async(
        self,
        cache: Cache,
        ids: Ids,
        tag: int,
        layers: Layers = None,
        *,
        timeout: Optional[float] = None,
        group: Optional[Group] = None,
    ) -> Op:
        return self._start(_core.RECV, self._arguments(cache, ids, None, layers, timeout), tag, 0, group)

    def open_blocks(self, cache: Cache, ids: Ids, tag: int = 0, lifetime: float = 60.0) -> Lease:
        """Open blocks of a cache for this peer alone, for `lifetime` seconds."""
        instance(cache, Cache, "cache")
        ms = milliseconds(lifetime, "lifetime")
        handle, number = _core.lease_open(self._handle, cache._handle, ids, integer(tag, "tag", 0, U64), ms)
        return Lease(handle, number, self)

    def close(self, timeout: float = 5.0) -> None:
        """Say goodbye. Unfinished operations end with ClosedError; afterwards no byte of this peer can land here."""
        _core.close(self._handle, milliseconds(timeout))
        self.engine._peers.pop(self._ident, None)

    def __repr__(self) -> str:
        return f"<kvrail.Peer {self.name}>"


class Engine(Closing):
    """One process's endpoint. Everything made from it ends with it.

    progress "auto": a thread of the library accepts peers and acknowledges arrivals; "caller": only progress() does.
    options: KVCACHE_* names and values; they beat the environment.
    """

    def __init__(
        self,
        name: Optional[str] = None,
        *,
        progress: str = "auto",
        options: Optional[Mapping[str, object]] = None,
        arrivals: bool = True,
    ) -> None:
        self._closed = True
        if text(progress, "progress") not in ("auto", "caller"):
            raise ValueError(f"progress is '{shown(progress)}'; it is 'auto' or 'caller'")
        self._caller = progress == "caller"
        mode = _core.PROGRESS_CALLER if self._caller else _core.PROGRESS_AUTO
        given = [text(f"{key}={shown(value) if isinstance(value, int) else value}", "options") for key, value in instance({} if options is None else options, Mapping, "options").items()]
        optional_text(name, "name")
        quiet = not flag(arrivals, "arrivals")
        self._log = LogPipe()
        try:
            self._handle = _core.engine_open(name, mode, int(quiet), given, self._log.fd)
        except BaseException:
            self._log.close()
            raise
        self._closed = False
        self.name = name or "engine"
        self._peers: Dict[int, Peer] = {}
        self._caches: Dict[int, Cache] = {}
        self._pools: List[Memory] = []
        self._fd: Optional[int] = None

    # -- memory

    def alloc(self, nbytes: int) -> Memory:
        """A zeroed pool that peers of this host write directly, the fastest path there is without a NIC."""
        memory = Memory(_core.alloc(self._handle, integer(nbytes, "nbytes", 0, I63)))
        self._pools.append(memory)
        return memory

    def _engine_address(self, address: int) -> int:
        """Arrays of a pool show Python's mapping of it; the library wants its own."""
        for pool in self._pools:
            if pool.address <= address < pool.address + pool.nbytes:
                return address - pool.address + pool.engine_address
        return address

    def register(
        self,
        tensors: Mapping[str, Union[Tensor, MemoryLike, Sequence[MemoryLike]]],
        *,
        layers: Optional[int] = None,
        blocks: Optional[int] = None,
        cache_id: int = 0,
        tp_size: int = 1,
        tp_rank: int = 0,
        block_tokens: int = 0,
        dtype: int = 0,
        order: Optional[str] = None,
        kv_heads: int = 0,
        open: bool = False,
        readable: bool = False,
    ) -> Cache:
        """Make a cache known: register before listen() and connect().

        Each tensor is an array [layers, blocks, ...], a list of one array [blocks, ...] for each layer, or a Tensor (which
        takes addresses too; then `blocks` is needed). layers, blocks: what the shapes must say; with layers=1 an array may be
        [blocks, ...], and an array of two axes is taken only so or with both. open: peers may write without a lease. readable: they may read.
        order: how heads and tokens lie in each block, "HND" or "NHD"; needed where the peer's tp_size is another one, and with
        NHD block_tokens too. kv_heads: of the whole model; needed where it is less than a tp_size.
        """
        instance(tensors, Mapping, "tensors")
        given = {text(name, "a name in tensors"): t if isinstance(t, Tensor) else Tensor(t) for name, t in tensors.items()}
        meant = Meant(
            None if layers is None else integer(layers, "layers", 1, U32),
            None if blocks is None else integer(blocks, "blocks", 0, U32),
        )
        slabs = {name: slabs_of(name, tensor, meant) for name, tensor in given.items()}
        if not slabs:
            raise ValueError("a cache has at least one tensor")
        layers, count = len(next(iter(slabs.values())).bases), blocks_of_all(slabs, meant)
        listed = [
            (
                name,
                s.block_bytes,
                s.stride,
                _core.TENSOR_REPLICATED if given[name].replicated else 0,
                _order(given[name].order or order),
                self._bases(s.bases),
            )
            for name, s in slabs.items()
        ]
        if len({s.cuda for s in slabs.values()}) != 1:
            raise ValueError("some tensors are in a GPU's memory and some are not: make two caches of them")
        flags = _core.CACHE_OPEN if flag(open, "open") else 0
        flags |= _core.CACHE_READABLE if flag(readable, "readable") else 0
        handle = _core.cache_register(
            self._handle,
            integer(cache_id, "cache_id", 0, U32),
            layers,
            count,
            listed,
            integer(tp_size, "tp_size", 0, U32),
            integer(tp_rank, "tp_rank", 0, U32),
            integer(block_tokens, "block_tokens", 0, U32),
            integer(dtype, "dtype", 0, U32),
            integer(kv_heads, "kv_heads", 0, U32),
            flags,
            _core.MEM_CUDA if any(s.cuda for s in slabs.values()) else _core.MEM_HOST,
        )
        cache = Cache(self, handle, layers, count, [keep for s in slabs.values() for keep in s.keep])
        self._caches[cache._ident] = cache
        return cache

    def _bases(self, bases: Iterable[int]) -> List[int]:
        return [self._engine_address(base) for base in bases]

    # -- peers

    def listen(self, host: Optional[str] = None, port: int = 0) -> int:
        """Accept peers; returns the port. host None is 127.0.0.1; all interfaces must be asked for by name."""
        return _core.listen(self._handle, optional_text(host, "host"), integer(port, "port", 0, 65535))

    def connect(self, host: str, port: int, timeout: float = 5.0) -> Peer:
        """Connect to a listening engine: versions, geometry and a transport are agreed on when it returns."""
        address = text(host, "host"), integer(port, "port", 0, 65535)
        return self._know(_core.connect(self._handle, *address, milliseconds(timeout)))

    def comm(
        self,
        rank: int,
        ranks: int,
        allgather: Callable[[bytes], Sequence[bytes]],
        *,
        group: Optional[int] = None,
        host: Optional[str] = None,
        timeout: float = 30.0,
    ) -> Comm:
        """Connect the engines of `ranks` processes, each of which calls this with its own rank.

        allgather(mine) gives every rank the bytes of every rank, in their order: MPI's does (comm.allgather), or a file.
        group: ranks of the same number are not connected (prefill 0, decode 1); None connects all. host: where to listen.
        """
        if not callable(allgather):
            raise TypeError(f"allgather is a {type(allgather).__name__}, which cannot be called")
        handle, peers = _core.comm_init(
            self._handle,
            integer(rank, "rank", 0, U32),
            integer(ranks, "ranks", 1, U32),
            -1 if group is None else integer(group, "group", 0, 2**31 - 1),
            optional_text(host, "host"),
            allgather,
            max(1, milliseconds(timeout)),
        )
        return Comm(self, handle, rank, {r: self._know(peer) for r, peer in enumerate(peers) if peer is not None})

    def _know(self, handle: _core.Handle) -> Peer:
        known = self._peers.get(_core.ident(handle))
        if known is None or known._handle is not handle:
            known = self._peers[_core.ident(handle)] = Peer(self, handle)
        return known

    @property
    def peers(self) -> List[Peer]:
        return list(self._peers.values())

    def group(self, timeout: Optional[float] = None) -> Group:
        milliseconds(timeout)
        return Group(self, _core.group_start(self._handle), timeout)

    # -- arrivals

    def fileno(self) -> int:
        """A descriptor that polls readable while arrivals wait."""
        if self._fd is None or self._closed:  # which raises
            self._fd = _core.arrivals_fd(self._handle)
        return self._fd

    def poll(self, max: int = 64) -> List[Arrival]:
        """Take up to `max` arrivals, oldest first, without waiting."""
        return _core.poll(self._handle, integer(max, "max", 0, I63), self._arrival)

    def _arrival(self, row: _core._ArrivalRow) -> Arrival:
        kind, status, new, peer, cache, first, count, tag, lease, blocks, nbytes = row
        if new is not None:
            self._know(new)
        return Arrival(
            ArrivalKind(kind),
            self._peers.get(peer),
            self._caches.get(cache),
            range(first, first + count),
            tag,
            lease,
            blocks,
            nbytes,
            status,
        )

    def next_arrival(self, timeout: Optional[float] = None) -> Optional[Arrival]:
        """The next arrival, or None after `timeout` seconds."""
        deadline = time.monotonic() + milliseconds(timeout) / 1000
        while True:
            got = self.poll(1)
            if got:
                return got[0]
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            if self._caller:
                self.progress(left)  # in pieces, too
                continue
            # In pieces, so that a close() by another thread is seen; it takes the descriptor away.
            poller = select.poll()
            poller.register(self.fileno(), select.POLLIN)
            poller.poll(int(1000 * min(left, 0.1)) + 1)

    def arrivals(self) -> AsyncIterator[Arrival]:
        """All arrivals from now on: `async for arrival in engine.arrivals()`. One iterator at a time."""
        return Arrivals(self)

    # -- the rest

    def progress(self, timeout: float = 0.0) -> int:
        """Let the engine work (progress "caller"), up to 50 ms; returns the number of events handled."""
        return _core.progress(self._handle, milliseconds(timeout))

    def stats(self) -> Dict[str, int]:
        return _core.stats(self._handle)

    def dump(self) -> str:
        """The engine's state as text, to answer "why does it hang"."""
        return _core.dump(self._handle)

    def options(self) -> List[Option]:
        """Every option, with its value and where it comes from."""
        rows = [Option(*row) for row in _core.options(self._handle)]
        return [row._replace(help=python_words(row.help)) for row in rows]

    def devices(self) -> List[Device]:
        """Every device that this build knows, those that cannot be used with the reason."""
        return [Device(*row) for row in _core.devices(self._handle)]

    @property
    def closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """Stop, drain, free. Unfinished operations end with ClosedError. Calling it again is fine."""
        if self._closed:
            return
        self._closed = True
        try:
            _core.close(self._handle, 0)
        except BaseException:  # this thread is inside a call of it, or Ctrl-C
            self._closed = False
            raise
        self._log.close()
        self._peers.clear()
        self._caches.clear()
        self._pools.clear()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{len(self._caches)} caches, {len(self._peers)} peers"
        return f"<kvrail.Engine {self.name}: {state}>"

    def __reduce__(self) -> Any:
        raise TypeError("an engine cannot be copied or pickled; each process opens its own")

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            warnings.warn(f"an engine was not closed: {self!r}", ResourceWarning, source=self)
            self.close()


def _order(name: Optional[str]) -> int:
    if name is None:
        return 0
    known = {"HND": _core.ORDER_HND, "NHD": _core.ORDER_NHD}
    if instance(name, str, "order") not in known:
        raise ValueError(f"order is '{shown(name)}'; it is 'HND', 'NHD' or None")
    return known[name]
