/* SPDX-License-Identifier: Apache-2.0 */
/* TMA of the functional model: boxes of tensor maps and plain bulk copies, each one op. Loads count
 * their bytes on an mbarrier when they have run; stores belong to groups of the issuing thread. */
#include "count.h"
#include "tensor.h"
#include "tensor_map.h"
#include "tensor_state.h"
#include "trace.h"

#include "../tensor_map.h"

#include <string.h>

/* ------------------------------------------------------------------ boxes */

static struct model_tensor_map decode(const struct mla_tensor_map *map, int rank, const char *what,
                                      struct model_at at)
{
    struct model_tensor_map m;
    if ((uintptr_t)map % 64 != 0)
        model_fail(at, "%s: tensor map: got address %p, want a multiple of 64", what,
                   (const void *)map);
    memcpy(&m, map, sizeof m);
    if (m.magic != MODEL_TENSOR_MAP_MAGIC)
        model_fail(at, "%s: tensor map: not one that mla_tensor_map_tiled made", what);
    if (rank != 0 && m.rank != rank)
        model_fail(at, "%s: tensor map: got rank %d, want %d", what, m.rank, rank);
    return m;
}

struct box {
    struct model_tensor_map map;
    int64_t corner[5];
    bool gather;
    int64_t rows[4]; /* of gather4 */
};

static uint32_t box_row_bytes(const struct model_tensor_map *map)
{
    return (uint32_t)map->box[0] * map->element_bytes;
}

static uint32_t box_bytes(const struct box *box)
{
    uint32_t bytes = box_row_bytes(&box->map);
    for (int i = 1; i < box->map.rank; i++)
        bytes *= box->map.box[i];
    return box->gather ? 4 * bytes : bytes;
}

/* From row to row in shared memory: a row narrower than the swizzle leaves the rest of its span
 * alone (seen on an H100). */
static uint32_t box_pitch(const struct model_tensor_map *map)
{
    uint32_t row = box_row_bytes(map);
    return map->swizzle != 0 && row < (uint32_t)map->swizzle ? (uint32_t)map->swizzle : row;
}

/* Bytes of shared memory from the first to the end of the last span. */
static uint32_t box_room(const struct box *box)
{
    return box_bytes(box) / box_row_bytes(&box->map) * box_pitch(&box->map);
}

/* Rows of the box in the order of shared memory: which bytes [first, first + bytes) of row `row`
 * lie in the tensor, and where. */
struct piece {
    char *global;
    uint32_t first, bytes; /* bytes = 0: none */
};

static struct piece piece_of(const struct box *box, uint32_t row)
{
    const struct model_tensor_map *m = &box->map;
    struct piece p = {NULL, 0, 0};
    int64_t place = (int64_t)m->base;
    if (box->gather) {
        int64_t r = box->rows[row];
        if (r < 0 || (uint64_t)r >= m->dims[1])
            return p;
        place += r * (int64_t)m->strides[0];
    } else {
        for (int i = 1; i < m->rank; i++) {
            int64_t c = box->corner[i] + (int64_t)(row % m->box[i]);
            row /= m->box[i];
            if (c < 0 || (uint64_t)c >= m->dims[i])
                return p;
            place += c * (int64_t)m->strides[i - 1];
        }
    }
    int64_t from = box->corner[0], to = from + m->box[0], end = (int64_t)m->dims[0];
    int64_t low = from < 0 ? 0 : from, high = to > end ? end : to;
    if (low >= high)
        return p;
    p.first = (uint32_t)(low - from) * m->element_bytes;
    p.bytes = (uint32_t)(high - low) * m->element_bytes;
    p.global = (char *)(uintptr_t)(place + low * m->element_bytes);
    return p;
}

/* Shared offset of byte i of a box at `start`, a multiple of 16: the swizzle follows the
 * address. */
