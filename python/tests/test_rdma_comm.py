# SPDX-License-Identifier: Apache-2.0
"""The drop-in: every signature, every result, bytes in another process."""

from __future__ import annotations

import gc
import logging
import os
import threading
from typing import Any, Callable, List, Optional

import children as far
import numpy as np
import pytest
from children import Child, held_port
from conftest import pattern

from rdma_comm import ConnectStatus, RDMACommunicator, _gpu
from rdma_comm._arguments import parse

LAYERS, BLOCKS, BYTES, SCALE = 2, 24, 512, 32
HOST = "127.0.0.1"


def pointers(array: Any) -> List[int]:
    return [array[layer].ctypes.data for layer in range(array.shape[0])]


@pytest.fixture
def arrays() -> List[Any]:
    kv = [pattern(seed, LAYERS, BLOCKS, BYTES) for seed in (1, 2)]
    return kv + [pattern(seed, LAYERS, BLOCKS, SCALE) for seed in (3, 4)]


SHAPES = [(LAYERS, BLOCKS, BYTES)] * 2 + [(LAYERS, BLOCKS, SCALE)] * 2


def expect(child: Child, arrays: List[Any], layers: List[int], local: List[int], remote: List[int]) -> None:
    got = child.call(far.arrays)
    for source, array in zip(arrays, got):
        want = np.zeros_like(array)
        for layer in layers:
            want[layer, remote] = source[layer, local]
        assert np.array_equal(array, want)


# -- constructor

K, V = [4096, 8192], [12288, 16384]
KS, VS = [1, 2], [3, 4]
SEVEN = ("prefill", 1, "0", K, V, 8, 64)


@pytest.mark.parametrize(
    "args, kwargs, tp, scales",
    [
        (SEVEN, {}, (1, 0), 0),
        (SEVEN + (4,), {}, (4, 0), 0),
        (SEVEN + (4, 3), {}, (4, 3), 0),
        (SEVEN + (np.int64(4), np.int32(3)), {}, (4, 3), 0),
        (SEVEN + (KS, VS, 16), {}, (1, 0), 16),
        (SEVEN + (KS, VS, 16, 4, 3), {}, (4, 3), 16),
        (SEVEN + ([], [], 0, 2, 1), {}, (2, 1), 0),
        (SEVEN + (np.array(KS), np.array(VS), 16, 4, 3), {}, (4, 3), 16),
        (SEVEN, {"prefill_tp_size": 4, "prefill_tp_idx": 3}, (4, 3), 0),
        (SEVEN, {"key_scale_ptrs": KS, "value_scale_ptrs": VS, "scale_block_bytes": 16}, (1, 0), 16),
        (SEVEN + (KS, VS, 16), {"prefill_tp_idx": 1, "prefill_tp_size": 2}, (2, 1), 16),
        (
            (),
            dict(role="prefill", gpu_idx=1, port=0, local_key_cache=K, local_value_cache=V, block_number=8, block_bytes=64),
            (1, 0),
            0,
        ),
        (
            (),
            dict(
                splitwise_role="prefill",
                gpu_idx=1,
                port="0",
                key_cache_ptrs=K,
                value_cache_ptrs=V,
                block_number=8,
                block_bytes=64,
            ),
            (1, 0),
            0,
        ),
        (("prefill", np.int64(1), 0, np.array(K), np.array(V), np.int64(8), np.int32(64)), {}, (1, 0), 0),
        (("prefill", 1, b"0", tuple(K), np.array(V, np.uint64), 8, 64), {}, (1, 0), 0),
    ],
)
def test_every_signature_ever_shipped(args: Any, kwargs: Any, tp: Any, scales: int) -> None:
    got = parse(args, kwargs)
    assert got[:7] == ("prefill", 1, 0, K, V, 8, 64)
    assert (got.tp_size, got.tp_rank, got.scale_bytes) == (*tp, scales)
    assert (got.key_scales, got.value_scales) == ((KS, VS) if scales else ([], []))


