/* SPDX-License-Identifier: Apache-2.0 */
/* A simulated kernel of the 16-bit model that docs/numerics.md bounds, and bugs to inject in it.
 * The tests prove with it that bounds hold for a right kernel and that the check fails for wrong
 * ones. */
#ifndef MLA_VALIDATION_MUTANTS_H
#define MLA_VALIDATION_MUTANTS_H

#include "validation/check.h"

/* How an accumulator adds. */
enum mla_sum_order {
    MLA_SUM_SEQUENTIAL, /* fp32, one after another */
    MLA_SUM_BLOCKS,     /* fp32 sums of 16, added to the accumulator */
    MLA_SUM_TRUNCATING, /* exact sums of 16 and the accumulator, cut to 24 bits */
    MLA_SUM_REVERSED    /* fp32, last to first */
};

enum mla_mutant {
    MLA_MUTANT_NONE,
#define MLA_MUTANT(name, setting, text) MLA_MUTANT_##name,
#include "mutants.def"
#undef MLA_MUTANT
    MLA_NUM_MUTANTS
};

struct mla_simulation {
    mla_route route; /* latent problems: MHA or MQA */
    mla_dtype round; /* of weights, projections, dequantised rows: BF16, F16; F32: none */
    mla_dtype out;   /* of out */
    int block;       /* keys of one online-softmax step */
    enum mla_sum_order order;
    bool sum_rounded; /* the row sum adds rounded weights */
    enum mla_mutant mutant;
    int64_t row; /* row that most mutants hit */
};

/* Where a mutant is injected, its short name, and what it does. */
struct mla_mutant_info {
    const char *name, *setting, *text;
};
extern const struct mla_mutant_info mla_mutants[MLA_NUM_MUTANTS];

/* Runs it: out [T, H, d] in sim->out, lse and max_logits [T, H] float. */
mla_status mla_simulate(const mla_problem *problem, const mla_tensors *tensors,
                        const struct mla_simulation *sim, void *out, float *lse, float *max_logits);

/* The roundings of such a kernel. */
mla_rounding mla_simulated_rounding(const mla_problem *problem, const struct mla_simulation *sim);

#endif
