/* SPDX-License-Identifier: Apache-2.0 */
/* Joins partial results over disjoint sets of keys, in the order of the parts, so that results
 * repeat bit by bit:  lse = log2 sum 2^lse_i,  out = sum 2^(lse_i - lse) · out_i.
 *
 * mqa_combine_kernel: the key splits of all engines, four warps a row, a lane for four columns;
 * where there are more than eight parts, four times as many: warps share the parts by eights, all
 * of which are asked for at once, and one adds what the others found, in order.
 * merge_kernel: mla_merge, one warp a row, each lane walks it in steps of 32 columns. 8 warps a
 * block. Both read every part once and write the result once: memory bandwidth is
 * the bound. A part without keys (lse = -inf) is not read, whatever its row holds. */
#include "../element.cuh"
#include "../ptx/launch.cuh"
#include "../ptx/warp.cuh"
#include "../mutant.cuh"
#include "merge.h"
#include "mqa.h"

static const int THREADS = MLA_MQA_THREADS;
static const int COLUMNS = MLA_MQA_LATENT / MLA_MQA_COMBINE_WARPS; /* of a warp, four a lane */

__device__ __forceinline__ void store_one(int dtype, void *out, int64_t at, float x)
{
    if (dtype == MLA_F32)
        ((float *)out)[at] = x;
    else if (dtype == MLA_BF16)
        ((uint16_t *)out)[at] = (uint16_t)cvt_rn_bf16x2_f32(x, 0);
    else
        ((uint16_t *)out)[at] = (uint16_t)cvt_rn_f16x2_f32(x, 0);
}

__device__ __forceinline__ float load_one(int dtype, const void *in, int64_t at)
{
    if (dtype == MLA_F32)
        return ((const float *)in)[at];
    if (dtype == MLA_BF16)
        return __uint_as_float((uint32_t)((const uint16_t *)in)[at] << 16);
    return __half2float(((const __half *)in)[at]);
}

template <int GROUPS> /* of warps that share the parts */
__global__ void __launch_bounds__(MLA_MQA_THREADS)
    mqa_combine_kernel(const __grid_constant__ struct mla_mqa_args a, int64_t rows)
{
    const int UNITS = THREADS / 32 / GROUPS; /* of 128 columns, a block */
    __shared__ float4 others[GROUPS > 1 ? GROUPS - 1 : 1][UNITS][32];
    __shared__ float other_sums[GROUPS > 1 ? GROUPS - 1 : 1][UNITS];
    const int lane = threadIdx.x % 32, group = threadIdx.x / 32 / UNITS;
    const int unit = threadIdx.x / 32 % UNITS;
    const int64_t all = (int64_t)blockIdx.x * UNITS + unit, row = all / MLA_MQA_COMBINE_WARPS;
    const int column = (int)(all % MLA_MQA_COMBINE_WARPS) * COLUMNS + lane * 4;
    if (row >= rows)
        return;
    /* The split request that holds the row; requests with one split hold none. */
    int found = 0;
    for (int i = lane; i < a.num_requests; i += 32) {
        int64_t next = i + 1 < a.num_requests ? a.requests[i + 1].first_row : rows;
        if (row >= a.requests[i].first_row && row < next)
            found = i;
    }
    found = __reduce_max_sync(0xFFFFFFFFu, found);
    const struct mla_mqa_request r = a.requests[found];
#if defined(MLA_MODEL) || (defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900)
    griddep_wait(); /* this grid may start while the one that writes the parts is ending */
#endif
    int at = (int)(row - r.first_row), head = at % a.heads;
    int64_t token = r.q_start + at / a.heads, per_split = (int64_t)r.query_len * a.heads;
    const float *lse = a.part_lse + r.part_row + at, *top = a.part_max + r.part_row + at;
    const float *out = a.part_out + (r.part_row + at) * MLA_MQA_LATENT + column;

    /* Parts by eights, which are asked for before their weights are known. */
    float4 v[8];
    float mine;
    uint32_t there;
    const auto ask = [&](int first) {
        const int part = first + lane % 8;
        mine = part < r.splits ? lse[part * per_split] : -INFINITY;
        there = __ballot_sync(0xFFFFFFFFu, mine != -INFINITY);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            v[i] = make_float4(0, 0, 0, 0);
            if (there >> i & 1)
                v[i] = *(const float4 *)(out + (first + i) * per_split * MLA_MQA_LATENT);
        }
    };
    ask(group * 8);
    float reference = -INFINITY, max_log2 = -INFINITY;
    bool bad = false; /* fmaxf drops NaN; here it must stay */
    for (int s = lane; s < r.splits; s += 32) {
        float l = lse[s * per_split];
        bad |= isnan(l);
        reference = fmaxf(reference, l);
        if (a.max_logits)
            max_log2 = fmaxf(max_log2, top[s * per_split]);
    }
    for (int i = 16; i; i /= 2) {
        reference = fmaxf(reference, __shfl_xor_sync(0xFFFFFFFFu, reference, i));
        max_log2 = fmaxf(max_log2, __shfl_xor_sync(0xFFFFFFFFu, max_log2, i));
    }
    float sink = a.sink ? a.sink[head] * 1.44269504f : -INFINITY;
    reference = __any_sync(0xFFFFFFFFu, bad) ? NAN : fmaxf(reference, sink);
    bool nothing = isinf(reference); /* no key and no sink, or a sink of +inf */
    float sum = nothing ? 1 : group ? 0 : exp2f(sink - reference);
    float4 acc = make_float4(0, 0, 0, 0);
    for (int first = group * 8; !nothing && first < r.splits; first += GROUPS * 8) {
        if (first != group * 8)
            ask(first);
        mine = mine == -INFINITY || MUTANT(SPLIT_MEAN) ? 1.0f : exp2f(mine - reference);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const float weight = __shfl_sync(0xFFFFFFFFu, mine, i);
            if (!(there >> i & 1))
                continue;
            sum += MUTANT(SPLIT_LOST) && first + i == 1 ? 0 : weight;
            acc.x += weight * v[i].x;
            acc.y += weight * v[i].y;
            acc.z += weight * v[i].z;
            acc.w += weight * v[i].w;
        }
    }
    if (GROUPS > 1) {
        if (group) {
            others[group - 1][unit][lane] = acc;
            if (lane == 0)
                other_sums[group - 1][unit] = sum;
        }
        __syncthreads();
        if (group)
            return;
#pragma unroll
        for (int i = 0; i < GROUPS - 1 && !nothing; i++) {
            const float4 more = others[i][unit][lane];
            acc = make_float4(acc.x + more.x, acc.y + more.y, acc.z + more.z, acc.w + more.w);
            sum += other_sums[i][unit];
        }
    }
    float factor = nothing ? 0 : 1 / sum;
    int64_t to = token * a.out_stride[0] + head * a.out_stride[1] + column;
    store_one(a.out_dtype, a.out, to, acc.x * factor);
    store_one(a.out_dtype, a.out, to + 1, acc.y * factor);
    store_one(a.out_dtype, a.out, to + 2, acc.z * factor);
    store_one(a.out_dtype, a.out, to + 3, acc.w * factor);
    if (column != 0)
        return;
    if (a.lse)
        a.lse[token * a.lse_stride[0] + head * a.lse_stride[1]] =
            (nothing ? reference : reference + log2f(sum)) * a.lse_unit;
    if (a.max_logits)
        a.max_logits[token * a.max_stride[0] + head * a.max_stride[1]] = max_log2 * 0.693147181f;
}

