#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""chaos.py -- faults made to processes that move blocks for ever; every byte, error and deadline is looked at

Worlds of some receivers and senders (chaos_peer), over each way of one host, live through one fault after another. After each one
every pair must move blocks again, nothing may be wrong, late, untyped or overdue, and what a process holds must be what it was."""
import argparse
import collections
import ctypes
import os
import random
import resource
import shutil
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time

import report
from report import FAULTY

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from ports import held_port  # noqa: E402

HERE = os.path.dirname(os.path.abspath(__file__))
IDS, CODES = 8, 80
FIELDS = ("ready connected good bytes taken_back failed quarantined checked wrong late untyped overdue codes").split()
SLOW = int(os.environ.get("KVRAIL_TEST_SLOW", "1"))
AGAIN_S = 60 * SLOW  # until every pair moves blocks again: what hangs, not what is slow
LONG_STOP_S = 2.6  # longer than every deadline and than KVCACHE_PEER_TIMEOUT_MS
CAP_IPC_LOCK, PR_CAPBSET_DROP, CLONE_NEWUSER = 14, 24, 0x10000000
OTHER_SHAPE = "3x40x8192"
OPTIONS = {"KVCACHE_PEER_TIMEOUT_MS": "2000", "KVCACHE_HANDSHAKE_MS": "1500", "KVCACHE_OP_TIMEOUT_MS": "1000"}
MIB = 1 << 20


class Failed(Exception):
    pass


def until(done, limit_s):
    """Seconds until done() was true, or None."""
    began = time.monotonic()
    while not done():
        if time.monotonic() - began > limit_s:
            return None
        time.sleep(0.005)
    return time.monotonic() - began


# ------------------------------------------------------------------------------------------------ one process


class Process:
    """A chaos_peer; started again after its end with what it is told by the fault."""

    def __init__(self, world, number, sends):
        self.world, self.number, self.sends = world, number, sends
        self.port, self.dials = None, []
        self.base = os.path.join(world.folder, f"{number}-{'sends' if sends else 'receives'}")
        self.log, self.popen, self.starts, self.normal = self.base + ".log", None, 0, True
        self.sums = collections.Counter()
        self.held = self.rss = None  # descriptors and KiB once all are connected

    def status(self):
        with open(self.base, "rb") as file:
            words = struct.unpack(f"<{11 + IDS + CODES}Q", file.read(8 * (11 + IDS + CODES)).ljust(8 * (11 + IDS + CODES), b"\0"))
        s = dict(zip(FIELDS[:2], words))
        s["good"] = words[2:2 + IDS]
        s.update(zip(FIELDS[3:-1], words[2 + IDS:]))
        s["codes"] = words[-CODES:]
        return s

    def start(self, before=None, wrap=(), shape=None, normal=True):
        self.starts, self.held, self.normal = self.starts + 1, None, normal
        with open(self.base, "wb") as file:
            file.write(b"\0" * 8 * (11 + IDS + CODES))
        os.chmod(self.base, 0o666)
        seed = self.world.seed * 1000003 + self.number * 1009 + self.starts
        words = [*wrap, self.world.program, "-o", self.base, "-i", str(self.number), "-r", str(seed)]
        words += ["-s"] if self.sends else []
        words += ["-l", str(self.port)] if self.port else []
        words += [word for port in self.dials for word in ("-d", str(port))]
        words += [*self.world.words, *(["-g", shape] if shape else [])]
        big = os.path.exists(self.log) and os.path.getsize(self.log) > MIB // 4
        with open(self.log, "wb" if big else "ab") as log:
            self.popen = subprocess.Popen(words, stderr=log, stdin=subprocess.DEVNULL, preexec_fn=before,
                                          env={**os.environ, **OPTIONS, "KVCACHE_SHM_PATH": self.world.path})

    def account(self):
        """What it has counted, before it starts again."""
        status = self.status()
        for field in FIELDS[3:-1]:
            self.sums[field] += status[field]
        self.sums["requests"] += sum(status["good"]) if not self.sends else 0
        for code, n in enumerate(status["codes"]):
            self.sums[f"code {code}"] += n
        for field in FAULTY:
            if status[field]:
                raise Failed(f"{self}: {status[field]} {field}")

    def kill(self):
        self.popen.kill()
        self.popen.wait()
        self.account()

    def ended(self):
        """Its exit status, or None."""
        return self.popen.poll()

    def look(self):
        """Nothing is wrong with it, and it runs."""
        status = self.status()
        for field in FAULTY:
            if status[field]:
                raise Failed(f"{self}: {status[field]} {field}")
        if self.ended() is not None:
            raise Failed(f"{self} ended with {self.ended()}")

    def settled(self):
        """It has its peers and no other, nothing is quarantined, and descriptors are as before."""
        status, peers = self.status(), len(self.world.others(self))
        if status["connected"] != peers or status["quarantined"]:
            return False
        # A connection by process_vm has two more than one by a pool that could be mapped.
        return self.held is None or self.descriptors() <= self.held + 2 * peers

    def hold(self):
        """What it holds now is what it may hold from now on."""
        if self.held is None:
            self.held, self.rss = self.descriptors(), self.line_of_status("RssAnon")

    def end(self):
        """In good order: it has given everything back."""
        grown = self.line_of_status("RssAnon") - self.rss if self.rss else 0
        if grown > 32 * 1024:
            raise Failed(f"{self} has grown by {grown} KiB")
        self.popen.terminate()
        try:
            code = self.popen.wait(AGAIN_S)
        except subprocess.TimeoutExpired:
            raise Failed(f"{self} does not end") from None
        self.account()
        if code:
            raise Failed(f"{self} ended with {code}")

    def stop(self):
        """In whatever state it is."""
        if self.popen and self.ended() is None:
            self.popen.kill()
            self.popen.wait()

    def send(self, number):
        self.popen.send_signal(number)

    def counts(self):
        return self.sums

    def state(self):
        s = self.status()
        held = self.descriptors() if self.ended() is None else "no"
        return (f"{self}: connected {s['connected']}, quarantined {s['quarantined']}, good {s['good']}, "
                f"{held} descriptors, was {self.held}")

    def tail(self):
        with open(self.log, "rb") as file:
            lines = file.read().decode(errors="replace").splitlines()
        return "\n".join([f"--- {self}", *[l for l in lines if "WRONG" in l][:10], *lines[-15:]])

    def proc(self, *names):
        return os.path.join("/proc", str(self.popen.pid), *names)

    def descriptors(self):
        return len(os.listdir(self.proc("fd")))

    def line_of_status(self, name):
        with open(self.proc("status"), encoding="ascii") as file:
            return next(int(line.split()[1]) for line in file if line.startswith(name + ":"))

    def limit(self, what, soft):
        resource.prlimit(self.popen.pid, what, (soft, resource.prlimit(self.popen.pid, what)[1]))

    def ours(self):
        """As a process of this user: an earlier fault may have left it as another one, who is not limited from here."""
        if os.stat(self.proc()).st_uid != os.getuid() or os.readlink(self.proc("ns/user")) != os.readlink("/proc/self/ns/user"):
            self.kill()
            self.start()
            self.world.recover()

    def unlimit(self, what):
        hard = resource.prlimit(self.popen.pid, what)[1]
        resource.prlimit(self.popen.pid, what, (hard, hard))

    def counted(self, *codes):
        status = self.status()
        return sum(status["codes"][code] for code in codes)

    def __str__(self):
        return os.path.basename(self.base)


# ------------------------------------------------------------------------------------------------ a world


class World:
    def __init__(self, program, path, receivers, senders, dial, seed, words=()):
        self.program, self.path, self.seed, self.words = program, path, seed, list(words)
        self.name = f"{senders} to {receivers} over {path}, {'senders' if dial else 'receivers'} connect"
        self.folder = tempfile.mkdtemp(prefix="kvrail-chaos-")
        os.chmod(self.folder, 0o777)
        self.receivers = [self.process(i, False) for i in range(receivers)]
        self.senders = [self.process(receivers + i, True) for i in range(senders)]
        self.all = self.receivers + self.senders
        dialling, listening = (self.senders, self.receivers) if dial else (self.receivers, self.senders)
        for p in listening:
            p.port = self.port_of(p)
        for p in dialling:
            p.dials = [l.port for l in listening]

    def process(self, number, sends):
        return Process(self, number, sends)

    def port_of(self, _):
        return held_port()

    def make(self, name, p, numbers):
        """Makes a fault to a process."""
        FAULTS[name][0](self, p, numbers)

    def pairs(self, without=()):
        return [(r, s) for r in self.receivers for s in self.senders if r not in without and s not in without]

    def others(self, p):
        return self.receivers if p.sends else self.senders

    def goods(self, pairs):
        status = {r: r.status() for r, _ in pairs}
        return {(r, s): status[r]["good"][s.number] for r, s in pairs}

    def look(self):
        for p in self.all:
            p.look()

    def moves(self, without=()):
        """Whether every pair gets a block moved that was ordered from now on; seconds, or None."""
        pairs = self.pairs(without)
        before = self.goods(pairs)

        def moved():
            now = self.goods(pairs)
            self.look_at(without)
            return all(now[pair] > before[pair] for pair in pairs)
        return until(moved, AGAIN_S)

    def look_at(self, without):
        for p in self.all:
            if p not in without and p.ended() is not None:
                raise Failed(f"{p} ended with {p.ended()}")

    def recover(self):
        took = self.moves()
        if took is None:
            raise Failed(f"not every pair moves blocks again within {AGAIN_S} s: {self.state()}")
        if until(lambda: all(p.settled() for p in self.all), AGAIN_S) is None:
            raise Failed(f"not everything was given back within {AGAIN_S} s: {self.state()}")
        for p in self.all:
            p.hold()
        self.look()
        return took

    def state(self):
        return "\n".join(p.state() for p in self.all)

    def start(self):
        for p in self.all:
            p.start()
        self.recover()

    def end(self):
        for p in self.senders + self.receivers:
            p.end()

    def stop(self):
        for p in self.all:
            p.stop()

    def tails(self):
        return "\n".join(p.tail() for p in self.all)


# ------------------------------------------------------------------------------------------------ faults
# Each gets the world, its victim and numbers drawn by the seed, and returns when the cause is gone.


def await_code(p, what, *codes):
    """The limited process or one of its peers has said so, typed."""
    if until(lambda: p.ended() is not None or any(q.counted(*codes) for q in [p, *p.world.others(p)]), AGAIN_S) is None:
        raise Failed(f"nobody has noticed {what}")


def other_of(w, p, n):
    """Another process of the world."""
    return one_of([q for q in w.all if q is not p], n["other"])


def one_of(choices, at):
    return choices[int(at * len(choices))]


def kill(w, p, n):
    p.kill()
    time.sleep(n["pause"])
    p.start()


def kill_young(w, p, n):
    """Again and again while it starts, connects, or has just begun."""
    for pause in n["pauses"]:
        p.kill()
        p.start()
        time.sleep(pause)


def kill_two(w, p, n):
    q = other_of(w, p, n)
    p.kill()
    time.sleep(n["pause"])
    q.kill()
    q.start()
    p.start()


def restart(w, p, n):
    p.end()
    p.start()


def stop_short(w, p, n):
    p.send(signal.SIGSTOP)
    time.sleep(n["pause"])
    p.send(signal.SIGCONT)


def stop_long(w, p, n):
    """Longer than the deadlines: the others go on meanwhile."""
    p.send(signal.SIGSTOP)
    ends = time.monotonic() + LONG_STOP_S + n["pause"]
    if w.moves(without=[p]) is None:
        raise Failed(f"the others do not go on while {p} is stopped: {w.state()}")
    time.sleep(max(0, ends - time.monotonic()))
    p.send(signal.SIGCONT)


def stop_and_kill(w, p, n):
    """A process dies while another one, its peer or not, is stopped."""
    q = other_of(w, p, n)
    p.send(signal.SIGSTOP)
    time.sleep(n["pause"])
    q.kill()
    q.start()
    time.sleep(n["pause"])
    p.send(signal.SIGCONT)


def kill_stopped(w, p, n):
    p.send(signal.SIGSTOP)
    time.sleep(n["pause"])
    kill(w, p, n)


def other_geometry(w, p, n):
    p.kill()
    p.start(shape=OTHER_SHAPE, normal=False)
    await_code(p, "the other geometry", 34)
    if w.moves(without=[p]) is None:
        raise Failed(f"the others do not go on beside another geometry: {w.state()}")
    p.end()
    p.start()


def drop_ipc_lock():
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))
    ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_IPC_LOCK, 0, 0, 0)


def memlock(w, p, n):
    p.kill()
    p.start(before=drop_ipc_lock)


def user_namespace(w, p, n):
    """memlock of 64 KiB that no right lifts, another user of the kernel's."""
    def before():
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))
    p.kill()
    p.start(before=before, wrap=["unshare", "--user", "--map-root-user"])


