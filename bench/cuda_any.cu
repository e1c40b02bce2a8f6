/* SPDX-License-Identifier: Apache-2.0 */
/* Times of the absorbed-form kernels of cuda/any beside the device's own ceilings, measured in the
 * same run: mma.sync from registers, a reading loop, a gather of random cache rows. Events around
 * one run, 256 MB written before each (past L2), median of the repetitions. FLOP: 2 · pairs ·
 * heads · (576 + 512); bytes: gathered rows once a query token, dense caches once, q and out.
 * Values are checked by test_cuda_any, not here. A word on the command line keeps the shapes whose
 * name holds it. */
#include "any/mqa.h"
#include "bench/cuda_time.cuh"
#include "device.h"
#include "element.cuh"
#include "record.h"

#include <string.h>

static const int L = 512, D = 576;

/* ----------------------------------------------------------------- ceilings */

__global__ void __launch_bounds__(256) mma_loop(float *out, int rounds, uint32_t seed)
{
    float c[8][4] = {};
    uint32_t a[4], b[2], sign = 0;
    for (int i = 0; i < 4; i++)
        a[i] = 0x3F803F80u ^ (seed * (threadIdx.x + i) & 0x807F807Fu);
    b[0] = a[0] ^ 0x00110022u;
    b[1] = a[1] ^ 0x80330044u;
    for (int r = 0; r < rounds; r++) {
#pragma unroll
        for (int i = 0; i < 8; i++)
            mma_m16n8k16_bf16(c[i], a, b[0] ^ sign, b[1] ^ sign);
        sign ^= 0x80008000u; /* sums stay near zero */
    }
    float sum = 0;
    for (int i = 0; i < 8; i++)
        sum += c[i][0] + c[i][1] + c[i][2] + c[i][3];
    out[blockIdx.x * 256 + threadIdx.x] = sum;
}

__global__ void read_loop(const uint4 *in, int64_t n, uint32_t *out)
{
    uint32_t sum = 0;
    int64_t step = (int64_t)gridDim.x * blockDim.x;
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    for (; i + 3 * step < n; i += 4 * step) {
        uint4 a = in[i], b = in[i + step], c = in[i + 2 * step], d = in[i + 3 * step];
        sum ^= a.x ^ a.y ^ a.z ^ a.w ^ b.x ^ b.y ^ b.z ^ b.w;
        sum ^= c.x ^ c.y ^ c.z ^ c.w ^ d.x ^ d.y ^ d.z ^ d.w;
    }
    if (sum == 0x12345)
        out[0] = sum;
}

/* 72 threads a row of 1152 bytes, 8 rows a round, 8 loads in flight a thread. */
__global__ void __launch_bounds__(576)
    gather_loop(const char *rows, const int32_t *list, int topk, uint32_t *out)
{
    const int32_t *mine = list + (int64_t)blockIdx.x * topk;
    int part = threadIdx.x % 72, first = threadIdx.x / 72;
    uint32_t sum = 0;
    for (int j = first; j < topk; j += 64) {
        uint4 v[8];
#pragma unroll
        for (int i = 0; i < 8; i++)
            v[i] = *(const uint4 *)(rows + (int64_t)mine[j + 8 * i] * 1152 + part * 16);
#pragma unroll
        for (int i = 0; i < 8; i++)
            sum ^= v[i].x ^ v[i].y ^ v[i].z ^ v[i].w;
    }
    if (sum == 0x12345)
        out[0] = sum;
}

/* -------------------------------------------------------------------- data */

__device__ uint32_t hash(uint64_t x)
{
    x ^= x >> 33;
    x *= 0xff51afd7ed558ccdull;
    x ^= x >> 33;
    x *= 0xc4ceb9fe1a85ec53ull;
    return (uint32_t)(x >> 32);
}

/* Sum of four uniform bytes: near enough to normal, sd 1. */
__device__ float about_normal(uint64_t i)
{
    uint32_t h = hash(i);
    float s = (float)(h & 255) + (float)(h >> 8 & 255) + (float)(h >> 16 & 255) + (float)(h >> 24);
    return (s - 510) / 147.8f;
}

__global__ void fill_bf16(uint16_t *out, int64_t n, uint64_t seed)
{
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n;
         i += (int64_t)gridDim.x * blockDim.x)
        out[i] = (uint16_t)cvt_rn_bf16x2_f32(about_normal(seed + i), 0);
}

