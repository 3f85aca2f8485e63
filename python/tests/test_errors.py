# SPDX-License-Identifier: Apache-2.0
"""What errors and objects say: Python's words, one kind of exception, a repr that tells one object from another."""

from __future__ import annotations

import errno
import os
import re
import resource
from pathlib import Path
from typing import Iterator

import kvrail
import numpy as np
import pytest
from conftest import Pair
from kvrail import _core, _errors

ROOT = Path(__file__).resolve().parents[2]


def sentences() -> Iterator[str]:
    """The strings of the library, adjacent ones joined."""
    for folder in "kvapi", "transport":
        for path in sorted((ROOT / folder).rglob("*.[cd]*")):
            if path.suffix in (".c", ".def") and "examples" not in path.parts:
                text = re.sub(r"#include.*", "", path.read_text())
                for literals in re.findall(r'"(?:[^"\\\n]|\\.)*"(?:\s*"(?:[^"\\\n]|\\.)*")*', text):
                    yield re.sub(r'"\s*"', "", literals)


def test_every_name_of_c_in_a_sentence_has_one_of_python() -> None:
    # The size of a struct is wrong only where the extension itself is; a tensor of Python's always has its bases.
    ours = re.compile(r"size is|has neither base|layer_base\[|layer_stride is|is NULL|kv_heads|set layer_base")
    left = [s for s in map(_errors.python_words, sentences()) if re.search(r"\bkv_|\bKV_(?!ERR_%s)|\blayer_", s) and not ours.search(s)]
    assert not left
    said = list(sentences())
    for name in _errors._NAMES:
        assert any(name in s for s in said), f"no sentence says {name} any more"


def test_a_block_that_is_not_open_says_what_to_write_in_python(pair: Pair) -> None:
    with kvrail.Engine("closed") as other:
        other.register({"k": np.zeros_like(pair.to)})
        peer = pair.writer.connect("127.0.0.1", other.listen())
        with pytest.raises(kvrail.ArgumentError) as caught:
            peer.write_blocks(pair.source, [1], [2])
        assert "with open=True" in caught.value.hint and caught.value.hint in str(caught.value)
        with pytest.raises(kvrail.ArgumentError, match="is not readable=True"):
            peer.read_blocks(pair.source, [1], [2])


def test_no_more_descriptors_is_an_error_of_the_library_and_of_the_system() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    first = os.open("/dev/null", os.O_RDONLY)
    os.close(first)
    failed = []
    try:
        for more in range(64):  # the log's pipe, then what the library opens
            resource.setrlimit(resource.RLIMIT_NOFILE, (first + more, hard))
            try:
                kvrail.Engine().close()
                break
            except kvrail.KvError as exc:
                failed.append(exc)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(failed) > 2
    for exc in failed:
        assert isinstance(exc, kvrail.ResourceError) and isinstance(exc, OSError), exc
        assert (exc.name, exc.errno, exc.sys_errno) == ("NOFD", errno.EMFILE, errno.EMFILE), exc


def test_no_transport_to_the_peer_has_a_class_of_its_own() -> None:
    numbers = (0, 0, 0, 0, 0, -1, -1)
    exc = _errors._make(_core.ERR_UNREACHABLE, "UNREACHABLE", kvrail.Scope.PEER, "t", "c", "connect", "", "", "", numbers)
    assert isinstance(exc, kvrail.UnreachableError) and isinstance(exc, (kvrail.PeerLostError, ConnectionError))


def test_objects_say_which_they_are(pair: Pair) -> None:
    memory = pair.writer.alloc(4096)
    with pair.writer.group() as group:
        op = pair.peer.write_blocks_async(pair.source, [1], [2], group=group)
        assert repr(group) == "<kvrail.Group 1 operations>"
    assert repr(memory) == "<kvrail.Memory 4096 bytes>"
    assert repr(pair.source) == "<kvrail.Cache of writer: 3 layers, 32 blocks>"
    assert repr(pair.peer) == "<kvrail.Peer reader>"
    assert repr(op) == "<kvrail.Op write_blocks to reader>"
    assert repr(pair.writer) == "<kvrail.Engine writer: 1 caches, 1 peers>"
    pair.writer.close()
    assert repr(pair.writer) == "<kvrail.Engine writer: closed>"


def test_options_have_names(pair: Pair) -> None:
    options = {o.name: o for o in pair.writer.options()}
    spin = options["KVCACHE_SPIN_US"]
    assert isinstance(spin, kvrail.Option) and (spin.type, spin.source, spin.default) == ("integer", "default", "20")
