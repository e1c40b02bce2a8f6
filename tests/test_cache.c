/* SPDX-License-Identifier: Apache-2.0 */
/* Cache codecs: golden records byte for byte, strides, pages, round trips, every bad argument. */
#include "support.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "format.h"
#include "mla/cache.h"
#include "record.h"
#include "status.h"

#define GOLDEN MLA_SOURCE_DIR "/validation/golden/"

static const mla_context cpu = {.backend = MLA_BACKEND_CPU, .threads = 1};

/* ------------------------------------------------------------ golden files */

enum { MAX_WORDS = 4096, MAX_TOKENS = 4 };

struct golden {
    char name[64];
    bool written; /* has values */
    mla_scale_rule rule;
    mla_dtype dtype;
    int64_t page_size, num_slots, slots[MAX_TOKENS];
    int num_values, num_page, num_back;
    uint8_t values[4 * MAX_WORDS], page[MAX_WORDS];
    double back[MAX_WORDS];
};

/* "word*count word …" of hex words of bytes each, little-endian to dst; returns how many. */
static int unsqueeze(char *text, int bytes, uint8_t *dst)
{
    int n = 0;
    for (char *at = strtok(text, " \n"); at; at = strtok(NULL, " \n")) {
        char *star;
        uint64_t word = strtoull(at, &star, 16);
        for (int count = *star == '*' ? atoi(star + 1) : 1; count > 0; count--, n++) {
            assert_true(n < MAX_WORDS);
            for (int b = 0; b < bytes; b++)
                dst[n * bytes + b] = (uint8_t)(word >> 8 * b);
        }
    }
    return n;
}

/* "40c*2 nan 0": f64 bits without trailing zeros. */
static int unsqueeze_f64(char *text, double *dst)
{
    int n = 0;
    for (char *at = strtok(text, " \n"); at; at = strtok(NULL, " \n")) {
        char digits[17] = "0000000000000000";
        size_t length = strcspn(at, "*");
        int count = at[length] == '*' ? atoi(at + length + 1) : 1;
        double x = NAN;
        if (strncmp(at, "nan", 3)) {
            assert_true(length <= 16);
            memcpy(digits, at, length);
            uint64_t bits = strtoull(digits, NULL, 16);
            memcpy(&x, &bits, sizeof x);
        }
        for (; count > 0; count--) {
            assert_true(n < MAX_WORDS);
            dst[n++] = x;
        }
    }
    return n;
}

/* Calls visit for each case of a file; returns how many there were. */
static int each_golden(const char *record, void (*visit)(const char *record, struct golden *g))
{
    static char line[1 << 17];
    char path[512];
    snprintf(path, sizeof path, GOLDEN "%s.txt", record);
    FILE *file = fopen(path, "r");
    assert_non_null(file);
    struct golden *g = calloc(1, sizeof *g);
    assert_non_null(g);
    int cases = 0;
    while (fgets(line, sizeof line, file)) {
        assert_non_null(strchr(line, '\n'));
        char *rest = strchr(line, ' ');
        if (line[0] == '#' || !rest)
            continue;
        *rest++ = 0;
        if (!strcmp(line, "case")) {
            memset(g, 0, sizeof *g);
            snprintf(g->name, sizeof g->name, "%.*s", (int)strcspn(rest, "\n"), rest);
        } else if (!strcmp(line, "rule")) {
            g->rule = strncmp(rest, "f32", 3) ? MLA_SCALE_DEFAULT : MLA_SCALE_F32;
        } else if (!strcmp(line, "dtype")) {
            g->dtype = !strncmp(rest, "bf16", 4)  ? MLA_BF16
                       : !strncmp(rest, "f16", 3) ? MLA_F16
                                                  : MLA_F32;
        } else if (!strcmp(line, "page_size")) {
            g->page_size = atoi(rest);
        } else if (!strcmp(line, "slots")) {
            for (char *at = strtok(rest, " \n"); at; at = strtok(NULL, " \n")) {
                assert_true(g->num_slots < MAX_TOKENS);
                g->slots[g->num_slots++] = atoi(at);
            }
        } else if (!strcmp(line, "values")) {
            g->num_values = unsqueeze(rest, (int)mla_dtype_bytes(g->dtype), g->values);
            g->written = true;
        } else if (!strcmp(line, "page")) {
            g->num_page = unsqueeze(rest, 1, g->page);
        } else if (!strcmp(line, "back")) {
            g->num_back = unsqueeze_f64(rest, g->back);
            visit(record, g);
            cases++;
        } else {
            fail_msg("%s: unknown line %s", path, line);
        }
    }
    free(g);
    fclose(file);
    return cases;
}

static void assert_bytes(const struct golden *g, const char *record, const uint8_t *got)
{
    for (int i = 0; i < g->num_page; i++)
        if (got[i] != g->page[i])
            fail_msg("%s %s: byte %d: got %02x, want %02x", record, g->name, i, got[i], g->page[i]);
}