/* mla_merge of at most MLA_MERGE_PARTS parts, whose pointers travel as kernel arguments. */
__global__ void __launch_bounds__(MLA_MQA_THREADS)
    merge_kernel(const __grid_constant__ struct mla_merge_parts m)
{
    int lane = threadIdx.x % 32;
    int64_t row = (int64_t)blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
    if (row >= m.rows * m.heads)
        return;
    int64_t token = row / m.heads, head = row % m.heads;
    float sink = m.sink ? m.sink[head] * 1.44269504f : -INFINITY, reference = sink;
    float part_lse[MLA_MERGE_PARTS];
#pragma unroll
    for (int i = 0; i < MLA_MERGE_PARTS; i++) {
        if (i >= m.parts)
            break;
        float l = m.lse[i][token * m.lse_stride[i][0] + head * m.lse_stride[i][1]] * m.to_log2;
        if (m.plus_inf_is_empty && l == INFINITY)
            l = -INFINITY;
        part_lse[i] = l;
        reference = isnan(l) || isnan(reference) ? NAN : fmaxf(reference, l);
    }
    bool nothing = isinf(reference);
    float sum = nothing ? 1 : exp2f(sink - reference);
#pragma unroll
    for (int i = 0; i < MLA_MERGE_PARTS; i++) {
        if (i >= m.parts)
            break;
        part_lse[i] = nothing ? 0 : exp2f(part_lse[i] - reference);
        sum += nothing ? 0 : part_lse[i];
    }
    float factor = nothing ? 0 : 1 / sum;
    for (int64_t c = lane; c < m.dim; c += 32) {
        float acc = 0;
#pragma unroll
        for (int i = 0; i < MLA_MERGE_PARTS; i++) {
            if (i >= m.parts)
                break;
            if (part_lse[i] != 0)
                acc += part_lse[i] *
                       load_one(m.part_dtype, m.out[i],
                                token * m.out_stride[i][0] + head * m.out_stride[i][1] + c);
        }
        store_one(m.out_dtype, m.to, token * m.to_stride[0] + head * m.to_stride[1] + c,
                  acc * factor);
    }
    if (lane == 0 && m.to_lse)
        m.to_lse[token * m.to_lse_stride[0] + head * m.to_lse_stride[1]] =
            (nothing ? reference : reference + log2f(sum)) * m.lse_unit;
}

extern "C" const void *mla_mqa_combine_function(int groups)
{
    return groups > 1 ? mla_kernel_address(mqa_combine_kernel<MLA_MQA_COMBINE_GROUPS>)
                      : mla_kernel_address(mqa_combine_kernel<1>);
}

extern "C" const void *mla_merge_function(void)
{
    return mla_kernel_address(merge_kernel);
}

MLA_MUTANT_SETTER(combine)
