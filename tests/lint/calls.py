# SPDX-License-Identifier: Apache-2.0
"""calls.py -- calls that no file may make (of CMake, too), calls that a library may not make, the few exceptions by name

usage: calls.py ROOT
"""
import re
import sys

import source

NOWHERE = "atoi atol atoll atof strcpy strncpy strcat strncat sprintf vsprintf strtok alloca gets mktemp tmpnam"
# Functions that came with glibc 2.29 and later, and that one might reach for: a wheel is to run on 2.28.
NOWHERE += " strerrordesc_np strerrorname_np sigdescr_np sigabbrev_np gettid close_range closefrom tgkill arc4random strlcpy strlcat"
IN_LIBRARIES = """
    exit _exit _Exit quick_exit abort system popen fork vfork printf vprintf fprintf puts fputs putchar perror dprintf
    getenv secure_getenv setenv putenv unsetenv signal sigaction sigprocmask sleep usleep nanosleep
    rand srand random setlocale
"""
# The places that read the environment, and the one that writes log lines.
ALLOWED = {
    "transport/base/option.c": {"getenv"},
    "transport/base/dump_signal.c": {"sigaction"},  # where KVCACHE_DUMP_SIGNAL asks for it
    "net_plugin/np_env.c": {"getenv"},  # NCCL's own names, and nothing else
    "nixl_plugin/nixl_engine.cpp": {"fprintf"},  # one line, where NIXL has no place for the cause
    "transport/base/log.c": {"fprintf", "fputs", "dprintf"},
}


def check(root):
    findings = []
    for path in source.c_files(root):
        names = NOWHERE.split() + (IN_LIBRARIES.split() if source.is_library(path) else [])
        names = [name for name in names if name not in ALLOWED.get(path, ())]
        pattern = re.compile(r"(?<![\w.>])(" + "|".join(names) + r")\s*\(")
        for number, line in enumerate(source.code(source.read(root, path)).splitlines(), 1):
            for match in pattern.finditer(line):
                findings.append(f"{path}:{number}: {match[1]} is not to be called here")
            if re.search(r"\bstrtou?(l|ll|imax|max)\s*\([^()]*(\([^()]*\)[^()]*)*,\s*0\s*\)", line):
                findings.append(f"{path}:{number}: with base 0, \"020\" is sixteen; base/number.h reads what people write")
            if re.search(r"\benviron\b", line) and source.is_library(path) and not path.endswith("base/option.c"):
                findings.append(f"{path}:{number}: only base/option.c reads the environment")
    for path in source.files(root):
        if path.endswith((".cmake", "CMakeLists.txt")) and path != "cmake/kvrail_test.cmake" and re.search(
                r"set_tests_properties\([^)]*\bENVIRONMENT\b", source.read(root, path)):
            findings.append(f"{path}: set_tests_properties takes away the ENVIRONMENT that every test has: set_property(TEST … APPEND)")
    return findings


if __name__ == "__main__":
    source.report(check(sys.argv[1]))
