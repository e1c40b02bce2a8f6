/* SPDX-License-Identifier: Apache-2.0 */
/* Attention over latents with top-k lists on tcgen05 (sm_100, sm_103): 576/512 and 512/512, bf16 or
 * f16 in a flat or paged cache, any list length, entries below 0 or past the end ignored,
 * topk_lens, causal ends, sinks, lse, max_logits, key splits; fp32 accumulation.
 *
 * A unit is one query token and a tile of its heads (and a split of its list). Keys come by gather4
 * of TMA, 64 or 128 a block; a key that the token doesn't see has a coordinate outside the map, is
 * zeros in shared memory and -inf in the softmax. Blocks without a visible key are left out.
 *
 *   heads       tile                      keys   K and V
 *   65 … 128    pair of CTAs, 64 rows     128    a CTA gathers its 64 keys for scores (B is shared
 *               each (cta_group::2)              by the pair), and 256 columns of all 128 as V
 *   33 … 64     one CTA, 64 rows (.ws)    64     gathered once: K's tiles read the other way are V
 *   1 … 32      one CTA, 32 rows (.ws)    64     likewise; 4 banks of lanes share the columns
 * More heads take several tiles: pairs where their number of 64s is even, else single CTAs.
 * Heads that divide 64 (at least 8): tokens that fill 64 rows are a group, which gathers the union of
 * its lists once (any/union.cu made it, with a bit for each token that sees a key). Groups whose
 * union is too long to gain are left to their tokens' own units, in a launch of their own.
 *
 * Roles (768 threads, one block an SM, units dealt out in turn; 200 registers a thread of softmax,
 * 56 of the others)
 *   warps 0-3  softmax  a thread has a row's bank: scores from TMEM, maximum over the banks through
 *                       shared memory, P to shared memory, rescaling of O, output
 *   warps 4-19 gather   one lane each: a sixteenth of every stage, since a thread's copies come one
 *                       in some 48 clocks; warp 4 loads Q as well
 *   warp 20    mma      one lane of the (even) CTA issues: scores of a block, then P · V of the one
 *                       before it, whose softmax has had that long
 *   warp 21    index    lists to coordinates and validity bits, four blocks ahead
 *   warps 22, 23  -     they make the last warpgroup whole
 *
 * Shared memory, bytes     pair            64 rows         32 rows
 *   stages of 32 KB        5  163840       5  163840       6  196608    64 keys x 256 columns
 *   rope, 2 tiles of 8 KB      16384           16384           16384
 *   bands of Q             3   24576       2   16384       0            that TMEM has no room for
 *   P, output chunks           16384           16384           16384
 *   coordinates, maxima, barriers  3.4 KB       2.4 KB          2.4 KB
 *
 * TMEM, columns            pair            64 rows         32 rows
 *   O                      0-255           0-255           0-127        512 columns over the banks
 *   S                      256-319         256-287         128-143
 *   Q                      320-511         288-511         144-431      6, 7, 9 bands of 64 columns
 *
 * Barriers             arrivals            from -> to
 *   full[stage]        1 + bytes           gather -> mma      both CTAs' bytes on the even one
 *   free[stage]        commit              mma -> gather      (multicast to the pair)
 *   rope_full, _free   likewise
 *   entry_full[4]      1                   index -> all       coordinates and bits of a block
 *   entry_free[4]      16 + 4 (+ 1)        gather, softmax, mma -> index
 *   q_full, q_free     1 + bytes, commit   gather -> mma -> gather   Q's bands in shared memory
 *   s_full             commit              mma -> softmax     scores are made
 *   s_free             4 or 8              softmax -> mma     scores are in registers
 *   p_full             4 or 8              softmax -> mma     P is stored, O rescaled or read
 *   o_full             commit              mma -> softmax     P · V has been added
 * Lanes of a warp wait and go on together (warp_wait).
 *
 * Clocks of a block, by unit of the SM
 *                       pair (128 keys)     64 rows (64 keys)   32 rows (64 keys)
 *   tensor core         2176                1088                544
 *   shared memory       (197 + 139) KB 2626 (139 + 72) KB 1650  (106 + 72) KB 1390
 *   2^x                 512                 256                 128
 *   L2 to SM            139 KB: 64 B/clk    72 KB: 68 B/clk     72 KB: 135 B/clk
 * So the tensor core can't be the bound: shared memory allows 83 %, 66 % and 39 % of it, and L2
 * would have to deliver 17 TB/s over 148 SMs at 1.85 GHz for the pair to get there; 64 % (published
 * of another kernel of this shape) needs 11. For 32 rows and fewer the gather is the floor: rows
 * that a tile has above its heads cost tensor core and 2^x, which wait for keys anyway, and no
 * bytes.
 *
 * P = 2^(score - base) is rounded to the input type unnormalised; base follows the row's maximum when
 * that has grown by 2^8, so that O is rescaled rarely. Row sums add unrounded fp32 values. A unit is
 * computed by one block or pair in one order: same inputs, same bits. */
