/* SPDX-License-Identifier: Apache-2.0 */
/* Exact lists without moving what they are taken from: the K largest items (select.cuh) of a row
 * that can be read again.
 *
 * One pass counts items in 2048 bins over the range of a sample; one marks the positions of what is
 * above the K-th one's bin in a bitmap and collects that bin's items, whose order is found by
 * comparison. The bitmap is read out in order of position. Bins at the ends of the sampled range
 * take what lies beyond; a bin with many items, or with equal scores, is counted anew over its own
 * range, down to single items.
 *
 * A row X has total(), sample(team, &least, &most), which finds scores (upper halves of items) of
 * one item a thread at least, and each(team, f), which calls f(there, item) in all lanes of a warp
 * at once, for every item once. A team is as in select.cuh, with its shared memory by address; all
 * functions are called by all its threads. */
#ifndef MLA_CUDA_ANY_LIST_CUH
#define MLA_CUDA_ANY_LIST_CUH

#include "../ptx/shared.cuh"
#include "select.cuh"

static const int LIST = 256; /* items of a bin that are compared with one another */
static const int MAP_WORDS = 4096;
static const int LIST_SORT = MAP_WORDS / 2; /* longer lists are sorted in global memory */

/* Where a team's shared memory has what, for up to 8 warps. The bins make way for the list. */
enum {
    KTH_LOW = 0,
    KTH_HIGH = 32,
    KTH_SUM = 64,
    KTH_BIN = 96,
    KTH_ABOVE = 100,
    KTH_COUNT = 104,
    KTH_TAKEN = 108,
    KTH_FLOOR = 112,
    KTH_BINS = 128,
    KTH_BYTES = KTH_BINS + 4 * BINS
};

