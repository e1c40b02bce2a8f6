/* SPDX-License-Identifier: Apache-2.0 */
/* Playing back a cluster. Everything happens in the order of time: a heap holds warps that go on,
 * engines that finish a piece, and arrivals on their way.
 *
 *   schedulers   four an SM; warp w belongs to w % 4. Instructions between two events go through
 *                issue slots and the pipes FMA, ALU and MUFU in pieces of 16, so that warps mix.
 *   tensor core  pieces in the order of issue: one line an SM (tcgen05), one a scheduler (wgmma,
 *                mma.sync). A piece lasts as long as its products, or as its operands take to pass
 *                the port of shared memory.
 *   port         128 bytes a clock for operands, ld, st, shuffles and landing copies, first come,
 *                first served.
 *   copies       one line an SM, as fast as its share of L2 and of HBM. From HBM comes what the
 *                launch touches for the first time; SMs that read the same do so together, so each
 *                copy of the launch bears the same part of that.
 *   barriers     a phase is over when all arrivals that it had in the run have come.
 * Each block has an SM of its own. */
#include "timeline.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PIECE = 16, SCHEDULERS = 4, LANES_OF_SM = SCHEDULERS + 2 };

/* ------------------------------------------------------------------ state */

struct request {
    struct request *next;
    struct trace_event *ev;
    struct player *player;
};

struct line { /* work in order: of the tensor core or the copy engine */
    struct request *first, *last;
    bool busy;
    int block, kind; /* kind: scheduler, or SCHEDULERS for tcgen05, SCHEDULERS + 1 for copies */
};

struct sm {
    struct line lines[LANES_OF_SM];
    double port;  /* the port of shared memory is free from then on */
    double warps; /* likewise for warps' own accesses */
    double loads; /* likewise the way of plain loads */
    double issue[SCHEDULERS], fma[SCHEDULERS], alu[SCHEDULERS], mufu[SCHEDULERS], tmem[SCHEDULERS];
    double busy[ENGINES];
};

/* Work of a warp in the order of issue, and what is done of it; ends of groups as counts of issued
 * work. */
struct group_count {
    uint32_t issued, done, groups, ends[64], want;
};

struct player { /* a warp */
    struct trace_event *ev;
    struct player *next_waiting;
    int block, warp;
    uint32_t work[PIPES]; /* left of it before ev */
    bool prepared;
    int pieces;
    double ready; /* of results the next different event needs */
    double since; /* when it began to wait */
    double tmem_ld, tmem_st, copied;
    struct group_count wgmma, bulk, async;
    struct group_count *waits; /* for one of these */
};

enum { ITEM_PLAYER, ITEM_LINE, ITEM_ARRIVAL, ITEM_LANDED };
struct item {
    double time;
    uint64_t number;
    int what;
    void *object;
    uint32_t phase, count;
    const struct trace_event *by;
};

static struct item *heap;
static int num_items, room_items;
static uint64_t item_number;
static double now;

static const struct model_rates *rates;
static double far_part; /* of all bytes copied in */
static struct sm sms[MODEL_MAX_CLUSTER];
static struct player players[MODEL_MAX_CLUSTER * 32];
static int num_players, players_left, num_blocks, warps_of_block;

static struct phase {
    uint32_t expected, seen;
    struct player *waiting;
    const struct trace_event *by;
    bool done;
} * phases;
static size_t room_phases;

/* ------------------------------------------------------------------ sums of the launch */

static struct timeline_picture picture, drawn;
static double most_tensor;

static void add_wait(const struct trace_event *ev, const struct trace_event *by, double clocks)
{
    const char *role = ev->role ? ev->role : "-", *other = by && by->role ? by->role : "-";
    uint8_t by_kind = by ? by->kind : 0;
    struct wait_sums *w = model_timeline_sums.waits;
    for (int i = 0; i < model_timeline_sums.num_waits; i++, w++)
        if (w->line == ev->at.line && w->by_kind == by_kind && strcmp(w->role, role) == 0 &&
            strcmp(w->by, other) == 0)
            break;
    if (w == model_timeline_sums.waits + model_timeline_sums.num_waits) {
        if (model_timeline_sums.num_waits == TIMELINE_WAITS)
            return;
        model_timeline_sums.num_waits++;
        w->role = role;
        w->by = other;
        w->line = ev->at.line;
        w->file = ev->at.file;
        w->kind = ev->kind;
        w->by_kind = by_kind;
    }
    w->clocks += clocks;
}

