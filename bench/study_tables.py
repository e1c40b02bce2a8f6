#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes tables and pictures of docs/routing.md and docs/performance.md from bench/results: what
stands between "<!-- begin NAME -->" and "<!-- end NAME -->" is replaced. bench/figures.sh runs it:

    bench/study_tables.py bench/results PAGE...
"""

import json
import math
import pathlib
import re
import sys

DEVICES = (("h100", "H100"), ("h200", "H200"))
SWEEPS = [f"routes_{name}" for name in ("serving", "16", "shared", "glm5", "128", "cache")]


def load(results, device, name):
    path = results / device / (name + ".json")
    return json.loads(path.read_text()) if path.exists() else None


def batch_of(row):
    return re.search(r"batch=(\S+)", row["problem"]).group(1)


def short(batch):
    """Lengths of a batch in k where they are."""
    return re.sub(
        r"\d+",
        lambda m: f"{int(m[0]) // 1024}k" if int(m[0]) >= 1024 and int(m[0]) % 1024 == 0 else m[0],
        batch,
    )


def problems(data):
    """{problem: {route: row}} in order."""
    out = {}
    for row in data["results"] if data else []:
        out.setdefault(row["problem"], {})[row["route"]] = row
    return out


def us(value):
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def table(head, rows):
    if not rows:
        return ["No data."]
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    return lines + ["| " + " | ".join(str(c) for c in row) + " |" for row in rows]


def crossing(points):
    """Length from which the second time of (length, a, b) is below the first for good, or None."""
    found = last = None
    for x, masked, sparse in sorted(points):
        now = math.log(sparse / masked)
        if now >= 0:
            found = None
        elif found is None:
            found = x
            if last and last[1] > 0:
                found = math.exp(
                    math.log(last[0]) + math.log(x / last[0]) * last[1] / (last[1] - now)
                )
        last = (x, now)
    return found


def ranges(results):
    out = []
    for device, name in DEVICES:
        paths = [results / device / f"{step}.txt" for step in ("tune", "tune_fp8")]
        lines = [x for p in paths if p.exists() for x in p.read_text().splitlines()]
        rows = [line.split() for line in lines if line[:1].isalpha()]
        rows = [r for r in rows if len(r) == 8 and r[1].isdigit()]
        if rows:
            out += [f"{name}:", ""]
            out += table(
                [
                    "model",
                    "heads",
                    "cache",
                    "no keys before",
                    "behind 4k",
                    "behind 16k",
                    "behind 64k",
                ],
                [[r[0], r[1], r[3]] + [c.replace("-", " to ") for c in r[4:]] for r in rows],
            )
            out.append("")
    return out[:-1] if out else table((), ())


def crossings(results):
    rows = []
    for device, name in DEVICES:
        sets = {}
        for source in ("routes_16", "routes_128", "routes_cache", "routes_glm5"):
            for routes in problems(load(results, device, source)).values():
                if "masked-mha" not in routes or "sparse-mqa" not in routes:
                    continue
                r = routes["masked-mha"]
                if r["requests"] == 1 and r["keys"] == r["query_tokens"]:
                    model = "glm-5" if " v=256 " in r["problem"] else "deepseek-v3.2"
                    key = (model, r["cache"], r["fill"], r["heads"])
                    sets.setdefault(key, {})[r["query_tokens"]] = (
                        r["median_us"],
                        routes["sparse-mqa"]["median_us"],
                    )
        for (model, cache, fill, heads), points in sorted(
            sets.items(), key=lambda item: (item[0][:3], -item[0][3])
        ):
            x = crossing([(n, a, b) for n, (a, b) in points.items()])
            most = max(points)
            masked, sparse = points[most]
            rows.append(
                [name, model, heads, cache, fill, f"{x:.0f}" if x else f"above {most}"]
                + [f"{most // 1024}k: {sparse / masked:.2f}"]
            )
    return table(
        [
            "device",
            "model",
            "heads",
            "cache",
            "lists",
            "prefill from which sparse MQA is faster",
            "longest timed: sparse over masked",
        ],
        rows,
    )


def short_prefills(results):
    """Prefills whose lists hold every key: all four ways."""
    ways = ("dense-mha", "dense-mqa", "masked-mha", "sparse-mqa", "auto")
    rows = []
    for device, name in DEVICES:
        for routes in problems(load(results, device, "routes_16")).values():
            r = routes.get("dense-mha")
            if r and r["fill"] == "normal" and r["query_tokens"] in (32, 128, 256, 512, 1024, 2048):
                rows.append(
                    [name, r["query_tokens"]]
                    + [us(routes[k]["median_us"]) if k in routes else "" for k in ways]
                )
    rows.sort(key=lambda row: row[:2])
    return table(
        [
            "device",
            "tokens",
            "dense MHA, us",
            "dense MQA",
            "masked MHA",
            "sparse MQA",
            "the library's choice",
        ],
        rows,
    )


def parts(results):
    rows = []
    for device, name in DEVICES:
        for routes in problems(load(results, device, "routes_16")).values():
            for route in ("masked-mha", "sparse-mqa", "indexer"):
                r = routes.get(route)
                if (
                    not r
                    or r["fill"] != "normal"
                    or r["query_tokens"] not in (1024, 4096, 16384, 32768, 65536)
                ):
                    continue
                p = r["parts_us"]
                rows.append(
                    [
                        name,
                        f"{r['query_tokens'] // 1024}k",
                        route,
                        us(r["median_us"]),
                        us(r["warm_us"]["median"]) if "warm_us" in r else "",
                    ]
                    + [
                        us(p[k]) if k in p else ""
                        for k in ("gather", "project", "mask", "attention")
                    ]
                )
    return table(
        [
            "device",
            "prefill",
            "route",
            "us, L2 flushed",
            "us, back to back",
            "gather",
            "project",
            "mask",
            "attention",
        ],
        rows,
    )


def mixed(results):
    rows = []
    for device, name in DEVICES:
        for routes in problems(load(results, device, "routes_serving")).values():
            own = routes.get("auto")
            if not own:
                continue
            t = own["median_us"]
            cells = [
                f"{routes[k]['median_us'] / t:.2f}" if k in routes else ""
                for k in ("sparse-mqa", "masked-mha", "batch-wide")
            ]
            rows.append(
                [name, own["heads"], own["fill"], f"`{short(batch_of(own))}`", us(t)] + cells
            )
    return table(
        [
            "device",
            "heads",
            "lists",
            "batch",
            "us, each its own",
            "all sparse MQA",
            "all masked MHA",
            "batch-wide",
        ],
        rows,
    )


def shared(results):
    rows = []
    for device, name in DEVICES:
        for routes in problems(load(results, device, "routes_shared")).values():
            r = routes.get("masked-mha")
            if r and r.get("unshared_us"):
                rows.append(
                    [
                        name,
                        r["heads"],
                        f"`{short(batch_of(r))}`",
                        us(r["unshared_us"]),
                        us(r["shared_us"]),
                        f"{100 * (1 - r['shared_us'] / r['unshared_us']):.1f} %",
                    ]
                )
    return table(["device", "heads", "batch", "masked MHA, us", "lists shared, us", "saved"], rows)


def regret(results):
    rows = []
    for device, name in DEVICES:
        for step, cache in (("regret", "bf16"), ("regret_fp8", "fp8_ds_mla")):
            data = load(results, device, step)
            if not data:
                continue
            r = data["regret"]
            all_of = regrets(data)
            within = sum(x <= 0.10 for x in all_of)
            rows.append(
                [
                    name,
                    cache,
                    r["batches"],
                    percent(r["mean_regret"]),
                    percent(r["worst_regret"]),
                    f"{within} of {len(all_of)}",
                    f"{r['all_mqa_over_routed']:.2f}",
                    f"{r['batch_wide_over_routed']:.2f}",
                ]
            )
    return table(
        [
            "device",
            "cache",
            "batches",
            "regret, mean",
            "worst",
            "within 10 %",
            "all sparse MQA",
            "batch-wide",
        ],
        rows,
    )


def brief(routes):
    """masked-mha,masked-mha: "masked-mha for all"."""
    names = routes.split(",")
    return f"{names[0]} for all" if len(names) > 1 and len(set(names)) == 1 else ", ".join(names)


def misses(results):
    rows = []
    for device, name in DEVICES:
        for step, cache in (("regret", "bf16"), ("regret_fp8", "fp8_ds_mla")):
            data = load(results, device, step)
            for r in data["regret"]["rows"] if data else []:
                if r["routed_us"] > 1.10 * r["best_us"]:
                    rows.append(
                        [name, cache, r["model"], r["heads"], f"`{r['batch']}`"]
                        + [us(r["best_us"]), percent(r["routed_us"] / r["best_us"] - 1)]
                        + [brief(r["routed"]), brief(r["best"])]
                    )
    return table(
        ["device", "cache", "model", "heads", "batch", "best, us", "regret", "taken", "best"], rows
    )


def geometric(values):
    return math.exp(sum(map(math.log, values)) / len(values))


def regrets(data):
    return [x["routed_us"] / x["best_us"] - 1 for x in data["regret"]["rows"]] if data else []


def percent(x):
    return f"{100 * x:.1f} %"


def summary(results):
    """One line a device: what the router is worth."""
    rows = []
    for device, name in DEVICES:
        found = [load(results, device, step) for step in ("regret", "regret_fp8")]
        all_of = [x for data in found for x in regrets(data)]
        serving = [
            r
            for r in problems(load(results, device, "routes_serving")).values()
            if {"auto", "sparse-mqa", "batch-wide"} <= set(r)
        ]
        if not all_of or not serving:
            continue
        cells = [len(all_of), percent(sum(all_of) / len(all_of)), percent(max(all_of))]
        for rule in ("sparse-mqa", "batch-wide"):
            ratios = [r[rule]["median_us"] / r["auto"]["median_us"] for r in serving]
            cells.append(f"{geometric(ratios):.2f}, up to {max(ratios):.2f}")
        rows.append([name] + cells)
    return table(
        [
            "device",
            "random batches",
            "regret, mean",
            "worst",
            "all sparse MQA, serving batches",
            "batch-wide rule, serving batches",
        ],
        rows,
    )


def pictures(rows, kind, caption):
    """Maker of the pictures of each device that has this one."""

    def make(results):
        lines = []
        for device, name in DEVICES:
            path = f"figures/{device}_{rows}.{kind}.svg"
            if (results.parent.parent / "docs" / path).exists():
                lines += [f"![{caption}, {name}]({path})", ""]
        return lines[:-1]

    return make


def runs(results):
    """Device, clocks, versions and what there was no time for, from the heads and ends of files."""
    rows = []
    for device, name in DEVICES:
        texts = {}
        for path in sorted((results / device).glob("*.txt")):
            texts[path.stem] = path.read_text()
        head = texts.get("routes_serving") or texts.get("routes_16")
        if not head:
            continue
        commit = re.search(r"# mla (\S+), commit (\S+);", head)
        about = re.search(r"# cuda device \d+: (.*?), sm_\d+.*?(driver CUDA [\d.]+)", head)
        state = r"degrees: ([\d.]+), (\d+) MHz, (\d+) MHz, (\d+) MHz"
        first = re.search(state, head)
        clocks = [int(m[1]) for t in texts.values() for m in re.findall(state, t)]
        tune = texts.get("tune", "") + texts.get("tune_fp8", "")
        timed = sum(map(int, re.findall(r"# (\d+) points in", tune)))
        late = sum(map(int, re.findall(r"; (\d+) more had no time", tune)))
        left = r"# (\d+) of \d+ problems were left out"
        left = sum(int(m) for k in SWEEPS for m in re.findall(left, texts.get(k, "")))
        rows.append(
            [
                about[1],
                f"{first[1]}, {about[2][7:]}",
                f"{min(clocks)} to {max(clocks)} MHz",
                f"{commit[1]}, {commit[2]}",
                f"{timed} of {timed + late}" if timed else "",
                left,
            ]
        )
    return table(
        [
            "device",
            "driver",
            "SM clock seen",
            "libmla, commit",
            "points of the tables of times",
            "problems of sweeps without time left",
        ],
        rows,
    )


MAKERS = {
    "runs": runs,
    "ranges": ranges,
    "crossings": crossings,
    "parts": parts,
    "mixed": mixed,
    "shared": shared,
    "regret": regret,
    "misses": misses,
    "short": short_prefills,
    "summary": summary,
    "picture times": pictures("routes_16", "time", "16 heads"),
    "picture roofline": pictures("routes_16", "roofline", "Roofline of 16 heads"),
    "picture glm5": pictures("routes_glm5", "heat", "GLM-5"),
    "picture batches": pictures("routes_128", "heat", "128 heads"),
    "picture caches": pictures("routes_cache", "time", "bf16 and fp8_ds_mla"),
    "picture mixed": pictures("routes_serving", "mixed", "Mixed batches"),
}


def main():
    results = pathlib.Path(sys.argv[1])
    for page in map(pathlib.Path, sys.argv[2:]):
        text = page.read_text()
        for name, make in MAKERS.items():
            if f"<!-- begin {name} -->" not in text:
                continue
            body = "\n".join(make(results))
            text = re.sub(
                f"<!-- begin {name} -->.*?<!-- end {name} -->",
                lambda _: f"<!-- begin {name} -->\n{body}\n<!-- end {name} -->",
                text,
                flags=re.S,
            )
        page.write_text(text)


if __name__ == "__main__":
    main()
