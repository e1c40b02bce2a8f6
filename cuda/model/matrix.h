/* SPDX-License-Identifier: Apache-2.0 */
/* Operands of the tensor cores in shared memory, as wgmma and tcgen05 see them: descriptors decoded
 * bit by bit, elements gathered into floats, and the multiplication itself. No state. */
#ifndef MLA_MODEL_MATRIX_H
#define MLA_MODEL_MATRIX_H

#include "engine.h"

#include "ptx/types.cuh"

/* What a matrix descriptor says. Every instruction uses 32 bytes of k. */
struct model_matrix {
    uint32_t start, leading, stride; /* bytes; start is an address within the CTA */
    int swizzle;                     /* 0, 32, 64 or 128 */
    bool trans;                      /* MN-major */
};

/* Fail with a sentence that begins with what ("wgmma: a"). */
struct model_matrix model_decode_wgmma(uint64_t desc, bool trans, const char *what,
                                       struct model_at at);
struct model_matrix model_decode_tcgen05(uint64_t desc, bool trans, const char *what,
                                         struct model_at at);

int model_type_bytes(operand_type type);
/* One element, of the bytes' low end. */
float model_element(operand_type type, uint32_t bits);

/* Address of the 16-byte unit that holds element (mn, k) and those after it in its major direction;
 * k and mn in units along that direction: K-major unit (mn, u) holds k = u * 16 / bytes on,
 * MN-major unit (u, k) holds mn = u * 16 / bytes on. */
uint32_t model_unit_k_major(const struct model_matrix *m, uint32_t mn, uint32_t unit);
uint32_t model_unit_mn_major(const struct model_matrix *m, uint32_t unit, uint32_t k);

/* Elements mn0 to mn0 + count - 1 (multiples of 8; of 16 when 8-bit and MN-major) of one
 * instruction's 32 bytes of k: into out[(mn - mn0) * stride_mn + k * stride_k]. */
void model_gather(const struct model_matrix *m, operand_type type, uint32_t mn0, uint32_t count,
                  struct model_block *block, float *out, int stride_mn, int stride_k);

/* Names the bytes of that gather as read by op; what and at serve reports of a place outside the
 * block's shared memory. */
void model_gather_ranges(struct model_op *op, const struct model_matrix *m, operand_type type,
                         uint32_t mn0, uint32_t count, struct model_block *block, const char *what);

/* d[rows][n] += a[rows][k] * b[k][n], each sum in the order of k, rounded to f32 after each product
 * (which is exact). n is a multiple of 8. */
void model_multiply(float *d, const float *a, const float *b, int rows, int n, int k);

#endif