def limited(what, soft):
    def before():
        resource.setrlimit(what, (soft, resource.getrlimit(what)[1]))
    return before


def starts_with(p, n, what, soft, await_that):
    """A limit from the start: it cannot open its engine, or connect."""
    p.kill()
    p.start(before=limited(what, soft))
    await_that()
    time.sleep(n["pause"])
    p.unlimit(what)


def runs_into(w, p, n, what, soft):
    """A limit under load, while a peer comes back."""
    q = one_of(w.others(p), n["peer"])
    p.ours()
    p.limit(what, soft())
    q.kill()
    q.start()
    time.sleep(n["pause"])
    p.unlimit(what)


def few_descriptors(w, p, n):
    starts_with(p, n, resource.RLIMIT_NOFILE, n["few"], lambda: await_code(p, "the lack of descriptors", 5, 67, 68))


def no_descriptor_left(w, p, n):
    runs_into(w, p, n, resource.RLIMIT_NOFILE, lambda: p.descriptors() - n["less"])


def address_space(w, p, n):
    starts_with(p, n, resource.RLIMIT_AS, n["mib"] * MIB, lambda: until(lambda: p.status()["ready"] or p.counted(66, 68), 2))


def no_address_space_left(w, p, n):
    runs_into(w, p, n, resource.RLIMIT_AS, lambda: p.line_of_status("VmSize") * 1024)


