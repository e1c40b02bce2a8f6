/* SPDX-License-Identifier: Apache-2.0 */
/* Small problem files built in memory. */
#include "support.h"
#include "support_files.h"

#include <glob.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { T = 3, H = 2, DN = 4, DR = 2, L = 8, DV = 4, S = 5, PAGE = 2, PAGES = 3, TOPK = 4 };
static const int32_t unused_page = 2147480000; /* past a request's last page: never read */

const char *const test_file_bases[] = {"latent",   "latent-paged", "absorbed", "absorbed-paged",
                                       "expanded", "fp8",          "model1",   "v41",
                                       "nvfp4",    "empty",        NULL};

static void resize(struct test_tensor *t)
{
    size_t old = t->bytes, bytes = mla_st_dtype_bytes(t->dtype);
    for (int i = 0; i < t->rank; i++)
        bytes *= (size_t)t->shape[i];
    t->data = realloc(t->data, bytes + 1);
    assert_non_null(t->data);
    if (bytes > old)
        memset(t->data + old, 0, bytes - old);
    t->bytes = bytes;
}

static enum mla_st_dtype dtype_of(const char *name)
{
    int d = MLA_ST_BOOL;
    while (strcmp(mla_st_dtype_name((enum mla_st_dtype)d), name) != 0)
        assert_true(d++ < MLA_ST_F64);
    return (enum mla_st_dtype)d;
}

static int read_shape(const char *text, int64_t *shape)
{
    int rank = 0;
    for (char *end; *text; text = *end == ',' ? end + 1 : end) {
        shape[rank++] = strtoll(text, &end, 10);
        assert_true(end > text && rank <= 8);
    }
    return rank;
}

static struct test_tensor *find(struct test_file *f, const char *name)
{
    for (int i = 0; i < f->num_tensors; i++)
        if (strcmp(f->tensors[i].name, name) == 0)
            return &f->tensors[i];
    fail_msg("no tensor %s to edit", name);
    return NULL;
}

static struct test_tensor *add(struct test_file *f, const char *name, const char *dtype,
                               const char *shape)
{
    assert_true(f->num_tensors < 24);
    struct test_tensor *t = &f->tensors[f->num_tensors++];
    memset(t, 0, sizeof *t);
    snprintf(t->name, sizeof t->name, "%s", name);
    t->dtype = dtype_of(dtype);
    t->rank = read_shape(shape, t->shape);
    resize(t);
    return t;
}

/* Values near 1 in any of the float dtypes; bytes are arbitrary. */
static void add_values(struct test_file *f, const char *name, const char *dtype, const char *shape)
{
    struct test_tensor *t = add(f, name, dtype, shape);
    size_t step = mla_st_dtype_bytes(t->dtype);
    for (size_t i = 0; i < t->bytes; i++) {
        size_t e = i / step;
        t->data[i] = i % step == step - 1 ? 0x3c + e % 3 : (unsigned char)(e * 37);
        if (t->dtype == MLA_ST_U8)
            t->data[i] = (unsigned char)(0x30 + e * 37 % 16);
    }
}

static void add_ints(struct test_file *f, const char *name, const char *shape, const int32_t *data)
{
    struct test_tensor *t = add(f, name, "I32", shape);
    memcpy(t->data, data, t->bytes);
}

static void set_meta(struct test_file *f, const char *key, const char *value)
{
    int i = 0;
    while (i < f->num_keys && strcmp(f->keys[i], key) != 0)
        i++;
    assert_true(i < 12);
    f->num_keys += i == f->num_keys;
    snprintf(f->keys[i], sizeof f->keys[i], "%s", key);
    snprintf(f->values[i], sizeof f->values[i], "%s", value);
}

static void add_lists(struct test_file *f)
{
    static const int32_t topk[T * TOPK] = {0, 1, -1, 7, 2, 1, 0, 0, 1, 0, -5, 2};
    static const int32_t lens[T] = {4, 3, 2};
    add_ints(f, "topk_indices", "3,4", topk);
    add_ints(f, "topk_lens", "3", lens);
}

static void add_pages(struct test_file *f)
{
    static const int32_t table[] = {1, 0, unused_page, unused_page, 2, unused_page};
    add_ints(f, "page_table", "3,2", table);
}

