#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The symbols that libmla.so exports must be those of tests/exports.txt, and all start with mla_.
# usage: exports.sh LIBMLA_SO EXPORTS_TXT [--update]
set -eu -o pipefail
export LC_ALL=C
library=$1 list=$2
actual=$(mktemp)
trap 'rm -f "$actual"' EXIT
nm --dynamic --defined-only "$library" | awk 'NF == 3 { print $3 }' | sort > "$actual"

if leaked=$(grep -v '^mla_' "$actual"); then
    printf 'FAIL exported without the prefix mla_:\n%s\n' "$leaked"
    exit 1
fi
if [ "${3-}" = --update ]; then
    cp "$actual" "$list"
    echo "$list: $(wc -l < "$list") symbols"
    exit 0
fi
if ! diff -u --label "$list (checked in)" --label "$library" "$list" "$actual"; then
    echo "FAIL exported symbols differ: - is gone, + is new. If that is meant: ./dev exports"
    exit 1
fi
echo "$(wc -l < "$list") symbols, as listed"
