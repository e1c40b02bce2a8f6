/* SPDX-License-Identifier: Apache-2.0 */
/* tcgen05 of the functional model: tensor memory's allocation, loads and stores. Results of ld
 * reach the kernel's registers at wait::ld, poison before. mma, cp and commit: tcgen05_mma.cc. */
#include "count.h"
#include "tensor.h"
#include "tmem.h"
#include "trace.h"

#include <stdlib.h>
#include <string.h>

static const u32 FULL = 0xFFFFFFFF;

/* ------------------------------------------------------------------ allocation */

struct allocation {
    int group;
    u32 address, columns; /* of shared memory for alloc, of tensor memory for dealloc */
    const char *what;
    struct model_at at;
    u32 step; /* of the pair; set by the collective */
};

static void check_lanes(struct model_warp *warp, void *const args[32])
{
    const struct allocation *first = (const struct allocation *)args[0];
    for (int lane = 1; lane < 32; lane++) {
        const struct allocation *x = (const struct allocation *)args[lane];
        if (x->address != first->address || x->columns != first->columns)
            model_fail(first->at,
                       "%s: lane %d of warp %d has 0x%x and %u columns, lane 0 0x%x and %u",
                       first->what, lane, warp->index, x->address, x->columns, first->address,
                       first->columns);
    }
}

/* Group 2: a warp of each CTA of the pair takes every step, and waits for the other. */
static void take_step(struct model_warp *warp, void *const args[32])
{
    struct allocation *first = (struct allocation *)args[0];
    if (first->group != 2)
        return;
    if (model_block_of(warp->block->rank ^ 1) == NULL)
        model_fail(first->at, "%s: cta_group::2, but the cluster has no CTA %u", first->what,
                   warp->block->rank ^ 1);
    struct tmem *t = model_tmem(warp->block, 2, first->what, first->at);
    t->steps++;
    for (int lane = 0; lane < 32; lane++)
        ((struct allocation *)args[lane])->step = t->steps;
    model_wake_all(&t->peers);
}

static void wait_for_peer(const struct allocation *x)
{
    if (x->group != 2)
        return;
    struct model_block *block = model_self->block, *peer = model_block_of(block->rank ^ 1);
    struct tmem *other = model_tmem(peer, 0, x->what, x->at);
    while (other->steps < x->step) {
        if (peer->exited)
            model_fail(x->at, "%s: cta_group::2, but the pair's other CTA has exited", x->what);
        model_sleep(&other->peers, x->what, block, NULL, x->at);
    }
}

static void columns_legal(const struct allocation *x)
{
    if (x->columns < 32 || x->columns > 512 || (x->columns & (x->columns - 1)) != 0)
        model_fail(x->at, "%s: columns: got %u, want 32, 64, 128, 256 or 512", x->what, x->columns);
}

static void alloc(struct model_warp *warp, uint32_t mask, void *const args[32])
{
    (void)mask;
    const struct allocation *x = (const struct allocation *)args[0];
    check_lanes(warp, args);
    take_step(warp, args);
    columns_legal(x);
    struct tmem *t = model_tmem(warp->block, x->group, x->what, x->at);
    if (t->relinquished)
        model_fail(x->at, "%s: after tcgen05.relinquish_alloc_permit", x->what);
    if (t->last_alloc != 0 && x->columns > t->last_alloc)
        model_fail(x->at, "%s: columns: got %u after %u, want no increase", x->what, x->columns,
                   t->last_alloc);
    u32 first = 0;
    for (u32 i = 0; i < COLUMNS && i - first < x->columns; i++)
        if (t->owner[i] != 0)
            first = i + 1;
    if (first + x->columns > COLUMNS)
        model_fail(x->at,
                   "%s: columns: got %u, but no so many are free side by side: it would wait "
                   "for ever",
                   x->what, x->columns);
    for (u32 i = first; i < first + x->columns; i++)
        t->owner[i] = (uint16_t)(first + 1);
    t->length[first] = (uint16_t)x->columns;
    t->last_alloc = x->columns;
    t->alloc_at = x->at;
    for (u32 l = 0; l < LANES; l++)
        for (u32 i = first; i < first + x->columns; i++) {
            t->data[l][i] = MODEL_POISON_WORD;
            t->known[l][i / 64] &= ~((uint64_t)1 << (i % 64));
        }
    struct model_place place = model_place_of(x->address, 4, 4, x->what, x->at);
    if (place.block != warp->block)
        model_fail(x->at, "%s: destination: got 0x%x, want the CTA's own shared memory", x->what,
                   x->address);
    model_check_write(&place.block->shared, place.offset, 4, x->what, x->at);
    memcpy(place.block->shared.data + place.offset, &first, 4);
}

