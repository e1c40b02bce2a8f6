/* SPDX-License-Identifier: Apache-2.0 */
/* Every shape of tcgen05.mma with the layout of its D, A in shared and in tensor memory, both CTA
 * groups, both majors of B; ld and st against each other; cp. */
#include "harness.h"
#include "tests.h"

#include "ptx/cluster.cuh"
#include "ptx/launch.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/shared.cuh"
#include "ptx/tcgen05.cuh"
#include "ptx/warp.cuh"

#include <stdio.h>
#include <string.h>

/* p: 0 M, 1 N, 2 A in tensor memory, 3 MN-major B, 4 e4m3 */
enum { PEER_EXITS = 1, ODD_ISSUES, ALLOC_ALONE, MASK_OUTSIDE };

static const u32 DONE = 0, SLOT = 64, A = 1024, B = A + 128 * 128, SHAPE_BYTES = 128;

static __device__ u32 word(bool e4m3, u32 which, u32 row, u32 k)
{
    if (!e4m3)
        return test_bf16(test_value(which, row, k)) | test_bf16(test_value(which, row, k + 1))
                                                          << 16;
    u32 w = 0;
    for (u32 i = 0; i < 4; i++)
        w |= test_e4m3(test_value(which, row, k + i)) << (8 * i);
    return w;
}

/* Rows of 128 bytes, K-major, 128-byte swizzle; first: number of the CTA's first row. */
static __device__ void fill_rows(u32 base, bool e4m3, u32 which, u32 first, u32 rows)
{
    u32 per = e4m3 ? 4 : 2;
    for (u32 i = threadIdx.x; i < rows * 32; i += blockDim.x) {
        u32 row = i / 32;
        st_shared<u32>(base + (((i % 32) * 4 + row * SHAPE_BYTES) ^ (row & 7) << 4),
                       word(e4m3, which, first + row, i % 32 * per));
    }
}

/* bf16, [k][rows]: chunks of 64 rows, 128-byte swizzle. */
static __device__ void fill_across(u32 base, u32 which, u32 first, u32 rows)
{
    for (u32 i = threadIdx.x; i < rows * 64; i += blockDim.x) {
        u32 row = i / 64, k = i % 64, chunk = row / 64;
        u32 place = chunk * 64 * 128 + k * 128 + row % 64 * 2;
        st_shared<u16>(base + (place ^ (k & 7) << 4),
                       (u16)test_bf16(test_value(which, first + row, k)));
    }
}

/* A's rows into tensor memory, columns 256 on: row m, and its copies in the other banks. */
static __device__ void fill_tmem_a(u32 tmem, bool e4m3, u32 first, u32 rows, bool spread)
{
    u32 lane = threadIdx.x % 128, row = lane % rows, words[32];
    if (spread)
        row = lane / 32 * 16 + lane % 16;
    for (u32 i = 0; i < 32; i++)
        words[i] = word(e4m3, 0, first + row, i * (e4m3 ? 4 : 2));
    tcgen05_st_32x32b(tmem + 256 + (lane / 32 << 21), words);
    tcgen05_wait_st();
    tcgen05_fence_before();
}

