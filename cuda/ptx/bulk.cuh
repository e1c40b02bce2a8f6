/* SPDX-License-Identifier: Apache-2.0 */
/* Copies of plain runs of bytes between blocks of a cluster; one thread issues, the bytes are
 * counted on an mbarrier. */
#ifndef MLA_CUDA_PTX_BULK_CUH
#define MLA_CUDA_PTX_BULK_CUH

#include "at.cuh"

#ifdef MLA_MODEL
#include "model/tensor.h"
#endif

/* From this block's shared memory to that of any block of the cluster; bar lies where dst does. */
__device__ __forceinline__ void bulk_copy_cluster(u32 dst, u32 src, u32 bytes, u32 bar MLA_AT)
{
#ifdef MLA_MODEL
    model_bulk_copy_cluster(dst, src, bytes, bar, at);
#else
    asm volatile(
        "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], "
        "%2, [%3];\n" ::"r"(dst),
        "r"(src), "r"(bytes), "r"(bar)
        : "memory");
#endif
}

#endif
