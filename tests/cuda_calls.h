/* SPDX-License-Identifier: Apache-2.0 */
/* Checked calls of tests on a CUDA device: the first that fails ends the test. */
#ifndef MLA_TESTS_CUDA_CALLS_H
#define MLA_TESTS_CUDA_CALLS_H

#include "mla/mla.h"

#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>

#define CUDA(call)                                                                                 \
    do {                                                                                           \
        cudaError_t e_ = (call);                                                                   \
        if (e_ != cudaSuccess) {                                                                   \
            printf("%s:%d: %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString(e_));          \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)
#define OK(call)                                                                                   \
    do {                                                                                           \
        if ((call) != MLA_OK) {                                                                    \
            printf("%s:%d: %s\n", __FILE__, __LINE__, mla_last_error());                           \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

#endif
