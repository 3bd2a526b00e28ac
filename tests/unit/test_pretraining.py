"""Self-supervised pre-training: it learns melodies whose notes follow from their neighbours; its accuracy is honest."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import Wav2Vec2Config, Wav2Vec2Model

from ser_kd_utils import pretraining
from ser_kd_utils.audio import SAMPLE_RATE
from ser_kd_utils.models.wav2vec2 import GUARDS, build_teacher
from ser_kd_utils.pretraining import OBJECTIVE, pretrain
from ser_kd_utils.settings import TeacherSettings

SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
NETWORK = TeacherSettings.of("tiny").network | SMALL | {"conv_dim": (16,) * 6}
NOTES = 220 * 2 ** (np.arange(8) / 2)
CHANCE = 1 / (OBJECTIVE["num_negatives"] + 1)


def melody(name: int, seconds: float) -> np.ndarray:
    """Up the scale, 0.1 s a note, over and over, from a note that differs from melody to melody."""
    rng = np.random.default_rng(name)
    time = np.arange(int(seconds * SAMPLE_RATE))
    hertz = NOTES[(time // 1600 + rng.integers(8)) % 8]
    wave = 0.3 * np.sin(2 * np.pi * hertz * time / SAMPLE_RATE) + 0.003 * rng.standard_normal(len(time))
    return wave.astype(np.float32)


AUDIO = {f"melody-{name}": melody(name, 1.0 + name / 16) for name in range(12)}


def encoder(**changes) -> Wav2Vec2Model:
    torch.manual_seed(1)
    return Wav2Vec2Model(Wav2Vec2Config(**NETWORK | GUARDS | changes))


def trained(epochs: int = 1, seed: int = 0, **changes):
    """A fresh encoder after its training: weights and history."""
    network = encoder()
    torch.seed()  # what was drawn before must not matter
    np.random.seed()  # noqa: NPY002, it is transformers' own generator
    history = pretrain(network, AUDIO, list(AUDIO), epochs=epochs, seed=seed, batch_size=4, **changes)
    return network.state_dict(), history


@pytest.fixture(scope="module")
def learnt():
    return trained(epochs=40, lr=3e-3, seconds=1.5)


def test_the_loss_falls_and_the_true_frame_is_told_from_the_others(learnt):
    _, history = learnt
    assert history.index.to_list() == list(range(1, 41)) and history.index.name == "epoch"
    assert history.loss.iloc[-1] < 0.75 * history.loss.iloc[0]
    assert history.accuracy.iloc[0] < 2.5 * CHANCE and history.accuracy.iloc[-1] > 5 * CHANCE
    assert np.isfinite(history).all(axis=None)


def test_cnn_transformer_and_mask_vector_are_all_trained_and_finite(learnt):
    before, (after, _) = encoder().state_dict(), learnt
    assert after.keys() == before.keys() and "masked_spec_embed" in after
    assert [name for name in before if torch.equal(before[name], after[name])] == []
    assert all(value.isfinite().all() for value in after.values())


def test_a_seed_gives_the_same_weights_whatever_was_drawn_before_and_another_seed_others():
    (once, history), (again, same_history), (other, _) = trained(seed=3), trained(seed=3), trained(seed=4)
    assert all(torch.equal(once[name], again[name]) for name in once) and history.equals(same_history)
    assert not torch.equal(once["masked_spec_embed"], other["masked_spec_embed"])


def random_states() -> list:
    return [*np.random.get_state()[1:3], torch.get_rng_state()]  # noqa: NPY002


@pytest.mark.parametrize("utterance", ["melody-0", "broken"])
def test_global_random_states_are_left_as_they_were_even_after_an_error(utterance):
    network, audio = encoder(), AUDIO | {"broken": np.full(SAMPLE_RATE, "x")}
    before = random_states()
    with pytest.raises(TypeError) if utterance == "broken" else nullcontext():
        pretrain(network, audio, [utterance], epochs=1, seed=0)
    assert all(map(np.array_equal, before, random_states()))


def test_training_starts_from_the_weights_that_the_encoder_brings():
    before, (after, _) = encoder().state_dict(), trained(lr=0.0)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_masked_frames_are_hidden_from_the_transformer_though_the_teacher_switches_masking_off(monkeypatch):
    seen = []
    step = pretraining._step

    def spy(model, waves, lengths):
        def note(_module, inputs):
            seen.append((inputs[0] == model.wav2vec2.masked_spec_embed).all(-1))

        with model.wav2vec2.encoder.register_forward_pre_hook(note):
            return step(model, waves, lengths)

    monkeypatch.setattr(pretraining, "_step", spy)
    network = encoder()
    pretrain(network, AUDIO, list(AUDIO), epochs=1, seed=0, batch_size=4)
    shares = torch.cat([hidden.float().mean(1) for hidden in seen])
    assert not network.config.apply_spec_augment and len(shares) == len(AUDIO)
    assert shares.min() > 0.15 and shares.max() < 0.65 and 0.35 < shares.mean() < 0.55  # the paper: 0.49


def test_no_mask_and_no_negative_lies_beyond_the_end_of_an_utterance(monkeypatch):
    drawn = []
    sample = pretraining._sample_negative_indices

    def spy(shape, number, masks):
        drawn.append((masks, sample(shape, number, masks)))
        return drawn[-1][1]

    monkeypatch.setattr(pretraining, "_sample_negative_indices", spy)
    audio = {"short": melody(0, 1.0), "long": melody(1, 3.0)}
    pretrain(encoder(), audio, list(audio), epochs=3, seed=0)
    for masks, negatives in drawn:
        frames = masks.shape[1]
        lengths = np.sort([masks[row].nonzero()[0].max() for row in range(2)])
        assert lengths[0] < 50 <= lengths[1] < frames
        for row in range(2):
            assert masks[row].sum() > pretraining.SPAN
            assert masks.flatten()[negatives[row][masks[row]]].all()  # masked frames themselves
            assert (negatives[row][masks[row]] // frames == row).all()  # of the same utterance


def test_the_gumbel_temperature_falls_from_2_to_a_half(monkeypatch):
    temperatures = []
    step = pretraining._step

    def spy(model, *rest):
        temperatures.append(model.quantizer.temperature)
        return step(model, *rest)

    monkeypatch.setattr(pretraining, "_step", spy)
    trained(epochs=8)
    assert temperatures[0] == 2.0 and temperatures[12] == pytest.approx(1.0) and 0.5 < temperatures[-1] < 0.54
    assert np.all(np.diff(temperatures) < 0)


def test_accuracy_counts_the_true_target_first_among_its_negatives():
    # frames 0 to 2 of one utterance, all masked; the prediction of frame 1 points at frame 2's target
    targets = torch.eye(3)[None]
    output = SimpleNamespace(projected_states=targets[:, [0, 2, 2]], projected_quantized_states=targets)
    mask, negatives = torch.ones(1, 3, dtype=torch.bool), torch.tensor([[[1, 2], [0, 2], [0, 1]]])
    assert pretraining._accuracy(output, mask, negatives) == pytest.approx(2 / 3)
    mask[0, 1] = False
    assert pretraining._accuracy(output, mask, negatives) == 1


def test_one_code_for_every_frame_scores_no_better_than_chance():
    targets = torch.ones(1, 40, 8)
    output = SimpleNamespace(projected_states=torch.randn(1, 40, 8), projected_quantized_states=targets)
    negatives = torch.randint(40, (1, 40, 20))
    assert pretraining._accuracy(output, torch.ones(1, 40, dtype=torch.bool), negatives) == pytest.approx(1 / 21)


def test_a_teacher_starts_from_the_pretrained_encoder_and_keeps_its_own_head():
    teacher = build_teacher(TeacherSettings.of("tiny", network=NETWORK, layers=1), ("angry", "sad"))
    head = teacher.classifier.weight.clone()
    before = {name: value.clone() for name, value in teacher.wav2vec2.state_dict().items()}
    pretrain(teacher.wav2vec2, AUDIO, list(AUDIO), epochs=1, seed=0)
    assert not any(torch.equal(before[name], value) for name, value in teacher.wav2vec2.state_dict().items())
    assert torch.equal(teacher.classifier.weight, head)
    assert teacher(torch.zeros(1, SAMPLE_RATE)).logits.shape == (1, 2)


def test_short_utterances_are_left_out_and_nothing_but_short_ones_is_an_error():
    short = {f"word-{i}": melody(i, 0.3) for i in range(3)}
    alone, together = encoder(), encoder()
    melodies = list(AUDIO)[:4]
    pretrain(alone, AUDIO, melodies, epochs=1, seed=0)
    pretrain(together, AUDIO | short, [*short, *melodies], epochs=1, seed=0)
    assert torch.equal(alone.masked_spec_embed, together.masked_spec_embed)
    with pytest.raises(ValueError, match="at least 1 s; none of 3 is"):
        pretrain(encoder(), short, list(short), epochs=1, seed=0)
