# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""The measurements, as a table and as files."""
import json
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..utils.files import MARK, check_output, replace_together
from ..utils.tables import markdown_table
from .draw import plot

# Forms for inference, and their names in the table.
FORMS = dict(
    train='train form',
    plain='plain PyTorch',
    channels_last='plain, channels_last',
    eager='optimized, eager',
    inductor='optimized, inductor',
    aoti='AOT Inductor',
    onnxruntime='ONNX Runtime',
    openvino='OpenVINO')
# The same for training.
TRAIN_FORMS = dict(
    plain='plain PyTorch',
    train='train form',
    with_cp='train form, with_cp',
    finetune='fine-tune form')
# What the memory of a training step is divided into; the last is the total.
MEMORY = ('parameters', 'gradients', 'optimizer', 'activations', 'peak')
SIDE = 2048  # of the square matrices whose product gives the machine's rate


@dataclass
class Measurement:
    """One form of one network at one batch size.

    Attributes:
        model (str): Name of the network.
        form (str): A form that :func:`benchmark` names.
        precision (str): 'fp32', 'bf16' or 'int8'.
        batch (int): Batch size.
        seconds (list[float]): Time of each repeat, for the whole batch.
        parameters (int): Number of parameters.
        macs (int): Multiply-accumulates for one image, of this form; three
            times those of a forward pass for a training step.
        ratio (float, optional): Median time over that of the plain form, or,
            for training, of the train form.
        share (float, optional): Rate over that of the machine's matrix product
            in this precision.
        memory (dict): Bytes in a training step: 'parameters' (with buffers),
            'gradients', 'optimizer' (its state), 'activations' (kept for the
            backward pass) and 'peak'; empty for inference.
        accuracy (float, optional): Published top-1 accuracy on ImageNet, in
            per cent.
    """

    model: str
    form: str
    precision: str
    batch: int
    seconds: list[float] = field(default_factory=list)
    parameters: int = 0
    macs: int = 0
    ratio: float | None = None
    share: float | None = None
    memory: dict[str, int] = field(default_factory=dict)
    accuracy: float | None = None

    @property
    def label(self) -> str:
        """str: Name of the form, and precision."""
        return f'{(TRAIN_FORMS | FORMS)[self.form]}, {self.precision}'

    @property
    def median(self) -> float:
        """float: Median time for a batch, in seconds."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """float: Half of the interquartile range over the median."""
        if len(self.seconds) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.seconds, n=4)
        return (high - low) / 2 / self.median

    @property
    def gflops(self) -> float:
        """float: 1e9 multiplications and additions per second."""
        return 2 * self.macs * self.batch / self.median / 1e9

    def as_dict(self) -> dict:
        """The attributes and properties, for a JSON file."""
        return dict(
            asdict(self),
            median=self.median,
            spread=self.spread,
            gflops=self.gflops)


@dataclass
class Benchmark:
    """All measurements of a run.

    Attributes:
        settings (dict): The arguments of :func:`benchmark`.
        machine (dict): The processor, PyTorch's default threads, the system
            and versions.
        rates (dict): FLOP/s of the matrix product in each precision.
        measurements (list[Measurement]): In the order in which they ran.
    """

    settings: dict[str, object]
    machine: dict[str, object]
    rates: dict[str, float]
    measurements: list[Measurement]

    def table(self) -> str:
        """The measurements in Markdown, and a line on the machine."""
        training = self.settings['train']
        header = ['network', 'form', 'precision', 'batch', 'ms', 'spread',
                  'ratio', 'share', 'GFLOP/s', 'params (M)', 'MACs (G)']
        if training:
            header[7:] = [f'{name} (MB)' for name in MEMORY]
        rows = []
        for m in self.measurements:
            form, precision = m.label.rsplit(', ', 1)
            row = [
                m.model, form, precision,
                str(m.batch), f'{1e3 * m.median:.1f}',
                f'{100 * m.spread:.0f} %', _number(m.ratio),
                _number(m.share), f'{m.gflops:.0f}',
                f'{m.parameters / 1e6:.1f}', f'{m.macs / 1e9:.2f}'
            ]
            if training:
                row[7:] = [f'{m.memory[name] / 1e6:.0f}' for name in MEMORY]
            rows.append(tuple(row))
        rates = ', '.join(f'{rate / 1e9:.0f} GFLOP/s in {name}'
                          for name, rate in self.rates.items())
        machine = self.machine
        return '\n'.join([
            markdown_table(header, rows), '',
            f'{machine["name"]}, {self.settings["threads"]} threads; product '
            f'of two {SIDE} x {SIDE} matrices: {rates}. ' +
            ', '.join(f'{k} {v}' for k, v in machine['versions'].items()) + '.'
        ])

    def save(self, prefix: str) -> list[str]:
        """Write PREFIX.json, PREFIX.md and, for inference, PREFIX.png.

        The plot is left out where no network has a published accuracy.

        Returns:
            list[str]: The files that were written.

        Raises:
            UserError: If the disk is full or cannot be written to.
        """
        content = dict(
            comment=MARK,
            settings=self.settings,
            machine=self.machine,
            rates=self.rates,
            measurements=[m.as_dict() for m in self.measurements])
        has_plot = not self.settings['train'] and any(
            m.accuracy for m in self.measurements)
        paths = output_paths(prefix)[:2 + has_plot]
        with replace_together(paths) as (json_path, md_path, *png_path):
            json_path.write_text(json.dumps(content, indent=1) + '\n')
            md_path.write_text(f'{self.table()}\n\n<!-- {MARK} -->\n')
            if has_plot:
                plot(self, png_path[0])
        return [str(path) for path in paths]


def output_paths(prefix: str) -> list[Path]:
    """PREFIX.json, PREFIX.md and PREFIX.png.

    Suffixes are appended, since a prefix may have a dot: VanillaNet-13-x1.5.
    """
    return [Path(prefix + suffix) for suffix in ('.json', '.md', '.png')]


def check_outputs(prefix: str, force: bool = False) -> None:
    """Refuse a prefix that cannot be written to, before anything is measured.

    Args:
        prefix (str): PREFIX of the files.
        force (bool): Whether to replace files that mmvanilla did not write.
            Defaults to False.

    Raises:
        UserError: As :func:`mmvanilla.utils.files.check_output`.
    """
    for path in output_paths(prefix):
        check_output(path, force=force)


def _number(value: float | None) -> str:
    return '-' if value is None else f'{value:.2f}'
