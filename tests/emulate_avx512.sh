#!/usr/bin/env bash
# The kernel tests with the AVX-512 path emulated by csrc/emulate_avx512.h: tests/emulate_avx512.sh [python]
# Builds the native module aside and puts it before the installed one; needs cmake and nanobind (extra `dev`).
set -euo pipefail
cd "$(dirname "$0")/.."
. tests/aside.sh
build_aside "${1:-python3}" build/emulated -DDEEPFAST_EMULATE_AVX512=ON
test_aside -k avx512
