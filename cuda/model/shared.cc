/* SPDX-License-Identifier: Apache-2.0 */
/* Memory with a shadow: what every byte's state allows. Shared memory of the cluster, by
 * address. */
#include "count.h"
#include "schedule.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A byte's last writer that may lack a proxy fence: fiber number + 1 and the fences it had made. */
enum { FENCE_BITS = 17 };

static uint32_t writer_tag(const struct model_fiber *f)
{
    return (uint32_t)(f->number + 1) << FENCE_BITS | (f->fences & ((1u << FENCE_BITS) - 1));
}

/* Bytes of cp.async may also be fenced by a thread that was told, by cp.async.mbarrier.arrive, that
 * they have landed. Landings are numbered; up to which one have such threads fenced? */
static uint32_t landings, fenced_landings;

uint32_t model_landings(void)
{
    return landings;
}

/* NULL if a fence came since, else who. */
static const struct model_fiber *unfenced(const struct model_space *s, uint32_t at)
{
    uint32_t tag = s->writer[at];
    const struct model_fiber *f = tag ? model_fiber_of((int)(tag >> FENCE_BITS) - 1) : NULL;
    if (s->landing[at] && s->landing[at] <= fenced_landings)
        return NULL;
    return f && writer_tag(f) == tag ? f : NULL;
}

static void *must(void *p)
{
    if (!p)
        abort();
    return p;
}

void model_space_open(struct model_space *space, const char *name, struct model_block *block,
                      uint32_t bytes, uint32_t base)
{
    *space = (struct model_space){};
    space->name = name;
    space->block = block;
    space->bytes = bytes;
    space->base = base;
    /* Aligned as hardware's: kernels look at low address bits. */
    space->data = (unsigned char *)must(aligned_alloc(1024, (bytes + 1023u) / 1024 * 1024 + 1024));
    space->known = (unsigned char *)must(calloc(bytes + 1, 1));
    space->reading = (uint16_t *)must(calloc(bytes + 1, 2));
    space->writing = (uint16_t *)must(calloc(bytes + 1, 2));
    space->writer = (uint32_t *)must(calloc(bytes + 1, 4));
    space->landing = (uint32_t *)must(calloc(bytes + 1, 4));
    model_space_reset(space);
}

void model_space_reset(struct model_space *space)
{
    /* A pattern that is NaN in every format, and no small integer. */
    memset(space->data, 0xFF, space->bytes);
    memset(space->known, 0, space->bytes);
    memset(space->reading, 0, 2 * (size_t)space->bytes);
    memset(space->writing, 0, 2 * (size_t)space->bytes);
    memset(space->writer, 0, 4 * (size_t)space->bytes);
    memset(space->landing, 0, 4 * (size_t)space->bytes);
}

void model_space_close(struct model_space *space)
{
    free(space->data);
    free(space->known);
    free(space->reading);
    free(space->writing);
    free(space->writer);
    free(space->landing);
    *space = (struct model_space){};
}

/* ------------------------------------------------------------------ marks of ops under way */

static void check_inside(const struct model_space *s, uint32_t at, uint32_t bytes, const char *what,
                         struct model_at here)
{
    if (at > s->bytes || bytes > s->bytes - at)
        model_fail(here, "%s: bytes %u to %u of %s, which ends at %u", what, s->base + at,
                   s->base + at + bytes - 1, s->name, s->base + s->bytes);
}

/* Where op came from, for sentences. */
static const char *origin(const struct model_op *op, char *text, size_t bytes)
{
    const char *file = strrchr(op->at.file, '/');
    snprintf(text, bytes, "%s of %s:%d", op->name, file ? file + 1 : op->at.file, op->at.line);
    return text;
}

static bool overlap(const struct model_range *a, const struct model_range *b)
{
    return a->space == b->space && a->at < b->at + b->bytes && b->at < a->at + a->bytes;
}

static bool any16(const uint16_t *p, uint32_t n)
{
    uint16_t any = 0;
    for (uint32_t i = 0; i < n; i++)
        any |= p[i];
    return any;
}

static bool any32(const uint32_t *p, uint32_t n)
{
    uint32_t any = 0;
    for (uint32_t i = 0; i < n; i++)
        any |= p[i];
    return any;
}

