# SPDX-License-Identifier: Apache-2.0
"""transformers' Llama behind the calls of model.py: weights from a seed, the same paged cache, on a GPU where there is one.

kvrail moves host memory today. On a GPU each layer's keys and values are therefore copied into pinned host memory, on a
stream of their own and as soon as the layer's attention has run, while the later layers compute.
"""

from __future__ import annotations

from typing import Any, Callable, List, Optional

import numpy as np
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from model import Array, Done, Pages, Shape, no_one


class Llama:
    def __init__(self, shape: Shape, seed: int) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
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
        self._copies = torch.cuda.Stream() if self.device.type == "cuda" else None
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

    def _landing(self, kv: Any) -> Callable[[], Array]:
        """Starts the copy of [2, heads, tokens, width] to the host; what is returned waits for it."""
        if self._copies is None:
            return lambda: kv.numpy()
        host = torch.empty(kv.shape, dtype=kv.dtype, pin_memory=True)
        self._copies.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._copies):
            host.copy_(kv, non_blocking=True)
            kv.record_stream(self._copies)
            copied = self._copies.record_event()

        def land() -> Array:
            copied.synchronize()
            return host.numpy()

        return land

    def step(self, tokens: List[int], at: int, pages: Pages, ids: Array, done: Done = no_one) -> int:
        """Run a prompt; returns the next token. done(l, land): layer l is computed; land() puts it into the pages."""
        cache = DynamicCache(config=self.model.config)

        def attended(layer: int) -> None:
            held = cache.layers[layer]
            copy = self._landing(torch.stack([held.keys[0], held.values[0]]))

            def land() -> None:
                k, v = copy().transpose(0, 2, 1, 3)
                pages.put(layer, ids, at, k, v)

            done(layer, land)

        self._attended = attended
        try:
            return self._forward(tokens, at, cache)
        finally:
            self._attended = None

    def generate(self, first: int, at: int, count: int, pages: Pages, ids: Array) -> List[int]:
        """`count` tokens, of which `first` is the first and stands at position `at`; what lies before comes from the pages."""
        cache = DynamicCache(config=self.model.config)
        for layer in range(self.shape.layers):
            k, v = (torch.from_numpy(np.array(x)).to(self.device) for x in pages.get(layer, ids, at))
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
