# SPDX-License-Identifier: Apache-2.0
"""selftest.py -- each lint finds what it exists for in a bad sample, and is quiet about a good one

usage: selftest.py [ROOT]
"""
import io
import os
import shutil
import subprocess
import sys
import tempfile
import unittest

import abi
import agree
import arrows
import calls
import circles
import commands
import cppcheck
import format as formatting
import headers
import install
import man
import missing
import names
import programs
import quickstart
import scripts
import shape
import shell
import source
import spelling
import symbols
import words

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import summary  # noqa: E402

SPDX = "/* SPDX-License-Identifier: Apache-2.0 */\n"


class Tree(unittest.TestCase):
    """Each test gets an empty tree to write samples into."""

    def setUp(self):
        self.root = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.root)

    def write(self, path, text):
        full = os.path.join(self.root, path)
        os.makedirs(os.path.dirname(full), exist_ok=True)
        with open(full, "w", encoding="utf-8") as file:
            file.write(text)

    def assert_finds(self, words, findings, count=1):
        self.assertEqual(len(findings), count, findings)
        for finding in findings:
            self.assertIn(words, finding)


class Source(Tree):
    def test_comments_and_strings_are_not_code(self):
        text = 'a /* exit(1)\n */ b "exit(\\"2)" c // exit(3)\nd'
        self.assertNotIn("exit", source.code(text))
        self.assertEqual(source.code(text).count("\n"), 2)
        self.assertIn("d", source.code(text))

    def test_build_folders_are_not_the_tree(self):
        self.write("build-dev/x.c", "")
        self.write("transport/x.c", "")
        self.assertEqual(source.c_files(self.root), ["transport/x.c"])


class Arrows(Tree):
    def setUp(self):
        super().setUp()
        for path in ("transport/tr.h", "transport/provider.h", "transport/base/log.h", "transport/shm/ring.h",
                     "transport/ib/post.h", "kvapi/engine.h", "include/kvrail/kv.h", "include/kvrail/kv_error.h"):
            self.write(path, "")

    def test_downhill_is_allowed(self):
        self.write("kvapi/a.c", '#include <kvrail/kv.h>\n#include "engine.h"\n#include "tr.h"\n#include "base/log.h"\n')
        self.write("transport/ib/a.c", '#include <infiniband/verbs.h>\n#include "post.h"\n#include "provider.h"\n')
        self.write("tests/unit/a.c", '#include "shm/ring.h"\n#include "../../kvapi/engine.h"\n')
        self.write("mpi_tests/a.c", "#include <mpi.h>\n#include <kvrail/kv.h>\n")
        self.assertEqual(arrows.check(self.root), [])

    def test_uphill_is_found(self):
        for path, line in (
            ("transport/base/a.c", '#include "tr.h"'),
            ("transport/base/b.c", '#include "../tr.h"'),
            ("transport/a.c", '#include "../kvapi/engine.h"'),
            ("transport/base/c.c", "#include <kvrail/kv.h>"),
            ("transport/ib/a.c", '#include "shm/ring.h"'),
            ("kvapi/a.c", '#include "provider.h"'),
            ("kvapi/b.c", "  #  include <infiniband/verbs.h>"),
            ("tool/a.c", '#include "../kvapi/engine.h"'),
            ("tool/b.c", '#include "base/log.h"'),
            ("kvapi/examples/a.c", '#include "base/log.h"'),
            ("mpi_tests/a.c", '#include "tr.h"'),
            ("transport/c.c", "#include <mpi.h>"),
            ("kvapi/c.c", "#include <nccl.h>"),
            ("transport/d.c", "#include <Python.h>"),
        ):
            with self.subTest(path=path, line=line):
                self.write(path, line + "\n")
                self.assert_finds(f"{path}:1:", arrows.check(self.root))
                os.remove(os.path.join(self.root, path))


class Circles(Tree):
    def setUp(self):
        super().setUp()
        self.write("kvapi/a.h", "int a(void);\n")
        self.write("kvapi/a.c", "int a(void)\n{\n\treturn b();\n}\n")
        self.write("kvapi/b.c", "struct x b(int i,\n\t   int k)\n{\n\treturn c_table[0].f;\n}\nstatic int d(void)\n{\n}\n")
        self.write("kvapi/c.c", "const struct ops c_table[] = {\n};\nint c(void)\n{\n\treturn d(); /* a() */\n}\n")

    def test_arrows_down_are_no_circle(self):
        self.assertEqual(circles.check(self.root, {"kvapi/": 0}, ()), ([], []))

    def test_a_call_or_an_include_that_closes_a_circle_is_found(self):
        for line in '#include "a.h"\n', "int e(void)\n{\n\treturn a();\n}\n":
            self.write("kvapi/c.c", "const struct ops c_table[] = {\n};\n" + line)
            findings, notes = circles.check(self.root, {"kvapi/": 2}, ())
            self.assertEqual(notes, ["kvapi/: a circle of 3 files: a.c b.c c.c"])
            self.assert_finds("3 files stand in circles of more than 2, there were 2", findings)

    def test_two_files_may_know_each_other_and_fewer_is_a_note(self):
        self.write("kvapi/b.c", "int b(void)\n{\n\treturn a();\n}\n")
        findings, notes = circles.check(self.root, {"kvapi/": 3}, ())
        self.assertEqual((findings, len(notes)), ([], 2))
        self.assertIn("0 files stand in circles, not 3 any more", notes[1])

    def test_a_call_to_a_higher_folder_is_found(self):
        for path in "kvapi/a.c", "kvapi/b.c", "kvapi/c.c", "kvapi/a.h":
            os.remove(os.path.join(self.root, path))
        self.write("kvapi/op/a.c", "int a(void)\n{\n\treturn b();\n}\n")
        self.write("kvapi/wire/b.c", "int b(void)\n{\n\treturn 0;\n}\n")
        self.assertEqual(circles.check(self.root, {"kvapi/": 0}, ("kvapi/",)), ([], []))
        self.write("kvapi/wire/b.c", "int b(void)\n{\n\treturn c();\n}\n")
        self.write("kvapi/api/c.c", "int c(void)\n{\n\treturn 0;\n}\n")
        self.assert_finds("kvapi/wire/b.c: calls up to kvapi/api/c.c (c)", circles.check(self.root, {"kvapi/": 0}, ("kvapi/",))[0])
        self.write("kvapi/wire/b.c", "int b(void)\n{\n\treturn 0;\n}\n")
        self.write("kvapi/d.c", "int d(void)\n{\n\treturn 0;\n}\n")
        self.assert_finds("kvapi/d.c: stands in none of", circles.check(self.root, {"kvapi/": 0}, ("kvapi/",))[0])
        self.write("kvapi/d.c", "void d(struct kv_op *op)\n{\n\top->stage = KV_STAGE_STOP;\n}\n")
        self.assert_finds("kvapi/d.c: assigns what only kvapi/op/ may", circles.check(self.root, {"kvapi/": 0}, ())[0])


