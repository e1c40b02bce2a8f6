/* SPDX-License-Identifier: Apache-2.0 */
/* Shared memory by 32-bit address, of this block and of the cluster. Kernels of sm_90 and sm_100
 * reach shared memory only through these functions: the model checks every access. */
#ifndef MLA_CUDA_PTX_SHARED_CUH
#define MLA_CUDA_PTX_SHARED_CUH

#include "at.cuh"

#include <string.h>

/* Dynamic shared memory as a plain array, for kernels that use pointers; the model can't check
 * these accesses. */
#ifdef MLA_MODEL
#define MLA_DYNAMIC_SHARED(name, align) char *const name = model_dynamic_pointer(align)
#else
#define MLA_DYNAMIC_SHARED(name, align)                                                            \
    extern __shared__ __align__(align)                                                             \
    char name[]
#endif

/* Start of dynamic shared memory, a multiple of 1024. A kernel that calls this has no other
 * __shared__ variables. */
__device__ __forceinline__ u32 dynamic_smem(MLA_AT0)
{
#ifdef MLA_MODEL
    return model_dynamic_address(at);
#else
    extern __shared__ __align__(1024) char mla_dynamic_smem[];
    return (u32)__cvta_generic_to_shared(mla_dynamic_smem);
#endif
}

/* T has 1, 2, 4, 8 or 16 bytes; the address is a multiple of its size. */
template <class T> __device__ __forceinline__ T ld_shared(u32 address MLA_AT)
{
    static_assert(sizeof(T) == 1 || sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8 ||
                      sizeof(T) == 16,
                  "one access moves 1, 2, 4, 8 or 16 bytes");
    T value;
#ifdef MLA_MODEL
    model_ld_shared(&value, address, sizeof(T), at);
#else
    if (sizeof(T) == 16) {
        u32 w[4];
        asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(w[0]), "=r"(w[1]), "=r"(w[2]), "=r"(w[3])
                     : "r"(address)
                     : "memory");
        memcpy(&value, w, sizeof(T));
    } else if (sizeof(T) == 8) {
        u32 w[2];
        asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];"
                     : "=r"(w[0]), "=r"(w[1])
                     : "r"(address)
                     : "memory");
        memcpy(&value, w, sizeof(T));
    } else if (sizeof(T) == 4) {
        u32 w;
        asm volatile("ld.shared.b32 %0, [%1];" : "=r"(w) : "r"(address) : "memory");
        memcpy(&value, &w, sizeof(T));
    } else if (sizeof(T) == 2) {
        u16 w;
        asm volatile("ld.shared.b16 %0, [%1];" : "=h"(w) : "r"(address) : "memory");
        memcpy(&value, &w, sizeof(T));
    } else {
        u32 w; /* asm has no 8-bit operands */
        asm volatile("ld.shared.u8 %0, [%1];" : "=r"(w) : "r"(address) : "memory");
        unsigned char b = (unsigned char)w;
        memcpy(&value, &b, sizeof(T));
    }
#endif
    return value;
}

template <class T> __device__ __forceinline__ void st_shared(u32 address, T value MLA_AT)
{
    static_assert(sizeof(T) == 1 || sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8 ||
                      sizeof(T) == 16,
                  "one access moves 1, 2, 4, 8 or 16 bytes");
#ifdef MLA_MODEL
    model_st_shared(address, &value, sizeof(T), at);
#else
    if (sizeof(T) == 16) {
        u32 w[4];
        memcpy(w, &value, sizeof(T));
        asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(w[0]),
                     "r"(w[1]), "r"(w[2]), "r"(w[3])
                     : "memory");
    } else if (sizeof(T) == 8) {
        u32 w[2];
        memcpy(w, &value, sizeof(T));
        asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(address), "r"(w[0]), "r"(w[1])
                     : "memory");
    } else if (sizeof(T) == 4) {
        u32 w;
        memcpy(&w, &value, sizeof(T));
        asm volatile("st.shared.b32 [%0], %1;" ::"r"(address), "r"(w) : "memory");
    } else if (sizeof(T) == 2) {
        u16 w;
        memcpy(&w, &value, sizeof(T));
        asm volatile("st.shared.b16 [%0], %1;" ::"r"(address), "h"(w) : "memory");
    } else {
        unsigned char b;
        memcpy(&b, &value, sizeof(T));
        asm volatile("st.shared.u8 [%0], %1;" ::"r"(address), "r"((u32)b) : "memory");
    }
#endif
}

