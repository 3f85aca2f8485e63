# SPDX-License-Identifier: Apache-2.0
"""engines.py -- what LMCache and SGLang call NIXL by, with the backend KVRAIL and host memory, between two processes

usage: engines.py PLUGIN lmcache|sglang [--json FILE]

Their own classes are driven, as their own code drives them: LMCache's transfer channel reads pages of the other process; SGLang's
NixlKVManager with its sender, receiver and bootstrap server writes the pages of requests. Every byte is compared. The environment that
KVRAIL_VLLM names has them (README.md).
"""
import argparse
import importlib.metadata
import importlib.util
import multiprocessing
import os
import sys
import time

PAGE, PAGES = 4096, 512
WAIT_S = 120
LAYERS, ROOMS = 4, 6
PORT = 7300 + os.getpid() % 500 * 2  # and the next


def skip(why):
    print(f"skipped: {why}")
    sys.exit(77)


def await_true(what, happened):
    limit = time.monotonic() + WAIT_S
    while not (answer := happened()):
        if time.monotonic() > limit:
            sys.exit(f"engines.py: {what}: nothing in {WAIT_S} s")
        time.sleep(0.001)
    return answer


def filled(seed, pages):
    import numpy

    return numpy.random.default_rng(seed).integers(0, 256, pages * PAGE, dtype=numpy.uint8).reshape(pages, PAGE)


def order(seed):
    import numpy

    return numpy.random.default_rng(seed).permutation(PAGES)


# ---------------------------------------------------------------- LMCache


def channel(port, memory):
    from lmcache.v1.distributed.internal_api import L1MemoryDesc
    from lmcache.v1.distributed.transfer_channel.factory import create_transfer_channel_context
    from lmcache.v1.distributed.transfer_channel.impl import nixl_impl  # noqa: F401: it registers itself

    url = f"127.0.0.1:{port}"
    return create_transfer_channel_context("nixl", L1MemoryDesc(ptr=memory.ctypes.data, size=memory.nbytes, align_bytes=PAGE),
                                           listen_url=url, advertise_url=url, backends=["KVRAIL"])


def lmcache_owner(pipe, port):
    memory = filled(1, PAGES)
    context = channel(port, memory)
    pipe.send("up")
    pipe.recv()
    context.close()
    os._exit(0)


