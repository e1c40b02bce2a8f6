/* SPDX-License-Identifier: Apache-2.0 */
/* State of the modelled tensor instructions beside the engine's: per block its tensor memory, per
 * warp its accumulators and loads under way, per thread its chain of MMAs and groups of bulk
 * copies.
 *
 * Order between tensor instructions of different threads goes through tcgen05's fences. The model
 * keeps a clock of tensor events; a warp knows when one of its lanes last fenced before and after a
 * thread synchronisation, and tensor memory knows when each cell (16 lanes of a column) was last
 * used. An access is in order if its warp has fenced "after" since the last use by somebody else,
 * and, where that was a warp's ld or st, the other warp has fenced "before" since then. */
#ifndef MLA_MODEL_TENSOR_STATE_H
#define MLA_MODEL_TENSOR_STATE_H

#include "engine.h"

enum {
    LANES = 128,
    COLUMNS = 512,
    CELLS = 8,   /* groups of 16 lanes */
    SHARERS = 8, /* warps that reach the same lanes: warp / 4 */
    WGMMA_GROUPS = 16,
    BULK_GROUPS = 32
};

#define MODEL_POISON_WORD 0xFFF7A15Eu /* a quiet NaN that no arithmetic makes */

/* Registers that an instruction fills later, as an array of the kernel. */
void model_poison(void *registers, int words);
/* Whether the first word that is not poison any more is below words; returns it, or words. */
int model_poisoned(const void *registers, int words);
void model_deliver(void *registers, const void *values, int words);

/* ------------------------------------------------------------------ tensor memory */

struct tmem {
    uint32_t data[LANES][COLUMNS];
    uint64_t known[LANES][COLUMNS / 64];
    /* instructions under way, by kind of use; ld and st until their wait */
    uint16_t mma_writes[CELLS][COLUMNS], mma_reads[CELLS][COLUMNS], cp_writes[CELLS][COLUMNS];
    uint16_t ld_reads[CELLS][COLUMNS], st_writes[CELLS][COLUMNS];
    uint32_t mma_shape[CELLS][COLUMNS]; /* of the newest of mma_writes */
    struct model_fiber *mma_by[CELLS][COLUMNS];
    /* clock of the last use */
    uint32_t async_wrote[CELLS][COLUMNS], async_read[CELLS][COLUMNS];
    struct model_fiber *async_by[CELLS][COLUMNS];
    uint32_t ld_time[SHARERS][CELLS][COLUMNS], st_time[SHARERS][CELLS][COLUMNS];
    /* allocation */
    uint16_t owner[COLUMNS]; /* first column + 1 of the allocation; 0 = free */
    uint16_t length[COLUMNS];
    uint32_t last_alloc;
    bool relinquished;
    int group; /* CTA group of the kernel's tcgen05 instructions, 0 = none yet */
    struct model_at alloc_at;
    /* collective steps of a pair: alloc, dealloc, relinquish, in order */
    uint32_t steps;
    struct model_queue peers;
};

struct wgmma_issue { /* what the four warps of a warpgroup must agree on */
    uint64_t number, a, b;
    uint32_t shape;
};

enum { WGMMA_LOG = 64 };

struct block_state {
    struct tmem *tmem; /* NULL until the first use */
    struct wgmma_issue log[8][WGMMA_LOG];
    bool wgmma_used;
};

/* ------------------------------------------------------------------ warps and threads */

struct accumulator;
struct load;

struct warp_state {
    uint32_t before, after; /* clock of the last tcgen05.fence::before / after of a lane */
    /* tcgen05.ld, st */
    struct load *loads; /* until wait::ld */
    struct model_group ld_group, st_group;
    struct model_chain st_chain;
    int num_stores;
    struct store_mark {
        uint8_t cells;
        uint16_t column, columns;
    } * stores; /* until wait::st */
    int room_stores;
    /* wgmma */
    struct accumulator *accumulators;
    struct model_chain wgmma_chain;
    struct model_group wgmma_groups[WGMMA_GROUPS]; /* by number % WGMMA_GROUPS */
    uint64_t wgmma_group; /* number of the open group; groups from wgmma_done on may be pending */
    uint64_t wgmma_done;
    bool wgmma_open; /* the open group has instructions */
    uint64_t wgmma_issued;
    uint64_t fences, fences_at_wait;
    struct {
        const void *d;
        uint64_t fences;
    } released[16]; /* accumulators given back by a wait, and the fences then */
    int num_released;
    struct model_at at; /* of the last wgmma */
};

struct thread_state {
    struct model_chain mma_chain;
    int mma_issued;   /* mma and cp so far */
    bool uncommitted; /* mma or cp since the last commit */
    struct model_at mma_at;
    struct model_group bulk[BULK_GROUPS];
    uint64_t bulk_group, bulk_done; /* number of the open group; oldest that may be pending */
    bool bulk_open;
    struct model_at bulk_at;
};

struct block_state *model_block_state(struct model_block *block);
struct warp_state *model_warp_state(struct model_warp *warp);
struct thread_state *model_thread_state(struct model_fiber *fiber);

extern uint32_t model_clock; /* tensor events so far */

/* Ends of blocks, by file. */
void model_wgmma_end(struct model_block *block);
void model_tcgen05_end(struct model_block *block);
void model_bulk_end(struct model_block *block);
void model_wgmma_reset(struct warp_state *warp); /* gives memory back without a check */
void model_tcgen05_reset(struct warp_state *warp);

/* Fails unless the modelled GPU's sm is in [low, high]. */
void model_needs_sm(int low, int high, const char *what, struct model_at at);

#endif