void model_tcgen05_alloc(int group, u32 smem_dst, u32 columns, struct model_at at)
{
    struct allocation x = {group, smem_dst, columns, "tcgen05.alloc", at, 0};
    model_needs_sm(100, 119, x.what, at);
    model_collective(x.what, FULL, alloc, &x, at);
    wait_for_peer(&x);
}

static void relinquish(struct model_warp *warp, uint32_t mask, void *const args[32])
{
    (void)mask;
    const struct allocation *x = (const struct allocation *)args[0];
    model_tmem(warp->block, x->group, x->what, x->at)->relinquished = true;
}

void model_tcgen05_relinquish(int group, struct model_at at)
{
    struct allocation x = {group, 0, 0, "tcgen05.relinquish_alloc_permit", at, 0};
    model_needs_sm(100, 119, x.what, at);
    model_collective(x.what, FULL, relinquish, &x, at);
}

static void dealloc(struct model_warp *warp, uint32_t mask, void *const args[32])
{
    (void)mask;
    const struct allocation *x = (const struct allocation *)args[0];
    check_lanes(warp, args);
    take_step(warp, args);
    columns_legal(x);
    struct tmem *t = model_tmem(warp->block, x->group, x->what, x->at);
    u32 first = x->address & 0xFFFF;
    if (x->address >> 16 != 0 || first >= COLUMNS || t->owner[first] != first + 1 ||
        t->length[first] != x->columns)
        model_fail(x->at, "%s: address 0x%x, %u columns: no such allocation", x->what, x->address,
                   x->columns);
    model_tmem_idle(warp->block, first, x->columns, x->what, x->at);
    for (u32 i = first; i < first + x->columns; i++)
        t->owner[i] = 0;
}

void model_tcgen05_dealloc(int group, u32 taddr, u32 columns, struct model_at at)
{
    struct allocation x = {group, taddr, columns, "tcgen05.dealloc", at, 0};
    model_needs_sm(100, 119, x.what, at);
    model_collective(x.what, FULL, dealloc, &x, at);
    wait_for_peer(&x);
}

void model_tcgen05_fence_before(struct model_at at)
{
    model_needs_sm(100, 119, "tcgen05.fence::before_thread_sync", at);
    model_warp_state(model_self->warp)->before = ++model_clock;
}

void model_tcgen05_fence_after(struct model_at at)
{
    model_needs_sm(100, 119, "tcgen05.fence::after_thread_sync", at);
    model_warp_state(model_self->warp)->after = ++model_clock;
}

/* ------------------------------------------------------------------ ld and st */

enum { SHAPE_32X32B, SHAPE_16X64B, SHAPE_16X128B, SHAPE_16X256B };

static const char *const names[2][4] = {{"tcgen05.ld.32x32b", "tcgen05.ld.16x64b",
                                         "tcgen05.ld.16x128b", "tcgen05.ld.16x256b"},
                                        {"tcgen05.st.32x32b", "tcgen05.st.16x64b",
                                         "tcgen05.st.16x128b", "tcgen05.st.16x256b"}};

