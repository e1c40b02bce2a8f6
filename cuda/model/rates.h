/* SPDX-License-Identifier: Apache-2.0 */
/* What the engines of an SM do in a clock, as the timeline takes it. Sources: docs/verification.md.
 * Latencies are from the issue of an instruction to the moment another one can use its result. */
#ifndef MLA_CUDA_MODEL_RATES_H
#define MLA_CUDA_MODEL_RATES_H

struct model_rates {
    int sm;
    const char *name;
    int processors; /* of the GPU whose memory is shared */
    double ghz;
    /* clocks that an instruction of a warp takes of its scheduler's pipe */
    double fma, fma2, alu, mufu, mma_sync;
    /* bytes a clock */
    double shared;  /* the SM's port of shared memory */
    double tmem_ld; /* a scheduler's quarter of tensor memory */
    double tmem_st;
    double near; /* from L2 to an SM, all SMs asking */
    double far;  /* an SM's share of HBM */
    double warp; /* clocks between two instructions of one warp, dependences included */
    double box;  /* a thread's next tensor copy comes so much later */
    /* latencies */
    double ld, shuffle, vote, tmem, tensor, commit, arrive, remote, wake, bar, near_wait, far_wait,
        atomic, fence, load;
};

static const struct model_rates model_rates[] = {
    {.sm = 90,
     .name = "H100 SXM",
     .processors = 132,
     .ghz = 1.755,
     .fma = 1,
     .fma2 = 2,
     .alu = 2,
     .mufu = 8,
     .mma_sync = 1.5,
     .shared = 128,
     .tmem_ld = 128,
     .tmem_st = 128,
     .near = 35,
     .far = 13.2,
     .warp = 1.25,
     .box = 48,
     .ld = 29,
     .shuffle = 24,
     .vote = 12,
     .tmem = 0,
     .tensor = 32,
     .commit = 0,
     .arrive = 18,
     .remote = 200,
     .wake = 14,
     .bar = 12,
     .near_wait = 550,
     .far_wait = 900,
     .atomic = 700,
     .fence = 8,
     .load = 400},
    {.sm = 100,
     .name = "B200",
     .processors = 148,
     .ghz = 1.85,
     .fma = 1,
     .fma2 = 2,
     .alu = 2,
     .mufu = 8,
     .mma_sync = 2,
     .shared = 128,
     .tmem_ld = 128,
     .tmem_st = 128,
     .near = 40,
     .far = 29.2,
     .warp = 1.25,
     .box = 48,
     .ld = 29,
     .shuffle = 24,
     .vote = 12,
     .tmem = 32,
     .tensor = 32,
     .commit = 32,
     .arrive = 18,
     .remote = 200,
     .wake = 14,
     .bar = 12,
     .near_wait = 600,
     .far_wait = 1000,
     .atomic = 700,
     .fence = 8,
     .load = 400},
};

#endif
