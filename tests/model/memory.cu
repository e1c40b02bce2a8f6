/* SPDX-License-Identifier: Apache-2.0 */
/* Order around tensor memory: one small attention-like chain (S = A B^T, P = S / 64 back into
 * tensor memory, O = P V), right, and with one mistake at a time. */
#include "harness.h"
#include "tests.h"

#include "element.cuh"
#include "ptx/launch.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/shared.cuh"
#include "ptx/tcgen05.cuh"
#include "ptx/warp.cuh"

#include <string.h>

/* The mistakes. */
enum {
    NO_PROXY_FENCE = 1,
    NO_FENCE_AFTER_COMMIT,
    NO_COMMIT_WAIT,
    NO_WAIT_LD,
    NO_WAIT_ST,
    NO_FENCE_BEFORE,
    NO_FENCE_AFTER_ARRIVE,
    COMMIT_BY_ANOTHER,
    HOPPER_DESCRIPTOR,
    SWIZZLE_CODE,
    N_TOO_LARGE,
    N_STEP,
    M_ILLEGAL,
    TYPES_MIXED,
    NEGATED,
    D_OF_F16,
    A_LANE,
    TRANSPOSED_A_IN_TMEM,
    ACCUMULATE_ON_NOTHING,
    D_BEYOND,
    D_NOT_ALLOCATED,
    LANE_OF_ANOTHER_WARP,
    LANE_ODD,
    LD_UNWRITTEN,
    LD_ADDRESSES_DIFFER,
    GROUPS_MIXED,
    LEAK,
    ALLOC_48,
    ALLOC_AFTER_RELINQUISH,
    ALLOC_GROWS,
    ALLOC_TOO_MANY,
    DEALLOC_OTHER,
    NEVER_COMMITTED,
    OVERWRITES_LOADING,
    OPERAND_OVERWRITTEN,
    OPERAND_UNWRITTEN,
    OPERAND_OUTSIDE,
    TWO_ISSUERS,
    NEVER_WAITED_LD,
    NEVER_WAITED_ST,
    REGISTER_WRITTEN,
    DEALLOC_EARLY,
    A_OVERLAPS_D,
    D_LANE,
    ST_OVER_MMA_OPERAND,
    S_OVERWRITTEN_UNFENCED,
    OTHER_SHAPE_SAME_D,
    GROUP_2_ALONE
};

/* shared memory */
static const u32 TAKEN = 0, FILLED = 8, S_DONE = 16, P_READY = 24, O_DONE = 32, AGAIN = 40,
                 SLOT = 64, A = 1024, B = A + 128 * 128, V = B + 64 * 128;
static const u32 ISSUER = 131;
static const int N = 64, KEYS = 64, DIM = 64;

static __device__ void fill_k_major(u32 base, u32 which, u32 rows)
{
    for (u32 i = threadIdx.x; i < rows * 32; i += 128) {
        u32 row = i / 32, k = i % 32 * 2;
        u32 place = row * 128 + k * 2;
        place ^= (row & 7) << 4;
        st_shared<u32>(base + place, test_bf16(test_value(which, row, k)) |
                                         test_bf16(test_value(which, row, k + 1)) << 16);
    }
}

