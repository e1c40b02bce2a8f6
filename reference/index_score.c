/* SPDX-License-Identifier: Apache-2.0 */
/* Lightning-indexer scores of one query row against 24 keys:
 *     I[s] = k_scale[s] · sum_h w[h] · ReLU(sum_d q[h,d] · k[s,d])
 * BLAS is no help here: its order of summation may change at the edges of a block, and scores must
 * not depend on blocking. Each key owns a vector lane instead, and lanes never mix. */
#include <string.h>

#include "common/format.h"
#include "index_score.h"

/* may_alias: panels are written as floats and read as vectors. */
typedef float vec __attribute__((vector_size(32), may_alias));
enum { LANES = 8, VECTORS = MLA_PANEL / LANES };

/* dots[head][key] for four heads and `vectors` · 8 keys; a chain over d in registers. */
static inline __attribute__((always_inline)) void tile(const float *q, const float *panel,
                                                       int64_t dim, int vectors, float *dots)
{
    vec c[MLA_TILE][VECTORS];
    for (int i = 0; i < MLA_TILE; i++) {
        for (int j = 0; j < vectors; j++)
            c[i][j] = (vec){0};
    }
    for (int64_t d = 0; d < dim; d++, q += MLA_TILE, panel += MLA_PANEL) {
        const vec *k = (const vec *)panel;
        for (int i = 0; i < MLA_TILE; i++) {
            for (int j = 0; j < vectors; j++)
                c[i][j] += q[i] * k[j];
        }
    }
    for (int i = 0; i < MLA_TILE; i++) {
        for (int j = 0; j < vectors; j++)
            ((vec *)(dots + i * MLA_PANEL))[j] = c[i][j];
    }
}

typedef void tile_function(const float *q, const float *panel, int64_t dim, float *dots);

/* Sixteen 128-bit registers hold the sums of eight keys, not of 24. */
static void tile_any(const float *q, const float *panel, int64_t dim, float *dots)
{
    for (int j = 0; j < VECTORS; j++)
        tile(q, panel + j * LANES, dim, 1, dots + j * LANES);
}

#if defined(__x86_64__)
__attribute__((target("avx2,fma"))) static void tile_avx2(const float *q, const float *panel,
                                                          int64_t dim, float *dots)
{
    tile(q, panel, dim, VECTORS, dots);
}
#endif

static tile_function *choose_tile(void)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return tile_avx2;
#endif
    return tile_any;
}

/* acc[key] += w[head] · ReLU(dots[head][key]), product and sum each rounded: fusing here would
 * make bits depend on the machine. */
#if defined(__clang__)
#pragma clang fp contract(off)
#else
__attribute__((optimize("fp-contract=off")))
#endif
__attribute__((noinline)) static void add_heads(const float *dots, const float *w, int64_t heads,
                                                float *acc)
{
    for (int64_t h = 0; h < heads; h++, dots += MLA_PANEL) {
#pragma omp simd
        for (int s = 0; s < MLA_PANEL; s++) {
            float relu = dots[s] < 0 ? 0 : dots[s];
            acc[s] += w[h] * relu;
        }
    }
}

void mla_index_score_f32(const float *q, const float *w, int64_t heads, int64_t dim,
                         const float *panel, const float *k_scale, float *out)
{
    tile_function *dot = choose_tile();
    float acc[MLA_PANEL] = {0};
    float dots[MLA_TILE * MLA_PANEL] __attribute__((aligned(32)));
    for (int64_t h = 0; h < heads; h += MLA_TILE, q += MLA_TILE * dim) {
        dot(q, panel, dim, dots);
        add_heads(dots, w + h, heads - h < MLA_TILE ? heads - h : MLA_TILE, acc);
    }
    for (int s = 0; s < MLA_PANEL; s++)
        out[s] = k_scale[s] * acc[s];
}

void mla_index_score_f64(const float *q, const float *w, int64_t heads, int64_t dim,
                         const float *panel, const float *k_scale, double *out)
{
    double acc[MLA_PANEL] = {0};
    for (int64_t h = 0; h < heads; h++) {
        const float *row = q + h / MLA_TILE * MLA_TILE * dim + h % MLA_TILE;
        double dots[MLA_PANEL] = {0};
        for (int64_t d = 0; d < dim; d++) {
            for (int s = 0; s < MLA_PANEL; s++)
                dots[s] += (double)row[d * MLA_TILE] * panel[d * MLA_PANEL + s];
        }
        for (int s = 0; s < MLA_PANEL; s++) {
            double relu = dots[s] < 0 ? 0 : dots[s];
            acc[s] += w[h] * relu;
        }
    }
    for (int s = 0; s < MLA_PANEL; s++)
        out[s] = k_scale[s] * acc[s];
}

void mla_index_decode(mla_index_format format, int64_t dim, const void *row, const void *scale,
                      const float *e4m3, float *dst, int64_t ld)
{
    const uint8_t *bytes = row;
    switch (format) {
    case MLA_INDEX_F32:
        for (int64_t d = 0; d < dim; d++)
            dst[d * ld] = ((const float *)row)[d];
        break;
    case MLA_INDEX_BF16:
        for (int64_t d = 0; d < dim; d++)
            dst[d * ld] = mla_bf16_to_f32(((const uint16_t *)row)[d]);
        break;
    case MLA_INDEX_FP8:
        for (int64_t d = 0; d < dim; d++)
            dst[d * ld] = e4m3[bytes[d]];
        break;
    case MLA_INDEX_FP4:
        for (int64_t d = 0; d < dim; d++) {
            float step = mla_ue8m0_to_f32(((const uint8_t *)scale)[d / 32]);
            dst[d * ld] = mla_e2m1_to_f32(bytes[d / 2] >> (d % 2 * 4) & 15) * step;
        }
        break;
    }
}
