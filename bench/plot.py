# SPDX-License-Identifier: Apache-2.0
"""plot.py -- draw the JSON file of kv_pd_bench, kvrail bench, kv_floor, net_perf, kv_pd_replay or curves.py (README.md)

usage: plot.py RESULTS.json PICTURE       picture: what matplotlib can write, by its ending (.png, .svg, .pdf)
       plot.py --check PICTURE            whether it could be drawn, before anything is measured
       plot.py --series RESULTS.json      what would be drawn, as JSON

A line is a median, the band around it goes from the 1st to the 99th percentile. A dashed line is a ceiling: what one thread
without a transport moves. No line is drawn that lies under another by definition.
"""
import json
import sys

CEILING = "ceiling: one thread of one process copies the same blocks"


def gb_per_s(row, key):
    """Of the bytes of a row at one of its durations."""
    return row["bytes"] / row[key] / 1e3 if row[key] else None


def curve(kind, name, rows, x, y, low=None, high=None):
    """kind: line, ceiling or steps; low and high: the band. Rows without a number are left out."""
    rows = [row for row in rows if y(row) is not None]
    drawn = {"kind": kind, "name": name, "x": [row[x] for row in rows], "y": [y(row) for row in rows]}
    if low:
        drawn.update(low=[low(row) for row in rows], high=[high(row) for row in rows])
    return drawn


def panel(title, x_label, y_label, curves, x_scale="bytes"):
    return {"title": title, "x_label": x_label, "y_label": y_label, "x_scale": x_scale, "curves": [c for c in curves if c["x"]]}


def pair(told):
    settings = {"prefill": 1, "decode": 1, "pools": "cold", "calls": "one-sided"}
    return bench({**told, "settings": settings})


def bench(told):
    rows, prefill = told["rows"], told["settings"]["prefill"]
    curves = [curve("line", "kvrail, a prefill rank: median, p1 to p99", rows, "block_bytes", lambda row: gb_per_s(row, "p50_us"),
                    lambda row: gb_per_s(row, "p99_us"), lambda row: gb_per_s(row, "p1_us"))]
    if prefill > 1:  # with one they are the same
        curves.append(curve("line", f"kvrail, all {prefill} prefill ranks: bytes / time", rows, "block_bytes",
                            lambda row: row["aggregate_gb_per_s"]))
    curves.append(curve("ceiling", CEILING + ", non-temporal stores", rows, "block_bytes", lambda row: row["floor_gb_per_s"]))
    settings = told["settings"]
    title = f"{prefill} x {settings['decode']} ranks, {settings['pools']} pools, {settings['calls']}"
    return [panel(title, "block (bytes)", "GB/s (10^9 bytes)", curves)]


def floor(told):
    panels = []
    for path, until in dict.fromkeys((row["path"], row["until"]) for row in told["rows"]):
        rows = [row for row in told["rows"] if (row["path"], row["until"]) == (path, until)]
        ceiling = "ceiling: bare process_vm_writev" if path == "cma" else CEILING
        panels.append(panel(
            f"{path}, until {'the receiver has read it' if until == 'read' else 'it is written'}", "block (bytes)",
            f"GB per second of {told['settings']['clock']}",
            [curve("line", "kvrail: median, p1 to p99", rows, "block_bytes", lambda row: row["gb_per_s"],
                   lambda row: row["p1_gb_per_s"], lambda row: row["p99_gb_per_s"]),
             curve("ceiling", ceiling, rows, "block_bytes", lambda row: row["floor_gb_per_s"])]))
    return panels


def net(told):
    plugins = dict.fromkeys(row["plugin"] for row in told["rows"])
    of = {plugin: [row for row in told["rows"] if row["plugin"] == plugin] for plugin in plugins}
    return [panel("", "message (bytes)", label, [curve("line", plugin, of[plugin], "bytes", lambda row: row[key])
                                                 for plugin in plugins])
            for key, label in (("latency_us", "half a round trip (us)"), ("gb_per_s", "GB/s (10^9 bytes)"))]


