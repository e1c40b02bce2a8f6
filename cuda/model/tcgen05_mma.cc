/* SPDX-License-Identifier: Apache-2.0 */
/* tcgen05.mma, cp and commit of the functional model. All that a thread issues of them runs in the
 * order of issue (one chain); what others may see of it passes through a commit. Where the layouts
 * of D and of A in tensor memory come from: docs/verification.md. */
#include "count.h"
#include "matrix.h"
#include "tensor.h"
#include "tmem.h"
#include "trace.h"

#include <string.h>

/* ------------------------------------------------------------------ shapes and layouts */

struct shape {
    int m, n, k;
    operand_type a, b;
    bool trans_a, trans_b;
    int group, ctas; /* ctas = group */
    /* each CTA: rows of A and D; the datapath's banks of lanes, each of n / banks columns of D */
    int rows, banks;
    bool spread; /* M 64 of one CTA, not .ws: 16 rows every 32 lanes */
};

static struct shape decode_idesc(u32 idesc, int group, bool f16, bool ws, bool a_in_tmem,
                                 const char *what, struct model_at at)
{
    static const operand_type types16[2] = {OPERAND_F16, OPERAND_BF16};
    static const operand_type types8[2] = {OPERAND_E4M3, OPERAND_E5M2};
    struct shape s;
    u32 a = idesc >> 7 & 7, b = idesc >> 10 & 7;
    if ((idesc & 0xC000604F) != 0 || (idesc & (1u << 23)) != 0 || (idesc & (1u << 29)) != 0)
        model_fail(at,
                   "%s: instruction descriptor %08x: bits 0 to 3 (sparsity, saturation), 6, 13, 14 "
                   "(negation), 23, 29, 30 and 31: want 0",
                   what, idesc);
    if ((idesc >> 4 & 3) != 1)
        model_fail(at, "%s: instruction descriptor %08x: D's type: got %u, want 1 (f32)", what,
                   idesc, idesc >> 4 & 3);
    if (a > 1 || b > 1 || (f16 && a != b))
        model_fail(at, "%s: instruction descriptor %08x: types of A and B: got %u and %u, want %s",
                   what, idesc, a, b,
                   f16 ? "0 (f16) or 1 (bf16), both the same" : "0 (e4m3) or 1 (e5m2)");
    s.a = f16 ? types16[a] : types8[a];
    s.b = f16 ? types16[b] : types8[b];
    s.k = f16 ? 16 : 32;
    s.trans_a = (idesc >> 15 & 1) != 0;
    s.trans_b = (idesc >> 16 & 1) != 0;
    s.n = (int)(idesc >> 17 & 63) * 8;
    s.m = (int)(idesc >> 24 & 31) * 16;
    s.group = s.ctas = group;
    if (a_in_tmem && s.trans_a)
        model_fail(at, "%s: A in tensor memory: got MN-major, want K-major", what);
    bool m_legal = ws           ? s.m == 32 || s.m == 64 || s.m == 128
                   : group == 2 ? s.m == 128 || s.m == 256
                                : s.m == 64 || s.m == 128;
    if (!m_legal)
        model_fail(at, "%s: M: got %d, want %s", what, s.m,
                   ws           ? "32, 64 or 128"
                   : group == 2 ? "128 or 256 (the pair's)"
                                : "64 or 128");
    int step = group == 2 ? 32 : s.m == 64 ? 8 : 16;
    if (ws ? s.n != 64 && s.n != 128 && s.n != 256 : s.n % step != 0 || s.n < step || s.n > 256)
        model_fail(at, "%s: N: got %d, want %s%d%s", what, s.n,
                   ws ? "64, 128 or " : "a multiple of ", ws ? 256 : step,
                   ws ? "" : ", at most 256");
    if (!f16 && s.trans_b && s.n / s.ctas % 16 != 0)
        model_fail(at, "%s: N: got %d with MN-major 8-bit B, want a multiple of 16 in each CTA",
                   what, s.n);
    s.rows = s.m / s.ctas;
    s.banks = ws && s.m == 64 ? 2 : ws && s.m == 32 ? 4 : group == 2 && s.m == 128 ? 2 : 1;
    s.spread = !ws && group == 1 && s.m == 64;
    return s;
}

