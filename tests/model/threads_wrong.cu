/* SPDX-License-Identifier: Apache-2.0 */
/* Threads and shared memory used wrongly, one mistake at a time: each must end the launch with a
 * sentence that says what is wrong. */
#include "harness.h"
#include "tests.h"

#include "ptx/barrier.cuh"
#include "ptx/cluster.cuh"
#include "ptx/cp_async.cuh"
#include "ptx/launch.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/shared.cuh"
#include "ptx/tma.cuh"
#include "ptx/warp.cuh"

#include <cuda_runtime_api.h>
#include <stdlib.h>
#include <string.h>

/* name, when it shows, words of the report */
#define MISTAKES(X)                                                                                \
    X(READ_UNWRITTEN, ALWAYS, "which nobody has written")                                          \
    X(READ_HALF_WRITTEN, ALWAYS, "which nobody has written")                                       \
    X(READ_OUTSIDE, ALWAYS, "outside the 204800 bytes")                                            \
    X(WRITE_OUTSIDE, ALWAYS, "outside the 204800 bytes")                                           \
    X(WRITE_BELOW, ALWAYS, "outside the 204800 bytes")                                             \
    X(READ_MISALIGNED, ALWAYS, "no multiple of 16")                                                \
    X(OTHER_BLOCK, ALWAYS, "not in the own one")                                                   \
    X(NO_SUCH_BLOCK, ALWAYS, "of a cluster of 1")                                                  \
    X(MAPA_NO_SUCH, ALWAYS, "mapa: rank 2 of a cluster of 1")                                      \
    X(WRITE_A_BARRIER, ALWAYS, "belongs to an mbarrier")                                           \
    X(READ_A_BARRIER, ALWAYS, "belongs to an mbarrier")                                            \
    X(COPY_NOT_WAITED, LATE, "still under way, writes them")                                       \
    X(COPY_OVERWRITTEN, LATE, "still under way, writes them")                                      \
    X(COPY_TWICE, LATE, "still under way, writes them")                                            \
    X(COPY_WAITED_SHORT, LATE, "still under way, writes them")                                     \
    X(COPY_NOT_WAITED_AT_END, LATE, "exits while cp.async")                                        \
    X(COPY_MISALIGNED, ALWAYS, "no multiple of 16")                                                \
    X(COPY_TOO_VALID, ALWAYS, "17 valid bytes of 16")                                              \
    X(STORE_UNFENCED, ALWAYS, "without a fence.proxy.async since")                                 \
    X(STORE_FENCED_BY_OTHER, ALWAYS, "without a fence.proxy.async since")                          \
    X(STORE_FENCED_BEFORE, ALWAYS, "without a fence.proxy.async since")                            \
    X(STORE_COPY_UNFENCED, ALWAYS, "without a fence.proxy.async since")                            \
    X(STORE_OVERWRITTEN, LATE, "still under way, reads them")                                      \
    X(BARRIER_UNKNOWN_WAIT, ALWAYS, "no mbarrier has been initialised")                            \
    X(BARRIER_UNKNOWN_ARRIVE, ALWAYS, "no mbarrier has been initialised")                          \
    X(BARRIER_TWICE, ALWAYS, "is an mbarrier already")                                             \
    X(BARRIER_MISALIGNED, ALWAYS, "no multiple of 8")                                              \
    X(BARRIER_COUNT_0, ALWAYS, "count 0, want 1 to 2^20 - 1")                                      \
    X(BARRIER_PARITY, ALWAYS, "parity 2, want 0 or 1")                                             \
    X(BARRIER_TOO_MANY, ALWAYS, "more arrivals than its count")                                    \
    X(BARRIER_TX_OVER, ALWAYS, "tx-count beyond 2^20 - 1")                                         \
    X(BARRIER_TX_UNDER, ALWAYS, "tx-count beyond 2^20 - 1")                                        \
    X(BARRIER_UNFENCED, ALWAYS, "without a fence.mbarrier_init")                                   \
    X(BARRIER_NO_ARRIVAL, ALWAYS, "deadlock, 64 threads wait; rank 0 warps 0 to 1 (64 threads) ")  \
    X(BARRIER_POLLED, ALWAYS, "pending 1 of 1, tx 0)")                                             \
    X(BARRIER_MISSING_TX, ALWAYS, "pending 0 of 1, tx 64)")                                        \
    X(BARRIER_AFTER_INVAL, ALWAYS, "no mbarrier has been initialised")                             \
    X(BAR_COUNT_ODD, ALWAYS, "want a multiple of 32")                                              \
    X(BAR_COUNT_LARGE, ALWAYS, "want a multiple of 32")                                            \
    X(BAR_ID, ALWAYS, "barrier 16, want 0 to 15")                                                  \
    X(BAR_COUNTS_DIFFER, ALWAYS, "others came for")                                                \
    X(BAR_SAME_WARP, ALWAYS, "this warp has come to barrier 1 before")                             \
    X(BAR_TOO_FEW, ALWAYS, "(32 of 64 threads have come)")                                         \
    X(DIVERGED_KIND, ALWAYS, "divergence: this lane comes to")                                     \
    X(DIVERGED_MASK, ALWAYS, "divergence: a lane ends the kernel")                                 \
    X(DIVERGED_LINE, ALWAYS, "divergence: this lane comes to")                                     \
    X(DIVERGED_SYNC, ALWAYS, "divergence: this lane comes to")                                     \
    X(DIVERGED_EXIT, ALWAYS, "divergence: ")                                                       \
    X(MASK_WITHOUT_SELF, ALWAYS, "lacks the calling lane")                                         \
    X(SHUFFLE_OUTSIDE, ALWAYS, "which is not in 0x")                                               \
    X(SHUFFLE_WIDTH, ALWAYS, "width 12, want a power of two")                                      \
    X(CLUSTER_ARRIVE_TWICE, ALWAYS, "has arrived before and not waited")                           \
    X(CLUSTER_WAIT_FIRST, ALWAYS, "has not arrived")                                               \
    X(CLUSTER_NO_WAIT, ALWAYS, "ends without waiting")                                             \
    X(REGISTERS_WRONG_WAY, ALWAYS, "setmaxnreg.inc: to 40 registers")                              \
    X(REGISTERS_TOO_MANY, ALWAYS, "of 65536 registers are taken)")

