# SPDX-License-Identifier: Apache-2.0
"""upstream.py -- NIXL's own Python tests pass with the backend KVRAIL

usage: upstream.py PLUGIN [--json FILE]

They are taken from the git repository that KVRAIL_NIXL_SOURCE names, those of each revision in KVRAIL_NIXL_REVISION (HEAD); or fetched
once, as NIXL released them, and kept in the user's cache folder. One of them names UCX; its copy names KVRAIL. NIXL counts whole
microseconds, of which a post of ours may take none: the copies allow it. Without torch the test that makes a tensor is left out.
"""
import argparse
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request

import wheels

sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "docs"))
import figures  # noqa: E402

RELEASE = "v1.4.0"
SOURCE = "https://raw.githubusercontent.com/ai-dynamo/nixl/{release}/test/python/{name}"
FILES = ("conftest.py", "test_nixl_api.py", "test_nixl_bindings.py")
EDITS = (('createBackend("UCX"', 'createBackend("KVRAIL"'), ("telem.postDuration > 0", "telem.postDuration >= 0"))
PASS = 22  # at least: fewer is a test that was lost on the way
NEEDS_TORCH = "test_noncontiguous_tensor"
STAND_IN = """class Tensor: pass
class cuda: device_count = staticmethod(lambda: 0)
"""
RUN_S = 400
# NIXL's wheel crashes in its libnl when the process ends, with UCX as well: what the tests said counts.
RUN = "import os, sys, pytest; code = pytest.main(sys.argv[1:]); sys.stdout.flush(); os._exit(code)"


def fetch(name):
    kept = os.path.join(wheels.cache_folder("nixl"), f"tests-{RELEASE}", name)
    if not os.path.exists(kept):
        url = SOURCE.format(release=RELEASE, name=name)
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                text = answer.read()
        except (urllib.error.URLError, OSError) as error:
            raise wheels.Unavailable(f"{url}: {error}; KVRAIL_NIXL_SOURCE can name a checkout of NIXL") from error
        os.makedirs(os.path.dirname(kept), exist_ok=True)
        with open(kept + ".part", "wb") as file:
            file.write(text)
        os.rename(kept + ".part", kept)
    return kept


def git(*words):
    return subprocess.run(["git", "-C", os.environ["KVRAIL_NIXL_SOURCE"], *words], stdout=subprocess.PIPE, text=True, check=True).stdout


def read(name, revision):
    if revision:
        return git("show", f"{revision}:test/python/{name}")
    with open(fetch(name), encoding="utf-8") as file:
        return file.read()


def copy_tests(folder, revision):
    for name in FILES:
        text = read(name, revision)
        with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
            for theirs, ours in EDITS:
                text = text.replace(theirs, ours)
            file.write(text)


def run(plugin, revision):
    """What pytest printed, or None: a test failed, or is missing."""
    with tempfile.TemporaryDirectory(prefix="kvrail-nixl-") as folder:
        copy_tests(folder, revision)
        path = [wheels.site_with(plugin, os.path.join(folder, "site")), wheels.pytest_packages(), folder, os.environ.get("PYTHONPATH", "")]
        options = ["--backend", "KVRAIL", "-W", "ignore::pytest.PytestUnknownMarkWarning"]
        if not importlib.util.find_spec("torch"):
            with open(os.path.join(folder, "torch.py"), "w", encoding="utf-8") as file:
                file.write(STAND_IN)
            options += ["-k", f"not {NEEDS_TORCH}"]
            print(f"note: torch is not installed: {NEEDS_TORCH} is left out")
        command = [sys.executable, "-c", RUN, "-q", "-rs", "-p", "no:cacheprovider", *options, *FILES[1:]]
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path)), "KVCACHE_AGENT_ADDRESS": "127.0.0.1"}
        done = subprocess.run(command, cwd=folder, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=RUN_S)
    print(done.stdout)
    passed = re.search(r"(\d+) passed", done.stdout)
    return done.stdout if not done.returncode and passed and int(passed[1]) >= PASS else None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plugin", metavar="PLUGIN")
    parser.add_argument("--json", metavar="FILE")
    asked = parser.parse_args()
    revisions = os.environ.get("KVRAIL_NIXL_REVISION", "HEAD").split() if "KVRAIL_NIXL_SOURCE" in os.environ else [None]
    said = {}
    for revision in revisions:
        try:
            told = run(os.path.abspath(asked.plugin), revision)
        except wheels.Unavailable as error:
            wheels.skip(error)
        if told is None:
            sys.exit(1)
        reasons = re.findall(r"SKIPPED \[\d+\] \S+ (.*)", told)
        skipped = [f"{reasons.count(why)} skipped ({why})" for why in dict.fromkeys(reasons)]
        name = git("rev-parse", "--short", revision).strip() if revision else RELEASE
        said[f"NIXL {wheels.VERSION}: its {' and '.join(FILES[1:])} of {name}"] = "; ".join([re.search(r"\d+ passed", told)[0], *skipped])
    if asked.json:
        figures.store(asked.json, "tests/nixl/upstream.py libplugin_KVRAIL.so", said)


if __name__ == "__main__":
    main()
