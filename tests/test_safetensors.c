/* SPDX-License-Identifier: Apache-2.0 */
/* The safetensors reader against malformed files, and the writer against failures. */
#include "support.h"
#include "support_files.h"
#include "status.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static void write_bytes(const char *path, const void *bytes, size_t n)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

/* ------------------------------------------------------------ malformed headers */

#define X(rest) "{\"x\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]" rest "}"
#define TENSOR(dtype, shape, offsets)                                                              \
    "{\"x\":{\"dtype\":" dtype ",\"shape\":" shape ",\"data_offsets\":" offsets "}}"
#define PAIR(a, b)                                                                                 \
    "{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":" a "},"                              \
    "\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":" b "}}"

static const struct {
    const char *header;
    size_t data;
    const char *fragment; /* NULL = well formed */
} headers[] = {
    {"{}", 0, NULL},
    {"{}    \n\t ", 0, NULL},
    {TENSOR("\"U8\"", "[4]", "[0,4]"), 4, NULL},
    {TENSOR("\"U8\"", "[]", "[0,1]"), 1, NULL}, /* a scalar */
    {TENSOR("\"F64\"", "[0,7]", "[0,0]"), 0, NULL},
    {TENSOR("\"U8\"", "[1,1,1,1,1,1,1,4]", "[0,4]"), 4, NULL},
    {X(",\"more\":true") "}", 4, NULL}, /* other fields are left alone, as the reference does */
    {PAIR("[4,8]", "[0,4]"), 8, NULL},
    {"{\"\\u00e9\\\"{[\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}", 0, NULL},
    {"{\"__metadata__\":{\"a\":\"b\"}}", 0, NULL},
    {"", 0, "header: got no bytes"},
    {"[]", 0, "starts with '{'"},
    {" {}", 0, "starts with '{'"},
    {"\xef\xbb\xbf{}", 0, "starts with '{'"},
    {"{", 0, "malformed JSON"},
    {"{}}", 0, "malformed JSON"},
    {"{} x", 0, "malformed JSON"},
    {"{}{}", 0, "malformed JSON"},
    {"{\"x\":}", 0, "malformed JSON"},
    {"{\"x\":nan}", 0, "malformed JSON"},
    {"{'x':1}", 0, "malformed JSON"},
    {"{\"a\\u0000b\":1}", 0, "malformed JSON"},
    {"{\"__metadata__\":{\"a\":\"b\\u0000c\"}}", 0, "malformed JSON"},
    {"{\"\xff\":1}", 0, "malformed JSON"},
    {"{\"\\ud800\":1}", 0, "malformed JSON"},
    {"{\"x\":1,\"x\":1}", 0, "duplicate"},
    {"{\"__metadata__\":{\"a\":\"b\",\"a\":\"b\"}}", 0, "duplicate"},
    {X(",\"shape\":[4]") "}", 4, "duplicate"},
    {"{\"x\":[[[[[[[[1]]]]]]]]}", 0, "nested deeper"},
    {"{\"x\":[1,2,3,4,5,6,7,8,9]}", 0, "more than 8 entries"},
    {"{\"__metadata__\":[]}", 0, "__metadata__: got an array"},
    {"{\"__metadata__\":\"x\"}", 0, "__metadata__: got a string"},
    {"{\"__metadata__\":null}", 0, "__metadata__: got null"},
    {"{\"__metadata__\":{\"a\":1}}", 0, "got an integer for a key"},
    {"{\"__metadata__\":{\"a\":{}}}", 0, "got an object for a key"},
    {"{\"__metadata__\":{\"a\":null}}", 0, "got null for a key"},
    {"{\"x\":1}", 0, "x: got an integer, want an object"},
    {"{\"x\":null}", 0, "x: got null"},
    {"{\"x\":[]}", 0, "x: got an array"},
    {"{\"x\":{}}", 0, "got nothing as dtype"},
    {TENSOR("8", "[4]", "[0,4]"), 4, "got an integer as dtype"},
    {TENSOR("\"u8\"", "[4]", "[0,4]"), 4, "got dtype 'u8'"},
    {TENSOR("\"F4\"", "[4]", "[0,2]"), 2, "got dtype 'F4'"},
    {TENSOR("\"U8\\n\"", "[4]", "[0,4]"), 4, "got dtype 'U8?'"},
    {"{\"x\":{\"dtype\":\"U8\",\"data_offsets\":[0,4]}}", 4, "got nothing as shape"},
    {TENSOR("\"U8\"", "4", "[0,4]"), 4, "got an integer as shape"},
    {TENSOR("\"U8\"", "{}", "[0,4]"), 4, "got an object as shape"},
    {TENSOR("\"U8\"", "[4.0]", "[0,4]"), 4, "got a real number as shape[0]"},
    {TENSOR("\"U8\"", "[\"4\"]", "[0,4]"), 4, "got a string as shape[0]"},
    {TENSOR("\"U8\"", "[true]", "[0,4]"), 4, "got a boolean as shape[0]"},
    {TENSOR("\"U8\"", "[2,-2]", "[0,4]"), 4, "got shape[1] -2"},
    {TENSOR("\"U8\"", "[9223372036854775808]", "[0,4]"), 4, "too big integer"},
    {TENSOR("\"U8\"", "[4294967296,4294967296]", "[0,0]"), 0, "overflows 64 bits at shape[1]"},
    {TENSOR("\"F64\"", "[2305843009213693952]", "[0,0]"), 0, "overflows 64 bits at shape[0]"},
    {TENSOR("\"U8\"", "[0,4294967296,4294967296]", "[0,0]"), 0, "overflows 64 bits at shape[2]"},
    {"{\"x\":{\"dtype\":\"U8\",\"shape\":[4]}}", 4, "got nothing of 0 entries as data_offsets"},
    {TENSOR("\"U8\"", "[4]", "[0]"), 4, "an array of 1 entries as data_offsets"},
    {TENSOR("\"U8\"", "[4]", "[0,4,4]"), 4, "an array of 3 entries as data_offsets"},
    {TENSOR("\"U8\"", "[4]", "{\"a\":0,\"b\":4}"), 4, "an object of 0 entries as data_offsets"},
    {TENSOR("\"U8\"", "[4]", "[0,4.0]"), 4, "data_offsets of an integer and a real number"},
    {TENSOR("\"U8\"", "[4]", "[\"0\",4]"), 4, "data_offsets of a string"},
    {TENSOR("\"U8\"", "[4]", "[-4,0]"), 4, "data_offsets [-4, 0], want 0 <= begin"},
    {TENSOR("\"U8\"", "[4]", "[4,0]"), 4, "data_offsets [4, 0], want 0 <= begin"},
    {TENSOR("\"U8\"", "[4]", "[0,5]"), 4, "<= 4 (the data section)"},
    {TENSOR("\"U8\"", "[4]", "[9223372036854775803,9223372036854775807]"), 4, "(the data section)"},
    {TENSOR("\"U8\"", "[4]", "[0,18446744073709551616]"), 4, "too big integer"},
    {TENSOR("\"U8\"", "[4]", "[0,3]"), 4, "= 3 bytes, want 4"},
    {TENSOR("\"I32\"", "[4]", "[0,4]"), 4, "= 4 bytes, want 16"},
    {TENSOR("\"U8\"", "[0]", "[0,4]"), 4, "= 4 bytes, want 0"},
    {PAIR("[0,4]", "[0,4]"), 4, "begins at 0 inside"},
    {PAIR("[0,4]", "[2,6]"), 6, "b: got data that begins at 2 inside 'a', which ends at 4"},
    {PAIR("[2,6]", "[0,4]"), 6, "a: got data that begins at 2 inside 'b'"},
    {PAIR("[0,4]", "[5,9]"), 9, "b: got data that begins at 5, want 4"},
    {PAIR("[1,5]", "[5,9]"), 9, "a: got data that begins at 1, want 0"},
    {PAIR("[0,4]", "[4,8]"), 9, "data section: got 9 bytes, want 8"},
    {"{}", 1, "data section: got 1 bytes, want 0"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},"
     "\"b\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[2,2]}}",
     4, "b: got data that begins at 2 inside 'a'"},
};

