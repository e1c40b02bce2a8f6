/* SPDX-License-Identifier: Apache-2.0 */
/* Checks of tensor memory. Cells of 16 lanes of a column are the grain of order; single words that
 * of initialisation. */
#include "tmem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct tmem *model_tmem(struct model_block *block, int group, const char *what, struct model_at at)
{
    struct block_state *state = model_block_state(block);
    if (state->tmem == NULL) {
        state->tmem = (struct tmem *)calloc(1, sizeof *state->tmem);
        if (state->tmem == NULL)
            model_fail(at, "%s: out of memory", what);
    }
    struct tmem *t = state->tmem;
    if (group != 0 && t->group != 0 && t->group != group)
        model_fail(at, "%s: cta_group::%d in a kernel that has used cta_group::%d", what, group,
                   t->group);
    if (group != 0)
        t->group = group;
    return t;
}

static struct tmem *of(struct model_block *block)
{
    return model_block_state(block)->tmem;
}

void model_tmem_allocated(const struct cells *c, const char *what, struct model_at at)
{
    const struct tmem *t = of(c->block);
    if (c->column + c->columns > COLUMNS)
        model_fail(at, "%s: columns %u to %u: tensor memory has columns 0 to 511", what, c->column,
                   c->column + c->columns - 1);
    for (uint32_t i = c->column; i < c->column + c->columns; i++)
        if (t->owner[i] == 0)
            model_fail(at, "%s: columns %u to %u of CTA %u: column %u is not allocated", what,
                       c->column, c->column + c->columns - 1, c->block->rank, i);
}

void model_tmem_known(const struct cells *c, uint32_t lane, uint32_t lanes, const char *what,
                      struct model_at at)
{
    const struct tmem *t = of(c->block);
    for (uint32_t l = lane; l < lane + lanes; l++)
        for (uint32_t i = c->column; i < c->column + c->columns;) {
            uint64_t missing = ~t->known[l][i / 64] >> (i % 64);
            if (missing == 0) {
                i = (i | 63) + 1;
                continue;
            }
            i += (uint32_t)__builtin_ctzll(missing);
            if (i < c->column + c->columns)
                model_fail(at, "%s: lane %u, column %u of CTA %u was never written", what, l, i,
                           c->block->rank);
        }
}

void model_tmem_mark_known(struct model_block *block, uint32_t lane, uint32_t column,
                           uint32_t columns)
{
    uint64_t *known = of(block)->known[lane];
    for (uint32_t i = column; i < column + columns;) {
        uint32_t end = (i | 63) + 1 < column + columns ? (i | 63) + 1 : column + columns;
        uint64_t bits = end - i == 64 ? ~(uint64_t)0 : (((uint64_t)1 << (end - i)) - 1) << (i % 64);
        known[i / 64] |= bits;
        i = end;
    }
}

struct check {
    const struct cells *c;
    const char *what;
    struct model_at at;
};

static void lanes_text(char *text, size_t bytes, uint32_t cell, uint32_t column,
                       const struct check *k)
{
    snprintf(text, bytes, "lanes %u to %u, column %u of CTA %u", cell * 16, cell * 16 + 15, column,
             k->c->block->rank);
}

/* No count in the row of marks. */
static void none_under_way(const uint16_t *marks, uint32_t cell, const char *other,
                           const struct check *k)
{
    uint32_t any = 0;
    for (uint32_t i = 0; i < k->c->columns; i++)
        any |= marks[k->c->column + i];
    if (any == 0)
        return;
    for (uint32_t i = k->c->column; i < k->c->column + k->c->columns; i++)
        if (marks[i] != 0) {
            char text[80];
            lanes_text(text, sizeof text, cell, i, k);
            model_fail(k->at, "%s: %s: %s", k->what, text, other);
        }
}

static const char *const mma_writes = "an mma that writes it is under way (wait for its commit)";
static const char *const mma_reads = "an mma that reads it is under way (wait for its commit)";
static const char *const cp_writes = "a tcgen05.cp that writes it is under way";
static const char *const ld_reads = "a tcgen05.ld of it is under way (no tcgen05.wait::ld yet)";
static const char *const st_writes = "a tcgen05.st to it is under way (no tcgen05.wait::st yet)";

