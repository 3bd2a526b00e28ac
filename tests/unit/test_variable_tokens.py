"""The variable-token student and its control: by hand, padding, cropping, the frozen front, a saved model."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import erf, softmax
from torch.func import functional_call, grad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForAudioClassification,
    Wav2Vec2Config,
    Wav2Vec2ForSequenceClassification,
    WhisperConfig,
    pipeline,
)

from ser_kd_utils.data.features import log_filter_bank
from ser_kd_utils.methods.mckd.experiment import MCKDExperiment
from ser_kd_utils.methods.mckd.model import (
    VariableTokenConfig,
    VariableTokenForAudioClassification,
    prepare_inputs,
)
from ser_kd_utils.methods.mckd.settings import MCKDSettings
from ser_kd_utils.methods.teacher.encoders import normalise
from ser_kd_utils.methods.teacher.settings import TINY_NETWORK

LABELS = ("neutral", "happy", "sad", "angry")
TOKENS = {
    "variable": {"tokens": "variable"},
    "variable, mean": {"tokens": "variable", "pooling": "mean"},
    "time": {"tokens": "time", "pooling": "mean"},
}
FEATURES = ("encoder", "log-mel")
SMALL = {"frames": 12, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 20}
CLASSES = {"id2label": dict(enumerate(LABELS)), "label2id": {label: i for i, label in enumerate(LABELS)}}
CNN = {"conv_dim": (6, 6, 6), "conv_kernel": (20, 8, 4), "conv_stride": (10, 8, 4), "hidden_size": 10}  # 20 ms a frame
LENGTHS = torch.tensor([4500, 3100, 1700])  # 13, 8 and 4 frames


def teacher(norm: str = "layer", **config) -> Wav2Vec2ForSequenceClassification:
    torch.manual_seed(1)
    rest = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "num_conv_pos_embeddings": 4}
    rest |= {"num_conv_pos_embedding_groups": 2, "feat_proj_dropout": 0.5, "classifier_proj_size": 4}
    return Wav2Vec2ForSequenceClassification(Wav2Vec2Config(**CNN, **rest, feat_extract_norm=norm, **config)).eval()


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def waves() -> torch.Tensor:
    """Noise of LENGTHS at levels that differ and change, zero beyond."""
    time = torch.arange(4500)
    levels = torch.tensor([[0.1], [0.2], [0.4]]) * (1.5 + torch.sin(time / 400))
    return levels * noise(3, 4500) * (time < LENGTHS[:, None])


def network(**config) -> VariableTokenForAudioClassification:
    """In eval mode, its attention far from even, with statistics far from 0 and 1."""
    config = {"features": "log-mel", **SMALL, **config}
    if config["features"] == "encoder":
        config |= {"front": teacher().config.to_diff_dict()}
    torch.manual_seed(0)
    model = VariableTokenForAudioClassification(VariableTokenConfig(**CLASSES, **config))
    if config["features"] == "encoder":
        model.front.copy(teacher())
    with torch.no_grad():
        for layer in model.layers:
            layer.self_attn.in_proj_weight *= 3
        for parameter in model.parameters():
            if parameter.ndim == 1 and parameter.requires_grad:
                parameter += 0.3 * torch.randn_like(parameter)  # biases and norms that show
        model.classifier.weight *= 3
        model.mean.normal_()
        model.std.uniform_(0.5, 2)
    return model.eval()


def close(actual, wanted):
    torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-5)


def differ(one, other):
    assert (one - other).abs().amax(-1).min() > 1e-2  # every item, by far more than the tolerance


def test_parameter_counts_at_the_papers_size():
    sizes = {}
    for name, tokens in TOKENS.items():
        model = VariableTokenForAudioClassification(VariableTokenConfig(**CLASSES, **tokens))
        front = {id(parameter) for parameter in model.front.parameters()}
        sizes[name] = sum(p.numel() for p in model.parameters() if id(p) not in front)
        assert model.mean.shape == model.std.shape == (768,)
    assert sizes == {"variable": 8_046_084, "variable, mean": 6_475_268, "time": 6_701_572}
    assert abs(sizes["time"] / sizes["variable, mean"] - 1) < 0.05
    assert sizes["variable"] - sizes["variable, mean"] == 4 * 512 * (768 - 1)  # the head alone


def test_parameter_counts_of_the_tiny_profile():
    """As recorded: with the front, which the student needs."""
    use, front = MCKDSettings.of("tiny"), WhisperConfig(**TINY_NETWORK, max_source_positions=100).to_diff_dict()
    names = (*SMALL, "feature_layer")
    sizes = {}
    for name, tokens in TOKENS.items():
        config = VariableTokenConfig(**CLASSES, **tokens, **{each: getattr(use, each) for each in names}, front=front)
        sizes[name] = VariableTokenForAudioClassification(config).num_parameters()
    assert sizes == {"variable": 276_708, "variable, mean": 252_388, "time": 248_932}


def by_hand(model, item: np.ndarray) -> np.ndarray:
    """Logits of one utterance's own frames (frames, width), written with numpy."""
    weights = {name: value.double().numpy() for name, value in model.state_dict().items()}
    use = model.config

    def linear(name, x):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name, x):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    item = (item - weights["mean"]) / weights["std"]
    if use.z_score:
        item = (item - item.mean(0)) / item.std(0)
    if use.tokens == "variable":
        series = np.zeros((item.shape[1], use.frames))
        series[:, : len(item)] = item.T
        x = linear("embed", series)
    else:
        x = linear("embed", item)
        for position in range(len(x)):
            for pair in range(use.hidden_size // 2):
                angle = position / 10_000 ** (2 * pair / use.hidden_size)
                x[position, 2 * pair] += math.sin(angle)
                x[position, 2 * pair + 1] += math.cos(angle)
    for number in range(use.num_hidden_layers):
        name = f"layers.{number}"
        projected = x @ weights[f"{name}.self_attn.in_proj_weight"].T + weights[f"{name}.self_attn.in_proj_bias"]
        heads, width = [], use.hidden_size // use.num_attention_heads
        for head in range(use.num_attention_heads):
            query, key, value = (
                projected[:, start + head * width :][:, :width] for start in (0, use.hidden_size, 2 * use.hidden_size)
            )
            heads.append(softmax(query @ key.T / math.sqrt(width), -1) @ value)
        x = norm(f"{name}.norm1", x + linear(f"{name}.self_attn.out_proj", np.concatenate(heads, 1)))
        inner = linear(f"{name}.linear1", x)
        inner = inner * (1 + erf(inner / math.sqrt(2))) / 2
        x = norm(f"{name}.norm2", x + linear(f"{name}.linear2", inner))
    x = norm("norm", x)
    if use.pooling == "flatten":
        return linear("classifier", (x * (1 + erf(x / math.sqrt(2))) / 2).ravel())
    return linear("classifier", x.mean(0))


@pytest.mark.parametrize("z_score", [False, True])
@pytest.mark.parametrize("tokens", TOKENS)
@torch.no_grad()
def test_the_network_by_hand(tokens, z_score):
    model = network(**TOKENS[tokens], z_score=z_score).double()
    features, counts = 3 * noise(3, 10, 40).double(), torch.tensor([10, 7, 4])
    output = model(features=features, counts=counts)
    wanted = [by_hand(model, item[:count].numpy()) for item, count in zip(features, counts, strict=True)]
    torch.testing.assert_close(output.logits, torch.tensor(np.array(wanted)), rtol=1e-9, atol=1e-9)
    assert output.logits.std(0).min() > 1e-2
    (embedding,) = output.hidden_states
    assert embedding.shape == (3, 8 * (40 if tokens == "variable" else 1))
    assert torch.equal(model.classifier(embedding), output.logits)


@pytest.mark.parametrize("z_score", [False, True])
@pytest.mark.parametrize("tokens", TOKENS)
@torch.no_grad()
def test_what_pads_features_changes_nothing(tokens, z_score):
    model, features, counts = network(**TOKENS[tokens], z_score=z_score), noise(3, 11, 40), torch.tensor([11, 6, 1])
    alone = [model(features=item[None, :count]).logits for item, count in zip(features, counts, strict=True)]
    together = model(features=features, counts=counts).logits
    close(together, torch.cat(alone))
    differ(model(features=features).logits[1:], together[1:])  # without counts all frames are valid


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("tokens", TOKENS)
@torch.no_grad()
def test_what_pads_waves_changes_nothing(tokens, features):
    model, batch = network(**TOKENS[tokens], features=features), waves()
    alone = torch.cat([model(wave[None, :length]).logits for wave, length in zip(batch, LENGTHS, strict=True)])
    together = model(**prepare_inputs(batch, LENGTHS)).logits
    close(together, alone)
    close(model(torch.cat([batch, noise(3, 900)], 1), LENGTHS).logits, alone)
    differ(model(batch).logits[1:], alone[1:])


@pytest.mark.parametrize("tokens", TOKENS)
@torch.no_grad()
def test_what_comes_after_the_last_frame_changes_nothing(tokens):
    model, features = network(**TOKENS[tokens], z_score=True), noise(2, 30, 40)
    logits = model(features=features).logits
    assert torch.equal(logits, model(features=features[:, :12]).logits)
    assert torch.equal(logits, model(features=features, counts=torch.tensor([30, 13])).logits)
    differ(logits, model(features=features[:, :11]).logits)
    samples = 11 * 320 + 640  # that the 12 frames hold
    assert torch.equal(model(waves()[:1]).logits, model(waves()[:1, :samples]).logits)
    differ(model(waves()[:1]).logits, model(waves()[:1, : samples - 1]).logits)


@pytest.mark.parametrize("tokens", TOKENS)
@torch.no_grad()
def test_z_score_removes_level_and_scale_of_each_channel(tokens):
    features, counts = noise(2, 9, 40), torch.tensor([9, 5])
    other = features * (0.5 + noise(2, 1, 40, seed=1).abs()) + 3 * noise(2, 1, 40, seed=2)
    with_, without = network(**TOKENS[tokens], z_score=True), network(**TOKENS[tokens])
    close(with_(features=other, counts=counts).logits, with_(features=features, counts=counts).logits)
    differ(without(features=other, counts=counts).logits, without(features=features, counts=counts).logits)
    silence = (with_(features=torch.full((1, 9, 40), level)).logits for level in (0.0, -36.04))  # digital: ln 2**-52
    torch.testing.assert_close(*silence, rtol=0, atol=0.02)  # no rounding error grows large


def test_normalisation_is_numpys_over_valid_frames():
    model, counts = network(), [9, 4, 1]
    features = 5 * noise(3, 9, 40) + 100 * noise(40, seed=1)
    features[..., 7] = 3.0  # does not vary
    valid = [item[:count] for item, count in zip(features, counts, strict=True)]
    frames = torch.cat(valid).double().numpy()
    model.fit_normalisation(iter(valid))
    np.testing.assert_allclose(model.mean, frames.mean(0), rtol=1e-5)
    np.testing.assert_allclose(model.std, np.maximum(frames.std(0), 1e-5), rtol=1e-5)
    model.fit_normalisation(features)
    np.testing.assert_allclose(model.std[:7], features.double().numpy().std((0, 1))[:7], rtol=1e-5)


@pytest.mark.parametrize("norm", ["layer", "group"])
@torch.no_grad()
def test_encoder_features_are_the_teachers(norm):
    base, wave = teacher(norm, conv_bias=True, feat_extract_activation="silu", layer_norm_eps=0.01), 5 * waves()[:1]
    model = VariableTokenForAudioClassification(VariableTokenConfig(**SMALL, front=base.config.to_diff_dict()))
    model.front.copy(base)
    features, counts = model.train().frame_features(wave)
    states = base.wav2vec2.feature_extractor(normalise(wave, torch.tensor([4500])))
    wanted = base.wav2vec2.feature_projection(states.transpose(1, 2))[0]
    assert wanted.shape == (1, 14, 10) and features.dtype == torch.float32 and counts.tolist() == [14]
    close(features, wanted)


def test_log_mel_features_are_the_whole_frames():
    model = network(frames=326)
    features, counts = model.frame_features(waves(), LENGTHS)
    close(features, log_filter_bank(waves(), 320)[:, :13])
    assert features.shape == (3, 13, 40) and counts.tolist() == [13, 8, 4]


@pytest.mark.parametrize("features", FEATURES)
def test_frames_are_counted_as_the_network_makes_them(features):
    model, base = network(features=features, frames=326), teacher()
    for samples in (400, 640, 959, 960, 1290, 16_000, 104_640, 200_000):
        found, counts = model.frame_features(noise(1, samples))
        if features == "encoder":
            wanted = base._get_feat_extract_output_lengths(samples)
        else:
            wanted = len(range(0, max(samples - 640, 0) + 1, 320))
        assert found.shape[1] == counts.item() == wanted


def test_the_front_is_frozen():
    model, before = network(features="encoder", dropout=0.0).train(), teacher().wav2vec2.state_dict()
    assert model.training and not any(part.training for part in model.front.modules())
    calm = model.frame_features(waves(), LENGTHS)[0]
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1, weight_decay=0.1)
    start = model.embed.weight.clone()
    for _ in range(2):
        cross_entropy(model(**prepare_inputs(waves(), LENGTHS)).logits, torch.tensor([0, 1, 2])).backward()
        optimiser.step()
    assert all(p.grad is None and not p.requires_grad for p in model.front.parameters())
    assert all(p.grad is not None for name, p in model.named_parameters() if not name.startswith("front."))
    assert (model.embed.weight - start).abs().max() > 1e-3
    state = model.front.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in state.items()) and len(state) > 8
    assert torch.equal(model.frame_features(waves(), LENGTHS)[0], calm)  # no dropout