void test_file_base(struct test_file *f, const char *base)
{
    static const int32_t cu[] = {0, 2, 2, 3}, lens[] = {3, 0, 2}, mask[] = {7, 5, 3}, zero[] = {0};
    memset(f, 0, sizeof *f);
    if (strcmp(base, "empty") == 0) { /* no request at all */
        add_ints(f, "cu_seqlens_q", "1", zero);
        add_ints(f, "seq_lens_kv", "0", zero);
        add_values(f, "q", "F32", "0,2,8");
        add_values(f, "k", "F32", "0,1,8");
        add_values(f, "v", "F32", "0,1,4");
        return;
    }
    add_ints(f, "cu_seqlens_q", "4", cu);
    add_ints(f, "seq_lens_kv", "3", lens);
    set_meta(f, "fill", "normal");
    set_meta(f, "seed", "7");
    if (strncmp(base, "latent", 6) == 0) {
        add_values(f, "q_nope", "BF16", "3,2,4");
        add_values(f, "q_pe", "BF16", "3,2,2");
        add_values(f, "w_uk", "BF16", "2,4,8");
        add_values(f, "w_uv", "BF16", "2,8,4");
    } else if (strncmp(base, "absorbed", 8) == 0) {
        add_values(f, "q", "F16", "3,2,10");
        set_meta(f, "softmax_scale", "0.25");
    }
    if (strcmp(base, "latent") == 0) {
        add_values(f, "kv_c", "BF16", "5,8");
        add_values(f, "k_pe", "BF16", "5,2");
        add_lists(f);
    } else if (strcmp(base, "latent-paged") == 0) {
        add_values(f, "kv_cache", "F16", "3,2,10");
        add_pages(f);
        add_ints(f, "mask", "3,1", mask);
        set_meta(f, "causal", "false");
    } else if (strcmp(base, "absorbed") == 0) {
        add_values(f, "kv_c", "F32", "5,8");
        add_values(f, "k_pe", "F32", "5,2");
        add_values(f, "attn_sink", "F32", "2");
    } else if (strcmp(base, "absorbed-paged") == 0) {
        add_values(f, "kv_cache", "BF16", "3,2,10");
        add_pages(f);
        add_lists(f);
        set_meta(f, "kv_lora_rank", "8");
        set_meta(f, "lse_base", "2");
    } else if (strcmp(base, "expanded") == 0) {
        add_values(f, "q", "F32", "3,4,6");
        add_values(f, "k", "BF16", "5,2,6");
        add_values(f, "v", "BF16", "5,2,4");
        add_ints(f, "mask", "3,1", mask);
    } else { /* packed caches: L is 512, so one query and one page keep the file small */
        bool footer = strcmp(base, "model1") == 0 || strcmp(base, "v41") == 0;
        static const int32_t one_q[] = {0, 1}, one_kv[] = {2}, page[] = {0};
        f->num_tensors -= 2;
        free(f->tensors[0].data);
        free(f->tensors[1].data);
        add_ints(f, "cu_seqlens_q", "2", one_q);
        add_ints(f, "seq_lens_kv", "1", one_kv);
        add_values(f, "q", "BF16", footer ? "1,1,512" : "1,1,576");
        add_values(f, "kv_cache", "U8",
                   strcmp(base, "fp8") == 0      ? "1,2,656"
                   : strcmp(base, "model1") == 0 ? "1,2,584"
                   : strcmp(base, "v41") == 0    ? "1,2,528"
                                                 : "1,2,352");
        add_ints(f, "page_table", "1,1", page);
        set_meta(f, "softmax_scale", "0.04");
        set_meta(f, "kv_lora_rank", "512");
        set_meta(f, "cache_format",
                 strcmp(base, "fp8") == 0     ? "fp8_ds_mla"
                 : strcmp(base, "nvfp4") == 0 ? "nvfp4_ds_mla"
                                              : base);
    }
}

static void edit(struct test_file *f, const char *verb, const char *a, const char *b, const char *c)
{
    if (strcmp(verb, "add") == 0) {
        add(f, a, b, c);
    } else if (strcmp(verb, "meta") == 0) {
        set_meta(f, a, b);
    } else if (strcmp(verb, "unmeta") == 0) {
        int i = 0;
        while (strcmp(f->keys[i], a) != 0)
            assert_true(++i < f->num_keys);
        f->num_keys--;
        memmove(f->keys[i], f->keys[i + 1], (size_t)(f->num_keys - i) * sizeof f->keys[0]);
        memmove(f->values[i], f->values[i + 1], (size_t)(f->num_keys - i) * sizeof f->values[0]);
    } else if (strcmp(verb, "drop") == 0) {
        struct test_tensor *t = find(f, a), *end = &f->tensors[--f->num_tensors];
        free(t->data);
        memmove(t, t + 1, (size_t)(end - t) * sizeof *t);
    } else if (strcmp(verb, "rename") == 0) {
        struct test_tensor *t = find(f, a);
        snprintf(t->name, sizeof t->name, "%s", b);
    } else if (strcmp(verb, "dtype") == 0) {
        struct test_tensor *t = find(f, a);
        t->dtype = dtype_of(b);
        resize(t);
    } else if (strcmp(verb, "shape") == 0) {
        struct test_tensor *t = find(f, a);
        t->rank = read_shape(b, t->shape);
        resize(t);
    } else if (strcmp(verb, "set") == 0) {
        int32_t value = (int32_t)strtol(c, NULL, 10);
        memcpy(find(f, a)->data + 4 * strtol(b, NULL, 10), &value, 4);
    } else if (strcmp(verb, "setf") == 0) {
        float value = strtof(c, NULL);
        memcpy(find(f, a)->data + 4 * strtol(b, NULL, 10), &value, 4);
    } else {
        fail_msg("unknown edit %s", verb);
    }
}