/* Lane of row m (of the CTA's rows) in a bank. */
static int lane_of(const struct shape *s, int m, int bank, int base)
{
    return s->spread ? 32 * (m / 16) + m % 16 + base : m + s->rows * bank;
}

static uint8_t cells_of(const struct shape *s, int base)
{
    return s->spread ? (base == 0 ? 0x55 : 0xAA) : 0xFF;
}

static int base_lane(u32 taddr, const struct shape *s, const char *operand, const char *what,
                     struct model_at at)
{
    u32 lane = taddr >> 16;
    if (lane != 0 && !(s->spread && lane == 16))
        model_fail(at, "%s: lane of %s: got %u, want 0%s", what, operand, lane,
                   s->spread ? " or 16 (M 64)" : "");
    return (int)lane;
}

/* ------------------------------------------------------------------ mma */

struct mma_work {
    struct shape shape;
    struct model_block *block[2];
    struct model_matrix a, b;
    bool a_in_tmem, accumulate;
    u32 d_column, a_column;
    int d_lane, a_lane;
};

static void rectangles(const struct mma_work *w, int cta, struct cells *d, struct cells *a)
{
    const struct shape *s = &w->shape;
    d->block = a->block = w->block[cta];
    d->mask = cells_of(s, w->d_lane);
    a->mask = cells_of(s, w->a_lane);
    d->column = w->d_column;
    d->columns = (uint32_t)(s->n / s->banks);
    a->column = w->a_column;
    a->columns = 8; /* 32 bytes */
}

static void gather_a_from_tmem(const struct mma_work *w, const struct tmem *t, int bank, float *a)
{
    const struct shape *s = &w->shape;
    int per_word = s->k / 8, bits = 32 / per_word;
    for (int m = 0; m < s->rows; m++) {
        const uint32_t *words = t->data[lane_of(s, m, bank, w->a_lane)] + w->a_column;
        for (int k = 0; k < s->k; k++)
            a[m * s->k + k] = model_element(s->a, words[k / per_word] >> (k % per_word * bits) &
                                                      (uint32_t)((1 << bits) - 1));
    }
}

static void mma_run(struct model_op *op)
{
    static float a[128 * 32], b[32 * 256], part[32 * 256], d[128 * 256];
    struct mma_work *w = (struct mma_work *)op->data;
    const struct shape *s = &w->shape;
    int columns = s->n / s->banks;
    for (int c = 0; c < s->ctas; c++) /* each CTA holds its share of B's rows */
        model_gather(&w->b, s->b, 0, (uint32_t)(s->n / s->ctas), w->block[c],
                     b + c * (s->n / s->ctas), 1, s->n);
    for (int c = 0; c < s->ctas; c++) {
        struct tmem *t = model_block_state(w->block[c])->tmem;
        if (!w->a_in_tmem)
            model_gather(&w->a, s->a, 0, (uint32_t)s->rows, w->block[c], a, s->k, 1);
        for (int bank = 0; bank < s->banks; bank++) {
            if (w->a_in_tmem)
                gather_a_from_tmem(w, t, bank, a);
            const float *right = b;
            if (s->banks > 1) {
                for (int k = 0; k < s->k; k++)
                    memcpy(part + k * columns, b + k * s->n + bank * columns,
                           sizeof(float) * (size_t)columns);
                right = part;
            }
            for (int m = 0; m < s->rows; m++)
                if (w->accumulate)
                    memcpy(d + m * columns, t->data[lane_of(s, m, bank, w->d_lane)] + w->d_column,
                           4 * (size_t)columns);
                else
                    memset(d + m * columns, 0, 4 * (size_t)columns);
            model_multiply(d, a, right, s->rows, columns, s->k);
            for (int m = 0; m < s->rows; m++)
                memcpy(t->data[lane_of(s, m, bank, w->d_lane)] + w->d_column, d + m * columns,
                       4 * (size_t)columns);
        }
        struct cells dc, ac;
        rectangles(w, c, &dc, &ac);
        model_tmem_finish(&dc, USE_MMA_WRITE, op->issuer);
        if (w->a_in_tmem)
            model_tmem_finish(&ac, USE_MMA_READ, op->issuer);
    }
}

