/* SPDX-License-Identifier: Apache-2.0 */
/* Where threads meet: collectives of a warp, barriers of a block and of the cluster, mbarriers. */
#include "schedule.h"
#include "trace.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *short_file(struct model_at at)
{
    const char *slash = strrchr(at.file, '/');
    return slash ? slash + 1 : at.file;
}

/* ------------------------------------------------------------------ collectives of a warp */

/* Lives on the stack of the lane that came first, which sleeps until all have. */
struct model_collective_state {
    const char *name;
    uint32_t mask, arrived;
    struct model_at at;
    void *args[32];
    struct model_queue waiting;
    struct model_collective_state *next;
};

static void describe_collective(const void *object, char *text, size_t bytes)
{
    const struct model_collective_state *c = (const struct model_collective_state *)object;
    snprintf(text, bytes, "(lanes 0x%08x of 0x%08x are here)", c->arrived, c->mask);
}

void model_collective(const char *name, uint32_t mask,
                      void (*run)(struct model_warp *warp, uint32_t mask, void *const args[32]),
                      void *arg, struct model_at here)
{
    struct model_fiber *self = model_self;
    struct model_warp *warp = self->warp;
    uint32_t bit = 1u << self->lane;
    model_step();
    if (!(mask & bit))
        model_fail(here, "%s: mask 0x%08x lacks the calling lane", name, mask);
    mask &= warp->live;
    struct model_collective_state *c = warp->open, own;
    for (; c; c = c->next) {
        if (!strcmp(c->name, name) && c->mask == mask && c->at.line == here.line)
            break;
        /* Others may wait for this lane while it meets some lanes first; but not the same ones. */
        if (c->mask & bit && c->arrived & mask)
            model_fail(here,
                       "divergence: this lane comes to %s with mask 0x%08x, lanes 0x%08x wait in "
                       "%s at %s:%d with mask 0x%08x",
                       name, mask, c->arrived, c->name, short_file(c->at), c->at.line, c->mask);
    }
    if (!c) {
        own = (struct model_collective_state){};
        own.name = name;
        own.mask = mask;
        own.at = here;
        own.next = warp->open;
        warp->open = c = &own;
    }
    c->args[self->lane] = arg;
    c->arrived |= bit;
    if (c->arrived != mask) {
        model_sleep(&c->waiting, name, c, describe_collective, here);
        return;
    }
    struct model_collective_state **at = &warp->open;
    while (*at != c)
        at = &(*at)->next;
    *at = c->next;
    if (run)
        run(warp, mask, c->args);
    model_wake_all(&c->waiting);
}

/* ------------------------------------------------------------------ barriers of a block */

struct model_named_barrier {
    int expected;  /* threads; -1 = all of the block, 0 = nobody has come */
    int arrived;   /* threads, in whole warps */
    uint32_t came; /* warps */
    uint32_t generation;
    int sum; /* of __syncthreads_count and the like */
    uint32_t any, every;
    int last_sum;
    uint32_t last_any, last_every;
    uint32_t trace; /* the phase that is going on (trace.h) */
    struct model_queue waiting;
};

static void describe_named(const void *object, char *text, size_t bytes)
{
    const struct model_named_barrier *b = (const struct model_named_barrier *)object;
    if (b->expected < 0)
        snprintf(text, bytes, "(%d threads have come)", b->arrived);
    else
        snprintf(text, bytes, "(%d of %d threads have come)", b->arrived, b->expected);
}

static int warps_alive(const struct model_block *block)
{
    int n = 0;
    for (int w = 0; w < block->warps; w++)
        n += block->warp[w].live != 0;
    return n;
}

static void release_if_full(struct model_block *block, struct model_named_barrier *b)
{
    int want = b->expected < 0 ? 32 * warps_alive(block) : b->expected;
    if (!b->expected || b->arrived < want)
        return;
    b->last_sum = b->sum;
    b->last_any = b->any;
    b->last_every = b->every;
    b->expected = b->arrived = b->sum = 0;
    b->came = b->any = 0;
    b->every = 1;
    b->generation++;
    b->trace = model_tracing ? model_trace_phase() : 0;
    model_wake_all(&b->waiting);
}

struct bar_call {
    int id, threads;
    int predicate;
    const char *name;
    struct model_at at;
    uint32_t generation; /* before this warp came */
    struct model_named_barrier *barrier;
    struct trace_event *trace;
};

