/* SPDX-License-Identifier: Apache-2.0 */
/* libmla: Multi-head Latent Attention, the public C API.
 *
 * Life of one call: context (a backend) -> problem (a plain value) -> plan (routes, kernels,
 * workspace) -> mla_run. The library never prints, exits or keeps caller memory; every call that
 * can fail returns mla_status, and mla_last_error() then holds one sentence about it.
 *
 * Words used everywhere: B requests ("batch"), T query tokens of the whole batch, S keys of the
 * whole batch, H query heads, L kv_lora_rank, dn qk_nope_dim, dr qk_rope_dim, dv v_dim.
 * Companion headers: mla/cache.h (cache records), mla/index.h (lightning indexer and top-k). */
#ifndef MLA_MLA_H
#define MLA_MLA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MLA_VERSION_MAJOR 0
#define MLA_VERSION_MINOR 1
#define MLA_VERSION_PATCH 0

#if defined(__GNUC__)
#define MLA_API __attribute__((visibility("default")))
#else
#define MLA_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ------------------------------------------------------------------ status */

typedef enum mla_status {
    MLA_OK = 0,
    MLA_ERR_ARGUMENT,    /* malformed: a field, length, pointer or file is wrong */
    MLA_ERR_UNSUPPORTED, /* well formed, but no kernel of the backend takes it */
    MLA_ERR_NO_DEVICE,   /* the backend is not built in, or no such device is present */
    MLA_ERR_DEVICE,      /* a device that was found fails */
    MLA_ERR_MEMORY,      /* an allocation failed */
    MLA_ERR_CUDA,        /* a CUDA or cuBLAS call failed */
    MLA_ERR_IO           /* a file could not be read or written */
} mla_status;

/* The enumerator's own name ("MLA_ERR_ARGUMENT"), or "MLA_STATUS_UNKNOWN". Never NULL. */
MLA_API const char *mla_status_name(mla_status status);

/* The sentence left by the last failing call of this thread: function, field, value got, value
 * wanted, kernels that refused. "" before any failure. Valid until this thread's next failing call;
 * successful calls leave it alone. */
MLA_API const char *mla_last_error(void);

/* "0.1.0", the version of the library that is loaded. */
MLA_API const char *mla_version(void);

/* ------------------------------------------------------------- enumerations */

typedef enum mla_backend {
    MLA_BACKEND_CPU = 0, /* OpenBLAS + OpenMP; always present */
    MLA_BACKEND_CUDA,    /* NVIDIA GPUs from sm_80 */
    MLA_BACKEND_MODEL    /* the CUDA kernels on a functional model of the GPU */
} mla_backend;

typedef enum mla_dtype {
    MLA_BF16 = 0,
    MLA_F16,
    MLA_F32,
    MLA_F64 /* outputs of the CPU backend only */
} mla_dtype;

/* How cache rows are stored; byte layouts in docs/formats.md. */
typedef enum mla_cache_format {
    MLA_CACHE_BF16 = 0,    /* L + dr values a token; flat (kv_c, k_pe) or paged */
    MLA_CACHE_F16,         /* as above */
    MLA_CACHE_F32,         /* as above */
    MLA_CACHE_FP8_DS_MLA,  /* 656 B a token: 512 e4m3, 4 f32 scales, 64 bf16; paged only */
    MLA_CACHE_MODEL1,      /* 584 B: 448 e4m3 + 64 bf16, page-footer ue8m0; absorbed, L 512, dr 0 */
    MLA_CACHE_V41,         /* 528 B: 512 e4m3, page-footer ue8m0; absorbed, L 512, dr 0 */
    MLA_CACHE_NVFP4_DS_MLA /* 352 B: 512 e2m1, 64 e4m3, 32 e4m3 scales; paged only */
} mla_cache_format;

/* What the caller hands over. */
typedef enum mla_form {
    MLA_FORM_LATENT = 0, /* q_nope, q_pe, w_uk, w_uv and a latent cache; out [T, H, dv] */
    MLA_FORM_ABSORBED,   /* q [T, H, L+dr] and a latent cache; out [T, H, L] */
    MLA_FORM_EXPANDED    /* q, k, v per head; out [T, H, dv] */
} mla_form;

