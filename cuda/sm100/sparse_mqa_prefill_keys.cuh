/* SPDX-License-Identifier: Apache-2.0 */
/* Keys of sparse_mqa_prefill.cu on their way to shared memory: units of work, lists to coordinates
 * (the index warp), and the gather of rows by TMA (the gather warps). */
#ifndef MLA_CUDA_SM100_SPARSE_MQA_PREFILL_KEYS_CUH
#define MLA_CUDA_SM100_SPARSE_MQA_PREFILL_KEYS_CUH

#include "sparse_mqa_prefill.cuh"

#include <limits.h>

template <class S> __device__ __forceinline__ u32 bar_of(u32 smem, u32 index)
{
    return smem + S::bars_at + 8 * index;
}

/* ------------------------------------------------------------------- units */

/* Group id of those whose lists are in memory: a unit without tokens where no request has the number,
 * or where the union is too long to gain. */
__device__ __forceinline__ void find_group_unit(const struct mla_sparse_args &g, int id,
                                                struct unit *u)
{
    const struct mla_mqa_groups &groups = g.groups;
    int number = groups.first + id;
    int found = find_group(g.a.requests, g.a.num_requests, groups.size, number);
    u->r = g.a.requests[max(0, found)];
    u->group = id;
    u->count = found < 0 ? -1 : groups.counts[number];
    u->token = (number - group_of(groups.size, u->r, 0)) * groups.size;
    u->tokens = u->count < 0 ? 0 : min(groups.size, u->r.query_len - u->token);
    u->split = u->head0 = 0;
}

/* Unit id of the launch. The table counts tiles of M rows; a pair computes two. All lanes call. */
template <class S>
__device__ __forceinline__ void find_unit(const struct mla_sparse_args &g, int id, u32 rank,
                                          struct unit *u)
{
    const struct mla_mqa_args &a = g.a;
    if (S::GROUP) {
        find_group_unit(g, id, u);
        return;
    }
    int found = 0;
    for (int i = threadIdx.x % 32; i < a.num_requests; i += 32) {
        int next = i + 1 < a.num_requests ? a.requests[i + 1].first_block / S::G : g.units;
        if (id >= a.requests[i].first_block / S::G && id < next)
            found = i;
    }
    found = __reduce_max_sync(0xFFFFFFFFu, found);
    u->r = a.requests[found];
    int local = id - u->r.first_block / S::G, tiles = (a.heads + S::rows - 1) / S::rows;
    u->split = local % u->r.splits;
    int t = local / u->r.splits;
    u->token = t / tiles;
    u->head0 = t % tiles * S::rows + (int)rank * S::M;
    u->tokens = 1;
    if (a.group_counts && a.group_counts[group_of(a.group_size, u->r, u->token)] >= 0)
        u->tokens = 0;
}

__device__ __forceinline__ int first_unit(int group)
{
    return blockIdx.x / group;
}

__device__ __forceinline__ int unit_step(int group)
{
    return gridDim.x / group;
}

/* Waits with all lanes, and goes on with all: a lane that stayed behind while its warp's leader
 * releases what was waited for could miss a phase, and then waits for ever. */
#define warp_wait(bar, parity) (mbarrier_wait(bar, parity), __syncwarp())

/* ----------------------------------------------------------------- entries */

/* Blocks of keys and ends of units, in order, from the index warp to all others of the CTA. */
template <class S> struct entries : ring<ENTRIES> {
    u32 smem;

    __device__ __forceinline__ entries(u32 smem_) : smem(smem_)
    {
    }
    __device__ __forceinline__ u32 at() const
    {
        return smem + S::entries_at + stage * S::entry_bytes;
    }
    /* Waits for the entry; is it a block? */
    __device__ __forceinline__ bool is_block() const
    {
        mbarrier_wait(bar_of<S>(smem, S::entry_full + stage), phase);
        bool block = ld_shared<u32>(at() + S::entry_kind) != 0;
        __syncwarp(); /* all lanes have read it before one releases it */
        return block;
    }
    __device__ __forceinline__ bool next_is_block() const
    {
        entries<S> peek = *this;
        peek.next();
        return peek.is_block();
    }
};

/* By one lane of each warp that reads entries, once it has. */
template <class S> __device__ __forceinline__ void release_entry(u32 smem, u32 stage)
{
    mbarrier_arrive(bar_of<S>(smem, S::entry_free + stage));
}

