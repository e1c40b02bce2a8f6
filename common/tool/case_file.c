/* SPDX-License-Identifier: Apache-2.0 */
/* Reader of problem files. Every rule about tensors, shapes, dtypes and metadata is checked here,
 * with the file's own names in the sentence; what a problem in memory must obey too is left to
 * mla_problem_check and mla_tensors_check, whose sentences are passed on under the file's name. */
#include "case_file.h"
#include "format.h"
#include "kernel.h"
#include "try.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum id {
    Q_NOPE,
    Q_PE,
    W_UK,
    W_UV,
    Q,
    K,
    V,
    KV_C,
    K_PE,
    KV_CACHE,
    PAGE_TABLE,
    CU_SEQLENS_Q,
    SEQ_LENS_KV,
    TOPK_INDICES,
    TOPK_LENS,
    MASK,
    ATTN_SINK,
    NUM_IDS
};

#define FLOATS (MLA_BIT(MLA_ST_BF16) | MLA_BIT(MLA_ST_F16) | MLA_BIT(MLA_ST_F32))
#define FLOATS_TEXT "BF16, F16 or F32"

static const struct {
    const char *name, *dtype_text;
    unsigned dtypes;
    int rank;
} known[NUM_IDS] = {
    [Q_NOPE] = {"q_nope", FLOATS_TEXT, FLOATS, 3},
    [Q_PE] = {"q_pe", FLOATS_TEXT, FLOATS, 3},
    [W_UK] = {"w_uk", FLOATS_TEXT, FLOATS, 3},
    [W_UV] = {"w_uv", FLOATS_TEXT, FLOATS, 3},
    [Q] = {"q", FLOATS_TEXT, FLOATS, 3},
    [K] = {"k", FLOATS_TEXT, FLOATS, 3},
    [V] = {"v", FLOATS_TEXT, FLOATS, 3},
    [KV_C] = {"kv_c", FLOATS_TEXT, FLOATS, 2},
    [K_PE] = {"k_pe", FLOATS_TEXT, FLOATS, 2},
    [KV_CACHE] = {"kv_cache", "BF16, F16, F32 or U8", FLOATS | MLA_BIT(MLA_ST_U8), 3},
    [PAGE_TABLE] = {"page_table", "I32", MLA_BIT(MLA_ST_I32), 2},
    [CU_SEQLENS_Q] = {"cu_seqlens_q", "I32", MLA_BIT(MLA_ST_I32), 1},
    [SEQ_LENS_KV] = {"seq_lens_kv", "I32", MLA_BIT(MLA_ST_I32), 1},
    [TOPK_INDICES] = {"topk_indices", "I32", MLA_BIT(MLA_ST_I32), 2},
    [TOPK_LENS] = {"topk_lens", "I32", MLA_BIT(MLA_ST_I32), 1},
    [MASK] = {"mask", "I32", MLA_BIT(MLA_ST_I32), 2},
    [ATTN_SINK] = {"attn_sink", "F32", MLA_BIT(MLA_ST_F32), 1},
};

enum key { SOFTMAX_SCALE, KV_LORA_RANK, CAUSAL, CACHE_FORMAT, LSE_BASE, FILL, SEED, NUM_KEYS };
static const char *const key_names[NUM_KEYS] = {
    "softmax_scale", "kv_lora_rank", "causal", "cache_format", "lse_base", "fill", "seed",
};

struct loader {
    struct mla_case *c;
    const char *label;
    bool copy; /* data must outlive the bytes we read from */
    const struct mla_st_tensor *t[NUM_IDS];
    const char *key[NUM_KEYS];
    struct mla_case_warnings warnings;
    int64_t total_q, sum_kv, max_kv; /* T, S, and the longest request */
};

/* "mla_case_load: FILE: FIELD: got …, want …". */
__attribute__((format(printf, 3, 4))) static mla_status
refuse(const struct loader *l, const char *field, const char *format, ...)
{
    char text[600];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    return mla_fail(MLA_ERR_ARGUMENT, "mla_case_load: %.300s: %s: %s", l->label, field, text);
}

static mla_status no_memory(const struct loader *l, const char *what)
{
    return mla_fail(MLA_ERR_MEMORY, "mla_case_load: %.300s: no memory for %s", l->label, what);
}

