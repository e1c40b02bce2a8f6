/* SPDX-License-Identifier: Apache-2.0 */
/* What CUDA C++ has beyond C++, for kernels in the model; forced into every .cu file as nvcc does
 * with its own. Vector types and functions are those that libmla's kernels use. */
#ifndef MLA_MODEL_CUDA_RUNTIME_H
#define MLA_MODEL_CUDA_RUNTIME_H

#include "cuda_runtime_api.h"
#include "ptx/at.cuh"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define __host__
#define __device__
#define __global__
#define __constant__
#define __grid_constant__
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(n) __attribute__((aligned(n)))
#define __restrict__ __restrict
/* One block of such a kernel runs at a time. */
#define __shared__ static

static const int warpSize = 32;

struct __align__(8) float2
{
    float x, y;
};
struct __align__(16) float4
{
    float x, y, z, w;
};
struct __align__(8) int2
{
    int x, y;
};
struct __align__(16) int4
{
    int x, y, z, w;
};
struct __align__(8) uint2
{
    unsigned x, y;
};
struct __align__(16) uint4
{
    unsigned x, y, z, w;
};
struct __align__(16) ulonglong2
{
    unsigned long long x, y;
};

static inline float2 make_float2(float x, float y)
{
    return {x, y};
}
static inline float4 make_float4(float x, float y, float z, float w)
{
    return {x, y, z, w};
}
static inline int2 make_int2(int x, int y)
{
    return {x, y};
}
static inline int4 make_int4(int x, int y, int z, int w)
{
    return {x, y, z, w};
}
static inline uint2 make_uint2(unsigned x, unsigned y)
{
    return {x, y};
}
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w)
{
    return {x, y, z, w};
}
static inline ulonglong2 make_ulonglong2(unsigned long long x, unsigned long long y)
{
    return {x, y};
}

/* ------------------------------------------------------------------ bits and numbers */

template <class To, class From> static inline To model_bits(From from)
{
    static_assert(sizeof(To) == sizeof(From), "same size");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}

static inline float __uint_as_float(unsigned x)
{
    return model_bits<float>(x);
}
static inline unsigned __float_as_uint(float x)
{
    return model_bits<unsigned>(x);
}
static inline float __int_as_float(int x)
{
    return model_bits<float>(x);
}
static inline int __float_as_int(float x)
{
    return model_bits<int>(x);
}
static inline double __longlong_as_double(long long x)
{
    return model_bits<double>(x);
}
static inline long long __double_as_longlong(double x)
{
    return model_bits<long long>(x);
}
static inline int __popc(unsigned x)
{
    return __builtin_popcount(x);
}
static inline int __popcll(unsigned long long x)
{
    return __builtin_popcountll(x);
}
static inline int __ffs(int x)
{
    return __builtin_ffs(x);
}
static inline int __ffsll(long long x)
{
    return __builtin_ffsll(x);
}
static inline int __clz(int x)
{
    return x ? __builtin_clz((unsigned)x) : 32;
}
static inline int __clzll(long long x)
{
    return x ? __builtin_clzll((unsigned long long)x) : 64;
}
static inline unsigned __brev(unsigned x)
{
    unsigned r = 0;
    for (int i = 0; i < 32; i++)
        r |= (x >> i & 1) << (31 - i);
    return r;
}
static inline unsigned __umulhi(unsigned a, unsigned b)
{
    return (unsigned)((uint64_t)a * b >> 32);
}
static inline unsigned __byte_perm(unsigned a, unsigned b, unsigned select)
{
    uint64_t both = (uint64_t)b << 32 | a;
    unsigned r = 0;
    for (int i = 0; i < 4; i++) {
        unsigned s = select >> 4 * i & 15, byte = (unsigned)(both >> 8 * (s & 7)) & 255;
        r |= (s & 8 ? (byte & 128 ? 255u : 0u) : byte) << 8 * i;
    }
    return r;
}
static inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift)
{
    return (unsigned)(((uint64_t)high << 32 | low) << (shift & 31) >> 32);
}
static inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift)
{
    return (unsigned)(((uint64_t)high << 32 | low) >> (shift & 31));
}
/* Compiled with -ffp-contract=off, in round-to-nearest: plain operators are what these ask for. */
static inline float __fdiv_rn(float a, float b)
{
    return a / b;
}
static inline float __fmul_rn(float a, float b)
{
    return a * b;
}
static inline float __fadd_rn(float a, float b)
{
    return a + b;
}
static inline float __fmaf_rn(float a, float b, float c)
{
    return fmaf(a, b, c);
}
static inline float __fdividef(float a, float b)
{
    return a / b;
}
static inline float __frcp_rn(float a)
{
    return 1.0f / a;
}
/* glibc has declared functions of these names. */
#define __expf(x) expf(x)
#define __log2f(x) log2f(x)
#define __logf(x) logf(x)
static inline float __double2float_rn(double x)
{
    return (float)x;
}
static inline int __float2int_rn(float x)
{
    return x != x ? 0 : x >= 0x1p31f ? INT32_MAX : x < -0x1p31f ? INT32_MIN : (int)nearbyintf(x);
}
static inline int __float2int_rd(float x)
{
    return x != x ? 0 : x >= 0x1p31f ? INT32_MAX : x < -0x1p31f ? INT32_MIN : (int)floorf(x);
}
static inline float __int2float_rn(int x)
{
    return (float)x;
}
static inline float __uint2float_rn(unsigned x)
{
    return (float)x;
}

