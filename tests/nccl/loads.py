# SPDX-License-Identifier: Apache-2.0
"""loads.py -- the real NCCL finds, takes and uses the plugin

usage: loads.py PLUGIN PROGRAM PROGRAM_WITH_PLUGIN     nccl_ranks.c, which needs no GPU; the second one has the plugin in itself
       loads.py --gpu LIBRARY PLUGIN PROGRAM           net_plugin/gpu/ranks.py

NCCL is each library of library.py, or LIBRARY. What NCCL says at NCCL_DEBUG=INFO is part of what is checked: a line that has to
be there is counted, 0 stands for any number but none.
"""
import concurrent.futures
import ctypes
import os
import re
import shutil
import subprocess
import sys
import tempfile

from library import libraries, skip

FUNCTIONS = ("envConfigOverride ncclNetInit ncclNetFinalize bootstrapInit bootstrapAllGather bootstrapClose").split()
MEMBERS = "rank nRanks abortFlag sharedRes bootstrap".split()
INVALID_USAGE = 5
LONGEST_NAME = 254
RELOADS = 23007  # known to; 2.28.9 forgets the name of a plugin that it has unloaded
JOBS = 4         # most of the time they wait

TAKEN = {"NET/Plugin: Loaded net plugin kvrail (v1": 1, "NET/kvrail: network interface v1": 2,
         "Assigned NET plugin kvrail to comm": 2, ": init 0\n": 2, ": finalize 0\n": 2}
USED = {**TAKEN, "Bootstrap: Using shm:1": 0, "NET/kvrail: connected to": 0, "NET/kvrail: accepted": 0}
GATHERED = {": bootstrap 0\n": 2, ": gather 0\n": 2, ": close 0\n": 2}
REFUSED = {f": init {INVALID_USAGE}\n": 2}
NEVER = ["NET/kvrail: "]  # init says its first line whatever comes of it


class Case:
    def __init__(self, name, settings, wanted, unwanted=(), rounds=1, size=0, with_plugin=False):
        self.name, self.settings, self.wanted, self.unwanted = name, settings, wanted, unwanted
        self.rounds, self.size, self.with_plugin = rounds, size, with_plugin

    def judge(self, text):
        """What is wrong with the output, as lines."""
        wrong = [f"{text.count(line)} times, not {n or 'once or more'}: {line!r}"
                 for line, n in {"exit 0\n": 1, **self.wanted}.items() if text.count(line) != n and (n or line not in text)]
        return wrong + [f"unexpected: {line!r}" for line in self.unwanted if line in text]


def times(n, lines):
    return {line: n * count for line, count in lines.items()}


def ways_to_load(plugin, folder):
    place, name = os.path.split(plugin)
    os.symlink(plugin, os.path.join(folder, "libnccl-net.so"))
    static = {"NCCL_NET_PLUGIN": "STATIC_PLUGIN"}
    yield Case("by its full path", {"NCCL_NET_PLUGIN": plugin},
               {**USED, f"Successfully loaded external network plugin {plugin}": 1, "Unloading plugin": 1}, size=5000)
    yield Case("by its suffix", {"NCCL_NET_PLUGIN": "kvrail", "LD_LIBRARY_PATH": place}, USED, size=5000)
    yield Case("by its file name", {"NCCL_NET_PLUGIN": name, "LD_LIBRARY_PATH": place}, USED, size=1)
    yield Case("as libnccl-net.so, without a variable", {"LD_LIBRARY_PATH": folder}, USED, size=1)
    yield Case("preloaded, as STATIC_PLUGIN", {"LD_PRELOAD": plugin, **static}, USED, size=5000)
    yield Case("in the program itself, as STATIC_PLUGIN", static, USED, size=5000, with_plugin=True)
    yield Case("second in a list whose first is not there", {"NCCL_NET_PLUGIN": f"nosuch,{plugin}"}, USED, size=1)
    yield Case("NCCL_NET in other case", {"NCCL_NET_PLUGIN": plugin, "NCCL_NET": "KVRail"}, USED, size=1)


def again(plugin, version):
    ours = {"NCCL_NET_PLUGIN": plugin}
    if version >= RELOADS:
        yield Case("loaded three times in one process, 8 MiB each", ours,
                   {**times(3, TAKEN), "Unloading plugin": 3}, rounds=3, size=8 << 20)
    yield Case("used three times in one process, kept by a reference", {**ours, "NCCL_NET_PLUGIN_REF_COUNT": "1"},
               {**times(3, TAKEN), "NET/Plugin: Loaded net plugin kvrail (v1": 1}, ["Unloading plugin"], rounds=3, size=5000)


