/* SPDX-License-Identifier: Apache-2.0 */
/* mla make: options -> problem string -> case -> file. */
#include "command.h"

#include "common/status.h"
#include "common/text.h"

#include <ctype.h>
#include <string.h>

/* Options are keys of problem strings under their own names. */
enum { MAKE_KEYS = 23 };
static const char *const make_keys[MAKE_KEYS] = {
    "model", "batch",    "form",  "heads", "heads_kv", "rank", "nope",  "rope",
    "v",     "dtype",    "cache", "page",  "topk",     "fill", "seed",  "causal",
    "base",  "kv_dtype", "scale", "pages", "sinks",    "mask", "holes",
};

struct make_options {
    const char *value[MAKE_KEYS];
    bool sink, topk_lens;
    const char *out;
};

static int list_models(void)
{
    printf("%-18s %6s %5s %5s %5s %4s %5s  %s\n", "model", "heads", "rank", "nope", "rope", "v",
           "topk", "scale");
    for (int i = 0; mla_model_name(i); i++) {
        mla_problem p;
        if (mla_problem_init_model(&p, mla_model_name(i)) != MLA_OK)
            continue;
        printf("%-18s %6lld %5lld %5lld %5lld %4lld %5lld  %.9g\n", mla_model_name(i),
               (long long)p.heads_q, (long long)p.kv_lora_rank, (long long)p.qk_nope_dim,
               (long long)p.qk_rope_dim, (long long)p.v_dim, (long long)p.topk, p.softmax_scale);
    }
    return EXIT_DONE;
}

static const char *value_of(const struct make_options *o, const char *key)
{
    for (int i = 0; i < MAKE_KEYS; i++)
        if (strcmp(make_keys[i], key) == 0)
            return o->value[i];
    return NULL;
}

static bool holds_blank(const char *text)
{
    for (; *text; text++)
        if (isspace((unsigned char)*text))
            return true;
    return false;
}

/* The problem string of the options: into text, as snprintf. base: a string given whole, or
 * "attend". */
static size_t compose(const struct make_options *o, const char *base, char *text, size_t bytes)
{
    struct mla_text t = {.at = text, .bytes = bytes};
    mla_text_add(&t, "%s", base);
    for (int i = 0; i < MAKE_KEYS; i++)
        if (o->value[i])
            mla_text_add(&t, " %s=%s", make_keys[i], o->value[i]);
    /* A mask takes the place of the model's lists. */
    const char *mask = value_of(o, "mask");
    if (mask && strcmp(mask, "1") == 0 && !value_of(o, "topk"))
        mla_text_add(&t, " topk=0");
    if (o->sink)
        mla_text_add(&t, " sink=1");
    if (o->topk_lens)
        mla_text_add(&t, " topk_lens=1");
    return t.used;
}

static int make_file(const struct command *command, const struct make_options *o, const char *base)
{
    size_t bytes = compose(o, base, NULL, 0) + 1;
    char *text = mla_alloc(bytes, 1);
    if (!text) {
        mla_usage(command, "options: no memory for %zu bytes", bytes);
        return EXIT_DEVICE;
    }
    compose(o, base, text, bytes);
    struct mla_case_spec spec;
    struct mla_case k;
    mla_status status = mla_case_spec_parse(&spec, text);
    mla_free(text);
    if (status)
        return mla_report(command, status);
    status = mla_case_make(&spec, &k);
    mla_problem_release(&spec.problem);
    if (status)
        return mla_report(command, status);
    status = mla_case_save(&k, o->out);
    int exit_status = status ? mla_report(command, status) : EXIT_DONE;
    if (!status)
        printf("wrote %s\n%s\n", o->out, k.text);
    mla_case_free(&k);
    return exit_status;
}

