/* SPDX-License-Identifier: Apache-2.0 */
/* tcgen05: tensor memory (TMEM) and the tensor core of sm_100a/f. A TMEM address is lane << 16 |
 * column; G is the CTA group, 1 or 2, one for the whole kernel.
 *
 * Who: alloc, relinquish, dealloc, ld, st and the waits a whole converged warp; mma, cp and commit
 * one thread, the same for a chain. A warp reaches lanes 32 (warp % 4) to + 31; taddr's lane names
 * that place or is 0.
 *
 * Order: mma and cp complete through a commit's barrier; ld and st through their waits. Between
 * threads: fence_before, arrive; wait, fence_after (a commit includes the fence before). Shared
 * memory written by ordinary stores needs fence_proxy_async by the writers first. */
#ifndef MLA_CUDA_PTX_TCGEN05_CUH
#define MLA_CUDA_PTX_TCGEN05_CUH

#include "at.cuh"
#include "registers.cuh"
#include "types.cuh"

#ifdef MLA_MODEL
#include "model/tensor.h"
#endif

enum mma_kind { KIND_F16, KIND_F8F6F4 };

/* Shared-memory matrix descriptor; offsets in bytes (multiples of 16), swizzle 0, 32, 64 or 128. */
__host__ __device__ __forceinline__ u64 umma_desc(u32 smem, u32 leading, u32 stride, int swizzle)
{
    u64 code = swizzle == 128 ? 2 : swizzle == 64 ? 4 : swizzle == 32 ? 6 : 0;
    return (u64)((smem & 0x3FFFF) >> 4) | (u64)(leading >> 4) << 16 | (u64)(stride >> 4) << 32 |
           (u64)1 << 46 | code << 61;
}

/* Instruction descriptor: m is the pair's in group 2; trans: that operand is MN-major. */
__host__ __device__ constexpr u32 umma_idesc(int m, int n, operand_type a, operand_type b,
                                             operand_type d, bool trans_a, bool trans_b)
{
    return (u32)(d == OPERAND_F32) << 4 | (u32)(a == OPERAND_BF16 || a == OPERAND_E5M2) << 7 |
           (u32)(b == OPERAND_BF16 || b == OPERAND_E5M2) << 10 | (u32)trans_a << 15 |
           (u32)trans_b << 16 | (u32)(n >> 3) << 17 | (u32)(m >> 4) << 24;
}

/* Writes the address of `columns` (32, 64, ... 512) fresh columns to shared memory; waits for
 * them. */
template <int G> __device__ __forceinline__ void tcgen05_alloc(u32 smem_dst, u32 columns MLA_AT)
{
    static_assert(G == 1 || G == 2, "CTA group: 1 or 2");
#ifdef MLA_MODEL
    model_tcgen05_alloc(G, smem_dst, columns, at);
#else
    asm volatile("tcgen05.alloc.cta_group::%2.sync.aligned.shared::cta.b32 [%0], %1;\n" ::"r"(
                     smem_dst),
                 "r"(columns), "n"(G)
                 : "memory");
#endif
}

template <int G> __device__ __forceinline__ void tcgen05_relinquish(MLA_AT0)
{
#ifdef MLA_MODEL
    model_tcgen05_relinquish(G, at);
#else
    asm volatile("tcgen05.relinquish_alloc_permit.cta_group::%0.sync.aligned;\n" ::"n"(G)
                 : "memory");
#endif
}

template <int G> __device__ __forceinline__ void tcgen05_dealloc(u32 taddr, u32 columns MLA_AT)
{
#ifdef MLA_MODEL
    model_tcgen05_dealloc(G, taddr, columns, at);
#else
    asm volatile("tcgen05.dealloc.cta_group::%2.sync.aligned.b32 %0, %1;\n" ::"r"(taddr),
                 "r"(columns), "n"(G)
                 : "memory");
#endif
}

__device__ __forceinline__ void tcgen05_fence_before(MLA_AT0)
{
#ifdef MLA_MODEL
    model_tcgen05_fence_before(at);
#else
    asm volatile("tcgen05.fence::before_thread_sync;\n" ::: "memory");
#endif
}

__device__ __forceinline__ void tcgen05_fence_after(MLA_AT0)
{
#ifdef MLA_MODEL
    model_tcgen05_fence_after(at);
#else
    asm volatile("tcgen05.fence::after_thread_sync;\n" ::: "memory");
#endif
}