/* Warps 0 to 3 fill, read S, write P, read O; warp 4 allocates and issues. */
__global__ void __launch_bounds__(160) chain(const __grid_constant__ test_args args)
{
    int wrong = args.wrong;
    u32 base = dynamic_smem(), warp = threadIdx.x / 32, lanes = warp << 21;
    if (threadIdx.x == 0) {
        mbarrier_init(base + FILLED, 128);
        mbarrier_init(base + S_DONE, 1);
        mbarrier_init(base + P_READY, 128);
        mbarrier_init(base + O_DONE, 1);
        mbarrier_init(base + AGAIN, 1);
        mbarrier_init(base + TAKEN, 128);
        fence_mbarrier_init();
    }
    if (warp == 4) {
        if (wrong == ALLOC_48)
            tcgen05_alloc<1>(base + SLOT, 48);
        if (wrong == GROUP_2_ALONE)
            tcgen05_alloc<2>(base + SLOT, 256);
        tcgen05_alloc<1>(base + SLOT, 256);
        if (wrong == ALLOC_GROWS)
            tcgen05_alloc<1>(base + SLOT + 4, 512);
        if (wrong == ALLOC_TOO_MANY) {
            tcgen05_alloc<1>(base + SLOT + 4, 256);
            tcgen05_alloc<1>(base + SLOT + 4, 32);
        }
        tcgen05_relinquish<1>();
        if (wrong == ALLOC_AFTER_RELINQUISH)
            tcgen05_alloc<1>(base + SLOT + 4, 32);
    }
    __syncthreads();
    u32 tmem = ld_shared<u32>(base + SLOT);
    u32 s = tmem, p = tmem + 64, o = tmem + 128;
    if (warp == 4) {
        u32 id_s = umma_idesc(128, N, OPERAND_BF16, OPERAND_BF16, OPERAND_F32, false, false);
        u32 id_o = umma_idesc(128, DIM, OPERAND_BF16, OPERAND_BF16, OPERAND_F32, false, true);
        if (wrong == N_TOO_LARGE)
            id_s = umma_idesc(128, 272, OPERAND_BF16, OPERAND_BF16, OPERAND_F32, false, false);
        if (wrong == N_STEP)
            id_s = umma_idesc(128, 24, OPERAND_BF16, OPERAND_BF16, OPERAND_F32, false, false);
        if (wrong == M_ILLEGAL)
            id_s = umma_idesc(96, N, OPERAND_BF16, OPERAND_BF16, OPERAND_F32, false, false);
        if (wrong == TYPES_MIXED)
            id_s = umma_idesc(128, N, OPERAND_F16, OPERAND_BF16, OPERAND_F32, false, false);
        if (wrong == NEGATED)
            id_s |= 1u << 13;
        if (wrong == D_OF_F16)
            id_s &= ~(3u << 4);
        if (wrong == TRANSPOSED_A_IN_TMEM)
            id_o |= 1u << 15;
        u64 a = umma_desc(base + A, 16, 1024, 128), b = umma_desc(base + B, 16, 1024, 128);
        u64 v = umma_desc(base + V, KEYS * 128, 1024, 128);
        if (wrong == HOPPER_DESCRIPTOR)
            a &= ~((u64)1 << 46);
        if (wrong == SWIZZLE_CODE)
            a = (a & ~((u64)7 << 61)) | (u64)3 << 61;
        if (wrong == OPERAND_OUTSIDE)
            b = umma_desc(base + (200 << 10) - 1024, 16, 1024, 128);
        if (wrong == COMMIT_BY_ANOTHER && threadIdx.x == 159)
            tcgen05_commit<1>(base + S_DONE);
        if (wrong == TWO_ISSUERS && threadIdx.x == 140) {
            mbarrier_wait(base + FILLED, 0);
            tcgen05_mma_ss<1, KIND_F16>(s, a, b, id_s, false);
        }
        if (threadIdx.x == ISSUER) {
            mbarrier_wait(base + FILLED, 0);
            for (u32 k = 0; k < 4; k++) {
                u32 d = s;
                if (wrong == D_BEYOND)
                    d = 480;
                if (wrong == D_NOT_ALLOCATED)
                    d = 256;
                if (wrong == D_LANE)
                    d += 16u << 16;
                tcgen05_mma_ss<1, KIND_F16>(d, a + 2 * k, b + 2 * k, id_s,
                                            k > 0 || wrong == ACCUMULATE_ON_NOTHING);
            }
            if (wrong == OTHER_SHAPE_SAME_D)
                tcgen05_mma_ss<1, KIND_F16>(s, a, b,
                                            umma_idesc(128, 32, OPERAND_BF16, OPERAND_BF16,
                                                       OPERAND_F32, false, false),
                                            true);
            if (wrong == OPERAND_OVERWRITTEN)
                st_shared<u32>(base + A, 0);
            if (wrong == GROUPS_MIXED)
                tcgen05_commit<2>(base + S_DONE);
            if (wrong != COMMIT_BY_ANOTHER)
                tcgen05_commit<1>(base + S_DONE);
            if (wrong == OVERWRITES_LOADING) { /* "free" before the loads are done */
                mbarrier_wait(base + TAKEN, 0);
                tcgen05_fence_after();
                tcgen05_mma_ss<1, KIND_F16>(s, a, b, id_s, false);
            }
            mbarrier_wait(base + P_READY, 0);
            if (wrong != NO_FENCE_AFTER_ARRIVE)
                tcgen05_fence_after();
            for (u32 k = 0; k < 4; k++) {
                u32 from = p + 8 * k;
                if (wrong == A_OVERLAPS_D)
                    from = o + 8 * k;
                if (wrong == A_LANE)
                    from += 32u << 16;
                tcgen05_mma_ts<1, KIND_F16>(o, from, v + 128 * k, id_o, k > 0);
            }
            if (wrong != NEVER_COMMITTED)
                tcgen05_commit<1>(base + O_DONE);
        }
        __syncwarp();
    } else {
        if (wrong != OPERAND_UNWRITTEN)
            fill_k_major(base + A, 0, 128);
        fill_k_major(base + B, 1, 64);
        fill_k_major(base + V, 2, 64);
        if (wrong != NO_PROXY_FENCE)
            fence_proxy_async();
        mbarrier_arrive(base + FILLED);
        if (wrong != NO_COMMIT_WAIT)
            mbarrier_wait(base + S_DONE, 0);
        if (wrong != NO_FENCE_AFTER_COMMIT)
            tcgen05_fence_after();
        u32 r[N], packed[N / 2];
        u32 from = s + lanes;
        if (wrong == LANE_OF_ANOTHER_WARP)
            from = s + ((warp ^ 1) << 21) + (32u << 16);
        if (wrong == LANE_ODD)
            from = s + lanes + (8u << 16);
        if (wrong == LD_UNWRITTEN)
            from = o + lanes;
        if (wrong == LD_ADDRESSES_DIFFER)
            from += threadIdx.x & 1;
        tcgen05_ld_32x32b(r, from);
        if (wrong == OVERWRITES_LOADING)
            mbarrier_arrive(base + TAKEN);
        if (wrong == REGISTER_WRITTEN)
            r[5] = 0;
        if (wrong != NO_WAIT_LD)
            tcgen05_wait_ld(r);
        for (int i = 0; i < N / 2; i++)
            packed[i] =
                bf16::pack(__uint_as_float(r[2 * i]) / 64, __uint_as_float(r[2 * i + 1]) / 64);
        if (wrong == NO_WAIT_LD)
            tcgen05_wait_ld(r);
        tcgen05_st_32x32b(p + lanes, packed);
        if (wrong != NO_WAIT_ST)
            tcgen05_wait_st();
        if (wrong != NO_FENCE_BEFORE)
            tcgen05_fence_before();
        mbarrier_arrive(base + P_READY);
        if (wrong == ST_OVER_MMA_OPERAND) {
            tcgen05_st_32x32b(p + lanes, packed);
            tcgen05_wait_st();
        }
        mbarrier_wait(base + O_DONE, 0);
        tcgen05_fence_after();
        tcgen05_ld_32x32b(r, o + lanes);
        tcgen05_wait_ld(r);
        for (int i = 0; i < DIM; i++)
            args.out[threadIdx.x * DIM + i] = r[i];
        if (wrong == NEVER_WAITED_LD)
            tcgen05_ld_32x32b(r, o + lanes);
        if (wrong == NEVER_WAITED_ST)
            tcgen05_st_32x32b(s + lanes, r);
        tcgen05_fence_before();
    }
    if (wrong == S_OVERWRITTEN_UNFENCED) { /* another tile without the fence after the barrier */
        __syncthreads();
        if (threadIdx.x == ISSUER) {
            u64 a = umma_desc(base + A, 16, 1024, 128), b = umma_desc(base + B, 16, 1024, 128);
            tcgen05_mma_ss<1, KIND_F16>(o, a, b,
                                        umma_idesc(128, N, OPERAND_BF16, OPERAND_BF16, OPERAND_F32,
                                                   false, false),
                                        false);
            tcgen05_commit<1>(base + AGAIN);
        }
        mbarrier_wait(base + AGAIN, 0);
    }
    if (wrong != DEALLOC_EARLY)
        __syncthreads();
    if (warp == 4 && wrong != LEAK) {
        if (wrong == DEALLOC_OTHER)
            tcgen05_dealloc<1>(tmem, 128);
        tcgen05_dealloc<1>(tmem, 256);
    }
}

