# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import shutil

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, DefaultScope
from mmengine.runner import Runner
from photos import BROKEN, CLASSES, write_photos
from PIL import Image
from tiny import DIGITS, NARROW, ROOT

from mmvanilla.engine.own_data import use_image_folder
from mmvanilla.utils.errors import UserError

IN1K = ROOT / 'configs/vanillanet/vanillanet-6_8xb128_in1k.py'


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp('images') / 'photos'
    write_photos(root, per_class=10)
    return root


def narrow() -> Config:
    """A recipe with mixup, cutmix and top-5, of a narrow network."""
    cfg = Config.fromfile(IN1K)
    cfg.model.backbone.arch = NARROW
    cfg.model.head.in_channels = 8
    for loader in (cfg.train_dataloader, cfg.val_dataloader,
                   cfg.test_dataloader):
        loader.update(batch_size=4, num_workers=0, persistent_workers=False)
    return cfg


def datasets(cfg: Config) -> list[list]:
    """What each of the three data sets holds, with its classes."""
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        built = [DATASETS.build(cfg[f'{name}_dataloader'].dataset)
                 for name in ('train', 'val', 'test')]
    return [[d.metainfo['classes'], *map(d.get_data_info, range(len(d)))]
            for d in built]


def test_the_config_trains_and_is_complete(photos, tmp_path):
    cfg = narrow()
    use_image_folder(cfg, str(photos), check_images=True)
    train, val, test = datasets(cfg)
    assert val == test
    assert train[0] == val[0] == CLASSES
    paths = [{info['img_path'] for info in d[1:]} for d in (train, val)]
    files = {str(p) for p in photos.rglob('*.*')} - {str(photos / BROKEN)}
    assert not paths[0] & paths[1]
    assert paths[0] | paths[1] == files

    # What is written builds the same without --data.
    cfg.dump(tmp_path / 'copy.py')
    copy = Config.fromfile(tmp_path / 'copy.py')
    assert datasets(copy) == [train, val, test]
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        copy.model.setdefault('data_preprocessor', copy.data_preprocessor)
        model = MODELS.build(copy.model)
        batch = next(iter(Runner.build_dataloader(copy.train_dataloader, 0)))
        data = model.data_preprocessor(batch, training=True)
    assert data['data_samples'][0].gt_score.shape == (4, )
    assert torch.isfinite(model(**data, mode='loss')['loss'])
    assert model.head(model.extract_feat(data['inputs'])).shape == (4, 4)


@pytest.mark.parametrize('count, topk', [(5, [1]), (6, [1, 5])])
def test_top_5_from_six_classes_on(tmp_path, count, topk):
    for i in range(count):
        for j in range(3):
            image(tmp_path / f'class_{i}/{j}.png')
    cfg = narrow()
    use_image_folder(cfg, str(tmp_path))
    for node in (cfg.val_evaluator, cfg.test_evaluator, cfg.model.head):
        assert list(node.topk) == topk


def test_a_grey_network_reads_grey_images(photos):
    cfg = Config.fromfile(DIGITS)
    cfg.train_dataloader.batch_size = 4
    use_image_folder(cfg, str(photos), check_images=True)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(cfg.model)
        for loader in (cfg.train_dataloader, cfg.val_dataloader):
            batch = next(iter(Runner.build_dataloader(loader, 0)))
            assert batch['inputs'][0].shape == (1, 32, 32)
            assert model.test_step(batch)[0].pred_score.shape == (4, )


def test_wrappers_are_kept(photos):
    cfg = narrow()
    inner = cfg.train_dataloader.dataset
    cfg.train_dataloader.dataset = dict(
        type='RepeatDataset', times=3, dataset=dict(
            type='ClassBalancedDataset', oversample_thr=0.5, dataset=inner))
    cfg.train_dataloader.batch_size = 64  # more than there are images
    use_image_folder(cfg, str(photos), check_images=True)
    wrapper = cfg.train_dataloader.dataset
    assert wrapper.type == 'RepeatDataset'
    assert wrapper.dataset.type == 'ClassBalancedDataset'
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        dataset = DATASETS.build(wrapper)
    # Each class is in a quarter of the images and wanted in a half of them.
    assert len(dataset) == 3 * 2 * len(dataset.dataset.dataset)
    assert dataset[len(dataset) - 1]['inputs'].shape == (3, 224, 224)

    cfg.train_dataloader = dict(batch_size=4, dataset=dict(
        type='ConcatDataset', datasets=[inner, inner]))
    with pytest.raises(UserError, match='train_dataloader has a ConcatData'):
        use_image_folder(cfg, str(photos))


