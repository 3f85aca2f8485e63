# SPDX-License-Identifier: Apache-2.0
"""What FastDeploy's programs do with the module, call by call, between two processes.

docs/fastdeploy.md tells which of its programs were run as they are.
"""

from __future__ import annotations

import os
import re
import random
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any, Callable, List

import children as far
import numpy as np
import pytest
from children import AGES, PATIENCE, Child, held_port
from conftest import pattern

import rdma_comm

LAYERS, BLOCKS, BYTES, SCALE, HOST = 5, 20, 4096, 512, "127.0.0.1"
SHAPES = [(LAYERS, BLOCKS, BYTES)] * 2 + [(LAYERS, BLOCKS, SCALE)] * 2


class HostTensor:
    """Ids as the cache messager has them: a tensor of int32 in host memory."""

    def __init__(self, ids: List[int]) -> None:
        self._ids = np.array(ids, np.int32)

    def __dlpack__(self, **kwargs: Any) -> Any:
        return self._ids.__dlpack__(**kwargs)

    def __len__(self) -> int:
        return len(self._ids)


def paddle_tensor(ids: List[int]) -> Any:
    paddle = pytest.importorskip("paddle", reason="paddlepaddle is not installed")
    return paddle.to_tensor(ids, dtype="int32", place="cpu")


def pointers(array: Any) -> Any:
    return np.array([array[layer].ctypes.data for layer in range(array.shape[0])])


def decode(child: Child) -> int:
    return int(child.call(far.open_decode, SHAPES, "0"))


def prefill(arrays: List[Any], *more: int) -> Any:
    k, v, k_scale, v_scale = [pointers(a) for a in arrays]
    return rdma_comm.RDMACommunicator("prefill", 0, "0", k, v, BLOCKS, BYTES, k_scale, v_scale, SCALE, *more)


@pytest.fixture
def arrays() -> List[Any]:
    return [pattern(seed, *shape) for seed, shape in enumerate(SHAPES)]


def test_the_test_program_asks_connects_writes_and_checks(child: Child, arrays: List[Any]) -> None:
    port = decode(child)
    comm = prefill(arrays)
    if not comm.is_connected(HOST, str(port)):
        comm.connect(HOST, str(port))
    assert comm.is_connected(HOST, str(port))
    want = [np.zeros(shape, np.uint8) for shape in SHAPES]
    for round_ in range(10):
        ids = random.Random(round_).sample(range(BLOCKS), 5)
        for array, expected in zip(arrays, want):
            array[:, ids] += 1
            expected[:, ids] = array[:, ids]
        for layer in range(LAYERS):
            comm.write_cache(HOST, str(port), ids, ids, layer)
        for got, expected in zip(child.call(far.arrays), want):
            assert np.array_equal(got, expected)


@pytest.mark.parametrize("tensor", [list, np.array, HostTensor, paddle_tensor])
def test_the_messager_sends_layer_by_layer_from_its_own_thread(
    child: Child, arrays: List[Any], tensor: Callable[[List[int]], Any]
) -> None:
    tensor([0])  # or skip
    port = decode(child)
    comm = prefill(arrays, 1, 0)
    requests = {"a": ([3, 1, 4], [15, 9, 2]), "b": ([6, 5], [3, 8]), "lost": ([7], [1])}
    ports = {"a": port, "b": port, "lost": 1}
    computed = [threading.Event() for _ in range(LAYERS)]
    finished = []

    def connect(target: int) -> bool:
        return bool(comm.is_connected(HOST, str(target)) or comm.connect(HOST, str(target), 0) == 0)

    def messager() -> None:
        failed = set()
        for layer in range(LAYERS):
            computed[layer].wait(PATIENCE)
            for name, (source, target) in requests.items():
                if name in failed:
                    continue
                if not connect(ports[name]):
                    failed.add(name)
                    finished.append((name, "connect error"))
                elif comm.write_cache(HOST, str(ports[name]), tensor(source), tensor(target), layer) != 0:
                    failed.add(name)
                    finished.append((name, "write cache error"))
                elif layer == LAYERS - 1:
                    finished.append((name, "finished"))

    thread = threading.Thread(target=messager, daemon=True)
    thread.start()
    for event in computed:
        event.set()
    thread.join(PATIENCE)
    assert sorted(finished) == [("a", "finished"), ("b", "finished"), ("lost", "connect error")]
    for array, got in zip(arrays, child.call(far.arrays)):
        want = np.zeros_like(array)
        want[:, [15, 9, 2, 3, 8]] = array[:, [3, 1, 4, 6, 5]]
        assert np.array_equal(got, want)


