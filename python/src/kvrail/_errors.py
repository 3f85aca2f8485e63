# SPDX-License-Identifier: Apache-2.0
"""Exceptions: one class for each scope of kv_error.h, which says what is lost and what to do next."""

from __future__ import annotations

import enum
import errno
import re
from typing import Dict, Tuple, Type

from . import _core


class Scope(enum.IntEnum):
    """What an error costs: CALL nothing, REQUEST the operation, PEER the connection, DEVICE the engine."""

    NONE = 0
    CALL = 1
    REQUEST = 2
    PEER = 3
    DEVICE = 4


class KvError(Exception):
    """Something failed. str() is one line with everything that is known."""

    code: int = 0  #: KV_ERR_*, negative
    name: str = ""  #: the code's name, "PEER_LOST"
    scope: Scope = Scope.NONE
    cause: str = ""  #: the exact cause, one sentence
    op: str = ""  #: what was being done, "write_blocks"
    peer: str = ""  #: address and name of the peer
    device: str = ""  #: "shm", "mlx5_0:1"
    hint: str = ""  #: what to do about it
    sys_errno: int = 0
    wc_status: int = 0
    vendor_err: int = 0
    qp_num: int = 0
    in_doubt: bool = False  #: destination bytes may have changed
    block_index: int = -1  #: index into the ids of the call of the first bad block
    block_id: int = -1


class CallError(KvError):
    """Nothing is lost: correct the arguments and call again."""


class ArgumentError(CallError, ValueError):
    """An argument, a block id or a lease is wrong."""


class ClosedError(CallError):
    """The object was closed."""


class UnsupportedError(CallError, NotImplementedError):
    """This build or this machine cannot do that."""


class RequestError(KvError):
    """This operation is lost; it may be tried again on the same peer."""


class KvTimeoutError(RequestError, TimeoutError):
    """The deadline passed."""


class CancelledError(RequestError):
    """The operation was cancelled."""


class PeerError(KvError):
    """The connection is lost: close the peer and connect again."""


class PeerLostError(PeerError, ConnectionError):
    """The peer or the connection to it is gone."""


class UnreachableError(PeerLostError):
    """No transport reaches the peer, or its name leads nowhere; the cause has the reason of each."""


class DeviceError(KvError):
    """The local device or a memory limit is at fault: fix it, then open a new engine."""


class ResourceError(DeviceError, OSError):
    """The system refused: descriptors, memory, locked memory, a call. errno says why."""


_BY_CODE: Dict[int, Type[KvError]] = {
    _core.ERR_ARG: ArgumentError,
    _core.ERR_BLOCK_ID: ArgumentError,
    _core.ERR_DUP_BLOCK: ArgumentError,
    _core.ERR_LEASE: ArgumentError,
    _core.ERR_CLOSED: ClosedError,
    _core.ERR_UNSUPPORTED: UnsupportedError,
    _core.ERR_TIMEOUT: KvTimeoutError,
    _core.ERR_CANCELLED: CancelledError,
    _core.ERR_PEER_LOST: PeerLostError,
    _core.ERR_UNREACHABLE: UnreachableError,
    _core.ERR_MEMLOCK: ResourceError,
    _core.ERR_NOMEM: ResourceError,
    _core.ERR_NOFD: ResourceError,
    _core.ERR_SYSTEM: ResourceError,
}
_BY_SCOPE: Dict[Scope, Type[KvError]] = {
    Scope.CALL: CallError,
    Scope.REQUEST: RequestError,
    Scope.PEER: PeerError,
    Scope.DEVICE: DeviceError,
}


#: What the library's sentences call by its name in C, as it is called here.
_NAMES = {
    "KV_CACHE_OPEN": "with open=True",
    "KV_CACHE_READABLE": "readable=True",
    "KV_COMM_ALL": "0",
    "KV_PROGRESS_CALLER": 'progress="caller"',
    "base, layer_base, layer_stride or stride": "the memory of a tensor or a layer",
    "kv_alloc": "Engine.alloc",
    "kv_comm_init": "Engine.comm",
    "kv_connect": "Engine.connect",
    "kv_dump": "Engine.dump",
    "kv_group_end": "Group.end",
    "kv_listen": "Engine.listen",
    "kv_peer_close": "Peer.close",
    "kv_poll_arrivals": "Engine.poll",
    "kv_progress": "Engine.progress",
    "timeout_ms": "timeout",
}
_NAMED = re.compile("|".join(rf"\b{name}\b" for name in sorted(_NAMES, key=len, reverse=True)))


def python_words(words: str) -> str:
    return _NAMED.sub(lambda match: _NAMES[match[0]], words)


def system_error(op: str, exc: OSError) -> KvError:
    """Of a system call that the packages make themselves."""
    words = f"{exc.strerror or exc} (errno {exc.errno})"
    code, name = _core.ERR_SYSTEM, "SYSTEM"
    if exc.errno in (errno.EMFILE, errno.ENFILE):
        code, name = _core.ERR_NOFD, "NOFD"
    text, numbers = f"{op}: KV_ERR_{name}: {words}", (exc.errno or 0, 0, 0, 0, 0, -1, -1)
    return _make(code, name, Scope.DEVICE, text, words, op, "", "", "", numbers)


def _make(
    code: int,
    name: str,
    scope: int,
    text: str,
    cause: str,
    op: str,
    peer: str,
    device: str,
    hint: str,
    numbers: Tuple[int, int, int, int, int, int, int],
) -> KvError:
    cls = _BY_CODE.get(code) or _BY_SCOPE.get(Scope(scope), KvError)
    exc = cls(python_words(text))
    exc.code, exc.name, exc.scope, exc.cause = code, name, Scope(scope), python_words(cause)
    exc.op, exc.peer, exc.device, exc.hint = op, peer, device, python_words(hint)
    exc.sys_errno, exc.wc_status, exc.vendor_err, exc.qp_num = numbers[:4]
    exc.in_doubt, exc.block_index, exc.block_id = bool(numbers[4]), numbers[5], numbers[6]
    if isinstance(exc, OSError) and exc.sys_errno:
        exc.errno = exc.sys_errno
    return exc


_core.set_error_factory(_make)
