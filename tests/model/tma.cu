/* SPDX-License-Identifier: Apache-2.0 */
/* TMA: what the conformance suite can't hold to sm_90 silicon (gather4, pairs), and mistakes. */
#include "harness.h"
#include "tests.h"

#include "ptx/cluster.cuh"
#include "ptx/launch.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/shared.cuh"
#include "ptx/tma.cuh"

extern "C" {
#include "status.h"
}

#include <stdio.h>
#include <string.h>

enum {
    BYTES_TOO_MANY = 1,
    BYTES_TOO_FEW,
    MISALIGNED,
    BARRIER_OF_PEER,
    READ_EARLY,
    NO_PROXY_FENCE,
    EXITS_STORING,
    SOURCE_OVERWRITTEN,
    WRONG_RANK,
    NOT_A_MAP,
    OUTSIDE,
    BULK_ODD_BYTES,
    OVER_UNREAD,
    BARRIER_UNINITIALISED,
    COLUMN_ODD,
    STORE_NEGATIVE,
    MASK_OUTSIDE
};

static const u32 TILE = 1024;

/* A tile in, and out again to the room behind the answer. p: 0 bytes, 1 column, 2 row */
__global__ void __launch_bounds__(128) through(const __grid_constant__ test_args args)
{
    u32 base = dynamic_smem(), bytes = (u32)args.p[0];
    int wrong = args.wrong;
    if (threadIdx.x == 0 && wrong != BARRIER_UNINITIALISED) {
        mbarrier_init(base, 1);
        fence_mbarrier_init();
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        u32 dst = base + TILE, expected = bytes;
        if (wrong == BYTES_TOO_MANY)
            expected += 16;
        if (wrong == BYTES_TOO_FEW)
            expected -= 16;
        if (wrong == MISALIGNED)
            dst += 64;
        if (wrong == OUTSIDE)
            dst = base + (200 << 10) - 1024;
        mbarrier_arrive_expect_tx(base, expected);
        if (wrong == WRONG_RANK)
            tma_load_3d(dst, &args.map, base, args.p[1], args.p[2], 0);
        else if (wrong == NOT_A_MAP)
            tma_load_2d(dst, (const mla_tensor_map *)args.in, base, args.p[1], args.p[2]);
        else if (wrong == COLUMN_ODD)
            tma_load_2d(dst, &args.map, base, 4, args.p[2]);
        else if (wrong == MASK_OUTSIDE)
            tma_load_2d_multicast(dst, &args.map, base, args.p[1], args.p[2], 3);
        else if (wrong == BULK_ODD_BYTES)
            bulk_load(dst, args.in, 24, base);
        else
            tma_load_2d(dst, &args.map, base, args.p[1], args.p[2]);
        if (wrong == OVER_UNREAD) /* the same place again, while the first is under way */
            tma_load_2d(dst, &args.map, base, args.p[1], args.p[2]);
    }
    if (wrong != READ_EARLY)
        mbarrier_wait(base, 0);
    for (u32 i = threadIdx.x; i < bytes / 4; i += 128)
        args.out[i] = ld_shared<u32>(base + TILE + 4 * i);
    for (u32 i = threadIdx.x; i < bytes / 4; i += 128)
        st_shared<u32>(base + 32768 + 4 * i, i * 3);
    if (wrong != NO_PROXY_FENCE)
        fence_proxy_async();
    __syncthreads();
    if (threadIdx.x == 0) {
        if (wrong == STORE_NEGATIVE)
            tma_store_2d(&args.map, base + 32768, 0, -1);
        bulk_store(args.out + 16384, base + 32768, bytes);
        tma_store_commit();
        if (wrong != EXITS_STORING && wrong != SOURCE_OVERWRITTEN)
            tma_store_wait_read<0>();
        if (wrong == SOURCE_OVERWRITTEN) {
            st_shared<u32>(base + 32768, 1);
            tma_store_wait_read<0>();
        }
    }
}

static int in_bounds(int v, int n)
{
    return v >= 0 && v < n;
}

/* input: rows of 128 words of which the tensor has 96 columns of 16 bits and 40 rows; box 64 x
 * 16 */
