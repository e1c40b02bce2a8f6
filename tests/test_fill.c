/* SPDX-License-Identifier: Apache-2.0 */
/* The case generator: same bits everywhere, what each fill promises, poison, bad specs. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "common/format.h"
#include "common/status.h"
#include "common/tool/fill.h"

#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <string.h>

static struct mla_case make(const char *text)
{
    struct mla_case_spec spec;
    struct mla_case c = {0};
    if (mla_case_spec_parse(&spec, text) || mla_case_make(&spec, &c))
        fail_msg("%s: %s", text, mla_last_error());
    mla_problem_release(&spec.problem);
    return c;
}

static uint64_t hash_bytes(uint64_t hash, const void *data, size_t bytes)
{
    const uint8_t *at = data;
    for (size_t i = 0; data && i < bytes; i++)
        hash = (hash ^ at[i]) * UINT64_C(0x100000001B3);
    return hash;
}

/* FNV-1a over all tensors. */
static uint64_t hash_case(const struct mla_case *c)
{
    const mla_problem *p = &c->problem;
    const mla_tensors *t = &c->tensors;
    size_t rows = (size_t)mla_total_q(p), heads = (size_t)p->heads_q, keys = 0;
    size_t q = mla_dtype_bytes(p->q_dtype), kv = mla_dtype_bytes(p->kv_dtype), longest = 0;
    size_t dn = (size_t)p->qk_nope_dim, dr = (size_t)p->qk_rope_dim, L = (size_t)p->kv_lora_rank;
    for (int64_t b = 0; b < p->batch; b++) {
        keys += (size_t)p->seq_lens_kv[b];
        if ((size_t)p->seq_lens_kv[b] > longest)
            longest = (size_t)p->seq_lens_kv[b];
    }
    size_t row = mla_cache_row_bytes(p->cache_format, p->kv_lora_rank, p->qk_rope_dim);
    size_t element = row / (L + dr);
    uint64_t h = UINT64_C(0xCBF29CE484222325);
    h = hash_bytes(h, t->q_nope.data, rows * heads * dn * q);
    h = hash_bytes(h, t->q_pe.data, rows * heads * dr * q);
    h = hash_bytes(h, t->w_uk.data, heads * dn * L * q);
    h = hash_bytes(h, t->w_uv.data, heads * L * (size_t)p->v_dim * q);
    h = hash_bytes(h, t->q.data, rows * heads * (size_t)mla_d_qk(p) * q);
    h = hash_bytes(h, t->k.data, keys * (size_t)(p->heads_kv * mla_d_qk(p)) * kv);
    h = hash_bytes(h, t->v.data, keys * (size_t)(p->heads_kv * p->v_dim) * kv);
    h = hash_bytes(h, t->kv_c.data, keys * L * element);
    h = hash_bytes(h, t->k_pe.data, keys * dr * element);
    h = hash_bytes(h, t->kv_cache.data, (size_t)(p->num_pages * p->page_size) * row);
    h = hash_bytes(h, t->page_table.data, (size_t)(p->batch * p->max_pages) * 4);
    h = hash_bytes(h, t->mask.data, rows * ((longest + 31) / 32) * 4);
    h = hash_bytes(h, t->topk_indices.data, rows * (size_t)p->topk * 4);
    h = hash_bytes(h, t->topk_lens, t->topk_lens ? rows * 4 : 0);
    return hash_bytes(h, t->attn_sink, t->attn_sink ? heads * 4 : 0);
}

/* Row j of request b, dequantised. */
static void key_row(const struct mla_case *c, int64_t b, int64_t j, float *row)
{
    struct mla_request r = {.index = b, .seq_len_kv = c->problem.seq_lens_kv[b]};
    uint8_t valid;
    for (int64_t i = 0; i < b; i++)
        r.kv_start += c->problem.seq_lens_kv[i];
    int64_t width = c->problem.kv_lora_rank + c->problem.qk_rope_dim;
    mla_cache_rows_f32(&c->problem, &c->tensors, &r, r.seq_len_kv, NULL, j, 1, row, width, &valid);
    assert_int_equal(valid, 1);
}

