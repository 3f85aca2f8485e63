# SPDX-License-Identifier: Apache-2.0
"""Blocks between groups of different tensor-parallel sizes: each rank gets its heads, whatever order a block has."""

from __future__ import annotations

from typing import Any, List

import numpy as np
import pytest

import kvrail
from conftest import pattern
from rdma_comm import RDMACommunicator

LAYERS, BLOCKS, TOKENS, HEADS, DIM = 2, 6, 4, 4, 16


def part(model: Any, order: str, size: int, rank: int) -> Any:
    """A rank's cache of the model's [layers, blocks, heads, tokens, dim]."""
    mine = max(1, HEADS // size)
    first = rank * mine if size <= HEADS else rank // (size // HEADS)
    heads = model[:, :, first : first + mine]
    return np.ascontiguousarray(heads if order == "HND" else heads.swapaxes(2, 3))


def shape(order: str, size: int, rank: int) -> Any:
    return {"tp_size": size, "tp_rank": rank, "order": order, "kv_heads": HEADS, "block_tokens": TOKENS}


@pytest.mark.parametrize("order", ["HND", "NHD"])
@pytest.mark.parametrize("prefill, decode", [(1, 2), (2, 1), (4, 8), (8, 4), (2, 8)])
def test_each_rank_gets_its_heads(prefill: int, decode: int, order: str) -> None:
    model = pattern(5, LAYERS, BLOCKS, HEADS, TOKENS, DIM)
    ids: List[int] = list(range(BLOCKS))
    for to in range(decode):
        with kvrail.Engine() as reader:
            want = part(model, order, decode, to)
            got = np.zeros_like(want)
            reader.register({"k": got}, open=True, **shape(order, decode, to))
            port, met = reader.listen(), 0
            for rank in range(prefill):
                with kvrail.Engine() as writer:
                    source = writer.register({"k": part(model, order, prefill, rank)}, **shape(order, prefill, rank))
                    peer = writer.connect("127.0.0.1", port)
                    try:
                        peer.write_blocks(source, ids, ids)
                        met += 1
                    except kvrail.KvError as exc:
                        assert "share no part" in str(exc)
            assert met and np.array_equal(got, want)


def test_k_and_v_of_one_array_are_two_tensors() -> None:
    """As some engines keep them: [layers, blocks, 2, tokens, heads, dim]. The two lie between each other, and share no byte."""
    source, target = pattern(7, LAYERS, BLOCKS, 2, 64), np.zeros((LAYERS, BLOCKS, 2, 64), np.uint8)
    with kvrail.Engine() as reader, kvrail.Engine() as writer:
        reader.register({"k": target[:, :, 0], "v": target[:, :, 1]}, open=True)
        cache = writer.register({"k": source[:, :, 0], "v": source[:, :, 1]})
        writer.connect("127.0.0.1", reader.listen()).write_blocks(cache, [1, 2], [4, 3])
    want = np.zeros_like(target)
    want[:, [4, 3]] = source[:, [1, 2]]
    assert np.array_equal(target, want)


def test_orders_are_named_when_they_do_not_fit() -> None:
    with kvrail.Engine() as a, kvrail.Engine() as b:
        memory = np.zeros((LAYERS, BLOCKS, 64), np.uint8)
        b.register({"k": memory.copy(), "v": kvrail.Tensor(memory.copy(), order="NHD")}, order="HND", open=True)
        with pytest.raises(ValueError, match="order is 'NDH'; it is 'HND', 'NHD' or None"):
            a.register({"k": memory}, order="NDH")
        with pytest.raises(TypeError, match="order is a int"):
            a.register({"k": memory}, order=1)  # type: ignore[arg-type]
        with pytest.raises(kvrail.KvError, match="kv_heads is 3 and tp_size 2"):
            a.register({"k": memory}, tp_size=2, kv_heads=3)
        a.register({"k": memory, "v": memory.copy()}, order="HND")
        with pytest.raises(kvrail.KvError, match=r"tensor 1 \(v\) order here HND, peer NHD"):
            a.connect("127.0.0.1", b.listen())


def test_rdma_comm_with_more_ranks_than_heads() -> None:
    """As FastDeploy lays a block out: [heads, tokens, dim], the heads of a rank one after the other."""
    model = pattern(6, LAYERS, BLOCKS, HEADS, TOKENS, DIM)

    def comm(role: str, memory: Any, size: int, rank: int) -> RDMACommunicator:
        bases = [memory[layer].ctypes.data for layer in range(LAYERS)]
        return RDMACommunicator(role, 0, 0, bases, [], BLOCKS, memory[0, 0].nbytes, size, rank, kv_heads=HEADS)

    for rank in (0, 5):
        want = part(model, "HND", 8, rank)
        got, source = np.zeros_like(want), part(model, "HND", 4, rank // 2)
        with comm("decode", got, 8, rank) as decode, comm("prefill", source, 4, rank // 2) as prefill:
            assert prefill.connect("127.0.0.1", decode.port, 8), prefill.last_error()
            for layer in range(LAYERS):
                assert prefill.write_cache("127.0.0.1", decode.port, [0, 1, 2], [3, 1, 0], layer) == 0
            assert np.array_equal(got[:, [3, 1, 0]], want[:, [0, 1, 2]])
