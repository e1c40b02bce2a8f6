/* SPDX-License-Identifier: Apache-2.0 */
/* Number formats, exhaustively and against the golden roundings, and the readers of cache rows. */
#include "support.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "format.h"

#define GOLDEN MLA_SOURCE_DIR "/validation/golden/"

static float f32_of(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static double f64_of(uint64_t bits)
{
    double x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* The value of a code by the definition of such formats; inf_exponent: codes with the top exponent
 * are inf and NaN. */
static double decode(unsigned code, int ebits, int mbits, bool inf_exponent)
{
    int bias = (1 << (ebits - 1)) - 1, top = (1 << ebits) - 1;
    int m = (int)(code & ((1u << mbits) - 1)), e = (int)(code >> mbits) & top;
    double x = e ? ldexp((1 << mbits) + m, e - bias - mbits) : ldexp(m, 1 - bias - mbits);
    if (inf_exponent && e == top)
        x = m ? NAN : INFINITY;
    return code >> (ebits + mbits) & 1 ? -x : x;
}

/* Equal values, sign of zero included; NaN equals NaN. */
static bool same(double a, double b)
{
    return isnan(a) ? isnan(b) : a == b && !signbit(a) == !signbit(b);
}

static void all_bf16_codes(void **state)
{
    (void)state;
    for (unsigned code = 0; code < 65536; code++) {
        double want = decode(code, 8, 7, true);
        float got = mla_bf16_to_f32((uint16_t)code);
        assert_true(same(got, want));
        if (isnan(want)) {
            assert_true(isnan(mla_bf16_to_f32(mla_f32_to_bf16(got))));
            assert_true(isnan(mla_bf16_to_f32(mla_f64_to_bf16(got))));
        } else {
            assert_int_equal(mla_f32_to_bf16(got), code);
            assert_int_equal(mla_f64_to_bf16(got), code);
        }
    }
}

static void all_f16_codes(void **state)
{
    (void)state;
    for (unsigned code = 0; code < 65536; code++) {
        double want = decode(code, 5, 10, true);
        float got = mla_f16_to_f32((uint16_t)code);
        assert_true(same(got, want));
        if (isnan(want)) {
            assert_true(isnan(mla_f16_to_f32(mla_f32_to_f16(got))));
            assert_true(isnan(mla_f16_to_f32(mla_f64_to_f16(got))));
        } else {
            assert_int_equal(mla_f32_to_f16(got), code);
            assert_int_equal(mla_f64_to_f16(got), code);
        }
    }
}

static void all_small_codes(void **state)
{
    (void)state;
    for (unsigned code = 0; code < 256; code++) {
        bool nan = (code & 0x7F) == 0x7F;
        float got = mla_e4m3_to_f32((uint8_t)code);
        assert_true(same(got, nan ? NAN : decode(code, 4, 3, false)));
        assert_int_equal(mla_f32_to_e4m3(got), nan ? 0x7F : code);
        float scale = mla_ue8m0_to_f32((uint8_t)code);
        assert_true(same(scale, code == 255 ? NAN : ldexp(1, (int)code - 127)));
    }
    for (unsigned code = 0; code < 16; code++) {
        float got = mla_e2m1_to_f32((uint8_t)code);
        assert_true(same(got, decode(code, 2, 1, false)));
        assert_int_equal(mla_f32_to_e2m1(got), code);
        assert_true(same(mla_e2m1_to_f32((uint8_t)(code | 0xF0)), got)); /* high bits are ignored */
    }
}

static void specials(void **state)
{
    (void)state;
    assert_int_equal(mla_f32_to_e4m3(NAN), 0x7F);
    assert_int_equal(mla_f32_to_e4m3(-NAN), 0x7F);
    assert_int_equal(mla_f32_to_e4m3(INFINITY), 0x7E);
    assert_int_equal(mla_f32_to_e4m3(-INFINITY), 0xFE);
    assert_int_equal(mla_f32_to_e2m1(NAN), 7);
    assert_int_equal(mla_f32_to_e2m1(-INFINITY), 15);
    assert_int_equal(mla_f64_to_bf16(-INFINITY), 0xFF80);
    assert_int_equal(mla_f64_to_f16(INFINITY), 0x7C00);
    /* A payload that has no bit in the upper half must not turn into infinity. */
    assert_int_equal(mla_f32_to_bf16(f32_of(0x7F800001)), 0x7FC0);
    assert_int_equal(mla_f32_to_bf16(f32_of(0xFF800001)), 0xFFC0);
    /* A tie by way of float, not a tie in double. */
    assert_int_equal(mla_f64_to_bf16(1 + 0x1p-8), 0x3F80);
    assert_int_equal(mla_f64_to_bf16(1 + 0x1p-8 + 0x1p-40), 0x3F81);
    assert_int_equal(mla_f64_to_bf16(1 + 3 * 0x1p-8 - 0x1p-40), 0x3F81);
    assert_int_equal(mla_f64_to_f16(1 + 0x1p-11 + 0x1p-40), 0x3C01);
}

/* Every line of numbers.txt, alone and in arrays. */
static void golden_numbers(void **state)
{
    (void)state;
    FILE *file = fopen(GOLDEN "numbers.txt", "r");
    assert_non_null(file);
    char line[128];
    int seen = 0;
    while (fgets(line, sizeof line, file)) {
        uint64_t bits;
        unsigned bf16, f16;
        char e4m3[8], e2m1[8];
        if (line[0] == '#')
            continue;
        assert_int_equal(sscanf(line, "%" SCNx64 " %x %x %7s %7s", &bits, &bf16, &f16, e4m3, e2m1),
                         5);
        double x = f64_of(bits);
        uint16_t one;
        assert_int_equal(mla_f64_to_bf16(x), bf16);
        assert_int_equal(mla_f64_to_f16(x), f16);
        mla_store_f64(MLA_BF16, &one, 1, &x);
        assert_int_equal(one, bf16);
        mla_store_f64(MLA_F16, &one, 1, &x);
        assert_int_equal(one, f16);
        if (e4m3[0] != '-') {
            float y = (float)x;
            assert_true((double)y == x);
            assert_int_equal(mla_f32_to_bf16(y), bf16);
            assert_int_equal(mla_f32_to_f16(y), f16);
            assert_int_equal(mla_f32_to_e4m3(y), strtoul(e4m3, NULL, 16));
            assert_int_equal(mla_f32_to_e2m1(y), strtoul(e2m1, NULL, 16));
        }
        seen++;
    }
    fclose(file);
    assert_true(seen > 5000);
}

/* All lengths round the vector width, at odd addresses, against the scalar calls; nothing past the
 * end is touched. */
static void arrays(void **state)
{
    (void)state;
    uint64_t seed = 11;
    for (int n = 0; n <= 67; n++) {
        unsigned char raw[8 * 68 + 1], out[8 * 68 + 1];
        float f[68];
        double d[68];
        for (mla_dtype dtype = MLA_BF16; dtype <= MLA_F64; dtype++) {
            int64_t item = (int64_t)mla_dtype_bytes(dtype);
            bool half = dtype <= MLA_F16;
            unsigned char *src = raw + (half ? 1 : 0), *dst = out + (half ? 1 : 0);
            double aligned_src[68], aligned_dst[68];
            if (!half)
                src = (unsigned char *)aligned_src, dst = (unsigned char *)aligned_dst;
            for (int64_t i = 0; i < n; i++) {
                double x =
                    (mla_test_uniform(&seed) - 0.5) * ldexp(1, (int)mla_test_below(&seed, 30));
                float y = (float)x;
                uint16_t h = (uint16_t)mla_test_below(&seed, 65536);
                memcpy(src + i * item,
                       half        ? (void *)&h
                       : item == 4 ? (void *)&y
                                   : (void *)&x,
                       (size_t)item);
            }
            f[n] = 7, d[n] = 7;
            mla_load_f32(dtype, src, n, f);
            mla_load_f64(dtype, src, n, d);
            assert_true(f[n] == 7 && d[n] == 7);
            for (int64_t i = 0; i < n; i++) {
                uint16_t h;
                memcpy(&h, src + i * item, 2);
                double want = dtype == MLA_BF16  ? mla_bf16_to_f32(h)
                              : dtype == MLA_F16 ? mla_f16_to_f32(h)
                              : dtype == MLA_F32 ? ((float *)aligned_src)[i]
                                                 : aligned_src[i];
                assert_true(same(d[i], want));
                assert_true(same(f[i], (float)want));
            }
            memset(dst, 0xA5, (size_t)((n + 1) * item));
            mla_store_f64(dtype, dst, n, d);
            for (int64_t i = 0; i < n; i++)
                if (!isnan(d[i]))
                    assert_memory_equal(dst + i * item, src + i * item, (size_t)item);
            assert_int_equal(dst[n * item], 0xA5);
            mla_store_f32(dtype, dst, n, f);
            for (int64_t i = 0; i < n; i++) {
                if (half && !isnan(f[i]))
                    assert_memory_equal(dst + i * item, src + i * item, (size_t)item);
                else if (!half)
                    assert_true(item == 4 ? same(((float *)aligned_dst)[i], f[i])
                                          : same(aligned_dst[i], f[i]));
            }
            assert_int_equal(dst[n * item], 0xA5);
        }
    }
}

static void sizes(void **state)
{
    (void)state;
    assert_int_equal(mla_dtype_bytes(MLA_BF16), 2);
    assert_int_equal(mla_dtype_bytes(MLA_F16), 2);
    assert_int_equal(mla_dtype_bytes(MLA_F32), 4);
    assert_int_equal(mla_dtype_bytes(MLA_F64), 8);
    assert_int_equal(mla_dtype_bytes((mla_dtype)4), 0);
    assert_int_equal(mla_dtype_bytes((mla_dtype)-1), 0);
    assert_int_equal(mla_cache_row_bytes(MLA_CACHE_BF16, 512, 64), 1152);
    assert_int_equal(mla_cache_row_bytes(MLA_CACHE_F16, 512, 0), 1024);
    assert_int_equal(mla_cache_row_bytes(MLA_CACHE_F32, 3, 1), 16);
    assert_int_equal(mla_cache_row_bytes(MLA_CACHE_FP8_DS_MLA, 512, 64), 656);
    assert_int_equal(mla_cache_row_bytes(MLA_CACHE_MODEL1, 512, 0), 584);
    assert_int_equal(mla_cache_row_bytes(MLA_CACHE_V41, 512, 0), 528);
    assert_int_equal(mla_cache_row_bytes(MLA_CACHE_NVFP4_DS_MLA, 512, 64), 352);
    assert_int_equal(mla_cache_row_bytes((mla_cache_format)7, 512, 64), 0);
    assert_int_equal(mla_cache_row_bytes(MLA_CACHE_BF16, -1, 64), 0);
    assert_int_equal(mla_cache_dtype(MLA_CACHE_F16), MLA_F16);
    assert_int_equal(mla_cache_dtype(MLA_CACHE_V41), MLA_F64);
}

/* ------------------------------------------------------------- cache rows */

/* Key j of a plain cache holds value(j, d) at dimension d: exact in every format. */
static float value(int64_t j, int64_t d)
{
    return (float)((j * 31 + d * 7) % 251 - 125);
}

/* Reads keys[0..n) with both readers into rows of ld > width; checks values, valid and guards.
 * hidden(j): the row must be zero. */
static void check_rows(const mla_problem *p, const mla_tensors *t, const struct mla_request *r,
                       int64_t seq_len_kv, const int32_t *index, int64_t first, int64_t n,
                       bool (*hidden)(int64_t j), float (*want)(int64_t j, int64_t d))
{
    int64_t width = p->kv_lora_rank + p->qk_rope_dim, ld = width + 3;
    float *f = malloc((size_t)(n * ld + 1) * sizeof *f);
    double *d = malloc((size_t)(n * ld + 1) * sizeof *d);
    uint8_t valid[64], valid64[64];
    assert_non_null(f);
    assert_non_null(d);
    assert_true(n <= 64);
    for (int64_t i = 0; i < n * ld; i++)
        f[i] = 1e30f, d[i] = 1e30;
    memset(valid, 9, sizeof valid);
    memset(valid64, 9, sizeof valid64);
    mla_cache_rows_f32(p, t, r, seq_len_kv, index, first, n, f, ld, valid);
    mla_cache_rows_f64(p, t, r, seq_len_kv, index, first, n, d, ld, valid64);
    for (int64_t i = 0; i < n; i++) {
        int64_t j = index ? index[i] : first + i;
        bool gone = j < 0 || j >= seq_len_kv || hidden(j);
        assert_int_equal(valid[i], !gone);
        assert_int_equal(valid64[i], !gone);
        for (int64_t k = 0; k < ld; k++) {
            double expected = k >= width ? 1e30 : gone ? 0 : want(j, k);
            assert_true(d[i * ld + k] == expected);
            assert_true(f[i * ld + k] == (float)expected);
        }
    }
    mla_cache_rows_f32(p, t, r, seq_len_kv, index, first, n, f, ld, NULL);
    free(f);
    free(d);
}

static bool none_hidden(int64_t j)
{
    (void)j;
    return false;
}

static void flat_rows(void **state)
{
    (void)state;
    static const int64_t dims[][2] = {{512, 64}, {512, 0}, {5, 3}, {1, 0}, {33, 1}};
    const int32_t index[] = {6, 0, -1, 2, 2, 7, INT32_MAX, INT32_MIN, 5, 8};
    for (size_t c = 0; c < sizeof dims / sizeof *dims; c++) {
        for (mla_cache_format format = MLA_CACHE_BF16; format <= MLA_CACHE_F32; format++) {
            mla_problem p = {.form = MLA_FORM_LATENT,
                             .cache_format = format,
                             .kv_lora_rank = dims[c][0],
                             .qk_rope_dim = dims[c][1]};
            mla_dtype dtype = mla_cache_dtype(format);
            size_t item = mla_dtype_bytes(dtype);
            /* A second request behind three foreign keys, rows wider than their contents. */
            int64_t l = dims[c][0], dr = dims[c][1], lc = l + 5, lr = dr + 2;
            struct mla_request r = {.index = 1, .kv_start = 3, .seq_len_kv = 7};
            char *kv_c = calloc((size_t)(10 * lc), item), *k_pe = calloc((size_t)(10 * lr), item);
            assert_true(kv_c && k_pe);
            for (int64_t j = 0; j < 7; j++) {
                float row[576];
                for (int64_t d = 0; d < l + dr; d++)
                    row[d] = value(j, d);
                mla_store_f32(dtype, kv_c + (size_t)((j + 3) * lc) * item, l, row);
                mla_store_f32(dtype, k_pe + (size_t)((j + 3) * lr) * item, dr, row + l);
            }
            mla_tensors t = {.kv_c = {kv_c, {lc, 0}}};
            if (dr)
                t.k_pe = (mla_tensor){k_pe, {lr, 0}};
            check_rows(&p, &t, &r, 7, index, 0, 10, none_hidden, value);
            check_rows(&p, &t, &r, 5, index, 0, 10, none_hidden, value); /* shortened at run time */
            check_rows(&p, &t, &r, 7, NULL, -1, 10, none_hidden, value);
            check_rows(&p, &t, &r, 7, NULL, 2, 3, none_hidden, value);
            free(kv_c);
            free(k_pe);
        }
    }
}

static int64_t hole_from, hole_to;

static bool in_hole(int64_t j)
{
    return j >= hole_from && j < hole_to;
}

static void paged_rows(void **state)
{
    (void)state;
    static const int64_t page_sizes[] = {1, 2, 53, 64};
    for (size_t s = 0; s < 4; s++) {
        for (int padded = 0; padded < 2; padded++) {
            int64_t ps = page_sizes[s], l = 24, dr = 8, keys = 3 * ps + (ps > 1);
            int64_t columns = 5, num_pages = 9;
            int64_t step = padded ? l + dr + 1 : l + dr, page = ps * step + (padded ? 17 : 0);
            mla_problem p = {.form = MLA_FORM_ABSORBED,
                             .cache_format = MLA_CACHE_BF16,
                             .kv_lora_rank = l,
                             .qk_rope_dim = dr,
                             .page_size = ps,
                             .num_pages = num_pages,
                             .max_pages = columns};
            struct mla_request r = {.index = 1, .seq_len_kv = keys};
            /* Row stride of the table is wider than its columns; request 0 owns the first row. */
            int32_t table[2][7] = {{0, 0, 0, 0, 0, 0, 0}, {8, 2, 5, 1, 99, 99, 99}};
            uint16_t *cache = malloc((size_t)(num_pages * page) * 2);
            assert_non_null(cache);
            memset(cache, 0xFF, (size_t)(num_pages * page) * 2); /* NaN wherever no key is */
            for (int64_t j = 0; j < keys; j++)
                for (int64_t d = 0; d < l + dr; d++)
                    cache[table[1][j / ps] * page + j % ps * step + d] =
                        mla_f32_to_bf16(value(j, d));
            mla_tensors t = {.kv_cache = {cache, {padded ? page : 0, padded ? step : 0}},
                             .page_table = {table, {7, 0}}};
            int32_t index[12];
            for (int i = 0; i < 12; i++)
                index[i] = (int32_t)((i * 37 + 5) % (keys + 2)) - 1;
            check_rows(&p, &t, &r, keys, index, 0, 12, none_hidden, value);
            check_rows(&p, &t, &r, keys, NULL, keys - 3, 6, none_hidden, value);
            /* Wrong page ids hide the keys of their page and nothing else. */
            static const int32_t wrong[] = {-1, INT32_MIN, 9, INT32_MAX};
            for (int w = 0; w < 4; w++) {
                table[1][1] = wrong[w];
                hole_from = ps, hole_to = 2 * ps;
                check_rows(&p, &t, &r, keys, index, 0, 12, in_hole, value);
                check_rows(&p, &t, &r, keys, NULL, 0, keys < 60 ? keys : 60, in_hole, value);
            }
            /* A length past the page table is cut off there. */
            p.max_pages = 1;
            hole_from = ps, hole_to = INT64_MAX;
            check_rows(&p, &t, &r, keys, index, 0, 12, in_hole, value);
            free(cache);
        }
    }
}

/* Packed records in padded pages: the value of a key comes from its scale alone (codes: all 1.0),
 * so a scale or a page taken from the wrong place shows. */
static float packed_value(int64_t j, int64_t d)
{
    (void)d;
    return ldexpf(1, (int)(j % 8));
}

static void packed_rows(void **state)
{
    (void)state;
    static const int64_t page_sizes[] = {1, 2, 53, 64};
    for (mla_cache_format format = MLA_CACHE_FP8_DS_MLA; format <= MLA_CACHE_NVFP4_DS_MLA;
         format++) {
        for (size_t s = 0; s < 4; s++) {
            bool footer = format == MLA_CACHE_MODEL1 || format == MLA_CACHE_V41;
            int64_t ps = page_sizes[s], keys = 2 * ps + 1;
            int64_t row = (int64_t)mla_cache_row_bytes(format, 512, 0);
            int64_t step = footer ? row : row + 7, page = ps * step + 129; /* odd on purpose */
            mla_problem p = {.form = MLA_FORM_ABSORBED,
                             .cache_format = format,
                             .kv_lora_rank = 512,
                             .qk_rope_dim = footer ? 0 : 64,
                             .page_size = ps,
                             .num_pages = 4,
                             .max_pages = 3};
            int32_t table[3] = {3, 0, 2};
            struct mla_request r = {.seq_len_kv = keys};
            uint8_t *cache = malloc((size_t)(4 * page));
            assert_non_null(cache);
            memset(cache, 0xFF, (size_t)(4 * page));
            for (int64_t j = 0; j < keys; j++) {
                uint8_t *at = cache + table[j / ps] * page;
                int64_t slot = j % ps;
                float x = packed_value(j, 0);
                uint16_t rope = mla_f32_to_bf16(x);
                if (format == MLA_CACHE_FP8_DS_MLA) {
                    at += slot * step;
                    memset(at, 0x38, 512);
                    for (int i = 0; i < 4; i++)
                        memcpy(at + 512 + 4 * i, &x, 4);
                    for (int i = 0; i < 64; i++)
                        memcpy(at + 528 + 2 * i, &rope, 2);
                } else if (format == MLA_CACHE_MODEL1) {
                    memset(at + slot * 576, 0x38, 448);
                    for (int i = 0; i < 64; i++)
                        memcpy(at + slot * 576 + 448 + 2 * i, &rope, 2);
                    memset(at + ps * 576 + slot * 8, 127 + (int)(j % 8), 7);
                } else if (format == MLA_CACHE_V41) {
                    memset(at + slot * 512, 0x38, 512);
                    memset(at + ps * 512 + slot * 16, 127 + (int)(j % 8), 16);
                } else {
                    at += slot * step;
                    memset(at, 0x22, 256);
                    memset(at + 256, mla_f32_to_e4m3(x), 64);
                    memset(at + 320, mla_f32_to_e4m3(x), 32);
                }
            }
            mla_tensors t = {.kv_cache = {cache, {page, footer ? 0 : step}},
                             .page_table = {table, {0, 0}}};
            int32_t index[] = {0, (int32_t)keys - 1, 1, (int32_t)ps, -1, (int32_t)keys};
            check_rows(&p, &t, &r, keys, index, 0, 6, none_hidden, packed_value);
            check_rows(&p, &t, &r, keys, NULL, 0, keys < 60 ? keys : 60, none_hidden, packed_value);
            table[1] = 4;
            hole_from = ps, hole_to = 2 * ps;
            check_rows(&p, &t, &r, keys, index, 0, 6, in_hole, packed_value);
            free(cache);
        }
    }
}

/* Offsets beyond 2^31 bytes and keys far out: only addresses are computed, pages are never touched
 * where the id is wrong. */
static void far_keys(void **state)
{
    (void)state;
    int64_t ps = (int64_t)1 << 33;
    mla_problem p = {.form = MLA_FORM_ABSORBED,
                     .cache_format = MLA_CACHE_F32,
                     .kv_lora_rank = 2,
                     .qk_rope_dim = 0,
                     .page_size = ps,
                     .num_pages = 2,
                     .max_pages = 2};
    int32_t table[2] = {0, 7};
    float cache[8] = {1, 2, 3, 4, 5, 6, 7, 8}, out[4];
    uint8_t valid[2];
    struct mla_request r = {.seq_len_kv = 2 * ps};
    mla_tensors t = {.kv_cache = {cache, {0, 0}}, .page_table = {table, {0, 0}}};
    mla_cache_rows_f32(&p, &t, &r, 2 * ps, NULL, 2, 2, out, 2, valid);
    assert_true(valid[0] && valid[1] && out[0] == 5 && out[3] == 8);
    mla_cache_rows_f32(&p, &t, &r, 2 * ps, NULL, ps + 3, 2, out, 2, valid);
    assert_true(!valid[0] && !valid[1] && out[0] == 0 && out[3] == 0);
}

/* A packed format without pages is refused long before; the reader shows no key, no crash. */
static void packed_flat(void **state)
{
    (void)state;
    mla_problem p = {.cache_format = MLA_CACHE_V41, .kv_lora_rank = 512};
    mla_tensors t = {0};
    struct mla_request r = {.seq_len_kv = 3};
    float out[512];
    uint8_t valid = 1;
    mla_cache_rows_f32(&p, &t, &r, 3, NULL, 0, 1, out, 512, &valid);
    assert_int_equal(valid, 0);
    assert_true(out[0] == 0 && out[511] == 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_bf16_codes),  cmocka_unit_test(all_f16_codes),
        cmocka_unit_test(all_small_codes), cmocka_unit_test(specials),
        cmocka_unit_test(golden_numbers),  cmocka_unit_test(arrays),
        cmocka_unit_test(sizes),           cmocka_unit_test(flat_rows),
        cmocka_unit_test(paged_rows),      cmocka_unit_test(packed_rows),
        cmocka_unit_test(far_keys),        cmocka_unit_test(packed_flat),
    };
    return cmocka_run_group_tests_name("format", tests, NULL, NULL);
}
