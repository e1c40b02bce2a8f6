/* SPDX-License-Identifier: Apache-2.0 */
/* From projected q_I and k_I to index records: LayerNorm, rotary embedding, Hadamard, quantisation.
 *
 *     norm:     x = (x - mean) / sqrt(var + eps) · weight + bias
 *     rope:     (a, b) = (a·cos - b·sin, a·sin + b·cos) for the pairs of the first rope_dim
 * elements
 *     Hadamard: x = H·x / sqrt(dim),  H[i,j] = (-1)^popcount(i & j)
 *     fp8:      scale = 2^ceil(log2(max(|x|, 1e-4) / 448)), e4m3(x / scale)
 *     fp4:      the same per 32 elements with 6 and e2m1
 *
 * After each step values are rounded to the dtype of the input, as a model in bf16 does. */
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "common/format.h"
#include "common/record.h"
#include "common/status.h"
#include "index_check.h"

static void round_to(mla_dtype dtype, float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        if (dtype == MLA_BF16)
            x[i] = mla_bf16_to_f32(mla_f32_to_bf16(x[i]));
        else if (dtype == MLA_F16)
            x[i] = mla_f16_to_f32(mla_f32_to_f16(x[i]));
    }
}

static void layer_norm(float *x, int64_t n, const float *weight, const float *bias, double eps)
{
    double mean = 0, var = 0;
    for (int64_t i = 0; i < n; i++)
        mean += x[i];
    mean /= (double)n;
    for (int64_t i = 0; i < n; i++)
        var += (x[i] - mean) * (x[i] - mean);
    double inverse = 1 / sqrt(var / (double)n + eps);
    for (int64_t i = 0; i < n; i++)
        x[i] = (float)((x[i] - mean) * inverse * weight[i] + bias[i]);
}

static void rope(float *x, const mla_index_prepare_args *a, int32_t position)
{
    int64_t half = a->rope_dim / 2;
    for (int64_t i = 0; i < half; i++) {
        /* The angle is a float product as engines compute it; beyond that no error is added. */
        float angle = (float)position * a->inv_freq[i];
        float c = (float)cos(angle), s = (float)sin(angle);
        float *p = a->rope_style == MLA_ROPE_HALF ? x + i : x + 2 * i;
        float *q = a->rope_style == MLA_ROPE_HALF ? x + i + half : x + 2 * i + 1;
        float u = *p, v = *q;
        *p = (float)((double)u * c - (double)v * s);
        *q = (float)((double)u * s + (double)v * c);
    }
}

static void hadamard(float *x, int64_t n)
{
    for (int64_t step = 1; step < n; step *= 2) {
        for (int64_t i = 0; i < n; i++) {
            if (i & step)
                continue;
            float u = x[i], v = x[i + step];
            x[i] = u + v;
            x[i + step] = u - v;
        }
    }
    float factor = (float)(1 / sqrt((double)n));
    for (int64_t i = 0; i < n; i++)
        x[i] *= factor;
}

static mla_status check(const mla_index_prepare_args *a)
{
    const char *f = "mla_index_prepare";
    if (!a)
        return mla_fail(MLA_ERR_ARGUMENT, "%s: args: got NULL, want a pointer", f);
    bool roped = a->rope_style != MLA_ROPE_NONE, fp4 = a->format == MLA_INDEX_FP4;
    const struct mla_range ranges[] = {
        {"rows", a->rows, 0, INT32_MAX, "0 to 2147483647"},
        {"heads", a->heads, 1, 4096, "1 to 4096"},
        {"dim", a->dim, 1, 4096, "1 to 4096"},
        {"dtype", (int64_t)a->dtype, MLA_BF16, MLA_F32, "bf16, f16 or f32"},
        {"rope_style", (int64_t)a->rope_style, 0, MLA_ROPE_HALF, "a mla_rope_style"},
        {"rope_dim", roped ? a->rope_dim : 0, 0, a->dim, "0 to dim"},
        {"rope_dim", roped && a->rope_dim % 2 ? a->rope_dim : 0, 0, 0, "an even number"},
        {"dim", a->hadamard && a->dim & (a->dim - 1) ? a->dim : 0, 0, 0,
         "a power of two with hadamard"},
        {"format", (int64_t)a->format, 0, MLA_INDEX_FP4, "a mla_index_format"},
        {"dim", fp4 && (a->dim % 32 || a->dim > 128) ? a->dim : 0, 0, 0,
         "32, 64, 96 or 128 with fp4"},
    };
    mla_status status = mla_check_ranges(f, ranges, sizeof ranges / sizeof *ranges);
    if (status)
        return status;
    if (!a->norm_weight != !a->norm_bias)
        return mla_fail(MLA_ERR_ARGUMENT, "%s: norm_%s: got NULL, want weight and bias or neither",
                        f, a->norm_weight ? "bias" : "weight");
    if (a->norm_weight && !(a->norm_eps >= 0 && a->norm_eps < INFINITY))
        return mla_fail(MLA_ERR_ARGUMENT, "%s: norm_eps: got %g, want a finite number >= 0", f,
                        a->norm_eps);
    bool any = a->rows > 0, scaled = a->format >= MLA_INDEX_FP8;
    const struct {
        const char *field;
        const void *pointer;
        bool required;
    } pointers[] = {
        {"in", a->in, any},
        {"out", a->out, any},
        {"scale", a->scale, any && scaled},
        {"inv_freq", a->inv_freq, any && roped && a->rope_dim},
        {"positions", a->positions, any && roped && a->rope_dim},
    };
    for (size_t i = 0; i < sizeof pointers / sizeof *pointers; i++) {
        if (pointers[i].required && !pointers[i].pointer)
            return mla_fail(MLA_ERR_ARGUMENT, "%s: %s: got NULL, want a pointer", f,
                            pointers[i].field);
    }
    return MLA_OK;
}

