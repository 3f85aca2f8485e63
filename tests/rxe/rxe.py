# SPDX-License-Identifier: Apache-2.0
"""rxe.py -- the commands rxe and rxe-pair: arguments, skip, exit status, what is kept of a failure"""
import argparse
import glob
import os
import shutil
import signal
import sys
import time

import guest
import image

EPILOG = """\
The guest runs this machine's own programs: its root is this machine's, read-only, with a writable layer that is
gone afterwards. Directory and environment are the caller's. Exit status: the command's own; 77 where QEMU, busybox or a
kernel cannot be had (the last line says what is missing), 124 after the time limit, 125 if the guest itself failed.
"""


def parser_of(name, description):
    parser = argparse.ArgumentParser(prog=name, description=description, epilog=EPILOG,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timeout", type=float, default=300, metavar="S", help="limit for everything (300)")
    parser.add_argument("--memory", type=int, default=2048, metavar="MB", help="memory of a guest (2048)")
    parser.add_argument("--cpus", type=int, default=2, metavar="N", help="processors of a guest (2)")
    parser.add_argument("--user", type=int, nargs="?", const=65534, metavar="UID",
                        help="run the command as this user (65534), not as root")
    parser.add_argument("--memlock", default="unlimited", metavar="KB", help="ulimit -l (unlimited); root ignores it")
    parser.add_argument("--ptrace-scope", type=int, default=0, choices=range(4), help="kernel.yama.ptrace_scope (0)")
    parser.add_argument("--writable", action="append", default=[], metavar="DIR",
                        help="a directory that the guest shares and may write to")
    parser.add_argument("--accel", choices=("auto", "kvm", "tcg"), default="auto", help="how QEMU runs (auto)")
    parser.add_argument("--verbose", action="store_true", help="say how long the guest took to come up")
    return parser


def accelerators(cache, wanted):
    """What to try. A /dev/kvm that let a guest hang is not tried again before the next boot of this machine."""
    if wanted != "auto":
        return [wanted]
    if not os.access("/dev/kvm", os.R_OK | os.W_OK) or os.path.exists(hanging_kvm(cache)):
        return ["tcg"]
    return ["kvm", "tcg"]


def hanging_kvm(cache):
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return os.path.join(cache, "kvm-hangs-" + file.read().strip())


def keep_logs(cache, guests, say):
    """The kernel's log of a failed run, whole in a file and the end of it here; of older runs the last few stay."""
    for old in sorted(glob.glob(os.path.join(cache, "failed-*")))[:-20]:
        shutil.rmtree(old, ignore_errors=True)
    folder = os.path.join(cache, f"failed-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}")
    os.makedirs(folder)
    for one in guests:
        path = os.path.join(folder, f"dmesg-{one.name}")
        with open(path, "wb") as file:
            file.write(one.console)
        since = one.console[one.run_at or 0:].decode(errors="replace").strip().splitlines()
        for line in since[-15:]:
            say(f"dmesg {one.name}: {line.strip()}")
        say(f"all of it is in {path}")


def main(name, parser, commands_of):
    args = parser.parse_args()
    commands = commands_of(args)
    args.writable = [os.path.realpath(path) for path in args.writable]

    def say(text):
        print(f"{name}: {text}", file=sys.stderr, flush=True)

    for number in signal.SIGTERM, signal.SIGINT, signal.SIGHUP:
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        folder = image.prepare(say)
    except image.Missing as why:
        print(f"skipped: {why}", flush=True)
        return guest.SKIPPED
    cache = image.cache_folder()
    accels = accelerators(cache, args.accel)
    rig = guest.Rig(folder, commands, args)
    failure = None
    try:
        rig.run(accels)
    except guest.Failed as why:
        failure = guest.BROKEN
        say(why)
    if rig.used == "tcg" and accels[0] == "kvm":
        open(hanging_kvm(cache), "w", encoding="ascii").close()
    statuses = [one.status for one in rig.guests]
    if args.verbose and rig.ready_s is not None:
        say(f"{rig.used}: ready after {rig.ready_s:.1f} s, {time.monotonic() - rig.began:.1f} s in all")
    if guest.TIMED_OUT in statuses:
        say(f"time limit of {args.timeout:.0f} s")
    status = failure or next((one for one in statuses if one), 0)
    complaints = [line for one in rig.guests for line in one.complaints()]
    if complaints:
        say(f"the guest's kernel complains: {complaints[0]}")
    if status not in (0, guest.SKIPPED) or complaints:
        keep_logs(cache, rig.guests, say)
    return status
