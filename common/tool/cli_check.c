/* SPDX-License-Identifier: Apache-2.0 */
/* mla check: runs a case, or takes a result that any program wrote, and judges it element by
 * element against the fp64 reference. */
#include "command.h"
#include "result_file.h"

#include "common/kernel.h"
#include "common/route.h"
#include "common/status.h"
#include "common/text.h"
#include "validation/check.h"

#include <ctype.h>
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

struct check_command {
    const struct command *command;
    struct compute compute;
    struct text_list shapes;
    const char *against, *json;
    int64_t rows, sample_seed;
    bool strict, hard, each;
    /* running: */
    FILE *text;
    json_t *cases;
    int64_t ok, weak, mistrusted, failed, skipped;
};

/* --------------------------------------------------------------- one result */

static enum mla_verdict_mode mode_of(const struct check_command *o)
{
    return o->strict ? MLA_VERDICT_STRICT : o->hard ? MLA_VERDICT_HARD : MLA_VERDICT_DEFAULT;
}

/* 'text' for a shell. */
static void add_quoted(struct mla_text *t, const char *text)
{
    mla_text_add(t, "'");
    for (; *text; text++)
        if (*text == '\'')
            mla_text_add(t, "'\\''");
        else
            mla_text_add(t, "%c", *text);
    mla_text_add(t, "'");
}

/* The command line that repeats this judgement. */
static void rerun_line(const struct check_command *o, const char *source, char *line, size_t bytes)
{
    struct mla_text t = {.at = line, .bytes = bytes};
    const struct compute *c = &o->compute;
    mla_text_add(&t, "mla check");
    if (strcmp(c->backend, "cpu") != 0)
        mla_text_add(&t, " --backend %s", c->backend);
    if (c->forced != MLA_ROUTE_AUTO)
        mla_text_add(&t, " --route %s", mla_route_name(c->forced));
    if (c->precision_value == MLA_PRECISION_FP64)
        mla_text_add(&t, " --precision fp64");
    if (c->kernel)
        mla_text_add(&t, " --kernel %s", c->kernel);
    if (o->rows)
        mla_text_add(&t, " --rows %lld", (long long)o->rows);
    if (o->sample_seed)
        mla_text_add(&t, " --sample-seed %lld", (long long)o->sample_seed);
    if (o->strict || o->hard)
        mla_text_add(&t, " --%s", o->strict ? "strict" : "hard");
    if (o->against) {
        mla_text_add(&t, " --against ");
        add_quoted(&t, o->against);
    }
    mla_text_add(&t, " ");
    add_quoted(&t, source);
}

/* Compares, prints, counts. backend: what computed the result. */
static mla_status judge(struct check_command *o, const struct mla_case *k, const char *source,
                        const char *name, const struct mla_result *result,
                        const mla_rounding *rounding, mla_backend backend)
{
    size_t bytes = strlen(source) * 4 + (o->against ? strlen(o->against) * 4 : 0) + 512;
    char *rerun = mla_alloc(bytes, 1);
    if (!rerun)
        return mla_fail(MLA_ERR_MEMORY, "mla check: no memory for %zu bytes", bytes);
    rerun_line(o, source, rerun, bytes);
    struct mla_check_options options = {.context = o->compute.host,
                                        .rounding = rounding,
                                        .mode = mode_of(o),
                                        .rows = o->rows,
                                        .sample_seed = (uint64_t)o->sample_seed,
                                        .nonfinite_may_spread = backend != MLA_BACKEND_CPU,
                                        .name = name,
                                        .rerun = rerun};
    struct mla_check_report report;
    mla_status status = mla_check_result(k, result, &options, &report);
    if (!status) {
        mla_check_print(o->text, k, &options, &report);
        fflush(o->text);
        if (o->cases)
            json_array_append_new(o->cases, mla_check_json(k, &options, &report));
        o->ok += report.verdict == MLA_PASS;
        o->weak += report.verdict == MLA_WEAK;
        o->mistrusted += report.verdict == MLA_MISTRUSTED;
        o->failed += report.verdict == MLA_FAIL;
    }
    mla_free(rerun);
    return status;
}

