/* SPDX-License-Identifier: Apache-2.0 */
/* Algebra that must hold whatever the numbers: routes and forms agree, lists of all keys are dense
 * attention, masks are lists, order of keys is nothing, out is linear in V, parts merge to the
 * whole; and closed forms. */
// timeout: 240
#include "support.h"

#include "support_run.h"

#include "common/kernel.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define BATCH "batch=q70,q5s131,2q1s67"
#define LATENT "attend form=latent " BATCH " heads=3 rank=48 nope=24 rope=8 v=20 dtype=f32 "
#define EXPANDED "attend form=expanded " BATCH " heads=4 heads_kv=2 nope=24 rope=8 v=20 dtype=f32 "

static const struct run_options fp64 = {.precision = MLA_PRECISION_FP64};

static struct run run_route(const struct mla_case *c, mla_route route)
{
    struct run_options o = fp64;
    o.route = route;
    return run_case(c, &o);
}

static int32_t *list(const struct mla_case *c, int64_t row)
{
    return (int32_t *)c->tensors.topk_indices.data + row * c->problem.topk;
}

static void test_all_routes_agree(void **state)
{
    (void)state;
    static const char *const words[] = {"",         "sink=1 base=2",  "causal=0",
                                        "topk=160", "topk=31 sink=1", "topk=9 page=16"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        struct mla_case c = run_make(LATENT "%s", words[i]);
        struct run first = {0};
        int count = 0;
        for (int route = MLA_ROUTE_DENSE_MHA; route <= MLA_ROUTE_DENSE_MQA; route++) {
            if (!(run_routes(&c) & MLA_BIT(route)))
                continue;
            struct run r = run_route(&c, (mla_route)route);
            if (count++ == 0) {
                first = r;
                continue;
            }
            assert_close_run(&r, &first, 1e-12);
            run_free(&r);
        }
        struct run chosen = run_route(&c, MLA_ROUTE_AUTO);
        assert_close_run(&chosen, &first, 1e-12);
        assert_true(count >= 2);
        run_free(&chosen), run_free(&first);
        mla_case_free(&c);
    }
}

static void test_lists_of_all_keys_are_dense(void **state)
{
    (void)state;
    struct mla_case c = run_make(LATENT "topk=131");
    struct run sparse = run_route(&c, MLA_ROUTE_SPARSE_MQA);
    struct run masked = run_route(&c, MLA_ROUTE_MASKED_MHA);
    c.problem.topk = 0;
    struct run dense = run_route(&c, MLA_ROUTE_DENSE_MQA);
    assert_close_run(&sparse, &dense, 1e-12);
    assert_close_run(&masked, &dense, 1e-12);
    run_free(&sparse), run_free(&masked), run_free(&dense);
    mla_case_free(&c);
}

/* The mask with the bits of the lists. */
static void mask_from_lists(struct mla_case *c)
{
    int64_t words = (131 + 31) / 32, rows = mla_total_q(&c->problem);
    uint32_t *mask = mla_case_buffer(c, (size_t)(rows * words), 4);
    assert_non_null(mask);
    for (int64_t t = 0; t < rows; t++)
        for (int64_t e = 0; e < c->problem.topk; e++)
            if (list(c, t)[e] >= 0)
                mask[t * words + list(c, t)[e] / 32] |= 1u << (list(c, t)[e] % 32);
    c->tensors.mask = (mla_tensor){mask, {words, 0}};
    c->problem.has_mask = true;
    c->problem.topk = 0;
}

static void test_mask_equals_lists(void **state)
{
    (void)state;
    static const char *const texts[] = {LATENT "topk=23 sink=1", EXPANDED "topk=23 sink=1"};
    for (int i = 0; i < 2; i++) {
        struct mla_case c = run_make("%s", texts[i]);
        struct run lists = run_route(&c, MLA_ROUTE_MASKED_MHA);
        mask_from_lists(&c);
        for (int route = MLA_ROUTE_DENSE_MHA; route <= MLA_ROUTE_DENSE_MQA; route++) {
            if (!(run_routes(&c) & MLA_BIT(route)))
                continue;
            struct run mask = run_route(&c, (mla_route)route);
            assert_close_run(&mask, &lists, 1e-12);
            run_free(&mask);
        }
        run_free(&lists);
        mla_case_free(&c);
    }
}

