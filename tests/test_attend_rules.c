/* SPDX-License-Identifier: Apache-2.0 */
/* The rules of meaning that every route shares (docs/numerics.md), one named test each, on every
 * admissible route and every CPU kernel. */
#include "support_attend.h"

#include "common/route.h"
#include "reference/attend.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define DIMS " heads=3 rank=32 nope=20 rope=8 v=24 lse=1 max_logits=1 dtype=f32 out=f32 "
#define BATCH " batch=q4,q3s70,q1s90,q40s40 "

/* Calls body for each route, CPU kernel and precision that takes the case. */
static void each(struct attend_case *c, void (*body)(struct attend_case *, void *), void *user)
{
    bool *complete = calloc((size_t)c->p.batch + 1, sizeof *complete), all = true;
    const char *why;
    int runs = 0;
    assert_ok(mla_tensors_check(&c->p, &c->t, complete));
    for (int64_t b = 0; b < c->p.batch; b++)
        all &= complete[b];
    for (int route = MLA_ROUTE_DENSE_MHA; route < MLA_ROUTES; route++)
        for (int k = 0; k < mla_kernel_count(); k++) {
            mla_kernel_info info;
            assert_ok(mla_kernel_get(k, &info));
            if (info.backend != MLA_BACKEND_CPU || !info.runnable ||
                !strstr(info.routes, mla_route_name((mla_route)route)) ||
                !mla_route_admissible(&c->p, (mla_route)route, all, &why))
                continue;
            for (int precision = 0; precision < 2; precision++) {
                if (precision == (strstr(info.name, "_avx2") ? 1 : -1))
                    continue;
                attend_run(c, (mla_route)route, (mla_precision)precision, info.name, 2, 0, 0);
                body(c, user);
                runs++;
            }
        }
    assert_true(runs >= 2);
    free(complete);
}

static void same_as_oracle(struct attend_case *c, void *user)
{
    (void)user;
    attend_compare(c, 0x1p-24);
}

static const char *const shapes[] = {
    "attend form=latent" DIMS BATCH,
    "attend form=latent page=16" DIMS BATCH,
    "attend form=latent mask=1" DIMS BATCH,
    "attend form=latent topk=24 topk_lens=1 junk=1" DIMS BATCH,
    "attend form=absorbed scale=0.2 topk=24 junk=1" DIMS BATCH,
    "attend form=absorbed scale=0.2 mask=1 causal=0" DIMS BATCH,
    "attend form=expanded heads=6 heads_kv=3 nope=20 rope=8 v=24 lse=1 max_logits=1 dtype=f32 "
    "out=f32" BATCH,
    "attend form=expanded heads=3 heads_kv=3 nope=20 rope=8 v=24 lse=1 max_logits=1 dtype=f32 "
    "out=f32 topk=24 junk=1" BATCH,
};

enum { SHAPES = sizeof shapes / sizeof *shapes };

/* Rules 1 and 2: holes, negative, out-of-range and future entries are ignored (lists with junk=1
 * hold all of them), entries past topk_lens are never looked at. */
static void ignored_entries(void **state)
{
    (void)state;
    struct attend_case c;
    attend_make(&c, "attend form=latent topk=40 topk_lens=1" DIMS BATCH, 21);
    static const int32_t odd[] = {-1, -2, INT32_MIN, INT32_MAX, 90, 91, 1 << 20};
    int32_t *list = c.t.topk_indices.data;
    int32_t *lens = (int32_t *)c.t.topk_lens;
    for (int64_t row = 0; row < mla_total_q(&c.p); row++) {
        lens[row] = (int32_t)(row % 8 == 0 ? 0 : 20);
        for (int64_t e = 0; e < 40; e++)
            list[row * 40 + e] = e % 2    ? odd[(row + e) % 7]
                                 : e < 20 ? (int32_t)((e / 2 * 7 + row) % 40)
                                          : list[row * 40]; /* past the length: a duplicate */
    }
    each(&c, same_as_oracle, NULL);
    attend_free(&c);
}

/* Rule 4: rows without keys, with and without sinks of every kind. */
static void check_empty(struct attend_case *c, void *user)
{
    (void)user;
    same_as_oracle(c, NULL);
    for (int64_t b = 0; b < c->p.batch; b++) {
        struct mla_request r = attend_request(c, b);
        int64_t n = mla_run_seq_len(&r, &c->t);
        for (int64_t i = 0; i < r.query_len; i++) {
            int64_t seen = 0;
            for (int64_t j = 0; j < n; j++)
                seen += mla_visible(&c->p, &c->t, &r, i, j, n);
            for (int64_t h = 0; seen == 0 && h < c->p.heads_q; h++) {
                double want = c->p.has_sink ? (double)c->t.attn_sink[h] : -INFINITY;
                want *= c->p.lse_base == MLA_LSE_2 ? 1 / M_LN2 : 1;
                double lse = attend_output_at(&c->lse, r.q_start + i, h, 0);
                assert_true(lse == want || fabs(lse - want) <= 1e-6 * fabs(want));
                assert_true(attend_output_at(&c->max_logits, r.q_start + i, h, 0) == -INFINITY);
                for (int64_t k = 0; k < c->out.width; k++)
                    assert_true(attend_output_at(&c->out, r.q_start + i, h, k) == 0);
            }
        }
    }
}

