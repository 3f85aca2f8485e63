#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What one write_cache costs in Python above the C call, for 1538 ids as lists and as numpy int64.

    python3 bench/call.py [--rounds N] [--json FILE]

Two engines of one process over shared memory pools; blocks of 64 bytes, so that the copy does not drown the call. Each round
times the three, in an order drawn anew, on the same ids: kv_write_blocks on ready arrays of int64, from C; rdma_comm with
lists; rdma_comm with arrays. Then the same with one id, which is the fixed cost. The figures are medians of the
differences within a round; per id they are the slope between 1 and 1538 ids.

Then the whole Python calls of kvrail, NIXL and Mooncake on the same blocks, each engine in a process of its own, one after the
other (call_engines.py): the call that prepares and posts, and the transfer until it is complete.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple
from unittest import mock

import call_engines
import numpy as np
import results
from call_engines import BLOCK_BYTES, BLOCKS, IDS

import kvrail
from kvrail import _core
from rdma_comm import RDMACommunicator

BARS = {"list, ns per id": 15, "int64, ns per id": 2, "fixed, us": 5}
Row = Dict[str, Any]


def ns_of(call: Callable[[], object]) -> int:
    start = time.perf_counter_ns()
    call()
    return time.perf_counter_ns() - start


def communicator(role: str) -> RDMACommunicator:
    """One layer of keys, no values (MLA), in a pool of the communicator's own engine: the fastest C call there is."""
    engine = kvrail.Engine(role, arrivals=False)
    memory = np.asarray(engine.alloc(BLOCKS * BLOCK_BYTES))
    keys = [engine._engine_address(memory.ctypes.data)]
    with mock.patch("rdma_comm._communicator.Engine", lambda *args, **kwargs: engine):
        return RDMACommunicator(role, 0, "0", keys, [], BLOCKS, BLOCK_BYTES)


def pair() -> Tuple[RDMACommunicator, RDMACommunicator]:
    decode, prefill = communicator("decode"), communicator("prefill")
    if not prefill.connect("127.0.0.1", decode.port):
        raise SystemExit(prefill.last_error())
    return prefill, decode


def timer(peer: int, cache: int) -> Callable[[int, int, int], int]:
    """call_time.c: nanoseconds of the bare C call, of the addresses of ids and their number."""
    here = Path(__file__).parent
    with tempfile.TemporaryDirectory() as folder:
        library = f"{folder}/call_time.so"
        source = [f"-I{here.parent / 'include'}", str(here / "call_time.c"), "-o", library]
        subprocess.run([os.environ.get("CC", "cc"), "-O2", "-fPIC", "-shared", *source], check=True)
        function = ctypes.CDLL(library).call_time
    function.restype, function.argtypes = ctypes.c_int64, [ctypes.c_void_p] * 5 + [ctypes.c_size_t]

    def time_call(local: int, remote: int, n: int) -> int:
        ns: int = function(_core.WRITE_BLOCKS_ADDRESS, peer, cache, local, remote, n)
        if ns < 0:
            raise SystemExit(f"kv_write_blocks failed with {ns}")
        return ns

    return time_call


def above_c(prefill: RDMACommunicator, port: int, ids: int, rounds: int) -> List[Row]:
    """The C call, and what lists and arrays take above it: medians within a round."""
    view, peer = prefill._peers[("127.0.0.1", port)]
    assert view._cache is not None
    time_call = timer(_core.ident(peer._handle), _core.ident(view._cache._handle))

    def c_call(local: Any, remote: Any) -> int:
        return time_call(local.ctypes.data, remote.ctypes.data, len(local))

    def write_cache(local: Any, remote: Any) -> int:
        return ns_of(lambda: prefill.write_cache("127.0.0.1", port, local, remote, 0))

    times: List[Dict[str, int]] = []
    for _ in range(rounds):
        local, remote = random.sample(range(BLOCKS), ids), random.sample(range(BLOCKS), ids)
        arrays = np.array(local, np.int64), np.array(remote, np.int64)
        three = [("c", c_call, arrays), ("list", write_cache, (local, remote)), ("array", write_cache, arrays)]
        random.shuffle(three)  # the first finds colder caches than the last
        c_call(*arrays)
        times.append({name: call(*ids) for name, call, ids in three})

    def row(engine: str, call: str, ns: List[int]) -> Row:
        return {"engine": engine, "call": call, "ids": ids, "prepared_us": None, "posted_us": None,
                "complete_us": statistics.median(ns) / 1000, "rounds": rounds}

    return [
        row("C", "kv_write_blocks", [one["c"] for one in times]),
        row("rdma_comm, above C", "write_cache, lists", [one["list"] - one["c"] for one in times]),
        row("rdma_comm, above C", "write_cache, int64", [one["array"] - one["c"] for one in times]),
    ]


