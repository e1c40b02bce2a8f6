/* SPDX-License-Identifier: Apache-2.0 */
/* Panels with AVX2 and FMA, in GNU vector types. Both products are the same inner kernel: 6 numbers
 * of a key (or value) row, each times the 16 lanes, in 12 accumulators; a step needs 2 vector loads
 * and 6 broadcasts for 12 fused operations, which leaves the multipliers the bottleneck. */
#include "reference/panel.h"

#include "reference/attend.h"

#include <math.h>
#include <stddef.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)

#define TARGET __attribute__((target("avx2,fma")))
#define INLINE TARGET __attribute__((always_inline)) static inline
enum { TILE = 6, LANES = 8 };

typedef float vec __attribute__((vector_size(32)));
typedef int32_t ivec __attribute__((vector_size(32)));
typedef float vec_u __attribute__((vector_size(32), aligned(4)));

INLINE vec load(const float *x)
{
    return *(const vec_u *)x;
}

INLINE void store(float *x, vec v)
{
    *(vec_u *)x = v;
}

INLINE vec fill(float x)
{
    return (vec){x, x, x, x, x, x, x, x};
}

INLINE ivec fill_int(int32_t x)
{
    return (ivec){x, x, x, x, x, x, x, x};
}

INLINE vec pick(ivec mask, vec yes, vec no)
{
    return (vec)((mask & (ivec)yes) | (~mask & (ivec)no));
}

INLINE vec larger(vec a, vec b) /* b where a is NaN */
{
    return pick(a > b, a, b);
}

/* exp as in softmax_tmpl.c, eight at a time. */
INLINE vec exp_vec(vec x)
{
    ivec low = x < fill(-0x1.5d589ep+6f);
    vec clamped = pick(low, fill(-0x1.5d589ep+6f), x);
    vec shifted = clamped * 0x1.715476p+0f + 0x1.8p+23f;
    vec n = shifted - 0x1.8p+23f;
    vec r = clamped - n * 0x1.62ep-1f;
    r = r - n * 0x1.0bfbe8p-15f;
    vec y = fill(0x1.6d7543e4127b8p-10f);
    y = y * r + 0x1.126fb8fa71fe6p-7f;
    y = y * r + 0x1.5554accfdb593p-5f;
    y = y * r + 0x1.5554041b96acbp-3f;
    y = y * r + 0x1.000000287f871p-1f;
    y = y * r + 0x1.000000a21653fp+0f;
    y = y * r + 1.0f;
    y *= (vec)(((ivec)shifted + 127) << 23);
    return (vec)(~low & (ivec)y);
}

/* acc[i][lanes] += sum over k of a[i] at step k times b[k][lanes], for n <= 6 rows. Element i of
 * step k is a[i · row + k · step]. */
INLINE void multiply(int n, const float *a, int64_t row, int64_t step, const float *b,
                     int64_t count, vec acc[TILE][2])
{
    vec c[TILE][2];
    for (int i = 0; i < n; i++) {
        c[i][0] = acc[i][0];
        c[i][1] = acc[i][1];
    }
    for (int64_t k = 0; k < count; k++) {
        vec b0 = load(b + k * MLA_PANEL), b1 = load(b + k * MLA_PANEL + LANES);
#pragma GCC unroll 6
        for (int i = 0; i < n; i++) {
            vec x = fill(a[i * row + k * step]);
            c[i][0] += x * b0;
            c[i][1] += x * b1;
        }
    }
    for (int i = 0; i < n; i++) {
        acc[i][0] = c[i][0];
        acc[i][1] = c[i][1];
    }
}

INLINE void score_rows(const struct mla_panel *p, int64_t j, int n)
{
    vec acc[TILE][2];
    for (int i = 0; i < n; i++)
        acc[i][0] = acc[i][1] = fill(0);
    multiply(n, p->key + j * p->ld_key, p->ld_key, 1, p->q, p->d_k, acc);
    for (int i = 0; i < n; i++) {
        store(p->score + (j + i) * MLA_PANEL, acc[i][0] * p->alpha);
        store(p->score + (j + i) * MLA_PANEL + LANES, acc[i][1] * p->alpha);
    }
}

TARGET static void panel_score(const struct mla_panel *p)
{
    int64_t j = 0;
    for (; j + TILE <= p->keys; j += TILE)
        score_rows(p, j, TILE);
    if (p->keys - j >= 4) {
        score_rows(p, j, 4);
        j += 4;
    }
    if (p->keys - j >= 2) {
        score_rows(p, j, 2);
        j += 2;
    }
    if (j < p->keys)
        score_rows(p, j, 1);
}

INLINE void value_columns(const struct mla_panel *p, int64_t c, int n)
{
    vec acc[TILE][2];
    float *out = p->out + c * MLA_PANEL;
    for (int i = 0; i < n; i++) {
        acc[i][0] = load(out + i * MLA_PANEL);
        acc[i][1] = load(out + i * MLA_PANEL + LANES);
    }
    multiply(n, p->value + c, 1, p->ld_value, p->score, p->keys, acc);
    for (int i = 0; i < n; i++) {
        store(out + i * MLA_PANEL, acc[i][0]);
        store(out + i * MLA_PANEL + LANES, acc[i][1]);
    }
}

TARGET static void panel_value(const struct mla_panel *p)
{
    int64_t c = 0;
    for (; c + TILE <= p->d_v; c += TILE)
        value_columns(p, c, TILE);
    if (p->d_v - c >= 4) {
        value_columns(p, c, 4);
        c += 4;
    }
    if (p->d_v - c >= 2) {
        value_columns(p, c, 2);
        c += 2;
    }
    if (c < p->d_v)
        value_columns(p, c, 1);
}