#include "sparse_mqa_prefill_keys.cuh"

/* --------------------------------------------------------------------- MMA */

template <class S> __device__ __forceinline__ void commit(u32 bar)
{
    if (S::G == 2)
        tcgen05_commit_multicast<S::G>(bar, 3);
    else
        tcgen05_commit<S::G>(bar);
}

template <class S>
__device__ __forceinline__ void mma_ss(u32 d, u64 a, u64 b, u32 idesc, bool accumulate)
{
    if constexpr (S::G == 2)
        tcgen05_mma_ss<2, KIND_F16>(d, a, b, idesc, accumulate);
    else
        tcgen05_mma_ws_ss<KIND_F16>(d, a, b, idesc, accumulate);
}

template <class S>
__device__ __forceinline__ void mma_ts(u32 d, u32 a, u64 b, u32 idesc, bool accumulate)
{
    if constexpr (S::G == 2)
        tcgen05_mma_ts<2, KIND_F16>(d, a, b, idesc, accumulate);
    else
        tcgen05_mma_ws_ts<KIND_F16>(d, a, b, idesc, accumulate);
}

/* Descriptors are made once a stage; what lies `bytes` further on is an addition away. */
__device__ __forceinline__ u64 further(u64 desc, int bytes)
{
    return desc + (u64)(bytes / 16);
}

/* K-major tile of 128-byte rows: 16 columns, the next 16 are 32 bytes further. */
__device__ __forceinline__ u64 k_major(u32 tile)
{
    return umma_desc(tile, 16, 1024, 128);
}

/* A tile's rows read as k, 16 keys, and on to the next tiles for more columns; the next 16 keys are
 * 2048 bytes further. */
__device__ __forceinline__ u64 mn_major(u32 tile)
{
    return umma_desc(tile, MLA_MUTANT == 4 ? TILE_BYTES / 2 : TILE_BYTES, 1024, 128);
}

