/* SPDX-License-Identifier: Apache-2.0 */
/* mla_index_run on sm_100: scores of the lightning indexer by tcgen05, streamed into exact top-k.
 * index_stream.cuh says how tiles, reduction and selection work; here the products are made.
 *
 *     I[t,s] = k_scale[s] · sum_h W[t,h] · ReLU(sum_d q[t,h,d] · k[s,d])
 *
 * Roles, 16 warps (registers after setmaxnreg: 0-7 176, 8-15 80)
 *   0-3, 4-7  math: ReLU, weights, sum over heads, floor, append; select and write lists
 *   8-11      load: keys, scales and page lookups (cp.async), queries
 *   12        MMA issue, TMEM
 *   13-15     nothing
 *
 * A unit, 128 keys x up to 256 columns, is summed in one of two TMEM stages, one a math warpgroup:
 * TMEM columns 0-255 and 256-511, all 512. tcgen05.ld 16x256b of 64 columns brings 16 keys to a
 * warp.
 *
 * Shared memory and the barriers of keys and queries: index_stream.cuh. And
 *   sums full, per stage (1)    commit                         math
 *   sums empty (4)              math warps, all loaded         MMA
 * The keys of a unit are released when its sums are full, which says that all MMAs issued before
 * are complete.
 *
 * Cycles of a unit with 4 rows of 64 heads, D 128, fp8 (from instruction rates, not measured):
 *   MMA      4 x 128 = 512
 *   SMEM     operands 4 x 96, key copies 128 / 2 groups, shuffles and appends 60: 508
 *   max      128 x 256 at 64 a cycle = 512; fma.f32x2 256; tcgen05.ld 256
 * MMA and the max of the ReLU tie, and the warpgroups alternate: one loads while the other's
 * accumulators fill. A block has no second tile in flight, so writing lists (select and sort of K)
 * is not hidden: docs/performance.md. */
#include "../index_stream.cuh"
#include "../ptx/launch.cuh"
#include "../ptx/tcgen05.cuh"

static const int ALL_THREADS = 512, MATH_REGISTERS = 176, OTHER_REGISTERS = 80;
static_assert(2 * TEAM * (MATH_REGISTERS + OTHER_REGISTERS) <= 65536, "registers of an SM");

template <bool BF16> struct map : index_map<BF16> {
    static const int TMEM = index_map<BF16>::OWN;
    static const int SUM_FULL = index_map<BF16>::OWN_BARRIERS, SUM_EMPTY = SUM_FULL + 16;
};

/* -------------------------------------------------------------------------------------- MMA */

template <bool BF16, int HP>
__device__ __forceinline__ void mma_role(const struct index_launch &a, u32 smem, u32 tmem)
{
    typedef map<BF16> m;
    const operand_type type = BF16 ? OPERAND_BF16 : OPERAND_E4M3;
    const struct shape s = shape_of<HP, 1>(a);
    bool leader = elect_one();
    int steps32 = ((BF16 ? 2 : 1) * a.dim + 31) / 32; /* of D, 32 bytes each */
    u32 idesc = umma_idesc(KEYS, 64 * s.chunks, type, type, OPERAND_F32, false, false);
    ring<m::STAGES> at;
    u32 free_phase[2] = {1, 1};
    for (int task = blockIdx.x; task < a.tiles * a.parts; task += gridDim.x) {
        struct work w = find_work(a, task);
        /* One lane waits and issues: another could wait so long that it misses a phase. */
        for (int i = 0; leader && i < w.steps; i++) {
            mbarrier_wait(smem + m::KEY_FULL + 8 * at.stage, at.phase);
            for (int group = 0; group < s.groups; group++) {
                int stage = s.groups == 1 ? i & 1 : group;
                if (MLA_MUTANT != 5)
                    mbarrier_wait(smem + m::SUM_EMPTY + 8 * stage,
                                  stage ? free_phase[1] : free_phase[0]);
                free_phase[0] ^= stage == 0;
                free_phase[1] ^= stage == 1;
                if (MLA_MUTANT != 6)
                    tcgen05_fence_after();
                u64 k = umma_desc(smem + m::KEY + at.stage * m::STAGE_BYTES, 0,
                                  MLA_MUTANT == 7 ? 512 : 1024, 128);
                u64 q = umma_desc(smem + m::QUERY + group * m::GROUP_BYTES, 0, 1024, 128);
                for (int d = 0; d < steps32; d++) {
                    /* 32 bytes on in the swizzle atom; bf16: 64 of D on after four. */
                    u64 ka = k + (d / 4 * m::HALF_K + d % 4 * 32) / 16;
                    u64 qb = q + (d / 4 * m::HALF_Q + d % 4 * 32) / 16;
                    tcgen05_mma_ss<1, BF16 ? KIND_F16 : KIND_F8F6F4>(tmem + 256 * stage, ka, qb,
                                                                     idesc,
                                                                     d > 0 || MLA_MUTANT == 8);
                    if (MLA_MUTANT == 9 && d == steps32 - 2)
                        tcgen05_commit<1>(smem + m::SUM_FULL + 8 * stage);
                }
                if (!(MLA_MUTANT == 9 && steps32 > 1))
                    tcgen05_commit<1>(smem + m::SUM_FULL + 8 * stage);
            }
            at.next();
        }
        __syncwarp();
    }
}

