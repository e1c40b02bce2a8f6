#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A build with the CUDA backend where no device can be used: the program starts (it needs no driver to
# be loaded), says why there is no CUDA, and the CPU works as ever.
# usage: no_device.sh MLA
set -u -o pipefail
mla=$1 problem='attend model=tiny batch=q8,2q1s40'
export CUDA_VISIBLE_DEVICES=
fail() {
    printf 'FAIL %s\n' "$*"
    exit 1
}

if command -v readelf >/dev/null && readelf -d "$mla" | grep -E 'NEEDED.*(libcuda|libcublas|libcudart)'; then
    fail "$mla does not start without the libraries above"
fi
said=$("$mla" check --backend cuda "$problem" 2>&1)
[ $? -eq 3 ] || fail "want exit status 3 of --backend cuda: $said"
grep -q 'no CUDA device: .' <<<"$said" || fail "no reason why: $said"
said=$("$mla" info) # whole: a reader that stops early would break the pipe
grep -q '^cuda  *not here: .' <<<"$said" || fail "mla info does not say why there is no CUDA"
"$mla" check "$problem" >/dev/null || fail "the CPU does not work"
echo "passed: $(grep '^cuda  *not here: .' <<<"$said")"
