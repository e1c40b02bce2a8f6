/* SPDX-License-Identifier: Apache-2.0 */
/* wgmma against shared memory full of small integers: descriptors (swizzle, majorness, offsets,
 * starts inside an atom), types, sizes, A in registers, accumulation. */
#include "conformance.h"

#include "element.cuh"
#include "ptx/launch.cuh"
#include "ptx/shared.cuh"
#include "ptx/wgmma.cuh"

#include <stdio.h>
#include <string.h>

static const u32 A_BYTES = 80 << 10, B_BYTES = 112 << 10;

/* -3 to 3 in the type */
template <class T> static __device__ u32 encode(u32 h)
{
    int v = (int)(h % 7) - 3;
    u32 sign = v < 0, m = (u32)(v < 0 ? -v : v);
    if (operand_type_of<T>::value == OPERAND_BF16)
        return sign << 15 | (m == 0 ? 0 : m == 1 ? 0x3F80 : m == 2 ? 0x4000 : 0x4040);
    if (operand_type_of<T>::value == OPERAND_F16)
        return sign << 15 | (m == 0 ? 0 : m == 1 ? 0x3C00 : m == 2 ? 0x4000 : 0x4200);
    return sign << 7 | (m == 0 ? 0 : m == 1 ? 0x38 : m == 2 ? 0x40 : 0x44);
}

template <class T> static __device__ u32 word_of(u32 seed)
{
    u32 h = hash32(seed);
    if (operand_type_of<T>::bytes == 2)
        return encode<T>(h & 0xFFFF) | encode<T>(h >> 16) << 16;
    return encode<T>(h & 0xFF) | encode<T>(h >> 8 & 0xFF) << 8 | encode<T>(h >> 16 & 0xFF) << 16 |
           encode<T>(h >> 24) << 24;
}

template <class T> static __device__ void fill(u32 base, u32 bytes)
{
    for (u32 i = threadIdx.x; i < bytes / 4; i += blockDim.x)
        st_shared<u32>(base + 4 * i, word_of<T>(i));
    fence_proxy_async();
    __syncthreads();
}

/* p: 0 offset of A, 1 LBO, 2 SBO, 3 swizzle, 4 to 7 the same of B, 8 steps of k, 9 bytes A advances
 * a step, 10 those of B, 11 whether D starts from numbers. */
template <class T, int N, int TRANS_A, int TRANS_B, bool REGISTERS>
__global__ void __launch_bounds__(128) multiply(const __grid_constant__ conform_args args)
{
    const uint64_t *p = args.p;
    u32 base = dynamic_smem();
    fill<T>(base, A_BYTES + B_BYTES);
    u64 a = wgmma_desc(base + (u32)p[0], (u32)p[1], (u32)p[2], (int)p[3]);
    u64 b = wgmma_desc(base + A_BYTES + (u32)p[4], (u32)p[5], (u32)p[6], (int)p[7]);
    float d[N / 2];
#pragma unroll
    for (int i = 0; i < N / 2; i++)
        d[i] = p[11] ? (float)((int)(threadIdx.x * 5 + (u32)i * 3) % 64) : 0;
    u32 r[4];
    for (int i = 0; i < 4; i++)
        r[i] = word_of<T>(threadIdx.x * 4 + (u32)i + 1000000);
    wgmma_bind(d);
    wgmma_bind(r);
    wgmma_fence();
#pragma unroll 1
    for (u32 k = 0; k < (u32)p[8]; k++) {
        if (REGISTERS)
            wgmma_rs<T, N, TRANS_B>(d, r, desc_advance(b, k * (u32)p[10]), p[11] || k > 0);
        else
            wgmma_ss<T, N, TRANS_A, TRANS_B>(d, desc_advance(a, k * (u32)p[9]),
                                             desc_advance(b, k * (u32)p[10]), p[11] || k > 0);
    }
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_bind(d);
#pragma unroll
    for (int i = 0; i < N / 2; i++)
        args.out[threadIdx.x * (N / 2) + i] = __float_as_uint(d[i]);
}

struct operand {
    u32 leading, stride;
};

/* Offsets that differ from each other and from the packed layout's. */
static struct operand spread(int swizzle, int trans, u32 gap)
{
    u32 atom = swizzle ? 8 * (u32)swizzle : 128;
    struct operand o;
    if (trans == 0) {
        o.leading = swizzle ? 16 : 2048 + 128 * gap;
        o.stride = atom * (1 + gap);
    } else if (swizzle) {
        o.leading = atom * (4 + gap);
        o.stride = atom * (1 + gap);
    } else {
        o.leading = 6144 + 128 * gap;
        o.stride = 128 * (1 + gap);
    }
    return o;
}

template <int TRANS_A, int TRANS_B> static void majorness(void)
{
    static const int swizzles[4] = {0, 32, 64, 128};
    for (int s = 0; s < 4; s++)
        for (int start = 0; start < 6; start++) {
            int swizzle = swizzles[s];
            u32 atom = swizzle ? 8 * (u32)swizzle : 128;
            u32 starts[6] = {0, 32, 64, 96, 128, 3 * atom};
            struct operand a = spread(swizzle, TRANS_A, 1), b = spread(swizzle, TRANS_B, 2);
            struct conform_args args;
            memset(&args, 0, sizeof args);
            uint64_t p[12] = {starts[start],
                              a.leading,
                              a.stride,
                              (u64)swizzle,
                              starts[start],
                              b.leading,
                              b.stride,
                              (u64)swizzle,
                              1,
                              0,
                              0,
                              0};
            memcpy(args.p, p, sizeof p);
            char name[80];
            snprintf(name, sizeof name, "wgmma bf16 n64 %c%c swizzle %d start %u",
                     TRANS_A ? 'm' : 'k', TRANS_B ? 'n' : 'k', swizzle, starts[start]);
            conform_run(name, mla_kernel_address(multiply<bf16, 64, TRANS_A, TRANS_B, false>), 1, 1,
                        128, &args, 64 * 64);
        }
}