/* softmax_scale · q·k of an absorbed problem with one request. */
static double absorbed_score(const struct mla_case *c, int64_t t, int64_t h, int64_t j)
{
    const mla_problem *p = &c->problem;
    int64_t n = mla_d_qk(p);
    float *x = test_malloc((size_t)n * 2 * sizeof *x), *k = x + n;
    const char *q = c->tensors.q.data;
    mla_load_f32(p->q_dtype, q + (size_t)((t * p->heads_q + h) * n) * mla_dtype_bytes(p->q_dtype),
                 n, x);
    key_row(c, 0, j, k);
    double s = 0;
    for (int64_t i = 0; i < n; i++)
        s += (double)x[i] * k[i];
    test_free(x);
    return s * p->softmax_scale;
}

static int64_t visible_end(const mla_problem *p, int64_t b, int64_t i)
{
    int64_t n = p->seq_lens_kv[b];
    return p->causal ? n - (p->cu_seqlens_q[b + 1] - p->cu_seqlens_q[b]) + i + 1 : n;
}

/* ---------------------------------------------------------------------- bits */

static void fill_threads_do_not_matter(void **state)
{
    static const char *const texts[] = {
        "attend model=tiny batch=3q8s90,q40 page=8 topk=16 sink=1 topk_lens=1 holes=1 seed=3",
        "attend form=absorbed heads=4 batch=3q2s90 cache=nvfp4 fill=counting",
        "attend form=expanded heads=4 batch=q70,q3s50 fill=needle mask=1",
        "attend model=tiny batch=q200s900 topk=64 fill=sink",
        "attend model=tiny batch=q20s90 topk=16 fill=cancel",
    };
    (void)state;
    int threads = omp_get_max_threads();
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        uint64_t hashes[3];
        for (int n = 0; n < 3; n++) {
            omp_set_num_threads(n + 1);
            struct mla_case c = make(texts[i]);
            hashes[n] = hash_case(&c);
            mla_case_free(&c);
        }
        assert_true(hashes[0] == hashes[1] && hashes[1] == hashes[2]);
    }
    omp_set_num_threads(threads);
}

/* Bits of some cases as first released: other machines, compilers and flags must give them too. */
static void fill_bits_are_fixed(void **state)
{
    static const struct {
        const char *text;
        uint64_t hash;
    } golden[] = {
        {"attend model=tiny batch=q8s40 topk=16 page=8 sink=1 seed=1",
         UINT64_C(0x41DB44A136F61B08)},
        {"attend form=absorbed heads=2 batch=q3s70 cache=fp8_ds_mla fill=sink topk=32 seed=7",
         UINT64_C(0xF54DE85058E34D02)},
        {"attend form=absorbed heads=2 batch=q3s70 cache=model1 fill=large seed=7",
         UINT64_C(0x091E6A4018D47DCB)},
        {"attend form=absorbed heads=2 batch=q3s70 cache=nvfp4 fill=peaky seed=7",
         UINT64_C(0x1E6FD25AEE0C7A8B)},
        {"attend form=expanded heads=2 batch=q3s70 dtype=f32 fill=needle mask=1 seed=9",
         UINT64_C(0x06E81BDEF3418A4D)},
        {"attend form=expanded heads=2 batch=q3s70 dtype=f16 fill=cancel sinks=inf seed=9",
         UINT64_C(0xF14CF8D6F37B5873)},
    };
    bool same = true;
    (void)state;
    for (size_t i = 0; i < sizeof golden / sizeof *golden; i++) {
        struct mla_case c = make(golden[i].text);
        uint64_t hash = hash_case(&c);
        if (hash != golden[i].hash)
            print_error("%s: got 0x%016llX\n", golden[i].text, (unsigned long long)hash);
        same &= hash == golden[i].hash;
        mla_case_free(&c);
    }
    assert_true(same);
}

static void fill_seed_changes_everything(void **state)
{
    (void)state;
    struct mla_case a = make("attend form=absorbed heads=2 batch=q4s64 topk=16 page=4 seed=1");
    struct mla_case b = make("attend form=absorbed heads=2 batch=q4s64 topk=16 page=4 seed=2");
    assert_memory_not_equal(a.tensors.q.data, b.tensors.q.data, 1024);
    assert_memory_not_equal(a.tensors.kv_cache.data, b.tensors.kv_cache.data, 1024);
    assert_memory_not_equal(a.tensors.page_table.data, b.tensors.page_table.data, 64);
    assert_memory_not_equal(a.tensors.topk_indices.data, b.tensors.topk_indices.data, 64);
    mla_case_free(&a);
    mla_case_free(&b);
}

