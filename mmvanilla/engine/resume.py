# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""The checkpoint that a run is resumed from."""
import re
from pathlib import Path

from ..checkpoints import load_checkpoint
from ..utils.errors import UserError


def find_checkpoint(work_dir: str) -> tuple[str, list[str]]:
    """Find the newest checkpoint of a work dir that can be resumed.

    Args:
        work_dir (str): The folder.

    Returns:
        tuple[str, list[str]]: The checkpoint's path, and a sentence for each
        newer one that cannot be resumed.

    Raises:
        UserError: If there is none.
    """
    passed_over = []
    for path in _candidates(Path(work_dir)):
        try:
            check_resumable(str(path))
            return str(path), passed_over
        except UserError as e:
            passed_over.append(str(e))
    why = ''.join(f'; {reason}' for reason in passed_over)
    raise UserError(
        f'nothing to resume in {work_dir}: it holds no checkpoint epoch_N.pth '
        f'or iter_N.pth that reads whole; name the right --work-dir, or train '
        f'without --resume{why}')


def check_resumable(checkpoint: str) -> None:
    """Refuse a checkpoint that holds no state of a training run.

    Raises:
        UserError: If it cannot be read, or holds only weights.
    """
    content = load_checkpoint(checkpoint)
    meta = content.get('meta')
    if (isinstance(meta, dict) and {'epoch', 'iter'} <= meta.keys()
            and {'optimizer', 'message_hub'} <= content.keys()):
        return
    raise UserError(
        f'cannot resume from {checkpoint}: it holds weights and no state of '
        'the optimizer, as merged, best and official checkpoints do; resume '
        'from an epoch_N.pth or iter_N.pth, or start from its weights with '
        f'--cfg-options load_from={checkpoint}')


def _candidates(work_dir: Path) -> list[Path]:
    """Checkpoints of a run, the newest first.

    ``last_checkpoint`` names the newest one by its path, of which only the
    name counts, since the folder may have been copied. The file may be
    missing or incomplete, and a run that was killed may have written one more
    checkpoint.
    """
    numbers = {}
    for path in work_dir.glob('*.pth'):
        found = re.fullmatch(r'(epoch|iter)_(\d+)', path.stem)
        if found and path.is_file():
            numbers[path] = int(found[2])
    paths = sorted(numbers, key=numbers.get, reverse=True)
    try:
        text = (work_dir / 'last_checkpoint').read_text().strip()
    except (OSError, UnicodeDecodeError):
        text = ''
    last = work_dir / Path(text).name
    if not text or not last.is_file():
        return paths
    if last not in numbers:  # of another name
        return [last, *paths]
    # Those of higher numbers may be left from an earlier run.
    age = last.stat().st_mtime_ns
    newer = [p for p in paths
             if numbers[p] > numbers[last] and p.stat().st_mtime_ns >= age]
    return newer + [last] + [p for p in paths if p != last and p not in newer]
