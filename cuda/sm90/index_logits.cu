/* SPDX-License-Identifier: Apache-2.0 */
/* mla_index_run on sm_90: scores of the lightning indexer by wgmma, streamed into exact top-k.
 * index_stream.cuh says how tiles, reduction and selection work; here the products are made.
 *
 *     I[t,s] = k_scale[s] · sum_h W[t,h] · ReLU(sum_d q[t,h,d] · k[s,d])
 *
 * Roles, 12 warps (registers after setmaxnreg: 0-7 216, 8-11 72)
 *   0-3, 4-7  products and math: wgmma, ReLU, weights, sum over heads, floor, append; lists
 *   8-11      load: keys, scales and page lookups (cp.async), queries
 *
 * A warpgroup takes its unit, 128 keys x up to 256 columns, in pieces of 64 keys x 128 columns: 64
 * accumulators a thread. While it adds the heads of one piece, the other warpgroup multiplies.
 * Padded heads are 32 at least, and at least 128 columns are multiplied.
 *
 * Shared memory and barriers: index_stream.cuh. Keys of a unit are released when the last piece's
 * products are complete.
 *
 * Cycles of a unit with 4 rows of 64 heads, D 128, fp8 (from instruction rates):
 *   wgmma    4 pieces x 256 = 1024
 *   SMEM     4 pieces x (A 64 + B 128) = 768, key copies 128 / 2 groups
 *   max      128 x 256 at 64 a cycle = 512; fma 256
 * The tensor cores bound it.
 *
 * fp8 products. The tensor cores of sm_90 align the products of an instruction and the running sum
 * to the largest and keep 13 bits of fraction below it: scores have the wider bound of
 * docs/index.md. bf16 is summed in fp32. */
#include "../index_stream.cuh"
#include "../element.cuh"
#include "../ptx/launch.cuh"
#include "../ptx/wgmma.cuh"
#include "index_tile.h"

static const int ALL_THREADS = 384, MATH_REGISTERS = 216, OTHER_REGISTERS = 72;
static_assert(TEAM * (2 * MATH_REGISTERS + OTHER_REGISTERS) <= 65536, "registers of an SM");
static const int PIECE = 128; /* columns of a wgmma */

template <bool BF16> struct operand;
template <> struct operand<false> {
    typedef e4m3 type;
};
template <> struct operand<true> {
    typedef bf16 type;
};

/* 64 keys x 128 columns, complete on return. All of D, since the tiles are padded with zeros. */
template <bool BF16> __device__ __forceinline__ void multiply(float (&d)[PIECE / 2], u64 k, u64 q)
{
    typedef index_map<BF16> m;
    wgmma_bind(d);
    if (MLA_MUTANT != 21)
        wgmma_fence();
#pragma unroll
    for (int i = 0; i < m::ROW_BYTES / 32; i++) {
        /* 32 bytes on in the swizzle atom; bf16: 64 of D on after four. */
        u64 ka = desc_advance(k, i / 4 * m::HALF_K + i % 4 * 32);
        u64 qb = desc_advance(q, i / 4 * m::HALF_Q + i % 4 * 32);
        wgmma_ss<typename operand<BF16>::type, PIECE>(d, ka, qb, i > 0 || MLA_MUTANT == 22);
    }
    wgmma_commit();
    if (MLA_MUTANT != 23)
        wgmma_wait<0>();
    wgmma_bind(d);
}

/* One unit: products, and the rows' candidates. */
template <bool BF16, int HP>
__device__ __forceinline__ void unit(const struct team_work<BF16> &t, const u64 *weights,
                                     int chunks, u32 keys, u32 queries, u32 empty, float scale,
                                     bool seen, int pos)
{
    typedef columns<HP> c;
    float d[PIECE / 2];
    u64 sum[2][c::CHUNK_ROWS][4]; /* of the piece's two chunks; one if a row has more */
#pragma unroll
    for (int pair = 0; pair < c::CHUNKS / 2; pair++) {
        if (2 * pair >= chunks)
            break;
        const int first = 2 * pair;
        if (first % c::ROW_CHUNKS == 0)
            zero_sums(sum[0]);
        if (c::ROW_CHUNKS == 1)
            zero_sums(sum[1]);
        u32 at[2] = {keys, queries};
        wgmma_bind(at); /* descriptors are made here: kept from unit to unit, they would spill */
        u64 q = wgmma_desc(at[1] + first * 64 * 128, 0, MLA_MUTANT == 24 ? 512 : 1024, 128);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            multiply<BF16>(d, wgmma_desc(at[0] + half * 64 * 128, 0, 1024, 128), q);
            if (half == 1 && first + 2 >= chunks) { /* the keys have been read */
                __syncwarp();
                if (lane_arrives())
                    mbarrier_arrive(empty);
            }
#pragma unroll
            for (int i = 0; i < 2; i++)
                add_heads<BF16, HP>(d + 32 * i, weights + 8 * (first + i), first + i, half,
                                    t.a.heads, sum[c::ROW_CHUNKS == 1 ? i : 0]);
        }
#pragma unroll
        for (int i = 0; i < 2; i++)
            if ((first + i + 1) % c::ROW_CHUNKS == 0)
                emit_rows<BF16, HP>(t, first + i, scale, seen, pos,
                                    sum[c::ROW_CHUNKS == 1 ? i : 0]);
    }
}

