#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs libmla to a scratch prefix, shared and static, moves the tree, builds README's example
# against it in every way a user might, and compares what it prints with what README says.
# usage: install.sh SOURCE_DIR BUILD_DIR CMAKE C_COMPILER
set -eu -o pipefail
source=$1 build=$2 cmake=$3 cc=$4
case $cc in
    *clang*) cxx=${cc/clang/clang++} ;;
    *) cxx=${cc/%gcc/g++} cxx=${cxx/%\/cc/\/c++} ;;
esac
work=$(mktemp -d "${TMPDIR:-/tmp}/mla-install.XXXXXX")
trap 'rm -rf "$work"' EXIT
unset LD_LIBRARY_PATH PKG_CONFIG_PATH CMAKE_PREFIX_PATH
CMAKE_GENERATOR=$(sed -n 's/^CMAKE_GENERATOR:INTERNAL=//p' "$build/CMakeCache.txt") # there may be no make
export CMAKE_GENERATOR

say() { echo "-- $*"; }
quietly() { # shows output only of what fails
    if ! "$@" > "$work/log" 2>&1; then
        echo "FAIL: $*"
        cat "$work/log"
        exit 1
    fi
}
block() { # LANGUAGE: the first fenced block of README.md in that language
    awk -v fence='```'"$1" '$0 == fence && !n { on = 1; n = 1; next } /^```/ { on = 0 } on' \
        "$source/README.md"
}
judge() { # NAME PROGRAM...
    local name=$1
    shift
    if ! "$@" > "$work/got" 2>&1 || ! diff -u --label README --label "$name" "$work/want" "$work/got"; then
        echo "FAIL: $name: $* printed:"
        cat "$work/got"
        exit 1
    fi
    say "$name: ok"
}

block c > "$work/example.c"
cp "$work/example.c" "$work/example.cpp"
block text > "$work/want"
[ -s "$work/example.c" ] && [ -s "$work/want" ] || {
    echo "FAIL: README.md has no example (a block fenced as c, then its output as text)"
    exit 1
}

say "shared library"
quietly "$cmake" --install "$build" --prefix "$work/first"
mv "$work/first" "$work/shared" # nothing may remember where it was installed
say "static library"
quietly "$cmake" -S "$source" -B "$work/static-build" -DCMAKE_C_COMPILER="$cc" -DMLA_CUDA=OFF \
    -DBUILD_SHARED_LIBS=OFF -DMLA_TESTS=OFF -DMLA_TOOL=OFF -DCMAKE_BUILD_TYPE=Release
quietly "$cmake" --build "$work/static-build" --parallel 2
quietly "$cmake" --install "$work/static-build" --prefix "$work/first"
mv "$work/first" "$work/static"

library=$(find "$work/shared" -name 'libmla.so')
soname=$(objdump -p "$library" | awk '$1 == "SONAME" { print $2 }')
if [ "$soname" != libmla.so.0 ]; then
    echo "FAIL: SONAME: got $soname, want libmla.so.0"
    exit 1
fi
for header in "$source"/include/mla/*.h; do
    cmp "$header" "$work/shared/include/mla/${header##*/}"
done

# CMake: one project per language, so that neither leans on the other being enabled.
for language in C CXX; do
    suffix=c
    [ $language = C ] || suffix=cpp
    mkdir -p "$work/project-$language"
    cp "$work/example.$suffix" "$work/project-$language"
    cat > "$work/project-$language/CMakeLists.txt" <<END
cmake_minimum_required(VERSION 3.25)
project(example LANGUAGES $language)
set(CMAKE_CXX_STANDARD 17)
find_package(mla 0.1 REQUIRED)
add_executable(example example.$suffix)
target_link_libraries(example PRIVATE mla::mla)
END
    for kind in shared static; do
        tree=$work/cmake-$language-$kind
        quietly "$cmake" -S "$work/project-$language" -B "$tree" -DCMAKE_PREFIX_PATH="$work/$kind" \
            -DCMAKE_C_COMPILER="$cc" -DCMAKE_CXX_COMPILER="$cxx" -DCMAKE_BUILD_TYPE=Release
        quietly "$cmake" --build "$tree"
        judge "find_package, $language, $kind" "$tree/example"
    done
done

# pkg-config, by hand.
for kind in shared static; do
    pc=$(find "$work/$kind" -name mla.pc)
    export PKG_CONFIG_PATH=${pc%/*}
    option=
    [ $kind = shared ] || option=--static
    read -ra cflags <<< "$(pkg-config --cflags mla)"
    read -ra libs <<< "$(pkg-config $option --libs mla)"
    quietly "$cc" -std=c11 -pedantic -Wall -Wextra -Werror -D_DEFAULT_SOURCE "${cflags[@]}" \
        "$work/example.c" -o "$work/example-c" "${libs[@]}"
    quietly "$cxx" -std=c++17 -pedantic -Wall -Wextra -Werror "${cflags[@]}" \
        "$work/example.cpp" -o "$work/example-cpp" "${libs[@]}"
    for program in example-c example-cpp; do
        judge "pkg-config, $program, $kind" env LD_LIBRARY_PATH="$(dirname "$(find "$work/$kind" -name 'libmla.*' | head -1)")" \
            "$work/$program"
    done
done

if [ -x "$work/shared/bin/mla" ]; then
    quietly "$work/shared/bin/mla" --version
    say "bin/mla --version: ok"
    # README's support table names every kernel of this build.
    for kernel in $("$work/shared/bin/mla" info | awk '/^kernel / { on = 1; next } on && NF { print $1 }'); do
        grep -q "\`$kernel\`" "$source/README.md" || {
            echo "FAIL: README.md does not mention the kernel $kernel"
            exit 1
        }
    done
    say "README names every kernel: ok"
fi
