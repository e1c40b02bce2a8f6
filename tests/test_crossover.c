/* SPDX-License-Identifier: Apache-2.0 */
/* Measured route times: files read back as written, damaged ones refused, costs without steps,
 * routes of a batch chosen together, plans that follow the table. */
#include "support.h"

#include "common/crossover.h"
#include "common/status.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char path[] = "/tmp/mla_crossover_XXXXXX";

static void write_text(const char *text)
{
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_true(fputs(text, file) >= 0);
    assert_int_equal(fclose(file), 0);
}

static mla_context *cpu(void)
{
    mla_context *c;
    assert_ok(mla_context_create(NULL, &c));
    return c;
}

/* Two curves with rates that differ by route, length and heads; some points left out. */
static void sample(struct mla_route_curve *c, int64_t heads)
{
    static const int64_t queries[] = {1, 16, 256, 4096, 16384}, contexts[] = {0, 1024, 65536};
    *c = (struct mla_route_curve){.heads_q = heads,
                                  .kv_lora_rank = 512,
                                  .qk_nope_dim = 128,
                                  .qk_rope_dim = 64,
                                  .v_dim = 128,
                                  .topk = 2048,
                                  .q_dtype = MLA_BF16,
                                  .cache_format = MLA_CACHE_BF16,
                                  .num_queries = 5,
                                  .num_contexts = 3};
    memcpy(c->queries, queries, sizeof queries);
    memcpy(c->contexts, contexts, sizeof contexts);
    for (int r = MLA_ROUTE_DENSE_MHA; r < MLA_ROUTES; r++) {
        for (int i = 0; i < 5; i++)
            for (int j = 0; j < 3; j++)
                if (!(i == 4 && j == 2)) {
                    c->more[r][i][j] = 1e12 * (1 + i) * (1 + 0.5 * j) * (r == 3 ? 1.7 : 1) *
                                       (heads == 16 ? 0.5 : 1);
                    c->alone[r][i][j] = c->more[r][i][j] * (1 - 0.1 * r);
                }
    }
}

static char *sample_text(const mla_context *context)
{
    struct mla_route_curve curves[2];
    sample(&curves[0], 16);
    sample(&curves[1], 128);
    char *text = mla_crossovers_text(context, curves, 2);
    assert_non_null(text);
    return text;
}

static void what_is_written_is_read(void **state)
{
    (void)state;
    mla_context *context = cpu();
    char *text = sample_text(context);
    struct mla_route_table *table;
    struct mla_route_curve want;
    write_text(text);
    assert_ok(mla_crossovers_read(context, path, &table));
    assert_int_equal(table->num_curves, 2);
    sample(&want, 128);
    const struct mla_route_curve *got = &table->curves[1];
    for (int r = MLA_ROUTE_DENSE_MHA; r < MLA_ROUTES; r++) {
        for (int i = 0; i < 5; i++)
            for (int j = 0; j < 3; j++) {
                /* The point left out has the rate of a neighbour. */
                bool left_out = i == 4 && j == 2;
                double more = left_out ? want.more[r][3][2] : want.more[r][i][j];
                double alone = left_out ? want.alone[r][3][2] : want.alone[r][i][j];
                assert_true(fabs(got->more[r][i][j] / more - 1) < 1e-3);
                assert_true(fabs(got->alone[r][i][j] / alone - 1) < 1e-3);
            }
    }
    mla_crossovers_free(table);
    mla_free(text);
    mla_context_destroy(context);
}

