#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""bench_test.py -- the JSON files are as README.md says, a path that cannot be written is known at once, plots show the rows

usage: bench_test.py BUILD mpi|local [unittest arguments]
"""
import glob
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import plot  # noqa: E402
import results  # noqa: E402

BUILD = os.path.abspath(sys.argv[1])
TREE = os.path.dirname(HERE)
TRACE = TREE + "/mpi_tests/traces/conversation-300.jsonl"
BENCH = [BUILD + "/bench/kv_pd_bench", "-b", "1K", "-e", "4K", "-f", "4", "-n", "100", "--pool", "8M", "-i", "8", "-w", "2"]
REPLAY = [BUILD + "/mpi_tests/kv_pd_replay", "--local", "2+1", "--requests", "20", "--scale", "32", "--layers", "2", "--pool", "16M"]
FLOOR = [BUILD + "/bench/kv_floor", "--quick", "--sizes", "4K"]
NET = [BUILD + "/bench/net_perf", "-b", "4096", "-e", "4096"]
PLUGIN = BUILD + "/net_plugin/libnccl-net-kvrail.so"
PROGRAMS = {"kv_pd_bench": (BENCH + ["--local", "1+1"], []), "kv_floor": (FLOOR, []), "net_perf": (NET, [PLUGIN]),
            "kv_pd_replay": (REPLAY, [TRACE])}
ENVIRONMENT = {**os.environ, "NCCL_SOCKET_IFNAME": "lo", "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
               "OMPI_MCA_rmaps_base_oversubscribe": "1", "OMPI_MCA_plm_rsh_agent": ""}
NOWHERE = "/nonexistent/folder/file"
made = {}


def run(*words, **more):
    return subprocess.run(words, env={**ENVIRONMENT, **more}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          timeout=150, check=False)


def told(program, *options):
    """What the program writes with these options."""
    if (program, options) not in made:
        with tempfile.TemporaryDirectory() as folder:
            before, after = PROGRAMS[program]
            done = run(*before, *options, "-J", folder + "/told.json", *after)
            if done.returncode:
                raise AssertionError(f"{program}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
            with open(folder + "/told.json", encoding="utf-8") as file:
                made[program, options] = json.load(file)
    return made[program, options]


def leave_out(case, why):
    print(f"skipped: {why}", file=sys.stderr)
    case.skipTest(why)


class Files(unittest.TestCase):
    def check(self, name, what):
        fields = results.documented()
        head = fields["The JSON files"]
        self.assertEqual([key for key in what if key in head], head, name)
        self.assertRegex(what["date"], r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$" if what["host"] else r"^\d{4}-\d\d-\d\d$")
        for key in ("transport", "path", "wait"):
            self.assertIsInstance(what[key], (str, type(None)), f"{name}: {key}")
        self.assertTrue(what["rows"], name)
        for row in what["rows"]:
            self.assertEqual(list(row), fields[what["program"]], name)
            for key, value in row.items():
                for one in value if isinstance(value, list) else [value]:
                    self.assertIsInstance(one, (int, float, str, type(None)), f"{name}: {key}")

    def test_each_program_writes_the_documented_fields(self):
        for name in PROGRAMS:
            what = told(name)
            self.check(name, what)
            self.assertEqual(what["program"], name)
            self.assertTrue(all(what[key] for key in ("commit", "host", "cpu")), name)
            self.assertIn(f"NCCL_SOCKET_IFNAME=lo {name} ", what["command"])

    def test_what_is_stored_has_them_too(self):
        for path in glob.glob(HERE + "/stored/*.json"):
            with open(path, encoding="utf-8") as file:
                self.check(path, json.load(file))


class Paths(unittest.TestCase):
    def refused(self, *words, why="cannot be written: No such file or directory"):
        done = run(*words)
        self.assertNotEqual(done.returncode, 0, words)
        self.assertIn(why, done.stderr)
        self.assertEqual(done.stderr.count("cannot be written"), 1, done.stderr)
        self.assertEqual(done.stdout, "", "something was measured")

    def test_a_path_that_cannot_be_written_is_refused_before_anything_is_measured(self):
        for before, after in PROGRAMS.values():
            self.refused(*before, "-J", NOWHERE, *after)
        self.refused(*BENCH, "--local", "2+1", "--plot", NOWHERE + ".png")
        self.refused(*REPLAY, "--plot", NOWHERE + ".png", TRACE)
        self.refused(*BENCH, "--local", "1+1", "-J", HERE, why="cannot be written: Is a directory")

    def test_a_run_that_failed_draws_nothing(self):
        if importlib.util.find_spec("matplotlib") is None:
            leave_out(self, "matplotlib is not installed (package python3-matplotlib)")
        with tempfile.TemporaryDirectory() as folder:
            picture = folder + "/picture.png"
            self.assertEqual(run(*BENCH, "--local", "1+1", "--plot", picture).returncode, 0)
            self.assertTrue(os.path.getsize(picture))
            os.unlink(picture)
            done = run(*BENCH, "--local", "1+1", "--corrupt", "--plot", picture)  # the file of the run before is there
            self.assertEqual(done.returncode, 1)
            self.assertFalse(os.path.exists(picture))

    def test_a_picture_that_cannot_be_drawn_is_refused_before_anything_is_measured(self):
        with tempfile.TemporaryDirectory() as folder:
            done = run(*BENCH, "--local", "1+1", "--plot", folder + "/picture.text")
            self.assertNotEqual(done.returncode, 0)
            self.assertRegex(done.stderr, "matplotlib (is not installed|writes .*, and not text)")
            self.assertEqual(done.stdout, "")
            self.assertEqual(os.listdir(folder), [])

    def test_only_the_first_rank_writes(self):
        if sys.argv[2] != "mpi":
            leave_out(self, "built without MPI")
        with tempfile.TemporaryDirectory() as folder:
            good = folder + "/told.json"
            done = run("mpirun", "-np", "1", *BENCH, "-J", good, ":", "-np", "1", *BENCH, "-J", NOWHERE, ASAN_OPTIONS="detect_leaks=0")
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
            self.assertTrue(os.path.getsize(good))
            done = run("mpirun", "-np", "1", *BENCH, "-J", NOWHERE, ":", "-np", "1", *BENCH, "-J", good, ASAN_OPTIONS="detect_leaks=0")
            self.assertNotEqual(done.returncode, 0)
            self.assertEqual(done.stderr.count("cannot be written"), 1, done.stderr)
            self.assertNotIn("blk_size", done.stdout)


class Plots(unittest.TestCase):
    def test_one_pair_has_one_line_and_its_ceiling(self):
        what = told("kv_pd_bench")
        drawn = plot.series(what)
        (panel,) = drawn["panels"]
        line, ceiling = panel["curves"]
        self.assertEqual((line["kind"], ceiling["kind"]), ("line", "ceiling"))
        self.assertIn("ceiling: one thread", ceiling["name"])
        self.assertEqual(line["x"], [row["block_bytes"] for row in what["rows"]])
        for i, row in enumerate(what["rows"]):
            self.assertAlmostEqual(line["y"][i] / ceiling["y"][i], row["ratio"], delta=1e-4 * row["ratio"])
            self.assertLessEqual(line["low"][i], line["y"][i])
            self.assertLessEqual(line["y"][i], line["high"][i])
        for key in "host", "commit", "transport", "path":
            self.assertIn(what[key], drawn["title"])
        self.assertIn(what["date"][:10], drawn["title"])

    def test_several_prefill_ranks_have_a_line_together(self):
        (panel,) = plot.series(told("kv_pd_bench", "--local", "2+1"))["panels"]
        self.assertEqual([curve["kind"] for curve in panel["curves"]], ["line", "line", "ceiling"])
        self.assertIn("all 2 prefill ranks", panel["curves"][1]["name"])

    def test_the_replay_is_drawn_over_time(self):
        what = told("kv_pd_replay")
        sent, times = plot.series(what)["panels"]
        (steps,) = sent["curves"]
        length = what["rows"][0]["length_s"]
        self.assertAlmostEqual(sum(steps["y"]) * length * 1e9, what["total"]["bytes"], delta=1e-4 * what["total"]["bytes"])
        p50, p99 = times["curves"]
        self.assertEqual(p99["y"], [row["p99_us"] for row in what["rows"] if row["operations"]])
        self.assertTrue(all(a <= b for a, b in zip(p50["y"], p99["y"])))

    def test_each_program_can_be_drawn(self):
        for name in PROGRAMS:
            drawn = plot.series(told(name))
            self.assertTrue(all(panel["curves"] for panel in drawn["panels"]), name)
            names = [(panel["title"], panel["y_label"], curve["name"]) for panel in drawn["panels"] for curve in panel["curves"]]
            self.assertEqual(len(names), len(set(names)), name)

    def test_what_is_drawn_is_the_series(self):
        if importlib.util.find_spec("matplotlib") is None:
            leave_out(self, "matplotlib is not installed (package python3-matplotlib)")
        for name in PROGRAMS:
            drawn = plot.series(told(name))
            figure = plot.draw(drawn)
            for axes, panel in zip(figure.axes, drawn["panels"]):
                self.assertEqual([line.get_label() for line in axes.get_lines()], [curve["name"] for curve in panel["curves"]])
                for line, curve in zip(axes.get_lines(), panel["curves"]):
                    self.assertEqual((list(line.get_xdata()), list(line.get_ydata())), (curve["x"], curve["y"]))
                self.assertEqual(len(axes.collections), sum("low" in curve for curve in panel["curves"]))


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]], verbosity=2)
