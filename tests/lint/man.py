# SPDX-License-Identifier: Apache-2.0
"""man.py -- every exported function, option and command has a man page that is whole, and mandoc and groff do not warn

usage: man.py ROOT PAGES
"""
import glob
import os
import re
import shutil
import subprocess
import sys

import source
import symbols

SECTIONS = ("NAME", "SYNOPSIS", "DESCRIPTION", "RETURN VALUE")


def page(pages, name):
    """The text of a page, of the one that it stands for, or "" where there is none."""
    path = f"man{name[-1]}/{name}"
    if not os.path.exists(os.path.join(pages, path)):
        return ""
    text = source.read(pages, path)
    other = re.match(r"\.so man\d/(\S+)", text)
    return page(pages, other[1]) if other else text


def check_functions(root, pages):
    findings = []
    for name in sorted(symbols.mapped(source.read(root, "kvapi/kvrail.map"))):
        text = page(pages, name + ".3")
        wanted = SECTIONS + ("ERRORS",) * (f"{name}(" in text and "struct kv_error *err);" in text)
        missing = [section for section in wanted if not re.search(rf"^\.SH {section}\n\S", text, re.MULTILINE)]
        findings += [f"{name}(3): no section {', '.join(missing)}"] if missing else []
        if not re.search(rf"^\.SH NAME\n.*\b{name}\b.* \\- \S", text, re.MULTILINE):
            findings.append(f"{name}(3): NAME does not have {name}")
    return findings


def check_names(root, pages):
    """kvrail(7) has the options, kvrail(1) the commands."""
    options = re.findall(r'"(KVCACHE_\w+)"', source.read(root, "transport/base/option.def"))
    commands = re.findall(r'^\t\{ "(\w+)", \w+_main', source.read(root, "tool/kvrail.c"), re.MULTILINE)
    command_page = page(pages, "kvrail.1")
    return [f"kvrail(7): no {name}" for name in options if not re.search(rf"\.B {name}\b", page(pages, "kvrail.7"))] + [
        f"kvrail(1): no {name}" for name in commands if command_page and f".SS {name}\n" not in command_page]


def check_roff(pages):
    """What mandoc and groff find. A page without a date is meant: pages of one source are then the same bytes."""
    findings = []
    for path in sorted(glob.glob(f"{pages}/man*/*")):
        if not source.read("", path).startswith(".so "):
            for command in ["mandoc", "-T", "lint", "-W", "warning", path], ["groff", "-man", "-ww", "-z", "-T", "utf8", path]:
                run = subprocess.run(command, capture_output=True, text=True)
                findings += [line for line in (run.stdout + run.stderr).splitlines() if "missing date" not in line]
    return findings


def check(root, pages):
    return check_functions(root, pages) + check_names(root, pages)


if __name__ == "__main__":
    if not shutil.which("mandoc") or not shutil.which("groff"):
        source.skip("mandoc or groff is not installed")
    source.report(check(*sys.argv[1:]) + check_roff(sys.argv[2]))
