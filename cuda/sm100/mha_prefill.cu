/* SPDX-License-Identifier: Apache-2.0 */
/* Attention with keys and values per head on tcgen05 (sm_100, sm_103): dense, causal at any context
 * offset, or under a bit per query and key; variable lengths, grouped key heads, sinks, lse. bf16
 * or f16 in, fp32 accumulation. 192/128, 128/128 and 256/256 (query and key, value width); smaller
 * widths are padded by TMA's zeros.
 *
 * A block is alone on its SM and takes works (a head, 256 query rows; 128 at 256/256), the longest
 * first. Two query tiles of 128 rows are in flight, so that the tensor core multiplies for one
 * while the other is in softmax; at 256/256, where O leaves room for one only, the same goes for
 * two tiles of keys. Tiles of 128 keys without a visible key are skipped by all roles, each by
 * itself.
 *
 *   MMA    S0=Q0·K0 S1=Q1·K0 | O0+=P0·V0 S0=Q0·K1 | O1+=P1·V0 S1=Q1·K1 | O0+=P0·V1 ...
 *   softmax 0         [ max, 2^x, P0 ............ ]         [ ... ]
 *   softmax 1                   [ max, 2^x, P1 ............ ]
 *
 * Roles (warps at two query tiles; registers a thread)
 *   0-3, 4-7  softmax     a thread has a row of its query tile: S from TMEM, running maximum,
 *                         2^x, P (bf16 or f16) back to TMEM; lse and max_logits (200)
 *   8-11      correction  rescales O where a row's maximum has grown by 2^8, divides, writes (64)
 *   12        mma         one thread issues all tcgen05.mma and commits (48)
 *   13        load        TMA
 *   14        clean       zeros rows of V that no row of the work sees, before the MMA may read
 *   15        -
 *
 * Shared memory: 14 slots of 16 KB (128 rows of 128 bytes, 128-byte swizzle), 229376 B, and 2.4 KB
 * of barriers, factors and weights.
 *   Q      [tile][64 columns]: 6 slots at 192/128, 4 elsewhere
 *   ring   the other 8 or 10. Of a tile of keys: K, a slot for 64 columns of all 128 keys
 *          (K-major); V, a slot for all columns of 64 keys (32 at 256/256; MN-major)
 *
 * TMEM, 512 columns (256/256)
 *     0 S0 (S of even key tiles)    64-127 its P, two keys a column, over what S held
 *   128 S1 (S of odd key tiles)    192-255 its P
 *   256 O0 (O)
 *   384 O1
 *
 * Barriers              arrivals          from -> to
 *   q_full[tile]        1 + bytes         load -> mma            queries have landed
 *   q_free[tile]        commit            mma -> load            the work's last scores are made
 *   k_full[slot]        1 + bytes         load -> mma            K has landed
 *   v_full[slot]        1 + bytes         load -> clean          V has landed
 *   ready[slot]         1                 clean -> mma           V is clean
 *   free[slot]          commit            mma -> load            all products with it are made
 *   s_full[place]       commit            mma -> softmax         S is made (and all before it)
 *   factor_full[place]  128               softmax -> correction  factors of this key tile
 *   p_ready[place]      128 + 128         softmax, correction -> mma   P of 64 keys is stored; O is
 *                                         rescaled or, of a first key tile, read
 *   p_more[place]       128               softmax -> mma         P of the other 64 keys is stored
 *   o_full[tile]        commit            mma -> correction      a P·V has been added
 *   weight_full[tile]   128               softmax -> correction  what O is to be multiplied by
 *   weight_free[tile]   128               correction -> softmax  that has been read
 * place = query tile, or parity of the key tile where there is one query tile. A slot's K and V
 * have a barrier each, since clean does not wait for K and could miss a phase. Factors need no
 * barrier back: the next S of the place is asked for after p_ready.
 *
 * Clocks for 128 keys, by unit (256 query rows at 192/128; 128 at 256/256)
 *                     192/128                                    256/256
 *   tensor core       2 · (12 + 8) · 64         = 2560           16 · 64 + 8 · 128     = 2048
 *   shared memory     (192 + 64 + 80) KB / 128  = 2688           (128 + 64 + 128) KB   = 2560
 *   2^x               2 · 16384 · 3/4 / 16      = 1536           16384 / 16            = 1024
 *   FMA, max, cvt     about 1100 of 2560 issue slots             about 450
 *   L2 to SM          80 KB: 32 B a clock                        128 KB: 50 B a clock
 * Both operands of Q·K^T come from shared memory, 8 KB in each 64 clocks, all it can deliver; P
 * from TMEM halves that for P·V. So shared memory bounds 192/128, at 95 % of the tensor core, and
 * 256/256 at 80 %, if L2 delivers; a pair of CTAs, each with half of every K and V tile, would lift
 * both.
 * A quarter of all 2^x are polynomials on the FMA pipes at two query tiles: one softmax has 1280
 * clocks while the other query tile is multiplied, and 1024 for 2^x alone leave too few for the
 * rest. P is handed over in halves for the same reason.
 *
 * P is rounded to the input type unnormalised; the row sum adds unrounded fp32 values. Every work
 * is computed by one block in one order: same inputs, same bits. */