def replay(told):
    rows, settings = told["rows"], told["settings"]
    sent = curve("steps", "all prefill ranks", rows, "begin_s", lambda row: row["bytes"] / row["length_s"] / 1e9)
    times = [curve("line", name, rows, "begin_s", lambda row: row[key]) for key, name in (("p50_us", "p50"), ("p99_us", "p99"))]
    title = f"{settings['model']}, {settings['prefill']} x {settings['decode']} ranks, {settings['trace_requests']} requests"
    return [panel(title, "time (s)", "GB/s sent (10^9 bytes)", [sent], "time"),
            panel("", "time (s)", "one layer of a request, acknowledged (us)", times, "time")]


def curves(told):
    panels = []
    for name in dict.fromkeys(row["curve"] for row in told["rows"]):
        rows = {t: [r for r in told["rows"] if (r["transport"], r["curve"]) == (t, name)] for t in ("ib", "shm", "tcp")}
        key, label = ("connect_ms", "ms to connect") if name == "connect" else ("ratio", "time of a block / the first point's")
        panels.append(panel("", name, label, [
            curve("line", "over softnic" if t == "ib" else t, rows[t], "at", lambda row: row[key]) for t in rows if rows[t]], "count"))
    return panels


PROGRAMS = {"curves.py": curves, "kv_pd_bench": bench, "kvrail bench": pair, "kv_floor": floor, "net_perf": net, "kv_pd_replay": replay}


def series(told):
    """What is drawn: a title, and panels with curves."""
    where = told["path"] or "each path that is named"
    network = f"{told['transport']}: {where}" if told["transport"] else "as the plugin chooses"
    return {"title": f"{told['program']}, {network}\n{told['host']} ({told['cpu']}), {told['date'][:10]}, commit {told['commit']}",
            "panels": PROGRAMS[told["program"]](told)}


def size(n):
    for unit in ("", "K", "M"):
        if n < 1024 or n % 1024:
            return f"{n}{unit}"
        n //= 1024
    return f"{n}G"


def pyplot_or_exit():
    try:
        import matplotlib
    except ImportError:
        sys.exit("plot.py: matplotlib is not installed (package python3-matplotlib)")
    matplotlib.use("Agg")
    from matplotlib import pyplot
    return pyplot


def draw(drawn):
    """A figure of matplotlib with what series() says."""
    panels = drawn["panels"]
    figure, grid = pyplot_or_exit().subplots(len(panels), figsize=(8, 1 + 3.6 * len(panels)), squeeze=False)
    figure.suptitle(drawn["title"], fontsize=9)
    for axes, one in zip(grid[:, 0], panels):
        for c in one["curves"]:
            style = {"line": {"marker": "o", "markersize": 4}, "ceiling": {"linestyle": "--", "color": "black"},
                     "steps": {"drawstyle": "steps-post"}}[c["kind"]]
            line, = axes.plot(c["x"], c["y"], label=c["name"], **style)
            if "low" in c:
                axes.fill_between(c["x"], c["low"], c["high"], color=line.get_color(), alpha=0.2, linewidth=0)
        if one["x_scale"] == "bytes":
            ticks = sorted({x for c in one["curves"] for x in c["x"]})
            axes.set_xscale("log", base=2)
            axes.set_xticks(ticks, [size(n) for n in ticks], fontsize=8)
        elif one["x_scale"] == "count":
            axes.set_xscale("symlog", linthresh=1)
        axes.set_ylim(bottom=0)
        axes.set_title(one["title"], fontsize=9)
        axes.set_xlabel(one["x_label"])
        axes.set_ylabel(one["y_label"])
        axes.grid(True, alpha=0.3)
        if one["curves"]:
            axes.legend(fontsize=8)
    figure.tight_layout()
    return figure


def check(picture):
    ending = picture.rpartition(".")[2]
    known = pyplot_or_exit().figure().canvas.get_supported_filetypes()
    if ending not in known:
        sys.exit(f"plot.py: {picture}: matplotlib writes {', '.join(sorted(known))}, and not {ending}")


def read(path):
    with open(path, encoding="utf-8") as file:
        told = json.load(file)
    if told.get("program") not in PROGRAMS:
        sys.exit(f"plot.py: {path} is not of {', '.join(PROGRAMS)}")
    return told


def main(words):
    if len(words) != 2:
        sys.exit(__doc__)
    if words[0] == "--check":
        check(words[1])
    elif words[0] == "--series":
        json.dump(series(read(words[1])), sys.stdout, indent=1)
    else:
        draw(series(read(words[0]))).savefig(words[1], dpi=150)


if __name__ == "__main__":
    main(sys.argv[1:])
