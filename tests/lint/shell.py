# SPDX-License-Identifier: Apache-2.0
"""shell.py -- which words of a shell script stand where a command's name stands; enough of the language for our scripts

A word keeps its expansions as they are written ("$build/tests/x"); quotes are gone. What is inside $(…) is read as a
script of its own, as is what sh -c, eval and trap are given, where it is written out.
"""
import re
import shlex

RESERVED = {"if", "then", "elif", "else", "fi", "while", "until", "do", "done", "{", "}", "!", "time", "esac", "in"}
ASSIGNMENT = re.compile(r"[A-Za-z_]\w*(\[[^\]]*\])?\+?=")
# Where a bracket is one: not in '…', behind a backslash, or in a comment.
PIECES = re.compile(r"\\.|'[^']*'|(?<![^\s;&|(])#[^\n]*|\$\(\(|\$\(|<\(|\(|\)|\"|`", re.DOTALL)


class Script:
    """commands: [[word, …]] of each simple command; functions: {name: body}; variables: {name: [value, …]}."""

    def __init__(self, text):
        self.commands, self.functions, self.variables = [], {}, {}
        text = re.sub(r"<<-?\s*['\"\\]?(\w+)['\"]?(.*\n)(?:.*\n)*?[ \t]*\1(?=\n|\Z)", r"< here \2", text)
        for match in re.finditer(r"^[ \t]*([\w-]+)\(\)[ \t]*\{(.*?)(?:^[ \t]*\}|\}[ \t]*$)", text, re.MULTILINE | re.DOTALL):
            self.functions[match[1]] = match[2]
        self.read(self.outer(text))

    def outer(self, text):
        """The text with $(…), `…` and arrays taken out and read as scripts; a word of its own stands in their place."""
        out, at, quoted = "", 0, False
        while match := PIECES.search(text, at):
            piece, start = match[0], match.start()
            out, at = out + text[at:start], match.end()
            if quoted and piece[0] in "'#":
                out, at = out + piece[0], start + 1
            elif piece in ("$(", "<(", "`") and not (quoted and piece == "<("):
                end = text.find("`", at) if piece == "`" else self.close(text, at)
                self.nested(text[at:end])
                out, at = out + "$substituted", end + 1
            elif piece == "$((":
                out, at = out + "$substituted", self.close(text, at) + 2
            elif piece == "(" and not quoted and (array := re.search(r"(\w+)\+?=$", out)):
                end = self.close(text, at)
                self.variables.setdefault(array[1], []).append(text[at:end])
                self.nested("$array " + text[at:end].replace("\n", " "))
                out, at = out + "$array", end + 1
            else:
                quoted ^= piece == '"'
                out += "" if piece[0] == "#" or piece == "\\\n" else piece
        return out + text[at:]

    @staticmethod
    def close(text, at):
        """Where the bracket that was opened before `at` is closed."""
        depth = 1
        while depth and (match := PIECES.search(text, at)):
            depth += match[0].count("(") * (match[0][0] in "($<") - (match[0] == ")")
            at = match.end()
        return at - 1

    def nested(self, body):
        inside = Script(body)
        self.commands += inside.commands
        for name, values in inside.variables.items():
            self.variables.setdefault(name, []).extend(values)

    def read(self, text):
        text = re.sub(r"\$\{[^}]*\}", lambda match: re.sub(r"[^\w@${}\[\]]", "_", match[0]), text)
        lexer = shlex.shlex(text, posix=True, punctuation_chars=";&|()<>\n")
        lexer.whitespace, lexer.commenters, lexer.whitespace_split = " \t", "", True
        words, pattern, redirected = [], False, False
        for word in [*lexer, "\n"]:
            if pattern:  # of a case, up to its bracket
                pattern = ")" not in word and word != "esac"
            elif redirected:
                redirected = False
            elif word.strip(";&|()<>\n"):
                if words or word not in RESERVED:
                    words.append(word)
                if (words[:1], word) in ((["case"], "in"), (["[["], "]]")):
                    words, pattern = [], word == "in"
            elif re.fullmatch(r"&?[<>]+[&|]?", word):
                redirected = True
                if words and words[-1].isdigit():
                    words.pop()
            elif words[:1] != ["[["]:
                self.end(words)
                words, pattern = [], ";;" in word

    def end(self, words):
        while words and (match := ASSIGNMENT.match(words[0])):
            self.variables.setdefault(match[0].rstrip("+="), []).append(words[0][match.end():])
            words = words[1:]
        if words:
            self.commands.append(words)


