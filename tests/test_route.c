/* SPDX-License-Identifier: Apache-2.0 */
/* Routing: the rules in order, the crossover where the FLOP model puts it, closed forms of pairs
 * against loops, interpolated rates, the mask budget. */
#include "support.h"

#include "common/kernel.h"
#include "common/route.h"

#include <math.h>
#include <string.h>

static mla_problem v32(void)
{
    mla_problem p;
    assert_ok(mla_problem_init_model(&p, "deepseek-v3.2"));
    return p;
}

static mla_route route_of(const mla_problem *p, int64_t query_len, int64_t seq_len_kv,
                          bool complete)
{
    struct mla_route_choice choice;
    mla_route_choose(p, query_len, seq_len_kv, complete, &mla_route_table_flop, 0, &choice);
    assert_non_null(choice.reason);
    assert_true(isfinite(choice.cost[choice.route]));
    return choice.route;
}

static void test_rules(void **state)
{
    (void)state;
    mla_problem p = v32();
    /* (1) few query tokens, and absorbed problems */
    assert_int_equal(route_of(&p, 1, 4096, false), MLA_ROUTE_SPARSE_MQA);
    assert_int_equal(route_of(&p, 8, 131072, false), MLA_ROUTE_SPARSE_MQA);
    p.topk = 0;
    assert_int_equal(route_of(&p, 1, 4096, false), MLA_ROUTE_DENSE_MQA);
    /* (2) no indices: by cost, about 171 query tokens over a long context */
    assert_int_equal(route_of(&p, 2048, 2048, false), MLA_ROUTE_DENSE_MHA);
    assert_int_equal(route_of(&p, 128, 65536, false), MLA_ROUTE_DENSE_MQA);
    assert_int_equal(route_of(&p, 256, 65536, false), MLA_ROUTE_DENSE_MHA);
    p.has_mask = true;
    assert_int_equal(route_of(&p, 256, 65536, false), MLA_ROUTE_MASKED_MHA);
    p = v32();
    p.form = MLA_FORM_ABSORBED;
    assert_int_equal(route_of(&p, 4096, 4096, true), MLA_ROUTE_SPARSE_MQA);
    p.topk = 0;
    assert_int_equal(route_of(&p, 4096, 4096, true), MLA_ROUTE_DENSE_MQA);
    /* (3) complete lists, (4) up to the crossover, (5) beyond */
    p = v32();
    assert_int_equal(route_of(&p, 1024, 1024, true), MLA_ROUTE_DENSE_MHA);
    assert_int_equal(route_of(&p, 1024, 1024, false), MLA_ROUTE_MASKED_MHA);
    assert_int_equal(route_of(&p, 4096, 4096, false), MLA_ROUTE_MASKED_MHA);
    assert_int_equal(route_of(&p, 16384, 16384, false), MLA_ROUTE_SPARSE_MQA);
    /* expanded */
    p.form = MLA_FORM_EXPANDED;
    assert_int_equal(route_of(&p, 1, 4096, false), MLA_ROUTE_MASKED_MHA);
    p.topk = 0;
    assert_int_equal(route_of(&p, 1, 4096, false), MLA_ROUTE_DENSE_MHA);
}

static void test_crossover(void **state)
{
    (void)state;
    /* 320·s² = 2176·(topk·s - topk²/2) and its rows of whole tokens: 12 813. */
    mla_problem p = v32();
    int64_t low = 4096, high = 16384;
    while (high - low > 1) {
        int64_t s = (low + high) / 2;
        *(route_of(&p, s, s, false) == MLA_ROUTE_MASKED_MHA ? &low : &high) = s;
    }
    assert_in_range(low, 12800, 12825);
    p.heads_q = 16; /* the FLOP model does not depend on the head count */
    assert_int_equal(route_of(&p, low, low, false), MLA_ROUTE_MASKED_MHA);
    assert_int_equal(route_of(&p, high, high, false), MLA_ROUTE_SPARSE_MQA);
}

