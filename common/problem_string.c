/* SPDX-License-Identifier: Apache-2.0 */
/* Problem strings: "attend form=absorbed b=2 sq=1 skv=4096 hq=128 topk=2048 page=64 cache=bf16".
 * One table of keys serves parsing; printing writes what differs from mla_problem_init. */
#include "problem.h"

#include "kernel.h"
#include "status.h"
#include "text.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_REQUESTS = 1 << 22 };

/* ----------------------------------------------------------- batch grammar */

static mla_status batch_error(const char *item, const char *why)
{
    return mla_fail(MLA_ERR_ARGUMENT,
                    "batch: got '%.40s' (%s), want [count]q<query_len>[k][s<kv_len>[k]], "
                    "comma-separated, such as 4q512s8k,2q1s32k",
                    item, why);
}

/* Digits, then an optional k = 1024. Returns false unless at least one digit and at most limit. */
static bool read_length(const char **at, int64_t limit, bool suffix, int64_t *out)
{
    const char *c = *at;
    int64_t value = 0;
    if (!isdigit((unsigned char)*c))
        return false;
    for (; isdigit((unsigned char)*c); c++) {
        value = value * 10 + (*c - '0');
        if (value > limit)
            return false;
    }
    if (suffix && (*c == 'k' || *c == 'K')) {
        value *= 1024;
        c++;
    }
    *at = c;
    *out = value;
    return value <= limit;
}

/* One pass over the grammar: counts, and writes lengths where the arrays are given. */
static mla_status walk_batch(const char *batch, int64_t *requests, int32_t *cu, int32_t *kv)
{
    int64_t n = 0, rows = 0;
    const char *at = batch;
    if (cu)
        cu[0] = 0;
    while (*at) {
        const char *item = at;
        int64_t count = 1, query_len, seq_len_kv;
        if (isdigit((unsigned char)*at) && !read_length(&at, MAX_REQUESTS, false, &count))
            return batch_error(item, "count above 4194304");
        if (*at++ != 'q')
            return batch_error(item, "no q");
        if (!read_length(&at, INT32_MAX, true, &query_len))
            return batch_error(item, "no query_len below 2^31");
        seq_len_kv = query_len;
        if (*at == 's') {
            at++;
            if (!read_length(&at, INT32_MAX, true, &seq_len_kv))
                return batch_error(item, "no kv_len below 2^31");
        }
        if (*at == ',' && at[1])
            at++;
        else if (*at)
            return batch_error(item, "unexpected character");
        if (n + count > MAX_REQUESTS || rows + count * query_len > INT32_MAX)
            return batch_error(item, "more than 4194304 requests or 2147483647 query tokens");
        for (int64_t i = 0; i < count; i++, n++) {
            rows += query_len;
            if (cu) {
                cu[n + 1] = (int32_t)rows;
                kv[n] = (int32_t)seq_len_kv;
            }
        }
    }
    *requests = n;
    return MLA_OK;
}

mla_status mla_batch_parse(mla_problem *problem, const char *batch)
{
    int64_t n = 0;
    mla_status status = walk_batch(batch, &n, NULL, NULL);
    if (status != MLA_OK)
        return status;
    int32_t *lengths = mla_alloc((size_t)(2 * n + 1), sizeof *lengths);
    if (!lengths)
        return mla_fail(MLA_ERR_MEMORY, "batch: cannot allocate lengths of %" PRId64 " requests",
                        n);
    walk_batch(batch, &n, lengths, lengths + n + 1);
    mla_problem_release(problem);
    problem->storage = lengths;
    problem->batch = n;
    problem->cu_seqlens_q = lengths;
    problem->seq_lens_kv = lengths + n + 1;
    return MLA_OK;
}

void mla_problem_release(mla_problem *problem)
{
    if (!problem || !problem->storage)
        return;
    mla_free(problem->storage);
    problem->storage = NULL;
    problem->cu_seqlens_q = problem->seq_lens_kv = NULL;
    problem->batch = 0;
}

/* ------------------------------------------------------------------ parsing */

/* What the words said that is not a field of the problem. */
struct draft {
    mla_problem *problem;
    char batch[2048];
    int64_t b, sq, skv;
    bool has_batch, has_b, has_skv, has_scale, has_cache, has_out, has_kv_dtype, has_model;
    bool has_heads_kv, has_page, has_rope;
};

static bool read_int(const char *value, int64_t *out)
{
    return read_length(&value, INT64_C(1) << 40, true, out) && !*value;
}

static bool read_flag(const char *value, bool *out)
{
    bool yes = strcmp(value, "1") == 0, no = strcmp(value, "0") == 0;
    *out = yes;
    return yes || no;
}

static bool read_scale(const char *value, double *out)
{
    char *end;
    errno = 0;
    *out = strtod(value, &end);
    return end != value && !*end && isfinite(*out);
}

