/* SPDX-License-Identifier: Apache-2.0 */
/* Small problem files built in memory and spoilt on purpose; independent of the writer under
 * test. */
#ifndef MLA_TESTS_SUPPORT_FILES_H
#define MLA_TESTS_SUPPORT_FILES_H

#include "common/tool/safetensors.h"

struct test_tensor {
    char name[80];
    enum mla_st_dtype dtype;
    int rank;
    int64_t shape[8];
    unsigned char *data;
    size_t bytes;
};

struct test_file {
    struct test_tensor tensors[24];
    int num_tensors;
    char keys[12][80], values[12][80];
    int num_keys;
};

/* Names of the well-formed bases, NULL at the end: "latent", "latent-paged", … */
extern const char *const test_file_bases[];

/* A well-formed problem file: 3 requests with 2, 0 and 1 queries over 3, 0 and 2 keys. */
void test_file_base(struct test_file *f, const char *base);

/* Applies edits, separated by ';': drop NAME | rename NAME NEW | dtype NAME F16 |
 * shape NAME 3,2,8 | set NAME INDEX INTEGER | setf NAME INDEX NUMBER | add NAME I32 3,4 |
 * meta KEY VALUE | unmeta KEY. Sizes follow shapes; new bytes are zero. */
void test_file_edit(struct test_file *f, const char *edits);

/* The container's bytes, from malloc; tensors back to back, in order. */
unsigned char *test_file_bytes(const struct test_file *f, size_t *size);
void test_file_free(struct test_file *f);

/* Header text and so many zero bytes of data as a container, from malloc. */
unsigned char *test_container(const char *header, size_t header_bytes, size_t data_bytes,
                              size_t *size);

/* A scratch directory of the test program: group setup and teardown, the path of a file in it
 * (until the next call), and how many files it holds. */
int test_dir_make(void **state);
int test_dir_remove(void **state);
const char *test_dir_path(const char *name);
int test_dir_files(void);
/* Another directory instead, which stays. */
void test_dir_use(const char *path);

#endif
