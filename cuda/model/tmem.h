/* SPDX-License-Identifier: Apache-2.0 */
/* Tensor memory of a CTA: allocation, and who may touch which cells when. */
#ifndef MLA_MODEL_TMEM_H
#define MLA_MODEL_TMEM_H

#include "tensor_state.h"

/* A rectangle: columns of the cells (16 lanes each) in a bit mask. */
struct cells {
    struct model_block *block;
    uint8_t mask;
    uint32_t column, columns;
};

/* The block's tensor memory; notes the CTA group, which stays the same in a kernel. */
struct tmem *model_tmem(struct model_block *block, int group, const char *what, struct model_at at);

/* All columns exist and are allocated. */
void model_tmem_allocated(const struct cells *c, const char *what, struct model_at at);
/* Every word of the given lanes has been written. */
void model_tmem_known(const struct cells *c, uint32_t lane, uint32_t lanes, const char *what,
                      struct model_at at);
void model_tmem_mark_known(struct model_block *block, uint32_t lane, uint32_t column,
                           uint32_t columns);

enum tmem_use { USE_LD, USE_ST, USE_MMA_READ, USE_MMA_WRITE, USE_CP_WRITE };

/* Whether the running thread's instruction may use the cells so: nothing under way that it is not
 * ordered after, and fences between it and earlier uses by others. shape: of an MMA. */
void model_tmem_check(const struct cells *c, enum tmem_use use, uint32_t shape, const char *what,
                      struct model_at at);

/* Under way and done. */
void model_tmem_start(const struct cells *c, enum tmem_use use, uint32_t shape);
void model_tmem_finish(const struct cells *c, enum tmem_use use, struct model_fiber *by);

/* Nothing under way in the columns. */
void model_tmem_idle(struct model_block *block, uint32_t column, uint32_t columns, const char *what,
                     struct model_at at);

#endif
