/* SPDX-License-Identifier: Apache-2.0 */
/* What the indexer's kernels of sm_90 and sm_100 share: keys on their way into shared memory, and
 * everything that becomes of sums of products. The engines do the products (wgmma, tcgen05).
 *
 * Tile. 128 keys are M. N has up to 256 columns: the index heads (padded to HP = 16, 32, 64, 128 or
 * 256) of up to 8 query rows, a group. fp8 has two groups a tile, so that a key that has come from
 * L2 serves twice; bf16 has one. A unit is 128 keys x one group, the work of a math warpgroup. With
 * one group the two math warpgroups take the 128-key steps in turn, each with candidates of its own
 * for every row, joined in the end; with two groups each has rows of its own.
 *
 * Reduction. Both engines give a thread 4 keys x 16 of 64 columns, so that all weights of a unit
 * are 64 registers of a thread; if a lane had a key and all its columns, they would be 256
 * registers, or 256 reads of shared memory a unit beside the products' own. Three shuffles a row
 * then leave every lane with one key's sum: from there on a lane owns a key.
 *
 * Top-k in the same pass. A row's state (select.cuh) is a buffer of candidates and a floor. When
 * the buffer is full for the first time, the K largest stay, and 256 buckets between their smallest
 * and their largest score count what comes in afterwards. As soon as the buckets from some edge up
 * hold K candidates, the floor rises to that edge: it only ever tightens, and what it turns away
 * has K better ones. So the buffer fills again only after some K more; then the K largest stay, and
 * the buckets are cut anew. The last select takes the K largest of what is left, in the total order
 * of docs/index.md: the list is exact whatever the floor did in between.
 *
 * Shared memory, bytes          fp8                  bf16
 *   queries                     2 x 32768            65536
 *   keys                        6 x 16384            3 x 32768
 *   scale and seen of keys      6 x 1024             3 x 1024
 *   select, sort (2 teams)      2 x 16640            2 x 16640
 *   buckets                     16 x 1024            16 x 1024
 *   row states                  16 x 32              16 x 32
 *   barriers and small things   256                  256
 *   total                       220416               217344     of 232448
 *
 * Barriers (count)              arrives                        waits
 *   key full, per stage (4)     load warps, after their fence  who multiplies; math (scales);
 *                                                              a tile's first: queries too
 *   key empty (4 x groups)      math warps, with the unit      load
 *                               of the keys complete
 *
 * Bits. A score is computed by the same instructions whatever its place, so scores and lists depend
 * neither on tiles, parts or limits nor on when floors rise. */
#ifndef MLA_CUDA_INDEX_STREAM_CUH
#define MLA_CUDA_INDEX_STREAM_CUH

#include "any/index_rows.cuh"
#include "arrive.cuh"
#include "ptx/barrier.cuh"
#include "ptx/convert.cuh"
#include "ptx/cp_async.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/shared.cuh"
#include "ptx/warp.cuh"
#include "ring.cuh"

#include <stdio.h>

static const int TEAM = 128; /* threads of a warpgroup */
static const int KEYS = 128, DIM = INDEX_DIM;
static const int GROUP_ROWS = 8; /* query rows of a group, at most */
static const int PERIOD = 4;     /* units between two looks at the counts */
static const int BUCKETS = 256;
static const int SCAN = 16;         /* candidates between two looks at a row's buckets, at least */
static const int SORT_ITEMS = 2048; /* longer lists are sorted where they are */

template <int HP> struct columns {
    static const int ROWS = HP < 32 ? GROUP_ROWS : 256 / HP; /* of a group, at most */
    static const int CHUNKS = ROWS * HP / 64;                /* 64 columns each */
    static const int CHUNK_ROWS = HP < 64 ? 64 / HP : 1;     /* rows that a chunk touches */
    static const int ROW_CHUNKS = HP < 64 ? 1 : HP / 64;     /* chunks of a row */
    static_assert(ROWS <= GROUP_ROWS && CHUNKS <= 4, "rows have states, columns fit a TMEM stage");
};

