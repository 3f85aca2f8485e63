# SPDX-License-Identifier: Apache-2.0
"""cubins.py -- the library holds machine code of the copy kernel for sm_80, sm_90 and sm_100, where nvcc was found

usage: cubins.py copy.fatbin LIBRARY
"""
import struct
import sys

MAGIC, ELF = 0xBA55ED50, 2


def architectures(fat):
    """Of the cubins in a fat binary: a header, then entries, each with a header of its own."""
    magic, _, header, size = struct.unpack_from("<IHHQ", fat)
    assert magic == MAGIC and header + size == len(fat)
    at, found = header, []
    while at < len(fat):
        kind, _, header, size, arch = struct.unpack_from("<HHIQ12xI", fat, at)
        found += [arch] * (kind == ELF)
        at += header + size
    return found


def main():
    try:
        with open(sys.argv[1], "rb") as file:
            fat = file.read()
    except FileNotFoundError:
        print("cubins.py: nvcc was not found when this was configured (KVRAIL_NVCC)")
        sys.exit(77)
    with open(sys.argv[2], "rb") as library:
        assert fat in library.read()
    assert sorted(architectures(fat)) == [80, 90, 100], architectures(fat)


if __name__ == "__main__":
    main()
