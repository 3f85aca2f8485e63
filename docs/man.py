# SPDX-License-Identifier: Apache-2.0
"""man.py -- writes the man pages: section 3 from the public headers, kvrail(7) from the options, kvrail(1) from --help

usage: man.py ROOT OUTPUT [KVRAIL_COMMAND]

A page is made of the comment above a function (`name[, name] -- what`, paragraphs, RETURNS, ERRORS), of the types that
stand between the function before it and this one, and of the prototypes under the comment. Without KVRAIL_COMMAND, as
in a build for another processor, there is no kvrail(1). Ends with 1 where a function has no such comment.
"""
import os
import re
import shutil
import subprocess
import sys
import textwrap

HEADERS = ("kv_error.h", "kv.h")
ANY = "codes that any function may return;\nsee \\fBkvrail\\fP(3).\n\\fBkv_error\\fP(3) says what each code means."


class Page:
    def __init__(self, names, what, text, section):
        self.names, self.what, self.section = names, what, section
        self.errors_as, self.errors, self.notes = "", [], []
        self.types, self.prototypes = [], []
        parts = re.split(r"^ERRORS\b(.*)\n", text + "\n", maxsplit=1, flags=re.MULTILINE)
        description, _, returned = parts[0].partition("RETURNS ")
        self.text, self.returns = paragraphs(description), " ".join(returned.split())
        if len(parts) > 1:
            self.errors_as = parts[1].strip()
            rows, *notes = parts[2].split("\n\n")
            self.errors = [(row[0], " ".join(row[1].split())) for row in
                           re.findall(r"^  ([A-Z_]+(?:, [A-Z_]+)*)\s+(.*(?:\n   .*)*)", rows, re.MULTILINE)]
            self.notes = [" ".join(note.split()) for note in notes if note.strip()]
            if not self.errors and not self.errors_as:
                sys.exit(f"man.py: {names[0]}: ERRORS without a row")


def paragraphs(text):
    return [" ".join(one.split()) for one in text.split("\n\n") if one.strip()]


def comment_text(comment):
    lines = comment[2:-2].strip("\n").split("\n")
    return "\n".join(re.sub(r"^ ?\* ?", "", line).rstrip() for line in lines).strip()


def pieces(text):
    """The comments, lines of the preprocessor and declarations of a header, one after the other."""
    pattern = r'/\*.*?\*/|^#.*?(?<!\\)$|[^\s#/](?:[^;{/]|/\*.*?\*/)*(?:\{.*?\n?\}\s*)?;'
    return re.findall(pattern, text, re.DOTALL | re.MULTILINE)


class Header:
    """The pages of a public header, its comment at the top and the types before its first function."""

    def __init__(self, root, name):
        with open(os.path.join(root, "include/kvrail", name), encoding="utf-8") as file:
            text = file.read()
        self.top = comment_text(re.findall(r"/\*.*?\*/", text, re.DOTALL)[1])
        self.pages, self.before = [], []
        section, remark, types = "", None, []
        body = text[text.index('extern "C"'):text.rindex("#ifdef __cplusplus")]
        for piece in pieces(body[body.index("#endif") + 6:]):
            inner = comment_text(piece) if piece.startswith("/*") else ""
            title = re.match(r"(kv_\w+(?:, kv_\w+)*) -- (.*?)(?=\n\n|\n(?:RETURNS|ERRORS)\b|$)", inner, re.DOTALL)
            function = re.match(r"(?!struct \w+ \{|enum)[^{(]*?\b(kv_\w+)\(", piece)
            if title:
                self.pages.append(Page(title[1].split(", "), " ".join(title[2].split()), inner[title.end():], section))
            elif inner.startswith("-----"):
                section = inner.strip("- \n")
            elif function:
                page = self.pages[-1] if self.pages else None
                if not page or function[1] not in page.names:
                    sys.exit(f"man.py: {name}: {function[1]} has no comment that begins with its name and \"--\"")
                if not self.pages[0].prototypes:
                    self.before, types = types, []
                page.prototypes.append(piece)
                page.types, types = page.types + types, []
            elif not inner and not re.match(r"struct \w+;", piece):
                types.append(f"{remark}\n{piece}" if remark else piece)
            remark = piece if inner and not title and not inner.startswith("-----") else None
        for page in self.pages:
            if len(page.prototypes) != len(page.names):
                sys.exit(f"man.py: {name}: the comment of {page.names[0]} names functions that do not follow it")


# ---------------------------------------------------------------- roff