def no_file_size(w, p, n):
    """Files, memfds among them, of 1 MiB at most: less than a cache or two rings."""
    starts_with(p, n, resource.RLIMIT_FSIZE, MIB, lambda: await_code(p, "the limit of files", 66, 68))


def few_processes(w, p, n):
    """As a user who may have two threads more than there are: the engine gets none until others end."""
    user, others = 61000 + p.number, 8

    def become():
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)

    def before():
        become()
        resource.setrlimit(resource.RLIMIT_NPROC, (others + 2, others + 2))
    p.kill()
    crowd = [subprocess.Popen(["sleep", "60"], preexec_fn=become) for _ in range(others)]
    try:
        p.start(before=before)
        await_code(p, "the lack of threads", 68)
        time.sleep(n["pause"])
    finally:
        for one in crowd:
            one.kill()
            one.wait()


def full_dev_shm(w, p, n):
    """A /dev/shm of its own without a free byte."""
    p.kill()
    p.start(wrap=["unshare", "--mount", "sh", "-c", "mount -t tmpfs -o size=64k chaos /dev/shm && "
                  "{ ! cat /dev/zero >/dev/shm/full; } 2>/dev/null && exec \"$@\"", "sh"])


def memory_cgroup(w, p, n):
    """The kernel ends it for want of memory."""
    group = Cgroup(n["kib"] * 1024)
    p.kill()
    p.start(before=group.enter, normal=False)
    until(lambda: p.ended() is not None or (p.status()["ready"] and p.status()["connected"]), 5)
    if p.ended() not in (None, -signal.SIGKILL):
        raise Failed(f"{p} ended with {p.ended()} for want of memory")
    p.kill()
    group.remove()
    p.start()