#include "mha_prefill.cuh"

#include "ptx/launch.cuh"
#include "ptx/tma.cuh"
#include "ptx/warp.cuh"

/* Parities of barriers whose phases a role counts itself, a bit each. */
__device__ __forceinline__ void wait_and_flip(u32 bars, int i, u32 *phases MLA_AT)
{
#ifdef MLA_MODEL
    mbarrier_wait(bars + 8 * i, *phases >> i & 1, at);
#else
    mbarrier_wait(bars + 8 * i, *phases >> i & 1);
#endif
    *phases ^= 1u << i;
}

/* -------------------------------------------------------------------- load */

template <class L>
__device__ __forceinline__ void load_keys(const struct mla_mha100_args &x, const struct mha_work &w,
                                          u32 smem, int key, struct ring<L::SLOTS> *at)
{
#pragma unroll 1
    for (int c = 0; c < L::K_SLOTS; c++) {
        const u32 full = smem + L::K_FULL + 8 * at->stage;
        if (MLA_MUTATED(1, false, true))
            mbarrier_wait(smem + L::FREE + 8 * at->stage, at->phase ^ 1);
        mbarrier_arrive_expect_tx(full, MLA_MUTATED(2, L::SLOT - 128, L::SLOT));
        tma_load_3d(smem + L::RING + at->stage * L::SLOT, &x.maps.k, full, c * 64, w.head_kv,
                    (int)w.kv_start + key);
        at->next();
    }
}

template <class L>
__device__ __forceinline__ void load_values(const struct mla_mha100_args &x,
                                            const struct mha_work &w, u32 smem, int key,
                                            struct ring<L::SLOTS> *at)
{
#pragma unroll 1
    for (int i = 0; i < L::V_SLOTS; i++) {
        const u32 full = smem + L::V_FULL + 8 * at->stage;
        const u32 slot = smem + L::RING + at->stage * L::SLOT;
        mbarrier_wait(smem + L::FREE + 8 * at->stage, at->phase ^ 1);
        mbarrier_arrive_expect_tx(full, L::SLOT);
#pragma unroll
        for (int c = 0; c < L::D_V / 64; c++)
            tma_load_3d(slot + c * L::V_KEYS * 128, &x.maps.v, full, c * 64, w.head_kv,
                        (int)w.kv_start + key + i * L::V_KEYS);
        at->next();
    }
}

