# SPDX-License-Identifier: Apache-2.0
"""symbols.py -- libkvrail exports what its map and its headers name, and no library of ours needs one of a device

usage: symbols.py ROOT LIBKVRAIL [OTHER_LIBRARY...]

The others are only looked at for what they need.

libibverbs, librdmacm, libcuda and libcrypto are opened at run time, so that one binary runs where they are missing.
"""
import os
import re
import subprocess
import sys

import source

DEVICE_LIBRARY = re.compile(r"lib(ibverbs|rdmacm|mlx5|cuda|cudart|nccl|mpi|efa|crypto|ssl)\b")
DEVICE_SYMBOL = re.compile(r"(ibv_|rdma_|mlx5dv_|cuda|cu[A-Z]|MPI_|nccl)")


def declared(root):
    """Functions that the public headers declare."""
    names = set()
    folder = os.path.join("include", "kvrail")
    for name in os.listdir(os.path.join(root, folder)):
        text = source.code(source.read(root, os.path.join(folder, name)))
        text = re.sub(r"^\s*#.*?(?<!\\)$", "", text, flags=re.MULTILINE | re.DOTALL)
        names |= set(re.findall(r"\b(kv_\w+)\s*\([^()]*(?:\([^()]*\)[^()]*)*\)\s*;", text))
    return names


def mapped(text):
    """Names that a linker map makes global."""
    text = re.sub(r"/\*.*?\*/|#[^\n]*", "", text, flags=re.DOTALL)
    text = re.sub(r"local\s*:.*?}", "}", text, flags=re.DOTALL)
    return set(re.findall(r"([\w*?]+)\s*;", text))


def nm(library, *flags):
    run = subprocess.run(["nm", "-D", *flags, library], capture_output=True, text=True, check=True)
    return {line.split()[-1].split("@")[0] for line in run.stdout.splitlines() if line.split()}


def needed(library):
    run = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True)
    return re.findall(r"\(NEEDED\).*\[(.*)\]", run.stdout)


def compare(left_name, left, right_name, right):
    return [f"{name}: in {left_name}, not in {right_name}" for name in sorted(left - right)] + [
        f"{name}: in {right_name}, not in {left_name}" for name in sorted(right - left)
    ]


def check_exports(exported, in_map, in_headers):
    return compare("kvrail.map", in_map, "the headers", in_headers) + compare(
        "the library", exported, "kvrail.map", in_map
    )


def check_needs(libraries, undefined):
    return [f"{name} must be opened at run time, not linked" for name in libraries if DEVICE_LIBRARY.match(name)] + [
        f"{name} is undefined in the library" for name in sorted(undefined) if DEVICE_SYMBOL.match(name)
    ]


if __name__ == "__main__":
    tree, path, *others = sys.argv[1:]
    findings = check_exports(
        {name for name in nm(path, "--defined-only") if not name.startswith("KVRAIL_")},
        mapped(source.read(tree, "kvapi/kvrail.map")),
        declared(tree),
    )
    for library in [path, *others]:
        findings += check_needs(needed(library), nm(library, "-u"))
    source.report(findings)