static uint32_t unit_place(uint32_t start, uint32_t i, int swizzle)
{
    uint32_t address = start + i + MODEL_SHARED_BASE;
    address ^= (address >> 7 & ((uint32_t)(swizzle >> 4) - 1)) << 4;
    return address - MODEL_SHARED_BASE;
}

struct load_work {
    struct box box;
    int targets;
    struct model_place place[MODEL_MAX_CLUSTER];
    uint32_t bar[MODEL_MAX_CLUSTER];
};

static void load(struct model_op *op)
{
    struct load_work *w = (struct load_work *)op->data;
    const struct box *box = &w->box;
    uint32_t row_bytes = box_row_bytes(&box->map), bytes = box_bytes(box);
    int swizzle = box->map.swizzle;
    for (uint32_t row = 0; row < bytes / row_bytes; row++) {
        unsigned char line[256 * 8];
        struct piece p = piece_of(box, row);
        memset(line, 0, row_bytes);
        if (p.bytes != 0)
            memcpy(line + p.first, p.global, p.bytes);
        model_trace_global(op->trace, p.global, p.bytes);
        for (int t = 0; t < w->targets; t++) {
            unsigned char *data = w->place[t].block->shared.data;
            for (uint32_t i = 0; i < row_bytes; i += 16) {
                uint32_t at = row * box_pitch(&box->map) + i;
                uint32_t to = swizzle == 0 ? w->place[t].offset + at
                                           : unit_place(w->place[t].offset, at, swizzle);
                memcpy(data + to, line + i, 16);
            }
        }
    }
    for (int t = 0; t < w->targets; t++)
        model_mbarrier_do_complete_tx(w->bar[t], bytes, op->name, op->at);
}

/* The bytes that a swizzled box touches: whole, as the swizzle stays within 128-byte lines. */
static void box_writes(struct model_op *op, const struct model_place *place, uint32_t bytes)
{
    model_op_writes(op, &place->block->shared, place->offset, bytes);
}

/* bar serves a destination in its own CTA; in a pair it may be the other's. */
static void check_barrier(const struct model_place *place, u32 bar, bool pair, const char *what,
                          struct model_at at)
{
    struct model_place b = model_place_of(bar, 8, 8, what, at);
    if (b.block == place->block)
        return;
    if (!pair)
        model_fail(
            at,
            "%s: barrier 0x%x lies in CTA %u of the cluster, the destination in CTA %u: want "
            "the same (or .cta_group::2)",
            what, bar, b.block->rank, place->block->rank);
    if (b.block->rank / 2 != place->block->rank / 2)
        model_fail(at, "%s: barrier 0x%x lies in CTA %u of the cluster, not of the pair of CTA %u",
                   what, bar, b.block->rank, place->block->rank);
}

/* An H100 answers a box that begins elsewhere with an illegal instruction. */
static void check_corner(const struct box *box, const char *what, struct model_at at)
{
    int64_t bytes = box->corner[0] * box->map.element_bytes;
    if (bytes % 16 != 0)
        model_fail(at, "%s: coordinate 0: got %lld, %lld bytes, want a multiple of 16 bytes", what,
                   (long long)box->corner[0], (long long)bytes);
}

