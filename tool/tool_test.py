# SPDX-License-Identifier: Apache-2.0
"""tool_test.py -- the kvrail command as a user and as a script see it

usage: tool_test.py PROGRAM
"""
import fcntl
import json
import os
import pty
import re
import socket
import struct
import subprocess
import sys
import termios
import time
import unittest

PROGRAM = sys.argv.pop(1)


CLEAN = {k: v for k, v in os.environ.items() if not k.startswith("KVCACHE_")}


def kvrail(*arguments, **environment):
    return subprocess.run([PROGRAM, *arguments], env={**CLEAN, **environment}, capture_output=True, text=True)


def held_port(test):
    """A port that nobody else is given during the test."""
    holder = socket.socket()
    test.addCleanup(holder.close)
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", 0))
    return str(holder.getsockname()[1])


class Command(unittest.TestCase):
    def test_help_and_version_go_to_stdout(self):
        for flag in "--help", "-h":
            run = kvrail(flag)
            self.assertEqual((run.returncode, run.stderr), (0, ""))
            self.assertIn("info", run.stdout)
        self.assertRegex(kvrail("--version").stdout, r"^kvrail \d+\.\d+\.\d+")

    def test_wrong_usage_exits_2_and_says_why_on_stderr(self):
        for arguments in [], ["nonsense"], ["info", "--nonsense"], ["info", "too much"], ["doctor", "--port", "x"], ["dump"], ["dump", "x"], ["top", "x"], ["top", "--interval", "0"]:
            run = kvrail(*arguments)
            self.assertEqual((run.returncode, run.stdout), (2, ""), arguments)
            self.assertIn("usage:", run.stderr)


class Info(unittest.TestCase):
    def test_json_names_every_device_and_option(self):
        run = kvrail("info", "--json", KVCACHE_SPIN_US="7")
        self.assertEqual((run.returncode, run.stderr), (0, ""))
        document = json.loads(run.stdout)
        self.assertEqual(set(document), {"version", "devices", "options", "warnings"})
        self.assertIn("shm", {device["transport"] for device in document["devices"]})
        for device in document["devices"]:
            self.assertIsInstance(device["usable"], bool)
            self.assertTrue(device["detail"], device)
        options = {option["name"]: option for option in document["options"]}
        self.assertEqual(options["KVCACHE_SPIN_US"]["value"], "7")
        self.assertEqual(options["KVCACHE_SPIN_US"]["source"], "environment")
        self.assertEqual(options["KVCACHE_SPIN_US"]["default"], "20")
        self.assertEqual(options["KVCACHE_MAX_PEERS"]["source"], "default")
        self.assertTrue(all(option["help"] for option in options.values()))
        self.assertEqual(document["warnings"], [])

    def test_tcp_has_a_row_for_each_interface_with_its_addresses(self):
        def rows(**settings):
            return {device["device"]: device for device in json.loads(kvrail("info", "--json", **settings).stdout)["devices"]
                    if device["transport"] == "tcp"}

        tcp = rows()
        self.assertIn("127.0.0.1", tcp["lo"]["detail"].split(", "))
        self.assertTrue(all(row["usable"] for row in tcp.values()), tcp)
        bound = rows(KVCACHE_SOCKET_IFNAME="lo")
        self.assertEqual({name for name, row in bound.items() if row["usable"]}, {"lo"})
        self.assertEqual(set(bound), set(tcp))
        refused = rows(KVCACHE_TRANSPORT="shm")
        self.assertEqual([(row["usable"], row["detail"]) for row in refused.values()], [(False, "not allowed by KVCACHE_TRANSPORT")])

    def test_the_table_holds_the_same_rows_in_straight_columns(self):
        run = kvrail("info")
        document = json.loads(kvrail("info", "--json").stdout)
        self.assertEqual(run.returncode, 0)
        lines = run.stdout.splitlines()
        head = next(line for line in lines if line.startswith("option "))
        for option in document["options"]:
            row = next(line for line in lines if line.startswith(option["name"] + " "))
            value = option["value"] or "(empty)"
            self.assertTrue(row[head.index("value"):].startswith(value + " "), row)
            self.assertTrue(row[head.index("source"):].startswith("default "), row)
        for device in document["devices"]:
            self.assertTrue(any(re.match(rf"{device['transport']} .*{re.escape(device['detail'])}$", line)
                                for line in lines), device)

    def test_a_misspelt_variable_is_warned_about_with_the_nearest_name(self):
        for arguments in ["info"], ["info", "--json"]:
            run = kvrail(*arguments, KVCACHE_SPIN_MS="7")
            self.assertEqual(run.returncode, 0)
            self.assertIn("KVCACHE_SPIN_MS", run.stdout)
            self.assertRegex(run.stdout, "KVCACHE_SPIN_MS.*KVCACHE_SPIN_US")
        self.assertRegex(kvrail("info", KVCACHE_SPIN_MS="7").stdout, r"^kvrail .*\n\nwarning: KVCACHE_SPIN_MS")

    def test_on_a_terminal_rows_are_wrapped_and_in_a_pipe_they_are_not(self):
        for command in "info", "doctor":
            ours, theirs = pty.openpty()
            fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 90, 0, 0))
            with open(ours, "rb", buffering=0) as terminal:
                run = subprocess.Popen([PROGRAM, command], stdout=theirs, env=CLEAN)
                os.close(theirs)
                text = b""
                try:
                    while part := terminal.read(4096):
                        text += part
                except OSError:
                    pass  # the other end was closed
                run.wait()
            lines = text.decode().replace("\r", "").splitlines()
            self.assertLessEqual(max(map(len, lines)), 90)
            piped = kvrail(command).stdout
            self.assertEqual(" ".join(" ".join(lines).split()), " ".join(piped.split()))

    def test_a_bad_value_fails_and_names_the_range(self):
        run = kvrail("info", KVCACHE_IB_TIMEOUT="99")
        self.assertEqual((run.returncode, run.stdout), (1, ""))
        self.assertRegex(run.stderr, "KVCACHE_IB_TIMEOUT.*14..31")
        run = kvrail("info", "--json", KVCACHE_IB_TIMEOUT="99")
        self.assertEqual(run.returncode, 1)
        self.assertEqual(json.loads(run.stdout)["error"]["code"], "ARG")


