/* SPDX-License-Identifier: Apache-2.0 */
/* Parts of mla bench. */
#ifndef MLA_BENCH_BENCH_H
#define MLA_BENCH_BENCH_H

#include "mla/mla.h"

#include <stdio.h>

struct mla_bench_ratio {
    const char *kernel;
    mla_form form;
    int heads, steady;
    double gflops, sgemm, share;
};

/* Speed of the CPU kernels in fp32 at DeepSeek-V3.2 sizes as a share of this machine's sgemm rate,
 * measured beside each run with the same threads. Prints a legend and one row a kernel and head
 * count. threads 0 = all; repeats >= 1, the best pair with a steady yardstick counts; quick: fewer
 * query rows. row (may be NULL) gets each of them too. Returns 0, or an exit status with the
 * sentence in mla_last_error. */
int mla_bench_cpu_ratio(FILE *to, int threads, int repeats, bool quick,
                        void (*row)(const struct mla_bench_ratio *row, void *user), void *user);

#endif
