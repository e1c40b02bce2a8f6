/* SPDX-License-Identifier: Apache-2.0 */
/* Trust in kernels on a device: which rows of the table may be chosen without being named.
 *
 * A row that ran on silicon, or on the CPU, may. One that only ran in the functional model, or was
 * only compiled, may once `mla qualify` has run it on this very device, driver and library version
 * and recorded so. The record is a text file of sections, one a device:
 *
 *   mla-qualified 1
 *   device <identity of the context, with the library's version>
 *   kernel <name> ok <cases>
 *   kernel <name> failed <cases>
 *
 * It is read when a context is created, from MLA_QUALIFIED, else from mla/qualified in
 * XDG_CACHE_HOME, else from ~/.cache/mla/qualified. MLA_QUALIFIED set to nothing reads none. */
#ifndef MLA_COMMON_QUALIFY_H
#define MLA_COMMON_QUALIFY_H

#include "kernel.h"

/* Where records are looked for; false if there is no such place. */
bool mla_qualified_path(char *path, size_t bytes);

/* Takes this context's section of a file, if the file has one. What is no such file, or is
 * damaged, is MLA_ERR_ARGUMENT with the line; no file at all MLA_ERR_IO. Replaces what the context
 * knew. */
mla_status mla_qualified_load(mla_context *context, const char *path);

/* At the opening of a context: no file qualifies nothing; one that MLA_QUALIFIED names must be
 * sound, a damaged one at the default place qualifies nothing either. */
mla_status mla_qualified_find(mla_context *context);

struct mla_qualified_row {
    const char *kernel;
    bool ok;
    int64_t cases;
};
/* Writes this context's section, and keeps the other sections of a sound file that is there. The
 * file appears whole or not at all. MLA_ERR_IO, MLA_ERR_MEMORY. */
mla_status mla_qualified_save(const mla_context *context, const char *path,
                              const struct mla_qualified_row *rows, int count);

/* May the kernel be chosen here without being named? */
bool mla_kernel_trusted(const mla_context *context, const struct mla_kernel *kernel);

#endif
