# SPDX-License-Identifier: Apache-2.0
"""The command `kvrail` and `python -m kvrail`: the program of C, which the wheel holds."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn


def main() -> NoReturn:
    program = str(Path(__file__).with_name("_command"))
    try:
        os.execv(program, ["kvrail", *sys.argv[1:]])
    except OSError as exc:
        sys.exit(f"kvrail: {program} cannot be run: {exc.strerror}. Reinstall kvrail, built with jansson (libjansson-dev).")


if __name__ == "__main__":
    main()
