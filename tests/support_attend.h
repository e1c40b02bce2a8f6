/* SPDX-License-Identifier: Apache-2.0 */
/* Small attention problems with random tensors, their outputs between guard zones, and the
 * comparison with the oracle. */
#ifndef MLA_TESTS_SUPPORT_ATTEND_H
#define MLA_TESTS_SUPPORT_ATTEND_H

#include "support.h"

#include "common/kernel.h"

struct attend_output {
    unsigned char *memory; /* guard, tensor with gaps between rows, guard */
    size_t bytes;
    mla_dtype dtype;
    int64_t rows, heads, width, stride0, stride1;
};

struct attend_case {
    mla_problem p;
    mla_tensors t; /* inputs, and the outputs below */
    uint64_t random;
    bool inputs_stay; /* set by tests that change none: the oracle runs once a row */
    double *want;
    bool *complete;         /* during attend_run */
    size_t workspace_bytes; /* of the last run */
    const char *text;
    struct attend_output out, lse, max_logits;
    void *owned[40];
    int num_owned;
};

/* Problem string plus these words: pad=1 strides wider than the rows; junk=1 lists with -1, future
 * and out-of-range entries; complete=1 every list names all its keys; spread=x scale of q. */
void attend_make(struct attend_case *c, const char *text, uint64_t seed);
void attend_free(struct attend_case *c);

/* Address of element [row, column, i] of an input tensor, to plant values. */
void attend_put(const mla_tensor *t, mla_dtype dtype, int64_t columns, int64_t width, int64_t row,
                int64_t column, int64_t i, double x);

/* Poisons the outputs, runs, checks guards and gaps. */
void attend_run(struct attend_case *c, mla_route route, mla_precision precision, const char *kernel,
                int threads, size_t limit, int64_t splits);
/* The same without mla_tensors_check, for contents that it refuses. */
void attend_run_unchecked(struct attend_case *c, mla_route route, mla_precision precision,
                          const char *kernel, int threads, size_t limit, int64_t splits);
/* The outputs of the last run against the oracle. roundoff: of the arithmetic, 2^-24 or 2^-53.
 * Every element: error <= bound from sizes and magnitudes (support_attend.c derives it). */
void attend_compare(struct attend_case *c, double roundoff);
double attend_output_at(const struct attend_output *o, int64_t row, int64_t head, int64_t i);
/* All bytes of the outputs, gaps included, for comparisons between runs. */
uint64_t attend_hash(const struct attend_case *c);
struct mla_request attend_request(const struct attend_case *c, int64_t b);

/* Every admissible route, both precisions, threads 1 to 3 with equal bits, and naive_cpu. */
void attend_check_all(const char *text, uint64_t seed);

#endif
