/* SPDX-License-Identifier: Apache-2.0 */
/* Where the time of a run goes: kernel rows say which part the work that they enqueue next belongs
 * to. Nobody listens unless a tool asks, and then only in its own thread. */
#ifndef MLA_COMMON_TRACE_H
#define MLA_COMMON_TRACE_H

struct mla_trace {
    /* name: static text; "gather", "project", "mask" or "attention" (splits merged). */
    void (*part)(void *user, const char *name, void *stream);
    void *user;
};

extern _Thread_local const struct mla_trace *mla_trace; /* NULL = nobody */

static inline void mla_trace_part(const char *name, void *stream)
{
    if (mla_trace)
        mla_trace->part(mla_trace->user, name, stream);
}

#endif
