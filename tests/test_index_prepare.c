/* SPDX-License-Identifier: Apache-2.0 */
// labels: fast
/* From projected q_I and k_I to index records, and the whole indexer end to end. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/format.h"
#include "common/kernel.h"
#include "common/status.h"
#include "mla/cache.h"
#include "mla/index.h"

static uint64_t seed = 5;
static float normal(void) /* sum of twelve uniforms */
{
    double sum = -6;
    for (int i = 0; i < 12; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        sum += (double)(seed >> 11) * 0x1p-53;
    }
    return (float)sum;
}

/* One row through the given steps, to float. */
static void steps(mla_index_prepare_args a, const float *in, int64_t dim, float *out)
{
    a.rows = a.heads = 1;
    a.dim = dim;
    a.dtype = MLA_F32;
    a.in = in;
    a.out = out;
    assert_int_equal(mla_index_prepare(&a), MLA_OK);
}

static void fp8_rows(void **state)
{
    (void)state;
    float in[6][8] = {{448, 1, -1, 0.5f, 17, 18, 19, 0}, /* scale 1: 17 and 19 are ties, to even */
                      {449, 1, 2, 0, 0, 0, 0, 0},        /* scale 2 */
                      {0},                               /* floor: 1e-4/448 -> 2^-22 */
                      {224, -224, 1, 0, 0, 0, 0, 0},     /* scale 1/2 */
                      {NAN, 448, 0, 0, 0, 0, 0, 0},      /* only finite values enter amax */
                      {INFINITY, -INFINITY, 448, 0, 0, 0, 0, 0}};
    static const uint8_t want[6][8] = {{0x7E, 0x38, 0xB8, 0x30, 0x58, 0x59, 0x5A, 0x00},
                                       {0x76, 0x30, 0x38, 0, 0, 0, 0, 0},
                                       {0},
                                       {0x7E, 0xFE, 0x40, 0, 0, 0, 0, 0},
                                       {0x7F, 0x7E, 0, 0, 0, 0, 0, 0},
                                       {0x7F, 0x7F, 0x7E, 0, 0, 0, 0, 0}};
    static const float scales[6] = {1, 2, 0x1p-22f, 0.5f, 1, 1};
    uint8_t out[6][8];
    float scale[6];
    mla_index_prepare_args a = {.rows = 2,
                                .heads = 3,
                                .dim = 8,
                                .dtype = MLA_F32,
                                .in = in,
                                .format = MLA_INDEX_FP8,
                                .out = out,
                                .scale = scale};
    assert_int_equal(mla_index_prepare(&a), MLA_OK);
    assert_memory_equal(scale, scales, sizeof scale);
    assert_memory_equal(out, want, sizeof out);
    a.any_scale = true;
    assert_int_equal(mla_index_prepare(&a), MLA_OK);
    assert_true(scale[0] == 1 && scale[1] == 449.0f / 448 && scale[2] == 1e-4f / 448);
    assert_int_equal(out[1][0], 0x7E);
}

static void fp8_scales_are_tight(void **state)
{
    (void)state;
    for (int n = 0; n < 2000; n++) {
        float in[16], scale, amax = 0;
        uint8_t out[16];
        float size = ldexpf(1, n % 60 - 30);
        for (int i = 0; i < 16; i++) {
            in[i] = normal() * size;
            amax = fmaxf(amax, fabsf(in[i]));
        }
        mla_index_prepare_args a = {.rows = 1,
                                    .heads = 1,
                                    .dim = 16,
                                    .dtype = MLA_F32,
                                    .in = in,
                                    .format = MLA_INDEX_FP8,
                                    .out = out,
                                    .scale = &scale};
        assert_int_equal(mla_index_prepare(&a), MLA_OK);
        int e;
        assert_true(frexpf(scale, &e) == 0.5f); /* a power of two, the least that fits */
        assert_true(fmaxf(amax, 1e-4f) / scale <= 448 && fmaxf(amax, 1e-4f) / scale > 223.9f);
        for (int i = 0; i < 16; i++) {
            double got = (double)mla_e4m3_to_f32(out[i]) * scale;
            assert_true(fabs(got - in[i]) <= fmax(fabs(in[i]) / 16, scale * 0x1p-10));
        }
    }
}

