/* SPDX-License-Identifier: Apache-2.0 */
/* The indexer of sm_90 for prefill: fp8 queries and keys, up to 64 heads, full tiles of query rows.
 * index_logits.cu takes all other calls.
 *
 *     I[t,s] = k_scale[s] · sum_h W[t,h] · ReLU(sum_d q[t,h,d] · k[s,d])
 *
 * Roles, 20 warps (registers after setmaxnreg: 0-15 112, 16-19 32)
 *   0-15   math, a warpgroup for every 128 columns (heads of 2 or 4 query rows): its queries and
 *          weights, wgmma, ReLU, weights, sum over heads, floor, append; its rows' lists
 *   16-19  load: keys, scales and page lookups (cp.async), 32 keys of 128 each
 *
 * A tile is 8 query rows of 64 heads or 16 of 32, whose keys all warpgroups read from the same
 * stages. A warpgroup takes 128 keys in two products of 64 keys x 128 columns, 64 accumulators a
 * thread; while one multiplies, others add up their heads. A warpgroup waits for another one only
 * where it is ahead by all stages.
 *
 * Candidates. Each warp appends to a segment of its own: its place is a register.
 * Up to 4 K keys (and at least 2048) everything is appended. When a segment is nearly full, the
 * warpgroup selects the row's K largest, and only what is better comes in from then on: later keys
 * have larger indices, so that an equal score is no better. The list is exact whatever the floor
 * did in between.
 * Where lists by index are all that is wanted and 4 bytes for each of a tile's keys have room in a
 * row's buffers (up to 12 K keys), scores are stored in order of keys instead: index_dense.cuh.
 *
 * Shared memory, bytes
 *   queries, bitmap of a list     4 x 16384
 *   keys                          7 x 16384
 *   scale and seen of keys        7 x 1024
 *   selection                     4 x 8448
 *   tallies of rows               16 x 32
 *   barriers and small things     320
 *   half of the weights           4 x 320
 *   total                         223296     of 232448
 *
 * Barriers (count)              arrives                         waits
 *   key full, per stage (4)     load warps, after their fence   math
 *   key empty (16)              math warps, products complete   load
 *   named 1-4                   a warpgroup                     the same
 *
 * Cycles of 128 keys for 8 rows of 64 heads (from instruction rates):
 *   wgmma    8 products x 256 = 2048
 *   SMEM     8 x (A 64 + B 128) = 1536
 *   max and add  128 x 512, half of them each: 512 and 256; fma 512
 *   issue    8 x about 230 a scheduler = 1840
 *   L2       16 KB: 8 bytes a cycle
 * The tensor cores bound it by a little.
 *
 * fp8 products: see index_logits.cu. */
#include "index_tile.h"

#include "../element.cuh"
#include "../index_stream.cuh"
#include "../ptx/launch.cuh"
#include "../ptx/wgmma.cuh"
#include "index_dense.cuh"

static const int TILE_THREADS = 640, LOAD_WARP = 16;
static const int TILE_MATH = 112, TILE_LOAD = 32;
static_assert(4 * TILE_MATH + TILE_LOAD <= 5 * 96, "registers that a launch of 640 threads gives");
static const int COLUMNS = 128; /* of a warpgroup */

static const int SEGMENTS = 4, PIECES = SEGMENTS + 1;

/* Words of a row's tally, in shared memory: items of the segments, of what was kept, where that
 * begins in the row's buffer, and the keys that the row sees. */
enum { TALLY_KEPT = 16, TALLY_AT = 20, TALLY_LOW = 24, TALLY_HIGH = 28, TALLY_BYTES = 32 };

