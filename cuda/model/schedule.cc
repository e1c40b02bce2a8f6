/* SPDX-License-Identifier: Apache-2.0 */
/* The scheduler: ready threads, sleeping threads, and ops that may run. Threads switch straight
 * from one to the next; the launching thread's own context is taken up again only at the end. */
#include "schedule.h"
#include "trace.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct model_fiber *model_self;
struct model_thread_index threadIdx, blockIdx, blockDim, gridDim;
struct model_cluster model_cluster;
struct model_device model_device;

enum { MOST_FIBERS = MODEL_MAX_CLUSTER * MODEL_MAX_THREADS };

static struct model_context launcher;
static struct model_fiber **all;
static int num_all, num_live;
static bool failed;

/* A ring of ready fibers. */
static struct model_fiber *ready[MOST_FIBERS];
static unsigned ready_first, num_ready;

/* Fibers that would go on after some time although nothing woke them. */
static struct model_fiber *timed_first;
static uint64_t progress, progress_at_timeout;
static int timeouts;

/* ------------------------------------------------------------------ chance */

static uint64_t random_state;

uint32_t model_random(uint32_t below)
{
    random_state = random_state * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)((random_state >> 33) % below);
}

static bool one_in(uint32_t n)
{
    return model_device.schedule == MODEL_RANDOM && model_random(n) == 0;
}

/* ------------------------------------------------------------------ ops */

/* Every op under way has a slot; those that nothing holds back are in a list too. */
static struct model_op **slots, **runnable;
static uint16_t *free_slots;
static int num_slots, num_free, num_runnable;
static struct model_op *open_ops;
static uint64_t issued;

static const int MOST_OPS = 65535;

static void *grown(void *old, size_t bytes)
{
    void *p = realloc(old, bytes);
    if (!p)
        abort(); /* a model without memory can say nothing useful any more */
    return p;
}

struct model_op *model_op_of(uint16_t slot)
{
    return slots[slot];
}

struct model_op *model_op_new(const char *name, void (*run)(struct model_op *op),
                              size_t payload_bytes, struct model_at at)
{
    size_t head = (sizeof(struct model_op) + 15) & ~(size_t)15;
    struct model_op *op = (struct model_op *)calloc(1, head + payload_bytes);
    if (!op)
        abort();
    op->name = name;
    op->run = run;
    op->data = (char *)op + head;
    op->issuer = model_self;
    op->at = at;
    op->trace = model_tracing && model_self ? model_self->trace : NULL;
    op->async_proxy = true;
    op->ready_at = -1;
    op->open_next = open_ops;
    op->open_link = &open_ops;
    if (open_ops)
        open_ops->open_link = &op->open_next;
    open_ops = op;
    return op;
}

static void add_range(struct model_op *op, struct model_space *space, uint32_t at, uint32_t bytes)
{
    int used = op->num_reads + op->num_writes;
    if (used == op->room_ranges) {
        op->room_ranges = used ? 2 * used : 4;
        op->ranges =
            (struct model_range *)grown(op->ranges, (size_t)op->room_ranges * sizeof *op->ranges);
    }
    op->ranges[used] = (struct model_range){space, at, bytes};
}

void model_op_reads(struct model_op *op, struct model_space *space, uint32_t at, uint32_t bytes)
{
    if (op->num_writes)
        abort(); /* reads come first */
    add_range(op, space, at, bytes);
    op->num_reads++;
}

void model_op_writes(struct model_op *op, struct model_space *space, uint32_t at, uint32_t bytes)
{
    add_range(op, space, at, bytes);
    op->num_writes++;
}

void model_op_after(struct model_op *op, struct model_op *before)
{
    if (before->num_next == before->room_next) {
        before->room_next = before->num_next ? 2 * before->num_next : 4;
        before->next = (struct model_op **)grown(before->next,
                                                 (size_t)before->room_next * sizeof *before->next);
    }
    before->next[before->num_next++] = op;
    op->waits_for++;
}

void model_op_after_group(struct model_op *op, struct model_group *group)
{
    for (struct model_op *o = group->first; o; o = o->group_next)
        model_op_after(op, o);
}

void model_op_in_chain(struct model_op *op, struct model_chain *chain)
{
    if (chain->last)
        model_op_after(op, chain->last);
    chain->last = op;
    op->chain = chain;
}

void model_op_in_group(struct model_op *op, struct model_group *group)
{
    op->group = group;
    op->group_next = group->first;
    if (group->first)
        group->first->group_before = op;
    group->first = op;
    group->count++;
}

