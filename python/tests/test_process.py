# SPDX-License-Identifier: Apache-2.0
"""What a process does to the packages: signals, fork, its end; types; the documents' and the examples' programs."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any, List

import kvrail
import pytest
import rdma_comm
from children import AGES, PATIENCE

ROOT = Path(__file__).resolve().parents[2]
PAGES = ["README.md", "docs/python.md", "docs/fastdeploy.md"]
SETUP = f"""
    import kvrail, numpy as np, os, signal, sys, threading, time
    AGES, PATIENCE = {AGES}, {PATIENCE}
    writer, reader = kvrail.Engine("w"), kvrail.Engine("r")
    a, b = np.ones((2, 8, 64), np.uint8), np.zeros((2, 8, 64), np.uint8)
    source, target = writer.register({{"k": a}}), reader.register({{"k": b}}, open=True)
    peer = writer.connect("127.0.0.1", reader.listen())
    back = reader.next_arrival(PATIENCE).peer
"""


def run(program: str, *flags: str, timeout: float = 4 * PATIENCE, **kwargs: Any) -> "subprocess.CompletedProcess[str]":
    code = textwrap.dedent(SETUP) + textwrap.dedent(program)
    return subprocess.run(
        [sys.executable, *flags, "-c", code], capture_output=True, text=True, timeout=timeout, **kwargs
    )


def test_ctrl_c_ends_a_wait_at_once_and_the_peer_stays_good() -> None:
    ran = run(
        """
        start = time.monotonic()
        try:
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
            back.recv_blocks(target, [1], 5, timeout=AGES)
        except KeyboardInterrupt:
            print("interrupted", time.monotonic() - start < PATIENCE)
        op = back.recv_blocks_async(target, [1], 6, timeout=AGES)
        try:
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
            op.wait(AGES)
        except KeyboardInterrupt:
            print("interrupted", op.done())
        op.cancel()
        peer.write_blocks(source, [1], [2])
        print(int(b.sum()))
        writer.close(); reader.close()
        """
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "interrupted True\ninterrupted False\n128\n", "")


def test_ctrl_c_ends_a_connect_a_group_and_a_communicator_at_once() -> None:
    ran = run(
        """
        import socket
        mute = socket.create_server(("127.0.0.1", 0))  # the kernel accepts, nobody answers

        def connect():
            writer.connect("127.0.0.1", mute.getsockname()[1], timeout=AGES)

        def group():
            with writer.group(timeout=AGES) as group:
                global ops
                ops = [peer.send_blocks_async(source, [1], 77, group=group, timeout=AGES)]  # nobody has opened blocks
                threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()

        def comm():
            def gather(mine):
                first = bytearray(mine)
                first[16:20] = bytes(4)  # as rank 0 would say it, which never connects
                return [bytes(first), mine]
            with kvrail.Engine() as other:
                other.comm(1, 2, gather, timeout=AGES)

        for call in (connect, group, comm):
            start = time.monotonic()
            try:
                if call is not group:  # which is to have its operation before
                    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
                call()
            except KeyboardInterrupt:
                print(call.__name__, time.monotonic() - start < PATIENCE)
        print([type(op.error()).__name__ for op in ops])
        peer.write_blocks(source, [1], [2])
        print(int(b.sum()))
        writer.close(); reader.close()
        """
    )
    said = "connect True\ngroup True\ncomm True\n['CancelledError']\n128\n"
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, said, "")


def test_ctrl_c_ends_what_waits_for_the_other_side_at_once() -> None:
    """Of docs/python.md's list: those that the two tests above do not try."""
    ran = run(
        """
        import asyncio, socket
        import rdma_comm
        mute = socket.create_server(("127.0.0.1", 0))  # the kernel accepts, nobody answers
        drained = list(reader.poll())

        def next_arrival():
            reader.next_arrival(AGES)

        def send():
            peer.send_blocks(source, [1], 78, timeout=AGES)  # nobody has opened blocks

        def iterate():
            async def wait():
                async for arrival in reader.arrivals():
                    pass
            asyncio.run(wait())

        def awaited():
            async def wait():
                await back.recv_blocks_async(target, [3], 5, timeout=AGES)
            asyncio.run(wait())

        def driven():
            with kvrail.Engine(progress="caller") as other:
                other.next_arrival(AGES)

        def communicator():
            rdma_comm._communicator.CONNECT_TIMEOUT_S = AGES
            with rdma_comm.RDMACommunicator("prefill", 0, 0, [a.ctypes.data], [], 4, 64) as comm:
                comm.connect("127.0.0.1", mute.getsockname()[1])

        def gather():
            with kvrail.Engine() as other:
                other.comm(0, 2, lambda mine: time.sleep(AGES))

        for call in (next_arrival, send, iterate, awaited, driven, communicator, gather):
            start = time.monotonic()
            try:
                threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
                call()
            except KeyboardInterrupt:
                print(call.__name__, time.monotonic() - start < PATIENCE)
        peer.write_blocks(source, [1], [2])
        print(int(b.sum()))
        writer.close(); reader.close()
        """
    )
    calls = ("next_arrival", "send", "iterate", "awaited", "driven", "communicator", "gather")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "".join(f"{c} True\n" for c in calls) + "128\n", "")


