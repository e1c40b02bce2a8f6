/* SPDX-License-Identifier: Apache-2.0 */
/* mbarrier: 8 bytes of shared memory. A phase ends when `count` arrivals have come and all
 * expected bytes have landed; phases are numbered from 0, and a wait names the parity of the phase
 * it waits for. On a fresh barrier a wait for parity 1 passes at once. */
#ifndef MLA_CUDA_PTX_MBARRIER_CUH
#define MLA_CUDA_PTX_MBARRIER_CUH

#include "at.cuh"

__device__ __forceinline__ void mbarrier_init(u32 bar, u32 count MLA_AT)
{
#ifdef MLA_MODEL
    model_mbarrier_init(bar, count, at);
#else
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count) : "memory");
#endif
}

__device__ __forceinline__ void mbarrier_inval(u32 bar MLA_AT)
{
#ifdef MLA_MODEL
    model_mbarrier_inval(bar, at);
#else
    asm volatile("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(bar) : "memory");
#endif
}

/* This thread's initialised barriers become visible to the cluster and to the async proxy, once a
 * barrier (of the block or cluster) has ordered them. */
__device__ __forceinline__ void fence_mbarrier_init(MLA_AT0)
{
#ifdef MLA_MODEL
    model_fence_mbarrier_init(at);
#else
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}

/* One arrival, with release semantics; the block's own barrier. */
__device__ __forceinline__ void mbarrier_arrive(u32 bar MLA_AT)
{
#ifdef MLA_MODEL
    model_mbarrier_arrive(bar, at);
#else
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
#endif
}

/* The same at a barrier of any block of the cluster (mapa). */
__device__ __forceinline__ void mbarrier_arrive_cluster(u32 bar MLA_AT)
{
#ifdef MLA_MODEL
    model_mbarrier_arrive_cluster(bar, at);
#else
    asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(bar)
                 : "memory");
#endif
}

/* The same where the arrival says no more than that this thread has read something: what it has
 * written is ordered for its own block alone, and no time is spent on the rest. */
__device__ __forceinline__ void mbarrier_arrive_cluster_read(u32 bar MLA_AT)
{
#ifdef MLA_MODEL
    model_mbarrier_arrive_cluster(bar, at);
#else
    asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(bar) : "memory");
#endif
}

/* Bytes that the current phase has to wait for too. */
__device__ __forceinline__ void mbarrier_expect_tx(u32 bar, u32 bytes MLA_AT)
{
#ifdef MLA_MODEL
    model_mbarrier_expect_tx(bar, bytes, at);
#else
    asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(bytes)
                 : "memory");
#endif
}

__device__ __forceinline__ void mbarrier_arrive_expect_tx(u32 bar, u32 bytes MLA_AT)
{
#ifdef MLA_MODEL
    model_mbarrier_arrive_expect_tx(bar, bytes, at);
#else
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes)
                 : "memory");
#endif
}

__device__ __forceinline__ void mbarrier_arrive_expect_tx_cluster(u32 bar, u32 bytes MLA_AT)
{
#ifdef MLA_MODEL
    model_mbarrier_arrive_expect_tx_cluster(bar, bytes, at);
#else
    asm volatile("mbarrier.arrive.expect_tx.release.cluster.shared::cluster.b64 _, [%0], %1;" ::"r"(
                     bar),
                 "r"(bytes)
                 : "memory");
#endif
}

/* Takes bytes off what the current phase waits for, as a copy that has landed would. */
__device__ __forceinline__ void mbarrier_complete_tx(u32 bar, u32 bytes MLA_AT)
{
#ifdef MLA_MODEL
    model_mbarrier_complete_tx(bar, bytes, at);
#else
    asm volatile("mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(bytes)
                 : "memory");
#endif
}

/* True if the phase of that parity has ended; false may also mean that some time has passed. */
__device__ __forceinline__ bool mbarrier_try_wait(u32 bar, u32 parity MLA_AT)
{
#ifdef MLA_MODEL
    return model_mbarrier_try_wait(bar, parity, at);
#else
    u32 done;
    asm volatile("{\n"
                 ".reg .pred p;\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
                 "selp.u32 %0, 1, 0, p;\n"
                 "}"
                 : "=r"(done)
                 : "r"(bar), "r"(parity)
                 : "memory");
    return done;
#endif
}

__device__ __forceinline__ void mbarrier_wait(u32 bar, u32 parity MLA_AT)
{
#ifdef MLA_MODEL
    model_mbarrier_wait(bar, parity, at);
#else
    while (!mbarrier_try_wait(bar, parity))
        ;
#endif
}

#endif
