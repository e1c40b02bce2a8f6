/* SPDX-License-Identifier: Apache-2.0 */
/* The functional model as kernels see it: what the functions of ptx/ call instead of instructions.
 * at = the file and line of the kernel's call. Behind them: engine.h. */
#ifndef MLA_CUDA_MODEL_DEVICE_H
#define MLA_CUDA_MODEL_DEVICE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct model_at {
    const char *file;
    int line;
};

struct model_thread_index {
    unsigned x, y, z;
};

struct model_fiber;
struct model_warp;
struct model_block;

/* Of the running thread: set whenever another one goes on. */
extern struct model_thread_index threadIdx, blockIdx, blockDim, gridDim;

/* shared memory */
char *model_dynamic_pointer(uint32_t align);
uint32_t model_dynamic_address(struct model_at at);
void model_ld_shared(void *value, uint32_t address, uint32_t bytes, struct model_at at);
void model_st_shared(uint32_t address, const void *value, uint32_t bytes, struct model_at at);
void model_ld_shared_cluster(void *value, uint32_t address, uint32_t bytes, struct model_at at);
void model_st_shared_cluster(uint32_t address, const void *value, uint32_t bytes,
                             struct model_at at);
uint32_t model_mapa(uint32_t address, uint32_t rank, struct model_at at);
uint32_t model_atom_add_shared(uint32_t address, uint32_t value, struct model_at at);
void model_fence_proxy_async(struct model_at at);
uint32_t model_generic_to_shared(const void *pointer);

/* warps and grids */
bool model_elect(struct model_at at);
uint32_t model_warp_index(struct model_at at);
void model_setmaxnreg(int registers, bool more, struct model_at at);
void model_griddep_wait(struct model_at at);
void model_griddep_launch_dependents(struct model_at at);
void model_role(const char *name);

/* barriers */
enum model_reduction { MODEL_OR, MODEL_AND, MODEL_COUNT };
void model_syncthreads(struct model_at at);
int model_syncthreads_reduce(int predicate, enum model_reduction kind, struct model_at at);
void model_bar_sync(int id, int threads, struct model_at at);
int model_bar_sync_or(int id, int threads, int predicate, struct model_at at);
void model_bar_arrive(int id, int threads, struct model_at at);
uint32_t model_cluster_ctarank(struct model_at at);
uint32_t model_cluster_nctarank(struct model_at at);
void model_cluster_arrive(struct model_at at);
void model_cluster_wait(struct model_at at);
void model_mbarrier_init(uint32_t bar, uint32_t count, struct model_at at);
void model_mbarrier_inval(uint32_t bar, struct model_at at);
void model_fence_mbarrier_init(struct model_at at);
void model_mbarrier_arrive(uint32_t bar, struct model_at at);
void model_mbarrier_arrive_cluster(uint32_t bar, struct model_at at);
void model_mbarrier_expect_tx(uint32_t bar, uint32_t bytes, struct model_at at);
void model_mbarrier_arrive_expect_tx(uint32_t bar, uint32_t bytes, struct model_at at);
void model_mbarrier_arrive_expect_tx_cluster(uint32_t bar, uint32_t bytes, struct model_at at);
void model_mbarrier_complete_tx(uint32_t bar, uint32_t bytes, struct model_at at);
bool model_mbarrier_try_wait(uint32_t bar, uint32_t parity, struct model_at at);
void model_mbarrier_wait(uint32_t bar, uint32_t parity, struct model_at at);

/* CUDA's built-in functions of a warp */
enum model_shuffle_kind { MODEL_FROM, MODEL_XOR, MODEL_UP, MODEL_DOWN };
enum model_reduce_kind {
    MODEL_REDUCE_ADD,
    MODEL_REDUCE_MAX,
    MODEL_REDUCE_MIN,
    MODEL_REDUCE_OR,
    MODEL_REDUCE_AND,
    MODEL_REDUCE_XOR
};
void model_syncwarp(uint32_t mask, struct model_at at);
uint32_t model_activemask(struct model_at at);
void model_shuffle(const char *name, uint32_t mask, void *value, size_t bytes,
                   enum model_shuffle_kind kind, int operand, int width, struct model_at at);
uint32_t model_vote(const char *name, uint32_t mask, int predicate, struct model_at at);
uint32_t model_reduce(const char *name, uint32_t mask, uint32_t value, enum model_reduce_kind kind,
                      bool is_signed, struct model_at at);
uint32_t model_match(uint32_t mask, uint64_t value, struct model_at at);
void model_atomic(struct model_at at); /* before one: others may run */

/* copies and matrices of sm_80 */
void model_cp_async(uint32_t smem, const void *gmem, uint32_t bytes, uint32_t valid,
                    struct model_at at);
void model_cp_async_commit(struct model_at at);
void model_cp_async_wait_group(int groups, struct model_at at);
void model_cp_async_wait_all(struct model_at at);
void model_cp_async_mbarrier_arrive_noinc(uint32_t bar, struct model_at at);
void model_mma_m16n8k16(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1, bool is_bf16,
                        struct model_at at);
void model_ldmatrix_x4(uint32_t r[4], uint32_t smem, bool transposed, struct model_at at);

/* arithmetic */
uint32_t model_cvt_rn_bf16x2_f32(float low, float high);
uint32_t model_cvt_rn_f16x2_f32(float low, float high);
uint32_t model_cvt_rn_f16x2_e4m3x2(uint16_t two);
uint16_t model_cvt_rn_satfinite_e4m3x2_f32(float low, float high);
float model_ex2_approx_ftz(float x);
uint64_t model_pack_f32x2(float low, float high);
void model_unpack_f32x2(float *low, float *high, uint64_t two);
uint64_t model_fma_rn_f32x2(uint64_t a, uint64_t b, uint64_t c);
uint64_t model_mul_rn_f32x2(uint64_t a, uint64_t b);
uint64_t model_add_rn_f32x2(uint64_t a, uint64_t b);
float model_max3_f32(float a, float b, float c);

/* ------------------------------------------------------------------ kernels and their addresses */

/* What a kernel's address points to in the model. */
struct model_kernel {
    void (*call)(void **args);
    const char *name;          /* a sentence of the compiler that holds the kernel's name */
    const char *file;          /* its source */
    int dynamic_bytes_allowed; /* by cudaFuncSetAttribute; 0 = the default */
    bool cluster_any;          /* non-portable cluster sizes allowed */
};

template <int... I> struct model_sequence {
};
template <int N, int... I> struct model_count : model_count<N - 1, N - 1, I...> {
};
template <int... I> struct model_count<0, I...> {
    typedef model_sequence<I...> type;
};

template <class T> struct model_plain {
    typedef T type;
};
template <class T> struct model_plain<const T> {
    typedef T type;
};

template <auto K> struct model_registered;
template <class... A, void (*K)(A...)> struct model_registered<K> {
    template <int... I> static void unpack(void **args, model_sequence<I...>)
    {
        (void)args; /* a kernel may have none */
        K(*(typename model_plain<A>::type *)args[I]...);
    }
    static void call(void **args)
    {
        unpack(args, typename model_count<sizeof...(A)>::type());
    }
    static const char *name()
    {
        return __PRETTY_FUNCTION__;
    }
};

template <auto K> const void *model_kernel_address(const char *file)
{
    static struct model_kernel kernel = {model_registered<K>::call, model_registered<K>::name(),
                                         file, 0, false};
    return &kernel;
}

#endif
