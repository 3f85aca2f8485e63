# SPDX-License-Identifier: Apache-2.0
"""_gpu.py -- which GPU a cache is on, as KVCACHE_GPU takes it

CUDA is asked only if this process already runs it: starting it here would cost a second and forbid a later fork.
"""
import ctypes
import os
from typing import Optional

_POINTER_DEVICE_ORDINAL = 9  # CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL


def _cuda() -> Optional[ctypes.CDLL]:
    try:
        return ctypes.CDLL("libcuda.so.1", mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
    except OSError:
        return None


def _address(cuda: ctypes.CDLL, pointer: int, ordinal: int) -> Optional[str]:
    """The PCI address of the GPU that holds the pointer, else of CUDA's device of this number; None if CUDA cannot tell."""
    text, owner = ctypes.create_string_buffer(32), ctypes.c_int(-1)
    try:
        if cuda.cuPointerGetAttribute(ctypes.byref(owner), _POINTER_DEVICE_ORDINAL, ctypes.c_uint64(pointer)) == 0:
            ordinal = owner.value
        if cuda.cuDeviceGetPCIBusId(text, len(text), ctypes.c_int(ordinal)) != 0:
            return None
    except AttributeError:
        return None
    return text.value.decode()


def of_cache(pointer: int, gpu_idx: int) -> str:
    """The GPU of the cache as a PCI address, or as the number or UUID by which the driver knows it."""
    cuda = _cuda()
    address = _address(cuda, pointer, gpu_idx) if cuda else None
    if address:
        return address
    visible = [word.strip() for word in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if word.strip()]
    return visible[gpu_idx] if gpu_idx < len(visible) else str(gpu_idx)
