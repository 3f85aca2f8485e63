# SPDX-License-Identifier: Apache-2.0
"""The C library as flat functions; the packages above are the API."""

from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple, TypeVar, final

@final
class Handle: ...

_ArrivalRow = Tuple[int, int, Optional[Handle], int, int, int, int, int, int, int, int]
_OptionRow = Tuple[str, str, str, str, str, str, str]
_DeviceRow = Tuple[str, str, bool, str, str, str, int, int, int, int, str, int, str, str]
_T = TypeVar("_T")
_TensorRow = Tuple[str, int, int, int, int, List[int]]

WRITE: int
READ: int
SEND: int
RECV: int
SENT: int
VISIBLE: int
ACKED: int
CACHE_OPEN: int
CACHE_READABLE: int
TENSOR_REPLICATED: int
ORDER_HND: int
ORDER_NHD: int
MEM_HOST: int
MEM_CUDA: int
WRITE_BLOCKS_ADDRESS: int
PROGRESS_AUTO: int
PROGRESS_CALLER: int
ARRIVAL_BLOCKS: int
ARRIVAL_PEER_UP: int
ARRIVAL_PEER_LOST: int
ARRIVAL_EXPIRED: int
ARRIVAL_UNFINISHED: int
ERR_ARG: int
ERR_BLOCK_ID: int
ERR_DUP_BLOCK: int
ERR_LEASE: int
ERR_BUSY: int
ERR_CLOSED: int
ERR_FORKED: int
ERR_UNSUPPORTED: int
ERR_TIMEOUT: int
ERR_CANCELLED: int
ERR_IN_DOUBT: int
ERR_REVOKED: int
ERR_CHECKSUM: int
ERR_PEER_LOST: int
ERR_STALE_PEER: int
ERR_GEOMETRY: int
ERR_VERSION: int
ERR_AUTH: int
ERR_PROTOCOL: int
ERR_UNREACHABLE: int
ERR_LINK: int
ERR_RNR: int
ERR_REMOTE_ACCESS: int
ERR_LOCAL_MR: int
ERR_DEVICE: int
ERR_MEMLOCK: int
ERR_NOMEM: int
ERR_NOFD: int
ERR_SYSTEM: int
ERR_INTERNAL: int

def set_error_factory(factory: Callable[..., BaseException], /) -> None: ...
def version() -> str: ...
def engine_open(
    name: Optional[str], progress: int, arrivals_off: int, options: List[str], log_fd: int, /
) -> Handle: ...
def close(handle: Handle, timeout_ms: int, /) -> None: ...
def ident(handle: Handle, /) -> int: ...
def listen(engine: Handle, host: Optional[str], port: int, /) -> int: ...
def connect(engine: Handle, host: str, port: int, timeout_ms: int, /) -> Handle: ...
def comm_init(
    engine: Handle,
    rank: int,
    nranks: int,
    group: int,
    host: Optional[str],
    allgather: Callable[[bytes], Sequence[bytes]],
    timeout_ms: int,
    /,
) -> Tuple[Handle, List[Optional[Handle]]]: ...
def progress(engine: Handle, timeout_ms: int, /) -> int: ...
def arrivals_fd(engine: Handle, /) -> int: ...
def poll(engine: Handle, max: int, make: Callable[[_ArrivalRow], _T], /) -> List[_T]: ...
def alloc(engine: Handle, nbytes: int, /) -> Handle: ...
def memory_info(memory: Handle, /) -> Tuple[int, int, int]: ...
def cache_register(
    engine: Handle,
    cache_id: int,
    layers: int,
    blocks: int,
    tensors: List[_TensorRow],
    tp_size: int,
    tp_rank: int,
    block_tokens: int,
    dtype: int,
    kv_heads: int,
    flags: int,
    mem_kind: int,
    /,
) -> Handle: ...
def dlpack_info(capsule: object, /) -> Tuple[int, int, int, int, List[int], Optional[List[int]], bool]: ...
def peer_info(peer: Handle, /) -> Tuple[str, str, str, str, bytes, int, int]: ...
def lease_open(peer: Handle, cache: Handle, ids: Any, tag: int, lifetime_ms: int, /) -> Tuple[Handle, int]: ...
def transfer(
    kind: int,
    peer: Handle,
    cache: Handle,
    first: int,
    count: int,
    local: Any,
    remote: Any,
    timeout_ms: int,
    tag: int,
    lease: int,
    group: None,
    stream: int = 0,
    /,
) -> None: ...
def start(
    kind: int,
    peer: Handle,
    cache: Handle,
    first: int,
    count: int,
    local: Any,
    remote: Any,
    timeout_ms: int,
    tag: int,
    lease: int,
    group: Optional[Handle],
    stream: int = 0,
    /,
) -> Handle: ...
def op_test(op: Handle, /) -> int: ...
def op_wait(op: Handle, grade: int, timeout_ms: int, /) -> bool: ...
def op_cancel(op: Handle, timeout_ms: int, /) -> None: ...
def group_start(engine: Handle, /) -> Handle: ...
def stats(engine: Handle, /) -> Dict[str, int]: ...
def dump(engine: Handle, /) -> str: ...
def options(engine: Optional[Handle], /) -> List[_OptionRow]: ...
def devices(engine: Optional[Handle], /) -> List[_DeviceRow]: ...