/* The CTAs an instruction of the group works in, the issuer's pair in order of rank. */
static void blocks_of(int group, struct model_block *block[2], const char *what, struct model_at at)
{
    struct model_block *own = model_self->block;
    model_tmem(own, group, what, at);
    block[0] = block[1] = own;
    if (group == 1)
        return;
    if (own->rank % 2 != 0)
        model_fail(at,
                   "%s: cta_group::2 issued by the odd CTA of the pair: no source shows that "
                   "this works",
                   what);
    block[1] = model_block_of(own->rank ^ 1);
    if (block[1] == NULL)
        model_fail(at, "%s: cta_group::2, but the cluster has no CTA %u", what, own->rank ^ 1);
    if (block[1]->exited)
        model_fail(at, "%s: the pair's other CTA has exited", what);
    model_tmem(block[1], group, what, at);
}

static void known_rows(const struct mma_work *w, const struct cells *c, int base, const char *what,
                       struct model_at at)
{
    const struct shape *s = &w->shape;
    for (int bank = 0; bank < s->banks; bank++)
        for (int m = 0; m < s->rows; m += 16)
            model_tmem_known(c, (uint32_t)lane_of(s, m, bank, base), 16, what, at);
}

void model_tcgen05_mma(int group, bool kind_f16, bool ws, u32 d, bool a_in_tmem, u64 a, u64 b,
                       u32 idesc, bool accumulate, struct model_at at)
{
    const char *what = ws ? "tcgen05.mma.ws" : "tcgen05.mma";
    model_needs_sm(100, 119, what, at);
    model_step();
    struct trace_event *ev = model_tracing ? model_trace(TRACE_UMMA, at) : NULL;
    struct model_op *op = model_op_new(what, mma_run, sizeof(struct mma_work), at);
    struct mma_work *w = (struct mma_work *)op->data;
    blocks_of(group, w->block, what, at);
    w->shape = decode_idesc(idesc, group, kind_f16, ws, a_in_tmem, what, at);
    const struct shape *s = &w->shape;
    w->a_in_tmem = a_in_tmem;
    w->accumulate = accumulate;
    w->d_column = d & 0xFFFF;
    w->d_lane = base_lane(d, s, "D", what, at);
    if (a_in_tmem) {
        w->a_column = (u32)a & 0xFFFF;
        w->a_lane = base_lane((u32)a, s, "A", what, at);
        if (w->a_lane != w->d_lane)
            model_fail(at, "%s: lane of A: got %d, want D's, %d", what, w->a_lane, w->d_lane);
    } else
        w->a = model_decode_tcgen05(a, s->trans_a, "tcgen05.mma: a", at);
    w->b = model_decode_tcgen05(b, s->trans_b, "tcgen05.mma: b", at);
    uint32_t signature = idesc | (uint32_t)kind_f16 << 30 | (uint32_t)ws << 31;
    for (int c = 0; c < s->ctas; c++) {
        if (!a_in_tmem)
            model_gather_ranges(op, &w->a, s->a, 0, (uint32_t)s->rows, w->block[c],
                                "tcgen05.mma: a");
        model_gather_ranges(op, &w->b, s->b, 0, (uint32_t)(s->n / s->ctas), w->block[c],
                            "tcgen05.mma: b");
        struct cells dc, ac;
        rectangles(w, c, &dc, &ac);
        if (a_in_tmem) {
            if (ac.column < dc.column + dc.columns && dc.column < ac.column + ac.columns)
                model_fail(at, "%s: A (columns %u to %u) overlaps D (%u to %u)", what, ac.column,
                           ac.column + ac.columns - 1, dc.column, dc.column + dc.columns - 1);
            model_tmem_check(&ac, USE_MMA_READ, signature, "tcgen05.mma: A", at);
            known_rows(w, &ac, w->a_lane, "tcgen05.mma: A", at);
        }
        model_tmem_check(&dc, USE_MMA_WRITE, signature, "tcgen05.mma: D", at);
        if (accumulate)
            known_rows(w, &dc, w->d_lane, "tcgen05.mma: D, which it accumulates to,", at);
    }
    for (int c = 0; c < s->ctas; c++) {
        struct cells dc, ac;
        rectangles(w, c, &dc, &ac);
        model_tmem_start(&dc, USE_MMA_WRITE, signature);
        if (a_in_tmem)
            model_tmem_start(&ac, USE_MMA_READ, 0);
        for (int bank = 0; bank < s->banks; bank++)
            for (int m = 0; m < s->rows; m++)
                model_tmem_mark_known(dc.block, (uint32_t)lane_of(s, m, bank, w->d_lane), dc.column,
                                      dc.columns);
    }
    /* 4096 products of 16 bits a clock with all 128 lanes at work; 64 spread rows take as long */
    uint64_t lanes = s->spread ? 128 : (uint64_t)s->rows;
    if (ev != NULL) { /* of each CTA's tensor core */
        ev->amount = (uint32_t)(lanes * (uint64_t)s->n / 256);
        ev->bytes = (uint32_t)((a_in_tmem ? 0 : s->rows) + s->n / s->ctas) * 32;
        ev->ctas = (uint8_t)s->ctas;
    }
    model_tally(COUNT_TENSOR, (uint64_t)s->ctas * lanes * (uint64_t)s->n / 256);
    model_tally(COUNT_OPERANDS,
                ((a_in_tmem ? 0 : (uint64_t)(s->ctas * s->rows)) + (uint64_t)s->n) * 32);
    struct thread_state *state = model_thread_state(model_self);
    state->mma_issued++;
    state->uncommitted = true;
    state->mma_at = at;
    model_op_in_chain(op, &state->mma_chain);
    model_op_issue(op);
}

