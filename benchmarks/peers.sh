#!/bin/sh
# Makes the environment of the peers that benchmarks/overhead.py starts: benchmarks/peers.sh FOLDER (outside this
# repository), then overhead.py --peers FOLDER. Wants CPython 3.11; takes a few minutes.
set -eu
folder=${1:?"usage: benchmarks/peers.sh FOLDER"}
"${PYTHON:-python3.11}" -m venv "$folder"
"$folder/bin/python" -m pip --disable-pip-version-check --no-input install -q -r "$(dirname "$0")/peers.txt"
"$folder/bin/python" -m pip --disable-pip-version-check list | grep -E '^(litellm|vllm-router|py-spy) '
