#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Registers, static shared memory and spills of the kernels in CUDA files, as ptxas reports them:
# the table of docs/performance.md.
#   bench/kernel_table.sh [FILE.cu...]     (default: cuda/any/*.cu)
# MLA_ARCHS: architectures, default "80 90 120f". Nothing is linked or run; needs nvcc.
set -u -o pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
files=("$@")
[ ${#files[@]} -gt 0 ] || files=(cuda/any/*.cu)
archs=${MLA_ARCHS:-80 90 120f}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

for file in "${files[@]}"; do
    for arch in $archs; do
        nvcc -std=c++17 -gencode="arch=compute_$arch,code=sm_$arch" -Xptxas -v -Iinclude -Icommon \
            -Icuda -I. -c "$file" -o "$work/out.o" 2>"$work/log" ||
            { cat "$work/log" >&2; exit 1; }
        # One line a kernel: name, registers, spilled bytes (stored, loaded), static shared memory.
        awk -v file="$(basename "$file")" -v arch="$arch" '
            /Compiling entry function/ { split($0, part, "\047"); name = part[2] }
            /bytes spill stores/ { stored = $5; loaded = $9 }
            /Used [0-9]+ registers/ {
                shared = 0
                for (i = 1; i < NF; i++) {
                    if ($i == "Used") registers = $(i + 1)
                    if ($(i + 1) == "bytes" && $(i + 2) ~ /^smem/) shared = $i
                }
                print file, name, arch, registers, stored, loaded, shared
            }' "$work/log" >>"$work/all"
    done
done

# A row a kernel; columns in the order of archs.
printf '| file | kernel | static shared |'
for arch in $archs; do printf ' sm_%s |' "$arch"; done
printf '\n| --- | --- | --- |'
for arch in $archs; do printf ' --- |'; done
printf '\n'
awk -v archs="$archs" '
    { key = $1 " " $2
      if (!(key in seen)) { seen[key] = 1; keys[n++] = key; shared[key] = $7 }
      cell[key, $3] = $4 ($5 + $6 ? ", spills " $5 " and " $6 : "") }
    END {
        count = split(archs, arch, " ")
        for (i = 0; i < n; i++) {
            split(keys[i], part, " ")
            line = "| " part[1] " | " part[2] " | " shared[keys[i]] " |"
            for (j = 1; j <= count; j++) line = line " " cell[keys[i], arch[j]] " |"
            print line
        }
    }' "$work/all" | c++filt |
    sed -E 's/\((struct )?(mla_|index_|work)[^|]*\) \|/ |/; s/void //' # arguments and type of result say nothing
