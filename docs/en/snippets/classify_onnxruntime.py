"""Print the likeliest class of each picture: CLASSIFIER.onnx PICTURE ..."""
import json
import sys

import numpy as np
import onnxruntime
from prepare import prepare  # docs/en/snippets/prepare.py

model, *pictures = sys.argv[1:]
session = onnxruntime.InferenceSession(model)
meta = session.get_modelmeta().custom_metadata_map
meta = {key: json.loads(value) for key, value in meta.items()}
for picture in pictures:
    x, _, _ = prepare(picture, meta)
    logits = session.run(['logits'], dict(input=x))[0][0]
    scores = np.exp(logits - logits.max())
    best = logits.argmax()
    print(picture, meta['labels'][best], f'{scores[best] / scores.sum():.4f}')