static void assert_doubles(const struct golden *g, const char *record, const double *got,
                           bool as_float)
{
    for (int i = 0; i < g->num_back; i++) {
        double want = as_float ? (double)(float)g->back[i] : g->back[i];
        bool equal =
            isnan(want) ? isnan(got[i]) : got[i] == want && !signbit(got[i]) == !signbit(want);
        if (!equal)
            fail_msg("%s %s: value %d: got %a, want %a", record, g->name, i, got[i], want);
    }
}

static void visit_latent(const char *record, struct golden *g)
{
    mla_cache_format format;
    assert_ok(mla_cache_format_parse(record, &format));
    bool joined = format == MLA_CACHE_MODEL1 || format == MLA_CACHE_V41;
    int64_t dr = joined ? 0 : 64, width = 512 + dr, n = g->num_slots;
    assert_int_equal(g->num_page, mla_cache_page_bytes(format, 512, dr, g->page_size));
    assert_int_equal(g->num_back, n * width);
    uint8_t *page = malloc((size_t)g->num_page); /* exact, so that a sanitizer sees overruns */
    double *back = calloc((size_t)(n * width), sizeof *back);
    float *back32 = calloc((size_t)(n * width), sizeof *back32);
    assert_true(page && back && back32);
    mla_cache cache = {.format = format,
                       .kv_lora_rank = 512,
                       .qk_rope_dim = dr,
                       .page_size = g->page_size,
                       .num_pages = 1,
                       .kv_cache = {page, {0, 0}}};
    memset(page, 0xA5, (size_t)g->num_page);
    if (g->written) {
        assert_int_equal(g->num_values, n * width);
        size_t item = mla_dtype_bytes(g->dtype);
        mla_cache_values in = {g->dtype, {g->values, {width, 0}}, {NULL, {width, 0}}};
        if (dr)
            in.k_pe.data = g->values + 512 * item;
        assert_ok(mla_cache_write(&cpu, &cache, &in, g->slots, n, g->rule, NULL));
        assert_bytes(g, record, page);
    }
    memcpy(page, g->page, (size_t)g->num_page);
    mla_cache_values out = {MLA_F64, {back, {width, 0}}, {NULL, {width, 0}}};
    if (dr)
        out.k_pe.data = back + 512;
    assert_ok(mla_cache_read(&cpu, &cache, g->slots, n, &out, NULL));
    assert_doubles(g, record, back, false);

    /* The readers of attention kernels see the same. */
    int32_t page_id = 0, index[MAX_TOKENS];
    for (int64_t i = 0; i < n; i++)
        index[i] = (int32_t)g->slots[i];
    mla_problem p = {.form = MLA_FORM_ABSORBED,
                     .cache_format = format,
                     .kv_lora_rank = 512,
                     .qk_rope_dim = dr,
                     .page_size = g->page_size,
                     .num_pages = 1,
                     .max_pages = 1};
    mla_tensors t = {.kv_cache = cache.kv_cache, .page_table = {&page_id, {0, 0}}};
    struct mla_request r = {.seq_len_kv = g->page_size};
    memset(back, 0, (size_t)(n * width) * sizeof *back);
    mla_cache_rows_f64(&p, &t, &r, g->page_size, index, 0, n, back, width, NULL);
    assert_doubles(g, record, back, false);
    mla_cache_rows_f32(&p, &t, &r, g->page_size, index, 0, n, back32, width, NULL);
    for (int64_t i = 0; i < n * width; i++)
        back[i] = (double)back32[i];
    assert_doubles(g, record, back, true);
    free(page);
    free(back);
    free(back32);
}

static void visit_index(const char *record, struct golden *g)
{
    mla_index_format format = !strcmp(record, "index_fp8") ? MLA_INDEX_FP8 : MLA_INDEX_FP4;
    int64_t n = g->num_slots;
    assert_int_equal(g->num_page, mla_cache_index_page_bytes(format, g->page_size));
    assert_int_equal(g->num_back, n * 128);
    uint8_t *page = malloc((size_t)g->num_page);
    double *back = calloc((size_t)(n * 128), sizeof *back);
    assert_true(page && back);
    mla_cache_index cache = {format, g->page_size, 1, {page, {0, 0}}};
    memset(page, 0xA5, (size_t)g->num_page);
    if (g->written) {
        assert_int_equal(g->num_values, n * 128);
        mla_tensor keys = {g->values, {0, 0}};
        assert_ok(mla_cache_index_write(&cpu, &cache, g->dtype, &keys, g->slots, n, g->rule, NULL));
        assert_bytes(g, record, page);
    }
    memcpy(page, g->page, (size_t)g->num_page);
    mla_tensor out = {back, {0, 0}};
    assert_ok(mla_cache_index_read(&cpu, &cache, g->slots, n, MLA_F64, &out, NULL));
    assert_doubles(g, record, back, false);
    free(page);
    free(back);
}

