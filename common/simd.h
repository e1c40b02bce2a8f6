/* SPDX-License-Identifier: Apache-2.0 */
/* MLA_CLONES before a function definition compiles it for plain x86-64 and for AVX2 and lets the
 * loader pick. Results are the same bits: no contraction to fused operations is allowed by it.
 * Static functions only: gcc exports clones from a shared library whatever their visibility. */
#ifndef MLA_COMMON_SIMD_H
#define MLA_COMMON_SIMD_H

#include <limits.h> /* __GLIBC__ */

/* gcc alone: clang before 17 names the clones so that other files cannot find them, and it is here
 * for its sanitizers. Not under ThreadSanitizer: resolvers run before its own start-up. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) &&       \
    !defined(__SANITIZE_THREAD__)
#define MLA_CLONES __attribute__((target_clones("avx2", "default")))
#else
#define MLA_CLONES
#endif

#endif
