# SPDX-License-Identifier: Apache-2.0
"""missing.py -- CMake names what is missing and the package that has it, and goes on without it where it was told to

usage: missing.py ROOT

A header is hidden from the compiler by one of the same name that holds #error, from find_path and find_library by
CMAKE_IGNORE_PATH, a package of CMake's by CMAKE_DISABLE_FIND_PACKAGE.
"""
import os
import subprocess
import sys
import tempfile

import source

NO_JANSSON = ("-DJANSSON_INCLUDE=JANSSON_INCLUDE-NOTFOUND", "-DCMAKE_IGNORE_PATH=/usr/include;/usr/local/include")
ONLY_LIBRARY = [f"-DKVRAIL_{part}=OFF" for part in ("TESTS", "BENCH", "NCCL", "TOOL", "EXAMPLES")]
NO_TESTS = "-DKVRAIL_TESTS=OFF"


def without(package):
    return f"-DCMAKE_DISABLE_FIND_PACKAGE_{package}=ON"


# options, a header to hide, whether CMake fails, what it says (empty: nothing is missing)
CASES = (
    (ONLY_LIBRARY, "infiniband/verbs.h", True, "infiniband/verbs.h is missing: install libibverbs-dev (Debian, Ubuntu) or rdma-core-devel"),
    (ONLY_LIBRARY, "rdma/rdma_cma.h", True, "rdma/rdma_cma.h is missing: install librdmacm-dev (Debian, Ubuntu) or rdma-core-devel"),
    (ONLY_LIBRARY + [*NO_JANSSON], None, False, ""),
    (ONLY_LIBRARY + ["-DKVRAIL_PYTHON=ON", without("Python")], None, True,
     "Python.h is missing: install python3-dev (Debian, Ubuntu) or python3-devel"),
    (ONLY_LIBRARY + [without("Threads")], None, True, "POSIX threads is missing: install libc6-dev (Debian, Ubuntu) or glibc-devel"),
    ([NO_TESTS, *NO_JANSSON], None, True,
     "jansson.h is missing: install libjansson-dev (Debian, Ubuntu) or jansson-devel (Fedora, RHEL), "
     "or configure with -DKVRAIL_TOOL=OFF -DKVRAIL_BENCH=OFF"),
    ([NO_TESTS, "-DKVRAIL_TOOL=OFF", *NO_JANSSON], None, True, "jansson.h is missing"),
    ([NO_TESTS, without("MPI")], None, False, "MPI is missing: install libopenmpi-dev (Debian, Ubuntu) or openmpi-devel"),
    ([NO_TESTS, without("MPI"), "-DKVRAIL_MPI=OFF"], None, False, ""),
    (["-DKVRAIL_MPI=OFF", without("Python3")], None, True, "python3 is missing: install python3"),
    (["-DKVRAIL_TOOL=OFF", "-DKVRAIL_BENCH=OFF", "-DCMAKE_IGNORE_PATH=/usr/include;/usr/local/include"], None, True,
     "cmocka.h is missing: install libcmocka-dev (Debian, Ubuntu) or libcmocka-devel"),
)


def configure(root, build, options, hidden):
    flags = f"-DCMAKE_C_FLAGS=-I{hidden}" if hidden else "-DCMAKE_C_FLAGS="
    command = ["cmake", "-G", "Ninja", "-S", root, "-B", build, "-DCMAKE_BUILD_TYPE=Debug", flags, *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.returncode != 0, " ".join(done.stdout.split())


def check_case(root, work, number, case):
    options, header, fails, words = case
    build, hidden = f"{work}/build{number}", None
    if header:
        hidden = f"{work}/hidden{number}"
        os.makedirs(os.path.dirname(f"{hidden}/{header}"))
        with open(f"{hidden}/{header}", "w", encoding="utf-8") as file:
            file.write("#error hidden\n")
    failed, said = configure(root, build, options, hidden)
    if failed != fails or words not in said or (not words and " is missing: " in said):
        yield f"{options} {header or ''}: CMake {'fails' if failed else 'goes on'} and says: {said}"
    if header and configure(root, build, options, None)[0]:
        yield f"{header}: CMake does not find it after it has been installed"


def check(root):
    with tempfile.TemporaryDirectory() as work:
        return [finding for number, case in enumerate(CASES) for finding in check_case(root, work, number, case)]


if __name__ == "__main__":
    source.report(check(sys.argv[1]))
