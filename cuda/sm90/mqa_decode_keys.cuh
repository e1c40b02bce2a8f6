/* SPDX-License-Identifier: Apache-2.0 */
/* mqa_decode of sm_90: the producer warpgroup. It finds works, leaves notes of them for the math
 * warpgroups, and brings queries and keys: by TMA where whole blocks of 64 keys of a plain cache
 * lie in boxes, up to the first page that does not exist, else row by row; packed records are
 * widened on the way.
 *
 * Row by row: warp w serves keys 16 w to 16 w + 15 of every block, in groups of four, eight lanes a
 * key, each with 16-byte pieces 128 bytes apart (fp8_ds_mla: of eight, four lanes, 64 bytes). Plain
 * rows go by cp.async to their place. Records pass through registers, eight keys in flight, also
 * while the stages in shared memory are in use. Positions run two blocks ahead, page ids one.
 *
 * Pair: warp w of block r widens keys 16 w + 8 r to 16 w + 8 r + 7: eight rows of a swizzled tile,
 * 1 KB in one piece, which a bulk copy takes to the same place of the other block (of fp8_ds_mla
 * eight warps with four keys each, 512 bytes). A stage is free
 * when both blocks have read theirs: then this block's copies have left it too, all but those of
 * rope, where P may come sooner; they start from a place of their own. */
#ifndef MLA_CUDA_SM90_MQA_DECODE_KEYS_CUH
#define MLA_CUDA_SM90_MQA_DECODE_KEYS_CUH

#include "mqa_decode_work.cuh"
#include "ptx/bulk.cuh"
#include "ptx/cluster.cuh"
#include "ptx/global.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/opaque.cuh"
#include "ptx/shared.cuh"
#include "ptx/tma.cuh"
#include "ptx/warp.cuh"
#include "ring.cuh"
#include "warpgroup.cuh"

static const int PRODUCERS = 4; /* warps, of all formats but fp8_ds_mla */

/* Shared memory, for every format. */
struct decode_shape {
    static const int STAGES = 2;
    static const u32 stage_bytes = 9 * TILE_BYTES; /* the ninth also without rope: P */
    static const u32 k_at = 9 * TILE_BYTES, p_in_stage = 8 * TILE_BYTES;
    static const u32 tops_at = k_at + STAGES * stage_bytes;    /* [stage][row], floats */
    static const u32 factors_at = tops_at + STAGES * ROWS * 4; /* [stage][row], floats */
    static const u32 sums_at = factors_at + STAGES * ROWS * 4; /* [slot][warpgroup][row] */
    static const u32 valid_at = sums_at + 4 * ROWS * 4;        /* [stage], 64 bits */
    static const u32 works_at = valid_at + STAGES * 8;         /* 64 bytes each */
    static const u32 work_full = works_at + 2 * 64, work_free = work_full + 16,
                     k_full = work_free + 16, left_free = k_full + 8 * STAGES,
                     right_free = left_free + 8 * STAGES, p_full = right_free + 8 * STAGES,
                     q_full = p_full + 8 * STAGES, q_free = q_full + 8, k_right = q_free + 8,
                     walks_at = (k_right + 8 * STAGES + 15) / 16 * 16, /* of warps, 32 bytes each */
        shared_bytes = walks_at + 8 * 32;
    /* Pairs: rope of a stage on its way to the other block, whose place here P may take first. */
    static const u32 rope_at = (shared_bytes + 127) / 128 * 128, rope_bytes = PRODUCERS * 1024,
                     pair_bytes = rope_at + STAGES * rope_bytes;
    static_assert(pair_bytes <= 232448, "227 KB of shared memory a block");
};
typedef decode_shape S;

/* ------------------------------------------------------------------ formats */

/* 16 bytes (eight columns from 64 · tile + 8 · piece on) of a key to its place. */
__device__ __forceinline__ void put(u32 at, int key, int tile, int piece, uint4 v)
{
    st_shared(at + tile * TILE_BYTES + key * 128 + ((u32)(piece ^ (key & 7)) << 4), v);
}