/* -------------------------------------------------------------------- values */

static void fill_normal_is_normal(void **state)
{
    (void)state;
    double sums[5] = {0};
    const int n = 200000;
    uint64_t key = mla_random_key(5, 3);
    for (int i = 0; i < n; i++) {
        double x = mla_random_normal(key, (uint64_t)i), y = mla_random_normal(key, (uint64_t)i + 1);
        sums[0] += x;
        sums[1] += x * x;
        sums[2] += x * x * x;
        sums[3] += x * x * x * x;
        sums[4] += x * y;
    }
    /* standard errors are 0.0022, 0.0032, 0.0087, 0.022, 0.0022: five of them */
    assert_true(fabs(sums[0] / n) < 0.011);
    assert_true(fabs(sums[1] / n - 1) < 0.016);
    assert_true(fabs(sums[2] / n) < 0.044);
    assert_true(fabs(sums[3] / n - 2.9) < 0.11);
    assert_true(fabs(sums[4] / n) < 0.011);
}

/* Scores of normal problems have a standard deviation of about 2, of diffuse ones 0.2. */
static void fill_scores_have_the_scale_of_models(void **state)
{
    static const struct {
        const char *text;
        double sd;
    } cases[] = {
        {"attend form=absorbed model=deepseek-v3 heads=4 batch=q4s100", 1.87},
        {"attend form=absorbed model=deepseek-v3 heads=4 batch=q4s100 fill=diffuse", 0.187},
        {"attend form=absorbed model=deepseek-v3 heads=4 batch=q4s100 fill=large", 15},
        {"attend form=absorbed model=deepseek-v3 heads=4 batch=q4s100 fill=huge", 120},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct mla_case c = make(cases[i].text);
        double sum = 0;
        for (int64_t h = 0; h < 4; h++)
            for (int64_t j = 0; j < 97; j++)
                sum += pow(absorbed_score(&c, 0, h, j), 2);
        double sd = sqrt(sum / (4 * 97));
        if (fabs(sd / cases[i].sd - 1) > 0.25)
            fail_msg("%s: sd %g", cases[i].text, sd);
        mla_case_free(&c);
    }
}

static void fill_counting_is_exact_in_every_format(void **state)
{
    static const char *const formats[] = {"form=latent cache=bf16",
                                          "form=latent cache=f16 page=16",
                                          "form=latent cache=f32",
                                          "form=latent cache=fp8_ds_mla",
                                          "form=latent cache=nvfp4",
                                          "form=absorbed cache=model1",
                                          "form=absorbed cache=v41 page=7"};
    (void)state;
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++) {
        char text[160];
        snprintf(text, sizeof text, "attend %s heads=2 batch=q2s40,q1s33 fill=counting",
                 formats[i]);
        struct mla_case c = make(text);
        float row[576];
        for (int64_t b = 0; b < 2; b++)
            for (int64_t j = 0; j < c.problem.seq_lens_kv[b]; j++) {
                key_row(&c, b, j, row);
                for (int64_t l = 0; l < 512 + c.problem.qk_rope_dim; l++)
                    assert_true(fabsf(row[l]) == 1.0f);
            }
        const uint16_t *w = c.tensors.w_uv.data, *q = c.tensors.q_nope.data;
        for (int64_t v = 0; w && v < 128; v++) {
            int ones = 0;
            for (int64_t l = 0; l < 512; l++) {
                assert_true(w[l * 128 + v] == 0 || w[l * 128 + v] == 0x3F80);
                ones += w[l * 128 + v] != 0;
            }
            assert_int_equal(ones, 1);
        }
        for (int64_t d = 0; q && d < 3 * 2 * 128; d++)
            assert_int_equal(q[d] & 0x7FFF, 0);
        mla_case_free(&c);
    }
}

