#!/usr/bin/env bash
# Install, compress the model in the package on the speech in the package, show what it cost, and
# transcribe a file with the result.
#
#   bash tools/quickstart.sh [key=value …]
set -euo pipefail
cd "$(dirname "$0")/.."
bash tools/install.sh
python=${VENV:-.venv}/bin/python
"$python" -m liteasr.fit --config recipes/quickstart.yaml run.overwrite=true "$@"
echo
echo "liteasr/demo/speech/evaluation/003.ogg, transcribed by the compressed model:"
"$python" -m liteasr.transcribe --model runs/quickstart/model --format vtt \
  liteasr/demo/speech/evaluation/003.ogg
