/* SPDX-License-Identifier: Apache-2.0 */
/* Switching between stacks: a few instructions on x86-64, ucontext elsewhere. AddressSanitizer is
 * told about every switch. */
#include "fiber.h"

#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__)
#define WITH_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define WITH_ASAN 1
#endif
#endif

#ifdef WITH_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
enum { STACK_BYTES = 1 << 20 }; /* instrumented frames are large */
#else
enum { STACK_BYTES = 1 << 18 };
#endif

bool model_context_stack(struct model_context *context)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    if (context->stack)
        return true;
    char *at = (char *)mmap(NULL, STACK_BYTES + page, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED)
        return false;
    mprotect(at, page, PROT_NONE); /* an overflow faults */
    context->stack = at + page;
    context->bytes = STACK_BYTES;
    return true;
}

#ifdef WITH_ASAN
static struct model_context *came_from;
#endif

#ifdef __x86_64__

/* Saves what a called function must keep, leaves the old stack pointer in *rdi, takes up rsi. */
extern "C" void model_switch_stacks(void **from, void *to);
asm(".text\n"
    ".p2align 4\n"
    ".globl model_switch_stacks\n"
    ".hidden model_switch_stacks\n"
    ".type model_switch_stacks, @function\n"
    "model_switch_stacks:\n"
    "pushq %rbp\n"
    "pushq %rbx\n"
    "pushq %r12\n"
    "pushq %r13\n"
    "pushq %r14\n"
    "pushq %r15\n"
    "movq %rsp, (%rdi)\n"
    "movq %rsi, %rsp\n"
    "popq %r15\n"
    "popq %r14\n"
    "popq %r13\n"
    "popq %r12\n"
    "popq %rbx\n"
    "popq %rbp\n"
    "ret\n"
    ".size model_switch_stacks, . - model_switch_stacks\n");

void model_context_start(struct model_context *context, void (*entry)(void))
{
#ifdef WITH_ASAN
    __asan_unpoison_memory_region(context->stack, context->bytes); /* of a run that was ended */
    context->fake = NULL;
#endif
    void **top = (void **)(context->stack + context->bytes);
    *--top = NULL;          /* a return address for entry: stack traces end here */
    *--top = (void *)entry; /* what ret finds; then rsp is 8 mod 16, as after a call */
    for (int i = 0; i < 6; i++)
        *--top = NULL;
    context->pointer = top;
}

void model_context_free(struct model_context *context)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    if (context->stack)
        munmap(context->stack - page, context->bytes + page);
    context->stack = NULL;
}

static void switch_stacks(struct model_context *from, struct model_context *to)
{
    model_switch_stacks(&from->pointer, to->pointer);
}

#else

#include <ucontext.h>

void model_context_start(struct model_context *context, void (*entry)(void))
{
#ifdef WITH_ASAN
    __asan_unpoison_memory_region(context->stack, context->bytes);
    context->fake = NULL;
#endif
    if (!context->pointer)
        context->pointer = calloc(1, sizeof(ucontext_t));
    ucontext_t *u = (ucontext_t *)context->pointer;
    getcontext(u);
    u->uc_stack.ss_sp = context->stack;
    u->uc_stack.ss_size = context->bytes;
    u->uc_link = NULL;
    makecontext(u, entry, 0);
}

void model_context_free(struct model_context *context)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    free(context->pointer);
    context->pointer = NULL;
    if (context->stack)
        munmap(context->stack - page, context->bytes + page);
    context->stack = NULL;
}

static void switch_stacks(struct model_context *from, struct model_context *to)
{
    if (!from->pointer)
        from->pointer = calloc(1, sizeof(ucontext_t));
    swapcontext((ucontext_t *)from->pointer, (ucontext_t *)to->pointer);
}

#endif

void model_context_switch(struct model_context *from, struct model_context *to, bool ends)
{
#ifdef WITH_ASAN
    came_from = from;
    __sanitizer_start_switch_fiber(ends ? NULL : &from->fake, to->stack, to->bytes);
#else
    (void)ends;
#endif
    switch_stacks(from, to);
#ifdef WITH_ASAN
    const void *stack;
    size_t bytes;
    __sanitizer_finish_switch_fiber(from->fake, &stack, &bytes);
    if (!came_from->stack) { /* the first to learn where the launching thread's stack lies */
        came_from->stack = (char *)(uintptr_t)stack;
        came_from->bytes = bytes;
    }
#endif
}

void model_context_entered(void)
{
#ifdef WITH_ASAN
    const void *stack;
    size_t bytes;
    __sanitizer_finish_switch_fiber(NULL, &stack, &bytes);
    if (!came_from->stack) {
        came_from->stack = (char *)(uintptr_t)stack;
        came_from->bytes = bytes;
    }
#endif
}
