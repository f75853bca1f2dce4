"""Regression on targets of any size, with a model that predicts in their own units.

Training a network wants targets of mean 0 and standard deviation 1, its user wants dollars. Rather than scaling what
goes in and out of the model, which every later user of the checkpoint would have to know, only the last layer is given
the scale: it starts at the mean of the training targets with weights of their standard deviation, its learning rate is
multiplied by that (an Adam step has the size of the learning rate whatever the gradient's), and the loss that is
differentiated is divided by their variance. That is training on standardised targets, in the targets' own units.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import Trainer


class TargetScale(NamedTuple):
    """Mean and standard deviation of the training targets."""

    mean: float
    spread: float

    @classmethod
    def of(cls, targets: Sequence[float]) -> "TargetScale":
        """The scale of these targets; the standard deviation of equal ones counts as 1."""
        return cls(float(np.mean(targets)), float(np.std(targets)) or 1.0)


@torch.no_grad()
def init_regression_head(head: torch.nn.Linear, scale: TargetScale) -> None:
    """Sets a fresh last layer (out_features 1) to the scale of the targets."""
    head.bias.fill_(scale.mean)
    head.weight.mul_(scale.spread)


class ScaledTargetsTrainer(Trainer):
    """transformers' Trainer, which trains at the scale of the targets where `target_scale` is set."""

    target_scale: TargetScale | None = None  # for regression

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
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

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """The loss to differentiate, in variances of the targets; with `return_outputs` also the outputs."""
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if self.target_scale is not None and model.training:
            loss = loss / self.target_scale.spread**2
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Logs the training loss in the units of the evaluation's."""
        if self.target_scale is not None:
            for name in {"loss", "train_loss"} & logs.keys():
                logs[name] *= self.target_scale.spread**2  # in place: Trainer also returns this very dict
        super().log(logs, *args, **kwargs)