__global__ void fill_fp8(char *rows, int64_t n)
{
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n * FP8_ROW_BYTES;
         i += (int64_t)gridDim.x * blockDim.x) {
        int64_t row = i / FP8_ROW_BYTES;
        int at = (int)(i % FP8_ROW_BYTES);
        uint32_t h = hash(i);
        if (at < FP8_SCALES_AT)
            rows[i] = (char)((h & 0x80) | (0x28 + h % 24));
        else if (at < FP8_ROPE_AT)
            rows[i] = (char)(at % 4 == 3 ? 0x3F : at % 4 == 2 ? 0x80 : 0); /* 1.0 */
        else if (at % 2 == 0)
            *(uint16_t *)(rows + i) = (uint16_t)cvt_rn_bf16x2_f32(about_normal(row * 64 + at), 0);
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

/* Lists as attention sinks, recent keys and heavy hitters make them (fill sink of mla make): the
 * first 4 keys, the last quarter, and one key of each of equal strata between them, the same one
 * for 64 rows except in one stratum of eight, which a row fills for itself. Rows are the last ones
 * of a causal request; the order of a row is scattered. topk is a power of two. */
__global__ void fill_sink_lists(int32_t *lists, int64_t tokens, int topk, int keys)
{
    const int sinks = 4, recent = (topk - sinks) / 4, strata = topk - sinks - recent;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < tokens * topk;
         i += (int64_t)gridDim.x * blockDim.x) {
        int64_t row = i / topk, first = row / 64 * 64;
        int e = (int)(i % topk), end = keys - (int)(tokens - 1 - row), key = e;
        int top = keys - (int)(tokens - 1 - first) - recent, stratum = e - sinks;
        if (e >= topk - recent) {
            key = end - (topk - e);
        } else if (e >= sinks) {
            int from = sinks + (int)((int64_t)(top - sinks) * stratum / strata);
            int to = sinks + (int)((int64_t)(top - sinks) * (stratum + 1) / strata);
            uint32_t own = hash(row * topk + e);
            key = from + (int)((own & 7 ? hash(stratum) : own >> 3) % (uint32_t)(to - from));
        }
        lists[row * topk + (int64_t)e * 1021 % topk] = key;
    }
}

/* Pages of all requests, scattered by an odd multiplier; n is a power of two. */
__global__ void fill_table(int32_t *table, int64_t n)
{
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n;
         i += (int64_t)gridDim.x * blockDim.x)
        table[i] = (int32_t)((uint64_t)i * 40503u % (uint64_t)n);
}

template <class X> static X *device(size_t n)
{
    X *p;
    CHECK(cudaMalloc((void **)&p, n * sizeof(X) + 256));
    return p;
}

/* ------------------------------------------------------------------ shapes */

struct shape {
    const char *name;
    int batch, query_len, keys, heads, topk;
    bool fp8, paged, causal, sink;
    int splits[3]; /* asked of sm_90's kernel, beside its own choice */
};

static int sm; /* of the device */

struct ceilings {
    double mma, read, gather_8k, gather_32k, gather_128k;
};

/* Times one row of the table on a shape; splits 0 = its own choice. */
static void run_kernel(const struct shape *s, const struct ceilings *ceil, const mla_problem *p,
                       const mla_tensors *t, const struct mla_request *requests,
                       const struct mla_kernel *kernel, int splits)
{
    mla_context context = {};
    context.backend = MLA_BACKEND_CUDA;
    context.sm = sm;
    struct mla_job job = {};
    job.context = &context;
    job.problem = p;
    job.kernel = kernel;
    job.requests = requests;
    job.num_requests = s->batch;
    job.wanted_splits = splits;
    job.named = true;
    char why[160] = "";
    if (!job.kernel->supports(&job, why, sizeof why) || job.kernel->prepare(&job) != MLA_OK) {
        printf("%-34s refused: %s %s\n", s->name, why, mla_last_error());
        exit(1);
    }
    char *work = device<char>(job.workspace_bytes);
    CHECK(cudaDeviceSynchronize());
    double ms = median_ms([&] {
        if (job.kernel->run(&job, t, work, NULL) != MLA_OK) {
            printf("%s\n", mla_last_error());
            exit(1);
        }
    });
    double tokens = (double)s->batch * s->query_len, slots = (double)s->batch * s->keys;
    double pairs = tokens * (s->topk ? s->topk : s->keys);
    if (!s->topk && s->causal)
        pairs -= tokens * 0.5 * (s->query_len - 1);
    double flop = 2.0 * pairs * s->heads * (D + L), rate = flop / ms * 1e-9;
    double bytes = (s->topk ? pairs : slots) * (s->fp8 ? FP8_ROW_BYTES : 2 * D) +
                   tokens * s->heads * (D + L) * 2;
    double memory = s->topk == 0       ? ceil->read
                    : s->keys <= 8192  ? ceil->gather_8k
                    : s->keys <= 32768 ? ceil->gather_32k
                                       : ceil->gather_128k;
    printf("%-34s %-15s %8.4f ms %6.1f TFLOP/s %5.1f%% of mma %6.0f GB/s %5.1f%% of %s  splits "
           "%d\n",
           s->name, kernel->name, ms, rate, rate / ceil->mma * 100, bytes / ms * 1e-6,
           bytes / ms * 1e-6 / memory * 100, s->topk ? "gather" : "read", (int)job.num_splits);
    fflush(stdout);
    job.kernel->release(&job);
    CHECK(cudaFree(work));
}