__device__ __forceinline__ void tcgen05_wait_ld(MLA_AT0)
{
#ifdef MLA_MODEL
    model_tcgen05_wait_ld(at);
#else
    asm volatile("tcgen05.wait::ld.sync.aligned;\n" ::: "memory");
#endif
}

/* The same, and uses of r stay behind it. */
template <int N> __device__ __forceinline__ void tcgen05_wait_ld(u32 (&r)[N] MLA_AT)
{
#ifdef MLA_MODEL
    (void)r;
    model_tcgen05_wait_ld(at);
#else
    asm volatile("tcgen05.wait::ld.sync.aligned;\n" ::: "memory");
#pragma unroll
    for (int i = 0; i < N; i++)
        asm volatile("" : "+r"(r[i])::"memory");
#endif
}

/* For results of earlier loads of the same wait: uses stay behind this place; no instruction. */
template <int N> __device__ __forceinline__ void tcgen05_bind(u32 (&r)[N])
{
#ifdef MLA_MODEL
    (void)r;
#else
#pragma unroll
    for (int i = 0; i < N; i++)
        asm volatile("" : "+r"(r[i])::"memory");
#endif
}

__device__ __forceinline__ void tcgen05_wait_st(MLA_AT0)
{
#ifdef MLA_MODEL
    model_tcgen05_wait_st(at);
#else
    asm volatile("tcgen05.wait::st.sync.aligned;\n" ::: "memory");
#endif
}

/* Loads and stores by the number of registers R; lane t, register r (columns from taddr's on):
 *   32x32b    lane t                        column r
 *   16x64b    lane t/4 + 8 (t&1)            column 2r + ((t>>1)&1)
 *   16x128b   lane t/4 + 8 (r&1)            column 4 (r/2) + t%4
 *   16x256b   lane t/4 + 8 ((r>>1)&1)       column 8 (r/4) + 2 (t%4) + (r&1), as mma.sync's C
 * The 16-lane shapes reach a partition's lanes 16 to 31 through taddr's lane + 16. */
#ifndef MLA_MODEL
#define MLA_TCGEN05_LDST_SIZE(SHAPE, X, R)                                                         \
    __device__ __forceinline__ void tcgen05_ld_##SHAPE##_issue(u32(&r)[R], u32 taddr)              \
    {                                                                                              \
        asm volatile("tcgen05.ld.sync.aligned." #SHAPE ".x" #X ".b32 {" MLA_NAMES_##R "}, [%" #R   \
                                                                                      "];\n"       \
                     : MLA_OPERANDS_##R("=r", r)                                                   \
                     : "r"(taddr)                                                                  \
                     : "memory");                                                                  \
    }                                                                                              \
    __device__ __forceinline__ void tcgen05_st_##SHAPE##_issue(u32 taddr, const u32(&r)[R])        \
    {                                                                                              \
        asm volatile("tcgen05.st.sync.aligned." #SHAPE ".x" #X ".b32 [%" #R "], {" MLA_NAMES_##R   \
                     "};\n" ::MLA_OPERANDS_##R("r", r),                                            \
                     "r"(taddr)                                                                    \
                     : "memory");                                                                  \
    }
MLA_TCGEN05_LDST_SIZE(32x32b, 1, 1)
MLA_TCGEN05_LDST_SIZE(32x32b, 2, 2)
MLA_TCGEN05_LDST_SIZE(32x32b, 4, 4)
MLA_TCGEN05_LDST_SIZE(32x32b, 8, 8)
MLA_TCGEN05_LDST_SIZE(32x32b, 16, 16)
MLA_TCGEN05_LDST_SIZE(32x32b, 32, 32)
MLA_TCGEN05_LDST_SIZE(32x32b, 64, 64)
MLA_TCGEN05_LDST_SIZE(32x32b, 128, 128)
MLA_TCGEN05_LDST_SIZE(16x64b, 1, 1)
MLA_TCGEN05_LDST_SIZE(16x64b, 2, 2)
MLA_TCGEN05_LDST_SIZE(16x64b, 4, 4)
MLA_TCGEN05_LDST_SIZE(16x64b, 8, 8)
MLA_TCGEN05_LDST_SIZE(16x64b, 16, 16)
MLA_TCGEN05_LDST_SIZE(16x64b, 32, 32)
MLA_TCGEN05_LDST_SIZE(16x64b, 64, 64)
MLA_TCGEN05_LDST_SIZE(16x64b, 128, 128)
MLA_TCGEN05_LDST_SIZE(16x128b, 1, 2)
MLA_TCGEN05_LDST_SIZE(16x128b, 2, 4)
MLA_TCGEN05_LDST_SIZE(16x128b, 4, 8)
MLA_TCGEN05_LDST_SIZE(16x128b, 8, 16)
MLA_TCGEN05_LDST_SIZE(16x128b, 16, 32)
MLA_TCGEN05_LDST_SIZE(16x128b, 32, 64)
MLA_TCGEN05_LDST_SIZE(16x128b, 64, 128)
MLA_TCGEN05_LDST_SIZE(16x256b, 1, 4)
MLA_TCGEN05_LDST_SIZE(16x256b, 2, 8)
MLA_TCGEN05_LDST_SIZE(16x256b, 4, 16)
MLA_TCGEN05_LDST_SIZE(16x256b, 8, 32)
MLA_TCGEN05_LDST_SIZE(16x256b, 16, 64)
MLA_TCGEN05_LDST_SIZE(16x256b, 32, 128)
#undef MLA_TCGEN05_LDST_SIZE
#endif

