# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Convert a trained model of any toolbox, write it and verify it."""
import copy
import statistics
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.utils import apply_to
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..checkpoints.read import load_weights
from ..layers.forms import find_layers, switch_to_deploy, switch_to_finetune
from ..utils.cfg_options import parts
from ..utils.configs import build_model, read_config, scope_of, type_name
from ..utils.errors import UserError
from ..utils.files import check_output, write_beside
from ..utils.terminal import markdown_table
from ..version import __version__
from .compare import Comparison, Result, compare, relative_error
from .samples import find_samples

TYPES = ('VanillaNet', 'VanillaNetHead', 'DeepTrainingConv2d',
         'WithDeepTraining')
# For each form: the argument that builds it, the types that have it, and the
# hooks that the form does not use.
FORMS = dict(
    finetune=(dict(deep_training=False), TYPES, ('DeepTrainingHook', )),
    deploy=(dict(deploy=True), (*TYPES, 'SeriesActivation'),
            ('DeepTrainingHook', 'ReparameterizeHook', 'EMAHook')))
# Largest relative error of a layer in float64. Weights rounded to float32
# cause errors of about 1e-7.
LAYER_TOL = 1e-5


@dataclass
class Report:
    """Result of a conversion.

    Attributes:
        layers (int): Number of converted layers.
        before (dict): ``parameters``, ``macs`` (multiply-accumulates),
            ``bytes`` (of the weights) and ``seconds`` (median latency) of the
            model before conversion, for one sample.
        after (dict): The same of the converted model.
        comparison (Comparison): Errors and agreement of predictions.
    """

    layers: int
    before: dict[str, float]
    after: dict[str, float]
    comparison: Comparison

    def table(self) -> str:
        """The report in Markdown."""
        rows = [('layers converted', '', f'{self.layers}')]
        for name, key, unit in [('parameters', 'parameters', 'M'),
                                ('MACs', 'macs', 'M'),
                                ('size of the weights', 'bytes', 'MB'),
                                ('median latency', 'seconds', 'ms')]:
            scale = 1e3 if unit == 'ms' else 1e-6
            rows.append((name, f'{self.before[key] * scale:,.2f} {unit}',
                         f'{self.after[key] * scale:,.2f} {unit}'))
        rows += [(name, '', value) for name, value in self.comparison.rows()]
        return markdown_table(['', 'before', 'after'], rows)


def reparameterize(cfg: Config, checkpoint: str | Path, out: str | Path,
                   tol: float = 1e-4, samples: int = 64, form: str = 'deploy',
                   force: bool = False) -> Report:
    """Convert a checkpoint to deploy or fine-tune form and verify it.

    Writes ``out``, with weights and meta, and the config that builds the
    form beside it, with the suffix ``.py``. Both are first written to a
    temporary folder, read back and compared with the model before: weights
    that are not converted bit by bit, each converted layer in float64, the
    outputs of backbone, neck and heads, and the predictions.

    Args:
        cfg (Config): The config that the checkpoint was trained with.
        checkpoint (str | Path): The checkpoint, in train or fine-tune form:
            a file, or a name with ``vanillanet://``.
        out (str | Path): The file to write; its name ends in ``.pth``.
        tol (float): The maximum allowed relative error of an output.
            Defaults to 1e-4.
        samples (int): How many samples of the validation set to compare on;
            random images if its files are not there. Defaults to 64.
        form (str): 'deploy' or 'finetune'. Defaults to 'deploy'.
        force (bool): Whether to replace existing files. Defaults to False.

    Returns:
        Report: Size, latency and errors.

    Raises:
        UserError: If lambda is below 1, an error is over ``tol``, the
            checkpoint cannot be read, does not fit the config or has the form
            already, or ``out`` must not be written. No file is left then.
    """
    out, checkpoint = Path(out), str(checkpoint)
    paths = [out, out.with_suffix('.py')]
    if out.suffix != '.pth':
        raise UserError(f'the name of the output must end in .pth, got {out}')
    if form not in FORMS:
        raise UserError(f'form must be one of {", ".join(FORMS)}, got {form}')
    for path in paths:
        check_output(path, [checkpoint.split('://')[-1], cfg.filename or ''],
                     force)

    model = build_model(cfg)
    new_cfg = make_deploy_config(cfg, form)
    meta = load_weights(model, checkpoint)
    merged = copy.deepcopy(model)
    layers = switch_loaded(merged, checkpoint, form)
    if not layers:
        raise UserError(f'the model of {cfg.filename} has no layer to '
                        f'convert: it is in {form} form already, or plain')
    found = find_samples(cfg, samples)

    meta = dict(
        mmvanilla_version=__version__, cfg=new_cfg.pretty_text, form=form,
        dataset_meta=meta.get('dataset_meta', {}),
        lam=1.0, tolerance=tol)
    content = dict(state_dict=merged.state_dict(), meta=meta)
    with write_beside(*paths) as (weights_path, config_path):
        torch.save(content, weights_path)
        config_path.write_text(new_cfg.pretty_text, 'utf-8')
        # Verify the files, read as a user reads them.
        written = build_model(read_config(str(config_path)))
        load_weights(written, str(weights_path))
        what = f'the {form} form of {checkpoint}'
        compare_layers(model, written, what)
        with scope_of(cfg), torch.no_grad():
            names = _compared_modules(model)
            comparison = compare(
                partial(_run, model, names), partial(_run, written, names),
                found, tol, what=what)
            sides = [_measure(m, found.batches[0]) for m in (model, written)]
        meta['max_relative_error'] = comparison.max_rel
        torch.save(content, weights_path)
    return Report(layers, *sides, comparison)


