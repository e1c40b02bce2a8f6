/* SPDX-License-Identifier: Apache-2.0 */
/* Row readers of format.c for one REAL (float or double); NAME(x) adds the suffix. A stored value
 * times its scale has at most 28 significant bits: exact in double, rounded once in float. */

ALWAYS_INLINE void NAME(read_bf16)(const char *src, int64_t n, REAL *dst)
{
#pragma omp simd
    for (int64_t i = 0; i < n; i++)
        dst[i] = (REAL)widen_bf16(load_u16(src, i));
}

ALWAYS_INLINE void NAME(read_e4m3)(const char *src, int64_t n, REAL scale, REAL *dst)
{
#pragma omp simd
    for (int64_t i = 0; i < n; i++)
        dst[i] = (REAL)widen_e4m3((uint8_t)src[i]) * scale;
}

ALWAYS_INLINE void NAME(read_fp8_ds_mla)(const struct mla_record *r, REAL *dst)
{
    for (int s = 0; s < FP8_TILES; s++)
        NAME(read_e4m3)
    (r->data + s * FP8_TILE, FP8_TILE, (REAL)load_scale_f32(r->scales + 4 * s), dst + s * FP8_TILE);
    NAME(read_bf16)(r->rope, PACKED_ROPE, dst + PACKED_LATENT);
}

ALWAYS_INLINE void NAME(read_model1)(const struct mla_record *r, REAL *dst)
{
    for (int s = 0; s < MODEL1_TILES; s++)
        NAME(read_e4m3)
    (r->data + s * MODEL1_TILE, MODEL1_TILE, (REAL)widen_ue8m0((uint8_t)r->scales[s]),
     dst + s * MODEL1_TILE);
    NAME(read_bf16)(r->rope, PACKED_ROPE, dst + MODEL1_ROPE_AT);
}

ALWAYS_INLINE void NAME(read_v41)(const struct mla_record *r, REAL *dst)
{
    for (int s = 0; s < V41_TILES; s++)
        NAME(read_e4m3)
    (r->data + s * V41_TILE, V41_TILE, (REAL)widen_ue8m0((uint8_t)r->scales[s]),
     dst + s * V41_TILE);
}

ALWAYS_INLINE void NAME(read_nvfp4)(const struct mla_record *r, REAL *dst)
{
    for (int s = 0; s < NVFP4_TILES; s++) {
        REAL scale = (REAL)widen_e4m3((uint8_t)r->scales[nvfp4_scale_place(s)]);
        const char *src = r->data + s * NVFP4_TILE / 2;
        REAL *to = dst + s * NVFP4_TILE;
        for (int i = 0; i < NVFP4_TILE / 2; i++) {
            to[2 * i] = (REAL)e2m1_values[(uint8_t)src[i] & 15] * scale;
            to[2 * i + 1] = (REAL)e2m1_values[(uint8_t)src[i] >> 4] * scale;
        }
    }
    NAME(read_e4m3)(r->rope, PACKED_ROPE, 1, dst + PACKED_LATENT);
}

ALWAYS_INLINE void NAME(read_plain)(mla_dtype dtype, const struct mla_record *r, int64_t latent,
                                    int64_t rope, REAL *dst)
{
    if (dtype == MLA_BF16) {
        NAME(read_bf16)(r->data, latent, dst);
        NAME(read_bf16)(r->rope, rope, dst + latent);
        return;
    }
    NAME(mla_load)(dtype, r->data, latent, dst);
    NAME(mla_load)(dtype, r->rope, rope, dst + latent);
}

ALWAYS_INLINE void NAME(read_record)(mla_cache_format format, const struct mla_record *record,
                                     int64_t latent, int64_t rope, REAL *dst)
{
    switch (format) {
    case MLA_CACHE_FP8_DS_MLA:
        NAME(read_fp8_ds_mla)(record, dst);
        break;
    case MLA_CACHE_MODEL1:
        NAME(read_model1)(record, dst);
        break;
    case MLA_CACHE_V41:
        NAME(read_v41)(record, dst);
        break;
    case MLA_CACHE_NVFP4_DS_MLA:
        NAME(read_nvfp4)(record, dst);
        break;
    default:
        NAME(read_plain)(mla_cache_dtype(format), record, latent, rope, dst);
    }
}

static MLA_CLONES void NAME(read_one)(mla_cache_format format, const struct mla_record *record,
                                      int64_t latent, int64_t rope, REAL *dst)
{
    NAME(read_record)(format, record, latent, rope, dst);
}

void NAME(mla_record_read)(mla_cache_format format, const struct mla_record *record, int64_t latent,
                           int64_t rope, REAL *dst)
{
    NAME(read_one)(format, record, latent, rope, dst);
}

static MLA_CLONES void NAME(read_rows)(const mla_problem *problem, const mla_tensors *tensors,
                                       const struct mla_request *request, int64_t seq_len_kv,
                                       const int32_t *index, int64_t first, int64_t n, REAL *dst,
                                       int64_t ld, uint8_t *valid)
{
    struct row_map map = map_rows(problem, tensors, request, seq_len_kv);
    int64_t width = problem->kv_lora_rank + problem->qk_rope_dim;
    for (int64_t i = 0; i < n; i++) {
        REAL *row = dst + i * ld;
        struct mla_record record = {NULL, NULL, NULL};
        bool found = find_record(&map, index ? index[i] : first + i, &record);
        if (valid)
            valid[i] = found;
        if (!found) {
            memset(row, 0, (size_t)width * sizeof *row);
            continue;
        }
        NAME(read_record)
        (problem->cache_format, &record, problem->kv_lora_rank, problem->qk_rope_dim, row);
    }
}

void NAME(mla_cache_rows)(const mla_problem *problem, const mla_tensors *tensors,
                          const struct mla_request *request, int64_t seq_len_kv,
                          const int32_t *index, int64_t first, int64_t n, REAL *dst, int64_t ld,
                          uint8_t *valid)
{
    NAME(read_rows)(problem, tensors, request, seq_len_kv, index, first, n, dst, ld, valid);
}