template <class L>
__device__ __forceinline__ void load_queries(const struct mla_mha100_args &x,
                                             const struct mha_work &w, u32 smem, int key,
                                             u32 *phases)
{
#pragma unroll 1
    for (int t = 0; t < L::TILES; t++) {
        const u32 full = smem + L::Q_FULL + 8 * t;
        if (key >= limit_of<L>(x, w, t))
            continue;
        wait_and_flip(smem + L::Q_FREE, t, phases);
        mbarrier_arrive_expect_tx(full, L::K_SLOTS * L::SLOT);
#pragma unroll 1
        for (int c = 0; c < L::K_SLOTS; c++) {
            const bool low = c * 64 < x.a.q_split;
            tma_load_3d(smem + L::Q + (t * L::K_SLOTS + c) * L::SLOT,
                        low ? &x.maps.q : &x.maps.q_rope, full, low ? c * 64 : c * 64 - x.a.q_split,
                        w.head, (int)w.batch + t * L::ROWS, L2_EVICT_FIRST);
        }
    }
}

/* The order of the MMA warp: K0 V0 K1 V1 ... with two query tiles, K0 K1 V0 K2 V1 ... with one. The
 * queries come behind the first keys: their place is taken until the work before has all scores. */
template <class L> __device__ __forceinline__ void load(const struct mla_mha100_args &x, u32 smem)
{
    struct ring<L::SLOTS> at;
    struct mha_work w;
    u32 q_phases = ~0u; /* the places are free at first */
    const bool leader = elect_one();
    if (leader) {
        tma_prefetch_map(&x.maps.q);
        tma_prefetch_map(&x.maps.k);
        tma_prefetch_map(&x.maps.v);
    }
    for (int n = 0; nth_work<L>(x, n, &w); n++) {
        struct mha_walk walk;
        int key = next_tile(x, w, &walk);
        if (key >= w.end)
            continue;
        /* Lanes that only looked on could miss a phase: one thread waits and issues. */
        if (leader) {
            load_keys<L>(x, w, smem, key, &at);
            load_queries<L>(x, w, smem, key, &q_phases);
        }
        while (key < w.end) {
            const int next = next_tile(x, w, &walk);
            if (leader) {
                if (L::TILES == 1 && next < w.end)
                    load_keys<L>(x, w, smem, next, &at);
                load_values<L>(x, w, smem, key, &at);
                if (L::TILES == 2 && next < w.end)
                    load_keys<L>(x, w, smem, next, &at);
            }
            key = next;
        }
    }
}

/* ------------------------------------------------------------------- clean */

/* Rows of V that no row of the work sees may hold anything, and 0 · NaN is NaN: they become zero
 * before the MMA warp may read. */
template <class L> __device__ __forceinline__ void clean(const struct mla_mha100_args &x, u32 smem)
{
    struct ring<L::SLOTS> at;
    struct mha_work w;
    u32 phases = 0;
    const int lane = threadIdx.x % 32;
    const bool leader = elect_one();
    for (int n = 0; nth_work<L>(x, n, &w); n++) {
        struct mha_walk walk;
        int key = next_tile(x, w, &walk);
        bool first = true;
        while (key < w.end) {
            u32 seen[4];
            seen_keys(walk, seen);
            const int next = next_tile(x, w, &walk);
            /* Keys of this tile, with one query tile of the next. */
            const int skip = L::TILES == 2 ? 1 : first + (next < w.end);
            at.skip(skip * L::K_SLOTS);
#pragma unroll
            for (int i = 0; i < L::V_SLOTS; i++) {
                const u32 slot = smem + L::RING + at.stage * L::SLOT;
                if (MLA_MUTATED(3, false, true))
                    wait_and_flip(smem + L::V_FULL, (int)at.stage, &phases);
                if (!all_seen(seen) && MLA_MUTANT != 26) {
#pragma unroll 1
                    for (int k = 0; k < L::V_KEYS; k++) {
                        const int j = i * L::V_KEYS + k;
                        const u32 word =
                            j < 64 ? (j < 32 ? seen[0] : seen[1]) : (j < 96 ? seen[2] : seen[3]);
                        if (!(word >> (j & 31) & 1) && lane < L::D_V / 8)
                            st_shared(slot +
                                          (u32)((lane / 8 * L::V_KEYS + k) * 128 + lane % 8 * 16),
                                      make_uint4(0, 0, 0, 0));
                    }
                    if (MLA_MUTATED(4, false, true))
                        fence_proxy_async();
                }
                __syncwarp(); /* all have seen the phase, and zeroed */
                if (leader)
                    mbarrier_arrive(smem + L::READY + 8 * at.stage);
                at.next();
            }
            first = false;
            key = next;
        }
    }
}

