/* SPDX-License-Identifier: Apache-2.0 */
/* Tasks that run in panels; included by attend_tmpl.c for float. */

/* Scores of keys whose values were cleaned in a buffer that also serves as keys. */
static void repair_scores(const struct pass_f32 *s, const struct mla_panel *x, int64_t slot,
                          int64_t first, const uint8_t *flags)
{
    float *key = (float *)(slab_f32(s) + s->a->slab_row), *value = key + s->a->d_row;
    for (int64_t j = 0; j < x->keys; j++) {
        if (!(flags[j] & KEY_NOT_FINITE))
            continue;
        exact_row_f32(s, slot, first + j, key, value);
        for (int l = 0; l < MLA_PANEL; l++) {
            float dot = 0;
            for (int64_t d = 0; d < x->d_k; d++)
                dot += x->q[d * MLA_PANEL + l] * key[d];
            x->score[j * MLA_PANEL + l] = x->alpha * dot;
        }
    }
}

/* Adds what cleaning took away, in the lanes that see the key. */
static void repair_values(const struct pass_f32 *s, const struct mla_panel *x, int64_t slot,
                          int64_t first, const uint8_t *flags)
{
    float *key = (float *)(slab_f32(s) + s->a->slab_row), *value = key + s->a->d_row;
    for (int64_t j = 0; j < x->keys; j++) {
        if ((flags[j] & (KEY_NOT_FINITE | KEY_HIDDEN)) != KEY_NOT_FINITE)
            continue;
        exact_row_f32(s, slot, first + j, key, value);
        for (int l = 0; l < MLA_PANEL; l++) {
            bool sees = x->bits[0] ? x->bits[l][j / 32] >> (j % 32) & 1 : j < x->end[l];
            for (int64_t c = 0; sees && c < x->d_v; c++)
                if (!isfinite(value[c]))
                    x->out[c * MLA_PANEL + l] += x->score[j * MLA_PANEL + l] * value[c];
        }
    }
}

/* One panel against keys [t0, t0 + keys) of chunk c0; b counts the panel's place in the slot. */
static void attend_tile(const struct pass_f32 *s, struct mla_panel *x, int64_t c0, int64_t slot,
                        int64_t split, int64_t b, int64_t t0, int64_t keys, const uint8_t *flags,
                        int any)
{
    const struct mla_attend *a = s->a;
    const uint32_t *bits = (const uint32_t *)(s->ws + a->bits_at);
    int64_t last = s->count * a->ratio - 1, top = 0, bottom = keys;
    uint32_t union_of_bits = 0;
    for (int l = 0; l < MLA_PANEL; l++) {
        int64_t rho = b * MLA_PANEL + l < last ? b * MLA_PANEL + l : last, i = rho / a->ratio;
        int64_t end = mla_causal_end(s->p, s->r, s->first + i, s->n) - c0 - t0;
        end = end < 0 ? 0 : end > keys ? keys : end;
        x->end[l] = (int32_t)end;
        top = end > top ? end : top;
        bottom = end < bottom ? end : bottom;
        x->bits[l] = a->bits ? bits + i * a->words + (c0 + t0) / 32 : NULL;
    }
    for (int64_t w = 0; a->bits && w * 32 < top; w++)
        for (int l = 0; l < MLA_PANEL; l++)
            union_of_bits |= x->bits[l][w];
    if (top == 0 || (a->bits && union_of_bits == 0))
        return;
    int64_t row = state_row_f32(a, slot, split, b * MLA_PANEL);
    x->keys = top;
    x->masked = a->bits || bottom < top;
    x->hidden = any & KEY_HIDDEN ? flags : NULL;
    x->q = at_f32(s, a->query) + (slot * a->rows + b * MLA_PANEL) * a->d_k;
    x->state = at_f32(s, a->state) + 2 * row;
    x->out = at_f32(s, a->out) + row * a->d_v;
    a->panel->score(x);
    if (a->mqa && any & KEY_NOT_FINITE)
        repair_scores(s, x, slot, c0 + t0, flags);
    a->panel->softmax(x);
    a->panel->value(x);
    if (any & KEY_NOT_FINITE)
        repair_values(s, x, slot, c0 + t0, flags);
}

