/* SPDX-License-Identifier: Apache-2.0 */
/* wgmma: a product of two groups in flight, right, and with one mistake at a time. */
#include "harness.h"
#include "tests.h"

#include "element.cuh"
#include "ptx/launch.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/shared.cuh"
#include "ptx/wgmma.cuh"

#include <string.h>

enum {
    NO_FENCE = 1,
    NO_FENCE_AGAIN,
    NO_FENCE_REGISTERS,
    NO_WAIT,
    WAIT_TOO_FEW,
    NEVER_WAITED,
    NEVER_COMMITTED,
    D_WRITTEN,
    NO_PROXY_FENCE,
    OPERAND_OVERWRITTEN,
    BLACKWELL_DESCRIPTOR,
    WARPS_DISAGREE,
    ONE_WARP_MISSING,
    ANOTHER_SHAPE,
    OUTSIDE
};

static const u32 A = 1024, B = A + 64 * 128;

static __device__ void fill(u32 base, u32 which, u32 rows)
{
    for (u32 i = threadIdx.x; i < rows * 32; i += blockDim.x) {
        u32 row = i / 32, k = i % 32 * 2;
        st_shared<u32>(base + (i * 4 ^ (row & 7) << 4), test_bf16(test_value(which, row, k)) |
                                                            test_bf16(test_value(which, row, k + 1))
                                                                << 16);
    }
}

/* D0 = A B0^T and D1 = A B1^T, then D0 += R B0^T with R in registers. */
__global__ void __launch_bounds__(128) products(const __grid_constant__ test_args args)
{
    int wrong = args.wrong;
    u32 base = dynamic_smem(), warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    fill(base + A, 0, 64);
    fill(base + B, 1, 64);
    fill(base + B + 8192, 2, 64);
    if (wrong != NO_PROXY_FENCE)
        fence_proxy_async();
    __syncthreads();
    u64 a = wgmma_desc(base + A, 16, 1024, 128), b0 = wgmma_desc(base + B, 16, 1024, 128),
        b1 = wgmma_desc(base + B + 8192, 16, 1024, 128);
    if (wrong == BLACKWELL_DESCRIPTOR)
        a |= (u64)1 << 46;
    if (wrong == WARPS_DISAGREE && warp == 2)
        b0 += 2;
    if (wrong == OUTSIDE)
        b0 = wgmma_desc(base + (200 << 10) - 512, 16, 1024, 128);
    if (wrong == ONE_WARP_MISSING && warp == 3)
        return;
    float d0[32], d1[32];
    for (int i = 0; i < 32; i++)
        d0[i] = 0, d1[i] = 0;
    if (wrong != NO_FENCE)
        wgmma_fence();
    for (u32 k = 0; k < 4; k++)
        wgmma_ss<bf16, 64>(d0, desc_advance(a, 32 * k), desc_advance(b0, 32 * k), k > 0);
    if (wrong == ANOTHER_SHAPE)
        wgmma_ss<bf16, 32>(*(float(*)[16])d0, a, b0, true);
    wgmma_commit();
    if (wrong == D_WRITTEN)
        d1[3] = 1, d0[7] = 1;
    for (u32 k = 0; k < 4; k++)
        wgmma_ss<bf16, 64>(d1, desc_advance(a, 32 * k), desc_advance(b1, 32 * k), k > 0);
    if (wrong != NEVER_COMMITTED)
        wgmma_commit();
    if (wrong == OPERAND_OVERWRITTEN)
        fill(base + B + 8192, 2, 64);
    if (wrong == NO_WAIT)
        ;
    else if (wrong == WAIT_TOO_FEW)
        wgmma_wait<2>();
    else
        wgmma_wait<1>();
    wgmma_bind(d0);
    u32 r[4];
    for (int i = 0; i < 4; i++) {
        u32 row = warp * 16 + lane / 4 + 8 * (i & 1), k = lane % 4 * 2 + 8 * (i >> 1);
        r[i] = test_bf16(test_value(3, row, k)) | test_bf16(test_value(3, row, k + 1)) << 16;
    }
    float early = d0[0];
    if (wrong != NO_FENCE_AGAIN && wrong != NO_FENCE_REGISTERS)
        wgmma_fence();
    if (wrong == NO_FENCE_REGISTERS)
        wgmma_rs<bf16, 64>(d1, r, b0, true);
    wgmma_rs<bf16, 64>(d0, r, b0, true);
    wgmma_commit();
    if (wrong != NEVER_WAITED && wrong != NEVER_COMMITTED)
        wgmma_wait<0>();
    for (int i = 0; i < 32; i++) {
        u32 row = warp * 16 + lane / 4 + 8 * (u32)(i >> 1 & 1),
            n = 8 * (u32)(i / 4) + lane % 4 * 2 + (u32)(i & 1);
        args.out[row * 64 + n] = __float_as_uint(d0[i]);
        args.out[4096 + row * 64 + n] = __float_as_uint(d1[i]);
    }
    args.out[8192 + threadIdx.x] = __float_as_uint(early);
}

