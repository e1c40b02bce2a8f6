/* SPDX-License-Identifier: Apache-2.0 */
/* mla/cache.h on the device: one warp a token. Records are bit-equal to the CPU's.
 *
 * Bound by memory: a write reads 2 to 4 bytes a value and writes a record, a read the reverse. A
 * lane owns 16 consecutive values of the latent row, so that loads and stores are 16 bytes wide,
 * and the maximum of a scale tile (16, 32, 64 or 128 values) takes log2 of 1, 2, 4 or 8 lanes
 * shuffles.
 *
 * A slot named twice gets the later token. Blocks run in any order, so each looks through the slots
 * that come after its own tokens: a bitmap in shared memory turns nearly all away, and what it lets
 * through is compared. That reads n²/(2·TOKENS) slots in all, 8 bytes each and from L2. */
#include "../device.h"
#include "../ptx/launch.cuh"
#include "codec.cuh"
#include "index.h"
#include "record.h"

extern "C" {
#include "format.h"
#include "status.h"
}

static const int THREADS = 256;
static const int MANY = 64, FEW = 8; /* tokens of a block */

struct rows {
    char *latent, *rope; /* of the values */
    int64_t latent_bytes, rope_bytes;
    mla_dtype dtype;
    bool wide; /* 16-byte loads and stores are aligned */
};

struct place {
    mla_cache_format format;
    mla_dtype plain;
    char *base, *rope; /* pages, or kv_c and k_pe */
    int64_t page_size, row_bytes, page_bytes, slots;
    int64_t latent, width; /* values of a row: latent ones, all */
    bool wide;
};

struct parts {
    char *data, *rope, *scales;
};

/* Where the scale of nvfp4 block s lies, as in record.h. */
INLINE int nvfp4_place(int s)
{
    return 8 * (s & 3) + (s >> 2);
}

INLINE struct parts find_parts(const struct place &p, int64_t slot)
{
    if (p.page_size == 0)
        return {p.base + slot * p.row_bytes, p.rope + slot * p.page_bytes, NULL};
    int64_t offset = slot % p.page_size;
    char *page = p.base + slot / p.page_size * p.page_bytes, *row = page + offset * p.row_bytes;
    switch (p.format) {
    case MLA_CACHE_FP8_DS_MLA:
        return {row, row + FP8_ROPE_AT, row + FP8_SCALES_AT};
    case MLA_CACHE_MODEL1:
        row = page + offset * MODEL1_DATA_BYTES;
        return {row, row + MODEL1_ROPE_AT,
                page + p.page_size * MODEL1_DATA_BYTES + offset * MODEL1_SCALE_BYTES};
    case MLA_CACHE_V41:
        return {page + offset * V41_DATA_BYTES, NULL,
                page + p.page_size * V41_DATA_BYTES + offset * V41_SCALE_BYTES};
    case MLA_CACHE_NVFP4_DS_MLA:
        return {row, row + NVFP4_ROPE_AT, row + NVFP4_SCALES_AT};
    default:
        return {row, row + p.latent * (p.plain == MLA_F32 ? 4 : 2), NULL};
    }
}

/* Largest finite magnitude of N values of each lane, over groups of `lanes` lanes; *clean if all
 * of the lane's own are finite. */
template <int N> INLINE float amax_of(const uint32_t *x, int lanes, bool *clean)
{
    uint32_t most = 0; /* magnitudes order as integers */
    *clean = true;
#pragma unroll
    for (int i = 0; i < N; i++) {
        if (finite_bits(x[i]))
            most = max(most, x[i] & 0x7FFFFFFFu);
        else
            *clean = false;
    }
    for (int step = 1; step < lanes; step *= 2)
        most = max(most, __shfl_xor_sync(0xFFFFFFFFu, most, step));
    return __uint_as_float(most);
}

INLINE void quantise16(const uint32_t *x, float scale, char *dst, bool wide)
{
    uint32_t words[4] = {0, 0, 0, 0};
#pragma unroll
    for (int i = 0; i < 16; i++)
        words[i / 4] |= quantise_e4m3(x[i], scale) << 8 * (i & 3);
    store_bytes<16>(dst, wide, words);
}

