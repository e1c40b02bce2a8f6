#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Times other libraries' attention beside libmla's on the same problems, on the GPU, and lets
`mla check` judge every result.

    bench/peers.py PROBLEM... [--mla build/mla] [--repeats 25] [--rows 16] [--reference]
                              [--kernels NAME,...] [--library FILE] [--json FILE]

PROBLEM is a problem file or a problem string in quotes ('attend form=absorbed ...'). Peers are what
can be imported:

  expanded form   torch            scaled_dot_product_attention by cuDNN, flash, efficient
                  flash_attn       flash_attn_interface (3) or flash_attn (2)
                  flashinfer       single_prefill_with_kv_cache, one request
  absorbed form   flash_mla        flash_mla_sparse_fwd (lists, bf16), flash_mla_with_kvcache
                                   (decode: bf16 pages of 64; lists over fp8_ds_mla)
                  flashinfer       mla.BatchMLAPagedAttentionWrapper (no lists, bf16 pages)

A peer that takes heads in multiples of 64 only gets zero heads beside the problem's; padding them
is not timed, computing them is. libmla (the shared library beside --mla) runs in the same process,
on the same tensors, in turns with each peer: at the power limit clocks go by what ran before. CUDA
events, three warm-ups, before each run 256 MB are written (L2) and the device sleeps, so that
launching stays out; cold = median, warm = mean of calls back to back; the ratio is libmla's cold
time over the peer's.
Every output goes to a result file, which `mla check --against` judges by its bounds; `rel` is its
relative Frobenius error against libmla's fp64 reference, where that is asked for (--reference).
--kernels names rows of `mla info` whose results are judged beside that of the row which libmla
chooses. For a problem file libmla is judged, but not timed: a string says the shape.
"""
import argparse
import contextlib
import ctypes
import importlib
import json
import os
import statistics
import struct
import subprocess
import sys
import tempfile

import torch

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64,
          "I32": torch.int32, "U8": torch.uint8}


# ------------------------------------------------------------------------------------------- files

def load(path):
    """Tensors and metadata of a safetensors file."""
    with open(path, "rb") as file:
        size = struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(size).decode())
    data = torch.from_file(path, size=os.path.getsize(path), dtype=torch.uint8)
    meta = header.pop("__metadata__", {})
    tensors = {}
    for name, about in header.items():
        if about["dtype"] in DTYPES:
            first, last = about["data_offsets"]
            flat = data[8 + size + first:8 + size + last].clone()
            tensors[name] = flat.view(DTYPES[about["dtype"]]).reshape(about["shape"])
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


# ------------------------------------------------------------------------------------------- times

def times_of(calls, repeats):
    """Microseconds of each call: L2 cold (median, the calls in turns), back to back (mean)."""
    flush = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    cold, warm = [[] for _ in calls], []
    for turn in range(repeats + 3):
        for call, times in zip(calls, cold):
            flush.zero_()
            torch.cuda._sleep(700_000)  # some 0.4 ms, while the host launches
            start.record()
            call()
            stop.record()
            stop.synchronize()
            if turn >= 3:
                times.append(start.elapsed_time(stop) * 1e3)
    for call in calls:
        torch.cuda._sleep(12_000_000)
        start.record()
        for _ in range(10):
            call()
        stop.record()
        stop.synchronize()
        warm.append(start.elapsed_time(stop) * 1e2)
    return [(statistics.median(c), w) for c, w in zip(cold, warm)]


# ------------------------------------------------------------------------------------------ libmla

class Tensor(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("stride", ctypes.c_int64 * 2)]


class Tensors(ctypes.Structure):
    """mla_tensors of mla/mla.h."""
    _fields_ = [*((n, Tensor) for n in ("q_nope", "q_pe", "w_uk", "w_uv", "q", "k", "v", "kv_c",
                                        "k_pe", "kv_cache", "page_table")),
                ("seq_lens_kv", ctypes.c_void_p), ("mask", Tensor), ("topk_indices", Tensor),
                ("topk_lens", ctypes.c_void_p), ("attn_sink", ctypes.c_void_p), ("out", Tensor),
                ("lse", Tensor), ("max_logits", Tensor), ("same_lists", ctypes.c_bool)]


class Options(ctypes.Structure):
    """mla_plan_options of mla/mla.h."""
    _fields_ = [("route", ctypes.c_int), ("kernel", ctypes.c_char_p), ("precision", ctypes.c_int),
                ("num_splits", ctypes.c_int64), ("nondeterministic", ctypes.c_bool),
                ("workspace_limit_bytes", ctypes.c_size_t), ("complete", ctypes.c_void_p),
                ("routes", ctypes.c_void_p)]


class Library:
    """libmla.so on device 0."""

    def __init__(self, path):
        self.lib = ctypes.CDLL(path)
        self.lib.mla_last_error.restype = ctypes.c_char_p
        self.lib.mla_plan_workspace_bytes.restype = ctypes.c_size_t
        self.context = ctypes.c_void_p()
        cuda = (ctypes.c_int * 3)(1, 0, 0)
        self.must(self.lib.mla_context_create(cuda, ctypes.byref(self.context)))

    def must(self, status):
        if status != 0:
            raise RuntimeError(self.lib.mla_last_error().decode())

    def call(self, text, tensors, kernel=None, splits=0):
        """(call, out): one run of the problem on the current stream. tensors: on the device."""
        problem = ctypes.create_string_buffer(4096)  # an mla_problem is smaller
        rest = ctypes.create_string_buffer(4096)
        plan = ctypes.c_void_p()
        options = Options(kernel=kernel.encode() if kernel else None, num_splits=splits)
        self.must(self.lib.mla_problem_parse(problem, text.encode(), rest, ctypes.c_size_t(4096)))
        self.must(self.lib.mla_plan_create(self.context, problem, ctypes.byref(options),
                                           ctypes.byref(plan)))
        self.lib.mla_problem_release(problem)
        size = self.lib.mla_plan_workspace_bytes(plan)
        q = tensors["q"]
        width = tensors["v"].shape[2] if "v" in tensors else 512
        kept = dict(tensors)
        kept["out"] = torch.empty(*q.shape[:2], width, dtype=q.dtype, device="cuda")
        kept["lse"] = torch.empty(*q.shape[:2], dtype=torch.float32, device="cuda")
        workspace = torch.empty(size + 256, dtype=torch.uint8, device="cuda")
        at = -workspace.data_ptr() % 256 + workspace.data_ptr()
        given = Tensors()
        for name, kind in Tensors._fields_:
            if name in kept and name != "seq_lens_kv":
                setattr(given, name, kept[name].data_ptr() if kind is ctypes.c_void_p
                        else Tensor(kept[name].data_ptr()))
        run, size = self.lib.mla_run, ctypes.c_size_t(size)

        def call():
            stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
            self.must(run(plan, ctypes.byref(given), ctypes.c_void_p(at), size, stream))

        call.kept = kept, workspace, given
        return call, kept["out"]


def own_result(mla, path, kernel=None):
    """What libmla computes on the GPU, by the row it chooses or the one named; None if it can't."""
    with tempfile.TemporaryDirectory() as folder:
        result = os.path.join(folder, "own.safetensors")
        named = ["--kernel", kernel] if kernel else []
        done = subprocess.run([mla, "run", path, "--backend", "cuda", *named, "-o", result],
                              capture_output=True, text=True, check=False)
        if done.returncode != 0:
            print(f"  libmla {kernel or ''}:",
                  (done.stderr.strip().splitlines() or ["failed"])[-1][:200])
            return None
        return load(result)[0]["out"]