def test_a_connect_in_another_thread_ends_with_its_engine() -> None:
    ran = run(
        """
        import socket
        mute = socket.create_server(("127.0.0.1", 0))
        ended = []

        def connect():
            try:
                writer.connect("127.0.0.1", mute.getsockname()[1], timeout=AGES)
            except kvrail.ClosedError:
                ended.append(True)

        thread = threading.Thread(target=connect)
        thread.start()
        time.sleep(0.2)
        start = time.monotonic()
        writer.close()
        thread.join()
        print(ended, time.monotonic() - start < PATIENCE)
        reader.close()
        """
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "[True] True\n", "")


def test_a_forked_child_is_refused_and_does_not_disturb_its_parent() -> None:
    ran = run(
        """
        memory = np.asarray(writer.alloc(4096)); memory[:] = 5
        pid = os.fork()
        if not pid:
            try:
                peer.write_blocks(source, [1], [2])
            except kvrail.CallError as exc:
                ok = exc.name == "FORKED" and memory.sum() == 5 * 4096
                writer.close(); reader.close()
                with kvrail.Engine() as own:
                    own.listen()
                os._exit(0 if ok else 2)
            os._exit(3)
        print(os.waitpid(pid, 0)[1])
        peer.write_blocks(source, [1], [2])
        print(int(b.sum()))
        writer.close(); reader.close()
        """,
        "-Wignore::DeprecationWarning",  # Python 3.12 warns of every fork beside threads
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "0\n128\n", "")


def test_a_close_inside_a_call_of_the_same_thread_is_refused_instead_of_waiting_for_itself() -> None:
    ran = run(
        """
        import logging, socket
        from rdma_comm import RDMACommunicator
        logging.disable()
        listener = socket.create_server(("127.0.0.1", 0))  # the kernel accepts, nobody answers
        mute = listener.getsockname()[1]

        def close_inside(what, call):
            signal.signal(signal.SIGALRM, lambda *_: what.close())
            signal.setitimer(signal.ITIMER_REAL, 1)  # the call has long begun, on a busy machine, too
            start = time.monotonic()
            try:
                print(call(), end=" ")
            except kvrail.CallError as exc:
                print(exc.name, exc.cause, end=" ")
            print(time.monotonic() - start < PATIENCE)

        close_inside(reader, lambda: back.recv_blocks(target, [1], 5, timeout=AGES))
        close_inside(back, lambda: back.recv_blocks(target, [1], 6, timeout=AGES))
        close_inside(writer, lambda: writer.connect("127.0.0.1", mute, timeout=AGES))
        with kvrail.Engine() as other:
            def gather(mine):
                other.close()
            close_inside(other, lambda: other.comm(0, 1, gather))
            print(other.closed)
        comm = RDMACommunicator("prefill", 0, 0, [a.ctypes.data], [], 8, 64)
        close_inside(comm, lambda: comm.connect("127.0.0.1", mute))
        print("inside a call" in comm.last_error())
        comm.close()

        class Closes:  # before the call is inside
            def __index__(self):
                writer.close(); reader.close()
                return 1
        peer.write_blocks(source, [1], [2])
        print(int(b.sum()))
        try:
            peer.write_blocks(source, [Closes()], [2])
        except kvrail.ClosedError:
            print("closed")
        """
    )
    busy = "BUSY this thread is inside a call that uses it True\n"
    said = 4 * busy + "False\n2 (error) True\nTrue\n128\nclosed\n"
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, said, "")