static void leave_group(struct model_op *op)
{
    if (!op->group)
        return;
    if (op->group_before)
        op->group_before->group_next = op->group_next;
    else
        op->group->first = op->group_next;
    if (op->group_next)
        op->group_next->group_before = op->group_before;
    op->group->count--;
}

/* Does first have to run before second? */
bool model_op_before(const struct model_op *first, const struct model_op *second)
{
    if (first->chain && first->chain == second->chain)
        return !second->issued || first->number < second->number;
    for (int i = 0; i < first->num_next; i++)
        if (first->next[i] == second || model_op_before(first->next[i], second))
            return true;
    return false;
}

static void make_runnable(struct model_op *op)
{
    op->ready_at = num_runnable;
    runnable[num_runnable++] = op;
}

static void not_runnable(struct model_op *op)
{
    struct model_op *last = runnable[--num_runnable];
    runnable[op->ready_at] = last;
    last->ready_at = op->ready_at;
    op->ready_at = -1;
}

static void free_op(struct model_op *op)
{
    slots[op->slot] = NULL;
    free_slots[num_free++] = op->slot;
    free(op->ranges);
    free(op->next);
    free(op);
}

/* Effects, then the marks, then those that waited: an op that is run through its own effects (a
 * commit's arrival wakes threads only) is never re-entered. */
static void run_op(struct model_op *op)
{
    struct model_fiber *self = model_self;
    if (op->ready_at >= 0)
        not_runnable(op);
    if (op->issuer)
        model_self = op->issuer;
    struct trace_event *outer = model_trace_op;
    model_trace_op = op->trace;
    op->run(op);
    model_trace_op = outer;
    model_self = self;
    model_marks_clear(op);
    op->done = true;
    leave_group(op);
    if (op->chain && op->chain->last == op)
        op->chain->last = NULL;
    for (int i = 0; i < op->num_next; i++) {
        struct model_op *next = op->next[i];
        if (--next->waits_for == 0 && next->issued)
            make_runnable(next);
    }
    free_op(op);
    model_progress();
}

static void run_eager(void)
{
    while (num_runnable)
        run_op(runnable[0]);
}

static void close_op(struct model_op *op)
{
    *op->open_link = op->open_next;
    if (op->open_next)
        op->open_next->open_link = op->open_link;
}

void model_op_issue(struct model_op *op)
{
    if (!slots) {
        slots = (struct model_op **)grown(NULL, (size_t)(MOST_OPS + 1) * sizeof *slots);
        runnable = (struct model_op **)grown(NULL, (size_t)(MOST_OPS + 1) * sizeof *runnable);
        free_slots = (uint16_t *)grown(NULL, (size_t)(MOST_OPS + 1) * sizeof *free_slots);
        memset(slots, 0, (size_t)(MOST_OPS + 1) * sizeof *slots);
    }
    if (!num_free && num_slots == MOST_OPS)
        model_fail(op->at, "%s: more than %d asynchronous operations are under way", op->name,
                   MOST_OPS);
    op->slot = num_free ? free_slots[--num_free] : (uint16_t)++num_slots;
    slots[op->slot] = op;
    close_op(op);
    model_marks_check(op);
    op->number = ++issued;
    op->issued = true;
    model_marks_set(op);
    if (op->waits_for == 0)
        make_runnable(op);
    if (model_device.schedule == MODEL_EAGER)
        run_eager();
    else
        model_step();
}

/* Runs op, whatever it waits for first. */
static void demand(struct model_op *op)
{
    while (op->waits_for) {
        struct model_op *before = NULL;
        for (int s = 1; s <= num_slots && !before; s++)
            for (int i = 0; slots[s] && i < slots[s]->num_next && !before; i++)
                if (slots[s]->next[i] == op)
                    before = slots[s];
        demand(before);
    }
    run_op(op);
}

void model_group_finish(struct model_group *group)
{
    model_step();
    while (group->first)
        demand(group->first);
}

int model_op_slots(void)
{
    return num_slots;
}

static bool touches(const struct model_op *op, const struct model_block *block)
{
    for (int i = 0; i < op->num_reads + op->num_writes; i++)
        if (op->ranges[i].space->block == block)
            return true;
    return false;
}

struct model_op *model_op_on_block(const struct model_block *block)
{
    for (int s = 1; s <= num_slots; s++)
        if (slots[s] && touches(slots[s], block))
            return slots[s];
    return NULL;
}

void model_ops_finish_exempt(const struct model_block *block)
{
    for (int s = 1; s <= num_slots; s++)
        if (slots[s] && slots[s]->exempt && slots[s]->issuer && slots[s]->issuer->block == block)
            demand(slots[s]);
}

