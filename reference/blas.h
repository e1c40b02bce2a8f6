/* SPDX-License-Identifier: Apache-2.0 */
/* BLAS for code inside our parallel regions; include this instead of <cblas.h>. The serial flavour
 * of OpenBLAS hands one scratch buffer to all threads without a lock, so there products take
 * turns. */
#ifndef MLA_REFERENCE_BLAS_H
#define MLA_REFERENCE_BLAS_H

#include <cblas.h>

/* Between mla_blas_enter and mla_blas_leave; nothing unless the serial flavour is loaded. */
void mla_blas_lock(void);
void mla_blas_unlock(void);

/* A macro's own name is not expanded again, so these call the functions they are named after. */
#define cblas_sgemm(...) (mla_blas_lock(), cblas_sgemm(__VA_ARGS__), mla_blas_unlock())
#define cblas_dgemm(...) (mla_blas_lock(), cblas_dgemm(__VA_ARGS__), mla_blas_unlock())
#define cblas_dsyrk(...) (mla_blas_lock(), cblas_dsyrk(__VA_ARGS__), mla_blas_unlock())
#define cblas_dsymm(...) (mla_blas_lock(), cblas_dsymm(__VA_ARGS__), mla_blas_unlock())

#endif
