"""Every number an experiment depends on, each with its value per profile and where it comes from.

`tiny` trains small networks from random weights on two CPU cores in minutes; `paper` starts from wav2vec2-base and
wants a GPU. Any corpus goes with any profile. Notebooks print `table()`, so that no setting is hidden.
"""

from __future__ import annotations

import ast
import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import pandas as pd

PROFILES = ("tiny", "paper")

PUBLISHED = "published"
CODE = "code of cited work"
ASSUMED = "assumed"


def setting(tiny: Any, paper: Any, source: str, note: str, choices: tuple[str, ...] = ()) -> Any:
    """A field whose value depends on the profile; `source` is PUBLISHED, CODE or ASSUMED and `note` says from where."""
    values = {"tiny": tiny, "paper": paper}
    return field(metadata={"values": values, "source": source, "note": note, "choices": choices})


@dataclass(frozen=True)
class Settings:
    """Base of all settings: build with `of(profile)`, change single values by keyword."""

    title: ClassVar[str]

    @classmethod
    def of(cls, profile: str, **changes: Any) -> Self:
        """The settings of a profile with some values changed.

        Raises ValueError for an unknown profile, an unknown setting or a word that is none of its choices.
        """
        if profile not in PROFILES:
            raise ValueError(f"Unknown profile {profile!r}: choose one of {', '.join(PROFILES)}.")
        fields = {f.name: f.metadata["values"][profile] for f in dataclasses.fields(cls)}
        unknown = sorted(set(changes) - set(fields))
        if unknown:
            raise ValueError(f"Unknown setting {', '.join(unknown)} for {cls.title}: choose among {', '.join(fields)}.")
        for f in dataclasses.fields(cls):
            choices = f.metadata["choices"]
            if choices and changes.get(f.name, choices[0]) not in choices:
                raise ValueError(f"{f.name}={changes[f.name]!r}: choose one of {', '.join(map(repr, choices))}.")
        return cls(**fields | changes)

    def table(self) -> pd.DataFrame:
        """What a notebook prints: setting, value, source, note.

        The source is that of the paper profile's value; any other value is assumed, and the note says what it departs
        from.
        """
        rows = []
        for f in dataclasses.fields(self):
            value, source = getattr(self, f.name), f.metadata["source"]
            rows.append(
                (f.name, value, source if value == f.metadata["values"]["paper"] else ASSUMED, f.metadata["note"])
            )
        return pd.DataFrame(rows, columns=["setting", "value", "source", "note"]).set_index("setting")


def parse_changes(text: str) -> dict[str, Any]:
    """`"epochs=2, levels=(6,)"` -> {"epochs": 2, "levels": (6,)}; values are Python literals.

    Raises ValueError for what is not a list of NAME=VALUE.
    """
    try:
        call = ast.parse(f"f({text})", mode="eval").body
        changes = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
        if call.args or None in changes or len(changes) < len(call.keywords):
            raise ValueError
        return changes
    except (SyntaxError, ValueError, AttributeError):
        message = f"{text!r} is not a list of settings such as epochs=2, teacher__checkpoint='folder' (text in quotes)."
        raise ValueError(message) from None


_TINY_NETWORK = {
    "hidden_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 288,
    "conv_dim": (32, 32, 32, 32, 32, 32),
    "conv_kernel": (20, 3, 3, 3, 3, 2),
    "conv_stride": (10, 2, 2, 2, 2, 2),
    "feat_extract_norm": "layer",
    "feat_extract_activation": "silu",
    "do_stable_layer_norm": True,
    "num_conv_pos_embeddings": 32,
    "num_conv_pos_embedding_groups": 4,
    "classifier_proj_size": 64,
    "hidden_dropout": 0.05,
    "attention_dropout": 0.05,
    "feat_proj_dropout": 0.05,
    "final_dropout": 0.05,
}