/* Row of the maps latent and rope that holds key pos, -1 where the token doesn't see it. */
__device__ __forceinline__ int locate(const struct mla_sparse_args &g, const struct unit &u,
                                      const int32_t *pages, int end, int pos)
{
    const struct mla_mqa_cache &c = g.a.cache;
    if (pos < 0 || pos >= end)
        return -1;
    if (!pages)
        return u.r.kv_start + pos;
    int column = page_column(&c, pos);
    int page = column < c.max_pages ? pages[column] : -1;
    if (page < 0 || page >= c.num_pages)
        return -1;
    return page * g.rows_per_page + pos - column * c.page_size;
}

/* mask: of single tokens the same in all lanes; of groups that of token lane / mask_words in lane
 * token · mask_words + word. */
template <class S>
__device__ __forceinline__ void publish(entries<S> *e, bool block, const int row[S::keys / 32],
                                        const u32 mask[S::keys / 32])
{
    int lane = threadIdx.x % 32;
    mbarrier_wait(bar_of<S>(e->smem, S::entry_free + e->stage), e->phase ^ 1);
    if (block) {
#pragma unroll
        for (int q = 0; q < S::keys / 32; q++) {
            /* Rows before the map's first are zeros; TMA dislikes many equal ones. */
            int key = 32 * q + lane;
            st_shared(e->at() + 4 * key, row[q] >= 0 ? row[q] : -1 - key);
            if (lane == 0 && !S::GROUP)
                st_shared(e->at() + S::entry_mask + 4 * q, mask[q]);
        }
        if (S::GROUP && lane < MLA_UNION_TOKENS * S::mask_words)
            st_shared(e->at() + S::entry_mask + 4 * lane, mask[0]);
    }
    if (lane == 0)
        st_shared(e->at() + S::entry_kind, (u32)block);
    __syncwarp();
    if (lane == 0)
        mbarrier_arrive(bar_of<S>(e->smem, S::entry_full + e->stage));
    e->next();
}

/* The union of a group's lists, likewise. What no token may see is not in it; a page that is not there
 * makes a key invisible to all. */
template <class S>
__device__ __forceinline__ void index_group(const struct mla_sparse_args &g, const struct unit &u,
                                            entries<S> *e)
{
    const struct mla_mqa_args &a = g.a;
    const int words = S::mask_words;
    const int lane = threadIdx.x % 32;
    const u32 *list = g.groups.entries + (int64_t)u.group * g.groups.capacity;
    const int32_t *pages = NULL;
    if (a.cache.page_size > 0)
        pages = a.cache.page_table + u.r.index * a.cache.page_table_stride;
    for (int first = 0; first < u.count; first += S::keys) {
        int row[words];
        u32 seers[words], mine[1] = {0}, any = 0;
#pragma unroll
        for (int q = 0; q < words; q++) {
            int j = first + 32 * q + lane;
            u32 entry = j < u.count ? list[j] : 0, see = entry >> MLA_UNION_MASK;
            int pos = see ? (int)(entry & ((1 << MLA_UNION_MASK) - 1)) : -1;
            row[q] = locate(g, u, pages, INT_MAX, pos);
            seers[q] = row[q] >= 0 ? see : 0;
        }
        for (int t = 0; t < u.tokens; t++)
#pragma unroll
            for (int q = 0; q < words; q++) {
                u32 mask = __ballot_sync(0xFFFFFFFFu, seers[q] >> (MLA_MUTANT == 18 ? 0 : t) & 1);
                any |= mask;
                if (lane == t * words + q)
                    mine[0] = mask;
            }
        if (any)
            publish<S>(e, true, row, mine);
    }
    int none[words] = {};
    u32 nothing[words] = {};
    publish<S>(e, false, none, nothing);
}

