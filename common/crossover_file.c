/* SPDX-License-Identifier: Apache-2.0 */
/* Files of measured route times: read as hostile, written for people to read too. */
#include "crossover.h"

#include "status.h"
#include "text.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char first_line[] = "mla-crossovers 2";
enum { FILE_BYTES = 16 << 20, LINE_BYTES = 1024 };

struct reader {
    const char *path;
    bool built_in; /* measured by us: any driver, and of this version by birth */
    int number;    /* of the line */
    struct mla_route_table *table;
    struct mla_route_curve *curves;
    int count;
};

/* Whose table: backend, device, version. */
static void device_line(const mla_context *context, char *line, size_t bytes)
{
    snprintf(line, bytes, "device %s %s, libmla %s", mla_backend_name(context->backend),
             context->identity, mla_version());
}

/* ------------------------------------------------------------------ write */

/* A line for each number of query tokens, a time for each number of keys before them. */
static void add_grid(struct mla_text *t, const mla_problem *p, const struct mla_route_curve *c,
                     mla_route route, const char *word, const double (*rate)[MLA_CURVE_POINTS])
{
    for (int i = 0; i < c->num_queries; i++) {
        bool any = false;
        for (int j = 0; j < c->num_contexts; j++)
            any |= rate[i][j] > 0;
        if (!any)
            continue;
        mla_text_add(t, "%s %s %" PRId64, word, mla_route_name(route), c->queries[i]);
        for (int j = 0; j < c->num_contexts; j++)
            if (rate[i][j] > 0)
                mla_text_add(t, " %.4g",
                             mla_route_flop(p, route, c->queries[i],
                                            c->queries[i] + c->contexts[j]) /
                                 rate[i][j] * 1e6);
            else
                mla_text_add(t, " -");
        mla_text_add(t, "\n");
    }
}

static void add_curve(struct mla_text *t, const struct mla_route_curve *c)
{
    mla_problem p;
    mla_curve_problem(c, &p);
    mla_text_add(t,
                 "\ncurve heads=%" PRId64 " rank=%" PRId64 " nope=%" PRId64 " rope=%" PRId64
                 " v=%" PRId64 " dtype=%s cache=%s topk=%" PRId64 "\nqueries",
                 c->heads_q, c->kv_lora_rank, c->qk_nope_dim, c->qk_rope_dim, c->v_dim,
                 mla_dtype_name(c->q_dtype), mla_cache_format_name(c->cache_format), c->topk);
    for (int i = 0; i < c->num_queries; i++)
        mla_text_add(t, " %" PRId64, c->queries[i]);
    mla_text_add(t, "\ncontexts");
    for (int j = 0; j < c->num_contexts; j++)
        mla_text_add(t, " %" PRId64, c->contexts[j]);
    mla_text_add(t, "\n");
    for (int route = MLA_ROUTE_DENSE_MHA; route < MLA_ROUTES; route++) {
        add_grid(t, &p, c, (mla_route)route, "us", c->more[route]);
        add_grid(t, &p, c, (mla_route)route, "alone_us", c->alone[route]);
    }
}

char *mla_crossovers_text(const mla_context *context, const struct mla_route_curve *curves,
                          int count)
{
    char mine[LINE_BYTES];
    struct mla_text t = {0};
    device_line(context, mine, sizeof mine);
    for (int pass = 0; pass < 2; pass++) { /* the length first */
        t.used = 0;
        mla_text_add(
            &t,
            "%s\n%s\n# us ROUTE QUERIES TIME...: one more request of that many query tokens "
            "in a batch that keeps the\n# device busy, a time for each number of keys "
            "before them (contexts); alone_us: the request alone.\n",
            first_line, mine);
        for (int i = 0; i < count; i++)
            add_curve(&t, &curves[i]);
        if (pass == 0) {
            t.bytes = t.used + 1;
            t.at = mla_alloc(t.bytes, 1);
            if (!t.at)
                return NULL;
        }
    }
    return t.at;
}