static struct mla_panel panel_of(const struct pass_f32 *s)
{
    const struct mla_attend *a = s->a;
    return (struct mla_panel){.d_k = a->d_k,
                              .d_v = a->d_v,
                              .ld_key = a->d_k,
                              .ld_value = a->mqa ? a->d_k : a->d_v,
                              .alpha = s->alpha,
                              .score = (float *)(slab_f32(s) + a->slab_score)};
}

/* The dense task in panels: a tile of keys stays in L2 while the panels of the block pass over
 * it. */
static void attend_block_panels(const struct pass_f32 *s, int64_t c0, int64_t slot, int64_t split,
                                int64_t rho0, int64_t rho1, int64_t k0, int64_t k1)
{
    const struct mla_attend *a = s->a;
    if (!trim_keys_f32(s, c0, rho0 / a->ratio, (rho1 - 1) / a->ratio, &k0, &k1))
        return;
    struct mla_panel x = panel_of(s);
    for (int64_t t0 = k0; t0 < k1; t0 += a->tile) {
        int64_t keys = k1 - t0 < a->tile ? k1 - t0 : a->tile, at = slot * a->chunk + t0;
        const uint8_t *flags = (const uint8_t *)s->ws + a->flags + at;
        int any = 0;
        for (int64_t j = 0; j < keys; j++)
            any |= flags[j];
        x.key = at_f32(s, a->key) + at * a->d_k;
        x.value = a->mqa ? x.key : at_f32(s, a->value) + at * a->d_v;
        for (int64_t b = rho0 / MLA_PANEL; b * MLA_PANEL < rho1; b++)
            attend_tile(s, &x, c0, slot, split, b, t0, keys, flags, any);
    }
}

/* The sparse task in panels: heads [head0, head1) of query i of the pass, head0 a multiple of
 * 16. */
static void attend_list_panels(const struct pass_f32 *s, int64_t i, int64_t head0, int64_t head1)
{
    const mla_problem *p = s->p;
    const struct mla_attend *a = s->a;
    const struct mla_request *r;
    int64_t position, token = token_f32(s, i, &r, &position);
    int64_t n = mla_run_seq_len(r, s->t), end = mla_causal_end(p, r, position, n);
    const int32_t *list = (const int32_t *)s->t->topk_indices.data +
                          token * mla_stride0(&s->t->topk_indices, p->topk);
    int64_t length = mla_list_length(p, s->t, token);
    char *slab = slab_f32(s);
    float *key = (float *)(slab + a->slab_mat);
    int32_t *index = (int32_t *)(slab + a->slab_row);
    uint8_t *flags = (uint8_t *)(index + a->chunk);
    struct mla_panel x = panel_of(s);
    x.key = x.value = key;
    for (int64_t e = 0; e < length;) {
        x.keys = take_entries(list, &e, length, end, a->chunk, index);
        if (x.keys == 0)
            break;
        mla_cache_rows_f32(p, s->t, r, n, index, 0, x.keys, key, a->d_k, flags);
        x.hidden = NULL;
        for (int64_t j = 0; j < x.keys; j++) {
            if (!flags[j])
                x.hidden = flags;
            flags[j] = flags[j] ? 0 : KEY_HIDDEN;
        }
        for (int l = 0; l < MLA_PANEL; l++)
            x.end[l] = (int32_t)x.keys;
        prefetch_entries(p, s->t, r, list + e, least(length - e, a->chunk), end);
        for (int64_t head = head0; head < head1; head += MLA_PANEL) {
            int64_t row = i * a->row_step + head;
            x.q = at_f32(s, a->query) + row * a->d_k;
            x.state = at_f32(s, a->state) + 2 * row;
            x.out = at_f32(s, a->out) + row * a->d_v;
            a->panel->score(&x);
            a->panel->softmax(&x);
            a->panel->value(&x);
        }
    }
}
