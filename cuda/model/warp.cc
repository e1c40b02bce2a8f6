/* SPDX-License-Identifier: Apache-2.0 */
/* What lanes do together, and mma.sync and ldmatrix; single conversions. */
#include "count.h"
#include "number.h"
#include "schedule.h"

#include <math.h>
#include <string.h>

/* ------------------------------------------------------------------ shuffles and votes */

void model_syncwarp(uint32_t mask, struct model_at at)
{
    model_collective("__syncwarp", mask, NULL, NULL, at);
}

uint32_t model_activemask(struct model_at)
{
    return model_self->warp->live;
}

void model_atomic(void)
{
    model_step();
}

struct shuffle {
    uint64_t in, out;
    enum model_shuffle_kind kind;
    int operand, width;
    const char *name;
    struct model_at at;
};

static void run_shuffle(struct model_warp *warp, uint32_t mask, void *const args[32])
{
    for (int lane = 0; lane < 32; lane++) {
        if (!(mask >> lane & 1))
            continue;
        struct shuffle *s = (struct shuffle *)args[lane];
        int first = lane & ~(s->width - 1), last = first + s->width - 1, from = lane;
        switch (s->kind) {
        case MODEL_FROM:
            from = first + (s->operand & (s->width - 1));
            break;
        case MODEL_XOR:
            from = (lane ^ s->operand) <= last ? lane ^ s->operand : lane;
            break;
        case MODEL_UP:
            from = lane - s->operand >= first ? lane - s->operand : lane;
            break;
        case MODEL_DOWN:
            from = lane + s->operand <= last ? lane + s->operand : lane;
            break;
        }
        if (from < 0 || from > 31 || !(mask >> from & 1))
            model_fail(s->at, "%s: lane %d reads lane %d, which is not in 0x%08x (%s)", s->name,
                       lane, from, mask,
                       from >= 0 && from < 32 && warp->live >> from & 1 ? "left out"
                                                                        : "no such lane");
        s->out = ((const struct shuffle *)args[from])->in;
    }
}

void model_shuffle(const char *name, uint32_t mask, void *value, size_t bytes,
                   enum model_shuffle_kind kind, int operand, int width, struct model_at at)
{
    struct shuffle s = {0, 0, kind, operand, width, name, at};
    if (width < 1 || width > 32 || (width & (width - 1)))
        model_fail(at, "%s: width %d, want a power of two up to 32", name, width);
    memcpy(&s.in, value, bytes);
    model_collective(name, mask, run_shuffle, &s, at);
    memcpy(value, &s.out, bytes);
}

struct word {
    uint64_t in, out;
    int kind;
    bool is_signed;
};

static void run_vote(struct model_warp *, uint32_t mask, void *const args[32])
{
    uint32_t votes = 0;
    for (int lane = 0; lane < 32; lane++)
        if (mask >> lane & 1 && ((const struct word *)args[lane])->in)
            votes |= 1u << lane;
    for (int lane = 0; lane < 32; lane++)
        if (mask >> lane & 1)
            ((struct word *)args[lane])->out = votes;
}

uint32_t model_vote(const char *name, uint32_t mask, int predicate, struct model_at at)
{
    struct word w = {predicate != 0, 0, 0, false};
    model_collective(name, mask, run_vote, &w, at);
    return (uint32_t)w.out;
}

static void run_reduce(struct model_warp *, uint32_t mask, void *const args[32])
{
    int first = __builtin_ctz(mask);
    const struct word *w = (const struct word *)args[first];
    uint32_t r = (uint32_t)w->in;
    for (int lane = first + 1; lane < 32; lane++) {
        if (!(mask >> lane & 1))
            continue;
        uint32_t x = (uint32_t)((const struct word *)args[lane])->in;
        bool less = w->is_signed ? (int32_t)x < (int32_t)r : x < r;
        switch (w->kind) {
        case MODEL_REDUCE_ADD:
            r += x;
            break;
        case MODEL_REDUCE_MAX:
            r = less ? r : x;
            break;
        case MODEL_REDUCE_MIN:
            r = less ? x : r;
            break;
        case MODEL_REDUCE_OR:
            r |= x;
            break;
        case MODEL_REDUCE_AND:
            r &= x;
            break;
        default:
            r ^= x;
        }
    }
    for (int lane = 0; lane < 32; lane++)
        if (mask >> lane & 1)
            ((struct word *)args[lane])->out = r;
}

