# SPDX-License-Identifier: Apache-2.0
"""Where NIXL finds the backend KVRAIL: `python -m kvrail.nixl`, and what vLLM and SGLang call when they start.

NIXL looks into the folder `plugins` beside its libnixl.so, or into the one that NIXL_PLUGIN_DIR names instead. A backend that it
does not find there is a warning in the engine's log, and the engine goes on without it.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any, Dict, List, Optional

PLUGIN = Path(__file__).with_name("plugins") / "libplugin_KVRAIL.so"
PACKAGES = ("nixl_cu13", "nixl_cu12")  # in NIXL's own order
ASK_S = 120
MANAGER = "_ZN17nixlPluginManager11getInstanceEv"
ADD = "_ZN17nixlPluginManager18addPluginDirectoryERKNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEE"


class _String(ctypes.Structure):
    """std::string of libstdc++, of text that is elsewhere."""

    _fields_ = [("text", ctypes.c_char_p), ("length", ctypes.c_size_t), ("capacity", ctypes.c_size_t), ("unused", ctypes.c_size_t)]


def package() -> Optional[str]:
    """The package that `import nixl` would take, without importing it: engines set variables before they do."""
    there = [name for name in PACKAGES if importlib.util.find_spec(name)]
    if len(there) > 1 and importlib.util.find_spec("nixl_meta_utils"):
        from nixl_meta_utils import detect_cuda_major  # type: ignore[import-not-found, unused-ignore]

        wanted = f"nixl_cu{detect_cuda_major()}"
        return wanted if wanted in there else there[0]
    return there[0] if there else None


def libraries(name: str) -> Path:
    """The folder of libnixl.so."""
    spec = importlib.util.find_spec(name)
    assert spec and spec.origin
    return Path(spec.origin).parent.parent / f".{name}.mesonpy.libs"


def add_to_nixl() -> None:
    """Adds the folder of the plugin to those where this process's NIXL looks. Without NIXL nothing happens."""
    name = package()
    if name is None:
        return
    try:
        if not PLUGIN.exists():
            raise OSError(f"{PLUGIN} is missing: kvrail was built without g++")
        nixl = ctypes.CDLL(str(libraries(name) / "libnixl.so"))
        folder = os.fsencode(PLUGIN.parent)
        manager = getattr(nixl, MANAGER)
        manager.restype = ctypes.c_void_p
        getattr(nixl, ADD)(ctypes.c_void_p(manager()), ctypes.byref(_String(folder, len(folder), len(folder), 0)))
    except (OSError, AttributeError) as exc:
        warnings.warn(f"NIXL will not find the backend KVRAIL: {exc} (python -m kvrail.nixl)", RuntimeWarning, stacklevel=1)


# ---------------------------------------------------------------- what there is


def _ask(add: bool) -> None:
    """In a process of its own: prints what NIXL says."""
    if add:
        add_to_nixl()
    name = "nixl" if importlib.util.find_spec("nixl") else package()
    api = importlib.import_module(f"{name}._api")
    agent = api.nixl_agent("kvrail", api.nixl_agent_config(backends=[]))
    found = "KVRAIL" in agent.get_plugin_list()
    if found:
        agent.create_backend("KVRAIL")
    print(json.dumps({"found": found, "kinds": agent.get_backend_mem_types("KVRAIL") if found else []}), flush=True)
    os._exit(0)  # NIXL's libraries may crash as a process ends


def _answer(add: bool) -> Dict[str, Any]:
    code = f"import kvrail.nixl; kvrail.nixl._ask({add})"
    environ = {"NIXL_LOG_LEVEL": "FATAL", **os.environ}
    try:
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=ASK_S, env=environ)
    except subprocess.TimeoutExpired:
        return {"found": False, "error": f"no answer in {ASK_S} s"}
    if ran.returncode:
        return {"found": False, "error": (ran.stderr.strip() or f"exit status {ran.returncode}").splitlines()[-1]}
    answer: Dict[str, Any] = json.loads(next(line for line in ran.stdout.splitlines() if line.startswith("{")))
    return answer


