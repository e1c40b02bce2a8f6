/* SPDX-License-Identifier: Apache-2.0 */
/* Records of kernels that were run and judged on a device; see qualify.h. */
#include "qualify.h"

#include "status.h"
#include "text.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char first_line[] = "mla-qualified 1";
enum { FILE_BYTES = 1 << 20, LINE_BYTES = 512 };

bool mla_qualified_path(char *path, size_t bytes)
{
    const char *named = getenv("MLA_QUALIFIED"), *cache = getenv("XDG_CACHE_HOME");
    const char *home = getenv("HOME");
    int used;
    if (named)
        used = snprintf(path, bytes, "%s", named);
    else if (cache && cache[0] == '/')
        used = snprintf(path, bytes, "%s/mla/qualified", cache);
    else if (home && home[0] == '/')
        used = snprintf(path, bytes, "%s/.cache/mla/qualified", home);
    else
        used = 0;
    return used > 0 && (size_t)used < bytes;
}

static void device_line(const mla_context *context, char *line, size_t bytes)
{
    snprintf(line, bytes, "device %s, libmla %s", context->identity, mla_version());
}

/* The whole file, terminated; NULL with a status. */
static char *read_file(const char *path, mla_status *status)
{
    FILE *file = fopen(path, "rb");
    struct stat about;
    char *text = NULL;
    *status = MLA_OK;
    if (!file || fstat(fileno(file), &about) || !S_ISREG(about.st_mode)) {
        *status =
            mla_fail(MLA_ERR_IO, "qualification record: got '%.300s' (%s), want a readable file",
                     path, file ? "not a regular file" : strerror(errno));
    } else if (about.st_size > FILE_BYTES) {
        *status = mla_fail(MLA_ERR_ARGUMENT,
                           "qualification record: got '%.300s' of %lld bytes, want at most %d",
                           path, (long long)about.st_size, (int)FILE_BYTES);
    } else if (!(text = mla_alloc((size_t)about.st_size + 1, 1))) {
        *status = mla_fail(MLA_ERR_MEMORY, "qualification record: no memory for %lld bytes",
                           (long long)about.st_size);
    } else {
        size_t n = fread(text, 1, (size_t)about.st_size, file);
        text[n] = '\0';
        if (ferror(file))
            *status = mla_fail(MLA_ERR_IO, "qualification record: cannot read '%.300s'", path);
        else if (strlen(text) != n)
            *status =
                mla_fail(MLA_ERR_ARGUMENT,
                         "qualification record: got a zero byte in '%.300s', want text", path);
    }
    if (file)
        fclose(file);
    if (*status) {
        mla_free(text);
        return NULL;
    }
    return text;
}

/* "kernel NAME ok|failed CASES"; name is left terminated by a space in the line. */
static bool kernel_line(const char *line, size_t length, size_t *name_length, bool *ok)
{
    char word[16];
    int name_end = 0, used = 0;
    int64_t cases = -1;
    char copy[LINE_BYTES];
    if (length >= sizeof copy)
        return false;
    memcpy(copy, line, length);
    copy[length] = '\0';
    if (sscanf(copy, "kernel %*127[a-z0-9_]%n %15[a-z] %" SCNd64 "%n", &name_end, word, &cases,
               &used) != 2 ||
        copy[used] || cases < 0)
        return false;
    *ok = strcmp(word, "ok") == 0;
    *name_length = (size_t)name_end - strlen("kernel ");
    return *ok || strcmp(word, "failed") == 0;
}

/* Walks the lines. Names of this context's "ok" kernels are appended to names, each with a newline
 * before and after; lines of other sections are appended to others (either may be NULL). */
static mla_status walk(const char *path, const char *text, const char *mine, struct mla_text *names,
                       struct mla_text *others)
{
    bool inside = false, sectioned = false;
    int number = 0;
    for (const char *line = text, *next; *line; line = next) {
        size_t length = strcspn(line, "\n"), name_length;
        bool ok;
        next = line + length + (line[length] == '\n');
        number++;
        if (number == 1) {
            if (length != strlen(first_line) || memcmp(line, first_line, length) != 0)
                return mla_fail(MLA_ERR_ARGUMENT,
                                "qualification record: '%.300s' line 1: got '%.*s', want '%s'",
                                path, (int)(length < 60 ? length : 60), line, first_line);
            continue;
        }
        bool device = length > 7 && length < LINE_BYTES && memcmp(line, "device ", 7) == 0;
        if (device) {
            sectioned = true;
            inside = length == strlen(mine) && memcmp(line, mine, length) == 0;
        } else if (!sectioned || !kernel_line(line, length, &name_length, &ok)) {
            return mla_fail(MLA_ERR_ARGUMENT,
                            "qualification record: '%.300s' line %d: got '%.*s', want 'device …' "
                            "or 'kernel NAME ok|failed CASES'",
                            path, number, (int)(length < 60 ? length : 60), line);
        } else if (inside && ok && names) {
            mla_text_add(names, "%s%.*s\n", names->used ? "" : "\n", (int)name_length, line + 7);
        }
        if (!inside && others)
            mla_text_add(others, "%.*s\n", (int)length, line);
    }
    if (number == 0)
        return mla_fail(MLA_ERR_ARGUMENT,
                        "qualification record: '%.300s' line 1: got nothing, want '%s'", path,
                        first_line);
    return MLA_OK;
}

