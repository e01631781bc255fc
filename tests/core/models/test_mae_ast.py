"""MAE-AST equals a slow implementation; masked patches and padding do not leak."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from mae_ast.core.frontend.fbank import fbank, num_frames
from mae_ast.core.frontend.masking import MaskIds, pad_mask_ids, random_mask
from mae_ast.core.models.config import MaeAstConfig
from mae_ast.core.models.encoder import Prediction
from mae_ast.core.models.losses import info_nce_loss, reconstruction_loss
from mae_ast.core.models.mae_ast import MaeAst
from tests.sounds import pcm16, speech_like

KERNELS = [(16, 16), (2, 128), (8, 32), (4, 64)]  # frames, mel bins
STATS = {"input_stats": "fixed", "input_mean": -8.0, "input_std": 4.0}


def build(config: MaeAstConfig) -> MaeAst:
    """Build a model with weights larger than at initialisation, so that errors are visible."""
    model = MaeAst(config)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.15)
            nn.init.normal_(module.bias, std=0.1)
        if isinstance(module, nn.LayerNorm):
            nn.init.normal_(module.weight, mean=1.0, std=0.1)
            nn.init.normal_(module.bias, std=0.1)
    return model


class Clips:
    """Clips with a mask for each, single and as a padded batch."""

    def __init__(self, config: MaeAstConfig, *lengths: int, ratio: float = 0.75) -> None:
        self.waves = [pcm16(speech_like(n, seed)) for seed, n in enumerate(lengths)]
        generator = torch.Generator().manual_seed(1)
        shape = config.patch_shape
        self.masks = [random_mask(1, shape.grid(num_frames(n)), ratio, generator) for n in lengths]
        self.mask = pad_mask_ids(self.masks)
        self.source = nn.utils.rnn.pad_sequence(self.waves, batch_first=True)
        is_padded = len(set(lengths)) > 1
        self.lengths = torch.tensor(lengths) if is_padded else None
        self.num_masked = sum(mask.masked_ids.shape[1] for mask in self.masks)

    def predict(self, model: MaeAst) -> Prediction:
        mask = self.mask
        return model(self.source, self.lengths, mask)

    def loss(self, model: MaeAst) -> Tensor:
        return loss_of(self.predict(model)) / self.num_masked


def loss_of(prediction: Prediction) -> Tensor:
    mse = reconstruction_loss(prediction.reconstruction, prediction.target, prediction.valid)
    nce = info_nce_loss(prediction.classification, prediction.target, prediction.valid)
    return 10 * mse + nce.loss


def position(n: int, dim: int) -> Tensor:
    angles = [n / 10000 ** (2 * (c // 2) / dim) for c in range(dim)]
    return torch.tensor([math.cos(a) if c % 2 else math.sin(a) for c, a in enumerate(angles)])


@torch.no_grad()
def slow_loss(model: MaeAst, config: MaeAstConfig, clips: Clips) -> float:
    """Compute the loss clip by clip and patch by patch with the modules of the model."""
    spectra = [fbank(wave.unsqueeze(0))[0] for wave in clips.waves]
    mean, var = model.batch_norm.running_mean, model.batch_norm.running_var
    if model.training and config.input_stats == "batch":
        values = torch.cat([spectrum.flatten() for spectrum in spectra]).double()
        mean, var = values.mean().float(), values.var(correction=0).float()
    p_t, p_f = config.ast_kernel_size_time, config.ast_kernel_size_chan
    total, num_masked = 0.0, 0
    for spectrum, mask in zip(spectra, clips.masks, strict=True):
        spectrum = (spectrum - mean) / (var + 1e-5).sqrt() * 0.5
        patches = [
            spectrum[t : t + p_t, f : f + p_f].flatten()
            for t in range(0, len(spectrum) - p_t + 1, p_t)
            for f in range(0, 128, p_f)
        ]
        visible = mask.visible_ids[0].tolist()
        masked = [n for n in range(len(patches)) if n not in visible]
        tokens = [
            model.post_extract_proj(patches[n]) + position(n, config.encoder_embed_dim)
            for n in visible
        ]
        encoded = model.encoder(torch.stack(tokens).unsqueeze(0))[0]
        inputs = []
        for n in range(len(patches)):
            token = model.decoder_mask_emb
            if n in visible:
                token = model.post_enc_proj(encoded[visible.index(n)])
            inputs.append(token + position(n, config.decoder_embed_dim))
        decoded = model.decoder(torch.stack(inputs).unsqueeze(0))[0]
        for n in masked:
            error = model.final_proj_reconstruction(decoded[n]) - patches[n]
            query = model.final_proj_classification(decoded[n])
            scores = torch.stack([query @ patches[other] for other in masked])
            nce = -scores.log_softmax(dim=0)[masked.index(n)]
            total += float(10 * error.square().mean() + nce)
        num_masked += len(masked)
    return total / num_masked


VARIANTS = [
    {},
    {"layer_norm_first": True},
    {"decoder_embed_dim": 48, "decoder_attention_heads": 6, "decoder_ffn_embed_dim": 20},
    {"input_stats": "fixed", "input_mean": -8.0, "input_std": 4.0},
]


@pytest.mark.parametrize("fields", VARIANTS, ids=lambda fields: ",".join(fields) or "plain")
@pytest.mark.parametrize("lengths", [(16_000, 16_000), (12_000, 3_000, 7_777)], ids=str)
def test_loss_equals_a_slow_implementation(small_config, fields, lengths):
    config = small_config(**fields)
    model = build(config).train()
    clips = Clips(config, *lengths)
    assert clips.mask.padded == (len(lengths) == 3)
    loss = clips.loss(model).item()
    assert loss == pytest.approx(slow_loss(model, config, clips), rel=1e-5)


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_loss_equals_a_slow_implementation_for_each_kernel(small_config, kernel):
    config = small_config(kernel)
    model = build(config).train()
    clips = Clips(config, 8_000, 5_000)
    assert clips.loss(model).item() == pytest.approx(slow_loss(model, config, clips), rel=1e-5)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert shapes["post_extract_proj.weight"] == (32, kernel[0] * kernel[1])
    assert shapes["final_proj_reconstruction.weight"] == (kernel[0] * kernel[1], 32)


def test_eval_uses_the_running_statistics(small_config):
    config = small_config()
    model = build(config)
    model.batch_norm.running_mean.fill_(-7.0)
    model.batch_norm.running_var.fill_(9.0)
    clips = Clips(config, 8_000, 8_000)
    before = slow_loss(model.eval(), config, clips)
    assert clips.loss(model).item() == pytest.approx(before, rel=1e-5)
    assert clips.loss(model.train()).item() != pytest.approx(before, rel=1e-3)
    assert model.batch_norm.running_mean.item() != -7.0


@pytest.mark.parametrize("lengths", [(8_000, 8_000), (8_000, 3_000)], ids=str)
@pytest.mark.parametrize("fields", VARIANTS, ids=lambda fields: ",".join(fields) or "plain")
def test_every_parameter_gets_a_gradient(small_config, fields, lengths):
    config = small_config(encoder_layerdrop=0.3, **fields)
    model = build(config).train()
    Clips(config, *lengths).loss(model).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool(torch.isfinite(parameter.grad).all()), name


def test_no_gradient_is_zero_without_layerdrop(small_config):
    config = small_config(decoder_embed_dim=48)
    model = build(config).train()
    Clips(config, 8_000, 8_000).loss(model).backward()
    for name, parameter in model.named_parameters():
        if name.endswith("k_proj.bias"):  # shifts all scores of a query equally: no effect
            continue
        assert bool(parameter.grad.any()), name


def capture_encoder_output(model: MaeAst, source: Tensor, mask: MaskIds) -> Tensor:
    caught = []
    handle = model.encoder.register_forward_hook(lambda *args: caught.append(args[2]))
    model(source, None, mask)
    handle.remove()
    return caught[0]


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_masked_patches_do_not_reach_the_encoder(small_config, kernel):
    config = small_config(kernel, **STATS)
    model = build(config).train()
    shape = config.patch_shape
    mask = random_mask(2, shape.grid(64), 0.75, torch.Generator().manual_seed(0))
    source = torch.randn(2, 64, 128)
    hidden = torch.zeros(2, 64 // kernel[0] * shape.per_column, dtype=torch.bool)
    hidden = hidden.scatter(1, mask.masked_ids, True).view(2, -1, shape.per_column)
    hidden = hidden.repeat_interleave(kernel[0], 1).repeat_interleave(kernel[1], 2)
    elsewhere = torch.where(hidden, 50 * torch.randn(2, 64, 128), source)
    encoded = capture_encoder_output(model, source, mask)
    assert encoded.shape == (2, mask.visible_ids.shape[1], 32)
    assert torch.equal(capture_encoder_output(model, elsewhere, mask), encoded)
    moved = torch.where(hidden, source, source + 0.1)
    assert not torch.equal(capture_encoder_output(model, moved, mask), encoded)

    source.requires_grad_()
    capture_encoder_output(model, source, mask).square().sum().backward()
    assert not source.grad[hidden].any()
    assert bool((source.grad[~hidden] != 0).all())


def test_prediction_of_a_patch_does_not_depend_on_its_target(small_config):
    config = small_config(**STATS)
    model = build(config).train()
    clips = Clips(config, 8_000)
    source = fbank(clips.source)
    changed = source.clone()
    first = int(clips.mask.masked_ids[0, 0])
    t, f = divmod(first, 8)
    changed[0, 16 * t : 16 * t + 16, 16 * f : 16 * f + 16] += 3.0
    before, after = model(source, None, clips.mask), model(changed, None, clips.mask)
    assert torch.equal(before.reconstruction, after.reconstruction)
    assert torch.equal(before.classification, after.classification)
    assert not torch.equal(before.target[0, 0], after.target[0, 0])


@pytest.mark.parametrize("fields", VARIANTS[:3], ids=lambda fields: ",".join(fields) or "plain")
@pytest.mark.parametrize("kernel", [(16, 16), (2, 128)], ids=str)
def test_loss_of_a_padded_batch_equals_single_clips(small_config, kernel, fields):
    config = small_config(kernel, **fields, **STATS)
    model = build(config).train()
    lengths = (16_000, 9_000, 2_800)
    clips = Clips(config, *lengths)
    together = clips.predict(model)
    assert clips.mask.padded
    total = 0.0
    for row, (wave, mask) in enumerate(zip(clips.waves, clips.masks, strict=True)):
        alone = model(wave.unsqueeze(0), None, mask)
        count = mask.masked_ids.shape[1]
        assert together.valid[row].tolist() == [n < count for n in range(len(together.valid[row]))]
        for name in ("reconstruction", "classification", "target"):
            ours = getattr(together, name)[row, :count]
            assert_close(ours, getattr(alone, name)[0], rtol=1e-5, atol=1e-5)
        total += loss_of(alone).item()
    assert loss_of(together).item() == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("norm_first", [False, True], ids=["post-norm", "pre-norm"])
@pytest.mark.parametrize("kernel", [(16, 16), (2, 128)], ids=str)
def test_hidden_states_of_a_padded_batch_equal_single_clips(small_config, kernel, norm_first):
    config = small_config(kernel, layer_norm_first=norm_first, **STATS)
    model = build(config).eval()
    clips = Clips(config, 16_000, 9_000, 2_800)
    together = model.hidden_states(clips.source, clips.lengths)
    assert len(together) == 2
    for row, wave in enumerate(clips.waves):
        alone = model.hidden_states(wave.unsqueeze(0))
        grid = config.patch_shape.grid(num_frames(len(wave)))
        for ours, own in zip(together, alone, strict=True):
            assert own.shape == (1, grid[0] * grid[1], 32)
            assert_close(ours[row, : own.shape[1]], own[0], rtol=0, atol=1e-5)


def test_hidden_states_are_the_layers_on_all_patches(small_config):
    for norm_first in (False, True):
        model = build(small_config(layer_norm_first=norm_first, **STATS)).eval()
        clips = Clips(small_config(), 8_000)
        patches = model.patches(clips.source, None)
        x = model.post_extract_proj(patches)
        x = x + torch.stack([position(n, 32) for n in range(patches.shape[1])])
        if not norm_first:
            x = model.encoder.layer_norm(x)
        for layer, state in zip(
            model.encoder.layers, model.hidden_states(clips.source), strict=True
        ):
            x = layer(x)
            assert_close(state, x, rtol=0, atol=1e-5)


@pytest.mark.parametrize("lengths", [(16_000, 16_000), (16_000, 9_000)], ids=str)
def test_waveforms_and_their_filterbanks_give_the_same_losses(small_config, lengths):
    config = small_config()
    model = build(config).train()
    clips = Clips(config, *lengths)
    samples, frames = torch.tensor(lengths), torch.tensor([num_frames(n) for n in lengths])
    as_int16, as_float, as_fbank = (
        loss_of(model(source, valid, clips.mask)).item() / clips.num_masked
        for source, valid in (
            (clips.source, samples),
            (clips.source.float() / 32768, samples),
            (fbank(clips.source), frames),
        )
    )
    assert as_float == pytest.approx(as_int16, abs=1e-5)
    assert as_fbank == pytest.approx(as_int16, abs=1e-5)


def test_full_lengths_equal_no_lengths(small_config):
    config = small_config(**STATS)
    model = build(config)
    clips = Clips(config, 8_000, 8_000)
    full = torch.tensor([8_000, 8_000])
    assert torch.equal(
        model(clips.source, None, clips.mask).reconstruction,
        model(clips.source, full, clips.mask).reconstruction,
    )
    for one, other in zip(
        model.hidden_states(clips.source), model.hidden_states(clips.source, full), strict=True
    ):
        assert_close(one, other, rtol=0, atol=1e-5)


def test_bfloat16_is_close_to_float32_with_losses_and_parameters_in_float32(small_config):
    config = small_config(encoder_layers=4, decoder_embed_dim=48, decoder_attention_heads=4)
    exact = build(config).train()
    model = MaeAst(dataclasses.replace(config, precision="bfloat16")).train()
    model.load_state_dict(exact.state_dict())
    for lengths in ((16_000, 16_000), (16_000, 5_000)):
        clips = Clips(config, *lengths)
        prediction = clips.predict(model)
        assert prediction.reconstruction.dtype == torch.bfloat16
        assert prediction.target.dtype == torch.float32
        loss, expected = loss_of(prediction) / clips.num_masked, clips.loss(exact)
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(expected.item(), rel=2e-3)
        assert loss.item() != expected.item()
        loss.backward()
        expected.backward()
        for (name, ours), theirs in zip(model.named_parameters(), exact.parameters(), strict=True):
            assert ours.dtype == ours.grad.dtype == torch.float32, name
            if not name.endswith("k_proj.bias"):
                error = (ours.grad - theirs.grad).norm() / theirs.grad.norm()
                assert error < 0.05, name
    assert model.batch_norm.running_mean.dtype == torch.float32
    assert torch.equal(model.batch_norm.running_mean, exact.batch_norm.running_mean)


def test_autocast_from_outside_reaches_the_transformer_only(small_config):
    """The trainer does this with ``common.amp``."""
    config = small_config()
    model = build(config).eval()
    clips = Clips(config, 8_000, 8_000)
    expected = clips.predict(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        prediction = clips.predict(model)
    assert prediction.reconstruction.dtype == torch.bfloat16
    assert torch.equal(prediction.target, expected.target)
    error = prediction.reconstruction.float() - expected.reconstruction
    assert 0 < error.norm() < 0.02 * expected.reconstruction.norm()


@pytest.mark.parametrize("lengths", [(8_000, 8_000), (8_000, 3_000)], ids=str)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_half_precision_model_runs_and_trains(small_config, lengths, precision):
    config = small_config(precision=precision)
    model = build(config).train()
    clips = Clips(config, *lengths)
    expected = clips.loss(model).item()
    model.half()
    prediction = clips.predict(model)
    assert prediction.reconstruction.dtype == torch.float16
    assert prediction.target.dtype == torch.float32
    loss = clips.loss(model)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=1e-2)
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.dtype == torch.float16, name
        assert bool(torch.isfinite(parameter.grad).all()), name


def test_head_that_is_not_trained_has_no_forward_and_no_gradient(small_config):
    config = small_config()
    model = build(config).train()
    clips = Clips(config, 8_000, 8_000)
    for reconstruction, classification in [(True, False), (False, True), (True, True)]:
        model.zero_grad()
        model.train_heads(reconstruction, classification)
        prediction = clips.predict(model)
        assert (prediction.reconstruction is not None) == reconstruction
        assert (prediction.classification is not None) == classification
        used = prediction.reconstruction if reconstruction else prediction.classification
        used.square().sum().backward()
        for head, is_used in (
            (model.final_proj_reconstruction, reconstruction),
            (model.final_proj_classification, classification),
        ):
            assert all(p.requires_grad == is_used for p in head.parameters())
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        assert len(trained) == len(dict(model.named_parameters())) - 2 * (
            not (reconstruction and classification)
        )
        model.eval()
        assert clips.predict(model).reconstruction is not None
        assert clips.predict(model).classification is not None
        model.train()


def test_model_without_dropout_draws_no_random_numbers(small_config):
    config = small_config()
    model = build(config)
    clips = Clips(config, 8_000, 8_000)
    for mode in (True, False):
        before = torch.get_rng_state()
        model.train(mode)
        clips.predict(model)
        assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "fields",
    [
        {"dropout_input": 0.5},
        {"dropout": 0.5},
        {"attention_dropout": 0.5},
        {"activation_dropout": 0.5},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_each_dropout_acts_in_training_only(small_config, fields):
    config = small_config(**fields, **STATS)
    model = build(config)
    plain = build(small_config(**STATS))
    plain.load_state_dict(model.state_dict())
    clips = Clips(config, 8_000)
    assert clips.loss(model.train()).item() != clips.loss(model).item()
    assert clips.loss(model.eval()).item() == clips.loss(plain.eval()).item()


def test_layerdrop_reaches_encoder_and_decoder(small_config):
    for key in ("encoder_layerdrop", "decoder_layerdrop"):
        model = MaeAst(small_config(**{key: 0.9}))
        stacks = {"encoder_layerdrop": model.encoder, "decoder_layerdrop": model.decoder}
        assert stacks.pop(key).layerdrop == 0.9
        assert stacks.popitem()[1].layerdrop == 0.0


def test_initialisation():
    model = MaeAst(MaeAstConfig(encoder_layers=1, decoder_layers=1))
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert bool((parameter == (1.0 if name.endswith("weight") else 0.0)).all()), name
        elif name.endswith("bias"):
            assert not parameter.any(), name
        elif name != "decoder_mask_emb":
            assert parameter.std().item() == pytest.approx(0.02, rel=0.02), name
    mask_token = model.decoder_mask_emb
    assert mask_token.min() >= 0
    assert mask_token.max() <= 1
    assert mask_token.mean().item() == pytest.approx(0.5, abs=0.05)


def released_state() -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the weights that a released 12 + 2 layer file provides."""
    dim, ffn, patch = 768, 3072, 256
    state: dict[str, tuple[int, ...]] = {
        "decoder_mask_emb": (dim,),
        "batch_norm.running_mean": (1,),
        "batch_norm.running_var": (1,),
        "batch_norm.num_batches_tracked": (),
    }

    def linear(name: str, width: int, source_width: int) -> None:
        state[f"{name}.weight"] = (width, source_width)
        state[f"{name}.bias"] = (width,)

    def norm(name: str) -> None:
        state[f"{name}.weight"] = state[f"{name}.bias"] = (dim,)

    linear("post_extract_proj", dim, patch)
    linear("final_proj_reconstruction", patch, dim)
    linear("final_proj_classification", patch, dim)
    for stack, layers in (("encoder", 12), ("decoder", 2)):
        norm(f"{stack}.layer_norm")
        for layer in range(layers):
            prefix = f"{stack}.layers.{layer}"
            for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
                linear(f"{prefix}.self_attn.{name}", dim, dim)
            norm(f"{prefix}.self_attn_layer_norm")
            norm(f"{prefix}.final_layer_norm")
            linear(f"{prefix}.fc1", ffn, dim)
            linear(f"{prefix}.fc2", dim, ffn)
    return state


