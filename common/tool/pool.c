/* SPDX-License-Identifier: Apache-2.0 */
/* Shared inputs of timings. */
#include "pool.h"

#include "fill.h"
#include "timer.h"

#include "common/format.h"
#include "common/kernel.h"
#include "common/status.h"

#include <stdio.h>
#include <string.h>

enum slot_name {
    SLOT_Q_NOPE,
    SLOT_Q_PE,
    SLOT_W_UK,
    SLOT_W_UV,
    SLOT_Q,
    SLOT_K,
    SLOT_V,
    SLOT_KV_C,
    SLOT_K_PE,
    SLOT_KV_CACHE,
    SLOT_SINK,
    FROM_SEED, /* those above repeat the seed case */
    SLOT_PAGES = FROM_SEED,
    SLOT_LISTS,
    SLOT_INDEX_Q,
    SLOT_INDEX_K,
    SLOT_INDEX_WEIGHTS,
    SLOT_INDEX_SCALES,
    SLOTS
};

/* filled: bytes from the start that hold the seed again and again. */
struct slot {
    void *memory;
    size_t bytes, filled;
};

/* Lists by position: chunk c holds those of positions [c·CHUNK, (c + 1)·CHUNK). */
enum {
    CHUNK = 1024,
    CHUNKS = 1024,
    TABLES = 4,
    SEED_QUERIES = 256,
    SEED_KEYS = 4096,
    SEED_HEADS = 8
};

struct list_table {
    int64_t topk;
    enum fill_kind kind;
    void *chunk[CHUNKS];
};

struct mla_pool {
    const mla_context *context;
    struct slot slots[SLOTS];
    struct list_table tables[TABLES];
    int next_table;
    char seed_text[512]; /* problem string of seed; "" = none */
    struct mla_case seed;
    bool *complete;
};

mla_status mla_pool_new(const mla_context *context, struct mla_pool **out)
{
    *out = mla_alloc(1, sizeof **out);
    if (!*out)
        return mla_fail(MLA_ERR_MEMORY, "pool: no memory");
    (*out)->context = context;
    return MLA_OK;
}

static void free_table(const struct mla_pool *pool, struct list_table *t)
{
    for (int c = 0; c < CHUNKS; c++)
        mla_memory_free(pool->context, t->chunk[c]);
    memset(t, 0, sizeof *t);
}

void mla_pool_free(struct mla_pool *pool)
{
    if (!pool)
        return;
    for (int s = 0; s < SLOTS; s++)
        mla_memory_free(pool->context, pool->slots[s].memory);
    for (int t = 0; t < TABLES; t++)
        free_table(pool, &pool->tables[t]);
    mla_case_free(&pool->seed);
    mla_free(pool->complete);
    mla_free(pool);
}

bool mla_pool_takes(const struct mla_case_spec *spec)
{
    const mla_problem *p = &spec->problem;
    bool sink = strcmp(spec->fill, "sink") == 0;
    return p->causal && !p->has_mask && !p->has_topk_lens && !spec->holes && p->batch > 0 &&
           (sink || strcmp(spec->fill, "normal") == 0) && p->topk <= CHUNK * (CHUNKS / 2);
}

/* ------------------------------------------------------------------- values */

/* The case whose values repeat: the problem's dims and formats, few heads, queries and keys. */
static mla_status make_seed(struct mla_pool *pool, const struct mla_case_spec *spec)
{
    struct mla_case_spec s = *spec;
    mla_problem *p = &s.problem;
    char text[sizeof pool->seed_text];
    const int32_t rows[] = {0, SEED_QUERIES}, keys[] = {SEED_KEYS};
    p->storage = NULL;
    p->batch = 1;
    p->cu_seqlens_q = rows;
    p->seq_lens_kv = keys;
    p->heads_q = SEED_HEADS;
    p->heads_kv = p->form == MLA_FORM_EXPANDED ? SEED_HEADS : 1;
    p->topk = 0;
    p->indices_complete = false;
    if (p->page_size)
        p->num_pages = p->max_pages = (SEED_KEYS + p->page_size - 1) / p->page_size;
    s.shuffled_pages = false;
    snprintf(s.fill, sizeof s.fill, "normal");
    s.seed = 1;
    mla_case_spec_print(&s, text, sizeof text);
    if (strcmp(text, pool->seed_text) == 0)
        return MLA_OK;
    mla_case_free(&pool->seed);
    pool->seed_text[0] = '\0';
    for (int i = 0; i < FROM_SEED; i++)
        pool->slots[i].filled = 0;
    mla_status status = mla_case_make(&s, &pool->seed);
    if (status == MLA_OK)
        memcpy(pool->seed_text, text, sizeof text);
    return status;
}

