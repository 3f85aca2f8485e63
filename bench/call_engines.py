#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""One engine's Python calls, timed: call_engines.py ENGINE ROUNDS; call.py runs one after the other.

Two ends in this one process move the same blocks, ids drawn anew for each round. A round has three marks: what the engine is
given is prepared; the call that starts the transfer has returned; the transfer is complete. Writes one JSON line.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import os
import statistics
import sys
import time
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import numpy as np

BLOCKS, BLOCK_BYTES, IDS = 4096, 64, 1538
ROW_S = 4.0  # no row is measured longer than this, however many rounds were asked for
WARM = 3
#: Local and remote ids -> the marks (prepared, posted, done) in ns; None where the engine has no such moment.
Round = Callable[[Any, Any], Tuple[Optional[int], Optional[int], int]]
Case = Tuple[str, type, Round]  # what is called, what its ids are given as
now = time.perf_counter_ns


class Kvrail:
    """Over shared memory: the target's blocks lie in a pool."""

    MODULES = ["kvrail"]
    PATH = "pool"

    def __init__(self, kvrail: Any) -> None:
        options = {"KVCACHE_TRANSPORT": "shm", "KVCACHE_SHM_PATH": self.PATH}
        self.source = kvrail.Engine("prefill", options=options)
        self.target = kvrail.Engine("decode", options=options, arrivals=False)
        self.mine, self.theirs = self.memory(self.source), self.memory(self.target)
        self.target.register({"k": self.theirs[None]}, open=True)
        self.cache = self.source.register({"k": self.mine[None]})
        self.peer = self.source.connect("127.0.0.1", self.target.listen())

    @staticmethod
    def memory(engine: Any) -> np.ndarray:
        return np.asarray(engine.alloc(BLOCKS * BLOCK_BYTES)).reshape(BLOCKS, BLOCK_BYTES)

    def start(self, local: Any, remote: Any) -> Tuple[None, int, int]:
        op = self.peer.write_blocks_async(self.cache, local, remote, 0)
        posted = now()
        op.wait()
        return None, posted, now()

    def write(self, local: Any, remote: Any) -> Tuple[None, None, int]:
        self.peer.write_blocks(self.cache, local, remote, 0)
        return None, None, now()

    def cases(self) -> Iterator[Case]:
        yield "write_blocks_async, lists", list, self.start
        yield "write_blocks_async, int64", np.int64, self.start
        yield "write_blocks, int64", np.int64, self.write


class KvrailCma(Kvrail):
    """Through process_vm_writev, as UCX does: the target's blocks lie anywhere."""

    PATH = "cma"

    @staticmethod
    def memory(engine: Any) -> np.ndarray:
        return np.zeros((BLOCKS, BLOCK_BYTES), np.uint8)


class Nixl:
    MODULES = ["nixl_cu12._api", "nixl_cu13._api", "nixl._api"]

    def __init__(self, api: Any) -> None:
        config = api.nixl_agent_config(backends=["UCX"])
        self.agent, self.target = api.nixl_agent("prefill", config), api.nixl_agent("decode", config)
        self.mine, self.theirs = np.zeros((2, BLOCKS, BLOCK_BYTES), np.uint8)
        for agent, memory in (self.agent, self.mine), (self.target, self.theirs):
            agent.register_memory([(memory.ctypes.data, memory.nbytes, 0, "")], "DRAM")
        self.name = self.agent.add_remote_agent(self.target.get_agent_metadata())
        every = np.arange(BLOCKS)
        self.local = self.agent.prep_xfer_dlist("NIXL_INIT_AGENT", self.rows(self.mine, every), "DRAM")
        self.remote = self.agent.prep_xfer_dlist(self.name, self.rows(self.theirs, every), "DRAM")

    @staticmethod
    def rows(memory: np.ndarray, ids: np.ndarray) -> np.ndarray:
        rows = np.zeros((len(ids), 3), np.uint64)
        rows[:, 0] = memory.ctypes.data + ids * BLOCK_BYTES
        rows[:, 1] = BLOCK_BYTES
        return rows

    def finish(self, handle: Any) -> Tuple[int, int, int]:
        prepared = now()
        state = self.agent.transfer(handle)
        posted = now()
        while state == "PROC":
            state = self.agent.check_xfer_state(handle)
        done = now()
        self.agent.release_xfer_handle(handle)
        if state != "DONE":
            raise RuntimeError(f"state {state}")
        return prepared, posted, done

    def by_index(self, local: Any, remote: Any) -> Tuple[int, int, int]:
        return self.finish(self.agent.make_prepped_xfer("WRITE", self.local, local, self.remote, remote))

    def by_address(self, local: Any, remote: Any) -> Tuple[int, int, int]:
        mine = self.agent.get_xfer_descs(self.rows(self.mine, local), "DRAM")
        theirs = self.agent.get_xfer_descs(self.rows(self.theirs, remote), "DRAM")
        return self.finish(self.agent.initialize_xfer("WRITE", mine, theirs, self.name))

    def cases(self) -> Iterator[Case]:
        yield "make_prepped_xfer + transfer, lists", list, self.by_index
        yield "make_prepped_xfer + transfer, int32", np.int32, self.by_index
        yield "2 get_xfer_descs + initialize_xfer + transfer, numpy", np.int64, self.by_address


