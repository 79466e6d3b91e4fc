#!/usr/bin/env bash
# Run the suite against the built wheel, in a copy of the clone without ttepretrain/ and an environment with the wheel
# beside the locked dependencies. What works only from the source tree fails here.
#   bash tests/installed.sh .venv [pytest arguments]
set -euo pipefail
venv=$(cd "$1" && pwd); shift
root=$(pwd)
stage=$root/build/installed
rm -rf "$stage"
mkdir -p "$stage/clone"
.uv/bin/uv build --quiet --wheel --out-dir "$stage" --python "$venv/bin/python"
.uv/bin/uv venv --quiet --python "$venv/bin/python" "$stage/venv"
.uv/bin/uv pip install --quiet --python "$stage/venv/bin/python" --no-deps "$stage"/*.whl
site=$("$stage/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
"$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$site/locked_dependencies.pth"
git ls-files --cached --others --exclude-standard -z -- . ':!ttepretrain' | xargs -0 cp --parents -t "$stage/clone"

export TTE_FIXTURES=${TTE_FIXTURES:-$root/../shared/fixtures}
export TTE_INSTALLED=$site
export PYTHONPATH=$stage/clone
cd "$stage/clone"
exec "$stage/venv/bin/python" -m pytest -m "not source and not chaos" -n 2 --dist=worksteal --durations=10 "$@"