enum mistake {
    NONE,
#define NAME(name, when, text) name,
    MISTAKES(NAME)
#undef NAME
};

/* Memory: one warp, lane 0 acts. */
static __device__ void memory(int wrong, u32 smem, const u32 *in, u32 *out)
{
    u32 bar = smem + 512, end = smem + 204800;
    uint4 v = make_uint4(1, 2, 3, 4);
    mbarrier_init(bar, 1);
    switch (wrong) {
    case READ_UNWRITTEN:
        out[0] = ld_shared<u32>(smem);
        break;
    case READ_HALF_WRITTEN:
        st_shared<u16>(smem + 2, (u16)1);
        out[0] = ld_shared<u32>(smem);
        break;
    case READ_OUTSIDE:
        out[0] = ld_shared<u32>(end);
        break;
    case WRITE_OUTSIDE:
        st_shared(end, v);
        break;
    case WRITE_BELOW:
        st_shared(smem - 16, v);
        break;
    case READ_MISALIGNED:
        st_shared(smem + 8, v);
        break;
    case NO_SUCH_BLOCK:
        st_shared_cluster(smem | 3u << 24, v);
        break;
    case OTHER_BLOCK:
        st_shared(smem | 1u << 24, v);
        break;
    case MAPA_NO_SUCH:
        mapa(smem, 2);
        break;
    case WRITE_A_BARRIER:
        st_shared(bar, 1u);
        break;
    case READ_A_BARRIER:
        out[0] = ld_shared<u32>(bar);
        break;
    case COPY_NOT_WAITED:
        cp_async_cg_16(smem, in, 16);
        cp_async_commit();
        out[0] = ld_shared<u32>(smem + 12);
        break;
    case COPY_OVERWRITTEN:
        cp_async_cg_16(smem, in, 16);
        st_shared(smem, v);
        break;
    case COPY_TWICE:
        cp_async_cg_16(smem, in, 16);
        cp_async_cg_16(smem, in + 4, 16);
        break;
    case COPY_WAITED_SHORT:
        cp_async_cg_16(smem, in, 16);
        cp_async_commit();
        cp_async_wait_group<1>();
        out[0] = ld_shared<u32>(smem);
        break;
    case COPY_NOT_WAITED_AT_END:
        cp_async_cg_16(smem, in, 16);
        break;
    case COPY_MISALIGNED:
        cp_async_cg_16(smem, in + 1, 16);
        break;
    case COPY_TOO_VALID:
        cp_async_cg_16(smem, in, 17);
        break;
    case STORE_UNFENCED:
        st_shared(smem, v);
        bulk_store(out, smem, 16);
        break;
    case STORE_FENCED_BEFORE:
        fence_proxy_async();
        st_shared(smem, v);
        bulk_store(out, smem, 16);
        break;
    case STORE_COPY_UNFENCED:
        cp_async_cg_16(smem, in, 16);
        cp_async_wait_all();
        bulk_store(out, smem, 16);
        break;
    case STORE_OVERWRITTEN:
        st_shared(smem, v);
        fence_proxy_async();
        bulk_store(out, smem, 16);
        st_shared(smem, v);
        break;
    default:
        break;
    }
}

