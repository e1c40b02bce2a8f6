/* SPDX-License-Identifier: Apache-2.0 */
/* The CUDA backend's kernels, best first. */
#include "any/index.h"
#include "device.h"

static const struct mla_kernel *const kernels[] = {
#ifdef MLA_WITH_SM100
    &mla_mqa_decode_sm100,
    &mla_mqa_decode_latent_sm100,
    &mla_sparse_mqa_prefill_sm100,
    &mla_sparse_mqa_latent_sm100,
#endif
#ifdef MLA_WITH_SM90
    &mla_sparse_mqa_group_sm90,
    &mla_sparse_mqa_group_latent_sm90,
    &mla_sparse_mqa_few_sm90,
    &mla_sparse_mqa_few_latent_sm90,
    &mla_sparse_mqa_prefill_sm90,
    &mla_sparse_mqa_latent_sm90,
    &mla_mqa_decode_sm90,
    &mla_mqa_decode_latent_sm90,
#endif
    &mla_sparse_mqa_group_any,
    &mla_sparse_mqa_group_latent_any,
    &mla_mqa_any,
    &mla_mqa_latent_any,
#ifdef MLA_WITH_SM100
    &mla_mha_prefill_sm100,
    &mla_mha_latent_sm100,
#endif
#ifdef MLA_WITH_SM90
    &mla_mha_prefill_sm90,
    &mla_mha_latent_sm90,
#endif
    &mla_mha_any,
    &mla_mha_latent_any,
    &mla_mqa_generic,
    &mla_mha_generic,
    NULL};

const struct mla_backend_ops mla_cuda_backend = {
    .backend = MLA_BACKEND_CUDA,
    .kernels = kernels,
    .open = mla_cuda_open,
    .close = mla_cuda_close,
    .merge = mla_cuda_merge,
    .runnable = mla_cuda_runnable,
    .cache_write = mla_cuda_cache_write,
    .cache_read = mla_cuda_cache_read,
    .cache_index_write = mla_cuda_cache_index_write,
    .cache_index_read = mla_cuda_cache_index_read,
    .index_workspace = mla_cuda_index_workspace,
    .index_run = mla_cuda_index_run,
    .topk_workspace = mla_cuda_topk_workspace,
    .topk_run = mla_cuda_topk_run,
};
