/* SPDX-License-Identifier: Apache-2.0 */
/* Blocks of a cluster: ranks, and their common barrier. Every thread of every block arrives once,
 * then waits, before it arrives again. */
#ifndef MLA_CUDA_PTX_CLUSTER_CUH
#define MLA_CUDA_PTX_CLUSTER_CUH

#include "at.cuh"

__device__ __forceinline__ u32 cluster_ctarank(MLA_AT0)
{
#ifdef MLA_MODEL
    return model_cluster_ctarank(at);
#else
    u32 r;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
    return r;
#endif
}

__device__ __forceinline__ u32 cluster_nctarank(MLA_AT0)
{
#ifdef MLA_MODEL
    return model_cluster_nctarank(at);
#else
    u32 r;
    asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(r));
    return r;
#endif
}

__device__ __forceinline__ void cluster_arrive(MLA_AT0)
{
#ifdef MLA_MODEL
    model_cluster_arrive(at);
#else
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}

__device__ __forceinline__ void cluster_wait(MLA_AT0)
{
#ifdef MLA_MODEL
    model_cluster_wait(at);
#else
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

__device__ __forceinline__ void cluster_sync(MLA_AT0)
{
#ifdef MLA_MODEL
    model_cluster_arrive(at);
    model_cluster_wait(at);
#else
    cluster_arrive();
    cluster_wait();
#endif
}

#endif
