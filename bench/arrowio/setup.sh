#!/usr/bin/env bash
# Makes ./.bench/venv for the Python cases of the benchmark. Each peer is optional;
# what has no wheel for this machine is named and left out. Quick when all is there.
set -euo pipefail
cd "$(dirname "$0")/../.."
venv=.bench/venv
"$venv/bin/python" -m pip --version >/dev/null 2>&1 || python3 -m venv --clear "$venv"
pip() { "$venv/bin/python" -m pip --quiet --disable-pip-version-check "$@"; }
has() { "$venv/bin/python" -c "import importlib.metadata as m, sys; [m.version(n) for n in sys.argv[1:]]" "$@" 2>/dev/null; }
optional() { # optional NAME...: packages that go together
	has "$@" || pip install "$@" || echo "$*: no wheel installs here; the table will say so"
}
has pyarrow numpy || pip install pyarrow numpy
optional ray
optional dora-rs dora-rs-cli
optional iceoryx2
has torch || pip install torch --index-url https://download.pytorch.org/whl/cpu 2>/dev/null || optional torch
"$venv/bin/python" -m pip --disable-pip-version-check list 2>/dev/null | grep -i -E '^(pyarrow|numpy|ray|dora-rs|dora-rs-cli|iceoryx2|torch) '
