# SPDX-License-Identifier: Apache-2.0
"""zmq.py -- in the place of pyzmq: one request socket and one reply socket, which also hears that the other end has left"""
import pickle
import socket
import struct

REQ, REP = "REQ", "REP"


class Socket:
    def __init__(self):
        self._listener = self._file = None

    @staticmethod
    def _address(url):
        host, _, port = url.rpartition("/")[2].rpartition(":")
        return host, int(port)

    def bind(self, url):
        self._listener = socket.create_server(self._address(url))

    def connect(self, url):
        self._file = socket.create_connection(self._address(url)).makefile("rwb")

    def send_pyobj(self, thing):
        data = pickle.dumps(thing)
        self._file.write(struct.pack("<I", len(data)) + data)
        self._file.flush()

    def recv_pyobj(self):
        if self._file is None:
            self._file = self._listener.accept()[0].makefile("rwb")
        head = self._file.read(4)
        if not head:
            raise EOFError("the other end has left")
        return pickle.loads(self._file.read(*struct.unpack("<I", head)))


class Context:
    def socket(self, kind):
        return Socket()