class Cgroup:
    V1, V2 = "/sys/fs/cgroup/memory", "/sys/fs/cgroup"

    def __init__(self, limit):
        v2 = os.path.exists(os.path.join(self.V2, "cgroup.controllers"))
        self.path = os.path.join(self.V2 if v2 else self.V1, f"kvrail-chaos-{os.getpid()}")
        os.makedirs(self.path, exist_ok=True)
        self.write("memory.max" if v2 else "memory.limit_in_bytes", limit)

    def write(self, name, value):
        with open(os.path.join(self.path, name), "w", encoding="ascii") as file:
            file.write(str(value))

    def enter(self):
        self.write("cgroup.procs", os.getpid())

    def remove(self):
        until(lambda: not os.path.exists(self.path) or self.removed(), 5)

    def removed(self):
        try:
            os.rmdir(self.path)
        except OSError:
            return False
        return True


def try_cgroup():
    Cgroup(64 * MIB).remove()


def try_command(*words):
    def attempt():
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    return attempt


def try_root():
    if os.getuid():
        raise OSError("needs root")


SAME_USER = ("auto", "cma")  # where another user is given a ring, or nothing
FAULTS = {
    # name: (function, weight, does, what it needs, ways it is not for)
    "kill": (kill, 10, "kill -9, started again on the same port", None, ()),
    "kill_young": (kill_young, 5, "kill -9 two to four times while it starts and connects", None, ()),
    "kill_two": (kill_two, 4, "kill -9 of two processes", None, ()),
    "restart": (restart, 4, "ends in good order, started again on the same port", None, ()),
    "stop_short": (stop_short, 10, "SIGSTOP for 2 to 300 ms", None, ()),
    "stop_long": (stop_long, 4, "SIGSTOP longer than every deadline; the others go on", None, ()),
    "stop_and_kill": (stop_and_kill, 5, "kill -9 of one while another one is stopped", None, ()),
    "kill_stopped": (kill_stopped, 3, "kill -9 of a stopped process", None, ()),
    "other_geometry": (other_geometry, 4, "started again with another geometry; the others go on", None, ()),
    "memlock": (memlock, 3, "RLIMIT_MEMLOCK 64 KiB, without CAP_IPC_LOCK", None, ()),
    "user_namespace": (user_namespace, 3, "the same in a user namespace of its own",
                       try_command("unshare", "--user", "--map-root-user", "true"), ("cma",)),
    "few_descriptors": (few_descriptors, 4, "RLIMIT_NOFILE of 6 to 11 from the start, then raised", None, ()),
    "no_descriptor_left": (no_descriptor_left, 5, "no descriptor left while a peer comes back", None, ()),
    "address_space": (address_space, 4, "RLIMIT_AS of 8 to 60 MiB from the start, then raised", None, ()),
    "no_address_space_left": (no_address_space_left, 4, "no address space left while a peer comes back", None, ()),
    "no_file_size": (no_file_size, 3, "RLIMIT_FSIZE of 1 MiB from the start, then raised", None, ()),
    "few_processes": (few_processes, 3, "RLIMIT_NPROC of a user of its own, until its other processes end", try_root, ("cma",)),
    "full_dev_shm": (full_dev_shm, 3, "a full /dev/shm, in a mount namespace",
                     try_command("unshare", "--mount", "mount", "-t", "tmpfs", "none", "/dev/shm"), ()),
    "memory_cgroup": (memory_cgroup, 3, "a memory cgroup of 1 to 3 MiB: killed by the kernel", try_cgroup, ()),
}


