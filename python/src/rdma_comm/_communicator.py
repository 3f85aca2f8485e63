# SPDX-License-Identifier: Apache-2.0
"""RDMACommunicator: one engine, its cache, and the peers that a prefill process has connected to."""

from __future__ import annotations

import logging
import os
import threading
from typing import Any, Dict, List, Optional, Tuple

from kvrail import (
    ArgumentError,
    Cache,
    CallError,
    ClosedError,
    Engine,
    KvError,
    Peer,
    PeerError,
    RequestError,
    Tensor,
    _core,
)
from kvrail._check import integer, shown

from . import _gpu, _log
from ._arguments import Arguments, parse, port_of

logger = logging.getLogger("rdma_comm")

CONNECT_TIMEOUT_S = 10.0
# The reference's codes for a connection.
_CONNECTED, _DISCONNECTED, _ERROR, _TIMED_OUT, _BAD_PARAMETERS = range(5)
_STATUS_WORDS = {0: "connected", 1: "disconnected", 2: "error", 3: "timed out", 4: "bad parameters"}
_PORT_TYPES = (str, int)
# What the reference reads from the environment, and what it takes where it cannot read it. (A GID index is chosen.)
_REFERENCE_DEFAULTS: Dict[str, object] = {
    "KVCACHE_RDMA_GID_INDEX": -1,
    "KVCACHE_IB_TIMEOUT": 18,
    "KVCACHE_RELAX_ORDERING": 0,
    "KVCACHE_DEBUG": 0,
    "KVCACHE_DEBUG_OUTPUT": 0,
    "KVCACHE_VERIFY_READ": 0,
    "KVCACHE_GDRCOPY_FLUSH_ENABLE": 0,
}


class ConnectStatus(int):
    """What connect() returns: on success equal to 0 AND true, otherwise another number AND false.

    One caller tests `== 0`, the README writes `if comm.connect(...)`. Equality and hash are those of the number.
    """

    __slots__ = ()

    def __bool__(self) -> bool:
        return int(self) == 0

    def __str__(self) -> str:  # what FastDeploy's logs show
        words = _STATUS_WORDS.get(int(self), "not connected")
        return f"{int(self)} ({words})"

    def __repr__(self) -> str:
        return f"<ConnectStatus {self}>"


def _status_of(exc: Exception) -> ConnectStatus:
    if isinstance(exc, TimeoutError):
        return ConnectStatus(_TIMED_OUT)
    if isinstance(exc, ConnectionError):
        return ConnectStatus(_DISCONNECTED)
    return ConnectStatus(_BAD_PARAMETERS if isinstance(exc, ValueError) else _ERROR)


class _View:
    """An engine with the cache registered as part `rank` of `size`.

    Usually there is one. The receiver sends its own tensor-parallel size in the handshake; one that was made without it
    (the 7-argument constructor) counts as 1, and then what this side registers must be its share of that receiver's block.
    """

    def __init__(self, args: Arguments, size: int, rank: int) -> None:
        self.engine = _engine(f"{args.role}-{args.gpu_idx}", _options(args))
        self._args, self._size, self._rank = args, size, rank
        self._cache: Optional[Cache] = None
        self._lock = threading.RLock()

    def cache(self) -> Cache:
        a = self._args
        with self._lock:
            if self._cache is None:
                cuda = _gpu.holds(a.keys[0])
                tensors = {"k": Tensor(a.keys, a.block_bytes, cuda=cuda)}
                if a.values:
                    tensors["v"] = Tensor(a.values, a.block_bytes, cuda=cuda)
                if a.key_scales:
                    tensors["k_scale"] = Tensor(a.key_scales, a.scale_bytes, cuda=cuda)
                if a.value_scales:
                    tensors["v_scale"] = Tensor(a.value_scales, a.scale_bytes, cuda=cuda)
                # The reference's rule: parts of a block lie one after the other, each the heads of one rank.
                try:
                    self._cache = self.engine.register(
                        tensors,
                        blocks=a.blocks,
                        tp_size=self._size,
                        tp_rank=self._rank,
                        order="HND",
                        kv_heads=a.kv_heads if (self._size, self._rank) == (a.tp_size, a.tp_rank) else 0,
                        open=True,
                    )
                except ArgumentError as exc:
                    need = f"{a.blocks} x {a.block_bytes} = {a.blocks * a.block_bytes}"
                    exc.args = (f"{exc}. Each pointer must lead to block_number x block_bytes = {need} bytes of its own",)
                    raise
            return self._cache