static bool check(const struct test_args *args)
{
    for (u32 m = 0; m < 64; m++)
        for (u32 n = 0; n < 64; n++) {
            float d0 = 0, d1 = 0, got;
            for (u32 k = 0; k < 64; k++) {
                d0 += (float)(test_value(0, m, k) * test_value(1, n, k));
                d1 += (float)(test_value(0, m, k) * test_value(2, n, k));
            }
            float early = d0;
            for (u32 k = 0; k < 16; k++)
                d0 += (float)(test_value(3, m, k) * test_value(1, n, k));
            memcpy(&got, &args->out[m * 64 + n], 4);
            if (got != d0)
                return false;
            memcpy(&got, &args->out[4096 + m * 64 + n], 4);
            if (got != d1)
                return false;
            memcpy(&got, &args->out[8192 + m / 16 * 32 + m % 8 * 4 + n % 8 / 2], 4);
            if (m % 16 < 8 && n < 8 && n % 2 == 0 && got != early)
                return false;
        }
    return true;
}

void test_wgmma(void)
{
    static const struct {
        int wrong;
        const char *name;
        enum test_when when;
        const char *text;
    } mistakes[] = {
        {NO_FENCE, "wgmma: no fence", ALWAYS, "no wgmma.fence before the first"},
        {NO_FENCE_AGAIN, "wgmma: no fence after the wait", ALWAYS, "without a wgmma.fence since"},
        {NO_FENCE_REGISTERS, "wgmma: no fence for A's registers", ALWAYS,
         "without a wgmma.fence since"},
        {NEVER_WAITED, "wgmma: never waited for", ALWAYS, "exit"},
        {NEVER_COMMITTED, "wgmma: never committed", ALWAYS, "exit"},
        {D_WRITTEN, "wgmma: D written under way", ALWAYS, "was written while wgmma was under way"},
        {NO_PROXY_FENCE, "wgmma: no proxy fence", ALWAYS, "without a fence.proxy.async"},
        {OPERAND_OVERWRITTEN, "wgmma: operand overwritten", LATE, "still under way"},
        {BLACKWELL_DESCRIPTOR, "wgmma: descriptor of tcgen05", ALWAYS, "bits 46 to 48: got 1"},
        {WARPS_DISAGREE, "wgmma: warps disagree", ALWAYS, "another warp of its warpgroup"},
        {ONE_WARP_MISSING, "wgmma: three warps", ALWAYS, "of its warpgroup"},
        {ANOTHER_SHAPE, "wgmma: D of another shape", ALWAYS, "of another shape"},
        {OUTSIDE, "wgmma: operand outside", ALWAYS, "outside the block's shared memory"},
    };
    struct test_launch launch = {mla_kernel_address(products), 1, 1, 128, 90};
    struct test_args args;
    memset(&args, 0, sizeof args);
    test_right("wgmma: products", &launch, &args, check);
    for (size_t i = 0; i < sizeof mistakes / sizeof *mistakes; i++) {
        args.wrong = mistakes[i].wrong;
        test_wrong(mistakes[i].name, &launch, &args, mistakes[i].when, mistakes[i].text);
    }
    args.wrong = NO_WAIT;
    test_spoilt("wgmma: D read without a wait", &launch, &args, check);
    args.wrong = WAIT_TOO_FEW;
    test_spoilt("wgmma: waits for one group too few", &launch, &args, check);
    args.wrong = 0;
    launch.sm = 100;
    test_wrong("wgmma on sm_100", &launch, &args, ALWAYS, "the modelled GPU is sm_100");
}