/* Marks by other threads than the running one, or of MMAs of another shape. */
static void same_thread(const struct tmem *t, const uint16_t *marks, uint32_t cell, uint32_t shape,
                        const char *other, const struct check *k)
{
    for (uint32_t i = k->c->column; i < k->c->column + k->c->columns; i++) {
        if (marks[i] == 0)
            continue;
        char text[80];
        lanes_text(text, sizeof text, cell, i, k);
        if (t->mma_by[cell][i] != model_self)
            model_fail(k->at, "%s: %s: %s, issued by another thread", k->what, text, other);
        if (shape != 0 && t->mma_shape[cell][i] != shape)
            model_fail(k->at, "%s: %s: %s, and of another shape or kind, so not in order", k->what,
                       text, other);
    }
}

static uint32_t newest(const uint32_t *times, const struct cells *c)
{
    uint32_t time = 0;
    for (uint32_t i = c->column; i < c->column + c->columns; i++)
        time = time < times[i] ? times[i] : time;
    return time;
}

static uint32_t place_of(const uint32_t *times, const struct cells *c, uint32_t time)
{
    for (uint32_t i = c->column; i < c->column + c->columns; i++)
        if (times[i] == time)
            return i;
    return c->column;
}

/* Earlier ld or st by other warps: they fenced before, this warp after. */
static void fenced_warps(const uint32_t times[SHARERS][CELLS][COLUMNS], uint32_t cell,
                         const char *other, const struct check *k)
{
    struct model_block *block = k->c->block;
    uint32_t after = model_warp_state(model_self->warp)->after;
    for (uint32_t s = 0; s * 4 + cell / 2 < (uint32_t)block->warps; s++) {
        struct model_warp *warp = &block->warp[s * 4 + cell / 2];
        if (warp == model_self->warp)
            continue;
        uint32_t time = newest(times[s][cell], k->c);
        if (time == 0)
            continue;
        uint32_t before = model_warp_state(warp)->before;
        if (before > time && after > time)
            continue;
        char text[80];
        lanes_text(text, sizeof text, cell, place_of(times[s][cell], k->c, time), k);
        if (before <= time)
            model_fail(k->at,
                       "%s: %s: warp %d has not executed tcgen05.fence::before_thread_sync since "
                       "its %s",
                       k->what, text, warp->index, other);
        model_fail(k->at,
                   "%s: %s: no tcgen05.fence::after_thread_sync here since the %s of warp %d",
                   k->what, text, other, warp->index);
    }
}

static void fenced_async(const struct tmem *t, const uint32_t *times, uint32_t cell, bool own,
                         const char *other, const struct check *k)
{
    uint32_t time = newest(times, k->c);
    if (time == 0 || model_warp_state(model_self->warp)->after > time)
        return;
    for (uint32_t i = k->c->column; i < k->c->column + k->c->columns; i++) {
        if (times[i] < model_warp_state(model_self->warp)->after || times[i] == 0)
            continue;
        if (own && t->async_by[cell][i] == model_self)
            continue;
        char text[80];
        lanes_text(text, sizeof text, cell, i, k);
        model_fail(k->at, "%s: %s: no tcgen05.fence::after_thread_sync here since %s", k->what,
                   text, other);
    }
}

