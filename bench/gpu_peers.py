#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""gpu_peers.py -- the transfer of gpu_pd by NIXL (UCX, without its progress thread) and by Mooncake (nvlink_intra), each in two
processes of one host with a GPU each; every byte is compared

usage: gpu_peers.py [--decode N] [--json FILE] [GPU_PD.json]

Needs torch, and where KVRAIL_NIXL and KVRAIL_MOONCAKE say (or among Python's packages) nixl_cu13 and mooncake; what is not there
is left out. NIXL's lists are prepared once, and a batch is posted and polled; Mooncake has one call. GPU_PD.json: ours, of the same run,
for the last column.
"""
import argparse
import importlib.util
import json
import multiprocessing
import os
import statistics
import sys
import time

import results

BLOCKS, POOL, ROUNDS, WAIT_S = 1538, 1 << 30, 20, 20
SIZES = (1024, 4096, 16384, 65536, 262144)
now = time.perf_counter


class Memory:
    """The pool of one side, and the order in which its blocks take part."""

    def __init__(self, ordinal, key):
        import torch

        self.torch, self.key = torch, key
        torch.cuda.set_device(ordinal)
        self.words = torch.empty(POOL // 8, dtype=torch.int64, device="cuda")
        self.fill()

    def content(self, key):
        return self.torch.arange(POOL // 8, device="cuda", dtype=self.torch.int64) * 0x9E3779B97F4A7C1 + key

    def fill(self):
        self.words.copy_(self.content(self.key))
        self.torch.cuda.synchronize()

    def order(self, block, seed):
        generator = self.torch.Generator().manual_seed(seed)
        return self.torch.randperm(POOL // block, generator=generator)[:BLOCKS]

    def addresses(self, base, block, seed):
        return (base + self.order(block, seed) * block).tolist()

    def base(self):
        return self.words.data_ptr()

    def wrong(self, block, other):
        """Bytes that are not as they must be after the other side's blocks came."""
        want = self.content(self.key).view(-1, block // 8)
        want[self.order(block, 4).cuda()] = self.content(other).view(-1, block // 8)[self.order(block, 3).cuda()]
        return 8 * int((want.view(-1) != self.words).sum())


class Nixl:
    package = "nixl_cu13"

    def __init__(self, name, memory):
        from nixl_cu13._api import nixl_agent, nixl_agent_config

        self.agent = nixl_agent(name, nixl_agent_config(backends=["UCX"], enable_prog_thread=False))
        self.gpu = memory.words.device.index
        self.agent.register_memory([(memory.base(), POOL, self.gpu, "")], "VRAM")

    def address(self):
        return self.agent.get_agent_metadata(), self.gpu

    def connect(self, theirs):
        self.peer, self.far = self.agent.add_remote_agent(theirs[0]), theirs[1]

    def turn(self):
        self.agent.get_new_notifs()  # as an engine does at each step: UCX connects in such calls

    def prepare(self, mine, theirs, block):
        lists = [self.agent.get_xfer_descs([(at, block, gpu) for at in side], "VRAM")
                 for side, gpu in ((mine, self.gpu), (theirs, self.far))]
        self.handle = self.agent.initialize_xfer("WRITE", *lists, self.peer)

    def go(self):
        state, limit = self.agent.transfer(self.handle), now() + WAIT_S
        while state == "PROC" and now() < limit:
            state = self.agent.check_xfer_state(self.handle)
        if state != "DONE":
            sys.exit(f"gpu_peers.py: NIXL's transfer ended with {state}")

    def done(self):
        self.agent.release_xfer_handle(self.handle)


class Mooncake:
    package = "mooncake"

    def __init__(self, _, memory):
        os.environ.update(MC_INTRANODE_NVLINK="1", GLOG_minloglevel="2")
        from mooncake.engine import TransferEngine

        self.engine = TransferEngine()
        self.check(self.engine.initialize("127.0.0.1", "P2PHANDSHAKE", "nvlink_intra", ""), "initialize")
        self.check(self.engine.register_memory(memory.base(), POOL), "register_memory")

    @staticmethod
    def check(ret, what):
        if ret:
            sys.exit(f"gpu_peers.py: Mooncake's {what} returned {ret}")

    def address(self):
        return f"127.0.0.1:{self.engine.get_rpc_port()}"

    def connect(self, theirs):
        self.peer = theirs

    def turn(self):
        pass

    def prepare(self, *lists):
        *self.lists, self.block = lists

    def go(self):
        self.check(self.engine.batch_transfer_sync_write(self.peer, *self.lists, [self.block] * BLOCKS), "batch_transfer_sync_write")

    def done(self):
        pass


ENGINES = {"nixl": Nixl, "mooncake": Mooncake}
WRITER, READER = 1, 2  # keys of what their pools hold at first


def serve(pipe, name, ordinal):
    memory = Memory(ordinal, READER)
    engine = ENGINES[name]("reader", memory)
    pipe.send((memory.base(), engine.address()))
    engine.connect(pipe.recv())
    while True:
        while not pipe.poll(0.0005):
            engine.turn()
        try:
            block = pipe.recv()
        except EOFError:
            return
        wrong = memory.wrong(block, WRITER)
        memory.fill()  # before the answer, after which the next bytes come
        pipe.send(wrong)


def measure(name, decode):
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    child = context.Process(target=serve, args=(theirs, name, decode), daemon=True)
    child.start()
    theirs.close()
    memory = Memory(0, WRITER)
    engine = ENGINES[name]("writer", memory)
    base, address = pipe.recv()
    pipe.send(engine.address())
    engine.connect(address)
    for block in SIZES:
        engine.prepare(memory.addresses(memory.base(), block, 3), memory.addresses(base, block, 4), block)
        engine.go()
        pipe.send(block)
        wrong, times = pipe.recv(), []
        for i in range(ROUNDS + 2):
            begun = now()
            engine.go()
            times += [now() - begun] if i > 1 else []
        pipe.send(block)
        wrong += pipe.recv()
        engine.done()
        yield {"way": name, "block_kib": block // 1024, "one_gb_per_s": BLOCKS * block / statistics.median(times) / 1e9, "wrong_bytes": wrong}
    pipe.close()
    child.join(10)


def one_engine(name, decode, out):
    site = os.environ.get("KVRAIL_" + name.upper())
    if site:
        sys.path.insert(0, site)
    for row in measure(name, decode):
        out.send(row)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("ours", nargs="?", help="what gpu_pd --json has written in this run")
    parser.add_argument("--decode", type=int, default=0, help="the GPU of the process that is written to")
    parser.add_argument("--json")
    args = parser.parse_args()
    results.can_write(args.json)
    if not importlib.util.find_spec("torch"):
        print("gpu_peers.py: left out, as Python has no torch here")
        return 0
    ours = {}
    if args.ours:
        with open(args.ours, encoding="utf-8") as file:
            ours = {row["block_kib"]: row["one_gb_per_s"] for row in json.load(file)["rows"]}
    context, rows, failed = multiprocessing.get_context("spawn"), [], 0
    present = [name for name in ENGINES if os.environ.get("KVRAIL_" + name.upper()) or importlib.util.find_spec(ENGINES[name].package)]
    for name in present:
        # Each in processes of its own, made anew: their libraries do not meet.
        here, there = context.Pipe(False)
        process = context.Process(target=one_engine, args=(name, args.decode, there))
        process.start()
        there.close()
        while True:
            try:
                row = here.recv()
            except EOFError:
                break
            row["ours_ratio"] = ours.get(row["block_kib"], 0) / row["one_gb_per_s"]
            rows.append(row)
            failed += row["wrong_bytes"] > 0
        process.join()
        failed += process.exitcode != 0
    results.print_table(["", "block KiB", "GB/s", "kvrail / it", "wrong bytes"],
                        [[row["way"], str(row["block_kib"]), f'{row["one_gb_per_s"]:.3f}', f'{row["ours_ratio"]:.1f}',
                          str(row["wrong_bytes"])] for row in rows])
    if args.json:
        results.write(args.json, results.head("gpu_peers", "nvlink_intra, cuda_ipc", decode=args.decode, batch=BLOCKS, pool_bytes=POOL,
                                              rounds=ROUNDS), rows)
    return failed > 0 or len(rows) < len(SIZES) * len(present)


if __name__ == "__main__":
    sys.exit(main())