mla_status mla_index_prepare(const mla_index_prepare_args *a)
{
    mla_status status = check(a);
    if (status)
        return status;
    int64_t dim = a->dim;
    float *x = mla_alloc((size_t)dim, sizeof(float));
    if (!x)
        return mla_fail(MLA_ERR_MEMORY, "mla_index_prepare: no memory for a row of %" PRId64, dim);
    for (int64_t i = 0; i < a->rows * a->heads; i++) {
        const char *in = a->in;
        mla_load_f32(a->dtype, in + (size_t)(i * dim) * mla_dtype_bytes(a->dtype), dim, x);
        if (a->norm_weight) {
            layer_norm(x, dim, a->norm_weight, a->norm_bias, a->norm_eps);
            round_to(a->dtype, x, dim);
        }
        if (a->rope_style != MLA_ROPE_NONE && a->rope_dim) {
            rope(x, a, a->positions[i / a->heads]);
            round_to(a->dtype, x, a->rope_dim);
        }
        if (a->hadamard) {
            hadamard(x, dim);
            round_to(a->dtype, x, dim);
        }
        switch (a->format) {
        case MLA_INDEX_F32:
            mla_store_f32(MLA_F32, (float *)a->out + i * dim, dim, x);
            break;
        case MLA_INDEX_BF16:
            mla_store_f32(MLA_BF16, (uint16_t *)a->out + i * dim, dim, x);
            break;
        case MLA_INDEX_FP8:
            ((float *)a->scale)[i] =
                mla_index_scale(x, dim, a->any_scale ? MLA_SCALE_F32 : MLA_SCALE_DEFAULT);
            mla_quantise_e4m3(x, dim, ((float *)a->scale)[i], (uint8_t *)a->out + i * dim);
            break;
        case MLA_INDEX_FP4:
            memset((uint8_t *)a->scale + 4 * i, 127, 4); /* 1.0 where dim leaves some unused */
            for (int64_t d = 0; d < dim; d += 32)
                ((uint8_t *)a->scale)[4 * i + d / 32] =
                    mla_index_fp4_block(x + d, (uint8_t *)a->out + (i * dim + d) / 2);
            break;
        }
    }
    mla_free(x);
    return MLA_OK;
}

mla_status mla_index_fold_weights(const float *w, const float *q_scale, int64_t rows, int64_t heads,
                                  int64_t dim, float *out)
{
    const char *f = "mla_index_fold_weights";
    const struct mla_range ranges[] = {
        {"rows", rows, 0, INT32_MAX, "0 to 2147483647"},
        {"heads", heads, 1, 4096, "1 to 4096"},
        {"dim", dim, 1, 4096, "1 to 4096"},
    };
    mla_status status = mla_check_ranges(f, ranges, sizeof ranges / sizeof *ranges);
    if (status)
        return status;
    if (rows && (!w || !out))
        return mla_fail(MLA_ERR_ARGUMENT, "%s: %s: got NULL, want a pointer", f, w ? "out" : "w");
    float per_head = (float)(1 / sqrt((double)heads)), per_dim = (float)(1 / sqrt((double)dim));
    for (int64_t i = 0; i < rows * heads; i++)
        out[i] = w[i] * per_head * (q_scale ? q_scale[i] : 1) * per_dim;
    return MLA_OK;
}

