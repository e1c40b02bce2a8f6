#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Times other libraries' attention on a problem file, on the GPU, and lets `mla check` judge them.

    bench/peers.py FILE... [--mla build/mla] [--repeats 25] [--csv]

FILE is a problem file in expanded form (`mla make --form expanded`), one request or several of one
length. Peers are what can be imported; today PyTorch's scaled_dot_product_attention, once with
each of its backends that takes the shape (cuDNN, flash, efficient). Times: CUDA events, three
warm-ups, median of the repeats with 256 MB written before each (cold) and the mean back to back
(warm). Each peer's output goes to a result file, which `mla check FILE --against` judges by its own
bounds.
"""
import argparse
import json
import os
import statistics
import struct
import subprocess
import sys
import tempfile

import torch

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "I32": torch.int32}


def load(path):
    """Tensors and metadata of a safetensors file."""
    with open(path, "rb") as file:
        data = bytearray(file.read())
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + size].decode())
    meta = header.pop("__metadata__", {})
    tensors = {}
    for name, about in header.items():
        if about["dtype"] in DTYPES:
            first, last = about["data_offsets"]
            flat = torch.frombuffer(data, dtype=torch.uint8)[8 + size + first:8 + size + last]
            tensors[name] = flat.clone().view(DTYPES[about["dtype"]]).reshape(about["shape"])
    return tensors, meta


def save(path, name, tensor):
    """A result file with one tensor."""
    flat = tensor.contiguous().cpu().view(torch.uint8).reshape(-1).numpy().tobytes()
    kind = {v: k for k, v in DTYPES.items()}[tensor.dtype]
    header = json.dumps({name: {"dtype": kind, "shape": list(tensor.shape),
                                "data_offsets": [0, len(flat)]}}).encode()
    header += b" " * (-len(header) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header + flat)


def time_of(call, repeats):
    flush = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for _ in range(3):
        call()
    cold = []
    for _ in range(repeats):
        flush.zero_()
        start.record()
        call()
        stop.record()
        stop.synchronize()
        cold.append(start.elapsed_time(stop) * 1e3)
    start.record()
    for _ in range(10):
        call()
    stop.record()
    stop.synchronize()
    return statistics.median(cold), start.elapsed_time(stop) * 1e2


def sdpa(tensors, meta):
    """Name, call, and call's output as [T, H, d_v], for each backend."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    starts, keys = tensors["cu_seqlens_q"].tolist(), tensors["seq_lens_kv"].tolist()
    batch, length = len(keys), keys[0]
    if any(n != length for n in keys) or any(b - a != length for a, b in zip(starts, starts[1:])):
        raise ValueError("want requests of one length, all of it new tokens")
    if "topk_indices" in tensors or "mask" in tensors:
        raise ValueError("want no lists and no mask")
    q, k, v = (tensors[n].cuda().view(batch, length, *tensors[n].shape[1:]).transpose(1, 2)
               for n in "qkv")
    scale = float(meta["softmax_scale"]) if "softmax_scale" in meta else None
    causal = meta.get("causal", "1") in ("1", "true")
    for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION,
                    SDPBackend.EFFICIENT_ATTENTION):
        def call(backend=backend):
            with sdpa_kernel(backend):
                return torch.nn.functional.scaled_dot_product_attention(
                    q, k, v, is_causal=causal, scale=scale, enable_gqa=q.shape[1] != k.shape[1])

        def out(call=call):
            return call().transpose(1, 2).reshape(batch * length, q.shape[1], v.shape[3])

        yield "sdpa_" + backend.name.split("_")[0].lower(), call, out


def judge(mla, problem, name, tensor):
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, name + ".safetensors")
        save(path, "out", tensor)
        done = subprocess.run([mla, "check", problem, "--against", path, "--rows", "16"],
                              capture_output=True, text=True, check=False)
        lines = (done.stdout or done.stderr).strip().splitlines()
        return (lines[0].split()[0] if done.stdout and lines else "error"), lines[:1]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="+")
    parser.add_argument("--mla", default="build/mla")
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--csv", action="store_true")
    a = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("peers.py: PyTorch sees no GPU")
    about = torch.cuda.get_device_properties(0)
    print(f"# {about.name}, torch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}")
    print("peer,us_cold,us_warm,tflops,checked,file" if a.csv else
          f"{'peer':<18} {'us(cold)':>10} {'us(warm)':>10} {'TFLOP/s':>8}  {'checked':<10} file")
    for path in a.files:
        tensors, meta = load(path)
        if "k" not in tensors:
            print(f"skip {path}: not in expanded form")
            continue
        heads, d_qk, d_v = tensors["q"].shape[1], tensors["q"].shape[2], tensors["v"].shape[2]
        pairs = sum(n * (n + 1) / 2 for n in tensors["seq_lens_kv"].tolist())
        try:
            peers = list(sdpa(tensors, meta))
        except ValueError as why:
            print(f"skip {path}: {why}")
            continue
        for name, call, out in peers:
            try:
                cold, warm = time_of(call, a.repeats)
            except RuntimeError as why:
                print(f"skip {name}: {str(why).splitlines()[0][:100]}")
                continue
            verdict, said = judge(a.mla, path, name, out())
            tflops = 2 * pairs * heads * (d_qk + d_v) / cold * 1e-6
            if a.csv:
                print(f"{name},{cold:.1f},{warm:.1f},{tflops:.1f},{verdict},{path}")
            else:
                print(f"{name:<18} {cold:10.1f} {warm:10.1f} {tflops:8.1f}  {verdict:<10} {path}")
            if verdict not in ("ok", "weak"):
                print("  ", *said)


if __name__ == "__main__":
    main()