def test_the_benchmark_writes_several_runs_of_blocks_for_each_layer(child: Child, arrays: List[Any]) -> None:
    port = decode(child)
    comm = prefill(arrays)
    comm.connect(HOST, str(port))
    queries = [list(range(start, start + 3)) for start in (0, 6, 12)]
    for _ in range(5):
        for layer in range(LAYERS):
            for ids in queries:
                assert comm.write_cache(HOST, str(port), ids, ids, layer) == 0
    written = sorted(sum(queries, []))
    for array, got in zip(arrays, child.call(far.arrays)):
        want = np.zeros_like(array)
        want[:, written] = array[:, written]
        assert np.array_equal(got, want)


# -- its test program on a GPU's pointers, in two processes that have nothing else in common

STANDIN = Path(__file__).parent / "standin"


def published() -> str:
    """FastDeploy's own transfer_factory/kvcache_transfer/test.py."""
    if "KVRAIL_FASTDEPLOY_TEST" not in os.environ:
        pytest.skip("KVRAIL_FASTDEPLOY_TEST does not name FastDeploy's test.py")
    return os.environ["KVRAIL_FASTDEPLOY_TEST"]


@pytest.mark.parametrize("environment", [{}, {"KVCACHE_SHM_PATH": "ring"}, {"KVCACHE_TRANSPORT": "tcp"}], ids=["auto", "ring", "tcp"])
@pytest.mark.parametrize("program", ["calls gpu", "calls cpu", "published"])
def test_the_test_program_on_a_gpus_pointers(program: str, environment: Any, tmp_path: Path) -> None:
    if "KVRAIL_CUDA" not in os.environ:
        pytest.skip("KVRAIL_CUDA names no libcuda.so.1")
    name, _, device = program.partition(" ")
    file = published() if name == "published" else str(STANDIN / "calls.py")
    log, rounds = tmp_path / "log", 3
    common = {"PYTHONPATH": os.pathsep.join([str(STANDIN), os.environ["PYTHONPATH"]]), "PYTHONUNBUFFERED": "1", "KVCACHE_DEBUG": "1"}
    with held_port() as rdma, held_port() as channel:
        ports = f"--decode_rdma_port={rdma.getsockname()[1]}", f"--decode_zmq_port={channel.getsockname()[1]}"
        command = [sys.executable, file, "--decode_ip=127.0.0.1", f"--test_num={rounds}", *ports]
        decode = subprocess.Popen(
            [*command, "--splitwise_role=decode"],
            env={**os.environ, **common, **environment, "KVCACHE_DEBUG_FILE": str(tmp_path / "decode")},
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert decode.stdout is not None
            shown = "".join(iter_until(decode.stdout, "waiting for request"))
            ran = subprocess.run(
                [*command, "--splitwise_role=prefill", *([f"--device={device}"] if device else [])],
                env={**os.environ, **common, **environment, "KVCACHE_DEBUG_FILE": str(log)},
                timeout=AGES,
            )
            shown += decode.communicate(timeout=AGES)[0]
        finally:
            decode.kill()
            decode.wait()
    assert ran.returncode == 0 and f"test_num: {rounds}, success_num: {rounds}\n" in shown, shown
    way = {"": "CUDA kernels", "ring": "ring to the peer's GPU", "tcp": "over tcp"}["".join(environment.values())]
    assert way in log.read_text(), log.read_text()


def iter_until(lines: Any, word: str) -> Any:
    for line in lines:
        yield line
        if word in line:
            return


# -- every environment name of the reference

SCENE = """
import logging, sys
import numpy as np
from rdma_comm import RDMACommunicator
a = np.zeros(4096, np.uint8)
d = RDMACommunicator("decode", 0, "0", [a.ctypes.data], [], 4, 1024)
p = RDMACommunicator("prefill", 0, "0", [a.ctypes.data], [], 4, 1024)
assert p.connect("127.0.0.1", d.port)
print(p.write_cache("127.0.0.1", d.port, [0], [1], 0), d.port)
"""


def scene(first: str = "", **environment: str) -> "subprocess.CompletedProcess[str]":
    ran = subprocess.run(
        [sys.executable, "-c", first + textwrap.dedent(SCENE)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE,
    )
    assert ran.returncode == 0 and ran.stdout.startswith("0 "), ran.stdout + ran.stderr
    return ran


def test_every_name_of_the_reference_is_known(tmp_path: Path) -> None:
    log = tmp_path / "log"
    names = {
        "KVCACHE_RDMA_GID_INDEX": "3",
        "KVCACHE_IB_TIMEOUT": "18",
        "KVCACHE_RELAX_ORDERING": "true",
        "KVCACHE_GDRCOPY_FLUSH_ENABLE": "1",
        "KVCACHE_DEBUG": "1",
        "KVCACHE_DEBUG_OUTPUT": "on",
        "KVCACHE_DEBUG_FILE": str(log),
        "KVCACHE_ERROR_FILE": str(tmp_path / "errors.%p"),
        "KVCACHE_VERIFY_READ": "yes",
    }
    ran = scene(**names)
    text = log.read_text()
    assert "no option" not in text
    assert "KVCACHE_VERIFY_READ changes nothing" in text and "KVCACHE_VERIFY_READ changes nothing" in ran.stderr
    errors = [path.name for path in tmp_path.glob("errors.*")]
    assert len(errors) == 1 and errors[0].partition(".")[2].isdigit()


def test_debug_output_goes_to_stderr() -> None:
    assert scene().stderr == ""
    assert "listening on port" in scene(KVCACHE_DEBUG_OUTPUT="1").stderr


def test_an_application_that_shows_the_lines_sees_each_once(tmp_path: Path) -> None:
    def counts(text: str) -> Any:
        return text.count("listening on port"), len(re.findall("prefill-0.* over ", text))

    basic = "import logging, sys; logging.basicConfig(level=1, {})\n"
    ran = scene(basic.format("stream=sys.stderr"), KVCACHE_DEBUG="1")
    assert counts(ran.stderr) == (1, 1), ran.stderr
    ran = scene(basic.format("stream=sys.stderr"), KVCACHE_DEBUG="1", KVCACHE_DEBUG_OUTPUT="1")
    assert counts(ran.stderr) == (1, 1), ran.stderr
    # What goes to the application's file goes to stderr only if that was asked for.
    for number, wanted in enumerate(("0", "1")):
        file = tmp_path / f"{number}"
        errors = tmp_path / f"errors-{number}"
        to_file = basic.format(f"filename={str(file)!r}")
        ran = scene(to_file, KVCACHE_DEBUG="1", KVCACHE_DEBUG_OUTPUT=wanted, KVCACHE_ERROR_FILE=str(errors))
        assert counts(file.read_text()) == (1, 1)
        assert counts(ran.stderr) == ((1, 1) if wanted == "1" else (0, 0)), ran.stderr
        assert errors.read_text().count("listening on port") == 1
    ran = scene(KVCACHE_DEBUG="1", KVCACHE_ERROR_FILE=str(tmp_path / "more"))
    assert counts(ran.stderr) == (1, 1), ran.stderr


def test_the_port_of_the_environment_beats_the_argument() -> None:
    with held_port() as holder:
        port = str(holder.getsockname()[1])
        assert scene(SET_RDMA_DEST_PORT=port).stdout.split()[1] == port
    ran = scene(SET_RDMA_DEST_PORT="http", KVCACHE_DEBUG_OUTPUT="1")
    assert "SET_RDMA_DEST_PORT is ignored" in ran.stderr
