# SPDX-License-Identifier: Apache-2.0
"""arrows.py -- includes go downhill only: include <- transport/base <- transport <- kvapi <- tool, examples, python, mpi_tests, bench

usage: arrows.py ROOT
"""
import os
import re
import sys

import circles
import source

# Longest folder first. A layer may include itself and the layers named.
LAYERS = [
    ("include/kvrail/", set()),
    ("transport/base/", {"include/kvrail/kv_error.h"}),
    ("transport/gpu/", {"transport/base/", "include/kvrail/"}),
    ("transport/ib/", {"transport/", "transport/gpu/", "transport/base/", "include/kvrail/"}),
    ("transport/shm/", {"transport/", "transport/gpu/", "transport/base/", "include/kvrail/"}),
    ("transport/tcp/", {"transport/", "transport/gpu/", "transport/base/", "include/kvrail/"}),
    ("transport/", {"transport/base/", "transport/gpu/", "include/kvrail/"}),
    ("tool/", {"include/kvrail/", "transport/base/number.h", "transport/base/pci.h", "transport/base/text.h", "bench/copy.h", "bench/results.h",
              "mpi_tests/hist.h", "mpi_tests/pattern.h", "mpi_tests/util.h"}),
    ("kvapi/examples/", {"include/kvrail/"}),
    *((f"kvapi/{folder}/", {"transport/tr.h", "transport/base/", "include/kvrail/"}
       | {f"kvapi/{lower}/" for lower in circles.ORDER["kvapi/"][:place]})
      for place, folder in enumerate(circles.ORDER["kvapi/"])),
    ("kvapi/", {"transport/tr.h", "transport/base/", "include/kvrail/"}),
    ("agent/", {"transport/tr.h", "transport/base/", "include/kvrail/"}),
    ("nixl_plugin/", {"agent/agent.h", "include/kvrail/"}),
    ("net_plugin/", {"transport/tr.h", "transport/base/", "include/kvrail/"}),
    ("mpi_tests/net/", {"net_plugin/nccl_abi.h", "bench/cuda.h"}),
    ("mpi_tests/", {"include/kvrail/", "bench/results.h", "bench/cuda.h"}),
    ("bench/", {"mpi_tests/", "mpi_tests/net/", "net_plugin/nccl_abi.h", "include/kvrail/", "tests/loop/tr_pair.h"}),
    ("python/", {"include/kvrail/"}),
    ("docs/", {"transport/base/"}),
]
# Headers of other projects, and the only folders that may see them.
FOREIGN = {
    r"infiniband/|rdma/": ("transport/ib/", "tests/", "bench/verbs_floor.c"),
    r"mpi\.h": ("mpi_tests/",),
    r"nccl.*\.h": (),
    r"Python\.h": ("python/ext/",),
    r"cuda.*\.h": (),
    r"cmocka\.h": ("tests/", "tool/", "mpi_tests/"),
    r"jansson\.h": ("tool/", "mpi_tests/", "bench/", "tests/"),
}


def layer_of(path):
    return next((layer for layer in LAYERS if path.startswith(layer[0])), None)


def resolve(root, path, name):
    """The file of the tree that an include names, or None if it belongs to somebody else."""
    folders = [os.path.dirname(path), "transport", "include", os.path.dirname(os.path.dirname(path)), "kvapi", "agent", "mpi_tests", "bench"]
    for folder in folders + ["kvapi/" + name for name in circles.ORDER["kvapi/"]]:
        candidate = os.path.normpath(os.path.join(folder, name))
        if os.path.isfile(os.path.join(root, candidate)):
            return candidate
    return None


def check_include(path, name, target):
    if target is None:
        for pattern, folders in FOREIGN.items():
            if re.fullmatch(f"(?:{pattern}).*", name) and not path.startswith(folders):
                return f"<{name}> does not belong here"
        return None
    layer = layer_of(path)
    if layer is None:
        return None  # tests see everything
    own, below = layer
    theirs = layer_of(target)[0] if layer_of(target) else target
    if theirs == own or theirs in below or target in below:
        return None
    return f'"{name}" ({target}) goes against the arrows'


def check(root):
    findings = []
    for path in source.c_files(root):
        for number, line in enumerate(source.read(root, path).splitlines(), 1):
            match = re.match(r'\s*#\s*include\s*[<"]([^>"]+)[>"]', line)
            if match:
                complaint = check_include(path, match[1], resolve(root, path, match[1]))
                if complaint:
                    findings.append(f"{path}:{number}: {complaint}")
    return findings


if __name__ == "__main__":
    source.report(check(sys.argv[1]))
