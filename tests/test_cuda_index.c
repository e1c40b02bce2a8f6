/* SPDX-License-Identifier: Apache-2.0 */
// labels: cuda
// timeout: 300
/* mla/cache.h and mla/index.h on a CUDA device beside the CPU: records, read-back, top-k lists and
 * lists of the indexer bit for bit, indexer scores within the bound of docs/index.md. Exit 77 =
 * skipped, with the reason. Words: a part (codec, topk, index, graph, or a shape of the indexer),
 * one of its kernels ("" = all), i/n for every n-th check from i on, i/n/d with d times fewer keys
 * for the indexer. With the word "bench", times of mla_index_run (of the kernel that MLA_KERNEL
 * names), its scores alone and mla_topk_run. */
#include <stdio.h>

#ifndef MLA_WITH_CUDA
int main(void)
{
    printf("skipped: this build has no CUDA backend\n");
    return 77;
}
#else

#include "mla/cache.h"

#include "device_index.h"

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
        fill(d_back, 0x33, v_bytes);
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
    release(d_cache);
    release(d_values);
    release(d_slots);
    release(d_back);
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
        fill(d_keys, 0x33, k_bytes);
        OK(mla_cache_index_read(cpu, &c, slots, n, to, &k, NULL));
        OK(mla_cache_index_read(cuda, &dc, d_slots, n, to, &dk, NULL));
        download(got_keys, d_keys, k_bytes);
        compare_values(name, to, keys, got_keys, n * (128 + pad));
    }
    release(d_cache);
    release(d_keys);
    release(d_slots);
    free(keys), free(host), free(got), free(slots), free(spoilt), free(got_keys);
}

/* Every n-th check, from i on. */
static int piece, pieces = 1, shrink = 1;
static bool in_piece(size_t i)
{
    return i % (size_t)pieces == (size_t)piece;
}

