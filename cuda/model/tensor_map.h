/* SPDX-License-Identifier: Apache-2.0 */
/* The model's encoding of a tensor map (tensor_map.c writes it, tma.cc reads it). */
#ifndef MLA_MODEL_TENSOR_MAP_H
#define MLA_MODEL_TENSOR_MAP_H

#include <stdint.h>

#define MODEL_TENSOR_MAP_MAGIC 0x50414d5f534e4554

struct model_tensor_map {
    uint64_t magic;
    uint64_t base;
    uint64_t dims[5];    /* elements, innermost first */
    uint64_t strides[4]; /* bytes, of dimensions 1 to 4 */
    uint16_t box[5];     /* elements */
    uint8_t rank, element_bytes, swizzle;
};

#endif
