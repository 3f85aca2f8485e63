# SPDX-License-Identifier: Apache-2.0
"""shell.py -- which words of a shell script stand where a command's name stands; enough of the language for our scripts

A word keeps its expansions as they are written ("$build/tests/x"); quotes are gone. What is inside $(…) is read as a
script of its own, as is what sh -c, eval and trap are given, where it is written out.
"""
import re

RESERVED = {"if", "then", "elif", "else", "fi", "while", "until", "do", "done", "{", "}", "!", "time", "esac", "in"}
ASSIGNMENT = re.compile(r"[A-Za-z_]\w*(\[[^\]]*\])?\+?=")

SUBSTITUTED = "$substituted"


class Script:
    """commands: [(line, [word, …])] of each simple command; functions; variables: {name: [value, …]}."""

    def __init__(self, text, line=1):
        self.text, self.at, self.line = text, 0, line
        self.commands, self.functions, self.variables = [], {}, {}
        self.words, self.begun, self.heredocs = [], line, []
        self.cases = 0  # cases whose pattern, not whose commands, come next
        self.scan()

    # ---------------------------------------------------------------- words

    def quoted(self):
        """The text of "…" whose first quote has been read."""
        out = ""
        while self.at < len(self.text) and self.text[self.at] != '"':
            out += self.piece(in_quotes=True)
        self.at += 1
        return out

    def inner(self, end, opener=None):
        """What stands before the closing bracket, with those of its own inside; quotes hide brackets."""
        depth, start = 1, self.at
        while self.at < len(self.text):
            char = self.text[self.at]
            if char == "\\":
                self.at += 1
            elif char == "'" and end != '"':
                self.at = self.text.index("'", self.at + 1)
            elif char == '"':
                self.at += 1
                while self.text[self.at] != '"':
                    self.at += 2 if self.text[self.at] == "\\" else 1
            elif char == opener:
                depth += 1
            elif char == end:
                depth -= 1
                if not depth:
                    break
            self.at += 1
        body = self.text[start:self.at]
        self.at += 1
        return body

    def here(self):
        return self.text.count("\n", 0, self.at) + self.line

    def nested(self, body):
        inside = Script(body, self.here())
        self.commands += inside.commands
        for name, values in inside.variables.items():
            self.variables.setdefault(name, []).extend(values)

    def piece(self, in_quotes=False):
        char = self.text[self.at]
        rest = self.text[self.at:]
        if char == "\\":
            self.at += 2
            return "" if rest[1:2] == "\n" else rest[1:2]
        if rest.startswith("$(("):
            self.at += 3
            self.inner(")", "(")
            self.at += 1
            return SUBSTITUTED
        if rest.startswith("$("):
            self.at += 2
            self.nested(self.inner(")", "("))
            return SUBSTITUTED
        if char == "`":
            self.at += 1
            self.nested(self.inner("`"))
            return SUBSTITUTED
        if rest.startswith("${"):
            self.at += 2
            return "${" + self.inner("}", "{") + "}"
        self.at += 1
        if in_quotes:
            return char
        if char == "'":
            end = self.text.index("'", self.at)
            body, self.at = self.text[self.at:end], end + 1
            return body
        if char == '"':
            return self.quoted()
        return char

    def word(self):
        out = ""
        while self.at < len(self.text):
            char = self.text[self.at]
            if char in " \t\n;&|<>" or char == ")" or (char == "(" and not out.endswith("=")):
                break
            if char == "(":  # an array: its words
                self.at += 1
                body = self.inner(")", "(")
                self.variables.setdefault(ASSIGNMENT.match(out).group().rstrip("+="), []).append(body)
                self.nested("$array " + body.replace("\n", " "))
                return out
            out += self.piece()
        return out

    # ---------------------------------------------------------------- commands

    def end(self):
        if self.words:
            self.commands.append((self.begun, self.words))
        self.words = []

    def redirection(self):
        operator = re.match(r"<<<|<<-?|>>|[<>]&|&>>?|>\||[<>]", self.text[self.at:])
        if self.words and self.words[-1].isdigit() and self.text[self.at - 1].isdigit():
            self.words.pop()
        self.at += operator.end()
        while self.text[self.at] in " \t":
            self.at += 1
        if self.text[self.at] == "(":  # <(…)
            self.at += 1
            self.nested(self.inner(")", "("))
            return
        target = self.word()
        if operator.group() in ("<<", "<<-"):
            self.heredocs.append(target)

    def skip_heredocs(self):
        for name in self.heredocs:
            while self.at < len(self.text):
                line, _, _ = self.text[self.at:].partition("\n")
                self.at += len(line) + 1
                if line.strip() == name:
                    break
        self.heredocs = []

    def take_word(self):
        word = self.word()
        if not self.words:
            self.begun = self.here()
            if word in ("[[", "(("):
                close = "]]" if word == "[[" else "))"
                end = self.text.index(close, self.at)
                body, self.at = self.text[self.at:end], end + 2
                for match in re.finditer(r"\$\(([^()]*)\)", body):
                    self.nested(match[1])
                return
            if word == "esac":
                self.cases = max(0, self.cases - 1)
            if word in RESERVED:
                return
            match = ASSIGNMENT.match(word)
            if match:
                self.variables.setdefault(match.group().rstrip("+="), []).append(word[match.end():])
                return
        if self.text[self.at:self.at + 2] == "()" and not self.words:
            self.at += 2
            self.functions[word] = re.match(r"\s*(.*?)(^}|}$|\Z)", self.text[self.at:], re.MULTILINE | re.DOTALL)[1]
            return
        self.words.append(word)
        if self.words[0] == "case" and word == "in":
            self.words = []
            self.pattern()

    def pattern(self):
        """Up to the ")" that ends a case's pattern, or to its esac."""
        while True:
            self.at += len(re.match(r"(\s|#[^\n]*\n|\\\n)*", self.text[self.at:]).group())
            if self.text.startswith("esac", self.at):
                self.at += 4
                return
            while self.text[self.at] != ")":
                self.piece()
            self.at += 1
            self.cases += 1
            return

    def scan(self):
        while self.at < len(self.text):
            char = self.text[self.at]
            if char == "\\" and self.text[self.at:self.at + 2] == "\\\n":
                self.at += 2
            elif char in " \t":
                self.at += 1
            elif char == "#":
                self.at += len(self.text[self.at:].partition("\n")[0])
            elif char == "\n":
                self.end()
                self.at += 1
                self.skip_heredocs()
            elif self.text.startswith(";;", self.at):
                self.end()
                self.at += 2
                self.cases -= 1
                self.pattern()
            elif re.match(r"[<>]|&>", self.text[self.at:]):
                self.redirection()
            elif char in ";&|()":
                self.end()
                self.at += 1
            else:
                before = self.at
                self.take_word()
                if self.at == before:
                    self.at += 1
        self.end()


