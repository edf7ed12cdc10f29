# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""The tools as processes of their own, on a GPU."""
import re
from concurrent.futures import ThreadPoolExecutor

import torch
from mmengine.config import Config
from tiny import assert_same_weights, free_port, read, run_tool, tiny_cfg


def call(*args, cwd, **env) -> str:
    done = run_tool(*args, cwd=cwd, **env)
    printed = done.stdout + done.stderr
    assert done.returncode == 0, '\n'.join(
        re.findall('.*(?:[Ee]rror).*', printed)[:5]) + printed[-3000:]
    return printed


def accuracy(printed: str) -> float:
    return float(re.findall(r'accuracy/top1: ([\d.]+)', printed)[-1])


def make_cfg(folder) -> Config:
    cfg = tiny_cfg(folder / 'work')
    cfg.sync_bn = 'torch'
    cfg.default_hooks.checkpoint.update(interval=4)
    cfg.custom_hooks.append(
        dict(type='EMAHook', momentum=0.1, update_buffers=True))
    return cfg


def test_train_merge_and_test(tmp_path, device, record_property):
    """Train in a group of one GPU; all ways to merge have one accuracy."""
    make_cfg(tmp_path).dump(tmp_path / 'config.py')
    printed = call('dist_train.sh', 'config.py', 1, '--amp', cwd=tmp_path)
    if device == 'cuda':
        assert 'training goes on in float32' not in printed
        assert re.search(r'device +cuda:0', printed), printed[-3000:]
    trained = ('config.py', 'work/epoch_4.pth')
    commands = [
        ('test.py', *trained),
        ('test.py', *trained, '--amp'),
        ('test.py', *trained, '--deploy'),
        ('test.py', *trained, '--deploy', '--compile'),
        ('reparam.py', *trained, 'merged.pth'),
    ][::1 if device == 'cuda' else 2]
    for i, command in enumerate(commands[:-1]):
        commands[i] = (*command, '--work-dir', f'tested_{i}')
    with ThreadPoolExecutor(len(commands) if device == 'cuda' else 1) as pool:
        *tests, _ = pool.map(lambda x: call(*x, cwd=tmp_path), commands)
    tests.append(call('test.py', 'merged.py', 'merged.pth', cwd=tmp_path))
    found = [accuracy(text) for text in tests]
    record_property('accuracies', found)
    # One of the 32 images may be on the edge of two classes.
    assert max(found) - min(found) <= 100 / 32 + 1e-6


def test_two_ranks_on_one_gpu(tmp_path, device):
    """With gloo, since NCCL wants a GPU for each; norms are synchronized."""
    cfg = make_cfg(tmp_path)
    cfg.env_cfg.dist_cfg.backend = 'gloo'
    cfg.custom_imports.imports.append('ranks')
    cfg.custom_hooks.append(dict(type='SaveEachRank', folder=str(tmp_path)))
    cfg.train_dataloader.batch_size = 8
    cfg.dump(tmp_path / 'config.py')
    # A launcher would give the second process a GPU of its own.
    env = dict(WORLD_SIZE='2', LOCAL_RANK='0', MASTER_ADDR='127.0.0.1',
               MASTER_PORT=free_port(), GLOO_SOCKET_IFNAME='lo')
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda rank: call(
            'train.py', 'config.py', '--launcher', 'pytorch', cwd=tmp_path,
            RANK=rank, **env), '01'))
    ranks = [torch.load(tmp_path / f'rank{i}.pth', 'cpu', weights_only=True)
             for i in range(2)]
    expected = [[e / 3] * 4 for e in (0, 1, 2, 3) for _ in range(4)]
    assert [rank['lams'] for rank in ranks] == [expected] * 2
    # On a CPU each process has its own statistics.
    assert_same_weights(*({
        k: v for k, v in rank['state_dict'].items()
        if device == 'cuda' or 'running' not in k} for rank in ranks))
    call('reparam.py', 'config.py', 'work/epoch_4.pth', 'merged.pth',
         cwd=tmp_path)
    assert not any(k.endswith('.lam') for k in read(
        tmp_path / 'merged.pth')['state_dict'])