#ifdef MLA_MODEL
#define MLA_TCGEN05_LDST(SHAPE, ID)                                                                \
    template <int R>                                                                               \
    __device__ __forceinline__ void tcgen05_ld_##SHAPE(u32(&r)[R], u32 taddr MLA_AT)               \
    {                                                                                              \
        model_tcgen05_ld(ID, r, R, taddr, at);                                                     \
    }                                                                                              \
    template <int R>                                                                               \
    __device__ __forceinline__ void tcgen05_st_##SHAPE(u32 taddr, const u32(&r)[R] MLA_AT)         \
    {                                                                                              \
        model_tcgen05_st(ID, taddr, r, R, at);                                                     \
    }
#else
#define MLA_TCGEN05_LDST(SHAPE, ID)                                                                \
    template <int R> __device__ __forceinline__ void tcgen05_ld_##SHAPE(u32(&r)[R], u32 taddr)     \
    {                                                                                              \
        tcgen05_ld_##SHAPE##_issue(r, taddr);                                                      \
    }                                                                                              \
    template <int R>                                                                               \
    __device__ __forceinline__ void tcgen05_st_##SHAPE(u32 taddr, const u32(&r)[R])                \
    {                                                                                              \
        tcgen05_st_##SHAPE##_issue(taddr, r);                                                      \
    }
#endif
MLA_TCGEN05_LDST(32x32b, 0)
MLA_TCGEN05_LDST(16x64b, 1)
MLA_TCGEN05_LDST(16x128b, 2)
MLA_TCGEN05_LDST(16x256b, 3)
#undef MLA_TCGEN05_LDST

#ifndef MLA_MODEL
#define MLA_TCGEN05_MMA_ASM(ws, a, type, extra)                                                    \
    if constexpr (KIND == KIND_F16)                                                                \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %4, 0;\n"                                   \
                     "tcgen05.mma" ws ".cta_group::%5.kind::f16 [%0], " a ", %2, %3, p" extra      \
                     ";\n}\n" ::"r"(d),                                                            \
                     type(a_operand), "l"(b_desc), "r"(idesc), "r"((int)accumulate), "n"(G)        \
                     : "memory");                                                                  \
    else                                                                                           \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %4, 0;\n"                                   \
                     "tcgen05.mma" ws ".cta_group::%5.kind::f8f6f4 [%0], " a ", %2, %3, p" extra   \
                     ";\n}\n" ::"r"(d),                                                            \
                     type(a_operand), "l"(b_desc), "r"(idesc), "r"((int)accumulate), "n"(G)        \
                     : "memory")
#endif

/* D (TMEM) = A * B [+ D], one step of 32 bytes of K. Both operands in shared memory: */
template <int G, mma_kind KIND>
__device__ __forceinline__ void tcgen05_mma_ss(u32 d, u64 a_operand, u64 b_desc, u32 idesc,
                                               bool accumulate MLA_AT)
{
#ifdef MLA_MODEL
    model_tcgen05_mma(G, KIND == KIND_F16, false, d, false, a_operand, b_desc, idesc, accumulate,
                      at);
#else
    MLA_TCGEN05_MMA_ASM("", "%1", "l", "");
#endif
}

