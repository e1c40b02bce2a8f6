/* SPDX-License-Identifier: Apache-2.0 */
/* Threads of the functional model working together, right: collectives of a warp, barriers of a
 * block and a cluster, mbarriers, cp.async, atomics. Wrong uses: threads_wrong.cu. */
#include "harness.h"
#include "tests.h"

#include "ptx/barrier.cuh"
#include "ptx/cluster.cuh"
#include "ptx/convert.cuh"
#include "ptx/cp_async.cuh"
#include "ptx/launch.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/shared.cuh"
#include "ptx/warp.cuh"
#include "ring.cuh"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------ a warp */

enum { WARP_WORDS = 16 };

/* Every thread leaves WARP_WORDS results. The second warp is a partial one, of 16 lanes. */
__global__ void collectives(const __grid_constant__ test_args args)
{
    u32 lane = threadIdx.x % 32, all = threadIdx.x < 32 ? 0xFFFFFFFFu : 0xFFFFu;
    u32 *out = args.out + WARP_WORDS * threadIdx.x, x = args.in[threadIdx.x];
    u32 half = lane < 8 ? all & 0xFFu : all & ~0xFFu;
    out[0] = __shfl_sync(all, x, 5);
    out[1] = __shfl_xor_sync(all, x, 3);
    out[2] = __shfl_up_sync(all, x, 2, 8);
    out[3] = __shfl_down_sync(all, x, 3, 8);
    out[4] = __ballot_sync(all, x & 1);
    out[5] = (u32)__any_sync(all, lane == 7) | (u32)__all_sync(all, lane < 32) << 1 |
             (u32)__any_sync(all, false) << 2 | (u32)__all_sync(all, lane) << 3;
    out[6] = __reduce_add_sync(all, x);
    out[7] = (u32)__reduce_max_sync(all, (int)x);
    out[8] = __reduce_min_sync(all, x);
    out[9] = __match_any_sync(all, lane % 3);
    out[10] = __shfl_sync(half, x, lane < 8 ? 1 : 9); /* two groups of lanes at once */
    uint64_t wide = __shfl_xor_sync(all, (uint64_t)x << 32 | lane, 1);
    out[11] = (u32)(wide >> 32);
    out[12] = (u32)wide;
    __syncwarp(half);
    out[13] = __reduce_or_sync(all, 1u << lane);
    bool one = elect_one(), two = elect_one();
    out[14] = __popc(__ballot_sync(all, one)) * 2 + (one == two);
    out[15] = warp_index();
}

static bool check_collectives(const struct test_args *a)
{
    for (u32 t = 0; t < 48; t++) {
        const u32 *o = a->out + WARP_WORDS * t, *in = a->in + t / 32 * 32;
        u32 lane = t % 32, lanes = t < 32 ? 32 : 16, all = t < 32 ? 0xFFFFFFFFu : 0xFFFFu;
        u32 votes = 0, sum = 0, least = ~0u, match = 0;
        int most = INT32_MIN;
        for (u32 l = 0; l < lanes; l++) {
            votes |= (in[l] & 1) << l;
            sum += in[l];
            least = in[l] < least ? in[l] : least;
            most = (int)in[l] > most ? (int)in[l] : most;
            match |= (u32)(l % 3 == lane % 3) << l;
        }
        u32 up = lane % 8 >= 2 ? lane - 2 : lane, down = lane % 8 + 3 < 8 ? lane + 3 : lane;
        const u32 want[WARP_WORDS] = {
            in[5], in[lane ^ 3],         in[up],       in[down], votes, 3, sum,   (u32)most, least,
            match, in[lane < 8 ? 1 : 9], in[lane ^ 1], lane ^ 1, all,   3, t / 32};
        for (int i = 0; i < WARP_WORDS; i++)
            if (o[i] != want[i]) {
                printf("thread %u word %d: got 0x%x, want 0x%x\n", t, i, o[i], want[i]);
                return false;
            }
    }
    return true;
}

/* ------------------------------------------------------------------ a block */

/* Warps 0 and 1 hand words to warps 2 and 3 through a buffer and two named barriers; then votes of
 * the block. */
