# SPDX-License-Identifier: Apache-2.0
"""gpu.py -- GPU memory moves between two processes by NIXL, and every byte is compared

usage: gpu.py PLUGIN [CASE...] [--json FILE]

The memory is PyTorch's, or CUDA's driver's where there is no torch with a GPU; in ./dev test a stand-in for libcuda has it.
speed is run by name only: GB/s of 1538 blocks in another order on each side, which --json adds to those of the file.
KVRAIL_NIXL_BACKEND=UCX: the same with UCX.
"""
import argparse
import ctypes
import json
import os
import signal
import statistics
import sys
import time
import zlib

import peers
import wheels

MIB, BLOCK = 1 << 20, 4096
SIZE = 4 * MIB
SPEED_BLOCKS, SPEED_SIZES, SPEED_S = 1538, (4096, 16384, 65536, 262144), 0.5
SPEEDS = {}
TCP = os.environ.get("KVCACHE_TRANSPORT") == "tcp"


class Torch:
    def __init__(self, size):
        import torch

        self.torch = torch
        self.tensor = torch.zeros(size, dtype=torch.uint8, device="cuda")
        torch.cuda.synchronize()
        self.at = self.tensor.data_ptr()

    def put(self, data):
        self.tensor.copy_(self.torch.from_numpy(data))
        self.torch.cuda.synchronize()

    def get(self):
        return self.tensor.cpu().numpy()


class Driver:
    def __init__(self, size):
        self.cuda, self.size = ctypes.CDLL("libcuda.so.1"), size
        count, device, context, at = ctypes.c_int(), ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
        self.call("cuInit", 0)
        self.call("cuDeviceGetCount", ctypes.byref(count))
        self.call("cuDeviceGet", ctypes.byref(device), count.value - 1)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self.call("cuCtxSetCurrent", context)
        self.call("cuMemAlloc_v2", ctypes.byref(at), ctypes.c_size_t(size))
        self.at = at.value

    def call(self, name, *arguments):
        code = getattr(self.cuda, name)(*arguments)
        assert code == 0, f"{name}: {code}"

    def put(self, data):
        self.call("cuMemcpyHtoD_v2", ctypes.c_uint64(self.at), ctypes.c_void_p(data.ctypes.data), ctypes.c_size_t(self.size))
        self.call("cuCtxSynchronize")

    def get(self):
        import numpy

        data = numpy.empty(self.size, numpy.uint8)
        self.call("cuMemcpyDtoH_v2", ctypes.c_void_p(data.ctypes.data), ctypes.c_uint64(self.at), ctypes.c_size_t(self.size))
        return data


def has_torch_gpu():
    try:
        import torch

        return torch.cuda.is_available()
    except (ImportError, AttributeError):  # peers.py stands in for it
        return False


def gpu_memory(size):
    return Torch(size) if has_torch_gpu() else Driver(size)


class End(peers.End):
    """An agent with one region of a GPU beside that of the host."""

    def __init__(self, name, size):
        super().__init__(name, min(size, SIZE))
        self.size, self.gpu = size, gpu_memory(size)
        self.gpu_region = self.agent.register_memory([(self.gpu.at, size, 0, "")], "VRAM")

    def gpu_fill(self, seed):
        import numpy

        self.gpu.put(numpy.random.default_rng(seed).integers(0, 256, self.size, dtype=numpy.uint8))

    def gpu_set(self, byte):
        import numpy

        self.gpu.put(numpy.full(self.size, byte, numpy.uint8))

    def gpu_crc(self):
        return zlib.crc32(self.gpu.get())

    def calls(self):
        return {**super().calls(), "gpu_base": lambda: self.gpu.at, "gpu_fill": self.gpu_fill, "gpu_set": self.gpu_set, "gpu_crc": self.gpu_crc,
                "gpu_is": lambda byte: bool((self.gpu.get() == byte).all()),
                "gpu_withdraw": lambda: self.agent.deregister_memory(self.gpu_region)}

    def blocks(self, base, order, block, kind="VRAM"):
        return self.agent.get_xfer_descs([(base + i * block, block, 0) for i in order], kind)


def pair(plugin, size=SIZE):
    other, end = peers.Other(plugin, size=size, kind=End), End("here", size)
    end.agent.add_remote_agent(other("metadata"))
    return other, end