static void issue_load(const struct box *box, u32 dst, u32 bar, bool pair, u16 mask,
                       const char *what, struct model_at at)
{
    uint32_t bytes = box_bytes(box), room = box_room(box);
    if (pair)
        model_needs_sm(100, 119, what, at);
    if (dst % 128 != 0)
        model_fail(at, "%s: destination: got 0x%x, want a multiple of 128", what, dst);
    check_corner(box, what, at);
    if (model_tracing) {
        struct trace_event *ev = model_trace(TRACE_COPY_IN, at);
        ev->bytes += bytes;
        ev->amount |= mask;
    }
    struct model_op *op = model_op_new(what, load, sizeof(struct load_work), at);
    struct load_work *w = (struct load_work *)op->data;
    w->box = *box;
    if (mask == 0) {
        w->place[0] = model_place_of(dst, room, 128, what, at);
        w->bar[0] = bar;
        check_barrier(&w->place[0], bar, pair, what, at);
        w->targets = 1;
    } else {
        for (uint32_t rank = 0; rank < MODEL_MAX_CLUSTER; rank++) {
            if ((mask >> rank & 1) == 0)
                continue;
            if (model_block_of(rank) == NULL)
                model_fail(at, "%s: mask: got 0x%x, but the cluster has no CTA %u", what, mask,
                           rank);
            u32 here = (1u << MODEL_RANK_SHIFT) - 1;
            int t = w->targets++;
            w->place[t] =
                model_place_of((dst & here) | rank << MODEL_RANK_SHIFT, room, 128, what, at);
            w->bar[t] = (bar & here) | rank << MODEL_RANK_SHIFT;
            check_barrier(&w->place[t], w->bar[t], false, what, at);
        }
    }
    model_tally(COUNT_COPIED_IN, (uint64_t)bytes * (uint64_t)w->targets);
    for (int t = 0; t < w->targets; t++)
        box_writes(op, &w->place[t], room);
    model_op_issue(op);
}

void model_tma_prefetch_map(const struct mla_tensor_map *map, struct model_at at)
{
    model_needs_sm(90, 999, "prefetch.tensormap", at);
    decode(map, 0, "prefetch.tensormap", at);
}

void model_tma_load(u32 dst, const struct mla_tensor_map *map, u32 bar, int rank, const int *c,
                    bool pair, u16 mask, struct model_at at)
{
    const char *what = "cp.async.bulk.tensor (load)";
    model_needs_sm(90, 999, what, at);
    model_step();
    struct box box;
    memset(&box, 0, sizeof box);
    box.map = decode(map, rank, what, at);
    for (int i = 0; i < rank; i++)
        box.corner[i] = c[i];
    issue_load(&box, dst, bar, pair, mask, what, at);
}

void model_tma_gather4(u32 dst, const struct mla_tensor_map *map, u32 bar, int col, const int *rows,
                       bool pair, struct model_at at)
{
    const char *what = "cp.async.bulk.tensor.tile::gather4";
    model_needs_sm(100, 119, what, at);
    model_step();
    struct box box;
    memset(&box, 0, sizeof box);
    box.map = decode(map, 2, what, at);
    if (box.map.box[1] != 1)
        model_fail(at, "%s: tensor map: got a box of %d rows, want 1", what, box.map.box[1]);
    box.gather = true;
    box.corner[0] = col;
    for (int i = 0; i < 4; i++)
        box.rows[i] = rows[i];
    issue_load(&box, dst, bar, pair, 0, what, at);
}

/* ------------------------------------------------------------------ stores */

static void in_bulk_group(struct model_op *op)
{
    struct thread_state *state = model_thread_state(model_self);
    state->bulk_open = true;
    state->bulk_at = op->at;
    model_op_in_group(op, &state->bulk[state->bulk_group % BULK_GROUPS]);
    model_op_issue(op);
}

struct store_work {
    struct box box;
    struct model_place place;
};

static void store(struct model_op *op)
{
    struct store_work *w = (struct store_work *)op->data;
    const struct box *box = &w->box;
    const unsigned char *data = w->place.block->shared.data;
    uint32_t row_bytes = box_row_bytes(&box->map), bytes = box_bytes(box);
    int swizzle = box->map.swizzle;
    for (uint32_t row = 0; row < bytes / row_bytes; row++) {
        unsigned char line[256 * 8];
        struct piece p = piece_of(box, row);
        if (p.bytes == 0)
            continue;
        for (uint32_t i = 0; i < row_bytes; i += 16) {
            uint32_t at = row * row_bytes + i;
            uint32_t from =
                swizzle == 0 ? w->place.offset + at : unit_place(w->place.offset, at, swizzle);
            memcpy(line + i, data + from, 16);
        }
        memcpy(p.global, line + p.first, p.bytes);
    }
}

