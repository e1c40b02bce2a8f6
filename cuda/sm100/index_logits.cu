/* SPDX-License-Identifier: Apache-2.0 */
/* mla_index_run on sm_100: scores of the lightning indexer by tcgen05, streamed into exact top-k.
 *
 *     I[t,s] = k_scale[s] · sum_h W[t,h] · ReLU(sum_d q[t,h,d] · k[s,d])
 *
 * Tile. 128 keys are M. N has up to 256 columns: the index heads (padded to HP = 16, 32, 64, 128 or
 * 256) of up to 8 query rows, a group. fp8 has two groups a tile, so that a key that has come from
 * L2 serves twice; bf16 has one. A unit is 128 keys x one group: 128 x 256 sums in one of two TMEM
 * stages, each with a warpgroup of its own.
 *
 * Roles, 16 warps (registers after setmaxnreg: 0-7 192, 8-15 64)
 *   0-3, 4-7  math: ReLU, weights, sum over heads, floor, append; select and write lists
 *   8-11      load: keys, scales and page lookups (cp.async), queries
 *   12        MMA issue, TMEM
 *   13-15     nothing
 * With one group the two math warpgroups take the 128-key steps in turn, each with candidates of
 * its own for every row, joined in the end; with two groups each has rows of its own.
 *
 * Reduction. tcgen05.ld 16x256b gives a thread 4 keys x 16 of 64 columns, so that all weights of a
 * unit are 64 registers of a thread. With 32x32b (a lane has a key and all columns) they would be
 * 256 registers, or 256 broadcast reads of shared memory a unit beside the MMA's own traffic. Three
 * shuffles a row then leave every lane with one key's sum: from there on a lane owns a key.
 *
 * Top-k in the same pass. A row's state (select.cuh) is a buffer of candidates and a floor. When
 * the buffer is full for the first time, the K largest stay, and 256 buckets between their smallest
 * and their largest score count what comes in afterwards. As soon as the buckets from some edge up
 * hold K candidates, the floor rises to that edge: it only ever tightens, and what it turns away has
 * K better ones. So the buffer fills again only after some K more; then the K largest stay, and the
 * buckets are cut anew. The last select takes the K largest of what is left, in the total order of
 * docs/index.md: the list is exact whatever the floor did in between.
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
 * TMEM columns: stage 0 at 0, stage 1 at 256: all 512.
 *
 * Barriers (count)              arrives                        waits
 *   key full, per stage (4)     load warps, after their fence  MMA, math (for the scales)
 *   key empty (4 x groups)      math warps, with the unit      load; the last one of a tile also
 *                               of the keys complete           says that the queries are free
 *   q full (4)                  load warps                     MMA
 *   sums full, per stage (1)    commit                         math
 *   sums empty (4)              math warps, all loaded         MMA
 *
 * Cycles of a unit with 4 rows of 64 heads, D 128, fp8 (from instruction rates, not measured):
 *   MMA      4 x 128 = 512
 *   SMEM     operands 4 x 96, key copies 128 / 2 groups, shuffles and appends 60: 508
 *   max      128 x 256 at 64 a cycle = 512; fma.f32x2 256; tcgen05.ld 256
 * MMA and the max of the ReLU tie, and the warpgroups alternate: one loads while the other's
 * accumulators fill. A block has no second tile in flight, so writing lists (select and sort of K)
 * is not hidden: docs/performance.md.
 *
 * Bits. A score is computed by the same instructions whatever its place, so scores and lists depend
 * neither on tiles, parts or limits nor on when floors rise. */
#include "../any/index_rows.cuh"
#include "../ptx/barrier.cuh"
#include "../ptx/convert.cuh"
#include "../ptx/cp_async.cuh"
#include "../ptx/launch.cuh"
#include "../ptx/mbarrier.cuh"
#include "../ptx/shared.cuh"
#include "../ptx/tcgen05.cuh"
#include "../ptx/warp.cuh"
#include "../ring.cuh"

#include <stdio.h>

