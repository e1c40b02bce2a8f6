/* SPDX-License-Identifier: Apache-2.0 */
/* A problem: defaults, models, and the check of every field. Strings are in problem_string.c. */
#include "problem.h"

#include "kernel.h"
#include "status.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

/* softmax_scale = (dn + dr)^-0.5 · m², m = 0.1·mscale·ln(factor) + 1 (YaRN; factor 1: m =
 * 1). */
struct model {
    const char *name;
    int64_t heads_q, kv_lora_rank, qk_nope_dim, qk_rope_dim, v_dim, topk;
    double yarn_factor, mscale;
};

static const struct model models[] = {
    {"deepseek-v3.2", 128, 512, 128, 64, 128, 2048, 40, 1},
    {"deepseek-v3", 128, 512, 128, 64, 128, 0, 40, 1},
    {"deepseek-v2", 128, 512, 128, 64, 128, 0, 40, 0.707},
    {"deepseek-v2-lite", 16, 512, 128, 64, 128, 0, 40, 0.707},
    {"kimi-k2", 64, 512, 128, 64, 128, 0, 32, 1},
    {"kimi-k2.5", 64, 512, 128, 64, 128, 0, 64, 1},
    {"glm-5", 64, 512, 192, 64, 256, 2048, 1, 0},
    {"longcat-flash", 64, 512, 128, 64, 128, 0, 1, 0},
    {"tiny", 4, 64, 32, 16, 32, 32, 1, 0},
};

const char *mla_model_name(int i)
{
    int count = (int)(sizeof models / sizeof *models);
    return i >= 0 && i < count ? models[i].name : NULL;
}

static void set_model(mla_problem *p, const struct model *m)
{
    double mscale = 0.1 * m->mscale * log(m->yarn_factor) + 1;
    p->heads_q = m->heads_q;
    p->kv_lora_rank = m->kv_lora_rank;
    p->qk_nope_dim = m->qk_nope_dim;
    p->qk_rope_dim = m->qk_rope_dim;
    p->v_dim = m->v_dim;
    p->topk = m->topk;
    p->softmax_scale = mscale * mscale / sqrt((double)(m->qk_nope_dim + m->qk_rope_dim));
}

mla_status mla_problem_init(mla_problem *problem)
{
    if (!problem)
        return mla_fail(MLA_ERR_ARGUMENT, "mla_problem_init: problem: got NULL, want a pointer");
    *problem = (mla_problem){
        .form = MLA_FORM_LATENT,
        .heads_kv = 1,
        .causal = true,
        .wants_lse = true,
    };
    set_model(problem, &models[1]);
    problem->softmax_scale = 1 / sqrt(192.0);
    return MLA_OK;
}

mla_status mla_problem_init_model(mla_problem *problem, const char *model)
{
    mla_status status = mla_problem_init(problem);
    if (status != MLA_OK)
        return status;
    char wanted[256] = "";
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        if (model && strcmp(model, models[i].name) == 0) {
            set_model(problem, &models[i]);
            return MLA_OK;
        }
        strncat(wanted, i ? ", " : "", sizeof wanted - strlen(wanted) - 1);
        strncat(wanted, models[i].name, sizeof wanted - strlen(wanted) - 1);
    }
    return mla_fail(MLA_ERR_ARGUMENT, "mla_problem_init_model: model: got '%s', want one of %s",
                    model ? model : "NULL", wanted);
}

void mla_problem_count_pages(mla_problem *p)
{
    p->num_pages = p->max_pages = 0;
    for (int64_t b = 0; p->page_size > 0 && b < p->batch; b++) {
        int64_t pages = (p->seq_lens_kv[b] + p->page_size - 1) / p->page_size;
        p->num_pages += pages;
        p->max_pages = pages > p->max_pages ? pages : p->max_pages;
    }
}

#define WANT(ok, field, format, got, wanted)                                                       \
    do {                                                                                           \
        if (!(ok))                                                                                 \
            return mla_fail(MLA_ERR_ARGUMENT,                                                      \
                            "mla_problem_check: " field ": got " format ", want " wanted, got);    \
    } while (0)

/* Far above any model, low enough that products of a few dims cannot overflow 64 bits. */
enum { MAX_DIM = 65536, MAX_HEADS = 65536 };

static mla_status check_enums(const mla_problem *p)
{
    WANT((unsigned)p->form <= MLA_FORM_EXPANDED, "form", "%d", (int)p->form,
         "MLA_FORM_LATENT, _ABSORBED or _EXPANDED");
    WANT((unsigned)p->q_dtype <= MLA_F32, "q_dtype", "%d", (int)p->q_dtype, "bf16, f16 or f32");
    WANT((unsigned)p->out_dtype <= MLA_F64, "out_dtype", "%d", (int)p->out_dtype,
         "bf16, f16, f32 or f64");
    WANT((unsigned)p->lse_base <= MLA_LSE_2, "lse_base", "%d", (int)p->lse_base,
         "MLA_LSE_E or MLA_LSE_2");
    if (p->form == MLA_FORM_EXPANDED)
        WANT((unsigned)p->kv_dtype <= MLA_F32, "kv_dtype", "%d", (int)p->kv_dtype,
             "bf16, f16 or f32");
    else
        WANT((unsigned)p->cache_format <= MLA_CACHE_NVFP4_DS_MLA, "cache_format", "%d",
             (int)p->cache_format, "a mla_cache_format");
    return MLA_OK;
}

