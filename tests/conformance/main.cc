/* SPDX-License-Identifier: Apache-2.0 */
/* conformance FILE           runs all cases and writes the answers to FILE (or --record FILE)
 * conformance --check FILE   runs all cases and compares; names each case that differs and where
 * Exit: 0 all well, 1 a difference or an error, 77 no device or no file to compare with.
 *
 * A case that a GPU or the model refuses at run time has the answer "refused"; since such an error
 * ends a CUDA process' work, recording goes on in a new process behind that case.
 *
 * A line is: name, tab, number of words, hash of all, then a hash of 16 bits for each of up to 64
 * equal pieces; of up to 32 words, the words themselves. */
#include "conformance.h"

extern "C" {
#include "status.h"
}

#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifndef MLA_MODEL
#include "device.h"

/* What tensor_map.c needs of the CUDA backend. */
mla_status mla_cuda_fail(const char *function, const char *call, cudaError_t error)
{
    return mla_fail(MLA_ERR_CUDA, "%s: %s: %s", function, call, cudaGetErrorString(error));
}
#endif

enum { DYNAMIC_BYTES = 200 << 10, ROOM_BYTES = INPUT_BYTES, LINE = 1024, MAX_CASES = 1024 };

const uint32_t *conform_input;
unsigned char *conform_room;

static uint32_t *device_out;
static FILE *record;
static char *expected[MAX_CASES]; /* lines of the file to compare with */
static int num_expected, num_cases, num_wrong;
static const char *only;            /* cases whose name begins so */
static int first_case, case_number; /* recording: cases before first_case are in the file already */
static char **arguments;

static void check(cudaError_t error, const char *what, const char *name)
{
    if (error == cudaSuccess)
        return;
    printf("%s: %s: %s\n", name, what, cudaGetErrorString(error));
    exit(1);
}

static uint64_t fnv(const uint32_t *words, size_t n)
{
    uint64_t h = 0xCBF29CE484222325;
    for (size_t i = 0; i < n; i++)
        for (int b = 0; b < 32; b += 8)
            h = (h ^ (words[i] >> b & 0xFF)) * 0x100000001B3;
    return h;
}

static size_t piece_words(size_t words)
{
    return words <= 32 ? 1 : (words + 63) / 64;
}

static void line_of(char *line, const char *name, const uint32_t *words, size_t n)
{
    int at = snprintf(line, LINE, "%s\t%zu %016llx", name, n, (unsigned long long)fnv(words, n));
    size_t piece = piece_words(n);
    for (size_t i = 0; i < n; i += piece) {
        size_t count = n - i < piece ? n - i : piece;
        if (piece == 1)
            at += snprintf(line + at, LINE - (size_t)at, " %08x", words[i]);
        else {
            uint64_t h = fnv(words + i, count);
            at += snprintf(line + at, LINE - (size_t)at, " %04x",
                           (unsigned)((h ^ h >> 16 ^ h >> 32 ^ h >> 48) & 0xFFFF));
        }
    }
}

static const char *line_named(const char *name)
{
    size_t n = strlen(name);
    for (int i = 0; i < num_expected; i++)
        if (strncmp(expected[i], name, n) == 0 && expected[i][n] == '\t')
            return expected[i];
    return NULL;
}

/* The first piece whose hash (or word) differs; the lines have equal forms up to there. */
static void explain(const char *name, const char *want, const char *got, const uint32_t *words,
                    size_t n)
{
    printf("DIFFERS %s: ", name);
    const char *w = strchr(want, '\t') + 1, *g = strchr(got, '\t') + 1;
    if (strtoul(w, NULL, 10) != n) {
        printf("%zu words, the record has %lu\n", n, strtoul(w, NULL, 10));
        return;
    }
    for (int skip = 0; skip < 2; skip++) {
        w = strchr(w, ' ') + 1;
        g = strchr(g, ' ') + 1;
    }
    size_t piece = piece_words(n), width = piece == 1 ? 9 : 5, at = 0;
    while (at * piece < n && strncmp(w + at * width, g + at * width, width - 1) == 0)
        at++;
    if (at * piece >= n) {
        printf("only the hash of all words differs\n");
        return;
    }
    if (piece == 1)
        printf("word %zu: got %.8s, the record has %.8s\n", at, g + at * width, w + at * width);
    else {
        printf("words %zu to %zu are the first that differ; here they begin", at * piece,
               at * piece + piece - 1);
        for (size_t i = at * piece; i < at * piece + 4 && i < n; i++)
            printf(" %08x", words[i]);
        printf("\n");
    }
}

