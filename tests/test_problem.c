/* SPDX-License-Identifier: Apache-2.0 */
/* Problems: defaults, models, every refused field, strings there and back. */
#include "support.h"

#include "common/problem.h"
#include "common/status.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static const int32_t cu_seqlens_q[] = {0, 2, 5};
static const int32_t seq_lens_kv[] = {4, 3};

static mla_problem small(void)
{
    mla_problem p;
    assert_ok(mla_problem_init_model(&p, "tiny"));
    p.batch = 2;
    p.cu_seqlens_q = cu_seqlens_q;
    p.seq_lens_kv = seq_lens_kv;
    return p;
}

static mla_problem packed(mla_cache_format format, mla_form form, int64_t rope)
{
    mla_problem p = small();
    p.cache_format = format;
    p.form = form;
    p.kv_lora_rank = 512;
    p.qk_rope_dim = rope;
    p.page_size = 2;
    p.num_pages = 4;
    p.max_pages = 2;
    return p;
}

static void test_defaults(void **state)
{
    (void)state;
    mla_problem p;
    assert_ok(mla_problem_init(&p));
    assert_int_equal(p.heads_q, 128);
    assert_int_equal(p.kv_lora_rank, 512);
    assert_true(p.causal);
    assert_float_equal(p.softmax_scale, 0.07216878364870322, 1e-16);
    assert_ok(mla_problem_check(&p)); /* an empty batch is a problem too */
    assert_refused(mla_problem_init(NULL), MLA_ERR_ARGUMENT, "problem");
}

static void test_models(void **state)
{
    (void)state;
    mla_problem p;
    int count = 0;
    for (; mla_model_name(count); count++) {
        assert_ok(mla_problem_init_model(&p, mla_model_name(count)));
        assert_ok(mla_problem_check(&p));
    }
    assert_true(count >= 5);
    assert_null(mla_model_name(-1));
    assert_ok(mla_problem_init_model(&p, "deepseek-v3.2"));
    assert_int_equal(p.topk, 2048);
    assert_true(fabs(p.softmax_scale - 0.1352338) < 1e-7);
    assert_ok(mla_problem_init_model(&p, "glm-5"));
    assert_true(p.softmax_scale == 0.0625);
    assert_ok(mla_problem_init_model(&p, "kimi-k2"));
    assert_true(fabs(p.softmax_scale - 0.130861) < 1e-6);
    assert_refused(mla_problem_init_model(&p, "gpt"), MLA_ERR_ARGUMENT, "want one of");
    assert_refused(mla_problem_init_model(&p, NULL), MLA_ERR_ARGUMENT, "NULL");
}

#define REFUSES(setup, text)                                                                       \
    do {                                                                                           \
        mla_problem p = small();                                                                   \
        setup;                                                                                     \
        assert_refused(mla_problem_check(&p), MLA_ERR_ARGUMENT, text);                             \
    } while (0)

