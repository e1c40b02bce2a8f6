/* SPDX-License-Identifier: Apache-2.0 */
/* Counts of a launch by role, and what they come to in clocks of one SM. */
#include "count.h"

#include "engine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool model_counting;

enum { ROLES = 32 };

static struct {
    const char *name;
    uint64_t sums[COUNTS];
} roles[ROLES];
static int num_roles;

void model_tally_add(enum model_counted what, uint64_t amount)
{
    static int last;
    const char *name = model_self->role ? model_self->role : "-";
    if (last >= num_roles || roles[last].name != name) {
        last = 0;
        while (last < num_roles && strcmp(roles[last].name, name) != 0)
            last++;
        if (last == ROLES)
            last = ROLES - 1; /* the last row stands for all that don't fit */
        else if (last == num_roles)
            roles[num_roles++].name = name;
    }
    roles[last].sums[what] += amount;
}

void model_counts_begin(void)
{
    const char *path = getenv("MLA_MODEL_COUNTS");
    model_counting = path != NULL && *path != '\0';
    memset(roles, 0, sizeof roles);
    num_roles = 0;
}

static void print_row(FILE *file, const char *name, const uint64_t *sums)
{
    fprintf(file, "%-14s", name);
    for (int i = 0; i < COUNTS; i++)
        fprintf(file, " %12llu", (unsigned long long)sums[i]);
    fprintf(file, "\n");
}

void model_counts_end(const char *kernel, uint64_t blocks)
{
    static const char *const heads[COUNTS] = {"tensor clk",  "operands B",  "ld.shared B",
                                              "st.shared B", "copied in B", "copied out B",
                                              "tmem ld B",   "tmem st B",   "ex2"};
    if (!model_counting)
        return;
    model_counting = false;
    const char *path = getenv("MLA_MODEL_COUNTS");
    FILE *file = path != NULL && strcmp(path, "-") != 0 ? fopen(path, "a") : stderr;
    if (file == NULL)
        return;
    uint64_t all[COUNTS] = {0};
    fprintf(file, "%s: %llu blocks on sm_%d\n%-14s", kernel, (unsigned long long)blocks,
            model_device.sm, "role");
    for (int i = 0; i < COUNTS; i++)
        fprintf(file, " %12s", heads[i]);
    fprintf(file, "\n");
    for (int r = 0; r < num_roles; r++) {
        print_row(file, roles[r].name, roles[r].sums);
        for (int i = 0; i < COUNTS; i++)
            all[i] += roles[r].sums[i];
    }
    print_row(file, "all", all);
    /* an SM moves 128 bytes of shared memory and makes 16 ex2 a clock */
    uint64_t shared = (all[COUNT_OPERANDS] + all[COUNT_SHARED_LD] + all[COUNT_SHARED_ST] +
                       all[COUNT_COPIED_IN] + all[COUNT_COPIED_OUT]) /
                      128;
    uint64_t clocks[3] = {all[COUNT_TENSOR], shared, all[COUNT_EX2] / 16}, most = 1;
    for (int i = 0; i < 3; i++)
        most = most < clocks[i] ? clocks[i] : most;
    fprintf(file,
            "clocks of one SM, each unit alone and never waiting: tensor %llu, shared memory %llu, "
            "ex2 %llu; tensor at most %.0f %% busy\n\n",
            (unsigned long long)clocks[0], (unsigned long long)clocks[1],
            (unsigned long long)clocks[2], 100 * (double)clocks[0] / (double)most);
    if (file != stderr)
        fclose(file);
}
