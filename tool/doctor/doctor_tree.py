# SPDX-License-Identifier: Apache-2.0
"""doctor_tree.py -- made-up hosts for `kvrail doctor --sysroot`: /sys, /proc and /dev as files"""
import os
import struct

BRIDGE, ETHERNET, INFINIBAND, DISPLAY = "0x060400", "0x020000", "0x020700", "0x030200"
ZERO_GID = ":".join(["0000"] * 8)
LIMITS = "Limit                     Soft Limit           Hard Limit           Units     \n" \
         "Max locked memory         %-20s %-20s bytes     \n"
STATUS = "Name:\tkvrail\nCapEff:\t%016x\nNoNewPrivs:\t0\nSeccomp:\t%d\n"
ALL_CAPABILITIES = 0x1FFFFFFFFFF
IPC_LOCK, SYS_PTRACE = 1 << 14, 1 << 19


def config(relaxed=True, acs=None, whole=True):
    """Configuration space: a PCIe capability at 0x60, and an ACS one with this control word."""
    space = bytearray(4096 if acs is not None else 256)
    space[0x34] = 0x40
    space[0x40], space[0x41] = 0x01, 0x60  # power management, then PCIe
    space[0x60], space[0x61] = 0x10, 0
    struct.pack_into("<H", space, 0x68, 5 << 12 | (1 << 4 if relaxed else 0))
    if acs is not None:
        struct.pack_into("<I", space, 0x100, 0x0001 | 1 << 16 | 0x148 << 20)  # error reporting, then ACS
        struct.pack_into("<I", space, 0x148, 0x000D | 1 << 16)
        struct.pack_into("<H", space, 0x14E, acs)
    return bytes(space if whole else space[:64])


def ipv4(address):
    a, b, c, d = (int(part) for part in address.split("."))
    return f"0000:0000:0000:0000:0000:ffff:{a:02x}{b:02x}:{c:02x}{d:02x}"


class Tree:
    def __init__(self, root):
        self.root = root

    def path(self, path):
        full = os.path.join(self.root, path)
        os.makedirs(os.path.dirname(full), exist_ok=True)
        return full

    def file(self, path, content):
        with open(self.path(path), "wb" if isinstance(content, bytes) else "w") as file:
            file.write(content if isinstance(content, bytes) else f"{content}\n")

    def files(self, folder, **contents):
        for name, content in contents.items():
            self.file(f"{folder}/{name}", content)

    def link(self, path, to):
        full = self.path(path)
        os.symlink(os.path.relpath(os.path.join(self.root, to), os.path.dirname(full)), full)

    def remove(self, path):
        os.unlink(os.path.join(self.root, path))

    # -- the parts of a host

    def process(self, memlock="unlimited", capabilities=0, seccomp=0, scope=0, uid_map="0 0 4294967295", group="/"):
        self.file("proc/self/limits", LIMITS % (memlock, memlock))
        self.file("proc/self/status", STATUS % (capabilities, seccomp))
        self.file("proc/self/uid_map", uid_map)
        self.file("proc/self/cgroup", f"0::{group}")
        if scope is not None:
            self.file("proc/sys/kernel/yama/ptrace_scope", scope)

    def kernel(self, release="6.1.0-28-amd64", **options):
        self.file("proc/sys/kernel/osrelease", release)
        self.file(f"boot/config-{release}", "\n".join(f"CONFIG_{name}={value}" for name, value in options.items()))

    def pci(self, way, kind, vendor="0x15b3", driver=None, node=0, space=None, **files):
        """A device at the end of `way` from its host bridge; returns its folder."""
        folder, address = f"sys/devices/{way}", way.rsplit("/", 1)[1]
        self.files(folder, vendor=vendor, numa_node=node, **{"class": kind}, **files)
        self.file(f"{folder}/config", space or config())
        if driver:
            self.link(f"{folder}/driver", f"sys/bus/pci/drivers/{driver}")
        self.link(f"sys/bus/pci/devices/{address}", folder)
        return folder

    def bridge(self, way, **more):
        return self.pci(way, BRIDGE, "0x8086", "pcieport", **more)

    def gpu(self, way, uuid, node=0):
        self.pci(way, DISPLAY, "0x10de", "nvidia", node)
        self.file(f"proc/driver/nvidia/gpus/{way.rsplit('/', 1)[1]}/information", f"GPU UUID: \t {uuid}")

    def nvidia(self, version="570.86.15", modules="Open Kernel Module for x86_64", peermem=True):
        self.file("sys/module/nvidia/version", version)
        self.file("proc/driver/nvidia/version", f"NVRM version: NVIDIA UNIX {modules}  {version}  Release Build")
        if peermem:
            self.file("sys/module/nvidia_peermem/refcnt", 0)

    def nic(self, name, way, number, kind=ETHERNET, node=0, speed="32.0 GT/s PCIe", width=16, **more):
        """An mlx5 card with its RDMA device, its node and its library's half; returns the device's folder."""
        best = {"max_link_speed": "32.0 GT/s PCIe", "max_link_width": 16}
        card = self.pci(way, kind, "0x15b3", "mlx5_core", node, current_link_speed=speed, current_link_width=width,
                        **best, **more)
        self.rdma(name, number, f"{card}/infiniband/{name}")
        self.link(f"{card}/infiniband/{name}/device", card)
        self.file("usr/lib/x86_64-linux-gnu/libibverbs/libmlx5-rdmav34.so", "")
        return f"{card}/infiniband/{name}"

    def rdma(self, name, number, folder):
        self.file(f"{folder}/node_type", "1: CA")
        self.link(f"sys/class/infiniband/{name}", folder)
        self.file(f"sys/class/infiniband_verbs/uverbs{number}/ibdev", name)
        self.file(f"dev/infiniband/uverbs{number}", "")
        self.file("dev/infiniband/rdma_cm", "")

    def port(self, device, number, state="4: ACTIVE", physical="5: LinkUp", rate="400 Gb/sec (4X NDR)", **counters):
        folder = f"{device}/ports/{number}"
        self.files(folder, state=state, phys_state=physical, rate=rate)
        self.files(f"{folder}/hw_counters", packet_seq_err=0, local_ack_timeout_err=0, **counters)
        return folder

    def infiniband(self, device, number, lid=7, pkey="0xffff", **more):
        folder = self.port(device, number, **more)
        self.files(folder, link_layer="InfiniBand", lid=f"0x{lid:x}")
        self.file(f"{folder}/pkeys/0", pkey)
        self.file(f"{folder}/gids/0", "fe80:0000:0000:0000:b83f:d203:00aa:bb01")

    def roce(self, device, number, netdev, gids, mtu=9000, ecn=None, **more):
        """gids: (text, "v1" or "v2") rows; ecn: priorities that notice and react."""
        folder = self.port(device, number, **more)
        self.file(f"{folder}/link_layer", "Ethernet")
        self.file(f"sys/class/net/{netdev}/mtu", mtu)
        for row in range(16):
            text, kind = gids[row] if row < len(gids) else (ZERO_GID, None)
            self.file(f"{folder}/gids/{row}", text)
            if kind:
                self.file(f"{folder}/gid_attrs/types/{row}", "RoCE v2" if kind == "v2" else "IB/RoCE v1")
                self.file(f"{folder}/gid_attrs/ndevs/{row}", netdev)
        for role in ("roce_np", "roce_rp") if ecn is not None else ():
            for priority in range(8):
                self.file(f"sys/class/net/{netdev}/ecn/{role}/enable/{priority}", int(priority in ecn))


