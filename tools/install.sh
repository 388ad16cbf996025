#!/usr/bin/env bash
# Make a virtual environment and install liteasr into it, editable, with its test tools.
# Does nothing where that is done already.
#
#   VENV=.venv PYTHON=python3.11 bash tools/install.sh
#
# torch is taken as it is installed, or installed here: where there is no NVIDIA GPU only if the
# package index offers a build without CUDA, never gigabytes that nobody asked for.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3.11}
venv=${VENV:-.venv}
torch=${TORCH:-torch==2.13.0}

stamp=$venv/.installed-$(cksum <pyproject.toml | tr -d ' ')
[ ! -e "$stamp" ] || exit 0

pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }

brings_cuda() {
  report=$(mktemp)
  pip install --quiet --dry-run --report "$report" "$torch" >/dev/null
  grep -q '"name": "nvidia-' "$report"
}

share=
if "$python" -c 'import torch' 2>/dev/null; then share=--system-site-packages; fi
[ -x "$venv/bin/python" ] || "$python" -m venv $share "$venv"

if ! "$venv/bin/python" -c 'import torch' 2>/dev/null; then
  if ! nvidia-smi -L >/dev/null 2>&1 && [ -z "${ALLOW_CUDA:-}" ] && brings_cuda; then
    cat >&2 <<'TEXT'
There is no NVIDIA GPU here, and your package index offers torch only with CUDA (gigabytes).
Set PIP_EXTRA_INDEX_URL to PyTorch's index of CPU builds (its "Get Started" page names it), or
ALLOW_CUDA=1 to install the CUDA build all the same, and run this again.
TEXT
    exit 1
  fi
  echo "installing $torch …" >&2
  pip install --quiet "$torch"
fi
echo "installing liteasr …" >&2
pip install --quiet --editable '.[dev,onnx]'
touch "$stamp"
