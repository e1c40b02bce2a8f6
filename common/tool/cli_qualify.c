/* SPDX-License-Identifier: Apache-2.0 */
/* mla qualify: runs every kernel row that fits this device over the shapes files, judges it
 * against the fp64 reference, and records the verdicts for this device and driver. */
#include "command.h"
#include "mla_shapes.h"

#include "common/kernel.h"
#include "common/qualify.h"
#include "common/status.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

struct qualify {
    const struct command *command;
    struct compute compute;
    const char *only, *shapes, *out;
    bool verbose;
    struct mla_qualified_row *rows;
    int count, failed;
};

/* The shapes that were built in, or the user's. */
static FILE *open_shapes(const struct qualify *q)
{
    FILE *file = q->shapes ? fopen(q->shapes, "r")
                           : fmemopen((void *)(uintptr_t)shapes, sizeof shapes - 1, "r");
    if (!file)
        mla_usage(q->command, "--shapes: got '%.300s' (%s), want a file of problem strings",
                  q->shapes ? q->shapes : "the built-in ones", strerror(errno));
    return file;
}

/* One row. A device that fails ends the command, but what was found is still recorded. */
static int qualify_row(struct qualify *q, const mla_kernel_info *k)
{
    struct compute c = q->compute;
    struct check_counts counts;
    FILE *list = open_shapes(q), *quiet = q->verbose ? NULL : fopen("/dev/null", "w");
    if (!list || (!q->verbose && !quiet)) {
        if (list)
            fclose(list);
        return EXIT_INPUT;
    }
    c.kernel = k->name;
    double start = mla_seconds();
    if (isatty(STDERR_FILENO))
        fprintf(stderr, "%s …\r", k->name);
    int status = mla_check_stream(q->command, &c, list, q->shapes ? q->shapes : "built-in shapes",
                                  q->verbose ? stdout : quiet, &counts);
    fclose(list);
    if (quiet)
        fclose(quiet);
    int64_t cases = counts.good + counts.failed;
    bool ok = status == EXIT_DONE && counts.failed == 0;
    if (status == EXIT_INPUT)
        return status;
    if (cases == 0 && ok) {
        printf("%-28s %-10s none of the shapes is for it here\n", k->name,
               mla_proof_name(k->proof));
        return EXIT_DONE;
    }
    printf("%-28s %-10s %-6s %5" PRId64 " of %" PRId64 " cases within their bounds, %.1f s\n",
           k->name, mla_proof_name(k->proof), ok ? "ok" : "FAILED", counts.good, cases,
           mla_seconds() - start);
    fflush(stdout);
    q->rows[q->count++] = (struct mla_qualified_row){k->name, ok, cases};
    q->failed += !ok;
    return status;
}

static int qualify_all(struct qualify *q)
{
    int exit_status = EXIT_DONE;
    bool known = !q->only;
    q->rows = mla_alloc((size_t)mla_kernel_count() + 1, sizeof *q->rows);
    if (!q->rows)
        return mla_report(q->command, mla_fail(MLA_ERR_MEMORY, "rows: no memory"));
    for (int i = 0; i < mla_kernel_count() && exit_status != EXIT_DEVICE; i++) {
        mla_kernel_info k;
        if (mla_kernel_get(i, &k) != MLA_OK || k.backend != q->compute.chosen ||
            (q->only && strcmp(q->only, k.name) != 0))
            continue;
        known = true;
        exit_status = qualify_row(q, &k);
        if (exit_status == EXIT_INPUT)
            return exit_status;
    }
    if (!known)
        return mla_usage(q->command, "--kernel: got '%.80s', want a %s row of mla info", q->only,
                         mla_backend_name(q->compute.chosen));
    if (q->count == 0 && exit_status == EXIT_DONE) {
        fprintf(stderr, "mla qualify: no kernel row of this build fits this device\n");
        return EXIT_NOT_HERE;
    }
    return exit_status;
}

static int record(struct qualify *q)
{
    char path[4096];
    if (q->out)
        snprintf(path, sizeof path, "%s", q->out);
    else if (!mla_qualified_path(path, sizeof path))
        return mla_usage(q->command,
                         "-o: got nothing, and neither MLA_QUALIFIED nor HOME names a place");
    mla_status status = mla_qualified_save(q->compute.context, path, q->rows, q->count);
    if (status)
        return mla_report(q->command, status);
    printf("recorded in %s for %s\n", path, q->compute.context->identity);
    return EXIT_DONE;
}

static int run_qualify(const struct command *command, int argc, char **argv)
{
    struct qualify q = {.command = command};
    const struct option options[] = {
        {"output", 'o', OPTION_TEXT, &q.out, "FILE",
         "the record (default: where it is looked for)"},
        {"backend", 0, OPTION_TEXT, &q.compute.backend, "NAME", "cuda (default) or model"},
        {"kernel", 0, OPTION_TEXT, &q.only, "NAME", "this row alone"},
        {"shapes", 0, OPTION_TEXT, &q.shapes, "FILE",
         "problem strings instead of the built-in ones"},
        {"schedule", 0, OPTION_TEXT, &q.compute.schedule, "S",
         "eager, late or random:SEED, of model"},
        {"verbose", 'v', OPTION_FLAG, &q.verbose, NULL, "a line for every case"},
        {0},
    };
    int exit_status;
    if (!mla_options_read(command, options, argc, argv, NULL, &exit_status))
        return exit_status;
    q.compute.backend = q.compute.backend ? q.compute.backend : "cuda";
    if (strcmp(q.compute.backend, "cuda") != 0 && strcmp(q.compute.backend, "model") != 0)
        return mla_usage(command, "--backend: got '%.80s', want cuda or model", q.compute.backend);
    exit_status = mla_compute_words(command, &q.compute);
    if (!exit_status)
        exit_status = mla_compute_open(command, &q.compute);
    if (!exit_status) {
        exit_status = qualify_all(&q);
        if (q.count) {
            int written = record(&q);
            exit_status = exit_status ? exit_status : written;
        }
        if (!exit_status && q.failed)
            exit_status = EXIT_OUTSIDE;
    }
    mla_free(q.rows);
    mla_compute_close(&q.compute);
    return exit_status;
}

const struct command mla_command_qualify = {
    "qualify",
    "[-o FILE] [options]",
    "runs every kernel row that fits this device against the reference and records the verdict",
    "Rows whose status is silicon need no record. A row that ran in the functional model only is\n"
    "chosen by itself once this command has passed it on this device with this driver and this\n"
    "version of the library; until then mla info says what serves instead. The record is read "
    "from\n"
    "MLA_QUALIFIED, else mla/qualified in XDG_CACHE_HOME or ~/.cache. Exit status 1: a row failed.",
    run_qualify,
};