@pytest.mark.parametrize("tokens", TOKENS)
def test_dropout_acts_in_training_only(tokens):
    model, features = network(**TOKENS[tokens]), noise(2, 9, 40)
    assert torch.equal(model(features=features).logits, model(features=features).logits)
    model.train()
    differ(model(features=features).logits, model(features=features).logits)
    for layer in model.layers:
        layer.eval()
    last = [model(features=features).logits for _ in range(2)]  # before the classifier, of flattened tokens alone
    assert torch.equal(*last) == (model.config.pooling == "mean")


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("features", FEATURES)
@torch.no_grad()
def test_a_saved_model_is_the_same_when_loaded(features, tokens, tmp_path):
    model = network(features=features, **TOKENS[tokens], z_score=True)
    MCKDExperiment.save(model, tmp_path)
    loaded = AutoModelForAudioClassification.from_pretrained(tmp_path)
    assert type(loaded) is VariableTokenForAudioClassification and not loaded.training
    state = loaded.state_dict()
    assert {"mean", "std"} < state.keys() == model.state_dict().keys()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(
        loaded(**prepare_inputs(waves(), LENGTHS)).logits, model(**prepare_inputs(waves(), LENGTHS)).logits
    )
    assert [loaded.config.id2label[i] for i in range(4)] == list(LABELS)
    assert all(p.requires_grad != name.startswith("front.") for name, p in loaded.named_parameters())


