#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""pair.py -- one fault after another between a prefill and a decode process in two guests on one wire

Without --side it boots the guests. kv_peer decode runs in guest a, kv_peer prefill in guest b, where the faults are made while
requests are written. Each ends in success or in a typed error at both sides within its bound, then requests go on."""
import argparse
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
SHARED = os.environ.get("RXE_SHARED", "")
LOG, COMMAND = os.path.join(SHARED, "decode.log"), os.path.join(SHARED, "command")
PREFILL_LOG = "/tmp/prefill.log"
ADDRESS = ["10.77.0.1", "7777"]
TRANSPORT = os.environ.get("KVCACHE_TRANSPORT")

OP_S = 5 + 1 + 2  # an operation's default deadline, its cancelling, and what an emulated machine may be late
TOLD_S = 20  # a cut lasts until both sides have reported it; this is the most
FROZEN_S = 8  # longer than an operation's deadline
GONE = {"PEER_LOST", "LINK", "TIMEOUT", "RNR", "UNREACHABLE", "CLOSED"}


def sh(line):
    subprocess.run(line, shell=True, check=True)


def until(done, limit_s):
    """Seconds until done() was true, or None."""
    began = time.monotonic()
    while not done():
        if time.monotonic() - began > limit_s:
            return None
        time.sleep(0.05)
    return time.monotonic() - began


def text_of(path, offset=0):
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read().decode(errors="replace")


def resources():
    said = subprocess.run(["rdma", "resource", "show"], text=True, stdout=subprocess.PIPE, check=True).stdout
    return re.sub(r"^\d+: ", "", said, flags=re.M)  # a device that was added again has another number


class While:
    """Something that the rig does to a guest while a file is there: freeze-a, unplug-b."""

    def __init__(self, what):
        self.path = os.path.join(SHARED, what)

    def __enter__(self):
        open(self.path, "w", encoding="ascii").close()
        self.until_done(True)

    def __exit__(self, *_):
        os.remove(self.path)
        self.until_done(False)

    def until_done(self, there):
        if until(lambda: os.path.exists(self.path + ".done") == there, 30) is None:
            raise RuntimeError(f"the rig did not {'' if there else 'end '}{os.path.basename(self.path)}")


# ------------------------------------------------------------------------------------------------ guest a


def decode_side(kv_peer):
    """Runs kv_peer decode, again after it was ended; does what guest b asks for: a signal's name, or a shell command."""
    log = open(LOG, "ab")

    def start():
        return subprocess.Popen([kv_peer, "decode", *ADDRESS], stdout=log, stderr=log)

    before, process = resources(), start()
    while process.poll() is None:
        if os.path.exists(COMMAND):
            command = text_of(COMMAND)
            if command.startswith("SIG"):
                process.send_signal(signal.Signals[command])
                if command in ("SIGKILL", "SIGTERM"):
                    process.wait()
                    process = start()
            else:
                sh(command)
            os.remove(COMMAND)
        time.sleep(0.05)
    print(text_of(LOG)[-400:].splitlines()[-1], flush=True)
    left = until(lambda: resources() == before, 5)
    if left is None:
        print(f"left behind: {resources()}")
    return process.returncode or left is None


# ------------------------------------------------------------------------------------------------ guest b