namespace tile
{
static const int STAGES = 7, LAG = 4; /* copies under way before a stage is handed on */
static const int ROWS = 16;           /* of a tile, at most */
static const int QUERY = 0, QUERY_SIZE = COLUMNS * DIM;
static const int KEY = QUERY + 4 * QUERY_SIZE, KEY_SIZE = KEYS * DIM;
static const int SCALE = KEY + STAGES * KEY_SIZE;
static const int SELECT = SCALE + STAGES * KEYS * 8, SELECT_SIZE = 8448;
static const int TALLY = SELECT + 4 * SELECT_SIZE;
static const int SMALL = TALLY + ROWS * TALLY_BYTES;
static const int NEED = SMALL;       /* of a warpgroup: a segment is full */
static const int CLEAR = SMALL + 32; /* 2 words a warpgroup: keys that all of its rows see */
static const int FLOOR = SMALL + 64; /* of each row: better scores are candidates; NaN: all are */
static const int KEY_FULL = FLOOR + 4 * ROWS, KEY_EMPTY = KEY_FULL + 8 * STAGES;
static const int WEIGHT = SMALL + 320, WEIGHT_SIZE = 320; /* of a warpgroup */
static const int BYTES = WEIGHT + 4 * WEIGHT_SIZE;
static_assert(BYTES == 223296 && KEY_EMPTY + 8 * STAGES <= BYTES, "as the top says");
static_assert(KEY % 1024 == 0 && QUERY_SIZE % 1024 == 0, "swizzle atoms");
static_assert(SELECT_SIZE >= KTH_BYTES && SELECT_SIZE >= SELECT_BYTES, "both selections");
static_assert(4 * MAP_WORDS <= QUERY_SIZE, "a bitmap where the queries were");
} // namespace tile

/* A row's candidates (any/list.cuh). It has a place in two buffers, `buffer` items apart, for K
 * kept items and then two segments of `length` in each. */
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
    template <class TEAM>
    __device__ __forceinline__ void sample(const TEAM &team, u32 *least, u32 *most) const
    {
#pragma unroll
        for (int i = 0; i < PIECES; i++) {
            u32 n = count(i), at = (u32)((uint64_t)team.rank() * n / TEAM::THREADS);
            u32 score = n ? (u32)(piece(i)[at] >> 32) : 0;
            *least = n ? min(*least, score) : *least;
            *most = max(*most, score);
        }
    }
    template <class TEAM, class F>
    __device__ __forceinline__ void each(const TEAM &team, const F &f) const
    {
        const int threads = TEAM::THREADS, batch = 8;
#pragma unroll 1
        for (int i = 0; i < PIECES; i++) {
            int n = count(i);
            const uint64_t *from = piece(i);
#pragma unroll 1
            for (int first = 0; first < n; first += 2 * batch * threads) {
                uint4 v[batch];
                int at = first + 2 * team.rank();
#pragma unroll
                for (int j = 0; j < batch; j++)
                    v[j] = at + 2 * j * threads < n ? *(const uint4 *)(from + at + 2 * j * threads)
                                                    : make_uint4(0, 0, 0, 0);
#pragma unroll
                for (int j = 0; j < batch; j++) {
                    int k = at + 2 * j * threads;
                    f(k < n, (uint64_t)v[j].y << 32 | v[j].x);
                    f(k + 1 < n, (uint64_t)v[j].w << 32 | v[j].z);
                }
            }
        }
    }
};

__device__ __forceinline__ struct row_items row_of(const struct index_launch &a, u32 smem, int row)
{
    int64_t place = (int64_t)blockIdx.x * INDEX_TILE_BUFFERS * a.rows + row;
    int kept = (a.k_list + 1) & ~1;
    return {a.items + place * a.capacity, smem + tile::TALLY + row * TALLY_BYTES,
            a.rows * a.capacity, kept, (a.capacity - kept) / 2 & ~1};
}

/* Where the scores of a tile's row lie in order of keys, if all of them have room in its buffers
 * and the list is all that is wanted. */
__device__ __forceinline__ bool dense_tile(const struct index_launch &a, const struct work &w)
{
    int room = min(INDEX_TILE_BUFFERS * (2 * a.capacity / KEYS), 32 * MAP_WORDS / KEYS);
    return a.parts == 1 && a.ascending && !a.scores && w.steps <= room;
}

/* ------------------------------------------------------------------------------------- load */

