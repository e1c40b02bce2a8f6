/* SPDX-License-Identifier: Apache-2.0 */
/* A launch: limits as CUDA's, then cluster after cluster on fibers; and the sentence a failed one
 * leaves. Order of the clusters is part of the schedule. */
#include "launch.h"

#include "count.h"
#include "mutant.h"
#include "schedule.h"
#include "timeline.h"

#include "cuda_runtime_api.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

char model_error_text[2048];
const struct model_kernel *model_running_kernel;

static const uint32_t MOST_SHARED = 232448; /* of any device */

/* Fibers, blocks and warps are kept from launch to launch: stacks and shadows are large. */
static struct model_fiber *fibers[MODEL_MAX_CLUSTER];
static struct model_block *blocks[MODEL_MAX_CLUSTER];
static struct model_warp *warps[MODEL_MAX_CLUSTER];
static struct model_fiber *all[MODEL_MAX_CLUSTER * MODEL_MAX_THREADS];
static void **running_args;
static bool on_fiber;
static jmp_buf set_up;

/* ------------------------------------------------------------------ sentences */

/* The kernel's name out of the compiler's sentence about a function of it. */
static void kernel_name(const struct model_kernel *kernel, char *text, size_t bytes)
{
    const char *from = kernel->name, *next;
    while ((next = strstr(from, " = ")))
        from = next + 3;
    from += *from == '&';
    snprintf(text, bytes, "%s", from);
    size_t length = strlen(text);
    if (length && text[length - 1] == ']')
        text[length - 1] = '\0';
}

void model_describe_fiber(const struct model_fiber *f, char *text, size_t bytes)
{
    const struct model_thread_index *b = &f->block->index;
    snprintf(text, bytes, "block (%u,%u,%u) warp %d lane %d%s%s%s", b->x, b->y, b->z,
             f->warp->index, f->lane, f->role ? " [" : "", f->role ? f->role : "",
             f->role ? "]" : "");
}

void model_fail(struct model_at here, const char *format, ...)
{
    char name[200], who[200] = "", what[1700];
    const char *file = here.file ? strrchr(here.file, '/') : NULL;
    va_list list;
    va_start(list, format);
    vsnprintf(what, sizeof what, format, list);
    va_end(list);
    kernel_name(model_running_kernel, name, sizeof name);
    if (model_self)
        model_describe_fiber(model_self, who, sizeof who);
    int n = snprintf(model_error_text, sizeof model_error_text, "%s: %s at %s:%d: %s", name, who,
                     file ? file + 1 : here.file, here.line, what);
    if (n >= (int)sizeof model_error_text)
        strcpy(model_error_text + sizeof model_error_text - 4, "...");
    if (!on_fiber)
        longjmp(set_up, 1);
    model_abandon();
}

/* ------------------------------------------------------------------ one cluster */

static void thread_main(void)
{
    model_context_entered();
    model_running_kernel->call(running_args);
    struct model_fiber *self = model_self;
    struct model_block *block = self->block;
    struct model_at end = {"(end of the kernel)", 0};
    model_barriers_thread_exit(self);
    self->exited = true;
    if (block->live == 0) {
        model_ops_finish_exempt(block);
        const struct model_op *op = model_op_on_block(block);
        if (op) {
            const char *file = strrchr(op->at.file, '/');
            model_fail(end, "the block exits while %s of %s:%d is under way in its %s", op->name,
                       file ? file + 1 : op->at.file, op->at.line, op->ranges[0].space->name);
        }
        if (model_tensor_end)
            model_tensor_end(block);
        block->exited = true;
    }
    model_exit_thread();
}

static bool allocate(int block, int threads)
{
    if (!fibers[block]) {
        fibers[block] = (struct model_fiber *)calloc(MODEL_MAX_THREADS, sizeof **fibers);
        warps[block] = (struct model_warp *)calloc(MODEL_MAX_THREADS / 32, sizeof **warps);
        blocks[block] = (struct model_block *)calloc(1, sizeof **blocks);
        if (!fibers[block] || !warps[block] || !blocks[block])
            return false;
        model_space_open(&blocks[block]->shared, "shared memory", blocks[block], MOST_SHARED,
                         MODEL_SHARED_BASE);
    }
    for (int t = 0; t < threads; t++)
        if (!model_context_stack(&fibers[block][t].context))
            return false;
    return true;
}

/* Registers of a thread at launch: what the compiler may use at most. */
static int first_registers(int threads)
{
    int n = 65536 / ((threads + 127) / 128 * 128) / 8 * 8;
    return n > 256 ? 256 : n;
}

