/* SPDX-License-Identifier: Apache-2.0 */
// labels: cli
// timeout: 300
/* The program mla, run as users run it: exit statuses, sentences, files, JSON. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "common/kernel.h"
#include "common/tool/case.h"
#include "common/tool/result_file.h"

#include <dirent.h>
#include <fcntl.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static char directory[512], out_text[1 << 18], err_text[1 << 16];

static void slurp(const char *name, char *text, size_t bytes)
{
    FILE *file = fopen(name, "r");
    assert_non_null(file);
    text[fread(text, 1, bytes - 1, file)] = '\0';
    fclose(file);
}

/* Runs "mla <arguments>" through the shell in the scratch directory; returns the exit status. */
static int mla(const char *arguments)
{
    char command[8192];
    snprintf(command, sizeof command, "%s %s/mla %s >../stdout.txt 2>../stderr.txt </dev/null",
             strncmp(arguments, "OMP_", 4) == 0 ? "env" : "", MLA_BINARY_DIR, arguments);
    if (strncmp(arguments, "OMP_", 4) == 0) /* variables come before the program */
        snprintf(command, sizeof command, "env %.*s %s/mla %s >../stdout.txt 2>../stderr.txt",
                 (int)strcspn(arguments, " "), arguments, MLA_BINARY_DIR,
                 arguments + strcspn(arguments, " "));
    int status = system(command);
    slurp("../stdout.txt", out_text, sizeof out_text);
    slurp("../stderr.txt", err_text, sizeof err_text);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void must(const char *arguments, int want)
{
    int got = mla(arguments);
    if (got != want)
        fail_msg("mla %s: exit %d, want %d\n%s%s", arguments, got, want, out_text, err_text);
}

static int files_here(void)
{
    DIR *dir = opendir(".");
    int n = 0;
    assert_non_null(dir);
    while (readdir(dir))
        n++;
    closedir(dir);
    return n;
}

static void write_text(const char *name, const char *text, size_t bytes)
{
    FILE *file = fopen(name, "w");
    assert_non_null(file);
    assert_int_equal(fwrite(text, 1, bytes, file), bytes);
    fclose(file);
}

/* ------------------------------------------------------------ wrong commands */

struct wrong {
    const char *arguments;
    int exit_status;
    const char *sentence; /* part of it */
};

static const struct wrong wrong_make[] = {
    {"", 2, "got no command, want info"},
    {"foo", 2, "got command 'foo', want info"},
    {"--foo", 2, "got command '--foo'"},
    {"make", 2, "--model: got nothing"},
    {"make --model tiny", 2, "--batch: got nothing"},
    {"make --model tiny --batch q4", 2, "-o: got nothing"},
    {"make --model foo --batch q4 -o out.st", 2, "model: got 'foo', want one of deepseek-v3.2"},
    {"make --model '' --batch q4 -o out.st", 2, "--model: got ''"},
    {"make --model tiny --batch '' -o out.st", 2, "--batch: got ''"},
    {"make --model tiny --batch q -o out.st", 2, "batch: got 'q'"},
    {"make --model tiny --batch 4 -o out.st", 2, "batch: got '4'"},
    {"make --model tiny --batch x4 -o out.st", 2, "batch: got 'x4'"},
    {"make --model tiny --batch q4s -o out.st", 2, "batch: got 'q4s'"},
    {"make --model tiny --batch q4, -o out.st", 2, "batch: got 'q4,'"},
    {"make --model tiny --batch 'q4 s5' -o out.st", 2, "--batch: got 'q4 s5'"},
    {"make --model tiny --batch 5000000q1 -o out.st", 2, "count above"},
    {"make --model tiny --batch q3000000000 -o out.st", 2, "batch: got"},
    {"make --model tiny --batch 4194304q4k -o out.st", 2, "query tokens"},
    {"make --model tiny --batch q-1 -o out.st", 2, "batch: got 'q-1'"},
    {"make --model tiny --batch q4s2 -o out.st", 2, "seq_lens_kv[0]: got 2, want at least"},
    {"make --model tiny --batch q4 --form dense -o out.st", 2, "'dense'"},
    {"make --model tiny --batch q4 --heads 0 -o out.st", 2, "heads_q: got 0"},
    {"make --model tiny --batch q4 --heads -1 -o out.st", 2, "heads: got '-1'"},
    {"make --model tiny --batch q4 --heads x -o out.st", 2, "heads: got 'x'"},
    {"make --model tiny --batch q4 --heads 70000 -o out.st", 2, "heads_q: got 70000"},
    {"make --model tiny --batch q4 --heads-kv 2 -o out.st", 2, "heads_kv: got 2"},
    {"make --model tiny --batch q4 --form expanded --heads-kv 3 -o out.st", 2, "heads_kv: got 3"},
    {"make --model tiny --batch q4 --topk -3 -o out.st", 2, "topk: got '-3'"},
    {"make --model tiny --batch q4 --topk 0 --topk-lens -o out.st", 2, "has_topk_lens: got true"},
    {"make --model tiny --batch q4 --fill foo -o out.st", 2, "fill: got 'foo', want normal"},
    {"make --model tiny --batch q4 --cache foo -o out.st", 2, "'foo'"},
    {"make --model tiny --batch q4 --cache fp8_ds_mla -o out.st", 2,
     "kv_lora_rank: got 64, want 512"},
    {"make --model deepseek-v3 --batch q4 --cache model1 -o out.st", 2, "form: got latent"},
    {"make --model deepseek-v3 --batch q4 --form absorbed --cache v41 --rope 64 -o out.st", 2,
     "qk_rope_dim: got 64, want 0"},
    {"make --model deepseek-v3 --batch q4 --cache fp8_ds_mla --page 0 -o out.st", 2,
     "page_size: got 0"},
    {"make --model tiny --batch q4 --page x -o out.st", 2, "page: got 'x'"},
    {"make --model tiny --batch q4 --form expanded --page 16 -o out.st", 2, "page_size: got 16"},
    {"make --model tiny --batch q4 --seed x -o out.st", 2, "seed: got 'x'"},
    {"make --model tiny --batch q4 --causal 2 -o out.st", 2, "causal: got '2', want 0 or 1"},
    {"make --model tiny --batch q4 --base 10 -o out.st", 2, "base: got '10', want e or 2"},
    {"make --model tiny --batch q4 --dtype f64 -o out.st", 2, "dtype: got 'f64'"},
    {"make --model tiny --batch q4 --scale inf -o out.st", 2, "scale: got 'inf'"},
    {"make --model tiny --batch q4 --scale x -o out.st", 2, "scale: got 'x'"},
    {"make --model tiny --batch q4 --pages x -o out.st", 2, "pages: got 'x'"},
    {"make --model tiny --batch q4 --sinks x -o out.st", 2, "sinks: got 'x'"},
    {"make --model tiny --batch q4 --mask 1 --topk 4 -o out.st", 2, "has_mask: got true"},
    {"make --model tiny --batch q4 --holes 2 -o out.st", 2, "holes: got '2'"},
    {"make --model tiny --batch q4 --rank 0 -o out.st", 2, "kv_lora_rank: got 0"},
    {"make --model tiny --batch q4 --nope 0 -o out.st", 2, "qk_nope_dim: got 0"},
    {"make --model tiny --batch q4 --v 0 -o out.st", 2, "v_dim: got 0"},
    {"make --model tiny --model tiny --batch q4 -o out.st", 2, "--model: got it twice"},
    {"make --model tiny --batch q4 --colour red -o out.st", 2, "got option '--colour'"},
    {"make --model tiny --batch q4 -x -o out.st", 2, "got option '-x'"},
    {"make --model tiny --batch q4 -o out.st foo", 2, "got argument 'foo'"},
    {"make --model tiny --batch q4 -o", 2, "--output: got nothing, want FILE"},
    {"make --model tiny --batch q4 --sink=1 -o out.st", 2, "--sink: got value '1', want none"},
    {"make 'attend fill=x' -o out.st", 2, "fill: got 'x'"},
    {"make 'attend complete=1 model=tiny holes=1' -o out.st", 2, "complete: got 1"},
    {"make --model tiny --batch q4 -o nowhere/out.st", 4, "nowhere/out.st"},
    {"make --model deepseek-v3.2 --batch q2097151k -o out.st", 4, "this machine's memory"},
    {"make --model tiny --topk 2147483647 --batch q1k -o out.st", 4, "this machine's memory"},
    {"make --model tiny --batch q4 -o /dev/full/out.st", 4, "/dev/full/out.st"},
};

static const struct wrong wrong_run[] = {
    {"run -o out.st", 2, "FILE: got 0 of them"},
    {"run good.st good.st -o out.st", 2, "FILE: got 2 of them"},
    {"run good.st", 2, "-o: got nothing"},
    {"run missing.st -o out.st", 2, "missing.st"},
    {"run ''  -o out.st", 2, "got"},
    {"run . -o out.st", 2, "got a directory"},
    {"run empty.st -o out.st", 2, "empty.st"},
    {"run garbage.st -o out.st", 2, "garbage.st"},
    {"run short.st -o out.st", 2, "short.st"},
    {"run twice.st -o out.st", 2, "topk_indices"},
    {"run nansink.st -o out.st", 2, "attn_sink"},
    {"run badpage.st -o out.st", 2, "page_table"},
    {"run badlens.st -o out.st", 2, "topk_lens"},
    {"run result.st -o out.st", 2, "result.st"},
    {"run 'attend colour=red' -o out.st", 2, "'colour'"},
    {"run 'attend heads=0' -o out.st", 2, "heads_q: got 0"},
    {"run good.st -o out.st --backend foo", 2, "--backend: got 'foo'"},
    {"run good.st -o out.st --route foo", 2, "--route: got 'foo'"},
    {"run good.st -o out.st --route each", 2, "--route: got 'each'"},
    {"run good.st -o out.st --precision fp16", 2, "--precision: got 'fp16'"},
    {"run good.st -o out.st --threads 5000", 2, "--threads: got 5000"},
    {"run good.st -o out.st --threads x", 2, "--threads: got 'x'"},
    {"run good.st -o out.st --schedule soon", 2, "--schedule: got 'soon'"},
    {"run good.st -o out.st --backend model --schedule random:", 2, "--schedule: got 'random:'"},
    {"run good.st -o out.st --schedule eager", 2, "--schedule: got it with --backend cpu"},
    {"run good.st -o out.st --kernel foo", 2, "foo"},
    {"run good.st -o out.st --bound --bound", 2, "--bound: got it twice"},
    {"run good.st -o nowhere/out.st", 4, "nowhere/out.st"},
    {"run good.st -o out.st --backend cuda", 3, "cuda"},
#ifndef MLA_WITH_MODEL
    {"run good.st -o out.st --backend model", 3, "model"},
    {"run good.st -o out.st --backend model --schedule random:7", 3, "model"},
#endif
    {"run 'attend model=tiny topk=0' -o out.st --route masked-mha", 3, "masked-mha"},
    {"run 'attend model=tiny topk=0' -o out.st --route sparse-mqa", 3, "sparse-mqa"},
    {"run 'attend model=tiny topk=0 mask=1' -o out.st --route sparse-mqa", 3, "sparse-mqa"},
    {"run 'attend model=tiny topk=4 skv=9' -o out.st --route dense-mha", 3, "dense-mha"},
    {"run 'attend model=tiny topk=4 skv=9' -o out.st --route dense-mqa", 3, "dense-mqa"},
    {"run 'attend form=absorbed' -o out.st --route dense-mha", 3, "absorbed"},
    {"run 'attend form=absorbed topk=4' -o out.st --route masked-mha", 3, "absorbed"},
    {"run 'attend form=expanded' -o out.st --route dense-mqa", 3, "expanded"},
    {"run 'attend form=expanded topk=4' -o out.st --route sparse-mqa", 3, "expanded"},
    {"run 'attend form=expanded' -o out.st --kernel sparse_mqa_cpu", 3, "sparse_mqa_cpu"},
};

static const struct wrong wrong_others[] = {
    {"check", 2, "FILE: got none"},
    {"check missing.st", 2, "missing.st"},
    {"check garbage.st", 2, "garbage.st"},
    {"check twice.st", 2, "topk_indices"},
    {"check good.st --strict --hard", 2, "--hard: got it beside --strict"},
    {"check good.st --rows x", 2, "--rows: got 'x'"},
    {"check good.st --route foo", 2, "--route: got 'foo'"},
    {"check good.st --against missing.st", 2, "missing.st"},
    {"check good.st --against good.st", 2, "out"},
    {"check good.st --against wrongshape.st", 2, "out"},
    {"check good.st --against garbage.st", 2, "garbage.st"},
    {"check good.st good.st --against result.st", 2, "--against: got it with 2 problems"},
    {"check good.st --against result.st --route each", 2, "--route: got each beside --against"},
    {"check good.st --against result.st --route dense-mha", 3, "dense-mha"},
    {"check good.st --backend cuda", 3, "cuda"},
    {"check 'attend form=absorbed' --route dense-mha", 3, "absorbed"},
    {"check --shapes missing.txt", 2, "--shapes: got 'missing.txt'"},
    {"check --shapes bad.txt", 2, "bad.txt line 2: got 'foo"},
    {"check --shapes baddirective.txt", 2, "baddirective.txt line 1: got 'route=up'"},
    {"check good.st --json nowhere/report.json", 4, "nowhere/report.json"},
    {"bench --heads 4", 2, "--batch: got nothing"},
    {"bench --model tiny", 2, "--batch: got nothing"},
    {"bench --model foo --batch q4", 2, "model: got 'foo'"},
    {"bench --model tiny --batch q", 2, "batch: got 'q'"},
    {"bench --model tiny --batch 'q4 s4'", 2, "--batch: got 'q4 s4'"},
    {"bench --model tiny --batch q4 --repeats 0", 2, "--repeats: got 0"},
    {"bench --csv", 2, "--csv: got it without problems"},
    {"bench --config missing.txt", 2, "--config: got 'missing.txt'"},
    {"bench --config bad.txt", 2, "got 'foo"},
    {"bench --routes all", 2, "--routes: got it without problems"},
    {"bench --plot out.png", 2, "--plot: got it without problems"},
    {"bench --routes none --batch q1", 2, "--routes: got 'none'"},
    {"bench --routes all --route dense-mha --batch q1", 2, "--route: got it beside"},
    {"bench --routes all --model tiny --batch q4 --batch q", 2, "batch: got 'q'"},
    {"bench --routes all --model tiny --batch q4s2", 2, "seq_lens_kv[0]: got 2"},
    {"bench --seconds 3 --model tiny --batch q4", 2, "--seconds: got it without --routes"},
    {"bench --from rows.json", 2, "--from: got it without --plot"},
    {"bench --from rows.json --plot out.svg --batch q4", 2, "--from: got it beside problems"},
    {"bench --from missing.json --plot out.svg", 2, "--from: got 'missing.json'"},
    {"bench --from good.st --plot out.svg", 2, "--from: got 'good.st'"},
    {"bench --from foreign.json --plot out.svg", 2, "row 0: got one without a problem"},
    {"bench --routes all --model tiny --batch q4 --repeats 1 --plot out.heat.svg", 4,
     "no rows for this drawing"},
    {"tune", 2, "-o: got nothing"},
    {"tune -o out.st --heads 4,x", 2, "--heads: got '4,x'"},
    {"tune -o out.st --model tiny --heads 128", 2, "got no setting"},
    {"tune -o out.st --topk -3", 2, "--topk"},
    {"tune -o out.st --queries 2", 2, "--queries, --keys: got 2"},
    {"tune -o out.st --backend model", 2, "no times"},
    {"tune -o out.st --model none", 2, "want one of"},
    {"tune -o out.st --cache none", 2, "'none'"},
    {"tune -o out.st --fill peaky", 2, "--fill: got 'peaky'"},
    {"tune --from out.st", 2, "--from: got it without --regret"},
    {"tune --regret 2 --json -", 2, "--regret: got it without -o"},
    {"tune --from missing.txt --regret 2", 2, "crossovers: got 'missing.txt'"},
    {"tune --foo", 2, "got option '--foo'"},
    {"qualify --backend cpu", 2, "want cuda or model"},
    {"qualify foo", 2, "got argument 'foo'"},
    {"info foo", 2, "got argument 'foo'"},
    {"info --json", 2, "--json: got nothing"},
    {"info --json nowhere/info.json", 4, "nowhere/info.json"},
};

/* One sentence on stderr, nothing on stdout that a program could take for a result, no file. */
static void try_wrong(const struct wrong *table, size_t n)
{
    int before = files_here(), bad = 0;
    for (size_t i = 0; i < n; i++) {
        int got = mla(table[i].arguments);
        const char *newline = strchr(err_text, '\n');
        bool one_line = newline && !newline[1];
        /* columns may precede a failing row of bench or check, or a report that can't be written */
        bool quiet = !*out_text || strchr("bci", table[i].arguments[0]);
        bool good = got == table[i].exit_status && strstr(err_text, table[i].sentence) &&
                    one_line && quiet && files_here() == before;
        if (!good)
            print_error("mla %s: exit %d, want %d with '%s'; %d files more\n%s%s",
                        table[i].arguments, got, table[i].exit_status, table[i].sentence,
                        files_here() - before, out_text, err_text);
        bad += !good;
    }
    assert_int_equal(bad, 0);
}

static void cli_wrong_make(void **state)
{
    (void)state;
    try_wrong(wrong_make, sizeof wrong_make / sizeof *wrong_make);
}

static void cli_wrong_run(void **state)
{
    (void)state;
    try_wrong(wrong_run, sizeof wrong_run / sizeof *wrong_run);
}

static void cli_wrong_others(void **state)
{
    (void)state;
    try_wrong(wrong_others, sizeof wrong_others / sizeof *wrong_others);
}

static void cli_full_disk_is_a_failure(void **state)
{
    (void)state;
    char command[1024];
    snprintf(command, sizeof command, "%s/mla info >/dev/full 2>../stderr.txt", MLA_BINARY_DIR);
    assert_int_equal(WEXITSTATUS(system(command)), 4);
    snprintf(command, sizeof command, "%s/mla info --json - >/dev/full 2>../stderr.txt",
             MLA_BINARY_DIR);
    assert_int_equal(WEXITSTATUS(system(command)), 4);
}

/* ------------------------------------------------------------- right commands */

static void cli_help_everywhere(void **state)
{
    static const char *const names[] = {"info", "make", "run", "check", "bench", "tune", "qualify"};
    (void)state;
    must("--help", 0);
    for (int i = 0; i < 7; i++) {
        assert_non_null(strstr(out_text, names[i]));
    }
    for (int i = 0; i < 7; i++) {
        char arguments[64], usage[64];
        snprintf(arguments, sizeof arguments, "%s --help", names[i]);
        snprintf(usage, sizeof usage, "usage: mla %s ", names[i]);
        must(arguments, 0);
        assert_ptr_equal(strstr(out_text, usage), out_text);
        assert_non_null(strstr(out_text, "--help"));
        assert_string_equal(err_text, "");
    }
    must("--version", 0);
    assert_string_equal(out_text, "mla 0.1.0\n");
}

static void cli_models(void **state)
{
    static const char *const names[] = {"deepseek-v3.2", "deepseek-v3", "glm-5", "kimi-k2", "tiny"};
    (void)state;
    must("make --model list", 0);
    for (int i = 0; i < 5; i++)
        assert_non_null(strstr(out_text, names[i]));
}

static json_t *json_of(const char *arguments, int want)
{
    json_error_t error;
    must(arguments, want);
    json_t *root = json_loads(out_text, JSON_REJECT_DUPLICATES, &error);
    if (!root)
        fail_msg("mla %s: %s\n%s", arguments, error.text, out_text);
    assert_string_equal(err_text, "");
    return root;
}

static void cli_json_is_pure(void **state)
{
    (void)state;
    json_t *root = json_of("info --json -", 0);
    assert_string_equal(json_string_value(json_object_get(root, "version")), "0.1.0");
    assert_int_equal(json_array_size(json_object_get(root, "kernels")), mla_kernel_count());
    assert_int_equal(json_array_size(json_object_get(root, "backends")), 3);
    json_decref(root);

    root = json_of("check good.st 'attend model=tiny topk=0 batch=q9' --json -", 0);
    assert_int_equal(json_integer_value(json_object_get(root, "ok")), 2);
    assert_int_equal(json_array_size(json_object_get(root, "cases")), 2);
    json_decref(root);

    root = json_of("check good.st --against broken.st --json -", 1);
    assert_int_equal(json_integer_value(json_object_get(root, "failed")), 1);
    json_decref(root);

    root = json_of("bench --model tiny --batch q4s40 --batch q1s40 --repeats 2 --json -", 0);
    json_t *rows = json_object_get(root, "results");
    assert_int_equal(json_array_size(rows), 4); /* masked-mha and sparse-mqa, twice */
    for (size_t i = 0; i < 4; i++) {
        json_t *row = json_array_get(rows, i);
        assert_string_equal(json_string_value(json_object_get(row, "checked")), "ok");
        assert_true(json_real_value(json_object_get(row, "median_us")) > 0);
        assert_true(json_real_value(json_object_get(row, "sgemm_gflops")) > 0);
    }
    json_decref(root);

    must("info --json report.json", 0);
    assert_non_null(strstr(out_text, "version"));
    root = json_load_file("report.json", 0, NULL);
    assert_non_null(root);
    json_decref(root);
    unlink("report.json");

    /* A device or pipe is written to, not replaced by a file. */
    struct stat info;
    assert_int_equal(mkfifo("pipe", 0600), 0);
    int reader = open("pipe", O_RDWR | O_NONBLOCK);
    assert_true(reader >= 0);
    must("info --json pipe", 0);
    assert_int_equal(stat("pipe", &info), 0);
    assert_true(S_ISFIFO(info.st_mode));
    ssize_t bytes = read(reader, out_text, sizeof out_text);
    close(reader);
    assert_true(bytes > 0);
    root = json_loadb(out_text, (size_t)bytes, 0, NULL);
    assert_non_null(root);
    json_decref(root);
    unlink("pipe");
}

static void cli_bench_columns(void **state)
{
    (void)state;
    must("bench 'attend model=tiny batch=q4s40' --repeats 1", 0);
    assert_ptr_equal(strstr(out_text, "# mla 0.1.0, commit "), out_text);
    assert_non_null(strstr(out_text, "sparse_mqa_"));
    assert_non_null(strstr(out_text, " ok "));
    must("bench 'attend model=tiny batch=q4s40' --repeats 1 --no-check --csv --route auto", 0);
    assert_ptr_equal(strstr(out_text, "kernel,route,median_us"), out_text);
    const char *row = strchr(out_text, '\n') + 1;
    assert_non_null(strstr(row, ",no,\"attend "));
    assert_null(strchr(strchr(row, '\n') + 1, '\n')); /* one row */
}

static const json_t *row_of(const json_t *rows, const char *route)
{
    for (size_t i = 0; i < json_array_size(rows); i++) {
        const json_t *row = json_array_get(rows, i);
        if (strcmp(json_string_value(json_object_get(row, "route")), route) == 0)
            return row;
    }
    fail_msg("no row of route %s", route);
    return NULL;
}

/* Every admissible route, the library's own choice, and for a mixed batch the batch-wide rule; rows
 * in the order of the command line, whatever the order of measuring. */
static void cli_bench_routes(void **state)
{
    (void)state;
    json_t *root = json_of("bench --routes all --model tiny --batch q8 --batch q40s60,2q1s50 "
                           "--batch q40 --seconds 3 --json -",
                           0);
    json_t *rows = json_object_get(root, "results");
    assert_string_equal(json_string_value(json_object_get(root, "version")), "0.1.0");
    assert_non_null(json_object_get(root, "commit"));
    assert_non_null(json_object_get(root, "context"));
    assert_int_equal(json_array_size(rows), 5 + 4 + 3); /* q8: lists are complete */
    for (size_t i = 0; i < json_array_size(rows); i++) {
        const json_t *row = json_array_get(rows, i);
        double median = json_real_value(json_object_get(row, "median_us"));
        assert_true(median > 0);
        assert_true(json_real_value(json_object_get(row, "min_us")) <= median);
        assert_true(json_real_value(json_object_get(row, "max_us")) >= median);
        assert_true(json_integer_value(json_object_get(row, "runs")) >= 3);
        assert_int_equal(json_integer_value(json_object_get(row, "requests")),
                         i >= 5 && i < 9 ? 3 : 1);
        assert_string_equal(json_string_value(json_object_get(row, "fill")), "normal");
    }
    const json_t *wide = row_of(rows, "batch-wide");
    assert_non_null(
        strstr(json_string_value(json_object_get(wide, "problem")), "batch=q40s60,2q1s50"));
    assert_int_equal(json_integer_value(json_object_get(wide, "query_tokens")), 42);
    assert_int_equal(json_integer_value(json_object_get(wide, "keys")), 160);
    json_decref(root);

    must("bench --routes masked-mha,sparse-mqa --model tiny --batch q40 --repeats 1 --csv", 0);
    assert_ptr_equal(strstr(out_text, "route,kernel,median_us,"), out_text);
    assert_non_null(strstr(out_text, "\nmasked-mha,masked_mha_"));
    assert_null(strstr(out_text, "\nauto,"));

    /* What the pool does not make is a case of its own: masks, other fills, files. */
    must("bench --routes all 'attend model=tiny topk=0 mask=1 batch=q9' good.st "
         "'attend model=tiny batch=q50 fill=needle' --repeats 1",
         0);
    assert_non_null(strstr(out_text, "fill=needle"));
    assert_non_null(strstr(out_text, "\ngood.st\n"));
    must("bench --routes indexer --model tiny --batch q40 --repeats 1", 0);
    assert_non_null(strstr(out_text, "mla_index_run"));
}

static void starts_and_ends(const char *name, const char *start, const char *end)
{
    static char text[1 << 16];
    slurp(name, text, sizeof text);
    assert_int_equal(strncmp(text, start, strlen(start)), 0);
    assert_true(strlen(text) > strlen(end));
    assert_string_equal(text + strlen(text) - strlen(end), end);
    unlink(name);
}

static void cli_bench_pictures(void **state)
{
    (void)state;
    must("bench --routes all --model tiny --batch q40 --batch q64 --batch q96 --batch q64s200,q1s9 "
         "--repeats 1 --json rows.json --plot page.html",
         0);
    starts_and_ends("page.html", "<!doctype html>", "</svg>\n</html>\n");
    must("bench --from rows.json --plot a.time.svg --plot a.heat.svg --plot a.roofline.svg --plot "
         "a.mixed.svg --plot b.svg --plot page.html",
         0);
    assert_string_equal(out_text, "");
    starts_and_ends("page.html", "<!doctype html>", "</svg>\n</html>\n");
    starts_and_ends("a.time.svg", "<svg xmlns", "</svg>\n");
    starts_and_ends("a.heat.svg", "<svg xmlns", "</svg>\n");
    starts_and_ends("a.roofline.svg", "<svg xmlns", "</svg>\n");
    starts_and_ends("a.mixed.svg", "<svg xmlns", "</svg>\n");
    starts_and_ends("b.svg", "<svg xmlns", "</svg>\n");
    /* Without gnuplot a sentence, not a broken pipe. */
    char *path = strdup(getenv("PATH"));
    assert_non_null(path);
    setenv("PATH", "/nowhere", 1);
    must("bench --from rows.json --plot a.png", 4);
    setenv("PATH", path, 1);
    free(path);
    assert_non_null(strstr(err_text, "gnuplot did not write 'a.png'"));
    unlink("rows.json");
}

/* Interrupted, bench writes what it has. The loop would go on for minutes. */
static void cli_bench_interrupted(void **state)
{
    char command[4096];
    (void)state;
    snprintf(
        command, sizeof command,
        "timeout -s INT 2 %s/mla bench --routes all --model tiny --batch q40 --batch 64q1s2k "
        "--batch q4k --batch q4k --batch q4k --batch q4k --batch q4k --batch q4k --batch q4k "
        "--batch q4k --batch q4k --batch q4k --repeats 60 --json rows.json >../stdout.txt 2>&1",
        MLA_BINARY_DIR);
    assert_int_equal(system(command) == -1, 0);
    slurp("../stdout.txt", out_text, sizeof out_text);
    assert_non_null(strstr(out_text, "were left out: interrupted"));
    json_t *root = json_load_file("rows.json", 0, NULL);
    assert_non_null(root);
    assert_true(json_array_size(json_object_get(root, "results")) > 0);
    json_decref(root);
    unlink("rows.json");
}

static void cli_tune_and_regret(void **state)
{
    (void)state;
    must("tune -o table.txt --backend cpu --model tiny --heads 4,2 --queries 16 --keys 1k "
         "--seconds 20 "
         "--json tune.json",
         0);
    assert_non_null(strstr(out_text, "for which masked-mha is faster than sparse-mqa"));
    json_t *root = json_load_file("tune.json", 0, NULL);
    assert_non_null(root);
    assert_int_equal(json_array_size(json_object_get(root, "curves")), 2);
    json_decref(root);
    root =
        json_of("tune --from table.txt --backend cpu --model tiny --heads 4 --queries 16 --keys 1k "
                "--regret 2 --json -",
                0);
    const json_t *regret = json_object_get(root, "regret");
    assert_int_equal(json_integer_value(json_object_get(regret, "batches")), 2);
    assert_true(json_real_value(json_object_get(regret, "worst_regret")) >= 0);
    assert_int_equal(json_array_size(json_object_get(regret, "rows")), 2);
    json_decref(root);
    /* Plans follow it; another version is refused with a sentence. */
    setenv("MLA_CROSSOVERS", "table.txt", 1);
    must("run 'attend model=tiny batch=q9s40' --explain", 0);
    assert_non_null(strstr(out_text, "by measured times"));
    assert_int_equal(system("sed -i 's/libmla 0.1.0/libmla 0.0.9/' table.txt"), 0);
    must("run 'attend model=tiny batch=q9s40' --explain", 2);
    assert_non_null(strstr(err_text, "libmla 0.0.9', want one of 'cpu "));
    /* … but does not hinder the making of a new one. */
    must("tune -o table.txt --backend cpu --model tiny --heads 4 --queries 4 --keys 0", 0);
    must("run 'attend model=tiny batch=q9s40' --explain", 0);
    unsetenv("MLA_CROSSOVERS");
    unlink("table.txt");
    unlink("tune.json");
}

static long size_of(const char *name)
{
    struct stat info;
    return stat(name, &info) == 0 ? (long)info.st_size : -1;
}

static void same_file(const char *a, const char *b)
{
    char command[256];
    snprintf(command, sizeof command, "cmp -s %s %s", a, b);
    assert_true(size_of(a) > 0);
    assert_int_equal(system(command), 0);
}

static void cli_make_is_deterministic(void **state)
{
    static const char *const options[] = {"--fill normal --topk 8 --page 16",
                                          "--fill sink --topk 16", "--form expanded --fill needle",
                                          "--form absorbed --fill cancel --topk-lens",
                                          "--fill masked --sinks inf"};
    (void)state;
    for (int i = 0; i < 5; i++) {
        char arguments[512];
        for (int n = 0; n < 3; n++) {
            snprintf(arguments, sizeof arguments,
                     "%s make --model tiny --batch 2q9s80,q40 %s -o %c.st",
                     n == 0   ? "OMP_NUM_THREADS=1"
                     : n == 1 ? "OMP_NUM_THREADS=2"
                              : "OMP_X=0",
                     options[i], 'a' + n);
            must(arguments, 0);
        }
        same_file("a.st", "b.st");
        same_file("a.st", "c.st");
        snprintf(arguments, sizeof arguments,
                 "make --model tiny --batch 2q9s80,q40 %s --seed 1 -o d.st", options[i]);
        must(arguments, 0);
        assert_int_not_equal(system("cmp -s a.st d.st"), 0);
    }
    must("run a.st -o b.st", 0);
    must("run a.st -o c.st", 0);
    same_file("b.st", "c.st");
    for (char c = 'a'; c < 'e'; c++)
        unlink((char[]){c, '.', 's', 't', 0});
}

static void cli_round_trip(void **state)
{
    static const struct {
        const char *make, *run;
    } trips[] = {
        {"--model tiny --batch q20s50,2q1s40", ""},
        {"--model tiny --batch q20s50,2q1s40", "--precision fp64 --route masked-mha"},
        {"--model tiny --batch q20 --topk 0 --sinks inf --base 2", "--route dense-mqa"},
        {"--model tiny --batch q20 --topk 0 --page 8 --dtype f16", "--route dense-mha"},
        {"--model deepseek-v3.2 --heads 2 --batch 2q1s300 --cache fp8_ds_mla", ""},
        {"--model deepseek-v3.2 --heads 2 --batch 2q1s300 --cache v41 --form absorbed", ""},
        {"--model tiny --batch q20 --form expanded --mask 1", ""},
        {"--model tiny --batch q0s0,q3s0 --form absorbed", ""},
    };
    (void)state;
    for (size_t i = 0; i < sizeof trips / sizeof *trips; i++) {
        char arguments[512];
        snprintf(arguments, sizeof arguments, "make %s -o p.st", trips[i].make);
        must(arguments, 0);
        snprintf(arguments, sizeof arguments, "run p.st -o r.st --bound --max-logits %s",
                 trips[i].run);
        must(arguments, 0);
        must("check p.st --against r.st", 0);
        /* a string and its file are one problem */
        snprintf(arguments, sizeof arguments, "check p.st %s", trips[i].run);
        must(arguments, 0);
    }
    unlink("p.st");
    unlink("r.st");
}

static void cli_explain(void **state)
{
    (void)state;
    must("run 'attend model=tiny topk=0 batch=q300,2q1s90' --explain", 0);
    assert_non_null(strstr(out_text, "workspace"));
    assert_non_null(strstr(out_text, "dense-mha"));
    assert_non_null(strstr(out_text, "dense-mqa"));
    must("run 'attend model=tiny topk=0 batch=q300,2q1s90' --explain --route dense-mqa", 0);
    assert_null(strstr(out_text, "dense-mha"));
}

static void cli_check_judges(void **state)
{
    (void)state;
    must("check good.st --against result.st", 0);
    must("check good.st --against broken.st", 1);
    assert_non_null(strstr(out_text, "FAIL"));
    assert_non_null(strstr(out_text, "mla check")); /* how to run it again */
    must("check good.st --against broken.st --hard", 1);
    must("check good.st --against unwritten.st", 1);
    must("check good.st --against wronglse.st", 1);
    must("check good.st --against noise.st", 1); /* within H, not within T */
    must("check good.st --against noise.st --hard", 0);
    must("check --shapes good.txt", 0);
    assert_non_null(strstr(out_text, "5 ok, 0 weak, 0 failed\n"));
    must("check 'attend model=tiny batch=2q20' --route each --rows 3", 0);
    assert_non_null(strstr(out_text, "4 ok, 0 weak, 0 failed\n"));
    must("check 'attend model=tiny topk=0 batch=q9s20' good.st --route dense-mha", 3);
    assert_non_null(strstr(out_text, "1 ok, 0 weak, 0 failed, 1 skipped"));
}

/* -------------------------------------------------------------------- set-up */

static void make_and_save(const char *text, const char *name, void (*damage)(struct mla_case *))
{
    struct mla_case c;
    assert_int_equal(mla_case_open(text, &c, NULL, NULL), MLA_OK);
    if (damage)
        damage(&c);
    assert_int_equal(mla_case_save(&c, name), MLA_OK);
    mla_case_free(&c);
}

static void list_twice(struct mla_case *c)
{
    int32_t *list = c->tensors.topk_indices.data;
    list[1] = list[0];
}

static void nan_sink(struct mla_case *c)
{
    ((float *)(uintptr_t)c->tensors.attn_sink)[1] = NAN;
}

static void bad_page(struct mla_case *c)
{
    ((int32_t *)c->tensors.page_table.data)[1] = 99;
}

static void bad_lens(struct mla_case *c)
{
    ((int32_t *)(uintptr_t)c->tensors.topk_lens)[0] = 99;
}

/* result.st as it is, and with one thing wrong each. */
static void save_results(void)
{
    must("make --model tiny --batch q20s50,2q1s60 -o good.st", 0);
    must("run good.st -o result.st", 0);
    struct mla_case c;
    struct mla_result_file r;
    assert_int_equal(mla_case_open("good.st", &c, NULL, NULL), MLA_OK);
    assert_int_equal(mla_result_load("result.st", &c.problem, &r, NULL, NULL), MLA_OK);
    size_t n = (size_t)(mla_total_q(&c.problem) * c.problem.heads_q * mla_d_v(&c.problem));
    mla_request_info info[3];
    for (int i = 0; i < 3; i++)
        info[i] = (mla_request_info){.route = MLA_ROUTE_SPARSE_MQA, .kernel = "test"};
    /* a loaded file is read-only */
    size_t heads = (size_t)(mla_total_q(&c.problem) * c.problem.heads_q);
    float *out = malloc(n * sizeof *out), *lse = malloc(heads * sizeof *lse);
    assert_true(out && lse);
    const float *copy = r.out;
    memcpy(out, r.out, n * sizeof *out);
    memcpy(lse, r.lse, heads * sizeof *lse);
    r.out = out;
    r.lse = lse;

    out[37] += 0.25f;
    assert_int_equal(mla_result_save("broken.st", &c.problem, &r, MLA_BACKEND_CUDA, info), MLA_OK);
    out[37] = NAN;
    assert_int_equal(mla_result_save("unwritten.st", &c.problem, &r, MLA_BACKEND_CUDA, info),
                     MLA_OK);
    memcpy(out, copy, n * sizeof *copy);
    lse[5] += 0.1f;
    assert_int_equal(mla_result_save("wronglse.st", &c.problem, &r, MLA_BACKEND_CUDA, info),
                     MLA_OK);
    lse[5] -= 0.1f;
    for (size_t i = 0; i < n; i++) /* 2 % of each element, signs at random */
        out[i] *= i * 2654435761u & 1024 ? 1.02f : 0.98f;
    assert_int_equal(mla_result_save("noise.st", &c.problem, &r, MLA_BACKEND_CUDA, info), MLA_OK);
    memcpy(out, copy, n * sizeof *copy);
    mla_problem other = c.problem;
    other.v_dim /= 2;
    assert_int_equal(mla_result_save("wrongshape.st", &other, &r, MLA_BACKEND_CUDA, info), MLA_OK);
    mla_result_free(&r);
    mla_case_free(&c);
    free(out);
    free(lse);
}

static int set_up(void **state)
{
    static const char shapes[] = "# shapes\n\nattend model=tiny topk=0 batch=q9s20 # one\n"
                                 "#! route=each rows=2\nattend model=tiny batch=q40\n"
                                 "#! route=dense-mqa\nattend model=tiny topk=0 batch=2q3s9\n"
                                 "#!\nattend form=absorbed heads=2 rank=16 batch=q3s9";
    (void)state;
    snprintf(directory, sizeof directory, "%s/test_cli.XXXXXX", MLA_BINARY_DIR);
    char inner[600];
    if (!mkdtemp(directory))
        return -1;
    snprintf(inner, sizeof inner, "%s/here", directory);
    if (mkdir(inner, 0700) || chdir(inner))
        return -1;
    save_results();
    make_and_save("attend model=tiny topk=4 sq=3 skv=9", "twice.st", list_twice);
    make_and_save("attend model=tiny sink=1", "nansink.st", nan_sink);
    make_and_save("attend model=tiny page=4 skv=9", "badpage.st", bad_page);
    make_and_save("attend model=tiny topk=4 topk_lens=1 skv=9", "badlens.st", bad_lens);
    write_text("empty.st", "", 0);
    write_text("garbage.st", "garbage, nothing but garbage", 28);
    write_text("short.st", "\x10\0\0\0\0\0\0\0{\"q\":", 13);
    write_text("bad.txt", "# nothing\nfoo bar\n", 18);
    static const char foreign[] = "{\"context\": \"cpu\", \"results\": [{\"route\": \"auto\"}]}";
    write_text("foreign.json", foreign, sizeof foreign - 1);
    write_text("baddirective.txt", "#! route=up\n", 12);
    write_text("good.txt", shapes, sizeof shapes - 1);
    return 0;
}

static int tear_down(void **state)
{
    char command[600];
    (void)state;
    snprintf(command, sizeof command, "rm -r '%s'", directory);
    return chdir("/") || system(command);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cli_help_everywhere),
        cmocka_unit_test(cli_models),
        cmocka_unit_test(cli_wrong_make),
        cmocka_unit_test(cli_wrong_run),
        cmocka_unit_test(cli_wrong_others),
        cmocka_unit_test(cli_full_disk_is_a_failure),
        cmocka_unit_test(cli_make_is_deterministic),
        cmocka_unit_test(cli_explain),
        cmocka_unit_test(cli_round_trip),
        cmocka_unit_test(cli_check_judges),
        cmocka_unit_test(cli_json_is_pure),
        cmocka_unit_test(cli_bench_columns),
        cmocka_unit_test(cli_bench_routes),
        cmocka_unit_test(cli_bench_pictures),
        cmocka_unit_test(cli_bench_interrupted),
        cmocka_unit_test(cli_tune_and_regret),
    };
    return cmocka_run_group_tests_name("cli", tests, set_up, tear_down);
}
