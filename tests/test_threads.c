// labels: fast tsan
/* SPDX-License-Identifier: Apache-2.0 */
/* One plan, many threads: eight threads run shared plans at the same time, each with a workspace
 * and outputs of its own, on contexts of one thread and of several. Every run must give the bits of
 * a run that was alone. The build with ThreadSanitizer runs this too. */
#include "support.h"

#include "common/tool/case.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { THREADS = 8, ROUNDS = 3, MAX_PLANS = 16 };

/* A plan with the answer it gives when nothing else runs. */
struct job {
    const mla_plan *plan;
    const mla_tensors *inputs;
    size_t out_bytes, lse_bytes;
    void *out, *lse;
    char *description;
};

struct worker {
    pthread_t thread;
    pthread_barrier_t *start;
    const struct job *jobs;
    int num_jobs, index;
    char complaint[256]; /* "" = all well; cmocka's assertions belong to the main thread */
};

static mla_status run(const struct job *job, void *out, void *lse)
{
    size_t bytes = mla_plan_workspace_bytes(job->plan);
    void *workspace = aligned_alloc(256, (bytes + 255) / 256 * 256 + 256);
    mla_tensors tensors = *job->inputs;
    tensors.out = (mla_tensor){.data = out};
    tensors.lse = (mla_tensor){.data = lse};
    mla_status status =
        workspace ? mla_run(job->plan, &tensors, workspace, bytes, NULL) : MLA_ERR_MEMORY;
    free(workspace);
    return status;
}

static char *describe(const mla_plan *plan)
{
    size_t bytes = mla_plan_describe(plan, NULL, 0) + 1;
    char *text = malloc(bytes);
    if (text)
        mla_plan_describe(plan, text, bytes);
    return text;
}

/* Runs one job; returns false with a complaint. */
static bool one_run(struct worker *w, const struct job *job)
{
    void *out = malloc(job->out_bytes), *lse = malloc(job->lse_bytes);
    char *description = describe(job->plan);
    const char *problem = NULL;
    if (!out || !lse || !description) {
        problem = "malloc";
    } else {
        memset(out, 0xff, job->out_bytes);
        memset(lse, 0xff, job->lse_bytes);
        if (run(job, out, lse) != MLA_OK)
            problem = mla_last_error();
        else if (memcmp(out, job->out, job->out_bytes) != 0)
            problem = "out differs from the run alone";
        else if (memcmp(lse, job->lse, job->lse_bytes) != 0)
            problem = "lse differs from the run alone";
        else if (strcmp(description, job->description) != 0)
            problem = "the plan describes itself differently";
    }
    if (problem)
        snprintf(w->complaint, sizeof w->complaint, "thread %d: %s\n%.160s", w->index, problem,
                 job->description);
    free(out);
    free(lse);
    free(description);
    return !problem;
}

/* The sentence of a failing call is the thread's own. */
static bool own_sentence(struct worker *w)
{
    char want[32], name[32];
    mla_problem problem;
    snprintf(name, sizeof name, "nobody-%d", w->index);
    snprintf(want, sizeof want, "'nobody-%d'", w->index);
    if (mla_problem_init_model(&problem, name) == MLA_ERR_ARGUMENT &&
        strstr(mla_last_error(), want))
        return true;
    snprintf(w->complaint, sizeof w->complaint, "thread %d: got sentence '%.150s', want %s",
             w->index, mla_last_error(), want);
    return false;
}

static void *work(void *argument)
{
    struct worker *w = argument;
    pthread_barrier_wait(w->start);
    /* Each thread begins with another plan, so that all of them meet in all orders. */
    for (int i = 0; i < ROUNDS * w->num_jobs; i++) {
        if (!one_run(w, &w->jobs[(i + w->index) % w->num_jobs]) || !own_sentence(w))
            break;
    }
    return NULL;
}

static void run_together(const struct job *jobs, int num_jobs)
{
    struct worker workers[THREADS];
    pthread_barrier_t start;
    assert_int_equal(pthread_barrier_init(&start, NULL, THREADS), 0);
    for (int t = 0; t < THREADS; t++) {
        workers[t] =
            (struct worker){.start = &start, .jobs = jobs, .num_jobs = num_jobs, .index = t};
        assert_int_equal(pthread_create(&workers[t].thread, NULL, work, &workers[t]), 0);
    }
    for (int t = 0; t < THREADS; t++)
        assert_int_equal(pthread_join(workers[t].thread, NULL), 0);
    pthread_barrier_destroy(&start);
    for (int t = 0; t < THREADS; t++)
        assert_string_equal(workers[t].complaint, "");
}