# A command that runs the command behind its own arguments: how many plain words it takes first.
PREFIXES = {"env": 0, "exec": 0, "nohup": 0, "sudo": 0, "xargs": 0, "nice": 0, "timeout": 1, "setpriv": 0, "unshare": 0,
            "chroot": 1, "command": 0, "setsid": 0, "stdbuf": 0, "time": 0, "switch_root": 1}
# Options of those that take a word of their own.
TAKES = {"nice": {"-n"}, "sudo": {"-u"}, "timeout": {"-k", "-s"}, "xargs": {"-n", "-P", "-I"}, "env": {"-u", "-C"},
         "exec": {"-a"}}


class Programs:
    """names: {(line, name)} of what a script calls that it does not define itself."""

    def __init__(self, text, line=1):
        self.script = Script(text, line)
        self.names = set()
        self.runs_arguments = {name: self.shifted(body) for name, body in self.script.functions.items()
                               if self.ends_in_arguments(body)}
        for at, words in self.script.commands:
            self.command(at, words)

    @staticmethod
    def ends_in_arguments(body):
        """Whether a function runs what it is given as a command."""
        return any(words[-1] == "$@" and (len(words) == 1 or words[0] in {*PREFIXES, "sh"}) for _, words in Script(body).commands)

    @staticmethod
    def shifted(body):
        return sum(int(match[1] or 1) for match in re.finditer(r"\bshift(?: (\d+))?", body))

    def values(self, word):
        """What a variable in the place of a command is set to in this script, as lists of words."""
        match = re.fullmatch(r"\$\{?(\w+)(\[[@*]\])?\}?", word)
        values = self.script.variables.get(match[1], ()) if match else ()
        return [words for value in values for _, words in Script(value.replace("\n", " ")).commands[:1]]

    def command(self, at, words, seen=()):
        while words and ASSIGNMENT.match(words[0]):
            words = words[1:]
        if not words:
            return
        name, rest = words[0], words[1:]
        if name.startswith("$") and "/" not in name:
            if name in seen:
                return
            for value in self.values(name):
                self.command(at, value + rest, (*seen, name))
            if name.endswith("[@]}") or name == "$@":
                self.command(at, rest, (*seen, name))
            return
        if name in ("for", "select", "case", "function") or not name:
            return
        if name in self.script.functions:
            if name in self.runs_arguments:
                self.command(at, rest[self.runs_arguments[name]:], seen)
            return
        self.names.add((at, name))
        base = name.rpartition("/")[2]
        if base in ("sh", "bash") and "-c" in rest:
            self.text(at, rest[rest.index("-c") + 1:][:1])
        elif base in ("eval", "trap"):
            self.text(at, rest[:1])
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
            self.command(at, rest, seen)
        elif base == "command":
            self.names.update((at, word) for word in rest[1:] if not word.startswith("$"))

    def text(self, at, words):
        for word in words:
            inside = Programs(word, at)
            self.names |= {(line, name) for line, name in inside.names if name not in self.script.functions}


def programs(text, line=1):
    return Programs(text, line).names