class Fault:
    """A prefill process that writes, and what both sides say meanwhile."""

    def __init__(self, kv_peer, tag):
        self.kv_peer, self.tag = kv_peer, tag
        self.log_from = os.path.getsize(LOG) if os.path.exists(LOG) else 0
        self.prefill, self.failed, self.bound_s, self.note = None, [], OP_S, {}

    def write(self):
        """Begins to write requests; on return some have been answered."""
        with open(PREFILL_LOG, "wb") as log:
            self.prefill = subprocess.Popen([self.kv_peer, "prefill", *ADDRESS, str(self.tag)], stdout=log, stderr=log)
        if until(lambda: "connected to" in text_of(PREFILL_LOG) or self.prefill.poll() is not None, 40) is None:
            self.bad("the writer did not connect")
        elif f" over {TRANSPORT}: " not in text_of(PREFILL_LOG):
            self.bad(f"the writer did not connect over {TRANSPORT}")
        time.sleep(1)

    def decode_log(self):
        return text_of(LOG, self.log_from) if os.path.exists(LOG) else ""

    def peer(self, command):
        """Has guest a do it."""
        with open(COMMAND + ".new", "w", encoding="ascii") as file:
            file.write(command)
        os.rename(COMMAND + ".new", COMMAND)
        if until(lambda: not os.path.exists(COMMAND), 30) is None:
            self.bad(f"guest a did not {command}")

    def decode_codes(self):
        return re.findall(r"decode: (?:peer lost: |answer failed: [a-z_]*: KV_ERR_)(\w+)", self.decode_log())

    def prefill_failures(self):
        return [(code, int(ms)) for ms, code in
                re.findall(r"failed after (\d+) ms: .*?KV_ERR_(\w+)", text_of(PREFILL_LOG))]

    def until_told(self, prefill=True, decode=True):
        """Waits until the sides that must notice the fault have reported it."""
        began, sides = time.monotonic(), {}
        if prefill:
            sides["prefill_told_s"] = self.prefill_failures
        if decode:
            sides["decode_told_s"] = self.decode_codes
        while sides and time.monotonic() - began < TOLD_S:
            for side in [side for side, told in sides.items() if told()]:
                self.note[side] = round(time.monotonic() - began, 1)
                del sides[side]
            time.sleep(0.05)
        for side in sides:
            self.bad(f"{side.split('_')[0]} told nothing within {TOLD_S} s")

    def end(self, failures, codes=(), decode=()):
        """The writer ends after the request that it is at; failures: 0, "some" or "any", each with one of the codes."""
        self.prefill.terminate()
        try:
            status = self.prefill.wait(60)
        except subprocess.TimeoutExpired:
            self.prefill.kill()
            status = f"none, {self.prefill.wait()} after 60 s"
        log, told = text_of(PREFILL_LOG), self.prefill_failures()
        summary = re.search(r"requests (\d+) failures (\d+) connects (\d+) longest (\d+) ms next (\d+)", log)
        if status or not summary:
            self.bad(f"the writer ended with status {status}: {log[-300:]}")
        else:
            self.tag = int(summary[5]) + 10
            self.note.update(requests=int(summary[1]), connects=int(summary[3]), longest_ms=int(summary[4]))
            if int(summary[2]) != len(told):
                self.bad("a failure without its cause")
        self.note["failures"] = [f"{code} {ms} ms" for code, ms in told]
        lost = re.search(r"log: connection to [^ ]* is lost: (.*)", log)
        if told and lost:
            self.note["said"] = lost[1]
        if failures != "any" and (failures == "some") != bool(told):
            self.bad(f"{len(told)} failures, not {failures}")
        self.bad_codes("prefill", [code for code, _ in told], codes)
        if max((ms for _, ms in told), default=0) > 1000 * self.bound_s:
            self.bad(f"a failure was told after more than {self.bound_s} s")
        until(lambda: self.decode_codes() or not told, 10)  # a writer that has gone is told there, too
        self.note["decode"] = [code for code in self.decode_codes() if code != "CLOSED"]
        self.bad_codes("decode", self.note["decode"], codes or decode)
        if "wrong words" in self.decode_log():
            self.bad("wrong bytes")

    def bad_codes(self, side, codes, wanted):
        for code in codes:
            if code not in wanted:
                self.bad(f"{side} told {code}")

    def bad(self, why):
        self.failed.append(why)


def netem(words, failures=0, seconds=4):
    def fault(f):
        f.write()
        sh(f"tc qdisc add dev eth0 root netem {words}")
        f.peer(f"tc qdisc add dev eth0 root netem {words}")
        time.sleep(seconds)
        sh("tc qdisc del dev eth0 root")
        f.peer("tc qdisc del dev eth0 root")
        f.end(failures, GONE)
    return fault


TCP, ROCE = 6, 17  # protocol numbers; nothing else between the guests goes by UDP


def lose(protocol):
    """What a guest does to lose all that it sends by this protocol."""
    return ("tc qdisc add dev eth0 root handle 1: prio bands 4 && tc qdisc add dev eth0 parent 1:4 netem loss 100% && "
            f"tc filter add dev eth0 parent 1: protocol ip u32 match ip protocol {protocol} 0xff flowid 1:4")


