/* SPDX-License-Identifier: Apache-2.0 */
/* TMA: where elements of a box land (swizzle, destination, edges of the tensor), what the barrier
 * counts, stores, rows gathered one by one, plain bulk copies, multicast. */
#include "conformance.h"

#include "ptx/cluster.cuh"
#include "ptx/launch.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/shared.cuh"
#include "ptx/tma.cuh"
#include "ptx/warp.cuh"

#include <stdio.h>
#include <string.h>

static const u32 TILE = 1024; /* shared offset of the tile, behind the barriers */

static __device__ __forceinline__ void prepare(u32 base, u32 bytes)
{
    for (u32 i = threadIdx.x; i < bytes / 4; i += blockDim.x)
        st_shared<u32>(base + TILE + 4 * i, 0xA5A5A5A5u);
    if (threadIdx.x == 0) {
        mbarrier_init(base, 1);
        fence_mbarrier_init();
    }
    fence_proxy_async();
    __syncthreads();
}

static __device__ __forceinline__ void dump(const conform_args &args, u32 base, u32 words)
{
    for (u32 i = threadIdx.x; i < words; i += blockDim.x)
        args.out[i] = ld_shared<u32>(base + TILE + 4 * i);
}

/* p: 0 destination, 1 rank, 2 to 5 coordinates, 6 bytes, 7 words to report, 8 late expect */
__global__ void __launch_bounds__(128) load(const __grid_constant__ conform_args args)
{
    u32 base = dynamic_smem();
    prepare(base, (u32)args.p[7] * 4);
    if (threadIdx.x == 0) {
        int c0 = (int)args.p[2], c1 = (int)args.p[3], c2 = (int)args.p[4], c3 = (int)args.p[5];
        u32 dst = base + TILE + (u32)args.p[0], bytes = (u32)args.p[6];
        tma_prefetch_map(&args.map);
        if (!args.p[8])
            mbarrier_arrive_expect_tx(base, bytes);
        if (args.p[1] == 2)
            tma_load_2d(dst, &args.map, base, c0, c1);
        else if (args.p[1] == 3)
            tma_load_3d(dst, &args.map, base, c0, c1, c2, L2_EVICT_FIRST);
        else
            tma_load_4d(dst, &args.map, base, c0, c1, c2, c3);
        if (args.p[8])
            mbarrier_arrive_expect_tx(base, bytes);
    }
    mbarrier_wait(base, 0);
    dump(args, base, (u32)args.p[7]);
}

static void load_case(const char *name, struct conform_args *args, u32 words)
{
    args->p[7] = words;
    conform_run(name, mla_kernel_address(load), 1, 1, 128, args, words);
}

/* The input as rows of 256 bytes: 1024 of them, of which the tensor has `rows` and `columns`. */
static void map_2d(struct mla_tensor_map *map, const void *base, int bytes, u32 columns, u32 rows,
                   u32 width, u32 height, int swizzle)
{
    uint64_t dims[2] = {columns, rows}, strides[1] = {256};
    uint32_t box[2] = {width, height};
    conform_map(map, bytes, 2, base, dims, strides, box, swizzle);
}

static void loads_2d(void)
{
    static const int swizzles[4] = {0, 32, 64, 128};
    static const u32 destinations[3] = {0, 128, 640};
    static const int corners[6][2] = {{0, 0}, {8, 3}, {-8, 2}, {40, -3}, {88, 35}, {0, 100}};
    char name[80];
    for (int s = 0; s < 4; s++)
        for (int bytes = 1; bytes <= 8; bytes *= 2) {
            if (bytes == 4 || (bytes == 8 && swizzles[s] != 0))
                continue;
            u32 width = (u32)(swizzles[s] ? swizzles[s] : 128) / (u32)bytes;
            for (int c = 0; c < 6; c++)
                for (int d = 0; d < 3; d++) {
                    if ((d != 0 && c != 1) || (bytes == 8 && c > 3))
                        continue;
                    struct conform_args args;
                    memset(&args, 0, sizeof args);
                    map_2d(&args.map, conform_input, bytes, bytes == 8 ? 32 : 96, 40, width, 16,
                           swizzles[s]);
                    uint64_t p[7] = {destinations[d],
                                     2,
                                     (u64)(int64_t)corners[c][0],
                                     (u64)(int64_t)corners[c][1],
                                     0,
                                     0,
                                     width * (u32)bytes * 16};
                    memcpy(args.p, p, sizeof p);
                    snprintf(name, sizeof name, "tma load 2d bytes %d swizzle %d at %d,%d to +%u",
                             bytes, swizzles[s], corners[c][0], corners[c][1], destinations[d]);
                    load_case(name, &args, 768);
                }
        }
    /* a box narrower than its swizzle */
    for (int s = 1; s < 4; s++) {
        struct conform_args args;
        memset(&args, 0, sizeof args);
        u32 width = (u32)swizzles[s] / 4;
        if (width * 2 % 16 != 0)
            continue;
        map_2d(&args.map, conform_input, 2, 96, 40, width, 16, swizzles[s]);
        uint64_t p[7] = {0, 2, 8, 3, 0, 0, width * 2 * 16};
        memcpy(args.p, p, sizeof p);
        snprintf(name, sizeof name, "tma load 2d bytes 2 swizzle %d, half as wide", swizzles[s]);
        load_case(name, &args, 512);
    }
    struct conform_args args;
    memset(&args, 0, sizeof args);
    map_2d(&args.map, conform_input, 2, 96, 40, 64, 16, 128);
    uint64_t p[9] = {0, 2, 16, 5, 0, 0, 2048, 0, 1};
    memcpy(args.p, p, sizeof p);
    load_case("tma load 2d, bytes expected after the load", &args, 512);
}