void model_ops_drop(void)
{
    for (int s = 1; s <= num_slots; s++)
        if (slots[s])
            free_op(slots[s]);
    num_slots = num_free = num_runnable = 0;
    while (open_ops) {
        struct model_op *op = open_ops;
        close_op(op);
        free(op->ranges);
        free(op->next);
        free(op);
    }
}

/* ------------------------------------------------------------------ threads */

struct model_fiber *model_fiber_of(int number)
{
    return all[number];
}

void model_progress(void)
{
    progress++;
}

void model_ready(struct model_fiber *fiber)
{
    ready[(ready_first + num_ready++) % MOST_FIBERS] = fiber;
}

/* Random schedules hold one warp back for a while, then another: a thread that is missed by a
 * barrier must be late by a whole phase before it shows. */
static const struct model_warp *lazy;
static uint32_t lazy_steps;

static void choose_lazy(void)
{
    if (lazy_steps--)
        return;
    lazy = model_random(4) ? all[model_random((uint32_t)num_all)]->warp : NULL;
    lazy_steps = 256u << model_random(8);
}

/* Nobody but the warp that is held back could go on. */
static bool only_lazy_ready(void)
{
    if (!lazy || num_ready > 32)
        return false;
    for (int i = 0; i < (int)num_ready; i++)
        if (ready[(ready_first + i) % MOST_FIBERS]->warp != lazy)
            return false;
    return true;
}

static struct model_fiber *take_ready(void)
{
    if (model_device.schedule == MODEL_RANDOM) {
        unsigned pick = (ready_first + model_random(num_ready)) % MOST_FIBERS;
        choose_lazy();
        for (int tries = 0; tries < 8 && ready[pick]->warp == lazy; tries++)
            pick = (ready_first + model_random(num_ready)) % MOST_FIBERS;
        struct model_fiber *f = ready[pick];
        ready[pick] = ready[ready_first];
        ready[ready_first] = f;
    }
    struct model_fiber *f = ready[ready_first];
    ready_first = (ready_first + 1) % MOST_FIBERS;
    num_ready--;
    return f;
}

static void unlink_waiter(struct model_fiber *f)
{
    struct model_fiber *before = NULL;
    for (struct model_fiber *o = f->queue->first; o != f; o = o->queue_next)
        before = o;
    *(before ? &before->queue_next : &f->queue->first) = f->queue_next;
    if (f->queue->last == f)
        f->queue->last = before;
}

/* All that poll try again. Nothing new since the last few times: they poll in vain. */
static bool wake_timed(void)
{
    if (!timed_first)
        return false;
    timeouts = progress == progress_at_timeout ? timeouts + 1 : 0;
    progress_at_timeout = progress;
    if (timeouts > 64)
        return false;
    while (timed_first) {
        struct model_fiber *f = timed_first;
        timed_first = f->timed_next;
        f->timed = false;
        f->timed_out = true;
        unlink_waiter(f);
        f->queue = NULL;
        model_ready(f);
    }
    return true;
}

static void become(struct model_fiber *f)
{
    model_self = f;
    threadIdx = f->thread_index;
    blockIdx = f->block->index;
}

/* Goes on with another thread, or with the launcher when none is left. */
static void switch_away(bool ends)
{
    struct model_fiber *self = model_self;
    for (;;) {
        if (num_runnable && one_in(4))
            run_op(runnable[model_random((uint32_t)num_runnable)]);
        if (num_ready && !(num_runnable && only_lazy_ready()))
            break;
        if (num_runnable) /* late: the newest first */
            run_op(runnable[model_device.schedule == MODEL_RANDOM
                                ? model_random((uint32_t)num_runnable)
                                : (uint32_t)num_runnable - 1]);
        else if (num_live == 0)
            break;
        else if (!wake_timed())
            model_deadlock();
    }
    if (!num_ready) {
        model_context_switch(&self->context, &launcher, ends);
        return;
    }
    struct model_fiber *next = take_ready();
    if (next == self)
        return;
    become(next);
    model_context_switch(&self->context, &next->context, ends);
}

void model_step(void)
{
    if (!one_in(8))
        return;
    model_ready(model_self);
    switch_away(false);
}

static void enqueue(struct model_queue *queue, const char *what, const void *object,
                    void (*describe)(const void *, char *, size_t), struct model_at here)
{
    struct model_fiber *self = model_self;
    self->queue = queue;
    self->queue_next = NULL;
    *(queue->last ? &queue->last->queue_next : &queue->first) = self;
    queue->last = self;
    self->waits_for = what;
    self->waits_on = object;
    self->describe = describe;
    self->waits_at = here;
}