/* A format is: TILES of 64 columns; LANES that bring a key; SETS of 32 / LANES keys in flight; load
 * of this lane's pieces (part 0 to LANES - 1) of a record at data, its rope or footer at other; and
 * pass, which takes them to shared memory as T and loads those of another record in their place:
 * of columns 0 to 255 at least (HALF 0), then the others (1). */
template <int ROPE> struct plain_rows {
    static const int TILES = 8 + ROPE / 64, SETS = 0, LANES = 8;
    static const bool packed = false, masks = true;
    static const int WARPS = PRODUCERS;

    /* cp.async, straight to its place. */
    static __device__ __forceinline__ void copy(u32 at, int key, int part, const char *data,
                                                const char *other, bool see)
    {
        const u32 to = at + key * 128 + ((u32)(part ^ (key & 7)) << 4), bytes = see ? 16 : 0;
#pragma unroll
        for (int i = 0; i < 8; i++)
            cp_async_cg_16(to + i * TILE_BYTES, data + i * 128 + part * 16, bytes);
        if (ROPE)
            cp_async_cg_16(to + 8 * TILE_BYTES, other + part * 16, bytes);
    }
};

/* 16 e4m3 values of columns 128 · i + 16 · part. Lanes 4 to 7 store their halves the other way
 * round: eight lanes write all banks once. */
template <class T>
__device__ __forceinline__ void put_e4m3(u32 at, int key, int part, int i, uint4 v, float low,
                                         float high)
{
    const bool swap = part & 4;
    const int tile = 2 * i + (part >> 2), piece = 2 * (part & 3);
    const uint2 one = swap ? make_uint2(v.z, v.w) : make_uint2(v.x, v.y);
    const uint2 two = swap ? make_uint2(v.x, v.y) : make_uint2(v.z, v.w);
    put(at, key, tile, piece + swap, dequant_e4m3x8<T>(one, swap ? high : low));
    put(at, key, tile, piece + !swap, dequant_e4m3x8<T>(two, swap ? low : high));
}

/* Four lanes a key, each with 16 bytes of every tile of 64 columns: two keys' stores write all
 * banks once. */
struct fp8_rows {
    static const int TILES = 9, SETS = 1, LANES = 4;
    static const bool packed = true, masks = true;
    static const int WARPS = PRODUCERS;
    uint4 v[8], rope[2];
    float4 scales;

    __device__ __forceinline__ void load(const char *data, const char *, int part)
    {
        scales = ld_global<float4>(data + FP8_SCALES_AT);
#pragma unroll
        for (int i = 0; i < 8; i++)
            v[i] = ld_global<uint4>(data + i * 64 + part * 16);
#pragma unroll
        for (int i = 0; i < 2; i++)
            rope[i] = ld_global<uint4>(data + FP8_ROPE_AT + part * 32 + i * 16);
    }
    template <class T, int HALF>
    __device__ __forceinline__ void pass(u32 at, int key, int part, const char *data, const char *)
    {
        const float of[4] = {scales.x, scales.y, scales.z, scales.w};
#pragma unroll
        for (int i = HALF * 4; i < HALF * 4 + 4; i++) {
            put(at, key, i, 2 * part, dequant_e4m3x8<T>(make_uint2(v[i].x, v[i].y), of[i / 2]));
            put(at, key, i, 2 * part + 1, dequant_e4m3x8<T>(make_uint2(v[i].z, v[i].w), of[i / 2]));
            v[i] = ld_global<uint4>(data + i * 64 + part * 16);
        }
        if (HALF == 0)
            return;
        scales = ld_global<float4>(data + FP8_SCALES_AT);
#pragma unroll
        for (int i = 0; i < 2; i++) {
            put(at, key, 8, 2 * part + i, from_bf16x8<T>(rope[i]));
            rope[i] = ld_global<uint4>(data + FP8_ROPE_AT + part * 32 + i * 16);
        }
    }
};