static void refuses_malformed_headers(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof headers / sizeof *headers; i++) {
        size_t size;
        const char *text = headers[i].header;
        unsigned char *bytes = test_container(text, strlen(text), headers[i].data, &size);
        struct mla_st_file file;
        mla_status status = mla_st_parse(bytes, size, "FILE", &file);
        if (headers[i].fragment) {
            assert_refused(status, MLA_ERR_ARGUMENT, headers[i].fragment);
            assert_non_null(strstr(mla_last_error(), "FILE"));
            assert_null(file.tensors);
            assert_null(file.owned);
        } else {
            assert_ok(status);
        }
        mla_st_close(&file);
        free(bytes);
    }
}

static void refuses_raw_bytes(void **state)
{
    (void)state;
    struct mla_st_file file;
    unsigned char b[64] = {2, 0, 0, 0, 0, 0, 0, 0, '{', '}'};
    assert_ok(mla_st_parse(b, 10, "F", &file));
    mla_st_close(&file);
    assert_refused(mla_st_parse(b, 0, "F", &file), MLA_ERR_ARGUMENT, "empty file");
    assert_refused(mla_st_parse(b, 7, "F", &file), MLA_ERR_ARGUMENT,
                   "got 7 bytes, want at least 8");
    assert_refused(mla_st_parse(b, 8, "F", &file), MLA_ERR_ARGUMENT, "got 2, want at most 0");
    assert_refused(mla_st_parse(b, 9, "F", &file), MLA_ERR_ARGUMENT, "got 2, want at most 1");
    b[7] = 0x80;
    assert_refused(mla_st_parse(b, 10, "F", &file), MLA_ERR_ARGUMENT, "want at most 100000000");
    memset(b, 0xff, 8);
    assert_refused(mla_st_parse(b, 10, "F", &file), MLA_ERR_ARGUMENT, "want at most 100000000");
    const uint32_t over = 100000001;
    memset(b, 0, 8);
    memcpy(b, &over, 4);
    assert_refused(mla_st_parse(b, 10, "F", &file), MLA_ERR_ARGUMENT,
                   "got 100000001, want at most");
    /* A NUL byte inside a string, and one after the object. */
    size_t size;
    unsigned char *bytes = test_container("{\"a\0b\":1}", 9, 0, &size);
    assert_refused(mla_st_parse(bytes, size, "F", &file), MLA_ERR_ARGUMENT, "malformed JSON");
    free(bytes);
    bytes = test_container("{}\0", 3, 0, &size);
    assert_refused(mla_st_parse(bytes, size, "F", &file), MLA_ERR_ARGUMENT, "malformed JSON");
    free(bytes);
    /* A million open brackets must not reach the parser's stack. */
    enum { DEEP = 1000000 };
    char *deep = malloc(DEEP);
    memset(deep, '[', DEEP);
    memcpy(deep, "{\"x\":", 5);
    bytes = test_container(deep, DEEP, 0, &size);
    assert_refused(mla_st_parse(bytes, size, "F", &file), MLA_ERR_ARGUMENT, "nested deeper");
    free(bytes);
    free(deep);
}