/* Shared memory by offset. */
template <bool BF16> struct index_map {
    static const int STAGES = BF16 ? 3 : 6;
    static const int LAG = BF16 ? 1 : 4; /* copies under way before a stage is handed on */
    static const int GROUPS = BF16 ? 1 : 2;
    static const int ROW_BYTES = BF16 ? 2 * DIM : DIM;
    static const int GROUP_BYTES = 256 * ROW_BYTES, STAGE_BYTES = KEYS * ROW_BYTES;
    static const int HALF_Q = 256 * 128, HALF_K = KEYS * 128; /* bf16: next 64 of D */

    static const int QUERY = 0;
    static const int KEY = QUERY + GROUPS * GROUP_BYTES;
    static const int SCALE = KEY + STAGES * STAGE_BYTES;
    static const int SELECT = SCALE + STAGES * KEYS * 8;
    static const int SELECT_SIZE = 16640;
    static const int BUCKET = SELECT + 2 * SELECT_SIZE;
    static const int STATE = BUCKET + 2 * GROUP_ROWS * BUCKETS * 4;
    static const int SMALL = STATE + 2 * GROUP_ROWS * 32;
    static const int NEED = SMALL;     /* 2 a team */
    static const int OWN = SMALL + 16; /* 16 bytes for the engine's own use */
    static const int KEY_FULL = SMALL + 32, KEY_EMPTY = KEY_FULL + 8 * STAGES;
    static const int OWN_BARRIERS = KEY_EMPTY + 8 * STAGES; /* 4 */
    static const int BYTES = SMALL + 256;
    static_assert(KEY % 1024 == 0 && STAGE_BYTES % 1024 == 0, "swizzle atoms");
    static_assert(SELECT_SIZE >= SELECT_BYTES && SELECT_SIZE >= SELECT_BINS + 8 * SORT_ITEMS,
                  "bins, or the list to sort, in the same place");
    static_assert(OWN_BARRIERS + 32 <= BYTES && BYTES <= 232448, "shared memory of a block");
    static_assert(LAG < STAGES, "a stage is handed on before it is needed again");
};
static_assert(index_map<false>::BYTES == 220416 && index_map<true>::BYTES == 217344,
              "as the engines say");

/* A row's state, 32 bytes: the order lets one 16-byte read tell what decides on a key. */
enum { STATE_FLOOR = 0, STATE_LOW = 8, STATE_HIGH = 12, STATE_COUNT = 16, STATE_SCAN = 20 };
enum { STATE_BASE = 24, STATE_SHIFT = 28 }; /* of the buckets; shift 32 = none yet */

/* The selecting threads: a warpgroup, shared memory by address. */
struct warpgroup {
    static const int THREADS = TEAM;
    u32 memory;
    int barrier;

    __device__ __forceinline__ int rank() const
    {
        return threadIdx.x % TEAM;
    }
    __device__ __forceinline__ void sync() const
    {
        bar_sync(barrier, TEAM);
    }
    template <class T> __device__ __forceinline__ T get(int at) const
    {
        return ld_shared<T>(memory + at);
    }
    template <class T> __device__ __forceinline__ void put(int at, T value) const
    {
        st_shared(memory + at, value);
    }
    __device__ __forceinline__ uint32_t add(int at, uint32_t n) const
    {
        return atom_add_shared(memory + at, n);
    }
};