#define MODEL_MIN_MAX(type)                                                                        \
    static inline type min(type a, type b)                                                         \
    {                                                                                              \
        return b < a ? b : a;                                                                      \
    }                                                                                              \
    static inline type max(type a, type b)                                                         \
    {                                                                                              \
        return a < b ? b : a;                                                                      \
    }
MODEL_MIN_MAX(int)
MODEL_MIN_MAX(unsigned)
MODEL_MIN_MAX(long)
MODEL_MIN_MAX(unsigned long)
MODEL_MIN_MAX(long long)
MODEL_MIN_MAX(unsigned long long)
#undef MODEL_MIN_MAX
static inline unsigned min(int a, unsigned b)
{
    return min((unsigned)a, b);
}
static inline unsigned min(unsigned a, int b)
{
    return min(a, (unsigned)b);
}
static inline unsigned max(int a, unsigned b)
{
    return max((unsigned)a, b);
}
static inline unsigned max(unsigned a, int b)
{
    return max(a, (unsigned)b);
}
static inline float min(float a, float b)
{
    return fminf(a, b);
}
static inline float max(float a, float b)
{
    return fmaxf(a, b);
}
static inline double min(double a, double b)
{
    return fmin(a, b);
}
static inline double max(double a, double b)
{
    return fmax(a, b);
}
static inline float rsqrtf(float x)
{
    return 1.0f / sqrtf(x);
}

/* ------------------------------------------------------------------ memory */

template <class T> static inline T __ldg(const T *p)
{
    return *p;
}
template <class T> static inline T __ldcs(const T *p)
{
    return *p;
}
template <class T> static inline T __ldcg(const T *p)
{
    return *p;
}
template <class T> static inline void __stcs(T *p, T value)
{
    *p = value;
}
template <class T> static inline void __stcg(T *p, T value)
{
    *p = value;
}
static inline size_t __cvta_generic_to_shared(const void *p)
{
    return model_generic_to_shared(p);
}
static inline void __threadfence(void)
{
}
static inline void __threadfence_block(void)
{
}

/* Threads switch only inside model functions: a plain read-modify-write is atomic. */
#define MODEL_ATOMIC(name, expression)                                                             \
    template <class T> static inline T name(T *p, T value MLA_AT)                                  \
    {                                                                                              \
        model_atomic(at);                                                                          \
        T old = *p;                                                                                \
        *p = expression;                                                                           \
        return old;                                                                                \
    }
