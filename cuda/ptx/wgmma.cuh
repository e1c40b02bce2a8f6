/* SPDX-License-Identifier: Apache-2.0 */
/* wgmma.mma_async (sm_90a): D (64 x N, f32) = A (64 x K) * B (K x N) [+ D], K = 32 bytes, issued by
 * the four warps of a warpgroup. Warp w of it holds rows 16 w + g and + 8 of D (g = lane / 4, t =
 * lane % 4): d[4 i], d[4 i + 1] = [g][8 i + 2 t, + 1], d[4 i + 2], d[4 i + 3] the same of row g +
 * 8; A in registers has the rows and columns of mma.sync's A.
 *
 * Order: wgmma_fence() once registers of D or A were written by other code; the instructions; one
 * wgmma_commit() a group; wgmma_wait<n>() until all but the newest n groups are done; only then are
 * D's registers read and the shared operands written. */
#ifndef MLA_CUDA_PTX_WGMMA_CUH
#define MLA_CUDA_PTX_WGMMA_CUH

#include "at.cuh"
#include "registers.cuh"
#include "types.cuh"

#ifdef MLA_MODEL
#include "model/tensor.h"
#endif

/* Matrix descriptor: start address, leading and stride offsets in bytes (multiples of 16), swizzle
 * 0, 32, 64 or 128 (bytes). For what the offsets mean see docs/verification.md. */
__device__ __forceinline__ u64 wgmma_desc(u32 smem, u32 leading, u32 stride, int swizzle)
{
    u64 code = swizzle == 128 ? 1 : swizzle == 64 ? 2 : swizzle == 32 ? 3 : 0;
    return (u64)((smem & 0x3FFFF) >> 4) | (u64)(leading >> 4) << 16 | (u64)(stride >> 4) << 32 |
           code << 62;
}

/* Moves the start address of a descriptor (of wgmma or tcgen05) by bytes, a multiple of 16. */
__device__ __forceinline__ u64 desc_advance(u64 desc, u32 bytes)
{
    return desc + (bytes >> 4);
}

__device__ __forceinline__ void wgmma_fence(MLA_AT0)
{
#ifdef MLA_MODEL
    model_wgmma_fence(at);
#else
    asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
#endif
}

__device__ __forceinline__ void wgmma_commit(MLA_AT0)
{
#ifdef MLA_MODEL
    model_wgmma_commit(at);
#else
    asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
#endif
}

template <int PENDING> __device__ __forceinline__ void wgmma_wait(MLA_AT0)
{
    static_assert(PENDING >= 0 && PENDING <= 7, "wgmma.wait_group: 0 to 7");
#ifdef MLA_MODEL
    model_wgmma_wait(PENDING, at);
#else
    asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(PENDING) : "memory");
#endif
}

/* Keeps the compiler from moving uses of the registers across this place; no instruction. Behind
 * the wait for D; before wgmma_fence for what D and A start from, or ptxas puts fences of its own
 * between the instructions. */
template <int N> __device__ __forceinline__ void wgmma_bind(float (&d)[N])
{
#ifdef MLA_MODEL
    (void)d;
#else
#pragma unroll
    for (int i = 0; i < N; i++)
        asm volatile("" : "+f"(d[i])::"memory");
#endif
}

template <int N> __device__ __forceinline__ void wgmma_bind(u32 (&a)[N])
{
#ifdef MLA_MODEL
    (void)a;
#else
#pragma unroll
    for (int i = 0; i < N; i++)
        asm volatile("" : "+r"(a[i])::"memory");
#endif
}

#ifndef MLA_MODEL
/* One overload for each number of registers. The operands after D: "%r" names in the order a (one
 * descriptor or four registers), b, accumulate. */
#define MLA_WGMMA(shape, types, regs, a, b, p, flags)                                              \
    "{\n.reg .pred p;\nsetp.ne.b32 p, " p ", 0;\n"                                                 \
    "wgmma.mma_async.sync.aligned." shape "." types " {" regs "}, " a ", " b ", p, 1, 1" flags     \
    ";\n}\n"
