/* SPDX-License-Identifier: Apache-2.0 */
/* Checks of mla/index.h on a device beside the CPU, for a GPU (test_cuda_index.c) and for the
 * functional model (test_model_index.c, which defines MLA_TEST_MODEL): top-k lists and lists of the
 * indexer bit for bit, scores within the bound of docs/index.md. Outputs are poisoned and compared
 * whole, so a byte too many is seen. Included once by each. */
#ifndef MLA_TESTS_DEVICE_INDEX_H
#define MLA_TESTS_DEVICE_INDEX_H

#include "mla/index.h"

#include "common/format.h"

#ifndef MLA_TEST_MODEL
#include <cuda_runtime_api.h>
#endif
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static mla_context *cpu, *cuda;
static int failures, checks;
static const char *index_kernel; /* of the device; NULL = its own choice */
static bool brief;               /* fewer repetitions: the model takes its time */

#define OK(call)                                                                                   \
    do {                                                                                           \
        if ((call) != MLA_OK) {                                                                    \
            printf("line %d: %s\n", __LINE__, mla_last_error());                                   \
            fflush(stdout);                                                                        \
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

#ifdef MLA_TEST_MODEL /* device memory is the host's, and a launch returns when it is done */
static void *device(size_t bytes)
{
    return allocate(bytes + 256);
}

static void copy_up(void *to, const void *from, size_t bytes)
{
    memcpy(to, from, bytes);
}

static void download(void *to, const void *from, size_t bytes)
{
    memcpy(to, from, bytes);
}

static void fill(void *p, int byte, size_t bytes)
{
    memset(p, byte, bytes);
}

static void release(void *p)
{
    free(p);
}

static void synchronize(void)
{
}
#else
#define CUDA(call)                                                                                 \
    do {                                                                                           \
        cudaError_t e_ = (call);                                                                   \
        if (e_ != cudaSuccess) {                                                                   \
            printf("line %d: %s: %s\n", __LINE__, #call, cudaGetErrorString(e_));                  \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

static void *device(size_t bytes)
{
    void *p;
    CUDA(cudaMalloc(&p, bytes + 256));
    return p;
}

static void copy_up(void *to, const void *from, size_t bytes)
{
    CUDA(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice));
}

static void download(void *to, const void *from, size_t bytes)
{
    CUDA(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost));
}

static void fill(void *p, int byte, size_t bytes)
{
    CUDA(cudaMemset(p, byte, bytes));
}

static void release(void *p)
{
    CUDA(cudaFree(p));
}

static void synchronize(void)
{
    CUDA(cudaDeviceSynchronize());
}
#endif

static void *upload(const void *from, size_t bytes)
{
    void *p = device(bytes);
    copy_up(p, from, bytes);
    return p;
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
    fill(d_workspace, 0xFF, bytes);
    OK(mla_topk_run(cuda, &a, d_workspace, bytes, NULL));
    download(indices[1], a.indices.data, out_bytes);
    download(scores[1], a.scores.data, out_bytes);
    download(lens[1], d_lens, (size_t)rows * 4);
    compare("top-k indices", name, indices[0], indices[1], out_bytes);
    compare("top-k scores", name, scores[0], scores[1], out_bytes);
    compare("top-k lens", name, lens[0], lens[1], (size_t)rows * 4);
    if (order == MLA_TOPK_ASCENDING) { /* other code makes lists alone */
        mla_topk_args lists = a;
        lists.scores.data = NULL;
        fill(a.indices.data, 0x77, out_bytes);
        OK(mla_topk_run(cuda, &lists, d_workspace, bytes, NULL));
        download(indices[1], a.indices.data, out_bytes);
        compare("top-k indices alone", name, indices[0], indices[1], out_bytes);
    }
    release(a.in.data);
    release(a.indices.data);
    release(a.scores.data);
    release(d_lens);
    release(d_start);
    release(d_end);
    release(d_workspace);
    for (int i = 0; i < 2; i++)
        free(indices[i]), free(scores[i]), free(lens[i]);
    free(in), free(start), free(end), free(workspace);
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
    d.kernel = index_kernel;
    c->host = a;
    c->device = d;
}

static void free_call(struct call *c)
{
    for (int i = 0; i < c->parts; i++) {
        free(c->memory[i]);
        release(c->d_memory[i]);
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
                     int64_t longest, bool logits, size_t limit, void *stream)
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
        fill(workspace, 0xFF, bytes);
    OK(mla_index_run(context, &a, workspace, bytes, stream));
    if (on_device) {
        synchronize();
        release(workspace);
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
#ifndef MLA_TEST_MODEL /* which sums in fp32 */
    char about[256];
    bool hopper = mla_context_describe(cuda, about, sizeof about) && strstr(about, " sm_90,");
    if (index_kernel)
        hopper = strcmp(index_kernel, "index_logits_sm90") == 0;
    if (hopper && s->q == MLA_INDEX_FP8 && s->k == MLA_INDEX_FP8)
        unit += ldexp(33.0 * (double)((s->dim + 31) / 32), -13);
#endif
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
    fill(dev.logits, 0x77, l);
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
            bad += host.scores[i] != got.scores[i] &&
                   !(host.scores[i] != host.scores[i] && got.scores[i] != got.scores[i]);
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
    for (int i = brief ? 1 : 0; i < (brief ? 2 : 3); i++) {
        fill(dev.indices, 0x77, k);
        fill(dev.scores, 0x77, k);
        run_call(cuda, c.device, &dev, c.longest, false, limits[i], NULL);
        download(again.indices, dev.indices, k);
        download(again.scores, dev.scores, k);
        compare("repeated indices", s->name, got.indices, again.indices, k);
        compare("repeated scores", s->name, got.scores, again.scores, k);
    }
    mla_index_args alone = c.device; /* scores without lists */
    alone.topk = 0;
    fill(dev.logits, 0x77, l);
    run_call(cuda, alone, &dev, c.longest, true, 0, NULL);
    download(again.logits, dev.logits, l);
    compare("scores alone", s->name, got.logits, again.logits, l);
    mla_index_args by_index = c.device;
    by_index.order = MLA_TOPK_ASCENDING;
    struct result lists = dev; /* alone, and in the least memory; with scores where there is time */
    lists.scores = NULL;
    for (int v = brief ? 1 : 0; v < 3; v++) {
        fill(dev.indices, 0x77, k);
        run_call(cuda, by_index, v ? &lists : &dev, c.longest, false, v == 2 ? least : 0, NULL);
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
    }
    struct result *all[] = {&host, &got, &again};
    for (int i = 0; i < 3; i++)
        free(all[i]->logits), free(all[i]->scores), free(all[i]->indices), free(all[i]->lens);
    release(dev.logits);
    release(dev.scores);
    release(dev.indices);
    release(dev.lens);
    free_call(&c);
}

#define F8 MLA_INDEX_FP8
#define B16 MLA_INDEX_BF16
#define SHAPE(label, hi, d, q_kind, k_kind, ...)                                                   \
    {                                                                                              \
        .name = label, .heads = hi, .dim = d, .q = q_kind, .k = k_kind, __VA_ARGS__                \
    }

#endif
