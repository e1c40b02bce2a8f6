/* SPDX-License-Identifier: Apache-2.0 */
/* The program mla: the table of subcommands, and the option reader they share. */
#include "cli.h"

#include "command.h"

#include "common/status.h"

#include <ctype.h>
#include <stdarg.h>
#include <string.h>
#include <sys/stat.h>

static const struct command *const commands[] = {
    &mla_command_info,  &mla_command_make, &mla_command_run,     &mla_command_check,
    &mla_command_bench, &mla_command_tune, &mla_command_qualify,
};
enum { COMMANDS = sizeof commands / sizeof *commands };

/* --------------------------------------------------------------- sentences */

int mla_usage(const struct command *command, const char *format, ...)
{
    va_list list;
    fprintf(stderr, "mla %s: ", command->name);
    va_start(list, format);
    vfprintf(stderr, format, list);
    va_end(list);
    fputc('\n', stderr);
    return EXIT_INPUT;
}

static char *warnings; /* lines, each with its newline */

static void forget_warnings(void)
{
    mla_free(warnings);
    warnings = NULL;
}

int mla_report(const struct command *command, mla_status status)
{
    forget_warnings();
    fprintf(stderr, "mla %s: %s\n", command->name, mla_last_error());
    return mla_exit_status(status);
}

void mla_warning(const char *line, void *user)
{
    size_t old = warnings ? strlen(warnings) : 0, more = strlen(line) + 2;
    char *text = mla_realloc(warnings, old + more, 1);
    (void)user;
    if (!text)
        return;
    snprintf(text + old, more, "%s\n", line);
    warnings = text;
}

void mla_warnings_show(const struct command *command)
{
    for (const char *line = warnings; line && *line; line += strcspn(line, "\n") + 1)
        fprintf(stderr, "mla %s: warning: %.*s\n", command->name, (int)strcspn(line, "\n"), line);
    forget_warnings();
}

/* ----------------------------------------------------------------- options */

static const struct option *find_option(const struct option *options, const char *name,
                                        size_t length)
{
    for (; options->name; options++)
        if (strlen(options->name) == length && memcmp(options->name, name, length) == 0)
            return options;
    return NULL;
}

static void print_help(const struct command *command, const struct option *options)
{
    printf("usage: mla %s %s\n%s\n\n", command->name, command->arguments, command->summary);
    for (; options->name; options++) {
        char left[64];
        snprintf(left, sizeof left, "%s%c%s--%s%s%s", options->letter ? "-" : " ",
                 options->letter ? options->letter : ' ', options->letter ? ", " : "  ",
                 options->name, options->value ? " " : "", options->value ? options->value : "");
        printf("  %-28s %s\n", left, options->help);
    }
    printf("  %-28s %s\n", "    --help", "this text");
    if (command->notes)
        printf("\n%s\n", command->notes);
}

static bool read_count(const char *text, int64_t *out)
{
    int64_t value = 0;
    const char *at = text;
    for (; isdigit((unsigned char)*at); at++) {
        value = value * 10 + (*at - '0');
        if (value > INT64_C(1) << 40)
            return false;
    }
    if (at != text && (*at == 'k' || *at == 'K')) {
        value *= 1024;
        at++;
    }
    *out = value;
    return at != text && !*at;
}

/* Stores the value of one option. seen: has it been given before? */
static bool store_option(const struct command *command, const struct option *option,
                         const char *value, bool seen)
{
    struct text_list *list;
    if (seen && option->kind != OPTION_LIST) {
        mla_usage(command, "--%s: got it twice, want it once", option->name);
        return false;
    }
    switch (option->kind) {
    case OPTION_FLAG:
        *(bool *)option->to = true;
        return true;
    case OPTION_TEXT:
        *(const char **)option->to = value;
        return true;
    case OPTION_LIST:
        list = option->to;
        list->items[list->count++] = value;
        return true;
    default:
        if (read_count(value, option->to))
            return true;
        mla_usage(command, "--%s: got '%.80s', want a whole number from 0 (k = 1024 allowed)",
                  option->name, value);
        return false;
    }
}

/* Handles the option at argv[*i]; the value may be in the next argument. */
static bool read_option(const struct command *command, const struct option *options, int argc,
                        char **argv, int *i, uint64_t *seen)
{
    const char *word = argv[*i], *value = NULL;
    const struct option *option = NULL;
    if (word[1] == '-') {
        size_t length = strcspn(word + 2, "=");
        option = find_option(options, word + 2, length);
        if (word[2 + length])
            value = word + 3 + length;
    } else {
        for (const struct option *o = options; o->name; o++)
            if (o->letter == word[1])
                option = o;
        if (option && word[2])
            value = word + 2;
    }
    if (!option) {
        mla_usage(command, "got option '%.80s', want one of mla %s --help", word, command->name);
        return false;
    }
    if (option->kind == OPTION_FLAG && value) {
        mla_usage(command, "--%s: got value '%.80s', want none", option->name, value);
        return false;
    }
    if (option->kind != OPTION_FLAG && !value) {
        if (*i + 1 >= argc) {
            mla_usage(command, "--%s: got nothing, want %s", option->name, option->value);
            return false;
        }
        value = argv[++*i];
    }
    uint64_t bit = UINT64_C(1) << (option - options);
    bool twice = *seen & bit;
    *seen |= bit;
    return store_option(command, option, value, twice);
}

