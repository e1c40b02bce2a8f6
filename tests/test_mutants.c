/* SPDX-License-Identifier: Apache-2.0 */
// labels: slow
// timeout: 300
/* The proof that the check can fail: bugs injected in a simulated right kernel, each over four
 * fills. Every one must be caught by H, T, z or the exact count; the right kernel must pass
 * everywhere. test_mutants --table prints the table of docs/numerics.md. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "common/format.h"
#include "common/kernel.h"
#include "common/tool/case.h"
#include "validation/mutants.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FILLS = 4, COUNTING = 3, SETTINGS = 3, TARGET = 5, EMPTY = 2 };
static const char *const fills[FILLS] = {"normal", "diffuse", "large", "counting"};
static const struct {
    const char *name, *text;
    mla_route route;
} settings[SETTINGS] = {
    {"lists",
     "attend form=latent b=2 sq=4 skv=4096 hq=2 rank=128 nope=64 rope=32 v=64 topk=2048 "
     "topk_lens=1 "
     "page=64 sink=1 max_logits=1 holes=1",
     MLA_ROUTE_SPARSE_MQA},
    {"mask",
     "attend form=latent b=1 sq=8 skv=2048 hq=2 rank=128 nope=64 rope=32 v=64 mask=1 max_logits=1",
     MLA_ROUTE_MASKED_MHA},
    {"fp8",
     "attend form=latent b=2 sq=4 skv=1024 hq=2 rank=512 nope=64 rope=64 v=64 topk=512 page=64 "
     "cache=fp8_ds_mla max_logits=1",
     MLA_ROUTE_SPARSE_MQA},
};

/* What caught it. */
enum {
    BY_H = 1,
    BY_T = 2,
    BY_Z = 4,
    BY_DRIFT = 8,
    BY_COUNT = 16,
    BY_RTOL = 32,
    BY_COSINE = 64,
    OURS = 31
};

static const struct mla_context cpu = {.backend = MLA_BACKEND_CPU, .threads = 2};

/* A case whose target row has the features that the bugs are about. */
static void make(struct mla_case *c, int setting, int fill)
{
    struct mla_case_spec spec;
    char text[512];
    snprintf(text, sizeof text, "%s fill=%s seed=11", settings[setting].text, fills[fill]);
    assert_int_equal(mla_case_spec_parse(&spec, text), MLA_OK);
    assert_int_equal(mla_case_make(&spec, c), MLA_OK);
    mla_problem_release(&spec.problem);
    const mla_problem *p = &c->problem;
    if (p->has_topk_lens) {
        int32_t *lens = (int32_t *)(uintptr_t)c->tensors.topk_lens;
        lens[TARGET] = (int32_t)p->topk - 1; /* one entry behind the end */
        lens[EMPTY] = 0;
    }
    if (p->has_mask) { /* the first 64 keys hidden */
        int32_t *words = (int32_t *)c->tensors.mask.data + TARGET * (2048 / 32);
        words[0] = words[1] = 0;
        words[(2048 - 8 + TARGET) / 32] |=
            (int32_t)(1u << ((2048 - 8 + TARGET) % 32)); /* own key */
    }
    if (p->cache_format == MLA_CACHE_FP8_DS_MLA && fill != COUNTING) {
        /* Scales of other writers are no powers of two, and differ from tile to tile. */
        for (int64_t i = 0; i < p->num_pages * p->page_size; i++) {
            char *record = (char *)c->tensors.kv_cache.data + i * 656 + 512;
            float scale[4];
            memcpy(scale, record, sizeof scale);
            for (int k = 0; k < 4; k++)
                scale[k] *= 1 + 0.17f * (float)k + 0.01f * (float)(i % 7);
            memcpy(record, scale, sizeof scale);
        }
    }
}

static bool within(double want, double got)
{
    if (!isfinite(want) || !isfinite(got))
        return want == got || (isnan(want) && isnan(got));
    return fabs(got - want) <= 1e-2 + 1e-2 * fabs(want);
}

/* Exact criterion of the counting fill: only the last rounding and the division may differ. */
static bool counts_exactly(double want, double got)
{
    double o = fabs(want); /* fp64 adds up +1/n and -1/n to 1e-17, not to 0 */
    o = o < 0x1p-45 ? 0 : o;
    return fabs(got - want) <= 0x1p-8 * o + 8 * 0x1p-24 * o + 0x1p-45;
}

static unsigned judge(const struct mla_case *c, int setting, int fill, enum mla_mutant mutant,
                      struct mla_check_report *r)
{
    const mla_problem *p = &c->problem;
    int64_t n = mla_total_q(p) * p->heads_q, d = mla_d_v(p);
    uint16_t *out = malloc((size_t)(n * d) * sizeof *out);
    float *lse = malloc((size_t)n * 2 * sizeof *lse), *max = lse + n;
    double *want = malloc((size_t)(n * d + 2 * n) * sizeof *want), *want_lse = want + n * d;
    double *got = malloc((size_t)(n * d) * sizeof *got);
    struct mla_simulation sim = {.route = settings[setting].route,
                                 .round = MLA_BF16,
                                 .out = MLA_BF16,
                                 .block = 64,
                                 .order = MLA_SUM_BLOCKS,
                                 .mutant = mutant,
                                 .row = TARGET};
    assert_int_equal(mla_simulate(p, &c->tensors, &sim, out, lse, max), MLA_OK);
    mla_rounding rounding[2];
    rounding[0] = rounding[1] = mla_simulated_rounding(p, &sim);
    struct mla_result result = {MLA_BF16, MLA_F32, out, lse, max};
    struct mla_check_options options = {.context = &cpu,
                                        .rounding = rounding,
                                        .mode = MLA_VERDICT_STRICT};
    assert_int_equal(mla_check_result(c, &result, &options, r), MLA_OK);
    assert_int_equal(r->out.vacuous, 0);

