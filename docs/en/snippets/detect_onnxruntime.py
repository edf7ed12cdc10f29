"""Draw what an exported detector finds: DETECTOR.onnx PICTURE OUT.png"""
import json
import sys

import onnxruntime
from PIL import ImageDraw
from prepare import prepare  # docs/en/snippets/prepare.py

model, picture, out = sys.argv[1:]
session = onnxruntime.InferenceSession(model)
meta = session.get_modelmeta().custom_metadata_map
meta = {key: json.loads(value) for key, value in meta.items()}
x, image, scale = prepare(picture, meta)

draw = ImageDraw.Draw(image)
names = ['boxes', 'scores', 'labels']
for box, score, label in zip(*session.run(names, dict(input=x))):
    if score > 0.3:
        box = box / (scale * 2)
        print(meta['labels'][label], f'{score:.3f}', *box.round(1))
        draw.rectangle(list(box), outline='lime')
image.save(out)