/* Passes on a sentence of the library under the file's name. */
static mla_status pass_on(const struct loader *l, mla_status status)
{
    if (status == MLA_OK)
        return MLA_OK;
    char text[700];
    snprintf(text, sizeof text, "%s", mla_last_error());
    return mla_fail(status, "mla_case_load: %.300s: %s", l->label, text);
}

/* ------------------------------------------------------- names and presence */

/* Sorts tensors and keys of the file into l->t and l->key. */
static mla_status take_names(struct loader *l, const struct mla_st_file *file)
{
    for (int64_t i = 0; i < file->num_tensors; i++) {
        const struct mla_st_tensor *t = &file->tensors[i];
        int id = 0;
        while (id < NUM_IDS && strcmp(known[id].name, t->name) != 0)
            id++;
        if (id == NUM_IDS) {
            mla_case_warn(&l->warnings, "tensor", t->name, "is unknown and ignored");
            continue;
        }
        l->t[id] = t;
        if (!(known[id].dtypes & MLA_BIT(t->dtype)))
            return refuse(l, t->name, "got dtype %s, want %s", mla_st_dtype_name(t->dtype),
                          known[id].dtype_text);
        char shape[200];
        mla_case_shape_text(shape, sizeof shape, t->rank, t->shape);
        if (t->rank != known[id].rank)
            return refuse(l, t->name, "got shape %s of rank %d, want rank %d", shape, t->rank,
                          known[id].rank);
        /* Empty tensors could claim any other dimension; 2^31 - 1 keeps products in 64 bits. */
        for (int d = 0; d < t->rank; d++)
            if (t->shape[d] > INT32_MAX && !(d == 0 && t->bytes > 0))
                return refuse(l, t->name, "got shape %s, want dimensions up to %d", shape,
                              INT32_MAX);
    }
    for (int64_t i = 0; i < file->num_metadata; i++) {
        int key = 0;
        while (key < NUM_KEYS && strcmp(key_names[key], file->keys[i]) != 0)
            key++;
        if (key == NUM_KEYS)
            mla_case_warn(&l->warnings, "metadata key", file->keys[i], "is unknown and ignored");
        else
            l->key[key] = file->values[i];
    }
    return MLA_OK;
}

static mla_status require(const struct loader *l, enum id id, const char *why)
{
    if (!l->t[id])
        return refuse(l, known[id].name, "got no such tensor, want one (%s)", why);
    return MLA_OK;
}

static mla_status forbid(const struct loader *l, enum id id, const char *why)
{
    if (l->t[id])
        return refuse(l, known[id].name, "got a tensor, want none (%s)", why);
    return MLA_OK;
}

/* k marks an expanded problem, otherwise q an absorbed one; the others' tensors must not be
 * there. */
static mla_status take_form(struct loader *l)
{
    static const struct {
        const char *why;
        unsigned required, forbidden;
    } forms[] = {
        [MLA_FORM_LATENT] = {"a latent problem, as there is neither q nor k",
                             MLA_BIT(Q_NOPE) | MLA_BIT(W_UK) | MLA_BIT(W_UV), MLA_BIT(V)},
        [MLA_FORM_ABSORBED] = {"an absorbed problem, as there is q and no k", MLA_BIT(Q),
                               MLA_BIT(Q_NOPE) | MLA_BIT(Q_PE) | MLA_BIT(W_UK) | MLA_BIT(W_UV) |
                                   MLA_BIT(V)},
        [MLA_FORM_EXPANDED] = {"an expanded problem, as there is k", MLA_BIT(Q) | MLA_BIT(V),
                               MLA_BIT(Q_NOPE) | MLA_BIT(Q_PE) | MLA_BIT(W_UK) | MLA_BIT(W_UV) |
                                   MLA_BIT(KV_C) | MLA_BIT(K_PE) | MLA_BIT(KV_CACHE) |
                                   MLA_BIT(PAGE_TABLE)},
    };
    mla_form form = l->t[K] ? MLA_FORM_EXPANDED : l->t[Q] ? MLA_FORM_ABSORBED : MLA_FORM_LATENT;
    l->c->problem.form = form;
    mla_status status = require(l, CU_SEQLENS_Q, "every problem");
    if (status == MLA_OK)
        status = require(l, SEQ_LENS_KV, "every problem");
    for (int id = 0; id < NUM_IDS && status == MLA_OK; id++)
        if (forms[form].required & MLA_BIT(id))
            status = require(l, (enum id)id, forms[form].why);
        else if (forms[form].forbidden & MLA_BIT(id))
            status = forbid(l, (enum id)id, forms[form].why);
    if (status != MLA_OK || form == MLA_FORM_EXPANDED)
        return status;
    if (!l->t[KV_CACHE] && !l->t[KV_C])
        return refuse(l, "kv_c", "got neither kv_c nor kv_cache, want one of them");
    if (l->t[KV_CACHE]) {
        status = forbid(l, KV_C, "kv_cache is there too");
        if (status == MLA_OK)
            status = forbid(l, K_PE, "kv_cache holds the rope part");
        if (status == MLA_OK)
            status = require(l, PAGE_TABLE, "kv_cache is there");
        return status;
    }
    return forbid(l, PAGE_TABLE, "the cache is flat, kv_c");
}