/* ------------------------------------------------------------------- read */

static mla_status bad(const struct reader *r, const char *line, const char *want)
{
    return mla_fail(MLA_ERR_ARGUMENT, "crossovers: '%.300s' line %d: got '%.60s', want %s", r->path,
                    r->number, line, want);
}

static mla_status curve_line(struct reader *r, const char *line)
{
    struct mla_route_curve c = {0};
    char dtype[16], cache[24];
    int used = 0;
    if (r->count == MLA_CURVES)
        return bad(r, line, "at most 256 curves");
    if (sscanf(line,
               "curve heads=%7" SCNd64 " rank=%7" SCNd64 " nope=%7" SCNd64 " rope=%7" SCNd64
               " v=%7" SCNd64 " dtype=%15s cache=%23s topk=%8" SCNd64 "%n",
               &c.heads_q, &c.kv_lora_rank, &c.qk_nope_dim, &c.qk_rope_dim, &c.v_dim, dtype, cache,
               &c.topk, &used) != 8 ||
        line[used] || c.heads_q < 1 || c.kv_lora_rank < 1 || c.qk_nope_dim < 1 ||
        c.qk_rope_dim < 0 || c.v_dim < 1 || c.topk < 0)
        return bad(r, line,
                   "'curve heads= rank= nope= rope= v= dtype= cache= topk=' with positive numbers");
    if (mla_dtype_parse(dtype, &c.q_dtype) != MLA_OK ||
        mla_cache_format_parse(cache, &c.cache_format) != MLA_OK)
        return bad(r, line, "a dtype and a cache format that this library knows");
    struct mla_route_curve *more = mla_realloc(r->curves, (size_t)r->count + 1, sizeof *r->curves);
    if (!more)
        return mla_fail(MLA_ERR_MEMORY, "crossovers: no memory for %d curves", r->count + 1);
    r->curves = more;
    r->curves[r->count++] = c;
    return MLA_OK;
}

/* Ascending numbers behind a word. */
static bool numbers(const char *line, int64_t *at, int *count, int64_t least)
{
    *count = 0;
    for (line += strcspn(line, " "); *line;) {
        char *end;
        errno = 0;
        long long value = strtoll(line, &end, 10);
        if (end == line || errno || (*end && *end != ' ') || *count == MLA_CURVE_POINTS ||
            value < least || value > INT32_MAX || (*count && value <= at[*count - 1]))
            return false;
        at[(*count)++] = value;
        line = end;
    }
    return *count > 0;
}

static int index_of(const int64_t *at, int count, int64_t value)
{
    for (int i = 0; i < count; i++)
        if (at[i] == value)
            return i;
    return -1;
}

/* A time or - for each number of keys. */
static mla_status times(const struct reader *r, const char *line, const char *at,
                        const struct mla_route_curve *c, mla_route route, int i, double *rate)
{
    mla_problem p;
    mla_curve_problem(c, &p);
    for (int j = 0; j < c->num_contexts; j++) {
        char *end;
        bool none = strncmp(at, " -", 2) == 0 && (at[2] == ' ' || !at[2]);
        double us = none ? 0 : strtod(at, &end);
        if (!none && (*at != ' ' || end == at || (*end && *end != ' ') || !isfinite(us) ||
                      us <= 0 || us > 1e12))
            return bad(r, line, "a time in microseconds or - for each number of contexts");
        at = none ? at + 2 : end;
        if (!none)
            rate[j] = mla_route_flop(&p, route, c->queries[i], c->queries[i] + c->contexts[j]) /
                      (us * 1e-6);
    }
    return *at ? bad(r, line, "a time in microseconds or - for each number of contexts") : MLA_OK;
}