static void test_refused_fields(void **state)
{
    (void)state;
    static const int32_t falling[] = {0, 3, 2}, late[] = {1, 2, 5}, negative[] = {4, -1},
                         short_kv[] = {4, 2};
    assert_refused(mla_problem_check(NULL), MLA_ERR_ARGUMENT, "problem");
    REFUSES(p.form = (mla_form)3, "form: got 3");
    REFUSES(p.q_dtype = MLA_F64, "q_dtype: got 3");
    REFUSES(p.out_dtype = (mla_dtype)9, "out_dtype: got 9");
    REFUSES(p.lse_base = (mla_lse_base)2, "lse_base: got 2");
    REFUSES(p.cache_format = (mla_cache_format)7, "cache_format: got 7");
    REFUSES((p.form = MLA_FORM_EXPANDED, p.kv_dtype = MLA_F64), "kv_dtype: got 3");
    REFUSES(p.heads_q = 0, "heads_q: got 0");
    REFUSES(p.heads_q = 65537, "heads_q: got 65537");
    REFUSES(p.heads_kv = 2, "heads_kv: got 2");
    REFUSES((p.form = MLA_FORM_EXPANDED, p.heads_kv = 3), "heads_kv: got 3");
    REFUSES(p.kv_lora_rank = 0, "kv_lora_rank: got 0");
    REFUSES(p.qk_nope_dim = -1, "qk_nope_dim: got -1");
    REFUSES(p.qk_rope_dim = -1, "qk_rope_dim: got -1");
    REFUSES(p.v_dim = 0, "v_dim: got 0");
    REFUSES(p.softmax_scale = NAN, "softmax_scale: got nan");
    REFUSES(p.softmax_scale = INFINITY, "softmax_scale: got inf");
    REFUSES(p.batch = -1, "batch: got -1");
    REFUSES(p.cu_seqlens_q = NULL, "cu_seqlens_q: got NULL");
    REFUSES(p.seq_lens_kv = NULL, "seq_lens_kv: got NULL");
    REFUSES(p.cu_seqlens_q = late, "cu_seqlens_q[0]: got 1");
    REFUSES(p.cu_seqlens_q = falling, "cu_seqlens_q[2]: got 2");
    REFUSES(p.seq_lens_kv = negative, "seq_lens_kv[1]: got -1");
    REFUSES(p.seq_lens_kv = short_kv, "seq_lens_kv[1]: got 2");
    REFUSES(p.page_size = -1, "page_size: got -1");
    REFUSES((p.form = MLA_FORM_EXPANDED, p.page_size = 64), "page_size: got 64");
    REFUSES((p.page_size = 2, p.num_pages = -1), "num_pages: got -1");
    REFUSES((p.page_size = 2, p.max_pages = -1), "max_pages: got -1");
    REFUSES((p.page_size = 2, p.max_pages = 1), "max_pages: got 1");
    REFUSES((p.page_size = INT32_MAX, p.max_pages = 1, p.num_pages = INT32_MAX), "num_pages");
    REFUSES(p.topk = -1, "topk: got -1");
    REFUSES((p.has_mask = true), "has_mask");
    REFUSES((p.topk = 0, p.has_topk_lens = true), "has_topk_lens");
    REFUSES((p.topk = 0, p.indices_complete = true), "indices_complete");
}

static void test_lengths_without_causality(void **state)
{
    (void)state;
    static const int32_t kv[] = {1, 0};
    mla_problem p = small();
    p.seq_lens_kv = kv;
    assert_refused(mla_problem_check(&p), MLA_ERR_ARGUMENT, "seq_lens_kv[0]: got 1");
    p.causal = false;
    assert_ok(mla_problem_check(&p));
    static const int32_t none[] = {0, 0}; /* no keys at all is legal with causality too */
    p.causal = true;
    p.seq_lens_kv = none;
    assert_ok(mla_problem_check(&p));
}

static void test_packed_formats(void **state)
{
    (void)state;
    mla_problem p = packed(MLA_CACHE_FP8_DS_MLA, MLA_FORM_LATENT, 64);
    assert_ok(mla_problem_check(&p));
    p.page_size = 0;
    assert_refused(mla_problem_check(&p), MLA_ERR_ARGUMENT, "page_size: got 0");
    p = packed(MLA_CACHE_FP8_DS_MLA, MLA_FORM_LATENT, 64);
    p.kv_lora_rank = 256;
    assert_refused(mla_problem_check(&p), MLA_ERR_ARGUMENT, "kv_lora_rank: got 256");
    p = packed(MLA_CACHE_NVFP4_DS_MLA, MLA_FORM_ABSORBED, 32);
    assert_refused(mla_problem_check(&p), MLA_ERR_ARGUMENT, "qk_rope_dim: got 32");
    for (int format = MLA_CACHE_MODEL1; format <= MLA_CACHE_V41; format++) {
        p = packed((mla_cache_format)format, MLA_FORM_ABSORBED, 0);
        assert_ok(mla_problem_check(&p));
        p.form = MLA_FORM_LATENT;
        assert_refused(mla_problem_check(&p), MLA_ERR_ARGUMENT, "form: got latent");
        p = packed((mla_cache_format)format, MLA_FORM_ABSORBED, 64);
        assert_refused(mla_problem_check(&p), MLA_ERR_ARGUMENT, "qk_rope_dim: got 64, want 0");
    }
}