    unsigned by = 0;
    if (r->out.bad || r->lse.bad || r->max_logits.bad)
        by |= BY_H;
    bool statistical = r->out.bad_t || r->lse.bad_t || r->max_logits.bad_t;
    bool drift = r->lse.drift > 1 || r->max_logits.drift > 1;
    by |= (statistical ? BY_T : 0u) | (r->out.bad_z ? BY_Z : 0u) | (drift ? BY_DRIFT : 0u);
    mla_reference_args args = {.out = want, .lse = want_lse, .max_logits = want_lse + n};
    assert_int_equal(mla_reference(&cpu, p, &c->tensors, &args), MLA_OK);
    mla_load_f64(MLA_BF16, out, n * d, got);
    double xy = 0, sum = 0;
    for (int64_t i = 0; i < n * d; i++) {
        if (fill == COUNTING && !counts_exactly(want[i], got[i]))
            by |= BY_COUNT;
        if (!within(want[i], got[i]))
            by |= BY_RTOL;
        xy += want[i] * got[i];
        sum += want[i] * want[i] + got[i] * got[i];
    }
    for (int64_t i = 0; i < 2 * n; i++)
        if (!within(want_lse[i], (double)lse[i]))
            by |= BY_RTOL;
    if (!(1 - 2 * xy / sum <= 1e-3))
        by |= BY_COSINE;
    free(out);
    free(lse);
    free(want);
    free(got);
    return by;
}

static unsigned caught[MLA_NUM_MUTANTS][SETTINGS][FILLS];
static double share[MLA_NUM_MUTANTS][SETTINGS][FILLS];

static void run_all(void)
{
    static bool done;
    if (done)
        return;
    done = true;
    for (int s = 0; s < SETTINGS; s++)
        for (int f = 0; f < FILLS; f++) {
            struct mla_case c;
            make(&c, s, f);
            for (int m = 0; m < MLA_NUM_MUTANTS; m++) {
                if (m && strcmp(mla_mutants[m].setting, settings[s].name) != 0)
                    continue;
                struct mla_check_report r;
                caught[m][s][f] = judge(&c, s, f, (enum mla_mutant)m, &r);
                share[m][s][f] =
                    fmax(r.out.share_hard, fmax(r.lse.share_hard, r.max_logits.share_hard));
            }
            mla_case_free(&c);
        }
}

static void cell(unsigned by)
{
    const char *const letters[] = {"H", "T", "z", "drift", "count"};
    const char *blank = "";
    if (!(by & OURS))
        printf(" - |");
    else
        printf(" ");
    for (int i = 0; i < 5; i++)
        if (by >> i & 1) {
            printf("%s%s", blank, letters[i]);
            blank = " ";
        }
    if (by & OURS)
        printf(" |");
}

static void table(void)
{
    run_all();
    printf("| bug | normal | diffuse | large | counting | rtol/atol 1e-2 | cosine 1e-3 |\n"
           "|---|---|---|---|---|---|---|\n");
    for (int m = 0; m < MLA_NUM_MUTANTS; m++)
        for (int s = 0; s < SETTINGS; s++) {
            if (m && strcmp(mla_mutants[m].setting, settings[s].name) != 0)
                continue;
            printf("| %s%s%s |", m ? mla_mutants[m].text : "**right kernel**, ",
                   m ? "" : settings[s].name, "");
            for (int f = 0; f < FILLS; f++)
                cell(caught[m][s][f]);
            for (unsigned by = BY_RTOL; by <= BY_COSINE; by *= 2) {
                const char *comma = "";
                printf(" ");
                for (int f = 0; f < FILLS; f++)
                    if (caught[m][s][f] & by) {
                        printf("%s%s", comma, fills[f]);
                        comma = ", ";
                    }
                printf("%s |", *comma ? "" : "-");
            }
            printf("\n");
        }
}

static void right_kernel_passes(void **state)
{
    (void)state;
    run_all();
    for (int s = 0; s < SETTINGS; s++)
        for (int f = 0; f < FILLS; f++)
            if (caught[MLA_MUTANT_NONE][s][f] & OURS)
                fail_msg("right kernel, %s, %s: caught by %x", settings[s].name, fills[f],
                         caught[MLA_MUTANT_NONE][s][f]);
}

static void every_mutant_is_caught(void **state)
{
    (void)state;
    run_all();
    int missed = 0;
    assert_true(MLA_NUM_MUTANTS - 1 >= 24);
    for (int m = 1; m < MLA_NUM_MUTANTS; m++) {
        unsigned by = 0;
        for (int s = 0; s < SETTINGS; s++)
            for (int f = 0; f < FILLS; f++)
                by |= caught[m][s][f];
        if (!(by & OURS)) {
            print_error("not caught: %s (%s)\n", mla_mutants[m].name, mla_mutants[m].text);
            missed++;
        }
    }
    assert_int_equal(missed, 0);
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "--table") == 0) {
        table();
        return 0;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(right_kernel_passes),
        cmocka_unit_test(every_mutant_is_caught),
    };
    return cmocka_run_group_tests_name("mutants", tests, NULL, NULL);
}
