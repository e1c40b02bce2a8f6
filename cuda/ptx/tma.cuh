/* SPDX-License-Identifier: Apache-2.0 */
/* TMA: copies of boxes of a tensor (tensor_map.h) and of plain runs of bytes between global and
 * shared memory (sm_90; gather4 and pairs sm_100). One thread issues; loads complete by bytes on an
 * mbarrier, elements outside the tensor counted like the others; stores complete by groups of the
 * issuing thread. Destinations of boxes are multiples of 128 bytes (1024 keeps a 128-byte swizzle
 * whole); the swizzle follows the bits of the shared address itself.
 *
 * _pair: both CTAs of a pair load, each into its own shared memory, and the bytes may be counted on
 * a barrier of the even CTA: pass tma_even_barrier(bar). Coordinates are innermost first. policy is
 * an L2 hint or 0. */
#ifndef MLA_CUDA_PTX_TMA_CUH
#define MLA_CUDA_PTX_TMA_CUH

#include "at.cuh"
#include "tensor_map.h"

#ifdef MLA_MODEL
#include "model/tensor.h"
#endif

static const u64 L2_EVICT_NORMAL = 0x1000000000000000, L2_EVICT_FIRST = 0x12F0000000000000,
                 L2_EVICT_LAST = 0x14F0000000000000;

/* The barrier at the same offset in the pair's even CTA, from any CTA's own address of it. */
__device__ __forceinline__ u32 tma_even_barrier(u32 bar)
{
    return bar & 0xFEFFFFFF;
}

__device__ __forceinline__ void tma_prefetch_map(const struct mla_tensor_map *map MLA_AT)
{
#ifdef MLA_MODEL
    model_tma_prefetch_map(map, at);
#else
    asm volatile("prefetch.tensormap [%0];\n" ::"l"(map) : "memory");
#endif
}

/* Brings a box to L2 only: a hint. */
__device__ __forceinline__ void tma_prefetch_3d(const struct mla_tensor_map *map, int c0, int c1,
                                                int c2 MLA_AT)
{
#ifdef MLA_MODEL
    (void)c0, (void)c1, (void)c2;
    model_tma_prefetch_map(map, at);
#else
    asm volatile("cp.async.bulk.prefetch.tensor.3d.L2.global.tile [%0, {%1, %2, %3}];\n" ::"l"(map),
                 "r"(c0), "r"(c1), "r"(c2)
                 : "memory");
#endif
}

#ifdef MLA_MODEL
#define MLA_TMA_LOAD(rank, pair, mask, ...)                                                        \
    const int c[] = {__VA_ARGS__};                                                                 \
    model_tma_load(dst, map, bar, rank, c, pair, mask, at)
#define MLA_TMA_STORE(rank, ...)                                                                   \
    const int c[] = {__VA_ARGS__};                                                                 \
    model_tma_store(map, src, rank, c, at)
#else
#define MLA_TMA_COORDINATES_2 "{%3, %4}"
#define MLA_TMA_COORDINATES_3 "{%3, %4, %5}"
#define MLA_TMA_COORDINATES_4 "{%3, %4, %5, %6}"
#define MLA_TMA_LOAD_ASM(rank, group, policy_name, ...)                                            \
    if (policy != 0)                                                                               \
        asm volatile("cp.async.bulk.tensor." #rank "d.shared::cluster.global.mbarrier::"           \
                     "complete_tx::bytes" group                                                    \
                     ".L2::cache_hint [%0], [%1, " MLA_TMA_COORDINATES_##rank                      \
                     "], [%2], " policy_name ";\n" ::"r"(dst),                                     \
                     "l"(map), "r"(bar), __VA_ARGS__, "l"(policy)                                  \
                     : "memory");                                                                  \
    else                                                                                           \
        asm volatile("cp.async.bulk.tensor." #rank "d.shared::cluster.global.mbarrier::"           \
                     "complete_tx::bytes" group " [%0], [%1, " MLA_TMA_COORDINATES_##rank          \
                     "], [%2];\n" ::"r"(dst),                                                      \
                     "l"(map), "r"(bar), __VA_ARGS__                                               \
                     : "memory")
#endif

__device__ __forceinline__ void tma_load_2d(u32 dst, const struct mla_tensor_map *map, u32 bar,
                                            int c0, int c1, u64 policy = 0 MLA_AT)
{
#ifdef MLA_MODEL
    (void)policy;
    MLA_TMA_LOAD(2, false, 0, c0, c1);
#else
    MLA_TMA_LOAD_ASM(2, "", "%5", "r"(c0), "r"(c1));
#endif
}

