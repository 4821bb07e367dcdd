#!/bin/sh
# Proves, without a GPU, that the plugin imports, registers and resolves under the GPU wheel of vLLM.
# Not part of CI: the wheel and its CUDA libraries are several gigabytes.
#   tests/gpu_wheel/check.sh [FOLDER]    FOLDER keeps the environment for a second run; default: a temporary one
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
venv=${1:-$(mktemp -d)/venv}
python=${PYTHON:-python3.11}

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
# === leaves out torch's +cpu build, which pip prefers where it is set up to find it.
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check "vllm==0.32.0" "torch===2.13.0"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps "$root"
cd /  # the installed package, not the checkout
exec env HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 "$venv/bin/python" "$root/tests/gpu_wheel/check.py" "$root/tests/golden"