MODEL_ATOMIC(atomicAdd, (T)(old + value))
MODEL_ATOMIC(atomicOr, (T)(old | value))
MODEL_ATOMIC(atomicAnd, (T)(old &value))
MODEL_ATOMIC(atomicXor, (T)(old ^ value))
MODEL_ATOMIC(atomicMax, old < value ? value : old)
MODEL_ATOMIC(atomicMin, value < old ? value : old)
MODEL_ATOMIC(atomicExch, value)
#undef MODEL_ATOMIC
static inline unsigned atomicAdd(unsigned *p, int value)
{
    return atomicAdd(p, (unsigned)value);
}
template <class T> static inline T atomicCAS(T *p, T compare, T value MLA_AT)
{
    model_atomic(at);
    T old = *p;
    if (old == compare)
        *p = value;
    return old;
}

/* ------------------------------------------------------------------ threads together */

static inline void __syncthreads(MLA_AT0)
{
    model_syncthreads(at);
}
static inline int __syncthreads_or(int predicate MLA_AT)
{
    return model_syncthreads_reduce(predicate, MODEL_OR, at);
}
static inline int __syncthreads_and(int predicate MLA_AT)
{
    return model_syncthreads_reduce(predicate, MODEL_AND, at);
}
static inline int __syncthreads_count(int predicate MLA_AT)
{
    return model_syncthreads_reduce(predicate, MODEL_COUNT, at);
}
static inline void __syncwarp(unsigned mask = 0xFFFFFFFFu MLA_AT)
{
    model_syncwarp(mask, at);
}
static inline unsigned __activemask(MLA_AT0)
{
    return model_activemask(at);
}

#define MODEL_SHUFFLE(name, kind, operand)                                                         \
    template <class T>                                                                             \
    static inline T name(unsigned mask, T value, operand, int width = 32 MLA_AT)                   \
    {                                                                                              \
        static_assert(sizeof(T) == 4 || sizeof(T) == 8, "4 or 8 bytes");                           \
        model_shuffle(#name, mask, &value, sizeof value, kind, (int)lane, width, at);              \
        return value;                                                                              \
    }
MODEL_SHUFFLE(__shfl_sync, MODEL_FROM, int lane)
MODEL_SHUFFLE(__shfl_xor_sync, MODEL_XOR, int lane)
MODEL_SHUFFLE(__shfl_up_sync, MODEL_UP, unsigned lane)
MODEL_SHUFFLE(__shfl_down_sync, MODEL_DOWN, unsigned lane)
#undef MODEL_SHUFFLE

static inline unsigned __ballot_sync(unsigned mask, int predicate MLA_AT)
{
    return model_vote("__ballot_sync", mask, predicate, at);
}
static inline int __any_sync(unsigned mask, int predicate MLA_AT)
{
    return model_vote("__any_sync", mask, predicate, at) != 0;
}
static inline int __all_sync(unsigned mask, int predicate MLA_AT)
{
    return model_vote("__all_sync", mask, !predicate, at) == 0;
}

#define MODEL_REDUCE(name, type, kind, is_signed)                                                  \
    static inline type name(unsigned mask, type value MLA_AT)                                      \
    {                                                                                              \
        return (type)model_reduce(#name, mask, (unsigned)value, kind, is_signed, at);              \
    }
MODEL_REDUCE(__reduce_add_sync, unsigned, MODEL_REDUCE_ADD, false)
MODEL_REDUCE(__reduce_max_sync, unsigned, MODEL_REDUCE_MAX, false)
MODEL_REDUCE(__reduce_min_sync, unsigned, MODEL_REDUCE_MIN, false)
MODEL_REDUCE(__reduce_or_sync, unsigned, MODEL_REDUCE_OR, false)
MODEL_REDUCE(__reduce_and_sync, unsigned, MODEL_REDUCE_AND, false)
MODEL_REDUCE(__reduce_xor_sync, unsigned, MODEL_REDUCE_XOR, false)
MODEL_REDUCE(__reduce_add_sync, int, MODEL_REDUCE_ADD, true)
MODEL_REDUCE(__reduce_max_sync, int, MODEL_REDUCE_MAX, true)
MODEL_REDUCE(__reduce_min_sync, int, MODEL_REDUCE_MIN, true)
#undef MODEL_REDUCE

template <class T> static inline unsigned __match_any_sync(unsigned mask, T value MLA_AT)
{
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "4 or 8 bytes");
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    return model_match(mask, bits, at);
}

#endif
