/* SPDX-License-Identifier: Apache-2.0 */
/* Expanded attention on sm_90: shared memory, and the warps that fill it (mha_prefill.cuh has the
 * whole picture). Both load warps walk the key tiles of a work in the same way, so that neither
 * waits for the other.
 *
 * A tile is KEYS keys. Without bits they follow each other. Under bits it is made of chunks of 16
 * keys, those that hold a key some row of the work sees, wherever they lie: chunks that follow each
 * other come as one box, others as a box each. A tile that has fewer repeats its last chunk, hidden
 * by `seen`. */
#ifndef MLA_CUDA_SM90_MHA_PREFILL_LOAD_CUH
#define MLA_CUDA_SM90_MHA_PREFILL_LOAD_CUH

#include "mha_prefill.h"
#include "ptx/mbarrier.cuh"
#include "ptx/shared.cuh"
#include "ptx/tma.cuh"
#include "ptx/warp.cuh"
#include "ring.cuh"
#include "warpgroup.cuh"

static const int MHA_THREADS = 384, MHA_ROWS = MLA_MHA_SM90_ROWS;
static const int MHA_WG_ROWS = MLA_MHA_SM90_WG_ROWS, MHA_CHUNK = MLA_MHA_SM90_CHUNK;
static const int MHA_WORKS = 4; /* notes of works on their way */
static const int PRODUCER_REGISTERS = 40, CONSUMER_REGISTERS = 232;

template <int D_QK_, int D_V_, int KEYS_, int STAGES_> struct mha_shape {
    static const int D_QK = D_QK_, D_V = D_V_, KEYS = KEYS_, STAGES = STAGES_;
    static const int WORDS = (KEYS + 31) / 32, CHUNKS = KEYS / MHA_CHUNK;
    static const u32 q_wg_bytes = MHA_WG_ROWS * D_QK * 2;
    static const u32 k_bytes = KEYS * D_QK * 2, v_bytes = KEYS * D_V * 2;
    static const u32 bits_wg_bytes = CHUNKS * MLA_MHA_SM90_CHUNK_BYTES;
    static const u32 k_at = 2 * q_wg_bytes, v_at = k_at + STAGES * k_bytes;
    static const u32 bits_at = v_at + STAGES * v_bytes;               /* two warpgroups a stage */
    static const u32 tiles_at = bits_at + STAGES * 2 * bits_wg_bytes; /* 32 bytes: see tile_note */
    static const u32 works_at = tiles_at + STAGES * 32;               /* 32 bytes: see work_note */
    static const u32 barriers_at = works_at + MHA_WORKS * 32;
    static const u32 q_full = barriers_at, q_free = q_full + 16, k_full = q_free + 16,
                     k_free = k_full + 8 * STAGES, v_full = k_free + 8 * STAGES,
                     v_raw = v_full + 8 * STAGES, v_free = v_raw + 8 * STAGES,
                     work_full = v_free + 8 * STAGES, work_free = work_full + 8 * MHA_WORKS,
                     shared_bytes = work_free + 8 * MHA_WORKS;
    static_assert(D_QK % 64 == 0 && D_V % 64 == 0, "boxes of 64 columns");
    static_assert(KEYS % MHA_CHUNK == 0 && WORDS <= 4, "a note has four words of bits");
    static_assert(shared_bytes <= 232448, "227 KB of shared memory a block");
    static_assert(CONSUMER_REGISTERS >= D_V / 2 + KEYS / 2 + KEYS / 4 + 40, "O, S, P and the rest");
    static_assert((PRODUCER_REGISTERS + 2 * CONSUMER_REGISTERS) * 128 <= 65536, "register file");
};

/* What consumers learn of a key tile. */
struct tile_note {
    uint4 seen;  /* bits of its keys that exist and, under a mask, that some row sees */
    int key0;    /* the first, without a mask */
    int partial; /* is a key hidden from all rows, whatever causality and mask say? */
    int last;    /* of the work */
};

