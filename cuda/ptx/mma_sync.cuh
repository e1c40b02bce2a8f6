/* SPDX-License-Identifier: Apache-2.0 */
/* mma.sync m16n8k16 and ldmatrix (sm_80 and later). Fragments of one warp, g = lane / 4 and
 * t = lane % 4: A (16 x 16) a0 = [g][2t..], a1 = [g+8][2t..], a2 = [g][2t+8..], a3 = [g+8][2t+8..];
 * B (16 x 8) b0 = [2t..][g], b1 = [2t+8..][g]; C and D (16 x 8) c0, c1 = [g][2t, 2t+1], c2, c3 the
 * same of row g+8. */
#ifndef MLA_CUDA_PTX_MMA_SYNC_CUH
#define MLA_CUDA_PTX_MMA_SYNC_CUH

#include "at.cuh"

__device__ __forceinline__ void mma_m16n8k16_bf16(float c[4], const uint32_t a[4], uint32_t b0,
                                                  uint32_t b1 MLA_AT)
{
#ifdef MLA_MODEL
    model_mma_m16n8k16(c, a, b0, b1, true, at);
#else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, "
        "{%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

__device__ __forceinline__ void mma_m16n8k16_f16(float c[4], const uint32_t a[4], uint32_t b0,
                                                 uint32_t b1 MLA_AT)
{
#ifdef MLA_MODEL
    model_mma_m16n8k16(c, a, b0, b1, false, at);
#else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, "
        "{%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

/* Four 8 x 8 matrices of 16-bit values; lane i gives the address of row i % 8 of matrix i / 8. Each
 * lane receives [g][2t, 2t+1] of every matrix. */
__device__ __forceinline__ void ldmatrix_x4(uint32_t r[4], uint32_t smem MLA_AT)
{
#ifdef MLA_MODEL
    model_ldmatrix_x4(r, smem, false, at);
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(smem)
                 : "memory");
#endif
}

/* The same, each matrix transposed: lane receives [2t, 2t+1][g]. */
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t r[4], uint32_t smem MLA_AT)
{
#ifdef MLA_MODEL
    model_ldmatrix_x4(r, smem, true, at);
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(smem)
                 : "memory");
#endif
}

#endif
