/* SPDX-License-Identifier: Apache-2.0 */
#include "mha_maps.h"

static mla_status map_of(struct mla_tensor_map *map, const mla_tensor *t, int64_t width,
                         int64_t heads, int64_t count, int box_rows)
{
    const uint64_t dims[3] = {(uint64_t)width, (uint64_t)heads, (uint64_t)count};
    const uint64_t strides[2] = {(uint64_t)t->stride[1] * 2, (uint64_t)t->stride[0] * 2};
    const uint32_t box[3] = {MLA_MHA_BOX, 1, (uint32_t)box_rows};
    return mla_tensor_map_tiled(map, 2, 3, t->data, dims, strides, box, 128);
}

mla_status mla_mha_set_maps(struct mla_mha_maps *m, struct mla_mha_args *a,
                            const struct mla_mha_operands *o, const int box_rows[3])
{
    mla_status status = map_of(&m->q, &o->q, o->q_split, o->heads, o->rows_q, box_rows[0]);
    m->q_rope = m->k = m->k_rope = m->v = m->q;
    if (o->q_split == o->d_qk)
        a->q_split = INT32_MAX;
    else if (status == MLA_OK)
        status =
            map_of(&m->q_rope, &o->q_rope, o->d_qk - o->q_split, o->heads, o->rows_q, box_rows[0]);
    if (status == MLA_OK && o->rows_kv > 0)
        status = map_of(&m->k, &o->k, o->k_split, o->heads_kv, o->rows_kv, box_rows[1]);
    if (status == MLA_OK && o->rows_kv > 0 && o->k_split < o->d_qk)
        status = map_of(&m->k_rope, &o->k_rope, o->d_qk - o->k_split, 1, o->rows_kv, box_rows[1]);
    if (status == MLA_OK && o->rows_kv > 0)
        status = map_of(&m->v, &o->v, o->d_v, o->heads_kv, o->rows_kv, box_rows[2]);
    return status;
}

bool mla_mha_out_aligned(const struct mla_mha_args *a)
{
    uint64_t bytes = a->out_dtype == MLA_F32 ? 4 : 2;
    uint64_t all = (uint64_t)(uintptr_t)a->out | (uint64_t)a->out_stride[0] * bytes |
                   (uint64_t)a->out_stride[1] * bytes;
    return all % 16 == 0;
}
