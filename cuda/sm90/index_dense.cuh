/* SPDX-License-Identifier: Apache-2.0 */
/* Lists from a row whose scores all lie in order of keys, as index_tile.cu writes them. A score has
 * one place and 4 bytes, so that nothing but its bin is computed, and the bitmap of a list comes
 * from ballots. Bins have equal widths in scores, not in their bits: those of small numbers are
 * many, and a bin with too many scores is counted anew (list.cuh). */
#ifndef MLA_CUDA_SM90_INDEX_DENSE_CUH
#define MLA_CUDA_SM90_INDEX_DENSE_CUH

#include "../any/list.cuh"

static const u32 UNSEEN = 0xFFFFFFFFu; /* in the place of a key that the row does not see */

/* What lies in a seen key's place: +0 for -0, one NaN for all. */
__device__ __forceinline__ float dense_score(float scale, float sum)
{
    return max_nan_f32(fmaf(scale, sum, 0.0f), -INFINITY);
}

/* The upper half of item_of(). */
__device__ __forceinline__ u32 dense_order(float x)
{
    u32 bits = __float_as_uint(x);
    bits ^= (u32)((int)bits >> 31) | 0x80000000u;
    return x != x ? 0 : bits;
}

/* Keys [from, from + n), n a multiple of 128 and at most 32 * MAP_WORDS: the first `split` scores
 * at p, a multiple of 128 too, the others at rest. */
struct dense_row {
    const float *p, *rest;
    int n, split, from;
    int seen; /* once they have been counted */

    __device__ __forceinline__ int total() const
    {
        return seen;
    }
    __device__ __forceinline__ float at(int i) const
    {
        return i < split ? p[i] : rest[i - split];
    }
    template <class TEAM>
    __device__ __forceinline__ void sample(const TEAM &team, u32 *least, u32 *most) const
    {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            u32 rank = 4 * team.rank() + i;
            float x =
                n ? at((int)((u64)rank * (u32)n / (4 * TEAM::THREADS))) : __uint_as_float(UNSEEN);
            bool there = __float_as_uint(x) != UNSEEN;
            u32 score = dense_order(x);
            *least = there ? min(*least, score) : *least;
            *most = there ? max(*most, score) : *most;
        }
    }
    /* f(position, score, seen), a word of a bitmap a warp. */
    template <class TEAM, class F>
    __device__ __forceinline__ void words(const TEAM &team, const F &f) const
    {
        const int batch = 8;
#pragma unroll 1
        for (int begin = 0; begin < n; begin += split) {
            const float *from = (begin ? rest : p) + team.rank();
            int end = min(n - begin, begin ? n : split);
#pragma unroll 1
            for (int first = 0; first < end; first += batch * TEAM::THREADS) {
                float x[batch];
#pragma unroll
                for (int j = 0; j < batch; j++)
                    x[j] = first + j * TEAM::THREADS < end ? from[first + j * TEAM::THREADS]
                                                           : __uint_as_float(UNSEEN);
#pragma unroll
                for (int j = 0; j < batch; j++)
                    if (first + j * TEAM::THREADS < end)
                        f(begin + first + j * TEAM::THREADS + team.rank(), x[j],
                          __float_as_uint(x[j]) != UNSEEN);
            }
            if (begin)
                break;
        }
    }
    template <class TEAM, class F>
    __device__ __forceinline__ void each(const TEAM &team, const F &f) const
    {
        words(team, [&](int i, float x, bool there) {
            f(there, (uint64_t)dense_order(x) << 32 | ~(u32)(from + i));
        });
    }
};

/* Bins of equal width in scores; where one score is larger than another, its bin is no smaller. */
struct dense_bins {
    float scale, bias;

    __device__ __forceinline__ int of(float x) const /* NaN: 0 */
    {
        return (int)fminf(fmaxf(fmaf(x, scale, bias), 0.0f), (float)(BINS - 1));
    }
};

/* The row's list by index, of keys [low, high). map: as list_by_index(). */
template <class TEAM>
static __device__ void dense_list(const TEAM &team, struct dense_row &x, int k, int low, int high,
                                  u32 map, const struct list_out &out)
{
    u32 least, most, above, count, all;
    sample_range(team, x, &least, &most);
    float first = score_of(least), range = score_of(most) - first;
    struct dense_bins bins = {(float)BINS / range, 0};
    bins.bias = -first * bins.scale;
    bool even = least < most && bins.scale > 0 && bins.scale < 1e30f && fabsf(bins.bias) < 1e30f;
    if (!even)
        bins = {0, 0};
    for (int i = team.rank(); i < BINS; i += TEAM::THREADS)
        team.put(KTH_BINS + 4 * i, 0u);
    team.sync();
    x.words(team, [&](int, float score, bool there) {
        int bin = bins.of(score);
        if (there)
            team.add(KTH_BINS + 4 * bin, 1u);
    });
    team.sync();
    int edge = (int)find_bin(team, k, &above, &count, &all), need = k - (int)above;
    x.seen = (int)all;
    bool take = false; /* all of the bin at the edge */
    if (x.seen <= k)
        edge = 0, take = true;
    else if ((int)count == need)
        take = true;
    else if (count > (u32)LIST) {
        list_by_index(team, x, k, low, high, map, out);
        return;
    }
    int from = edge + (take ? 0 : 1);
    x.words(team, [&](int at, float score, bool there) {
        int bin = bins.of(score);
        u32 votes = __ballot_sync(0xFFFFFFFFu, there && bin >= from);
        if (at % 32 == 0)
            st_shared(map + at / 8, votes);
        if (there && !take && bin == edge)
            collect(team, (uint64_t)dense_order(score) << 32 | ~(u32)(x.from + at));
    });
    team.sync();
    if (!take) {
        each_collected(team, need, [&](uint64_t item, bool) {
            u32 at = ~(u32)item - (u32)x.from;
            atom_add_shared(map + at / 32 * 4, 1u << at % 32);
        });
        team.sync();
    }
    write_map(team, map, x.n / 32, x.from, 0, out);
    end_list(team, min(x.seen, k), out);
}

#endif
