# SPDX-License-Identifier: Apache-2.0
"""nccl_ops.py -- one rank of two: NCCL's operations timed over several networks in turn, in one process, each row's data checked

usage: nccl_ops.py [options] --case NAME=NET[,VARIABLE=VALUE...] ..., with RANK, MASTER_ADDR and MASTER_PORT set

Each case is a communicator of its own (nccl.py), made with its variables set. All of them live at once and are timed by turns,
so that what else the machine does meets all alike.
"""
import argparse
import os
import statistics
import time

import results
import torch
import torch.distributed as dist
from nccl import PEERS, Communicator, Nccl, take_gpu

SLEEP_CYCLES = 40_000_000  # of the GPU: more than it takes to queue all rounds
SMALL = 1 << 16            # bytes up to which latency is measured


def pattern(n, rank):
    return ((torch.arange(n, device="cuda", dtype=torch.int32) * 40503 + rank * 97) % 65521).to(torch.int32)


def check(case, what, x, y, n, rank):
    x[:n] = pattern(n, rank)
    y[:n] = -1
    case.run(what, x, y, n)
    torch.cuda.synchronize()
    if what == "one_way" and rank == 0:
        return
    want = {"all_reduce": lambda: pattern(n, 0) + pattern(n, 1),
            "all_gather": lambda: torch.cat([pattern(n, r)[:n // PEERS] for r in range(PEERS)])}.get(
                what, lambda: pattern(n, 1 - rank))()
    if not torch.equal(y[:n], want):
        raise RuntimeError(f"{case.name} {what} of {n}: wrong data")


def barrier(store, rank, counter=[0]):
    counter[0] += 1
    store.set(f"at {counter[0]} {rank}", "1")
    store.wait([f"at {counter[0]} {1 - rank}"])


def slower(store, rank, us, counter=[0]):
    """The time of the rank that took longer: a rank that only sends may be done before its bytes have arrived."""
    counter[0] += 1
    store.set(f"took {counter[0]} {rank}", str(us))
    return max(us, float(store.get(f"took {counter[0]} {1 - rank}")))


def back_to_back(case, what, x, y, n, rounds):
    """Microseconds for each of many. All are queued before the first may begin, so queueing them costs nothing."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(SLEEP_CYCLES if rounds > 20 else 1)
    begin.record()
    for _ in range(rounds):
        case.run(what, x, y, n)
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / rounds * 1e3


def one_by_one(case, what, x, y, n, rounds):
    """Microseconds of the median one, the call included, when each is waited for before the next is queued."""
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        case.run(what, x, y, n)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return statistics.median(times) * 1e6


def measure(case, what, x, y, size, store, rank, row):
    n = max(size // 4, PEERS)
    for _ in range(3):
        case.run(what, x, y, n)
    torch.cuda.synchronize()
    barrier(store, rank)
    rounds = 200 if size <= SMALL else max(3, min(20, (256 << 20) // size))
    row["us"].append(slower(store, rank, back_to_back(case, what, x, y, n, rounds)))
    if size <= SMALL:
        barrier(store, rank)
        row["alone_us"].append(slower(store, rank, one_by_one(case, what, x, y, n, 100)))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--case", action="append", required=True)
    parser.add_argument("--what", default="all_reduce,all_gather,send_recv,one_way")
    parser.add_argument("--bytes", default="8,1K,64K,1M,16M,64M,256M")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--nccl", help="a libnccl.so.2 that is not torch's")
    parser.add_argument("--json")
    args = parser.parse_args()
    rank = int(os.environ["RANK"])
    if rank == 0:
        results.can_write(args.json)
    take_gpu(rank)
    torch.zeros(1, device="cuda")
    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), PEERS, rank == 0)
    nccl = Nccl(args.nccl)
    cases = [Communicator(nccl, store, rank, text) for text in args.case]
    sizes = [int(s.rstrip("KM")) << {"K": 10, "M": 20}.get(s[-1], 0) for s in args.bytes.split(",")]
    x, y = (torch.zeros(max(sizes) // 4, device="cuda", dtype=torch.int32) for _ in range(2))
    rows = []
    for size in sizes:
        for what in args.what.split(","):
            group = [{"case": case.name, "what": what, "bytes": size, "us": [], "alone_us": []} for case in cases]
            for case in cases:
                check(case, what, x, y, max(size // 4, PEERS), rank)
            for _ in range(args.repeats):
                for case, row in zip(cases, group):
                    measure(case, what, x, y, size, store, rank, row)
            rows += group
    if rank == 0 and args.json:
        results.write(args.json, results.head("nccl_ops", nccl=nccl.version(), device=torch.cuda.get_device_name(0), cases=args.case),
                      [{key: [round(v, 2) for v in value] if isinstance(value, list) else value for key, value in row.items()}
                       for row in rows])
    barrier(store, rank)
    for case in cases:
        case.destroy()
    barrier(store, rank)
    print("ok", len(rows), "rows, NCCL", nccl.version())


if __name__ == "__main__":
    main()
