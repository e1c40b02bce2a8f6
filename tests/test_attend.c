/* SPDX-License-Identifier: Apache-2.0 */
/* CPU attention against the oracle: every route, form, format, precision and rule. */
#include "support_attend.h"

#include "common/format.h"
#include "common/route.h"
#include "reference/reference.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define SMALL " heads=3 rank=48 nope=20 rope=12 v=24 lse=1 max_logits=1 "
#define BATCH " batch=q5,q3s40,q1s70,q33s33 "

static void latent_dense(void **state)
{
    (void)state;
    attend_check_all("attend form=latent dtype=f32 out=f64" SMALL BATCH, 1);
    attend_check_all("attend form=latent dtype=bf16 out=bf16 pad=1 base=2 sink=1" SMALL BATCH, 2);
    attend_check_all("attend form=latent dtype=f16 out=f16 page=16 causal=0" SMALL BATCH, 3);
}

static void latent_lists(void **state)
{
    (void)state;
    attend_check_all("attend form=latent dtype=f32 out=f64 topk=16 junk=1" SMALL BATCH, 4);
    attend_check_all("attend form=latent dtype=bf16 out=f32 topk=40 topk_lens=1 junk=1 pad=1 "
                     "page=8 sink=1" SMALL BATCH,
                     5);
    attend_check_all("attend form=latent dtype=f32 out=f64 topk=80 complete=1 causal=0" SMALL BATCH,
                     6);
    attend_check_all("attend form=latent dtype=f32 out=f64 mask=1" SMALL BATCH, 7);
    attend_check_all("attend form=latent dtype=f32 out=f64 mask=1 causal=0 sink=1 base=2 pad=1 "
                     "page=4" SMALL BATCH,
                     8);
}

static void absorbed(void **state)
{
    (void)state;
    attend_check_all("attend form=absorbed dtype=f32 out=f64 scale=0.1" SMALL BATCH, 9);
    attend_check_all("attend form=absorbed dtype=bf16 out=bf16 scale=0.1 topk=20 topk_lens=1 "
                     "junk=1 pad=1 sink=1" SMALL BATCH,
                     10);
    attend_check_all("attend form=absorbed dtype=f32 out=f64 scale=-0.1 mask=1 rope=0 heads=5 "
                     "rank=33 lse=1 max_logits=1" BATCH,
                     11);
}

static void expanded(void **state)
{
    (void)state;
    attend_check_all("attend form=expanded dtype=f32 out=f64 heads=6 heads_kv=6 nope=20 rope=12 "
                     "v=24 lse=1 max_logits=1" BATCH,
                     12);
    attend_check_all("attend form=expanded dtype=f32 out=f32 heads=6 heads_kv=2 nope=20 rope=0 "
                     "v=40 lse=1 max_logits=1 mask=1 sink=1 pad=1" BATCH,
                     13);
    attend_check_all("attend form=expanded dtype=bf16 kv_dtype=f16 out=f64 heads=4 heads_kv=1 "
                     "nope=20 rope=12 v=24 lse=1 topk=30 junk=1 topk_lens=1" BATCH,
                     14);
}

/* Every cache format on every form it has. */
static void formats(void **state)
{
    (void)state;
#define PACKED " batch=q2s33,q9s9 heads=2 lse=1 max_logits=1 page=4 dtype=f32 out=f64 "
    attend_check_all("attend form=latent cache=fp8_ds_mla nope=16 v=16" PACKED, 20);
    attend_check_all("attend form=latent cache=fp8_ds_mla nope=16 v=16 topk=12 junk=1" PACKED, 21);
    attend_check_all("attend form=latent cache=nvfp4_ds_mla nope=16 v=16 mask=1" PACKED, 22);
    attend_check_all("attend form=absorbed cache=nvfp4_ds_mla scale=0.1 topk=12" PACKED, 23);
    attend_check_all("attend form=absorbed cache=model1 rope=0 scale=0.1 topk=12 sink=1" PACKED,
                     24);
    attend_check_all("attend form=absorbed cache=v41 rope=0 scale=0.1 mask=1" PACKED, 25);
    attend_check_all("attend form=latent cache=f16 page=4 pad=1 dtype=bf16 out=f16" SMALL BATCH,
                     26);
    attend_check_all("attend form=absorbed cache=bf16 dtype=f16 out=f16 scale=0.1" SMALL BATCH, 27);
}