static void test_batch_grammar(void **state)
{
    (void)state;
    mla_problem p = small();
    assert_ok(mla_batch_parse(&p, "2q512s8k,q2k,3q1s4096"));
    assert_int_equal(p.batch, 6);
    assert_int_equal(p.cu_seqlens_q[2], 1024);
    assert_int_equal(p.cu_seqlens_q[3], 3072);
    assert_int_equal(p.cu_seqlens_q[6], 3075);
    assert_int_equal(p.seq_lens_kv[0], 8192);
    assert_int_equal(p.seq_lens_kv[2], 2048);
    assert_int_equal(p.seq_lens_kv[5], 4096);
    assert_ok(mla_batch_parse(&p, ""));
    assert_int_equal(p.batch, 0);
    static const char *const bad[] = {
        "q",     "1",    "q1,", ",q1",    "q1s",       "q1k2",      "qq1",
        "q-1",   "q1 ",  "x",   "q1s2s3", "q3000000k", "9999999q1", "4000000q4000000",
        "q1;q1", "q0x10"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_refused(mla_batch_parse(&p, bad[i]), MLA_ERR_ARGUMENT, "batch: got");
    mla_problem_release(&p);
    mla_problem_release(&p);
    mla_problem_release(NULL);
}

static void test_parse(void **state)
{
    (void)state;
    mla_problem p;
    char rest[64];
    assert_ok(mla_problem_parse(&p,
                                "attend form=absorbed b=2 sq=1 skv=4096 hq=128 topk=2048 page=64 "
                                "cache=fp8 seed=7 fill=large base=2",
                                rest, sizeof rest));
    assert_string_equal(rest, "seed=7 fill=large");
    assert_int_equal(p.form, MLA_FORM_ABSORBED);
    assert_int_equal(p.batch, 2);
    assert_int_equal(p.cache_format, MLA_CACHE_FP8_DS_MLA);
    assert_int_equal(p.num_pages, 128);
    assert_int_equal(p.max_pages, 64);
    assert_int_equal(p.lse_base, MLA_LSE_2);
    mla_problem_release(&p);
    assert_ok(mla_problem_parse(&p, "attend heads=3 model=glm-5 batch=q1k", NULL, 0));
    assert_int_equal(p.heads_q, 3); /* words beat the model wherever they stand */
    assert_int_equal(p.v_dim, 256);
    assert_true(p.softmax_scale == 0.0625);
    mla_problem_release(&p);
    static const struct {
        const char *text, *wanted;
    } bad[] = {
        {"", "begins with 'attend'"},
        {"attendx", "begins with 'attend'"},
        {"attend seed=7", "'seed=7'"},
        {"attend heads", "'heads'"},
        {"attend heads=x", "heads: got 'x'"},
        {"attend heads=", "heads: got ''"},
        {"attend causal=2", "causal: got '2'"},
        {"attend base=10", "base: got '10'"},
        {"attend scale=nan", "scale: got 'nan'"},
        {"attend scale=1x", "scale: got '1x'"},
        {"attend form=mha", "form: got 'mha'"},
        {"attend dtype=f64", "dtype: got 'f64'"},
        {"attend cache=fp4", "cache_format: got 'fp4'"},
        {"attend model=gpt", "model: got 'gpt'"},
        {"attend batch=q1 b=1", "batch: got it beside"},
        {"attend sq=4 skv=2", "seq_lens_kv[0]: got 2"},
        {"attend mask=1 topk=4", "has_mask"},
        {"attend heads=99999999999999999999", "heads: got"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_refused(mla_problem_parse(&p, bad[i].text, NULL, 0), MLA_ERR_ARGUMENT,
                       bad[i].wanted);
        assert_null(p.storage);
    }
    assert_refused(mla_problem_parse(&p, "attend aa=1 bb=2", rest, 6), MLA_ERR_ARGUMENT, "rest");
    assert_refused(mla_problem_parse(NULL, "attend", NULL, 0), MLA_ERR_ARGUMENT, "problem");
    assert_refused(mla_problem_parse(&p, NULL, NULL, 0), MLA_ERR_ARGUMENT, "text");
}

static void test_print_reads_back(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "attend",
        "attend batch=",
        "attend model=tiny batch=3q4,q5s9,q5s9 cache=f32 page=3 topk_lens=1 complete=1 sink=1",
        "attend form=absorbed b=2 sq=2 skv=77 heads=12 rank=64 rope=0 dtype=f16 base=2 scale=0.3",
        "attend form=expanded b=1 sq=5 heads=8 heads_kv=2 nope=48 rope=0 v=32 kv_dtype=f32 mask=1",
        "attend form=absorbed cache=model1 rope=0 page=64 skv=100 causal=0 lse=0 max_logits=1",
    };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        mla_problem p, q;
        char first[512], second[512], tiny[8];
        assert_ok(mla_problem_parse(&p, texts[i], NULL, 0));
        size_t length = mla_problem_print(&p, first, sizeof first);
        assert_int_equal(length, strlen(first));
        assert_int_equal(mla_problem_print(&p, NULL, 0), length);
        assert_int_equal(mla_problem_print(&p, tiny, sizeof tiny), length);
        assert_string_equal(tiny, "attend ");
        assert_ok(mla_problem_parse(&q, first, NULL, 0));
        mla_problem_print(&q, second, sizeof second);
        assert_string_equal(first, second);
        assert_int_equal(p.batch, q.batch);
        assert_true(p.softmax_scale == q.softmax_scale && p.causal == q.causal &&
                    p.out_dtype == q.out_dtype && p.max_pages == q.max_pages &&
                    p.kv_dtype == q.kv_dtype && p.cache_format == q.cache_format);
        mla_problem_release(&p);
        mla_problem_release(&q);
    }
}