/* Largest difference (as bits of a float) and the count of values of b that are not finite. */
__global__ void find_differences(const uint16_t *a, const uint16_t *b, int64_t n, unsigned *result)
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

static void compare(const uint16_t *a, const uint16_t *b, int64_t n)
{
    unsigned *result = device<unsigned>(2), host[2];
    float worst;
    CHECK(cudaMemset(result, 0, 8));
    find_differences<<<1024, 256>>>(a, b, n, result);
    CHECK(cudaMemcpy(host, result, 8, cudaMemcpyDeviceToHost));
    CHECK(cudaFree(result));
    memcpy(&worst, &host[0], 4);
    printf("    largest difference from mqa_any %.3e, not finite %u\n", worst, host[1]);
}

static void run_shape(const struct shape *s, const struct ceilings *ceil)
{
    int64_t tokens = (int64_t)s->batch * s->query_len, slots = (int64_t)s->batch * s->keys;
    std::vector<int32_t> cu, lens;
    std::vector<struct mla_request> requests;
    for (int b = 0; b <= s->batch; b++)
        cu.push_back(b * s->query_len);
    for (int b = 0; b < s->batch; b++) {
        lens.push_back(s->keys);
        struct mla_request r = {b, cu[b], s->query_len, (int64_t)b * s->keys, s->keys};
        requests.push_back(r);
    }
    mla_problem p = {};
    p.form = MLA_FORM_ABSORBED;
    p.batch = s->batch;
    p.cu_seqlens_q = cu.data();
    p.seq_lens_kv = lens.data();
    p.heads_q = s->heads;
    p.heads_kv = 1;
    p.kv_lora_rank = L;
    p.qk_rope_dim = D - L;
    p.cache_format = s->fp8 ? MLA_CACHE_FP8_DS_MLA : MLA_CACHE_BF16;
    p.softmax_scale = 0.0721688;
    p.causal = s->causal;
    p.topk = s->topk;
    p.wants_lse = true;
    mla_tensors t = {};
    uint16_t *q = device<uint16_t>(tokens * s->heads * D);
    uint16_t *out = device<uint16_t>(tokens * s->heads * L);
    float *lse = device<float>(tokens * s->heads);
    char *cache = device<char>(slots * (s->fp8 ? FP8_ROW_BYTES : 2 * D));
    int32_t *lists = NULL, *table = NULL;
    fill_bf16<<<4096, 256>>>(q, tokens * s->heads * D, 1);
    if (s->fp8)
        fill_fp8<<<4096, 256>>>(cache, slots);
    else
        fill_bf16<<<4096, 256>>>((uint16_t *)cache, slots * D, 2);
    if (s->paged) {
        p.page_size = 64;
        p.num_pages = slots / 64;
        p.max_pages = s->keys / 64;
        table = device<int32_t>(p.num_pages);
        fill_table<<<64, 256>>>(table, p.num_pages);
        t.kv_cache.data = cache;
        t.page_table.data = table;
    } else {
        t.kv_c.data = cache;
        t.kv_c.stride[0] = D;
        t.k_pe.data = cache + 2 * L;
        t.k_pe.stride[0] = D;
    }
    if (s->topk) {
        int bits = 0;
        while (1 << bits < s->keys)
            bits++;
        lists = device<int32_t>(tokens * s->topk);
        if (s->sink)
            fill_sink_lists<<<4096, 256>>>(lists, tokens, s->topk, s->keys);
        else
            fill_lists<<<4096, 256>>>(lists, tokens, s->topk, bits);
        t.topk_indices.data = lists;
    }
    t.q.data = q;
    t.out.data = out;
    t.lse.data = lse;
    CHECK(cudaDeviceSynchronize());
    run_kernel(s, ceil, &p, &t, requests.data(), &mla_mqa_any, 0);
    int64_t size = tokens * s->heads * L;
    uint16_t *other = device<uint16_t>(size);
    t.out.data = other;
    if (s->topk && s->query_len > 2 && s->heads <= 16) {
        CHECK(cudaMemset(other, 0xFF, size * 2));
        run_kernel(s, ceil, &p, &t, requests.data(), &mla_sparse_mqa_group_any, 0);
        compare(out, other, size);
    }
#ifdef MLA_WITH_SM90
    const bool dense_few = !s->topk && s->heads <= 16 && s->query_len == 1;
    const struct mla_kernel *rows[2] = {strstr(s->name, "decode") ? &mla_mqa_decode_sm90
                                        : !s->topk || s->fp8      ? NULL
                                        : s->heads > 32           ? &mla_sparse_mqa_prefill_sm90
                                        : s->heads < 8 || 64 % s->heads
                                            ? NULL
                                            : &mla_sparse_mqa_group_sm90,
                                        !s->fp8 && s->heads <= 16 && (s->topk || dense_few)
                                            ? &mla_sparse_mqa_few_sm90
                                            : NULL};
    for (const struct mla_kernel *row : rows) {
        if (!row || sm != 90)
            continue;
        CHECK(cudaMemset(other, 0xFF, size * 2));
        run_kernel(s, ceil, &p, &t, requests.data(), row, 0);
        compare(out, other, size);
        for (int i = 0; i < 3 && s->splits[i]; i++) {
            run_kernel(s, ceil, &p, &t, requests.data(), row, s->splits[i]);
            compare(out, other, size);
        }
    }
#endif
    void *all[] = {q, out, other, lse, cache, lists, table};
    for (void *p : all)
        CHECK(cudaFree(p));
}

