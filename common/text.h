/* SPDX-License-Identifier: Apache-2.0 */
/* Appending text to a caller's buffer with snprintf's return rule. */
#ifndef MLA_COMMON_TEXT_H
#define MLA_COMMON_TEXT_H

#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>

struct mla_text {
    char *at;     /* may be NULL if bytes is 0 */
    size_t bytes; /* room, terminator included */
    size_t used;  /* length so far, as if there were room */
};

__attribute__((format(printf, 2, 3))) static inline void mla_text_add(struct mla_text *t,
                                                                      const char *format, ...)
{
    va_list list;
    va_start(list, format);
    size_t room = t->used < t->bytes ? t->bytes - t->used : 0;
    int n = vsnprintf(room ? t->at + t->used : NULL, room, format, list);
    va_end(list);
    if (n > 0)
        t->used += (size_t)n;
}

#endif