/* words NULL: refused. */
static void answer(const char *name, const uint32_t *words, size_t n)
{
    char line[LINE];
    if (words)
        line_of(line, name, words, n);
    else
        snprintf(line, LINE, "%s\trefused", name);
    num_cases++;
    if (record != NULL) {
        fprintf(record, "%s\n", line);
        return;
    }
    const char *want = line_named(name);
    if (want == NULL) {
        printf("MISSING %s: not in the record\n", name);
        num_wrong++;
    } else if (strcmp(want, line) != 0 && (!words || strstr(want, "\trefused"))) {
        printf("DIFFERS %s: %s here, %s in the record\n", name, words ? "runs" : "refused",
               words ? "refused" : "runs");
        num_wrong++;
    } else if (strcmp(want, line) != 0) {
        explain(name, want, line, words, n);
        num_wrong++;
    }
}

/* After a kernel's error. */
static bool refused(const char *name, cudaError_t error)
{
    printf("%s: %s\n", name, cudaGetErrorString(error));
    answer(name, NULL, 0);
    cudaGetLastError();
#ifndef MLA_MODEL
    char from[16];
    snprintf(from, sizeof from, "%d", case_number);
    setenv("CONFORMANCE_FROM", from, 1);
    fflush(stdout);
    if (record == NULL || fclose(record) != 0)
        exit(1);
    execv("/proc/self/exe", arguments);
    exit(1);
#endif
    return false;
}

/* False if the kernel was refused. */
static bool launch(const char *name, const void *kernel, unsigned blocks, unsigned cluster,
                   unsigned threads, struct conform_args *args)
{
    args->input = conform_input;
    if (args->out == NULL)
        args->out = device_out;
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, DYNAMIC_BYTES),
          "cudaFuncSetAttribute", name);
    cudaLaunchConfig_t config = {};
    cudaLaunchAttribute attribute;
    memset(&attribute, 0, sizeof attribute);
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = cluster;
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    config.gridDim = dim3(blocks, 1, 1);
    config.blockDim = dim3(threads, 1, 1);
    config.dynamicSmemBytes = DYNAMIC_BYTES;
    config.attrs = &attribute;
    config.numAttrs = 1;
    void *params[] = {args};
    cudaError_t error = cudaLaunchKernelExC(&config, kernel, params);
    if (error == cudaSuccess)
        error = cudaDeviceSynchronize();
    return error == cudaSuccess || refused(name, error);
}

static uint32_t host[INPUT_BYTES / 4];

static bool wanted(const char *name)
{
    return case_number++ >= first_case && (only == NULL || strncmp(name, only, strlen(only)) == 0);
}

void conform_run(const char *name, const void *kernel, unsigned blocks, unsigned cluster,
                 unsigned threads, struct conform_args *args, size_t words)
{
    if (!wanted(name))
        return;
    check(cudaMemset(device_out, 0xEE, 4 * 256 * 128), "cudaMemset", name);
    args->out = device_out;
    if (!launch(name, kernel, blocks, cluster, threads, args))
        return;
    check(cudaMemcpy(host, device_out, 4 * words, cudaMemcpyDeviceToHost), "cudaMemcpy", name);
    answer(name, host, words);
}

void conform_run_room(const char *name, const void *kernel, unsigned threads,
                      struct conform_args *args, size_t words)
{
    if (!wanted(name))
        return;
    check(cudaMemset(conform_room, 0xEE, ROOM_BYTES), "cudaMemset", name);
    args->out = (uint32_t *)conform_room;
    if (!launch(name, kernel, 1, 1, threads, args))
        return;
    check(cudaMemcpy(host, conform_room, 4 * words, cudaMemcpyDeviceToHost), "cudaMemcpy", name);
    answer(name, host, words);
}

