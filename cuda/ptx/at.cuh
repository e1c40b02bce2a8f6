/* SPDX-License-Identifier: Apache-2.0 */
/* What every file of ptx/ begins with: short integer names, and where a call stands. In the model
 * (cuda/model) each instruction takes the file and line of its call as a last parameter, which the
 * compiler fills in, so that a report can name it. On CUDA there is no such parameter. */
#ifndef MLA_CUDA_PTX_AT_CUH
#define MLA_CUDA_PTX_AT_CUH

#include <stdint.h>

typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

#ifdef MLA_MODEL
#include "model/device.h"
#define MLA_AT0 struct model_at at = {__builtin_FILE(), __builtin_LINE()}
#define MLA_AT , MLA_AT0
#else
#define MLA_AT0
#define MLA_AT
#endif

#endif
