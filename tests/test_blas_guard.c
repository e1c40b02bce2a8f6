/* SPDX-License-Identifier: Apache-2.0 */
/* Threads: BLAS runs one thread a call inside, the caller's settings come back, results are the
 * same from any number of callers and inside a caller's own parallel region. The flavour is
 * whatever is loaded (LD_LIBRARY_PATH picks another). */
#include "support_attend.h"

#include "reference/reference.h"

#include <cblas.h>
#include <dirent.h>
#include <omp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

/* Kernel threads of this process. */
static int threads_alive(void)
{
    DIR *dir = opendir("/proc/self/task");
    int count = 0;
    while (dir && readdir(dir))
        count++;
    if (dir)
        closedir(dir);
    return count - 2;
}

static void settings_come_back(void **state)
{
    (void)state;
    print_message("%s\n", mla_blas_describe());
    omp_set_num_threads(3);
    int blas = openblas_get_num_threads();
    struct mla_blas_guard outer, inner;
    mla_blas_enter(&outer, 2);
    assert_int_equal(openblas_get_num_threads(), 1);
    mla_blas_enter(&inner, 2);
    assert_int_equal(openblas_get_num_threads(), 1);
    mla_blas_leave(&inner);
    assert_int_equal(openblas_get_num_threads(), 1);
    mla_blas_leave(&outer);
    assert_int_equal(openblas_get_num_threads(), blas);
    assert_int_equal(omp_get_max_threads(), 3);
}

/* A product inside a team, and inside a team of one, starts no thread of its own: in every flavour
 * the threads alive afterwards are those that were alive with the team open. */
static void products_stay_on_their_thread(void **state)
{
    (void)state;
    enum { N = 512 };
    for (int team = 1; team <= 2; team++) {
        int before = 0, after = 0, wrong = 0;
        float *a = calloc((size_t)team * N * N, sizeof *a);
        float *c = calloc((size_t)team * N * N, sizeof *c);
        struct mla_blas_guard guard;
        mla_blas_enter(&guard, team);
#pragma omp parallel num_threads(team) reduction(+ : wrong)
        {
            float *mine = a + (size_t)omp_get_thread_num() * N * N;
            float *product = c + (size_t)omp_get_thread_num() * N * N;
#pragma omp barrier
#pragma omp master
            before = threads_alive();
#pragma omp barrier
            wrong += omp_get_max_threads() != 1;
            for (int i = 0; i < 3; i++)
                cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, N, N, N, 1, mine, N, mine, N,
                            0, product, N);
#pragma omp barrier
#pragma omp master
            after = threads_alive();
        }
        mla_blas_leave(&guard);
        assert_int_equal(wrong, 0);
        assert_int_equal(after, before);
        free(a);
        free(c);
    }
}

/* Eight callers at once, plans of their own, twenty runs each: same bits, settings back. */
static const char *const text =
    "attend form=latent batch=q9s60 heads=2 rank=32 nope=16 rope=8 v=16 dtype=f32 topk=20 lse=1";

struct caller {
    pthread_t thread;
    uint64_t hash;
};

static uint64_t run_once(mla_route route)
{
    struct attend_case c;
    attend_make(&c, text, 3);
    mla_context *context;
    mla_plan *plan;
    assert_ok(mla_context_create(&(mla_context_options){.backend = MLA_BACKEND_CPU, .threads = 2},
                                 &context));
    mla_plan_options options = {.route = route, .precision = MLA_PRECISION_FP64};
    assert_ok(mla_plan_create(context, &c.p, &options, &plan));
    size_t bytes = mla_plan_workspace_bytes(plan);
    void *workspace = aligned_alloc(256, (bytes + 255) / 256 * 256);
    assert_ok(mla_run(plan, &c.t, workspace, bytes, NULL));
    free(workspace);
    mla_plan_destroy(plan);
    mla_context_destroy(context);
    uint64_t hash = attend_hash(&c);
    attend_free(&c);
    return hash;
}

static void *call(void *user)
{
    struct caller *caller = user;
    caller->hash = run_once(MLA_ROUTE_MASKED_MHA);
    for (int i = 1; i < 20; i++)
        if (run_once(MLA_ROUTE_MASKED_MHA) != caller->hash)
            caller->hash = 0;
    return NULL;
}

static void callers_at_once(void **state)
{
    (void)state;
    struct caller callers[8];
    int blas = openblas_get_num_threads(), openmp = omp_get_max_threads();
    uint64_t want = run_once(MLA_ROUTE_MASKED_MHA);
    for (int i = 0; i < 8; i++)
        assert_int_equal(pthread_create(&callers[i].thread, NULL, call, &callers[i]), 0);
    for (int i = 0; i < 8; i++) {
        pthread_join(callers[i].thread, NULL);
        assert_true(callers[i].hash == want);
    }
    assert_int_equal(openblas_get_num_threads(), blas);
    assert_int_equal(omp_get_max_threads(), openmp);
}

static void inside_a_parallel_region(void **state)
{
    (void)state;
    uint64_t want = run_once(MLA_ROUTE_SPARSE_MQA), got[3] = {0, 0, 0};
    int openmp[3] = {0, 0, 0};
#pragma omp parallel num_threads(3)
    {
        int before = omp_get_max_threads();
        got[omp_get_thread_num()] = run_once(MLA_ROUTE_SPARSE_MQA);
        openmp[omp_get_thread_num()] = omp_get_max_threads() - before;
    }
    for (int i = 0; i < 3; i++) {
        assert_true(got[i] == want || got[i] == 0); /* 0: the team was smaller */
        assert_int_equal(openmp[i], 0);
    }
    assert_true(got[0] == want);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(settings_come_back),
        cmocka_unit_test(products_stay_on_their_thread),
        cmocka_unit_test(callers_at_once),
        cmocka_unit_test(inside_a_parallel_region),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