/* Causality as a mask. */
static void test_causal_equals_its_mask(void **state)
{
    (void)state;
    struct mla_case c = run_make(EXPANDED);
    struct run causal = run_route(&c, MLA_ROUTE_DENSE_MHA);
    int64_t words = 5, rows = mla_total_q(&c.problem);
    uint32_t *mask = mla_case_buffer(&c, (size_t)(rows * words), 4);
    assert_non_null(mask);
    for (int64_t b = 0; b < c.problem.batch; b++)
        for (int64_t t = c.problem.cu_seqlens_q[b]; t < c.problem.cu_seqlens_q[b + 1]; t++)
            for (int64_t j = 0; j <= c.problem.seq_lens_kv[b] - (c.problem.cu_seqlens_q[b + 1] - t);
                 j++)
                mask[t * words + j / 32] |= 1u << (j % 32);
    c.tensors.mask = (mla_tensor){mask, {words, 0}};
    c.problem.has_mask = true;
    c.problem.causal = false;
    struct run masked = run_route(&c, MLA_ROUTE_MASKED_MHA);
    assert_close_run(&masked, &causal, 1e-12);
    run_free(&causal), run_free(&masked);
    mla_case_free(&c);
}

static void shuffle(int32_t *x, int64_t n, uint64_t *seed)
{
    for (int64_t i = n - 1; i > 0; i--) {
        int64_t j = mla_test_below(seed, i + 1);
        int32_t t = x[i];
        x[i] = x[j], x[j] = t;
    }
}

static void test_order_of_a_list_is_nothing(void **state)
{
    (void)state;
    uint64_t seed = 3;
    struct mla_case c = run_make(LATENT "topk=40");
    struct run a[2], b[2];
    static const mla_route routes[] = {MLA_ROUTE_SPARSE_MQA, MLA_ROUTE_MASKED_MHA};
    for (int i = 0; i < 2; i++)
        a[i] = run_route(&c, routes[i]);
    for (int64_t t = 0; t < mla_total_q(&c.problem); t++)
        shuffle(list(&c, t), c.problem.topk, &seed);
    for (int i = 0; i < 2; i++) {
        b[i] = run_route(&c, routes[i]);
        assert_close_run(&a[i], &b[i], 1e-12);
        run_free(&a[i]), run_free(&b[i]);
    }
    mla_case_free(&c);
}

static void test_permuting_keys(void **state)
{
    (void)state;
    uint64_t seed = 5;
    struct mla_case c = run_make("attend form=latent batch=q7s90 heads=3 rank=48 nope=24 rope=8 "
                                 "v=20 dtype=f32 causal=0");
    int32_t order[90];
    float *kv_c = c.tensors.kv_c.data, *k_pe = c.tensors.k_pe.data;
    float *new_c = mla_case_buffer(&c, 90 * 48, 4), *new_pe = mla_case_buffer(&c, 90 * 8, 4);
    assert_true(new_c && new_pe);
    struct run a[2];
    static const mla_route routes[] = {MLA_ROUTE_DENSE_MQA, MLA_ROUTE_DENSE_MHA};
    for (int i = 0; i < 2; i++)
        a[i] = run_route(&c, routes[i]);
    for (int32_t j = 0; j < 90; j++)
        order[j] = j;
    shuffle(order, 90, &seed);
    for (int j = 0; j < 90; j++) {
        memcpy(new_c + j * 48, kv_c + order[j] * 48, 48 * 4);
        memcpy(new_pe + j * 8, k_pe + order[j] * 8, 8 * 4);
    }
    c.tensors.kv_c.data = new_c;
    c.tensors.k_pe.data = new_pe;
    for (int i = 0; i < 2; i++) {
        struct run b = run_route(&c, routes[i]);
        assert_close_run(&a[i], &b, 1e-12);
        run_free(&a[i]), run_free(&b);
    }
    mla_case_free(&c);
}

