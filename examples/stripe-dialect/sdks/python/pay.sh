#!/usr/bin/env sh
# pay.py, in an environment of its own beside it.
set -eu
cd "$(dirname "$0")"
[ -d venv ] || python3 -m venv venv
venv/bin/pip install --quiet --require-hashes --requirement requirements.txt
exec venv/bin/python pay.py "$@"
