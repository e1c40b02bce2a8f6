/* SPDX-License-Identifier: Apache-2.0 */
// labels: cuda
// timeout: 300
/* The proof that checks notice bugs of the device kernels themselves: those of
 * validation/mutants.def, injected in mqa.cuh, mha.cuh and combine.cu (cuda/mutant.cuh), each over
 * four fills. Every one must be caught by H, T, z, drift or the exact count, and the right kernel
 * must pass. On a CUDA device this program links kernels of its own, compiled with bugs inside;
 * with the word "model" it runs the functional model's. --table prints what caught what. Exit 77 =
 * skipped, with the reason. */
#include "common/format.h"
#include "common/kernel.h"
#include "common/tool/case.h"
#include "validation/check.h"
#include "validation/mutants.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FILLS = 4, COUNTING = 3, SETTINGS = 3, TARGET = 5, EMPTY = 2, SEVERAL_SPLITS = 3 };
static const char *const fills[FILLS] = {"normal", "diffuse", "large", "counting"};
static const struct {
    const char *name, *text;
    mla_route route;
    const char *kernel; /* that holds the bugs */
} settings[SETTINGS] = {
    {"lists",
     "attend form=absorbed b=2 sq=4 skv=1024 hq=2 rank=512 rope=64 topk=512 topk_lens=1 page=64 "
     "sink=1 max_logits=1 holes=1 scale=0.0722",
     MLA_ROUTE_SPARSE_MQA, "mqa_any"},
    {"mask", "attend form=expanded b=1 sq=8 skv=1024 hq=2 nope=64 rope=32 v=64 mask=1 max_logits=1",
     MLA_ROUTE_MASKED_MHA, "mha_any"},
    {"fp8",
     "attend form=absorbed b=2 sq=4 skv=1024 hq=2 rank=512 rope=64 topk=512 page=64 "
     "cache=fp8_ds_mla max_logits=1 scale=0.0722",
     MLA_ROUTE_SPARSE_MQA, "mqa_any"},
};

/* What caught it. */
enum { BY_H = 1, BY_T = 2, BY_Z = 4, BY_DRIFT = 8, BY_COUNT = 16 };

static mla_context *cpu, *target;
static bool failed_to_run;

/* -------------------------------------------------------------- the device */

#ifdef MLA_WITH_CUDA
#include "support_cuda.h"

/* From the kernels that this program links, if it does. */
__attribute__((weak)) const void *mla_mutant_setter_mqa_bf16(void);
__attribute__((weak)) const void *mla_mutant_setter_mha_bf16(void);
__attribute__((weak)) const void *mla_mutant_setter_combine(void);

static bool has_setters(void)
{
    return mla_mutant_setter_mqa_bf16 && mla_mutant_setter_mha_bf16 && mla_mutant_setter_combine;
}

static void choose_on_cuda(int mutant)
{
    const void *setters[] = {mla_mutant_setter_mqa_bf16(), mla_mutant_setter_mha_bf16(),
                             mla_mutant_setter_combine()};
    void *args[] = {&mutant};
    for (int i = 0; i < 3; i++)
        CUDA(cudaLaunchKernel(setters[i], (dim3){1, 1, 1}, (dim3){1, 1, 1}, args, 0, NULL));
    CUDA(cudaDeviceSynchronize());
}

static mla_status run_on_cuda(const mla_plan *plan, const struct mla_case *k, const size_t bytes[3],
                              void *host[3])
{
    struct device_inputs in = {0};
    size_t workspace_bytes = mla_plan_workspace_bytes(plan);
    void *out[3], *workspace = device(workspace_bytes);
    load_inputs(&in, k);
    for (int i = 0; i < 3; i++) {
        out[i] = device(bytes[i]);
        CUDA(cudaMemset(out[i], 0xFF, bytes[i]));
    }
    in.tensors.out.data = out[0];
    in.tensors.lse.data = out[1];
    in.tensors.max_logits.data = out[2];
    mla_status status = mla_run(plan, &in.tensors, workspace, workspace_bytes, NULL);
    CUDA(cudaDeviceSynchronize());
    for (int i = 0; i < 3; i++) {
        download(host[i], out[i], bytes[i]);
        CUDA(cudaFree(out[i]));
    }
    CUDA(cudaFree(workspace));
    free_inputs(&in, &k->problem);
    return status;
}
#else
static bool has_setters(void)
{
    return false;
}
static void choose_on_cuda(int mutant)
{
    (void)mutant;
}
static mla_status run_on_cuda(const mla_plan *plan, const struct mla_case *k, const size_t bytes[3],
                              void *host[3])
{
    (void)plan, (void)k, (void)bytes, (void)host;
    return MLA_ERR_NO_DEVICE;
}
#endif