/* An op under way, not ordered before op, that conflicts with r; reads count if r is written. */
static struct model_op *conflict(const struct model_op *op, const struct model_range *r, bool write,
                                 bool *reads)
{
    for (int s = 1; s <= model_op_slots(); s++) {
        struct model_op *o = model_op_of((uint16_t)s);
        if (!o || o == op || !o->issued || o->exempt || (op && model_op_before(o, op)))
            continue;
        for (int i = write ? 0 : o->num_reads; i < o->num_reads + o->num_writes; i++)
            if (overlap(&o->ranges[i], r)) {
                *reads = i < o->num_reads;
                return o;
            }
    }
    return NULL;
}

[[noreturn]] static void fail_conflict(const char *what, const struct model_range *r, bool write,
                                       const struct model_op *other, bool reads,
                                       struct model_at here)
{
    char text[160];
    model_fail(here, "%s: %s bytes %u to %u of %s while %s, still under way, %s them", what,
               write ? "writes" : "reads", r->space->base + r->at,
               r->space->base + r->at + r->bytes - 1, r->space->name,
               origin(other, text, sizeof text), reads ? "reads" : "writes");
}

static void check_known(const struct model_space *s, uint32_t at, uint32_t bytes, const char *what,
                        struct model_at here)
{
    unsigned char all = MODEL_WRITTEN;
    for (uint32_t i = 0; i < bytes; i++)
        all &= s->known[at + i];
    if (all & MODEL_WRITTEN)
        return;
    for (uint32_t i = 0; i < bytes; i++)
        if (!(s->known[at + i] & MODEL_WRITTEN) && !s->writing[at + i])
            model_fail(here, "%s: reads byte %u of %s, which nobody has written", what,
                       s->base + at + i, s->name);
}

void model_marks_check(struct model_op *op)
{
    if (op->exempt)
        return;
    for (int i = 0; i < op->num_reads + op->num_writes; i++) {
        const struct model_range *r = &op->ranges[i];
        struct model_space *s = r->space;
        bool write = i >= op->num_reads, reads = false;
        check_inside(s, r->at, r->bytes, op->name, op->at);
        if (any16(s->writing + r->at, r->bytes) || (write && any16(s->reading + r->at, r->bytes))) {
            const struct model_op *other = conflict(op, r, write, &reads);
            if (other)
                fail_conflict(op->name, r, write, other, reads, op->at);
        }
        for (uint32_t b = 0; b < r->bytes; b++)
            if (s->known[r->at + b] & MODEL_BARRIER)
                model_fail(op->at, "%s: byte %u of %s belongs to an mbarrier", op->name,
                           s->base + r->at + b, s->name);
        if (write)
            continue;
        check_known(s, r->at, r->bytes, op->name, op->at);
        if (!op->async_proxy || !any32(s->writer + r->at, r->bytes))
            continue;
        for (uint32_t b = 0; b < r->bytes; b++) {
            const struct model_fiber *f = unfenced(s, r->at + b);
            char who[160];
            if (f) {
                model_describe_fiber(f, who, sizeof who);
                model_fail(op->at,
                           "%s: reads byte %u of %s, which %s wrote without a "
                           "fence.proxy.async since",
                           op->name, s->base + r->at + b, s->name, who);
            }
            s->writer[r->at + b] = 0; /* fenced once and for all */
        }
    }
}

void model_marks_set(struct model_op *op)
{
    if (op->exempt)
        return;
    for (int i = 0; i < op->num_reads + op->num_writes; i++) {
        const struct model_range *r = &op->ranges[i];
        if (i < op->num_reads)
            for (uint32_t b = 0; b < r->bytes; b++)
                r->space->reading[r->at + b]++;
        else
            for (uint32_t b = 0; b < r->bytes; b++)
                r->space->writing[r->at + b] = op->slot;
    }
}

void model_marks_clear(struct model_op *op)
{
    if (op->exempt)
        return;
    for (int i = 0; i < op->num_reads + op->num_writes; i++) {
        const struct model_range *r = &op->ranges[i];
        struct model_space *s = r->space;
        if (i < op->num_reads) {
            for (uint32_t b = 0; b < r->bytes; b++)
                s->reading[r->at + b]--;
            continue;
        }
        for (uint32_t b = 0; b < r->bytes; b++)
            if (s->writing[r->at + b] == op->slot)
                s->writing[r->at + b] = 0;
        memset(s->known + r->at, MODEL_WRITTEN, r->bytes);
        /* What a thread's cp.async wrote needs a fence, as its own writes do. */
        uint32_t tag = op->async_proxy ? 0 : writer_tag(op->issuer);
        uint32_t landing = op->async_proxy ? 0 : ++landings;
        for (uint32_t b = 0; b < r->bytes; b++) {
            s->writer[r->at + b] = tag;
            s->landing[r->at + b] = landing;
        }
    }
}

