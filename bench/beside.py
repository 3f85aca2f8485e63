# SPDX-License-Identifier: Apache-2.0
"""beside.py -- what a matrix product of torch loses while the same process writes blocks to another with kvrail, on one GPU

usage: beside.py [--json FILE], with the package kvrail in PYTHONPATH

Windows with and without the writes take turns; the product is 8192 x 8192 x 8192 in bfloat16, 20 of them in a window by the GPU's clock. A
thread writes 1538 shuffled blocks again and again, one batch at a time; the other process has memory on the GPU and no kernels. Every byte is compared.
"""
import argparse
import multiprocessing
import statistics
import sys
import threading

import results

SIDE, PRODUCTS, WINDOWS, BATCH, POOL = 8192, 20, 15, 1538, 1 << 29
SIZES = (1024, 16384, 65536, 262144)


def order(blocks, seed):
    import torch

    return torch.randperm(blocks, generator=torch.Generator().manual_seed(seed))[:BATCH]


def content(key):
    import torch

    return torch.arange(POOL // 8, device="cuda", dtype=torch.int64) * 0x9E3779B97F4A7C1 + key


def decode(pipe):
    import kvrail
    import torch

    while (block := pipe.recv()) is not None:
        pool = content(2)
        torch.cuda.synchronize()
        with kvrail.Engine("decode") as engine:
            engine.register({"k": pool.view(1, -1, block // 8)}, open=True)
            pipe.send(engine.listen())
            pipe.recv()
        want, ids = content(2).view(-1, block // 8), POOL // block
        n = min(BATCH, ids)
        want[order(ids, 4)[:n].cuda()] = content(1).view(-1, block // 8)[order(ids, 3)[:n].cuda()]
        pipe.send(int((want.view(-1) != pool).sum()) * 8)


class Writer:
    def __init__(self, peer, cache, block):
        blocks = POOL // block
        ids = order(blocks, 3).tolist(), order(blocks, 4).tolist()
        self.call = lambda: peer.write_blocks(cache, *ids)
        self.stops, self.batches = False, 0

    def run(self):
        while not self.stops:
            self.call()
            self.batches += 1


def window(a, b, out):
    """Milliseconds of the GPU for PRODUCTS products."""
    import torch

    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(PRODUCTS):
        torch.matmul(a, b, out=out)
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def measure(peer, cache, block, product):
    without, beside, batches, seconds = [], [], 0, 0.0
    for _ in range(WINDOWS):
        without.append(window(*product))
        writer = Writer(peer, cache, block)
        writer.call()
        thread = threading.Thread(target=writer.run)
        thread.start()
        beside.append(window(*product))
        batches, seconds = batches + writer.batches, seconds + beside[-1] / 1e3
        writer.stops = True
        thread.join()
    alone, with_it = statistics.median(without), statistics.median(beside)
    return {"block_kib": block // 1024, "tflops_alone": 2 * SIDE**3 * PRODUCTS / alone / 1e9, "tflops_beside": 2 * SIDE**3 * PRODUCTS / with_it / 1e9,
            "lost_percent": 100 * (1 - alone / with_it), "copies_gb_per_s": batches * min(BATCH, POOL // block) * block / seconds / 1e9}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    results.can_write(arguments.json)
    import kvrail
    import torch

    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    child = context.Process(target=decode, args=(theirs,), daemon=True)
    child.start()
    product = [torch.randn(SIDE, SIDE, device="cuda", dtype=torch.bfloat16) for _ in range(3)]
    for _ in range(5):
        window(*product)
    pool, rows = content(1), []
    torch.cuda.synchronize()
    for block in SIZES:
        pipe.send(block)
        with kvrail.Engine("prefill") as engine:
            cache = engine.register({"k": pool.view(1, -1, block // 8)}, open=True)
            peer = engine.connect("127.0.0.1", pipe.recv())
            row = measure(peer, cache, block, product)
        pipe.send(True)
        row["wrong_bytes"] = pipe.recv()
        print("block %(block_kib)4d KiB: product %(tflops_alone).0f TFLOPS alone, %(tflops_beside).0f beside copies of %(copies_gb_per_s).1f GB/s: "
              "lost %(lost_percent).1f %%, %(wrong_bytes)d bytes wrong" % row, flush=True)
        rows.append(row)
    pipe.send(None)
    child.join(10)
    if arguments.json:
        results.write(arguments.json, results.head("beside", "shm", gpu=torch.cuda.get_device_name(), side=SIDE, products=PRODUCTS, windows=WINDOWS,
                                                   batch=BATCH, pool_bytes=POOL), rows)
    return any(row["wrong_bytes"] for row in rows)


if __name__ == "__main__":
    sys.exit(main())