/* More keys and rows than a tile, a chunk and a block hold; head counts that fill no panel. */
static void beyond_one_tile(void **state)
{
    (void)state;
#define THIN " heads=1 rank=16 nope=9 rope=3 v=7 lse=1 max_logits=1 dtype=f32 out=f64 "
    attend_check_all("attend form=latent batch=q150s2200" THIN, 30);
    attend_check_all("attend form=latent batch=q150s2200 topk=200 junk=1" THIN, 31);
    attend_check_all("attend form=latent batch=q150s2200 mask=1 causal=0" THIN, 32);
    attend_check_all("attend form=absorbed batch=q3s700,q2s90 heads=37 rank=19 rope=0 scale=0.3 "
                     "lse=1 max_logits=1 dtype=f32 out=f64",
                     33);
    attend_check_all("attend form=absorbed batch=q3s700,q2s90 heads=130 rank=19 rope=2 scale=0.3 "
                     "topk=300 lse=1 max_logits=1 dtype=f32 out=f64",
                     34);
    attend_check_all("attend form=expanded batch=q290 heads=2 heads_kv=2 nope=5 rope=0 v=3 mask=1 "
                     "lse=1 max_logits=1 dtype=f32 out=f64",
                     35);
}

/* A limit shrinks the passes, never the answer; splits merge to the whole. */
static void limits_and_splits(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "attend form=latent batch=q200s700 mask=1" THIN,
        "attend form=latent batch=q200s700 topk=100" THIN,
        "attend form=absorbed batch=q9s700 heads=40 rank=20 rope=4 scale=0.2 lse=1 dtype=f32 "
        "out=f64",
    };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        for (int route = MLA_ROUTE_DENSE_MHA; route <= MLA_ROUTE_DENSE_MQA; route++) {
            struct attend_case c;
            const char *why;
            attend_make(&c, texts[i], 40);
            c.inputs_stay = true;
            for (int precision = 0; precision < 2; precision++) {
                if (!mla_route_admissible(&c.p, (mla_route)route, false, &why))
                    continue;
                double u = precision ? 0x1p-53 : 0x1p-24;
                attend_run(&c, (mla_route)route, (mla_precision)precision, NULL, 2, 0, 0);
                size_t whole = c.workspace_bytes;
                attend_run(&c, (mla_route)route, (mla_precision)precision, NULL, 2, 1, 0);
                assert_true(c.workspace_bytes < whole);
                attend_compare(&c, u);
                uint64_t least = attend_hash(&c);
                attend_run(&c, (mla_route)route, (mla_precision)precision, NULL, 3, 1, 0);
                assert_true(attend_hash(&c) == least);
                for (int64_t splits = 2; splits <= 9; splits += 7) {
                    attend_run(&c, (mla_route)route, (mla_precision)precision, NULL, 2, 0, splits);
                    attend_compare(&c, u);
                }
            }
            attend_free(&c);
        }
}

/* Bytes of workspace at production sizes: twice the keys never need more than twice the bytes. */
static void workspace_is_linear(void **state)
{
    (void)state;
    static const char *const forms[] = {"form=latent", "form=latent topk=2048"};
    mla_context *context;
    assert_ok(mla_context_create(&(mla_context_options){.backend = MLA_BACKEND_CPU, .threads = 2},
                                 &context));
    for (int f = 0; f < 2; f++)
        for (int route = MLA_ROUTE_DENSE_MHA; route <= MLA_ROUTE_DENSE_MQA; route++) {
            size_t before = 0;
            for (int k = 32; k <= 256; k *= 2) {
                char text[128];
                mla_problem p;
                mla_plan *plan;
                const char *why;
                snprintf(text, sizeof text, "attend model=deepseek-v3.2 %s batch=q%dk",
                         f ? forms[f] : "form=latent topk=0", k);
                assert_ok(mla_problem_parse(&p, text, NULL, 0));
                if (mla_route_admissible(&p, (mla_route)route, false, &why)) {
                    mla_plan_options options = {.route = (mla_route)route};
                    assert_ok(mla_plan_create(context, &p, &options, &plan));
                    size_t bytes = mla_plan_workspace_bytes(plan);
                    assert_true(bytes < (size_t)512 << 20);
                    assert_true(before == 0 || bytes <= 2 * before);
                    before = bytes;
                    mla_plan_destroy(plan);
                    options.workspace_limit_bytes = (size_t)64 << 20;
                    assert_ok(mla_plan_create(context, &p, &options, &plan));
                    assert_true(mla_plan_workspace_bytes(plan) <= (size_t)64 << 20);
                    mla_plan_destroy(plan);
                }
                mla_problem_release(&p);
            }
        }
    mla_context_destroy(context);
}