def quiet(f):
    f.write()
    time.sleep(4)
    f.end(0)


def link_down_1s(f):
    f.write()
    with While("unplug-b"):
        time.sleep(0.7)
    f.end(0)


def link_down_long(f):
    f.write()
    with While("unplug-b"):
        f.until_told()
    f.end("some", GONE)


def interface_down_1s(f):
    f.write()
    sh("ip link set eth0 down; sleep 1; ip link set eth0 up")
    f.end("any", GONE)


def silence_there(f):
    f.write()
    sh("tc qdisc add dev eth0 root netem loss 100%")
    f.until_told()
    sh("tc qdisc del dev eth0 root")
    f.end("some", GONE)


def silence_back(f):
    f.write()
    f.peer("tc qdisc add dev eth0 root netem loss 100%")
    f.until_told()
    f.peer("tc qdisc del dev eth0 root")
    f.end("some", GONE)


def control_cut_2s(f):
    f.write()
    sh(lose(TCP))
    time.sleep(2)
    sh("tc qdisc del dev eth0 root")
    f.end(0)


def control_cut_long(f):
    f.write()
    sh(lose(TCP))
    time.sleep(12)
    sh("tc qdisc del dev eth0 root")
    f.end(0)


def data_cut_there(f):
    f.write()
    sh(lose(ROCE))
    f.until_told()
    sh("tc qdisc del dev eth0 root")
    f.end("some", GONE)


def data_cut_back(f):
    f.write()
    f.peer(lose(ROCE))
    f.until_told()
    f.peer("tc qdisc del dev eth0 root")
    f.end("some", GONE)


def address_gone_10s(f):
    f.write()
    sh("ip addr flush dev eth0; sleep 10; ip addr add 10.77.0.2/24 dev eth0")
    f.end("some", GONE)


def clocks_jump(f):
    f.write()
    sh("date -s '1 hour'")
    f.peer("date -s '2 days ago'")
    time.sleep(3)
    sh("date -s '1 hour ago'")
    f.peer("date -s '2 days'")
    f.end(0)


def address_gone(f):
    f.write()
    sh("ip addr del 10.77.0.2/24 dev eth0; sleep 1; ip addr add 10.77.0.2/24 dev eth0")
    f.end("any", GONE)


def mtu_of_one_side(f):
    f.peer("ip link set eth0 mtu 1500")
    f.write()
    time.sleep(2)
    f.end(0)
    f.peer("ip link set eth0 mtu 4200")


def mtu_shrinks(f):
    f.write()
    sh("ip link set eth0 mtu 1500")
    time.sleep(OP_S)
    f.end("any", GONE)
    sh("ip link set eth0 mtu 4200")


def rdma_link_deleted(f):
    f.write()
    gone = subprocess.Popen(["rdma", "link", "delete", "rxe0"])
    time.sleep(2)
    f.end("any", GONE | {"DEVICE"})
    if gone.wait(60):
        f.bad("rdma link delete failed")
    sh("rdma link add rxe0 type rxe netdev eth0")


def kill_prefill(f):
    f.write()
    f.prefill.kill()
    f.prefill.wait()
    f.until_told(prefill=False)
    f.tag += 100000
    f.write()
    f.end(0, decode=GONE)


def kill_decode(f):
    f.write()
    f.peer("SIGKILL")
    f.until_told(decode=False)
    f.end("some", GONE)


def restart_decode(f):
    f.write()
    f.peer("SIGTERM")
    f.until_told(decode=False)
    f.end("some", GONE)


def freeze_prefill(f):
    f.write()
    f.prefill.send_signal(signal.SIGSTOP)
    time.sleep(FROZEN_S)
    f.bound_s += FROZEN_S
    f.prefill.send_signal(signal.SIGCONT)
    f.end("any", GONE)


def freeze_decode(f):
    f.write()
    f.peer("SIGSTOP")
    f.until_told(decode=False)
    f.peer("SIGCONT")
    f.end("some", GONE)


def freeze_guest(f):
    f.write()
    with While("freeze-a"):
        f.until_told(decode=False)
    f.end("some", GONE)


