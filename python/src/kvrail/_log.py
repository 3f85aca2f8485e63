# SPDX-License-Identifier: Apache-2.0
"""The library's log lines, handed to logging.

The library logs from its own threads, which must never wait for the interpreter. It writes into a pipe; a daemon thread,
"kvrail-log", hands the lines on.
"""

from __future__ import annotations

import logging
import os
import threading

logger = logging.getLogger("kvrail")
logger.addHandler(logging.NullHandler())

_LEVELS = {"1": logging.ERROR, "2": logging.WARNING, "3": logging.INFO, "4": logging.DEBUG}


class LogPipe:
    """The two ends of the pipe and the thread between them."""

    def __init__(self) -> None:
        read_end, self.fd = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.fd, False)
        self._thread = threading.Thread(target=_hand_on, args=(read_end,), name="kvrail-log", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """After the engine has been closed: nobody writes any more."""
        fd, self.fd = self.fd, -1
        if fd < 0:
            return
        os.close(fd)
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(1.0)


def _hand_on(read_end: int) -> None:
    with os.fdopen(read_end, "r", encoding="utf-8", errors="backslashreplace") as lines:
        for line in lines:
            try:
                logger.log(_LEVELS.get(line[:1], logging.INFO), "%s", line[1:].rstrip("\n"))
            except Exception:  # a filter of the application's: the lines after this one must still come
                logger.debug("a log line was dropped by a filter or handler that failed", exc_info=True)
