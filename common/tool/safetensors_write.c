/* SPDX-License-Identifier: Apache-2.0 */
/* Writer of the safetensors container: the whole file appears under its name, or nothing does. */
#include "safetensors.h"
#include "json_memory.h"
#include "status.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { ALIGNMENT = 64 };

/* A tensor and where it goes. */
struct slot {
    const struct mla_st_tensor *tensor;
    size_t grain; /* largest power of two that divides its size, at most ALIGNMENT */
    size_t begin;
};

static mla_status no_memory(const char *path)
{
    return mla_fail(MLA_ERR_MEMORY, "mla_st_write: %.300s: no memory for the header", path);
}

static mla_status check_tensor(const char *path, const struct mla_st_tensor *t)
{
    char name[80];
    const char *why = NULL;
    int64_t product = (int64_t)mla_st_dtype_bytes(t->dtype);
    bool empty = false;
    if (t->rank < 0 || t->rank > 8)
        why = "rank outside 0 to 8";
    for (int i = 0; !why && i < t->rank; i++) {
        empty |= t->shape[i] == 0;
        if (t->shape[i] < 0 ||
            (t->shape[i] > 0 && __builtin_mul_overflow(product, t->shape[i], &product)))
            why = "a shape that is negative or overflows";
    }
    if (!why && (product == 0 || t->bytes != (empty ? 0 : (size_t)product)))
        why = "a size that differs from shape and dtype";
    if (!why && t->bytes > 0 && !t->data)
        why = "no data";
    if (!why && strcmp(t->name, "__metadata__") == 0)
        why = "the reserved name";
    if (why)
        return mla_fail(MLA_ERR_ARGUMENT, "mla_st_write: %.300s: %s: got %s, want a whole tensor",
                        path, mla_st_printable(name, sizeof name, t->name), why);
    return MLA_OK;
}

/* Coarse grain first: every tensor then starts at a multiple of its own grain without padding,
 * which the format has no place for. */
static int by_grain(const void *a, const void *b)
{
    const struct slot *s = a, *t = b;
    if (s->grain != t->grain)
        return s->grain > t->grain ? -1 : 1;
    return strcmp(s->tensor->name, t->tensor->name);
}

static json_t *describe(const struct slot *slot)
{
    const struct mla_st_tensor *t = slot->tensor;
    json_t *shape = json_array();
    for (int i = 0; i < t->rank; i++)
        json_array_append_new(shape, json_integer(t->shape[i]));
    json_t *offsets = json_array();
    json_array_append_new(offsets, json_integer((json_int_t)slot->begin));
    json_array_append_new(offsets, json_integer((json_int_t)(slot->begin + t->bytes)));
    json_t *info = json_object();
    json_object_set_new(info, "dtype", json_string(mla_st_dtype_name(t->dtype)));
    json_object_set_new(info, "shape", shape);
    json_object_set_new(info, "data_offsets", offsets);
    return info;
}

/* The header as text, or NULL with a status. A failed allocation is asked for once, at the end:
 * every JSON call passes NULL on. */
static char *make_header(const char *path, const struct slot *slots, int64_t n,
                         const char *const *keys, const char *const *values, int64_t num_metadata,
                         mla_status *status)
{
    mla_json_memory_begin();
    json_t *root = json_object(), *metadata = json_object();
    const char *bad = NULL;
    for (int64_t i = 0; i < num_metadata && !mla_json_memory_failed(); i++)
        if (json_object_get(metadata, keys[i]) ||
            json_object_set_new(metadata, keys[i], json_string(values[i])) != 0)
            bad = keys[i];
    if (num_metadata > 0)
        json_object_set(root, "__metadata__", metadata);
    json_decref(metadata);
    for (int64_t i = 0; i < n && !mla_json_memory_failed(); i++) {
        const char *name = slots[i].tensor->name;
        if (json_object_get(root, name) ||
            json_object_set_new(root, name, describe(&slots[i])) != 0)
            bad = name;
    }
    char *text = json_dumps(root, JSON_COMPACT | JSON_SORT_KEYS);
    json_decref(root);
    *status = MLA_OK;
    if (mla_json_memory_failed() || (!text && !bad)) {
        *status = no_memory(path);
    } else if (bad) {
        char name[80];
        *status = mla_fail(MLA_ERR_ARGUMENT,
                           "mla_st_write: %.300s: %s: got a name twice or text "
                           "that is not UTF-8, want unique names in UTF-8",
                           path, mla_st_printable(name, sizeof name, bad));
    }
    if (*status != MLA_OK) {
        mla_free(text);
        return NULL;
    }
    return text;
}

/* Writes everything, or returns false with errno. */
static bool write_all(int fd, const void *data, size_t bytes)
{
    const char *at = data;
    while (bytes > 0) {
        ssize_t n = write(fd, at, bytes);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            if (n == 0)
                errno = ENOSPC;
            return false;
        }
        at += n;
        bytes -= (size_t)n;
    }
    return true;
}