void model_tmem_check(const struct cells *c, enum tmem_use use, uint32_t shape, const char *what,
                      struct model_at at)
{
    const struct tmem *t = of(c->block);
    struct check k = {c, what, at};
    model_tmem_allocated(c, what, at);
    for (uint32_t g = 0; g < CELLS; g++) {
        if ((c->mask >> g & 1) == 0)
            continue;
        if (use == USE_LD || use == USE_ST) {
            none_under_way(t->mma_writes[g], g, mma_writes, &k);
            none_under_way(t->cp_writes[g], g, cp_writes, &k);
            fenced_async(t, t->async_wrote[g], g, false, "an mma or cp wrote it", &k);
            fenced_warps(t->st_time, g, "st", &k);
            if (use == USE_LD) {
                none_under_way(t->st_writes[g], g, st_writes, &k);
            } else {
                none_under_way(t->mma_reads[g], g, mma_reads, &k);
                none_under_way(t->ld_reads[g], g, ld_reads, &k);
                fenced_async(t, t->async_read[g], g, false, "an mma read it", &k);
                fenced_warps(t->ld_time, g, "ld", &k);
            }
            continue;
        }
        /* mma and cp: those of one thread run in order */
        none_under_way(t->st_writes[g], g, st_writes, &k);
        same_thread(t, t->mma_writes[g], g, use == USE_CP_WRITE ? UINT32_MAX : shape, mma_writes,
                    &k);
        same_thread(t, t->cp_writes[g], g, 0, cp_writes, &k);
        fenced_async(t, t->async_wrote[g], g, true, "another thread's mma or cp wrote it", &k);
        fenced_warps(t->st_time, g, "st", &k);
        if (use != USE_MMA_READ) {
            none_under_way(t->ld_reads[g], g, ld_reads, &k);
            same_thread(t, t->mma_reads[g], g, use == USE_CP_WRITE ? UINT32_MAX : 0, mma_reads, &k);
            fenced_async(t, t->async_read[g], g, true, "another thread's mma read it", &k);
            fenced_warps(t->ld_time, g, "ld", &k);
        }
    }
}

static uint16_t *marks_of(struct tmem *t, enum tmem_use use, uint32_t cell)
{
    switch (use) {
    case USE_LD:
        return t->ld_reads[cell];
    case USE_ST:
        return t->st_writes[cell];
    case USE_MMA_READ:
        return t->mma_reads[cell];
    case USE_MMA_WRITE:
        return t->mma_writes[cell];
    default:
        return t->cp_writes[cell];
    }
}

void model_tmem_start(const struct cells *c, enum tmem_use use, uint32_t shape)
{
    struct tmem *t = of(c->block);
    for (uint32_t g = 0; g < CELLS; g++) {
        if ((c->mask >> g & 1) == 0)
            continue;
        uint16_t *marks = marks_of(t, use, g);
        for (uint32_t i = c->column; i < c->column + c->columns; i++) {
            marks[i]++;
            if (use == USE_MMA_WRITE || use == USE_MMA_READ || use == USE_CP_WRITE)
                t->mma_by[g][i] = model_self;
            if (use == USE_MMA_WRITE)
                t->mma_shape[g][i] = shape;
        }
    }
}

void model_tmem_finish(const struct cells *c, enum tmem_use use, struct model_fiber *by)
{
    struct tmem *t = of(c->block);
    uint32_t now = ++model_clock;
    for (uint32_t g = 0; g < CELLS; g++) {
        if ((c->mask >> g & 1) == 0)
            continue;
        uint16_t *marks = marks_of(t, use, g);
        uint32_t *times = use == USE_MMA_READ ? t->async_read[g] : t->async_wrote[g];
        if (use == USE_LD)
            times = t->ld_time[by->warp->index / 4][g];
        else if (use == USE_ST)
            times = t->st_time[by->warp->index / 4][g];
        for (uint32_t i = c->column; i < c->column + c->columns; i++) {
            marks[i]--;
            times[i] = now;
            if (use != USE_LD && use != USE_ST)
                t->async_by[g][i] = by;
        }
    }
}

void model_tmem_idle(struct model_block *block, uint32_t column, uint32_t columns, const char *what,
                     struct model_at at)
{
    const struct tmem *t = of(block);
    struct cells c = {block, 0xFF, column, columns};
    struct check k = {&c, what, at};
    for (uint32_t g = 0; g < CELLS; g++) {
        none_under_way(t->mma_writes[g], g, mma_writes, &k);
        none_under_way(t->mma_reads[g], g, mma_reads, &k);
        none_under_way(t->cp_writes[g], g, cp_writes, &k);
        none_under_way(t->ld_reads[g], g, ld_reads, &k);
        none_under_way(t->st_writes[g], g, st_writes, &k);
    }
}
