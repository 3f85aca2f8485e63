# SPDX-License-Identifier: Apache-2.0
"""programs.py -- every program that a script or a test calls is in a package that ./dev lists, or on every Debian

usage: programs.py ROOT

Reads shell scripts (also those inside Python and C), the subprocess calls of Python, exec, system and popen of C,
and COMMAND and find_program of CMake. What is named by a path, or is a target of the build, is ours. The programs of
a package that ./dev lists are those in the third and in the last columns of its list.
"""
import ast
import os
import re
import sys

import shell
import source

BUILTINS = """. : [ alias break cd command continue declare echo eval exec exit export false getopts hash kill let local mapfile
    printf pwd read readonly return set shift source test trap true type ulimit umask unset wait""".split()

# What a Debian or Ubuntu has before anything is installed: packages that are essential, and apt.
# ./dev fresh looks whether it is so.
BASE = {
    "apt": "apt-cache apt-get",
    "bash": "bash",
    "coreutils": """basename cat chgrp chmod chown chroot cp cut date dirname du env expr fold head id install join ln ls
        mkdir mkfifo mknod mktemp mv nice nohup nproc od paste readlink realpath rm rmdir seq sleep sort split stat
        stdbuf stty sum sync tac tail tee timeout touch tr truncate tty uname uniq wc whoami""",
    "dash": "sh",
    "diffutils": "cmp diff",
    "dpkg": "dpkg dpkg-deb dpkg-query",
    "findutils": "find xargs",
    "grep": "grep",
    "gzip": "gzip gunzip zcat",
    "libc-bin": "getconf getent ldconfig ldd",
    "mawk": "awk",
    "perl-base": "perl",
    "sed": "sed",
    "tar": "tar",
    "util-linux": "fallocate flock nsenter prlimit setpriv setsid taskset unshare",
}

# Called only where they are there, or found under another name; nobody needs to install them.
OPTIONAL = {
    "auditwheel": "./dev wheel: PyPI's, in an environment of its own",
    "clang-format": "clang-format-14 by another name",
    "docker": "tests/deploy: Debian's, which the test unpacks",
    "dockerd": "tests/deploy: Debian's, which the test unpacks",
    "kvrail": "tests/fresh: what was installed there",
    "man": "tests/fresh: installed by the test in a machine of its own",
    "nvcc": "net_plugin/gpu: on a machine with GPUs only",
    "scontrol": "deploy/sbatch.sh: on a cluster",
    "srun": "deploy/sbatch.sh: on a cluster",
    "nvidia-smi": "net_plugin/gpu: on a machine with GPUs only",
    "sudo": "./dev and tests/rxe: for a caller who is not root",
}

BUSYBOX_ONLY = "switch_root insmod"
RUNNERS = {"run", "Popen", "call", "check_call", "check_output", "which", "execv", "execvp", "execlp"}
SHELLS = {"sh", "peer", "system", "popen", "getoutput"}


class Packages:
    """What ./dev lists: {package: purpose} and the programs of them all."""

    def __init__(self, text):
        listed = re.search(r"^packages='\n(.*?)^'", text, re.MULTILINE | re.DOTALL)
        self.purpose, self.programs = {}, set()
        for line in listed[1].splitlines() if listed else ():
            package, kind, name, purpose, *more = line.split()
            self.purpose[package] = purpose
            self.programs.update(more + [name] * (kind == "cmd"))
            if kind == "file":
                self.programs.add(os.path.basename(name))


# ---------------------------------------------------------------- Python

def assigned(tree):
    """{name: [expression, …]} of every assignment and every loop over written-out values in a file."""
    found = {}
    for node in ast.walk(tree):
        pairs = []
        if isinstance(node, ast.Assign):
            pairs = [(target, node.value) for target in node.targets]
        elif isinstance(node, (ast.For, ast.comprehension)) and isinstance(node.iter, (ast.Tuple, ast.List)):
            pairs = [(node.target, value) for value in node.iter.elts]
        for target, value in pairs:
            if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
                pairs += zip(target.elts, value.elts)
            elif isinstance(target, ast.Name):
                found.setdefault(target.id, []).append(value)
    return found


