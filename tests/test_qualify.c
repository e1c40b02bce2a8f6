/* SPDX-License-Identifier: Apache-2.0 */
/* Records of mla qualify: written, read back, damaged, of other devices; and whom they let
 * serve. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/qualify.h"
#include "common/status.h"
#include "support.h"

static char path[] = "/tmp/mla_qualify_XXXXXX";

static const struct mla_kernel
    tensor = {.name = "mha_prefill_sm100", .backend = MLA_BACKEND_CUDA, .proof = MLA_PROOF_MODEL},
    decode = {.name = "mqa_decode_sm100", .backend = MLA_BACKEND_CUDA, .proof = MLA_PROOF_COMPILED},
    prefix = {.name = "mha_prefill", .backend = MLA_BACKEND_CUDA, .proof = MLA_PROOF_MODEL},
    portable = {.name = "mha_any", .backend = MLA_BACKEND_CUDA, .proof = MLA_PROOF_SILICON};

static mla_context device(const char *identity)
{
    mla_context c = {.backend = MLA_BACKEND_CUDA, .sm = 100};
    snprintf(c.identity, sizeof c.identity, "%s", identity);
    return c;
}

static void write_text(const char *text, size_t bytes)
{
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(text, 1, bytes, file), bytes);
    assert_int_equal(fclose(file), 0);
}

static void without_a_record_only_silicon_serves(void **state)
{
    (void)state;
    mla_context gpu = device("B200, sm_100, driver CUDA 13.0");
    assert_true(mla_kernel_trusted(&gpu, &portable));
    assert_false(mla_kernel_trusted(&gpu, &tensor));
    assert_false(mla_kernel_trusted(&gpu, &decode));
    gpu.backend = MLA_BACKEND_MODEL; /* nothing is at stake there */
    assert_true(mla_kernel_trusted(&gpu, &tensor));
}

static void a_record_holds_for_its_device_and_its_passes(void **state)
{
    (void)state;
    const struct mla_qualified_row rows[] = {{"mha_prefill_sm100", true, 40},
                                             {"mqa_decode_sm100", false, 12}};
    mla_context gpu = device("B200, sm_100, driver CUDA 13.0");
    mla_context newer = device("B200, sm_100, driver CUDA 13.1");
    remove(path);
    assert_ok(mla_qualified_save(&gpu, path, rows, 2));
    assert_ok(mla_qualified_load(&gpu, path));
    assert_true(mla_kernel_trusted(&gpu, &tensor));
    assert_false(mla_kernel_trusted(&gpu, &decode));
    assert_false(mla_kernel_trusted(&gpu, &prefix)); /* whole names */
    assert_ok(mla_qualified_load(&newer, path));
    assert_false(mla_kernel_trusted(&newer, &tensor));

    /* Another device's section is added, the first stays; a new verdict replaces the old one. */
    assert_ok(mla_qualified_save(&newer, path, &rows[0], 1));
    const struct mla_qualified_row worse = {"mha_prefill_sm100", false, 41};
    assert_ok(mla_qualified_save(&gpu, path, &worse, 1));
    assert_ok(mla_qualified_load(&newer, path));
    assert_true(mla_kernel_trusted(&newer, &tensor));
    assert_ok(mla_qualified_load(&gpu, path));
    assert_false(mla_kernel_trusted(&gpu, &tensor));
    mla_free(gpu.qualified);
    mla_free(newer.qualified);
}

