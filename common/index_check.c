/* SPDX-License-Identifier: Apache-2.0 */
/* Argument checks shared by the indexer and top-k calls. */
#include <inttypes.h>

#include "index_check.h"
#include "status.h"

mla_status mla_check_ranges(const char *function, const struct mla_range *rules, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (rules[i].got < rules[i].low || rules[i].got > rules[i].high)
            return mla_fail(MLA_ERR_ARGUMENT, "%s: %s: got %" PRId64 ", want %s", function,
                            rules[i].field, rules[i].got, rules[i].want);
    }
    return MLA_OK;
}

static mla_status check_stride(const char *function, const struct mla_tensor_rule *rule, int i,
                               int64_t packed, int64_t count)
{
    /* The last element's offset must fit, in bytes. */
    int64_t got = rule->tensor->stride[i], most = INT64_MAX / 64 / (count > 1 ? count : 1);
    if (got == 0 || (got >= packed && got <= most))
        return MLA_OK;
    return mla_fail(MLA_ERR_ARGUMENT,
                    "%s: %s.stride[%d]: got %" PRId64 ", want 0 or %" PRId64 " to %" PRId64,
                    function, rule->field, i, got, packed, most);
}

mla_status mla_check_tensors(const char *function, const struct mla_tensor_rule *rules, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        const struct mla_tensor_rule *r = rules + i;
        if (!r->tensor->data) {
            if (r->required)
                return mla_fail(MLA_ERR_ARGUMENT, "%s: %s: got NULL, want a pointer", function,
                                r->field);
            continue;
        }
        if ((uintptr_t)r->tensor->data % r->align)
            return mla_fail(MLA_ERR_ARGUMENT, "%s: %s: got address %p, want a multiple of %zu",
                            function, r->field, r->tensor->data, r->align);
        if (r->n1 > 1) {
            mla_status status = check_stride(function, r, 1, r->width, r->n1);
            if (status)
                return status;
        }
        mla_status status = check_stride(function, r, 0, r->width, r->n0);
        if (status)
            return status;
    }
    return MLA_OK;
}

mla_status mla_check_workspace(const char *function, const void *workspace, size_t got, size_t want)
{
    if (got < want)
        return mla_fail(MLA_ERR_ARGUMENT, "%s: workspace_bytes: got %zu, want at least %zu",
                        function, got, want);
    if (!workspace && want)
        return mla_fail(MLA_ERR_ARGUMENT, "%s: workspace: got NULL, want %zu bytes", function,
                        want);
    if ((uintptr_t)workspace % 256)
        return mla_fail(MLA_ERR_ARGUMENT, "%s: workspace: got address %p, want a multiple of 256",
                        function, workspace);
    return MLA_OK;
}
