/* SPDX-License-Identifier: Apache-2.0 */
/* Absorbed decode on sm_90a (wgmma, TMA) over all keys of plain caches that lie in boxes. A tile is
 * 64 rows, pairs of query token and head of a request; a work is a tile and a split of its keys.
 * Persistent blocks, one an SM, of three warpgroups (mqa_roles.cuh), none of which only brings:
 *
 *   warpgroup  registers  duty
 *   0          184        finds works; scores and softmax, 448 columns of the queries in registers
 *   1, 2       160        P·V, 256 columns of the output each; bring queries and keys
 *
 * Shared memory, bytes
 *   Q       the two tiles of queries that are not held in registers     16384
 *   K       three stages of 64 keys x 512                              196608
 *           two ninth tiles: rope, then P                               16384
 *   factors, ends of rows, notes, barriers: 3 KB
 *
 * Each warp of 1 and 2 asks, with TMA, for one tile of 64 columns of the item that is to follow in a
 * stage, once the four have read what was there; the last warp of 2 for the ninth tile too. Of works
 * they know the one that they are in and, from the queries on, the next. */
#ifndef MLA_CUDA_SM90_MQA_DENSE_CUH
#define MLA_CUDA_SM90_MQA_DENSE_CUH

#include "mqa_decode_work.cuh"
#include "mqa_roles.cuh"
#include "ptx/launch.cuh"
#include "ptx/tma.cuh"

static const int DENSE_THREADS = 384;
static const int SCORE_REGISTERS = 184, VALUE_REGISTERS = 160;
static_assert(SCORE_REGISTERS + 2 * VALUE_REGISTERS <= 3 * 168, "registers at launch");

