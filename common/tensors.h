/* SPDX-License-Identifier: Apache-2.0 */
/* Checks of pointers and strides, inside the library. */
#ifndef MLA_COMMON_TENSORS_H
#define MLA_COMMON_TENSORS_H

#include "mla/mla.h"

/* Every tensor the problem needs is there, its strides reach no row twice, pointers are aligned to
 * their elements. Reads no data, so it serves device pointers too. lists: are top-k lists read? */
mla_status mla_tensors_layout(const mla_problem *problem, const mla_tensors *tensors, bool lists);

#endif
