/* SPDX-License-Identifier: Apache-2.0 */
/* Inputs for timings, made once and shared: a sweep times hundreds of problems, and generating and
 * copying each one's tensors would take far longer than running it.
 *
 * Values come from a small case of the generator (common/tool/case.h), repeated as often as a
 * tensor needs: every 256 query rows, 8 heads and 4096 keys the same numbers return, which no
 * kernel's time depends on. Top-k lists are the generator's own, never repeated: a row's list
 * depends on its position, so prefills, extends and decodes of any length take theirs from one
 * table by position. */
#ifndef MLA_TOOL_POOL_H
#define MLA_TOOL_POOL_H

#include "case.h"

#include "mla/index.h"

struct mla_pool;
mla_status mla_pool_new(const mla_context *context, struct mla_pool **out);
void mla_pool_free(struct mla_pool *pool); /* NULL is accepted */

/* Problems whose values and lists repeat as above: causal, fill normal or sink, no mask, no
 * topk_lens, no holes. Others are cases of their own. */
bool mla_pool_takes(const struct mla_case_spec *spec);

/* What mla_run reads. Backend memory of the pool, valid until the next call; lengths are those of
 * spec, which must live as long. */
struct mla_pool_case {
    mla_problem problem;
    mla_tensors tensors; /* out, lse, max_logits absent */
    const bool *complete;
};
/* MLA_ERR_MEMORY, MLA_ERR_CUDA, MLA_ERR_ARGUMENT. */
mla_status mla_pool_make(struct mla_pool *pool, const struct mla_case_spec *spec,
                         struct mla_pool_case *out);

/* An indexer call for the same requests: 64 heads, D 128, fp8 q and keys, topk of the problem. */
mla_status mla_pool_index(struct mla_pool *pool, const mla_problem *problem, mla_index_args *out);

#endif
