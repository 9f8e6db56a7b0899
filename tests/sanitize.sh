#!/usr/bin/env bash
# The kernel tests under AddressSanitizer and UBSan: bash tests/sanitize.sh [python]
# Builds the native module aside and puts it before the installed one; needs cmake and nanobind (extra `dev`).
# The AVX-512 path runs emulated, so that every path is checked on every machine.
set -euo pipefail
cd "$(dirname "$0")/.."
. tests/aside.sh
build_aside "${1:-python3}" build/sanitized -DDEEPFAST_SANITIZE=ON -DDEEPFAST_EMULATE_AVX512=ON
export ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1
LD_PRELOAD="$(g++ -print-file-name=libasan.so):$(g++ -print-file-name=libubsan.so)"
export LD_PRELOAD
test_aside
