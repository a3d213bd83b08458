#!/usr/bin/env bash
# Everything a GPU is needed for, in under ten minutes and offline: builds the CUDA module, runs the kernel and model
# tests on the device, a few kernels under compute-sanitizer, and the benchmarks; prints one table, writes one JSON.
#
#   bench/gpu_check.sh [OUTPUT_FOLDER]       (default: build/gpu_check)
#
# Wants nvcc, a GPU, and Python >= 3.11 with cupy, numpy, pytest and the build packages (scikit-build-core, pybind11, cython, cmake,
# ninja); torch and transformers for the comparisons. Each part has a time limit; one that fails is told in the table.
set -uo pipefail
cd "$(dirname "$0")/.."
out="${1:-build/gpu_check}"
mkdir -p "$out"
python="${PYTHON:-python3}"
site="$PWD/build/gpu_site"
began=$SECONDS
: > "$out/parts.jsonl"

budget=570  # seconds of all parts: what is over is the table's

# part NAME LIMIT_SECONDS COMMAND...: its JSON lines go to parts.jsonl, everything it says to NAME.log. A part gets no
# more than what is left of the budget, so that the table is always printed; with too little left it is told as 124.
part() {
  local name="$1" limit="$2" at=$SECONDS left=$((budget - SECONDS + began)) status=124
  shift 2
  printf '== %s (%d s so far)\n' "$name" "$SECONDS"
  [ "$limit" -le "$left" ] || limit="$left"
  : > "$out/$name.log"
  if [ "$limit" -ge 5 ]; then
    timeout -k 5 "$limit" "$@" > "$out/$name.log" 2>&1
    status=$?
  fi
  grep '^{' "$out/$name.log" | sed "s/^{/{\"part\": \"$name\", /" >> "$out/parts.jsonl"
  printf '{"part": "%s", "case": "status", "exit": %d, "seconds": %d}\n' "$name" "$status" "$((SECONDS - at))" \
    >> "$out/parts.jsonl"
  [ "$status" = 0 ] || tail -n 15 "$out/$name.log"
  return "$status"
}
field() { grep "\"$1\"" "$out/parts.jsonl" | tail -n 1 | sed "s/.*\"$1\": \([0-9.]*\).*/\1/"; }

architecture="$("$python" -c 'import cupy; print(cupy.cuda.Device(0).compute_capability)')" || {
  echo "a CUDA device and CuPy are needed: see pyllm doctor" >&2
  exit 2
}
[ "$architecture" = 90 ] && architectures="90-real" || architectures="$architecture-real"

# Into a folder of its own: the environment stays as it is, and what it lacks can't be fetched offline.
part build 240 env CMAKE_BUILD_PARALLEL_LEVEL="$(nproc)" "$python" -m pip install --no-index --no-build-isolation \
  --no-deps --upgrade --target "$site" -Ccmake.define.PYLLM_CUDA=ON \
  -Ccmake.define.CMAKE_CUDA_ARCHITECTURES="$architectures" -Ccmake.define.PYLLM_CUDA_LINEINFO=ON . || exit 1
export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
# Before the tests, which would skip what needs a GPU and pass.
part driver 30 "$python" -P -c 'from pyllm.devices import cuda_driver; cuda_driver.load(); print(cuda_driver.cublaslt_path())'
part ceilings 60 "$python" bench/cuda_ceilings.py
copy="$(field copy_gb_s)"
gemm="$(field gemm_bf16_tflops)"
# Empty where a ceiling is not known (that part failed, no torch): the benchmarks then leave the shares out.
ceilings=(${copy:+--copy "$copy"} ${gemm:+--gemm "$gemm"})
# -P: not the package in this folder, which has no compiled modules.
part tests 90 "$python" -P -m pytest -q --maxfail=30 tests/test_cuda_*.py tests/test_device_rows.py
# The same end-to-end tests as on the CPU, with models on the GPU.
part model_tests 60 env PYLLM_TEST_DEVICE=cuda "$python" -P -m pytest -q --maxfail=30 $(cat tests/on_cuda.txt)
if command -v compute-sanitizer > /dev/null; then
  part sanitizer 60 compute-sanitizer --error-exitcode 9 "$python" -P -m pytest -q --maxfail=5 \
    -k "gpu and (adds_in_place or nothing_to_do or append or select_and_widen or norm_prologue)" \
    tests/test_cuda_linear.py tests/test_cuda_attention.py tests/test_cuda_rows.py
fi
part kernels 90 "$python" bench/cuda_kernels.py ${copy:+--copy "$copy"}
part small_models 60 "$python" bench/cuda_models.py "${ceilings[@]}" --only "gpt2|qwen"
part large_models 150 "$python" bench/cuda_models.py "${ceilings[@]}" --only "llama"
left=$((budget - SECONDS + began))
[ "$left" -gt 40 ] && part peers "$left" "$python" bench/cuda_peers.py
"$python" bench/cuda_table.py "$out/parts.jsonl" --json "$out/gpu_check.json"
