/* SPDX-License-Identifier: Apache-2.0 */
/* Constants under CUDA's names. */
#ifndef MLA_MODEL_MATH_CONSTANTS_H
#define MLA_MODEL_MATH_CONSTANTS_H

#include <math.h>

#define CUDART_INF_F INFINITY
#define CUDART_NAN_F NAN

#endif
