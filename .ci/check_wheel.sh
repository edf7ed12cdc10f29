#!/usr/bin/env bash
# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
#
# Builds a wheel, installs it into an empty environment and uses it from
# another folder: .ci/check_wheel.sh PYTHON, where PYTHON is the interpreter of
# an environment that has what mmvanilla plugs into.
set -euo pipefail

python=$1
root=$(cd "$(dirname "$0")/.." && pwd)
temp=$(mktemp -d)
trap 'rm -rf "$temp"' EXIT
unset PYTHONPATH

# A copy, since a build leaves its traces in the source.
mkdir "$temp/source" "$temp/elsewhere"
cd "$root"
cp -r setup.py setup.cfg README.md LICENSE model-index.yml requirements \
    mmvanilla configs tools "$temp/source"
cd "$temp/elsewhere"
"$python" -m pip wheel -q --no-deps --no-build-isolation -w "$temp" \
    "$temp/source"
rm -r "$temp/source"

"$python" -m venv --without-pip "$temp/venv"
"$python" -m pip -q --python "$temp/venv/bin/python" install --no-deps \
    --no-index "$temp"/mmvanilla-*.whl
# It sees the packages of the other environment, after its own.
packages='import sysconfig; print(sysconfig.get_path("purelib"))'
"$python" -c "$packages" \
    > "$("$temp/venv/bin/python" -c "$packages")/dependencies.pth"

cat > mine.py <<'END'
_base_ = 'mmvanilla::vanillanet/vanillanet-6_8xb128_in1k.py'
model = dict(head=dict(num_classes=7))
END

"$temp/venv/bin/python" - <<'END'
import sys
from pathlib import Path

import mmpretrain
import mmvanilla
from mmengine.config import Config
from mmengine.utils import get_installed_path

package = Path(mmvanilla.__file__).parent
assert Path(sys.prefix) in package.parents, package
mim = package / '.mim'

names = mmpretrain.list_models('vanillanet*')
assert len(names) == 11, names
model = mmpretrain.get_model('vanillanet-6_8xb128_in1k')
assert mim in Path(model._config.filename).parents, model._config.filename

# A config of the user's own that inherits from the package.
cfg = Config.fromfile('mine.py')
assert cfg.model.backbone.arch == '6' and cfg.model.head.num_classes == 7

# Where `mim train` and `mim test` look, and all that there is in a checkout.
assert Path(get_installed_path('mmvanilla')) == package
for tool in ('train', 'test', 'reparam', 'convert'):
    assert (mim / 'tools' / f'{tool}.py').is_file(), tool
for config in ('_base_', 'vanillanet', 'detection', 'segmentation'):
    assert (mim / 'configs' / config).is_dir(), config
END

for tool in "$temp"/venv/lib/python*/site-packages/mmvanilla/.mim/tools/*.py
do
    "$temp/venv/bin/python" "$tool" --help > help.txt
    grep -q usage help.txt
done
echo 'The wheel works.'
