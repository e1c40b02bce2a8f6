/* SPDX-License-Identifier: Apache-2.0 */
/* libFuzzer target of everything that reads a file from outside: the container, problem files,
 * result files, and the cache rows that an accepted problem leads to. Beside plain bytes, a mutator
 * edits tensors and keys and lays the data out anew, so that most inputs get past the container's
 * checks. */
#include "common/tool/case.h"
#include "common/tool/result_file.h"
#include "common/tool/safetensors.h"
#include "format.h"
#include "kernel.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed);

/* ------------------------------------------------------------------------- target */

static volatile unsigned sum; /* so that reads are not optimised away */

static void touch(const void *data, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        sum += ((const unsigned char *)data)[i];
}

static void must(bool ok, const char *what)
{
    if (!ok) {
        fprintf(stderr, "broken promise: %s; last sentence: %s\n", what, mla_last_error());
        abort();
    }
}

static void must_explain(mla_status status)
{
    must(status == MLA_ERR_ARGUMENT, "malformed bytes are MLA_ERR_ARGUMENT");
    must(strstr(mla_last_error(), "got ") && strstr(mla_last_error(), "want "), "got and want");
}

static void read_container(const uint8_t *data, size_t size)
{
    struct mla_st_file file;
    mla_status status = mla_st_parse(data, size, "input", &file);
    if (status != MLA_OK) {
        must_explain(status);
        must(!file.owned && !file.tensors, "a failed parse leaves nothing");
        return;
    }
    size_t covered = 0;
    for (int64_t i = 0; i < file.num_tensors; i++) {
        touch(file.tensors[i].data, file.tensors[i].bytes);
        covered += file.tensors[i].bytes;
    }
    must(covered < size, "tensors do not overlap");
    for (int64_t i = 0; i < file.num_metadata; i++) {
        touch(file.keys[i], strlen(file.keys[i]));
        touch(file.values[i], strlen(file.values[i]));
    }
    mla_st_close(&file);
}

/* Every key through the page table, decoded. */
static void read_cache(const struct mla_case *c)
{
    const mla_problem *p = &c->problem;
    int64_t width = p->kv_lora_rank + p->qk_rope_dim, kv_start = 0;
    float *row = malloc((size_t)width * sizeof *row);
    for (int64_t b = 0, budget = 2000; b < p->batch && budget > 0; b++) {
        int64_t n = p->seq_lens_kv[b];
        struct mla_request r = {b, p->cu_seqlens_q[b], p->cu_seqlens_q[b + 1] - p->cu_seqlens_q[b],
                                kv_start, n};
        for (int64_t j = 0; j < n && budget > 0; j++, budget--) {
            uint8_t valid = 0;
            mla_cache_rows_f32(p, &c->tensors, &r, n, NULL, j, 1, row, width, &valid);
            must(valid, "accepted page tables lead to pages");
            touch(row, (size_t)width * sizeof *row);
        }
        kv_start += n;
    }
    free(row);
}

static void hear(const char *line, void *user)
{
    (void)user;
    touch(line, strlen(line));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct mla_case c;
    struct mla_result_file result;
    read_container(data, size);
    mla_status status = mla_case_load_bytes(data, size, "input", &c, hear, NULL);
    if (status != MLA_OK) {
        must_explain(status);
        must(!c.owned, "a failed load leaves nothing");
        /* Against a fixed problem, results get their turn. */
        static const int32_t cu[] = {0, 3}, lens[] = {5};
        mla_problem p;
        mla_problem_init_model(&p, "tiny");
        p.batch = 1;
        p.cu_seqlens_q = cu;
        p.seq_lens_kv = lens;
        p.heads_q = 2;
        p.v_dim = 4;
        status = mla_result_load_bytes(data, size, "input", &p, &result, hear, NULL);
        if (status == MLA_OK) {
            touch(result.out, (size_t)(3 * 2 * 4) * mla_dtype_bytes(result.out_dtype));
            if (result.lse)
                touch(result.lse, (size_t)(3 * 2) * mla_dtype_bytes(result.lse_dtype));
            mla_result_free(&result);
        } else {
            must_explain(status);
        }
        return 0;
    }
    char text[1024];
    must(mla_problem_check(&c.problem) == MLA_OK, "a loaded problem is well formed");
    must(c.complete && c.text, "a loaded case is whole");
    mla_problem_print(&c.problem, text, sizeof text);
    if (c.problem.form != MLA_FORM_EXPANDED)
        read_cache(&c);
    mla_case_free(&c);
    return 0;
}

