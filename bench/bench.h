/* SPDX-License-Identifier: Apache-2.0 */
/* Parts of mla bench. */
#ifndef MLA_BENCH_BENCH_H
#define MLA_BENCH_BENCH_H

#include "mla/mla.h"

#include <stdio.h>

/* Speed of the CPU kernels in fp32 at DeepSeek-V3.2 sizes as a share of this machine's sgemm rate,
 * measured beside each run with the same threads. Prints a legend and one row a kernel and head
 * count. threads 0 = all; repeats >= 1, the best pair with a steady yardstick counts; quick: fewer
 * query rows. Returns 0, or an exit status with the sentence in mla_last_error. */
int mla_bench_cpu_ratio(FILE *to, int threads, int repeats, bool quick);

#endif