def _engine(name: str, options: Dict[str, object]) -> Engine:
    """Opened with the reference's defaults in place of what its variables hold and the library cannot read."""
    while True:
        try:
            return Engine(name, options=options, arrivals=False)
        except ArgumentError as exc:
            wrong = [v for v in _REFERENCE_DEFAULTS if exc.cause.startswith(f"{v} is ") and v not in options]
            if not wrong:
                raise
            options[wrong[0]] = _REFERENCE_DEFAULTS[wrong[0]]
            _log.ignored("%s: its default, %s, is used", exc.cause, options[wrong[0]])


def _options(args: Arguments) -> Dict[str, object]:
    """Where this module's defaults differ from the library's. The environment wins."""
    options: Dict[str, object] = {}
    if not os.environ.get("KVCACHE_IB_TIMEOUT"):
        options["KVCACHE_IB_TIMEOUT"] = _REFERENCE_DEFAULTS["KVCACHE_IB_TIMEOUT"]
    if _log.is_on("KV_IS_DEBUG_ENABLED"):
        options["KVCACHE_DEBUG"] = 1
    nics = [nic.strip() for nic in os.environ.get("KVCACHE_RDMA_NICS", "").split(",") if nic.strip()]
    if len(nics) > 1:
        options["KVCACHE_RDMA_NICS"] = nics[args.gpu_idx % len(nics)]
    if not nics and not os.environ.get("KVCACHE_GPU"):
        options["KVCACHE_GPU"] = _gpu.of_cache(args.keys[0], args.gpu_idx)  # the devices near it are used
    return options


def _port(given: int) -> int:
    """SET_RDMA_DEST_PORT, another name of the reference, beats what both sides were given: to listen at and to connect to."""
    text = os.environ.get("SET_RDMA_DEST_PORT", "")
    try:
        return port_of(text) if text else given
    except ValueError as exc:
        _log.ignored("SET_RDMA_DEST_PORT is ignored: %s", exc)
        return given


