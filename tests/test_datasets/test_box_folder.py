# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import json
import re
import shutil

import cv2
import numpy as np
import pytest
from boxes import CLASSES, LAYOUTS, box, coco, digests, generate, write
from PIL import Image

from mmvanilla.datasets.box_folder import BoxFolder
from mmvanilla.datasets.image_files import read_size
from mmvanilla.utils.errors import UserError

VAL = 'annotations/instances_val2017.json'


def found(folder: BoxFolder) -> dict:
    """Sizes and boxes by split and name, with the numbers of COCO."""
    result = {}
    for split in folder.splits:
        data = folder.to_coco(split)
        names = {x['id']: x['name'] for x in data['categories']}
        for image in data['images']:
            boxes = [x for x in data['annotations']
                     if x['image_id'] == image['id']]
            result[split, image['file_name'].split('/')[-1]] = (
                [image['width'], image['height']],
                [names[x['category_id']] for x in boxes],
                np.array([x['bbox'] for x in boxes]).reshape(-1, 4))
    return result


@pytest.mark.parametrize('layout', LAYOUTS)
def test_each_layout_gives_the_same_boxes(tmp_path, layout):
    root = write(tmp_path, layout)
    before = digests(root)
    folder = BoxFolder(root)
    result, images = found(folder), generate()
    assert folder.classes == CLASSES and digests(root) == before
    assert [*result] == [(split, x) for split in images for x in images[split]]
    for (split, name), (size, names, boxes) in result.items():
        wanted, shapes = images[split][name]
        assert size == wanted.tolist()
        assert names == [CLASSES[label] for label, _ in shapes]
        assert np.abs(boxes - np.array([box(x) for _, x in shapes]).reshape(
            -1, 4)).max(initial=0) < 1e-3
    lines = ' '.join(folder.notes)
    assert '4 images have no box, and are background: ' in lines
    assert ('1 names of groups of classes are no classes: shapes' in lines
            ) == (layout == 'roboflow')


@pytest.mark.parametrize('layout', ['coco', 'yolo'])
def test_a_fifth_is_held_out(tmp_path, layout):
    """The same in each layout, and whatever images are in the others."""
    images = dict(train=generate(20, 0)['train'])
    root = write(tmp_path, layout, images)
    if layout == 'yolo':
        (root / 'data.yaml').write_text(
            f'train: images\nnames: [{", ".join(CLASSES)}]')
    splits = BoxFolder(root).splits
    names = {x: [y.split('/')[-1] for y in splits[x]] for x in splits}
    assert sorted(names['train'] + names['val']) == [*images['train']]
    assert names['val'] == ['001.png', '006.png', '008.png', '010.png']


def test_images_with_boxes_are_held_out(tmp_path):
    images = {x: (size, shapes if x in ('003.png', '007.png') else [])
              for x, (size, shapes) in generate(20, 0)['train'].items()}
    root = write(tmp_path, 'coco', dict(train=images))
    BoxFolder(root).require('train', 'val')


@pytest.mark.parametrize('layout, files, old, new', [
    ('coco', 'annotations/*', '^', '\ufeff'),
    ('coco', 'annotations/*', r'"width": (\d+)', r'"width": "\1"'),
    ('coco', 'annotations/*', '"iscrowd": 0', '"iscrowd": "0"'),
    ('yolo', 'labels/*/*', '^', '\ufeff'),
    ('lists', '*.txt', '^', '\ufeff'),
    ('yolo', 'data.yaml', r'(\d):', r'"\1":'),
    ('yolo', 'data.yaml', 'val:', 'valid:'),
])
def test_what_other_tools_write(tmp_path, layout, files, old, new):
    before = BoxFolder(write(tmp_path, layout))
    for path in tmp_path.glob(files):
        text = re.sub(old, new, path.read_text())
        assert text != path.read_text()
        path.write_text(text)
    after = BoxFolder(tmp_path)
    assert (after.splits, after.notes) == (before.splits, before.notes)


