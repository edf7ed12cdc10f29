# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import errno

import pytest

from mmvanilla.utils.errors import UserError, exit_on_user_error


@pytest.mark.parametrize('error, line', [
    (UserError('no such thing'), 'error: no such thing\n'),
    (PermissionError(errno.EACCES, 'Permission denied', 'file'),
     'error: file: Permission denied\n'),
    (OSError(errno.ENOSPC, 'No space left on device'),
     'error: No space left on device\n')])
def test_one_line(capsys, error, line):

    @exit_on_user_error
    def main():
        raise error

    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 1
    assert capsys.readouterr().err == line


@pytest.mark.parametrize('error', [ValueError('bug'), OSError('bug')])
def test_what_a_user_cannot_mend_passes(error):

    @exit_on_user_error
    def main():
        raise error

    with pytest.raises(type(error), match='bug'):
        main()
