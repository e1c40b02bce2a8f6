/* SPDX-License-Identifier: Apache-2.0 */
/* A case: a problem with its tensors on the host, from a file, a problem string or a generator.
 * Part of the program and the tests, not of the library. */
#ifndef MLA_TOOL_CASE_H
#define MLA_TOOL_CASE_H

#include "common/problem.h"
#include "mla/mla.h"

/* Everything behind its pointers comes from mla_case_buffer or, read-only, from the mapped file. */
struct mla_case {
    mla_problem problem; /* length arrays owned by the case */
    mla_tensors tensors; /* inputs owned by the case; out, lse, max_logits absent */
    char fill[16];       /* metadata "fill"; "" if unknown */
    uint64_t seed;
    bool *complete; /* [B], by mla_tensors_check */
    char *text;     /* problem string that reruns it ("" if it came from a file) */
    void *owned;    /* list of buffers behind tensors */
};

/* What to generate. Parsed from a problem string or from the options of mla make. */
struct mla_case_spec {
    mla_problem problem; /* lengths set; storage owned (mla_problem_release) */
    char fill[16];       /* KIND of interchange.md: normal, diffuse, large, counting, … */
    uint64_t seed;
    bool shuffled_pages; /* page ids permuted (the default); false = 0, 1, 2, … */
    bool holes;          /* about one listed entry in 8 replaced by what must be ignored */
    bool infinite_sinks; /* two sinks of three are -inf, +inf */
};

/* "attend form=… fill=… seed=…" -> spec. MLA_ERR_ARGUMENT, MLA_ERR_MEMORY. */
mla_status mla_case_spec_parse(struct mla_case_spec *spec, const char *text);
/* The string that parses to spec; as snprintf. */
size_t mla_case_spec_print(const struct mla_case_spec *spec, char *text, size_t bytes);
/* Fills tensors for spec; the same spec gives the same bits on every machine and thread count. */
mla_status mla_case_make(const struct mla_case_spec *spec, struct mla_case *out);
/* Reads a problem file (.safetensors); every input rule of interchange.md §2 is checked.
 * Warnings (unknown tensors, metadata) go to warn(line, user); warn may be NULL. */
mla_status mla_case_load(const char *path, struct mla_case *out,
                         void (*warn)(const char *line, void *user), void *user);
/* The same from bytes in memory, which are copied; label stands for the path in sentences. */
mla_status mla_case_load_bytes(const void *bytes, size_t size, const char *label,
                               struct mla_case *out, void (*warn)(const char *line, void *user),
                               void *user);
/* path that exists as a file -> load; a string that starts with "attend" -> parse + make. */
mla_status mla_case_open(const char *path_or_text, struct mla_case *out,
                         void (*warn)(const char *line, void *user), void *user);
/* Writes whole or not at all (temporary file, then rename). MLA_ERR_IO. */
mla_status mla_case_save(const struct mla_case *c, const char *path);
void mla_case_free(struct mla_case *c);

/* A zeroed buffer, aligned to 64, that is freed with the case, or NULL. */
void *mla_case_buffer(struct mla_case *c, size_t count, size_t bytes);

#endif
