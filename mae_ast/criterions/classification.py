"""fairseq criterion ``mae_ast_classification``: cross entropy, or binary cross entropy per class.

The loss is summed over clips and ``sample_size`` is their number, so gradients are means over the
clips of all workers.
"""

# No postponed annotations: fairseq reads the field types at run time.
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import FairseqDataclass
from fairseq.logging import metrics
from torch.nn import functional as F

from mae_ast.core.models.classifier import to_scores
from mae_ast.core.settings import check_fields, setting
from mae_ast.criterions.score_meter import metric_names

LOSSES = ("auto", "cross_entropy", "bce")


@dataclass
class ClassificationCriterionConfig(FairseqDataclass):  # type: ignore[misc]
    """Settings under ``criterion.*``."""

    loss: str = setting(
        "auto",
        help="'cross_entropy' (softmax over all classes), 'bce' (binary cross entropy per class), "
        "or 'auto': bce if task.multi_label is true, else cross_entropy",
        choices=LOSSES,
    )
    label_smoothing: float = setting(
        0.0,
        help="fraction of each training target that is spread evenly over all classes; 0: no "
        "smoothing",
        probability=True,
    )


@register_criterion("mae_ast_classification", dataclass=ClassificationCriterionConfig)
class ClassificationCriterion(FairseqCriterion):  # type: ignore[misc]
    """Classification loss; in validation it also returns scores, for metrics over all clips."""

    def __init__(self, task: Any, loss: str, label_smoothing: float) -> None:
        super().__init__(task)
        check_fields(
            ClassificationCriterionConfig(loss=loss, label_smoothing=label_smoothing),
            section="criterion.",
        )
        self.multi_label = task.cfg.multi_label
        if loss == "cross_entropy" and self.multi_label:
            raise ValueError(
                "criterion.loss=cross_entropy needs one label per clip; with task.multi_label=true "
                "set it to bce or auto"
            )
        self.uses_sigmoid = loss == "bce" or self.multi_label
        self.label_smoothing = label_smoothing
        self.trained_samples = task.cfg.max_sample_size or 0
        self.valid_metrics = ("loss", *metric_names(self.multi_label))

    def forward(
        self, model: torch.nn.Module, sample: dict[str, Any]
    ) -> tuple[torch.Tensor, int, dict[str, Any]]:
        """Return the loss summed over clips, the number of clips, and the values to log."""
        num_clips = sample["nsentences"]
        target = sample["target"].view(torch.float32)
        # A batch without a usable clip holds one dummy clip: no logits are left of it.
        logits = self._logits(model, sample["net_input"])[:num_clips]
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
            scores = to_scores(logits.detach(), self.uses_sigmoid)
            logging_output["scores"] = sample["id"], scores, target  # taken by the task
        return loss, num_clips, logging_output

    def _logits(self, model: torch.nn.Module, net_input: dict[str, Any]) -> torch.Tensor:
        """Return the logits (B, C) of the cropped training clips or the whole validation clips."""
        if self.training:
            cropped: torch.Tensor = model(**net_input)
            return cropped
        whole: torch.Tensor = model.clip_logits(  # type: ignore[operator]
            net_input["source"], net_input["lengths"], self.uses_sigmoid, self.trained_samples
        )
        return whole

    def loss(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the loss summed over clips; binary cross entropy is averaged over classes."""
        smoothing = self.label_smoothing if self.training else 0.0
        target = target * (1 - smoothing) + smoothing / target.shape[1]
        if self.uses_sigmoid:
            per_class = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
            return per_class.mean(1).sum()
        return F.cross_entropy(logits, target, reduction="sum")

    @staticmethod
    def reduce_metrics(logging_outputs: Sequence[dict[str, Any]]) -> None:
        """Log means over the clips of all workers; the loss is in nats."""

        def total(key: str) -> Any:
            return sum(log.get(key, 0) for log in logging_outputs)

        num_clips = total("sample_size")
        if num_clips == 0:  # no usable clip in this step: fairseq would log -1
            metrics.log_scalar("loss", 0.0, weight=0)
            return
        # Not rounded, because rounding would fetch the value from the device in each step.
        metrics.log_scalar("loss", total("loss") / num_clips, num_clips)
        if any("num_correct" in log for log in logging_outputs):
            metrics.log_scalar("accuracy", total("num_correct") / num_clips, num_clips)
        metrics.log_speed("clips_per_s", num_clips, priority=90, round=1)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """Return True: all logged values are sums."""
        return True