static struct ceilings measure_ceilings(int processors)
{
    struct ceilings c;
    float *out = device<float>(4 * 256 * processors);
    int blocks = 4 * processors, rounds = 4096;
    double ms = median_ms([&] { mma_loop<<<blocks, 256>>>(out, rounds, 0x9E3779B9u); });
    c.mma = (double)blocks * 8 * rounds * 8 * 4096 / ms * 1e-9;
    size_t bytes = (size_t)2 << 30;
    char *memory = device<char>(bytes);
    fill_bf16<<<4096, 256>>>((uint16_t *)memory, bytes / 2, 3);
    ms = median_ms(
        [&] { read_loop<<<8 * processors, 512>>>((uint4 *)memory, bytes / 16, (uint32_t *)out); });
    c.read = bytes / ms * 1e-6;
    int32_t *lists = device<int32_t>(4096 * 2048);
    for (int bits = 13; bits <= 17; bits += 2) {
        fill_lists<<<4096, 256>>>(lists, 4096, 2048, bits);
        ms = median_ms([&] { gather_loop<<<4096, 576>>>(memory, lists, 2048, (uint32_t *)out); });
        double rate = 4096.0 * 2048 * 1152 / ms * 1e-6;
        (bits == 13 ? c.gather_8k : bits == 15 ? c.gather_32k : c.gather_128k) = rate;
    }
    CHECK(cudaFree(memory));
    CHECK(cudaFree(lists));
    CHECK(cudaFree(out));
    return c;
}

