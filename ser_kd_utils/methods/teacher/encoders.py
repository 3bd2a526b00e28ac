"""Encoders of speech behind one interface: wav2vec 2.0, HuBERT and WavLM hear the waveform, Whisper its log-mel.

Teachers and students are transformers' own classifiers of these families; what differs among them stands here.
"""

import math
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import snapshot_download
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForAudioClassification,
    PreTrainedConfig,
    PreTrainedModel,
    SequenceFeatureExtractor,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
)

from ser_kd_utils.data.audio import SAMPLE_RATE
from ser_kd_utils.data.features import HOP, whisper_log_mel
from ser_kd_utils.methods.teacher.settings import TeacherSettings
from ser_kd_utils.training.experiment import names_of_classes

# layerdrop would drop the very layers that are distilled; SpecAugment fails under 3,280 samples; wav2vec2-base on the
# hub asks for gradient checkpointing, which would slow the teacher down and not the students.
GUARDS = {"layerdrop": 0.0, "encoder_layerdrop": 0.0, "apply_spec_augment": False, "gradient_checkpointing": False}


class WaveformInputs:
    """What wav2vec 2.0, HuBERT and WavLM are given: waves of any length, each normalised over its own samples.

    A mask goes with them where the network has layer norms in its convolutions. Those with a group norm
    (wav2vec2-base) were pre-trained without one and hear padding as silence, in training as in tests.
    """

    def __init__(self, config: PreTrainedConfig):
        self.config, self.masked = config, config.feat_extract_norm == "layer"

    def prepare_inputs(self, waves: Tensor, lengths: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        """The network's arguments for waves (batch, samples); mask: (batch, samples), 0 in the padding."""
        values = {"input_values": normalise(waves, lengths)}
        return values if mask is None or not self.masked else values | {"attention_mask": mask}

    def frame_counts(self, lengths: Tensor) -> Tensor:
        """How many of the network's 20 ms frames hold samples of an item alone; lengths: (batch,) samples."""
        for kernel, stride in zip(self.config.conv_kernel, self.config.conv_stride, strict=True):
            lengths = (lengths - kernel) // stride + 1
        return lengths

    def feature_extractor(self) -> SequenceFeatureExtractor:
        return Wav2Vec2FeatureExtractor(return_attention_mask=self.masked)


class LogMelInputs:
    """What Whisper is given: the log-mel of one window of fixed length, which silence fills up.

    Its transformers class takes no mask and no other length. Speech beyond the window is not heard.
    """

    def __init__(self, config: PreTrainedConfig):
        self.config, self.samples = config, config.max_source_positions * HOP

    def prepare_inputs(self, waves: Tensor, lengths: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        """The network's arguments for waves (batch, samples), with zeros in the padding."""
        waves = nn.functional.pad(waves[:, : self.samples], (0, max(self.samples - waves.shape[1], 0)))
        return {"input_features": whisper_log_mel(waves, self.config.num_mel_bins)}

    def frame_counts(self, lengths: Tensor) -> Tensor:
        """How many of the network's 20 ms frames hold samples of an item alone; lengths: (batch,) samples."""
        return lengths.clamp(max=self.samples) // HOP

    def feature_extractor(self) -> SequenceFeatureExtractor:
        return WhisperFeatureExtractor(self.config.num_mel_bins, chunk_length=self.samples // SAMPLE_RATE)


def inputs_of(config: PreTrainedConfig) -> WaveformInputs | LogMelInputs:
    """How a network of this config is given speech."""
    return (LogMelInputs if config.model_type == "whisper" else WaveformInputs)(config)


def inputs_of_teacher(settings: TeacherSettings) -> WaveformInputs | LogMelInputs:
    """How a teacher of these settings, and its students, are given speech."""
    config = config_of(settings)
    config.max_source_positions = _window(settings)
    return inputs_of(config)


def _window(settings: TeacherSettings) -> int:
    """Whisper's, in frames."""
    return round(settings.max_seconds * SAMPLE_RATE) // HOP


def config_of(settings: TeacherSettings, **more: Any) -> PreTrainedConfig:
    """The config of the teacher, guarded; more: what it says of the classes.

    Raises ValueError for a checkpoint of another family or depth than the settings declare, and for frames that are not
    20 ms apart, with which windows of speech could not be aligned.
    """
    if settings.source:
        config = AutoConfig.from_pretrained(checkpoint_folder(settings), trust_remote_code=False, **more)
    else:
        config = AutoConfig.for_model(settings.model_type, **settings.network, **more)
    whisper = config.model_type == "whisper"
    config.update({name: value for name, value in GUARDS.items() if hasattr(config, name)})
    name, found = settings.source or "The network", (config.model_type, config.num_hidden_layers)
    if found != (settings.model_type, settings.num_hidden_layers):
        said = f"{name} is {found[0]} with {found[1]} layers, the settings say {settings.model_type} with "
        remedy = "change teacher.model_type and teacher.num_hidden_layers, or pass another checkpoint"
        raise ValueError(f"{said}{settings.num_hidden_layers}: {remedy}.")
    if not whisper and config.inputs_to_logits_ratio != HOP:
        raise ValueError(f"The frames of {name} are {config.inputs_to_logits_ratio} samples apart, not {HOP}.")
    return config


def build_teacher(settings: TeacherSettings, labels: Sequence[str]) -> PreTrainedModel:
    """A classifier over `labels`, from a checkpoint (hub name and commit, or folder) or from random weights.

    Weights are read from safetensors only, and no code comes with them. Whisper is cut to the window of
    `max_seconds`, the first rows of its table of positions. Raises ValueError when there are no such weights (a pickle
    does not count) and for what `config_of` refuses, FileNotFoundError when the hub does not give the checkpoint.
    """
    config = config_of(settings, **names_of_classes(labels))
    config.use_weighted_layer_sum = settings.tuning == "frozen"
    model = _load(settings, config) if settings.source else AutoModelForAudioClassification.from_config(config)
    if config.model_type == "whisper":
        cut_window(model, _window(settings))
    return model


def _load(settings: TeacherSettings, config: PreTrainedConfig) -> PreTrainedModel:
    return AutoModelForAudioClassification.from_pretrained(
        checkpoint_folder(settings), config=config, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
    )


def cut_window(model: PreTrainedModel, frames: int) -> None:
    """Let a Whisper classifier hear so many frames of 20 ms in place of 30 s."""
    kept = model.encoder.embed_positions.weight.detach()[:frames].clone()
    model.encoder.embed_positions = nn.Embedding(*kept.shape, _weight=kept).requires_grad_(False)
    model.config.max_source_positions = model.encoder.max_source_positions = frames


def ready_teacher(settings: TeacherSettings, labels: Sequence[str]) -> PreTrainedModel:
    """A classifier that somebody else fine-tuned, as it is; its classes are put in the order of `labels`.

    Raises ValueError where it does not have all of these classes (by name, in upper or lower case), or where Whisper's
    window is not `max_seconds`, and as `build_teacher`.
    """
    config = config_of(settings)
    theirs = {name.lower(): index for index, name in config.id2label.items()}
    if lacking := [label for label in labels if label.lower() not in theirs]:
        raise ValueError(f"{settings.ready} has no class {', '.join(lacking)}: it tells {', '.join(theirs)}.")
    if config.model_type == "whisper" and config.max_source_positions != _window(settings):
        seconds = config.max_source_positions * HOP / SAMPLE_RATE
        raise ValueError(f"{settings.ready} hears {seconds:g} s: set teacher.max_seconds={seconds}.")
    model, rows = _load(settings, config), [theirs[label.lower()] for label in labels]
    head = model.classifier
    head.weight, head.bias = nn.Parameter(head.weight[rows].detach()), nn.Parameter(head.bias[rows].detach())
    head.out_features = model.num_labels = len(rows)
    model.config.update(names_of_classes(labels))
    return model


def checkpoint_folder(settings: TeacherSettings) -> Path:
    """Where the checkpoint lies, with weights in safetensors. From the hub come these and the config, nothing else."""
    name, commit = settings.source, settings.revision
    folder, files = Path(name), ["config.json", "model*.safetensors*"]
    if settings.from_hub:
        try:
            folder = Path(snapshot_download(name, revision=commit, allow_patterns=files))
        except (OSError, ValueError) as error:
            why = f"the hub does not give its commit {commit} ({str(error).strip().splitlines()[0]})"
            remedy = "pass a folder with teacher.checkpoint='folder'"
            raise FileNotFoundError(f"{name} is no folder here, and {why}; {remedy}.") from error
    if not any(folder.glob("model*.safetensors")):
        source = repr(name) + f", revision={commit!r}" * settings.from_hub
        raise ValueError(
            f"{name} holds no weights in safetensors, and a pickle (pytorch_model.bin) is not opened here. If you "
            'trust it, convert it once: python -c "from transformers import AutoModel as M; '
            f"M.from_pretrained({source}).save_pretrained('folder')\"; then pass teacher.checkpoint='folder'."
        )
    return folder


def first_layers(teacher: PreTrainedModel, layers: int, initial: str = "teacher") -> PreTrainedModel:
    """The teacher's front end and first `layers` layers, its final norm and its head, copied.

    With all of the teacher's layers this is a copy of the teacher. initial "random": a network of the same shape with
    fresh weights.
    """
    config = deepcopy(teacher.config)
    config.num_hidden_layers = layers
    student = type(teacher)(config)
    if initial == "random":
        return student
    kept = student.state_dict().keys()
    student.load_state_dict({name: value for name, value in teacher.state_dict().items() if name in kept})
    return student


def log_mel_student(teacher: PreTrainedModel, layers: int, seconds: float) -> PreTrainedModel:
    """A Whisper classifier of fresh weights whose `layers` layers and head have the shape of the teacher's.

    Its front end is Whisper's: two convolutions on a log-mel of 80 filters (Radford et al. 2022, section 2.2), 20 ms a
    frame as in the teachers that hear waveforms, whose seven convolutions are most of a small student's work. It hears
    the first `seconds`, rounded up to whole ones.
    """
    like = teacher.config
    config = AutoConfig.for_model(
        "whisper", d_model=like.hidden_size, encoder_layers=layers, encoder_attention_heads=like.num_attention_heads,
        encoder_ffn_dim=like.intermediate_size, classifier_proj_size=like.classifier_proj_size,
        dropout=like.hidden_dropout, attention_dropout=like.attention_dropout, id2label=like.id2label,
        label2id=like.label2id, max_source_positions=math.ceil(seconds) * SAMPLE_RATE // HOP,
    )  # fmt: skip
    return AutoModelForAudioClassification.from_config(config)


def encoder_of(model: PreTrainedModel) -> nn.Module:
    """All of a classifier but its head."""
    return model.encoder if model.config.model_type == "whisper" else model.base_model


def front_end(model: PreTrainedModel) -> list[nn.Module]:
    """The convolutions before the transformer layers, in their order."""
    encoder = encoder_of(model)
    return [encoder.conv1, encoder.conv2] if model.config.model_type == "whisper" else [encoder.feature_extractor]


class Front(nn.Module):
    """The first `layers` layers of an encoder and its final norm, frozen and in eval mode, whatever surrounds it.

    layers 0: what stands before them (of wav2vec 2.0, HuBERT and WavLM the convolutions and the projection). Raises
    ValueError for 0 layers of Whisper.
    """

    def __init__(self, config: PreTrainedConfig, layers: int):
        super().__init__()
        if not layers and config.model_type == "whisper":
            raise ValueError("mckd.feature_layer=0: of Whisper, take one of its layers, from 1 on.")
        config = deepcopy(config)
        config.num_hidden_layers = max(layers, 1)
        self.inputs, encoder = inputs_of(config), encoder_of(AutoModelForAudioClassification.from_config(config))
        parts = {"encoder": encoder}
        if not layers:
            parts = {name: getattr(encoder, name) for name in ("feature_extractor", "feature_projection")}
        for name, part in parts.items():
            self.add_module(name, part)
        self.eval()

    def copy(self, teacher: PreTrainedModel) -> None:
        """Take over the teacher's weights."""
        theirs, own = encoder_of(teacher).state_dict(), getattr(self, "encoder", self)
        own.load_state_dict({name: theirs[name] for name in own.state_dict()})

    def train(self, mode: bool = True) -> Self:
        return super().train(False).requires_grad_(False)  # here, too: from_pretrained thaws, then calls eval

    @torch.no_grad()
    def forward(self, waves: Tensor, lengths: Tensor) -> Tensor:
        """(batch, samples) -> (batch, frames, width); lengths: (batch,)."""
        mask = torch.arange(waves.shape[1], device=waves.device) < lengths[:, None]
        dtype = next(self.parameters()).dtype
        given = {name: value.to(dtype) for name, value in self.inputs.prepare_inputs(waves, lengths, mask).items()}
        if hasattr(self, "encoder"):
            return self.encoder(**given).last_hidden_state
        return self.feature_projection(self.feature_extractor(given["input_values"]).mT)[0]


def freeze(teacher: nn.Module) -> nn.Module:
    """Eval mode, no gradients. Kept outside the student's module tree, or `.train()` would undo it."""
    return teacher.eval().requires_grad_(False)


def head_of(teacher: nn.Module) -> nn.Sequential:
    """What makes logits of the mean over an utterance's last states: projector and classifier."""
    return nn.Sequential(teacher.projector, teacher.classifier)


def normalise(waves: Tensor, lengths: Tensor) -> Tensor:
    """Zero mean and unit variance over each item's own samples, zeros beyond, as Wav2Vec2FeatureExtractor does.

    waves: (batch, samples) on any device; lengths: (batch,).
    """
    mask = torch.arange(waves.shape[1], device=waves.device) < lengths[:, None]
    mean = (waves * mask).sum(1, keepdim=True) / lengths[:, None]
    centred = (waves - mean) * mask
    variance = centred.square().sum(1, keepdim=True) / lengths[:, None]
    return centred / (variance + 1e-7).sqrt()


def frame_mask(model: PreTrainedModel | WaveformInputs | LogMelInputs, frames: int, lengths: Tensor) -> Tensor:
    """(batch, frames) booleans: which of a network's 20 ms frames hold samples of the item; lengths: (batch,).

    model: the network, or how it is given speech.
    """
    counts = inputs_of(model.config).frame_counts(lengths)
    return torch.arange(frames, device=lengths.device) < counts[:, None]
