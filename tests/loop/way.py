# SPDX-License-Identifier: Apache-2.0
"""way.py -- the way of one block and of its acknowledgement is the one that docs/architecture.md draws

usage: way.py DOCUMENT shm|ib|tcp PROGRAM

PROGRAM (kv_way.c) writes one block, in gdb, inside which this file runs as well. At each end of the way the stack says through
which files the calls went: that list is a row of the document's table, has at most LIMIT files, and comes back to none that it
has left."""
import os
import re
import shutil
import subprocess
import sys

try:
    import gdb
except ImportError:  # started by a person or by ctest
    gdb = None

LIMIT = 10
# The end of each way: a function there (or all of a file), and what must be on the stack as well.
ACKNOWLEDGED = ("its end", "kv_op_end", "kv_write_blocks")
ENDS = {
    "shm": [("the block", "store.c:", "post_piece"), ("the acknowledgement", "shm_msg", "kv_incoming_flush"), ACKNOWLEDGED],
    "tcp": [("the block", "queue_send", "post_(piece|commit)"), ("the acknowledgement", "queue_send", "kv_incoming_flush"), ACKNOWLEDGED],
    "ib": [("the block", "fake_post_send", "post_(piece|commit)"), ("the acknowledgement", "fake_post_send", "kv_incoming_flush"),
           ACKNOWLEDGED],
}


def drawn(document, transport):
    """{name of the way: [files]} of the rows `| the block, shm | `a.c` `b.c` … |`"""
    with open(document, encoding="utf-8") as file:
        rows = re.findall(r"^\| (the block|the acknowledgement|its end), (\w+) \|(.*)\|$", file.read(), re.M)
    return {way: re.findall(r"`([^`]+)`", files) for way, of, files in rows if of == transport}


def in_library(path, root):
    """The part of `path` that is a file of the library below the root; the checkout itself may be named transport."""
    parts = path.split("/")
    tails = ["/".join(parts[i:]) for i in range(len(parts))]
    return next((tail for tail in tails if tail.startswith(("transport/", "kvapi/")) and tail.endswith(".c")
                 and os.path.isfile(os.path.join(root, tail))), None)


def stack(root):
    """Names of the functions and files of the library, the caller's first."""
    functions, files = [], []
    frame = gdb.newest_frame()
    while frame is not None and frame.is_valid():
        table = frame.find_sal().symtab
        functions.insert(0, frame.name() or "")
        file = in_library(table.filename, root) if table else None
        if file:
            files.insert(0, file)
        frame = frame.older()
    return functions, files


def once(files):
    """A file that calls itself stands once."""
    return [name for i, name in enumerate(files) if i == 0 or files[i - 1] != name]


def findings(way, met, picture):
    if met != picture:
        yield f"{way}: went through {' '.join(met)}; the document draws {' '.join(picture)}"
    if len(met) > LIMIT:
        yield f"{way}: {len(met)} files, more than {LIMIT}"
    for name in {name for name in met if met.count(name) > 1}:
        yield f"{way}: comes back to {name}"


def follow(document, transport):
    gdb.execute("set pagination off")
    gdb.execute("set breakpoint pending on")
    gdb.execute("set print inferior-events off")
    gdb.execute("handle SIGPIPE nostop noprint")
    gdb.execute("break way_begins")
    gdb.execute("run", to_string=True)
    left, met = list(ENDS[transport]), {}
    for end in {end for _, end, _ in left}:
        gdb.execute(f"rbreak {end}." if end.endswith(":") else f"break {end}", to_string=True)
    while left and gdb.selected_inferior().pid:
        gdb.execute("continue", to_string=True)
        if not gdb.selected_inferior().pid:
            break
        functions, files = stack(os.path.join(os.path.dirname(document), os.pardir))
        for way, end, passed in left:
            here = files and files[-1].endswith(end[:-1]) if end.endswith(":") else functions[-1] == end
            if here and any(re.fullmatch(passed, name) for name in functions):
                met[way] = once(files)
                left.remove((way, end, passed))
                break
    picture = drawn(document, transport)
    bad = [f"{way}: was not met" for way, _, _ in left]
    for way, files in met.items():
        print(f"{way}, {transport}: {' '.join(files)}")
        bad += findings(way, files, picture.get(way, []))
    print("\n".join(bad) if bad else "as drawn")
    if gdb.selected_inferior().pid:
        gdb.execute("kill")
    sys.stdout.flush()
    os._exit(1 if bad else 0)


def main(document, transport, program):
    if not shutil.which("gdb"):
        print("skipped: gdb is not installed")
        return 77
    follow_there = f"python follow({document!r}, {transport!r})"
    done = subprocess.run(["gdb", "-nx", "-batch", "-x", os.path.abspath(__file__), "-ex", follow_there, program], text=True,
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=100, check=False)
    print(done.stdout)
    if done.returncode and re.search("Could not trace|ptrace: ", done.stdout):
        print("skipped: this machine does not let gdb follow a process")
        return 77
    return done.returncode


if gdb is None:
    sys.exit(main(*sys.argv[1:]))
