# SPDX-License-Identifier: Apache-2.0
"""abi.py -- every struct of nccl_abi.h has the members, offsets and types that NCCL has

usage: abi.py ROOT COMPILER

Both layouts are read by gdb from debug information: ours from nccl_abi.h compiled on the spot, NCCL's from the libraries of
library.py, and from NCCL's own headers if KVRAIL_NCCL_HEADERS names the folder of net.h, plugins/net/example/nccl in its source.
"""
import os
import re
import shutil
import subprocess
import sys
import tempfile

from library import libraries, skip

# NCCL's name: ours, where it is another one because nothing changed between the two versions.
SAME = {
    "ncclNetProperties_v10_t": "ncclNetProperties_v9_t",
    "ncclNetVDeviceProps_v10_t": "ncclNetVDeviceProps_v9_t",
    "ncclNetVDeviceProps_v11_t": "ncclNetVDeviceProps_v9_t",
    "ncclNetCommConfig_v11_t": "ncclNetCommConfig_v10_t",
    "ncclNetCommConfig_v12_t": "ncclNetCommConfig_v10_t",
    "ncclNetCommAttr_v12_t": "ncclNetCommAttr_v11_t",
    "ncclNetAttr_v12_t": "ncclNetAttr_v11_t",
}
THEIRS = (
    [f"ncclNet_v{v}_t" for v in range(6, 13)]
    + [f"ncclNetProperties_v{v}_t" for v in range(6, 13)]
    + [f"ncclNetVDeviceProps_v{v}_t" for v in (9, 10, 11, 12)]
    + [f"ncclNetCommConfig_v{v}_t" for v in (10, 11, 12)]
    + ["ncclNetDeviceHandle_v7_t", "ncclNetAttr_v12_t", "ncclNetCommAttr_v12_t"]
)
# Enumerators of ours; the pointer kinds are macros over there.
NUMBERS = (
    "ncclSuccess ncclUnhandledCudaError ncclSystemError ncclInternalError ncclInvalidArgument ncclInvalidUsage "
    "ncclRemoteError NCCL_LOG_NONE NCCL_LOG_VERSION NCCL_LOG_WARN NCCL_LOG_INFO NCCL_LOG_ABORT NCCL_LOG_TRACE "
    "NCCL_INIT NCCL_NET NCCL_ENV NCCL_NET_DEVICE_HOST NCCL_NET_DEVICE_UNPACK"
).split()
MEMBER = re.compile(r"/\*\s*(\d+)\s*\|\s*(\d+)\s*\*/\s*(.*);")


def headers_compiled(compiler, folder, headers):
    text = '#include "net.h"\n'
    for name in THEIRS:
        version = re.search(r"_v(\d+)_t", name)[1]
        if os.path.exists(os.path.join(headers, f"net_v{version}.h")):
            text += f"{name} *p_{name};\n"
    return compiled(text, compiler, folder, "theirs", headers)


# ---------------------------------------------------------------- layouts


def compiled(text, compiler, folder, name, include):
    source, target = os.path.join(folder, name + ".c"), os.path.join(folder, name + ".o")
    with open(source, "w", encoding="utf-8") as file:
        file.write(text)
    subprocess.run([compiler, "-g", "-fno-eliminate-unused-debug-types", "-I" + include, "-c", source, "-o", target], check=True)
    return target


def ours_compiled(root, compiler, folder):
    text = '#include "nccl_abi.h"\n'
    for name in sorted({SAME.get(name, name) for name in THEIRS}):
        text += f"{name} *p_{name};\n"
    # An enumeration that nothing uses leaves no debug information.
    text += "".join(f"int n_{name} = {name};\n" for name in NUMBERS)
    return compiled(text, compiler, folder, "ours", os.path.join(root, "net_plugin"))


def layouts(path, names):
    """{name: ([(offset, size, declaration)], total size)} and {enumerator: value}; declarations without versions."""
    command = ["gdb", "-batch", "-nx", "-ex", "set width 0"]
    for name in names:
        command += ["-ex", f"echo @@ {name}\\n", "-ex", f"ptype/o {name}"]
    for name in NUMBERS:
        command += ["-ex", f"echo @@ {name}\\n", "-ex", f"print/d (int){name}"]
    text = subprocess.run(command + [path], capture_output=True, text=True).stdout
    found = {}
    for part in text.split("@@ ")[1:]:
        name = part.split("\n", 1)[0].strip()
        members = [(int(m[1]), int(m[2]), normal(m[3])) for m in map(MEMBER.match, part.splitlines()) if m]
        total = re.search(r"total size \(bytes\):\s*(\d+)", part) or re.search(r"^\$\d+ = (\d+)", part, re.M)
        if total:
            found[name] = (members, int(total[1]))
    return found


def normal(declaration):
    declaration = re.sub(r"\b(ncclNet\w+?)_v\d+_t", r"\1", declaration)
    declaration = re.sub(r"\b(?:struct|enum) ", "", declaration)
    return re.sub(r"\s+", " ", declaration.strip())


def compare(ours, path, label):
    """How many types differ; None if the file knows none of them."""
    theirs = layouts(path, THEIRS)
    if "ncclNet_v12_t" not in theirs and "ncclNet_v11_t" not in theirs:
        print(f"note: {label} has no debug information about network plugins")
        return None
    wrong = 0
    for name in THEIRS + NUMBERS:
        own = SAME.get(name, name)
        if name not in theirs or ours.get(own) == theirs[name]:
            continue
        wrong += 1
        if own not in ours:
            print(f"{own}: not in nccl_abi.h")
            continue
        print(f"{name}: {theirs[name][1]} in {label}, {ours[own][1]} in {own}")
        for a, b in zip(theirs[name][0], ours[own][0]):
            if a != b:
                print(f"  NCCL {a}\n  ours {b}")
    unknown = [name for name in THEIRS if name not in theirs]
    print(f"{len(THEIRS) - len(unknown)} of {len(THEIRS)} types compared with {label}, {wrong} differ")
    if unknown:
        print(f"note: it does not know {', '.join(unknown)}")
    return wrong


def main():
    root, compiler = sys.argv[1:3]
    headers = os.environ.get("KVRAIL_NCCL_HEADERS")
    if not shutil.which("gdb"):
        skip("gdb is missing")
    paths, why = libraries()
    with tempfile.TemporaryDirectory() as folder:
        ours = layouts(ours_compiled(root, compiler, folder), sorted({SAME.get(name, name) for name in THEIRS}))
        results = [compare(ours, path, path) for path in paths]
        if headers:
            results.append(compare(ours, headers_compiled(compiler, folder, headers), headers))
    results = [wrong for wrong in results if wrong is not None]
    if not results:
        skip(why)
    sys.exit(1 if sum(results) else 0)


if __name__ == "__main__":
    main()