static void golden_latent(void **state)
{
    (void)state;
    assert_true(each_golden("fp8_ds_mla", visit_latent) >= 20);
    assert_true(each_golden("model1", visit_latent) >= 16);
    assert_true(each_golden("v41", visit_latent) >= 16);
    assert_true(each_golden("nvfp4_ds_mla", visit_latent) >= 16);
}

static void golden_index(void **state)
{
    (void)state;
    assert_true(each_golden("index_fp8", visit_index) >= 20);
    assert_true(each_golden("index_fp4", visit_index) >= 16);
}

/* --------------------------------------------------------------- hand-worked */

static void hand_worked_scales(void **state)
{
    (void)state;
    float x[4] = {0};
    assert_true(mla_latent_scale(x, 4, MLA_SCALE_DEFAULT) == 0x1p-13f);
    assert_true(mla_latent_scale(x, 4, MLA_SCALE_F32) == FLT_MIN);
    assert_true(mla_index_scale(x, 4, MLA_SCALE_DEFAULT) == 0x1p-22f);
    x[2] = -448;
    assert_true(mla_latent_scale(x, 4, MLA_SCALE_DEFAULT) == 1);
    x[2] = -448.00003f;
    assert_true(mla_latent_scale(x, 4, MLA_SCALE_DEFAULT) == 2);
    x[2] = 447.99997f;
    assert_true(mla_latent_scale(x, 4, MLA_SCALE_DEFAULT) == 1);
    x[0] = NAN, x[1] = INFINITY; /* scales come from what is finite */
    assert_true(mla_latent_scale(x, 4, MLA_SCALE_DEFAULT) == 1);
    assert_true(mla_index_scale(x, 4, MLA_SCALE_DEFAULT) == 1);
    uint8_t codes[4];
    mla_quantise_e4m3(x, 4, 1, codes);
    assert_int_equal(codes[0], 0x7F);
    assert_int_equal(codes[1], 0x7F);
    assert_int_equal(codes[2], 0x7E);
    assert_int_equal(codes[3], 0x00);
    assert_int_equal(mla_ceil_log2(1), 0);
    assert_int_equal(mla_ceil_log2(nextafterf(1, 2)), 1);
    assert_int_equal(mla_ceil_log2(nextafterf(1, 0)), 0);
    assert_int_equal(mla_ceil_log2(0x1p-149f), -149);
    assert_int_equal(mla_ceil_log2(FLT_MAX), 128);
}

/* ------------------------------------------------------------------ layouts */

static float sample(int64_t i, int64_t d)
{
    return (float)((i * 131 + d * 17) % 255 - 127) / 64;
}

/* Writes tokens into pages with strides larger than packed, reads them back, and requires that no
 * byte outside the records changes. kind: a cache format; -1, -2: fp8, fp4 index keys. */