void model_tma_store(const struct mla_tensor_map *map, u32 src, int rank, const int *c,
                     struct model_at at)
{
    const char *what = "cp.async.bulk.tensor (store)";
    model_needs_sm(90, 999, what, at);
    model_step();
    struct trace_event *ev = model_tracing ? model_trace(TRACE_COPY_OUT, at) : NULL;
    struct model_op *op = model_op_new(what, store, sizeof(struct store_work), at);
    struct store_work *w = (struct store_work *)op->data;
    w->box.map = decode(map, rank, what, at);
    for (int i = 0; i < rank; i++)
        w->box.corner[i] = c[i];
    check_corner(&w->box, what, at);
    if (box_pitch(&w->box.map) != box_row_bytes(&w->box.map))
        model_fail(at, "%s: a box narrower than its swizzle: what a GPU reads then was not seen",
                   what);
    for (int i = 0; i < rank; i++) /* an H100 clips stores at the far ends alone */
        if (c[i] < 0)
            model_fail(at, "%s: coordinate %d: got %d, want at least 0", what, i, c[i]);
    uint32_t bytes = box_bytes(&w->box);
    w->place = model_place_of(src, bytes, 128, what, at);
    model_tally(COUNT_COPIED_OUT, bytes);
    if (ev != NULL)
        ev->bytes += bytes;
    if (w->place.block != model_self->block)
        model_fail(at, "%s: source: got 0x%x, want the CTA's own shared memory", what, src);
    model_op_reads(op, &w->place.block->shared, w->place.offset, bytes);
    in_bulk_group(op);
}

/* ------------------------------------------------------------------ plain bytes */

struct bulk_work {
    struct model_place place;
    char *global;
    uint32_t bytes, bar;
};

static void bulk_in(struct model_op *op)
{
    struct bulk_work *w = (struct bulk_work *)op->data;
    memcpy(w->place.block->shared.data + w->place.offset, w->global, w->bytes);
    model_trace_global(op->trace, w->global, w->bytes);
    model_mbarrier_do_complete_tx(w->bar, w->bytes, op->name, op->at);
}

static void bulk_out(struct model_op *op)
{
    struct bulk_work *w = (struct bulk_work *)op->data;
    memcpy(w->global, w->place.block->shared.data + w->place.offset, w->bytes);
}

static struct model_op *bulk(void (*run)(struct model_op *), const char *what, u32 shared,
                             const void *global, u32 bytes, struct model_at at)
{
    model_needs_sm(90, 999, what, at);
    model_step();
    if (bytes % 16 != 0 || bytes == 0 || (uintptr_t)global % 16 != 0 || shared % 16 != 0)
        model_fail(at, "%s: got %u bytes, shared 0x%x, global %p: want multiples of 16", what,
                   bytes, shared, global);
    struct model_op *op = model_op_new(what, run, sizeof(struct bulk_work), at);
    struct bulk_work *w = (struct bulk_work *)op->data;
    w->place = model_place_of(shared, bytes, 16, what, at);
    w->global = (char *)(uintptr_t)global;
    w->bytes = bytes;
    return op;
}

void model_bulk_load(u32 dst, const void *gmem, u32 bytes, u32 bar, struct model_at at)
{
    const char *what = "cp.async.bulk (load)";
    if (model_tracing)
        model_trace(TRACE_COPY_IN, at)->bytes += bytes;
    struct model_op *op = bulk(bulk_in, what, dst, gmem, bytes, at);
    struct bulk_work *w = (struct bulk_work *)op->data;
    w->bar = bar;
    model_tally(COUNT_COPIED_IN, bytes);
    check_barrier(&w->place, bar, false, what, at);
    model_op_writes(op, &w->place.block->shared, w->place.offset, bytes);
    model_op_issue(op);
}