static void empty_rows(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "attend form=latent mask=1" DIMS BATCH,
        "attend form=latent mask=1 sink=1 base=2" DIMS BATCH,
        "attend form=latent topk=24 topk_lens=1 sink=1 heads=5" DIMS BATCH,
        "attend form=absorbed scale=0.2 topk=24 topk_lens=1" DIMS BATCH,
        "attend form=latent causal=0 sink=1 batch=q3s0,q2s5,q0s4,q0" DIMS,
        "attend form=latent batch=q3s0,q0s9,q2s2" DIMS,
    };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        struct attend_case c;
        attend_make(&c, texts[i], 30 + i);
        if (c.p.topk)
            for (int64_t row = 0; row < mla_total_q(&c.p); row += 3)
                ((int32_t *)c.t.topk_lens)[row] = 0;
        if (c.p.has_mask)
            memset(c.t.mask.data, 0, (size_t)(4 * 5 * mla_mask_words(&c.p)));
        each(&c, check_empty, NULL);
        attend_free(&c);
    }
}

/* Rule 5: a key that a row does not see has no influence on it, be it finite, NaN or inf. Every key
 * is spoilt in turn (a few of them here); rows that do not see it keep their bits. */
struct spoilt {
    int64_t key;
    double *before; /* outputs of the clean run, by run */
    int run;
    bool spoil;
};

static int64_t row_values(const struct attend_case *c)
{
    return c->p.heads_q * (c->out.width + 2);
}

static void gather_row(const struct attend_case *c, int64_t row, double *x)
{
    for (int64_t h = 0; h < c->p.heads_q; h++) {
        for (int64_t k = 0; k < c->out.width; k++)
            *x++ = attend_output_at(&c->out, row, h, k);
        *x++ = attend_output_at(&c->lse, row, h, 0);
        *x++ = attend_output_at(&c->max_logits, row, h, 0);
    }
}

static void compare_unseen(struct attend_case *c, void *user)
{
    struct spoilt *s = user;
    int64_t per_row = row_values(c), rows = mla_total_q(&c->p);
    double *before = s->before + s->run++ * rows * per_row, now[1024];
    assert_true(per_row <= 1024);
    for (int64_t b = 0; b < c->p.batch; b++) {
        struct mla_request r = attend_request(c, b);
        for (int64_t i = 0; i < r.query_len; i++) {
            int64_t row = r.q_start + i, j = s->key - r.kv_start;
            bool sees = mla_visible(&c->p, &c->t, &r, i, j, r.seq_len_kv);
            if (!s->spoil) {
                gather_row(c, row, before + row * per_row);
                continue;
            }
            gather_row(c, row, now);
            for (int64_t k = 0; !sees && k < per_row; k++)
                if (memcmp(&now[k], &before[row * per_row + k], sizeof *now) != 0)
                    fail_msg("%s: key %d changed value %d of row %d, which does not see it: %g, "
                             "was %g",
                             c->text, (int)s->key, (int)k, (int)row, now[k],
                             before[row * per_row + k]);
        }
    }
    /* Latent: inf - inf arises in other places when the sums are in another order, so rows that see
     * such a key may differ between routes. */
    if (s->spoil && c->p.form != MLA_FORM_LATENT)
        same_as_oracle(c, NULL);
}

static void spoil_key(struct attend_case *c, int64_t key, double x)
{
    const mla_problem *p = &c->p;
    bool some = key % 3 == 0; /* one value of the row only */
    if (p->form == MLA_FORM_EXPANDED) {
        for (int64_t h = 0; h < p->heads_kv; h++)
            for (int64_t i = 0; i < p->v_dim; i += some ? 7 : 1)
                attend_put(&c->t.v, p->kv_dtype, p->heads_kv, p->v_dim, key, h, i, x);
        for (int64_t h = 0; h < p->heads_kv && key % 2; h++)
            attend_put(&c->t.k, p->kv_dtype, p->heads_kv, mla_d_qk(p), key, h, 3, x);
    } else {
        for (int64_t i = 0; i < p->kv_lora_rank; i += some ? 40 : 1)
            attend_put(&c->t.kv_c, MLA_F32, 1, p->kv_lora_rank, key, 0, i, x);
    }
}