static void layouts_of(int kind, int64_t page_size)
{
    bool index = kind < 0;
    mla_cache_format format = index ? MLA_CACHE_BF16 : (mla_cache_format)kind;
    mla_index_format index_format = kind == -2 ? MLA_INDEX_FP4 : MLA_INDEX_FP8;
    bool joined = format == MLA_CACHE_MODEL1 || format == MLA_CACHE_V41;
    bool packed = index || mla_cache_is_packed(format);
    int64_t l = index ? 128 : packed ? 512 : 40, dr = index || joined ? 0 : packed ? 64 : 8;
    int64_t width = l + dr, item = packed ? 1 : (int64_t)mla_dtype_bytes(mla_cache_dtype(format));
    size_t page_bytes = index ? mla_cache_index_page_bytes(index_format, page_size)
                              : mla_cache_page_bytes(format, l, dr, page_size);
    int64_t row = (int64_t)page_bytes / page_size / item;
    bool rows_move = !index && !joined;
    int64_t step = rows_move ? row + 3 : row, page = page_size * step + 5;
    int64_t num_pages = 3, n = 6, limit = num_pages * page_size;
    int64_t slots[6] = {limit - 1, 0, -1, page_size, page_size - 1, 2 * page_size};
    size_t bytes = (size_t)(num_pages * page * item);
    uint8_t *memory = malloc(bytes), *other = malloc(bytes);
    float *values = malloc((size_t)(n * width) * 4), *back = malloc((size_t)(n * width) * 4);
    assert_true(memory && other && values && back);
    for (int64_t i = 0; i < n; i++)
        for (int64_t d = 0; d < width; d++)
            values[i * width + d] = sample(i, d);
    mla_cache cache = {format, l, dr, page_size, num_pages, 0, {memory, {page, 0}}, {0}, {0}};
    if (rows_move)
        cache.kv_cache.stride[1] = step;
    mla_cache_index keys = {index_format, page_size, num_pages, {memory, {page, 0}}};
    mla_cache_values in = {MLA_F32, {values, {width, 0}}, {dr ? values + l : NULL, {width, 0}}};
    mla_cache_values out = {MLA_F32, {back, {width, 0}}, {dr ? back + l : NULL, {width, 0}}};

    /* Twice over different backgrounds: a byte is either written (equal) or untouched. */
    for (int pass = 0; pass < 2; pass++) {
        uint8_t *to = pass ? other : memory;
        memset(to, pass ? 0xC3 : 0x3C, bytes);
        cache.kv_cache.data = keys.pages.data = to;
        if (index)
            assert_ok(mla_cache_index_write(&cpu, &keys, MLA_F32, &in.kv_c, slots, n,
                                            MLA_SCALE_DEFAULT, NULL));
        else
            assert_ok(mla_cache_write(&cpu, &cache, &in, slots, n, MLA_SCALE_DEFAULT, NULL));
    }
    int64_t written = 0, distinct = page_size > 1 ? 5 : 3;
    for (size_t i = 0; i < bytes; i++) {
        bool untouched = memory[i] == 0x3C && other[i] == 0xC3;
        assert_true(untouched || memory[i] == other[i]);
        written += !untouched;
    }
    assert_int_equal(written, distinct * row * item);
    memset(back, 0x11, (size_t)(n * width) * 4);
    if (index)
        assert_ok(mla_cache_index_read(&cpu, &keys, slots, n, MLA_F32, &out.kv_c, NULL));
    else
        assert_ok(mla_cache_read(&cpu, &cache, slots, n, &out, NULL));
    for (int64_t i = 0; i < n; i++) {
        int64_t from = i; /* the last token that names the same slot */
        for (int64_t k = i + 1; k < n; k++)
            if (slots[k] == slots[i])
                from = k;
        for (int64_t d = 0; d < width; d++) {
            float got = back[i * width + d], want = slots[i] < 0 ? 0 : values[from * width + d];
            /* Half a step of the coarsest element: e2m1 up to a third of amax / 4 with its scale
             * rounded up, e4m3 2^-4 relative; plain formats hold the samples exactly. */
            bool fp4 = format == MLA_CACHE_NVFP4_DS_MLA || (index && index_format == MLA_INDEX_FP4);
            float allowed = !packed ? 0 : fp4 ? 0.67f : fabsf(want) / 16 + 0.001f;
            assert_true(fabsf(got - want) <= allowed);
        }
    }
    free(memory);
    free(other);
    free(values);
    free(back);
}

static void layouts(void **state)
{
    (void)state;
    static const int64_t page_sizes[] = {1, 2, 53, 64};
    for (size_t s = 0; s < 4; s++)
        for (int kind = -2; kind <= MLA_CACHE_NVFP4_DS_MLA; kind++)
            layouts_of(kind, page_sizes[s]);
}

/* What a record gives back is stored again as the same bytes (power-of-two rules). Not so where the
 * scale of the values read back is another one: then the values must still be the same. */
static void round_trip(void **state)
{
    (void)state;
    uint64_t seed = 5;
    for (int format = MLA_CACHE_BF16; format <= MLA_CACHE_NVFP4_DS_MLA; format++) {
        bool joined = format == MLA_CACHE_MODEL1 || format == MLA_CACHE_V41;
        int64_t dr = joined ? 0 : 64, width = 512 + dr, slot = 0;
        for (int round = 0; round < 20; round++) {
            float x[576], once[576], twice[576];
            uint8_t page[2304];
            for (int64_t d = 0; d < width; d++)
                x[d] = (float)((mla_test_uniform(&seed) - 0.5) * ldexp(1, round - 10));
            mla_cache cache = {format, 512, dr, 1, 1, 0, {page, {0, 0}}, {0}, {0}};
            mla_cache_values a = {MLA_F32, {x, {0, 0}}, {x + 512, {0, 0}}};
            mla_cache_values b = {MLA_F32, {once, {0, 0}}, {once + 512, {0, 0}}};
            mla_cache_values c = {MLA_F32, {twice, {0, 0}}, {twice + 512, {0, 0}}};
            assert_ok(mla_cache_write(&cpu, &cache, &a, &slot, 1, 0, NULL));
            assert_ok(mla_cache_read(&cpu, &cache, &slot, 1, &b, NULL));
            assert_ok(mla_cache_write(&cpu, &cache, &b, &slot, 1, 0, NULL));
            assert_ok(mla_cache_read(&cpu, &cache, &slot, 1, &c, NULL));
            if (format != MLA_CACHE_NVFP4_DS_MLA) /* its second scale need not be a multiple */
                assert_memory_equal(once, twice, (size_t)width * 4);
        }
    }
}

