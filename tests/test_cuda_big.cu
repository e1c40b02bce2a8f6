/* SPDX-License-Identifier: Apache-2.0 */
// labels: cuda
/* Sizes past 16 and 31 bits on a device: contexts of a million keys, more than 65 535 query tokens,
 * tensors of more than 2^31 elements, for every kind of call. Inputs are made on the device such
 * that the answer is known exactly and depends on every address:
 *
 *   counting   q = 0 and values of +-1: the output is a mean, and a single key that is lost, read
 *              twice or taken from elsewhere changes it by more than rounding may
 *   needle     keys carry their number as one-hot digits, each query asks for one key with a
 *              score so high that nothing else has weight: the output is that key's value
 *
 * Parts that do not fit the device's memory are named and left out. Exit 77 = skipped (no device).
 * A word on the command line keeps the parts whose name holds it. */
#include "cuda_calls.h"

#include "mla/cache.h"
#include "mla/index.h"

#include <cuda_runtime.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <vector>

static mla_context *context;
static int failures;

__host__ __device__ static inline uint32_t mix(uint64_t x)
{
    x ^= x >> 33;
    x *= 0xff51afd7ed558ccdull;
    x ^= x >> 33;
    x *= 0xc4ceb9fe1a85ec53ull;
    return (uint32_t)(x >> 32);
}

/* +1 or -1. */
__host__ __device__ static inline int sign_of(uint64_t x)
{
    return mix(x) & 1 ? 1 : -1;
}

__host__ __device__ static inline uint16_t bf16_of_sign(int sign)
{
    return sign > 0 ? 0x3F80 : 0xBF80;
}

enum { GRID = 4096, BLOCK = 256 };

#define EACH(i, n)                                                                                 \
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < (n);                      \
         i += (int64_t)gridDim.x * blockDim.x)

/* x[i] = +-1 by i + seed. */
__global__ static void fill_signs(uint16_t *x, int64_t n, uint64_t seed)
{
    EACH(i, n) x[i] = bf16_of_sign(sign_of((uint64_t)i + seed));
}

/* x[row, digit] = value for each of `digits` digits of number(row), base `base`; the rest zero. */
struct digits {
    int64_t rows, stride, columns; /* elements */
    int first, base, count;
    uint16_t value;
    int64_t heads,
        keys; /* a query (row = token · heads + head) asks for a key; 0 = rows are keys */
    bool causal;
};

/* The key that a query asks for. */
__host__ __device__ static inline int64_t wanted_key(int64_t row, int64_t heads, int64_t keys,
                                                     bool causal)
{
    int64_t token = row / heads;
    return mix((uint64_t)row * 3 + 1) % (uint64_t)(causal ? token + 1 : keys);
}

__global__ static void fill_digits(uint16_t *x, const struct digits d)
{
    EACH(row, d.rows)
    {
        int64_t number = row;
        if (d.heads)
            number = wanted_key(row, d.heads, d.keys, d.causal);
        uint16_t *to = x + row * d.stride + d.first;
        for (int64_t c = 0; c < d.columns; c++)
            to[c] = 0;
        for (int i = 0; i < d.count; i++, number /= d.base)
            to[i * d.base + number % d.base] = d.value;
    }
}

static struct timespec started;
static size_t held;
static std::vector<void *> owned;

static void *device(size_t bytes)
{
    void *p;
    CUDA(cudaMalloc(&p, bytes + 256));
    owned.push_back(p);
    held += bytes;
    return p;
}

template <class T> static T *upload(const std::vector<T> &v)
{
    T *p = (T *)device(v.size() * sizeof(T));
    CUDA(cudaMemcpy(p, v.data(), v.size() * sizeof(T), cudaMemcpyHostToDevice));
    return p;
}

