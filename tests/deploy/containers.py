# SPDX-License-Identifier: Apache-2.0
"""containers.py -- deploy/Dockerfile built, and deploy/compose.yml run by docker-compose, with a Docker daemon of its own

usage: containers.py ROOT FOLDER

Debian's packages are unpacked in FOLDER, and the base image is a Debian that mmdebstrap makes: no registry is asked. Needs root. Nothing of
it stays: the daemon, what it mounts, and the links and netfilter tables of its networks, are in namespaces that end with this program.
"""
import glob
import os
import shutil
import subprocess
import sys
import tempfile
import time

from debian import skip, unpacked

PACKAGES = ("docker.io", "containerd", "runc", "iptables", "docker-compose", "python3-docker", "python3-dockerpty", "python3-docopt",
            "python3-texttable", "python3-dotenv", "python3-jsonschema", "python3-yaml", "python3-requests", "python3-websocket",
            "python3-distro", "python3-attr", "python3-pyrsistent", "python3-urllib3", "python3-six", "python3-certifi", "python3-chardet",
            "python3-charset-normalizer", "python3-idna", "libxtables12", "libnftnl11", "libip4tc2", "libip6tc2", "libmnl0",
            "libnetfilter-conntrack3", "libnfnetlink0", "libdevmapper1.02.1", "libseccomp2")
PROGRAMS = ("bin/docker", "sbin/dockerd", "bin/containerd", "bin/containerd-shim-runc-v2", "sbin/runc", "sbin/docker-proxy",
            "sbin/iptables-nft", "sbin/ip6tables-nft")
BASE = "debian:12-slim"  # as the Dockerfile names it
BUILD_S, RUN_S, UP_S = 3000, 900, 120
APART = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
NO_NETWORK = ["--bridge=none", "--iptables=false", "--ip-masq=false", "--ip-forward=false"]


class Docker:
    def __init__(self, root, work):
        libraries = f"{root}/usr/lib/{os.uname().machine}-linux-gnu"
        self.work, self.root, self.daemon = work, root, None
        os.mkdir(f"{work}/bin")
        for program in PROGRAMS:  # they start each other with environments of their own
            name = os.path.basename(program).removesuffix("-nft")
            with open(f"{work}/bin/{name}", "w", encoding="utf-8", opener=lambda path, flags: os.open(path, flags, 0o755)) as file:
                file.write(f'#!/bin/sh\nexport LD_LIBRARY_PATH={libraries} XTABLES_LIBDIR={libraries}/xtables\nexec {root}/usr/{program} "$@"\n')
        self.env = {**os.environ, "HOME": work, "PATH": f"{work}/bin:{os.environ['PATH']}", "DOCKER_HOST": f"unix://{work}/socket",
                    "DOCKER_BUILDKIT": "1", "PYTHONPATH": f"{root}/usr/lib/python3/dist-packages"}

    def start(self, before, options):
        log = f"{self.work}/log"
        command = f'ip link set lo up; exec dockerd -H unix://{self.work}/socket --data-root {self.work}/data --exec-root {self.work}/exec ' \
                  f'-p {self.work}/pid --cgroup-parent {os.path.basename(self.work)} {" ".join(options)} >{log} 2>&1'
        with subprocess.Popen([*before, "sh", "-c", command], env=self.env) as daemon:
            self.daemon = daemon
            end = time.monotonic() + UP_S
            while self("version", may_fail=True) is None:
                if daemon.poll() is not None or time.monotonic() > end:
                    with open(log, encoding="utf-8") as file:
                        skip(f"no Docker daemon can run here: {file.read().strip()[-300:]}")
                time.sleep(0.2)
            yield
            daemon.terminate()

    def __call__(self, *words, program=("docker",), seconds=RUN_S, may_fail=False):
        done = subprocess.run([*program, *words], env=self.env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=seconds)
        if done.returncode and not may_fail:
            sys.exit(f"{program[-1]} {' '.join(words)}: exit status {done.returncode}\n{done.stdout[-4000:]}")
        return done.stdout if not done.returncode else None

    def compose(self, tree, *words):
        return self("-f", f"{tree}/deploy/compose.yml", "-p", "kvrail", *words,
                    program=(sys.executable, f"{self.root}/usr/bin/docker-compose"))


def inside(tree, root, work):
    """In namespaces of its own; the folder `work` is thrown away afterwards."""
    made = subprocess.run(["mmdebstrap", "--variant=minbase", "bookworm", f"{work}/base.tar"], text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT)
    if made.returncode:
        skip(f"mmdebstrap cannot make a Debian 12 here: {made.stdout.strip()[-200:]}")
    docker = Docker(root, work)
    proxies = [f"--build-arg={name}" for name in ("http_proxy", "https_proxy", "no_proxy") if name in os.environ]
    for _ in docker.start([], NO_NETWORK):  # it fetches packages, over this machine's network, which it leaves as it is
        docker("import", f"{work}/base.tar", BASE)
        docker("build", "--network", "host", *proxies, "-f", f"{tree}/deploy/Dockerfile", "-t", "kvrail", tree, seconds=BUILD_S)
    for _ in docker.start(["unshare", "--net"], []):
        print(docker("run", "--rm", "kvrail").splitlines()[-1])  # the doctor
        said = docker.compose(tree, "up", "--no-build", "--no-color", "--exit-code-from", "prefill")
        docker.compose(tree, "down")
    print(said)
    for wanted in ("# transport tcp", "# wrong bytes: 0 OK"):  # nothing of one host is shared
        if wanted not in said:
            sys.exit(f"the containers did not say {wanted!r}")


def remove_groups(name):
    """A control group stays for a moment after its last process."""
    end = time.monotonic() + UP_S
    while (groups := glob.glob(f"/sys/fs/cgroup/{name}") + glob.glob(f"/sys/fs/cgroup/*/{name}")) and time.monotonic() < end:
        subprocess.run(["find", *groups, "-depth", "-type", "d", "-exec", "rmdir", "{}", ";"], check=False, stderr=subprocess.DEVNULL)
        time.sleep(0.2)


def main(tree, folder):
    if os.geteuid() or not shutil.which("mmdebstrap"):
        skip("it needs root, and mmdebstrap")
    if subprocess.run([*APART, "true"], check=False, stderr=subprocess.DEVNULL).returncode:
        skip("no namespaces here")
    root = os.path.realpath(unpacked(folder, "usr/sbin/dockerd", PACKAGES))
    work = tempfile.mkdtemp(prefix="kvrail-docker.", dir=os.environ.get("TMPDIR", "/var/tmp"))
    try:
        done = subprocess.run([*APART, sys.executable, "-B", os.path.abspath(__file__), "--inside", os.path.abspath(tree), root, work], check=False)
    finally:
        shutil.rmtree(work, ignore_errors=True)
        remove_groups(os.path.basename(work))
    sys.exit(done.returncode)


if __name__ == "__main__":
    if sys.argv[1] == "--inside":
        inside(*sys.argv[2:])
    else:
        main(*sys.argv[1:])
