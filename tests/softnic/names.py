#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""names.py -- what the installed libibverbs exports, this one exports as well

usage: names.py make LIBRARY STUBS.c MAP    a weak function for each name, and the version script
       names.py check LIBRARY OURS          the same names, each with the same version

Programs and drivers are linked with versions of names (IBVERBS_1.1), those of the drivers differ
between releases (IBVERBS_PRIVATE_34), and drivers are bound at once when they are loaded. So the list
is read from the library that is there. A weak function says EOPNOTSUPP; softnic's own replace it.
"""
import subprocess
import sys

POINTERS = "create_srq create_ah create_ah_from_wc import_device import_pd import_mr import_dm open_xrcd"
POINTERS = {"ibv_" + name for name in POINTERS.split()}


def exports(library):
    """{name: (type, version)} of the default versions"""
    text = subprocess.run(["readelf", "--dyn-syms", "-W", library], check=True, text=True,
                          stdout=subprocess.PIPE).stdout
    found = {}
    for line in text.splitlines():
        fields = line.split()
        if len(fields) < 8 or fields[6] == "UND" or "@" not in fields[7]:
            continue
        name, _, version = fields[7].partition("@")
        if fields[3] in ("FUNC", "OBJECT") and name and (version.startswith("@") or name not in found):
            found[name] = (fields[3], version.lstrip("@"))
    return found


def order(version):
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in version.replace("_", ".").split(".")]


def make(library, stubs, script):
    names = exports(library)
    with open(stubs, "w") as out:
        out.write("/* made by names.py */\n#include <errno.h>\n")
        for name, (kind, _) in sorted(names.items()):
            if kind == "OBJECT":
                out.write(f"__attribute__((weak)) char {name};\n")
            elif name in POINTERS:
                out.write(f"void *{name}(void);\n__attribute__((weak)) void *{name}(void)\n"
                          "{\n\terrno = EOPNOTSUPP;\n\treturn 0;\n}\n")
            else:
                out.write(f"int {name}(void);\n__attribute__((weak)) int {name}(void)\n"
                          "{\n\terrno = EOPNOTSUPP;\n\treturn EOPNOTSUPP;\n}\n")
    with open(script, "w") as out:
        before = ""
        for version in sorted({version for _, version in names.values()}, key=order):
            out.write(f"{version} {{\n\tglobal:\n")
            out.writelines(f"\t\t{name};\n" for name in sorted(names) if names[name][1] == version)
            out.write(("" if before else "\tlocal: *;\n") + f"}}{before};\n")
            before = " " + version


def check(library, ours):
    real, here = exports(library), exports(ours)
    wrong = [f"{name}: {here.get(name)} instead of {real[name]}" for name in sorted(real) if here.get(name) != real[name]]
    wrong += [f"{name}: not in {library}" for name in sorted(set(here) - set(real))]
    print("\n".join(wrong) or f"{len(real)} names with their versions, as {library} has them")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    {"make": make, "check": check}[sys.argv[1]](*sys.argv[2:])