def test_state_dict_of_the_default_model_is_that_of_released_files():
    with torch.device("meta"):
        state = MaeAst(MaeAstConfig()).state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == released_state()
    assert len(state) == 243 - len(
        ["layer_norm.weight", "layer_norm.bias", "encoder_mask_emb", "enc pe", "dec pe"]
    )


def test_different_widths_add_one_projection(small_config):
    same = MaeAst(small_config()).state_dict().keys()
    other = MaeAst(small_config(decoder_embed_dim=48)).state_dict().keys()
    assert other - same == {"post_enc_proj.weight", "post_enc_proj.bias"}
    assert same <= other


def test_decoder_sizes_default_to_those_of_the_encoder(small_config):
    for fields, ffn, heads in [
        ({}, 64, 4),
        ({"decoder_ffn_embed_dim": 20, "decoder_attention_heads": 8}, 20, 8),
    ]:
        model = MaeAst(small_config(decoder_embed_dim=48, decoder_layers=3, **fields))
        assert len(model.encoder.layers) == 2
        assert len(model.decoder.layers) == 3
        for layer in model.decoder.layers:
            assert layer.fc1.weight.shape == (ffn, 48)
            assert layer.self_attn.num_heads == heads
        for layer in model.encoder.layers:
            assert layer.fc1.weight.shape == (64, 32)
            assert layer.self_attn.num_heads == 4


def test_invalid_configuration_is_refused(small_config):
    for fields, message in [
        (
            {"encoder_embed_dim": 33, "encoder_attention_heads": 3},
            "encoder_embed_dim=33; must be divisible by 2",
        ),
        ({"encoder_attention_heads": 5}, "encoder_embed_dim=32; .*encoder_attention_heads=5"),
        ({"decoder_attention_heads": 7}, "decoder_embed_dim=32; .*decoder_attention_heads=7"),
        ({"input_std": 0.0}, "input_std=0.0; must be positive"),
        ({"precision": "float16"}, "precision='float16'"),
    ]:
        with pytest.raises(ValueError, match=message):
            MaeAst(small_config(**fields))