/* What consumers, and the load warp of values, learn of a work: words of its note. */
enum {
    WORK_HEAD,  /* -1: no more works */
    WORK_COUNT, /* rows */
    WORK_LIMIT, /* row i sees keys below limit + i (causal) */
    WORK_ANY,   /* is there a visible key? */
    WORK_BATCH, /* its first row in the batch, two words */
    WORK_INDEX = WORK_BATCH + 2,
};

/* Everything a load warp knows about a work. */
struct work_rows {
    int first, count, keys, shift, end, tile, head;
    int64_t batch;
    const struct mla_mha_segment *segment;
};

__device__ __forceinline__ struct work_rows find_rows(const struct mla_mha_sm90_args &args,
                                                      int index)
{
    const struct mla_mha_args &a = args.a;
    int head = min(index / (a.tiles * args.group) * args.group, args.last_group);
    int heads = head < args.last_group ? args.group : a.heads - head;
    index -= head * a.tiles;
    struct mla_mha_place place = a.order[index / heads];
    const struct mla_mha_segment *s = &a.segments[place.segment];
    struct work_rows r;
    r.head = head + index % heads;
    r.segment = s;
    r.tile = s->first_tile + place.tile;
    r.first = s->row0 + place.tile * MHA_ROWS;
    r.count = min(MHA_ROWS, s->row0 + s->rows - r.first);
    r.batch = (int64_t)s->q_start + r.first;
    r.keys = a.seq_lens_kv ? min(max(a.seq_lens_kv[s->index], 0), s->seq_len_kv) : s->seq_len_kv;
    r.shift = r.keys - s->query_len + 1;
    r.end = a.causal ? max(0, min(r.keys, r.shift + r.first + r.count - 1)) : r.keys;
    return r;
}

/* The work that comes after `round` others; past the last one where there is none. The first is the
 * block's own. Then whoever is free takes the next, or, without a counter, works go to and fro. */
__device__ __forceinline__ int64_t deal(const struct mla_mha_sm90_args &args, int round)
{
    if (round == 0)
        return blockIdx.x;
    if (!args.counter) {
        u32 place = round & 1 ? gridDim.x - 1 - blockIdx.x : blockIdx.x;
        return (int64_t)round * gridDim.x + place;
    }
    u32 taken = 0;
    if (threadIdx.x % 32 == 0)
        taken = atomicAdd(args.counter, 1u);
    return (int64_t)gridDim.x + __shfl_sync(~0u, taken, 0);
}

/* Bits of word i that are of no key of the tile. */
template <class S> __device__ __forceinline__ u32 pad_bits(int i)
{
    return S::KEYS - 32 * i >= 32 ? 0 : ~0u << (S::KEYS - 32 * i) % 32;
}

/* A tile of keys, the same in all lanes but for `place`. */
template <class S> struct key_tile {
    u32 seen[S::WORDS]; /* padding is 1 */
    int key0;           /* of the first chunk */
    int place;          /* lane i: first key of chunk i */
    bool whole, partial;
};

/* Walks the key tiles of a work. Each lane keeps the bits of one of 32 tiles (or chunks). */
template <class S> struct key_walk {
    int next; /* first key behind these 32 */
    u32 live; /* of these, still to come and not empty */
    u32 mine[S::WORDS];
};

template <int WORDS> __device__ __forceinline__ bool all_seen(const u32 (&seen)[WORDS])
{
    u32 all = ~0u;
#pragma unroll
    for (int i = 0; i < WORDS; i++)
        all &= seen[i];
    return all == ~0u;
}

/* 32 bits from bit `at` on, of which there are `end`; `at` is a multiple of 16. */
__device__ __forceinline__ u32 word_at(const u32 *bits, int at, int end)
{
    u32 low = bits[at / 32], high = at % 32 && at / 32 * 32 + 32 < end ? bits[at / 32 + 1] : 0;
    return at % 32 ? low >> 16 | high << 16 : low;
}