static void choose(enum mla_mutant mutant)
{
    char text[32];
    if (target->backend == MLA_BACKEND_CUDA) {
        choose_on_cuda((int)mutant);
        return;
    }
    snprintf(text, sizeof text, "any:%d", (int)mutant);
    setenv("MLA_MODEL_MUTANT", text, 1);
}

static mla_status run(const mla_plan *plan, const struct mla_case *k, const size_t bytes[3],
                      void *host[3])
{
    if (target->backend == MLA_BACKEND_CUDA)
        return run_on_cuda(plan, k, bytes, host);
    size_t workspace_bytes = mla_plan_workspace_bytes(plan);
    void *workspace = aligned_alloc(256, (workspace_bytes + 511) / 256 * 256);
    mla_tensors t = k->tensors;
    for (int i = 0; i < 3; i++)
        memset(host[i], 0xFF, bytes[i]);
    t.out.data = host[0];
    t.lse.data = host[1];
    t.max_logits.data = host[2];
    mla_status status = mla_run(plan, &t, workspace, workspace_bytes, NULL);
    free(workspace);
    return status;
}

/* -------------------------------------------------------------------- cases */

static void must(mla_status status, const char *what)
{
    if (status == MLA_OK)
        return;
    printf("%s: %s\n", what, mla_last_error());
    exit(1);
}