/* Lane and column, from the first on, of register r of thread t. */
static void place_of_register(int shape, u32 t, u32 r, u32 *lane, u32 *column)
{
    switch (shape) {
    case SHAPE_32X32B:
        *lane = t, *column = r;
        break;
    case SHAPE_16X64B:
        *lane = t / 4 + 8 * (t & 1), *column = 2 * r + (t >> 1 & 1);
        break;
    case SHAPE_16X128B:
        *lane = t / 4 + 8 * (r & 1), *column = 4 * (r / 2) + t % 4;
        break;
    default:
        *lane = t / 4 + 8 * (r >> 1 & 1), *column = 8 * (r / 4) + 2 * (t % 4) + (r & 1);
    }
}

struct transfer { /* of one lane */
    int shape, registers;
    u32 taddr;
    u32 *load;
    const u32 *store;
    struct model_at at;
};

/* The rectangle, after all checks of the address. */
static struct cells rectangle(struct model_warp *warp, void *const args[32], const char *what,
                              u32 *first_lane)
{
    static const int units[4] = {1, 1, 2, 4}; /* registers of .x1 */
    static const int widths[4] = {1, 2, 4, 8};
    const struct transfer *x = (const struct transfer *)args[0];
    for (int lane = 1; lane < 32; lane++)
        if (((const struct transfer *)args[lane])->taddr != x->taddr)
            model_fail(x->at, "%s: lane %d has address 0x%x, lane 0 0x%x: want one", what, lane,
                       ((const struct transfer *)args[lane])->taddr, x->taddr);
    model_tmem(warp->block, 0, what, x->at);
    u32 partition = (u32)warp->index % 4 * 32, lane = x->taddr >> 16;
    bool half = x->shape != SHAPE_32X32B;
    /* a lane below 32 counts from the warp's own partition */
    if (lane < 32)
        lane += partition;
    if (lane < partition || lane >= partition + 32)
        model_fail(x->at, "%s: lane %u: warp %d reaches lanes %u to %u", what, x->taddr >> 16,
                   warp->index, partition, partition + 31);
    if (lane % 32 != 0 && !(half && lane % 32 == 16))
        model_fail(x->at, "%s: lane %u: want a multiple of %d", what, x->taddr >> 16,
                   half ? 16 : 32);
    u32 count = (u32)(x->registers / units[x->shape]);
    if (x->registers % units[x->shape] != 0 || (count & (count - 1)) != 0 || x->registers > 128)
        model_fail(x->at, "%s: got %d registers, want %d times a power of two, at most 128", what,
                   x->registers, units[x->shape]);
    *first_lane = lane;
    uint8_t mask = (uint8_t)((half ? 1 : 3) << (lane / 16));
    struct cells c = {warp->block, mask, x->taddr & 0xFFFF, count * (u32)widths[x->shape]};
    return c;
}

struct load { /* a warp's, from ld to wait::ld */
    struct load *next;
    struct cells cells;
    int shape, registers;
    u32 lane;
    u32 *destination[32];
    struct model_at at;
    u32 values[32][128];
};

static void ld_run(struct model_op *op)
{
    struct load *load = *(struct load **)op->data;
    const struct tmem *t = model_block_state(load->cells.block)->tmem;
    for (u32 thread = 0; thread < 32; thread++)
        for (int r = 0; r < load->registers; r++) {
            u32 lane, column;
            place_of_register(load->shape, thread, (u32)r, &lane, &column);
            load->values[thread][r] = t->data[load->lane + lane][load->cells.column + column];
        }
}