def test_a_child_forked_while_another_thread_connects_does_not_wait_for_it() -> None:
    ran = run(
        """
        import logging, socket
        from rdma_comm import RDMACommunicator
        logging.disable()
        listener = socket.create_server(("127.0.0.1", 0))  # the kernel accepts, nobody answers
        mute = listener.getsockname()[1]
        decode = RDMACommunicator("decode", 0, 0, [b.ctypes.data], [], 8, 64)
        comm = RDMACommunicator("prefill", 0, 0, [a.ctypes.data], [], 8, 64)
        assert comm.connect("127.0.0.1", decode.port)
        threading.Thread(target=comm.connect, args=("127.0.0.1", mute), daemon=True).start()
        time.sleep(0.3)
        pid = os.fork()
        if not pid:
            signal.alarm(int(PATIENCE))
            ok = not comm.connect("127.0.0.1", mute) and "fork" in comm.last_error()
            ok = ok and not comm.connect("127.0.0.1", decode.port) and not comm.is_connected("127.0.0.1", decode.port)
            ok = ok and comm.write_cache("127.0.0.1", decode.port, [1], [2], 0) == -1 and "FORKED" in comm.last_error()
            comm.close()
            decode.close()
            with RDMACommunicator("prefill", 0, 0, [a.ctypes.data], [], 8, 64) as own:
                ok = ok and not own.connect("127.0.0.1", 1) and "refused" in own.last_error()
            os._exit(0 if ok else 2)
        print(os.waitpid(pid, 0)[1], comm.write_cache("127.0.0.1", decode.port, [1], [2], 0), int(b.sum()))
        comm.close()
        decode.close()
        writer.close(); reader.close()
        """,
        "-Wignore::DeprecationWarning",
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "0 0 64\n", "")


@pytest.mark.parametrize("open_still", ["engines", "a wait in a daemon thread", "operations"])
def test_the_interpreter_ends_cleanly_with_things_open(open_still: str) -> None:
    program = {
        "engines": "pass",
        "a wait in a daemon thread": """
            threading.Thread(target=lambda: back.recv_blocks(target, [1], 5, timeout=AGES), daemon=True).start()
            time.sleep(0.2)
            """,
        "operations": "ops = [back.recv_blocks_async(target, [n], n) for n in range(4)]",
    }[open_still]
    ran = run(program)  # in less than AGES
    assert ran.returncode == 0, ran.stderr
    assert "Fatal" not in ran.stderr


def test_imports_need_nothing_and_print_nothing() -> None:
    code = "import sys, kvrail, rdma_comm; print(sorted(m for m in ('numpy', 'torch') if m in sys.modules))"
    ran = subprocess.run([sys.executable, "-X", "dev", "-c", code], capture_output=True, text=True, timeout=4 * PATIENCE)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "[]\n", "")


def test_the_extension_needs_libc_only() -> None:
    import kvrail._core as core

    dynamic = subprocess.run(["readelf", "-d", core.__file__], capture_output=True, text=True).stdout
    if not dynamic:
        pytest.skip("readelf is not installed")
    needed = re.findall(r"NEEDED.*\[(.*?)\]", dynamic)
    assert all(re.match(r"lib(c|m|dl|pthread|rt)\.so|ld-linux", name) for name in needed), needed
    assert core.__file__ is not None and core.__file__.endswith("_core.abi3.so")


def test_types_are_strict(tmp_path: Path) -> None:
    user = tmp_path / "user.py"
    user.write_text(
        textwrap.dedent(
            """
            import kvrail
            from rdma_comm import RDMACommunicator

            async def move(peer: kvrail.Peer, cache: kvrail.Cache, ids: list[int]) -> None:
                op: kvrail.Op = peer.write_blocks_async(cache, ids, ids, range(2))
                await op
                async for arrival in cache.engine.arrivals():
                    blocks: int = arrival.blocks
                    print(blocks, arrival.layers.start)

            def serve(keys: list[int]) -> int:
                comm = RDMACommunicator("prefill", 0, "0", keys, [], 8, 64)
                return comm.write_cache("127.0.0.1", "1", [1], [2], 0)
            """
        )
    )
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), str(user)]
    packages = ["-p", "kvrail", "-p", "rdma_comm"]
    programs = []
    for page in PAGES:
        for i, program in enumerate(python_blocks(page)):
            programs.append(str(tmp_path / f"{Path(page).stem}_{i}.py"))
            Path(programs[-1]).write_text(program)
    for what in (command, command[:-1] + packages, command[:-1] + programs):
        ran = subprocess.run(what, capture_output=True, text=True, cwd=tmp_path, timeout=20 * PATIENCE)
        assert ran.returncode == 0, ran.stdout + ran.stderr


