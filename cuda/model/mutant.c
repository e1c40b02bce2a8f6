/* SPDX-License-Identifier: Apache-2.0 */
#include "mutant.h"

#include <stdlib.h>
#include <string.h>

int model_mutant;

void model_mutant_select(const char *kernel)
{
    const char *chosen = getenv("MLA_MODEL_MUTANT");
    const char *colon = chosen ? strrchr(chosen, ':') : NULL;
    char stem[128];
    model_mutant = 0;
    if (!colon || colon == chosen || (size_t)(colon - chosen) >= sizeof stem)
        return;
    memcpy(stem, chosen, (size_t)(colon - chosen));
    stem[colon - chosen] = '\0';
    if (strstr(kernel, stem))
        model_mutant = atoi(colon + 1);
}