def lmcache(pipe, port):
    import numpy

    assert pipe.recv() == "up"
    memory = filled(2, PAGES)
    context = channel(port + 1, memory)
    client = context.get_transfer_channel_client(f"127.0.0.1:{port}")
    here, there = ([(int(i) * PAGE, PAGE) for i in order(seed)] for seed in (3, 4))
    tasks = []
    for first in range(0, PAGES // 2, 32):  # half of the pages, several reads at once
        addresses = [context.get_transfer_channel_address(side[first:first + 32]) for side in (here, there)]
        tasks.append(client.submit_read(*addresses))
    for task in tasks:
        result = await_true("a read", lambda task=task: (got := client.query_read_status(task)).is_finished() and got)
        assert result.succeeded_mask == [True] * 32, result
    want = filled(2, PAGES)
    want[order(3)[:PAGES // 2]] = filled(1, PAGES)[order(4)[:PAGES // 2]]
    assert numpy.array_equal(memory, want), "wrong bytes"
    pipe.send("over")
    context.close()
    return f"{len(tasks)} reads of 32 pages, every page compared"


# ---------------------------------------------------------------- SGLang


def manager(mode, memory, port):
    """A NixlKVManager whose layers are parts of this memory, with as many pages each; aux is one page."""
    from sglang.srt.disaggregation.base.conn import KVArgs
    from sglang.srt.disaggregation.nixl.conn import NixlKVManager
    from sglang.srt.disaggregation.utils import DisaggregationMode
    from sglang.srt.runtime_context import get_context, get_parallel

    published = get_context().override_server_args(device="cpu", disaggregation_bootstrap_port=port, host="127.0.0.1")
    server_args = published.install()
    get_parallel().override_permanently(tp_rank=0, pp_rank=0, attn_tp_rank=0, attn_cp_rank=0, attn_dp_rank=0, attn_dcp_rank=0, pp_group=None)
    args, at = KVArgs(), memory.ctypes.data
    layer = PAGES // LAYERS * PAGE
    for name in ("state_types", "state_data_ptrs", "state_data_lens", "state_item_lens", "state_layer_ids", "state_dim_per_tensor"):
        setattr(args, name, [])
    args.engine_rank = args.gpu_id = args.pp_rank = args.prefill_start_layer = args.system_dp_rank = 0
    args.kv_data_ptrs, args.kv_data_lens = [at + i * layer for i in range(LAYERS)], [layer] * LAYERS
    args.kv_item_lens, args.kv_layer_ids, args.kv_data_mem_kinds = [PAGE] * LAYERS, list(range(LAYERS)), ["DRAM"] * LAYERS
    args.aux_data_ptrs, args.aux_data_lens, args.aux_item_lens = [at + LAYERS * layer], [PAGE], [PAGE // ROOMS]
    args.kv_cache_dtype_str, args.ib_device, args.mla_compression_ratios, args.prefill_end_layer = "auto", "", None, LAYERS
    args.page_size = args.kv_head_num = args.total_kv_head_num = 1
    made = NixlKVManager(args, getattr(DisaggregationMode, mode), server_args)
    assert made.agent.get_plugin_list() and "KVRAIL" in made.agent.backends
    return made


def requests():
    """(room, pages at prefill, pages at decode) of each."""
    each = PAGES // LAYERS // ROOMS
    for room in range(ROOMS):
        yield room, *(order(seed)[order(seed) < PAGES // LAYERS][room * each:(room + 1) * each].astype("int32") for seed in (5, 6))


def sglang_prefill(pipe, port):
    from sglang.srt.disaggregation.base.conn import KVPoll
    from sglang.srt.disaggregation.nixl.conn import NixlKVBootstrapServer, NixlKVSender

    server = NixlKVBootstrapServer("127.0.0.1", port)
    memory = filled(1, PAGES + 1)
    kv = manager("PREFILL", memory, port)
    pipe.send("up")
    senders = [(NixlKVSender(kv, f"127.0.0.1:{port}", room), pages) for room, pages, _ in requests()]
    for room, (sender, pages) in enumerate(senders):
        sender.init(len(pages), room)
        await_true("a request of decode", lambda sender=sender: sender.poll() >= KVPoll.WaitingForInput)
        sender.send(pages)
    for sender, _ in senders:
        assert await_true("a sender's end", lambda sender=sender: (got := sender.poll()) in (KVPoll.Success, KVPoll.Failed) and got) == KVPoll.Success
    pipe.recv()
    del server
    os._exit(0)


def sglang(pipe, port):
    import numpy
    from sglang.srt.disaggregation.base.conn import KVPoll
    from sglang.srt.disaggregation.nixl.conn import NixlKVReceiver

    assert pipe.recv() == "up"
    memory = filled(2, PAGES + 1)
    kv = manager("DECODE", memory, port)
    address = f"127.0.0.1:{port}"
    await_true("the bootstrap server", lambda: kv.try_ensure_parallel_info(address))
    receivers = []
    for room, _, pages in requests():
        receivers.append(NixlKVReceiver(kv, address, room))
        receivers[-1].init(0)
        receivers[-1].send_metadata(pages, room)
    for receiver in receivers:
        assert await_true("a receiver's end", lambda receiver=receiver: (got := receiver.poll()) in (KVPoll.Success, KVPoll.Failed) and got) == KVPoll.Success
    want, theirs = filled(2, PAGES + 1), filled(1, PAGES + 1)
    for room, sent, got in requests():
        for first in range(0, PAGES, PAGES // LAYERS):
            want[first + got] = theirs[first + sent]
        aux = slice(room * (PAGE // ROOMS), (room + 1) * (PAGE // ROOMS))
        want[PAGES, aux] = theirs[PAGES, aux]
    assert numpy.array_equal(memory, want), "wrong bytes"
    pipe.send("over")
    return f"{ROOMS} requests of {LAYERS} layers, every page compared"


ENGINES = {"lmcache": ("LMCache's transfer channel,", lmcache, lmcache_owner), "sglang": ("SGLang's NixlKVManager,", sglang, sglang_prefill)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plugin", metavar="PLUGIN")
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("--json", metavar="FILE")
    asked = parser.parse_args()
    engine, (what, ours, others) = asked.engine, ENGINES[asked.engine]
    if not importlib.util.find_spec(engine):
        if "KVRAIL_VLLM" not in os.environ:
            skip(f"{engine} is not installed, and KVRAIL_VLLM names no environment that has it (tests/vllm/README.md)")
        python = os.path.join(os.environ.pop("KVRAIL_VLLM"), "bin", "python")
        os.execv(python, [python, "-B", *sys.argv])
    os.environ["NIXL_PLUGIN_DIR"] = os.path.dirname(os.path.abspath(asked.plugin))
    os.environ.update(SGLANG_DISAGGREGATION_NIXL_BACKEND="KVRAIL", SGLANG_HOST_IP="127.0.0.1")
    os.environ.setdefault("KVCACHE_AGENT_ADDRESS", "127.0.0.1")
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    other = context.Process(target=others, args=(theirs, PORT), daemon=True)
    other.start()
    theirs.close()
    said = ours(pipe, PORT)
    what = f"{what} {importlib.metadata.version(engine)}"
    print(f"{what}: {said}", flush=True)
    other.join(WAIT_S)
    if asked.json:
        sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "docs"))
        import figures

        figures.store(asked.json, f"tests/vllm/engines.py libplugin_KVRAIL.so {engine}", {what: said})
    os._exit(other.exitcode or 0)  # threads of theirs do not end


if __name__ == "__main__":
    main()
