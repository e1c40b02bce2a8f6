/* SPDX-License-Identifier: Apache-2.0 */
/* Problems to time. */
#include "input.h"

#include "common/kernel.h"
#include "common/route.h"
#include "common/status.h"

#include <string.h>
#include <unistd.h>

static mla_status keep_text(struct mla_input *in, const char *text)
{
    in->text = mla_alloc(strlen(text) + 1, 1);
    if (!in->text)
        return mla_fail(MLA_ERR_MEMORY, "input: no memory for %zu characters", strlen(text));
    memcpy(in->text, text, strlen(text));
    return MLA_OK;
}

static mla_status open_own(const struct compute *compute, const char *source, struct mla_input *in)
{
    const struct mla_device_outputs none = {0};
    mla_status status = mla_case_open(source, &in->own, mla_warning, NULL);
    if (status != MLA_OK)
        return status;
    const struct mla_case *k = &in->own;
    in->problem = k->problem;
    in->tensors = k->tensors;
    in->complete = k->complete;
    memcpy(in->fill, k->fill, sizeof in->fill);
    if (compute->chosen == MLA_BACKEND_CUDA) {
        status = mla_device_case_open(compute->context->device, NULL, k, &none, &in->device);
        if (status != MLA_OK)
            return status;
        in->tensors = *mla_device_case_tensors(in->device);
    }
    return keep_text(in, k->text && *k->text ? k->text : source);
}

static mla_status open_pooled(struct mla_pool *pool, struct mla_input *in)
{
    struct mla_pool_case made;
    char text[4096];
    mla_status status = mla_pool_make(pool, &in->spec, &made);
    if (status != MLA_OK)
        return status;
    in->problem = made.problem;
    in->tensors = made.tensors;
    in->complete = made.complete;
    memcpy(in->fill, in->spec.fill, sizeof in->fill);
    mla_case_spec_print(&in->spec, text, sizeof text);
    return keep_text(in, text);
}

mla_status mla_input_open(struct mla_pool *pool, const struct compute *compute, const char *source,
                          struct mla_input *in)
{
    const char *word = source + strspn(source, " \t\n");
    mla_status status = MLA_OK;
    memset(in, 0, sizeof *in);
    bool text = strncmp(word, "attend", 6) == 0 && access(source, F_OK) != 0;
    if (text)
        status = mla_case_spec_parse(&in->spec, source);
    if (status != MLA_OK)
        return status;
    status =
        text && mla_pool_takes(&in->spec) ? open_pooled(pool, in) : open_own(compute, source, in);
    if (status != MLA_OK) {
        mla_input_free(in);
        return status;
    }
    bool cpu = compute->chosen == MLA_BACKEND_CPU;
    in->problem.out_dtype = !cpu                                             ? in->problem.q_dtype
                            : compute->precision_value == MLA_PRECISION_FP64 ? MLA_F64
                                                                             : MLA_F32;
    in->problem.wants_lse = true;
    in->problem.wants_max_logits = false;
    return MLA_OK;
}

void mla_input_free(struct mla_input *in)
{
    mla_device_case_free(in->device);
    mla_case_free(&in->own);
    mla_problem_release(&in->spec.problem);
    mla_free(in->text);
    memset(in, 0, sizeof *in);
}

mla_status mla_input_plan(const struct mla_input *in, const struct compute *compute,
                          mla_route route, const mla_route *routes, mla_plan **out)
{
    const mla_plan_options options = {.route = routes ? MLA_ROUTE_AUTO : route,
                                      .routes = routes,
                                      .kernel = compute->kernel,
                                      .precision = compute->precision_value,
                                      .complete = in->complete};
    return mla_plan_create(compute->context, &in->problem, &options, out);
}

static int64_t queries_of(const mla_problem *p, int64_t b)
{
    return (int64_t)p->cu_seqlens_q[b + 1] - p->cu_seqlens_q[b];
}

bool mla_input_mixed(const mla_problem *p)
{
    for (int64_t b = 1; b < p->batch; b++)
        if (queries_of(p, b) != queries_of(p, 0) || p->seq_lens_kv[b] != p->seq_lens_kv[0])
            return true;
    return false;
}

void mla_input_batch_wide(const struct mla_input *in, const struct compute *compute,
                          mla_route *routes)
{
    enum { DECODE_QUERIES = 4 };
    const mla_problem *p = &in->problem;
    const struct mla_context *context = compute->context;
    const struct mla_route_table *table =
        context->crossovers ? context->crossovers : mla_route_table_of(context->backend);
    struct mla_route_choice choice;
    const bool skip = false;
    int64_t longest = 0;
    for (int64_t b = 1; b < p->batch; b++)
        longest = queries_of(p, b) > queries_of(p, longest) ? b : longest;
    /* Lists count as incomplete: a route over all keys would not serve the others. */
    mla_route_choose(p, queries_of(p, longest), p->seq_lens_kv[longest], false, table, 0, &choice);
    mla_route_settle(&choice, &skip, 1);
    for (int64_t b = 0; b < p->batch; b++)
        routes[b] = queries_of(p, b) <= DECODE_QUERIES ? MLA_ROUTE_SPARSE_MQA : choice.route;
}
