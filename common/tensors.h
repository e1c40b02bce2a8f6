/* SPDX-License-Identifier: Apache-2.0 */
/* Checks of pointers and strides, inside the library. */
#ifndef MLA_COMMON_TENSORS_H
#define MLA_COMMON_TENSORS_H

#include "mla/mla.h"

/* One tensor: [rows, columns, width] of elements of so many bytes. */
struct mla_tensor_shape {
    const char *name;
    const mla_tensor *tensor;
    int64_t rows, columns, width;
    size_t bytes;
    bool free_strides; /* lse: any non-zero strides */
};

/* It is there if it has elements, aligned to them, and its strides fit; sentences begin with
 * call. */
mla_status mla_tensor_layout(const char *call, const struct mla_tensor_shape *shape);

/* Every tensor the problem needs is there, its strides reach no row twice, pointers are aligned to
 * their elements. Reads no data, so it serves device pointers too. lists: are top-k lists read? */
mla_status mla_tensors_layout(const mla_problem *problem, const mla_tensors *tensors, bool lists);

#endif