static mla_status room(struct mla_pool *pool, enum slot_name which, size_t bytes, void **out)
{
    struct slot *s = &pool->slots[which];
    mla_status status = MLA_OK;
    if (bytes > s->bytes) {
        mla_memory_free(pool->context, s->memory);
        *s = (struct slot){0};
        status = mla_memory_new(pool->context, bytes, &s->memory);
        if (status == MLA_OK)
            s->bytes = bytes;
    }
    *out = s->memory;
    return status;
}

/* seed once, then copies of what is there: each doubles it. */
static mla_status repeat(struct mla_pool *pool, enum slot_name which, const void *seed,
                         size_t seed_bytes, size_t bytes, void **out)
{
    struct slot *s = &pool->slots[which];
    bytes = (bytes + seed_bytes - 1) / seed_bytes * seed_bytes;
    mla_status status = room(pool, which, bytes, out);
    if (status == MLA_OK && s->filled < seed_bytes) {
        status = mla_memory_write(pool->context, s->memory, seed, seed_bytes);
        s->filled = status == MLA_OK ? seed_bytes : 0;
    }
    while (status == MLA_OK && s->filled < bytes) {
        size_t more = bytes - s->filled < s->filled ? bytes - s->filled : s->filled;
        status = mla_memory_copy(pool->context, (char *)s->memory + s->filled, s->memory, more);
        s->filled += status == MLA_OK ? more : 0;
    }
    return status;
}

/* [rows, columns, width] elements of the seed's tensor, which holds seed_rows of seed_columns. */
static mla_status values(struct mla_pool *pool, enum slot_name which, const mla_tensor *seed,
                         int64_t seed_elements, int64_t elements, size_t item, mla_tensor *out)
{
    *out = (mla_tensor){0};
    if (elements <= 0 || !seed->data)
        return MLA_OK;
    return repeat(pool, which, seed->data, (size_t)seed_elements * item, (size_t)elements * item,
                  &out->data);
}

static mla_status page_table(struct mla_pool *pool, const struct mla_case_spec *spec,
                             mla_tensor *out)
{
    const mla_problem *p = &spec->problem;
    int32_t *ids = mla_alloc((size_t)(p->num_pages + p->batch * p->max_pages) + 1, sizeof *ids);
    int32_t *table = ids + p->num_pages;
    uint64_t key = mla_random_key(spec->seed, STREAM_PAGES);
    int64_t next = 0;
    if (!ids)
        return mla_fail(MLA_ERR_MEMORY, "pool: no memory for %lld pages", (long long)p->num_pages);
    for (int64_t i = 0; i < p->num_pages; i++)
        ids[i] = (int32_t)i;
    for (int64_t i = p->num_pages - 1; i > 0 && spec->shuffled_pages; i--) {
        int64_t other = mla_random_below(mla_random_word(key, (uint64_t)i), i + 1);
        int32_t t = ids[i];
        ids[i] = ids[other];
        ids[other] = t;
    }
    for (int64_t b = 0; b < p->batch; b++)
        for (int64_t i = 0; i < p->max_pages; i++)
            table[b * p->max_pages + i] =
                i * p->page_size < p->seq_lens_kv[b] && next < p->num_pages ? ids[next++] : -1;
    size_t bytes = (size_t)(p->batch * p->max_pages) * sizeof *table;
    mla_status status = room(pool, SLOT_PAGES, bytes + 1, &out->data);
    if (status == MLA_OK)
        status = mla_memory_write(pool->context, out->data, table, bytes);
    mla_free(ids);
    return status;
}