static mla_status check_dims(const mla_problem *p)
{
    WANT(p->heads_q >= 1 && p->heads_q <= MAX_HEADS, "heads_q", "%" PRId64, p->heads_q,
         "1 to 65536");
    if (p->form == MLA_FORM_EXPANDED) {
        WANT(p->heads_kv >= 1 && p->heads_q % p->heads_kv == 0, "heads_kv", "%" PRId64, p->heads_kv,
             "a divisor of heads_q");
    } else {
        WANT(p->heads_kv == 1, "heads_kv", "%" PRId64, p->heads_kv,
             "1 (only the expanded form has more)");
        WANT(p->kv_lora_rank >= 1 && p->kv_lora_rank <= MAX_DIM, "kv_lora_rank", "%" PRId64,
             p->kv_lora_rank, "1 to 65536");
    }
    WANT(p->qk_rope_dim >= 0 && p->qk_rope_dim <= MAX_DIM, "qk_rope_dim", "%" PRId64,
         p->qk_rope_dim, "0 to 65536");
    if (p->form != MLA_FORM_ABSORBED) {
        int64_t least = p->form == MLA_FORM_EXPANDED && p->qk_rope_dim > 0 ? 0 : 1;
        WANT(p->qk_nope_dim >= least && p->qk_nope_dim <= MAX_DIM, "qk_nope_dim", "%" PRId64,
             p->qk_nope_dim, "1 to 65536");
        WANT(p->v_dim >= 1 && p->v_dim <= MAX_DIM, "v_dim", "%" PRId64, p->v_dim, "1 to 65536");
    }
    WANT(isfinite(p->softmax_scale), "softmax_scale", "%g", p->softmax_scale, "a finite number");
    return MLA_OK;
}

static mla_status check_lengths(const mla_problem *p, int64_t *max_kv, int64_t *sum_kv)
{
    WANT(p->batch >= 0 && p->batch <= INT32_MAX, "batch", "%" PRId64, p->batch, "0 to 2147483647");
    *max_kv = *sum_kv = 0;
    if (p->batch == 0)
        return MLA_OK;
    WANT(p->cu_seqlens_q, "cu_seqlens_q", "%s", "NULL", "batch + 1 values");
    WANT(p->seq_lens_kv, "seq_lens_kv", "%s", "NULL", "batch values");
    WANT(p->cu_seqlens_q[0] == 0, "cu_seqlens_q[0]", "%d", (int)p->cu_seqlens_q[0], "0");
    for (int64_t b = 0; b < p->batch; b++) {
        int64_t query_len = (int64_t)p->cu_seqlens_q[b + 1] - p->cu_seqlens_q[b];
        int64_t seq_len_kv = p->seq_lens_kv[b];
        if (query_len < 0)
            return mla_fail(MLA_ERR_ARGUMENT,
                            "mla_problem_check: cu_seqlens_q[%" PRId64
                            "]: got %d, want at least cu_seqlens_q[%" PRId64 "] = %d",
                            b + 1, (int)p->cu_seqlens_q[b + 1], b, (int)p->cu_seqlens_q[b]);
        if (seq_len_kv < 0)
            return mla_fail(MLA_ERR_ARGUMENT,
                            "mla_problem_check: seq_lens_kv[%" PRId64 "]: got %" PRId64
                            ", want at least 0",
                            b, seq_len_kv);
        if (p->causal && seq_len_kv > 0 && seq_len_kv < query_len)
            return mla_fail(MLA_ERR_ARGUMENT,
                            "mla_problem_check: seq_lens_kv[%" PRId64 "]: got %" PRId64
                            ", want at least the request's %" PRId64
                            " query tokens (causal: new tokens are keys too), or 0",
                            b, seq_len_kv, query_len);
        *max_kv = seq_len_kv > *max_kv ? seq_len_kv : *max_kv;
        *sum_kv += seq_len_kv;
    }
    return MLA_OK;
}

