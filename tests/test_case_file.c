/* SPDX-License-Identifier: Apache-2.0 */
/* Problem and result files: what is read, what is refused and in which words, round trips, failing
 * allocations. */
#include "support.h"
#include "support_files.h"
#include "common/tool/case.h"
#include "common/tool/result_file.h"
#include "kernel.h"
#include "status.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct lines {
    int count;
    char last[600];
};

static void keep_line(const char *line, void *user)
{
    struct lines *lines = user;
    lines->count++;
    snprintf(lines->last, sizeof lines->last, "%s", line);
}

/* Loads a base after edits, from memory. */
static mla_status load(const char *base, const char *edits, struct mla_case *c, struct lines *lines)
{
    struct test_file f;
    size_t size;
    test_file_base(&f, base);
    test_file_edit(&f, edits);
    unsigned char *bytes = test_file_bytes(&f, &size);
    mla_status status =
        mla_case_load_bytes(bytes, size, "FILE", c, lines ? keep_line : NULL, lines);
    free(bytes); /* the case must not look back */
    test_file_free(&f);
    return status;
}

/* --------------------------------------------------------------- refused files */

static const struct {
    const char *base, *edits, *fragment;
} refused[] = {
    /* lengths */
    {"latent", "drop cu_seqlens_q", "cu_seqlens_q: got no such tensor"},
    {"latent", "drop seq_lens_kv", "seq_lens_kv: got no such tensor"},
    {"latent", "dtype cu_seqlens_q I64", "cu_seqlens_q: got dtype I64, want I32"},
    {"latent", "dtype seq_lens_kv U32", "seq_lens_kv: got dtype U32, want I32"},
    {"latent", "shape cu_seqlens_q 2,2", "cu_seqlens_q: got shape [2, 2] of rank 2, want rank 1"},
    {"latent", "shape cu_seqlens_q 0", "cu_seqlens_q: got no entries"},
    {"latent", "set cu_seqlens_q 0 1", "cu_seqlens_q[0]: got 1, want 0"},
    {"latent", "set cu_seqlens_q 1 3", "cu_seqlens_q[2]: got 2 after 3"},
    {"latent", "set cu_seqlens_q 3 4", "cu_seqlens_q: got 4 as its last entry, want 3"},
    {"latent", "set cu_seqlens_q 3 2", "cu_seqlens_q: got 2 as its last entry, want 3"},
    {"latent", "shape seq_lens_kv 2", "seq_lens_kv: got shape [2], want 3"},
    {"latent", "set seq_lens_kv 1 -1", "seq_lens_kv[1]: got -1"},
    {"latent", "set seq_lens_kv 1 1", "kv_c: got shape [5, 8], want 6 (sum of seq_lens_kv)"},
    {"latent", "set seq_lens_kv 0 1;set seq_lens_kv 2 4", "seq_lens_kv[0]: got 1, want at least"},
    /* latent query */
    {"latent", "drop q_nope", "q_nope: got no such tensor"},
    {"latent", "drop w_uk", "w_uk: got no such tensor"},
    {"latent", "drop w_uv", "w_uv: got no such tensor"},
    {"latent", "drop q_pe", "k_pe: got a tensor, want none (qk_rope_dim is 0"},
    {"latent", "shape q_pe 3,2,0", "q_pe: got qk_rope_dim 0, want no q_pe"},
    {"latent", "dtype q_nope F64", "q_nope: got dtype F64, want BF16, F16 or F32"},
    {"latent", "dtype q_pe F16", "q_pe: got dtype F16, want BF16, the dtype of q_nope"},
    {"latent", "dtype w_uk F32", "w_uk: got dtype F32, want BF16"},
    {"latent", "dtype w_uv F32", "w_uv: got dtype F32, want BF16"},
    {"latent", "shape q_nope 4,2,4", "cu_seqlens_q: got 3 as its last entry, want 4"},
    {"latent", "shape q_nope 3,3,4", "w_uk: got shape [2, 4, 8], want 3 (heads"},
    {"latent", "shape q_nope 3,2,5", "w_uk: got shape [2, 4, 8], want 5 (qk_nope_dim"},
    {"latent", "shape q_nope 24", "q_nope: got shape [24] of rank 1, want rank 3"},
    {"latent", "shape q_pe 2,2,2", "q_pe: got shape [2, 2, 2], want 3 (rows"},
    {"latent", "shape q_pe 3,1,2", "q_pe: got shape [3, 1, 2], want 2 (heads"},
    {"latent", "shape w_uv 3,8,4", "w_uv: got shape [3, 8, 4], want 2 (heads"},
    {"latent", "shape w_uv 2,7,4", "w_uv: got shape [2, 7, 4], want 8 (kv_lora_rank"},
    {"latent", "shape w_uv 2,8,0", "v_dim: got 0"},
    {"latent", "shape w_uk 2,4,0;shape w_uv 2,0,4;shape kv_c 5,0", "kv_lora_rank: got 0"},
    {"latent", "shape q_nope 3,0,4;shape q_pe 3,0,2;shape w_uk 0,4,8;shape w_uv 0,8,4",
     "heads_q: got 0"},
    {"latent", "add v BF16 5,2,4", "v: got a tensor, want none (a latent problem"},
    {"latent", "meta kv_lora_rank 9", "kv_lora_rank: got 9, want 8"},
    /* flat cache */
    {"latent", "drop kv_c", "kv_c: got neither kv_c nor kv_cache"},
    {"latent", "drop k_pe", "k_pe: got no such tensor"},
    {"latent", "dtype kv_c U8", "kv_c: got dtype U8"},
    {"latent", "dtype k_pe F32", "k_pe: got dtype F32, want BF16, the dtype of kv_c"},
    {"latent", "shape kv_c 4,8", "kv_c: got shape [4, 8], want 5 (sum"},
    {"latent", "shape kv_c 5,9", "kv_c: got shape [5, 9], want 8 (kv_lora_rank)"},
    {"latent", "shape kv_c 5,2,4", "kv_c: got shape [5, 2, 4] of rank 3"},
    {"latent", "shape k_pe 5,3", "k_pe: got shape [5, 3], want 2 (qk_rope_dim"},
    {"latent", "shape k_pe 6,2", "k_pe: got shape [6, 2], want 5 (sum"},
    {"latent", "add page_table I32 3,2", "page_table: got a tensor, want none (the cache is flat"},
    {"latent", "meta cache_format f32", "cache_format: got 'f32' with BF16 as dtype of kv_c"},
    {"latent", "meta cache_format fp8_ds_mla", "cache_format: got 'fp8_ds_mla' with BF16"},
    {"latent", "meta cache_format fp8", "cache_format: got 'fp8', want bf16"},
    /* paged cache */
    {"latent-paged", "drop page_table", "page_table: got no such tensor"},
    {"latent-paged", "add kv_c F16 5,8", "kv_c: got a tensor, want none (kv_cache is there"},
    {"latent-paged", "add k_pe F16 5,2", "k_pe: got a tensor, want none (kv_cache holds"},
    {"latent-paged", "shape kv_cache 3,2,9", "kv_cache: got shape [3, 2, 9], want 10"},
    {"latent-paged", "shape kv_cache 3,0,10", "kv_cache: got page_size 0"},
    {"latent-paged", "shape kv_cache 6,10", "kv_cache: got shape [6, 10] of rank 2"},
    {"latent-paged", "dtype kv_cache F64", "kv_cache: got dtype F64"},
    {"latent-paged", "dtype kv_cache U8", "cache_format: got no such metadata key"},
    {"latent-paged", "dtype kv_cache U8;meta cache_format f16", "cache_format: got 'f16' with U8"},
    {"latent-paged", "dtype kv_cache U8;meta cache_format fp8_ds_mla",
     "kv_cache: got shape [3, 2, 10], want 656"},
    {"latent-paged", "shape page_table 2,3", "page_table: got shape [2, 3], want 3 (batch)"},
    {"latent-paged", "shape page_table 3,1", "page_table: got 1 pages of 2 keys"},
    {"latent-paged", "dtype page_table I64", "page_table: got dtype I64"},
    {"latent-paged", "set page_table 0 3", "page_table[0][0]: got 3, want 0 to 2"},
    {"latent-paged", "set page_table 1 -1", "page_table[0][1]: got -1, want 0 to 2"},
    {"latent-paged", "set page_table 4 2147483647", "page_table[2][0]: got 2147483647"},
    {"latent-paged", "shape kv_cache 0,2,10", "page_table[0][0]: got 1"},
    /* absorbed */
    {"absorbed", "unmeta softmax_scale", "softmax_scale: got no such metadata key"},
    {"absorbed", "add q_nope F16 3,2,4", "q_nope: got a tensor, want none (an absorbed"},
    {"absorbed", "add q_pe F16 3,2,4", "q_pe: got a tensor, want none (an absorbed"},
    {"absorbed", "add w_uk F16 2,4,8", "w_uk: got a tensor, want none (an absorbed"},
    {"absorbed", "add w_uv F16 2,8,4", "w_uv: got a tensor, want none (an absorbed"},
    {"absorbed", "add v F16 2,8,4", "v: got a tensor, want none (an absorbed"},
    {"absorbed", "meta kv_lora_rank 4", "kv_lora_rank: got 4, want 8, the last dimension of kv_c"},
    {"absorbed", "shape q 3,2,7", "q: got last dimension 7, want at least kv_lora_rank 8"},
    {"absorbed", "shape q 3,2,8", "k_pe: got a tensor, want none"},
    {"absorbed", "shape q 3,2,11", "k_pe: got shape [5, 2], want 3"},
    {"absorbed", "dtype q I32", "q: got dtype I32"},
    {"absorbed-paged", "unmeta kv_lora_rank", "kv_lora_rank: got no such metadata key"},
    {"absorbed-paged", "meta kv_lora_rank 11", "q: got last dimension 10"},
    {"absorbed-paged", "meta kv_lora_rank 0", "kv_lora_rank: got 0"},
    {"absorbed-paged", "meta kv_lora_rank 8x", "kv_lora_rank: got '8x', want a decimal number"},
    {"absorbed-paged", "meta kv_lora_rank -8", "kv_lora_rank: got '-8'"},
    {"absorbed-paged", "meta kv_lora_rank 99999999999999999999", "got '99999999999999999999'"},
    /* packed caches */
    {"fp8", "unmeta cache_format", "cache_format: got no such metadata key"},
    {"fp8", "meta kv_lora_rank 500", "kv_lora_rank: got 500, want 512 for fp8_ds_mla"},
    {"fp8", "shape q 1,1,512", "qk_rope_dim: got 0, want 64 for fp8_ds_mla"},
    {"fp8", "meta cache_format nvfp4_ds_mla", "kv_cache: got shape [1, 2, 656], want 352"},
    {"fp8", "meta cache_format bf16", "cache_format: got 'bf16' with U8"},
    {"model1", "shape kv_cache 1,2,592", "kv_cache: got shape [1, 2, 592], want 584"},
    {"model1", "shape q 1,1,576", "qk_rope_dim: got 64, want 0 for model1"},
    {"v41", "shape kv_cache 1,1,1056", "kv_cache: got shape [1, 1, 1056], want 528"},
    {"v41", "drop q;add q_nope BF16 1,1,4;add w_uk BF16 1,4,512;add w_uv BF16 1,512,4",
     "form: got latent, want absorbed for cache_format v41"},
    /* expanded */
    {"expanded", "drop q", "q: got no such tensor"},
    {"expanded", "drop v", "v: got no such tensor"},
    {"expanded", "dtype v F16", "v: got dtype F16, want BF16, the dtype of k"},
    {"expanded", "dtype k U8", "k: got dtype U8"},
    {"expanded", "shape k 5,3,6", "k: got 3 heads, want a divisor of the 4 heads of q"},
    {"expanded", "shape k 5,0,6", "k: got 0 heads"},
    {"expanded", "shape k 4,2,6", "k: got shape [4, 2, 6], want 5 (sum"},
    {"expanded", "shape k 5,2,5", "k: got shape [5, 2, 5], want 6 (last dimension of q)"},
    {"expanded", "shape v 4,2,4", "v: got shape [4, 2, 4], want 5 (sum"},
    {"expanded", "shape v 5,1,4", "v: got shape [5, 1, 4], want 2 (heads of k)"},
    {"expanded", "shape v 5,2,0", "v_dim: got 0"},
    {"expanded", "shape q 3,4,0;shape k 5,2,0", "qk_nope_dim: got 0"},
    {"expanded", "add kv_c BF16 5,8", "kv_c: got a tensor, want none (an expanded"},
    {"expanded", "add kv_cache BF16 3,2,8", "kv_cache: got a tensor, want none (an expanded"},
    {"expanded", "add w_uk F32 2,4,8", "w_uk: got a tensor, want none (an expanded"},
    {"expanded", "add q_nope F32 3,4,6", "q_nope: got a tensor, want none (an expanded"},
    {"empty", "shape q 0,2,4294967296", "q: got shape [0, 2, 4294967296], want dimensions up to"},
    {"empty", "shape q 0,2147483647,8", "heads_q: got 2147483647"},
    /* lists, masks, sinks */
    {"latent", "shape topk_indices 2,6", "topk_indices: got shape [2, 6], want 3 (query tokens)"},
    {"latent", "shape topk_indices 3,0", "topk_indices: got 0 entries a row"},
    {"latent", "dtype topk_indices I64", "topk_indices: got dtype I64"},
    {"latent", "set topk_indices 1 0", "topk_indices[0][1]: got key 0 a second time"},
    {"latent", "shape topk_lens 2", "topk_lens: got shape [2], want 3"},
    {"latent", "set topk_lens 1 5", "topk_lens[1]: got 5, want 0 to 4"},
    {"latent", "set topk_lens 2 -1", "topk_lens[2]: got -1"},
    {"latent", "drop topk_indices",
     "topk_lens: got a tensor, want none (there is no topk_indices)"},
    {"latent", "add mask I32 3,1", "mask: got a tensor, want none (topk_indices is there"},
    {"expanded", "shape mask 3,2", "mask: got shape [3, 2], want 1 (longest"},
    {"expanded", "shape mask 2,1", "mask: got shape [2, 1], want 3"},
    {"expanded", "dtype mask U32", "mask: got dtype U32, want I32"},
    {"absorbed", "setf attn_sink 1 nan", "attn_sink[1]: got NaN"},
    {"absorbed", "shape attn_sink 3", "attn_sink: got shape [3], want 2 (heads"},
    {"absorbed", "dtype attn_sink F16", "attn_sink: got dtype F16, want F32"},
    /* metadata */
    {"absorbed", "meta softmax_scale nan", "softmax_scale: got 'nan', want a finite number"},
    {"absorbed", "meta softmax_scale inf", "softmax_scale: got 'inf'"},
    {"absorbed", "meta softmax_scale 1e999", "softmax_scale: got '1e999'"},
    {"absorbed", "meta softmax_scale 0.5x", "softmax_scale: got '0.5x'"},
    {"absorbed", "meta softmax_scale ", "softmax_scale: got ''"},
    {"latent", "meta causal yes", "causal: got 'yes', want 'true' or 'false'"},
    {"latent", "meta causal True", "causal: got 'True'"},
    {"latent", "meta lse_base 10", "lse_base: got '10', want 'e' or '2'"},
    {"latent", "meta seed -1", "seed: got '-1', want a decimal number below 2^64"},
    {"latent", "meta seed 18446744073709551616", "seed: got '18446744073709551616'"},
};