static bool begin(const char *name, const char *only, double gigabytes)
{
    size_t room = 0, all = 0;
    if (only && !strstr(name, only))
        return false;
    CUDA(cudaMemGetInfo(&room, &all));
    if (gigabytes * 1e9 > (double)room) {
        printf("%-22s left out: %.1f GB wanted, %.1f GB free\n", name, gigabytes,
               (double)room * 1e-9);
        return false;
    }
    clock_gettime(CLOCK_MONOTONIC, &started);
    held = 0;
    return true;
}

static unsigned long long *counter()
{
    unsigned long long *p = (unsigned long long *)device(8);
    CUDA(cudaMemset(p, 0, 8));
    return p;
}

static void end(const char *name, const unsigned long long *bad)
{
    struct timespec now;
    unsigned long long wrong = 1;
    CUDA(cudaDeviceSynchronize());
    CUDA(cudaMemcpy(&wrong, bad, 8, cudaMemcpyDeviceToHost));
    for (void *p : owned)
        CUDA(cudaFree(p));
    owned.clear();
    clock_gettime(CLOCK_MONOTONIC, &now);
    printf("%-4s %-22s %llu wrong, %.1f GB, %.2f s\n", wrong ? "FAIL" : "ok", name, wrong,
           (double)held * 1e-9,
           (double)(now.tv_sec - started.tv_sec) + 1e-9 * (double)(now.tv_nsec - started.tv_nsec));
    fflush(stdout);
    failures += wrong != 0;
}

/* Plans and runs with a workspace of its own. */
static void run(const mla_problem *p, const mla_tensors *t, mla_route route)
{
    mla_plan_options options = {};
    mla_plan *plan;
    options.route = route;
    OK(mla_plan_create(context, p, &options, &plan));
    size_t bytes = mla_plan_workspace_bytes(plan);
    void *workspace = device(bytes);
    OK(mla_run(plan, t, workspace, bytes, NULL));
    CUDA(cudaDeviceSynchronize());
    mla_plan_destroy(plan);
}

static mla_problem parsed(const char *text)
{
    mla_problem p;
    OK(mla_problem_parse(&p, text, NULL, 0));
    p.wants_lse = false;
    return p;
}

/* ---------------------------------------------------------- a million keys */

/* The mean of +-1 over all keys, or the listed ones, of [requests, width] columns; f32 out. */
__global__ static void check_means(const float *out, int64_t requests, int heads, int64_t keys,
                                   const int32_t *list, int64_t listed, uint64_t seed,
                                   unsigned long long *bad)
{
    __shared__ int part[BLOCK];
    const int L = 512;
    for (int64_t item = blockIdx.x; item < requests * L; item += gridDim.x) {
        int64_t request = item / L, column = item % L, n = list ? listed : keys;
        int sum = 0;
        for (int64_t i = threadIdx.x; i < n; i += BLOCK) {
            int64_t key = list ? list[request * listed + i] : i;
            sum += sign_of((uint64_t)((request * keys + key) * L + column) + seed);
        }
        part[threadIdx.x] = sum;
        __syncthreads();
        for (int o = BLOCK / 2; o; o /= 2) {
            if (threadIdx.x < o)
                part[threadIdx.x] += part[threadIdx.x + o];
            __syncthreads();
        }
        double want = (double)part[0] / (double)n;
        for (int h = threadIdx.x; h < heads; h += BLOCK) {
            double got = out[(request * heads + h) * L + column];
            /* Splits round means of n / 64 keys or more; one key more or less is 1 / n. */
            double split = 8 * 8 / sqrt((double)n), allowed = 4 * 0x1p-24 * (split + fabs(want));
            if (!(fabs(got - want) <= fmin(allowed, 0.4 / (double)n)))
                atomicAdd(bad, 1ull);
        }
        __syncthreads();
    }
}

