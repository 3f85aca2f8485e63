#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""pair.py -- a program that is server and client by its arguments, over softnic, and what softnic counted

usage: pair.py LIBRARY_FOLDER EXPECT PROGRAM [ARGUMENTS]

EXPECT is what the client has counted, as name=number,… (README.md lists the names). The server is started
with -p PORT, the client with -p PORT and the address.
"""
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from ports import held_port  # noqa: E402

TIMEOUT = 120


def listens(port):
    for table in "/proc/net/tcp", "/proc/net/tcp6":
        with open(table, encoding="ascii") as rows:
            if any(f":{port:04X} " in row and row.split()[3] == "0A" for row in rows):
                return True
    return False


def main():
    folder, expect, program, *arguments = sys.argv[1:]
    if not shutil.which(program):
        print(f"skipped: no {program} here")
        return 77
    with tempfile.TemporaryDirectory() as out:
        counted = os.path.join(out, "client.json")
        env = dict(os.environ, LD_LIBRARY_PATH=folder, SOFTNIC_WORLD=f"pair{os.getpid()}")
        port = held_port()
        command = [program, *arguments, "-p", str(port)]
        with subprocess.Popen(command, env=env) as server:
            while server.poll() is None and not listens(port):
                time.sleep(0.02)
            try:
                client = subprocess.run(command + ["127.0.0.1"], env=dict(env, SOFTNIC_STATS=counted), timeout=TIMEOUT,
                                        check=False)
                server.wait(TIMEOUT)
            finally:
                server.kill()
        if client.returncode or server.returncode:
            print(f"{program}: exit codes {client.returncode} and {server.returncode}")
            return 1
        with open(counted, encoding="ascii") as text:
            counts = json.load(text)["softnic"]
    print(counts)
    wrong = [pair for pair in expect.split(",") if counts[pair.split("=")[0]] != int(pair.split("=")[1])]
    print(f"instead of {wrong}" if wrong else "as expected")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
