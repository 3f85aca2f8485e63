# SPDX-License-Identifier: Apache-2.0
"""agree.py -- things that are said in two places say the same: fault points, error codes, doctor, statuses, versions

usage: agree.py ROOT
"""
import json
import os
import re
import subprocess
import sys

import source


def check_faults(root):
    """Every row of fault.def is a point that the code passes."""
    rows = re.findall(r"^FAULT\((\w+),", source.read(root, "transport/base/fault.def"), re.MULTILINE)
    text = "".join(source.read(root, path) for path in source.c_files(root) if source.is_library(path))
    used = set(re.findall(r"\bkv_fault(?:_hit)?\(\s*(?:KV_FAULT_)?(\w+)\s*\)", text))
    return [f"transport/base/fault.def: {row} is not used" for row in rows if row not in used] + [
        f"transport/base/fault.def: {row} stands there twice" for row in {r for r in rows if rows.count(r) > 1}
    ]


def check_codes(root):
    """Every error code has its section in the troubleshooting page, and no other code has one."""
    codes = set(re.findall(r"^\s*X\((\w+),", source.read(root, "include/kvrail/kv_error.h"), re.MULTILINE))
    page = "docs/troubleshooting.md"
    sections = set(re.findall(r"^#+ KV_ERR_(\w+)", source.read(root, page), re.MULTILINE))
    return [f"{page}: no section KV_ERR_{code}" for code in sorted(codes - sections)] + [
        f"{page}: KV_ERR_{code} is no code" for code in sorted(sections - codes)
    ]


def check_raised(root):
    """Every error code that is documented is returned by some line of a library."""
    codes = re.findall(r"^\s*X\((\w+),", source.read(root, "include/kvrail/kv_error.h"), re.MULTILINE)
    paths = [path for path in source.c_files(root) if source.is_library(path) and path.endswith(".c")]
    used = set(re.findall(r"\bKV_ERR_(\w+)", "".join(source.code(source.read(root, path)) for path in paths)))
    return [f"include/kvrail/kv_error.h: no library returns KV_ERR_{code}" for code in codes if code not in used]


def check_options(root):
    """Every option has a line of a library that reads it."""
    rows = re.findall(r"^\w+\((\w+), \"(KVCACHE_\w+)\"", source.read(root, "transport/base/option.def"), re.MULTILINE)
    paths = [path for path in source.c_files(root) if source.is_library(path) and path.endswith(".c")]
    used = set(re.findall(r"\bKV_OPT_(\w+)", "".join(source.code(source.read(root, path)) for path in paths)))
    return [f"transport/base/option.def: no library reads {name}" for row, name in rows if row not in used]


def missing_tests(root, cells):
    """What is wrong with [(what, text that names tests)]: a test is a file under a folder of tests, or a name of ctest."""
    findings, texts = [], {}
    for path in source.files(root):
        if re.match(r"(tests|mpi_tests|bench|python/tests|net_plugin|tool|kvapi/examples)/", path) and path.endswith((".c", ".py", ".sh", "CMakeLists.txt")):
            stem = os.path.splitext(os.path.basename(path))[0]
            texts[stem] = texts.get(stem, "") + source.read(root, path)
    makes = texts.get("CMakeLists", "")
    ctests = set(re.findall(r"kvrail(?:_add)?_test\((\w+)", makes)) | {"lint_" + name for name in re.findall(r"kvrail_lint\((\w+)", makes)}
    for what, cell in cells:
        named = re.findall(r"`(\w+)(?:: (\w+))?`", cell)
        if not named and "no test" not in cell:
            findings.append(f"{what} names no test, and does not say so")
        for stem, function in named:
            if not (stem in texts and re.search(rf"\b{function}\b", texts[stem]) if function else stem in texts or stem in ctests):
                findings.append(f"{what}: there is no test {stem}{': ' * bool(function)}{function}")
    return findings


def check_invariants(root):
    """Each invariant of the architecture names tests that exist."""
    page = "docs/architecture.md"
    section = source.read(root, page).partition("## Invariants as they are kept")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (\d+) \|.*\|([^|]*)\|$", section, re.MULTILINE)
    findings = [f"{page}: invariant {n} stands where {k} is due" for k, (n, _) in enumerate(rows, 1) if int(n) != k]
    return findings + missing_tests(root, [(f"{page}: invariant {number}", cell) for number, cell in rows])