static void fill_needle_dominates(void **state)
{
    static const char *const texts[] = {
        "attend form=absorbed model=deepseek-v3 heads=2 batch=q30s400 fill=needle page=48",
        "attend form=absorbed heads=2 batch=q30s400 fill=needle cache=fp8 topk=32 scale=0.135",
        "attend form=absorbed heads=2 batch=q30s400 fill=needle mask=1 rope=0 cache=v41 scale=0.04",
    };
    (void)state;
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        struct mla_case c = make(texts[i]);
        const mla_problem *p = &c.problem;
        int64_t seen[4] = {0};
        for (int64_t t = 0; t < 30; t++) {
            double largest = -1e9, sum = 0;
            int64_t best = -1, end = visible_end(p, 0, t);
            for (int64_t j = 0; j < end; j++) {
                double s = absorbed_score(&c, t, t & 1, j);
                best = s > largest ? j : best;
                largest = s > largest ? s : largest;
                sum += exp(s);
            }
            assert_true(exp(largest) / sum > 0.99);
            bool tile = best % 64 == 0 || best % 64 == 63;
            bool page = p->page_size &&
                        (best % p->page_size == 0 || best % p->page_size == p->page_size - 1);
            bool split = best % 50 == 0 || best % 50 == 49;
            seen[0] += tile;
            seen[1] += page;
            seen[2] += split;
            assert_true(tile || page || split || best == 399);
            bool listed = !p->topk && !p->has_mask;
            const int32_t *list = c.tensors.topk_indices.data, *mask = c.tensors.mask.data;
            for (int64_t k = 0; k < p->topk; k++)
                listed |= list[t * p->topk + k] == best;
            if (mask)
                listed = (uint32_t)mask[t * 13 + best / 32] >> (best % 32) & 1;
            assert_true(listed);
        }
        assert_true(seen[0] && seen[2]);
        assert_true(p->page_size != 48 || seen[1]);
        mla_case_free(&c);
    }
}

static void fill_equal_and_cancel(void **state)
{
    (void)state;
    struct mla_case c = make("attend form=absorbed heads=2 batch=q2s40 fill=equal");
    for (int64_t j = 1; j < 38; j++)
        assert_true(absorbed_score(&c, 0, 1, j) == absorbed_score(&c, 0, 1, 0));
    float a[576], b[576];
    key_row(&c, 0, 0, a);
    key_row(&c, 0, 1, b);
    assert_memory_not_equal(a, b, sizeof a);
    mla_case_free(&c);

    static const char *const formats[] = {"bf16", "fp8", "nvfp4"};
    for (int f = 0; f < 3; f++) {
        char text[128];
        snprintf(text, sizeof text, "attend form=absorbed heads=2 batch=q2s40 fill=cancel cache=%s",
                 formats[f]);
        c = make(text);
        for (int64_t j = 0; j < 38; j += 2) {
            key_row(&c, 0, j, a);
            key_row(&c, 0, j + 1, b);
            for (int i = 0; i < 512; i++)
                assert_true(i & 1 ? a[i] == -b[i] : a[i] == b[i]);
            assert_true(absorbed_score(&c, 1, 0, j) == absorbed_score(&c, 1, 0, j + 1));
        }
        mla_case_free(&c);
    }
}

/* -------------------------------------------------------------------- poison */

static void fill_unused_slots_are_nan_and_page_ids_wild(void **state)
{
    (void)state;
    struct mla_case c = make("attend form=absorbed heads=2 rank=8 rope=4 batch=q1s10,q1s17 page=8");
    const int32_t *table = c.tensors.page_table.data;
    const uint16_t *cache = c.tensors.kv_cache.data;
    bool used[5] = {false};
    assert_int_equal(c.problem.num_pages, 5);
    assert_int_equal(c.problem.max_pages, 3);
    for (int64_t b = 0; b < 2; b++)
        for (int64_t i = 0; i < 3; i++) {
            int32_t id = table[b * 3 + i];
            if (b == 0 && i == 2) {
                assert_true(id < 0 || id >= 5);
                continue;
            }
            assert_in_range(id, 0, 4);
            assert_false(used[id]);
            used[id] = true;
            for (int64_t slot = 0; slot < 8; slot++)
                for (int64_t e = 0; e < 12; e++) {
                    bool exists = i * 8 + slot < c.problem.seq_lens_kv[b];
                    float x = mla_bf16_to_f32(cache[(id * 8 + slot) * 12 + e]);
                    assert_true(exists ? isfinite(x) : isnan(x));
                }
        }
    mla_case_free(&c);

    c = make("attend form=absorbed heads=2 batch=q1s10 cache=fp8");
    const uint8_t *bytes = c.tensors.kv_cache.data;
    for (size_t i = 10 * 656; i < 64 * 656; i++)
        assert_int_equal(bytes[i], 0xFF);
    mla_case_free(&c);

    struct mla_case ordered = make("attend model=tiny batch=q1s100 page=8 pages=ordered");
    for (int i = 0; i < 13; i++)
        assert_int_equal(((int32_t *)ordered.tensors.page_table.data)[i], i);
    mla_case_free(&ordered);
}