def ways_not_to(plugin, folder):
    ours, asked = {"NCCL_NET_PLUGIN": plugin}, {"NCCL_NET": "kvrail"}
    nothing = {**ours, "KVCACHE_TRANSPORT": "ib", "NCCL_IB_HCA": "=nosuch"}
    failed = "Failed to initialize NET plugin kvrail"
    deep = os.path.join(folder, "d" * 200, "e" * 100, "libnccl-net-kvrail.so")
    os.makedirs(os.path.dirname(deep))
    os.symlink(plugin, deep)
    assert len(deep) > LONGEST_NAME
    yield Case("NCCL_NET names another: init is never called", {**ours, "NCCL_NET": "other"},
               {**REFUSED, "Loaded net plugin kvrail": 1}, NEVER)
    yield Case("NCCL_NET names NCCL's socket: init is never called", {**ours, "NCCL_NET": "Socket"},
               {"Assigned NET plugin Socket to comm": 2}, NEVER)
    yield Case("NCCL_NET_PLUGIN is none", {"NCCL_NET_PLUGIN": "none", **asked}, REFUSED, NEVER)
    yield Case("not found, and NCCL_NET asks for it", {"NCCL_NET_PLUGIN": "kvrail", **asked},
               {**REFUSED, "Could not find: kvrail libnccl-net-kvrail.so": 1}, NEVER)
    yield Case("a path that NCCL finds too long", {"NCCL_NET_PLUGIN": deep, **asked},
               {**REFUSED, "longer than 255 characters, ignoring it": 1}, NEVER)
    yield Case("no device, and NCCL_NET asks for it", {**nothing, **asked},
               {**REFUSED, failed: 0, "NET/kvrail: init: there is no usable device": 0})
    yield Case("no device: NCCL goes on with its own", nothing, {"Assigned NET plugin ": 2, failed: 0},
               ["Assigned NET plugin kvrail"])
    yield Case("a bad option, and NCCL_NET asks for it", {**ours, **asked, "KVCACHE_IB_RETRY": "9"},
               {**REFUSED, "KVCACHE_IB_RETRY": 0, failed: 0})


def cases(library, plugin, folder):
    number = ctypes.c_int()
    ctypes.CDLL(library).ncclGetVersion(ctypes.byref(number))
    return [*ways_to_load(plugin, folder), *again(plugin, number.value), *ways_not_to(plugin, folder)]


def run(command, case, folder):
    # Shared memory is everywhere; RAS would open a port of its own.
    env = {key: value for key, value in os.environ.items() if not key.startswith(("NCCL_", "KVCACHE_", "LD_PRELOAD"))}
    env.update(NCCL_DEBUG="INFO", NCCL_DEBUG_SUBSYS="INIT,NET,ENV", NCCL_SOCKET_IFNAME="lo", NCCL_RAS_ENABLE="0",
               NCCL_CONF_FILE="/dev/null", NCCL_NVLS_ENABLE="0", NCCL_MNNVL_ENABLE="0",
               NCCL_OOB_NET_ENABLE="1" if case.size else "0", KVCACHE_TRANSPORT="shm")
    env.update(case.settings)
    if "LD_LIBRARY_PATH" in case.settings:  # the driver may be found by it
        env["LD_LIBRARY_PATH"] += ":" + os.environ.get("LD_LIBRARY_PATH", "")
    try:
        done = subprocess.run(command, env=env, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              errors="replace", timeout=60)
    except subprocess.TimeoutExpired as error:
        return f"{error}\n"
    return done.stdout + f"exit {done.returncode}\n"


def failures(todo, command_of, folder):
    """Runs the cases, a few at a time; how many are wrong."""
    with concurrent.futures.ThreadPoolExecutor(JOBS) as pool:
        outputs = list(pool.map(lambda case: run(command_of(case), case, folder), todo))
    count = 0
    for case, text in zip(todo, outputs):
        wrong = case.judge(text)
        count += bool(wrong)
        print("FAIL" if wrong else "pass", "", case.name)
        if wrong:
            print("\n".join(["  " + line for line in wrong] + ["  | " + line for line in text.splitlines()]))
    return count


def with_gpus(library, plugin, program):
    with tempfile.TemporaryDirectory() as folder:
        todo = [case for case in cases(library, plugin, folder) if not case.with_plugin]
        wrong = failures(todo, lambda case: [sys.executable, program, library, str(case.rounds)], folder)
        print(f"ok {len(todo)} ways to load" if not wrong else f"{wrong} of {len(todo)} failed")
    return wrong


def offsets(library):
    """["name=offset"] of what nccl_ranks.c needs; None if the library has no such debug information."""
    command = ["gdb", "-batch", "-nx", "-ex", 'printf "ncclComm=%ld\\n", sizeof(struct ncclComm)']
    for name in FUNCTIONS:
        command += ["-ex", f'printf "{name}=%ld\\n", (long)&{name}']
    for name in MEMBERS:
        command += ["-ex", f'printf "{name}=%ld\\n", (long)&((struct ncclComm *)0)->{name}']
    text = subprocess.run(command + [library], capture_output=True, text=True).stdout
    found = re.findall(r"^\w+=\d+$", text, re.M)
    return found if len(found) == 1 + len(FUNCTIONS) + len(MEMBERS) else None


def without_gpu(library, places, plugin, program, with_plugin):
    with tempfile.TemporaryDirectory() as folder:
        todo = cases(library, plugin, folder)
        for case in todo:
            if case.size:
                stays = "LD_PRELOAD" in case.settings or "NCCL_NET_PLUGIN_REF_COUNT" in case.settings
                case.wanted = {**case.wanted, **times(case.rounds, GATHERED),
                               f"mapped afterwards: {'yes' if stays else 'no'}": case.rounds}
        return failures(todo, lambda case: [with_plugin if case.with_plugin else program, library, str(case.rounds),
                                            str(case.size), *places], folder)


def main():
    if sys.argv[1] == "--gpu":
        sys.exit(1 if with_gpus(*map(os.path.realpath, sys.argv[2:5])) else 0)
    if not shutil.which("gdb"):
        skip("gdb is missing")
    paths, why = libraries()
    wrong = checked = 0
    for path in paths:
        places = offsets(path)
        if not places:
            print(f"note: {path} has no debug information about communicators")
            continue
        print(path)
        checked += 1
        wrong += without_gpu(path, places, *map(os.path.realpath, sys.argv[1:4]))
    if not checked:
        skip(why)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
