/* SPDX-License-Identifier: Apache-2.0 */
/* What to generate, as a problem string: the keys of mla_problem_parse and those of the
 * generator. */
#include "fill.h"

#include "common/status.h"
#include "common/text.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static mla_status bad_value(const char *key, const char *value, const char *wanted)
{
    return mla_fail(MLA_ERR_ARGUMENT, "mla_case_spec_parse: %s: got '%.80s', want %s", key, value,
                    wanted);
}

/* One of two words. */
static mla_status choose(const char *key, const char *value, const char *no, const char *yes,
                         bool *out)
{
    char wanted[64];
    snprintf(wanted, sizeof wanted, "%s or %s", no, yes);
    *out = strcmp(value, yes) == 0;
    return *out || strcmp(value, no) == 0 ? MLA_OK : bad_value(key, value, wanted);
}

static mla_status set_word(struct mla_case_spec *spec, char *word)
{
    char *value = strchr(word, '=');
    if (!value)
        return bad_value("word", word, "key=value");
    *value++ = '\0';
    if (strcmp(word, "fill") == 0) {
        for (int k = 0; k < FILL_KINDS; k++)
            if (strcmp(value, mla_fill_names[k]) == 0) {
                snprintf(spec->fill, sizeof spec->fill, "%s", value);
                return MLA_OK;
            }
        return bad_value(word, value, MLA_FILL_LIST);
    }
    if (strcmp(word, "seed") == 0) {
        char *end = value;
        errno = 0;
        if (isdigit((unsigned char)*value))
            spec->seed = strtoull(value, &end, 10);
        return end != value && !*end && !errno ? MLA_OK : bad_value(word, value, "0 to 2^64-1");
    }
    if (strcmp(word, "pages") == 0)
        return choose(word, value, "ordered", "shuffled", &spec->shuffled_pages);
    if (strcmp(word, "holes") == 0)
        return choose(word, value, "0", "1", &spec->holes);
    if (strcmp(word, "sinks") == 0) {
        spec->problem.has_sink = true;
        return choose(word, value, "finite", "inf", &spec->infinite_sinks);
    }
    return bad_value("key", word, "a key of problem strings, fill, seed, pages, holes or sinks");
}

mla_status mla_case_spec_parse(struct mla_case_spec *spec, const char *text)
{
    *spec = (struct mla_case_spec){.fill = "normal", .shuffled_pages = true};
    size_t bytes = strlen(text) + 1;
    char *rest = mla_alloc(bytes, 1), *save = NULL;
    if (!rest)
        return mla_fail(MLA_ERR_MEMORY, "mla_case_spec_parse: no memory for %zu bytes", bytes);
    mla_status status = mla_problem_parse(&spec->problem, text, rest, bytes);
    if (!status) {
        for (char *word = strtok_r(rest, " ", &save); word && !status;
             word = strtok_r(NULL, " ", &save))
            status = set_word(spec, word);
        if (status)
            mla_problem_release(&spec->problem);
    }
    mla_free(rest);
    return status;
}

size_t mla_case_spec_print(const struct mla_case_spec *spec, char *text, size_t bytes)
{
    struct mla_text t = {.at = text, .bytes = bytes};
    t.used = mla_problem_print(&spec->problem, text, bytes);
    mla_text_add(&t, " fill=%s seed=%" PRIu64, spec->fill, spec->seed);
    if (spec->problem.page_size && !spec->shuffled_pages)
        mla_text_add(&t, " pages=ordered");
    if (spec->holes)
        mla_text_add(&t, " holes=1");
    if (spec->infinite_sinks)
        mla_text_add(&t, " sinks=inf");
    return t.used;
}