static void loads_3d_4d(void)
{
    struct conform_args args;
    char name[80];
    static const int corners[4][4] = {{0, 0, 0, 0}, {32, 2, 1, 1}, {-16, 3, -1, 2}, {8, 5, 4, 3}};
    for (int swizzle = 0; swizzle <= 128; swizzle += 128)
        for (int c = 0; c < 4; c++) {
            memset(&args, 0, sizeof args);
            uint64_t dims[4] = {80, 6, 5, 4}, strides[3] = {256, 2048, 16384};
            uint32_t box[4] = {64, 4, 2, 2};
            uint64_t p[7] = {0,
                             3,
                             (u64)(int64_t)corners[c][0],
                             (u64)(int64_t)corners[c][1],
                             (u64)(int64_t)corners[c][2],
                             (u64)(int64_t)corners[c][3],
                             64 * 2 * 8};
            memcpy(args.p, p, sizeof p);
            conform_map(&args.map, 2, 3, conform_input, dims, strides, box, swizzle);
            snprintf(name, sizeof name, "tma load 3d swizzle %d corner %d", swizzle, c);
            load_case(name, &args, 512);
            args.p[1] = 4;
            args.p[6] = 64 * 2 * 16;
            conform_map(&args.map, 2, 4, conform_input, dims, strides, box, swizzle);
            snprintf(name, sizeof name, "tma load 4d swizzle %d corner %d", swizzle, c);
            load_case(name, &args, 768);
        }
}

/* p: 0 offset, 1 rank, 2 to 4 coordinates, 5 bytes */
__global__ void __launch_bounds__(128) store(const __grid_constant__ conform_args args)
{
    u32 base = dynamic_smem(), bytes = (u32)args.p[5];
    for (u32 i = threadIdx.x; i < bytes / 4; i += blockDim.x)
        st_shared<u32>(base + TILE + (u32)args.p[0] + 4 * i, hash32(i + 77));
    fence_proxy_async();
    __syncthreads();
    if (threadIdx.x == 0) {
        int c0 = (int)args.p[2], c1 = (int)args.p[3], c2 = (int)args.p[4];
        u32 src = base + TILE + (u32)args.p[0];
        if (args.p[1] == 2)
            tma_store_2d(&args.map, src, c0, c1);
        else
            tma_store_3d(&args.map, src, c0, c1, c2);
        tma_store_commit();
        tma_store_wait<0>();
    }
}

static void stores(void)
{
    static const int swizzles[4] = {0, 32, 64, 128};
    static const int corners[4][2] = {{0, 0}, {-8, 3}, {72, 30}, {16, -2}};
    char name[80];
    for (int s = 0; s < 4; s++)
        for (int c = 0; c < 4; c++) {
            struct conform_args args;
            memset(&args, 0, sizeof args);
            u32 width = (u32)(swizzles[s] ? swizzles[s] : 128) / 2;
            map_2d(&args.map, conform_room, 2, 96, 40, width, 16, swizzles[s]);
            uint64_t p[6] = {c == 1 ? 128u : 0u,          2, (u64)(int64_t)corners[c][0],
                             (u64)(int64_t)corners[c][1], 0, width * 2 * 16};
            memcpy(args.p, p, sizeof p);
            snprintf(name, sizeof name, "tma store 2d swizzle %d at %d,%d", swizzles[s],
                     corners[c][0], corners[c][1]);
            conform_run_room(name, mla_kernel_address(store), 128, &args, 40 * 64);
        }
    struct conform_args args;
    memset(&args, 0, sizeof args);
    uint64_t dims[3] = {48, 4, 3}, strides[2] = {128, 1024};
    uint32_t box[3] = {32, 4, 2};
    uint64_t p[6] = {0, 3, 24, 2, 1, 64 * 8};
    memcpy(args.p, p, sizeof p);
    conform_map(&args.map, 2, 3, conform_room, dims, strides, box, 0);
    conform_run_room("tma store 3d", mla_kernel_address(store), 128, &args, 768);
}

