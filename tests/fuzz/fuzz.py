# SPDX-License-Identifier: Apache-2.0
"""fuzz.py -- runs a fuzz target that libFuzzer is in

usage: fuzz.py run PROGRAM CORPUS          as the preset fuzz's test: what is found stays in the build folder
       fuzz.py grow BUILD CORPUS [TARGET]  the same, and the corpus becomes the smallest that reaches as much

KVRAIL_FUZZ_SECONDS=N   how long, each (60); KVRAIL_LONG=1 multiplies it by 20
"""
import glob
import os
import shutil
import subprocess
import sys
import tempfile

OPTIONS = ["-timeout=25", "-rss_limit_mb=2048", "-max_len=1024", "-print_final_stats=1", "-verbosity=1", "-reload=0"]


def seconds():
    return int(os.environ.get("KVRAIL_FUZZ_SECONDS", "60")) * (20 if os.environ.get("KVRAIL_LONG") == "1" else 1)


def run(program, corpus):
    """Looks for inputs that break a rule; the new ones that reach more go beside the program."""
    found = program + ".found"
    os.makedirs(found, exist_ok=True)
    done = subprocess.run([program, *OPTIONS, f"-max_total_time={seconds()}", f"-artifact_prefix={program}.", found, corpus],
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False)
    lines = done.stdout.splitlines()
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


if __name__ == "__main__":
    sys.exit({"run": run, "grow": grow}[sys.argv[1]](*sys.argv[2:]))
