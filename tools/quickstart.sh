#!/usr/bin/env bash
# Install, compress a real Whisper checkpoint on real speech, and show what it cost.
#
#   bash tools/quickstart.sh [key=value …]
#
# Takes the checkpoint and the speech from ../shared, or from MODEL (a Whisper folder or hub id)
# and SPEECH (a folder with the sub-folders that configs/data/shared_speech.yaml names).
set -euo pipefail
cd "$(dirname "$0")/.."
MODEL=${MODEL:-../shared/models/whisper-tiny-libri}
SPEECH=${SPEECH:-../shared/speech}
if [ ! -d "$SPEECH" ]; then
  echo "There is no speech in $SPEECH: set SPEECH to yours, and MODEL to a Whisper checkpoint." >&2
  exit 2
fi
bash tools/install.sh
exec "${VENV:-.venv}/bin/python" -m liteasr.fit --config recipes/whisper_tiny_libri.yaml \
  model.id="$MODEL" data.root="$SPEECH" run.dir=runs/quickstart run.overwrite=true "$@"
