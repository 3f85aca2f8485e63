# SPDX-License-Identifier: Apache-2.0
"""nccl.py -- NCCL without torch.distributed: a communicator of two ranks over a network that is named, of any libnccl.so.2"""
import ctypes
import os

import torch

PEERS = 2
UNDEFINED = -(1 << 31)  # NCCL_CONFIG_UNDEF_INT
INT32, SUM = 2, 0       # ncclInt32, ncclSum


def take_gpu(rank):
    """The GPU of this rank, made current: its own where there are two, else the one that both share in time slices."""
    gpu = rank % torch.cuda.device_count()
    torch.cuda.set_device(gpu)
    return gpu


class UniqueId(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_char * 128)]


class Config(ctypes.Structure):
    """ncclConfig_t as of 2.18; newer ones are longer and take this one by its size and version."""
    _fields_ = [("size", ctypes.c_size_t), ("magic", ctypes.c_uint), ("version", ctypes.c_uint),
                ("blocking", ctypes.c_int), ("cga", ctypes.c_int), ("min_ctas", ctypes.c_int),
                ("max_ctas", ctypes.c_int), ("net_name", ctypes.c_char_p), ("split_share", ctypes.c_int)]


class Nccl:
    def __init__(self, path):
        self.lib = ctypes.CDLL(path or "libnccl.so.2")
        self.lib.ncclGetErrorString.restype = ctypes.c_char_p
        self.lib.ncclCommInitRankConfig.argtypes = [ctypes.c_void_p, ctypes.c_int, UniqueId, ctypes.c_int, ctypes.c_void_p]
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        self.lib.ncclAllReduce.argtypes = [pointer, pointer, size, ctypes.c_int, ctypes.c_int, pointer, pointer]
        self.lib.ncclAllGather.argtypes = [pointer, pointer, size, ctypes.c_int, pointer, pointer]
        self.lib.ncclSend.argtypes = [pointer, size, ctypes.c_int, ctypes.c_int, pointer, pointer]
        self.lib.ncclRecv.argtypes = self.lib.ncclSend.argtypes
        for call in (self.lib.ncclCommDestroy, self.lib.ncclCommAbort):
            call.argtypes = [pointer]
        self.lib.ncclCommGetAsyncError.argtypes = [pointer, pointer]

    def ok(self, code):
        if code:
            raise RuntimeError(f"NCCL: {self.lib.ncclGetErrorString(code).decode()}")

    def version(self):
        number = ctypes.c_int()
        self.ok(self.lib.ncclGetVersion(ctypes.byref(number)))
        return number.value


class Communicator:
    """One over a network: NAME=NET[,VARIABLE=VALUE...]; NET is a name that NCCL knows, or SHM for none."""

    def __init__(self, nccl, store, rank, text):
        self.name, rest = text.split("=", 1)
        self.nccl, self.rank = nccl, rank
        net, *settings = rest.split(",")
        config = Config(ctypes.sizeof(Config), 0xcafebeef, 21800, UNDEFINED, UNDEFINED, UNDEFINED, UNDEFINED,
                        None if net == "SHM" else net.encode(), UNDEFINED)
        before = dict(os.environ)
        for setting in settings:
            key, value = setting.split("=", 1)
            os.environ[key] = value
        key = f"id {self.name}"
        uid = UniqueId()
        if rank == 0:
            nccl.ok(nccl.lib.ncclGetUniqueId(ctypes.byref(uid)))
            store.set(key, bytes(uid))
        uid = UniqueId.from_buffer_copy(store.get(key))
        self.comm = ctypes.c_void_p()
        nccl.ok(nccl.lib.ncclCommInitRankConfig(ctypes.byref(self.comm), PEERS, uid, rank, ctypes.byref(config)))
        # NCCL connects at the first use, and only then the plugin looks at its options.
        x, y = (torch.zeros(PEERS, device="cuda", dtype=torch.int32) for _ in range(2))
        for what in ("all_reduce", "all_gather", "send_recv"):
            self.run(what, x, y, PEERS)
        torch.cuda.synchronize()
        for key in set(os.environ) - set(before):
            del os.environ[key]

    def run(self, what, x, y, n, stream=0):
        """Queues one operation on n int32 of two tensors; stream 0 is torch's default one."""
        lib, peer = self.nccl.lib, 1 - self.rank
        src, dst = x.data_ptr(), y.data_ptr()
        if what == "all_reduce":
            return self.nccl.ok(lib.ncclAllReduce(src, dst, n, INT32, SUM, self.comm, stream))
        if what == "all_gather":  # n elements arrive in all
            return self.nccl.ok(lib.ncclAllGather(src, dst, n // PEERS, INT32, self.comm, stream))
        lib.ncclGroupStart()
        if what == "send_recv" or self.rank == 0:
            self.nccl.ok(lib.ncclSend(src, n, INT32, peer, self.comm, stream))
        if what == "send_recv" or self.rank == 1:
            self.nccl.ok(lib.ncclRecv(dst, n, INT32, peer, self.comm, stream))
        return self.nccl.ok(lib.ncclGroupEnd())

    def error(self):
        """What NCCL noticed meanwhile, as text; None while all is well."""
        code = ctypes.c_int()
        self.nccl.ok(self.nccl.lib.ncclCommGetAsyncError(self.comm, ctypes.byref(code)))
        return None if code.value in (0, 7) else self.nccl.lib.ncclGetErrorString(code.value).decode()

    def abort(self):
        self.nccl.ok(self.nccl.lib.ncclCommAbort(self.comm))

    def destroy(self):
        self.nccl.ok(self.nccl.lib.ncclCommDestroy(self.comm))