/* One dimension must be what the other tensors say. */
static mla_status want_dim(const struct loader *l, enum id id, int d, int64_t want,
                           const char *meaning)
{
    const struct mla_st_tensor *t = l->t[id];
    if (!t || t->shape[d] == want)
        return MLA_OK;
    char shape[200];
    return refuse(l, t->name, "got shape %s, want %" PRId64 " (%s) as dimension %d",
                  mla_case_shape_text(shape, sizeof shape, t->rank, t->shape), want, meaning, d);
}

static mla_status want_dtype(const struct loader *l, enum id id, enum id as)
{
    if (!l->t[id] || l->t[id]->dtype == l->t[as]->dtype)
        return MLA_OK;
    return refuse(l, known[id].name, "got dtype %s, want %s, the dtype of %s",
                  mla_st_dtype_name(l->t[id]->dtype), mla_st_dtype_name(l->t[as]->dtype),
                  known[as].name);
}

/* Data of a tensor for the case: in the file where its address suits the dtype, else a copy. Packed
 * records hold f32 and bf16 values, so bytes ask for 16 as well. */
static mla_status place(struct loader *l, enum id id, mla_tensor *out)
{
    const struct mla_st_tensor *t = l->t[id];
    if (!t)
        return MLA_OK;
    size_t grain = t->dtype == MLA_ST_U8 ? 16 : mla_st_dtype_bytes(t->dtype);
    out->data = (void *)(uintptr_t)t->data;
    if (!l->copy && (uintptr_t)t->data % grain == 0)
        return MLA_OK;
    out->data = mla_case_buffer(l->c, t->bytes, 1);
    if (!out->data)
        return no_memory(l, t->name);
    if (t->bytes > 0)
        memcpy(out->data, t->data, t->bytes);
    return MLA_OK;
}

/* --------------------------------------------------------------- the tables */

static mla_status take_lengths(struct loader *l)
{
    mla_problem *p = &l->c->problem;
    mla_tensor cu, lens;
    if (l->t[CU_SEQLENS_Q]->shape[0] < 1)
        return refuse(l, "cu_seqlens_q", "got no entries, want batch + 1");
    p->batch = l->t[CU_SEQLENS_Q]->shape[0] - 1;
    TRY(want_dim(l, SEQ_LENS_KV, 0, p->batch, "one less than entries in cu_seqlens_q"));
    TRY(place(l, CU_SEQLENS_Q, &cu));
    TRY(place(l, SEQ_LENS_KV, &lens));
    p->cu_seqlens_q = cu.data;
    p->seq_lens_kv = lens.data;
    if (p->cu_seqlens_q[0] != 0)
        return refuse(l, "cu_seqlens_q[0]", "got %d, want 0", (int)p->cu_seqlens_q[0]);
    for (int64_t b = 0; b < p->batch; b++) {
        char field[48];
        if (p->cu_seqlens_q[b + 1] < p->cu_seqlens_q[b]) {
            snprintf(field, sizeof field, "cu_seqlens_q[%" PRId64 "]", b + 1);
            return refuse(l, field, "got %d after %d, want entries that never fall",
                          (int)p->cu_seqlens_q[b + 1], (int)p->cu_seqlens_q[b]);
        }
        int64_t n = p->seq_lens_kv[b];
        if (n < 0) {
            snprintf(field, sizeof field, "seq_lens_kv[%" PRId64 "]", b);
            return refuse(l, field, "got %" PRId64 ", want at least 0", n);
        }
        l->sum_kv += n;
        l->max_kv = n > l->max_kv ? n : l->max_kv;
    }
    enum id rows = p->form == MLA_FORM_LATENT ? Q_NOPE : Q;
    l->total_q = l->t[rows]->shape[0];
    if (p->cu_seqlens_q[p->batch] != l->total_q)
        return refuse(l, "cu_seqlens_q",
                      "got %d as its last entry, want %" PRId64 ", the rows of %s",
                      (int)p->cu_seqlens_q[p->batch], l->total_q, known[rows].name);
    return MLA_OK;
}