static float rounded(float x)
{
    u32 bits;
    memcpy(&bits, &x, 4);
    bits = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000u;
    memcpy(&x, &bits, 4);
    return x;
}

static bool check_chain(const struct test_args *args)
{
    for (u32 m = 0; m < 128; m++) {
        float p[KEYS];
        for (u32 n = 0; n < (u32)KEYS; n++) {
            float s = 0;
            for (u32 k = 0; k < 64; k++)
                s += (float)(test_value(0, m, k) * test_value(1, n, k));
            p[n] = rounded(s / 64);
        }
        for (u32 d = 0; d < (u32)DIM; d++) {
            float o = 0;
            for (u32 n = 0; n < (u32)KEYS; n++)
                o += p[n] * (float)test_value(2, n, d);
            float got;
            memcpy(&got, &args->out[m * DIM + d], 4);
            if (!(got == o)) /* sums of multiples of 2^-6 below 2^10: exact */
                return false;
        }
    }
    return true;
}

void test_tensor_memory(void)
{
    static const struct {
        int wrong;
        const char *name;
        enum test_when when;
        const char *text;
    } mistakes[] = {
        {NO_PROXY_FENCE, "no proxy fence", ALWAYS, "without a fence.proxy.async"},
        {NO_FENCE_AFTER_COMMIT, "no fence after the commit's wait", ALWAYS,
         "no tcgen05.fence::after_thread_sync here since an mma"},
        {NO_COMMIT_WAIT, "no wait for the commit", LATE, "tcgen05.ld.32x32b: "},
        {NO_WAIT_ST, "no wait::st", ALWAYS, "tcgen05.wait::st yet"},
        {NO_FENCE_BEFORE, "no fence before the arrive", ALWAYS,
         "has not executed tcgen05.fence::before_thread_sync since its st"},
        {NO_FENCE_AFTER_ARRIVE, "no fence after the arrive's wait", ALWAYS,
         "no tcgen05.fence::after_thread_sync here since the st of warp"},
        {COMMIT_BY_ANOTHER, "commit by another thread", ALWAYS, "issued no mma"},
        {HOPPER_DESCRIPTOR, "descriptor without bit 46", ALWAYS, "bits 46 to 48: got 0, want 1"},
        {SWIZZLE_CODE, "swizzle code of another kind", ALWAYS, "swizzle code: got 3"},
        {N_TOO_LARGE, "N 272", ALWAYS, "N: got 272"},
        {N_STEP, "N 24", ALWAYS, "N: got 24"},
        {M_ILLEGAL, "M 96", ALWAYS, "M: got 96"},
        {TYPES_MIXED, "f16 by bf16", ALWAYS, "types of A and B: got 0 and 1"},
        {NEGATED, "negated A", ALWAYS, "want 0"},
        {D_OF_F16, "D of f16", ALWAYS, "D's type: got 0"},
        {A_LANE, "A at other lanes than D", ALWAYS, "lane of A: got 32"},
        {TRANSPOSED_A_IN_TMEM, "A in tensor memory, MN-major", ALWAYS, "want K-major"},
        {ACCUMULATE_ON_NOTHING, "accumulates on nothing", ALWAYS, "was never written"},
        {D_BEYOND, "columns beyond 512", ALWAYS, "tensor memory has columns 0 to 511"},
        {D_NOT_ALLOCATED, "columns not allocated", ALWAYS, "is not allocated"},
        {D_LANE, "D at lane 16 with M 128", ALWAYS, "lane of D: got 16"},
        {LANE_OF_ANOTHER_WARP, "lanes of another warp", ALWAYS, "reaches lanes"},
        {LANE_ODD, "lane 8", ALWAYS, "want a multiple of 32"},
        {LD_UNWRITTEN, "loads what nobody wrote", ALWAYS, "was never written"},
        {LD_ADDRESSES_DIFFER, "one address a lane", ALWAYS, "want one"},
        {GROUPS_MIXED, "both CTA groups", ALWAYS, "cta_group::2 in a kernel that has used"},
        {GROUP_2_ALONE, "CTA group 2 without a peer", ALWAYS, "the cluster has no CTA 1"},
        {LEAK, "no dealloc", ALWAYS, "were never deallocated"},
        {ALLOC_48, "48 columns", ALWAYS, "columns: got 48"},
        {ALLOC_AFTER_RELINQUISH, "alloc after relinquish", ALWAYS, "after tcgen05.relinquish"},
        {ALLOC_GROWS, "a larger second alloc", ALWAYS, "want no increase"},
        {ALLOC_TOO_MANY, "more than 512 columns", ALWAYS, "would wait for ever"},
        {DEALLOC_OTHER, "dealloc of another size", ALWAYS, "no such allocation"},
        {DEALLOC_EARLY, "dealloc while in use", LATE, "tcgen05.dealloc"},
        {NEVER_COMMITTED, "never committed", ALWAYS, "wait"},
        {OVERWRITES_LOADING, "overwrites what is being loaded", ALWAYS, "tcgen05.mma: D: lanes"},
        {OPERAND_OVERWRITTEN, "operand overwritten", LATE, "still under way"},
        {OPERAND_UNWRITTEN, "operand never written", ALWAYS, "which nobody has written"},
        {OPERAND_OUTSIDE, "operand outside shared memory", ALWAYS, "outside the block's shared"},
        {TWO_ISSUERS, "two issuing threads", LATE, "issued by another thread"},
        {NEVER_WAITED_LD, "exits without wait::ld", ALWAYS, "tcgen05.wait::ld"},
        {NEVER_WAITED_ST, "exits without wait::st", ALWAYS, "tcgen05.wait::st"},
        {REGISTER_WRITTEN, "register written before wait::ld", ALWAYS,
         "was written before tcgen05.wait::ld"},
        {A_OVERLAPS_D, "A overlaps D", ALWAYS, "overlaps D"},
        {ST_OVER_MMA_OPERAND, "P overwritten while read", LATE, "column 64 of CTA 0"},
        {S_OVERWRITTEN_UNFENCED, "next tile without a fence", ALWAYS,
         "no tcgen05.fence::after_thread_sync here since"},
        {OTHER_SHAPE_SAME_D, "another shape on the same D", LATE, "of another shape or kind"},
    };
    struct test_launch launch = {mla_kernel_address(chain), 1, 1, 160, 100};
    struct test_args args;
    memset(&args, 0, sizeof args);
    test_right("tensor memory: chain", &launch, &args, check_chain);
    for (size_t i = 0; i < sizeof mistakes / sizeof *mistakes; i++) {
        args.wrong = mistakes[i].wrong;
        test_wrong(mistakes[i].name, &launch, &args, mistakes[i].when, mistakes[i].text);
    }
    args.wrong = NO_WAIT_LD;
    test_spoilt("no wait::ld before use", &launch, &args, check_chain);
    args.wrong = 0;
    launch.sm = 90;
    test_wrong("tcgen05 on sm_90", &launch, &args, ALWAYS, "the modelled GPU is sm_90");
}