class RDMACommunicator:
    """Moves KV cache blocks from a prefill process into a decode process's cache.

    RDMACommunicator(role, gpu_idx, port, key_ptrs, value_ptrs, block_number, block_bytes
                     [, key_scale_ptrs, value_scale_ptrs, scale_block_bytes]
                     [, prefill_tp_size=1, prefill_tp_idx=0], kv_heads=0)

    A decode process listens on `port` and needs no further call: blocks land, and writers are answered, by themselves.
    Methods may be called from many threads; they release the GIL while they wait. kv_heads: not part of the reference;
    needed where a group has more ranks than the model has kv heads, so that several ranks hold the same head.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._args = parse(args, kwargs)
        self._pid, self._closed = os.getpid(), False
        self._lock = threading.RLock()  # a signal's handler may call into this object too
        self._peers: Dict[Tuple[str, Any], Tuple[_View, Peer]] = {}
        self._dialling: Dict[Tuple[str, int], Any] = {}
        self._errors = threading.local()
        self._connects = 0
        self._views: Dict[Tuple[int, int], _View] = {}
        _log.outputs_of_the_environment()
        try:
            view = self._view(self._args.tp_size, self._args.tp_rank)
            if self._args.role == "decode":
                view.cache()
                self._listen(view)
        except KvError as exc:
            self.close()
            logger.error("%s", exc, extra={"once": None})  # the caller has the exception
            raise RuntimeError(f"rdma_comm cannot work here: {exc}") from exc

    def _view(self, size: int, rank: int) -> _View:
        with self._lock:
            view = self._views.get((size, rank))
            if view is None:
                view = self._views[(size, rank)] = _View(self._args, size, rank)
            return view

    def _check_alive(self) -> None:
        if self._closed:
            raise ClosedError("the communicator was closed")
        if os.getpid() != self._pid:
            raise CallError("the communicator was made before a fork; each process makes its own")

    def _listen(self, view: _View) -> None:
        port = view.engine.listen("0.0.0.0", _port(self._args.port))
        self.port = port
        if os.environ.get("KVCACHE_PSK_FILE"):
            logger.info("listening on port %d", port)
        else:
            logger.warning("listening on port %d; peers are not asked for a key (KVCACHE_PSK_FILE): keep it inside the cluster", port)

    # -- prefill

    def _candidates(self, dst_tp_size: int) -> List[Tuple[int, int]]:
        """As what part of the receiver's block this cache may have to be registered: (size, rank), likeliest first."""
        size, rank = self._args.tp_size, self._args.tp_rank
        views = [(size, rank)]
        if dst_tp_size in (0, size):
            views.append((1, 0))
        elif size > dst_tp_size and size % dst_tp_size == 0:
            views.append((size // dst_tp_size, rank % (size // dst_tp_size)))
        return list(dict.fromkeys(views))

    def _dial(self, host: str, port: int, dst_tp_size: int) -> Tuple[_View, Peer]:
        refused: Optional[KvError] = None
        for size, rank in self._candidates(dst_tp_size):
            view = self._view(size, rank)
            view.cache()
            try:
                return view, view.engine.connect(host, _port(port), CONNECT_TIMEOUT_S)
            except KvError as exc:
                if exc.code != _core.ERR_GEOMETRY:
                    raise
                refused = refused or exc
        assert refused is not None
        raise refused

    def _connect(self, host: str, port: int, dst_tp_size: int) -> None:
        with self._lock:
            dialling = self._dialling.setdefault((host, port), threading.RLock())
        with dialling:  # of two threads that want the same peer, one connects
            known = self._peers.get((host, port))
            if known:
                if known[1].connected:
                    return
                self._forget(host, port)
                known[1].close()
            found = self._dial(host, port, dst_tp_size)
            with self._lock:
                self._peers[(host, port)] = self._peers[(host, str(port))] = found
                self._connects += 1

    def _forget(self, host: str, port: int) -> None:
        with self._lock:
            self._peers.pop((host, port), None)
            self._peers.pop((host, str(port)), None)

    def connect(self, dst_ip: str, dst_port: Any, dst_tp_size: int = 0) -> ConnectStatus:
        """Connect to a decode process. The result is equal to 0 and true on success; else last_error() says why not.

        dst_tp_size: the tensor-parallel size of the receiver's group, 0 = the same as this one's. SET_RDMA_DEST_PORT beats
        dst_port, which is then only the name under which is_connected() and write_cache() find the peer.
        """
        host = _host(dst_ip)
        try:
            self._check_alive()
            self._connect(host, port_of(dst_port), _receivers_tp_size(dst_tp_size))
        except (KvError, ValueError) as exc:
            self._failed("connect", f"{shown(host)}:{shown(dst_port)}", exc)
            return _status_of(exc)
        self._errors.text = ""
        return ConnectStatus(_CONNECTED)

    def is_connected(self, dst_ip: str, dst_port: Any) -> bool:
        """Whether connect() has succeeded and the peer has not been lost since."""
        try:
            known = self._peers.get((_host(dst_ip), port_of(dst_port)))
        except ValueError:
            return False
        return known is not None and known[1].connected

    def write_cache(
        self,
        dst_ip: Optional[str] = None,
        dst_port: Any = None,
        local_block_ids: Any = None,
        remote_block_ids: Any = None,
        layer_idx: Any = None,
        *,
        ip: Optional[str] = None,
        port: Any = None,
    ) -> int:
        """Write blocks of one layer: keys, values and scales. 0 when the receiver has them all, else -1 and last_error().

        Ids are lists, numpy arrays or tensors of integers; contiguous int64 arrays are used without a copy.
        """
        if ip is None:
            host = dst_ip
        elif dst_ip is None:
            host = ip
        else:
            raise TypeError("write_cache got two values for 'dst_ip'")
        if port is None:
            number = dst_port
        elif dst_port is None:
            number = port
        else:
            raise TypeError("write_cache got two values for 'dst_port'")
        # 9881.0 would find the same peer, and a list is not a key.
        known = self._peers.get((host, number)) if type(number) in _PORT_TYPES and type(host) is str else None
        try:
            if known is None:
                known = self._known(host, number, local_block_ids, remote_block_ids, layer_idx)
            view, peer = known
            cache: Cache = view._cache  # type: ignore[assignment]
            _core.transfer(
                0, peer._handle, cache._handle, layer_idx, 1, local_block_ids, remote_block_ids, 0, 0, 0, None
            )
        except (KvError, ValueError, OverflowError) as exc:
            self._failed("write_cache", f"{shown(host)}:{shown(number)}", exc, f" of layer {shown(layer_idx)}")
            return -1
        return 0

    def _known(self, host: Any, port: Any, *rest: Any) -> Tuple[_View, Peer]:
        """The slow look-up: a port of an unusual type, or a peer that is not there."""
        if host is None or port is None or any(value is None for value in rest):
            raise TypeError("write_cache needs dst_ip, dst_port, local_block_ids, remote_block_ids and layer_idx")
        known = self._peers.get((_host(host), port_of(port)))
        if known is None:
            self._check_alive()
            raise ValueError("not connected; connect() comes first")
        return known

    def _failed(self, what: str, to: str, exc: Exception, of: str = "") -> None:
        """One line in the log; on stderr not one for every layer, but again once a peer has been connected since."""
        instead = os.environ.get("SET_RDMA_DEST_PORT")
        to += f" (at port {instead}: SET_RDMA_DEST_PORT)" if instead and what == "connect" else ""
        self._errors.text = text = f"{what}{of} to {to}: {exc}"
        kind = exc.name if isinstance(exc, (RequestError, PeerError)) else str(exc)
        logger.error("%s", text, extra={"once": (id(self), self._connects, what, to, kind)})

    def last_error(self) -> str:
        """The cause of this thread's last failure, "" if there was none."""
        return str(getattr(self._errors, "text", ""))

    def close(self) -> None:
        """Disconnect, stop listening, free. Not part of the reference; leaving it to the garbage collector is fine too."""
        self._closed = True
        if os.getpid() != self._pid:
            self._lock = threading.RLock()  # the parent's may have been held by a thread that does not exist here
        with self._lock:
            self._peers.clear()
            views = list(self._views.values())
        for view in views:
            view.engine.close()

    def __repr__(self) -> str:
        a = self._args
        return f"<rdma_comm.RDMACommunicator {a.role} of GPU {a.gpu_idx}: {len(a.keys)} layers, {a.blocks} blocks>"

    def __reduce__(self) -> Any:
        raise TypeError("a communicator cannot be copied or pickled; each process makes its own")

    def __enter__(self) -> "RDMACommunicator":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_views"):
            self.close()


def _receivers_tp_size(value: Any) -> int:
    """0: the same as this one's. The reference takes a negative number so, too."""
    size = integer(value, "dst_tp_size", -(2**63), 65536)
    if size < 0:
        _log.ignored("dst_tp_size is %d: the size of this side is taken", size)
    return max(size, 0)


def _host(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"dst_ip is a {type(value).__name__}, not a str")
    return value