/* ----------------------------------------------------------------- metadata */

/* Decimal digits only, up to limit. */
static bool read_count(const char *text, uint64_t limit, uint64_t *out)
{
    uint64_t value = 0;
    if (!*text)
        return false;
    for (; *text; text++) {
        if (*text < '0' || *text > '9' || __builtin_mul_overflow(value, 10u, &value) ||
            __builtin_add_overflow(value, (uint64_t)(*text - '0'), &value) || value > limit)
            return false;
    }
    *out = value;
    return true;
}

static mla_status refuse_key(const struct loader *l, enum key key, const char *want)
{
    char text[64];
    return refuse(l, key_names[key], "got '%s', want %s",
                  mla_st_printable(text, sizeof text, l->key[key]), want);
}

static mla_status take_metadata(struct loader *l)
{
    mla_problem *p = &l->c->problem;
    const char *text = l->key[SOFTMAX_SCALE];
    if (text) {
        char *end;
        p->softmax_scale = strtod(text, &end);
        /* strtod also skips blanks and knows names: a number here starts like one. */
        bool number = *text && strchr("+-.0123456789", *text) && *end == 0;
        if (!number || !isfinite(p->softmax_scale))
            return refuse_key(l, SOFTMAX_SCALE, "a finite number");
    } else if (p->form == MLA_FORM_ABSORBED) {
        return refuse(l, "softmax_scale",
                      "got no such metadata key, want a number (an absorbed "
                      "problem has no default)");
    }
    text = l->key[KV_LORA_RANK];
    uint64_t rank;
    if (text && !read_count(text, INT32_MAX, &rank))
        return refuse_key(l, KV_LORA_RANK, "a decimal number");
    p->kv_lora_rank = text ? (int64_t)rank : -1;
    text = l->key[CAUSAL] ? l->key[CAUSAL] : "true";
    p->causal = strcmp(text, "true") == 0;
    if (!p->causal && strcmp(text, "false") != 0)
        return refuse_key(l, CAUSAL, "'true' or 'false'");
    text = l->key[LSE_BASE] ? l->key[LSE_BASE] : "e";
    p->lse_base = strcmp(text, "2") == 0 ? MLA_LSE_2 : MLA_LSE_E;
    if (p->lse_base == MLA_LSE_E && strcmp(text, "e") != 0)
        return refuse_key(l, LSE_BASE, "'e' or '2'");
    if (l->key[CACHE_FORMAT] && mla_cache_format_parse(l->key[CACHE_FORMAT], &p->cache_format))
        return refuse_key(l, CACHE_FORMAT,
                          "bf16, f16, f32, fp8_ds_mla, model1, v41 or nvfp4_ds_mla");
    if (l->key[SEED] && !read_count(l->key[SEED], UINT64_MAX, &l->c->seed))
        return refuse_key(l, SEED, "a decimal number below 2^64");
    if (l->key[FILL] && strlen(l->key[FILL]) < sizeof l->c->fill)
        strcpy(l->c->fill, l->key[FILL]);
    else if (l->key[FILL])
        mla_case_warn(&l->warnings, "metadata fill", l->key[FILL], "is no kind and ignored");
    for (int key = KV_LORA_RANK; p->form == MLA_FORM_EXPANDED && key <= CACHE_FORMAT; key++)
        if (key != CAUSAL && l->key[key])
            mla_case_warn(&l->warnings, "metadata key", key_names[key],
                          "has no meaning in an expanded problem and is ignored");
    return MLA_OK;
}

/* ------------------------------------------------------------ query and keys */