/* How a request is computed. All admissible routes have the same answer. */
typedef enum mla_route {
    MLA_ROUTE_AUTO = 0,   /* choose per request */
    MLA_ROUTE_DENSE_MHA,  /* expanded attention over every visible key */
    MLA_ROUTE_MASKED_MHA, /* expanded attention, one bit per query and key */
    MLA_ROUTE_SPARSE_MQA, /* absorbed attention over gathered top-k rows */
    MLA_ROUTE_DENSE_MQA   /* absorbed attention over every visible key */
} mla_route;

typedef enum mla_lse_base { MLA_LSE_E = 0, MLA_LSE_2 } mla_lse_base;

/* Arithmetic of the CPU backend; other backends ignore it. */
typedef enum mla_precision { MLA_PRECISION_FP32 = 0, MLA_PRECISION_FP64 } mla_precision;

/* Names as problem strings and files spell them ("bf16", "fp8_ds_mla", "latent", "masked-mha",
 * "cpu"), and back. The *_name calls never return NULL; the *_parse calls return MLA_ERR_ARGUMENT
 * for an unknown name and leave *out alone. */
MLA_API const char *mla_backend_name(mla_backend value);
MLA_API const char *mla_dtype_name(mla_dtype value);
MLA_API const char *mla_cache_format_name(mla_cache_format value);
MLA_API const char *mla_form_name(mla_form value);
MLA_API const char *mla_route_name(mla_route value);
MLA_API mla_status mla_backend_parse(const char *name, mla_backend *out);
MLA_API mla_status mla_dtype_parse(const char *name, mla_dtype *out);
MLA_API mla_status mla_cache_format_parse(const char *name, mla_cache_format *out);
MLA_API mla_status mla_form_parse(const char *name, mla_form *out);
MLA_API mla_status mla_route_parse(const char *name, mla_route *out);

/* Bytes of one element (2, 2, 4, 8), and bytes a token takes in the cache of this format
 * (L + dr elements for plain formats; 656, 584, 528, 352 for packed ones). 0 if unknown. */
MLA_API size_t mla_dtype_bytes(mla_dtype value);
MLA_API size_t mla_cache_row_bytes(mla_cache_format format, int64_t kv_lora_rank,
                                   int64_t qk_rope_dim);

/* ----------------------------------------------------------------- context */

/* A backend handle. Immutable after creation, so any number of threads may share it. */
typedef struct mla_context mla_context;

typedef struct mla_context_options {
    mla_backend backend;
    int device;  /* CUDA device number; ignored elsewhere */
    int threads; /* CPU threads of one mla_run; 0 = all that OpenMP would use */
} mla_context_options;

/* Creates a context. options NULL means {MLA_BACKEND_CPU, 0, 0}.
 * MLA_ERR_ARGUMENT (out NULL, negative field, unknown backend), MLA_ERR_NO_DEVICE (the sentence
 * says why the backend can't serve), MLA_ERR_MEMORY. On failure *out is NULL. Any thread. */
MLA_API mla_status mla_context_create(const mla_context_options *options, mla_context **out);
/* NULL is accepted. No plan of the context may be in use. */
MLA_API void mla_context_destroy(mla_context *context);
/* Measured route times for this context's device and this version of the library, as `mla tune`
 * writes them; plans made afterwards route by them instead of by FLOP. MLA_CROSSOVERS in the
 * environment names a file that every context of that backend loads when it is created.
 * MLA_ERR_ARGUMENT (NULL, no such file, a damaged one, or one of another device or version),
 * MLA_ERR_IO, MLA_ERR_MEMORY; what was loaded before then stays. No other thread may use the
 * context meanwhile. */
MLA_API mla_status mla_context_load_crossovers(mla_context *context, const char *path);
/* One line about backend, device and threads, as snprintf: writes at most bytes, always terminated
 * if bytes > 0, returns the length needed without the terminator. */
MLA_API size_t mla_context_describe(const mla_context *context, char *text, size_t bytes);

/* ----------------------------------------------------------------- problem */