static void costs_have_no_steps(void **state)
{
    (void)state;
    mla_context *context = cpu();
    char *text = sample_text(context);
    struct mla_route_table *table;
    mla_problem p;
    write_text(text);
    assert_ok(mla_crossovers_read(context, path, &table));
    mla_curve_problem(&table->curves[0], &p);
    for (int r = MLA_ROUTE_DENSE_MHA; r < MLA_ROUTES; r++) {
        /* At a grid point, the point's own time. */
        double seconds, overhead, before = 0;
        p.heads_q = 16;
        assert_true(mla_curves_cost(table, &p, (mla_route)r, 256, 1280, &seconds, &overhead));
        double want = mla_route_flop(&p, (mla_route)r, 256, 1280) / table->curves[0].more[r][2][1];
        assert_true(fabs(seconds / want - 1) < 1e-9);
        assert_true(fabs(overhead / want - 0.1 * r / (1 - 0.1 * r)) < 2e-3);
        /* Along query tokens, keys and heads: no jump of the rate from one number to the next. */
        for (int64_t q = 64; q <= 40000; q++) {
            mla_curves_cost(table, &p, (mla_route)r, q, q + 500, &seconds, &overhead);
            double rate = mla_route_flop(&p, (mla_route)r, q, q + 500) / seconds;
            assert_true(q == 64 || fabs(rate / before - 1) < 0.02);
            before = rate;
        }
        for (int64_t n = 300; n <= 200000; n += 1 + n / 200) {
            mla_curves_cost(table, &p, (mla_route)r, 256, n, &seconds, &overhead);
            double rate = mla_route_flop(&p, (mla_route)r, 256, n) / seconds;
            assert_true(n == 300 || fabs(rate / before - 1) < 0.02);
            before = rate;
        }
        for (int64_t h = 1; h <= 200; h++) {
            p.heads_q = h;
            mla_curves_cost(table, &p, (mla_route)r, 256, 512, &seconds, &overhead);
            double rate = mla_route_flop(&p, (mla_route)r, 256, 512) / seconds;
            assert_true(h == 1 || fabs(rate / before - 1) < 0.05);
            before = rate;
        }
    }
    p.v_dim = 64; /* dims that nobody measured */
    double seconds, overhead;
    assert_false(mla_curves_cost(table, &p, MLA_ROUTE_DENSE_MHA, 1, 1, &seconds, &overhead));
    mla_crossovers_free(table);
    mla_free(text);
    mla_context_destroy(context);
}

