"""DKDFMH: its objective, both protocols and their records, and what each variant learns from whom."""

from __future__ import annotations

import dataclasses
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.io import wavfile
from torch.nn.functional import cross_entropy
from transformers import AutoModelForAudioClassification

from ser_kd_utils.data.audio import decode
from ser_kd_utils.methods.dkdfmh.experiment import DKDFMHExperiment
from ser_kd_utils.methods.dkdfmh.loss import Decoupled, decoupled_kd
from ser_kd_utils.methods.dkdfmh.model import features_of
from ser_kd_utils.methods.dkdfmh.settings import DKDFMHSettings
from ser_kd_utils.methods.teacher import encoders
from ser_kd_utils.methods.teacher.experiment import TeacherExperiment
from ser_kd_utils.methods.teacher.settings import TeacherSettings
from ser_kd_utils.training import experiment as base
from ser_kd_utils.training.losses import kd_loss

LABELS = ("angry", "happy", "neutral", "sad")
SEGMENT, HOP = 4000, 2000  # samples
SMALL = {
    "epochs": 3, "segment": 0.25, "train_overlap": 0.125, "test_overlap": 0.2, "channels": (2, 4, 4, 4, 4),
    "head_dim": 4, "teacher_head_dim": 8, "beta": 2.0, "temperature": 2.0, "batch_size": 16, "lr": 0.01,
    "lr_drops": (0.6, 0.85), "weight_decay": 0.1, "alphas": (0.5, 1.0), "betas": (1.0, 8.0), "temperatures": (4.0,),
    "head_counts": (1, 4),
}  # fmt: skip
NOISES = ("hum", "rain")

# What a variant's training is given otherwise than that of cnn-dkd.
ALONE = {"objective": "CrossEntropy", "teacher": []}
VARIANTS = {
    "cnn-teacher": ALONE | {"heads": (8, 8), "num_attention_heads": 8, "head_dim": 8},
    "cnn-alone": ALONE,
    "cnn-kd": {"loss": "kd"},
    "cnn-dkd": {},
    "cnn-whisper": {"teacher": ["a"]},
    "cnn-tckd": {"beta": 0.0},
    "cnn-nckd": {"alpha": 0.0},
    "cnn-kd-same-temperature": {"loss": "kd", "kd_temperature": 2.0},
    "cnn-alpha-0.5": {"alpha": 0.5},
    "cnn-beta-1": {"beta": 1.0},
    "cnn-beta-8": {"beta": 8.0},
    "cnn-temperature-4": {"temperature": 4.0},
    "cnn-kd-weight-0.5-temperature-4": {"loss": "kd", "alpha": 0.5},
    "cnn-heads-1": {"num_attention_heads": 1, "heads": (1, 4)},
    "cnn-attention-text": {"attention": "text"},
    "cnn-mfcc": {"features": "mfcc"},
    "cnn-alone-noisy": ALONE | {"noise": NOISES},
    "cnn-dkd-noisy": {"noise": NOISES},
}

pytestmark = pytest.mark.usefixtures("little_garbage")


class Given(Exception):
    """Raised in the place of a training, with what it was given."""


@pytest.fixture(scope="module")
def corpus(tones, tmp_path_factory):
    """The tones; of each class one is a sample shorter than a segment, another just as long. Beside it two noises."""
    folder = shutil.copytree(tones.parent, tmp_path_factory.mktemp("corpus") / "tones")
    for speaker, samples in ((3, SEGMENT - 1), (4, SEGMENT)):
        for path in folder.glob(f"*-{speaker}-1.wav"):
            rate, wave = wavfile.read(path)
            wavfile.write(path, rate, wave[:samples])
    rng = np.random.default_rng(0)
    (folder / "noise").mkdir()
    for kind in NOISES:
        wavfile.write(folder / "noise" / f"{kind}_1.wav", 16_000, rng.normal(0, 3000, 32_000).astype(np.int16))
    return folder / "corpus.csv"


