/* SPDX-License-Identifier: Apache-2.0 */
/* Scores of one query row against one panel of keys. */
#ifndef MLA_REFERENCE_INDEX_SCORE_H
#define MLA_REFERENCE_INDEX_SCORE_H

#include "mla/index.h"

/* Keys are computed MLA_PANEL together, transposed: panel[d][key]. Heads go in tiles of MLA_TILE:
 * q[tile][d][head], absent heads of the last tile hold zeros. Panels are 32-byte aligned. */
enum { MLA_PANEL = 24, MLA_TILE = 4 };

/* Elements of one decoded row of q_I or k_I: dst[d · ld]. e4m3 is the table of all 256 values;
 * scale points to the four ue8m0 bytes of an fp4 row. Every format is exact in float. */
void mla_index_decode(mla_index_format format, int64_t dim, const void *row, const void *scale,
                      const float *e4m3, float *dst, int64_t ld);

/* out[MLA_PANEL] = k_scale · sum_h w · ReLU(dot): d from 0 up, then h from 0 up, each key by
 * itself, so a key's bits do not depend on its place. One product of e4m3, bf16 or e2m1 values is
 * exact, and the sum over h rounds product and sum: with these the result is the same on every
 * machine. Float inputs use fused multiply-add over d where the machine has it. ReLU keeps NaN. */
void mla_index_score_f32(const float *q, const float *w, int64_t heads, int64_t dim,
                         const float *panel, const float *k_scale, float *out);
void mla_index_score_f64(const float *q, const float *w, int64_t heads, int64_t dim,
                         const float *panel, const float *k_scale, double *out);

#endif