# ------------------------------------------------------------------------------------------- peers
# Each yields (name, call, out): call is timed, out() gives its result as [T, H, d_v].

def optional(name):
    with contextlib.suppress(Exception):
        return importlib.import_module(name)
    return None


def lengths(tensors):
    starts = tensors["cu_seqlens_q"].tolist()
    return [b - a for a, b in zip(starts, starts[1:])], tensors["seq_lens_kv"].tolist()


def same(values, what):
    if any(v != values[0] for v in values):
        raise ValueError(f"want requests of one {what}")
    return values[0]


def expanded_peers(tensors, meta):
    queries, keys = lengths(tensors)
    batch, seq_q, seq_kv = len(keys), same(queries, "query length"), same(keys, "length")
    if seq_q != seq_kv:
        raise ValueError("want new tokens alone, no context")
    if "topk_indices" in tensors or "mask" in tensors or "attn_sink" in tensors:
        raise ValueError("want no lists, no mask and no sink")
    q, k, v = (tensors[n].cuda().view(batch, seq_kv, *tensors[n].shape[1:]) for n in "qkv")
    heads, d_v = q.shape[2], v.shape[3]
    scale = float(meta.get("softmax_scale", q.shape[3] ** -0.5))
    causal = meta.get("causal", "true") in ("1", "true")
    from torch.nn.attention import SDPBackend, sdpa_kernel
    tq, tk, tv = (x.transpose(1, 2) for x in (q, k, v))
    for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION,
                    SDPBackend.EFFICIENT_ATTENTION):
        def sdpa(backend=backend):
            with sdpa_kernel(backend):
                return torch.nn.functional.scaled_dot_product_attention(
                    tq, tk, tv, is_causal=causal, scale=scale, enable_gqa=heads != k.shape[2])

        def sdpa_out(sdpa=sdpa):
            return sdpa().transpose(1, 2).reshape(batch * seq_q, heads, d_v)

        yield "torch " + backend.name.split("_")[0].lower(), sdpa, sdpa_out
    for name in ("flash_attn_interface", "flash_attn"):
        module = optional(name)
        if module is not None and hasattr(module, "flash_attn_func"):
            def flash(module=module):
                out = module.flash_attn_func(q, k, v, softmax_scale=scale, causal=causal)
                return out[0] if isinstance(out, tuple) else out

            yield name, flash, lambda: flash().reshape(batch * seq_q, heads, d_v)
            break
    flashinfer = optional("flashinfer")
    if flashinfer is not None and batch == 1:
        def prefill():
            return flashinfer.single_prefill_with_kv_cache(q[0], k[0], v[0], causal=causal,
                                                           sm_scale=scale)

        yield "flashinfer", prefill, prefill