/* The kernel that ran, or the routes where there were several. */
static void name_run(const mla_request_info *requests, int64_t n, char *name, size_t bytes)
{
    struct mla_text t = {.at = name, .bytes = bytes};
    const char *kernel = NULL;
    unsigned seen = 0;
    bool several = false;
    for (int64_t b = 0; b < n; b++) {
        if (!requests[b].kernel || requests[b].query_len == 0)
            continue;
        several |= kernel && strcmp(kernel, requests[b].kernel) != 0;
        kernel = requests[b].kernel;
        if (!(seen & MLA_BIT(requests[b].route)))
            mla_text_add(&t, "%s%s", seen ? "+" : "", mla_route_name(requests[b].route));
        seen |= MLA_BIT(requests[b].route);
    }
    if (several)
        return;
    t.used = 0;
    mla_text_add(&t, "%s", kernel ? kernel : "nothing");
}

/* Runs the case on the backend and judges what comes out. */
static mla_status check_run(struct check_command *o, struct mla_case *k, const char *source)
{
    const mla_problem *p = &k->problem;
    struct run_result r;
    mla_status status = mla_run_plan(&o->compute, k, true, &r);
    mla_request_info *requests = mla_alloc((size_t)p->batch + 1, sizeof *requests);
    mla_rounding *rounding = mla_alloc((size_t)p->batch + 1, sizeof *rounding);
    if (!status && (!requests || !rounding))
        status = mla_fail(MLA_ERR_MEMORY, "requests: no memory for %lld", (long long)p->batch);
    for (int64_t b = 0; !status && b < p->batch; b++) {
        status = mla_plan_request(r.plan, b, &requests[b]);
        if (!status)
            rounding[b] = mla_rounding_of(p, o->compute.chosen, o->compute.precision_value,
                                          requests[b].route, r.out_dtype);
    }
    if (!status)
        status = mla_run_case(k, &r);
    if (!status) {
        char name[160];
        name_run(requests, p->batch, name, sizeof name);
        const struct mla_result result = {r.out_dtype, r.lse_dtype, r.out, r.lse, r.max_logits};
        status = judge(o, k, source, name, &result, rounding, MLA_BACKEND_CPU);
    }
    mla_free(requests);
    mla_free(rounding);
    mla_run_free(&r);
    return status;
}

/* Judges a result file. Whose roundings: those of --backend; without it the CPU's for files that
 * say so, and a GPU's for everything else. */
static mla_status check_against(struct check_command *o, struct mla_case *k, const char *source,
                                bool backend_given)
{
    const mla_problem *p = &k->problem;
    struct mla_result_file file;
    struct stat info;
    if (stat(o->against, &info) && (errno == ENOENT || errno == ENOTDIR))
        return mla_fail(MLA_ERR_ARGUMENT, "--against: got '%.300s' (%s), want a result file",
                        o->against, strerror(errno));
    mla_status status = mla_result_load(o->against, p, &file, mla_warning, NULL);
    if (status)
        return status;
    mla_warnings_show(o->command);
    mla_rounding *rounding = mla_alloc((size_t)p->batch + 1, sizeof *rounding);
    mla_backend backend = MLA_BACKEND_CUDA;
    if (backend_given && strcmp(o->compute.backend, "auto") != 0)
        mla_backend_parse(o->compute.backend, &backend);
    else if (file.backend && strcmp(file.backend, "cpu") == 0)
        backend = MLA_BACKEND_CPU;
    mla_precision precision = file.out_dtype == MLA_F64 && !o->compute.precision
                                  ? MLA_PRECISION_FP64
                                  : o->compute.precision_value;
    if (!rounding)
        status = mla_fail(MLA_ERR_MEMORY, "requests: no memory for %lld", (long long)p->batch);
    for (int64_t b = 0; !status && b < p->batch; b++) {
        bool complete = k->complete && k->complete[b];
        mla_route route = o->compute.forced;
        const char *why;
        if (route == MLA_ROUTE_AUTO)
            route = mla_loosest_route(p, complete);
        else if (!mla_route_admissible(p, route, complete, &why))
            status = mla_fail(MLA_ERR_UNSUPPORTED, "--route: got %s, but %s", mla_route_name(route),
                              why);
        rounding[b] = mla_rounding_of(p, backend, precision, route, file.out_dtype);
    }
    if (!status) {
        const struct mla_result result = {file.out_dtype, file.lse_dtype, file.out, file.lse,
                                          file.max_logits};
        status = judge(o, k, source, o->against, &result, rounding, backend);
    }
    mla_free(rounding);
    mla_result_free(&file);
    return status;
}

