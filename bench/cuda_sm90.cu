/* SPDX-License-Identifier: Apache-2.0 */
/* The sm_90 kernels beside the portable ones, on the same device data: each case is run by both
 * rows, their outputs compared (largest difference, values that are not finite), and both timed.
 * Events around one run, 256 MB written before each (past L2), median of 15 repetitions. FLOP: of
 * visible pairs, 2 · heads · (d_qk + d_v) each. Masked cases include what the rows make of lists or
 * bits before they attend; "with the mask at hand" is without it. Words on the command line keep
 * the cases whose name holds one of them; "once" runs the portable row a single time, untimed. */
#include "bench/cuda_time.cuh"
#include "device.h"
#include "element.cuh"
#include "kernel.h"

#include <math.h>
#include <string.h>

static bool once;

__device__ uint32_t hash(uint64_t x)
{
    x ^= x >> 33;
    x *= 0xff51afd7ed558ccdull;
    x ^= x >> 33;
    x *= 0xc4ceb9fe1a85ec53ull;
    return (uint32_t)(x >> 32);
}

/* Sum of four uniform bytes: near enough to normal, sd 1. */
__global__ void fill_bf16(uint16_t *out, int64_t n, uint64_t seed)
{
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n;
         i += (int64_t)gridDim.x * blockDim.x) {
        uint32_t h = hash(seed << 40 | i);
        float s =
            (float)(h & 255) + (float)(h >> 8 & 255) + (float)(h >> 16 & 255) + (float)(h >> 24);
        out[i] = (uint16_t)cvt_rn_bf16x2_f32((s - 510) / 147.8f, 0);
    }
}

/* Distinct random positions below 2^bits: a bijection of its numbers. */
__global__ void fill_lists(int32_t *lists, int64_t tokens, int topk, int bits)
{
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < tokens * topk;
         i += (int64_t)gridDim.x * blockDim.x) {
        uint32_t x = (uint32_t)(i % topk), mask = (1u << bits) - 1, key = hash(i / topk + 99);
        for (int r = 0; r < 4; r++) {
            x = (x * 2654435769u + (key >> 8 * r)) & mask;
            x ^= x >> (bits / 2);
        }
        lists[i] = (int32_t)x;
    }
}

/* Random lists of a causal prefill: row i takes one key of each of topk equal parts of its i + 1,
 * or all of them, and -1 behind them. */
__global__ void fill_causal_lists(int32_t *lists, int64_t rows, int topk)
{
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < rows * topk;
         i += (int64_t)gridDim.x * blockDim.x) {
        int64_t row = i / topk, e = i % topk, keys = row + 1;
        int64_t from = e * keys / topk, to = (e + 1) * keys / topk;
        if (keys <= topk)
            lists[i] = e < keys ? (int32_t)e : -1;
        else
            lists[i] = (int32_t)(from + hash((uint64_t)i + 7) % (uint32_t)(to - from));
    }
}

/* Bits of about topk keys a row: at random among the visible ones, or (sink) 64 first keys, the
 * last quarter of topk, and keys in runs of 16 that 512 rows share. */
__global__ void fill_mask(uint32_t *mask, int rows, int words, int topk, bool sink)
{
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < (int64_t)rows * words;
         i += (int64_t)gridDim.x * blockDim.x) {
        int row = (int)(i / words), word = (int)(i % words);
        uint32_t bits = 0;
        for (int b = 0; b < 32; b++) {
            int key = word * 32 + b;
            bool see = row + 1 <= topk;
            if (!see && sink)
                see =
                    key < 64 || key > row - topk / 4 ||
                    (uint64_t)hash((uint64_t)(row / 512) << 32 | key / 16) * (uint32_t)(row + 1) >>
                        32 < (uint32_t)topk * 3 / 4;
            else if (!see)
                see = hash((uint64_t)row << 32 | key) % (uint32_t)(row + 1) < (uint32_t)topk;
            bits |= (uint32_t)(see && key <= row) << b;
        }
        mask[i] = bits;
    }
}

__global__ void count_bits(const uint32_t *mask, int64_t n, unsigned long long *sum)
{
    unsigned long long mine = 0;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n;
         i += (int64_t)gridDim.x * blockDim.x)
        mine += __popc(mask[i]);
    atomicAdd(sum, mine);
}

/* Largest difference (as bits of a float) and the count of values of b that are not finite. */
__global__ void compare(const uint16_t *a, const uint16_t *b, int64_t n, unsigned *result)
{
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n;
         i += (int64_t)gridDim.x * blockDim.x) {
        float x = __uint_as_float((uint32_t)a[i] << 16), y = __uint_as_float((uint32_t)b[i] << 16);
        if (isfinite(y))
            atomicMax(result, __float_as_uint(fabsf(x - y)));
        else
            atomicAdd(result + 1, 1u);
    }
}

template <class X> static X *device(size_t n)
{
    X *p;
    CHECK(cudaMalloc((void **)&p, n * sizeof(X) + 256));
    return p;
}