static mla_status take_latent_query(struct loader *l)
{
    mla_problem *p = &l->c->problem;
    const int64_t *q = l->t[Q_NOPE]->shape, *w = l->t[W_UK]->shape;
    p->heads_q = q[1];
    p->qk_nope_dim = q[2];
    p->v_dim = l->t[W_UV]->shape[2];
    if (p->kv_lora_rank >= 0 && p->kv_lora_rank != w[2])
        return refuse(l, "kv_lora_rank",
                      "got %" PRId64 ", want %" PRId64 ", the last dimension of "
                      "w_uk",
                      p->kv_lora_rank, w[2]);
    p->kv_lora_rank = w[2];
    TRY(want_dim(l, W_UK, 0, p->heads_q, "heads of q_nope"));
    TRY(want_dim(l, W_UK, 1, p->qk_nope_dim, "qk_nope_dim of q_nope"));
    TRY(want_dim(l, W_UV, 0, p->heads_q, "heads of q_nope"));
    TRY(want_dim(l, W_UV, 1, p->kv_lora_rank, "kv_lora_rank of w_uk"));
    TRY(want_dtype(l, Q_PE, Q_NOPE));
    TRY(want_dtype(l, W_UK, Q_NOPE));
    TRY(want_dtype(l, W_UV, Q_NOPE));
    if (l->t[Q_PE]) {
        TRY(want_dim(l, Q_PE, 0, l->total_q, "rows of q_nope"));
        TRY(want_dim(l, Q_PE, 1, p->heads_q, "heads of q_nope"));
        p->qk_rope_dim = l->t[Q_PE]->shape[2];
        if (p->qk_rope_dim == 0)
            return refuse(l, "q_pe", "got qk_rope_dim 0, want no q_pe then");
    }
    TRY(place(l, Q_NOPE, &l->c->tensors.q_nope));
    TRY(place(l, Q_PE, &l->c->tensors.q_pe));
    TRY(place(l, W_UK, &l->c->tensors.w_uk));
    return place(l, W_UV, &l->c->tensors.w_uv);
}

static mla_status take_absorbed_query(struct loader *l)
{
    mla_problem *p = &l->c->problem;
    p->heads_q = l->t[Q]->shape[1];
    int64_t width = l->t[Q]->shape[2];
    if (l->t[KV_C]) {
        int64_t rank = l->t[KV_C]->shape[1];
        if (p->kv_lora_rank >= 0 && p->kv_lora_rank != rank)
            return refuse(l, "kv_lora_rank",
                          "got %" PRId64 ", want %" PRId64 ", the last dimension of kv_c",
                          p->kv_lora_rank, rank);
        p->kv_lora_rank = rank;
    } else if (p->kv_lora_rank < 0) {
        return refuse(l, "kv_lora_rank",
                      "got no such metadata key, want a number (an absorbed "
                      "problem with kv_cache has no default)");
    }
    p->qk_rope_dim = width - p->kv_lora_rank;
    if (p->qk_rope_dim < 0)
        return refuse(l, "q", "got last dimension %" PRId64 ", want at least kv_lora_rank %" PRId64,
                      width, p->kv_lora_rank);
    return place(l, Q, &l->c->tensors.q);
}

static mla_status take_expanded(struct loader *l)
{
    mla_problem *p = &l->c->problem;
    mla_dtype dtype;
    p->heads_q = l->t[Q]->shape[1];
    p->qk_nope_dim = l->t[Q]->shape[2];
    p->kv_lora_rank = 0;
    p->heads_kv = l->t[K]->shape[1];
    p->v_dim = l->t[V]->shape[2];
    if (p->heads_kv < 1 || p->heads_q % p->heads_kv != 0)
        return refuse(l, "k", "got %" PRId64 " heads, want a divisor of the %" PRId64 " heads of q",
                      p->heads_kv, p->heads_q);
    TRY(want_dim(l, K, 0, l->sum_kv, "sum of seq_lens_kv"));
    TRY(want_dim(l, K, 2, p->qk_nope_dim, "last dimension of q"));
    TRY(want_dim(l, V, 0, l->sum_kv, "sum of seq_lens_kv"));
    TRY(want_dim(l, V, 1, p->heads_kv, "heads of k"));
    TRY(want_dtype(l, V, K));
    mla_case_dtype_from_st(l->t[K]->dtype, &dtype);
    p->kv_dtype = dtype;
    TRY(place(l, Q, &l->c->tensors.q));
    TRY(place(l, K, &l->c->tensors.k));
    return place(l, V, &l->c->tensors.v);
}