/* The same by eight warps of 64 registers (mqa_decode_stream.cuh). */
struct fp8_stream {
    static const int TILES = 9, WARPS = 8;
    static const bool packed = true, masks = false;
};

struct model1_rows {
    static const int TILES = 8, SETS = 2, LANES = 8;
    static const bool packed = true, masks = true;
    static const int WARPS = PRODUCERS;
    uint4 v[4], rope;
    uint2 scales;

    __device__ __forceinline__ void load(const char *data, const char *other, int part)
    {
#pragma unroll
        for (int i = 0; i < 4; i++)
            v[i] = ld_global<uint4>(data + i * 128 + part * 16);
        rope = ld_global<uint4>(data + MODEL1_ROPE_AT + part * 16);
        scales = ld_global<uint2>(other);
    }
    template <class T> __device__ __forceinline__ void store(u32 at, int key, int part) const
    {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float x = ue8m0((i < 2 ? scales.x : scales.y) >> (16 * (i & 1) + 2 * (part & 4)) & 255);
            if (i < 3 || part < 4)
                put_e4m3<T>(at, key, part, i, v[i], x, x);
        }
        put(at, key, 7, part, from_bf16x8<T>(rope));
    }
    template <class T, int HALF>
    __device__ __forceinline__ void pass(u32 at, int key, int part, const char *data,
                                         const char *other)
    {
        if (HALF == 0)
            store<T>(at, key, part);
        else
            load(data, other, part);
    }
};

struct v41_rows {
    static const int TILES = 8, SETS = 2, LANES = 8;
    static const bool packed = true, masks = true;
    static const int WARPS = PRODUCERS;
    uint4 v[4], scales;

    __device__ __forceinline__ void load(const char *data, const char *other, int part)
    {
#pragma unroll
        for (int i = 0; i < 4; i++)
            v[i] = ld_global<uint4>(data + i * 128 + part * 16);
        scales = ld_global<uint4>(other);
    }
    template <class T> __device__ __forceinline__ void store(u32 at, int key, int part) const
    {
        const u32 words[4] = {scales.x, scales.y, scales.z, scales.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float x = ue8m0(words[i] >> 8 * (part >> 1) & 255);
            put_e4m3<T>(at, key, part, i, v[i], x, x);
        }
    }
    template <class T, int HALF>
    __device__ __forceinline__ void pass(u32 at, int key, int part, const char *data,
                                         const char *other)
    {
        if (HALF == 0)
            store<T>(at, key, part);
        else
            load(data, other, part);
    }
};

struct nvfp4_rows {
    static const int TILES = 9, SETS = 2, LANES = 8;
    static const bool packed = true, masks = true;
    static const int WARPS = PRODUCERS;
    uint4 v[2];   /* 32 columns from 256 · i + 32 · part on */
    uint2 rope;   /* eight columns */
    uint4 scales; /* of the columns with this parity of part */

    __device__ __forceinline__ void load(const char *data, const char *, int part)
    {
#pragma unroll
        for (int i = 0; i < 2; i++)
            v[i] = ld_global<uint4>(data + i * 128 + part * 16);
        rope = ld_global<uint2>(data + NVFP4_ROPE_AT + part * 8);
        scales = ld_global<uint4>(data + NVFP4_SCALES_AT + (part & 1) * 16);
    }
    /* Block s of 16 columns has byte 8 · (s % 4) + s / 4; here s = 16 i + 2 part + half. */
    template <class T> __device__ __forceinline__ void store(u32 at, int key, int part) const
    {
        const u32 words[4] = {scales.x, scales.y, scales.z, scales.w};
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const u32 raw[4] = {v[i].x, v[i].y, v[i].z, v[i].w};
#pragma unroll
            for (int q = 0; q < 4; q++) {
                u32 byte = words[(q >> 1) * 2 + i] >> 8 * (part >> 1) & 255;
                put(at, key, 4 * i + (part >> 1), 4 * (part & 1) + q,
                    dequant_e2m1x8<T>(raw[q], e4m3x2(byte).x));
            }
        }
        put(at, key, 8, part, dequant_e4m3x8<T>(rope, 1.0f));
    }
    template <class T, int HALF>
    __device__ __forceinline__ void pass(u32 at, int key, int part, const char *data,
                                         const char *other)
    {
        if (HALF == 0)
            store<T>(at, key, part);
        else
            load(data, other, part);
    }
};