enum kind { KEY_INT, KEY_FLAG, KEY_OTHER };

static const struct key {
    const char *name;
    enum kind kind;
    size_t offset; /* in mla_problem, unless KEY_OTHER */
} keys[] = {
#define FIELD(name, kind, field)                                                                   \
    {                                                                                              \
        name, kind, offsetof(mla_problem, field)                                                   \
    }
    FIELD("heads", KEY_INT, heads_q),
    FIELD("hq", KEY_INT, heads_q),
    FIELD("heads_kv", KEY_INT, heads_kv),
    FIELD("hk", KEY_INT, heads_kv),
    FIELD("rank", KEY_INT, kv_lora_rank),
    FIELD("nope", KEY_INT, qk_nope_dim),
    FIELD("rope", KEY_INT, qk_rope_dim),
    FIELD("v", KEY_INT, v_dim),
    FIELD("page", KEY_INT, page_size),
    FIELD("topk", KEY_INT, topk),
    FIELD("topk_lens", KEY_FLAG, has_topk_lens),
    FIELD("mask", KEY_FLAG, has_mask),
    FIELD("causal", KEY_FLAG, causal),
    FIELD("complete", KEY_FLAG, indices_complete),
    FIELD("sink", KEY_FLAG, has_sink),
    FIELD("lse", KEY_FLAG, wants_lse),
    FIELD("max_logits", KEY_FLAG, wants_max_logits),
#undef FIELD
    {"form", KEY_OTHER, 0},
    {"model", KEY_OTHER, 0},
    {"batch", KEY_OTHER, 0},
    {"b", KEY_OTHER, 0},
    {"sq", KEY_OTHER, 0},
    {"skv", KEY_OTHER, 0},
    {"dtype", KEY_OTHER, 0},
    {"kv_dtype", KEY_OTHER, 0},
    {"cache", KEY_OTHER, 0},
    {"out", KEY_OTHER, 0},
    {"scale", KEY_OTHER, 0},
    {"base", KEY_OTHER, 0},
};

static mla_status bad_value(const char *key, const char *value, const char *wanted)
{
    return mla_fail(MLA_ERR_ARGUMENT, "mla_problem_parse: %s: got '%.80s', want %s", key, value,
                    wanted);
}

static mla_status set_cache(struct draft *d, const char *value)
{
    d->has_cache = true;
    if (strcmp(value, "fp8") == 0)
        value = "fp8_ds_mla";
    else if (strcmp(value, "nvfp4") == 0)
        value = "nvfp4_ds_mla";
    return mla_cache_format_parse(value, &d->problem->cache_format);
}

static mla_status set_other(struct draft *d, const char *key, const char *value)
{
    mla_problem *p = d->problem;
    if (strcmp(key, "form") == 0)
        return mla_form_parse(value, &p->form);
    if (strcmp(key, "model") == 0)
        return MLA_OK; /* set before all other keys */
    if (strcmp(key, "dtype") == 0) {
        mla_status status = mla_dtype_parse(value, &p->q_dtype);
        return status == MLA_OK && p->q_dtype == MLA_F64 ? bad_value(key, value, "bf16, f16 or f32")
                                                         : status;
    }
    if (strcmp(key, "kv_dtype") == 0) {
        d->has_kv_dtype = true;
        return mla_dtype_parse(value, &p->kv_dtype);
    }
    if (strcmp(key, "out") == 0) {
        d->has_out = true;
        return mla_dtype_parse(value, &p->out_dtype);
    }
    if (strcmp(key, "cache") == 0)
        return set_cache(d, value);
    if (strcmp(key, "scale") == 0) {
        d->has_scale = true;
        return read_scale(value, &p->softmax_scale) ? MLA_OK
                                                    : bad_value(key, value, "a finite number");
    }
    if (strcmp(key, "base") == 0) {
        p->lse_base = strcmp(value, "2") == 0 ? MLA_LSE_2 : MLA_LSE_E;
        return strcmp(value, "2") == 0 || strcmp(value, "e") == 0 ? MLA_OK
                                                                  : bad_value(key, value, "e or 2");
    }
    if (strcmp(key, "batch") == 0) {
        d->has_batch = true;
        if (strlen(value) >= sizeof d->batch)
            return bad_value(key, value, "at most 2047 characters");
        strcpy(d->batch, value);
        return MLA_OK;
    }
    int64_t *out = strcmp(key, "b") == 0 ? &d->b : strcmp(key, "sq") == 0 ? &d->sq : &d->skv;
    d->has_b = true;
    d->has_skv |= out == &d->skv;
    return read_int(value, out) && *out <= INT32_MAX ? MLA_OK
                                                     : bad_value(key, value, "0 to 2147483647");
}

