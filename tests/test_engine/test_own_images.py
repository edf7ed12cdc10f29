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

from mmvanilla.engine.own_images import use_image_folder
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
    text = IN1K.read_text()
    cfg = narrow()
    use_image_folder(cfg, str(photos), check_images=True)
    assert IN1K.read_text() == text

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
    loss = model(**data, mode='loss')['loss']
    assert torch.isfinite(loss)
    assert model.head(model.extract_feat(data['inputs'])).shape == (4, 4)


def test_top_5_from_six_classes_on(tmp_path):
    for count, topk in ((5, [1]), (6, [1, 5])):
        root = tmp_path / str(count)
        for i in range(count):
            (root / f'class_{i}').mkdir(parents=True)
            for j in range(3):
                Image.new('RGB', (8, 8)).save(root / f'class_{i}/{j}.png')
        cfg = narrow()
        use_image_folder(cfg, str(root))
        assert list(cfg.val_evaluator.topk) == topk
        assert list(cfg.test_evaluator.topk) == topk
        assert list(cfg.model.head.topk) == topk


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


def test_evaluation_takes_the_classes_of_the_checkpoint(photos, tmp_path):
    """Also where the folder lacks some of them, and train."""
    checkpoint = str(tmp_path / 'trained.pth')
    torch.save(
        dict(state_dict=dict(weight=torch.ones(1)),
             meta=dict(dataset_meta=dict(classes=CLASSES))), checkpoint)
    root = tmp_path / 'new'
    shutil.copytree(photos / 'rings', root / 'val' / 'rings')
    cfg = narrow()
    use_image_folder(cfg, str(root), checkpoint)
    assert cfg.model.head.num_classes == 4
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        dataset = DATASETS.build(cfg.test_dataloader.dataset)
    assert len(dataset) == 10
    assert dataset.get_data_info(0)['gt_label'] == CLASSES.index('rings')

    (root / 'val' / 'spirals').mkdir()
    with pytest.raises(UserError, match='holds spirals, which the network '
                       'was not trained for'):
        use_image_folder(cfg, str(root), checkpoint)
    torch.save(dict(weight=torch.ones(1)), checkpoint)
    with pytest.raises(UserError, match='does not hold the names'):
        use_image_folder(cfg, str(root), checkpoint)


def image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (8, 8)).save(path)


@pytest.mark.parametrize('files, message', [
    ([], r'must hold two or more folders of images.*none'),
    (['a.png', 'b.png'], r'must hold two or more folders.*none'),
    (['cat/1.png', 'cat/2.png'], r'must hold two or more folders.*cat'),
    (['cat/1.png', 'dog/1.png', 'dog/2.png'],
     r'holds one image of cat, but two or more are needed'),
    (['train/cat/1.png', 'train/dog/1.png'],
     r'must hold both train and val, or neither, but holds train$'),
    (['train/cat/1.png', 'train/dog/1.png', 'valid/cat/1.png'],
     r'must hold both train and val, or neither, but holds train, valid'),
    (['train/cat/1.png', 'train/dog/1.png', 'val/cat/1.png',
      'val/dog/1.png', 'val/emu/1.png'],
     r'val holds emu, which .*train does not'),
    (['train/cat/1.png', 'train/dog/1.png', 'train/emu/1.png',
      'val/cat/1.png', 'val/dog/1.png'],
     r'train holds emu, which .*val does not'),
    (['cat/1.png', 'cat/2.png', 'dog/.hidden.png', 'emu/1.heic.png/x.gif'],
     r'no images in dog, emu of .*names must end in \.jpg'),
    (['train/cat/1.png', 'train/dog/1.png', 'val/cat/1.png',
      'val/dog/.hidden.png'], r'no images in val/dog'),
    (['cat/1.png', 'cat/2.png', 'dog/1.png', 'dog/2.png'],
     r'2 images for training are fewer than a batch of 4: .*'
     r'--cfg-options train_dataloader\.batch_size=2'),
], ids=lambda x: x[:30] if isinstance(x, str) else '')
def test_refusals(tmp_path, files, message):
    root = tmp_path / 'photos'
    root.mkdir()
    for name in files:
        if name.endswith('.gif'):
            (root / name).parent.mkdir(parents=True)
        else:
            image(root / name)
    with pytest.raises(UserError, match=message):
        use_image_folder(narrow(), str(root))


def test_refusals_of_what_is_no_folder_or_no_classifier(tmp_path):
    with pytest.raises(UserError, match='no folder nowhere'):
        use_image_folder(narrow(), 'nowhere')
    cfg = Config(dict(default_scope='mmdet'))
    with pytest.raises(UserError, match='is for classification'):
        use_image_folder(cfg, str(tmp_path))
