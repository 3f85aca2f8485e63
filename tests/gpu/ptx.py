# SPDX-License-Identifier: Apache-2.0
"""ptx.py -- copy.ptx is what nvcc makes of copy.cu

usage: ptx.py ROOT

nvcc is that of KVRAIL_NVCC, or PyPI's, fetched once and kept in the user's cache folder. Another version may write the same kernel in
other words, so it is asked for by its version.
"""
import os
import shutil
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "nccl"))
import library  # noqa: E402

VERSION = "13.0.88"
PACKAGES = [f"nvidia-cuda-nvcc=={VERSION}", f"nvidia-cuda-crt=={VERSION}", f"nvidia-nvvm=={VERSION}", "nvidia-cuda-runtime==13.0.96"]
# Of these: what makes PTX of a source.
NEEDED = ("bin/nvcc", "bin/nvcc.profile", "bin/cudafe++", "bin/crt", "include", "nvvm/bin", "nvvm/libdevice")


def fetched():
    kept = os.path.join(library.cache_folder("nvcc"), VERSION)
    if os.path.exists(kept):
        return os.path.join(kept, "bin", "nvcc")
    os.makedirs(os.path.dirname(kept), exist_ok=True)
    with tempfile.TemporaryDirectory(dir=os.path.dirname(kept)) as folder:
        library.fetch(folder, PACKAGES)
        for wheel in os.listdir(folder):
            shutil.unpack_archive(os.path.join(folder, wheel), os.path.join(folder, "all"), "zip")
        found = os.path.join(folder, "all", "nvidia", "cu13")
        some = os.path.join(folder, "some")
        for path in NEEDED:
            os.renames(os.path.join(found, path), os.path.join(some, path))
        for path in ("bin/nvcc", "bin/cudafe++", "nvvm/bin/cicc"):
            os.chmod(os.path.join(some, path), 0o755)
        os.rename(some, kept)
    return os.path.join(kept, "bin", "nvcc")


def main():
    gpu = os.path.join(sys.argv[1], "transport", "gpu")
    try:
        nvcc = os.environ.get("KVRAIL_NVCC") or fetched()
    except (library.Unavailable, OSError) as error:
        library.skip(str(error))
    with tempfile.TemporaryDirectory() as folder:
        made = os.path.join(folder, "copy.ptx")
        subprocess.run([os.path.join(gpu, "make_ptx.sh"), nvcc, made], check=True)
        with open(made, encoding="ascii") as new, open(os.path.join(gpu, "copy.ptx"), encoding="ascii") as old:
            if new.read() != old.read():
                sys.exit("transport/gpu/copy.ptx is not what transport/gpu/make_ptx.sh makes of copy.cu")


if __name__ == "__main__":
    main()
