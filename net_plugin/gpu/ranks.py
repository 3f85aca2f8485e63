# SPDX-License-Identifier: Apache-2.0
"""ranks.py -- the communicators of two GPUs are made and ended, in one process; for tests/nccl/loads.py

usage: ranks.py LIBRARY ROUNDS
"""
import ctypes
import sys

RANKS = 2


def main():
    nccl = ctypes.CDLL(sys.argv[1])
    nccl.ncclCommInitAll.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p]
    nccl.ncclCommDestroy.argtypes = [ctypes.c_void_p]
    for _ in range(int(sys.argv[2])):
        comms = (ctypes.c_void_p * RANKS)()
        code = nccl.ncclCommInitAll(comms, RANKS, None)
        for rank in range(RANKS):
            print(f"rank {rank}: init {code}", flush=True)
        for rank in range(RANKS if not code else 0):
            print(f"rank {rank}: finalize {nccl.ncclCommDestroy(comms[rank])}", flush=True)


if __name__ == "__main__":
    main()