/* A case whose target row has the features that the bugs are about. */
static void make(struct mla_case *c, int setting, int fill)
{
    struct mla_case_spec spec;
    char text[512];
    snprintf(text, sizeof text, "%s fill=%s seed=11", settings[setting].text, fills[fill]);
    must(mla_case_spec_parse(&spec, text), text);
    must(mla_case_make(&spec, c), text);
    mla_problem_release(&spec.problem);
    mla_problem *p = &c->problem;
    p->out_dtype = MLA_BF16;
    p->wants_lse = true;
    if (p->has_topk_lens) {
        int32_t *lens = (int32_t *)(uintptr_t)c->tensors.topk_lens;
        lens[TARGET] = (int32_t)p->topk - 1; /* one entry behind the end */
        lens[EMPTY] = 0;
    }
    if (p->has_mask) { /* the first 64 keys hidden; its own and the next key listed */
        int64_t words = (p->seq_lens_kv[0] + 31) / 32, own = p->seq_lens_kv[0] - 8 + TARGET;
        int32_t *row = (int32_t *)c->tensors.mask.data + TARGET * words;
        row[0] = row[1] = 0;
        for (int64_t j = own; j <= own + 1; j++)
            row[j / 32] |= (int32_t)(1u << (j % 32));
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

/* Exact criterion of the counting fill without splits, whose means are rounded: only the last
 * rounding and the division may differ. */
static bool counts_exactly(double want, double got)
{
    double o = fabs(want); /* fp64 adds up +1/n and -1/n to 1e-17, not to 0 */
    o = o < 0x1p-45 ? 0 : o;
    return fabs(got - want) <= 0x1p-8 * o + 8 * 0x1p-24 * o + 0x1p-45;
}

static unsigned judge(const struct mla_case *c, int setting, int fill, enum mla_mutant mutant,
                      int splits, const double *want)
{
    const mla_problem *p = &c->problem;
    size_t n = (size_t)(mla_total_q(p) * p->heads_q), d = (size_t)mla_d_v(p);
    const size_t bytes[3] = {n * d * 2, n * 4, n * 4};
    void *host[3] = {malloc(bytes[0]), malloc(bytes[1]), malloc(bytes[2])};
    double *got = malloc(n * d * sizeof *got);
    mla_rounding rounding[2];
    mla_plan *plan;
    const mla_plan_options options = {.route = settings[setting].route,
                                      .kernel = settings[setting].kernel,
                                      .num_splits = splits};
    must(mla_plan_create(target, p, &options, &plan), settings[setting].text);
    choose(mutant);
    must(run(plan, c, bytes, host), "run");
    choose(MLA_MUTANT_NONE);
    mla_plan_destroy(plan);
    rounding[0] = rounding[1] =
        mla_rounding_of(p, MLA_BACKEND_CUDA, MLA_PRECISION_FP32, settings[setting].route, MLA_BF16);
    const struct mla_result result = {MLA_BF16, MLA_F32, host[0], host[1], host[2]};
    const struct mla_check_options check = {.context = cpu,
                                            .rounding = rounding,
                                            .mode = MLA_VERDICT_STRICT};
    struct mla_check_report r;
    must(mla_check_result(c, &result, &check, &r), "check");
    unsigned by = r.out.bad || r.lse.bad || r.max_logits.bad || r.out.vacuous ? BY_H : 0;
    by |= r.out.bad_t || r.lse.bad_t || r.max_logits.bad_t ? BY_T : 0u;
    by |= r.out.bad_z ? BY_Z : 0u;
    by |= r.lse.drift > 1 || r.max_logits.drift > 1 ? BY_DRIFT : 0u;
    mla_load_f64(MLA_BF16, host[0], (int64_t)(n * d), got);
    for (size_t i = 0; fill == COUNTING && splits == 1 && i < n * d; i++)
        by |= counts_exactly(want[i], got[i]) ? 0u : BY_COUNT;
    if (mutant == MLA_MUTANT_NONE && by) {
        printf("right kernel, %s, %s, splits %d: caught by %x\n", settings[setting].name,
               fills[fill], splits, by);
        mla_check_print(stdout, c, &check, &r);
        failed_to_run = true;
    }
    for (int i = 0; i < 3; i++)
        free(host[i]);
    free(got);
    return by;
}

static unsigned caught[MLA_NUM_MUTANTS][FILLS];

static void run_setting(int setting, int fill)
{
    struct mla_case c;
    make(&c, setting, fill);
    const mla_problem *p = &c.problem;
    double *want = malloc((size_t)(mla_total_q(p) * p->heads_q * mla_d_v(p)) * sizeof *want);
    const mla_reference_args args = {.out = want};
    must(mla_reference(cpu, p, &c.tensors, &args), "reference");
    judge(&c, setting, fill, MLA_MUTANT_NONE, 1, want);
    judge(&c, setting, fill, MLA_MUTANT_NONE, SEVERAL_SPLITS, want);
    for (int m = 1; m < MLA_NUM_MUTANTS; m++) {
        if (strcmp(mla_mutants[m].setting, settings[setting].name) != 0)
            continue;
        bool split = m == MLA_MUTANT_SPLIT_MEAN || m == MLA_MUTANT_SPLIT_LOST;
        caught[m][fill] =
            judge(&c, setting, fill, (enum mla_mutant)m, split ? SEVERAL_SPLITS : 1, want);
    }
    free(want);
    mla_case_free(&c);
}

static void print_table(void)
{
    static const char *const letters[] = {"H", "T", "z", "drift", "count"};
    printf("| bug | normal | diffuse | large | counting |\n|---|---|---|---|---|\n");
    for (int m = 1; m < MLA_NUM_MUTANTS; m++) {
        printf("| %s |", mla_mutants[m].text);
        for (int f = 0; f < FILLS; f++) {
            printf(caught[m][f] ? "" : " -");
            for (int i = 0; i < 5; i++)
                if (caught[m][f] >> i & 1)
                    printf(" %s", letters[i]);
            printf(" |");
        }
        printf("\n");
    }
}

int main(int argc, char **argv)
{
    mla_context_options options = {MLA_BACKEND_CUDA, 0, 0};
    bool table = false;
    for (int i = 1; i < argc; i++) {
        table |= strcmp(argv[i], "--table") == 0;
        if (strcmp(argv[i], "model") == 0)
            options.backend = MLA_BACKEND_MODEL;
    }
    if (options.backend == MLA_BACKEND_CUDA && !has_setters()) {
        printf("skipped: this program has no CUDA kernels with bugs inside\n");
        return 77;
    }
    if (mla_context_create(&options, &target) != MLA_OK) {
        printf("skipped: %s\n", mla_last_error());
        return 77;
    }
    must(mla_context_create(NULL, &cpu), "cpu");
    for (int s = 0; s < SETTINGS; s++)
        for (int f = 0; f < FILLS; f++)
            run_setting(s, f);
    int missed = 0;
    for (int m = 1; m < MLA_NUM_MUTANTS; m++) {
        unsigned by = 0;
        for (int f = 0; f < FILLS; f++)
            by |= caught[m][f];
        missed += !by;
        if (!by)
            printf("not caught: %s (%s)\n", mla_mutants[m].name, mla_mutants[m].text);
    }
    if (table)
        print_table();
    printf("device mutants: %d, not caught %d; right kernel %s\n", MLA_NUM_MUTANTS - 1, missed,
           failed_to_run ? "FAILED" : "passed");
    mla_context_destroy(target);
    mla_context_destroy(cpu);
    return missed || failed_to_run;
}