template <bool BF16, int HP>
__device__ __forceinline__ void math_role(const struct index_launch &a, const struct shape &s,
                                          u32 smem)
{
    typedef index_map<BF16> m;
    int lane = threadIdx.x % 32, quarter = threadIdx.x / 32 % 4, group = threadIdx.x / TEAM;
    /* What the lane owns after sum_lanes: warp w has keys 16 w to 16 w + 15 of each 64. */
    int key = 64 * (lane / 2 % 2) + 16 * quarter + 8 * (lane % 2) + lane / 4;
    u32 queries = smem + m::QUERY + (s.groups == 2 ? group * m::GROUP_BYTES : 0);
    struct team_work<BF16> t = team_of<BF16>(a, s, smem, group);
    ring<m::STAGES> at;
    for (int task = blockIdx.x; task < a.tiles * a.parts; task += gridDim.x) {
        struct work w = find_work(a, task);
        u64 weights[8 * columns<HP>::CHUNKS];
        begin_task<BF16, HP>(t, s, w, weights);
        int stride = s.groups == 1 ? 2 : 1, first = s.groups == 1 ? group : 0, units = 0;
        ring<m::STAGES> here = at;
        here.skip(first);
        for (int i = first; i < w.steps; i += stride) {
            mbarrier_wait(smem + m::KEY_FULL + 8 * here.stage, here.phase);
            uint2 v = ld_shared<uint2>(smem + m::SCALE + (here.stage * KEYS + key) * 8);
            unit<BF16, HP>(t, weights, s.chunks, smem + m::KEY + here.stage * m::STAGE_BYTES,
                           queries, smem + m::KEY_EMPTY + 8 * here.stage, __uint_as_float(v.x), v.y,
                           w.from + i * KEYS + key);
            here.skip(stride);
            end_unit(t, ++units);
        }
        at.skip(w.steps);
        end_task(t, s, w, group);
    }
}

template <bool BF16, int HP>
__global__ void __launch_bounds__(ALL_THREADS, 1)
    index_sm90_kernel(const __grid_constant__ struct index_launch a)
{
    typedef index_map<BF16> m;
    const struct shape s = shape_of<HP, 2>(a);
    u32 smem = dynamic_smem(), warp = warp_index();
    if (warp == 8) {
        if (elect_one()) {
            for (int i = 0; i < m::STAGES; i++) {
                mbarrier_init(smem + m::KEY_FULL + 8 * i, 4 * LANES_THAT_ARRIVE);
                mbarrier_init(smem + m::KEY_EMPTY + 8 * i, 4 * s.groups * LANES_THAT_ARRIVE);
            }
            fence_mbarrier_init();
        }
        __syncwarp();
    }
    __syncthreads();
    if (warp < 8) {
        MLA_ROLE("math");
        setmaxnreg_inc<MATH_REGISTERS>();
        math_role<BF16, HP>(a, s, smem);
    } else {
        MLA_ROLE("load");
        setmaxnreg_dec<OTHER_REGISTERS>();
        load_role<BF16, HP>(a, s, smem);
    }
}

/* --------------------------------------------------------------------- host */

static bool supports(const mla_context *context, const mla_index_args *args, char *why,
                     size_t bytes)
{
    if (context->sm != 90)
        snprintf(why, bytes, "the device is sm_%d, not sm_90", context->sm);
    else if (args->heads > 256)
        snprintf(why, bytes, "heads %lld, at most 256", (long long)args->heads);
    else
        return true;
    return false;
}

static int most_rows(const mla_index_args *args)
{
    return tile_rows(args, 32);
}

/* Tiles of so many rows are index_tile.cu's. */
static bool tiled(bool fp8, int64_t heads, int rows)
{
    return fp8 && heads <= 64 && rows == 512 / padded_heads(heads, 32);
}

static int buffers(const mla_index_args *args, int rows)
{
    bool fp8 = args->q_format == MLA_INDEX_FP8 && args->k_format == MLA_INDEX_FP8;
    return tiled(fp8, args->heads, rows) ? INDEX_TILE_BUFFERS : rows > group_rows(args, 32) ? 1 : 2;
}

template <bool BF16> static const void *kernel_of(int hp)
{
    return hp == 32    ? mla_kernel_address(index_sm90_kernel<BF16, 32>)
           : hp == 64  ? mla_kernel_address(index_sm90_kernel<BF16, 64>)
           : hp == 128 ? mla_kernel_address(index_sm90_kernel<BF16, 128>)
                       : mla_kernel_address(index_sm90_kernel<BF16, 256>);
}

static cudaError_t launch(const struct index_launch *a, unsigned blocks, cudaStream_t stream)
{
    bool fp8 = a->q_fp8 && a->k_fp8;
    int hp = padded_heads(a->heads, 32);
    if (tiled(fp8, a->heads, a->rows))
        return mla_index_sm90_tiles(a, hp, blocks, stream);
    int bytes = fp8 ? index_map<false>::BYTES : index_map<true>::BYTES;
    const void *kernel = fp8 ? kernel_of<false>(hp) : kernel_of<true>(hp);
    cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    void *list[] = {(void *)a};
    return error ? error
                 : cudaLaunchKernel(kernel, dim3(blocks), dim3(ALL_THREADS), list, bytes, stream);
}

extern "C" const struct mla_index_engine mla_index_sm90 = {
    "index_logits_sm90", MLA_PROOF_SILICON, supports, most_rows, buffers, launch};