/* ------------------------------------------------------------------ accesses of threads */

void model_check_read(struct model_space *space, uint32_t at, uint32_t bytes, const char *what,
                      struct model_at here)
{
    struct model_range r = {space, at, bytes};
    bool reads = false;
    check_inside(space, at, bytes, what, here);
    if (any16(space->writing + at, bytes)) {
        const struct model_op *other = conflict(NULL, &r, false, &reads);
        if (other)
            fail_conflict(what, &r, false, other, reads, here);
    }
    check_known(space, at, bytes, what, here);
    for (uint32_t i = 0; i < bytes; i++)
        if (space->known[at + i] & MODEL_BARRIER)
            model_fail(here, "%s: byte %u of %s belongs to an mbarrier", what, space->base + at + i,
                       space->name);
}

void model_check_write(struct model_space *space, uint32_t at, uint32_t bytes, const char *what,
                       struct model_at here)
{
    struct model_range r = {space, at, bytes};
    bool reads = false;
    check_inside(space, at, bytes, what, here);
    if (any16(space->writing + at, bytes) || any16(space->reading + at, bytes)) {
        const struct model_op *other = conflict(NULL, &r, true, &reads);
        if (other)
            fail_conflict(what, &r, true, other, reads, here);
    }
    uint32_t tag = writer_tag(model_self);
    for (uint32_t i = 0; i < bytes; i++) {
        if (space->known[at + i] & MODEL_BARRIER)
            model_fail(here, "%s: byte %u of %s belongs to an mbarrier", what, space->base + at + i,
                       space->name);
        space->known[at + i] = MODEL_WRITTEN;
        space->writer[at + i] = tag;
        space->landing[at + i] = 0;
    }
}

/* ------------------------------------------------------------------ addresses */

struct model_block *model_block_of(uint32_t rank)
{
    return rank < (uint32_t)model_cluster.blocks ? model_cluster.block[rank] : NULL;
}

struct model_place model_place_of(uint32_t address, uint32_t bytes, uint32_t align,
                                  const char *what, struct model_at here)
{
    uint32_t rank = address >> MODEL_RANK_SHIFT, offset = address & ((1u << MODEL_RANK_SHIFT) - 1);
    struct model_block *block = model_block_of(rank);
    if (!block)
        model_fail(here, "%s: address 0x%08x names block %u of a cluster of %d", what, address,
                   rank, model_cluster.blocks);
    if (block->exited)
        model_fail(here, "%s: address 0x%08x lies in block %u, which has exited", what, address,
                   rank);
    if (align && offset % align)
        model_fail(here, "%s: address 0x%08x is no multiple of %u", what, address, align);
    if (offset < MODEL_SHARED_BASE || offset - MODEL_SHARED_BASE > block->dynamic_bytes ||
        bytes > block->dynamic_bytes - (offset - MODEL_SHARED_BASE))
        model_fail(here, "%s: %u bytes at address 0x%08x, outside the %u bytes from 0x%08x", what,
                   bytes, address, block->dynamic_bytes,
                   MODEL_SHARED_BASE | rank << MODEL_RANK_SHIFT);
    return (struct model_place){block, offset - MODEL_SHARED_BASE};
}

static struct model_place own_place(uint32_t address, uint32_t bytes, uint32_t align,
                                    const char *what, struct model_at here)
{
    if (address >> MODEL_RANK_SHIFT != model_self->block->rank)
        model_fail(here, "%s: address 0x%08x lies in block %u of the cluster, not in the own one",
                   what, address, address >> MODEL_RANK_SHIFT);
    return model_place_of(address, bytes, align, what, here);
}

/* __shared__ variables of kernels that use pointers are static variables in the model. Their
 * addresses count from here, far from those of dynamic shared memory. */
static unsigned char anchor;
static const uint32_t ANCHOR = 0xA0000000u;

