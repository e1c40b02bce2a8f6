/* SPDX-License-Identifier: Apache-2.0 */
/* Joining partial results on the CPU, in double whatever the dtypes:
 *
 *     lse = log(sum_i exp(lse_i) + exp(sink)),  out = sum_i exp(lse_i - lse) · out_i
 *
 * An empty part (lse_i = -inf) is skipped, so nothing that its out holds can leak. */
#include "reference/attend.h"

#include "common/format.h"

#include <math.h>
#include <omp.h>

enum { COLUMNS = 256 }; /* of out at a time, on the stack */

/* lse at [row, head]: double beside double values, else float. Both strides are free. */
static double load_lse(const mla_tensor *t, mla_dtype dtype, int64_t heads, int64_t row,
                       int64_t head)
{
    int64_t at = mla_offset(t, heads, 1, row, head);
    return dtype == MLA_F64 ? ((const double *)t->data)[at] : (double)((const float *)t->data)[at];
}

static double part_lse(const mla_merge_args *args, int64_t i, int64_t row, int64_t head)
{
    double lse = load_lse(&args->part_lse[i], args->part_dtype, args->heads, row, head);
    if (args->plus_inf_is_empty && lse == INFINITY)
        return -INFINITY;
    return args->part_base == MLA_LSE_2 ? lse * M_LN2 : lse;
}

static void *element(const mla_tensor *t, mla_dtype dtype, const mla_merge_args *args, int64_t row,
                     int64_t head, int64_t column)
{
    return (char *)mla_element(t, dtype, args->heads, args->dim, row, head) +
           column * (int64_t)mla_dtype_bytes(dtype);
}

static void merge_row(const mla_merge_args *args, int64_t row, int64_t head)
{
    double sink = args->attn_sink ? (double)args->attn_sink[head] : -INFINITY;
    double max = sink;
    bool undefined = false;
    for (int64_t i = 0; i < args->parts; i++) {
        double lse = part_lse(args, i, row, head);
        max = lse > max ? lse : max;
        undefined |= isnan(lse);
    }
    /* Weights relative to the largest; with nothing there, or an infinite sink, out is 0. */
    bool finite = !undefined && !isinf(max);
    double sum = 0, lse = undefined ? (double)NAN : max;
    if (finite) {
        sum = sink == -INFINITY ? 0 : exp(sink - max);
        for (int64_t i = 0; i < args->parts; i++)
            sum += exp(part_lse(args, i, row, head) - max);
        lse = max + log(sum);
    }
    for (int64_t c0 = 0; c0 < args->dim; c0 += COLUMNS) {
        int64_t n = args->dim - c0 < COLUMNS ? args->dim - c0 : COLUMNS;
        double total[COLUMNS], part[COLUMNS];
        for (int64_t c = 0; c < n; c++)
            total[c] = undefined ? (double)NAN : 0;
        for (int64_t i = 0; finite && i < args->parts; i++) {
            double l = part_lse(args, i, row, head);
            if (l == -INFINITY)
                continue;
            double weight = exp(l - max) / sum;
            mla_load_f64(args->part_dtype,
                         element(&args->part_out[i], args->part_dtype, args, row, head, c0), n,
                         part);
            for (int64_t c = 0; c < n; c++)
                total[c] += weight * part[c];
        }
        mla_store_f64(args->out_dtype, element(&args->out, args->out_dtype, args, row, head, c0), n,
                      total);
    }
    if (!args->lse.data)
        return;
    lse = args->out_base == MLA_LSE_2 ? lse / M_LN2 : lse;
    mla_store_lse(&args->lse, args->out_dtype, args->heads, row, head, lse);
}

mla_status mla_merge_cpu(const mla_context *context, const mla_merge_args *args, void *stream)
{
    (void)stream;
#pragma omp parallel for num_threads(context->threads) schedule(static)
    for (int64_t item = 0; item < args->rows * args->heads; item++)
        merge_row(args, item / args->heads, item % args->heads);
    return MLA_OK;
}