@pytest.mark.parametrize(
    "args, kwargs, error, says",
    [
        ((), {}, TypeError, "lacks splitwise_role"),
        (SEVEN[:6], {}, TypeError, "lacks block_bytes"),
        (SEVEN + (1, 0, 5), {}, TypeError, "at most 9"),
        (SEVEN + (KS, VS, 16, 1, 0, 7), {}, TypeError, "at most 12"),
        (SEVEN, {"role": "decode"}, TypeError, "two values for 'splitwise_role'"),
        (SEVEN, {"nic": 1}, TypeError, "no argument 'nic'"),
        (("both",) + SEVEN[1:], {}, ValueError, "'prefill', 'decode' or 'mixed'"),
        (SEVEN[:1] + ("0",) + SEVEN[2:], {}, TypeError, "gpu_idx is a str"),
        (SEVEN[:1] + (-1,) + SEVEN[2:], {}, ValueError, "gpu_idx is -1"),
        (("decode", 1, "http") + SEVEN[3:], {}, ValueError, "not a number"),
        (("decode", 1, 70000) + SEVEN[3:], {}, ValueError, "port is 70000"),
        (SEVEN[:3] + ([],) + SEVEN[4:], {}, ValueError, "key_cache_ptrs is empty"),
        (SEVEN[:3] + (7,) + SEVEN[4:], {}, TypeError, "not a int"),
        (SEVEN[:3] + ([1.5],) + SEVEN[4:], {}, TypeError, r"key_cache_ptrs\[0\] is a float"),
        (SEVEN[:3] + ([0, 1],) + SEVEN[4:], {}, ValueError, r"key_cache_ptrs\[0\] is 0"),
        (SEVEN[:4] + ([1],) + SEVEN[5:], {}, ValueError, "value_cache_ptrs has 1 layers"),
        (SEVEN[:5] + (0, 64), {}, ValueError, "block_number is 0"),
        (SEVEN[:6] + (-64,), {}, ValueError, "block_bytes is -64"),
        (SEVEN + (KS, VS), {}, ValueError, "scale_block_bytes is 0"),
        (SEVEN + (2, 2), {}, ValueError, "prefill_tp_idx is 2"),
    ],
)
def test_wrong_arguments_of_the_constructor_say_which(args: Any, kwargs: Any, error: Any, says: str) -> None:
    with pytest.raises(error, match=says):
        RDMACommunicator(*args, **kwargs)


def test_a_port_in_use_is_the_reason_given(child: Child, arrays: List[Any]) -> None:
    port = child.call(far.open_decode, SHAPES[:1], "0")
    with pytest.raises(RuntimeError, match="EADDRINUSE|in use"):
        RDMACommunicator("decode", 0, str(port), pointers(arrays[0]), [], BLOCKS, BYTES)