struct shared_items {
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

/* What all roles know of a launch and of a task. */
struct shape {
    int groups, rows, chunks; /* rows of a group; 64 columns each */
};

struct work {
    const struct index_request *r;
    const int32_t *pages;
    int t0, rows;    /* rows of the tile: [t0, t0 + rows) */
    int from, steps; /* first key, steps of 128 keys */
    int to;
};

/* MIN: chunks that the engine multiplies at least. */
template <int HP, int MIN>
__device__ __forceinline__ struct shape shape_of(const struct index_launch &a)
{
    struct shape s;
    s.groups = a.rows > columns<HP>::ROWS ? 2 : 1;
    s.rows = a.rows / s.groups;
    s.chunks = max(MIN, s.rows * HP / 64);
    return s;
}

/* All lanes of a warp call. */
__device__ __forceinline__ struct work find_work(const struct index_launch &a, int task)
{
    /* Causality makes late tiles long: they start first. */
    int lane = threadIdx.x % 32, tile = a.tiles - 1 - task / a.parts, part = task % a.parts;
    int found = 0;
    for (int first = 0; first < a.num_requests; first += 32) {
        int i = first + lane;
        bool mine = i < a.num_requests && a.requests[i].first_tile <= tile &&
                    (i + 1 == a.num_requests || tile < a.requests[i + 1].first_tile);
        u32 votes = __ballot_sync(0xFFFFFFFFu, mine);
        found = votes ? first + __ffs((int)votes) - 1 : found;
    }
    struct work w;
    w.r = &a.requests[found];
    w.pages = a.page_size ? a.page_table + w.r->index * a.table_row : NULL;
    w.t0 = w.r->q_start + (tile - w.r->first_tile) * a.rows;
    w.rows = min(a.rows, w.r->q_start + w.r->query_len - w.t0);
    int low = 0, high = 0;
    if (lane < w.rows)
        row_range(a, *w.r, w.t0 + lane, &low, &high);
    int from = low < high ? low : INT32_MAX, to = low < high ? high : 0;
    for (int step = 16; step; step /= 2) {
        from = min(from, __shfl_xor_sync(0xFFFFFFFFu, from, step));
        to = max(to, __shfl_xor_sync(0xFFFFFFFFu, to, step));
    }
    from = min(from, to) / KEYS * KEYS;
    u32 extent = ((u32)(to - from) + KEYS - 1) / KEYS, parts = (u32)a.parts;
    int64_t piece = (int64_t)((extent + parts - 1) / parts) * KEYS;
    w.from = (int)min((int64_t)to, from + part * piece);
    w.to = (int)min((int64_t)to, w.from + piece);
    w.steps = (w.to - w.from + KEYS - 1) / KEYS;
    return w;
}

/* ------------------------------------------------------------------------------------- load */

__device__ __forceinline__ u32 bf16_of_e4m3(u32 code)
{
    u32 sign = (code & 0x80) << 8, magnitude = code & 0x7F;
    if (magnitude == 0x7F)
        return sign | 0x7FC0;
    if (magnitude < 8) /* a multiple of 2^-9 */
        return sign | __float_as_uint((float)magnitude * 0x1p-9f) >> 16;
    return sign | ((magnitude << 4) + (120 << 7));
}

/* 16 bytes of a row as the tile has them, byte by byte; zeros past its end. */
template <bool BF16>
__device__ __forceinline__ uint4 gather16(const char *row, int part, int dim, bool fp8)
{
    u32 word[4] = {};
    const unsigned char *from = (const unsigned char *)row;
    for (int j = 0; j < (BF16 ? 8 : 16); j++) {
        int d = (BF16 ? 8 : 16) * part + j;
        if (d >= dim)
            break;
        u32 x = !BF16 ? from[d] : fp8 ? bf16_of_e4m3(from[d]) : from[2 * d] | from[2 * d + 1] << 8;
        word[BF16 ? j / 2 : j / 4] |= BF16 ? x << 16 * (j % 2) : x << 8 * (j % 4);
    }
    return make_uint4(word[0], word[1], word[2], word[3]);
}

/* Where 16 bytes lie in a tile of 128-byte rows, swizzled as the MMA reads them. */
__device__ __forceinline__ u32 swizzled(int row, int part)
{
    return row * 128 + ((part ^ (row & 7)) << 4);
}

/* The queries of a tile: column n of a group is head n % HP of row n / HP. */
template <bool BF16, int HP>
__device__ void load_queries(const struct index_launch &a, const struct shape &s,
                             const struct work &w, u32 smem)
{
    typedef index_map<BF16> m;
    const int parts = m::ROW_BYTES / 16;
    bool direct = a.q_wide && a.q_fp8 != BF16;
    int width = 64 * s.chunks, row_bytes = a.q_fp8 ? a.dim : 2 * a.dim;
    for (int i = threadIdx.x % TEAM; i < s.groups * width * parts; i += TEAM) {
        int part = i % parts, n = i / parts % width, group = i / (parts * width);
        int head = n % HP, row = n / HP;
        bool there = row < s.rows && group * s.rows + row < w.rows && head < a.heads;
        u32 to =
            smem + m::QUERY + group * m::GROUP_BYTES + part / 8 * m::HALF_Q + swizzled(n, part % 8);
        const char *from = a.q + (w.t0 + group * s.rows + row) * a.q_row + head * a.q_head;
        if (direct) {
            int bytes = there ? max(0, min(16, row_bytes - 16 * part)) : 0;
            cp_async_cg_16(to, bytes ? from + 16 * part : a.q, bytes);
        } else {
            st_shared(to,
                      there ? gather16<BF16>(from, part, a.dim, a.q_fp8) : make_uint4(0, 0, 0, 0));
        }
    }
}

/* Starts the copies of keys [pos0, pos0 + 128) into a stage. */
template <bool BF16>
__device__ __forceinline__ void load_keys(const struct index_launch &a, const struct work &w,
                                          u32 smem, int stage, int pos0)
{
    typedef index_map<BF16> m;
    int rank = threadIdx.x % TEAM, part = rank % 8;
    bool direct = a.wide && a.k_fp8 != BF16;
    int row_bytes = a.k_fp8 ? a.dim : 2 * a.dim;
    u32 to = smem + m::KEY + stage * m::STAGE_BYTES;
#pragma unroll(BF16 ? 1 : 4)
    for (int i = 0; i < KEYS / 16; i++) {
        int key = rank / 8 + 16 * i;
        const char *scale, *from = NULL;
        if (pos0 + key < w.to)
            from = find_key(a, *w.r, w.pages, pos0 + key, &scale);
#pragma unroll
        for (int half = 0; half < (BF16 ? 2 : 1); half++) {
            u32 at = to + half * m::HALF_K + swizzled(key, part);
            int p = part + 8 * half;
            if (direct) {
                int bytes = from ? max(0, min(16, row_bytes - 16 * p)) : 0;
                cp_async_cg_16(at, bytes ? from + 16 * p : a.k, bytes);
            } else {
                st_shared(at,
                          from ? gather16<BF16>(from, p, a.dim, a.k_fp8) : make_uint4(0, 0, 0, 0));
            }
        }
    }
    const char *scale = NULL, *from = NULL;
    if (pos0 + rank < w.to)
        from = find_key(a, *w.r, w.pages, pos0 + rank, &scale);
    u32 at = smem + m::SCALE + (stage * KEYS + rank) * 8;
    st_shared(at + 4, (u32)(from != NULL));
    if (from && scale && a.wide_scale) {
        cp_async_ca_4(at, scale, 4);
    } else {
        u32 bits = __float_as_uint(1.0f);
        if (from && scale) {
            const unsigned char *b = (const unsigned char *)scale;
            bits = b[0] | b[1] << 8 | b[2] << 16 | (u32)b[3] << 24;
        }
        st_shared(at, bits);
    }
}

/* What this warp has written is complete: the MMA may read it. */
__device__ __forceinline__ void hand_on(u32 bar)
{
    if (MLA_MUTANT != 1)
        fence_proxy_async();
    __syncwarp();
    if (lane_arrives())
        mbarrier_arrive(bar);
}

template <bool BF16, int HP>
__device__ __forceinline__ void load_role(const struct index_launch &a, const struct shape &s,
                                          u32 smem)
{
    typedef index_map<BF16> m;
    ring<m::STAGES> at, last, before;
    int filled = 0;
    for (int task = blockIdx.x; task < a.tiles * a.parts; task += gridDim.x) {
        struct work w = find_work(a, task);
        if (w.steps == 0)
            continue;
        /* Who releases the last keys of a tile, or (the other warpgroup) the ones before, has no
         * product under way: then the queries are free. */
        if (filled > 0 && MLA_MUTANT != 2)
            mbarrier_wait(smem + m::KEY_EMPTY + 8 * last.stage, last.phase);
        if (filled > 1 && MLA_MUTANT != 2)
            mbarrier_wait(smem + m::KEY_EMPTY + 8 * before.stage, before.phase);
        load_queries<BF16, HP>(a, s, w, smem); /* handed on with the first keys */
        ring<m::STAGES> ready = at;
        for (int i = 0; i < w.steps; i++) {
            mbarrier_wait(smem + m::KEY_EMPTY + 8 * at.stage, at.phase ^ (MLA_MUTANT == 3 ? 0 : 1));
            load_keys<BF16>(a, w, smem, at.stage, w.from + i * KEYS);
            cp_async_commit();
            before = last;
            last = at;
            filled++;
            at.next();
            if (i >= m::LAG) {
                if (MLA_MUTANT == 4)
                    cp_async_wait_group<m::LAG + 1>();
                else
                    cp_async_wait_group<m::LAG>();
                hand_on(smem + m::KEY_FULL + 8 * ready.stage);
                ready.next();
            }
        }
        cp_async_wait_group<0>();
        for (int i = min(m::LAG, w.steps); i > 0; i--) {
            hand_on(smem + m::KEY_FULL + 8 * ready.stage);
            ready.next();
        }
    }
}

/* ------------------------------------------------------------------------------------- math */

/* What a math warpgroup needs to know of a task. */
template <bool BF16> struct team_work {
    typedef index_map<BF16> m;
    const struct index_launch &a;
    struct warpgroup team;
    u32 smem, states, buckets, need;
    int row0, own;   /* rows of the tile: [row0, row0 + own) */
    int first;       /* the first row in the tensors */
    uint64_t *items; /* of row0 */
    int period;

    __device__ __forceinline__ u32 state(int row) const
    {
        return states + 32 * row;
    }
    __device__ __forceinline__ u32 bucket(int row) const
    {
        return buckets + 4 * BUCKETS * row;
    }
    __device__ __forceinline__ uint64_t *buffer(int row) const
    {
        return items + (int64_t)row * a.capacity;
    }
};

/* One finished score a lane: stored where scores are wanted, and appended to the row's candidates
 * if it is not below the floor. */
template <bool BF16>
__device__ __forceinline__ void emit(const struct team_work<BF16> &t, int row, float score, int pos,
                                     bool seen)
{
    const struct index_launch &a = t.a;
    int lane = threadIdx.x % 32;
    uint4 s = ld_shared<uint4>(t.state(row));
    int low = (int)s.z, high = (int)s.w;
    bool sees = seen && pos >= low && pos < high;
    if (a.logits && sees)
        a.logits[(t.first + row) * a.logits_row + pos - (a.relative ? low : 0)] = score;
    if (a.k_list == 0)
        return;
    uint64_t item = item_of(score, pos), floor = (uint64_t)s.y << 32 | s.x;
    bool accept = sees && item >= floor;
    u32 votes = __ballot_sync(0xFFFFFFFFu, accept), at = 0;
    if (votes == 0)
        return;
    if (lane == 0)
        at = atom_add_shared(t.state(row) + STATE_COUNT, __popc(votes));
    at = __shfl_sync(0xFFFFFFFFu, at, 0);
    if (accept) {
        t.buffer(row)[at + __popc(votes & ((1u << lane) - 1))] = item;
        uint2 b = ld_shared<uint2>(t.state(row) + STATE_BASE);
        if (b.y < 32)
            atom_add_shared(t.bucket(row) + 4 * min(((u32)(item >> 32) - b.x) >> b.y, BUCKETS - 1u),
                            1);
    }
    if (lane == 0 &&
        (int)(at + __popc(votes)) > a.capacity - (MLA_MUTANT == 10 ? 1 : PERIOD) * KEYS)
        st_shared(t.need + 4 * (t.period & 1), t.period);
}

/* Raises a row's floor to the highest bucket edge that K candidates reach. One warp. */
template <bool BF16>
__device__ __forceinline__ void tighten(const struct team_work<BF16> &t, int row)
{
    int lane = threadIdx.x % 32;
    uint2 b = ld_shared<uint2>(t.state(row) + STATE_BASE);
    uint2 c = ld_shared<uint2>(t.state(row) + STATE_COUNT);
    /* Lane 0 decides: other warps append meanwhile. */
    int due = __shfl_sync(0xFFFFFFFFu, (int)(b.y < 32 && c.x >= c.y), 0);
    if (!due)
        return;
    if (lane == 0)
        st_shared(t.state(row) + STATE_SCAN, c.x + max(SCAN, t.a.k_list / 16));
    const int each = BUCKETS / 32;
    u32 n[each], own = 0;
    int top = BUCKETS - each * (lane + 1); /* the lane's lowest bucket; lane 0 has the highest */
#pragma unroll
    for (int i = 0; i < each; i += 4) {
        uint4 v = ld_shared<uint4>(t.bucket(row) + 4 * (top + i));
        n[i] = v.x, n[i + 1] = v.y, n[i + 2] = v.z, n[i + 3] = v.w;
        own += v.x + v.y + v.z + v.w;
    }
    u32 upto = own;
    for (int step = 1; step < 32; step *= 2) {
        u32 other = __shfl_up_sync(0xFFFFFFFFu, upto, step);
        upto += lane >= step ? other : 0;
    }
    u32 want = MLA_MUTANT == 11 ? t.a.k_list / 2 : t.a.k_list, count = upto - own;
    if (count < want && upto >= want) { /* in one lane at most */
        u32 edge = 0;
#pragma unroll
        for (int i = each - 1; i >= 0; i--) {
            edge = count < want ? b.x + ((u32)(top + i) << b.y) : edge;
            count += n[i];
        }
        uint64_t floor = (uint64_t)edge << 32;
        if (floor > ld_shared<uint64_t>(t.state(row) + STATE_FLOOR))
            st_shared(t.state(row) + STATE_FLOOR, floor);
    }
    __syncwarp();
}

/* The team's rows whose buffers are nearly full keep their K largest; buckets are cut anew. */
template <bool BF16> __device__ void select_rows(const struct team_work<BF16> &t)
{
    const struct index_launch &a = t.a;
    for (int row = 0; row < t.own; row++) {
        u32 state = t.state(row);
        int n = ld_shared<int>(state + STATE_COUNT);
        if (n <= a.capacity - PERIOD * KEYS)
            continue;
        uint64_t largest, *items = t.buffer(row);
        uint64_t floor = keep_largest(t.team, items, &n, a.k_list, &largest);
        for (int i = t.team.rank(); i < BUCKETS; i += TEAM)
            st_shared(t.bucket(row) + 4 * i, 0u);
        t.team.sync();
        u32 base = (u32)(floor >> 32), span = (u32)(largest >> 32) - base;
        u32 shift = max(0, 24 - __clz((int)span));
        for (int i = t.team.rank(); i < n; i += TEAM)
            atom_add_shared(t.bucket(row) + 4 * (((u32)(items[i] >> 32) - base) >> shift), 1);
        if (t.team.rank() == 0) {
            st_shared(state + STATE_FLOOR, floor);
            st_shared(state + STATE_COUNT, make_uint4(n, n + SCAN, base, shift));
        }
    }
    t.team.sync();
}

__device__ __forceinline__ float as_float(u32 x)
{
    return __uint_as_float(x);
}
__device__ __forceinline__ float as_float(float x)
{
    return x;
}

/* a·b + c of two numbers: one instruction from sm_100 on, two before. */
__device__ __forceinline__ u64 fma_pair(float low, float high, u64 b, u64 c)
{
#if defined(MLA_MODEL) || __CUDA_ARCH__ >= 1000
    return fma_rn_f32x2(pack_f32x2(low, high), b, c);
#else
    float b_low, b_high, c_low, c_high;
    unpack_f32x2(&b_low, &b_high, b);
    unpack_f32x2(&c_low, &c_high, c);
    return pack_f32x2(fmaf(low, b_low, c_low), fmaf(high, b_high, c_high));
#endif
}

/* 32 sums of a thread, two keys x 16 columns of a chunk, on to the partial sums of its rows. x[4 i
 * + 2 j + e] is key j and column 8 i + 2 (lane % 4) + e: so both wgmma and tcgen05.ld 16x256b have
 * it. */
template <bool BF16, int HP, class T>
__device__ __forceinline__ void add_heads(const T *x, const u64 *w, int chunk, int half, int heads,
                                          u64 (&sum)[columns<HP>::CHUNK_ROWS][4])
{
    int t2 = threadIdx.x % 4 * 2;
#pragma unroll
    for (int i = 0; i < 8; i++) { /* 8 columns */
        int row = HP < 64 ? 8 * i / HP : 0;
        int head = (64 * chunk + 8 * i) % HP + t2;
#pragma unroll
        for (int j = 0; j < 2; j++) {
            float low = relu(as_float(x[4 * i + 2 * j]));
            float high = relu(as_float(x[4 * i + 2 * j + 1]));
            if (BF16) { /* a padded head's zeros times an infinite key are NaN */
                low = head < heads ? low : 0;
                high = head + 1 < heads ? high : 0;
            }
            u64 *to = &sum[row][2 * half + j];
            *to = fma_pair(low, high, w[i], *to);
        }
    }
}

/* Partial sums of 4 keys in 4 neighbouring lanes -> the sum of key t%4 in lane t. */
__device__ __forceinline__ float sum_lanes(const u64 (&sum)[4])
{
    float v[4];
    bool odd = threadIdx.x & 1, upper = threadIdx.x & 2;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float low, high;
        unpack_f32x2(&low, &high, sum[i]);
        v[i] = low + high;
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        float give = upper ? v[i] : v[i + 2], keep = upper ? v[i + 2] : v[i];
        v[i] = keep + __shfl_xor_sync(0xFFFFFFFFu, give, 2);
    }
    float give = odd ? v[0] : v[1], keep = odd ? v[1] : v[0];
    return keep + __shfl_xor_sync(0xFFFFFFFFu, give, 1);
}

