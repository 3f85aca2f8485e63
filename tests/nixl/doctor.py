# SPDX-License-Identifier: Apache-2.0
"""doctor.py -- what `kvrail doctor` says of the NIXL plugin: found, missing, of another program, not loadable

usage: doctor.py KVRAIL PLUGIN

No NIXL is needed: the doctor looks where NIXL would. What NIXL itself finds then is in python/tests/test_nixl.py.
"""
import json
import os
import subprocess
import sys
import tempfile

NAME = "libplugin_KVRAIL.so"


def line(command, **environ):
    clean = {name: value for name, value in os.environ.items() if name not in ("NIXL_PLUGIN_DIR", "VIRTUAL_ENV")}
    said = subprocess.run([command, "doctor", "--json"], stdout=subprocess.PIPE, text=True, env={**clean, **environ}, check=False, timeout=300)
    (found,) = [check for check in json.loads(said.stdout)["checks"] if check["what"] == "nixl"]
    return found


def expect(what, found, status, text, fix=""):
    if found["status"] != status or text not in found["text"] or fix not in (found["fix"] or ""):
        sys.exit(f"doctor.py: {what}: {found}, and not {status}, {text!r}, {fix!r}")


def main():
    command, plugin = map(os.path.abspath, sys.argv[1:])
    expect("no NIXL", line(command), "ok", f"no NIXL beside this command or in VIRTUAL_ENV; the plugin is {os.path.dirname(command)}")
    with tempfile.TemporaryDirectory(prefix="kvrail-nixl-") as folder:
        there = os.path.join(folder, NAME)
        expect("a folder without it", line(command, NIXL_PLUGIN_DIR=folder), "warn", f"{folder}, where NIXL looks, has no {NAME}", f"{folder}/")
        venv = os.path.join(folder, "lib", "python3.11", "site-packages", ".nixl_cu12.mesonpy.libs", "plugins")
        os.makedirs(venv)
        expect("an environment without it", line(command, VIRTUAL_ENV=folder), "warn", f"{venv}, where NIXL looks", f"{venv}/")
        os.symlink(plugin, there)
        expect("a link to it", line(command, NIXL_PLUGIN_DIR=folder), "ok", f"NIXL finds {there}")
        os.unlink(there)
        with open(there, "w", encoding="utf-8") as file:
            file.write("no library")
        expect("a file that is none", line(command, NIXL_PLUGIN_DIR=folder), "fail", "and cannot load it", "--install")


if __name__ == "__main__":
    main()