def draw(r):
    """The numbers of a fault."""
    return {"other": r.random(), "peer": r.random(), "pause": r.uniform(0.002, 0.3), "pauses": [r.uniform(0, 0.08) for _ in range(r.randint(2, 4))],
            "few": r.randint(6, 11), "less": r.randint(0, 2), "mib": r.randint(8, 60), "kib": r.randint(1000, 3000)}


def plan_of(seed, world, names, n):
    """What happens to a world: (after seconds, fault, number of the process, numbers)."""
    r = random.Random(f"{seed} {world.name}")
    names = [name for name in names if world.path not in FAULTS[name][4]]
    weights = [FAULTS[name][1] for name in names]
    first = r.sample(names, len(names))  # each at least once, if there is time
    plan = []
    for i in range(n):
        name = first[i] if i < len(first) else r.choices(names, weights)[0]
        plan.append((r.uniform(0, 0.15), name, r.randrange(len(world.all)), draw(r)))
    return plan


def play(world, plan, verbose):
    took = []
    for i, (after, name, victim, numbers) in enumerate(plan):
        time.sleep(after)
        p = world.all[victim]
        if verbose:
            print(f"  {i:3} {name} {p}", flush=True)
        try:
            world.make(name, p, numbers)
            took.append((name, world.recover()))
        except Failed as why:
            raise Failed(f"fault {i} of {world.name}, {name} of {p}: {why}") from None
    return took