static void fp4_rows(void **state)
{
    (void)state;
    float in[64] = {6, 0.25f, 0.75f, 1.25f, 1.75f, 2.5f, 3.5f, 5, -0.1f, 0.26f, -5.01f, 0.76f};
    static const uint8_t want[6] = {0x07, 0x21, 0x43, 0x65, 0x10, 0x2F};
    uint8_t out[32], scale[4];
    in[32] = 12; /* the second group of 32: scale 2 */
    in[33] = -3;
    mla_index_prepare_args a = {.rows = 1,
                                .heads = 1,
                                .dim = 64,
                                .dtype = MLA_F32,
                                .in = in,
                                .format = MLA_INDEX_FP4,
                                .out = out,
                                .scale = scale};
    assert_int_equal(mla_index_prepare(&a), MLA_OK);
    assert_memory_equal(out, want, 6);
    assert_int_equal(out[16], 0xB7); /* 6, and -1.5 = code 3 with a sign */
    assert_int_equal(scale[0], 127);
    assert_int_equal(scale[1], 128);
    in[40] = INFINITY;
    assert_int_equal(mla_index_prepare(&a), MLA_OK);
    assert_int_equal(scale[0], 127);
    assert_int_equal(scale[1], 255); /* NaN */
    for (int i = 0; i < 64; i++)
        in[i] = 0;
    assert_int_equal(mla_index_prepare(&a), MLA_OK);
    assert_int_equal(scale[0], 127 - 15); /* 1e-4/6 = 1.67e-5 -> 2^-15 */
}

static void hadamard_rows(void **state)
{
    (void)state;
    mla_index_prepare_args a = {.hadamard = true};
    float in[128], out[128], back[128];
    for (int j = 0; j < 128; j += 9) { /* columns, against the sign formula */
        memset(in, 0, sizeof in);
        in[j] = 1;
        steps(a, in, 128, out);
        for (int i = 0; i < 128; i++)
            assert_true(fabs(out[i] - (__builtin_parity((unsigned)(i & j)) ? -1 : 1) / sqrt(128)) <
                        1e-8);
    }
    for (int i = 0; i < 128; i++)
        in[i] = normal();
    steps(a, in, 128, out);
    steps(a, out, 128, back); /* its own inverse */
    for (int i = 0; i < 128; i++)
        assert_true(fabsf(back[i] - in[i]) < 1e-5f);
    steps(a, in, 1, out);
    assert_true(out[0] == in[0]);
}

static void norm_rows(void **state)
{
    (void)state;
    float in[100], weight[100], bias[100], out[100];
    double mean = 0, var = 0;
    for (int i = 0; i < 100; i++) {
        in[i] = normal() + 3;
        weight[i] = normal();
        bias[i] = normal();
        mean += in[i] / 100.0;
    }
    for (int i = 0; i < 100; i++)
        var += (in[i] - mean) * (in[i] - mean) / 100;
    steps((mla_index_prepare_args){.norm_weight = weight, .norm_bias = bias, .norm_eps = 1e-6}, in,
          100, out);
    for (int i = 0; i < 100; i++)
        assert_true(fabs(out[i] - ((in[i] - mean) / sqrt(var + 1e-6) * weight[i] + bias[i])) <
                    2e-6);
}

