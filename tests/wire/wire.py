# SPDX-License-Identifier: Apache-2.0
"""wire.py -- two network namespaces and the wire between them, for a user who may make namespaces

    left namespace              middle (the caller's)                 right namespace
    wire0 10.77.0.1  == veth ==  left   <- Wire: a thread ->  right  == veth ==  wire0 10.77.0.2

The thread carries each frame from one side to the other by packet sockets, and loses, delays, reorders and changes them as a seed says. So
no module of the kernel is needed beyond veth: sch_netem is in few kernels of cloud machines."""
import array
import ctypes
import fcntl
import heapq
import os
import random
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

ADDRESS = {"left": "10.77.0.1", "right": "10.77.0.2"}
ADDRESS6 = {"left": "fd77::1", "right": "fd77::2"}
ETH_P_ALL, PACKET_OUTGOING = 3, 4
SIOCETHTOOL, PR_SET_PDEATHSIG = 0x8946, 1
QUEUE_S = 0.2  # of a wire with a rate: how long a frame waits at most, else it is lost
# What a NIC would do and this wire does not: checksums, segments of more than a frame.
OFFLOADS = {"checksums": 0x17, "scatter": 0x19, "TCP segments": 0x1F, "segments": 0x24}


def enter(argv):
    """Runs the caller's script again as root of a user and a network namespace; the reason if it may not."""
    for words in (["unshare", "--net"], ["unshare", "--user", "--map-root-user", "--net"]):
        trial = subprocess.run([*words, "ip", "link", "add", "left", "type", "veth", "peer", "name", "wire0"], stderr=subprocess.PIPE, text=True,
                               check=False)
        if not trial.returncode:
            os.environ["KVRAIL_WIRE"] = "1"
            os.execvp(words[0], [*words, sys.executable, "-B", *argv])
    return f"no network namespace with a veth pair can be made here ({trial.stderr.strip().splitlines()[-1]})"


def inside():
    return "KVRAIL_WIRE" in os.environ


def ip(*words):
    subprocess.run(["ip", *words], check=True)


def without_offloads(name):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        for command in OFFLOADS.values():
            value = ctypes.create_string_buffer(struct.pack("II", command, 0))
            fcntl.ioctl(s, SIOCETHTOOL, struct.pack("16sQ16x", name.encode(), ctypes.addressof(value)))


# ------------------------------------------------------------------------------------------------ what is in a frame

ETHERNET, IP_TCP, FIN, SYN, RST, ACK = 14, 6, 1, 2, 4, 16


def tcp_at(frame):
    """Where the header of TCP begins in a frame of IPv4, or None."""
    if frame[12:14] != b"\x08\x00" or frame[23] != IP_TCP:
        return None
    return ETHERNET + (frame[ETHERNET] & 15) * 4


def ports(frame):
    """Of a segment of TCP: (from, to); else ()."""
    at = tcp_at(frame)
    return struct.unpack_from("!HH", frame, at) if at else ()


def ones_sum(data):
    words = array.array("H", bytes(data) + b"\0" * (len(data) % 2))
    words.byteswap()
    total = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def with_checksums(frame):
    """After its headers were changed."""
    frame, at, end = bytearray(frame), tcp_at(frame), ETHERNET + struct.unpack_from("!H", frame, ETHERNET + 2)[0]
    struct.pack_into("!H", frame, ETHERNET + 10, 0)
    struct.pack_into("!H", frame, ETHERNET + 10, ones_sum(frame[ETHERNET:at]))
    struct.pack_into("!H", frame, at + 16, 0)
    pseudo = frame[ETHERNET + 12:ETHERNET + 20] + struct.pack("!BBH", 0, IP_TCP, end - at)
    struct.pack_into("!H", frame, at + 16, ones_sum(pseudo + frame[at:end]))
    return bytes(frame)


def reset_after(frame):
    """What a firewall that has forgotten the connection would send in the name of this segment's sender."""
    at, end = tcp_at(frame), ETHERNET + struct.unpack_from("!H", frame, ETHERNET + 2)[0]
    sequence, = struct.unpack_from("!I", frame, at + 4)
    payload = end - at - (frame[at + 12] >> 4) * 4
    reset = bytearray(frame[:at + 20])
    struct.pack_into("!H", reset, ETHERNET + 2, at + 20 - ETHERNET)
    struct.pack_into("!I", reset, at + 4, sequence + payload & 0xFFFFFFFF)
    reset[at + 12], reset[at + 13] = 5 << 4, RST | ACK
    return with_checksums(reset)


