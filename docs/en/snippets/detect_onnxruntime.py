"""Draw what an exported detector finds: DETECTOR.onnx PICTURE OUT.png"""
import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageDraw

model, picture, out = sys.argv[1:]
session = onnxruntime.InferenceSession(model)
meta = session.get_modelmeta().custom_metadata_map
meta = {key: json.loads(value) for key, value in meta.items()}
height, width = meta['input_size']

image = Image.open(picture).convert('RGB')
scale = min(height / image.height, width / image.width)
small = image.resize([round(side * scale) for side in image.size])
pixels = np.asarray(small, np.float32)
if meta['channel_order'] == 'BGR':
    pixels = pixels[:, :, ::-1]
x = np.zeros((1, 3, height, width), np.float32)
x[0, :, :small.height, :small.width] = (
    (pixels - meta['mean']) / meta['std']).transpose(2, 0, 1)

draw = ImageDraw.Draw(image)
names = ['boxes', 'scores', 'labels']
for box, score, label in zip(*session.run(names, dict(input=x))):
    if score > 0.3:
        print(meta['labels'][label], f'{score:.3f}', *(box / scale).round(1))
        draw.rectangle(list(box / scale), outline='lime')
image.save(out)