static void refuses_every_broken_rule(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        struct mla_case c;
        mla_status status = load(refused[i].base, refused[i].edits, &c, NULL);
        if (status == MLA_OK)
            print_error("accepted: %s with %s\n", refused[i].base, refused[i].edits);
        assert_refused(status, MLA_ERR_ARGUMENT, refused[i].fragment);
        assert_non_null(strstr(mla_last_error(), "FILE"));
        assert_non_null(strstr(mla_last_error(), ", want "));
        assert_null(c.owned);
    }
}

/* --------------------------------------------------------------- accepted files */

static const struct {
    const char *base, *edits;
} accepted[] = {
    {"latent", ""},
    {"latent", "drop topk_lens;set topk_indices 7 -1"},
    {"latent", "drop topk_lens;drop topk_indices"},
    {"latent", "drop q_pe;drop k_pe"},
    {"latent", "dtype kv_c F32;dtype k_pe F32"},
    {"latent", "meta softmax_scale -0.5;meta causal false;meta lse_base e"},
    {"latent", "add attn_sink F32 2;setf attn_sink 0 inf;setf attn_sink 1 -inf"},
    {"latent", "set topk_indices 3 -2147483648"},         /* ignored, as it lists no key */
    {"latent", "set topk_lens 0 1;set topk_indices 1 0"}, /* beyond topk_lens */
    {"latent-paged", ""},
    {"latent-paged", "dtype kv_cache F32"},
    {"latent-paged", "set page_table 0 0;set page_table 4 0"}, /* shared pages */
    {"latent-paged", "set seq_lens_kv 0 1"}, /* fewer keys than queries, not causal */
    {"absorbed", ""},
    {"absorbed", "drop k_pe;shape q 3,2,8"},
    {"absorbed-paged", ""},
    {"absorbed-paged", "meta cache_format bf16"},
    {"expanded", ""},
    {"expanded", "drop mask;shape k 5,1,6;shape v 5,1,4"},
    {"fp8", ""},
    {"model1", ""},
    {"v41", ""},
    {"nvfp4", ""},
    {"empty", ""},
    {"empty", "shape cu_seqlens_q 3;shape seq_lens_kv 2"}, /* two requests with nothing at all */
};