/* --------------------------------------------------------------------- lists */

static void fill_lists_are_random_unordered_subsets(void **state)
{
    (void)state;
    struct mla_case c = make("attend model=tiny heads=1 batch=q400s420 topk=32");
    const int32_t *list = c.tensors.topk_indices.data;
    int hits[420] = {0}, descents = 0, steps = 0;
    double expected[420] = {0};
    for (int64_t t = 0; t < 400; t++) {
        int64_t end = visible_end(&c.problem, 0, t), count = end < 32 ? end : 32;
        bool seen[420] = {false};
        for (int64_t k = 0; k < 32; k++) {
            int32_t j = list[t * 32 + k];
            if (k >= count) {
                assert_int_equal(j, -1);
                continue;
            }
            assert_in_range(j, 0, end - 1);
            assert_false(seen[j]);
            seen[j] = true;
            hits[j]++;
            if (k) {
                steps++;
                descents += j < list[t * 32 + k - 1];
            }
        }
        for (int64_t j = 0; j < end; j++)
            expected[j] += (double)count / (double)end;
    }
    assert_true(fabs((double)descents / steps - 0.5) < 0.03); /* sd 0.0026 */
    double chi = 0;
    for (int j = 0; j < 380; j++)
        chi += (hits[j] - expected[j]) * (hits[j] - expected[j]) / expected[j];
    assert_true(chi < 380 + 5 * sqrt(2 * 380.0));
    mla_case_free(&c);
}

static void fill_sink_lists_overlap_like_real_ones(void **state)
{
    (void)state;
    struct mla_case c = make("attend model=tiny heads=1 batch=q200s2000 topk=128 fill=sink");
    const int32_t *list = c.tensors.topk_indices.data;
    double overlap = 0;
    static bool before[2000], now[2000];
    for (int64_t t = 0; t < 200; t++) {
        int64_t end = visible_end(&c.problem, 0, t), recent = 0, sinks = 0, same = 0;
        memset(now, 0, sizeof now);
        for (int64_t k = 0; k < 128; k++) {
            int32_t j = list[t * 128 + k];
            assert_in_range(j, 0, end - 1);
            assert_false(now[j]);
            now[j] = true;
            sinks += j < 4;
            recent += j >= end - 31;
            same += before[j];
        }
        assert_int_equal(sinks, 4);
        assert_int_equal(recent, 31);
        if (t)
            overlap += (double)same / 128;
        memcpy(before, now, sizeof now);
    }
    /* random lists would share 128/2000 = 6 % */
    assert_true(overlap / 199 > 0.7);
    assert_true(overlap / 199 < 0.98);
    mla_case_free(&c);
}

static void fill_topk_lens_hide_poison(void **state)
{
    (void)state;
    struct mla_case c = make("attend model=tiny heads=1 batch=q60s100,q9 topk=32 topk_lens=1");
    const int32_t *list = c.tensors.topk_indices.data, *lens = c.tensors.topk_lens;
    int shorter = 0, stale = 0;
    for (int64_t t = 0; t < 69; t++) {
        int64_t b = t >= 60, end = visible_end(&c.problem, b, t - 60 * b);
        int64_t most = end < 32 ? end : 32;
        assert_in_range(lens[t], 0, most);
        shorter += lens[t] < most;
        if (b)
            assert_int_equal(lens[t], most);
        for (int64_t k = 0; k < lens[t]; k++)
            assert_in_range(list[t * 32 + k], 0, end - 1);
        for (int64_t k = lens[t]; k < 32; k++)
            stale += list[t * 32 + k] >= 0 && list[t * 32 + k] < c.problem.seq_lens_kv[b];
    }
    assert_true(shorter > 5);
    assert_true(stale > 50); /* a reader that ignores topk_lens would see real keys */
    assert_false(c.complete[0]);
    assert_true(c.complete[1]);
    mla_case_free(&c);
}