static void bar_come(struct model_warp *warp, uint32_t mask, void *const args[32])
{
    struct model_block *block = warp->block;
    int first = __builtin_ctz(mask);
    const struct bar_call *c = (const struct bar_call *)args[first];
    for (int lane = 0; lane < 32; lane++) {
        const struct bar_call *o = (const struct bar_call *)args[lane];
        if (mask >> lane & 1 && (o->id != c->id || o->threads != c->threads))
            model_fail(c->at, "%s: lanes %d and %d name barriers %d and %d, of %d and %d threads",
                       c->name, first, lane, c->id, o->id, c->threads, o->threads);
    }
    if (c->id < 0 || c->id > 15)
        model_fail(c->at, "%s: barrier %d, want 0 to 15", c->name, c->id);
    if (c->threads != -1 && (c->threads <= 0 || c->threads % 32 || c->threads > 32 * block->warps))
        model_fail(c->at,
                   "%s: barrier %d of %d threads, want a multiple of 32 up to the block's %d",
                   c->name, c->id, c->threads, block->threads);
    struct model_named_barrier *b = &block->named[c->id];
    if (b->expected && b->expected != c->threads)
        model_fail(c->at, "%s: barrier %d of %d threads, others came for %d", c->name, c->id,
                   c->threads, b->expected);
    if (b->came >> warp->index & 1)
        model_fail(c->at, "%s: this warp has come to barrier %d before and it is still waiting",
                   c->name, c->id);
    for (int lane = 0; lane < 32; lane++)
        if (mask >> lane & 1) {
            struct bar_call *o = (struct bar_call *)args[lane];
            o->generation = b->generation;
            o->barrier = b;
            b->sum += o->predicate != 0;
            b->any |= o->predicate != 0;
            b->every &= o->predicate != 0;
        }
    b->expected = c->threads;
    b->arrived += 32;
    b->came |= 1u << warp->index;
    if (model_tracing) {
        c->trace->phase = b->trace;
        model_trace_arrive(b->trace, 1);
    }
    release_if_full(block, b);
}

static struct model_named_barrier *bar_common(struct bar_call *call, bool waits)
{
    if (model_tracing)
        call->trace = model_trace(waits ? TRACE_WAIT : TRACE_ARRIVE, call->at);
    model_collective(call->name, 0xFFFFFFFFu, bar_come, call, call->at);
    struct model_named_barrier *b = call->barrier;
    while (waits && b->generation == call->generation)
        model_sleep(&b->waiting, call->name, b, describe_named, call->at);
    return b;
}

void model_bar_sync(int id, int threads, struct model_at at)
{
    struct bar_call c = {id, threads, 0, "bar.sync", at, 0, NULL, NULL};
    bar_common(&c, true);
}

int model_bar_sync_or(int id, int threads, int predicate, struct model_at at)
{
    struct bar_call c = {id, threads, predicate, "bar.red.or", at, 0, NULL, NULL};
    return (int)bar_common(&c, true)->last_any;
}

void model_bar_arrive(int id, int threads, struct model_at at)
{
    struct bar_call c = {id, threads, 0, "bar.arrive", at, 0, NULL, NULL};
    bar_common(&c, false);
}

void model_syncthreads(struct model_at at)
{
    struct bar_call c = {0, -1, 0, "__syncthreads", at, 0, NULL, NULL};
    bar_common(&c, true);
}

int model_syncthreads_reduce(int predicate, enum model_reduction kind, struct model_at at)
{
    struct bar_call c = {0, -1, predicate, "__syncthreads_or, _and or _count", at, 0, NULL, NULL};
    const struct model_named_barrier *b = bar_common(&c, true);
    return kind == MODEL_COUNT ? b->last_sum
           : kind == MODEL_OR  ? (int)b->last_any
                               : (int)b->last_every;
}

/* ------------------------------------------------------------------ barrier of the cluster */

static struct {
    int arrived;
    uint32_t generation;
    struct model_queue waiting;
    uint32_t trace;
} cluster;

static int threads_alive(void)
{
    int n = 0;
    for (int i = 0; i < model_cluster.blocks; i++)
        n += model_cluster.block[i]->live;
    return n;
}

static void describe_cluster(const void *, char *text, size_t bytes)
{
    snprintf(text, bytes, "(%d of %d threads have come)", cluster.arrived, threads_alive());
}

