#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# All that proves the CUDA backend on the GPU of this machine, side by side: problems of the shapes
# files against their bounds, the device tests, compute-sanitizer.
#   validation/prove_cuda.sh BUILD OUT [WORD...]
# BUILD: build tree with mla and the tests; OUT: folder for the logs. WORDs keep the parts whose
# name holds one of them. Prints one line a part: verdict, name, seconds, and what its log says last;
# of a shapes file the largest shares of the bound. MLA_PROVE_SECONDS limits a part (default 170),
# MLA_PROVE_JOBS says how many run at a time (default: half of the processors).
# Exit 0: all passed or were skipped with a reason; 1: not; 3: no device.
set -u -o pipefail
[ $# -ge 2 ] || { sed -n '4,5p' "$0"; exit 2; }
build=$(realpath "$1") out=$2
shift 2
words=("$@")
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
mkdir -p "$out" && out=$(realpath "$out") || exit 1
seconds=${MLA_PROVE_SECONDS:-170}
processors=$(nproc)
jobs_most=${MLA_PROVE_JOBS:-$(((processors + 1) / 2))}
# Nobody goes on when this script is stopped.
trap 'kill $(jobs -p) 2>/dev/null; exit 1' TERM INT
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((processors / jobs_most > 1 ? processors / jobs_most : 1))}

"$build/mla" info
"$build/mla" check --backend cuda 'attend form=absorbed heads=1 batch=q1 rank=512 rope=64 topk=0' >"$out/device.log" 2>&1
[ $? -eq 3 ] && { cat "$out/device.log"; exit 3; }