static void fill_holes_are_to_be_ignored(void **state)
{
    (void)state;
    struct mla_case c = make("attend model=tiny heads=1 batch=q60s100 topk=32 holes=1");
    const int32_t *list = c.tensors.topk_indices.data;
    int amid = 0, future = 0;
    for (int64_t t = 0; t < 60; t++) {
        int64_t end = visible_end(&c.problem, 0, t);
        for (int64_t k = 0; k < 31; k++) {
            int32_t j = list[t * 32 + k], next = list[t * 32 + k + 1];
            amid += (j < 0 || j >= end) && next >= 0 && next < end;
            future += j >= end && j < 100;
        }
    }
    assert_true(amid > 50 && future > 3);
    mla_case_free(&c);
}

static void fill_masked_hides_rows_and_tiles(void **state)
{
    static const char *const texts[] = {
        "attend model=tiny heads=1 batch=q40s150 topk=32 fill=masked",
        "attend model=tiny heads=1 batch=q40s150 topk=0 fill=masked"};
    (void)state;
    for (int n = 0; n < 2; n++) {
        struct mla_case c = make(texts[n]);
        assert_int_equal(c.problem.has_mask, n == 1);
        int none = 0, no_tile = 0, plain = 0;
        for (int64_t t = 0; t < 40; t++) {
            int64_t end = visible_end(&c.problem, 0, t), seen = 0, first = 0;
            for (int64_t j = 0; j < end; j++) {
                bool listed = false;
                if (n == 1) {
                    uint32_t word = ((uint32_t *)c.tensors.mask.data)[t * 5 + j / 32];
                    listed = word >> (j % 32) & 1;
                } else {
                    for (int64_t k = 0; k < 32; k++)
                        listed |= ((int32_t *)c.tensors.topk_indices.data)[t * 32 + k] == j;
                }
                seen += listed;
                first += listed && j < 64;
            }
            none += !seen;
            no_tile += seen && !first;
            plain += seen && first;
        }
        assert_int_equal(none, 10);
        assert_int_equal(no_tile, 10);
        assert_int_equal(plain, 20);
        mla_case_free(&c);
    }
}

static void fill_completeness_is_found(void **state)
{
    (void)state;
    struct mla_case c = make("attend model=tiny batch=q8s20,q8s40,q3s32 topk=32");
    assert_true(c.complete[0]);
    assert_false(c.complete[1]);
    assert_true(c.complete[2]);
    mla_case_free(&c);
}

static void fill_sinks(void **state)
{
    (void)state;
    struct mla_case c = make("attend model=tiny heads=7 batch=q3 sinks=inf");
    int infinite = 0;
    assert_true(c.problem.has_sink);
    for (int h = 0; h < 7; h++) {
        assert_false(isnan(c.tensors.attn_sink[h]));
        infinite += isinf(c.tensors.attn_sink[h]) != 0;
    }
    assert_int_equal(infinite, 5);
    mla_case_free(&c);
    c = make("attend model=tiny heads=7 batch=q3 sink=1 fill=counting");
    for (int h = 0; h < 7; h++)
        assert_true(c.tensors.attn_sink[h] == 0);
    mla_case_free(&c);
}

/* ----------------------------------------------------------------- bad input */