static void assert_same_data(const mla_tensor *a, const mla_tensor *b, size_t bytes)
{
    assert_int_equal(!a->data, !b->data);
    if (a->data)
        assert_memory_equal(a->data, b->data, bytes);
}

static void assert_same_case(const struct mla_case *a, const struct mla_case *b)
{
    const mla_problem *p = &a->problem, *o = &b->problem;
    const mla_tensors *t = &a->tensors, *u = &b->tensors;
    char text[512], other[512];
    mla_problem_print(p, text, sizeof text);
    mla_problem_print(o, other, sizeof other);
    assert_string_equal(text, other);
    assert_true(p->softmax_scale == o->softmax_scale);
    assert_string_equal(a->fill, b->fill);
    assert_true(a->seed == b->seed);
    size_t n = (size_t)p->batch, T = (size_t)mla_total_q(p), H = (size_t)p->heads_q, S = 0, max = 0;
    size_t L = (size_t)p->kv_lora_rank, dr = (size_t)p->qk_rope_dim, dn = (size_t)p->qk_nope_dim;
    size_t q = mla_dtype_bytes(p->q_dtype), kv = mla_dtype_bytes(p->kv_dtype),
           dv = (size_t)p->v_dim;
    assert_memory_equal(p->cu_seqlens_q, o->cu_seqlens_q, 4 * (n + 1));
    assert_memory_equal(p->seq_lens_kv, o->seq_lens_kv, 4 * n);
    assert_memory_equal(a->complete, b->complete, n);
    for (size_t i = 0; i < n; i++) {
        S += (size_t)p->seq_lens_kv[i];
        max = (size_t)p->seq_lens_kv[i] > max ? (size_t)p->seq_lens_kv[i] : max;
    }
    bool expanded = p->form == MLA_FORM_EXPANDED;
    size_t row = expanded ? 0 : mla_cache_row_bytes(p->cache_format, (int64_t)L, (int64_t)dr);
    size_t element = row / (L + dr + (L + dr == 0)); /* plain formats */
    assert_same_data(&t->q_nope, &u->q_nope, T * H * dn * q);
    assert_same_data(&t->q_pe, &u->q_pe, T * H * dr * q);
    assert_same_data(&t->w_uk, &u->w_uk, H * dn * L * q);
    assert_same_data(&t->w_uv, &u->w_uv, H * dv * L * q);
    assert_same_data(&t->q, &u->q, T * H * (size_t)mla_d_qk(p) * q);
    assert_same_data(&t->k, &u->k, S * (size_t)p->heads_kv * (dn + dr) * kv);
    assert_same_data(&t->v, &u->v, S * (size_t)p->heads_kv * dv * kv);
    assert_same_data(&t->kv_c, &u->kv_c, S * L * element);
    assert_same_data(&t->k_pe, &u->k_pe, S * dr * element);
    assert_same_data(&t->kv_cache, &u->kv_cache, (size_t)(p->num_pages * p->page_size) * row);
    assert_same_data(&t->page_table, &u->page_table, n * (size_t)p->max_pages * 4);
    assert_same_data(&t->topk_indices, &u->topk_indices, T * (size_t)p->topk * 4);
    assert_same_data(&t->mask, &u->mask, T * ((max + 31) / 32) * 4);
    assert_int_equal(!t->topk_lens, !u->topk_lens);
    if (t->topk_lens)
        assert_memory_equal(t->topk_lens, u->topk_lens, 4 * T);
    assert_int_equal(!t->attn_sink, !u->attn_sink);
    if (t->attn_sink)
        assert_memory_equal(t->attn_sink, u->attn_sink, 4 * H);
}

