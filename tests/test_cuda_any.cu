/* SPDX-License-Identifier: Apache-2.0 */
// labels: cuda
/* The absorbed-form kernels of cuda/any on a device, element by element against a naive fp64 kernel
 * under the hard bound H of docs/numerics.md, over head counts, cache formats, odd lengths, holes,
 * empty rows, NaN in invisible slots, strides and splits. Every case runs twice and must repeat bit
 * by bit; outputs start poisoned between guard zones. Exit 77 = skipped (no device). A word on the
 * command line keeps the cases whose name holds it. */
#include "any/mqa.h"
#include "any/mqa_plan.h"
#include "any/union.h"
#include "device.h"
#include "record.h"

#include "cuda_any_cases.cuh"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vector>

#define CHECK(call)                                                                                \
    do {                                                                                           \
        cudaError_t e_ = (call);                                                                   \
        if (e_ != cudaSuccess) {                                                                   \
            printf("%s:%d: %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString(e_));          \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

static const int L = 512, GUARD = 4096;

static uint64_t rng;
static uint32_t next32(void)
{
    rng = rng * 6364136223846793005ull + 1442695040888963407ull;
    uint64_t x = rng ^ rng >> 33;
    x *= 0xff51afd7ed558ccdull;
    return (uint32_t)(x >> 32);
}
static double uniform(void)
{
    return (next32() + 0.5) / 4294967296.0;
}
static double normal(void)
{
    return sqrt(-2 * log(uniform())) * cos(6.283185307179586 * uniform());
}

static uint16_t to_bits(mla_dtype t, double x)
{
    if (t == MLA_BF16) {
        __nv_bfloat16 h = __float2bfloat16((float)x);
        uint16_t b;
        memcpy(&b, &h, 2);
        return b;
    }
    __half h = __float2half((float)x);
    uint16_t b;
    memcpy(&b, &h, 2);
    return b;
}
static double from_bits(mla_dtype t, uint16_t b)
{
    if (t == MLA_BF16) {
        uint32_t u = (uint32_t)b << 16;
        float f;
        memcpy(&f, &u, 4);
        return f;
    }
    int e = b >> 10 & 31, m = b & 1023;
    double v = e == 31 ? (m ? NAN : INFINITY) : e ? ldexp(1024 + m, e - 25) : ldexp(m, -24);
    return b >> 15 ? -v : v;
}
static double e4m3_value(uint8_t b)
{
    int e = b >> 3 & 15, m = b & 7;
    double v = (b & 127) == 127 ? NAN : e ? ldexp(8 + m, e - 10) : ldexp(m, -9);
    return b >> 7 ? -v : v;
}
static double e2m1_value(int n)
{
    static const double v[8] = {0, .5, 1, 1.5, 2, 3, 4, 6};
    return n & 8 ? -v[n & 7] : v[n & 7];
}
/* A finite e4m3 code whose values spread over a few binades, or +-1 for counting. */
static uint8_t e4m3_code(enum fill fill)
{
    if (fill == COUNTING)
        return next32() & 1 ? 0x38 : 0xB8;
    return (uint8_t)__nv_cvt_float_to_fp8((float)normal(), __NV_SATFINITE, __NV_E4M3);
}

/* ---------------------------------------------------------------- reference */

struct reference_args {
    const uint16_t *q; /* packed copies */
    bool bf16;
    const double *k;      /* exact rows [slot][d] */
    const int64_t *first; /* [rows/heads + 1] into slots */
    const int32_t *slots;
    int64_t rows;
    int heads, d, splits;
    double scale, ub, ud; /* roundoffs of P and out's type; of a dequantised row */
    double u_out, u_abs;
    const float *sink;
    double *scratch;
    int64_t scratch_row;
    double *out, *hard, *sigma; /* [rows][512] */
    double *lse, *lse_hard, *top, *top_hard;
};

__device__ double widen_q(uint16_t b, bool is_bf16)
{
    if (is_bf16)
        return __uint_as_float((uint32_t)b << 16);
    __half_raw h;
    h.x = b;
    return __half2float(__half(h));
}

__device__ double block_sum(double x, bool take_max)
{
    __shared__ double part[256];
    __syncthreads();
    part[threadIdx.x] = x;
    __syncthreads();
    for (int o = 128; o; o /= 2) {
        if (threadIdx.x < o) {
            double y = part[threadIdx.x + o];
            part[threadIdx.x] = take_max ? fmax(part[threadIdx.x], y) : part[threadIdx.x] + y;
        }
        __syncthreads();
    }
    return part[0];
}

/* One block a row; plain sums in double, then the bounds of docs/numerics.md §3. */
__global__ void reference(const struct reference_args a)
{
    const double ua = 0x1p-23;
    for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
        int64_t token = row / a.heads, n = a.first[token + 1] - a.first[token];
        const int32_t *slots = a.slots + a.first[token];
        double *w = a.scratch + blockIdx.x * a.scratch_row;
        double big = -INFINITY, longest = 0, qq = 0, magnitude = 0;
        for (int c = threadIdx.x; c < a.d; c += 256) {
            double q = widen_q(a.q[row * a.d + c], a.bf16);
            qq += q * q;
        }
        qq = block_sum(qq, false);
        for (int64_t j = threadIdx.x; j < n; j += 256) {
            double s = 0, kk = 0;
            for (int c = 0; c < a.d; c++) {
                double k = a.k[(int64_t)slots[j] * a.d + c];
                s += widen_q(a.q[row * a.d + c], a.bf16) * k;
                kk += k * k;
            }
            w[j] = s * a.scale;
            big = fmax(big, w[j]);
            magnitude = fmax(magnitude, fabs(w[j]));
            longest = fmax(longest, kk);
        }
        big = block_sum(big, true);
        magnitude = block_sum(magnitude, true);
        longest = block_sum(longest, true);
        double sink = a.sink ? a.sink[row % a.heads] : -INFINITY;
        double reference = fmax(big, sink), sum = 0, keys_only = 0;
        bool nothing = isinf(reference);
        for (int64_t j = threadIdx.x; j < n && !nothing; j += 256) {
            keys_only += exp(w[j] - big);
            w[j] = exp(w[j] - reference);
            sum += w[j];
        }
        __syncthreads();
        keys_only = block_sum(keys_only, false);
        sum = block_sum(sum, false) + (nothing ? 0 : exp(sink - reference));
        double aa = a.scale * sqrt(qq) * sqrt(longest), m = magnitude, nd = (double)n;
        double nb = ceil(nd / 32) + 1 + a.splits;
        double gd = a.d * ua / (1 - a.d * ua), pv = (nd + 2 * nb) * ua;
        pv = pv / (1 - pv);
        double ex = 0x1p-22 + 8 * ua * (m + 1);
        /* a.ud·aa: rows rounded after dequantisation. */
        double dl = gd * aa + ex + 3 * nb * ua * (m + 1) + a.ud * aa;
        if (threadIdx.x == 0) {
            a.lse[row] = nothing ? reference : reference + log(sum);
            a.top[row] = n ? big : -INFINITY;
            a.top_hard[row] = gd * aa + a.ud * aa + 8 * ua * (m + 1);
            a.lse_hard[row] = dl + pv + 0x1p-20 + 4 * ua * (fabs(a.lse[row]) + 1);
        }
        for (int c = threadIdx.x; c < L; c += 256) {
            double o = 0, e1 = 0, e2 = 0, q2 = 0, va = 0;
            for (int64_t j = 0; j < n && !nothing; j++) {
                double v = a.k[(int64_t)slots[j] * a.d + c], p = w[j] / sum;
                o += p * v;
                e1 += p * fabs(v);
                e2 += p * v * v;
                q2 += p * p * v * v;
                va += fabs(v);
            }
            double spread = fmin(e1 + fabs(o), sqrt(fmax(0.0, e2 - o * o)) + 1e-7 * e1);
            if (a.sink)
                spread = e1 + fabs(o); /* the weights of keys no longer sum to 1 */
            double x = (expm1(dl) * spread + a.ub * fmax(e1, spread) * exp(dl) +
                        pv * (1 + a.ub) * e1 + (nd + 2 * nb + 4) * ua * fabs(o) + a.ud * e1) /
                       (1 - dl - pv - a.ub);
            /* f16: P below 2^-14 is subnormal, an absolute error (keys_only >= 1). */
            x += nothing || !n ? 0 : a.u_abs * va / keys_only;
            double floor = a.u_abs > 0 ? 0x1p-24 : 0x1p-126;
            a.out[row * L + c] = o;
            a.hard[row * L + c] = x + a.u_out * (fabs(o) + x) + floor;
            a.sigma[row * L + c] = 0.425 * sqrt(a.ub * a.ub * q2 + a.u_out * a.u_out * o * o);
            if (dl + pv + a.ub >= 0.5)
                a.hard[row * L + c] = -1; /* vacuous: a failure */
        }
    }
}

/* --------------------------------------------------------------------- case */

template <class X> static X *to_device(const std::vector<X> &v)
{
    X *p;
    CHECK(cudaMalloc((void **)&p, v.size() * sizeof(X) + 16));
    CHECK(cudaMemcpy(p, v.data(), v.size() * sizeof(X), cudaMemcpyHostToDevice));
    return p;
}
template <class X> static std::vector<X> to_host(const void *p, size_t n)
{
    std::vector<X> v(n);
    CHECK(cudaMemcpy(v.data(), p, n * sizeof(X), cudaMemcpyDeviceToHost));
    return v;
}

struct data {
    mla_problem problem;
    mla_tensors tensors;
    std::vector<struct mla_request> requests;
    std::vector<int32_t> cu, lens;
    std::vector<void *> device; /* to free */
    std::vector<uint16_t> q;    /* packed */
    std::vector<double> k;
    std::vector<int64_t> first;
    std::vector<int32_t> slots;
    std::vector<float> sink;
    int64_t tokens, total_keys;
};

template <class X> static X *keep(struct data *d, const std::vector<X> &v)
{
    X *p = to_device(v);
    d->device.push_back(p);
    return p;
}

/* Bytes of one record at `row` (and its footer), random, and its exact values. */
static void write_record(const struct test_case *t, uint8_t *row, uint8_t *rope, uint8_t *scales,
                         double *exact)
{
    bool counting = t->fill == COUNTING;
    if (t->format == MLA_CACHE_BF16 || t->format == MLA_CACHE_F16) {
        for (int c = 0; c < L + t->rope; c++) {
            uint16_t b = to_bits(t->dtype, counting ? (next32() & 1 ? 1 : -1) : normal());
            memcpy(c < L ? row + 2 * c : rope + 2 * (c - L), &b, 2);
            exact[c] = from_bits(t->dtype, b);
        }
        return;
    }
    int codes = t->format == MLA_CACHE_MODEL1 ? MODEL1_ROPE_AT : L;
    double scale = 1;
    for (int c = 0; c < codes; c++) {
        if (t->format == MLA_CACHE_FP8_DS_MLA) {
            if (c % FP8_TILE == 0) {
                float f = counting ? 1 : ldexpf(1, (int)(next32() % 3) - 1);
                f = t->any_scale ? (float)(0.5 + uniform()) : f;
                memcpy(scales + c / FP8_TILE * 4, &f, 4);
                scale = f;
            }
        } else if (t->format == MLA_CACHE_NVFP4_DS_MLA) {
            if (c % NVFP4_TILE == 0) {
                uint8_t code = counting ? 0x38 : (uint8_t)(0x30 + next32() % 12);
                scales[nvfp4_scale_place(c / NVFP4_TILE)] = code;
                scale = e4m3_value(code);
            }
        } else {
            int tile = t->format == MLA_CACHE_MODEL1 ? MODEL1_TILE : V41_TILE;
            if (c % tile == 0) {
                uint8_t code = (uint8_t)(counting ? 127 : 126 + next32() % 3);
                scales[c / tile] = code;
                scale = ldexp(1, code - 127);
            }
        }
        if (t->format == MLA_CACHE_NVFP4_DS_MLA) {
            int code = counting ? (next32() & 1 ? 2 : 10) : (int)(next32() & 15);
            row[c / 2] = (uint8_t)(c % 2 ? (row[c / 2] & 15) | code << 4 : code);
            exact[c] = e2m1_value(code) * scale;
        } else {
            row[c] = e4m3_code(t->fill);
            exact[c] = e4m3_value(row[c]) * scale;
        }
    }
    for (int c = 0; c < PACKED_ROPE && t->format != MLA_CACHE_V41; c++) {
        if (t->format == MLA_CACHE_NVFP4_DS_MLA) {
            rope[c] = e4m3_code(t->fill);
            exact[codes + c] = e4m3_value(rope[c]);
        } else {
            uint16_t b = to_bits(MLA_BF16, counting ? (next32() & 1 ? 1 : -1) : normal());
            memcpy(rope + 2 * c, &b, 2);
            exact[codes + c] = from_bits(MLA_BF16, b);
        }
    }
}

static void make_data(const struct test_case *t, struct data *d)
{
    int D = L + t->rope;
    mla_problem *p = &d->problem;
    memset(p, 0, sizeof *p);
    memset(&d->tensors, 0, sizeof d->tensors);
    d->cu.push_back(0);
    d->total_keys = 0;
    for (int b = 0; b < t->batch; b++) {
        int n = 0;
        while (n < 4 && (t->query_len[n] || t->keys[n]))
            n++;
        d->cu.push_back(d->cu.back() + t->query_len[b % n]);
        d->lens.push_back(t->keys[b % n]);
        struct mla_request r = {b, d->cu[b], t->query_len[b % n], d->total_keys, t->keys[b % n]};
        d->requests.push_back(r);
        d->total_keys += t->keys[b % n];
    }
    d->tokens = d->cu.back();
    int max_keys = 0;
    for (int b = 0; b < t->batch; b++)
        max_keys = d->lens[b] > max_keys ? d->lens[b] : max_keys;
    p->form = MLA_FORM_ABSORBED;
    p->batch = t->batch;
    p->cu_seqlens_q = d->cu.data();
    p->seq_lens_kv = d->lens.data();
    p->heads_q = t->heads;
    p->heads_kv = 1;
    p->kv_lora_rank = L;
    p->qk_rope_dim = t->rope;
    p->q_dtype = t->dtype;
    p->cache_format = t->format;
    p->out_dtype = t->out;
    p->softmax_scale = 1 / sqrt(192.0);
    p->causal = t->causal;
    p->has_mask = t->mask;
    p->topk = t->topk;
    p->has_topk_lens = t->lens;
    p->has_sink = t->sink;
    p->lse_base = t->base2 ? MLA_LSE_2 : MLA_LSE_E;
    p->wants_lse = p->wants_max_logits = true;
    mla_tensors *x = &d->tensors;

    /* Queries. */
    int64_t q_head = D + (t->odd_strides ? 1 : 0),
            q_token = t->heads * q_head + (t->odd_strides ? 3 : 0);
    double factor = t->fill == DIFFUSE ? 0.1 : t->fill == LARGE ? 8 : t->fill == COUNTING ? 0 : 1;
    std::vector<uint16_t> q(d->tokens * q_token + 16, 0x7FFF);
    d->q.resize(d->tokens * t->heads * D);
    for (int64_t i = 0; i < d->tokens; i++)
        for (int h = 0; h < t->heads; h++)
            for (int c = 0; c < D; c++)
                q[i * q_token + h * q_head + c] = d->q[(i * t->heads + h) * D + c] =
                    to_bits(t->dtype, factor ? factor * normal() : 0);
    x->q.data = keep(d, q);
    if (t->odd_strides) {
        x->q.stride[0] = q_token;
        x->q.stride[1] = q_head;
    }

    /* Lengths of this run. */
    std::vector<int32_t> run = d->lens;
    if (t->shorter)
        for (int b = 0; b < t->batch; b++)
            run[b] = b % 3 == 2 ? 0 : run[b] > 5 ? run[b] - 5 : run[b];
    if (t->shorter)
        x->seq_lens_kv = keep(d, run);

    /* Pages: a random permutation, garbage past the used ones. */
    int ps = t->page ? t->page : 1, columns = (max_keys + ps - 1) / ps + 2, pages = 0;
    for (int b = 0; b < t->batch; b++)
        pages += (d->lens[b] + ps - 1) / ps;
    pages += 3;
    std::vector<int32_t> order(pages), table((size_t)t->batch * columns, 2147480000);
    for (int i = 0; i < pages; i++)
        order[i] = i;
    for (int i = pages - 1; i > 0; i--)
        std::swap(order[i], order[next32() % (i + 1)]);
    int used = 0;
    for (int b = 0; b < t->batch; b++)
        for (int i = 0; i < (run[b] + ps - 1) / ps; i++) {
            table[(size_t)b * columns + i] = order[used++];
            if (t->bad_pages && next32() % 5 == 0)
                table[(size_t)b * columns + i] = next32() & 1 ? pages : -7;
        }

    /* Visibility by its definition. */
    int words = (max_keys + 31) / 32 + (t->odd_strides ? 2 : 0);
    std::vector<int32_t> lists(d->tokens * t->topk + 1, -1), lens(d->tokens + 1);
    std::vector<uint32_t> mask(d->tokens * words + 1);
    std::vector<uint8_t> wanted(t->page ? (size_t)pages * ps : d->total_keys + 1);
    std::vector<int32_t> mark(max_keys + 1, -1);
    d->first.push_back(0);
    for (int b = 0; b < t->batch; b++)
        for (int i = 0; i < d->requests[b].query_len; i++) {
            int64_t token = d->cu[b] + i;
            int end = t->causal ? run[b] - (int)d->requests[b].query_len + i + 1 : run[b];
            end = end < run[b] ? end : run[b];
            int count = t->topk, seen = 0;
            bool empty = t->holes && next32() % 7 == 0;
            if (t->topk) {
                lens[token] = t->lens ? (int32_t)(next32() % (t->topk + 1)) : t->topk;
                count = lens[token];
                /* Entries that count are distinct; some point nowhere or to the future. Past them:
                 * garbage. */
                for (int e = 0; e < t->topk; e++) {
                    int32_t v = run[b] ? (int32_t)(next32() % run[b]) : -1;
                    if (e < count) {
                        if (empty || (t->holes && next32() % 9 == 0) || v < 0 || mark[v] == token)
                            v = next32() % 3 == 0 ? -1
                                : next32() & 1    ? run[b] + (int)(next32() % 50)
                                                  : (int)0x80000000;
                        else
                            mark[v] = (int32_t)token;
                    } else {
                        v = (int32_t)next32();
                    }
                    lists[token * t->topk + e] = v;
                }
            }
            for (int w = 0; t->mask && w < words; w++)
                mask[token * words + w] =
                    empty || next32() % 4 == 0 ? 0 : next32() & (next32() | 0xF0F);
            for (int j = 0; j < run[b]; j++) {
                bool listed = !t->topk || mark[j] == token;
                if (t->mask)
                    listed = mask[token * words + j / 32] >> j % 32 & 1;
                if (!listed || j >= end)
                    continue;
                int64_t slot = d->requests[b].kv_start + j;
                if (t->page) {
                    int id = table[(size_t)b * columns + j / ps];
                    if (id < 0 || id >= pages)
                        continue;
                    slot = (int64_t)id * ps + j % ps;
                }
                wanted[slot] = 1;
                d->slots.push_back((int32_t)slot);
                seen++;
            }
            d->first.push_back(d->first.back() + seen);
        }

    /* The cache: NaN everywhere, records where some row looks. */
    bool packed = t->format >= MLA_CACHE_FP8_DS_MLA,
         footer = t->format == MLA_CACHE_MODEL1 || t->format == MLA_CACHE_V41;
    int64_t record = mla_cache_row_bytes(t->format, L, t->rope);
    int64_t row = footer || !t->odd_strides ? record : record + (packed ? 4 : 2);
    int64_t data_row = t->format == MLA_CACHE_MODEL1 ? MODEL1_DATA_BYTES
                       : t->format == MLA_CACHE_V41  ? V41_DATA_BYTES
                                                     : row;
    int64_t footer_row = record - data_row;
    d->k.assign((wanted.size()) * D, 0);
    if (t->page) {
        int64_t page = ps * (footer ? record : row) + (t->odd_strides ? (packed ? 4 : 10) : 0);
        std::vector<uint8_t> cache(pages * page + 64, 0xFF);
        for (int64_t s = 0; s < (int64_t)pages * ps; s++) {
            uint8_t *at = &cache[s / ps * page], *r = at + s % ps * data_row;
            uint8_t *scales = at + ps * data_row + s % ps * footer_row, *rope = r + 2 * L;
            if (t->format == MLA_CACHE_FP8_DS_MLA)
                scales = r + FP8_SCALES_AT, rope = r + FP8_ROPE_AT;
            else if (t->format == MLA_CACHE_NVFP4_DS_MLA)
                scales = r + NVFP4_SCALES_AT, rope = r + NVFP4_ROPE_AT;
            else if (t->format == MLA_CACHE_MODEL1)
                rope = r + MODEL1_ROPE_AT;
            if (wanted[s])
                write_record(t, r, rope, scales, &d->k[s * D]);
        }
        x->kv_cache.data = keep(d, cache);
        int64_t item = packed ? 1 : 2;
        if (t->odd_strides) {
            x->kv_cache.stride[0] = page / item;
            x->kv_cache.stride[1] = footer ? 0 : row / item;
        }
        x->page_table.data = keep(d, table);
        p->page_size = ps;
        p->num_pages = pages;
        p->max_pages = columns;
    } else {
        int64_t c_row = 2 * L + (t->odd_strides ? 4 : 0),
                r_row = 2 * t->rope + (t->odd_strides ? 2 : 0);
        std::vector<uint8_t> c((d->total_keys + 1) * c_row, 0xFF),
            r((d->total_keys + 1) * r_row + 1, 0xFF);
        for (int64_t s = 0; s < d->total_keys; s++)
            if (wanted[s])
                write_record(t, &c[s * c_row], &r[s * r_row], NULL, &d->k[s * D]);
        x->kv_c.data = keep(d, c);
        x->k_pe.data = keep(d, r);
        if (t->odd_strides) {
            x->kv_c.stride[0] = c_row / 2;
            x->k_pe.stride[0] = r_row / 2;
        }
    }
    if (t->mask) {
        x->mask.data = keep(d, mask);
        x->mask.stride[0] = words;
    }
    if (t->topk)
        x->topk_indices.data = keep(d, lists);
    if (t->lens)
        x->topk_lens = keep(d, lens);
    for (int h = 0; t->sink && h < t->heads; h++)
        d->sink.push_back(h % 5 == 1 ? -INFINITY : h % 7 == 3 ? INFINITY : (float)(2 * normal()));
    if (t->sink)
        x->attn_sink = keep(d, d->sink);
}

struct outputs {
    std::vector<uint8_t> out;
    std::vector<float> lse, top;
};

static bool run_kernel(const struct test_case *t, struct data *d, struct outputs *result)
{
    mla_context context = {};
    context.backend = MLA_BACKEND_CUDA;
    struct mla_job job = {};
    job.context = &context;
    job.problem = &d->problem;
    job.kernel = &mla_mqa_any;
    job.route = t->topk ? MLA_ROUTE_SPARSE_MQA : MLA_ROUTE_DENSE_MQA;
    job.requests = d->requests.data();
    job.num_requests = t->batch;
    job.wanted_splits = t->splits;
    char why[160];
    if (!job.kernel->supports(&job, why, sizeof why)) {
        printf("refused: %s\n", why);
        return false;
    }
    if (job.kernel->prepare(&job) != MLA_OK) {
        printf("prepare: %s\n", mla_last_error());
        return false;
    }
    int64_t rows = d->tokens * t->heads, item = mla_dtype_bytes(t->out);
    int64_t out_head = L + (t->odd_strides ? 1 : 0), out_token = t->heads * out_head;
    size_t out_bytes = d->tokens * out_token * item;
    uint8_t *out, *lse, *top, *work;
    CHECK(cudaMalloc((void **)&out, out_bytes + 2 * GUARD));
    CHECK(cudaMalloc((void **)&lse, rows * 4 + 2 * GUARD));
    CHECK(cudaMalloc((void **)&top, rows * 4 + 2 * GUARD));
    CHECK(cudaMalloc((void **)&work, job.workspace_bytes + 2 * GUARD));
    CHECK(cudaMemset(out, 0xFF, out_bytes + 2 * GUARD));
    CHECK(cudaMemset(lse, 0xFF, rows * 4 + 2 * GUARD));
    CHECK(cudaMemset(top, 0xFF, rows * 4 + 2 * GUARD));
    CHECK(cudaMemset(work, 0xFF, job.workspace_bytes + 2 * GUARD));
    mla_tensors x = d->tensors;
    x.out.data = out + GUARD;
    if (t->odd_strides) {
        x.out.stride[0] = out_token;
        x.out.stride[1] = out_head;
    }
    x.lse.data = lse + GUARD;
    x.max_logits.data = top + GUARD;
    bool ok = true;
    if (job.kernel->run(&job, &x, work + GUARD, NULL) != MLA_OK) {
        printf("run: %s\n", mla_last_error());
        ok = false;
    }
    CHECK(cudaDeviceSynchronize());
    std::vector<uint8_t> o = to_host<uint8_t>(out, out_bytes + 2 * GUARD);
    std::vector<uint8_t> l = to_host<uint8_t>(lse, rows * 4 + 2 * GUARD);
    std::vector<uint8_t> m = to_host<uint8_t>(top, rows * 4 + 2 * GUARD);
    std::vector<uint8_t> w = to_host<uint8_t>(work, GUARD);
    std::vector<uint8_t> w2 = to_host<uint8_t>(work + GUARD + job.workspace_bytes, GUARD);
    for (int i = 0; i < GUARD; i++)
        if (o[i] != 255 || o[GUARD + out_bytes + i] != 255 || l[i] != 255 ||
            l[GUARD + rows * 4 + i] != 255 || m[i] != 255 || m[GUARD + rows * 4 + i] != 255 ||
            w[i] != 255 || w2[i] != 255) {
            printf("guard zone written at %d\n", i);
            ok = false;
            break;
        }
    /* Gaps between strided rows stay poisoned. */
    for (int64_t r = 0; t->odd_strides && r < rows; r++)
        for (int64_t b = L * item; b < out_head * item; b++)
            ok &= o[GUARD + r * out_head * item + b] == 255;
    result->out.resize(rows * L * item);
    for (int64_t r = 0; r < rows; r++)
        memcpy(&result->out[r * L * item], &o[GUARD + r * out_head * item], L * item);
    result->lse.resize(rows);
    memcpy(result->lse.data(), &l[GUARD], rows * 4);
    result->top.resize(rows);
    memcpy(result->top.data(), &m[GUARD], rows * 4);
    job.kernel->release(&job);
    CHECK(cudaFree(out));
    CHECK(cudaFree(lse));
    CHECK(cudaFree(top));
    CHECK(cudaFree(work));
    return ok;
}

static bool agree(double got, double want, double allowed, double *worst)
{
    if (isnan(got) || isinf(want) || isinf(got))
        return got == want;
    double share = fabs(got - want) / allowed;
    if (allowed <= 0 || isnan(share))
        return false;
    *worst = share > *worst ? share : *worst;
    return share <= 1;
}

static bool run_case(const struct test_case *t)
{
    struct data d;
    rng = 88172645463325252ull;
    for (const char *c = t->name; *c; c++)
        rng = rng * 131 + *c;
    make_data(t, &d);
    int64_t rows = d.tokens * t->heads, D = L + t->rope;
    struct outputs one, two;
    bool ok = run_kernel(t, &d, &one) && run_kernel(t, &d, &two);
    bool same = ok && one.out == two.out && !memcmp(one.lse.data(), two.lse.data(), rows * 4) &&
                !memcmp(one.top.data(), two.top.data(), rows * 4);

    /* Reference rows: all of them, or those of every k-th token where there are very many. */
    int64_t every = 1 + rows / 40000;
    std::vector<int64_t> first(1, 0), tokens;
    std::vector<int32_t> slots;
    std::vector<uint16_t> q;
    int64_t longest = 1;
    for (int64_t i = 0; i < d.tokens; i += every) {
        tokens.push_back(i);
        slots.insert(slots.end(), d.slots.begin() + d.first[i], d.slots.begin() + d.first[i + 1]);
        first.push_back((int64_t)slots.size());
        q.insert(q.end(), d.q.begin() + i * t->heads * D, d.q.begin() + (i + 1) * t->heads * D);
        longest = d.first[i + 1] - d.first[i] > longest ? d.first[i + 1] - d.first[i] : longest;
    }
    int64_t n = (int64_t)tokens.size() * t->heads;
    struct reference_args a = {};
    a.q = keep(&d, q);
    a.bf16 = t->dtype == MLA_BF16;
    a.k = keep(&d, d.k);
    a.first = keep(&d, first);
    a.slots = keep(&d, slots);
    a.rows = n;
    a.heads = t->heads;
    a.d = (int)D;
    a.splits = 64;
    a.scale = d.problem.softmax_scale;
    a.ub = t->dtype == MLA_BF16 ? 0x1p-8 : 0x1p-11;
    a.ud = t->any_scale ? a.ub * (1 + 0x1p-10) : 0;
    a.u_out = t->out == MLA_BF16 ? 0x1p-8 : t->out == MLA_F16 ? 0x1p-11 : 0x1p-24;
    a.u_abs = t->dtype == MLA_F16 || t->out == MLA_F16 ? 0x1p-25 : 0;
    a.sink = t->sink ? d.tensors.attn_sink : NULL;
    a.scratch_row = longest;
    a.scratch = keep(&d, std::vector<double>(2048 * longest));
    a.out = keep(&d, std::vector<double>(n * L));
    a.hard = keep(&d, std::vector<double>(n * L));
    a.sigma = keep(&d, std::vector<double>(n * L));
    a.lse = keep(&d, std::vector<double>(n));
    a.lse_hard = keep(&d, std::vector<double>(n));
    a.top = keep(&d, std::vector<double>(n));
    a.top_hard = keep(&d, std::vector<double>(n));
    if (n)
        reference<<<(unsigned)(n < 2048 ? n : 2048), 256>>>(a);
    CHECK(cudaDeviceSynchronize());
    std::vector<double> out = to_host<double>(a.out, n * L), hard = to_host<double>(a.hard, n * L);
    std::vector<double> sigma = to_host<double>(a.sigma, n * L), lse = to_host<double>(a.lse, n);
    std::vector<double> lse_hard = to_host<double>(a.lse_hard, n);
    std::vector<double> top = to_host<double>(a.top, n), top_hard = to_host<double>(a.top_hard, n);

    int64_t bad = 0, bad_lse = 0, bad_z = 0, shown = 0;
    double worst = 0, worst_lse = 0, worst_top = 0, worst_z = 0, unit = t->base2 ? M_LN2 : 1;
    bool judge_z = (t->fill == NORMAL || t->fill == DIFFUSE || t->fill == LARGE) &&
                   t->dtype == MLA_BF16 && t->out == MLA_BF16 && !t->any_scale;
    for (int64_t i = 0; ok && i < n; i++) {
        int64_t row = tokens[i / t->heads] * t->heads + i % t->heads;
        double zz = 0;
        for (int c = 0; c < L; c++) {
            double got, want = out[i * L + c], sd = sigma[i * L + c];
            if (t->out == MLA_F32)
                got = ((float *)one.out.data())[row * L + c];
            else
                got = from_bits(t->out, ((uint16_t *)one.out.data())[row * L + c]);
            if (!agree(got, want, hard[i * L + c], &worst)) {
                bad++;
                if (shown++ < 4)
                    printf("  o[row %ld (token %ld head %ld) c %d] got %g want %g allowed %g\n",
                           (long)row, (long)(row / t->heads), (long)(row % t->heads), c, got, want,
                           hard[i * L + c]);
            }
            if (sd > 0)
                zz += (got - want) * (got - want) / (sd * sd) / L;
        }
        zz = sqrt(zz);
        worst_z = zz > worst_z ? zz : worst_z;
        /* Few keys round all columns of a row alike: z says nothing there. */
        int64_t seen = first[i / t->heads + 1] - first[i / t->heads];
        bad_z += judge_z && seen >= 64 && !(zz <= 1.3);
        if (!agree(one.lse[row] * unit, lse[i], lse_hard[i], &worst_lse) ||
            !agree(one.top[row], top[i], top_hard[i] + 1e-30, &worst_top)) {
            bad_lse++;
            if (shown++ < 4)
                printf("  row %ld lse got %g want %g allowed %g, max got %g want %g allowed %g\n",
                       (long)row, one.lse[row] * unit, lse[i], lse_hard[i], one.top[row], top[i],
                       top_hard[i]);
        }
    }
    ok = ok && same && !bad && !bad_lse && !bad_z;
    printf("%-4s %-26s rows %7ld  of allowed: o %.3f lse %.3f max %.3f  z %.2f%s",
           ok ? "ok" : "FAIL", t->name, (long)rows, worst, worst_lse, worst_top, worst_z,
           same ? "" : "  not repeated");
    if (!ok)
        printf("  bad o %ld rows-lse %ld rows-z %ld", (long)bad, (long)bad_lse, (long)bad_z);
    printf("\n");
    fflush(stdout);
    for (size_t i = 0; i < d.device.size(); i++)
        CHECK(cudaFree(d.device[i]));
    return ok;
}

int main(int argc, char **argv)
{
    int count = 0, failed = 0, run = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) {
        printf("skipped: %s\n", cudaGetErrorString(cudaGetLastError()));
        return 77;
    }
    /* What runs here must fit the smallest target: 99 KB of shared memory, no more. */
    for (int rows = 16; rows <= 64; rows *= 2)
        for (int rope = 0; rope <= 64; rope += 64)
            for (int kind = 0; kind < 4; kind++) {
                bool packed = kind & 1, group = kind & 2;
                struct mla_mqa_tile tile = group ? mla_mqa_group_tile_bf16(rows, rope, packed)
                                                 : mla_mqa_tile_bf16(rows, rope, packed);
                struct cudaFuncAttributes attr;
                CHECK(cudaFuncGetAttributes(&attr, tile.function));
                printf("tile rows %d rope %d %s%s: %zu B shared, %d registers, %zu B local\n", rows,
                       rope, packed ? "packed" : "plain", group ? " of groups" : "",
                       tile.shared_bytes + attr.sharedSizeBytes, attr.numRegs, attr.localSizeBytes);
                failed += tile.shared_bytes + attr.sharedSizeBytes > MLA_ANY_SHARED_BYTES;
            }
    for (const struct test_case &t : cases()) {
        if (argc > 1 && !strstr(t.name, argv[1]))
            continue;
        if (argc == 1 && strstr(t.name, "2^31"))
            continue; /* 5 GB of host memory: only when asked for */
        run++;
        failed += !run_case(&t);
    }
    printf("%d cases, %d failed\n", run, failed);
    return failed != 0;
}