INLINE void store_f32(char *dst, bool wide, float x)
{
    uint32_t bits = __float_as_uint(x);
    store_bytes<4>(dst, wide, &bits);
}

/* Two rope values a lane, as bf16. */
INLINE void write_rope_bf16(const uint32_t *x, char *dst, bool wide)
{
    uint32_t word = round_bf16(x[0]) | round_bf16(x[1]) << 16;
    store_bytes<4>(dst, wide, &word);
}

/* 16 latent values of the lane at x, 2 rope values at rope (formats that keep them apart). */
static __device__ void write_packed(const struct place &p, const struct parts &to,
                                    const uint32_t *x, const uint32_t *rope, bool any_scale)
{
    int lane = threadIdx.x % 32;
    bool clean;
    if (p.format == MLA_CACHE_FP8_DS_MLA) {
        float scale = latent_scale(amax_of<16>(x, FP8_TILE / 16, &clean), any_scale);
        quantise16(x, scale, to.data + 16 * lane, p.wide);
        if (lane % (FP8_TILE / 16) == 0)
            store_f32(to.scales + 4 * (lane / (FP8_TILE / 16)), p.wide, scale);
        write_rope_bf16(rope, to.rope + 4 * lane, p.wide);
    } else if (p.format == MLA_CACHE_MODEL1) {
        const int group = MODEL1_TILE / 16;
        float scale = latent_scale(amax_of<16>(x, group, &clean), false);
        if (lane < MODEL1_ROPE_AT / 16) {
            quantise16(x, scale, to.data + 16 * lane, p.wide);
        } else {
            uint32_t words[8];
#pragma unroll
            for (int i = 0; i < 8; i++)
                words[i] = round_bf16(x[2 * i]) | round_bf16(x[2 * i + 1]) << 16;
            store_bytes<32>(to.rope + 32 * (lane - MODEL1_ROPE_AT / 16), p.wide, words);
        }
        if (lane % group == 0) /* the eighth byte is padding */
            to.scales[lane / group] =
                (char)(lane < MODEL1_ROPE_AT / 16 ? ceil_log2(scale) + 127 : 0);
    } else if (p.format == MLA_CACHE_V41) {
        const int group = V41_TILE / 16;
        float scale = latent_scale(amax_of<16>(x, group, &clean), false);
        quantise16(x, scale, to.data + 16 * lane, p.wide);
        if (lane % group == 0)
            to.scales[lane / group] = (char)(ceil_log2(scale) + 127);
    } else {
        float most = amax_of<16>(x, 1, &clean);
        uint32_t scale = clean ? e4m3_above(__fdiv_rn(most, 6.0f)) : 0x7F, words[2] = {0, 0};
        float inverse = __fdiv_rn(1.0f, __uint_as_float(widen_e4m3(scale)));
#pragma unroll
        for (int i = 0; i < 16; i++)
            if (clean)
                words[i / 8] |= round_e2m1(__fmul_rn(__uint_as_float(x[i]), inverse))
                                << 4 * (i & 7);
        store_bytes<8>(to.data + 8 * lane, p.wide, words);
        to.scales[nvfp4_place(lane)] = (char)scale;
        to.rope[2 * lane] = (char)quantise_e4m3(rope[0], 1.0f);
        to.rope[2 * lane + 1] = (char)quantise_e4m3(rope[1], 1.0f);
    }
}

