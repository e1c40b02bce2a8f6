/* SPDX-License-Identifier: Apache-2.0 */
/* A problem to time, with its tensors where the context runs: from the pool where that can make it,
 * else a case of its own. */
#ifndef MLA_TOOL_INPUT_H
#define MLA_TOOL_INPUT_H

#include "command.h"
#include "device_case.h"
#include "pool.h"

struct mla_input {
    mla_problem problem; /* out_dtype and wants_lse set as the backend has them */
    mla_tensors tensors;
    const bool *complete;
    char *text; /* problem string, or the name of the file */
    char fill[16];
    /* what owns the above: */
    struct mla_case_spec spec; /* of the pool */
    struct mla_case own;
    struct mla_device_case *device;
};

/* source: problem string or file. One input of a pool at a time. Statuses of mla_case_open and
 * mla_pool_make. */
mla_status mla_input_open(struct mla_pool *pool, const struct compute *compute, const char *source,
                          struct mla_input *out);
void mla_input_free(struct mla_input *in);

/* Plans it: one route (AUTO: as the library routes), or one for each request. */
mla_status mla_input_plan(const struct mla_input *in, const struct compute *compute,
                          mla_route route, const mla_route *routes, mla_plan **out);
/* Does the batch hold requests of different lengths? */
bool mla_input_mixed(const mla_problem *problem);
/* What an engine does that routes a batch at once: every prefill takes the route that the longest
 * one takes by itself, decodes (at most 4 query tokens) take sparse MQA. routes: [B]. */
void mla_input_batch_wide(const struct mla_input *in, const struct compute *compute,
                          mla_route *routes);

#endif
