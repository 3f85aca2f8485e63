# SPDX-License-Identifier: Apache-2.0
"""fuzz.py -- runs a fuzz target that libFuzzer is in; says what the corpora reach

usage: fuzz.py run PROGRAM CORPUS            as the preset fuzz's test: what is found stays in the build folder
       fuzz.py grow BUILD CORPORA [TARGET…]  the same, and each corpus becomes the smallest that reaches as much
       fuzz.py coverage BUILD CORPORA PAGE   BUILD: of the preset coverage. Writes the table into PAGE

KVRAIL_FUZZ_SECONDS=N   how long, each (30); KVRAIL_LONG=1 multiplies it by 40
"""
import glob
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BEGIN, END = "<!-- made by ./dev fuzz --coverage -->\n", "<!-- end -->\n"

# What each target is aimed at: parsers, of which every line is to be reached, and what stands behind them.
AIMS = {
    "agent_fuzz": ["agent/ag_info.c", "agent/ag_record.c"],
    "handshake_fuzz": ["transport/frame.c", "transport/handshake.c", "transport/auth.c", "transport/lobby.c", "transport/control.c"],
    "kv_fuzz": ["kvapi/wire/kv_wire.c", "kvapi/loop/kv_hello.c", "kvapi/loop/kv_progress.c", "kvapi/lease/kv_incoming.c",
                "kvapi/lease/kv_lease.c", "kvapi/lease/kv_lease_wire.c", "kvapi/lease/kv_place.c", "kvapi/lease/kv_verify.c", "kvapi/grant/kv_grant.c",
                "kvapi/op/kv_op.c", "kvapi/op/kv_post.c", "kvapi/wire/kv_plan.c", "transport/rmem.c"],
    "np_fuzz": ["net_plugin/np_wire.c", "net_plugin/np_mem.c", "net_plugin/np_send.c", "net_plugin/np_recv.c", "net_plugin/np_ahead.c",
                "net_plugin/np_test.c"],
    "api_fuzz": ["kvapi/api/kv_transfer.c", "kvapi/api/kv_blocks.c", "kvapi/api/kv_group.c", "kvapi/api/kv_wait.c", "kvapi/api/kv_connect.c",
                 "kvapi/api/kv_comm.c", "kvapi/api/kv_info.c", "kvapi/api/kv_engine.c", "kvapi/engine/kv_call.c", "kvapi/engine/kv_cache.c",
                 "kvapi/op/kv_admit.c", "kvapi/wire/kv_layout.c", "kvapi/wire/kv_geometry.c"],
    "ib_fuzz": ["transport/ib/setup.c", "transport/ib/rail_match.c", "transport/ib/mem.c", "transport/ib/msg.c", "transport/ib/notify.c",
                "transport/ib/poll.c", "transport/ib/status.c", "transport/ib/op.c", "transport/ib/break.c"],
    "shm_fuzz": ["transport/shm/ring.c", "transport/shm/receive.c", "transport/shm/link.c", "transport/shm/prove.c",
                 "transport/shm/segment.c", "transport/shm/path.c", "transport/shm/pool.c"],
    "stream_fuzz": ["transport/tcp/stream.c"],
    "text_fuzz": ["transport/base/option.c", "transport/psk.c", "mpi_tests/trace.c", "net_plugin/np_name.c", "net_plugin/np_env.c",
                  "transport/shm/trust.c", "tool/doctor/dcb.c"],
}

OPTIONS = ["-timeout=25", "-rss_limit_mb=2048", "-max_len=1024", "-print_final_stats=1", "-verbosity=1", "-reload=0"]


def seconds():
    return int(os.environ.get("KVRAIL_FUZZ_SECONDS", "30")) * (40 if os.environ.get("KVRAIL_LONG") == "1" else 1)


def run(program, corpus):
    """Looks for inputs that break a rule; the new ones that reach more go beside the program."""
    found = program + ".found"
    os.makedirs(found, exist_ok=True)
    done = subprocess.run([program, *OPTIONS, f"-max_total_time={seconds()}", f"-artifact_prefix={program}.", found, corpus],
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False)
    lines = done.stdout.splitlines()
    tried = re.search(r"number_of_executed_units: (\d+)", done.stdout)
    if tried:
        with open(program + ".tried", "w", encoding="utf-8") as file:
            file.write(tried[1])
    print("\n".join(lines[-80:] if done.returncode else [line for line in lines if line.startswith(("stat::", "Done"))]))
    if done.returncode:
        print(f"{os.path.basename(program)}: an input breaks a rule. Once it is fixed the input (Test unit written to, above) is a")
        print(f"regression test: copy it into {corpus}")
    return done.returncode


