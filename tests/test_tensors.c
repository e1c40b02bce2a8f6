/* SPDX-License-Identifier: Apache-2.0 */
/* Tensors against their problem: layout of every tensor, contents on the host, lse conventions. */
#include "support.h"

#include "common/status.h"
#include "common/tensors.h"

#include <math.h>
#include <string.h>

static const int32_t cu_seqlens_q[] = {0, 2, 3};
static const int32_t seq_lens_kv[] = {3, 2};

/* Room for any tensor of the tiny problems below; contents do not matter to layout checks. */
static _Alignas(64) float room[1 << 16];
static int32_t pages[2][2], lists[3][4], lens[3], run_lens[2];
static float sinks[4];

static mla_problem problem(mla_form form)
{
    mla_problem p;
    assert_ok(mla_problem_init_model(&p, "tiny"));
    p.form = form;
    p.batch = 2;
    p.cu_seqlens_q = cu_seqlens_q;
    p.seq_lens_kv = seq_lens_kv;
    p.q_dtype = p.kv_dtype = p.out_dtype = MLA_F32;
    p.cache_format = MLA_CACHE_F32;
    p.topk = 4;
    p.has_topk_lens = p.has_sink = p.wants_max_logits = true;
    return p;
}

static mla_tensors tensors(void)
{
    const mla_tensor t = {.data = room};
    mla_tensors all = {t, t, t, t, t, t, t, t, t, t, t, NULL, t, t, NULL, NULL, t, t, t, false};
    static const int32_t first[3][4] = {{0, 1, -1, 9}, {2, 1, 0, -7}, {1, 0, 5, 5}};
    memcpy(lists, first, sizeof lists);
    pages[0][0] = 2, pages[0][1] = 0, pages[1][0] = 1, pages[1][1] = 77; /* last one unused */
    for (int i = 0; i < 3; i++)
        lens[i] = 4;
    memset(sinks, 0, sizeof sinks);
    all.page_table.data = pages;
    all.topk_indices.data = lists;
    all.topk_lens = lens;
    all.attn_sink = sinks;
    return all;
}

#define LAYOUT_REFUSES(form_, setup, text)                                                         \
    do {                                                                                           \
        mla_problem p = problem(form_);                                                            \
        mla_tensors t = tensors();                                                                 \
        assert_ok(mla_tensors_layout(&p, &t, true));                                               \
        setup;                                                                                     \
        assert_refused(mla_tensors_layout(&p, &t, true), MLA_ERR_ARGUMENT, text);                  \
    } while (0)

static void page(mla_problem *p)
{
    p->page_size = 2;
    p->num_pages = 3;
    p->max_pages = 2;
}

static void test_missing(void **state)
{
    (void)state;
#define MISSING(form, name) LAYOUT_REFUSES(form, t.name.data = NULL, #name ": got NULL")
    MISSING(MLA_FORM_LATENT, q_nope);
    MISSING(MLA_FORM_LATENT, q_pe);
    MISSING(MLA_FORM_LATENT, w_uk);
    MISSING(MLA_FORM_LATENT, w_uv);
    MISSING(MLA_FORM_LATENT, kv_c);
    MISSING(MLA_FORM_LATENT, k_pe);
    MISSING(MLA_FORM_ABSORBED, q);
    MISSING(MLA_FORM_EXPANDED, q);
    MISSING(MLA_FORM_EXPANDED, k);
    MISSING(MLA_FORM_EXPANDED, v);
    MISSING(MLA_FORM_LATENT, topk_indices);
    MISSING(MLA_FORM_LATENT, out);
    MISSING(MLA_FORM_LATENT, lse);
    MISSING(MLA_FORM_LATENT, max_logits);
    LAYOUT_REFUSES(MLA_FORM_LATENT, t.topk_lens = NULL, "topk_lens: got NULL");
    LAYOUT_REFUSES(MLA_FORM_LATENT, t.attn_sink = NULL, "attn_sink: got NULL");
    LAYOUT_REFUSES(MLA_FORM_LATENT, (page(&p), t.kv_cache.data = NULL), "kv_cache: got NULL");
    LAYOUT_REFUSES(MLA_FORM_LATENT, (page(&p), t.page_table.data = NULL), "page_table: got NULL");
    LAYOUT_REFUSES(MLA_FORM_LATENT, (p.topk = 0, p.has_mask = true, t.mask.data = NULL),
                   "mask: got NULL");
}

