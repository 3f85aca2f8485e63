# SPDX-License-Identifier: Apache-2.0
"""plot.py -- draw what kv_pd_bench -J wrote: bandwidth and its floor over the block size

usage: plot.py TABLE.json PICTURE.png
"""
import json
import sys

try:
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
except ImportError:
    sys.exit("plot.py: matplotlib is not installed (package python3-matplotlib), nothing is drawn")


def size(n):
    for unit in ("", "K", "M"):
        if n < 1024 or n % 1024:
            return f"{n}{unit}"
        n //= 1024
    return f"{n}G"


def draw(table, path):
    rows = table["rows"]
    x = [row["blk_size"] for row in rows]
    figure, axes = pyplot.subplots(figsize=(8, 5))
    for field, label, style in (("gb_per_s", "kvrail, a prefill rank", "o-"),
                                ("gb_per_s_aggregate", "kvrail, all ranks", "s-"),
                                ("nt_gb_per_s", "floor: non-temporal stores", "k--"),
                                ("memcpy_gb_per_s", "floor: memcpy", "k:")):
        y = [row[field] or None for row in rows]
        if any(y):
            axes.plot(x, y, style, label=label)
    axes.set_xscale("log", base=2)
    axes.set_xticks(x, [size(n) for n in x])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("block size (bytes)")
    axes.set_ylabel("GB/s (10^9 bytes)")
    pools = "hot" if table["hot"] else "cold pools"
    axes.set_title(f"{table['prefill']} x {table['decode']}, batch {table['batch']}, {pools}, "
                   f"{table['transport']}: {table['path']}", fontsize=9)
    axes.grid(True, alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150, bbox_inches="tight")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    with open(sys.argv[1], encoding="utf-8") as file:
        draw(json.load(file), sys.argv[2])