def test_a_device_that_is_not_there_is_the_reason_given(arrays: List[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVCACHE_RDMA_NICS", "mlx5_77,mlx5_78")
    with pytest.raises(RuntimeError, match="mlx5_78"):  # gpu_idx 1: the second of the list
        RDMACommunicator("prefill", 1, "0", pointers(arrays[0]), [], BLOCKS, BYTES)


class Cuda:
    """CUDA as it answers in a process that runs it: GPU number n has bus n + 16; `held` is the GPU that holds the cache."""

    def __init__(self, held: Optional[int] = None) -> None:
        self.held = held

    def cuPointerGetAttribute(self, to: Any, attribute: int, pointer: Any) -> int:
        assert (attribute, pointer.value) == (9, 4096)
        if self.held is None:
            return 1
        to._obj.value = self.held
        return 0

    def cuDeviceGetPCIBusId(self, text: Any, size: int, ordinal: Any) -> int:
        if ordinal.value > 7:
            return 101
        text.value = f"0000:{ordinal.value + 16:02x}:00.0".encode()
        return 0


@pytest.mark.parametrize(
    "cuda, visible, gpu_idx, gpu",
    [
        (Cuda(held=3), "", 1, "0000:13:00.0"),  # where the cache really is
        (Cuda(), "4,5", 1, "0000:11:00.0"),  # CUDA's own numbering already knows what is visible
        (Cuda(), "4,5", 9, "9"),
        (None, "", 1, "1"),
        (None, "4,5", 1, "5"),
        (None, "4,5", 5, "5"),
        (None, "GPU-aaaa,GPU-bbbb", 1, "GPU-bbbb"),
        (object(), "", 2, "2"),  # a libcuda without these functions
    ],
)
def test_the_gpu_of_the_cache_chooses_the_nics(
    cuda: Any, visible: str, gpu_idx: int, gpu: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_gpu, "_cuda", lambda: cuda)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert _gpu.of_cache(4096, gpu_idx) == gpu


class CudaMemory:
    """CUDA as it answers of a pointer's memory: what is not named it does not know."""

    def __init__(self, **known: int) -> None:
        self.known = {{"type": 2, "managed": 8}[name]: value for name, value in known.items()}

    def cuPointerGetAttribute(self, to: Any, attribute: int, pointer: Any) -> int:
        to._obj.value = self.known.get(attribute, 0)
        return 0 if attribute in self.known else 1

    def cuDeviceGetPCIBusId(self, text: Any, size: int, ordinal: Any) -> int:
        return 101


@pytest.mark.parametrize(
    "cuda, held",
    [
        (CudaMemory(type=2, managed=0), True),
        (CudaMemory(type=2), True),
        (CudaMemory(type=2, managed=1), False),  # a CPU may touch it
        (CudaMemory(type=1, managed=0), False),  # pinned host memory
        (CudaMemory(), False),
        (object(), False),
        (None, False),
    ],
)
def test_a_gpus_memory_is_told_from_the_hosts(cuda: Any, held: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_gpu, "_cuda", lambda: cuda)
    assert _gpu.holds(4096) == held


def test_a_gpus_memory_is_registered_as_such(arrays: List[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_gpu, "_cuda", lambda: CudaMemory(type=2, managed=0))
    monkeypatch.setenv("KVCACHE_TRANSPORT", "shm")
    with pytest.raises(RuntimeError, match="CUDA does not run in this process"):  # it does for _gpu only
        RDMACommunicator("decode", 0, "0", pointers(arrays[0]), [], BLOCKS, BYTES)


def test_a_gpu_or_nics_named_by_the_user_win(arrays: List[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVCACHE_GPU", "0000:77:00.0")
    monkeypatch.setenv("KVCACHE_TRANSPORT", "ib")
    with pytest.raises(RuntimeError, match="0000:77:00.0|libibverbs"):
        RDMACommunicator("prefill", 1, "0", pointers(arrays[0]), [], BLOCKS, BYTES)


# -- connect and write


@pytest.mark.parametrize("tensors", [1, 2, 4], ids=["mla", "kv", "kv with scales"])
def test_blocks_arrive_in_another_process_and_nothing_else_changes(
    child: Child, arrays: List[Any], tensors: int
) -> None:
    arrays = arrays[:tensors]
    port = child.call(far.open_decode, SHAPES[:tensors], "0")
    scales = [pointers(arrays[2]), pointers(arrays[3]), SCALE] if tensors == 4 else []
    values = pointers(arrays[1]) if tensors > 1 else []
    with RDMACommunicator("prefill", 0, "0", pointers(arrays[0]), values, BLOCKS, BYTES, *scales) as comm:
        assert not comm.is_connected(HOST, port)
        result = comm.connect(HOST, str(port))
        assert result == 0 and result
        assert comm.is_connected(HOST, port) and comm.is_connected(HOST, str(port))
        assert comm.write_cache(HOST, str(port), [1, 2, 3], [9, 0, 23], 1) == 0
        expect(child, arrays, [1], [1, 2, 3], [9, 0, 23])
        assert comm.write_cache(HOST, port, np.array([1, 2, 3]), (9, 0, 23), 0) == 0
        expect(child, arrays, [0, 1], [1, 2, 3], [9, 0, 23])
        assert comm.last_error() == ""
    assert np.array_equal(arrays[0], pattern(1, LAYERS, BLOCKS, BYTES))  # the source is as it was


def test_both_sets_of_keywords(child: Child, arrays: List[Any]) -> None:
    port = child.call(far.open_decode, SHAPES[:2], 0)
    comm = RDMACommunicator(
        role="prefill",
        gpu_idx=0,
        port="12345",
        local_key_cache=pointers(arrays[0]),
        local_value_cache=pointers(arrays[1]),
        block_number=BLOCKS,
        block_bytes=BYTES,
    )
    assert comm.connect(dst_ip=HOST, dst_port=str(port), dst_tp_size=0)
    assert comm.is_connected(dst_ip=HOST, dst_port=str(port))
    ids = dict(local_block_ids=[0, 1, 2], remote_block_ids=[3, 4, 5])
    assert comm.write_cache(ip=HOST, port=str(port), layer_idx=0, **ids) == 0
    assert comm.write_cache(dst_ip=HOST, dst_port=str(port), layer_idx=1, **ids) == 0
    expect(child, arrays[:2], [0, 1], [0, 1, 2], [3, 4, 5])
    comm.close()


class OnlyDlpack:
    """A tensor that is no numpy array."""

    def __init__(self, values: List[int], dtype: Any) -> None:
        self._array = np.array(values, dtype)

    def __dlpack__(self, **kwargs: Any) -> Any:
        return self._array.__dlpack__(**kwargs)


@pytest.mark.parametrize(
    "ids",
    [
        [5, 7],
        (5, 7),
        range(5, 8, 2),
        np.array([5, 7]),
        np.array([5, 7], np.int32),
        np.array([5, 7], np.uint8),
        np.array([5, 7], np.uint64),
        np.array([5, 0, 7, 0])[::2],
        np.array([7, 5], np.int64)[::-1],
        [np.int64(5), np.uint8(7)],
        OnlyDlpack([5, 7], np.int64),
        OnlyDlpack([5, 7], np.int16),
    ],
    ids=repr,
)
def test_ids_of_every_kind(child: Child, arrays: List[Any], ids: Any) -> None:
    port = child.call(far.open_decode, SHAPES[:1], "0")
    with RDMACommunicator("prefill", 0, "0", pointers(arrays[0]), [], BLOCKS, BYTES) as comm:
        assert comm.connect(HOST, port)
        assert comm.write_cache(HOST, port, ids, ids, np.int64(0)) == 0
        expect(child, arrays[:1], [0], [5, 7], [5, 7])


@pytest.mark.parametrize(
    "local, remote, layer, says",
    [
        ([1, 99], [0, 1], 0, r"local_ids\[1\] is 99"),
        ([1, 2], [0, -1], 0, r"remote_ids\[1\] is -1"),
        ([1, 2], [0, BLOCKS], 0, r"remote_ids\[1\]"),
        ([1, 2], [3, 3], 0, "DUP_BLOCK"),
        ([1, 2], [3], 0, "2 local ids but 1 remote"),
        ([1], [3], LAYERS, "layer"),
        ([1], [3], -1, "layer is -1"),
        ([1], [3], 2**32, "layer is 4294967296"),
        ([2**64], [3], 0, "64 bits"),
    ],
)
def test_what_is_out_of_range_gives_minus_one_and_the_cause(
    child: Child, arrays: List[Any], local: Any, remote: Any, layer: Any, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    port = child.call(far.open_decode, SHAPES[:1], "0")
    with RDMACommunicator("prefill", 0, "0", pointers(arrays[0]), [], BLOCKS, BYTES) as comm:
        assert comm.connect(HOST, port)
        with caplog.at_level(logging.ERROR, "rdma_comm"):
            assert comm.write_cache(HOST, port, local, remote, layer) == -1
        import re

        assert re.search(says, comm.last_error()), comm.last_error()
        assert comm.last_error() in caplog.text
        expect(child, arrays[:1], [], [], [])
        assert comm.write_cache(HOST, port, [1], [2], 0) == 0  # nothing is lost


@pytest.mark.parametrize(
    "local, remote, layer",
    [
        ("12", [1, 2], 0),
        (b"12", [1, 2], 0),
        ([1.0], [1], 0),
        (["1"], [1], 0),
        ([None], [1], 0),
        (None, [1], 0),
        (1, [1], 0),
        ({1: 2}, [1], 0),
        (np.array([1.0]), [1], 0),
        (np.array([[1]]), [1], 0),
        (np.array(1), [1], 0),
        ([1], [1], "0"),
        ([1], [1], None),
    ],
    ids=repr,
)
def test_what_is_no_integer_is_a_type_error(
    child: Child, arrays: List[Any], local: Any, remote: Any, layer: Any
) -> None:
    port = child.call(far.open_decode, SHAPES[:1], "0")
    with RDMACommunicator("prefill", 0, "0", pointers(arrays[0]), [], BLOCKS, BYTES) as comm:
        assert comm.connect(HOST, port)
        with pytest.raises(TypeError):
            comm.write_cache(HOST, port, local, remote, layer)
        expect(child, arrays[:1], [], [], [])


def test_connect_that_fails_is_not_zero_and_false(arrays: List[Any]) -> None:
    with RDMACommunicator("prefill", 0, "0", pointers(arrays[0]), [], BLOCKS, BYTES) as comm:
        result = comm.connect(HOST, "1")
        assert result != 0 and not result and isinstance(result, int)
        assert "refused" in comm.last_error() or "PEER_LOST" in comm.last_error()
        assert not comm.is_connected(HOST, "1")
        assert comm.write_cache(HOST, "1", [0], [0], 0) == -1
        assert "not connected" in comm.last_error()
        assert not comm.connect(HOST, "nonsense") and not comm.is_connected(HOST, "nonsense")
        with pytest.raises(TypeError):
            comm.connect(None, 1)  # type: ignore[arg-type]


def test_the_result_of_connect_is_a_number_with_its_equality_and_hash() -> None:
    good, bad = ConnectStatus(0), ConnectStatus(2)
    assert good == 0 and good and bad != 0 and not bad
    assert hash(good) == hash(0) and hash(bad) == hash(2)
    assert {0: "yes"}[good] == "yes" and {good, bad} == {0, 2}
    assert (f"{good}", f"{bad}", repr(ConnectStatus(1))) == ("0 (connected)", "2 (error)", "<ConnectStatus 1 (disconnected)>")


def test_a_mixed_process_connects_and_writes_and_does_not_listen(child: Child, arrays: List[Any]) -> None:
    port = child.call(far.open_decode, SHAPES[:1], "0")
    with RDMACommunicator("mixed", 0, "http", pointers(arrays[0]), [], BLOCKS, BYTES) as comm:
        assert not hasattr(comm, "port")
        assert comm.connect(HOST, port, -1), comm.last_error()
        assert comm.write_cache(HOST, port, [1], [2], 0) == 0
        expect(child, arrays[:1], [0], [1], [2])


def test_another_geometry_is_refused_with_both_values(child: Child, arrays: List[Any]) -> None:
    port = child.call(far.open_decode, [(LAYERS, BLOCKS, BYTES * 2)], "0")
    with RDMACommunicator("prefill", 0, "0", pointers(arrays[0]), [], BLOCKS, BYTES) as comm:
        assert not comm.connect(HOST, port)
        assert str(BYTES) in comm.last_error() and str(2 * BYTES) in comm.last_error()


@pytest.mark.parametrize("told", [False, True], ids=["by connect", "by both"])
def test_two_tensor_parallel_ranks_fill_the_halves_of_one_block(child: Child, arrays: List[Any], told: bool) -> None:
    shapes = [(LAYERS, BLOCKS, 2 * BYTES)] * 2
    port = child.call(far.open_decode, shapes, "0", *([1, 0] if told else []))
    for rank in (0, 1):
        source = [pattern(10 + rank, LAYERS, BLOCKS, BYTES), pattern(20 + rank, LAYERS, BLOCKS, BYTES)]
        args = ("prefill", rank, "0", pointers(source[0]), pointers(source[1]), BLOCKS, BYTES, 2, rank)
        with RDMACommunicator(*args) as comm:
            assert comm.connect(HOST, port, 1), comm.last_error()
            for layer in range(LAYERS):
                assert comm.write_cache(HOST, port, [4, 5], [6, 20], layer) == 0
    for t, got in enumerate(child.call(far.arrays)):
        want = np.zeros_like(got)
        for rank in (0, 1):
            source = pattern(10 * (t + 1) + rank, LAYERS, BLOCKS, BYTES)
            want[:, [6, 20], rank * BYTES : (rank + 1) * BYTES] = source[:, [4, 5]]
        assert np.array_equal(got, want)


def test_one_prefill_rank_feeds_each_of_two_decode_ranks_its_half(children: Callable[[], Child]) -> None:
    source = pattern(7, LAYERS, BLOCKS, 2 * BYTES)
    with RDMACommunicator("prefill", 0, "0", pointers(source), [], BLOCKS, 2 * BYTES) as comm:
        for rank in (0, 1):
            child = children()
            port = child.call(far.open_decode, [(LAYERS, BLOCKS, BYTES)], "0", 2, rank)
            assert comm.connect(HOST, port, 2), comm.last_error()
            assert comm.write_cache(HOST, port, [4, 5], [6, 20], 1) == 0
            want = np.zeros((LAYERS, BLOCKS, BYTES), np.uint8)
            want[1, [6, 20]] = source[1, [4, 5], rank * BYTES : (rank + 1) * BYTES]
            assert np.array_equal(child.call(far.arrays)[0], want)


@pytest.mark.parametrize("told", [False, True], ids=["by connect", "by both"])
def test_four_prefill_ranks_fill_the_blocks_of_two_decode_ranks(children: Callable[[], Child], told: bool) -> None:
    for decode_rank in (0, 1):
        child = children()
        port = child.call(far.open_decode, [(LAYERS, BLOCKS, 2 * BYTES)], "0", *([2, decode_rank] if told else []))
        want = np.zeros((LAYERS, BLOCKS, 2 * BYTES), np.uint8)
        for rank in (2 * decode_rank, 2 * decode_rank + 1):
            source = pattern(30 + rank, LAYERS, BLOCKS, BYTES)
            with RDMACommunicator("prefill", rank, "0", pointers(source), [], BLOCKS, BYTES, 4, rank) as comm:
                assert comm.connect(HOST, port, 2), comm.last_error()
                assert comm.write_cache(HOST, port, [4], [6], 0) == 0
            half = rank % 2
            want[0, 6, half * BYTES : (half + 1) * BYTES] = source[0, 4]
        assert np.array_equal(child.call(far.arrays)[0], want)


@pytest.mark.parametrize("decode_tp", [[], [2, 1]], ids=["decode was not told", "decode was told"])
def test_equal_tensor_parallel_sizes_move_whole_blocks(
    child: Child, arrays: List[Any], decode_tp: List[int]
) -> None:
    port = child.call(far.open_decode, SHAPES[:1], "0", *decode_tp)
    with RDMACommunicator("prefill", 0, "0", pointers(arrays[0]), [], BLOCKS, BYTES, 2, 1) as comm:
        assert comm.connect(HOST, port, 2), comm.last_error()
        assert comm.write_cache(HOST, port, [1], [2], 0) == 0
        expect(child, arrays[:1], [0], [1], [2])


def test_a_port_of_the_environment_beats_both_sides_arguments(
    child: Child, arrays: List[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with held_port() as holder:
        port = str(holder.getsockname()[1])
        monkeypatch.setenv("SET_RDMA_DEST_PORT", port)
        child.call(far.set_environment, {"SET_RDMA_DEST_PORT": port})
        assert child.call(far.open_decode, SHAPES[:1], "1") == int(port)
    with RDMACommunicator("prefill", 0, "0", pointers(arrays[0]), [], BLOCKS, BYTES) as comm:
        assert comm.connect(HOST, "2"), comm.last_error()
        assert comm.is_connected(HOST, 2) and not comm.is_connected(HOST, port)
        assert comm.write_cache(HOST, "2", [1], [2], 0) == 0
        expect(child, arrays[:1], [0], [1], [2])
        child.kill()
        assert not comm.connect(HOST, "3") and f"{HOST}:3 (at port {port}: SET_RDMA_DEST_PORT)" in comm.last_error()
        monkeypatch.setenv("SET_RDMA_DEST_PORT", "http")
        assert not comm.connect(HOST, "1") and "refused" in comm.last_error()


# -- life and death


def test_a_killed_receiver_is_an_error_and_its_successor_on_the_port_is_reached(
    children: Callable[[], Child], arrays: List[Any]
) -> None:
    first = children()
    holder = held_port()
    port = first.call(far.open_decode, SHAPES[:1], str(holder.getsockname()[1]))
    with holder, RDMACommunicator("prefill", 0, "0", pointers(arrays[0]), [], BLOCKS, BYTES) as comm:
        assert comm.connect(HOST, port)
        assert comm.connect(HOST, port)  # once more is fine
        assert comm.write_cache(HOST, port, [1], [2], 0) == 0
        first.kill()
        assert comm.write_cache(HOST, port, [1], [2], 0) == -1
        assert "PEER_LOST" in comm.last_error()
        assert not comm.is_connected(HOST, port)
        assert not comm.connect(HOST, port)
        second = children()
        assert second.call(far.open_decode, SHAPES[:1], str(port)) == port
        assert comm.connect(HOST, port), comm.last_error()
        assert comm.write_cache(HOST, port, [1], [2], 0) == 0
        expect(second, arrays[:1], [0], [1], [2])


def test_many_threads_write_through_one_communicator(child: Child, arrays: List[Any]) -> None:
    port = child.call(far.open_decode, SHAPES[:2], "0")
    with RDMACommunicator("prefill", 0, "0", pointers(arrays[0]), pointers(arrays[1]), BLOCKS, BYTES) as comm:
        failures: List[str] = []

        def work(block: int) -> None:
            if not comm.connect(HOST, port):
                failures.append(comm.last_error())
            for i in range(100):
                if comm.write_cache(HOST, port, [block], [BLOCKS - 1 - block], i % LAYERS):
                    failures.append(comm.last_error())

        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        expect(child, arrays[:2], [0, 1], list(range(8)), [BLOCKS - 1 - n for n in range(8)])


def test_last_error_belongs_to_the_thread(arrays: List[Any]) -> None:
    with RDMACommunicator("prefill", 0, "0", pointers(arrays[0]), [], BLOCKS, BYTES) as comm:
        assert comm.write_cache(HOST, 1, [0], [0], 0) == -1
        seen: List[str] = []
        thread = threading.Thread(target=lambda: seen.append(comm.last_error()))
        thread.start()
        thread.join()
        assert comm.last_error() and seen == [""]


def test_descriptors_and_threads_are_given_back(child: Child, arrays: List[Any]) -> None:
    port = child.call(far.open_decode, SHAPES[:1], "0")

    def cycle() -> None:
        comm = RDMACommunicator("prefill", 0, "0", pointers(arrays[0]), [], BLOCKS, BYTES)
        assert comm.connect(HOST, port)
        assert comm.write_cache(HOST, port, [1], [2], 0) == 0
        del comm  # as the reference's users do
        gc.collect()

    def lives(tid: str) -> bool:
        """A thread that has been joined is listed until the kernel has put it away, but marked (PF_EXITING)."""
        try:
            with open(f"/proc/self/task/{tid}/stat") as file:
                return not int(file.read().rpartition(")")[2].split()[6]) & 4
        except OSError:
            return False

    def held() -> Any:
        return len(os.listdir("/proc/self/fd")), sum(map(lives, os.listdir("/proc/self/task")))

    cycle()
    before = held()
    for _ in range(5):
        cycle()
    assert held() == before


def test_pointers_that_are_not_mapped_are_refused_when_it_matters() -> None:
    """The README's example makes communicators on memory that it has freed: making one must work."""
    args = ("prefill", 0, "12345", [1 << 46], [1 << 46], 1024, 4096)
    with RDMACommunicator(*args) as one, RDMACommunicator(*args) as two:
        assert not one.connect(HOST, "12345") and not two.connect(HOST, "12345")
        assert one.last_error()