/* One unit: the sums of 128 keys x the group's columns, from TMEM to the rows' candidates. */
template <bool BF16, int HP>
__device__ __forceinline__ void unit(const struct team_work<BF16> &t, const u64 *weights,
                                     int chunks, u32 tmem, u32 empty, float scale, bool seen,
                                     int pos)
{
    typedef columns<HP> c;
    const u32 half = MLA_MUTANT == 12 ? 8u << 16 : 16u << 16; /* lanes */
    u32 a[32], b[32];
    u64 sum[c::CHUNK_ROWS][4];
    tcgen05_ld_16x256b(a, tmem);
#pragma unroll
    for (int chunk = 0; chunk < c::CHUNKS; chunk++) {
        if (chunk >= chunks)
            break;
        if (chunk % c::ROW_CHUNKS == 0)
            zero_sums(sum);
        if (MLA_MUTANT != 13)
            tcgen05_wait_ld();
        tcgen05_ld_16x256b(b, tmem + half + 64 * chunk); /* comes in while a is added up */
        tcgen05_bind(a);
        add_heads<BF16, HP>(a, weights + 8 * chunk, chunk, 0, t.a.heads, sum);
        tcgen05_wait_ld();
        if (chunk + 1 < chunks) {
            tcgen05_ld_16x256b(a, tmem + 64 * (chunk + 1));
        } else { /* the stage has been read */
            if (MLA_MUTANT != 14)
                tcgen05_fence_before();
            __syncwarp();
            if (threadIdx.x % 32 == 0)
                mbarrier_arrive(empty);
        }
        tcgen05_bind(b);
        add_heads<BF16, HP>(b, weights + 8 * chunk, chunk, 1, t.a.heads, sum);
        if ((chunk + 1) % c::ROW_CHUNKS == 0)
            emit_rows<BF16, HP>(t, chunk, scale, seen, pos, sum);
    }
}

template <bool BF16, int HP>
__device__ __forceinline__ void math_role(const struct index_launch &a, u32 smem, u32 tmem)
{
    typedef map<BF16> m;
    const struct shape s = shape_of<HP, 1>(a);
    int lane = threadIdx.x % 32, quarter = threadIdx.x / 32 % 4, group = threadIdx.x / TEAM;
    /* What the lane owns after sum_lanes. */
    int key = 32 * quarter + (MLA_MUTANT == 17 ? lane : lane / 4 + 8 * (lane % 4));
    struct team_work<BF16> t = team_of<BF16>(a, s, smem, group);
    tmem += ((u32)(32 * quarter) << 16) + 256 * group;
    int stride = s.groups == 1 ? 2 : 1, first = s.groups == 1 ? group : 0;
    ring<m::STAGES> here; /* of the warpgroup's next unit */
    here.skip(first);
    u32 full_phase = 0;
    for (int task = blockIdx.x; task < a.tiles * a.parts; task += gridDim.x) {
        struct work w = find_work(a, task);
        u64 weights[8 * columns<HP>::CHUNKS];
        begin_task<BF16, HP>(t, s, w, weights);
        int i = first, units = 0;
        for (; i < w.steps; i += stride) {
            mbarrier_wait(smem + m::KEY_FULL + 8 * here.stage, here.phase);
            mbarrier_wait(smem + m::SUM_FULL + 8 * group, full_phase);
            full_phase ^= 1;
            if (MLA_MUTANT != 15)
                tcgen05_fence_after();
            uint2 v = ld_shared<uint2>(smem + m::SCALE + (here.stage * KEYS + key) * 8);
            __syncwarp();
            if (lane == 0)
                mbarrier_arrive(smem + m::KEY_EMPTY + 8 * here.stage);
            unit<BF16, HP>(t, weights, s.chunks, tmem, smem + m::SUM_EMPTY + 8 * group,
                           __uint_as_float(v.x), v.y, w.from + i * KEYS + key);
            here.skip(stride);
            end_unit(t, ++units);
        }
        /* From behind its last step to its first of the next task: -1, 0 or 1 stages. */
        here.skip(2 * m::STAGES + w.steps + first - i);
        end_task(t, s, w, group);
    }
}

