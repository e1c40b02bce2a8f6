/* SPDX-License-Identifier: Apache-2.0 */
/* Row operations of the softmax, compiled for several instruction sets; the best one that this
 * processor runs is taken at run time. Plain C with a polynomial exp: no fast-math, since NaN and
 * infinities keep their meaning here.
 *
 * Errors of exp: the polynomials (interpolation at Chebyshev points, 0 among them, so that
 * exp(0) = 1 exactly) are within 2.6e-9 (float, degree 6) and 6e-20 (double, degree 12) relative on
 * |r| <= log(2)/2; the rest is rounding. tests/test_softmax.c holds them to 1.5 ulp. */
#include "reference/attend.h"

#include <math.h>

#if defined(__x86_64__) && defined(__GNUC__)
#define HAVE_X86 1
#endif

/* Float. log(2) is split so that n times the high part is exact. */
#define REAL float
#define UINT uint32_t
#define EXP_POLYNOMIAL(r)                                                                          \
    ((((((0x1.6d7543e4127b8p-10f * r + 0x1.126fb8fa71fe6p-7f) * r + 0x1.5554accfdb593p-5f) * r +   \
        0x1.5554041b96acbp-3f) *                                                                   \
           r +                                                                                     \
       0x1.000000287f871p-1f) *                                                                    \
          r +                                                                                      \
      0x1.000000a21653fp+0f) *                                                                     \
         r +                                                                                       \
     0x1p+0f)
#define EXP_LOWEST -0x1.5d589ep+6f /* -87.33654: above it 2^n is normal */
#define EXP_LOG2E 0x1.715476p+0f
#define EXP_LN2_HIGH 0x1.62ep-1f
#define EXP_LN2_LOW 0x1.0bfbe8p-15f
#define EXP_MAGIC 0x1.8p+23f
#define EXP_BIAS 127u
#define EXP_MANTISSA_BITS 23

#define TARGET
#define NAME(x) x##_f32_generic
#include "softmax_tmpl.c"
#undef TARGET
#undef NAME
#ifdef HAVE_X86
#define TARGET __attribute__((target("avx2,fma")))
#define NAME(x) x##_f32_avx2
#include "softmax_tmpl.c"
#undef TARGET
#undef NAME
#define TARGET __attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")))
#define NAME(x) x##_f32_avx512
#include "softmax_tmpl.c"
#undef TARGET
#undef NAME
#endif

#undef REAL
#undef UINT
#undef EXP_POLYNOMIAL
#undef EXP_LOWEST
#undef EXP_LOG2E
#undef EXP_LN2_HIGH
#undef EXP_LN2_LOW
#undef EXP_MAGIC
#undef EXP_BIAS
#undef EXP_MANTISSA_BITS

/* Double. */
#define REAL double
#define UINT uint64_t
#define EXP_POLYNOMIAL(r)                                                                          \
    ((((((((((((0x1.1f8b4c07a830ep-29 * r + 0x1.af786b6980611p-26) * r + 0x1.27e4cc136cceep-22) *  \
                  r +                                                                              \
              0x1.71dde7623360dp-19) *                                                             \
                 r +                                                                               \
             0x1.a01a01adc4979p-16) *                                                              \
                r +                                                                                \
            0x1.a01a01b805d39p-13) *                                                               \
               r +                                                                                 \
           0x1.6c16c16c14d70p-10) *                                                                \
              r +                                                                                  \
          0x1.111111110db6bp-7) *                                                                  \
             r +                                                                                   \
         0x1.5555555555559p-5) *                                                                   \
            r +                                                                                    \
        0x1.5555555555562p-3) *                                                                    \
           r +                                                                                     \
       0x1p-1) *                                                                                   \
          r +                                                                                      \
      0x1p+0) *                                                                                    \
         r +                                                                                       \
     0x1p+0)
#define EXP_LOWEST -0x1.6232bdd7abcd2p+9 /* -708.396 */
#define EXP_LOG2E 0x1.71547652b82fep+0
#define EXP_LN2_HIGH 0x1.62e42fefa0000p-1
#define EXP_LN2_LOW 0x1.cf79abc9e3b39p-40
#define EXP_MAGIC 0x1.8p+52
#define EXP_BIAS 1023u
#define EXP_MANTISSA_BITS 52

#define TARGET
#define NAME(x) x##_f64_generic
#include "softmax_tmpl.c"
#undef TARGET
#undef NAME
#ifdef HAVE_X86
#define TARGET __attribute__((target("avx2,fma")))
#define NAME(x) x##_f64_avx2
#include "softmax_tmpl.c"
#undef TARGET
#undef NAME
#define TARGET __attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")))
#define NAME(x) x##_f64_avx512
#include "softmax_tmpl.c"
#undef TARGET
#undef NAME
#endif

static bool runs_generic(void)
{
    return true;
}
#ifdef HAVE_X86
static bool runs_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
static bool runs_avx512(void)
{
    return runs_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

/* Best first; the last one runs anywhere. */
static const struct set {
    const char *name;
    bool (*runs)(void);
    struct mla_softmax_f32 f32;
    struct mla_softmax_f64 f64;
} sets[] = {
#ifdef HAVE_X86
    {"avx512",
     runs_avx512,
     {row_max_f32_avx512, row_exp_f32_avx512},
     {row_max_f64_avx512, row_exp_f64_avx512}},
    {"avx2", runs_avx2, {row_max_f32_avx2, row_exp_f32_avx2}, {row_max_f64_avx2, row_exp_f64_avx2}},
#endif
    {"generic",
     runs_generic,
     {row_max_f32_generic, row_exp_f32_generic},
     {row_max_f64_generic, row_exp_f64_generic}},
};

static const struct set *best(void)
{
    const struct set *set = sets;
    while (!set->runs())
        set++;
    return set;
}

const struct mla_softmax_f32 *mla_softmax_f32(void)
{
    return &best()->f32;
}

const struct mla_softmax_f64 *mla_softmax_f64(void)
{
    return &best()->f64;
}

bool mla_softmax_get(int i, const char **name, bool *runs, const struct mla_softmax_f32 **f32,
                     const struct mla_softmax_f64 **f64)
{
    if (i < 0 || i >= (int)(sizeof sets / sizeof sets[0]))
        return false;
    *name = sets[i].name;
    *runs = sets[i].runs();
    *f32 = &sets[i].f32;
    *f64 = &sets[i].f64;
    return true;
}
