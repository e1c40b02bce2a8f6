/* SPDX-License-Identifier: Apache-2.0 */
/* mla info: version, build, devices, kernels. */
#include "command.h"

#include "common/kernel.h"
#include "common/route.h"
#include "common/qualify.h"
#include "common/text.h"
#include "reference/reference.h"

#include <omp.h>
#include <string.h>

static void build_options(char *text, size_t bytes)
{
    snprintf(text, bytes, "%s %s, %s, OpenMP %d, CUDA %s",
#ifdef __clang__
             "clang",
#else
             "gcc",
#endif
             __VERSION__,
#ifdef NDEBUG
             "release",
#else
             "with assertions",
#endif
             _OPENMP,
#ifdef MLA_WITH_CUDA
             "yes"
#else
             "no"
#endif
    );
}

/* Which rows that never ran on silicon may serve here, and why the others do not. */
static void describe_trust(const mla_context *context, struct mla_text *t)
{
    char path[4096];
    int waiting = 0;
    if (context->backend != MLA_BACKEND_CUDA)
        return;
    for (int i = 0; i < mla_kernel_count(); i++) {
        mla_kernel_info k;
        waiting += mla_kernel_get(i, &k) == MLA_OK && k.backend == MLA_BACKEND_CUDA &&
                   (k.proof == MLA_PROOF_MODEL || k.proof == MLA_PROOF_COMPILED);
    }
    if (!waiting)
        return;
    if (context->qualified && mla_qualified_path(path, sizeof path))
        mla_text_add(t, "; qualified by %s:%.*s", path, (int)sizeof path, context->qualified);
    else
        mla_text_add(t,
                     "; rows of status silicon serve: no record qualifies the %d others on this "
                     "device (mla qualify)",
                     waiting);
    for (size_t i = 0; i < t->bytes && t->at[i]; i++)
        if (t->at[i] == '\n')
            t->at[i] = ' ';
}

/* A backend's one line: what it runs on, or why it can't. Returns whether it opens. */
static bool describe_backend(mla_backend backend, char *text, size_t bytes)
{
    struct mla_text t = {.at = text, .bytes = bytes};
    mla_context_options options = {backend, 0, 0};
    mla_context *context;
    if (mla_context_create(&options, &context) != MLA_OK) {
        snprintf(text, bytes, "not here: %s", mla_last_error());
        return false;
    }
    t.used = mla_context_describe(context, text, bytes);
    describe_trust(context, &t);
    if (context->crossovers)
        mla_text_add(&t, "; route times %s, %lld curves", context->crossovers->name,
                     (long long)context->crossovers->num_curves);
    mla_context_destroy(context);
    return true;
}

/* What the status of a row means on each architecture that its code is for, or NULL: nothing else
 * than the row says. */
static const char *where_proved(const mla_kernel_info *k)
{
    if (k->backend != MLA_BACKEND_CUDA || k->proof != MLA_PROOF_SILICON ||
        strcmp(k->architecture, "sm_80+") != 0)
        return NULL;
    return "sm_90: silicon (H100); sm_80, sm_100, sm_120f: compiled (same instructions on silicon: "
           "sm_90)";
}

static json_t *kernel_json(const mla_kernel_info *k)
{
    return json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:s*, s:b}", "name", k->name, "backend",
                     mla_backend_name(k->backend), "architecture", k->architecture, "routes",
                     k->routes, "forms", k->forms, "formats", k->formats, "status",
                     mla_proof_name(k->proof), "proved", where_proved(k), "runnable",
                     (int)k->runnable);
}

static int run_info(const struct command *command, int argc, char **argv)
{
    const char *json = NULL;
    const struct option options[] = {
        {"json", 0, OPTION_TEXT, &json, "FILE", "the same as JSON; - = stdout"},
        {0},
    };
    const char *proved = NULL;
    int exit_status;
    if (!mla_options_read(command, options, argc, argv, NULL, &exit_status))
        return exit_status;
    char build[256], line[1024];
    build_options(build, sizeof build);
    json_t *devices = json_array(), *kernels = json_array();
    FILE *text = mla_text_open(json);
    if (!text) {
        json_decref(devices);
        json_decref(kernels);
        mla_usage(command, "--json: cannot open /dev/null");
        return EXIT_DEVICE;
    }
    fprintf(text, "version   %s\nbuild     %s\ncpu       %s, %d threads\nblas      %s\n",
            mla_version(), build, mla_cpu_name(), omp_get_max_threads(), mla_blas_describe());
    for (int b = MLA_BACKEND_CPU; b <= MLA_BACKEND_MODEL; b++) {
        bool here = describe_backend((mla_backend)b, line, sizeof line);
        const char *name = mla_backend_name((mla_backend)b);
        fprintf(text, "%-9s %s\n", name, line);
        json_array_append_new(devices, json_pack("{s:s, s:b, s:s}", "backend", name, "here",
                                                 (int)here, "about", line));
    }
    fprintf(text, "\n%-24s %-7s %-12s %-9s %-8s  %s\n", "kernel", "backend", "architecture",
            "status", "runnable", "routes / forms / formats");
    for (int i = 0; i < mla_kernel_count(); i++) {
        mla_kernel_info k;
        if (mla_kernel_get(i, &k) != MLA_OK)
            continue;
        fprintf(text, "%-24s %-7s %-12s %-9s %-8s  %s / %s / %s\n", k.name,
                mla_backend_name(k.backend), k.architecture, mla_proof_name(k.proof),
                k.runnable ? "yes" : "no", k.routes, k.forms, k.formats);
        json_array_append_new(kernels, kernel_json(&k));
        if (where_proved(&k))
            proved = where_proved(&k);
    }
    if (proved)
        fprintf(text, "\nrows of sm_80+ by architecture: %s\n", proved);
    mla_text_close(text);
    exit_status = EXIT_DONE;
    json_t *root =
        json_pack("{s:s, s:s, s:s, s:i, s:s, s:o, s:o}", "version", mla_version(), "build", build,
                  "cpu", mla_cpu_name(), "threads", omp_get_max_threads(), "blas",
                  mla_blas_describe(), "backends", devices, "kernels", kernels);
    if (json)
        exit_status = mla_json_write(command, root, json);
    else
        json_decref(root);
    return exit_status;
}

const struct command mla_command_info = {
    "info",
    "[--json FILE]",
    "shows version, build, CPU, BLAS, devices and every kernel",
    "status: cpu = runs on any host, checked in CI; silicon = ran on that architecture; model = "
    "ran\n"
    "in the functional model; compiled = compiled only.",
    run_info,
};
