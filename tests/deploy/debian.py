# SPDX-License-Identifier: Apache-2.0
"""debian.py -- programs of Debian that a test unpacks into a folder of its own, so that no daemon is installed"""
import glob
import os
import subprocess
import sys


def skip(why):
    print(f"skipped: {why}")
    sys.exit(77)


def unpacked(folder, wanted, packages):
    """The root of the packages, fetched by apt and unpacked below `folder`; `wanted` is a file in it that says that it is whole."""
    root = os.path.join(folder, "debian-" + packages[0])
    if os.path.exists(os.path.join(root, wanted)):
        return root
    os.makedirs(root, exist_ok=True)
    for command in (["apt-get", "update", "-q"], ["apt-get", "download", "-q", *packages]):
        try:
            done = subprocess.run(command, cwd=root, check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        except FileNotFoundError:
            skip(f"no apt-get here, which would fetch {' '.join(packages)}")
    if done.returncode:
        skip(f"apt-get download {' '.join(packages)}: {done.stdout.strip()[-200:]}")
    for package in glob.glob(os.path.join(root, "*.deb")):
        subprocess.run(["dpkg", "-x", package, root], check=True)
    return root