/* ---------------------------------------------------------------- one case */

/* Every route that all requests admit. */
static mla_status check_each(struct check_command *o, struct mla_case *k, const char *source)
{
    int64_t before = o->ok + o->weak + o->mistrusted + o->failed;
    bool skipped = false;
    mla_status status = MLA_OK;
    for (int r = MLA_ROUTE_DENSE_MHA; r < MLA_ROUTES && !status; r++) {
        bool admissible = true;
        for (int64_t b = 0; b < k->problem.batch; b++)
            admissible = admissible && mla_route_admissible(&k->problem, (mla_route)r,
                                                            k->complete && k->complete[b], NULL);
        if (!admissible)
            continue;
        o->compute.forced = (mla_route)r;
        status = check_run(o, k, source);
        if (status == MLA_ERR_UNSUPPORTED && o->compute.chosen != MLA_BACKEND_CPU) {
            /* A route without a kernel here leaves the others to judge. */
            fprintf(o->text, "skip %s: %s: %s\n", mla_route_name((mla_route)r), source,
                    mla_last_error());
            o->skipped++;
            skipped = true;
            status = MLA_OK;
        }
    }
    o->compute.forced = MLA_ROUTE_AUTO;
    /* Requests that share no route, such as decodes with and without complete lists. */
    if (!status && !skipped && o->ok + o->weak + o->mistrusted + o->failed == before)
        status = check_run(o, k, source);
    return status;
}

static mla_status check_source(struct check_command *o, const char *source, bool backend_given)
{
    struct mla_case k;
    mla_status status = mla_case_open(source, &k, mla_warning, NULL);
    if (status)
        return status;
    mla_warnings_show(o->command);
    const char *shown = k.text && *k.text ? k.text : source;
    if (o->against)
        status = check_against(o, &k, shown, backend_given);
    else if (o->each)
        status = check_each(o, &k, shown);
    else
        status = check_run(o, &k, shown);
    mla_case_free(&k);
    return status;
}

/* A case that can't run here is counted and told, the others go on; anything else ends the command.
 * `many`: are there others? */
static int settle(struct check_command *o, mla_status status, const char *source, bool many)
{
    if (!status)
        return EXIT_DONE;
    if (mla_exit_status(status) != EXIT_NOT_HERE || !many)
        return mla_report(o->command, status);
    fprintf(o->text, "skip %s: %s\n", source, mla_last_error());
    o->skipped++;
    return EXIT_DONE;
}

/* ------------------------------------------------------------- shapes files */

/* A line "#! route=ROUTE rows=N" says how the lines behind it are checked, up to the next one;
 * without words, as the command line says. The command line wins. */
static int read_directive(struct check_command *o, const struct check_command *given, char *words,
                          const char *path, int number)
{
    char *save = NULL;
    o->each = given->each;
    o->compute.forced = given->compute.forced;
    o->rows = given->rows;
    for (char *word = strtok_r(words, " \t", &save); word; word = strtok_r(NULL, " \t", &save)) {
        long long rows = 0;
        int used = 0;
        mla_route route = MLA_ROUTE_AUTO;
        bool each = strcmp(word, "route=each") == 0;
        if (strncmp(word, "route=", 6) == 0 &&
            (each || mla_route_parse(word + 6, &route) == MLA_OK)) {
            if (!given->compute.route && !given->each) {
                o->each = each;
                o->compute.forced = route;
            }
        } else if (sscanf(word, "rows=%9lld%n", &rows, &used) == 1 && !word[used] && rows >= 0) {
            o->rows = given->rows ? given->rows : rows;
        } else {
            return mla_usage(o->command,
                             "%s line %d: got '%.40s', want route=ROUTE, route=each or rows=N",
                             path, number, word);
        }
    }
    return EXIT_DONE;
}

