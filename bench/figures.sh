#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Draws the figures and writes the tables of docs/routing.md and docs/performance.md from
# bench/results: bench/figures.sh [PROGRAM]
set -eu
cd "$(dirname "$0")/.."
mla=${1:-build/mla}
mkdir -p docs/figures
for results in bench/results/h*/; do
    device=$(basename "$results")
    # draw ROWS KIND...: docs/figures/DEVICE_ROWS.KIND.svg
    draw() {
        local rows=$1 kind
        shift
        [ -s "$results/$rows.json" ] || return 0
        for kind in "$@"; do
            "$mla" bench --from "$results/$rows.json" \
                --plot "docs/figures/${device}_$rows.$kind.svg" || true # too few rows
        done
    }
    draw routes_16 time roofline
    draw routes_128 heat
    draw routes_glm5 heat
    draw routes_cache time
    draw routes_serving mixed
done
python3 bench/study_tables.py bench/results docs/routing.md docs/performance.md
