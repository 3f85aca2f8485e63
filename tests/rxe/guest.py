# SPDX-License-Identifier: Apache-2.0
"""guest.py -- QEMU processes, what passes between them and the caller, and the time limit"""
import ctypes
import json
import os
import re
import selectors
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))

BROKEN = 125  # the rig's own failure, as with timeout(1) and env(1)
TIMED_OUT = 124
SKIPPED = 77
UP_WITHIN_S = 15  # where /dev/kvm only seems to work, the guest never comes up
FASTER_BOOT = "mitigations=off random.trust_cpu=on cryptomgr.notests no_timer_check tsc=reliable"
PORTS = ("out", "err", "control")
COMPLAINT = re.compile(r"BUG:|WARNING:|Oops|general protection|Call Trace|refcount_t|blocked for more than|rxe.*leak")


class Failed(Exception):
    """The rig failed; the command has no exit status."""


def before_qemu():
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG: it ends with this process
    os.nice(5)  # tests beside it have short deadlines; those of the guest are long


def closed_folders(command):
    """The folders on the way to this tree, to the directory and to what the command names that an ordinary user may not enter."""
    named = [word for word in command if os.path.isabs(word) and os.path.exists(word)]
    found = set()
    for path in (HERE, os.getcwd(), *named):
        while path != "/":
            if os.path.isdir(path) and not os.stat(path).st_mode & 0o001:
                found.add(path)
            path = os.path.dirname(path)
    return sorted(found)


def run_script(command, settings, extra):
    """The shell script that the guest runs: environment, limits, directory and user of the command."""
    lines = ["# written by guest.py"]
    # A tree in root's home (mode 0700), say, where a part of a test runs as an ordinary user. What is opened is the
    # guest's own layer over this machine's root.
    lines += [f"chmod o+x {shlex.quote(folder)} || exit {BROKEN}" for folder in closed_folders(command)]
    for name, value in {**os.environ, **extra}.items():
        if re.fullmatch(r"[A-Za-z_]\w*", name) and name not in ("PWD", "OLDPWD", "SHLVL", "_"):
            lines.append(f"export {name}={shlex.quote(value)}")
    lines.append(f"ulimit -l {settings.memlock}; ulimit -n 16384; ulimit -c 0")
    lines.append(f"cd {shlex.quote(os.getcwd())} || exit {BROKEN}")
    as_user = []
    if settings.user is not None:
        as_user = ["setpriv", f"--reuid={settings.user}", f"--regid={settings.user}", "--clear-groups", "--"]
    lines.append("exec " + shlex.join([*as_user, *command]))
    return "\n".join(lines) + "\n"


def folder_of_host(tag, path, more=""):
    path = path.replace(",", ",,")
    return ["-virtfs", f"local,path={path},mount_tag={tag},security_model=none,multidevs=remap{more}"]