mla_status mla_index_append(mla_index_format format, int64_t dim, int64_t page_size,
                            int64_t num_pages, int64_t page_bytes, const int64_t *slots,
                            int64_t rows, const void *data, const void *scale, void *cache)
{
    const char *f = "mla_index_append";
    bool fp4 = format == MLA_INDEX_FP4;
    const struct mla_range first[] = {
        {"format", (int64_t)format, MLA_INDEX_FP8, MLA_INDEX_FP4, "fp8 or fp4"},
        {"dim", dim, 1, fp4 ? 128 : 4096, fp4 ? "32, 64, 96 or 128 with fp4" : "1 to 4096"},
        {"dim", fp4 && dim % 32 ? dim : 0, 0, 0, "32, 64, 96 or 128 with fp4"},
        {"page_size", page_size, 1, 65536, "1 to 65536"},
        {"num_pages", num_pages, 0, INT32_MAX, "0 to 2147483647"},
        {"rows", rows, 0, INT32_MAX, "0 to 2147483647"},
    };
    mla_status status = mla_check_ranges(f, first, sizeof first / sizeof *first);
    if (status)
        return status;
    int64_t bytes = (int64_t)mla_index_row_bytes(format, dim) - 4;
    if (page_bytes && (page_bytes < page_size * (bytes + 4) || page_bytes > (int64_t)1 << 31))
        return mla_fail(MLA_ERR_ARGUMENT,
                        "%s: page_bytes: got %" PRId64 ", want 0 or %" PRId64 " to 2^31", f,
                        page_bytes, page_size * (bytes + 4));
    if (rows && !(slots && data && scale && cache))
        return mla_fail(MLA_ERR_ARGUMENT, "%s: %s: got NULL, want a pointer", f,
                        !slots  ? "slots"
                        : !data ? "data"
                        : scale ? "cache"
                                : "scale");
    for (int64_t i = 0; i < rows; i++) {
        if (slots[i] < -1 || slots[i] >= num_pages * page_size)
            return mla_fail(MLA_ERR_ARGUMENT,
                            "%s: slots[%" PRId64 "]: got %" PRId64 ", want -1 to %" PRId64, f, i,
                            slots[i], num_pages * page_size - 1);
    }
    page_bytes = page_bytes ? page_bytes : page_size * (bytes + 4);
    for (int64_t i = 0; i < rows; i++) {
        if (slots[i] < 0)
            continue;
        char *page = (char *)cache + slots[i] / page_size * page_bytes;
        int64_t offset = slots[i] % page_size;
        memcpy(page + offset * bytes, (const char *)data + i * bytes, (size_t)bytes);
        memcpy(page + page_size * bytes + offset * 4, (const char *)scale + i * 4, 4);
    }
    return MLA_OK;
}

mla_status mla_rope_frequencies(int64_t rope_dim, double theta, double factor, double original,
                                double beta_fast, double beta_slow, float *inv_freq)
{
    const char *f = "mla_rope_frequencies";
    if (rope_dim < 2 || rope_dim % 2 || rope_dim > 4096)
        return mla_fail(MLA_ERR_ARGUMENT, "%s: rope_dim: got %" PRId64 ", want even, 2 to 4096", f,
                        rope_dim);
    bool yarn = factor > 1;
    const struct {
        const char *field;
        double got, above;
        bool used;
    } numbers[] = {{"theta", theta, 1, true},
                   {"factor", factor, 0, true},
                   {"original", original, 0, yarn},
                   {"beta_slow", beta_slow, 0, yarn},
                   {"beta_fast", beta_fast, beta_slow, yarn}};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        if (numbers[i].used && !(numbers[i].got > numbers[i].above && numbers[i].got < INFINITY))
            return mla_fail(MLA_ERR_ARGUMENT, "%s: %s: got %g, want a finite number above %g", f,
                            numbers[i].field, numbers[i].got, numbers[i].above);
    }
    if (!inv_freq)
        return mla_fail(MLA_ERR_ARGUMENT, "%s: inv_freq: got NULL, want a pointer", f);
    /* Pairs that turn more than beta_fast times within the trained context stay, those that turn
     * less than beta_slow times are slowed by factor, a linear ramp between. */
    double n = (double)rope_dim, low = 0, high = 0;
    if (yarn) {
        low = floor(n * log(original / (beta_fast * 2 * acos(-1))) / (2 * log(theta)));
        high = ceil(n * log(original / (beta_slow * 2 * acos(-1))) / (2 * log(theta)));
        low = fmin(fmax(low, 0), n - 1);
        high = fmin(fmax(high, 0), n - 1);
        if (low == high)
            high += 0.001;
    }
    for (int64_t i = 0; i < rope_dim / 2; i++) {
        double freq = pow(theta, -2.0 * (double)i / n);
        double ramp = yarn ? fmin(fmax(((double)i - low) / (high - low), 0), 1) : 0;
        inv_freq[i] = (float)(yarn ? freq / factor * ramp + freq * (1 - ramp) : freq);
    }
    return MLA_OK;
}
