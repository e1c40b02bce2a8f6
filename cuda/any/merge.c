/* SPDX-License-Identifier: Apache-2.0 */
/* mla_merge on the device: arguments for merge_kernel (combine.cu). */
#include "merge.h"

#include "../device.h"
#include "mqa.h"
#include "status.h"

#include <inttypes.h>

static const double ln2 = 0.69314718055994530942;

mla_status mla_cuda_merge(const mla_context *context, const mla_merge_args *a, void *stream)
{
    if (a->parts > MLA_MERGE_PARTS)
        return mla_fail(MLA_ERR_UNSUPPORTED,
                        "mla_merge: parts: got %" PRId64 ", want at most %d on CUDA", a->parts,
                        MLA_MERGE_PARTS);
    if (a->part_dtype == MLA_F64 || a->out_dtype == MLA_F64)
        return mla_fail(MLA_ERR_UNSUPPORTED,
                        "mla_merge: %s: got f64, want bf16, f16 or f32 on CUDA",
                        a->part_dtype == MLA_F64 ? "part_dtype" : "out_dtype");
    struct mla_merge_parts m = {
        .rows = a->rows,
        .heads = a->heads,
        .dim = a->dim,
        .parts = (int32_t)a->parts,
        .part_dtype = a->part_dtype,
        .out_dtype = a->out_dtype,
        .plus_inf_is_empty = a->plus_inf_is_empty,
        .to_log2 = a->part_base == MLA_LSE_2 ? 1 : (float)(1 / ln2),
        .lse_unit = a->out_base == MLA_LSE_2 ? 1 : (float)ln2,
        .sink = a->attn_sink,
        .to = a->out.data,
        .to_lse = a->lse.data,
        .to_stride = {mla_stride0(&a->out, a->heads * mla_stride1(&a->out, a->dim)),
                      mla_stride1(&a->out, a->dim)},
        .to_lse_stride = {mla_stride0(&a->lse, a->heads), mla_stride1(&a->lse, 1)},
    };
    for (int64_t i = 0; i < a->parts; i++) {
        const mla_tensor *out = &a->part_out[i], *lse = &a->part_lse[i];
        m.out[i] = out->data;
        m.lse[i] = lse->data;
        m.out_stride[i][1] = mla_stride1(out, a->dim);
        m.out_stride[i][0] = mla_stride0(out, a->heads * m.out_stride[i][1]);
        m.lse_stride[i][0] = mla_stride0(lse, a->heads);
        m.lse_stride[i][1] = mla_stride1(lse, 1);
    }
    int64_t blocks = (a->rows * a->heads + MLA_MQA_THREADS / 32 - 1) / (MLA_MQA_THREADS / 32);
    if (blocks > INT32_MAX)
        return mla_fail(MLA_ERR_UNSUPPORTED,
                        "mla_merge: rows: got %" PRId64 " of %" PRId64
                        " heads, want fewer than 2^34 rows times heads on CUDA",
                        a->rows, a->heads);
    int before;
    mla_status status = mla_cuda_enter(context, &before);
    if (status != MLA_OK)
        return status;
    void *args[] = {&m};
    cudaError_t error = cudaLaunchKernel(mla_merge_function(), (dim3){(unsigned)blocks, 1, 1},
                                         (dim3){MLA_MQA_THREADS, 1, 1}, args, 0, stream);
    mla_cuda_leave(context, before);
    return error == cudaSuccess ? MLA_OK : mla_cuda_fail(__func__, "cudaLaunchKernel", error);
}