__device__ __forceinline__ void tile_keys(const struct index_launch &a, const struct work &w,
                                          u32 smem, int stage, int pos0)
{
    int lane = threadIdx.x % 32, part = lane % 8;
    u32 to = smem + tile::KEY + stage * tile::KEY_SIZE;
    u32 scales = smem + tile::SCALE + stage * KEYS * 8;
    int i = threadIdx.x / 32 - LOAD_WARP, mine = pos0 + 32 * i + lane;
    const char *scale = NULL, *from = NULL; /* of the lane's own key; it copies parts of all 32 */
    if (mine < w.to)
        from = find_key(a, *w.r, w.pages, mine, &scale);
    u32 at = scales + (32 * i + lane) * 8;
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
    if (a.page_size == 0 && a.wide && a.dim == DIM && pos0 + 32 * i + 32 <= w.to) {
        const char *row = a.k + (w.r->first_key + pos0 + 32 * i + lane / 8) * a.k_row + 16 * part;
#pragma unroll
        for (int j = 0; j < 8; j++, row += 4 * a.k_row)
            cp_async_cg_16(to + swizzled(32 * i + 4 * j + lane / 8, part), row, 16);
        return;
    }
    int bytes = max(0, min(16, a.dim - 16 * part));
#pragma unroll 2
    for (int j = 0; j < 8; j++) {
        int key = 32 * i + 4 * j + lane / 8;
        const char *row = (const char *)__shfl_sync(0xFFFFFFFFu, (uint64_t)from, 4 * j + lane / 8);
        u32 there = to + swizzled(key, part);
        if (a.wide)
            cp_async_cg_16(there, row && bytes ? row + 16 * part : a.k, row ? bytes : 0);
        else
            st_shared(there,
                      row ? gather16<false>(row, part, a.dim, true) : make_uint4(0, 0, 0, 0));
    }
}

__device__ __forceinline__ void tile_load_role(const struct index_launch &a, u32 smem)
{
    ring<tile::STAGES> at, ready;
    int under_way = 0;
    for (int task = blockIdx.x; task < a.tiles * a.parts; task += gridDim.x) {
        struct work w = find_work(a, task);
        for (int i = 0; i < w.steps; i++) {
            mbarrier_wait(smem + tile::KEY_EMPTY + 8 * at.stage,
                          at.phase ^ (MLA_MUTANT == 33 ? 0 : 1));
            tile_keys(a, w, smem, at.stage, w.from + i * KEYS);
            cp_async_commit();
            at.next();
            if (++under_way > tile::LAG) {
                if (MLA_MUTANT == 34)
                    cp_async_wait_group<tile::LAG + 1>();
                else
                    cp_async_wait_group<tile::LAG>();
                hand_on(smem + tile::KEY_FULL + 8 * ready.stage);
                ready.next();
                under_way--;
            }
        }
    }
    cp_async_wait_group<0>();
    for (; under_way; under_way--) {
        hand_on(smem + tile::KEY_FULL + 8 * ready.stage);
        ready.next();
    }
}

/* ------------------------------------------------------------------------------------- math */

/* A warpgroup's part of a tile. */
template <int HP> struct part {
    static const int ROWS = COLUMNS / HP, BLOCKS = HP / 8; /* of 8 columns, a row */
    static const int KEPT_WEIGHTS = 16; /* in registers: half; two for each 8 columns */
    struct warpgroup team;
    int group, row0;    /* its first row: in the tile */
    int64_t first;      /* in the tensors */
    uint64_t *to[ROWS]; /* the end of the warp's segment */
    int steps;          /* to come */
    u32 below;          /* lanes */
};