template <class S, class T> struct mma_state {
    static const operand_type type = operand_type_of<T>::value;
    static const u32 idesc_s = umma_idesc(S::rows, S::keys, type, type, OPERAND_F32, false, false);
    static const u32 idesc_o = umma_idesc(S::rows, 256, type, type, OPERAND_F32, false, true);
    u32 smem, tmem;
    bool leader;
    ring<S::stages> st;
    ring<S::ropes ? S::ropes : 1> rope;
    u32 q_phase, q_full_phase, s_phase, p_phase;
    u32 held[2]; /* stages that hold the pending block's K, which is its V too (one CTA) */

    __device__ __forceinline__ u32 bar(u32 index) const
    {
        return bar_of<S>(smem, index);
    }

    /* Q of a unit from stages to tensor memory, once the unit before has been scored. A row goes to
     * the lanes of every bank. */
    __device__ __forceinline__ void take_q()
    {
        warp_wait(bar(S::q_free), q_phase ^ 1);
        q_phase ^= 1;
        tcgen05_fence_after();
#pragma unroll 1
        for (int i = 0; i < S::q_stages; i++) {
            int first = i * S::q_stage_bands, count = min(S::q_tmem - first, S::q_stage_bands);
            warp_wait(bar(S::full + st.stage), st.phase);
            tcgen05_fence_after();
            if (leader) {
#pragma unroll 1
                for (int b = 0; b < count; b++)
#pragma unroll
                    for (int u = 0; u < 8; u++) {
                        u32 to = tmem + S::q_at + (first + b) * (BAND / 2) + 4 * u;
                        u64 from = umma_desc(smem + st.stage * STAGE_BYTES + b * S::q_band + 16 * u,
                                             16, 1024, 128);
                        if (S::M == 64)
                            tcgen05_cp_64x128b_02_13<S::G>(to, from);
                        else
                            tcgen05_cp_32x128b<S::G>(to, from);
                    }
                commit<S>(bar(S::free + st.stage));
            }
            st.next();
        }
    }

    /* tile: the band's keys; q: those bands of Q that are in shared memory. */
    __device__ __forceinline__ void score_band(int band, u64 tile, u64 q)
    {
#pragma unroll
        for (int k = 0; k < BAND / 16; k++) {
            u64 b = further(tile, 32 * k);
            if (band < S::q_tmem)
                mma_ts<S>(tmem + S::s_at, tmem + S::q_at + band * (BAND / 2) + 8 * k, b, idesc_s,
                          band + k > 0);
            else
                mma_ss<S>(tmem + S::s_at, further(q, (band - S::q_tmem) * S::q_band + 32 * k), b,
                          idesc_s, true);
        }
    }

    __device__ __forceinline__ void wait_q_smem(int band, bool first)
    {
        if (!first || S::q_smem == 0 || band != S::q_tmem)
            return;
        warp_wait(bar(S::q_full), q_full_phase);
        q_full_phase ^= 1;
    }

    /* S = Q · K^T of the next block. */
    __device__ __forceinline__ void scores(bool first, u32 now[2])
    {
        warp_wait(bar(S::s_free), MLA_MUTANT == 2 ? s_phase : s_phase ^ 1);
        s_phase ^= 1;
        tcgen05_fence_after();
        const u64 q = k_major(smem + S::q_smem_at);
#pragma unroll
        for (int h = 0; h < 2; h++) {
            if (MLA_MUTANT != 1 || h == 0)
                warp_wait(bar(S::full + st.stage), st.phase);
            u32 at = smem + st.stage * STAGE_BYTES;
            u64 keys = MLA_MUTANT == 5 ? umma_desc(at, 16, 1024, 64) : k_major(at);
#pragma unroll
            for (int t = 0; t < STAGE_TILES; t++) {
                wait_q_smem(STAGE_TILES * h + t, first);
                if (leader)
                    score_band(STAGE_TILES * h + t, further(keys, t * TILE_BYTES), q);
            }
            now[h] = st.stage;
            if (leader && (S::G == 2 || MLA_MUTANT == 10))
                commit<S>(bar(S::free + (st.stage + (MLA_MUTANT == 6)) % S::stages));
            st.next();
        }
        if (leader && MLA_MUTANT == 11)
            commit<S>(bar(S::s_full));
        if (S::ROPE) {
            warp_wait(bar(S::rope_full + rope.stage), rope.phase);
            wait_q_smem(S::bands - 1, first);
            if (leader) {
                score_band(S::bands - 1, k_major(smem + S::rope_at + rope.stage * TILE_BYTES), q);
                commit<S>(bar(S::rope_free + rope.stage));
            }
            rope.next();
        }
        if (leader && MLA_MUTANT != 11)
            commit<S>(bar(S::s_full));
    }

    /* O += P · V of the pending block; first of its unit: O = P · V. */
    __device__ __forceinline__ void weighted(bool first)
    {
        const int half = 256 / S::banks; /* columns of tensor memory of one product */
        first = first && MLA_MUTANT != 16;
        warp_wait(bar(S::p_full), p_phase);
        p_phase ^= 1;
        tcgen05_fence_after();
        const u64 p = k_major(smem + S::p_at);
#pragma unroll
        for (int h = 0; h < 2; h++) {
            u32 stage = held[h];
            if (S::G == 2) { /* h: half of the keys; each CTA holds 128 of 256 columns */
                stage = st.stage;
                warp_wait(bar(S::full + stage), st.phase);
                st.next();
            }
            if (leader) {
                const u64 from = mn_major(smem + stage * STAGE_BYTES);
#pragma unroll
                for (int k = 0; k < CTA_KEYS / 16; k++) {
                    if (S::G == 2) {
#pragma unroll
                        for (int j = 0; j < 2; j++)
                            mma_ss<S>(tmem + S::o_at + half * j,
                                      further(p, h * S::M * 128 + 32 * k),
                                      further(from, 2 * j * TILE_BYTES + 2048 * k), idesc_o,
                                      !first || h + k > 0);
                    } else { /* h: half of the columns */
                        mma_ss<S>(tmem + S::o_at + half * h, further(p, 32 * k),
                                  further(from, 2048 * k), idesc_o, !first || k > 0);
                    }
                }
                if (S::G == 2 || MLA_MUTANT != 10)
                    commit<S>(bar(S::free + stage));
            }
        }
        if (leader)
            commit<S>(bar(S::o_full));
    }
};