static void test_one_crossover(void **state)
{
    (void)state;
    /* No dead zones: along s the route changes at most once, for pure prefills and for extends. */
    mla_problem p = v32();
    for (int64_t context = 0; context <= 65536; context += 32768) {
        int changes = 0;
        mla_route last = MLA_ROUTE_AUTO;
        for (int64_t s = 256; s <= 65536; s += 256) {
            mla_route route = route_of(&p, s, s + context, false);
            changes += last != MLA_ROUTE_AUTO && route != last;
            last = route;
        }
        assert_in_range(changes, 0, 2);
        assert_int_equal(last, MLA_ROUTE_SPARSE_MQA);
    }
}

static void test_pairs(void **state)
{
    (void)state;
    uint64_t seed = 1;
    for (int i = 0; i < 500; i++) {
        mla_problem p = v32();
        int64_t query_len = mla_test_below(&seed, 40), context = mla_test_below(&seed, 40);
        int64_t n = query_len + context;
        p.causal = mla_test_below(&seed, 2);
        p.topk = 1 + mla_test_below(&seed, 60);
        struct mla_request r = {.query_len = query_len, .seq_len_kv = n};
        double dense = 0, listed = 0;
        for (int64_t row = 0; row < query_len; row++) {
            int64_t end = mla_causal_end(&p, &r, row, n);
            dense += (double)end;
            listed += (double)(end < p.topk ? end : p.topk);
        }
        assert_true(mla_pairs_dense(&p, query_len, n) == dense);
        assert_true(mla_pairs_listed(&p, query_len, n) == listed);
    }
}

static void test_flop(void **state)
{
    (void)state;
    mla_problem p = v32();
    p.causal = false;
    /* 640 and 2176 a pair and head; 262144 a head for each key (MHA) or query (MQA). */
    assert_true(mla_route_flop(&p, MLA_ROUTE_DENSE_MHA, 1, 1) == 128 * (640 + 262144.0));
    assert_true(mla_route_flop(&p, MLA_ROUTE_DENSE_MQA, 1, 10) == 128 * (21760 + 262144.0));
    p.form = MLA_FORM_ABSORBED;
    assert_true(mla_route_flop(&p, MLA_ROUTE_DENSE_MQA, 1, 10) == 128 * 21760.0);
    /* One query row over 10 bf16 rows of 1152 bytes, q 576 and out 512 a head. */
    assert_true(mla_route_bytes(&p, MLA_ROUTE_DENSE_MQA, 1, 10) ==
                11520 + 128 * (576 * 2 + 512 * 2));
}

static void test_rates(void **state)
{
    (void)state;
    static const struct mla_route_rate rows[] = {{16, {0, 1, 1, 1, 1}}, {64, {0, 1, 1, 3, 1}}};
    static const struct mla_route_table table = {"test", 2, rows, 0, 0, 0, NULL};
    struct mla_route_choice flat, choice;
    mla_problem p = v32();
    const double want[] = {1, 1, 2, 3, 3};
    const int64_t heads[] = {1, 16, 32, 64, 128};
    for (int i = 0; i < 5; i++) {
        p.heads_q = heads[i];
        mla_route_choose(&p, 4096, 4096, false, &mla_route_table_flop, 0, &flat);
        mla_route_choose(&p, 4096, 4096, false, &table, 0, &choice);
        assert_float_equal(flat.cost[MLA_ROUTE_SPARSE_MQA] / choice.cost[MLA_ROUTE_SPARSE_MQA],
                           want[i], 1e-12);
    }
    /* At rate 3 sparse MQA wins where masked MHA won by FLOP. */
    assert_int_equal(flat.route, MLA_ROUTE_MASKED_MHA);
    assert_int_equal(choice.route, MLA_ROUTE_SPARSE_MQA);
}

/* On a GPU the gather counts: few heads make it the bound of sparse MQA, which moves the crossover
 * up; small records move it down again. */
