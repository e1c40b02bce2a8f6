/* SPDX-License-Identifier: Apache-2.0 */
/* mqa_decode of sm_90: packed fp8 records by eight warps of 64 registers (struct fp8_stream). Part
 * of mqa_decode_keys.cuh.
 *
 * Warp w has keys 8 w to 8 w + 7 of every block, four lanes a key; a lane has ten pieces of 16
 * bytes of a record, 16 values of each tile of 64 columns and two of rope. In a pair it has keys
 * 8 w + 4 r to 8 w + 4 r + 3, r the block's rank, eight lanes a key; four have the even tiles, four
 * the odd ones, a lane five pieces.
 *
 * Pieces go through in the order of the columns, rope behind tile 4 (pair: last); five are in
 * flight, each asked for when the one before in its registers has been used. Stores of eight lanes,
 * two keys of four, write all banks once. A key that is not seen is a record of zeros.
 *
 * Where records lie is found for four blocks at a time, a lane a key: positions while the first of
 * the four blocks before is converted, pages while the second is, places while the third is.
 * Records are called to L2 two blocks ahead. What this needs of a work waits in shared memory:
 * registers are short, and spilled ones, in L1 beside the records, take as long as memory. Loads
 * used in another basic block share one scoreboard, so that a wait for one waits for all: pieces
 * and halves are in an order that lets this happen twice a block, in a pair once. */
#ifndef MLA_CUDA_SM90_MQA_DECODE_STREAM_CUH
#define MLA_CUDA_SM90_MQA_DECODE_STREAM_CUH

__device__ static const uint4 no_record[FP8_ROW_BYTES / 16] = {};

/* Pieces of a lane. */
template <bool PAIR> struct stream_pieces {
    static const int all = PAIR ? 5 : 10, flight = 5;
    static const int left = PAIR ? 2 : 4;                       /* end of those of tiles 0 to 3 */
    static const int rope = PAIR ? 4 : 5, ropes = PAIR ? 1 : 2; /* the first, how many */
    static const int next = all - flight; /* the first whose registers get one of the next block */
};

__device__ __forceinline__ void write_walk(u32 walk, const struct work &w)
{
    if (elect_one()) {
        st_shared(walk, (u64)w.list);
        st_shared(walk + 8, (u64)w.pages);
        st_shared(walk + 16, w.count);
        st_shared(walk + 20, w.end);
        st_shared(walk + 24, w.r.kv_start);
    }
    __syncwarp();
}

/* Entry j of the list, or key j. */
__device__ __forceinline__ int walk_position(u32 walk, int j)
{
    const int32_t *list = (const int32_t *)ld_shared<u64>(walk);
    if (!list)
        return j;
    return j < ld_shared<int>(walk + 16) ? list[j] : -1;
}

__device__ __forceinline__ int walk_page(const struct mla_mqa_args &a, u32 walk, int pos)
{
    struct work w = {};
    w.pages = (const int32_t *)ld_shared<u64>(walk + 8);
    w.end = ld_shared<int>(walk + 20);
    return fetch_page(a, w, pos);
}

/* The record at a position; one of zeros if the key is not seen. */
__device__ __forceinline__ const char *walk_record(const struct mla_mqa_args &a, u32 walk, int pos,
                                                   int page)
{
    if (page < 0 || (a.cache.page_size > 0 && page >= a.cache.num_pages))
        return (const char *)no_record;
    return a.cache.data + place_row(&a.cache, ld_shared<int>(walk + 24), pos, page).data;
}

/* Two of a word's e4m3 values times scale. */
template <class T, int HIGH> __device__ __forceinline__ u32 widen_two(u32 word, float scale)
{
    const u32 h = cvt_rn_f16x2_e4m3x2_of<HIGH>(word);
    const float2 v = __half22float2(*(const __half2 *)&h);
    return T::pack(v.x * scale, v.y * scale);
}

