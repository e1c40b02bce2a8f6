/* SPDX-License-Identifier: Apache-2.0 */
/* wgmma of the functional model. A warp's part of an instruction, 16 rows, is one op; the warps of
 * a warpgroup must agree on what they issue. Accumulators live in the model from the first
 * instruction on them until the wait that covers the last: meanwhile the kernel's registers hold
 * poison, and whoever writes them is found out at the wait. */
#include "count.h"
#include "matrix.h"
#include "tensor.h"
#include "tensor_state.h"
#include "trace.h"

#include <stdlib.h>
#include <string.h>

/* The registers of one D in a warp. */
struct accumulator {
    struct accumulator *next;
    float *d[32];
    int n;
    uint64_t group; /* of the last instruction on it */
    float tile[16 * 256];
};

struct work { /* payload of an op */
    struct accumulator *d;
    struct model_block *block;
    struct model_matrix a, b;
    operand_type type;
    int n, row; /* row: first of the warp's rows in A */
    bool accumulate, registers;
    uint32_t fragment[32][4];
};

static void lane_tile(const struct accumulator *d, int lane, float *out)
{
    int g = lane / 4, t = lane % 4;
    for (int i = 0; i < d->n / 8; i++) {
        const float *low = d->tile + g * d->n + 8 * i + 2 * t, *high = low + 8 * d->n;
        out[4 * i] = low[0], out[4 * i + 1] = low[1];
        out[4 * i + 2] = high[0], out[4 * i + 3] = high[1];
    }
}

static void fragment_rows(const struct work *w, float *a)
{
    int bytes = model_type_bytes(w->type), per = 4 / bytes, k = 32 / bytes;
    for (int lane = 0; lane < 32; lane++)
        for (int j = 0; j < 4; j++) {
            float *out = a + (lane / 4 + 8 * (j & 1)) * k + (j >> 1) * (k / 2) + lane % 4 * per;
            for (int i = 0; i < per; i++)
                out[i] = model_element(w->type, w->fragment[lane][j] >> (8 * bytes * i) &
                                                    (bytes == 2 ? 0xFFFF : 0xFF));
        }
}

static void run(struct model_op *op)
{
    static float a[16 * 32], b[32 * 256];
    struct work *w = (struct work *)op->data;
    int k = 32 / model_type_bytes(w->type);
    if (w->registers)
        fragment_rows(w, a);
    else
        model_gather(&w->a, w->type, (uint32_t)w->row, 16, w->block, a, k, 1);
    model_gather(&w->b, w->type, 0, (uint32_t)w->n, w->block, b, 1, w->n);
    if (!w->accumulate)
        memset(w->d->tile, 0, sizeof(float) * 16 * (size_t)w->n);
    model_multiply(w->d->tile, a, b, 16, w->n, k);
}

struct argument { /* of one lane */
    float *d;
    const uint32_t *a_registers;
    uint64_t a, b;
    int n;
    operand_type type;
    int trans_a, trans_b;
    bool accumulate;
    struct model_at at;
};

static void same(struct model_warp *warp, void *const args[32], struct model_at at)
{
    const struct argument *first = (const struct argument *)args[0];
    for (int lane = 1; lane < 32; lane++) {
        const struct argument *x = (const struct argument *)args[lane];
        if (x->a != first->a || x->b != first->b || x->accumulate != first->accumulate ||
            x->n != first->n)
            model_fail(
                at,
                "wgmma: lane %d of warp %d has descriptors %llx, %llx, accumulate %d; lane 0 "
                "%llx, %llx, %d",
                lane, warp->index, (unsigned long long)x->a, (unsigned long long)x->b,
                x->accumulate, (unsigned long long)first->a, (unsigned long long)first->b,
                first->accumulate);
    }
}

/* The warps of a warpgroup issue the same instructions in the same order. */
static void agree(struct model_warp *warp, struct warp_state *state, const struct argument *x,
                  struct model_at at)
{
    struct block_state *block = model_block_state(warp->block);
    if (warp->index / 4 * 4 + 4 > warp->block->warps)
        model_fail(at, "wgmma: warp %d belongs to no whole warpgroup of four warps", warp->index);
    block->wgmma_used = true;
    uint32_t shape = (uint32_t)x->n | (uint32_t)x->type << 9 | (uint32_t)x->trans_a << 12 |
                     (uint32_t)x->trans_b << 13 | (uint32_t)x->accumulate << 14 |
                     (uint32_t)(x->a_registers != NULL) << 15;
    struct wgmma_issue *issue = &block->log[warp->index / 4][state->wgmma_issued++ % WGMMA_LOG];
    if (issue->number < state->wgmma_issued) {
        issue->number = state->wgmma_issued;
        issue->a = x->a, issue->b = x->b, issue->shape = shape;
    } else if (issue->number == state->wgmma_issued &&
               (issue->a != x->a || issue->b != x->b || issue->shape != shape))
        model_fail(
            at,
            "wgmma: number %llu of warp %d has descriptors %llx, %llx, shape word %x; another "
            "warp of its warpgroup %llx, %llx, %x",
            (unsigned long long)state->wgmma_issued, warp->index, (unsigned long long)x->a,
            (unsigned long long)x->b, shape, (unsigned long long)issue->a,
            (unsigned long long)issue->b, issue->shape);
}

