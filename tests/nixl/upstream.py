# SPDX-License-Identifier: Apache-2.0
"""upstream.py -- NIXL's own Python tests pass with the backend KVRAIL

usage: upstream.py PLUGIN

They are taken from the checkout of NIXL that KVRAIL_NIXL_SOURCE names, or fetched once, as NIXL released them, and kept in the user's
cache folder. One of them names UCX; its copy names KVRAIL. NIXL counts whole microseconds, of which a post of ours may take none: the
copies allow it. Without torch the test that makes a tensor is left out.
"""
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request

import wheels

RELEASE = "v1.4.0"
SOURCE = "https://raw.githubusercontent.com/ai-dynamo/nixl/{release}/test/python/{name}"
FILES = ("conftest.py", "test_nixl_api.py", "test_nixl_bindings.py")
EDITS = (('createBackend("UCX"', 'createBackend("KVRAIL"'), ("telem.postDuration > 0", "telem.postDuration >= 0"))
PASS = 22  # at least: fewer is a test that was lost on the way
NEEDS_TORCH = "test_noncontiguous_tensor"
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


def copy_tests(folder):
    checkout = os.environ.get("KVRAIL_NIXL_SOURCE")
    for name in FILES:
        with open(os.path.join(checkout, "test", "python", name) if checkout else fetch(name), encoding="utf-8") as file:
            text = file.read()
        with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
            for theirs, ours in EDITS:
                text = text.replace(theirs, ours)
            file.write(text)


def main():
    plugin = os.path.abspath(sys.argv[1])
    with tempfile.TemporaryDirectory(prefix="kvrail-nixl-") as folder:
        try:
            copy_tests(folder)
            path = [wheels.site_with(plugin, os.path.join(folder, "site")), wheels.pytest_packages()]
        except wheels.Unavailable as error:
            wheels.skip(error)
        options = ["--backend", "KVRAIL", "-W", "ignore::pytest.PytestUnknownMarkWarning"]
        if not importlib.util.find_spec("torch"):
            with open(os.path.join(folder, "torch.py"), "w", encoding="utf-8") as file:
                file.write("class Tensor: pass\n")
            options += ["-k", f"not {NEEDS_TORCH}"]
            print(f"note: torch is not installed: {NEEDS_TORCH} is left out")
        command = [sys.executable, "-c", RUN, "-q", "-rs", "-p", "no:cacheprovider", *options, *FILES[1:]]
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join([*path, folder]), "KVCACHE_AGENT_ADDRESS": "127.0.0.1"}
        run = subprocess.run(command, cwd=folder, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=RUN_S)
    print(run.stdout)
    passed = re.search(r"(\d+) passed", run.stdout)
    sys.exit(run.returncode or not passed or int(passed[1]) < PASS)


if __name__ == "__main__":
    main()