/* stmatrix: a warp stores four matrices of 8 rows of 16 bytes. Lane l holds bytes 4 (l % 4) on of
 * row l / 4 of each, and names where row l % 8 of matrix l / 8 goes, a multiple of 16. */
__device__ __forceinline__ void st_matrix(u32 address, u32 m0, u32 m1, u32 m2, u32 m3)
{
#ifdef MLA_MODEL
    const u32 words[4] = {m0, m1, m2, m3}, lane = threadIdx.x % 32;
    for (u32 i = 0; i < 4; i++) {
        u32 row = __shfl_sync(~0u, address, i * 8 + lane / 4);
        st_shared(row + lane % 4 * 4, words[i]);
    }
#else
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
                 "r"(m0), "r"(m1), "r"(m2), "r"(m3)
                 : "memory");
#endif
}

/* Adds to a 32-bit word at once; returns what was there. */
__device__ __forceinline__ u32 atom_add_shared(u32 address, u32 value MLA_AT)
{
#ifdef MLA_MODEL
    return model_atom_add_shared(address, value, at);
#else
    u32 before;
    asm volatile("atom.shared.add.u32 %0, [%1], %2;"
                 : "=r"(before)
                 : "r"(address), "r"(value)
                 : "memory");
    return before;
#endif
}

/* The same place in the block of the given rank, as a shared::cluster address. An own address holds
 * the own rank in bits 24 and up, so it is a cluster address too. */
__device__ __forceinline__ u32 mapa(u32 address, u32 rank MLA_AT)
{
#ifdef MLA_MODEL
    return model_mapa(address, rank, at);
#else
    u32 r;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(r) : "r"(address), "r"(rank));
    return r;
#endif
}

/* Shared memory of any block of the cluster, 4, 8 or 16 bytes. */
template <class T> __device__ __forceinline__ T ld_shared_cluster(u32 address MLA_AT)
{
    static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16, "4, 8 or 16 bytes");
    T value;
#ifdef MLA_MODEL
    model_ld_shared_cluster(&value, address, sizeof(T), at);
#else
    u32 w[sizeof(T) / 4];
    if (sizeof(T) == 16)
        asm volatile("ld.shared::cluster.v4.b32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(w[0]), "=r"(w[1 % (sizeof(T) / 4)]), "=r"(w[2 % (sizeof(T) / 4)]),
                       "=r"(w[3 % (sizeof(T) / 4)])
                     : "r"(address)
                     : "memory");
    else if (sizeof(T) == 8)
        asm volatile("ld.shared::cluster.v2.b32 {%0, %1}, [%2];"
                     : "=r"(w[0]), "=r"(w[1 % (sizeof(T) / 4)])
                     : "r"(address)
                     : "memory");
    else
        asm volatile("ld.shared::cluster.b32 %0, [%1];" : "=r"(w[0]) : "r"(address) : "memory");
    memcpy(&value, w, sizeof(T));
#endif
    return value;
}

template <class T> __device__ __forceinline__ void st_shared_cluster(u32 address, T value MLA_AT)
{
    static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16, "4, 8 or 16 bytes");
#ifdef MLA_MODEL
    model_st_shared_cluster(address, &value, sizeof(T), at);
#else
    u32 w[sizeof(T) / 4];
    memcpy(w, &value, sizeof(T));
    if (sizeof(T) == 16)
        asm volatile("st.shared::cluster.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(w[0]),
                     "r"(w[1 % (sizeof(T) / 4)]), "r"(w[2 % (sizeof(T) / 4)]),
                     "r"(w[3 % (sizeof(T) / 4)])
                     : "memory");
    else if (sizeof(T) == 8)
        asm volatile("st.shared::cluster.v2.b32 [%0], {%1, %2};" ::"r"(address), "r"(w[0]),
                     "r"(w[1 % (sizeof(T) / 4)])
                     : "memory");
    else
        asm volatile("st.shared::cluster.b32 [%0], %1;" ::"r"(address), "r"(w[0]) : "memory");
#endif
}

/* This thread's earlier writes to shared memory become visible to TMA, wgmma and tcgen05, once a
 * barrier has ordered them. */
__device__ __forceinline__ void fence_proxy_async(MLA_AT0)
{
#ifdef MLA_MODEL
    model_fence_proxy_async(at);
#else
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

/* The same for writes to shared memory of any block of the cluster. */
__device__ __forceinline__ void fence_proxy_async_cluster(MLA_AT0)
{
#ifdef MLA_MODEL
    model_fence_proxy_async(at);
#else
    asm volatile("fence.proxy.async.shared::cluster;" ::: "memory");
#endif
}

#endif