static const int KEYS = 128, DIM = INDEX_DIM;
static const int ALL_THREADS = 512, TEAM = 128; /* of a block; of a warpgroup */
static const int MATH_REGISTERS = 192, OTHER_REGISTERS = 64;
static_assert(2 * TEAM * (MATH_REGISTERS + OTHER_REGISTERS) <= 65536, "registers of an SM");
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
template <bool BF16> struct map {
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
    static const int NEED = SMALL; /* 2 a team */
    static const int TMEM = SMALL + 16;
    static const int KEY_FULL = SMALL + 32, KEY_EMPTY = KEY_FULL + 8 * STAGES;
    static const int QUERY_FULL = KEY_EMPTY + 8 * STAGES;
    static const int SUM_FULL = QUERY_FULL + 8, SUM_EMPTY = SUM_FULL + 16;
    static const int BYTES = SMALL + 256;
    static_assert(KEY % 1024 == 0 && STAGE_BYTES % 1024 == 0, "swizzle atoms");
    static_assert(SELECT_SIZE >= SELECT_BYTES && SELECT_SIZE >= SELECT_BINS + 8 * SORT_ITEMS,
                  "bins, or the list to sort, in the same place");
    static_assert(SUM_EMPTY + 16 <= BYTES && BYTES <= 232448, "shared memory of a block");
    static_assert(LAG < STAGES, "a stage is handed on before it is needed again");
};
static_assert(map<false>::BYTES == 220416 && map<true>::BYTES == 217344, "as said above");

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

template <int HP> __device__ __forceinline__ struct shape shape_of(const struct index_launch &a)
{
    struct shape s;
    s.groups = a.rows > columns<HP>::ROWS ? 2 : 1;
    s.rows = a.rows / s.groups;
    s.chunks = (s.rows * HP + 63) / 64;
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
    typedef map<BF16> m;
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
    typedef map<BF16> m;
    int rank = threadIdx.x % TEAM, part = rank % 8;
    bool direct = a.wide && a.k_fp8 != BF16;
    int row_bytes = a.k_fp8 ? a.dim : 2 * a.dim;
    u32 to = smem + m::KEY + stage * m::STAGE_BYTES;
#pragma unroll(BF16 ? 1 : 8)
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
    if (threadIdx.x % 32 == 0)
        mbarrier_arrive(bar);
}

