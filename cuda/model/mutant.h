/* SPDX-License-Identifier: Apache-2.0 */
/* Which wrong variant of a kernel runs: see MLA_MUTANT in ptx/at.cuh. */
#ifndef MLA_CUDA_MODEL_MUTANT_H
#define MLA_CUDA_MODEL_MUTANT_H

#ifdef __cplusplus
extern "C" {
#endif

extern int model_mutant;

/* Before a launch: sets model_mutant to n if MLA_MODEL_MUTANT is "<stem>:<n>" and stem is part of
 * `kernel`, the launched kernel's source file and name; else to 0. */
void model_mutant_select(const char *kernel);

#ifdef __cplusplus
}
#endif
#endif