/* Without bits: the next KEYS keys that are not all absent. False at the end. */
template <class S>
__device__ __forceinline__ bool next_run(const struct work_rows &r, const u32 *alive,
                                         struct key_walk<S> *w, struct key_tile<S> *t)
{
    while (w->live == 0) {
        if (w->next >= r.end)
            return false;
        int key = w->next + (int)(threadIdx.x % 32) * S::KEYS;
        u32 some = 0;
#pragma unroll
        for (int i = 0; i < S::WORDS; i++) {
            int left = r.keys - key - 32 * i;
            u32 bits = 0;
            if (key < r.end && left > 0) {
                bits = (left >= 32 ? ~0u : (1u << left) - 1) & ~pad_bits<S>(i);
                if (alive)
                    bits &= word_at(alive, key + 32 * i, r.keys);
            }
            w->mine[i] = bits | pad_bits<S>(i);
            some |= bits;
        }
        w->live = __ballot_sync(~0u, some != 0);
        w->next += 32 * S::KEYS;
    }
    int i = __ffs((int)w->live) - 1;
    w->live &= w->live - 1;
#pragma unroll
    for (int j = 0; j < S::WORDS; j++)
        t->seen[j] = __shfl_sync(~0u, w->mine[j], i);
    t->key0 = w->next - (32 - i) * S::KEYS;
    t->whole = true;
    t->partial = !all_seen(t->seen);
    return true;
}

/* Under bits: the next CHUNKS chunks that hold a visible key. False at the end. */
template <class S>
__device__ __forceinline__ bool next_chunks(const struct mla_mha_args &a, const struct work_rows &r,
                                            const u32 *alive, struct key_walk<S> *w,
                                            struct key_tile<S> *t)
{
    const int lane = threadIdx.x % 32;
    u32 mine = 0; /* of lane i: bits of chunk i; bit 16: one of them is of a key that is absent */
    int count = 0;
    t->place = 0;
    for (;;) {
        while (w->live && count < S::CHUNKS) {
            int i = __ffs((int)w->live) - 1;
            w->live &= w->live - 1;
            u32 bits = __shfl_sync(~0u, w->mine[0], i);
            if (lane == count) {
                t->place = w->next - (32 - i) * MHA_CHUNK;
                mine = bits;
            }
            count++;
        }
        if (count == S::CHUNKS || w->next >= r.end)
            break;
        int key = w->next + lane * MHA_CHUNK;
        u32 bits = 0;
        if (key < r.end) {
            bits = ((const u16 *)(a.columns + (int64_t)r.tile * a.words))[key / MHA_CHUNK];
            if (alive) {
                u32 there = ((const u16 *)alive)[key / MHA_CHUNK];
                bits = (bits & there) | (bits & ~there ? 0x10000u : 0);
            }
        }
        w->mine[0] = bits;
        w->live = __ballot_sync(~0u, (bits & 0xffff) != 0);
        w->next += 32 * MHA_CHUNK;
    }
    if (count == 0)
        return false;
    t->key0 = __shfl_sync(~0u, t->place, 0);
    int last = __shfl_sync(~0u, t->place, count - 1);
    /* Fewer chunks with gaps between them may reach as far. */
    t->whole =
        (count == S::CHUNKS || MLA_MUTANT == 8) && last - t->key0 == (S::CHUNKS - 1) * MHA_CHUNK;
    t->partial = (count < S::CHUNKS && MLA_MUTANT != 5) || __any_sync(~0u, mine >> 16);
    if (lane >= count)
        t->place = last;
#pragma unroll
    for (int j = 0; j < S::WORDS; j++)
        t->seen[j] = (__shfl_sync(~0u, mine, 2 * j) & 0xffff) |
                     __shfl_sync(~0u, mine, 2 * j + 1) << 16 | pad_bits<S>(j);
    return true;
}