__global__ void named(const __grid_constant__ test_args args)
{
    u32 smem = dynamic_smem(), t = threadIdx.x;
    for (u32 round = 0; round < 5; round++) {
        if (t < 64) {
            MLA_ROLE("producer");
            if (round)
                bar_sync(2, 128);
            st_shared<u32>(smem + 4 * t, args.in[64 * round + t]);
            bar_arrive(1, 128);
        } else {
            MLA_ROLE("consumer");
            bar_sync(1, 128);
            args.out[64 * round + t - 64] = ld_shared<u32>(smem + 4 * (127 - t));
            if (round < 4)
                bar_arrive(2, 128);
        }
    }
    __syncthreads();
    int count = __syncthreads_count(t % 3 == 0), any = __syncthreads_or(t == 100),
        every = __syncthreads_and(t != 100);
    /* the upper half's vote is about itself alone */
    const bool one = t >= 64 && bar_sync_or(3, 64, t == 70),
               none = t >= 64 && bar_sync_or(3, 64, false);
    args.out[512 + t] = (u32)(count * 16 + one * 8 + none * 4 + any * 2 + every);
    if (t >= 96) /* the rest of the block still meets */
        return;
    __syncthreads();
    args.out[640 + t] = t;
}

static bool check_named(const struct test_args *a)
{
    for (u32 i = 0; i < 5 * 64; i++)
        if (a->out[i] != a->in[i / 64 * 64 + 63 - i % 64])
            return false;
    for (u32 t = 0; t < 128; t++)
        if (a->out[512 + t] != 43 * 16 + (t >= 64) * 8 + 2 || (t < 96 && a->out[640 + t] != t))
            return false;
    return true;
}

/* A ring of three stages: one warp copies by cp.async and arrives through the barrier, another by
 * plain writes; two warps read. */
__global__ void pipeline(const __grid_constant__ test_args args)
{
    const u32 stages = 3, rounds = 11, bytes = 1024;
    u32 smem = dynamic_smem(), full = smem + 8 * 1024, free_at = full + 8 * stages;
    u32 warp = warp_index(), lane = threadIdx.x % 32;
    if (threadIdx.x == 0) {
        for (u32 s = 0; s < stages; s++) {
            mbarrier_init(full + 8 * s, 64);
            mbarrier_init(free_at + 8 * s, 64);
        }
        fence_mbarrier_init();
    }
    __syncthreads();
    struct ring<3> at;
    for (u32 i = 0; i < rounds; i++, at.next()) {
        u32 stage = smem + at.stage * 2 * bytes;
        const u32 *in = args.in + i * bytes / 2;
        if (warp == 0) {
            mbarrier_wait(free_at + 8 * at.stage, at.phase ^ 1);
            for (u32 c = lane; c < bytes / 16; c += 32)
                cp_async_cg_16(stage + 16 * c, in + 4 * c, c % 7 == 3 ? 8 : 16);
            cp_async_mbarrier_arrive_noinc(full + 8 * at.stage);
        } else if (warp == 1) {
            while (!mbarrier_try_wait(free_at + 8 * at.stage, at.phase ^ 1))
                ;
            for (u32 c = lane; c < bytes / 4; c += 32)
                st_shared<u32>(stage + bytes + 4 * c, in[bytes / 4 + c]);
            mbarrier_arrive(full + 8 * at.stage);
        } else {
            mbarrier_wait(full + 8 * at.stage, at.phase);
            for (u32 c = threadIdx.x - 64; c < bytes / 2; c += 64)
                args.out[i * bytes / 2 + c] = ld_shared<u32>(stage + 4 * c);
            mbarrier_arrive(free_at + 8 * at.stage);
        }
    }
}

static bool check_pipeline(const struct test_args *a)
{
    for (u32 i = 0; i < 11 * 512; i++) {
        u32 c = i % 512;
        u32 want = c < 256 && c / 4 % 7 == 3 && c % 4 >= 2 ? 0 : a->in[i];
        if (a->out[i] != want)
            return false;
    }
    return true;
}

/* Groups of cp.async: two under way while the third is used. */
__global__ void groups(const __grid_constant__ test_args args)
{
    u32 smem = dynamic_smem() + 16 * threadIdx.x;
    for (int i = 0; i < 8; i++) {
        cp_async_ca_4(smem + 2048 * (i % 3), args.in + 256 * i + threadIdx.x, 4);
        cp_async_ca_8(smem + 2048 * (i % 3) + 8, args.in + 256 * i + 2 * threadIdx.x, 8);
        cp_async_commit();
        if (i < 2)
            continue;
        cp_async_wait_group<2>();
        u32 from = smem + 2048 * ((i - 2) % 3);
        args.out[128 * (i - 2) + threadIdx.x] =
            ld_shared<u32>(from) + 3 * (u32)(ld_shared<uint64_t>(from + 8) >> 32);
    }
    cp_async_wait_all();
    for (int i = 6; i < 8; i++)
        args.out[128 * i + threadIdx.x] =
            ld_shared<u32>(smem + 2048 * (i % 3)) +
            3 * (u32)(ld_shared<uint64_t>(smem + 2048 * (i % 3) + 8) >> 32);
}

