#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""NaN in keys and values that no row of their request sees must not reach any output.

    model_nan.py MLA

Makes problems, puts NaN into those keys, and checks the tensor-core kernels on them in the
functional model. A kernel that does not clean unseen values (variant 26 of mha_prefill, 20 of
mqa_decode) must be noticed, or the test proves nothing.
"""
import json
import math
import os
import struct
import subprocess
import sys
import tempfile

EXPANDED = [
    "attend form=expanded heads=2 batch=q40s900,q9s200 nope=128 rope=64 v=128 topk=24 fill=sink",
    "attend form=expanded heads=2 batch=q3s900,q300s520 nope=128 rope=64 v=128 topk=4 holes=1",
    "attend form=expanded heads=2 heads_kv=1 batch=q3s600,q140s520 nope=192 rope=64 v=256 topk=5",
    "attend form=expanded heads=1 batch=q2s500,q300s300 nope=64 rope=64 v=128 mask=1 fill=masked",
]
# Keys that lists leave out are never read: the masks tell.
ABSORBED = [
    "attend form=absorbed heads=8 batch=q2s300,q4s90 mask=1 fill=masked scale=0.1",
    "attend form=absorbed heads=64 batch=q1s200 mask=1 scale=0.1",
    "attend form=absorbed heads=64 batch=q2s300 mask=1 fill=masked scale=0.1",
]
# problems, kernels and devices, the variant that must be noticed
GROUPS = [
    (EXPANDED, [("mha_prefill_sm100", "100"), ("mha_prefill_sm90", "90")], "mha_prefill:26"),
    (ABSORBED, [("mqa_decode_sm100", "100")], "mqa_decode:20"),
    (ABSORBED, [("mqa_decode_sm90", "90")], "mqa_decode:20"),
]
SCHEDULES = ["eager", "late", "random:1"]
NAN = b"\xc0\x7f"


def read(path):
    with open(path, "rb") as file:
        data = file.read()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + length])
    body = data[8 + length:]
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            tensors[name] = (entry, bytearray(body[begin:end]))
    return header["__metadata__"], tensors


def write(path, metadata, tensors):
    """Rows first: their sizes keep each other aligned to 16 bytes."""
    header, offset = {"__metadata__": metadata}, 0
    order = sorted(tensors, key=lambda name: name not in ("q", "k", "v", "kv_c", "k_pe"))
    for name in order:
        entry, data = tensors[name]
        header[name] = dict(entry, data_offsets=[offset, offset + len(data)])
        offset += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 16)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            file.write(tensors[name][1])


def integers(tensors, name):
    data = tensors[name][1]
    return struct.unpack(f"<{len(data) // 4}i", data)


def seen_keys(tensors, rows, keys):
    """Keys of a request that its query rows (of the batch) see; queries are the last keys."""
    seen = set()
    for i, row in enumerate(rows):
        end = keys - len(rows) + i + 1
        if "topk_indices" in tensors:
            width = tensors["topk_indices"][0]["shape"][1]
            listed = integers(tensors, "topk_indices")[row * width:(row + 1) * width]
            seen.update(j for j in listed if 0 <= j < end)
        else:
            width = tensors["mask"][0]["shape"][1]
            words = integers(tensors, "mask")[row * width:(row + 1) * width]
            seen.update(j for j in range(end) if words[j // 32] >> (j % 32) & 1)
    return seen


def poison(tensors):
    starts, keys, first, poisoned = integers(tensors, "cu_seqlens_q"), 0, 0, 0
    for request, keys in enumerate(integers(tensors, "seq_lens_kv")):
        seen = seen_keys(tensors, range(starts[request], starts[request + 1]), keys)
        for j in set(range(keys)) - seen:
            poisoned += 1
            for name in ("k", "v") if "k" in tensors else ("kv_c", "k_pe"):
                entry, data = tensors[name]
                size = 2 * math.prod(entry["shape"][1:])
                data[(first + j) * size:(first + j + 1) * size] = NAN * (size // 2)
        first += keys
    return poisoned


def check(mla, path, kernel, device, schedule, mutant=""):
    env = dict(os.environ, MLA_MODEL_SM=device, MLA_MODEL_MUTANT=mutant, OMP_NUM_THREADS="1")
    return subprocess.run([mla, "check", path, "--backend", "model", "--kernel", kernel,
                           "--splits", "alone", "--schedule", schedule], env=env, capture_output=True, text=True)


def judge(mla, path, problem, kernels, variant):
    subprocess.run([mla, "make", problem, "-o", path], check=True, stdout=subprocess.DEVNULL)
    metadata, tensors = read(path)
    if poison(tensors) == 0:
        sys.exit(f"no unseen key in '{problem}'")
    write(path, metadata, tensors)
    bad = 0
    for kernel, device in kernels:
        for schedule in SCHEDULES:
            done = check(mla, path, kernel, device, schedule)
            if done.returncode:
                bad += 1
                print(f"FAIL {kernel} {schedule} '{problem}':\n{done.stdout}{done.stderr}")
    kernel, device = kernels[0]
    if check(mla, path, kernel, device, "eager", variant).returncode != 1:
        bad += 1
        print(f"FAIL NaN that is not cleaned goes unnoticed in '{problem}'")
    return bad


def main():
    mla, bad = sys.argv[1], 0
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "p.safetensors")
        for problems, kernels, variant in GROUPS:
            for problem in problems:
                bad += judge(mla, path, problem, kernels, variant)
    print(f"{bad} failed")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
