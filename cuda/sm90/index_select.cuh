/* SPDX-License-Identifier: Apache-2.0 */
/* Exact selection for index_tile.cu: the K largest of a row's candidates, and its list.
 *
 * A row's items (any/select.cuh) lie in five pieces of its buffer: the four warps of a warpgroup
 * each append to a segment of their own, without atomics, and what an earlier selection kept is the
 * fifth. Nothing is moved to find the list: one pass counts items in 2048 bins over the range of a
 * sample, one collects the items of the bin that the K-th is in, where their order is found by
 * comparison, and one marks the positions of the list in a bitmap, which is read out in order of
 * position. Bins at the ends of the sampled range take what lies beyond; a bin with many items, or
 * with equal scores, is counted anew over its own range, down to single items.
 *
 * All functions are called by all threads of a team (index_stream.cuh says what that is). */
#ifndef MLA_CUDA_SM90_INDEX_SELECT_CUH
#define MLA_CUDA_SM90_INDEX_SELECT_CUH

#include "../index_stream.cuh"

static const int SEGMENTS = 4, PIECES = SEGMENTS + 1;
static const int LIST = 256; /* items of a bin that are compared with one another */
static const int MAP_WORDS = 4096;

/* Words of a row's tally, in shared memory: items of the segments, of what was kept, where that
 * begins in the row's buffer, and the keys that the row sees. */
enum { TALLY_KEPT = 16, TALLY_AT = 20, TALLY_LOW = 24, TALLY_HIGH = 28, TALLY_BYTES = 32 };

/* Where a team's shared memory has what. The bins make way for the list. */
enum {
    KTH_LOW = 0,
    KTH_HIGH = 16,
    KTH_SUM = 32,
    KTH_BIN = 48,
    KTH_ABOVE = 52,
    KTH_COUNT = 56,
    KTH_TAKEN = 60,
    KTH_FLOOR = 64,
    KTH_BINS = 80,
    KTH_BYTES = KTH_BINS + 4 * BINS
};

/* Two buffers, `buffer` items apart, each with `kept` items and then two segments of `length`. */
struct row_items {
    uint64_t *p;
    u32 tally;
    int buffer, kept, length;

    __device__ __forceinline__ int count(int piece) const
    {
        return ld_shared<int>(tally + 4 * piece);
    }
    __device__ __forceinline__ int total() const
    {
        int n = 0;
#pragma unroll
        for (int i = 0; i < PIECES; i++)
            n += count(i);
        return n;
    }
    __device__ __forceinline__ uint64_t *segment(int i) const
    {
        return p + (i < 2 ? 0 : buffer) + kept + i % 2 * length;
    }
    __device__ __forceinline__ const uint64_t *piece(int i) const
    {
        return i < SEGMENTS ? segment(i) : p + ld_shared<int>(tally + TALLY_AT);
    }
    /* Where nothing is kept now. */
    __device__ __forceinline__ uint64_t *free_place() const
    {
        return p + (ld_shared<int>(tally + TALLY_AT) ? 0 : buffer);
    }
};

/* f(there, item), all lanes of a warp at once. */
template <class TEAM, class F>
static __device__ __forceinline__ void each_item(const TEAM &team, const struct row_items &x,
                                                 const F &f)
{
    const int threads = TEAM::THREADS, each = 4;
#pragma unroll 1
    for (int i = 0; i < PIECES; i++) {
        int n = x.count(i);
        const uint64_t *from = x.piece(i);
#pragma unroll 1
        for (int first = 0; first < n; first += 2 * each * threads) {
            uint4 v[each];
            int at = first + 2 * team.rank();
#pragma unroll
            for (int j = 0; j < each; j++)
                v[j] = at + 2 * j * threads < n ? *(const uint4 *)(from + at + 2 * j * threads)
                                                : make_uint4(0, 0, 0, 0);
#pragma unroll
            for (int j = 0; j < each; j++) {
                int k = at + 2 * j * threads;
                f(k < n, (uint64_t)v[j].y << 32 | v[j].x);
                f(k + 1 < n, (uint64_t)v[j].w << 32 | v[j].z);
            }
        }
    }
}

/* Sum over the ranks up to this one, and of all. */
template <class TEAM> static __device__ u32 team_scan(const TEAM &team, u32 own, u32 *all)
{
    int lane = team.rank() % 32, warp = team.rank() / 32;
    u32 upto = own;
    for (int step = 1; step < 32; step *= 2) {
        u32 other = __shfl_up_sync(0xFFFFFFFFu, upto, step);
        upto += lane >= step ? other : 0;
    }
    if (lane == 31)
        team.put(KTH_SUM + 4 * warp, upto);
    team.sync();
    *all = 0;
    for (int i = 0; i < TEAM::THREADS / 32; i++) {
        u32 sum = team.template get<u32>(KTH_SUM + 4 * i);
        upto += i < warp ? sum : 0;
        *all += sum;
    }
    return upto;
}