static void rope_rows(void **state)
{
    (void)state;
    float freq[4], in[12], out[12];
    int32_t position = 17;
    assert_int_equal(mla_rope_frequencies(8, 10000, 1, 0, 0, 0, freq), MLA_OK);
    for (int i = 0; i < 12; i++)
        in[i] = normal();
    for (int half = 0; half < 2; half++) {
        steps((mla_index_prepare_args){.rope_style = half ? MLA_ROPE_HALF : MLA_ROPE_INTERLEAVED,
                                       .rope_dim = 8,
                                       .inv_freq = freq,
                                       .positions = &position},
              in, 12, out);
        for (int i = 0; i < 4; i++) {
            int a = half ? i : 2 * i, b = half ? i + 4 : 2 * i + 1;
            double angle = 17 * pow(10000, -i / 4.0);
            assert_true(fabs(out[a] - (in[a] * cos(angle) - in[b] * sin(angle))) < 3e-6);
            assert_true(fabs(out[b] - (in[a] * sin(angle) + in[b] * cos(angle))) < 3e-6);
        }
        assert_memory_equal(out + 8, in + 8, 16); /* beyond rope_dim: untouched */
    }
    /* Heads of one token share its position. */
    int32_t positions[2] = {5, 17};
    float rows[2 * 3 * 12], turned[2 * 3 * 12], one[12];
    for (int i = 0; i < 2 * 3 * 12; i++)
        rows[i] = normal();
    mla_index_prepare_args a = {.rows = 2,
                                .heads = 3,
                                .dim = 12,
                                .dtype = MLA_F32,
                                .in = rows,
                                .rope_style = MLA_ROPE_HALF,
                                .rope_dim = 8,
                                .inv_freq = freq,
                                .positions = positions,
                                .out = turned};
    assert_int_equal(mla_index_prepare(&a), MLA_OK);
    for (int i = 0; i < 6; i++) {
        mla_index_prepare_args single = a;
        single.positions = positions + i / 3;
        steps(single, rows + i * 12, 12, one);
        assert_memory_equal(turned + i * 12, one, sizeof one);
    }
}

/* DeepSeek-V3's YaRN: ramp from pair 10 to pair 23. */
static void rope_yarn(void **state)
{
    (void)state;
    float freq[32];
    assert_int_equal(mla_rope_frequencies(64, 10000, 40, 4096, 32, 1, freq), MLA_OK);
    for (int i = 0; i < 32; i++) {
        double plain = pow(10000, -i / 32.0);
        double ramp = i <= 10 ? 0 : i >= 23 ? 1 : (i - 10) / 13.0;
        assert_true(fabs(freq[i] / (plain * (1 - ramp) + plain / 40 * ramp) - 1) < 1e-6);
    }
    assert_true(fabs(freq[16] - 0.0055) < 1e-9);
}

/* Rounding to bf16 after each step: every value is a bf16, and differs from the float chain. */
static void steps_round(void **state)
{
    (void)state;
    uint16_t in[128];
    float wide[128], exact[128], rounded[128], weight[128], bias[128];
    for (int i = 0; i < 128; i++) {
        in[i] = mla_f32_to_bf16(normal());
        wide[i] = mla_bf16_to_f32(in[i]);
        weight[i] = 1 + normal() / 8;
        bias[i] = normal() / 8;
    }
    mla_index_prepare_args a = {.rows = 1,
                                .heads = 1,
                                .dim = 128,
                                .dtype = MLA_BF16,
                                .in = in,
                                .norm_weight = weight,
                                .norm_bias = bias,
                                .norm_eps = 1e-6,
                                .hadamard = true,
                                .out = rounded};
    assert_int_equal(mla_index_prepare(&a), MLA_OK);
    /* The same by hand: norm alone in float, rounded, Hadamard alone, rounded. */
    mla_index_prepare_args norm = a, had = {.hadamard = true};
    norm.hadamard = false;
    steps(norm, wide, 128, exact);
    for (int i = 0; i < 128; i++)
        exact[i] = mla_bf16_to_f32(mla_f32_to_bf16(exact[i]));
    steps(had, exact, 128, wide);
    for (int i = 0; i < 128; i++)
        wide[i] = mla_bf16_to_f32(mla_f32_to_bf16(wide[i]));
    assert_memory_equal(rounded, wide, sizeof wide);
}

/* Prepared and appended, or written as values by mla/cache.h: the same bytes. */
static void cache_written_both_ways(void **state)
{
    (void)state;
    static float in[5 * 128], scale[5];
    static uint8_t data[5 * 128], one[2 * 4 * 132], two[2 * 4 * 132];
    static const int64_t slots[5] = {3, 7, -1, 0, 5};
    struct mla_context context = {.backend = MLA_BACKEND_CPU, .threads = 1};
    for (int round = 0; round < 20; round++) {
        for (int i = 0; i < 5 * 128; i++)
            in[i] = normal() * ldexpf(1, round - 10);
        for (int fp4 = 0; fp4 < 2; fp4++) {
            mla_index_format format = fp4 ? MLA_INDEX_FP4 : MLA_INDEX_FP8;
            mla_index_prepare_args a = {.rows = 5,
                                        .heads = 1,
                                        .dim = 128,
                                        .dtype = MLA_F32,
                                        .in = in,
                                        .format = format,
                                        .out = data,
                                        .scale = scale};
            assert_int_equal(mla_index_prepare(&a), MLA_OK);
            memset(one, 0, sizeof one);
            memset(two, 0, sizeof two);
            assert_int_equal(mla_index_append(format, 128, 4, 2, 0, slots, 5, data, scale, one),
                             MLA_OK);
            mla_cache_index cache = {format, 4, 2, {two, {0, 0}}};
            mla_tensor keys = {in, {0, 0}};
            assert_int_equal(mla_cache_index_write(&context, &cache, MLA_F32, &keys, slots, 5,
                                                   MLA_SCALE_DEFAULT, NULL),
                             MLA_OK);
            assert_memory_equal(one, two, sizeof one);
        }
    }
}