class Python:
    def __init__(self, text):
        self.tree = ast.parse(text)
        self.assigned = assigned(self.tree)
        self.names = set()
        self.not_runners = {node.name for node in ast.walk(self.tree)
                            if isinstance(node, ast.FunctionDef) and not self.runs_its_first(node)}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call) and node.args:
                self.call(node)

    @staticmethod
    def runs_its_first(function):
        """Whether what such a function is given first, or all of it, is a command that it runs."""
        given = function.args.args[:1] + [function.args.vararg]
        given = {one.arg for one in given if one}
        return any(isinstance(node, ast.Call) and getattr(node.func, "attr", None) in RUNNERS and node.args
                   and getattr(node.args[0], "id", None) in given for node in ast.walk(function))

    def call(self, node):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
        if isinstance(node.func, ast.Name) and name in self.not_runners - SHELLS:
            return
        in_shell = any(more.arg == "shell" and getattr(more.value, "value", False) for more in node.keywords)
        if name in SHELLS or in_shell:
            for text in self.texts(node.args[0]):
                self.names |= {(node.lineno, program) for _, program in shell.programs(text) if not program.startswith("SIG")}
        elif name in RUNNERS and getattr(getattr(node.func, "value", None), "id", "os") in ("os", "shutil", "subprocess"):
            first = node.args[0]
            lists = [node.args] if isinstance(first, ast.Starred) or self.texts(first) else self.lists(first)
            for elements in lists:
                self.words(node.lineno, elements)

    def words(self, line, elements):
        """As a shell would see it, so that env, timeout, sh -c are followed."""
        for first in self.firsts(elements):
            if first and re.search(r"\s|\.(py|sh)$", first[0]):  # a text that is another argument somewhere
                continue
            script = shell.Programs("")
            script.command(first + [self.texts(e)[0] if self.texts(e) else "$value" for e in elements[1:]])
            self.names |= {(line, name) for name in script.names}

    def firsts(self, elements):
        if isinstance(elements[0], ast.Starred):
            inner = self.lists(elements[0].value) or [[]]
            return [[text for e in one for text in self.texts(e)[:1]] for one in inner]
        return [[text] for text in self.texts(elements[0]) or ["$value"]]

    def lists(self, node, depth=0):
        if isinstance(node, (ast.List, ast.Tuple)):
            return [node.elts] if node.elts else []
        if isinstance(node, ast.BinOp):
            return self.lists(node.left, depth)
        if isinstance(node, ast.IfExp):
            return self.lists(node.body, depth) + self.lists(node.orelse, depth)
        if isinstance(node, ast.Name) and depth < 5:
            return [one for value in self.assigned.get(node.id, ()) for one in self.lists(value, depth + 1)]
        return []

    def texts(self, node, depth=0):
        """The texts that an expression may be, as far as they are written out; values in them as $value."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return [node.value]
        if isinstance(node, ast.JoinedStr):
            return ["".join(part.value if isinstance(part, ast.Constant) else "$value" for part in node.values)]
        if isinstance(node, ast.BinOp):
            rights = self.texts(node.right, depth) or ["$value"]
            return [left + right for left in self.texts(node.left, depth) for right in rights]
        if isinstance(node, ast.Name) and depth < 5:
            return [one for value in self.assigned.get(node.id, ()) for one in self.texts(value, depth + 1)]
        return []


# ---------------------------------------------------------------- C and CMake

LITERALS = r'((?:"(?:\\.|[^"\\\n])*"\s*)+)'


def literal(text):
    """Adjacent string literals as one; a conversion becomes an expansion."""
    whole = "".join(re.findall(r'"((?:\\.|[^"\\\n])*)"', text))
    whole = whole.replace("\\n", "\n").replace('\\"', '"').replace("\\t", "\t")
    return re.sub(r"%(\d+\$)?[sdu]", "$value", whole)


def c_programs(text):
    text = re.sub(r"/\*.*?\*/", lambda match: re.sub(r"[^\n]", " ", match[0]), text, flags=re.DOTALL)
    found = set()
    for match in re.finditer(r"\b(system|popen|exec[lv]p?e?|posix_spawnp?)\s*\(\s*(?:" + LITERALS + r"|(\w+))", text):
        line = text.count("\n", 0, match.start()) + 1
        scripts = [match[2]] if match[2] else []
        if match[3]:  # a variable: what is printed into it, or what it is set to
            name = re.escape(match[3])
            printed = re.findall(r"snprintf\s*\(\s*" + name + r"\s*,[^,]*,\s*(?:" + LITERALS + r"|(\w+))", text)
            scripts = [one for one, _ in printed if one]
            for name in [match[3]] + [other for _, other in printed if other]:
                scripts += re.findall(r"\b" + re.escape(name) + r"(?:\[\w*\])?\s*=\s*" + LITERALS, text)
        for script in scripts:
            if match[1] in ("system", "popen"):
                found |= {(line, program) for _, program in shell.programs(literal(script))}
            else:
                found.add((line, literal(script)))
    return found


def cmake_programs(text, targets):
    """Of find_program the alternatives are one: a tuple."""
    text = re.sub(r"#[^\n]*", "", text)
    found = set()
    for match in re.finditer(r"find_program\s*\(\s*\w+\s+(?:NAMES\s+)?([^)]*)\)", text):
        found.add((text.count("\n", 0, match.start()) + 1, tuple(re.findall(r"^[a-z][\w.+-]*|(?<=\s)[a-z][\w.+-]*", match[1]))))
    for match in re.finditer(r"\bCOMMAND\s+([a-z][\w.+-]*)(?=[\s)])", text):
        if match[1] not in targets:
            found.add((text.count("\n", 0, match.start()) + 1, match[1]))
    return found


def cmake_targets(texts):
    found = set()
    for text in texts:
        found |= set(re.findall(r"\b(?:add_executable|kvrail_\w+)\s*\(\s*([\w.+-]+)", text))
    return found


# ---------------------------------------------------------------- the tree

def is_script(root, path):
    """"sh", "py" or None, by the ending or the first line."""
    kind = os.path.splitext(path)[1][1:]
    if kind in ("sh", "py"):
        return kind
    with open(os.path.join(root, path), "rb") as file:
        first = file.readline(200)
    match = re.match(rb"#!.*\b(sh|bash|python)", first) if not kind else None
    return None if not match else "py" if match[1] == b"python" else "sh"


def called(root):
    """{(path, line, name or alternatives)} of the whole tree."""
    paths = list(source.files(root))
    makes = [path for path in paths if path.endswith(("CMakeLists.txt", ".cmake"))]
    targets = cmake_targets(source.read(root, path) for path in makes)
    found = set()
    for path in paths:
        kind = os.path.splitext(path)[1]
        names = ()
        if path in makes:
            names = cmake_programs(source.read(root, path), targets)
        elif kind in (".c", ".h"):
            names = c_programs(source.read(root, path))
        elif is_script(root, path) == "py":
            names = Python(source.read(root, path)).names
        elif is_script(root, path) == "sh":
            names = shell.programs(source.read(root, path))
        found |= {(path, line, name) for line, name in names}
    return found


def check(root):
    packages = Packages(source.read(root, "dev"))
    known = packages.programs | set(BUILTINS) | set(OPTIONAL) | set(BUSYBOX_ONLY.split())
    known |= {name for names in BASE.values() for name in names.split()}
    findings = []
    for path, line, name in sorted(called(root), key=str):
        names = name if isinstance(name, tuple) else (name,)
        # What a variable names is followed where it is set; a path below a folder of ours is ours.
        plain = [os.path.basename(one) if one.startswith(("/bin/", "/usr/", "/sbin/")) else one for one in names]
        if not any(one in known or "/" in one or "$" in one or one.startswith("-") for one in plain):
            findings.append(f"{path}:{line}: {' or '.join(plain)}: no package of ./dev's list has it")
    return findings + check_image(root, packages)


def check_image(root, packages):
    """tests/rxe/image.py installs what a guest needs by a list of its own."""
    path = "tests/rxe/image.py"
    if not os.path.exists(os.path.join(root, path)):
        return []
    values = assigned(ast.parse(source.read(root, path))).get("PACKAGES", [])
    theirs = {package for value in values for package, _ in ast.literal_eval(value)}
    ours = {package for package, purpose in packages.purpose.items() if purpose == "rxe"}
    return [f"{package}: for rxe in only one of dev and {path}" for package in sorted(theirs ^ ours)]


if __name__ == "__main__":
    if sys.argv[1:] == ["--base"]:
        print("\n".join(name for names in BASE.values() for name in names.split()))
    else:
        source.report(check(sys.argv[1]))
