/* SPDX-License-Identifier: Apache-2.0 */
/* mla_merge on the CPU: against a direct sum, and the conventions for parts that are empty. */
#include "support.h"

#include "common/format.h"
#include "common/kernel.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { PARTS = 5, ROWS = 4, HEADS = 3, DIM = 300 };

static double random_value(uint64_t *state)
{
    return 2 * mla_test_uniform(state) - 1;
}

struct parts {
    mla_merge_args args;
    mla_tensor part_out[PARTS], part_lse[PARTS];
    double out[PARTS][ROWS][HEADS][DIM], lse[PARTS][ROWS][HEADS]; /* as stored, natural */
    float sink[HEADS];
    void *owned[2 * PARTS + 2];
};

static size_t lse_bytes(mla_dtype dtype)
{
    return dtype == MLA_F64 ? 8 : 4;
}

/* Random parts; empty ones hold `empty` in lse and NaN in out. Part strides are padded. */
static void make(struct parts *p, mla_dtype part, mla_dtype out, mla_lse_base base, double empty,
                 uint64_t seed)
{
    int64_t ld = DIM + 4, ld_row = HEADS * ld + 8;
    double unit = base == MLA_LSE_2 ? 1 / M_LN2 : 1;
    memset(p, 0, sizeof *p);
    p->args = (mla_merge_args){.parts = PARTS,
                               .rows = ROWS,
                               .heads = HEADS,
                               .dim = DIM,
                               .part_dtype = part,
                               .out_dtype = out,
                               .part_base = base,
                               .out_base = base,
                               .plus_inf_is_empty = empty > 0,
                               .part_out = p->part_out,
                               .part_lse = p->part_lse};
    for (int i = 0; i < PARTS; i++) {
        char *values = p->owned[2 * i] = malloc((size_t)(ROWS * ld_row) * mla_dtype_bytes(part));
        char *lse = p->owned[2 * i + 1] = malloc(ROWS * HEADS * lse_bytes(part));
        p->part_out[i] = (mla_tensor){values, {ld_row, ld}};
        p->part_lse[i] = (mla_tensor){lse, {1, ROWS}}; /* [heads, rows] in memory */
        for (int t = 0; t < ROWS; t++)
            for (int h = 0; h < HEADS; h++) {
                /* Row 0 is empty in all parts, row 1 in all but one, others here and there. */
                bool none = t == 0 || (t == 1 && i != 2) || mla_test_below(&seed, 4) == 0;
                double x = none ? empty : 20 * random_value(&seed);
                size_t at = (size_t)(h * ROWS + t);
                if (part == MLA_F64)
                    ((double *)lse)[at] = x;
                else
                    ((float *)lse)[at] = (float)x;
                x = part == MLA_F64 ? x : (double)(float)x;
                p->lse[i][t][h] = none ? -INFINITY : x / unit;
                double row[DIM];
                for (int c = 0; c < DIM; c++)
                    row[c] = none ? NAN : random_value(&seed);
                char *place = values + (size_t)(t * ld_row + h * ld) * mla_dtype_bytes(part);
                mla_store_f64(part, place, DIM, row);
                mla_load_f64(part, place, DIM, p->out[i][t][h]);
            }
    }
    p->args.out.data = p->owned[2 * PARTS] = malloc(ROWS * HEADS * DIM * mla_dtype_bytes(out));
    p->args.lse.data = p->owned[2 * PARTS + 1] = malloc(ROWS * HEADS * 8);
    memset(p->args.out.data, 0xFF, ROWS * HEADS * DIM * mla_dtype_bytes(out));
}

static void release(struct parts *p)
{
    for (size_t i = 0; i < sizeof p->owned / sizeof *p->owned; i++)
        free(p->owned[i]);
}

static double lse_at(const struct parts *p, int t, int h)
{
    int at = t * HEADS + h;
    return p->args.out_dtype == MLA_F64 ? ((double *)p->args.lse.data)[at]
                                        : (double)((float *)p->args.lse.data)[at];
}