static u32 element(const uint32_t *in, int column, int row)
{
    return in_bounds(column, 96) && in_bounds(row, 40)
               ? in[row * 64 + column / 2] >> (column % 2 * 16) & 0xFFFF
               : 0;
}

static bool check_box(const struct test_args *args, const int *rows, int num_rows)
{
    for (int r = 0; r < num_rows; r++)
        for (int i = 0; i < 32; i++) {
            int unit = (i / 4) ^ (r % 8); /* 128-byte swizzle of an aligned tile */
            u32 want = element(args->in, args->p[1] + 2 * i, rows[r]) |
                       element(args->in, args->p[1] + 2 * i + 1, rows[r]) << 16;
            if (args->out[r * 32 + unit * 4 + i % 4] != want)
                return false;
        }
    return true;
}

static bool check_through(const struct test_args *args)
{
    int rows[16];
    for (int r = 0; r < 16; r++)
        rows[r] = args->p[2] + r;
    for (u32 i = 0; i < 512; i++)
        if (args->out[16384 + i] != i * 3)
            return false;
    return check_box(args, rows, 16);
}

/* Two CTAs of a pair gather rows each for itself; the even one's barrier counts both. */
__global__ void __launch_bounds__(32) gather(const __grid_constant__ test_args args)
{
    u32 base = dynamic_smem(), rank = cluster_ctarank();
    if (threadIdx.x == 0) {
        mbarrier_init(base, 1);
        fence_mbarrier_init();
    }
    cluster_sync();
    if (threadIdx.x == 0) {
        int r = (int)rank * 7;
        if (rank == 0)
            mbarrier_arrive_expect_tx(base, 2 * 1024);
        u32 bar = tma_even_barrier(base);
        if (args.wrong == BARRIER_OF_PEER) {
            tma_gather4(base + TILE, &args.map, bar, args.p[1], r, r + 3, -1, 50);
            tma_gather4(base + TILE + 512, &args.map, bar, args.p[1], r + 5, 39, 1 << 30, r);
        } else {
            tma_gather4_pair(base + TILE, &args.map, bar, args.p[1], r, r + 3, -1, 50);
            tma_gather4_pair(base + TILE + 512, &args.map, bar, args.p[1], r + 5, 39, 1 << 30, r);
        }
    }
    if (rank == 0)
        mbarrier_wait(base, 0);
    cluster_sync();
    for (u32 i = threadIdx.x; i < 256; i += 32)
        args.out[rank * 4096 + i] = ld_shared<u32>(base + TILE + 4 * i);
}

static bool check_gather(const struct test_args *args)
{
    for (int rank = 0; rank < 2; rank++) {
        int r = rank * 7, rows[8] = {r, r + 3, -1, 50, r + 5, 39, 1 << 30, r};
        struct test_args half = *args;
        half.out += rank * 4096;
        if (!check_box(&half, rows, 8))
            return false;
    }
    return true;
}

static void map_of(struct test_args *args, uint32_t height)
{
    uint64_t dims[2] = {96, 40}, strides[1] = {256};
    uint32_t box[2] = {64, height};
    test_expect(mla_tensor_map_tiled(&args->map, 2, 2, test_in, dims, strides, box, 128) == MLA_OK,
                "a tensor map");
}

static void maps(void)
{
    static const struct {
        int bytes, rank, offset, swizzle;
        uint64_t dim, stride;
        uint32_t box;
        const char *text;
    } bad[] = {
        {3, 2, 0, 0, 64, 256, 64, "element_bytes: got 3"},
        {2, 0, 0, 0, 64, 256, 64, "rank: got 0"},
        {2, 6, 0, 0, 64, 256, 64, "rank: got 6"},
        {2, 2, 8, 0, 64, 256, 64, "want a multiple of 16"},
        {2, 2, 0, 16, 64, 256, 64, "swizzle: got 16"},
        {2, 2, 0, 0, 0, 256, 64, "dims[0]: got 0"},
        {2, 2, 0, 0, 64, 250, 64, "strides_bytes[0]: got 250"},
        {2, 2, 0, 0, 64, (uint64_t)1 << 40, 64, "strides_bytes[0]"},
        {2, 2, 0, 0, 512, 1024, 257, "box[0]: got 257"},
        {2, 2, 0, 0, 64, 256, 0, "box[0]: got 0"},
        {2, 2, 0, 0, 64, 256, 12, "box[0]: got 24 bytes"},
        {2, 2, 0, 128, 256, 512, 128, "at most the swizzle's 128"},
    };
    struct mla_tensor_map map;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        uint64_t dims[6] = {bad[i].dim, 8, 8, 8, 8, 8};
        uint64_t strides[5] = {bad[i].stride, 4096, 8192, 16384, 32768};
        uint32_t box[6] = {bad[i].box, 4, 1, 1, 1, 1};
        mla_status status =
            mla_tensor_map_tiled(&map, bad[i].bytes, bad[i].rank, (char *)test_in + bad[i].offset,
                                 dims, strides, box, bad[i].swizzle);
        test_expect(status == MLA_ERR_ARGUMENT && strstr(mla_last_error(), bad[i].text) != NULL,
                    bad[i].text);
    }
}

