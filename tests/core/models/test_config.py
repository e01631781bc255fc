"""MAE-AST's default configuration, and masks that its patches do not suit."""

from __future__ import annotations

import pytest

from mae_ast.core.frontend.patches import PatchShape
from mae_ast.core.models.config import MaeAstConfig


def test_default_configuration_is_valid():
    config = MaeAstConfig()
    config.check_pretraining("chunk_mask")
    assert config.patch_shape == PatchShape(time=16, mel=16)


@pytest.mark.parametrize(
    ("mask_type", "fields", "message"),
    [
        ("chunk_mask", {"ast_kernel_stride_chan": 8}, "stride_chan=8 .*ast_kernel_size_chan=16"),
        ("retain_spans", {"random_mask_prob": 1.45}, "ast_kernel_size_chan=128"),
    ],
)
def test_masks_that_do_not_fit_the_patches_are_refused(mask_type, fields, message):
    config = MaeAstConfig(**fields)
    with pytest.raises(ValueError, match=message):
        config.check_pretraining(mask_type)
