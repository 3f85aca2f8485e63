# SPDX-License-Identifier: Apache-2.0
"""words.py -- comments and messages of the product and its tests, and the documents, use the plain word

usage: words.py ROOT
"""
import re
import sys

import source

FOLDERS = ("include/", "transport/", "kvapi/", "tool/", "net_plugin/", "agent/", "nixl_plugin/", "python/ext/", "tests/", "mpi_tests/", "bench/")
PLAIN = {
    r"\b(un)?told\b": "sent, reported, given or known",
    r"\bfor want of\b": "because there is no",
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\b(is|are|was|were) at it\b": "does it",
    r"\bwho(so)?ever\b": "the thread, the caller or the peer that",
    r"(?<!\bthere )\b(is|are|was|were) no (?!one\b|more\b|longer\b)[a-z]+": "is not a",
}


def documents(root):
    """(path, line, paragraph) of the documents."""
    for path in source.files(root):
        if path.endswith(".md"):
            line = 1
            for paragraph in re.split(r"(?<=\n)\n", source.read(root, path)):
                yield path, line, paragraph
                line += paragraph.count("\n") + 1


def texts(text):
    """(line, comment or string) of C text, a comment that runs over lines as one."""
    for match in re.finditer(r'/\*.*?\*/|"(?:\\.|[^"\\\n])*"', text, re.DOTALL):
        yield text.count("\n", 0, match.start()) + 1, re.sub(r"\s*\n\s*\*?\s*", " ", match[0])


def check(root):
    pieces = [(path, line, piece) for path in source.c_files(root) if path.startswith(FOLDERS)
              for line, piece in texts(source.read(root, path))] + list(documents(root))
    return [f"{path}:{line}: \"{match[0]}\": {plain}" for path, line, piece in pieces
            for pattern, plain in PLAIN.items() for match in re.finditer(pattern, piece, re.IGNORECASE)]


if __name__ == "__main__":
    source.report(check(sys.argv[1]))
