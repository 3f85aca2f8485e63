# SPDX-License-Identifier: Apache-2.0
"""agree.py -- things that are said in two places say the same: fault points, error codes, versions, paths

usage: agree.py ROOT
"""
import os
import re
import sys

import source


def check_faults(root):
    """Every row of fault.def is a point that the code passes."""
    rows = re.findall(r"^FAULT\((\w+),", source.read(root, "transport/base/fault.def"), re.MULTILINE)
    text = "".join(source.read(root, path) for path in source.c_files(root) if source.is_library(path))
    used = set(re.findall(r"\bkv_fault(?:_hit)?\(\s*(?:KV_FAULT_)?(\w+)\s*\)", text))
    return [f"transport/base/fault.def: {row} is not used" for row in rows if row not in used] + [
        f"transport/base/fault.def: {row} stands there twice" for row in {r for r in rows if rows.count(r) > 1}
    ]


def check_codes(root):
    """Every error code has its section in the troubleshooting page, and no other code has one."""
    codes = set(re.findall(r"^\s*X\((\w+),", source.read(root, "include/kvrail/kv_error.h"), re.MULTILINE))
    page = "docs/troubleshooting.md"
    sections = set(re.findall(r"^#+ KV_ERR_(\w+)", source.read(root, page), re.MULTILINE))
    return [f"{page}: no section KV_ERR_{code}" for code in sorted(codes - sections)] + [
        f"{page}: KV_ERR_{code} is no code" for code in sorted(sections - codes)
    ]


def check_version(root):
    project = re.search(r"project\(kvrail VERSION ([\d.]+)", source.read(root, "CMakeLists.txt"))[1]
    header = ".".join(re.findall(r"define KV_VERSION_\w+ (\d+)", source.read(root, "include/kvrail/kv.h")))
    return [] if project == header else [f"CMakeLists.txt says version {project}, kv.h says {header}"]


def check_paths(root):
    """No path of the machine that this tree stands on, or of anybody's home."""
    here = os.path.realpath(root)
    pattern = re.compile(re.escape(here) + r"\b|/(?:home|Users|root)/\w")
    findings = []
    for path in source.files(root):
        try:
            lines = source.read(root, path).splitlines()
        except UnicodeDecodeError:
            continue
        findings += [f"{path}:{n}: a path of one machine" for n, line in enumerate(lines, 1) if pattern.search(line)]
    return findings


def check(root):
    return check_faults(root) + check_codes(root) + check_version(root) + check_paths(root)


if __name__ == "__main__":
    source.report(check(sys.argv[1]))
