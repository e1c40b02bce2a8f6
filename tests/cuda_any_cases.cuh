/* SPDX-License-Identifier: Apache-2.0 */
/* The cases of test_cuda_any.cu: head counts, formats, lengths, holes, strides, splits, fills. */
#ifndef MLA_TESTS_CUDA_ANY_CASES_CUH
#define MLA_TESTS_CUDA_ANY_CASES_CUH

#include "mla/mla.h"

#include <stdio.h>
#include <vector>

enum fill { NORMAL, DIFFUSE, LARGE, COUNTING };

struct test_case {
    const char *name;
    int heads, batch;
    int query_len[4], keys[4]; /* repeated over the batch */
    mla_cache_format format;
    mla_dtype dtype;
    int rope, page; /* page 0 = flat */
    int topk;
    bool causal, sink, lens, mask, holes;
    bool any_scale;   /* fp8_ds_mla scales that are no powers of two */
    bool odd_strides; /* q, cache and out rows that are only 2- or 4-byte aligned */
    bool bad_pages, shorter, base2;
    int splits;
    mla_dtype out;
    enum fill fill;
};

static struct test_case base(const char *name, int heads, int batch, int q, int keys)
{
    struct test_case t = {};
    t.name = name;
    t.heads = heads;
    t.batch = batch;
    t.query_len[0] = q;
    t.keys[0] = keys;
    t.format = MLA_CACHE_BF16;
    t.dtype = t.out = MLA_BF16;
    t.rope = 64;
    t.causal = true;
    return t;
}

