/* SPDX-License-Identifier: Apache-2.0 */
/* Atomic operations on shared memory by address. Threads switch only inside model functions, so
 * what follows model_step is one piece. */
#include "trace.h"

#include <string.h>

uint32_t model_atom_add_shared(uint32_t address, uint32_t value, struct model_at at)
{
    model_step();
    if (model_tracing)
        model_trace(TRACE_SHUFFLE, at)->wavefronts++;
    struct model_place p = model_place_of(address, 4, 4, "atom.shared.add", at);
    if (p.block != model_self->block)
        model_fail(at, "atom.shared.add: address 0x%08x lies in another block of the cluster",
                   address);
    model_check_read(&p.block->shared, p.offset, 4, "atom.shared.add", at);
    model_check_write(&p.block->shared, p.offset, 4, "atom.shared.add", at);
    uint32_t before, after;
    memcpy(&before, p.block->shared.data + p.offset, 4);
    after = before + value;
    memcpy(p.block->shared.data + p.offset, &after, 4);
    return before;
}
