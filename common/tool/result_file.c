/* SPDX-License-Identifier: Apache-2.0 */
/* Writer and reader of result files. */
#include "result_file.h"
#include "case_file.h"
#include "format.h"
#include "kernel.h"
#include "status.h"

#include <string.h>

/* The buffers and the mapped file of a loaded result hang on an otherwise empty case. */
struct owner {
    struct mla_case buffers;
};

enum id { OUT, LSE, MAX_LOGITS, BOUND, NUM_IDS };
static const char *const names[NUM_IDS] = {"out", "lse", "max_logits", "bound"};

static void shape_of(const mla_problem *p, enum id id, struct mla_st_tensor *t)
{
    t->rank = id == OUT || id == BOUND ? 3 : 2;
    t->shape[0] = mla_total_q(p);
    t->shape[1] = p->heads_q;
    t->shape[2] = t->rank == 3 ? mla_d_v(p) : 0;
}

/* ------------------------------------------------------------------- saving */

/* "dense-mha,sparse-mqa": one name per request. */
static char *join(const mla_request_info *requests, int64_t n, bool kernels)
{
    size_t bytes = 1;
    for (int64_t i = 0; i < n; i++)
        bytes += 1 + strlen(kernels ? requests[i].kernel : mla_route_name(requests[i].route));
    char *text = mla_alloc(bytes, 1), *at = text;
    for (int64_t i = 0; text && i < n; i++) {
        const char *name = kernels ? requests[i].kernel : mla_route_name(requests[i].route);
        size_t length = strlen(name);
        if (i > 0)
            *at++ = ',';
        memcpy(at, name, length);
        at += length;
    }
    return text;
}

mla_status mla_result_save(const char *path, const mla_problem *problem,
                           const struct mla_result_file *result, mla_backend backend,
                           const mla_request_info *requests)
{
    mla_status status = mla_problem_check(problem);
    if (status != MLA_OK)
        return status;
    const void *data[NUM_IDS] = {result->out, result->lse, result->max_logits, result->bound};
    const mla_dtype dtypes[NUM_IDS] = {result->out_dtype, result->lse_dtype, result->lse_dtype,
                                       MLA_F64};
    struct mla_st_tensor tensors[NUM_IDS];
    int64_t n = 0;
    for (int id = 0; id < NUM_IDS; id++) {
        if (!data[id] && id != OUT)
            continue;
        struct mla_st_tensor *t = &tensors[n++];
        *t = (struct mla_st_tensor){.name = names[id], .data = data[id]};
        t->dtype = mla_case_dtype_to_st(dtypes[id]);
        shape_of(problem, (enum id)id, t);
        t->bytes = mla_st_dtype_bytes(t->dtype);
        for (int i = 0; i < t->rank; i++)
            t->bytes *= (size_t)t->shape[i];
    }
    char *routes = join(requests, problem->batch, false);
    char *kernels = join(requests, problem->batch, true);
    if (routes && kernels) {
        const char *const keys[] = {"version", "backend", "route", "kernel"};
        const char *const values[] = {mla_version(), mla_backend_name(backend), routes, kernels};
        status = mla_st_write(path, tensors, n, keys, values, 4);
    } else {
        status = mla_fail(MLA_ERR_MEMORY, "mla_result_save: %.300s: no memory for metadata", path);
    }
    mla_free(routes);
    mla_free(kernels);
    return status;
}

/* ------------------------------------------------------------------ loading */

struct loader {
    const char *label;
    const mla_problem *problem;
    struct mla_case *buffers;
    bool copy;
    const struct mla_st_tensor *t[NUM_IDS];
    struct mla_case_warnings warnings;
};

static mla_status no_memory(const struct loader *l)
{
    return mla_fail(MLA_ERR_MEMORY, "mla_result_load: %.300s: no memory", l->label);
}

static mla_status check_tensor(const struct loader *l, enum id id)
{
    const struct mla_st_tensor *t = l->t[id];
    struct mla_st_tensor want = {0};
    mla_dtype dtype;
    bool known = mla_case_dtype_from_st(t->dtype, &dtype);
    if (!known || (id == BOUND && dtype != MLA_F64))
        return mla_fail(MLA_ERR_ARGUMENT, "mla_result_load: %.300s: %s: got dtype %s, want %s",
                        l->label, t->name, mla_st_dtype_name(t->dtype),
                        id == BOUND ? "F64" : "BF16, F16, F32 or F64");
    shape_of(l->problem, id, &want);
    bool same = t->rank == want.rank;
    for (int i = 0; same && i < want.rank; i++)
        same = t->shape[i] == want.shape[i];
    if (!same) {
        char got[200], wanted[100];
        return mla_fail(MLA_ERR_ARGUMENT,
                        "mla_result_load: %.300s: %s: got shape %s, want %s, as "
                        "the problem says",
                        l->label, t->name, mla_case_shape_text(got, sizeof got, t->rank, t->shape),
                        mla_case_shape_text(wanted, sizeof wanted, want.rank, want.shape));
    }
    return MLA_OK;
}

/* In the file where its address suits the dtype, else a copy; NULL without memory. */
static const void *place(const struct loader *l, const struct mla_st_tensor *t)
{
    if (!l->copy && (uintptr_t)t->data % mla_st_dtype_bytes(t->dtype) == 0)
        return t->data;
    void *copy = mla_case_buffer(l->buffers, t->bytes, 1);
    if (copy && t->bytes > 0)
        memcpy(copy, t->data, t->bytes);
    return copy;
}