/* Flat caches: rows wider than their contents, every pair of dtypes, rounded once. */
static void flat(void **state)
{
    (void)state;
    enum { L = 300, R = 6, ROWS = 5 }; /* wider than one piece of the conversion */
    for (mla_cache_format format = MLA_CACHE_BF16; format <= MLA_CACHE_F32; format++) {
        for (mla_dtype dtype = MLA_BF16; dtype <= MLA_F32; dtype++) {
            float x[2][L + R];
            uint8_t in[2 * (L + R) * 4], kv_c[ROWS * (L + 1) * 4], k_pe[ROWS * (R + 2) * 4];
            double out[2][L + R];
            int64_t slots[2] = {4, 1};
            size_t item = mla_dtype_bytes(dtype);
            for (int i = 0; i < 2; i++)
                for (int d = 0; d < L + R; d++)
                    x[i][d] = sample(i, d) * 1.2345678f;
            mla_store_f32(dtype, in, 2 * (L + R), &x[0][0]);
            mla_cache cache = {.format = format,
                               .kv_lora_rank = L,
                               .qk_rope_dim = R,
                               .num_rows = ROWS,
                               .kv_c = {kv_c, {L + 1, 0}},
                               .k_pe = {k_pe, {R + 2, 0}}};
            mla_cache_values a = {dtype, {in, {L + R, 0}}, {in + L * item, {L + R, 0}}};
            mla_cache_values b = {MLA_F64, {out[0], {L + R, 0}}, {out[0] + L, {L + R, 0}}};
            assert_ok(mla_cache_write(&cpu, &cache, &a, slots, 2, 0, NULL));
            assert_ok(mla_cache_read(&cpu, &cache, slots, 2, &b, NULL));
            for (int i = 0; i < 2; i++) {
                double want[L + R];
                uint8_t stored[(L + R) * 4];
                mla_load_f64(dtype, in + (size_t)(i * (L + R)) * item, L + R, want);
                mla_store_f64(mla_cache_dtype(format), stored, L + R, want);
                mla_load_f64(mla_cache_dtype(format), stored, L + R, want);
                assert_memory_equal(out[i], want, sizeof want);
            }
            assert_refused(mla_cache_read(&cpu, &cache, (int64_t[]){5}, 1, &b, NULL),
                           MLA_ERR_ARGUMENT, "slots[0]: got 5, want -1 or 0 to 4");
        }
    }
}

/* ---------------------------------------------------------------- arguments */

static uint8_t page_memory[4 * 2304];
static float rows_memory[2 * 576];

static mla_cache good_cache(void)
{
    return (mla_cache){.format = MLA_CACHE_FP8_DS_MLA,
                       .kv_lora_rank = 512,
                       .qk_rope_dim = 64,
                       .page_size = 2,
                       .num_pages = 2,
                       .kv_cache = {page_memory, {0, 0}}};
}

static const int64_t good_slots[2] = {3, -1};

/* Both directions refuse, naming the field, and write nothing. */
static void refused(const mla_cache *cache, const mla_cache_values *values, const int64_t *slots,
                    int64_t n, const char *text)
{
    memset(page_memory, 0x5A, sizeof page_memory);
    memset(rows_memory, 0x5A, sizeof rows_memory);
    assert_refused(mla_cache_write(&cpu, cache, values, slots, n, 0, NULL), MLA_ERR_ARGUMENT, text);
    assert_refused(mla_cache_read(&cpu, cache, slots, n, values, NULL), MLA_ERR_ARGUMENT, text);
    for (size_t i = 0; i < sizeof page_memory; i++)
        assert_int_equal(page_memory[i], 0x5A);
    for (size_t i = 0; i < sizeof rows_memory; i++)
        assert_int_equal(((uint8_t *)rows_memory)[i], 0x5A);
}

#define BAD_CACHE(change, text)                                                                    \
    do {                                                                                           \
        mla_cache c = good_cache();                                                                \
        change;                                                                                    \
        refused(&c, &values, good_slots, 2, text);                                                 \
    } while (0)

