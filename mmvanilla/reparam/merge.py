# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Convert a trained model of any toolbox, write it and verify it."""
import copy
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from mmengine.config import Config
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..checkpoints import (
    load_checkpoint,
    load_state_dict,
    load_weights,
    local_path,
)
from ..utils.building import build_model, config_files, read_config, scope_of
from ..utils.data import random_batches, real_batches
from ..utils.errors import UserError
from ..utils.files import (
    MARK,
    check_output,
    replace_together,
    sha256,
    signed,
)
from ..utils.tables import markdown_table
from ..version import __version__
from .compare_models import ModelComparison, compare_models
from .deploy_config import FORMS, make_deploy_config
from .switch import switch_loaded


@dataclass
class Report:
    """Result of a conversion.

    Attributes:
        layers (int): Number of converted layers.
        random (bool): Whether the samples were random images.
        before (dict): ``parameters``, ``macs`` (multiply-accumulates for one
            sample), ``bytes`` (of the file) and ``seconds`` (median latency
            of one sample) of the model before conversion.
        after (dict): The same of the converted model.
        comparison (ModelComparison): Errors and agreement of predictions.
    """

    layers: int
    random: bool
    before: dict[str, float]
    after: dict[str, float]
    comparison: ModelComparison

    def table(self) -> str:
        """The report in Markdown."""
        before, after = self.before, self.after
        rows = [('layers converted', '', f'{self.layers}')]
        for name, key, unit, scale in [('parameters', 'parameters', 'M', 1e6),
                                       ('MACs', 'macs', 'M', 1e6),
                                       ('file size', 'bytes', 'MB', 1e6),
                                       ('median latency', 'seconds', 'ms',
                                        1e-3)]:
            rows.append((name, f'{before[key] / scale:,.2f} {unit}',
                         f'{after[key] / scale:,.2f} {unit}'))
        kind = 'random images' if self.random else 'real samples'
        rows.append(
            (f'compared on {self.comparison.samples} {kind}', '', ''))
        rows += [(name, '', value) for name, value in self.comparison.rows()]
        return markdown_table(['', 'before', 'after'], rows)


def reparameterize(cfg: Config,
                   checkpoint: str | Path,
                   out: str | Path,
                   tol: float = 1e-4,
                   samples: int = 64,
                   form: str = 'deploy',
                   force: bool = False) -> Report:
    """Convert a checkpoint to deploy or fine-tune form and verify it.

    Writes ``out``, with weights and meta, and beside it, with the suffix
    ``.py``, the config that builds the form. Both files are first written to
    a temporary folder, read back and compared (:func:`compare_models`) with
    the model of ``cfg`` and ``checkpoint``.

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
        force (bool): Whether to replace files that mmvanilla did not write.
            Defaults to False.

    Returns:
        Report: Size, latency and errors.

    Raises:
        UserError: If lambda is below 1, an error is over ``tol``, the
            checkpoint does not fit the config, has the form already or is
            not a checkpoint, or ``out`` must not be written. No file is left
            then.
    """
    out = Path(out)
    source = local_path(checkpoint)
    paths = [out, out.with_suffix('.py')]
    if out.suffix != '.pth':
        raise UserError(f'the name of the output must end in .pth, got {out}')
    if form not in FORMS:
        raise UserError(f'form must be one of {", ".join(FORMS)}, got {form}')
    if not samples > 0:
        raise UserError(f'the number of samples must be positive, got '
                        f'{samples}')
    for path in paths:
        check_output(path, [source, *config_files(cfg)], force)

    content = load_checkpoint(checkpoint)
    meta = content.get('meta', {})
    state_dict = content.get('state_dict', content)
    model = build_model(cfg)
    new_cfg = make_deploy_config(cfg, form)
    if set(state_dict) != set(model.state_dict()) and (
            set(state_dict) == set(build_model(new_cfg).state_dict())):
        raise UserError(f'{checkpoint} is in {form} form already')
    load_state_dict(model, state_dict, str(checkpoint))
    merged = copy.deepcopy(model)
    layers = switch_loaded(merged, checkpoint, form)
    if not layers:
        raise UserError(f'the model of {cfg.filename} has no layer to '
                        f'convert: it is in {form} form already, or plain')

    batches = real_batches(cfg, samples)
    is_random = batches is None
    if is_random:
        batches = random_batches(cfg, samples)
    with replace_together(paths) as (weights_path, config_path):
        torch.save(
            dict(
                state_dict=merged.state_dict(),
                meta=dict(
                    mmvanilla=MARK,
                    mmvanilla_version=__version__,
                    cfg=new_cfg.pretty_text,
                    dataset_meta=meta.get('dataset_meta', {}),
                    source_sha256=sha256(source),
                    form=form,
                    lam=1.0,
                    tolerance=tol)), weights_path)
        config_path.write_text(signed(new_cfg.pretty_text), 'utf-8')
        del merged

        # Verify the files, read as a user reads them.
        written_cfg = read_config(str(config_path))
        written = build_model(written_cfg)
        load_weights(written, str(weights_path))
        with scope_of(cfg):
            comparison = compare_models(model, written, batches, tol,
                                        f'the {form} form of {checkpoint}')
        before = dict(_size(model), bytes=source.stat().st_size)
        after = dict(_size(written), bytes=weights_path.stat().st_size)
        with scope_of(cfg), torch.no_grad():
            before['macs'] = _macs(model, batches[0])
            after['macs'] = _macs(written, batches[0])
            before['seconds'], after['seconds'] = _latencies(
                [model, written], batches[0])
    return Report(layers, is_random, before, after, comparison)


def _size(model: nn.Module) -> dict:
    return dict(parameters=sum(p.numel() for p in model.parameters()))


def _one_sample(batch: dict) -> dict:
    return {k: v[:1] for k, v in batch.items()}


def _macs(model: nn.Module, batch: dict) -> int:
    with FlopCounterMode(display=False) as counter:
        model.test_step(_one_sample(batch))
    return counter.get_total_flops() // 2


def _latencies(models: list[nn.Module],
               batch: dict,
               repeats: int = 7) -> list[float]:
    """Median seconds of each model for one sample, measured in turns."""
    batch = _one_sample(batch)
    times = [[] for _ in models]
    for repeat in range(repeats + 1):
        for model, taken in zip(models, times):
            start = time.perf_counter()
            model.test_step(copy.deepcopy(batch))
            if repeat:  # the first is a warm-up
                taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in times]