class Mooncake:
    MODULES = ["mooncake.engine"]

    def __init__(self, module: Any) -> None:
        self.source, self.target = module.TransferEngine(), module.TransferEngine()
        self.mine, self.theirs = np.zeros((2, BLOCKS, BLOCK_BYTES), np.uint8)
        for engine, memory in (self.source, self.mine), (self.target, self.theirs):
            self.check(engine.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", ""), "initialize")
            self.check(engine.register_memory(memory.ctypes.data, memory.nbytes), "register_memory")
        self.name = f"127.0.0.1:{self.target.get_rpc_port()}"

    @staticmethod
    def check(ret: int, what: str) -> None:
        if ret:
            raise RuntimeError(f"{what} returned {ret}")

    def addresses(self, local: np.ndarray, remote: np.ndarray) -> Tuple[List[int], List[int], List[int]]:
        mine = (self.mine.ctypes.data + local * BLOCK_BYTES).tolist()
        return mine, (self.theirs.ctypes.data + remote * BLOCK_BYTES).tolist(), [BLOCK_BYTES] * len(local)

    def start(self, local: Any, remote: Any) -> Tuple[int, int, int]:
        lists = self.addresses(local, remote)
        prepared = now()
        batch = self.source.batch_transfer_async_write(self.name, *lists)
        posted = now()
        self.check(not batch, "not batch_transfer_async_write")
        self.check(self.source.get_batch_transfer_status([batch]), "get_batch_transfer_status")
        return prepared, posted, now()

    def write(self, local: Any, remote: Any) -> Tuple[int, None, int]:
        lists = self.addresses(local, remote)
        prepared = now()
        self.check(self.source.batch_transfer_sync_write(self.name, *lists), "batch_transfer_sync_write")
        return prepared, None, now()

    def cases(self) -> Iterator[Case]:
        yield "batch_transfer_async_write + status", np.int64, self.start
        yield "batch_transfer_sync_write", np.int64, self.write


ENGINES: Dict[str, Any] = {"kvrail": Kvrail, "kvrail, cma": KvrailCma, "nixl": Nixl, "mooncake": Mooncake}


def module_of(name: str) -> Optional[str]:
    """The module of an engine that is installed."""
    modules: List[str] = ENGINES[name].MODULES
    for module in modules:
        if importlib.util.find_spec(module.partition(".")[0]):
            return module
    return None


def medians(engine: Any, case: Case, n: int, rounds: int) -> Dict[str, Optional[float]]:
    """Microseconds from the beginning of a round to each mark; the bytes of the last are compared."""
    rng = np.random.default_rng(n)
    marks: List[Tuple[Optional[int], ...]] = []
    end = time.monotonic() + ROW_S / 2
    for turn in range(WARM + rounds):
        local, remote = (rng.permutation(BLOCKS)[:n] for _ in range(2))
        ids = [side.tolist() if case[1] is list else side.astype(case[1]) for side in (local, remote)]
        begun = now()
        row = case[2](*ids)
        if turn >= WARM:
            marks.append(tuple(None if mark is None else mark - begun for mark in row))
            if time.monotonic() > end:
                break
    engine.mine[:] = rng.integers(1, 255, engine.mine.shape)
    engine.theirs[:] = 0
    case[2](*ids)
    want = np.zeros_like(engine.theirs)
    want[remote] = engine.mine[local]
    if not np.array_equal(engine.theirs, want):
        raise RuntimeError(f"{case[0]}: wrong bytes")
    columns = dict(zip(("prepared_us", "posted_us", "complete_us"), zip(*marks)))
    us = {name: None if None in column else statistics.median(column) / 1000 for name, column in columns.items()}
    return {"ids": n, **us, "rounds": len(marks)}


def main() -> None:
    name, rounds = sys.argv[1], int(sys.argv[2])
    with os.fdopen(os.dup(1), "w") as out:
        os.dup2(2, 1)  # what the engines print themselves
        module = module_of(name)
        if not module:
            raise SystemExit(f"{name} is not installed")
        engine = ENGINES[name](importlib.import_module(module))
        package = importlib.metadata.packages_distributions()[module.partition(".")[0]][0]
        rows = [
            {"engine": name, "call": case[0], **medians(engine, case, n, rounds)} for case in engine.cases() for n in (1, IDS)
        ]
        out.write(json.dumps({"package": f"{package} {importlib.metadata.version(package)}", "rows": rows}) + "\n")
    os._exit(0)  # two ends in one process: an engine may not survive its own end


if __name__ == "__main__":
    main()