template <class S>
__device__ __forceinline__ bool next_tile(const struct mla_mha_args &a, const struct work_rows &r,
                                          struct key_walk<S> *w, struct key_tile<S> *t)
{
    const u32 *alive = a.alive ? a.alive + r.segment->first_word : NULL;
    return a.columns ? next_chunks<S>(a, r, alive, w, t) : next_run<S>(r, alive, w, t);
}

/* Starts the copies of D columns of the keys or values of a tile; those from `split` on are of
 * another tensor, the same for all heads. All lanes. */
template <class S, int D>
__device__ __forceinline__ void copy_rows(const struct mla_tensor_map *map,
                                          const struct mla_tensor_map *rest, int split, u32 to,
                                          u32 full, int head, int row)
{
#pragma unroll
    for (int c = 0; c < D / 64; c++) {
        if (c * 64 < split)
            tma_load_3d(to + c * S::KEYS * 128, map, full, c * 64, head, row);
        else
            tma_load_3d(to + c * S::KEYS * 128, rest, full, c * 64 - split, 0, row);
    }
}

template <class S, int D>
__device__ __forceinline__ void
copy_tile(const struct mla_tensor_map *boxes, const struct mla_tensor_map *boxes_rest,
          const struct mla_tensor_map *chunks, const struct mla_tensor_map *chunks_rest, int split,
          u32 to, u32 full, const struct key_tile<S> &t, int head, int64_t kv_start)
{
    if (t.whole) {
        if (elect_one())
            copy_rows<S, D>(boxes, boxes_rest, split, to, full, head, (int)(kv_start + t.key0));
    } else {
#pragma unroll 1
        for (int i = 0; i < S::CHUNKS; i++) {
            int key = __shfl_sync(~0u, t.place, i);
            if (elect_one())
                copy_rows<S, D>(chunks, chunks_rest, split, to + i * MHA_CHUNK * 128, full, head,
                                (int)(kv_start + key));
        }
    }
    __syncwarp();
}

/* ------------------------------------------------------- works, queries, keys */

template <class S>
__device__ __forceinline__ void load_q(const struct mla_mha_sm90_args &args, u32 smem,
                                       const struct work_rows &r, u32 phase)
{
#pragma unroll 1
    for (int wg = 0; wg < 2; wg++) {
        u32 full = smem + S::q_full + wg * 8;
        mbarrier_wait(smem + S::q_free + wg * 8, phase ^ 1);
        __syncwarp();
        if (elect_one()) {
            mbarrier_arrive_expect_tx(full, S::q_wg_bytes);
#pragma unroll
            for (int c = 0; c < S::D_QK / 64; c++) {
                u32 to = smem + wg * S::q_wg_bytes + c * MHA_WG_ROWS * 128;
                int row = (int)r.batch + wg * MHA_WG_ROWS;
                /* Columns past the last are zeros of whichever map. */
                if (c * 64 < args.a.q_split || args.a.q_split == args.a.d_qk)
                    tma_load_3d(to, &args.maps.q, full, c * 64, r.head, row);
                else
                    tma_load_3d(to, &args.maps.q_rope, full, c * 64 - args.a.q_split, r.head, row);
            }
        }
        others_arrive(full);
        __syncwarp();
    }
}

/* The queries of a later work, into L2. */
template <class S>
__device__ __forceinline__ void prefetch_q(const struct mla_mha_sm90_args &args,
                                           const struct work_rows &r)
{
    const int lane = threadIdx.x % 32, c = lane / 2;
    int row = (int)r.batch + lane % 2 * MHA_WG_ROWS;
    if (c < S::D_QK / 64) {
        if (c * 64 < args.a.q_split || args.a.q_split == args.a.d_qk)
            tma_prefetch_3d(&args.maps.q, c * 64, r.head, row);
        else
            tma_prefetch_3d(&args.maps.q_rope, c * 64 - args.a.q_split, r.head, row);
    }
    __syncwarp();
}