@pytest.mark.parametrize("features", FEATURES)
@torch.no_grad()
def test_a_saved_model_works_in_transformers_pipeline(features, tmp_path):
    model = network(features=features)
    MCKDExperiment.save(model, tmp_path)
    raw = (0.2 + waves()[0]).numpy()
    scores = pipeline("audio-classification", str(tmp_path))(raw)
    wanted = softmax(model(torch.from_numpy(raw)[None]).logits[0].numpy())
    assert {row["label"]: row["score"] for row in scores} == pytest.approx(dict(zip(LABELS, wanted, strict=True)))


@pytest.mark.parametrize("tokens", TOKENS)
@torch.no_grad()
def test_attentions_are_given_when_asked_for(tokens):
    model, features, counts = network(**TOKENS[tokens]), noise(2, 9, 40), torch.tensor([9, 5])
    plain = model(features=features, counts=counts)
    told = model(features=features, counts=counts, output_attentions=True)
    assert plain.attentions is None and len(told.attentions) == 2
    close(told.logits, plain.logits)
    number = 9 if tokens == "time" else 40
    for weights in told.attentions:
        assert weights.shape == (2, 2, number, number)
        close(weights.sum(-1), torch.ones(2, 2, number))
        assert weights.std() > 1e-2
        if tokens == "time":
            assert (weights[1, ..., 5:] == 0).all() and (weights[1, ..., :5] > 0).all()