/* --------------------------------------------------------------------- mma */

/* S[place] = Q[t] · K^T. The last query tile that uses the keys frees their slots. */
template <class T, class L>
__device__ __forceinline__ void scores(u32 smem, int t, int place, struct ring<L::SLOTS> at,
                                       u32 full, bool release)
{
    constexpr operand_type type = operand_type_of<T>::value;
    constexpr u32 idesc = umma_idesc(128, L::KEYS, type, type, OPERAND_F32, false, false);
#pragma unroll 1
    for (int c = 0; c < L::K_SLOTS; c++) {
        const u32 q = smem + L::Q + (t * L::K_SLOTS + c) * L::SLOT;
        const u64 a = umma_desc(q, 0, 1024, 128);
        const u64 b =
            umma_desc(smem + L::RING + at.stage * L::SLOT, 0, MLA_MUTATED(5, 512, 1024), 128);
        mbarrier_wait(smem + L::K_FULL + 8 * at.stage, full >> at.stage & 1);
#pragma unroll
        for (int step = 0; step < 4; step++) {
            tcgen05_mma_ss<1, KIND_F16>(L::S + place * L::KEYS, a + step * 2, b + step * 2, idesc,
                                        c + step > 0);
            if (MLA_MUTANT == 6 && c == L::K_SLOTS - 1 && step == 2)
                tcgen05_commit<1>(smem + L::S_FULL + 8 * place);
        }
        if (release)
            tcgen05_commit<1>(smem + L::FREE + 8 * at.stage);
        at.next();
    }
    if (MLA_MUTANT != 6)
        tcgen05_commit<1>(smem + L::S_FULL + 8 * place);
}

/* O[t] (+)= P[place] · V; more: the parity of p_more. */
template <class T, class L>
__device__ __forceinline__ void values(u32 smem, int t, int place, struct ring<L::SLOTS> at,
                                       u32 ready, u32 more, bool accumulate, bool release)
{
    constexpr operand_type type = operand_type_of<T>::value;
    constexpr u32 idesc = umma_idesc(128, L::D_V, type, type, OPERAND_F32, false, true);
    constexpr u32 leading = L::V_KEYS * 128, stride = 1024;
#pragma unroll 1
    for (int i = 0; i < L::V_SLOTS; i++) {
        const u64 b =
            umma_desc(smem + L::RING + at.stage * L::SLOT, MLA_MUTATED(8, stride, leading),
                      MLA_MUTATED(8, leading, stride), 128);
        const u32 p = L::S + place * L::KEYS + L::P + i * (L::V_KEYS / 2);
        if (i == L::V_SLOTS / 2 && MLA_MUTANT != 25) {
            mbarrier_wait(smem + L::P_MORE + 8 * place, more);
            tcgen05_fence_after();
        }
        mbarrier_wait(smem + MLA_MUTATED(7, L::V_FULL, L::READY) + 8 * at.stage,
                      ready >> at.stage & 1);
#pragma unroll
        for (int step = 0; step < L::V_KEYS / 16; step++)
            tcgen05_mma_ts<1, KIND_F16>(L::O + t * L::D_V, p + step * 8,
                                        b + step * MLA_MUTATED(9, 1024, 2048) / 16, idesc,
                                        accumulate || i + step > 0);
        if (release)
            tcgen05_commit<1>(smem + L::FREE + 8 * at.stage);
        at.next();
    }
    tcgen05_commit<1>(smem + L::O_FULL + 8 * t);
}

/* Some slots in a row, a bit each. */
template <class L> __device__ __forceinline__ u32 slots_of(const struct ring<L::SLOTS> &at, int n)
{
    const u32 bits = ((1u << n) - 1) << at.stage;
    return (bits | bits >> L::SLOTS) & ((1u << L::SLOTS) - 1);
}

