# SPDX-License-Identifier: Apache-2.0
"""words.py -- comments and messages of the product use the plain word

usage: words.py ROOT
"""
import re
import sys

import source

FOLDERS = ("include/", "transport/", "kvapi/", "tool/", "net_plugin/", "python/ext/")
PLAIN = {
    r"\b(un)?told\b": "sent, reported, given or known",
    r"\bfor want of\b": "because there is no",
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\b(is|are|was|were) at it\b": "does it",
    r"\bwho(so)?ever\b": "the thread, the caller or the peer that",
    r"(?<!\bthere )\b(is|are|was|were) no (?!one\b|more\b|longer\b)[a-z]+": "is not a",
}


def texts(text):
    """(line, comment or string) of C text, a comment that runs over lines as one."""
    for match in re.finditer(r'/\*.*?\*/|"(?:\\.|[^"\\\n])*"', text, re.DOTALL):
        yield text.count("\n", 0, match.start()) + 1, re.sub(r"\s*\n\s*\*?\s*", " ", match[0])


def check(root):
    findings = []
    for path in source.c_files(root):
        if path.startswith(FOLDERS):
            for line, piece in texts(source.read(root, path)):
                for pattern, plain in PLAIN.items():
                    findings += [f"{path}:{line}: \"{match[0]}\": {plain}" for match in
                                 re.finditer(pattern, piece, re.IGNORECASE)]
    return findings


if __name__ == "__main__":
    source.report(check(sys.argv[1]))
