# SPDX-License-Identifier: Apache-2.0
"""table.py -- the rows of collectives.py perf side by side: the plugin, NCCL's Socket, NCCL's SHM, and the bar

usage: table.py KVRAIL.json SOCKET.json SHM.json
"""
import json
import os
import sys


def load(path):
    if not os.path.exists(path):
        return {}
    with open(path, encoding="utf-8") as file:
        return {(row["what"], row["bytes"]): row for row in json.load(file)}


def cell(row, what):
    return f"{row[what]:9.2f}" if row else f"{'-':>9}"


def main():
    ours, socket, shm = (load(path) for path in sys.argv[1:4])
    print(f"{'':11} {'':>10} | {'microseconds':^29} | {'GB/s':^29} | bar")
    print(f"{'operation':11} {'bytes':>10} | " + " ".join(f"{name:>9}" for name in ("kvrail", "Socket", "SHM") * 2)
          .replace("SHM    kvrail", "SHM |    kvrail") + " |")
    for key in sorted(set(ours) | set(socket), key=lambda k: (k[0], k[1])):
        rows = [table.get(key) for table in (ours, socket, shm)]
        verdict = ""
        if rows[0] and rows[1]:
            ratio = rows[1]["us"] / rows[0]["us"]
            verdict = f"{ratio:.2f} x Socket"
            if key[1] >= 16 << 20:
                verdict += " ok" if ratio >= 2 else " BELOW 2"
            elif key[1] == 8:
                verdict += " ok" if ratio >= 1 else " BELOW 1"
        print(f"{key[0]:11} {key[1]:>10} | " + " ".join(cell(row, "us") for row in rows) + " | "
              + " ".join(cell(row, "gb_per_s") for row in rows) + f" | {verdict}")


if __name__ == "__main__":
    main()
