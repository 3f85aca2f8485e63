# SPDX-License-Identifier: Apache-2.0
"""wheels.py -- where the tests get NIXL from: PyPI's wheels, fetched once by pip and kept in the user's cache folder

Instead of these: the folder of site-packages that KVRAIL_NIXL names.
"""
import glob
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "nccl"))
from library import Unavailable, cache_folder, fetch, skip  # noqa: E402, F401

VERSION = "1.5.1"
OLDER = ("1.0.1", "1.2.0", "1.3.2", "1.4.1")  # with KVRAIL_LONG=1
NEWEST = "newest"  # with KVRAIL_LONG=1, too: what PyPI has that these are not
FETCH_S = 120


def site_packages(version):
    """A folder for sys.path with NIXL and numpy."""
    named = os.environ.get("KVRAIL_NIXL")
    if named and version == VERSION:
        return named
    if os.uname().machine != "x86_64":
        raise Unavailable(f"the tests know NIXL's wheels for x86_64 only, not for {os.uname().machine}")
    if version == NEWEST:  # without the package nixl, of which there are versions that ask for a nixl-cu12 that nobody has (1.5.2)
        version = newest()
        return unpacked(version, [f"nixl-cu12=={version}", "numpy"])
    return unpacked(version, [f"nixl=={version}", f"nixl-cu12=={version}", "numpy"])


def newest():
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--no-deps", "--only-binary", ":all:", "--quiet",
               "--disable-pip-version-check", "--retries", "0", "--timeout", "10", "--report", "-", "nixl-cu12"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_S, check=True).stdout
        version = json.loads(told)["install"][0]["metadata"]["version"]
    except (subprocess.SubprocessError, ValueError) as error:
        raise Unavailable(f"pip does not say which nixl-cu12 is the newest: {error}") from error
    if version in (VERSION, *OLDER):
        raise Unavailable(f"the newest NIXL is {version}, which has tests of its own")
    return version


def pytest_packages():
    """A folder for sys.path with pytest, or "" where it is installed."""
    if importlib.util.find_spec("pytest"):
        return ""
    return unpacked("pytest", ["pytest", "pluggy", "iniconfig", "packaging", "pygments"])


def unpacked(name, packages):
    """A folder that is kept, with these packages of PyPI."""
    kept = os.path.join(cache_folder("nixl"), f"{name}-py{sys.version_info[0]}{sys.version_info[1]}")
    if os.path.exists(kept):
        return kept
    try:
        os.makedirs(cache_folder("nixl"), exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache_folder("nixl")) as folder:
            fetch(folder, packages, FETCH_S)
            for wheel in glob.glob(os.path.join(folder, "*.whl")):
                shutil.unpack_archive(wheel, os.path.join(folder, "all"), "zip")
            os.rename(os.path.join(folder, "all"), kept)
    except OSError as error:
        raise Unavailable(f"{name}: {error}") from error
    return kept


def site_with(file, folder, version=VERSION):
    """Those of site_packages once more, in a folder of the caller's; with this plugin beside NIXL's, if there is one."""
    kept = site_packages(version)
    try:
        shutil.copytree(kept, folder, copy_function=os.link, symlinks=True)
    except (OSError, shutil.Error):  # another file system
        shutil.rmtree(folder)
        shutil.copytree(kept, folder, symlinks=True)
    if file:
        os.symlink(file, os.path.join(os.path.dirname(plugin(folder)), os.path.basename(file)))
    return folder


def plugin(folder, name="UCX"):
    found = glob.glob(os.path.join(folder, ".nixl_cu1?.mesonpy.libs", "plugins", f"libplugin_{name}.so"))
    if not found:
        raise Unavailable(f"{folder} holds no libplugin_{name}.so of NIXL")
    return found[0]
