/* SPDX-License-Identifier: Apache-2.0 */
/* The list of backends, inside the library. */
#ifndef MLA_COMMON_BACKEND_H
#define MLA_COMMON_BACKEND_H

#include "kernel.h"

/* NULL if this build does not have it. */
const struct mla_backend_ops *mla_backend_ops_of(mla_backend backend);

/* What "want cpu" goes on with, in calls that a CUDA context serves too. */
#ifdef MLA_WITH_CUDA
#define MLA_OR_CUDA " or cuda"
#else
#define MLA_OR_CUDA ", the only one of this build"
#endif

#endif