def check_costs(root):
    """Each limit of SECURITY.md names tests that exist, and source that does."""
    page = "SECURITY.md"
    section = source.read(root, page).partition("## What others can cost")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ([^|]*) \| ([^|]*) \|[^|]*\|([^|]*)\|([^|]*)\|$", section, re.MULTILINE)[1:]
    rows = [row for row in rows if not row[0].startswith("---")]
    findings = [] if rows else [f"{page}: there is no table of limits"]
    for who, what, where, _ in rows:
        for path in re.findall(r"`([^`]+)`", where):
            if not os.path.exists(os.path.join(root, path)):
                findings.append(f"{page}: {who}, {what}: there is no {path}")
    return findings + missing_tests(root, [(f"{page}: {who}, {what}", cell) for who, what, _, cell in rows])


def check_key(root):
    """Each way around the key that SECURITY.md lists names tests that exist."""
    page = "SECURITY.md"
    section = source.read(root, page).partition("## The key")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ([^|]*) \|([^|]*)\|$", section, re.MULTILINE)[2:]
    return ([] if rows else [f"{page}: there is no table of ways around the key"]) + missing_tests(
        root, [(f"{page}: {way}", cell) for way, cell in rows]
    )


FAULT_ROWS = 47


def check_reliability(root):
    """Each fault of the reliability page names tests that exist, or says why it cannot be played; no row is left out."""
    page = "docs/reliability.md"
    section = source.read(root, page).partition("## The faults")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (\d+) \|[^|]*\|[^|]*\|([^|]*)\|$", section, re.MULTILINE)
    findings = [f"{page}: fault {n} is missing" for n in range(1, FAULT_ROWS + 1) if str(n) not in {number for number, _ in rows}]
    findings += [f"{page}: fault {number} has no test, and no reason why" for number, cell in rows
                 if "no test" in cell and not re.search(r"no test[^:`]*: \w.{19}", cell)]
    promised = source.read(root, page).partition("## What is promised")[2].partition("\n## ")[0]
    return findings + missing_tests(root, [(f"{page}: fault {number}", cell) for number, cell in rows]) + missing_tests(
        root, [(f"{page}: {promise}", cell) for promise, cell in re.findall(r"^\| (A[^|]*) \|([^|]*)\|$", promised, re.MULTILINE)]
    )


def check_first_hour(root):
    """Each row of what a new user tries names tests that exist."""
    page = "docs/first-hour.md"
    rows = re.findall(r"^\| (\d+) \|.*\|([^|]*)\|$", source.read(root, page), re.MULTILINE)
    return [f"{page}: row {n} stands where {k} is due" for k, (n, _) in enumerate(rows, 1) if int(n) != k] + missing_tests(
        root, [(f"{page}: row {number}", cell) for number, cell in rows]
    )


GPU_PAGES = ("docs/gpu.md", "docs/nccl.md", "docs/nixl.md", "docs/architecture.md", "docs/fuzz.md")  # plugins; files of the source


def check_gpu(root):
    """What becomes of memory of a GPU is said in one page; others that speak of it link there."""
    mentions = re.compile(r"(memory|pointers|caches?) (of|on|in) (a )?GPUs?|GPU'?s? (memory|pointers)|\bCUDA (tensor|memory)", re.IGNORECASE)
    becomes = re.compile(r"refused|raises|copied|moved|goes|carried|taken|reached|UNSUPPORTED|UnsupportedError")
    return [f"{path}:{line}: memory of a GPU, and no link to gpu.md" for path in source.files(root)
            if path.endswith(".md") and path.startswith(("README", "docs/")) and path not in GPU_PAGES and "/design/" not in path
            for line, piece in pieces(source.read(root, path)) if mentions.search(piece) and becomes.search(piece) and "gpu.md" not in piece]


def pieces(text):
    """(line, text) of each paragraph, each row of a table and each point of a list."""
    line = 1
    for piece in re.split(r"(?<=\n)(?=\n|[|] |- |\d+\. )", text):
        yield line, piece
        line += piece.count("\n")