/* A in TMEM: 32-bit word column j of a row holds k = 2 j, 2 j + 1 (four k of 8-bit types). */
template <int G, mma_kind KIND>
__device__ __forceinline__ void tcgen05_mma_ts(u32 d, u32 a_operand, u64 b_desc, u32 idesc,
                                               bool accumulate MLA_AT)
{
#ifdef MLA_MODEL
    model_tcgen05_mma(G, KIND == KIND_F16, false, d, true, a_operand, b_desc, idesc, accumulate,
                      at);
#else
    MLA_TCGEN05_MMA_ASM("", "[%1]", "r", "");
#endif
}

/* Weight-stationary form, group 1: M 32, 64 or 128; N 64, 128 or 256. */
template <mma_kind KIND>
__device__ __forceinline__ void tcgen05_mma_ws_ss(u32 d, u64 a_operand, u64 b_desc, u32 idesc,
                                                  bool accumulate MLA_AT)
{
    constexpr int G = 1;
#ifdef MLA_MODEL
    model_tcgen05_mma(G, KIND == KIND_F16, true, d, false, a_operand, b_desc, idesc, accumulate,
                      at);
#else
    MLA_TCGEN05_MMA_ASM(".ws", "%1", "l", ", 0");
#endif
}

template <mma_kind KIND>
__device__ __forceinline__ void tcgen05_mma_ws_ts(u32 d, u32 a_operand, u64 b_desc, u32 idesc,
                                                  bool accumulate MLA_AT)
{
    constexpr int G = 1;
#ifdef MLA_MODEL
    model_tcgen05_mma(G, KIND == KIND_F16, true, d, true, a_operand, b_desc, idesc, accumulate, at);
#else
    MLA_TCGEN05_MMA_ASM(".ws", "[%1]", "r", ", 0");
#endif
}

/* One arrival on bar (this CTA's) once all mma and cp that this thread issued before are done. */
template <int G> __device__ __forceinline__ void tcgen05_commit(u32 bar MLA_AT)
{
#ifdef MLA_MODEL
    model_tcgen05_commit(G, bar, 0, at);
#else
    asm volatile(
        "tcgen05.commit.cta_group::%1.mbarrier::arrive::one.shared::cluster.b64 [%0];\n" ::"r"(bar),
        "n"(G)
        : "memory");
#endif
}

/* The same on the barrier at bar's offset of each CTA in mask (bit = rank in the cluster). */
template <int G> __device__ __forceinline__ void tcgen05_commit_multicast(u32 bar, u16 mask MLA_AT)
{
#ifdef MLA_MODEL
    model_tcgen05_commit(G, bar, mask, at);
#else
    asm volatile("tcgen05.commit.cta_group::%2.mbarrier::arrive::one.shared::cluster"
                 ".multicast::cluster.b64 [%0], %1;\n" ::"r"(bar),
                 "h"(mask), "n"(G)
                 : "memory");
#endif
}

/* Shared memory to TMEM, rows of the descriptor (K-major) to lanes; group 2: in both CTAs, each its
 * own. 128x256b, 128x128b: row r to lane r; 64x128b_02_13: to r and r + 64; 64x128b_01_23: to
 * 64 (r/32) + r%32 and + 32; 32x128b: to r, r + 32, r + 64 and r + 96; 4x256b: to 32 r. */
#ifdef MLA_MODEL
#define MLA_TCGEN05_CP(NAME, SHAPE, ID)                                                            \
    template <int G> __device__ __forceinline__ void tcgen05_cp_##NAME(u32 taddr, u64 desc MLA_AT) \
    {                                                                                              \
        model_tcgen05_cp(G, ID, taddr, desc, at);                                                  \
    }
#else
#define MLA_TCGEN05_CP(NAME, SHAPE, ID)                                                            \
    template <int G> __device__ __forceinline__ void tcgen05_cp_##NAME(u32 taddr, u64 desc)        \
    {                                                                                              \
        asm volatile("tcgen05.cp.cta_group::%2." SHAPE " [%0], %1;\n" ::"r"(taddr), "l"(desc),     \
                     "n"(G)                                                                        \
                     : "memory");                                                                  \
    }
#endif
MLA_TCGEN05_CP(128x256b, "128x256b", 0)
MLA_TCGEN05_CP(128x128b, "128x128b", 1)
MLA_TCGEN05_CP(64x128b_02_13, "64x128b.warpx2::02_13", 2)
MLA_TCGEN05_CP(64x128b_01_23, "64x128b.warpx2::01_23", 3)
MLA_TCGEN05_CP(32x128b, "32x128b.warpx4", 4)
MLA_TCGEN05_CP(4x256b, "4x256b", 5)
#undef MLA_TCGEN05_CP

#endif
