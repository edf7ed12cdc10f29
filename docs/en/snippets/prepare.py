"""Prepare a picture for an exported file, as the file's metadata say."""
import numpy as np
from PIL import Image, ImageOps


def prepare(path, meta):
    """The file's input, the picture, and how much it was scaled, (x, y)."""
    if not meta['preprocess']:
        raise SystemExit('the file does not tell how pictures are prepared')
    read, *steps = meta['preprocess']
    image, scale = Image.open(path), (1, 1)
    if 'ignore_orientation' not in read['color_type']:
        image = ImageOps.exif_transpose(image)  # upright, as a phone shows it
    if image.mode[0] == 'I':  # 16 bits, of which OpenCV uses the upper 8
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    image = image.convert('L' if read['color_type'] == 'grayscale' else 'RGB')
    pixels = np.atleast_3d(image)
    for step in steps:
        height, width = pixels.shape[:2]
        if step['type'] == 'CenterCrop':
            w, h = step['crop_size']
            top = max(0, round((height - h) / 2))
            left = max(0, round((width - w) / 2))
            pixels = pixels[top:top + h, left:left + w]
        elif step['type'] == 'Pad':
            size = step['size'] and step['size'][::-1]
            value = np.atleast_1d(step['pad_val'].get('img', 0))
            pixels = pad(pixels, size, step['size_divisor'], value[::-1])
        else:
            size = new_size(width, height, step)
            pixels = np.atleast_3d(resize(pixels, size, step))
            scale = size[0] / width, size[1] / height
    padding, is_raw = meta['padding'], meta['input'] == 'uint8'
    if not is_raw:
        if meta['channel_order'] == 'BGR':
            pixels = pixels[..., ::-1]
        pixels = (pixels - np.float32(meta['mean'])) / np.float32(meta['std'])
    if padding:
        value = padding['value']  # of normalized images
        if is_raw:
            value = np.rint(np.array(meta['mean'])
                            + value * np.array(meta['std']))
            value = value[::-1 if meta['channel_order'] == 'BGR' else 1]
        pixels = pad(
            pixels, padding.get('size'), padding.get('divisor'), value)
    x = pixels if is_raw else pixels.transpose(2, 0, 1)
    return np.ascontiguousarray(x[None]), image, scale


def pad(pixels, size, divisor, value):
    """Pad right and bottom, to (height, width) or to multiples of a number."""
    h, w, channels = pixels.shape
    height, width = size or (h + -h % divisor, w + -w % divisor)
    shape = max(h, height), max(w, width), channels
    padded = np.full(shape, value, pixels.dtype)
    padded[:h, :w] = pixels
    return padded


def new_size(width, height, step):
    """Width and height after a step of type Resize or ResizeEdge."""
    scale = step['scale']
    if step['type'] == 'Resize' and step['keep_ratio']:
        factor = min(max(scale) / max(width, height),
                     min(scale) / min(width, height))
        return int(width * factor + 0.5), int(height * factor + 0.5)
    if step['type'] == 'Resize':
        return tuple(scale)
    if step['edge'] == 'width' or width < height and step[
            'edge'] == 'short' or width > height and step['edge'] == 'long':
        return scale, int(scale * height / width)
    return int(scale * width / height), scale


def resize(pixels, size, step):
    """Resize by Pillow, or as OpenCV does, which does not smooth."""
    kind = step['interpolation']
    if step['backend'] == 'pillow':
        image = Image.fromarray(
            pixels[..., 0] if pixels.shape[2] == 1 else pixels)
        return np.asarray(image.resize(size, Image.Resampling[kind.upper()]))
    if kind not in ('bilinear', 'bicubic'):
        raise ValueError(f'no code here for {kind} of OpenCV')
    pixels = pixels.astype(int if kind == 'bilinear' else float)
    for axis, new in ((1, size[0]), (0, size[1])):
        old = pixels.shape[axis]
        place = np.float32((np.arange(new) + 0.5) * old / new - 0.5)
        first = np.floor(place).astype(int)
        t = (place - first).reshape([-1 if i == axis else 1 for i in range(3)])
        x = [pixels.take((first + i).clip(0, old - 1), axis)
             for i in (-1, 0, 1, 2)]
        if kind == 'bicubic':
            pixels = (x[0] * -0.75 * t * (1 - t)**2
                      + x[1] * (1.25 * t**3 - 2.25 * t**2 + 1)
                      + x[2] * (1.25 * (1 - t)**3 - 2.25 * (1 - t)**2 + 1)
                      + x[3] * -0.75 * (1 - t) * t**2)
            continue
        a, b = (np.rint(2048 * w).astype(int) for w in (1 - t, t))
        if axis == 1:  # in integers, as OpenCV
            pixels = a * x[1] + b * x[2]
        else:
            pixels = (a * (x[1] >> 4) >> 16) + (b * (x[2] >> 4) >> 16)
            pixels = (pixels + 2) >> 2
    return pixels.round().clip(0, 255).astype(np.uint8)