void test_tma(void)
{
    static const struct {
        int wrong;
        const char *name;
        enum test_when when;
        const char *text;
    } mistakes[] = {
        {BYTES_TOO_MANY, "tma: expects too many bytes", ALWAYS, "mbarrier"},
        {BYTES_TOO_FEW, "tma: expects too few bytes", ALWAYS, "mbarrier"},
        {MISALIGNED, "tma: destination at 64", ALWAYS, "want a multiple of 128"},
        {READ_EARLY, "tma: read without a wait", LATE, "ld.shared: reads byte"},
        {NO_PROXY_FENCE, "tma: store without a proxy fence", ALWAYS, "without a fence.proxy.async"},
        {EXITS_STORING, "tma: exits while storing", LATE, "under way"},
        {SOURCE_OVERWRITTEN, "tma: overwrites what is stored", LATE, "still under way"},
        {WRONG_RANK, "tma: rank 3 of a map of rank 2", ALWAYS, "got rank 2, want 3"},
        {NOT_A_MAP, "tma: not a map", ALWAYS, "tensor map"},
        {OUTSIDE, "tma: destination outside", ALWAYS, "outside"},
        {BULK_ODD_BYTES, "tma: bulk copy of 24 bytes", ALWAYS, "want multiples of 16"},
        {OVER_UNREAD, "tma: two loads to one place", LATE, "still under way"},
        {BARRIER_UNINITIALISED, "tma: no mbarrier.init", ALWAYS, "mbarrier"},
        {COLUMN_ODD, "tma: a box from 8 bytes on", ALWAYS, "want a multiple of 16 bytes"},
        {STORE_NEGATIVE, "tma: stores from row -1 on", ALWAYS, "got -1, want at least 0"},
        {MASK_OUTSIDE, "tma: multicast to a CTA that is not there", ALWAYS, "has no CTA 1"},
    };
    struct test_args args;
    memset(&args, 0, sizeof args);
    maps();
    struct test_launch launch = {mla_kernel_address(through), 1, 1, 128, 100};
    map_of(&args, 16);
    static const int corners[4][2] = {{0, 0}, {-8, 30}, {40, -3}, {200, 0}};
    for (int i = 0; i < 4; i++) {
        args.p[0] = 2048, args.p[1] = corners[i][0], args.p[2] = corners[i][1];
        test_right("tma: through shared memory", &launch, &args, check_through);
    }
    args.p[1] = 0;
    for (size_t i = 0; i < sizeof mistakes / sizeof *mistakes; i++) {
        args.wrong = mistakes[i].wrong;
        test_wrong(mistakes[i].name, &launch, &args, mistakes[i].when, mistakes[i].text);
    }
    args.wrong = 0;
    struct test_launch pair = {mla_kernel_address(gather), 2, 2, 32, 100};
    test_wrong("gather4 with a box of 16 rows", &pair, &args, ALWAYS, "a box of 16 rows");
    map_of(&args, 1);
    args.p[1] = 24;
    test_right("gather4 of a pair", &pair, &args, check_gather);
    args.wrong = BARRIER_OF_PEER;
    test_wrong("gather4 to the peer's barrier without a pair", &pair, &args, ALWAYS,
               "want the same");
    args.wrong = 0;
    pair.sm = 90;
    test_wrong("gather4 on sm_90", &pair, &args, ALWAYS, "the modelled GPU is sm_90");
}