static void ld(struct model_warp *warp, uint32_t mask, void *const args[32])
{
    (void)mask;
    const struct transfer *x = (const struct transfer *)args[0];
    const char *what = names[0][x->shape];
    struct warp_state *state = model_warp_state(warp);
    u32 lane;
    struct cells c = rectangle(warp, args, what, &lane);
    model_tmem_check(&c, USE_LD, 0, what, x->at);
    model_tmem_known(&c, lane, x->shape == SHAPE_32X32B ? 32 : 16, what, x->at);
    struct load *load = (struct load *)malloc(sizeof *load);
    if (load == NULL)
        model_fail(x->at, "%s: out of memory", what);
    load->cells = c;
    load->shape = x->shape;
    load->registers = x->registers;
    load->lane = lane;
    load->at = x->at;
    for (int i = 0; i < 32; i++) {
        load->destination[i] = ((const struct transfer *)args[i])->load;
        model_poison(load->destination[i], x->registers);
    }
    struct load **last = &state->loads;
    while (*last != NULL)
        last = &(*last)->next;
    load->next = NULL;
    *last = load;
    model_tmem_start(&c, USE_LD, 0);
    model_tally(COUNT_TMEM_LD, 128 * (uint64_t)x->registers);
    struct model_op *op = model_op_new(what, ld_run, sizeof load, x->at);
    memcpy(op->data, &load, sizeof load);
    model_op_in_group(op, &state->ld_group);
    model_op_issue(op);
}

void model_tcgen05_ld(int shape, u32 *r, int registers, u32 taddr, struct model_at at)
{
    struct transfer x = {shape, registers, taddr, r, NULL, at};
    model_needs_sm(100, 119, names[0][shape], at);
    if (model_tracing)
        model_trace(TRACE_TMEM_LD, at)->bytes = 128 * (uint32_t)registers;
    model_collective(names[0][shape], FULL, ld, &x, at);
}

static void wait_ld(struct model_warp *warp, uint32_t mask, void *const args[32])
{
    (void)mask;
    (void)args;
    struct warp_state *state = model_warp_state(warp);
    model_group_finish(&state->ld_group);
    while (state->loads != NULL) {
        struct load *load = state->loads;
        for (int i = 0; i < 32; i++) {
            int word = model_poisoned(load->destination[i], load->registers);
            if (word < load->registers)
                model_fail(load->at,
                           "%s: register %d of lane %d was written before tcgen05.wait::ld",
                           names[0][load->shape], word, i);
            model_deliver(load->destination[i], load->values[i], load->registers);
        }
        model_tmem_finish(&load->cells, USE_LD, &warp->lanes[0]);
        state->loads = load->next;
        free(load);
    }
}

void model_tcgen05_wait_ld(struct model_at at)
{
    model_needs_sm(100, 119, "tcgen05.wait::ld", at);
    if (model_tracing)
        model_trace(TRACE_TMEM_WAIT_LD, at);
    model_collective("tcgen05.wait::ld", FULL, wait_ld, NULL, at);
}

struct store_work {
    struct cells cells;
    int shape, registers;
    u32 lane;
    u32 values[32][128];
};

static void st_run(struct model_op *op)
{
    struct store_work *w = (struct store_work *)op->data;
    struct tmem *t = model_block_state(w->cells.block)->tmem;
    for (u32 thread = 0; thread < 32; thread++)
        for (int r = 0; r < w->registers; r++) {
            u32 lane, column;
            place_of_register(w->shape, thread, (u32)r, &lane, &column);
            t->data[w->lane + lane][w->cells.column + column] = w->values[thread][r];
        }
}