def check_doctor(root):
    """Every line that the doctor can print is explained in the RDMA page, and no other."""
    page = "docs/rdma.md"
    checks = set(re.findall(r'^CHECK\(\w+, "(\w+)"\)', source.read(root, "tool/doctor/lines.def"), re.MULTILINE))
    section = source.read(root, page).partition("## 2. Every line")[2].partition("\n## ")[0]
    rows = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`[^|]*) \|", section, re.MULTILINE))))
    return [f"{page}: no row {name} of the doctor" for name in sorted(checks - rows)] + [
        f"{page}: the doctor has no line {name}" for name in sorted(rows - checks)
    ]


VERBS = "/usr/include/infiniband/verbs.h"


def statuses(header):
    """Names of enum ibv_wc_status in their order, which is their number."""
    body = re.search(r"enum ibv_wc_status \{(.*?)\}", header, re.DOTALL)
    return re.findall(r"\bIBV_WC_(\w+)", body[1]) if body else []


def codes_of(text):
    """status.c's answer for each status: {name: set of codes}; "" for all that it does not name."""
    answers, names = {}, []
    body = text.partition("ib_wc_code(")[2].partition("\n}")[0]
    for line in body.splitlines():
        names += re.findall(r"case IBV_WC_(\w+):", line) or ([""] if "default:" in line else [])
        if "return" in line or names and "?" in line:
            answers.update({name: set(re.findall(r"KV_ERR_(\w+)", line)) for name in names})
            names = []
    return answers


def check_statuses(root, header=None):
    """The RDMA page has a row for every completion status, with its number and the codes that status.c makes of it."""
    page = "docs/rdma.md"
    if header is None:
        if not os.path.exists(VERBS):
            return []
        header = source.read("/", VERBS)
    answers = codes_of(source.read(root, "transport/ib/status.c"))
    wanted = {(str(n), name, frozenset(answers.get(name, answers[""]))) for n, name in enumerate(statuses(header))}
    rows = re.findall(r"^\| (\d+) `(\w+)` \|[^|]*\|([^|]*)\|$", source.read(root, page), re.MULTILINE)
    found = {(number, name, frozenset(re.findall(r"\w+", codes))) for number, name, codes in rows}
    return [f"{page}: no row for status {n} {name} with {', '.join(sorted(c)) or 'no code'}" for n, name, c in
            sorted(wanted - found)] + [f"{page}: the row for status {n} {name} is wrong" for n, name, _ in
                                       sorted(found - wanted)]


def check_nccls_variables(root):
    """The NCCL page has a row for each of NCCL's numbers that means an option of ours, with its range, and no other."""
    page = "docs/nccl.md"
    code = set(re.findall(r'\{ "(NCCL_\w+)", "(KVCACHE_\w+)", (\d+), (\d+),', source.read(root, "net_plugin/np_env.c")))
    rows = set(re.findall(r"^\| `(NCCL_\w+)` \| `(KVCACHE_\w+)` \|.*?(\d+)\.\.(\d+)", source.read(root, page), re.MULTILINE))
    return [f"{page}: no row for {' '.join(row)}" for row in sorted(code - rows)] + [
        f"{page}: the row for {' '.join(row)} is wrong" for row in sorted(rows - code)
    ]


def check_version(root):
    project = re.search(r"project\(kvrail VERSION ([\d.]+)", source.read(root, "CMakeLists.txt"))[1]
    header = ".".join(re.findall(r"define KV_VERSION_\w+ (\d+)", source.read(root, "include/kvrail/kv.h")))
    return [] if project == header else [f"CMakeLists.txt says version {project}, kv.h says {header}"]


def check_paths(root):
    """No path of the machine that this tree stands on, or of anybody's home."""
    here = os.path.realpath(root)
    pattern = re.compile(re.escape(here) + r"\b|/(?:home|Users|root)/\w")
    findings = []
    for path in source.files(root):
        try:
            lines = source.read(root, path).splitlines()
        except UnicodeDecodeError:
            continue
        findings += [f"{path}:{n}: a path of one machine" for n, line in enumerate(lines, 1) if pattern.search(line)]
    return findings


def check_pages(root):
    """The pages for people who build, upgrade and change kvrail name files, commands, options and lints that exist."""
    # Every file and folder, also by the end of its path: pages shorten "transport/shm/ring.c" to "ring.c".
    ends = {"/".join(parts[at:to]) for parts in (path.split("/") for path in source.files(root))
            for to in range(1, len(parts) + 1) for at in range(to)}
    presets = set(re.findall(r'"name": "(\w+)",\s*"displayName"', source.read(root, "CMakePresets.json")))
    known = (
        (r"`([\w.-]+/[\w./-]*|[\w-]+\.(?:c|h|def|py|md|map|sh))(?::[^`]*)?`", ends),
        (r"\./dev ([a-z][\w-]*)", set(re.findall(r"^  ([a-z-]+) ", source.read(root, "dev"), re.MULTILINE))),
        (r"\./dev build (\w+)|--preset (\w+)|\bbuild-(\w+)[/ ]|\b(build/)\w", presets),
        (r"\b(KVCACHE_\w+)", set(re.findall(r'"(KVCACHE_\w+)"', source.read(root, "transport/base/option.def")))),
        (r"^\| `lint_(\w+)` \|", lint_names(root)),
    )
    findings = []
    docs = [path for path in source.files(root) if path.startswith("docs/") and path.endswith(".md")]
    for page in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", *docs):
        text = source.read(root, page)
        for pattern, names in known[page in ("docs/fastdeploy.md", "docs/nccl.md"):]:  # these name files of other projects
            named = {next(filter(None, match.groups())).removeprefix("./").rstrip("/")
                     for match in re.finditer(pattern, text, re.MULTILINE)}
            findings += [f"{page}: there is no {name}" for name in sorted(named - names)]
    text = source.read(root, "CONTRIBUTING.md")
    return findings + [f"CONTRIBUTING.md: no row lint_{name}" for name in sorted(lint_names(root)) if f"| `lint_{name}` |" not in text]


def check_names(root):
    """Functions, types and numbers of the libraries that a document names exist, and the stages of the picture are those of the code."""
    words = {os.path.splitext(os.path.basename(path))[0] for path in source.files(root)}
    for path in source.files(root):
        if not path.endswith((".md", ".json")):
            try:
                words.update(re.findall(r"\w+", source.read(root, path)))
            except UnicodeDecodeError:
                continue
    findings, picture = [], "docs/architecture.md"
    for page in (path for path in source.files(root) if path.endswith(".md") and path != "CHANGELOG.md"):
        text = source.read(root, page)
        if page.endswith("decisions.md"):  # its first column is what there is no more
            text = re.sub(r"^\|[^|]*\|", "", text, flags=re.MULTILINE)
        named = set(re.findall(r"`((?:kv|tr|ag|np|KV|TR|AG|NP)_\w+)", text))
        findings += [f"{page}: there is no {name}" for name in sorted(named - words)]
    section = source.read(root, picture).partition("## The stages")[2].partition("\n## ")[0]
    stages = re.findall(r"\bKV_STAGE_(\w+)[ ,]", source.read(root, "kvapi/op/kv_op.h"))
    return findings + [f"{picture}: the stage {stage} is not in the picture" for stage in stages if not re.search(rf"\b{stage}\b", section)]


def check_links(root):
    """Every link between the documents leads to a file, and to a heading of it."""
    findings = []
    for page in (path for path in source.files(root) if path.endswith(".md")):
        for target, heading in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([\w-]+))?\)", source.read(root, page)):
            path = os.path.normpath(os.path.join(os.path.dirname(page), target)) if target else page
            if not os.path.exists(os.path.join(root, path)):
                findings.append(f"{page}: there is no {path}")
            elif heading and heading not in headings(source.read(root, path)):
                findings.append(f"{page}: {path} has no heading {heading}")
    return findings


