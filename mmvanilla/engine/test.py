# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""Evaluate a checkpoint of a config of any toolbox."""
import copy
import os
import os.path as osp

import mmengine
from mmengine.config import Config, ConfigDict
from mmengine.dist import is_main_process
from mmengine.evaluator import DumpResults
from mmengine.logging import print_log
from mmengine.runner import Runner
from mmengine.visualization import Visualizer
from torch import nn

from ..checkpoints import load_checkpoint, load_state_dict
from ..reparam.switch import switch_loaded
from ..utils.building import config_files
from ..utils.config_options import check_parts, scope_name, type_name
from ..utils.data import check_data, unwrap_dataset
from ..utils.errors import UserError
from ..utils.files import check_output, replace_atomically
from .launch import (
    build_runner,
    plain_errors,
    read_run_config,
    set_loader_defaults,
)
from .own_images import use_image_folder
from .unwrap import unwrap_model


def test(config: str,
         checkpoint: str,
         deploy: bool = False,
         compile: str | None = None,
         work_dir: str | None = None,
         out: str | None = None,
         out_item: str | None = None,
         show_dir: str | None = None,
         show: bool = False,
         interval: int = 1,
         wait_time: float = 2,
         amp: bool = False,
         tta: bool = False,
         pin_memory: bool = True,
         cfg_options: dict | None = None,
         allow_new_keys: bool = False,
         data: str | None = None,
         check_images: bool = False,
         log: str = 'short',
         launcher: str = 'none') -> dict:
    """Evaluate a checkpoint.

    Args:
        config (str): The config file.
        checkpoint (str): The checkpoint: a file, an http(s) address or a name
            with ``vanillanet://``.
        deploy (bool): Whether to merge the model before it is tested.
            Defaults to False.
        compile (str, optional): Backend of
            :func:`mmvanilla.export.optimize_for_inference` for the merged
            backbone, 'inductor' or 'eager'. Defaults to None: none.
        work_dir (str, optional): Folder for the metrics. Defaults to None:
            what the config says, else ``work_dirs/CONFIG``.
        out (str, optional): A file for the results: .pkl for predictions,
            .pkl, .json or .yaml for metrics. An existing file is replaced, as
            by mmpretrain's tool. Defaults to None: none.
        out_item (str, optional): What ``out`` holds, 'pred' or 'metrics'.
            Defaults to None, which is 'pred'.
        show_dir (str, optional): A folder for images with the predictions
            drawn in. Defaults to None: none are written.
        show (bool): Whether to show them in a window. Defaults to False.
        interval (int): Draw every ``interval``-th image. Defaults to 1.
        wait_time (float): Seconds for which a window stays. Defaults to 2.
        amp (bool): Whether to test in mixed precision. Defaults to False.
        tta (bool): Whether to average over test-time augmentations: the
            config's ``tta_pipeline``, else the toolbox's default. Defaults to
            False.
        pin_memory (bool): False to switch it off in the data loader. Defaults
            to True: see :func:`set_loader_defaults`.
        cfg_options (dict, optional): Overrides of the config. Defaults to
            None.
        allow_new_keys (bool): Whether these may add unknown keys. Defaults to
            False.
        data (str, optional): A folder of images instead of the config's, see
            :func:`use_image_folder`. Defaults to None.
        check_images (bool): Whether to decode all of them first and to leave
            out those that are unreadable. Defaults to False.
        log (str): 'short', or 'full' for environment, config and hooks on
            the screen too. Defaults to 'short'.
        launcher (str): 'none', 'pytorch', 'slurm' or 'mpi'. Defaults to
            'none'.

    Returns:
        dict: The metrics, by name.

    Raises:
        UserError: If config, data or checkpoint are missing or invalid, the
            options do not go together, or, with ``deploy``, lambda is below
            1.
    """
    if compile and not deploy:
        raise UserError('--compile needs --deploy: a merged network is what '
                        'is compiled for inference')
    if compile and tta:
        raise UserError('--compile and --tta do not go together: images of '
                        'each augmentation would be compiled for')
    cfg = read_run_config(config, work_dir, launcher, cfg_options,
                          allow_new_keys)
    _check_out(out, out_item, [checkpoint, *config_files(cfg)])
    check_parts(cfg, 'testing', 'model', 'test_dataloader', 'test_cfg',
                'test_evaluator')
    if data is not None:
        use_image_folder(cfg, data, checkpoint, check_images)
    check_data(cfg, 'test_dataloader')
    set_loader_defaults(cfg, 'test_dataloader', pin_memory)
    content = load_checkpoint(checkpoint)
    cfg.load_from = checkpoint
    cfg.resume = False
    if show or show_dir:
        _visualize(cfg, show, show_dir, interval, wait_time)
    if tta:
        _add_tta(cfg)
    if amp:
        cfg.test_cfg.fp16 = True
    if deploy:
        # EMAHook would replace the merged weights by its copy, in train form.
        # The checkpoint's state dict already holds the average.
        cfg.custom_hooks = [
            hook for hook in cfg.get('custom_hooks') or []
            if type_name(hook) != 'EMAHook'
        ]

    with plain_errors():
        runner = build_runner(cfg, log)
        model = unwrap_model(runner.model)
        load_state_dict(model, content.get('state_dict', content), checkpoint)
        if out and out_item != 'metrics':
            runner.test_evaluator.metrics.append(
                _DumpAtomically(out_file_path=out))
        if show_dir:
            _keep_apart(runner.visualizer)
        if deploy:
            _deploy(runner, model, checkpoint, compile)
        metrics = runner.test()
    if out and out_item == 'metrics' and is_main_process():
        _dump(metrics, out)
    return metrics