/* -------------------------------------------------------------------- keys */

/* Position of key N · warp + lane % N of a block, N keys a warp, unchecked; -1 for none. Bitmask: a
 * key that no token of the rows sees is none. */
template <class F>
__device__ __forceinline__ int fetch_position(const struct mla_mqa_args &a, const struct work &w,
                                              u32 note, int step, int last)
{
    const int N = KEYS / F::WARPS;
    int j = step * KEYS + (int)(threadIdx.x / 32 * N + threadIdx.x % N);
    if (step >= last)
        return -1;
    if (w.list)
        return j < w.count ? w.list[j] : -1;
    if (!F::masks || !a.mask)
        return j;
    u32 word = 0;
    int first = j / 32 * 32; /* the same in all lanes */
    if (first < w.end) {
        const struct decode_note n = read_note(note);
        const int token0 = n.row0 / a.heads, token1 = (n.row0 + n.rows - 1) / a.heads;
        for (int t = token0 + (int)threadIdx.x % 32; t <= token1; t += 32)
            word |= a.mask[(int64_t)(n.q_start + t) * a.mask_stride + first / 32] &
                    bits_below(n.limit + (a.causal ? t : 0) - first);
    }
    word = __reduce_or_sync(~0u, word);
    return (word >> j % 32 & 1) || MLA_MUTANT == 20 ? j : -1;
}

/* Where this lane's key of a block begins, and bit i: key 16 · warp + i is seen. One that is not
 * has the address of the work's queries, which may be read (a.q itself may not: a latent problem's
 * queries begin with those of a pass): its bytes are dropped. */
struct places {
    const char *data, *other;
    u32 seen;
};

template <class F>
__device__ __forceinline__ struct places find_places(const struct mla_mqa_args &a,
                                                     const struct work &w, int pos, int page)
{
    const char *q = a.q + (int64_t)(w.r.q_start + w.token0) * a.q_stride[0];
    struct places p = {q, q, 0};
    bool see = page >= 0 && (!w.pages || page < a.cache.num_pages);
    if (see) {
        const struct row_place at = place_row(&a.cache, w.r.kv_start, pos, page);
        p.data = a.cache.data + at.data;
        p.other = (F::packed ? a.cache.data : a.cache.rope) + at.other;
    }
    p.seen = __ballot_sync(~0u, see) & ((1u << KEYS / F::WARPS) - 1);
    return p;
}

/* Those of one of the warp's 16 keys. */
__device__ __forceinline__ struct places share_places(const struct places &p, int key)
{
    return {(const char *)__shfl_sync(~0u, (u64)p.data, key),
            (const char *)__shfl_sync(~0u, (u64)p.other, key), p.seen >> key & 1};
}

/* The tile's queries, as nine (eight) tiles of 64 columns: by TMA. */
template <class F>
__device__ __forceinline__ void load_query_boxes(const struct mla_decode90_args &g,
                                                 const struct work &w, u32 smem)
{
    const int warp = (int)warp_index(), tiles = (F::TILES - warp + F::WARPS - 1) / F::WARPS;
    if (elect_one()) {
        const int row = w.r.q_start * g.a.heads + w.row0;
        mbarrier_arrive_expect_tx(smem + S::q_full, (u32)tiles * TILE_BYTES);
        for (int tile = warp; tile < F::TILES; tile += F::WARPS)
            tma_load_2d(smem + tile * TILE_BYTES, &g.q, smem + S::q_full, tile * 64, row);
    }
    others_arrive(smem + S::q_full);
    __syncwarp();
}