def switch_loaded(model: nn.Module, checkpoint: str | Path,
                  form: str = 'deploy') -> int:
    """Convert a model with a checkpoint's weights, in place; count layers."""
    switch = dict(deploy=switch_to_deploy, finetune=switch_to_finetune)[form]
    try:
        return switch(model)
    except RuntimeError as e:
        raise UserError(f'{checkpoint}: {e}') from e


def make_deploy_config(cfg: Config, form: str = 'deploy') -> Config:
    """A new config that builds a later form of a config's model."""
    cfg = copy.deepcopy(cfg)
    argument, types, unused_hooks = FORMS[form]
    for _, node in [*parts(dict(model=cfg.model))]:
        if not isinstance(node, dict):
            continue
        if type_name(node) in types:
            node.update(argument)
        # A written config holds names. mmcv finds this function by its own
        # name, not by the module's before it.
        if getattr(node.get('type'), '__module__', '') == 'mmcv.ops.nms':
            node['type'] = node['type'].__name__
        if type_name(node.get('init_cfg') or {}) in (
                'Pretrained', 'PretrainedInit'):
            node.pop('init_cfg')
        if node.get('pretrained'):  # argument of timm and older networks
            node['pretrained'] = False if node['pretrained'] is True else None
    cfg.update(load_from=None, resume=False)
    cfg.pop('work_dir', None)  # that of the training run
    if cfg.get('custom_hooks'):
        cfg.custom_hooks = [hook for hook in cfg.custom_hooks
                            if type_name(hook) not in unused_hooks]
    return cfg


def compare_layers(reference: nn.Module, converted: nn.Module,
                   what: str) -> None:
    """Raise UserError unless exactly a model's layers were converted."""
    layers = find_layers(reference)
    inside = tuple(f'{name}.' if name else '' for name in layers)
    weights, others = reference.state_dict(), converted.state_dict()
    for key in weights.keys() | others.keys():
        if not key.startswith(inside) and (
                key not in weights or key not in others
                or not torch.equal(weights[key], others[key])):
            raise UserError(f'{what}: {key} has changed, although it belongs '
                            'to no converted layer')
    generator = torch.Generator().manual_seed(0)
    # In float64, errors show that do not change a network's outputs.
    for name, layer in layers.items():
        # The first convolution of a layer has the layer's input channels.
        conv = next(m for m in layer.modules() if isinstance(m, nn.Conv2d))
        size = [d * (k - 1) + 3 for k, d in zip(conv.kernel_size,
                                                conv.dilation)]
        noise = torch.randn(
            1, conv.in_channels, *size, generator=generator).double()
        pair = [copy.deepcopy(m).double()
                for m in (layer, converted.get_submodule(name))]
        for x in (torch.zeros_like(noise), noise):
            with torch.no_grad():
                error = relative_error(*(m(x.clone()) for m in pair))
            if not error <= LAYER_TOL:
                raise UserError(f'{what}: the relative error of {name} in '
                                f'float64 is {error:.3g}, over {LAYER_TOL:g}')


def _compared_modules(model: nn.Module) -> list[str]:
    """Converted layers, backbone, neck and modules of heads with weights."""
    # Second stages get the proposals of their own model: they are compared by
    # their predictions.
    layers = find_layers(model)
    inside = tuple(f'{name}.' for name in ('backbone', 'neck', *layers))
    return [name for name, module in model.named_modules()
            if name and not name.startswith(('roi_head', 'data_preprocessor'))
            and (name in layers or not name.startswith(inside)
                 and ('.' not in name or any(
                     True for _ in module.parameters(recurse=False))))]


def _run(model: nn.Module, names: list[str], batch: dict) -> Result:
    """Predict; keep the outputs of the modules with these names."""
    tensors = {}
    calls = Counter()

    def hook(name, module, args, output) -> None:
        calls[name] += 1
        kind = 'output'
        if name.startswith(('backbone', 'neck')):
            kind = 'feature map'
        found = []
        apply_to(output, lambda x: isinstance(x, Tensor)
                 and x.is_floating_point(), found.append)
        for i, tensor in enumerate(found, 1):
            key = f'{kind} {i} of call {calls[name]} of {name}'
            tensors[key] = tensor.clone()  # it may be changed in place

    with ExitStack() as stack:
        for name in names:
            handle = model.get_submodule(name).register_forward_hook(
                partial(hook, name))
            stack.callback(handle.remove)
        prediction, = model.test_step(batch)
    return Result(tensors, prediction)


def _measure(model: nn.Module, batch: dict) -> dict[str, float]:
    with FlopCounterMode(display=False) as counter:
        model.test_step(copy.deepcopy(batch))  # a warm-up, too
    seconds = []
    for _ in range(7):
        start = time.perf_counter()
        model.test_step(copy.deepcopy(batch))
        seconds.append(time.perf_counter() - start)
    return dict(
        parameters=sum(p.numel() for p in model.parameters()),
        macs=counter.get_total_flops() // 2,
        bytes=sum(w.nbytes for w in model.state_dict().values()),
        seconds=statistics.median(seconds))
