# Copyright (c) mmvanilla authors. Licensed under Apache-2.0.
"""The forms of a network that are timed for training, and their memory."""
import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from ..layers import switch_to_finetune
from .forms import Case, count_macs
from .networks import Subject, peer, plain_like, vanillanet
from .report import Measurement


def training_cases(subject: Subject, batch: int, dtype: str,
                   size: tuple[int, int], device: str) -> Iterator[Case]:
    """A step (forward, backward, AdamW) of each form of a network.

    Args:
        subject (Subject): The network. One of mmpretrain's has only the plain
            form.
        batch (int): Images in a step.
        dtype (str): 'fp32', or 'bf16' for autocast.
        size (tuple[int, int]): Height and width of the images, in pixels.
        device (str): 'cpu' or 'cuda'.

    Yields:
        Case: The measurement to fill in, and the step to time.
    """
    torch.manual_seed(0)
    x = torch.rand(batch, 3, *size, device=device)
    target = torch.rand(batch, 1000, device=device)
    arch = subject.arch
    if arch is None:
        networks = dict(plain=peer(subject.name)[0])
    else:
        trained = vanillanet(arch, deploy=False)
        finetune = copy.deepcopy(trained)
        switch_to_finetune(finetune)
        networks = dict(
            plain=plain_like(trained, arch, train_form=True),
            train=trained,
            with_cp=vanillanet(arch, deploy=False, with_cp=True),
            finetune=finetune)
    for form, network in networks.items():
        macs = count_macs(network.to(device).eval(), x[:1])
        step = TrainingStep(network.train(), x, target, dtype)
        parameters = sum(p.numel() for p in network.parameters())
        # The first step makes the gradients and the optimizer's state.
        step()
        yield Measurement(
            subject.name,
            form,
            dtype,
            batch,
            parameters=parameters,
            macs=3 * macs,
            memory=step.memory()), step


class TrainingStep:
    """Forward, backward and AdamW on one batch, at every call.

    Args:
        network (nn.Module): In training mode.
        x (Tensor): Images, (N, C, H, W).
        target (Tensor): Targets from 0 to 1, (N, num_classes).
        dtype (str): 'fp32', or 'bf16' for autocast.
    """

    def __init__(self, network: nn.Module, x: Tensor, target: Tensor,
                 dtype: str) -> None:
        self.network, self.x, self.target = network, x, target
        self.autocast = (
            torch.autocast(x.device.type, torch.bfloat16)
            if dtype == 'bf16' else nullcontext())
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)

    def __call__(self) -> None:
        """Do one training step."""
        self.optimizer.zero_grad()
        self.loss().backward()
        self.optimizer.step()

    def loss(self) -> Tensor:
        """The loss of the forward pass."""
        with self.autocast:
            outputs = self.network(self.x)
        output = outputs if isinstance(outputs, Tensor) else outputs[0]
        return F.binary_cross_entropy_with_logits(output.float(), self.target)

    def memory(self) -> dict[str, int]:
        """Bytes of :data:`mmvanilla.benchmark.report.MEMORY`.

        Parameters include the buffers. Activations are the memory that the
        forward pass keeps for the backward pass. The peak is of a whole step.
        """
        parameters = _bytes(self.network.parameters()) + _bytes(
            self.network.buffers())
        gradients = _bytes(
            p.grad for p in self.network.parameters() if p.grad is not None)
        state = _bytes(value
                       for entry in self.optimizer.state.values()
                       for value in entry.values()
                       if isinstance(value, Tensor))
        self.optimizer.zero_grad()
        activations, _ = _allocated(self.loss, self.x.device.type)
        _, peak = _allocated(self, self.x.device.type)
        return dict(
            parameters=parameters,
            gradients=gradients,
            optimizer=state,
            activations=activations,
            peak=parameters + state + peak)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def _allocated(function: Callable, device: str) -> tuple[int, int]:
    """Bytes that a call has allocated when it returns, and at its peak."""
    if device == 'cuda':
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        kept = function()
        torch.cuda.synchronize()
        held = torch.cuda.memory_allocated() - before
        del kept
        return held, torch.cuda.max_memory_allocated() - before
    with profile(
            activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        kept = function()
    del kept
    events = sorted(
        (e.start_ns(), e.nbytes())
        for e in prof.profiler.kineto_results.events()
        if e.name() == '[memory]')
    held = peak = 0
    for _, change in events:
        held += change
        peak = max(peak, held)
    return held, peak
