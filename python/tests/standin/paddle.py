# SPDX-License-Identifier: Apache-2.0
"""paddle.py -- in the place of Paddle: as much of it as FastDeploy's test.py calls, with tensors of the device "gpu" in memory of CUDA

KVRAIL_CUDA names another libcuda.so.1 than the driver's. No CPU touches a GPU's tensor but by copies of CUDA.
"""
import ctypes
import math
import os
from types import SimpleNamespace

import numpy as np

bfloat16, float16, float32, uint8 = "bfloat16", "float16", "float32", "uint8"
STORED = {bfloat16: np.uint16, float16: np.float16, float32: np.float32, uint8: np.uint8}
PAGE = 4096
_cuda = ctypes.CDLL(os.environ.get("KVRAIL_CUDA", "libcuda.so.1"))
_device = "gpu"


def _must(rc):
    if rc:
        raise RuntimeError(f"CUDA error {rc}")


def _start():
    """The primary context of the first GPU that has one; it is the thread's."""
    count, device, context = ctypes.c_int(), ctypes.c_int(), ctypes.c_void_p()
    _must(_cuda.cuInit(0))
    _must(_cuda.cuDeviceGetCount(ctypes.byref(count)))
    for ordinal in range(count.value):
        _must(_cuda.cuDeviceGet(ctypes.byref(device), ordinal))
        if not _cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device):
            return _must(_cuda.cuCtxSetCurrent(context))
    raise RuntimeError("there is no GPU")


def _bits(value, dtype, n):
    """So often the value, as it is stored."""
    if dtype == bfloat16:  # of small integers, which it has exactly
        return np.full(n, np.float32(value).view(np.uint32) >> 16, np.uint16)
    return np.full(n, value, STORED[dtype])


class Tensor:
    def __init__(self, shape, dtype, value):
        self.shape, self.dtype = list(shape), dtype
        whole = _bits(value, dtype, math.prod(shape))
        self._gpu = _device == "gpu"
        self._block_bytes = whole.nbytes // shape[0]
        if self._gpu:
            at = ctypes.c_uint64()
            _must(_cuda.cuMemAlloc_v2(ctypes.byref(at), ctypes.c_size_t(-(-whole.nbytes // PAGE) * PAGE)))
            self._at = at.value
            self._put(0, whole)
        else:
            self._held, self._at = whole, whole.ctypes.data

    def data_ptr(self):
        return self._at

    def _put(self, offset, data):
        to, source, n = ctypes.c_uint64(self._at + offset), data.ctypes.data_as(ctypes.c_void_p), ctypes.c_size_t(data.nbytes)
        if self._gpu:
            _must(_cuda.cuMemcpyHtoD_v2(to, source, n))
        else:
            ctypes.memmove(to.value, source, data.nbytes)

    def __setitem__(self, block, value):
        self._put(block * self._block_bytes, _bits(value, self.dtype, math.prod(self.shape[1:])))

    def __getitem__(self, block):
        got = _bits(0, self.dtype, math.prod(self.shape[1:]))
        source, to, n = ctypes.c_uint64(self._at + block * self._block_bytes), got.ctypes.data_as(ctypes.c_void_p), got.nbytes
        if self._gpu:
            _must(_cuda.cuMemcpyDtoH_v2(to, source, ctypes.c_size_t(n)))
        else:
            ctypes.memmove(to, source.value, n)
        return SimpleNamespace(equal=lambda value: got == _bits(value, self.dtype, len(got)))


def full(shape, fill_value, dtype):
    return Tensor(shape, dtype, fill_value)


def all(flags):
    return flags.all()


def is_compiled_with_xpu():
    return False


def is_compiled_with_cuda():
    return True


def _set_device(name):
    global _device
    _device = name


device = SimpleNamespace(set_device=_set_device, cuda=SimpleNamespace(synchronize=lambda: _must(_cuda.cuCtxSynchronize())))
_start()