/* ------------------------------------------------------------------------ mutator */

static const char *const names[] = {
    "q_nope",   "q_pe",       "w_uk",         "w_uv",         "q",
    "k",        "v",          "kv_c",         "k_pe",         "mask",
    "kv_cache", "page_table", "cu_seqlens_q", "seq_lens_kv",  "topk_lens",
    "lse",      "attn_sink",  "topk_indices", "out",          "bound",
    "other",    "",           "max_logits",   "__metadata__",
};
static const char *const dtypes[] = {"BF16", "F16", "F32",     "F64",     "I32", "U8",
                                     "I64",  "U32", "F8_E4M3", "unknown", "I8",  "BOOL"};
static const char *const keys[] = {"softmax_scale", "kv_lora_rank", "causal", "cache_format",
                                   "lse_base",      "fill",         "seed",   "other"};
static const char *const values[] = {
    "0.25",       "1e999", "nan",    "",    "8",   "512",          "-1",  "99999999999999999999",
    "true",       "false", "bf16",   "f16", "f32", "model1",       "v41", "2",
    "fp8_ds_mla", "e",     "normal", "10",  "0",   "nvfp4_ds_mla", "64",  "0x1p-2",
};
#define PICK(list) (list)[next(state) % (sizeof(list) / sizeof *(list))]

static unsigned next(unsigned *state)
{
    *state = *state * 1664525u + 1013904223u;
    return *state >> 8;
}

static void edit(json_t *root, json_t *info, const char *name, unsigned *state)
{
    json_t *shape = json_object_get(info, "shape");
    size_t rank = json_array_size(shape);
    json_t *metadata = json_object_get(root, "__metadata__");
    switch (next(state) % 8) {
    case 0:
        json_object_del(root, name);
        break;
    case 1:
        json_object_set(root, PICK(names), info);
        break;
    case 2:
        json_object_set_new(info, "dtype", json_string(PICK(dtypes)));
        break;
    case 3:
        if (rank > 0)
            json_array_remove(shape, next(state) % rank);
        break;
    case 4:
        json_array_insert_new(shape, next(state) % (rank + 1), json_integer(next(state) % 4));
        break;
    case 5:
        if (!json_is_object(metadata)) {
            json_object_set_new(root, "__metadata__", json_object());
            metadata = json_object_get(root, "__metadata__");
        }
        json_object_set_new(metadata, PICK(keys), json_string(PICK(values)));
        break;
    case 6:
        json_object_del(metadata, PICK(keys));
        break;
    default:
        if (rank > 0) {
            size_t i = next(state) % rank;
            json_int_t dim = json_integer_value(json_array_get(shape, i));
            const json_int_t dims[] = {dim + 1, dim - 1, 0, 1, 2 * dim, 512, (json_int_t)1 << 40};
            json_array_set_new(shape, i, json_integer(PICK(dims)));
        }
    }
}

/* Bytes that shape and dtype ask for, or max + 1 if more than max or senseless. */
static size_t wanted_bytes(const json_t *info, size_t max)
{
    const char *dtype = json_string_value(json_object_get(info, "dtype"));
    size_t bytes = 0;
    for (int d = MLA_ST_BOOL; dtype && d <= MLA_ST_F64; d++)
        if (strcmp(dtype, mla_st_dtype_name((enum mla_st_dtype)d)) == 0)
            bytes = mla_st_dtype_bytes((enum mla_st_dtype)d);
    const json_t *shape = json_object_get(info, "shape");
    for (size_t i = 0; i < json_array_size(shape); i++) {
        json_int_t dim = json_integer_value(json_array_get(shape, i));
        if (dim < 0 || (dim > 0 && bytes > max / (size_t)dim))
            return max + 1;
        bytes *= (size_t)dim;
    }
    return bytes;
}

