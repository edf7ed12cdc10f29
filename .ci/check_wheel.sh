#!/usr/bin/env bash
# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
#
# Builds an sdist and, from it, a wheel; installs the wheel into an empty
# environment and uses it from another folder; then the same for an editable
# install: .ci/check_wheel.sh PYTHON, where PYTHON is the interpreter of an
# environment that has what mmvanilla plugs into, and the package `build`.
set -euo pipefail

python=$1
root=$(cd "$(dirname "$0")/.." && pwd)
temp=$(mktemp -d)
trap 'rm -rf "$temp"' EXIT
unset PYTHONPATH

# A copy, since a build leaves its traces in the source.
mkdir "$temp/source" "$temp/elsewhere"
cd "$root"
cp -r pyproject.toml setup.py MANIFEST.in README.md LICENSE model-index.yml \
    requirements mmvanilla configs tools "$temp/source"
rm -rf "$temp/source/mmvanilla/.mim"

new_venv() { # an empty environment that sees the packages of the other one
    "$python" -m venv --without-pip "$1"
    "$python" -c 'import sys; print(*sys.path[1:], sep="\n")' |
        grep site-packages \
        > "$(echo "$1"/lib/python*/site-packages)/dependencies.pth"
}

check() { # the interpreter that has mmvanilla
    cd "$temp/elsewhere"
    "$1" - <<'PY'
import re
from importlib.metadata import metadata
from pathlib import Path

import mmengine.hub
import mmpretrain
import mmvanilla
from mmengine.config import Config
from mmengine.registry import VISUALIZERS, DefaultScope
from mmengine.utils import get_installed_path

package = Path(mmvanilla.__file__).parent
mim = package / '.mim'

names = mmpretrain.list_models('vanillanet*')
assert len(names) == 11, names
model = mmpretrain.get_model('vanillanet-5_8xb128_in1k')
assert Path(model._config.filename).is_file(), model._config.filename

# A config of the user's own that inherits from the package.
Path('mine.py').write_text(
    "_base_ = 'mmvanilla::vanillanet/vanillanet-6_8xb128_in1k.py'\n"
    'model = dict(head=dict(num_classes=7))\n')
cfg = Config.fromfile('mine.py')
assert cfg.model.backbone.arch == '6' and cfg.model.head.num_classes == 7
# Its types are found, as a runner looks for them.
with DefaultScope.overwrite_default_scope('mmpretrain'):
    VISUALIZERS.build(dict(cfg.visualizer, vis_backends=None, name='x'))

name = 'mmvanilla::vanillanet/vanillanet-5_8xb128_in1k.py'
assert mmengine.hub.get_config(name).model.backbone.arch == '5'
model = mmengine.hub.get_model(name)
assert type(model.backbone).__name__ == 'VanillaNet'
assert model.data_preprocessor.mean.flatten().tolist()[0] > 100

# What a checkout has, where OpenMMLab looks for it.
assert Path(get_installed_path('mmvanilla')) == package
for tool in ('train', 'test', 'reparam', 'convert', 'export', 'options'):
    assert (mim / 'tools' / f'{tool}.py').is_file(), tool
for config in ('_base_', 'vanillanet', 'detection', 'segmentation'):
    assert (mim / 'configs' / config).is_dir(), config

# A package index shows the README, and has no other page or picture of it.
text = metadata('mmvanilla').get_payload()
assert text.startswith('# mmvanilla') and not re.search(r'\]\((?!http)', text)
PY
    local folder tool
    folder=$("$1" -c 'from importlib.util import find_spec
print(find_spec("mmvanilla").submodule_search_locations[0])')
    for tool in "$folder"/.mim/tools/[!o]*.py; do # all but options.py
        "$1" "$tool" --help > help.txt
        grep -q usage help.txt
    done
    "$(dirname "$1")/mmvanilla-predict" --help > help.txt
    grep -q 'usage: mmvanilla-predict' help.txt
}

cd "$temp/source"
"$python" -m build --no-isolation --outdir "$temp/dist" . \
    > "$temp/log" 2>&1 ||
    { tail -n 30 "$temp/log"; exit 1; }
new_venv "$temp/venv"
"$python" -m pip -q --python "$temp/venv/bin/python" install --no-deps \
    --no-index "$temp"/dist/mmvanilla-*.whl
check "$temp/venv/bin/python"
echo "The wheel works: $(cd "$temp/dist" && echo *)"

new_venv "$temp/editable"
"$python" -m pip -q --python "$temp/editable/bin/python" install --no-deps \
    --no-build-isolation --no-index -e "$temp/source"
test -L "$temp/source/mmvanilla/.mim/configs"
check "$temp/editable/bin/python"
echo 'The editable install works.'