/* One thread issues for the whole tile: the scores of a block, then P · V of the one before, whose
 * softmax has had that long. */
template <class S, class T>
__device__ __forceinline__ void mma_role(const struct mla_sparse_args &g, u32 smem, u32 tmem)
{
    MLA_ROLE("mma");
    struct mma_state<S, T> m = {
        smem, tmem, elect_one(), {}, {}, 0, 0, 0, 0,
        {
            0, 0
        }
    };
    entries<S> e(smem);
    bool pending = false, pending_first = false;
    for (int id = first_unit(S::G); id < g.units; id += unit_step(S::G)) {
        struct unit u;
        find_unit<S>(g, id, 0, &u);
        if (u.tokens == 0)
            continue;
        bool first = true;
        while (e.is_block()) {
            u32 now[2];
            if (first)
                m.take_q();
            m.scores(first, now);
            bool more = e.next_is_block();
            if (m.leader) {
                if (!more) /* scores of the unit are done: Q may be replaced */
                    commit<S>(m.bar(S::q_free));
                release_entry<S>(smem, e.stage);
            }
            e.next();
            if (pending)
                m.weighted(pending_first);
            pending = true;
            pending_first = first;
            first = false;
            m.held[0] = now[0];
            m.held[1] = now[1];
        }
        /* A pair keeps the last block for behind the next unit's first scores. One CTA can't: its
         * stages still hold that block. */
        if (pending && (S::G == 1 || !e.next_is_block())) {
            m.weighted(pending_first);
            pending = false;
        }
        if (m.leader)
            release_entry<S>(smem, e.stage);
        e.next();
    }
    /* The other CTA's last arrivals have come before this one goes. */
    warp_wait(m.bar(S::s_free), m.s_phase ^ 1);
}

/* ----------------------------------------------------------------- softmax */

__device__ __forceinline__ void softmax_sync()
{
    bar_sync(1, SOFTMAX_WARPS * 32);
}

/* One arrival a warp on a barrier of the CTA whose MMA warp works; all lanes call. */
template <class S> __device__ __forceinline__ void arrive_at_mma(u32 bar)
{
    __syncwarp();
    if (threadIdx.x % 32 != 0)
        return;
    if (S::G == 2)
        mbarrier_arrive_cluster(mapa(bar, 0));
    else
        mbarrier_arrive(bar);
}

/* What a row's banks hold, to all of them: x of every bank. */
template <class S>
__device__ __forceinline__ void exchange(u32 smem, int buffer, int row, int bank, float x,
                                         float all[S::banks])
{
    u32 at = smem + S::rows_at + buffer * 512;
    st_shared(at + 4 * (bank * S::M + row), x);
    softmax_sync();
#pragma unroll
    for (int b = 0; b < S::banks; b++)
        all[b] = MLA_MUTANT == 15 ? x : ld_shared<float>(at + 4 * (b * S::M + row));
}

