#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Plain instructions of kernels' code between the events of the functional model's timeline.

    timeline_weights.py [NAME...]                               validation/timeline/NAME.txt, or all
    timeline_weights.py -o FILE --arch sm_90a|sm_100f [--only PATTERN] SOURCE.cu...

Compiles each source with nvcc -lineinfo, disassembles it with nvdisasm (from PATH or NVDISASM; it
comes with the CUDA Toolkit or the PyPI package nvidia-cuda-nvdisasm) and writes FILE, which
MLA_MODEL_WEIGHTS names when a timeline is made. Takes minutes a source.

An event is an instruction that the model sees (a barrier, a load, an MMA ...): in the code it is
known by its opcode and by the lines it was inlined from. What stands between two events is counted
by the pipe it takes and belongs to the second. Where a line's event occurs several times (unrolled
or cloned code) the mean counts. Left out are: blocks without events that a branch jumps over,
unless they are short; the slow ways of waits and of divergent shuffles; code behind calls.

A line of FILE: "file:line kind issue fma fma2 alu mufu load stall", the instructions of a warp and
the clocks that the compiler has it stall between them, alone on its scheduler; kinds and
pipes are those of cuda/model/trace.h; load counts loads from global memory in units of 512 bytes a
warp (16 a lane). "kernel NAME" begins a kernel, "source FILE CRC32" says what
it was made from.
"""
import argparse
import collections
import os
import re
import subprocess
import sys
import tempfile
import zlib

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

EVENTS = [  # opcode's beginning, kind; the first that fits
    ("SYNCS.PHASECHK", "WAIT"), ("SYNCS.ARRIVE", "ARRIVE"), ("BAR.SYNC", "WAIT"),
    ("BAR.RED", "WAIT"), ("BAR.ARV", "ARRIVE"), ("UCGABAR_ARV", "ARRIVE"), ("UCGABAR_WAIT", "WAIT"),
    ("LDS", "LD"), ("STS", "ST"), ("ATOMS", "SHUFFLE"), ("SHFL", "SHUFFLE"), ("VOTE", "VOTE"),
    ("REDUX", "VOTE"), ("CREDUX", "VOTE"), ("MATCH", "VOTE"), ("ATOMG", "ATOMIC"),
    ("RED.", "ATOMIC"), ("STAS", "REMOTE"), ("HGMMA", "WGMMA"), ("QGMMA", "WGMMA"),
    ("WARPGROUP.ARRIVE", "SYNCWARP"), ("WARPGROUP.DEPBAR", "WGMMA_WAIT"),
    ("HMMA", "MMA_SYNC"), ("UTCHMMA", "UMMA"), ("UTCQMMA", "UMMA"), ("UTCCP", "UMMA_COPY"),
    ("UTCBAR", "UMMA_COMMIT"), ("LDTM", "TMEM_LD"), ("STTM", "TMEM_ST"), ("UTMALDG", "COPY_IN"),
    ("UBLKCP", "COPY_IN"), ("UTMASTG", "COPY_OUT"), ("LDGSTS", "ASYNC"),
    ("ARRIVES.LDGSTSBAR", "ASYNC_ARRIVE"), ("FENCE.VIEW", "SYNCWARP"),
]
PIPES = ["issue", "fma", "fma2", "alu", "mufu", "load", "stall"]
FMA2 = {"FFMA2", "FADD2", "FMUL2"}
FMA = {"FFMA", "FADD", "FMUL", "HFMA2", "HADD2", "HMUL2", "IMAD"}
MUFU = {"MUFU", "I2F", "F2I", "F2F", "FLO", "POPC", "BREV", "I2FP", "FRND"}
ISSUE = {"NOP", "BRA", "BSSY", "BSYNC", "EXIT", "WARPSYNC", "CALL", "RET", "BRX", "YIELD", "BREAK",
         "ENDCOLLECTIVE", "STG", "STL", "LDL", "LDC", "ST", "DEPBAR", "MEMBAR", "ERRBAR",
         "CGAERRBAR", "CCTL", "NANOSLEEP", "BPT", "S2R", "CS2R", "R2UR", "ELECT", "FENCE", "SYNCS"}
SHORT = 6  # a block that a branch jumps over counts if it is no longer than that

CODE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)(.*)")
FRAME = re.compile(r'//## File "([^"]+)", line (\d+)(.*)')


def pipe_of(opcode):
    base = opcode.split(".")[0]
    if base in FMA2:
        return "fma2"
    if base in FMA:
        return "fma"
    if base in MUFU:
        return "mufu"
    if base in ("LDG", "LD"):
        return "load"
    if base in ISSUE or base.startswith("U"):
        return "issue"
    return "alu"


def event_of(opcode):
    for begin, kind in EVENTS:
        if opcode.startswith(begin):
            return kind
    return None


class Instruction:
    __slots__ = ("opcode", "predicate", "target", "frames", "labels", "event", "drop", "stall")


def functions(text):
    """Name and instructions of every kernel."""
    for part in re.split(r"\n\s*\.section\s+\.text\.", text)[1:]:
        name = part.split(",", 1)[0].strip('" ')
        code, frames, labels, fresh = [], [], [], True
        for line in part.splitlines():
            frame = FRAME.search(line)
            if frame:
                if fresh:
                    frames, fresh = [], False
                frames.append((frame.group(1), int(frame.group(2))))
                continue
            label = re.match(r"\s*(\.L_\w+):", line)
            if label:
                labels.append(label.group(1))
                continue
            if re.match(r"\s*\.(weak|global)\s+\$", line):
                break  # routines that the compiler adds
            found = CODE.search(line)
            if not found:
                word = re.match(r"\s*/\* (0x[0-9a-f]{16}) \*/", line)
                if word and code:  # the upper half of the instruction: its control bits
                    code[-1].stall = int(word.group(1), 16) >> 41 & 15
                continue
            fresh = True
            i = Instruction()
            i.opcode, i.predicate = found.group(3), (found.group(2) or "").strip()
            target = re.search(r"`\((\.L_\w+)\)", found.group(4))
            i.target = target.group(1) if target else None
            i.frames, i.labels = [f for f in frames], labels
            i.event, i.drop, i.stall = event_of(i.opcode), False, 1
            labels = []
            code.append(i)
        if code:
            yield name, code


def mark_slow_ways(code):
    place = {label: n for n, i in enumerate(code) for label in i.labels}
    for n, i in enumerate(code):
        if i.opcode == "BRA.DIV" and i.target in place:
            at = place[i.target]
            while at < len(code):
                code[at].drop = True
                if code[at].opcode == "BRA" and not code[at].predicate:
                    break
                at += 1
        if i.opcode.startswith("SYNCS.PHASECHK"):
            for j in code[n + 1:n + 6]:
                if j.opcode == "BRA" and not j.predicate:
                    break  # out of a slow way, to where the wait is over
                if j.opcode == "BRA" and j.target in place and place[j.target] != n:
                    at = place[j.target]  # where the failed wait goes on
                    again = code[at:at + 8]
                    if any(k.opcode.startswith("SYNCS.PHASECHK") for k in again):
                        while at < len(code):
                            if at == n:
                                break
                            code[at].drop = True
                            if code[at].opcode == "BRA" and not code[at].predicate:
                                break
                            at += 1
                    break
    # blocks without events that a branch jumps over
    for n, i in enumerate(code):
        if i.opcode != "BRA" or not i.predicate or i.target not in place:
            continue
        end = place[i.target]
        if n + 1 + SHORT < end <= n + 2000 and not any(k.event for k in code[n + 1:end]):
            for k in code[n + 1:end]:
                k.drop = True
    return code


def own_frames(frames):
    """Places in the project's kernels, from the innermost on."""
    out = []
    for path, line in frames:
        if "/cuda/ptx/" in path or "/cuda/" not in path or "/targets/" in path:
            continue
        out.append((os.path.basename(path), line))
    return out


