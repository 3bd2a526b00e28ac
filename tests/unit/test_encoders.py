"""MLKD's networks: guards, what a student inherits, aligned frames, and a saved model that anybody can load."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import softmax
from transformers import (
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForSequenceClassification,
    Wav2Vec2Model,
    pipeline,
)
from waveform import TEACHER as TINY

from ser_kd_utils.data.features import HOP
from ser_kd_utils.methods.mlkd.experiment import MLKDExperiment
from ser_kd_utils.methods.mlkd.model import DistilledStudent, scale_cnn_gradient
from ser_kd_utils.methods.mlkd.settings import MLKDSettings
from ser_kd_utils.methods.teacher import encoders
from ser_kd_utils.methods.teacher.encoders import build_teacher, first_layers, frame_mask
from ser_kd_utils.methods.teacher.experiment import TeacherExperiment
from ser_kd_utils.methods.teacher.settings import TeacherSettings
from ser_kd_utils.training.dataset import hidden_states

LABELS = ("angry", "happy", "neutral", "sad")
MLKD = MLKDSettings.of("tiny")
DEPTH = TINY.num_hidden_layers
WIDTH = TINY.network["hidden_size"]
LENGTHS = torch.tensor([8000, 5123, 1600])


@pytest.fixture
def teacher():
    torch.manual_seed(0)
    return build_teacher(TINY, LABELS)


@pytest.fixture
def waves():
    """Normalised noise of LENGTHS, zero beyond."""
    raw = torch.from_numpy(np.random.default_rng(0).normal(0.1, 0.02, (3, 8000)).astype(np.float32))
    return encoders.normalise(raw, LENGTHS)


@pytest.fixture
def mask():
    return (torch.arange(8000) < LENGTHS[:, None]).long()


@pytest.fixture
def careless_checkpoint(tmp_path):
    """An encoder whose own config drops layers, masks time and recomputes, as those on the hub do."""
    changes = {"layerdrop": 0.5, "apply_spec_augment": True, "mask_time_prob": 0.5}
    Wav2Vec2Model(Wav2Vec2Config(**TINY.network, **changes)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())  # a model deletes this one from its own
    (tmp_path / "config.json").write_text(json.dumps(config | {"gradient_checkpointing": True}))
    return str(tmp_path)


def close(actual, wanted):
    torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-6)


def states_in_train_mode(model, passes: int = 20):
    for _ in range(passes):
        output = model.train()(torch.randn(1, 2000), output_hidden_states=True)
        hidden_states(output, MLKD.teacher_layers, DEPTH)


def test_a_checkpoint_drops_no_layer_masks_nothing_and_recomputes_nothing(careless_checkpoint):
    settings = TINY.replace(checkpoint=careless_checkpoint)
    teacher = build_teacher(settings, LABELS)
    student = first_layers(teacher, DEPTH)
    for model in (teacher, student, build_teacher(TINY, LABELS)):
        assert (model.config.layerdrop, model.config.apply_spec_augment) == (0.0, False)
        assert not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
        states_in_train_mode(model)  # 2,000 samples are too few for SpecAugment


def test_missing_hidden_states_are_noticed(careless_checkpoint):
    careless = Wav2Vec2ForSequenceClassification.from_pretrained(careless_checkpoint, apply_spec_augment=False)
    with pytest.raises(RuntimeError, match=f"Expected {DEPTH + 1} hidden states"):
        states_in_train_mode(careless)
    with pytest.raises(RuntimeError, match="returned 0"):
        hidden_states(careless(torch.randn(1, 2000)), MLKD.teacher_layers, DEPTH)


def test_levels_are_the_outputs_of_the_transformer_layers_counted_from_one(teacher, waves, mask):
    after = []
    for layer in teacher.eval().wav2vec2.encoder.layers:
        layer.register_forward_hook(lambda _, __, output: after.append(output))
    states = hidden_states(teacher(waves, mask, output_hidden_states=True), range(1, DEPTH + 1), DEPTH)
    assert len(states) == len(after) == DEPTH and all(map(torch.equal, states, after))


def test_a_checkpoint_keeps_its_encoder_and_takes_the_corpus_labels(teacher, tmp_path):
    teacher.wav2vec2.half().save_pretrained(tmp_path)
    loaded = build_teacher(TINY.replace(checkpoint=str(tmp_path)), ("no", "yes", "maybe"))
    assert loaded.config.id2label == {0: "no", 1: "yes", 2: "maybe"}
    assert loaded.config.label2id == {"no": 0, "yes": 1, "maybe": 2}
    encoder = teacher.wav2vec2.state_dict()
    assert all(torch.equal(value, encoder[name].float()) for name, value in loaded.wav2vec2.state_dict().items())
    assert loaded.dtype == torch.float32


def test_a_checkpoint_of_another_depth_is_refused(careless_checkpoint):
    paper = TeacherSettings.of("paper", checkpoint=careless_checkpoint)
    with pytest.raises(ValueError, match=f"{DEPTH} layers, the settings say wav2vec2 with {paper.num_hidden_layers}"):
        build_teacher(paper, LABELS)


def test_a_student_starts_from_the_teachers_weights(teacher):
    kept = MLKD.student_layers
    student = first_layers(teacher, kept)
    own, given = student.state_dict(), teacher.state_dict()
    assert all(torch.equal(value, given[name]) for name, value in own.items())
    left_behind = {name for name in given if name not in own}
    dropped = [f"encoder.layers.{layer}." for layer in range(kept, DEPTH)]
    assert dropped and left_behind == {name for name in given if any(layer in name for layer in dropped)}
    assert student.wav2vec2.encoder.pos_conv_embed.conv.weight.data_ptr() != (
        teacher.wav2vec2.encoder.pos_conv_embed.conv.weight.data_ptr()
    )


def test_a_student_as_deep_as_its_teacher_is_the_teacher(teacher, waves, mask):
    student = first_layers(teacher, DEPTH)
    close(student.eval()(waves, mask).logits, teacher.eval()(waves, mask).logits)


def test_a_random_student_has_the_shape_of_the_other_and_none_of_its_weights(teacher):
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(0.5)  # or norms would begin alike
    torch.manual_seed(1)
    fresh, again = (first_layers(teacher, MLKD.student_layers, "random") for _ in range(2))
    inherited = first_layers(teacher, MLKD.student_layers).state_dict()
    assert fresh.state_dict().keys() == inherited.keys()
    for name, value in fresh.state_dict().items():
        assert value.shape == inherited[name].shape and not torch.equal(value, inherited[name]), name
    assert not torch.equal(fresh.projector.weight, again.projector.weight)
    assert fresh.config.to_dict() == first_layers(teacher, MLKD.student_layers).config.to_dict()


def test_parameter_counts_at_full_size():
    with torch.device("meta"):
        teacher = build_teacher(TeacherSettings.of("paper", checkpoint="", network={"num_hidden_layers": 12}), LABELS)
        student = first_layers(teacher, 2)
    encoder = 94_371_712  # wav2vec2-base
    classifier = 768 * 256 + 256 + 256 * 4 + 4
    layer = 4 * (768 * 768 + 768) + 2 * 768 * 3072 + 3072 + 768 + 4 * 768
    assert sum(p.numel() for p in teacher.parameters()) == encoder + classifier == 94_569_604
    assert sum(p.numel() for p in student.parameters()) == encoder + classifier - 10 * layer == 23_690_884


@pytest.mark.parametrize("factor", [0.0, 0.1, 1.0])
def test_the_gradient_into_the_cnn_is_scaled_and_no_other(teacher, waves, mask, factor):
    gradients = []
    for scaling in (False, True):
        student = first_layers(teacher, MLKD.student_layers).eval()  # no dropout
        if scaling:
            scale_cnn_gradient(student, factor)
        student(waves, mask).logits.square().sum().backward()
        gradients.append({name: p.grad for name, p in student.named_parameters() if p.grad is not None})
    full, scaled = gradients
    cnn = {name for name in full if name.startswith("wav2vec2.feature_extractor.")}
    assert cnn and all(full[name].abs().max() > 0 for name in cnn)
    for name, gradient in full.items():
        if name in cnn:
            torch.testing.assert_close(scaled[name], factor * gradient, rtol=1e-4, atol=1e-7 * gradient.abs().max())
        else:
            assert torch.equal(scaled[name], gradient), name


def test_every_head_reads_the_students_last_state(teacher, waves, mask):
    layers = DEPTH - 1  # more than one, so that its last state is not its first
    student = DistilledStudent(first_layers(teacher, layers), MLKD.teacher_layers, WIDTH).eval()
    output = student(input_values=waves, attention_mask=mask)
    plain = student.student(waves, mask, output_hidden_states=True)
    assert torch.equal(output.logits, plain.logits)
    for head, state in zip(student.heads.values(), output.hidden_states, strict=True):
        first, second = head[0], head[2]
        inner = torch.nn.functional.gelu(plain.hidden_states[layers] @ first.weight.T + first.bias)
        close(state, inner @ second.weight.T + second.bias)


def test_teacher_and_student_frames_are_aligned(teacher, waves, mask):
    student = first_layers(teacher, MLKD.student_layers)
    target = teacher(waves, mask, output_hidden_states=True).hidden_states[MLKD.teacher_layers[-1]]
    prediction = student(waves, mask, output_hidden_states=True).hidden_states[-1]
    assert prediction.shape == target.shape
    frames = LENGTHS.numpy()
    for kernel, stride in zip(TINY.network["conv_kernel"], TINY.network["conv_stride"], strict=True):
        frames = (frames - kernel) // stride + 1
    for model in (teacher, student):
        valid = frame_mask(model, target.shape[1], LENGTHS)
        assert valid.dtype == torch.bool and valid.shape == target.shape[:2]
        assert valid.sum(1).tolist() == frames.tolist()
        assert all(row[:count].all() for row, count in zip(valid, frames, strict=True))


def test_a_network_with_another_frame_rate_is_refused():
    """Windows of speech could not be aligned with its frames."""
    network = TINY.network | {"conv_stride": (5, *TINY.network["conv_stride"][1:])}
    with pytest.raises(ValueError, match=f"frames of The network are 160 samples apart, not {HOP}"):
        build_teacher(TINY.replace(network=network), LABELS)


def test_both_networks_have_a_frame_each_20_ms(teacher):
    assert HOP == 16_000 * 20 // 1000
    assert teacher.config.inputs_to_logits_ratio == Wav2Vec2Config().inputs_to_logits_ratio == HOP


def test_normalise_is_transformers_feature_extractor():
    rng = np.random.default_rng(0)
    items = [rng.normal(0.3, scale, n).astype(np.float32) for scale, n in ((1e-3, 8000), (0.2, 5123), (0.05, 1600))]
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    wanted = extractor(items, sampling_rate=16_000, padding=True, return_tensors="pt")["input_values"]
    # what lies beyond an item's length must not count
    padded = torch.stack([torch.from_numpy(np.pad(item, (0, 8000 - len(item)), constant_values=9)) for item in items])
    torch.testing.assert_close(encoders.normalise(padded, LENGTHS), wanted, rtol=1e-3, atol=1e-3)


def test_padding_does_not_change_the_logits_of_a_layer_norm_network(teacher, waves, mask):
    teacher.eval()
    together = teacher(waves, mask).logits
    for item, length, logits in zip(waves, LENGTHS, together, strict=True):
        alone = teacher(item[None, :length], torch.ones(1, length, dtype=torch.long)).logits[0]
        close(alone, logits)
        close(teacher(item[None, :length]).logits[0], alone)  # as `predict` does, without a mask


@pytest.mark.parametrize("network", [TINY.network, {"num_hidden_layers": 1, "intermediate_size": 64}])
def test_a_tenth_of_a_second_is_enough(network):
    teacher = build_teacher(TINY.replace(network=network, num_hidden_layers=network["num_hidden_layers"]), LABELS)
    student = DistilledStudent(first_layers(teacher, 1), teacher_layers=(1,), width=teacher.config.hidden_size)
    output = student.train()(input_values=torch.randn(2, 1600), attention_mask=torch.ones(2, 1600, dtype=torch.long))
    assert output.logits.isfinite().all() and output.hidden_states[0].shape[1] >= 1


def test_a_saved_student_is_a_plain_classifier_without_heads(teacher, waves, tmp_path):
    student = DistilledStudent(first_layers(teacher, MLKD.student_layers), MLKD.teacher_layers, WIDTH).eval()
    MLKDExperiment.save(student.student, tmp_path)
    loaded = Wav2Vec2ForSequenceClassification.from_pretrained(tmp_path)
    plain = Wav2Vec2ForSequenceClassification(
        Wav2Vec2Config(**TINY.network | {"num_hidden_layers": MLKD.student_layers})
    )
    assert loaded.state_dict().keys() == student.student.state_dict().keys()
    assert len(load_file(tmp_path / "model.safetensors")) == len(plain.state_dict())
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in student.student.state_dict().items())
    close(loaded(waves[:1]).logits, student(input_values=waves[:1]).logits)


def test_a_saved_model_works_in_transformers_pipeline(teacher, tmp_path):
    TeacherExperiment.save(teacher, tmp_path)
    raw = np.random.default_rng(1).normal(0.2, 0.01, 8000).astype(np.float32)
    scores = pipeline("audio-classification", str(tmp_path))({"raw": raw, "sampling_rate": 16_000})
    with torch.inference_mode():
        logits = teacher.eval()(encoders.normalise(torch.from_numpy(raw)[None], torch.tensor([8000]))).logits[0]
    wanted = dict(zip(LABELS, softmax(logits, -1).tolist(), strict=True))
    assert {row["label"]: row["score"] for row in scores} == pytest.approx(wanted, abs=1e-5)


def test_a_frozen_teacher_is_not_reached_by_the_students_train_mode(teacher):
    frozen = encoders.freeze(teacher)
    student = DistilledStudent(first_layers(frozen, MLKD.student_layers), MLKD.teacher_layers[-1:], WIDTH)
    assert student.train().student.training and not frozen.training
    assert not any(p.requires_grad for p in frozen.parameters())
    assert all(p.requires_grad for p in student.parameters())