static mla_status set_key(struct draft *d, const struct key *key, const char *value)
{
    char *field = (char *)d->problem + key->offset;
    d->has_heads_kv |= key->offset == offsetof(mla_problem, heads_kv);
    d->has_page |= key->offset == offsetof(mla_problem, page_size);
    d->has_rope |= key->offset == offsetof(mla_problem, qk_rope_dim);
    switch (key->kind) {
    case KEY_INT:
        return read_int(value, (int64_t *)(void *)field)
                   ? MLA_OK
                   : bad_value(key->name, value, "a whole number");
    case KEY_FLAG:
        return read_flag(value, (bool *)(void *)field) ? MLA_OK
                                                       : bad_value(key->name, value, "0 or 1");
    default:
        return set_other(d, key->name, value);
    }
}

/* Defaults that depend on other words, and the lengths. */
static mla_status finish(struct draft *d)
{
    mla_problem *p = d->problem;
    mla_status status;
    if (d->has_batch && d->has_b)
        return mla_fail(
            MLA_ERR_ARGUMENT,
            "mla_problem_parse: batch: got it beside b, sq or skv, want one of the two");
    if (!d->has_batch) {
        if (!d->has_skv)
            d->skv = d->sq;
        snprintf(d->batch, sizeof d->batch, "%" PRId64 "q%" PRId64 "s%" PRId64, d->b, d->sq,
                 d->skv);
    }
    status = mla_batch_parse(p, d->batch);
    if (status != MLA_OK)
        return status;
    if (!d->has_heads_kv && p->form == MLA_FORM_EXPANDED)
        p->heads_kv = p->heads_q;
    if (d->has_cache && p->form != MLA_FORM_EXPANDED && p->cache_format >= MLA_CACHE_FP8_DS_MLA) {
        /* Packed records have one rope width, and pages; 64 is the size most engines use. */
        if (!d->has_page)
            p->page_size = 64;
        if (!d->has_rope)
            p->qk_rope_dim =
                p->cache_format == MLA_CACHE_MODEL1 || p->cache_format == MLA_CACHE_V41 ? 0 : 64;
    }
    if (!d->has_scale && !d->has_model)
        p->softmax_scale = 1 / sqrt((double)(p->qk_nope_dim + p->qk_rope_dim));
    if (!d->has_cache)
        p->cache_format = (mla_cache_format)p->q_dtype; /* bf16, f16, f32 in both enumerations */
    if (!d->has_out)
        p->out_dtype = p->q_dtype;
    if (!d->has_kv_dtype)
        p->kv_dtype = p->q_dtype;
    if (p->page_size > 0 && p->page_size <= INT32_MAX)
        mla_problem_count_pages(p);
    return mla_problem_check(p);
}

static mla_status add_rest(char *rest, size_t rest_bytes, const char *word)
{
    if (!rest)
        return mla_fail(MLA_ERR_ARGUMENT,
                        "mla_problem_parse: got '%.80s', want a key of problem strings such as "
                        "batch=, heads= or topk=",
                        word);
    size_t used = strlen(rest), more = strlen(word);
    if (used + more + 2 > rest_bytes)
        return mla_fail(MLA_ERR_ARGUMENT, "mla_problem_parse: rest: got %zu bytes, want more",
                        rest_bytes);
    snprintf(rest + used, rest_bytes - used, "%s%s", used ? " " : "", word);
    return MLA_OK;
}

static mla_status set_word(struct draft *d, char *word, char *rest, size_t rest_bytes)
{
    char *equals = strchr(word, '=');
    if (equals) {
        for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
            if (strlen(keys[i].name) == (size_t)(equals - word) &&
                strncmp(keys[i].name, word, (size_t)(equals - word)) == 0)
                return set_key(d, &keys[i], equals + 1);
        }
    }
    return add_rest(rest, rest_bytes, word);
}

/* The model sets many fields, so its word counts first wherever it stands. */
static mla_status set_model_word(struct draft *d, const char *text)
{
    const char *at = strstr(text, " model=");
    char name[64];
    if (!at)
        return mla_problem_init(d->problem);
    d->has_model = true;
    snprintf(name, sizeof name, "%.*s", (int)strcspn(at + 7, " \t\n"), at + 7);
    return mla_problem_init_model(d->problem, name);
}