static bool write_content(int fd, const char *header, size_t header_bytes, const struct slot *slots,
                          int64_t n)
{
    static const char blanks[ALIGNMENT] = "                                "
                                          "                               ";
    size_t padding = (ALIGNMENT - (8 + header_bytes) % ALIGNMENT) % ALIGNMENT;
    unsigned char length[8];
    for (int i = 0; i < 8; i++)
        length[i] = (unsigned char)((uint64_t)(header_bytes + padding) >> (8 * i));
    if (!write_all(fd, length, 8) || !write_all(fd, header, header_bytes) ||
        !write_all(fd, blanks, padding))
        return false;
    for (int64_t i = 0; i < n; i++)
        if (!write_all(fd, slots[i].tensor->data, slots[i].tensor->bytes))
            return false;
    return fsync(fd) == 0;
}

/* Past a file size limit, write sends SIGXFSZ, whose default would end the process and leave the
 * temporary file. It is held back while we write, and taken away if we caused it. */
static bool write_without_signal(int fd, const char *header, size_t header_bytes,
                                 const struct slot *slots, int64_t n)
{
    sigset_t limit, before, pending;
    sigemptyset(&limit);
    sigaddset(&limit, SIGXFSZ);
    sigpending(&pending);
    bool was_pending = sigismember(&pending, SIGXFSZ) == 1;
    pthread_sigmask(SIG_BLOCK, &limit, &before);
    bool done = write_content(fd, header, header_bytes, slots, n);
    int why = errno;
    if (!done && why == EFBIG && !was_pending)
        sigtimedwait(&limit, NULL, &(struct timespec){0, 0});
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    errno = why;
    return done;
}

/* Opens a new file beside path; its name goes to temporary. */
static int open_beside(const char *path, char *temporary, size_t bytes)
{
    for (unsigned try = 0; try < 1000; try++) {
        snprintf(temporary, bytes, "%s.%ld-%u.tmp", path, (long)getpid(), try);
        int fd = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (fd >= 0 || errno != EEXIST)
            return fd;
    }
    return -1;
}

static mla_status write_file(const char *path, const char *header, const struct slot *slots,
                             int64_t n)
{
    /* rename would replace a device such as /dev/null by a file. */
    struct stat info;
    if (stat(path, &info) == 0 && !S_ISREG(info.st_mode))
        return mla_fail(MLA_ERR_ARGUMENT,
                        "mla_st_write: %.300s: got a directory, device or pipe, "
                        "want a new name or a regular file",
                        path);
    size_t bytes = strlen(path) + 48;
    char *temporary = mla_alloc(bytes, 1);
    if (!temporary)
        return no_memory(path);
    mla_status status = MLA_OK;
    int fd = open_beside(path, temporary, bytes);
    if (fd < 0) {
        status = mla_fail(MLA_ERR_IO, "mla_st_write: %.300s: got '%s', want to create a file there",
                          path, strerror(errno));
    } else {
        bool done = write_without_signal(fd, header, strlen(header), slots, n);
        int why = errno;
        if (close(fd) != 0 && done) {
            done = false;
            why = errno;
        }
        if (done && rename(temporary, path) != 0) {
            done = false;
            why = errno;
        }
        if (!done) {
            unlink(temporary);
            status = mla_fail(MLA_ERR_IO,
                              "mla_st_write: %.300s: got '%s', want to write the whole "
                              "file; nothing is left of it",
                              path, strerror(why));
        }
    }
    mla_free(temporary);
    return status;
}

mla_status mla_st_write(const char *path, const struct mla_st_tensor *tensors, int64_t num_tensors,
                        const char *const *keys, const char *const *values, int64_t num_metadata)
{
    struct slot *slots = mla_alloc((size_t)num_tensors, sizeof *slots);
    if (!slots)
        return no_memory(path);
    mla_status status = MLA_OK;
    for (int64_t i = 0; i < num_tensors && status == MLA_OK; i++) {
        slots[i].tensor = &tensors[i];
        slots[i].grain = ALIGNMENT;
        while (tensors[i].bytes % slots[i].grain != 0)
            slots[i].grain /= 2;
        status = check_tensor(path, &tensors[i]);
    }
    if (status == MLA_OK) {
        qsort(slots, (size_t)num_tensors, sizeof *slots, by_grain);
        size_t at = 0;
        for (int64_t i = 0; i < num_tensors; i++) {
            slots[i].begin = at;
            at += slots[i].tensor->bytes;
        }
        char *header = make_header(path, slots, num_tensors, keys, values, num_metadata, &status);
        if (header)
            status = write_file(path, header, slots, num_tensors);
        mla_free(header);
    }
    mla_free(slots);
    return status;
}