/* The range that a sample of the items covers, by their scores. */
template <class TEAM>
static __device__ void sample_range(const TEAM &team, const struct row_items &x, u32 *low,
                                    u32 *high)
{
    u32 least = ~0u, most = 0;
#pragma unroll
    for (int i = 0; i < PIECES; i++) {
        u32 n = x.count(i), at = (u32)((uint64_t)team.rank() * n / TEAM::THREADS);
        u32 score = n ? (u32)(x.piece(i)[at] >> 32) : 0;
        least = n ? min(least, score) : least;
        most = max(most, score);
    }
    for (int step = 16; step; step /= 2) {
        least = min(least, __shfl_xor_sync(0xFFFFFFFFu, least, step));
        most = max(most, __shfl_xor_sync(0xFFFFFFFFu, most, step));
    }
    if (team.rank() % 32 == 0) {
        team.put(KTH_LOW + team.rank() / 8, least);
        team.put(KTH_HIGH + team.rank() / 8, most);
    }
    team.sync();
    for (int i = 0; i < TEAM::THREADS / 32; i++) {
        least = min(least, team.template get<u32>(KTH_LOW + 4 * i));
        most = max(most, team.template get<u32>(KTH_HIGH + 4 * i));
    }
    *low = least;
    *high = most;
}

/* The bin from the top where the counts reach need; what is above it and in it. */
template <class TEAM>
static __device__ u32 find_bin(const TEAM &team, u32 need, u32 *above, u32 *count)
{
    const int each = BINS / TEAM::THREADS + 1; /* odd or not a power of two: banks differ */
    int top = BINS - 1 - each * team.rank();
    u32 own = 0, all;
    for (int i = 0; i < each; i++)
        own += top - i >= 0 ? team.template get<u32>(KTH_BINS + 4 * (top - i)) : 0;
    u32 upto = team_scan(team, own, &all), sum = upto - own;
    if (sum < need && upto >= need) {
        int bin = top;
        u32 n;
        while (n = team.template get<u32>(KTH_BINS + 4 * bin), sum + n < need) {
            sum += n;
            bin--;
        }
        team.put(KTH_BIN, (u32)bin);
        team.put(KTH_ABOVE, sum);
        team.put(KTH_COUNT, n);
        team.put(KTH_TAKEN, 0u);
    }
    team.sync();
    *above = team.template get<u32>(KTH_ABOVE);
    *count = team.template get<u32>(KTH_COUNT);
    return team.template get<u32>(KTH_BIN);
}

/* f such that exactly k of the items, which are more than k >= 1, are >= f. */
template <class TEAM>
static __device__ uint64_t kth_item(const TEAM &team, const struct row_items &x, int k)
{
    u32 least, most, need = k;
    sample_range(team, x, &least, &most);
    uint64_t low = (uint64_t)least << 32, last = ~0ull;
    int shift = 32 + max(0, 32 - __clz((int)(most - least)) - BIN_BITS);
    for (bool sampled = true;; sampled = false) {
        for (int i = team.rank(); i < BINS; i += TEAM::THREADS)
            team.put(KTH_BINS + 4 * i, 0u);
        team.sync();
        each_item(team, x, [&](bool there, uint64_t item) {
            uint64_t bin = (item - low) >> shift;
            bool below = item < low;
            u32 at = below ? 0 : (u32)min(bin, (uint64_t)(BINS - 1));
            if (there && (sampled || (!below && item <= last)))
                team.add(KTH_BINS + 4 * at, 1u);
        });
        team.sync();
        u32 above, count, bin = find_bin(team, need, &above, &count);
        uint64_t from = low + ((uint64_t)bin << shift), to = from + ((1ull << shift) - 1);
        if (sampled && bin == BINS - 1)
            to = ~0ull;
        low = sampled && bin == 0 ? 0 : from;
        last = min(last, to);
        need -= above;
        if (count == need) /* at the latest a bin is one item */
            return low;
        if (count <= (u32)LIST)
            break;
        shift = max(0, 64 - __clzll((long long)(last - low)) - BIN_BITS);
    }
    each_item(team, x, [&](bool there, uint64_t item) {
        if (there && item >= low && item <= last)
            team.put(KTH_BINS + 8 * (int)team.add(KTH_TAKEN, 1u), item);
    });
    team.sync();
    int n = (int)team.template get<u32>(KTH_TAKEN);
    for (int i = team.rank(); i < n; i += TEAM::THREADS) {
        uint64_t mine = team.template get<uint64_t>(KTH_BINS + 8 * i);
        u32 better = 0;
        for (int j = 0; j < n; j++)
            better += team.template get<uint64_t>(KTH_BINS + 8 * j) > mine;
        if (better == need - (MLA_MUTANT == 39 ? 0 : 1))
            team.put(KTH_FLOOR, mine);
    }
    team.sync();
    return team.template get<uint64_t>(KTH_FLOOR);
}