bool mla_options_read(const struct command *command, const struct option *options, int argc,
                      char **argv, struct text_list *files, int *exit_status)
{
    uint64_t seen = 0; /* one bit an option; no command has 64 */
    bool only_files = false;
    for (int i = 0; i < argc; i++)
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            print_help(command, options);
            *exit_status = EXIT_DONE;
            return false;
        }
    bool memory = true;
    for (const struct option *o = options; o->name; o++)
        if (o->kind == OPTION_LIST) {
            struct text_list *list = o->to;
            *list = (struct text_list){mla_alloc((size_t)argc + 1, sizeof(char *)), 0};
            memory = memory && list->items;
        }
    if (files) {
        *files = (struct text_list){mla_alloc((size_t)argc + 1, sizeof(char *)), 0};
        memory = memory && files->items;
    }
    bool good = memory;
    *exit_status = memory ? EXIT_INPUT : EXIT_DEVICE;
    if (!memory)
        mla_usage(command, "command line: no memory for %d words", argc);
    for (int i = 0; i < argc && good; i++) {
        const char *word = argv[i];
        if (!only_files && strcmp(word, "--") == 0)
            only_files = true;
        else if (!only_files && word[0] == '-' && word[1])
            good = read_option(command, options, argc, argv, &i, &seen);
        else if (files)
            files->items[files->count++] = word;
        else {
            mla_usage(command, "got argument '%.80s', want options only", word);
            good = false;
        }
    }
    if (!good)
        mla_options_free(options, files);
    return good;
}

void mla_options_free(const struct option *options, struct text_list *files)
{
    for (; options->name; options++)
        if (options->kind == OPTION_LIST) {
            struct text_list *list = options->to;
            mla_free(list->items);
            list->items = NULL;
        }
    if (files) {
        mla_free(files->items);
        files->items = NULL;
    }
}

/* -------------------------------------------------------------------- JSON */

/* Writes whole or not at all, but for devices and pipes, which a rename would replace. */
static bool write_json(const json_t *root, size_t flags, const char *path)
{
    struct stat info;
    bool direct = stat(path, &info) == 0 && !S_ISREG(info.st_mode);
    size_t bytes = strlen(path) + 5;
    char *name = mla_alloc(bytes, 1);
    if (!name)
        return false;
    snprintf(name, bytes, "%s%s", path, direct ? "" : ".tmp");
    FILE *file = fopen(name, "w");
    bool good = file && !json_dumpf(root, file, flags) && fputc('\n', file) != EOF;
    if (file)
        good = !fclose(file) && good;
    if (!direct) {
        good = good && !rename(name, path);
        if (!good && file)
            remove(name);
    }
    mla_free(name);
    return good;
}

int mla_json_write(const struct command *command, json_t *root, const char *path)
{
    size_t flags = JSON_INDENT(2) | JSON_REAL_PRECISION(17);
    bool good;
    if (!root) {
        fprintf(stderr, "mla %s: --json: no memory\n", command->name);
        return EXIT_DEVICE;
    }
    if (strcmp(path, "-") == 0)
        good = !json_dumpf(root, stdout, flags) && putchar('\n') != EOF && !fflush(stdout);
    else
        good = write_json(root, flags, path);
    if (!good)
        fprintf(stderr, "mla %s: --json: got '%s', want a file that can be written\n",
                command->name, path);
    json_decref(root);
    return good ? EXIT_DONE : EXIT_DEVICE;
}

FILE *mla_text_open(const char *json_path)
{
    return json_path && strcmp(json_path, "-") == 0 ? fopen("/dev/null", "w") : stdout;
}

void mla_text_close(FILE *text)
{
    if (text && text != stdout)
        fclose(text);
}

/* ---------------------------------------------------------------- dispatch */

static int print_usage(FILE *to)
{
    fprintf(to, "usage: mla COMMAND ...\nMulti-head Latent Attention: problem files, results, "
                "checks and timings\n\n");
    for (int i = 0; i < COMMANDS; i++)
        fprintf(to, "  %-10s %s\n", commands[i]->name, commands[i]->summary);
    fprintf(to, "\nmla COMMAND --help tells more; mla --version prints the version\n");
    return EXIT_DONE;
}

int mla_cli(int argc, char **argv)
{
    if (argc < 2) {
        fprintf(stderr, "mla: got no command, want info, make, run, check, bench, tune or "
                        "qualify (mla --help)\n");
        return EXIT_INPUT;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 ||
        strcmp(argv[1], "help") == 0)
        return print_usage(stdout);
    if (strcmp(argv[1], "--version") == 0) {
        printf("mla %s\n", mla_version());
        return EXIT_DONE;
    }
    for (int i = 0; i < COMMANDS; i++)
        if (strcmp(argv[1], commands[i]->name) == 0) {
            int exit_status = commands[i]->run(commands[i], argc - 2, argv + 2);
            /* A full disk or closed pipe must not look like success. */
            if (exit_status == EXIT_DONE && (fflush(stdout) || ferror(stdout))) {
                fprintf(stderr, "mla %s: stdout: cannot be written\n", argv[1]);
                return EXIT_DEVICE;
            }
            return exit_status;
        }
    fprintf(stderr,
            "mla: got command '%.80s', want info, make, run, check, bench, tune or qualify\n",
            argv[1]);
    return EXIT_INPUT;
}