class Guest:
    def __init__(self, name, command, settings, sinks):
        self.name, self.command, self.settings, self.sinks = name, command, settings, sinks
        self.status = None
        self.phase = "started"
        self.console = b""
        self.pending = b""
        self.run_at = None
        self.process = None
        self.frozen = self.unplugged = False
        self.sockets = {}

    def prepare(self, share):
        """Puts what the guest runs into the folder that it sees as /run/rxe."""
        folder = os.path.join(share, self.name)
        os.mkdir(folder)
        with open(os.path.join(folder, "run.sh"), "w", encoding="utf-8") as file:
            file.write(run_script(self.command, self.settings, {"RXE_SELF": self.name, "RXE_SHARED": "/run/rxe/shared"}))
        with open(os.path.join(folder, "writable"), "w", encoding="utf-8") as file:
            file.writelines(path + "\n" for path in self.settings.writable)

    def start(self, image, share, accel, wire):
        """Starts QEMU. wire is this guest's end of a socket pair, or None."""
        theirs = {}
        for port in (*PORTS, "console", "qmp"):
            self.sockets[port], theirs[port] = socket.socketpair()
            self.sockets[port].setblocking(False)
        fds = [end.fileno() for end in theirs.values()] + ([wire.fileno()] if wire else [])
        words = ["qemu-system-x86_64", "-name", f"kvrail-rxe-{self.name}", "-nodefaults", "-no-user-config", "-no-reboot",
                 "-display", "none", "-cpu", "max", "-m", str(self.settings.memory), "-smp", str(self.settings.cpus)]
        words += ["-accel", "tcg,thread=multi" if accel == "tcg" else accel]
        words += ["-kernel", os.path.join(image, "vmlinuz"), "-initrd", os.path.join(image, "initramfs"), "-append",
                  f"console=ttyS0 loglevel=6 panic=-1 {FASTER_BOOT} rxe_self={self.name} rxe_guests={2 if wire else 1}"
                  f" rxe_ptrace_scope={self.settings.ptrace_scope}"]  # a word with "=" becomes a variable of init
        words += folder_of_host("host", "/", ",readonly=on") + folder_of_host("share", share)
        for number, path in enumerate(self.settings.writable):
            words += folder_of_host(f"writable{number}", path)
        for number, port in enumerate(PORTS, 1):
            if number == 1:
                words += ["-device", "virtio-serial-pci"]
            words += ["-chardev", f"socket,id={port},fd={theirs[port].fileno()}",
                      "-device", f"virtserialport,chardev={port},nr={number},name={port}"]
        words += ["-chardev", f"socket,id=console,fd={theirs['console'].fileno()}", "-serial", "chardev:console"]
        if wire:
            words += ["-chardev", f"socket,id=qmp,fd={theirs['qmp'].fileno()}", "-mon", "chardev=qmp,mode=control"]
            mac = "52:54:00:77:00:0" + ("1" if self.name == "a" else "2")
            words += ["-netdev", f"dgram,id=wire,local.type=fd,local.str={wire.fileno()}",
                      "-device", f"virtio-net-pci,netdev=wire,host_mtu=4200,mac={mac}"]
        self.process = subprocess.Popen(words, pass_fds=fds, preexec_fn=before_qemu, stdin=subprocess.DEVNULL,
                                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for end in theirs.values():
            end.close()

    def stop(self):
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for end in self.sockets.values():
            end.close()

    def receive(self, port):
        """Takes what has come in on one port; False at its end."""
        try:
            data = self.sockets[port].recv(65536)
        except BlockingIOError:
            return True
        except ConnectionError:
            data = b""
        if port in self.sinks:
            self.sinks[port].write(data)
        elif port == "qmp":
            return bool(data)  # its greeting and its returns
        elif port == "console":
            self.console += data
        else:
            *lines, self.pending = (self.pending + data).split(b"\n")
            for line in lines:
                self.hear(line.decode(errors="replace").strip())
        return bool(data)

    def hear(self, line):
        word, _, rest = line.partition(" ")
        if word == "exit":
            self.status = int(rest)
        elif word == "broken":
            raise Failed(f"guest {self.name}: {rest}")
        self.phase = word

    def go(self):
        self.run_at = len(self.console)
        self.sockets["control"].send(b"go\n")

    def obey(self, folder):
        """While there is a file freeze-NAME this guest is stopped, while there is unplug-NAME its end of the wire is out.

        Beside it lies a file of that name and .done when it is so."""
        frozen, unplugged = (os.path.exists(os.path.join(folder, f"{what}-{self.name}")) for what in ("freeze", "unplug"))
        if frozen != self.frozen:
            self.process.send_signal(signal.SIGSTOP if frozen else signal.SIGCONT)
        if unplugged != self.unplugged:
            self.sockets["qmp"].send(b'{"execute":"qmp_capabilities"}\n' + json.dumps(
                {"execute": "set_link", "arguments": {"name": "wire", "up": not unplugged}}).encode() + b"\n")
        for what, now, before in (("freeze", frozen, self.frozen), ("unplug", unplugged, self.unplugged)):
            done = os.path.join(folder, f"{what}-{self.name}.done")
            if now and not before:
                open(done, "w", encoding="ascii").close()
            elif before and not now:
                os.remove(done)
        self.frozen, self.unplugged = frozen, unplugged

    def last_words(self):
        """What QEMU itself said, else the end of the kernel's log."""
        said = self.process.stdout.read() if self.process.poll() is not None or not self.process.wait(5) else b""
        return (said or self.console).decode(errors="replace").strip()[-400:]

    def complaints(self):
        """Lines of the kernel since the command began that tell of a bug in the kernel."""
        text = self.console[self.run_at or 0:].decode(errors="replace")
        lines = re.sub(r"invoked oom-killer.*?Memory cgroup out of memory", "", text, flags=re.S).splitlines()
        return [line.strip() for line in lines if COMPLAINT.search(line)]


class Sink:
    """Passes output on at once; with a prefix, line by line."""

    def __init__(self, stream, prefix=""):
        self.stream, self.prefix, self.rest = stream.buffer, prefix.encode(), b""

    def write(self, data):
        if self.prefix:
            *lines, self.rest = (self.rest + data).split(b"\n") if data else [self.rest, b""]
            data = b"".join(self.prefix + line + b"\n" for line in lines if data or line)
        try:
            self.stream.write(data)
            self.stream.flush()
        except BrokenPipeError as error:
            raise Failed("nobody reads the output any more") from error


class Rig:
    """One guest, or two on one wire, from the start of QEMU to the last exit status."""

    def __init__(self, image, commands, settings):
        self.image, self.settings = image, settings
        self.began = time.monotonic()
        self.deadline = self.began + settings.timeout
        self.used = self.ready_s = self.shared = None
        self.guests = []
        for name, command in zip("ab", commands):
            prefix = f"{name}| " if len(commands) > 1 else ""
            sinks = {"out": Sink(sys.stdout, prefix), "err": Sink(sys.stderr, prefix)}
            self.guests.append(Guest(name, command, settings, sinks))

    def run(self, accels):
        """Fills in each guest's status. accels are tried in turn until the guests come up."""
        with tempfile.TemporaryDirectory(prefix="kvrail-rxe-") as share:
            self.shared = os.path.join(share, "shared")
            os.mkdir(self.shared, mode=0o777)
            shutil.copy(os.path.join(HERE, "guest.sh"), share)
            for guest in self.guests:
                guest.prepare(share)
            try:
                while not self.attempt(share, accels[0], last=len(accels) == 1):
                    accels = accels[1:]
                for guest in self.guests:
                    guest.go()
                if not self.wait(lambda guest: guest.status is not None, self.deadline):
                    self.give_up_the_rest()
            finally:
                for guest in self.guests:
                    guest.stop()

    def attempt(self, share, accel, last):
        """True once every guest is ready; False if they do not come up and another accelerator is left to try."""
        began, self.used = time.monotonic(), accel
        ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) if len(self.guests) == 2 else (None,)
        for guest, end in zip(self.guests, ends):
            guest.start(self.image, share, accel, end)
            if end:
                end.close()
        try:
            limit = self.deadline if last else min(self.deadline, began + UP_WITHIN_S)
            if self.wait(lambda guest: guest.phase == "ready", limit):
                self.ready_s = time.monotonic() - began
                return True
            raise Failed(f"the guest did not come up within {time.monotonic() - began:.0f} s")
        except Failed:
            for guest in self.guests:
                guest.stop()
            if last:
                raise
            return False

    def wait(self, done, limit):
        """Moves what comes in until every guest is done, or until the time limit: False then."""
        selector = selectors.DefaultSelector()
        for guest in self.guests:
            for port, end in guest.sockets.items():
                selector.register(end, selectors.EVENT_READ, (guest, port))
        while not all(done(guest) for guest in self.guests):
            left = limit - time.monotonic()
            if left <= 0:
                return False
            for guest in self.guests:
                guest.obey(self.shared)
            for key, _ in selector.select(min(left, 0.2)):
                guest, port = key.data
                if not guest.receive(port):
                    selector.unregister(key.fileobj)
                    if guest.status is None and port == "control":
                        raise Failed(f"guest {guest.name} ended by itself: {guest.last_words()}")
        # What a command wrote before it ended has arrived before its exit status did, but may not be read yet.
        while selector.get_map() and (ready := selector.select(0)):
            for key, _ in ready:
                guest, port = key.data
                if not guest.receive(port):
                    selector.unregister(key.fileobj)
        return True

    def give_up_the_rest(self):
        for guest in self.guests:
            if guest.status is None:
                guest.status = TIMED_OUT