/* Shape and meaning of one call, without data. Plain value: fill it with mla_problem_init, set
 * fields, pass it on. The two length arrays stay the caller's (a plan copies them); after
 * mla_problem_parse they belong to the problem until mla_problem_release. */
typedef struct mla_problem {
    mla_form form;
    int64_t batch;                 /* B >= 0 */
    const int32_t *cu_seqlens_q;   /* host [B+1]: first query row of each request; 0 … T */
    const int32_t *seq_lens_kv;    /* host [B]: keys of each request, its new tokens included */
    int64_t heads_q;               /* H >= 1 */
    int64_t heads_kv;              /* expanded: Hk, H % Hk = 0; other forms: 1 */
    int64_t kv_lora_rank;          /* L; ignored in expanded form */
    int64_t qk_nope_dim;           /* dn; ignored in absorbed form */
    int64_t qk_rope_dim;           /* dr >= 0; expanded: d_qk = dn + dr */
    int64_t v_dim;                 /* dv; ignored in absorbed form, whose output width is L */
    mla_dtype q_dtype;             /* q_nope, q_pe, w_uk, w_uv; or q: bf16, f16, f32 */
    mla_dtype kv_dtype;            /* expanded: k and v; ignored elsewhere */
    mla_cache_format cache_format; /* latent and absorbed */
    int64_t page_size;             /* 0 = flat (kv_c, k_pe); > 0 = paged (kv_cache, page_table) */
    int64_t num_pages;             /* pages of kv_cache */
    int64_t max_pages;             /* columns of page_table */
    mla_dtype out_dtype;           /* of out; lse and max_logits are F64 if this is F64, else F32 */
    double softmax_scale;          /* factor on q·k; finite */
    bool causal;           /* query i of a request sees keys <= seq_len_kv - query_len + i */
    bool has_mask;         /* mask given (excludes topk) */
    int64_t topk;          /* K columns of topk_indices; 0 = none given */
    bool has_topk_lens;    /* topk_lens given */
    bool indices_complete; /* promise: where seq_len_kv <= topk, each row lists every key it
                                      may see, so lists need not be read there */
    bool has_sink;         /* attn_sink given */
    mla_lse_base lse_base;
    bool wants_lse;
    bool wants_max_logits;
    void *storage; /* owned by parse; NULL otherwise */
} mla_problem;

/* DeepSeek-V3 dims (H 128, L 512, dn 128, dr 64, dv 128, bf16), empty batch, causal, flat bf16
 * cache, out bf16, softmax_scale 192^-0.5, lse wanted in base e. MLA_ERR_ARGUMENT if problem is
 * NULL. */
MLA_API mla_status mla_problem_init(mla_problem *problem);
/* The same for a model by name ("deepseek-v3.2", …; mla_model_name lists them), its softmax_scale
 * and topk included. MLA_ERR_ARGUMENT for an unknown name. */
MLA_API mla_status mla_problem_init_model(mla_problem *problem, const char *model);
/* i-th model name, or NULL past the end. */
MLA_API const char *mla_model_name(int i);
/* Every field; the sentence names the field, the value and what is wanted. MLA_ERR_ARGUMENT.
 * Reads the two length arrays. Any thread. */
MLA_API mla_status mla_problem_check(const mla_problem *problem);
/* Reads a problem string such as
 *   "attend form=absorbed b=2 sq=1 skv=4096 hq=128 topk=2048 page=64 cache=fp8_ds_mla"
 * (keys in docs/architecture.md). Words of other keys are copied to rest, in order, separated by
 * blanks; with rest NULL they are errors. Allocates the length arrays: call mla_problem_release.
 * MLA_ERR_ARGUMENT, MLA_ERR_MEMORY. */
MLA_API mla_status mla_problem_parse(mla_problem *problem, const char *text, char *rest,
                                     size_t rest_bytes);
/* Frees what parse allocated; problems filled by hand are left alone. NULL is accepted. */
MLA_API void mla_problem_release(mla_problem *problem);
/* The problem as a string that mla_problem_parse reads back; as snprintf. */
MLA_API size_t mla_problem_print(const mla_problem *problem, char *text, size_t bytes);

