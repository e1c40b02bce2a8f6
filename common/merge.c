/* SPDX-License-Identifier: Apache-2.0 */
/* Merging partial results: the check before a backend's own code; conventions of lse. */
#include "backend.h"
#include "status.h"
#include "tensors.h"

#include <inttypes.h>
#include <math.h>

#define WANT(ok, field, format, got, wanted)                                                       \
    do {                                                                                           \
        if (!(ok))                                                                                 \
            return mla_fail(MLA_ERR_ARGUMENT,                                                      \
                            "mla_merge: " field ": got " format ", want " wanted, got);            \
    } while (0)

/* An out and its lse; lse NULL = not wanted. */
static mla_status check_pair(const mla_merge_args *a, const char *out_name, const char *lse_name,
                             const mla_tensor *out, const mla_tensor *lse, mla_dtype dtype)
{
    const struct mla_tensor_shape wide = {out_name, out,    a->rows,
                                          a->heads, a->dim, mla_dtype_bytes(dtype),
                                          false};
    const struct mla_tensor_shape narrow = {lse_name, lse, a->rows,
                                            a->heads, 1,   dtype == MLA_F64 ? 8 : 4,
                                            true};
    mla_status status = mla_tensor_layout("mla_merge", &wide);
    return status == MLA_OK && lse ? mla_tensor_layout("mla_merge", &narrow) : status;
}

static mla_status check(const mla_merge_args *a)
{
    WANT(a->parts >= 0 && a->parts <= 65536, "parts", "%" PRId64, a->parts, "0 to 65536");
    WANT(a->rows >= 0 && a->rows <= INT32_MAX, "rows", "%" PRId64, a->rows, "0 to 2147483647");
    WANT(a->heads >= 0 && a->heads <= 65536, "heads", "%" PRId64, a->heads, "0 to 65536");
    WANT(a->dim >= 0 && a->dim <= 65536, "dim", "%" PRId64, a->dim, "0 to 65536");
    WANT((unsigned)a->part_dtype <= MLA_F64, "part_dtype", "%d", (int)a->part_dtype, "a mla_dtype");
    WANT((unsigned)a->out_dtype <= MLA_F64, "out_dtype", "%d", (int)a->out_dtype, "a mla_dtype");
    WANT((unsigned)a->part_base <= MLA_LSE_2, "part_base", "%d", (int)a->part_base,
         "a mla_lse_base");
    WANT((unsigned)a->out_base <= MLA_LSE_2, "out_base", "%d", (int)a->out_base, "a mla_lse_base");
    if (a->rows == 0 || a->heads == 0 || a->dim == 0)
        return MLA_OK;
    WANT(a->parts == 0 || a->part_out, "part_out", "%s", "NULL", "an array of parts");
    WANT(a->parts == 0 || a->part_lse, "part_lse", "%s", "NULL", "an array of parts");
    mla_status status =
        check_pair(a, "out", "lse", &a->out, a->lse.data ? &a->lse : NULL, a->out_dtype);
    for (int64_t i = 0; status == MLA_OK && i < a->parts; i++)
        status =
            check_pair(a, "part_out", "part_lse", &a->part_out[i], &a->part_lse[i], a->part_dtype);
    return status;
}

mla_status mla_merge(const mla_context *context, const mla_merge_args *args, void *stream)
{
    if (!context || !args)
        return mla_fail(MLA_ERR_ARGUMENT, "mla_merge: %s: got NULL, want a pointer",
                        context ? "args" : "context");
    if (context->backend == MLA_BACKEND_CPU && stream)
        return mla_fail(MLA_ERR_ARGUMENT, "mla_merge: stream: got %p, want NULL on the CPU",
                        stream);
    mla_status status = check(args);
    if (status != MLA_OK || args->rows == 0 || args->heads == 0 || args->dim == 0)
        return status;
    const struct mla_backend_ops *ops = mla_backend_ops_of(context->backend);
    if (!ops->merge)
        return mla_fail(MLA_ERR_UNSUPPORTED, "mla_merge: backend %s does not merge",
                        mla_backend_name(context->backend));
    return ops->merge(context, args, stream);
}

/* One value, natural base, sink counted or not, empty = -inf. */
static double convert(double lse, double sink, bool has_sink, mla_lse_convention from,
                      mla_lse_convention to)
{
    const double ln2 = 0.69314718055994530942;
    if (from.plus_inf_is_empty && lse == INFINITY)
        lse = -INFINITY;
    if (from.base == MLA_LSE_2)
        lse *= ln2;
    bool empty = lse == -INFINITY; /* no key at all, before a sink is added */
    if (has_sink && to.counts_sink && !from.counts_sink && sink != -INFINITY) {
        double top = lse > sink ? lse : sink;
        lse = isinf(top) ? top : top + log(exp(lse - top) + exp(sink - top));
        empty = false;
    } else if (has_sink && from.counts_sink && !to.counts_sink && sink != -INFINITY) {
        /* lse = log(exp(keys) + exp(sink)); nothing is left where the sink is all there was. */
        double rest = sink == INFINITY ? 0 : -expm1(sink - lse);
        lse = rest > 0 ? lse + log(rest) : -INFINITY;
        empty = lse == -INFINITY;
    }
    if (empty && to.plus_inf_is_empty)
        return INFINITY;
    return to.base == MLA_LSE_2 ? lse / ln2 : lse;
}

mla_status mla_lse_convert(const float *in, float *out, int64_t rows, int64_t heads,
                           const float *attn_sink, mla_lse_convention from, mla_lse_convention to)
{
    if (rows < 0 || heads < 0)
        return mla_fail(MLA_ERR_ARGUMENT, "mla_lse_convert: %s: got %" PRId64 ", want at least 0",
                        rows < 0 ? "rows" : "heads", rows < 0 ? rows : heads);
    if (rows && heads && (!in || !out))
        return mla_fail(MLA_ERR_ARGUMENT, "mla_lse_convert: %s: got NULL, want a pointer",
                        in ? "out" : "in");
    if (from.counts_sink != to.counts_sink && !attn_sink)
        return mla_fail(MLA_ERR_ARGUMENT,
                        "mla_lse_convert: attn_sink: got NULL, want [heads] (one side counts it)");
    for (int64_t i = 0; i < rows * heads; i++)
        out[i] = (float)convert(in[i], attn_sink ? attn_sink[i % heads] : 0, attn_sink != NULL,
                                from, to);
    return MLA_OK;
}
