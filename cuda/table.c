/* SPDX-License-Identifier: Apache-2.0 */
/* The CUDA backend's kernels, best first. */
#include "device.h"

static const struct mla_kernel *const kernels[] = {&mla_mqa_any, NULL};

const struct mla_backend_ops mla_cuda_backend = {
    .backend = MLA_BACKEND_CUDA,
    .kernels = kernels,
    .open = mla_cuda_open,
    .close = mla_cuda_close,
    .merge = mla_cuda_merge,
    .runnable = mla_cuda_runnable,
};
