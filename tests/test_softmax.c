/* SPDX-License-Identifier: Apache-2.0 */
/* Row operations of the CPU softmax, every instruction set this machine runs: exp within its stated
 * error, maxima, hidden keys, tails, NaN and infinities; and the same of a panel. */
#include "support.h"

#include "reference/attend.h"
#include "reference/panel.h"

#include <math.h>
#include <string.h>

static void exp_error(void **state)
{
    (void)state;
    const char *name;
    bool runs;
    const struct mla_softmax_f32 *f;
    const struct mla_softmax_f64 *g;
    for (int i = 0; mla_softmax_get(i, &name, &runs, &f, &g); i++) {
        double worst = 0, worst_double = 0;
        uint64_t random = 5;
        for (int k = 0; runs && k < 4000; k++) {
            float x[64], y[64];
            double a[64], b[64];
            int exponent;
            for (int j = 0; j < 64; j++) { /* all sizes: -87 … 0 and -708 … 0, many near 0 */
                double u = mla_test_uniform(&random);
                y[j] = x[j] = (float)(-87.3 * u * (j % 2 ? 1 : u * u * u));
                b[j] = a[j] = -708.3 * u * (j % 2 ? 1 : u * u * u);
            }
            f->exp(y, 64, NULL, 0);
            g->exp(b, 64, NULL, 0);
            for (int j = 0; j < 64; j++) {
                long double want = expl((long double)x[j]);
                frexpl(want, &exponent);
                worst = fmax(worst, (double)(fabsl(y[j] - want) / ldexpl(1, exponent - 24)));
                want = expl((long double)a[j]);
                frexpl(want, &exponent);
                worst_double =
                    fmax(worst_double, (double)(fabsl(b[j] - want) / ldexpl(1, exponent - 53)));
            }
        }
        if (runs)
            print_message("exp %s: %.3f ulp float, %.3f ulp double\n", name, worst, worst_double);
        assert_true(worst <= 1.5 && worst_double <= 1.5);
    }
}

/* Against loops, for every length to two words, with and without hidden keys. */
static void rows(void **state)
{
    (void)state;
    const char *name;
    bool runs;
    const struct mla_softmax_f32 *f;
    const struct mla_softmax_f64 *g;
    uint64_t random = 6;
    for (int i = 0; mla_softmax_get(i, &name, &runs, &f, &g); i++)
        for (int n = 0; runs && n <= 70; n++)
            for (int hide = 0; hide < 3; hide++) {
                float s[80];
                double d[80], max = -INFINITY, sum = 0, want[80];
                uint32_t bits[3];
                for (int w = 0; w < 3; w++)
                    bits[w] = hide == 2 ? 0 : (uint32_t)(mla_test_uniform(&random) * 0x1p32);
                const uint32_t *words = hide ? bits : NULL;
                for (int j = 0; j < 80; j++)
                    d[j] = s[j] = (float)(10 * mla_test_uniform(&random));
                for (int j = 0; j < n; j++)
                    if (!words || words[j / 32] >> (j % 32) & 1)
                        max = fmax(max, d[j]);
                assert_true(f->max(s, n, words) == max && g->max(d, n, words) == max);
                double shift = max > -INFINITY ? max : 0;
                for (int j = 0; j < n; j++) {
                    bool seen = !words || words[j / 32] >> (j % 32) & 1;
                    sum += want[j] = seen ? exp(d[j] - shift) : 0;
                }
                float after = s[n];
                double sum_f = f->exp(s, n, words, (float)shift),
                       sum_d = g->exp(d, n, words, shift);
                assert_true(fabs(sum_f - sum) <= 1e-6 * sum && fabs(sum_d - sum) <= 1e-14 * sum);
                for (int j = 0; j < n; j++)
                    assert_true(fabs((double)s[j] - want[j]) <= 1e-6 * want[j] &&
                                fabs(d[j] - want[j]) <= 1e-14 * want[j]);
                assert_true(s[n] == after);
            }
}