static char *slurp(const char *path, size_t *size)
{
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    char *bytes = malloc(1 << 20);
    *size = fread(bytes, 1, 1 << 20, f);
    fclose(f);
    return bytes;
}

/* Load, save, load: the same case; save again: the same bytes. */
static void round_trips_bit_for_bit(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof accepted / sizeof *accepted; i++) {
        struct mla_case c, again;
        struct lines lines = {0};
        if (load(accepted[i].base, accepted[i].edits, &c, &lines) != MLA_OK)
            fail_msg("%s with %s: %s", accepted[i].base, accepted[i].edits, mla_last_error());
        assert_int_equal(lines.count, 0);
        assert_string_equal(c.text, "");
        assert_ok(mla_case_save(&c, test_dir_path("a")));
        assert_ok(mla_case_load(test_dir_path("a"), &again, keep_line, &lines));
        assert_int_equal(lines.count, 0);
        assert_same_case(&c, &again);
        mla_case_free(&c);
        assert_ok(mla_case_save(&again, test_dir_path("b")));
        mla_case_free(&again);
        size_t n, m;
        char *a = slurp(test_dir_path("a"), &n), *b = slurp(test_dir_path("b"), &m);
        assert_int_equal(n, m);
        assert_memory_equal(a, b, n);
        free(a);
        free(b);
    }
    unlink(test_dir_path("a"));
    unlink(test_dir_path("b"));
}

