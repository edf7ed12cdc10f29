# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
from collections.abc import Sequence

from mmpretrain.models.heads import ClsHead
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from ...layers.deep_training import DeepTrainingConv2d
from ...layers.forms import switch_to_deploy, switch_to_finetune
from ...layers.loading import check_loading
from ..backbones.vanillanet import INIT_CFG


@MODELS.register_module()
class VanillaNetHead(ClsHead):
    """Classification head whose classifier has deep training.

    Global average pooling -> dropout -> :class:`DeepTrainingConv2d` of 1x1
    (VanillaNet, arXiv 2305.12972, section 3). It includes the pooling: no
    neck is needed.

    Args:
        num_classes (int): Number of classes.
        in_channels (int): Channels of the feature map.
        dropout (float): Probability of dropping a pooled channel.
            Defaults to 0.
        loss (dict): Config of the loss. Defaults to
            ``dict(type='CrossEntropyLoss', loss_weight=1.0)``.
        topk (int | tuple[int]): Top-k accuracy. Defaults to (1, ).
        cal_acc (bool): Whether to log the training accuracy, which needs
            hard labels. Defaults to False.
        norm_cfg (dict): Config of the batch norm between the two
            convolutions. Defaults to ``dict(type='BN', eps=1e-6)``.
        act_cfg (dict): Config of the activation between them.
            Defaults to ``dict(type='ReLU')``.
        deep_training (bool): Whether to build the train form; the fine-tune
            form is the deploy form here, since no norm follows.
            Defaults to True.
        deploy (bool): Whether to build the deploy form. Defaults to False.
        init_cfg (dict | list[dict], optional): Initialization. Defaults to
            the one of :class:`VanillaNet`.

    Raises:
        ValueError: If ``num_classes`` is not positive.
    """

    def __init__(self, num_classes: int, in_channels: int,
                 dropout: float = 0.0,
                 loss: dict = dict(type='CrossEntropyLoss', loss_weight=1.0),
                 topk: int | tuple[int, ...] = (1, ), cal_acc: bool = False,
                 norm_cfg: dict = dict(type='BN', eps=1e-6),
                 act_cfg: dict = dict(type='ReLU'), deep_training: bool = True,
                 deploy: bool = False,
                 init_cfg: dict | Sequence[dict] | None = INIT_CFG):
        if num_classes <= 0:
            raise ValueError(
                f'num_classes must be positive, but got {num_classes}')
        super().__init__(
            loss=loss, topk=topk, cal_acc=cal_acc, init_cfg=init_cfg)
        self.num_classes = num_classes
        self.in_channels = in_channels
        conv_cfg = dict(norm_cfg=norm_cfg, act_cfg=act_cfg, post_norm=False)
        check_loading(self, head='', **conv_cfg)
        self.dropout = nn.Dropout(dropout)
        self.classifier = DeepTrainingConv2d(
            in_channels, num_classes, 1, mid_channels=num_classes,
            deep_training=deep_training, deploy=deploy, **conv_cfg)

    def pre_logits(self, feats: tuple[Tensor, ...]) -> Tensor:
        """Pool the last feature map: (N, C, H, W) -> (N, C)."""
        return feats[-1].mean((2, 3))

    def forward(self, feats: tuple[Tensor, ...]) -> Tensor:
        """Compute the logits.

        Args:
            feats (tuple[Tensor]): Feature maps; the last, (N, in_channels,
                H, W), is classified.

        Returns:
            Tensor: Logits, (N, num_classes).
        """
        pooled = self.dropout(self.pre_logits(feats))
        # OpenCV 4 reads no Unsqueeze of two axes, as [:, :, None, None] gives.
        return self.classifier(pooled.view(*pooled.shape, 1, 1)).flatten(1)

    @property
    def deploy(self) -> bool:
        """bool: Whether the classifier is in deploy form."""
        return not isinstance(self.classifier, DeepTrainingConv2d)

    # For tools that call these methods of a module.
    switch_to_finetune = switch_to_finetune
    switch_to_deploy = switch_to_deploy