static struct accumulator *open_accumulator(struct warp_state *state, void *const args[32],
                                            struct model_at at)
{
    const struct argument *first = (const struct argument *)args[0];
    int words = first->n / 2;
    for (struct accumulator *d = state->accumulators; d != NULL; d = d->next) {
        if (first->d + words <= d->d[0] || d->d[0] + d->n / 2 <= first->d)
            continue;
        for (int lane = 0; lane < 32; lane++)
            if (((const struct argument *)args[lane])->d != d->d[lane] || d->n != first->n)
                model_fail(at,
                           "wgmma: D overlaps the registers of one under way of another shape "
                           "(n %d, then %d)",
                           d->n, first->n);
        return d;
    }
    if (state->fences == 0)
        model_fail(at, "wgmma: no wgmma.fence before the first wgmma");
    for (int i = 0; i < state->num_released; i++)
        if (state->released[i].d == first->d && state->released[i].fences == state->fences)
            model_fail(at, "wgmma: no wgmma.fence since wgmma.wait_group gave these registers of D "
                           "back");
    struct accumulator *d = (struct accumulator *)calloc(1, sizeof *d);
    if (d == NULL)
        model_fail(at, "wgmma: out of memory");
    d->n = first->n;
    for (int lane = 0; lane < 32; lane++) {
        d->d[lane] = ((const struct argument *)args[lane])->d;
        const float *in = d->d[lane];
        int g = lane / 4, t = lane % 4;
        for (int i = 0; first->accumulate && i < d->n / 8; i++) {
            float *low = d->tile + g * d->n + 8 * i + 2 * t, *high = low + 8 * d->n;
            low[0] = in[4 * i], low[1] = in[4 * i + 1];
            high[0] = in[4 * i + 2], high[1] = in[4 * i + 3];
        }
        model_poison(d->d[lane], words);
    }
    d->next = state->accumulators;
    state->accumulators = d;
    return d;
}

static void issue(struct model_warp *warp, uint32_t mask, void *const args[32])
{
    (void)mask;
    const struct argument *x = (const struct argument *)args[0];
    struct warp_state *state = model_warp_state(warp);
    same(warp, args, x->at);
    agree(warp, state, x, x->at);
    if (x->a_registers != NULL && state->fences == state->fences_at_wait && state->fences != 0)
        model_fail(x->at, "wgmma: A in registers without a wgmma.fence since the last "
                          "wgmma.wait_group");
    struct model_op *op = model_op_new("wgmma.mma_async", run, sizeof(struct work), x->at);
    struct work *w = (struct work *)op->data;
    w->block = warp->block;
    w->type = x->type;
    w->n = x->n;
    w->accumulate = x->accumulate;
    w->row = warp->index % 4 * 16;
    w->registers = x->a_registers != NULL;
    if (w->registers) {
        for (int lane = 0; lane < 32; lane++)
            memcpy(w->fragment[lane], ((const struct argument *)args[lane])->a_registers, 16);
    } else {
        w->a = model_decode_wgmma(x->a, x->trans_a != 0, "wgmma: a", x->at);
        model_gather_ranges(op, &w->a, w->type, (uint32_t)w->row, 16, w->block, "wgmma: a");
    }
    w->b = model_decode_wgmma(x->b, x->trans_b != 0, "wgmma: b", x->at);
    model_gather_ranges(op, &w->b, w->type, 0, (uint32_t)w->n, w->block, "wgmma: b");
    w->d = open_accumulator(state, args, x->at);
    w->d->group = state->wgmma_group;
    state->wgmma_open = true;
    state->at = x->at;
    /* a warp's quarter: 64 x n x 16 products of 16 bits at 2048 a clock, 8 bits twice as fast */
    if (model_tracing) {
        struct trace_event *ev = model_self->trace;
        ev->amount = (uint32_t)w->n / 2;
        ev->bytes = ((w->registers ? 0 : 16) + (uint32_t)w->n / 4) * 32;
    }
    model_tally(COUNT_TENSOR, (uint64_t)w->n / 8);
    model_tally(COUNT_OPERANDS, ((w->registers ? 0 : 16) + (uint64_t)w->n / 4) * 32);
    model_op_in_chain(op, &state->wgmma_chain);
    model_op_in_group(op, &state->wgmma_groups[state->wgmma_group % WGMMA_GROUPS]);
    model_op_issue(op);
}

static void enter(struct argument *x, const char *what)
{
    model_needs_sm(90, 90, what, x->at);
    if (x->n % 8 != 0 || x->n < 8 || x->n > 256)
        model_fail(x->at, "%s: n: got %d, want a multiple of 8, 8 to 256", what, x->n);
    if (model_tracing)
        model_trace(TRACE_WGMMA, x->at);
    model_collective(what, 0xFFFFFFFF, issue, x, x->at);
}

