#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""two_hosts.py -- a job of mpirun with its ranks on two hosts, which are two network namespaces (wire.py)

    two_hosts.py [--loss SHARE] [--delay SECONDS] RANKS PROGRAM [ARGUMENT ...]

Half of the ranks run on each. mpirun starts on the first; on the second it starts its daemon by what stands in for ssh."""
import argparse
import os
import subprocess
import sys
import tempfile

import wire as wires


def run(args):
    wire = wires.Wire(1)
    wire.loss, wire.delay = [args.loss, args.loss], args.delay
    with tempfile.TemporaryDirectory(prefix="kvrail-hosts-") as folder:
        ssh = os.path.join(folder, "ssh")
        with open(ssh, "w", encoding="ascii") as file:
            file.write(f"#!/bin/sh\nwhile [ \"$1\" != {wires.ADDRESS['right']} ]; do shift; done\nshift\n"
                       f"exec {' '.join(wire.sides[1].words)} sh -c \"$*\"\n")
        os.chmod(ssh, 0o755)
        hosts = ",".join(f"{wires.ADDRESS[side.name]}:{args.ranks // 2}" for side in wire.sides)
        words = ["mpirun", "-np", str(args.ranks), "--host", hosts, "--mca", "plm_rsh_agent", ssh, "--mca", "btl", "self,tcp",
                 "--mca", "btl_tcp_if_include", "wire0", "--mca", "oob_tcp_if_include", "wire0", args.program, *args.argument]
        job = subprocess.run([*wire.sides[0].words, *words], check=False,
                             env={**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
                                  "TMPDIR": folder})
    print(f"{wire.carried} packets between the hosts, {wire.lost} lost")
    for side in wire.sides:
        side.end()
    return job.returncode


def main():
    parser = argparse.ArgumentParser(prog="two_hosts.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loss", type=float, default=0, help="share of the packets that the wire loses, each way")
    parser.add_argument("--delay", type=float, default=0, help="seconds that a packet takes, each way")
    parser.add_argument("ranks", type=int)
    parser.add_argument("program")
    parser.add_argument("argument", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    if not wires.inside():
        print(f"skipped: {wires.enter(sys.argv)}")
        return 77
    return run(args)


if __name__ == "__main__":
    sys.exit(main())