@torch.no_grad()
def test_the_weights_given_are_those_the_layer_used():
    model, features = network(num_hidden_layers=1), noise(1, 9, 40)
    layer, seen = model.layers[0], []
    layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    (weights,) = model(features=features, output_attentions=True).attentions
    values = seen[0] @ layer.self_attn.in_proj_weight[16:].mT + layer.self_attn.in_proj_bias[16:]
    heads = weights @ values.unflatten(-1, (2, 4)).transpose(1, 2)
    heard = layer.self_attn.out_proj(heads.transpose(1, 2).flatten(2))
    x = layer.norm1(seen[0] + heard)
    close(layer(seen[0]), layer.norm2(x + layer.linear2(torch.nn.functional.gelu(layer.linear1(x)))))


@torch.no_grad()
def test_the_order_of_channels_matters_to_the_flattened_tokens_and_not_to_their_mean():
    """A student that pools by the mean cannot know which band it hears."""
    features, order = noise(2, 9, 40), torch.randperm(40, generator=torch.Generator().manual_seed(0))
    change = {}
    for pooling in ("flatten", "mean"):
        model = network(pooling=pooling)
        model.mean.zero_(), model.std.fill_(1)
        logits = model(features=features).logits
        change[pooling] = (model(features=features[..., order]).logits - logits).abs().amax(-1)
        differ(model(features=features.flip(1)).logits, logits)  # the order of frames matters to both
    assert change["flatten"].min() > 1e-3 and change["mean"].max() < 1e-5


