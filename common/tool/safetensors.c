/* SPDX-License-Identifier: Apache-2.0 */
/* Reader of the safetensors container. The file is taken to be hostile: nothing of the header is
 * used before it has been checked, and the data section must be covered exactly, without overlap or
 * gap. */
#include "safetensors.h"
#include "json_memory.h"
#include "status.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_RANK = 8, MAX_DEPTH = 8, MAX_ARRAY = 8 };
static const uint64_t max_header = 100000000; /* bytes, as in the reference implementation */

struct owner {
    struct mla_json_memory json; /* names, keys and values point into it */
    void *map;
    size_t map_bytes;
};

static const struct {
    const char *name;
    size_t bytes;
} dtypes[] = {
    [MLA_ST_BOOL] = {"BOOL", 1}, [MLA_ST_U8] = {"U8", 1},           [MLA_ST_I8] = {"I8", 1},
    [MLA_ST_I16] = {"I16", 2},   [MLA_ST_U16] = {"U16", 2},         [MLA_ST_I32] = {"I32", 4},
    [MLA_ST_U32] = {"U32", 4},   [MLA_ST_I64] = {"I64", 8},         [MLA_ST_U64] = {"U64", 8},
    [MLA_ST_BF16] = {"BF16", 2}, [MLA_ST_F8_E4M3] = {"F8_E4M3", 1}, [MLA_ST_F16] = {"F16", 2},
    [MLA_ST_F32] = {"F32", 4},   [MLA_ST_F8_E5M2] = {"F8_E5M2", 1}, [MLA_ST_F64] = {"F64", 8},
};
enum { NUM_DTYPES = sizeof dtypes / sizeof *dtypes };

const char *mla_st_dtype_name(enum mla_st_dtype dtype)
{
    return (unsigned)dtype < NUM_DTYPES ? dtypes[dtype].name : "unknown";
}

size_t mla_st_dtype_bytes(enum mla_st_dtype dtype)
{
    return (unsigned)dtype < NUM_DTYPES ? dtypes[dtype].bytes : 0;
}

const char *mla_st_printable(char *dst, size_t bytes, const char *text)
{
    size_t n = 0;
    for (; text[n] && n + 1 < bytes; n++)
        dst[n] = text[n] >= 0x20 && text[n] < 0x7f ? text[n] : '?';
    if (text[n] && bytes > 4)
        memcpy(dst + bytes - 4, "...", 3);
    dst[n] = 0;
    return dst;
}

/* One malformed field: "mla_st_parse: FILE: FIELD: got …, want …". */
__attribute__((format(printf, 3, 4))) static mla_status refuse(const char *label, const char *field,
                                                               const char *format, ...)
{
    char name[80], text[512];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    mla_st_printable(name, sizeof name, field);
    return mla_fail(MLA_ERR_ARGUMENT, "mla_st_parse: %.300s: %s: %s", label, name, text);
}

static mla_status no_memory(const char *label)
{
    return mla_fail(MLA_ERR_MEMORY, "mla_st_parse: %.300s: no memory for the header", label);
}

/* Nesting and array lengths, before the JSON library builds anything: no header needs more than
 * depth 3 or arrays longer than a shape, and these two are the cheap ways to make a parser work
 * hard. */
static mla_status scan_structure(const char *label, const char *text, size_t bytes)
{
    int depth = 0, items[MAX_DEPTH + 1] = {0};
    bool in_string = false, is_array[MAX_DEPTH + 1] = {false};
    for (size_t i = 0; i < bytes; i++) {
        char c = text[i];
        if (in_string) {
            if (c == '\\')
                i++;
            else if (c == '"')
                in_string = false;
        } else if (c == '"') {
            in_string = true;
        } else if (c == '{' || c == '[') {
            if (++depth > MAX_DEPTH)
                return refuse(label, "header",
                              "got JSON nested deeper than %d at byte %zu, want "
                              "at most %d levels",
                              MAX_DEPTH, i, MAX_DEPTH);
            is_array[depth] = c == '[';
            items[depth] = 1;
        } else if ((c == '}' || c == ']') && depth > 0) {
            depth--;
        } else if (c == ',' && is_array[depth] && ++items[depth] > MAX_ARRAY) {
            return refuse(label, "header",
                          "got an array with more than %d entries at byte %zu, "
                          "want at most %d (the largest rank)",
                          MAX_ARRAY, i, MAX_ARRAY);
        }
    }
    return MLA_OK;
}

