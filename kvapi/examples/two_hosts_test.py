# SPDX-License-Identifier: Apache-2.0
"""two_hosts_test.py -- an example that takes --listen or --connect, in two processes

usage: two_hosts_test.py COMMAND...
"""
import subprocess
import sys

command = sys.argv[1:]
with subprocess.Popen([*command, "--listen", "127.0.0.1", "0"], stdout=subprocess.PIPE, text=True) as decode:
    line = decode.stdout.readline()
    assert line.startswith("listening on 127.0.0.1 "), line
    prefill = subprocess.run([*command, "--connect", *line.split()[2:]], capture_output=True, text=True, timeout=100)
    out = decode.communicate(timeout=100)[0]
print(prefill.stdout, prefill.stderr, out, sep="")
assert prefill.returncode == 0 and "request 1001 is visible" in prefill.stdout
assert decode.returncode == 0 and "request 1001 is here, every byte as it was sent" in out
