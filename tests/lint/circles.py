# SPDX-License-Identifier: Apache-2.0
"""circles.py -- files of a library that cannot be read, tested or changed without each other

usage: circles.py ROOT [--arrows]

And folders of a library that call up, or assign the state of another. An arrow goes from a source to each one whose functions or tables it names, and to each one whose header it includes. A circle
is a set of files that reach each other. The header that a folder has for all of its files makes no arrow, and neither do the tables of
functions that a lower folder reaches a higher one by. --arrows also prints what makes each arrow of a circle.
"""
import collections
import os
import re
import sys

import source

# The rule is: no circle of more than two files. This is how many files stand in larger ones; the number may only fall.
IN_CIRCLES = {"agent/": 0, "kvapi/": 0, "net_plugin/": 0, "transport/": 0}
SMALL = 2
# Folders of a library, lowest first: an arrow never goes to a higher one.
ORDER = {"kvapi/": ["wire", "engine", "peer", "grant", "op", "lease", "loop", "api"],
         "transport/": ["base", "gpu", ".", "shm", "ib", "tcp"]}
# Headers of all files of a folder, besides kv_FOLDER.h.
SHARED = {"transport/tr.h", "transport/provider.h", "transport/conn.h", "transport/shm/shm.h", "transport/ib/ib.h", "transport/tcp/tcp.h"}
TABLES = {"tr_shm_provider", "tr_ib_provider", "tr_tcp_provider"}


def defined(text):
    """Names that other files can use: functions and variables that are not static, defined in the first column."""
    text = source.code(text)
    for match in re.finditer(r"^(?!static\b|typedef\b|extern\b|enum\b)[a-z][^;{}=#]*?(?:\n\{|=)", text, re.MULTILINE):
        head = re.sub(r"__attribute__\s*\(\(.*?\)\)", "", match[0])
        name = re.search(r"\b(\w+)\s*\(", head) or re.search(r"\b(\w+)\s*(?:\[[^]]*\]\s*)*=$", head)
        if name:
            yield name[1]


def arrows(root, library):
    """{file: {file: what makes the arrow}} of the .c files of a library and its folders."""
    texts = {path: source.read(root, path) for path in source.c_files(root)
             if path.startswith(library) and source.is_library(path)}
    sources = [path for path in texts if path.endswith(".c")]
    owner = {name: path for path in sources for name in defined(texts[path]) if name not in TABLES}
    found = {path: collections.defaultdict(set) for path in sources}
    shared = SHARED | {f"{library}{name}/kv_{name}.h" for name in ORDER.get(library, [])}
    for path in sources:
        for name in set(re.findall(r"\w+", source.code(texts[path]))) & set(owner):
            found[path][owner[name]].add(name)
        for name in re.findall(r'^\s*#\s*include\s*"([^"]+)"', texts[path], re.MULTILINE):
            for folder in [os.path.dirname(path), library] + [library + name for name in ORDER.get(library, [])]:
                header = os.path.normpath(os.path.join(folder, name))
                other = os.path.splitext(header)[0] + ".c"
                if header in shared:
                    break  # of a folder: the names count
                if header in texts and other in found:
                    found[path][other].add(name)
                    break
        found[path].pop(path, None)
    return found


def circles(graph):
    """Sets of files that reach each other, largest first (Tarjan)."""
    number, low, stack, on, out = {}, {}, [], set(), []

    def visit(node):
        number[node] = low[node] = len(number)
        stack.append(node)
        on.add(node)
        for other in graph[node]:
            if other not in number:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in on:
                low[node] = min(low[node], number[other])
        if low[node] == number[node]:
            part = set(stack[stack.index(node):])
            del stack[stack.index(node):]
            on.difference_update(part)
            if len(part) > 1:
                out.append(sorted(part))

    for node in sorted(graph):
        if node not in number:
            visit(node)
    return sorted(out, key=len, reverse=True)


# A state that one folder assigns and the others only read.
OWNED = {r"->stage = KV_STAGE_": "kvapi/op/"}


def foreign(root):
    """Assignments of an owned state elsewhere."""
    for path in sorted(source.c_files(root)):
        for pattern, folder in OWNED.items():
            if source.is_library(path) and not path.startswith(folder) and re.search(pattern, source.code(source.read(root, path))):
                yield f"{path}: assigns what only {folder} may ({pattern})"


def upward(graph, library):
    """Arrows from a folder to a higher one; files that stand in no folder of the order."""
    order = [os.path.normpath(library + name) for name in ORDER[library]]
    for path in sorted(graph):
        if os.path.dirname(path) not in order:
            yield f"{path}: stands in none of {', '.join(order)}"
            continue
        for other, names in sorted(graph[path].items()):
            if os.path.dirname(other) in order[order.index(os.path.dirname(path)) + 1:]:
                yield f"{path}: calls up to {other} ({', '.join(sorted(names))})"


def check(root, limits=None, ordered=None):
    findings, notes = list(foreign(root)), []
    for library in ORDER if ordered is None else ordered:
        findings += upward(arrows(root, library), library)
    for library, limit in (limits or IN_CIRCLES).items():
        found = circles(arrows(root, library))
        count = sum(len(one) for one in found if len(one) > SMALL)
        for one in found:
            notes.append(f"{library}: a circle of {len(one)} files: {' '.join(os.path.relpath(p, library) for p in one)}")
        if count > limit:
            findings.append(f"{library}: {count} files stand in circles of more than {SMALL}, there were {limit}")
        elif count < limit:
            notes.append(f"{library}: {count} files stand in circles, not {limit} any more: write it into circles.py")
    return findings, notes


def print_arrows(root):
    for library in IN_CIRCLES:
        graph = arrows(root, library)
        for one in circles(graph):
            for path in one:
                for other, names in sorted(graph[path].items()):
                    if other in one:
                        print(f"{path} -> {other}: {', '.join(sorted(names))}")


if __name__ == "__main__":
    if "--arrows" in sys.argv[2:]:
        print_arrows(sys.argv[1])
    source.report(*check(sys.argv[1]))
