/* SPDX-License-Identifier: Apache-2.0 */
/* Timing of plans on the CPU and on CUDA devices. */
#include "timer.h"

#include "command.h"
#include "try.h"

#include "common/kernel.h"
#include "common/trace.h"

#include <stdlib.h>
#include <string.h>

enum { FLUSH_BYTES = 256 << 20, MOST_MARKS = 512 };

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

struct mla_times mla_times_of(double *seconds, int n)
{
    qsort(seconds, (size_t)n, sizeof *seconds, by_value);
    return (struct mla_times){(seconds[n / 2] + seconds[(n - 1) / 2]) / 2, seconds[0],
                              seconds[n - 1]};
}

static bool on_device(const mla_context *context)
{
    return context->backend == MLA_BACKEND_CUDA;
}

/* ------------------------------------------------------------ backend memory */

#ifdef MLA_WITH_CUDA
static mla_status device_new(const mla_context *context, size_t bytes, void **out)
{
    TRY_CUDA(cudaSetDevice(context->device));
    TRY_CUDA(cudaMalloc(out, bytes ? bytes : 1));
    return MLA_OK;
}

static mla_status device_copy(const mla_context *context, void *to, const void *from, size_t bytes)
{
    TRY_CUDA(cudaSetDevice(context->device));
    TRY_CUDA(cudaMemcpy(to, from, bytes, cudaMemcpyDefault));
    TRY_CUDA(
        cudaStreamSynchronize(cudaStreamLegacy)); /* the runs' stream does not wait for that one */
    return MLA_OK;
}
#else
static mla_status device_new(const mla_context *context, size_t bytes, void **out)
{
    (void)context, (void)bytes, (void)out;
    return mla_fail(MLA_ERR_NO_DEVICE, "this build has no CUDA backend");
}

static mla_status device_copy(const mla_context *context, void *to, const void *from, size_t bytes)
{
    (void)from;
    return device_new(context, bytes, &to);
}
#endif

mla_status mla_memory_new(const mla_context *context, size_t bytes, void **out)
{
    *out = NULL;
    if (on_device(context))
        return device_new(context, bytes, out);
    char *memory = mla_alloc(bytes + 256 + sizeof(void *), 1);
    if (!memory)
        return mla_fail(MLA_ERR_MEMORY, "timer: no memory for %zu bytes", bytes);
    /* Aligned as a workspace must be; what to free lies before it. */
    uintptr_t at = ((uintptr_t)memory + sizeof(void *) + 255) / 256 * 256;
    void *aligned = memory + (at - (uintptr_t)memory);
    ((void **)aligned)[-1] = memory;
    *out = aligned;
    return MLA_OK;
}

void mla_memory_free(const mla_context *context, void *memory)
{
    if (!memory)
        return;
#ifdef MLA_WITH_CUDA
    if (on_device(context)) {
        cudaFree(memory);
        return;
    }
#endif
    (void)context;
    mla_free(((void **)memory)[-1]);
}

mla_status mla_memory_copy(const mla_context *context, void *to, const void *from, size_t bytes)
{
    if (on_device(context))
        return device_copy(context, to, from, bytes);
    memcpy(to, from, bytes);
    return MLA_OK;
}

mla_status mla_memory_write(const mla_context *context, void *to, const void *host, size_t bytes)
{
    return mla_memory_copy(context, to, host, bytes);
}

/* ------------------------------------------------------------------- timer */

enum room { ROOM_OUT, ROOM_LSE, ROOM_MAX, ROOM_WORK, ROOM_LENS, ROOMS };

struct mla_timer {
    const mla_context *context;
    const mla_plan *plan; /* NULL: an indexer call is timed */
    mla_index_args index;
    mla_tensors tensors;
    void *room[ROOMS];
    size_t bytes[ROOMS], workspace_bytes;
#ifdef MLA_WITH_CUDA
    cudaStream_t stream;
    cudaEvent_t event[2 * MLA_TIMER_RUNS];
    void *flush;
#endif
};

static mla_status want_room(struct mla_timer *t, enum room which, size_t bytes)
{
    if (bytes <= t->bytes[which])
        return MLA_OK;
    mla_memory_free(t->context, t->room[which]);
    t->bytes[which] = 0;
    mla_status status = mla_memory_new(t->context, bytes, &t->room[which]);
    if (status == MLA_OK)
        t->bytes[which] = bytes;
    return status;
}

static mla_status run_once(const struct mla_timer *t)
{
    void *stream = NULL;
#ifdef MLA_WITH_CUDA
    if (on_device(t->context))
        stream = t->stream;
#endif
    if (t->plan)
        return mla_run(t->plan, &t->tensors, t->room[ROOM_WORK], t->workspace_bytes, stream);
    return mla_index_run(t->context, &t->index, t->room[ROOM_WORK], t->workspace_bytes, stream);
}

