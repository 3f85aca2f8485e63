#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A model split in two: one process prefills, another decodes, kvrail moves the KV cache between them.

    python3 python/examples/disaggregated.py [--prompt 600] [--tokens 16] [--requests 3] [--layers 8] [--hf]

The decode process opens blocks of its own choice for each request (recv_blocks); the prefill process fills them layer by
layer (send_blocks) from a second thread, while its first computes the layers that follow. At the end the tokens are
compared, one by one, with those of the same model in one process. No NIC is needed: engines on one host use shared
memory, and KVCACHE_TRANSPORT=ib in the environment makes both ends use RDMA.

The model is a small decoder in numpy, or with --hf transformers' Llama (llama.py), on a GPU where there is one.
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Callable, List, Tuple

import numpy as np

import kvrail
from model import BLOCK_TOKENS, Model, Pages, Shape, blocks_for


def prompts_of(args: argparse.Namespace) -> List[List[int]]:
    random = np.random.default_rng(args.seed + 1)
    return [random.integers(0, Shape().vocabulary, args.prompt).tolist() for _ in range(args.requests)]


def model_of(args: argparse.Namespace) -> Any:
    if not args.hf:
        return Model(Shape(args.layers), args.seed)
    from llama import Llama

    return Llama(Shape(args.layers), args.seed)


def pages_of(args: argparse.Namespace, engine: kvrail.Engine) -> Tuple[Any, kvrail.Cache]:
    """A cache of twice the blocks that one request needs, in memory that the other process reaches directly."""
    kind = Pages
    if args.hf:
        from llama import TorchPages as kind  # type: ignore[assignment]
    pages = kind(Shape(args.layers), 2 * blocks_for(args.prompt + args.tokens), engine.alloc)
    return pages, engine.register({"k": pages.k, "v": pages.v}, block_tokens=BLOCK_TOKENS)


def some_blocks(pages: Any, tokens: int, seed: int) -> Any:
    """A request's blocks: scattered, as after hours of serving."""
    return np.random.default_rng(seed).permutation(pages.k.shape[1])[: blocks_for(tokens)]


def prefill(args: argparse.Namespace, pipe: Any) -> None:
    """For each prompt: compute it, send each layer as soon as it is there, tell the first token and the times."""
    model = model_of(args)
    with kvrail.Engine("prefill") as engine, ThreadPoolExecutor(1) as sender:
        pages, cache = pages_of(args, engine)
        peer = engine.connect("127.0.0.1", pipe.recv(), 60)
        for request, prompt in enumerate(prompts_of(args)):
            pipe.recv()  # the decode side may begin
            ids = some_blocks(pages, len(prompt), request)
            begun = time.monotonic()
            sends: List["Future[float]"] = []

            def send(layer: int, land: Callable[[], None]) -> float:
                start = time.monotonic()
                land()
                peer.send_blocks(cache, ids, request, layer)
                return time.monotonic() - start

            first = model.step(prompt, 0, pages, ids, lambda *layer: sends.append(sender.submit(send, *layer)))
            computed = time.monotonic()
            pipe.send((first, begun, computed, sum(s.result() for s in sends)))
        pipe.recv()  # the decode side is done


def decode(args: argparse.Namespace, pipe: Any, results: Any) -> None:
    """For each request: open blocks, wait until all layers are there, go on where the prefill stopped."""
    model = model_of(args)
    with kvrail.Engine("decode") as engine:
        pages, cache = pages_of(args, engine)
        pipe.send(engine.listen())
        arrival = engine.next_arrival(120)
        assert arrival is not None and arrival.peer is not None, "no prefill process came"
        path = arrival.peer.info().path
        for request in range(args.requests):
            ids = some_blocks(pages, args.prompt + args.tokens, 1000 + request)
            op = arrival.peer.recv_blocks_async(cache, ids[: blocks_for(args.prompt)], request, timeout=60)
            pipe.send("begin")
            op.wait(60)
            there = time.monotonic()
            first, begun, computed, moving = pipe.recv()
            there = max(there, computed)
            tokens = model.generate(first, args.prompt, args.tokens, pages, ids)
            results.send((tokens, computed - begun, there - computed, moving, path))
        pipe.send("end")


def one_process(args: argparse.Namespace) -> List[List[int]]:
    model = model_of(args)
    return [model.whole(prompt, args.tokens) for prompt in prompts_of(args)]


def two_processes(args: argparse.Namespace) -> List[Any]:
    context = multiprocessing.get_context("spawn")
    (here, there), (results, to_results) = context.Pipe(), context.Pipe(duplex=False)
    both = [
        context.Process(target=prefill, args=(args, here)),
        context.Process(target=decode, args=(args, there, to_results)),
    ]
    for process in both:
        process.start()
    for end in (here, there, to_results):
        end.close()
    try:
        return [results.recv() for _ in range(args.requests)]
    except EOFError:
        raise SystemExit("a process failed; its message stands above") from None
    finally:
        for process in both:
            process.join(10)
            process.terminate()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", type=int, default=600, help="tokens of a prompt")
    parser.add_argument("--tokens", type=int, default=16, help="tokens to generate")
    parser.add_argument("--requests", type=int, default=3)
    parser.add_argument("--layers", type=int, default=Shape().layers)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--hf", action="store_true", help="transformers' Llama (pip install torch transformers)")
    args = parser.parse_args()
    missing = [name for name in ("torch", "transformers") if args.hf and importlib.util.find_spec(name) is None]
    if missing:
        parser.error(f"--hf needs what is not installed here: pip install {' '.join(missing)}")
    got = two_processes(args)
    want = one_process(args)
    print(f"path: {got[0][4]}")
    print("time to first token, ms:  request    total  compute  transfer (not hidden)  transfer (hidden)")
    for number, (_, compute, exposed, moving, _) in enumerate(got):
        row = [1000 * t for t in (compute + exposed, compute, exposed, max(0.0, moving - exposed))]
        print(f"{number:34} {row[0]:8.1f} {row[1]:8.1f} {row[2]:22.1f} {row[3]:18.1f}")
    same = [row[0] for row in got] == want
    print(f"tokens of request 0: {' '.join(map(str, got[0][0]))}")
    print(f"same tokens: {'yes' if same else 'NO'}")
    return 0 if same else 1


if __name__ == "__main__":
    raise SystemExit(main())