/* The warpgroup's queries, column n is head n % HP of row n / HP, into its own shared memory. */
template <int HP>
__device__ __forceinline__ void tile_queries(const struct index_launch &a, const struct part<HP> &p,
                                             int own, u32 smem)
{
    u32 to = smem + tile::QUERY + p.group * tile::QUERY_SIZE;
    for (int i = threadIdx.x % TEAM; i < COLUMNS * 8; i += TEAM) {
        int part = i % 8, n = i / 8, row = n / HP, head = n % HP;
        bool there = row < own && head < a.heads;
        const char *from = a.q + (p.first + row) * a.q_row + head * a.q_head;
        if (a.q_wide) {
            int bytes = there ? max(0, min(16, a.dim - 16 * part)) : 0;
            cp_async_cg_16(to + swizzled(n, part), bytes ? from + 16 * part : a.q, bytes);
        } else {
            st_shared(to + swizzled(n, part),
                      there ? gather16<false>(from, part, a.dim, true) : make_uint4(0, 0, 0, 0));
        }
    }
    cp_async_wait_all();
    if (MLA_MUTANT != 31)
        fence_proxy_async();
    p.team.sync();
}

/* Halved where ReLU comes doubled. */
__device__ __forceinline__ float tile_weight(const struct index_launch &a, bool there, int64_t row,
                                             int head)
{
    float w = there && head < a.heads ? a.weights[row * a.weight_row + head] : 0.0f;
    return head % 16 < 8 ? w : 0.5f * w;
}

template <int HP>
__device__ __forceinline__ void begin_tile(const struct index_launch &a, const struct work &w,
                                           u32 smem, struct part<HP> &p,
                                           float (&weights)[part<HP>::KEPT_WEIGHTS])
{
    int rank = threadIdx.x % TEAM, warp = rank / 32;
    int own = max(0, min(part<HP>::ROWS, w.rows - p.row0));
    p.first = w.t0 + p.row0;
    int from = 0, to = own == part<HP>::ROWS ? INT32_MAX : 0;
    p.steps = w.steps;
    struct row_items x = row_of(a, smem, p.row0);
#pragma unroll
    for (int r = 0; r < part<HP>::ROWS; r++) {
        int low = 0, high = 0;
        if (r < own)
            row_range(a, *w.r, p.first + r, &low, &high);
        from = max(from, low);
        to = min(to, high);
        p.to[r] = x.segment(warp) + r * a.capacity;
        if (rank == r) {
            st_shared(x.tally + TALLY_BYTES * r, make_uint4(0, 0, 0, 0));
            st_shared(x.tally + TALLY_BYTES * r + 16, make_uint4(0, 0, low, high));
            st_shared(smem + tile::FLOOR + 4 * (p.row0 + r), 0x7FC00000u);
        }
    }
    if (rank == 0) {
        st_shared(smem + tile::NEED + 4 * p.group, 0u);
        st_shared(smem + tile::CLEAR + 8 * p.group, make_uint2(from, to));
    }
#pragma unroll
    for (int i = 0; i < part<HP>::KEPT_WEIGHTS; i++) {
        int n = i / 2 * 8 + rank % 4 * 2 + i % 2, row = n / HP, head = n % HP;
        weights[i] = tile_weight(a, row < own, p.first + row, head);
    }
    if (rank < COLUMNS / 2) { /* those of the other half: of lanes t, 16 each */
        int i = rank % 16, t = rank / 16, n = COLUMNS / 2 + i / 2 * 8 + t * 2 + i % 2;
        st_shared(smem + tile::WEIGHT + tile::WEIGHT_SIZE * p.group + 80 * t + 4 * i,
                  tile_weight(a, n / HP < own, p.first + n / HP, n % HP));
    }
    tile_queries(a, p, own, smem);
}

/* 64 keys x 128 columns, complete on return. */
__device__ __forceinline__ void tile_multiply(float (&d)[COLUMNS / 2], u32 keys, u32 queries)
{
    u64 k = wgmma_desc(keys, 0, 1024, 128), q = wgmma_desc(queries, 0, 1024, 128);
    wgmma_bind(d);
    if (MLA_MUTANT != 35)
        wgmma_fence();
#pragma unroll
    for (int i = 0; i < DIM / 32; i++)
        wgmma_ss<e4m3, COLUMNS>(d, desc_advance(k, 32 * i), desc_advance(q, 32 * i),
                                i > 0 || MLA_MUTANT == 36);
    wgmma_commit();
    if (MLA_MUTANT != 37)
        wgmma_wait<0>();
    wgmma_bind(d);
}