class Calls(Tree):
    def test_forbidden_calls_are_found(self):
        self.write("transport/a.c", "f(void) { exit (1); printf(x); getenv(x); }\n")
        self.write("tests/b.c", "f(void) { atoi(x); exit(1); }\n")
        self.assert_finds("is not to be called here", calls.check(self.root), 4)

    def test_numbers_that_may_be_octal_are_found(self):
        self.write("tests/b.c", "f(void) { x = strtoull(f(a)[1], NULL, 0); }\n")
        self.write("mpi_tests/c.c", "f(void) { y = strtol(b, &end, 10); g(strtol(b, &end, 16), 0); }\n")
        self.assert_finds("tests/b.c:1: with base 0", calls.check(self.root), 1)

    def test_the_environment_belongs_to_one_file(self):
        self.write("transport/base/option.c", "extern char **environ;\n")
        self.assertEqual(calls.check(self.root), [])
        self.write("kvapi/a.c", "extern char **environ;\n")
        self.assert_finds("kvapi/a.c:1", calls.check(self.root))

    def test_an_environment_that_replaces_that_of_every_test_is_found(self):
        self.write("tests/CMakeLists.txt", "set_tests_properties(a b PROPERTIES\n\tENVIRONMENT A=1)\n")
        self.write("tests/a/CMakeLists.txt", "set_property(TEST a APPEND PROPERTY ENVIRONMENT A=1)\n")
        self.assert_finds("tests/CMakeLists.txt: set_tests_properties", calls.check(self.root), 1)

    def test_longer_names_members_and_comments_are_not_calls(self):
        self.write("kvapi/a.c", 'kv_exit(1); p->abort(); ops.sleep(1); snprintf(x); /* exit(1) */ "atoi(x)"\n')
        self.write("tool/b.c", "printf(x); exit(1);\n")
        self.assertEqual(calls.check(self.root), [])


class Names(Tree):
    def test_a_name_in_two_files_of_the_library_is_found(self):
        self.write("kvapi/a.c", "static int\nlook(void)\n{\n}\nstatic int g(void);\n")
        self.write("kvapi/b.c", "__attribute__((noreturn)) static void own(int a,\n\t\t int b)\n{\n}\n")
        self.assertEqual(names.check(self.root), [])
        self.write("transport/b.c", "static __attribute__((format(printf, 1, 2))) void look(const char *f, ...)\n{\n}\n")
        self.assert_finds("look is also in", names.check(self.root), 2)

    def test_a_bare_verb_is_found(self):
        self.write("kvapi/a.c", "static int begin(void)\n{\n}\nstatic int op_begin(void)\n{\n}\n")
        self.write("kvapi/examples/a.c", "static int run(void)\n{\n}\n")
        self.assert_finds("kvapi/a.c:1: begin says nothing alone", names.check(self.root))


class Words(Tree):
    def test_an_odd_word_is_found_in_a_comment_and_a_message_and_not_in_code(self):
        self.write("kvapi/a.c", "/* there is no room, nobody is\n * told: it is no\n * wonder */\nbool told = f(\"mend it\");\n")
        self.assert_finds("kvapi/a.c:", words.check(self.root), 3)
        self.write("docs/a.c", "/* for want of a nail */\n")
        self.assert_finds("kvapi/a.c:", words.check(self.root), 3)
        self.write("tests/a.c", "/* for want of a nail */\n")
        self.assertEqual(len(words.check(self.root)), 4)

    def test_an_odd_word_is_found_in_a_document(self):
        self.write("docs/a.md", "# A\n\nThe caller\nwas told.\n")
        self.assert_finds("docs/a.md:3:", words.check(self.root))


class Shape(Tree):
    def test_a_missing_licence_line_is_found(self):
        self.write("kvapi/a.c", "int x;\n")
        self.write("kvapi/b.c", SPDX + "int x;\n")
        self.assert_finds("kvapi/a.c:1", shape.check(self.root)[0])

    def test_a_file_over_the_limit_is_found(self):
        self.write("a.c", SPDX + "\n" * 800)
        self.write("b.c", SPDX + "\n" * 501)
        findings, notes = shape.check(self.root)
        self.assert_finds("a.c: 801 lines", findings)
        self.assert_finds("b.c: 502 lines", notes)

    def test_long_functions_are_noted(self):
        self.write("a.c", SPDX + "int f(int a,\n      int b)\n{\n" + "\tx;\n" * 69 + "}\n")
        notes = shape.check(self.root)[1]
        self.assertEqual(len(notes), 1, notes)
        self.assertIn("f has 71 lines", notes[0])

    def test_wide_lines_are_found_unless_a_text_makes_them_so(self):
        self.write("a.c", SPDX + "\t" * 12 + "1234\n" + "\t" * 12 + "12345\n" + "\t" * 12 + '"234"\n')
        self.assert_finds("a.c:3: 1 lines are wider", shape.check(self.root)[0])

    def test_program_that_cannot_be_started(self):
        self.write("a.sh", "#!/bin/sh\n# SPDX-License-Identifier: Apache-2.0\n")
        self.assert_finds("a.sh:1", shape.check(self.root)[0])
        os.chmod(os.path.join(self.root, "a.sh"), 0o755)
        self.assertEqual(shape.check(self.root)[0], [])