static const char *json_kind(const json_t *value)
{
    if (!value)
        return "nothing";
    switch (json_typeof(value)) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "an array";
    case JSON_STRING:
        return "a string";
    case JSON_INTEGER:
        return "an integer";
    case JSON_REAL:
        return "a real number";
    case JSON_TRUE:
    case JSON_FALSE:
        return "a boolean";
    default:
        return "null";
    }
}

static mla_status read_metadata(const char *label, json_t *object, struct mla_st_file *out)
{
    if (!object)
        return MLA_OK;
    if (!json_is_object(object))
        return refuse(label, "__metadata__", "got %s, want an object", json_kind(object));
    size_t n = json_object_size(object);
    out->keys = mla_alloc(n, sizeof *out->keys);
    out->values = mla_alloc(n, sizeof *out->values);
    if (!out->keys || !out->values)
        return no_memory(label);
    const char *key;
    json_t *value;
    json_object_foreach(object, key, value)
    {
        if (!json_is_string(value))
            return refuse(label, "__metadata__", "got %s for a key, want strings only",
                          json_kind(value));
        out->keys[out->num_metadata] = key;
        out->values[out->num_metadata++] = json_string_value(value);
    }
    return MLA_OK;
}

/* Rank, dimensions and the size they ask for. The product leaves zeros out, so that [2^62, 2^62, 0]
 * can't overflow whoever multiplies in another order. */
static mla_status read_shape(const char *label, const json_t *array, struct mla_st_tensor *t)
{
    if (!json_is_array(array))
        return refuse(label, t->name, "got %s as shape, want an array of integers",
                      json_kind(array));
    if (json_array_size(array) > MAX_RANK)
        return refuse(label, t->name, "got rank %zu, want at most %d", json_array_size(array),
                      MAX_RANK);
    t->rank = (int)json_array_size(array);
    int64_t product = (int64_t)mla_st_dtype_bytes(t->dtype);
    bool empty = false;
    for (int i = 0; i < t->rank; i++) {
        const json_t *dim = json_array_get(array, (size_t)i);
        if (!json_is_integer(dim))
            return refuse(label, t->name, "got %s as shape[%d], want an integer", json_kind(dim),
                          i);
        t->shape[i] = json_integer_value(dim);
        if (t->shape[i] < 0)
            return refuse(label, t->name, "got shape[%d] %" PRId64 ", want at least 0", i,
                          t->shape[i]);
        if (t->shape[i] == 0)
            empty = true;
        else if (__builtin_mul_overflow(product, t->shape[i], &product))
            return refuse(label, t->name,
                          "got a shape whose size overflows 64 bits at "
                          "shape[%d] %" PRId64 ", want a size in bytes below 2^63",
                          i, t->shape[i]);
    }
    t->bytes = empty ? 0 : (size_t)product;
    return MLA_OK;
}

static mla_status read_tensor(const char *label, json_t *info, const char *data, size_t data_bytes,
                              struct mla_st_tensor *t)
{
    if (!json_is_object(info))
        return refuse(label, t->name, "got %s, want an object with dtype, shape and data_offsets",
                      json_kind(info));
    const json_t *dtype = json_object_get(info, "dtype");
    if (!json_is_string(dtype))
        return refuse(label, t->name, "got %s as dtype, want a string", json_kind(dtype));
    int d = 0;
    while (d < NUM_DTYPES && strcmp(dtypes[d].name, json_string_value(dtype)) != 0)
        d++;
    if (d == NUM_DTYPES) {
        char text[40];
        return refuse(label, t->name,
                      "got dtype '%s', want BOOL, U8 ... U64, I8 ... I64, F8_E4M3, "
                      "F8_E5M2, BF16, F16, F32 or F64",
                      mla_st_printable(text, sizeof text, json_string_value(dtype)));
    }
    t->dtype = (enum mla_st_dtype)d;
    mla_status status = read_shape(label, json_object_get(info, "shape"), t);
    if (status != MLA_OK)
        return status;
    const json_t *offsets = json_object_get(info, "data_offsets");
    if (!json_is_array(offsets) || json_array_size(offsets) != 2)
        return refuse(label, t->name,
                      "got %s of %zu entries as data_offsets, want an array of 2 "
                      "integers",
                      json_kind(offsets), json_array_size(offsets));
    const json_t *first = json_array_get(offsets, 0), *last = json_array_get(offsets, 1);
    if (!json_is_integer(first) || !json_is_integer(last))
        return refuse(label, t->name, "got data_offsets of %s and %s, want two integers",
                      json_kind(first), json_kind(last));
    int64_t begin = json_integer_value(first), end = json_integer_value(last);
    if (begin < 0 || end < begin || (uint64_t)end > data_bytes)
        return refuse(label, t->name,
                      "got data_offsets [%" PRId64 ", %" PRId64 "], want 0 <= "
                      "begin <= end <= %zu (the data section)",
                      begin, end, data_bytes);
    if ((uint64_t)(end - begin) != t->bytes)
        return refuse(label, t->name,
                      "got data_offsets [%" PRId64 ", %" PRId64 "] = %" PRId64
                      " bytes, want %zu by shape and dtype %s",
                      begin, end, end - begin, t->bytes, mla_st_dtype_name(t->dtype));
    t->data = data + begin;
    return MLA_OK;
}

