#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What the disassembly of kernels holds: a line a kernel, with how often each instruction occurs that
# moves data or multiplies.
#   bench/kernel_code.sh FILE.cu... [-- ARCH]        ARCH: 100f (default), 90a, ...
# Nothing is linked or run; needs nvcc and nvdisasm (from PATH or NVDISASM).
set -u -o pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
arch=100f files=()
while [ $# -gt 0 ]; do
    if [ "$1" = -- ]; then
        arch=$2
        break
    fi
    files+=("$1")
    shift
done
[ ${#files[@]} -gt 0 ] || { echo "usage: bench/kernel_code.sh FILE.cu... [-- ARCH]" >&2; exit 1; }
cubin=$(mktemp)
trap 'rm -f "$cubin"' EXIT
for file in "${files[@]}"; do
    echo "$file"
    nvcc -std=c++17 -gencode="arch=compute_$arch,code=sm_$arch" -O3 -Iinclude -Icommon -Icuda -I. \
        -cubin -o "$cubin" "$file" || exit 1
    "${NVDISASM:-nvdisasm}" -c "$cubin" | awk '
        /\.section[ \t]+\.text\./ { name = $0; sub(/.*\.text\./, "", name); sub(/[,"].*/, "", name) }
        match($0, /\*\/ +(@!?U?P[0-9T]+ +)?[A-Z][A-Z0-9_.]+/) {
            word = substr($0, RSTART, RLENGTH)
            sub(/.* /, "", word)
            split(word, part, ".")
            if (part[1] ~ /^(UTC.*|UTMA.*|UBLKCP|LDTM|STTM|LDGSTS|LDSM|[HQI]MMA|[HQI]GMMA|MUFU|FFMA2|FADD2|FMUL2|FMNMX3?|SHFL|USETMAXREG|STL|LDL)$/)
                count[name " " part[1]]++
        }
        END { for (key in count) print key, count[key] }' | sort | awk '
        $1 != name { if (name != "") print line; name = $1; line = "  " name ":" }
        { line = line " " $2 " " $3 }
        END { if (name != "") print line }' | c++filt
done
