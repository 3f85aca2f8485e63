# SPDX-License-Identifier: Apache-2.0
"""source.py -- the source tree as the lint tests see it, and how they report"""
import os
import re
import sys

LIBRARY = ("transport/", "kvapi/", "net_plugin/", "agent/", "nixl_plugin/")
NOT_LIBRARY = ("kvapi/examples/",)


def files(root):
    """Every file of the tree as a path relative to the root; build folders and what is hidden are left out."""
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(f for f in folders if not f.startswith((".", "build", "__pycache__")) or f == ".ci")
        for name in sorted(names):
            if not name.startswith("."):
                yield os.path.relpath(os.path.join(folder, name), root)


def c_files(root):
    return [path for path in files(root) if path.endswith((".c", ".h", ".cpp", ".hpp"))]


def is_library(path):
    return path.startswith(LIBRARY) and not path.startswith(NOT_LIBRARY)


def read(root, path):
    with open(os.path.join(root, path), encoding="utf-8") as file:
        return file.read()


def code(text):
    """C text with comments, strings and character constants blanked; lines stay where they are."""
    pattern = re.compile(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', re.DOTALL)

    def blank(match):
        piece = match.group()
        edge = piece[0] if piece[0] in "\"'" else ""
        return edge + re.sub(r"[^\n]", " ", piece[len(edge):len(piece) - len(edge)]) + edge

    return pattern.sub(blank, text)


def skip(reason):
    print(f"skipped: {reason}")
    sys.exit(77)


def report(findings, notes=()):
    """Prints what was found and ends the program. Notes do not fail."""
    for note in notes:
        print(f"note: {note}")
    for finding in findings:
        print(finding)
    print(f"{len(findings)} findings")
    sys.exit(1 if findings else 0)
