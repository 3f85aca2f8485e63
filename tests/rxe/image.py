# SPDX-License-Identifier: Apache-2.0
"""image.py -- the guest's kernel and its first file system, made once from the distribution's packages and cached

The kernel's packages are downloaded and unpacked, never installed. What stays in the cache is the kernel, and one
archive that the kernel starts from: busybox, the modules that are needed, init.sh.
"""
import contextlib
import fcntl
import glob
import gzip
import hashlib
import lzma
import os
import platform
import re
import shutil
import subprocess
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))

# package of Debian 12 and Ubuntu 24.04, and a program or file of it
PACKAGES = [
    ("qemu-system-x86", "qemu-system-x86_64"),
    ("busybox-static", "/bin/busybox"),
    ("ibverbs-providers", "/usr/lib/*/libibverbs/librxe-rdmav*.so"),
    ("ibverbs-utils", "ibv_devinfo"),
    ("perftest", "ib_write_bw"),
    ("iproute2", "rdma"),
    ("kmod", "rmmod"),
    ("mount", "mount"),
    ("zstd", "zstd"),
]
KERNEL_PACKAGES = ["linux-image-amd64", "linux-image-generic"]  # Debian's name, Ubuntu's name

# Loaded in this order, each after those it depends on. rxe asks the kernel's crypto for "crc32" by name.
MODULES = """virtio_pci virtio_net virtio_console 9p 9pnet_virtio overlay crc32c_intel crc32c_generic crc32_generic
    rdma_rxe rdma_ucm ib_uverbs veth sch_netem sch_prio cls_u32""".split()
OPTIONAL_MODULES = {"crc32c_intel", "crc32c_generic", "crc32_generic"}  # newer kernels have crc32 built in


class Missing(Exception):
    """The rig cannot run on this machine; the text says what would help."""


def is_there(name):
    if name.startswith("/"):
        return bool(glob.glob(name))
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin", "/lib/udev", "/usr/lib/udev"])
    return shutil.which(name, path=path) is not None


def is_static(path):
    """A program that needs no loader: its text names none."""
    with open(path, "rb") as file:
        return b"/lib64/ld-linux" not in file.read(4096)


def lacking():
    names = [package for package, name in PACKAGES if not is_there(name)]
    if "busybox-static" not in names and not is_static("/bin/busybox"):
        names.append("busybox-static")
    return names


def run(*command, **more):
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more).stdout


