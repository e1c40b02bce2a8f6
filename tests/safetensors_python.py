# SPDX-License-Identifier: Apache-2.0
"""The Python package safetensors reads what we write, and takes every header that our reader takes.

Usage: safetensors_python.py PATH_OF_test_safetensors
Headers that the package takes and we refuse are listed: we are stricter on purpose there
(docs/files.md)."""
import os
import struct
import subprocess
import sys
import tempfile

try:
    from safetensors import deserialize, SafetensorError
except ImportError:
    print("skipped: the Python package safetensors is not installed")
    sys.exit(0)

failures = 0


def check(ok, what):
    global failures
    if not ok:
        print("failed:", what)
        failures += 1


with tempfile.TemporaryDirectory() as folder:
    subprocess.run([sys.argv[1], "--write-samples", folder], check=True)
    stricter = []
    for name in sorted(os.listdir(folder)):
        with open(os.path.join(folder, name), "rb") as file:
            data = file.read()
        try:
            tensors = dict(deserialize(data))
        except SafetensorError as why:
            check(name.endswith("refused"), f"{name} accepted by us, refused by the package: {why}")
            continue
        if name.endswith("refused"):
            stricter.append(data[8:].decode("utf-8", "replace"))
        elif name == "ours":
            four = tensors["four"]
            check(four["dtype"] == "I32" and list(four["shape"]) == [2, 2], "dtype and shape")
            check(struct.unpack("<4i", four["data"]) == (1, -2, 3, -4), "data of 'four'")
            check(bytes(tensors["odd"]["data"]) == bytes([9, 8, 7]), "data of 'odd'")
            scalar = tensors['a "quoted" \u00e9']
            check(list(scalar["shape"]) == [] and struct.unpack("<d", scalar["data"]) == (0.5,),
                  "the scalar")
            check(list(tensors["none"]["shape"]) == [0, 5], "the empty tensor")
    for text in stricter:
        print("stricter than the package:", text.rstrip("\0")[:100])

sys.exit(1 if failures else 0)