/* ----------------------------------------------------------------- tensors */

/* A tensor with its strides in elements (bytes for packed caches). The last dimension is
 * contiguous; a stride of 0 means packed. data NULL = absent. */
typedef struct mla_tensor {
    void *data;
    int64_t stride[2]; /* of the first and second dimension */
} mla_tensor;

/* Device pointers for CUDA, host pointers for the CPU. Only what the problem asks for is read. */
typedef struct mla_tensors {
    mla_tensor q_nope;     /* latent [T, H, dn] */
    mla_tensor q_pe;       /* latent [T, H, dr]; absent if dr = 0 */
    mla_tensor w_uk;       /* latent [H, dn, L]: k_nope[h] = w_uk[h] · c */
    mla_tensor w_uv;       /* latent [H, L, dv]: v[h] = c · w_uv[h] */
    mla_tensor q;          /* absorbed [T, H, L+dr] (latent part first), expanded [T, H, dn+dr] */
    mla_tensor k;          /* expanded [S, Hk, dn+dr] */
    mla_tensor v;          /* expanded [S, Hk, dv] */
    mla_tensor kv_c;       /* flat cache [S, L]: requests back to back */
    mla_tensor k_pe;       /* flat cache [S, dr]; absent if dr = 0 */
    mla_tensor kv_cache;   /* paged [pages, page_size, L+dr] or packed bytes; stride[0] = a page,
                                stride[1] = a row (unused by model1 and v41) */
    mla_tensor page_table; /* int32 [B, max_pages]; ids outside [0, num_pages) hide their keys */
    const int32_t *seq_lens_kv; /* optional [B]: lengths of this run, each <= the planned one */
    mla_tensor mask;            /* int32 [T, words]: bit j%32 of word j/32 = key j listed */
    mla_tensor topk_indices;    /* int32 [T, K]: positions in the request; others are ignored */
    const int32_t *topk_lens;   /* [T]: only that many entries of a row count */
    const float *attn_sink;     /* [H]: adds exp(sink) to the denominator */
    mla_tensor out;             /* [T, H, dv] (absorbed [T, H, L]), out_dtype */
    mla_tensor lse;             /* [T, H]; both strides free */
    mla_tensor max_logits;      /* [T, H]: largest softmax_scale·q·k, sink not included */
    /* A promise: an earlier run of this plan in this workspace had the same mask, lists and
     * run-time lengths, and nobody has written to the workspace since. Layers that share their
     * top-k indices say so from the second one on: what the first made of the lists (bits of masked
     * MHA on CUDA) is used again. Where a plan has nothing to keep, it changes nothing. */
    bool same_lists;
} mla_tensors;

/* Contents that can be read on the host: page ids, keys listed twice in a row, topk_lens, NaN
 * sinks, run-time lengths; and, when complete is not NULL, tells per request whether every row
 * lists every key it may see (complete[B]; false without lists). Host pointers only.
 * MLA_ERR_ARGUMENT names row and entry; MLA_ERR_MEMORY. Any thread. */
MLA_API mla_status mla_tensors_check(const mla_problem *problem, const mla_tensors *tensors,
                                     bool *complete);

/* -------------------------------------------------------------------- plan */

/* num_splits: as many as each request would want if it were alone. Its bits then depend neither on
 * the batch round it nor on the GPU's size; few requests are answered later, since part of the GPU
 * stands idle. */
#define MLA_SPLITS_ALONE (-1)

typedef struct mla_plan_options {
    mla_route route;              /* MLA_ROUTE_AUTO, or one route for every request */
    const char *kernel;           /* NULL = choose; a name never falls back. MLA_KERNEL in the
                                      environment does the same where this is NULL */
    mla_precision precision;      /* CPU */
    int64_t num_splits;           /* of decode; 0 = as many as keep the GPU busy with this batch,
                                      or MLA_SPLITS_ALONE, or that many */
    bool nondeterministic;        /* allow results that differ between runs (none does today) */
    size_t workspace_limit_bytes; /* 0 = the route's own default; requests are split over query rows
                                      to fit */
    const bool *complete;         /* host [B] or NULL: mla_tensors_check's answer, per request */
    const mla_route *routes; /* host [B] or NULL: a route for each request, AUTO = choose; route
                                      must be AUTO */
} mla_plan_options;

