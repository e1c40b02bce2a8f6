/* SPDX-License-Identifier: Apache-2.0 */
/* Cases on a CUDA device, judged against the fp64 reference: what problem strings cannot ask for.
 * Skipped where there is no device. With the word "model", missing pages and key splits in the functional model.
 * labels: cuda
 * timeout: 300 */
#include "common/kernel.h"
#include "common/route.h"
#include "common/tool/case.h"
#include "common/tool/device_case.h"
#include "mla/mla.h"
#include "validation/check.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

static mla_backend backend = MLA_BACKEND_CUDA;
static mla_context *host, *device;

static int open_contexts(void **state)
{
    mla_context_options options = {backend, 0, 0};
    (void)state;
    if (mla_context_create(NULL, &host) != MLA_OK)
        return -1;
    mla_status status = mla_context_create(&options, &device);
    return status == MLA_OK || status == MLA_ERR_NO_DEVICE ? 0 : -1;
}

static int close_contexts(void **state)
{
    (void)state;
    mla_context_destroy(host);
    mla_context_destroy(device);
    return 0;
}

struct run {
    struct mla_case k;
    mla_plan *plan;
    void *out;
    float *lse, *max_logits;
};

static void make(struct run *r, const char *text)
{
    memset(r, 0, sizeof *r);
    if (mla_case_open(text, &r->k, NULL, NULL) != MLA_OK)
        fail_msg("%s", mla_last_error());
    mla_problem *p = &r->k.problem;
    size_t rows = (size_t)(mla_total_q(p) * p->heads_q) + 1;
    p->out_dtype = p->q_dtype;
    p->wants_lse = p->wants_max_logits = true;
    r->out = malloc(rows * (size_t)mla_d_v(p) * mla_dtype_bytes(p->out_dtype));
    r->lse = malloc(rows * 4);
    r->max_logits = malloc(rows * 4);
    assert_true(r->out && r->lse && r->max_logits);
}

static void drop(struct run *r)
{
    mla_plan_destroy(r->plan);
    mla_case_free(&r->k);
    free(r->out);
    free(r->lse);
    free(r->max_logits);
}

static void plan_named(struct run *r, mla_route route, size_t limit, const char *kernel)
{
    const mla_plan_options options = {.route = route,
                                      .kernel = kernel,
                                      .workspace_limit_bytes = limit,
                                      .complete = r->k.complete};
    mla_plan_destroy(r->plan);
    if (mla_plan_create(device, &r->k.problem, &options, &r->plan) != MLA_OK)
        fail_msg("%s", mla_last_error());
}

static void plan(struct run *r, mla_route route, size_t limit)
{
    plan_named(r, route, limit, NULL);
}

static void run_on_model(struct run *r)
{
    size_t bytes = mla_plan_workspace_bytes(r->plan);
    void *workspace = aligned_alloc(256, (bytes + 511) / 256 * 256);
    mla_tensors t = r->k.tensors;
    assert_non_null(workspace);
    t.out.data = r->out;
    t.lse.data = r->lse;
    t.max_logits.data = r->max_logits;
    if (mla_run(r->plan, &t, workspace, bytes, NULL) != MLA_OK)
        fail_msg("%s", mla_last_error());
    free(workspace);
}

static void run(struct run *r)
{
    if (backend == MLA_BACKEND_MODEL) {
        run_on_model(r);
        return;
    }
    const struct mla_device_outputs outputs = {r->k.problem.out_dtype, MLA_F32, r->out, r->lse,
                                               r->max_logits};
    struct mla_device_case *c;
    double seconds;
    if (mla_device_case_open(0, r->plan, &r->k, &outputs, &c) != MLA_OK ||
        mla_device_case_run(c, &seconds) != MLA_OK)
        fail_msg("%s", mla_last_error());
    mla_device_case_free(c);
}