/* The sum in plain double, without any shift; parts are within exp(20). */
static void check(struct parts *p, int threads)
{
    mla_context *context;
    double unit = p->args.out_base == MLA_LSE_2 ? 1 / M_LN2 : 1, got[DIM];
    double u = p->args.out_dtype == MLA_BF16  ? 0x1p-8
               : p->args.out_dtype == MLA_F16 ? 0x1p-11
               : p->args.out_dtype == MLA_F32 ? 0x1p-24
                                              : 0x1p-53;
    assert_ok(
        mla_context_create(&(mla_context_options){.backend = MLA_BACKEND_CPU, .threads = threads},
                           &context));
    assert_ok(mla_merge(context, &p->args, NULL));
    for (int t = 0; t < ROWS; t++)
        for (int h = 0; h < HEADS; h++) {
            double sum = p->args.attn_sink ? exp((double)p->sink[h]) : 0;
            for (int i = 0; i < PARTS; i++)
                sum += exp(p->lse[i][t][h]);
            double want_lse = log(sum) * unit, lse = lse_at(p, t, h);
            assert_true(lse == want_lse || fabs(lse - want_lse) <= 2e-7 * fabs(want_lse) + 1e-12);
            mla_load_f64(p->args.out_dtype,
                         (char *)p->args.out.data +
                             (size_t)((t * HEADS + h) * DIM) * mla_dtype_bytes(p->args.out_dtype),
                         DIM, got);
            for (int c = 0; c < DIM; c++) {
                double want = 0;
                for (int i = 0; i < PARTS; i++)
                    if (p->lse[i][t][h] > -INFINITY)
                        want += exp(p->lse[i][t][h]) / sum * p->out[i][t][h][c];
                if (!(fabs(got[c] - want) <= u * fabs(want) + 0x1p-25 * (u > 1e-10) + 1e-14))
                    fail_msg("[%d %d %d]: got %g, want %g", t, h, c, got[c], want);
            }
        }
    mla_context_destroy(context);
}

static void dtypes_and_bases(void **state)
{
    (void)state;
    for (int part = 0; part <= MLA_F64; part++)
        for (int out = 0; out <= MLA_F64; out++)
            for (int base = 0; base < 2; base++) {
                struct parts *p = malloc(sizeof *p);
                make(p, (mla_dtype)part, (mla_dtype)out, (mla_lse_base)base,
                     base ? INFINITY : -INFINITY, 7);
                check(p, 1 + base);
                p->args.out_base = base ? MLA_LSE_E : MLA_LSE_2;
                check(p, 3);
                release(p);
                free(p);
            }
}

static void sinks(void **state)
{
    (void)state;
    struct parts *p = malloc(sizeof *p);
    make(p, MLA_F32, MLA_F32, MLA_LSE_E, -INFINITY, 8);
    p->args.attn_sink = p->sink;
    p->sink[0] = 3;
    p->sink[1] = -INFINITY;
    p->sink[2] = -100;
    check(p, 2);
    p->sink[0] = INFINITY; /* out 0, lse +inf, whatever the parts hold */
    mla_context *context;
    assert_ok(mla_context_create(NULL, &context));
    assert_ok(mla_merge(context, &p->args, NULL));
    for (int t = 0; t < ROWS; t++) {
        assert_true(lse_at(p, t, 0) == INFINITY);
        for (int c = 0; c < DIM; c++)
            assert_true(((float *)p->args.out.data)[t * HEADS * DIM + c] == 0);
    }
    mla_context_destroy(context);
    release(p);
    free(p);
}

/* A part of NaN lse is no empty part: the row it belongs to is NaN, others are not. */
static void nan_stays_in_its_row(void **state)
{
    (void)state;
    struct parts *p = malloc(sizeof *p);
    mla_context *context;
    make(p, MLA_F64, MLA_F64, MLA_LSE_E, -INFINITY, 9);
    ((double *)p->part_lse[3].data)[1 * ROWS + 2] = NAN; /* row 2, head 1 */
    assert_ok(mla_context_create(NULL, &context));
    assert_ok(mla_merge(context, &p->args, NULL));
    for (int t = 0; t < ROWS; t++)
        for (int h = 0; h < HEADS; h++) {
            bool want = t == 2 && h == 1;
            assert_int_equal(isnan(lse_at(p, t, h)) != 0, want);
            assert_int_equal(isnan(((double *)p->args.out.data)[(t * HEADS + h) * DIM + 5]) != 0,
                             want);
        }
    mla_context_destroy(context);
    release(p);
    free(p);
}