template <class T> __device__ __forceinline__ uint4 widen_eight(u32 x, u32 y, float scale)
{
    return make_uint4(widen_two<T, 0>(x, scale), widen_two<T, 1>(x, scale),
                      widen_two<T, 0>(y, scale), widen_two<T, 1>(y, scale));
}

/* What a lane is for. Found anew for every block, from a thread number whose origin the compiler
 * does not see: kept, it would cost registers. */
template <class F, bool PAIR> struct stream_lane {
    static const int N = KEYS / F::WARPS, tile_step = PAIR ? 2 : 1;
    u32 warp, lane, part, odd, key;

    __device__ __forceinline__ stream_lane(u32 rank)
    {
        const u32 thread = opaque(threadIdx.x);
        warp = thread / 32;
        lane = thread % 32;
        part = lane % 4;
        odd = PAIR ? lane / 8 % 2 : 0;
        key = PAIR ? rank * 4 + lane / 16 * 2 + lane / 4 % 2 : lane / 4;
    }
    static __device__ __forceinline__ bool is_rope(int p)
    {
        typedef stream_pieces<PAIR> P;
        return p >= P::rope && p < P::rope + P::ropes;
    }
    static __device__ __forceinline__ int tile(int p)
    {
        typedef stream_pieces<PAIR> P;
        return (p < P::rope ? p : p - P::ropes) * tile_step;
    }
    /* Byte of piece p in a record. */
    __device__ __forceinline__ u32 piece(int p) const
    {
        typedef stream_pieces<PAIR> P;
        if (is_rope(p))
            return FP8_ROPE_AT + part * 32 + (PAIR ? odd : p - P::rope) * 16;
        return (tile(p) + odd) * 64 + part * 16;
    }
    /* Where a piece's first eight values go in a stage's first tile. */
    __device__ __forceinline__ u32 low() const
    {
        return (warp * N + key) * 128 + ((2 * part ^ key) << 4);
    }
    /* This lane's entry, of those of four blocks from step on. */
    __device__ __forceinline__ int entry(int step) const
    {
        return (step + (int)lane / N) * KEYS + (int)(warp * N + lane % N);
    }
    /* Calls a record to L2: each lane a line or two of one of eight. */
    __device__ __forceinline__ void call(u64 record) const
    {
        prefetch_global_l2((const char *)record + lane / N * 128);
        if (lane / N < 2)
            prefetch_global_l2((const char *)record + 512 + lane / N * 128);
    }
};