void test_file_edit(struct test_file *f, const char *edits)
{
    while (*edits) {
        size_t length = strcspn(edits, ";");
        char text[256], word[4][80] = {"", "", "", ""};
        snprintf(text, sizeof text, "%.*s", (int)length, edits);
        sscanf(text, "%79s %79s %79s %79s", word[0], word[1], word[2], word[3]);
        edit(f, word[0], word[1], word[2], word[3]);
        edits += length;
        edits += *edits == ';';
    }
}

unsigned char *test_container(const char *header, size_t header_bytes, size_t data_bytes,
                              size_t *size)
{
    *size = 8 + header_bytes + data_bytes;
    unsigned char *bytes = calloc(*size, 1);
    assert_non_null(bytes);
    for (int i = 0; i < 8; i++)
        bytes[i] = (unsigned char)((uint64_t)header_bytes >> (8 * i));
    memcpy(bytes + 8, header, header_bytes);
    return bytes;
}

unsigned char *test_file_bytes(const struct test_file *f, size_t *size)
{
    char header[8192];
    size_t used = 0, data = 0;
#define PUT(...) used += (size_t)snprintf(header + used, sizeof header - used, __VA_ARGS__)
    PUT("{");
    for (int i = 0; i < f->num_tensors; i++) {
        const struct test_tensor *t = &f->tensors[i];
        PUT("\"%s\":{\"dtype\":\"%s\",\"shape\":[", t->name, mla_st_dtype_name(t->dtype));
        for (int d = 0; d < t->rank; d++)
            PUT("%s%" PRId64, d ? "," : "", t->shape[d]);
        PUT("],\"data_offsets\":[%zu,%zu]}%s", data, data + t->bytes,
            i + 1 < f->num_tensors || f->num_keys ? "," : "");
        data += t->bytes;
    }
    for (int i = 0; i < f->num_keys; i++)
        PUT("%s\"%s\":\"%s\"%s", i ? "," : "\"__metadata__\":{", f->keys[i], f->values[i],
            i + 1 == f->num_keys ? "}" : "");
    PUT("}");
    while (used % 8 != 0)
        PUT(" ");
#undef PUT
    assert_true(used < sizeof header);
    unsigned char *bytes = test_container(header, used, data, size), *at = bytes + 8 + used;
    for (int i = 0; i < f->num_tensors; i++, at += f->tensors[i - 1].bytes)
        memcpy(at, f->tensors[i].data, f->tensors[i].bytes);
    return bytes;
}

void test_file_free(struct test_file *f)
{
    for (int i = 0; i < f->num_tensors; i++)
        free(f->tensors[i].data);
    memset(f, 0, sizeof *f);
}

static char dir[512];

int test_dir_make(void **state)
{
    (void)state;
    snprintf(dir, sizeof dir, "%s/test_files.XXXXXX", MLA_BINARY_DIR);
    return mkdtemp(dir) ? 0 : -1;
}

int test_dir_remove(void **state)
{
    (void)state;
    char command[700];
    snprintf(command, sizeof command, "rm -rf '%s'", dir);
    return system(command);
}

const char *test_dir_path(const char *name)
{
    static char path[600];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return path;
}

int test_dir_files(void)
{
    glob_t found;
    char pattern[600];
    snprintf(pattern, sizeof pattern, "%s/*", dir);
    int n = glob(pattern, 0, NULL, &found) == 0 ? (int)found.gl_pathc : 0;
    if (n > 0)
        globfree(&found);
    return n;
}

void test_dir_use(const char *path)
{
    snprintf(dir, sizeof dir, "%s", path);
}