mla_status mla_qualified_load(mla_context *context, const char *path)
{
    char mine[LINE_BYTES];
    mla_status status;
    char *text = read_file(path, &status);
    if (status)
        return status;
    device_line(context, mine, sizeof mine);
    size_t bytes = strlen(text) + 3;
    struct mla_text names = {.at = mla_alloc(bytes, 1), .bytes = bytes};
    if (!names.at)
        status = mla_fail(MLA_ERR_MEMORY, "qualification record: no memory for %zu bytes", bytes);
    else
        status = walk(path, text, mine, &names, NULL);
    mla_free(text);
    if (status || !names.used) {
        mla_free(names.at);
        names.at = NULL;
    }
    if (!status) {
        mla_free(context->qualified);
        context->qualified = names.at;
    }
    return status;
}

mla_status mla_qualified_find(mla_context *context)
{
    char path[4096];
    if (!mla_qualified_path(path, sizeof path) || access(path, F_OK) != 0)
        return MLA_OK;
    mla_status status = mla_qualified_load(context, path);
    return getenv("MLA_QUALIFIED") ? status : MLA_OK;
}

/* The folders of a path that are missing. */
static void make_folders(const char *path)
{
    char folder[4096];
    snprintf(folder, sizeof folder, "%s", path);
    for (char *at = strchr(folder + 1, '/'); at; at = strchr(at + 1, '/')) {
        *at = '\0';
        mkdir(folder, 0777); /* what is missing still fails at fopen, with a reason */
        *at = '/';
    }
}

static mla_status write_file(const char *path, const char *text)
{
    char beside[4096];
    int used = snprintf(beside, sizeof beside, "%s.%ld", path, (long)getpid());
    FILE *file = used > 0 && (size_t)used < sizeof beside ? fopen(beside, "wb") : NULL;
    bool good = file && fputs(text, file) >= 0;
    int error = errno;
    if (file && fclose(file)) {
        good = false;
        error = errno;
    }
    if (good && rename(beside, path)) {
        good = false;
        error = errno;
    }
    if (file && !good)
        remove(beside);
    return good ? MLA_OK
                : mla_fail(MLA_ERR_IO, "qualification record: cannot write '%.300s': %s", path,
                           strerror(error));
}

mla_status mla_qualified_save(const mla_context *context, const char *path,
                              const struct mla_qualified_row *rows, int count)
{
    char mine[LINE_BYTES];
    mla_status status;
    char *old = read_file(path, &status);
    if (status == MLA_ERR_MEMORY)
        return status;
    device_line(context, mine, sizeof mine);
    size_t bytes = (old ? strlen(old) : 0) + sizeof first_line + sizeof mine + 8;
    for (int i = 0; i < count; i++)
        bytes += strlen(rows[i].kernel) + 48;
    struct mla_text t = {.at = mla_alloc(bytes, 1), .bytes = bytes};
    if (!t.at) {
        mla_free(old);
        return mla_fail(MLA_ERR_MEMORY, "qualification record: no memory for %zu bytes", bytes);
    }
    mla_text_add(&t, "%s\n", first_line);
    size_t start = t.used;
    if (old && walk(path, old, mine, NULL, &t)) {
        t.used = start; /* damaged: nothing of it is kept */
        t.at[start] = '\0';
    }
    mla_free(old);
    mla_text_add(&t, "%s\n", mine);
    for (int i = 0; i < count; i++)
        mla_text_add(&t, "kernel %s %s %" PRId64 "\n", rows[i].kernel, rows[i].ok ? "ok" : "failed",
                     rows[i].cases);
    make_folders(path);
    status = write_file(path, t.at);
    mla_free(t.at);
    return status;
}

bool mla_kernel_trusted(const mla_context *context, const struct mla_kernel *kernel)
{
    char name[160];
    if (context->backend != MLA_BACKEND_CUDA || kernel->proof == MLA_PROOF_CPU ||
        kernel->proof == MLA_PROOF_SILICON)
        return true;
    snprintf(name, sizeof name, "\n%s\n", kernel->name);
    return context->qualified && strstr(context->qualified, name);
}