static __device__ void barriers(int wrong, u32 smem, u32 *out)
{
    u32 bar = smem + 512;
    switch (wrong) {
    case BARRIER_UNKNOWN_WAIT:
        mbarrier_wait(smem, 0);
        break;
    case BARRIER_UNKNOWN_ARRIVE:
        mbarrier_arrive(smem);
        break;
    case BARRIER_TWICE:
        mbarrier_init(bar, 1);
        mbarrier_init(bar, 1);
        break;
    case BARRIER_MISALIGNED:
        mbarrier_init(bar + 4, 1);
        break;
    case BARRIER_COUNT_0:
        mbarrier_init(bar, 0);
        break;
    case BARRIER_PARITY:
        mbarrier_init(bar, 1);
        mbarrier_wait(bar, 2);
        break;
    case BARRIER_TOO_MANY:
        mbarrier_init(bar, 1);
        mbarrier_arrive_expect_tx(bar, 16);
        mbarrier_arrive(bar);
        break;
    case BARRIER_TX_OVER:
        mbarrier_init(bar, 1);
        mbarrier_expect_tx(bar, 1 << 19);
        mbarrier_expect_tx(bar, 1 << 19);
        break;
    case BARRIER_TX_UNDER:
        mbarrier_init(bar, 1);
        mbarrier_complete_tx(bar, 1 << 19);
        mbarrier_complete_tx(bar, 1 << 19);
        break;
    case BARRIER_UNFENCED:
        mbarrier_init(bar, 1);
        cp_async_mbarrier_arrive_noinc(bar);
        mbarrier_wait(bar, 0);
        break;
    case BARRIER_AFTER_INVAL:
        mbarrier_init(bar, 1);
        mbarrier_inval(bar);
        out[0] = mbarrier_try_wait(bar, 1);
        break;
    default:
        break;
    }
}

