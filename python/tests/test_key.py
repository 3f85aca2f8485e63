# SPDX-License-Identifier: Apache-2.0
"""KVCACHE_PSK_FILE: both packages take the key from the file, and an end without it is not let in."""

from __future__ import annotations

from pathlib import Path

import children as far
import numpy as np
import pytest
from children import Child
from conftest import BLOCKS, BYTES, LAYERS, pattern

import kvrail
from rdma_comm import RDMACommunicator

SHAPE = (LAYERS, BLOCKS, BYTES)


def key_file(folder: Path, name: str) -> str:
    path = folder / name
    path.write_text((name + "-") * 16 + "\n")
    path.chmod(0o600)
    return str(path)


def test_blocks_move_between_ends_that_have_the_key(child: Child, tmp_path: Path) -> None:
    options = {"KVCACHE_PSK_FILE": key_file(tmp_path, "right")}
    port = child.call(far.open_engine, SHAPE, options, {"open": True})
    with kvrail.Engine(options=options) as engine:
        source = pattern(1, *SHAPE)
        cache = engine.register({"k": source})
        engine.connect("127.0.0.1", port).write_blocks(cache, [3], [2])
        assert np.array_equal(child.call(far.memory)[:, 2], source[:, 3])


@pytest.mark.parametrize("other", ["wrong", None])
def test_an_end_without_the_key_gets_the_cause(child: Child, tmp_path: Path, other: str | None) -> None:
    port = child.call(far.open_engine, SHAPE, {"KVCACHE_PSK_FILE": key_file(tmp_path, "right")}, {"open": True})
    with kvrail.Engine(options={"KVCACHE_PSK_FILE": key_file(tmp_path, other)} if other else {}) as engine:
        engine.register({"k": pattern(1, *SHAPE)})
        with pytest.raises(kvrail.KvError) as caught:
            engine.connect("127.0.0.1", port)
        assert caught.value.name == "AUTH" and "KVCACHE_PSK_FILE" in (caught.value.hint or "")


def test_a_key_that_others_may_read_opens_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = key_file(tmp_path, "right")
    Path(path).chmod(0o644)
    with pytest.raises(kvrail.KvError) as caught:
        kvrail.Engine(options={"KVCACHE_PSK_FILE": path})
    assert caught.value.name == "AUTH" and "may be read" in str(caught.value)
    monkeypatch.setenv("KVCACHE_PSK_FILE", path)
    memory = [pattern(seed, *SHAPE) for seed in (1, 2)]
    pointers = [[array[layer].ctypes.data for layer in range(LAYERS)] for array in memory]
    with pytest.raises(RuntimeError, match="may be read"):
        RDMACommunicator("decode", 0, "0", *pointers, BLOCKS, BYTES)