@dataclass(frozen=True)
class TeacherSettings(Settings):
    """The clean-speech teacher (notebook 01), shared by the methods."""

    title = "the teacher"

    checkpoint: str = setting("", "facebook/wav2vec2-base", ASSUMED, "hub name or folder; empty: random weights")
    revision: str = setting(
        "",
        "0b5b8e868dd84f03fd87d01f9c4ff0f080fecfe8",
        ASSUMED,
        "commit of a hub name; a folder has none. This one is known to hold a pickle, no safetensors: convert it once",
    )
    network: dict = setting(
        _TINY_NETWORK, {}, ASSUMED, "tiny: sized on dev speakers of EMO-DB folds 1 and 2; a checkpoint brings its own"
    )
    layers: int = setting(3, 12, ASSUMED, "transformer layers; a checkpoint of another depth is refused")
    freeze_cnn: bool = setting(False, True, CODE, "SpeechBrain IEMOCAP recipe; random weights must be trained")
    epochs: int = setting(22, 30, CODE, "SpeechBrain IEMOCAP recipe (30)")
    batch_size: int = setting(8, 24, ASSUMED, "utterances a step")
    lr_encoder: float = setting(1e-3, 1e-5, CODE, "SpeechBrain IEMOCAP recipe (1e-5)")
    lr_head: float = setting(1e-3, 1e-4, CODE, "SpeechBrain IEMOCAP recipe (1e-4)")
    weight_decay: float = setting(1e-2, 1e-6, ASSUMED, "AdamW")
    betas: tuple = setting((0.9, 0.98), (0.9, 0.98), CODE, "AdamW, as DistilHuBERT")
    warmup: float = setting(0.1, 0.07, CODE, "share of the steps, linear; then linear decay (DistilHuBERT 7 %)")
    clip: float = setting(1.0, 5.0, ASSUMED, "gradient norm")
    seconds: float = setting(
        2.0, 10.0, ASSUMED, "longest training piece, cropped at random; tests take whole utterances"
    )
    precision: str = setting("float32", "bf16", ASSUMED, "bf16: mixed precision where the GPU has it")
    pretraining_epochs: int = setting(0, 0, ASSUMED, "self-supervised, on unlabelled speech, before fine-tuning")

    def __post_init__(self) -> None:
        if self.from_hub and not re.fullmatch("[0-9a-f]{40}", self.revision):
            raise ValueError(
                f"checkpoint={self.checkpoint!r}, revision={self.revision!r}: there is no such folder, and a hub name "
                "wants as revision the 40 hex digits of a commit (branches and tags move)."
            )

    @property
    def from_hub(self) -> bool:
        """Whether the checkpoint is a hub name, neither a folder nor random weights."""
        return bool(self.checkpoint) and not Path(self.checkpoint).is_dir()


@dataclass(frozen=True)
class NoiseSettings(Settings):
    """Noise in training and test (notebook 00), shared by the methods."""

    title = "the noise"

    train_snr_db: tuple = setting((0.0, 20.0), (0.0, 20.0), CODE, "drawn uniformly, as RobustDistiller")
    train_types: tuple = setting((), (), ASSUMED, "noise types heard in training; empty: all of them")
    test_snr_db: tuple = setting(
        (20, 15, 10, 5, 0, -5),
        (20, 15, 10, 5, 0, -5),
        ASSUMED,
        "EUSIPCO 2019 IEMOCAP noise study, and one below training",
    )
    level: str = setting("active", "active", ASSUMED, "speech level over active frames; RobustDistiller: overall")