static int run_make(const struct command *command, int argc, char **argv)
{
    struct make_options o = {0};
    struct text_list files = {0};
    const struct option options[] = {
        {"model", 0, OPTION_TEXT, &o.value[0], "NAME", "a model of mla make --model list"},
        {"batch", 0, OPTION_TEXT, &o.value[1], "SPEC", "requests, such as 4q512s8k,2q1s32k"},
        {"form", 0, OPTION_TEXT, &o.value[2], "FORM", "latent (default), absorbed or expanded"},
        {"heads", 0, OPTION_TEXT, &o.value[3], "N", "query heads, in place of the model's"},
        {"heads-kv", 0, OPTION_TEXT, &o.value[4], "N", "expanded: kv heads (default: as many)"},
        {"rank", 0, OPTION_TEXT, &o.value[5], "N", "kv_lora_rank"},
        {"nope", 0, OPTION_TEXT, &o.value[6], "N", "qk_nope_dim"},
        {"rope", 0, OPTION_TEXT, &o.value[7], "N", "qk_rope_dim"},
        {"v", 0, OPTION_TEXT, &o.value[8], "N", "v_dim"},
        {"dtype", 0, OPTION_TEXT, &o.value[9], "TYPE", "bf16 (default), f16 or f32"},
        {"cache", 0, OPTION_TEXT, &o.value[10], "FORMAT",
         "bf16, f16, f32, fp8_ds_mla, model1, v41 or nvfp4_ds_mla"},
        {"page", 0, OPTION_TEXT, &o.value[11], "P", "page size, 0 = flat (packed caches: 64)"},
        {"topk", 0, OPTION_TEXT, &o.value[12], "K", "listed keys a row, 0 = no lists"},
        {"fill", 0, OPTION_TEXT, &o.value[13], "KIND", "what the tensors hold; see below"},
        {"seed", 0, OPTION_TEXT, &o.value[14], "N", "of the random numbers (default 0)"},
        {"causal", 0, OPTION_TEXT, &o.value[15], "0|1", "causal visibility (default 1)"},
        {"base", 0, OPTION_TEXT, &o.value[16], "e|2", "base of lse"},
        {"kv-dtype", 0, OPTION_TEXT, &o.value[17], "TYPE", "expanded: of k and v"},
        {"scale", 0, OPTION_TEXT, &o.value[18], "X", "softmax_scale, in place of the model's"},
        {"pages", 0, OPTION_TEXT, &o.value[19], "ORDER", "shuffled (default) or ordered"},
        {"sinks", 0, OPTION_TEXT, &o.value[20], "KIND", "attn_sink: finite, or inf for some ±inf"},
        {"mask", 0, OPTION_TEXT, &o.value[21], "0|1", "a bitmask instead of lists"},
        {"holes", 0, OPTION_TEXT, &o.value[22], "0|1", "invalid entries amid the lists"},
        {"sink", 0, OPTION_FLAG, &o.sink, NULL, "attn_sink"},
        {"topk-lens", 0, OPTION_FLAG, &o.topk_lens, NULL, "topk_lens, poison behind them"},
        {"output", 'o', OPTION_TEXT, &o.out, "FILE", "the problem file"},
        {0},
    };
    int exit_status;
    if (!mla_options_read(command, options, argc, argv, &files, &exit_status))
        return exit_status;
    exit_status = EXIT_INPUT;
    const char *base = files.count ? files.items[0] : "attend";
    const char *bad = NULL;
    for (int i = 0; i < MAKE_KEYS; i++)
        if (o.value[i] && (holds_blank(o.value[i]) || !*o.value[i]))
            bad = make_keys[i];
    if (o.value[0] && strcmp(o.value[0], "list") == 0)
        exit_status = list_models();
    else if (files.count > 1)
        mla_usage(command, "got argument '%.80s', want at most one problem string", files.items[1]);
    else if (files.count && strncmp(base, "attend", 6) != 0)
        mla_usage(command, "got argument '%.80s', want a problem string that begins with attend",
                  base);
    else if (bad)
        mla_usage(command, "--%s: got '%.80s', want one word without blanks", bad,
                  value_of(&o, bad));
    else if (!files.count && !value_of(&o, "model"))
        mla_usage(command, "--model: got nothing, want a model name (--model list shows them)");
    else if (!files.count && !value_of(&o, "batch"))
        mla_usage(command, "--batch: got nothing, want [count]q<query_len>[k][s<kv_len>[k]],...");
    else if (!o.out)
        mla_usage(command, "-o: got nothing, want the file to write");
    else
        exit_status = make_file(command, &o, base);
    mla_options_free(options, &files);
    return exit_status;
}

const struct command mla_command_make = {
    "make",
    "--model NAME --batch SPEC [options] -o FILE\n   or: mla make 'attend ...' -o FILE",
    "writes a problem file",
    "SPEC is [count]q<query_len>[k][s<kv_len>[k]], comma-separated: q2k is one request of 2048 "
    "new\n"
    "tokens, 8q1s4k eight decodes with 4096 keys each, the new one included.\n"
    "KIND: normal (default), diffuse, large, counting, needle, peaky, equal, huge, sink, cancel,\n"
    "masked. The same options give the same file on every machine.",
    run_make,
};
