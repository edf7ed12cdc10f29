# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""VanillaNet in plain PyTorch, independent of the rest of this package."""
import torch.nn.functional as F
from torch import nn


class PlainStage(nn.Module):
    """One stage of VanillaNet, arXiv 2305.12972, section 3.

    Args:
        cin (int): Input channels.
        cout (int): Output channels.
        kernel (int): Kernel size of the convolution.
        stride (int): Its stride.
        padding (int): Its padding.
        pool (nn.Module): The pooling.
        n (int): Reach of the series activation.
        mid (int, optional): Channels between the two convolutions of the train
            form. Defaults to None: deploy form, with one convolution.
    """

    def __init__(self, cin, cout, kernel, stride, padding, pool, n, mid=None):
        super().__init__()
        train = mid is not None
        self.conv1 = nn.Conv2d(cin, mid or cout, kernel, stride, padding)
        if train:
            self.norm1 = nn.BatchNorm2d(mid, eps=1e-6)
            self.conv2 = nn.Conv2d(mid, cout, 1)
            self.norm2 = nn.BatchNorm2d(cout, eps=1e-6)
            self.norm3 = nn.BatchNorm2d(cout, eps=1e-6)
        self.train_form = train
        self.pool = pool
        self.series = nn.Conv2d(
            cout, cout, 2 * n + 1, padding=n, groups=cout, bias=not train)

    def forward(self, x):
        """(N, cin, H, W) -> (N, cout, H', W')."""
        x = self.conv1(x)
        if self.train_form:
            x = F.leaky_relu(self.norm1(x), 1.0)
            x = self.norm2(self.conv2(x))
        x = self.series(F.relu(self.pool(x)))
        return self.norm3(x) if self.train_form else x


class PlainVanillaNet(nn.Module):
    """VanillaNet of ``nn`` modules, in train form or deploy form.

    Args:
        dims (Sequence[int]): Channels of the stem and of each stage.
        strides (Sequence[int]): 1 or 2 for each stage.
        ada_pool (Sequence[int], optional): Output size of each stage with
            stride 2, by adaptive pooling. Defaults to None: max pooling.
        n (int): Reach of the series activations. Defaults to 3.
        classes (int): Number of classes. Defaults to 1000.
        train_form (bool): Defaults to False: deploy form.
    """

    def __init__(self, dims, strides, ada_pool=None, n=3, classes=1000,
                 train_form=False):
        super().__init__()
        stem = (4, 4, 0) if ada_pool is None else (4, 3, 1)
        mid = dims[0] if train_form else None
        stages = [PlainStage(3, dims[0], *stem, nn.Identity(), n, mid)]
        for i, stride in enumerate(strides):
            pool = nn.Identity()
            if stride == 2:
                pool = (nn.MaxPool2d(2) if ada_pool is None else
                        nn.AdaptiveMaxPool2d(ada_pool[i]))
            mid = dims[i] if train_form else None
            stages.append(
                PlainStage(dims[i], dims[i + 1], 1, 1, 0, pool, n, mid))
        self.stages = nn.Sequential(*stages)
        self.head = nn.Sequential(nn.Conv2d(dims[-1], classes, 1))
        if train_form:
            self.head = nn.Sequential(
                nn.Conv2d(dims[-1], classes, 1),
                nn.BatchNorm2d(classes, eps=1e-6), nn.LeakyReLU(1.0),
                nn.Conv2d(classes, classes, 1))

    def forward(self, x):
        """(N, 3, H, W) -> (N, classes)."""
        return self.head(self.stages(x).mean((2, 3), keepdim=True)).flatten(1)