static bool check_groups(const struct test_args *a)
{
    for (u32 i = 0; i < 8; i++)
        for (u32 t = 0; t < 96; t++)
            if (a->out[128 * i + t] != a->in[256 * i + t] + 3 * a->in[256 * i + 2 * t + 1])
                return false;
    return true;
}

/* Bytes that land before they are expected, and several phases. */
__global__ void bytes(const __grid_constant__ test_args args)
{
    u32 bar = dynamic_smem();
    if (threadIdx.x == 0) {
        mbarrier_init(bar, 1);
        fence_mbarrier_init();
    }
    __syncthreads();
    for (u32 i = 0; i < 6; i++) {
        if (threadIdx.x == 32) {
            mbarrier_complete_tx(bar, 96);
        } else if (threadIdx.x == 64) {
            mbarrier_expect_tx(bar, 32);
            mbarrier_arrive_expect_tx(bar, 64);
        }
        mbarrier_wait(bar, i & 1);
        args.out[128 * i + threadIdx.x] = mbarrier_try_wait(bar, i & 1);
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        mbarrier_inval(bar);
        st_shared<u32>(bar, 5);
        args.out[6 * 128] = ld_shared<u32>(bar);
    }
}

static bool check_bytes(const struct test_args *a)
{
    for (u32 i = 0; i < 6 * 128; i++)
        if (a->out[i] != 1)
            return false;
    return a->out[6 * 128] == 5;
}

/* ------------------------------------------------------------------ a cluster */

/* Every block writes into the next one's memory and arrives there, some bytes expected remotely. */
__global__ void neighbours(const __grid_constant__ test_args args)
{
    u32 smem = dynamic_smem(), bar = smem + 4096, t = threadIdx.x;
    u32 rank = cluster_ctarank(), ranks = cluster_nctarank(), next = (rank + 1) % ranks;
    if (t == 0) {
        mbarrier_init(bar, 65);
        fence_mbarrier_init();
    }
    cluster_sync();
    for (u32 i = 0; i < 4; i++) {
        st_shared_cluster<u32>(mapa(smem, next) + 4 * t, args.in[i] * (rank + 3) + t);
        mbarrier_arrive_cluster(mapa(bar, next));
        if (t == 0)
            mbarrier_arrive_expect_tx_cluster(mapa(bar, next), 16);
        if (t == 33)
            mbarrier_complete_tx(bar, 16);
        mbarrier_wait(bar, i & 1);
        args.out[(blockIdx.x * 4 + i) * 64 + t] = ld_shared<u32>(smem + 4 * t);
        cluster_arrive(); /* all have read */
        cluster_wait();
    }
    if (t == 0)
        args.out[4096 + blockIdx.x] = ld_shared_cluster<u32>(mapa(smem, next) + 8);
    cluster_sync();
}

static bool check_neighbours(const struct test_args *a)
{
    for (u32 b = 0; b < 8; b++) {
        u32 from = (b % 4 + 3) % 4;
        for (u32 i = 0; i < 4; i++)
            for (u32 t = 0; t < 64; t++)
                if (a->out[(b * 4 + i) * 64 + t] != a->in[i] * (from + 3) + t)
                    return false;
        if (a->out[4096 + b] != a->in[3] * (b % 4 + 3) + 2)
            return false;
    }
    return true;
}

/* ------------------------------------------------------------------ registers, atomics, grids */

__global__ void registers(const __grid_constant__ test_args args)
{
    /* 512 threads begin with 128 registers each. */
    if (threadIdx.x < 128)
        setmaxnreg_inc<232>();
    else if (threadIdx.x < 256)
        setmaxnreg_dec<40>();
    else
        setmaxnreg_dec<96>();
    args.out[threadIdx.x] = threadIdx.x;
}

static bool check_registers(const struct test_args *a)
{
    for (u32 t = 0; t < 512; t++)
        if (a->out[t] != t)
            return false;
    return true;
}