static void every_dtype_has_its_size(void **state)
{
    (void)state;
    for (int d = MLA_ST_BOOL; d <= MLA_ST_F64; d++) {
        const char *name = mla_st_dtype_name((enum mla_st_dtype)d);
        size_t digits = strcspn(name, "0123456789"), size;
        size_t bytes = strcmp(name, "BOOL") == 0 ? 1 : strtoul(name + digits, NULL, 10) / 8;
        assert_int_equal(mla_st_dtype_bytes((enum mla_st_dtype)d), bytes);
        char header[200];
        snprintf(header, sizeof header,
                 "{\"x\":{\"dtype\":\"%s\",\"shape\":[3],\"data_offsets\":[0,%zu]}}", name,
                 3 * bytes);
        unsigned char *file_bytes = test_container(header, strlen(header), 3 * bytes, &size);
        struct mla_st_file file;
        assert_ok(mla_st_parse(file_bytes, size, "F", &file));
        assert_int_equal(mla_st_find(&file, "x")->dtype, d);
        assert_null(mla_st_find(&file, "y"));
        mla_st_close(&file);
        free(file_bytes);
    }
}

/* ---------------------------------------------------------------- file system */

static void refuses_what_is_no_file(void **state)
{
    (void)state;
    struct mla_st_file file;
    assert_refused(mla_st_open(test_dir_path("absent"), &file), MLA_ERR_IO, "No such file");
    assert_refused(mla_st_open(test_dir_path("."), &file), MLA_ERR_ARGUMENT, "got a directory");
    assert_refused(mla_st_open("/dev/null", &file), MLA_ERR_ARGUMENT, "got a character device");
    assert_int_equal(mkfifo(test_dir_path("fifo"), 0600), 0);
    assert_refused(mla_st_open(test_dir_path("fifo"), &file), MLA_ERR_ARGUMENT, "got a FIFO");
    write_bytes(test_dir_path("empty"), "", 0);
    assert_refused(mla_st_open(test_dir_path("empty"), &file), MLA_ERR_ARGUMENT, "empty file");
    write_bytes(test_dir_path("short"), "1234567", 7);
    assert_refused(mla_st_open(test_dir_path("short"), &file), MLA_ERR_ARGUMENT, "got 7 bytes");
    unlink(test_dir_path("fifo"));
    unlink(test_dir_path("empty"));
    unlink(test_dir_path("short"));
}

