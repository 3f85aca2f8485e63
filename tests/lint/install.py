# SPDX-License-Identifier: Apache-2.0
"""install.py -- an installed kvrail can be used: by pkg-config, by find_package, and as a
subdirectory, from C and C++; the examples compile as they say

usage: install.py ROOT BUILD_DIRECTORY C_COMPILER [C++_COMPILER]
"""
import glob
import os
import re
import shutil
import subprocess
import sys
import tempfile

import quickstart
import source

CONSUMER = """
#include <kvrail/kv.h>
#include <stdio.h>
#include <string.h>

int main(void)
{
	struct kv_engine *engine = NULL;
	int ret = kv_engine_open(NULL, &engine, NULL);

	printf("%s %d\\n", kv_version(), ret);
	kv_engine_close(engine);
	return ret || strncmp(kv_version(), "VERSION", strlen("VERSION"));
}
"""
CMAKE = """
cmake_minimum_required(VERSION 3.22)
project(consumer LANGUAGES C)
{}
add_executable(consumer consumer.c)
target_link_libraries(consumer PRIVATE kvrail::kvrail)
"""


def run(*command, **more):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **more)
    if done.returncode:
        print(" ".join(command) + "\n" + done.stdout)
        sys.exit(1)
    return done.stdout


def by_pkg_config(work, prefix, compiler, language):
    config = os.path.dirname(glob.glob(prefix + "/**/kvrail.pc", recursive=True)[0])
    flags = run("pkg-config", "--cflags", "--libs", "kvrail", env={**os.environ, "PKG_CONFIG_PATH": config}).split()
    program = f"{work}/pkg-{language}"
    run(compiler, "-x", language, f"{work}/consumer.c", "-x", "none", "-Wall", "-Werror", "-o", program, *flags)
    library = os.path.dirname(glob.glob(prefix + "/**/libkvrail.so", recursive=True)[0])
    run(program, env={**os.environ, "LD_LIBRARY_PATH": library})


def by_their_own_line(work, prefix, root):
    """Each example compiles with the command that stands at its top."""
    folder = f"{work}/examples"
    shutil.copytree(f"{root}/kvapi/examples", folder)
    config = os.path.dirname(glob.glob(prefix + "/**/kvrail.pc", recursive=True)[0])
    for path in sorted(glob.glob(f"{folder}/*.c")):
        name = os.path.basename(path)
        lines = [line[2:].strip() for line in open(path, encoding="utf-8") if line.startswith(f" *     cc {name} ")]
        if len(lines) != 1:
            source.report([f"kvapi/examples/{name} does not say how it is compiled"])
        run("sh", "-c", lines[0], cwd=folder, env={**os.environ, "PKG_CONFIG_PATH": config})


def by_the_readme(work, prefix, root):
    """The README's program, with the environment and the command that the README gives."""
    readme = source.read(root, "README.md")
    folder = os.path.relpath(os.path.dirname(glob.glob(prefix + "/**/libkvrail.so", recursive=True)[0]), prefix)
    export = re.search(r"^    (export .*PREFIX.*)$", readme, re.MULTILINE)[1].replace("PREFIX/lib", f"PREFIX/{folder}")
    compile = re.search(r"\| pkg-config \| `(cc app\.c [^`]*)`", readme)[1]
    with open(f"{work}/app.c", "w", encoding="utf-8") as file:
        file.write(quickstart.program(readme))
    said = run("sh", "-ec", "\n".join((export.replace("PREFIX", prefix), compile, "./app")), cwd=work)
    if said.strip() != quickstart.promise(readme):
        source.report([f"as the README installs it, its program prints {said!r}"])


def by_cmake(work, name, how, *options):
    folder = f"{work}/{name}"
    os.mkdir(folder)
    shutil.copy(f"{work}/consumer.c", folder)
    with open(f"{folder}/CMakeLists.txt", "w", encoding="utf-8") as file:
        file.write(CMAKE.format(how))
    run("cmake", "-G", "Ninja", "-S", folder, "-B", f"{folder}/build", *options)
    run("cmake", "--build", f"{folder}/build", "-j", "2")
    run(f"{folder}/build/consumer")


