/* SPDX-License-Identifier: Apache-2.0 */
/* MLA_CLONES before a function definition compiles it for plain x86-64 and for AVX2 and lets the
 * loader pick. Results are the same bits: no contraction to fused operations is allowed by it. */
#ifndef MLA_COMMON_SIMD_H
#define MLA_COMMON_SIMD_H

#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define MLA_NO_CLONES /* resolvers run before the sanitizer's own start-up */
#endif
#endif
#if defined(__SANITIZE_THREAD__)
#define MLA_NO_CLONES
#endif

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(MLA_NO_CLONES)
#define MLA_CLONES __attribute__((target_clones("avx2", "default")))
#else
#define MLA_CLONES
#endif

#endif