/* ------------------------------------------------------------------ cp */

enum { CP_128X256B, CP_128X128B, CP_64X128B_02_13, CP_64X128B_01_23, CP_32X128B, CP_4X256B };

static const struct {
    const char *name;
    uint32_t rows, words;
} copies[6] = {{"tcgen05.cp.128x256b", 128, 8},
               {"tcgen05.cp.128x128b", 128, 4},
               {"tcgen05.cp.64x128b.warpx2::02_13", 64, 4},
               {"tcgen05.cp.64x128b.warpx2::01_23", 64, 4},
               {"tcgen05.cp.32x128b.warpx4", 32, 4},
               {"tcgen05.cp.4x256b", 4, 8}};

/* The lanes that row r goes to; returns how many. */
static int cp_lanes(int shape, uint32_t r, uint32_t lanes[4])
{
    switch (shape) {
    case CP_64X128B_02_13:
        lanes[0] = r, lanes[1] = r + 64;
        return 2;
    case CP_64X128B_01_23:
        lanes[0] = 64 * (r / 32) + r % 32, lanes[1] = lanes[0] + 32;
        return 2;
    case CP_32X128B:
        lanes[0] = r, lanes[1] = r + 32, lanes[2] = r + 64, lanes[3] = r + 96;
        return 4;
    case CP_4X256B:
        lanes[0] = 32 * r;
        return 1;
    default:
        lanes[0] = r;
        return 1;
    }
}

struct cp_work {
    int shape, ctas;
    struct model_block *block[2];
    struct model_matrix source;
    u32 column;
};

static struct cells cp_cells(const struct cp_work *w, int cta)
{
    struct cells c = {w->block[cta], (uint8_t)(w->shape == CP_4X256B ? 0x55 : 0xFF), w->column,
                      copies[w->shape].words};
    return c;
}

static void cp_run(struct model_op *op)
{
    struct cp_work *w = (struct cp_work *)op->data;
    for (int c = 0; c < w->ctas; c++) {
        struct tmem *t = model_block_state(w->block[c])->tmem;
        const unsigned char *data = w->block[c]->shared.data - MODEL_SHARED_BASE;
        for (uint32_t r = 0; r < copies[w->shape].rows; r++) {
            uint32_t lanes[4];
            int count = cp_lanes(w->shape, r, lanes);
            for (uint32_t u = 0; u < copies[w->shape].words / 4; u++)
                for (int i = 0; i < count; i++)
                    memcpy(&t->data[lanes[i]][w->column + 4 * u],
                           data + model_unit_k_major(&w->source, r, u), 16);
        }
        struct cells cells = cp_cells(w, c);
        model_tmem_finish(&cells, USE_CP_WRITE, op->issuer);
    }
}