/* In a child, so that root can give its rights away. */
static void refuses_a_file_without_permission(void **state)
{
    (void)state;
    write_bytes(test_dir_path("secret"), "\2\0\0\0\0\0\0\0{}", 10);
    assert_int_equal(chmod(test_dir_path("secret"), 0), 0);
    /* The directories on the way must be open to the child. */
    int fd = open(test_dir_path("."), O_RDONLY | O_DIRECTORY);
    assert_true(fd >= 0);
    assert_int_equal(fchmod(fd, 0755), 0);
    pid_t pid = fork();
    if (pid == 0) {
        struct mla_st_file file;
        if (fchdir(fd) != 0 || (geteuid() == 0 && seteuid(65534) != 0))
            _exit(2);
        mla_status status = mla_st_open("secret", &file);
        _exit(status == MLA_ERR_IO && strstr(mla_last_error(), "Permission denied") ? 0 : 1);
    }
    int result;
    assert_int_equal(waitpid(pid, &result, 0), pid);
    close(fd);
    unlink(test_dir_path("secret"));
    assert_int_equal(result, 0);
}

/* --------------------------------------------------------------------- writer */

static const int32_t four[] = {1, -2, 3, -4};
static const unsigned char odd[] = {9, 8, 7};
static const double one[] = {0.5};
static const struct mla_st_tensor some[] = {
    {.name = "odd", .dtype = MLA_ST_U8, .rank = 1, .shape = {3}, .data = odd, .bytes = 3},
    {.name = "four", .dtype = MLA_ST_I32, .rank = 2, .shape = {2, 2}, .data = four, .bytes = 16},
    {.name = "none", .dtype = MLA_ST_F16, .rank = 2, .shape = {0, 5}, .data = NULL, .bytes = 0},
    {.name = "a \"quoted\" \xc3\xa9", .dtype = MLA_ST_F64, .rank = 0, .data = one, .bytes = 8},
};
enum { NUM_SOME = sizeof some / sizeof *some };
static const char *const some_keys[] = {"z", "a"}, *const some_values[] = {"line\nbreak", ""};

static mla_status write_some(const char *path)
{
    return mla_st_write(path, some, NUM_SOME, some_keys, some_values, 2);
}