/* Problem strings from a stream whose name is for sentences. */
static int check_lines(struct check_command *o, FILE *file, const char *path)
{
    char line[4096];
    int exit_status = EXIT_DONE;
    const struct check_command given = *o;
    for (int number = 1; !exit_status && fgets(line, sizeof line, file); number++) {
        if (strlen(line) == sizeof line - 1) {
            exit_status = mla_usage(o->command, "%s line %d: got over %zu characters, want fewer",
                                    path, number, sizeof line - 2);
            break;
        }
        line[strcspn(line, "\r\n")] = '\0';
        if (strncmp(line, "#!", 2) == 0) {
            exit_status = read_directive(o, &given, line + 2, path, number);
            continue;
        }
        line[strcspn(line, "#")] = '\0';
        char *start = line + strspn(line, " \t");
        if (!*start)
            continue;
        if (strncmp(start, "attend", 6) == 0)
            exit_status = settle(o, check_source(o, start, false), start, true);
        else
            exit_status = mla_usage(o->command,
                                    "%s line %d: got '%.60s', want a problem string that begins "
                                    "with attend",
                                    path, number, start);
    }
    o->each = given.each;
    o->compute.forced = given.compute.forced;
    o->rows = given.rows;
    if (!exit_status && ferror(file)) {
        mla_usage(o->command, "--shapes: got '%.300s' (%s), want a file of problem strings", path,
                  strerror(errno));
        exit_status = EXIT_DEVICE;
    }
    return exit_status;
}

static int check_shapes(struct check_command *o, const char *path)
{
    FILE *file = fopen(path, "r");
    if (!file) {
        bool absent = errno == ENOENT || errno == ENOTDIR;
        mla_usage(o->command, "--shapes: got '%.300s' (%s), want a file of problem strings", path,
                  strerror(errno));
        return absent ? EXIT_INPUT : EXIT_DEVICE;
    }
    int exit_status = check_lines(o, file, path);
    fclose(file);
    return exit_status;
}

int mla_check_stream(const struct command *command, const struct compute *compute, FILE *shapes,
                     const char *name, FILE *text, struct check_counts *counts)
{
    struct check_command o = {.command = command, .compute = *compute, .text = text, .each = true};
    int exit_status = check_lines(&o, shapes, name);
    *counts = (struct check_counts){o.ok + o.weak + o.mistrusted, o.failed, o.skipped};
    return exit_status;
}

/* ---------------------------------------------------------------- command */

static int finish(struct check_command *o, bool many)
{
    if (many) {
        fprintf(o->text, "%lld ok, %lld weak, %lld failed", (long long)o->ok, (long long)o->weak,
                (long long)o->failed);
        if (o->mistrusted)
            fprintf(o->text, ", %lld mistrusted", (long long)o->mistrusted);
        if (o->skipped)
            fprintf(o->text, ", %lld skipped (not runnable here)", (long long)o->skipped);
        fputc('\n', o->text);
    }
    int exit_status = o->failed ? EXIT_OUTSIDE : o->skipped ? EXIT_NOT_HERE : EXIT_DONE;
    if (o->json) {
        json_t *root =
            json_pack("{s:I, s:I, s:I, s:I, s:I, s:O}", "ok", (json_int_t)o->ok, "weak",
                      (json_int_t)o->weak, "mistrusted", (json_int_t)o->mistrusted, "failed",
                      (json_int_t)o->failed, "skipped", (json_int_t)o->skipped, "cases", o->cases);
        int written = mla_json_write(o->command, root, o->json);
        exit_status = written ? written : exit_status;
    }
    return exit_status;
}