static mla_status data_line(struct reader *r, const char *line)
{
    struct mla_route_curve *c = &r->curves[r->count - 1];
    char name[16];
    int64_t queries;
    int used = 0;
    mla_route route = MLA_ROUTE_AUTO;
    if (strncmp(line, "queries ", 8) == 0)
        return numbers(line, c->queries, &c->num_queries, 1)
                   ? MLA_OK
                   : bad(r, line, "1 to 16 ascending numbers from 1 on");
    if (strncmp(line, "contexts ", 9) == 0)
        return numbers(line, c->contexts, &c->num_contexts, 0)
                   ? MLA_OK
                   : bad(r, line, "1 to 16 ascending numbers from 0 on");
    bool alone = strncmp(line, "alone_us ", 9) == 0;
    if (sscanf(line, alone ? "alone_us %15s %10" SCNd64 "%n" : "us %15s %10" SCNd64 "%n", name,
               &queries, &used) != 2 ||
        mla_route_parse(name, &route) != MLA_OK || route == MLA_ROUTE_AUTO)
        return bad(r, line,
                   "queries, contexts, 'us ROUTE QUERIES TIME...' or 'alone_us ROUTE QUERIES "
                   "TIME...'");
    int i = index_of(c->queries, c->num_queries, queries);
    if (i < 0 || c->num_contexts == 0)
        return bad(r, line, "a number of the line queries above it, behind a line contexts");
    double(*rate)[MLA_CURVE_POINTS] = alone ? c->alone[route] : c->more[route];
    return times(r, line, line + used, c, route, i, rate[i]);
}

/* The grid of a curve must be whole before the next begins, and at the end. */
static mla_status close_curve(struct reader *r)
{
    char why[80];
    if (r->count == 0 || mla_curve_fill(&r->curves[r->count - 1], why, sizeof why))
        return MLA_OK;
    return mla_fail(MLA_ERR_ARGUMENT, "crossovers: '%.300s' line %d: got a curve with %s, want one",
                    r->path, r->number, why);
}

static mla_status read_line(struct reader *r, const mla_context *context, const char *line)
{
    char mine[LINE_BYTES];
    device_line(context, mine, sizeof mine);
    if (r->number == 1)
        return strcmp(line, first_line) == 0 ? MLA_OK : bad(r, line, "'mla-crossovers 2'");
    if (r->number == 2 && r->built_in)
        return MLA_OK; /* chosen by it */
    if (r->number == 2)
        return strcmp(line, mine) == 0
                   ? MLA_OK
                   : mla_fail(MLA_ERR_ARGUMENT,
                              "crossovers: '%.300s': got a table of '%.200s', want one of '%s' "
                              "(mla tune)",
                              r->path, strncmp(line, "device ", 7) ? line : line + 7, mine + 7);
    if (line[0] == '\0' || line[0] == '#')
        return MLA_OK;
    if (strncmp(line, "curve ", 6) == 0) {
        mla_status status = close_curve(r);
        return status ? status : curve_line(r, line);
    }
    return r->count ? data_line(r, line) : bad(r, line, "a line that begins with curve");
}

static mla_status read_stream(struct reader *r, const mla_context *context, FILE *file,
                              struct mla_route_table **out)
{
    char line[LINE_BYTES];
    mla_status status = MLA_OK;
    while (!status && fgets(line, sizeof line, file)) {
        r->number++;
        if (!strchr(line, '\n') && !feof(file)) {
            status = bad(r, line, "fewer than 1023 characters");
            break;
        }
        line[strcspn(line, "\r\n")] = '\0';
        status = read_line(r, context, line);
    }
    if (!status && ferror(file))
        status = mla_fail(MLA_ERR_IO, "crossovers: cannot read '%.300s'", r->path);
    if (!status && r->count == 0)
        status = mla_fail(MLA_ERR_ARGUMENT, "crossovers: got '%.300s' without a curve, want one",
                          r->path);
    if (!status)
        status = close_curve(r);
    if (!status) {
        r->table = mla_alloc(1, sizeof *r->table);
        if (!r->table)
            status = mla_fail(MLA_ERR_MEMORY, "crossovers: no memory for a table");
    }
    if (status) {
        mla_free(r->curves);
        return status;
    }
    *r->table = *mla_route_table_of(context->backend); /* where no curve has the problem's dims */
    r->table->name = r->built_in ? "built in" : "measured";
    r->table->curves = r->curves;
    r->table->num_curves = r->count;
    *out = r->table;
    return MLA_OK;
}