static mla_status make_cache(struct mla_pool *pool, const struct mla_case_spec *spec,
                             mla_tensors *out)
{
    const mla_problem *p = &spec->problem;
    const mla_tensors *s = &pool->seed.tensors;
    int64_t keys = 0, L = p->kv_lora_rank, dr = p->qk_rope_dim;
    int64_t row = (int64_t)mla_cache_row_bytes(p->cache_format, L, dr);
    for (int64_t b = 0; b < p->batch; b++)
        keys += p->seq_lens_kv[b];
    if (p->page_size) {
        int64_t page = p->page_size * row;
        mla_status status =
            values(pool, SLOT_KV_CACHE, &s->kv_cache, pool->seed.problem.num_pages * page,
                   p->num_pages * page, 1, &out->kv_cache);
        return status == MLA_OK ? page_table(pool, spec, &out->page_table) : status;
    }
    size_t item = mla_dtype_bytes(mla_cache_dtype(p->cache_format));
    mla_status status =
        values(pool, SLOT_KV_C, &s->kv_c, SEED_KEYS * L, keys * L, item, &out->kv_c);
    if (status == MLA_OK)
        status = values(pool, SLOT_K_PE, &s->k_pe, SEED_KEYS * dr, keys * dr, item, &out->k_pe);
    return status;
}

static mla_status make_values(struct mla_pool *pool, const struct mla_case_spec *spec,
                              mla_tensors *out)
{
    const mla_problem *p = &spec->problem;
    const mla_tensors *s = &pool->seed.tensors;
    const int64_t few = (int64_t)SEED_QUERIES * SEED_HEADS, rows = mla_total_q(p) * p->heads_q;
    int64_t L = p->kv_lora_rank, dn = p->qk_nope_dim, dr = p->qk_rope_dim, dv = p->v_dim, keys = 0;
    size_t q = mla_dtype_bytes(p->q_dtype), kv = mla_dtype_bytes(p->kv_dtype);
    mla_status status;
    for (int64_t b = 0; b < p->batch; b++)
        keys += p->seq_lens_kv[b] * p->heads_kv;
    if (p->form != MLA_FORM_LATENT) {
        int64_t d = mla_d_qk(p);
        status = values(pool, SLOT_Q, &s->q, few * d, rows * d, q, &out->q);
        if (status == MLA_OK && p->form == MLA_FORM_ABSORBED)
            return make_cache(pool, spec, out);
        if (status == MLA_OK)
            status = values(pool, SLOT_K, &s->k, (int64_t)SEED_KEYS * SEED_HEADS * d, keys * d, kv,
                            &out->k);
        if (status == MLA_OK)
            status = values(pool, SLOT_V, &s->v, (int64_t)SEED_KEYS * SEED_HEADS * dv, keys * dv,
                            kv, &out->v);
        return status;
    }
    status = values(pool, SLOT_Q_NOPE, &s->q_nope, few * dn, rows * dn, q, &out->q_nope);
    if (status == MLA_OK)
        status = values(pool, SLOT_Q_PE, &s->q_pe, few * dr, rows * dr, q, &out->q_pe);
    if (status == MLA_OK)
        status = values(pool, SLOT_W_UK, &s->w_uk, SEED_HEADS * dn * L, p->heads_q * dn * L, q,
                        &out->w_uk);
    if (status == MLA_OK)
        status = values(pool, SLOT_W_UV, &s->w_uv, SEED_HEADS * dv * L, p->heads_q * dv * L, q,
                        &out->w_uv);
    return status == MLA_OK ? make_cache(pool, spec, out) : status;
}

/* -------------------------------------------------------------------- lists */