/* The warp's part of n elements, from float bits or to them. */
static __device__ void write_plain(const struct place &p, char *dst, const struct rows &v,
                                   const char *src, int64_t n)
{
    int64_t i = 8 * (threadIdx.x % 32);
    for (; v.wide && p.wide && i + 8 <= n; i += 256) {
        uint32_t x[8], words[8];
        load_values<8>(v.dtype, src + i * (v.dtype == MLA_F32 ? 4 : 2), true, x);
        if (p.plain == MLA_F32) {
#pragma unroll
            for (int j = 0; j < 8; j++)
                words[j] = nan_bits(x[j]) ? x[j] | 0x400000 : x[j];
            store_bytes<32>(dst + 4 * i, true, words);
            continue;
        }
#pragma unroll
        for (int j = 0; j < 8; j += 2)
            words[j / 2] = p.plain == MLA_BF16 ? f32_to_bf16(x[j]) | f32_to_bf16(x[j + 1]) << 16
                                               : f32_to_f16(x[j]) | f32_to_f16(x[j + 1]) << 16;
        store_bytes<16>(dst + 2 * i, true, words);
    }
    /* What is left: the last n % 8, or all of it where rows are not aligned. */
    int64_t from = v.wide && p.wide ? n - n % 8 : 0;
    for (i = from + threadIdx.x % 32; i < n; i += 32) {
        uint32_t x;
        load_values<1>(v.dtype, src + i * (v.dtype == MLA_F32 ? 4 : 2), false, &x);
        store_value(p.plain, dst, i, x);
    }
}

/* Marks tokens of [first, first + T) whose slot a later token takes too, or that have none. */
template <int T>
static __device__ void find_dead(const int64_t *slots, int64_t n, int64_t limit, int64_t first,
                                 int64_t *mine, uint32_t *bitmap, int *dead)
{
    for (int i = threadIdx.x; i < 512; i += THREADS)
        bitmap[i] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < T; i += THREADS) {
        int64_t slot = first + i < n ? slots[first + i] : -1;
        mine[i] = slot;
        dead[i] = slot < 0 || slot >= limit;
        uint32_t hash = (uint32_t)((uint64_t)slot * 0x9E3779B97F4A7C15ull >> 50);
        if (!dead[i])
            atomicOr(&bitmap[hash / 32], 1u << hash % 32);
    }
    __syncthreads();
    /* Small calls wait for these loads; large ones ran slower with several in flight. */
    const int BATCH = T == FEW ? 4 : 1;
    for (int64_t at = first + 1 + threadIdx.x; at < n; at += BATCH * THREADS) {
        int64_t slot[BATCH];
#pragma unroll
        for (int k = 0; k < BATCH; k++)
            slot[k] = at + k * THREADS < n ? slots[at + k * THREADS] : -1;
#pragma unroll
        for (int k = 0; k < BATCH; k++) {
            uint32_t hash = (uint32_t)((uint64_t)slot[k] * 0x9E3779B97F4A7C15ull >> 50);
            if (bitmap[hash / 32] >> hash % 32 & 1)
                for (int i = 0; i < T && first + i < at + k * THREADS; i++)
                    if (mine[i] == slot[k])
                        dead[i] = 1;
        }
    }
    __syncthreads();
}

template <int T>
__global__ void __launch_bounds__(THREADS)
    write_kernel(struct place p, struct rows v, const int64_t *slots, int64_t n, bool any_scale)
{
    __shared__ int64_t mine[T];
    __shared__ uint32_t bitmap[512];
    __shared__ int dead[T];
    int64_t first = (int64_t)blockIdx.x * T;
    int lane = threadIdx.x % 32;
    find_dead<T>(slots, n, p.slots, first, mine, bitmap, dead);
    for (int i = threadIdx.x / 32; i < T; i += THREADS / 32) {
        if (dead[i])
            continue;
        struct parts to = find_parts(p, mine[i]);
        const char *latent = v.latent + (first + i) * v.latent_bytes;
        const char *rope = v.rope ? v.rope + (first + i) * v.rope_bytes : NULL;
        int item = v.dtype == MLA_F32 ? 4 : 2;
        if (p.format >= MLA_CACHE_FP8_DS_MLA) {
            uint32_t x[16], r[2] = {0, 0};
            load_values<16>(v.dtype, latent + 16 * lane * item, v.wide, x);
            if (rope)
                load_values<2>(v.dtype, rope + 2 * lane * item, false, r);
            write_packed(p, to, x, r, any_scale);
        } else {
            write_plain(p, to.data, v, latent, p.latent);
            if (rope)
                write_plain(p, to.rope, v, rope, p.width - p.latent);
        }
    }
}