static void test_strides(void **state)
{
    (void)state;
    LAYOUT_REFUSES(MLA_FORM_LATENT, t.q_nope.stride[1] = 31, "q_nope: got stride[1] 31, want 0 or");
    LAYOUT_REFUSES(MLA_FORM_LATENT, t.q_nope.stride[0] = 127, "q_nope: got stride[0] 127");
    LAYOUT_REFUSES(MLA_FORM_LATENT, t.q_nope.stride[0] = -128, "q_nope: got stride[0] -128");
    LAYOUT_REFUSES(MLA_FORM_LATENT, t.kv_c.stride[0] = 63, "kv_c: got stride[0] 63");
    LAYOUT_REFUSES(MLA_FORM_LATENT, t.out.stride[0] = INT64_MAX / 2, "out: got stride[0]");
    /* Products of strides that wrap around in 64 bits. */
    LAYOUT_REFUSES(MLA_FORM_LATENT, t.q_nope.stride[1] = INT64_MAX / 2, "q_nope: got stride[1]");
    LAYOUT_REFUSES(MLA_FORM_LATENT, t.q_nope.stride[1] = INT64_C(1) << 62, "q_nope: got stride[1]");
    LAYOUT_REFUSES(MLA_FORM_LATENT, t.lse.stride[0] = INT64_MAX / 2, "lse: got strides");
    LAYOUT_REFUSES(MLA_FORM_LATENT, t.lse.stride[1] = INT64_C(1) << 62, "lse: got strides");
    LAYOUT_REFUSES(MLA_FORM_LATENT, t.lse.stride[1] = -1, "lse: got strides");
    LAYOUT_REFUSES(MLA_FORM_LATENT, t.q_pe.data = (char *)room + 2, "q_pe: got address");
    LAYOUT_REFUSES(MLA_FORM_LATENT, t.topk_indices.stride[0] = 3, "topk_indices: got stride[0] 3");
    mla_problem p = problem(MLA_FORM_LATENT);
    mla_tensors t = tensors();
    t.lse.stride[0] = 1, t.lse.stride[1] = 3; /* [H, T] is fine */
    assert_ok(mla_tensors_layout(&p, &t, true));
    p.qk_rope_dim = 0;
    t.q_pe.data = t.k_pe.data = NULL; /* absent with dr = 0 */
    assert_ok(mla_tensors_layout(&p, &t, true));
    p.wants_lse = p.wants_max_logits = false;
    t.lse.data = t.max_logits.data = NULL;
    assert_ok(mla_tensors_layout(&p, &t, true));
}

static void test_packed_alignment(void **state)
{
    (void)state;
    mla_problem p = problem(MLA_FORM_ABSORBED);
    mla_tensors t = tensors();
    page(&p);
    p.kv_lora_rank = 512;
    p.qk_rope_dim = 64;
    p.cache_format = MLA_CACHE_FP8_DS_MLA;
    assert_ok(mla_tensors_layout(&p, &t, true));
    t.kv_cache.stride[1] = 658;
    assert_refused(mla_tensors_layout(&p, &t, true), MLA_ERR_ARGUMENT, "multiples of 4 bytes");
    t.kv_cache.stride[1] = 652;
    assert_refused(mla_tensors_layout(&p, &t, true), MLA_ERR_ARGUMENT, "stride[1] 652");
    t.kv_cache.stride[1] = 0;
    t.kv_cache.data = (char *)room + 1;
    assert_refused(mla_tensors_layout(&p, &t, true), MLA_ERR_ARGUMENT, "kv_cache: got address");
    p.qk_rope_dim = 0;
    p.cache_format = MLA_CACHE_MODEL1;
    t.kv_cache.data = room;
    t.kv_cache.stride[0] = 2 * 584 - 2;
    assert_refused(mla_tensors_layout(&p, &t, true), MLA_ERR_ARGUMENT, "want 0 or at least 1168");
    t.kv_cache.stride[0] = 1728;
    assert_ok(mla_tensors_layout(&p, &t, true));
}

static void test_empty(void **state)
{
    (void)state;
    static const int32_t none[] = {0, 0, 0};
    mla_problem p = problem(MLA_FORM_LATENT);
    const mla_tensors nothing = {0};
    p.cu_seqlens_q = none;
    p.seq_lens_kv = none;
    p.has_topk_lens = p.has_sink = false;
    assert_ok(mla_tensors_layout(&p, &nothing, true));
    assert_ok(mla_tensors_check(&p, &nothing, NULL));
    p.batch = 0;
    assert_ok(mla_tensors_check(&p, &nothing, NULL));
}