FAULTS = {
    "quiet": (quiet, "nothing, for 4 s"),
    "loss": (netem("loss 1%"), "1 % of the packets lost, both ways"),
    "reorder": (netem("delay 2ms reorder 90% 50%"), "packets overtake others"),
    "duplicate": (netem("duplicate 5%"), "5 % of the packets come twice"),
    "corrupt": (netem("corrupt 1%"), "a bit is wrong in 1 % of the packets"),
    "delay": (netem("delay 20ms"), "20 ms more each way"),
    "delay_200ms": (netem("delay 200ms 50ms", "any"), "150 to 250 ms more each way, by chance"),
    "loss_30": (netem("loss 30%", "any", 3), "30 % of the packets lost, both ways, for 3 s"),
    "clocks_jump": (clocks_jump, "prefill's clock set an hour ahead, decode's two days back, for 3 s"),
    "control_cut_2s": (control_cut_2s, "the TCP connection alone cut, for 2 s"),
    "control_cut_long": (control_cut_long, "the TCP connection alone cut, for 12 s"),
    "data_cut_there": (data_cut_there, "RDMA alone cut from prefill to decode until it is reported"),
    "data_cut_back": (data_cut_back, "RDMA alone cut from decode to prefill until it is reported"),
    "link_down_1s": (link_down_1s, "prefill's cable out for 1 s"),
    "interface_down_1s": (interface_down_1s, "ip link set down at prefill for 1 s"),
    "mtu_of_one_side": (mtu_of_one_side, "decode's MTU 1500, prefill's 4200, before connecting"),
    "link_down_long": (link_down_long, "prefill's cable out until both sides have reported it"),
    "silence_there": (silence_there, "packets from prefill to decode are lost until it is reported"),
    "silence_back": (silence_back, "packets from decode to prefill are lost until it is reported"),
    "address_gone": (address_gone, "prefill's address away for 1 s"),
    "address_gone_10s": (address_gone_10s, "prefill's address away for 10 s"),
    "mtu_shrinks": (mtu_shrinks, "prefill's MTU from 4200 to 1500 under load"),
    "rdma_link_deleted": (rdma_link_deleted, "rdma link delete under load at prefill, then added"),
    "kill_prefill": (kill_prefill, "kill -9 of prefill; another one connects"),
    "kill_decode": (kill_decode, "kill -9 of decode; started again"),
    "restart_decode": (restart_decode, "decode ends in good order; started again"),
    "freeze_prefill": (freeze_prefill, f"prefill stopped for {FROZEN_S} s"),
    "freeze_decode": (freeze_decode, "decode stopped until prefill has reported it"),
    "freeze_guest": (freeze_guest, "decode's whole machine stopped until prefill has reported it"),
}


OFTEN = {"mtu_shrinks": 6}  # what has no one course is run this often for the results


def prefill_side(kv_peer, names):
    before, tag, status = resources(), 1, 0
    if until(lambda: os.path.exists(LOG) and "listening" in text_of(LOG), 60) is None:
        print("guest a has not started its decode process")
        return 1
    for name in names:
        fault = Fault(kv_peer, tag)
        FAULTS[name][0](fault)
        tag = fault.tag
        print("result " + json.dumps({"fault": name, "does": FAULTS[name][1], **fault.note,
                                      "ok": not fault.failed, "why": fault.failed}), flush=True)
        if fault.failed:
            print(f"{name}: NOT AS EXPECTED\n{text_of(PREFILL_LOG)[-3000:]}\n{fault.decode_log()[-3000:]}", flush=True)
            status = 1
    subprocess.run([kv_peer, "end", *ADDRESS], check=True, timeout=60)
    if until(lambda: resources() == before, 5) is None:
        print(f"left behind: {resources()}\nnot {before}")
        status = 1
    return status


# ------------------------------------------------------------------------------------------------ host


def run_guests(a, b, timeout, **environment):
    """Boots two guests that run these commands; prints what they say, and returns the exit status and the results that they tell."""
    words = [os.path.join(HERE, "rxe-pair"), "--timeout", str(timeout), shlex.join(a), shlex.join(b)]
    results = []
    # Packets are tried for 4 s: longer than a cable that is out for a second, also where a second takes longer.
    with subprocess.Popen(words, env={**os.environ, "KVCACHE_IB_TIMEOUT": "17", **environment}, text=True,
                          stdout=subprocess.PIPE) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            if line[1:].startswith("| result "):
                results.append(json.loads(line[len("b| result "):]))
    return process.returncode, results