static void test_gather(void **state)
{
    (void)state;
    const int64_t heads[] = {128, 64, 32, 16, 8};
    int64_t at[5][2];
    for (int i = 0; i < 5; i++)
        for (int packed = 0; packed < 2; packed++) {
            mla_problem p = v32();
            int64_t low = 2048, high = 1 << 20;
            p.heads_q = heads[i];
            p.cache_format = packed ? MLA_CACHE_FP8_DS_MLA : MLA_CACHE_BF16;
            while (high - low > 1) {
                struct mla_route_choice c;
                int64_t s = (low + high) / 2;
                mla_route_choose(&p, s, s, false, mla_route_table_of(MLA_BACKEND_CUDA), 0, &c);
                *(c.route == MLA_ROUTE_MASKED_MHA ? &low : &high) = s;
            }
            at[i][packed] = low;
        }
    for (int i = 0; i < 3; i++) { /* arithmetic binds: only rates move what FLOP say */
        assert_in_range(at[i][0], 23000, 27000);
        assert_int_equal(at[i][1], at[i][0]);
    }
    assert_true(at[3][0] > at[2][0]);
    assert_true(at[4][0] > 1.8 * (double)at[3][0]); /* 8 heads fill half a tile */
    assert_true(at[3][1] < at[3][0] && at[4][1] < at[4][0]);
    assert_ptr_equal(mla_route_table_of(MLA_BACKEND_CPU), &mla_route_table_flop);
}

static void test_mask_budget(void **state)
{
    (void)state;
    mla_problem p = v32();
    struct mla_route_choice c;
    mla_route_choose(&p, 4096, 131072, false, &mla_route_table_flop, 0, &c);
    assert_int_equal(c.rows_per_pass, MLA_DEFAULT_MASK_BYTES / (131072 / 8));
    assert_true(c.rows_per_pass <= 4096);
    mla_route_choose(&p, 4096, 131072, false, &mla_route_table_flop, 1 << 20, &c);
    assert_int_equal(c.rows_per_pass, 64);
    mla_route_choose(&p, 4096, 131072, false, &mla_route_table_flop, 1, &c);
    assert_int_equal(c.rows_per_pass, 1); /* split over rows, never refused */
    mla_route_choose(&p, 0, 0, false, &mla_route_table_flop, 1, &c);
    assert_int_equal(c.rows_per_pass, 1);
}

static void test_admissible(void **state)
{
    (void)state;
    mla_problem p = v32();
    const char *why = NULL;
    assert_true(mla_route_admissible(&p, MLA_ROUTE_SPARSE_MQA, false, &why));
    assert_false(mla_route_admissible(&p, MLA_ROUTE_DENSE_MHA, false, &why));
    assert_non_null(strstr(why, "topk_indices"));
    assert_true(mla_route_admissible(&p, MLA_ROUTE_DENSE_MQA, true, &why));
    p.topk = 0;
    assert_false(mla_route_admissible(&p, MLA_ROUTE_SPARSE_MQA, false, &why));
    assert_false(mla_route_admissible(&p, MLA_ROUTE_MASKED_MHA, false, &why));
    p.has_mask = true;
    assert_true(mla_route_admissible(&p, MLA_ROUTE_MASKED_MHA, false, &why));
    assert_true(mla_route_admissible(&p, MLA_ROUTE_DENSE_MQA, false, NULL));
    p.form = MLA_FORM_ABSORBED;
    assert_false(mla_route_admissible(&p, MLA_ROUTE_MASKED_MHA, false, &why));
    p.form = MLA_FORM_EXPANDED;
    assert_false(mla_route_admissible(&p, MLA_ROUTE_DENSE_MQA, false, &why));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rules),         cmocka_unit_test(test_crossover),
        cmocka_unit_test(test_one_crossover), cmocka_unit_test(test_pairs),
        cmocka_unit_test(test_flop),          cmocka_unit_test(test_rates),
        cmocka_unit_test(test_mask_budget),   cmocka_unit_test(test_admissible),
        cmocka_unit_test(test_gather),
    };
    return cmocka_run_group_tests_name("route", tests, NULL, NULL);
}