static void st(struct model_warp *warp, uint32_t mask, void *const args[32])
{
    (void)mask;
    const struct transfer *x = (const struct transfer *)args[0];
    const char *what = names[1][x->shape];
    struct warp_state *state = model_warp_state(warp);
    u32 lane;
    struct cells c = rectangle(warp, args, what, &lane);
    model_tmem_check(&c, USE_ST, 0, what, x->at);
    struct model_op *op = model_op_new(what, st_run, sizeof(struct store_work), x->at);
    struct store_work *w = (struct store_work *)op->data;
    w->cells = c;
    w->shape = x->shape;
    w->registers = x->registers;
    w->lane = lane;
    for (int i = 0; i < 32; i++)
        memcpy(w->values[i], ((const struct transfer *)args[i])->store, 4 * (size_t)x->registers);
    model_tmem_start(&c, USE_ST, 0);
    model_tally(COUNT_TMEM_ST, 128 * (uint64_t)x->registers);
    for (u32 l = lane; l < lane + (x->shape == SHAPE_32X32B ? 32 : 16); l++)
        model_tmem_mark_known(c.block, l, c.column, c.columns);
    if (state->num_stores == state->room_stores) {
        int room = state->room_stores == 0 ? 16 : 2 * state->room_stores;
        void *more = realloc(state->stores, (size_t)room * sizeof *state->stores);
        if (more == NULL)
            model_fail(x->at, "%s: out of memory", what);
        state->stores = (struct warp_state::store_mark *)more;
        state->room_stores = room;
    }
    struct warp_state::store_mark *mark = &state->stores[state->num_stores++];
    mark->cells = c.mask;
    mark->column = (uint16_t)c.column;
    mark->columns = (uint16_t)c.columns;
    state->at = x->at;
    model_op_in_chain(op, &state->st_chain);
    model_op_in_group(op, &state->st_group);
    model_op_issue(op);
}

void model_tcgen05_st(int shape, u32 taddr, const u32 *r, int registers, struct model_at at)
{
    struct transfer x = {shape, registers, taddr, NULL, r, at};
    model_needs_sm(100, 119, names[1][shape], at);
    if (model_tracing)
        model_trace(TRACE_TMEM_ST, at)->bytes = 128 * (uint32_t)registers;
    model_collective(names[1][shape], FULL, st, &x, at);
}

static void wait_st(struct model_warp *warp, uint32_t mask, void *const args[32])
{
    (void)mask;
    (void)args;
    struct warp_state *state = model_warp_state(warp);
    model_group_finish(&state->st_group);
    for (int i = 0; i < state->num_stores; i++) {
        const struct warp_state::store_mark *mark = &state->stores[i];
        struct cells c = {warp->block, mark->cells, mark->column, mark->columns};
        model_tmem_finish(&c, USE_ST, &warp->lanes[0]);
    }
    state->num_stores = 0;
}

void model_tcgen05_wait_st(struct model_at at)
{
    model_needs_sm(100, 119, "tcgen05.wait::st", at);
    if (model_tracing)
        model_trace(TRACE_TMEM_WAIT_ST, at);
    model_collective("tcgen05.wait::st", FULL, wait_st, NULL, at);
}

/* ------------------------------------------------------------------ ends */

void model_tcgen05_reset(struct warp_state *state)
{
    while (state->loads != NULL) {
        struct load *load = state->loads;
        state->loads = load->next;
        free(load);
    }
}

void model_tcgen05_end(struct model_block *block)
{
    const struct tmem *t = model_block_state(block)->tmem;
    if (t == NULL || t->group == 0)
        return;
    for (int w = 0; w < block->warps; w++) {
        const struct warp_state *state = model_warp_state(&block->warp[w]);
        if (state->loads != NULL)
            model_fail(state->loads->at, "%s: warp %d has exited without tcgen05.wait::ld",
                       names[0][state->loads->shape], w);
        if (state->num_stores != 0)
            model_fail(state->at, "tcgen05.st: warp %d has exited without tcgen05.wait::st", w);
    }
    for (int i = 0; i < block->threads; i++) {
        const struct thread_state *state = model_thread_state(&block->fiber[i]);
        if (state->uncommitted)
            model_fail(
                state->mma_at,
                "tcgen05: thread %d has exited without a tcgen05.commit after its last mma or "
                "cp",
                i);
    }
    model_tmem_idle(block, 0, COLUMNS, "tcgen05: the CTA has exited", t->alloc_at);
    for (u32 i = 0; i < COLUMNS; i++)
        if (t->owner[i] != 0)
            model_fail(t->alloc_at, "tcgen05.alloc: %u columns at column %u were never deallocated",
                       t->length[t->owner[i] - 1], t->owner[i] - 1u);
}
