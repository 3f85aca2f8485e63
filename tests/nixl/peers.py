# SPDX-License-Identifier: Apache-2.0
"""peers.py -- NIXL itself moves bytes between two processes by the backend KVRAIL, and they are compared

usage: peers.py PLUGIN [CASE...]    (or KVRAIL_CASE)

KVRAIL_NIXL_VERSION: another version than that of wheels.py

Each case starts the other process anew. It holds a region and does what it is asked to; of a transfer's failures the cases are
those of NIXL's own tests: load a remote that then fails, post and then it fails, fail and restore under the same name.
"""
import importlib.util
import multiprocessing
import os
import signal
import sys
import time
import types

import wheels

MIB = 1 << 20
BACKEND = os.environ.get("KVRAIL_NIXL_BACKEND", "KVRAIL")  # gpu.py looks at UCX, too
WAIT_S = 60 * int(os.environ.get("KVRAIL_TEST_SLOW", "1"))  # for what surely comes, on whatever machine


def load_nixl(plugin):
    try:
        sys.path.insert(0, wheels.site_packages(os.environ.get("KVRAIL_NIXL_VERSION", wheels.VERSION)))
    except wheels.Unavailable as error:
        wheels.skip(error)
    if not importlib.util.find_spec("torch"):  # NIXL before 1.4 imports it for the name of a type
        sys.modules["torch"] = types.ModuleType("torch")
        sys.modules["torch"].Tensor = type("Tensor", (), {})
    os.environ["NIXL_PLUGIN_DIR"] = os.path.dirname(plugin)
    os.environ.setdefault("KVCACHE_AGENT_ADDRESS", "127.0.0.1")
    os.environ.setdefault("NIXL_LOG_LEVEL", "FATAL")  # of failures that are part of a case


def nixl_module(name):
    package = next(one for one in ("nixl_cu12", "nixl_cu13") if importlib.util.find_spec(one))
    return importlib.import_module(f"{package}.{name}")


class End:
    """An agent with one region."""

    def __init__(self, name, size, locked=False):
        import numpy

        nixl = nixl_module("_api")
        more = {"sync_mode": nixl.nixl_thread_sync_t.NIXL_THREAD_SYNC_STRICT} if locked and hasattr(nixl, "nixl_thread_sync_t") else {}
        self.agent = nixl.nixl_agent(name, nixl.nixl_agent_config(backends=[BACKEND], **more))
        self.buffer = numpy.zeros(size, dtype=numpy.uint8)
        self.region = self.agent.register_memory(self.rows([(0, size)], True), "DRAM")

    def rows(self, ranges, registered=False):
        base = self.buffer.ctypes.data
        return [(base + at, size, 0, "") if registered else (base + at, size, 0) for at, size in ranges]

    def descs(self, ranges, base=None):
        base = self.buffer.ctypes.data if base is None else base
        return self.agent.get_xfer_descs([(base + at, size, 0) for at, size in ranges], "DRAM")

    def late(self, size):
        """One more region, of zeros; its address."""
        import numpy

        self.more = numpy.zeros(size, dtype=numpy.uint8)
        self.late_region = self.agent.register_memory([(self.more.ctypes.data, size, 0, "")], "DRAM")
        return self.more.ctypes.data

    def post(self, to, base, note):
        """Writes the whole region there, and does not wait."""
        whole = [(0, self.buffer.size)]
        self.posted = self.agent.initialize_xfer("WRITE", self.descs(whole), self.descs(whole, base), to, note)  # else it is released
        return self.agent.transfer(self.posted)

    def fill(self, seed):
        import numpy

        self.buffer[:] = numpy.random.default_rng(seed).integers(0, 256, self.buffer.size, dtype=numpy.uint8)

    def crc(self):
        import zlib

        return zlib.crc32(self.buffer)

    def calls(self):
        """What the other process may be asked for."""
        return {
            "metadata": self.agent.get_agent_metadata,
            "base": lambda: self.buffer.ctypes.data,
            "fill": self.fill,
            "crc": self.crc,
            "set": lambda byte: self.buffer.__setitem__(slice(None), byte),
            "is": lambda byte: bool((self.buffer == byte).all()),
            "notes": self.agent.get_new_notifs,
            "withdraw": lambda: self.agent.deregister_memory(self.region),
            "load": self.agent.add_remote_agent,
            "post": self.post,
            "late": self.late,
        }


