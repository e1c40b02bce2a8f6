#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs every wrong variant of cuda/*/mutants.def in the functional model.

    model_mutants.py MLA SOURCE_DIR [--only STEM[:N]] [--table]

A line MUTANT(stem, n, "what", "kernel", "problem") of cuda/*/mutants.def is caught if `mla check
--backend model` fails under one of the schedules; the right kernel must pass under all of them.
A line SURVIVES(stem, n, "what", "kernel", "problem", "why") says that a variant is not caught, and
why that is right: being caught is an error there. Exit status 0: all as the lines say.
"""
import concurrent.futures
import os
import re
import subprocess
import sys

SCHEDULES = ["eager", "late", "random:1", "random:2", "random:3"]
LINE = re.compile(r'^(MUTANT|SURVIVES)\((\w+), (\d+), '
                  r'((?:"(?:[^"\\]|\\.)*"(?:,\s*|\s+)?)+)\)', re.M)
TEXT = re.compile(r'"((?:[^"\\]|\\.)*)"')


def variants(source):
    """All lines; adjacent strings are joined, as in C."""
    for family in ("any", "sm90", "sm100"):
        path = os.path.join(source, "cuda", family, "mutants.def")
        if not os.path.exists(path):
            continue
        with open(path, encoding="utf-8") as file:
            body = re.sub(r'"\s*\n\s*"', "", file.read())
        found = 0
        for kind, stem, number, rest in LINE.findall(body):
            texts = TEXT.findall(rest)
            want = 3 if kind == "MUTANT" else 4
            if len(texts) != want:
                sys.exit(f"{path}: {stem} {number}: got {len(texts)} texts, want {want}")
            found += 1
            yield family, kind, stem, int(number), texts
        lines = len(re.findall(r"^(?:MUTANT|SURVIVES)\(", body, re.M))
        if found != lines:
            sys.exit(f"{path}: got {lines} lines, {found} of them well formed")


def run(mla, family, schedule, kernel, problem, mutant):
    """None if everything is within bounds, else the first line that says what is wrong."""
    device = "90" if family == "any" else family[2:]
    env = dict(os.environ, MLA_MODEL_SM=device, MLA_MODEL_MUTANT=mutant, OMP_NUM_THREADS="1")
    env.pop("MLA_KERNEL", None)
    try:
        done = subprocess.run(
            [mla, "check", "--backend", "model", "--schedule", schedule, "--splits", "alone",
             "--kernel", kernel, problem],
            env=env, capture_output=True, text=True, timeout=240, errors="replace")
    except subprocess.TimeoutExpired:
        return "no end after 240 s"
    if done.returncode == 0:
        return None
    text = (done.stderr or done.stdout).strip().splitlines()
    if done.returncode in (2, 3):
        sys.exit(f"mla check did not run '{problem}' on {kernel}: {text[0] if text else ''}")
    return text[0][:150] if text else f"exit status {done.returncode}"


def judge(mla, line):
    family, kind, stem, number, texts = line
    what, kernel, problem = texts[:3]
    for schedule in SCHEDULES:
        said = run(mla, family, schedule, kernel, problem, f"{stem}:{number}")
        if said:
            return line, schedule, said
    return line, None, "all schedules within bounds"


def main():
    arguments = [a for a in sys.argv[1:] if a != "--table"]
    only = None
    if "--only" in arguments:
        at = arguments.index("--only")
        only = arguments[at + 1]
        del arguments[at:at + 2]
    mla, source = arguments
    lines = [v for v in variants(source) if only in (None, v[2], f"{v[2]}:{v[3]}")]
    if not lines:
        print("skipped: no variants to run")
        return 77
    table = "--table" in sys.argv
    bad = caught = 0
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        # A problem that fails on the right kernel would prove nothing.
        right = sorted({(v[0], v[4][1], v[4][2]) for v in lines})
        jobs = [pool.submit(run, mla, f, s, k, p, "") for f, k, p in right for s in SCHEDULES]
        for job, (f, k, p) in zip(jobs, [r for r in right for _ in SCHEDULES]):
            if job.result():
                print(f"FAIL the right {k} on '{p}': {job.result()}")
                bad += 1
        for line, schedule, said in pool.map(lambda v: judge(mla, v), lines):
            family, kind, stem, number, texts = line
            caught += schedule is not None
            wrong = (schedule is None) == (kind == "MUTANT")
            bad += wrong
            if table:
                said = said.replace("|", "/")
                print(f"| {stem} {family} {number} | {texts[0]} | "
                      f"{schedule or 'not caught'} | {said} |")
            else:
                print(f"{'FAIL' if wrong else 'ok  '} {family} {stem} {number}: {texts[0]}: "
                      f"{schedule or 'not caught'}: {said}", flush=True)
    print(f"{len(lines)} variants, {caught} caught, {bad} not as their lines say")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
