#!/bin/sh
# Makes the environment in which benchmarks/full_size.py runs llama.cpp: benchmarks/llama.sh FOLDER (outside this
# repository), then full_size.py --llama FOLDER. Wants CPython 3.11 and g++; compiles for this CPU, for up to an hour.
set -eu
folder=${1:?"usage: benchmarks/llama.sh FOLDER"}
"${PYTHON:-python3.11}" -m venv "$folder"
pip="$folder/bin/python -m pip --disable-pip-version-check --no-input"
$pip install -q cmake ninja numpy
CMAKE_ARGS="-DGGML_NATIVE=ON -DGGML_OPENMP=ON -DLLAVA_BUILD=OFF" PATH="$folder/bin:$PATH" \
    $pip install -q --no-binary llama-cpp-python "llama-cpp-python==${LLAMA_CPP_PYTHON:-0.3.36}"
$pip list | grep -E '^(llama|numpy) *'
