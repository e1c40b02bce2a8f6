/* SPDX-License-Identifier: Apache-2.0 */
// labels: cuda
// timeout: 300
/* mla/cache.h and mla/index.h on a CUDA device beside the CPU: records, read-back, top-k lists and
 * lists of the indexer bit for bit, indexer scores within the bound of docs/index.md. Outputs are
 * poisoned and compared whole, so a byte too many is seen. Exit 77 = skipped, with the reason. With
 * the word "bench", times of mla_index_run, its scores alone and mla_topk_run. */
#include <stdio.h>

#ifndef MLA_WITH_CUDA
int main(void)
{
    printf("skipped: this build has no CUDA backend\n");
    return 77;
}
#else

#include "mla/cache.h"
#include "mla/index.h"

#include "common/format.h"

#include <cuda_runtime_api.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static mla_context *cpu, *cuda;
static int failures, checks;

#define CUDA(call)                                                                                 \
    do {                                                                                           \
        cudaError_t e_ = (call);                                                                   \
        if (e_ != cudaSuccess) {                                                                   \
            printf("line %d: %s: %s\n", __LINE__, #call, cudaGetErrorString(e_));                  \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)
#define OK(call)                                                                                   \
    do {                                                                                           \
        if ((call) != MLA_OK) {                                                                    \
            printf("line %d: %s\n", __LINE__, mla_last_error());                                   \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

static void *allocate(size_t bytes)
{
    void *p = aligned_alloc(256, (bytes + 511) / 256 * 256);
    if (!p)
        exit(1);
    return p;
}

static void *device(size_t bytes)
{
    void *p;
    CUDA(cudaMalloc(&p, bytes + 256));
    return p;
}

static void *upload(const void *from, size_t bytes)
{
    void *p = device(bytes);
    CUDA(cudaMemcpy(p, from, bytes, cudaMemcpyHostToDevice));
    return p;
}

static void download(void *to, const void *from, size_t bytes)
{
    CUDA(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost));
}

static void report(const char *what, const char *name, int64_t bad, int64_t n)
{
    checks++;
    if (bad == 0)
        return;
    failures++;
    if (failures <= 40)
        printf("FAILED %s, %s: %lld of %lld differ\n", what, name, (long long)bad, (long long)n);
}

static void compare(const char *what, const char *name, const void *a, const void *b, size_t bytes)
{
    int64_t bad = 0;
    for (size_t i = 0; i < bytes; i++)
        bad += ((const char *)a)[i] != ((const char *)b)[i];
    report(what, name, bad, (int64_t)bytes);
}

static uint64_t rng = 1;
static uint32_t next32(void)
{
    rng = rng * 6364136223846793005ull + 1442695040888963407ull;
    uint64_t x = rng ^ rng >> 33;
    return (uint32_t)(x * 0xff51afd7ed558ccdull >> 32);
}
static double uniform(void)
{
    return (next32() + 0.5) / 4294967296.0;
}
static double normal(void)
{
    return sqrt(-2 * log(uniform())) * cos(6.283185307179586 * uniform());
}

/* ------------------------------------------------------------------- codecs */

/* Values of a row, by kind: ordinary, all exponents, near the ties, zeros, specials. */
static float value_of(int kind, int64_t i)
{
    static const uint32_t special[] = {0x7FC00001, 0xFF800001, 0x7F800000, 0xFF800000,
                                       0,          0x80000000, 1,          0x807FFFFF};
    uint32_t bits = next32();
    float x;
    switch (kind) {
    case 0:
        return (float)normal();
    case 1: /* any bits at all, NaN and infinity seldom */
        bits = (bits & 0x7F800000u) == 0x7F800000u && next32() % 4 ? bits ^ 0x40000000u : bits;
        break;
    case 2: /* halfway between codes, and next to it, under a power-of-two maximum */
        return i % 16 == 0
                   ? 448.0f
                   : (float)((int)(bits % 512) - 256) * 0.25f * (next32() % 3 ? 1 : 1.0000001f);
    case 3:
        return bits % 8 ? 0.0f : -0.0f;
    default:
        if (bits % 16)
            return (float)normal() * 1e-3f;
        bits = special[next32() % 8];
    }
    memcpy(&x, &bits, sizeof x);
    return x;
}

static void fill_values(mla_dtype dtype, void *to, int64_t n, int64_t width, int64_t stride)
{
    for (int64_t r = 0; r < n; r++) {
        int kind = (int)(next32() % 5);
        for (int64_t i = 0; i < width; i++) {
            float x = value_of(kind, i);
            if (dtype == MLA_F32) {
                memcpy((float *)to + r * stride + i, &x, sizeof x);
                continue;
            }
            uint16_t h = dtype == MLA_BF16 ? mla_f32_to_bf16(x) : mla_f32_to_f16(x);
            if (kind == 1) /* every bit pattern, signalling NaN too */
                h = (uint16_t)next32();
            ((uint16_t *)to)[r * stride + i] = h;
        }
    }
}

/* n slots below limit, some -1, some twice. */
static void fill_slots(int64_t *slots, int64_t n, int64_t limit, bool twice)
{
    for (int64_t i = 0; i < n; i++)
        slots[i] = i % 11 == 5 ? -1 : (i * 7919 + 3) % limit;
    for (int64_t i = 0; twice && i + 1 < n; i += 3)
        slots[next32() % n] = slots[i];
}

/* For the device, -1 may as well be any slot outside the cache. */
static void spoil_slots(int64_t *slots, int64_t n, int64_t limit)
{
    static const int64_t outside[] = {-2, INT64_MIN, INT64_MAX, 0};
    for (int64_t i = 0; i < n; i++)
        if (slots[i] == -1 && next32() % 2)
            slots[i] = i % 4 == 3 ? limit : outside[i % 4];
}

static bool is_nan(mla_dtype dtype, const char *p)
{
    double x;
    mla_load_f64(dtype, p, 1, &x);
    return x != x;
}

/* Bytes of read-back; a NaN is a NaN where a product made it. */
static void compare_values(const char *name, mla_dtype dtype, const char *a, const char *b,
                           int64_t n)
{
    int64_t bad = 0, item = (int64_t)mla_dtype_bytes(dtype);
    for (int64_t i = 0; i < n; i++, a += item, b += item)
        bad += memcmp(a, b, (size_t)item) && !(is_nan(dtype, a) && is_nan(dtype, b));
    report("read", name, bad, n);
}

static void check_cache(mla_cache_format format, mla_dtype dtype, int64_t page_size, int64_t latent,
                        int64_t rope, int64_t n, int pad, mla_scale_rule rule)
{
    bool packed = mla_cache_is_packed(format), paged = page_size > 0;
    int64_t item = packed ? 1 : (int64_t)mla_dtype_bytes(mla_cache_dtype(format));
    int64_t limit = paged ? (2 * n / page_size + 3) * page_size : 2 * n + 3;
    int64_t row = (int64_t)mla_cache_row_bytes(format, latent, rope) / item + pad;
    bool footer = format == MLA_CACHE_MODEL1 || format == MLA_CACHE_V41;
    mla_cache c = {.format = format, .kv_lora_rank = latent, .qk_rope_dim = rope};
    c.page_size = page_size;
    c.num_pages = paged ? limit / page_size : 0;
    c.num_rows = paged ? 0 : limit;
    size_t bytes = (size_t)(limit * (row + pad) * item) + 4096;
    char name[200];
    snprintf(name, sizeof name, "%s from %s, page %lld, width %lld+%lld, n %lld, pad %d, rule %d",
             mla_cache_format_name(format), mla_dtype_name(dtype), (long long)page_size,
             (long long)latent, (long long)rope, (long long)n, pad, (int)rule);

    int64_t v_latent = latent + pad, v_rope = rope + pad;
    size_t v_bytes = (size_t)(n * (v_latent + v_rope)) * 8 + 64;
    char *values = allocate(v_bytes), *host = allocate(bytes), *got = allocate(bytes);
    int64_t *slots = allocate((size_t)n * 8);
    memset(values, 0x5A, v_bytes);
    int64_t at = n * v_latent * (int64_t)mla_dtype_bytes(dtype);
    fill_values(dtype, values, n, latent, v_latent);
    fill_values(dtype, values + at, n, rope, v_rope);
    fill_slots(slots, n, limit, true);
    memset(host, 0xA5, bytes);
    void *d_cache = upload(host, bytes), *d_values = upload(values, v_bytes);

    mla_cache_values v = {.dtype = dtype};
    v.kv_c = (mla_tensor){values, {v_latent, 0}};
    v.k_pe = (mla_tensor){rope ? values + at : NULL, {v_rope, 0}};
    mla_cache dc = c;
    if (paged) {
        c.kv_cache = (mla_tensor){host, {page_size * row + (footer ? pad : 0), footer ? 0 : row}};
        dc.kv_cache = c.kv_cache;
        dc.kv_cache.data = d_cache;
    } else {
        c.kv_c = (mla_tensor){host, {latent + pad, 0}};
        c.k_pe = (mla_tensor){host + limit * (latent + pad) * item, {rope + pad, 0}};
        dc.kv_c = (mla_tensor){d_cache, {latent + pad, 0}};
        dc.k_pe = (mla_tensor){(char *)d_cache + limit * (latent + pad) * item, {rope + pad, 0}};
    }
    OK(mla_cache_write(cpu, &c, &v, slots, n, rule, NULL));
    int64_t *spoilt = allocate((size_t)n * 8);
    memcpy(spoilt, slots, (size_t)n * 8);
    spoil_slots(spoilt, n, limit);
    void *d_slots = upload(spoilt, (size_t)n * 8);
    mla_cache_values dv = v;
    dv.kv_c.data = d_values;
    dv.k_pe.data = rope ? (char *)d_values + at : NULL;
    OK(mla_cache_write(cuda, &dc, &dv, d_slots, n, rule, NULL));
    download(got, d_cache, bytes);
    compare("write", name, host, got, bytes);

    char *back = allocate(v_bytes), *d_back = device(v_bytes), *got_back = allocate(v_bytes);
    for (mla_dtype to = MLA_BF16; to <= MLA_F64; to++) {
        memset(back, 0x33, v_bytes);
        CUDA(cudaMemset(d_back, 0x33, v_bytes));
        at = n * v_latent * (int64_t)mla_dtype_bytes(to);
        mla_cache_values r = {.dtype = to, .kv_c = {back, {v_latent, 0}}};
        r.k_pe = (mla_tensor){rope ? back + at : NULL, {v_rope, 0}};
        OK(mla_cache_read(cpu, &c, slots, n, &r, NULL));
        r.kv_c.data = d_back;
        r.k_pe.data = rope ? d_back + at : NULL;
        OK(mla_cache_read(cuda, &dc, d_slots, n, &r, NULL));
        download(got_back, d_back, v_bytes);
        if (packed)
            compare_values(name, to, back, got_back, n * (v_latent + v_rope));
        else
            compare("read", name, back, got_back, v_bytes);
    }
    CUDA(cudaFree(d_cache));
    CUDA(cudaFree(d_values));
    CUDA(cudaFree(d_slots));
    CUDA(cudaFree(d_back));
    free(values), free(host), free(got), free(slots), free(spoilt), free(back), free(got_back);
}

static void check_index_cache(mla_index_format format, mla_dtype dtype, int64_t page_size,
                              int64_t n, int pad, mla_scale_rule rule)
{
    int64_t limit = (2 * n / page_size + 3) * page_size;
    mla_cache_index c = {.format = format, .page_size = page_size, .num_pages = limit / page_size};
    int64_t page = (int64_t)mla_cache_index_page_bytes(format, page_size) + pad;
    size_t bytes = (size_t)(page * c.num_pages) + 64, k_bytes = (size_t)(n * (128 + pad)) * 8;
    char name[120];
    snprintf(name, sizeof name, "index %s from %s, page %lld, n %lld, pad %d, rule %d",
             mla_index_format_name(format), mla_dtype_name(dtype), (long long)page_size,
             (long long)n, pad, (int)rule);
    char *keys = allocate(k_bytes), *host = allocate(bytes), *got = allocate(bytes);
    int64_t *slots = allocate((size_t)n * 8);
    memset(keys, 0x5A, k_bytes);
    fill_values(dtype, keys, n, 128, 128 + pad);
    fill_slots(slots, n, limit, true);
    memset(host, 0xA5, bytes);
    char *d_cache = upload(host, bytes), *d_keys = upload(keys, k_bytes);
    c.pages = (mla_tensor){host, {page, 0}};
    mla_tensor k = {keys, {128 + pad, 0}}, dk = {d_keys, {128 + pad, 0}};
    OK(mla_cache_index_write(cpu, &c, dtype, &k, slots, n, rule, NULL));
    mla_cache_index dc = c;
    dc.pages.data = d_cache;
    int64_t *spoilt = allocate((size_t)n * 8);
    memcpy(spoilt, slots, (size_t)n * 8);
    spoil_slots(spoilt, n, limit);
    void *d_slots = upload(spoilt, (size_t)n * 8);
    OK(mla_cache_index_write(cuda, &dc, dtype, &dk, d_slots, n, rule, NULL));
    download(got, d_cache, bytes);
    compare("write", name, host, got, bytes);
    char *got_keys = allocate(k_bytes);
    for (mla_dtype to = MLA_BF16; to <= MLA_F64; to++) {
        memset(keys, 0x33, k_bytes);
        CUDA(cudaMemset(d_keys, 0x33, k_bytes));
        OK(mla_cache_index_read(cpu, &c, slots, n, to, &k, NULL));
        OK(mla_cache_index_read(cuda, &dc, d_slots, n, to, &dk, NULL));
        download(got_keys, d_keys, k_bytes);
        compare_values(name, to, keys, got_keys, n * (128 + pad));
    }
    CUDA(cudaFree(d_cache));
    CUDA(cudaFree(d_keys));
    CUDA(cudaFree(d_slots));
    free(keys), free(host), free(got), free(slots), free(spoilt), free(got_keys);
}

static void check_codecs(void)
{
    static const int64_t counts[] = {1, 37, 2500};
    check_cache(MLA_CACHE_FP8_DS_MLA, MLA_BF16, 64, 512, 64, 9000, 0, MLA_SCALE_DEFAULT);
    check_index_cache(MLA_INDEX_FP8, MLA_BF16, 64, 9000, 0, MLA_SCALE_DEFAULT);
    for (mla_dtype dtype = MLA_BF16; dtype <= MLA_F32; dtype++) {
        for (int i = 0; i < 3; i++) {
            int64_t n = counts[i];
            for (int pad = 0; pad < 2; pad++) {
                int wide = pad ? 3 : 0;
                for (mla_cache_format f = MLA_CACHE_BF16; f <= MLA_CACHE_F32; f++) {
                    check_cache(f, dtype, 0, 512, 64, n, wide, MLA_SCALE_DEFAULT);
                    check_cache(f, dtype, 64, 130, 0, n, wide, MLA_SCALE_DEFAULT);
                    check_cache(f, dtype, 7, 64, 16, n, 8 * wide, MLA_SCALE_DEFAULT);
                }
                check_cache(MLA_CACHE_FP8_DS_MLA, dtype, 64, 512, 64, n, wide, MLA_SCALE_DEFAULT);
                check_cache(MLA_CACHE_FP8_DS_MLA, dtype, 1, 512, 64, n, wide, MLA_SCALE_F32);
                check_cache(MLA_CACHE_MODEL1, dtype, 64, 512, 0, n, wide, MLA_SCALE_DEFAULT);
                check_cache(MLA_CACHE_V41, dtype, 5, 512, 0, n, wide, MLA_SCALE_DEFAULT);
                check_cache(MLA_CACHE_NVFP4_DS_MLA, dtype, 64, 512, 64, n, wide, MLA_SCALE_DEFAULT);
                check_index_cache(MLA_INDEX_FP8, dtype, 64, n, wide, MLA_SCALE_DEFAULT);
                check_index_cache(MLA_INDEX_FP8, dtype, 3, n, wide, MLA_SCALE_F32);
                check_index_cache(MLA_INDEX_FP4, dtype, 64, n, wide, MLA_SCALE_DEFAULT);
            }
        }
    }
}

/* -------------------------------------------------------------------- top-k */

enum scores { RANDOM, TIES, ASCENDING, DESCENDING, CONSTANT, SPECIAL, KINDS };

static void check_topk(enum scores kind, int64_t rows, int64_t columns, int64_t topk,
                       mla_topk_order order, int ranges, int pad, bool least)
{
    char name[120];
    snprintf(name, sizeof name,
             "kind %d, %lld x %lld, k %lld, order %d, ranges %d, pad %d, least %d", (int)kind,
             (long long)rows, (long long)columns, (long long)topk, (int)order, ranges, pad,
             (int)least);
    static const uint32_t special[] = {0x7FC00000, 0xFFC00001, 0x7F800000, 0xFF800000,
                                       0,          0x80000000, 1,          0x80000001};
    int64_t stride = columns + pad, k_stride = topk + pad;
    size_t in_bytes = (size_t)(rows * stride) * 4, out_bytes = (size_t)(rows * k_stride) * 4;
    float *in = allocate(in_bytes + 4);
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t c = 0; c < stride; c++) {
            float x = kind == RANDOM       ? (float)normal()
                      : kind == TIES       ? (float)(next32() % 5)
                      : kind == ASCENDING  ? (float)c
                      : kind == DESCENDING ? (float)-c
                                           : 1.5f;
            if (kind == SPECIAL && next32() % 2)
                memcpy(&x, &special[next32() % 8], 4);
            in[r * stride + c] = x;
        }
    }
    int32_t *start = allocate((size_t)rows * 4 + 4), *end = allocate((size_t)rows * 4 + 4);
    for (int64_t r = 0; r < rows; r++) {
        start[r] = (int32_t)(next32() % (columns + 4)) / (ranges == 2 ? 1 : 8) - 3;
        end[r] = r % 3 == 0 ? INT32_MAX : start[r] + (int32_t)(next32() % (columns + 9)) - 4;
    }
    int32_t *indices[2], *lens[2];
    float *scores[2];
    for (int i = 0; i < 2; i++) {
        indices[i] = allocate(out_bytes);
        scores[i] = allocate(out_bytes);
        lens[i] = allocate((size_t)rows * 4 + 4);
        memset(indices[i], 0x77, out_bytes);
        memset(scores[i], 0x77, out_bytes);
    }
    mla_topk_args a = {.rows = rows, .columns = columns, .topk = topk, .order = order};
    a.relative = ranges > 0 && order == MLA_TOPK_ASCENDING;
    a.in = (mla_tensor){in, {stride, 0}};
    a.key_start = ranges ? start : NULL;
    a.key_end = ranges ? end : NULL;
    a.indices = (mla_tensor){indices[0], {k_stride, 0}};
    a.scores = (mla_tensor){scores[0], {k_stride, 0}};
    a.topk_lens = lens[0];
    size_t bytes;
    OK(mla_topk_workspace_bytes(cpu, &a, &bytes));
    void *workspace = allocate(bytes);
    OK(mla_topk_run(cpu, &a, workspace, bytes, NULL));

    a.in.data = upload(in, in_bytes);
    int32_t *d_start = upload(start, (size_t)rows * 4), *d_end = upload(end, (size_t)rows * 4);
    a.key_start = ranges ? d_start : NULL;
    a.key_end = ranges ? d_end : NULL;
    a.indices.data = upload(indices[1], out_bytes);
    a.scores.data = upload(scores[1], out_bytes);
    int32_t *d_lens = a.topk_lens = device((size_t)rows * 4);
    if (least) { /* ask for too little; the sentence says what is enough */
        a.workspace_limit_bytes = 1;
        if (mla_topk_workspace_bytes(cuda, &a, &bytes) != MLA_ERR_ARGUMENT)
            report("refusal", name, 1, 1);
        const char *text = strstr(mla_last_error(), "at least ");
        a.workspace_limit_bytes = text ? strtoull(text + 9, NULL, 10) : 0;
    }
    OK(mla_topk_workspace_bytes(cuda, &a, &bytes));
    if (least)
        report("limit", name, bytes > a.workspace_limit_bytes, 1);
    void *d_workspace = device(bytes);
    CUDA(cudaMemset(d_workspace, 0xFF, bytes));
    OK(mla_topk_run(cuda, &a, d_workspace, bytes, NULL));
    download(indices[1], a.indices.data, out_bytes);
    download(scores[1], a.scores.data, out_bytes);
    download(lens[1], d_lens, (size_t)rows * 4);
    compare("top-k indices", name, indices[0], indices[1], out_bytes);
    compare("top-k scores", name, scores[0], scores[1], out_bytes);
    compare("top-k lens", name, lens[0], lens[1], (size_t)rows * 4);
    CUDA(cudaFree(a.in.data));
    CUDA(cudaFree(a.indices.data));
    CUDA(cudaFree(a.scores.data));
    CUDA(cudaFree(d_lens));
    CUDA(cudaFree(d_start));
    CUDA(cudaFree(d_end));
    CUDA(cudaFree(d_workspace));
    for (int i = 0; i < 2; i++)
        free(indices[i]), free(scores[i]), free(lens[i]);
    free(in), free(start), free(end), free(workspace);
}

static void check_topks(void)
{
    static const struct {
        int64_t rows, columns, topk;
    } sizes[] = {{3, 0, 2},        {5, 1, 1},       {4, 7, 16},     {9, 100, 100},
                 {70, 1000, 1},    {8, 5000, 64},   {3, 4099, 512}, {5, 40000, 2048},
                 {2, 30000, 5000}, {1, 70001, 2048}};
    for (enum scores kind = RANDOM; kind < KINDS; kind++) {
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
            for (int v = 0; v < 4; v++)
                check_topk(kind, sizes[i].rows, sizes[i].columns, sizes[i].topk,
                           v & 1 ? MLA_TOPK_ASCENDING : MLA_TOPK_BY_SCORE, (int)((i + v) % 3),
                           v == 2 ? 5 : 0, v == 3);
        }
    }
}

/* ------------------------------------------------------------------ indexer */

struct shape {
    const char *name;
    int64_t heads, dim;
    mla_index_format q, k;
    int64_t batch, query_len[4], seq_len[4]; /* batch 0 = one request without cu_seqlens_q */
    int64_t page_size, topk;
    bool causal, ranges, holes, exact, nan;
    int pad;
};

static void fill_elements(mla_index_format f, void *to, int64_t n, bool exact, bool nan)
{
    static const uint8_t small[] = {0x00, 0x38, 0xB8, 0x40, 0xC0, 0x30, 0xB0, 0x38}; /* 0 … 2 */
    for (int64_t i = 0; i < n; i++) {
        uint8_t code = exact ? small[next32() % 8] : (uint8_t)next32();
        if ((code & 0x7F) == 0x7F || (code & 0x7F) > 0x68) /* at most 64, and no NaN */
            code = 0x39;
        if (nan && next32() % 4096 == 0)
            code = 0x7F;
        float x = mla_e4m3_to_f32(code);
        if (!exact && f == MLA_INDEX_BF16)
            x = (float)normal();
        if (f == MLA_INDEX_FP8)
            ((uint8_t *)to)[i] = code;
        else
            ((uint16_t *)to)[i] = mla_f32_to_bf16(x);
    }
}

static double element(mla_index_format f, const void *p, int64_t i)
{
    return f == MLA_INDEX_FP8 ? (double)mla_e4m3_to_f32(((const uint8_t *)p)[i])
                              : (double)mla_bf16_to_f32(((const uint16_t *)p)[i]);
}

struct entry {
    float score;
    int32_t index;
};

static int by_score(const void *x, const void *y)
{
    const struct entry *a = x, *b = y;
    bool na = a->score != a->score, nb = b->score != b->score;
    if (na != nb)
        return na ? 1 : -1;
    if (!na && a->score != b->score)
        return a->score > b->score ? -1 : 1;
    return a->index < b->index ? -1 : 1;
}

/* Lists against a sort of the device's own scores: exact, whatever their rounding. */
static void check_lists(const struct shape *s, int64_t rows, int64_t columns, const float *logits,
                        const int32_t *indices, const float *scores, const int32_t *lens)
{
    struct entry *e = allocate((size_t)columns * sizeof *e + 8);
    int64_t bad = 0;
    for (int64_t t = 0; t < rows; t++) {
        int64_t n = 0;
        for (int64_t c = 0; c < columns; c++)
            if (logits[t * columns + c] != -INFINITY)
                e[n++] = (struct entry){logits[t * columns + c], (int32_t)c};
        qsort(e, (size_t)n, sizeof *e, by_score);
        bad += lens[t] != (n < s->topk ? n : s->topk);
        for (int64_t i = 0; i < s->topk; i++) {
            float want = i < n ? e[i].score : -INFINITY, got = scores[t * s->topk + i];
            bad += indices[t * s->topk + i] != (i < n ? e[i].index : -1);
            bad += !(want == got || (want != want && got != got));
        }
    }
    report("lists", s->name, bad, rows * s->topk);
    free(e);
}

/* An indexer call whose inputs lie twice, on the host and on the device. */
struct call {
    mla_index_args host, device;
    int64_t rows, longest, keys;
    int32_t cu[5], seq[4];
    void *memory[16], *d_memory[16];
    int parts;
};

static void *both(struct call *c, void *host, size_t bytes)
{
    c->memory[c->parts] = host;
    c->d_memory[c->parts] = upload(host, bytes);
    return c->d_memory[c->parts++];
}

static void make_call(const struct shape *s, struct call *c)
{
    *c = (struct call){0};
    mla_index_args a = {.heads = s->heads, .dim = s->dim, .q_format = s->q, .k_format = s->k};
    int64_t requests = s->batch ? s->batch : 1;
    for (int64_t b = 0; b < requests; b++) {
        c->cu[b] = (int32_t)c->rows;
        c->seq[b] = (int32_t)s->seq_len[b];
        c->rows += s->query_len[b];
        c->keys += s->seq_len[b];
        c->longest = s->seq_len[b] > c->longest ? s->seq_len[b] : c->longest;
    }
    c->cu[requests] = (int32_t)c->rows;
    a.num_queries = c->rows;
    a.num_keys = c->keys;
    a.batch = s->batch;
    a.cu_seqlens_q = s->batch ? c->cu : NULL;
    a.seq_lens_kv = s->batch ? c->seq : NULL;
    a.causal = s->causal;
    a.topk = s->topk;
    a.page_size = s->page_size;
    a.precision = MLA_PRECISION_FP32;
    mla_index_args d = a;
    int64_t q_item = s->q == MLA_INDEX_FP8 ? 1 : 2, k_item = s->k == MLA_INDEX_FP8 ? 1 : 2;
    int64_t q_head = s->dim + s->pad;
    size_t q_bytes = (size_t)(c->rows * s->heads * q_head * q_item) + 16;
    void *q = allocate(q_bytes);
    fill_elements(s->q, q, c->rows * s->heads * q_head, s->exact, false);
    a.q = d.q = (mla_tensor){q, {s->heads * q_head, q_head}};
    d.q.data = both(c, q, q_bytes);
    float *w = allocate((size_t)(c->rows * s->heads) * 4 + 16);
    for (int64_t i = 0; i < c->rows * s->heads; i++)
        w[i] = s->exact ? (float)(1 << next32() % 3) * (next32() % 3 ? 1 : -1) : (float)normal();
    a.weights.data = w;
    d.weights.data = both(c, w, (size_t)(c->rows * s->heads) * 4);
    if (s->page_size) {
        int64_t columns = (c->longest + s->page_size - 1) / s->page_size + 1;
        a.max_pages = d.max_pages = columns;
        a.num_pages = d.num_pages = columns * requests;
        int64_t page = s->page_size * (s->dim + 4) + s->pad;
        size_t bytes = (size_t)(page * a.num_pages) + 16;
        char *cache = allocate(bytes);
        for (int64_t p = 0; p < a.num_pages; p++) {
            fill_elements(s->k, cache + p * page, s->page_size * s->dim, s->exact, s->nan);
            for (int64_t i = 0; i < s->page_size; i++) {
                float scale = ldexpf(s->exact ? 1 : (float)(1 + uniform()), (int)(next32() % 3));
                memcpy(cache + p * page + s->page_size * s->dim + 4 * i, &scale, 4);
            }
        }
        a.k_cache = d.k_cache = (mla_tensor){cache, {page, 0}};
        d.k_cache.data = both(c, cache, bytes);
        int32_t *table = allocate((size_t)(columns * requests) * 4);
        for (int64_t i = 0; i < columns * requests; i++) {
            table[i] = (int32_t)((i * 7 + 3) % a.num_pages);
            if (s->holes && i % 5 == 2)
                table[i] = i % 2 ? -1 : (int32_t)a.num_pages;
        }
        a.page_table.data = table;
        d.page_table.data = both(c, table, (size_t)(columns * requests) * 4);
    } else {
        int64_t row = s->dim + s->pad;
        size_t bytes = (size_t)(c->keys * row * k_item) + 16;
        void *k = allocate(bytes);
        fill_elements(s->k, k, c->keys * row, s->exact, s->nan);
        float *scale = allocate((size_t)c->keys * 4 + 16);
        for (int64_t i = 0; i < c->keys; i++)
            scale[i] = ldexpf(s->exact ? 1 : (float)(1 + uniform()), (int)(next32() % 3));
        a.k = d.k = (mla_tensor){k, {row, 0}};
        d.k.data = both(c, k, bytes);
        if (s->k == MLA_INDEX_FP8 || s->pad) {
            a.k_scale = scale;
            d.k_scale = both(c, scale, (size_t)c->keys * 4);
        } else {
            free(scale);
        }
    }
    if (s->ranges) {
        int32_t *start = allocate((size_t)c->rows * 4), *end = allocate((size_t)c->rows * 4);
        for (int64_t t = 0; t < c->rows; t++) {
            start[t] = t % 7 == 3 ? INT32_MAX : (int32_t)(next32() % 40) - 9;
            end[t] = t % 5 ? (int32_t)(next32() % (c->longest + 50)) - 5 : INT32_MAX;
        }
        a.key_start = start;
        a.key_end = end;
        d.key_start = both(c, start, (size_t)c->rows * 4);
        d.key_end = both(c, end, (size_t)c->rows * 4);
    }
    c->host = a;
    c->device = d;
}

static void free_call(struct call *c)
{
    for (int i = 0; i < c->parts; i++) {
        free(c->memory[i]);
        CUDA(cudaFree(c->d_memory[i]));
    }
}

struct result {
    float *logits, *scores;
    int32_t *indices, *lens;
};

static struct result new_result(const struct call *c, bool on_device)
{
    size_t l = (size_t)(c->rows * c->longest) * 4 + 64,
           k = (size_t)(c->rows * c->host.topk) * 4 + 64;
    struct result r;
    if (on_device)
        r = (struct result){device(l), device(k), device(k), device((size_t)c->rows * 4)};
    else
        r = (struct result){allocate(l), allocate(k), allocate(k), allocate((size_t)c->rows * 4)};
    return r;
}

static void run_call(const mla_context *context, mla_index_args a, const struct result *r,
                     int64_t longest, bool logits, size_t limit, cudaStream_t stream)
{
    size_t bytes;
    a.logits_columns = logits ? longest : 0;
    a.logits.data = r->logits;
    a.indices.data = r->indices;
    a.scores.data = r->scores;
    a.topk_lens = r->lens;
    a.workspace_limit_bytes = limit;
    OK(mla_index_workspace_bytes(context, &a, &bytes));
    if (limit && bytes > limit)
        report("workspace limit", "index", 1, 1);
    bool on_device = context == cuda;
    void *workspace = on_device ? device(bytes) : allocate(bytes);
    if (on_device)
        CUDA(cudaMemset(workspace, 0xFF, bytes));
    OK(mla_index_run(context, &a, workspace, bytes, stream));
    if (on_device) {
        CUDA(cudaDeviceSynchronize());
        CUDA(cudaFree(workspace));
    } else {
        free(workspace);
    }
}

static double worst_share; /* of the bound on scores */

/* Device scores against fp64 sums: the bound of docs/index.md. */
static void check_scores(const struct shape *s, const struct call *c, const float *host,
                         const float *device)
{
    const mla_index_args *a = &c->host;
    int64_t bad = 0, first = 0, n = c->longest;
    double unit = ldexp(2.0 * s->dim + s->heads + 16, -23);
    for (int64_t b = 0; b < (s->batch ? s->batch : 1); b++) {
        for (int64_t t = c->cu[b]; t < c->cu[b + 1]; t++) {
            for (int64_t p = 0; p < n; p++) {
                float x = host[t * n + p], y = device[t * n + p];
                if (x == -INFINITY || x != x || (t * n + p) % 7) {
                    bad += !(x == y || (x != x && y != y)) && (x == -INFINITY || x != x);
                    continue;
                }
                const char *key = (const char *)a->k.data;
                int64_t at = (first + p) * (s->dim + s->pad);
                float scale = a->k_scale ? ((const float *)a->k_scale)[first + p] : 1;
                if (s->page_size) {
                    int32_t page =
                        ((int32_t *)a->page_table.data)[b * a->max_pages + p / s->page_size];
                    const char *base = (const char *)a->k_cache.data + page * a->k_cache.stride[0];
                    key = base;
                    at = p % s->page_size * s->dim;
                    memcpy(&scale, base + s->page_size * s->dim + p % s->page_size * 4, 4);
                }
                double sum = 0;
                for (int64_t h = 0; h < s->heads; h++) {
                    double dot = 0;
                    for (int64_t d = 0; d < s->dim; d++)
                        dot += fabs(
                            element(s->q, a->q.data, (t * s->heads + h) * (s->dim + s->pad) + d) *
                            element(s->k, key, at + d));
                    sum += dot * fabs(((const float *)a->weights.data)[t * s->heads + h]);
                }
                double bound = unit * sum * fabs((double)scale), diff = fabs((double)x - y);
                bad += !(diff <= bound);
                if (bound > 0 && diff / bound > worst_share)
                    worst_share = diff / bound;
            }
        }
        first += s->seq_len[b];
    }
    report("scores", s->name, bad, c->rows * n);
}

static void check_shape(const struct shape *s)
{
    struct call c;
    make_call(s, &c);
    struct result host = new_result(&c, false), got = new_result(&c, false);
    struct result dev = new_result(&c, true);
    size_t l = (size_t)(c.rows * c.longest) * 4, k = (size_t)(c.rows * s->topk) * 4;
    run_call(cpu, c.host, &host, c.longest, true, 0, NULL);
    CUDA(cudaMemset(dev.logits, 0x77, l));
    run_call(cuda, c.device, &dev, c.longest, true, 0, NULL);
    download(got.logits, dev.logits, l);
    download(got.indices, dev.indices, k);
    download(got.scores, dev.scores, k);
    download(got.lens, dev.lens, (size_t)c.rows * 4);
    check_scores(s, &c, host.logits, got.logits);
    check_lists(s, c.rows, c.longest, got.logits, got.indices, got.scores, got.lens);
    compare("lens", s->name, host.lens, got.lens, (size_t)c.rows * 4);
    if (s->exact) { /* no sum rounds: both must agree in every bit */
        compare("exact indices", s->name, host.indices, got.indices, k);
        int64_t bad = 0;
        for (int64_t i = 0; i < c.rows * s->topk; i++)
            bad += host.scores[i] != got.scores[i];
        report("exact scores", s->name, bad, c.rows * s->topk);
    }
    /* Less memory, no scores wanted, and once more: the same lists. By index: the same sets. */
    struct result again = new_result(&c, false);
    size_t least = 0, bytes;
    mla_index_args a = c.device;
    a.workspace_limit_bytes = 1;
    if (mla_index_workspace_bytes(cuda, &a, &bytes) == MLA_ERR_ARGUMENT) {
        const char *text = strstr(mla_last_error(), "at least ");
        least = text ? strtoull(text + 9, NULL, 10) : 0;
    }
    report("refusal", s->name, least == 0, 1);
    const size_t limits[] = {0, least, 7 * least};
    for (int i = 0; i < 3; i++) {
        CUDA(cudaMemset(dev.indices, 0x77, k));
        CUDA(cudaMemset(dev.scores, 0x77, k));
        run_call(cuda, c.device, &dev, c.longest, false, limits[i], NULL);
        download(again.indices, dev.indices, k);
        download(again.scores, dev.scores, k);
        compare("repeated indices", s->name, got.indices, again.indices, k);
        compare("repeated scores", s->name, got.scores, again.scores, k);
    }
    mla_index_args by_index = c.device;
    by_index.order = MLA_TOPK_ASCENDING;
    run_call(cuda, by_index, &dev, c.longest, false, 0, NULL);
    download(again.indices, dev.indices, k);
    int64_t bad = 0;
    for (int64_t t = 0; t < c.rows; t++) {
        uint64_t sum = 0, want = 0;
        for (int64_t i = 0; i < s->topk; i++) {
            int32_t x = again.indices[t * s->topk + i], y = got.indices[t * s->topk + i];
            bad += i > 0 && x >= 0 && x <= again.indices[t * s->topk + i - 1];
            sum += (uint64_t)(x + 1) * 0x9E3779B97F4A7C15ull % 1000003;
            want += (uint64_t)(y + 1) * 0x9E3779B97F4A7C15ull % 1000003;
        }
        bad += sum != want;
    }
    report("ascending", s->name, bad, c.rows);
    struct result *all[] = {&host, &got, &again};
    for (int i = 0; i < 3; i++)
        free(all[i]->logits), free(all[i]->scores), free(all[i]->indices), free(all[i]->lens);
    CUDA(cudaFree(dev.logits));
    CUDA(cudaFree(dev.scores));
    CUDA(cudaFree(dev.indices));
    CUDA(cudaFree(dev.lens));
    free_call(&c);
}

#define F8 MLA_INDEX_FP8
#define B16 MLA_INDEX_BF16
#define SHAPE(label, hi, d, q_kind, k_kind, ...)                                                   \
    {                                                                                              \
        .name = label, .heads = hi, .dim = d, .q = q_kind, .k = k_kind, __VA_ARGS__                \
    }
static const struct shape shapes[] = {
    SHAPE("v3.2", 64, 128, F8, F8, .query_len = {21}, .seq_len = {3000}, .topk = 256),
    SHAPE("v3.2 exact", 64, 128, F8, F8, .query_len = {19}, .seq_len = {9000}, .topk = 2048,
          .causal = true, .exact = true),
    SHAPE("decode paged", 64, 128, F8, F8, .batch = 3, .query_len = {1, 1, 1},
          .seq_len = {9000, 10, 4097}, .page_size = 64, .topk = 2048, .causal = true,
          .exact = true),
    SHAPE("decode holes", 64, 128, F8, F8, .batch = 4, .query_len = {2, 0, 1, 3},
          .seq_len = {7000, 50, 0, 2500}, .page_size = 48, .topk = 300, .causal = true,
          .holes = true, .nan = true),
    SHAPE("mixed paged odd", 32, 128, F8, F8, .batch = 3, .query_len = {1, 30, 5},
          .seq_len = {1000, 1500, 77}, .page_size = 7, .topk = 100, .causal = true, .holes = true,
          .pad = 3),
    SHAPE("ranges", 16, 128, F8, F8, .query_len = {50}, .seq_len = {1300}, .topk = 40,
          .ranges = true, .exact = true),
    SHAPE("bf16", 64, 128, B16, B16, .query_len = {10}, .seq_len = {2000}, .topk = 64),
    SHAPE("bf16 exact 1", 1, 64, B16, B16, .batch = 2, .query_len = {9, 8}, .seq_len = {900, 800},
          .topk = 500, .exact = true),
    SHAPE("bf16 q, fp8 k", 64, 96, B16, F8, .query_len = {9}, .seq_len = {1000}, .topk = 64,
          .exact = true),
    SHAPE("fp8 q, bf16 k", 20, 128, F8, B16, .query_len = {9}, .seq_len = {1000}, .topk = 64,
          .exact = true),
    SHAPE("heads 130", 130, 128, F8, F8, .query_len = {6}, .seq_len = {700}, .topk = 64,
          .exact = true),
    SHAPE("heads 65 odd dim", 65, 37, B16, B16, .query_len = {6}, .seq_len = {700}, .topk = 64,
          .exact = true, .pad = 1),
    SHAPE("dim 16", 3, 16, F8, F8, .query_len = {3}, .seq_len = {129}, .topk = 200, .exact = true,
          .nan = true),
    SHAPE("wide list", 8, 128, F8, F8, .query_len = {3}, .seq_len = {30000}, .topk = 10000),
};

/* A captured call, replayed after its inputs have changed; and its twin on a second stream. */
static void check_graph(void)
{
    struct call c;
    make_call(&shapes[1], &c);
    struct result r[2] = {new_result(&c, true), new_result(&c, true)};
    mla_index_args a[2] = {c.device, c.device};
    size_t bytes, k = (size_t)(c.rows * c.host.topk) * 4;
    void *workspace[2];
    cudaStream_t stream[2];
    for (int i = 0; i < 2; i++) {
        a[i].indices.data = r[i].indices;
        a[i].scores.data = r[i].scores;
        a[i].topk_lens = r[i].lens;
        OK(mla_index_workspace_bytes(cuda, &a[i], &bytes));
        workspace[i] = device(bytes);
        CUDA(cudaStreamCreateWithFlags(&stream[i], cudaStreamNonBlocking));
    }
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    CUDA(cudaStreamBeginCapture(stream[0], cudaStreamCaptureModeGlobal));
    OK(mla_index_run(cuda, &a[0], workspace[0], bytes, stream[0]));
    CUDA(cudaStreamEndCapture(stream[0], &graph));
    CUDA(cudaGraphInstantiate(&exec, graph, 0));
    int32_t *x = allocate(k), *y = allocate(k);
    for (int round = 0; round < 2; round++) {
        size_t q_bytes = (size_t)(c.rows * c.host.heads * c.host.dim);
        fill_elements(MLA_INDEX_FP8, c.memory[0], (int64_t)q_bytes, true, false);
        CUDA(cudaMemcpy(c.d_memory[0], c.memory[0], q_bytes, cudaMemcpyHostToDevice));
        for (int i = 0; i < 2; i++)
            CUDA(cudaMemset(r[i].indices, 0x77, k));
        CUDA(cudaDeviceSynchronize());
        CUDA(cudaGraphLaunch(exec, stream[0]));
        OK(mla_index_run(cuda, &a[1], workspace[1], bytes, stream[1]));
        CUDA(cudaDeviceSynchronize());
        download(x, r[0].indices, k);
        download(y, r[1].indices, k);
        compare("graph and second stream", "v3.2 exact", x, y, k);
        mla_index_args h = c.host;
        struct result host = new_result(&c, false);
        run_call(cpu, h, &host, c.longest, false, 0, NULL);
        compare("graph and cpu", "v3.2 exact", x, host.indices, k);
        free(host.logits), free(host.scores), free(host.indices), free(host.lens);
    }
    CUDA(cudaGraphExecDestroy(exec));
    CUDA(cudaGraphDestroy(graph));
    free(x), free(y);
    for (int i = 0; i < 2; i++) {
        CUDA(cudaStreamDestroy(stream[i]));
        CUDA(cudaFree(workspace[i]));
        CUDA(cudaFree(r[i].logits));
        CUDA(cudaFree(r[i].scores));
        CUDA(cudaFree(r[i].indices));
        CUDA(cudaFree(r[i].lens));
    }
    free_call(&c);
}

/* What the device does not take is refused with the field's name. */
static void check_refusals(void)
{
    struct call c;
    make_call(&shapes[0], &c);
    size_t bytes;
    mla_index_args a = c.device;
    a.k_format = MLA_INDEX_F32;
    report("refusal", "f32",
           mla_index_workspace_bytes(cuda, &a, &bytes) != MLA_ERR_UNSUPPORTED ||
               !strstr(mla_last_error(), "k_format: got f32"),
           1);
    a = c.device;
    a.precision = MLA_PRECISION_FP64;
    report("refusal", "fp64", mla_index_workspace_bytes(cuda, &a, &bytes) != MLA_ERR_UNSUPPORTED,
           1);
    a = c.device;
    a.dim = 256;
    report("refusal", "dim", mla_index_workspace_bytes(cuda, &a, &bytes) != MLA_ERR_UNSUPPORTED, 1);
    free_call(&c);
}

/* -------------------------------------------------------------------- times */

static int compare_floats(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return x < y ? -1 : x > y;
}

/* Median ms of `runs` calls between events, after one to warm up. */
static float median(void (*call)(void *), void *with, int runs)
{
    cudaEvent_t from, to;
    float ms[32];
    CUDA(cudaEventCreate(&from));
    CUDA(cudaEventCreate(&to));
    call(with);
    for (int i = 0; i < runs; i++) {
        CUDA(cudaEventRecord(from, NULL));
        call(with);
        CUDA(cudaEventRecord(to, NULL));
        CUDA(cudaEventSynchronize(to));
        CUDA(cudaEventElapsedTime(&ms[i], from, to));
    }
    qsort(ms, (size_t)runs, sizeof *ms, compare_floats);
    return ms[runs / 2];
}

struct timed {
    mla_index_args index;
    mla_topk_args topk;
    void *workspace;
    size_t bytes;
};

static void call_index(void *with)
{
    struct timed *t = with;
    OK(mla_index_run(cuda, &t->index, t->workspace, t->bytes, NULL));
}

static void call_topk(void *with)
{
    struct timed *t = with;
    OK(mla_topk_run(cuda, &t->topk, t->workspace, t->bytes, NULL));
}

struct timed_write {
    mla_cache cache;
    mla_cache_values values;
    int64_t *slots, n;
};

static void call_write(void *with)
{
    struct timed_write *t = with;
    OK(mla_cache_write(cuda, &t->cache, &t->values, t->slots, t->n, MLA_SCALE_DEFAULT, NULL));
}

static void call_read(void *with)
{
    struct timed_write *t = with;
    OK(mla_cache_read(cuda, &t->cache, t->slots, t->n, &t->values, NULL));
}

static void bench_codec(void)
{
    printf("fp8_ds_mla from bf16: n, write ms, GB/s, read ms, GB/s\n");
    for (int64_t n = 128; n <= 65536; n *= 8) {
        struct timed_write t = {.n = n};
        t.cache = (mla_cache){MLA_CACHE_FP8_DS_MLA, 512, 64, 64, n / 64 + 1, 0, {0}, {0}, {0}};
        t.cache.kv_cache.data = device((size_t)(n + 64) * 656);
        char *values = device((size_t)n * 1152);
        t.values = (mla_cache_values){MLA_BF16, {values, {576, 0}}, {values + 1024, {576, 0}}};
        int64_t *slots = allocate((size_t)n * 8);
        for (int64_t i = 0; i < n; i++)
            slots[i] = n - 1 - i;
        uint16_t *h = allocate((size_t)n * 1152);
        for (int64_t i = 0; i < n * 576; i++)
            h[i] = mla_f32_to_bf16((float)(int32_t)next32() * 1e-9f);
        CUDA(cudaMemcpy(values, h, (size_t)n * 1152, cudaMemcpyHostToDevice));
        t.slots = upload(slots, (size_t)n * 8);
        float w = median(call_write, &t, 9), r = median(call_read, &t, 9);
        double bytes = (double)n * (1152 + 656);
        printf("%7lld %9.4f %8.0f %9.4f %8.0f\n", (long long)n, (double)w, bytes / w * 1e-6,
               (double)r, bytes / r * 1e-6);
        CUDA(cudaFree(t.cache.kv_cache.data));
        CUDA(cudaFree(values));
        CUDA(cudaFree(t.slots));
        free(slots), free(h);
    }
}

static void bench(void)
{
    const int64_t rows = 4096, heads = 64, dim = 128, topk = 2048, most = 131072;
    bench_codec();
    printf("indexer, %lld queries, 64 heads, D 128, fp8, k 2048, by index; ms\n", (long long)rows);
    printf("  keys    fused  scores  mla_topk_run  fused causal  TFLOP/s fused  workspace MB\n");
    uint8_t *q = allocate((size_t)(rows * heads * dim)), *k = allocate((size_t)(most * dim));
    float *w = allocate((size_t)(rows * heads) * 4), *scale = allocate((size_t)most * 4);
    for (int64_t i = 0; i < rows * heads * dim; i++)
        q[i] = mla_f32_to_e4m3((float)(int32_t)(next32() & next32()) * 4e-9f);
    for (int64_t i = 0; i < most * dim; i++)
        k[i] = mla_f32_to_e4m3((float)(int32_t)(next32() ^ next32() >> 3) * 4e-9f);
    for (int64_t i = 0; i < rows * heads; i++)
        w[i] = (float)uniform();
    for (int64_t i = 0; i < most; i++)
        scale[i] = (float)(1 + uniform());
    struct timed t = {0};
    t.index = (mla_index_args){.num_queries = rows, .heads = heads, .dim = dim};
    t.index.q_format = t.index.k_format = MLA_INDEX_FP8;
    t.index.order = MLA_TOPK_ASCENDING;
    t.index.q.data = upload(q, (size_t)(rows * heads * dim));
    t.index.k.data = upload(k, (size_t)(most * dim));
    t.index.k_scale = upload(scale, (size_t)most * 4);
    t.index.weights.data = upload(w, (size_t)(rows * heads) * 4);
    t.index.indices.data = device((size_t)(rows * topk) * 4);
    t.index.logits.data = device((size_t)(rows * most) * 4);
    for (int64_t n = 8192; n <= most; n *= 2) {
        int runs = n > 32768 ? 3 : 7;
        mla_index_args fused = t.index;
        t.index.num_keys = n;
        t.index.topk = topk;
        t.index.logits_columns = 0;
        OK(mla_index_workspace_bytes(cuda, &t.index, &t.bytes));
        size_t bytes = t.bytes;
        t.workspace = device(t.bytes);
        float ms = median(call_index, &t, runs);
        t.index.causal = true;
        float causal = median(call_index, &t, runs);
        t.index.causal = false;
        CUDA(cudaFree(t.workspace));
        t.index.topk = 0;
        t.index.logits_columns = n;
        OK(mla_index_workspace_bytes(cuda, &t.index, &t.bytes));
        t.workspace = device(t.bytes);
        float logits = median(call_index, &t, runs);
        CUDA(cudaFree(t.workspace));
        t.topk = (mla_topk_args){.rows = rows, .columns = n, .topk = topk};
        t.topk.order = MLA_TOPK_ASCENDING;
        t.topk.in.data = t.index.logits.data;
        t.topk.indices.data = t.index.indices.data;
        OK(mla_topk_workspace_bytes(cuda, &t.topk, &t.bytes));
        t.workspace = device(t.bytes);
        float select = median(call_topk, &t, runs);
        CUDA(cudaFree(t.workspace));
        printf("%6lld %8.3f %7.3f %13.3f %13.3f %14.0f %13.1f\n", (long long)n, (double)ms,
               (double)logits, (double)select, (double)causal,
               2.0 * (double)(rows * n * heads * dim) / ms * 1e-9, (double)bytes * 1e-6);
        fflush(stdout);
        t.index = fused;
    }
}

int main(int argc, char **argv)
{
    mla_context_options options = {MLA_BACKEND_CUDA, 0, 0};
    if (mla_context_create(&options, &cuda) != MLA_OK) {
        printf("skipped: %s\n", mla_last_error());
        return 77;
    }
    OK(mla_context_create(NULL, &cpu));
    const char *only = argc > 1 ? argv[1] : "";
    if (strcmp(only, "bench") == 0) {
        bench();
        return 0;
    }
    if (!*only || strcmp(only, "codec") == 0)
        check_codecs();
    printf("codecs: %d checks, %d failed\n", checks, failures);
    if (!*only || strcmp(only, "topk") == 0)
        check_topks();
    printf("and top-k: %d checks, %d failed\n", checks, failures);
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        if (!*only || strcmp(only, "index") == 0 || strcmp(only, shapes[i].name) == 0)
            check_shape(&shapes[i]);
    if (!*only || strcmp(only, "graph") == 0)
        check_graph();
    check_refusals();
    printf("and indexer: %d checks, %d failed; largest share of the score bound %.3f\n", checks,
           failures, worst_share);
    mla_context_destroy(cpu);
    mla_context_destroy(cuda);
    return failures > 0;
}
#endif