@dataclass(frozen=True)
class MLKDSettings(Settings):
    """Multi-level distillation into a small student in noise (notebook 02)."""

    title = "MLKD"

    student_layers: int = setting(1, 2, CODE, "DistilHuBERT (2 of 12)")
    levels: tuple = setting(
        (1, 2, 3), (4, 8, 12), CODE, "RobustDistiller 4, 8, 12 of 12; the same thirds of a tiny teacher"
    )
    gamma: float = setting(1.0, 1.0, ASSUMED, "weight of the feature loss beside cross-entropy")
    l1_weight: float = setting(1.0, 1.0, CODE, "of the feature loss, DistilHuBERT")
    cosine_weight: float = setting(1.0, 1.0, CODE, "lambda of DistilHuBERT")
    logit_weight: float = setting(0.0, 0.0, ASSUMED, "weight of distillation from the teacher's logits")
    temperature: float = setting(2.0, 2.0, ASSUMED, "of distillation from logits")
    stages: str = setting(
        "joint",
        "joint",
        ASSUMED,
        "two-stage: features only, then, from half the steps on, labels only",
        ("joint", "two-stage"),
    )
    initial: str = setting(
        "teacher", "teacher", CODE, "the student's first weights (DistilHuBERT)", ("teacher", "random")
    )
    target_network: str = setting(
        "fine-tuned",
        "fine-tuned",
        ASSUMED,
        "untuned: the teacher's encoder as it was before it",
        ("fine-tuned", "untuned"),
    )
    targets: str = setting(
        "utterance",
        "utterance",
        ASSUMED,
        "what the teacher hears: the whole clean utterance (computed once), or the clean or noisy piece (at each step)",
        ("utterance", "piece", "noisy piece"),
    )
    clean_share: float = setting(0.0, 0.0, ASSUMED, "share of the training items that the student hears clean")
    label_share: float = setting(1.0, 1.0, ASSUMED, "share of each class whose labels the student is told")
    gammas: tuple = setting((0.1, 1.0, 10.0), (0.1, 1.0, 10.0), ASSUMED, "compared in notebook 03")
    depths: tuple = setting((1, 2, 3), (1, 2, 4), ASSUMED, "student layers compared in notebook 03")
    cnn_gradient: float = setting(
        0.1, 0.1, CODE, "scales the gradient into the CNN (DistilHuBERT); AdamW undoes most of it"
    )
    epochs: int = setting(16, 30, ASSUMED, "students start from the teacher's weights")
    batch_size: int = setting(8, 24, CODE, "DistilHuBERT (24)")
    lr: float = setting(1e-3, 1e-4, ASSUMED, "AdamW, all weights of students and of the teacher-size baseline")
    weight_decay: float = setting(1e-2, 1e-6, CODE, "DistilHuBERT (1e-6)")
    betas: tuple = setting((0.9, 0.98), (0.9, 0.98), CODE, "DistilHuBERT")
    warmup: float = setting(0.07, 0.07, CODE, "share of the steps, linear; then linear decay (DistilHuBERT)")
    clip: float = setting(1.0, 5.0, ASSUMED, "gradient norm")
    seconds: float = setting(
        2.0, 10.0, ASSUMED, "longest training piece, cropped at random; tests take whole utterances"
    )
    precision: str = setting("float32", "bf16", ASSUMED, "bf16: mixed precision where the GPU has it")