static std::vector<struct test_case> cases(void)
{
    std::vector<struct test_case> all;
    static char names[400][40];
    int used = 0;
    static const int heads[] = {1, 3, 12, 16, 20, 24, 32, 48, 63, 64, 96, 128};
    struct test_case t;
    for (int h : heads) {
        snprintf(names[used], 40, "dense-h%d", h);
        t = base(names[used++], h, 3, 3, 517);
        t.query_len[1] = 1, t.keys[1] = 96;
        t.query_len[2] = 7, t.keys[2] = 1000;
        t.page = 64;
        all.push_back(t);
        snprintf(names[used], 40, "list-h%d", h);
        t = base(names[used++], h, 2, 37, 700);
        t.query_len[1] = 5, t.keys[1] = 40;
        t.topk = 131;
        t.lens = t.holes = true;
        all.push_back(t);
        snprintf(names[used], 40, "decode-split-h%d", h);
        t = base(names[used++], h, 2, 2, 3001);
        t.splits = 5;
        t.page = 61;
        t.sink = true;
        t.base2 = true;
        all.push_back(t);
    }
    static const mla_cache_format formats[] = {MLA_CACHE_BF16, MLA_CACHE_FP8_DS_MLA,
                                               MLA_CACHE_MODEL1, MLA_CACHE_V41,
                                               MLA_CACHE_NVFP4_DS_MLA};
    static const char *const short_names[] = {"16", "fp8", "model1", "v41", "nvfp4"};
    for (int f = 0; f < 5; f++)
        for (int h = 16; h <= 64; h *= 2)
            for (int kind = 0; kind < 2; kind++)
                for (int half = 0; half < 2; half++) {
                    snprintf(names[used], 40, "%s-%s%s-h%d", short_names[f], half ? "f16-" : "",
                             kind ? "list" : "dense", h);
                    t = base(names[used++], h, 2, 3, 413);
                    t.query_len[1] = 1, t.keys[1] = 33;
                    t.format = formats[f];
                    t.rope = f == 2 || f == 3 ? 0 : 64;
                    t.page = kind ? 53 : 64;
                    if (half) {
                        t.dtype = t.out = MLA_F16;
                        t.format = f == 0 ? MLA_CACHE_F16 : formats[f];
                    }
                    if (kind) {
                        t.topk = 200;
                        t.holes = t.sink = t.lens = true;
                    }
                    all.push_back(t);
                }
    t = base("fp8-any-scale", 64, 2, 2, 600);
    t.format = MLA_CACHE_FP8_DS_MLA, t.page = 64, t.any_scale = true;
    all.push_back(t);
    t = base("no-rope-flat", 64, 2, 9, 301);
    t.rope = 0;
    all.push_back(t);
    t = base("no-rope-flat-h16", 16, 2, 1, 301);
    t.rope = 0;
    all.push_back(t);
    t = base("not-causal", 20, 2, 50, 31);
    t.causal = false;
    all.push_back(t);
    t = base("mask-h1", 1, 2, 77, 500);
    t.mask = t.holes = true;
    all.push_back(t);
    t = base("mask-h12", 12, 2, 33, 321);
    t.mask = t.holes = true, t.page = 16;
    all.push_back(t);
    t = base("mask-h128", 128, 2, 5, 300);
    t.mask = t.holes = t.sink = true;
    all.push_back(t);
    t = base("mask-split", 12, 1, 2, 3000);
    t.mask = t.holes = true, t.splits = 7;
    all.push_back(t);
    t = base("strides-flat", 24, 2, 9, 200);
    t.odd_strides = true;
    all.push_back(t);
    t = base("strides-paged", 24, 2, 9, 200);
    t.odd_strides = true, t.page = 7;
    all.push_back(t);
    for (int f = 1; f < 5; f++) {
        snprintf(names[used], 40, "strides-%s", short_names[f]);
        t = base(names[used++], 16, 2, 9, 200);
        t.odd_strides = true, t.page = 7, t.format = formats[f];
        t.rope = f == 2 || f == 3 ? 0 : 64;
        all.push_back(t);
    }
    t = base("strides-mask-f32", 64, 2, 9, 200);
    t.odd_strides = t.mask = true, t.out = MLA_F32;
    all.push_back(t);
    t = base("bad-pages", 16, 3, 2, 700);
    t.bad_pages = true, t.page = 32;
    all.push_back(t);
    t = base("bad-pages-fp8", 64, 3, 2, 700);
    t.bad_pages = true, t.page = 1, t.format = MLA_CACHE_FP8_DS_MLA;
    all.push_back(t);
    t = base("shorter", 64, 6, 3, 260);
    t.shorter = true, t.page = 64, t.sink = true;
    all.push_back(t);
    t = base("shorter-split", 16, 6, 3, 2600);
    t.shorter = true, t.page = 64, t.splits = 4, t.sink = true;
    all.push_back(t);
    t = base("shorter-list", 128, 6, 3, 260);
    t.shorter = true, t.topk = 64;
    all.push_back(t);
    t = base("empty-requests", 16, 4, 3, 64);
    t.query_len[1] = 0, t.keys[1] = 50;
    t.query_len[2] = 2, t.keys[2] = 0;
    t.sink = true;
    all.push_back(t);
    t = base("empty-requests-list", 16, 4, 3, 64);
    t.query_len[1] = 0, t.keys[1] = 50;
    t.query_len[2] = 2, t.keys[2] = 0;
    t.topk = 20;
    all.push_back(t);
    for (int k = DIFFUSE; k <= COUNTING; k++) {
        static const char *const fills[] = {"", "diffuse", "large", "counting"};
        snprintf(names[used], 40, "%s-dense", fills[k]);
        t = base(names[used++], 64, 1, 2, 4100);
        t.fill = (enum fill)k, t.splits = 3;
        all.push_back(t);
        snprintf(names[used], 40, "%s-list", fills[k]);
        t = base(names[used++], 16, 1, 20, 3000);
        t.fill = (enum fill)k, t.topk = 2048;
        all.push_back(t);
        snprintf(names[used], 40, "%s-fp8", fills[k]);
        t = base(names[used++], 128, 1, 2, 2100);
        t.fill = (enum fill)k, t.topk = 2048, t.page = 64, t.format = MLA_CACHE_FP8_DS_MLA;
        all.push_back(t);
    }
    t = base("prefill-causal", 128, 1, 300, 300);
    all.push_back(t);
    t = base("chunk-causal", 16, 1, 200, 777);
    t.page = 64;
    all.push_back(t);
    t = base("tokens-70000", 1, 1, 70000, 70000);
    t.topk = 40;
    all.push_back(t);
    t = base("tokens-70000-fp8", 1, 1, 70000, 70000);
    t.topk = 33, t.page = 64, t.format = MLA_CACHE_FP8_DS_MLA;
    all.push_back(t);
    t = base("q-past-2^31", 64, 1, 65600, 65600); /* 2.4e9 elements of q */
    t.topk = 16;
    all.push_back(t);
    return all;
}

#endif