class Format(Tree):
    def test_an_unformatted_file_is_found(self):
        formatter = formatting.find_formatter()
        if formatter is None:
            self.skipTest("no clang-format")
        self.write("a.c", "int  x ;\n")
        self.write("by_hand.h", "int  x ;\n")
        self.assert_finds("a.c: not formatted", formatting.check(self.root, formatter))


class Honest(Tree):
    def test_a_skip_without_a_reason_is_found(self):
        self.write("tests/a.c", 'if (x) {\n\tprint_message("skipped: no x\\n");\n\tskip();\n}\n\n\n\n\nif (y)\n\tskip();\n')
        self.assert_finds("tests/a.c:10", agree.check_skips(self.root))

    def test_a_test_that_is_run_until_it_passes_is_found(self):
        self.write("dev", "ctest --repeat until-fail:3\n")
        self.write("tests/CMakeLists.txt", "add_test(NAME a COMMAND a)\n")
        self.assert_finds("dev: --repeat", agree.check_repeats(self.root))


class Tools(Tree):
    def test_a_script_with_an_error_is_found(self):
        if not shutil.which("shellcheck"):
            self.skipTest("no shellcheck")
        self.write("a.sh", "#!/bin/sh\ncd x || exit\necho y\n")
        self.write("b", "#!/bin/sh\ncd x\necho y\n")
        self.assert_finds("b:2", scripts.check(self.root))

    def test_a_misspelt_word_is_found(self):
        if not shutil.which("codespell"):
            self.skipTest("no codespell")
        self.write("a.md", "the word " + "t" + "eh\nthe word\n")
        self.assert_finds("a.md:1", spelling.check(self.root))


class Headers(Tree):
    def test_a_header_that_needs_another_is_found(self):
        self.write("include/kvrail/good.h", "#pragma once\n#include <stddef.h>\nsize_t f(void);\n")
        self.write("include/kvrail/bad.h", "#pragma once\nsize_t f(void);\n")
        self.assert_finds("bad.h alone", headers.check(self.root, [("cc", ["-xc", "-std=c11"])]))

    def test_a_header_that_is_not_guarded_is_found(self):
        self.write("include/kvrail/bad.h", "struct s { int x; };\n")
        self.assert_finds("bad.h alone", headers.check(self.root, [("cc", ["-xc", "-std=c11"])]))


@unittest.skipUnless(shutil.which("abidiff"), "no abidiff")
class Abi(Tree):
    HEADER = ("#include <stddef.h>\nenum kv_code { KV_OK, KV_BAD = -1 };\nstruct kv_open {\n\tsize_t size;\n\tint a;\n};\n"
              "struct kv_fixed {\n\tint a;\n};\nenum kv_code kv_f(struct kv_open *o, struct kv_fixed *f);\nint kv_g(int a);\n")
    CODE = ('#include "include/kvrail/kv.h"\nenum kv_code kv_f(struct kv_open *o, struct kv_fixed *f) { return o->a + f->a; }\n'
            "int kv_g(int a) { return a; }\n")

    def library(self, *changes):
        header, code = self.HEADER, self.CODE
        for old, new in changes:
            self.assertIn(old, header + code)
            header, code = header.replace(old, new), code.replace(old, new)
        self.write("include/kvrail/kv.h", header)
        self.write("a.c", code)
        path = f"{self.root}/liba.so"
        subprocess.run(["gcc", "-g", "-shared", "-fPIC", "-Wl,-soname,liba.so.0.1", "-o", path, f"{self.root}/a.c"], check=True)
        return path

    def setUp(self):
        super().setUp()
        os.mkdir(f"{self.root}/packaging")
        abi.write(self.root, self.library(), f"{self.root}/{abi.KEPT}")

    def test_what_may_be_added_is_no_change(self):
        for change in (("\tint a;\n};\nstruct kv_f", "\tint a;\n\tlong b;\n};\nstruct kv_f"), ("KV_BAD = -1", "KV_BAD = -1, KV_NEW = -2"),
                       ("int kv_g", "int kv_new(void);\nint kv_g"), ("int kv_g(int a) {", "int kv_h(void) { return 0; }\nint kv_g(int a) {")):
            self.assertEqual(abi.check(self.root, self.library(change)), [])

    def test_what_breaks_a_program_is_found(self):
        for words, change in (("kv_g", ("int kv_g(int a) { return a; }", "")), ("kv_g", ("kv_g(int a)", "kv_g(long a)")),
                              ("kv_fixed", ("kv_fixed {\n\tint a;", "kv_fixed {\n\tint a, b;")), ("KV_BAD", ("KV_BAD = -1", "KV_BAD = -2")),
                              ("kv_open", ("size;\n\tint a;", "size;\n\tlong b;\n\tint a;"))):
            self.assert_finds(words, abi.check(self.root, self.library(change)))


class Symbols(Tree):
    def test_declared_functions_are_read_from_headers(self):
        self.write("include/kvrail/kv.h", "/* kv_no(1); */\n#define KV_X(a) \\\n\tkv_never(a);\n"
                   "int kv_a(struct kv_b *b,\n\t int (*f)(void *, int), int c);\nconst char *kv_c(void);\n"
                   "struct kv_s { int (*kv_f)(void); };\n")
        self.assertEqual(symbols.declared(self.root), {"kv_a", "kv_c"})

    def test_a_map_is_read(self):
        text = "# SPDX\nKVRAIL_0.1 {\n\tglobal: /* all; */\n\t\tkv_a; kv_b;\n\tlocal: *;\n};\n"
        self.assertEqual(symbols.mapped(text), {"kv_a", "kv_b"})
        self.assertEqual(symbols.mapped("X { global: kv_*; local: *; };"), {"kv_*"})

    def test_every_difference_is_found(self):
        self.assertEqual(symbols.check_exports({"a"}, {"a"}, {"a"}), [])
        self.assert_finds("x:", symbols.check_exports({"a", "x"}, {"a"}, {"a"}))
        self.assert_finds("x:", symbols.check_exports({"a"}, {"a", "x"}, {"a", "x"}))
        self.assert_finds("x:", symbols.check_exports({"a"}, {"a"}, {"a", "x"}))

    def test_a_device_library_is_found(self):
        self.assertEqual(symbols.check_needs(["libc.so.6"], {"memcpy", "custom"}), [])
        self.assert_finds("libibverbs.so.1", symbols.check_needs(["libibverbs.so.1"], set()))
        self.assert_finds("undefined", symbols.check_needs([], {"ibv_poll_cq", "cuInit", "MPI_Init"}), 3)