/* Every route of the case in both precisions, planned once and run alone. */
static int plan_all(const mla_context *context, const struct mla_case *c, struct job *jobs)
{
    const mla_problem *p = &c->problem;
    size_t rows = (size_t)p->cu_seqlens_q[p->batch] * (size_t)p->heads_q;
    int count = 0;
    for (int route = MLA_ROUTE_AUTO; route <= MLA_ROUTE_DENSE_MQA; route++) {
        for (int precision = MLA_PRECISION_FP32; precision <= MLA_PRECISION_FP64; precision++) {
            mla_plan_options options = {.route = (mla_route)route,
                                        .precision = (mla_precision)precision,
                                        .complete = c->complete};
            mla_plan *plan;
            mla_status status = mla_plan_create(context, p, &options, &plan);
            if (status == MLA_ERR_UNSUPPORTED)
                continue; /* dense routes over lists that leave keys out, and the like */
            assert_ok(status);
            assert_true(count < MAX_PLANS);
            struct job *job = &jobs[count++];
            size_t lse_bytes = p->out_dtype == MLA_F64 ? sizeof(double) : sizeof(float);
            *job =
                (struct job){.plan = plan,
                             .inputs = &c->tensors,
                             .out_bytes = rows * (size_t)p->v_dim * mla_dtype_bytes(p->out_dtype),
                             .lse_bytes = rows * lse_bytes,
                             .description = describe(plan)};
            job->out = malloc(job->out_bytes);
            job->lse = malloc(job->lse_bytes);
            assert_true(job->out && job->lse && job->description);
            assert_ok(run(job, job->out, job->lse));
        }
    }
    return count;
}

static void free_jobs(struct job *jobs, int count)
{
    for (int i = 0; i < count; i++) {
        mla_plan_destroy((mla_plan *)(uintptr_t)jobs[i].plan);
        free(jobs[i].out);
        free(jobs[i].lse);
        free(jobs[i].description);
    }
}

static struct mla_case make(const char *text)
{
    struct mla_case_spec spec;
    struct mla_case c;
    assert_ok(mla_case_spec_parse(&spec, text));
    assert_ok(mla_case_make(&spec, &c));
    mla_problem_release(&spec.problem);
    return c;
}

static void share(const char *text, int threads, int least_plans)
{
    struct job jobs[MAX_PLANS];
    struct mla_case c = make(text);
    mla_context_options options = {.backend = MLA_BACKEND_CPU, .threads = threads};
    mla_context *context;
    assert_ok(mla_context_create(&options, &context));
    int count = plan_all(context, &c, jobs);
    assert_true(count >= least_plans);
    run_together(jobs, count);
    free_jobs(jobs, count);
    mla_context_destroy(context);
    mla_case_free(&c);
}

#define SPARSE "attend model=tiny batch=q9s40,3q1s33,q24 topk=16 page=8 sink=1 seed=3"
#define DENSE "attend model=tiny topk=0 batch=q9s40,3q1s33,q24 seed=4"

/* auto, masked-mha, sparse-mqa; and auto, dense-mha, dense-mqa */
static void test_sparse_one_thread(void **state)
{
    (void)state;
    share(SPARSE, 1, 6);
}

static void test_dense_one_thread(void **state)
{
    (void)state;
    share(DENSE, 1, 6);
}

static void test_sparse_teams(void **state)
{
    (void)state;
    share(SPARSE, 3, 6);
}

static void test_dense_teams(void **state)
{
    (void)state;
    share(DENSE, 3, 6);
}

/* Runs with different teams at the same time, and contexts that come and go beside them. */
static void test_mixed_teams(void **state)
{
    (void)state;
    struct job jobs[MAX_PLANS];
    mla_context *contexts[2];
    struct mla_case c = make(SPARSE);
    int count = 0;
    for (int i = 0; i < 2; i++) {
        mla_context_options options = {.backend = MLA_BACKEND_CPU, .threads = 1 + 2 * i};
        assert_ok(mla_context_create(&options, &contexts[i]));
        count += plan_all(contexts[i], &c, jobs + count);
    }
    /* The team must not show in the result either. */
    for (int i = 0; i < count / 2; i++) {
        assert_memory_equal(jobs[i].out, jobs[count / 2 + i].out, jobs[i].out_bytes);
        assert_memory_equal(jobs[i].lse, jobs[count / 2 + i].lse, jobs[i].lse_bytes);
    }
    run_together(jobs, count);
    free_jobs(jobs, count);
    for (int i = 0; i < 2; i++)
        mla_context_destroy(contexts[i]);
    mla_case_free(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sparse_one_thread), cmocka_unit_test(test_dense_one_thread),
        cmocka_unit_test(test_sparse_teams),      cmocka_unit_test(test_dense_teams),
        cmocka_unit_test(test_mixed_teams),
    };
    return cmocka_run_group_tests_name("threads", tests, NULL, NULL);
}