template <class T, class L>
__device__ __forceinline__ void multiply(const struct mla_mha100_args &x, u32 smem)
{
    struct ring<L::SLOTS> at;
    struct mha_work w;
    u32 q_phases = 0, p_phases = 0;
    u32 full = 0, ready = 0; /* of slots: parities of the next K, of the next V */
    const bool leader = elect_one();
    for (int n = 0; nth_work<L>(x, n, &w); n++) {
        struct mha_walk walk;
        int key = next_tile(x, w, &walk), place = 0, limit[2];
        bool first = true;
        if (key >= w.end)
            continue;
        limit[0] = limit_of<L>(x, w, 0);
        limit[1] = L::TILES == 2 ? limit_of<L>(x, w, 1) : 0;
#pragma unroll
        for (int t = 0; t < L::TILES; t++) {
            if (!leader || key >= limit[t])
                continue;
            wait_and_flip(smem + L::Q_FULL, t, &q_phases);
            if (MLA_MUTANT == 24)
                mbarrier_arrive(smem + L::Q_FREE + 8 * t);
            scores<T, L>(smem, t, t, at, full, t == 1 || key >= limit[1]);
        }
        full ^= slots_of<L>(at, L::K_SLOTS);
        at.skip(L::K_SLOTS);
        while (key < w.end) {
            const int next = next_tile(x, w, &walk);
            struct ring<L::SLOTS> v = at, k = at;
            if (L::TILES == 2)
                k.skip(L::V_SLOTS);
            else if (next < w.end)
                v.skip(L::K_SLOTS);
            at.skip(L::V_SLOTS + (next < w.end ? L::K_SLOTS : 0));
            if (leader) {
#pragma unroll
                for (int t = 0; t < L::TILES; t++) {
                    /* All scores of these queries have been asked for: their place may be
                     * refilled once they are made. */
                    if (key < limit[t] && next >= limit[t] && MLA_MUTANT != 24)
                        tcgen05_commit<1>(smem + L::Q_FREE + 8 * t);
                }
                if (L::TILES == 1 && next < limit[0])
                    scores<T, L>(smem, 0, place ^ 1, k, full, true);
#pragma unroll
                for (int t = 0; t < L::TILES; t++) {
                    const int here = L::TILES == 2 ? t : place;
                    if (key < limit[t]) {
                        const u32 more = p_phases >> here & 1;
                        if (MLA_MUTANT == 10)
                            p_phases ^= 1u << here;
                        wait_and_flip(smem + L::P_READY, here, &p_phases);
                        if (MLA_MUTATED(11, false, true))
                            tcgen05_fence_after();
                        values<T, L>(smem, t, here, v, ready, more, MLA_MUTATED(12, true, !first),
                                     MLA_MUTATED(13, t == 0, t == 1 || key >= limit[1]));
                    }
                    if (L::TILES == 2 && next < limit[t])
                        scores<T, L>(smem, t, t, k, full, t == 1 || next >= limit[1]);
                }
            }
            ready ^= slots_of<L>(v, L::V_SLOTS);
            if (next < w.end)
                full ^= slots_of<L>(k, L::K_SLOTS);
            place ^= 1;
            first = false;
            key = next;
        }
    }
}

/* ----------------------------------------------------------------- softmax */

/* Bits of the tile's keys that a row sees. */
template <class L>
__device__ __forceinline__ void visible_keys(const struct mla_mha100_args &x,
                                             const struct mha_work &w, int row, int key,
                                             u32 (&seen)[4])
{
    const struct mla_mha_args &a = x.a;
    const int left = a.causal ? w.shift + w.first + row - key : L::KEYS;
    const u32 *mask = a.mask + (a.mask ? (w.mask + row) * a.mask_stride + key / 32 : 0);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int here = left - i * 32;
        seen[i] &= here >= 32 ? ~0u : here > 0 ? (1u << here) - 1 : 0;
        if (a.mask && seen[i])
            seen[i] &= row < w.count ? mask[i] : 0;
    }
}

