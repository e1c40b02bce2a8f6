/* SPDX-License-Identifier: Apache-2.0 */
/* The conformance suite: small kernels that use one instruction each way that libmla's kernels do,
 * and report what came out. Built by nvcc it records a GPU's answers; built for the functional
 * model it must give the same, bit for bit. */
#ifndef MLA_TESTS_CONFORMANCE_H
#define MLA_TESTS_CONFORMANCE_H

#include "tensor_map.h"

#include <stddef.h>
#include <stdint.h>

enum { INPUT_BYTES = 1 << 18 };

/* What every kernel of the suite takes. */
struct conform_args {
    struct mla_tensor_map map, map2;
    const uint32_t *input; /* INPUT_BYTES of hashed bytes */
    uint32_t *out;
    uint64_t p[12]; /* parameters of the case */
};

/* Runs a case: out starts as 0xEEEEEEEE words, of which the first `words` are the answer. The
 * kernel gets 200 KiB of dynamic shared memory. */
void conform_run(const char *name, const void *kernel, unsigned blocks, unsigned cluster,
                 unsigned threads, struct conform_args *args, size_t words);

/* Device memory that the cases share: input as conform_args has it, and room of INPUT_BYTES whose
 * first bytes can be part of an answer. */
extern const uint32_t *conform_input;
extern unsigned char *conform_room;
/* As conform_run, but the answer is the first `words` of the room, which starts as 0xEE bytes. */
void conform_run_room(const char *name, const void *kernel, unsigned threads,
                      struct conform_args *args, size_t words);

/* A map over the input or the room; ends the program if it is refused. */
void conform_map(struct mla_tensor_map *map, int element_bytes, int rank, const void *base,
                 const uint64_t *dims, const uint64_t *strides, const uint32_t *box, int swizzle);

/* The files. */
void conform_wgmma(void);
void conform_tma(void);
void conform_sync(void);
void conform_warp(void);

#ifdef __device__ /* in kernels' files */
static __device__ __forceinline__ uint32_t hash32(uint32_t x)
{
    x = (x ^ x >> 16) * 0x7FEB352Du;
    x = (x ^ x >> 15) * 0x846CA68Bu;
    return x ^ x >> 16;
}
#endif

#endif
