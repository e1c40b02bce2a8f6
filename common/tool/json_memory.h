/* SPDX-License-Identifier: Apache-2.0 */
/* The JSON library on our allocator, and a parse that survives running out of memory. */
#ifndef MLA_TOOL_JSON_MEMORY_H
#define MLA_TOOL_JSON_MEMORY_H

#include <jansson.h>
#include <stdbool.h>

/* Everything that one parse allocated. Zero it before use. */
struct mla_json_memory {
    struct mla_json_block *first;
};

/* json_loadb, but jansson never sees a failed allocation: 2.14 drops the byte that did not fit and
 * later reads past its buffer. The first failure ends the parse from inside the allocator instead.
 * Returns NULL with *no_memory telling whether that was why; else error is set. The value lives in
 * memory: release it with mla_json_free, not json_decref, and don't change it. */
json_t *mla_json_parse(const char *text, size_t bytes, size_t flags, struct mla_json_memory *memory,
                       json_error_t *error, bool *no_memory);
void mla_json_free(struct mla_json_memory *memory);

/* For building and printing values, where jansson reports failures but not which kind: has an
 * allocation of this thread failed since begin? Such values and texts are json_decref's and free's,
 * as ever. */
void mla_json_memory_begin(void);
bool mla_json_memory_failed(void);

#endif