static void draw(int row, double from, double to, int color, int line)
{
    if (to <= from)
        return;
    /* joins the row's last bar if that is near */
    static int last[MODEL_MAX_CLUSTER * (32 + ENGINES)];
    struct timeline_bar *b;
    if (picture.num_bars == 0)
        memset(last, 0xFF, sizeof last);
    int i = last[row];
    if (i >= 0 && i < picture.num_bars && picture.bars[i].row == row) {
        b = &picture.bars[i];
        if (b->color == color && b->line == line && from <= (double)b->to + 1.5) {
            if ((double)b->to < to)
                b->to = (float)to;
            return;
        }
    }
    if (picture.num_bars == 2000000)
        return;
    if (picture.num_bars == picture.room_bars) {
        int more = picture.room_bars ? 2 * picture.room_bars : 1 << 14;
        b = (struct timeline_bar *)realloc(picture.bars, (size_t)more * sizeof *b);
        if (b == NULL)
            return;
        picture.bars = b;
        picture.room_bars = more;
    }
    last[row] = picture.num_bars;
    picture.bars[picture.num_bars++] =
        (struct timeline_bar){(float)from, (float)to, (uint16_t)row, (uint8_t)color, line};
}

static void engine_busy(int block, int engine, double from, double clocks, double share)
{
    sms[block].busy[engine] += clocks * share;
    draw(block * ENGINES + engine, from, from + clocks, 0, 0);
}

static int warp_row(const struct player *p)
{
    return num_blocks * ENGINES + p->block * warps_of_block + p->warp;
}

/* ------------------------------------------------------------------ the heap */

static bool before(const struct item *a, const struct item *b)
{
    return a->time != b->time ? a->time < b->time : a->number < b->number;
}