int main(int argc, char **argv)
{
    static const struct shape shapes[] = {
        {"sparse-prefill kv32k h128", 1, 4096, 32768, 128, 2048, false, false, false, false},
        {"sparse-prefill kv32k h64", 1, 4096, 32768, 64, 2048, false, false, false, false},
        {"sparse-prefill kv32k h32", 1, 4096, 32768, 32, 2048, false, false, false, false},
        {"sparse-prefill kv32k h16", 1, 4096, 32768, 16, 2048, false, false, false, false},
        {"sparse-prefill kv32k h96", 1, 4096, 32768, 96, 2048, false, false, false, false},
        {"sparse-prefill kv32k h48", 1, 4096, 32768, 48, 2048, false, false, false, false},
        {"sparse-prefill sink kv32k h128", 1, 4096, 32768, 128, 2048, false, false, false, true},
        {"sparse-prefill sink kv32k h64", 1, 4096, 32768, 64, 2048, false, false, false, true},
        {"sparse-prefill sink kv32k h16", 1, 4096, 32768, 16, 2048, false, false, false, true},
        {"sparse-prefill sink kv32k h8", 1, 4096, 32768, 8, 2048, false, false, false, true},
        {"sparse-prefill sink kv32k h4", 1, 4096, 32768, 4, 2048, false, false, false, true},
        {"sparse-prefill sink kv32k h2", 1, 4096, 32768, 2, 2048, false, false, false, true},
        {"sparse-prefill kv32k h8", 1, 4096, 32768, 8, 2048, false, false, false, false},
        {"sparse-prefill fp8 sink kv32k h16", 1, 4096, 32768, 16, 2048, true, true, false, true},
        {"sparse-prefill fp8 sink kv32k h8", 1, 4096, 32768, 8, 2048, true, true, false, true},
        {"sparse-prefill fp8 kv32k h16", 1, 4096, 32768, 16, 2048, true, true, false, false},
        {"sparse-prefill fp8 kv32k h32", 1, 4096, 32768, 32, 2048, true, true, false, false},
        {"sparse-prefill fp8 kv32k h64", 1, 4096, 32768, 64, 2048, true, true, false, false},
        {"sparse-prefill sink kv8k h16", 1, 4096, 8192, 16, 2048, false, false, false, true},
        {"sparse-prefill kv8k h128", 1, 4096, 8192, 128, 2048, false, false, false, false},
        {"sparse-prefill kv8k h64", 1, 4096, 8192, 64, 2048, false, false, false, false},
        {"sparse-prefill kv8k h16", 1, 4096, 8192, 16, 2048, false, false, false, false},
        {"sparse-prefill kv128k h128", 1, 4096, 131072, 128, 2048, false, false, false, false},
        {"sparse-prefill kv128k h64", 1, 4096, 131072, 64, 2048, false, false, false, false},
        {"sparse-prefill kv128k h16", 1, 4096, 131072, 16, 2048, false, false, false, false},
        {"sparse-decode fp8 b128 h128", 128, 1, 32768, 128, 2048, true, true, true, false, {2}},
        {"sparse-decode fp8 b128 sq2 h128", 128, 2, 32768, 128, 2048, true, true, true, false},
        {"sparse-decode fp8 b128 h64", 128, 1, 32768, 64, 2048, true, true, true, false, {2}},
        {"sparse-decode fp8 b1 h64", 1, 1, 32768, 64, 2048, true, true, true, false, {16, 32}},
        {"sparse-decode fp8 b128 h16", 128, 1, 32768, 16, 2048, true, true, true, false},
        {"sparse-decode fp8 b1 h128",
         1,
         1,
         32768,
         128,
         2048,
         true,
         true,
         true,
         false,
         {16, 32, 11}},
        {"dense-decode b128 kv32k h128",
         128,
         1,
         32768,
         128,
         0,
         false,
         true,
         true,
         false,
         {1, 2, 4}},
        {"dense-decode b128 kv32k h64", 128, 1, 32768, 64, 0, false, true, true, false},
        {"dense-decode b128 kv32k h32", 128, 1, 32768, 32, 0, false, true, true, false},
        {"dense-decode b128 kv32k h16", 128, 1, 32768, 16, 0, false, true, true, false, {1, 4, 8}},
        {"dense-decode b128 kv4k h128", 128, 1, 4096, 128, 0, false, true, true, false},
        {"dense-decode b128 kv4k h16", 128, 1, 4096, 16, 0, false, true, true, false},
        {"dense-decode b128 sq2 kv32k h128", 128, 2, 32768, 128, 0, false, true, true, false},
        {"dense-decode b1 kv32k h16", 1, 1, 32768, 16, 0, false, true, true, false, {64, 32}},
        {"dense-decode b1 kv32k h128", 1, 1, 32768, 128, 0, false, true, true, false, {66, 32, 44}},
        {"dense-prefill s4096 h16", 1, 4096, 4096, 16, 0, false, false, true, false},
    };
    const char *word = argc > 1 ? argv[1] : "";
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) {
        printf("skipped: %s\n", cudaGetErrorString(cudaGetLastError()));
        return 77;
    }
    struct cudaDeviceProp prop;
    CHECK(cudaGetDeviceProperties(&prop, 0));
    sm = 10 * prop.major + prop.minor;
    flush_buffer = device<char>(FLUSH);
    struct ceilings c = measure_ceilings(prop.multiProcessorCount);
    printf("%s, %d SMs\nceilings: mma.sync bf16 %.1f TFLOP/s, read %.0f GB/s, gather of 1152-byte "
           "rows %.0f GB/s (8 K rows), %.0f (32 K), %.0f (128 K)\n",
           prop.name, prop.multiProcessorCount, c.mma, c.read, c.gather_8k, c.gather_32k,
           c.gather_128k);
    for (const struct shape &s : shapes)
        if (strstr(s.name, word))
            run_shape(&s, &c);
    return 0;
}
