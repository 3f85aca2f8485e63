# SPDX-License-Identifier: Apache-2.0
"""podman.py -- deploy/Dockerfile built, and the two containers of compose.yml run, by podman, where there is no docker

usage: podman.py ROOT FOLDER

Debian's packages are unpacked in FOLDER, and the base image is a Debian that mmdebstrap makes: no registry is asked. The containers have
the commands and the names of compose.yml, and share one network. Needs root. Nothing of it stays: what podman mounts, and the links and the
netfilter tables of its networks, are in namespaces that end with this process.
"""
import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
import time

import yaml

from debian import skip, unpacked

PACKAGES = ("podman", "conmon", "runc", "netavark", "aardvark-dns", "iptables", "golang-github-containers-common",
            "golang-github-containers-image", "libgpgme11", "libassuan0",
            "libsubid4", "libdevmapper1.02.1", "libseccomp2", "libxtables12", "libnftnl11", "libip4tc2", "libip6tc2", "libmnl0",
            "libnetfilter-conntrack3", "libnfnetlink0")
BASE = "docker.io/library/debian:12-slim"  # as the Dockerfile names it
BUILD_S, RUN_S, UP_S = 3000, 600, 60
CONTAINERS = """[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "none"
conmon_path = ["{root}/usr/bin/conmon"]
helper_binaries_dir = ["{root}/usr/lib/podman"]
[engine.runtimes]
runc = ["{work}/bin/runc"]
[network]
network_backend = "netavark"
[containers]
seccomp_profile = "{root}/usr/share/containers/seccomp.json"
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
"""
CLONE_NEWNS, CLONE_NEWNET = 0x00020000, 0x40000000
STORAGE = '[storage]\ndriver = "{driver}"\ngraphroot = "{work}/store"\nrunroot = "{work}/run"\n'


def into_namespaces(flags):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(flags):
        skip(f"no namespaces here: {os.strerror(ctypes.get_errno())}")


def storage_driver(work):
    """overlay, where it can be mounted on that file system: vfs copies the whole image for each layer."""
    names = [os.path.join(work, "try", name) for name in ("lower", "upper", "work", "merged")]
    for name in names:
        os.makedirs(name)
    lower, upper, inner, merged = names
    done = subprocess.run(["mount", "-t", "overlay", "overlay", "-o", f"lowerdir={lower},upperdir={upper},workdir={inner}", merged],
                          check=False, stderr=subprocess.DEVNULL)
    if not done.returncode:
        subprocess.run(["umount", merged], check=True)
    return "vfs" if done.returncode else "overlay"


class Podman:
    def __init__(self, root, work):
        self.program = f"{root}/usr/bin/podman"
        libraries = f"{root}/usr/lib/{os.uname().machine}-linux-gnu"
        self.env = {**os.environ, "HOME": work, "LD_LIBRARY_PATH": libraries, "PATH": f"{work}/bin:{root}/usr/bin:{os.environ['PATH']}",
                    "CONTAINERS_CONF": f"{work}/containers.conf", "CONTAINERS_STORAGE_CONF": f"{work}/storage.conf"}
        for name, text in (("containers.conf", CONTAINERS), ("storage.conf", STORAGE)):
            with open(f"{work}/{name}", "w", encoding="utf-8") as file:
                file.write(text.format(root=root, work=work, driver=storage_driver(work) if text is STORAGE else ""))
        os.makedirs(f"{work}/.config/containers")
        shutil.copy(f"{root}/etc/containers/policy.json", f"{work}/.config/containers")
        os.mkdir(f"{work}/bin")
        # These are started with an environment of their own.
        for name, program in (("runc", "sbin/runc"), ("iptables", "sbin/xtables-nft-multi iptables"), ("ip6tables", "sbin/xtables-nft-multi ip6tables")):
            with open(f"{work}/bin/{name}", "w", encoding="utf-8", opener=lambda path, flags: os.open(path, flags, 0o755)) as file:
                file.write(f'#!/bin/sh\nexport LD_LIBRARY_PATH={libraries} XTABLES_LIBDIR={libraries}/xtables\nexec {root}/usr/{program} "$@"\n')

    def __call__(self, *words, seconds=RUN_S, may_fail=False):
        done = subprocess.run([self.program, *words], env=self.env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=seconds)
        if done.returncode and not may_fail:
            sys.exit(f"podman {' '.join(words)}: exit status {done.returncode}\n{done.stdout[-4000:]}")
        self.said = done.stdout
        return done.stdout if not done.returncode else None


def two_containers(podman, services):
    network = f"kvrail-test-{os.getpid()}"
    podman("network", "create", network)
    try:
        podman("run", "--detach", "--name", "decode", "--network", network, "kvrail", *services["decode"]["command"])
        check = services["decode"]["healthcheck"]["test"][1:]
        end = time.monotonic() + UP_S
        while podman("exec", "decode", *check, may_fail=True) is None:
            if time.monotonic() > end:
                sys.exit(f"decode does not listen after {UP_S} s:\n{podman('logs', 'decode')}")
            time.sleep(0.2)
        said = podman("run", "--rm", "--name", "prefill", "--network", network, "kvrail", *services["prefill"]["command"])
        said += podman("logs", "decode")
    finally:
        podman("rm", "--force", "--all", "--time", "0", may_fail=True)
        podman("network", "rm", network, may_fail=True)
    print(said)
    for wanted in ("# transport tcp", "# wrong bytes: 0 OK", "checked, 0 wrong bytes: OK"):  # nothing of one host is shared
        if wanted not in said:
            sys.exit(f"the containers did not say {wanted!r}")


def main(tree, folder):
    if os.geteuid() or not shutil.which("mmdebstrap"):
        skip("it needs root, and mmdebstrap")
    root = os.path.realpath(unpacked(folder, "usr/bin/podman", PACKAGES))
    with open(f"{tree}/deploy/compose.yml", encoding="utf-8") as file:
        services = yaml.safe_load(file)["services"]
    into_namespaces(CLONE_NEWNS)
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    work = tempfile.mkdtemp(prefix="kvrail-podman.", dir=os.environ.get("TMPDIR", "/var/tmp"))
    try:
        made = subprocess.run(["mmdebstrap", "--variant=minbase", "bookworm", f"{work}/base.tar"], text=True, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT)
        if made.returncode:
            skip(f"mmdebstrap cannot make a Debian 12 here: {made.stdout.strip()[-200:]}")
        podman = Podman(root, work)
        podman("import", f"{work}/base.tar", BASE)
        if podman("run", "--rm", "--network", "host", BASE, "true", may_fail=True) is None:
            skip(f"podman can run no container here: {podman.said.strip()[-300:]}")
        podman("build", "--pull=never", "--network", "host", "--ignorefile", f"{tree}/deploy/Dockerfile.dockerignore",
               "-f", f"{tree}/deploy/Dockerfile", "-t", "kvrail", tree, seconds=BUILD_S)
        into_namespaces(CLONE_NEWNET)  # nothing is fetched any more
        print(podman("run", "--rm", "kvrail").splitlines()[-1])  # the doctor
        two_containers(podman, services)
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