def roff(text, functions=(), own=()):
    """Words of a comment: functions, constants and `arguments` stand out."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    text = re.sub(r"`([^`]+)`", r"\\fI\1\\fP", text)

    def name(match):
        word = match[0]
        if word in own or word not in functions:
            return f"\\fB{word}\\fP"
        return f"\\fB{word}\\fP(3)"

    text = re.sub(r"\b(?:kv_\w+|KV_\w+|KVCACHE_\w+)\b", name, text)
    return "\n".join(guard(line) for line in textwrap.wrap(text, 78, break_on_hyphens=False, break_long_words=False))


def guard(line):
    return "\\&" + line if line.startswith((".", "'")) else line


def verbatim(text):
    lines = text.replace("\\", "\\e").replace("-", "\\-").expandtabs(8).split("\n")
    return [".RS 4", ".nf", *(guard(line) for line in lines), ".fi", ".RE"]


def head(name, section, version):
    return ['.\\" Made by docs/man.py; do not edit.', f'.TH {name.upper()} {section} "" "kvrail {version}" "kvrail"']


def names_line(names, what):
    return [".SH NAME", f"{', '.join(names)} \\- " + what.replace("`", "").replace("-", "\\-")]


def rows(pairs):
    return [line for term, text in pairs for line in (".TP", ".B " + term.replace("-", "\\-"), text)]


def synopsis(header, prototypes):
    code = f"#include <kvrail/{header}>\n\n" + "\n\n".join(prototypes)
    return [".SH SYNOPSIS", ".nf", *(guard(line.expandtabs(8).replace("\\", "\\e")) for line in code.split("\n")), ".fi"]


def returns(page):
    if page.returns:
        return page.returns
    kinds = {"err" if p.startswith("int ") and "struct kv_error *err" in p else p.split()[0] for p in page.prototypes}
    if kinds == {"err"}:
        return "0, or a negative KV_ERR_* code; then *err holds the cause, if err is not NULL."
    if kinds == {"void"}:
        return "Nothing."
    sys.exit(f"man.py: {page.names[0]}: the comment does not say what is returned (RETURNS ...)")


def function_page(page, header, version, functions):
    def words(text):
        return roff(text, functions, page.names)

    lines = head(page.names[0], 3, version) + names_line(page.names, page.what) + synopsis(header, page.prototypes)
    description = page.text or [page.what[0].upper() + page.what[1:] + "."]
    lines += [".SH DESCRIPTION", "\n.PP\n".join(words(paragraph) for paragraph in description)]
    if page.types:
        lines += [".SH TYPES", *verbatim("\n\n".join(page.types))]
    lines += [".SH RETURN VALUE", words(returns(page)[0].upper() + returns(page)[1:])]
    if any("struct kv_error *err" in prototype for prototype in page.prototypes):
        lines += [".SH ERRORS"]
        if page.errors_as:
            lines += [words(f"Those of {page.errors_as[3:]}" + (":" if page.errors else "."))]
        lines += rows((", ".join("KV_ERR_" + code for code in codes.split(", ")), words(text)) for codes, text in page.errors)
        for note in page.notes:
            lines += [".PP", words(note)]
        lines += [".PP\nAlso the " + ANY if page.errors or page.errors_as else "The " + ANY]
    return lines + see_also(["kvrail(3)", "kv_error(3)"])


def see_also(names):
    return [".SH SEE ALSO", " ,\n".join(f".BR {name[:-3]} {name[-3:]}" for name in names)]


# ---------------------------------------------------------------- pages that are not of one function

def indented(text):
    """Rows `  term   text` of a comment, continued by deeper lines: [(term, text)]."""
    return [(term, " ".join(rest.split())) for term, rest in
            re.findall(r"^  (\S+)\s+(.*(?:\n   .*)*)", text, re.MULTILINE)]


def overview(header, version, functions):
    title, *blocks = header.top.split("\n\n")
    lines = head("kvrail", 3, version) + names_line(["kvrail", "kv.h"], title.split(" -- ", 1)[1])
    lines += synopsis("kv.h", []) + verbatim("cc app.c $(pkg-config --cflags --libs kvrail)")
    for block in blocks:
        heading, rest = block.split("\n", 1)
        lines += [".SH " + heading.upper(), *rows((term, roff(text, functions)) for term, text in indented(rest))]
    lines += [".SH LIMITS", *verbatim("\n\n".join(piece for piece in header.before if not piece.startswith("#")))]
    lines += [".SH FUNCTIONS"]
    section = None
    for page in header.pages:
        if page.section != section:
            section = page.section
            lines += [".SS " + (section[0].upper() + section[1:] if section else "Version")]
        lines += rows([(", ".join(page.names), roff(page.what, functions))])
    return lines + see_also(["kv_error(3)", "kvrail(1)", "kvrail(7)"])


def error_overview(root, header, version, functions):
    title, *blocks = header.top.split("\n\n")
    with open(os.path.join(root, "include/kvrail/kv_error.h"), encoding="utf-8") as file:
        text = file.read()
    codes = re.findall(r'X\((\w+), (\d+), (\w+), "([^"]*)"\)', text)
    scopes = re.search(r"/\*\n \* What is lost.*?\*/", text, re.DOTALL)
    lines = head("kv_error", 3, version) + names_line(["kv_error", "kv_error.h"], title.split(" -- ", 1)[1])
    lines += synopsis("kv_error.h", []) + [".SH DESCRIPTION", roff(" ".join(blocks[0].split()), functions)]
    scope_text, rest = comment_text(scopes[0]).split("\n", 1)
    lines += [".SH SCOPES", roff(scope_text, functions), *rows((f"KV_SCOPE_{a}", roff(b)) for a, b in indented(rest))]
    lines += [".SH CODES"] + rows((f"KV_ERR_{name} (\\-{value}, {scope})", roff(what)) for name, value, scope, what in codes)
    lines += [".SH THE CAUSE", *verbatim(next(piece for piece in header.before if "struct kv_error {" in piece))]
    return lines + see_also([page.names[0] + "(3)" for page in header.pages] + ["kvrail(3)"])


def option_page(root, version):
    with open(os.path.join(root, "docs/environment.md"), encoding="utf-8") as file:
        text = file.read()
    intro = " ".join(text.split("do not edit. ", 1)[1].split("\n\n", 1)[0].split())
    lines = head("kvrail", 7, version) + names_line(["kvrail"], "the options of kvrail, all of them environment variables")
    lines += [".SH DESCRIPTION", roff(intro), ".SH OPTIONS"]
    for row in re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \| (.*) \|$", text.replace("\\|", "\0"), re.MULTILINE):
        name, takes, default, what = (cell.replace("\0", "|").replace("`", "") for cell in row)
        lines += rows([(name, roff(f"{what}.") + f"\n.br\nTakes {roff(takes)}; default {roff(default)}.")])
    return lines + see_also(["kvrail(1)", "kvrail(3)"])


def command_page(command, version):
    def say(*words):
        return subprocess.run([command, *words], capture_output=True, text=True, check=True).stdout.rstrip()

    text = say("--help")
    commands = re.findall(r"^  (\w+) +(.*)$", text.partition("commands:")[2], re.MULTILINE)
    helps = {name: say(name, "--help") for name, _ in commands}
    usages = [re.match(r"usage: ((?:.|\n(?= ))*)", one)[1] for one in (text, *helps.values())]
    lines = head("kvrail", 1, version) + names_line(["kvrail"], "look at a machine that moves KV caches")
    lines += [".SH SYNOPSIS", *verbatim("\n".join(re.sub(r"^\s+", "", line) for use in usages for line in use.split("\n")))]
    lines += [".SH COMMANDS"]
    for name, what in commands:
        lines += [".SS " + name, roff(what[0].upper() + what[1:] + "."), ".PP",
                  *verbatim(re.sub(r"^usage: (?:.|\n(?= ))*\n+", "", helps[name]))]
    return lines + [".SH ENVIRONMENT", "The options of the library:", ".BR kvrail (7)."] + see_also(["kvrail(3)", "kvrail(7)"])


def main(root, out, command=None):
    with open(os.path.join(root, "CMakeLists.txt"), encoding="utf-8") as file:
        version = re.search(r"project\(kvrail VERSION ([\d.]+)", file.read())[1]
    headers = {name: Header(root, name) for name in HEADERS}
    functions = {name for header in headers.values() for page in header.pages for name in page.names}
    shutil.rmtree(out, ignore_errors=True)
    pages = {"kvrail.7": option_page(root, version), "kvrail.3": overview(headers["kv.h"], version, functions),
             "kv.h.3": [".so man3/kvrail.3"], "kv_error.h.3": [".so man3/kv_error.3"],
             "kv_error.3": error_overview(root, headers["kv_error.h"], version, functions)}
    for name, header in headers.items():
        for page in header.pages:
            pages[page.names[0] + ".3"] = function_page(page, name, version, functions)
            pages.update({f"{other}.3": [f".so man3/{page.names[0]}.3"] for other in page.names[1:]})
    if command:
        pages["kvrail.1"] = command_page(command, version)
    for name, lines in pages.items():
        folder = os.path.join(out, "man" + name[-1])
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
