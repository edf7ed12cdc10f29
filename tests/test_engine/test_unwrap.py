# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
import pytest
import torch
from mmengine.model import BaseModel, BaseTTAModel, MMDistributedDataParallel
from tiny import free_port

from mmvanilla.engine.unwrap import unwrap_model


class Model(BaseModel):
    """A model that has a part called ``module`` itself."""

    def __init__(self):
        super().__init__()
        self.module = torch.nn.Linear(1, 1)

    def forward(self, x):
        return self.module(x)


class Augmented(BaseTTAModel):

    def merge_preds(self, data_samples_list):
        return data_samples_list


@pytest.fixture
def one_process():
    torch.distributed.init_process_group(
        'gloo', f'tcp://127.0.0.1:{free_port()}', rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_unwrap_model(one_process):
    model = Model()
    assert unwrap_model(model) is model
    assert unwrap_model(Augmented(model)) is model
    assert unwrap_model(MMDistributedDataParallel(model)) is model
    assert unwrap_model(MMDistributedDataParallel(Augmented(model))) is model
