/* SPDX-License-Identifier: Apache-2.0 */
/* Contexts, the list of backends, and the dispatch table as tools see it. */
#include "backend.h"

#include "crossover.h"
#include "qualify.h"
#include "status.h"
#include "text.h"

#include <string.h>

static const struct mla_backend_ops *const backends[] = {
    &mla_cpu_backend,
#ifdef MLA_WITH_CUDA
    &mla_cuda_backend,
#endif
#ifdef MLA_WITH_MODEL
    &mla_model_backend,
#endif
};

enum { BACKENDS = sizeof backends / sizeof *backends };

const struct mla_backend_ops *mla_backend_ops_of(mla_backend backend)
{
    for (int i = 0; i < BACKENDS; i++)
        if (backends[i]->backend == backend)
            return backends[i];
    return NULL;
}

mla_status mla_context_create(const mla_context_options *options, mla_context **out)
{
    static const mla_context_options defaults = {MLA_BACKEND_CPU, 0, 0};
    if (!out)
        return mla_fail(MLA_ERR_ARGUMENT, "mla_context_create: out: got NULL, want a pointer");
    *out = NULL;
    options = options ? options : &defaults;
    if ((unsigned)options->backend > MLA_BACKEND_MODEL)
        return mla_fail(
            MLA_ERR_ARGUMENT,
            "mla_context_create: backend: got %d, want MLA_BACKEND_CPU, _CUDA or _MODEL",
            (int)options->backend);
    if (options->device < 0)
        return mla_fail(MLA_ERR_ARGUMENT, "mla_context_create: device: got %d, want at least 0",
                        options->device);
    if (options->threads < 0 || options->threads > 4096)
        return mla_fail(MLA_ERR_ARGUMENT, "mla_context_create: threads: got %d, want 0 to 4096",
                        options->threads);
    const struct mla_backend_ops *ops = mla_backend_ops_of(options->backend);
    if (!ops)
        return mla_fail(MLA_ERR_NO_DEVICE,
                        "mla_context_create: backend: got %s, which this build does not have",
                        mla_backend_name(options->backend));
    mla_context *context = mla_alloc(1, sizeof *context);
    if (!context)
        return mla_fail(MLA_ERR_MEMORY, "mla_context_create: cannot allocate %zu bytes",
                        sizeof *context);
    context->backend = options->backend;
    context->device = options->device;
    mla_status status = ops->open(options, context);
    if (status != MLA_OK) {
        mla_free(context);
        return status;
    }
    if (context->backend == MLA_BACKEND_CUDA)
        status = mla_qualified_find(context);
    if (status == MLA_OK)
        status = mla_crossovers_find(context);
    if (status != MLA_OK) {
        mla_context_destroy(context);
        return status;
    }
    *out = context;
    return MLA_OK;
}

void mla_context_destroy(mla_context *context)
{
    if (!context)
        return;
    const struct mla_backend_ops *ops = mla_backend_ops_of(context->backend);
    if (ops->close)
        ops->close(context);
    mla_free(context->qualified);
    mla_crossovers_free(context->crossovers);
    mla_free(context);
}

size_t mla_context_describe(const mla_context *context, char *text, size_t bytes)
{
    struct mla_text t = {.at = text, .bytes = bytes};
    if (bytes)
        text[0] = '\0';
    if (context)
        mla_text_add(&t, "%s", context->about);
    return t.used;
}

/* -------------------------------------------------------- the kernel table */

static const struct mla_kernel *kernel_at(int i, const struct mla_backend_ops **ops)
{
    for (int b = 0; i >= 0 && b < BACKENDS; b++)
        for (int k = 0; backends[b]->kernels[k]; k++)
            if (i-- == 0) {
                *ops = backends[b];
                return backends[b]->kernels[k];
            }
    return NULL;
}

int mla_kernel_count(void)
{
    const struct mla_backend_ops *ops;
    int count = 0;
    while (kernel_at(count, &ops))
        count++;
    return count;
}

/* "a b c" for the bits set. */
static void list_bits(char *text, size_t bytes, unsigned bits, int count,
                      const char *(*name)(int value))
{
    struct mla_text t = {.at = text, .bytes = bytes};
    text[0] = '\0';
    for (int i = 0; i < count; i++)
        if (bits & MLA_BIT(i))
            mla_text_add(&t, "%s%s", t.used ? " " : "", name(i));
}

static const char *route_text(int value)
{
    return mla_route_name((mla_route)value);
}
static const char *form_text(int value)
{
    return mla_form_name((mla_form)value);
}
static const char *format_text(int value)
{
    return mla_cache_format_name((mla_cache_format)value);
}

mla_status mla_kernel_get(int i, mla_kernel_info *out)
{
    static _Thread_local char routes[80], forms[40], formats[80];
    const struct mla_backend_ops *ops = NULL;
    const struct mla_kernel *kernel = kernel_at(i, &ops);
    if (!out || !kernel)
        return mla_fail(MLA_ERR_ARGUMENT, "mla_kernel_get: %s: got %s, want %s", out ? "i" : "out",
                        out ? "a number past the table" : "NULL",
                        out ? "0 to mla_kernel_count() - 1" : "a pointer");
    list_bits(routes, sizeof routes, kernel->routes, MLA_ROUTE_DENSE_MQA + 1, route_text);
    list_bits(forms, sizeof forms, kernel->forms, MLA_FORM_EXPANDED + 1, form_text);
    list_bits(formats, sizeof formats, kernel->formats, MLA_CACHE_NVFP4_DS_MLA + 1, format_text);
    *out = (mla_kernel_info){
        .name = kernel->name,
        .backend = kernel->backend,
        .architecture = kernel->architecture,
        .routes = routes,
        .forms = forms,
        .formats = formats,
        .proof = kernel->proof,
        .runnable = !ops->runnable || ops->runnable(kernel),
    };
    return MLA_OK;
}