class Agree(Tree):
    def test_an_unused_fault_point_is_found(self):
        self.write("transport/base/fault.def", 'FAULT(USED, "x")\nFAULT(UNUSED, "x")\n')
        self.write("transport/a.c", "if (kv_fault(USED)) return 1;\n")
        self.write("tests/a.c", "if (kv_fault(UNUSED)) return 1;\n")
        self.assert_finds("UNUSED is not used", agree.check_faults(self.root))

    def test_an_error_code_without_a_section_is_found(self):
        self.write("include/kvrail/kv_error.h", "#define L(X) \\\n\tX(A, 1) \\\n\tX(B, 2)\n")
        self.write("docs/troubleshooting.md", "### KV_ERR_A\n### KV_ERR_C\n")
        self.assert_finds("KV_ERR_", agree.check_codes(self.root), 2)

    def test_a_code_that_nobody_returns_and_an_option_that_nobody_reads_are_found(self):
        self.write("include/kvrail/kv_error.h", "#define L(X) \\\n\tX(A, 1) \\\n\tX(B, 2)\n")
        self.write("transport/base/option.def", 'INT(C, "KVCACHE_C", 1)\nINT(D, "KVCACHE_D", 1)\n')
        self.write("transport/a.c", "return KV_ERR_A + get(KV_OPT_C); /* KV_ERR_B, KV_OPT_D */\n")
        self.write("tests/a.c", "return KV_ERR_B + get(KV_OPT_D);\n")
        self.assert_finds("no library returns KV_ERR_B", agree.check_raised(self.root))
        self.assert_finds("no library reads KVCACHE_D", agree.check_options(self.root))

    def test_an_invariant_whose_test_is_gone_is_found(self):
        self.write("tests/a_test.c", "static void it_holds(void **state)\n")
        self.write("tests/CMakeLists.txt", "kvrail_add_test(by_name COMMAND x)\n")
        head = "## Invariants as they are kept\n\n| | a | b | c |\n| --- | --- | --- | --- |\n"
        good = "| 1 | x | y | `a_test: it_holds`, `a_test`, `by_name` |\n| 2 | x | y | no test yet |\n"
        self.write("docs/architecture.md", head + good)
        self.assertEqual(agree.check_invariants(self.root), [])
        bad = "| 1 | x | y | `b_test` |\n| 2 | x | y | `a_test: it_held` |\n| 4 | x | y | |\n| 5 | x `a_test` | y |  |\n"
        self.write("docs/architecture.md", head + bad)
        self.assert_finds("docs/architecture.md: invariant", agree.check_invariants(self.root), 6)

    def test_a_file_that_the_architecture_does_not_name_is_found(self):
        self.write("transport/a.c", "")
        self.write("kvapi/op/b.c", "")
        self.write("docs/architecture.md", "| `a.c` | a |\n")
        self.assert_finds("docs/architecture.md: kvapi/op/b.c stands", agree.check_pictures(self.root), 1)

    def test_a_limit_whose_test_or_source_is_gone_is_found(self):
        self.write("tests/a_test.c", "static void it_holds(void **state)\n")
        self.write("transport/a.c", "")
        head = "## What others can cost\n\n| who | what | limit | where | held by |\n| --- | --- | --- | --- | --- |\n"
        self.write("SECURITY.md", head + "| a | b | 1 | `transport/a.c` | `a_test: it_holds` |\n")
        self.assertEqual(agree.check_costs(self.root), [])
        self.write("SECURITY.md", head + "| a | b | 1 | `transport/b.c` | `b_test` |\n| a | c | 2 | | |\n")
        self.assert_finds("SECURITY.md: a, ", agree.check_costs(self.root), 3)
        self.write("SECURITY.md", "")
        self.assert_finds("SECURITY.md: there is no table", agree.check_costs(self.root), 1)

    def test_a_parser_without_a_target_is_found(self):
        self.write("tests/a_fuzz.c", "")
        self.write("transport/a.c", "void f(void)\n{\n\trecv(1, b, 2, 0);\n}\n")
        head = "## What parses\n\n| what comes | from | file | target, or test |\n| --- | --- | --- | --- |\n"
        self.write("docs/fuzz.md", head + "| a | b | `transport/a.c` | `a_fuzz` |\n\n**Falls short.**\n")
        self.assertEqual(agree.check_parsers(self.root), [])
        self.write("docs/fuzz.md", head + "| a | b | `transport/b.c` | `b_fuzz` |\n\n**Falls short.**\n")
        self.assert_finds("docs/fuzz.md: ", agree.check_parsers(self.root), 3)

    def test_a_figure_that_is_not_the_measured_one_is_found(self):
        self.write("bench/stored/a.json", '{"rows": [{"path": "pool", "block_bytes": 1024, "ratio": 0.927, "plain": null}]}')
        self.write("docs/nccl.md", "")
        killed = "".join(f"| {name} | E: x ({s} s) | | |\n" for name, s in (("kvrail", 0.6), ("nixl", 8.0), ("mooncake", 30.8)))
        bench = "[a](../bench/stored/a.json)\n\n    pool 1024 0.93 -\n" + killed
        bench += "      1024  1538 7.5  0.927  0\n     16384  1538 7.5  1.038  0\n"
        said = "ends the write after 0.6 s now; NIXL took 8.0 s, Mooncake 30.8 s\ncost little: 0.93 to 1.04 times the rate"
        self.write("docs/benchmarks.md", bench)
        self.write("README.md", said)
        self.assertEqual(agree.check_figures(self.root), [])
        self.write("docs/benchmarks.md", bench.replace("0.93 -", "0.94 -"))
        self.assert_finds("no line has the figures of row 1", agree.check_figures(self.root), 1)
        self.write("docs/benchmarks.md", bench.replace("(8.0 s)", "(7.0 s)").replace("1.038", "1.050"))
        self.assert_finds("README.md: ", agree.check_figures(self.root), 2)

    def test_a_way_around_the_key_without_a_test_is_found(self):
        self.write("tests/a_test.c", "static void it_holds(void **state)\n")
        head = "## The key\n\n| way | held by |\n| --- | --- |\n"
        self.write("SECURITY.md", head + "| a | `a_test: it_holds` |\n")
        self.assertEqual(agree.check_key(self.root), [])
        self.write("SECURITY.md", head + "| a | `a_test: it_held` |\n")
        self.assert_finds("SECURITY.md: a", agree.check_key(self.root), 1)
        self.write("SECURITY.md", "")
        self.assert_finds("SECURITY.md: there is no table", agree.check_key(self.root), 1)

    def test_a_fault_without_a_test_or_a_reason_is_found(self):
        self.write("tests/a_test.c", "static void it_holds(void **state)\n")
        head = "## The faults\n\n| # | fault | what | played by |\n| --- | --- | --- | --- |\n"
        good = "| {} | a | b | `a_test: it_holds` |\n"
        rows = [good.format(n) for n in range(1, agree.FAULT_ROWS + 1)]
        rows[1] = "| 2 | a | b | no test: it takes a device that nobody has |\n"
        self.write("docs/reliability.md", head + "".join(rows))
        self.assertEqual(agree.check_reliability(self.root), [])
        rows[1:5] = ["| 2 | a | b | no test |\n", "| 3 | a | b | `a_test: it_held` |\n", "| 4 | a | b | |\n"]
        self.write("docs/reliability.md", head + "".join(rows))
        self.assert_finds("docs/reliability.md: fault ", agree.check_reliability(self.root), 4)

    def test_a_doctor_line_without_a_row_is_found(self):
        self.write("tool/doctor/lines.def", 'CHECK(A, "a")\nCHECK(B, "b")\n')
        self.write("docs/rdma.md", "| `b` | elsewhere | |\n## 2. Every line\n| `a`, `c` | see `d` | |\n\n## 3\n| `b` | |\n")
        self.assertEqual(agree.check_doctor(self.root),
                         ["docs/rdma.md: no row b of the doctor", "docs/rdma.md: the doctor has no line c"])

    def test_a_status_without_its_row_or_with_another_code_is_found(self):
        header = "enum ibv_wc_status {\n\tIBV_WC_SUCCESS,\n\tIBV_WC_A,\n\tIBV_WC_B,\n\tIBV_WC_C\n};\n"
        self.write("transport/ib/status.c", "int ib_wc_code(int status)\n{\n\tcase IBV_WC_SUCCESS:\n\t\treturn KV_OK;\n"
                   "\tcase IBV_WC_A: /* why */\n\tcase IBV_WC_B:\n\t\treturn down ? KV_ERR_X : KV_ERR_Y;\n"
                   "\tdefault:\n\t\treturn KV_ERR_Z;\n\t}\n}\n")
        good = "| 0 `SUCCESS` | | |\n| 1 `A` | | X, Y |\n| 2 `B` | | Y, X |\n| 3 `C` | why | Z |\n"
        self.write("docs/rdma.md", good)
        self.assertEqual(agree.check_statuses(self.root, header), [])
        self.write("docs/rdma.md", good.replace("3 `C`", "4 `C`").replace("| Y, X |", "| Y |"))
        self.assert_finds("for status ", agree.check_statuses(self.root, header), 4)

    def test_a_variable_of_nccl_without_its_row_is_found(self):
        self.write("net_plugin/np_env.c", '\t{ "NCCL_IB_A", "KVCACHE_A", 0, 7, NULL },\n')
        self.write("docs/nccl.md", "| `NCCL_IB_A` | `KVCACHE_A` | a number, 0..7 |\n")
        self.assertEqual(agree.check_nccls_variables(self.root), [])
        self.write("docs/nccl.md", "| `NCCL_IB_A` | `KVCACHE_A` | 0..8 |\n")
        self.assert_finds("KVCACHE_A", agree.check_nccls_variables(self.root), 2)

    def test_two_versions_are_found(self):
        self.write("CMakeLists.txt", "project(kvrail VERSION 1.2.3 LANGUAGES C)\n")
        define = "#define KV_VERSION_MAJOR 1\n#define KV_VERSION_MINOR 2\n#define KV_VERSION_PATCH {}\n"
        self.write("include/kvrail/kv.h", define.format(3))
        self.assertEqual(agree.check_version(self.root), [])
        self.write("include/kvrail/kv.h", define.format(4))
        self.assert_finds("1.2.4", agree.check_version(self.root))

    def test_what_a_page_names_and_nobody_has_is_found(self):
        self.write("dev", "usage:\n  lint           only\n")
        self.write("CMakePresets.json", '{ "name": "dev",\n "displayName": "x" }, { "name": "base", "hidden": true }')
        self.write("transport/base/option.def", 'INT(A, "KVCACHE_A", 1)\n')
        self.write("tests/lint/CMakeLists.txt", "kvrail_lint(words)\n")
        good = ("`base/option.def` `tests/lint/` `option.def` [dev](dev) `./dev lint` build-dev/x --preset dev KVCACHE_A KVCACHE_*\n"
                "| `lint_words` | x |\n")
        for page in ("README.md", "CHANGELOG.md", "docs/architecture.md", "docs/reliability.md", "CONTRIBUTING.md"):
            self.write(page, good)
        self.assertEqual(agree.check_pages(self.root), [])
        for bad in ("`base/gone.def`", "`gone.c`", "`gone/`", "./dev gone", "build-base/x", "--preset gone", "KVCACHE_B",
                    "\n| `lint_gone` |"):
            self.write("CONTRIBUTING.md", good + bad)
            self.assert_finds("CONTRIBUTING.md: there is no ", agree.check_pages(self.root))
        self.write("CONTRIBUTING.md", good.replace("lint_words", "words"))
        self.assert_finds("no row lint_words", agree.check_pages(self.root))

    def test_a_row_of_the_first_hour_without_its_test_is_found(self):
        self.write("tests/lint/CMakeLists.txt", "kvrail_lint(words)\n")
        self.write("tool/a_test.py", "def test_b(): pass\n")
        self.write("docs/first-hour.md", "| 1 | x | y | `a_test: test_b` |\n| 2 | x | y | `lint_words` |\n")
        self.assertEqual(agree.check_first_hour(self.root), [])
        self.write("docs/first-hour.md", "| 1 | x | y | `a_test: test_c` |\n| 3 | x | y | `lint_words` |\n| 3 | x | y | z |\n")
        self.assert_finds("row ", agree.check_first_hour(self.root), 3)

    def test_a_second_place_that_says_what_becomes_of_a_gpus_memory_is_found(self):
        self.write("docs/gpu.md", "Memory of a GPU is copied.\n")
        self.write("docs/a.md", "Pointers of a GPU are refused ([gpu.md](gpu.md)).\n\n- a GPU's memory\n- is refused\n")
        self.assertEqual(agree.check_gpu(self.root), [])
        self.write("docs/a.md", "x\n\n| GPU memory | is refused |\n\nA NIC\nmoves CUDA memory; it is taken.\n")
        self.assert_finds("no link to gpu.md", agree.check_gpu(self.root), 2)

    def test_a_name_that_the_code_has_not_is_found(self):
        self.write("kvapi/op/kv_op.h", "enum { KV_STAGE_IDLE = 0,\n\tKV_STAGE_POST };\nint kv_here(void);\n")
        self.write("docs/architecture.md", "`kv_here(x)` kv_gone\n## The stages\nIDLE POST\n")
        self.write("docs/design/decisions.md", "| `tr_old` | `kv_here` |\n")
        self.assertEqual(agree.check_names(self.root), [])
        self.write("docs/architecture.md", "`kv_gone`\n## The stages\nPOST\n")
        self.write("docs/design/decisions.md", "| x | `tr_old` |\n")
        self.assert_finds("there is no ", agree.check_names(self.root)[:2], 2)
        self.assert_finds("the stage IDLE", agree.check_names(self.root)[2:])

    def test_a_link_that_leads_nowhere_is_found(self):
        self.write("docs/a.md", "# One thing, `x`\n[b](../b.md#two) [here](#one-thing-x) [web](https://x/y.md#z)\n")
        self.write("b.md", "## Two\n[a](docs/a.md)\n")
        self.assertEqual(agree.check_links(self.root), [])
        for bad in "[a](docs/gone.md)", "[a](docs/a.md#two)", "[a](#gone)":
            self.write("b.md", "## Two\n" + bad)
            self.assert_finds("b.md: ", agree.check_links(self.root))

    def test_a_path_of_this_machine_is_found(self):
        self.write("a.txt", f"see {os.path.realpath(self.root)}/x\n")
        self.write("b.txt", "see /" + "home/somebody/x\n")
        self.write("c.txt", "see /usr/lib and https://example.org/home\n")
        self.assert_finds("a path of one machine", agree.check_paths(self.root), 2)


