# SPDX-License-Identifier: Apache-2.0
"""RDMA ports of this machine, real or Soft-RoCE: what Engine.devices() says of them, and which of them rdma_comm takes.

tests/rxe runs this in a guest with two devices; elsewhere it is skipped unless there are as many.
"""

from __future__ import annotations

import ipaddress
import re
import shutil
import subprocess
from pathlib import Path
from typing import Dict, List

import kvrail
import numpy as np
import pytest
from conftest import pattern
from rdma_comm import RDMACommunicator

INFINIBAND = Path("/sys/class/infiniband")
HOST, BLOCKS = "127.0.0.1", 8


def usable_ports() -> List[kvrail.Device]:
    with kvrail.Engine() as engine:
        return [device for device in engine.devices() if device.transport == "ib" and device.usable]


@pytest.fixture(scope="module")
def ports() -> List[kvrail.Device]:
    found = usable_ports()
    if len(found) < 2:
        pytest.skip(f"{len(found)} usable RDMA ports here, 2 are needed")
    return found


def folder(port: kvrail.Device) -> Path:
    device, _, number = port.name.partition(":")
    return INFINIBAND / device / "ports" / number


def read(path: Path) -> str:
    return path.read_text().strip()


def sent(ports: List[kvrail.Device]) -> Dict[str, int]:
    counters = {port.name: folder(port) / "hw_counters" / "sent_pkts" for port in ports}
    if not all(path.exists() for path in counters.values()):
        pytest.skip("only Soft-RoCE counts its packets here")
    return {name: int(read(path)) for name, path in counters.items()}


def test_every_active_port_of_the_kernel_is_listed_once(ports: List[kvrail.Device]) -> None:
    active = [path.parent for path in INFINIBAND.glob("*/ports/*/state") if "ACTIVE" in read(path)]
    assert sorted(port.name for port in ports) == sorted(f"{p.parent.parent.name}:{p.name}" for p in active)


def test_a_port_is_described_as_the_kernel_describes_it(ports: List[kvrail.Device]) -> None:
    for port in ports:
        here = folder(port)
        assert port.link == {"Ethernet": "RoCE", "InfiniBand": "InfiniBand"}[read(here / "link_layer")]
        assert port.speed_mbps == float(read(here / "rate").split()[0]) * 1000
        assert port.lid == int(read(here / "lid"), 16)
        pci = (INFINIBAND / port.name.partition(":")[0] / "device").resolve().name
        assert port.pci == (pci if re.fullmatch(r"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-9a-f]", pci) else "")
        if port.link == "RoCE":
            address = ipaddress.IPv6Address(read(here / "gids" / str(port.gid_index)))
            assert ipaddress.IPv6Address(port.gid) == address and not address.is_link_local
            assert read(here / "gid_attrs" / "types" / str(port.gid_index)) == "RoCE v2"
            assert "RoCE v2" in port.reason


def test_the_mtu_is_the_one_in_use(ports: List[kvrail.Device]) -> None:
    if not shutil.which("ibv_devinfo"):
        pytest.skip("ibv_devinfo is not installed")
    for port in ports:
        device, _, number = port.name.partition(":")
        said = subprocess.run(["ibv_devinfo", "-d", device, "-i", number], capture_output=True, text=True).stdout
        assert re.findall(r"active_mtu:\s+(\d+)", said) == [str(port.mtu_bytes)]


def test_an_index_that_is_no_entry_leaves_the_choice_automatic(
    ports: List[kvrail.Device], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVCACHE_RDMA_GID_INDEX", "200")
    for port, usual in zip(usable_ports(), ports):
        assert (port.name, port.gid, port.gid_index) == (usual.name, usual.gid, usual.gid_index)
        if port.link == "RoCE":
            assert "200" in port.reason and "200" not in usual.reason


def moved(gpu_idx: int, block_bytes: int = 4096) -> None:
    source, target = pattern(gpu_idx, BLOCKS, block_bytes), np.zeros((BLOCKS, block_bytes), np.uint8)
    with RDMACommunicator("decode", gpu_idx, "0", [target.ctypes.data], [], BLOCKS, block_bytes) as decode:
        with RDMACommunicator("prefill", gpu_idx, "0", [source.ctypes.data], [], BLOCKS, block_bytes) as comm:
            assert comm.connect(HOST, decode.port), comm.last_error()
            assert comm.write_cache(HOST, decode.port, [1, 5], [6, 0], 0) == 0, comm.last_error()
    want = np.zeros_like(target)
    want[[6, 0]] = source[[1, 5]]
    assert np.array_equal(target, want)


@pytest.mark.parametrize("gpu_idx", [0, 1, 2, 3])
def test_the_nic_of_a_list_is_that_of_the_gpu_index(
    ports: List[kvrail.Device], gpu_idx: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gpu_idx mod n, as in the reference: only that device sends."""
    names = [port.name.partition(":")[0] for port in ports[:2]]
    monkeypatch.setenv("KVCACHE_RDMA_NICS", " , ".join(names))
    monkeypatch.setenv("KVCACHE_TRANSPORT", "ib")
    before = sent(ports)
    moved(gpu_idx)
    grown = [name for name, count in sent(ports).items() if count > before[name]]
    assert grown == [ports[gpu_idx % 2].name]


def test_without_a_list_every_port_carries_its_share(ports: List[kvrail.Device], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVCACHE_TRANSPORT", "ib")
    if any(port.distance for port in ports):
        pytest.skip("there is a GPU here, near to some of the ports")
    before = sent(ports)
    moved(0, 256 * 1024)  # a few small blocks would go through one lane
    assert all(count > before[name] for name, count in sent(ports).items())


def test_a_list_without_the_device_names_it(monkeypatch: pytest.MonkeyPatch, ports: List[kvrail.Device]) -> None:
    monkeypatch.setenv("KVCACHE_RDMA_NICS", f"{ports[0].name},mlx5_77")
    monkeypatch.setenv("KVCACHE_TRANSPORT", "ib")
    moved(0)
    with pytest.raises(RuntimeError, match="mlx5_77.*not a device with an active port"):
        moved(1)
