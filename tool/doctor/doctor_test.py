# SPDX-License-Identifier: Apache-2.0
"""doctor_test.py -- kvrail doctor on made-up hosts: one large one as a whole, and each condition made wrong by itself

usage: doctor_test.py PROGRAM [--write-golden]
"""
import ctypes
import glob
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import unittest

import doctor_tree as tree

PROGRAM = sys.argv.pop(1)
GOLDEN = os.path.join(os.path.dirname(__file__), "doctor_golden.txt")
HEADER = "# SPDX-License-Identifier: Apache-2.0\n"
CARD = "sys/class/infiniband/mlx5_0"
PORT = f"{CARD}/ports/1"
GPU = "sys/bus/pci/devices/0000:18:00.0"


def run(*arguments, settings=None, **more):
    clean = {k: v for k, v in os.environ.items() if not k.startswith("KVCACHE_")}
    return subprocess.run([PROGRAM, "doctor", *arguments], env={**clean, **(settings or {})}, capture_output=True, text=True, **more)


def checks_of(root):
    document = json.loads(run("--sysroot", root, "--json").stdout)
    return document["checks"]


class Made(unittest.TestCase):
    def setUp(self):
        self.root = tempfile.mkdtemp(prefix="kvrail-doctor-")
        self.addCleanup(shutil.rmtree, self.root)


class Large(Made):
    def test_every_line_of_a_large_host_is_as_expected(self):
        tree.big(self.root)
        text = HEADER + run("--sysroot", self.root).stdout
        with open(GOLDEN, encoding="utf-8") as file:
            self.assertEqual(text, file.read())

    def test_json_says_the_same_as_the_text(self):
        tree.big(self.root)
        as_text, as_json = run("--sysroot", self.root), run("--sysroot", self.root, "--json")
        self.assertEqual((as_text.returncode, as_json.returncode), (0, 0))
        document, lines = json.loads(as_json.stdout), []
        for check in document["checks"]:
            device = check["device"] + ": " if check["device"] else ""
            lines.append(f"{check['status']:4}  {check['what']:12}  {device}{check['text']}")
            if check["fix"]:
                lines.append(f"{'':18}  fix: {check['fix']}")
        plural = {n: "" if document[n] == 1 else "s" for n in ("warnings", "failures")}
        counts = (f"{document['ok']} ok, {document['warnings']} warning{plural['warnings']}, "
                  f"{document['failures']} failure{plural['failures']}")
        self.assertEqual(as_text.stdout, "\n".join(lines + ["", counts, ""]))


# Each: what is made wrong in the good host, the check that must notice, status, what it must say, what the fix must say.
def row(change, what, status, text, fix=""):
    return change, what, status, text, fix