template <bool BF16, int HP>
__device__ __forceinline__ void load_role(const struct index_launch &a, u32 smem)
{
    typedef map<BF16> m;
    const struct shape s = shape_of<HP>(a);
    ring<m::STAGES> at, last;
    bool busy = false;
    for (int task = blockIdx.x; task < a.tiles * a.parts; task += gridDim.x) {
        struct work w = find_work(a, task);
        if (w.steps == 0)
            continue;
        /* The last keys are released when all MMAs are complete: so are the queries. */
        if (busy && MLA_MUTANT != 2)
            mbarrier_wait(smem + m::KEY_EMPTY + 8 * last.stage, last.phase);
        busy = true;
        load_queries<BF16, HP>(a, s, w, smem);
        cp_async_wait_all();
        hand_on(smem + m::QUERY_FULL);
        ring<m::STAGES> ready = at;
        for (int i = 0; i < w.steps; i++) {
            mbarrier_wait(smem + m::KEY_EMPTY + 8 * at.stage, at.phase ^ (MLA_MUTANT == 3 ? 0 : 1));
            load_keys<BF16>(a, w, smem, at.stage, w.from + i * KEYS);
            cp_async_commit();
            last = at;
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

/* -------------------------------------------------------------------------------------- MMA */

template <bool BF16, int HP>
__device__ __forceinline__ void mma_role(const struct index_launch &a, u32 smem, u32 tmem)
{
    typedef map<BF16> m;
    const operand_type type = BF16 ? OPERAND_BF16 : OPERAND_E4M3;
    const struct shape s = shape_of<HP>(a);
    bool leader = elect_one();
    int steps32 = ((BF16 ? 2 : 1) * a.dim + 31) / 32; /* of D, 32 bytes each */
    u32 idesc = umma_idesc(KEYS, 64 * s.chunks, type, type, OPERAND_F32, false, false);
    ring<m::STAGES> at;
    u32 query_phase = 0, free_phase[2] = {1, 1};
    for (int task = blockIdx.x; task < a.tiles * a.parts; task += gridDim.x) {
        struct work w = find_work(a, task);
        if (w.steps == 0)
            continue;
        mbarrier_wait(smem + m::QUERY_FULL, query_phase);
        query_phase ^= 1;
        for (int i = 0; i < w.steps; i++) {
            mbarrier_wait(smem + m::KEY_FULL + 8 * at.stage, at.phase);
            for (int group = 0; group < s.groups; group++) {
                int stage = s.groups == 1 ? i & 1 : group;
                if (MLA_MUTANT != 5)
                    mbarrier_wait(smem + m::SUM_EMPTY + 8 * stage,
                                  stage ? free_phase[1] : free_phase[0]);
                free_phase[0] ^= stage == 0;
                free_phase[1] ^= stage == 1;
                if (MLA_MUTANT != 6)
                    tcgen05_fence_after();
                if (leader) {
                    u64 k = umma_desc(smem + m::KEY + at.stage * m::STAGE_BYTES, 0,
                                      MLA_MUTANT == 7 ? 512 : 1024, 128);
                    u64 q = umma_desc(smem + m::QUERY + group * m::GROUP_BYTES, 0, 1024, 128);
                    for (int d = 0; d < steps32; d++) {
                        /* 32 bytes on in the swizzle atom; bf16: 64 of D on after four. */
                        u64 ka = k + (d / 4 * m::HALF_K + d % 4 * 32) / 16;
                        u64 qb = q + (d / 4 * m::HALF_Q + d % 4 * 32) / 16;
                        tcgen05_mma_ss<1, BF16 ? KIND_F16 : KIND_F8F6F4>(tmem + 256 * stage, ka, qb,
                                                                         idesc,
                                                                         d > 0 || MLA_MUTANT == 8);
                        if (MLA_MUTANT == 9 && d == steps32 - 2)
                            tcgen05_commit<1>(smem + m::SUM_FULL + 8 * stage);
                    }
                    if (!(MLA_MUTANT == 9 && steps32 > 1))
                        tcgen05_commit<1>(smem + m::SUM_FULL + 8 * stage);
                }
                __syncwarp();
            }
            at.next();
        }
    }
}

/* ------------------------------------------------------------------------------------- math */

/* What a math warpgroup needs to know of a task. */
template <bool BF16> struct team_work {
    typedef map<BF16> m;
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

/* 32 sums of a thread, two keys x 16 columns of a chunk, on to the partial sums of its rows. */
template <bool BF16, int HP>
__device__ __forceinline__ void add_heads(const u32 (&x)[32], const u64 *w, int chunk, int half,
                                          int heads, u64 (&sum)[columns<HP>::CHUNK_ROWS][4])
{
    int t2 = threadIdx.x % 4 * 2;
#pragma unroll
    for (int i = 0; i < 8; i++) { /* 8 columns */
        int row = HP < 64 ? 8 * i / HP : 0;
        int head = (64 * chunk + 8 * i) % HP + t2;
#pragma unroll
        for (int j = 0; j < 2; j++) {
            float low = relu(__uint_as_float(x[4 * i + 2 * j]));
            float high = relu(__uint_as_float(x[4 * i + 2 * j + 1]));
            if (BF16) { /* a padded head's zeros times an infinite key are NaN */
                low = head < heads ? low : 0;
                high = head + 1 < heads ? high : 0;
            }
            u64 *to = &sum[row][2 * half + j];
            *to = fma_rn_f32x2(pack_f32x2(low, high), w[i], *to);
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

/* One unit: the sums of 128 keys x the group's columns, from TMEM to the rows' candidates. */
template <bool BF16, int HP>
__device__ __forceinline__ void unit(const struct team_work<BF16> &t, const u64 *weights,
                                     int chunks, u32 tmem, u32 empty, float scale, bool seen,
                                     int pos)
{
    typedef columns<HP> c;
    const u32 half = MLA_MUTANT == 12 ? 8u << 16 : 16u << 16; /* lanes */
    u32 a[32], b[32];
    u64 sum[c::CHUNK_ROWS][4];
    tcgen05_ld_16x256b(a, tmem);
#pragma unroll
    for (int chunk = 0; chunk < c::CHUNKS; chunk++) {
        if (chunk >= chunks)
            break;
        if (chunk % c::ROW_CHUNKS == 0) {
#pragma unroll
            for (int i = 0; i < c::CHUNK_ROWS; i++) {
#pragma unroll
                for (int j = 0; j < 4; j++)
                    sum[i][j] = 0;
            }
        }
        if (MLA_MUTANT != 13)
            tcgen05_wait_ld();
        tcgen05_ld_16x256b(b, tmem + half + 64 * chunk); /* comes in while a is added up */
        tcgen05_bind(a);
        add_heads<BF16, HP>(a, weights + 8 * chunk, chunk, 0, t.a.heads, sum);
        tcgen05_wait_ld();
        if (chunk + 1 < chunks) {
            tcgen05_ld_16x256b(a, tmem + 64 * (chunk + 1));
        } else { /* the stage has been read */
            if (MLA_MUTANT != 14)
                tcgen05_fence_before();
            __syncwarp();
            if (threadIdx.x % 32 == 0)
                mbarrier_arrive(empty);
        }
        tcgen05_bind(b);
        add_heads<BF16, HP>(b, weights + 8 * chunk, chunk, 1, t.a.heads, sum);
        if ((chunk + 1) % c::ROW_CHUNKS)
            continue;
#pragma unroll
        for (int i = 0; i < c::CHUNK_ROWS; i++) {
            int row = chunk / c::ROW_CHUNKS * c::CHUNK_ROWS + i;
            if (row < t.own)
                emit(t, row, scale * sum_lanes(sum[i]), pos, seen);
        }
    }
}

/* Lists of the tile, or counts for mla_index_merge. */
template <bool BF16>
__device__ void finish(const struct team_work<BF16> &t, const struct shape &s, const struct work &w,
                       int group)
{
    const struct index_launch &a = t.a;
    typedef map<BF16> m;
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
    bar_sync(3, 2 * TEAM);
    u32 states = t.smem + m::STATE;
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

template <bool BF16, int HP>
__device__ __forceinline__ void math_role(const struct index_launch &a, u32 smem, u32 tmem)
{
    typedef map<BF16> m;
    typedef columns<HP> c;
    const struct shape s = shape_of<HP>(a);
    int lane = threadIdx.x % 32, quarter = threadIdx.x / 32 % 4, group = threadIdx.x / TEAM;
    /* What the lane owns after sum_lanes. */
    int key = 32 * quarter + (MLA_MUTANT == 17 ? lane : lane / 4 + 8 * (lane % 4));
    int row0 = s.groups == 2 ? group * s.rows : 0, buffer = s.groups == 1 ? group : 0;
    int64_t place = ((int64_t)blockIdx.x * a.buffers + buffer) * a.rows + row0;
    struct team_work<BF16> t = {
        a, {smem + m::SELECT + group * m::SELECT_SIZE, 1 + group}, smem,
            smem + m::STATE + 32 * GROUP_ROWS *group,
            smem + m::BUCKET + 4 * BUCKETS *GROUP_ROWS *group, smem + m::NEED + 8 * group, row0, 0,
            0, a.items + place *a.capacity, 0
    };
    tmem += ((u32)(32 * quarter) << 16) + 256 * group;
    ring<m::STAGES> at;
    u32 full_phase = 0;
    for (int task = blockIdx.x; task < a.tiles * a.parts; task += gridDim.x) {
        struct work w = find_work(a, task);
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
        u64 weights[8 * c::CHUNKS];
#pragma unroll
        for (int i = 0; i < 8 * c::CHUNKS; i++) {
            int n = 8 * i + lane % 4 * 2, row = n / HP, head = n % HP;
            const float *from = a.weights + (t.first + row) * a.weight_row + head;
            weights[i] = pack_f32x2(row < t.own && head < a.heads ? from[0] : 0.0f,
                                    row < t.own && head + 1 < a.heads ? from[1] : 0.0f);
        }
        t.team.sync();
        int stride = s.groups == 1 ? 2 : 1, units = 0;
        ring<m::STAGES> here = at;
        here.skip(s.groups == 1 ? group : 0);
        for (int i = s.groups == 1 ? group : 0; i < w.steps; i += stride) {
            mbarrier_wait(smem + m::KEY_FULL + 8 * here.stage, here.phase);
            mbarrier_wait(smem + m::SUM_FULL + 8 * group, full_phase);
            full_phase ^= 1;
            if (MLA_MUTANT != 15)
                tcgen05_fence_after();
            uint2 v = ld_shared<uint2>(smem + m::SCALE + (here.stage * KEYS + key) * 8);
            __syncwarp();
            if (lane == 0)
                mbarrier_arrive(smem + m::KEY_EMPTY + 8 * here.stage);
            unit<BF16, HP>(t, weights, s.chunks, tmem, smem + m::SUM_EMPTY + 8 * group,
                           __uint_as_float(v.x), v.y, w.from + i * KEYS + key);
            here.skip(stride);
            if (a.k_list == 0)
                continue;
            for (int row = quarter; row < t.own; row += 4)
                tighten(t, row);
            if (++units % PERIOD)
                continue;
            t.team.sync(); /* no append is under way, and the flag is written */
            if (ld_shared<int>(t.need + 4 * (t.period & 1)) == t.period)
                select_rows(t);
            t.period++;
        }
        at.skip(w.steps);
        t.team.sync();
        if (a.k_list)
            finish(t, s, w, group);
        t.team.sync();
    }
}

template <bool BF16, int HP>
__global__ void __launch_bounds__(ALL_THREADS, 1)
    index_sm100_kernel(const __grid_constant__ struct index_launch a)
{
    typedef map<BF16> m;
    u32 smem = dynamic_smem(), warp = warp_index();
    if (warp == 12) {
        if (elect_one()) {
            int groups = shape_of<HP>(a).groups;
            for (int i = 0; i < m::STAGES; i++) {
                mbarrier_init(smem + m::KEY_FULL + 8 * i, 4);
                mbarrier_init(smem + m::KEY_EMPTY + 8 * i, 4 * groups);
            }
            mbarrier_init(smem + m::QUERY_FULL, 4);
            for (int i = 0; i < 2; i++) {
                mbarrier_init(smem + m::SUM_FULL + 8 * i, 1);
                mbarrier_init(smem + m::SUM_EMPTY + 8 * i, 4);
            }
            fence_mbarrier_init();
        }
        __syncwarp();
        tcgen05_alloc<1>(smem + m::TMEM, 512);
        tcgen05_relinquish<1>();
    }
    tcgen05_fence_before();
    __syncthreads();
    tcgen05_fence_after();
    u32 tmem = ld_shared<u32>(smem + m::TMEM);
    if (warp < 8) {
        MLA_ROLE("math");
        setmaxnreg_inc<MATH_REGISTERS>();
        math_role<BF16, HP>(a, smem, tmem);
    } else {
        setmaxnreg_dec<OTHER_REGISTERS>();
        if (warp < 12) {
            MLA_ROLE("load");
            load_role<BF16, HP>(a, smem);
        } else if (warp == 12) {
            MLA_ROLE("mma");
            mma_role<BF16, HP>(a, smem, tmem);
        }
    }
    tcgen05_fence_before();
    __syncthreads();
    if (warp == 12) {
        tcgen05_fence_after();
        tcgen05_dealloc<1>(tmem, 512);
    }
}

/* --------------------------------------------------------------------- host */

static int padded_heads(int64_t heads)
{
    int hp = 16;
    while (hp < heads)
        hp *= 2;
    return hp;
}

static bool supports(const mla_context *context, const mla_index_args *args, char *why,
                     size_t bytes)
{
    if (context->sm != 100 && context->sm != 103)
        snprintf(why, bytes, "the device is sm_%d, not sm_100 or sm_103", context->sm);
    else if (args->heads > 256)
        snprintf(why, bytes, "heads %lld, at most 256", (long long)args->heads);
    else
        return true;
    return false;
}

static int group_rows(const mla_index_args *args)
{
    int hp = padded_heads(args->heads);
    return hp < 32 ? GROUP_ROWS : 256 / hp;
}

static int most_rows(const mla_index_args *args)
{
    return group_rows(args) * (args->k_format == MLA_INDEX_FP8 && args->q_format == MLA_INDEX_FP8
                                   ? map<false>::GROUPS
                                   : map<true>::GROUPS);
}

static int buffers(const mla_index_args *args, int rows)
{
    return rows > group_rows(args) ? 1 : 2;
}

template <bool BF16> static const void *kernel_of(int hp)
{
    return hp == 16    ? mla_kernel_address(index_sm100_kernel<BF16, 16>)
           : hp == 32  ? mla_kernel_address(index_sm100_kernel<BF16, 32>)
           : hp == 64  ? mla_kernel_address(index_sm100_kernel<BF16, 64>)
           : hp == 128 ? mla_kernel_address(index_sm100_kernel<BF16, 128>)
                       : mla_kernel_address(index_sm100_kernel<BF16, 256>);
}

static cudaError_t launch(const struct index_launch *a, unsigned blocks, cudaStream_t stream)
{
    bool fp8 = a->q_fp8 && a->k_fp8;
    int hp = padded_heads(a->heads), bytes = fp8 ? map<false>::BYTES : map<true>::BYTES;
    const void *kernel = fp8 ? kernel_of<false>(hp) : kernel_of<true>(hp);
    cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    void *list[] = {(void *)a};
    return error ? error
                 : cudaLaunchKernel(kernel, dim3(blocks), dim3(ALL_THREADS), list, bytes, stream);
}

extern "C" const struct mla_index_engine mla_index_sm100 = {
    "index_logits_sm100", MLA_PROOF_MODEL, supports, most_rows, buffers, launch};
