/* SPDX-License-Identifier: Apache-2.0 */
/* CPU attention against the oracle: every route, form, format, precision and rule. */
#include "support_attend.h"

#include <math.h>
#include <string.h>

#define SMALL " heads=3 rank=48 nope=20 rope=12 v=24 lse=1 max_logits=1 "
#define BATCH " batch=q5,q3s40,q1s70,q33s33 "

static void latent_dense(void **state)
{
    (void)state;
    attend_check_all("attend form=latent dtype=f32 out=f64" SMALL BATCH, 1);
    attend_check_all("attend form=latent dtype=bf16 out=bf16 pad=1 base=2 sink=1" SMALL BATCH, 2);
    attend_check_all("attend form=latent dtype=f16 out=f16 page=16 causal=0" SMALL BATCH, 3);
}

static void latent_lists(void **state)
{
    (void)state;
    attend_check_all("attend form=latent dtype=f32 out=f64 topk=16 junk=1" SMALL BATCH, 4);
    attend_check_all("attend form=latent dtype=bf16 out=f32 topk=40 topk_lens=1 junk=1 pad=1 "
                     "page=8 sink=1" SMALL BATCH,
                     5);
    attend_check_all("attend form=latent dtype=f32 out=f64 topk=80 complete=1 causal=0" SMALL BATCH,
                     6);
    attend_check_all("attend form=latent dtype=f32 out=f64 mask=1" SMALL BATCH, 7);
    attend_check_all("attend form=latent dtype=f32 out=f64 mask=1 causal=0 sink=1 base=2 pad=1 "
                     "page=4" SMALL BATCH,
                     8);
}

static void absorbed(void **state)
{
    (void)state;
    attend_check_all("attend form=absorbed dtype=f32 out=f64 scale=0.1" SMALL BATCH, 9);
    attend_check_all("attend form=absorbed dtype=bf16 out=bf16 scale=0.1 topk=20 topk_lens=1 "
                     "junk=1 pad=1 sink=1" SMALL BATCH,
                     10);
    attend_check_all("attend form=absorbed dtype=f32 out=f64 scale=-0.1 mask=1 rope=0 heads=5 "
                     "rank=33 lse=1 max_logits=1" BATCH,
                     11);
}

static void expanded(void **state)
{
    (void)state;
    attend_check_all("attend form=expanded dtype=f32 out=f64 heads=6 heads_kv=6 nope=20 rope=12 "
                     "v=24 lse=1 max_logits=1" BATCH,
                     12);
    attend_check_all("attend form=expanded dtype=f32 out=f32 heads=6 heads_kv=2 nope=20 rope=0 "
                     "v=40 lse=1 max_logits=1 mask=1 sink=1 pad=1" BATCH,
                     13);
    attend_check_all("attend form=expanded dtype=bf16 kv_dtype=f16 out=f64 heads=4 heads_kv=1 "
                     "nope=20 rope=12 v=24 lse=1 topk=30 junk=1 topk_lens=1" BATCH,
                     14);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(latent_dense),
        cmocka_unit_test(latent_lists),
        cmocka_unit_test(absorbed),
        cmocka_unit_test(expanded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
