# SPDX-License-Identifier: Apache-2.0
"""cost_test.py -- what metrics and the view cost the data path, in instructions, which no other load on the machine changes

usage: cost_test.py BUILD [--time FILE]

The same work with neither, and with KVCACHE_METRICS_DIR and KVCACHE_VIEW, as valgrind's callgrind counts it in `measured` (bench/cost.h).
Of the agent, which is polled while its own threads work, what is there for metrics is counted beside a post. --time, in a build of the
preset bench, also runs kv_pd_bench at 1 KiB with and without in turn, and writes all into FILE, for docs/figures.py.
"""
import argparse
import glob
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile

sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "bench"))
import results  # noqa: E402

LIMIT_PERCENT = 1.0
PASSES = 11
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith(("KVCACHE_", "NCCL_"))}
SLOW = {"NCCL_SOCKET_IFNAME": "lo", "KVCACHE_TRANSPORT": "shm", "KVCACHE_HANDSHAKE_MS": "60000", "KVCACHE_OP_TIMEOUT_MS": "60000"}


def instructions(command, folder, functions=("measured*",), **settings):
    done = subprocess.run(["valgrind", "--tool=callgrind", "--fair-sched=yes", *(f"--toggle-collect={name}" for name in functions),
                           f"--callgrind-out-file={folder}/callgrind.out", *command], env={**CLEAN, **SLOW, **settings}, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    found = re.search(r"Collected : (\d+)", done.stdout)
    if done.returncode or not found:
        sys.exit(f"{' '.join(command)}: exit status {done.returncode}\n{done.stdout}")
    return int(found[1])


def program(build, path):
    return os.path.join(os.path.abspath(build), path)


def pd_bench(build, passes):
    """The p50 of an operation in us, of each run: without, with. The two take turns, so that a load of the machine is in both."""
    found = {"without": [], "with": []}
    with tempfile.TemporaryDirectory() as folder:
        table = os.path.join(folder, "table.json")
        for _ in range(passes):
            for name, settings in (("without", {"KVCACHE_VIEW": "0"}), ("with", {"KVCACHE_METRICS_DIR": folder})):
                subprocess.run([program(build, "bench/kv_pd_bench"), "--local", "1+1", "-b", "1K", "-e", "1K", "-i", "300", "--pool", "256M", "-J", table],
                               env={**CLEAN, **SLOW, **settings}, check=True, stdout=subprocess.DEVNULL)
                with open(table, encoding="utf-8") as file:
                    found[name].append(json.load(file)["rows"][0]["p50_us"])
    return found


def counted(build):
    """{work: its instructions without, and how many more with}"""
    kv_cost, net_cost, agent_cost = (program(build, path) for path in ("bench/kv_cost", "bench/net_cost", "tests/operate/agent_cost"))
    plugin = glob.glob(program(build, "net_plugin/libnccl-net-kvrail.so"))[0]
    rows = (("block API, a write of 1 block of 1 KiB", [kv_cost, "1024", "1", "400", "1"]),
            ("block API, a write of 256 blocks of 1 KiB", [kv_cost, "1024", "256", "50", "1"]),
            ("block API, a write of 1538 blocks of 1 KiB as kv_pd_bench makes them", [kv_cost, "1024", "1538", "20", "1"]),
            ("NCCL plugin, messages of 1 KiB", [net_cost, plugin, "1024", "300", "1"]),
            ("NCCL plugin, messages of 64 KiB", [net_cost, plugin, "65536", "10", "1"]))
    agent = [agent_cost, "1024", "32", "200", "1"]
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, command in rows:
            without = instructions(command, folder, KVCACHE_VIEW="0")
            found[name] = without, instructions(command, folder, KVCACHE_METRICS_DIR=folder) - without
        posts = instructions(agent, folder, ["ag_xfer_post"], KVCACHE_VIEW="0")
        if posts:  # a release has it inlined
            found["agent (NIXL plugin), a transfer of 32 blocks of 1 KiB"] = posts, instructions(
                agent, folder, ["ag_metrics_begun", "ag_metrics_ended"], KVCACHE_METRICS_DIR=folder)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", metavar="BUILD")
    parser.add_argument("--time", metavar="FILE")
    arguments = parser.parse_args()
    if not shutil.which("valgrind"):
        print("skipped: valgrind is not installed")
        sys.exit(77)
    found = counted(arguments.build)
    if not all(without for without, _ in found.values()):
        sys.exit(f"nothing was counted: {found}")
    for name, (without, more) in found.items():
        print(f"{name}: {without} instructions, {100 * more / without:+.2f} % with metrics and the view")
    if arguments.time:
        told = {"command": "python3 tests/operate/cost_test.py build-bench --time docs/results/metrics.json", "commit": results.commit(),
                "cpu": results.cpu(), "load": round(os.getloadavg()[0], 1), "instructions": {name: list(pair) for name, pair in found.items()},
                "kv_pd_bench_p50_us": pd_bench(arguments.build, PASSES)}
        with open(arguments.time, "w", encoding="utf-8") as file:
            json.dump(told, file, indent=1)
            file.write("\n")
    dear = sum(100 * more > LIMIT_PERCENT * without for without, more in found.values())
    if dear:
        sys.exit(f"{dear} of these cost more than {LIMIT_PERCENT} %")


if __name__ == "__main__":
    main()
