/* SPDX-License-Identifier: Apache-2.0 */
/* Attention of a panel: 16 score rows side by side, one in each vector lane. Queries, scores,
 * weights and outputs are stored with the row as the fastest index ([d][16], [key][16], [d_v][16]),
 * so keys and values are read where they lie, nothing is packed, and the softmax has no horizontal
 * step. */
#ifndef MLA_REFERENCE_PANEL_H
#define MLA_REFERENCE_PANEL_H

#include <stdbool.h>
#include <stdint.h>

enum { MLA_PANEL = 16 };

/* One panel against one tile of keys. */
struct mla_panel {
    int64_t keys, d_k, d_v;
    const float *q;     /* [d_k][16] */
    const float *key;   /* [keys][d_k], rows ld_key apart */
    const float *value; /* [keys][d_v], rows ld_value apart */
    int64_t ld_key, ld_value;
    float alpha;  /* factor of scores */
    float *score; /* [keys][16] */
    float *state; /* running maximum [16], running sum [16] */
    float *out;   /* [d_v][16], unnormalised */
    bool masked;  /* end counts: lane l sees keys below end[l] of the tile */
    int32_t end[MLA_PANEL];
    const uint32_t *bits[MLA_PANEL]; /* bit j of bits[l]: lane l sees key j; bits[0] NULL = none */
    const uint8_t *hidden;           /* [keys], NULL = none; bit 0: no lane sees the key */
};

struct mla_panel_ops {
    void (*score)(const struct mla_panel *p);   /* score = alpha · q · key */
    void (*softmax)(const struct mla_panel *p); /* score becomes weights; state and out follow */
    void (*value)(const struct mla_panel *p);   /* out += weights · value */
    void (*transpose)(const float *from, int64_t rows, int64_t columns, int64_t ld_from, float *to,
                      int64_t ld_to);
};

/* NULL where this processor has no AVX2 and FMA. */
const struct mla_panel_ops *mla_panel_ops(void);

#endif