#ifdef MLA_WITH_CUDA

static mla_status device_open(struct mla_timer *t)
{
    TRY_CUDA(cudaSetDevice(t->context->device));
    TRY_CUDA(cudaStreamCreateWithFlags(&t->stream, cudaStreamNonBlocking));
    for (int i = 0; i < 2 * MLA_TIMER_RUNS; i++)
        TRY_CUDA(cudaEventCreate(&t->event[i]));
    TRY_CUDA(cudaMalloc(&t->flush, FLUSH_BYTES));
    return MLA_OK;
}

static void device_close(struct mla_timer *t)
{
    for (int i = 0; i < 2 * MLA_TIMER_RUNS; i++)
        if (t->event[i])
            cudaEventDestroy(t->event[i]);
    if (t->stream)
        cudaStreamDestroy(t->stream);
    cudaFree(t->flush);
}

static mla_status device_wait(struct mla_timer *t)
{
    TRY_CUDA(cudaStreamSynchronize(t->stream));
    return MLA_OK;
}

/* The flush, written twice, keeps the device busy while the host enqueues the run behind it, also
 * where the host is slow. */
static mla_status device_runs(struct mla_timer *t, int n, bool cold, double *seconds)
{
    TRY_CUDA(cudaSetDevice(t->context->device));
    for (int i = 0; i < n; i++) {
        for (int twice = 0; twice < 2 && (cold || i == 0); twice++)
            TRY_CUDA(cudaMemsetAsync(t->flush, i, FLUSH_BYTES, t->stream));
        if (cold || i == 0)
            TRY_CUDA(cudaEventRecord(t->event[2 * i], t->stream));
        mla_status status = run_once(t);
        if (status != MLA_OK)
            return status;
        TRY_CUDA(cudaEventRecord(t->event[2 * i + 1], t->stream));
    }
    TRY_CUDA(cudaStreamSynchronize(t->stream));
    for (int i = 0; i < n; i++) {
        float ms;
        TRY_CUDA(cudaEventElapsedTime(&ms, t->event[cold || i == 0 ? 2 * i : 2 * i - 1],
                                      t->event[2 * i + 1]));
        seconds[i] = ms * 1e-3;
    }
    return MLA_OK;
}

struct marks {
    cudaEvent_t event[MOST_MARKS];
    const char *name[MOST_MARKS];
    int count;
    cudaError_t error;
};

static void mark(void *user, const char *name, void *stream)
{
    struct marks *m = user;
    if (m->count == MOST_MARKS || m->error != cudaSuccess)
        return;
    m->error = cudaEventCreate(&m->event[m->count]);
    if (m->error == cudaSuccess)
        m->error = cudaEventRecord(m->event[m->count], stream);
    m->name[m->count++] = name;
}

static mla_status add_part(struct marks *m, int i, cudaEvent_t stop, struct mla_timer_part *parts,
                           int *count)
{
    float ms;
    int at = 0;
    TRY_CUDA(cudaEventElapsedTime(&ms, m->event[i], i + 1 < m->count ? m->event[i + 1] : stop));
    while (at < *count && strcmp(parts[at].name, m->name[i]) != 0)
        at++;
    if (at == MLA_TIMER_PARTS)
        return mla_fail(MLA_ERR_DEVICE, "parts: got more than %d names", MLA_TIMER_PARTS);
    if (at == *count)
        parts[(*count)++] = (struct mla_timer_part){m->name[i], 0};
    parts[at].seconds += ms * 1e-3;
    return MLA_OK;
}

static mla_status device_parts(struct mla_timer *t, struct mla_timer_part *parts, int *count)
{
    struct marks *m = mla_alloc(1, sizeof *m);
    const struct mla_trace trace = {mark, m};
    double seconds;
    if (!m)
        return mla_fail(MLA_ERR_MEMORY, "parts: no memory for %d events", MOST_MARKS);
    mla_trace = &trace;
    mla_status status = device_runs(t, 1, true, &seconds);
    mla_trace = NULL;
    if (status == MLA_OK && m->error != cudaSuccess)
        status = mla_try_failed("cudaEventRecord", m->error);
    for (int i = 0; status == MLA_OK && i < m->count; i++)
        status = add_part(m, i, t->event[1], parts, count);
    for (int i = 0; i < m->count; i++)
        if (m->event[i])
            cudaEventDestroy(m->event[i]);
    mla_free(m);
    return status;
}
#endif

