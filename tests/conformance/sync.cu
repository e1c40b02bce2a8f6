/* SPDX-License-Identifier: Apache-2.0 */
/* mbarrier's phases and bytes, remote arrives, addresses in a cluster, named barriers, cp.async
 * with its arrive. */
#include "conformance.h"

#include "ptx/barrier.cuh"
#include "ptx/cluster.cuh"
#include "ptx/cp_async.cuh"
#include "ptx/launch.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/shared.cuh"
#include "ptx/warp.cuh"

#include <string.h>

/* What both parities say, as two bits. The fence holds the thread until it has the answers: a
 * try_wait may take its time, and meanwhile an H100 goes on with what does not need its result. Had
 * the next instruction ended the phase, the answer would be yes. */
static __device__ __forceinline__ void parities(u32 *out, u32 bar)
{
    u32 zero = mbarrier_try_wait(bar, 0), one = mbarrier_try_wait(bar, 1);
    *out = zero | one << 1;
    __threadfence();
}

/* One thread: the state after each step. */
__global__ void phases(const __grid_constant__ conform_args args)
{
    u32 bar = dynamic_smem(), n = 0;
    u32 *out = args.out;
    mbarrier_init(bar, 2);
    fence_mbarrier_init();
    parities(out + n++, bar); /* fresh */
    mbarrier_arrive(bar);
    parities(out + n++, bar); /* one of two */
    mbarrier_arrive(bar);
    parities(out + n++, bar); /* phase 0 over */
    mbarrier_arrive_expect_tx(bar, 64);
    mbarrier_arrive(bar);
    parities(out + n++, bar); /* arrived, bytes missing */
    mbarrier_complete_tx(bar, 48);
    parities(out + n++, bar);
    mbarrier_complete_tx(bar, 16);
    parities(out + n++, bar);      /* phase 1 over */
    mbarrier_complete_tx(bar, 32); /* bytes before they are expected */
    parities(out + n++, bar);
    mbarrier_arrive(bar);
    parities(out + n++, bar);
    mbarrier_arrive_expect_tx(bar, 32);
    parities(out + n++, bar); /* phase 2 over */
    mbarrier_expect_tx(bar, 128);
    mbarrier_arrive(bar);
    mbarrier_arrive(bar);
    parities(out + n++, bar); /* only bytes missing */
    mbarrier_complete_tx(bar, 128);
    parities(out + n++, bar); /* phase 3 over */
    mbarrier_expect_tx(bar, 16);
    mbarrier_complete_tx(bar, 16); /* bytes come and go within a phase that nobody has ended */
    parities(out + n++, bar);
    mbarrier_arrive(bar);
    mbarrier_arrive(bar);
    parities(out + n++, bar); /* phase 4 over */
    mbarrier_inval(bar);
    mbarrier_init(bar, 1);
    parities(out + n++, bar);
    mbarrier_arrive(bar);
    parities(out + n++, bar);
    for (int i = 0; i < 5; i++) {
        mbarrier_arrive(bar);
        parities(out + n++, bar);
    }
}

/* A ring of three stages between two warps, and bytes counted by hand. */
__global__ void ring(const __grid_constant__ conform_args args)
{
    u32 base = dynamic_smem(), full = base, empty = base + 24, data = base + 1024;
    if (threadIdx.x == 0) {
        for (u32 i = 0; i < 3; i++) {
            mbarrier_init(full + 8 * i, 32);
            mbarrier_init(empty + 8 * i, 1);
        }
        fence_mbarrier_init();
    }
    __syncthreads();
    u32 lane = threadIdx.x % 32, phase = 0, stage = 0, sum = 0;
    for (u32 i = 0; i < 20; i++) {
        if (threadIdx.x < 32) {
            mbarrier_wait(empty + 8 * stage, phase ^ 1);
            st_shared<u32>(data + 128 * stage + 4 * lane, hash32(i * 32 + lane));
            mbarrier_arrive(full + 8 * stage);
        } else {
            mbarrier_wait(full + 8 * stage, phase);
            sum = sum * 3 + ld_shared<u32>(data + 128 * stage + 4 * (31 - lane));
            __syncwarp();
            if (lane == 0)
                mbarrier_arrive(empty + 8 * stage);
        }
        if (++stage == 3)
            stage = 0, phase ^= 1;
    }
    args.out[threadIdx.x] = sum;
}

