/* SPDX-License-Identifier: Apache-2.0 */
/* Runs a case through the front end for the tests: poisoned outputs in guard zones, results widened
 * to double. */
#ifndef MLA_TESTS_SUPPORT_RUN_H
#define MLA_TESTS_SUPPORT_RUN_H

#include "common/tool/case.h"

/* How to run: zero = every default. */
struct run_options {
    mla_route route;
    mla_precision precision;
    const char *kernel;
    int threads;
    size_t workspace_limit;
};

/* Packed results [T, H, d] and [T, H]. */
struct run {
    int64_t rows, heads, dim;
    double *out, *lse, *max_logits;
};

/* The case of a problem string; asserts that it can be made. Free with mla_case_free. */
struct mla_case run_make(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Runs and returns the results; asserts that the run succeeds, writes every element and nothing
 * beside. Free with run_free. */
struct run run_case(const struct mla_case *c, const struct run_options *options);
/* The status of planning and running instead. */
mla_status run_status(const struct mla_case *c, const struct run_options *options);
void run_free(struct run *r);

/* Bit by bit; on a difference prints where. NaN equals NaN. */
#define assert_same_run(a, b) run_assert_close((a), (b), 0, __FILE__, __LINE__)
/* |a - b| <= tolerance · (1 + |b|) for out, lse and max_logits; infinities must match. */
#define assert_close_run(a, b, tolerance)                                                          \
    run_assert_close((a), (b), (tolerance), __FILE__, __LINE__)
void run_assert_close(const struct run *a, const struct run *b, double tolerance, const char *file,
                      int line);

/* Routes that the case's form and lists admit (complete lists assumed known), as MLA_BIT set. */
unsigned run_routes(const struct mla_case *c);

#endif
