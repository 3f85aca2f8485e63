# SPDX-License-Identifier: Apache-2.0
"""tensors.py -- on a GPU: caches of torch, CuPy and DLPack between two engines, streams among it, and rdma_comm on a GPU's pointers

usage: tensors.py, with the packages of python/src in PYTHONPATH; every byte is compared
"""
import sys

import cupy
import kvrail
import torch
from rdma_comm import RDMACommunicator

LAYERS, BLOCKS, ELEMENTS = 3, 32, 2048
FROM, TO = [3, 30, 7, 11], [0, 9, 31, 5]


class Exported:
    """What has nothing but DLPack."""

    def __init__(self, held):
        self.held = held

    def __dlpack__(self, **kwargs):
        return self.held.__dlpack__(**kwargs)

    def __dlpack_device__(self):
        return self.held.__dlpack_device__()


def expect(what, got, want):
    torch.cuda.synchronize()
    if not torch.equal(got, want):
        sys.exit(f"{what}: {int((got != want).sum())} elements are wrong")
    print(f"ok {what}", flush=True)


def pattern(seed):
    return torch.randint(-30000, 30000, (LAYERS, BLOCKS, ELEMENTS), dtype=torch.int16, device="cuda",
                         generator=torch.Generator("cuda").manual_seed(seed))


def moved(source, target):
    want = target.clone()
    want[:, TO] = source[:, FROM]
    return want


def caches(what, wrap):
    """A write, one that a stream still fills, and a read, between two engines."""
    source, target = pattern(1), pattern(2)
    want, stream = moved(source, target), torch.cuda.Stream()
    torch.cuda.synchronize()
    with kvrail.Engine("prefill") as prefill, kvrail.Engine("decode") as decode:
        here = prefill.register({"k": wrap(source)}, open=True, readable=True)
        decode.register({"k": wrap(target)}, open=True, readable=True)
        peer = prefill.connect("127.0.0.1", decode.listen())
        peer.write_blocks(here, FROM, TO)
        expect(f"{what}: a write", target, want)
        target.copy_(pattern(2))
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(50_000_000)
            source.copy_(pattern(3))
        peer.write_blocks(here, FROM, TO, stream=stream)
        expect(f"{what}: a write of what a stream fills", target, moved(pattern(3), pattern(2)))
        want = source.clone()
        want[:, FROM] = target[:, TO]
        torch.cuda.synchronize()
        peer.read_blocks(here, FROM, TO)
        expect(f"{what}: a read", source, want)


def communicator():
    """As FastDeploy calls it: a pointer for each layer."""
    keys, values, far_keys, far_values = (pattern(seed) for seed in range(4, 8))
    want = moved(keys, far_keys), moved(values, far_values)
    torch.cuda.synchronize()
    lists = [[layer.data_ptr() for layer in tensor] for tensor in (keys, values, far_keys, far_values)]
    with RDMACommunicator("decode", 0, "0", *lists[2:], BLOCKS, 2 * ELEMENTS) as decode:
        with RDMACommunicator("prefill", 0, "0", *lists[:2], BLOCKS, 2 * ELEMENTS) as comm:
            assert comm.connect("127.0.0.1", decode.port), comm.last_error()
            for layer in range(LAYERS):
                assert comm.write_cache("127.0.0.1", decode.port, FROM, TO, layer) == 0, comm.last_error()
    expect("rdma_comm: keys", far_keys, want[0])
    expect("rdma_comm: values", far_values, want[1])


def main():
    caches("torch", lambda tensor: tensor)
    caches("CuPy", cupy.from_dlpack)
    caches("DLPack", Exported)
    communicator()


if __name__ == "__main__":
    main()