mla_status mla_problem_parse(mla_problem *problem, const char *text, char *rest, size_t rest_bytes)
{
    if (!problem || !text)
        return mla_fail(MLA_ERR_ARGUMENT, "mla_problem_parse: %s: got NULL, want a pointer",
                        problem ? "text" : "problem");
    *problem = (mla_problem){0};
    if (rest && rest_bytes)
        rest[0] = '\0';
    if (strncmp(text, "attend", 6) != 0 || (text[6] && !isspace((unsigned char)text[6])))
        return mla_fail(MLA_ERR_ARGUMENT,
                        "mla_problem_parse: got '%.40s', want a string that begins with 'attend'",
                        text);
    struct draft d = {.problem = problem, .b = 1, .sq = 1};
    mla_status status = set_model_word(&d, text);
    char *copy = mla_alloc(strlen(text) + 1, 1), *save = NULL;
    if (status == MLA_OK && !copy)
        status = mla_fail(MLA_ERR_MEMORY, "mla_problem_parse: cannot copy %zu bytes", strlen(text));
    if (status == MLA_OK) {
        strcpy(copy, text + 6);
        for (char *word = strtok_r(copy, " \t\n", &save); word && status == MLA_OK;
             word = strtok_r(NULL, " \t\n", &save))
            status = set_word(&d, word, rest, rest_bytes);
    }
    if (status == MLA_OK)
        status = finish(&d);
    mla_free(copy);
    if (status != MLA_OK)
        mla_problem_release(problem);
    return status;
}

/* ----------------------------------------------------------------- printing */

static void print_batch(struct mla_text *t, const mla_problem *p)
{
    mla_text_add(t, " batch=");
    for (int64_t b = 0, same; b < p->batch; b += same) {
        int64_t query_len = (int64_t)p->cu_seqlens_q[b + 1] - p->cu_seqlens_q[b];
        for (same = 1; b + same < p->batch &&
                       p->cu_seqlens_q[b + same + 1] - p->cu_seqlens_q[b + same] == query_len &&
                       p->seq_lens_kv[b + same] == p->seq_lens_kv[b];)
            same++;
        mla_text_add(t, "%s", b ? "," : "");
        if (same > 1)
            mla_text_add(t, "%" PRId64, same);
        mla_text_add(t, "q%" PRId64, query_len);
        if (p->seq_lens_kv[b] != query_len)
            mla_text_add(t, "s%d", (int)p->seq_lens_kv[b]);
    }
}

size_t mla_problem_print(const mla_problem *p, char *text, size_t bytes)
{
    struct mla_text t = {.at = text, .bytes = bytes};
    mla_problem d;
    if (bytes)
        text[0] = '\0';
    if (!p)
        return 0;
    mla_problem_init(&d);
    bool cached = p->form != MLA_FORM_EXPANDED;
    mla_text_add(&t, "attend form=%s", mla_form_name(p->form));
    print_batch(&t, p);
    mla_text_add(&t, " heads=%" PRId64, p->heads_q);
    if (!cached)
        mla_text_add(&t, " heads_kv=%" PRId64, p->heads_kv);
    if (cached && p->kv_lora_rank != d.kv_lora_rank)
        mla_text_add(&t, " rank=%" PRId64, p->kv_lora_rank);
    if (p->form != MLA_FORM_ABSORBED && p->qk_nope_dim != d.qk_nope_dim)
        mla_text_add(&t, " nope=%" PRId64, p->qk_nope_dim);
    if (p->qk_rope_dim != d.qk_rope_dim)
        mla_text_add(&t, " rope=%" PRId64, p->qk_rope_dim);
    if (p->form != MLA_FORM_ABSORBED && p->v_dim != d.v_dim)
        mla_text_add(&t, " v=%" PRId64, p->v_dim);
    mla_text_add(&t, " dtype=%s", mla_dtype_name(p->q_dtype));
    if (!cached && p->kv_dtype != p->q_dtype)
        mla_text_add(&t, " kv_dtype=%s", mla_dtype_name(p->kv_dtype));
    if (cached && (int)p->cache_format != (int)p->q_dtype)
        mla_text_add(&t, " cache=%s", mla_cache_format_name(p->cache_format));
    if (p->page_size)
        mla_text_add(&t, " page=%" PRId64, p->page_size);
    if (p->topk)
        mla_text_add(&t, " topk=%" PRId64, p->topk);
    if (p->has_topk_lens)
        mla_text_add(&t, " topk_lens=1");
    if (p->indices_complete)
        mla_text_add(&t, " complete=1");
    if (p->has_mask)
        mla_text_add(&t, " mask=1");
    if (!p->causal)
        mla_text_add(&t, " causal=0");
    if (p->has_sink)
        mla_text_add(&t, " sink=1");
    mla_text_add(&t, " scale=%.17g", p->softmax_scale);
    if (p->lse_base == MLA_LSE_2)
        mla_text_add(&t, " base=2");
    if (!p->wants_lse)
        mla_text_add(&t, " lse=0");
    if (p->wants_max_logits)
        mla_text_add(&t, " max_logits=1");
    if (p->out_dtype != p->q_dtype)
        mla_text_add(&t, " out=%s", mla_dtype_name(p->out_dtype));
    return t.used;
}