__device__ __forceinline__ void tma_load_3d(u32 dst, const struct mla_tensor_map *map, u32 bar,
                                            int c0, int c1, int c2, u64 policy = 0 MLA_AT)
{
#ifdef MLA_MODEL
    (void)policy;
    MLA_TMA_LOAD(3, false, 0, c0, c1, c2);
#else
    MLA_TMA_LOAD_ASM(3, "", "%6", "r"(c0), "r"(c1), "r"(c2));
#endif
}

__device__ __forceinline__ void tma_load_4d(u32 dst, const struct mla_tensor_map *map, u32 bar,
                                            int c0, int c1, int c2, int c3, u64 policy = 0 MLA_AT)
{
#ifdef MLA_MODEL
    (void)policy;
    MLA_TMA_LOAD(4, false, 0, c0, c1, c2, c3);
#else
    MLA_TMA_LOAD_ASM(4, "", "%7", "r"(c0), "r"(c1), "r"(c2), "r"(c3));
#endif
}

__device__ __forceinline__ void tma_load_2d_pair(u32 dst, const struct mla_tensor_map *map, u32 bar,
                                                 int c0, int c1, u64 policy = 0 MLA_AT)
{
#ifdef MLA_MODEL
    (void)policy;
    MLA_TMA_LOAD(2, true, 0, c0, c1);
#else
    MLA_TMA_LOAD_ASM(2, ".cta_group::2", "%5", "r"(c0), "r"(c1));
#endif
}

__device__ __forceinline__ void tma_load_3d_pair(u32 dst, const struct mla_tensor_map *map, u32 bar,
                                                 int c0, int c1, int c2, u64 policy = 0 MLA_AT)
{
#ifdef MLA_MODEL
    (void)policy;
    MLA_TMA_LOAD(3, true, 0, c0, c1, c2);
#else
    MLA_TMA_LOAD_ASM(3, ".cta_group::2", "%6", "r"(c0), "r"(c1), "r"(c2));
#endif
}

__device__ __forceinline__ void tma_load_4d_pair(u32 dst, const struct mla_tensor_map *map, u32 bar,
                                                 int c0, int c1, int c2, int c3,
                                                 u64 policy = 0 MLA_AT)
{
#ifdef MLA_MODEL
    (void)policy;
    MLA_TMA_LOAD(4, true, 0, c0, c1, c2, c3);
#else
    MLA_TMA_LOAD_ASM(4, ".cta_group::2", "%7", "r"(c0), "r"(c1), "r"(c2), "r"(c3));
#endif
}

/* Into the same offset of every CTA in mask (bit = rank in the cluster), each counting on its own
 * barrier at bar's offset. */
__device__ __forceinline__ void tma_load_2d_multicast(u32 dst, const struct mla_tensor_map *map,
                                                      u32 bar, int c0, int c1, u16 mask MLA_AT)
{
#ifdef MLA_MODEL
    MLA_TMA_LOAD(2, false, mask, c0, c1);
#else
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
                 ".multicast::cluster [%0], [%1, {%3, %4}], [%2], %5;\n" ::"r"(dst),
                 "l"(map), "r"(bar), "r"(c0), "r"(c1), "h"(mask)
                 : "memory");
#endif
}

__device__ __forceinline__ void tma_load_3d_multicast(u32 dst, const struct mla_tensor_map *map,
                                                      u32 bar, int c0, int c1, int c2,
                                                      u16 mask MLA_AT)
{
#ifdef MLA_MODEL
    MLA_TMA_LOAD(3, false, mask, c0, c1, c2);
#else
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
                 ".multicast::cluster [%0], [%1, {%3, %4, %5}], [%2], %6;\n" ::"r"(dst),
                 "l"(map), "r"(bar), "r"(c0), "r"(c1), "r"(c2), "h"(mask)
                 : "memory");
#endif
}

/* Four rows r0 to r3 of a map of box {W, 1}, from column col on, into rows of W elements at dst. */
#ifndef MLA_MODEL
#define MLA_TMA_GATHER4_ASM(group)                                                                 \
    if (policy != 0)                                                                               \
        asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile::gather4.mbarrier::"     \
                     "complete_tx::bytes" group ".L2::cache_hint [%0], [%1, {%3, %4, %5, %6, "     \
                     "%7}], [%2], %8;\n" ::"r"(dst),                                               \
                     "l"(map), "r"(bar), "r"(col), "r"(r0), "r"(r1), "r"(r2), "r"(r3), "l"(policy) \
                     : "memory");                                                                  \
    else                                                                                           \
        asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile::gather4.mbarrier::"     \
                     "complete_tx::bytes" group                                                    \
                     " [%0], [%1, {%3, %4, %5, %6, %7}], [%2];\n" ::"r"(dst),                      \
                     "l"(map), "r"(bar), "r"(col), "r"(r0), "r"(r1), "r"(r2), "r"(r3)              \
                     : "memory")