/* Copies the items >= floor to where none of them lies; returns their number. */
template <class TEAM>
static __device__ int gather(const TEAM &team, const struct row_items &x, uint64_t floor,
                             uint64_t *to)
{
    int lane = team.rank() % 32;
    team.sync();
    if (team.rank() == 0)
        team.put(KTH_TAKEN, 0u);
    team.sync();
    each_item(team, x, [&](bool there, uint64_t item) {
        bool keep = there && item >= floor;
        u32 votes = __ballot_sync(0xFFFFFFFFu, keep), at = 0;
        if (lane == 0 && votes)
            at = team.add(KTH_TAKEN, __popc(votes));
        at = __shfl_sync(0xFFFFFFFFu, at, 0) + __popc(votes & ((1u << lane) - 1));
        if (keep)
            to[at] = item;
    });
    team.sync();
    return (int)team.template get<u32>(KTH_TAKEN);
}

/* The row's list by index: n items >= floor, of keys [low, high). map: 4 * MAP_WORDS bytes. */
template <class TEAM>
static __device__ void list_by_index(const TEAM &team, const struct row_items &x, uint64_t floor,
                                     int n, int low, int high, u32 map, const struct list_out &out)
{
    u32 written = 0;
    for (int64_t first = low & ~31; first < high; first += 32 * MAP_WORDS) {
        int words = (int)min((int64_t)MAP_WORDS, (high - first + 31) / 32);
        team.sync();
        for (int i = team.rank(); i < words; i += TEAM::THREADS)
            st_shared(map + 4 * i, 0u);
        team.sync();
        each_item(team, x, [&](bool there, uint64_t item) {
            u32 at = ~(u32)item - (u32)first;
            if (there && item >= floor && at < 32u * words) /* once each: to add is to set */
                atom_add_shared(map + at / 32 * 4, 1u << at % 32);
        });
        team.sync();
        int each = (words + TEAM::THREADS - 1) / TEAM::THREADS, word = each * team.rank();
        u32 own = 0, all;
        for (int i = word; i < min(words, word + each); i++)
            own += __popc(ld_shared<u32>(map + 4 * i));
        u32 at = written + team_scan(team, own, &all) - own;
        for (int i = word; i < min(words, word + each); i++) {
            int base = (int)first + 32 * i - out.base;
            for (u32 bits = ld_shared<u32>(map + 4 * i); bits; bits &= bits - 1)
                out.indices[at++] = base + __ffs((int)bits) - 1;
        }
        written += all;
    }
    for (int64_t i = n + team.rank(); i < out.topk; i += TEAM::THREADS)
        out.indices[i] = -1;
    if (out.len && team.rank() == 0)
        *out.len = n;
    team.sync();
}

/* Selects, orders and writes a row. scratch: shared memory, 4 * MAP_WORDS bytes. */
template <class TEAM>
static __device__ void write_list(const TEAM &team, const struct row_items &x, int k, u32 scratch,
                                  const struct list_out &out)
{
    int n = x.total();
    uint64_t floor = n > k ? kth_item(team, x, k) : 0;
    n = min(n, k);
    if (out.ascending && !out.scores) {
        list_by_index(team, x, floor, n, ld_shared<int>(x.tally + TALLY_LOW),
                      ld_shared<int>(x.tally + TALLY_HIGH), scratch, out);
        return;
    }
    uint64_t *free = x.free_place(); /* the segments behind it have been read when it is sorted */
    struct shared_items sorted = {scratch};
    struct items_at in_place = {free};
    static_assert(8 * SORT_ITEMS == 4 * MAP_WORDS, "scratch is either");
    gather(team, x, floor, free);
    if (sort_length(n) <= SORT_ITEMS)
        write_row(team, free, n, sorted, out);
    else
        write_row(team, free, n, in_place, out);
}

#endif