static void million_keys(const char *name, bool lists)
{
    const int64_t requests = 4, keys = 1 << 20, L = 512, topk = lists ? 2048 : 0;
    const int heads = 16;
    char text[200];
    snprintf(text, sizeof text,
             "attend form=absorbed b=4 sq=1 skv=%lld hq=%d rank=512 rope=64 topk=%lld scale=0.07",
             (long long)keys, heads, (long long)topk);
    mla_problem p = parsed(text);
    p.out_dtype = MLA_F32;
    mla_tensors t = {};
    uint16_t *c = (uint16_t *)device((size_t)(requests * keys * L) * 2);
    fill_signs<<<GRID, BLOCK>>>(c, requests * keys * L, 0);
    t.kv_c.data = c;
    t.k_pe.data = device((size_t)(requests * keys * 64) * 2);
    CUDA(cudaMemset(t.k_pe.data, 0, (size_t)(requests * keys * 64) * 2));
    t.q.data = device((size_t)(requests * heads * 576) * 2);
    CUDA(cudaMemset(t.q.data, 0, (size_t)(requests * heads * 576) * 2));
    t.out.data = device((size_t)(requests * heads * L) * 4);
    std::vector<int32_t> list((size_t)(requests * topk) + 1);
    for (int64_t i = 0; i < requests * topk; i++) /* one of every 512 keys */
        list[(size_t)i] = (int32_t)(i % topk * (keys / topk) + mix((uint64_t)i) % (keys / topk));
    int32_t *d_list = upload(list);
    t.topk_indices.data = lists ? d_list : NULL;
    unsigned long long *bad = counter();
    run(&p, &t, lists ? MLA_ROUTE_SPARSE_MQA : MLA_ROUTE_DENSE_MQA);
    check_means<<<GRID, BLOCK>>>((const float *)t.out.data, requests, heads, keys,
                                 lists ? d_list : NULL, topk, 0, bad);
    end(name, bad);
    mla_problem_release(&p);
}

/* ------------------------------------------------------------ many elements */

/* out[row, c] = sign of (key's row of values, c), where key is what the query row asked for. */
struct needles {
    int64_t rows, heads, keys, width;
    bool causal;
    int64_t value_heads; /* values have heads of their own; 1 = none */
    const int32_t *list; /* or NULL: [tokens, 16], entry e a key whose number ends in digit e */
    uint64_t seed;
};

__global__ static void check_needles(const uint16_t *out, const struct needles n,
                                     unsigned long long *bad)
{
    for (int64_t row = blockIdx.x; row < n.rows; row += gridDim.x) {
        int64_t token = row / n.heads, head = row % n.heads;
        int64_t key = n.list ? n.list[token * 16 + wanted_key(row, n.heads, 16, false)]
                             : wanted_key(row, n.heads, n.keys, n.causal);
        int64_t from = (key * n.value_heads + head % n.value_heads) * n.width;
        for (int64_t c = threadIdx.x; c < n.width; c += blockDim.x)
            if (out[row * n.width + c] != bf16_of_sign(sign_of((uint64_t)(from + c) + n.seed)) &&
                atomicAdd(bad, 1ull) < 6)
                printf("first wrong: token %lld head %lld column %lld key %lld: got %04x\n",
                       (long long)token, (long long)head, (long long)c, (long long)key,
                       out[row * n.width + c]);
    }
}

/* Lists whose entry e is a key of number 16·i + e. */
static int32_t *lists_of_digits(int64_t tokens, int64_t keys)
{
    std::vector<int32_t> list((size_t)tokens * 16);
    for (int64_t i = 0; i < tokens * 16; i++)
        list[(size_t)i] = (int32_t)(mix((uint64_t)i + 77) % (uint64_t)(keys / 16) * 16 + i % 16);
    return upload(list);
}

