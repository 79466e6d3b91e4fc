#!/usr/bin/env bash
# Creates the environment from uv.lock; called by the Makefile, safe to run again. PYTHON, VENV and UV_VERSION come from there.
set -euo pipefail

fail() { echo "setup: $*" >&2; exit 2; }

command -v "$PYTHON" >/dev/null || fail "$PYTHON not found; install Python 3.11 to 3.13 or say make PYTHON=/path/to/python3"
"$PYTHON" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' \
  || fail "$("$PYTHON" --version) found; Python 3.11 to 3.13 is needed (make PYTHON=/path/to/python3)"

# uv installs the locked set in a tenth of pip's time. It lives in a small environment of its own.
if [ ! -x .uv/bin/uv ] || [ "$(.uv/bin/uv --version | cut -d' ' -f2)" != "$UV_VERSION" ]; then
  echo "setup: installing uv $UV_VERSION"
  "$PYTHON" -m venv .uv || fail "$PYTHON has no venv module; install it (Debian: apt-get install python3-venv)"
  .uv/bin/python -m pip install --quiet --disable-pip-version-check "uv==$UV_VERSION"
fi
uv=.uv/bin/uv

# Where pip is told of a folder with local wheels (find-links) and a CPU build of the locked torch lies there, take that:
# the index has only CUDA builds for Linux x86-64 (4.5 GB). uv does not read pip's configuration.
torch=$(sed -n '/^name = "torch"$/{n;s/version = "\(.*\)"/\1/p;q}' uv.lock)
tag=$("$PYTHON" -c 'import sys; print("cp%d%d" % sys.version_info[:2])')
links=$("$PYTHON" -m pip config get global.find-links 2>/dev/null || true)
links="${PIP_FIND_LINKS:-$links}"
cpu_wheel=""
for folder in $links; do
  for wheel in "$folder"/torch-"$torch"+cpu-"$tag"-*.whl; do
    if [ -e "$wheel" ]; then cpu_wheel=$wheel; fi
  done
done

sync=("$uv" sync --quiet --locked --python "$PYTHON" --extra pipeline --no-install-project)
if [ -n "$cpu_wheel" ]; then
  echo "setup: installing the locked packages with torch $torch from $(dirname "$cpu_wheel") (CPU build)"
  skip=(--no-install-package torch)
  while read -r name; do skip+=(--no-install-package "$name"); done \
    < <(sed -n 's/^name = "\(triton\|nvidia-.*\|cuda-.*\)"$/\1/p' uv.lock | sort -u)
  "${sync[@]}" --inexact "${skip[@]}"
  "$uv" pip install --quiet --python "$VENV/bin/python" --no-deps "$cpu_wheel"
else
  echo "setup: installing the locked packages (torch $torch with its GPU libraries: about 4.5 GB the first time)"
  "${sync[@]}"
fi

# The command `ttepretrain` and `python -m ttepretrain`, from every folder and always with the code of this clone. Python
# searches a folder that holds a link to ttepretrain/ alone: `data` and `ehr` would shadow modules of other projects.
venv=$(cd "$VENV" && pwd)
mkdir -p "$venv/clone"
ln -sfn "$PWD/ttepretrain" "$venv/clone/ttepretrain"
site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
echo "$venv/clone" > "$site/ttepretrain_clone.pth"
cat > "$venv/bin/ttepretrain" <<SCRIPT
#!/bin/sh
# Not the interpreter itself: a path with spaces, or a long one, would not work there.
exec "$venv/bin/python" -m ttepretrain "\$@"
SCRIPT
chmod +x "$venv/bin/ttepretrain"
"$VENV/bin/python" -c 'import torch; print("setup: ready, torch", torch.__version__)'
