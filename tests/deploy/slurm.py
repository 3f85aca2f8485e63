# SPDX-License-Identifier: Apache-2.0
"""slurm.py -- deploy/sbatch.sh as a job of a real Slurm with one node: this machine

usage: slurm.py ROOT KVRAIL FOLDER

The daemons are processes of this test, with settings, keys and sockets of their own on loopback. Debian's packages are unpacked in FOLDER.
"""
import getpass
import os
import re
import socket
import subprocess
import sys
import tempfile
import time

from debian import skip, unpacked

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from ports import held_port  # noqa: E402

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "slurm-wlm-basic-plugins", "munge", "libmunge2", "liblua5.1-0", "libhwloc15")
LIMIT_S = 200
SETTINGS = """ClusterName=kvrail
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthInfo=socket={work}/munge.socket
PluginDir={plugins}
StateSaveLocation={work}
SlurmdSpoolDir={work}
SlurmctldPidFile={work}/slurmctld.pid
SlurmdPidFile={work}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
FirstJobId={job}
NodeName={host} NodeAddr=127.0.0.1 CPUs=2
PartitionName=all Nodes=ALL Default=YES State=UP
"""


class Slurm:
    """munged, slurmctld and slurmd; each ends with the `with`."""

    def __init__(self, root, work, programs):
        usr = os.path.join(root, "usr")
        libraries = os.path.join(usr, "lib", os.uname().machine + "-linux-gnu")
        plugins = os.path.join(libraries, "slurm-wlm")
        self.work, self.sbin, self.daemons = work, os.path.join(usr, "sbin"), []
        self.env = {**os.environ, "SLURM_CONF": f"{work}/slurm.conf", "LD_LIBRARY_PATH": f"{libraries}:{plugins}",
                    "PATH": f"{programs}:{usr}/bin:{os.environ['PATH']}"}
        with open(f"{work}/slurm.conf", "w", encoding="utf-8") as file:
            file.write(SETTINGS.format(host=socket.gethostname().split(".")[0], ports=(held_port(), held_port()), user=getpass.getuser(), work=work,
                                       plugins=plugins, job=10 + os.getpid() % 9000))
        with open(f"{work}/munge.key", "wb", opener=lambda path, flags: os.open(path, flags, 0o400)) as file:
            file.write(os.urandom(1024))

    def start(self, program, *arguments):
        with open(f"{self.work}/{program}.out", "w", encoding="utf-8") as out:
            self.daemons.append(subprocess.Popen([f"{self.sbin}/{program}", *arguments], env=self.env, stdout=out, stderr=out))

    def __enter__(self):
        names = ("socket", "key-file", "pid-file", "seed-file", "log-file")
        self.start("munged", "--foreground", "--force", *(f"--{name}={self.work}/munge.{name.split('-')[0]}" for name in names))
        self.until("munged", lambda: os.path.exists(f"{self.work}/munge.socket"))
        self.start("slurmctld-wlm", "-D", "-i")
        self.start("slurmd-wlm", "-D", "-d", f"{self.sbin}/slurmstepd-wlm")
        self.until("an idle node", lambda: "idle" in self.say("sinfo", "--noheader", "-o", "%t"))
        return self

    def __exit__(self, *_):
        for daemon in reversed(self.daemons):
            daemon.terminate()
            daemon.wait()

    def say(self, *command):
        done = subprocess.run(command, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
                              timeout=LIMIT_S)
        self.status = done.returncode
        return done.stdout

    def until(self, what, ready):
        end = time.monotonic() + LIMIT_S
        while not ready():
            ended = [daemon.args[0] for daemon in self.daemons if daemon.poll() is not None]
            if ended or time.monotonic() > end:
                for name in sorted(os.listdir(self.work)):
                    if name.endswith((".out", ".log")):
                        print(f"--- {name}\n" + open(f"{self.work}/{name}", encoding="utf-8").read()[-3000:])
                sys.exit(f"{what}: not in {LIMIT_S} s{', ended: ' * bool(ended)}{' '.join(ended)}")
            time.sleep(0.1)


def main(tree, kvrail, folder):
    try:
        socket.gethostbyname(socket.gethostname())
    except OSError:
        skip("the name of this host has no address, and Slurm knows a node by its name")
    root = unpacked(folder, "usr/sbin/munged", PACKAGES)
    with tempfile.TemporaryDirectory() as work, Slurm(root, work, os.path.dirname(kvrail)) as slurm:
        submitted = slurm.say("sbatch", "--wait", "--nodes=1", f"--output={work}/job", f"{tree}/deploy/sbatch.sh", "-e", "4K")
        said = open(f"{work}/job", encoding="utf-8").read() if os.path.exists(f"{work}/job") else ""
    print(submitted + said)
    for wanted in (r"^\d: .*\d+ ok, ", r"^# transport shm", "MiB checked, 0 wrong bytes: OK"):
        if not re.search(wanted, said, re.MULTILINE):
            sys.exit(f"the job did not print what matches {wanted!r}")
    sys.exit(slurm.status)  # the job's


if __name__ == "__main__":
    main(*sys.argv[1:])