static void fields_are_as_the_file_says(void **state)
{
    (void)state;
    struct mla_case c;
    assert_ok(load("latent", "", &c, NULL));
    assert_int_equal(c.problem.form, MLA_FORM_LATENT);
    assert_int_equal(c.problem.batch, 3);
    assert_int_equal(c.problem.heads_q, 2);
    assert_int_equal(c.problem.kv_lora_rank, 8);
    assert_int_equal(c.problem.qk_nope_dim, 4);
    assert_int_equal(c.problem.qk_rope_dim, 2);
    assert_int_equal(c.problem.v_dim, 4);
    assert_int_equal(c.problem.q_dtype, MLA_BF16);
    assert_int_equal(c.problem.cache_format, MLA_CACHE_BF16);
    assert_int_equal(c.problem.page_size, 0);
    assert_int_equal(c.problem.topk, 4);
    assert_true(c.problem.has_topk_lens && c.problem.causal && !c.problem.has_sink);
    assert_true(c.problem.softmax_scale == 1 / sqrt(6.0));
    assert_int_equal(c.problem.lse_base, MLA_LSE_E);
    assert_string_equal(c.fill, "normal");
    assert_true(c.seed == 7);
    /* Row 0 sits at position 1 of 3 and lists 0 and 1; row 1 lists 2, 1, 0; row 2 lists 0, 1. */
    assert_true(c.complete[0] && c.complete[1] && c.complete[2]);
    mla_case_free(&c);
    assert_ok(load("absorbed-paged", "", &c, NULL));
    assert_int_equal(c.problem.form, MLA_FORM_ABSORBED);
    assert_int_equal(c.problem.kv_lora_rank, 8);
    assert_int_equal(c.problem.qk_rope_dim, 2);
    assert_int_equal(c.problem.q_dtype, MLA_F16);
    assert_int_equal(c.problem.cache_format, MLA_CACHE_BF16);
    assert_int_equal(c.problem.page_size, 2);
    assert_int_equal(c.problem.num_pages, 3);
    assert_int_equal(c.problem.max_pages, 2);
    assert_int_equal(c.problem.lse_base, MLA_LSE_2);
    assert_true(c.problem.softmax_scale == 0.25);
    mla_case_free(&c);
    assert_ok(load("expanded", "", &c, NULL));
    assert_int_equal(c.problem.form, MLA_FORM_EXPANDED);
    assert_int_equal(c.problem.heads_q, 4);
    assert_int_equal(c.problem.heads_kv, 2);
    assert_int_equal(mla_d_qk(&c.problem), 6);
    assert_int_equal(c.problem.q_dtype, MLA_F32);
    assert_int_equal(c.problem.kv_dtype, MLA_BF16);
    assert_true(c.problem.has_mask);
    assert_true(c.problem.softmax_scale == 1 / sqrt(6.0));
    mla_case_free(&c);
    assert_ok(load("v41", "", &c, NULL));
    assert_int_equal(c.problem.cache_format, MLA_CACHE_V41);
    assert_int_equal(c.problem.qk_rope_dim, 0);
    mla_case_free(&c);
}

static void unknown_names_are_warnings(void **state)
{
    (void)state;
    struct mla_case c;
    struct lines lines = {0};
    assert_ok(load("latent", "add kv_extra F64 3,2;meta colour blue", &c, &lines));
    assert_int_equal(lines.count, 2);
    assert_string_equal(lines.last, "FILE: metadata key 'colour' is unknown and ignored");
    mla_case_free(&c);
    lines.count = 0;
    assert_ok(load("latent", "meta fill a-fill-with-a-long-name", &c, &lines));
    assert_int_equal(lines.count, 1);
    assert_string_equal(c.fill, "");
    mla_case_free(&c);
    lines.count = 0;
    assert_ok(load("expanded", "meta kv_lora_rank 3;meta cache_format f16", &c, &lines));
    assert_int_equal(lines.count, 2);
    mla_case_free(&c);
    /* Names are made fit for a terminal, and there is an end to the lines. */
    struct test_file f;
    test_file_base(&f, "empty");
    for (int i = 0; i < 18; i++) {
        char edit[64];
        snprintf(edit, sizeof edit, "add \xc3\xa9\x7f%d U8 0", i);
        test_file_edit(&f, edit);
    }
    size_t size;
    unsigned char *bytes = test_file_bytes(&f, &size);
    lines.count = 0;
    assert_ok(mla_case_load_bytes(bytes, size, "FILE", &c, keep_line, &lines));
    assert_int_equal(lines.count, 17);
    assert_string_equal(lines.last, "FILE: 2 more warnings");
    mla_case_free(&c);
    free(bytes);
    test_file_free(&f);
}

/* Data at every byte offset: the case must hold it aligned. */
static void takes_data_at_any_offset(void **state)
{
    (void)state;
    struct mla_case c, want;
    assert_ok(load("absorbed", "", &want, NULL));
    struct test_file f;
    size_t size;
    test_file_base(&f, "absorbed");
    unsigned char *bytes = test_file_bytes(&f, &size);
    uint64_t header = 0;
    memcpy(&header, bytes, 8);
    for (size_t shift = 1; shift < 8; shift++) {
        size_t n = header + shift;
        unsigned char *moved = calloc(size + shift, 1);
        memcpy(moved, &n, sizeof n);
        memcpy(moved + 8, bytes + 8, header);
        memset(moved + 8 + header, ' ', shift);
        memcpy(moved + 8 + n, bytes + 8 + header, size - 8 - header);
        FILE *out = fopen(test_dir_path("moved"), "wb");
        assert_int_equal(fwrite(moved, 1, size + shift, out), size + shift);
        fclose(out);
        free(moved);
        assert_ok(mla_case_load(test_dir_path("moved"), &c, NULL, NULL));
        assert_int_equal((uintptr_t)c.tensors.q.data % 2, 0);
        assert_int_equal((uintptr_t)c.tensors.kv_c.data % 4, 0);
        assert_int_equal((uintptr_t)c.problem.cu_seqlens_q % 4, 0);
        assert_same_case(&c, &want);
        mla_case_free(&c);
    }
    unlink(test_dir_path("moved"));
    free(bytes);
    test_file_free(&f);
    mla_case_free(&want);
}