@dataclass(frozen=True)
class DKDSettings(Settings):
    """Decoupled distillation into a CNN with fused multi-head attention, DKDFMH (notebook 04)."""

    title = "DKDFMH"

    features: str = setting(
        "log filter bank",
        "log filter bank",
        ASSUMED,
        "said by a later list of results",
        ("log filter bank", "mfcc"),
    )
    frame_step: float = setting(0.02, 0.01, CODE, "seconds, of the log filter bank (Head Fusion 10 ms)")
    segment: float = setting(1.0, 2.0, CODE, "seconds (Head Fusion 2); tiny: the demo's utterances last 0.9 to 1.8")
    train_overlap: float = setting(0.5, 1.0, CODE, "seconds, of segments in training (Head Fusion 1)")
    test_overlap: float = setting(0.75, 1.6, CODE, "seconds, of segments in tests (Head Fusion 1.6)")
    channels: tuple = setting((4, 16, 24, 32, 40), (8, 32, 48, 64, 80), CODE, "of the convolutions (Head Fusion)")
    heads: int = setting(4, 4, CODE, "of the student (Head Fusion)")
    size: int = setting(16, 64, CODE, "width of a head of the student (Head Fusion 64)")
    teacher_heads: int = setting(8, 8, ASSUMED, "a larger scale of the attention set")
    teacher_size: int = setting(64, 256, ASSUMED, "width of a head of the teacher")
    attention: str = setting(
        "code", "code", CODE, "Head Fusion's code, or what its text says, which differs", ("code", "text")
    )
    loss: str = setting("dkd", "dkd", ASSUMED, "decoupled or classical distillation (weight alpha)", ("dkd", "kd"))
    ce_weight: float = setting(1.0, 1.0, CODE, "of cross-entropy beside distillation, DKD")
    alpha: float = setting(1.0, 1.0, CODE, "weight of TCKD, DKD")
    beta: float = setting(
        1.0,
        1.0,
        ASSUMED,
        "weight of NCKD; DKD 8 with 100 classes; of 0.25 to 8 best on dev speech of EMO-DB",
    )
    temperature: float = setting(
        1.0, 1.0, ASSUMED, "of DKD, whose authors take 4, a public use on IEMOCAP 1; best on the same dev speakers"
    )
    kd_temperature: float = setting(4.0, 4.0, ASSUMED, "of classical distillation; better than 2 on the same")
    kd_warmup: float = setting(0.08, 0.08, CODE, "share of the epochs over which distillation sets in, DKD 20 of 240")
    alphas: tuple = setting((0.5, 2.0), (0.5, 2.0), ASSUMED, "compared in notebook 05")
    betas: tuple = setting((0.25, 2.0, 8.0), (0.25, 2.0, 8.0), ASSUMED, "compared in notebook 05")
    temperatures: tuple = setting((2.0, 4.0), (2.0, 4.0), ASSUMED, "compared in notebook 05")
    head_counts: tuple = setting((1, 2, 8), (1, 2, 8), ASSUMED, "heads of the student compared in notebook 05")
    epochs: int = setting(24, 50, CODE, "Head Fusion (50)")
    batch_size: int = setting(32, 32, CODE, "segments a step, Head Fusion")
    lr: float = setting(1e-3, 1e-3, CODE, "Adam, Head Fusion")
    lr_drops: tuple = setting(
        (0.6, 0.85), (0.2, 0.4, 0.6, 0.8), CODE, "shares of the training after which lr falls to a tenth (Head Fusion)"
    )
    weight_decay: float = setting(1e-6, 1e-6, CODE, "Head Fusion")
    clip: float = setting(0.0, 0.0, CODE, "gradient norm; 0: not clipped (Head Fusion)")
    precision: str = setting("float32", "float32", ASSUMED, "bf16: mixed precision where the GPU has it")


@dataclass(frozen=True)
class MCKDSettings(Settings):
    """Meta-knowledge and curriculum distillation into a variable-token student (notebook 06)."""

    title = "MCKD"

    features: str = setting(
        "encoder", "encoder", ASSUMED, "the teacher's CNN and projection, frozen, or log-mel", ("encoder", "log-mel")
    )
    tokens: str = setting(
        "variable", "variable", PUBLISHED, "a channel's whole series is a token; time: ordinary", ("variable", "time")
    )
    frames: int = setting(150, 326, CODE, "of 20 ms that the student sees: longer cropped, shorter padded (DWFormer)")
    meld_frames: int = setting(150, 226, CODE, "the same with MELD (DWFormer)")
    size: int = setting(64, 512, CODE, "width of the student (iTransformer)")
    layers: int = setting(2, 2, CODE, "of the student (iTransformer)")
    heads: int = setting(4, 8, CODE, "of the student (iTransformer)")
    inner: int = setting(256, 2048, CODE, "width of its feed-forward part (iTransformer)")
    dropout: float = setting(0.1, 0.1, CODE, "iTransformer")
    z_score: bool = setting(False, False, CODE, "each channel over time (iTransformer, optional); removes level cues")
    balance: str = setting(
        "inverse",
        "inverse",
        ASSUMED,
        "classes in cross-entropy by inverse frequency, or all alike",
        ("inverse", "none"),
    )
    supcon_weight: float = setting(0.5, 0.5, ASSUMED, "mu, of the supervised contrastive loss beside cross-entropy")
    supcon_temperature: float = setting(0.07, 0.07, CODE, "SupContrast")
    kd_weight: float = setting(1.0, 1.0, ASSUMED, "nu, of distillation beside cross-entropy")
    temperature: float = setting(4.0, 4.0, ASSUMED, "of distillation where no curriculum moves it")
    curriculum: bool = setting(True, True, PUBLISHED, "temperature learnt against the student (CTKD)")
    ramp: int = setting(10, 10, CODE, "epochs over which the curriculum sets in (CTKD)")
    meta: str = setting(
        "temperature",
        "temperature",
        ASSUMED,
        "what a held-out meta batch teaches after a pilot step: nothing, the temperatures of student and teacher "
        "(Meta Knowledge Distillation), or the teacher's head (MetaDistil)",
        ("none", "temperature", "teacher"),
    )
    meta_every: int = setting(5, 10, ASSUMED, "steps from one meta step to the next")
    meta_lr: float = setting(0.02, 0.02, ASSUMED, "Adam, of the logarithms of the temperatures")
    meta_teacher_lr: float = setting(1e-3, 1e-4, ASSUMED, "Adam, of the teacher's head")
    supcon_weights: tuple = setting((0.1, 0.5, 1.0), (0.1, 0.5, 1.0), ASSUMED, "compared in notebook 07")
    kd_weights: tuple = setting((0.5, 1.0), (0.5, 1.0), ASSUMED, "compared in notebook 07")
    meta_share: float = setting(0.1, 0.1, ASSUMED, "of each class of the training part, held out from all students")
    epochs: int = setting(21, 120, CODE, "DWFormer (IEMOCAP 120, MELD 100)")
    batch_size: int = setting(32, 32, CODE, "DWFormer; in pairs of one class")
    lr: float = setting(2e-2, 5e-4, CODE, "SGD (DWFormer); its highest")
    lowest_lr: float = setting(1e-3, 1e-5, CODE, "of a cosine (DWFormer)")
    restart: int = setting(3, 3, CODE, "epochs of the first cosine, the next twice as long and so on (DWFormer)")
    momentum: float = setting(0.9, 0.9, CODE, "DWFormer")
    clip: float = setting(1.0, 0.0, ASSUMED, "gradient norm; 0: not clipped")
    precision: str = setting("float32", "float32", ASSUMED, "bf16: mixed precision where the GPU has it")