def without_window(frame):
    """The same segment, whose sender says that it has no room."""
    frame = bytearray(frame)
    struct.pack_into("!H", frame, tcp_at(frame) + 14, 0)
    return with_checksums(frame)


# ------------------------------------------------------------------------------------------------ the wire


class Side:
    """A namespace at one end; it lasts as long as a process that sleeps in it."""

    def __init__(self, name):
        self.name = name
        self.holder = subprocess.Popen(["unshare", "--net", "sleep", "infinity"],
                                       preexec_fn=lambda: ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL))
        mine = os.readlink("/proc/self/ns/net")
        while os.readlink(f"/proc/{self.holder.pid}/ns/net") == mine:
            time.sleep(0.001)
        self.words = ["nsenter", f"--net=/proc/{self.holder.pid}/ns/net", "--"]
        ip("link", "add", name, "type", "veth", "peer", "name", "wire0")
        without_offloads(name)
        without_offloads("wire0")
        ip("link", "set", "wire0", "netns", str(self.holder.pid))
        self.ip("link", "set", "lo", "up")
        self.ip("address", "add", ADDRESS[name] + "/24", "dev", "wire0")
        self.ip("address", "add", ADDRESS6[name] + "/64", "dev", "wire0", "nodad")
        self.ip("link", "set", "wire0", "up")
        ip("link", "set", name, "up")

    def ip(self, *words):
        subprocess.run([*self.words, "ip", *words], check=True)

    def cable(self, plugged):
        ip("link", "set", self.name, "up" if plugged else "down")

    def mtu(self, size):
        ip("link", "set", self.name, "mtu", str(size))
        self.ip("link", "set", "wire0", "mtu", str(size))

    def end(self):
        self.holder.kill()
        self.holder.wait()


class Wire(threading.Thread):
    """Frames from side to side. By the side that they come from: loss and reorder are shares, delay is in seconds, rate in bits a second.
    change(side, frame) returns the frames that are carried instead of one."""

    def __init__(self, seed):
        super().__init__(daemon=True)
        self.random = random.Random(seed)
        self.sides = [Side("left"), Side("right")]
        self.sockets = [socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) for _ in self.sides]
        for side, s in zip(self.sides, self.sockets):
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
            s.bind((side.name, ETH_P_ALL))
            s.setblocking(False)
        self.quiet()
        self.late = []  # (when, number, to, frame)
        self.number, self.carried, self.lost = 0, 0, 0
        self.start()

    def quiet(self):
        """As a good wire."""
        self.loss, self.delay, self.reorder, self.cut = [0, 0], 0, 0, [False, False]
        self.change, self.rate, self.free = None, 0, [0, 0]

    def take(self, side):
        try:
            frame, address = self.sockets[side].recvfrom(65536)
        except OSError:  # nothing more, or the cable is pulled
            return False
        if address[2] == PACKET_OUTGOING:
            return True
        if self.cut[side] or self.random.random() < self.loss[side]:
            self.lost += 1
            return True
        change = self.change
        for one in change(side, frame) if change else [frame]:
            self.carry(side, one)
        return True

    def carry(self, side, frame):
        wait = self.delay + (0.02 if self.random.random() < self.reorder else 0)
        if self.rate:
            now = time.monotonic()
            if self.free[side] > now + QUEUE_S:
                self.lost += 1
                return
            self.free[side] = max(now, self.free[side]) + 8 * len(frame) / self.rate
            wait += self.free[side] - now
        if wait:
            self.number += 1
            heapq.heappush(self.late, (time.monotonic() + wait, self.number, 1 - side, frame))
        else:
            self.give(1 - side, frame)

    def give(self, side, frame):
        try:
            self.sockets[side].send(frame)
            self.carried += 1
        except OSError:  # the cable is pulled, the frame is too long, or its queue is full
            self.lost += 1

    def run(self):
        poll = select.poll()
        for s in self.sockets:
            poll.register(s, select.POLLIN)
        while True:
            now = time.monotonic()
            while self.late and self.late[0][0] <= now:
                _, _, side, frame = heapq.heappop(self.late)
                self.give(side, frame)
            poll.poll(max(0, (self.late[0][0] - now) * 1000) if self.late else None)
            for side in (0, 1):
                for _ in range(64):
                    if not self.take(side):
                        break