void model_wgmma_ss(float *d, int n, operand_type type, u64 a, u64 b, int trans_a, int trans_b,
                    bool accumulate, struct model_at at)
{
    struct argument x = {d, NULL, a, b, n, type, trans_a, trans_b, accumulate, at};
    enter(&x, "wgmma.mma_async");
}

void model_wgmma_rs(float *d, int n, operand_type type, const u32 *a, u64 b, int trans_b,
                    bool accumulate, struct model_at at)
{
    struct argument x = {d, a, 0, b, n, type, 0, trans_b, accumulate, at};
    enter(&x, "wgmma.mma_async");
}

static void fence(struct model_warp *warp, uint32_t mask, void *const args[32])
{
    (void)mask;
    (void)args;
    model_warp_state(warp)->fences++;
}

void model_wgmma_fence(struct model_at at)
{
    model_needs_sm(90, 90, "wgmma.fence", at);
    if (model_tracing)
        model_trace(TRACE_SYNCWARP, at);
    model_collective("wgmma.fence", 0xFFFFFFFF, fence, NULL, at);
}

static void finish(struct warp_state *state, uint64_t groups)
{
    for (; state->wgmma_done < groups; state->wgmma_done++)
        model_group_finish(&state->wgmma_groups[state->wgmma_done % WGMMA_GROUPS]);
}

static void commit(struct model_warp *warp, uint32_t mask, void *const args[32])
{
    (void)mask;
    (void)args;
    struct warp_state *state = model_warp_state(warp);
    state->wgmma_group++;
    state->wgmma_open = false;
    if (state->wgmma_group - state->wgmma_done >= WGMMA_GROUPS)
        finish(state, state->wgmma_done + 1); /* early, which is always allowed */
}

void model_wgmma_commit(struct model_at at)
{
    model_needs_sm(90, 90, "wgmma.commit_group", at);
    if (model_tracing)
        model_trace(TRACE_WGMMA_COMMIT, at);
    model_collective("wgmma.commit_group", 0xFFFFFFFF, commit, NULL, at);
}

struct wait_argument {
    int pending;
    struct model_at at;
};

static void give_back(struct warp_state *state, struct accumulator *d, struct model_at at)
{
    float out[128];
    for (int lane = 0; lane < 32; lane++) {
        int word = model_poisoned(d->d[lane], d->n / 2);
        if (word < d->n / 2)
            model_fail(at,
                       "wgmma.wait_group: register %d of an accumulator (n %d) of lane %d was "
                       "written while wgmma was under way",
                       word, d->n, lane);
        lane_tile(d, lane, out);
        model_deliver(d->d[lane], out, d->n / 2);
    }
    int slot = state->num_released;
    for (int i = 0; i < state->num_released; i++)
        if (state->released[i].d == d->d[0])
            slot = i;
    if (slot == 16) {
        memmove(state->released, state->released + 1, 15 * sizeof state->released[0]);
        slot = 15;
    } else if (slot == state->num_released)
        state->num_released++;
    state->released[slot].d = d->d[0];
    state->released[slot].fences = state->fences;
}

static void wait(struct model_warp *warp, uint32_t mask, void *const args[32])
{
    (void)mask;
    const struct wait_argument *x = (const struct wait_argument *)args[0];
    struct warp_state *state = model_warp_state(warp);
    uint64_t groups = state->wgmma_group;
    groups = groups > (uint64_t)x->pending ? groups - (uint64_t)x->pending : 0;
    finish(state, groups);
    state->fences_at_wait = state->fences;
    for (struct accumulator **d = &state->accumulators; *d != NULL;) {
        struct accumulator *done = *d;
        if (done->group >= groups) {
            d = &done->next;
            continue;
        }
        give_back(state, done, x->at);
        *d = done->next;
        free(done);
    }
}

void model_wgmma_wait(int pending, struct model_at at)
{
    model_needs_sm(90, 90, "wgmma.wait_group", at);
    struct wait_argument x = {pending, at};
    if (model_tracing)
        model_trace(TRACE_WGMMA_WAIT, at)->amount = (uint32_t)pending;
    model_collective("wgmma.wait_group", 0xFFFFFFFF, wait, &x, at);
}

void model_wgmma_reset(struct warp_state *state)
{
    while (state->accumulators != NULL) {
        struct accumulator *d = state->accumulators;
        state->accumulators = d->next;
        free(d);
    }
}

void model_wgmma_end(struct model_block *block)
{
    if (!model_block_state(block)->wgmma_used)
        return;
    for (int w = 0; w < block->warps; w++) {
        struct warp_state *state = model_warp_state(&block->warp[w]);
        if (state->accumulators != NULL)
            model_fail(state->at,
                       "wgmma: warp %d has exited without a wgmma.wait_group for its last "
                       "wgmma%s",
                       w, state->wgmma_open ? ", which is in no committed group" : "");
        if (state->wgmma_issued != model_warp_state(&block->warp[w / 4 * 4])->wgmma_issued)
            model_fail(state->at,
                       "wgmma: warp %d issued %llu instructions, warp %d of its warpgroup %llu", w,
                       (unsigned long long)state->wgmma_issued, w / 4 * 4,
                       (unsigned long long)model_warp_state(&block->warp[w / 4 * 4])->wgmma_issued);
    }
}
