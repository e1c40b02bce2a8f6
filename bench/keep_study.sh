#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Keeps what bench/study.sh measured on one device: the table of times goes to common/crossovers,
# where the next build takes it in, the other files to bench/results, figures and tables to docs.
#   bench/keep_study.sh FOLDER...            (MLA=PROGRAM draws; default: build/mla)
# Of several folders, files of the later ones win. The device is what line 2 of crossovers.txt
# names: h100, h200 or the like.
set -eu
cd "$(dirname "$0")/.."
[ $# -ge 1 ] || { sed -n '3,7p' "$0"; exit 2; }
both=$(mktemp -d)
trap 'rm -rf "$both"' EXIT
for folder in "$@"; do
    cp "$folder"/*.txt "$both"
    cp "$folder"/*.json "$both" 2>/dev/null || true
done
line=$(sed -n 2p "$both/crossovers.txt")
device=$(sed -n 's/^device cuda NVIDIA \([A-Za-z]*[0-9]*\)[ ,].*/\1/p' <<<"$line" | tr 'A-Z' 'a-z')
[ -n "$device" ] || { echo "keep_study: crossovers.txt names no NVIDIA device: '$line'" >&2; exit 1; }
mkdir -p common/crossovers "bench/results/$device"
rm -f "bench/results/$device"/*
mv "$both/crossovers.txt" "common/crossovers/$device.txt"
mv "$both"/* "bench/results/$device/"
bench/figures.sh "${MLA:-build/mla}"
echo "kept as $device: common/crossovers/$device.txt, bench/results/$device, docs"