/* However they lie, once the work before has no more use for its own. */
template <class F>
__device__ __forceinline__ void load_queries(const struct mla_decode90_args &g,
                                             const struct work &w, u32 smem, u32 phase)
{
    mbarrier_wait(smem + S::q_free, phase ^ 1);
    if (g.q_boxes) {
        load_query_boxes<F>(g, w, smem);
        return;
    }
#pragma unroll 1
    for (int i = threadIdx.x; i < ROWS * F::TILES * 8; i += F::WARPS * 32) {
        const int row = i / (F::TILES * 8), piece = i % (F::TILES * 8);
        const int from = w.row0 + min(row, w.rows - 1);
        const char *q = g.a.q + (int64_t)(w.r.q_start + from / g.a.heads) * g.a.q_stride[0] +
                        from % g.a.heads * g.a.q_stride[1];
        put(smem, row, piece / 8, piece % 8, *(const uint4 *)(q + piece * 16));
    }
    fence_proxy_async();
    release(smem + S::q_full);
}

/* This warp's keys of a block are there, in the columns of tiles [first, last): for its own block
 * and, in a pair, for the other. Those the other block brings are waited for too. */
template <class F, bool PAIR>
__device__ __forceinline__ void hand_on(u32 smem, u32 peer, u32 rank, u32 stage, u32 full,
                                        int first, int last)
{
    const u32 share = KEYS / F::WARPS / 2, bytes = share * 128; /* of a pair: keys, of a tile */
    const u32 rope = smem + S::rope_at + stage * S::rope_bytes + threadIdx.x / 32 * bytes;
    const u32 at = S::k_at + stage * S::stage_bytes + (threadIdx.x / 32 * 2 + rank) * bytes;
    if (PAIR && last == 9 && F::WARPS == PRODUCERS) {
        __syncwarp();
#pragma unroll
        for (u32 i = threadIdx.x % 32 * 16; i < 1024; i += 512)
            st_shared(rope + i, ld_shared<uint4>(smem + at + 8 * TILE_BYTES + i));
    }
    if (MLA_MUTANT != 1)
        fence_proxy_async();
    __syncwarp();
    if (elect_one()) {
        if (PAIR) {
            mbarrier_arrive_expect_tx(smem + full + stage * 8,
                                      (u32)(last - first) * bytes - (MLA_MUTANT == 13 ? 128 : 0));
#pragma unroll
            for (int tile = first; tile < last; tile++)
                bulk_copy_cluster(peer + at + tile * TILE_BYTES,
                                  tile == 8 && MLA_MUTANT != 11 ? rope
                                                                : smem + at + tile * TILE_BYTES,
                                  bytes, peer + full + stage * 8);
        } else {
            mbarrier_arrive(smem + full + stage * 8);
        }
    }
    others_arrive(smem + full + stage * 8);
    __syncwarp();
}

/* Blocks from s.boxes on, through registers (records; in a pair, eight of a warp's sixteen keys) or
 * by cp.async; queries of load q_load too, where no block comes by TMA. */
