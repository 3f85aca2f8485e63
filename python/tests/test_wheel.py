# SPDX-License-Identifier: Apache-2.0
"""What the built module and the command ask of the system that they run on, and that the command is the one of tool/."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Dict, Tuple

import kvrail
import kvrail._core as core
import pytest
from children import PATIENCE

COMMAND = Path(kvrail.__file__).with_name("_command")
PLUGINS = sorted(Path(kvrail.__file__).with_name("plugins").glob("*.so"))

OLDEST_GLIBC = (2, 28)
#: Functions of 2.28 that a later glibc moved to another library or gave another name: they bind to the new place where the
#: extension is built on such a system, and to the old one where it is built for 2.28 (`./dev wheel`).
MOVED = re.compile(
    r"__libc_start_main|dl(open|sym|close|error|addr)|[fl]?stat|__isoc23_\w+"
    r"|pthread_(create|join|detach|once|sigmask|setname_np|mutex_trylock|cond_timedwait|condattr_setclock|key_create)"
)


def versioned_symbols() -> Dict[str, Tuple[int, ...]]:
    """Name -> the version of glibc that it is bound to, of all programs."""
    assert core.__file__ is not None
    try:
        table = "".join(
            subprocess.run(["objdump", "-T", path], capture_output=True, text=True).stdout for path in (core.__file__, COMMAND, *PLUGINS)
        )
    except FileNotFoundError:
        pytest.skip("objdump is not installed")
    found = re.findall(r"\*UND\*.*\(?GLIBC_([0-9.]+)\)?\s+(\w+)$", table, re.M)
    assert found, table
    return {name: tuple(map(int, version.split("."))) for version, name in found}


def test_no_function_is_used_that_glibc_2_28_lacks() -> None:
    newer = {name: version for name, version in versioned_symbols().items() if version > OLDEST_GLIBC}
    assert [name for name in newer if not MOVED.fullmatch(name)] == []


def test_auditwheel_finds_the_wheel_to_be_what_its_name_says() -> None:
    wheel = os.environ.get("KVRAIL_WHEEL")
    if not wheel:
        pytest.skip("KVRAIL_WHEEL names no wheel")
    ran = subprocess.run([sys.executable, "-m", "auditwheel", "show", wheel], capture_output=True, text=True)
    if "No module named" in ran.stderr:
        pytest.skip("auditwheel is not installed")
    tag = re.search(r'platform tag:\s*"manylinux_(\d+)_(\d+)_', ran.stdout)
    assert tag, ran.stdout + ran.stderr
    needs = (int(tag[1]), int(tag[2]))
    libraries = set(re.findall(r"(lib\w+)\.so", ran.stdout))
    assert libraries <= {"libc", "libpthread", "libdl", "libm", "librt", "libgcc_s"}
    print(f"{Path(wheel).name}: auditwheel finds manylinux_{needs[0]}_{needs[1]}")
    if "manylinux_2_28" in wheel:
        assert needs <= OLDEST_GLIBC
    else:  # built for this system's glibc, and called linux_*
        assert needs <= max(versioned_symbols().values()) or needs <= OLDEST_GLIBC


def run(*command: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, capture_output=True, text=True, timeout=4 * PATIENCE)


def test_the_command_is_installed_and_python_m_is_the_same() -> None:
    script, module = str(Path(sysconfig.get_path("scripts"), "kvrail")), (sys.executable, "-m", "kvrail")
    if not Path(script).exists():
        pytest.skip("kvrail was not installed by pip")
    for arguments in (["--help"], ["info"], ["bench", "--help"], ["no-such-thing"], []):
        one, other = run(script, *arguments), run(*module, *arguments)
        assert (one.returncode, one.stdout, one.stderr) == (other.returncode, other.stdout, other.stderr)
        assert "_command" not in one.stdout + one.stderr
    assert run(script, "info").returncode == 0 and run(script, "no-such-thing").returncode == 2
    with kvrail.Engine() as engine:
        told = json.loads(run(script, "info", "--json").stdout)
        assert told["version"] == kvrail.__version__
        assert [o["name"] for o in told["options"]] == [o.name for o in engine.options()]
    assert "fix" in json.loads(run(script, "doctor", "--json").stdout)["checks"][0]


def test_a_command_that_cannot_be_run_says_why(tmp_path: Path) -> None:
    copy = tmp_path / "__main__.py"
    copy.write_text(Path(kvrail.__file__).with_name("__main__.py").read_text())
    ran = run(sys.executable, str(copy))
    assert ran.returncode == 1 and "cannot be run: No such file or directory" in ran.stderr
