# SPDX-License-Identifier: Apache-2.0
"""NIXL finds the plugin that the wheel holds: by the entry points, by a link beside UCX, by a folder; and `python -m kvrail.nixl` says so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Dict, List

import kvrail
import kvrail.nixl
import pytest
from children import AGES

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "nixl"))
import wheels  # type: ignore[import-not-found]  # noqa: E402

LISTS = """
import sys
from nixl._api import nixl_agent, nixl_agent_config
print("lists", *nixl_agent("test", nixl_agent_config(backends=sys.argv[1:])).get_plugin_list())
"""
ENTRY = """
from importlib.metadata import entry_points
for entry in entry_points(group=GROUP):
    if entry.name == "kvrail":
        entry.load()()
assert "nixl" not in __import__("sys").modules
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """NIXL's packages, in a folder where a test may make links."""
    try:
        return Path(wheels.site_with(None, str(tmp_path / "site")))
    except wheels.Unavailable as error:
        pytest.skip(str(error))


def python(site: Path, *arguments: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    clean = {name: value for name, value in os.environ.items() if not name.startswith("NIXL_")}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=AGES, env={**clean, "PYTHONPATH": str(site), **environ}
    )


def command(site: Path, *arguments: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    return python(site, "-m", "kvrail.nixl", *arguments, **environ)


def told(site: Path, **environ: str) -> Dict[str, Any]:
    answer: Dict[str, Any] = json.loads(command(site, "--json", **environ).stdout)
    return answer


def plugins(site: Path, before: str = "", backend: str = "KVRAIL", **environ: str) -> List[str]:
    """Those that NIXL lists in a process that asks for this one."""
    ran = python(site, "-c", before + LISTS, *backend.split(), **environ)
    return [line for line in ran.stdout.splitlines() if line.startswith("lists")][0].split()[1:]


@pytest.mark.parametrize("group", ["vllm.general_plugins", "sglang.srt.plugins"])
def test_an_engine_finds_it_by_its_entry_point_and_keeps_ucx(site: Path, group: str) -> None:
    assert [entry.value for entry in entry_points(group=group) if entry.name == "kvrail"] == ["kvrail.nixl:add_to_nixl"]
    assert {"KVRAIL", "UCX"} <= set(plugins(site, ENTRY.replace("GROUP", repr(group))))
    assert "KVRAIL" not in plugins(site, backend="")


def test_without_nixl_the_entry_point_does_nothing_and_the_command_says_what_to_do(tmp_path: Path) -> None:
    if kvrail.nixl.package():
        pytest.skip("NIXL is installed beside kvrail")
    assert python(tmp_path, "-c", "import kvrail.nixl; kvrail.nixl.add_to_nixl()").stderr == ""
    said = command(tmp_path)
    assert said.returncode == 1 and "fix: pip install nixl" in said.stdout
    assert command(tmp_path, "--install").returncode == 1
    assert command(tmp_path, "--path").stdout.strip() == str(kvrail.nixl.PLUGIN.parent)


def test_a_link_beside_ucx_can_be_made_and_removed(site: Path) -> None:
    said = told(site)
    assert said["nixl"]["version"] == wheels.VERSION and said["plugin"] == str(kvrail.nixl.PLUGIN)
    assert said["engines"] == {"found": True, "kinds": ["DRAM_SEG"]} and not said["alone"]["found"]
    text = command(site)
    assert text.returncode == 0 and "fix: python -m kvrail.nixl --install" in text.stdout
    for _ in range(2):
        assert command(site, "--install").returncode == 0
    assert told(site)["alone"]["found"]
    assert {"KVRAIL", "UCX"} <= set(plugins(site))
    assert command(site, "--remove").returncode == 0 and command(site, "--remove").returncode == 1
    assert "KVRAIL" not in plugins(site, backend="")


def test_a_folder_holds_it_under_the_name_that_tensorrt_llm_takes(site: Path, tmp_path: Path) -> None:
    folder = tmp_path / "made" / "here"
    made = command(site, "--install", str(folder), "--as", "LIBFABRIC")
    assert f"export NIXL_PLUGIN_DIR={folder}" in made.stdout
    assert plugins(site, backend="LIBFABRIC", NIXL_PLUGIN_DIR=str(folder)) == ["LIBFABRIC"]
    refused = command(site, "--install", "--as", "LIBFABRIC")  # NIXL's own file is there
    assert refused.returncode == 1 and "is not kvrail's" in refused.stderr
    assert command(site, "--remove", "--as", "LIBFABRIC").returncode == 1
    assert command(site, "--remove", str(folder), "--as", "LIBFABRIC").returncode == 0 and not os.listdir(folder)


def test_what_cannot_be_loaded_is_said_and_stops_no_engine(site: Path) -> None:
    library = site / ".nixl_cu12.mesonpy.libs" / "libnixl.so"
    library.unlink()
    engine = python(site, "-c", "import kvrail.nixl; kvrail.nixl.add_to_nixl()")
    assert engine.returncode == 0 and f"NIXL will not find the backend KVRAIL: {library}" in engine.stderr
    said = command(site)
    assert said.returncode == 1 and "libnixl.so: cannot open shared object file" in said.stdout


def test_the_wheel_holds_both_plugins_in_less_than_2_megabytes() -> None:
    assert sorted(os.listdir(kvrail.nixl.PLUGIN.parent)) == ["libnccl-net-kvrail.so", "libplugin_KVRAIL.so"]
    if "KVRAIL_WHEEL" not in os.environ:
        pytest.skip("KVRAIL_WHEEL names no wheel")
    assert Path(os.environ["KVRAIL_WHEEL"]).stat().st_size < 2_000_000
