# SPDX-License-Identifier: Apache-2.0
"""Memory of every kind, described as address, shape and strides: what a cache is registered from."""

from __future__ import annotations

import ctypes
import operator
from typing import Any, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Union

from . import _core
from ._check import I63, U64, integer, shown
from ._errors import UnsupportedError

#: An address, or an object with a buffer, __array_interface__, __cuda_array_interface__, __dlpack__ or data_ptr().
MemoryLike = Union[int, Any]
_LAYERS_MAX = 1024  # KV_LAYERS_MAX
_DL_HOST = (1, 3, 13)  # CPU, CUDA pinned host, CUDA managed
_DL_CUDA = 2


class Region(NamedTuple):
    address: int
    itemsize: int
    shape: Tuple[int, ...]
    strides: Tuple[int, ...]
    keep: object  # whose memory it is
    cuda: bool = False


class Tensor(NamedTuple):
    """One tensor of every layer, with what cannot be read off the memory itself.

    layers: one array [layers, blocks, ...], or a list with one array [blocks, ...] or one address for each layer.
    block_bytes, stride: needed for addresses and plain buffers; otherwise from the arrays.
    replicated: every tensor-parallel rank holds the same bytes (MLA).
    order: "HND" or "NHD" where this tensor's is not what register() is given for all.
    cuda: the addresses are CUDA's; arrays say so themselves.
    """

    layers: Union[MemoryLike, Sequence[MemoryLike]]
    block_bytes: Optional[int] = None
    stride: Optional[int] = None
    replicated: bool = False
    cuda: bool = False
    order: Optional[str] = None


class Slabs(NamedTuple):
    """A tensor as the library wants it."""

    bases: List[int]
    blocks: Optional[int]  # None: addresses only, not known
    block_bytes: int
    stride: int
    keep: List[object]
    cuda: bool


def _contiguous(shape: Sequence[int], itemsize: int) -> Tuple[int, ...]:
    strides: List[int] = []
    step = itemsize
    for n in reversed(shape):
        strides.insert(0, step)
        step *= n
    return tuple(strides)


def _from_interface(obj: object, desc: Mapping[str, Any]) -> Region:
    try:
        address, readonly = desc["data"]
        kind, itemsize = desc["typestr"][1], int(desc["typestr"][2:] or 0)
        shape = tuple(operator.index(n) for n in desc["shape"])
        strides = tuple(operator.index(n) for n in desc.get("strides") or _contiguous(shape, itemsize))
        region = Region(operator.index(address), itemsize, shape, strides, obj)
        masked = desc.get("mask") is not None or any(base.__name__ == "MaskedArray" for base in type(obj).__mro__)
    except (TypeError, ValueError, LookupError, AttributeError) as exc:
        raise TypeError(f"the __array_interface__ of a {type(obj).__name__} is not understood: {exc}") from None
    if len(strides) != len(shape) or min(shape, default=0) < 0:
        raise ValueError(f"memory with shape {shape} and strides {strides}")
    if masked:
        raise TypeError("a mask does not travel: of a masked array give the .data, if its masked items may move too")
    if kind == "O" or getattr(getattr(obj, "dtype", None), "hasobject", False):
        raise ValueError("an array of Python objects is not memory for a cache")
    if readonly:
        raise ValueError("the memory is read-only; a cache is written by peers")
    return region


def _on_a_device(what: str) -> UnsupportedError:
    exc = UnsupportedError(f"{what}: this version registers the memory of the host and of CUDA")
    exc.code, exc.name, exc.cause = _core.ERR_UNSUPPORTED, "UNSUPPORTED", str(exc)
    return exc


def _from_dlpack(obj: object, capsule: object) -> Region:
    device, _, address, itemsize, shape, strides, readonly = _core.dlpack_info(capsule)
    if device != _DL_CUDA and device not in _DL_HOST:
        raise _on_a_device(f"memory of DLPack device type {device}")
    if readonly:
        raise ValueError("the memory is read-only; a cache is written by peers")
    if not itemsize:
        raise TypeError(f"the items of a {type(obj).__name__} are not whole bytes; {_WAY_OUT}")
    steps = tuple(strides) if strides else _contiguous(shape, itemsize)
    return Region(address, itemsize, tuple(shape), steps, capsule, device == _DL_CUDA)


_WAY_OUT = "give the address of each layer: kvrail.Tensor([...], block_bytes=..., cuda=...)"


def _offered(obj: Any, name: str, refusals: List[str], call: bool = False) -> Any:
    """What an object has under a protocol's name. None: it has no such name, or it refuses, and why is a refusal more.

    A tensor that requires gradients refuses, so does one of a dtype that the protocol has no word for.
    """
    try:
        got = getattr(obj, name, None)
        return got() if call and got is not None else got
    except MemoryError:
        raise
    except Exception as exc:
        refusals.append(f"{name}: {type(exc).__name__} {shown(exc)}")
        return None