static mla_status check_cache(const mla_problem *p, int64_t max_kv)
{
    if (p->form == MLA_FORM_EXPANDED) {
        WANT(p->page_size == 0, "page_size", "%" PRId64, p->page_size,
             "0 (the expanded form has no cache)");
        return MLA_OK;
    }
    WANT(p->page_size >= 0 && p->page_size <= INT32_MAX, "page_size", "%" PRId64, p->page_size,
         "0 (flat) to 2147483647");
    const char *name = mla_cache_format_name(p->cache_format);
    if (p->cache_format >= MLA_CACHE_FP8_DS_MLA) {
        bool footer = p->cache_format == MLA_CACHE_MODEL1 || p->cache_format == MLA_CACHE_V41;
        int64_t rope = footer ? 0 : 64;
        if (p->page_size == 0)
            return mla_fail(MLA_ERR_ARGUMENT,
                            "mla_problem_check: page_size: got 0, want at least 1 (%s is paged)",
                            name);
        if (p->kv_lora_rank != 512)
            return mla_fail(MLA_ERR_ARGUMENT,
                            "mla_problem_check: kv_lora_rank: got %" PRId64 ", want 512 for %s",
                            p->kv_lora_rank, name);
        if (p->qk_rope_dim != rope)
            return mla_fail(MLA_ERR_ARGUMENT,
                            "mla_problem_check: qk_rope_dim: got %" PRId64 ", want %" PRId64
                            " for %s",
                            p->qk_rope_dim, rope, name);
        if (footer && p->form != MLA_FORM_ABSORBED)
            return mla_fail(MLA_ERR_ARGUMENT,
                            "mla_problem_check: form: got %s, want absorbed for cache_format %s",
                            mla_form_name(p->form), name);
    }
    if (p->page_size > 0) {
        WANT(p->num_pages >= 0 && p->num_pages <= INT32_MAX, "num_pages", "%" PRId64, p->num_pages,
             "0 to 2147483647");
        WANT(p->max_pages >= 0 && p->max_pages <= INT32_MAX, "max_pages", "%" PRId64, p->max_pages,
             "0 to 2147483647");
        int64_t bytes,
            row = (int64_t)mla_cache_row_bytes(p->cache_format, p->kv_lora_rank, p->qk_rope_dim);
        if (__builtin_mul_overflow(p->num_pages * p->page_size, row, &bytes))
            return mla_fail(MLA_ERR_ARGUMENT,
                            "mla_problem_check: num_pages: got %" PRId64 " pages of %" PRId64
                            " rows, want a cache below 2^63 bytes",
                            p->num_pages, p->page_size);
        if (p->max_pages * p->page_size < max_kv)
            return mla_fail(MLA_ERR_ARGUMENT,
                            "mla_problem_check: max_pages: got %" PRId64 " pages of %" PRId64
                            ", want room for seq_len_kv %" PRId64,
                            p->max_pages, p->page_size, max_kv);
    }
    return MLA_OK;
}

static mla_status check_visibility(const mla_problem *p)
{
    WANT(p->topk >= 0 && p->topk <= INT32_MAX, "topk", "%" PRId64, p->topk, "0 to 2147483647");
    WANT(!p->has_mask || p->topk == 0, "has_mask", "%s with topk_indices", "true",
         "one of mask and topk_indices");
    WANT(!p->has_topk_lens || p->topk > 0, "has_topk_lens", "%s with topk 0", "true",
         "topk_indices with it");
    WANT(!p->indices_complete || p->topk > 0, "indices_complete", "%s with topk 0", "true",
         "topk_indices with it");
    return MLA_OK;
}

/* Bytes of every tensor fit in 63 bits. */
static mla_status check_sizes(const mla_problem *p, int64_t sum_kv)
{
    int64_t total_q = mla_total_q(p), d = mla_d_qk(p) > mla_d_v(p) ? mla_d_qk(p) : mla_d_v(p);
    int64_t rows = total_q > sum_kv ? total_q : sum_kv, bytes;
    if (p->form != MLA_FORM_EXPANDED && p->kv_lora_rank > d)
        d = p->kv_lora_rank;
    if (__builtin_mul_overflow(rows, p->heads_q * 8, &bytes) ||
        __builtin_mul_overflow(bytes, d, &bytes))
        return mla_fail(MLA_ERR_ARGUMENT,
                        "mla_problem_check: heads_q: got %" PRId64 " with %" PRId64
                        " rows of width %" PRId64 ", want a tensor below 2^63 bytes",
                        p->heads_q, rows, d);
    return MLA_OK;
}

mla_status mla_problem_check(const mla_problem *problem)
{
    int64_t max_kv = 0, sum_kv = 0;
    if (!problem)
        return mla_fail(MLA_ERR_ARGUMENT, "mla_problem_check: problem: got NULL, want a pointer");
    mla_status status = check_enums(problem);
    if (status == MLA_OK)
        status = check_dims(problem);
    if (status == MLA_OK)
        status = check_lengths(problem, &max_kv, &sum_kv);
    if (status == MLA_OK)
        status = check_cache(problem, max_kv);
    if (status == MLA_OK)
        status = check_visibility(problem);
    if (status == MLA_OK)
        status = check_sizes(problem, sum_kv);
    return status;
}