/* The latent form against its definition: k_h = w_uk · c and v_h = c · w_uv worked out here and
 * given as an expanded problem. */
static void latent_by_its_definition(void **state)
{
    (void)state;
    enum { S = 30, H = 2, L = 12, DN = 6, DR = 4, DV = 5, D = DN + DR };
    struct attend_case l;
    double row[L + DR], w[L], out_l[DV], out_e[DV], lse_l, lse_e, max_l, max_e;
    attend_make(&l, "attend form=latent batch=q30 heads=2 rank=12 nope=6 rope=4 v=5 dtype=f32", 50);
    struct mla_request r = attend_request(&l, 0);
    double k[S][H][D], v[S][H][DV], worst = 0;
    for (int j = 0; j < S; j++)
        for (int h = 0; h < H; h++) {
            mla_cache_rows_f64(&l.p, &l.t, &r, S, NULL, j, 1, row, L + DR, NULL);
            for (int d = 0; d < D; d++) {
                k[j][h][d] = d < DN ? 0 : row[L + d - DN];
                mla_load_f64(MLA_F32, (float *)l.t.w_uk.data + (h * DN + (d < DN ? d : 0)) * L, L,
                             w);
                for (int i = 0; i < L && d < DN; i++)
                    k[j][h][d] += w[i] * row[i];
            }
            for (int d = 0; d < DV; d++) {
                v[j][h][d] = 0;
                for (int i = 0; i < L; i++)
                    v[j][h][d] += row[i] * (double)((float *)l.t.w_uv.data)[(h * L + i) * DV + d];
            }
        }
    for (int t = 0; t < S; t++)
        for (int h = 0; h < H; h++) {
            double score[S], sum = 0, max = -INFINITY;
            for (int j = 0; j <= t; j++) {
                score[j] = 0;
                for (int d = 0; d < D; d++) {
                    const mla_tensor *q = d < DN ? &l.t.q_nope : &l.t.q_pe;
                    int width = d < DN ? DN : DR, at = d < DN ? d : d - DN;
                    score[j] += (double)((float *)q->data)[(t * H + h) * width + at] * k[j][h][d];
                }
                score[j] *= l.p.softmax_scale;
                max = fmax(max, score[j]);
            }
            for (int d = 0; d < DV; d++)
                out_e[d] = 0;
            for (int j = 0; j <= t; j++) {
                sum += exp(score[j] - max);
                for (int d = 0; d < DV; d++)
                    out_e[d] += exp(score[j] - max) * v[j][h][d];
            }
            lse_e = max + log(sum);
            max_e = max;
            assert_int_equal(mla_attend_naive(&l.p, &l.t, &r, t, h, out_l, &lse_l, &max_l), 0);
            for (int d = 0; d < DV; d++)
                worst = fmax(worst, fabs(out_l[d] - out_e[d] / sum));
            worst = fmax(worst, fmax(fabs(lse_l - lse_e), fabs(max_l - max_e)));
        }
    assert_true(worst < 1e-13);
    attend_free(&l);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(latent_dense),
        cmocka_unit_test(latent_lists),
        cmocka_unit_test(absorbed),
        cmocka_unit_test(expanded),
        cmocka_unit_test(formats),
        cmocka_unit_test(beyond_one_tile),
        cmocka_unit_test(limits_and_splits),
        cmocka_unit_test(workspace_is_linear),
        cmocka_unit_test(latent_by_its_definition),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