template <class T, class L>
__device__ __forceinline__ void softmax(const struct mla_mha100_args &x, u32 smem, int t)
{
    const int warp = threadIdx.x / 32 % 4, lane_row = threadIdx.x % 128,
              row = t * L::ROWS + lane_row;
    const u32 lanes = (u32)warp << 21; /* 32 · warp, as a TMEM address */
    const float scale = x.a.scale_log2;
    struct mha_work w;
    u32 s_phases = 0, weight_phases = ~0u;
    for (int n = 0; nth_work<L>(x, n, &w); n++) {
        struct mha_walk walk;
        struct mha_row r = {-CUDART_INF_F, -CUDART_INF_F, 0, {0, 0}};
        const int limit = limit_of<L>(x, w, t);
        /* Keys below this are visible to all rows of the warp unless bits say otherwise. */
        const int inner = x.a.mask     ? 0
                          : x.a.causal ? w.shift + w.first + t * L::ROWS + warp * 32
                                       : w.end;
        int place = L::TILES == 2 ? t : 0;
        bool any = false;
        for (int key; (key = next_tile(x, w, &walk)) < limit;) {
            u32 seen[4], s[4][32];
            seen_keys(walk, seen);
            const bool some = !all_seen(seen) || key + L::KEYS > inner;
            if (some)
                visible_keys<L>(x, w, row, key, seen);
            const u32 from = lanes + L::S + place * L::KEYS;
            wait_and_flip(smem + L::S_FULL, place, &s_phases);
            tcgen05_fence_after();
#pragma unroll
            for (int c = 0; c < 4; c++)
                tcgen05_ld_32x32b<32>(s[c], from + c * 32);
            if (MLA_MUTATED(14, false, true))
                tcgen05_wait_ld(s[0]);
#pragma unroll
            for (int c = 1; c < 4; c++)
                tcgen05_bind(s[c]);
            if (x.a.sign != 1) {
#pragma unroll
                for (int i = 0; i < 128; i++)
                    s[i / 32][i % 32] =
                        __float_as_uint(__uint_as_float(s[i / 32][i % 32]) * x.a.sign);
            }
            if (some)
                hide(s, seen);
            const float shrink = take_scores(s, &r, scale);
            st_shared(smem + L::FACTOR + (u32)(place * L::ROWS + lane_row) * 4, shrink);
            mbarrier_arrive(smem + L::FACTOR_FULL + 8 * place);
#pragma unroll
            for (int c = 0; c < 4; c++) {
                u32 p[16];
                make_weights<T, L::TILES == 2>(s[c], p, &r, scale);
                tcgen05_st_32x32b<16>(from + MLA_MUTATED(15, 0, L::P) + c * 16, p);
                if (c % 2 == 0)
                    continue;
                /* The first half of P can be multiplied while the second is made. */
                if (MLA_MUTATED(16, false, true))
                    tcgen05_wait_st();
                if (MLA_MUTATED(17, false, true))
                    tcgen05_fence_before();
                mbarrier_arrive(smem + (c == 1 ? L::P_READY : L::P_MORE) + 8 * place);
            }
            if (L::TILES == 1)
                place ^= 1;
            any = true;
        }
        const float weight = finish_row(x, w, r, row);
        if (!any)
            continue;
        /* The weight of the work before has been read. */
        if (MLA_MUTATED(18, false, true))
            wait_and_flip(smem + L::WEIGHT_FREE, t, &weight_phases);
        st_shared(smem + L::WEIGHT + (u32)(t * L::ROWS + lane_row) * 4, weight);
        mbarrier_arrive(smem + L::WEIGHT_FULL + 8 * t);
    }
}

/* -------------------------------------------------------------- correction */