static void begin_block(int b, const struct model_launch *l, struct model_thread_index index)
{
    struct model_block *block = blocks[b];
    int threads = (int)(l->block.x * l->block.y * l->block.z);
    struct model_space shared = block->shared;
    /* Only what this launch can reach needs to be forgotten. */
    shared.bytes = l->dynamic_bytes;
    model_space_reset(&shared);
    *block = (struct model_block){};
    block->shared = shared;
    block->shared.base = MODEL_SHARED_BASE | (uint32_t)b << MODEL_RANK_SHIFT;
    block->index = index;
    block->rank = (uint32_t)b;
    block->threads = block->live = threads;
    block->warps = (threads + 31) / 32;
    block->dynamic_bytes = l->dynamic_bytes;
    block->warp = warps[b];
    block->fiber = fibers[b];
    model_barriers_begin(block);
    for (int w = 0; w < block->warps; w++) {
        int lanes = threads - 32 * w < 32 ? threads - 32 * w : 32;
        warps[b][w] = (struct model_warp){};
        warps[b][w].block = block;
        warps[b][w].index = w;
        warps[b][w].live = lanes == 32 ? 0xFFFFFFFFu : (1u << lanes) - 1;
        warps[b][w].lanes = fibers[b] + 32 * w;
        warps[b][w].registers = first_registers(threads);
    }
    for (int t = 0; t < threads; t++) {
        struct model_fiber *f = &fibers[b][t];
        struct model_context context = f->context;
        struct model_group *copies = f->copies;
        int room = f->room_copies;
        *f = (struct model_fiber){};
        f->context = context;
        f->copies = copies;
        f->room_copies = room;
        f->num_copies = copies ? 1 : 0;
        if (copies)
            copies[0] = (struct model_group){NULL, 0};
        f->thread_index.x = (unsigned)t % l->block.x;
        f->thread_index.y = (unsigned)t / l->block.x % l->block.y;
        f->thread_index.z = (unsigned)t / l->block.x / l->block.y;
        f->block = block;
        f->warp = &warps[b][t / 32];
        f->index = t;
        f->lane = t % 32;
        f->number = b * threads + t;
        all[f->number] = f;
        model_context_start(&f->context, thread_main);
    }
    if (model_tensor_begin)
        model_tensor_begin(block);
}

static bool run_cluster(const struct model_launch *l, uint64_t number)
{
    int size = (int)(l->cluster.x * l->cluster.y * l->cluster.z);
    int threads = (int)(l->block.x * l->block.y * l->block.z);
    unsigned nx = l->grid.x / l->cluster.x, ny = l->grid.y / l->cluster.y;
    unsigned cx = (unsigned)(number % nx), cy = (unsigned)(number / nx % ny),
             cz = (unsigned)(number / nx / ny);
    model_cluster.blocks = size;
    model_trace_cluster_begin();
    model_cluster_barrier_begin();
    on_fiber = false;
    bool good = setjmp(set_up) == 0;
    if (good) {
        for (int b = 0; b < size; b++) {
            unsigned bx = (unsigned)b % l->cluster.x,
                     by = (unsigned)b / l->cluster.x % l->cluster.y,
                     bz = (unsigned)b / l->cluster.x / l->cluster.y;
            model_cluster.block[b] = blocks[b];
            begin_block(b, l,
                        {cx * l->cluster.x + bx, cy * l->cluster.y + by, cz * l->cluster.z + bz});
        }
        on_fiber = true;
        good = model_run_cluster(all, size * threads);
        if (good)
            model_timeline_cluster();
    }
    for (int b = 0; b < size; b++)
        model_barriers_end(blocks[b]);
    return good;
}

bool model_launch_run(const struct model_kernel *kernel, const struct model_launch *l, void **args)
{
    int size = (int)(l->cluster.x * l->cluster.y * l->cluster.z);
    int threads = (int)(l->block.x * l->block.y * l->block.z);
    uint64_t clusters = (uint64_t)l->grid.x * l->grid.y * l->grid.z / (uint64_t)size;
    char which[512];
    snprintf(which, sizeof which, "%s %s", kernel->file, kernel->name);
    model_mutant_select(which);
    model_counts_begin();
    char name[512];
    kernel_name(kernel, name, sizeof name);
    model_timeline_begin(name);
    model_running_kernel = kernel;
    running_args = args;
    blockDim = l->block;
    gridDim = l->grid;
    for (int b = 0; b < size; b++)
        if (!allocate(b, threads)) {
            snprintf(model_error_text, sizeof model_error_text,
                     "the model has no memory for %d blocks of %d threads", size, threads);
            return false;
        }
    /* A stride prime to the count visits every cluster once, in an order of the seed's. */
    uint64_t stride = 1, first = 0;
    if (model_device.schedule == MODEL_LATE) {
        stride = clusters - 1 ? clusters - 1 : 1; /* backwards */
        first = clusters - 1;
    } else if (model_device.schedule == MODEL_RANDOM) {
        first = model_device.seed % clusters;
        for (stride = model_device.seed % clusters + 1;; stride++) {
            uint64_t a = stride, b = clusters;
            while (b) {
                uint64_t r = a % b;
                a = b;
                b = r;
            }
            if (a == 1)
                break;
        }
    }
    for (uint64_t i = 0; i < clusters; i++)
        if (!run_cluster(l, (first + i % clusters * (stride % clusters)) % clusters))
            return false;
    model_counts_end(name, clusters * (uint64_t)size);
    model_timeline_end(name, clusters, size);
    return true;
}