static struct list_table *table_of(struct mla_pool *pool, int64_t topk, enum fill_kind kind)
{
    for (int i = 0; i < TABLES; i++)
        if (pool->tables[i].topk == topk && pool->tables[i].kind == kind)
            return &pool->tables[i];
    struct list_table *t = &pool->tables[pool->next_table];
    pool->next_table = (pool->next_table + 1) % TABLES;
    free_table(pool, t);
    t->topk = topk;
    t->kind = kind;
    return t;
}

/* The lists of a request of CHUNK queries that ends with position (c + 1)·CHUNK - 1. */
static mla_status make_chunk(struct mla_pool *pool, struct list_table *t, int64_t c)
{
    const int32_t rows[] = {0, CHUNK}, keys[] = {(int32_t)((c + 1) * CHUNK)};
    const int64_t kv_start[] = {0, keys[0]};
    static const int32_t row_request[CHUNK];
    struct mla_case k = {0};
    mla_problem p;
    mla_problem_init(&p);
    p.batch = 1;
    p.cu_seqlens_q = rows;
    p.seq_lens_kv = keys;
    p.topk = t->topk;
    struct fill f = {.problem = &p,
                     .kind = t->kind,
                     .kv_start = kv_start,
                     .row_request = row_request};
    for (int s = 0; s < STREAMS; s++)
        f.key[s] = mla_random_key(1, (uint64_t)s);
    f.key[STREAM_LIST] = mla_random_key((uint64_t)c + 2, STREAM_LIST);
    size_t bytes = (size_t)CHUNK * (size_t)t->topk * sizeof(int32_t);
    mla_status status = mla_fill_lists(&f, &k);
    if (status == MLA_OK)
        status = mla_memory_new(pool->context, bytes, &t->chunk[c]);
    if (status == MLA_OK)
        status = mla_memory_write(pool->context, t->chunk[c], k.tensors.topk_indices.data, bytes);
    mla_case_free(&k);
    return status;
}

/* Position whose list the first query row of request b takes. Decodes of one length would all take
 * the same: each goes some positions back, where rows still fill their lists. */
static int64_t first_position(const mla_problem *p, int64_t b)
{
    int64_t q = (int64_t)p->cu_seqlens_q[b + 1] - p->cu_seqlens_q[b];
    int64_t first = p->seq_lens_kv[b] - q, back = b * 7 % 64;
    return first - back >= p->topk ? first - back : first;
}

static mla_status make_lists(struct mla_pool *pool, const struct mla_case_spec *spec,
                             mla_tensor *out)
{
    const mla_problem *p = &spec->problem;
    size_t row = (size_t)p->topk * sizeof(int32_t);
    struct list_table *t =
        table_of(pool, p->topk, strcmp(spec->fill, "sink") == 0 ? FILL_SINK : FILL_NORMAL);
    mla_status status = room(pool, SLOT_LISTS, (size_t)mla_total_q(p) * row + 1, &out->data);
    for (int64_t b = 0; b < p->batch && status == MLA_OK; b++) {
        int64_t from = first_position(p, b), to = p->cu_seqlens_q[b], end = p->cu_seqlens_q[b + 1];
        while (to < end && status == MLA_OK) {
            int64_t c = from / CHUNK, n = (c + 1) * CHUNK - from;
            n = n < end - to ? n : end - to;
            if (c >= CHUNKS)
                return mla_fail(MLA_ERR_ARGUMENT,
                                "pool: got position %lld of a list, want less "
                                "than 1M",
                                (long long)from);
            if (!t->chunk[c])
                status = make_chunk(pool, t, c);
            if (status == MLA_OK)
                status = mla_memory_copy(pool->context, (char *)out->data + (size_t)to * row,
                                         (char *)t->chunk[c] + (size_t)(from % CHUNK) * row,
                                         (size_t)n * row);
            from += n;
            to += n;
        }
    }
    return status;
}

/* -------------------------------------------------------------------- cases */