/* 16 products, a lane's part of a latent row. */
INLINE void store_products(mla_dtype dtype, char *latent, bool wide, const uint32_t *x,
                           uint32_t scale)
{
    int lane = threadIdx.x % 32;
    if (wide && (dtype == MLA_BF16 || dtype == MLA_F16)) {
        uint32_t out[8];
#pragma unroll
        for (int i = 0; i < 8; i++)
            out[i] = product_16(dtype, x[2 * i], scale) | product_16(dtype, x[2 * i + 1], scale)
                                                              << 16;
        store_bytes<32>(latent + 32 * lane, true, out);
        return;
    }
    for (int i = 0; i < 16; i++)
        store_product(dtype, latent, 16 * lane + i, x[i], scale);
}

static __device__ void read_packed(const struct place &p, const struct parts &from, mla_dtype dtype,
                                   char *latent, char *rope, bool wide)
{
    int lane = threadIdx.x % 32;
    uint32_t words[8], scale = 0;
    if (p.format == MLA_CACHE_NVFP4_DS_MLA) {
        load_bytes<8>(from.data + 8 * lane, p.wide, words);
        scale = widen_e4m3((uint8_t)from.scales[nvfp4_place(lane)]);
        uint32_t x[16];
#pragma unroll
        for (int i = 0; i < 16; i++)
            x[i] = widen_e2m1(words[i / 8] >> 4 * (i & 7) & 15);
        store_products(dtype, latent, wide, x, scale);
        for (int i = 2 * lane; i < 2 * lane + 2; i++)
            store_value(dtype, rope, i, widen_e4m3((uint8_t)from.rope[i]));
        return;
    }
    if (p.format == MLA_CACHE_FP8_DS_MLA)
        load_bytes<4>(from.scales + 4 * (lane / (FP8_TILE / 16)), p.wide, &scale);
    else if (p.format == MLA_CACHE_V41)
        scale = widen_ue8m0((uint8_t)from.scales[lane / (V41_TILE / 16)]);
    else if (lane < MODEL1_ROPE_AT / 16)
        scale = widen_ue8m0((uint8_t)from.scales[lane / (MODEL1_TILE / 16)]);
    if (p.format == MLA_CACHE_MODEL1 && lane >= MODEL1_ROPE_AT / 16) {
        load_bytes<32>(from.rope + 32 * (lane - MODEL1_ROPE_AT / 16), p.wide, words);
        for (int i = 0; i < 16; i++)
            store_value(dtype, latent, 16 * lane + i, words[i / 2] >> 16 * (i & 1) << 16);
    } else {
        uint32_t x[16];
        load_bytes<16>(from.data + 16 * lane, p.wide, words);
#pragma unroll
        for (int i = 0; i < 16; i++)
            x[i] = widen_e4m3(words[i / 4] >> 8 * (i & 3) & 255);
        store_products(dtype, latent, wide, x, scale);
    }
    if (p.format == MLA_CACHE_FP8_DS_MLA) {
        load_bytes<4>(from.rope + 4 * lane, p.wide, words);
        store_value(dtype, rope, 2 * lane, words[0] << 16);
        store_value(dtype, rope, 2 * lane + 1, words[0] & 0xFFFF0000u);
    }
}

static __device__ void read_plain(mla_dtype plain, const char *src, mla_dtype dtype, char *dst,
                                  int64_t n)
{
    for (int64_t i = threadIdx.x % 32; i < n; i += 32) {
        uint32_t x;
        load_values<1>(plain, src + i * (plain == MLA_F32 ? 4 : 2), false, &x);
        store_value(dtype, dst, i, x);
    }
}

static __device__ void clear(mla_dtype dtype, char *dst, int64_t n)
{
    for (int64_t i = threadIdx.x % 32; i < n; i += 32)
        store_value(dtype, dst, i, 0);
}

__global__ void __launch_bounds__(THREADS)
    read_kernel(struct place p, struct rows v, const int64_t *slots, int64_t n)
{
    int64_t i = (int64_t)blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
    if (i >= n)
        return;
    char *latent = v.latent + i * v.latent_bytes;
    char *rope = v.rope ? v.rope + i * v.rope_bytes : NULL;
    int64_t slot = slots[i];
    if (slot < 0 || slot >= p.slots) {
        clear(v.dtype, latent, p.latent);
        if (rope)
            clear(v.dtype, rope, p.width - p.latent);
        return;
    }
    struct parts from = find_parts(p, slot);
    if (p.format >= MLA_CACHE_FP8_DS_MLA) {
        read_packed(p, from, v.dtype, latent, rope, v.wide);
    } else {
        read_plain(p.plain, from.data, v.dtype, latent, p.latent);
        if (rope)
            read_plain(p.plain, from.rope, v.dtype, rope, p.width - p.latent);
    }
}

