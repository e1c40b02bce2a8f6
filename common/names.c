/* SPDX-License-Identifier: Apache-2.0 */
/* Enumerators and their names, as problem strings, files and the program spell them. */
#include "status.h"

#include <string.h>

static const char *const backend_names[] = {"cpu", "cuda", "model", NULL};
static const char *const dtype_names[] = {"bf16", "f16", "f32", "f64", NULL};
static const char *const cache_format_names[] = {"bf16",   "f16", "f32",          "fp8_ds_mla",
                                                 "model1", "v41", "nvfp4_ds_mla", NULL};
static const char *const form_names[] = {"latent", "absorbed", "expanded", NULL};
static const char *const route_names[] = {"auto",       "dense-mha", "masked-mha",
                                          "sparse-mqa", "dense-mqa", NULL};
static const char *const proof_names[] = {"cpu", "silicon", "model", "compiled", NULL};

#define COUNT(names) ((int)(sizeof names / sizeof *names) - 1)

static const char *name_of(const char *const *names, int count, int value)
{
    return value >= 0 && value < count ? names[value] : "unknown";
}

static mla_status parse(const char *const *names, int count, const char *what, const char *name,
                        int *out)
{
    char wanted[160] = "";
    for (int i = 0; i < count; i++) {
        if (name && strcmp(name, names[i]) == 0) {
            *out = i;
            return MLA_OK;
        }
        strncat(wanted, i ? ", " : "", sizeof wanted - strlen(wanted) - 1);
        strncat(wanted, names[i], sizeof wanted - strlen(wanted) - 1);
    }
    return mla_fail(MLA_ERR_ARGUMENT, "%s: got %s%s%s, want one of %s", what, name ? "'" : "",
                    name ? name : "NULL", name ? "'" : "", wanted);
}

#define NAMED(kind, type)                                                                          \
    const char *mla_##kind##_name(type value)                                                      \
    {                                                                                              \
        return name_of(kind##_names, COUNT(kind##_names), (int)value);                             \
    }
#define PARSED(kind, type)                                                                         \
    mla_status mla_##kind##_parse(const char *name, type *out)                                     \
    {                                                                                              \
        int value = 0;                                                                             \
        if (!out)                                                                                  \
            return mla_fail(MLA_ERR_ARGUMENT,                                                      \
                            "mla_" #kind "_parse: out: got NULL, want a pointer");                 \
        mla_status status = parse(kind##_names, COUNT(kind##_names), #kind, name, &value);         \
        if (status == MLA_OK)                                                                      \
            *out = (type)value;                                                                    \
        return status;                                                                             \
    }

NAMED(backend, mla_backend)
NAMED(dtype, mla_dtype)
NAMED(cache_format, mla_cache_format)
NAMED(form, mla_form)
NAMED(route, mla_route)
NAMED(proof, mla_proof)
PARSED(backend, mla_backend)
PARSED(dtype, mla_dtype)
PARSED(cache_format, mla_cache_format)
PARSED(form, mla_form)
PARSED(route, mla_route)
