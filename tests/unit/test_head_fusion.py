"""DKDFMH's network: the table of its layers, both readings of its attention, segments, and a saved model."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from torch.nn.functional import batch_norm, conv2d, cross_entropy, linear, max_pool2d, relu, softmax
from transformers import AutoModelForAudioClassification, pipeline

from ser_kd_utils.methods.dkdfmh.experiment import DKDFMHExperiment
from ser_kd_utils.methods.dkdfmh.model import (
    HeadFusionConfig,
    HeadFusionForAudioClassification,
    features_of,
    prepare_inputs,
    segments_of,
)

LABELS = ("neutral", "happy", "sad", "angry")
FEATURES = ("log filter bank", "mfcc")
ATTENTIONS = ("code", "text")
SMALL = {"channels": (2, 4, 6, 8, 10), "num_attention_heads": 3, "head_dim": 5, "segment": 4000, "hop": 1600}
CLASSES = {"id2label": dict(enumerate(LABELS)), "label2id": {label: i for i, label in enumerate(LABELS)}}


def network(**config) -> HeadFusionForAudioClassification:
    torch.manual_seed(0)
    return HeadFusionForAudioClassification(HeadFusionConfig(**CLASSES, **config))


def noise(items: int, samples: int) -> torch.Tensor:
    """Each item at a level of its own."""
    levels = torch.arange(1, items + 1)[:, None] / 20
    return levels * torch.randn(items, samples, generator=torch.Generator().manual_seed(0))


def trained(**config) -> HeadFusionForAudioClassification:
    """A small network in eval mode whose norms know its features and whose attention is far from even."""
    model = network(**SMALL | config)
    features = features_of(noise(6, SMALL["segment"]), model.config)
    model.fit_normalisation(features)
    with torch.no_grad():
        model.query_key_value.weight *= 8
        for module in model.modules():
            module.momentum = 1.0  # norms: one pass is enough
        model.train()(features=features)
    return model.eval()


def close(actual, wanted):
    torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize(("heads", "size", "count"), [(4, 64, 155_636), (4, 32, 124_404), (8, 256, 591_860)])
def test_parameter_counts(heads, size, count, attention):
    model = network(num_attention_heads=heads, head_dim=size, attention=attention)
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize(
    ("features", "shape", "maps"), [("log filter bank", (197, 40), (80, 49, 9)), ("mfcc", (26, 63), (80, 6, 15))]
)
def test_two_seconds_at_the_papers_size(features, shape, maps):
    model, seen = network(features=features).eval(), []
    model.conv5.register_forward_hook(lambda _, __, output: seen.append(output.shape[1:]))
    image = features_of(noise(2, 32_000), model.config)
    assert image.shape == (2, *shape)
    assert model(features=image).logits.shape == (2, 4) and seen == [maps]


def test_frames_of_the_log_filter_bank_are_as_far_apart_as_told():
    config = HeadFusionConfig(frame_step=320)
    every_second = features_of(noise(2, 32_000), HeadFusionConfig())[:, ::2]
    assert torch.equal(features_of(noise(2, 32_000), config)[:, :98], every_second[:, :98])


def layers_by_hand(model, image):
    """The table of the layers, written with functions."""
    weights = model.state_dict()

    def layer(name, maps, padding=(1, 1)):
        maps = conv2d(maps, weights[f"{name}.0.weight"], weights[f"{name}.0.bias"], padding=padding)
        norm = [weights[f"{name}.1.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return relu(batch_norm(maps, *norm))

    maps = torch.cat([layer("conv1a", image, (4, 0)), layer("conv1b", image, (0, 3))], 1)
    maps = max_pool2d(layer("conv2.0", maps), 2)
    maps = max_pool2d(layer("conv3.0", maps), 2)
    return layer("conv5", layer("conv4", maps))


def heads_by_hand(model, maps):
    """Query, key and value of one head after the other, (batch, size, positions) each, by its own convolutions."""
    size = model.config.head_dim
    for head in range(model.config.num_attention_heads):
        parts = []
        for part in range(3):
            own = slice((3 * head + part) * size, (3 * head + part + 1) * size)
            parts.append(conv2d(maps, model.query_key_value.weight[own], model.query_key_value.bias[own]).flatten(2))
        yield parts


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("attention", ATTENTIONS)
@torch.no_grad()
def test_the_network_is_the_one_of_the_table(attention, features):
    model = trained(attention=attention, features=features)
    image = features_of(noise(3, SMALL["segment"]), model.config)
    maps = layers_by_hand(model, ((image - model.mean) / model.std)[:, None])
    heads = []
    for query, key, value in heads_by_hand(model, maps):
        if attention == "code":
            heads.append(softmax(query * key, 1) * value)
        else:
            weights = softmax(query.mT @ key / math.sqrt(model.config.head_dim), -1)  # (batch, positions, positions)
            heads.append((weights @ value.mT).mT)
    joined = torch.cat(heads, 2) if attention == "code" else sum(heads) / len(heads)
    logits = linear(relu(joined).mean(2), model.output.weight, model.output.bias)
    close(model(features=image).logits, logits)
    assert logits.std(0).min() > 1e-3  # items differ by far more than the tolerance


@pytest.mark.parametrize(
    ("hop", "starts"), [(16_000, [0, 16_000, 32_000]), (6_400, [0, 6_400, 12_800, 19_200, 25_600, 32_000, 38_400])]
)
def test_segments_of_four_and_a_half_seconds(hop, starts):
    wave = torch.arange(72_000.0)
    pieces = segments_of(torch.stack([wave, -wave]), 32_000, hop)
    for sign, item in zip((1, -1), pieces, strict=True):
        assert (sign * item[:, 0]).tolist() == starts
        assert torch.equal(sign * item, torch.stack([wave[start : start + 32_000] for start in starts]))


@pytest.mark.parametrize("samples", [1, 12_000, 31_999, 32_000])
def test_a_short_wave_is_repeated_to_one_segment(samples):
    (piece,) = segments_of(torch.arange(float(samples))[None], 32_000, 6_400)[0]
    assert torch.equal(piece, torch.arange(32_000) % samples)


@pytest.mark.parametrize("features", FEATURES)
@torch.no_grad()
def test_an_utterance_gets_the_mean_of_its_segments_logits(features):
    model, wave = trained(features=features), noise(1, 10_000) * torch.linspace(0.1, 2, 10_000)
    single = [model(features=features_of(wave[:, i : i + 4000], model.config)).logits for i in (0, 1600, 3200, 4800)]
    logits = model(input_values=wave).logits
    close(logits, sum(single) / 4)
    assert (single[0] - logits).abs().max() > 1e-3


@pytest.mark.parametrize("features", FEATURES)
def test_features_are_normalised_one_by_one_with_a_floor(features):
    model, fitted = trained(features=features), trained(features=features)
    model.mean.zero_(), model.std.fill_(1)
    image = features_of(noise(4, 4000), model.config)
    axis = 1 if features == "mfcc" else 2
    image.select(axis, 7).fill_(3.0)  # does not vary
    fitted.fit_normalisation(image)
    values = image.movedim(axis, 0).flatten(1).double().numpy()  # (filters, ...)
    std = np.maximum(values.std(1), 1e-5)
    np.testing.assert_allclose(fitted.mean.flatten(), values.mean(1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(fitted.std.flatten(), std, rtol=1e-4)
    normal = (values - values.mean(1, keepdims=True)) / std[:, None]
    normal = torch.from_numpy(normal).float().view(image.movedim(axis, 0).shape).movedim(0, axis)
    close(fitted(features=image).logits, model(features=normal).logits)
    assert (model(features=image).logits - model(features=normal).logits).abs().max() > 1e-3


@pytest.mark.parametrize("attention", ATTENTIONS)
@torch.no_grad()
def test_an_items_logits_do_not_depend_on_the_batch(attention):
    model, waves = trained(attention=attention), noise(3, 6000)
    together = model(input_values=waves).logits
    close(together, torch.cat([model(input_values=wave[None]).logits for wave in waves]))
    assert together.std(0).min() > 1e-3


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_bfloat16(attention, features):
    model, waves = trained(attention=attention, features=features), noise(3, SMALL["segment"])
    image = features_of(waves, model.config)
    wanted = model(features=image).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(input_values=waves).logits
        assert torch.equal(logits, model(features=image).logits)  # autocast or not, spectra are in float32
    torch.testing.assert_close(logits.float(), wanted, rtol=0.05, atol=0.05)
    cross_entropy(logits, torch.tensor([0, 1, 2])).backward()
    assert all(p.grad.isfinite().all() and p.grad.abs().max() > 0 for p in model.parameters())
    half = model.bfloat16()(input_values=waves.bfloat16()).logits
    torch.testing.assert_close(half.float(), wanted, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("features", FEATURES)
@torch.no_grad()
def test_a_saved_model_is_the_same_when_loaded(features, tmp_path):
    model, waves = trained(features=features, attention="text", frame_step=200), noise(2, 6000)
    DKDFMHExperiment.save(model, tmp_path)
    loaded = AutoModelForAudioClassification.from_pretrained(tmp_path)
    assert type(loaded) is HeadFusionForAudioClassification and not loaded.training
    state = loaded.state_dict()
    assert {"mean", "std"} < state.keys() == model.state_dict().keys()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(loaded(input_values=waves).logits, model(input_values=waves).logits)
    assert [loaded.config.id2label[i] for i in range(4)] == list(LABELS)


@torch.no_grad()
def test_a_saved_model_works_in_transformers_pipeline(tmp_path):
    model = trained()
    DKDFMHExperiment.save(model, tmp_path)
    raw = (0.2 + 0.01 * noise(1, 9000)[0]).numpy()
    scores = pipeline("audio-classification", str(tmp_path))(raw)
    wanted = softmax(model(input_values=torch.from_numpy(raw)[None]).logits[0], -1).tolist()
    assert {row["label"]: row["score"] for row in scores} == pytest.approx(dict(zip(LABELS, wanted, strict=True)))


def test_weights_begin_as_torchs_own(tmp_path):
    network(**SMALL).save_pretrained(tmp_path)
    other = HeadFusionForAudioClassification.from_pretrained(tmp_path, num_labels=7, ignore_mismatched_sizes=True)
    assert other.output.weight.shape == (7, SMALL["head_dim"])
    for model in (network(), other):
        layers = [module for module in model.modules() if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear))]
        assert len(layers) == 8
        for layer in layers:
            bound = 1 / math.sqrt(layer.weight[0].numel())
            assert 0.8 * bound < layer.weight.abs().max() <= bound
            assert 0.2 * bound < layer.bias.abs().max() <= bound


def test_it_hears_levels():
    model, waves = trained(), noise(2, 6000)
    lengths = torch.tensor([6000, 6000])
    logits, louder, masked = (
        model(**prepare_inputs(*some)).logits
        for some in ((waves, lengths), (10 * waves, lengths), (waves, lengths, waves > 0))
    )
    assert torch.equal(logits, model(input_values=waves).logits) and torch.equal(logits, masked)
    assert (logits - louder).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["features", "attention"])
def test_unknown_words_are_refused(name):
    with pytest.raises(StrictDataclassFieldValidationError, match=f"{name}' expected one of .*, got codes"):
        HeadFusionConfig(**{name: "codes"})