static void test_contents(void **state)
{
    (void)state;
    bool complete[2];
    mla_problem p = problem(MLA_FORM_LATENT);
    mla_tensors t = tensors();
    page(&p);
    assert_ok(mla_tensors_check(&p, &t, complete));
    /* Request 0 has 3 keys: row 0 sees 0 and 1, row 1 all three; request 1 has 2. All listed. */
    assert_true(complete[0] && complete[1]);
    t.out.data = NULL; /* outputs are not looked at */
    assert_ok(mla_tensors_check(&p, &t, complete));
    lists[1][1] = 9; /* row 1 loses key 1 */
    assert_ok(mla_tensors_check(&p, &t, complete));
    assert_true(!complete[0] && complete[1]);
    lists[1][1] = 2;
    assert_refused(mla_tensors_check(&p, &t, complete), MLA_ERR_ARGUMENT,
                   "topk_indices[1][1]: got key 2 a second time");
    lens[1] = 1; /* the second mention no longer counts */
    assert_ok(mla_tensors_check(&p, &t, complete));
    assert_false(complete[0]);
    lists[0][1] = lists[0][2] = 2; /* twice in the causal future of row 0: ignored entries */
    assert_ok(mla_tensors_check(&p, &t, complete));
    lens[2] = 5;
    assert_refused(mla_tensors_check(&p, &t, complete), MLA_ERR_ARGUMENT, "topk_lens[2]: got 5");
    lens[2] = -1;
    assert_refused(mla_tensors_check(&p, &t, complete), MLA_ERR_ARGUMENT, "topk_lens[2]: got -1");
    lens[2] = 4;
    pages[0][1] = 3;
    assert_refused(mla_tensors_check(&p, &t, complete), MLA_ERR_ARGUMENT,
                   "page_table[0][1]: got 3, want 0 to 2");
    pages[0][1] = -1;
    assert_refused(mla_tensors_check(&p, &t, complete), MLA_ERR_ARGUMENT, "page_table[0][1]");
    pages[0][1] = 0;
    run_lens[0] = 2, run_lens[1] = 3;
    t.seq_lens_kv = run_lens;
    assert_refused(mla_tensors_check(&p, &t, complete), MLA_ERR_ARGUMENT,
                   "seq_lens_kv[1]: got 3 at run time");
    run_lens[1] = 0;
    assert_ok(mla_tensors_check(&p, &t, complete));
    sinks[3] = NAN;
    assert_refused(mla_tensors_check(&p, &t, complete), MLA_ERR_ARGUMENT, "attn_sink[3]: got NaN");
    sinks[3] = INFINITY;
    assert_ok(mla_tensors_check(&p, &t, complete));
    assert_refused(mla_tensors_check(&p, NULL, complete), MLA_ERR_ARGUMENT, "tensors");
    assert_refused(mla_tensors_check(NULL, &t, complete), MLA_ERR_ARGUMENT, "problem");
    mla_alloc_fail_at(1);
    assert_status(mla_tensors_check(&p, &t, complete), MLA_ERR_MEMORY);
    mla_alloc_fail_at(0);
}

static float converted(float lse, float sink, mla_lse_convention from, mla_lse_convention to)
{
    float out;
    assert_ok(mla_lse_convert(&lse, &out, 1, 1, &sink, from, to));
    return out;
}

static void test_lse_conventions(void **state)
{
    (void)state;
    const mla_lse_convention ours = {MLA_LSE_E, true, false}, flash = {MLA_LSE_E, false, true},
                             base2 = {MLA_LSE_2, true, false};
    /* keys e^1, sink e^2 */
    float both = (float)log(exp(1) + exp(2));
    assert_float_equal(converted(1, 2, flash, ours), both, 1e-6);
    assert_float_equal(converted(both, 2, ours, flash), 1, 2e-6);
    assert_float_equal(converted(both, 2, ours, base2), both / (float)M_LN2, 1e-6);
    assert_float_equal(converted(3, 0, base2, ours), 3 * (float)M_LN2, 1e-6);
    /* no key: FlashMLA's +inf is the sink alone here, and -inf without one */
    assert_true(converted(INFINITY, 2, flash, ours) == 2);
    assert_true(converted(INFINITY, -INFINITY, flash, ours) == -INFINITY);
    assert_true(converted(2, 2, ours, flash) == INFINITY);
    assert_true(converted(-INFINITY, -INFINITY, ours, flash) == INFINITY);
    assert_true(converted(INFINITY, INFINITY, ours, flash) == INFINITY);
    assert_true(converted(1, INFINITY, flash, ours) == INFINITY);
    assert_true(converted(1, -INFINITY, flash, ours) == 1);
    float x = 1;
    assert_refused(mla_lse_convert(&x, &x, 1, 1, NULL, ours, flash), MLA_ERR_ARGUMENT, "attn_sink");
    assert_refused(mla_lse_convert(NULL, &x, 1, 1, NULL, ours, ours), MLA_ERR_ARGUMENT, "in");
    assert_refused(mla_lse_convert(&x, NULL, 1, 1, NULL, ours, ours), MLA_ERR_ARGUMENT, "out");
    assert_refused(mla_lse_convert(&x, &x, -1, 1, NULL, ours, ours), MLA_ERR_ARGUMENT, "rows");
    assert_refused(mla_lse_convert(&x, &x, 1, -1, NULL, ours, ours), MLA_ERR_ARGUMENT, "heads");
    assert_ok(mla_lse_convert(NULL, NULL, 0, 4, NULL, ours, ours));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_missing),          cmocka_unit_test(test_strides),
        cmocka_unit_test(test_packed_alignment), cmocka_unit_test(test_empty),
        cmocka_unit_test(test_contents),         cmocka_unit_test(test_lse_conventions),
    };
    return cmocka_run_group_tests_name("tensors", tests, NULL, NULL);
}