static int check_all(struct check_command *o, const struct text_list *files, bool backend_given)
{
    bool many = files->count + o->shapes.count > 1 || o->shapes.count || o->each;
    o->text = mla_text_open(o->json);
    o->cases = o->json ? json_array() : NULL;
    int exit_status = o->text && (!o->json || o->cases) ? EXIT_DONE : EXIT_DEVICE;
    if (exit_status)
        mla_usage(o->command, "--json: no memory");
    for (int i = 0; i < files->count && !exit_status; i++)
        exit_status = settle(o, check_source(o, files->items[i], backend_given), files->items[i],
                             files->count + o->shapes.count > 1);
    for (int i = 0; i < o->shapes.count && !exit_status; i++)
        exit_status = check_shapes(o, o->shapes.items[i]);
    if (!exit_status)
        exit_status = finish(o, many);
    json_decref(o->cases);
    mla_text_close(o->text);
    return exit_status;
}

static int run_check(const struct command *command, int argc, char **argv)
{
    struct check_command o = {.command = command};
    struct text_list files = {0};
    const struct option options[] = {
        COMPUTE_OPTIONS(o.compute),
        {"rows", 0, OPTION_COUNT, &o.rows, "N", "judge a seeded sample of N query rows (0 = all)"},
        {"sample-seed", 0, OPTION_COUNT, &o.sample_seed, "N", "of that sample (default 0)"},
        {"strict", 0, OPTION_FLAG, &o.strict, NULL, "T and z always count"},
        {"hard", 0, OPTION_FLAG, &o.hard, NULL, "the hard bound H alone counts"},
        {"against", 0, OPTION_TEXT, &o.against, "OUT", "judge this result file, run nothing"},
        {"shapes", 0, OPTION_LIST, &o.shapes, "FILE", "problem strings, one a line, # comments"},
        {"json", 0, OPTION_TEXT, &o.json, "FILE", "the report as JSON; - = stdout"},
        {0},
    };
    int exit_status;
    if (!mla_options_read(command, options, argc, argv, &files, &exit_status))
        return exit_status;
    bool backend_given = o.compute.backend;
    if (o.compute.route && strcmp(o.compute.route, "each") == 0) {
        o.each = true;
        o.compute.route = NULL;
    }
    if (files.count + o.shapes.count == 0)
        exit_status = mla_usage(command, "FILE: got none, want a problem file or problem string");
    else if (o.strict && o.hard)
        exit_status = mla_usage(command, "--hard: got it beside --strict, want one of the two");
    else if (o.against && (files.count != 1 || o.shapes.count))
        exit_status = mla_usage(command, "--against: got it with %d problems, want one FILE",
                                files.count + o.shapes.count);
    else if (o.against && o.each)
        exit_status = mla_usage(command, "--route: got each beside --against, want one route");
    else
        exit_status = mla_compute_words(command, &o.compute);
    if (!exit_status && o.against) {
        /* Nothing runs but the reference, so the backend only names roundings. */
        struct compute reference = {.backend = "cpu", .threads = o.compute.threads};
        exit_status = mla_compute_open(command, &reference);
        o.compute.context = reference.context;
        o.compute.host = reference.host;
    } else if (!exit_status) {
        exit_status = mla_compute_open(command, &o.compute);
    }
    if (!exit_status)
        exit_status = check_all(&o, &files, backend_given);
    mla_compute_close(&o.compute);
    mla_options_free(options, &files);
    return exit_status;
}

const struct command mla_command_check = {
    "check",
    "FILE... [options]\n   or: mla check FILE --against OUT [options]",
    "judges a result element by element against the fp64 reference",
    "FILE is a problem file or a problem string in quotes. --route each runs every route that the\n"
    "problem admits. --against judges out (and lse, max_logits where present) that any program\n"
    "wrote; --backend then says whose roundings to allow: those of cuda, unless the file says "
    "cpu.\n"
    "A line '#! route=ROUTE rows=N' of a shapes file (ROUTE may be each) holds for the lines "
    "behind\n"
    "it. Exit status 1: something is outside its bound.",
    run_check,
};