/* Scores that a lane does not see become -inf. Returns in seen the lanes that see any key. */
INLINE void hide(const struct mla_panel *p, ivec seen[2])
{
    vec none = fill(-INFINITY);
    ivec word[2] = {fill_int(0), fill_int(0)}, end[2];
    memcpy(end, p->end, sizeof end);
    seen[0] = seen[1] = fill_int(0);
    for (int64_t j = 0; j < p->keys; j++) {
        if (p->bits[0] && j % 32 == 0) {
            int32_t words[MLA_PANEL];
            for (int l = 0; l < MLA_PANEL; l++)
                words[l] = (int32_t)p->bits[l][j / 32];
            memcpy(word, words, sizeof word);
        }
        ivec gone = fill_int(p->hidden && p->hidden[j] & 1 ? -1 : 0);
        for (int half = 0; half < 2; half++) {
            float *s = p->score + j * MLA_PANEL + half * LANES;
            ivec shown = p->bits[0] ? (word[half] << fill_int(31 - (int)(j % 32))) >> 31
                                    : (ivec)(fill_int((int32_t)j) < end[half]);
            shown &= ~gone;
            seen[half] |= shown;
            store(s, pick(shown, load(s), none));
        }
    }
}

/* A lane that has seen only -inf keeps maximum -inf and sum -1: see take_row in attend_tmpl.c. */
TARGET static void panel_softmax(const struct mla_panel *p)
{
    ivec seen[2] = {fill_int(-1), fill_int(-1)};
    if (p->masked || p->hidden)
        hide(p, seen);
    vec none = fill(-INFINITY);
    vec old0 = load(p->state), old1 = load(p->state + LANES), max0 = old0, max1 = old1;
    vec m0[2] = {none, none}, m1[2] = {none, none};
    int64_t j = 0;
    for (; j + 2 <= p->keys; j += 2) {
        const float *s = p->score + j * MLA_PANEL;
        m0[0] = larger(load(s), m0[0]);
        m1[0] = larger(load(s + LANES), m1[0]);
        m0[1] = larger(load(s + MLA_PANEL), m0[1]);
        m1[1] = larger(load(s + MLA_PANEL + LANES), m1[1]);
    }
    if (j < p->keys) {
        m0[0] = larger(load(p->score + j * MLA_PANEL), m0[0]);
        m1[0] = larger(load(p->score + j * MLA_PANEL + LANES), m1[0]);
    }
    max0 = larger(larger(m0[0], m0[1]), max0);
    max1 = larger(larger(m1[0], m1[1]), max1);
    vec sum0 = load(p->state + MLA_PANEL), sum1 = load(p->state + MLA_PANEL + LANES);
    ivec grown0 = max0 > old0, grown1 = max1 > old1, grown = grown0 | grown1;
    int32_t lanes[LANES], any = 0;
    memcpy(lanes, &grown, sizeof lanes);
    for (int l = 0; l < LANES; l++)
        any |= lanes[l];
    if (any) {
        /* A lane that starts has nothing to rescale; its sum was 0, -1 or NaN. */
        ivec start0 = grown0 & (old0 == none), start1 = grown1 & (old1 == none);
        sum0 = pick(start0 & (sum0 < fill(0)), fill(0), sum0);
        sum1 = pick(start1 & (sum1 < fill(0)), fill(0), sum1);
        vec f0 = pick(grown0 & ~start0, exp_vec(old0 - max0), fill(1));
        vec f1 = pick(grown1 & ~start1, exp_vec(old1 - max1), fill(1));
        sum0 *= f0;
        sum1 *= f1;
        for (int64_t c = 0; c < p->d_v; c++) {
            float *o = p->out + c * MLA_PANEL;
            store(o, load(o) * f0);
            store(o + LANES, load(o + LANES) * f1);
        }
        store(p->state, max0);
        store(p->state + LANES, max1);
    }
    ivec empty0 = max0 == none, empty1 = max1 == none;
    vec shift0 = pick(empty0, fill(0), max0), shift1 = pick(empty1, fill(0), max1);
    vec part0 = fill(0), part1 = fill(0);
    for (j = 0; j < p->keys; j++) {
        float *s = p->score + j * MLA_PANEL;
        vec y0 = exp_vec(load(s) - shift0), y1 = exp_vec(load(s + LANES) - shift1);
        store(s, y0);
        store(s + LANES, y1);
        part0 += y0;
        part1 += y1;
    }
    sum0 += part0;
    sum1 += part1;
    sum0 = pick(empty0 & seen[0] & (sum0 == fill(0)), fill(-1), sum0);
    sum1 = pick(empty1 & seen[1] & (sum1 == fill(0)), fill(-1), sum1);
    store(p->state + MLA_PANEL, sum0);
    store(p->state + MLA_PANEL + LANES, sum1);
}

TARGET static void panel_transpose(const float *from, int64_t rows, int64_t columns,
                                   int64_t ld_from, float *to, int64_t ld_to)
{
    for (int64_t i0 = 0; i0 < rows; i0 += LANES)
        for (int64_t c = 0; c < columns; c++)
            for (int64_t i = i0; i < rows && i < i0 + LANES; i++)
                to[c * ld_to + i] = from[i * ld_from + c];
}

const struct mla_panel_ops *mla_panel_ops(void)
{
    static const struct mla_panel_ops ops = {panel_score, panel_softmax, panel_value,
                                             panel_transpose};
    bool runs = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    return runs ? &ops : NULL;
}

#else

const struct mla_panel_ops *mla_panel_ops(void)
{
    return NULL;
}

#endif