/* The format that metadata names, or the dtype's own; U8 has none. */
static mla_status take_cache_format(struct loader *l, enum id id)
{
    mla_problem *p = &l->c->problem;
    bool bytes = l->t[id]->dtype == MLA_ST_U8;
    mla_dtype dtype = MLA_F64;
    if (!bytes)
        mla_case_dtype_from_st(l->t[id]->dtype, &dtype);
    if (!l->key[CACHE_FORMAT]) {
        if (bytes)
            return refuse(l, "cache_format",
                          "got no such metadata key, want fp8_ds_mla, model1, "
                          "v41 or nvfp4_ds_mla (kv_cache is U8)");
        p->cache_format = dtype == MLA_BF16  ? MLA_CACHE_BF16
                          : dtype == MLA_F16 ? MLA_CACHE_F16
                                             : MLA_CACHE_F32;
    } else if (bytes != mla_cache_is_packed(p->cache_format) ||
               (!bytes && mla_cache_dtype(p->cache_format) != dtype)) {
        return refuse(l, "cache_format",
                      "got '%s' with %s as dtype of %s, want a format of that "
                      "dtype",
                      mla_cache_format_name(p->cache_format), mla_st_dtype_name(l->t[id]->dtype),
                      known[id].name);
    }
    return MLA_OK;
}

static mla_status take_flat_cache(struct loader *l)
{
    mla_problem *p = &l->c->problem;
    TRY(take_cache_format(l, KV_C));
    TRY(want_dim(l, KV_C, 0, l->sum_kv, "sum of seq_lens_kv"));
    TRY(want_dim(l, KV_C, 1, p->kv_lora_rank, "kv_lora_rank"));
    if (p->qk_rope_dim == 0)
        TRY(forbid(l, K_PE, "qk_rope_dim is 0, by the query"));
    else
        TRY(require(l, K_PE, "qk_rope_dim is above 0, by the query"));
    TRY(want_dim(l, K_PE, 0, l->sum_kv, "sum of seq_lens_kv"));
    TRY(want_dim(l, K_PE, 1, p->qk_rope_dim, "qk_rope_dim, by the query"));
    TRY(want_dtype(l, K_PE, KV_C));
    TRY(place(l, KV_C, &l->c->tensors.kv_c));
    return place(l, K_PE, &l->c->tensors.k_pe);
}

static mla_status take_paged_cache(struct loader *l)
{
    mla_problem *p = &l->c->problem;
    const int64_t *cache = l->t[KV_CACHE]->shape;
    TRY(take_cache_format(l, KV_CACHE));
    p->num_pages = cache[0];
    p->page_size = cache[1];
    if (p->page_size < 1)
        return refuse(l, "kv_cache", "got page_size 0, want at least 1");
    if (mla_cache_is_packed(p->cache_format)) {
        int64_t bytes = (int64_t)mla_cache_row_bytes(p->cache_format, 512, 64);
        TRY(want_dim(l, KV_CACHE, 2, bytes, "bytes of a record of this cache_format"));
    } else {
        TRY(want_dim(l, KV_CACHE, 2, p->kv_lora_rank + p->qk_rope_dim,
                     "kv_lora_rank + qk_rope_dim"));
    }
    TRY(want_dim(l, PAGE_TABLE, 0, p->batch, "batch"));
    p->max_pages = l->t[PAGE_TABLE]->shape[1];
    for (int64_t b = 0; b < p->batch; b++)
        if (p->max_pages * p->page_size < p->seq_lens_kv[b])
            return refuse(l, "page_table",
                          "got %" PRId64 " pages of %" PRId64
                          " keys a request, want room for seq_lens_kv[%" PRId64 "] = %d",
                          p->max_pages, p->page_size, b, (int)p->seq_lens_kv[b]);
    TRY(place(l, KV_CACHE, &l->c->tensors.kv_cache));
    return place(l, PAGE_TABLE, &l->c->tensors.page_table);
}