static void judge(struct run *r, const char *text)
{
    const mla_problem *p = &r->k.problem;
    const struct mla_result result = {p->out_dtype, MLA_F32, r->out, r->lse, r->max_logits};
    mla_rounding *rounding = calloc((size_t)p->batch + 1, sizeof *rounding);
    struct mla_check_report report;
    struct mla_check_options options = {.context = host, .rounding = rounding, .name = "device"};
    assert_non_null(rounding);
    for (int64_t b = 0; b < p->batch; b++) {
        mla_request_info info;
        assert_int_equal(mla_plan_request(r->plan, b, &info), MLA_OK);
        rounding[b] =
            mla_rounding_of(p, MLA_BACKEND_CUDA, MLA_PRECISION_FP32, info.route, p->out_dtype);
    }
    if (mla_check_result(&r->k, &result, &options, &report) != MLA_OK)
        fail_msg("%s", mla_last_error());
    if (report.verdict == MLA_FAIL) {
        mla_check_print(stdout, &r->k, &options, &report);
        fail_msg("%s", text);
    }
    free(rounding);
}

static const char *const latent[] = {
    "attend heads=6 batch=q70s300,3q1s77,q130s130 page=16 topk=0",
    "attend heads=6 batch=q70s300,3q1s77,q130s130 topk=40 sink=1",
    "attend heads=7 batch=q70s300,q0s0,3q1s77 page=7 cache=fp8_ds_mla topk=40 topk_lens=1 holes=1",
    "attend heads=5 batch=q90s333,q4s0 cache=nvfp4_ds_mla page=64 topk=0",
    "attend heads=3 batch=q150s400 dtype=f16 causal=0 mask=1",
};

/* Groups of heads, groups of requests, passes of rows: each limit cuts elsewhere. */
static void test_workspace_limits(void **state)
{
    static const size_t limits[] = {0, 1, 9 << 20, 12 << 20};
    (void)state;
    if (!device)
        skip();
    for (size_t i = 0; i < sizeof latent / sizeof *latent; i++) {
        struct run r;
        make(&r, latent[i]);
        for (int route = MLA_ROUTE_DENSE_MHA; route <= MLA_ROUTE_DENSE_MQA; route++) {
            bool admissible = true;
            for (int64_t b = 0; b < r.k.problem.batch; b++)
                admissible &= mla_route_admissible(&r.k.problem, (mla_route)route,
                                                   r.k.complete && r.k.complete[b], NULL);
            for (size_t l = 0; admissible && l < sizeof limits / sizeof *limits; l++) {
                plan(&r, (mla_route)route, limits[l]);
                run(&r);
                judge(&r, latent[i]);
            }
        }
        drop(&r);
    }
}

/* Requests shorter than planned. */
static void test_run_time_lengths(void **state)
{
    static const int32_t lengths[] = {290, 80, 1, 60, 140};
    (void)state;
    if (!device)
        skip();
    for (int i = 0; i < 2; i++) {
        struct run r;
        make(&r, latent[i]);
        r.k.tensors.seq_lens_kv = lengths;
        for (int route = MLA_ROUTE_DENSE_MHA; route <= MLA_ROUTE_DENSE_MQA; route++) {
            if (!mla_route_admissible(&r.k.problem, (mla_route)route, false, NULL))
                continue;
            plan(&r, (mla_route)route, 9 << 20);
            run(&r);
            judge(&r, latent[i]);
        }
        drop(&r);
    }
}

/* Pages that do not exist hide their keys, whatever the route: at the start and inside of blocks of
 * keys, blocks without any, requests that have all. */
