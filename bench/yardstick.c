/* SPDX-License-Identifier: Apache-2.0 */
/* The yardstick of timings: sgemm on square matrices. */
#include "yardstick.h"

#include "common/status.h"

#include <cblas.h>
#include <omp.h>
#include <time.h>

enum { SQUARE = 1536, RUNS = 3 };

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

mla_status mla_bench_yardstick(int threads, double *gflops)
{
    const int64_t n = SQUARE;
    float *a = mla_alloc(3 * SQUARE * SQUARE, sizeof *a), *b = a + n * n, *c = b + n * n;
    *gflops = 0;
    if (!a)
        return mla_fail(MLA_ERR_MEMORY, "mla bench: no memory for the sgemm yardstick");
    for (int64_t i = 0; i < 2 * n * n; i++)
        a[i] = (float)(i % 7 - 3);
    /* The openmp flavour of OpenBLAS also sets OpenMP's own count: both come back. */
    int blas = openblas_get_num_threads(), openmp = omp_get_max_threads();
    openblas_set_num_threads(threads > 0 ? threads : openmp);
    for (int run = 0; run < RUNS; run++) {
        double start = now();
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, SQUARE, SQUARE, SQUARE, 1, a, SQUARE,
                    b, SQUARE, 0, c, SQUARE);
        double rate = 2e-9 * (double)(n * n * n) / (now() - start);
        *gflops = rate > *gflops ? rate : *gflops;
    }
    openblas_set_num_threads(blas);
    omp_set_num_threads(openmp);
    mla_free(a);
    return MLA_OK;
}