uint32_t model_reduce(const char *name, uint32_t mask, uint32_t value, enum model_reduce_kind kind,
                      bool is_signed, struct model_at at)
{
    struct word w = {value, 0, kind, is_signed};
    model_collective(name, mask, run_reduce, &w, at);
    return (uint32_t)w.out;
}

static void run_match(struct model_warp *, uint32_t mask, void *const args[32])
{
    for (int lane = 0; lane < 32; lane++) {
        if (!(mask >> lane & 1))
            continue;
        struct word *w = (struct word *)args[lane];
        for (int o = 0; o < 32; o++)
            if (mask >> o & 1 && ((const struct word *)args[o])->in == w->in)
                w->out |= 1u << o;
    }
}

uint32_t model_match(uint32_t mask, uint64_t value, struct model_at at)
{
    struct word w = {value, 0, 0, false};
    model_collective("__match_any_sync", mask, run_match, &w, at);
    return (uint32_t)w.out;
}

/* The same lane every time, but not always lane 0. */
bool model_elect(struct model_at at)
{
    model_collective("elect.sync", 0xFFFFFFFFu, NULL, NULL, at);
    uint32_t live = model_self->warp->live;
    int lane = __builtin_ctz(live);
    if (model_device.schedule == MODEL_LATE)
        lane = 31 - __builtin_clz(live);
    else if (model_device.schedule == MODEL_RANDOM && live == 0xFFFFFFFFu)
        lane = (int)((model_device.seed * 7 + (uint64_t)model_self->warp->index * 5) % 32);
    return model_self->lane == lane;
}

uint32_t model_warp_index(struct model_at at)
{
    model_collective("warp_index", 0xFFFFFFFFu, NULL, NULL, at);
    return (uint32_t)model_self->warp->index;
}

void model_role(const char *name)
{
    model_self->role = name;
}

void model_griddep_wait(struct model_at)
{
    /* Grids run one after another. */
    model_step();
}

void model_griddep_launch_dependents(struct model_at)
{
    model_step();
}

/* ------------------------------------------------------------------ mma.sync, ldmatrix */

struct fragment {
    float *c;
    const uint32_t *a;
    uint32_t b[2];
    bool is_bf16;
    struct model_at at;
};

static float widen(uint32_t two, int half, bool is_bf16)
{
    uint16_t bits = (uint16_t)(two >> 16 * half);
    return is_bf16 ? model_of_bf16(bits) : model_of_f16(bits);
}

static void whole_warp(uint32_t mask, const char *name, struct model_at at)
{
    if (mask != 0xFFFFFFFFu)
        model_fail(at, "%s: lanes 0x%08x, want a whole warp", name, mask);
}

static void run_mma(struct model_warp *, uint32_t mask, void *const args[32])
{
    float a[16][16], b[8][16];
    const struct fragment *first = (const struct fragment *)args[__builtin_ctz(mask)];
    bool is_bf16 = first->is_bf16;
    whole_warp(mask, "mma.sync", first->at);
    for (int lane = 0; lane < 32; lane++) {
        const struct fragment *f = (const struct fragment *)args[lane];
        int g = lane / 4, t = lane % 4;
        for (int i = 0; i < 4; i++)
            for (int h = 0; h < 2; h++)
                a[g + i % 2 * 8][2 * t + i / 2 * 8 + h] = widen(f->a[i], h, is_bf16);
        for (int i = 0; i < 2; i++)
            for (int h = 0; h < 2; h++)
                b[g][2 * t + i * 8 + h] = widen(f->b[i], h, is_bf16);
    }
    for (int lane = 0; lane < 32; lane++) {
        struct fragment *f = (struct fragment *)args[lane];
        for (int i = 0; i < 4; i++) {
            int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
            float sum = 0;
            for (int k = 0; k < 16; k++)
                sum += a[row][k] * b[column][k];
            f->c[i] += sum;
        }
    }
}

void model_mma_m16n8k16(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1, bool is_bf16,
                        struct model_at at)
{
    struct fragment f = {c, a, {b0, b1}, is_bf16, at};
    if (model_self->lane == 0)
        model_tally(COUNT_TENSOR, 1); /* at the full rate, which mma.sync does not reach on sm_90 */
    model_collective("mma.sync", 0xFFFFFFFFu, run_mma, &f, at);
}