def _from_pointer(obj: Any, refusals: List[str]) -> Optional[Region]:
    """The words that torch's tensors and their likes have for themselves."""
    try:
        itemsize = operator.index(obj.element_size())
        shape = tuple(operator.index(n) for n in obj.shape)
        steps = obj.stride() if callable(getattr(obj, "stride", None)) else obj.strides
        strides = tuple(operator.index(n) * itemsize for n in steps)
        device = str(getattr(obj.device, "type", obj.device))
        address = operator.index(obj.data_ptr()) if device in ("cpu", "cuda") else 0
    except MemoryError:
        raise
    except Exception as exc:
        refusals.append(f"data_ptr(): {type(exc).__name__} {shown(exc)}")
        return None
    if device not in ("cpu", "cuda"):
        raise _on_a_device(f"a {type(obj).__name__} on device '{shown(device)}'")
    if not address or len(strides) != len(shape):
        refusals.append("data_ptr(): it has no memory of its own")
        return None
    return Region(address, itemsize, shape, strides, obj, device == "cuda")


def describe(obj: Any) -> Region:
    """Where an object's memory is. Raises TypeError for what has none."""
    refusals: List[str] = []
    desc = _offered(obj, "__cuda_array_interface__", refusals)
    if desc is not None:
        return _from_interface(obj, desc)._replace(cuda=True)
    desc = _offered(obj, "__array_interface__", refusals)
    if desc is not None:
        return _from_interface(obj, desc)
    capsule = _offered(obj, "__dlpack__", refusals, call=True)
    if capsule is not None:
        return _from_dlpack(obj, capsule)
    if refusals:
        region = _from_pointer(obj, refusals)
        if region is None:
            raise TypeError(f"the memory of a {type(obj).__name__} cannot be reached ({'; '.join(refusals)}); {_WAY_OUT}")
        return region
    try:
        view = memoryview(obj)
    except TypeError:
        raise TypeError(f"a {type(obj).__name__} is neither an address nor has it memory to register") from None
    if view.readonly:
        raise ValueError("the memory is read-only; a cache is written by peers")
    if not view.c_contiguous:
        raise ValueError("the buffer does not lie in one piece")
    # The limited API of 3.10 has no buffer protocol. ctypes exports the buffer, which also keeps it from being resized.
    held = (ctypes.c_char * view.nbytes).from_buffer(view)
    return Region(ctypes.addressof(held), view.itemsize, tuple(view.shape or ()), tuple(view.strides or ()), held)


def _inner_bytes(region: Region, axes: int, name: str) -> int:
    """Bytes of one block, whose bytes must lie in one piece."""
    shape, strides = region.shape[axes:], region.strides[axes:]
    if any(n > 1 and s != c for n, s, c in zip(shape, strides, _contiguous(shape, region.itemsize))):
        raise ValueError(f"tensor {name}: the bytes of one block do not lie in one piece")
    size = region.itemsize
    for n in shape:
        size *= n
    return size


def _blocks_of(region: Region, axis: int, tensor: Tensor, name: str) -> Tuple[int, int, int]:
    """(blocks, block_bytes, stride) of one layer whose axis `axis` counts blocks, or of a plain run of bytes."""
    if tensor.block_bytes is None:
        size, stride = _inner_bytes(region, axis + 1, name), region.strides[axis]
        if region.shape[axis] > 1 and stride < size:
            raise ValueError(f"tensor {name}: blocks of {size} bytes with a stride of {stride} overlap")
        return region.shape[axis], size, max(stride, size)
    stride = tensor.stride or tensor.block_bytes
    size = _inner_bytes(region, axis, name)
    blocks = (size - tensor.block_bytes) // stride + 1 if size >= tensor.block_bytes else 0
    return blocks, tensor.block_bytes, stride


