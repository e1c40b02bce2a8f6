/* SPDX-License-Identifier: Apache-2.0 */
/* Argument checks of the indexer and top-k calls: a rule is a row of a table, a broken rule a
 * sentence "function: field: got X, want Y". */
#ifndef MLA_COMMON_INDEX_CHECK_H
#define MLA_COMMON_INDEX_CHECK_H

#include "mla/index.h"

struct mla_range {
    const char *field;
    int64_t got, low, high;
    const char *want;
};

/* A tensor [n0, n1, width]: strides 0 or no less than packed; n1 = 1 leaves stride[1] unused. */
struct mla_tensor_rule {
    const char *field;
    const mla_tensor *tensor;
    size_t align;
    int64_t n0, n1, width;
    bool required;
};

mla_status mla_check_ranges(const char *function, const struct mla_range *rules, size_t n);
mla_status mla_check_tensors(const char *function, const struct mla_tensor_rule *rules, size_t n);
mla_status mla_check_workspace(const char *function, const void *workspace, size_t got,
                               size_t want);

#endif
