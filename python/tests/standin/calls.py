# SPDX-License-Identifier: Apache-2.0
"""calls.py -- the calls of FastDeploy's test.py on rdma_comm, in its order, between two processes

usage: calls.py --splitwise_role decode|prefill --decode_ip IP --decode_rdma_port PORT --decode_zmq_port PORT --test_num N
       [--device gpu|cpu of the prefill process]

Beside what test.py looks at, all blocks that were not sent have to be as they were.
"""
import argparse
import random

import paddle
import zmq

import rdma_comm

LAYERS, BLOCKS, SENT = 3, 20, 5
SHAPES = [([BLOCKS, 2, 64, 128], "bfloat16"), ([BLOCKS, 2, 64, 128], "bfloat16")] + [([BLOCKS, 2, 64], "float32")] * 2
BYTES, SCALE = 2 * 64 * 128 * 2, 2 * 64 * 4


def caches():
    """[layer][keys, values, their scales]"""
    return [[paddle.full(shape, -1, dtype) for shape, dtype in SHAPES] for _ in range(LAYERS)]


def communicator(role, port, tensors):
    k, v, k_scale, v_scale = [[layer[i].data_ptr() for layer in tensors] for i in range(4)]
    return rdma_comm.RDMACommunicator(role, 0, port, k, v, BLOCKS, BYTES, k_scale, v_scale, SCALE)


def decode(args, channel):
    channel.bind(f"tcp://{args.decode_ip}:{args.decode_zmq_port}")
    tensors = caches()
    comm = communicator("decode", str(args.decode_rdma_port), tensors)
    held, good = [-1] * BLOCKS, 0
    print("waiting for request...", flush=True)
    for _ in range(args.test_num):
        block_ids = random.sample(range(BLOCKS), SENT)
        channel.recv_pyobj()
        channel.send_pyobj(block_ids)
        for block, value in zip(block_ids, channel.recv_pyobj()):
            held[block] = value
        good += all(
            paddle.all(tensor[block].equal(value)) for layer in tensors for tensor in layer for block, value in enumerate(held)
        )
        channel.send_pyobj("done")
    print(f"test_num: {args.test_num}, success_num: {good}")
    del comm


def prefill(args, channel):
    channel.connect(f"tcp://{args.decode_ip}:{args.decode_zmq_port}")
    paddle.device.set_device(args.device)
    tensors, port = caches(), str(args.decode_rdma_port)
    comm = communicator("prefill", "0", tensors)
    if not comm.is_connected(args.decode_ip, port):
        comm.connect(args.decode_ip, port)
    assert comm.is_connected(args.decode_ip, port)
    for _ in range(args.test_num):
        channel.send_pyobj("get_block_ids")
        block_ids = channel.recv_pyobj()
        values = random.sample(range(BLOCKS), SENT)
        for layer in tensors:
            for tensor in layer:
                for block, value in zip(block_ids, values):
                    tensor[block] = value
        paddle.device.cuda.synchronize()
        for layer in range(LAYERS):
            assert comm.write_cache(args.decode_ip, port, block_ids, block_ids, layer) == 0
        channel.send_pyobj(values)
        channel.recv_pyobj()


def main():
    parser = argparse.ArgumentParser()
    for name in "splitwise_role", "decode_ip":
        parser.add_argument(f"--{name}", required=True)
    for name in "decode_rdma_port", "decode_zmq_port", "test_num":
        parser.add_argument(f"--{name}", required=True, type=int)
    parser.add_argument("--device", default="gpu")
    args = parser.parse_args()
    (decode if args.splitwise_role == "decode" else prefill)(args, zmq.Context().socket(zmq.REP))


if __name__ == "__main__":
    main()
