"""The loop of a tuning: epochs of steps, validation, the best epoch, a checkpoint after each, an early end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from .errors import TuningError
from .tuning_data import seed_of
from .tuning_head import Head
from .tuning_layers import Group
from .tuning_options import TuningOptions
from .tuning_rates import HEAD, first_epochs, make_optimizer, peak_rates, set_rates
from .tuning_source import Fed, Source
from .tuning_split import Divided
from .tuning_state import Best, TuningState, write_state
from .tuning_step import Stepper, class_weights, diverged, mixer

__all__ = ["Epoch", "Loop"]

VALIDATE = 64
"""Images of a pass in validation."""


@dataclass(frozen=True)
class Epoch:
    """What is told after each epoch; 0 is the network before any."""

    epoch: int
    """its number"""
    epochs: int
    """how many there may be"""
    train_loss: float | None
    """mean over the steps, with label smoothing; None of epoch 0"""
    validation_loss: float
    """mean cross-entropy of the validation images, without smoothing"""
    validation_accuracy: float
    """share of them that is called right"""
    seconds: float
    """time that it took"""
    is_best: bool
    """whether it is the best so far"""
    learning_rates: Mapping[str, float]
    """by block, in its last step"""


class Loop:
    """Trains the learning part of a network.

    Parameters
    ----------
    network
        The whole network, its head in place, on its device.
    head, groups
        What learns.
    divided
        The network in its two parts.
    source
        Feeds them.
    labels
        (n,) class of each image.
    training, validation
        Positions of the images of both parts.
    classes
        Number of classes, k.
    options
        How.
    folder
        Of the job: where checkpoints are written.
    """

    def __init__(
        self,
        network: nn.Module,
        head: Head,
        groups: Sequence[Group],
        divided: Divided,
        source: Source,
        *,
        labels: NDArray[np.int64],
        training: NDArray[np.int64],
        validation: NDArray[np.int64],
        classes: int,
        options: TuningOptions,
        folder: Path,
    ) -> None:
        self.head, self.groups, self.divided, self.source = head, tuple(groups), divided, source
        self._network, self._model = network, divided.learning
        self._labels, self._training, self._validation = labels, training, validation
        self._options, self._folder = options, folder
        parameters = dict(network.named_parameters())
        self._blocks: dict[str, dict[str, nn.Parameter]] = {
            group.name: {name: parameters[name] for name in group.tensors} for group in groups
        }
        self._blocks[HEAD] = {name: parameters[name] for name in parameters if name.startswith(f"{head.name}.")}
        self.rates = peak_rates(groups, options)
        self._begins = first_epochs(groups, options)
        self._steps = -(-len(training) // options.batch_size)
        device = next(iter(self._blocks[HEAD].values())).device
        self._device = device
        self.optimizer = make_optimizer(self._blocks, self.rates, options)
        weights = class_weights(labels[training], classes, device) if options.class_weight else None
        self._stepper = Stepper(self._model, self.optimizer, options, weights)
        self._mix = mixer(options, classes)
        self.learned = self._tensors_that_learn()
        """all tensors of the network that training changes, by name"""
        self._average: dict[str, Tensor] = {}

    def resume(self, state: TuningState) -> None:
        """Go back to where a checkpoint was written."""
        with torch.no_grad():
            for name, tensor in self.learned.items():
                tensor.copy_(state.tensors[name])
        self._average = {name: tensor.to(self._device) for name, tensor in state.average.items()}
        if state.optimizer:
            self.optimizer.load_state_dict(state.optimizer)
            self._stepper.scaler.load_state_dict(state.scaler)
        self._stepper.at_once = state.at_once or self._stepper.at_once

    def run(self, state: TuningState, told: Callable[[Epoch], None]) -> TuningState:
        """Train to the end, or until no epoch has been better for a while; gives the last state.

        Torch's random state stays as it was.

        Raises
        ------
        TuningDivergedError
            When the loss is no number any more; the last checkpoint stays.
        """
        with torch.random.fork_rng(devices=[self._device] if self._device.type == "cuda" else []):
            if not state.history:
                state.unseen = [str(row) for row in sorted(self.source.skipped)]
                began = time.monotonic()
                loss, accuracy = self.validate()
                self._conclude(
                    state, Epoch(0, self._options.epochs, None, loss, accuracy, _since(began), False, {}), told
                )
            while state.epoch < self._options.epochs and not self._is_stale(state):
                began = time.monotonic()
                number = state.epoch + 1
                train_loss, rates = self._epoch(number)
                with self._averaged():
                    loss, accuracy = self.validate()
                    if not math.isfinite(loss):
                        raise diverged(f"epoch {number}, validation", loss)
                    counts = number > self._options.head_epochs or len(self._blocks) == 1
                    better = counts and (state.best is None or loss < state.best.loss)
                    if better:
                        state.best = Best(number, loss, self._copies(self.learned))
                found = Epoch(number, self._options.epochs, train_loss, loss, accuracy, _since(began), better, rates)
                self._conclude(state, found, told)
        return state

    def validate(self) -> tuple[float, float]:
        """Give mean cross-entropy and accuracy over the validation images, as the network is now.

        Raises
        ------
        TuningError
            When none of these images can be read.
        """
        self._model.eval()
        lost, right, n = 0.0, 0, 0
        with torch.no_grad():
            for inputs, rows in self.source.plain(self._validation.tolist(), VALIDATE):
                targets = torch.from_numpy(self._labels[rows]).to(self._device)
                sums = self._model(*inputs)  # (B, k)
                lost += float(functional.cross_entropy(sums, targets, reduction="sum"))
                right += int((sums.argmax(1) == targets).sum())
                n += len(rows)
        if not n:
            why = next((self.source.skipped[row] for row in self._validation.tolist()), "there are none")
            raise TuningError(
                f"validation: none of its {len(self._validation)} images can be read ({why}), so that no epoch can be "
                "chosen; take a larger validation, another seed, or replace these files"
            )
        return lost / n, right / n

    def feed(self, epoch: int) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
        """Give the batches of an epoch, crossing tensors and targets."""
        order = np.random.default_rng(seed_of("order", self._options.seed, epoch)).permutation(self._training)
        batches = [part.tolist() for part in np.array_split(order, self._steps)]
        if self._mix is not None:
            for rows, pixels in self.source.pixels(batches, epoch):
                mixed, shares = self._mix(pixels, torch.from_numpy(self._labels[rows]).to(self._device))
                yield self.source.frozen(mixed), shares
            return
        for fed in self.source.training(batches, epoch):
            if len(fed.rows):
                yield fed.inputs, self._targets(fed)

    def take(self, inputs: Sequence[Tensor], targets: Tensor, where: str) -> float:
        """Take one step; see ``Stepper.take``."""
        return self._stepper.take(inputs, targets, where=where)

    def unlock(self, epoch: int) -> None:
        """Let those blocks learn whose time has come, and set the mode of the network."""
        for block, named in self._blocks.items():
            for parameter in named.values():
                parameter.requires_grad_(self._begins[block] <= epoch)
        self._model.train()

    def _epoch(self, number: int) -> tuple[float, dict[str, float]]:
        torch.manual_seed(seed_of("epoch", self._options.seed, number))
        self.unlock(number)
        losses, rates = [], dict[str, float]()
        begins = {block: (first - 1) * self._steps for block, first in self._begins.items()}
        for step, (inputs, targets) in enumerate(self.feed(number)):
            rates = set_rates(
                self.optimizer,
                self.rates,
                step=(number - 1) * self._steps + step,
                steps=self._options.epochs * self._steps,
                begins=begins,
                warmup=self._options.warmup,
            )
            losses.append(self.take(inputs, targets, f"epoch {number}, step {step + 1} of {self._steps}"))
            self._add_to_average(number, step)
        return sum(losses) / max(1, len(losses)), rates

    def _add_to_average(self, number: int, step: int) -> None:
        """Average over the steps since the backbone began to learn."""
        decay = self._options.average
        if not decay or number <= self._options.head_epochs:
            return
        done = (number - 1 - self._options.head_epochs) * self._steps + step
        decay = min(decay, (1 + done) / (10 + done))  # the first steps are soon forgotten
        with torch.no_grad():
            for name, tensor in self.learned.items():
                if name not in self._average or not tensor.is_floating_point():
                    self._average[name] = tensor.detach().clone()
                else:
                    self._average[name].lerp_(tensor.detach(), 1 - decay)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Have the averages in the network's place for a while."""
        if not self._average:
            yield
            return
        held = {name: tensor.detach().clone() for name, tensor in self.learned.items()}
        with torch.no_grad():
            for name, tensor in self.learned.items():
                tensor.copy_(self._average[name])
        try:
            yield
        finally:
            with torch.no_grad():
                for name, tensor in self.learned.items():
                    tensor.copy_(held[name])

    def _conclude(self, state: TuningState, found: Epoch, told: Callable[[Epoch], None]) -> None:
        values = {key: value for key, value in vars(found).items() if key not in ("epochs", "is_best")}
        state.history.append({**values, "learning_rates": dict(found.learning_rates)})
        state.epoch = found.epoch
        state.seconds += found.seconds
        state.tensors, state.average = self._copies(self.learned), self._copies(self._average)
        state.optimizer = self.optimizer.state_dict() if found.epoch else {}
        state.scaler = self._stepper.scaler.state_dict()
        state.at_once = self._stepper.at_once
        state.skipped |= {str(row): why for row, why in self.source.skipped.items()}
        write_state(self._folder, state)
        told(found)

    def _is_stale(self, state: TuningState) -> bool:
        """Say whether no epoch has been better for as long as is waited for."""
        if not self._options.patience or state.best is None:
            return False
        return state.epoch - state.best.epoch >= self._options.patience

    def _tensors_that_learn(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {name: p for named in self._blocks.values() for name, p in named.items()}
        if self._options.batch_norm == "train":
            norms = {
                name.rpartition(".")[0]
                for name in found
                if isinstance(
                    self._network.get_submodule(name.rpartition(".")[0]),
                    nn.modules.batchnorm._BatchNorm,  # noqa: SLF001
                )
            }
            found |= {name: b for name, b in self._network.named_buffers() if name.rpartition(".")[0] in norms}
        return found

    def _targets(self, fed: Fed) -> Tensor:
        return torch.from_numpy(self._labels[fed.rows]).to(self._device)

    @staticmethod
    def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}


def _since(began: float) -> float:
    seconds = time.monotonic() - began
    return seconds if math.isfinite(seconds) else 0.0