# A command that runs the command behind its own arguments: how many plain words it takes first.
PREFIXES = {"env": 0, "exec": 0, "nohup": 0, "sudo": 0, "xargs": 0, "nice": 0, "timeout": 1, "setpriv": 0, "unshare": 0,
            "chroot": 1, "command": 0, "setsid": 0, "stdbuf": 0, "time": 0, "switch_root": 1}
# Options of those that take a word of their own.
TAKES = {"nice": {"-n"}, "sudo": {"-u"}, "timeout": {"-k", "-s"}, "xargs": {"-n", "-P", "-I"}, "env": {"-u", "-C"},
         "exec": {"-a"}}


class Programs:
    """names: what a script calls that it does not define itself."""

    def __init__(self, text):
        self.script = Script(text)
        self.names = set()
        self.runs_arguments = {name: self.shifted(body) for name, body in self.script.functions.items()
                               if self.ends_in_arguments(body)}
        for words in self.script.commands:
            self.command(words)

    @staticmethod
    def ends_in_arguments(body):
        """Whether a function runs what it is given as a command."""
        return any(words[-1] == "$@" and (len(words) == 1 or words[0] in {*PREFIXES, "sh"}) for words in Script(body).commands)

    @staticmethod
    def shifted(body):
        return sum(int(match[1] or 1) for match in re.finditer(r"\bshift(?: (\d+))?", body))

    def values(self, word):
        """What a variable in the place of a command is set to in this script, as lists of words."""
        match = re.fullmatch(r"\$\{?(\w+)(\[[@*]\])?\}?", word)
        values = self.script.variables.get(match[1], ()) if match else ()
        return [words for value in values for words in Script(value.replace("\n", " ")).commands[:1]]

    def command(self, words, seen=()):
        while words and ASSIGNMENT.match(words[0]):
            words = words[1:]
        if not words:
            return
        name, rest = words[0], words[1:]
        if name.startswith("$") and "/" not in name:
            if name in seen:
                return
            for value in self.values(name):
                self.command(value + rest, (*seen, name))
            if name.endswith("[@]}") or name == "$@":
                self.command(rest, (*seen, name))
            return
        if name in ("for", "select", "case", "function") or not name:
            return
        if name in self.script.functions:
            if name in self.runs_arguments:
                self.command(rest[self.runs_arguments[name]:], seen)
            return
        self.names.add(name)
        base = name.rpartition("/")[2]
        if base in ("sh", "bash") and "-c" in rest:
            self.text(rest[rest.index("-c") + 1:][:1])
        elif base in ("eval", "trap"):
            self.text(rest[:1])
        elif base in PREFIXES and not (base == "command" and rest[:1] == ["-v"]):
            plain = PREFIXES[base]
            while rest and (rest[0].startswith("-") or ASSIGNMENT.match(rest[0]) or plain):
                word, rest = rest[0], rest[1:]
                if word in TAKES.get(base, ()):
                    rest = rest[1:]
                elif word == "--":
                    break
                elif not word.startswith("-") and not ASSIGNMENT.match(word):
                    plain -= 1
            self.command(rest, seen)
        elif base == "command":
            self.names.update(word for word in rest[1:] if not word.startswith("$"))

    def text(self, words):
        for word in words:
            self.names |= Programs(word).names - set(self.script.functions)


def programs(text):
    """{(line, name)}: of each name the first line that has it."""
    return {(text.count("\n", 0, max(0, text.find(name))) + 1, name) for name in Programs(text).names}