static void test_names(void **state)
{
    (void)state;
    mla_route route = MLA_ROUTE_AUTO;
    mla_dtype dtype;
    assert_ok(mla_route_parse("sparse-mqa", &route));
    assert_int_equal(route, MLA_ROUTE_SPARSE_MQA);
    assert_refused(mla_route_parse("mqa", &route), MLA_ERR_ARGUMENT,
                   "route: got 'mqa', want one of auto, dense-mha");
    assert_int_equal(route, MLA_ROUTE_SPARSE_MQA);
    assert_refused(mla_dtype_parse(NULL, &dtype), MLA_ERR_ARGUMENT, "dtype: got NULL");
    assert_refused(mla_dtype_parse("bf16", NULL), MLA_ERR_ARGUMENT, "out");
    assert_string_equal(mla_cache_format_name(MLA_CACHE_V41), "v41");
    assert_string_equal(mla_form_name((mla_form)77), "unknown");
    assert_string_equal(mla_status_name(MLA_ERR_NO_DEVICE), "MLA_ERR_NO_DEVICE");
    assert_string_equal(mla_status_name((mla_status)99), "MLA_STATUS_UNKNOWN");
    assert_string_equal(mla_version(), "0.1.0");
}

static void test_alloc_failures(void **state)
{
    (void)state;
    for (int64_t n = 1;; n++) {
        mla_problem p;
        mla_alloc_fail_at(n);
        mla_status status = mla_problem_parse(&p, "attend batch=2q4s9 topk=4", NULL, 0);
        mla_alloc_fail_at(0);
        if (status == MLA_OK) {
            mla_problem_release(&p);
            assert_true(n > 1);
            break;
        }
        assert_int_equal(status, MLA_ERR_MEMORY);
        assert_null(p.storage);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),       cmocka_unit_test(test_models),
        cmocka_unit_test(test_refused_fields), cmocka_unit_test(test_lengths_without_causality),
        cmocka_unit_test(test_packed_formats), cmocka_unit_test(test_batch_grammar),
        cmocka_unit_test(test_parse),          cmocka_unit_test(test_print_reads_back),
        cmocka_unit_test(test_names),          cmocka_unit_test(test_alloc_failures),
    };
    return cmocka_run_group_tests_name("problem", tests, NULL, NULL);
}