template <class S>
__device__ __forceinline__ void load_k(const struct mla_mha_sm90_args &args, u32 smem, u32 stage,
                                       u32 phase, const struct work_rows &r, int head_kv,
                                       const struct key_tile<S> &t, bool last)
{
    const u32 full = smem + S::k_full + stage * 8;
    mbarrier_wait(smem + S::k_free + stage * 8, phase ^ 1);
    __syncwarp();
    if (elect_one()) {
        u32 note = smem + S::tiles_at + stage * 32;
        st_shared(note,
                  make_uint4(t.seen[0], t.seen[1], S::WORDS > 2 ? t.seen[S::WORDS > 2 ? 2 : 0] : 0,
                             S::WORDS > 3 ? t.seen[S::WORDS > 3 ? 3 : 0] : 0));
        st_shared(note + 16, make_uint4((u32)t.key0, t.partial, last, 0));
        mbarrier_arrive_expect_tx(full, S::k_bytes + (args.a.mask ? 2 * S::bits_wg_bytes : 0));
    }
    others_arrive(full);
    __syncwarp();
    copy_tile<S, S::D_QK>(&args.maps.k, &args.maps.k_rope, &args.chunks.k, &args.chunks.k_rope,
                          args.k_split, smem + S::k_at + stage * S::k_bytes, full, t, head_kv,
                          r.segment->kv_start);
    if (!args.a.mask)
        return;
    const int lane = threadIdx.x % 32, chunk = t.whole ? 0 : lane / 2;
    const int place = __shfl_sync(~0u, t.place, chunk);
    if (lane < (t.whole ? 2 : 2 * S::CHUNKS)) {
        int64_t block = (int64_t)r.tile * 2 + (MLA_MUTANT == 6 ? 0 : lane % 2);
        int64_t at = block * args.a.words * 2 + place / MHA_CHUNK;
        bulk_load(smem + S::bits_at + (stage * 2 + lane % 2) * S::bits_wg_bytes +
                      chunk * MLA_MHA_SM90_CHUNK_BYTES,
                  (const char *)args.a.mask + at * MLA_MHA_SM90_CHUNK_BYTES,
                  t.whole ? S::bits_wg_bytes : (u32)MLA_MHA_SM90_CHUNK_BYTES, full);
    }
    __syncwarp();
}

/* Warp 0: deals works, loads queries, keys and bits. */
template <class S>
__device__ __forceinline__ void load_keys(const struct mla_mha_sm90_args &args, u32 smem)
{
    const struct mla_mha_args &a = args.a;
    struct ring<S::STAGES> k;
    struct ring<MHA_WORKS> slot;
    u32 q_phase = 0;
    int64_t index = deal(args, 0);
    for (int round = 1;; round++) {
        const bool stop = index >= args.works;
        struct work_rows r;
        struct key_walk<S> walk = {
        };
        struct key_tile<S> t;
        bool more = false;
        if (!stop) {
            r = find_rows(args, (int)index);
            more = next_tile<S>(a, r, &walk, &t);
        }
        mbarrier_wait(smem + S::work_free + slot.stage * 8, slot.phase ^ 1);
        __syncwarp();
        if (elect_one()) {
            u32 note = smem + S::works_at + slot.stage * 32;
            if (stop) {
                st_shared(note, -1);
            } else {
                st_shared(note,
                          make_uint4((u32)r.head, (u32)r.count, (u32)(r.shift + r.first), more));
                st_shared(note + 16, make_uint4((u32)r.batch, (u32)(r.batch >> 32), (u32)index, 0));
            }
            mbarrier_arrive(smem + S::work_full + slot.stage * 8);
        }
        others_arrive(smem + S::work_full + slot.stage * 8);
        __syncwarp();
        slot.next();
        if (stop)
            return;
        const int head_kv = r.head / (a.heads / a.heads_kv);
        bool first = true;
        if (!more)
            index = deal(args, round);
        while (more) {
            struct key_tile<S> now = t;
            more = next_tile<S>(a, r, &walk, &t);
            if (!more) {
                index = deal(args, round);
                if (index < args.works)
                    prefetch_q<S>(args, find_rows(args, (int)index));
            }
            load_k<S>(args, smem, k.stage, k.phase, r, head_kv, now, !more);
            k.next();
            if (first) {
                load_q<S>(args, smem, r, q_phase);
                q_phase ^= 1;
                first = false;
            }
        }
    }
}