/* Edits one tensor or key and lays the data section out anew; 0 if that can't be done. */
static size_t relayout(uint8_t *data, size_t size, size_t header, size_t max_size, unsigned *state)
{
    json_t *root = json_loadb((const char *)data + 8, header, JSON_REJECT_DUPLICATES, NULL);
    size_t n = json_object_size(root), at = 0, used = 0;
    const char *name;
    json_t *info;
    void *step;
    uint8_t *out = calloc(1, max_size);
    if (n > 0) {
        void *it = json_object_iter(root);
        for (size_t i = next(state) % n; i > 0; i--)
            it = json_object_iter_next(root, it);
        char chosen[80];
        snprintf(chosen, sizeof chosen, "%s", json_object_iter_key(it));
        /* Tensors may come to share an info by renaming: copy before editing. */
        json_object_set_new(root, chosen, json_deep_copy(json_object_iter_value(it)));
        edit(root, json_object_get(root, chosen), chosen, state);
    }
    json_object_foreach_safe(root, step, name, info)
    {
        if (strcmp(name, "__metadata__") == 0)
            continue;
        json_t *offsets = json_object_get(info, "data_offsets");
        json_int_t begin = json_integer_value(json_array_get(offsets, 0));
        size_t bytes = wanted_bytes(info, max_size - used), old = size - 8 - header;
        if (bytes > max_size - used)
            bytes = 0;
        if (begin >= 0 && (size_t)begin < old) {
            size_t there = old - (size_t)begin;
            memcpy(out + used, data + 8 + header + begin, bytes < there ? bytes : there);
        }
        used += bytes;
        json_object_set_new(root, name, json_deep_copy(info));
        json_object_set_new(json_object_get(root, name), "data_offsets",
                            json_pack("[I, I]", (json_int_t)at, (json_int_t)(at + bytes)));
        at += bytes;
    }
    char *text = root ? json_dumps(root, JSON_COMPACT) : NULL;
    size_t length = text ? strlen(text) : 0, result = 0;
    if (text && 8 + length + used <= max_size) {
        for (int i = 0; i < 8; i++)
            data[i] = (uint8_t)((uint64_t)length >> (8 * i));
        memcpy(data + 8, text, length);
        memcpy(data + 8 + length, out, used);
        result = 8 + length + used;
    }
    free(text);
    free(out);
    json_decref(root);
    return result;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed)
{
    unsigned state = seed;
    uint64_t header = 0;
    for (int i = 0; i < 8 && size >= 8; i++)
        header |= (uint64_t)data[i] << (8 * i);
    unsigned choice = next(&state) % 8;
    if (size < 8 || header > size - 8 || choice == 0)
        return LLVMFuzzerMutate(data, size, max_size);
    if (choice == 1) { /* the header, its length kept right */
        size_t tail = size - 8 - header, room = max_size - 8 - tail;
        uint8_t *rest = malloc(tail + 1);
        memcpy(rest, data + 8 + header, tail);
        size_t length = LLVMFuzzerMutate(data + 8, header, room);
        memcpy(data + 8 + length, rest, tail);
        free(rest);
        for (int i = 0; i < 8; i++)
            data[i] = (uint8_t)((uint64_t)length >> (8 * i));
        return 8 + length + tail;
    }
    if (choice <= 3 && size > 8 + header) { /* the data, its length kept */
        LLVMFuzzerMutate(data + 8 + header, size - 8 - header, size - 8 - header);
        return size;
    }
    size_t result = relayout(data, size, header, max_size, &state);
    return result ? result : LLVMFuzzerMutate(data, size, max_size);
}