def as_root():
    """The words that make a command run as root, or None where that is not allowed."""
    if os.geteuid() == 0:
        return []
    works = subprocess.run(["sudo", "-n", "true"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False) \
        if shutil.which("sudo") else None
    return ["sudo", "-n"] if works and works.returncode == 0 else None


def install_packages(say):
    names = lacking()
    if not names:
        return
    command = f"apt-get update && apt-get install -y --no-install-recommends {' '.join(names)}"
    root = as_root()
    if root is None or not shutil.which("apt-get"):
        raise Missing(f"missing: {' '.join(names)}; as root: {command}")
    say(f"installing {' '.join(names)}")
    try:
        run(*root, "sh", "-c", "export DEBIAN_FRONTEND=noninteractive; " + command)
    except subprocess.CalledProcessError as error:
        raise Missing(f"missing: {' '.join(names)}; apt-get failed: {error.stderr.strip()[-300:]}") from error


def kernel_packages():
    """Every package with a piece of the newest kernel: what the distribution's name for it depends on."""
    pattern = re.compile(r"\blinux-(?:image|modules|modules-extra)-[0-9][^\s,|]*")

    def depends(name):
        shown = subprocess.run(["apt-cache", "show", "--no-all-versions", name], check=False, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
        lines = re.findall(r"^(?:Pre-)?Depends: (.*)$", shown, re.MULTILINE)
        return [match for line in lines for match in pattern.findall(line)]

    for name in KERNEL_PACKAGES:
        found = depends(name)
        for package in found:
            found += [more for more in depends(package) if more not in found]
        if found:
            return found
    return []


def find_kernel_packages(say):
    for name in "apt-get", "apt-cache", "dpkg-deb":
        if not shutil.which(name):
            raise Missing(f"no {name} here: the guest's kernel is taken from packages of Debian or Ubuntu")
    found = kernel_packages()
    root = as_root()
    if not found and root is not None:
        say("apt-get update")
        subprocess.run([*root, "apt-get", "update", "-q"], check=False, stdout=subprocess.DEVNULL)
        found = kernel_packages()
    if not found:
        raise Missing(f"apt knows none of {' '.join(KERNEL_PACKAGES)}; as root: apt-get update")
    return found


def download(packages, folder, say):
    say(f"downloading {' '.join(packages)} (once; not installed)")
    try:
        run("apt-get", "download", *packages, cwd=folder)
    except subprocess.CalledProcessError as error:
        reason = error.stderr.strip().splitlines()[-1:]
        raise Missing(f"apt-get download {' '.join(packages)} failed: {' '.join(reason)}") from error
    for package in glob.glob(os.path.join(folder, "*.deb")):
        run("dpkg-deb", "-x", package, os.path.join(folder, "tree"))


def module_bytes(path):
    with open(path, "rb") as file:
        data = file.read()
    if path.endswith(".xz"):
        return lzma.decompress(data)
    if path.endswith(".gz"):
        return gzip.decompress(data)
    if path.endswith(".zst"):
        return subprocess.run(["zstd", "-dcq", path], check=True, stdout=subprocess.PIPE).stdout
    return data


def load_order(tree):
    """(name, bytes) of every module that MODULES asks for, each after those it depends on."""
    paths, builtin, loaded = {}, set(), {}
    for path in glob.glob(os.path.join(tree, "**/lib/modules/*/kernel/**/*.ko*"), recursive=True):
        paths[os.path.basename(path).split(".ko")[0].replace("-", "_")] = path
    for path in glob.glob(os.path.join(tree, "**/lib/modules/*/modules.builtin"), recursive=True):
        with open(path, encoding="utf-8") as file:
            builtin |= {os.path.basename(line.strip())[:-3].replace("-", "_") for line in file}

    def load(name):
        if name in loaded or name in builtin:
            return
        if name not in paths:
            if name in OPTIONAL_MODULES:
                return
            raise Missing(f"the kernel's packages have no module {name}")
        data = module_bytes(paths[name])
        needs = re.search(rb"\0depends=([^\0]*)\0", data)
        for need in needs[1].decode().split(",") if needs and needs[1] else []:
            load(need.replace("-", "_"))
        loaded[name] = data

    for name in MODULES:
        load(name)
    return list(loaded.items())


def archive(entries):
    """A cpio archive in the "newc" form that the kernel unpacks; entries are (path, mode, bytes)."""
    out = bytearray()
    for number, (path, mode, data) in enumerate([*entries, ("TRAILER!!!", 0, b"")], 1):
        name = path.encode() + b"\0"
        fields = [number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name), 0]
        out += b"070701" + b"".join(b"%08x" % field for field in fields) + name
        out += bytes(-len(out) % 4)
        out += data
        out += bytes(-len(out) % 4)
    return bytes(out)


def first_files(tree):
    with open("/bin/busybox", "rb") as file:
        busybox = file.read()
    with open(os.path.join(HERE, "init.sh"), "rb") as file:
        init = file.read()
    entries = [(folder, 0o040755, b"") for folder in ("bin", "dev", "proc", "sys", "mod", "host", "new", "over")]
    entries += [("bin/busybox", 0o100755, busybox), ("bin/sh", 0o120777, b"busybox"), ("init", 0o100755, init)]
    for number, (name, data) in enumerate(load_order(tree)):
        entries.append((f"mod/{number:02}-{name}.ko", 0o100644, data))
    return archive(entries)


def make(folder, packages, say):
    """Fills the folder, all of it or nothing: it is filled under another name and renamed."""
    work = tempfile.mkdtemp(prefix="new-", dir=os.path.dirname(folder))
    try:
        scratch = os.path.join(work, "scratch")
        os.mkdir(scratch)
        download(packages, scratch, say)
        kernels = glob.glob(os.path.join(scratch, "tree/boot/vmlinuz-*"))
        if len(kernels) != 1:
            raise Missing(f"{' '.join(packages)}: expected one kernel in boot/, found {len(kernels)}")
        with open(os.path.join(work, "initramfs"), "wb") as file:
            file.write(first_files(os.path.join(scratch, "tree")))
        shutil.copyfile(kernels[0], os.path.join(work, "vmlinuz"))
        shutil.rmtree(scratch)
        os.rename(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def cache_folder():
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folder = os.path.join(base, "kvrail-rxe")
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise Missing(f"{folder} cannot be made ({error.strerror}); set XDG_CACHE_HOME") from error
    return folder


@contextlib.contextmanager
def locked(path):
    with open(path, "w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def prepare(say):
    """The folder with "vmlinuz" and "initramfs". Raises Missing where they cannot be had."""
    if platform.machine() != "x86_64":
        raise Missing(f"the guest is an x86_64 machine, this one is {platform.machine()}")
    cache = cache_folder()
    with locked(os.path.join(cache, "lock")):
        install_packages(say)
        recipe = hashlib.sha256()
        for name in "image.py", "init.sh":
            with open(os.path.join(HERE, name), "rb") as file:
                recipe.update(file.read())
        folder = os.path.join(cache, recipe.hexdigest()[:16])
        if not os.path.exists(folder):
            for old in glob.glob(os.path.join(cache, "new-*")):
                shutil.rmtree(old, ignore_errors=True)
            make(folder, find_kernel_packages(say), say)
    return folder