uint32_t model_generic_to_shared(const void *pointer)
{
    const struct model_block *b = model_self->block;
    const unsigned char *p = (const unsigned char *)pointer;
    if (p >= b->shared.data && p <= b->shared.data + b->dynamic_bytes)
        return (uint32_t)(p - b->shared.data) + MODEL_SHARED_BASE + (b->rank << MODEL_RANK_SHIFT);
    return ANCHOR + (uint32_t)(intptr_t)(p - &anchor);
}

/* The bytes of an address that a kernel with raw pointers made. */
static unsigned char *raw_pointer(uint32_t address, uint32_t bytes, const char *what,
                                  struct model_at here)
{
    if (address >= 0x60000000u)
        return &anchor + (int32_t)(address - ANCHOR);
    struct model_place p = own_place(address, bytes, bytes, what, here);
    return p.block->shared.data + p.offset;
}

char *model_dynamic_pointer(uint32_t align)
{
    struct model_block *b = model_self->block;
    b->raw = true;
    (void)align; /* at most 1024, as the start of every block's memory is */
    return (char *)b->shared.data;
}

uint32_t model_dynamic_address(struct model_at at)
{
    if (model_self->block->raw)
        model_fail(at, "dynamic_smem: the kernel uses pointers into shared memory too");
    return MODEL_SHARED_BASE | model_self->block->rank << MODEL_RANK_SHIFT;
}

uint32_t model_mapa(uint32_t address, uint32_t rank, struct model_at at)
{
    own_place(address, 0, 0, "mapa", at);
    if (rank >= (uint32_t)model_cluster.blocks)
        model_fail(at, "mapa: rank %u of a cluster of %d", rank, model_cluster.blocks);
    return (address & ((1u << MODEL_RANK_SHIFT) - 1)) | rank << MODEL_RANK_SHIFT;
}

/* ------------------------------------------------------------------ instructions */

void model_ld_shared(void *value, uint32_t address, uint32_t bytes, struct model_at at)
{
    model_step();
    struct model_place p = own_place(address, bytes, bytes, "ld.shared", at);
    model_tally(COUNT_SHARED_LD, bytes);
    model_check_read(&p.block->shared, p.offset, bytes, "ld.shared", at);
    memcpy(value, p.block->shared.data + p.offset, bytes);
}

void model_st_shared(uint32_t address, const void *value, uint32_t bytes, struct model_at at)
{
    model_step();
    struct model_place p = own_place(address, bytes, bytes, "st.shared", at);
    model_tally(COUNT_SHARED_ST, bytes);
    model_check_write(&p.block->shared, p.offset, bytes, "st.shared", at);
    memcpy(p.block->shared.data + p.offset, value, bytes);
}

void model_ld_shared_cluster(void *value, uint32_t address, uint32_t bytes, struct model_at at)
{
    model_step();
    struct model_place p = model_place_of(address, bytes, bytes, "ld.shared::cluster", at);
    model_check_read(&p.block->shared, p.offset, bytes, "ld.shared::cluster", at);
    memcpy(value, p.block->shared.data + p.offset, bytes);
}

void model_st_shared_cluster(uint32_t address, const void *value, uint32_t bytes,
                             struct model_at at)
{
    model_step();
    struct model_place p = model_place_of(address, bytes, bytes, "st.shared::cluster", at);
    model_check_write(&p.block->shared, p.offset, bytes, "st.shared::cluster", at);
    memcpy(p.block->shared.data + p.offset, value, bytes);
}

void model_fence_proxy_async(struct model_at)
{
    model_self->fences++;
    fenced_landings = model_self->landed > fenced_landings ? model_self->landed : fenced_landings;
}

/* ------------------------------------------------------------------ cp.async */

struct copy {
    unsigned char *to;
    const void *from;
    uint32_t bytes, valid;
};

static void run_copy(struct model_op *op)
{
    const struct copy *c = (const struct copy *)op->data;
    memcpy(c->to, c->from, c->valid);
    memset(c->to + c->valid, 0, c->bytes - c->valid);
}

/* The group that copies join; groups of a thread are kept in order of commit. */
static struct model_group *open_group(struct model_fiber *f)
{
    if (!f->copies) {
        f->room_copies = 16;
        f->copies = (struct model_group *)must(calloc(16, sizeof *f->copies));
        f->num_copies = 1;
    }
    return &f->copies[f->num_copies - 1];
}

