# SPDX-License-Identifier: Apache-2.0
"""Arguments, checked so that the error names the one that is wrong."""

from __future__ import annotations

import operator
from typing import Any, Optional, Tuple, TypeVar

TIMEOUT_MAX_S = 24 * 3600.0
U32, U64, I63 = 2**32 - 1, 2**64 - 1, 2**63 - 1
T = TypeVar("T")


def shown(value: object) -> str:
    """A value as an error quotes it: one short line, whatever it is."""
    if isinstance(value, int) and int(value).bit_length() > 128:  # Python refuses to print very long ones
        return f"an integer of {int(value).bit_length()} bits"
    words = value if isinstance(value, str) else str(value)
    words = words if words.isprintable() else repr(words)[1:-1]
    return words if len(words) <= 120 else words[:117] + "..."


def integer(value: Any, what: str, low: int, high: int) -> int:
    """Anything that is an integer, numpy's too."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{what} is a {type(value).__name__}, not an integer") from None
    if not low <= number <= high:
        raise ValueError(f"{what} is {shown(number)}; it must lie between {low} and {high}")
    return number


def text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{what} is a {type(value).__name__}, not a str")
    if "\0" in value or not value.isprintable():
        raise ValueError(f"{what} is '{shown(value)}', which holds characters that cannot be printed")
    return value


def optional_text(value: Any, what: str) -> Optional[str]:
    return None if value is None else text(value, what)


def milliseconds(seconds: Any, what: str = "timeout", default: float = TIMEOUT_MAX_S) -> int:
    """A time in the library's unit: rounded up, so that what is not 0 does not become 0. None is the default."""
    try:
        if isinstance(seconds, (str, bytes, bytearray)):
            raise TypeError
        value = default if seconds is None else float(seconds)
    except (TypeError, ValueError):
        raise TypeError(f"{what} is a {type(seconds).__name__}, not a number of seconds") from None
    except OverflowError:
        value = float("inf")
    if not 0 <= value <= TIMEOUT_MAX_S:
        raise ValueError(f"{what} is {value} s; it must lie between 0 and {TIMEOUT_MAX_S:.0f}")
    return int(-(-value * 1000 // 1))


def flag(value: Any, what: str) -> bool:
    if type(value).__name__ not in ("bool", "bool_", "int"):  # bool_ is numpy's
        raise TypeError(f"{what} is a {type(value).__name__}, not a bool")
    return bool(value)


def instance(value: T, kind: type, what: str) -> T:
    if not isinstance(value, kind):
        raise TypeError(f"{what} is a {type(value).__name__}, not a {kind.__name__}")
    return value


def stream(value: Any) -> int:
    """A CUDA stream of torch, CuPy or a number: 0, the default stream, is cudaStreamLegacy to the library, whose 0 is none."""
    if value is None:
        return 0
    for name in "cuda_stream", "ptr":
        value = getattr(value, name, value)
    return integer(value, "stream", 0, U64) or 1


def layers(value: Any) -> Tuple[int, int]:
    """None = all, a number, a range, or (first, count), as first and count; a count of 0 is all."""
    if value is None:
        return 0, 0
    if isinstance(value, range):
        if value.step != 1 or not len(value):
            raise ValueError(f"layers is {shown(value)}; layers follow each other, and there is at least one")
        value = (value.start, len(value))
    elif not isinstance(value, tuple):
        return integer(value, "layers", 0, U32), 1
    if len(value) != 2:
        raise ValueError(f"layers is {shown(value)}; a tuple is (first, count)")
    return integer(value[0], "layers", 0, U32), integer(value[1], "the number of layers", 0, U32)