/* The scores of a chunk's rows that its sums are complete for; pos is the lane's key. */
template <bool BF16, int HP>
__device__ __forceinline__ void emit_rows(const struct team_work<BF16> &t, int chunk, float scale,
                                          bool seen, int pos,
                                          const u64 (&sum)[columns<HP>::CHUNK_ROWS][4])
{
    typedef columns<HP> c;
#pragma unroll
    for (int i = 0; i < c::CHUNK_ROWS; i++) {
        int row = chunk / c::ROW_CHUNKS * c::CHUNK_ROWS + i;
        if (row < t.own)
            emit(t, row, scale * sum_lanes(sum[i]), pos, seen);
    }
}

template <int N> __device__ __forceinline__ void zero_sums(u64 (&sum)[N][4])
{
#pragma unroll
    for (int i = 0; i < N; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++)
            sum[i][j] = 0;
    }
}

/* Lists of the tile, or counts for mla_index_merge. */
template <bool BF16>
__device__ void finish(const struct team_work<BF16> &t, const struct shape &s, const struct work &w,
                       int group)
{
    const struct index_launch &a = t.a;
    struct shared_items scratch = {t.team.memory + SELECT_BINS};
    int rank = t.team.rank();
    if (a.parts > 1) {
        if (rank < t.own)
            a.counts[((int64_t)blockIdx.x * a.buffers + (s.groups == 1 ? group : 0)) * a.rows +
                     t.row0 + rank] = ld_shared<int>(t.state(rank) + STATE_COUNT);
        return;
    }
    if (s.groups == 2) {
        for (int row = 0; row < t.own; row++)
            finish_row(t.team, t.buffer(row), ld_shared<int>(t.state(row) + STATE_COUNT), a.k_list,
                       scratch, SORT_ITEMS,
                       row_list(a, t.first + row, ld_shared<int>(t.state(row) + STATE_LOW)));
        return;
    }
    /* Both warpgroups have candidates of each row: they share the rows out. */
    u32 states = t.smem + index_map<BF16>::STATE;
    uint64_t *items = a.items + (int64_t)blockIdx.x * 2 * a.rows * a.capacity;
    for (int row = group; row < w.rows; row += 2) {
        u32 mine = states + 32 * row, other = mine + 32 * GROUP_ROWS;
        uint64_t *to = items + (int64_t)row * a.capacity;
        int m = MLA_MUTANT == 16 ? 0 : ld_shared<int>(other + STATE_COUNT);
        int n = join(t.team, to, ld_shared<int>(mine + STATE_COUNT), 0,
                     to + (int64_t)a.rows * a.capacity, m, a.k_list, a.capacity);
        finish_row(t.team, to, n, a.k_list, scratch, SORT_ITEMS,
                   row_list(a, t.first + row, ld_shared<int>(mine + STATE_LOW)));
    }
    bar_sync(3, 2 * TEAM); /* states and buffers are free */
}