static void weights_folded(void **state)
{
    (void)state;
    float w[6] = {1, -2, 3, 0.5f, 7, -9}, scale[6] = {1, 2, 4, 0.5f, 1, 8}, out[6];
    assert_int_equal(mla_index_fold_weights(w, scale, 3, 2, 128, out), MLA_OK);
    for (int i = 0; i < 6; i++)
        assert_true(fabs(out[i] / (w[i] * scale[i] / sqrt(2 * 128)) - 1) < 3e-7);
    assert_int_equal(mla_index_fold_weights(w, NULL, 3, 2, 128, w), MLA_OK);
    assert_true(fabs(w[1] * 8 + 1) < 1e-6); /* -2 / 16 = -1/8 */
}

/* Two pages of three tokens, 4 + 4 bytes each: data first, then the scales. */
static void cache_bytes(void **state)
{
    (void)state;
    static const uint8_t data[4][4] = {{1, 2, 3, 4},
                                       {5, 6, 7, 8},
                                       {9, 10, 11, 12},
                                       {13, 14, 15, 16}};
    static const uint8_t scale[4][4] = {{21, 22, 23, 24}, {25, 26, 27, 28}, {29, 30, 31, 32}};
    static const int64_t slots[4] = {4, 0, 2, -1};
    static const uint8_t want[2][26] = {{5,  6,  7,  8,  0, 0, 0, 0, 9,  10, 11, 12,
                                         25, 26, 27, 28, 0, 0, 0, 0, 29, 30, 31, 32},
                                        {0, 0, 0, 0, 1,  2,  3,  4,  0, 0, 0, 0,
                                         0, 0, 0, 0, 21, 22, 23, 24, 0, 0, 0, 0}};
    uint8_t cache[2][26] = {{0}};
    assert_int_equal(mla_index_append(MLA_INDEX_FP8, 4, 3, 2, 26, slots, 4, data, scale, cache),
                     MLA_OK);
    assert_memory_equal(cache, want, sizeof want);
    assert_int_equal(mla_index_row_bytes(MLA_INDEX_FP8, 128), 132);
    assert_int_equal(mla_index_row_bytes(MLA_INDEX_FP4, 128), 68);
    assert_int_equal(mla_index_row_bytes(MLA_INDEX_BF16, 128), 0);
}

/* The whole indexer: bf16 projections to a list through a paged fp8 cache, against double loops
 * without any rounding; the score error stays within what e4m3 and bf16 allow element by
 * element. */
