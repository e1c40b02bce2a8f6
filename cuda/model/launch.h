/* SPDX-License-Identifier: Apache-2.0 */
/* A launch as runtime.cc hands it on: checked against CUDA's limits. */
#ifndef MLA_CUDA_MODEL_LAUNCH_H
#define MLA_CUDA_MODEL_LAUNCH_H

#include "device.h"

struct model_launch {
    struct model_thread_index grid, block, cluster;
    uint32_t dynamic_bytes;
};

/* Runs the grid to its end; false leaves model_error_text. One launch at a time. */
bool model_launch_run(const struct model_kernel *kernel, const struct model_launch *launch,
                      void **args);

#endif
