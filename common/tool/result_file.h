/* SPDX-License-Identifier: Apache-2.0 */
/* Result files: what mla run writes and mla check --against reads. */
#ifndef MLA_TOOL_RESULT_FILE_H
#define MLA_TOOL_RESULT_FILE_H

#include "mla/mla.h"

/* A computed result on the host, packed. To save, the caller fills it and keeps the arrays; after a
 * load it owns them (mla_result_free). */
struct mla_result_file {
    mla_dtype out_dtype; /* of out [T, H, d] */
    mla_dtype lse_dtype; /* F32 or F64, of lse and max_logits [T, H] */
    const void *out;
    const void *lse, *max_logits; /* NULL = not there */
    const double *bound;          /* [T, H, d]; NULL = not there */
    /* Metadata as read; NULL = not there. route and kernel list one name per request: "a,b,b". */
    const char *version, *backend, *route, *kernel;
    void *owned;
};

/* Writes whole or not at all, with metadata about backend and, per request, route and kernel
 * (requests[batch] as mla_plan_request tells). MLA_ERR_ARGUMENT, MLA_ERR_IO, MLA_ERR_MEMORY. */
mla_status mla_result_save(const char *path, const mla_problem *problem,
                           const struct mla_result_file *result, mla_backend backend,
                           const mla_request_info *requests);

/* Reads a result of any program for problem: out is required in BF16, F16, F32 or F64; lse and
 * max_logits, of the same dtypes, are widened to F32, or to F64 if one of them is F64. Names,
 * shapes and dtypes are checked (MLA_ERR_ARGUMENT), values are not. MLA_ERR_IO, MLA_ERR_MEMORY.
 * Unknown tensors and keys go to warn(line, user), which may be NULL. On failure *out is empty. */
mla_status mla_result_load(const char *path, const mla_problem *problem,
                           struct mla_result_file *out, void (*warn)(const char *line, void *user),
                           void *user);
/* The same from bytes in memory, which are copied; label stands for the path in sentences. */
mla_status mla_result_load_bytes(const void *bytes, size_t size, const char *label,
                                 const mla_problem *problem, struct mla_result_file *out,
                                 void (*warn)(const char *line, void *user), void *user);
void mla_result_free(struct mla_result_file *result);

#endif