static void unseen_keys_have_no_influence(void **state)
{
    (void)state;
    static const int64_t keys[] = {0, 3, 40, 73, 110, 203};
    static const double values[] = {NAN, INFINITY, -INFINITY};
    for (int shape = 0; shape < SHAPES; shape++) {
        struct attend_case c;
        attend_make(&c, shapes[shape], 40 + (uint64_t)shape);
        int64_t rows = mla_total_q(&c.p);
        struct spoilt s = {.before = calloc((size_t)(40 * rows * row_values(&c)), sizeof(double))};
        for (size_t k = 0; c.p.page_size == 0 && k < sizeof keys / sizeof *keys; k++) {
            s.key = keys[k];
            s.spoil = false;
            s.run = 0;
            each(&c, compare_unseen, &s);
            s.spoil = true;
            s.run = 0;
            int64_t width =
                c.p.form == MLA_FORM_EXPANDED ? c.p.heads_kv * mla_d_qk(&c.p) : c.p.kv_lora_rank;
            mla_tensor *t = c.p.form == MLA_FORM_EXPANDED ? &c.t.k : &c.t.kv_c;
            float *row = (float *)t->data + s.key * width, *copy = malloc((size_t)width * 8);
            memcpy(copy, row, (size_t)width * 4);
            float *v = c.p.form == MLA_FORM_EXPANDED
                           ? (float *)c.t.v.data + s.key * c.p.heads_kv * c.p.v_dim
                           : NULL;
            float *copy_v = malloc((size_t)(c.p.heads_kv * c.p.v_dim) * 8);
            if (v)
                memcpy(copy_v, v, (size_t)(c.p.heads_kv * c.p.v_dim) * 4);
            spoil_key(&c, s.key, values[k % 3]);
            each(&c, compare_unseen, &s);
            memcpy(row, copy, (size_t)width * 4);
            if (v)
                memcpy(v, copy_v, (size_t)(c.p.heads_kv * c.p.v_dim) * 4);
            free(copy);
            free(copy_v);
        }
        free(s.before);
        attend_free(&c);
    }
}

/* A page id outside [0, num_pages) hides its keys; entries past the last page are not read
 * (attend_make leaves -77 there). */
static void pages_out_of_range(void **state)
{
    (void)state;
    struct attend_case c;
    attend_make(&c, "attend form=latent page=8 topk=24 junk=1" DIMS BATCH, 70);
    mla_tensors_check(&c.p, &c.t, NULL);
    int32_t *pages = c.t.page_table.data;
    for (int list = 0; list < 2; list++) {
        c.p.topk = list ? 24 : 0;
        for (int precision = 0; precision < 2; precision++)
            for (int route = list ? MLA_ROUTE_MASKED_MHA : MLA_ROUTE_DENSE_MHA; route < MLA_ROUTES;
                 route++) {
                const char *why;
                if (!mla_route_admissible(&c.p, (mla_route)route, false, &why))
                    continue;
                int32_t saved[2] = {pages[c.p.max_pages + 2], pages[2 * c.p.max_pages + 4]};
                pages[c.p.max_pages + 2] = (int32_t)c.p.num_pages;
                pages[2 * c.p.max_pages + 4] = -3;
                attend_run_unchecked(&c, (mla_route)route, (mla_precision)precision, NULL, 2, 0, 0);
                attend_compare(&c, 0x1p-24);
                pages[c.p.max_pages + 2] = saved[0];
                pages[2 * c.p.max_pages + 4] = saved[1];
            }
    }
    attend_free(&c);
}

/* Lengths of the run, shorter than planned: a case of its own, with causality moved along. */
static void lengths_of_the_run(void **state)
{
    (void)state;
    static const int32_t lens[] = {4, 51, 17, 40};
    for (int shape = 0; shape < SHAPES; shape++) {
        struct attend_case c;
        attend_make(&c, shapes[shape], 80 + (uint64_t)shape);
        c.t.seq_lens_kv = lens;
        each(&c, same_as_oracle, NULL);
        attend_free(&c);
    }
}

/* Scores far apart, equal, and of any sign of scale; a maximum that grows along the keys. */
static void ranges_of_scores(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "attend form=latent spread=30" DIMS BATCH,
        "attend form=latent spread=0" DIMS BATCH,
        "attend form=latent scale=0" DIMS BATCH,
        "attend form=latent scale=-2 topk=24 junk=1 sink=1 base=2" DIMS BATCH,
        "attend form=expanded heads=2 heads_kv=1 spread=20 nope=20 rope=8 v=5 lse=1 "
        "dtype=f32" BATCH,
    };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        struct attend_case c;
        attend_make(&c, texts[i], 90 + i);
        each(&c, same_as_oracle, NULL);
        attend_free(&c);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ignored_entries),
        cmocka_unit_test(empty_rows),
        cmocka_unit_test(unseen_keys_have_no_influence),
        cmocka_unit_test(pages_out_of_range),
        cmocka_unit_test(lengths_of_the_run),
        cmocka_unit_test(ranges_of_scores),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