static void bad_latent(void **state)
{
    (void)state;
    mla_cache good = good_cache();
    mla_cache_values values = {MLA_F32, {rows_memory, {576, 0}}, {rows_memory + 512, {576, 0}}};
    assert_ok(mla_cache_write(&cpu, &good, &values, good_slots, 2, 0, NULL));
    assert_ok(mla_cache_read(&cpu, &good, good_slots, 2, &values, NULL));
    assert_ok(mla_cache_write(&cpu, &good, &values, NULL, 0, 0, NULL)); /* nothing to do */

    refused(NULL, &values, good_slots, 2, "cache: got NULL, want a pointer");
    BAD_CACHE(c.format = 7, "cache.format: got 7, want");
    BAD_CACHE(c.format = (mla_cache_format)-1, "cache.format: got -1, want");
    BAD_CACHE(c.kv_lora_rank = 0, "cache.kv_lora_rank: got 0, want 1 to 2^40");
    BAD_CACHE(c.kv_lora_rank = INT64_MAX, "cache.kv_lora_rank: got 9223372036854775807, want");
    BAD_CACHE(c.kv_lora_rank = 256, "cache.kv_lora_rank: got 256, want 512");
    BAD_CACHE(c.qk_rope_dim = -1, "cache.qk_rope_dim: got -1, want 0 to 2^40");
    BAD_CACHE(c.qk_rope_dim = 0, "cache.qk_rope_dim: got 0, want 64");
    BAD_CACHE(c.format = MLA_CACHE_MODEL1, "cache.qk_rope_dim: got 64, want 0");
    BAD_CACHE(c.page_size = -1, "cache.page_size: got -1, want");
    BAD_CACHE(c.page_size = 0, "cache.page_size: got 0, want at least 1 for a packed format");
    BAD_CACHE(c.num_pages = -1, "cache.num_pages: got -1, want");
    BAD_CACHE(c.num_pages = c.page_size = (int64_t)1 << 40, "cache.kv_cache.stride[0]: got");
    BAD_CACHE(c.kv_cache.data = NULL, "cache.kv_cache: got NULL");
    BAD_CACHE(c.kv_cache.stride[1] = 655,
              "cache.kv_cache.stride[1]: got 655, want 0 or at least 656");
    BAD_CACHE(c.kv_cache.stride[1] = -656, "cache.kv_cache.stride[1]: got -656, want");
    BAD_CACHE(c.kv_cache.stride[0] = 1311,
              "cache.kv_cache.stride[0]: got 1311, want 0 or at least 1312");
    BAD_CACHE(c.kv_cache.stride[0] = INT64_MAX,
              "cache.kv_cache.stride[0]: got 9223372036854775807");
    BAD_CACHE(c.num_pages = 1, "slots[0]: got 3, want -1 or 0 to 1");

    /* Flat fields. */
#define FLAT                                                                                       \
    c.format = MLA_CACHE_BF16, c.page_size = 0, c.num_rows = 4, c.kv_c.data = page_memory,         \
    c.k_pe.data = page_memory + 4096
    BAD_CACHE((FLAT, c.num_rows = -1), "cache.num_rows: got -1, want");
    BAD_CACHE((FLAT, c.kv_c.data = NULL), "cache.kv_c: got NULL");
    BAD_CACHE((FLAT, c.k_pe.data = NULL), "cache.k_pe: got NULL");
    BAD_CACHE((FLAT, c.kv_c.stride[0] = 511),
              "cache.kv_c.stride[0]: got 511, want 0 or at least 512");
    BAD_CACHE((FLAT, c.k_pe.stride[0] = -1), "cache.k_pe.stride[0]: got -1, want 0 or at least 64");
    BAD_CACHE((FLAT, c.num_rows = 3), "slots[0]: got 3, want -1 or 0 to 2");

    /* Values, slots, n. */
    refused(&good, NULL, good_slots, 2, "values: got NULL");
    mla_cache_values v = values;
    v.dtype = (mla_dtype)4;
    refused(&good, &v, good_slots, 2, "values.dtype: got 4, want bf16, f16");
    v = values, v.kv_c.data = NULL;
    refused(&good, &v, good_slots, 2, "values.kv_c: got NULL");
    v = values, v.k_pe.data = NULL;
    refused(&good, &v, good_slots, 2, "values.k_pe: got NULL");
    v = values, v.kv_c.stride[0] = 511;
    refused(&good, &v, good_slots, 2, "values.kv_c.stride[0]: got 511, want 0 or at least 512");
    v = values, v.k_pe.stride[0] = 63;
    refused(&good, &v, good_slots, 2, "values.k_pe.stride[0]: got 63, want 0 or at least 64");
    refused(&good, &values, NULL, 2, "slots: got NULL");
    refused(&good, &values, good_slots, -1, "n: got -1, want 0 to 2^40");
    refused(&good, &values, (int64_t[]){0, 4}, 2, "slots[1]: got 4, want -1 or 0 to 3");
    refused(&good, &values, (int64_t[]){0, -2}, 2, "slots[1]: got -2, want -1 or 0 to 3");
    refused(&good, &values, (int64_t[]){INT64_MAX, 0}, 2, "slots[0]: got 9223372036854775807");

    /* f64 can be read, not written; rules belong to formats. */
    v = values, v.dtype = MLA_F64;
    assert_refused(mla_cache_write(&cpu, &good, &v, good_slots, 2, 0, NULL), MLA_ERR_ARGUMENT,
                   "values.dtype: got 3, want bf16, f16 or f32");
    assert_refused(mla_cache_write(&cpu, &good, &values, good_slots, 2, 2, NULL), MLA_ERR_ARGUMENT,
                   "rule: got 2, want MLA_SCALE_DEFAULT or MLA_SCALE_F32");
    mla_cache model1 = good;
    model1.format = MLA_CACHE_MODEL1, model1.qk_rope_dim = 0;
    assert_refused(mla_cache_write(&cpu, &model1, &values, good_slots, 2, MLA_SCALE_F32, NULL),
                   MLA_ERR_ARGUMENT, "rule: got 1, want MLA_SCALE_DEFAULT, the only rule");

    /* Context and stream. */
    assert_refused(mla_cache_write(NULL, &good, &values, good_slots, 2, 0, NULL), MLA_ERR_ARGUMENT,
                   "context: got NULL");
#ifndef MLA_WITH_MODEL
    mla_context model = {.backend = MLA_BACKEND_MODEL};
    assert_refused(mla_cache_read(&model, &good, good_slots, 2, &values, NULL), MLA_ERR_UNSUPPORTED,
                   "got backend model, want cpu");
#endif
    assert_refused(mla_cache_read(&cpu, &good, good_slots, 2, &values, &good), MLA_ERR_ARGUMENT,
                   "stream: got a pointer, want NULL");
}