#endif

__device__ __forceinline__ void tma_gather4(u32 dst, const struct mla_tensor_map *map, u32 bar,
                                            int col, int r0, int r1, int r2, int r3,
                                            u64 policy = 0 MLA_AT)
{
#ifdef MLA_MODEL
    (void)policy;
    const int rows[4] = {r0, r1, r2, r3};
    model_tma_gather4(dst, map, bar, col, rows, false, at);
#else
    MLA_TMA_GATHER4_ASM("");
#endif
}

__device__ __forceinline__ void tma_gather4_pair(u32 dst, const struct mla_tensor_map *map, u32 bar,
                                                 int col, int r0, int r1, int r2, int r3,
                                                 u64 policy = 0 MLA_AT)
{
#ifdef MLA_MODEL
    (void)policy;
    const int rows[4] = {r0, r1, r2, r3};
    model_tma_gather4(dst, map, bar, col, rows, true, at);
#else
    MLA_TMA_GATHER4_ASM(".cta_group::2");
#endif
}

__device__ __forceinline__ void tma_store_2d(const struct mla_tensor_map *map, u32 src, int c0,
                                             int c1 MLA_AT)
{
#ifdef MLA_MODEL
    MLA_TMA_STORE(2, c0, c1);
#else
    asm volatile(
        "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];\n" ::"l"(map),
        "r"(src), "r"(c0), "r"(c1)
        : "memory");
#endif
}

__device__ __forceinline__ void tma_store_3d(const struct mla_tensor_map *map, u32 src, int c0,
                                             int c1, int c2 MLA_AT)
{
#ifdef MLA_MODEL
    MLA_TMA_STORE(3, c0, c1, c2);
#else
    asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], "
                 "[%1];\n" ::"l"(map),
                 "r"(src), "r"(c0), "r"(c1), "r"(c2)
                 : "memory");
#endif
}

__device__ __forceinline__ void tma_store_4d(const struct mla_tensor_map *map, u32 src, int c0,
                                             int c1, int c2, int c3 MLA_AT)
{
#ifdef MLA_MODEL
    MLA_TMA_STORE(4, c0, c1, c2, c3);
#else
    asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5}], "
                 "[%1];\n" ::"l"(map),
                 "r"(src), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
                 : "memory");
#endif
}

/* Ends the group of this thread's stores so far (also of bulk_store). */
__device__ __forceinline__ void tma_store_commit(MLA_AT0)
{
#ifdef MLA_MODEL
    model_bulk_commit(at);
#else
    asm volatile("cp.async.bulk.commit_group;\n" ::: "memory");
#endif
}

/* All but the newest PENDING groups have read their shared memory: it may be written again. */
template <int PENDING> __device__ __forceinline__ void tma_store_wait_read(MLA_AT0)
{
#ifdef MLA_MODEL
    model_bulk_wait(PENDING, true, at);
#else
    asm volatile("cp.async.bulk.wait_group.read %0;\n" ::"n"(PENDING) : "memory");
#endif
}

/* All but the newest PENDING groups have written. */
template <int PENDING> __device__ __forceinline__ void tma_store_wait(MLA_AT0)
{
#ifdef MLA_MODEL
    model_bulk_wait(PENDING, false, at);
#else
    asm volatile("cp.async.bulk.wait_group %0;\n" ::"n"(PENDING) : "memory");
#endif
}

/* Plain bytes; addresses and count are multiples of 16. */
__device__ __forceinline__ void bulk_load(u32 dst, const void *gmem, u32 bytes, u32 bar MLA_AT)
{
#ifdef MLA_MODEL
    model_bulk_load(dst, gmem, bytes, bar, at);
#else
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], "
                 "%2, [%3];\n" ::"r"(dst),
                 "l"(gmem), "r"(bytes), "r"(bar)
                 : "memory");
#endif
}

__device__ __forceinline__ void bulk_store(void *gmem, u32 src, u32 bytes MLA_AT)
{
#ifdef MLA_MODEL
    model_bulk_store(gmem, src, bytes, at);
#else
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;\n" ::"l"(gmem),
                 "r"(src), "r"(bytes)
                 : "memory");
#endif
}

#endif
