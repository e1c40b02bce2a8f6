/* SPDX-License-Identifier: Apache-2.0 */
/* What this machine's BLAS can do, timed beside whatever is to be compared with it. */
#ifndef MLA_BENCH_YARDSTICK_H
#define MLA_BENCH_YARDSTICK_H

#include "mla/mla.h"

/* GFLOP/s of a square fp32 matrix product on so many threads (0 = all): the best of three. */
mla_status mla_bench_yardstick(int threads, double *gflops);

#endif
