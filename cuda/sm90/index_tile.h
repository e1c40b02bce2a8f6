/* SPDX-License-Identifier: Apache-2.0 */
/* The indexer's kernel for full tiles of query rows (index_tile.cu), which index_logits.cu
 * launches. */
#ifndef MLA_CUDA_SM90_INDEX_TILE_H
#define MLA_CUDA_SM90_INDEX_TILE_H

#include "../any/index_plan.h"

/* Padded heads 32 or 64, both sides fp8, tiles of 512 / heads rows with INDEX_TILE_BUFFERS buffers
 * a row. */
enum { INDEX_TILE_BUFFERS = 2 };
cudaError_t mla_index_sm90_tiles(const struct index_launch *launch, int heads, unsigned blocks,
                                 cudaStream_t stream);

#endif