static void damaged_files_are_refused_with_their_line(void **state)
{
    (void)state;
    static const struct {
        const char *text, *sentence;
    } cases[] = {
        {"", "line 1"},
        {"mla-qualified 2\n", "line 1"},
        {"mla-qualified 1 \n", "line 1"},
        {"mla-qualified 1\nkernel a ok 1\n", "line 2"},
        {"mla-qualified 1\ndevice x\nkernel a good 1\n", "line 3"},
        {"mla-qualified 1\ndevice x\nkernel a ok\n", "line 3"},
        {"mla-qualified 1\ndevice x\nkernel a ok 1 2\n", "line 3"},
        {"mla-qualified 1\ndevice x\nkernel a ok -1\n", "line 3"},
        {"mla-qualified 1\ndevice x\nkernel A ok 1\n", "line 3"},
        {"mla-qualified 1\ndevice x\n\n", "line 3"},
        {"mla-qualified 1\ndevice x\nhello\n", "line 3"},
    };
    mla_context gpu = device("B200, sm_100, driver CUDA 13.0");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_text(cases[i].text, strlen(cases[i].text));
        assert_refused(mla_qualified_load(&gpu, path), MLA_ERR_ARGUMENT, cases[i].sentence);
        assert_null(gpu.qualified);
    }
    write_text("mla-qualified 1\n\0device x\n", 26);
    assert_refused(mla_qualified_load(&gpu, path), MLA_ERR_ARGUMENT, "zero byte");
    char *big = malloc(2 << 20);
    assert_non_null(big);
    memset(big, 'x', 2 << 20);
    write_text(big, 2 << 20);
    free(big);
    assert_refused(mla_qualified_load(&gpu, path), MLA_ERR_ARGUMENT, "bytes, want at most");
    assert_refused(mla_qualified_load(&gpu, "/nonexistent/file"), MLA_ERR_IO, "nonexistent");
    assert_refused(mla_qualified_load(&gpu, "/tmp"), MLA_ERR_IO, "/tmp");
    assert_refused(mla_qualified_save(&gpu, "/proc/no/such", NULL, 0), MLA_ERR_IO, "cannot write");
}

static void a_damaged_record_is_written_anew(void **state)
{
    (void)state;
    const struct mla_qualified_row row = {"mha_prefill_sm100", true, 3};
    mla_context gpu = device("B200, sm_100, driver CUDA 13.0");
    write_text("rubbish", 7);
    assert_ok(mla_qualified_save(&gpu, path, &row, 1));
    assert_ok(mla_qualified_load(&gpu, path));
    assert_true(mla_kernel_trusted(&gpu, &tensor));
    mla_free(gpu.qualified);
}

static void places_are_looked_up_in_order(void **state)
{
    (void)state;
    char got[256];
    setenv("MLA_QUALIFIED", "/a/b", 1);
    setenv("XDG_CACHE_HOME", "/cache", 1);
    setenv("HOME", "/home/me", 1);
    assert_true(mla_qualified_path(got, sizeof got));
    assert_string_equal(got, "/a/b");
    setenv("MLA_QUALIFIED", "", 1);
    assert_false(mla_qualified_path(got, sizeof got));
    unsetenv("MLA_QUALIFIED");
    assert_true(mla_qualified_path(got, sizeof got));
    assert_string_equal(got, "/cache/mla/qualified");
    setenv("XDG_CACHE_HOME", "relative", 1);
    assert_true(mla_qualified_path(got, sizeof got));
    assert_string_equal(got, "/home/me/.cache/mla/qualified");

    /* A named file must be sound; none at all is no error. */
    mla_context gpu = device("B200, sm_100, driver CUDA 13.0");
    setenv("MLA_QUALIFIED", path, 1);
    write_text("rubbish", 7);
    assert_refused(mla_qualified_find(&gpu), MLA_ERR_ARGUMENT, "line 1");
    remove(path);
    assert_ok(mla_qualified_find(&gpu));
    assert_null(gpu.qualified);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(without_a_record_only_silicon_serves),
        cmocka_unit_test(a_record_holds_for_its_device_and_its_passes),
        cmocka_unit_test(damaged_files_are_refused_with_their_line),
        cmocka_unit_test(a_damaged_record_is_written_anew),
        cmocka_unit_test(places_are_looked_up_in_order),
    };
    int file = mkstemp(path);
    if (file < 0)
        return 1;
    close(file);
    int failed = cmocka_run_group_tests_name("qualify", tests, NULL, NULL);
    remove(path);
    return failed;
}