static void many_listed(const char *name)
{
    const int64_t tokens = 66000, heads = 64, keys = 66000, L = 512;
    mla_problem p = parsed("attend form=absorbed b=1 sq=66000 skv=66000 hq=64 rank=512 rope=64 "
                           "topk=16 causal=0 scale=1");
    p.out_dtype = MLA_BF16;
    mla_tensors t = {};
    t.kv_c.data = device((size_t)(keys * L) * 2);
    t.k_pe.data = device((size_t)(keys * 64) * 2);
    t.q.data = device((size_t)(tokens * heads * 576) * 2);
    t.out.data = device((size_t)(tokens * heads * L) * 2);
    CUDA(cudaMemset(t.q.data, 0, (size_t)(tokens * heads * 576) * 2));
    CUDA(cudaMemset(t.out.data, 0xFF, (size_t)(tokens * heads * L) * 2));
    fill_signs<<<GRID, BLOCK>>>((uint16_t *)t.kv_c.data, keys * L, 5);
    struct digits k = {keys, 64, 64, 0, 16, 1, 0x3F80, 0, 0, false};
    fill_digits<<<GRID, BLOCK>>>((uint16_t *)t.k_pe.data, k);
    struct digits q = {tokens * heads, 576, 64, 512, 16, 1, 0x4380, heads, 16, false}; /* 256 */
    fill_digits<<<GRID, BLOCK>>>((uint16_t *)t.q.data, q);
    int32_t *list = lists_of_digits(tokens, keys);
    t.topk_indices.data = list;
    unsigned long long *bad = counter();
    run(&p, &t, MLA_ROUTE_SPARSE_MQA);
    struct needles n = {tokens * heads, heads, keys, L, false, 1, list, 5};
    check_needles<<<GRID, BLOCK>>>((const uint16_t *)t.out.data, n, bad);
    end(name, bad);
    mla_problem_release(&p);
}

static void many_expanded(const char *name, int64_t tokens, int64_t heads, int64_t d, bool lists)
{
    char text[200];
    snprintf(text, sizeof text,
             "attend form=expanded b=1 sq=%lld skv=%lld hq=%lld heads_kv=%lld nope=%lld rope=0 "
             "v=%lld topk=%d causal=%d scale=1",
             (long long)tokens, (long long)tokens, (long long)heads, (long long)heads, (long long)d,
             (long long)d, lists ? 16 : 0, !lists);
    mla_problem p = parsed(text);
    p.out_dtype = MLA_BF16;
    const size_t bytes = (size_t)(tokens * heads * d) * 2;
    mla_tensors t = {};
    t.q.data = device(bytes);
    t.k.data = device(bytes);
    t.v.data = device(bytes);
    t.out.data = device(bytes);
    CUDA(cudaMemset(t.out.data, 0xFF, bytes));
    fill_signs<<<GRID, BLOCK>>>((uint16_t *)t.v.data, tokens * heads * d, 9);
    int base = lists ? 16 : 42, count = lists ? 1 : 3; /* 42^3 = 74 088 numbers */
    for (int64_t h = 0; h < heads; h++) {
        struct digits k = {tokens, heads * d, d, (int)(h * d), base, count, 0x3F80, 0, 0, false};
        fill_digits<<<GRID, BLOCK>>>((uint16_t *)t.k.data, k);
    }
    /* 128 a digit: a key that misses one has a weight of e^-128 = 0. */
    struct digits q = {tokens * heads,      d,     d, 0, base, count, 0x4300, heads,
                       lists ? 16 : tokens, !lists};
    fill_digits<<<GRID, BLOCK>>>((uint16_t *)t.q.data, q);
    int32_t *list = lists_of_digits(lists ? tokens : 1, lists ? tokens : 16);
    t.topk_indices.data = lists ? list : NULL;
    unsigned long long *bad = counter();
    run(&p, &t, lists ? MLA_ROUTE_MASKED_MHA : MLA_ROUTE_DENSE_MHA);
    struct needles n = {tokens * heads, heads, tokens, d, !lists, heads, lists ? list : NULL, 9};
    check_needles<<<GRID, BLOCK>>>((const uint16_t *)t.out.data, n, bad);
    end(name, bad);
    mla_problem_release(&p);
}

/* ---------------------------------------------------------- latent problems */