/* Groups move: the ops in them learn where to. */
static void moved(struct model_group *group)
{
    for (struct model_op *o = group->first; o; o = o->group_next)
        o->group = group;
}

/* Forgets finished groups at the front. Those between others still count in wait_group. */
static void drop_finished(struct model_fiber *f)
{
    int done = 0;
    while (done < f->num_copies - 1 && !f->copies[done].count)
        done++;
    for (int i = done; done && i < f->num_copies; i++) {
        f->copies[i - done] = f->copies[i];
        moved(&f->copies[i - done]);
    }
    f->num_copies -= done;
}

void model_cp_async(uint32_t smem, const void *gmem, uint32_t bytes, uint32_t valid,
                    struct model_at at)
{
    struct model_fiber *f = model_self;
    struct copy c = {NULL, gmem, bytes, valid};
    model_tally(COUNT_COPIED_IN, bytes);
    if (valid > bytes)
        model_fail(at, "cp.async: %u valid bytes of %u", valid, bytes);
    if (valid && (uintptr_t)gmem % bytes)
        model_fail(at, "cp.async: source %p is no multiple of %u", gmem, bytes);
    c.to = f->block->raw ? raw_pointer(smem, bytes, "cp.async", at) : NULL;
    if (c.to && model_device.schedule == MODEL_EAGER) {
        memcpy(c.to, gmem, valid);
        memset(c.to + valid, 0, bytes - valid);
        return;
    }
    struct model_op *op = model_op_new("cp.async", run_copy, sizeof c, at);
    op->async_proxy = false;
    if (c.to) {
        op->exempt = true;
    } else {
        struct model_place p = own_place(smem, bytes, bytes, "cp.async", at);
        c.to = p.block->shared.data + p.offset;
        model_op_writes(op, &p.block->shared, p.offset, bytes);
    }
    memcpy(op->data, &c, sizeof c);
    model_op_in_group(op, open_group(f));
    model_op_issue(op);
}

void model_cp_async_commit(struct model_at)
{
    struct model_fiber *f = model_self;
    open_group(f);
    if (f->num_copies == f->room_copies)
        drop_finished(f);
    if (f->num_copies == f->room_copies) {
        f->room_copies *= 2;
        f->copies = (struct model_group *)must(
            realloc(f->copies, (size_t)f->room_copies * sizeof *f->copies));
        for (int i = 0; i < f->num_copies; i++)
            moved(&f->copies[i]);
    }
    f->copies[f->num_copies++] = (struct model_group){NULL, 0};
}

static void wait_groups(int left)
{
    struct model_fiber *f = model_self;
    open_group(f);
    model_step();
    for (int i = 0; i < f->num_copies - left; i++)
        model_group_finish(&f->copies[i]);
    drop_finished(f);
}

void model_cp_async_wait_group(int groups, struct model_at)
{
    wait_groups(groups + 1);
}

void model_cp_async_wait_all(struct model_at)
{
    wait_groups(0);
}

struct landed {
    uint32_t bar;
};

static void run_landed(struct model_op *op)
{
    model_mbarrier_do_landed(((const struct landed *)op->data)->bar,
                             "cp.async.mbarrier.arrive.noinc", op->at);
}

void model_cp_async_mbarrier_arrive_noinc(uint32_t bar, struct model_at at)
{
    struct model_fiber *f = model_self;
    own_place(bar, 8, 8, "cp.async.mbarrier.arrive.noinc", at);
    struct model_op *op =
        model_op_new("cp.async.mbarrier.arrive.noinc", run_landed, sizeof(struct landed), at);
    ((struct landed *)op->data)->bar = bar;
    open_group(f);
    for (int i = 0; i < f->num_copies; i++)
        model_op_after_group(op, &f->copies[i]);
    model_op_issue(op);
}

/* ldmatrix reads rows of 16 bytes. */
const unsigned char *model_matrix_row(uint32_t address, struct model_at at)
{
    if (model_self->block->raw)
        return raw_pointer(address, 16, "ldmatrix", at);
    struct model_place p = own_place(address, 16, 16, "ldmatrix", at);
    model_check_read(&p.block->shared, p.offset, 16, "ldmatrix", at);
    return p.block->shared.data + p.offset;
}