CONDITIONS = {
    "little locked memory": row(
        lambda t: t.process(memlock=65536), "memlock", "fail", "^64 KiB: no larger", "ulimit -l unlimited"),
    "locked memory of 2 GiB": row(
        lambda t: t.process(memlock=2 << 30), "memlock", "warn", "^2097152 KiB", "memlock=-1"),
    "little, but with the capability": row(
        lambda t: t.process(65536, tree.IPC_LOCK), "memlock", "ok", "CAP_IPC_LOCK of this process overrides"),
    "the capability of a user namespace": row(
        lambda t: t.process(65536, tree.IPC_LOCK, uid_map="0 1000 1"), "memlock", "fail", "namespace does not count",
        "memlock"),
    "ptrace scope 1": row(
        lambda t: t.process(scope=1), "ptrace_scope", "warn", "its own children only", "yama.ptrace_scope=0"),
    "ptrace scope 2": row(
        lambda t: t.process(scope=2), "ptrace_scope", "warn", "CAP_SYS_PTRACE only", "kv_alloc"),
    "ptrace scope 3": row(
        lambda t: t.process(scope=3, capabilities=tree.SYS_PTRACE), "ptrace_scope", "warn", "nobody", "boot again"),
    "ptrace scope 2 with the capability": row(
        lambda t: t.process(scope=2, capabilities=tree.SYS_PTRACE), "ptrace_scope", "ok", "overrides"),
    "no yama": row(
        lambda t: t.remove("proc/sys/kernel/yama/ptrace_scope"), "ptrace_scope", "ok", "no yama"),
    "Kubernetes": row(
        lambda t: t.file("var/run/secrets/kubernetes.io/x", ""), "container", "ok", "^Kubernetes;"),
    "a seccomp filter": row(
        lambda t: t.process(seccomp=2), "seccomp", "ok", "a filter is on"),
    "a small memory limit": row(
        lambda t: (t.process(group="/pod/box"), t.file("sys/fs/cgroup/pod/box/memory.max", "max"),
                   t.file("sys/fs/cgroup/pod/memory.max", 512 << 20)),
        "cgroup", "warn", "limited to 512 MiB", "resources.limits.memory"),
    "a small memory limit, version 1": row(
        lambda t: (t.file("proc/self/cgroup", "4:memory:/box\n0::/"),
                   t.file("sys/fs/cgroup/memory/box/memory.limit_in_bytes", 256 << 20)),
        "cgroup", "warn", "limited to 256 MiB", "--memory"),
    "few RDMA objects": row(
        lambda t: t.file("sys/fs/cgroup/rdma.max", "mlx5_0 hca_handle=4 hca_object=100"), "cgroup", "warn",
        "hca_object=100", "hca_object=max"),
    "a packet filter": row(
        lambda t: t.file("sys/module/iptable_filter/refcnt", 1), "firewall", "warn", "4791", "iptables -S INPUT"),
    "a second card without its module": row(
        lambda t: t.pci("pci0000:15/0000:15:09.0", tree.ETHERNET, driver="mlx5_core"), "driver", "warn",
        "0000:15:09.0 have no RDMA device", "^modprobe mlx5_ib "),
    "a card given to a virtual machine": row(
        lambda t: t.pci("pci0000:15/0000:15:09.0", tree.ETHERNET, driver="vfio-pci"), "driver", "ok", "^mlx5_0"),
    "no module ib_uverbs": row(
        lambda t: shutil.rmtree(t.path("sys/class/infiniband_verbs")), "nodes", "fail", "not loaded",
        "^modprobe ib_uverbs$"),
    "no device node": row(
        lambda t: t.remove("dev/infiniband/uverbs0"), "nodes", "fail", "for mlx5_0", "--device=/dev/infiniband"),
    "no rdma_cm": row(
        lambda t: t.remove("dev/infiniband/rdma_cm"), "rdma_cm", "warn", "No such file", "modprobe rdma_ucm"),
    "no provider in user space": row(
        lambda t: t.remove("usr/lib/x86_64-linux-gnu/libibverbs/libmlx5-rdmav34.so"), "library", "fail",
        "missing for mlx5_0", "ibverbs-providers"),
    "no routable GID": row(
        lambda t: [t.file(f"{PORT}/gids/{i}", tree.ZERO_GID) for i in (2, 3)], "gid", "fail",
        "0 RoCE v2 with IPv4, 0 with routable IPv6, 0 RoCE v1, 2 link-local",
        "ip addr add ADDRESS/PREFIX dev eth0"),
    "RoCE v1 only": row(
        lambda t: t.file(f"{PORT}/gid_attrs/types/3", "IB/RoCE v1"), "gid", "fail", "2 RoCE v1", "roce_mode=2"),
    "another network namespace": row(
        lambda t: [t.file(f"{PORT}/gids/{i}", tree.ZERO_GID) for i in range(4)], "gid", "fail", "^0 rows",
        "--network=host"),
    "only IPv6": row(
        lambda t: t.file(f"{PORT}/gids/3", "2001:0db8:0000:0000:0000:0000:0000:0007"), "gid", "ok",
        "best is index 3, 2001:db8::7"),
    "Ethernet's usual MTU": row(
        lambda t: t.file("sys/class/net/eth0/mtu", 1500), "mtu", "warn", "1024 or 2048", "ip link set eth0 mtu 4200"),
    "lost packets": row(
        lambda t: t.file(f"{PORT}/hw_counters/packet_seq_err", 17), "counters", "warn", "^packet_seq_err 17$",
        "under load"),
    "half of the lanes": row(
        lambda t: t.file(f"{CARD}/device/current_link_width", 8), "pcie", "warn", "x8 at", "lspci -s 0000:19:00.0"),
    "relaxed ordering off": row(
        lambda t: t.file(f"{CARD}/device/config", tree.config(relaxed=False)), "ordering", "warn", "not allowed",
        "setpci -s 0000:19:00.0 CAP_EXP"),
    "no right to see the card's configuration": row(
        lambda t: t.file(f"{CARD}/device/config", tree.config(whole=False)), "ordering", "warn",
        "cannot be seen without root", "sudo"),
    "ACS redirection": row(
        lambda t: t.file("sys/bus/pci/devices/0000:17:00.0/config", tree.config(acs=4)), "acs", "warn",
        "0000:17:00.0$", "setpci -s 0000:17:00.0 ECAP_ACS"),
    "no right to see the bridges' configuration": row(
        lambda t: t.file("sys/bus/pci/devices/0000:17:00.0/config", tree.config(whole=False)), "acs", "warn",
        "cannot be seen without root", "sudo"),
    "no congestion notification": row(
        lambda t: t.file("sys/class/net/eth0/ecn/roce_rp/enable/3", 0), "ecn", "warn", "no priority",
        "/sys/class/net/eth0/ecn"),
    "no way to see congestion notification": row(
        lambda t: shutil.rmtree(t.path("sys/class/net/eth0/ecn")), "ecn", "warn", "cannot be seen here",
        "mlxconfig -d 0000:19:00.0"),
    "peermem alone": row(
        lambda t: t.file("proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570"), "gpu",
        "ok", "proprietary modules"),
    "neither DMA-BUF nor peermem": row(
        lambda t: (shutil.rmtree(t.path("sys/module/nvidia_peermem")), t.kernel("5.4.0-generic")), "gpu", "warn",
        "older than 5.12; nvidia_peermem: not loaded", "modprobe nvidia_peermem"),
    "a kernel without DMA-BUF": row(
        lambda t: (shutil.rmtree(t.path("sys/module/nvidia_peermem")), t.kernel(DMA_SHARED_BUFFER="n")), "gpu",
        "warn", "no CONFIG_DMA_SHARED_BUFFER", "nvidia-open"),
}
# Lines that change with the one that is meant, for a reason.
ALONG = {
    "the capability of a user namespace": {"container"}, "little, but with the capability": {"container"},
    "ptrace scope 3": {"container"}, "ptrace scope 2 with the capability": {"container"},
}