static void release_cluster(void)
{
    if (!cluster.arrived || cluster.arrived < threads_alive())
        return;
    cluster.arrived = 0;
    cluster.generation++;
    cluster.trace = model_tracing ? model_trace_phase() : 0;
    model_wake_all(&cluster.waiting);
}

void model_cluster_barrier_begin(void)
{
    memset(&cluster, 0, sizeof cluster);
    cluster.trace = model_tracing ? model_trace_phase() : 0;
}

void model_cluster_arrive(struct model_at at)
{
    struct model_fiber *self = model_self;
    if (model_tracing)
        model_trace(TRACE_ARRIVE, at);
    model_collective("barrier.cluster.arrive", 0xFFFFFFFFu, NULL, NULL, at);
    if (self->cluster_arrived)
        model_fail(at, "barrier.cluster.arrive: this thread has arrived before and not waited");
    self->cluster_arrived = true;
    self->cluster_generation = cluster.generation;
    if (model_tracing) {
        self->cluster_trace = cluster.trace;
        model_trace_arrive(cluster.trace, 1);
    }
    cluster.arrived++;
    model_progress();
    release_cluster();
}

void model_cluster_wait(struct model_at at)
{
    struct model_fiber *self = model_self;
    if (model_tracing)
        model_trace(TRACE_WAIT, at)->phase = self->cluster_trace;
    model_collective("barrier.cluster.wait", 0xFFFFFFFFu, NULL, NULL, at);
    if (!self->cluster_arrived)
        model_fail(at, "barrier.cluster.wait: this thread has not arrived");
    self->cluster_arrived = false;
    while (cluster.generation == self->cluster_generation)
        model_sleep(&cluster.waiting, "barrier.cluster.wait", NULL, describe_cluster, at);
}

uint32_t model_cluster_ctarank(struct model_at)
{
    return model_self->block->rank;
}

uint32_t model_cluster_nctarank(struct model_at)
{
    return (uint32_t)model_cluster.blocks;
}

/* ------------------------------------------------------------------ mbarrier */

struct model_mbarrier {
    uint32_t offset; /* in the block */
    uint32_t count, pending;
    int64_t tx;
    uint64_t phase; /* completed phases */
    const struct model_fiber *init_by;
    uint32_t init_fences; /* of init_by, then */
    uint32_t landed;      /* landings of cp.async that came before arrivals here */
    struct model_queue waiting;
    struct model_block *block;
    struct model_mbarrier *next;
    uint32_t trace, trace_done; /* this phase and the one before (trace.h) */
};

static const int64_t MOST_TX = (1 << 20) - 1;

static void describe_mbarrier(const void *object, char *text, size_t bytes)
{
    const struct model_mbarrier *m = (const struct model_mbarrier *)object;
    snprintf(text, bytes, "0x%08x (phase %llu, pending %u of %u, tx %lld)",
             (m->offset + MODEL_SHARED_BASE) | m->block->rank << MODEL_RANK_SHIFT,
             (unsigned long long)m->phase, m->pending, m->count, (long long)m->tx);
}

static struct model_mbarrier *find(struct model_block *block, uint32_t offset)
{
    struct model_mbarrier *m = block->mbarriers;
    while (m && m->offset != offset)
        m = m->next;
    return m;
}

static struct model_mbarrier *mbarrier_at(uint32_t bar, const char *what, struct model_at here)
{
    struct model_place p = model_place_of(bar, 8, 8, what, here);
    struct model_mbarrier *m = find(p.block, p.offset);
    if (!m)
        model_fail(here, "%s: no mbarrier has been initialised at 0x%08x", what, bar);
    return m;
}

static void own_block(uint32_t bar, const char *what, struct model_at at)
{
    if (bar >> MODEL_RANK_SHIFT != model_self->block->rank)
        model_fail(at, "%s: mbarrier 0x%08x lies in block %u of the cluster, not in the own one",
                   what, bar, bar >> MODEL_RANK_SHIFT);
}

/* Others than threads of the block see the barrier only if whoever made it said so. */
static void check_visible(const struct model_mbarrier *m, const char *what, struct model_at here)
{
    if (m->init_by->mbarrier_fences + m->init_by->fences == m->init_fences) {
        char text[200];
        describe_mbarrier(m, text, sizeof text);
        model_fail(here,
                   "%s: mbarrier %s was initialised without a fence.mbarrier_init or "
                   "fence.proxy.async since",
                   what, text);
    }
}

