/* SPDX-License-Identifier: Apache-2.0 */
/* Row operations of the softmax for one type and one instruction set; included by softmax.c with
 * REAL, INT, UINT, TARGET, NAME and the constants of exp set. Sums run in 32 lanes whatever the
 * set, so the order of additions is the same everywhere. */

#define LANES 32

/* exp(x) for x <= 0: x = n·log(2) + r with |r| <= log(2)/2, a polynomial in r, then 2^n put
 * together from its exponent bits. The magic number rounds to an integer and leaves it in the low
 * bits. */
TARGET static inline REAL NAME(exp_one)(REAL x)
{
    REAL clamped = x < EXP_LOWEST ? EXP_LOWEST : x; /* NaN stays */
    REAL shifted = clamped * EXP_LOG2E + EXP_MAGIC;
    REAL n = shifted - EXP_MAGIC;
    REAL r = clamped - n * EXP_LN2_HIGH;
    r = r - n * EXP_LN2_LOW;
    REAL y = EXP_POLYNOMIAL(r);
    union {
        REAL value;
        UINT bits;
    } power = {.value = shifted};
    power.bits = (power.bits + EXP_BIAS) << EXP_MANTISSA_BITS;
    y *= power.value;
    return x < EXP_LOWEST ? 0 : y;
}

/* x[l] where bit l of word is set, else -inf. */
TARGET static inline REAL NAME(shown)(REAL x, uint32_t word, int lane)
{
    return word >> lane & 1 ? x : -(REAL)INFINITY;
}

TARGET static REAL NAME(fold_max)(const REAL *lane)
{
    REAL max = lane[0];
    for (int l = 1; l < LANES; l++)
        max = lane[l] > max ? lane[l] : max;
    return max;
}

TARGET static REAL NAME(row_max)(const REAL *s, int64_t n, const uint32_t *words)
{
    REAL lane[LANES];
    for (int l = 0; l < LANES; l++)
        lane[l] = -(REAL)INFINITY;
    int64_t whole = n / LANES * LANES;
    if (words) {
        for (int64_t j = 0; j < whole; j += LANES) {
            uint32_t word = words[j / 32];
            const REAL *block = s + j;
#pragma omp simd
            for (int l = 0; l < LANES; l++) {
                REAL x = NAME(shown)(block[l], word, l);
                lane[l] = x > lane[l] ? x : lane[l];
            }
        }
    } else {
        for (int64_t j = 0; j < whole; j += LANES) {
            const REAL *block = s + j;
#pragma omp simd
            for (int l = 0; l < LANES; l++)
                lane[l] = block[l] > lane[l] ? block[l] : lane[l];
        }
    }
    for (int64_t j = whole; j < n; j++) {
        REAL x = words ? NAME(shown)(s[j], words[j / 32], j % 32) : s[j];
        lane[j - whole] = x > lane[j - whole] ? x : lane[j - whole];
    }
    return NAME(fold_max)(lane);
}

TARGET static REAL NAME(row_exp)(REAL *s, int64_t n, const uint32_t *words, REAL max)
{
    REAL lane[LANES] = {0};
    int64_t whole = n / LANES * LANES;
    if (words) {
        for (int64_t j = 0; j < whole; j += LANES) {
            uint32_t word = words[j / 32];
            REAL *block = s + j;
#pragma omp simd
            for (int l = 0; l < LANES; l++) {
                REAL y = NAME(exp_one)(NAME(shown)(block[l] - max, word, l));
                block[l] = y;
                lane[l] += y;
            }
        }
    } else {
        for (int64_t j = 0; j < whole; j += LANES) {
            REAL *block = s + j;
#pragma omp simd
            for (int l = 0; l < LANES; l++) {
                REAL y = NAME(exp_one)(block[l] - max);
                block[l] = y;
                lane[l] += y;
            }
        }
    }
    if (whole < n) {
        REAL tail[LANES];
        for (int l = 0; l < LANES; l++)
            tail[l] = whole + l < n ? s[whole + l] - max : -(REAL)INFINITY;
        uint32_t word = words ? words[whole / 32] : ~0u;
#pragma omp simd
        for (int l = 0; l < LANES; l++) {
            tail[l] = NAME(exp_one)(NAME(shown)(tail[l], word, l));
            lane[l] += tail[l];
        }
        for (int64_t j = whole; j < n; j++)
            s[j] = tail[j - whole];
    }
    for (int step = LANES / 2; step > 0; step /= 2) /* pairwise: a sum of exact integers is exact */
        for (int l = 0; l < step; l++)
            lane[l] += lane[l + step];
    return lane[0];
}

#undef LANES
