/* SPDX-License-Identifier: Apache-2.0 */
/* A function that returns a status stops at the first call that fails. */
#ifndef MLA_TOOL_TRY_H
#define MLA_TOOL_TRY_H

#include "common/status.h"

/* call: a status. */
#define TRY(call)                                                                                  \
    do {                                                                                           \
        mla_status try_status = (call);                                                            \
        if (try_status != MLA_OK)                                                                  \
            return try_status;                                                                     \
    } while (0)

#ifdef MLA_WITH_CUDA
#include <cuda_runtime_api.h>

static inline mla_status mla_try_failed(const char *call, cudaError_t error)
{
    cudaGetLastError();
    return mla_fail(error == cudaErrorMemoryAllocation ? MLA_ERR_MEMORY : MLA_ERR_CUDA, "%s: %s",
                    call, cudaGetErrorString(error));
}

/* call: of the CUDA runtime. */
#define TRY_CUDA(call)                                                                             \
    do {                                                                                           \
        cudaError_t try_error = (call);                                                            \
        if (try_error != cudaSuccess)                                                              \
            return mla_try_failed(#call, try_error);                                               \
    } while (0)
#endif

#endif