/* Lists to rows of the cache and validity. Blocks without a visible key are left out. */
template <class S>
__device__ __forceinline__ void index_role(const struct mla_sparse_args &g, u32 smem, u32 rank)
{
    MLA_ROLE("index");
    const struct mla_mqa_args &a = g.a;
    const int words = S::keys / 32;
    int lane = threadIdx.x % 32;
    int row[words];
    u32 mask[words];
    entries<S> e(smem);
    for (int id = first_unit(S::G); id < g.units; id += unit_step(S::G)) {
        struct unit u;
        find_unit<S>(g, id, rank, &u);
        if (u.tokens == 0)
            continue;
        if (S::GROUP) {
            index_group<S>(g, u, &e);
            continue;
        }
        int seq_len = u.r.seq_len_kv;
        if (a.seq_lens_kv)
            seq_len = max(0, min(seq_len, a.seq_lens_kv[u.r.index]));
        int end = a.causal ? min(seq_len, seq_len - u.r.query_len + u.token + 1) : seq_len;
        int64_t token = u.r.q_start + u.token;
        const int32_t *list = a.indices + token * a.indices_stride;
        int count = a.topk_lens ? max(0, min(a.topk, a.topk_lens[token])) : a.topk;
        const int32_t *pages = NULL;
        if (a.cache.page_size > 0)
            pages = a.cache.page_table + u.r.index * a.cache.page_table_stride;
        int steps = (count + S::keys - 1) / S::keys;
        int share = (steps + u.r.splits - 1) / u.r.splits;
        int step = min(steps, u.split * share), last = min(steps, step + share);
        for (; step < last; step++) {
            u32 any = 0;
#pragma unroll
            for (int q = 0; q < words; q++) {
                int j = step * S::keys + 32 * q + lane;
                row[q] = locate(g, u, pages, end, j < count ? list[j] : -1);
            }
#pragma unroll
            for (int q = 0; q < words; q++) {
                mask[q] = __ballot_sync(0xFFFFFFFFu, row[q] >= 0);
                any |= mask[q];
            }
            if (any)
                publish<S>(&e, true, row, mask);
        }
        publish<S>(&e, false, row, mask);
    }
    publish<S>(&e, false, row, mask); /* for those who look one entry ahead */
}

/* ------------------------------------------------------------------ gather */

/* This warp's sixteenth of a stage: 4 keys of those from first_key of the entry on, 256 columns. */
template <class S>
__device__ __forceinline__ void gather_stage(const struct mla_sparse_args &g, u32 to, u32 bar,
                                             u32 entry, int first_key, int column, int warp)
{
#pragma unroll
    for (int i = 0; i < GROUPS / GATHER_WARPS; i++) {
        int group = warp * (GROUPS / GATHER_WARPS) + i;
        int4 r = ld_shared<int4>(entry + 4 * (first_key + 4 * group));
#pragma unroll
        for (int t = 0; t < STAGE_TILES; t++) {
            u32 dst = to + t * TILE_BYTES + group * 512;
            int c = column + t * BAND;
            if (S::G == 2)
                tma_gather4_pair(dst, &g.latent, bar, c, r.x, r.y, r.z, r.w, L2_EVICT_LAST);
            else
                tma_gather4(dst, &g.latent, bar, c, r.x, r.y, r.z, r.w, L2_EVICT_LAST);
        }
    }
}

/* Bands [first, first + count) of Q, 64 columns each, one behind another. */
template <class S>
__device__ __forceinline__ void load_q(const struct mla_sparse_args &g, const struct unit &u,
                                       u32 to, u32 bar, int first, int count)
{
    int token = u.r.q_start + u.token;
    for (int b = 0; b < count; b++) {
        u32 dst = to + b * S::q_band;
        if (S::G == 2)
            tma_load_3d_pair(dst, &g.q, bar, (first + b) * BAND, u.head0, token, L2_EVICT_FIRST);
        else
            tma_load_3d(dst, &g.q, bar, (first + b) * BAND, u.head0, token, L2_EVICT_FIRST);
    }
}

/* Sixteen warps, one lane each at work: Q of a unit (warp 0 alone), K of its blocks, and for a pair V,
 * all in the order in which the MMA warp takes them. */