void model_tcgen05_cp(int group, int shape, u32 taddr, u64 desc, struct model_at at)
{
    const char *what = copies[shape].name;
    model_needs_sm(100, 119, what, at);
    model_step();
    if (model_tracing) {
        struct trace_event *ev = model_trace(TRACE_UMMA_COPY, at);
        ev->bytes = copies[shape].rows * copies[shape].words * 4;
        ev->ctas = (uint8_t)group;
    }
    struct model_op *op = model_op_new(what, cp_run, sizeof(struct cp_work), at);
    struct cp_work *w = (struct cp_work *)op->data;
    blocks_of(group, w->block, what, at);
    w->shape = shape;
    w->ctas = group;
    w->column = taddr & 0xFFFF;
    if (taddr >> 16 != 0)
        model_fail(at, "%s: lane: got %u, want 0", what, taddr >> 16);
    w->source = model_decode_tcgen05(desc, false, what, at);
    for (int c = 0; c < group; c++) {
        struct cells cells = cp_cells(w, c);
        model_tmem_check(&cells, USE_CP_WRITE, 0, what, at);
        const struct model_space *space = &w->block[c]->shared;
        for (uint32_t r = 0; r < copies[shape].rows; r++)
            for (uint32_t u = 0; u < copies[shape].words / 4; u++) {
                uint32_t a = model_unit_k_major(&w->source, r, u);
                if (a < MODEL_SHARED_BASE || a + 16 > MODEL_SHARED_BASE + space->bytes)
                    model_fail(at, "%s: row %u lies at 0x%x, outside the block's shared memory",
                               what, r, a);
                model_op_reads(op, &w->block[c]->shared, a - MODEL_SHARED_BASE, 16);
            }
        model_tmem_start(&cells, USE_CP_WRITE, 0);
        for (uint32_t r = 0; r < copies[shape].rows; r++) {
            uint32_t lanes[4];
            int count = cp_lanes(shape, r, lanes);
            for (int i = 0; i < count; i++)
                model_tmem_mark_known(w->block[c], lanes[i], w->column, copies[shape].words);
        }
    }
    struct thread_state *state = model_thread_state(model_self);
    state->mma_issued++;
    state->uncommitted = true;
    state->mma_at = at;
    model_op_in_chain(op, &state->mma_chain);
    model_op_issue(op);
}

/* ------------------------------------------------------------------ commit */

struct commit_work {
    u32 bar;
    u16 mask;
};

static const char *const commit_name = "tcgen05.commit";

static void commit_run(struct model_op *op)
{
    const struct commit_work *w = (const struct commit_work *)op->data;
    u32 here = (1u << MODEL_RANK_SHIFT) - 1;
    if (w->mask == 0)
        model_mbarrier_do_arrive(w->bar, 1, commit_name, op->at);
    for (uint32_t rank = 0; rank < MODEL_MAX_CLUSTER; rank++)
        if ((w->mask >> rank & 1) != 0)
            model_mbarrier_do_arrive((w->bar & here) | rank << MODEL_RANK_SHIFT, 1, commit_name,
                                     op->at);
}

void model_tcgen05_commit(int group, u32 bar, u16 mask, struct model_at at)
{
    model_needs_sm(100, 119, commit_name, at);
    model_step();
    if (model_tracing)
        model_trace(TRACE_UMMA_COMMIT, at);
    struct thread_state *state = model_thread_state(model_self);
    model_tmem(model_self->block, group, commit_name, at);
    if (state->mma_issued == 0)
        model_fail(at,
                   "%s: this thread has issued no mma and no cp: a commit follows those of its own "
                   "thread",
                   commit_name);
    for (uint32_t rank = 0; rank < MODEL_MAX_CLUSTER; rank++)
        if ((mask >> rank & 1) != 0 && model_block_of(rank) == NULL)
            model_fail(at, "%s: mask: got 0x%x, but the cluster has no CTA %u", commit_name, mask,
                       rank);
    model_place_of(bar, 8, 8, commit_name, at);
    struct model_op *op = model_op_new(commit_name, commit_run, sizeof(struct commit_work), at);
    struct commit_work *w = (struct commit_work *)op->data;
    w->bar = bar;
    w->mask = mask;
    state->uncommitted = false;
    model_op_in_chain(op, &state->mma_chain);
    model_op_issue(op);
}
