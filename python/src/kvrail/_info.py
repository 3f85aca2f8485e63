# SPDX-License-Identifier: Apache-2.0
"""What an engine says of its peers, its devices and its options."""

from __future__ import annotations

from typing import NamedTuple


class PeerInfo(NamedTuple):
    name: str
    address: str
    transport: str
    path: str  #: how its bytes travel, and why
    incarnation: bytes  #: another value = another process
    connected: bool
    incoming: bool


class Device(NamedTuple):
    """A transport or device that this build knows. From `link` on: of an RDMA port; "", 0 or -1 elsewhere."""

    transport: str
    name: str  #: "mlx5_0:1", "host memory"
    usable: bool
    detail: str  #: what it is, or why it cannot be used and what to do
    link: str  #: "RoCE", "InfiniBand"
    gid: str  #: the address that a connection made now would use: "::ffff:10.0.0.1"
    gid_index: int  #: its row of the GID table; -1: InfiniBand, addressed by lid
    lid: int
    speed_mbps: int
    mtu_bytes: int  #: of an RDMA packet's payload
    pci: str  #: "0000:18:00.0"; "" for a software device
    numa_node: int  #: -1 = not known
    distance: str  #: to the GPU of KVCACHE_GPU: "PIX", "PXB", "PHB", "NODE", "SYS"
    reason: str  #: why this address


class Option(NamedTuple):
    """One of the options, all of which docs/environment.md explains."""

    name: str  #: "KVCACHE_SPIN_US"
    type: str  #: "integer", "bytes", "boolean", "word", "text"
    range: str
    default: str
    help: str
    value: str  #: as this engine has it
    source: str  #: "default", "environment", "config"
