# SPDX-License-Identifier: Apache-2.0
"""killed.py -- how soon NIXL says that a peer of this host was killed, with the backend KVRAIL and host memory

usage: killed.py PLUGIN [--rounds N] [--json FILE]

From before the signal until a post or a check says NIXL_ERR_REMOTE_DISCONNECT, over shared memory and over TCP: beside a writer that
posts for the first time after it, and beside one that posts without end; then a peer of much memory, which the kernel takes
away before it closes the sockets, over the ring, where no call into that memory meets it, as with a GPU's. Their median may not be more than BAR_MS, and no
round more than ten times that: a virtual machine that stands still for a moment is not counted by any kernel. What the kernel has not given
of a processor is taken off there, as tests/lib/bar.h does, and is in every figure that is printed.
"""
import argparse
import mmap
import os
import re
import statistics
import sys
import time

import peers

sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "docs"))
import figures  # noqa: E402

BAR_MS = 50 * int(os.environ.get("KVRAIL_TEST_SLOW", "1"))
STARVED_MS = 10_000
SIZE = 8 << 20
HEAVY = 256 << 20  # in small pages


class Peer(peers.End):
    def hold(self, size):
        if not size:
            return
        self.held = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.held.madvise(mmap.MADV_NOHUGEPAGE)
        for at in range(0, size, mmap.PAGESIZE):
            self.held[at] = 1

    def calls(self):
        return {**super().calls(), "hold": self.hold}


def starved_ms():
    """What there was to run and no processor for it, since the start of the machine."""
    try:
        with open("/proc/pressure/cpu", encoding="ascii") as file:
            return int(re.search(r"some .*total=(\d+)", file.read())[1]) / 1000
    except OSError:
        return 0


def kill_one(plugin, end, writing, held=0):
    """(milliseconds, those of them that count for the bar, until the process was gone)"""
    other = peers.Other(plugin, size=SIZE, kind=Peer)
    other("hold", held)
    end.agent.add_remote_agent(other("metadata"))
    whole = [(0, SIZE)]
    handle = end.agent.initialize_xfer("WRITE", end.descs(whole), end.descs(whole, other.base), "other", b"n")
    assert peers.run(end, handle) == "DONE"
    state = end.agent.transfer(handle) if writing else "DONE"
    starved, begun = starved_ms(), time.monotonic()
    os.kill(other.process.pid, 9)
    try:
        if state == "PROC":
            peers.run_on(end, handle)
        said = peers.run_to_failure(end, handle)
    except Exception as error:  # what was under way says it; they have no class in common
        said = type(error).__name__
    took = 1000 * (time.monotonic() - begun)
    counted = took - min(starved_ms() - starved, STARVED_MS)
    other.process.join()
    gone = 1000 * (time.monotonic() - begun)
    assert said == "nixlRemoteDisconnectError", said
    peers.release(end, handle)
    end.agent.remove_remote_agent("other")
    return took, counted, gone


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plugin", metavar="PLUGIN")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", metavar="FILE")
    asked = parser.parse_args()
    plugin = os.path.abspath(asked.plugin)
    peers.load_nixl(plugin)
    said, late = {}, []
    light, heavy = ("a peer", 0), (f"a peer of {HEAVY >> 20} MiB", HEAVY)
    for transport, path, (who, held) in (("shm", "auto", light), ("tcp", "auto", light), ("shm", "ring", heavy)):
        os.environ.update(KVCACHE_TRANSPORT=transport, KVCACHE_SHM_PATH=path)
        end = peers.End("here", SIZE)
        for what, writing in (("and the next post", False), ("under transfers", True)):
            took, counted, gone = zip(*(kill_one(plugin, end, writing, held) for _ in range(asked.rounds)))
            name = f"{who} killed {what}, over {transport if path == 'auto' else path}, until NIXL_ERR_REMOTE_DISCONNECT"
            said[name] = f"median {statistics.median(took):.1f} ms, worst {max(took):.1f} ms of {asked.rounds}"
            if held:
                said[name] += f"; gone after {statistics.median(gone):.0f} ms"
            print(f"{name}: {said[name]}", flush=True)
            late += [f"{name}: {one:.1f} ms of its own, not {bar}" for one, bar in
                     ((statistics.median(counted), BAR_MS), (max(counted), 10 * BAR_MS)) if one > bar]
    if asked.json:
        figures.store(asked.json, f"tests/nixl/killed.py nixl_plugin/libplugin_KVRAIL.so --rounds {asked.rounds}", said)
    sys.exit("\n".join(late) or 0)


if __name__ == "__main__":
    main()