mla_status mla_crossovers_read(const mla_context *context, const char *path,
                               struct mla_route_table **out)
{
    struct reader r = {.path = path};
    struct stat about;
    *out = NULL;
    FILE *file = fopen(path, "rb");
    if (!file || fstat(fileno(file), &about) || !S_ISREG(about.st_mode)) {
        int error = file ? EINVAL : errno;
        if (file)
            fclose(file);
        return mla_fail(error == ENOENT ? MLA_ERR_ARGUMENT : MLA_ERR_IO,
                        "crossovers: got '%.300s' (%s), want a readable file", path,
                        strerror(error));
    }
    mla_status status =
        about.st_size > FILE_BYTES
            ? mla_fail(MLA_ERR_ARGUMENT, "crossovers: got '%.300s' of %lld bytes, want at most %d",
                       path, (long long)about.st_size, (int)FILE_BYTES)
            : read_stream(&r, context, file, out);
    fclose(file);
    return status;
}

mla_status mla_crossovers_parse(const mla_context *context, const char *text,
                                struct mla_route_table **out)
{
    struct reader r = {.path = "built in", .built_in = true};
    *out = NULL;
    FILE *file = fmemopen((void *)(uintptr_t)text, strlen(text), "r");
    if (!file)
        return mla_fail(MLA_ERR_MEMORY, "crossovers: no memory for a built-in table");
    mla_status status = read_stream(&r, context, file, out);
    fclose(file);
    return status;
}

void mla_crossovers_free(struct mla_route_table *table)
{
    if (!table)
        return;
    mla_free((void *)(uintptr_t)table->curves);
    mla_free(table);
}

/* Does the file's second line speak of this backend? What is no such file is judged by the
 * reader. */
static bool for_backend(const char *path, mla_backend backend)
{
    char line[LINE_BYTES], want[32];
    FILE *file = fopen(path, "rb");
    bool other = false;
    snprintf(want, sizeof want, "device %s ", mla_backend_name(backend));
    if (file && fgets(line, sizeof line, file) && fgets(line, sizeof line, file))
        other = strncmp(line, "device ", 7) == 0 && strncmp(line, want, strlen(want)) != 0;
    if (file)
        fclose(file);
    return !other;
}

/* Name and architecture, without driver and version. */
static bool for_device(const char *text, const mla_context *context)
{
    char want[LINE_BYTES];
    const char *second = strchr(text, '\n'), *driver = strstr(context->identity, ", driver ");
    if (!second || !driver)
        return false;
    snprintf(want, sizeof want, "device %s %.*s", mla_backend_name(context->backend),
             (int)(driver - context->identity) + 1, context->identity);
    return strncmp(second + 1, want, strlen(want)) == 0;
}

mla_status mla_crossovers_find(mla_context *context)
{
    const char *path = getenv("MLA_CROSSOVERS");
    if (path && !*path)
        return MLA_OK;
    if (path && for_backend(path, context->backend))
        return mla_crossovers_read(context, path, &context->crossovers);
    for (int i = 0; mla_crossovers_built_in[i]; i++)
        if (for_device(mla_crossovers_built_in[i], context))
            return mla_crossovers_parse(context, mla_crossovers_built_in[i], &context->crossovers);
    return MLA_OK;
}

mla_status mla_context_load_crossovers(mla_context *context, const char *path)
{
    struct mla_route_table *table;
    if (!context || !path)
        return mla_fail(MLA_ERR_ARGUMENT, "mla_context_load_crossovers: %s: got NULL, want %s",
                        context ? "path" : "context", context ? "a file" : "a context");
    mla_status status = mla_crossovers_read(context, path, &table);
    if (status)
        return status;
    mla_crossovers_free(context->crossovers);
    context->crossovers = table;
    return MLA_OK;
}