void conform_map(struct mla_tensor_map *map, int element_bytes, int rank, const void *base,
                 const uint64_t *dims, const uint64_t *strides, const uint32_t *box, int swizzle)
{
    if (mla_tensor_map_tiled(map, element_bytes, rank, base, dims, strides, box, swizzle) == MLA_OK)
        return;
    printf("%s\n", mla_last_error());
    exit(1);
}

static bool read_lines(const char *path)
{
    static char line[LINE + 2];
    FILE *file = fopen(path, "r");
    if (file == NULL)
        return false;
    while (fgets(line, sizeof line, file) != NULL && num_expected < MAX_CASES) {
        line[strcspn(line, "\n")] = '\0';
        if (line[0] == '#')
            continue;
        expected[num_expected] = (char *)malloc(strlen(line) + 1);
        if (expected[num_expected] == NULL)
            exit(1);
        strcpy(expected[num_expected++], line);
    }
    fclose(file);
    return true;
}

int main(int argc, char **argv)
{
    bool checking = argc >= 3 && strcmp(argv[1], "--check") == 0;
    bool named = argc >= 3 && strcmp(argv[1], "--record") == 0;
    if (argc < 2 || (argc > 2 && !checking && !named)) {
        printf("usage: conformance [--record] FILE | --check FILE [CASES]\n");
        return 1;
    }
    const char *path = argv[checking || named ? 2 : 1], *from = getenv("CONFORMANCE_FROM");
    first_case = from && !checking ? atoi(from) : 0;
    arguments = argv;
    only = argc > 3 ? argv[3] : NULL;
    if (checking && !read_lines(path)) {
        printf("SKIPPED: no record %s yet: a GPU has to make it (conformance --record FILE)\n",
               path);
        return 77;
    }
    int count = 0;
    cudaDeviceProp prop;
    if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0 ||
        cudaGetDeviceProperties(&prop, 0) != cudaSuccess || prop.major != 9) {
        printf("SKIPPED: no device of compute capability 9.0\n");
        return 77;
    }
    uint32_t *input;
    for (uint32_t i = 0; i < INPUT_BYTES / 4; i++) {
        uint32_t x = i * 0x9E3779B9u + 12345;
        x = (x ^ x >> 16) * 0x7FEB352Du;
        x = (x ^ x >> 15) * 0x846CA68Bu;
        host[i] = x ^ x >> 16;
    }
    check(cudaMalloc((void **)&input, INPUT_BYTES), "cudaMalloc", "input");
    check(cudaMalloc((void **)&conform_room, ROOM_BYTES), "cudaMalloc", "room");
    check(cudaMalloc((void **)&device_out, 4 * 256 * 128), "cudaMalloc", "out");
    check(cudaMemcpy(input, host, INPUT_BYTES, cudaMemcpyHostToDevice), "cudaMemcpy", "input");
    conform_input = input;
    if (!checking) {
        record = fopen(path, first_case ? "a" : "w");
        if (record == NULL) {
            printf("%s: cannot write\n", path);
            return 1;
        }
        if (!first_case)
            fprintf(record, "# Answers of %s, sm_%d%d, to tests/conformance\n", prop.name,
                    prop.major, prop.minor);
    }
    conform_warp();
    conform_sync();
    conform_tma();
    conform_wgmma();
    if (record != NULL && fclose(record) != 0) {
        printf("%s: write failed\n", path);
        return 1;
    }
    if (checking && only == NULL && num_cases != num_expected) {
        printf("DIFFERS: %d cases, the record has %d\n", num_cases, num_expected);
        num_wrong++;
    }
    printf("%d cases, %d differ\n", num_cases, num_wrong);
    cudaFree(input);
    cudaFree(conform_room);
    cudaFree(device_out);
    for (int i = 0; i < num_expected; i++)
        free(expected[i]);
    return num_wrong != 0;
}