/* The thread's columns of each row for keys g and g + 8 of the warp's 16: sums[row][2 half + j].
 * ReLU is a maximum in one half of the columns and x + |x| = 2 ReLU(x) in the other, so that two
 * pipes share it; both keep NaN, and fp8 products are never infinite. */
template <int HP>
__device__ __forceinline__ void tile_sums(const float (&d)[COLUMNS / 2],
                                          const float (&weights)[part<HP>::KEPT_WEIGHTS],
                                          u32 others, int half, float (&sums)[part<HP>::ROWS][4])
{
    const int blocks = part<HP>::BLOCKS, kept = part<HP>::KEPT_WEIGHTS / 2;
#pragma unroll
    for (int r = 0; r < part<HP>::ROWS; r++) {
        float s[4] = {};
#pragma unroll
        for (int i = r * blocks; i < (r + 1) * blocks; i += 2) {
            float4 w;
            if (i < kept)
                w = make_float4(weights[2 * i], weights[2 * i + 1], weights[2 * i + 2],
                                weights[2 * i + 3]);
            else
                w = ld_shared<float4>(others + 8 * (i - kept));
            const float *x = d + 4 * i;
            s[0] = fmaf(relu(x[0]), w.x, s[0]);
            s[1] = fmaf(relu(x[1]), w.y, s[1]);
            s[2] = fmaf(relu(x[2]), w.x, s[2]);
            s[3] = fmaf(relu(x[3]), w.y, s[3]);
            s[0] = fmaf(x[4] + fabsf(x[4]), w.z, s[0]);
            s[1] = fmaf(x[5] + fabsf(x[5]), w.w, s[1]);
            s[2] = fmaf(x[6] + fabsf(x[6]), w.z, s[2]);
            s[3] = fmaf(x[7] + fabsf(x[7]), w.w, s[3]);
        }
        sums[r][2 * half] = s[0] + s[1];
        sums[r][2 * half + 1] = s[2] + s[3];
    }
}

/* Partial sums of 4 keys in 4 neighbouring lanes -> the sum of key t%4 in lane t. */
__device__ __forceinline__ float quad_sum(const float (&v)[4])
{
    bool odd = threadIdx.x & 1, upper = threadIdx.x & 2;
    float w[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        float give = upper ? v[i] : v[i + 2], keep = upper ? v[i + 2] : v[i];
        w[i] = keep + __shfl_xor_sync(0xFFFFFFFFu, give, 2);
    }
    float give = odd ? w[0] : w[1], keep = odd ? w[1] : w[0];
    return keep + __shfl_xor_sync(0xFFFFFFFFu, give, 1);
}

/* One finished score a lane: stored where scores are wanted, and in its place, or appended if it is
 * better than the row's floor. */
template <int HP, bool LOGITS, bool DENSE>
__device__ __forceinline__ void tile_emit(const struct index_launch &a, struct part<HP> &p, int r,
                                          float scale, float sum, int pos, bool seen, bool clear,
                                          u32 smem)
{
    float score = scale * sum;
    if (!clear || LOGITS) {
        uint2 v = ld_shared<uint2>(smem + tile::TALLY + TALLY_LOW + (p.row0 + r) * TALLY_BYTES);
        int low = (int)v.x;
        seen = seen && pos >= low && pos < (int)v.y;
        if (LOGITS && seen)
            a.logits[(p.first + r) * a.logits_row + pos - (a.relative ? low : 0)] = score;
        if (LOGITS && a.k_list == 0)
            return;
    }
    if (DENSE) {
        *(float *)p.to[r] = seen ? dense_score(scale, sum) : __uint_as_float(UNSEEN);
        p.to[r] += KEYS / 2;
        return;
    }
    float floor = ld_shared<float>(smem + tile::FLOOR + 4 * (p.row0 + r));
    u32 votes = __ballot_sync(0xFFFFFFFFu, seen & !(score <= floor));
    if (votes == 0)
        return;
    if (seen & !(score <= floor))
        p.to[r][__popc(votes & p.below)] = item_of(score, pos);
    p.to[r] += __popc(votes);
}