/* Addresses, ranks, remote loads and stores, remote arrives: four CTAs. */
__global__ void __launch_bounds__(32) cluster(const __grid_constant__ conform_args args)
{
    u32 base = dynamic_smem(), rank = cluster_ctarank(), lane = threadIdx.x;
    u32 *out = args.out + rank * 32;
    if (lane == 0) {
        mbarrier_init(base, 4);
        fence_mbarrier_init();
        st_shared<u32>(base + 64, 1000 + rank);
        st_shared<u32>(base + 80 + 4 * rank, 7);
    }
    cluster_sync();
    if (lane == 0) {
        u32 n = 0;
        out[n++] = rank;
        out[n++] = cluster_nctarank();
        out[n++] = base & 0xFFFFFF;
        for (u32 r = 0; r < 4; r++) {
            out[n++] = mapa(base, r);
            out[n++] = ld_shared_cluster<u32>(mapa(base + 64, r));
        }
        out[n++] = mapa(base, rank) == base;
        for (u32 r = 0; r < 4; r++) {
            st_shared_cluster<u32>(mapa(base + 128 + 4 * rank, r), 50 * rank + r);
            if (r != 2)
                mbarrier_arrive_cluster(mapa(base, r));
            else
                mbarrier_arrive_expect_tx_cluster(mapa(base, r), 8);
        }
        if (rank == 2)
            mbarrier_complete_tx(base, 32);
    }
    mbarrier_wait(base, 0);
    if (lane < 4)
        out[20 + lane] = ld_shared<u32>(base + 128 + 4 * lane);
    if (lane == 4)
        parities(out + 24, base);
    cluster_sync();
}

/* A producer that arrives without waiting, consumers that sync; two barriers in turn. */
__global__ void __launch_bounds__(96) named(const __grid_constant__ conform_args args)
{
    u32 base = dynamic_smem(), t = threadIdx.x, sum = 0;
    for (u32 i = 0; i < 6; i++) {
        int id = 1 + (int)(i & 1), back = 3 + (int)(i & 1);
        if (t < 32) {
            if (i >= 2)
                bar_sync(back, 96);
            st_shared<u32>(base + 128 * (i & 1) + 4 * t, hash32(i * 100 + t));
            bar_arrive(id, 96);
        } else {
            bar_sync(id, 96);
            sum = sum * 5 + ld_shared<u32>(base + 128 * (i & 1) + 4 * ((t * 7 + i) % 32));
            if (i < 4)
                bar_arrive(back, 96);
        }
    }
    args.out[t] = sum;
}

/* cp.async of each size with short sources, and its arrive on an mbarrier. */
__global__ void __launch_bounds__(64) copies(const __grid_constant__ conform_args args)
{
    u32 base = dynamic_smem(), t = threadIdx.x, data = base + 1024;
    const char *in = (const char *)args.input;
    for (u32 i = t; i < 1024; i += 64)
        st_shared<u32>(data + 4 * i, 0xA5A5A5A5u);
    if (t == 0) {
        mbarrier_init(base, 64);
        fence_mbarrier_init();
    }
    __syncthreads();
    cp_async_cg_16(data + 16 * t, in + 48 * t, t % 17);
    cp_async_ca_8(data + 1024 + 8 * t, in + 16 * t, t % 9);
    cp_async_ca_4(data + 1536 + 4 * t, in + 4 * t + 400, t % 5);
    cp_async_mbarrier_arrive_noinc(base);
    mbarrier_wait(base, 0);
    __syncthreads();
    if (t == 0)
        parities(args.out, base);
    for (u32 i = t; i < 500; i += 64)
        args.out[1 + i] = ld_shared<u32>(data + 4 * i);
    __syncthreads();
    cp_async_cg_16(data + 16 * t, in + 16 * t, 16);
    cp_async_commit();
    cp_async_cg_16(data + 1024 + 16 * t, in + 4096 + 16 * t, 16);
    cp_async_commit();
    cp_async_wait_group<1>();
    __syncthreads();
    for (u32 i = t; i < 256; i += 64)
        args.out[512 + i] = ld_shared<u32>(data + 4 * ((i * 5) % 256));
    cp_async_wait_all();
    __syncthreads();
    for (u32 i = t; i < 256; i += 64)
        args.out[768 + i] = ld_shared<u32>(data + 1024 + 4 * ((i * 3) % 256));
}

void conform_sync(void)
{
    struct conform_args args;
    memset(&args, 0, sizeof args);
    conform_run("mbarrier phases and bytes", mla_kernel_address(phases), 1, 1, 1, &args, 20);
    conform_run("mbarrier ring of three", mla_kernel_address(ring), 1, 1, 64, &args, 64);
    conform_run("cluster of four", mla_kernel_address(cluster), 4, 4, 32, &args, 128);
    conform_run("named barriers", mla_kernel_address(named), 1, 1, 96, &args, 96);
    conform_run("cp.async", mla_kernel_address(copies), 1, 1, 64, &args, 1024);
}