template <class T, class F, bool PAIR>
__device__ __forceinline__ void gather_blocks(const struct mla_decode90_args &g,
                                              const struct work &w, const struct span &s, u32 smem,
                                              u32 peer, u32 rank, u32 note, ring<2> *k, u32 q_load)
{
    const struct mla_mqa_args &a = g.a;
    const int SETS = F::SETS, EACH = 32 / F::LANES, GROUPS = (PAIR ? 8 : 16) / EACH;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int mine = lane / F::LANES + (PAIR ? (int)rank * 8 : 0), part = lane % F::LANES;
    const bool queries = s.boxes == s.first; /* not loaded yet */
    F raw[SETS ? SETS : 1];
    int pos = fetch_position<F>(a, w, note, s.boxes, s.last), page = fetch_page(a, w, pos);
    int ahead = fetch_position<F>(a, w, note, s.boxes + 1, s.last);
    struct places now = find_places<F>(a, w, pos, page), next;
    if constexpr (SETS > 0) {
#pragma unroll
        for (int i = 0; i < SETS; i++) {
            const struct places from = share_places(now, mine + i * EACH);
            raw[i].load(from.data, from.other, part);
        }
    }
    pos = ahead;
    page = fetch_page(a, w, pos);
    ahead = fetch_position<F>(a, w, note, s.boxes + 2, s.last);
    if (queries) /* behind the first keys: they wait for the work before to end */
        load_queries<F>(g, w, smem, q_load & 1);
#pragma unroll 1
    for (int step = s.boxes; step < s.last; step++) {
        next = find_places<F>(a, w, pos, page); /* asked for a block ago */
        pos = ahead;
        page = fetch_page(a, w, pos);
        ahead = fetch_position<F>(a, w, note, step + 3, s.last);
        if (MLA_MUTANT != 7) {
            mbarrier_wait(smem + S::left_free + k->stage * 8, k->phase ^ 1);
            mbarrier_wait(smem + S::right_free + k->stage * 8, k->phase ^ 1);
        }
        const u32 at = smem + S::k_at + k->stage * S::stage_bytes;
        if (lane == 0)
            st_shared(smem + S::valid_at + k->stage * 8 + warp * 2, (u16)now.seen);
#pragma unroll(SETS == 1 ? 1 : GROUPS)
        for (int group = 0; group < GROUPS; group++) {
            const int key = mine + group * EACH;
            if constexpr (SETS > 0) {
                F *set = &raw[SETS == 1 ? 0 : group % SETS];
                if (now.seen != 0xFFFF && !(now.seen >> key & 1))
                    *set = F();
                const int later = mine + (group + SETS) % GROUPS * EACH;
                const struct places of_now = share_places(now, later),
                                    of_next = share_places(next, later);
                const bool after = group + SETS >= GROUPS;
                const struct places from = {after ? of_next.data : of_now.data,
                                            after ? of_next.other : of_now.other, 0};
                set->template pass<T, 0>(at, warp * 16 + key, part, from.data, from.other);
                if (group == GROUPS - 1)
                    hand_on<F, PAIR>(smem, peer, rank, k->stage, S::k_full, 0, 4);
                set->template pass<T, 1>(at, warp * 16 + key, part, from.data, from.other);
            } else {
                const struct places from = share_places(now, key);
                F::copy(at, warp * 16 + key, part, from.data, from.other, from.seen);
            }
        }
        now = next;
        if (SETS == 0) {
            cp_async_wait_all();
            hand_on<F, PAIR>(smem, peer, rank, k->stage, S::k_full, 0, 4);
        }
        hand_on<F, PAIR>(smem, peer, rank, k->stage, S::k_right, 4, F::TILES);
        k->next();
    }
}

#include "mqa_decode_stream.cuh"

/* Block `step` by TMA, first lies its first box; each warp brings a quarter of the columns.
 * later: the first box of a block to call to L2, if it is one. */
