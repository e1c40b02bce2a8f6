/* SPDX-License-Identifier: Apache-2.0 */
/* What bad elements have in common: heads, dims, rows, requests, the tile of the heaviest key; and
 * what a wrong row looks like (a multiple, another head's or row's value, another lse
 * convention). */
#ifndef MLA_VALIDATION_CLUSTER_H
#define MLA_VALIDATION_CLUSTER_H

#include "validation/check.h"

struct mla_cluster;

/* NULL = out of memory. num_rows: rows that are judged. */
struct mla_cluster *mla_cluster_new(const struct mla_case *c, const int64_t *rows,
                                    int64_t num_rows);
void mla_cluster_free(struct mla_cluster *cluster);

/* One bad element of out. */
void mla_cluster_bad(struct mla_cluster *k, int64_t request, int64_t row, int64_t head,
                     int64_t dim);
/* A row with bad elements, or with z above its limit: d values of reference, result and bound.
 * others: reference of all heads of the judged rows [first, first + n) of the slice that holds
 * it. */
struct mla_cluster_slice {
    const int64_t *rows;
    int64_t n;
    const double *out;
};
void mla_cluster_row(struct mla_cluster *k, int64_t row, int64_t head, const double *want,
                     const double *got, const double *hard, const struct mla_cluster_slice *slice);
/* A bad lse. */
void mla_cluster_lse(struct mla_cluster *k, double sink, double want, double got, double hard);

/* Fills where and hint. */
void mla_cluster_describe(const struct mla_cluster *k, struct mla_check_report *report);

#endif