/* A math warpgroup's view of the block, and of a task. */
template <bool BF16>
__device__ __forceinline__ struct team_work<BF16>
team_of(const struct index_launch &a, const struct shape &s, u32 smem, int group) {
    typedef index_map<BF16> m;
    int row0 = s.groups == 2 ? group * s.rows : 0, buffer = s.groups == 1 ? group : 0;
    int64_t place = ((int64_t)blockIdx.x * a.buffers + buffer) * a.rows + row0;
    return {a,
            {smem + m::SELECT + group * m::SELECT_SIZE, 1 + group},
            smem,
            smem + m::STATE + 32 * GROUP_ROWS *group,
            smem + m::BUCKET + 4 * BUCKETS *GROUP_ROWS *group,
            smem + m::NEED + 8 * group,
            row0,
            0,
            0,
            a.items + place *a.capacity,
            0};
}

template <bool BF16, int HP>
__device__ __forceinline__ void begin_task(struct team_work<BF16> &t, const struct shape &s,
                                           const struct work &w,
                                           u64 (&weights)[8 * columns<HP>::CHUNKS])
{
    const struct index_launch &a = t.a;
    t.first = w.t0 + t.row0;
    t.own = max(0, min(s.rows, w.rows - t.row0));
    t.period = 0;
    int rank = t.team.rank();
    if (rank < t.own) {
        int low, high;
        row_range(a, *w.r, t.first + rank, &low, &high);
        st_shared(t.state(rank), make_uint4(0, 0, low, high));
        st_shared(t.state(rank) + 16, make_uint4(0, 0, 0, 32));
    }
    if (rank < 2)
        st_shared(t.need + 4 * rank, -1);
#pragma unroll
    for (int i = 0; i < 8 * columns<HP>::CHUNKS; i++) {
        int n = 8 * i + rank % 4 * 2, row = n / HP, head = n % HP;
        const float *from = a.weights + (t.first + row) * a.weight_row + head;
        weights[i] = pack_f32x2(row < t.own && head < a.heads ? from[0] : 0.0f,
                                row < t.own && head + 1 < a.heads ? from[1] : 0.0f);
    }
    t.team.sync();
}

