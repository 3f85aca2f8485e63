# SPDX-License-Identifier: Apache-2.0
"""wheels.py -- where the tests get NIXL from: PyPI's wheels, fetched once by pip and kept in the user's cache folder

Instead of these: the folder of site-packages that KVRAIL_NIXL names.
"""
import glob
import os
import shutil
import subprocess
import sys
import tempfile

VERSION = "1.5.1"
OLDER = ("1.0.1", "1.2.0", "1.3.2", "1.4.1")  # with KVRAIL_LONG=1
FETCH_S = 120


class Unavailable(Exception):
    """says why there is none"""


def skip(reason):
    print(f"skipped: {reason}")
    sys.exit(77)


def cache_folder():
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(base, "kvrail-nixl")


def install(folder, packages):
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-cache-dir", "--no-deps"]
    command += ["--only-binary", ":all:", "--no-compile", "--retries", "0", "--timeout", "10", "--target", folder, *packages]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_S)
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"pip did not fetch {packages[0]} in {FETCH_S} s") from error
    if run.returncode:
        last = (run.stderr.strip() or "no word of why").splitlines()[-1]
        raise Unavailable(f"pip cannot fetch {' '.join(packages)}: {last}")


def site_packages(version):
    """A folder for sys.path with NIXL and numpy."""
    named = os.environ.get("KVRAIL_NIXL")
    if named and version == VERSION:
        return named
    if os.uname().machine != "x86_64":
        raise Unavailable(f"the tests know NIXL's wheels for x86_64 only, not for {os.uname().machine}")
    kept = os.path.join(cache_folder(), f"{version}-py{sys.version_info[0]}{sys.version_info[1]}")
    if os.path.exists(kept):
        return kept
    try:
        os.makedirs(cache_folder(), exist_ok=True)
        folder = tempfile.mkdtemp(dir=cache_folder())
        try:
            install(folder, [f"nixl=={version}", f"nixl-cu12=={version}", "numpy"])
            os.rename(folder, kept)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise Unavailable(f"NIXL {version}: {error}") from error
    return kept


def plugin(folder, name="UCX"):
    found = glob.glob(os.path.join(folder, ".nixl_cu1?.mesonpy.libs", "plugins", f"libplugin_{name}.so"))
    if not found:
        raise Unavailable(f"{folder} holds no libplugin_{name}.so of NIXL")
    return found[0]
