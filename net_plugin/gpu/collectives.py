# SPDX-License-Identifier: Apache-2.0
"""collectives.py -- one rank of two: every collective with its data checked, communicators made and ended, or the clock

usage: collectives.py check|communicators|killed|perf [--json FILE], with torch.distributed's variables in the environment
"""
import argparse
import json
import os
import signal
import sys
import threading
import time
from datetime import timedelta

import torch
import torch.distributed as dist

SIZES = [1, 7, 1000, 4096, 100003, 1 << 20, (4 << 20) + 5]  # elements of 4 bytes
PERF_BYTES = [8, 1 << 10, 1 << 16, 1 << 20, 4 << 20, 16 << 20, 64 << 20, 256 << 20]


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
    dist.barrier(group=group, device_ids=[rank])
    torch.cuda.synchronize()


def many(rank, size):
    """Split, two at once on two streams, and fifty made and ended."""
    world = dist.group.WORLD
    options = dist.ProcessGroupNCCL.Options()
    try:
        options.split_from = world._get_backend(torch.device("cuda", rank))
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
    """Rank 1 dies in the middle of traffic; rank 0 must be told, by an exception or by NCCL's own end of the process."""
    x = torch.ones(1 << 22, device="cuda")
    for _ in range(5):
        dist.all_reduce(x)
    torch.cuda.synchronize()
    if rank == 1:
        threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
    begin = time.monotonic()
    backend = dist.group.WORLD._get_backend(torch.device("cuda", rank))

    def report(how):
        print(f"survivor: {how} {time.monotonic() - begin:.1f} s after the last good moment", flush=True)
        os._exit(0)

    def watch():
        # NCCL sets its asynchronous error; the queue on the GPU itself cannot raise.
        while time.monotonic() - begin < 45:
            error = backend._get_error() if hasattr(backend, "_get_error") else None
            text = str(error)
            if error is not None and "SUCCESS" not in text.upper():
                report(f"NCCL reports {text}")
            time.sleep(0.05)

    threading.Thread(target=watch, daemon=True).start()
    try:
        while time.monotonic() - begin < 45:
            dist.all_reduce(x)
            torch.cuda.synchronize()
    except Exception as error:  # noqa: BLE001  any error is the answer that is looked for
        report(type(error).__name__)
    sys.exit("no error within 45 s")


def timed(run, repeats):
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    dist.barrier()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(repeats):
        run()
    torch.cuda.synchronize()
    return (time.perf_counter() - begin) / repeats


def perf(rank):
    rows = []
    peer = 1 - rank
    for size in PERF_BYTES:
        n = size // 4
        x = torch.ones(n, device="cuda")
        y = torch.empty(n, device="cuda")
        repeats = 200 if size <= 1 << 16 else max(5, min(50, (1 << 30) // size))

        def send_recv():
            ops = [dist.P2POp(dist.isend, x, peer), dist.P2POp(dist.irecv, y, peer)]
            for work in dist.batch_isend_irecv(ops):
                work.wait()

        def one_way():
            if rank == 0:
                dist.send(x, peer)
            else:
                dist.recv(y, peer)

        for name, run in (("all_reduce", lambda: dist.all_reduce(x)), ("send_recv", send_recv), ("one_way", one_way)):
            seconds = min(timed(run, repeats) for _ in range(3))
            rows.append({"what": name, "bytes": size, "us": seconds * 1e6, "gb_per_s": size / seconds / 1e9})
    return rows


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("mode", choices=["check", "communicators", "killed", "perf"])
    parser.add_argument("--json")
    args = parser.parse_args()
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", timeout=timedelta(seconds=60), device_id=torch.device("cuda", rank))
    if args.mode == "killed":
        killed(rank)
    elif args.mode == "check":
        check(rank, size)
        print("ok every collective,", len(SIZES), "sizes")
    elif args.mode == "communicators":
        many(rank, size)
    else:
        rows = perf(rank)
        if rank == 0 and args.json:
            with open(args.json, "w", encoding="utf-8") as file:
                json.dump(rows, file)
        print("ok", len(rows), "rows")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