static void refused_index(const mla_cache_index *c, mla_dtype dtype, const mla_tensor *keys,
                          const int64_t *slots, int64_t n, const char *text)
{
    memset(page_memory, 0x5A, sizeof page_memory);
    assert_refused(mla_cache_index_write(&cpu, c, dtype, keys, slots, n, 0, NULL), MLA_ERR_ARGUMENT,
                   text);
    assert_refused(mla_cache_index_read(&cpu, c, slots, n, dtype, keys, NULL), MLA_ERR_ARGUMENT,
                   text);
    for (size_t i = 0; i < sizeof page_memory; i++)
        assert_int_equal(page_memory[i], 0x5A);
}

static void bad_index(void **state)
{
    (void)state;
    mla_cache_index good = {MLA_INDEX_FP8, 2, 2, {page_memory, {0, 0}}};
    mla_tensor keys = {rows_memory, {0, 0}};
    assert_ok(mla_cache_index_write(&cpu, &good, MLA_F32, &keys, good_slots, 2, 0, NULL));
    refused_index(NULL, MLA_F32, &keys, good_slots, 2, "cache: got NULL");
    mla_cache_index c = good;
    c.format = MLA_INDEX_BF16;
    refused_index(&c, MLA_F32, &keys, good_slots, 2,
                  "cache.format: got 1, want MLA_INDEX_FP8 or MLA_INDEX_FP4");
    c.format = (mla_index_format)-1;
    refused_index(&c, MLA_F32, &keys, good_slots, 2, "cache.format: got -1, want");
    c = good, c.page_size = 0;
    refused_index(&c, MLA_F32, &keys, good_slots, 2, "cache.page_size: got 0, want 1 to 2^40");
    c = good, c.num_pages = -1;
    refused_index(&c, MLA_F32, &keys, good_slots, 2, "cache.num_pages: got -1, want");
    c = good, c.pages.data = NULL;
    refused_index(&c, MLA_F32, &keys, good_slots, 2, "cache.pages: got NULL");
    c = good, c.pages.stride[0] = 263;
    refused_index(&c, MLA_F32, &keys, good_slots, 2,
                  "cache.pages.stride[0]: got 263, want 0 or at least 264");
    c = good, c.page_size = c.num_pages = (int64_t)1 << 40;
    refused_index(&c, MLA_F32, &keys, good_slots, 2, "cache.pages.stride[0]: got");
    refused_index(&good, (mla_dtype)9, &keys, good_slots, 2, "dtype: got 9, want bf16, f16");
    refused_index(&good, MLA_F32, NULL, good_slots, 2, "keys: got NULL");
    refused_index(&good, MLA_F32, &(mla_tensor){0}, good_slots, 2, "keys: got NULL");
    refused_index(&good, MLA_F32, &(mla_tensor){rows_memory, {127, 0}}, good_slots, 2,
                  "keys.stride[0]: got 127, want 0 or at least 128");
    refused_index(&good, MLA_F32, &keys, NULL, 1, "slots: got NULL");
    refused_index(&good, MLA_F32, &keys, good_slots, -3, "n: got -3, want");
    refused_index(&good, MLA_F32, &keys, (int64_t[]){4}, 1, "slots[0]: got 4, want -1 or 0 to 3");
    assert_refused(mla_cache_index_write(&cpu, &good, MLA_F64, &keys, good_slots, 2, 0, NULL),
                   MLA_ERR_ARGUMENT, "dtype: got 3, want bf16, f16 or f32");
    c = good, c.format = MLA_INDEX_FP4;
    assert_refused(mla_cache_index_write(&cpu, &c, MLA_F32, &keys, good_slots, 2, 1, NULL),
                   MLA_ERR_ARGUMENT, "rule: got 1, want MLA_SCALE_DEFAULT");
#ifndef MLA_WITH_MODEL
    mla_context model = {.backend = MLA_BACKEND_MODEL};
    assert_refused(mla_cache_index_read(&model, &good, good_slots, 2, MLA_F32, &keys, NULL),
                   MLA_ERR_UNSUPPORTED, "got backend model");
#endif
    assert_refused(mla_cache_index_write(NULL, &good, MLA_F32, &keys, good_slots, 2, 0, NULL),
                   MLA_ERR_ARGUMENT, "context: got NULL");
}