/* The warps' counts into the tallies. */
template <int HP>
__device__ __forceinline__ void tell_counts(const struct index_launch &a, const struct part<HP> &p,
                                            const struct row_items &x)
{
    int warp = threadIdx.x / 32 % 4;
    if (threadIdx.x % 32 == 0) {
#pragma unroll
        for (int r = 0; r < part<HP>::ROWS; r++)
            st_shared(x.tally + TALLY_BYTES * r + 4 * warp,
                      (u32)(p.to[r] - x.segment(warp) - r * a.capacity));
    }
}

/* The rows that have a nearly full segment keep their K largest, and floors rise. */
template <int ROWS>
__device__ __noinline__ void tile_select(const struct index_launch &a, u32 smem, int group,
                                         int limit)
{
    const struct warpgroup team = {smem + tile::SELECT + group * tile::SELECT_SIZE, 1 + group};
    for (int row = group * ROWS; row < (group + 1) * ROWS; row++) {
        struct row_items x = row_of(a, smem, row);
        int most = 0;
        for (int i = 0; i < SEGMENTS; i++)
            most = max(most, x.count(i));
        if (most <= limit)
            continue;
        uint64_t floor = 0;
        if (x.total() > a.k_list) {
            floor = kth_item(team, x, MLA_MUTANT == 38 ? a.k_list / 2 : a.k_list);
            if (team.rank() == 0)
                st_shared(smem + tile::FLOOR + 4 * row, score_of((u32)(floor >> 32)));
        }
        uint64_t *to = x.free_place();
        int kept = gather(team, x, floor, to);
        if (team.rank() == 0) {
            st_shared(x.tally, make_uint4(0, 0, 0, 0));
            st_shared(x.tally + TALLY_KEPT, make_uint2(kept, (u32)(to - x.p)));
        }
        team.sync();
    }
}

/* After every PERIOD of 128 keys: segments that might not take those to come are emptied. */
template <int HP>
__device__ __forceinline__ void end_period(const struct index_launch &a, u32 smem,
                                           struct part<HP> &p)
{
    struct row_items x = row_of(a, smem, p.row0);
    int warp = threadIdx.x / 32 % 4, limit = x.length - 32 * min(PERIOD, p.steps);
    bool full = false;
#pragma unroll
    for (int r = 0; r < part<HP>::ROWS; r++)
        full = full || p.to[r] - x.segment(warp) - r * a.capacity > limit;
    u32 need = smem + tile::NEED + 4 * p.group;
    if (full && threadIdx.x % 32 == 0)
        st_shared(need, 1u);
    p.team.sync(); /* the flag is written */
    if (ld_shared<u32>(need) == 0)
        return;
    tell_counts(a, p, x);
    p.team.sync();
    if (threadIdx.x % TEAM == 0)
        st_shared(need, 0u); /* behind a barrier that all pass before they look again */
    tile_select<part<HP>::ROWS>(a, smem, p.group, limit);
#pragma unroll
    for (int r = 0; r < part<HP>::ROWS; r++)
        p.to[r] =
            x.segment(warp) + r * a.capacity + ld_shared<int>(x.tally + TALLY_BYTES * r + 4 * warp);
}