static void damaged_and_foreign_files_are_refused(void **state)
{
    (void)state;
    mla_context *context = cpu();
    char device[512], text[4096];
    snprintf(device, sizeof device, "device cpu %s, libmla %s", context->identity, mla_version());
    static const char curve[] =
        "curve heads=16 rank=512 nope=128 rope=64 v=128 dtype=bf16 cache=bf16 topk=0\n";
    static const struct {
        const char *body, *sentence;
    } cases[] = {
        {"", "without a curve"},
        {"queries 1\n", "begins with curve"},
        {"curve heads=0 rank=1 nope=1 rope=1 v=1 dtype=bf16 cache=bf16 topk=0\n", "line 3"},
        {"curve heads=1 rank=1 nope=1 rope=1 v=1 dtype=bf17 cache=bf16 topk=0\n", "dtype"},
        {"Cqueries 1 1\n", "ascending"},
        {"Cqueries 0\n", "ascending"},
        {"Cqueries x\n", "ascending"},
        {"Cqueries 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17\n", "ascending"},
        {"Cqueries 99999999999\n", "ascending"},
        {"Cqueries 1\ncontexts -1\n", "ascending"},
        {"Cqueries 1\ncontexts 0\nus dense-mha 2 5\n", "a number of the line queries"},
        {"Cqueries 1\nus dense-mha 1 5\n", "behind a line contexts"},
        {"Cqueries 1\ncontexts 0\nus dense-mha 1 0\n", "microseconds"},
        {"Cqueries 1\ncontexts 0\nus dense-mha 1 nan\n", "microseconds"},
        {"Cqueries 1\ncontexts 0\nus dense-mha 1 -3\n", "microseconds"},
        {"Cqueries 1\ncontexts 0\nus dense-mha 1\n", "microseconds"},
        {"Cqueries 1\ncontexts 0 8\nus dense-mha 1 -x 4\n", "microseconds"},
        {"Cqueries 1\ncontexts 0 8\nalone_us dense-mha 1 4\n", "microseconds"},
        {"Cqueries 1\ncontexts 0\nus auto 1 3\n", "ROUTE"},
        {"Cqueries 1\ncontexts 0\nus dense-mha 1 3 4\n", "microseconds"},
        {"Cqueries 1\ncontexts 0\nus dense-mha 1 3\n", "no time of route dense-mqa"},
        {"Chello\n", "ROUTE"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        bool has = cases[i].body[0] == 'C';
        snprintf(text, sizeof text, "mla-crossovers 2\n%s\n%s%s", device, has ? curve : "",
                 cases[i].body + has);
        write_text(text);
        assert_refused(mla_context_load_crossovers(context, path), MLA_ERR_ARGUMENT,
                       cases[i].sentence);
        assert_null(context->crossovers);
    }
    write_text("mla-crossovers 1\n");
    assert_refused(mla_context_load_crossovers(context, path), MLA_ERR_ARGUMENT, "line 1");
    write_text("mla-crossovers 2\ndevice cpu another, libmla 0.0.1\n");
    assert_refused(mla_context_load_crossovers(context, path), MLA_ERR_ARGUMENT,
                   "table of 'cpu another, libmla 0.0.1'");
    /* By environment: another backend's file is not this one's business, a wrong one is. */
    mla_context *other = NULL;
    setenv("MLA_CROSSOVERS", path, 1);
    assert_refused(mla_context_create(NULL, &other), MLA_ERR_ARGUMENT, "table of 'cpu another");
    assert_null(other);
    write_text("mla-crossovers 2\ndevice cuda B200, libmla 0.0.1\n");
    assert_ok(mla_context_create(NULL, &other));
    mla_context_destroy(other);
    unsetenv("MLA_CROSSOVERS");
    assert_refused(mla_context_load_crossovers(context, "/nonexistent"), MLA_ERR_ARGUMENT,
                   "nonexistent");
    assert_refused(mla_context_load_crossovers(context, NULL), MLA_ERR_ARGUMENT, "path");
    assert_refused(mla_context_load_crossovers(NULL, path), MLA_ERR_ARGUMENT, "context");
    mla_context_destroy(context);
}

static struct mla_route_choice choice(double masked, double sparse, double overhead)
{
    struct mla_route_choice c = {.measured = true, .reason = "fastest by measured times"};
    for (int r = 0; r < MLA_ROUTES; r++)
        c.cost[r] = INFINITY;
    c.cost[MLA_ROUTE_MASKED_MHA] = masked;
    c.cost[MLA_ROUTE_SPARSE_MQA] = sparse;
    c.overhead[MLA_ROUTE_MASKED_MHA] = c.overhead[MLA_ROUTE_SPARSE_MQA] = overhead;
    c.route = masked <= sparse ? MLA_ROUTE_MASKED_MHA : MLA_ROUTE_SPARSE_MQA;
    return c;
}

static void a_batch_shares_overheads(void **state)
{
    (void)state;
    const bool none[3] = {false, false, false};
    /* One request that would be a little faster by itself on another route is not worth it … */
    struct mla_route_choice c[3] = {choice(10, 20, 3), choice(10, 8, 3), choice(5, 9, 3)};
    mla_route_settle(c, none, 3);
    assert_int_equal(c[0].route, MLA_ROUTE_MASKED_MHA);
    assert_int_equal(c[1].route, MLA_ROUTE_MASKED_MHA);
    assert_int_equal(c[2].route, MLA_ROUTE_MASKED_MHA);
    assert_string_equal(c[1].reason, "fastest together with the batch, by measured times");
    /* … unless it gains more than the route's overhead. */
    c[1] = choice(10, 6, 3);
    mla_route_settle(c, none, 3);
    assert_int_equal(c[1].route, MLA_ROUTE_SPARSE_MQA);
    assert_int_equal(c[0].route, MLA_ROUTE_MASKED_MHA);
    /* Forced requests keep theirs. */
    const bool forced[3] = {false, true, false};
    c[1] = choice(10, 9, 3);
    mla_route_settle(c, forced, 3);
    assert_int_equal(c[1].route, MLA_ROUTE_SPARSE_MQA);
}

/* What one more request costs is little here; how many jobs there are decides. */
static void jobs_pay_their_overheads(void **state)
{
    (void)state;
    const bool none[2] = {false, false};
    struct mla_route_choice c[2] = {choice(2, 1, 0), choice(2, 1, 0)};
    for (int i = 0; i < 2; i++) {
        c[i].overhead[MLA_ROUTE_MASKED_MHA] = 40;
        c[i].overhead[MLA_ROUTE_SPARSE_MQA] = 30;
    }
    mla_route_settle(c, none, 2);
    assert_int_equal(c[0].route, MLA_ROUTE_SPARSE_MQA); /* 32 against 44 */
    c[1].job[MLA_ROUTE_SPARSE_MQA] = 5;                 /* another kernel: 62 */
    mla_route_settle(c, none, 2);
    assert_int_equal(c[0].route, MLA_ROUTE_MASKED_MHA);
    assert_int_equal(c[1].route, MLA_ROUTE_MASKED_MHA);
}

static void requests_move_one_by_one(void **state)
{
    (void)state;
    /* By cost alone the first goes to sparse MQA; its overhead there, which the batch pays once, is
     * more than the others' need. Moving it gains 4. */
    const bool none[3] = {false, false, false};
    struct mla_route_choice c[3] = {choice(10, 9, 0), choice(10, 2, 0), choice(10, 2, 0)};
    c[0].overhead[MLA_ROUTE_SPARSE_MQA] = 6;
    c[1].overhead[MLA_ROUTE_SPARSE_MQA] = 1;
    mla_route_settle(c, none, 3);
    assert_int_equal(c[0].route, MLA_ROUTE_MASKED_MHA);
    assert_int_equal(c[1].route, MLA_ROUTE_SPARSE_MQA);
    assert_int_equal(c[2].route, MLA_ROUTE_SPARSE_MQA);
    assert_string_equal(c[0].reason, "fastest together with the batch, by measured times");
}

static double seconds_of(const struct mla_route_choice *c, const mla_route *routes, int n)
{
    double total = 0, overhead[MLA_ROUTES] = {0};
    for (int i = 0; i < n; i++) {
        total += c[i].cost[routes[i]];
        overhead[routes[i]] = fmax(overhead[routes[i]], c[i].overhead[routes[i]]);
    }
    for (int r = 0; r < MLA_ROUTES; r++)
        total += overhead[r];
    return total;
}

/* Against every assignment of small random batches: the same time, or in few cases hardly more. */
static void settled_batches_are_nearly_the_best(void **state)
{
    (void)state;
    const bool none[4] = {false, false, false, false};
    uint64_t seed = 7;
    int beaten = 0;
    for (int round = 0; round < 2000; round++) {
        struct mla_route_choice c[4] = {{.reason = ""}};
        mla_route routes[4];
        double best = INFINITY;
        int n = 1 + (int)mla_test_below(&seed, 4);
        for (int i = 0; i < n; i++) {
            c[i] = choice(0, 0, 0);
            for (int r = MLA_ROUTE_DENSE_MHA; r < MLA_ROUTES; r++) {
                bool served = r == MLA_ROUTE_SPARSE_MQA || mla_test_below(&seed, 3);
                c[i].cost[r] = served ? exp2((double)mla_test_below(&seed, 600) / 100) : INFINITY;
                c[i].overhead[r] = exp2((double)mla_test_below(&seed, 400) / 100);
                if (c[i].cost[r] < c[i].cost[c[i].route] || !isfinite(c[i].cost[c[i].route]))
                    c[i].route = (mla_route)r;
            }
        }
        for (int set = 0; set < 1 << (2 * n); set++) {
            for (int i = 0; i < n; i++)
                routes[i] = (mla_route)(1 + (set >> (2 * i) & 3));
            best = fmin(best, seconds_of(c, routes, n));
        }
        mla_route_settle(c, none, n);
        for (int i = 0; i < n; i++)
            routes[i] = c[i].route;
        double got = seconds_of(c, routes, n);
        assert_true(got < 1.1 * best);
        beaten += got > 1.001 * best;
    }
    assert_in_range(beaten, 0, 4); /* of 2000 */
}

/* Rows of the grid that nobody measured lie between their neighbours. */
static void holes_are_filled_smoothly(void **state)
{
    (void)state;
    struct mla_route_curve c;
    char why[80];
    sample(&c, 128);
    const int r = MLA_ROUTE_SPARSE_MQA;
    double low = c.more[r][1][0], high = c.more[r][3][0];
    c.more[r][2][0] = c.alone[r][2][0] = 0;
    memset(c.alone[MLA_ROUTE_MASKED_MHA], 0, sizeof c.alone[0]);
    assert_true(mla_curve_fill(&c, why, sizeof why));
    assert_true(fabs(c.more[r][2][0] / sqrt(low * high) - 1) < 1e-12); /* 256 between 16 and 4096 */
    assert_memory_equal(c.alone[MLA_ROUTE_MASKED_MHA], c.more[MLA_ROUTE_MASKED_MHA],
                        sizeof c.more[0]);
    memset(c.more[r], 0, sizeof c.more[0]);
    assert_false(mla_curve_fill(&c, why, sizeof why));
    assert_string_equal(why, "no time of route sparse-mqa");
}

/* Each is of one device, whole, and turned into a table without an error; for other devices, and
 * where MLA_CROSSOVERS is set to nothing, there is none. */
static void built_in_tables_are_sound(void **state)
{
    (void)state;
    for (int i = 0; mla_crossovers_built_in[i]; i++) {
        const char *text = mla_crossovers_built_in[i];
        mla_context context = {.backend = MLA_BACKEND_CUDA};
        struct mla_route_table *table;
        int used = 0;
        assert_int_equal(strncmp(text, "mla-crossovers 2\ndevice cuda ", 29), 0);
        used = (int)strcspn(text + 29, "\n");
        snprintf(context.identity, sizeof context.identity, "%.*s", used, text + 29);
        char *end = strstr(context.identity, ", driver ");
        assert_non_null(end);
        snprintf(end, sizeof context.identity - (size_t)(end - context.identity),
                 ", driver CUDA 99.9");
        assert_ok(mla_crossovers_parse(&context, text, &table));
        assert_string_equal(table->name, "built in");
        assert_true(table->num_curves > 0);
        mla_crossovers_free(table);
        assert_ok(mla_crossovers_find(&context));
        assert_non_null(context.crossovers);
        mla_crossovers_free(context.crossovers);
        context.crossovers = NULL;
        setenv("MLA_CROSSOVERS", "", 1);
        assert_ok(mla_crossovers_find(&context));
        assert_null(context.crossovers);
        unsetenv("MLA_CROSSOVERS");
        context.identity[0] = 'x';
        assert_ok(mla_crossovers_find(&context));
        assert_null(context.crossovers);
    }
    mla_context *c = cpu();
    assert_null(c->crossovers);
    mla_context_destroy(c);
}

static void plans_follow_the_table(void **state)
{
    (void)state;
    mla_context *context = cpu();
    struct mla_route_curve curve;
    mla_request_info info;
    mla_problem p;
    mla_plan *plan;
    const int32_t starts[] = {0, 4096, 4097}, keys[] = {4096, 4096};
    const mla_route routes[] = {MLA_ROUTE_SPARSE_MQA, MLA_ROUTE_AUTO};
    sample(&curve, 128);
    assert_ok(mla_problem_init_model(&p, "deepseek-v3.2"));
    p.batch = 2;
    p.cu_seqlens_q = starts;
    p.seq_lens_kv = keys;

    /* By FLOP masked MHA wins at 4096; a table in which sparse MQA runs 100 times faster turns
     * it. */
    assert_ok(mla_plan_create(context, &p, NULL, &plan));
    assert_ok(mla_plan_request(plan, 0, &info));
    assert_int_equal(info.route, MLA_ROUTE_MASKED_MHA);
    mla_plan_destroy(plan);
    for (int i = 0; i < 5; i++)
        for (int j = 0; j < 3; j++)
            curve.more[MLA_ROUTE_SPARSE_MQA][i][j] *= 100;
    memcpy(curve.alone, curve.more, sizeof curve.alone);
    char *text = mla_crossovers_text(context, &curve, 1);
    assert_non_null(text);
    write_text(text);
    mla_free(text);
    assert_ok(mla_context_load_crossovers(context, path));
    assert_ok(mla_plan_create(context, &p, NULL, &plan));
    for (int b = 0; b < 2; b++) {
        assert_ok(mla_plan_request(plan, b, &info));
        assert_int_equal(info.route, MLA_ROUTE_SPARSE_MQA);
        assert_string_equal(info.reason, "fastest by measured times");
    }
    mla_plan_destroy(plan);

    /* A route for each request. */
    mla_plan_options o = {.routes = routes};
    mla_route wrong[] = {MLA_ROUTE_DENSE_MHA, MLA_ROUTE_AUTO};
    assert_ok(mla_plan_create(context, &p, &o, &plan));
    assert_ok(mla_plan_request(plan, 0, &info));
    assert_string_equal(info.reason, "asked for");
    mla_plan_destroy(plan);
    o.routes = wrong;
    assert_refused(mla_plan_create(context, &p, &o, &plan), MLA_ERR_UNSUPPORTED, "dense-mha");
    wrong[0] = (mla_route)9;
    assert_refused(mla_plan_create(context, &p, &o, &plan), MLA_ERR_ARGUMENT, "routes[0]");
    o = (mla_plan_options){.routes = routes, .route = MLA_ROUTE_SPARSE_MQA};
    assert_refused(mla_plan_create(context, &p, &o, &plan), MLA_ERR_ARGUMENT, "beside routes");
    mla_context_destroy(context);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_written_is_read),
        cmocka_unit_test(costs_have_no_steps),
        cmocka_unit_test(damaged_and_foreign_files_are_refused),
        cmocka_unit_test(a_batch_shares_overheads),
        cmocka_unit_test(jobs_pay_their_overheads),
        cmocka_unit_test(requests_move_one_by_one),
        cmocka_unit_test(settled_batches_are_nearly_the_best),
        cmocka_unit_test(holes_are_filled_smoothly),
        cmocka_unit_test(built_in_tables_are_sound),
        cmocka_unit_test(plans_follow_the_table),
    };
    int file = mkstemp(path);
    if (file < 0)
        return 1;
    close(file);
    int failed = cmocka_run_group_tests_name("crossover", tests, NULL, NULL);
    remove(path);
    return failed;
}