static void test_missing_pages(void **state)
{
    static const char *const texts[] = {
        "attend heads=6 batch=q70s300,3q1s77,q130s130 page=16 topk=0",
        "attend heads=16 nope=64 v=64 batch=q5s700,q3s450 page=64 topk=0",
        "attend heads=40 nope=64 v=64 batch=q2s330,q1s300 page=128 topk=0",
        "attend heads=12 nope=64 v=64 batch=q6s300 page=8 topk=0 causal=0",
        "attend heads=20 nope=64 v=64 batch=q4s300 page=16 cache=fp8_ds_mla topk=0",
        "attend heads=3 nope=192 v=256 batch=q4s300 page=16 topk=0",
    };
    (void)state;
    if (!device)
        skip();
    /* They bring whole blocks of keys, and need not be the first to take these. */
    const char *tensor = device->sm == 90    ? "mqa_decode_latent_sm90"
                         : device->sm == 100 ? "mqa_decode_latent_sm100"
                                             : NULL;
    const char *expanded = device->sm == 90    ? "mha_latent_sm90"
                           : device->sm == 100 ? "mha_latent_sm100"
                                               : NULL;
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        struct run r;
        make(&r, texts[i]);
        int32_t *pages = r.k.tensors.page_table.data;
        pages[2] = -1;
        pages[i < 2 || i == 5 ? 7 : 1] = (int32_t)r.k.problem.num_pages;
        plan(&r, MLA_ROUTE_DENSE_MHA, 0);
        run(&r);
        judge(&r, "pages hidden, dense-mha");
        if (expanded) {
            plan_named(&r, MLA_ROUTE_DENSE_MHA, 0, expanded);
            run(&r);
            judge(&r, expanded);
        }
        plan(&r, MLA_ROUTE_DENSE_MQA, 0);
        run(&r);
        judge(&r, "pages hidden, dense-mqa");
        if (tensor && (i > 0 || device->sm == 90)) { /* sm_100's: up to 16 tokens */
            plan_named(&r, MLA_ROUTE_DENSE_MQA, 0, tensor);
            run(&r);
            judge(&r, tensor);
        }
        drop(&r);
    }
}

struct thread {
    pthread_t id;
    struct run run;
    bool same;
};

static struct run first;

/* Key splits of request 0 of a batch; nothing runs. */
static int64_t splits_of(const char *text, const char *kernel, int64_t wanted)
{
    const mla_plan_options options = {.kernel = kernel, .num_splits = wanted};
    mla_problem p;
    mla_plan *plan = NULL;
    mla_request_info info;
    if (mla_problem_parse(&p, text, NULL, 0) != MLA_OK ||
        mla_plan_create(device, &p, &options, &plan) != MLA_OK ||
        mla_plan_request(plan, 0, &info) != MLA_OK)
        fail_msg("%s", mla_last_error());
    mla_plan_destroy(plan);
    mla_problem_release(&p);
    return info.num_splits;
}

/* By default the batch decides: a lone request is split until it fills the device, one of many is
 * not. MLA_SPLITS_ALONE: the request decides. A number is that number, as far as there are keys. */
static void test_splits(void **state)
{
    (void)state;
    if (!device)
        skip();
#define DECODE "attend form=absorbed heads=16 page=64 batch="
    const int64_t lone = splits_of(DECODE "q1s32k", "mqa_any", 0);
    const int64_t many = splits_of(DECODE "256q1s32k", "mqa_any", 0);
    const int64_t alone = splits_of(DECODE "q1s32k", "mqa_any", MLA_SPLITS_ALONE);
    assert_in_range(lone, 4, 256); /* the model has 4 processors */
    assert_in_range(many, 1, lone - 1);
    assert_in_range(alone, 2, 64);
    assert_int_equal(splits_of(DECODE "256q1s32k", "mqa_any", MLA_SPLITS_ALONE), alone);
    assert_int_equal(splits_of(DECODE "q1s32k,255q1s1k", "mqa_any", MLA_SPLITS_ALONE), alone);
    assert_int_equal(splits_of(DECODE "q1s32k", "mqa_any", 7), 7);
    assert_int_equal(splits_of(DECODE "q1s40", "mqa_any", 0), 1);
    /* A long request among short ones is cut too. */
    assert_in_range(splits_of(DECODE "q1s32k,100q1s512", "mqa_any", 0), 4, 256);
#undef DECODE
}