/* ------------------------------------------------------------- indexer keys */

struct index_place {
    bool fp4;
    char *base;
    int64_t page_size, page_bytes, slots;
    bool wide; /* 4-byte accesses are aligned */
};

INLINE char *index_data(const struct index_place &p, int64_t slot, char **footer)
{
    int64_t bytes = p.fp4 ? INDEX_DIM / 2 : INDEX_DIM, offset = slot % p.page_size;
    char *page = p.base + slot / p.page_size * p.page_bytes;
    *footer = page + p.page_size * bytes + offset * INDEX_SCALE_BYTES;
    return page + offset * bytes;
}

template <int T>
__global__ void __launch_bounds__(THREADS)
    index_write_kernel(struct index_place p, struct rows v, const int64_t *slots, int64_t n,
                       bool any_scale)
{
    __shared__ int64_t mine[T];
    __shared__ uint32_t bitmap[512];
    __shared__ int dead[T];
    int64_t first = (int64_t)blockIdx.x * T;
    int lane = threadIdx.x % 32;
    find_dead<T>(slots, n, p.slots, first, mine, bitmap, dead);
    for (int i = threadIdx.x / 32; i < T; i += THREADS / 32) {
        if (dead[i])
            continue;
        uint32_t x[4], word = 0;
        char *footer, *data = index_data(p, mine[i], &footer);
        load_values<4>(v.dtype,
                       v.latent + (first + i) * v.latent_bytes +
                           4 * lane * (v.dtype == MLA_F32 ? 4 : 2),
                       v.wide, x);
        bool clean;
        float most = amax_of<4>(x, p.fp4 ? INDEX_FP4_TILE / 4 : 32, &clean);
        if (!p.fp4) {
            float scale = index_scale(most, any_scale);
#pragma unroll
            for (int j = 0; j < 4; j++)
                word |= quantise_e4m3(x[j], scale) << 8 * j;
            store_bytes<4>(data + 4 * lane, p.wide, &word);
            if (lane == 0)
                store_f32(footer, p.wide, scale);
            continue;
        }
        const int group = INDEX_FP4_TILE / 4;
        clean = (__ballot_sync(0xFFFFFFFFu, clean) >> (lane & ~(group - 1)) & 255) == 255;
        int exponent = ceil_log2(__fdiv_rn(most > 1e-4f ? most : 1e-4f, 6.0f));
#pragma unroll
        for (int j = 0; j < 4; j++) /* a power of two; a subnormal product is far below a code */
            if (clean)
                word |= index_e2m1(__uint_as_float(x[j]) * power_of_two(-exponent)) << 4 * j;
        data[2 * lane] = (char)word;
        data[2 * lane + 1] = (char)(word >> 8);
        if (lane % group == 0)
            footer[lane / group] = (char)(clean ? exponent + 127 : 255);
    }
}

__global__ void __launch_bounds__(THREADS)
    index_read_kernel(struct index_place p, struct rows v, const int64_t *slots, int64_t n)
{
    int64_t i = (int64_t)blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
    int lane = threadIdx.x % 32;
    if (i >= n)
        return;
    char *to = v.latent + i * v.latent_bytes, *footer;
    int64_t slot = slots[i];
    if (slot < 0 || slot >= p.slots) {
        clear(v.dtype, to, INDEX_DIM);
        return;
    }
    const char *data = index_data(p, slot, &footer);
    uint32_t scale;
    if (p.fp4)
        scale = widen_ue8m0((uint8_t)footer[lane / (INDEX_FP4_TILE / 4)]);
    else
        load_bytes<4>(footer, p.wide, &scale);
    for (int d = 4 * lane; d < 4 * lane + 4; d++) {
        uint32_t code = (uint8_t)data[p.fp4 ? d / 2 : d];
        store_product(v.dtype, to, d,
                      p.fp4 ? widen_e2m1(code >> 4 * (d & 1) & 15) : widen_e4m3(code), scale);
    }
}