static void special_values(void **state)
{
    (void)state;
    const char *name;
    bool runs;
    const struct mla_softmax_f32 *f;
    const struct mla_softmax_f64 *g;
    for (int i = 0; mla_softmax_get(i, &name, &runs, &f, &g); i++) {
        if (!runs)
            continue;
        for (int at = 0; at < 40; at += 13) { /* in a whole block and in the tail */
            float s[40] = {0};
            double d[40] = {0};
            s[at] = -INFINITY;
            d[at] = -INFINITY;
            assert_true(f->exp(s, 40, NULL, 0) == 39 && s[at] == 0);
            assert_true(g->exp(d, 40, NULL, 0) == 39 && d[at] == 0);
            s[0] = d[0] = 0;
            for (int j = 0; j < 40; j++) {
                s[j] = 0;
                d[j] = 0;
            }
            s[at] = NAN;
            d[at] = NAN;
            uint32_t bits[2] = {~0u, ~0u};
            bits[at / 32] &= ~(1u << (at % 32));
            assert_true(f->max(s, 40, NULL) == 0 && g->max(d, 40, NULL) == 0);
            assert_true(f->exp(s, 40, bits, 0) == 39 && s[at] == 0); /* hidden: no trace */
            assert_true(g->exp(d, 40, bits, 0) == 39 && d[at] == 0);
            for (int j = 0; j < 40; j++) {
                s[j] = 0;
                d[j] = 0;
            }
            s[at] = NAN;
            d[at] = NAN;
            assert_true(isnan(f->exp(s, 40, NULL, 0)) && isnan(s[at]));
            assert_true(isnan(g->exp(d, 40, NULL, 0)) && isnan(d[at]));
        }
    }
}

/* One panel of every small size against double loops. */
static void panel(void **state)
{
    (void)state;
    const struct mla_panel_ops *ops = mla_panel_ops();
    uint64_t random = 7;
    if (!ops)
        skip();
    for (int n = 1; n <= 40; n += n < 14 ? 1 : 13)
        for (int d = 1; d <= 13; d += 3) {
            float q[13 * 16], k[40 * 20], v[40 * 20], score[40 * 16], st[32], o[13 * 16];
            for (int j = 0; j < 40 * 20; j++) {
                k[j] = (float)(mla_test_uniform(&random) - 0.5);
                v[j] = (float)(mla_test_uniform(&random) - 0.5);
            }
            for (int j = 0; j < d * 16; j++)
                q[j] = (float)(8 * mla_test_uniform(&random) - 4);
            for (int l = 0; l < 16; l++) {
                st[l] = -INFINITY;
                st[16 + l] = 0;
            }
            memset(o, 0, sizeof o);
            struct mla_panel p = {.keys = n,
                                  .d_k = d,
                                  .d_v = d,
                                  .q = q,
                                  .key = k,
                                  .value = v,
                                  .ld_key = 20,
                                  .ld_value = 20,
                                  .alpha = 0.5f,
                                  .score = score,
                                  .state = st,
                                  .out = o,
                                  .masked = true};
            for (int l = 0; l < 16; l++)
                p.end[l] = (int32_t)mla_test_below(&random, n + 1);
            ops->score(&p);
            ops->softmax(&p);
            ops->value(&p);
            for (int l = 0; l < 16; l++) {
                double s[40], max = -INFINITY, sum = 0;
                for (int j = 0; j < p.end[l]; j++) {
                    s[j] = 0;
                    for (int c = 0; c < d; c++)
                        s[j] += (double)q[c * 16 + l] * k[j * 20 + c];
                    s[j] *= 0.5;
                    max = fmax(max, s[j]);
                }
                for (int j = 0; j < p.end[l]; j++)
                    sum += exp(s[j] - max);
                assert_true(st[l] == max || fabs((double)st[l] - max) < 1e-5);
                assert_true(fabs((double)st[16 + l] - sum) <= 1e-5 * sum);
                for (int c = 0; c < d; c++) {
                    double want = 0;
                    for (int j = 0; j < p.end[l]; j++)
                        want += exp(s[j] - max) * (double)v[j * 20 + c];
                    assert_true(fabs((double)o[c * 16 + l] - want) <= 1e-5 * (1 + sum));
                }
            }
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(exp_error),
        cmocka_unit_test(rows),
        cmocka_unit_test(special_values),
        cmocka_unit_test(panel),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