static void round_trip_and_order(void **state)
{
    (void)state;
    assert_ok(write_some(test_dir_path("one")));
    struct mla_st_file file;
    assert_ok(mla_st_open(test_dir_path("one"), &file));
    assert_int_equal(file.num_tensors, NUM_SOME);
    for (int i = 0; i < NUM_SOME; i++) {
        const struct mla_st_tensor *t = mla_st_find(&file, some[i].name);
        assert_non_null(t);
        assert_int_equal(t->dtype, some[i].dtype);
        assert_int_equal(t->rank, some[i].rank);
        assert_memory_equal(t->shape, some[i].shape, sizeof t->shape);
        assert_int_equal(t->bytes, some[i].bytes);
        if (t->bytes > 0)
            assert_memory_equal(t->data, some[i].data, t->bytes);
    }
    assert_string_equal(mla_st_metadata(&file, "z"), "line\nbreak");
    assert_string_equal(mla_st_metadata(&file, "a"), "");
    assert_null(mla_st_metadata(&file, "b"));
    /* Places: 16 divides four's bytes, 8 the scalar's, 1 odd's; the section starts at 64·n. */
    const char *start = mla_st_find(&file, "four")->data;
    assert_int_equal((uintptr_t)start % 64, 0);
    assert_ptr_equal(mla_st_find(&file, some[3].name)->data, start + 16);
    assert_ptr_equal(mla_st_find(&file, "odd")->data, start + 24);
    mla_st_close(&file);

    /* Keys are sorted, whatever order they came in; the same input gives the same bytes. */
    char text[1024], again[1024];
    struct mla_st_tensor turned[NUM_SOME];
    for (int i = 0; i < NUM_SOME; i++)
        turned[i] = some[NUM_SOME - 1 - i];
    const char *const keys[] = {"a", "z"}, *const values[] = {"", "line\nbreak"};
    assert_ok(mla_st_write(test_dir_path("two"), turned, NUM_SOME, keys, values, 2));
    FILE *f = fopen(test_dir_path("one"), "rb"), *g = fopen(test_dir_path("two"), "rb");
    size_t n = fread(text, 1, sizeof text, f), m = fread(again, 1, sizeof again, g);
    fclose(f);
    fclose(g);
    assert_int_equal(n, m);
    assert_memory_equal(text, again, n);
    assert_memory_equal(text + 8, "{\"__metadata__\":{\"a\":\"\",\"z\":", 28);
    assert_int_equal(test_dir_files(), 2); /* and no temporary file */
    unlink(test_dir_path("one"));
    unlink(test_dir_path("two"));
}

static void writer_refuses_bad_tensors(void **state)
{
    (void)state;
    const char *path = test_dir_path("bad");
    struct mla_st_tensor t[2] = {some[1], some[1]};
    assert_refused(mla_st_write(path, t, 2, NULL, NULL, 0), MLA_ERR_ARGUMENT, "twice");
    t[0].bytes = 15;
    assert_refused(mla_st_write(path, t, 1, NULL, NULL, 0), MLA_ERR_ARGUMENT,
                   "a size that differs");
    t[0] = some[1];
    t[0].data = NULL;
    assert_refused(mla_st_write(path, t, 1, NULL, NULL, 0), MLA_ERR_ARGUMENT, "no data");
    t[0] = some[1];
    t[0].shape[0] = -2;
    assert_refused(mla_st_write(path, t, 1, NULL, NULL, 0), MLA_ERR_ARGUMENT, "negative");
    t[0].shape[0] = INT64_MAX;
    assert_refused(mla_st_write(path, t, 1, NULL, NULL, 0), MLA_ERR_ARGUMENT, "overflows");
    t[0] = some[1];
    t[0].rank = 9;
    assert_refused(mla_st_write(path, t, 1, NULL, NULL, 0), MLA_ERR_ARGUMENT, "rank");
    t[0] = some[1];
    t[0].name = "__metadata__";
    assert_refused(mla_st_write(path, t, 1, NULL, NULL, 0), MLA_ERR_ARGUMENT, "reserved");
    t[0].name = "\xff";
    assert_refused(mla_st_write(path, t, 1, NULL, NULL, 0), MLA_ERR_ARGUMENT, "UTF-8");
    const char *const key[] = {"k", "k"}, *const value[] = {"\xfe", "v"};
    assert_refused(mla_st_write(path, some, 1, key, value, 1), MLA_ERR_ARGUMENT, "UTF-8");
    const char *const good[] = {"v", "w"};
    assert_refused(mla_st_write(path, some, 1, key, good, 2), MLA_ERR_ARGUMENT, "twice");
    assert_int_equal(test_dir_files(), 0);
}