static void test_linear_in_v(void **state)
{
    (void)state;
    struct mla_case c = run_make(EXPANDED "topk=23");
    int64_t n = (70 + 131 + 2 * 67) * 2 * 20;
    float *v = c.tensors.v.data, *u = mla_case_buffer(&c, (size_t)n, 4),
          *sum = mla_case_buffer(&c, (size_t)n, 4);
    uint64_t seed = 7;
    assert_true(u && sum);
    for (int64_t i = 0; i < n; i++) { /* few bits, so that the sum is exact */
        v[i] = (float)(mla_test_below(&seed, 512) - 256) / 64;
        u[i] = (float)(mla_test_below(&seed, 512) - 256) / 64;
        sum[i] = 2 * v[i] - u[i];
    }
    struct run a = run_route(&c, MLA_ROUTE_MASKED_MHA);
    c.tensors.v.data = u;
    struct run b = run_route(&c, MLA_ROUTE_MASKED_MHA);
    c.tensors.v.data = sum;
    struct run s = run_route(&c, MLA_ROUTE_MASKED_MHA);
    for (int64_t i = 0; i < a.rows * a.heads * a.dim; i++)
        assert_true(fabs(2 * a.out[i] - b.out[i] - s.out[i]) < 1e-12);
    run_free(&a), run_free(&b), run_free(&s);
    mla_case_free(&c);
}

/* Doubling w_uv doubles out, bit by bit, on every latent route, in fp32 too. */
static void test_scaling_w_uv(void **state)
{
    (void)state;
    for (int route = MLA_ROUTE_DENSE_MHA; route <= MLA_ROUTE_DENSE_MQA; route++) {
        struct mla_case c =
            run_make(LATENT "%s", route == MLA_ROUTE_MASKED_MHA || route == MLA_ROUTE_SPARSE_MQA
                                      ? "topk=23"
                                      : "");
        struct run_options o = {.route = (mla_route)route};
        struct run a = run_case(&c, &o);
        for (int64_t i = 0; i < 3 * 48 * 20; i++)
            ((float *)c.tensors.w_uv.data)[i] *= 2;
        struct run b = run_case(&c, &o);
        for (int64_t i = 0; i < a.rows * a.heads * a.dim; i++)
            a.out[i] *= 2;
        assert_same_run(&a, &b);
        run_free(&a), run_free(&b);
        mla_case_free(&c);
    }
}

/* Keys dealt to three parts (one of them empty for some rows), the sink in the first: mla_merge
 * gives the whole. */
static void test_parts_merge_to_the_whole(void **state)
{
    (void)state;
    struct mla_case c = run_make(LATENT "topk=33 sink=1 base=2");
    struct run whole = run_route(&c, MLA_ROUTE_SPARSE_MQA), parts[3];
    int64_t rows = whole.rows, topk = c.problem.topk;
    int32_t *all = c.tensors.topk_indices.data;
    mla_tensor outs[3], lses[3];
    for (int part = 0; part < 3; part++) {
        int32_t *own = mla_case_buffer(&c, (size_t)(rows * topk), 4);
        assert_non_null(own);
        for (int64_t i = 0; i < rows * topk; i++)
            own[i] = all[i] >= 0 && (all[i] < 60 ? 0 : all[i] < 100 ? 1 : 2) == part ? all[i] : -1;
        c.tensors.topk_indices.data = own;
        c.problem.has_sink = part == 0;
        parts[part] = run_route(&c, MLA_ROUTE_SPARSE_MQA);
        outs[part] = (mla_tensor){parts[part].out, {0, 0}};
        lses[part] = (mla_tensor){parts[part].lse, {0, 0}};
    }
    struct run merged = run_case(&c, &fp64); /* room of the right size, overwritten */
    mla_merge_args args = {
        .parts = 3,
        .rows = rows,
        .heads = whole.heads,
        .dim = whole.dim,
        .part_dtype = MLA_F64,
        .out_dtype = MLA_F64,
        .part_base = MLA_LSE_2,
        .out_base = MLA_LSE_2,
        .part_out = outs,
        .part_lse = lses,
        .out = {merged.out, {0, 0}},
        .lse = {merged.lse, {0, 0}},
    };
    mla_context *context;
    assert_ok(mla_context_create(NULL, &context));
    assert_ok(mla_merge(context, &args, NULL));
    mla_context_destroy(context);
    memcpy(merged.max_logits, whole.max_logits, (size_t)(rows * whole.heads) * sizeof(double));
    assert_close_run(&merged, &whole, 1e-12);
    for (int part = 0; part < 3; part++)
        run_free(&parts[part]);
    run_free(&whole), run_free(&merged);
    mla_case_free(&c);
}

