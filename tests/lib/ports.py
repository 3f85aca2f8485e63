# SPDX-License-Identifier: Apache-2.0
"""ports.py -- a port of 127.0.0.1 for a program that listens where its caller says"""
import socket

_held = []


def held_port():
    """Until this process ends the kernel gives it to nobody who names none; a listener with SO_REUSEADDR may have it."""
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", 0))
    _held.append(holder)
    return holder.getsockname()[1]