/* Per request, what a plan decided. */
typedef struct mla_request_info {
    int64_t query_len, seq_len_kv;
    mla_route route;
    const char *kernel;     /* row name; valid as long as the library is loaded */
    const char *reason;     /* why this route; valid as long as the plan */
    double flop, bytes;     /* of attention and projections; formulas in docs/performance.md */
    int64_t num_splits;     /* key splits merged at the end; 1 = none */
    int64_t rows_per_pass;  /* query rows computed together under the memory limit */
    size_t workspace_bytes; /* of the group of requests that runs with this one */
} mla_request_info;

typedef struct mla_plan mla_plan;

/* Checks the problem, routes every request, picks kernels, lays out the workspace. options NULL =
 * defaults. MLA_ERR_ARGUMENT, MLA_ERR_UNSUPPORTED (names each candidate and why it refused),
 * MLA_ERR_MEMORY. *out is NULL on failure. The plan is immutable: share it between threads, one
 * workspace for each call in flight. */
MLA_API mla_status mla_plan_create(const mla_context *context, const mla_problem *problem,
                                   const mla_plan_options *options, mla_plan **out);
MLA_API void mla_plan_destroy(mla_plan *plan);
/* Bytes that mla_run needs; alignment 256 is enough. 0 for NULL. */
MLA_API size_t mla_plan_workspace_bytes(const mla_plan *plan);
/* Decision for request i. MLA_ERR_ARGUMENT outside [0, batch). */
MLA_API mla_status mla_plan_request(const mla_plan *plan, int64_t i, mla_request_info *out);
/* All decisions as lines of text; as snprintf. */
MLA_API size_t mla_plan_describe(const mla_plan *plan, char *text, size_t bytes);

/* Computes attention. Checks pointers and strides, then enqueues; allocates nothing, prints
 * nothing, waits for nothing. CPU: stream must be NULL and the call returns when done. Nothing is
 * written unless the status is MLA_OK. MLA_ERR_ARGUMENT (missing tensor, workspace too small,
 * misaligned), MLA_ERR_CUDA. Any number of threads may run one plan, each with its own workspace
 * and outputs. */
MLA_API mla_status mla_run(const mla_plan *plan, const mla_tensors *tensors, void *workspace,
                           size_t workspace_bytes, void *stream);

/* ------------------------------------------------------------------- merge */

/* Joins partial results over disjoint key sets: lse = log sum exp(lse_i), out = sum of
 * exp(lse_i - lse) · out_i. Parts with lse = -inf (or +inf where plus_inf_is_empty, FlashMLA's
 * convention) and any out are empty. A sink must be counted in one part only, or given here. */
typedef struct mla_merge_args {
    int64_t parts;            /* >= 0; none = all rows empty */
    int64_t rows, heads, dim; /* T, H, width of out */
    mla_dtype part_dtype;     /* of the parts' out; their lse is F32 (F64 if this is F64) */
    mla_dtype out_dtype;      /* of out; lse is F32 (F64 if this is F64) */
    mla_lse_base part_base, out_base;
    bool plus_inf_is_empty;
    const mla_tensor *part_out; /* host array [parts] of [rows, heads, dim] */
    const mla_tensor *part_lse; /* host array [parts] of [rows, heads] */
    const float *attn_sink;     /* [heads] or NULL */
    mla_tensor out, lse;        /* lse may be absent */
} mla_merge_args;

/* MLA_ERR_ARGUMENT, MLA_ERR_UNSUPPORTED, MLA_ERR_CUDA. Any thread. CPU: stream NULL. */
MLA_API mla_status mla_merge(const mla_context *context, const mla_merge_args *args, void *stream);

/* Converts lse, packed [rows, heads], between conventions, in place allowed: base, whether a sink
 * is counted, and what an empty row holds (-inf, or FlashMLA's +inf). attn_sink may be NULL when
 * neither side counts it or both do. Host memory, float. Taking a sink out is inexact where the
 * sink dominates. MLA_ERR_ARGUMENT. Any thread. */