/* The latent problem by its definition, handed over in the other two forms. */
static void test_forms_agree(void **state)
{
    (void)state;
    enum { T = 11, N = 40, H = 3, L = 32, DN = 16, DR = 8, DV = 12 };
    struct mla_case latent = run_make("attend form=latent batch=q11s40 heads=3 rank=32 nope=16 "
                                      "rope=8 v=12 dtype=f32 topk=17");
    struct mla_case absorbed = run_make("attend form=absorbed batch=q11s40 heads=3 rank=32 rope=8 "
                                        "dtype=f32 topk=17");
    struct mla_case expanded = run_make("attend form=expanded batch=q11s40 heads=3 heads_kv=3 "
                                        "nope=16 rope=8 v=12 dtype=f32 topk=17");
    float *q_nope = latent.tensors.q_nope.data, *q_pe = latent.tensors.q_pe.data;
    float *w_uk = latent.tensors.w_uk.data, *w_uv = latent.tensors.w_uv.data;
    float *kv_c = latent.tensors.kv_c.data, *k_pe = latent.tensors.k_pe.data;
    uint64_t seed = 11;
    /* Small multiples of 1/4, so that the projections are exact in float. */
    float *all[] = {q_nope, q_pe, w_uk, w_uv, kv_c, k_pe};
    const int sizes[] = {T * H * DN, T * H * DR, H * DN * L, H * L * DV, N * L, N * DR};
    for (int i = 0; i < 6; i++)
        for (int j = 0; j < sizes[i]; j++)
            all[i][j] = (float)(mla_test_below(&seed, 9) - 4) / 4;
    absorbed.problem.softmax_scale = expanded.problem.softmax_scale = latent.problem.softmax_scale;
    absorbed.tensors.kv_c.data = kv_c, absorbed.tensors.k_pe.data = k_pe;
    absorbed.tensors.topk_indices = expanded.tensors.topk_indices = latent.tensors.topk_indices;
    for (int t = 0; t < T; t++) {
        for (int h = 0; h < H; h++) {
            float *q = (float *)absorbed.tensors.q.data + (t * H + h) * (L + DR);
            float *full = (float *)expanded.tensors.q.data + (t * H + h) * (DN + DR);
            for (int l = 0; l < L; l++) {
                q[l] = 0;
                for (int d = 0; d < DN; d++)
                    q[l] += q_nope[(t * H + h) * DN + d] * w_uk[(h * DN + d) * L + l];
            }
            memcpy(q + L, q_pe + (t * H + h) * DR, DR * 4);
            memcpy(full, q_nope + (t * H + h) * DN, DN * 4);
            memcpy(full + DN, q_pe + (t * H + h) * DR, DR * 4);
        }
    }
    for (int j = 0; j < N; j++) {
        for (int h = 0; h < H; h++) {
            float *k = (float *)expanded.tensors.k.data + (j * H + h) * (DN + DR);
            float *v = (float *)expanded.tensors.v.data + (j * H + h) * DV;
            for (int d = 0; d < DN; d++) {
                k[d] = 0;
                for (int l = 0; l < L; l++)
                    k[d] += w_uk[(h * DN + d) * L + l] * kv_c[j * L + l];
            }
            memcpy(k + DN, k_pe + j * DR, DR * 4);
            for (int d = 0; d < DV; d++) {
                v[d] = 0;
                for (int l = 0; l < L; l++)
                    v[d] += kv_c[j * L + l] * w_uv[(h * L + l) * DV + d];
            }
        }
    }
    struct run a = run_case(&latent, &fp64), b = run_case(&absorbed, &fp64),
               e = run_case(&expanded, &fp64);
    assert_close_run(&e, &a, 1e-12);
    for (int i = 0; i < T * H; i++) {
        assert_true(fabs(a.lse[i] - b.lse[i]) < 1e-12);
        for (int d = 0; d < DV; d++) {
            double out = 0;
            for (int l = 0; l < L; l++)
                out += b.out[i * L + l] * w_uv[(i % H * L + l) * DV + d];
            assert_true(fabs(a.out[i * DV + d] - out) < 1e-11);
        }
    }
    run_free(&a), run_free(&b), run_free(&e);
    mla_case_free(&latent), mla_case_free(&absorbed), mla_case_free(&expanded);
}