def merge(program, corpus):
    """The corpus becomes the smallest set of its inputs and the new ones that reaches as much."""
    with tempfile.TemporaryDirectory() as small:
        os.makedirs(corpus, exist_ok=True)
        subprocess.run([program, "-set_cover_merge=1", "-use_counters=0", *OPTIONS[:3], small, corpus, program + ".found"], check=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        kept = set(os.listdir(small))
        for name in set(os.listdir(corpus)) - kept:
            os.remove(os.path.join(corpus, name))
        for name in kept:
            shutil.copy(os.path.join(small, name), corpus)
    print(f"{os.path.basename(program)}: {len(kept)} inputs, {sum(os.path.getsize(os.path.join(corpus, n)) for n in kept)} bytes")


def grow(build, corpora, *targets):
    failed = 0
    for program in sorted(glob.glob(os.path.join(build, "tests", "fuzz", "*_fuzz"))):
        name = os.path.basename(program)
        if targets and name not in targets:
            continue
        corpus = os.path.join(corpora, name)
        os.makedirs(corpus, exist_ok=True)
        if run(program, corpus):
            failed += 1
        else:
            merge(program, corpus)
    return failed


def reached(build, program, corpus, files):
    """{file: [lines, reached, branches, reached, lines that were not]} of one target over its corpus."""
    for path in glob.glob(os.path.join(build, "**", "*.gcda"), recursive=True):
        os.remove(path)
    subprocess.run([program, corpus], check=True, stdout=subprocess.DEVNULL)
    filters = [part for file in files for part in ("--filter", file + "$")]
    done = subprocess.run(["gcovr", "--root", ROOT, *filters, "--gcov-ignore-parse-errors", "--json", "-", build], cwd=ROOT, check=True,
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    found = {}
    for file in json.loads(done.stdout)["files"]:
        lines = [line for line in file["lines"] if not line.get("gcovr/noncode")]
        branches = [branch for line in lines for branch in line["branches"] if not branch.get("throw")]
        missed = [line["line_number"] for line in lines if not line["count"]]
        found[file["file"]] = [len(lines), len(lines) - len(missed), len(branches), sum(b["count"] > 0 for b in branches), missed]
    return found


def share(part, whole):
    return f"{100 * part / whole:.1f} %" if whole else ""


def rows_of(build, corpora, name):
    program, corpus = os.path.join(build, "tests", "fuzz", name), os.path.join(corpora, name)
    sizes = [os.path.getsize(os.path.join(corpus, file)) for file in os.listdir(corpus)]
    tried = os.path.join(os.path.dirname(build.rstrip("/")), "build-fuzz", "tests", "fuzz", name + ".tried")
    runs = f"{int(open(tried, encoding='utf-8').read()):,} tried" if os.path.exists(tried) else "new ones not looked for here"
    yield f"| **{name}** | {len(sizes)} inputs, {sum(sizes):,} bytes; {runs} | | | |"
    found = reached(build, program, corpus, AIMS[name])
    for file in AIMS[name]:
        lines, hit, branches, taken, missed = found[file]
        text = ", ".join(str(n) for n in missed[:12]) + (" …" if len(missed) > 12 else "")
        yield f"| | `{file}` | {share(hit, lines)} of {lines} | {share(taken, branches)} of {branches} | {text} |"


def coverage(build, corpora, page):
    with open(page, encoding="utf-8") as file:
        text = file.read()
    rows = ["| target | file | lines | branches | lines not reached |", "| --- | --- | ---: | ---: | --- |"]
    rows += [row for name in AIMS for row in rows_of(build, corpora, name)]
    print("\n".join(rows))
    head, _, rest = text.partition(BEGIN)
    with open(page, "w", encoding="utf-8") as file:
        file.write(head + BEGIN + "\n".join(rows) + "\n" + END + rest.partition(END)[2])
    return 0


if __name__ == "__main__":
    sys.exit({"run": run, "grow": grow, "coverage": coverage}[sys.argv[1]](*sys.argv[2:]))
