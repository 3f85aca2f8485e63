# SPDX-License-Identifier: Apache-2.0
"""The constructor's arguments: three generations of signatures made one."""

from __future__ import annotations

import difflib
import operator
from collections.abc import Mapping, Set
from typing import Any, Dict, List, NamedTuple, Sequence, Tuple

from kvrail._check import integer, shown

from ._log import ignored

# The first seven never moved; these are their names in the README and in the module.
_COMMON = (
    ("splitwise_role", "role"),
    ("gpu_idx",),
    ("port",),
    ("key_cache_ptrs", "local_key_cache"),
    ("value_cache_ptrs", "local_value_cache"),
    ("block_number",),
    ("block_bytes",),
)
# What followed them: the 8th argument is a number in the second generation and a list in the third.
_TP = (("prefill_tp_size",), ("prefill_tp_idx",))
_SCALES = (("key_scale_ptrs",), ("value_scale_ptrs",), ("scale_block_bytes",))
_KEYWORDS = (("kv_heads",),)
_DEFAULTS: Dict[str, Any] = {
    "kv_heads": 0,
    "prefill_tp_size": 1,
    "prefill_tp_idx": 0,
    "key_scale_ptrs": (),
    "value_scale_ptrs": (),
    "scale_block_bytes": 0,
}


class Arguments(NamedTuple):
    role: str
    gpu_idx: int
    port: int
    keys: List[int]
    values: List[int]
    blocks: int
    block_bytes: int
    key_scales: List[int]
    value_scales: List[int]
    scale_bytes: int
    tp_size: int
    tp_rank: int
    kv_heads: int


def _is_number(value: object) -> bool:
    try:
        operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return False
    return not getattr(value, "shape", ())


def _bound(args: Sequence[Any], kwargs: Dict[str, Any]) -> Dict[str, Any]:
    """Arguments by their canonical names."""
    order = _COMMON + (_TP if len(args) > 7 and _is_number(args[7]) else _SCALES + _TP)
    if len(args) > len(order):
        raise TypeError(f"RDMACommunicator takes at most {len(order)} such arguments ({len(args)} given)")
    got: Dict[str, Any] = {names[0]: value for names, value in zip(order, args)}
    canonical = {name: names[0] for names in _COMMON + _SCALES + _TP + _KEYWORDS for name in names}
    for name, value in kwargs.items():
        if name not in canonical:
            near = difflib.get_close_matches(name, canonical, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise TypeError(f"RDMACommunicator has no argument '{shown(name)}'{hint}")
        if canonical[name] in got:
            raise TypeError(f"RDMACommunicator got two values for {canonical[name]!r}")
        got[canonical[name]] = value
    missing = [names[0] for names in _COMMON if names[0] not in got]
    if missing:
        raise TypeError(f"RDMACommunicator lacks {', '.join(missing)}")
    return {**_DEFAULTS, **got}


def port_of(value: Any) -> int:
    """A port as callers have it: "9881" or 9881."""
    if isinstance(value, (str, bytes)):
        text = value.decode("ascii", "replace") if isinstance(value, bytes) else value
        digits = text.strip()
        if not (digits.isascii() and digits.isdigit() and len(digits) < 100):
            raise ValueError(f"port is '{shown(text)}', not a number")
        value = int(digits)
    return integer(value, "port", 0, 65535)


def _unused_port(value: Any) -> int:
    """Only a decode process listens. What another one is given has no effect, as in the reference."""
    try:
        return port_of(value)
    except ValueError as exc:
        ignored("%s; only a decode process listens at it", exc)
        return 0


def _pointers(values: Any, what: str) -> List[int]:
    if values is None:
        return []
    try:
        if isinstance(values, (str, bytes, bytearray, Set, Mapping)):
            raise TypeError  # layers have an order
        items = list(values)
    except (TypeError, NotImplementedError):  # the second: a memoryview of two dimensions
        raise TypeError(f"{what} must be a list of addresses, not a {type(values).__name__}") from None
    return [integer(item, f"{what}[{i}]", 1, 2**64 - 1) for i, item in enumerate(items)]


def _same_length(got: Dict[str, List[int]]) -> None:
    layers = len(got["key_cache_ptrs"])
    if not layers:
        raise ValueError("key_cache_ptrs is empty")
    for what, pointers in got.items():
        if pointers and len(pointers) != layers:
            raise ValueError(f"{what} has {len(pointers)} layers, key_cache_ptrs has {layers}")


def parse(args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Arguments:
    got = _bound(args, kwargs)
    role = got["splitwise_role"]
    if not isinstance(role, str):
        raise TypeError(f"splitwise_role is a {type(role).__name__}, not a str")
    if role not in ("prefill", "decode", "mixed"):
        raise ValueError(f"splitwise_role is '{shown(role)}'; it is 'prefill', 'decode' or 'mixed'")
    lists = {
        what: _pointers(got[what], what)
        for what in ("key_cache_ptrs", "value_cache_ptrs", "key_scale_ptrs", "value_scale_ptrs")
    }
    _same_length(lists)
    scales = bool(lists["key_scale_ptrs"] or lists["value_scale_ptrs"])
    tp_size = integer(got["prefill_tp_size"], "prefill_tp_size", 1, 65536)
    return Arguments(
        role,
        integer(got["gpu_idx"], "gpu_idx", 0, 65535),
        port_of(got["port"]) if role == "decode" else _unused_port(got["port"]),
        lists["key_cache_ptrs"],
        lists["value_cache_ptrs"],
        integer(got["block_number"], "block_number", 1, 2**31 - 1),
        integer(got["block_bytes"], "block_bytes", 1, 2**40),
        lists["key_scale_ptrs"],
        lists["value_scale_ptrs"],
        integer(got["scale_block_bytes"], "scale_block_bytes", 1 if scales else 0, 2**40),
        tp_size,
        integer(got["prefill_tp_idx"], "prefill_tp_idx", 0, tp_size - 1),
        integer(got["kv_heads"], "kv_heads", 0, 65536),
    )