@pytest.mark.parametrize('layout', ['val', '.'])
def test_evaluation_uses_the_classes_of_the_checkpoint(
        photos, tmp_path, layout):
    """Also where the folder lacks some of them, and train."""
    checkpoint = str(tmp_path / 'trained.pth')
    torch.save(
        dict(state_dict=dict(weight=torch.ones(1)),
             meta=dict(dataset_meta=dict(classes=CLASSES))), checkpoint)
    root = tmp_path / 'new'
    shutil.copytree(photos / 'rings', root / layout / 'rings')
    cfg = narrow()
    use_image_folder(cfg, str(root), checkpoint)
    assert cfg.model.head.num_classes == 4
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        dataset = DATASETS.build(cfg.test_dataloader.dataset)
    assert len(dataset) == (10 if layout == 'val' else 2)
    assert dataset.get_data_info(0)['gt_label'] == CLASSES.index('rings')

    (root / layout / 'spirals').mkdir()
    with pytest.raises(UserError, match='holds spirals, which the network '
                       'was not trained for'):
        use_image_folder(cfg, str(root), checkpoint)
    torch.save(dict(weight=torch.ones(1)), checkpoint)
    with pytest.raises(UserError, match='does not hold the names'):
        use_image_folder(cfg, str(root), checkpoint)


def image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (8, 8)).save(path)


def test_folders_that_are_no_classes(tmp_path):
    for folder in ('cat', 'train', 'dog', '__MACOSX', '.git'):
        for i in range(10):
            image(tmp_path / folder / f'{i}.png')
    cfg = narrow()
    use_image_folder(cfg, str(tmp_path))
    # One folder called as a split among others, without folders, is a class.
    assert datasets(cfg)[0][0] == ['cat', 'dog', 'train']


@pytest.mark.parametrize('files, message', [
    ('a.png b.png', r'must hold two or more folders.*none'),
    ('cat/1.png cat/2.png', r'must hold two or more folders.*cat'),
    ('cat/1.png dog/1.png dog/2.png', 'no image of cat for train: each class '
     r'needs one for train and one for val, .* ends in \.jpg'),
    ('cat/1.png cat/2.png dog/.1.png emu/1.heic', 'no image of dog, emu for'),
    ('train/cat/1.png train/dog/1.png',
     r'must hold both train and val, or neither, but holds train$'),
    ('train/cat/1.png train/dog/1.png valid/cat/1.png',
     r'both train and val, or neither, but holds train, valid$'),
    ('Training/cat/1.png Testing/cat/1.png', 'but holds Testing, Training$'),
    ('TRAIN/1.png VAL/1.png', 'but holds TRAIN, VAL$'),
    ('bus/1.png Test/a/1.png van/1.png', 'but holds Test, bus, van$'),
    ('train/cat/1.png train/dog/1.png val/cat/1.png val/dog/1.png '
     'val/emu/1.png', 'no image of emu for train'),
    ('train/cat/1.png train/dog/1.png val/cat/1.png val/dog/.1.png',
     'no image of dog for val'),
    ('cat/1.png cat/2.png dog/1.png dog/2.png',
     r'2 images for training are fewer than a batch of 4: .*'
     r'--cfg-options train_dataloader\.batch_size=2'),
])
def test_refusals(tmp_path, files, message):
    for name in files.split():
        if name.endswith('.heic'):
            (tmp_path / name).parent.mkdir(parents=True)
            (tmp_path / name).touch()
        else:
            image(tmp_path / name)
    with pytest.raises(UserError, match=message):
        use_image_folder(narrow(), str(tmp_path))


@pytest.mark.parametrize('launcher, variable', [
    ('pytorch', 'WORLD_SIZE'), ('slurm', 'SLURM_NTASKS'),
    ('mpi', 'OMPI_COMM_WORLD_SIZE')])
def test_a_batch_for_each_process(photos, monkeypatch, launcher, variable):
    cfg = narrow()
    cfg.launcher = launcher
    monkeypatch.setenv(variable, '8')
    use_image_folder(cfg, str(photos))  # 33 images for training
    monkeypatch.setenv(variable, '9')
    with pytest.raises(UserError, match='a batch of 4 x 9: .*batch_size=2'):
        use_image_folder(cfg, str(photos))


def test_refusals_of_what_is_no_folder_or_no_classifier(tmp_path):
    with pytest.raises(UserError, match='no folder .*nowhere'):
        use_image_folder(narrow(), 'nowhere')
    with pytest.raises(UserError, match='is for classification'):
        use_image_folder(Config(dict(default_scope='mmdet')), str(tmp_path))