class Small(Made):
    def test_a_good_host_has_nothing_to_mend_but_what_a_copy_cannot_tell(self):
        tree.good(self.root)
        bad = {check["what"] for check in checks_of(self.root) if check["status"] != "ok"}
        self.assertEqual(bad, {"pfc"})

    def test_each_condition_made_wrong_changes_its_line_and_no_other(self):
        tree.good(self.root)
        before = {check["what"]: check for check in checks_of(self.root)}
        for name, (change, what, status, text, fix) in CONDITIONS.items():
            with self.subTest(name), tempfile.TemporaryDirectory(prefix="kvrail-doctor-") as root:
                change(tree.good(root))
                after = {check["what"]: check for check in checks_of(root)}
                self.assertEqual(after[what]["status"], status, after[what])
                self.assertRegex(after[what]["text"], text)
                self.assertRegex(after[what]["fix"], fix or "^$")
                self.assertEqual(bool(after[what]["fix"]), status != "ok", after[what])
                changed = {w for w in before if after.get(w) != before[w]}
                self.assertEqual(changed - ALONG.get(name, set()) - {what}, set())

    def test_the_only_port_down_is_a_failure_that_names_its_interface(self):
        t = tree.good(self.root)
        t.file(f"{PORT}/state", "1: DOWN")
        t.file(f"{PORT}/phys_state", "3: Disabled")
        result = run("--sysroot", self.root)
        self.assertEqual(result.returncode, 1)
        self.assertRegex(result.stdout, r"(?m)^fail  port .*1: DOWN \(physical 3: Disabled\).*\n +fix: ip link set eth0 up")
        self.assertNotRegex(result.stdout, r"(?m)^\w+ +(gid|mtu|counters) ")

    def test_a_card_at_another_socket_than_the_gpu_is_a_warning(self):
        tree.good(self.root, way="pci0000:9a/0000:9a:01.0/0000:9b:00.0", node=1)
        self.assertRegex(run("--sysroot", self.root).stdout, r"warn  distance +GPU 0 \S+ SYS mlx5_0:1\n.*NUMA node")

    def test_infiniband_without_a_subnet_manager_or_full_membership_says_so(self):
        t = tree.good(self.root)
        card = t.nic("mlx5_1", "pci0000:15/0000:15:05.0", 1, tree.INFINIBAND)
        t.infiniband(card, 1, state="2: INIT", lid=0)
        self.assertRegex(run("--sysroot", self.root).stdout, r"warn  port +mlx5_1:1: 2: INIT.*\n +fix: .*subnet manager")
        t.infiniband(card, 1, pkey="0x7fff")
        self.assertRegex(run("--sysroot", self.root).stdout, r"warn  pkey +mlx5_1:1: .*0x7fff, limited")
        t.infiniband(card, 1, pkey="0xffff")
        self.assertRegex(run("--sysroot", self.root).stdout, r"ok +pkey +mlx5_1:1: .*full member; lid 7")

    def test_a_host_without_a_card_gets_by_and_one_whose_card_has_no_driver_does_not(self):
        t = tree.Tree(self.root)
        t.process(memlock=65536)
        result = run("--sysroot", self.root)
        self.assertEqual(result.returncode, 0)
        self.assertRegex(result.stdout, r"ok +memlock +64 KiB; there is no device")
        self.assertRegex(result.stdout, r"warn  driver +this machine has no RDMA device")
        t.pci("pci0000:15/0000:15:09.0", tree.INFINIBAND)
        result = run("--sysroot", self.root)
        self.assertEqual(result.returncode, 1)
        self.assertRegex(result.stdout, r"fail  driver .*0000:15:09.0.*\n +fix: modprobe mlx5_ib ")

    def test_a_configuration_space_that_points_into_itself_ends(self):
        t = tree.good(self.root)
        space = bytearray(tree.config(acs=4))
        space[0x41], space[0x61] = 0x40, 0x40
        struct.pack_into("<I", space, 0x100, 0x0001 | 1 << 16 | 0x100 << 20)
        t.file("sys/bus/pci/devices/0000:17:00.0/config", bytes(space))
        t.file(f"{CARD}/device/config", bytes(space))
        self.assertRegex(run("--sysroot", self.root).stdout, r"ok +acs +no redirection on 4 bridges")

    def test_a_folder_that_is_not_there_is_wrong_usage(self):
        for arguments in ["--sysroot", self.root + "/none"], ["--sysroot", self.root, "--peer", "127.0.0.1"]:
            self.assertEqual(run(*arguments).returncode, 2, arguments)


