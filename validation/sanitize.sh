#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Every CUDA kernel under compute-sanitizer, on small shapes.
#   validation/sanitize.sh [BUILD] [TOOL...]
# BUILD: build tree with mla and the device tests (default: build). TOOLs: memcheck, racecheck,
# initcheck, synccheck (default: all four). Each line of validation/shapes/smoke.txt (every route) and
# of any.txt (every tile of cuda/any) is judged by its bound too. MLA_SANITIZE_SHAPES names another shapes file,
# MLA_SANITIZE_SECONDS limits a command (default 600). Exit 0: nothing was found; 1: something was,
# the log is named; 3: no compute-sanitizer, or no device.
set -u -o pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
build=${1:-build}
[ $# -gt 0 ] && shift
tools=("$@")
[ ${#tools[@]} -gt 0 ] || tools=(memcheck racecheck initcheck synccheck)
shapes=${MLA_SANITIZE_SHAPES:-validation/shapes/smoke.txt}
seconds=${MLA_SANITIZE_SECONDS:-600}
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | head -n 1)
if [ -z "$sanitizer" ]; then
    echo "sanitize: no compute-sanitizer (it comes with the CUDA toolkit)"
    exit 3
fi
[ -x "$build/mla" ] || { echo "sanitize: no $build/mla"; exit 3; }
"$build/mla" check --backend cuda 'attend form=absorbed heads=1 batch=q1 rank=512 rope=64 topk=0' >/dev/null 2>&1
if [ $? -eq 3 ]; then
    "$build/mla" check --backend cuda 'attend form=absorbed heads=1 batch=q1 rank=512 rope=64 topk=0'
    exit 3
fi
logs=$(mktemp -d)
failed=0

# one TOOL NAME COMMAND...
one() {
    local tool=$1 name=$2 log status start=$SECONDS
    shift 2
    log="$logs/$tool-$name.txt"
    timeout "$seconds" "$sanitizer" --tool "$tool" --error-exitcode 99 "$@" >"$log" 2>&1
    status=$?
    printf '%-10s %-14s %4d s  %s\n' "$tool" "$name" $((SECONDS - start)) \
        "$(grep -E 'ERROR SUMMARY|RACECHECK SUMMARY' "$log" | tail -n 1)"
    if [ $status -eq 124 ]; then
        echo "  stopped after $seconds s: what ran so far is in $log"
        failed=1
    elif [ $status -ne 0 ]; then
        echo "  exit $status, log: $log"
        grep -m 6 -E '=========|FAIL' "$log"
        failed=1
    fi
}

for tool in "${tools[@]}"; do
    one "$tool" shapes "$build/mla" check --backend cuda --shapes "$shapes"
    one "$tool" any "$build/mla" check --backend cuda --shapes validation/shapes/any.txt
    [ -x "$build/tests/test_device_merge" ] && one "$tool" merge "$build/tests/test_device_merge"
    [ -x "$build/tests/test_cuda_index" ] && one "$tool" index "$build/tests/test_cuda_index" index
    [ -x "$build/tests/test_cuda_index" ] && one "$tool" topk "$build/tests/test_cuda_index" topk
    [ -x "$build/tests/test_cuda_index" ] && one "$tool" codec "$build/tests/test_cuda_index" codec
done
[ $failed -eq 0 ] && rm -rf "$logs"
exit $failed
