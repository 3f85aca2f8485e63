# SPDX-License-Identifier: Apache-2.0
"""Block ids in any form, and the flat functions with any arguments, as a seed gives them: KVRAIL_SEED=N, KVRAIL_LONG=1."""

from __future__ import annotations

import array
import operator
import os
import random
from typing import Any, List, Optional, Tuple

import numpy as np
import pytest
from conftest import BLOCKS, LAYERS, Pair, pattern
from test_arguments import ALLOWED, HOSTILE

import kvrail
from kvrail import _core

SEED = int(os.environ.get("KVRAIL_SEED", "1"))
TIMES = 20 if os.environ.get("KVRAIL_LONG") == "1" else 1
REFUSED = (*ALLOWED, IndexError)
EDGES = [0, 1, BLOCKS - 1, BLOCKS, -1, 2**31, 2**32 + 1, 2**63 - 1, -(2**63), 2**63, 2**64 + 1, 10**30]


class Late:
    """An id that is known only when it is asked for."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __index__(self) -> int:
        return self.value


def numbers(chance: random.Random, n: int) -> List[int]:
    """Mostly ids that are good and differ."""
    good = chance.sample(range(BLOCKS), n)
    if chance.random() < 0.3:
        good[chance.randrange(n)] = chance.choice(EDGES)
    return good


def of_type(chance: random.Random, ids: List[int]) -> Tuple[Any, Optional[List[int]]]:
    """A numpy array of them, as it came out, and what it means; None: it must be refused."""
    kind = chance.choice(["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", ">i4", ">i8", "f8", "?", "O"])
    try:
        made = np.array(ids, kind)
    except OverflowError:
        return ids, ids
    layout = chance.randrange(5)
    if layout == 0:
        made = np.repeat(made, 3)[::3]
    elif layout == 1:
        made = made[::-1].copy()[::-1]
    elif layout == 2:
        made.flags.writeable = False
    elif layout == 3 and chance.random() < 0.3:
        return made.reshape(1, -1), None
    if kind in (">i4", ">i8", "f8", "?", "O"):
        return made, None
    return made, [int(i) for i in made]


def in_some_form(chance: random.Random, ids: List[int]) -> Tuple[Any, Optional[List[int]]]:
    form = chance.randrange(8)
    if form == 0:
        return tuple(ids), ids
    if form == 1:
        return [Late(i) for i in ids], ids
    if form == 2 and all(-(2**63) <= i < 2**63 for i in ids):
        return array.array("q", ids), ids
    if form == 3 and all(-(2**31) <= i < 2**31 for i in ids):
        return memoryview(array.array("i", ids)), ids
    if form == 4:
        odd: List[Any] = list(ids)
        odd[chance.randrange(len(odd))] = chance.choice([None, "1", 1.0, [], np.float64(1), np.array([1, 2])])
        return odd, None
    if form == 5:
        return [np.int64(i) if 0 <= i < 2**31 else i for i in ids], ids
    if form == 6:
        return list(ids), ids
    return of_type(chance, ids)


def are_blocks(ids: Optional[List[int]], apart: bool) -> bool:
    return ids is not None and all(0 <= i < BLOCKS for i in ids) and (not apart or len(set(ids)) == len(ids))


def test_ids_move_what_they_say_or_nothing(pair: Pair) -> None:
    chance = random.Random(SEED)
    for at in range(600 * TIMES):
        n = chance.randrange(1, 6)
        (local, here), (remote, there) = in_some_form(chance, numbers(chance, n)), in_some_form(chance, numbers(chance, n))
        right = are_blocks(here, False) and are_blocks(there, True)
        if chance.random() < 0.1:
            remote, there, right = remote[: n - 1], there and there[: n - 1], False
        pair.from_[:] = pattern(SEED + at, *pair.from_.shape)
        want = pair.to.copy()
        if right:
            want[:, there] = pair.from_[:, here]
            pair.peer.write_blocks(pair.source, local, remote)
        elif len(remote):
            with pytest.raises(REFUSED) as caught:
                pair.peer.write_blocks(pair.source, local, remote)
            assert "INTERNAL" not in str(caught.value), (SEED, at)
        assert np.array_equal(pair.to, want), (SEED, at, local, remote)


def flat_arguments(chance: random.Random, pair: Pair) -> List[Any]:
    """Handles of every kind, numbers that are good, and what is not: as many as some function takes."""
    handles = [pair.writer._handle, pair.peer._handle, pair.source._handle]
    good = [*handles, *handles, [1, 2], [3, 4], 0, 1, 2, 20, _core.WRITE, _core.SEND, _core.RECV, None]
    wrong = [value for value in HOSTILE if not isinstance(value, type(iter([1])))]
    return [chance.choice(wrong) if chance.random() < 0.25 else chance.choice(good) for _ in range(chance.randrange(13))]


def test_flat_functions_take_any_arguments(pair: Pair) -> None:
    """Nothing crashes; each block has all bytes of one that the writer or the reader had at first."""
    names = ["arrivals_fd", "comm_init", "connect", "dlpack_info", "dump", "group_start", "ident", "lease_open", "listen", "memory_info"]
    names += ["op_cancel", "op_test", "op_wait", "options", "peer_info", "poll", "progress", "start", "start", "stats", "transfer", "transfer"]
    chance = random.Random(SEED)
    first = pair.from_.copy()  # a read of the reader's blocks may land in the writer's
    taken = 0
    for at in range(3000 * TIMES):
        function, arguments = getattr(_core, chance.choice(names)), flat_arguments(chance, pair)
        if function in (_core.transfer, _core.start) and chance.random() < 0.7:
            kind, ids = chance.choice([_core.WRITE, _core.SEND]), numbers(chance, 2)
            arguments = [kind, pair.peer._handle, pair.source._handle, 0, 0, [1, 2], ids, 20, 5, 0, None]
            arguments[chance.randrange(11)] = chance.choice(flat_arguments(chance, pair) or [7])
        try:
            function(*arguments)
            taken += 1
        except REFUSED as refusal:
            assert not isinstance(refusal, kvrail.KvError) or refusal.name != "INTERNAL", (SEED, at, function, arguments)
    assert taken
    for layer in range(LAYERS):
        known = {bytes(block) for block in first[layer]} | {bytes(len(first[layer, 0]))}
        assert all(bytes(block) in known for block in [*pair.to[layer], *pair.from_[layer]]), (SEED, layer)
    assert operator.index(pair.peer.connected)