class Programs(Tree):
    def setUp(self):
        super().setUp()
        self.write("dev", "packages='\niproute2 cmd rdma rxe ip tc\nbusybox-static file /bin/busybox rxe\n'\n")

    def missing(self):
        """What the lint finds in the tree, without places: {name, …}."""
        return {finding.split(": ")[1] for finding in programs.check(self.root)}

    def names(self, script):
        return {name for _, name in shell.programs(script)}

    def test_a_program_of_no_listed_package_is_found_in_every_kind_of_file(self):
        self.write("a.sh", "#!/bin/sh\nip link; rmmod x\n")
        self.write("b", "#!/usr/bin/env bash\nfoo1 | cat\n")
        self.write("c.py", "import subprocess\nsubprocess.run(['foo2', '-x'])\n")
        self.write("d.c", 'f(void) { popen("foo3 -x | wc", "r"); execlp("foo4", "foo4", NULL); }\n')
        self.write("e/CMakeLists.txt", "find_program(X NAMES foo5 foo6)\nadd_test(NAME t COMMAND foo7 x)\n"
                   "add_executable(ours a.c)\nadd_test(NAME u COMMAND ours)\nfind_program(Y NAMES foo8 tc)\n")
        self.assertEqual(self.missing(), {"rmmod", "foo1", "foo2", "foo3", "foo4", "foo5 or foo6", "foo7"})

    def test_what_is_listed_or_on_every_debian_or_ours_is_good(self):
        self.write("a.sh", "#!/bin/sh\nset -e\nrdma link && tc qdisc || ip a\n/bin/busybox mount\n./b.sh x\n\"$1/build/t\" y\n")
        self.write("c.py", "import subprocess, sys\nsubprocess.run([sys.executable, '-m', 'x'])\n")
        self.assertEqual(programs.check(self.root), [])

    def test_commands_of_a_shell_script_are_told_from_its_other_words(self):
        self.assertEqual(self.names("case $x in\nfoo | bar) a ;;\n*) b y ;;\nesac\nfor i in c d; do e $i; done\n"), {"a", "b", "e"})
        self.assertEqual(self.names("a <<END\nfoo bar\nEND\nb >c 2>&1 <d # e\n"), {"a", "b"})
        self.assertEqual(self.names("a 'b; c' \"$(d | e)\" `f` \\\n g\nh=$(i) j=1 k\n"), {"a", "d", "e", "f", "i", "k"})
        self.assertEqual(self.names("if ! a; then b; elif [[ c < d && $(e) ]]; then (f; g) & fi; x=(h i)\n"), {"a", "b", "e", "f", "g"})

    def test_a_command_behind_another_one_is_found(self):
        self.assertEqual(self.names("env A=1 timeout -k 1 5 a x; exec b; sudo -n c; command -v d\n") - set(programs.BUILTINS),
                         {"env", "timeout", "a", "b", "sudo", "c", "d"})
        self.assertEqual(self.names("sh -c 'a; b'\ntrap 'c' EXIT\nrun='d -x'\n$run y\n"), {"sh", "a", "b", "trap", "c", "d"})
        self.assertEqual(self.names('as() {\n\tshift\n\tsetpriv --x -- "$@"\n}\nas 5 foo bar\n'), {"shift", "setpriv", "foo"})
        self.write("a.py", "import subprocess\nC = ['env', 'X=1', 'foo1']\ndef run(*c):\n    subprocess.run(c)\n"
                   "run('foo2', 'x')\nsubprocess.run(C + ['y'])\nsubprocess.run('foo3 | foo4', shell=True)\n"
                   "S = 'foo5 x'\nsubprocess.run(['sh', '-c', S])\nfor t in 'foo6', 'foo7':\n    subprocess.run([t])\n")
        self.assertEqual(self.missing(), {f"foo{i}" for i in range(1, 8)})

    def test_two_lists_that_differ_are_found(self):
        self.write("tests/rxe/image.py", "PACKAGES = [('iproute2', 'rdma'), ('kmod', 'rmmod')]\n")
        self.assertEqual({finding.split(":")[0] for finding in programs.check(self.root)}, {"busybox-static", "kmod"})