static void end_phase(struct model_mbarrier *m)
{
    if (m->pending || m->tx)
        return;
    m->phase++;
    m->trace_done = m->trace;
    m->trace = model_tracing ? model_trace_phase() : 0;
    m->pending = m->count;
    model_wake_all(&m->waiting);
}

static void add_tx(struct model_mbarrier *m, int64_t bytes, const char *what, struct model_at here)
{
    m->tx += bytes;
    if (m->tx > MOST_TX || m->tx < -MOST_TX) {
        char text[200];
        describe_mbarrier(m, text, sizeof text);
        model_fail(here, "%s: mbarrier %s: tx-count beyond 2^20 - 1", what, text);
    }
}

static void arrive(struct model_mbarrier *m, uint32_t count, const char *what, struct model_at here)
{
    if (m->pending < count) {
        char text[200];
        describe_mbarrier(m, text, sizeof text);
        model_fail(here, "%s: mbarrier %s: more arrivals than its count", what, text);
    }
    if (model_tracing)
        model_trace_arrive(m->trace, count);
    m->pending -= count;
    model_progress();
    end_phase(m);
}

void model_mbarrier_do_arrive(uint32_t bar, uint32_t count, const char *what, struct model_at here)
{
    struct model_mbarrier *m = mbarrier_at(bar, what, here);
    check_visible(m, what, here);
    arrive(m, count, what, here);
}

/* The arrival of cp.async.mbarrier.arrive.noinc. */
void model_mbarrier_do_landed(uint32_t bar, const char *what, struct model_at here)
{
    mbarrier_at(bar, what, here)->landed = model_landings();
    model_mbarrier_do_arrive(bar, 1, what, here);
}

static void hear_of_landings(const struct model_mbarrier *m)
{
    if (m->landed > model_self->landed)
        model_self->landed = m->landed;
}

void model_mbarrier_do_complete_tx(uint32_t bar, uint32_t bytes, const char *what,
                                   struct model_at here)
{
    struct model_mbarrier *m = mbarrier_at(bar, what, here);
    check_visible(m, what, here);
    if (model_tracing)
        model_trace_arrive(m->trace, 1);
    add_tx(m, -(int64_t)bytes, what, here);
    end_phase(m);
}

void model_mbarrier_init(uint32_t bar, uint32_t count, struct model_at at)
{
    own_block(bar, "mbarrier.init", at);
    struct model_place p = model_place_of(bar, 8, 8, "mbarrier.init", at);
    if (count < 1 || count > MOST_TX)
        model_fail(at, "mbarrier.init: count %u, want 1 to 2^20 - 1", count);
    for (struct model_mbarrier *m = p.block->mbarriers; m; m = m->next)
        if (m->offset == p.offset)
            model_fail(at, "mbarrier.init: 0x%08x is an mbarrier already; mbarrier.inval first",
                       bar);
    model_check_write(&p.block->shared, p.offset, 8, "mbarrier.init", at);
    memset(p.block->shared.known + p.offset, MODEL_WRITTEN | MODEL_BARRIER, 8);
    struct model_mbarrier *m = (struct model_mbarrier *)calloc(1, sizeof *m);
    if (!m)
        abort();
    m->offset = p.offset;
    m->count = m->pending = count;
    m->init_by = model_self;
    m->init_fences = model_self->mbarrier_fences + model_self->fences;
    m->block = p.block;
    m->trace = model_tracing ? model_trace_phase() : 0;
    m->next = p.block->mbarriers;
    p.block->mbarriers = m;
}

void model_mbarrier_inval(uint32_t bar, struct model_at at)
{
    own_block(bar, "mbarrier.inval", at);
    struct model_mbarrier *m = mbarrier_at(bar, "mbarrier.inval", at);
    struct model_block *block = m->block;
    if (m->waiting.first)
        model_fail(at, "mbarrier.inval: threads wait on 0x%08x", bar);
    memset(block->shared.known + m->offset, 0, 8);
    struct model_mbarrier **link = &block->mbarriers;
    while (*link != m)
        link = &(*link)->next;
    *link = m->next;
    free(m);
}

void model_fence_mbarrier_init(struct model_at)
{
    model_self->mbarrier_fences++;
}