static void no_parts(void **state)
{
    (void)state;
    mla_context *context;
    float out[6], lse[2], sink[1] = {1.5f};
    mla_merge_args args = {.rows = 2,
                           .heads = 1,
                           .dim = 3,
                           .part_dtype = MLA_F32,
                           .out_dtype = MLA_F32,
                           .out = {out, {0, 0}},
                           .lse = {lse, {0, 0}}};
    assert_ok(mla_context_create(NULL, &context));
    for (int k = 0; k < 2; k++) {
        memset(out, 0xFF, sizeof out);
        args.attn_sink = k ? sink : NULL;
        assert_ok(mla_merge(context, &args, NULL));
        for (int c = 0; c < 6; c++)
            assert_true(out[c] == 0);
        assert_true(lse[0] == (k ? 1.5f : -INFINITY) && lse[1] == lse[0]);
    }
    mla_context_destroy(context);
}

static void misuse(void **state)
{
    (void)state;
    struct parts *p = malloc(sizeof *p);
    mla_context *context;
    assert_non_null(p);
    assert_ok(mla_context_create(NULL, &context));
    make(p, MLA_F32, MLA_F32, MLA_LSE_E, -INFINITY, 9);
    const mla_merge_args good = p->args;
#define REFUSES(change, text)                                                                      \
    do {                                                                                           \
        mla_merge_args a = good;                                                                   \
        mla_tensor part_out[PARTS], part_lse[PARTS];                                               \
        memcpy(part_out, good.part_out, sizeof part_out);                                          \
        memcpy(part_lse, good.part_lse, sizeof part_lse);                                          \
        a.part_out = part_out, a.part_lse = part_lse;                                              \
        change;                                                                                    \
        assert_refused(mla_merge(context, &a, NULL), MLA_ERR_ARGUMENT, text);                      \
    } while (0)
    assert_ok(mla_merge(context, &good, NULL));
    REFUSES(a.parts = -1, "parts: got -1");
    REFUSES(a.rows = -1, "rows: got -1");
    REFUSES(a.heads = 65537, "heads: got 65537");
    REFUSES(a.dim = -1, "dim: got -1");
    REFUSES(a.part_dtype = (mla_dtype)9, "part_dtype: got 9");
    REFUSES(a.out_dtype = (mla_dtype)9, "out_dtype: got 9");
    REFUSES(a.part_base = (mla_lse_base)2, "part_base: got 2");
    REFUSES(a.out_base = (mla_lse_base)2, "out_base: got 2");
    REFUSES(a.out.data = NULL, "out: got NULL");
    REFUSES(a.out.stride[1] = DIM - 1, "out: got stride[1]");
    REFUSES(a.lse.stride[0] = -1, "lse: got strides");
    REFUSES(a.part_out = NULL, "part_out: got NULL");
    REFUSES(a.part_lse = NULL, "part_lse: got NULL");
    REFUSES(part_out[3].data = NULL, "part_out: got NULL");
    REFUSES(part_out[3].stride[0] = 5, "part_out: got stride[0] 5");
    REFUSES(part_lse[4].data = NULL, "part_lse: got NULL");
    REFUSES(part_lse[4].data = (char *)part_lse[4].data + 1, "part_lse: got address");
#undef REFUSES
    assert_refused(mla_merge(NULL, &good, NULL), MLA_ERR_ARGUMENT, "context: got NULL");
    assert_refused(mla_merge(context, NULL, NULL), MLA_ERR_ARGUMENT, "args: got NULL");
    assert_refused(mla_merge(context, &good, context), MLA_ERR_ARGUMENT, "stream");
    mla_context_destroy(context);
    for (size_t i = 0; i < sizeof p->owned / sizeof *p->owned; i++)
        free(p->owned[i]);
    free(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(dtypes_and_bases),
        cmocka_unit_test(sinks),
        cmocka_unit_test(nan_stays_in_its_row),
        cmocka_unit_test(no_parts),
        cmocka_unit_test(misuse),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
