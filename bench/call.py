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
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from typing import Any, Callable, Dict, List, Tuple
from unittest import mock

import call_engines
import numpy as np
from call_engines import BLOCK_BYTES, BLOCKS, IDS

import kvrail
from kvrail import _core
from rdma_comm import RDMACommunicator

BARS = {"list, ns per id": 15.0, "int64, ns per id": 2.0, "fixed, us": 5.0}


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


def differences(prefill: RDMACommunicator, port: int, n: int, rounds: int) -> Tuple[float, float, float]:
    """Medians in ns: the C call, lists above it, arrays above it."""
    view, peer = prefill._peers[("127.0.0.1", port)]
    assert view._cache is not None
    handles = peer._handle, view._cache._handle

    def c_call(local: Any, remote: Any) -> int:
        return _core.time_write(*handles, 0, local, remote)

    def write_cache(local: Any, remote: Any) -> int:
        return ns_of(lambda: prefill.write_cache("127.0.0.1", port, local, remote, 0))

    rows: List[Dict[str, int]] = []
    for _ in range(rounds):
        local, remote = random.sample(range(BLOCKS), n), random.sample(range(BLOCKS), n)
        arrays = np.array(local, np.int64), np.array(remote, np.int64)
        three = [("c", c_call, arrays), ("list", write_cache, (local, remote)), ("array", write_cache, arrays)]
        random.shuffle(three)  # the first finds colder caches than the last
        c_call(*arrays)
        rows.append({name: call(*ids) for name, call, ids in three})
    return (
        statistics.median(row["c"] for row in rows),
        statistics.median(row["list"] - row["c"] for row in rows),
        statistics.median(row["array"] - row["c"] for row in rows),
    )


def engine_rows(name: str, rounds: int) -> Dict[str, Any]:
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


def print_engine(name: str, told: Dict[str, Any]) -> None:
    if "why" in told:
        print(f"| {name} | {told['why']} |" + " |" * 7)
    for row in told.get("rows", []):
        one, many = row["one"], row["many"]
        cells: List[str] = []
        for mark in "prepared", "posted":
            known = many[mark] is not None
            cells += [f"{one[mark]:.1f}", f"{(many[mark] - one[mark]) * 1000 / (IDS - 1):.1f}"] if known else ["", ""]
        cells += [f"{one['done']:.1f}", f"{many['done']:.0f}", str(many["rounds"])]
        print(f"| {name} | {row['call']} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    random.seed(1)
    prefill, decode = pair()
    one = differences(prefill, decode.port, 1, args.rounds)
    many = differences(prefill, decode.port, IDS, args.rounds)
    slope = [(m - o) / (IDS - 1) for m, o in zip(many, one)]
    figures: Dict[str, float] = {
        "C call, 1538 ids, us": many[0] / 1000,
        "C call, 1 id, us": one[0] / 1000,
        "list, ns per id": slope[1],
        "int64, ns per id": slope[2],
        "fixed, us": max(one[1], one[2]) / 1000,
    }
    print(f"# write_cache above kv_write_blocks; {kvrail.__version__}, Python {platform.python_version()}")
    print(f"# {args.rounds} rounds, shm, blocks of {BLOCK_BYTES} bytes")
    print(f"{'':24} {'measured':>9} {'bar':>6}")
    for name, value in figures.items():
        print(f"{name:24} {value:9.2f} {BARS.get(name, ''):>6}")
    prefill.close()
    decode.close()
    engines = {name: engine_rows(name, args.rounds) for name in call_engines.ENGINES}
    print("\n# whole Python calls, from their beginning until prepared, posted, complete")
    print("# " + ", ".join(dict.fromkeys(told["package"] for told in engines.values() if "package" in told)))
    columns = "prepared: 1 id, us | ns per id | posted: 1 id, us | ns per id | complete: 1 id, us | 1538 ids, us | rounds"
    print(f"\n| engine | call | {columns} |\n| --- | --- |" + " ---: |" * 7)
    for name, told in engines.items():
        print_engine(name, told)
    if args.json:
        with open(args.json, "w") as out:
            told = {"figures": figures, "bars": BARS, "rounds": args.rounds, "version": kvrail.__version__, "engines": engines}
            json.dump(told, out)


if __name__ == "__main__":
    main()