template <bool BF16, int HP>
__global__ void __launch_bounds__(ALL_THREADS, 1)
    index_sm100_kernel(const __grid_constant__ struct index_launch a)
{
    typedef map<BF16> m;
    u32 smem = dynamic_smem(), warp = warp_index();
    if (warp == 12) {
        if (elect_one()) {
            int groups = shape_of<HP, 1>(a).groups;
            for (int i = 0; i < m::STAGES; i++) {
                mbarrier_init(smem + m::KEY_FULL + 8 * i, 4 * LANES_THAT_ARRIVE);
                mbarrier_init(smem + m::KEY_EMPTY + 8 * i, 4 * groups);
            }
            for (int i = 0; i < 2; i++) {
                mbarrier_init(smem + m::SUM_FULL + 8 * i, 1);
                mbarrier_init(smem + m::SUM_EMPTY + 8 * i, 4);
            }
            fence_mbarrier_init();
        }
        __syncwarp();
        tcgen05_alloc<1>(smem + m::TMEM, 512);
        tcgen05_relinquish<1>();
    }
    tcgen05_fence_before();
    __syncthreads();
    tcgen05_fence_after();
    u32 tmem = ld_shared<u32>(smem + m::TMEM);
    if (warp < 8) {
        MLA_ROLE("math");
        setmaxnreg_inc<MATH_REGISTERS>();
        math_role<BF16, HP>(a, smem, tmem);
    } else {
        setmaxnreg_dec<OTHER_REGISTERS>();
        if (warp < 12) {
            MLA_ROLE("load");
            load_role<BF16, HP>(a, shape_of<HP, 1>(a), smem);
        } else if (warp == 12) {
            MLA_ROLE("mma");
            mma_role<BF16, HP>(a, smem, tmem);
        }
    }
    tcgen05_fence_before();
    __syncthreads();
    if (warp == 12) {
        tcgen05_fence_after();
        tcgen05_dealloc<1>(tmem, 512);
    }
}

/* --------------------------------------------------------------------- host */

static bool supports(const mla_context *context, const mla_index_args *args, char *why,
                     size_t bytes)
{
    if (context->sm != 100 && context->sm != 103)
        snprintf(why, bytes, "the device is sm_%d, not sm_100 or sm_103", context->sm);
    else if (args->heads > 256)
        snprintf(why, bytes, "heads %lld, at most 256", (long long)args->heads);
    else
        return true;
    return false;
}

static int most_rows(const mla_index_args *args)
{
    return tile_rows(args, 16);
}

static int buffers(const mla_index_args *args, int rows)
{
    return rows > group_rows(args, 16) ? 1 : 2;
}

template <bool BF16> static const void *kernel_of(int hp)
{
    return hp == 16    ? mla_kernel_address(index_sm100_kernel<BF16, 16>)
           : hp == 32  ? mla_kernel_address(index_sm100_kernel<BF16, 32>)
           : hp == 64  ? mla_kernel_address(index_sm100_kernel<BF16, 64>)
           : hp == 128 ? mla_kernel_address(index_sm100_kernel<BF16, 128>)
                       : mla_kernel_address(index_sm100_kernel<BF16, 256>);
}

static cudaError_t launch(const struct index_launch *a, unsigned blocks, cudaStream_t stream)
{
    bool fp8 = a->q_fp8 && a->k_fp8;
    int hp = padded_heads(a->heads, 16), bytes = fp8 ? map<false>::BYTES : map<true>::BYTES;
    const void *kernel = fp8 ? kernel_of<false>(hp) : kernel_of<true>(hp);
    cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    void *list[] = {(void *)a};
    return error ? error
                 : cudaLaunchKernel(kernel, dim3(blocks), dim3(ALL_THREADS), list, bytes, stream);
}

extern "C" const struct mla_index_engine mla_index_sm100 = {
    "index_logits_sm100", MLA_PROOF_MODEL, supports, most_rows, buffers, launch};