class Doctor(unittest.TestCase):
    def test_every_line_has_a_status_and_what_is_not_ok_has_a_fix(self):
        run = kvrail("doctor", "--json")
        document = json.loads(run.stdout)
        self.assertEqual(set(document), {"version", "checks", "ok", "warnings", "failures"})
        self.assertEqual(run.returncode, 1 if document["failures"] else 0)
        names = {check["what"] for check in document["checks"]}
        self.assertLessEqual({"memlock", "ptrace_scope", "container", "seccomp", "cgroup", "driver", "gpu", "shm"}, names)
        for check in document["checks"]:
            self.assertIn(check["status"], ("ok", "warn", "fail"))
            self.assertTrue(check["text"], check)
            self.assertEqual(bool(check["fix"]), check["status"] != "ok", check)

    def test_a_bad_option_is_a_failure_that_names_it(self):
        run = kvrail("doctor", KVCACHE_SPIN_US="many")
        self.assertEqual(run.returncode, 1)
        self.assertRegex(run.stdout, r"(?m)^fail .*KVCACHE_SPIN_US.*\n +fix: correct that value, or unset it")

    def test_nothing_is_exported_where_no_device_is_usable(self):
        run = kvrail("doctor", "--export-env", KVCACHE_TRANSPORT="shm")
        self.assertEqual((run.returncode, run.stdout), (1, ""))
        self.assertIn("nothing to export", run.stderr)

    def test_a_peer_is_written_to_and_read_back(self):
        port = held_port(self)
        other = subprocess.Popen([PROGRAM, "doctor", "--listen", "127.0.0.1", "--port", port, "--seconds", "200"],
                                 stdout=subprocess.PIPE, text=True)
        try:
            self.assertIn("listening", other.stdout.readline())
            run = kvrail("doctor", "--peer", "127.0.0.1", "--port", port)
            self.assertRegex(run.stdout, r"(?m)^ok +resolve +127.0.0.1 is 127.0.0.1\nok +connect +shm: .*\nok +write .*read back alike")
        finally:
            other.kill()
            other.communicate()

    def test_a_peer_that_is_not_there_is_a_failure_with_a_fix(self):
        run = kvrail("doctor", "--peer", "127.0.0.1", "--port", held_port(self))
        self.assertEqual(run.returncode, 1)
        self.assertRegex(run.stdout, r"(?m)^fail  connect .*(?:\n) +fix: there: kvrail doctor --listen 127.0.0.1")
        # Its deadline is the option's, also where that is longer than the default.
        mute = socket.create_server(("127.0.0.1", 0))  # the kernel accepts, nobody answers
        self.addCleanup(mute.close)
        began = time.monotonic()
        run = kvrail("doctor", "--peer", "127.0.0.1", "--port", str(mute.getsockname()[1]), KVCACHE_HANDSHAKE_MS="6000")
        self.assertGreaterEqual(time.monotonic() - began, 6)
        self.assertRegex(run.stdout, r"(?m)^fail  connect .*KV_ERR_TIMEOUT: the deadline passed")
        run = kvrail("doctor", "--peer", "no-such-host.invalid")
        self.assertEqual(run.returncode, 1)
        self.assertRegex(run.stdout, r"(?m)^fail  resolve .*\n +fix: ")


if __name__ == "__main__":
    unittest.main()
