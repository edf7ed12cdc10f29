# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""What was measured, as a table and as files."""
import json
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..utils.files import MARK, check_output, replace_atomically
from ..utils.tables import markdown_table
from .draw import plot

# form: its name in the table
FORMS = dict(
    train='train form',
    plain='plain PyTorch',
    channels_last='plain, channels_last',
    eager='optimized, eager',
    inductor='optimized, inductor',
    aoti='AOT Inductor',
    onnxruntime='ONNX Runtime',
    openvino='OpenVINO')
TRAIN_FORMS = dict(
    plain='plain PyTorch',
    train='train form',
    with_cp='train form, with_cp',
    finetune='fine-tune form')
MEMORY = ('parameters', 'gradients', 'optimizer', 'activations', 'peak')
SIDE = 2048  # of the square matrices whose product gives the machine's rate

@dataclass
class Measurement:
    """One form of one network at one batch size.

    Attributes:
        seconds (list[float]): Of each repeat.
        parameters (int): How many.
        macs (int): Multiply-accumulates for one image, of this form; three
            times those of a forward pass for a training step.
        ratio (float, optional): Median over that of the plain form, or, for
            training, of the train form.
        share (float, optional): Of the machine's rate in this precision.
        memory (dict): Bytes of :data:`MEMORY` in a training step.
        accuracy (float, optional): Published top-1 on ImageNet, per cent.
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
        """str: Form and precision, in words."""
        return f'{(TRAIN_FORMS | FORMS)[self.form]}, {self.precision}'

    @property
    def median(self) -> float:
        """float: Seconds for a batch."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """float: Half of the interquartile range, over the median."""
        if len(self.seconds) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.seconds, n=4)
        return (high - low) / 2 / self.median

    @property
    def gflops(self) -> float:
        """float: 1e9 multiplications and additions a second."""
        return 2 * self.macs * self.batch / self.median / 1e9

    def as_dict(self) -> dict:
        """All of it, for a JSON file."""
        return dict(
            asdict(self),
            median=self.median,
            spread=self.spread,
            gflops=self.gflops)


@dataclass
class Benchmark:
    """All that was measured, and where."""

    settings: dict[str, object]
    machine: dict[str, object]
    rates: dict[str, float]
    measurements: list[Measurement]

    def table(self) -> str:
        """The findings in Markdown, with the machine below."""
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
        """Write PREFIX.json, PREFIX.md and, not for training, PREFIX.png."""
        content = dict(
            comment=MARK,
            settings=self.settings,
            machine=self.machine,
            rates=self.rates,
            measurements=[m.as_dict() for m in self.measurements])
        texts = (json.dumps(content, indent=1) + '\n',
                 f'{self.table()}\n\n<!-- {MARK} -->\n')
        json_path, md_path, png_path = output_paths(prefix)
        for path, text in zip((json_path, md_path), texts):
            with replace_atomically(path) as temporary:
                temporary.write_text(text)
        written = [json_path, md_path]
        if not self.settings['train'] and any(
                m.accuracy for m in self.measurements):
            with replace_atomically(png_path) as temporary:
                plot(self, temporary)
            written.append(png_path)
        return [str(path) for path in written]


def output_paths(prefix: str) -> list[Path]:
    """PREFIX.json, PREFIX.md and PREFIX.png.

    What follows a dot may be part of the prefix: VanillaNet-13-x1.5.
    """
    return [Path(prefix + suffix) for suffix in ('.json', '.md', '.png')]


def check_outputs(prefix: str, force: bool = False) -> None:
    """Refuse a prefix that cannot be written to, before anything is measured.

    Raises:
        UserError: As :func:`mmvanilla.utils.files.check_output`.
    """
    for path in output_paths(prefix):
        check_output(path, force=force)


def _number(value: float | None) -> str:
    return '-' if value is None else f'{value:.2f}'
