# SPDX-License-Identifier: Apache-2.0
"""manifests.py -- deploy/kubernetes.yml and compose.yml are what Kubernetes and compose take, and their commands work

usage: manifests.py ROOT KVRAIL FOLDER

The schemas are those of Kubernetes itself, out of PyPI's kubernetes-validate (fetched once, kept in the user's cache), strict, of its
newest version and of OLDEST; and compose's, out of Debian's docker-compose, unpacked in FOLDER. The commands run here, over loopback.
"""
import glob
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile

from debian import skip, unpacked

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "nccl"))
from library import Unavailable, cache_folder, fetch  # noqa: E402

try:
    import jsonschema
    import yaml
except ImportError as error:
    skip(f"{error} (Debian: python3-jsonschema, python3-yaml)")

WHEEL = "kubernetes-validate==1.37.0"
OLDEST = "1.28.0"
LIMIT_S = 100


def kubernetes_schemas():
    kept = os.path.join(cache_folder("kubernetes"), WHEEL + ".whl")
    if not os.path.exists(kept):
        os.makedirs(cache_folder("kubernetes"), exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache_folder("kubernetes")) as folder:
            fetch(folder, [WHEEL])
            os.rename(glob.glob(os.path.join(folder, "*.whl"))[0], kept)
    return zipfile.ZipFile(kept)


def check_kubernetes(documents, wheel):
    for version in (OLDEST, WHEEL.split("=")[-1]):
        folder = f"kubernetes_validate/kubernetes-json-schema/v{version}-local-strict"
        definitions = json.loads(wheel.read(f"{folder}/_definitions.json"))
        for document in documents:
            group = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", document["apiVersion"])
            schema = json.loads(wheel.read(f"{folder}/{document['kind'].lower()}-{group}.json"))
            resolver = jsonschema.RefResolver("", schema, store={"_definitions.json": definitions})
            validator = jsonschema.Draft7Validator(schema, resolver=resolver)
            validator.validate(document)
            assert not validator.is_valid({**document, "spec": {**document["spec"], "no such member": 1}})


def check_pods(documents):
    """What each pod is an example of."""
    pods = [document["spec"]["template"]["spec"] for document in documents if document["kind"] in ("Deployment", "Job")]
    for pod in pods:
        doctor, main = pod["initContainers"][0], pod["containers"][0]
        assert doctor["args"] == ["doctor"], doctor
        for key in "image", "securityContext", "resources":
            assert doctor[key] == main[key], f"the doctor does not see the {key} that {main['name']} has"
        assert main["securityContext"]["capabilities"]["add"] == ["IPC_LOCK"]
        assert any(name.startswith("rdma/") for name in main["resources"]["limits"])
    assert "hugepages-2Mi" in pods[0]["containers"][0]["resources"]["limits"]
    return [pod["containers"][0]["args"] for pod in pods]


def run(kvrail, decode, prefill):
    """Both commands, with addresses of loopback, a free port and small blocks in place of theirs."""
    decode = [word.replace("0.0.0.0", "127.0.0.1:0") for word in decode if word != "--keep"]
    side = subprocess.Popen([kvrail, *decode], stdout=subprocess.PIPE, text=True)
    try:
        target = side.stdout.readline().split()[-1]
        assert prefill[:1] == ["bench"], prefill
        subprocess.run([kvrail, "bench", target, *prefill[2:], "-e", "4K"], check=True, timeout=LIMIT_S, stdout=subprocess.DEVNULL)
        assert "0 wrong bytes: OK" in side.communicate(timeout=LIMIT_S)[0]
    finally:
        side.kill()
        side.wait()


def main(root, kvrail, folder):
    with open(f"{root}/deploy/kubernetes.yml", encoding="utf-8") as file:
        documents = list(yaml.safe_load_all(file))
    with open(f"{root}/deploy/compose.yml", encoding="utf-8") as file:
        compose = yaml.safe_load(file)
    run(kvrail, *check_pods(documents))
    run(kvrail, *(compose["services"][name]["command"] for name in ("decode", "prefill")))
    path = "usr/lib/python3/dist-packages/compose/config/compose_spec.json"
    with open(os.path.join(unpacked(folder, path, ["docker-compose"]), path), encoding="utf-8") as file:
        jsonschema.validate(compose, json.load(file))
    try:
        check_kubernetes(documents, kubernetes_schemas())
    except (Unavailable, OSError, zipfile.BadZipFile) as error:
        skip(f"the schemas of Kubernetes: {error}; compose.yml and the commands are right")
    print(f"kubernetes.yml is right for {OLDEST} and by {WHEEL}; compose.yml, too, and their commands work")


if __name__ == "__main__":
    main(*sys.argv[1:])