template <int G, bool WS>
__global__ void __launch_bounds__(128) shape(const __grid_constant__ test_args args)
{
    u32 m = (u32)args.p[0], n = (u32)args.p[1], base = dynamic_smem(), warp = threadIdx.x / 32;
    bool ts = args.p[2] != 0, across = args.p[3] != 0, e4m3 = args.p[4] != 0;
    u32 rank = G == 2 ? cluster_ctarank() : 0, rows = m / G, columns = n / G;
    int wrong = args.wrong;
    fill_rows(base + A, e4m3, 0, rank * rows, rows);
    if (across)
        fill_across(base + B, 1, rank * columns, columns);
    else
        fill_rows(base + B, e4m3, 1, rank * columns, columns);
    fence_proxy_async();
    if (threadIdx.x == 0) {
        mbarrier_init(base + DONE, 1);
        fence_mbarrier_init();
    }
    if (G == 2)
        cluster_sync();
    if (warp == 0 && !(wrong == ALLOC_ALONE && rank == 1)) {
        tcgen05_alloc<G>(base + SLOT, 512);
        tcgen05_relinquish<G>();
    }
    __syncthreads();
    u32 tmem = ld_shared<u32>(base + SLOT);
    if (ts)
        fill_tmem_a(tmem, e4m3, rank * rows, rows, !WS && G == 1 && m == 64);
    if (G == 2)
        cluster_sync();
    else
        __syncthreads();
    if (wrong == PEER_EXITS && rank == 1) {
        if (warp == 0)
            tcgen05_dealloc<G>(tmem, 512);
        return;
    }
    if (warp == 1 && rank == (wrong == ODD_ISSUES ? 1u : 0u) && elect_one()) {
        tcgen05_fence_after();
        operand_type type = e4m3 ? OPERAND_E4M3 : OPERAND_BF16;
        u32 id = umma_idesc((int)m, (int)n, type, type, OPERAND_F32, false, across);
        u64 a = umma_desc(base + A, 16, 1024, 128);
        u64 b =
            across ? umma_desc(base + B, 64 * 128, 1024, 128) : umma_desc(base + B, 16, 1024, 128);
        for (u32 k = 0; k < 4; k++) {
            u64 bk = b + (across ? 128 : 2) * k;
            if (WS) {
                if (ts)
                    e4m3 ? tcgen05_mma_ws_ts<KIND_F8F6F4>(tmem, tmem + 256 + 8 * k, bk, id, k > 0)
                         : tcgen05_mma_ws_ts<KIND_F16>(tmem, tmem + 256 + 8 * k, bk, id, k > 0);
                else
                    e4m3 ? tcgen05_mma_ws_ss<KIND_F8F6F4>(tmem, a + 2 * k, bk, id, k > 0)
                         : tcgen05_mma_ws_ss<KIND_F16>(tmem, a + 2 * k, bk, id, k > 0);
            } else if (ts)
                e4m3 ? tcgen05_mma_ts<G, KIND_F8F6F4>(tmem, tmem + 256 + 8 * k, bk, id, k > 0)
                     : tcgen05_mma_ts<G, KIND_F16>(tmem, tmem + 256 + 8 * k, bk, id, k > 0);
            else
                e4m3 ? tcgen05_mma_ss<G, KIND_F8F6F4>(tmem, a + 2 * k, bk, id, k > 0)
                     : tcgen05_mma_ss<G, KIND_F16>(tmem, a + 2 * k, bk, id, k > 0);
        }
        if (G == 2)
            tcgen05_commit_multicast<G>(base + DONE, wrong == MASK_OUTSIDE ? 7 : 3);
        else
            tcgen05_commit<G>(base + DONE);
    }
    mbarrier_wait(base + DONE, 0);
    tcgen05_fence_after();
    /* the columns that D has in every lane */
    u32 banks = (WS && m == 64) || (G == 2 && m == 128) ? 2 : WS && m == 32 ? 4 : 1;
    u32 width = n / banks, lanes = warp << 21;
    bool spread = !WS && G == 1 && m == 64;
    for (u32 c = 0; c < width; c += 8) {
        u32 r[8];
        if (spread) { /* lanes 0 to 15 of each warp */
            tcgen05_ld_16x64b(*(u32(*)[4])r, tmem + lanes + c);
            tcgen05_wait_ld(*(u32(*)[4])r);
            u32 t = threadIdx.x % 32;
            for (u32 i = 0; i < 4; i++)
                args.out[(warp * 32 + t / 4 + 8 * (t & 1)) * 256 + c + 2 * i + (t >> 1 & 1)] = r[i];
        } else {
            tcgen05_ld_32x32b(r, tmem + lanes + c);
            tcgen05_wait_ld(r);
            for (u32 i = 0; i < 8; i++)
                args.out[rank * 32768 + threadIdx.x * 256 + c + i] = r[i];
        }
    }
    tcgen05_fence_before();
    if (G == 2)
        cluster_sync();
    else
        __syncthreads();
    if (warp == 0)
        tcgen05_dealloc<G>(tmem, 512);
}

static bool check_product(const struct test_args *args, bool ws, int group)
{
    int m_all = args->p[0], n_all = args->p[1], k_all = args->p[4] ? 128 : 64;
    for (int m = 0; m < m_all; m++)
        for (int n = 0; n < n_all; n++) {
            int lane = m, column = n, cta = 0;
            if (group == 2) {
                cta = m / (m_all / 2);
                lane = m % (m_all / 2);
                if (m_all == 128 && n >= n_all / 2)
                    lane += 64, column -= n_all / 2;
            } else if (ws && m_all == 64) {
                lane = m + (n >= n_all / 2 ? 64 : 0);
                column = n % (n_all / 2);
            } else if (ws && m_all == 32) {
                lane = m + 32 * (n / (n_all / 4));
                column = n % (n_all / 4);
            } else if (m_all == 64)
                lane = m / 16 * 32 + m % 16;
            float want = 0, got;
            for (int k = 0; k < k_all; k++)
                want += (float)(test_value(0, (u32)m, (u32)k) * test_value(1, (u32)n, (u32)k));
            memcpy(&got, &args->out[cta * 32768 + lane * 256 + column], 4);
            if (got != want)
                return false;
        }
    return true;
}

static bool check_plain(const struct test_args *args)
{
    return check_product(args, false, 1);
}

