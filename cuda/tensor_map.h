/* SPDX-License-Identifier: Apache-2.0 */
/* Tensor maps for TMA: made on the host, passed by value in a kernel's argument struct (a
 * __grid_constant__ parameter), named by address in ptx/tma.cuh. */
#ifndef MLA_CUDA_TENSOR_MAP_H
#define MLA_CUDA_TENSOR_MAP_H

#include "mla/mla.h"

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#define MLA_ALIGN64 alignas(64)
#else
#define MLA_ALIGN64 _Alignas(64)
#endif

struct mla_tensor_map {
    MLA_ALIGN64 uint64_t words[16];
};

/* A tiled map over a tensor of `rank` (1 to 5) dimensions, innermost first: dims in elements of
 * element_bytes (1, 2, 4 or 8), strides_bytes of dimensions 1 to rank - 1, box in elements, swizzle
 * 0 (none), 32, 64 or 128 bytes. Elements outside the tensor are loaded as zeros and not stored.
 * For gather4 the rank is 2 and box[1] is 1. */
mla_status mla_tensor_map_tiled(struct mla_tensor_map *map, int element_bytes, int rank,
                                const void *base, const uint64_t *dims,
                                const uint64_t *strides_bytes, const uint32_t *box, int swizzle);

#ifdef __cplusplus
}
#endif
#endif