template <class S> struct dense_bring {
    const struct mla_decode90_args *g;

    static const u32 shared_bytes = S::shared_bytes;

    /* What a warp of VALUES remembers: the work and item that it asks for next; how many items from
     * VALUES' on it has asked for, and ninth tiles of them; the page ids of 32 boxes of keys of that
     * work, a lane each, from block `base` on. */
    struct asks {
        u32 work = 0, i = 0, items = 0, ninths = 0;
        int base = -1, page = 0;
    };

    /* SCORES: warp 0 finds work `number`; false: there is none. */
    __device__ __forceinline__ bool find(u32 smem, u32 number) const
    {
        const u32 slot = number % S::SLOTS, note = smem + S::works_at + slot * NOTE_BYTES;
        const int index = (int)(blockIdx.x + number * gridDim.x);
        const bool there = index < g->works;
        mbarrier_wait(smem + S::work_free + slot * 8, (number / S::SLOTS & 1) ^ 1);
        if (there) {
            struct work w;
            const struct span s = find_decode_work<false, false>(*g, index, 0, &w);
            struct decode_note n = note_of(g->a, w, s);
            /* Blocks of which every row sees all keys. */
            const int limit = n.limit - n.first + (g->a.causal ? w.token0 : 0);
            n.boxes = min(n.boxes, max(0, limit) / KEYS);
            n.number = (int)number;
            if (elect_one())
                write_note(note, n);
        } else if (elect_one()) {
            st_shared(note, -1);
        }
        release(smem + S::work_full + slot * 8);
        return there;
    }

    /* SCORES, before work `works`: the one behind it is found too. */
    __device__ __forceinline__ void begin(u32 smem, u32 works) const
    {
        if (warp_index() != 0)
            return;
        if (works == 0 && !find(smem, 0))
            return;
        const u32 note = smem + S::works_at + works % S::SLOTS * NOTE_BYTES;
        if (works == 0 || ld_shared<int>(note + NOTE_STEPS) >= 0)
            find(smem, works + 1);
    }

    /* One thread: 64 columns of a box of keys; tile 8: rope. */
    __device__ __forceinline__ void ask_box(int tile, u32 at, u32 bar, int slot, int page) const
    {
        if (S::TILES == 9 && tile == 8)
            tma_load_3d(at, &g->rope, bar, 0, slot, page);
        else
            tma_load_3d(at, &g->latent, bar, tile * 64, slot, page);
    }

    /* A warp: a tile of item i of a work, to shared memory. valid: where the block's bits go, or
     * 0. */
    __device__ __forceinline__ void ask(u32 note, u32 i, int tile, u32 at, u32 bar, u32 valid,
                                        struct asks *s) const
    {
        const struct mla_mqa_cache &c = g->a.cache;
        if (i == 0) {
            const int row =
                ld_shared<int>(note + NOTE_Q_START) * g->a.heads + ld_shared<int>(note + NOTE_ROW0);
            if (elect_one()) {
                mbarrier_arrive_expect_tx(bar, TILE_BYTES);
                tma_load_2d(at, &g->q, bar, tile * 64, row);
            }
            others_arrive(bar);
            __syncwarp();
            return;
        }
        const int step = (int)i - 1, each = g->box_rows == KEYS       ? 1
                                            : g->box_rows == KEYS / 2 ? 2
                                                                      : 4;
        const int first = ld_shared<int>(note + NOTE_FIRST);
        if (c.page_size && (s->base < 0 || (step - s->base + 1) * each > 32)) {
            const int pos = first + step * KEYS + (int)(threadIdx.x % 32) * g->box_rows;
            const int column = page_column(&c, pos);
            s->base = step;
            s->page = -1; /* that and others that do not exist: zeros */
            if (pos < first + ld_shared<int>(note + NOTE_SEEN) && column < c.max_pages)
                s->page = ld_shared<const int32_t *>(note + NOTE_PAGES)[column];
        }
        if (valid) {
            u64 bits = 0;
#pragma unroll 1
            for (int b = 0; b < each; b++) {
                const int page = __shfl_sync(~0u, s->page, (step - s->base) * each + b);
                if (!c.page_size || (page >= 0 && page < c.num_pages))
                    bits |= (~(u64)0 >> (KEYS - g->box_rows)) << (b * g->box_rows);
            }
            if (elect_one())
                st_shared(valid, bits);
        }
        if (elect_one())
            mbarrier_arrive_expect_tx(bar, TILE_BYTES);
#pragma unroll 1
        for (int b = 0; b < each; b++) {
            int slot = first + step * KEYS + b * g->box_rows;
            const int page =
                c.page_size ? __shfl_sync(~0u, s->page, (step - s->base) * each + b) : 0;
            slot += c.page_size ? -page_column(&c, slot) * c.page_size
                                : ld_shared<int>(note + NOTE_KV_START);
            if (elect_one())
                ask_box(tile, at + (u32)(b * g->box_rows) * 128, bar, slot, page);
        }
        others_arrive(bar);
        __syncwarp();
    }

    /* VALUES: `read` items (0, 1) before `now` have been read. Each warp asks for its tile of items
     * that are known, up to three from now on, the last warp of half 1 for ninth tiles too, up to
     * two. A ninth tile is free when the item two before has been read. */
    __device__ __forceinline__ void refill(u32 smem, const item_place<S> &now, int half, u32 known,
                                           u32 read, struct asks *s) const
    {
        const u32 free = smem + (half ? S::right_free : S::left_free);
        const int tile = (int)warp_index() % 4 + half * 4;
        s->items -= read;
        s->ninths -= read;
        for (;;) {
            if (tile == 7 && s->ninths < s->items && s->ninths < 2) {
                const item_place<S> to = now.ahead(s->ninths);
                const u32 bar = smem + S::k_rope + to.ninth.stage * 8;
                /* Two back: the stage after this, a round ago. */
                const ring<S::STAGES> before = to.ahead(S::STAGES - 2).in;
                if (MLA_MUTANT != 9) {
                    mbarrier_wait(smem + S::left_free + before.stage * 8, before.phase ^ 1);
                    mbarrier_wait(smem + S::right_free + before.stage * 8, before.phase ^ 1);
                }
                if (S::TILES == 9)
                    ask(smem + S::works_at + s->work % S::SLOTS * NOTE_BYTES, s->i - 1, 8,
                        smem + S::ninths_at + to.ninth.stage * TILE_BYTES, bar, 0, s);
                else if (arrives())
                    mbarrier_arrive(bar);
                __syncwarp();
                s->ninths++;
            }
            if (s->items == S::STAGES)
                return;
            /* The next item. */
            u32 note = 0;
            for (;; s->work++, s->i = 0, s->base = -1) {
                if (s->work >= known)
                    return;
                note = smem + S::works_at + s->work % S::SLOTS * NOTE_BYTES;
                const int steps = ld_shared<int>(note + NOTE_STEPS);
                if (steps < 0)
                    return;
                if (steps > 0 && (int)s->i <= steps)
                    break;
            }
            const item_place<S> to = now.ahead(s->items);
            if (MLA_MUTANT != 1)
                mbarrier_wait(free + to.in.stage * 8, to.in.phase ^ 1);
            ask(note, s->i, tile, smem + S::k_at + to.in.stage * S::stage_bytes + tile * TILE_BYTES,
                smem + (half ? S::k_right : S::k_left) + to.in.stage * 8,
                tile == 3 ? smem + S::valid_at + (to.in.phase * S::STAGES + to.in.stage) * 8 : 0,
                s);
            s->i++;
            s->items++;
        }
    }
};

template <class T, class S>
__global__ void __launch_bounds__(DENSE_THREADS, 1)
    dense90_kernel(const __grid_constant__ struct mla_decode90_args g)
{
    const u32 smem = dynamic_smem();
    const u32 warp = warp_index();
    const dense_bring<S> bring = {&g};
    if (warp == 0 && elect_one()) {
        init_role_barriers<S>(smem, 4, 1);
    }
    __syncthreads();
    griddep_launch_dependents(); /* combine waits for the end of this grid all the same */
    if (warp < 4) {
        setmaxnreg_inc<SCORE_REGISTERS>();
        MLA_ROLE("scores");
        attend_scores<T, S>(g.a, bring, smem);
    } else {
        setmaxnreg_dec<VALUE_REGISTERS>();
        MLA_ROLE("values");
        attend_values<T, S, 256>(g.a, bring, g.wide_stores, smem, (int)warp / 4 - 1);
    }
}

template <class T, int ROPE> static struct mla_mqa_tile dense_tile()
{
    typedef role_shape<8 + ROPE / 64, 7, 3> S;
    return {mla_kernel_address((dense90_kernel<T, S>)), dense_bring<S>::shared_bytes, DENSE_THREADS,
            1};
}

#endif