def order(seed, blocks):
    import numpy

    return numpy.random.default_rng(seed).permutation(blocks).tolist()


def prepare(end, other, way, note=b"", block=BLOCK, blocks=SIZE // BLOCK):
    """Block order(1)[i] here and block order(2)[i] there; a transfer and a function that says what a copy of ours becomes there."""
    import numpy

    here, there = order(1, blocks), order(2, blocks)
    handle = end.agent.initialize_xfer(way, end.blocks(end.gpu.at, here, block), end.blocks(other("gpu_base"), there, block), "other", note)

    def moved(data):
        rows, out = data.reshape(-1, block), numpy.zeros_like(data).reshape(-1, block)
        out[there] = rows[here]
        return out.reshape(-1)

    return handle, moved


def blocks_are_written_and_read(plugin):
    other, end = pair(plugin)
    assert end.agent.query_xfer_backend(prepare(end, other, "WRITE")[0]) == peers.BACKEND
    handle, moved = prepare(end, other, "WRITE", b"there")
    for seed in range(3):  # prepared once
        end.gpu_fill(seed)
        other("gpu_set", 0xee)
        assert peers.run(end, handle) == "DONE"
        assert peers.note_of(other) == {"here": [b"there"]}
        assert other("gpu_crc") == zlib.crc32(moved(end.gpu.get())), f"round {seed}: wrong bytes"
    peers.release(end, handle)
    end.gpu_fill(9)
    before = end.gpu.get().copy()
    read, _ = prepare(end, other, "READ", b"read")
    write, moved = prepare(end, other, "WRITE", b"written")
    assert peers.run(end, write) == "DONE" and peers.note_of(other) == {"here": [b"written"]}
    end.gpu_set(0)
    assert peers.run(end, read) == "DONE" and peers.note_of(other) == {"here": [b"read"]}
    assert (end.gpu.get() == before).all(), "wrong bytes were read"
    peers.release(end, read)
    peers.release(end, write)


def what_is_not_named_stays(plugin):
    other, end = pair(plugin)
    end.gpu_set(0x11)
    other("gpu_set", 0x22)
    handle = end.agent.initialize_xfer("WRITE", end.blocks(end.gpu.at, [1], BLOCK), end.blocks(other("gpu_base"), [3], BLOCK), "other")
    assert peers.run(end, handle) == "DONE"
    peers.release(end, handle)
    handle = end.agent.initialize_xfer("READ", end.blocks(end.gpu.at, range(8), BLOCK), end.blocks(other("gpu_base"), range(8), BLOCK), "other")
    assert peers.run(end, handle) == "DONE"
    peers.release(end, handle)
    assert [int(end.gpu.get()[i * BLOCK]) for i in range(8)] == [0x22] * 3 + [0x11] + [0x22] * 4


def host_memory_goes_to_a_gpu(plugin):
    """And back, into ordinary memory of another process, which goes through the ring on one host."""
    import numpy

    other, end = pair(plugin)
    end.fill(4)
    all_blocks = range(SIZE // BLOCK)
    host, gpu = end.blocks(end.buffer.ctypes.data, all_blocks, BLOCK, "DRAM"), end.blocks(other("gpu_base"), all_blocks, BLOCK)
    handle = end.agent.initialize_xfer("WRITE", host, gpu, "other", b"host")
    assert peers.run(end, handle) == "DONE" and peers.note_of(other) == {"here": [b"host"]}
    assert other("gpu_crc") == end.crc()
    peers.release(end, handle)
    end.gpu.put(numpy.copy(end.buffer))
    handle = end.agent.initialize_xfer("WRITE", end.blocks(end.gpu.at, all_blocks, BLOCK), end.blocks(other.base, all_blocks, BLOCK, "DRAM"), "other")
    assert peers.run(end, handle) == "DONE" and other("crc") == end.crc()
    peers.release(end, handle)


def a_release_is_a_fence(plugin):
    size = 128 * SIZE if has_torch_gpu() else 4 * SIZE
    other, end = pair(plugin, size)
    blocks = size // BLOCK
    handle, _ = prepare(end, other, "WRITE", blocks=blocks)
    assert peers.run(end, handle) == "DONE"
    peers.release(end, handle)
    for _ in range(4):
        end.gpu_set(0x11)
        handle, _ = prepare(end, other, "WRITE", b"never", blocks=blocks)
        end.agent.transfer(handle)
        peers.release(end, handle)
        other("gpu_set", 0x22)  # the blocks are used again at once
        handle = end.agent.initialize_xfer("READ", end.blocks(end.gpu.at, [0], BLOCK), end.blocks(other("gpu_base"), [0], BLOCK), "other")
        assert peers.run(end, handle) == "DONE"  # the connection is well, and what came before it is over
        peers.release(end, handle)
        assert other("gpu_is", 0x22), "bytes landed after the release"


def a_withdrawn_region_refuses(plugin):
    other, end = pair(plugin)
    handle, _ = prepare(end, other, "WRITE")
    assert peers.run(end, handle) == "DONE"
    other("gpu_withdraw")
    other("gpu_set", 0x33)
    assert peers.run_to_failure(end, handle) == "nixlNotFoundError"
    assert other("gpu_is", 0x33)
    peers.release(end, handle)
    end.agent.send_notif("other", b"still there")
    assert peers.note_of(other) == {"here": [b"still there"]}


def a_killed_peer_is_a_disconnect(plugin):
    for stage in ("done", "posted"):
        other, end = pair(plugin)
        handle, _ = prepare(end, other, "WRITE")
        assert peers.run(end, handle) == "DONE"
        if stage == "posted":
            end.agent.transfer(handle)
        os.kill(other.process.pid, signal.SIGKILL)
        killed = time.monotonic()
        name = peers.run_to_failure(end, handle)
        told = time.monotonic() - killed
        other.process.join()  # CUDA's driver takes a while to end a process that has a context
        gone = time.monotonic() - killed
        assert name == "nixlRemoteDisconnectError", name
        print(f"  {stage}: a disconnect {1000 * told:.0f} ms after the peer was killed, which was gone after {1000 * gone:.0f} ms")
        peers.release(end, handle)
        end.agent.remove_remote_agent("other")


def speed(plugin):
    row = f"{peers.BACKEND}{', tcp' * TCP}{', %s multiprocessors' % os.environ['KVCACHE_GPU_SMS'] if 'KVCACHE_GPU_SMS' in os.environ else ''}"
    other, end = pair(plugin, SPEED_BLOCKS * SPEED_SIZES[-1])
    for way in ("WRITE", "READ"):
        speeds = []
        for block in SPEED_SIZES:
            handle, _ = prepare(end, other, way, block=block, blocks=SPEED_BLOCKS)
            took, begun = [], time.monotonic()
            while len(took) < 3 or time.monotonic() < begun + SPEED_S:
                at = time.perf_counter()
                assert peers.run(end, handle) == "DONE"
                took.append(time.perf_counter() - at)
            peers.release(end, handle)
            speeds.append(f"{SPEED_BLOCKS * block / statistics.median(took) / 1e9:.2f}")
        sizes = ", ".join(f"{block // 1024}" for block in SPEED_SIZES)
        SPEEDS[f"NIXL {wheels.VERSION}, {row}: GPU to GPU memory of another process, {way}, {SPEED_BLOCKS} blocks of {sizes} KiB"] = \
            f"{', '.join(speeds)} GB/s"


CASES = [blocks_are_written_and_read, what_is_not_named_stays, host_memory_goes_to_a_gpu, a_release_is_a_fence, a_withdrawn_region_refuses,
         a_killed_peer_is_a_disconnect]


def add_speeds(path):
    sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "docs"))
    import figures

    known = {}
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            known = json.load(file)["figures"]
    figures.store(path, "tests/nixl/gpu.py libplugin_KVRAIL.so speed", {**known, **SPEEDS})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plugin", metavar="PLUGIN")
    parser.add_argument("named", metavar="CASE", nargs="*")
    parser.add_argument("--json", metavar="FILE")
    asked = parser.parse_args()
    plugin = os.path.abspath(asked.plugin)
    peers.load_nixl(plugin)
    peers.run_cases(CASES + [speed] * bool(asked.named), plugin, asked.named)
    for what, value in SPEEDS.items():
        print(f"{what}: {value}")
    if asked.json:
        add_speeds(asked.json)
    sys.stdout.flush()
    os._exit(0)  # NIXL's libraries may crash as a process ends


if __name__ == "__main__":
    main()
