# SPDX-License-Identifier: Apache-2.0
"""A small decoder in numpy over a paged KV cache: RMS norm, rotary positions, grouped-query attention, SwiGLU.

Weights come from a seed, so every process that makes one has the same model. The cache is two arrays
[layers, blocks, BLOCK_TOKENS, heads, width]; where a request's tokens lie is told by a list of block ids.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, List, NamedTuple

import numpy as np

BLOCK_TOKENS = 16
Array = Any  # numpy.ndarray; its generic form differs between numpy's versions
#: Told that a layer is computed, and given what puts it into the pages where it is not there yet.
Done = Callable[[int, Callable[[], None]], Any]


def no_one(layer: int, land: Callable[[], None]) -> None:
    land()


class Shape(NamedTuple):
    layers: int = 8
    hidden: int = 256
    heads: int = 8
    kv_heads: int = 2
    inner: int = 704
    vocabulary: int = 1000

    @property
    def width(self) -> int:
        return self.hidden // self.heads


class Pages:
    """The paged cache of one process. alloc(bytes) gives the memory, zeroed."""

    def __init__(self, shape: Shape, blocks: int, alloc: Callable[[int], Any] = lambda n: np.zeros(n, np.uint8)) -> None:
        size = (2, shape.layers, blocks, BLOCK_TOKENS, shape.kv_heads, shape.width)
        self.k, self.v = np.asarray(alloc(4 * int(np.prod(size)))).view(np.float32).reshape(size)

    def put(self, layer: int, ids: Array, at: int, k: Array, v: Array) -> None:
        """Tokens at, at + 1, ... of a request whose blocks are `ids`."""
        position = np.arange(at, at + len(k))
        block, slot = ids[position // BLOCK_TOKENS], position % BLOCK_TOKENS
        self.k[layer, block, slot], self.v[layer, block, slot] = k, v

    def get(self, layer: int, ids: Array, n: int) -> "tuple[Array, Array]":
        """The first n tokens of a request."""
        shape = (-1, *self.k.shape[3:])
        return self.k[layer, ids].reshape(shape)[:n], self.v[layer, ids].reshape(shape)[:n]


def blocks_for(tokens: int) -> int:
    return -(-tokens // BLOCK_TOKENS)


def _norm(x: Array) -> Array:
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + 1e-6)


def _rotate(x: Array, at: int) -> Array:
    """Rotary positions: [tokens, heads, width] whose first token stands at `at`."""
    half = x.shape[-1] // 2
    angle = np.outer(np.arange(at, at + len(x)), 10000.0 ** (-np.arange(half) / half)).astype(np.float32)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


class Model:
    def __init__(self, shape: Shape, seed: int) -> None:
        random = np.random.default_rng(seed)

        def matrix(rows: int, columns: int) -> Array:
            return (random.standard_normal((rows, columns)) / np.sqrt(rows)).astype(np.float32)

        self.shape = shape
        kv = shape.kv_heads * shape.width
        self.embedding = matrix(shape.vocabulary, shape.hidden) * 16
        self.head = matrix(shape.hidden, shape.vocabulary)
        self.layers: List[Dict[str, Array]] = [
            {
                "q": matrix(shape.hidden, shape.hidden),
                "k": matrix(shape.hidden, kv),
                "v": matrix(shape.hidden, kv),
                "o": matrix(shape.hidden, shape.hidden),
                "gate": matrix(shape.hidden, shape.inner),
                "up": matrix(shape.hidden, shape.inner),
                "down": matrix(shape.inner, shape.hidden),
            }
            for _ in range(shape.layers)
        ]

    def _attend(self, q: Array, k: Array, v: Array, at: int) -> Array:
        s = self.shape
        group, n = s.heads // s.kv_heads, len(q)
        # Every group of query heads shares one key head: [kv_heads, group * tokens, width].
        q = q.reshape(n, s.kv_heads, group, s.width).transpose(1, 2, 0, 3).reshape(s.kv_heads, group * n, s.width)
        scores = (q @ k.transpose(1, 2, 0)).reshape(s.kv_heads, group, n, len(k)) / np.float32(np.sqrt(s.width))
        scores[..., np.arange(len(k))[None, :] > np.arange(at, at + n)[:, None]] = -np.inf
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        scores /= scores.sum(axis=-1, keepdims=True)
        mixed = scores.reshape(s.kv_heads, group * n, len(k)) @ v.transpose(1, 0, 2)
        return mixed.reshape(s.kv_heads, group, n, s.width).transpose(2, 0, 1, 3).reshape(n, s.hidden)

    def step(self, tokens: List[int], at: int, pages: Pages, ids: Array, done: Done = no_one) -> int:
        """Run tokens that begin at position `at`; returns the next one. done(l, land): layer l is in the pages."""
        s = self.shape
        x = self.embedding[tokens]
        for number, w in enumerate(self.layers):
            h = _norm(x)
            k = _rotate((h @ w["k"]).reshape(-1, s.kv_heads, s.width), at)
            pages.put(number, ids, at, k, (h @ w["v"]).reshape(-1, s.kv_heads, s.width))
            done(number, lambda: None)
            k, v = pages.get(number, ids, at + len(tokens))
            q = _rotate((h @ w["q"]).reshape(-1, s.heads, s.width), at)
            x = x + self._attend(q, k, v, at) @ w["o"]
            h = _norm(x)
            gate = h @ w["gate"]
            x = x + (gate / (1 + np.exp(-gate)) * (h @ w["up"])) @ w["down"]
        return int(np.argmax(_norm(x[-1]) @ self.head))

    def generate(self, first: int, at: int, count: int, pages: Pages, ids: Array) -> List[int]:
        """`count` tokens, of which `first` is the first and stands at position `at`."""
        tokens = [first]
        while len(tokens) < count:
            tokens.append(self.step(tokens[-1:], at + len(tokens) - 1, pages, ids))
        return tokens

    def whole(self, prompt: List[int], count: int) -> List[int]:
        """The same in one go."""
        pages = Pages(self.shape, blocks_for(len(prompt) + count))
        ids = np.arange(pages.k.shape[1])
        return self.generate(self.step(prompt, 0, pages, ids), len(prompt), count, pages, ids)