/* --------------------------------------------------------------------- host */

static bool aligned(const void *pointer, int64_t stride_bytes, int64_t to)
{
    return (uintptr_t)pointer % (uintptr_t)to == 0 && stride_bytes % to == 0;
}

static mla_status check_aligned(const char *call, const char *field, const void *pointer,
                                int64_t item)
{
    if ((uintptr_t)pointer % (uintptr_t)item == 0)
        return MLA_OK;
    return mla_fail(MLA_ERR_ARGUMENT, "%s: %s: got address %p, want a multiple of %d", call, field,
                    pointer, (int)item);
}

static struct rows rows_of(const mla_tensor *latent, const mla_tensor *rope, int64_t latent_width,
                           int64_t rope_width, mla_dtype dtype)
{
    int64_t item = (int64_t)mla_dtype_bytes(dtype);
    struct rows v = {};
    v.dtype = dtype;
    v.latent = (char *)latent->data;
    v.latent_bytes = mla_stride0(latent, latent_width) * item;
    v.wide = aligned(v.latent, v.latent_bytes, 16);
    if (rope_width > 0) {
        v.rope = (char *)rope->data;
        v.rope_bytes = mla_stride0(rope, rope_width) * item;
        v.wide = v.wide && aligned(v.rope, v.rope_bytes, 16);
    }
    return v;
}

static mla_status place_of(const char *call, const mla_cache *c, const struct mla_cache_layout *l,
                           const mla_cache_values *values, struct place *p)
{
    *p = {};
    p->format = c->format;
    p->plain = mla_cache_dtype(c->format);
    p->base = (char *)(l->paged ? c->kv_cache.data : c->kv_c.data);
    p->rope = l->paged || c->qk_rope_dim == 0 ? NULL : (char *)c->k_pe.data;
    p->page_size = c->page_size;
    p->row_bytes = l->row_bytes;
    p->page_bytes = l->page_bytes;
    p->slots = l->slots;
    p->latent = c->kv_lora_rank;
    p->width = c->kv_lora_rank + c->qk_rope_dim;
    /* Parts of packed records begin at multiples of 16 where pages and rows do; footers of model1
     * pages are read byte by byte. The rope part of a plain row follows the latent one. */
    bool footer = c->format == MLA_CACHE_MODEL1 || c->format == MLA_CACHE_V41;
    p->wide = aligned(p->base, l->page_bytes, 16) && (footer || l->row_bytes % 16 == 0) &&
              (l->packed || c->kv_lora_rank * l->item % 16 == 0) && aligned(p->rope, 0, 16);
    int64_t item = (int64_t)mla_dtype_bytes(values->dtype);
    mla_status status = check_aligned(call, "values.kv_c", values->kv_c.data, item);
    if (!status && c->qk_rope_dim > 0)
        status = check_aligned(call, "values.k_pe", values->k_pe.data, item);
    if (!status && !l->packed)
        status = check_aligned(call, l->paged ? "cache.kv_cache" : "cache.kv_c", p->base, l->item);
    if (!status && !l->packed)
        status = check_aligned(call, "cache.k_pe", p->rope, l->item);
    return status;
}

static mla_status launch(const char *call, const mla_context *context, const void *kernel,
                         int64_t tokens, int64_t per_block, void **args, void *stream)
{
    int64_t blocks = (tokens + per_block - 1) / per_block;
    if (blocks == 0)
        return MLA_OK;
    if (blocks > INT32_MAX)
        return mla_fail(MLA_ERR_UNSUPPORTED, "%s: n: got %lld, want at most %lld on CUDA", call,
                        (long long)tokens, (long long)per_block * INT32_MAX);
    int before;
    mla_status status = mla_cuda_enter(context, &before);
    if (status)
        return status;
    cudaError_t error = cudaLaunchKernel(kernel, dim3((unsigned)blocks), dim3(THREADS), args, 0,
                                         (cudaStream_t)stream);
    mla_cuda_leave(context, before);
    return error == cudaSuccess ? MLA_OK : mla_cuda_fail(call, "cudaLaunchKernel", error);
}