def lines(root, **options) -> dict:
    """The notes as {what: how many, which}."""
    notes = BoxFolder(root, **options).notes
    parts = [x.removeprefix('--data: ').split(' ', 1) for x in notes]
    return {text.split(':')[0]: (int(n), text) for n, text in parts}


def test_faults_of_coco(tmp_path):
    root = write(tmp_path, 'coco')
    path = root / 'annotations/instances_train2017.json'
    data = json.loads(path.read_text())
    boxes, images = data['annotations'], data['images']
    boxes[0].update(bbox=[-4, 2, 20, 20])
    boxes[1].update(bbox=[500, 2, 20, 20])
    boxes[2].update(bbox=[5, 5, 0, 9])
    boxes[3]['ignore'] = 1
    boxes[4]['segmentation'] = [[1, 2, 3, 4]]
    images[6]['width'] += 1
    images[7].pop('width')
    (root / 'train2017/009.png').unlink()
    (root / 'train2017/008.png').write_bytes(b'no image')
    images.append(dict(images[1], id=50))
    data['categories'] += [
        dict(id=1, name='hexagon', supercategory='hexagon'),
        dict(id=2, name='square')]
    path.write_text(json.dumps(data))
    before = digests(root)
    folder = BoxFolder(root)
    assert digests(root) == before
    result = lines(root)
    for text, number, which in (
            ('images without a file are left out', 1, '009.png'),
            ('images have no box, and are background', 4, '004.png'),
            ('boxes are clipped to their image', 1, '001.png (id 0)'),
            ('boxes are outside of their image or empty', 2, 'id 1'),
            ('classes have no box in train', 1, 'hexagon'),
            ('names of classes occur twice', 1, 'square'),
            ('boxes to ignore are left out', 1, 'id 3'),
            ('images are left out, as their size', 1, '006.png'),
            ('polygons of under 3 points', 1, 'id 4'),
            ('unreadable images are left out', 1, '008.png')):
        (count, line), = (result[x] for x in result if x.startswith(text))
        assert count == number and which in line, line
    assert len(folder.splits['train']) == 10 - 2 - 1
    clipped = folder.splits['train']['train2017/001.png'][1][0]['bbox']
    assert clipped == [0, 2, 16, 20]
    assert folder.classes == ['hexagon', 'square', 'circle', 'triangle']


def test_faults_of_yolo(tmp_path):
    root = write(tmp_path, 'lists')
    text = '1 0.5 0.5 0.2 0.2\n2 .9 .9 .4 .4\n0 2 2 .1 .1\n1 .5 .5 0 .1\n0 1 1'
    (root / 'labels/train/001.txt').write_text(text)
    (root / 'labels/train/002.txt').unlink()
    (root / 'images/train/003.png').unlink()
    (root / 'labels/train/classes.txt').write_text('circle')
    shutil.copy(root / 'images/train/004.png', root / 'images/val/014.png')
    shutil.copy(root / 'images/val/010.png', root / 'images/val/010.jpg')
    (root / 'data2.yaml').write_text('names: [a]\ntest: nowhere')
    (root / 'val.txt').write_text('images/val/010.jpg\nimages/train/000.png\n'
                                  + (root / 'val.txt').read_text())
    result = lines(root)
    assert {key.split(',')[0]: n for key, (n, _) in result.items()} == {
        'splits called test are not used': 1,
        'images of val are left out of train': 1,
        'images without a file are left out': 1,
        'label files without an image are not used': 1,
        'boxes are clipped to their image': 1,
        'boxes are outside of their image or empty (less than a pixel)': 3,
        'polygons of under 3 points are left out': 1,
        'images have no box': 6}
    assert 'labels/train/001.txt, line 2' in str(result)