def global_lists(tensors, page_size):
    """List entries as rows of the cache: kv_cache's pages, or the flat cache; -1 where invalid."""
    queries, keys = lengths(tensors)
    lists, rows, base, row0 = tensors["topk_indices"], [], 0, 0
    counted = tensors.get("topk_lens")
    for request, (n, length) in enumerate(zip(queries, keys)):
        part = lists[row0:row0 + n].long()
        position = torch.arange(n)[:, None] + length - n
        good = (part >= 0) & (part <= position)
        if counted is not None:
            good &= torch.arange(part.shape[1])[None] < counted[row0:row0 + n, None]
        part = part.clamp(0, length - 1)
        if page_size:
            table = tensors["page_table"][request].long()
            part = table[part // page_size] * page_size + part % page_size
        else:
            part = part + base
        rows.append(torch.where(good, part, -1).int())
        base, row0 = base + length, row0 + n
    return torch.cat(rows)


def padded(q, heads):
    """q [T, H, d] with zero heads up to the next size of FlashMLA's."""
    want = 64 if heads <= 64 else 128
    if heads == want:
        return q
    wide = torch.zeros(q.shape[0], want, q.shape[2], dtype=q.dtype, device=q.device)
    wide[:, :heads] = q
    return wide


def flash_mla_peers(module, tensors, meta):
    queries, keys = lengths(tensors)
    q = tensors["q"].cuda()
    tokens, heads, width = q.shape
    scale = float(meta["softmax_scale"])
    lists = "topk_indices" in tensors
    cache = tensors.get("kv_cache")
    if q.dtype != torch.bfloat16 or width != 576:
        raise ValueError("flash_mla: want bf16 queries of width 576")
    if "mask" in tensors:
        raise ValueError("flash_mla: takes no mask")
    sink = tensors["attn_sink"].cuda() if "attn_sink" in tensors else None
    wide = padded(q, heads)
    name = "flash_mla" + ("" if wide is q else f" (padded to {wide.shape[1]})")
    fp8 = cache is not None and cache.dtype == torch.uint8
    if fp8 and cache.shape[2] != 656:
        raise ValueError("flash_mla: of packed caches it takes fp8_ds_mla")
    if lists and not fp8:
        if cache is None:
            kv = torch.cat([tensors["kv_c"], tensors["k_pe"]], 1).cuda()
        else:
            kv = cache.reshape(-1, width).cuda()
        at = global_lists(tensors, 0 if cache is None else cache.shape[1]).cuda()[:, None]
        kv = kv[:, None].contiguous()

        def sparse():
            return module.flash_mla_sparse_fwd(wide, kv, at, scale, 512, sink)[0]

        yield name, sparse, lambda: sparse()[:, :heads]
        return
    if cache is None:
        raise ValueError("flash_mla: decoding wants a paged cache")
    seq_q, batch = same(queries, "query length"), len(keys)
    wide = wide.view(batch, seq_q, wide.shape[1], width)
    plan = module.get_mla_metadata()[0]
    if lists:
        at = global_lists(tensors, cache.shape[1]).view(batch, seq_q, -1).cuda()
        kv = cache.cuda()[:, :, None]

        def decode():
            return module.flash_mla_with_kvcache(
                wide, kv, None, None, 512, plan, None, scale, False, True, at, sink)[0]
    else:
        if cache.shape[1] != 64:
            raise ValueError("flash_mla: want pages of 64")
        if sink is not None:
            raise ValueError("flash_mla: dense decoding takes no sink")
        wide = q.view(batch, seq_q, heads, width)
        name = "flash_mla"
        kv, table = cache.cuda()[:, :, None], tensors["page_table"].cuda()
        used = torch.arange(table.shape[1])[None] < -(-tensors["seq_lens_kv"][:, None] // 64)
        table = torch.where(used.cuda(), table, 0).contiguous()
        seq_lens = tensors["seq_lens_kv"].cuda()

        def decode():
            return module.flash_mla_with_kvcache(wide, kv, table, seq_lens, 512, plan, None, scale,
                                                 seq_q > 1)[0]

    yield name, decode, lambda: decode().reshape(tokens, -1, 512)[:, :heads]


def flashinfer_mla_peers(module, tensors, meta):
    queries, keys = lengths(tensors)
    cache = tensors.get("kv_cache")
    if cache is None or cache.dtype == torch.uint8 or {"topk_indices", "mask"} & tensors.keys():
        raise ValueError("flashinfer: want pages of 16-bit values and no lists")
    q = tensors["q"].cuda()
    page = cache.shape[1]
    counts = [-(-n // page) for n in keys]
    pages = torch.cat([row[:n] for row, n in zip(tensors["page_table"], counts)]).cuda()
    first = torch.tensor([0] + counts).cumsum(0).int().cuda()
    wrapper = module.mla.BatchMLAPagedAttentionWrapper(
        torch.empty(128 << 20, dtype=torch.int8, device="cuda"))
    wrapper.plan(tensors["cu_seqlens_q"].cuda(), first, pages, tensors["seq_lens_kv"].cuda(),
                 q.shape[1], 512, q.shape[2] - 512, page, True, float(meta["softmax_scale"]),
                 q.dtype, cache.dtype)
    nope, rope = q[..., :512].contiguous(), q[..., 512:].contiguous()
    kv_c, k_pe = cache[..., :512].contiguous().cuda(), cache[..., 512:].contiguous().cuda()

    def decode():
        return wrapper.run(nope, rope, kv_c, k_pe, return_lse=False)

    yield "flashinfer", decode, decode


def peers_of(tensors, meta):
    """Peers of a problem; what none of them takes is said."""
    if "k" in tensors:
        sources = [lambda: expanded_peers(tensors, meta)]
    elif "w_uk" in tensors:
        print("  latent form: want expanded or absorbed")
        return
    else:
        sources = []
        for name, make in (("flash_mla", flash_mla_peers), ("flashinfer", flashinfer_mla_peers)):
            module = optional(name)
            if module is None:
                print(f"  {name}: can't be imported")
            else:
                sources.append(lambda make=make, module=module: make(module, tensors, meta))
    for source in sources:
        try:
            yield from source()
        except ValueError as why:
            print(f"  {why}")


# --------------------------------------------------------------------------------------- judgement

def pairs_of(tensors):
    """Visible pairs of query and key."""
    if "topk_indices" in tensors:
        return int((global_lists(tensors, 0) >= 0).sum())
    queries, keys = lengths(tensors)
    return sum(n * (length - n) + n * (n + 1) // 2 for n, length in zip(queries, keys))


def judge(mla, problem, name, tensor, rows):
    """Verdict of mla check, and the share of its bound."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "peer.safetensors")
        save(path, "out", tensor)
        done = subprocess.run([mla, "check", problem, "--against", path, "--rows", str(rows)],
                              capture_output=True, text=True, check=False)
        lines = (done.stdout or done.stderr).strip().splitlines() or ["nothing said"]
        return lines[0].split()[0] if done.stdout else "error", lines[0]


def reference_of(mla, problem):
    """The fp64 reference of all rows."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "want.safetensors")
        subprocess.run([mla, "run", problem, "--precision", "fp64", "-o", path], check=True,
                       capture_output=True)
        return load(path)[0]["out"].double()


def error_of(tensor, want):
    """Relative Frobenius error."""
    return float((tensor.double().cpu() - want).norm() / want.norm())


def measure(problem, a, table):
    is_text = not os.path.exists(problem)
    with tempfile.TemporaryDirectory() as folder:
        path = problem
        if is_text:
            path = os.path.join(folder, "problem.safetensors")
            made = subprocess.run([a.mla, "make", problem, "-o", path], capture_output=True,
                                  text=True, check=False)
            if made.returncode != 0:
                print(f"{problem}\n  {made.stderr.strip()}")
                return
        print(problem)
        tensors, meta = load(path)
        wide = tensors["k"].shape[2] + tensors["v"].shape[2] if "k" in tensors else 576 + 512
        flop = 2 * pairs_of(tensors) * tensors["q"].shape[1] * wide
        want = reference_of(a.mla, path) if a.reference else None
        own = None
        if a.repeats and is_text:
            try:
                own, _ = a.shared.call(problem, {n: t.cuda() for n, t in tensors.items()})
            except RuntimeError as why:
                print(f"  libmla: {why}")

        def row(name, times, result, ratio=None):
            """Prints a row; times: cold and warm or (); result: a tensor to judge or None."""
            verdict, said, rel, tflops = "", "", None, None
            if result is not None:
                verdict, said = judge(a.mla, path, name, result, a.rows)
                rel = error_of(result, want) if a.reference else None
            if times:
                tflops = flop / times[0] * 1e-6
            cold, warm, rate = (f"{x:.1f}" for x in (*times, tflops)) if times else ("", "", "")
            print(f"  {name:<28} {cold:>10} {warm:>10} {rate:>8} "
                  f"{'' if ratio is None else f'{ratio:.3f}':>7}  "
                  f"{'' if rel is None else f'{rel:.3e}':>10} {verdict}", flush=True)
            if said and verdict not in ("ok", "weak"):
                print("   ", said)
            table.append({"problem": problem, "name": name, "cold_us": times[0] if times else None,
                          "warm_us": times[1] if times else None, "tflops": tflops,
                          "ours_over_it": ratio, "checked": verdict, "rel": rel})

        for kernel in [None, *filter(None, a.kernels.split(","))]:
            result = own_result(a.mla, path, kernel)
            if result is not None:
                row("libmla " + (kernel or "(its choice)"), (), result)
        for name, call, out in peers_of(tensors, meta):
            try:
                times = times_of([*filter(None, [own]), call], a.repeats) if a.repeats else [()]
                result = out()
            except (RuntimeError, AssertionError, TypeError) as why:
                print(f"  {name}: {(str(why).splitlines() or ['failed'])[0][:100]}")
                continue
            if len(times) == 2:
                row("libmla, in turns with", times[0], None)
            row(name, times[-1], result, times[0][0] / times[1][0] if len(times) == 2 else None)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("problems", nargs="+", metavar="PROBLEM")
    parser.add_argument("--mla", default="build/mla")
    parser.add_argument("--library", dest="shared", help="libmla.so; beside --mla where not given")
    parser.add_argument("--repeats", type=int, default=25, help="of each time; 0 times nothing")
    parser.add_argument("--rows", type=int, default=16, help="rows judged of each result")
    parser.add_argument("--reference", action="store_true", help="errors of all rows against fp64")
    parser.add_argument("--kernels", default="", metavar="NAME,...",
                        help="rows of libmla to judge too")
    parser.add_argument("--json", metavar="FILE")
    a = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("peers.py: PyTorch sees no GPU")
    about = torch.cuda.get_device_properties(0)
    print(f"# {about.name}, torch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}")
    print(f"% {'name':<28} {'us(cold)':>10} {'us(warm)':>10} {'TFLOP/s':>8} {'ours/it':>7}  "
          f"{'rel error':>10} checked")
    table = []
    if a.repeats:
        a.shared = Library(a.shared or os.path.join(os.path.dirname(a.mla) or ".", "libmla.so"))
    for problem in a.problems:
        measure(problem, a, table)
    if a.json:
        with open(a.json, "w", encoding="utf-8") as file:
            json.dump({"device": about.name, "torch": torch.__version__, "rows": table}, file,
                      indent=1)


if __name__ == "__main__":
    main()