@pytest.fixture(scope="module")
def make(corpus, tmp_path_factory):
    """Makes an experiment with the settings SMALL for a profile's own."""

    def make(protocol="P2", overrides="", **options) -> DKDFMHExperiment:
        small = {f"dkdfmh.{name}": value for name, value in SMALL.items() if f"dkdfmh.{name}=" not in overrides}
        all_overrides = ", ".join([f"{name}={value!r}" for name, value in small.items()] + [overrides])
        return DKDFMHExperiment("manifest", protocol=protocol, overrides=all_overrides, **folders | options)

    folders = {"data_root": str(corpus), "noise_dir": str(corpus.with_name("noise"))}
    folders["results"] = str(tmp_path_factory.mktemp("results"))
    return make


@pytest.fixture(scope="module")
def trained(make):
    """By protocol: an experiment, and the record of a variant in it (under P2 its teacher is trained first)."""
    names = {"P1": "cnn-alone", "P2": "cnn-dkd-noisy"}
    made = {protocol: make(protocol) for protocol in names}
    return {protocol: (made[protocol], made[protocol].run(name)) for protocol, name in names.items()}


@pytest.fixture
def given(monkeypatch):
    """What the training of a variant would be given."""

    def fit(model, objective, dataset, dev, settings, **others):
        raise Given(SimpleNamespace(model=model, objective=objective, dataset=dataset, settings=settings, **others))

    def given(own, name):
        with pytest.raises(Given) as caught:
            own.trained(name)
        return caught.value.args[0]

    monkeypatch.setattr(base, "fit", fit)
    return given


@pytest.fixture
def own(trained, monkeypatch):
    """Under P2, with a teacher (a) of random weights."""
    own, _ = trained["P2"]
    torch.manual_seed(7)
    teacher = encoders.freeze(encoders.build_teacher(TeacherSettings.of("tiny"), LABELS))
    monkeypatch.setattr(own.teachers, "teacher", lambda tuned=True, name="a": teacher)
    return own


# --- the objective


def terms(progress: float, **changes) -> tuple[dict, tuple]:
    rng, labels = torch.Generator().manual_seed(0), torch.arange(8) % 4
    ours, theirs = (3 * torch.randn(8, 4, generator=rng) for _ in range(2))
    batch, objective = {"labels": labels, "teacher_logits": theirs}, Decoupled(DKDFMHSettings.of("paper", **changes))
    found = objective(batch, SimpleNamespace(logits=ours), None, progress)
    return {name: term.item() for name, term in found.items()}, (ours, theirs, labels)


@pytest.mark.parametrize(("alpha", "beta", "ce"), [(1.0, 2.0, 1.0), (0.5, 8.0, 0.3), (0.0, 2.0, 1.0), (1.0, 0.0, 2.0)])
def test_the_objective_is_the_weighted_sum_of_cross_entropy_and_distillation(alpha, beta, ce):
    weights = {"alpha": alpha, "beta": beta, "ce_weight": ce, "temperature": 3.0, "kd_temperature": 5.0}
    found, (ours, theirs, labels) = terms(0.5, **weights)
    target, others = (part.item() for part in decoupled_kd(ours, theirs, labels, 3.0))
    wanted = {"ce": ce * cross_entropy(ours, labels).item(), "tckd": alpha * target, "nckd": beta * others}
    assert found == pytest.approx(wanted) and min(target, others) > 0.01
    classical, _ = terms(0.5, loss="kd", **weights)
    assert classical == pytest.approx({"ce": wanted["ce"], "kd": alpha * kd_loss(ours, theirs, 5.0).item()})


