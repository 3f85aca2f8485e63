#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""pair_chaos.py -- tests/chaos between two guests: receivers in guest a, senders in guest b, real verbs and a wire between them

The faults of one host are made in the guest of their victim; to them come faults of the wire, the device and the whole guest. Without
--side it boots the guests. Guest a leads; each guest does what the other one asks for, by files that both see, as the wire is cut."""
import argparse
import contextlib
import itertools
import json
import os
import pickle
import resource
import subprocess
import sys
import threading
import time
import traceback

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "chaos"))
import chaos  # noqa: E402
import report  # noqa: E402
from chaos import Failed, Process, World, until  # noqa: E402
from pair import ROCE, SHARED, TCP, While, lose, resources, run_guests, sh  # noqa: E402

PATIENCE = 6  # times the deadlines of tests/chaos
LONG_S = 7  # longer than each of them, and than what ends a silent connection
OPTIONS = {"KVCACHE_PEER_TIMEOUT_MS": "4000", "KVCACHE_HANDSHAKE_MS": "9000", "KVCACHE_OP_TIMEOUT_MS": "6000"}
WORLDS = [(2, 1, True), (1, 2, False)]  # receivers, senders, whether the senders connect


# ------------------------------------------------------------------------------------------------ what passes between the guests


def put(path, what):
    with open(path + ".new", "wb") as file:
        pickle.dump(what, file)
    os.rename(path + ".new", path)


def take(path):
    with open(path, "rb") as file:
        what = pickle.load(file)
    os.remove(path)
    return what


class Link:
    def __init__(self, me, answer):
        self.me, self.other, self.answer, self.calls = me, "ba"["ab".index(me)], answer, 0

    def ask(self, *what):
        """Has the other guest do it; what it returned."""
        self.calls += 1
        asked, said = (os.path.join(SHARED, f"{word}-{self.me}-{self.calls}") for word in ("asked", "said"))
        put(asked, what)
        if until(lambda: os.path.exists(said), 10 * chaos.AGAIN_S) is None:
            raise Failed(f"guest {self.other} does not answer {what}")
        failed, value = take(said)
        if failed:
            raise Failed(failed)
        return value

    def serve(self):
        """Does what the other guest asks for, until it asks for the end."""
        for number in itertools.count(1):
            asked, said = (os.path.join(SHARED, f"{word}-{self.other}-{number}") for word in ("asked", "said"))
            while not os.path.exists(asked):
                time.sleep(0.02)
            what = take(asked)
            try:
                result = None, self.answer(*what)
            except Failed as why:
                result = str(why), None
            except Exception:  # pylint: disable=broad-except
                result = traceback.format_exc(), None
            put(said, result)
            if what == ("end",):
                return


class Far:
    """A process of the other guest: what is asked of it is asked there."""

    def __init__(self, link, number, sends):
        self.link, self.number, self.sends, self.port, self.dials = link, number, sends, None, []

    def __getattr__(self, method):
        return lambda *args, **words: self.link.ask("process", self.number, method, args, words)

    def __str__(self):
        return f"{self.number}-{'sends' if self.sends else 'receives'}"


class Guests(World):
    def __init__(self, link, program, receivers, senders, dial, seed):
        self.link = link
        address = "10.77.0.1" if dial else "10.77.0.2"  # of those who listen
        super().__init__(program, "auto", receivers, senders, dial, seed,
                         ["-H", address, "-t", str(PATIENCE), "-f", "3", "-k", "2", "-g", "2x40x12288"])
        self.name = f"{senders} to {receivers} over Soft-RoCE, {'senders' if dial else 'receivers'} connect"

    def process(self, number, sends):
        return Process(self, number, sends) if sends == (self.link.me == "b") else Far(self.link, number, sends)

    def port_of(self, p):
        return 7700 + p.number

    def here(self):
        return [p for p in self.all if isinstance(p, Process)]

    def make(self, name, p, numbers):
        if isinstance(p, Far):
            self.link.ask("fault", name, p.number, numbers)
        else:
            super().make(name, p, numbers)


# ------------------------------------------------------------------------------------------------ faults of guests
# They use the numbers that tests/chaos draws: a pause of up to 0.3 s is up to 6 s here.


def seconds(n):
    return 20 * n["pause"]


@contextlib.contextmanager
def undone(do, undo):
    sh(do)
    try:
        yield
    finally:
        sh(undo)


def disturbed(do):
    return undone(do, "tc qdisc del dev eth0 root")


def loss(w, p, n):
    with disturbed(f"tc qdisc add dev eth0 root netem loss {n['mib'] // 2}%"):
        time.sleep(seconds(n))


def silence(w, p, n):
    with disturbed("tc qdisc add dev eth0 root netem loss 100%"):
        time.sleep(seconds(n) + LONG_S)


def cut(protocol):
    def fault(w, p, n):
        with disturbed(lose(protocol)):
            time.sleep(seconds(n) + LONG_S)
    return fault


def flap(w, p, n):
    for pause in n["pauses"]:
        with While(f"unplug-{w.link.me}"):
            time.sleep(20 * pause)
        time.sleep(pause)


def cable_out(w, p, n):
    with While(f"unplug-{w.link.me}"):
        time.sleep(seconds(n) + LONG_S)


def interface_down(w, p, n):
    with undone("ip link set eth0 down", "ip link set eth0 up"):
        time.sleep(seconds(n))


def address_gone(w, p, n):
    mine = f"10.77.0.{1 + 'ab'.index(w.link.me)}/24"
    with undone(f"ip addr del {mine} dev eth0", f"ip addr add {mine} dev eth0"):
        time.sleep(seconds(n))


def mtu(w, p, n):
    with undone("ip link set eth0 mtu 1500", "ip link set eth0 mtu 4200"):
        time.sleep(seconds(n))


def guest_stands(w, p, n):
    with While(f"freeze-{w.link.other}"):
        time.sleep(seconds(n))


def link_deleted(w, p, n):
    """Soft-RoCE gives the device up when the last who uses it has gone."""
    with subprocess.Popen(["rdma", "link", "delete", "rxe0"]) as delete:
        time.sleep(seconds(n))
        for q in w.here():
            q.kill()
        if delete.wait(chaos.AGAIN_S):
            raise Failed("rdma link delete failed")
    with undone("true", "rdma link add rxe0 type rxe netdev eth0"):
        p.start()
        chaos.await_code(p, "the lack of a device", 64)
    for q in w.here():
        if q is not p:
            q.start()


def memlock(w, p, n, wrap=()):
    """It cannot register its cache before the limit is raised."""
    p.kill()
    p.start(before=chaos.drop_ipc_lock, wrap=wrap)
    chaos.await_code(p, "the limit of locked memory", 65)
    time.sleep(n["pause"])
    resource.prlimit(p.popen.pid, resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def user_namespace(w, p, n):
    memlock(w, p, n, ["unshare", "--user", "--map-root-user"])


OTHERS = {
    "memlock": (memlock, 4, "RLIMIT_MEMLOCK 64 KiB, without CAP_IPC_LOCK, then raised", None, ()),
    "user_namespace": (user_namespace, 2, "the same in a user namespace of its own", None, ()),
    "loss": (loss, 6, "4 to 30 % of the packets of a guest lost, for up to 6 s", None, ()),
    "silence": (silence, 3, f"all packets of a guest lost, for {LONG_S} to {LONG_S + 6} s", None, ()),
    "data_cut": (cut(ROCE), 3, "those of RDMA alone", None, ()),
    "control_cut": (cut(TCP), 3, "those of TCP alone", None, ()),
    "flap": (flap, 6, "the cable out two to four times for up to 1.6 s", None, ()),
    "cable_out": (cable_out, 3, f"the cable out for {LONG_S} to {LONG_S + 6} s", None, ()),
    "interface_down": (interface_down, 3, "ip link set down, for up to 6 s", None, ()),
    "address_gone": (address_gone, 3, "the address of a guest away for up to 6 s", None, ()),
    "mtu": (mtu, 3, "the MTU of a guest 1500, not 4200, for up to 6 s", None, ()),
    "guest_stands": (guest_stands, 3, "a whole guest stopped for up to 6 s", None, ()),
    "link_deleted": (link_deleted, 4, "rdma link delete under load, its users killed, added again", None, ()),
}


# ------------------------------------------------------------------------------------------------ a guest


class Side:
    def __init__(self, args):
        chaos.LONG_STOP_S = LONG_S
        chaos.OPTIONS.update(OPTIONS)
        chaos.FAULTS.update(OTHERS)
        sh("mount -t cgroup2 none /sys/fs/cgroup && echo +memory >/sys/fs/cgroup/cgroup.subtree_control || true")
        self.args, self.before, self.world = args, resources(), None
        self.link = Link(args.side, self.answer)

    def begin(self, *spec):
        self.world = Guests(self.link, *spec)
        return self.world

    def answer(self, what, *args):
        if what == "begin":
            self.begin(*args)
        elif what == "process":
            number, method, words, named = args
            return getattr(self.world.all[number], method)(*words, **named)
        elif what == "fault":
            name, number, numbers = args
            self.world.make(name, self.world.all[number], numbers)
        elif what == "rest":
            self.rest()
        return None

    def rest(self):
        """The device has nothing left of what was."""
        if until(lambda: resources() == self.before, chaos.AGAIN_S) is None:
            raise Failed(f"left behind at guest {self.args.side}: {resources()} not {self.before}")

    def lead(self):
        threading.Thread(target=self.link.serve, daemon=True).start()

        def world_of(*spec):
            self.link.ask("begin", *spec)
            return self.begin(*spec)
        result = chaos.run(self.args, WORLDS, world_of)
        if result:
            try:
                self.rest()
                self.link.ask("rest")
            except Failed as why:
                print(why)
                result = None
        self.link.ask("end")
        if result:
            print("result " + json.dumps(result), flush=True)
        return result is None

    def run(self):
        return self.lead() if self.args.side == "a" else self.link.serve()


def main():
    parser = argparse.ArgumentParser(prog="pair_chaos.py", description=__doc__)
    parser.add_argument("program", help="chaos_peer of the build")
    parser.add_argument("--faults", type=int, default=100, help="how many (100)")
    parser.add_argument("--fault", action="append", metavar="NAME", help="only these: " + " ".join({**chaos.FAULTS, **OTHERS}))
    parser.add_argument("--seed", type=int, default=1, help="the same faults after the same pauses to the same processes (1)")
    parser.add_argument("--timeout", type=int, default=2380, help="limit for everything, in seconds (2380)")
    parser.add_argument("--results", metavar="NAME", help="write docs/results/NAME.json and the tables of docs/chaos.md")
    parser.add_argument("--side", choices=("a", "b"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        args.verbose, args.plan, args.skip = True, False, []
        return Side(args).run()
    args.commit = report.commit()
    words = ["tests/rxe/pair_chaos.py", "--faults", str(args.faults), "--seed", str(args.seed)]
    me = [sys.executable, "-B", os.path.abspath(__file__), *sys.argv[1:]]
    status, results = run_guests([*me, "--side", "a"], [*me, "--side", "b"], args.timeout, KVCACHE_TRANSPORT="ib", KVRAIL_TEST_SLOW="3")
    for result in results:
        report.write(args, " ".join([*words, "chaos_peer"]), result)
    return status


if __name__ == "__main__":
    sys.exit(main())