LOCAL = "fe80:0000:0000:0000:b83f:d2ff:fe00:0001"


SWITCH = "pci0000:15/0000:15:01.0/0000:16:00.0"


def good(root, way=f"{SWITCH}/0000:17:01.0/0000:19:00.0", node=0):
    """One RoCE card beside one GPU, nothing to mend."""
    t = Tree(root)
    t.process()
    t.kernel(DMA_SHARED_BUFFER="y")
    t.nvidia()
    for bridge in SWITCH.rsplit("/", 1)[0], SWITCH, f"{SWITCH}/0000:17:00.0", f"{SWITCH}/0000:17:01.0":
        t.bridge(bridge, space=config(acs=0))
    t.gpu(f"{SWITCH}/0000:17:00.0/0000:18:00.0", "GPU-aaaa")
    device = t.nic("mlx5_0", way, 0, node=node)
    rows = [(LOCAL, "v1"), (LOCAL, "v2"), (ipv4("10.0.0.1"), "v1"), (ipv4("10.0.0.1"), "v2")]
    t.roce(device, 1, "eth0", rows, ecn=[3], rate="400 Gb/sec (4X NDR)")
    return t


def big(root):
    """Two sockets; two switches at each with a GPU and an InfiniBand card; a RoCE card of two ports, one without a cable."""
    t = Tree(root)
    t.process(memlock=8 << 20, capabilities=ALL_CAPABILITIES, scope=1)
    t.kernel("5.15.0-1066-nvidia", DMA_SHARED_BUFFER="y")
    t.nvidia("535.183.06")
    t.file("sys/module/nf_tables/refcnt", 12)
    for n, (bus, node) in enumerate([(0x15, 0), (0x3D, 0), (0x9A, 1), (0xC1, 1)]):
        root_port = f"pci0000:{bus:02x}/0000:{bus:02x}:01.0"
        switch = f"{root_port}/0000:{bus + 1:02x}:00.0"
        below = f"{switch}/0000:{bus + 2:02x}:"
        for way in root_port, switch, below + "00.0", below + "01.0":
            t.bridge(way, node=node, space=config(acs=0x1D if way == below + "00.0" and n == 2 else 0))
        t.gpu(f"{below}00.0/0000:{bus + 3:02x}:00.0", f"GPU-{n}", node)
        card = t.nic(f"mlx5_{n}", f"{below}01.0/0000:{bus + 4:02x}:00.0", n, INFINIBAND, node,
                     speed="16.0 GT/s PCIe" if n == 1 else "32.0 GT/s PCIe", space=config(relaxed=n != 3))
        state = dict(state="2: INIT", lid=0) if n == 3 else dict(lid=n + 10)
        t.infiniband(card, 1, pkey="0x7fff" if n == 2 else "0xffff", **state)
    t.bridge("pci0000:15/0000:15:03.0", space=config(acs=0))
    for port in range(2):
        card = t.nic(f"mlx5_{4 + port}", f"pci0000:15/0000:15:03.0/0000:1d:00.{port}", 4 + port)
        netdev, rate = f"ens8f{port}np{port}", "100 Gb/sec (4X EDR)"
        if port:
            t.roce(card, 1, netdev, [(LOCAL, "v1"), (LOCAL, "v2")], 1500, rate=rate, state="1: DOWN",
                   physical="3: Disabled")
        else:
            t.roce(card, 1, netdev, [(LOCAL, "v1"), (LOCAL, "v2"), (ipv4("10.1.2.3"), "v1"), (ipv4("10.1.2.3"), "v2")],
                   1500, rate=rate, out_of_sequence=1234)
    return t
