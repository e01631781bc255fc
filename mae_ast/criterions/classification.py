"""fairseq criterion ``mae_ast_classification``: cross entropy, or a sigmoid for each class.

The loss is a sum over clips, and ``sample_size`` their number, so gradients are means over the
clips of all workers.
"""

# No postponed annotations here: fairseq reads the types of the fields.
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import FairseqDataclass
from fairseq.logging import metrics
from torch.nn import functional as F

from mae_ast.core.models.classifier import to_scores
from mae_ast.criterions.score_meter import names_of

LOSSES = ("auto", "cross_entropy", "bce")


@dataclass
class ClassificationCriterionConfig(FairseqDataclass):  # type: ignore[misc]
    """``criterion.*``."""

    loss: str = field(
        default="auto",
        metadata={
            "help": "'cross_entropy' over all classes, 'bce': binary for each class, or 'auto': "
            "bce where task.multi_label is true, else cross_entropy"
        },
    )
    label_smoothing: float = field(
        default=0.0, metadata={"help": "share of the target spread over all classes in training"}
    )


@register_criterion("mae_ast_classification", dataclass=ClassificationCriterionConfig)
class ClassificationCriterion(FairseqCriterion):  # type: ignore[misc]
    """Loss, and in validation the scores themselves."""

    def __init__(self, task: Any, loss: str, label_smoothing: float) -> None:
        super().__init__(task)
        if loss not in LOSSES:
            raise ValueError(f"criterion.loss={loss!r}; it is one of {', '.join(LOSSES)}")
        if not 0 <= label_smoothing < 1:
            raise ValueError(
                f"criterion.label_smoothing={label_smoothing}; a share from 0 to below 1"
            )
        self.multi_label = task.cfg.multi_label
        if loss == "cross_entropy" and self.multi_label:
            raise ValueError(
                "criterion.loss=cross_entropy wants one label a clip; with task.multi_label=true "
                "it is bce or auto"
            )
        self.independent = loss == "bce" or self.multi_label
        self.label_smoothing = label_smoothing
        self.trained_samples = task.cfg.max_sample_size or 0
        self.outputs: tuple[torch.Tensor, ...] = ()  # ids, scores, targets of the last batch
        self.valid_metrics = ("loss", *names_of(self.multi_label))

    def forward(
        self, model: torch.nn.Module, sample: dict[str, Any]
    ) -> tuple[torch.Tensor, int, dict[str, Any]]:
        """Loss summed over clips, their number, and what is logged."""
        num_clips = sample["nsentences"]
        target = sample["target"].view(torch.float32)
        logits = self._logits(model, sample["net_input"])[:num_clips]  # none of a batch of nothing
        loss = self.loss(logits, target)
        logging_output: dict[str, Any] = {
            "loss": loss.detach(),
            "sample_size": num_clips,
            "nsentences": num_clips,
            "ntokens": sample["num_samples"],
            "num_samples": sample["num_samples"],
        }
        if self.training:
            if not self.multi_label:
                logging_output["num_correct"] = (logits.argmax(1) == target.argmax(1)).sum()
        else:
            self.outputs = sample["id"], to_scores(logits.detach(), self.independent), target
        return loss, num_clips, logging_output

    def _logits(self, model: torch.nn.Module, net_input: dict[str, Any]) -> torch.Tensor:
        """Return logits of training clips as cropped, of validation clips as a whole."""
        if self.training:
            cropped: torch.Tensor = model(**net_input)
            return cropped
        whole: torch.Tensor = model.clip_logits(  # type: ignore[operator]
            net_input["source"], net_input["lengths"], self.independent, self.trained_samples
        )
        return whole

    def loss(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Summed over clips; that of sigmoids is a mean over classes."""
        smoothing = self.label_smoothing if self.training else 0.0
        target = target * (1 - smoothing) + smoothing / target.shape[1]
        if self.independent:
            each = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
            return each.mean(1).sum()
        return F.cross_entropy(logits, target, reduction="sum")

    @staticmethod
    def reduce_metrics(logging_outputs: Sequence[dict[str, Any]]) -> None:
        """Means over the clips of all workers; the loss is in nats."""

        def total(key: str) -> Any:
            return sum(log.get(key, 0) for log in logging_outputs)

        num_clips = total("sample_size")
        if num_clips == 0:  # a step without any usable clip; fairseq would log -1
            metrics.log_scalar("loss", 0.0, weight=0)
            return
        # Not rounded: that would fetch each value from the device in each step.
        metrics.log_scalar("loss", total("loss") / num_clips, num_clips)
        if any("num_correct" in log for log in logging_outputs):
            metrics.log_scalar("accuracy", total("num_correct") / num_clips, num_clips)
        metrics.log_speed("clips_per_s", num_clips, priority=90, round=1)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """Everything logged is a sum."""
        return True
