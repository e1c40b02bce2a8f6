/* SPDX-License-Identifier: Apache-2.0 */
/* Host side of the CUDA backend: checked calls, the context, and the rows of the table. */
#ifndef MLA_CUDA_DEVICE_H
#define MLA_CUDA_DEVICE_H

#include "kernel.h"

#include <cuda_runtime_api.h>

/* The same files make the model's backend, whose objects are compiled apart (cuda/model). */
#ifdef MLA_MODEL
#define MLA_BACKEND_CUDA MLA_BACKEND_MODEL
#define mla_cuda_backend mla_model_backend
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Leaves "<function>: <call>: <CUDA's name and text>" and returns MLA_ERR_CUDA. */
mla_status mla_cuda_fail(const char *function, const char *call, cudaError_t error);

/* Every CUDA call goes through this: on failure the calling function returns the status. */
#define MLA_CUDA(call)                                                                             \
    do {                                                                                           \
        cudaError_t error_ = (call);                                                               \
        if (error_ != cudaSuccess)                                                                 \
            return mla_cuda_fail(__func__, #call, error_);                                         \
    } while (0)

/* What a block of a kernel of any/ may have: all that sm_120 gives. */
#define MLA_ANY_SHARED_BYTES ((size_t)99 * 1024)

/* Permission for `dynamic` bytes of dynamic shared memory, which CUDA asks for once a function and
 * device. With the kernel's static ones they must not exceed `most`, 0 = the device's limit. */
mla_status mla_cuda_allow_shared(const void *function, size_t dynamic, size_t most);

/* Bytes from the host's memory to the device's, there when it returns, for streams of every kind:
 * cudaMemcpy alone returns once the bytes are staged, and a stream that does not wait for the
 * default one would run ahead of them. */
cudaError_t mla_cuda_upload(void *device, const void *host, size_t bytes);

/* The thread's current device is saved and the context's made current, and back. A context on the
 * current device costs one query. */
mla_status mla_cuda_enter(const mla_context *context, int *before);
void mla_cuda_leave(const mla_context *context, int before);

mla_status mla_cuda_open(const mla_context_options *options, mla_context *context);
void mla_cuda_close(mla_context *context);
mla_status mla_cuda_merge(const mla_context *context, const mla_merge_args *args, void *stream);
bool mla_cuda_runnable(const struct mla_kernel *kernel);

/* Rows of the table. */
extern const struct mla_kernel mla_mqa_any;           /* any/mqa.c */
extern const struct mla_kernel mla_mqa_latent_any;    /* any/mqa.c */
extern const struct mla_kernel mla_mha_prefill_sm100; /* sm100/mha_prefill.c */
extern const struct mla_kernel mla_mha_latent_sm100;  /* sm100/mha_prefill.c */
extern const struct mla_kernel mla_mha_any;           /* any/mha.c */
extern const struct mla_kernel mla_mha_latent_any;    /* any/mha.c */
extern const struct mla_kernel mla_mqa_generic;       /* any/generic.c: any shape */
extern const struct mla_kernel mla_mha_generic;       /* any/generic.c */
/* any/mqa_group.c */
extern const struct mla_kernel mla_sparse_mqa_group_any;
extern const struct mla_kernel mla_sparse_mqa_group_latent_any;
#ifdef MLA_WITH_SM90
extern const struct mla_kernel mla_mha_prefill_sm90;             /* sm90/mha_prefill.c */
extern const struct mla_kernel mla_mha_latent_sm90;              /* sm90/mha_prefill.c */
extern const struct mla_kernel mla_sparse_mqa_group_sm90;        /* sm90/sparse_mqa_group.c */
extern const struct mla_kernel mla_sparse_mqa_group_latent_sm90; /* sm90/sparse_mqa_group.c */
extern const struct mla_kernel mla_sparse_mqa_few_sm90;          /* sm90/sparse_mqa_few.c */
extern const struct mla_kernel mla_sparse_mqa_few_latent_sm90;   /* sm90/sparse_mqa_few.c */
extern const struct mla_kernel mla_sparse_mqa_prefill_sm90;      /* sm90/sparse_mqa_prefill.c */
extern const struct mla_kernel mla_sparse_mqa_latent_sm90;       /* sm90/sparse_mqa_prefill.c */
extern const struct mla_kernel mla_mqa_decode_sm90;              /* sm90/mqa_decode.c */
extern const struct mla_kernel mla_mqa_decode_latent_sm90;       /* sm90/mqa_decode.c */
#endif
#ifdef MLA_WITH_SM100
extern const struct mla_kernel mla_mqa_decode_sm100;         /* sm100/mqa_decode.c */
extern const struct mla_kernel mla_mqa_decode_latent_sm100;  /* sm100/mqa_decode.c */
extern const struct mla_kernel mla_sparse_mqa_prefill_sm100; /* sm100/sparse_mqa_prefill.c */
extern const struct mla_kernel mla_sparse_mqa_latent_sm100;  /* sm100/sparse_mqa_prefill.c */
#endif

#ifdef __cplusplus
}
#endif
#endif