template <class T, class F, bool PAIR>
__device__ __forceinline__ void stream_blocks(const struct mla_decode90_args &g,
                                              const struct work &w, const struct span &s, u32 smem,
                                              u32 peer, u32 rank, ring<2> *k, u32 q_load)
{
    typedef stream_pieces<PAIR> P;
    typedef stream_lane<F, PAIR> L;
    const struct mla_mqa_args &a = g.a;
    /* Records of four blocks, eight a block; of the next four, first positions, then pages too. */
    u64 here, next = (u64)no_record;
    /* The first queries come at once; later ones, which wait for the work before to end, behind the
     * first keys. */
    const bool early = q_load == 0 && g.q_boxes;
    u32 seen;
    const char *data;
    uint4 raw[P::flight];
    u64 left, right; /* scales, two each */
    {
        const L me(rank);
        const u32 walk = smem + S::walks_at + me.warp * 32;
        write_walk(walk, w);
        int pos = -1;
        if (s.first + (int)me.lane / L::N < s.last)
            pos = walk_position(walk, me.entry(s.first));
        if (early)
            load_query_boxes<F>(g, w, smem);
        here = (u64)walk_record(a, walk, pos, walk_page(a, walk, pos));
        seen = __ballot_sync(~0u, here != (u64)no_record);
        data = (const char *)__shfl_sync(~0u, here, me.key);
        left = ld_global<u64>(data + FP8_SCALES_AT);
        right = ld_global<u64>(data + FP8_SCALES_AT + 8);
#pragma unroll
        for (int p = 0; p < P::flight; p++)
            raw[p] = ld_global<uint4>(data + me.piece(p));
        if (s.first + 1 < s.last)
            me.call(__shfl_sync(~0u, here, L::N + me.lane % L::N));
    }
    if (!early)
        load_queries<F>(g, w, smem, q_load & 1);
#pragma unroll 1
    for (int step = s.first; step < s.last; step++) {
        const L me(rank);
        const u32 low = me.low(), at = smem + S::k_at + k->stage * S::stage_bytes + low;
        const int sub = (step - s.first) % 4;
        if (step - sub + 4 < s.last) {
            const u32 walk = smem + S::walks_at + me.warp * 32;
            if (sub == 0) {
                const int from = step + 4, mine = from + (int)me.lane / L::N;
                next = (u32)(mine < s.last ? walk_position(walk, me.entry(from)) : -1);
            } else if (sub == 1) {
                next |= (u64)(u32)walk_page(a, walk, (int)(u32)next) << 32;
            } else if (sub == 2) {
                next = (u64)walk_record(a, walk, (int)(u32)next, (int)(next >> 32));
            }
        }
        if (step + 2 < s.last)
            me.call(__shfl_sync(~0u, sub < 2 ? here : next,
                                (sub + 2) % 4 * L::N + (int)me.lane % L::N));
#pragma unroll
        for (int p = 0; p < P::all; p++) {
            const uint4 x = raw[p % P::flight];
            const bool rope = L::is_rope(p);
            const int tile = L::tile(p);
            uint4 out[2];
            if (rope) {
                out[0] = from_bf16x8<T>(x);
            } else {
                const u64 two = p < P::left ? left : right;
                const float scale = __uint_as_float((u32)(tile % 4 < 2 ? two : two >> 32));
                out[0] = widen_eight<T>(x.x, x.y, scale);
                out[1] = widen_eight<T>(x.z, x.w, scale);
            }
            if (p == 0) {
                if (MLA_MUTANT != 7)
                    mbarrier_wait(smem + S::left_free + k->stage * 8, k->phase ^ 1);
                if (me.lane == 0)
                    st_shared(smem + S::valid_at + k->stage * 8 + me.warp,
                              (uint8_t)(seen >> sub * L::N));
            }
            /* Asked for before the halves change hands: what comes next waits for all loads. */
            if (!PAIR && p == P::left)
                raw[p % P::flight] = ld_global<uint4>(data + me.piece(p + P::flight));
            if (p == P::left)
                hand_on<F, PAIR>(smem, peer, rank, k->stage, S::k_full, 0, 4);
            if (p == P::left && MLA_MUTANT != 7)
                mbarrier_wait(smem + S::right_free + k->stage * 8, k->phase ^ 1);
            if (rope) {
                const u32 other = (PAIR ? me.odd : p - P::rope) * 16;
                st_shared((at ^ other) + 8 * TILE_BYTES, out[0]);
                if (PAIR) /* from where it goes to the other block */
                    st_shared(smem + S::rope_at + k->stage * S::rope_bytes + (low ^ other) -
                                  (me.warp * L::N / 2 + rank * 4) * 128,
                              out[0]);
            } else {
                const u32 to = at + me.odd * TILE_BYTES;
                st_shared(to + tile * TILE_BYTES, out[0]);
                st_shared((to ^ 16) + tile * TILE_BYTES, out[1]);
            }
            if (p == P::next) {
                if (sub == 3) {
                    here = next;
                    seen = __ballot_sync(~0u, here != (u64)no_record);
                }
                data = (const char *)__shfl_sync(~0u, here, (sub + 1) % 4 * L::N + (int)me.key);
            }
            if (PAIR || p != P::left)
                raw[p % P::flight] = ld_global<uint4>(data + me.piece((p + P::flight) % P::all));
            if (p == (PAIR ? P::left - 1 : P::next))
                left = ld_global<u64>(data + FP8_SCALES_AT);
        }
        right = ld_global<u64>(data + FP8_SCALES_AT + 8);
        hand_on<F, PAIR>(smem, peer, rank, k->stage, S::k_right, 4, F::TILES);
        k->next();
    }
}

#endif
