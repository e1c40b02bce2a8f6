/* SPDX-License-Identifier: Apache-2.0 */
/* Comparison with the fp64 reference and its per-element bounds, and the report about it. */
#ifndef MLA_VALIDATION_CHECK_H
#define MLA_VALIDATION_CHECK_H

#include "common/tool/case.h"
#include <stdio.h>

enum mla_verdict_mode {
    MLA_VERDICT_DEFAULT, /* T and z count where fill is normal, diffuse or large */
    MLA_VERDICT_STRICT,  /* they always count */
    MLA_VERDICT_HARD     /* H alone */
};

/* A computed result that is judged: host arrays, packed. */
struct mla_result {
    mla_dtype out_dtype; /* of out [T, H, d] */
    mla_dtype lse_dtype; /* F32 or F64, of lse and max_logits [T, H] */
    const void *out;
    const void *lse, *max_logits; /* NULL = not there */
};

struct mla_check_options {
    const mla_context *context;   /* CPU context for the reference */
    const mla_rounding *rounding; /* [B] */
    enum mla_verdict_mode mode;
    int64_t rows; /* > 0: seeded sample of that many query rows; 0 = all */
    uint64_t sample_seed;
    bool nonfinite_may_spread; /* GPU: where some row of a request sees NaN or inf, all of its rows
                                  may be NaN; false: only rows that see it */
    const char *name;          /* what is judged: kernel, file */
    const char *rerun;         /* command line that reruns it, or NULL */
};

enum mla_verdict { MLA_PASS = 0, MLA_WEAK, MLA_MISTRUSTED, MLA_FAIL };

/* One judged tensor. */
struct mla_check_tensor {
    bool present;
    int64_t elements, bad, nonfinite, unwritten, vacuous;
    double share_hard;        /* worst err / H */
    double share_statistical; /* worst err / T; lse, max_logits: worst err / (6 sigma) */
    double drift;             /* lse, max_logits: mean of err / sigma over rows, as a share of what
                                 chance allows; errors of one sign (a wrong scale) add up here */
    double worst_z;           /* largest row z (out only) */
    int64_t bad_t, bad_z;     /* elements over T; rows with z over 1.3 (out only) */
};

struct mla_check_point {                       /* one of the worst elements, at most 8 kept */
    int tensor;                                /* 0 out, 1 lse, 2 max_logits */
    int64_t row, head, dim, request, position; /* position: of the query in its request */
    double want, got, hard, statistical;
};

struct mla_check_report {
    enum mla_verdict verdict;
    struct mla_check_tensor out, lse, max_logits;
    double cosine_error;    /* 1 - 2·sum(xy)/sum(x²+y²), as peers compute it */
    double frobenius_error; /* |out - ref| / |ref| */
    int64_t rtol_bad;       /* elements outside rtol = atol = 1e-2, for comparison */
    int num_points;
    struct mla_check_point points[8];
    char where[512];  /* clusters: "head 64-127 only; request 2" */
    char hint[256];   /* what bad rows look like: "bad rows hold the value of another head" */
    char reason[256]; /* why weak, mistrusted or failed */
};

/* Computes the reference and judges. MLA_ERR_ARGUMENT (shapes), MLA_ERR_MEMORY. */
mla_status mla_check_result(const struct mla_case *c, const struct mla_result *result,
                            const struct mla_check_options *options,
                            struct mla_check_report *report);
/* Human text (verdict line, points, clusters, rerun line); JSON object. */
void mla_check_print(FILE *to, const struct mla_case *c, const struct mla_check_options *options,
                     const struct mla_check_report *report);
struct json_t *mla_check_json(const struct mla_case *c, const struct mla_check_options *options,
                              const struct mla_check_report *report);

#endif
