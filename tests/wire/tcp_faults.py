#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""tcp_faults.py -- two hosts and a bad network between them: every byte, error and deadline of a connection over TCP is looked at

A receiver and a sender of tests/chaos, each in a network namespace of its own (wire.py). What only makes it slow must not end a
connection; what cuts it ends it, with an error and in time, and it comes back when the wire does."""
import argparse
import functools
import os
import shutil
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "chaos"))
import chaos  # noqa: E402
import wire as wires  # noqa: E402
from chaos import Failed, World, until  # noqa: E402

SMALL = ["-g", "2x48x4096"]  # a lossy wire carries little
SLOWLY = 40  # times the deadlines of tests/chaos, where nothing may be lost
TURNS = 5  # requests that each fault is looked at with


PORTS = range(20000, 20100)  # of data sockets


def of_data(frame):
    return any(port in PORTS for port in wires.ports(frame))


def of_control(frame):
    return bool(wires.ports(frame)) and not of_data(frame)


class Pair:
    """A world of two hosts. silence: milliseconds after which a host is taken for gone."""

    def __init__(self, program, wire, *, streams=1, patience=SLOWLY, silence=40000, address=wires.ADDRESS, words=()):
        chaos.OPTIONS.update({"KVCACHE_PEER_TIMEOUT_MS": str(silence), "KVCACHE_HANDSHAKE_MS": str(1500 * patience),
                              "KVCACHE_OP_TIMEOUT_MS": str(1000 * patience), "KVCACHE_TCP_STREAMS": str(streams),
                              "KVCACHE_TCP_PORTS": f"{PORTS[0]}-{PORTS[-1]}"})
        self.wire = wire
        self.text = f"{streams} stream{'s' * (streams > 1)}, {address['right']}"
        self.world = World(program, "auto", 1, 1, True, 1, ["-H", address["right"], "-t", str(patience), "-f", "7", *words])
        for p, side in zip(self.world.senders + self.world.receivers, wire.sides):
            p.start = functools.partial(p.start, wrap=side.words)

    def connections(self):
        """How many there have been, each of which must be over TCP."""
        lines = []
        for p in self.world.all:
            with open(p.log, encoding="utf-8", errors="replace") as log:
                lines += [line for line in log if "connected to" in line]
        if not all("over tcp" in line for line in lines):
            raise Failed(f"a connection is not over TCP: {lines}")
        return len(lines)

    def moves(self, what):
        for _ in range(TURNS):
            if self.world.moves() is None:
                raise Failed(f"no block moves over {what}: {self.world.state()}")
        self.world.look()

    def all_see_the_loss(self):
        return all(p.status()["connected"] == 0 for p in self.world.all)


# ------------------------------------------------------------------------------------------------ what only slows it


def loss(share):
    def act(pair):
        lost, pair.wire.loss = pair.wire.lost, [share, share]
        while pair.wire.lost == lost:
            pair.moves(f"a wire that loses {share:.0%}")
    return act


def delay(pair):
    pair.wire.delay = 0.2
    pair.moves("a wire of 200 ms")


def reorder(pair):
    pair.wire.reorder = 0.2
    pair.moves("a wire that reorders")


def short_cut(pair):
    """The cable of one host is out for a second."""
    pair.wire.sides[0].cable(False)
    time.sleep(1)
    pair.wire.sides[0].cable(True)
    pair.moves("a cable that was out for 1 s")


def flapping(pair):
    """The cable is out for 0.1 s, five times a second."""
    for _ in range(15):
        pair.wire.sides[0].cable(False)
        time.sleep(0.1)
        pair.wire.sides[0].cable(True)
        time.sleep(0.1)
    pair.moves("a cable that had a bad contact")


def other_mtu(pair):
    """Of both hosts, while they send."""
    for size in (600, 9000, 1500):
        for side in pair.wire.sides:
            side.mtu(size)
        pair.moves(f"a wire whose MTU has become {size}")


def no_address(pair):
    """A host has no address for a second."""
    side = pair.wire.sides[1]
    address = (wires.ADDRESS["right"] + "/24", "dev", "wire0")
    side.ip("address", "del", *address)
    time.sleep(1)
    side.ip("address", "add", *address)
    pair.moves("an address that was away")


def narrow(pair):
    pair.wire.rate = 1000000
    pair.moves("a wire of 1 Mbit/s")


def happens(share, what):
    """To each frame by chance; until it has happened."""
    def act(pair):
        count = [0]

        def change(side, frame):
            if pair.wire.random.random() >= share:
                return [frame]
            count[0] += 1
            return what(pair.wire.random, frame)
        pair.wire.change = change
        while count[0] < 20:
            pair.moves("a wire that changes frames")
    return act


def twice(_, frame):
    return [frame, frame]


def changed(numbers, frame):
    """One byte behind Ethernet's header: a checksum has to find it."""
    at, frame = numbers.randrange(wires.ETHERNET, len(frame)), bytearray(frame)
    frame[at] ^= numbers.randrange(1, 256)
    return [bytes(frame)]


