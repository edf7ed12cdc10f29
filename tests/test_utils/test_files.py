# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import multiprocessing
import os
import signal
import time

import pytest
import torch

from mmvanilla.utils.errors import UserError, exit_on_user_error
from mmvanilla.utils.files import check_output, write_beside


def test_files_appear_whole_and_in_order(tmp_path, monkeypatch):
    pair = [tmp_path / 'net.bin', tmp_path / 'net.xml']
    pair[0].write_text('old')
    order = []
    replace = os.replace
    monkeypatch.setattr(
        os, 'replace', lambda a, b: (order.append(b), replace(a, b)))
    with write_beside(*pair) as temporary:
        assert [p.name for p in temporary] == ['net.bin', 'net.xml']
        for path in temporary:
            path.write_text('new')
        assert pair[0].read_text() == 'old' and not pair[1].exists()
    assert order == pair
    assert [path.read_text() for path in pair] == ['new', 'new']
    assert sorted(tmp_path.iterdir()) == pair


def test_a_failure_leaves_things_as_they_were(tmp_path):
    target = tmp_path / 'out.pth'
    target.write_text('old')
    # A folder of the user, whose name begins as those of temporary ones.
    own = tmp_path / '.mmvanilla-mine'
    own.mkdir()
    with pytest.raises(ZeroDivisionError), write_beside(target) as (path, ):
        path.write_text('half')
        raise ZeroDivisionError
    assert target.read_text() == 'old'
    assert sorted(tmp_path.iterdir()) == [own, target]


def write_and_wait(target, writing):
    with write_beside(target) as (path, ):
        path.write_text('half')
        writing.set()
        time.sleep(60)


def test_killed_while_it_writes(tmp_path):
    target = tmp_path / 'out.txt'
    target.write_text('old')
    fork = multiprocessing.get_context('fork')
    writing = fork.Event()
    process = fork.Process(target=write_and_wait, args=(target, writing))
    process.start()
    assert writing.wait(60)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert target.read_text() == 'old'
    with write_beside(target) as (path, ):
        path.write_text('new')
    assert target.read_text() == 'new'


@pytest.mark.parametrize('write', [
    lambda path: path.write_bytes(bytes(1_000_000)),
    lambda path: torch.save(torch.zeros(1_000_000), path)])
def test_the_disk_is_full(tmp_path, write, capsys):
    """No file can get larger than 100 kB, as if the disk were full."""
    resource = pytest.importorskip('resource')
    target = tmp_path / 'out.pth'
    target.write_text('old')

    @exit_on_user_error
    def main():
        with write_beside(target) as (path, ):
            write(path)

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(SystemExit):
            main()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert target.read_text() == 'old'
    assert list(tmp_path.iterdir()) == [target]


def test_outputs_that_are_refused(tmp_path):
    out = tmp_path / 'out.pth'
    check_output(out, inputs=[tmp_path / 'gone'])
    out.write_text('of somebody')
    os.symlink(out, tmp_path / 'link.pth')
    for inputs in ([out], [tmp_path / 'link.pth']):
        with pytest.raises(UserError, match='this command reads it'):
            check_output(out, inputs, force=True)
    with pytest.raises(UserError, match='it exists'):
        check_output(out)
    check_output(out, force=True)
    assert out.read_text() == 'of somebody'
    for path, message in (
        (tmp_path, 'not a regular file'),
        (tmp_path / 'no' / 'out.pth', 'no does not exist'),
        ('/proc/out.pth', 'cannot write to /proc/out.pth'),
        ('/dev/null', 'not a regular file'),
        (tmp_path / ('x' * 300), 'File name too long'),
    ):
        with pytest.raises(UserError, match=message):
            check_output(path, force=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        'link.pth', 'out.pth']