def other_process(pipe, plugin, kind, name, size):
    load_nixl(plugin)
    do = kind(name, size).calls()
    while True:
        try:
            what, *rest = pipe.recv()
        except EOFError:
            return
        pipe.send(do[what](*rest))


class Other:
    """The other process, to be asked as a function."""

    def __init__(self, plugin, name="other", size=8 * MIB, kind=End):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=other_process, args=(theirs, plugin, kind, name, size), daemon=True)
        self.process.start()
        theirs.close()
        self.base = self("base")

    def __call__(self, *words):
        self.pipe.send(words)
        assert self.pipe.poll(WAIT_S), f"no answer to {words[0]}"
        return self.pipe.recv()

    def kill(self):
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.join()


def run(end, handle):
    """Posts and waits: DONE or ERR. An exception is how NIXL says that the peer is gone."""
    return run_on(end, handle, end.agent.transfer(handle))


def run_on(end, handle, state="PROC"):
    limit = time.monotonic() + WAIT_S
    while state == "PROC":
        assert time.monotonic() < limit, "the transfer does not end"
        state = end.agent.check_xfer_state(handle)
    return state


def release(end, handle):
    limit = time.monotonic() + WAIT_S
    while time.monotonic() < limit:
        try:
            return end.agent.release_xfer_handle(handle)
        except nixl_module("_bindings").nixlRepostActiveError:
            continue
    raise AssertionError("a release does not end")


def note_of(other):
    limit = time.monotonic() + WAIT_S
    while time.monotonic() < limit:
        notes = other("notes")
        if notes:
            return notes
    raise AssertionError("no notification came")


def writes_reads_and_notifications(plugin):
    other, end = Other(plugin), End("here", 8 * MIB)
    assert end.agent.add_remote_agent(other("metadata")) == b"other"
    whole = [(0, 8 * MIB)]
    for seed, note in enumerate((b"short", b"x" * 300, bytes(range(256)) * 4096)):
        end.fill(seed)
        handle = end.agent.initialize_xfer("WRITE", end.descs(whole), end.descs(whole, other.base), "other", note)
        assert end.agent.query_xfer_backend(handle) == "KVRAIL"
        assert run(end, handle) == "DONE"
        assert other("crc") == end.crc()
        assert note_of(other) == {"here": [note]}
        release(end, handle)
    other("fill", 99)
    handle = end.agent.initialize_xfer("READ", end.descs(whole), end.descs(whole, other.base), "other", b"read")
    for _ in range(3):  # prepared once
        end.buffer[:] = 0
        assert run(end, handle) == "DONE"
        assert other("crc") == end.crc()
        assert note_of(other) == {"here": [b"read"]}
    release(end, handle)


