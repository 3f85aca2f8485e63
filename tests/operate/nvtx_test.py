# SPDX-License-Identifier: Apache-2.0
"""nvtx_test.py -- a profiler sees a range of each operation, where the library was built with NVTX; without one nothing changes

usage: nvtx_test.py ROOT CC OBJECTS TRANSPORT

The header is that of KVRAIL_NVTX_INCLUDE, or PyPI's, fetched once and kept in the user's cache folder. A tree is configured with it, and
of that are the objects that know of ranges; the others, in the file OBJECTS, and the archive TRANSPORT are this build's.
"""
import os
import re
import subprocess
import sys
import tempfile
import zipfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "nccl"))
import library  # noqa: E402

PACKAGE = "nvidia-nvtx==13.4.92"
INCLUDE = "nvidia/cu13/include"
RANGED = [f"kvapi/CMakeFiles/kvrail_kv.dir/{name}.c.o" for name in ("op/kv_range", "op/kv_op", "api/kv_engine")]
EXAMPLES = ("02-write-blocks", "03-two-sided-and-leases")


def fetched():
    kept = os.path.join(library.cache_folder("nvtx"), PACKAGE)
    if not os.path.exists(kept):
        os.makedirs(os.path.dirname(kept), exist_ok=True)
        with tempfile.TemporaryDirectory(dir=os.path.dirname(kept)) as folder:
            library.fetch(folder, [PACKAGE])
            with zipfile.ZipFile(os.path.join(folder, os.listdir(folder)[0])) as wheel:
                wheel.extractall(os.path.join(folder, "all"), [n for n in wheel.namelist() if n.startswith(INCLUDE)])
            os.rename(os.path.join(folder, "all", INCLUDE), kept)
    return kept


def run(program, **variables):
    done = subprocess.run([program], env={**os.environ, **variables}, text=True, capture_output=True, timeout=60)
    if done.returncode:
        sys.exit(f"{program}: status {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stderr


def check_ranges(said):
    """Each range begins and ends once, in one process; returns [(kind, bytes)]."""
    begun, ended, kinds = set(), set(), []
    for line in re.findall(r"^nvtx (.*)$", said, re.MULTILINE):
        start = re.fullmatch(r"(\d+) start (\d+) (\w+) (\d+)", line)
        end = re.fullmatch(r"(\d+) end (\d+)", line)
        if start:
            begun.add(start.group(1, 2))
            kinds.append((start[3], int(start[4])))
        elif not end or end.groups() not in begun or end.groups() in ended:
            sys.exit(f"not the end of a range that has begun: {line}\n{said}")
        else:
            ended.add(end.groups())
    if begun != ended or len(begun) != len(kinds):
        sys.exit(f"ranges that begin and do not end, or twice:\n{said}")
    return kinds


def main(root, cc, objects, transport):
    try:
        header = os.environ.get("KVRAIL_NVTX_INCLUDE") or fetched()
    except (library.Unavailable, OSError, zipfile.BadZipFile) as error:
        library.skip(str(error))
    with tempfile.TemporaryDirectory() as work:
        configured = subprocess.run(["cmake", "--preset", "dev", "-S", root, "-B", f"{work}/build", f"-DKVRAIL_NVTX_INCLUDE={header}",
                                     f"-DCMAKE_C_COMPILER={cc}", "-DKVRAIL_TESTS=OFF", "-DKVRAIL_MPI=OFF", "-DKVRAIL_BENCH=OFF"],
                                    cwd=root, text=True, capture_output=True)
        if configured.returncode or "no NVTX ranges" in configured.stdout:
            sys.exit(f"cmake with the header:\n{configured.stdout}{configured.stderr}")
        subprocess.run(["cmake", "--build", f"{work}/build", "--target", *RANGED], check=True, stdout=subprocess.DEVNULL)
        with open(objects, encoding="utf-8") as file:
            subprocess.run(["ar", "rcs", f"{work}/rest.a", *file.read().split()], check=True)
        subprocess.run([cc, "-shared", "-fPIC", "-isystem", header, f"{HERE}/nvtx_profiler.c", "-o", f"{work}/profiler.so"], check=True)
        kinds = []
        for name in EXAMPLES:
            program = f"{work}/{name}"
            subprocess.run([cc, f"-I{root}/include", f"{root}/kvapi/examples/{name}.c", *(f"{work}/build/{path}" for path in RANGED),
                            f"{work}/rest.a", transport, "-lpthread", "-ldl", "-o", program], check=True)
            if "nvtx" in run(program):
                sys.exit(f"{name}: ranges, and no profiler is there")
            kinds += check_ranges(run(program, NVTX_INJECTION64_PATH=f"{work}/profiler.so"))
    print("ranges:", *(f"{kind} of {size} bytes" for kind, size in kinds))
    if not {"write_blocks", "send_blocks", "recv_blocks"} <= {kind for kind, _ in kinds}:
        sys.exit("not each kind of operation has its range")
    if not all(size for kind, size in kinds):
        sys.exit("a range does not say how many bytes its operation moves")


if __name__ == "__main__":
    main(*sys.argv[1:])