class Real(unittest.TestCase):
    """Conditions that this process can make for its child without a device."""

    def line(self, result, what):
        return re.search(rf"(?m)^(\w+) +{what} +(.*)$", result.stdout).groups()

    def test_a_filter_that_forbids_process_vm_writev_is_seen(self):
        program = b"".join(struct.pack("<HBBI", *words) for words in (
            (0x20, 0, 0, 0), (0x15, 0, 1, 311), (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7FFF0000)))
        code = ctypes.create_string_buffer(program)
        libc = ctypes.CDLL(None, use_errno=True)

        def forbid():
            filters = ctypes.create_string_buffer(struct.pack("<HxxxxxxQ", 4, ctypes.addressof(code)))
            if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, filters, 0, 0):
                os._exit(99)

        if os.uname().machine != "x86_64":
            self.skipTest("the filter is written for x86-64")
        self.assertEqual(self.line(run(), "seccomp"), ("ok", "no filter"))
        status, text = self.line(run(preexec_fn=forbid), "seccomp")
        self.assertEqual(status, "warn")
        self.assertIn("refuses process_vm_writev", text)

    def test_the_key_is_named_and_one_that_others_may_read_is_a_failure(self):
        self.assertEqual(self.line(run(), "key"), ("ok", "none: every process that reaches a listening port may connect"))
        with tempfile.NamedTemporaryFile("w") as file:
            file.write("k" * 32 + "\n")
            file.flush()
            settings = {"KVCACHE_PSK_FILE": file.name}
            self.assertEqual(self.line(run(settings=settings), "key"), ("ok", f"both ends of a connection need a key of {file.name}"))
            os.chmod(file.name, 0o640)
            result = run(settings=settings)
            self.assertEqual(result.returncode, 1)
            status, text = self.line(result, "engine")
            self.assertEqual(status, "fail")
            self.assertIn("may be read or written by other users", text)
            self.assertIn("fix: chmod 600", result.stdout)

    def test_what_keeps_nixl_from_the_plugin_is_said(self):
        with tempfile.TemporaryDirectory() as root:
            folder = f"{root}/lib/python3.11/site-packages/.nixl_cu12.mesonpy.libs/plugins"
            os.makedirs(folder)
            for settings in {"VIRTUAL_ENV": root}, {"NIXL_PLUGIN_DIR": folder}:
                result = run(settings=settings)
                status, text = self.line(result, "nixl")
                self.assertEqual(status, "warn")
                self.assertRegex(text, "kvrail was built without g[+][+]|where NIXL looks, has no libplugin_KVRAIL.so")
                self.assertRegex(result.stdout, rf"fix: (install g[+][+]|ln -s \S*/libplugin_KVRAIL.so {folder}/)")
            with open(f"{folder}/libplugin_KVRAIL.so", "wb") as file:
                file.write(b"not a library")
            status, text = self.line(run(settings=settings), "nixl")
            self.assertEqual(status, "fail")
            self.assertIn("cannot load it", text)
            plugin = os.path.join(os.path.dirname(PROGRAM), "..", "nixl_plugin", "libplugin_KVRAIL.so")
            if os.path.exists(plugin):
                os.remove(file.name)
                os.symlink(os.path.abspath(plugin), file.name)
                self.assertEqual(self.line(run(settings=settings), "nixl"), ("ok", f"NIXL finds {file.name}"))
        self.assertEqual(self.line(run(settings={"VIRTUAL_ENV": "/nowhere", "NIXL_PLUGIN_DIR": ""}), "nixl")[0], "ok")

    def test_a_lowered_limit_and_a_dropped_capability_are_seen(self):
        if os.geteuid() or not shutil.which("setpriv"):
            self.skipTest("needs root and setpriv")
        limit = "ulimit -S -l 64; exec "
        kept = subprocess.run(["sh", "-c", f'{limit} "$0" doctor', PROGRAM], capture_output=True, text=True)
        gone = subprocess.run(["sh", "-c", f'{limit} setpriv --bounding-set=-ipc_lock "$0" doctor', PROGRAM],
                              capture_output=True, text=True)
        if "CAP_IPC_LOCK yes" not in kept.stdout:
            self.skipTest("this process has no CAP_IPC_LOCK to drop")
        self.assertIn("64 KiB, which CAP_IPC_LOCK", self.line(kept, "memlock")[1])
        self.assertNotIn("CAP_IPC_LOCK of this process", self.line(gone, "memlock")[1])
        self.assertEqual(self.line(gone, "memlock")[0], "fail" if glob.glob("/sys/class/infiniband/*/ports/*") else "ok")
        self.assertIn("CAP_IPC_LOCK no", self.line(gone, "container")[1])


if __name__ == "__main__":
    if "--write-golden" in sys.argv:
        with tempfile.TemporaryDirectory(prefix="kvrail-doctor-") as made:
            tree.big(made)
            with open(GOLDEN, "w", encoding="utf-8") as out:
                out.write(HEADER + run("--sysroot", made).stdout)
        sys.exit()
    unittest.main()
