/* SPDX-License-Identifier: Apache-2.0 */
/* Warps: mma.sync and ldmatrix, shuffles and votes, elect, conversions. */
#include "conformance.h"

#include "element.cuh"
#include "ptx/convert.cuh"
#include "ptx/launch.cuh"
#include "ptx/mma_sync.cuh"
#include "ptx/shared.cuh"
#include "ptx/warp.cuh"

#include <string.h>

/* -3 to 3, two of them */
template <class T> static __device__ u32 two(u32 seed)
{
    u32 h = hash32(seed);
    return T::pack((float)((int)(h % 7) - 3), (float)((int)(h / 7 % 7) - 3));
}

template <class T>
__global__ void __launch_bounds__(32) mma(const __grid_constant__ conform_args args)
{
    u32 t = threadIdx.x;
    for (u32 round = 0; round < 4; round++) {
        u32 a[4];
        float c[4];
        for (u32 i = 0; i < 4; i++) {
            a[i] = two<T>(t * 4 + i + round * 1000);
            c[i] = (float)((t * 4 + i) % 32);
        }
        T::mma(c, a, two<T>(t + 5000 + round), two<T>(t + 9000 + round));
        for (u32 i = 0; i < 4; i++)
            args.out[(round * 32 + t) * 4 + i] = __float_as_uint(c[i]);
    }
}

__global__ void __launch_bounds__(32) matrices(const __grid_constant__ conform_args args)
{
    u32 base = dynamic_smem(), t = threadIdx.x;
    for (u32 i = t; i < 2048; i += 32)
        st_shared<u32>(base + 4 * i, hash32(i));
    __syncwarp();
    for (u32 round = 0; round < 4; round++) {
        u32 r[4], s[4], address = base + 16 * (hash32(t + 32 * round) % 512);
        ldmatrix_x4(r, address);
        ldmatrix_x4_trans(s, address);
        for (u32 i = 0; i < 4; i++) {
            args.out[(round * 32 + t) * 8 + i] = r[i];
            args.out[(round * 32 + t) * 8 + 4 + i] = s[i];
        }
    }
}

__global__ void __launch_bounds__(64) collectives(const __grid_constant__ conform_args args)
{
    u32 t = threadIdx.x, lane = t % 32, v = hash32(t);
    u32 *out = args.out + t * 16;
    out[0] = __shfl_sync(0xFFFFFFFFu, v, (int)(lane * 5 % 32));
    out[1] = __shfl_xor_sync(0xFFFFFFFFu, v, 9);
    out[2] = __shfl_down_sync(0xFFFFFFFFu, v, 3);
    out[3] = __shfl_up_sync(0xFFFFFFFFu, v, 5);
    out[4] = __ballot_sync(0xFFFFFFFFu, v & 1);
    out[5] = (u32)__any_sync(0xFFFFFFFFu, lane == 40);
    u32 leaders = __ballot_sync(0xFFFFFFFFu, elect_one());
    out[6] = leaders != 0 && (leaders & (leaders - 1)) == 0; /* one, whichever */
    out[7] = warp_index();
    out[8] = __shfl_xor_sync(0xFFFFFFFFu, v, 4, 8);
    out[9] = __shfl_sync(0xFFFFFFFFu, v, 3, 16);
    out[10] = lane < 20 ? __ballot_sync(0xFFFFFu, v & 2) : 0;
    for (u32 i = 11; i < 16; i++)
        out[i] = 0;
}

/* Every f16 bit pattern and many floats through the conversions. */
__global__ void __launch_bounds__(128) conversions(const __grid_constant__ conform_args args)
{
    u32 t = blockIdx.x * blockDim.x + threadIdx.x;
    u32 sums[4] = {0, 0, 0, 0};
    for (u32 i = 0; i < 64; i++) {
        u32 h = hash32(t * 64 + i);
        /* exponents near the formats' ranges */
        u32 low_bits = (h & 0x807FFFFF) | (100 + hash32(h) % 44) << 23;
        u32 high_bits = (hash32(h + 1) & 0x80700000) | (112 + h % 26) << 23;
        float low = __uint_as_float(low_bits), high = __uint_as_float(high_bits);
        sums[0] = sums[0] * 31 + cvt_rn_bf16x2_f32(low, high);
        sums[1] = sums[1] * 31 + cvt_rn_f16x2_f32(low, high);
        sums[2] = sums[2] * 31 + cvt_rn_satfinite_e4m3x2_f32(low, high);
        u32 codes = i * 1024 + t; /* the 256 codes in both places */
        u32 wide = cvt_rn_f16x2_e4m3x2((uint16_t)(codes & 0x7F7F) == 0x7F7F ? 0 : (uint16_t)codes);
        /* a NaN's payload is not part of the answer */
        if ((wide & 0x7FFF) > 0x7C00)
            wide = (wide & 0xFFFF0000) | 0x7FFF;
        if ((wide >> 16 & 0x7FFF) > 0x7C00)
            wide = (wide & 0xFFFF) | 0x7FFF0000;
        sums[3] = sums[3] * 31 + wide;
    }
    for (u32 i = 0; i < 4; i++)
        args.out[t * 4 + i] = sums[i];
}

void conform_warp(void)
{
    struct conform_args args;
    memset(&args, 0, sizeof args);
    conform_run("mma.sync bf16", mla_kernel_address(mma<bf16>), 1, 1, 32, &args, 512);
    conform_run("mma.sync f16", mla_kernel_address(mma<f16>), 1, 1, 32, &args, 512);
    conform_run("ldmatrix", mla_kernel_address(matrices), 1, 1, 32, &args, 1024);
    conform_run("collectives", mla_kernel_address(collectives), 1, 1, 64, &args, 1024);
    conform_run("conversions", mla_kernel_address(conversions), 8, 1, 128, &args, 4096);
}
