# SPDX-License-Identifier: Apache-2.0
"""prometheus_test.py -- a real Prometheus, with node_exporter, reads the metrics of two processes, one of which is killed, and of a replay

usage: prometheus_test.py ROOT FOLDER [KV_PD_REPLAY]        by the Python that has the package kvrail; FOLDER keeps Debian's programs

Both read the same numbers as the engine's own stats(), and sums over the ranks of a replay are those of its own table; promtool finds
nothing in the text, the rules or the settings; the alert of a lost peer fires, of a replay's killed rank too. Nothing is installed: the
packages are unpacked into FOLDER.
"""
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from ports import held_port  # noqa: E402

PACKAGES = ("prometheus", "prometheus-node-exporter")
LIMIT_S = 400  # for what surely comes, on whatever machine
LINGER_S = 20  # the files are written every 5 s, and read every second
WRITES, READS, BLOCKS = 50, 20, 7


def skip(why):
    print(f"skipped: {why}")
    sys.exit(77)


def programs(folder):
    """{name: path} of Debian's programs, from PATH or unpacked here."""
    names = ("prometheus", "promtool", "prometheus-node-exporter")
    if all(shutil.which(name) for name in names):
        return {name: shutil.which(name) for name in names}
    root = os.path.join(folder, "debian")
    if not os.path.exists(os.path.join(root, "usr", "bin", "promtool")):
        if not shutil.which("apt-get"):
            skip("there is neither Prometheus nor apt-get")
        os.makedirs(root, exist_ok=True)
        subprocess.run(["apt-get", "update", "-q"], cwd=folder, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        done = subprocess.run(["apt-get", "download", "-q", *PACKAGES], cwd=folder, check=False, text=True, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT)
        if done.returncode:
            skip(f"apt-get download {' '.join(PACKAGES)}: {done.stdout.strip()[-200:]}")
        for name in os.listdir(folder):
            if name.endswith(".deb"):
                subprocess.run(["dpkg", "-x", name, root], cwd=folder, check=True)
    return {name: os.path.join(root, "usr", "bin", name) for name in names}


def check_rules(promtool, rules, folder):
    """A cause that was never counted before has a series that begins at 1, of which increase() sees nothing."""
    lost = {"engine": "e", "cause": "TIMEOUT"}
    series = "kvrail_peers_lost_total{" + ",".join(f'{name}="{value}"' for name, value in lost.items()) + "}"
    fires = {"exp_labels": {**lost, "severity": "warning"}, "exp_annotations": {"summary": "e lost a peer: TIMEOUT"}}
    path = os.path.join(folder, "rules-test.yml")
    with open(path, "w", encoding="utf-8") as file:  # JSON is YAML
        json.dump({"rule_files": [rules], "tests": [{
            "interval": "1m", "input_series": [{"series": series, "values": "_x3 1x20"}],
            "alert_rule_test": [{"eval_time": "5m", "alertname": "KvrailPeerLost", "exp_alerts": [fires]},
                                {"eval_time": "15m", "alertname": "KvrailPeerLost", "exp_alerts": []}]}]}, file)
    subprocess.run([promtool, "test", "rules", path], check=True)


def get(url):
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read().decode()


def until(what, ready):
    """The first answer of `ready` that is not None; what() says what was awaited, and what there is instead."""
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        try:
            found = ready()
        except OSError:
            found = None
        if found is not None:
            return found
        time.sleep(0.2)
    sys.exit(f"not in {LIMIT_S} s: {what()}")


class Prometheus:
    def __init__(self, path, folder, targets, rules):
        self.port = held_port()
        config = os.path.join(folder, "prometheus.yml")
        jobs = [{"job_name": name, "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]} for name, port in targets.items()]
        with open(config, "w", encoding="utf-8") as file:  # JSON is YAML
            json.dump({"global": {"scrape_interval": "1s", "evaluation_interval": "1s"}, "rule_files": [rules],
                       "scrape_configs": jobs}, file)
        self.config = config
        self.process = subprocess.Popen(
            [path, f"--config.file={config}", f"--storage.tsdb.path={folder}/data", f"--web.listen-address=127.0.0.1:{self.port}"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def ask(self, query):
        """The one number that the query gives, or None."""
        url = f"http://127.0.0.1:{self.port}/api/v1/query?" + urllib.parse.urlencode({"query": query})
        result = json.loads(get(url))["data"]["result"]
        return float(result[0]["value"][1]) if result else None

    def expect(self, query, want):
        until(lambda: f"{query} == {want}; it is {self.ask(query)}", lambda: True if self.ask(query) == want else None)
        print(f"{query}: {want:g}")


RECEIVER = """
import sys, time
import numpy as np
import kvrail
engine = kvrail.Engine()
engine.register({"k": np.zeros((2, 32, 1024), np.uint8)}, open=True, readable=True)
print(engine.listen("127.0.0.1"), flush=True)
sys.stdin.read()
"""


def run(prometheus, folder, port, receiver):
    import kvrail
    import numpy as np
    engine = kvrail.Engine(options={"KVCACHE_METRICS_PORT": str(port)})
    cache = engine.register({"k": np.zeros((2, 32, 1024), np.uint8)}, open=True)
    peer = engine.connect("127.0.0.1", int(receiver.stdout.readline()))
    for _ in range(WRITES):
        peer.write_blocks(cache, list(range(BLOCKS)), list(range(BLOCKS)))
    for _ in range(READS):
        peer.read_blocks(cache, list(range(BLOCKS)), list(range(BLOCKS)))
    stats = engine.stats()
    assert stats["bytes_out"] == WRITES * BLOCKS * 2 * 1024, stats
    # The writer's port and file, the receiver's file: what one end sent the other one has.
    prometheus.expect('sum(kvrail_bytes_total{job="kvrail",direction="out"})', stats["bytes_out"])
    prometheus.expect('sum(kvrail_operations_total{job="kvrail",kind="write",result="OK"})', WRITES)
    prometheus.expect('sum(kvrail_bytes_total{job="kvrail",direction="read"})', READS * BLOCKS * 2 * 1024)
    prometheus.expect('sum(kvrail_blocks_total{job="kvrail",direction="read"})', READS * BLOCKS)
    prometheus.expect('sum(kvrail_bytes_total{job="node",direction="out"})', stats["bytes_out"])
    prometheus.expect('sum(kvrail_bytes_total{job="node",direction="in"})', stats["bytes_out"])
    prometheus.expect('sum(kvrail_operation_seconds_count{job="kvrail",kind="write"})', WRITES)
    text = get(f"http://127.0.0.1:{port}/metrics")
    receiver.kill()
    prometheus.expect('sum(kvrail_peers_lost_total{job="kvrail",cause="PEER_LOST"})', 1)
    prometheus.expect('count(ALERTS{job="kvrail",alertname="KvrailPeerLost",alertstate="firing"})', 1)
    engine.close()
    left = [name for name in os.listdir(folder) if str(os.getpid()) in name]
    assert not left, left
    return text


def start_replay(program, root, metrics, *options):
    for name in os.listdir(metrics):
        os.remove(os.path.join(metrics, name))
    return subprocess.Popen(
        [program, "--local", "2+1", "--layers", "4", "--scale", "16", "--requests", "60", "--pool", "64M", *options,
         os.path.join(root, "mpi_tests", "traces", "conversation-300.jsonl")],
        env={**os.environ, "KVCACHE_METRICS_DIR": metrics}, stdout=subprocess.DEVNULL, start_new_session=True)


def stop(process):
    """With all of its ranks."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run_replay(prometheus, program, root, work, metrics):
    """A rank's file is there until it closes, so the ranks stay after their last byte. Orders go the other way, and are not in the table."""
    table = os.path.join(work, "replay.json")
    assert start_replay(program, root, metrics, "--json", table, "--linger", str(LINGER_S)).wait() == 0
    with open(table, encoding="utf-8") as file:
        total = json.load(file)["total"]
    for want, series in ((total["bytes"], 'kvrail_bytes_total{job="replay",direction="out",engine=~"prefill.*"}'),
                         (total["bytes"], 'kvrail_bytes_total{job="replay",direction="in",engine=~"decode.*"}'),
                         (total["operations"], 'kvrail_operations_total{job="replay",kind="send",result="OK"}')):
        prometheus.expect(f"sum(max_over_time({series}[10m]))", want)
    job = start_replay(program, root, metrics, "--linger", "600", "--kill", "0@20", "--restart")
    try:
        prometheus.expect('sum(kvrail_peers_lost_total{job="replay",cause="PEER_LOST"})', 1)
        prometheus.expect('count(ALERTS{job="replay",alertname="KvrailPeerLost",alertstate="firing"})', 1)
        # The file of the killed process is still there, and what its successor says is seen beside it.
        prometheus.expect('count(kvrail_peers{job="replay",engine="prefill-0"})', 2)
    finally:
        stop(job)


def main():
    root, folder = os.path.abspath(sys.argv[1]), os.path.abspath(sys.argv[2])
    rules = os.path.join(root, "docs", "kvrail-alerts.yml")
    found = programs(folder)
    with tempfile.TemporaryDirectory() as work:
        metrics, job_metrics = os.path.join(work, "metrics"), os.path.join(work, "job")
        os.mkdir(metrics)
        os.mkdir(job_metrics)
        os.environ["KVCACHE_METRICS_DIR"] = metrics
        node, replay, port = held_port(), held_port(), held_port()
        receiver = subprocess.Popen([sys.executable, "-c", RECEIVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        exporters = [subprocess.Popen(
            [found["prometheus-node-exporter"], "--collector.disable-defaults", "--collector.textfile",
             f"--collector.textfile.directory={directory}", f"--web.listen-address=127.0.0.1:{at}"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for directory, at in ((metrics, node), (job_metrics, replay))]
        prometheus = Prometheus(found["prometheus"], work, {"kvrail": port, "node": node, "replay": replay}, rules)
        try:
            until(lambda: "Prometheus is ready", lambda: get(f"http://127.0.0.1:{prometheus.port}/-/ready"))
            check_rules(found["promtool"], rules, work)
            text = run(prometheus, metrics, port, receiver)
            subprocess.run([found["promtool"], "check", "metrics"], input=text, text=True, check=True)
            subprocess.run([found["promtool"], "check", "config", prometheus.config], check=True)
            for program in sys.argv[3:]:
                run_replay(prometheus, program, root, work, job_metrics)
        finally:
            for process in (receiver, *exporters, prometheus.process):
                process.kill()
                process.wait()


if __name__ == "__main__":
    main()