def headings(text):
    """As a viewer makes anchors of them."""
    return {re.sub(r"[^\w -]", "", title.lower()).strip().replace(" ", "-") for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}


def lint_names(root):
    return set(re.findall(r"^\s*kvrail_(?:lint\(|add_test\(lint_)([a-z]+)[\s)]", source.read(root, "tests/lint/CMakeLists.txt"), re.MULTILINE))


def shows(token, value):
    """Whether a cell of a table is this value of a JSON file, with as many decimals as the cell has."""
    if value is None or isinstance(value, str):
        return token == (value or "-")
    return re.fullmatch(r"-?[\d.]+", token) is not None and token == f"{value:.{len(token.partition('.')[2])}f}"


def check_figures(root):
    """The figures of README and docs are those of the stored JSON file, or of the table, that they come from."""
    findings, page, tables = [], "docs/benchmarks.md", "docs/nccl.md"
    text, readme = source.read(root, page), source.read(root, "README.md")
    lines = [line.split() for line in text.splitlines() if line.startswith("    ")]
    for path in sorted(set(re.findall(r"\]\(\.\./(bench/stored/\w+\.json)\)", text))):
        for number, row in enumerate(json.loads(source.read(root, path))["rows"], 1):
            if not any(len(line) == len(row) and all(map(shows, line, row.values())) for line in lines):
                findings.append(f"{page}: no line has the figures of row {number} of {path}")
    for path in sorted(set(re.findall(r"nccl_table\.py (bench/stored/\w+\.json)", source.read(root, tables)))):
        printed = subprocess.run([sys.executable, "-B", os.path.join(root, "bench/nccl_table.py"), os.path.join(root, path)],
                                 stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
        findings += [f"{tables}: {path} has the line {line}" for line in printed if line.startswith("|") and line not in source.read(root, tables)]
    ratios = re.findall(r"^ +1?\d+ +1538 .* ([\d.]+) +0$", text, re.MULTILINE)
    killed = re.findall(r"^\| (?:kvrail|nixl|mooncake) \| \w+: .*?\(([\d.]+) s\)", text, re.MULTILINE)
    said = re.search(r"ends the write after ([\d.]+) s .* NIXL took ([\d.]+) s, Mooncake ([\d.]+) s", readme)
    cost = re.search(r"cost little: ([\d.]+) to ([\d.]+) times the rate", readme)
    ends = [f"{end(map(float, ratios)):.2f}" for end in (min, max)] if ratios else []
    for what, found, wanted in (("seconds until a killed receiver is reported", said, killed), ("the ratios to the floor", cost, ends)):
        if not found or list(found.groups()) != wanted:
            findings.append(f"README.md: {what} are {wanted} in {page}")
    return findings


def check_skips(root):
    """A part of a test that is skipped says why, for the account at the end of ./dev test."""
    findings = []
    for path in source.c_files(root):
        lines = source.read(root, path).splitlines()
        for number, line in enumerate(lines):
            if re.search(r"\bskip\(\);", line) and not re.search(r"skipped: |\bcan(not)?\(", "".join(lines[max(0, number - 4):number])):
                findings.append(f"{path}:{number + 1}: no line \"skipped: why\" before it")
    return findings


def check_repeats(root):
    """No test passes because it is run again."""
    pattern = re.compile(r"(--repeat|until-pass|UNTIL_PASS)\b", re.IGNORECASE)
    return [f"{path}: {match[1]}: a test passes the first time or has failed" for path in source.files(root)
            if path.endswith((".cmake", "CMakeLists.txt", ".sh", "dev", ".ci/run"))
            for match in pattern.finditer(source.read(root, path))]


def check_mutants(root):
    """What ./dev mutants changes stands in the source once."""
    sys.path.insert(0, os.path.join(root, "tests", "mutants"))
    import mutants  # pylint: disable=import-outside-toplevel
    return list(mutants.misfits(root))


def check_parsers(root):
    """The list of what parses: files, targets and tests exist, and each file that reads bytes of others stands in it."""
    page = "docs/fuzz.md"
    section = source.read(root, page).partition("## What parses")[2].partition("\n**Falls short")[0]
    rows = re.findall(r"^\| ([^|]*) \|[^|]*\|([^|]*)\|([^|]*)\|$", section, re.MULTILINE)[2:]
    files = set(re.findall(r"`([^`]+)`", " ".join(row[1] for row in rows)))
    findings = [f"{page}: there is no {path}" for path in sorted(files) if not os.path.exists(os.path.join(root, path))]
    reads = re.compile(r"\b(wire_reader_of|recvmsg|recv|pread)\(")
    findings += [f"{page}: {path} reads bytes of others and is not listed" for path in source.c_files(root)
                 if source.is_library(path) and path.endswith(".c") and path not in files and reads.search(source.code(source.read(root, path)))]
    return findings + missing_tests(root, [(f"{page}: {what}", cell) for what, _, cell in rows])


def check_pictures(root):
    """Each file of the libraries stands in the tables of the architecture."""
    page = "docs/architecture.md"
    named = {os.path.basename(name) for name in re.findall(r"`([\w/]+\.c(?:pp|u)?)`", source.read(root, page))}
    return [f"{page}: {path} stands in no table" for path in source.files(root)
            if source.is_library(path) and path.endswith((".c", ".cpp", ".cu")) and os.path.basename(path) not in named]


def check(root):
    checks = (check_faults, check_codes, check_raised, check_options, check_invariants, check_costs, check_key, check_reliability, check_first_hour,
              check_doctor, check_statuses, check_nccls_variables, check_version, check_paths, check_pages, check_names, check_links, check_figures,
              check_skips, check_repeats, check_mutants, check_parsers, check_pictures, check_gpu)
    return [finding for one in checks for finding in one(root)]


if __name__ == "__main__":
    source.report(check(sys.argv[1]))