def weights(code):
    sums = collections.defaultdict(lambda: [0, collections.Counter()])
    pending = collections.Counter()
    for i in mark_slow_ways(code):
        if i.drop:
            continue
        if not i.event:
            pending[pipe_of(i.opcode)] += 1
            pending["stall"] += i.stall
            if pipe_of(i.opcode) == "load":
                pending["issue"] += 1
                pending["load"] += -1 + (1 if ".128" in i.opcode else .5 if ".64" in i.opcode
                                         else 2 if ".256" in i.opcode else .25)
            if i.opcode in ("EXIT", "RET") and not i.predicate:
                pending.clear()
            continue
        for place in dict.fromkeys(own_frames(i.frames)):
            entry = sums[place + (i.event,)]
            entry[0] += 1
            entry[1].update(pending)
        pending.clear()
    return sums


def run(command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stderr.strip()[:2000]}")
    return done.stdout


# What validation/timeline holds: name, architecture, source, kernels.
HELD = [
    ("mha_prefill_sm90", "sm_90a", "cuda/sm90/mha_prefill_bf16.cu", "192"),
    ("sparse_mqa_prefill_sm90", "sm_90a", "cuda/sm90/sparse_mqa_prefill_bf16.cu", "64"),
    ("index_logits_sm90", "sm_90a", "cuda/sm90/index_logits.cu", ", 64"),
    ("mha_prefill_sm100", "sm_100f", "cuda/sm100/mha_prefill.cu", "bf16"),
    ("sparse_mqa_prefill_sm100", "sm_100f", "cuda/sm100/sparse_mqa_prefill.cu", "bf16"),
    ("mqa_decode_sm100", "sm_100f", "cuda/sm100/mqa_decode.cu", ""),
    ("mqa_decode_pair_sm100", "sm_100f", "cuda/sm100/mqa_decode_pair.cu", ""),
    ("index_logits_sm100", "sm_100f", "cuda/sm100/index_logits.cu", "true, 64|true, 32|false, 64"),
]