class Commands(Tree):
    def setUp(self):
        super().setUp()
        self.write("bin/tool/prog", "--good")
        os.chmod(os.path.join(self.root, "bin/tool/prog"), 0o755)
        self.write("tests/a.sh", "life) x --yes\n")
        self.commands = commands.Commands.__new__(commands.Commands)
        self.commands.root, self.commands.build = self.root, os.path.join(self.root, "bin")
        self.commands.tests, self.commands.files = [("a_test", {"unit"})], set(source.files(self.root))

    def look(self, line):
        return [what for words in commands.words_of(line) for what in self.commands.look(words)]

    def test_what_there_is_is_good(self):
        for line in ("X=1 prog --good=3 # why", "build-dev/tool/prog --help", "tests/a.sh life prog --good", "(cd build-dev && ctest -R '^a_') | x --y",
                     "ctest -L unit", "y 'sleep 2; build-dev/tool/prog --good' --other", "an 'unbalanced word"):
            self.assertEqual(self.look(line), [], line)

    def test_what_there_is_not_is_found(self):
        for line in ("prog --gone", "build-dev/tool/gone", "tests/gone.sh", "tests/a.sh death", "ctest -R gone", "ctest -L gone", "y 'prog --gone'"):
            self.assert_finds("", self.look(line))

    def test_marked_lines_are_run(self):
        text = "a\n\n<!-- run 1 3 -->\n\n    true\n    no\n    $ false\n\nx\n\n    b\n"
        self.assertEqual(list(commands.blocks(text)), [({1, 3}, ["true", "no", "false"]), (set(), ["b"])])
        self.assertEqual([list(self.commands.run(line)) for line in ("true", "prog --good")], [[], ["exit status 127"]])
        self.assertEqual(list(self.commands.run("exit 3")), ["exit status 3"])


