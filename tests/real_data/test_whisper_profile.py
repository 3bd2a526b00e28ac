"""Profile `whisper` from end to end: the published weights of tiny.en as the hub's cache holds them, real speech."""

import shutil

import numpy as np
import pytest
import soundfile
import torch
from huggingface_hub import constants
from transformers import AutoModelForAudioClassification, WhisperFeatureExtractor, WhisperModel, pipeline

from ser_kd_utils.data.audio import SAMPLE_RATE, decode
from ser_kd_utils.methods.mlkd.experiment import MLKDExperiment
from ser_kd_utils.methods.teacher import encoders
from ser_kd_utils.methods.teacher.settings import TeacherSettings

SPEAKERS = ("03", "08", "09", "10")
EMOTIONS = {"W": "angry", "F": "happy", "N": "neutral", "T": "sad"}
LABELS = tuple(EMOTIONS.values())
SETTINGS = TeacherSettings.of("whisper")
NOISE = {"rain": "rain_esc10_1-17367-A.flac", "street": "street_blanket_city.flac"}
FEW = "teacher.epochs=2, teacher.batch_size=4, mlkd.epochs=1, mlkd.batch_size=2, noise.test_snr_db=(0,)"


@pytest.fixture(scope="module")
def checkpoint(shared_data):
    return shared_data.parent / "models" / "whisper-tiny.en-encoder"


@pytest.fixture(scope="module", autouse=True)
def hub_cache(checkpoint, tmp_path_factory):
    """The profile's hub name and commit, as a download leaves them."""
    cache = tmp_path_factory.mktemp("hub")
    folder = cache / f"models--{SETTINGS.checkpoint.replace('/', '--')}" / "snapshots" / SETTINGS.revision
    shutil.copytree(checkpoint, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        yield


def test_the_teacher_hears_what_transformers_own_encoder_hears(checkpoint, shared_data):
    """Over 30 s, states and levels equal those of WhisperModel's encoder on its own feature extractor's log-mel."""
    wave = decode(min((shared_data / "librispeech_mini").rglob("*.flac")))[: 8 * SAMPLE_RATE]
    extractor = WhisperFeatureExtractor.from_pretrained(checkpoint)
    features = extractor(wave, sampling_rate=SAMPLE_RATE, return_tensors="pt")["input_features"]
    plain = WhisperModel.from_pretrained(checkpoint, dtype=torch.float32).encoder.eval()
    teacher = encoders.build_teacher(TeacherSettings.of("whisper", max_seconds=30.0), LABELS).eval()
    ours = encoders.inputs_of(teacher.config).prepare_inputs(torch.from_numpy(wave)[None], torch.tensor([len(wave)]))
    with torch.inference_mode():
        theirs = plain(features, output_hidden_states=True).hidden_states
        states = teacher(**ours, output_hidden_states=True).hidden_states
    assert len(states) == len(theirs) == 5
    for state, wanted in zip(states, theirs, strict=True):
        torch.testing.assert_close(state, wanted, rtol=1e-3, atol=2e-3)


def test_the_profiles_teacher_hears_three_seconds_with_the_published_weights():
    teacher = encoders.build_teacher(SETTINGS, LABELS)
    assert sum(p.numel() for p in encoders.encoder_of(teacher).parameters()) == 8_208_384 - (1500 - 150) * 384
    assert encoders.first_layers(teacher, 1).num_parameters() == 2_467_332
    assert teacher.encoder.embed_positions.weight.shape == (150, 384)


@pytest.fixture(scope="module")
def corpus(shared_data, tmp_path_factory):
    folder, rows = tmp_path_factory.mktemp("few"), ["utterance,path,label,speaker"]
    for speaker in SPEAKERS:
        for code, label in EMOTIONS.items():
            source = min((shared_data / "emodb").glob(f"{speaker}???{code}*.flac"))
            soundfile.write(folder / f"{source.stem}.wav", decode(source), SAMPLE_RATE)
            rows.append(f"{source.stem},{source.stem}.wav,{label},{speaker}")
    (folder / "few.csv").write_text("\n".join(rows) + "\n")
    for kind, name in NOISE.items():
        (folder / "noise" / kind).mkdir(parents=True)
        shutil.copy(shared_data / "noise" / name, folder / "noise" / kind)
    return folder


def test_mlkd_of_whisper_from_end_to_end(corpus, checkpoint, tmp_path):
    """Teacher, frozen teacher and distilled student; the record names the weights; the same numbers a second time."""
    records = []
    for place in ("one", "two"):
        options = {"data_root": str(corpus / "few.csv"), "noise_dir": str(corpus / "noise"), "overrides": FEW}
        experiment = MLKDExperiment("manifest", "whisper", results=str(tmp_path / place), **options)
        records.append({name: experiment.teachers.run(name) for name in ("a", "a0")} | {"e": experiment.run("e")})
    for name, run in records[0].items():
        again = records[1][name].predictions
        assert all(map(np.array_equal, run.predictions["logits"], again["logits"])), name
    (weights,) = records[0]["a"].info["checkpoint_sha256"].values()
    assert len(weights) == 64 and records[0]["a"].info["settings"]["teacher"]["checkpoint"] == "openai/whisper-tiny.en"
    assert "the first 3 s of each utterance" in records[0]["e"].info["protocol"]["test"]
    assert records[0]["e"].info["parameters"] == 2_467_332

    # frozen: no weight of the encoder moved; fine-tuned: they did
    fresh = encoders.encoder_of(encoders.build_teacher(SETTINGS, experiment.labels)).state_dict()
    for name, moved in (("a0", False), ("a", True)):
        network = AutoModelForAudioClassification.from_pretrained(records[0][name].folder / "model")
        own = encoders.encoder_of(network).state_dict()
        assert any(not torch.equal(own[key], fresh[key]) for key in fresh) == moved

    # the recorded prediction is what anybody's pipeline says of the file
    student = records[0]["e"]
    clean = student.predictions.query("checkpoint == 'best' and condition == 'clean'").iloc[0]
    wave = experiment.audio[clean["utterance"]]
    scores = pipeline("audio-classification", str(student.folder / "model"))(
        {"raw": wave, "sampling_rate": SAMPLE_RATE}
    )
    assert max(scores, key=lambda row: row["score"])["label"] == clean["prediction"]