/* Causal means of column c · 8 + h of the latents, token after token. */
__global__ static void check_prefix(const float *out, int64_t tokens, int heads, int width,
                                    double relative, uint64_t seed, unsigned long long *bad)
{
    int h = blockIdx.x, c = threadIdx.x, sum = 0;
    if (c >= width)
        return;
    for (int64_t i = 0; i < tokens; i++) {
        sum += sign_of((uint64_t)(i * 512 + c * 8 + h) + seed);
        double want = (double)sum / (double)(i + 1), got = out[(i * heads + h) * width + c];
        if (!(fabs(got - want) <= relative * fabs(want) + 0x1p-22))
            atomicAdd(bad, 1ull);
    }
}

static void many_latent(const char *name, mla_route route)
{
    const int64_t tokens = 70000, L = 512, dn = 128, dr = 64, dv = 64, heads = 2;
    mla_problem p =
        parsed("attend b=1 sq=70000 skv=70000 hq=2 rank=512 nope=128 rope=64 v=64 topk=0");
    p.out_dtype = MLA_F32;
    mla_tensors t = {};
    t.q_nope.data = device((size_t)(tokens * heads * dn) * 2);
    t.q_pe.data = device((size_t)(tokens * heads * dr) * 2);
    t.k_pe.data = device((size_t)(tokens * dr) * 2);
    t.kv_c.data = device((size_t)(tokens * L) * 2);
    t.w_uk.data = device((size_t)(heads * dn * L) * 2);
    t.out.data = device((size_t)(tokens * heads * dv) * 4);
    CUDA(cudaMemset(t.q_nope.data, 0, (size_t)(tokens * heads * dn) * 2));
    CUDA(cudaMemset(t.q_pe.data, 0, (size_t)(tokens * heads * dr) * 2));
    CUDA(cudaMemset(t.k_pe.data, 0, (size_t)(tokens * dr) * 2));
    CUDA(cudaMemset(t.w_uk.data, 0, (size_t)(heads * dn * L) * 2));
    fill_signs<<<GRID, BLOCK>>>((uint16_t *)t.kv_c.data, tokens * L, 3);
    std::vector<uint16_t> uv((size_t)(heads * L * dv), 0);
    for (int64_t h = 0; h < heads; h++)
        for (int64_t c = 0; c < dv; c++)
            uv[(size_t)((h * L + c * 8 + h) * dv + c)] = 0x3F80;
    t.w_uv.data = upload(uv);
    unsigned long long *bad = counter();
    run(&p, &t, route);
    /* MQA rounds its latent output to bf16. */
    check_prefix<<<(unsigned)heads, 64>>>((const float *)t.out.data, tokens, (int)heads, (int)dv,
                                          route == MLA_ROUTE_DENSE_MQA ? 0x1p-8 : 0x1p-20, 3, bad);
    end(name, bad);
    mla_problem_release(&p);
}

/* ------------------------------------------- top-k, the indexer and records */

__host__ __device__ static inline float score_of(int64_t i)
{
    return (float)(mix((uint64_t)i + 11) >> 8);
}

__global__ static void fill_scores(float *x, int64_t n)
{
    EACH(i, n) x[i] = score_of(i);
}

/* The list is ascending and holds exactly the entries that come no later than its last one in the
 * order of scores (larger first, then lower index). */
__global__ static void check_lists(const int32_t *list, int64_t rows, int64_t columns, int topk,
                                   unsigned long long *bad)
{
    for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
        __shared__ int least, wrong, above;
        const int32_t *mine = list + row * topk;
        if (threadIdx.x == 0) {
            least = mine[0];
            wrong = above = 0;
            for (int i = 0; i < topk; i++) {
                wrong |= mine[i] < 0 || mine[i] >= columns || (i && mine[i] <= mine[i - 1]);
                float a = score_of(row * columns + mine[i]), b = score_of(row * columns + least);
                if (a < b || (a == b && mine[i] > least))
                    least = mine[i];
            }
        }
        __syncthreads();
        float limit = score_of(row * columns + least);
        int mine_above = 0;
        for (int64_t c = threadIdx.x; c < columns; c += blockDim.x) {
            float x = score_of(row * columns + c);
            mine_above += x > limit || (x == limit && c <= least);
        }
        atomicAdd(&above, mine_above);
        __syncthreads();
        if (threadIdx.x == 0 && (wrong || above != topk))
            atomicAdd(bad, 1ull);
        __syncthreads();
    }
}