/* Saving gathers what has strides. */
static void saves_strided_tensors_packed(void **state)
{
    (void)state;
    static const char *const bases[] = {"latent", "absorbed-paged", "fp8", "model1"};
    for (size_t i = 0; i < sizeof bases / sizeof *bases; i++) {
        struct mla_case c, again;
        assert_ok(load(bases[i], "", &c, NULL));
        struct mla_case wide = c;
        const mla_problem *p = &c.problem;
        unsigned char *q_wide = calloc(1, 65536), *kv_wide = calloc(1, 65536);
        /* Rows of the query 7 elements further apart, its heads 3; records or pages further
         * apart. */
        mla_tensor *q = p->form == MLA_FORM_LATENT ? &wide.tensors.q_nope : &wide.tensors.q;
        size_t width = p->form == MLA_FORM_LATENT ? 4 : (size_t)mla_d_qk(p), H = (size_t)p->heads_q;
        size_t inner = width + 3, outer = H * inner + 7;
        for (size_t t = 0; t < (size_t)mla_total_q(p); t++)
            for (size_t h = 0; h < H; h++)
                memcpy(q_wide + 2 * (t * outer + h * inner),
                       (char *)q->data + 2 * (t * H + h) * width, 2 * width);
        *q = (mla_tensor){q_wide, {(int64_t)outer, (int64_t)inner}};
        bool flat = p->page_size == 0, bytes = mla_cache_row_bytes(p->cache_format, 1, 0) > 4;
        mla_tensor *kv = flat ? &wide.tensors.kv_c : &wide.tensors.kv_cache;
        size_t row = bytes ? mla_cache_row_bytes(p->cache_format, 512, 64)
                           : 2 * (size_t)(p->kv_lora_rank + (flat ? 0 : p->qk_rope_dim));
        size_t unit = bytes ? 1 : 2, block = row * (size_t)(flat ? 1 : p->page_size);
        for (size_t r = 0; r < (size_t)(flat ? 5 : p->num_pages); r++)
            memcpy(kv_wide + r * (block + 8), (char *)kv->data + r * block, block);
        *kv = (mla_tensor){kv_wide, {(int64_t)((block + 8) / unit), 0}};
        assert_ok(mla_case_save(&wide, test_dir_path("wide")));
        assert_ok(mla_case_load(test_dir_path("wide"), &again, NULL, NULL));
        assert_same_case(&c, &again);
        mla_case_free(&again);
        q->data = NULL;
        assert_refused(mla_case_save(&wide, test_dir_path("wide2")), MLA_ERR_ARGUMENT, "got NULL");
        mla_case_free(&c);
        free(q_wide);
        free(kv_wide);
        assert_int_equal(test_dir_files(), 1);
    }
    unlink(test_dir_path("wide"));
}

static void opens_files_and_refuses_the_rest(void **state)
{
    (void)state;
    struct mla_case c;
    assert_ok(load("latent", "", &c, NULL));
    assert_ok(mla_case_save(&c, test_dir_path("attend")));
    mla_case_free(&c);
    assert_ok(mla_case_open(test_dir_path("attend"), &c, NULL, NULL));
    mla_case_free(&c);
    assert_refused(mla_case_open(test_dir_path("absent"), &c, NULL, NULL), MLA_ERR_ARGUMENT,
                   "No such file");
    assert_refused(mla_case_open("", &c, NULL, NULL), MLA_ERR_ARGUMENT, "want a problem file");
    assert_refused(mla_case_open(test_dir_path("."), &c, NULL, NULL), MLA_ERR_ARGUMENT,
                   "a directory");
    assert_null(c.owned);
    mla_case_free(&c);
    mla_case_free(NULL);
    unlink(test_dir_path("attend"));
}

/* What the generator makes survives the file, in every form and cache format. */
static void generated_cases_round_trip(void **state)
{
    (void)state;
    static const char *const strings[] = {
        "attend form=latent batch=2q3s40,1q1s9 heads=2 rank=16 nope=8 rope=4 v=8 topk=8 seed=5",
        "attend form=latent batch=1q3s40 heads=2 rank=16 nope=8 rope=0 v=8 page=16 cache=f32",
        "attend form=absorbed batch=1q3s40,1q0s0 heads=2 rank=16 rope=4 page=7 base=2 sink=1",
        "attend form=absorbed batch=1q2s9 heads=2 rank=512 rope=64 page=4 cache=fp8_ds_mla",
        "attend form=absorbed batch=1q2s9 heads=2 rank=512 rope=64 page=4 cache=nvfp4_ds_mla",
        "attend form=absorbed batch=1q2s9 heads=2 rank=512 rope=0 page=4 cache=model1",
        "attend form=absorbed batch=1q2s9 heads=2 rank=512 rope=0 page=4 cache=v41 fill=large",
        "attend form=expanded batch=1q5s40 heads=4 heads_kv=2 nope=12 rope=0 v=8 mask=1",
    };
    for (size_t i = 0; i < sizeof strings / sizeof *strings; i++) {
        struct mla_case c, again;
        struct lines lines = {0};
        assert_ok(mla_case_open(strings[i], &c, NULL, NULL));
        /* The file does not say which dtype is wanted for out. */
        c.problem.out_dtype = MLA_F32;
        assert_ok(mla_case_save(&c, test_dir_path("g")));
        assert_ok(mla_case_load(test_dir_path("g"), &again, keep_line, &lines));
        assert_int_equal(lines.count, 0);
        assert_same_case(&c, &again);
        mla_case_free(&c);
        mla_case_free(&again);
        unlink(test_dir_path("g"));
    }
    struct mla_case c;
    assert_refused(mla_case_open("attend form=round", &c, NULL, NULL), MLA_ERR_ARGUMENT, "form");
    assert_null(c.owned);
}