mla_status mla_pool_make(struct mla_pool *pool, const struct mla_case_spec *spec,
                         struct mla_pool_case *out)
{
    const mla_problem *p = &spec->problem;
    *out = (struct mla_pool_case){.problem = *p};
    mla_status status = mla_problem_check(p);
    if (status == MLA_OK)
        status = make_seed(pool, spec);
    if (status == MLA_OK)
        status = make_values(pool, spec, &out->tensors);
    if (status == MLA_OK && p->has_sink) {
        void *sinks;
        status = repeat(pool, SLOT_SINK, pool->seed.tensors.attn_sink, SEED_HEADS * sizeof(float),
                        (size_t)p->heads_q * sizeof(float), &sinks);
        out->tensors.attn_sink = sinks;
    }
    if (status == MLA_OK && p->topk)
        status = make_lists(pool, spec, &out->tensors.topk_indices);
    if (status != MLA_OK)
        return status;
    bool *complete = mla_realloc(pool->complete, (size_t)p->batch, sizeof *complete);
    if (!complete)
        return mla_fail(MLA_ERR_MEMORY, "pool: no memory for %lld requests", (long long)p->batch);
    for (int64_t b = 0; b < p->batch; b++)
        complete[b] = p->topk > 0 && p->seq_lens_kv[b] <= p->topk;
    pool->complete = complete;
    out->complete = complete;
    return MLA_OK;
}

/* e4m3 bytes with a small exponent, none of them NaN; floats of about 1. */
static void fill_index(uint8_t *bytes, float *ones, float *weights, size_t count)
{
    uint64_t key = mla_random_key(1, STREAM_CODE);
    for (size_t i = 0; i < count; i++) {
        bytes[i] = (uint8_t)(mla_random_word(key, i) >> 32 & 0xBF);
        bytes[i] = (uint8_t)(bytes[i] | 0x20);
    }
    for (size_t i = 0; i < count / 4; i++) {
        ones[i] = 1;
        weights[i] = mla_random_normal(key, i);
    }
}

mla_status mla_pool_index(struct mla_pool *pool, const mla_problem *p, mla_index_args *out)
{
    enum { HEADS = 64, DIM = 128, SEED = 1 << 20 };
    int64_t rows = mla_total_q(p), keys = 0;
    for (int64_t b = 0; b < p->batch; b++)
        keys += p->seq_lens_kv[b];
    uint8_t *bytes = mla_alloc(SEED, 1);
    float *ones = mla_alloc(SEED / 4, sizeof *ones), *weights = mla_alloc(SEED / 4, sizeof *ones);
    *out = (mla_index_args){.num_queries = rows,
                            .heads = HEADS,
                            .dim = DIM,
                            .num_keys = keys,
                            .batch = p->batch,
                            .cu_seqlens_q = p->cu_seqlens_q,
                            .seq_lens_kv = p->seq_lens_kv,
                            .causal = p->causal,
                            .q_format = MLA_INDEX_FP8,
                            .k_format = MLA_INDEX_FP8,
                            .topk = p->topk,
                            .order = MLA_TOPK_ASCENDING};
    mla_status status = MLA_OK;
    if (!bytes || !ones || !weights)
        status = mla_fail(MLA_ERR_MEMORY, "pool: no memory for the indexer's inputs");
    else
        fill_index(bytes, ones, weights, SEED);
    void *scales = NULL;
    if (status == MLA_OK)
        status = repeat(pool, SLOT_INDEX_Q, bytes, SEED, (size_t)rows * HEADS * DIM, &out->q.data);
    if (status == MLA_OK)
        status = repeat(pool, SLOT_INDEX_K, bytes, SEED, (size_t)keys * DIM, &out->k.data);
    if (status == MLA_OK)
        status = repeat(pool, SLOT_INDEX_WEIGHTS, weights, SEED, (size_t)rows * HEADS * 4,
                        &out->weights.data);
    if (status == MLA_OK)
        status = repeat(pool, SLOT_INDEX_SCALES, ones, SEED, (size_t)keys * 4, &scales);
    out->k_scale = scales;
    mla_free(bytes);
    mla_free(ones);
    mla_free(weights);
    return status;
}