struct matrices {
    uint32_t *r;
    const unsigned char *row;
    bool transposed;
    struct model_at at;
};

static void run_ldmatrix(struct model_warp *, uint32_t mask, void *const args[32])
{
    const struct matrices *first = (const struct matrices *)args[__builtin_ctz(mask)];
    whole_warp(mask, "ldmatrix", first->at);
    for (int lane = 0; lane < 32; lane++) {
        struct matrices *m = (struct matrices *)args[lane];
        for (int i = 0; i < 4; i++)
            for (int h = 0; h < 2; h++) {
                int row = lane / 4, column = lane % 4 * 2 + h;
                int at_row = m->transposed ? column : row, at_column = m->transposed ? row : column;
                uint16_t x;
                memcpy(&x, ((const struct matrices *)args[8 * i + at_row])->row + 2 * at_column,
                       sizeof x);
                m->r[i] = (m->r[i] & (h ? 0xFFFFu : 0)) | (uint32_t)x << 16 * h;
            }
    }
}

void model_ldmatrix_x4(uint32_t r[4], uint32_t smem, bool transposed, struct model_at at)
{
    struct matrices m = {r, model_matrix_row(smem, at), transposed, at};
    model_collective("ldmatrix", 0xFFFFFFFFu, run_ldmatrix, &m, at);
}

/* ------------------------------------------------------------------ arithmetic */

uint32_t model_cvt_rn_bf16x2_f32(float low, float high)
{
    return model_bf16_of(low) | (uint32_t)model_bf16_of(high) << 16;
}

uint32_t model_cvt_rn_f16x2_f32(float low, float high)
{
    return model_f16_of(low) | (uint32_t)model_f16_of(high) << 16;
}

uint32_t model_cvt_rn_f16x2_e4m3x2(uint16_t two)
{
    return model_cvt_rn_f16x2_f32(model_of_e4m3((uint8_t)two), model_of_e4m3((uint8_t)(two >> 8)));
}

uint16_t model_cvt_rn_satfinite_e4m3x2_f32(float low, float high)
{
    return (uint16_t)(model_e4m3_of(low) | model_e4m3_of(high) << 8);
}

float model_ex2_approx_ftz(float x)
{
    model_tally(COUNT_EX2, 1);
    if (fabsf(x) < 0x1p-126f)
        return 1;
    float r = exp2f(x);
    return r < 0x1p-126f ? 0 : r; /* NaN stays */
}

uint64_t model_pack_f32x2(float low, float high)
{
    return model_bits_of(low) | (uint64_t)model_bits_of(high) << 32;
}

void model_unpack_f32x2(float *low, float *high, uint64_t two)
{
    *low = model_of_bits((uint32_t)two);
    *high = model_of_bits((uint32_t)(two >> 32));
}

uint64_t model_fma_rn_f32x2(uint64_t a, uint64_t b, uint64_t c)
{
    float x[3][2];
    model_unpack_f32x2(&x[0][0], &x[0][1], a);
    model_unpack_f32x2(&x[1][0], &x[1][1], b);
    model_unpack_f32x2(&x[2][0], &x[2][1], c);
    return model_pack_f32x2(fmaf(x[0][0], x[1][0], x[2][0]), fmaf(x[0][1], x[1][1], x[2][1]));
}

uint64_t model_mul_rn_f32x2(uint64_t a, uint64_t b)
{
    float x[2][2];
    model_unpack_f32x2(&x[0][0], &x[0][1], a);
    model_unpack_f32x2(&x[1][0], &x[1][1], b);
    return model_pack_f32x2(x[0][0] * x[1][0], x[0][1] * x[1][1]);
}

uint64_t model_add_rn_f32x2(uint64_t a, uint64_t b)
{
    float x[2][2];
    model_unpack_f32x2(&x[0][0], &x[0][1], a);
    model_unpack_f32x2(&x[1][0], &x[1][1], b);
    return model_pack_f32x2(x[0][0] + x[1][0], x[0][1] + x[1][1]);
}

float model_max3_f32(float a, float b, float c)
{
    return fmaxf(fmaxf(a, b), c);
}
