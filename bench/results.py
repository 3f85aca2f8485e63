# SPDX-License-Identifier: Apache-2.0
"""results.py -- what the benchmarks in Python write, as results.c does: README.md"""
import errno
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))


def can_write(path):
    """Ends the program with a sentence if not; to be asked before anything is measured. The file stays as it is."""
    if not path:
        return
    try:
        made = not os.path.exists(path)
        with open(path, "a", encoding="utf-8"):
            pass
        if made:
            os.unlink(path)
    except OSError as error:
        sys.exit(f"{os.path.basename(sys.argv[0])}: {path} cannot be written: {os.strerror(error.errno or errno.EIO)}")


def command():
    """As one would type it, with the variables before it."""
    settings = [f"{name}={value}" for name, value in os.environ.items() if name.startswith(("KVCACHE_", "NCCL_"))]
    return shlex.join([*settings, os.path.basename(sys.argv[0]), *sys.argv[1:]])


def commit():
    if os.environ.get("COMMIT"):  # of a tree that is a copy
        return os.environ["COMMIT"]
    done = subprocess.run(["git", "-C", HERE, "describe", "--always", "--dirty"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                          text=True, check=False)
    return done.stdout.strip() or "unknown"


def cpu():
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        names = [line.partition(": ")[2].strip() for line in file if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"


def head(program, transport=None, path=None, wait=None, **settings):
    return {"program": program, "command": command(), "commit": commit(), "host": platform.node(),
            "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "cpu": cpu(), "transport": transport, "path": path,
            "wait": wait, "settings": settings}


def write(path, told, rows):
    """A row on each line."""
    text = json.dumps(told, indent=2)[:-2] + ',\n  "rows": [\n    ' + ",\n    ".join(json.dumps(row) for row in rows) + "\n  ]\n}\n"
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def documented():
    """What README.md says: {program: the fields of its rows}; those of every file are in "The JSON files"."""
    with open(os.path.join(HERE, "README.md"), encoding="utf-8") as file:
        sections = re.split(r"^##+ (.*)\n", file.read(), flags=re.MULTILINE)
    return {name: re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE) for name, text in zip(sections[1::2], sections[2::2])}


def table_text(columns, rows, texts=1):
    """As Markdown; all but the first `texts` columns are numbers."""
    lines = (columns, ["---"] * texts + ["---:"] * (len(columns) - texts), *rows)
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)


def print_table(columns, rows, texts=1):
    print(table_text(columns, rows, texts), end="")
    sys.stdout.flush()