static const void *widen(const struct loader *l, const struct mla_st_tensor *t, mla_dtype to)
{
    mla_dtype from;
    mla_case_dtype_from_st(t->dtype, &from);
    const void *data = place(l, t);
    if (!data || from == to)
        return data;
    int64_t n = t->shape[0] * t->shape[1];
    void *wide = mla_case_buffer(l->buffers, (size_t)n, mla_dtype_bytes(to));
    if (wide && to == MLA_F64)
        mla_load_f64(from, data, n, wide);
    else if (wide)
        mla_load_f32(from, data, n, wide);
    return wide;
}

static mla_status take_text(const struct loader *l, const char *text, const char **out)
{
    size_t bytes = strlen(text) + 1;
    char *copy = mla_case_buffer(l->buffers, bytes, 1);
    if (!copy)
        return no_memory(l);
    *out = memcpy(copy, text, bytes);
    return MLA_OK;
}

static mla_status load(struct loader *l, const struct mla_st_file *file,
                       struct mla_result_file *out)
{
    for (int64_t i = 0; i < file->num_tensors; i++) {
        int id = 0;
        while (id < NUM_IDS && strcmp(names[id], file->tensors[i].name) != 0)
            id++;
        if (id < NUM_IDS)
            l->t[id] = &file->tensors[i];
        else
            mla_case_warn(&l->warnings, "tensor", file->tensors[i].name, "is unknown and ignored");
    }
    const struct {
        const char *key;
        const char **text;
    } texts[] = {{"version", &out->version},
                 {"backend", &out->backend},
                 {"route", &out->route},
                 {"kernel", &out->kernel}};
    for (int64_t i = 0; i < file->num_metadata; i++) {
        int k = 0;
        while (k < 4 && strcmp(texts[k].key, file->keys[i]) != 0)
            k++;
        if (k == 4) {
            mla_case_warn(&l->warnings, "metadata key", file->keys[i], "is unknown and ignored");
            continue;
        }
        mla_status status = take_text(l, file->values[i], texts[k].text);
        if (status != MLA_OK)
            return status;
    }
    if (!l->t[OUT])
        return mla_fail(MLA_ERR_ARGUMENT,
                        "mla_result_load: %.300s: out: got no such tensor, want "
                        "one",
                        l->label);
    for (int id = 0; id < NUM_IDS; id++) {
        mla_status status = l->t[id] ? check_tensor(l, (enum id)id) : MLA_OK;
        if (status != MLA_OK)
            return status;
    }
    bool wide = (l->t[LSE] && l->t[LSE]->dtype == MLA_ST_F64) ||
                (l->t[MAX_LOGITS] && l->t[MAX_LOGITS]->dtype == MLA_ST_F64);
    mla_case_dtype_from_st(l->t[OUT]->dtype, &out->out_dtype);
    out->lse_dtype = wide ? MLA_F64 : MLA_F32;
    out->out = place(l, l->t[OUT]);
    if (l->t[LSE])
        out->lse = widen(l, l->t[LSE], out->lse_dtype);
    if (l->t[MAX_LOGITS])
        out->max_logits = widen(l, l->t[MAX_LOGITS], out->lse_dtype);
    if (l->t[BOUND])
        out->bound = place(l, l->t[BOUND]);
    if (!out->out || (l->t[LSE] && !out->lse) || (l->t[MAX_LOGITS] && !out->max_logits) ||
        (l->t[BOUND] && !out->bound))
        return no_memory(l);
    mla_case_warn_end(&l->warnings);
    return MLA_OK;
}

/* Takes over file, whatever happens. */
static mla_status load_file(struct mla_st_file *file, const char *label, bool copy,
                            const mla_problem *problem, struct mla_result_file *out,
                            void (*warn)(const char *line, void *user), void *user)
{
    struct owner *owner = mla_alloc(1, sizeof *owner);
    struct loader l = {.label = label,
                       .problem = problem,
                       .buffers = owner ? &owner->buffers : NULL,
                       .copy = copy,
                       .warnings = {warn, user, label, 0}};
    out->owned = owner;
    mla_status status = owner ? mla_problem_check(problem) : no_memory(&l);
    if (status == MLA_OK)
        status = load(&l, file, out);
    if (status == MLA_OK && !copy)
        status = mla_case_keep_file(&owner->buffers, file);
    mla_st_close(file);
    if (status != MLA_OK)
        mla_result_free(out);
    return status;
}

mla_status mla_result_load(const char *path, const mla_problem *problem,
                           struct mla_result_file *out, void (*warn)(const char *line, void *user),
                           void *user)
{
    struct mla_st_file file;
    memset(out, 0, sizeof *out);
    mla_status status = mla_st_open(path, &file);
    return status == MLA_OK ? load_file(&file, path, false, problem, out, warn, user) : status;
}

mla_status mla_result_load_bytes(const void *bytes, size_t size, const char *label,
                                 const mla_problem *problem, struct mla_result_file *out,
                                 void (*warn)(const char *line, void *user), void *user)
{
    struct mla_st_file file;
    memset(out, 0, sizeof *out);
    mla_status status = mla_st_parse(bytes, size, label, &file);
    return status == MLA_OK ? load_file(&file, label, true, problem, out, warn, user) : status;
}

void mla_result_free(struct mla_result_file *result)
{
    if (!result)
        return;
    struct owner *owner = result->owned;
    if (owner) {
        mla_case_free(&owner->buffers);
        mla_free(owner);
    }
    memset(result, 0, sizeof *result);
}