static void end_to_end(void **state)
{
    (void)state;
    enum { T = 6, S = 200, H = 8, D = 128, K = 20, P = 64 };
    static uint16_t q_in[T * H * D], k_in[S * D];
    static double q[T * H * D], k[S * D];
    static uint8_t q8[T * H * D], k8[S * D], cache[4 * P * 132];
    static float q_scale[T * H], k_scale[S], w[T * H], folded[T * H], weight[D], bias[D], freq[32];
    static double chain[D];
    int32_t q_pos[T], k_pos[S], table[4] = {2, 0, 3, 1};
    int64_t slots[S];
    for (int i = 0; i < T * H * D; i++)
        q_in[i] = mla_f32_to_bf16(normal());
    for (int i = 0; i < S * D; i++)
        k_in[i] = mla_f32_to_bf16(normal() * 2 + 1);
    for (int i = 0; i < T * H; i++)
        w[i] = normal();
    for (int d = 0; d < D; d++)
        weight[d] = 1 + normal() / 4, bias[d] = normal() / 4;
    for (int s = 0; s < S; s++)
        k_pos[s] = s, slots[s] = table[s / P] * P + s % P;
    for (int t = 0; t < T; t++)
        q_pos[t] = S - T + t;
    assert_int_equal(mla_rope_frequencies(64, 10000, 1, 0, 0, 0, freq), MLA_OK);
    /* Exact chain. */
    for (int row = 0; row < T * H + S; row++) {
        bool is_k = row >= T * H;
        int i = is_k ? row - T * H : row, position = is_k ? k_pos[i] : q_pos[i / H];
        double *dst = is_k ? k + i * D : q + i * D, mean = 0, var = 0;
        for (int d = 0; d < D; d++) {
            dst[d] = mla_bf16_to_f32((is_k ? k_in : q_in)[i * D + d]);
            mean += dst[d] / D;
        }
        for (int d = 0; d < D; d++)
            var += (dst[d] - mean) * (dst[d] - mean) / D;
        for (int d = 0; is_k && d < D; d++)
            dst[d] = (dst[d] - mean) / sqrt(var + 1e-6) * weight[d] + bias[d];
        for (int d = 0; d < 32; d++) {
            double angle = position * pow(10000, -d / 32.0), a = dst[d], b = dst[d + 32];
            dst[d] = a * cos(angle) - b * sin(angle);
            dst[d + 32] = a * sin(angle) + b * cos(angle);
        }
        for (int d = 0; d < D; d++) {
            chain[d] = 0;
            for (int e = 0; e < D; e++)
                chain[d] += (__builtin_parity((unsigned)(d & e)) ? -dst[e] : dst[e]) / sqrt(D);
        }
        memcpy(dst, chain, sizeof chain);
    }
    /* Ours. */
    mla_index_prepare_args a = {.rows = T,
                                .heads = H,
                                .dim = D,
                                .dtype = MLA_BF16,
                                .in = q_in,
                                .rope_style = MLA_ROPE_HALF,
                                .rope_dim = 64,
                                .inv_freq = freq,
                                .positions = q_pos,
                                .hadamard = true,
                                .format = MLA_INDEX_FP8,
                                .out = q8,
                                .scale = q_scale};
    assert_int_equal(mla_index_prepare(&a), MLA_OK);
    a.rows = S, a.heads = 1, a.in = k_in, a.positions = k_pos, a.out = k8, a.scale = k_scale;
    a.norm_weight = weight, a.norm_bias = bias, a.norm_eps = 1e-6;
    assert_int_equal(mla_index_prepare(&a), MLA_OK);
    assert_int_equal(mla_index_fold_weights(w, q_scale, T, H, D, folded), MLA_OK);
    assert_int_equal(mla_index_append(MLA_INDEX_FP8, D, P, 4, 0, slots, S, k8, k_scale, cache),
                     MLA_OK);
    static float logits[T * S];
    static int32_t indices[T * K];
    mla_index_args run = {.num_queries = T,
                          .heads = H,
                          .dim = D,
                          .num_keys = S,
                          .causal = true,
                          .q_format = MLA_INDEX_FP8,
                          .k_format = MLA_INDEX_FP8,
                          .page_size = P,
                          .num_pages = 4,
                          .max_pages = 4,
                          .topk = K,
                          .logits_columns = S,
                          .q = {q8, {0, 0}},
                          .weights = {folded, {0, 0}},
                          .k_cache = {cache, {0, 0}},
                          .page_table = {table, {0, 0}},
                          .logits = {logits, {0, 0}},
                          .indices = {indices, {0, 0}}};
    struct mla_context context = {.backend = MLA_BACKEND_CPU, .threads = 2};
    size_t bytes;
    assert_int_equal(mla_index_workspace_bytes(&context, &run, &bytes), MLA_OK);
    void *workspace = aligned_alloc(256, (bytes + 255) / 256 * 256);
    assert_non_null(workspace);
    assert_int_equal(mla_index_run(&context, &run, workspace, bytes, NULL), MLA_OK);
    free(workspace);

    double worst = 0;
    for (int t = 0; t < T; t++) {
        for (int s = 0; s <= S - T + t; s++) {
            double want = 0, bound = 0;
            for (int h = 0; h < H; h++) {
                double dot = 0, slack = 0;
                for (int d = 0; d < D; d++) {
                    double x = q[(t * H + h) * D + d], y = k[s * D + d];
                    /* Three bf16 steps before e4m3: Hadamard spreads the earlier ones over the row,
                     * 2^-9 of its largest value each. */
                    double ex = fabs(x) / 15 + q_scale[t * H + h] * (0x1p-10 + 448 * 0x1p-7);
                    double ey = fabs(y) / 15 + k_scale[s] * (0x1p-10 + 448 * 0x1p-7);
                    dot += x * y;
                    slack += fabs(x) * ey + fabs(y) * ex + ex * ey;
                }
                want += w[t * H + h] * fmax(dot, 0) / sqrt(H * D);
                bound += fabs(w[t * H + h]) * slack / sqrt(H * D);
            }
            double err = fabs(logits[t * S + s] - want);
            assert_true(err <= bound);
            worst = fmax(worst, err / bound);
        }
        /* Of the exact ten best, fp8's twenty best hold all but a few. */
        int found = 0;
        for (int e = 0; e < 10; e++) {
            int best = 0;
            double score[S];
            for (int s = 0; s <= S - T + t; s++) {
                score[s] = 0;
                for (int h = 0; h < H; h++) {
                    double dot = 0;
                    for (int d = 0; d < D; d++)
                        dot += q[(t * H + h) * D + d] * k[s * D + d];
                    score[s] += w[t * H + h] * fmax(dot, 0);
                }
            }
            for (int rank = 0; rank <= e; rank++) {
                best = 0;
                for (int s = 0; s <= S - T + t; s++)
                    best = score[s] > score[best] ? s : best;
                if (rank < e)
                    score[best] = -INFINITY;
            }
            for (int i = 0; i < K; i++)
                found += indices[t * K + i] == best;
        }
        assert_true(found >= 8);
    }
    assert_true(worst > 1e-4); /* the bound is not vacuous */
}