static void page_bytes(void **state)
{
    (void)state;
    assert_int_equal(mla_cache_page_bytes(MLA_CACHE_MODEL1, 512, 0, 256), 256 * 584);
    assert_int_equal(mla_cache_page_bytes(MLA_CACHE_BF16, 512, 64, 64), 64 * 1152);
    assert_int_equal(mla_cache_page_bytes(MLA_CACHE_BF16, 512, 64, -1), 0);
    assert_int_equal(mla_cache_page_bytes(MLA_CACHE_V41, 512, 0, INT64_MAX), 0);
    assert_int_equal(mla_cache_index_page_bytes(MLA_INDEX_FP8, 64), 64 * 132);
    assert_int_equal(mla_cache_index_page_bytes(MLA_INDEX_FP4, 64), 64 * 68);
    assert_int_equal(mla_cache_index_page_bytes(MLA_INDEX_FP4, -1), 0);
    assert_int_equal(mla_cache_index_page_bytes(MLA_INDEX_FP4, INT64_MAX / 2), 0);
    assert_int_equal(mla_cache_index_page_bytes(MLA_INDEX_F32, 64), 0);
}

/* The indexer's own two steps store the same bytes. */
static void same_as_prepare(void **state)
{
    (void)state;
    uint64_t seed = 3;
    float x[3][128], scale[3];
    uint8_t data[3 * 128], ue8m0[3 * 4], one[4 * 132], two[4 * 132];
    const int64_t slots[3] = {2, -1, 1};
    for (int i = 0; i < 3; i++)
        for (int d = 0; d < 128; d++)
            x[i][d] = (float)((mla_test_uniform(&seed) - 0.5) * ldexp(1, i * 6 - 4));
    for (int fp4 = 0; fp4 < 2; fp4++) {
        for (int f32_rule = 0; f32_rule <= !fp4; f32_rule++) {
            mla_index_format format = fp4 ? MLA_INDEX_FP4 : MLA_INDEX_FP8;
            void *scales = fp4 ? (void *)ue8m0 : (void *)scale;
            mla_index_prepare_args args = {.rows = 3,
                                           .heads = 1,
                                           .dim = 128,
                                           .dtype = MLA_F32,
                                           .in = x,
                                           .any_scale = f32_rule,
                                           .format = format,
                                           .out = data,
                                           .scale = scales};
            memset(one, 0xA5, sizeof one);
            memset(two, 0xA5, sizeof two);
            assert_ok(mla_index_prepare(&args));
            assert_ok(mla_index_append(format, 128, 4, 1, 0, slots, 3, data, scales, one));
            mla_cache_index cache = {format, 4, 1, {two, {0, 0}}};
            mla_tensor keys = {x, {0, 0}};
            assert_ok(mla_cache_index_write(&cpu, &cache, MLA_F32, &keys, slots, 3,
                                            (mla_scale_rule)f32_rule, NULL));
            assert_memory_equal(one, two, sizeof one);
        }
    }
}

/* The header promises that nothing is allocated. */
static void no_allocation(void **state)
{
    (void)state;
    mla_cache cache = good_cache();
    mla_cache_index keys = {MLA_INDEX_FP8, 2, 2, {page_memory, {0, 0}}};
    mla_tensor rows = {rows_memory, {0, 0}};
    mla_cache_values values = {MLA_F32, {rows_memory, {576, 0}}, {rows_memory + 512, {576, 0}}};
    mla_alloc_fail_at(1);
    assert_ok(mla_cache_write(&cpu, &cache, &values, good_slots, 2, 0, NULL));
    assert_ok(mla_cache_read(&cpu, &cache, good_slots, 2, &values, NULL));
    assert_ok(mla_cache_index_write(&cpu, &keys, MLA_F32, &rows, good_slots, 2, 0, NULL));
    assert_ok(mla_cache_index_read(&cpu, &keys, good_slots, 2, MLA_F32, &rows, NULL));
    assert_int_equal(mla_alloc_fail_at(0), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_latent),      cmocka_unit_test(golden_index),
        cmocka_unit_test(hand_worked_scales), cmocka_unit_test(layouts),
        cmocka_unit_test(round_trip),         cmocka_unit_test(flat),
        cmocka_unit_test(bad_latent),         cmocka_unit_test(bad_index),
        cmocka_unit_test(page_bytes),         cmocka_unit_test(no_allocation),
        cmocka_unit_test(same_as_prepare),
    };
    return cmocka_run_group_tests_name("cache", tests, NULL, NULL);
}