/* O *= factor, a lane its own. */
template <class S> __device__ __forceinline__ void rescale(u32 o, float factor)
{
#pragma unroll 1
    for (int c = 0; c < S::o_columns; c += 32) {
        u32 r[32];
        tcgen05_ld_32x32b(r, o + c);
        tcgen05_wait_ld(r);
#pragma unroll
        for (int i = 0; i < 32; i++)
            r[i] = __float_as_uint(__uint_as_float(r[i]) * factor);
        tcgen05_st_32x32b(o + c, r);
    }
    tcgen05_wait_st();
}

/* Rows through shared memory, 64 columns of every bank at a time. */
template <class S, class T>
__device__ __forceinline__ void store_by_map(const struct mla_sparse_args &g, const struct unit &u,
                                             u32 smem, u32 o, float factor, bool empty)
{
    int row = threadIdx.x % S::M, bank = threadIdx.x / S::M;
    u32 at = smem + S::p_at + threadIdx.x * 128;
#pragma unroll 1
    for (int chunk = 0; chunk < S::o_columns / 64; chunk++) {
        if (threadIdx.x == 0)
            tma_store_wait_read<0>();
        softmax_sync();
#pragma unroll 1
        for (int part = 0; part < 2; part++) {
            u32 r[32];
            if (!empty) {
                tcgen05_ld_32x32b(r, o + 64 * chunk + 32 * part);
                tcgen05_wait_ld(r);
            }
#pragma unroll
            for (int i = 0; i < 4; i++) {
                u32 w[4];
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    int k = 8 * i + 2 * j;
                    w[j] = empty ? 0
                                 : T::pack(__uint_as_float(r[k]) * factor,
                                           __uint_as_float(r[k + 1]) * factor);
                }
                st_shared(at + (((4 * part + i) ^ (row & 7)) << 4),
                          make_uint4(w[0], w[1], w[2], w[3]));
            }
        }
        fence_proxy_async();
        softmax_sync();
        if (threadIdx.x == 0) {
            for (int b = 0; b < S::banks; b++)
                tma_store_3d(&g.out, smem + S::p_at + b * S::q_band, S::out_column(chunk, b),
                             u.head0, u.r.q_start + u.token);
            tma_store_commit();
        }
    }
    (void)bank;
    if (threadIdx.x == 0)
        tma_store_wait_read<0>(); /* P comes next; the others wait for this thread before it */
}

/* Rows straight to memory: partial results, and outputs that no map describes. */
template <class S>
__device__ __forceinline__ void store_direct(const struct mla_sparse_args &g, const struct unit &u,
                                             u32 o, float factor, bool empty)
{
    const struct mla_mqa_args &a = g.a;
    int row = threadIdx.x % S::M, bank = threadIdx.x / S::M, head = u.head0 + row;
    int64_t token = u.r.q_start + u.token;
    bool split = !S::GROUP && u.r.splits > 1, real = head < a.heads;
    if (S::GROUP) {
        token += row / a.heads;
        head = row % a.heads;
        real = row < u.tokens * a.heads;
    }
    int64_t to = token * a.out_stride[0] + head * a.out_stride[1];
    if (split)
        to =
            (u.r.part_row + ((int64_t)u.split * u.r.query_len + u.token) * a.heads + head) * LATENT;
#pragma unroll 1
    for (int c = 0; c < S::o_columns; c += 32) {
        u32 r[32];
        if (!empty) {
            tcgen05_ld_32x32b(r, o + c);
            tcgen05_wait_ld(r);
        }
        if (!real)
            continue;
        int64_t at = to + S::out_column(c / 64, bank) + c % 64;
#pragma unroll
        for (int i = 0; i < 32; i += 2) {
            float x = empty ? 0 : __uint_as_float(r[i]) * factor;
            float y = empty ? 0 : __uint_as_float(r[i + 1]) * factor;
            if (split)
                *(float2 *)(a.part_out + at + i) = make_float2(x, y);
            else
                store_pair(a.out_dtype, a.out, at + i, x, y);
        }
    }
}