/* ------------------------------------------------------------------- values */

/* Zeroes the values of keys that nobody in the work sees; all lanes, each 16 bytes of every key or
 * of every second one. Stores without a branch: of sparse lists most keys are zeroed. */
template <class S> __device__ __forceinline__ void scrub(u32 values, const u32 (&seen)[S::WORDS])
{
    const int LANES = S::D_V / 8; /* 16-byte pieces of a row */
    const int AT_ONCE = LANES <= 16 ? 2 : 1;
    const int lane = threadIdx.x % 32, piece = lane % (32 / AT_ONCE), first = lane / (32 / AT_ONCE);
    const u32 to = values + piece / 8 * S::KEYS * 128 + piece % 8 * 16 + first * 128;
#pragma unroll
    for (int w = 0; w < S::WORDS; w++) {
        if (seen[w] == ~0u)
            continue;
        const u32 gone = piece < LANES ? ~seen[w] >> first : 0;
#pragma unroll
        for (int i = 0; i < 32 && w * 32 + i < S::KEYS; i += AT_ONCE)
            if (gone & 1u << i)
                st_shared(to + (w * 32 + i) * 128, make_uint4(0, 0, 0, 0));
    }
}

/* Warp 1: loads values, zeroes those of keys that nobody in the work sees. */
template <class S>
__device__ __forceinline__ void load_values(const struct mla_mha_sm90_args &args, u32 smem)
{
    const struct mla_mha_args &a = args.a;
    struct ring<S::STAGES> v;
    struct ring<MHA_WORKS> slot;
    u32 raw_phases = 0;
    for (;;) {
        const u32 note = smem + S::works_at + slot.stage * 32;
        mbarrier_wait(smem + S::work_full + slot.stage * 8, slot.phase);
        __syncwarp();
        const int head = ld_shared<int>(note);
        const int index = ld_shared<int>(note + (head < 0 ? 0u : 4u * (u32)WORK_INDEX));
        release(smem + S::work_free + slot.stage * 8);
        slot.next();
        if (head < 0)
            return;
        const struct work_rows r = find_rows(args, index);
        const int head_kv = r.head / (a.heads / a.heads_kv);
        struct key_walk<S> walk = {
        };
        struct key_tile<S> t;
        while (next_tile<S>(a, r, &walk, &t)) {
            const bool clean = all_seen(t.seen);
            const u32 full = smem + S::v_full + v.stage * 8, raw = smem + S::v_raw + v.stage * 8;
            const u32 to = smem + S::v_at + v.stage * S::v_bytes, bar = clean ? full : raw;
            mbarrier_wait(smem + S::v_free + v.stage * 8, v.phase ^ 1);
            __syncwarp();
            if (elect_one())
                mbarrier_arrive_expect_tx(bar, S::v_bytes);
            others_arrive(bar);
            __syncwarp();
            copy_tile<S, S::D_V>(&args.maps.v, &args.maps.v, &args.chunks.v, &args.chunks.v, S::D_V,
                                 to, bar, t, head_kv, r.segment->kv_start);
            if (!clean) {
                mbarrier_wait(raw, raw_phases >> v.stage & 1);
                __syncwarp();
                raw_phases ^= 1u << v.stage;
                scrub<S>(to, t.seen);
                if (MLA_MUTANT != 1)
                    fence_proxy_async();
                __syncwarp();
                if (arrives())
                    mbarrier_arrive(full);
                __syncwarp();
            }
            v.next();
        }
    }
}

#endif
