#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""nixl.py -- NIXL's wheel moves blocks over softnic by its own UCX, and their bytes are compared: bench/verbs_nixl.py

usage: nixl.py LIBRARY_FOLDER
"""
import os
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "nixl"))
import wheels  # noqa: E402

PROGRAM = os.path.join(HERE, "..", "..", "bench", "verbs_nixl.py")


def main():
    try:
        site = wheels.site_packages(wheels.VERSION)
    except wheels.Unavailable as error:
        wheels.skip(error)
    refused = subprocess.run(["unshare", "-rm", "true"], stderr=subprocess.PIPE, text=True, check=False)
    if refused.returncode:
        wheels.skip(f"a namespace with a /dev of its own: {refused.stderr.strip()}")
    env = dict(os.environ, LD_LIBRARY_PATH=sys.argv[1], PYTHONPATH=site)
    done = subprocess.run([sys.executable, "-B", PROGRAM, "16384", "3"], env=env, stderr=subprocess.PIPE, text=True, check=False)
    print(done.stderr, end="")
    if "process_vm_writev is not permitted" in done.stderr:
        wheels.skip("processes may not write to each other's memory")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