void model_mbarrier_arrive(uint32_t bar, struct model_at at)
{
    model_step();
    if (model_tracing)
        model_trace(TRACE_ARRIVE, at);
    own_block(bar, "mbarrier.arrive", at);
    arrive(mbarrier_at(bar, "mbarrier.arrive", at), 1, "mbarrier.arrive", at);
}

/* Arrivals at other blocks take their time. */
struct remote {
    uint32_t bar, bytes;
};

static void run_remote(struct model_op *op)
{
    const struct remote *r = (const struct remote *)op->data;
    struct model_mbarrier *m = mbarrier_at(r->bar, op->name, op->at);
    check_visible(m, op->name, op->at);
    if (r->bytes)
        add_tx(m, r->bytes, op->name, op->at);
    arrive(m, 1, op->name, op->at);
}

static void arrive_remote(uint32_t bar, uint32_t bytes, const char *name, struct model_at at)
{
    model_place_of(bar, 8, 8, name, at);
    if (model_tracing)
        model_trace(TRACE_ARRIVE, at)->ctas = 2;
    struct model_op *op = model_op_new(name, run_remote, sizeof(struct remote), at);
    *(struct remote *)op->data = (struct remote){bar, bytes};
    model_op_issue(op);
}

void model_mbarrier_arrive_cluster(uint32_t bar, struct model_at at)
{
    if (bar >> MODEL_RANK_SHIFT == model_self->block->rank)
        model_mbarrier_arrive(bar, at);
    else
        arrive_remote(bar, 0, "mbarrier.arrive.shared::cluster", at);
}

void model_mbarrier_expect_tx(uint32_t bar, uint32_t bytes, struct model_at at)
{
    model_step();
    own_block(bar, "mbarrier.expect_tx", at);
    struct model_mbarrier *m = mbarrier_at(bar, "mbarrier.expect_tx", at);
    add_tx(m, bytes, "mbarrier.expect_tx", at);
    end_phase(m);
}

void model_mbarrier_arrive_expect_tx(uint32_t bar, uint32_t bytes, struct model_at at)
{
    const char *what = "mbarrier.arrive.expect_tx";
    model_step();
    own_block(bar, what, at);
    if (model_tracing)
        model_trace(TRACE_ARRIVE, at);
    struct model_mbarrier *m = mbarrier_at(bar, what, at);
    add_tx(m, bytes, what, at);
    arrive(m, 1, what, at);
}

void model_mbarrier_arrive_expect_tx_cluster(uint32_t bar, uint32_t bytes, struct model_at at)
{
    if (bar >> MODEL_RANK_SHIFT == model_self->block->rank)
        model_mbarrier_arrive_expect_tx(bar, bytes, at);
    else
        arrive_remote(bar, bytes, "mbarrier.arrive.expect_tx.shared::cluster", at);
}

void model_mbarrier_complete_tx(uint32_t bar, uint32_t bytes, struct model_at at)
{
    model_step();
    own_block(bar, "mbarrier.complete_tx", at);
    struct model_mbarrier *m = mbarrier_at(bar, "mbarrier.complete_tx", at);
    if (model_tracing) {
        model_trace(TRACE_ARRIVE, at);
        model_trace_arrive(m->trace, 1);
    }
    add_tx(m, -(int64_t)bytes, "mbarrier.complete_tx", at);
    end_phase(m);
}

/* For the deadlock report: which parity. */
static const char *wait_name(uint32_t parity)
{
    model_self->waits_value = parity;
    return parity ? "wait for parity 1 of mbarrier" : "wait for parity 0 of mbarrier";
}

bool model_mbarrier_try_wait(uint32_t bar, uint32_t parity, struct model_at at)
{
    const char *what = "mbarrier.try_wait";
    model_step();
    own_block(bar, what, at);
    if (parity > 1)
        model_fail(at, "%s: parity %u, want 0 or 1", what, parity);
    struct model_mbarrier *m = mbarrier_at(bar, what, at);
    if ((m->phase & 1) == parity) {
        if (!model_sleep_timed(&m->waiting, wait_name(parity), m, describe_mbarrier, at))
            return false;
        m = mbarrier_at(bar, what, at);
    }
    if ((m->phase & 1) == parity)
        return false;
    if (model_tracing)
        model_trace(TRACE_WAIT, at)->phase = m->trace_done;
    hear_of_landings(m);
    return true;
}