/* Lists of the warpgroup's rows, or a part's candidates for mla_index_merge. */
template <int ROWS>
__device__ __noinline__ void tile_lists(const struct index_launch &a, u32 smem, int group,
                                        int first, int rows)
{
    const struct warpgroup team = {smem + tile::SELECT + group * tile::SELECT_SIZE, 1 + group};
    u32 scratch = smem + tile::QUERY + group * tile::QUERY_SIZE;
    for (int row = group * ROWS; row < min((group + 1) * ROWS, rows); row++) {
        struct row_items x = row_of(a, smem, row);
        if (a.parts == 1) {
            int low = ld_shared<int>(x.tally + TALLY_LOW);
            write_list(team, x, a.k_list, low, ld_shared<int>(x.tally + TALLY_HIGH), x.free_place(),
                       scratch, row_list(a, first + row, low));
            continue;
        }
        int64_t place = (int64_t)blockIdx.x * INDEX_TILE_BUFFERS * a.rows + row;
        uint64_t *to = x.free_place(), floor = 0;
        if (x.total() > a.k_list)
            floor = kth_item(team, x, a.k_list);
        int n = gather(team, x, floor, to), buffer = to != x.p;
        if (team.rank() < INDEX_TILE_BUFFERS)
            a.counts[place + team.rank() * a.rows] = team.rank() == buffer ? n : 0;
    }
    team.sync();
}

/* Lists of the warpgroup's rows, whose scores all lie in their places. */
template <int ROWS>
__device__ __noinline__ void tile_dense_lists(const struct index_launch &a, u32 smem, int group,
                                              int first, int rows, int from, int steps)
{
    const struct warpgroup team = {smem + tile::SELECT + group * tile::SELECT_SIZE, 1 + group};
    u32 scratch = smem + tile::QUERY + group * tile::QUERY_SIZE;
    for (int row = group * ROWS; row < min((group + 1) * ROWS, rows); row++) {
        struct row_items x = row_of(a, smem, row);
        struct dense_row d = {(const float *)x.p,
                              (const float *)(x.p + x.buffer),
                              KEYS * steps,
                              2 * a.capacity / KEYS * KEYS,
                              from,
                              0};
        int low = ld_shared<int>(x.tally + TALLY_LOW);
        dense_list(team, d, a.k_list, low, ld_shared<int>(x.tally + TALLY_HIGH), scratch,
                   row_list(a, first + row, low));
    }
    team.sync();
}

/* 128 keys. */
template <bool DENSE, int HP, bool LOGITS>
__device__ __forceinline__ void
tile_step(const struct index_launch &a, u32 smem, struct part<HP> &p, ring<tile::STAGES> &at,
          const float (&weights)[part<HP>::KEPT_WEIGHTS], u32 queries, u32 others, int key, int pos)
{
    float d[COLUMNS / 2], sums[part<HP>::ROWS][4];
    u32 keys = smem + tile::KEY + at.stage * tile::KEY_SIZE;
    mbarrier_wait(smem + tile::KEY_FULL + 8 * at.stage, at.phase);
    tile_multiply(d, keys, queries);
    tile_sums<HP>(d, weights, others, 0, sums);
    tile_multiply(d, keys + 64 * 128, queries);
    uint2 v = ld_shared<uint2>(smem + tile::SCALE + (at.stage * KEYS + key) * 8);
    __syncwarp(); /* the keys have been read */
    if (lane_arrives())
        mbarrier_arrive(smem + tile::KEY_EMPTY + 8 * at.stage);
    tile_sums<HP>(d, weights, others, 1, sums);
    uint2 all = ld_shared<uint2>(smem + tile::CLEAR + 8 * p.group);
    bool clear = pos - key >= (int)all.x && pos - key <= (int)all.y - KEYS;
#pragma unroll
    for (int r = 0; r < part<HP>::ROWS; r++)
        tile_emit<HP, LOGITS, DENSE>(a, p, r, __uint_as_float(v.x), quad_sum(sums[r]), pos,
                                     v.y != 0, clear, smem);
    at.next();
}