# part NAME COMMAND...: runs in the background once there is room.
part() {
    local name=$1 word wanted=$((${#words[@]} == 0))
    shift
    for word in ${words[@]+"${words[@]}"}; do
        [[ $name == *$word* ]] && wanted=1
    done
    [ $wanted -eq 1 ] || return
    while [ "$(jobs -rp | wc -l)" -ge "$jobs_most" ]; do wait -n; done
    (
        start=$(date +%s)
        timeout "$seconds" "$@" >"$out/$name.log" 2>&1 &
        trap 'kill %1; exit 1' TERM
        wait %1
        echo "$? $(($(date +%s) - start))" >"$out/$name.status"
    ) &
    names+=("$name")
}

# cut NAME WORD FILE PIECES: the problems of a shapes file that hold the word, into NAME0.txt and so on.
cut() {
    local i
    for ((i = 0; i < $4; i++)); do
        { [ -n "$2" ] || grep '^#!' "$3"
          grep '^attend' "$3" | grep -e "$2" | awk -v i="$i" -v n="$4" 'NR % n == i'; } >"$out/$1$i.txt"
    done
}

names=()
# The long ones first.
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | head -n 1)
if [ -n "$sanitizer" ]; then
    # Many small parts: the sanitizer slows the launches, not the judging, and racecheck most of all.
    # Kernels of cuda/any by name, whatever the device would choose.
    cut smoke '' validation/shapes/smoke.txt 3
    cut latent 'attend heads' validation/shapes/any.txt 1
    for tool in racecheck memcheck initcheck synccheck; do
        run=("$sanitizer" --tool "$tool" --error-exitcode 99)
        pieces=2 shapes=4 records=6 fewer=1
        [ $tool = racecheck ] && pieces=8 shapes=17 records=24 fewer=20 # times fewer keys of the indexer
        cut "$tool-absorbed" 'form=absorbed' validation/shapes/any.txt $pieces
        cut "$tool-expanded" 'form=expanded' validation/shapes/any.txt $pieces
        cut "$tool-group" attend validation/shapes/model_group_any.txt $pieces
        check=("$build/mla" check --backend cuda)
        for ((i = 0; i < pieces; i++)); do
            part "$tool-any-mqa$i" "${run[@]}" "${check[@]}" --kernel mqa_any --shapes "$out/$tool-absorbed$i.txt"
            part "$tool-any-mha$i" "${run[@]}" "${check[@]}" --kernel mha_any --shapes "$out/$tool-expanded$i.txt"
            part "$tool-topk$i" "${run[@]}" "$build/tests/test_cuda_index" topk '' "$i/$pieces"
            part "$tool-any-group$i" "${run[@]}" "${check[@]}" --kernel sparse_mqa_group_any --shapes "$out/$tool-group$i.txt"
        done
        for ((i = 0; i < records; i++)); do
            part "$tool-codec$i" "${run[@]}" "$build/tests/test_cuda_index" codec '' "$i/$records"
        done
        for ((i = 0; i < shapes; i++)); do
            part "$tool-index-any$i" "${run[@]}" "$build/tests/test_cuda_index" index index_logits_any "$i/$shapes/$fewer"
            part "$tool-index-sm90$i" "${run[@]}" "$build/tests/test_cuda_index" index index_logits_sm90 "$i/$shapes/$fewer"
        done
        part "$tool-any-latent-mha" "${run[@]}" "${check[@]}" --kernel mha_latent_any --route masked-mha --shapes "$out/latent0.txt"
        part "$tool-any-latent-mqa" "${run[@]}" "${check[@]}" --kernel mqa_latent_any --route sparse-mqa --shapes "$out/latent0.txt"
        part "$tool-any-latent-group" "${run[@]}" "${check[@]}" --kernel sparse_mqa_group_latent_any \
            --shapes validation/shapes/model_group_any_latent.txt
        for i in 0 1 2; do
            part "$tool-smoke$i" "${run[@]}" "${check[@]}" --shapes "$out/smoke$i.txt"
        done
        part "$tool-merge" "${run[@]}" "$build/tests/test_device_merge"
    done
    # Rows of sm_90 by name. racecheck follows their barriers in a build with -DMLA_RACECHECK=ON alone.
    if grep -q '^MLA_RACECHECK:BOOL=ON' "$build/CMakeCache.txt" 2>/dev/null; then
        number=0
        while read -r kernel problem; do
            part "racecheck-sm90-$((number++))" "$sanitizer" --tool racecheck --error-exitcode 99 \
                "$build/mla" check --backend cuda --kernel "$kernel" --rows 4 "$problem"
        done <validation/racecheck_sm90.txt
    fi
else
    echo "no compute-sanitizer here: its parts are left out"
fi
for unit in device_mutants cuda_big cuda_any cuda_graph cuda_graph_data cuda_index device device_lists device_merge; do
    part "$unit" "$build/tests/test_$unit"
done
for file in prefill sparse decode edge smoke generic demo any \
    model_mha model_mha_latent model_decode model_decode_latent model_sparse model_sparse_latent; do
    [ -e "validation/shapes/$file.txt" ] || continue
    part "shapes-$file" "$build/mla" check --backend cuda --shapes "validation/shapes/$file.txt"
done
part shapes-group "$build/mla" check --backend cuda --kernel sparse_mqa_group_any --shapes validation/shapes/model_group_any.txt
part shapes-group-latent "$build/mla" check --backend cuda --kernel sparse_mqa_group_latent_any \
    --shapes validation/shapes/model_group_any_latent.txt
wait

failed=0
for name in "${names[@]}"; do
    read -r status took <"$out/$name.status"
    failed_before=$failed
    case $status in
        0) verdict=ok ;;
        77) verdict=skipped ;;
        124) verdict="STOPPED" failed=1 ;;
        *) verdict="FAILED($status)" failed=1 ;;
    esac
    # racecheck does not know the mbarriers of cuBLAS's own kernels: hazards there are not ours.
    note=
    if [ "$status" = 99 ] && [[ $name == racecheck-* ]] && grep -q 'Race reported' "$out/$name.log" &&
        ! grep 'Race reported' "$out/$name.log" | grep -qvE ' at (void )?(nvjet|cublas|cutlass)'; then
        verdict=ok failed=$failed_before note="  (hazards in cuBLAS's kernels alone)"
    fi
    last=$(grep -E 'SUMMARY|[0-9]+ ok, |caught|wrong|passed|skipped' "$out/$name.log" | tail -n 1)
    [ -n "$last" ] || last=$(tail -n 1 "$out/$name.log")
    # Largest share of the bound: of out, of lse.
    share=$(sed -nE 's/.*  out ([0-9.e+-]+)  lse ([0-9.e+-]+).*/\1 \2/p' "$out/$name.log" | awk '
        { if ($1 > o) o = $1; if ($2 > l) l = $2 } END { if (NR) printf "  out %.2g, lse %.2g of allowed", o, l }')
    printf '%-11s %-26s %4d s  %.90s%s\n' "$verdict" "$name" "$took" "$last" "$share$note"
    [ "$verdict" = ok ] || [ "$verdict" = skipped ] || grep -hE 'FAIL|fail|=========|want' "$out/$name.log" | head -n 4
done
exit $failed