static bool check_ws(const struct test_args *args)
{
    return check_product(args, true, 1);
}

static bool check_pair(const struct test_args *args)
{
    return check_product(args, false, 2);
}

static void product(int group, bool ws, int m, int n, bool ts, bool across, bool e4m3)
{
    struct test_args args;
    struct test_launch launch = {NULL, (unsigned)group, (unsigned)group, 128, 100};
    char name[96];
    memset(&args, 0, sizeof args);
    args.p[0] = m, args.p[1] = n, args.p[2] = ts, args.p[3] = across, args.p[4] = e4m3;
    launch.kernel = ws           ? mla_kernel_address(shape<1, true>)
                    : group == 2 ? mla_kernel_address(shape<2, false>)
                                 : mla_kernel_address(shape<1, false>);
    snprintf(name, sizeof name, "mma group %d%s M %d N %d%s%s%s", group, ws ? " ws" : "", m, n,
             ts ? " A in tensor memory" : "", across ? " B across" : "", e4m3 ? " e4m3" : "");
    test_right(name, &launch, &args, ws ? check_ws : group == 2 ? check_pair : check_plain);
}

/* Stores by one shape, loads by another; every word says its lane and column. p: 0 shape */
__global__ void __launch_bounds__(128) shapes_of_ld(const __grid_constant__ test_args args)
{
    u32 base = dynamic_smem(), warp = threadIdx.x / 32, lanes = warp << 21, t = threadIdx.x % 32;
    if (warp == 0)
        tcgen05_alloc<1>(base + SLOT, 64);
    __syncthreads();
    u32 tmem = ld_shared<u32>(base + SLOT), r[32];
    for (u32 i = 0; i < 32; i++)
        r[i] = threadIdx.x * 1000 + i;
    tcgen05_st_32x32b(tmem + lanes, r);
    tcgen05_wait_st();
    for (u32 half = 0; half < 2; half++) {
        u32 from = tmem + lanes + (half * 16 << 16), q[32];
        if (args.p[0] == 0)
            tcgen05_ld_16x64b(*(u32(*)[16])q, from);
        else if (args.p[0] == 1)
            tcgen05_ld_16x128b(*(u32(*)[16])q, from);
        else
            tcgen05_ld_16x256b(*(u32(*)[16])q, from);
        tcgen05_wait_ld();
        for (u32 i = 0; i < 16; i++)
            args.out[((warp * 2 + half) * 32 + t) * 16 + i] = q[i];
        /* and back, so that the way in is the way out's inverse */
        if (args.p[0] == 0)
            tcgen05_st_16x64b(from + 32, *(u32(*)[16])q);
        else if (args.p[0] == 1)
            tcgen05_st_16x128b(from + 32, *(u32(*)[16])q);
        else
            tcgen05_st_16x256b(from + 32, *(u32(*)[16])q);
        tcgen05_wait_st();
    }
    tcgen05_ld_32x32b(r, tmem + lanes + 32);
    tcgen05_wait_ld(r);
    for (u32 i = 0; i < 32; i++)
        args.out[8192 + threadIdx.x * 32 + i] = r[i];
    __syncthreads();
    if (warp == 0)
        tcgen05_dealloc<1>(tmem, 64);
}

static bool check_ld(const struct test_args *args)
{
    for (u32 h = 0; h < 8; h++)
        for (u32 t = 0; t < 32; t++)
            for (u32 r = 0; r < 16; r++) {
                u32 g = t / 4, q = t % 4, lane, column;
                if (args->p[0] == 0) /* pairs of threads side by side in a row of two words */
                    lane = g + (t % 2 ? 8 : 0), column = 2 * r + q / 2;
                else if (args->p[0] == 1)
                    lane = g + (r % 2 ? 8 : 0), column = r / 2 * 4 + q;
                else /* mma.sync's C, 8 columns after 8 columns */
                    lane = g + (r / 2 % 2 ? 8 : 0), column = r / 4 * 8 + 2 * q + r % 2;
                if (args->out[(h * 32 + t) * 16 + r] != (h * 16 + lane) * 1000 + column)
                    return false;
            }
    for (u32 lane = 0; lane < 128; lane++)
        for (u32 i = 0; i < 32; i++)
            if (args->out[8192 + lane * 32 + i] != lane * 1000 + i)
                return false;
    return true;
}