# ------------------------------------------------------------------------------------------------ the run


def possible(names):
    """Those that can be made here, and why the others cannot."""
    can, skipped = [], {}
    for name in names:
        attempt = FAULTS[name][3]
        try:
            if attempt:
                attempt()
            can.append(name)
        except (OSError, subprocess.CalledProcessError) as why:
            skipped[name] = (getattr(why, "stderr", None) or str(why)).strip()
    return can, skipped


def worlds_of(args):
    if not args.long:
        return [("auto", 2, 1, True), ("cma", 1, 2, False), ("ring", 2, 1, True)]
    return [(path, r, s, dial) for path in ("auto", "cma", "ring") for r, s, dial in ((3, 1, True), (1, 3, False))]


def run(args, specs, world_of=World):
    """Worlds with these arguments, one after another; what they have come to, or None after a failure."""
    names, skipped = possible([name for name in args.fault or FAULTS if name not in args.skip])
    for name, why in skipped.items():
        print(f"not here: {name}: {why}")
    sums, took, worlds = collections.Counter(), collections.defaultdict(list), []
    for i, spec in enumerate(specs):
        world = world_of(args.program, *spec, args.seed)
        n = (args.faults * (i + 1)) // len(specs) - (args.faults * i) // len(specs)
        plan = plan_of(args.seed, world, names, n)
        if args.plan:
            for after, name, victim, _ in plan:
                print(f"{world.name}: after {after:.3f} s {name} of {world.all[victim]}")
            continue
        began = time.monotonic()
        print(f"{world.name}: {len(plan)} faults", flush=True)
        try:
            world.start()
            for name, seconds in play(world, plan, args.verbose):
                took[name].append(seconds)
            world.end()
        except Failed as why:
            print(f"{why}\n{world.tails()}\nFAILED; --seed {args.seed} makes the same faults; logs in {world.folder}")
            return None
        finally:
            world.stop()
        for p in world.all:
            sums.update(p.counts())
        worlds.append({"world": world.name, "faults": len(plan), "seconds": round(time.monotonic() - began, 1)})
        shutil.rmtree(world.folder)
    return {} if args.plan else result_of(sums, took, worlds, skipped)


def run_here(args):
    shm = set(os.listdir("/dev/shm"))
    result = run(args, worlds_of(args))
    left = [name for name in set(os.listdir("/dev/shm")) - shm if "kvrail" in name]
    if left:
        print(f"left in /dev/shm: {left}")
    if result is None or left:
        return 1
    if result:
        report.write(args, " ".join(["tests/chaos/chaos.py", *(["--long"] if args.long else []), "--seed", str(args.seed), "chaos_peer"]),
                     result)
    return 0