class Meant(NamedTuple):
    """The layers and blocks that register() was given; None where it was not."""

    layers: Optional[int]
    blocks: Optional[int]

    def has_layer_axis(self, shape: Tuple[int, ...], name: str) -> bool:
        """Whether an array is [layers, blocks, ...]; else it is the one layer's [blocks, ...]. TypeError if neither.

        With two axes it could be either, with a last axis of bytes or of blocks of one item: it must be said.
        """
        fits = [want in (None, n) for want, n in zip(self, shape)]
        if all(fits) and (len(shape) > 2 or (len(shape) == 2 and None not in self)):
            return True
        if self.layers == 1 and len(shape) >= 2 and self.blocks in (None, shape[0]):
            return False
        raise self._wrong(f"tensor {name} has the shape {shape}", "layers, blocks", "layers=1 for an array [blocks, ...]")

    def check_layer(self, shape: Tuple[int, ...], name: str) -> None:
        """Of one of a list with an array for each layer."""
        if self.blocks not in (None, *shape[:1]) or len(shape) < 2 and (not shape or self.blocks is None):
            raise self._wrong(f"a layer of tensor {name} has the shape {shape}", "blocks", "blocks= where each is one item")

    def check_layers(self, layers: int, name: str) -> None:
        if self.layers not in (None, layers):
            raise TypeError(f"tensor {name} has {layers} layers, and layers={self.layers} was given")

    def _wrong(self, what: str, axes: str, way_out: str) -> TypeError:
        said = "".join(f", {key}={value}" for key, value in zip(("layers", "blocks"), self) if value is not None)
        return TypeError(
            f"{what}{said}; expected is [{axes}, ...], the rest being one block. "
            f"Say {way_out}, or Tensor(..., block_bytes=...) for plain bytes"
        )


def _one_array(region: Region, tensor: Tensor, name: str, meant: Meant) -> Slabs:
    if tensor.block_bytes is None:
        one_layer = not meant.has_layer_axis(region.shape, name)
    else:
        one_layer = len(region.shape) < 2
    if one_layer:
        return _many([region], tensor, name, meant)
    meant.check_layers(region.shape[0], name)
    if region.shape[0] > _LAYERS_MAX:
        raise ValueError(f"tensor {name} has {region.shape[0]} layers (axis 0); a cache has {_LAYERS_MAX} at most")
    blocks, block_bytes, stride = _blocks_of(region, 1, tensor, name)
    bases = [region.address + i * region.strides[0] for i in range(region.shape[0])]
    return Slabs(bases, blocks, block_bytes, stride, [region.keep], region.cuda)


def _many(regions: Sequence[Region], tensor: Tensor, name: str, meant: Meant) -> Slabs:
    meant.check_layers(len(regions), name)
    for region in regions if tensor.block_bytes is None else ():
        meant.check_layer(region.shape, name)
    found = {_blocks_of(region, 0, tensor, name) for region in regions}
    if len(found) != 1:
        raise ValueError(f"tensor {name}: the layers differ in shape or strides")
    blocks, block_bytes, stride = found.pop()
    if len({r.cuda for r in regions}) != 1:
        raise ValueError(f"tensor {name}: some layers are in a GPU's memory and some are not")
    return Slabs([r.address for r in regions], blocks, block_bytes, stride, [r.keep for r in regions], regions[0].cuda)


def blocks_of_all(slabs: Mapping[str, Slabs], meant: Meant) -> int:
    """How many blocks every tensor has."""
    known = {name: s.blocks for name, s in slabs.items() if s.blocks is not None}
    if meant.blocks is not None:
        few = [f"{name} for {n}" for name, n in known.items() if n < meant.blocks]
        if few:
            raise ValueError(f"blocks={meant.blocks} do not fit into the memory of tensor {', '.join(few)}")
        return meant.blocks
    if not known:
        raise ValueError("blocks is needed for addresses")
    if len(set(known.values())) != 1:
        words = ", ".join(f"{name} {n}" for name, n in known.items())
        raise ValueError(f"the tensors have different numbers of blocks ({words}); a block is a part of every tensor")
    return next(iter(known.values()))


def _addresses(addresses: Sequence[int], tensor: Tensor, name: str) -> Slabs:
    if tensor.block_bytes is None:
        raise ValueError(f"tensor {name}: block_bytes is needed for addresses")
    return Slabs(list(addresses), None, tensor.block_bytes, tensor.stride or tensor.block_bytes, [], tensor.cuda)


def slabs_of(name: str, tensor: Tensor, meant: Meant) -> Slabs:
    """Whatever was given for a tensor, as one base for each layer."""
    if tensor.block_bytes is not None:
        integer(tensor.block_bytes, f"block_bytes of tensor {name}", 1, 2**36 - 1)
    if tensor.stride is not None:
        integer(tensor.stride, f"stride of tensor {name}", 0, I63)
    memory = tensor.layers
    if isinstance(memory, int):
        memory = [memory]
    if not isinstance(memory, (list, tuple)):
        return _one_array(describe(memory), tensor, name, meant)
    if not memory:
        raise ValueError(f"tensor {name} has no layers")
    if all(hasattr(item, "__index__") and not getattr(item, "shape", ()) for item in memory):
        meant.check_layers(len(memory), name)
        return _addresses([integer(item, f"address {i} of tensor {name}", 1, U64) for i, item in enumerate(memory)], tensor, name)
    return _many([describe(item) for item in memory], tensor, name, meant)