@pytest.mark.parametrize('layout, file, old, new, message', [
    ('coco', VAL, '"images"', '"images', r'val2017.json: .*line 1 column'),
    ('coco', VAL, '"bbox"', '"box"', "cannot be read: no 'bbox'"),
    ('coco', VAL, '"category_id": 7', '"category_id": 70',
     r'png \(id \d\) has the class 70, .* 3: 7, 8, 9'),
    ('coco', VAL, '"image_id": ', '"image_id": 9', 'images has no such image'),
    ('coco', VAL, '"annotations": [', '"annotations": null, "x": [',
     'json has no list of annotations'),
    ('coco', VAL, '"id": 6', '"id": 5', 'its id is that of another image'),
    ('coco', VAL, '"iscrowd": 0', '"iscrowd": "x"', "int.*'x'"),
    ('coco', VAL, 'circle', 'Circle',
     r'has boxes of Circle, but the classes of train are circle, square'),
    ('yolo', 'data.yaml', 'names: {', 'names: [', r'data.yaml.* line 4'),
    ('yolo', 'data.yaml', 'names', 'label', r'data.yaml must have names'),
    ('yolo', 'data.yaml', 'images/val', 'images/test', 'val: images/test, wh'),
    ('yolo', 'labels/val/011.txt', '\n', ' x\n', r'011.txt, line 1: wanted'),
    ('yolo', 'labels/val/011.txt', '\n', ' 0.1\n', r'011.txt, line 1: want'),
    ('yolo', 'labels/val/011.txt', '0.', 'nan ', r'011.txt, line 1'),
    ('yolo', 'labels/val/010.txt', '', '9',
     r'010.txt, line 1 has the class 9\d, but .*yaml has 3: 0, 1, 2'),
])
def test_what_is_damaged_is_named(tmp_path, layout, file, old, new, message):
    path = write(tmp_path, layout) / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(UserError, match=message) as error:
        BoxFolder(tmp_path)
    assert '\n' not in str(error.value)


def test_refusals(tmp_path):
    with pytest.raises(UserError, match=r'not a folder of boxes.*data.yaml'):
        BoxFolder(tmp_path)
    root = write(tmp_path / 'a', 'coco')
    content = json.dumps(coco(generate()['train']))
    (root / 'annotations/instances_train2018.json').write_text(content)
    with pytest.raises(UserError, match='two annotations of train.*2018'):
        BoxFolder(root)
    root = write(tmp_path / 'b', 'yolo')
    with pytest.raises(UserError, match='no box with a polygon for train'):
        BoxFolder(root, masks=True).require('train')
    for split in ('val', 'train'):
        shutil.rmtree(root / f'labels/{split}')
        with pytest.raises(UserError, match=f'no box for {split}; .*no box'):
            BoxFolder(root).require('train', 'val')
    root = write(tmp_path / 'c', 'yolo')
    (root / 'data.yaml').write_text(
        'train: images/val\nval: images/val\nnames: [a, b, c]')
    with pytest.raises(UserError, match='for train; .*5 images of val are'):
        BoxFolder(root).require('train', 'val')


def test_masks(tmp_path):
    """A box without a polygon is ignored where masks are learned."""
    root = write(tmp_path, 'polygons')
    label = root / 'labels/train/001.txt'
    label.write_text(f'{label.read_text()}\n0 0.5 0.5 0.5 0.5\n')
    flags = {x: [box['iscrowd'] for box in BoxFolder(root, masks=x).splits[
        'train']['images/train/001.png'][1]] for x in (True, False)}
    assert flags == {True: [0, 1], False: [0, 0]}


@pytest.mark.parametrize('suffix', ['jpg', 'png', 'webp', 'tif'])
def test_sizes_are_those_of_opencv(tmp_path, suffix):
    exif = Image.Exif()
    exif[274] = 6  # turned by 90 degrees
    path = tmp_path / f'a.{suffix}'
    Image.new('RGB', (40, 20)).save(path, exif=exif)
    image = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
    assert read_size(path) == image.shape[1::-1]