template <class F>
__device__ __forceinline__ void load_boxes(const struct mla_decode90_args &g, const struct work &w,
                                           int step, struct box first, bool calls, struct box later,
                                           u32 smem, const ring<2> &k)
{
    const int warp = (int)warp_index();
    const u32 full = smem + S::k_full + k.stage * 8;
    const u32 at = smem + S::k_at + k.stage * S::stage_bytes;
    const bool rope = F::TILES == 9 && warp == 0;
    if (MLA_MUTANT != 10)
        mbarrier_wait(smem + S::left_free + k.stage * 8, k.phase ^ 1);
    if (elect_one()) {
        const u32 right = smem + S::k_right + k.stage * 8;
        mbarrier_arrive_expect_tx(full, TILE_BYTES - (MLA_MUTANT == 8 ? 128 : 0));
        mbarrier_arrive_expect_tx(right, (rope ? 2 : 1) * TILE_BYTES);
        for (int part = 0; part < 2; part++) {
            if (part == 1)
                mbarrier_wait(smem + S::right_free + k.stage * 8, k.phase ^ 1);
            struct box b = first;
            const int tile = part * 4 + warp;
            for (int row = 0; row < KEYS; row += g.box_rows) {
                if (row)
                    b = find_box(g.a, w, step * KEYS + row);
                const u32 to = at + row * 128, bar = part ? right : full;
                tma_load_3d(to + tile * TILE_BYTES, &g.latent, bar, tile * 64, b.slot, b.page);
                if (part == 1 && rope)
                    tma_load_3d(to + 8 * TILE_BYTES, &g.rope, bar, 0, b.slot, b.page);
            }
        }
        if (calls) {
            tma_prefetch_3d(&g.latent, warp * 64, later.slot, later.page);
            tma_prefetch_3d(&g.latent, (warp + 4) * 64, later.slot, later.page);
            if (rope)
                tma_prefetch_3d(&g.rope, 0, later.slot, later.page);
        }
    }
    others_arrive(full);
    others_arrive(smem + S::k_right + k.stage * 8);
    __syncwarp();
}

template <class T, class F, bool PAIR>
__device__ __forceinline__ void produce(const struct mla_decode90_args &g, u32 smem, u32 peer,
                                        u32 rank)
{
    const int blocks = PAIR ? 2 : 1;
    u32 works = 0, loads = 0;
    ring<2> k;
    for (int index = (int)blockIdx.x / blocks;; index += (int)gridDim.x / blocks) {
        const bool stop = index >= g.works;
        const u32 slot = works & 1, note = smem + S::works_at + slot * 64;
        struct work w;
        struct span s;
        bool writes = false;
        if (threadIdx.x / 32 == 0) {
            mbarrier_wait(smem + S::work_free + slot * 8, (works >> 1 & 1) ^ 1);
            writes = elect_one();
        }
        if (!stop) {
            s = find_decode_work<PAIR>(g, index, rank, &w);
            if (writes)
                write_note(note, note_of(g.a, w, s));
        } else if (writes) {
            st_shared(note, -1);
        }
        __syncwarp();
        if (writes)
            mbarrier_arrive(smem + S::work_full + slot * 8);
        if (threadIdx.x / 32 == 0)
            others_arrive(smem + S::work_full + slot * 8);
        works++;
        if (stop)
            break;
        if (s.last == s.first)
            continue;
        if constexpr (!F::packed) {
            /* Tiles that share keys wait for memory alike: one asks early for the others. Where
             * each key is read once, asking twice costs more than it gains. */
            const bool calls = w.r.query_len * g.a.heads > ROWS;
            struct box now = find_box(g.a, w, s.first * KEYS);
            struct box next = find_box(g.a, w, (s.first + 1) * KEYS);
            for (int step = s.first; step < s.boxes; step++) {
                const struct box later = find_box(g.a, w, (step + 2) * KEYS);
                load_boxes<F>(g, w, step, now, calls && step + 2 < s.boxes, later, smem, k);
                now = next;
                next = later;
                k.next();
                if (step == s.first)
                    load_queries<F>(g, w, smem, loads & 1);
            }
        }
        if (F::masks && g.a.mask) /* the note is read here too */
            mbarrier_wait(smem + S::work_full + slot * 8, (works - 1) >> 1 & 1);
        if constexpr (F::WARPS > PRODUCERS)
            stream_blocks<T, F, PAIR>(g, w, s, smem, peer, rank, &k, loads);
        else if (s.boxes < s.last)
            gather_blocks<T, F, PAIR>(g, w, s, smem, peer, rank, note, &k, loads);
        loads++;
    }
    for (int i = 0; PAIR && MLA_MUTANT != 12 && i < S::STAGES;
         i++) { /* the other block has nothing more to say here */
        mbarrier_wait(smem + S::left_free + k.stage * 8, k.phase ^ 1);
        mbarrier_wait(smem + S::right_free + k.stage * 8, k.phase ^ 1);
        k.next();
    }
}

#endif