template <class L> __device__ __forceinline__ void rescale(u32 o, float shrink)
{
    const u64 by = pack_f32x2(shrink, shrink);
#pragma unroll 1
    for (int c = 0; c < L::D_V; c += 32) {
        u32 r[32];
        tcgen05_ld_32x32b<32>(r, o + c);
        tcgen05_wait_ld(r);
#pragma unroll
        for (int i = 0; i < 32; i += 2) {
            float low, high;
            unpack_f32x2(&low, &high,
                         mul_rn_f32x2(pack_f32x2(__uint_as_float(r[i]), __uint_as_float(r[i + 1])),
                                      by));
            r[i] = __float_as_uint(low);
            r[i + 1] = __float_as_uint(high);
        }
        tcgen05_st_32x32b<32>(o + c, r);
    }
    tcgen05_wait_st();
}

template <class L>
__device__ __forceinline__ void write_rows(const struct mla_mha100_args &x,
                                           const struct mha_work &w, u32 o, int row, float weight,
                                           bool there)
{
    const int64_t size = x.a.out_dtype == MLA_F32 ? 4 : 2;
    char *out = x.a.out + ((w.batch + row) * x.a.out_stride[0] + w.head * x.a.out_stride[1]) * size;
#pragma unroll 1
    for (int c = 0; c < x.a.d_v; c += 32) {
        u32 r[32];
        if (there) {
            tcgen05_ld_32x32b<32>(r, o + c);
            tcgen05_wait_ld(r);
        } else {
#pragma unroll
            for (int i = 0; i < 32; i++)
                r[i] = 0;
        }
        if (row < w.count)
            store_columns(x, out, c, r, weight);
    }
}

template <class L>
__device__ __forceinline__ void correct(const struct mla_mha100_args &x, u32 smem)
{
    const int warp = threadIdx.x / 32 % 4, lane_row = threadIdx.x % 128;
    const u32 lanes = (u32)(MLA_MUTATED(19, warp ^ 1, warp)) << 21;
    struct mha_work w;
    u32 factor_phases = 0, o_phases = 0, weight_phases = 0;
    for (int n = 0; nth_work<L>(x, n, &w); n++) {
        struct mha_walk walk;
        int limit[2], place = 0;
        u32 started = 0; /* query tiles that have keys, a bit each */
        limit[0] = limit_of<L>(x, w, 0);
        limit[1] = L::TILES == 2 ? limit_of<L>(x, w, 1) : 0;
        for (int key; (key = next_tile(x, w, &walk)) < w.end;) {
#pragma unroll
            for (int t = 0; t < L::TILES; t++) {
                const int here = L::TILES == 2 ? t : place;
                if (key >= limit[t])
                    continue;
                wait_and_flip(smem + L::FACTOR_FULL, here, &factor_phases);
                const float shrink =
                    ld_shared<float>(smem + L::FACTOR + (u32)(here * L::ROWS + lane_row) * 4);
                if (started >> t & 1) {
                    if (MLA_MUTATED(21, false, true))
                        wait_and_flip(smem + L::O_FULL, t, &o_phases);
                    if (__any_sync(~0u, shrink != 1) && MLA_MUTANT != 22) {
                        tcgen05_fence_after();
                        rescale<L>(lanes + L::O + t * L::D_V, shrink);
                    }
                }
                /* Of a first tile: O has been read (below). */
                tcgen05_fence_before();
                mbarrier_arrive(smem + L::P_READY + 8 * here);
                started |= 1u << t;
            }
            place ^= 1;
        }
#pragma unroll
        for (int t = 0; t < L::TILES; t++) {
            const int row = t * L::ROWS + lane_row;
            float weight = 0;
            if (started >> t & 1) {
                wait_and_flip(smem + L::WEIGHT_FULL, t, &weight_phases);
                weight = ld_shared<float>(smem + L::WEIGHT + (u32)row * 4);
                mbarrier_arrive(smem + L::WEIGHT_FREE + 8 * t);
                wait_and_flip(smem + L::O_FULL, t, &o_phases);
                tcgen05_fence_after();
            }
            write_rows<L>(x, w, lanes + L::O + t * L::D_V, row, weight, started >> t & 1);
        }
    }
}

/* ------------------------------------------------------------------ kernel */

