# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import hashlib

import pytest

from mmvanilla.utils.files import replace_atomically, sha256


def test_replaces_when_it_is_whole(tmp_path):
    target = tmp_path / 'out.pth'
    target.write_text('old')
    with replace_atomically(target) as temporary:
        assert temporary.parent == tmp_path and temporary.suffix == '.pth'
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


def test_sha256(tmp_path):
    path = tmp_path / 'file'
    path.write_bytes(bytes(range(256)) * 8192)  # more than one block
    assert sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()