struct shape {
    const char *name;
    int query_len, keys, heads, topk, d_qk, d_v; /* d_v 512: absorbed */
    int mask;                                    /* 1 random, 2 sink, 3 random lists */
};

static struct mla_job make_job(const mla_context *context, const mla_problem *p,
                               const struct mla_request *r, const struct mla_kernel *kernel)
{
    struct mla_job job = {};
    char why[160] = "";
    job.context = (mla_context *)context;
    job.problem = p;
    job.kernel = kernel;
    job.named = true;
    job.requests = r;
    job.num_requests = 1;
    if (!kernel->supports(&job, why, sizeof why) || kernel->prepare(&job) != MLA_OK) {
        printf("%s refused: %s %s\n", kernel->name, why, mla_last_error());
        exit(1);
    }
    return job;
}

static void run_shape(const struct shape *s)
{
    const bool absorbed = s->d_v == 512;
    int64_t rows = s->query_len;
    int32_t cu[2] = {0, s->query_len}, lens[1] = {s->keys};
    struct mla_request request = {0, 0, s->query_len, 0, s->keys};
    mla_problem p = {};
    p.form = absorbed ? MLA_FORM_ABSORBED : MLA_FORM_EXPANDED;
    p.batch = 1;
    p.cu_seqlens_q = cu;
    p.seq_lens_kv = lens;
    p.heads_q = s->heads;
    p.heads_kv = absorbed ? 1 : s->heads;
    p.q_dtype = p.kv_dtype = p.out_dtype = MLA_BF16;
    p.softmax_scale = 0.0721688;
    p.wants_lse = true;
    mla_tensors t = {};
    uint16_t *q = device<uint16_t>(rows * s->heads * s->d_qk);
    int64_t out_size = rows * s->heads * s->d_v;
    uint16_t *out[2] = {device<uint16_t>(out_size), device<uint16_t>(out_size)};
    float *lse = device<float>(rows * s->heads);
    uint16_t *k, *v = NULL;
    void *lists = NULL;
    double pairs = (double)rows * s->topk;
    fill_bf16<<<4096, 256>>>(q, rows * s->heads * s->d_qk, 1);
    if (absorbed) {
        int bits = 0;
        while (1 << bits < s->keys)
            bits++;
        p.kv_lora_rank = 512;
        p.qk_rope_dim = s->d_qk - 512;
        p.cache_format = MLA_CACHE_BF16;
        p.topk = s->topk;
        k = device<uint16_t>((int64_t)s->keys * s->d_qk);
        fill_bf16<<<4096, 256>>>(k, (int64_t)s->keys * s->d_qk, 2);
        t.kv_c.data = k;
        t.kv_c.stride[0] = s->d_qk;
        t.k_pe.data = k + 512;
        t.k_pe.stride[0] = s->d_qk;
        lists = device<int32_t>(rows * s->topk);
        fill_lists<<<4096, 256>>>((int32_t *)lists, rows, s->topk, bits);
        t.topk_indices.data = lists;
    } else {
        p.causal = true;
        p.qk_nope_dim = s->d_qk == 192 ? 128 : s->d_qk;
        p.qk_rope_dim = s->d_qk - p.qk_nope_dim;
        p.v_dim = s->d_v;
        k = device<uint16_t>((int64_t)s->keys * s->heads * s->d_qk);
        v = device<uint16_t>((int64_t)s->keys * s->heads * s->d_v);
        fill_bf16<<<4096, 256>>>(k, (int64_t)s->keys * s->heads * s->d_qk, 2);
        fill_bf16<<<4096, 256>>>(v, (int64_t)s->keys * s->heads * s->d_v, 3);
        t.k.data = k;
        t.v.data = v;
        pairs = (double)rows * (rows + 1) / 2;
        if (s->mask == 3) {
            p.topk = s->topk;
            lists = device<int32_t>(rows * s->topk);
            fill_causal_lists<<<4096, 256>>>((int32_t *)lists, rows, s->topk);
            t.topk_indices.data = lists;
            pairs = (double)s->topk * (s->topk + 1) / 2 + (double)(rows - s->topk) * s->topk;
        } else if (s->mask) {
            int words = (s->keys + 31) / 32;
            unsigned long long *sum = device<unsigned long long>(1), host = 0;
            lists = device<uint32_t>(rows * words);
            CHECK(cudaMemset(sum, 0, 8));
            fill_mask<<<4096, 256>>>((uint32_t *)lists, (int)rows, words, s->topk, s->mask == 2);
            count_bits<<<256, 256>>>((uint32_t *)lists, rows * words, sum);
            CHECK(cudaMemcpy(&host, sum, 8, cudaMemcpyDeviceToHost));
            CHECK(cudaFree(sum));
            pairs = (double)host;
            p.has_mask = true;
            t.mask.data = lists;
        }
    }
    t.q.data = q;
    t.lse.data = lse;
    mla_context context = {};
    context.backend = MLA_BACKEND_CUDA;
    context.sm = 90;
    const struct mla_kernel *kernels[2] = {absorbed ? &mla_mqa_any : &mla_mha_any,
                                           !absorbed        ? &mla_mha_prefill_sm90
                                           : s->heads <= 32 ? &mla_sparse_mqa_few_sm90
                                                            : &mla_sparse_mqa_prefill_sm90};
    double ms[2] = {0, 0}, alone = 0;
    for (int i = 0; i < 2; i++) {
        struct mla_job job = make_job(&context, &p, &request, kernels[i]);
        char *work = device<char>(job.workspace_bytes);
        CHECK(cudaMemset(out[i], 0xFF, out_size * 2));
        t.out.data = out[i];
        auto launch = [&] {
            if (job.kernel->run(&job, &t, work, NULL) != MLA_OK) {
                printf("%s\n", mla_last_error());
                exit(1);
            }
        };
        launch();
        CHECK(cudaDeviceSynchronize());
        if (i == 1 || !once)
            ms[i] = median_ms(launch);
        if (i == 1 && s->mask && !absorbed) {
            job.alone = t.same_lists = true;
            alone = median_ms(launch);
        }
        CHECK(cudaDeviceSynchronize());
        job.kernel->release(&job);
        CHECK(cudaFree(work));
    }
    unsigned *result = device<unsigned>(2), host[2];
    float worst;
    CHECK(cudaMemset(result, 0, 8));
    compare<<<4096, 256>>>(out[0], out[1], out_size, result);
    CHECK(cudaMemcpy(host, result, 8, cudaMemcpyDeviceToHost));
    memcpy(&worst, &host[0], 4);
    double flop = 2.0 * pairs * s->heads * (s->d_qk + s->d_v);
    printf("%-30s %8.4f ms %6.1f TFLOP/s", s->name, ms[1], flop / ms[1] * 1e-9);
    if (absorbed)
        printf(" %5.0f GB/s", pairs * s->d_qk * 2 / ms[1] * 1e-6);
    if (alone > 0)
        printf("   with the mask at hand %8.4f ms", alone);
    if (!once)
        printf("   portable %8.4f ms, x %.2f", ms[0], ms[0] / ms[1]);
    printf("   largest difference %.3e, not finite %u\n", worst, host[1]);
    fflush(stdout);
    void *all[] = {q, out[0], out[1], lse, k, v, lists, result};
    for (void *pointer : all)
        CHECK(cudaFree(pointer));
}