/* ------------------------------------------------------------ closed forms */

static void test_equal_scores_average(void **state)
{
    (void)state;
    /* q = 0: out is the mean of the visible v, lse the log of their number. */
    struct mla_case c = run_make(EXPANDED "fill=counting");
    struct run r = run_route(&c, MLA_ROUTE_DENSE_MHA);
    const float *v = c.tensors.v.data;
    int64_t kv_start = 0;
    for (int64_t b = 0; b < c.problem.batch; b++) {
        int64_t q0 = c.problem.cu_seqlens_q[b], q1 = c.problem.cu_seqlens_q[b + 1];
        for (int64_t t = q0; t < q1; t++) {
            int64_t n = c.problem.seq_lens_kv[b] - (q1 - t) + 1;
            for (int h = 0; h < 4; h++) {
                assert_true(fabs(r.lse[t * 4 + h] - log((double)n)) < 1e-14);
                assert_true(r.max_logits[t * 4 + h] == 0);
                for (int d = 0; d < 20; d++) {
                    double sum = 0;
                    for (int64_t j = 0; j < n; j++)
                        sum += v[((kv_start + j) * 2 + h / 2) * 20 + d];
                    assert_true(fabs(r.out[(t * 4 + h) * 20 + d] - sum / (double)n) < 1e-15);
                }
            }
        }
        kv_start += c.problem.seq_lens_kv[b];
    }
    run_free(&r);
    mla_case_free(&c);
}

static void test_two_keys(void **state)
{
    (void)state;
    /* One query, keys +1 and -1, v 0 and 1: out = 1 / (1 + exp(2·scale)). */
    struct mla_case c = run_make("attend form=expanded batch=q1s2 causal=0 heads=1 heads_kv=1 "
                                 "nope=1 rope=0 v=1 dtype=f32 scale=0.75");
    float one = 1, k[2] = {1, -1}, v[2] = {0, 1};
    c.tensors.q.data = &one;
    c.tensors.k.data = k;
    c.tensors.v.data = v;
    struct run r = run_route(&c, MLA_ROUTE_DENSE_MHA);
    assert_true(fabs(r.out[0] - 1 / (1 + exp(1.5))) < 1e-15);
    assert_true(fabs(r.lse[0] - log(exp(0.75) + exp(-0.75))) < 1e-15);
    assert_true(r.max_logits[0] == 0.75);
    run_free(&r);
    mla_case_free(&c);
}

static void test_one_key(void **state)
{
    (void)state;
    /* The only visible key decides: out is its v, exactly, however large the score. */
    struct mla_case c = run_make("attend form=expanded batch=q1s1 heads=2 heads_kv=2 nope=8 rope=0 "
                                 "v=5 dtype=f32 scale=1000");
    struct run r = run_route(&c, MLA_ROUTE_DENSE_MHA);
    for (int i = 0; i < 10; i++)
        assert_true(r.out[i] == ((float *)c.tensors.v.data)[i]);
    for (int h = 0; h < 2; h++)
        assert_true(r.lse[h] == r.max_logits[h]);
    run_free(&r);
    mla_case_free(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all_routes_agree),
        cmocka_unit_test(test_lists_of_all_keys_are_dense),
        cmocka_unit_test(test_mask_equals_lists),
        cmocka_unit_test(test_causal_equals_its_mask),
        cmocka_unit_test(test_order_of_a_list_is_nothing),
        cmocka_unit_test(test_permuting_keys),
        cmocka_unit_test(test_linear_in_v),
        cmocka_unit_test(test_scaling_w_uv),
        cmocka_unit_test(test_parts_merge_to_the_whole),
        cmocka_unit_test(test_forms_agree),
        cmocka_unit_test(test_equal_scores_average),
        cmocka_unit_test(test_two_keys),
        cmocka_unit_test(test_one_key),
    };
    return cmocka_run_group_tests_name("properties", tests, NULL, NULL);
}
