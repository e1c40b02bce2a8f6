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

/* Wrong variants of a kernel, to prove that checks catch them: `if (MLA_MUTANT == 3)`, or
 * `MLA_MUTANT == 3 ? wrong : right` in any run-time expression. 0, and so no code, on CUDA (or what
 * -DMLA_MUTANT=n says). In the model a number that MLA_MODEL_MUTANT=<file stem>:<n> chooses when a
 * kernel of that file is launched, so that one build holds all of them. Each file's begin at 1 and
 * have a line in mutants.def of its folder. */
#ifndef MLA_MUTANT
#ifdef MLA_MODEL
extern "C" int model_mutant;
#define MLA_MUTANT model_mutant
#else
#define MLA_MUTANT 0
#endif
#endif

#ifdef MLA_MODEL
#include "model/device.h"
#define MLA_AT0 struct model_at at = {__builtin_FILE(), __builtin_LINE()}
#define MLA_AT , MLA_AT0
#else
#define MLA_AT0
#define MLA_AT
#endif

#endif