struct shared_list {
    u32 at;
    __device__ __forceinline__ uint64_t get(int i) const
    {
        return ld_shared<uint64_t>(at + 8 * i);
    }
    __device__ __forceinline__ void put(int i, uint64_t x) const
    {
        st_shared(at + 8 * i, x);
    }
};

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
template <class TEAM, class X>
static __device__ void sample_range(const TEAM &team, const X &x, u32 *low, u32 *high)
{
    u32 least = ~0u, most = 0;
    x.sample(team, &least, &most);
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

/* The bin from the top where the counts reach need, which is at most the sum of all; what is above
 * it and in it. */
template <class TEAM>
static __device__ u32 find_bin(const TEAM &team, u32 need, u32 *above, u32 *count, u32 *all)
{
    const int each = BINS / TEAM::THREADS + 1; /* odd or not a power of two: banks differ */
    int top = BINS - 1 - each * team.rank();
    u32 own = 0;
    for (int i = 0; i < each; i++)
        own += top - i >= 0 ? team.template get<u32>(KTH_BINS + 4 * (top - i)) : 0;
    u32 upto = team_scan(team, own, all), sum = upto - own;
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

/* The k largest of a row's items are those above `last` and the `need` largest of [low, last],
 * which are LIST at most; or, if `all`, those from low on. */
struct kth_range {
    uint64_t low, last;
    u32 need;
    bool all;
};

/* Of a row that has more than k >= 1 items. */
template <class TEAM, class X>
static __device__ struct kth_range find_range(const TEAM &team, const X &x, int k)
{
    u32 least, most, need = k;
    sample_range(team, x, &least, &most);
    uint64_t low = (uint64_t)least << 32, last = ~0ull;
    int shift = 32 + max(0, 32 - __clz((int)(most - least)) - BIN_BITS);
    for (bool sampled = true;; sampled = false) {
        for (int i = team.rank(); i < BINS; i += TEAM::THREADS)
            team.put(KTH_BINS + 4 * i, 0u);
        team.sync();
        x.each(team, [&](bool there, uint64_t item) {
            uint64_t bin = (item - low) >> shift;
            bool below = item < low;
            u32 at = below ? 0 : (u32)min(bin, (uint64_t)(BINS - 1));
            if (there && (sampled || (!below && item <= last)))
                team.add(KTH_BINS + 4 * at, 1u);
        });
        team.sync();
        u32 above, count, all, bin = find_bin(team, need, &above, &count, &all);
        uint64_t from = low + ((uint64_t)bin << shift), to = from + ((1ull << shift) - 1);
        if (sampled && bin == BINS - 1)
            to = ~0ull;
        low = sampled && bin == 0 ? 0 : from;
        last = min(last, to);
        need -= above;
        if (count == need || count <= (u32)LIST) /* at the latest a bin is one item */
            return {low, last, need, count == need};
        shift = max(0, 64 - __clzll((long long)(last - low)) - BIN_BITS);
    }
}

/* Collects an item of [low, last], where the bins were. */
template <class TEAM>
static __device__ __forceinline__ void collect(const TEAM &team, uint64_t item)
{
    team.put(KTH_BINS + 8 * (int)team.add(KTH_TAKEN, 1u), item);
}

/* f(item, is it the smallest) for the collected items that belong to the list. */
template <class TEAM, class F>
static __device__ void each_collected(const TEAM &team, u32 need, const F &f)
{
    int n = (int)team.template get<u32>(KTH_TAKEN);
    for (int i = team.rank(); i < n; i += TEAM::THREADS) {
        uint64_t mine = team.template get<uint64_t>(KTH_BINS + 8 * i);
        u32 better = 0;
        for (int j = 0; j < n; j++)
            better += team.template get<uint64_t>(KTH_BINS + 8 * j) > mine;
        if (better < need + (MLA_MUTANT == 39))
            f(mine, better == need - 1 + (MLA_MUTANT == 39));
    }
}

/* f such that exactly k of the items, which are more than k >= 1, are >= f. */
template <class TEAM, class X>
static __device__ uint64_t kth_item(const TEAM &team, const X &x, int k)
{
    struct kth_range r = find_range(team, x, k);
    if (r.all)
        return r.low;
    x.each(team, [&](bool there, uint64_t item) {
        if (there && item >= r.low && item <= r.last)
            collect(team, item);
    });
    team.sync();
    each_collected(team, r.need, [&](uint64_t item, bool smallest) {
        if (smallest)
            team.put(KTH_FLOOR, item);
    });
    team.sync();
    return team.template get<uint64_t>(KTH_FLOOR);
}

/* Copies the items >= floor to where none of them lies; returns their number. */
template <class TEAM, class X>
static __device__ int gather(const TEAM &team, const X &x, uint64_t floor, uint64_t *to)
{
    int lane = team.rank() % 32;
    team.sync();
    if (team.rank() == 0)
        team.put(KTH_TAKEN, 0u);
    team.sync();
    x.each(team, [&](bool there, uint64_t item) {
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

/* Writes what is marked in a map of `words`, whose first bit is key `first`, behind `written`
 * entries; returns their number. */
template <class TEAM>
static __device__ u32 write_map(const TEAM &team, u32 map, int words, int first, u32 written,
                                const struct list_out &out)
{
    int each = (words + TEAM::THREADS - 1) / TEAM::THREADS, word = each * team.rank();
    u32 own = 0, all;
    for (int i = word; i < min(words, word + each); i++)
        own += __popc(ld_shared<u32>(map + 4 * i));
    u32 at = written + team_scan(team, own, &all) - own;
    for (int i = word; i < min(words, word + each); i++) {
        int base = first + 32 * i - out.base;
        for (u32 bits = ld_shared<u32>(map + 4 * i); bits; bits &= bits - 1)
            out.indices[at++] = base + __ffs((int)bits) - 1;
    }
    return all;
}

/* A list of n entries has been written. */
template <class TEAM>
static __device__ void end_list(const TEAM &team, int n, const struct list_out &out)
{
    for (int64_t i = n + team.rank(); i < out.topk; i += TEAM::THREADS)
        out.indices[i] = -1;
    if (out.len && team.rank() == 0)
        *out.len = n;
    team.sync();
}

/* The row's list by index, of keys [low, high). map: 4 * MAP_WORDS bytes. */
template <class TEAM, class X>
static __device__ void list_by_index(const TEAM &team, const X &x, int k, int low, int high,
                                     u32 map, const struct list_out &out)
{
    int n = x.total();
    int64_t begin = low & ~31;
    struct kth_range r = {0, 0, 0, true};
    if (n > k && high - begin <= 32 * MAP_WORDS)
        r = find_range(team, x, k);
    else if (n > k)
        r.low = kth_item(team, x, k);
    n = min(n, k);
    u32 written = 0;
    for (int64_t first = begin; first < high; first += 32 * MAP_WORDS) {
        int words = (int)min((int64_t)MAP_WORDS, (high - first + 31) / 32);
        auto mark = [&](uint64_t item) { /* once each: to add is to set */
                                         u32 at = ~(u32)item - (u32)first;
                                         if (at < 32u * words)
                                             atom_add_shared(map + at / 32 * 4, 1u << at % 32);
        };
        team.sync();
        for (int i = team.rank(); i < words; i += TEAM::THREADS)
            st_shared(map + 4 * i, 0u);
        team.sync();
        x.each(team, [&](bool there, uint64_t item) {
            if (!there || item < r.low)
                return;
            if (r.all || item > r.last)
                mark(item);
            else
                collect(team, item);
        });
        team.sync();
        if (!r.all) {
            each_collected(team, r.need, [&](uint64_t item, bool) { mark(item); });
            team.sync();
        }
        written += write_map(team, map, words, (int)first, written, out);
    }
    end_list(team, n, out);
}

/* Selects, orders and writes a row of keys [low, high). scratch: shared memory, 4 * MAP_WORDS
 * bytes; free: room for sort_length(k) items, beside the row's. */
template <class TEAM, class X>
static __device__ void write_list(const TEAM &team, const X &x, int k, int low, int high,
                                  uint64_t *free, u32 scratch, const struct list_out &out)
{
    if (out.ascending && !out.scores) {
        list_by_index(team, x, k, low, high, scratch, out);
        return;
    }
    int n = x.total();
    uint64_t floor = n > k ? kth_item(team, x, k) : 0;
    n = min(n, k);
    struct shared_list sorted = {scratch};
    struct items_at in_place = {free};
    gather(team, x, floor, free);
    if (sort_length(n) <= LIST_SORT)
        write_row(team, free, n, sorted, out);
    else
        write_row(team, free, n, in_place, out);
}

#endif