class Quickstart(Tree):
    def check(self, program):
        library = os.path.join(self.root, "empty.so")
        subprocess.run(["cc", "-shared", "-xc", os.devnull, "-o", library], check=True)
        self.write("README.md", f"```c\n{program}\n```\nIt prints `hello`\n")
        return quickstart.check(self.root, library, "cc")

    def test_a_program_that_keeps_its_promise_is_good(self):
        self.assertEqual(self.check('#include <stdio.h>\nint main(void) { puts("hello"); return 0; }'), [])

    def test_one_that_does_not_is_found(self):
        self.assert_finds("promised", self.check('#include <stdio.h>\nint main(void) { puts("no"); return 0; }'))
        self.assert_finds("exit 3", self.check('#include <stdio.h>\nint main(void) { puts("hello"); return 3; }'))
        self.assert_finds("undeclared", self.check("int main(void) { return nothing; }"))


class Man(Tree):
    PAGE = (".TH KV_A 3 \"\" \"x\"\n.SH NAME\nkv_a, kv_b \\- do\n.SH SYNOPSIS\nint kv_a(struct kv_error *err);\nint kv_b(void);\n"
            ".SH DESCRIPTION\nIt does.\n.SH RETURN VALUE\n0.\n.SH ERRORS\nNone.\n")

    def setUp(self):
        super().setUp()
        self.write("kvapi/kvrail.map", "X { global: kv_a; kv_b; local: *; };")
        self.write("transport/base/option.def", 'BOOL(X, "KVCACHE_X", 0, "x")\n')
        self.write("tool/kvrail.c", '\t{ "info", info_main, "x" },\n')
        self.write("man/man3/kv_a.3", self.PAGE)
        self.write("man/man3/kv_b.3", ".so man3/kv_a.3\n")
        self.write("man/man7/kvrail.7", ".TP\n.B KVCACHE_X\nx\n")
        self.write("man/man1/kvrail.1", ".SS info\nx\n")

    def check(self):
        return man.check(self.root, os.path.join(self.root, "man"))

    def test_a_whole_page_is_good(self):
        self.assertEqual(self.check(), [])

    def test_what_is_missing_is_found(self):
        for path, old, new, finding in (
                ("man3/kv_b.3", "kv_a", "kv_c", "kv_b(3)"), ("man3/kv_a.3", "RETURN VALUE", "RETURN", "no section RETURN VALUE"),
                ("man3/kv_a.3", "None.\n", "", "no section ERRORS"), ("man7/kvrail.7", "_X", "_XY", "kvrail(7): no KVCACHE_X"),
                ("man1/kvrail.1", "info", "inf", "kvrail(1): no info")):
            text = source.read(self.root, "man/" + path)
            self.write("man/" + path, text.replace(old, new))
            self.assertIn(finding, "\n".join(self.check()), path)
            self.write("man/" + path, text)

    @unittest.skipUnless(shutil.which("mandoc") and shutil.which("groff"), "skipped: mandoc or groff is not installed")
    def test_a_wrong_macro_is_found(self):
        os.remove(os.path.join(self.root, "man/man1/kvrail.1"))
        os.remove(os.path.join(self.root, "man/man7/kvrail.7"))
        self.assertEqual(man.check_roff(os.path.join(self.root, "man")), [])
        self.write("bad/man3/kv_a.3", self.PAGE + ".XX oops\n")
        self.assertTrue(man.check_roff(os.path.join(self.root, "bad")))


