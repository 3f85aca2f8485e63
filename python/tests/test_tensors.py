# SPDX-License-Identifier: Apache-2.0
"""Tensors that do not export themselves, and those whose memory is not what it seems. Stand-ins: no torch is needed."""

from __future__ import annotations

from typing import Any, Dict, List

import numpy as np
import pytest

import kvrail
from conftest import Pair
from kvrail._check import stream
from kvrail._memory import describe

UINT8 = np.zeros((2, 4, 16), np.uint8)


class Device:
    def __init__(self, type: str) -> None:
        self.type = type


class Torchlike:
    """Of torch's Tensor what matters here: a protocol that is not for this tensor raises whatever it raises."""

    def __init__(self, held: Any, device: str = "cuda", pointer: Any = None) -> None:
        self._held, self.device = held, Device(device)
        self._pointer = held.ctypes.data if pointer is None else pointer

    @property
    def shape(self) -> Any:
        return self._held.shape

    def stride(self) -> Any:
        return tuple(s // self._held.itemsize for s in self._held.strides)

    def element_size(self) -> int:
        return int(self._held.itemsize)

    def data_ptr(self) -> int:
        if isinstance(self._pointer, Exception):
            raise self._pointer
        return int(self._pointer)


class RequiresGrad(Torchlike):
    @property
    def __cuda_array_interface__(self) -> Any:
        if self.device.type != "cuda":
            raise AttributeError
        raise RuntimeError("Can't get __cuda_array_interface__ on Variable that requires grad.")

    def __dlpack__(self, **kwargs: Any) -> Any:
        raise BufferError("Can't export tensors that require gradient, use tensor.detach()")


class Float8(Torchlike):
    @property
    def __cuda_array_interface__(self) -> Dict[str, Any]:
        return {"typestr": {"torch.float16": "<f2"}["torch.float8_e4m3fn"]}

    def __dlpack__(self, **kwargs: Any) -> Any:
        raise BufferError("float8 types are not supported by dlpack")


@pytest.mark.parametrize("kind", [RequiresGrad, Float8])
def test_a_tensor_of_a_gpu_that_does_not_export_itself_is_taken_by_its_pointer(kind: Any) -> None:
    region = describe(kind(UINT8))
    assert region.cuda and region.address == UINT8.ctypes.data
    assert (region.itemsize, region.shape, region.strides) == (1, (2, 4, 16), (64, 16, 1))
    with kvrail.Engine() as engine, pytest.raises(kvrail.UnsupportedError, match="CUDA does not run in this process"):
        engine.register({"k": kind(UINT8)})  # the library: no CUDA runs here


def test_one_of_the_host_that_does_not_export_itself_is_written() -> None:
    memory = np.zeros((2, 4, 8), np.float16)
    with kvrail.Engine() as reader, kvrail.Engine() as writer:
        reader.register({"k": RequiresGrad(memory, "cpu")}, open=True)
        source = writer.register({"k": np.ones((2, 4, 8), np.float16)})
        writer.connect("127.0.0.1", reader.listen()).write_blocks(source, [3], [1])
    assert (memory[:, 1] == 1).all() and not memory[:, [0, 2, 3]].any()


@pytest.mark.parametrize(
    "tensor, error, says",
    [
        (RequiresGrad(UINT8, "meta"), kvrail.UnsupportedError, "on device 'meta'"),
        (RequiresGrad(UINT8, "xpu"), kvrail.UnsupportedError, "on device 'xpu'"),
        (RequiresGrad(UINT8, "cuda", 0), TypeError, r"no memory of its own\); give the address of each layer"),
        (
            Float8(UINT8, "cuda", RuntimeError("sparse tensors have no storage")),
            TypeError,
            "KeyError 'torch.float8_e4m3fn'.*float8 types.*sparse tensors.*give the address of each layer",
        ),
    ],
)
def test_what_has_no_memory_is_refused_with_the_way_out(tensor: Any, error: Any, says: str) -> None:
    with kvrail.Engine() as engine, pytest.raises(error, match=says):
        engine.register({"k": tensor})


def test_no_memory_is_no_refusal() -> None:
    class Poor:
        @property
        def __array_interface__(self) -> Any:
            raise MemoryError

    with pytest.raises(MemoryError):
        describe(Poor())


# -- shapes


def zeros(*shape: int) -> Any:
    return np.zeros(shape, np.uint8)


@pytest.mark.parametrize(
    "given, said, says",
    [
        (zeros(8, 64), {}, r"shape \(8, 64\); expected is \[layers, blocks, \.\.\.\].*layers=1.*block_bytes="),
        (zeros(8, 64), {"blocks": 8}, r"shape \(8, 64\), blocks=8; expected"),
        (zeros(8, 64), {"layers": 4}, r"shape \(8, 64\), layers=4; expected"),
        (zeros(64), {}, r"shape \(64,\); expected"),
        (zeros(64), {"layers": 1, "blocks": 64}, r"shape \(64,\), layers=1, blocks=64; expected"),
        (np.array(7), {}, r"shape \(\); expected"),
        (bytearray(64), {}, r"shape \(64,\); expected"),
        ([zeros(64), zeros(64)], {}, r"a layer of tensor k has the shape \(64,\); expected is \[blocks, \.\.\.\]"),
        (zeros(8, 16, 64), {"layers": 4}, r"shape \(8, 16, 64\), layers=4; expected"),
        (zeros(8, 16, 64), {"blocks": 8}, r"shape \(8, 16, 64\), blocks=8; expected"),
        (zeros(8, 16, 64), {"layers": 1, "blocks": 16}, r"layers=1, blocks=16; expected"),
        ([zeros(8, 64), zeros(8, 64)], {"layers": 3}, "tensor k has 2 layers, and layers=3"),
        ([zeros(8, 64), zeros(8, 64)], {"blocks": 9}, r"shape \(8, 64\), blocks=9; expected"),
        (kvrail.Tensor([4096, 8192], 16), {"layers": 3, "blocks": 1}, "tensor k has 2 layers, and layers=3"),
        (kvrail.Tensor(zeros(2, 64), 16), {"layers": 3}, "tensor k has 2 layers, and layers=3"),
    ],
)
def test_a_shape_that_is_not_layers_and_blocks_is_a_type_error_that_says_which_is(given: Any, said: Any, says: str) -> None:
    with kvrail.Engine() as engine, pytest.raises(TypeError, match=says):
        engine.register({"k": given}, **said)


@pytest.mark.parametrize(
    "given, said, layers, blocks, size",
    [
        (zeros(8, 64), {"layers": 1}, 1, 8, 64),
        (zeros(8, 64), {"layers": 1, "blocks": 8}, 1, 8, 64),
        (zeros(8, 64), {"layers": 8, "blocks": 64}, 8, 64, 1),
        (zeros(8, 16, 4), {"layers": 1}, 1, 8, 64),
        (zeros(1, 16, 4), {"layers": 1}, 1, 16, 4),
        (zeros(8, 16, 4), {"layers": 8, "blocks": 16}, 8, 16, 4),
        ([zeros(64), zeros(64)], {"blocks": 64}, 2, 64, 1),
        (kvrail.Tensor(zeros(2, 64), 16), {"blocks": 3}, 2, 3, 16),
        (kvrail.Tensor(zeros(64), 16), {}, 1, 4, 16),
    ],
)
def test_layers_and_blocks_say_what_is_meant(given: Any, said: Any, layers: int, blocks: int, size: int) -> None:
    with kvrail.Engine() as engine:
        cache = engine.register({"k": given}, **said)
        assert (cache.layers, cache.blocks) == (layers, blocks)
        peer = kvrail.Engine()
        mine = peer.register({"k": np.ones((layers, blocks, size), np.uint8)})
        peer.connect("127.0.0.1", engine.listen())  # which compares layers and bytes of a block
        mine.engine.close()


def test_tensors_of_different_numbers_of_blocks_are_refused() -> None:
    with kvrail.Engine() as engine:
        with pytest.raises(ValueError, match=r"different numbers of blocks \(k 8, v 9\)"):
            engine.register({"k": zeros(2, 8, 64), "v": zeros(2, 9, 64)})
        with pytest.raises(TypeError, match="tensor v has the shape"):
            engine.register({"k": zeros(2, 8, 64), "v": zeros(2, 9, 64)}, blocks=8)
        engine.register({"k": zeros(2, 8, 64), "v": zeros(2, 9, 64)[:, :8]}).close()


# -- DLPack


class Versioned:
    def __init__(self, held: Any) -> None:
        self._held = held

    def __dlpack__(self) -> Any:
        return self._held.__dlpack__(max_version=(1, 0))


def versioned(held: Any) -> Versioned:
    try:
        Versioned(held).__dlpack__()
    except TypeError:
        pytest.skip("this numpy has no DLPack 1")
    return Versioned(held)


def test_dlpack_of_version_1_is_read(pair: Pair) -> None:
    memory = np.zeros((2, 4, 16), np.uint8)
    region = describe(versioned(memory))
    assert (region.address, region.itemsize, region.shape) == (memory.ctypes.data, 1, (2, 4, 16))
    pair.peer.write_blocks(pair.source, versioned(np.array([3, 1, 2], np.int64)), [7, 8, 9])
    assert np.array_equal(pair.to[:, 7:10], pair.from_[:, [3, 1, 2]])
    frozen = memory.copy()
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        describe(versioned(frozen))


def test_items_that_are_not_whole_bytes_are_refused() -> None:
    capsule = np.zeros((2, 4, 16), np.uint8).__dlpack__()
    import ctypes

    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    ctypes.c_uint8.from_address(pointer(capsule, b"dltensor") + 21).value = 4  # bits
    int4 = type("Int4", (), {"__dlpack__": lambda self: capsule})()
    with pytest.raises(TypeError, match="items of a Int4 are not whole bytes; give the address"):
        describe(int4)


@pytest.mark.parametrize("error", [BufferError("on a device"), RuntimeError("conj"), KeyError("dtype")])
def test_ids_in_a_tensor_that_does_not_export_itself_name_the_argument(pair: Pair, error: Exception) -> None:
    class Ids:
        def __dlpack__(self) -> Any:
            raise error

    with pytest.raises(TypeError, match=f"local_ids is a tensor whose memory cannot be reached.*{type(error).__name__}"):
        pair.peer.write_blocks(pair.source, Ids(), [1])


# -- numpy


def test_a_masked_array_is_refused_its_data_is_not() -> None:
    masked = np.ma.masked_array(np.zeros((2, 4, 16), np.uint8), mask=False)
    with kvrail.Engine() as engine:
        with pytest.raises(TypeError, match="a mask does not travel"):
            engine.register({"k": masked})
        engine.register({"k": masked.data})
    cuda = type("Numba", (), {"__cuda_array_interface__": {**describable(), "mask": 1}})()
    with pytest.raises(TypeError, match="a mask does not travel"):
        describe(cuda)


def describable() -> Dict[str, Any]:
    return {"shape": (2, 4, 8), "typestr": "<f2", "data": (1 << 40, False), "version": 3}


def test_masked_ids_are_refused(pair: Pair) -> None:
    plain: List[Any] = [[1, 2], np.array([1, 2])]
    for ids in plain + [np.ma.masked_array([1, 2], [0, 1])] + plain:
        if isinstance(ids, np.ma.MaskedArray):
            with pytest.raises(TypeError, match="remote_ids is a masked array"):
                pair.peer.write_blocks(pair.source, [1, 2], ids)
        else:
            pair.peer.write_blocks(pair.source, [1, 2], ids)


def test_records_that_hold_objects_are_refused() -> None:
    with pytest.raises(ValueError, match="Python objects"):
        describe(np.zeros((2, 4), [("a", np.int64), ("b", object)]))


def test_types_without_a_name_in_numpy_are_bytes() -> None:
    """bfloat16, as ml_dtypes and torch say it."""
    cuda = type("Bf16", (), {"__cuda_array_interface__": {**describable(), "typestr": "<V2"}})()
    assert describe(cuda).itemsize == 2


def test_a_stream_is_torchs_cupys_or_a_number() -> None:
    torch_like = type("Stream", (), {"cuda_stream": 7, "ptr": 9})()
    cupy_like = type("Stream", (), {"ptr": 9})()
    default = type("Stream", (), {"cuda_stream": 0})()
    assert [stream(s) for s in (None, torch_like, cupy_like, 5, default, 0)] == [0, 7, 9, 5, 1, 1]
    with pytest.raises(TypeError, match="stream is a str"):
        stream("7")
