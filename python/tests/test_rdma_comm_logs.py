# SPDX-License-Identifier: Apache-2.0
"""What rdma_comm says to somebody who reads neither its log nor last_error(), as FastDeploy's programs do not."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any, List

import children as far
import numpy as np
from children import PATIENCE, Child

# The example of the reference's README: two communicators, one connect, one write. Its pointers lead to 8 KiB that are
# free again when the list is made; BYTES of them are needed. It looks at no result, and writes only where connect is true.
README = """
    import numpy as np
    from rdma_comm import RDMACommunicator
    {memory}
    made = dict(role="prefill", gpu_idx=0, port="12345", block_number=1024, block_bytes=4096)
    comm = RDMACommunicator(local_key_cache=keys, local_value_cache=values, **made)
    comm = RDMACommunicator(local_key_cache=keys, local_value_cache=values, **made)
    if comm.connect("127.0.0.1", "{port}"):
        print("connected")
        comm.write_cache(
            ip="127.0.0.1", port="{port}", local_block_ids={ids}, remote_block_ids=[3, 4, 5], layer_idx=0
        )
"""
TOO_SMALL = "keys, values = ([np.array([0] * 1024, np.int64).ctypes.data] for _ in range(2))"
RIGHT = "held = np.full((2, 1024, 4096), 7, np.uint8); keys, values = ([a.ctypes.data] for a in held)"


def run(program: str, **env: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE,
    )


def errors(ran: "subprocess.CompletedProcess[str]") -> List[str]:
    return [line for line in ran.stderr.splitlines() if " ERROR: " in line]


def readme(port: int, memory: str, ids: Any = (0, 1, 2), **env: str) -> "subprocess.CompletedProcess[str]":
    return run(README.format(memory=memory, port=port, ids=list(ids)), **env)


def test_the_readmes_example_says_that_its_memory_is_too_small(child: Child) -> None:
    port = child.call(far.open_decode, [(1, 1024, 4096)] * 2, "0")
    ran = readme(port, TOO_SMALL)
    assert (ran.returncode, ran.stdout, len(ran.stderr.splitlines())) == (0, "", 1), ran.stderr
    assert "Each pointer must lead to block_number x block_bytes = 1024 x 4096 = 4194304 bytes" in ran.stderr
    assert not any(a.any() for a in child.call(far.arrays))


def test_the_readmes_example_says_that_nobody_listens() -> None:
    ran = readme(1, RIGHT)
    assert (ran.returncode, ran.stdout, len(ran.stderr.splitlines())) == (0, "", 1), ran.stderr
    assert "connect to 127.0.0.1:1: " in ran.stderr and "refused" in ran.stderr


def test_the_readmes_example_moves_bytes_with_memory_of_the_right_size(child: Child) -> None:
    port = child.call(far.open_decode, [(1, 1024, 4096)] * 2, "0")
    ran = readme(port, RIGHT)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "connected\n", "")
    for got in child.call(far.arrays):
        want = np.zeros_like(got)
        want[0, 3:6] = 7
        assert np.array_equal(got, want)


def test_a_write_that_fails_says_so(child: Child) -> None:
    port = child.call(far.open_decode, [(1, 1024, 4096)] * 2, "0")
    ran = readme(port, RIGHT, (0, 1, 9999))
    assert (ran.returncode, ran.stdout, len(errors(ran))) == (0, "connected\n", 1), ran.stderr
    assert "write_cache of layer 0" in ran.stderr and "local_ids[2] is 9999" in ran.stderr


FAILURES = """
    import {setup}
    import numpy as np
    from rdma_comm import RDMACommunicator
    a = np.zeros((9, 4096), np.uint8)
    {more}
    d = RDMACommunicator("decode", 0, "0", [l.ctypes.data for l in a], [], 4, 1024)
    p = RDMACommunicator("prefill", 0, "0", [l.ctypes.data for l in a], [], 4, 1024)
    assert not p.connect("127.0.0.1", 1) and not p.connect("127.0.0.1", 1)
    assert p.connect("127.0.0.1", d.port)
    assert p.write_cache("127.0.0.1", d.port, [77], [0], 0) == -1
    assert not p.connect("127.0.0.1", 1)  # once more, as there has been a connection since
    port = d.port
    d.close()
    assert all(p.write_cache("127.0.0.1", port, [1], [0], layer) == -1 for layer in range(9))
    try:
        RDMACommunicator("prefill", 0, "0", [1 << 46], [], 4, 1024, 2, 0).connect("127.0.0.1", 1)
        RDMACommunicator("decode", 0, "0", [1 << 46], [], 4, 1024)
    except RuntimeError:
        pass
