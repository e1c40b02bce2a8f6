/* SPDX-License-Identifier: Apache-2.0 */
/* What a case owns, and where cases come from: a file or a problem string. */
#include "case_file.h"
#include "status.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

enum { ALIGNMENT = 64 };

struct node {
    struct node *next;
};

struct owner {
    struct node *nodes;
    struct mla_st_file file;
};

static struct owner *owner_of(struct mla_case *c)
{
    if (!c->owned)
        c->owned = mla_alloc(1, sizeof(struct owner));
    return c->owned;
}

void *mla_case_buffer(struct mla_case *c, size_t count, size_t bytes)
{
    size_t total;
    if (__builtin_mul_overflow(count, bytes, &total) ||
        __builtin_add_overflow(total, sizeof(struct node) + ALIGNMENT, &total))
        return NULL;
    struct owner *owner = owner_of(c);
    struct node *node = owner ? mla_alloc(1, total) : NULL;
    if (!node)
        return NULL;
    node->next = owner->nodes;
    owner->nodes = node;
    uintptr_t at = (uintptr_t)(node + 1);
    return (char *)(node + 1) + (ALIGNMENT - at % ALIGNMENT) % ALIGNMENT;
}

mla_status mla_case_keep_file(struct mla_case *c, struct mla_st_file *file)
{
    struct owner *owner = owner_of(c);
    if (!owner) {
        mla_st_close(file);
        return mla_fail(MLA_ERR_MEMORY, "mla_case_load: no memory for the list of buffers");
    }
    owner->file = *file;
    *file = (struct mla_st_file){0};
    return MLA_OK;
}

void mla_case_free(struct mla_case *c)
{
    if (!c)
        return;
    mla_problem_release(&c->problem);
    struct owner *owner = c->owned;
    if (owner) {
        for (struct node *node = owner->nodes, *next; node; node = next) {
            next = node->next;
            mla_free(node);
        }
        mla_st_close(&owner->file);
        mla_free(owner);
    }
    memset(c, 0, sizeof *c);
}

mla_status mla_case_open(const char *path_or_text, struct mla_case *out,
                         void (*warn)(const char *line, void *user), void *user)
{
    memset(out, 0, sizeof *out);
    struct stat info;
    int why = stat(path_or_text, &info) == 0 ? 0 : errno;
    if (why == 0)
        return mla_case_load(path_or_text, out, warn, user);
    const char *word = path_or_text + strspn(path_or_text, " \t\n");
    if (strncmp(word, "attend", 6) == 0) {
        struct mla_case_spec spec;
        mla_status status = mla_case_spec_parse(&spec, path_or_text);
        if (status != MLA_OK)
            return status;
        status = mla_case_make(&spec, out);
        mla_problem_release(&spec.problem);
        return status;
    }
    /* A name that can't be a file is the caller's mistake; one that can't be looked at is not. */
    bool absent = why == ENOENT || why == ENOTDIR || why == ENAMETOOLONG;
    return mla_fail(absent ? MLA_ERR_ARGUMENT : MLA_ERR_IO,
                    "mla_case_open: '%.300s': got '%s', want a problem file or a problem string "
                    "that starts with 'attend'",
                    path_or_text, strerror(why));
}

const char *mla_case_shape_text(char *dst, size_t bytes, int rank, const int64_t *shape)
{
    size_t used = (size_t)snprintf(dst, bytes, "[");
    for (int i = 0; i < rank && used < bytes; i++)
        used += (size_t)snprintf(dst + used, bytes - used, "%s%" PRId64, i ? ", " : "", shape[i]);
    if (used < bytes)
        snprintf(dst + used, bytes - used, "]");
    return dst;
}

static const enum mla_st_dtype float_dtypes[] = {
    [MLA_BF16] = MLA_ST_BF16,
    [MLA_F16] = MLA_ST_F16,
    [MLA_F32] = MLA_ST_F32,
    [MLA_F64] = MLA_ST_F64,
};

bool mla_case_dtype_from_st(enum mla_st_dtype from, mla_dtype *to)
{
    for (unsigned i = 0; i < sizeof float_dtypes / sizeof *float_dtypes; i++)
        if (float_dtypes[i] == from) {
            *to = (mla_dtype)i;
            return true;
        }
    return false;
}

enum mla_st_dtype mla_case_dtype_to_st(mla_dtype from)
{
    return float_dtypes[from];
}

enum { MAX_WARNINGS = 16 };

void mla_case_warn(struct mla_case_warnings *w, const char *kind, const char *name,
                   const char *what)
{
    char text[64], line[512];
    if (!w->warn || w->count++ >= MAX_WARNINGS)
        return;
    snprintf(line, sizeof line, "%.300s: %s '%s' %s", w->label, kind,
             mla_st_printable(text, sizeof text, name), what);
    w->warn(line, w->user);
}

void mla_case_warn_end(struct mla_case_warnings *w)
{
    char line[400];
    if (!w->warn || w->count <= MAX_WARNINGS)
        return;
    snprintf(line, sizeof line, "%.300s: %" PRId64 " more warnings", w->label,
             w->count - MAX_WARNINGS);
    w->warn(line, w->user);
}