#define MLA_WGMMA_SIZE(N, R, A0, A1, A2, A3, A4, A5, A6, A7)                                       \
    template <class T, int TRANS_A, int TRANS_B>                                                   \
    __device__ __forceinline__ void wgmma_ss_issue(float(&d)[R], u64 a, u64 b, int accumulate)     \
    {                                                                                              \
        if constexpr (operand_type_of<T>::value == OPERAND_BF16)                                   \
            asm volatile(MLA_WGMMA("m64n" #N "k16", "f32.bf16.bf16", MLA_NAMES_##R, A0, A1, A2,    \
                                   ", " A3 ", " A4)                                                \
                         : MLA_OPERANDS_##R("+f", d)                                               \
                         : "l"(a), "l"(b), "r"(accumulate), "n"(TRANS_A), "n"(TRANS_B));           \
        else if constexpr (operand_type_of<T>::value == OPERAND_F16)                               \
            asm volatile(MLA_WGMMA("m64n" #N "k16", "f32.f16.f16", MLA_NAMES_##R, A0, A1, A2,      \
                                   ", " A3 ", " A4)                                                \
                         : MLA_OPERANDS_##R("+f", d)                                               \
                         : "l"(a), "l"(b), "r"(accumulate), "n"(TRANS_A), "n"(TRANS_B));           \
        else                                                                                       \
            asm volatile(MLA_WGMMA("m64n" #N "k32", "f32.e4m3.e4m3", MLA_NAMES_##R, A0, A1, A2,    \
                                   "")                                                             \
                         : MLA_OPERANDS_##R("+f", d)                                               \
                         : "l"(a), "l"(b), "r"(accumulate));                                       \
    }                                                                                              \
    template <class T, int TRANS_B>                                                                \
    __device__ __forceinline__ void wgmma_rs_issue(float(&d)[R], const u32(&a)[4], u64 b,          \
                                                   int accumulate)                                 \
    {                                                                                              \
        if constexpr (operand_type_of<T>::value == OPERAND_BF16)                                   \
            asm volatile(MLA_WGMMA("m64n" #N "k16", "f32.bf16.bf16", MLA_NAMES_##R,                \
                                   "{" A0 ", " A1 ", " A2 ", " A3 "}", A4, A5, ", " A6)            \
                         : MLA_OPERANDS_##R("+f", d)                                               \
                         : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate),    \
                           "n"(TRANS_B));                                                          \
        else if constexpr (operand_type_of<T>::value == OPERAND_F16)                               \
            asm volatile(MLA_WGMMA("m64n" #N "k16", "f32.f16.f16", MLA_NAMES_##R,                  \
                                   "{" A0 ", " A1 ", " A2 ", " A3 "}", A4, A5, ", " A6)            \
                         : MLA_OPERANDS_##R("+f", d)                                               \
                         : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate),    \
                           "n"(TRANS_B));                                                          \
        else                                                                                       \
            asm volatile(MLA_WGMMA("m64n" #N "k32", "f32.e4m3.e4m3", MLA_NAMES_##R,                \
                                   "{" A0 ", " A1 ", " A2 ", " A3 "}", A4, A5, "")                 \
                         : MLA_OPERANDS_##R("+f", d)                                               \
                         : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));   \
    }
/* clang-format off */
MLA_WGMMA_SIZE(8, 4, "%4", "%5", "%6", "%7", "%8", "%9", "%10", "%11")
MLA_WGMMA_SIZE(16, 8, "%8", "%9", "%10", "%11", "%12", "%13", "%14", "%15")
MLA_WGMMA_SIZE(24, 12, "%12", "%13", "%14", "%15", "%16", "%17", "%18", "%19")
MLA_WGMMA_SIZE(32, 16, "%16", "%17", "%18", "%19", "%20", "%21", "%22", "%23")
MLA_WGMMA_SIZE(48, 24, "%24", "%25", "%26", "%27", "%28", "%29", "%30", "%31")
MLA_WGMMA_SIZE(64, 32, "%32", "%33", "%34", "%35", "%36", "%37", "%38", "%39")
MLA_WGMMA_SIZE(80, 40, "%40", "%41", "%42", "%43", "%44", "%45", "%46", "%47")
MLA_WGMMA_SIZE(96, 48, "%48", "%49", "%50", "%51", "%52", "%53", "%54", "%55")
MLA_WGMMA_SIZE(112, 56, "%56", "%57", "%58", "%59", "%60", "%61", "%62", "%63")
MLA_WGMMA_SIZE(128, 64, "%64", "%65", "%66", "%67", "%68", "%69", "%70", "%71")
MLA_WGMMA_SIZE(144, 72, "%72", "%73", "%74", "%75", "%76", "%77", "%78", "%79")
MLA_WGMMA_SIZE(160, 80, "%80", "%81", "%82", "%83", "%84", "%85", "%86", "%87")
MLA_WGMMA_SIZE(176, 88, "%88", "%89", "%90", "%91", "%92", "%93", "%94", "%95")
MLA_WGMMA_SIZE(192, 96, "%96", "%97", "%98", "%99", "%100", "%101", "%102", "%103")
MLA_WGMMA_SIZE(208, 104, "%104", "%105", "%106", "%107", "%108", "%109", "%110", "%111")
MLA_WGMMA_SIZE(224, 112, "%112", "%113", "%114", "%115", "%116", "%117", "%118", "%119")
MLA_WGMMA_SIZE(240, 120, "%120", "%121", "%122", "%123", "%124", "%125", "%126", "%127")
MLA_WGMMA_SIZE(256, 128, "%128", "%129", "%130", "%131", "%132", "%133", "%134", "%135")
/* clang-format on */
#undef MLA_WGMMA_SIZE
#undef MLA_WGMMA
#endif

/* Both operands in shared memory. TRANS: the operand is MN-major (16-bit types only). */
template <class T, int N, int TRANS_A = 0, int TRANS_B = 0>
__device__ __forceinline__ void wgmma_ss(float (&d)[N / 2], u64 a, u64 b, bool accumulate MLA_AT)
{
    static_assert(operand_type_of<T>::bytes == 2 || (TRANS_A == 0 && TRANS_B == 0),
                  "wgmma: 8-bit operands are K-major");
#ifdef MLA_MODEL
    model_wgmma_ss(d, N, operand_type_of<T>::value, a, b, TRANS_A, TRANS_B, accumulate, at);
#else
    wgmma_ss_issue<T, TRANS_A, TRANS_B>(d, a, b, accumulate);
#endif
}

/* A in registers, which stay as they are until the wait. */
template <class T, int N, int TRANS_B = 0>
__device__ __forceinline__ void wgmma_rs(float (&d)[N / 2], const u32 (&a)[4], u64 b,
                                         bool accumulate MLA_AT)
{
    static_assert(operand_type_of<T>::bytes == 2 || TRANS_B == 0,
                  "wgmma: 8-bit operands are K-major");
#ifdef MLA_MODEL
    model_wgmma_rs(d, N, operand_type_of<T>::value, a, b, TRANS_B, accumulate, at);
#else
    wgmma_rs_issue<T, TRANS_B>(d, a, b, accumulate);
#endif
}

#endif
