# SPDX-License-Identifier: Apache-2.0
"""_gpu.py -- whether a cache is on a GPU, and on which, as KVCACHE_GPU takes it

CUDA is asked only if this process already runs it: starting it here would cost a second and forbid a later fork.
"""
import ctypes
import os
from typing import Optional

# CU_POINTER_ATTRIBUTE_*, CU_MEMORYTYPE_DEVICE
_POINTER_MEMORY_TYPE, _POINTER_IS_MANAGED, _POINTER_DEVICE_ORDINAL = 2, 8, 9
_MEMORY_TYPE_DEVICE = 2


def _cuda() -> Optional[ctypes.CDLL]:
    try:
        return ctypes.CDLL("libcuda.so.1", mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
    except OSError:
        return None


def _ask(cuda: ctypes.CDLL, attribute: int, pointer: int) -> Optional[int]:
    """An attribute of the memory; None if CUDA does not know it."""
    value = ctypes.c_uint(0)
    try:
        rc = cuda.cuPointerGetAttribute(ctypes.byref(value), attribute, ctypes.c_uint64(pointer))
    except AttributeError:
        return None
    return value.value if rc == 0 else None


def holds(pointer: int) -> bool:
    """Is it a GPU's memory, which no CPU may touch?"""
    cuda = _cuda()
    return (
        cuda is not None
        and _ask(cuda, _POINTER_MEMORY_TYPE, pointer) == _MEMORY_TYPE_DEVICE
        and not _ask(cuda, _POINTER_IS_MANAGED, pointer)
    )


def _address(cuda: ctypes.CDLL, pointer: int, ordinal: int) -> Optional[str]:
    """The PCI address of the GPU that holds the pointer, else of CUDA's device of this number; None if CUDA does not know."""
    text, owner = ctypes.create_string_buffer(32), _ask(cuda, _POINTER_DEVICE_ORDINAL, pointer)
    if owner is not None:
        ordinal = owner
    try:
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