static int by_place(const void *a, const void *b)
{
    const struct mla_st_tensor *s = *(const struct mla_st_tensor *const *)a;
    const struct mla_st_tensor *t = *(const struct mla_st_tensor *const *)b;
    const char *x = s->data, *y = t->data;
    if (x != y)
        return x < y ? -1 : 1;
    return s->bytes < t->bytes ? -1 : s->bytes > t->bytes;
}

/* In order of place every tensor must begin where the one before ended, and the last must end with
 * the file. */
static mla_status check_coverage(const char *label, const struct mla_st_file *file,
                                 const char *data, size_t data_bytes)
{
    size_t n = (size_t)file->num_tensors;
    const struct mla_st_tensor **order = mla_alloc(n, sizeof *order);
    if (!order)
        return no_memory(label);
    for (size_t i = 0; i < n; i++)
        order[i] = &file->tensors[i];
    qsort(order, n, sizeof *order, by_place);
    size_t covered = 0;
    mla_status status = MLA_OK;
    for (size_t i = 0; i < n && status == MLA_OK; i++) {
        size_t begin = (size_t)((const char *)order[i]->data - data);
        if (begin < covered) {
            char other[80];
            status =
                refuse(label, order[i]->name,
                       "got data that begins at %zu inside '%s', which "
                       "ends at %zu, want no overlap",
                       begin, mla_st_printable(other, sizeof other, order[i - 1]->name), covered);
        } else if (begin > covered) {
            status = refuse(label, order[i]->name,
                            "got data that begins at %zu, want %zu, where "
                            "the data before it ends (no gaps)",
                            begin, covered);
        }
        covered = begin + order[i]->bytes;
    }
    mla_free(order);
    if (status == MLA_OK && covered != data_bytes)
        return refuse(label, "data section", "got %zu bytes, want %zu, the end of the last tensor",
                      data_bytes, covered);
    return status;
}

static mla_status read_root(const char *label, json_t *root, const char *data, size_t data_bytes,
                            struct mla_st_file *out)
{
    if (!json_is_object(root))
        return refuse(label, "header", "got %s, want an object", json_kind(root));
    mla_status status = read_metadata(label, json_object_get(root, "__metadata__"), out);
    if (status != MLA_OK)
        return status;
    out->tensors = mla_alloc(json_object_size(root), sizeof *out->tensors);
    if (!out->tensors)
        return no_memory(label);
    const char *name;
    json_t *info;
    json_object_foreach(root, name, info)
    {
        if (strcmp(name, "__metadata__") == 0)
            continue;
        struct mla_st_tensor *t = &out->tensors[out->num_tensors];
        t->name = name;
        status = read_tensor(label, info, data, data_bytes, t);
        if (status != MLA_OK)
            return status;
        out->num_tensors++;
    }
    return check_coverage(label, out, data, data_bytes);
}