/* p: 0 which cp. Rows of 128 bytes (swizzled) to tensor memory, read back as they lie. */
__global__ void __launch_bounds__(128) copy(const __grid_constant__ test_args args)
{
    u32 base = dynamic_smem(), warp = threadIdx.x / 32, r[8];
    for (u32 i = threadIdx.x; i < 128 * 32; i += 128) {
        u32 row = i / 32;
        st_shared<u32>(base + A + (i * 4 ^ (row & 7) << 4), row * 1000 + i % 32);
    }
    fence_proxy_async();
    if (threadIdx.x == 0) {
        mbarrier_init(base + DONE, 1);
        fence_mbarrier_init();
    }
    if (warp == 0)
        tcgen05_alloc<1>(base + SLOT, 32);
    __syncthreads();
    u32 tmem = ld_shared<u32>(base + SLOT);
    for (u32 i = 0; i < 8; i++)
        r[i] = 0;
    tcgen05_st_32x32b(tmem + (warp << 21), r);
    tcgen05_wait_st();
    tcgen05_fence_before();
    __syncthreads();
    if (threadIdx.x == 64) {
        u64 from = umma_desc(base + A + 32, 16, 1024, 128); /* columns 8 on */
        tcgen05_fence_after();
        if (args.p[0] == 0)
            tcgen05_cp_128x256b<1>(tmem, from);
        else if (args.p[0] == 1)
            tcgen05_cp_128x128b<1>(tmem, from);
        else if (args.p[0] == 2)
            tcgen05_cp_64x128b_02_13<1>(tmem, from);
        else if (args.p[0] == 3)
            tcgen05_cp_64x128b_01_23<1>(tmem, from);
        else if (args.p[0] == 4)
            tcgen05_cp_32x128b<1>(tmem, from);
        else
            tcgen05_cp_4x256b<1>(tmem, from);
        tcgen05_commit<1>(base + DONE);
    }
    mbarrier_wait(base + DONE, 0);
    tcgen05_fence_after();
    tcgen05_ld_32x32b(r, tmem + (warp << 21));
    tcgen05_wait_ld(r);
    for (u32 i = 0; i < 8; i++)
        args.out[threadIdx.x * 8 + i] = r[i];
    __syncthreads();
    if (warp == 0)
        tcgen05_dealloc<1>(tmem, 32);
}

static bool check_cp(const struct test_args *args)
{
    static const int words[6] = {8, 4, 4, 4, 4, 8};
    for (int lane = 0; lane < 128; lane++)
        for (int i = 0; i < 8; i++) {
            int row = lane;
            if (args->p[0] == 2)
                row = lane % 64;
            else if (args->p[0] == 3) /* warps 0 and 1 have rows 0 to 31, 2 and 3 the others */
                row = lane / 64 * 32 + lane % 32;
            else if (args->p[0] == 4)
                row = lane % 32;
            else if (args->p[0] == 5)
                row = lane % 32 == 0 ? lane / 32 : -1;
            u32 want = row < 0 || i >= words[args->p[0]] ? 0 : (u32)(row * 1000 + 8 + i);
            if (args->out[lane * 8 + i] != want)
                return false;
        }
    return true;
}

void test_tensor_shapes(void)
{
    struct test_args args;
    for (int ts = 0; ts < 2; ts++) {
        product(1, false, 128, 128, ts, false, false);
        product(1, false, 128, 128, ts, true, false);
        product(1, false, 128, 80, ts, false, true);
        product(1, false, 64, 40, ts, false, false);
        product(1, false, 64, 128, ts, true, false);
        product(1, true, 128, 64, ts, false, false);
        product(1, true, 64, 128, ts, true, false);
        product(1, true, 64, 256, ts, false, false);
        product(1, true, 32, 64, ts, false, true);
        product(2, false, 256, 64, ts, false, false);
        product(2, false, 128, 128, ts, false, false);
        product(2, false, 128, 256, ts, true, false);
        product(2, false, 256, 160, ts, false, true);
    }
    memset(&args, 0, sizeof args);
    struct test_launch ld = {mla_kernel_address(shapes_of_ld), 1, 1, 128, 100};
    struct test_launch cp = {mla_kernel_address(copy), 1, 1, 128, 100};
    for (args.p[0] = 0; args.p[0] < 3; args.p[0]++)
        test_right("ld and st of 16 lanes", &ld, &args, check_ld);
    for (args.p[0] = 0; args.p[0] < 6; args.p[0]++)
        test_right("cp", &cp, &args, check_cp);
    struct test_launch pair = {mla_kernel_address(shape<2, false>), 2, 2, 128, 100};
    args.p[0] = 256, args.p[1] = 64;
    args.wrong = PEER_EXITS;
    test_wrong("a pair's CTA exits early", &pair, &args, ALWAYS, "");
    args.wrong = ODD_ISSUES;
    test_wrong("the odd CTA issues", &pair, &args, ALWAYS, "odd CTA");
    args.wrong = ALLOC_ALONE;
    test_wrong("alloc by one CTA of a pair", &pair, &args, ALWAYS, "");
    args.wrong = MASK_OUTSIDE;
    test_wrong("commit to a CTA that is not there", &pair, &args, ALWAYS, "has no CTA 2");
}