static void every_allocation_of_a_case_may_fail(void **state)
{
    (void)state;
    for (int i = 0; test_file_bases[i]; i++) {
        struct mla_case c;
        struct test_file f;
        size_t size;
        test_file_base(&f, test_file_bases[i]);
        unsigned char *bytes = test_file_bytes(&f, &size);
        bool done = false;
        for (int64_t n = 1; !done; n++) {
            mla_alloc_fail_at(n);
            mla_status status = mla_case_load_bytes(bytes, size, "FILE", &c, NULL, NULL);
            mla_alloc_fail_at(0);
            done = status == MLA_OK;
            if (!done) {
                assert_int_equal(status, MLA_ERR_MEMORY);
                assert_null(c.owned);
            }
            assert_true(n < 2000);
        }
        done = false;
        for (int64_t n = 1; !done; n++) {
            mla_alloc_fail_at(n);
            mla_status status = mla_case_save(&c, test_dir_path("x"));
            mla_alloc_fail_at(0);
            done = status == MLA_OK;
            if (!done)
                assert_int_equal(status, MLA_ERR_MEMORY);
            assert_int_equal(test_dir_files(), done);
            assert_true(n < 2000);
        }
        mla_case_free(&c);
        done = false;
        for (int64_t n = 1; !done; n++) {
            mla_alloc_fail_at(n);
            mla_status status = mla_case_load(test_dir_path("x"), &c, NULL, NULL);
            mla_alloc_fail_at(0);
            done = status == MLA_OK;
            if (!done)
                assert_int_equal(status, MLA_ERR_MEMORY);
            assert_true(n < 2000);
        }
        mla_case_free(&c);
        unlink(test_dir_path("x"));
        free(bytes);
        test_file_free(&f);
    }
}

/* --------------------------------------------------------------------- results */

static void results_round_trip(void **state)
{
    (void)state;
    struct mla_case c;
    assert_ok(load("latent", "", &c, NULL));
    float out[3 * 2 * 4], lse[3 * 2], max[3 * 2];
    double bound[3 * 2 * 4];
    for (int i = 0; i < 24; i++)
        bound[i] = (out[i] = (float)i / 3) * 1e-3;
    for (int i = 0; i < 6; i++)
        max[i] = (lse[i] = i ? (float)-i : -INFINITY) - 1;
    struct mla_result_file r = {.out_dtype = MLA_F32,
                                .lse_dtype = MLA_F32,
                                .out = out,
                                .lse = lse,
                                .max_logits = max,
                                .bound = bound};
    struct mla_result_file back;
    const mla_request_info requests[3] = {{.route = MLA_ROUTE_DENSE_MHA, .kernel = "one"},
                                          {.route = MLA_ROUTE_DENSE_MHA, .kernel = "one"},
                                          {.route = MLA_ROUTE_SPARSE_MQA, .kernel = "two"}};
    struct lines lines = {0};
    assert_ok(mla_result_save(test_dir_path("r"), &c.problem, &r, MLA_BACKEND_CPU, requests));
    assert_ok(mla_result_load(test_dir_path("r"), &c.problem, &back, keep_line, &lines));
    assert_int_equal(lines.count, 0);
    assert_int_equal(back.out_dtype, MLA_F32);
    assert_int_equal(back.lse_dtype, MLA_F32);
    assert_memory_equal(back.out, out, sizeof out);
    assert_memory_equal(back.lse, lse, sizeof lse);
    assert_memory_equal(back.max_logits, max, sizeof max);
    assert_memory_equal(back.bound, bound, sizeof bound);
    assert_string_equal(back.version, mla_version());
    assert_string_equal(back.backend, "cpu");
    assert_string_equal(back.route, "dense-mha,dense-mha,sparse-mqa");
    assert_string_equal(back.kernel, "one,one,two");
    mla_result_free(&back);
    r.lse = r.max_logits = r.bound = NULL;
    assert_ok(mla_result_save(test_dir_path("r"), &c.problem, &r, MLA_BACKEND_CPU, requests));
    assert_ok(mla_result_load(test_dir_path("r"), &c.problem, &back, NULL, NULL));
    assert_true(back.out && !back.lse && !back.max_logits && !back.bound);
    mla_result_free(&back);
    /* Against another problem the shape is wrong. */
    struct mla_case other;
    assert_ok(load("absorbed", "", &other, NULL));
    assert_refused(mla_result_load(test_dir_path("r"), &other.problem, &back, NULL, NULL),
                   MLA_ERR_ARGUMENT, "out: got shape [3, 2, 4], want [3, 2, 8]");
    mla_case_free(&other);
    r.out = NULL;
    unlink(test_dir_path("r"));
    assert_refused(mla_result_save(test_dir_path("r"), &c.problem, &r, MLA_BACKEND_CPU, requests),
                   MLA_ERR_ARGUMENT, "out: got no data");
    assert_int_equal(test_dir_files(), 0);
    mla_case_free(&c);
}

static mla_status load_result(const mla_problem *p, const char *edits, struct mla_result_file *r,
                              struct lines *lines)
{
    struct test_file f = {0};
    size_t size;
    test_file_edit(&f, edits);
    unsigned char *bytes = test_file_bytes(&f, &size);
    mla_status status = mla_result_load_bytes(bytes, size, "FILE", p, r, keep_line, lines);
    free(bytes);
    test_file_free(&f);
    return status;
}