/* Rows one by one, as gather4 is put together on sm_90. p: 0 rows, 1 bytes of a row, 2 column */
__global__ void __launch_bounds__(128) gather(const __grid_constant__ conform_args args)
{
    u32 base = dynamic_smem(), rows = (u32)args.p[0], bytes = (u32)args.p[1];
    prepare(base, rows * bytes);
    if (threadIdx.x == 0) {
        for (u32 i = 0; i < rows; i++) {
            int row = i % 5 == 3 ? -1 : i % 7 == 6 ? 1000 + (int)i : (int)(hash32(i) % 40);
            tma_load_2d(base + TILE + i * bytes, &args.map, base, (int)args.p[2], row,
                        L2_EVICT_LAST);
        }
        mbarrier_arrive_expect_tx(base, rows * bytes);
    }
    mbarrier_wait(base, 0);
    dump(args, base, rows * bytes / 4);
}

static void gathers(void)
{
    for (int swizzle = 0; swizzle <= 128; swizzle += 128) {
        struct conform_args args;
        memset(&args, 0, sizeof args);
        char name[80];
        map_2d(&args.map, conform_input, 2, 96, 40, 64, 1, swizzle);
        uint64_t p[3] = {16, 128, 16};
        memcpy(args.p, p, sizeof p);
        snprintf(name, sizeof name, "tma rows swizzle %d", swizzle);
        conform_run(name, mla_kernel_address(gather), 1, 1, 128, &args, 512);
    }
    struct conform_args args;
    memset(&args, 0, sizeof args);
    uint64_t dims[2] = {64, 40}, strides[1] = {512};
    uint32_t box[2] = {32, 1};
    conform_map(&args.map, 8, 2, conform_input, dims, strides, box, 0);
    uint64_t p[3] = {8, 256, 4};
    memcpy(args.p, p, sizeof p);
    conform_run("tma rows of 8-byte elements", mla_kernel_address(gather), 1, 1, 128, &args, 512);
}

/* p: 0 bytes, 1 shared offset, 2 global offset; out goes through shared memory to the room */
__global__ void __launch_bounds__(128) bulk(const __grid_constant__ conform_args args)
{
    u32 base = dynamic_smem(), bytes = (u32)args.p[0];
    prepare(base, 8192);
    u32 place = base + TILE + (u32)args.p[1];
    if (threadIdx.x == 0) {
        mbarrier_arrive_expect_tx(base, bytes);
        bulk_load(place, (const char *)args.input + args.p[2], bytes, base);
        mbarrier_wait(base, 0);
        bulk_store((char *)args.out + args.p[1], place, bytes);
        tma_store_commit();
        tma_store_wait_read<0>();
    }
}

static void bulks(void)
{
    static const u32 cases[5][3] = {
        {16, 0, 0}, {48, 16, 32}, {656, 80, 656}, {2048, 512, 16}, {4096, 1024, 4096}};
    for (int i = 0; i < 5; i++) {
        struct conform_args args;
        memset(&args, 0, sizeof args);
        args.out = (uint32_t *)conform_room;
        for (int j = 0; j < 3; j++)
            args.p[j] = cases[i][j];
        char name[80];
        snprintf(name, sizeof name, "bulk copies of %u bytes", cases[i][0]);
        conform_run_room(name, mla_kernel_address(bulk), 128, &args, 2048);
    }
}

/* Every CTA of the cluster gets the tile; CTA 1 issues. p: 0 mask, 1 bytes */
__global__ void __launch_bounds__(128) multicast(const __grid_constant__ conform_args args)
{
    u32 base = dynamic_smem(), bytes = (u32)args.p[1], rank = cluster_ctarank();
    prepare(base, bytes);
    bool mine = (args.p[0] >> rank & 1) != 0;
    if (threadIdx.x == 0 && mine)
        mbarrier_arrive_expect_tx(base, bytes);
    cluster_sync();
    if (threadIdx.x == 0 && rank == 1)
        tma_load_2d_multicast(base + TILE, &args.map, base, 16, 2, (u16)args.p[0]);
    if (mine)
        mbarrier_wait(base, 0);
    cluster_sync();
    for (u32 i = threadIdx.x; i < bytes / 4; i += blockDim.x)
        args.out[rank * (bytes / 4) + i] = ld_shared<u32>(base + TILE + 4 * i);
}

void conform_tma(void)
{
    loads_2d();
    loads_3d_4d();
    stores();
    gathers();
    bulks();
    for (u32 mask = 1; mask < 16; mask += 4 + mask % 3) {
        struct conform_args args;
        memset(&args, 0, sizeof args);
        char name[80];
        map_2d(&args.map, conform_input, 2, 96, 40, 64, 8, 128);
        args.p[0] = mask;
        args.p[1] = 1024;
        snprintf(name, sizeof name, "tma multicast to mask %u of 4", mask);
        conform_run(name, mla_kernel_address(multicast), 4, 4, 128, &args, 1024);
    }
}