def make(out_path, arch, sources, only, disassembly=None):
    disassembler = os.environ.get("NVDISASM", "nvdisasm")
    code = f"arch={arch.replace('sm_', 'compute_')},code={arch}"
    used, out = {}, []
    for source in sources:
        if disassembly:
            with open(disassembly, encoding="utf-8") as file:
                text = file.read()
        else:
            with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
                run(["nvcc", "-std=c++17", "-gencode", code, "-O3", "-lineinfo", "-cubin", "-o",
                     cubin.name] + [f"-I{ROOT}/{d}" for d in ("", "cuda", "include", "common")] +
                    [os.path.abspath(source)])
                text = run([disassembler, "-gi", "-hex", "-c", cubin.name])
        names = [name for name, _ in functions(text)]
        plain = run(["c++filt"] + names).splitlines() if names else []
        for (name, body), pretty in zip(functions(text), plain):
            pretty = re.sub(r"^void ", "", pretty)
            depth, cut = 0, len(pretty)
            for at, c in enumerate(pretty):  # without the parameters
                depth += (c == "<") - (c == ">")
                if c == "(" and depth == 0:
                    cut = at
                    break
            if not re.search(only, pretty):
                continue
            for i in body:
                for path, _ in i.frames:
                    if "/cuda/" in path and "/targets/" not in path:
                        used[os.path.basename(path)] = path
            out.append(f"kernel {pretty[:cut]}")
            found = weights(body)
            for (path, line, kind) in sorted(found):
                n, sums = found[path, line, kind]
                counts = " ".join(f"{sums[p] / n:.4g}" for p in PIPES)
                out.append(f"{path}:{line} {kind} {counts}")
    with open(out_path, "w", encoding="utf-8") as file:
        file.write(f"# made by validation/timeline_weights.py for {arch}: see there\n")
        for name, path in sorted(used.items()):
            with open(path, "rb") as source:
                file.write(f"source {name} {zlib.crc32(source.read()):08x}\n")
        file.write("\n".join(out) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("-o", help="file to write, of the sources that follow")
    parser.add_argument("--arch", help="sm_90a or sm_100f, with -o")
    parser.add_argument("--only", default="", help="kernels whose name this pattern finds")
    parser.add_argument("--disassembly", help="text of nvdisasm -gi -hex -c, instead of compiling")
    parser.add_argument("what", nargs="*", help="names of validation/timeline, or sources with -o")
    args = parser.parse_args()
    if args.o:
        if not args.arch or not args.what:
            parser.error("-o wants --arch and sources")
        make(args.o, args.arch, args.what, args.only, args.disassembly)
        return
    known = {held[0] for held in HELD}
    for name in args.what:
        if name not in known:
            parser.error(f"got {name}, want one of {', '.join(sorted(known))}")
    for name, arch, source, only in HELD:
        if not args.what or name in args.what:
            make(os.path.join(ROOT, "validation", "timeline", name + ".txt"), arch,
                 [os.path.join(ROOT, source)], only)


if __name__ == "__main__":
    main()
