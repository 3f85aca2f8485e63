#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""verbs_nixl.py -- NIXL's wheel, by its own UCX over tests/softnic, for verbs.py: a batch of shuffled blocks from one process to
another, a list that was prepared before, from the call until NIXL says that it is done

usage: verbs_nixl.py BYTES ROUNDS

In an environment that softnic is in, by a Python that has the package nixl-cu12, as bench/peers.sh makes one. Prints the
nanoseconds of a block in the quickest batch; with SOFTNIC_MODE=copy the bytes are compared, too.

The wheel brings a libibverbs of its own: it is copied, and softnic lies there instead. UCX looks for the device's file: it gets a
/dev of its own, in a namespace that has one. Its queue pairs are connected over TCP on loopback.
"""
import contextlib
import glob
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile

import nixl_calls

LIMIT_S = 500
SETTINGS = {
    "UCX_TLS": "rc_verbs,tcp:aux", "UCX_NET_DEVICES": "softnic0:1,lo", "UCX_RC_VERBS_TX_MIN_SGE": "4",  # as many as softnic has
    "SOFTNIC_LINK": "infiniband",  # what kind a GID of RoCE is it asks the kernel
    "NIXL_LOG_LEVEL": "WARN",
}
DEV = """
mount -t tmpfs none "$0" && mkdir "$0/shm" "$0/infiniband" && mount --rbind /dev/shm "$0/shm" || exit
for file in null zero random urandom infiniband/softnic0; do
	: >"$0/$file" && mount --bind "/dev/$(case $file in i*) echo null ;; *) echo $file ;; esac)" "$0/$file" || exit
done
mount --rbind "$0" /dev && exec "$@"
"""


def link(source, target):
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)


def wheel_with_softnic(site):
    """NIXL's folders once more, there."""
    kept = os.path.dirname(os.path.dirname(importlib.util.find_spec("nixl_cu12").origin))
    softnic = next(path for folder in os.environ["LD_LIBRARY_PATH"].split(":")
                   if os.path.exists(path := os.path.join(folder, "libibverbs.so.1")))
    for name in "nixl_cu12", "nixl_cu12.libs", ".nixl_cu12.mesonpy.libs":
        shutil.copytree(os.path.join(kept, name), os.path.join(site, name), copy_function=link)
    own, = glob.glob(os.path.join(site, "nixl_cu12.libs", "libibverbs-*"))
    os.unlink(own)
    os.symlink(os.path.realpath(softnic), own)


def figure(size, rounds):
    """What the writer does, in a process of its own."""
    writer = nixl_calls.Writer("UCX", size)
    handle = writer.handle("WRITE", size)
    least = min(nixl_calls.transfer(writer.end.agent, handle)[1] for _ in range(rounds))
    if os.environ.get("SOFTNIC_MODE", "copy") == "copy":
        writer.compare()
    print(f"{least * 1e9 / nixl_calls.BLOCKS:.1f}", flush=True)
    os._exit(0)  # as nixl_calls.py


def run(words, env, log):
    with subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True) as child:
        try:
            return child.communicate(timeout=LIMIT_S)[0]
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)  # the other end, too


def main():
    world = f"nixl{os.getpid()}"
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as log:
        site, dev = os.path.join(folder, "site"), os.path.join(folder, "dev")
        os.mkdir(dev)
        wheel_with_softnic(site)
        env = dict(os.environ, SOFTNIC_WORLD=world, PYTHONPATH=":".join(filter(None, [site, os.environ.get("PYTHONPATH")])), **SETTINGS)
        try:
            said = run(["unshare", "-rm", "sh", "-c", DEV, dev, sys.executable, "-B", __file__, "writer", *sys.argv[1:]], env, log)
        finally:
            with contextlib.suppress(FileNotFoundError):  # who is killed leaves it
                os.unlink(f"/dev/shm/softnic.{os.geteuid()}.{world}")
        lines = said.splitlines()
        log.seek(0)
        print(lines[-1] if lines else sys.exit(log.read() + "verbs_nixl.py: no figure: NIXL says why above"))


if __name__ == "__main__":
    if sys.argv[1:2] == ["writer"]:
        figure(*map(int, sys.argv[2:]))
    elif len(sys.argv) == 3:
        main()
    else:
        sys.exit(__doc__)