class _DumpAtomically(DumpResults):
    """mmengine's ``DumpResults``, which replaces its file at once."""

    def compute_metrics(self, results: list) -> dict:
        _dump(results, self.out_file_path)
        return {}


def _dump(results: list | dict, out: str) -> None:
    with replace_atomically(out) as temporary:
        mmengine.dump(results, str(temporary))
    print_log(f'The results are in {out}', logger='current')


def _check_out(out: str | None, out_item: str | None,
               inputs: list[str]) -> None:
    if out_item and not out:
        raise UserError('--out-item needs --out, the file that it goes to')
    if out and osp.splitext(out)[1] not in ('.pkl', '.json', '.yaml', '.yml'):
        raise UserError(f'--out must end in .pkl, .json or .yaml, got {out}')
    if out and out_item != 'metrics' and not out.endswith('.pkl'):
        raise UserError('predictions hold tensors, so --out must end in .pkl '
                        f'or --out-item be metrics, got {out}')
    if out:
        os.makedirs(osp.dirname(out) or '.', exist_ok=True)
        check_output(out, inputs, force=True)


def _deploy(runner: Runner, model: nn.Module, checkpoint: str,
            compile: str | None) -> None:
    runner.load_or_resume()
    layers = switch_loaded(model, checkpoint)
    runner.logger.info(f'Merged {layers} layers before testing')
    if compile:
        if not hasattr(model, 'backbone'):
            raise UserError(f'--compile is for a model with a backbone, and a '
                            f'{type(model).__name__} has none')
        from ..export import optimize_for_inference
        batch = next(iter(runner.test_loop.dataloader))
        inputs = model.data_preprocessor(batch, False)['inputs']
        model.backbone = optimize_for_inference(
            model.backbone, inputs, compile)


def _visualize(cfg: Config, show: bool, show_dir: str | None,
               interval: int, wait_time: float) -> None:
    check_parts(cfg, 'drawing the predictions', 'default_hooks', 'visualizer')
    hook = cfg.default_hooks.get('visualization')
    if hook is None:
        raise UserError(f'{cfg.filename} has no default_hooks.visualization, '
                        'which draws the predictions')
    hook.update(show=show, interval=interval, wait_time=wait_time)
    # These arguments have other names in each toolbox.
    scope = scope_name(cfg)
    hook['enable' if scope == 'mmpretrain' else 'draw'] = True
    if show_dir and scope == 'mmseg':
        cfg.visualizer.save_dir = show_dir
    elif scope == 'mmdet' and show_dir:
        # Which puts a relative path into the work dir.
        hook.test_out_dir = osp.abspath(show_dir)
    elif show_dir:
        hook.out_dir = show_dir


def _keep_apart(visualizer: Visualizer) -> None:
    """Write each drawing into a folder named after that of its image.

    The toolboxes keep the file's name only, so that drawings of images with
    equal names in different class folders would overwrite each other.
    """
    taken: dict[str, int] = {}

    def wrap(draw):

        def wrapped(*args, data_sample=None, out_file=None, **kwargs):
            if out_file:
                folder = osp.basename(
                    osp.dirname(getattr(data_sample, 'img_path', None) or ''))
                out_file = osp.join(
                    osp.dirname(out_file), folder, osp.basename(out_file))
                taken[out_file] = taken.get(out_file, 0) + 1
                if taken[out_file] > 1:
                    root, suffix = osp.splitext(out_file)
                    out_file = f'{root}_{taken[out_file]}{suffix}'
            return draw(
                *args, data_sample=data_sample, out_file=out_file, **kwargs)

        return wrapped

    for name in ('visualize_cls', 'add_datasample'):
        if hasattr(visualizer, name):
            setattr(visualizer, name, wrap(getattr(visualizer, name)))


def _add_tta(cfg: Config) -> None:
    scope = scope_name(cfg)
    dataset = unwrap_dataset(cfg.test_dataloader.get('dataset') or {})
    if not dataset.get('pipeline'):
        raise UserError(f'{cfg.filename} has no pipeline in its '
                        'test_dataloader, which --tta needs')
    # The toolboxes' own defaults; mmseg has none, and this is what its
    # configs have. Without a scope, since mmdet's is in the root registry.
    model, pack = dict(
        mmdet=(dict(
            type='DetTTAModel',
            tta_cfg=dict(
                nms=dict(type='nms', iou_threshold=0.5), max_per_img=100)),
               dict(
                   type='PackDetInputs',
                   meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape',
                              'scale_factor', 'flip', 'flip_direction'))),
        mmseg=(dict(type='SegTTAModel'), dict(type='PackSegInputs')),
    ).get(scope, (dict(type='AverageClsScoreTTA'), None))
    cfg.setdefault('tta_model', model)
    if 'tta_pipeline' not in cfg:
        *load, last = copy.deepcopy(dataset.pipeline)
        flips = [dict(type='RandomFlip', prob=p) for p in (0.0, 1.0)]
        ends = [[pack or last]]
        if scope == 'mmseg':
            # Annotations are of the image before it is flipped.
            ends = [[t for t in load if type_name(t) == 'LoadAnnotations'],
                    *ends]
            load = [t for t in load if type_name(t) != 'LoadAnnotations']
        cfg.tta_pipeline = load + [
            dict(type='TestTimeAug',  # mmcv's, which all of them find
                 transforms=[flips, *(end for end in ends if end)])
        ]
    cfg.model = ConfigDict(cfg.tta_model, module=cfg.model)
    dataset.pipeline = cfg.tta_pipeline
