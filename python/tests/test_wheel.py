# SPDX-License-Identifier: Apache-2.0
"""What the built module asks of the system that it runs on."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Dict, Tuple

import pytest

import kvrail._core as core

OLDEST_GLIBC = (2, 28)
#: Functions of 2.28 that a later glibc moved to another library or gave another name: they bind to the new place where the
#: extension is built on such a system, and to the old one where it is built for 2.28 (`./dev wheel`).
MOVED = re.compile(
    r"dl(open|sym|close|error|addr)|[fl]?stat|__isoc23_\w+"
    r"|pthread_(create|join|detach|once|sigmask|setname_np|mutex_trylock|cond_timedwait|condattr_setclock|key_create)"
)


def versioned_symbols() -> Dict[str, Tuple[int, ...]]:
    """Name -> the version of glibc that it is bound to."""
    assert core.__file__ is not None
    try:
        table = subprocess.run(["objdump", "-T", core.__file__], capture_output=True, text=True).stdout
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
    assert libraries <= {"libc", "libpthread", "libdl", "libm", "librt"}
    print(f"{Path(wheel).name}: auditwheel finds manylinux_{needs[0]}_{needs[1]}")
    if "manylinux_2_28" in wheel:
        assert needs <= OLDEST_GLIBC
    else:  # built for this system's glibc, and called linux_*
        assert needs <= max(versioned_symbols().values()) or needs <= OLDEST_GLIBC