int main(int argc, char **argv)
{
    static const struct shape shapes[] = {
        {"mha s8192 h128", 8192, 8192, 128, 0, 192, 128, 0},
        {"mha s4096 h128", 4096, 4096, 128, 0, 192, 128, 0},
        {"mha s2048 h128", 2048, 2048, 128, 0, 192, 128, 0},
        {"mha s8192 h16", 8192, 8192, 16, 0, 192, 128, 0},
        {"mha s2048 h16", 2048, 2048, 16, 0, 192, 128, 0},
        {"mha-random s8192 h128", 8192, 8192, 128, 2048, 192, 128, 1},
        {"mha-random s8192 h16", 8192, 8192, 16, 2048, 192, 128, 1},
        {"mha-sink s8192 h128", 8192, 8192, 128, 2048, 192, 128, 2},
        {"mha-lists s8192 h128", 8192, 8192, 128, 2048, 192, 128, 3},
        {"mha-lists s8192 h16", 8192, 8192, 16, 2048, 192, 128, 3},
        {"mha-lists s4096 h128", 4096, 4096, 128, 2048, 192, 128, 3},
        {"mha-256 s8192 h64", 8192, 8192, 64, 0, 256, 256, 0},
        {"mha-128 s8192 h64", 8192, 8192, 64, 0, 128, 128, 0},
        {"mha-256 s4096 h32", 4096, 4096, 32, 0, 256, 256, 0},
        {"mha-128 s4096 h32", 4096, 4096, 32, 0, 128, 128, 0},
        {"sparse kv8k h128", 4096, 8192, 128, 2048, 576, 512, 0},
        {"sparse kv32k h128", 4096, 32768, 128, 2048, 576, 512, 0},
        {"sparse kv128k h128", 4096, 131072, 128, 2048, 576, 512, 0},
        {"sparse kv32k h64", 4096, 32768, 64, 2048, 576, 512, 0},
        {"sparse kv8k h64", 4096, 8192, 64, 2048, 576, 512, 0},
        {"sparse kv32k h16", 4096, 32768, 16, 2048, 576, 512, 0},
        {"sparse kv32k h32", 4096, 32768, 32, 2048, 576, 512, 0},
        {"sparse q64 kv32k h128", 64, 32768, 128, 2048, 576, 512, 0},
    };
    std::vector<const char *> words;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "once") == 0)
            once = true;
        else
            words.push_back(argv[i]);
    }
    CHECK(cudaSetDevice(0));
    flush_buffer = device<char>(FLUSH);
    for (const struct shape &s : shapes) {
        bool wanted = words.empty();
        for (const char *word : words)
            wanted |= strstr(s.name, word) != NULL;
        if (wanted)
            run_shape(&s);
    }
    return 0;
}
