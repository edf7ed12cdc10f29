# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""docker/run_steps.py on Dockerfiles of a few lines, and .dockerignore."""
import importlib.util
import os
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
spec = importlib.util.spec_from_file_location(
    'run_steps', ROOT / 'docker' / 'run_steps.py')
run_steps = importlib.util.module_from_spec(spec)
spec.loader.exec_module(run_steps)


@pytest.fixture
def run(tmp_path):
    """Run the lines of a Dockerfile on a small context."""

    def run(*lines):
        context, image = tmp_path / 'context', tmp_path / 'image'
        (context / 'sub').mkdir(parents=True)
        image.mkdir()
        (context / '.dockerignore').write_text('# a comment\nsub\n**/*.pth\n')
        for name in ('a.txt', 'b.pth', 'sub/c.txt'):
            (context / name).write_text(name)
        dockerfile = context / 'Dockerfile'
        dockerfile.write_text('\n'.join(lines))
        return run_steps.run_steps(dockerfile, context, image,
                                   dict(os.environ))

    return run


def test_runs_steps(run, tmp_path, capsys):
    folder = run(
        'FROM somewhere', 'ENV COLOUR=red PIP_NO_CACHE_DIR=1',
        'RUN apt-get update && touch apt', 'WORKDIR /app/inner', '# comment',
        'COPY . .', 'RUN echo "$COLOUR${PIP_NO_CACHE_DIR-}" \\',
        '    > colour && \\', '# a comment in between',
        '    pwd > where', 'CMD ["bash"]')
    assert folder == tmp_path / 'image' / 'app' / 'inner'
    assert sorted(path.name for path in folder.iterdir()) == [
        '.dockerignore', 'Dockerfile', 'a.txt', 'colour', 'where']
    assert (folder / 'colour').read_text() == 'red\n'
    assert Path((folder / 'where').read_text().strip()) == folder
    skipped = [line for line in capsys.readouterr().out.splitlines()
               if line.startswith('SKIPPED')]
    assert [line.split()[1] for line in skipped] == [
        'FROM', 'PIP_NO_CACHE_DIR=1:', 'RUN', 'CMD']


def test_environment_is_fresh(tmp_path, monkeypatch):
    monkeypatch.setenv('PYTHONPATH', str(ROOT))
    env = run_steps.fresh_environment(tmp_path / 'venv')
    code = ('import importlib.util, sys; print(sys.prefix);'
            'print(importlib.util.find_spec("torch"),'
            '      importlib.util.find_spec("mmvanilla"))')
    done = subprocess.run(['sh', '-c', f"python -c '{code}'; command -v pip"],
                          env=env, cwd=tmp_path, capture_output=True,
                          text=True, check=True)
    venv = tmp_path / 'venv'
    assert done.stdout.split('\n')[:3] == [
        str(venv), 'None None', str(venv / 'bin' / 'pip')]


@pytest.mark.parametrize('line, message', [
    ('RUN false', 'FAILED   false'),
    ('VOLUME /data', 'the instruction VOLUME'),
    ('COPY a.txt b.txt folder', 'COPY a.txt b.txt folder'),
])
def test_stops_at_a_failure(run, tmp_path, line, message):
    with pytest.raises(SystemExit, match=message):
        run(line, 'RUN touch went-on')
    assert not (tmp_path / 'image' / 'went-on').exists()


def test_only_an_index_out_of_reach_is_replaced(capsys):
    class NotFound(BaseHTTPRequestHandler):

        def do_GET(self):
            self.send_error(404)

        def log_message(self, *args):
            pass

    server = HTTPServer(('127.0.0.1', 0), NotFound)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f'http://127.0.0.1:{server.server_port}/simple'
    command = f'pip install --index-url {url} torch'
    assert run_steps.without_dead_index(command) == command
    assert not capsys.readouterr().out
    server.shutdown()
    server.server_close()  # the port answers no more
    assert '--index-url' not in run_steps.without_dead_index(command)
    assert f'CHANGED  {url} is out of reach' in capsys.readouterr().out


def test_dockerignore_leaves_out_what_an_image_does_not_need():
    patterns = [
        line for line in (ROOT / '.dockerignore').read_text().splitlines()
        if not line.startswith('#')]
    for path in ('.git', '.git/config', '.venv/bin/python', '.venv-x/a',
                 'work_dirs/a/b.json', 'data/imagenet/train', 'net.pth',
                 'a/b/net.pth', 'mmvanilla/layers/__pycache__/a.pyc',
                 'mmvanilla/.mim/configs', 'docs/_build/en/index.html',
                 'mmvanilla.egg-info/PKG-INFO'):
        assert run_steps.is_ignored(path, patterns), path
    needed = [
        path.relative_to(ROOT).as_posix()
        for pattern in ('setup.py', 'pyproject.toml', 'README.md', 'LICENSE',
                        'model-index.yml', 'mmvanilla/[!.]*/**/*.py',
                        'configs/**/*.py', 'tools/*.py', 'requirements/*.*',
                        'tests/data/*.*')
        for path in ROOT.glob(pattern)
    ]
    assert {'setup.py', 'tests/data/act4_deep.pt'} < set(needed)
    assert not [p for p in needed if run_steps.is_ignored(p, patterns)]