/* End of a unit: the row's sums to lse and max_logits, O to its place. */
template <class S, class T>
__device__ __forceinline__ void finish(const struct mla_sparse_args &g, const struct unit &u,
                                       u32 smem, u32 o, float base, float max_log2, float sum,
                                       bool empty)
{
    const struct mla_mqa_args &a = g.a;
    int row = threadIdx.x % S::M, bank = threadIdx.x / S::M, head = u.head0 + row;
    int64_t token = u.r.q_start + u.token;
    bool real = head < a.heads, split = !S::GROUP && u.r.splits > 1;
    if (S::GROUP) {
        token += row / a.heads;
        head = row % a.heads;
        real = row < u.tokens * a.heads;
    }
    float lse_log2, sink = a.sink && real && !split ? a.sink[head] : 0;
    float factor = finish_row(base, sum, a.sink != NULL && !split, sink, &lse_log2);
    if (bank == 0 && real) {
        if (split) {
            int64_t part =
                u.r.part_row + ((int64_t)u.split * u.r.query_len + u.token) * a.heads + head;
            a.part_lse[part] = lse_log2;
            a.part_max[part] = max_log2;
        } else {
            if (a.lse)
                a.lse[token * a.lse_stride[0] + head * a.lse_stride[1]] = lse_log2 * a.lse_unit;
            if (a.max_logits)
                a.max_logits[token * a.max_stride[0] + head * a.max_stride[1]] =
                    max_log2 * 0.693147181f;
        }
    }
    if (g.out_by_map && !split && (!S::GROUP || u.tokens == g.groups.size))
        store_by_map<S, T>(g, u, smem, o, factor, empty);
    else
        store_direct<S>(g, u, o, factor, empty);
}