def long_lists_and_many_transfers(plugin):
    other, end = Other(plugin), End("here", 8 * MIB)
    end.agent.add_remote_agent(other("metadata"))
    end.fill(1)
    rows = 100_000
    here = [(64 * i, 64) for i in range(rows)]
    there = [(64 * (i ^ 1), 64) for i in range(rows)]
    handle = end.agent.initialize_xfer("WRITE", end.descs(here), end.descs(there, other.base), "other", b"list")
    assert run(end, handle) == "DONE"
    note_of(other)
    mine = end.buffer[: 64 * rows].reshape(rows // 2, 2, 64)[:, ::-1].reshape(-1).copy()
    end.buffer[:] = 0
    end.buffer[: 64 * rows] = mine
    assert other("crc") == end.crc()
    release(end, handle)
    end.fill(2)
    size = 8 * MIB // 512
    handles = [end.agent.initialize_xfer("WRITE", end.descs([(i * size, size)]), end.descs([(i * size, size)], other.base), "other", b"%d" % i)
               for i in range(512)]
    states = [end.agent.transfer(handle) for handle in handles]
    for i, handle in enumerate(handles):
        while states[i] == "PROC":
            states[i] = end.agent.check_xfer_state(handle)
        assert states[i] == "DONE"
        release(end, handle)
    assert other("crc") == end.crc()
    came = []
    while len(came) < 512:
        came += note_of(other)["here"]
    assert sorted(came) == sorted(b"%d" % i for i in range(512))


def a_list_moves_without_being_polled(plugin):
    other, end = Other(plugin), End("here", 8 * MIB)
    end.agent.add_remote_agent(other("metadata"))
    end.fill(8)
    rows = [(4096 * i, 4096) for i in range(2048)]
    handle = end.agent.initialize_xfer("WRITE", end.descs(rows), end.descs(rows[::-1], other.base), "other", b"moved")
    end.agent.transfer(handle)
    assert note_of(other) == {"here": [b"moved"]}
    assert run_on(end, handle) == "DONE"
    release(end, handle)


def an_agent_reaches_itself(plugin):
    del plugin
    end = End("alone", 2 * MIB)
    end.fill(3)
    handle = end.agent.initialize_xfer("WRITE", end.descs([(0, MIB)]), end.descs([(MIB, MIB)]), "alone", b"self")
    assert run(end, handle) == "DONE"
    assert (end.buffer[:MIB] == end.buffer[MIB:]).all()
    limit = time.monotonic() + WAIT_S
    while end.agent.get_new_notifs() != {"alone": [b"self"]}:
        assert time.monotonic() < limit
    release(end, handle)


def a_release_is_a_fence(plugin):
    other, end = Other(plugin, size=64 * MIB), End("here", 64 * MIB)
    end.agent.add_remote_agent(other("metadata"))
    whole = [(0, 64 * MIB)]
    for _ in range(4):
        end.buffer[:] = 0x11
        handle = end.agent.initialize_xfer("WRITE", end.descs(whole), end.descs(whole, other.base), "other", b"never")
        end.agent.transfer(handle)
        release(end, handle)
        other("set", 0x22)  # the blocks are used again at once
        handle = end.agent.initialize_xfer("READ", end.descs([(0, 1)]), end.descs([(0, 1)], other.base), "other")
        assert run(end, handle) == "DONE"  # the connection is well, and what came before it is over
        release(end, handle)
        assert other("is", 0x22), "bytes landed after the release"


def a_release_of_a_read_is_a_fence(plugin):
    other, end = Other(plugin, size=64 * MIB), End("here", 64 * MIB)
    end.agent.add_remote_agent(other("metadata"))
    other("set", 0x11)
    whole = [(0, 64 * MIB)]
    for _ in range(4):
        handle = end.agent.initialize_xfer("READ", end.descs(whole), end.descs(whole, other.base), "other")
        end.agent.transfer(handle)
        release(end, handle)
        end.buffer[:] = 0x22  # the blocks are used again at once
        handle = end.agent.initialize_xfer("READ", end.descs([(0, 1)]), end.descs([(0, 1)], other.base), "other")
        assert run(end, handle) == "DONE"
        release(end, handle)
        assert (end.buffer[1:] == 0x22).all(), "bytes landed after the release"


def regions_may_come_late(plugin):
    other, end = Other(plugin), End("here", 8 * MIB)
    end.agent.add_remote_agent(other("metadata"))
    end.fill(4)
    handle = end.agent.initialize_xfer("WRITE", end.descs([(0, MIB)]), end.descs([(0, MIB)], other.base), "other")
    assert run(end, handle) == "DONE"
    release(end, handle)
    there = other("late", MIB)
    end.agent.add_remote_agent(other("metadata"))  # again: the new region is among it
    here = end.late(MIB)
    handle = end.agent.initialize_xfer("WRITE", end.descs([(0, MIB)]), end.descs([(0, MIB)], there), "other", b"late")
    assert run(end, handle) == "DONE"
    assert note_of(other) == {"here": [b"late"]}
    release(end, handle)
    handle = end.agent.initialize_xfer("READ", end.descs([(0, MIB)], here), end.descs([(0, MIB)], there), "other")
    assert run(end, handle) == "DONE"
    assert (end.more == end.buffer[:MIB]).all()
    release(end, handle)


def a_killed_writer_harms_nobody_and_its_name_comes_back(plugin):
    size = 64 * MIB
    end = End("here", size)
    base = end.buffer.ctypes.data
    for stage in ("loaded", "posted", "done"):
        writer = Other(plugin, "writer", size)
        writer("load", end.agent.get_agent_metadata())
        if stage != "loaded":
            writer("post", "here", base, stage.encode())
        if stage == "done":
            limit = time.monotonic() + WAIT_S
            while end.agent.get_new_notifs() != {"writer": [b"done"]}:
                assert time.monotonic() < limit
        writer.kill()
        end.agent.deregister_memory(end.region)  # from here on the memory is ours alone
        end.buffer[:] = 0x66
        again = Other(plugin, "writer", MIB)
        there = end.late(MIB)
        again("fill", 5)
        again("load", end.agent.get_agent_metadata())
        again("post", "here", there, b"again")
        limit, notes = time.monotonic() + WAIT_S, []
        while b"again" not in notes:
            assert time.monotonic() < limit
            notes += end.agent.get_new_notifs().get("writer", [])
        import zlib

        assert zlib.crc32(end.more) == again("crc")
        assert (end.buffer == 0x66).all(), f"{stage}: a dead process wrote into memory that was withdrawn"
        again.kill()
        end.agent.deregister_memory(end.late_region)
        end.region = end.agent.register_memory(end.rows([(0, size)], True), "DRAM")


def threads_share_an_agent(plugin):
    import threading

    other, end = Other(plugin), End("here", 8 * MIB, locked=True)
    end.agent.add_remote_agent(other("metadata"))
    end.fill(6)
    threads, size = 4, 4096
    failed = []

    def work(first):
        try:
            for at in range(first * size, 8 * MIB, threads * size * 16):
                handle = end.agent.initialize_xfer("WRITE", end.descs([(at, size)]), end.descs([(at, size)], other.base), "other", b"t")
                assert run(end, handle) == "DONE"
                release(end, handle)
                handle = end.agent.initialize_xfer("READ", end.descs([(at, size)]), end.descs([(at, size)], other.base), "other")
                assert run(end, handle) == "DONE"
                release(end, handle)
        except Exception as error:  # they have no class in common
            failed.append(error)

    before = end.crc()
    many = [threading.Thread(target=work, args=(first,)) for first in range(threads)]
    for thread in many:
        thread.start()
    for thread in many:
        thread.join()
    assert not failed, failed
    assert end.crc() == before
    came = 0
    while came < 8 * MIB // size // 16:
        came += len(note_of(other)["here"])


def a_withdrawn_region_refuses(plugin):
    from_other, end = Other(plugin), End("here", 8 * MIB)
    end.agent.add_remote_agent(from_other("metadata"))
    whole = [(0, 8 * MIB)]
    handle = end.agent.initialize_xfer("WRITE", end.descs(whole), end.descs(whole, from_other.base), "other")
    assert run(end, handle) == "DONE"
    from_other("withdraw")
    from_other("set", 0x33)
    end.buffer[:] = 0x44
    assert run_to_failure(end, handle) == "nixlNotFoundError"
    assert from_other("is", 0x33)
    release(end, handle)
    end.agent.send_notif("other", b"still there")
    assert note_of(from_other) == {"here": [b"still there"]}


def run_to_failure(end, handle):
    """The name of NIXL's exception."""
    limit = time.monotonic() + WAIT_S
    while time.monotonic() < limit:
        try:
            assert run(end, handle) == "DONE"
        except Exception as error:  # they have no class in common
            if isinstance(error, AssertionError):
                raise
            if type(error).__name__ != "nixlRepostActiveError":  # one that was posted before is still under way
                return type(error).__name__
    raise AssertionError("nothing fails")


def a_killed_peer_is_a_disconnect_and_its_name_comes_back(plugin):
    end = End("here", 8 * MIB)
    whole = [(0, 8 * MIB)]
    for stage in ("given", "loaded", "done", "posted"):
        other = Other(plugin)
        metadata = other("metadata")
        if stage == "given":
            other.kill()
        end.agent.add_remote_agent(metadata)
        handle = end.agent.initialize_xfer("WRITE", end.descs(whole), end.descs(whole, other.base), "other", b"n")
        if stage == "done":
            assert run(end, handle) == "DONE"
        if stage == "posted":
            end.agent.transfer(handle)
        killed = time.monotonic()
        if stage != "given":
            other.kill()
        if stage == "posted":
            try:
                while end.agent.check_xfer_state(handle) == "PROC":
                    assert time.monotonic() < killed + WAIT_S
                name = run_to_failure(end, handle)
            except Exception as error:  # noqa: the peer went in the middle
                name = type(error).__name__
        else:
            name = run_to_failure(end, handle)
        assert name == "nixlRemoteDisconnectError", name
        print(f"  {stage}: a disconnect {1000 * (time.monotonic() - killed):.0f} ms after the peer was killed")
        release(end, handle)
        end.agent.remove_remote_agent("other")
        again = Other(plugin)
        end.agent.add_remote_agent(again("metadata"))
        end.fill(7)
        handle = end.agent.initialize_xfer("WRITE", end.descs(whole), end.descs(whole, again.base), "other", b"back")
        assert run(end, handle) == "DONE"
        assert again("crc") == end.crc()
        release(end, handle)
        end.agent.remove_remote_agent("other")
        again.kill()


def gpu_memory_is_refused_without_a_driver(plugin):
    del plugin
    if os.path.exists("/dev/nvidiactl"):
        return  # gpu.py is for it
    end = End("here", MIB)
    kinds = [str(kind) for kind in end.agent.get_plugin_mem_types("KVRAIL")]
    assert len(kinds) == 1 and "DRAM" in kinds[0], kinds
    try:
        end.agent.register_memory([(1 << 40, MIB, 0, "")], "VRAM", backends=["KVRAIL"])
    except Exception as error:  # they have no class in common
        assert type(error).__name__ in ("nixlNotFoundError", "nixlNotSupportedError", "nixlBackendError"), error
    else:
        raise AssertionError("GPU memory was taken")


CASES = [writes_reads_and_notifications, long_lists_and_many_transfers, a_list_moves_without_being_polled, an_agent_reaches_itself, a_release_is_a_fence,
         a_release_of_a_read_is_a_fence, regions_may_come_late, threads_share_an_agent,
         a_killed_writer_harms_nobody_and_its_name_comes_back, a_withdrawn_region_refuses, a_killed_peer_is_a_disconnect_and_its_name_comes_back, gpu_memory_is_refused_without_a_driver]


def run_cases(cases, plugin, named):
    named = named or os.environ.get("KVRAIL_CASE", "").split()
    chosen = [case for case in cases if not named or case.__name__ in named]
    for case in chosen:
        begun = time.monotonic()
        print(case.__name__, flush=True)
        try:
            case(plugin)
        except BaseException:
            print(f"[  FAILED  ] {case.__name__}", flush=True)
            raise
        print(f"  passed in {time.monotonic() - begun:.1f} s", flush=True)
    print(f"{len(chosen)} cases passed", flush=True)


def main():
    plugin = os.path.abspath(sys.argv[1])
    load_nixl(plugin)
    run_cases(CASES, plugin, sys.argv[2:])


if __name__ == "__main__":
    main()