class Install(Tree):
    def test_a_file_with_the_path_of_the_source_tree_is_found(self):
        self.write("prefix/lib/good.so", "transport/tr.c")
        self.write("prefix/lib/bad.so", os.path.realpath(self.root) + "/source/transport/tr.c")
        prefix, tree = os.path.join(self.root, "prefix"), os.path.join(self.root, "source")
        self.assert_finds("lib/bad.so", install.check_paths(prefix, tree))


class Cppcheck(Tree):
    @unittest.skipUnless(shutil.which("cppcheck"), "no cppcheck here")
    def test_a_fault_is_found_and_an_exception_needs_a_reason(self):
        self.write("transport/bad.c", "int f(void);\nint f(void)\n{\n\tint a[2] = { 0 };\n\treturn a[2];\n}\n")
        path = os.path.join(self.root, "transport/bad.c")
        commands = [{"directory": self.root, "command": f"cc -c {path}", "file": path}]
        self.assert_finds("bad.c:5: arrayIndexOutOfBounds", cppcheck.check(self.root, commands))
        self.write("tests/lint/cppcheck.suppress", "arrayIndexOutOfBounds:*bad.c\n")
        self.assert_finds("no reason above it", cppcheck.check(self.root, commands))
        self.write("tests/lint/cppcheck.suppress", "# a sample\narrayIndexOutOfBounds:*bad.c\n")
        self.assertEqual(cppcheck.check(self.root, commands), [])


class Missing(Tree):
    def test_a_cmake_that_says_nothing_of_what_is_missing_is_found(self):
        self.write("CMakeLists.txt", "cmake_minimum_required(VERSION 3.22)\nproject(silent LANGUAGES NONE)\n")
        case = ((), None, True, "x.h is missing")
        self.assert_finds("CMake goes on", list(missing.check_case(self.root, self.root, 0, case)))


class Summary(Tree):
    RESULTS = """<testsuite>
<testcase name="good" status="run"><system-out>[ RUN      ] part_one
[       OK ] part_one
[ RUN      ] part_two
skipped: no second user
[  SKIPPED ] part_two
[==========] 1 test(s) run.
[  SKIPPED ] 1 test(s), listed below:
[  SKIPPED ] part_two
</system-out></testcase>
<testcase name="away" status="notrun"><skipped message="SKIP_RETURN_CODE=77"/>
<system-out>starting\nskipped: no NIC here\n</system-out></testcase>{more}</testsuite>"""
    LABELS = '{"tests": [{"name": "away", "properties": [{"name": "LABELS", "value": ["rxe"]}]}]}'

    def run_summary(self, more="", required=()):
        self.write("build-dev/results.xml", self.RESULTS.format(more=more))
        self.write("build-dev/tests.json", self.LABELS)
        out = io.StringIO()
        passed = summary.summary([os.path.join(self.root, "build-dev")], required, out)
        return passed, out.getvalue()

    def test_a_skip_is_told_with_its_reason_and_not_counted_as_passed(self):
        passed, text = self.run_summary()
        self.assertTrue(passed)
        self.assertIn("away (dev): no NIC here", text)
        self.assertIn("part_two of good (dev): no second user", text)
        self.assertTrue(text.endswith("100% tests passed, 0 tests failed out of 1; 2 skipped\n"), text)

    def test_a_rig_that_was_declared_present_may_not_be_skipped(self):
        self.assertFalse(self.run_summary(required=["rxe"])[0])
        self.assertFalse(self.run_summary(required=["unknown"])[0])

    def test_a_failure_and_a_missing_program_fail(self):
        for more in (
            '<testcase name="bad" status="fail"><failure/></testcase>',
            '<testcase name="bad" status="notrun"><skipped message="Unable to find executable"/></testcase>',
            '<testcase name="bad" status="disabled"/>',
        ):
            passed, text = self.run_summary(more)
            self.assertFalse(passed)
            self.assertIn("FAILED bad (dev)", text)
            self.assertIn("50% tests passed, 1 tests failed out of 2", text)

    def test_a_failure_is_told_with_what_the_test_said_of_it(self):
        said = "starting\nERROR: x.c:3 differs\ngoing on\nclosing\n"
        _, text = self.run_summary(f'<testcase name="bad" status="fail"><system-out>{said}</system-out></testcase>')
        self.assertIn("  FAILED bad (dev)\n    ERROR: x.c:3 differs\n\n", text)
        later = "".join(f"[ RUN      ] fails_{n}\n[       OK ] fails_{n}\nstage {n} failed\n" for n in range(20))
        _, text = self.run_summary(f'<testcase name="bad" status="fail"><system-out>{said}{later}</system-out></testcase>')
        self.assertIn("ERROR: x.c:3 differs\n    stage 0 failed\n", text)
        self.assertIn("stage 18 failed\n    stage 19 failed\n\n", text)
        self.assertNotIn("OK", text)
        _, text = self.run_summary('<testcase name="mute" status="fail"><system-out>one\ntwo\n</system-out></testcase>')
        self.assertIn("  FAILED mute (dev)\n    one\n    two\n\n", text)

    def test_a_run_that_left_no_results_fails(self):
        out = io.StringIO()
        self.assertFalse(summary.summary([os.path.join(self.root, "build-asan")], [], out))


if __name__ == "__main__":
    unittest.main()