static void push_item(struct item it)
{
    if (num_items == room_items) {
        room_items = room_items ? 2 * room_items : 1024;
        heap = (struct item *)realloc(heap, (size_t)room_items * sizeof *heap);
        if (heap == NULL)
            abort();
    }
    it.number = ++item_number;
    int i = num_items++;
    while (i > 0 && before(&it, &heap[(i - 1) / 2])) {
        heap[i] = heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    heap[i] = it;
}

static struct item pop_item(void)
{
    struct item top = heap[0], last = heap[--num_items];
    int i = 0;
    for (;;) {
        int c = 2 * i + 1;
        if (c >= num_items)
            break;
        if (c + 1 < num_items && before(&heap[c + 1], &heap[c]))
            c++;
        if (!before(&heap[c], &last))
            break;
        heap[i] = heap[c];
        i = c;
    }
    heap[i] = last;
    return top;
}

static void at_time(double time, int what, void *object)
{
    push_item((struct item){time, 0, what, object, 0, 0, NULL});
}

/* ------------------------------------------------------------------ barriers and groups */

static void arrivals(const struct trace_event *ev, double time)
{
    for (int i = 0; i < ev->num_arrivals; i++)
        push_item((struct item){time, 0, ITEM_ARRIVAL, NULL, ev->arrivals[i].phase,
                                ev->arrivals[i].count, ev});
}

static void resume(struct player *p, double time, const struct trace_event *by)
{
    add_wait(p->ev, by, time - p->since);
    model_timeline_role(p->ev->role)->waiting += time - p->since;
    p->ev = p->ev->next;
    p->prepared = false;
    at_time(time, ITEM_PLAYER, p);
}

static void arrive(const struct item *it)
{
    struct phase *f = &phases[it->phase];
    f->seen += it->count;
    if (f->done || f->seen < f->expected)
        return;
    f->done = true;
    f->by = it->by;
    while (f->waiting) {
        struct player *p = f->waiting;
        f->waiting = p->next_waiting;
        resume(p, now + rates->wake, f->by);
    }
}

static void count_done(struct player *p, struct group_count *g, const struct trace_event *by)
{
    g->done++;
    if (p->waits == g && g->done >= g->want) {
        p->waits = NULL;
        resume(p, now + 4, by);
    }
}

static void close_group(struct group_count *g)
{
    g->ends[g->groups++ % 64] = g->issued;
}

/* True if the player goes on at once. */
static bool wait_group(struct player *p, struct group_count *g, uint32_t pending)
{
    if (pending == UINT32_MAX)
        g->want = g->issued;
    else if (g->groups <= pending)
        return true;
    else
        g->want = g->ends[(g->groups - 1 - pending) % 64];
    if (g->done >= g->want)
        return true;
    p->waits = g;
    p->since = now;
    return false;
}

/* ------------------------------------------------------------------ work in order */

/* The port serves clocks of work that come at time t; returns when they are over. */
static double use_port(int block, double t, double clocks)
{
    struct sm *s = &sms[block];
    double from = s->port > t ? s->port : t;
    s->port = from + clocks;
    engine_busy(block, ENGINE_SHARED, from, clocks, 1);
    return s->port;
}

/* An access of a warp: in the order of the block's warps, and by turns with what else the port
 * serves. */
static double use_port_by_turns(int block, double clocks)
{
    struct sm *s = &sms[block];
    double from = s->warps > now ? s->warps : now;
    s->warps = from + (s->port > from ? 2 * clocks : clocks);
    use_port(block, from, clocks);
    return s->warps;
}

static double start_tensor(struct line *l, const struct trace_event *ev)
{
    double share = l->kind < SCHEDULERS ? 1.0 / SCHEDULERS : 1, products = ev->amount;
    if (ev->kind == TRACE_MMA_SYNC)
        products *= rates->mma_sync;
    double end = now + products;
    for (int c = 0; c < ev->ctas; c++) {
        int block = l->block + c;
        if (block >= num_blocks)
            break;
        double read = ev->bytes ? use_port(block, now, ev->bytes / rates->shared) : now;
        end = end > read ? end : read;
    }
    for (int c = 0; c < ev->ctas && l->block + c < num_blocks; c++) {
        sms[l->block + c].busy[ENGINE_TENSOR] += products * share;
        if (l->kind == 0 || l->kind == SCHEDULERS)
            draw((l->block + c) * ENGINES + ENGINE_TENSOR, now, end, 0, 0);
    }
    return end;
}

static double start_copy(struct line *l, const struct trace_event *ev)
{
    double near = ev->bytes / rates->near, far = 0;
    if (ev->kind != TRACE_COPY_OUT)
        far = ev->bytes * far_part / rates->far;
    double clocks = near > far ? near : far;
    engine_busy(l->block, ENGINE_COPY, now, clocks, 1);
    if (ev->kind == TRACE_COPY_OUT)
        use_port(l->block, now, ev->bytes / rates->shared);
    return now + clocks;
}

static void start_next(struct line *l)
{
    while (!l->busy && l->first != NULL) {
        struct trace_event *ev = l->first->ev;
        double end = now;
        if (ev->kind == TRACE_UMMA || ev->kind == TRACE_UMMA_COPY || ev->kind == TRACE_WGMMA ||
            ev->kind == TRACE_MMA_SYNC)
            end = start_tensor(l, ev);
        else if (ev->kind != TRACE_UMMA_COMMIT && ev->kind != TRACE_ASYNC_ARRIVE)
            end = start_copy(l, ev);
        l->busy = true;
        at_time(end, ITEM_LINE, l);
    }
}

static void finish(struct line *l)
{
    struct request *r = l->first;
    struct player *p = r->player;
    const struct trace_event *ev = r->ev;
    double land = now + rates->near_wait + (rates->far_wait - rates->near_wait) * far_part;
    l->first = r->next;
    if (l->first == NULL)
        l->last = NULL;
    l->busy = false;
    switch (ev->kind) {
    case TRACE_WGMMA:
        at_time(now + rates->tensor, ITEM_LANDED, r);
        break;
    case TRACE_UMMA_COMMIT:
        arrivals(ev, now + rates->tensor + rates->commit);
        free(r);
        break;
    case TRACE_COPY_IN:
    case TRACE_ASYNC:
        p->copied = p->copied > land ? p->copied : land;
        at_time(land, ITEM_LANDED, r);
        break;
    case TRACE_COPY_OUT:
        at_time(now + rates->near_wait, ITEM_LANDED, r);
        break;
    case TRACE_ASYNC_ARRIVE:
        arrivals(ev, (p->copied > now ? p->copied : now) + rates->arrive);
        free(r);
        break;
    default:
        free(r);
    }
    start_next(l);
}

static void landed(struct request *r)
{
    struct trace_event *ev = r->ev;
    struct player *p = r->player;
    switch (ev->kind) {
    case TRACE_WGMMA:
        count_done(p, &p->wgmma, ev);
        break;
    case TRACE_COPY_OUT:
        count_done(p, &p->bulk, ev);
        break;
    case TRACE_ASYNC:
        use_port(p->block, now, ev->bytes / rates->shared);
        count_done(p, &p->async, ev);
        break;
    default: {
        uint32_t mask = ev->kind == TRACE_COPY_IN ? ev->amount : 0;
        double end = now;
        mask = mask ? mask : 1u << p->block;
        for (int b = 0; b < num_blocks; b++)
            if (mask >> b & 1) {
                double here = use_port(b, now, ev->bytes / rates->shared);
                end = end > here ? end : here;
            }
        arrivals(ev, end);
    }
    }
    free(r);
}

static void submit(struct player *p, int kind)
{
    struct line *l = &sms[p->block].lines[kind];
    struct request *r = (struct request *)calloc(1, sizeof *r);
    if (r == NULL)
        abort();
    r->ev = p->ev;
    r->player = p;
    *(l->last ? &l->last->next : &l->first) = r;
    l->last = r;
    start_next(l);
}

/* ------------------------------------------------------------------ warps */

/* A piece of the plain work before the event: when it has been issued. */
static double piece(struct player *p)
{
    struct sm *s = &sms[p->block];
    int q = p->warp % SCHEDULERS, left = p->pieces--;
    double share[PIPES], issued = 0, end = now;
    for (int i = 0; i < PIPES; i++) {
        share[i] = (double)p->work[i] / left;
        p->work[i] -= (uint32_t)(share[i] + 0.5);
        share[i] = (uint32_t)(share[i] + 0.5);
        issued += i < PIPE_LOAD ? share[i] : 0;
    }
    struct {
        double *pipe, clocks;
        int engine;
    } const use[] = {{&s->issue[q], issued, ENGINE_ISSUE},
                     {&s->fma[q], share[PIPE_FMA] * rates->fma + share[PIPE_FMA2] * rates->fma2,
                      ENGINE_FMA},
                     {&s->alu[q], share[PIPE_ALU] * rates->alu, ENGINE_ALU},
                     {&s->mufu[q], share[PIPE_MUFU] * rates->mufu, ENGINE_MUFU}};
    for (size_t i = 0; i < sizeof use / sizeof *use; i++) {
        if (use[i].clocks == 0)
            continue;
        double from = *use[i].pipe > now ? *use[i].pipe : now;
        *use[i].pipe = from + use[i].clocks;
        s->busy[use[i].engine] += use[i].clocks / SCHEDULERS;
        if (q == 0)
            draw(p->block * ENGINES + use[i].engine, from, *use[i].pipe, 0, 0);
        end = end > *use[i].pipe ? end : *use[i].pipe;
    }
    double alone = now + (share[PIPE_STALL] > 0 ? share[PIPE_STALL] : issued * rates->warp);
    end = end > alone ? end : alone;
    if (share[PIPE_LOAD] > 0) { /* bound by the SM's way to L2; the copy engine has the same */
        double bytes = 512 * share[PIPE_LOAD], near = bytes / rates->near,
               far = bytes * far_part / rates->far, from = s->loads > now ? s->loads : now;
        near = near > far ? near : far;
        s->loads = from + near;
        engine_busy(p->block, ENGINE_COPY, from, near, 1);
        model_timeline_role(p->ev->role)->copied += bytes;
        /* their latency is taken as hidden; only a queue beyond it holds the warp */
        end = end > s->loads - rates->load ? end : s->loads - rates->load;
    }
    return end;
}

static void prepare(struct player *p)
{
    struct trace_event *ev = p->ev;
    struct role_sums *role = model_timeline_role(ev->role);
    uint32_t all = 0;
    p->prepared = true;
    model_timeline_sums.events++;
    memcpy(p->work, ev->work, sizeof p->work);
    if (model_weights_find(ev, p->work)) {
        model_timeline_sums.weighted++;
        p->work[PIPE_MUFU] = ev->work[PIPE_MUFU]; /* exact, but for divisions and the like */
    } else
        p->work[PIPE_ISSUE] += 2; /* an address, a loop */
    for (int i = 0; i < PIPES; i++) {
        all += i < PIPE_LOAD ? p->work[i] : 0;
        role->work[i] += p->work[i];
    }
    if (all == 0 && p->work[PIPE_LOAD])
        all = 1;
    p->pieces = (int)((all + PIECE - 1) / PIECE);
}

/* What a warp waits for the result of an instruction of this latency. Kernels unroll loops over
 * independent rows, whose instructions the compiler interleaves: in a run of one kind only the last
 * one's result is waited for in full, those of another line, which may depend on each other, by a
 * fraction. */
static double answer(const struct trace_event *ev, double latency)
{
    const struct trace_event *next = ev->next;
    if (next == NULL || next->kind != ev->kind)
        return latency;
    return next->at.line == ev->at.line ? 1 : latency / 4;
}

/* The event itself. Returns when the warp goes on; negative: when something wakes it. */
static double perform(struct player *p)
{
    struct trace_event *ev = p->ev;
    struct sm *s = &sms[p->block];
    struct role_sums *role = model_timeline_role(ev->role);
    int q = p->warp % SCHEDULERS;
    double end;
    switch (ev->kind) {
    case TRACE_LD:
    case TRACE_ST:
        model_trace_wavefronts(ev);
        role->wavefronts += ev->wavefronts;
        role->conflicts += ev->conflicts;
        end = use_port_by_turns(p->block, ev->wavefronts);
        if (ev->kind == TRACE_LD)
            return end + answer(ev, rates->ld);
        return end - 32 > now + 1 ? end - 32 : now + 1;
    case TRACE_SHUFFLE:
        end = use_port_by_turns(p->block, ev->wavefronts);
        return end + answer(ev, rates->shuffle);
    case TRACE_VOTE:
        return now + 1 + answer(ev, rates->vote);
    case TRACE_SYNCWARP:
        return now + rates->fence;
    case TRACE_REMOTE: /* takes as long a port, if another one */
        role->wavefronts += ev->bytes / rates->shared;
        use_port(p->block, now, ev->bytes / rates->shared);
        return now + 3 + answer(ev, rates->remote);
    case TRACE_ATOMIC:
        return now + rates->atomic;
    case TRACE_ARRIVE:
        arrivals(ev, now + (ev->ctas > 1 ? rates->remote : rates->arrive));
        return now + 2;
    case TRACE_WAIT:
        arrivals(ev, now + rates->bar); /* bar.sync */
        if (ev->phase == 0 || phases[ev->phase].done)
            return now + 4;
        p->since = now;
        p->next_waiting = phases[ev->phase].waiting;
        phases[ev->phase].waiting = p;
        return -1;
    case TRACE_MMA_SYNC:
        role->tensor += ev->amount;
        submit(p, q);
        return now + 2;
    case TRACE_WGMMA:
        role->tensor += ev->amount / 4.0;
        role->operands += ev->bytes;
        p->wgmma.issued++;
        submit(p, q);
        return now + 2;
    case TRACE_WGMMA_COMMIT:
        close_group(&p->wgmma);
        return now + 2;
    case TRACE_WGMMA_WAIT:
        return wait_group(p, &p->wgmma, ev->amount) ? now + 2 : -1;
    case TRACE_UMMA:
        role->tensor += (double)ev->amount * ev->ctas;
        role->operands += (double)ev->bytes * ev->ctas;
        submit(p, SCHEDULERS);
        return now + 4;
    case TRACE_UMMA_COPY:
    case TRACE_UMMA_COMMIT:
        submit(p, SCHEDULERS);
        return now + 4;
    case TRACE_TMEM_LD:
    case TRACE_TMEM_ST: {
        bool ld = ev->kind == TRACE_TMEM_LD;
        double clocks = ev->bytes / (ld ? rates->tmem_ld : rates->tmem_st),
               from = s->tmem[q] > now ? s->tmem[q] : now;
        s->tmem[q] = from + clocks;
        s->busy[ENGINE_TMEM] += clocks / SCHEDULERS;
        if (q == 0)
            draw(p->block * ENGINES + ENGINE_TMEM, from, from + clocks, 0, 0);
        role->tmem += ev->bytes;
        *(ld ? &p->tmem_ld : &p->tmem_st) = s->tmem[q] + rates->tmem;
        return now + 2;
    }
    case TRACE_TMEM_WAIT_LD:
        return p->tmem_ld > now ? p->tmem_ld : now + 2;
    case TRACE_TMEM_WAIT_ST:
        return p->tmem_st > now ? p->tmem_st : now + 2;
    case TRACE_COPY_IN:
    case TRACE_ASYNC:
    case TRACE_COPY_OUT:
        role->copied += ev->bytes;
        role->far += ev->far;
        if (ev->kind == TRACE_ASYNC)
            p->async.issued++;
        else if (ev->kind == TRACE_COPY_OUT)
            p->bulk.issued++;
        submit(p, SCHEDULERS + 1);
        return now + (ev->kind == TRACE_ASYNC ? 4 : rates->box);
    case TRACE_BULK_COMMIT:
        close_group(&p->bulk);
        return now + 2;
    case TRACE_BULK_WAIT:
        return wait_group(p, &p->bulk, ev->amount) ? now + 2 : -1;
    case TRACE_ASYNC_COMMIT:
        close_group(&p->async);
        return now + 2;
    case TRACE_ASYNC_WAIT:
        return wait_group(p, &p->async, ev->amount) ? now + 2 : -1;
    case TRACE_ASYNC_ARRIVE:
        submit(p, SCHEDULERS + 1);
        return now + 2;
    default:
        return now + 1;
    }
}

static void step(struct player *p)
{
    if (p->ev == NULL) {
        players_left--;
        return;
    }
    struct trace_event *ev = p->ev;
    if (!p->prepared)
        prepare(p);
    double end = p->pieces > 0 ? piece(p) : -2;
    if (end < 0) {
        end = perform(p);
        if (end < 0)
            return; /* somebody wakes it */
        p->ev = ev->next;
        p->prepared = false;
    }
    model_timeline_role(ev->role)->working += end - now;
    draw(warp_row(p), now, end, ev->kind, ev->at.line);
    at_time(end, ITEM_PLAYER, p);
}

/* ------------------------------------------------------------------ a cluster */

/* Clusters that wait to be played back. */
static struct saved {
    struct saved *next;
    int blocks, warps;
    uint32_t phases;
    struct trace_event *first[];
} * saved_first, *saved_last;
static double saved_copied, saved_far;
static char kernel_played[512];

static void set_up(const struct saved *c)
{
    memset(sms, 0, sizeof sms);
    memset(players, 0, sizeof players);
    num_items = 0;
    now = 0;
    num_players = 0;
    num_blocks = c->blocks;
    warps_of_block = c->warps;
    picture.num_bars = 0;
    if (room_phases <= c->phases) {
        room_phases = 2 * (size_t)c->phases + 64;
        free(phases);
        phases = (struct phase *)malloc(room_phases * sizeof *phases);
        if (phases == NULL)
            abort();
    }
    memset(phases, 0, ((size_t)c->phases + 1) * sizeof *phases);
    for (int b = 0; b < num_blocks; b++) {
        for (int k = 0; k < LANES_OF_SM; k++) {
            sms[b].lines[k].block = b;
            sms[b].lines[k].kind = k;
        }
        for (int w = 0; w < warps_of_block; w++) {
            struct player *p = &players[num_players++];
            p->block = b;
            p->warp = w;
            p->ev = c->first[num_players - 1];
            picture.roles[num_players - 1] = NULL;
            for (struct trace_event *ev = p->ev; ev; ev = ev->next) {
                if (ev->role)
                    picture.roles[num_players - 1] = ev->role;
                for (int i = 0; i < ev->num_arrivals; i++)
                    phases[ev->arrivals[i].phase].expected += ev->arrivals[i].count;
            }
            for (struct trace_event *ev = p->ev; ev; ev = ev->next)
                if (ev->role == NULL)
                    ev->role = picture.roles[num_players - 1];
            at_time(0, ITEM_PLAYER, p);
        }
    }
    players_left = num_players;
}

/* Share of the tensor core in the part of the run from a quarter to three quarters of its work. */
static void middle(void)
{
    double all = 0, seen = 0, from = 0;
    for (int i = 0; i < picture.num_bars; i++)
        if (picture.bars[i].row == ENGINE_TENSOR)
            all += (double)(picture.bars[i].to - picture.bars[i].from);
    for (int i = 0; i < picture.num_bars; i++) {
        const struct timeline_bar *b = &picture.bars[i];
        double length = (double)(b->to - b->from);
        if (b->row != ENGINE_TENSOR)
            continue;
        if (seen < all / 4 && seen + length >= all / 4)
            from = (double)b->from + all / 4 - seen;
        if (seen < all * 3 / 4 && seen + length >= all * 3 / 4) {
            model_timeline_sums.middle_clocks += (double)b->from + all * 3 / 4 - seen - from;
            model_timeline_sums.middle_tensor += sms[0].busy[ENGINE_TENSOR] / 2;
        }
        seen += length;
    }
}

static void play(const struct saved *c)
{
    set_up(c);
    while (num_items > 0 && players_left > 0) {
        struct item it = pop_item();
        now = it.time;
        switch (it.what) {
        case ITEM_PLAYER:
            step((struct player *)it.object);
            break;
        case ITEM_LINE:
            finish((struct line *)it.object);
            break;
        case ITEM_ARRIVAL:
            arrive(&it);
            break;
        default:
            landed((struct request *)it.object);
        }
    }
    if (players_left > 0)
        fprintf(stderr, "timeline: %d warps wait for ever; the figures are wrong\n", players_left);
    while (num_items > 0) { /* what is still under way */
        struct item it = pop_item();
        if (it.what == ITEM_LANDED)
            free(it.object);
    }
    double tensor = 0;
    for (int b = 0; b < num_blocks; b++) {
        for (int e = 0; e < ENGINES; e++)
            model_timeline_sums.busy[e] += sms[b].busy[e];
        tensor += sms[b].busy[ENGINE_TENSOR];
        for (int k = 0; k < LANES_OF_SM; k++)
            while (sms[b].lines[k].first) {
                struct request *r = sms[b].lines[k].first;
                sms[b].lines[k].first = r->next;
                free(r);
            }
    }
    for (int i = 0; i < num_players; i++)
        model_timeline_role(picture.roles[i])->warps++;
    model_timeline_sums.clocks += now * num_blocks;
    if (model_timeline_sums.num_clusters == model_timeline_sums.room_clusters) {
        model_timeline_sums.room_clusters =
            model_timeline_sums.room_clusters ? 2 * model_timeline_sums.room_clusters : 64;
        model_timeline_sums.cluster_clocks =
            (double *)realloc(model_timeline_sums.cluster_clocks,
                              (size_t)model_timeline_sums.room_clusters * sizeof(double));
        if (model_timeline_sums.cluster_clocks == NULL)
            abort();
    }
    model_timeline_sums.cluster_clocks[model_timeline_sums.num_clusters++] = now;
    model_timeline_sums.longest =
        now > model_timeline_sums.longest ? now : model_timeline_sums.longest;
    middle();
    picture.blocks = num_blocks;
    picture.warps = warps_of_block;
    picture.clocks = now;
    if (tensor >= most_tensor) {
        struct timeline_picture swap = drawn;
        drawn = picture;
        picture = swap;
        picture.num_bars = 0;
        most_tensor = tensor;
    }
}

static void play_saved(void)
{
    if (model_timeline_sums.num_clusters == 0)
        model_weights_read(kernel_played);
    far_part = saved_copied > 0 ? saved_far / saved_copied : 0;
    far_part = far_part > 1 ? 1 : far_part;
    const char *text = getenv("MLA_MODEL_TIMELINE_FAR");
    if (text != NULL && *text != '\0')
        far_part = atof(text);
    for (const struct saved *c = saved_first; c != NULL; c = c->next)
        play(c);
    saved_first = saved_last = NULL;
    model_trace_forget();
}

void model_timeline_cluster(void)
{
    if (!model_tracing)
        return;
    int blocks = model_cluster.blocks, warps = model_cluster.block[0]->warps;
    struct saved *c =
        (struct saved *)model_trace_room(sizeof *c + (size_t)(blocks * warps) * sizeof c->first[0]);
    c->blocks = blocks;
    c->warps = warps;
    c->phases = model_trace_phases;
    for (int i = 0; i < blocks * warps; i++) {
        const struct trace_event *head = model_cluster.block[i / warps]->warp[i % warps].trace;
        c->first[i] = head ? head->next : NULL;
        for (const struct trace_event *ev = c->first[i]; ev != NULL; ev = ev->next)
            if (ev->kind == TRACE_COPY_IN || ev->kind == TRACE_ASYNC) {
                saved_copied += ev->bytes;
                saved_far += ev->far;
            }
    }
    *(saved_last ? &saved_last->next : &saved_first) = c;
    saved_last = c;
    if (model_trace_bytes() > (size_t)1 << 30)
        play_saved();
}

/* ------------------------------------------------------------------ a launch */

void model_timeline_begin(const char *kernel)
{
    snprintf(kernel_played, sizeof kernel_played, "%s", kernel);
    double *kept = model_timeline_sums.cluster_clocks;
    int room = model_timeline_sums.room_clusters;
    memset(&model_timeline_sums, 0, sizeof model_timeline_sums);
    model_timeline_sums.cluster_clocks = kept;
    model_timeline_sums.room_clusters = room;
    most_tensor = 0;
    drawn.num_bars = 0;
    saved_first = saved_last = NULL;
    saved_copied = saved_far = 0;
    model_trace_forget();
    model_trace_begin();
    rates = model_timeline_rates();
    if (rates == NULL)
        model_tracing = false;
}

void model_timeline_end(const char *kernel, uint64_t clusters, int blocks)
{
    static bool begun;
    if (!model_tracing)
        return;
    play_saved();
    model_tracing = false;
    if (model_timeline_sums.num_clusters == 0)
        return;
    char *text = NULL;
    size_t bytes;
    FILE *f = open_memstream(&text, &bytes);
    if (f == NULL)
        return;
    model_timeline_table(f, kernel, clusters, blocks, rates, far_part);
    fclose(f);
    fprintf(stderr, "%s\n", text);
    const char *path = getenv("MLA_MODEL_TIMELINE");
    if (path != NULL && strcmp(path, "-") != 0) {
        model_timeline_draw(path, !begun, kernel, text, &drawn);
        begun = true;
    }
    free(text);
}