def no_window(pair):
    """For three seconds the receiver seems to have no room."""
    pair.wire.change = lambda side, frame: [wires.without_window(frame) if side and of_data(frame) else frame]
    time.sleep(3)
    pair.wire.quiet()
    pair.moves("a window that was closed for 3 s")


def no_control(pair):
    """While data moves nothing else has to be heard of a peer."""
    pair.wire.change = lambda side, frame: [] if of_control(frame) else [frame]
    time.sleep(5)
    pair.moves("data sockets without the control socket")


# ------------------------------------------------------------------------------------------------ what ends it


def again(pair, before, what):
    if until(lambda: pair.connections() > before, chaos.AGAIN_S) is None:
        raise Failed(f"{what}: no other connection takes over: {pair.world.state()}")


def reset(kind, whose):
    """A segment that resets one of the sockets, to one end."""
    def act(pair):
        before, done = pair.connections(), []

        def change(side, frame):
            if done or side != whose or not kind(frame) or frame[wires.tcp_at(frame) + 13] & (wires.SYN | wires.FIN | wires.RST):
                return [frame]
            done.append(True)
            return [frame, wires.reset_after(frame)]
        pair.wire.change = change
        again(pair, before, "a reset")
    return act


def vanish(which):
    """Frames of a kind, in both directions."""
    def act(pair):
        before = pair.connections()
        pair.wire.change = lambda side, frame: [] if which(frame) else [frame]
        if until(lambda: pair.connections() > before or pair.all_see_the_loss(), chaos.AGAIN_S) is None:
            raise Failed(f"frames that vanish are not noticed: {pair.world.state()}")
    return act


def is_long(frame):
    """As where a router does not say that a packet is too long."""
    return len(frame) > 600



def one_direction(side):
    def act(pair):
        pair.wire.cut[side] = True
        if until(pair.all_see_the_loss, chaos.AGAIN_S) is None:
            raise Failed(f"a cut of one direction is not noticed: {pair.world.state()}")
    return act


def pulled(seconds):
    def act(pair):
        pair.wire.sides[1].cable(False)
        ends = time.monotonic() + seconds
        if until(pair.all_see_the_loss, chaos.AGAIN_S) is None:
            raise Failed(f"a cable that is out is not noticed: {pair.world.state()}")
        time.sleep(max(0, ends - time.monotonic()))
        pair.wire.sides[1].cable(True)
    return act


# ------------------------------------------------------------------------------------------------ the run