mla_status mla_timer_new(const mla_context *context, struct mla_timer **out)
{
    struct mla_timer *t = mla_alloc(1, sizeof *t);
    mla_status status = MLA_OK;
    *out = NULL;
    if (!t)
        return mla_fail(MLA_ERR_MEMORY, "timer: no memory");
    t->context = context;
#ifdef MLA_WITH_CUDA
    if (on_device(context))
        status = device_open(t);
#endif
    if (status != MLA_OK) {
        mla_timer_free(t);
        return status;
    }
    *out = t;
    return MLA_OK;
}

void mla_timer_free(struct mla_timer *t)
{
    if (!t)
        return;
    for (int i = 0; i < ROOMS; i++)
        mla_memory_free(t->context, t->room[i]);
#ifdef MLA_WITH_CUDA
    if (on_device(t->context))
        device_close(t);
#endif
    mla_free(t);
}

/* One run, waited for: what is only done once is done, and a failure shows here. */
static mla_status warm_up(struct mla_timer *t)
{
    mla_status status = run_once(t);
#ifdef MLA_WITH_CUDA
    if (status == MLA_OK && on_device(t->context))
        status = device_wait(t);
#endif
    return status;
}

mla_status mla_timer_take(struct mla_timer *t, const mla_plan *plan, const mla_problem *p,
                          const mla_tensors *tensors)
{
    size_t rows = (size_t)(mla_total_q(p) * p->heads_q);
    size_t lse = rows * (p->out_dtype == MLA_F64 ? sizeof(double) : sizeof(float));
    t->plan = plan;
    t->tensors = *tensors;
    t->tensors.same_lists = false;
    t->workspace_bytes = mla_plan_workspace_bytes(plan);
    mla_status status =
        want_room(t, ROOM_OUT, rows * (size_t)mla_d_v(p) * mla_dtype_bytes(p->out_dtype) + 1);
    if (status == MLA_OK)
        status = want_room(t, ROOM_LSE, lse + 1);
    if (status == MLA_OK && p->wants_max_logits)
        status = want_room(t, ROOM_MAX, lse + 1);
    if (status == MLA_OK)
        status = want_room(t, ROOM_WORK, t->workspace_bytes + 1);
    t->tensors.out = (mla_tensor){t->room[ROOM_OUT], {0, 0}};
    t->tensors.lse = (mla_tensor){p->wants_lse ? t->room[ROOM_LSE] : NULL, {0, 0}};
    t->tensors.max_logits = (mla_tensor){p->wants_max_logits ? t->room[ROOM_MAX] : NULL, {0, 0}};
    return status == MLA_OK ? warm_up(t) : status;
}

mla_status mla_timer_take_index(struct mla_timer *t, const mla_index_args *args)
{
    size_t entries = (size_t)(args->num_queries * args->topk);
    t->plan = NULL;
    t->index = *args;
    mla_status status = mla_index_workspace_bytes(t->context, args, &t->workspace_bytes);
    if (status == MLA_OK)
        status = want_room(t, ROOM_OUT, entries * sizeof(int32_t) + 1);
    if (status == MLA_OK)
        status = want_room(t, ROOM_LENS, (size_t)args->num_queries * sizeof(int32_t) + 1);
    if (status == MLA_OK)
        status = want_room(t, ROOM_WORK, t->workspace_bytes + 1);
    t->index.indices = (mla_tensor){t->room[ROOM_OUT], {0, 0}};
    t->index.topk_lens = t->room[ROOM_LENS];
    return status == MLA_OK ? warm_up(t) : status;
}

void mla_timer_same_lists(struct mla_timer *t, bool same)
{
    t->tensors.same_lists = same;
}

static mla_status runs(struct mla_timer *t, int n, bool cold, double *seconds)
{
#ifdef MLA_WITH_CUDA
    if (on_device(t->context))
        return device_runs(t, n, cold, seconds);
#endif
    (void)cold;
    for (int i = 0; i < n; i++) {
        double start = mla_seconds();
        mla_status status = run_once(t);
        if (status != MLA_OK)
            return status;
        seconds[i] = mla_seconds() - start;
    }
    return MLA_OK;
}

mla_status mla_timer_cold(struct mla_timer *t, int n, double *seconds)
{
    return runs(t, n, true, seconds);
}

mla_status mla_timer_warm(struct mla_timer *t, int n, double *seconds)
{
    return runs(t, n, false, seconds);
}

mla_status mla_timer_parts(struct mla_timer *t, struct mla_timer_part *parts, int *count)
{
    *count = 0;
#ifdef MLA_WITH_CUDA
    if (on_device(t->context))
        return device_parts(t, parts, count);
#endif
    (void)t, (void)parts;
    return MLA_OK;
}