static void writer_failure_leaves_nothing(void **state)
{
    (void)state;
    assert_refused(write_some(test_dir_path(".")), MLA_ERR_ARGUMENT, "got a directory");
    assert_refused(write_some("/dev/null"), MLA_ERR_ARGUMENT, "device");
    assert_refused(write_some(test_dir_path("absent/x")), MLA_ERR_IO, "No such file");
    assert_int_equal(test_dir_files(), 0);

    /* A full disk: the limit stops the file at byte 100, in the header, then in the data. The
     * signal that comes with it must not end the process. */
    enum { BIG = 1 << 16 };
    void *zeros = calloc(BIG, 1);
    struct mla_st_tensor big = {
        .name = "big", .dtype = MLA_ST_U8, .rank = 1, .shape = {BIG}, .data = zeros, .bytes = BIG};
    const rlim_t limits[] = {0, 4, 100, 4096, BIG};
    struct rlimit before;
    getrlimit(RLIMIT_FSIZE, &before);
    write_bytes(test_dir_path("old"), "old", 3);
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
        struct rlimit tiny = {limits[i], before.rlim_max};
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &tiny), 0);
        mla_status fresh = mla_st_write(test_dir_path("new"), &big, 1, NULL, NULL, 0);
        mla_status over = mla_st_write(test_dir_path("old"), &big, 1, NULL, NULL, 0);
        setrlimit(RLIMIT_FSIZE, &before);
        assert_refused(fresh, MLA_ERR_IO, "File too large");
        assert_refused(over, MLA_ERR_IO, "File too large");
        assert_int_equal(test_dir_files(), 1);
    }
    char text[8] = "";
    FILE *f = fopen(test_dir_path("old"), "rb");
    assert_int_equal(fread(text, 1, 8, f), 3);
    fclose(f);
    assert_string_equal(text, "old");
    /* The signal is not left waiting either. */
    sigset_t pending;
    sigpending(&pending);
    assert_false(sigismember(&pending, SIGXFSZ));
    assert_ok(mla_st_write(test_dir_path("old"), &big, 1, NULL, NULL, 0));
    unlink(test_dir_path("old"));
    free(zeros);
}

/* -------------------------------------------------------- failing allocations */

static void every_allocation_may_fail(void **state)
{
    (void)state;
    bool done = false;
    int64_t n = 0;
    while (!done) {
        mla_alloc_fail_at(++n);
        mla_status status = write_some(test_dir_path("x"));
        mla_alloc_fail_at(0);
        done = status == MLA_OK;
        if (!done)
            assert_refused(status, MLA_ERR_MEMORY, "no memory");
        assert_int_equal(test_dir_files(), done);
        assert_true(n < 1000);
    }
    assert_true(n > 20);
    for (done = false, n = 0; !done;) {
        struct mla_st_file file;
        mla_alloc_fail_at(++n);
        mla_status status = mla_st_open(test_dir_path("x"), &file);
        mla_alloc_fail_at(0);
        done = status == MLA_OK;
        if (done)
            assert_int_equal(file.num_tensors, NUM_SOME);
        else
            assert_refused(status, MLA_ERR_MEMORY, "no memory");
        mla_st_close(&file);
        assert_true(n < 1000);
    }
    assert_true(n > 20);
    unlink(test_dir_path("x"));
}

/* For safetensors_python.py: our file, and every header of the table as its own file. */
static int write_samples(const char *folder)
{
    test_dir_use(folder);
    for (size_t i = 0; i < sizeof headers / sizeof *headers; i++) {
        char name[32];
        size_t size;
        unsigned char *bytes =
            test_container(headers[i].header, strlen(headers[i].header), headers[i].data, &size);
        snprintf(name, sizeof name, "%02zu-%s", i, headers[i].fragment ? "refused" : "accepted");
        write_bytes(test_dir_path(name), bytes, size);
        free(bytes);
    }
    return write_some(test_dir_path("ours")) == MLA_OK ? 0 : 1;
}

int main(int argc, char **argv)
{
    if (argc == 3 && strcmp(argv[1], "--write-samples") == 0)
        return write_samples(argv[2]);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(refuses_malformed_headers),
        cmocka_unit_test(refuses_raw_bytes),
        cmocka_unit_test(every_dtype_has_its_size),
        cmocka_unit_test(refuses_what_is_no_file),
        cmocka_unit_test(refuses_a_file_without_permission),
        cmocka_unit_test(round_trip_and_order),
        cmocka_unit_test(writer_refuses_bad_tensors),
        cmocka_unit_test(writer_failure_leaves_nothing),
        cmocka_unit_test(every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, test_dir_make, test_dir_remove);
}
