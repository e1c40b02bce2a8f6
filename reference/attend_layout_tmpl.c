/* SPDX-License-Identifier: Apache-2.0 */
/* Between score rows and panels; included by attend_tmpl.c for float. Rows 16p … 16p + 15 of a
 * slot and split take the same bytes in both layouts, so they change places within them. */

/* Panels of a pass, and the score rows of panel b that are used. */
static int64_t panels_of(const struct pass_f32 *s)
{
    return (s->count * s->a->row_step + MLA_PANEL - 1) / MLA_PANEL;
}

static int64_t rows_of_panel(const struct pass_f32 *s, int64_t b)
{
    const struct mla_attend *a = s->a;
    int64_t left =
        a->sparse ? a->ratio - b * MLA_PANEL % a->row_step : s->count * a->ratio - b * MLA_PANEL;
    return left < MLA_PANEL ? left : MLA_PANEL;
}

static float *panel_scratch(const struct pass_f32 *s)
{
    return (float *)(slab_f32(s) + s->a->slab_score) + MLA_PANEL * s->a->tile;
}

/* Queries [rows][d_k] to [d_k][16], lanes past the rows 0; empty states. */
static void pack_panels_f32(const struct pass_f32 *s)
{
    const struct mla_attend *a = s->a;
    int64_t panels = a->panel ? panels_of(s) : 0;
#pragma omp for schedule(static) nowait
    for (int64_t item = 0; item < s->num_slots * panels; item++) {
        int64_t b = item % panels, rows = rows_of_panel(s, b);
        float *scratch = panel_scratch(s);
        float *q = at_f32(s, a->query) + (item / panels * a->rows + b * MLA_PANEL) * a->d_k;
        memcpy(scratch, q, (size_t)(rows * a->d_k) * sizeof *q);
        memset(q, 0, (size_t)(MLA_PANEL * a->d_k) * sizeof *q);
        a->panel->transpose(scratch, rows, a->d_k, a->d_k, q, MLA_PANEL);
    }
#pragma omp for schedule(static)
    for (int64_t item = 0; item < s->num_slots * a->splits * panels; item++) {
        int64_t row = item / panels * a->rows + item % panels * MLA_PANEL;
        float *state = at_f32(s, a->state) + 2 * row;
        for (int l = 0; l < MLA_PANEL; l++) {
            state[l] = -INFINITY;
            state[MLA_PANEL + l] = 0;
        }
        memset(at_f32(s, a->out) + row * a->d_v, 0, (size_t)(MLA_PANEL * a->d_v) * sizeof *state);
    }
}

/* Outputs and states back to rows. */
static void unpack_panels_f32(const struct pass_f32 *s)
{
    const struct mla_attend *a = s->a;
    int64_t panels = a->panel ? panels_of(s) : 0;
#pragma omp for schedule(static)
    for (int64_t item = 0; item < s->num_slots * a->splits * panels; item++) {
        int64_t row = item / panels * a->rows + item % panels * MLA_PANEL;
        float *scratch = panel_scratch(s), *state = at_f32(s, a->state) + 2 * row;
        float *o = at_f32(s, a->out) + row * a->d_v, both[2 * MLA_PANEL];
        memcpy(scratch, o, (size_t)(MLA_PANEL * a->d_v) * sizeof *o);
        a->panel->transpose(scratch, a->d_v, MLA_PANEL, MLA_PANEL, o, a->d_v);
        memcpy(both, state, sizeof both);
        a->panel->transpose(both, 2, MLA_PANEL, MLA_PANEL, state, 2);
    }
}
