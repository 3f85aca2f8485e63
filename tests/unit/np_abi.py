# SPDX-License-Identifier: Apache-2.0
"""np_abi.py -- every struct of nccl_abi.h has the members, offsets and types that a shipped libnccl has

usage: np_abi.py ROOT COMPILER [LIBNCCL]

Both layouts are read by gdb from debug information: ours from nccl_abi.h compiled on the spot, NCCL's from the library.
It is found by KVRAIL_LIBNCCL, or where `pip install nvidia-nccl-cu13` puts it.
"""
import glob
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile

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
MEMBER = re.compile(r"/\*\s*(\d+)\s*\|\s*(\d+)\s*\*/\s*(.*);")


def skip(reason):
    print(f"skipped: {reason}")
    sys.exit(77)


def find_library():
    named = os.environ.get("KVRAIL_LIBNCCL")
    if named:
        return named
    for folder in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for path in glob.glob(os.path.join(folder, "nvidia", "nccl", "lib", "libnccl.so.2")):
            return path
    skip("no libnccl with debug information: pip install nvidia-nccl-cu13, or set KVRAIL_LIBNCCL to a libnccl.so.2")


def compile_ours(root, compiler, folder):
    source = os.path.join(folder, "types.c")
    with open(source, "w", encoding="utf-8") as file:
        file.write('#include "nccl_abi.h"\n')
        for name in sorted({SAME.get(name, name) for name in THEIRS}):
            file.write(f"{name} *p_{name};\n")
    target = os.path.join(folder, "types.o")
    subprocess.run([compiler, "-g", "-I" + os.path.join(root, "net_plugin"), "-c", source, "-o", target], check=True)
    return target


def layouts(path, names):
    """{name: ([(offset, size, declaration)], total size)}, declarations without the versions of other types."""
    command = ["gdb", "-batch", "-nx", "-ex", "set width 0"]
    for name in names:
        command += ["-ex", f"echo @@ {name}\\n", "-ex", f"ptype/o {name}"]
    text = subprocess.run(command + [path], capture_output=True, text=True).stdout
    found = {}
    for part in text.split("@@ ")[1:]:
        name = part.split("\n", 1)[0].strip()
        members = [(int(m[1]), int(m[2]), normal(m[3])) for m in map(MEMBER.match, part.splitlines()) if m]
        total = re.search(r"total size \(bytes\):\s*(\d+)", part)
        if total:
            found[name] = (members, int(total[1]))
    return found


def normal(declaration):
    declaration = re.sub(r"\b(ncclNet\w+?)_v\d+_t", r"\1", declaration)
    declaration = re.sub(r"\b(?:struct|enum) ", "", declaration)
    return re.sub(r"\s+", " ", declaration.strip())


def main():
    root, compiler = sys.argv[1:3]
    if not shutil.which("gdb"):
        skip("gdb is missing")
    library = sys.argv[3] if len(sys.argv) > 3 else find_library()
    with tempfile.TemporaryDirectory() as folder:
        ours = layouts(compile_ours(root, compiler, folder), sorted({SAME.get(name, name) for name in THEIRS}))
    theirs = layouts(library, THEIRS)
    if "ncclNet_v12_t" not in theirs and "ncclNet_v11_t" not in theirs:
        skip(f"{library} has no debug information about network plugins")
    wrong = 0
    for name in THEIRS:
        own = SAME.get(name, name)
        if own not in ours:
            print(f"{own}: not in nccl_abi.h")
            wrong += 1
        elif name in theirs and ours[own] != theirs[name]:
            wrong += 1
            print(f"{name}: {theirs[name][1]} bytes in NCCL, {ours[own][1]} in {own}")
            for a, b in zip(theirs[name][0], ours[own][0]):
                if a != b:
                    print(f"  NCCL {a}\n  ours {b}")
    compared = [name for name in THEIRS if name in theirs]
    print(f"{len(compared)} of {len(THEIRS)} types compared with {os.path.basename(library)}, {wrong} differ")
    for name in sorted(set(THEIRS) - set(compared)):
        print(f"note: the library does not know {name}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
