"""Regression on targets of any size, with a model that answers in their own units.

Training a network wants targets of mean 0 and spread 1, its user wants dollars. Rather than scaling what goes in and
out of the model, which every later user of the checkpoint would have to know, the last layer alone is given the scale:
it starts at the mean of the training targets with weights of their spread, its learning rate is multiplied by the
spread (an Adam step has the size of the learning rate whatever the gradient's), and the loss that is differentiated is
divided by their variance. That is training on standardised targets, written in the targets' own units.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch


class TargetScale(NamedTuple):
    """Mean and standard deviation of the training targets."""

    mean: float
    spread: float

    @classmethod
    def of(cls, targets: Sequence[float]):
        return cls(float(np.mean(targets)), float(np.std(targets)) or 1.0)


@torch.no_grad()
def start_at(scale: TargetScale, head: torch.nn.Linear) -> None:
    """Puts a fresh last layer (out_features 1) at the scale of the targets."""
    head.bias.fill_(scale.mean)
    head.weight.mul_(scale.spread)


class ScaledTargets:
    """What makes a `Trainer` train at the scale of the targets: `class MyTrainer(ScaledTargets, Trainer)`."""

    target_scale: TargetScale | None = None  # for regression

    def create_optimizer(self, *args, **kwargs):
        """The last layer in parameter groups of its own, with `spread` times the learning rate."""
        optimizer = super().create_optimizer(*args, **kwargs)
        if self.target_scale is None:
            return optimizer
        spread = self.target_scale.spread
        of_head = {id(p) for p in self.accelerator.unwrap_model(self.model).classifier.parameters()}
        for group in list(optimizer.param_groups):
            moved = [p for p in group["params"] if id(p) in of_head]
            if moved:
                group["params"] = [p for p in group["params"] if id(p) not in of_head]
                # decay is a share of the learning rate: it stays what it was
                change = {"lr": group["lr"] * spread, "weight_decay": group["weight_decay"] / spread}
                optimizer.add_param_group({**group, "params": moved, **change})
        return optimizer

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        """What is differentiated, in variances of the targets."""
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        if self.target_scale is not None and model.training:
            loss = loss / self.target_scale.spread**2
        return (loss, outputs) if return_outputs else loss

    def log(self, logs, *args, **kwargs):
        """The training loss in the units of the evaluation's."""
        for name in {"loss", "train_loss"} & logs.keys() if self.target_scale is not None else ():
            logs[name] *= self.target_scale.spread**2
        super().log(logs, *args, **kwargs)