/* Which keys a query sees, and sinks. */
static mla_status take_visibility(struct loader *l)
{
    mla_problem *p = &l->c->problem;
    mla_tensors *out = &l->c->tensors;
    mla_tensor lens = {0}, sink = {0};
    if (l->t[TOPK_INDICES]) {
        TRY(forbid(l, MASK, "topk_indices is there too"));
        TRY(want_dim(l, TOPK_INDICES, 0, l->total_q, "query tokens"));
        p->topk = l->t[TOPK_INDICES]->shape[1];
        if (p->topk < 1)
            return refuse(l, "topk_indices", "got 0 entries a row, want at least 1");
    } else {
        TRY(forbid(l, TOPK_LENS, "there is no topk_indices"));
    }
    TRY(want_dim(l, TOPK_LENS, 0, l->total_q, "query tokens"));
    TRY(want_dim(l, MASK, 0, l->total_q, "query tokens"));
    TRY(want_dim(l, MASK, 1, (l->max_kv + 31) / 32, "longest seq_lens_kv / 32, rounded up"));
    TRY(want_dim(l, ATTN_SINK, 0, p->heads_q, "heads of the query"));
    p->has_topk_lens = l->t[TOPK_LENS];
    p->has_mask = l->t[MASK];
    p->has_sink = l->t[ATTN_SINK];
    TRY(place(l, TOPK_INDICES, &out->topk_indices));
    TRY(place(l, TOPK_LENS, &lens));
    TRY(place(l, MASK, &out->mask));
    TRY(place(l, ATTN_SINK, &sink));
    out->topk_lens = lens.data;
    out->attn_sink = sink.data;
    return MLA_OK;
}

static mla_status load(struct loader *l, const struct mla_st_file *file)
{
    struct mla_case *c = l->c;
    mla_problem *p = &c->problem;
    TRY(pass_on(l, mla_problem_init(p)));
    p->qk_nope_dim = p->qk_rope_dim = p->v_dim = p->topk = 0;
    p->out_dtype = MLA_F32;
    TRY(take_names(l, file));
    TRY(take_form(l));
    TRY(take_metadata(l));
    TRY(take_lengths(l));
    mla_case_dtype_from_st(l->t[p->form == MLA_FORM_LATENT ? Q_NOPE : Q]->dtype, &p->q_dtype);
    if (p->form == MLA_FORM_EXPANDED) {
        TRY(take_expanded(l));
    } else {
        TRY(p->form == MLA_FORM_LATENT ? take_latent_query(l) : take_absorbed_query(l));
        TRY(l->t[KV_CACHE] ? take_paged_cache(l) : take_flat_cache(l));
    }
    TRY(take_visibility(l));
    if (!l->key[SOFTMAX_SCALE]) {
        double d_qk = (double)(p->qk_nope_dim + p->qk_rope_dim);
        p->softmax_scale = 1 / sqrt(d_qk > 0 ? d_qk : 1);
    }
    TRY(pass_on(l, mla_problem_check(p)));
    c->complete = mla_case_buffer(c, (size_t)p->batch, sizeof *c->complete);
    c->text = mla_case_buffer(c, 1, 1);
    if (!c->complete || !c->text)
        return no_memory(l, "the case");
    TRY(pass_on(l, mla_tensors_check(p, &c->tensors, c->complete)));
    mla_case_warn_end(&l->warnings);
    return MLA_OK;
}

static mla_status load_file(struct mla_st_file *file, const char *label, bool copy,
                            struct mla_case *out, void (*warn)(const char *line, void *user),
                            void *user)
{
    struct loader l = {.c = out, .label = label, .copy = copy, .warnings = {warn, user, label, 0}};
    mla_status status = load(&l, file);
    if (status == MLA_OK && !copy)
        status = mla_case_keep_file(out, file);
    mla_st_close(file);
    if (status != MLA_OK)
        mla_case_free(out);
    return status;
}

mla_status mla_case_load(const char *path, struct mla_case *out,
                         void (*warn)(const char *line, void *user), void *user)
{
    struct mla_st_file file;
    memset(out, 0, sizeof *out);
    mla_status status = mla_st_open(path, &file);
    return status == MLA_OK ? load_file(&file, path, false, out, warn, user) : status;
}

mla_status mla_case_load_bytes(const void *bytes, size_t size, const char *label,
                               struct mla_case *out, void (*warn)(const char *line, void *user),
                               void *user)
{
    struct mla_st_file file;
    memset(out, 0, sizeof *out);
    mla_status status = mla_st_parse(bytes, size, label, &file);
    return status == MLA_OK ? load_file(&file, label, true, out, warn, user) : status;
}