def test_the_stubs_say_what_the_extension_has(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mypy.stubtest", "kvrail._core"]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=20 * PATIENCE)
    if "No module named" in ran.stderr:
        pytest.skip("mypy is not installed")
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_pyright_agrees(tmp_path: Path) -> None:
    folders = [str(Path(module.__file__).parent) for module in (kvrail, rdma_comm)]
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, *folders]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=20 * PATIENCE)
    if "No module named" in ran.stderr:
        pytest.skip("pyright is not installed")
    assert ran.returncode == 0, ran.stdout + ran.stderr


def python_blocks(page: str) -> List[str]:
    text = (ROOT / page).read_text()
    return re.findall(r"```python\n(.*?)```", text, re.S)


@pytest.mark.parametrize("page", PAGES)
def test_the_programs_of_the_documents_run_as_printed(page: str, tmp_path: Path) -> None:
    programs = python_blocks(page)
    assert programs
    for program in programs:
        ran = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=4 * PATIENCE, cwd=tmp_path
        )
        assert ran.returncode == 0, program + ran.stdout + ran.stderr
        for printed in re.findall(r"^ *print\(.*\)  # (.*)$", program, re.M):
            assert printed in ran.stdout, program + ran.stdout


def test_a_model_split_in_two_says_the_same_tokens() -> None:
    example = ROOT / "python" / "examples" / "disaggregated.py"
    ran = subprocess.run(
        [sys.executable, str(example), "--prompt", "200", "--tokens", "6"], capture_output=True, text=True, timeout=4 * PATIENCE
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "same tokens: yes" in ran.stdout and "time to first token" in ran.stdout


def test_the_example_for_two_hosts_runs_in_two_processes() -> None:
    runner, example = ROOT / "kvapi" / "examples" / "two_hosts_test.py", ROOT / "python" / "examples" / "two_hosts.py"
    ran = subprocess.run(
        [sys.executable, str(runner), sys.executable, str(example)], capture_output=True, text=True, timeout=4 * PATIENCE
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_a_transformers_model_split_in_two_says_the_same_tokens() -> None:
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{' and '.join(missing)} not installed")
    example = ROOT / "python" / "examples" / "disaggregated.py"
    command = [sys.executable, str(example), "--hf", "--prompt", "100", "--tokens", "6", "--requests", "2", "--layers", "4"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=20 * PATIENCE)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "same tokens: yes" in ran.stdout


def test_the_benchmark_of_a_call_measures(tmp_path: Path) -> None:
    if not shutil.which("cc"):
        pytest.skip("cc is not installed: bench/call.py compiles what times the C call")
    out = tmp_path / "figures.json"
    bench = ROOT / "bench" / "call.py"
    ran = subprocess.run(
        [sys.executable, str(bench), "--rounds", "50", "--json", str(out)], capture_output=True, text=True, timeout=4 * PATIENCE
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    told = json.loads(out.read_text())
    page = (ROOT / "bench" / "README.md").read_text().partition("### call\n")[2].partition("\n### ")[0]
    assert all(list(row) == re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) for row in told["rows"])
    rows = {engine: [row for row in told["rows"] if row["engine"] == engine] for engine in ("C", "kvrail", "nixl", "mooncake")}
    assert len(rows["C"]) == 2 and len(rows["kvrail"]) == 6
    assert all(row["complete_us"] > 0 and row["rounds"] > 0 for row in rows["C"] + rows["kvrail"])
    for name in "nixl", "mooncake":  # not among what the tests install
        assert rows[name] or told["settings"]["left_out"][name] == "not installed"
        assert re.search(rf"^\| {name} \| (not installed|\S.* [0-9]+) \|", ran.stdout, re.MULTILINE)
