/* SPDX-License-Identifier: Apache-2.0 */
/* Tensor maps: the rules, checked here with a sentence each, then the driver's encoding (or the
 * functional model's, which only it reads). The driver is asked through the CUDA runtime, so that
 * nothing links to it. */
#include "tensor_map.h"

#include "status.h"

#include <inttypes.h>
#include <string.h>

#ifdef MLA_MODEL
#include "model/tensor_map.h"
#else
#include "device.h"

#include <cuda.h>
#endif

#define NAME "mla_tensor_map_tiled"

static mla_status check(int bytes, int rank, const void *base, const uint64_t *dims,
                        const uint64_t *strides, const uint32_t *box, int swizzle)
{
    if (bytes != 1 && bytes != 2 && bytes != 4 && bytes != 8)
        return mla_fail(MLA_ERR_ARGUMENT, NAME ": element_bytes: got %d, want 1, 2, 4 or 8", bytes);
    if (rank < 1 || rank > 5)
        return mla_fail(MLA_ERR_ARGUMENT, NAME ": rank: got %d, want 1 to 5", rank);
    if (base == NULL || (uintptr_t)base % 16 != 0)
        return mla_fail(MLA_ERR_ARGUMENT, NAME ": base: got %p, want a multiple of 16", base);
    if (swizzle != 0 && swizzle != 32 && swizzle != 64 && swizzle != 128)
        return mla_fail(MLA_ERR_ARGUMENT, NAME ": swizzle: got %d, want 0, 32, 64 or 128", swizzle);
    for (int i = 0; i < rank; i++) {
        if (dims[i] < 1 || dims[i] > (uint64_t)1 << 32)
            return mla_fail(MLA_ERR_ARGUMENT, NAME ": dims[%d]: got %" PRIu64 ", want 1 to 2^32", i,
                            dims[i]);
        if (box[i] < 1 || box[i] > 256)
            return mla_fail(MLA_ERR_ARGUMENT, NAME ": box[%d]: got %" PRIu32 ", want 1 to 256", i,
                            box[i]);
        if (i > 0 && (strides[i - 1] % 16 != 0 || strides[i - 1] >= (uint64_t)1 << 40))
            return mla_fail(MLA_ERR_ARGUMENT,
                            NAME ": strides_bytes[%d]: got %" PRIu64
                                 ", want a multiple of 16 below 2^40",
                            i - 1, strides[i - 1]);
    }
    uint32_t row = box[0] * (uint32_t)bytes;
    if (row % 16 != 0)
        return mla_fail(MLA_ERR_ARGUMENT,
                        NAME ": box[0]: got %" PRIu32 " bytes, want a multiple of 16", row);
    if (swizzle != 0 && row > (uint32_t)swizzle)
        return mla_fail(MLA_ERR_ARGUMENT,
                        NAME ": box[0]: got %" PRIu32 " bytes, want at most the swizzle's %d", row,
                        swizzle);
    return MLA_OK;
}

#ifndef MLA_MODEL
typedef CUresult encode_function(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *,
                                 const cuuint64_t *, const cuuint64_t *, const cuuint32_t *,
                                 const cuuint32_t *, CUtensorMapInterleave, CUtensorMapSwizzle,
                                 CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

static mla_status encoder(encode_function **function)
{
    void *symbol = NULL;
    enum cudaDriverEntryPointQueryResult found;
#if CUDART_VERSION >= 12050
    MLA_CUDA(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &symbol, 12000,
                                              cudaEnableDefault, &found));
#else
    MLA_CUDA(cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &symbol, cudaEnableDefault, &found));
#endif
    if (found != cudaDriverEntryPointSuccess || symbol == NULL)
        return mla_fail(MLA_ERR_DEVICE,
                        NAME ": the driver has no cuTensorMapEncodeTiled (CUDA 12 or later has)");
    memcpy(function, &symbol, sizeof *function);
    return MLA_OK;
}

static mla_status encode(struct mla_tensor_map *map, int bytes, int rank, const void *base,
                         const uint64_t *dims, const uint64_t *strides, const uint32_t *box,
                         int swizzle)
{
    encode_function *function = NULL;
    mla_status status = encoder(&function);
    if (status != MLA_OK)
        return status;
    static const cuuint32_t ones[5] = {1, 1, 1, 1, 1};
    CUtensorMapDataType type = bytes == 1   ? CU_TENSOR_MAP_DATA_TYPE_UINT8
                               : bytes == 2 ? CU_TENSOR_MAP_DATA_TYPE_UINT16
                               : bytes == 4 ? CU_TENSOR_MAP_DATA_TYPE_UINT32
                                            : CU_TENSOR_MAP_DATA_TYPE_UINT64;
    CUtensorMapSwizzle mode = swizzle == 128  ? CU_TENSOR_MAP_SWIZZLE_128B
                              : swizzle == 64 ? CU_TENSOR_MAP_SWIZZLE_64B
                              : swizzle == 32 ? CU_TENSOR_MAP_SWIZZLE_32B
                                              : CU_TENSOR_MAP_SWIZZLE_NONE;
    _Static_assert(sizeof(struct mla_tensor_map) == sizeof(CUtensorMap), "opaque copy");
    CUresult result =
        function((CUtensorMap *)(void *)map, type, (cuuint32_t)rank, (void *)(uintptr_t)base,
                 (const cuuint64_t *)dims, (const cuuint64_t *)strides, box, ones,
                 CU_TENSOR_MAP_INTERLEAVE_NONE, mode, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                 CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (result != CUDA_SUCCESS)
        return mla_fail(MLA_ERR_CUDA, NAME ": cuTensorMapEncodeTiled: error %d", (int)result);
    return MLA_OK;
}
#else
static mla_status encode(struct mla_tensor_map *map, int bytes, int rank, const void *base,
                         const uint64_t *dims, const uint64_t *strides, const uint32_t *box,
                         int swizzle)
{
    struct model_tensor_map m;
    memset(&m, 0, sizeof m);
    m.magic = MODEL_TENSOR_MAP_MAGIC;
    m.base = (uint64_t)(uintptr_t)base;
    for (int i = 0; i < 5; i++) {
        m.dims[i] = i < rank ? dims[i] : 1;
        m.box[i] = (uint16_t)(i < rank ? box[i] : 1);
        if (i > 0)
            m.strides[i - 1] = i < rank ? strides[i - 1] : 0;
    }
    m.rank = (uint8_t)rank;
    m.element_bytes = (uint8_t)bytes;
    m.swizzle = (uint8_t)swizzle;
    memset(map, 0, sizeof *map);
    memcpy(map, &m, sizeof m);
    return MLA_OK;
}
#endif

mla_status mla_tensor_map_tiled(struct mla_tensor_map *map, int element_bytes, int rank,
                                const void *base, const uint64_t *dims,
                                const uint64_t *strides_bytes, const uint32_t *box, int swizzle)
{
    mla_status status = check(element_bytes, rank, base, dims, strides_bytes, box, swizzle);
    if (status != MLA_OK)
        return status;
    return encode(map, element_bytes, rank, base, dims, strides_bytes, box, swizzle);
}