class AllSettings(NamedTuple):
    """The settings of a profile, one group for each method and for what methods share."""

    teacher: TeacherSettings
    mlkd: MLKDSettings
    noise: NoiseSettings
    dkd: DKDSettings
    mckd: MCKDSettings


def settings_of(profile: str, changes: str = "") -> AllSettings:
    """The settings of a profile; changes: MLKD's by name, others as `teacher__epochs=2`, `noise__level="overall"`.

    Raises ValueError for an unknown profile or setting, and for levels or a student the teacher has no layers for.
    """
    groups: dict[str, dict[str, Any]] = {"teacher": {}, "noise": {}, "dkd": {}, "mckd": {}, "": {}}
    for name, value in parse_changes(changes).items():
        group, _, own = name.rpartition("__")
        if group not in groups:
            raise ValueError(
                f"Unknown setting {name}: begin it with teacher__, noise__, dkd__ or mckd__, or with nothing."
            )
        groups[group][own] = value
    found = AllSettings(
        TeacherSettings.of(profile, **groups["teacher"]),
        MLKDSettings.of(profile, **groups[""]),
        NoiseSettings.of(profile, **groups["noise"]),
        DKDSettings.of(profile, **groups["dkd"]),
        MCKDSettings.of(profile, **groups["mckd"]),
    )
    _check_depths(found.teacher, found.mlkd)
    return found


def _check_depths(teacher: TeacherSettings, mlkd: MLKDSettings) -> None:
    """Before an hour of training, not after it."""
    layers, levels = range(1, teacher.layers + 1), mlkd.levels
    if not isinstance(levels, tuple) or not levels or list(levels) != sorted(set(levels) & set(layers)):
        raise ValueError(f"levels={levels!r}: give some of the teacher's layers 1 to {layers[-1]}, such as (1, 3).")
    for name, depths in (("student_layers", [mlkd.student_layers]), ("depths", mlkd.depths)):
        if not set(depths) <= set(layers):
            raise ValueError(f"{name}={getattr(mlkd, name)!r}: the teacher has layers 1 to {layers[-1]}.")
    if not teacher.checkpoint and teacher.network["num_hidden_layers"] != teacher.layers:
        raise ValueError(f"The teacher's network has {teacher.network['num_hidden_layers']} layers, not {layers[-1]}.")
