"""fairseq criterion ``mae_ast``: 10 * mean squared error + InfoNCE over masked patches.

All logged values are sums, so one all-reduce combines several workers. ``sample_size`` is the
number of masked patches, so gradients are means over the masked patches of all workers.
"""

# No postponed annotations: fairseq reads the field types at run time.
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import FairseqDataclass
from fairseq.logging import metrics

from mae_ast.core.frontend.masking import MaskIds
from mae_ast.core.models.losses import info_nce_loss, reconstruction_loss
from mae_ast.core.settings import setting

INFO_NCE_METRICS = ("info_nce", "info_nce_accuracy", "info_nce_chance")


@dataclass
class MaeAstCriterionConfig(FairseqDataclass):  # type: ignore[misc]
    """Settings under ``criterion.*``."""

    reconstruction_weight: float = setting(
        10.0,
        help="weight of the reconstruction loss (mean squared error over masked patches); 0 "
        "disables the loss and its head",
    )
    classification_weight: float = setting(
        1.0, help="weight of the InfoNCE loss over masked patches; 0 disables the loss and its head"
    )


@register_criterion("mae_ast", dataclass=MaeAstCriterionConfig)
class MaeAstCriterion(FairseqCriterion):  # type: ignore[misc]
    """Weighted sum of the reconstruction loss and InfoNCE."""

    def __init__(
        self, task: Any, reconstruction_weight: float, classification_weight: float
    ) -> None:
        super().__init__(task)
        if min(reconstruction_weight, classification_weight) < 0 or not (
            reconstruction_weight or classification_weight
        ):
            raise ValueError(
                f"criterion.reconstruction_weight={reconstruction_weight:g} and "
                f"criterion.classification_weight={classification_weight:g}: neither may be "
                "negative, and at least one must be positive"
            )
        self.reconstruction_weight = reconstruction_weight
        self.classification_weight = classification_weight
        self.valid_metrics = (
            *("loss", "mask_ratio"),
            *(("mse",) if reconstruction_weight else ()),
            *(INFO_NCE_METRICS if classification_weight else ()),
        )

    def forward(
        self, model: torch.nn.Module, sample: dict[str, Any]
    ) -> tuple[torch.Tensor, int, dict[str, Any]]:
        """Return the loss summed over masked patches, their number, and the values to log."""
        inputs = sample["net_input"]
        mask = MaskIds.of(inputs["mask"])
        prediction = model(inputs["source"], inputs["lengths"], mask)
        num_masked = sample["num_masked"]
        logging_output: dict[str, Any] = {
            "ntokens": sample["num_visible"] + num_masked,
            "nsentences": sample["nsentences"],
            "num_samples": sample["num_samples"],
            "sample_size": num_masked,
        }
        loss = torch.zeros((), device=prediction.target.device)
        if self.reconstruction_weight:
            mse = reconstruction_loss(
                prediction.reconstruction, prediction.target, prediction.valid
            )
            loss = loss + self.reconstruction_weight * mse
            logging_output["mse"] = mse.detach()
        if self.classification_weight:
            nce = info_nce_loss(
                prediction.classification, prediction.target, prediction.valid, prediction.ends
            )
            loss = loss + self.classification_weight * nce.loss
            logging_output["info_nce"] = nce.loss.detach()
            logging_output["num_correct"] = nce.num_correct
        logging_output["loss"] = loss.detach()
        return loss, num_masked, logging_output

    @staticmethod
    def reduce_metrics(logging_outputs: Sequence[dict[str, Any]]) -> None:
        """Log means over the masked patches of all workers; InfoNCE is in nats.

        ``info_nce_chance`` is the accuracy of random guessing: one correct patch per clip.
        """

        def total(key: str) -> Any:
            return sum(log.get(key, 0) for log in logging_outputs)

        num_masked, ntokens = total("sample_size"), total("ntokens")
        if num_masked == 0:  # no usable clip in this step: fairseq would log -1
            metrics.log_scalar("loss", 0.0, weight=0)
            return
        per_masked = {"loss": "loss", "mse": "mse", "info_nce": "info_nce"}
        per_masked["info_nce_accuracy"] = "num_correct"
        for name, key in per_masked.items():
            if any(key in log for log in logging_outputs):
                # Not rounded, because rounding would fetch the value from the device in each step.
                metrics.log_scalar(name, total(key) / num_masked, num_masked)
        if any("num_correct" in log for log in logging_outputs):
            chance = total("nsentences") / num_masked
            metrics.log_scalar("info_nce_chance", chance, num_masked, round=4)
        metrics.log_scalar("mask_ratio", num_masked / ntokens, ntokens, round=3)
        metrics.log_speed("clips_per_s", total("nsentences"), priority=90, round=1)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """Return True: all logged values are sums."""
        return True