typedef struct mla_lse_convention {
    mla_lse_base base;
    bool counts_sink;
    bool plus_inf_is_empty;
} mla_lse_convention;
MLA_API mla_status mla_lse_convert(const float *in, float *out, int64_t rows, int64_t heads,
                                   const float *attn_sink, mla_lse_convention from,
                                   mla_lse_convention to);

/* --------------------------------------------------------------- reference */

/* Unit roundoffs of the computation that is judged; 0 = exact there. docs/numerics.md §3. */
typedef struct mla_rounding {
    mla_route route;    /* how the judged result is computed */
    double accumulate;  /* of one addition in dot products (2^-23 for fp32 tensor cores) */
    double weights;     /* P rounded before P·V */
    double projected;   /* absorbed q (MQA), up-projected k and v (MHA) */
    double latent;      /* latent output before w_uv (MQA) */
    double dequantised; /* cache row rounded after dequantisation */
    double out;         /* final rounding, of the dtype of out */
    double lse;         /* final rounding of lse and max_logits */
} mla_rounding;

/* Roundings of a backend: CPU rounds nothing to 16 bits; CUDA and MODEL round at the points of
 * route in q_dtype. out_dtype is what the judged file or buffer holds. */
MLA_API mla_rounding mla_rounding_of(const mla_problem *problem, mla_backend backend,
                                     mla_precision precision, mla_route route, mla_dtype out_dtype);

typedef struct mla_reference_args {
    const int64_t *rows; /* query rows to compute, ascending; NULL = all T */
    int64_t num_rows;
    const mla_rounding *rounding; /* host [B], one per request; NULL = no bounds */
    /* Outputs, packed, all double; NULL = not wanted. n = num_rows (T if rows is NULL), d =
     * width. */
    double *out;                /* [n, H, d] */
    double *lse, *max_logits;   /* [n, H] */
    double *hard, *statistical; /* [n, H, d]: H and T of docs/numerics.md; +inf where vacuous */
    double *sigma; /* [n, H, d]: rms that rounding alone predicts; z = rms(err/sigma) */
    double *lse_hard, *max_hard;   /* [n, H] */
    double *lse_sigma, *max_sigma; /* [n, H]: rms that rounding alone predicts */
} mla_reference_args;

/* The fp64 reference with its per-element bounds, over all rows or a sample. Host pointers.
 * Allocates; uses context's threads (CPU context). tensors->out, lse, max_logits are not touched.
 * MLA_ERR_ARGUMENT, MLA_ERR_MEMORY. Any thread. */
MLA_API mla_status mla_reference(const mla_context *context, const mla_problem *problem,
                                 const mla_tensors *tensors, const mla_reference_args *args);

/* ----------------------------------------------------------------- kernels */

typedef enum mla_proof {
    MLA_PROOF_CPU = 0, /* runs on any host; checked against the oracle in CI */
    MLA_PROOF_SILICON, /* ran on that architecture */
    MLA_PROOF_MODEL,   /* ran in the functional model */
    MLA_PROOF_COMPILED /* compiled only */
} mla_proof;

typedef struct mla_kernel_info {
    const char *name;
    mla_backend backend;
    const char *architecture; /* "cpu", "sm_80+", "sm_90a", … */
    const char *routes;       /* "dense-mha masked-mha" */
    const char *forms;        /* "latent absorbed" */
    const char *formats;      /* "bf16 f16 fp8_ds_mla" */
    mla_proof proof;
    bool runnable; /* here, now */
} mla_kernel_info;

/* The dispatch table, best first, read-only; for tests and tools. The texts routes, forms and
 * formats stay valid until the same thread asks again. MLA_ERR_ARGUMENT past the end. Any
 * thread. */
MLA_API int mla_kernel_count(void);
MLA_API mla_status mla_kernel_get(int i, mla_kernel_info *out);
/* "cpu", "silicon", "model", "compiled"; "unknown" otherwise. Never NULL. */
MLA_API const char *mla_proof_name(mla_proof proof);

#ifdef __cplusplus
}
#endif
#endif
