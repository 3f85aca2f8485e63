# SPDX-License-Identifier: Apache-2.0
"""commands.py -- the commands of the documents: programs, options and tests that they name exist, and the short ones are run

usage: commands.py ROOT BUILD

Looks at `…` and at indented blocks. What a page marks is run, and must end with 0: `…` before <!-- run -->, a block behind it, or of
that the lines with these numbers: <!-- run 1 3 -->.
"""
import json
import os
import re
import shlex
import subprocess
import sys

import source

FOLDERS = ("tool", "bench", "mpi_tests", "mpi_tests/net", "tests/sim", "tests/operate", "tests/loop", "tests/chaos", "tests/rxe")
BUILDS = re.compile(r"(?<![\w/.-])(?:build-(?:dev|asan|tsan|bench|release|coverage)|BUILD)\b")
OURS = re.compile(r"(?:tests|bench|tool|mpi_tests|net_plugin|docs|kvapi|python)/|kv(?:rail)?(?:_\w+)?$")
SAYS_BY_STATUS = "kvrail doctor"  # 1: a line says fail


def pages(root):
    return [path for path in source.files(root) if path.endswith(".md") and path != "CHANGELOG.md"]


def blocks(text):
    """(numbers of the lines to run, None for all of them; lines) of each indented block: those to run first."""
    for match in re.finditer(r"(?:<!-- run ?([\d ]*)-->\n+)?((?:^ {4,}\S.*\n(?:\n(?= {4}))?)+)", text, re.MULTILINE):
        lines = re.sub(r"\\\n\s*", "", match[2]).splitlines()
        marked = match[1] is not None and ({int(n) for n in match[1].split()} or set(range(1, len(lines) + 1)))
        yield marked or set(), [re.sub(r"^(?:[\w-]*\$ )", "", line.strip()) for line in lines]


def words_of(line):
    """The words of each simple command of a line; nothing if it is not one of a shell."""
    try:
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|()")
        lexer.whitespace_split = True
        words = [*lexer, ";"]
    except ValueError:
        return
    command = []
    for word in words:
        if word.strip(";&|()"):
            command.append(word)
        elif command:
            yield command
            command = []


class Commands:
    def __init__(self, root, build):
        self.root, self.build = root, build
        shown = subprocess.run(["ctest", "--test-dir", build, "--show-only=json-v1"], capture_output=True, text=True, check=True)
        self.tests = [(test["name"], {label for one in test.get("properties", ()) if one["name"] == "LABELS" for label in one["value"]})
                      for test in json.loads(shown.stdout)["tests"]]
        self.files = set(source.files(root))

    def program(self, word):
        """Where it is: of the tree, or built; None if it is neither; "" if it is no program of ours."""
        word = BUILDS.sub("BUILD", word.removeprefix("$PWD/")).removeprefix("./")
        if word.startswith("BUILD/"):
            path = os.path.join(self.build, word.removeprefix("BUILD/"))
            return path if os.path.exists(path) or word.endswith(".so") else None
        if word in self.files and word.endswith((".py", ".sh")) or word == "dev":
            return os.path.join(self.root, word)
        built = [os.path.join(self.build, folder, word) for folder in FOLDERS if "/" not in word]
        path = next((one for one in built if os.path.isfile(one) and os.access(one, os.X_OK)), "")
        return path or (None if OURS.match(word) and word.endswith((".py", ".sh")) else "")

    def look(self, command):
        """What is wrong with the words of one command, which may run another one with its last words."""
        if "ctest" in command:
            yield from self.look_at_tests(command)
            return
        for words in [words for word in command if " " in word for words in words_of(word)]:
            yield from self.look(words)
        paths = [(at, word, self.program(word)) for at, word in enumerate(command) if " " not in word]
        yield from (f"there is no {word}" for _, word, path in paths if path is None)
        found = [(at, path) for at, _, path in paths if path]
        for (at, path), (end, _) in zip(found, found[1:] + [(len(command), "")]):
            yield from self.look_at_options(path, command[at + 1:end])

    def look_at_tests(self, command):
        for option, value in zip(command, command[1:]):
            name = BUILDS.sub("", value)
            if option == "-R" and not any(re.search(value, test) for test, _ in self.tests):
                yield f"ctest -R {name} finds no test"
            if option == "-L" and not any(re.search(value, label) for _, labels in self.tests for label in labels):
                yield f"ctest -L {name} finds no test"

    @staticmethod
    def look_at_options(path, arguments):
        with open(path, "rb") as file:
            text = file.read()
        for word in arguments:
            name = word.removeprefix("--").partition("=")[0]
            if word.startswith("--") and name and name.encode() not in text and name != "help":
                yield f"{os.path.basename(path)} has no option --{name}"
            if path.endswith(".sh") and re.fullmatch("[a-z]+", word) and not re.search(rf"\b{word}\b".encode(), text):
                yield f"{os.path.basename(path)} knows no {word}"

    def run(self, line):
        """What went wrong."""
        command = BUILDS.sub(lambda _: self.build, line)
        path = os.pathsep.join([os.path.join(self.build, folder) for folder in FOLDERS] + [os.environ["PATH"]])
        env = {name: value for name, value in os.environ.items() if name != "KVCACHE_VIEW"}  # a test has it switched off
        ran = subprocess.run(["bash", "-c", command], cwd=self.root, env={**env, "PATH": path}, text=True, timeout=600, check=False,
                             stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        print(f"$ {line}\n{ran.stdout[-300:]}", flush=True)
        if ran.returncode and not (command.startswith(SAYS_BY_STATUS) and ran.returncode == 1):
            yield f"exit status {ran.returncode}"


def check(root, build):
    commands, findings, marked = Commands(root, os.path.realpath(build)), [], {}
    for page in pages(root):
        text = source.read(root, page)
        lines = re.findall(r"(?<!`)`([^`\n]+ [^`\n]+)`(?!`)", text)
        for line in re.findall(r"`([^`\n]+)` <!-- run -->", text):
            marked.setdefault(line, page)
        for numbers, block in blocks(text):
            lines += block
            for number in sorted(numbers):
                marked.setdefault(re.sub(r"\s+# .*", "", block[number - 1]), page)
        findings += [f"{page}: {line}: {what}" for line in lines for words in words_of(line) for what in commands.look(words)]
    findings += [f"{page}: {line}: {what}" for line, page in marked.items() for what in commands.run(line)]
    return sorted(set(findings)) if marked else ["no page marks a command"]


if __name__ == "__main__":
    source.report(check(*sys.argv[1:]))
