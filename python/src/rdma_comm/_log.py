# SPDX-License-Identifier: Apache-2.0
"""Where lines go: logging, the files and stderr that KVCACHE_* ask for, and failures to stderr in any case.

The library's lines arrive at the logger "kvrail", and the library itself appends them to those files.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import threading
from typing import Any, Optional, Set

_own = logging.getLogger("rdma_comm")
_own.addHandler(logging.NullHandler())
_lock = threading.Lock()
_done = False
_SAID_MAX = 1000


def outputs_of_the_environment() -> None:
    """Once a process. The library says of a file that it cannot be opened."""
    global _done
    with _lock:
        if _done:
            return
        _done = True
    debug = is_on("KVCACHE_DEBUG") or is_on("KV_IS_DEBUG_ENABLED")  # two names of one thing in the reference
    output = is_on("KVCACHE_DEBUG_OUTPUT")
    form = logging.Formatter("%(asctime)s rdma_comm[%(process)d] %(levelname)s: %(message)s")
    in_file = _to_file("KVCACHE_DEBUG_FILE", logging.DEBUG, form)
    _to_file("KVCACHE_ERROR_FILE", logging.WARNING, form)
    everything = output or (debug and not in_file)
    stderr = _Stderr(everything, output)
    stderr.setFormatter(form)
    for name in ("rdma_comm", "kvrail"):
        logging.getLogger(name).addHandler(stderr)
        if debug or output:
            logging.getLogger(name).setLevel(logging.DEBUG if debug else logging.INFO)


def ignored(text: str, *args: object) -> None:
    """A warning that also stderr shows, a single time: of what the user has set, and which does not count."""
    _own.warning(text, *args, extra={"once": text % args})


class _Stderr(logging.StreamHandler):  # type: ignore[type-arg]
    """Prints what the application's own handlers do not show; with KVCACHE_DEBUG_OUTPUT, what they do not show on stderr.

    everything: each line. Otherwise failures (and what a record's `once` marks), each a single time.
    """

    def __init__(self, everything: bool, wanted: bool) -> None:
        super().__init__()
        self._everything, self._wanted = everything, wanted
        self._said: Set[Any] = set()

    def emit(self, record: logging.LogRecord) -> None:
        if (self._everything or self._is_news(record)) and not self._shown(record):
            super().emit(record)

    def _is_news(self, record: logging.LogRecord) -> bool:
        key = getattr(record, "once", record.getMessage() if record.levelno >= logging.ERROR else None)
        if key is None or key in self._said:
            return False
        if len(self._said) == _SAID_MAX:
            self._said.clear()
        self._said.add(key)
        return True

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


def is_on(variable: str) -> bool:
    return os.environ.get(variable, "").strip().lower() in ("1", "yes", "on", "true", "y")


def _expanded(path: str) -> str:
    """As the library does it: %h is the host, %p the process, %% a percent sign."""
    known = {"h": socket.gethostname(), "p": str(os.getpid()), "%": "%"}
    return re.sub("%([hp%])", lambda match: known[match[1]], path)


def _to_file(variable: str, level: int, form: logging.Formatter) -> bool:
    path = os.environ.get(variable, "")
    try:
        handler = _File(_expanded(path)) if path else None
    except OSError:
        handler = None
    if handler is None:
        return False
    handler.setLevel(level)
    handler.setFormatter(form)
    _own.addHandler(handler)
    return True