/* Two warps. */
__global__ void mistakes(const __grid_constant__ test_args args)
{
    u32 smem = dynamic_smem(), *out = args.out, t = threadIdx.x, lane = t % 32, bar = smem + 512;
    int wrong = args.wrong;
    MLA_ROLE("blunder");
    if (t == 0) {
        if (wrong < BARRIER_UNKNOWN_WAIT)
            memory(wrong, smem, args.in, out);
        else
            barriers(wrong, smem, out);
    }
    __syncthreads();
    switch (wrong) {
    case STORE_FENCED_BY_OTHER:
        if (t == 0)
            st_shared(smem, make_uint4(1, 2, 3, 4));
        __syncthreads();
        if (t == 32) {
            fence_proxy_async();
            bulk_store(out, smem, 16);
        }
        break;
    case BARRIER_NO_ARRIVAL:
    case BARRIER_POLLED:
    case BARRIER_MISSING_TX:
        if (t == 0) {
            mbarrier_init(bar, 1);
            if (wrong == BARRIER_MISSING_TX)
                mbarrier_arrive_expect_tx(bar, 64);
        }
        __syncthreads();
        if (wrong == BARRIER_POLLED)
            while (!mbarrier_try_wait(bar, 0))
                ;
        else
            mbarrier_wait(bar, 0);
        break;
    case BAR_COUNT_ODD:
        bar_sync(1, 48);
        break;
    case BAR_COUNT_LARGE:
        bar_sync(1, 96);
        break;
    case BAR_ID:
        bar_sync(16, 64);
        break;
    case BAR_COUNTS_DIFFER:
        if (t < 32)
            bar_arrive(1, 64);
        __syncthreads();
        if (t >= 32)
            bar_arrive(1, 32);
        break;
    case BAR_SAME_WARP:
        if (t < 32) {
            bar_arrive(1, 64);
            bar_arrive(1, 64);
        }
        break;
    case BAR_TOO_FEW:
        if (t < 32)
            bar_sync(1, 64);
        break;
    case DIVERGED_KIND:
        if (lane < 16)
            __syncwarp();
        else
            out[t] = __ballot_sync(0xFFFFFFFFu, 1);
        break;
    case DIVERGED_MASK:
        __syncwarp(lane < 16 ? 0xFFFFFFFFu : 0xFFFF0000u);
        break;
    case DIVERGED_LINE:
        if (lane < 16)
            __syncwarp();
        else
            __syncwarp();
        break;
    case DIVERGED_SYNC:
        if (lane < 16)
            __syncthreads();
        else
            bar_sync(1, 64);
        break;
    case DIVERGED_EXIT:
        if (lane == 3)
            return;
        out[t] = 1;
        if (lane == 4)
            __syncwarp(0x30u);
        break;
    case MASK_WITHOUT_SELF:
        __syncwarp(0x0000FFFFu);
        break;
    case SHUFFLE_OUTSIDE:
        if (lane < 16)
            out[t] = __shfl_sync(0xFFFFu, lane, 20);
        break;
    case SHUFFLE_WIDTH:
        out[t] = __shfl_sync(0xFFFFFFFFu, lane, 1, 12);
        break;
    case CLUSTER_ARRIVE_TWICE:
        cluster_arrive();
        cluster_arrive();
        break;
    case CLUSTER_WAIT_FIRST:
        cluster_wait();
        break;
    case CLUSTER_NO_WAIT:
        cluster_arrive();
        break;
    case REGISTERS_WRONG_WAY:
        setmaxnreg_inc<40>();
        break;
    default:
        break;
    }
}

/* 512 threads begin with 128 registers each: nobody gives any back. */
__global__ void greedy(const __grid_constant__ test_args args)
{
    if (threadIdx.x < 128)
        setmaxnreg_inc<232>();
    args.out[threadIdx.x] = 1;
}

/* Two blocks. Rank 1 reaches into rank 0 when that has gone, waits at its barrier, or arrives at
 * one whose making rank 0 did not publish. */
__global__ void pairs(const __grid_constant__ test_args args)
{
    u32 smem = dynamic_smem(), rank = cluster_ctarank();
    if (threadIdx.x == 0) {
        mbarrier_init(smem, 1);
        st_shared<u32>(smem + 8, 1u);
        if (args.wrong != 3)
            fence_mbarrier_init();
    }
    cluster_sync();
    if (rank == 0) {
        if (args.wrong == 3)
            mbarrier_wait(smem, 0);
        return;
    }
    if (args.wrong == 1) {
        /* Until the other block has gone: it waits for nothing more. */
        for (int i = 0; i < 100; i++)
            __syncthreads();
        args.out[0] = ld_shared_cluster<u32>(mapa(smem, 0) + 8);
    } else if (args.wrong == 2) {
        mbarrier_wait(mapa(smem, 0), 0);
    } else if (args.wrong == 3 && threadIdx.x == 0) {
        mbarrier_arrive_cluster(mapa(smem, 0));
    }
}

__global__ void nothing(const __grid_constant__ test_args)
{
}

static bool refused(dim3 grid, dim3 block, size_t bytes, const char *sm, const char *text)
{
    struct test_args args = {};
    void *params[] = {&args};
    setenv("MLA_MODEL_SM", sm, 1);
    cudaError_t e = cudaLaunchKernel(mla_kernel_address(nothing), grid, block, params, bytes, NULL);
    return text ? e != cudaSuccess && strstr(cudaGetErrorString(e), text) : e == cudaSuccess;
}