/* --------------------------------------------------------------- bad input */

static void refuse(mla_status status, const char *head)
{
    if (status != MLA_ERR_ARGUMENT || strncmp(mla_last_error(), head, strlen(head)))
        fail_msg("status %s, sentence '%s', want '%s'", mla_status_name(status), mla_last_error(),
                 head);
    assert_non_null(strstr(mla_last_error(), ": got "));
    assert_non_null(strstr(mla_last_error(), ", want "));
}

static void prepare_bad(void **state)
{
    (void)state;
    float in[64] = {0}, out[64], freq[32] = {0};
    int32_t positions[2] = {0, 1};
    const mla_index_prepare_args good = {.rows = 2,
                                         .heads = 1,
                                         .dim = 32,
                                         .dtype = MLA_F32,
                                         .in = in,
                                         .rope_style = MLA_ROPE_HALF,
                                         .rope_dim = 16,
                                         .inv_freq = freq,
                                         .positions = positions,
                                         .hadamard = true,
                                         .out = out};
    mla_index_prepare_args a = good;
    assert_int_equal(mla_index_prepare(&a), MLA_OK);
#define BAD(field, change)                                                                         \
    do {                                                                                           \
        a = good;                                                                                  \
        change;                                                                                    \
        refuse(mla_index_prepare(&a), "mla_index_prepare: " field ": ");                           \
    } while (0)
    refuse(mla_index_prepare(NULL), "mla_index_prepare: args: ");
    BAD("rows", a.rows = -1);
    BAD("heads", a.heads = 0);
    BAD("dim", a.dim = 5000);
    BAD("dim", a.dim = 24);
    BAD("dim", (a.dim = 16, a.format = MLA_INDEX_FP4));
    BAD("dtype", a.dtype = MLA_F64);
    BAD("rope_style", a.rope_style = (mla_rope_style)3);
    BAD("rope_dim", a.rope_dim = 33);
    BAD("rope_dim", a.rope_dim = 15);
    BAD("format", a.format = (mla_index_format)4);
    BAD("norm_bias", a.norm_weight = in);
    BAD("norm_weight", a.norm_bias = in);
    BAD("norm_eps", (a.norm_weight = a.norm_bias = in, a.norm_eps = NAN));
    BAD("in", a.in = NULL);
    BAD("out", a.out = NULL);
    BAD("scale", a.format = MLA_INDEX_FP8);
    BAD("inv_freq", a.inv_freq = NULL);
    BAD("positions", a.positions = NULL);
#undef BAD
    a = good;
    mla_alloc_fail_at(1);
    assert_int_equal(mla_index_prepare(&a), MLA_ERR_MEMORY);
    mla_alloc_fail_at(0);

    refuse(mla_index_fold_weights(NULL, NULL, 1, 1, 1, out), "mla_index_fold_weights: w: ");
    refuse(mla_index_fold_weights(in, NULL, 1, 1, 1, NULL), "mla_index_fold_weights: out: ");
    refuse(mla_index_fold_weights(in, NULL, 1, 0, 1, out), "mla_index_fold_weights: heads: ");
    refuse(mla_rope_frequencies(7, 1e4, 1, 0, 0, 0, freq), "mla_rope_frequencies: rope_dim: ");
    refuse(mla_rope_frequencies(8, 1, 1, 0, 0, 0, freq), "mla_rope_frequencies: theta: ");
    refuse(mla_rope_frequencies(8, 1e4, 0, 0, 0, 0, freq), "mla_rope_frequencies: factor: ");
    refuse(mla_rope_frequencies(8, 1e4, 40, 0, 32, 1, freq), "mla_rope_frequencies: original: ");
    refuse(mla_rope_frequencies(8, 1e4, 40, 4096, 1, 32, freq),
           "mla_rope_frequencies: beta_fast: ");
    refuse(mla_rope_frequencies(8, 1e4, 1, 0, 0, 0, NULL), "mla_rope_frequencies: inv_freq: ");

    uint8_t data[8] = {1, 2, 3, 4, 5, 6, 7, 8}, cache[64] = {0}, none[64] = {0};
    int64_t slots[2] = {0, 4};
#define APPEND(field, ...) refuse(mla_index_append(__VA_ARGS__), "mla_index_append: " field ": ")
    APPEND("slots[1]", MLA_INDEX_FP8, 4, 2, 2, 0, slots, 2, data, in, cache);
    slots[1] = -2;
    APPEND("slots[1]", MLA_INDEX_FP8, 4, 2, 2, 0, slots, 2, data, in, cache);
    APPEND("format", MLA_INDEX_BF16, 4, 2, 2, 0, slots, 1, data, in, cache);
    APPEND("dim", MLA_INDEX_FP4, 48, 2, 2, 0, slots, 1, data, in, cache);
    APPEND("page_size", MLA_INDEX_FP8, 4, 0, 2, 0, slots, 1, data, in, cache);
    APPEND("num_pages", MLA_INDEX_FP8, 4, 2, -1, 0, slots, 1, data, in, cache);
    APPEND("page_bytes", MLA_INDEX_FP8, 4, 2, 2, 15, slots, 1, data, in, cache);
    APPEND("rows", MLA_INDEX_FP8, 4, 2, 2, 0, slots, -1, data, in, cache);
    APPEND("slots", MLA_INDEX_FP8, 4, 2, 2, 0, NULL, 1, data, in, cache);
    APPEND("data", MLA_INDEX_FP8, 4, 2, 2, 0, slots, 1, NULL, in, cache);
    APPEND("scale", MLA_INDEX_FP8, 4, 2, 2, 0, slots, 1, data, NULL, cache);
    APPEND("cache", MLA_INDEX_FP8, 4, 2, 2, 0, slots, 1, data, in, NULL);
    assert_memory_equal(cache, none, sizeof none);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fp8_rows),
        cmocka_unit_test(fp8_scales_are_tight),
        cmocka_unit_test(fp4_rows),
        cmocka_unit_test(hadamard_rows),
        cmocka_unit_test(norm_rows),
        cmocka_unit_test(rope_rows),
        cmocka_unit_test(rope_yarn),
        cmocka_unit_test(steps_round),
        cmocka_unit_test(weights_folded),
        cmocka_unit_test(cache_bytes),
        cmocka_unit_test(cache_written_both_ways),
        cmocka_unit_test(end_to_end),
        cmocka_unit_test(prepare_bad),
    };
    return cmocka_run_group_tests_name("index_prepare", tests, NULL, NULL);
}
