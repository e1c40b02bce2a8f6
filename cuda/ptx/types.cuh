/* SPDX-License-Identifier: Apache-2.0 */
/* Operand types of the tensor cores, as tags. element.cuh completes bf16 and f16. */
#ifndef MLA_CUDA_PTX_TYPES_CUH
#define MLA_CUDA_PTX_TYPES_CUH

#include <stdint.h>

struct bf16;
struct f16;
struct e4m3;

enum operand_type { OPERAND_F16, OPERAND_BF16, OPERAND_E4M3, OPERAND_E5M2, OPERAND_F32 };

template <class T> struct operand_type_of;
template <> struct operand_type_of<bf16> {
    static const operand_type value = OPERAND_BF16;
    static const int bytes = 2;
};
template <> struct operand_type_of<f16> {
    static const operand_type value = OPERAND_F16;
    static const int bytes = 2;
};
template <> struct operand_type_of<e4m3> {
    static const operand_type value = OPERAND_E4M3;
    static const int bytes = 1;
};

#endif
