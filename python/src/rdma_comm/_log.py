# SPDX-License-Identifier: Apache-2.0
"""Where this module's own lines go: logging, and the files and stderr that KVCACHE_* ask for.

The library's lines arrive at the logger "kvrail", and the library itself appends them to those files.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import threading
from typing import Optional

_own = logging.getLogger("rdma_comm")
_own.addHandler(logging.NullHandler())
_lock = threading.Lock()
_done = False


def files_of_the_environment() -> None:
    """Once a process. A file that cannot be opened is reported through the others."""
    global _done
    with _lock:
        if _done:
            return
        _done = True
    debug, output = _is_on("KVCACHE_DEBUG"), _is_on("KVCACHE_DEBUG_OUTPUT")
    form = logging.Formatter("%(asctime)s rdma_comm[%(process)d] %(levelname)s: %(message)s")
    for variable, level in (("KVCACHE_DEBUG_FILE", logging.DEBUG), ("KVCACHE_ERROR_FILE", logging.WARNING)):
        path = os.environ.get(variable, "")
        if path:
            _to_file(_expanded(path), variable, level, form)
    if output or (debug and not os.environ.get("KVCACHE_DEBUG_FILE")):
        for name in ("rdma_comm", "kvrail"):
            stderr = _Stderr(output)
            stderr.setFormatter(form)
            logging.getLogger(name).addHandler(stderr)
    if debug or output:
        for name in ("rdma_comm", "kvrail"):
            logging.getLogger(name).setLevel(logging.DEBUG if debug else logging.INFO)


class _Stderr(logging.StreamHandler):  # type: ignore[type-arg]
    """Prints what the application's own handlers do not show; with KVCACHE_DEBUG_OUTPUT, what they do not show on stderr."""

    def __init__(self, wanted: bool) -> None:
        super().__init__()
        self._wanted = wanted

    def emit(self, record: logging.LogRecord) -> None:
        if not self._shown(record):
            super().emit(record)

    def _shown(self, record: logging.LogRecord) -> bool:
        logger: Optional[logging.Logger] = logging.getLogger(record.name)
        while logger:
            for other in logger.handlers:
                if isinstance(other, (_Stderr, _File, logging.NullHandler)) or record.levelno < other.level:
                    continue
                if not self._wanted or getattr(other, "stream", None) is self.stream:
                    return True
            logger = logger.parent if logger.propagate else None
        return False


class _File(logging.FileHandler):
    """A file that the environment asks for."""


def _is_on(variable: str) -> bool:
    return os.environ.get(variable, "").strip().lower() in ("1", "yes", "on", "true", "y")


def _expanded(path: str) -> str:
    """As the library does it: %h is the host, %p the process, %% a percent sign."""
    known = {"h": socket.gethostname(), "p": str(os.getpid()), "%": "%"}
    return re.sub("%([hp%])", lambda match: known[match[1]], path)


def _to_file(path: str, variable: str, level: int, form: logging.Formatter) -> None:
    try:
        handler = _File(path, delay=False)
    except OSError as exc:
        _own.error("%s %s cannot be opened: %s", variable, path, exc)
        return
    handler.setLevel(level)
    handler.setFormatter(form)
    _own.addHandler(handler)
