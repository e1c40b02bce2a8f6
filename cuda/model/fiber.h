/* SPDX-License-Identifier: Apache-2.0 */
/* Switching between stacks. */
#ifndef MLA_CUDA_MODEL_FIBER_H
#define MLA_CUDA_MODEL_FIBER_H

#include <stddef.h>

/* The stack a context runs on, and where it was left. */
struct model_context {
    void *pointer; /* stack pointer, or ucontext */
    char *stack;   /* lowest address; NULL for the thread the launch came from */
    size_t bytes;
    void *fake; /* AddressSanitizer's */
};

/* Gives the context a stack of its own, kept over reuse; false without memory. */
bool model_context_stack(struct model_context *context);
/* entry runs on the stack at the first switch; it never returns. */
void model_context_start(struct model_context *context, void (*entry)(void));
void model_context_free(struct model_context *context);
/* Leaves `from` and goes on with `to`. ends: from is never gone back to. */
void model_context_switch(struct model_context *from, struct model_context *to, bool ends);
/* First call of an entry. */
void model_context_entered(void);

#endif