static void many_scores(const char *name)
{
    const int64_t rows = 70000, columns = 32768, topk = 64;
    mla_topk_args a = {};
    a.rows = rows;
    a.columns = columns;
    a.topk = topk;
    a.order = MLA_TOPK_ASCENDING;
    a.in.data = device((size_t)(rows * columns) * 4);
    a.indices.data = device((size_t)(rows * topk) * 4);
    fill_scores<<<GRID, BLOCK>>>((float *)a.in.data, rows * columns);
    size_t bytes;
    OK(mla_topk_workspace_bytes(context, &a, &bytes));
    void *workspace = device(bytes);
    unsigned long long *bad = counter();
    OK(mla_topk_run(context, &a, workspace, bytes, NULL));
    check_lists<<<GRID, BLOCK>>>((const int32_t *)a.indices.data, rows, columns, (int)topk, bad);
    end(name, bad);
}

enum { INDEX_KEYS = 2048, INDEX_HEADS = 64, INDEX_D = 128, INDEX_TOPK = 4 };

/* fp8 rows with 1 at two digits: of key s, or of the key that a query's heads all ask for. */
__global__ static void fill_index(uint8_t *x, int64_t rows, int heads)
{
    EACH(i, rows * INDEX_D)
    {
        int64_t row = i / INDEX_D, d = i % INDEX_D;
        int64_t s = heads ? mix((uint64_t)(row / heads)) % INDEX_KEYS : row;
        x[i] = d == s % 64 || d == 64 + s / 64 ? 0x38 : 0;
    }
}

__global__ static void fill_ones(float *x, int64_t n, float value)
{
    EACH(i, n) x[i] = value;
}

/* First the key asked for, then the lowest of those that share one digit with it. */
__global__ static void check_index(const int32_t *list, int64_t queries, unsigned long long *bad)
{
    EACH(t, queries)
    {
        const int32_t *mine = list + t * INDEX_TOPK;
        int s = mix((uint64_t)t) % INDEX_KEYS, at = 1;
        bool wrong = mine[0] != s;
        for (int k = 0; k < INDEX_KEYS && at < INDEX_TOPK; k++)
            if (k != s && (k % 64 == s % 64 || k / 64 == s / 64))
                wrong |= mine[at++] != k;
        if (wrong)
            atomicAdd(bad, 1ull);
    }
}

static void many_index(const char *name)
{
    const int64_t queries = 263000;
    mla_index_args a = {};
    a.num_queries = queries;
    a.heads = INDEX_HEADS;
    a.dim = INDEX_D;
    a.num_keys = INDEX_KEYS;
    a.q_format = a.k_format = MLA_INDEX_FP8;
    a.topk = INDEX_TOPK;
    a.q.data = device((size_t)(queries * INDEX_HEADS * INDEX_D));
    a.weights.data = device((size_t)(queries * INDEX_HEADS) * 4);
    a.k.data = device(INDEX_KEYS * INDEX_D);
    a.k_scale = device(INDEX_KEYS * 4);
    a.indices.data = device((size_t)(queries * INDEX_TOPK) * 4);
    fill_index<<<GRID, BLOCK>>>((uint8_t *)a.q.data, queries * INDEX_HEADS, INDEX_HEADS);
    fill_index<<<GRID, BLOCK>>>((uint8_t *)a.k.data, INDEX_KEYS, 0);
    fill_ones<<<GRID, BLOCK>>>((float *)a.weights.data, queries * INDEX_HEADS, 0.5f);
    fill_ones<<<GRID, BLOCK>>>((float *)a.k_scale, INDEX_KEYS, 1);
    size_t bytes;
    OK(mla_index_workspace_bytes(context, &a, &bytes));
    void *workspace = device(bytes);
    unsigned long long *bad = counter();
    OK(mla_index_run(context, &a, workspace, bytes, NULL));
    check_index<<<GRID, BLOCK>>>((const int32_t *)a.indices.data, queries, bad);
    end(name, bad);
}

