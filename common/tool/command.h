/* SPDX-License-Identifier: Apache-2.0 */
/* What the subcommands of the program share: options from a table, sentences, JSON output. */
#ifndef MLA_TOOL_COMMAND_H
#define MLA_TOOL_COMMAND_H

#include "case.h"

#include <jansson.h>
#include <stdio.h>

enum { EXIT_DONE = 0, EXIT_OUTSIDE = 1, EXIT_INPUT = 2, EXIT_NOT_HERE = 3, EXIT_DEVICE = 4 };

enum option_kind {
    OPTION_FLAG,  /* bool */
    OPTION_TEXT,  /* const char * */
    OPTION_COUNT, /* int64_t, 0 and up, k = 1024 allowed */
    OPTION_LIST   /* struct text_list: may be repeated */
};

struct text_list {
    const char **items; /* room for every argument of the command line */
    int count;
};

struct option {
    const char *name; /* without dashes */
    char letter;      /* 0 = none */
    enum option_kind kind;
    void *to;
    const char *value; /* name of the value in --help */
    const char *help;
};

struct command {
    const char *name;
    const char *arguments; /* "FILE -o OUT", for --help */
    const char *summary;
    const char *notes; /* more lines for --help, or NULL */
    int (*run)(const struct command *command, int argc, char **argv);
};

extern const struct command mla_command_make, mla_command_run, mla_command_check, mla_command_bench,
    mla_command_info, mla_command_tune, mla_command_qualify;

/* Reads the command line behind the subcommand's name. options end with a row without name; what is
 * no option goes to files (NULL: none allowed). Returns true to go on; false with *exit_status set
 * after --help or bad usage. Lists must be freed by mla_options_free. */
bool mla_options_read(const struct command *command, const struct option *options, int argc,
                      char **argv, struct text_list *files, int *exit_status);
void mla_options_free(const struct option *options, struct text_list *files);

/* One sentence on stderr ("mla make: --topk: got …, want …"); returns EXIT_INPUT. */
int mla_usage(const struct command *command, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
/* mla_last_error on stderr; returns the exit status of the library status. */
int mla_report(const struct command *command, mla_status status);
/* Warning callback for files. Warnings wait until mla_warnings_show, so that a file which turns out
 * to be bad leaves one sentence and no more. */
void mla_warning(const char *line, void *user);
void mla_warnings_show(const struct command *command);

/* Backend, route and precision words; on a bad one leaves a sentence and returns false. backend may
 * be "auto": the first of cuda and cpu that opens. */
struct compute {
    const char *backend, *route, *precision, *kernel, *schedule, *splits;
    int64_t threads;
    /* resolved: */
    mla_context *context;
    mla_context *host; /* CPU: what references are computed with */
    mla_backend chosen;
    mla_route forced;
    mla_precision precision_value;
    int64_t num_splits;
};
/* Option rows for struct compute c. */
#define COMPUTE_OPTIONS(c)                                                                         \
    {"backend", 0, OPTION_TEXT, &(c).backend, "NAME", "cpu (default), cuda, model or auto"},       \
        {"route",    0,       OPTION_TEXT,                                                         \
         &(c).route, "ROUTE", "auto (default), dense-mha, masked-mha, sparse-mqa or dense-mqa"},   \
        {"precision", 0, OPTION_TEXT, &(c).precision, "P", "fp32 (default) or fp64, of cpu"},      \
        {"kernel", 0, OPTION_TEXT, &(c).kernel, "NAME", "one kernel row of mla info"},             \
        {"schedule", 0, OPTION_TEXT, &(c).schedule, "S", "eager, late or random:SEED, of model"},  \
        {"splits",                                                                                 \
         0,                                                                                        \
         OPTION_TEXT,                                                                              \
         &(c).splits,                                                                              \
         "N",                                                                                      \
         "key splits of decode: auto (default), a number, or alone: by each request alone"},       \
    {                                                                                              \
        "threads", 0, OPTION_COUNT, &(c).threads, "N", "CPU threads (default: all)"                \
    }
/* Checks the words; opens the context. Returns EXIT_DONE or leaves a sentence. */
int mla_compute_words(const struct command *command, struct compute *c);
int mla_compute_open(const struct command *command, struct compute *c);
void mla_compute_close(struct compute *c);

/* One run of a case: plan, poisoned outputs, results. */
struct run_result {
    mla_plan *plan;
    mla_dtype out_dtype, lse_dtype;
    void *out, *lse, *max_logits;
    void *workspace;
    const mla_context *context;
    struct mla_device_case *device; /* of a CUDA context: what lies there */
    double seconds;
};
/* Sets out_dtype, wants_lse and wants_max_logits of the case's problem, plans and runs. */
mla_status mla_run_plan(const struct compute *c, struct mla_case *k, bool max_logits,
                        struct run_result *out);
/* The same with a route for each request. */
mla_status mla_run_plan_routes(const struct compute *c, struct mla_case *k, const mla_route *routes,
                               bool max_logits, struct run_result *out);
mla_status mla_run_case(struct mla_case *k, struct run_result *out);
/* Once more into the same outputs. */
mla_status mla_run_again(const struct mla_case *k, struct run_result *r);
void mla_run_free(struct run_result *r);

/* Judges every problem string of a shapes stream by every route it admits, as mla check does with
 * --route each; lines go to text. Returns an exit status; failures are no error here. */
struct check_counts {
    int64_t good, failed, skipped;
};
int mla_check_stream(const struct command *command, const struct compute *compute, FILE *shapes,
                     const char *name, FILE *text, struct check_counts *counts);

/* The admissible route with the most roundings, for results of unknown origin. */
mla_route mla_loosest_route(const mla_problem *p, bool complete);
/* Elements of out. */
int64_t mla_out_elements(const mla_problem *p);

/* JSON to a file (whole or not at all), or to stdout for "-". Takes the reference. Exit status. */
int mla_json_write(const struct command *command, json_t *root, const char *path);
/* Where human text goes beside --json path: stdout, or nowhere if the JSON goes there. */
FILE *mla_text_open(const char *json_path);
void mla_text_close(FILE *text);

double mla_seconds(void);
/* "model name" of the processor. */
const char *mla_cpu_name(void);
/* Driver and clocks of a CUDA context's device as nvidia-smi tells them, in one line; "" if there
 * is none. */
void mla_gpu_state(const mla_context *context, char *text, size_t bytes);

#endif