extern "C" mla_status mla_cuda_cache_write(const mla_context *context, const mla_cache *cache,
                                           const struct mla_cache_layout *layout,
                                           const mla_cache_values *values, const int64_t *slots,
                                           int64_t n, mla_scale_rule rule, void *stream)
{
    const char *call = "mla_cache_write";
    struct place p;
    mla_status status = place_of(call, cache, layout, values, &p);
    if (status)
        return status;
    struct rows v = rows_of(&values->kv_c, &values->k_pe, cache->kv_lora_rank, cache->qk_rope_dim,
                            values->dtype);
    bool any_scale = rule == MLA_SCALE_F32;
    void *args[] = {&p, &v, &slots, &n, &any_scale};
    bool many = n > 8192;
    return launch(call, context,
                  many ? mla_kernel_address(write_kernel<MANY>)
                       : mla_kernel_address(write_kernel<FEW>),
                  n, many ? MANY : FEW, args, stream);
}

extern "C" mla_status mla_cuda_cache_read(const mla_context *context, const mla_cache *cache,
                                          const struct mla_cache_layout *layout,
                                          const int64_t *slots, int64_t n,
                                          const mla_cache_values *values, void *stream)
{
    const char *call = "mla_cache_read";
    struct place p;
    mla_status status = place_of(call, cache, layout, values, &p);
    if (status)
        return status;
    struct rows v = rows_of(&values->kv_c, &values->k_pe, cache->kv_lora_rank, cache->qk_rope_dim,
                            values->dtype);
    void *args[] = {&p, &v, &slots, &n};
    return launch(call, context, mla_kernel_address(read_kernel), n, THREADS / 32, args, stream);
}

static struct index_place index_place_of(const mla_cache_index *c)
{
    struct index_place p = {};
    p.fp4 = c->format == MLA_INDEX_FP4;
    p.base = (char *)c->pages.data;
    p.page_size = c->page_size;
    p.page_bytes =
        mla_stride0(&c->pages, (int64_t)mla_cache_index_page_bytes(c->format, c->page_size));
    p.slots = c->num_pages * c->page_size;
    p.wide = aligned(p.base, p.page_bytes, 4);
    return p;
}

extern "C" mla_status mla_cuda_cache_index_write(const mla_context *context,
                                                 const mla_cache_index *cache, mla_dtype dtype,
                                                 const mla_tensor *keys, const int64_t *slots,
                                                 int64_t n, mla_scale_rule rule, void *stream)
{
    const char *call = "mla_cache_index_write";
    mla_status status = check_aligned(call, "keys", keys->data, (int64_t)mla_dtype_bytes(dtype));
    if (status)
        return status;
    struct index_place p = index_place_of(cache);
    struct rows v = rows_of(keys, NULL, INDEX_DIM, 0, dtype);
    bool any_scale = rule == MLA_SCALE_F32, many = n > 8192;
    void *args[] = {&p, &v, &slots, &n, &any_scale};
    return launch(call, context,
                  many ? mla_kernel_address(index_write_kernel<MANY>)
                       : mla_kernel_address(index_write_kernel<FEW>),
                  n, many ? MANY : FEW, args, stream);
}

extern "C" mla_status mla_cuda_cache_index_read(const mla_context *context,
                                                const mla_cache_index *cache, const int64_t *slots,
                                                int64_t n, mla_dtype dtype, const mla_tensor *keys,
                                                void *stream)
{
    const char *call = "mla_cache_index_read";
    mla_status status = check_aligned(call, "keys", keys->data, (int64_t)mla_dtype_bytes(dtype));
    if (status)
        return status;
    struct index_place p = index_place_of(cache);
    struct rows v = rows_of(keys, NULL, INDEX_DIM, 0, dtype);
    void *args[] = {&p, &v, &slots, &n};
    return launch(call, context, mla_kernel_address(index_read_kernel), n, THREADS / 32, args,
                  stream);
}
