# SPDX-License-Identifier: Apache-2.0
"""transformers' Llama behind the calls of model.py: weights from a seed, a paged cache of torch tensors, on a GPU where there is one.

There the cache lies on the GPU, too, and kvrail moves it from GPU to GPU: as soon as a layer's attention has run, while the
later layers compute.
"""

from __future__ import annotations

from typing import Any, Callable, List, Optional

import numpy as np
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from model import BLOCK_TOKENS, Array, Done, Shape, no_one


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class TorchPages:
    """model.Pages as torch tensors, where the model computes. alloc(bytes) gives host memory, zeroed."""

    def __init__(self, shape: Shape, blocks: int, alloc: Callable[[int], Any]) -> None:
        size = (2, shape.layers, blocks, BLOCK_TOKENS, shape.kv_heads, shape.width)
        if device().type == "cuda":
            self.k, self.v = torch.zeros(size, device=device())
            torch.cuda.synchronize()  # before another process writes into it
        else:
            self.k, self.v = torch.from_numpy(np.asarray(alloc(4 * int(np.prod(size)))).view(np.float32)).view(size)

    def put(self, layer: int, ids: Array, at: int, k: Any, v: Any) -> None:
        """Tokens at, at + 1, ... of a request whose blocks are `ids`."""
        position = np.arange(at, at + len(k))
        block, slot = (torch.from_numpy(x).to(k.device) for x in (ids[position // BLOCK_TOKENS], position % BLOCK_TOKENS))
        self.k[layer, block, slot], self.v[layer, block, slot] = k, v

    def get(self, layer: int, ids: Array, n: int) -> "tuple[Any, Any]":
        """The first n tokens of a request."""
        block, shape = torch.from_numpy(ids).to(self.k.device), (-1, *self.k.shape[3:])
        return self.k[layer, block].reshape(shape)[:n], self.v[layer, block].reshape(shape)[:n]


class Llama:
    def __init__(self, shape: Shape, seed: int) -> None:
        self.device = device()
        config = LlamaConfig(
            vocab_size=shape.vocabulary,
            hidden_size=shape.hidden,
            intermediate_size=shape.inner,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            max_position_embeddings=16384,
            initializer_range=0.1,
            bos_token_id=None,
            eos_token_id=None,
        )
        torch.manual_seed(seed)
        self.shape = shape
        self.model = LlamaForCausalLM(config).eval().to(self.device)
        self._attended: Optional[Callable[[int], None]] = None
        for number, layer in enumerate(self.model.model.layers):
            layer.self_attn.register_forward_hook(lambda *_, number=number: self._attended and self._attended(number))
        self._forward([0] * 64, 0, DynamicCache(config=config))  # the first call of a library is never like the others

    def _forward(self, tokens: List[int], at: int, cache: Any) -> int:
        with torch.inference_mode():
            ids = torch.tensor([tokens], device=self.device)
            positions = torch.arange(at, at + len(tokens), device=self.device)[None]
            out = self.model(input_ids=ids, position_ids=positions, past_key_values=cache, logits_to_keep=1)
            return int(out.logits[0, -1].argmax())

    def step(self, tokens: List[int], at: int, pages: TorchPages, ids: Array, done: Done = no_one) -> int:
        """Run a prompt; returns the next token. done(l, land): layer l is in the pages once land() has returned."""
        cache = DynamicCache(config=self.model.config)

        def attended(layer: int) -> None:
            held = cache.layers[layer]
            pages.put(layer, ids, at, held.keys[0].transpose(0, 1), held.values[0].transpose(0, 1))
            done(layer, torch.cuda.current_stream().record_event().synchronize if self.device.type == "cuda" else lambda: None)

        self._attended = attended
        try:
            return self._forward(tokens, at, cache)
        finally:
            self._attended = None

    def generate(self, first: int, at: int, count: int, pages: TorchPages, ids: Array) -> List[int]:
        """`count` tokens, of which `first` is the first and stands at position `at`; what lies before comes from the pages."""
        cache = DynamicCache(config=self.model.config)
        for layer in range(self.shape.layers):
            k, v = pages.get(layer, ids, at)
            cache.update(k.transpose(0, 1)[None], v.transpose(0, 1)[None], layer)
        tokens = [first]
        while len(tokens) < count:
            tokens.append(self._forward(tokens[-1:], at + len(tokens) - 1, cache))
        return tokens

    def whole(self, prompt: List[int], count: int) -> List[int]:
        """The same in one go, by transformers' own loop."""
        with torch.inference_mode():
            ids = torch.tensor([prompt], device=self.device)
            out = self.model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, pad_token_id=0
            )
        return [int(token) for token in out[0, len(prompt) :]]