def leaves_its_parent_alone(work, name):
    """As a subdirectory it builds only the library, installs nothing and does not choose how its parent is compiled."""
    build = f"{work}/{name}/build"
    run("cmake", "--install", build, "--prefix", f"{work}/{name}/prefix")
    found = [path for path in glob.glob(f"{work}/{name}/prefix/**/*", recursive=True) if os.path.isfile(path)]
    with open(f"{build}/CMakeCache.txt", encoding="utf-8") as cache:
        found += [line.strip() for line in cache if line.startswith("CMAKE_BUILD_TYPE") and not line.endswith("=\n")]
    built = {os.path.basename(path) for path in glob.glob(f"{build}/kvrail/**/*", recursive=True)
             if os.path.isfile(path) and (os.access(path, os.X_OK) or path.endswith(".a"))}
    found += sorted(name for name in built if not name.startswith(("libkvrail.so", "libkvrail_transport.a")))
    return [f"as a subdirectory kvrail leaves {what} behind" for what in found]


def check_layout(prefix):
    """The SONAME is a link to the versioned file, and nothing names the folder it was built in."""
    library = glob.glob(prefix + "/**/libkvrail.so", recursive=True)[0]
    soname = next(line for line in run("readelf", "-d", library).splitlines() if "SONAME" in line).split("[")[1][:-1]
    if not os.path.islink(os.path.join(os.path.dirname(library), soname)):
        source.report([f"no link {soname} beside {library}"])


def check_uninstall(build, prefix):
    """The target uninstall leaves what others put there, and nothing else."""
    other = f"{prefix}/include/other.h"
    open(other, "w", encoding="utf-8").close()
    run("cmake", "--build", build, "--target", "uninstall")
    found = glob.glob(prefix + "/**/*", recursive=True)
    left = [path for path in found if (not os.path.isdir(path) or "kvrail" in os.path.basename(path)) and path != other]
    return [f"the target uninstall leaves {path} behind" for path in left]


def check_command(prefix, version):
    """The command finds its library from where it was installed to."""
    command = f"{prefix}/bin/kvrail"
    if os.path.exists(command) and version not in run(command, "--version"):
        source.report([f"kvrail --version does not say {version}"])


def check_man(prefix):
    """man finds each page, and each page that stands for another one leads to it."""
    man = os.path.dirname(os.path.dirname(glob.glob(prefix + "/**/man3/kv_write_blocks.3", recursive=True)[0]))
    wanted = ["man3/kvrail.3", "man7/kvrail.7"] + ["man1/kvrail.1"] * os.path.exists(f"{prefix}/bin/kvrail")
    for path in glob.glob(f"{man}/man3/*"):
        wanted += [line.split()[1] for line in source.read("", path).splitlines()[:1] if line.startswith(".so ")]
    missing = [f"no page {name}" for name in wanted if not os.path.exists(f"{man}/{name}")]
    if missing:
        source.report(missing)


def check_paths(prefix, root):
    found = []
    for path in glob.glob(prefix + "/**/*", recursive=True):
        if os.path.isfile(path):
            with open(path, "rb") as file:
                if os.path.realpath(root).encode() in file.read():
                    found.append(f"{os.path.relpath(path, prefix)} holds the path of the source tree")
    return found


def main(root, build, c_compiler, cxx_compiler=""):
    with tempfile.TemporaryDirectory() as work:
        prefix = f"{work}/prefix"
        run("cmake", "--install", build, "--prefix", prefix, "--strip")
        header = source.read(root, "include/kvrail/kv.h")
        version = ".".join(line.split()[2] for line in header.splitlines() if line.startswith("#define KV_VERSION_"))
        with open(f"{work}/consumer.c", "w", encoding="utf-8") as file:
            file.write(CONSUMER.replace("VERSION", version))
        check_layout(prefix)
        check_command(prefix, version)
        check_man(prefix)
        by_pkg_config(work, prefix, c_compiler, "c")
        if cxx_compiler:
            by_pkg_config(work, prefix, cxx_compiler, "c++")
        by_their_own_line(work, prefix, root)
        by_the_readme(work, prefix, root)
        minor = version.rsplit(".", 1)[0]
        by_cmake(work, "package", f"find_package(kvrail {minor} REQUIRED)", f"-DCMAKE_PREFIX_PATH={prefix}")
        by_cmake(work, "subdirectory", f'add_subdirectory("{os.path.realpath(root)}" kvrail)')
        findings = leaves_its_parent_alone(work, "subdirectory") + check_paths(prefix, root)
        source.report(findings + check_uninstall(build, prefix))


if __name__ == "__main__":
    main(*sys.argv[1:])