static void results_of_other_programs(void **state)
{
    (void)state;
    static const struct {
        const char *edits, *fragment;
    } bad[] = {
        {"add lse F32 3,2", "out: got no such tensor"},
        {"add out I32 3,2,4", "out: got dtype I32, want BF16, F16, F32 or F64"},
        {"add out F32 3,8", "out: got shape [3, 8], want [3, 2, 4]"},
        {"add out F32 3,4,2", "out: got shape [3, 4, 2], want [3, 2, 4]"},
        {"add out F32 2,2,4", "out: got shape [2, 2, 4], want [3, 2, 4]"},
        {"add out F32 3,2,4;add lse F32 2,3", "lse: got shape [2, 3], want [3, 2]"},
        {"add out F32 3,2,4;add lse U8 3,2", "lse: got dtype U8"},
        {"add out F32 3,2,4;add max_logits F32 3,2,1", "max_logits: got shape [3, 2, 1]"},
        {"add out F32 3,2,4;add bound F32 3,2,4", "bound: got dtype F32, want F64"},
        {"add out F32 3,2,4;add bound F64 3,2", "bound: got shape [3, 2], want [3, 2, 4]"},
    };
    struct mla_case c;
    struct mla_result_file r;
    struct lines lines = {0};
    assert_ok(load("latent", "", &c, NULL));
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_refused(load_result(&c.problem, bad[i].edits, &r, &lines), MLA_ERR_ARGUMENT,
                       bad[i].fragment);
        assert_non_null(strstr(mla_last_error(), "FILE"));
        assert_null(r.owned);
    }
    /* 16-bit statistics are widened; mixed ones go to the wider. */
    assert_ok(load_result(&c.problem,
                          "add out BF16 3,2,4;add lse BF16 3,2;set lse 0 1065353216;"
                          "add max_logits F64 3,2;add extra F32 1;meta colour blue",
                          &r, &lines));
    assert_int_equal(lines.count, 2);
    assert_int_equal(r.out_dtype, MLA_BF16);
    assert_int_equal(r.lse_dtype, MLA_F64);
    assert_true(((const double *)r.lse)[0] == 0 && ((const double *)r.lse)[1] == 1);
    mla_result_free(&r);
    assert_ok(
        load_result(&c.problem, "add out F64 3,2,4;add lse F16 3,2;set lse 0 15360", &r, NULL));
    assert_int_equal(r.lse_dtype, MLA_F32);
    assert_true(((const float *)r.lse)[0] == 1);
    assert_null(r.version);
    mla_result_free(&r);
    mla_case_free(&c);
}

static void every_allocation_of_a_result_may_fail(void **state)
{
    (void)state;
    struct mla_case c;
    assert_ok(load("latent", "", &c, NULL));
    float out[3 * 2 * 4] = {0}, lse[3 * 2] = {0};
    struct mla_result_file r = {.out_dtype = MLA_F32, .lse_dtype = MLA_F32, .out = out, .lse = lse};
    const mla_request_info requests[3] = {{.kernel = "k"}, {.kernel = "k"}, {.kernel = "k"}};
    bool done = false;
    for (int64_t n = 1; !done; n++) {
        mla_alloc_fail_at(n);
        mla_status status =
            mla_result_save(test_dir_path("r"), &c.problem, &r, MLA_BACKEND_CPU, requests);
        mla_alloc_fail_at(0);
        done = status == MLA_OK;
        if (!done)
            assert_int_equal(status, MLA_ERR_MEMORY);
        assert_int_equal(test_dir_files(), done);
    }
    done = false;
    for (int64_t n = 1; !done; n++) {
        struct mla_result_file back;
        mla_alloc_fail_at(n);
        mla_status status = mla_result_load(test_dir_path("r"), &c.problem, &back, NULL, NULL);
        mla_alloc_fail_at(0);
        done = status == MLA_OK;
        if (!done) {
            assert_int_equal(status, MLA_ERR_MEMORY);
            assert_null(back.owned);
        }
        mla_result_free(&back);
    }
    unlink(test_dir_path("r"));
    mla_case_free(&c);
}

/* ------------------------------------------------------------------ seed corpus */

/* tests/fuzz/corpus/problem_file holds the bases as files. Set MLA_WRITE_CORPUS to write them
 * anew. */
static void corpus_is_up_to_date(void **state)
{
    (void)state;
    for (int i = 0; test_file_bases[i]; i++) {
        char path[600];
        snprintf(path, sizeof path, "%s/tests/fuzz/corpus/problem_file/%s.safetensors",
                 MLA_SOURCE_DIR, test_file_bases[i]);
        struct test_file f;
        size_t size, stored;
        test_file_base(&f, test_file_bases[i]);
        unsigned char *bytes = test_file_bytes(&f, &size);
        if (getenv("MLA_WRITE_CORPUS")) {
            FILE *out = fopen(path, "wb");
            assert_non_null(out);
            fwrite(bytes, 1, size, out);
            fclose(out);
        }
        char *there = slurp(path, &stored);
        assert_int_equal(stored, size);
        assert_memory_equal(there, bytes, size);
        assert_true(size < 4096);
        free(there);
        free(bytes);
        test_file_free(&f);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(refuses_every_broken_rule),
        cmocka_unit_test(round_trips_bit_for_bit),
        cmocka_unit_test(fields_are_as_the_file_says),
        cmocka_unit_test(unknown_names_are_warnings),
        cmocka_unit_test(takes_data_at_any_offset),
        cmocka_unit_test(saves_strided_tensors_packed),
        cmocka_unit_test(opens_files_and_refuses_the_rest),
        cmocka_unit_test(generated_cases_round_trip),
        cmocka_unit_test(every_allocation_of_a_case_may_fail),
        cmocka_unit_test(results_round_trip),
        cmocka_unit_test(results_of_other_programs),
        cmocka_unit_test(every_allocation_of_a_result_may_fail),
        cmocka_unit_test(corpus_is_up_to_date),
    };
    return cmocka_run_group_tests(tests, test_dir_make, test_dir_remove);
}