template <class S>
__device__ __forceinline__ void gather_role(const struct mla_sparse_args &g, u32 smem, u32 rank,
                                            int warp)
{
    MLA_ROLE("gather");
    bool leader = elect_one(), expects = leader && warp == 0 && rank == 0;
    /* Both CTAs of a pair count on the even one's barriers. */
    const u32 bars = S::G == 2 ? tma_even_barrier(bar_of<S>(smem, 0)) : bar_of<S>(smem, 0);
    const u32 lost = MLA_MUTANT == 9 ? 512 : 0;
    ring<S::stages> st;
    ring<S::ropes ? S::ropes : 1> rope;
    u32 q_phase = 0;
    int pending = -1; /* stage of the entry whose V is still to come (pairs) */
    entries<S> e(smem);

    auto take_stage = [&](u32 bytes) {
        warp_wait(bar_of<S>(smem, S::free + st.stage), st.phase ^ 1);
        if (expects)
            mbarrier_arrive_expect_tx(bar_of<S>(smem, S::full + st.stage), S::G * bytes - lost);
    };
    auto load_v = [&](u32 entry) {
        for (int h = 0; h < 2; h++) {
            take_stage(STAGE_BYTES);
            if (leader)
                gather_stage<S>(g, smem + st.stage * STAGE_BYTES, bars + 8 * (S::full + st.stage),
                                smem + S::entries_at + entry * S::entry_bytes, CTA_KEYS * h,
                                MLA_MUTANT == 17 ? 0 : 256 * (int)rank, warp);
            st.next();
        }
        if (leader)
            release_entry<S>(smem, entry);
    };

    for (int id = first_unit(S::G); id < g.units; id += unit_step(S::G)) {
        struct unit u;
        find_unit<S>(g, id, rank, &u);
        if (u.tokens == 0)
            continue;
        bool begun = false;
        for (;; e.next()) {
            if (!e.is_block()) {
                if (S::G == 2 && pending >= 0 && !e.next_is_block()) {
                    load_v((u32)pending);
                    pending = -1;
                }
                if (leader)
                    release_entry<S>(smem, e.stage);
                e.next();
                break;
            }
            for (int i = 0; !begun && i < S::q_stages; i++) {
                int first = i * S::q_stage_bands, count = min(S::q_tmem - first, S::q_stage_bands);
                if (warp == 0) {
                    take_stage((u32)(count * S::q_band));
                    if (leader)
                        load_q<S>(g, u, smem + st.stage * STAGE_BYTES,
                                  bars + 8 * (S::full + st.stage), first, count);
                }
                st.next();
            }
            for (int h = 0; h < 2; h++) {
                take_stage(STAGE_BYTES);
                if (leader)
                    gather_stage<S>(g, smem + st.stage * STAGE_BYTES,
                                    bars + 8 * (S::full + st.stage), e.at(),
                                    S::G == 2 ? CTA_KEYS * (int)rank : 0, 256 * h, warp);
                st.next();
            }
            if (S::ROPE) {
                warp_wait(bar_of<S>(smem, S::rope_free + rope.stage), rope.phase ^ 1);
                if (expects)
                    mbarrier_arrive_expect_tx(bar_of<S>(smem, S::rope_full + rope.stage),
                                              S::G * TILE_BYTES);
                for (int i = 0; leader && i < GROUPS / GATHER_WARPS; i++) {
                    int group = warp * (GROUPS / GATHER_WARPS) + i;
                    int first = (S::G == 2 ? CTA_KEYS * (int)rank : 0) + 4 * group;
                    int4 r = ld_shared<int4>(e.at() + 4 * first);
                    u32 dst = smem + S::rope_at + rope.stage * TILE_BYTES + group * 512;
                    u32 bar = bars + 8 * (S::rope_full + rope.stage);
                    if (S::G == 2)
                        tma_gather4_pair(dst, &g.rope, bar, 0, r.x, r.y, r.z, r.w, L2_EVICT_LAST);
                    else
                        tma_gather4(dst, &g.rope, bar, 0, r.x, r.y, r.z, r.w, L2_EVICT_LAST);
                }
                rope.next();
            }
            if (S::q_smem && !begun && warp == 0) {
                warp_wait(bar_of<S>(smem, S::q_free), q_phase ^ 1);
                q_phase ^= 1;
                if (expects)
                    mbarrier_arrive_expect_tx(bar_of<S>(smem, S::q_full),
                                              S::G * S::q_smem * S::q_band);
                if (leader)
                    load_q<S>(g, u, smem + S::q_smem_at, bars + 8 * S::q_full, S::q_tmem,
                              S::q_smem);
            }
            begun = true;
            if (S::G == 2) {
                if (pending >= 0)
                    load_v((u32)pending);
                pending = (int)e.stage;
            } else if (leader) {
                release_entry<S>(smem, e.stage);
            }
        }
    }
}

#endif
