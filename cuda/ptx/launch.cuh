/* SPDX-License-Identifier: Apache-2.0 */
/* What a kernel file says beside its instructions: its address for cudaLaunchKernel, and the role
 * of a warp, which reports and counts of the model name. */
#ifndef MLA_CUDA_PTX_LAUNCH_CUH
#define MLA_CUDA_PTX_LAUNCH_CUH

#include "at.cuh"

#ifdef MLA_MODEL
#define mla_kernel_address(...) (model_kernel_address<&(__VA_ARGS__)>(__FILE__))
#define MLA_ROLE(name) model_role(name)
#else
#define mla_kernel_address(...) ((const void *)(__VA_ARGS__))
#define MLA_ROLE(name) ((void)0)
#endif

#endif
