#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Compiles every public header alone, as C11 and as C++17, with each compiler that is here.
# usage: headers.sh SOURCE_DIR
set -u
cd "$1" || exit 2
warnings="-Wall -Wextra -pedantic -Werror -fsyntax-only -Iinclude"
failed=0 compiled=0
for header in include/mla/*.h; do
    for compiler in "gcc -x c -std=c11 -Wstrict-prototypes" "clang -x c -std=c11 -Wstrict-prototypes" \
                    "g++ -x c++ -std=c++17" "clang++ -x c++ -std=c++17"; do
        command -v "${compiler%% *}" >/dev/null || continue
        compiled=$((compiled + 1))
        # Twice: the include guard is part of the test.
        if ! printf '#include "mla/%s"\n#include "mla/%s"\n' "${header##*/}" "${header##*/}" |
            $compiler $warnings -; then
            echo "FAIL $header alone: $compiler"
            failed=$((failed + 1))
        fi
    done
done
echo "$compiled compilations, $failed failed"
[ "$compiled" -gt 0 ] && [ "$failed" -eq 0 ]