@torch.no_grad()
def test_time_tokens_know_their_order():
    model, features = network(**TOKENS["time"]), noise(2, 9, 40)
    differ(model(features=features.flip(1)).logits, model(features=features).logits)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("tokens", TOKENS)
def test_gradients_pass_through_a_training_step(tokens, training):
    """As meta-learning needs it: second derivatives through torch.func, compared with finite differences."""
    model = network(**TOKENS[tokens], dropout=0.0).double().train(training)
    features, counts, labels = noise(4, 9, 40).double(), torch.tensor([9, 7, 5, 3]), torch.tensor([0, 1, 2, 3])
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def loss(weights, part):
        given = {"features": features[part], "counts": counts[part]}
        return cross_entropy(functional_call(model, weights, (), given).logits, labels[part])

    def after_a_step(weights):
        gradient = grad(loss)(weights, slice(0, 2))
        return loss({name: value - 0.1 * gradient[name] for name, value in weights.items()}, slice(2, 4))

    def moved(name, by):
        some = weights[name].clone()
        some.view(-1)[3] += by
        return after_a_step(weights | {name: some})

    with sdpa_kernel(SDPBackend.MATH):
        gradient = grad(after_a_step)(weights)
        first_order = grad(loss)(weights, slice(2, 4))
        for name in ("embed.weight", "layers.0.self_attn.in_proj_weight", "layers.1.linear1.weight"):
            difference = (moved(name, 1e-5) - moved(name, -1e-5)) / 2e-5
            found = gradient[name].view(-1)[3]
            torch.testing.assert_close(found, difference, rtol=1e-5, atol=1e-9)
            assert abs(found - first_order[name].view(-1)[3]) > 1e-3 * abs(found) > 0


