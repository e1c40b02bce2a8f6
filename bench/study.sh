#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Measures what docs/routing.md shows, on one GPU, in about the time given:
#   bench/study.sh OUTDIR [SECONDS [PROGRAM]]        (default: 180 s, build/mla)
# Every step writes its files when it is done; a step that fails or takes too long is given up, and
# the next one goes on. bench/figures.sh draws what is there.
set -u
here=$(cd "$(dirname "$0")" && pwd)
out=${1:?usage: bench/study.sh OUTDIR [SECONDS [PROGRAM]]}
seconds=${2:-180}
mla=${3:-$here/../build/mla}
backend=${STUDY_BACKEND:-cuda}
mkdir -p "$out"
start=$(date +%s)

# step NAME SHARE ARGUMENTS...: a share of the time in percent, for the program with --seconds;
# stopped when it is a fifth late.
step() {
    local name=$1 share=$2 time began
    shift 2
    time=$((seconds * share / 100))
    time=$((time > 1 ? time : 1))
    began=$(date +%s)
    timeout -s INT -k 4 $((time + time / 5 + 6)) \
        "$mla" "$@" --backend "$backend" --seconds "$time" >"$out/$name.txt" 2>"$out/$name.err"
    local rc=$?
    [ -s "$out/$name.err" ] || rm -f "$out/$name.err"
    echo "$name: exit $rc, $(($(date +%s) - began)) s of $time"
}

sweep() {
    local name=$1 share=$2 routes=$3
    step "$name" "$share" bench --config "$here/configs/$name.txt" --routes "$routes" \
        --repeats 9 --json "$out/$name.json"
}

"$mla" info >"$out/info.txt" 2>&1
# A kernel that fails ends its step: caches are measured apart, and their tables joined.
step tune 27 tune -o "$out/crossovers.txt" --limit 40 \
    --model deepseek-v3.2,glm-5 --cache bf16
step tune_fp8 19 tune -o "$out/crossovers_fp8.txt" --limit 30 \
    --model deepseek-v3.2,glm-5 --cache fp8_ds_mla
if [ -s "$out/crossovers.txt" ] && [ -s "$out/crossovers_fp8.txt" ]; then
    sed -n '/^curve/,$p' "$out/crossovers_fp8.txt" >>"$out/crossovers.txt"
    rm "$out/crossovers_fp8.txt"
elif [ -s "$out/crossovers_fp8.txt" ]; then
    mv "$out/crossovers_fp8.txt" "$out/crossovers.txt"
fi
[ -s "$out/crossovers.txt" ] && export MLA_CROSSOVERS=$out/crossovers.txt
sweep routes_serving 9 all
step regret 13 tune --from "$out/crossovers.txt" --regret 1000 --json "$out/regret.json" \
    --model deepseek-v3.2,glm-5 --cache bf16
step regret_fp8 7 tune --from "$out/crossovers.txt" --regret 1000 --json "$out/regret_fp8.json" \
    --model deepseek-v3.2,glm-5 --cache fp8_ds_mla
sweep routes_16 9 all,indexer
sweep routes_shared 2 masked-mha
sweep routes_glm5 5 masked-mha,sparse-mqa,auto
sweep routes_128 6 masked-mha,sparse-mqa,auto
sweep routes_cache 3 masked-mha,sparse-mqa
echo "$(($(date +%s) - start)) s in all"