/* Blocks take tasks from a counter; sums are the same in whatever order. */
__global__ void tasks(const __grid_constant__ test_args args)
{
    u32 smem = dynamic_smem(), *counter = args.out + 100;
    if (blockIdx.x == 0 && threadIdx.x == 0)
        griddep_launch_dependents();
    griddep_wait();
    for (;;) {
        if (threadIdx.x == 0)
            st_shared<u32>(smem, atomicAdd(counter, 1u));
        __syncthreads();
        u32 task = ld_shared<u32>(smem) - 0xEEEEEEEEu; /* what the output begins with */
        __syncthreads();
        if (task >= 37)
            break;
        atomicAdd(args.out + 40, args.in[task] * (threadIdx.x + 1));
        atomicMax(args.out + 41, 0xF0000000u | task << 8 | threadIdx.x);
        atomicXor(args.out + 42, task ^ threadIdx.x);
        if (threadIdx.x == 5)
            args.out[task] = args.in[task];
    }
    if (threadIdx.x == 0)
        atomicExch(args.out + 100, 0u);
}

static bool check_tasks(const struct test_args *a)
{
    u32 sum = 0xEEEEEEEEu, bits = 0xEEEEEEEEu;
    for (u32 i = 0; i < 37; i++) {
        if (a->out[i] != a->in[i])
            return false;
        sum += a->in[i] * (64 * 65 / 2);
        for (u32 t = 0; t < 64; t++)
            bits ^= i ^ t;
    }
    return a->out[40] == sum && a->out[41] == (0xF0000000u | 36 << 8 | 63) && a->out[42] == bits;
}

/* ------------------------------------------------------------------ arithmetic */

static __device__ float operand(u32 i)
{
    return (float)((int)(i * 37 % 64) - 32) / 8;
}

/* Pairs of floats and maxima of three: results that f32 holds exactly. */
__global__ void floats(const __grid_constant__ test_args args)
{
    float x = operand(threadIdx.x), y = operand(threadIdx.x + 32), z = operand(threadIdx.x + 64),
          r[8];
    u64 a = pack_f32x2(x, y), b = pack_f32x2(y, z), c = pack_f32x2(z, x);
    unpack_f32x2(&r[0], &r[1], add_rn_f32x2(a, b));
    unpack_f32x2(&r[2], &r[3], mul_rn_f32x2(a, b));
    unpack_f32x2(&r[4], &r[5], fma_rn_f32x2(a, b, c));
    r[6] = max3_f32(x, y, z);
    r[7] = max3_f32(x, __uint_as_float(0x7FC00000), z); /* a NaN counts for nothing */
    for (u32 i = 0; i < 8; i++)
        args.out[8 * threadIdx.x + i] = __float_as_uint(r[i]);
}

static bool check_floats(const struct test_args *a)
{
    for (u32 t = 0; t < 32; t++) {
        float x = operand(t), y = operand(t + 32), z = operand(t + 64);
        float want[8] = {x + y,
                         y + z,
                         x * y,
                         y * z,
                         x * y + z,
                         y * z + x,
                         x > y ? x > z ? x : z : y > z ? y : z,
                         x > z ? x : z};
        if (memcmp(a->out + 8 * t, want, sizeof want) != 0)
            return false;
    }
    return true;
}

void test_threads(void)
{
    struct test_args args = {};
    struct test_launch one = {mla_kernel_address(collectives), 1, 1, 48, 100};
    test_right("warp collectives", &one, &args, check_collectives);
    one = {mla_kernel_address(named), 1, 1, 128, 90};
    test_right("named barriers", &one, &args, check_named);
    one = {mla_kernel_address(pipeline), 1, 1, 128, 100};
    test_right("a ring of mbarriers", &one, &args, check_pipeline);
    one = {mla_kernel_address(groups), 2, 1, 96, 90};
    test_right("groups of cp.async", &one, &args, check_groups);
    one = {mla_kernel_address(bytes), 1, 1, 128, 100};
    test_right("bytes of an mbarrier", &one, &args, check_bytes);
    one = {mla_kernel_address(neighbours), 8, 4, 64, 90};
    test_right("neighbours in a cluster", &one, &args, check_neighbours);
    one = {mla_kernel_address(registers), 1, 1, 512, 100};
    test_right("registers", &one, &args, check_registers);
    one = {mla_kernel_address(tasks), 1, 1, 64, 100};
    test_right("tasks of a counter", &one, &args, check_tasks);
    one = {mla_kernel_address(floats), 1, 1, 32, 100};
    test_right("pairs of floats", &one, &args, check_floats);
}