/* K-major tiles of 128 bytes of k, swizzled, as kernels use them: four steps of 32 bytes. */
template <class T, int N> static void sizes(const char *type)
{
    for (int start = 0; start < 2; start++) {
        struct conform_args args;
        memset(&args, 0, sizeof args);
        uint64_t p[12] = {0, 16, 1024, 128, 1024, 16, 1024, 128, 4, 32, 32, (u64)start};
        memcpy(args.p, p, sizeof p);
        char name[80];
        snprintf(name, sizeof name, "wgmma %s n%d kk steps 4%s", type, N,
                 start ? " accumulating" : "");
        conform_run(name, mla_kernel_address(multiply<T, N, 0, 0, false>), 1, 1, 128, &args,
                    64 * N);
    }
}

template <class T> static void all_sizes(const char *type)
{
    sizes<T, 8>(type);
    sizes<T, 16>(type);
    sizes<T, 24>(type);
    sizes<T, 32>(type);
    sizes<T, 64>(type);
    sizes<T, 96>(type);
    sizes<T, 128>(type);
    sizes<T, 192>(type);
    sizes<T, 256>(type);
}

/* A value tile [tokens x dims] read across: k = token, n = dim, chunks of 64 dims. */
template <class T, int N, bool REGISTERS> static void values(const char *type, u32 tokens)
{
    struct conform_args args;
    memset(&args, 0, sizeof args);
    uint64_t p[12] = {0, 16, 1024, 128, 0, tokens * 128, 1024, 128, tokens / 16, 32, 2048, 0};
    memcpy(args.p, p, sizeof p);
    char name[80];
    snprintf(name, sizeof name, "wgmma %s n%d %s values, %u tokens", type, N,
             REGISTERS ? "rs" : "ss", tokens);
    conform_run(name, mla_kernel_address(multiply<T, N, 0, 1, REGISTERS>), 1, 1, 128, &args,
                64 * N);
}

template <class T> static void registers(const char *type)
{
    struct conform_args args;
    memset(&args, 0, sizeof args);
    uint64_t p[12] = {0, 0, 0, 0, 0, 16, 1024, 128, 1, 0, 0, 1};
    memcpy(args.p, p, sizeof p);
    char name[80];
    snprintf(name, sizeof name, "wgmma %s n64 rs fragment", type);
    conform_run(name, mla_kernel_address(multiply<T, 64, 0, 0, true>), 1, 1, 128, &args, 64 * 64);
}

/* Each operand with its own swizzle, and offsets that are no multiple of the atom. */
static void mixed(void)
{
    static const int pairs[6][2] = {{128, 0}, {0, 128}, {64, 128}, {128, 32}, {32, 64}, {64, 0}};
    for (int i = 0; i < 6; i++) {
        struct operand a = spread(pairs[i][0], 0, 0), b = spread(pairs[i][1], 0, 0);
        struct conform_args args;
        memset(&args, 0, sizeof args);
        uint64_t p[12] = {0, a.leading, a.stride, (u64)pairs[i][0],
                          0, b.leading, b.stride, (u64)pairs[i][1],
                          1, 0,         0,        0};
        memcpy(args.p, p, sizeof p);
        char name[80];
        snprintf(name, sizeof name, "wgmma bf16 n64 kk swizzles %d and %d", pairs[i][0],
                 pairs[i][1]);
        conform_run(name, mla_kernel_address(multiply<bf16, 64, 0, 0, false>), 1, 1, 128, &args,
                    64 * 64);
    }
    static const u32 strides[3] = {1024 + 128, 1024 + 384, 2048 + 16};
    for (int i = 0; i < 3; i++) {
        struct conform_args args;
        memset(&args, 0, sizeof args);
        uint64_t p[12] = {0, 16, strides[i], 128, 0, 16, strides[i], 128, 1, 0, 0, 0};
        memcpy(args.p, p, sizeof p);
        char name[80];
        snprintf(name, sizeof name, "wgmma bf16 n64 kk swizzle 128 stride %u", strides[i]);
        conform_run(name, mla_kernel_address(multiply<bf16, 64, 0, 0, false>), 1, 1, 128, &args,
                    64 * 64);
    }
}

void conform_wgmma(void)
{
    majorness<0, 0>();
    majorness<0, 1>();
    majorness<1, 0>();
    majorness<1, 1>();
    all_sizes<bf16>("bf16");
    all_sizes<f16>("f16");
    all_sizes<e4m3>("e4m3");
    values<bf16, 128, false>("bf16", 64);
    values<bf16, 256, false>("bf16", 64);
    values<f16, 192, false>("f16", 32);
    values<bf16, 128, true>("bf16", 64);
    values<f16, 256, true>("f16", 64);
    registers<bf16>("bf16");
    registers<f16>("f16");
    registers<e4m3>("e4m3");
    mixed();
}
