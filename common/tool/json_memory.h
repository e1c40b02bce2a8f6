/* SPDX-License-Identifier: Apache-2.0 */
/* Routes the JSON library's memory through mla_alloc, and tells whether it ever ran out. */
#ifndef MLA_TOOL_JSON_MEMORY_H
#define MLA_TOOL_JSON_MEMORY_H

#include <stdbool.h>

/* jansson 2.14 ignores some failed allocations (a token loses a byte and parsing goes on), so its
 * return value alone can't be trusted: call begin first, and failed after the last JSON call of a
 * piece of work. Per thread. */
void mla_json_memory_begin(void);
bool mla_json_memory_failed(void);

#endif
