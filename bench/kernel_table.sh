#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Registers, static shared memory and spills of every kernel, as ptxas reports them: makes
# docs/kernel-table.md.
#   bench/kernel_table.sh > docs/kernel-table.md
#   bench/kernel_table.sh FILE.cu...           tables of these files only
# Each family has its architectures: any/ sm_80, sm_90 and sm_120f; sm90/ sm_90a; sm100/ sm_100f.
# MLA_ARCHS names others. Nothing is linked or run; needs nvcc. MLA_JOBS compile at a time (default:
# all processors).
set -u -o pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# One compilation: a line a kernel, with file, name, architecture, registers, bytes spilled (stored,
# loaded), static shared memory.
compile() {
    local file=$1 arch=$2 out="$3/${1//\//_}.$2"
    nvcc -std=c++17 -gencode="arch=compute_$arch,code=sm_$arch" -Xptxas -v -Iinclude -Icommon \
        -Icuda -I. -c "$file" -o "$out.o" 2>"$out.log" || { cat "$out.log" >&2; return 1; }
    rm -f "$out.o"
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
        }' "$out.log" >"$out.rows"
}
export -f compile

# table ARCHS FILE...: a row a kernel; columns in the order of archs.
table() {
    local archs=$1 file arch
    shift
    for file in "$@"; do
        for arch in $archs; do printf '%s %s\n' "$file" "$arch"; done
    done | xargs -P "${MLA_JOBS:-$(nproc)}" -L 1 bash -c "compile \"\$0\" \"\$1\" $work" || exit 1
    printf '| file | kernel | static shared |'
    for arch in $archs; do printf ' sm_%s |' "$arch"; done
    printf '\n| --- | --- | --- |'
    for arch in $archs; do printf ' --- |'; done
    printf '\n'
    for file in "$@"; do
        for arch in $archs; do cat "$work/${file//\//_}.$arch.rows" 2>/dev/null; done
    done | awk -v archs="$archs" '
        { key = $1 " " $2
          if (!(key in seen)) { seen[key] = 1; keys[n++] = key; shared[key] = $7 }
          cell[key, $3] = $4 ($5 + $6 ? ", spills " $5 " and " $6 : "") }
        END {
            count = split(archs, arch, " ")
            for (i = 0; i < n; i++) {
                split(keys[i], part, " ")
                line = "| `" part[1] "` | " part[2] " | " shared[keys[i]] " |"
                for (j = 1; j <= count; j++) line = line " " cell[keys[i], arch[j]] " |"
                print line
            }
        }' | c++filt |
        # Arguments and type of result say nothing.
        sed -E 's/ (void )?([a-z_0-9]+(<[^>]*>)?)\([^|]*\) \|/ `\2` |/'
}

if [ $# -gt 0 ]; then
    table "${MLA_ARCHS:-80 90 120f}" "$@"
    exit
fi
cat <<END
# Registers and spills of the CUDA kernels

Made by \`bench/kernel_table.sh\` with $(nvcc --version | sed -nE 's/.*(release [0-9.]+).*/nvcc \1/p'); not edited by hand. A cell
holds registers a thread and, where there are any, bytes of spills (stored and loaded). Shared memory is the static part:
most kernels ask for theirs at launch, and their files' top comments have it.

## For any GPU from sm_80

END
table "${MLA_ARCHS:-80 90 120f}" cuda/any/*.cu
printf '\n## sm_90a\n\n'
table "${MLA_ARCHS:-90a}" cuda/sm90/*.cu
printf '\n## sm_100f\n\n'
table "${MLA_ARCHS:-100f}" cuda/sm100/*.cu