def look() -> Dict[str, Any]:
    """Where the plugin is, which NIXL there is, and whether that one opens KVRAIL: by itself, and in vLLM and SGLang."""
    name = package()
    told: Dict[str, Any] = {"plugin": str(PLUGIN), "built": PLUGIN.exists(), "nixl": None}
    if name is not None:
        folder = os.environ.get("NIXL_PLUGIN_DIR") or str(libraries(name) / "plugins")
        told["nixl"] = {"package": name, "version": importlib.metadata.version(name.replace("_", "-")), "looks_in": folder}
        told["engines"], told["alone"] = _answer(True), _answer(False)
    return told


def _print(told: Dict[str, Any]) -> None:
    print(f"plugin   {told['plugin']}" + ("" if told["built"] else ": missing"))
    if not told["built"]:
        print("         fix: install g++, then kvrail again (pip install --no-cache-dir --force-reinstall)")
    if not told["nixl"]:
        print("NIXL     not in this environment\n         fix: pip install nixl, or run the python of the engine's environment")
        return
    print("NIXL     {version} ({package}), its plugins in {looks_in}".format(**told["nixl"]))
    for who, answer, fix in (
        ("vLLM and SGLang find KVRAIL", told["engines"], "the cause is above, or in NIXL_LOG_LEVEL=INFO"),
        ("other programs find KVRAIL", told["alone"], "python -m kvrail.nixl --install"),
    ):
        print(f"{who}: " + ("yes" if answer["found"] else "no" + (f": {answer['error']}" if "error" in answer else "")))
        if not answer["found"]:
            print(f"         fix: {fix}")


# ---------------------------------------------------------------- links


def _link(folder: Optional[Path], name: str) -> Path:
    if folder is None:
        found = package()
        if found is None:
            sys.exit("kvrail.nixl: there is no NIXL in this environment; name a folder, or use the engine's python")
        folder = libraries(found) / "plugins"
    return folder / f"libplugin_{name}.so"


def _is_ours(link: Path) -> bool:
    return link.is_symlink() and os.path.basename(os.readlink(link)) == PLUGIN.name


def install(folder: Optional[Path], name: str) -> str:
    """Makes a link to the plugin, in NIXL's own folder or in another one."""
    link = _link(folder, name)
    if not PLUGIN.exists():
        sys.exit(f"kvrail.nixl: {PLUGIN} is missing: kvrail was built without g++")
    if os.path.lexists(link) and not _is_ours(link):
        sys.exit(f"kvrail.nixl: {link} is there and is not kvrail's; name another folder")
    try:
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(PLUGIN)
    except OSError as exc:
        sys.exit(f"kvrail.nixl: {link} cannot be made: {exc.strerror}")
    return f"{link} -> {PLUGIN}" + (f"\nexport NIXL_PLUGIN_DIR={folder.absolute()}" if folder else "")


def remove(folder: Optional[Path], name: str) -> str:
    link = _link(folder, name)
    if not _is_ours(link):
        sys.exit(f"kvrail.nixl: {link} is not a link of kvrail's")
    try:
        link.unlink()
    except OSError as exc:
        sys.exit(f"kvrail.nixl: {link} cannot be removed: {exc.strerror}")
    return f"{link} is removed"


def main(arguments: Optional[List[str]] = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m kvrail.nixl",
        description="Says where the NIXL plugin is and whether NIXL finds it (exit status 1: it does not), or makes a link to it.",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--json", action="store_true", help="the same as one JSON document")
    what.add_argument("--path", action="store_true", help="print the folder of the plugins and nothing else")
    what.add_argument("--install", nargs="?", const="", metavar="DIR", help="make a link beside UCX, or in DIR for NIXL_PLUGIN_DIR")
    what.add_argument("--remove", nargs="?", const="", metavar="DIR", help="remove that link")
    parser.add_argument("--as", dest="name", default="KVRAIL", help="the link's backend name; TensorRT-LLM takes LIBFABRIC, which needs a DIR")
    asked = parser.parse_args(arguments)
    if asked.path:
        print(PLUGIN.parent)
    elif asked.install is not None or asked.remove is not None:
        folder = asked.install or asked.remove
        do = remove if asked.install is None else install
        print(do(Path(folder) if folder else None, asked.name))
    else:
        told = look()
        print(json.dumps(told, indent=2)) if asked.json else _print(told)
        return 0 if told["built"] and told["nixl"] and told["engines"]["found"] else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