def test_gradients_pass_through_a_training_step_on_waves():
    model, labels = network(features="encoder").train(), torch.tensor([0, 1, 2])
    weights = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    features, counts = model.frame_features(waves(), LENGTHS)

    def after_a_step(weights, given):
        torch.manual_seed(0)  # the same dropout

        def loss(weights):
            return cross_entropy(functional_call(model, weights, (), given).logits, labels)

        gradient = grad(loss)(weights)
        return loss({name: value - 0.1 * gradient[name] for name, value in weights.items()})

    with sdpa_kernel(SDPBackend.MATH):
        found = grad(after_a_step)(weights, prepare_inputs(waves(), LENGTHS))
        wanted = grad(after_a_step)(weights, {"features": features, "counts": counts})
    assert all(torch.equal(found[name], wanted[name]) and wanted[name].any() for name in weights)


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("tokens", TOKENS)
def test_bfloat16(tokens, features):
    model = network(**TOKENS[tokens], features=features, dropout=0.0).train()
    wanted = model(**prepare_inputs(waves(), LENGTHS)).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(**prepare_inputs(waves(), LENGTHS))
    torch.testing.assert_close(output.logits.float(), wanted, rtol=0.1, atol=0.1)
    cross_entropy(output.logits, torch.tensor([0, 1, 2])).backward()
    assert all(p.grad.isfinite().all() and p.grad.abs().max() > 0 for p in model.parameters() if p.requires_grad)
    half = model.bfloat16()(**prepare_inputs(waves().bfloat16(), LENGTHS))
    torch.testing.assert_close(half.logits.float(), wanted, rtol=0.15, atol=0.15)


def test_weights_begin_as_torchs_own(tmp_path):
    torch.manual_seed(0)
    front = teacher().config.to_diff_dict()
    fresh = VariableTokenForAudioClassification(VariableTokenConfig(**CLASSES, **SMALL, front=front))
    fresh.save_pretrained(tmp_path)
    other = VariableTokenForAudioClassification.from_pretrained(tmp_path, num_labels=7, ignore_mismatched_sizes=True)
    assert other.classifier.weight.shape == (7, 10 * 8) and torch.equal(other.embed.weight, fresh.embed.weight)
    for model in (fresh, other):
        for layer in (model.embed, model.classifier, *(each.linear1 for each in model.layers)):
            bound = 1 / math.sqrt(layer.in_features)
            assert 0.8 * bound < layer.weight.abs().max() <= bound
            assert 0.2 * bound < layer.bias.abs().max() <= bound
        for layer in model.layers:
            bound = math.sqrt(6 / (8 + 24))  # Xavier
            assert 0.9 * bound < layer.self_attn.in_proj_weight.abs().max() <= bound
            assert not layer.self_attn.in_proj_bias.any() and not layer.self_attn.out_proj.bias.any()
            assert (layer.norm1.weight == 1).all() and not layer.norm1.bias.any()


def test_only_log_mel_hears_levels():
    with torch.no_grad():
        for features, hears in (("log-mel", True), ("encoder", False)):
            model = network(features=features)
            logits, louder = (model(**prepare_inputs(factor * waves(), LENGTHS)).logits for factor in (1, 10))
            (differ if hears else close)(logits, louder)


@pytest.mark.parametrize("name", ["features", "tokens", "pooling"])
def test_unknown_words_are_refused(name):
    with pytest.raises(ValueError, match=f"{name}='codes': input should be '"):
        VariableTokenConfig(**{name: "codes"})


def test_time_tokens_have_their_mean_whatever_is_asked_for():
    assert [VariableTokenConfig(tokens=tokens).pooling for tokens in ("variable", "time")] == ["flatten", "mean"]
    assert VariableTokenConfig.from_dict(VariableTokenConfig(tokens="time").to_diff_dict()).pooling == "mean"
    by_both = [
        network(tokens="time", pooling=pooling)(features=noise(2, 9, 40)).logits for pooling in ("mean", "flatten")
    ]
    assert torch.equal(*by_both)