__global__ static void fill_slots(int64_t *x, int64_t n)
{
    EACH(i, n) x[i] = n - 1 - i;
}

__global__ static void check_signs(const uint16_t *x, int64_t n, uint64_t seed,
                                   unsigned long long *bad)
{
    EACH(i, n)
    if (x[i] != bf16_of_sign(sign_of((uint64_t)i + seed)))
        atomicAdd(bad, 1ull);
}

/* Records of +-1, which every format holds exactly, written backwards and read back. */
static void many_records(const char *name)
{
    const int64_t n = 4200000;
    mla_cache c = {};
    c.format = MLA_CACHE_FP8_DS_MLA;
    c.kv_lora_rank = 512;
    c.qk_rope_dim = 64;
    c.page_size = 64;
    c.num_pages = n / 64 + 1;
    c.kv_cache.data = device((size_t)(c.num_pages * 64) * 656);
    uint16_t *latent = (uint16_t *)device((size_t)n * 1024);
    uint16_t *rope = (uint16_t *)device((size_t)n * 128);
    int64_t *slots = (int64_t *)device((size_t)n * 8);
    fill_signs<<<GRID, BLOCK>>>(latent, n * 512, 1);
    fill_signs<<<GRID, BLOCK>>>(rope, n * 64, 2);
    fill_slots<<<GRID, BLOCK>>>(slots, n);
    mla_cache_values v = {};
    v.dtype = MLA_BF16;
    v.kv_c.data = latent;
    v.k_pe.data = rope;
    unsigned long long *bad = counter();
    OK(mla_cache_write(context, &c, &v, slots, n, MLA_SCALE_DEFAULT, NULL));
    CUDA(cudaMemsetAsync(latent, 0, (size_t)n * 1024, NULL));
    CUDA(cudaMemsetAsync(rope, 0, (size_t)n * 128, NULL));
    OK(mla_cache_read(context, &c, slots, n, &v, NULL));
    check_signs<<<GRID, BLOCK>>>(latent, n * 512, 1, bad);
    check_signs<<<GRID, BLOCK>>>(rope, n * 64, 2, bad);
    end(name, bad);
}

int main(int argc, char **argv)
{
    const mla_context_options options = {MLA_BACKEND_CUDA, 0, 0};
    const char *only = argc > 1 ? argv[1] : NULL;
    if (mla_context_create(&options, &context) != MLA_OK) {
        printf("skipped: %s\n", mla_last_error());
        return 77;
    }
    if (begin("dense 4 x 1M keys", only, 5.5))
        million_keys("dense 4 x 1M keys", false);
    if (begin("lists 4 x 1M keys", only, 5.5))
        million_keys("lists 4 x 1M keys", true);
    if (begin("mqa 2^31 of q, out", only, 10))
        many_listed("mqa 2^31 of q, out");
    if (begin("mha 2^31 of q, k, v", only, 18))
        many_expanded("mha 2^31 of q, k, v", 66000, 128, 256, false);
    if (begin("mha masked 70000", only, 1))
        many_expanded("mha masked 70000", 70000, 2, 64, true);
    if (begin("latent mha 70000", only, 2))
        many_latent("latent mha 70000", MLA_ROUTE_DENSE_MHA);
    if (begin("latent mqa 70000", only, 2))
        many_latent("latent mqa 70000", MLA_ROUTE_DENSE_MQA);
    if (begin("topk 2^31 scores", only, 10))
        many_scores("topk 2^31 scores");
    if (begin("index 2^31 of q", only, 4))
        many_index("index 2^31 of q");
    if (begin("records past 2^31", only, 9))
        many_records("records past 2^31");
    printf("big: %d failed\n", failures);
    mla_context_destroy(context);
    return failures > 0;
}