def print_above_c(rows: List[Row]) -> None:
    us = {(row["call"], row["ids"]): row["complete_us"] for row in rows}

    def per_id(call: str) -> float:
        return (us[call, IDS] - us[call, 1]) * 1000 / (IDS - 1)

    measured = {
        "list, ns per id": per_id("write_cache, lists"),
        "int64, ns per id": per_id("write_cache, int64"),
        "fixed, us": max(us["write_cache, lists", 1], us["write_cache, int64", 1]),
    }
    results.print_table(["above the C call", "measured", "bar"], [[name, f"{v:.2f}", str(BARS[name])] for name, v in measured.items()])
    print(f"\nthe C call itself: {us['kv_write_blocks', 1]:.2f} us for 1 id, {us['kv_write_blocks', IDS]:.2f} us for {IDS}")


def of_engine(name: str, rounds: int) -> Dict[str, Any]:
    """What call_engines.py says of an engine; {"why": …} where it cannot be measured."""
    if not call_engines.module_of(name):
        return {"why": "not installed"}
    # NIXL's UCX: what moves bytes on one host without a NIC. Chosen in the environment, before UCX is loaded.
    quiet = {"NIXL_LOG_LEVEL": "WARN", "UCX_LOG_LEVEL": "error", "GLOG_minloglevel": "3"}
    environment = {"UCX_TLS": "sm,self,tcp", **quiet, **os.environ}
    command = [sys.executable, call_engines.__file__, name, str(rounds)]
    try:
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        return {"why": "no answer in 120 s"}
    if ran.returncode or not ran.stdout:
        said = (ran.stderr.strip() or "nothing said").splitlines()[-1]
        return {"why": f"does not run here ({ran.returncode}): {said}"}
    answer: Dict[str, Any] = json.loads(ran.stdout)
    return answer


def cells_of(one: Row, many: Row) -> List[str]:
    cells = [one["engine"], one["call"]]
    for mark in "prepared_us", "posted_us":
        known = one[mark] is not None
        cells += [f"{one[mark]:.1f}", f"{(many[mark] - one[mark]) * 1000 / (IDS - 1):.1f}"] if known else ["", ""]
    return cells + [f"{one['complete_us']:.1f}", f"{many['complete_us']:.0f}", str(many["rounds"])]


def print_engines(engines: Dict[str, Dict[str, Any]]) -> None:
    print("\n# whole Python calls, from their beginning until prepared, posted, complete")
    print("# " + ", ".join(dict.fromkeys(told["package"] for told in engines.values() if "package" in told)) + "\n")
    columns = "engine|call|prepared: 1 id, us|ns per id|posted: 1 id, us|ns per id|complete: 1 id, us|1538 ids, us|rounds".split("|")
    lines = []
    for name, told in engines.items():
        rows = told.get("rows", [])
        lines += [cells_of(*pair) for pair in zip(rows[::2], rows[1::2])] or [[name, told["why"]] + [""] * (len(columns) - 2)]
    results.print_table(columns, lines, texts=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    results.can_write(args.json)
    random.seed(1)
    prefill, decode = pair()
    rows = above_c(prefill, decode.port, 1, args.rounds) + above_c(prefill, decode.port, IDS, args.rounds)
    prefill.close()
    decode.close()
    print(f"# write_cache above kv_write_blocks; {kvrail.__version__}, Python {platform.python_version()}")
    print(f"# {args.rounds} rounds, shm, blocks of {BLOCK_BYTES} bytes\n")
    print_above_c(rows)
    engines = {name: of_engine(name, args.rounds) for name in call_engines.ENGINES}
    print_engines(engines)
    if args.json:
        left_out = {name: told["why"] for name, told in engines.items() if "why" in told}
        packages = sorted({told["package"] for told in engines.values() if "package" in told})
        head = results.head("call", "shm", "pool", block_bytes=BLOCK_BYTES, packages=packages, left_out=left_out)
        results.write(args.json, head, rows + [row for told in engines.values() for row in told.get("rows", [])])


if __name__ == "__main__":
    main()
