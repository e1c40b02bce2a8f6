/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by the readers and writers of problem and result files. */
#ifndef MLA_TOOL_CASE_FILE_H
#define MLA_TOOL_CASE_FILE_H

#include "common/tool/case.h"
#include "common/tool/safetensors.h"

/* Hands an open file to the case, which closes it when it is freed. MLA_ERR_MEMORY closes it at
 * once. */
mla_status mla_case_keep_file(struct mla_case *c, struct mla_st_file *file);

/* "[3, 4, 64]". Returns dst. */
const char *mla_case_shape_text(char *dst, size_t bytes, int rank, const int64_t *shape);

/* The library's dtype of a container dtype, and back; false if there is none. */
bool mla_case_dtype_from_st(enum mla_st_dtype from, mla_dtype *to);
enum mla_st_dtype mla_case_dtype_to_st(mla_dtype from);

/* Tells warn about tensors or keys that nobody knows; after some lines, only how many more. */
struct mla_case_warnings {
    void (*warn)(const char *line, void *user);
    void *user;
    const char *label;
    int64_t count;
};
void mla_case_warn(struct mla_case_warnings *w, const char *kind, const char *name,
                   const char *what);
void mla_case_warn_end(struct mla_case_warnings *w);

#endif
