/* SPDX-License-Identifier: Apache-2.0 */
/* Problem strings, inside the library. */
#ifndef MLA_COMMON_PROBLEM_H
#define MLA_COMMON_PROBLEM_H

#include "mla/mla.h"

/* "2q512s4k,8q1s4k" -> length arrays that the problem owns (in place of those it had). */
mla_status mla_batch_parse(mla_problem *problem, const char *batch);
/* num_pages and max_pages from the lengths and page_size, every request on pages of its own. */
void mla_problem_count_pages(mla_problem *problem);

#endif