template <int HP, bool LOGITS>
__device__ __forceinline__ void tile_math_role(const struct index_launch &a, u32 smem)
{
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
    int key = 64 * (lane / 2 % 2) + 16 * warp + 8 * (lane % 2) + lane / 4;
    bool lists = !LOGITS || a.k_list;
    struct part<HP> p;
    p.group = warp_index() / 4;
    p.row0 = p.group * part<HP>::ROWS;
    p.team = {smem + tile::SELECT + p.group * tile::SELECT_SIZE, 1 + p.group};
    p.below = (1u << lane) - 1;
    u32 queries = smem + tile::QUERY + p.group * tile::QUERY_SIZE;
    u32 others = smem + tile::WEIGHT + tile::WEIGHT_SIZE * p.group + 80 * (lane % 4);
    ring<tile::STAGES> at;
    for (int task = blockIdx.x; task < a.tiles * a.parts; task += gridDim.x) {
        struct work w = find_work(a, task);
        float weights[part<HP>::KEPT_WEIGHTS];
        begin_tile(a, w, smem, p, weights);
        int pos = w.from + key;
        if (lists && dense_tile(a, w)) {
            struct row_items x = row_of(a, smem, p.row0);
            int split = 2 * a.capacity / KEYS;
            for (int r = 0; r < part<HP>::ROWS; r++)
                p.to[r] = (uint64_t *)((float *)(x.p + r * a.capacity) + key);
#pragma unroll 1
            for (int i = 0; i < w.steps; i++, pos += KEYS) {
                if (i == split) /* on in the second buffer */
#pragma unroll
                    for (int r = 0; r < part<HP>::ROWS; r++)
                        p.to[r] += x.buffer - KEYS / 2 * split;
                tile_step<true, HP, LOGITS>(a, smem, p, at, weights, queries, others, key, pos);
            }
            p.team.sync(); /* products are complete in all warps: the queries may go */
            tile_dense_lists<part<HP>::ROWS>(a, smem, p.group, w.t0, w.rows, w.from, w.steps);
            continue;
        }
#pragma unroll 1
        while (p.steps > 0) {
            tile_step<false, HP, LOGITS>(a, smem, p, at, weights, queries, others, key, pos);
            pos += KEYS;
            if (--p.steps % PERIOD == 0 && lists)
                end_period(a, smem, p);
        }
        tell_counts(a, p, row_of(a, smem, p.row0));
        p.team.sync(); /* products are complete in all warps: the queries may go */
        if (lists)
            tile_lists<part<HP>::ROWS>(a, smem, p.group, w.t0, w.rows);
    }
}

template <int HP, bool LOGITS>
__global__ void __launch_bounds__(TILE_THREADS, 1)
    index_sm90_tile_kernel(const __grid_constant__ struct index_launch a)
{
    u32 smem = dynamic_smem(), warp = warp_index();
    if (warp == LOAD_WARP) {
        if (elect_one()) {
            for (int i = 0; i < tile::STAGES; i++) {
                mbarrier_init(smem + tile::KEY_FULL + 8 * i, 4 * LANES_THAT_ARRIVE);
                mbarrier_init(smem + tile::KEY_EMPTY + 8 * i, 16 * LANES_THAT_ARRIVE);
            }
            fence_mbarrier_init();
        }
        __syncwarp();
    }
    __syncthreads();
    if (warp < LOAD_WARP) {
        MLA_ROLE("math");
        setmaxnreg_inc<TILE_MATH>();
        tile_math_role<HP, LOGITS>(a, smem);
    } else {
        MLA_ROLE("load");
        setmaxnreg_dec<TILE_LOAD>();
        tile_load_role(a, smem);
    }
}

/* --------------------------------------------------------------------- host */

cudaError_t mla_index_sm90_tiles(const struct index_launch *a, int heads, unsigned blocks,
                                 cudaStream_t stream)
{
    const void *kernel;
    if (a->logits)
        kernel = heads == 32 ? mla_kernel_address(index_sm90_tile_kernel<32, true>)
                             : mla_kernel_address(index_sm90_tile_kernel<64, true>);
    else
        kernel = heads == 32 ? mla_kernel_address(index_sm90_tile_kernel<32, false>)
                             : mla_kernel_address(index_sm90_tile_kernel<64, false>);
    cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, tile::BYTES);
    void *list[] = {(void *)a};
    return error ? error
                 : cudaLaunchKernel(kernel, dim3(blocks), dim3(TILE_THREADS), list, tile::BYTES,
                                    stream);
}