static bool cluster_refused(unsigned blocks, unsigned size, const char *sm)
{
    struct test_args args = {};
    void *params[] = {&args};
    cudaLaunchAttribute attribute;
    memset(&attribute, 0, sizeof attribute);
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = size;
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(blocks);
    config.blockDim = dim3(32);
    config.attrs = &attribute;
    config.numAttrs = 1;
    setenv("MLA_MODEL_SM", sm, 1);
    return cudaLaunchKernelExC(&config, mla_kernel_address(nothing), params) != cudaSuccess;
}

static void test_limits(void)
{
    const void *kernel = mla_kernel_address(nothing);
    test_expect(refused(dim3(1), dim3(1024), 0, "100", NULL), "1024 threads are allowed");
    test_expect(refused(dim3(1), dim3(1025), 0, "100", "1025"), "1025 threads are not");
    test_expect(refused(dim3(1), dim3(8, 8, 32), 0, "100", "(8,8,32)"), "nor in three dimensions");
    test_expect(refused(dim3(0), dim3(32), 0, "100", "(0,1,1)"), "an empty grid is refused");
    test_expect(refused(dim3(1), dim3(32), 49152, "100", NULL), "48 KB need no permission");
    test_expect(refused(dim3(1), dim3(32), 49153, "100", "allowed are 49152"), "more does");
    test_expect(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 232448) ==
                    cudaSuccess,
                "227 KB on sm_100");
    test_expect(refused(dim3(1), dim3(32), 232448, "100", NULL), "and they can be used");
    test_expect(refused(dim3(1), dim3(32), 232448, "120", "dynamic shared memory"),
                "but not on sm_120");
    test_expect(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 101377) !=
                    cudaSuccess,
                "sm_120 has 99 KB");
    test_expect(!cluster_refused(8, 8, "100"), "clusters of 8");
    test_expect(cluster_refused(16, 16, "100"), "16 need permission");
    test_expect(cluster_refused(9, 8, "100"), "a grid is whole clusters");
    test_expect(cluster_refused(2, 2, "80"), "no clusters on sm_80");
    test_expect(cluster_refused(2, 2, "120"), "nor on sm_120");
    test_expect(refused(dim3(1), dim3(32), 0, "70", "MLA_MODEL_SM"), "sm_70 is not modelled");
    setenv("MLA_MODEL_SCHEDULE", "soon", 1);
    test_expect(refused(dim3(1), dim3(32), 0, "100", "MLA_MODEL_SCHEDULE"), "an unknown schedule");
    setenv("MLA_MODEL_SCHEDULE", "eager", 1);
}

void test_threads_wrong(void)
{
    static const struct {
        const char *name;
        enum test_when when;
        const char *text;
    } list[] = {
#define ROW(name, when, text) {#name, when, text},
        MISTAKES(ROW)
#undef ROW
    };
    struct test_args args = {};
    struct test_launch two = {mla_kernel_address(mistakes), 1, 1, 64, 100};
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
        args.wrong = (int)i + 1;
        struct test_launch l = two;
        if (args.wrong == REGISTERS_TOO_MANY) {
            l.kernel = mla_kernel_address(greedy);
            l.threads = 512;
        }
        test_wrong(list[i].name, &l, &args, list[i].when, list[i].text);
    }
    /* Every sentence says where: */
    args.wrong = READ_UNWRITTEN;
    test_wrong("who and where", &two, &args, ALWAYS,
               "mistakes: block (0,0,0) warp 0 lane 0 [blunder] at threads_wrong.cu:");
    struct test_launch pair = {mla_kernel_address(pairs), 2, 2, 32, 90};
    args.wrong = 1;
    test_wrong("a block that has exited", &pair, &args, LATE, "lies in block 0, which has exited");
    args.wrong = 2;
    test_wrong("a wait at another block's barrier", &pair, &args, ALWAYS, "not in the own one");
    args.wrong = 3;
    test_wrong("a barrier the cluster can't see", &pair, &args, ALWAYS,
               "without a fence.mbarrier_init");
    test_limits();
}