def run_pair(args, wire, faults, ends=False, **how):
    """A new pair of hosts lives through these faults, one after another; then both hosts fail. ends: connections; None: perhaps."""
    pair = Pair(args.program, wire, **how)
    try:
        wire.quiet()
        pair.world.start()
        for name, act in faults:
            began, before = time.monotonic(), pair.connections()
            act(pair)
            wire.quiet()
            pair.world.recover()
            if ends not in (None, pair.connections() > before):
                raise Failed(f"{name}: {'no' if ends else 'a'} connection was lost")
            print(f"{name} ({pair.text}): {time.monotonic() - began:.1f} s", flush=True)
        for p in pair.world.all:
            p.kill()
    except Failed as why:
        print(f"{why}\n{pair.world.tails()}\nFAILED; logs in {pair.world.folder}")
        raise
    finally:
        pair.world.stop()
    shutil.rmtree(pair.world.folder)
    return sum(p.sums["checked"] for p in pair.world.all)


def faults_of_frames(args, wire):
    slow = [("frames twice", happens(0.3, twice)), ("changed bytes", happens(0.02, changed)), ("no window for 3 s", no_window)]
    # TCP waits longer from loss to loss: on a busy machine until after an operation's deadline, whose cancel ends the connection.
    gone = [("bad contact", flapping), ("MTU of 600, 9000 and 1500", other_mtu), ("no address for 1 s", no_address)]
    over = [("reset of data, to the receiver", reset(of_data, 0)), ("reset of data, to the sender", reset(of_data, 1)),
            ("reset of control, to the receiver", reset(of_control, 0)), ("reset of control, to the sender", reset(of_control, 1)),
            ("data vanishes", vanish(of_data)), ("long frames vanish", vanish(is_long))]
    compared = run_pair(args, wire, slow)
    compared += run_pair(args, wire, slow, streams=3)
    compared += run_pair(args, wire, gone, ends=None)
    compared += run_pair(args, wire, gone, ends=None, streams=3)
    compared += run_pair(args, wire, [("1 Mbit/s", narrow)], words=SMALL)
    compared += run_pair(args, wire, over, ends=True, silence=2000, patience=1)
    compared += run_pair(args, wire, over, ends=True, silence=2000, patience=1, streams=3)
    return compared + run_pair(args, wire, [("no control for 5 s", no_control)], ends=None, silence=2000, patience=1)


def faults_of_the_wire(args, wire):
    slow = [("loss of 1 %", loss(0.01)), ("delay of 200 ms", delay), ("reorder of 20 %", reorder), ("cable out for 1 s", short_cut)]
    over = [("cut from left to right", one_direction(0)), ("cut from right to left", one_direction(1)), ("cable out", pulled(0))]
    if args.long:
        over.append(("cable out for 30 s", pulled(30)))
    compared = run_pair(args, wire, slow)
    compared += run_pair(args, wire, slow, streams=3, address=wires.ADDRESS6)
    compared += run_pair(args, wire, [("loss of 30 %", loss(0.3))], ends=None, words=SMALL)
    compared += run_pair(args, wire, over, ends=True, silence=2000)  # silence ends it,
    compared += run_pair(args, wire, over, ends=True, streams=3, patience=1)  # or a deadline
    for size in (576, 9000):
        for side in wire.sides:
            side.mtu(size)
        compared += run_pair(args, wire, [(f"MTU of {size}, loss of 1 %", loss(0.01))], streams=2)
    return compared


def run(args):
    wire = wires.Wire(args.seed)
    compared = faults_of_frames(args, wire) if args.frames else faults_of_the_wire(args, wire)
    print(f"{wire.carried} packets carried, {wire.lost} lost, {compared / 1e6:.0f} MB compared, each byte was right")
    for side in wire.sides:
        side.end()


def main():
    parser = argparse.ArgumentParser(prog="tcp_faults.py", description=__doc__)
    parser.add_argument("program", help="chaos_peer of the build")
    parser.add_argument("--long", action="store_true", help="also what takes long")
    parser.add_argument("--frames", action="store_true", help="what is done to single frames, to an address, by a bad contact")
    parser.add_argument("--seed", type=int, default=1, help="which packets are lost (1)")
    args = parser.parse_args()
    if not wires.inside():
        print(f"skipped: {wires.enter(sys.argv)}")
        return 77
    try:
        run(args)
    except Failed:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