/* Thread t holds row t % M; bank t / M of its scores and of its output. */
template <class S, class T>
__device__ __forceinline__ void softmax_role(const struct mla_sparse_args &g, u32 smem, u32 tmem,
                                             u32 rank)
{
    MLA_ROLE("softmax");
    const int count = S::s_columns, part = count < 32 ? count : 32;
    int row = threadIdx.x % S::M, bank = threadIdx.x / S::M;
    u32 lanes = tmem + (threadIdx.x / 32 * 32 << 16), o = lanes + S::o_at;
    u32 p_row = smem + S::p_at + bank * count / 64 * S::q_band + row * 128 + ((row & 7) << 4);
    const u32 ALL_SEEN = count < 32 ? (1u << count % 32) - 1 : 0xFFFFFFFFu;
    const u64 scales = pack_f32x2(g.a.scale_log2, g.a.scale_log2);
    u32 s_phase = 0, o_phase = 0;
    int buffer = 0;
    entries<S> e(smem);
    for (int id = first_unit(S::G); id < g.units; id += unit_step(S::G)) {
        struct unit u;
        find_unit<S>(g, id, rank, &u);
        if (u.tokens == 0)
            continue;
        /* Its token's words of an entry's mask. */
        u32 words_at = S::entry_mask;
        if (S::GROUP)
            words_at += (MLA_MUTANT == 19 ? 0 : row / g.a.heads) * S::mask_words * 4;
        /* Weights are 2^(score - base): base follows the largest score only when that has grown by
         * 2^8, so that O is rescaled rarely. */
        float max_log2 = -INFINITY, base = -INFINITY, sum[2] = {0, 0}; /* even, odd keys */
        bool first = true;
        for (; e.is_block(); e.next()) {
            u32 bits[(count + 31) / 32];
#pragma unroll
            for (int w = 0; w < (count + 31) / 32; w++) {
                int key = bank * count + 32 * w;
                bits[w] = ld_shared<u32>(e.at() + words_at + key / 32 * 4) >> key % 32;
            }
            __syncwarp();
            if (threadIdx.x % 32 == 0)
                release_entry<S>(smem, e.stage);

            u32 r[count / part][part];
            mbarrier_wait(bar_of<S>(smem, S::s_full), s_phase);
            s_phase ^= 1;
            if (MLA_MUTANT != 13)
                tcgen05_fence_after();
#pragma unroll
            for (int c = 0; c < count / part; c++)
                tcgen05_ld_32x32b(r[c], (MLA_MUTANT == 7 ? lanes ^ 32u << 16 : lanes) + S::s_at +
                                            part * c);
            if (MLA_MUTANT != 12)
                tcgen05_wait_ld(r[0]);
#pragma unroll
            for (int c = 1; c < count / part; c++)
                tcgen05_bind(r[c]);
            tcgen05_fence_before();
            arrive_at_mma<S>(bar_of<S>(smem, S::s_free));

            float x[count];
            u32 seen = ALL_SEEN;
#pragma unroll
            for (int i = 0; i < count; i += 2)
                unpack_f32x2(&x[i], &x[i + 1],
                             mul_rn_f32x2(pack_f32x2(__uint_as_float(r[i / part][i % part]),
                                                     __uint_as_float(r[i / part][i % part + 1])),
                                          scales));
#pragma unroll
            for (int w = 0; w < (count + 31) / 32; w++)
                seen &= bits[w];
            if (seen != ALL_SEEN && MLA_MUTANT != 14) {
#pragma unroll
                for (int i = 0; i < count; i++)
                    x[i] = bits[i / 32] >> i % 32 & 1 ? x[i] : -INFINITY;
            }
            float tops[4] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
#pragma unroll
            for (int i = 0; i < count; i += 2)
                tops[i / 2 % 4] = max3_f32(tops[i / 2 % 4], x[i], x[i + 1]);
            float top = fmaxf(max3_f32(tops[0], tops[1], tops[2]), tops[3]);
            float all[S::banks], factor = 1;
            exchange<S>(smem, buffer, row, bank, top, all);
            buffer ^= 1;
#pragma unroll
            for (int b = 0; b < S::banks; b++)
                max_log2 = fmaxf(max_log2, all[b]);
            if (max_log2 > base + 8) {
                factor = ex2_approx_ftz(base - max_log2);
                base = max_log2;
            }
            /* No finite score yet: any finite reference gives weights 0. */
            float reference = base == -INFINITY ? 0 : base;
            const u64 minus = pack_f32x2(-reference, -reference);
            u64 sums =
                mul_rn_f32x2(pack_f32x2(sum[0], sum[1]),
                             MLA_MUTANT == 20 ? pack_f32x2(1, 1) : pack_f32x2(factor, factor));
            u32 p[count / 2];
#pragma unroll
            for (int i = 0; i < count; i += 2) {
                float p0, p1;
                unpack_f32x2(&p0, &p1, add_rn_f32x2(pack_f32x2(x[i], x[i + 1]), minus));
                p0 = ex2_approx_ftz(p0);
                p1 = ex2_approx_ftz(p1);
                sums = add_rn_f32x2(sums, pack_f32x2(p0, p1));
                p[i / 2] = T::pack(p0, p1);
            }
            unpack_f32x2(&sum[0], &sum[1], sums);

            if (!first) {
                /* The block before is added: O may be rescaled, P overwritten. */
                mbarrier_wait(bar_of<S>(smem, S::o_full), o_phase);
                o_phase ^= 1;
                tcgen05_fence_after();
                if (__any_sync(0xFFFFFFFFu, factor != 1) && MLA_MUTANT != 8)
                    rescale<S>(o, factor);
            }
#pragma unroll
            for (int i = 0; i < count / 8; i++) {
                int key = bank * count % 64 + 8 * i; /* in the tile; XOR is the swizzle */
                st_shared(p_row ^ key / 8 << 4,
                          make_uint4(p[4 * i], p[4 * i + 1], p[4 * i + 2], p[4 * i + 3]));
            }
            if (MLA_MUTANT != 3)
                fence_proxy_async();
            tcgen05_fence_before();
            arrive_at_mma<S>(bar_of<S>(smem, S::p_full));
            first = false;
        }
        __syncwarp();
        if (threadIdx.x % 32 == 0)
            release_entry<S>(smem, e.stage);
        e.next();

        float all[S::banks];
        exchange<S>(smem, buffer, row, bank, sum[0] + sum[1], all);
        buffer ^= 1;
        float total = all[0];
#pragma unroll
        for (int b = 1; b < S::banks; b++)
            total += all[b];
        if (!first) {
            mbarrier_wait(bar_of<S>(smem, S::o_full), o_phase);
            o_phase ^= 1;
            tcgen05_fence_after();
        }
        find_unit<S>(g, id, rank, &u); /* again, since the loop has no registers to spare */
        finish<S, T>(g, u, smem, o, base, max_log2, total, first);
        tcgen05_fence_before(); /* O is read: the next unit's first arrival at p_full says so */
    }
    if (threadIdx.x == 0)
        tma_store_wait<0>();
}

