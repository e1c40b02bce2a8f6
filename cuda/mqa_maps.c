/* SPDX-License-Identifier: Apache-2.0 */
#include "mqa_maps.h"

#include "format.h"

mla_status mla_mqa_cache_maps(const mla_problem *p, const struct mla_mqa_args *a, int keys,
                              int least_rows, struct mla_tensor_map *latent,
                              struct mla_tensor_map *rope, int32_t *box_rows)
{
    const struct mla_mqa_cache *c = &a->cache;
    int64_t size = c->page_size, pages = c->num_pages, rope_bytes = c->row_bytes, all = 0;
    int64_t page_bytes = c->page_bytes, limit = (int64_t)1 << 40;
    int rows = keys;
    if (mla_cache_is_packed(p->cache_format) || a->topk || a->mask || c->align != 16)
        return MLA_OK;
    if (size) {
        rows = size < keys ? (int)size : keys;
        if (rows < least_rows || keys % rows || size % rows)
            return MLA_OK;
    } else {
        for (int64_t b = 0; b < p->batch; b++)
            all += p->seq_lens_kv[b];
        size = all;
        pages = 1;
        page_bytes = c->row_bytes;
        rope_bytes = c->rope_row_bytes;
    }
    if (size == 0 || pages == 0 || c->row_bytes >= limit || page_bytes >= limit ||
        rope_bytes >= limit)
        return MLA_OK;
    uint64_t dims[3] = {MLA_MQA_LATENT, (uint64_t)size, (uint64_t)pages};
    uint64_t strides[2] = {(uint64_t)c->row_bytes, (uint64_t)page_bytes};
    const uint32_t box[3] = {64, (uint32_t)rows, 1};
    mla_status status = mla_tensor_map_tiled(latent, 2, 3, c->data, dims, strides, box, 128);
    if (status == MLA_OK && p->qk_rope_dim) {
        dims[0] = (uint64_t)p->qk_rope_dim;
        strides[0] = (uint64_t)rope_bytes;
        if (c->page_size == 0)
            strides[1] = strides[0];
        status = mla_tensor_map_tiled(rope, 2, 3, c->rope, dims, strides, box, 128);
    }
    *box_rows = rows;
    return status;
}