static void fill_bad_specs(void **state)
{
    static const struct {
        const char *text, *sentence;
    } bad[] = {
        {"attend fill=foo", "fill: got 'foo', want normal"},
        {"attend fill=", "fill: got ''"},
        {"attend seed=-1", "seed: got '-1', want 0"},
        {"attend seed=1x", "seed: got '1x'"},
        {"attend seed=18446744073709551616", "seed: got '18446744073709551616'"},
        {"attend pages=up", "pages: got 'up', want ordered or shuffled"},
        {"attend holes=2", "holes: got '2', want 0 or 1"},
        {"attend sinks=big", "sinks: got 'big', want finite or inf"},
        {"attend colour=red", "got 'colour', want a key"},
        {"attend word", "got 'word', want key=value"},
        {"attended", "want a string that begins with 'attend'"},
        {"attend heads=0", "heads_q: got 0"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct mla_case_spec spec;
        assert_int_equal(mla_case_spec_parse(&spec, bad[i].text), MLA_ERR_ARGUMENT);
        if (!strstr(mla_last_error(), bad[i].sentence))
            fail_msg("%s: %s", bad[i].text, mla_last_error());
    }

    struct mla_case_spec spec;
    struct mla_case c;
    assert_int_equal(mla_case_spec_parse(&spec, "attend model=tiny topk=8 complete=1 holes=1"),
                     MLA_OK);
    assert_int_equal(mla_case_make(&spec, &c), MLA_ERR_ARGUMENT);
    assert_non_null(strstr(mla_last_error(), "complete: got 1, want 0"));
    mla_problem_release(&spec.problem);

    assert_int_equal(mla_case_spec_parse(&spec, "attend model=tiny page=8 batch=q20"), MLA_OK);
    spec.problem.num_pages = 2;
    assert_int_equal(mla_case_make(&spec, &c), MLA_ERR_ARGUMENT);
    assert_non_null(strstr(mla_last_error(), "num_pages: got 2, want at least 3"));
    spec.problem.num_pages = 3;
    strcpy(spec.fill, "odd");
    assert_int_equal(mla_case_make(&spec, &c), MLA_ERR_ARGUMENT);
    assert_non_null(strstr(mla_last_error(), "fill: got odd"));
    mla_problem_release(&spec.problem);
}

static void fill_strings_come_back(void **state)
{
    static const char *const texts[] = {
        "attend model=glm-5 batch=2q3s9,q1s40 page=8 pages=ordered holes=1 topk=4 seed=77",
        "attend form=expanded hq=8 hk=2 sq=3 sinks=inf seed=18446744073709551615",
        "attend form=absorbed cache=fp8 b=2 skv=70 fill=masked",
    };
    (void)state;
    for (int i = 0; i < 3; i++) {
        struct mla_case first = make(texts[i]), second = make(first.text);
        assert_string_equal(first.text, second.text);
        assert_true(hash_case(&first) == hash_case(&second));
        mla_case_free(&first);
        mla_case_free(&second);
    }
}

static void fill_survives_failing_allocations(void **state)
{
    static const char *const texts[] = {
        "attend model=tiny batch=2q3s20 page=8 topk=4 topk_lens=1 sink=1",
        "attend form=expanded heads=2 batch=q3s20 mask=1",
        "attend model=tiny batch=2q3s20",
    };
    (void)state;
    for (int i = 0; i < 3; i++) {
        mla_status status = MLA_ERR_MEMORY;
        int64_t n = 0;
        while (status == MLA_ERR_MEMORY) {
            struct mla_case_spec spec;
            struct mla_case c;
            assert_true(++n < 200);
            mla_alloc_fail_at(n);
            status = mla_case_spec_parse(&spec, texts[i]);
            if (!status) {
                status = mla_case_make(&spec, &c);
                mla_problem_release(&spec.problem);
                if (!status)
                    mla_case_free(&c);
            }
            mla_alloc_fail_at(0);
        }
        assert_int_equal(status, MLA_OK);
        assert_true(n > 8);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fill_threads_do_not_matter),
        cmocka_unit_test(fill_bits_are_fixed),
        cmocka_unit_test(fill_seed_changes_everything),
        cmocka_unit_test(fill_normal_is_normal),
        cmocka_unit_test(fill_scores_have_the_scale_of_models),
        cmocka_unit_test(fill_counting_is_exact_in_every_format),
        cmocka_unit_test(fill_needle_dominates),
        cmocka_unit_test(fill_equal_and_cancel),
        cmocka_unit_test(fill_unused_slots_are_nan_and_page_ids_wild),
        cmocka_unit_test(fill_lists_are_random_unordered_subsets),
        cmocka_unit_test(fill_sink_lists_overlap_like_real_ones),
        cmocka_unit_test(fill_topk_lens_hide_poison),
        cmocka_unit_test(fill_holes_are_to_be_ignored),
        cmocka_unit_test(fill_masked_hides_rows_and_tiles),
        cmocka_unit_test(fill_completeness_is_found),
        cmocka_unit_test(fill_sinks),
        cmocka_unit_test(fill_bad_specs),
        cmocka_unit_test(fill_strings_come_back),
        cmocka_unit_test(fill_survives_failing_allocations),
    };
    return cmocka_run_group_tests_name("fill", tests, NULL, NULL);
}
