#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A prefill process and a decode process, each started by hand, on two hosts or one.

    python3 two_hosts.py --listen 10.0.0.2 [PORT]      # decode, on the host with that address
    python3 two_hosts.py --connect 10.0.0.2 [PORT]     # prefill, on the other

The decode side opens blocks 40, 7 and 23 for request 1001; the prefill side sends its blocks 3, 1 and 4 into them, and names
the request, not the blocks. The line with the transport says "ib" between hosts, "shm" on one.
"""

from __future__ import annotations

import sys

import numpy as np

import kvrail

LAYERS, BLOCKS, REQUEST, PATIENCE_S = 4, 64, 1001, 600
PREFILL_IDS, DECODE_IDS = [3, 1, 4], [40, 7, 23]


def main(way: str, host: str, port: int = 7473) -> None:
    with kvrail.Engine(way) as engine:
        pages = np.asarray(engine.alloc(LAYERS * BLOCKS * 4096)).reshape(LAYERS, BLOCKS, 4096)
        cache = engine.register({"kv": pages})
        prompt = np.random.default_rng(REQUEST).integers(0, 256, (LAYERS, 3, 4096), np.uint8)  # what both know here
        if way == "--listen":
            print(f"listening on {host} {engine.listen(host, port)}", flush=True)
            arrival = engine.next_arrival(PATIENCE_S)
            if arrival is None or arrival.peer is None:
                sys.exit("nobody came")
            peer = arrival.peer
            peer.recv_blocks(cache, DECODE_IDS, REQUEST)
            assert (pages[:, DECODE_IDS] == prompt).all(), "other bytes than were sent"
            print(f"decode: request {REQUEST} is here, every byte as it was sent")
        else:
            pages[:, PREFILL_IDS] = prompt
            peer = engine.connect(host, port)
            peer.send_blocks(cache, PREFILL_IDS, REQUEST)
            print(f"prefill: request {REQUEST} is visible at the decode side")
        print(f"over {peer.info().transport}: {peer.info().path}")
        peer.close()


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4) or sys.argv[1] not in ("--listen", "--connect"):
        sys.exit(f"usage: {sys.argv[0]} --listen ADDRESS [PORT] | --connect HOST [PORT]")
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
