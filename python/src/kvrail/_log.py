# SPDX-License-Identifier: Apache-2.0
"""The library's log lines, handed to logging.

The library logs from its own threads, which must never wait for the interpreter. It writes into a pipe; a daemon thread,
"kvrail-log", hands the lines on.
"""

from __future__ import annotations

import atexit
import errno
import logging
import os
import threading

from ._errors import system_error

logger = logging.getLogger("kvrail")
logger.addHandler(logging.NullHandler())

_MARK = "0"  # no level: everything before it was handed on
_LEVELS = {"1": logging.ERROR, "2": logging.WARNING, "3": logging.INFO, "4": logging.DEBUG}


class LogPipe:
    """The two ends of the pipe and the thread between them."""

    def __init__(self) -> None:
        try:
            read_end, self.fd = os.pipe2(os.O_CLOEXEC)
        except OSError as exc:
            raise system_error("open", exc) from None
        os.set_blocking(self.fd, False)
        self._marked = threading.Event()
        self._thread = threading.Thread(
            target=_hand_on, args=(read_end, self._marked), name="kvrail-log", daemon=True
        )
        try:
            self._thread.start()
        except RuntimeError:
            os.close(read_end)
            os.close(self.fd)
            raise system_error("open", OSError(errno.EAGAIN, "cannot start a thread")) from None
        atexit.register(self.drain)

    def drain(self) -> None:
        """At the interpreter's end, for an engine that nobody closed: what it has logged so far is handed on."""
        if not self._thread.is_alive():  # a forked child's
            return
        try:
            os.write(self.fd, (_MARK + "\n").encode())
        except OSError:  # full, or closed
            return
        self._marked.wait(1.0)

    def close(self) -> None:
        """After the engine has been closed: nobody writes any more."""
        atexit.unregister(self.drain)
        fd, self.fd = self.fd, -1
        if fd < 0:
            return
        os.close(fd)
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(1.0)


def _hand_on(read_end: int, marked: threading.Event) -> None:
    with os.fdopen(read_end, "r", encoding="utf-8", errors="backslashreplace") as lines:
        for line in lines:
            if line[:1] == _MARK:
                marked.set()
                continue
            try:
                logger.log(_LEVELS.get(line[:1], logging.INFO), "%s", line[1:].rstrip("\n"))
            except Exception:  # a filter of the application's: the lines after this one must still come
                logger.debug("a log line was dropped by a filter or handler that failed", exc_info=True)
