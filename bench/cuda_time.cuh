/* SPDX-License-Identifier: Apache-2.0 */
/* What the CUDA benches share: checked calls, and the time of one launch past L2. */
#ifndef MLA_BENCH_CUDA_TIME_CUH
#define MLA_BENCH_CUDA_TIME_CUH

#include <cuda_runtime_api.h>

#include <algorithm>
#include <stdio.h>
#include <stdlib.h>
#include <vector>

#define CHECK(call)                                                                                \
    do {                                                                                           \
        cudaError_t e_ = (call);                                                                   \
        if (e_ != cudaSuccess) {                                                                   \
            printf("%s:%d: %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString(e_));          \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

static const int REPEATS = 15;
static const size_t FLUSH = 256 << 20;
static char *flush_buffer; /* FLUSH bytes, the bench's to allocate */

/* The device rests: the host launches meanwhile, and kernels that draw all the power allowed do not
 * meet what the one before left of the clocks. */
static const long long REST = 700000; /* clocks, 0.35 to 0.4 ms */

static __global__ void rest(void)
{
    const long long start = clock64();
    while (clock64() - start < REST) {
    }
}

/* Events around one launch, FLUSH bytes written and a rest before each, as peers are timed; the
 * median of REPEATS behind three. */
template <class F> static double median_ms(F launch)
{
    cudaEvent_t start, stop;
    CHECK(cudaEventCreate(&start));
    CHECK(cudaEventCreate(&stop));
    std::vector<float> times;
    for (int i = 0; i < REPEATS + 3; i++) {
        float ms;
        CHECK(cudaMemsetAsync(flush_buffer, i, FLUSH));
        rest<<<1, 1>>>();
        CHECK(cudaEventRecord(start));
        launch();
        CHECK(cudaEventRecord(stop));
        CHECK(cudaEventSynchronize(stop));
        CHECK(cudaEventElapsedTime(&ms, start, stop));
        if (i >= 3)
            times.push_back(ms);
    }
    CHECK(cudaEventDestroy(start));
    CHECK(cudaEventDestroy(stop));
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
}

#endif