template <class L> __device__ __forceinline__ void init_barriers(u32 smem)
{
    for (int t = 0; t < L::TILES; t++) {
        mbarrier_init(smem + L::Q_FULL + 8 * t, 1);
        mbarrier_init(smem + L::Q_FREE + 8 * t, 1);
        mbarrier_init(smem + L::O_FULL + 8 * t, 1);
        mbarrier_init(smem + L::WEIGHT_FULL + 8 * t, 128);
        mbarrier_init(smem + L::WEIGHT_FREE + 8 * t, 128);
    }
    for (int i = 0; i < L::SLOTS; i++) {
        mbarrier_init(smem + L::K_FULL + 8 * i, 1);
        mbarrier_init(smem + L::V_FULL + 8 * i, 1);
        mbarrier_init(smem + L::FREE + 8 * i, 1);
        mbarrier_init(smem + L::READY + 8 * i, 1);
    }
    for (int i = 0; i < 2; i++) {
        mbarrier_init(smem + L::S_FULL + 8 * i, 1);
        mbarrier_init(smem + L::P_READY + 8 * i, 256);
        mbarrier_init(smem + L::P_MORE + 8 * i, 128);
        mbarrier_init(smem + L::FACTOR_FULL + 8 * i, 128);
    }
    fence_mbarrier_init();
}

template <class T, class L>
__global__ void __launch_bounds__(L::THREADS, 1)
    mha_prefill_kernel(const __grid_constant__ struct mla_mha100_args x)
{
    const u32 smem = dynamic_smem();
    const int warp = (int)warp_index();
    if (warp == L::LOAD && elect_one())
        init_barriers<L>(smem);
    if (warp == L::MMA) {
        tcgen05_alloc<1>(smem + L::TMEM_BASE, L::TMEM);
        tcgen05_relinquish<1>();
        tcgen05_fence_before();
    }
    __syncthreads();
    tcgen05_fence_after();
    /* All columns are this block's, so that they begin at 0. */
    if (warp < L::CORRECTION) {
        MLA_ROLE("softmax");
        setmaxnreg_inc<L::SOFTMAX_REGISTERS>();
        softmax<T, L>(x, smem, warp / 4);
    } else if (warp < L::MMA) {
        MLA_ROLE("correction");
        setmaxnreg_dec<L::CORRECTION_REGISTERS>();
        correct<L>(x, smem);
    } else {
        setmaxnreg_dec<L::OTHER_REGISTERS>();
        if (warp == L::MMA) {
            MLA_ROLE("mma");
            multiply<T, L>(x, smem);
        } else if (warp == L::LOAD) {
            MLA_ROLE("load");
            load<L>(x, smem);
        } else if (warp == L::CLEAN) {
            MLA_ROLE("clean");
            clean<L>(x, smem);
        }
    }
    tcgen05_fence_before();
    __syncthreads();
    tcgen05_fence_after();
    if (warp == L::MMA && MLA_MUTANT != 23)
        tcgen05_dealloc<1>(ld_shared<u32>(smem + L::TMEM_BASE), L::TMEM);
}

template <class T, class L> static struct mla_mha_tile entry()
{
    return {mla_kernel_address(mha_prefill_kernel<T, L>), L::BYTES, L::TILES * L::ROWS, L::THREADS};
}

template <class T> static struct mla_mha_tile tile_of(int64_t d_qk, int64_t d_v)
{
    if (d_qk <= 128 && d_v <= 128)
        return entry<T, mha_shape<128, 128>>();
    if (d_qk <= 192 && d_v <= 128)
        return entry<T, mha_shape<192, 128>>();
    if (d_qk <= 256 && d_v <= 256)
        return entry<T, mha_shape<256, 256>>();
    return {NULL, 0, 0, 0};
}

struct mla_mha_tile mla_mha100_tile(mla_dtype dtype, int64_t d_qk, int64_t d_v)
{
    return dtype == MLA_BF16 ? tile_of<bf16>(d_qk, d_v) : tile_of<f16>(d_qk, d_v);
}