@pytest.mark.parametrize("loss", ["dkd", "kd"])
@pytest.mark.parametrize(("epochs", "weights"), [(50, [1 / 4, 2 / 4, 3 / 4, 1, 1]), (24, [1 / 1.92, 1]), (12, [1, 1])])
def test_distillation_sets_in_over_the_first_epochs(epochs, weights, loss):
    whole, _ = terms(0.9, epochs=epochs, loss=loss)
    for step in range(3 * len(weights)):
        found, _ = terms(step / (3 * epochs), epochs=epochs, loss=loss)
        weight = weights[step // 3]
        assert found == pytest.approx({name: term * (weight if name != "ce" else 1) for name, term in whole.items()})


# --- protocols and their records


def test_p1_drops_utterances_shorter_than_a_segment_and_p2_repeats_them(trained):
    short, exact = ({f"{label}-{speaker}-1" for label in LABELS} for speaker in (3, 4))
    for protocol, count in (("P1", 44), ("P2", 48)):
        own, _ = trained[protocol]
        heard = {*own.train, *own.dev, *own.test}
        assert len(heard) == len(own.train) + len(own.dev) + len(own.test) == count
        assert heard & (short | exact) == (exact if protocol == "P1" else short | exact)
    data = own.dataset("cnn-alone")
    assert short | exact <= set(data.classes) == set(own.train) and len(data) == 16 * 3 + 8


@pytest.mark.parametrize("protocol", ["P1", "P2"])
def test_a_record_names_its_protocol_and_holds_four_checkpoints(trained, corpus, protocol):
    own, run = trained[protocol]
    p1, card, table = protocol == "P1", run.info["protocol"], run.predictions.fillna({"snr_db": 99})
    assert run.id == f"dkdfmh__cnn-{'alone+P1' if p1 else 'dkd-noisy'}__fold-1__seed-0"
    assert run.folder.parents[1] == own.folder and card["mark"] == protocol
    assert run.info["variant"] == ("cnn-alone" if p1 else "cnn-dkd-noisy")
    assert f"--protocol {protocol}" in run.info["command"]
    assert card["name"].startswith("P1: the paper" if p1 else "P2: the corpus")
    assert (card["optimistic"], card["speaker_independent"]) == (p1, not p1)
    grid = {("clean", 99), *((kind, snr) for kind in NOISES for snr in own.noise_settings.test_snr_db)}
    middle, clean = {(kind, snr) for kind, snr in grid if snr in (10, 99)}, {("clean", 99)}
    for checkpoint, wanted in {"best": grid, "last": middle, "test-UA": clean, "test-WA": clean}.items():
        some = table[table["checkpoint"] == checkpoint]
        assert set(zip(some["condition"], some["snr_db"], strict=True)) == wanted
        assert len(some) == len(own.test) * len(wanted) and set(some["utterance"]) == set(own.test)
        right = (some["prediction"] == some["label"])[some["condition"] == "clean"]
        if checkpoint.startswith("test"):
            score = right.groupby(some["label"]).mean().mean() if checkpoint == "test-UA" else right.mean()
            assert run.history[checkpoint.replace("-", "_")].max() == pytest.approx(score)
    assert table["checkpoint"].nunique() == 4 and (table["label"] == table["utterance"].str.split("-").str[0]).all()
    parts = [] if p1 else ["tckd", "nckd"]
    assert run.history[["loss", "ce", *parts, "dev_UA", "dev_WA"]].notna().all(axis=None) and len(run.history) == 3
    assert run.info["train_noise"] == ([] if p1 else [*NOISES])
    assert str(corpus.parent) not in (run.folder / "run.json").read_text()


def test_a_saved_model_gives_the_records_predictions(trained, corpus):
    for own, run in trained.values():
        model = AutoModelForAudioClassification.from_pretrained(run.folder / "model")
        assert tuple(model.config.id2label.values()) == own.labels == LABELS
        table = run.predictions.query("checkpoint == 'best' and condition == 'clean'").set_index("utterance")
        for name in own.test[::5]:
            with torch.inference_mode():
                logits = model(torch.from_numpy(decode(corpus.parent / f"{name}.wav"))[None]).logits[0]
            np.testing.assert_allclose(table["logits"][name].astype(float), logits, rtol=2e-3, atol=1e-4)


def test_both_protocols_share_a_folder_and_no_record(trained, make):
    (p1, one), (p2, two) = trained["P1"], trained["P2"]
    assert p1.folder == p2.folder and one.folder != two.folder
    assert p1._run_folder("cnn-alone") != p2._run_folder("cnn-alone")


def test_iemocap_is_its_improvised_part_under_p1(corpus, tmp_path, monkeypatch):
    asked, load = [], base.load_corpus

    def spy(name, root):
        asked.append(name)
        return load("manifest", root)

    monkeypatch.setattr(base, "load_corpus", spy)
    given = {"data_root": str(corpus), "results": str(tmp_path)}
    for name in ("iemocap", "iemocap-dev-speakers"):
        asked.clear()
        made = [DKDFMHExperiment(name, protocol=protocol, **given) for protocol in ("P1", "P2")]
        assert asked == ["iemocap-improvised", name]
        assert [own.folder.name for own in made] == [f"{name}-tiny"] * 2 and {own.name for own in made} == {name}
        assert [own.split.protocol for own in made] == ["random", "speaker-groups"]
        assert f"--corpus {name} " in made[0].command("cnn-alone")


def test_what_a_protocol_needs_is_said_in_one_error(make):
    with pytest.raises(ValueError, match="No protocol 'P3': choose one of P1, P2"):
        make("P3")
    with pytest.raises(ValueError, match="No utterance to train on: all were left out, as shorter than a segment"):
        make("P1", overrides="dkdfmh.segment=0.6").run("cnn-alone")


def test_dev_speech_alone_chooses_the_epoch_and_test_speech_only_what_is_named_after_it(make, tmp_path, monkeypatch):
    """Which classes are right in each epoch is given; logits are as large as the epoch's number."""
    right = {"test": [{"happy", "neutral"}, {"angry"}, {"neutral", "sad"}], "train": [{"sad"}, set(), {"sad", "angry"}]}
    calls, rates, heard, fit = {"test": 0, "train": 0}, [], [], base.fit

    def predict(self, model, utterances, conditions, part):
        epoch = calls[part] = calls[part] + 1
        known, labels = right[part][epoch - 1] if epoch <= 3 else (), [self.label_of[u] for u in utterances]
        said = [(LABELS.index(label) + (label not in known)) % 4 for label in labels]
        table = pd.DataFrame({"utterance": utterances, "condition": "clean", "snr_db": np.nan})
        return table.assign(logits=list(np.eye(4, dtype=np.float16)[said] * epoch))

    def watched(model, *rest, optimizer, **others):
        optimizer.register_step_pre_hook(lambda its, *_: rates.append(its.param_groups[0]["lr"]))
        model.register_forward_pre_hook(lambda _, __, keywords: heard.append(keywords["features"]), with_kwargs=True)
        return fit(model, *rest, optimizer=optimizer, **others)

    monkeypatch.setattr(DKDFMHExperiment, "_predict", predict)
    monkeypatch.setattr(base, "fit", watched)
    own = make(results=str(tmp_path))
    own.test = [u for u in own.test if u.startswith("angry") or u.endswith("-0-0")]  # 4, 1, 1, 1: UA is not WA
    run = own.run("cnn-alone")
    assert run.history["dev_UA"].tolist() == [0.25, 0, 0.5] and run.info["best_epoch"] == 3
    assert run.history["test_UA"].tolist() == [0.5, 0.25, 0.5]
    assert run.history["test_WA"].tolist() == pytest.approx([2 / 7, 4 / 7, 2 / 7])
    chosen = {name: np.stack(some["logits"]).max(1).tolist() for name, some in run.predictions.groupby("checkpoint")}
    assert chosen["test-UA"] == [1] * 7 and chosen["test-WA"] == [2] * 7  # the first among equals
    # of the same training: the learning rate of each of 12 steps, and each epoch in its own order
    np.testing.assert_allclose(rates, [1e-2] * 8 + [1e-3] * 3 + [1e-4], rtol=1e-6)
    data = own.dataset("cnn-alone")
    for epoch in range(3):
        data.set_epoch(epoch)
        assert torch.equal(torch.cat(heard[4 * epoch : 4 * epoch + 4]), data.features[list(data.sampler(16))])


def test_the_learning_rate_falls_exactly_at_the_end_of_epochs(own, given, monkeypatch):
    monkeypatch.setattr(own, "settings", own.settings.replace(lr_drops=(0.2, 0.4, 0.6, 0.8)))
    schedule = given(own, "cnn-alone").schedule
    assert [schedule(step / 350) for step in range(350)] == pytest.approx(np.repeat(10.0 ** -np.arange(5), 70))


# --- what a variant learns from


def cut(own) -> torch.Tensor:
    """The training segments once more."""
    waves = [np.resize(own.audio[u], max(SEGMENT, len(own.audio[u]))) for u in own.train]
    return torch.from_numpy(np.stack([w[i : i + SEGMENT] for w in waves for i in range(0, len(w) - SEGMENT + 1, HOP)]))


@torch.inference_mode()
def teachers_logits(own, utterances) -> dict[str, torch.Tensor]:
    """What each teacher says: the CNN of each clean segment, the other of the utterance it is cut from."""
    cnn = AutoModelForAudioClassification.from_pretrained(own.run("cnn-teacher").folder / "model")
    waves = [torch.from_numpy(own.audio[u])[None] for u in utterances]
    prepare = encoders.inputs_of_teacher(TeacherSettings.of("tiny")).prepare_inputs
    inputs = [prepare(wave, torch.tensor([wave.shape[1]])) for wave in waves]
    return {
        "cnn-teacher": cnn(features=features_of(cut(own), cnn.config)).logits,
        "a": torch.cat([own.teachers.teacher()(**each).logits for each in inputs]),
    }


def test_the_trainings_of_two_variants_differ_in_what_the_variants_say(own, given):
    """Also in noise the teacher hears clean segments, and of the log filter bank where the student hears MFCC."""
    fits = {name: given(own, name) for name in own.variants}
    logits = teachers_logits(own, [utterance for utterance, _ in fits["cnn-dkd"].dataset.windows])

    def conditions(fit) -> dict:
        config, said, (group,) = fit.model.config, fit.dataset.targets, fit.optimizer.param_groups
        assert getattr(fit.objective, "settings", fit.settings) == fit.settings
        assert fit.settings.features == config.features and fit.settings.attention == config.attention
        says = said.get("teacher_logits", torch.full((56, 4), torch.inf))
        return dataclasses.asdict(fit.settings) | {
            "heads": (config.num_attention_heads, config.head_dim),
            "lengths": (config.segment, config.hop, config.frame_step, len(fit.dataset)),
            "objective": type(fit.objective).__name__,
            "teacher": [who for who in logits if torch.allclose(says, logits[who], atol=1e-3)],
            "noise": tuple(fit.dataset.types),
            "optimizer": (type(fit.optimizer).__name__, group["lr"], group["weight_decay"]),
            "others": (fit.seed, fit.dataset.seed, fit.speech_level, fit.dataset.snr_db),
        }

    found = {name: conditions(fit) for name, fit in fits.items()}
    dkd = found["cnn-dkd"]
    assert (dkd["objective"], dkd["teacher"], dkd["noise"]) == ("Decoupled", ["cnn-teacher"], ())
    assert dkd["optimizer"] == ("Adam", 0.01, 0.1) and dkd["others"] == (0, 0, "active", (0.0, 20.0))
    assert dkd["heads"] == (4, 4) and dkd["lengths"] == (SEGMENT, 800, 320, 56)
    assert {name: {key: use[key] for key in use if use[key] != dkd[key]} for name, use in found.items()} == VARIANTS
    # those of one shape start from the same weights
    start = {name: torch.nn.utils.parameters_to_vector(fit.model.parameters()) for name, fit in fits.items()}
    same = ("cnn-alone", "cnn-kd", "cnn-whisper", "cnn-mfcc")
    assert all(torch.equal(start["cnn-dkd"], start[name]) for name in same)


@pytest.mark.parametrize("name", ["cnn-alone", "cnn-mfcc", "cnn-alone-noisy"])
def test_normalisation_is_that_of_the_training_segments_alone(own, given, monkeypatch, name):
    def normalisation(changed=()):
        monkeypatch.setattr(own, "_clean", {})
        monkeypatch.setattr(own, "audio", {u: audio[u] * (3 if u in changed else 1) for u in own.label_of})
        monkeypatch.setattr(own, "fingerprint", lambda name: "of sound that was changed in memory")
        fit = given(own, name)
        return torch.stack([fit.model.mean.flatten(), fit.model.std.flatten()]), fit

    audio = own.audio
    first, fit = normalisation()
    heard = own.features(name, fit.dataset) if "noisy" in name else features_of(cut(own), fit.model.config)
    columns = (heard.transpose(1, 2) if name == "cnn-mfcc" else heard).flatten(0, 1).double()
    torch.testing.assert_close(
        first.double(), torch.stack([columns.mean(0), columns.std(0, correction=0)]), atol=1e-3, rtol=1e-3
    )
    assert torch.equal(normalisation(own.dev + own.test)[0], first)
    assert not torch.allclose(normalisation(own.train)[0][0], first[0], atol=0.1)


# --- what is read again, and what is not


def test_a_second_run_reads_the_record_unless_code_changed(trained, make, given, monkeypatch):
    for protocol, (_, run) in trained.items():
        pd.testing.assert_frame_equal(make(protocol).run(run.info["variant"]).predictions, run.predictions)
    monkeypatch.setattr(base, "code_of", lambda *_: "other code")
    with pytest.raises(Given):
        make("P1").run("cnn-alone")


def test_a_change_makes_the_variants_stale_that_it_concerns_and_no_other(trained, make, monkeypatch):
    (p1, _), (own, _) = trained["P1"], trained["P2"]
    before = {name: own.fingerprint(name) for name in own.variants}
    every, folders = set(before), {own._run_folder(name) for name in own.variants}
    assert len(set(before.values())) == len(folders) == len(every) and every == VARIANTS.keys()
    assert set(p1.variants) == {"cnn-teacher", "cnn-alone", "cnn-kd", "cnn-dkd"}
    assert not {p1.fingerprint(name) for name in p1.variants} & set(before.values())

    def stale(other) -> set[str]:
        return {name for name, value in before.items() if other.fingerprint(name) != value}

    assert stale(make(overrides="mlkd.gamma=3.0")) == set()
    assert stale(make(overrides="teacher.epochs=1")) == {"cnn-whisper"}
    for options in (
        {"overrides": "dkdfmh.max_grad_norm=1.0"},
        {"overrides": "noise.speech_level='overall'"},
        {"fold": 2},
        {"seed": 1},
    ):
        assert stale(make(**options)) == every
    taught = make()
    taught.variants["cnn-teacher"] = dataclasses.replace(own.variants["cnn-teacher"], overrides={"lr": 0.1})
    assert every - stale(taught) == {"cnn-alone", "cnn-alone-noisy", "cnn-whisper"}


def test_the_teacher_is_the_record_of_notebook_01(trained, corpus):
    own, _ = trained["P2"]
    results, noise = str(own.folder.parent), str(corpus.with_name("noise"))
    given = {"data_root": str(corpus), "noise_dir": noise, "results": results, "overrides": own.overrides}
    theirs = TeacherExperiment("manifest", **given)
    assert own.teachers._run_folder("a") == theirs._run_folder("a") and own.folder == theirs.folder
    assert own.teachers.fingerprint("a") == theirs.fingerprint("a")