/* With MLA_SPLITS_ALONE a request has the same bits by itself and before others. */
static void test_alone(void **state)
{
    static const char *const texts[][2] = {
        {"attend form=absorbed heads=64 batch=q2s300",
         "attend form=absorbed heads=64 batch=q2s300,q1s40,q3s100"},
        {"attend form=absorbed heads=16 batch=q3s200",
         "attend form=absorbed heads=16 batch=q3s200,q9s500"},
    };
    const mla_plan_options options = {.num_splits = MLA_SPLITS_ALONE};
    (void)state;
    if (!device)
        skip();
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        struct run r[2];
        for (int j = 0; j < 2; j++)
            make(&r[j], texts[i][j]);
        const mla_problem *p = &r[0].k.problem;
        const mla_tensors *from = &r[1].k.tensors;
        mla_tensors *to = &r[0].k.tensors;
        const size_t rows = (size_t)(mla_total_q(p) * p->heads_q), keys = (size_t)p->seq_lens_kv[0],
                     width = (size_t)p->kv_lora_rank;
        memcpy(to->q.data, from->q.data, rows * (width + (size_t)p->qk_rope_dim) * 2);
        memcpy(to->kv_c.data, from->kv_c.data, keys * width * 2);
        memcpy(to->k_pe.data, from->k_pe.data, keys * (size_t)p->qk_rope_dim * 2);
        for (int j = 0; j < 2; j++) {
            if (mla_plan_create(device, &r[j].k.problem, &options, &r[j].plan) != MLA_OK)
                fail_msg("%s", mla_last_error());
            run(&r[j]);
        }
        assert_memory_equal(r[0].out, r[1].out, rows * width * 2);
        assert_memory_equal(r[0].lse, r[1].lse, rows * 4);
        for (int j = 0; j < 2; j++)
            drop(&r[j]);
    }
}

static void *work(void *data)
{
    struct thread *t = data;
    const mla_problem *p = &first.k.problem;
    size_t bytes = (size_t)(mla_total_q(p) * p->heads_q * mla_d_v(p)) * 2;
    t->same = true;
    for (int i = 0; i < 4; i++) {
        run(&t->run);
        t->same &= memcmp(t->run.out, first.out, bytes) == 0;
    }
    return NULL;
}

/* One plan from many threads, each with a stream and a workspace: the same bits. */
static void test_threads(void **state)
{
    enum { THREADS = 4 };
    struct thread threads[THREADS];
    (void)state;
    if (!device)
        skip();
    for (int route = MLA_ROUTE_DENSE_MHA; route <= MLA_ROUTE_DENSE_MQA;
         route += MLA_ROUTE_DENSE_MQA - MLA_ROUTE_DENSE_MHA) {
        make(&first, latent[0]);
        plan(&first, (mla_route)route, 9 << 20);
        run(&first);
        for (int i = 0; i < THREADS; i++) {
            make(&threads[i].run, latent[0]);
            threads[i].run.plan = first.plan;
        }
        for (int i = 0; i < THREADS; i++)
            assert_int_equal(pthread_create(&threads[i].id, NULL, work, &threads[i]), 0);
        for (int i = 0; i < THREADS; i++) {
            pthread_join(threads[i].id, NULL);
            assert_true(threads[i].same);
            threads[i].run.plan = NULL;
            drop(&threads[i].run);
        }
        drop(&first);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest in_model[] = {cmocka_unit_test(test_missing_pages),
                                          cmocka_unit_test(test_splits),
                                          cmocka_unit_test(test_alone)};
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_workspace_limits), cmocka_unit_test(test_run_time_lengths),
        cmocka_unit_test(test_missing_pages),    cmocka_unit_test(test_splits),
        cmocka_unit_test(test_threads),
    };
    if (argc > 1 && strcmp(argv[1], "model") == 0) {
        backend = MLA_BACKEND_MODEL;
        return cmocka_run_group_tests(in_model, open_contexts, close_contexts);
    }
    return cmocka_run_group_tests(tests, open_contexts, close_contexts);
}
