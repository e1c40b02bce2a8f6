/* SPDX-License-Identifier: Apache-2.0 */
/* e4m3 pairs under CUDA's names. */
#ifndef MLA_MODEL_CUDA_FP8_H
#define MLA_MODEL_CUDA_FP8_H

#include "cuda_fp16.h"

typedef unsigned char __nv_fp8_storage_t;
typedef unsigned short __nv_fp8x2_storage_t;

enum __nv_fp8_interpretation_t { __NV_E4M3 };
enum __nv_saturation_t { __NV_NOSAT, __NV_SATFINITE };

/* Every e4m3 value is a half. */
static inline __half2_raw __nv_cvt_fp8x2_to_halfraw2(__nv_fp8x2_storage_t two,
                                                     __nv_fp8_interpretation_t)
{
    return {model_f16_of(model_of_e4m3((unsigned char)two)),
            model_f16_of(model_of_e4m3((unsigned char)(two >> 8)))};
}

#endif
