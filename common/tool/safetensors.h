/* SPDX-License-Identifier: Apache-2.0 */
/* The safetensors container: a hostile-proof reader and an all-or-nothing writer. */
#ifndef MLA_TOOL_SAFETENSORS_H
#define MLA_TOOL_SAFETENSORS_H

#include "mla/mla.h"

enum mla_st_dtype {
    MLA_ST_BOOL,
    MLA_ST_U8,
    MLA_ST_I8,
    MLA_ST_I16,
    MLA_ST_U16,
    MLA_ST_I32,
    MLA_ST_U32,
    MLA_ST_I64,
    MLA_ST_U64,
    MLA_ST_F8_E4M3,
    MLA_ST_F8_E5M2,
    MLA_ST_BF16,
    MLA_ST_F16,
    MLA_ST_F32,
    MLA_ST_F64
};

struct mla_st_tensor {
    const char *name;
    enum mla_st_dtype dtype;
    int rank; /* <= 8 */
    int64_t shape[8];
    const void *data; /* reader: points into the file's memory, read-only */
    size_t bytes;
};

struct mla_st_file {
    int64_t num_tensors;
    struct mla_st_tensor *tensors;
    int64_t num_metadata;
    const char **keys, **values;
    void *owned;
};

const char *mla_st_dtype_name(enum mla_st_dtype dtype); /* "BF16" */
size_t mla_st_dtype_bytes(enum mla_st_dtype dtype);

/* Text from a file made fit to print: at most bytes - 1 characters, others than printable ASCII
 * become '?', a cut is marked "...". Returns dst. */
const char *mla_st_printable(char *dst, size_t bytes, const char *text);

/* Opens and maps a file. Lengths, offsets, overlaps, gaps, overflow, JSON depth, duplicate names,
 * dtypes and shapes are checked before anything is used. MLA_ERR_IO (can't read), MLA_ERR_ARGUMENT
 * (malformed, or not a regular file), MLA_ERR_MEMORY. On failure *out is empty. Foreign files may
 * place data at any byte, so .data need not be aligned to its dtype. */
mla_status mla_st_open(const char *path, struct mla_st_file *out);
/* The same on bytes in memory, which must outlive the file (the fuzz target's entry). */
mla_status mla_st_parse(const void *bytes, size_t size, const char *label, struct mla_st_file *out);
void mla_st_close(struct mla_st_file *file);
const struct mla_st_tensor *mla_st_find(const struct mla_st_file *file, const char *name);
const char *mla_st_metadata(const struct mla_st_file *file, const char *key);

/* Writes tensors and metadata to path: temporary file beside it, then rename; the data section
 * starts at a multiple of 64, and each tensor at a multiple of the largest power of two, up to 64,
 * that divides its size. The same input gives the same bytes. On failure no file appears and an old
 * one stays. MLA_ERR_ARGUMENT (a tensor or text that the format can't hold, or path is something
 * other than a regular file), MLA_ERR_IO, MLA_ERR_MEMORY. */
mla_status mla_st_write(const char *path, const struct mla_st_tensor *tensors, int64_t num_tensors,
                        const char *const *keys, const char *const *values, int64_t num_metadata);

#endif