/* ------------------------------------------------------------------ kernel */

template <class S> __device__ __forceinline__ void init_barriers(u32 smem, u32 rank)
{
    for (int i = 0; i < S::bars; i++) {
        u32 count = 1; /* commits, and arrivals that announce bytes */
        if (i >= S::entry_free && i < S::entry_free + ENTRIES)
            count = GATHER_WARPS + SOFTMAX_WARPS + (rank == 0); /* one MMA warp a pair */
        if (i == S::s_free || i == S::p_full)
            count = S::G * SOFTMAX_WARPS;
        mbarrier_init(bar_of<S>(smem, i), count);
    }
    fence_mbarrier_init();
}

template <class S, class T>
__global__ void __launch_bounds__(MLA_SPARSE_THREADS, 1)
    sparse_mqa_prefill_kernel(const __grid_constant__ struct mla_sparse_args g)
{
    u32 smem = dynamic_smem(), rank = S::G == 2 ? cluster_ctarank() : 0;
    int warp = (int)warp_index();
    if (threadIdx.x == 0)
        init_barriers<S>(smem, rank);
    if (S::G == 2)
        cluster_sync(); /* both run, both have barriers */
    else
        __syncthreads();
    if (warp == MMA_WARP)
        tcgen05_alloc<S::G>(smem + S::tmem_at, 512);
    tcgen05_fence_before();
    __syncthreads();
    tcgen05_fence_after();
    u32 tmem = ld_shared<u32>(smem + S::tmem_at);

    if (warp < SOFTMAX_WARPS) {
        setmaxnreg_inc<200>();
        softmax_role<S, T>(g, smem, tmem, rank);
    } else {
        setmaxnreg_dec<56>();
        if (warp < MMA_WARP)
            gather_role<S>(g, smem, rank, warp - GATHER_WARP);
        else if (warp == INDEX_WARP)
            index_role<S>(g, smem, rank);
        else if (warp == MMA_WARP && rank == 0)
            mma_role<S, T>(g, smem, tmem);
    }
    __syncwarp();

    tcgen05_fence_before();
    if (S::G == 2)
        cluster_sync(); /* the pair's MMAs write both CTAs' memory */
    else
        __syncthreads();
    tcgen05_fence_after();
    if (warp == MMA_WARP) {
        tcgen05_relinquish<S::G>();
        tcgen05_dealloc<S::G>(tmem, 512);
    }
}

template <class S, class T> static struct mla_mqa_tile entry()
{
    struct mla_mqa_tile t = {mla_kernel_address(sparse_mqa_prefill_kernel<S, T>), S::shared_bytes,
                             MLA_SPARSE_THREADS, S::G};
    return t;
}

template <int G, int M> static struct mla_mqa_tile entry_of(int rope_dim, bool is_bf16)
{
    typedef geometry<G, M, 64> with;
    typedef geometry<G, M, 0> without;
    if (rope_dim)
        return is_bf16 ? entry<with, bf16>() : entry<with, f16>();
    return is_bf16 ? entry<without, bf16>() : entry<without, f16>();
}

extern "C" struct mla_mqa_tile mla_sparse_group_tile(int rope_dim, bool is_bf16)
{
    typedef geometry<1, 64, 64, true> with;
    typedef geometry<1, 64, 0, true> without;
    if (rope_dim)
        return is_bf16 ? entry<with, bf16>() : entry<with, f16>();
    return is_bf16 ? entry<without, bf16>() : entry<without, f16>();
}

extern "C" struct mla_mqa_tile mla_sparse_tile(int tile, int rope_dim, bool is_bf16)
{
    return tile == 0   ? entry_of<1, 32>(rope_dim, is_bf16)
           : tile == 1 ? entry_of<1, 64>(rope_dim, is_bf16)
                       : entry_of<2, 64>(rope_dim, is_bf16);
}