void model_mbarrier_wait(uint32_t bar, uint32_t parity, struct model_at at)
{
    const char *what = "mbarrier.try_wait";
    model_step();
    own_block(bar, what, at);
    if (parity > 1)
        model_fail(at, "%s: parity %u, want 0 or 1", what, parity);
    struct model_mbarrier *m = mbarrier_at(bar, what, at);
    if (model_tracing)
        model_trace(TRACE_WAIT, at)->phase = (m->phase & 1) == parity ? m->trace : m->trace_done;
    while ((m->phase & 1) == parity) {
        model_sleep(&m->waiting, wait_name(parity), m, describe_mbarrier, at);
        m = mbarrier_at(bar, what, at);
    }
    hear_of_landings(m);
}

/* ------------------------------------------------------------------ registers */

static struct model_queue register_queue;

static bool enough_registers(const struct model_block *block, const struct model_warp *warp, int n)
{
    int all = 0;
    for (int w = 0; w < block->warps; w++)
        all += 32 * (&block->warp[w] == warp ? n : block->warp[w].registers);
    return all <= 65536;
}

static void describe_registers(const void *object, char *text, size_t bytes)
{
    const struct model_block *b = (const struct model_block *)object;
    int all = 0;
    for (int w = 0; w < b->warps; w++)
        all += 32 * b->warp[w].registers;
    snprintf(text, bytes, "(%d of 65536 registers are taken)", all);
}

/* What warps share out is what the block got at launch, 64512 registers for 384 threads, not the
 * register file: once all have said what they want, more than that is never to be had. */
static void check_shares(const struct model_block *block, const char *what, struct model_at at)
{
    int threads = 32 * block->warps, each = 65536 / ((threads + 127) / 128 * 128) / 8 * 8, all = 0;
    each = each > 256 ? 256 : each;
    for (int w = 0; w < block->warps; w++) {
        if (block->warp[w].registers == each)
            return;
        all += 32 * block->warp[w].registers;
    }
    if (all > threads * each)
        model_fail(at, "%s: the warps want %d registers, the block has %d", what, all,
                   threads * each);
}

void model_setmaxnreg(int registers, bool more, struct model_at at)
{
    struct model_warp *warp = model_self->warp;
    struct model_block *block = warp->block;
    const char *what = more ? "setmaxnreg.inc" : "setmaxnreg.dec";
    model_collective(what, 0xFFFFFFFFu, NULL, NULL, at);
    if (warp->registers == registers)
        return; /* another lane of this warp did it */
    if (more != (registers > warp->registers))
        model_fail(at, "%s: to %d registers from %d", what, registers, warp->registers);
    while (warp->registers != registers && !enough_registers(block, warp, registers))
        model_sleep(&register_queue, what, block, describe_registers, at);
    warp->registers = registers;
    check_shares(block, what, at);
    model_wake_all(&register_queue);
}

/* ------------------------------------------------------------------ beginnings and ends */

void model_barriers_begin(struct model_block *block)
{
    block->named = (struct model_named_barrier *)calloc(16, sizeof *block->named);
    if (!block->named)
        abort();
    for (int i = 0; i < 16; i++) {
        block->named[i].every = 1;
        block->named[i].trace = model_tracing ? model_trace_phase() : 0;
    }
    block->mbarriers = NULL;
    register_queue = (struct model_queue){NULL, NULL};
}

void model_barriers_end(struct model_block *block)
{
    free(block->named);
    block->named = NULL;
    while (block->mbarriers) {
        struct model_mbarrier *next = block->mbarriers->next;
        free(block->mbarriers);
        block->mbarriers = next;
    }
}

void model_barriers_thread_exit(struct model_fiber *fiber)
{
    struct model_warp *warp = fiber->warp;
    struct model_at nowhere = {"(end of the kernel)", 0};
    uint32_t bit = 1u << fiber->lane;
    if (model_tracing)
        model_trace(TRACE_EXIT, nowhere);
    for (struct model_collective_state *c = warp->open; c; c = c->next)
        if (c->mask & bit)
            model_fail(c->at, "divergence: a lane ends the kernel, lanes 0x%08x wait in %s",
                       c->arrived, c->name);
    if (fiber->cluster_arrived)
        model_fail(nowhere, "barrier.cluster.arrive: the thread ends without waiting");
    warp->live &= ~bit;
    fiber->block->live--;
    for (int i = 0; i < 16; i++)
        release_if_full(fiber->block, &fiber->block->named[i]);
    release_cluster();
}
