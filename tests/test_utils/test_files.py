# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import errno
import fcntl
import hashlib
import multiprocessing
import os
import resource
import signal
import threading
import time

import pytest
import torch

from mmvanilla.utils import files
from mmvanilla.utils.errors import UserError
from mmvanilla.utils.files import (
    MARK,
    check_output,
    is_ours,
    replace_atomically,
    replace_together,
    sha256,
    signed,
)


def test_replaces_when_it_is_whole(tmp_path):
    target = tmp_path / 'out.pth'
    target.write_text('old')
    with replace_atomically(target) as temporary:
        assert temporary.suffix == '.pth'
        temporary.write_text('new')
        assert target.read_text() == 'old'
    assert target.read_text() == 'new'
    assert list(tmp_path.iterdir()) == [target]


def test_failure_leaves_things_as_they_were(tmp_path):
    target = tmp_path / 'out.pth'
    target.write_text('old')
    with pytest.raises(ZeroDivisionError):
        with replace_atomically(target) as temporary:
            temporary.write_text('half')
            raise ZeroDivisionError
    assert target.read_text() == 'old'
    assert list(tmp_path.iterdir()) == [target]


def test_files_together_are_never_mixed(tmp_path, monkeypatch):
    """Stopped after each of its steps, no new file is beside an old one."""
    pair = [tmp_path / 'net.xml', tmp_path / 'net.bin']
    seen = []

    def states(name, function):

        def watched(*args, **kwargs):
            function(*args, **kwargs)
            seen.append([p.read_text() if p.exists() else '' for p in pair])

        monkeypatch.setattr(*name, watched)

    for path in pair:
        path.write_text('old')
    states((files.Path, 'unlink'), files.Path.unlink)
    states((files.os, 'replace'), os.replace)
    with replace_together(pair) as temporary:
        assert temporary[0].stem == temporary[1].stem
        for path in temporary:
            path.write_text('new')
        assert not seen
    assert seen[-1] == ['new', 'new'] and len(seen) == 3
    assert not any({'old', 'new'} <= set(state) for state in seen)


def write_and_wait(target, writing):
    with replace_atomically(target) as temporary:
        temporary.write_text('half')
        writing.set()
        time.sleep(60)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGKILL])
def test_killed(tmp_path, number):
    target = tmp_path / 'out.txt'
    target.write_text('old')
    fork = multiprocessing.get_context('fork')
    writing = fork.Event()
    process = fork.Process(target=write_and_wait, args=(target, writing))
    process.start()
    assert writing.wait(60)
    # Another run leaves the files of one that lives alone.
    with replace_atomically(tmp_path / 'other.txt') as temporary:
        temporary.write_text('other')
    assert len(list(tmp_path.glob('.mmvanilla-*/out.txt'))) == 1
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode != 0
    left = list(tmp_path.glob('.mmvanilla-*'))
    assert len(left) == (number == signal.SIGKILL)
    assert target.read_text() == 'old'
    with replace_atomically(target) as temporary:
        temporary.write_text('new')
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        'other.txt', 'out.txt']
    assert target.read_text() == 'new'


def test_handler_of_the_program_stays(tmp_path):
    default = signal.getsignal(signal.SIGTERM)
    with replace_atomically(tmp_path / 'a') as temporary:
        temporary.touch()
        assert signal.getsignal(signal.SIGTERM) != default
    assert signal.getsignal(signal.SIGTERM) == default

    def own(*_):
        pass

    signal.signal(signal.SIGTERM, own)
    try:
        with replace_atomically(tmp_path / 'a') as temporary:
            temporary.touch()
            assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, default)


def test_in_a_thread(tmp_path):

    def write():
        with replace_atomically(tmp_path / 'a') as temporary:
            temporary.write_text('a')

    thread = threading.Thread(target=write)
    thread.start()
    thread.join()
    assert (tmp_path / 'a').read_text() == 'a'


def test_is_ours(tmp_path):
    config = tmp_path / 'net.py'
    config.write_text(signed('a = 1\n'))
    assert is_ours(config)
    config.write_text(config.read_text() + 'b = 2\n')
    assert not is_ours(config)  # edited by the user
    weights = tmp_path / 'net.bin'
    weights.write_bytes(b'\0')
    assert not is_ours(weights)
    (tmp_path / 'net.xml').write_text(
        f'<net version="{MARK}" weights="{sha256(weights)}"/>')
    assert is_ours(weights)
    weights.write_bytes(b'\1')  # of another network
    assert not is_ours(weights)
    for content in ('', 'mmvanilla'):
        (tmp_path / 'text').write_text(content)
        assert not is_ours(tmp_path / 'text')


def test_check_output(tmp_path):
    out = tmp_path / 'out.pth'
    check_output(out, inputs=[tmp_path / 'gone'])
    out.write_text(MARK)
    check_output(out)
    os.symlink(out, tmp_path / 'link.pth')
    for inputs in ([out], [tmp_path / 'link.pth']):
        with pytest.raises(UserError, match='which this command reads'):
            check_output(out, inputs, force=True)
    out.write_text('of somebody')
    with pytest.raises(UserError, match='mmvanilla did not write it'):
        check_output(out)
    check_output(out, force=True)
    assert out.read_text() == 'of somebody'

    for path, message in (
        (tmp_path, 'it is a folder'),
        (tmp_path / 'no' / 'out.pth', 'no does not exist'),
        ('/proc/out.pth', 'cannot write to /proc/out.pth'),
        ('/dev/null', 'not a regular file'),
        (tmp_path / ('x' * 300), 'File name too long'),
        (tmp_path / ('x' * 300) / 'out', 'File name too long'),
    ):
        with pytest.raises(UserError, match=message):
            check_output(path, force=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        'link.pth', 'out.pth']


def test_sha256(tmp_path):
    path = tmp_path / 'file'
    path.write_bytes(bytes(range(256)) * 8192)  # more than one block
    assert sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def small_disk():
    """No file gets larger than 100 kB, as if the disk were full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize('write', [
    lambda path: path.write_bytes(bytes(1_000_000)),
    lambda path: torch.save(torch.zeros(1_000_000), path)])
def test_disk_is_full(tmp_path, small_disk, write):
    target = tmp_path / 'out.pth'
    target.write_text('old')
    with pytest.raises(UserError, match=r'^cannot write .*out\.pth: '):
        with replace_atomically(target) as temporary:
            write(temporary)
    assert target.read_text() == 'old'
    assert list(tmp_path.iterdir()) == [target]


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def no_locks(*args):
        raise OSError(errno.ENOLCK, 'No locks available')

    monkeypatch.setattr(fcntl, 'flock', no_locks)
    with replace_atomically(tmp_path / 'a.txt') as temporary:
        temporary.write_text('new')
    assert [path.name for path in tmp_path.iterdir()] == ['a.txt']