/* Parses into *out, which is empty; on failure the caller closes what is there. */
static mla_status parse(const void *bytes, size_t size, const char *label, struct mla_st_file *out)
{
    const unsigned char *b = bytes;
    if (size < 8)
        return refuse(label, "file",
                      size ? "got %zu bytes, want at least 8 (the header length)"
                           : "got an empty file (%zu bytes), want at least 8 bytes",
                      size);
    uint64_t header = 0;
    for (int i = 0; i < 8; i++)
        header |= (uint64_t)b[i] << (8 * i);
    if (header > max_header)
        return refuse(label, "header length", "got %" PRIu64 ", want at most %" PRIu64, header,
                      max_header);
    if (header > size - 8)
        return refuse(label, "header length",
                      "got %" PRIu64 ", want at most %zu, which is what "
                      "follows in the file",
                      header, size - 8);
    const char *text = (const char *)bytes + 8;
    if (header == 0 || text[0] != '{')
        return refuse(label, "header", "got %s, want JSON that starts with '{'",
                      header ? "another first byte" : "no bytes");
    mla_status status = scan_structure(label, text, (size_t)header);
    if (status != MLA_OK)
        return status;

    struct owner *owner = mla_alloc(1, sizeof *owner);
    if (!owner)
        return no_memory(label);
    out->owned = owner;
    json_error_t error;
    bool out_of_memory;
    json_t *root = mla_json_parse(text, (size_t)header, JSON_REJECT_DUPLICATES, &owner->json,
                                  &error, &out_of_memory);
    if (out_of_memory)
        return no_memory(label);
    if (!root) {
        char why[JSON_ERROR_TEXT_LENGTH];
        return refuse(label, "header",
                      "got malformed JSON at byte %d (%s), want one object with "
                      "unique names",
                      error.position, mla_st_printable(why, sizeof why, error.text));
    }
    return read_root(label, root, text + header, size - 8 - (size_t)header, out);
}

mla_status mla_st_parse(const void *bytes, size_t size, const char *label, struct mla_st_file *out)
{
    *out = (struct mla_st_file){0};
    mla_status status = parse(bytes, size, label, out);
    if (status != MLA_OK)
        mla_st_close(out);
    return status;
}

static const char *file_kind(mode_t mode)
{
    return S_ISDIR(mode)    ? "a directory"
           : S_ISFIFO(mode) ? "a FIFO"
           : S_ISCHR(mode)  ? "a character device"
           : S_ISBLK(mode)  ? "a block device"
           : S_ISSOCK(mode) ? "a socket"
                            : "something else";
}

mla_status mla_st_open(const char *path, struct mla_st_file *out)
{
    *out = (struct mla_st_file){0};
    /* O_NONBLOCK: opening a FIFO must not wait for a writer. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0)
        return mla_fail(MLA_ERR_IO, "mla_st_open: %.300s: got '%s', want a file that can be read",
                        path, strerror(errno));
    struct stat info;
    if (fstat(fd, &info) != 0) {
        mla_status status = mla_fail(MLA_ERR_IO,
                                     "mla_st_open: %.300s: got '%s' from fstat, want "
                                     "its size",
                                     path, strerror(errno));
        close(fd);
        return status;
    }
    if (!S_ISREG(info.st_mode)) {
        close(fd);
        return mla_fail(MLA_ERR_ARGUMENT, "mla_st_open: %.300s: got %s, want a regular file", path,
                        file_kind(info.st_mode));
    }
    if (info.st_size == 0) { /* mmap refuses length 0 */
        close(fd);
        return mla_st_parse("", 0, path, out);
    }
    size_t bytes = (size_t)info.st_size;
    void *map = mmap(NULL, bytes, PROT_READ, MAP_PRIVATE, fd, 0);
    int why = errno;
    close(fd);
    if (map == MAP_FAILED)
        return mla_fail(why == ENOMEM ? MLA_ERR_MEMORY : MLA_ERR_IO,
                        "mla_st_open: %.300s: got '%s' from mmap, want to map %zu bytes", path,
                        strerror(why), bytes);
    mla_status status = mla_st_parse(map, bytes, path, out);
    if (status != MLA_OK) {
        munmap(map, bytes);
        return status;
    }
    struct owner *owner = out->owned;
    owner->map = map;
    owner->map_bytes = bytes;
    return MLA_OK;
}

void mla_st_close(struct mla_st_file *file)
{
    if (!file)
        return;
    struct owner *owner = file->owned;
    if (owner) {
        mla_json_free(&owner->json);
        if (owner->map)
            munmap(owner->map, owner->map_bytes);
        mla_free(owner);
    }
    mla_free(file->tensors);
    mla_free(file->keys);
    mla_free(file->values);
    *file = (struct mla_st_file){0};
}

const struct mla_st_tensor *mla_st_find(const struct mla_st_file *file, const char *name)
{
    for (int64_t i = 0; i < file->num_tensors; i++)
        if (strcmp(file->tensors[i].name, name) == 0)
            return &file->tensors[i];
    return NULL;
}

const char *mla_st_metadata(const struct mla_st_file *file, const char *key)
{
    for (int64_t i = 0; i < file->num_metadata; i++)
        if (strcmp(file->keys[i], key) == 0)
            return file->values[i];
    return NULL;
}