def run_faults(args, names):
    me = [sys.executable, "-B", os.path.abspath(__file__), "--side"]
    return run_guests([*me, "a", args.kv_peer], [*me, "b", args.kv_peer, *names], args.timeout, KVCACHE_TRANSPORT=args.transport,
                      KVCACHE_OP_TIMEOUT_MS="5000")  # the default: over TCP it is what tells of a process that stands still


def table(results):
    """A row for each fault, of its longest run."""
    rows = ["| fault | prefill | decode | longest request |", "| --- | --- | --- | --- |"]
    for name in FAULTS:
        runs = [one for one in results if one["fault"] == name]
        one = max(runs, key=lambda run: (not run["ok"], run.get("longest_ms", 0)), default=None)
        if not one:
            continue
        said = ", ".join(one["failures"]) or "nothing"
        peer = ", ".join(sorted(set(one["decode"]))) or "nothing"
        ok = "" if one["ok"] else " (NOT AS EXPECTED)"
        often = f" (longest of {len(runs)} runs)" if len(runs) > 1 else ""
        rows.append(f"| {one['does']}{often}{ok} | {said} | {peer} | {one.get('longest_ms', '?')} ms |")
    return "\n".join(rows) + "\n"


def keep(new, path):
    """The results in the place of older ones of the same faults, each with its commit; and the table in docs/rdma.md."""
    root = os.path.join(HERE, "..", "..")
    commit = subprocess.run(["git", "-C", root, "describe", "--always", "--dirty", "--exclude=*"], text=True,
                            stdout=subprocess.PIPE, check=True).stdout.strip()
    again = {one["fault"] for one in new}
    old = json.loads(text_of(path))["results"] if os.path.exists(path) else []
    results = [one for one in old if one["fault"] in FAULTS and one["fault"] not in again]
    results += [{**one, "commit": commit, "load": round(os.getloadavg()[0], 1)} for one in new]
    results.sort(key=lambda one: list(FAULTS).index(one["fault"]))
    with open(path, "w", encoding="utf-8") as file:
        json.dump({"command": "tests/rxe/pair.py --results docs/results/rxe-pair.json build/tests/rxe/kv_peer",
                   "results": results}, file, indent=1)
        file.write("\n")
    page = os.path.join(root, "docs", "rdma.md")
    text = text_of(page)
    begin, end = "<!-- made by tests/rxe/pair.py -->\n", "<!-- end -->\n"
    head, rest = text.split(begin)
    with open(page, "w", encoding="utf-8") as file:
        file.write(head + begin + table(results) + end + rest.split(end)[1])


def main():
    parser = argparse.ArgumentParser(prog="pair.py", description=__doc__)
    parser.add_argument("kv_peer", help="the program of the build")
    parser.add_argument("faults", nargs="*", metavar="FAULT", help="of: " + " ".join(FAULTS))
    parser.add_argument("--side", choices=("a", "b"), help=argparse.SUPPRESS)
    parser.add_argument("--transport", choices=("ib", "tcp"), default="ib", help="by which the blocks go (ib)")
    parser.add_argument("--results", metavar="FILE", help="keep what they do in FILE and in the table of docs/rdma.md")
    parser.add_argument("--timeout", type=int, default=580, help="limit for everything, in seconds (580)")
    args = parser.parse_args()
    if args.side == "a":
        return decode_side(args.kv_peer)
    if args.side == "b":
        return prefill_side(args.kv_peer, args.faults)
    if not args.results:
        return run_faults(args, args.faults or list(FAULTS))[0]
    status, results = 0, []
    names = [name for name in args.faults or FAULTS for _ in range(OFTEN.get(name, 1))]
    for i in range(0, len(names), 7):
        one, more = run_faults(args, names[i:i + 7])
        status, results = status or one, results + more
    keep(results, args.results)
    return status


if __name__ == "__main__":
    sys.exit(main())