void model_sleep(struct model_queue *queue, const char *what, const void *object,
                 void (*describe)(const void *object, char *text, size_t bytes),
                 struct model_at here)
{
    enqueue(queue, what, object, describe, here);
    switch_away(false);
}

bool model_sleep_timed(struct model_queue *queue, const char *what, const void *object,
                       void (*describe)(const void *object, char *text, size_t bytes),
                       struct model_at here)
{
    struct model_fiber *self = model_self;
    enqueue(queue, what, object, describe, here);
    self->timed = true;
    self->timed_out = false;
    self->timed_next = timed_first;
    timed_first = self;
    switch_away(false);
    return !self->timed_out;
}

void model_wake_all(struct model_queue *queue)
{
    struct model_fiber *f = queue->first;
    queue->first = queue->last = NULL;
    if (f)
        model_progress();
    while (f) {
        struct model_fiber *next = f->queue_next;
        f->queue = NULL;
        if (f->timed) {
            struct model_fiber **at = &timed_first;
            while (*at != f)
                at = &(*at)->timed_next;
            *at = f->timed_next;
            f->timed = false;
        }
        model_ready(f);
        f = next;
    }
}

void model_exit_thread(void)
{
    num_live--;
    model_progress();
    switch_away(true);
    abort(); /* no one goes back */
}

void model_abandon(void)
{
    failed = true;
    model_context_switch(&model_self->context, &launcher, true);
    abort();
}

bool model_run_cluster(struct model_fiber **fibers, int count)
{
    all = fibers;
    num_all = num_live = count;
    num_ready = ready_first = 0;
    timed_first = NULL;
    timeouts = 0;
    failed = false;
    random_state = model_device.seed * 0x9E3779B97F4A7C15ull + 1;
    lazy = NULL;
    lazy_steps = 0;
    for (int i = 0; i < count; i++)
        model_ready(fibers[i]);
    struct model_fiber *first = take_ready();
    become(first);
    model_context_switch(&launcher, &first->context, false);
    model_self = NULL;
    if (failed)
        model_ops_drop();
    return !failed;
}

/* ------------------------------------------------------------------ deadlock */

/* Do two threads of a block wait for the same thing at the same place? */
static bool same_wait(const struct model_fiber *a, const struct model_fiber *b)
{
    return a->block == b->block && a->queue == b->queue && a->waits_at.line == b->waits_at.line &&
           a->waits_for == b->waits_for && a->role == b->role && a->waits_value == b->waits_value;
}

static bool waits(const struct model_fiber *f)
{
    return !f->exited && f->queue;
}

/* "; block 0 warps 0 to 3 [softmax] at a.cu:3 wait for ...": all threads that wait for it. */
static int describe_wait(const struct model_fiber *f, char *text, size_t bytes)
{
    int count = 0, last = f->warp->index;
    char why[200] = "";
    const char *file = strrchr(f->waits_at.file, '/');
    for (int i = 0; i < num_all; i++)
        if (waits(all[i]) && same_wait(all[i], f)) {
            count++;
            last = all[i]->warp->index;
        }
    if (f->describe)
        f->describe(f->waits_on, why, sizeof why);
    return snprintf(text, bytes, "; rank %u warps %d to %d (%d threads)%s%s%s at %s:%d: %s%s%s",
                    f->block->rank, f->warp->index, last, count, f->role ? " [" : "",
                    f->role ? f->role : "", f->role ? "]" : "", file ? file + 1 : f->waits_at.file,
                    f->waits_at.line, f->waits_for, *why ? " " : "", why);
}

void model_deadlock(void)
{
    char text[1400];
    size_t used = 0;
    int waiting = 0;
    struct model_fiber *first = NULL;
    text[0] = '\0';
    for (int i = 0; i < num_all; i++) {
        if (!waits(all[i]))
            continue;
        waiting++;
        first = first ? first : all[i];
        bool told = false;
        for (int j = 0; j < i && !told; j++)
            told = waits(all[j]) && same_wait(all[j], all[i]);
        if (told || used >= sizeof text - 1)
            continue;
        int n = describe_wait(all[i], text + used, sizeof text - used);
        used += n > 0 ? (size_t)n : 0;
    }
    model_self = first ? first : all[0];
    model_fail(model_self->waits_at, "deadlock, %d threads wait%s", waiting, text);
}
