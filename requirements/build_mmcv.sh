#!/usr/bin/env bash
# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
#
# Installs onedl-mmcv with its compiled ops, which mmdet and mmseg import and
# which the plain package leaves out.
#
#   requirements/build_mmcv.sh [PYTHON]
#
# The first call compiles (10 to 20 minutes on two cores, 1 GB of memory for
# each job; MAX_JOBS sets their number) and keeps the wheel, 30 MB, in
# ${MMVANILLA_CACHE:-~/.cache/mmvanilla}; later calls install it from there,
# in seconds. PYTHON, `python` by default, must have torch and mmengine:
# install the extra `onedl-downstream` first.
set -euo pipefail

python=${1:-python}
constraints=$(dirname "$0")/constraints.txt
version=$(sed -n 's/^onedl-mmcv==//p' "$constraints")

# A wheel fits one Python and one torch, and has CUDA's ops or has not.
key=$("$python" - "$version" <<'PY'
import os
import platform
import sys

try:
    import torch
except ImportError as e:
    sys.exit(f'error: {sys.executable} has no torch ({e}): install the extra '
             'onedl-downstream first, as the README says')
if tuple(map(int, torch.__version__.split('.')[:2])) >= (2, 14):
    sys.exit(f'error: onedl-mmcv {sys.argv[1]} does not compile with torch '
             f'{torch.__version__}: install torch 2.10.0')
# FORCE_CUDA is of mmcv's setup: for where no GPU is in sight.
has_cuda = torch.cuda.is_available() or os.environ.get('FORCE_CUDA') == '1'
print(f'onedl_mmcv-{sys.argv[1]}-torch-{torch.__version__}-cp'
      f'{sys.version_info[0]}{sys.version_info[1]}-{platform.machine()}-'
      f'{"cuda" if has_cuda else "cpu"}')
PY
)
cache=${MMVANILLA_CACHE:-$HOME/.cache/mmvanilla}/mmcv
wheels=$cache/$key

if [ ! -d "$wheels" ]; then
    echo "Compiling the ops of onedl-mmcv $version into $wheels:" \
        "10 to 20 minutes on two cores."
    mkdir -p "$cache"
    # Built aside and renamed, so that the cache never holds half a build.
    build=$(mktemp -d "$cache/.build.XXXXXX")
    trap 'rm -rf "$build"' EXIT
    start=$SECONDS
    "$python" -m pip install --quiet --upgrade \
        'setuptools>=77,<81' wheel ninja psutil
    # pip's own cache may hold the wheel without ops: it must not be asked.
    "$python" -m pip wheel --no-cache-dir \
        --no-build-isolation --no-deps --wheel-dir "$build" \
        "onedl-mmcv==$version"
    # Where another process was faster, its wheel is as good.
    mv -T "$build" "$wheels" 2>/dev/null || [ -d "$wheels" ]
    echo "Compiled in $((SECONDS - start)) s."
fi

echo "Installing $(ls "$wheels"/*.whl)"
"$python" -m pip install --quiet --no-deps --force-reinstall "$wheels"/*.whl
# Elsewhere than here, in case the folder has something called mmcv.
cd / && "$python" -c 'import mmcv, mmcv.ops; print("mmcv", mmcv.__version__,
                                                   "has its compiled ops.")'
