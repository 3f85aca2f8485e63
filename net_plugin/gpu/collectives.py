# SPDX-License-Identifier: Apache-2.0
"""collectives.py -- one rank of two: every collective with its data checked, communicators made and ended, a rank that dies

usage: collectives.py check|communicators|killed, with torch.distributed's variables in the environment
"""
import argparse
import os
import signal
import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist

from nccl import Communicator, Nccl, take_gpu

SIZES = [1, 7, 1000, 4096, 100003, 1 << 20, (4 << 20) + 5]  # elements of 4 bytes


def pattern(n, rank, seed):
    """Integers that are different for each rank, place and round, and small enough to be summed exactly."""
    i = torch.arange(n, device="cuda", dtype=torch.int64)
    return ((i * 2654435761 + rank * 40503 + seed * 97) % 65521).to(torch.int32)


def expect(name, n, got, want):
    if not torch.equal(got, want):
        wrong = (got != want).nonzero().flatten()
        sys.exit(f"{name} of {n}: {wrong.numel()} wrong, first at {wrong[0].item()}")


def check_reductions(n, rank, size, seed, group):
    parts = [pattern(n, r, seed) for r in range(size)]
    x = pattern(n, rank, seed)
    dist.all_reduce(x, group=group)
    expect("all_reduce", n, x, sum(parts))
    x = pattern(n, rank, seed).double()
    dist.all_reduce(x, op=dist.ReduceOp.MAX, group=group)
    expect("all_reduce max", n, x, torch.stack(parts).max(0).values.double())
    x = pattern(n, rank, seed)
    dist.reduce(x, dst=1, group=group)
    if rank == 1:
        expect("reduce", n, x, sum(parts))
    out = torch.full((n,), -1, device="cuda", dtype=torch.int32)
    whole = [pattern(n * size, r, seed) for r in range(size)]
    dist.reduce_scatter_tensor(out, whole[rank].clone(), group=group)
    expect("reduce_scatter", n, out, sum(whole)[rank * n:(rank + 1) * n])


def check_moves(n, rank, size, seed, group):
    x = pattern(n, rank, seed)
    dist.broadcast(x, src=1, group=group)
    expect("broadcast", n, x, pattern(n, 1, seed))
    out = torch.full((n * size,), -1, device="cuda", dtype=torch.int32)
    dist.all_gather_into_tensor(out, pattern(n, rank, seed), group=group)
    expect("all_gather", n, out, torch.cat([pattern(n, r, seed) for r in range(size)]))
    out.fill_(-1)
    dist.all_to_all_single(out, pattern(n * size, rank, seed), group=group)
    expect("all_to_all", n, out,
           torch.cat([pattern(n * size, r, seed)[rank * n:(rank + 1) * n] for r in range(size)]))
    # Both directions at once, with guards around the received part.
    peer = 1 - rank
    landing = torch.full((n + 64,), -7, device="cuda", dtype=torch.int32)
    ops = [dist.P2POp(dist.isend, pattern(n, rank, seed), peer, group),
           dist.P2POp(dist.irecv, landing[32:32 + n], peer, group)]
    for work in dist.batch_isend_irecv(ops):
        work.wait()
    expect("send_recv", n, landing[32:32 + n], pattern(n, peer, seed))
    if not (landing[:32] == -7).all() or not (landing[32 + n:] == -7).all():
        sys.exit(f"send_recv of {n}: bytes around it changed")
    if rank == 0:
        parts = [torch.full((n,), -1, device="cuda", dtype=torch.int32) for _ in range(size)]
        dist.gather(pattern(n, rank, seed), parts, dst=0, group=group)
        for r, part in enumerate(parts):
            expect("gather", n, part, pattern(n, r, seed))
    else:
        dist.gather(pattern(n, rank, seed), dst=0, group=group)
    x = torch.full((n,), -1, device="cuda", dtype=torch.int32)
    dist.scatter(x, [pattern(n, 10 + r, seed) for r in range(size)] if rank == 0 else None, src=0, group=group)
    expect("scatter", n, x, pattern(n, 10 + rank, seed))


def check(rank, size, group=None, sizes=None, seed=1):
    for n in sizes or SIZES:
        check_reductions(n, rank, size, seed + n, group)
        check_moves(n, rank, size, seed + n, group)
    dist.barrier(group=group, device_ids=[torch.cuda.current_device()])
    torch.cuda.synchronize()


def many(rank, size):
    """Split, two at once on two streams, and fifty made and ended."""
    world = dist.group.WORLD
    options = dist.ProcessGroupNCCL.Options()
    try:
        options.split_from = world._get_backend(torch.device("cuda", torch.cuda.current_device()))
        split = dist.new_group([0, 1], pg_options=options)
    except (AttributeError, TypeError):
        split = dist.new_group([0, 1])
    check(rank, size, split, [1000, 100003])
    other = dist.new_group([0, 1])
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    tensors = [pattern(1 << 20, rank, 5), pattern(1 << 20, rank, 6)]
    for stream in streams:
        stream.wait_stream(torch.cuda.current_stream())
    for _ in range(20):
        for stream, tensor, group in zip(streams, tensors, (split, other)):
            with torch.cuda.stream(stream):
                dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=group)
    torch.cuda.synchronize()
    for seed, tensor in zip((5, 6), tensors):
        expect("two communicators", 1 << 20, tensor,
               torch.maximum(pattern(1 << 20, 0, seed), pattern(1 << 20, 1, seed)))
    dist.destroy_process_group(other)
    before = len(os.listdir("/proc/self/fd"))
    for i in range(50):
        group = dist.new_group([0, 1])
        check(rank, size, group, [1000], seed=i)
        dist.destroy_process_group(group)
        if i == 4:
            before = len(os.listdir("/proc/self/fd"))
    after = len(os.listdir("/proc/self/fd"))
    print(f"ok descriptors after 5 communicators {before}, after 50 {after}")
    if after > before + 8:
        sys.exit("descriptors leak")


def killed(rank):
    """Rank 1 dies in the middle of traffic; rank 0 must be told by NCCL, soon, and be able to go on without it."""
    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), 2, rank == 0)
    comm = Communicator(Nccl(None), store, rank, "killed=" + os.environ["NCCL_NET"])
    x, y = (torch.ones(4 << 20, device="cuda", dtype=torch.int32) for _ in range(2))
    for _ in range(5):
        comm.run("all_reduce", x, y, x.numel())
    torch.cuda.synchronize()
    for _ in range(600):  # GPUs that copy take half a millisecond for each
        comm.run("all_reduce", x, y, x.numel())
    if rank == 1:
        time.sleep(0.05)
        store.set("dies", str(time.monotonic()))
        os.kill(os.getpid(), signal.SIGKILL)
    died = float(store.get("dies"))
    while not comm.error() and time.monotonic() < died + 30:
        time.sleep(0.001)
    told = time.monotonic()
    if not comm.error():
        sys.exit("no error within 30 s")
    text = comm.error()
    comm.abort()
    torch.cuda.synchronize()
    print(f"ok told after {(told - died) * 1e3:.0f} ms: {text}; aborted and the GPU free after "
          f"{(time.monotonic() - told) * 1e3:.0f} ms more", flush=True)
    os._exit(0)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("mode", choices=["check", "communicators", "killed"])
    args = parser.parse_args()
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    gpu = take_gpu(rank)
    if args.mode == "killed":
        killed(rank)
    dist.init_process_group("nccl", timeout=timedelta(seconds=60), device_id=torch.device("cuda", gpu))
    if args.mode == "check":
        check(rank, size)
        print("ok every collective,", len(SIZES), "sizes")
    else:
        many(rank, size)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
