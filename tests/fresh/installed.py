# SPDX-License-Identifier: Apache-2.0
"""installed.py -- the installed packages move blocks between two engines, with nothing but Python beside them"""
import os

import kvrail
import rdma_comm

LAYERS, BLOCKS, BYTES = 2, 8, 4096


def memory(data):
    return memoryview(data).cast("B", (LAYERS, BLOCKS, BYTES))


def main():
    mine, pages = bytearray(os.urandom(LAYERS * BLOCKS * BYTES)), bytearray(LAYERS * BLOCKS * BYTES)
    with kvrail.Engine("decode") as decode, kvrail.Engine("prefill") as prefill:
        decode.register({"k": memory(pages)}, open=True)
        port = decode.listen()
        source = prefill.register({"k": memory(mine)})
        prefill.connect("127.0.0.1", port).write_blocks(source, [3, 1, 4], [0, 7, 2])
    wanted = bytearray(len(pages))
    for layer in range(LAYERS):
        for here, there in (3, 0), (1, 7), (4, 2):
            block, to = ((layer * BLOCKS + number) * BYTES for number in (here, there))
            wanted[to:to + BYTES] = mine[block:block + BYTES]
    assert pages == wanted, "wrong bytes"
    print(f"{kvrail.__file__} and {rdma_comm.__file__}: {3 * LAYERS} blocks are where they belong")


if __name__ == "__main__":
    main()