def soak(args):
    """Nothing but blocks, a third of them by each way; each byte is compared with what was to come."""
    ways, began = [], time.monotonic()
    for path in ("auto", "cma", "ring"):
        world = World(args.program, path, 1, 1, True, args.seed, ["-q", "-t", "60", "-f", "7", "-g", "4x128x65536"])
        receiver, since = world.receivers[0], time.monotonic()
        try:
            world.start()
            while receiver.status()["bytes"] < args.soak * 1e12 / 3:
                time.sleep(1)
                world.look()
            world.end()
        except Failed as why:
            print(f"{why}\n{world.tails()}")
            return 1
        finally:
            world.stop()
        seconds = time.monotonic() - since
        ways.append({"way": path, "requests_right": receiver.sums["requests"], "bytes_right": receiver.sums["bytes"],
                     "seconds": round(seconds, 1), "gb_per_s_with_filling_and_comparing":
                     round(receiver.sums["bytes"] / seconds / 1e9, 2), **{field: receiver.sums[field] for field in FAULTY}})
        print(ways[-1], flush=True)
        shutil.rmtree(world.folder)
    report.write(args, f"nice -n {os.nice(0)} tests/chaos/chaos.py --soak {args.soak} --seed {args.seed} chaos_peer", {"ways": ways})
    return 0


def result_of(sums, took, worlds, skipped):
    names = report.code_names()
    result = {
        "worlds": worlds,
        "faults": sum(len(seconds) for seconds in took.values()),
        "by_fault": {name: {"does": FAULTS[name][2], "times": len(took[name]),
                            "again_ms_median": round(1e3 * statistics.median(took[name])),
                            "again_ms_max": round(1e3 * max(took[name]))} for name in FAULTS if took[name]},
        "not_here": skipped,
        "requests_right": sums["requests"], "bytes_right": sums["bytes"] , "bytes_compared": sums["checked"],
        "taken_back": sums["taken_back"], "ended_with_an_error": sums["failed"],
        **{field: sums[field] for field in FAULTY},
        "errors": {names.get(int(key.split()[1]), key): n for key, n in sorted(sums.items()) if key.startswith("code ") and n},
    }
    print(f"{result['faults']} faults, {result['requests_right']} requests right, {result['bytes_compared'] / 1e9:.1f} GB compared, "
          f"{result['taken_back']} taken back; wrong {sums['wrong']}, late {sums['late']}, untyped {sums['untyped']}, "
          f"overdue {sums['overdue']}; errors {result['errors']}")
    return result


def main():
    parser = argparse.ArgumentParser(prog="chaos.py", description=__doc__)
    parser.add_argument("program", help="chaos_peer of the build")
    parser.add_argument("--long", action="store_true", help="all worlds, 540 faults")
    parser.add_argument("--faults", type=int, help="how many (12; 540 with --long)")
    parser.add_argument("--fault", action="append", choices=FAULTS, metavar="NAME", help="only these: " + " ".join(FAULTS))
    parser.add_argument("--seed", type=int, default=1, help="the same faults after the same pauses to the same processes (1)")
    parser.add_argument("--plan", action="store_true", help="print what would be done")
    parser.add_argument("--verbose", action="store_true", help="print each fault")
    parser.add_argument("--results", metavar="NAME", help="write docs/results/NAME.json and the tables of docs/chaos.md")
    parser.add_argument("--soak", type=float, metavar="TB", help="no faults: so many TB, every byte compared")
    parser.add_argument("--skip", action="append", default=[], choices=FAULTS, metavar="NAME", help="not these faults")
    args = parser.parse_args()
    args.commit = report.commit()
    if args.soak:
        return soak(args)
    args.faults = args.faults or (540 if args.long else 12)
    return run_here(args)


if __name__ == "__main__":
    sys.exit(main())