"""


def test_failures_are_said_once_on_stderr_and_all_in_the_error_file(tmp_path: Path) -> None:
    log = tmp_path / "errors.log"
    ran = run(FAILURES.format(setup="sys", more=""), KVCACHE_ERROR_FILE=str(log))
    assert (ran.returncode, ran.stdout) == (0, ""), ran.stderr
    assert ran.stderr.splitlines() == errors(ran)
    said = [line.partition(" ERROR: ")[2].partition(": ")[0] for line in errors(ran)]
    assert [s.partition(" to ")[0] for s in said] == ["connect", "write_cache of layer 0"] * 2 + ["connect"], ran.stderr
    assert "local_ids[0] is 77" in log.read_text() and "not asked for a key" in log.read_text()
    assert log.read_text().count("write_cache of layer") == 10 and "rdma_comm cannot" not in ran.stderr


def test_an_application_that_has_set_up_logging_decides_itself() -> None:
    more = 'logging.basicConfig(stream=sys.stdout, level=logging.ERROR, format="mine %(message)s")'
    ran = run(FAILURES.format(setup="logging, sys", more=more))
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.count("mine write_cache of layer") == 10


def test_a_log_file_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    for variable in "KVCACHE_DEBUG_FILE", "KVCACHE_ERROR_FILE":
        path = str(tmp_path / "nowhere" / "log")
        ran = readme(1, RIGHT, **{variable: path})
        assert len(errors(ran)) == len(ran.stderr.splitlines()) == 2, ran.stderr
        assert f"{variable} {path} cannot be opened: No such file" in ran.stderr and "refused" in ran.stderr


WRONG = dict(
    KVCACHE_RDMA_GID_INDEX="99999999999",
    KVCACHE_IB_TIMEOUT="99",
    KVCACHE_RELAX_ORDERING="2",
    KVCACHE_DEBUG="maybe",
    KVCACHE_DEBUG_OUTPUT="-",
    KVCACHE_VERIFY_READ="2",
    KVCACHE_GDRCOPY_FLUSH_ENABLE="2",
    SET_RDMA_DEST_PORT="http",
)


def test_what_the_environment_says_wrongly_is_warned_of_once_and_defaults() -> None:
    program = """
        import numpy as np, rdma_comm
        a = np.zeros(4096, np.uint8)
        d = rdma_comm.RDMACommunicator("decode", 0, "0", [a.ctypes.data], [], 4, 1024)
        p = rdma_comm.RDMACommunicator("prefill", 0, "0", [a.ctypes.data], [], 4, 1024)
        assert p.connect("127.0.0.1", d.port)
        options = {o[0]: o[5] for o in p._views[(1, 0)].engine.options()}
        print(options["KVCACHE_IB_TIMEOUT"], options["KVCACHE_RDMA_GID_INDEX"], options["KVCACHE_RELAX_ORDERING"])
    """
    ran = run(program, **WRONG)
    assert (ran.returncode, ran.stdout) == (0, "18 -1 0\n"), ran.stderr
    said = ran.stderr.splitlines()
    assert len(said) == len(WRONG) and all(" WARNING: " in line for line in said), ran.stderr
    for name, value in WRONG.items():
        assert sum(name in line and value in line for line in said) == 1, ran.stderr
    ran = run(program, KVCACHE_OP_TIMEOUT_MS="never")  # not one of the reference's
    assert ran.returncode == 1 and "KVCACHE_OP_TIMEOUT_MS is" in ran.stderr


def test_the_references_other_name_for_debug_counts() -> None:
    ran = readme(1, RIGHT, KV_IS_DEBUG_ENABLED="1")
    assert " INFO: " in ran.stderr or " DEBUG: " in ran.stderr


def test_only_a_port_without_a_key_is_warned_of(tmp_path: Path) -> None:
    key, log = tmp_path / "key", tmp_path / "log"
    key.write_text("0123456789abcdef" * 4 + "\n")
    key.chmod(0o600)
    program = """
        import numpy as np, rdma_comm
        rdma_comm.RDMACommunicator("decode", 0, "0", [np.zeros(4096, np.uint8).ctypes.data], [], 1, 64)
    """
    for more, warned in (({}, True), ({"KVCACHE_PSK_FILE": str(key)}, False)):
        log.unlink(missing_ok=True)
        ran = run(program, KVCACHE_DEBUG_FILE=str(log), **more)
        assert ran.returncode == 0, ran.stderr
        assert ("not asked for a key" in log.read_text()) == warned