static void check_codecs(void)
{
    static const int64_t counts[] = {1, 37, 2500};
    if (in_piece(0)) {
        check_cache(MLA_CACHE_FP8_DS_MLA, MLA_BF16, 64, 512, 64, 9000, 0, MLA_SCALE_DEFAULT);
        check_index_cache(MLA_INDEX_FP8, MLA_BF16, 64, 9000, 0, MLA_SCALE_DEFAULT);
    }
    for (mla_dtype dtype = MLA_BF16; dtype <= MLA_F32; dtype++) {
        for (int i = 0; i < 3; i++) {
            int64_t n = counts[i];
            for (int pad = 0; pad < 2 && in_piece((size_t)(dtype + i)); pad++) {
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

static void check_topks(void)
{
    static const struct {
        int64_t rows, columns, topk;
    } sizes[] = {{3, 0, 2},        {5, 1, 1},       {4, 7, 16},     {9, 100, 100},
                 {70, 1000, 1},    {8, 5000, 64},   {3, 4099, 512}, {5, 40000, 2048},
                 {2, 30000, 5000}, {1, 70001, 2048}};
    for (enum scores kind = RANDOM; kind < KINDS; kind++) {
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
            for (int v = 0; v < 4 && in_piece(i + (size_t)kind); v++)
                check_topk(kind, sizes[i].rows, sizes[i].columns, sizes[i].topk,
                           v & 1 ? MLA_TOPK_ASCENDING : MLA_TOPK_BY_SCORE, (int)((i + v) % 3),
                           v == 2 ? 5 : 0, v == 3);
        }
    }
}

static const struct shape shapes[] = {
    SHAPE("v3.2", 64, 128, F8, F8, .query_len = {21}, .seq_len = {3000}, .topk = 256),
    SHAPE("v3.2 exact", 64, 128, F8, F8, .query_len = {19}, .seq_len = {9000}, .topk = 2048,
          .causal = true, .exact = true),
    SHAPE("tiles paged", 64, 128, F8, F8, .batch = 3, .query_len = {16, 9, 8},
          .seq_len = {5000, 130, 8000}, .page_size = 64, .topk = 700, .causal = true, .holes = true,
          .nan = true),
    SHAPE("tiles 32 heads", 32, 128, F8, F8, .query_len = {35}, .seq_len = {9000}, .topk = 1000,
          .ranges = true),
    SHAPE("tiles ties", 40, 96, F8, F8, .query_len = {9}, .seq_len = {12000}, .topk = 2048,
          .exact = true),
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

/* For sanitizers, which slow kernels a hundredfold: fewer keys and shorter lists alike. */
static struct shape shrunk(const struct shape *shape)
{
    struct shape s = *shape;
    for (int b = 0; b < 4 && shrink > 1; b++)
        if (s.seq_len[b] / shrink > s.query_len[b])
            s.seq_len[b] /= shrink;
    if (s.topk > shrink)
        s.topk /= shrink;
    return s;
}

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
            fill(r[i].indices, 0x77, k);
        synchronize();
        CUDA(cudaGraphLaunch(exec, stream[0]));
        OK(mla_index_run(cuda, &a[1], workspace[1], bytes, stream[1]));
        synchronize();
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
        release(workspace[i]);
        release(r[i].logits);
        release(r[i].scores);
        release(r[i].indices);
        release(r[i].lens);
    }
    free_call(&c);
}

/* Does the named kernel take the shape here? */
static bool takes(const struct shape *s)
{
    struct call c;
    size_t bytes;
    make_call(s, &c);
    mla_status status = mla_index_workspace_bytes(cuda, &c.device, &bytes);
    free_call(&c);
    /* A kernel that the build does not have is an argument that is wrong. */
    return status != MLA_ERR_UNSUPPORTED && !(index_kernel && status == MLA_ERR_ARGUMENT);
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
    a = c.device;
    a.kernel = "index_logits";
    report("refusal", "kernel",
           mla_index_workspace_bytes(cuda, &a, &bytes) != MLA_ERR_ARGUMENT ||
               !strstr(mla_last_error(), "kernel: got index_logits, want "),
           1);
    a.kernel = "index_logits_any";
    report("named", "kernel", mla_index_workspace_bytes(cuda, &a, &bytes) != MLA_OK, 1);
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
        release(t.cache.kv_cache.data);
        release(values);
        release(t.slots);
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
        release(t.workspace);
        t.index.topk = 0;
        t.index.logits_columns = n;
        OK(mla_index_workspace_bytes(cuda, &t.index, &t.bytes));
        t.workspace = device(t.bytes);
        float logits = median(call_index, &t, runs);
        release(t.workspace);
        t.topk = (mla_topk_args){.rows = rows, .columns = n, .topk = topk};
        t.topk.order = MLA_TOPK_ASCENDING;
        t.topk.in.data = t.index.logits.data;
        t.topk.indices.data = t.index.indices.data;
        OK(mla_topk_workspace_bytes(cuda, &t.topk, &t.bytes));
        t.workspace = device(t.bytes);
        float select = median(call_topk, &t, runs);
        release(t.workspace);
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
    const char *only = argc > 1 ? argv[1] : "", *kernel = argc > 2 ? argv[2] : "";
    if (argc > 3)
        sscanf(argv[3], "%d/%d/%d", &piece, &pieces, &shrink);
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
    /* The device's own choice, then the kernels of its architecture, which a name alone may choose
     * before the device is qualified. */
    static const char *const kernels[] = {NULL, "index_logits_any", "index_logits_sm90",
                                          "index_logits_sm100"};
    for (size_t k = 0; k < sizeof kernels / sizeof *kernels; k++) {
        index_kernel = kernels[k];
        if (*kernel && (!index_kernel || strcmp(index_kernel, kernel) != 0))
            continue;
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
            if ((!*only || strcmp(only, "index") == 0 || strcmp(only, shapes[i].name) == 0) &&
                in_piece(i) && takes(&shapes[i])) {
                struct shape s = shrunk(&shapes[i]);
                check_shape(&s);
            }
        printf("and indexer (%s): %d checks, %d failed; largest share of the score bound %.3f\n",
               index_kernel ? index_kernel : "chosen", checks, failures, worst_share);
        worst_share = 0;
    }
    index_kernel = NULL;
    if (!*only || strcmp(only, "graph") == 0)
        check_graph();
    check_refusals();
    printf("in all: %d checks, %d failed\n", checks, failures);
    mla_context_destroy(cpu);
    mla_context_destroy(cuda);
    return failures > 0;
}
#endif