/* After the units-th unit of a task: floors rise; now and then buffers that are nearly full are
 * emptied. */
template <bool BF16> __device__ __forceinline__ void end_unit(struct team_work<BF16> &t, int units)
{
    if (t.a.k_list == 0)
        return;
    for (int row = threadIdx.x / 32 % 4; row < t.own; row += 4)
        tighten(t, row);
    if (units % PERIOD)
        return;
    t.team.sync(); /* no append is under way, and the flag is written */
    if (ld_shared<int>(t.need + 4 * (t.period & 1)) == t.period)
        select_rows(t);
    t.period++;
}

template <bool BF16>
__device__ __forceinline__ void end_task(const struct team_work<BF16> &t, const struct shape &s,
                                         const struct work &w, int group)
{
    t.team.sync();
    /* Warpgroups that take the steps in turn end each task together: one that has no step in it
     * waits for no barrier there, and must not run ahead by more than the phases can tell. */
    if (s.groups == 1)
        bar_sync(3, 2 * TEAM);
    if (t.a.k_list)
        finish(t, s, w, group);
    t.team.sync();
}

/* --------------------------------------------------------------------- host */

/* Index heads of a row, padded: 16 (or least), 32, 64, 128 or 256. */
static inline int padded_heads(int64_t heads, int least)
{
    int hp = least;
    while (hp < heads)
        hp *= 2;
    return hp;
}

static inline int group_rows(const mla_index_args *args, int least)
{
    int hp = padded_heads(args->heads, least);
    return hp < 32 ? GROUP_ROWS : 256 / hp;
}

static inline int tile_rows(const mla_index_args *args, int least)
{
    bool fp8 = args->k_format == MLA_INDEX_FP8 && args->q_format == MLA_INDEX_FP8;
    return group_rows(args, least) * (fp8 ? index_map<false>::GROUPS : index_map<true>::GROUPS);
}

#endif
