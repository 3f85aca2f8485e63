# SPDX-License-Identifier: Apache-2.0
"""rig_test.py -- the guest itself: what it passes on, and that rxe0 and rxe1 reach each other as perftest sees it"""
import os
import shutil
import subprocess
import sys
import tempfile

import image

HERE = os.path.dirname(os.path.abspath(__file__))
STRANGER = 65534
IN_GUEST = r"""
echo to stdout; echo to stderr >&2
echo "directory $(pwd) marker $RXE_TEST_MARKER"
echo "user $(id -u) memlock $(ulimit -l) ptrace $(cat /proc/sys/kernel/yama/ptrace_scope)"
ibv_devinfo | sed -n 's/.*state:\s*/state /p; s/^hca_id:\s*/device /p'
payload() { cat /sys/class/net/eth0/statistics/tx_bytes; }
sent() { cat /sys/class/infiniband/rxe0/ports/1/hw_counters/sent_pkts; }
before=$(payload) packets=$(sent)
ib_write_bw -d rxe1 -x 1 -s 65536 -n 100 -F >/dev/null 2>&1 &
./await_port.sh 18515
ib_write_bw -d rxe0 -x 1 -s 65536 -n 100 -F 10.77.0.2 | tail -n 2
wait
for _ in $(seq 100); do # the device counts a packet when it has sent it, which the answer may overtake
	[ $(($(sent) - packets)) -ge 1600 ] && break
	sleep 0.1
done
echo "wire $(($(payload) - before)) packets $(($(sent) - packets))"
ibv_rc_pingpong -d rxe1 -g 1 -n 100 >/dev/null 2>&1 &
./await_port.sh 18515
ibv_rc_pingpong -d rxe0 -g 1 -n 100 10.77.0.2 | tail -n 1
"$1" && echo "ran from a folder of root's"
echo changed >/usr/rxe-was-here 2>/dev/null && echo "wrote to the root"
exit 3
"""


def check(truth, what):
    if not truth:
        print(f"failed: {what}")
        sys.exit(1)


def open_folder():
    """A folder for temporary files on whose way everybody may go: TMPDIR may lie in one of root's, as the tree may."""
    for folder in (tempfile.gettempdir(), "/tmp", "/var/tmp"):
        if subprocess.run(["test", "-x", folder], user=STRANGER, group=STRANGER, extra_groups=[], cwd="/", check=False).returncode == 0:
            return folder
    return None


def run_as_an_ordinary_user():
    """Root's part is none: a stranger with a cache of its own comes to the same end, and nothing of it runs on."""
    folder = open_folder()
    check(folder, "as an ordinary user: there is a folder for temporary files that everybody may enter")
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        made = image.prepare(print)
        # The tree may lie where that user may not go.
        rig = shutil.copytree(HERE, os.path.join(cache, "rig"), ignore=shutil.ignore_patterns("*.c", "*.h", "__pycache__"))
        shutil.copytree(made, os.path.join(cache, "kvrail-rxe", os.path.basename(made)))
        for folder, _, files in os.walk(cache):
            for path in (folder, *(os.path.join(folder, name) for name in files)):
                os.chown(path, STRANGER, STRANGER)
        got = subprocess.run([os.path.join(rig, "rxe"), "--timeout", "1150", "sh", "-c", "rdma link; exit 7"],
                             env={"PATH": os.environ["PATH"], "XDG_CACHE_HOME": cache}, cwd="/", user=STRANGER, group=STRANGER,
                             extra_groups=[], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
        print(got.stdout + got.stderr, end="")
        check(got.returncode == 7, f"as an ordinary user: exit status {got.returncode}, not the command's 7")
        check(got.stdout.count("state ACTIVE") == 2, "as an ordinary user: two active devices")
        kept = [name for name in os.listdir(os.path.join(cache, "kvrail-rxe")) if name.startswith("failed-")]
        check(kept, "as an ordinary user: the kernel's log of the failure is kept")


def main():
    env = dict(os.environ, RXE_TEST_MARKER="it's \"quoted\" $here")
    with tempfile.TemporaryDirectory() as private:  # mode 0700
        program = os.path.join(private, "program")
        shutil.copy("/bin/true", program)
        got = subprocess.run([os.path.join(HERE, "rxe"), "--verbose", "--timeout", "1150", "--memlock", "4096", "--user",
                              "--ptrace-scope", "1", "sh", "-c", IN_GUEST, "sh", program],
                             env=env, cwd=HERE, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
    print(got.stdout + got.stderr, end="")
    if got.returncode == 77:
        sys.exit(77)
    check(got.returncode == 3, f"exit status {got.returncode}, not the command's 3")
    check("to stdout" in got.stdout and "to stderr" in got.stderr, "stdout and stderr arrive separately")
    check(f"directory {HERE} marker it's \"quoted\" $here" in got.stdout, "directory and environment are the caller's")
    check("user 65534 memlock 4096 ptrace 1" in got.stdout, "user, memlock and ptrace_scope are as asked")
    check(got.stdout.count("state PORT_ACTIVE") == 2, "two active devices")
    numbers = [line.split() for line in got.stdout.splitlines() if line.startswith("wire ")]
    check(numbers and int(numbers[0][1]) >= 100 * 65536, "the wire carried the payload")
    check(int(numbers[0][3]) >= 100 * 16, "the device counted its packets")
    check("usec/iter" in got.stdout, "ibv_rc_pingpong ended well")
    check("ran from a folder of root's" in got.stdout, "an ordinary user runs a program in a folder of mode 0700")
    check("wrote to the root" not in got.stdout, "an ordinary user does not write to /usr")
    check(not os.path.exists("/usr/rxe-was-here"), "the host's root is unchanged")
    if os.geteuid() == 0 and os.environ.get("KVRAIL_LONG") == "1":
        run_as_an_ordinary_user()  # boots a guest of its own


if __name__ == "__main__":
    main()