static void bulk_across(struct model_op *op)
{
    struct bulk_work *w = (struct bulk_work *)op->data;
    memcpy(w->place.block->shared.data + w->place.offset, w->global, w->bytes);
    model_mbarrier_do_complete_tx(w->bar, w->bytes, op->name, op->at);
}

void model_bulk_copy_cluster(u32 dst, u32 src, u32 bytes, u32 bar, struct model_at at)
{
    const char *what = "cp.async.bulk (shared memory of the cluster)";
    if (model_tracing)
        model_trace(TRACE_COPY_IN, at)->bytes += bytes;
    const struct model_place from = model_place_of(src, bytes, 16, what, at);
    if (from.block != model_self->block)
        model_fail(at, "%s: source: got 0x%x, want the CTA's own shared memory", what, src);
    unsigned char *data = from.block->shared.data + from.offset;
    struct model_op *op = bulk(bulk_across, what, dst, data, bytes, at);
    struct bulk_work *w = (struct bulk_work *)op->data;
    w->bar = bar;
    model_tally(COUNT_COPIED_IN, bytes);
    check_barrier(&w->place, bar, false, what, at);
    model_op_reads(op, &from.block->shared, from.offset, bytes);
    model_op_writes(op, &w->place.block->shared, w->place.offset, bytes);
    model_op_issue(op);
}

void model_bulk_store(void *gmem, u32 src, u32 bytes, struct model_at at)
{
    const char *what = "cp.async.bulk (store)";
    if (model_tracing)
        model_trace(TRACE_COPY_OUT, at)->bytes += bytes;
    struct model_op *op = bulk(bulk_out, what, src, gmem, bytes, at);
    model_tally(COUNT_COPIED_OUT, bytes);
    struct bulk_work *w = (struct bulk_work *)op->data;
    if (w->place.block != model_self->block)
        model_fail(at, "%s: source: got 0x%x, want the CTA's own shared memory", what, src);
    model_op_reads(op, &w->place.block->shared, w->place.offset, bytes);
    in_bulk_group(op);
}

/* ------------------------------------------------------------------ groups */

void model_bulk_commit(struct model_at at)
{
    model_needs_sm(90, 999, "cp.async.bulk.commit_group", at);
    model_step();
    if (model_tracing)
        model_trace(TRACE_BULK_COMMIT, at);
    struct thread_state *state = model_thread_state(model_self);
    state->bulk_group++;
    state->bulk_open = false;
    if (state->bulk_group - state->bulk_done >= BULK_GROUPS) /* early, which is always allowed */
        model_group_finish(&state->bulk[state->bulk_done++ % BULK_GROUPS]);
}

/* A store has read its source when it has run, and has written then too. */
void model_bulk_wait(int pending, bool read, struct model_at at)
{
    (void)read;
    model_needs_sm(90, 999, "cp.async.bulk.wait_group", at);
    model_step();
    if (model_tracing)
        model_trace(TRACE_BULK_WAIT, at)->amount = (uint32_t)pending;
    struct thread_state *state = model_thread_state(model_self);
    while (state->bulk_group - state->bulk_done > (uint64_t)pending)
        model_group_finish(&state->bulk[state->bulk_done++ % BULK_GROUPS]);
}

void model_bulk_end(struct model_block *block)
{
    for (int t = 0; t < block->threads; t++) {
        const struct thread_state *state = model_thread_state(&block->fiber[t]);
        if (state->bulk_open || state->bulk_done < state->bulk_group)
            for (uint64_t g = state->bulk_done; g <= state->bulk_group; g++)
                if (state->bulk[g % BULK_GROUPS].count != 0)
                    model_fail(state->bulk_at,
                               "cp.async.bulk (store): thread %d has exited while a store of its "
                               "block reads shared memory: want cp.async.bulk.wait_group.read",
                               t);
    }
}
