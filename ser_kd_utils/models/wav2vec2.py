"""Teacher and student of MLKD: transformers' own Wav2Vec2ForSequenceClassification, built with the guards it needs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from torch import Tensor, nn
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutput

from ser_kd_utils.settings import TeacherSettings

HOP = 320
"""Samples from one frame to the next, 20 ms: the product of the CNN's strides."""

# layerdrop (0.1 by default) would drop the very layers that are distilled; SpecAugment fails under 3,280 samples;
# wav2vec2-base on the hub asks for gradient checkpointing, which would slow the teacher down and not the students.
GUARDS = {"layerdrop": 0.0, "apply_spec_augment": False, "gradient_checkpointing": False}


def build_teacher(settings: TeacherSettings, labels: Sequence[str]) -> Wav2Vec2ForSequenceClassification:
    """A classifier over `labels`, from a checkpoint (hub name and commit, or folder) or from random weights.

    Weights are read from safetensors only, and no code comes with them. Raises ValueError when there are none (a
    pickle does not count) or the checkpoint's depth is not the declared one, FileNotFoundError when the hub does not
    give it.
    """
    classes = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    if settings.checkpoint:
        folder = _folder(settings)
        config = Wav2Vec2Config.from_pretrained(folder, **classes)
        config.update(GUARDS)
        model = Wav2Vec2ForSequenceClassification.from_pretrained(
            folder, config=config, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
        )
    else:
        model = Wav2Vec2ForSequenceClassification(Wav2Vec2Config(**settings.network, **GUARDS, **classes))
    depth = model.config.num_hidden_layers
    if depth != settings.layers:
        raise ValueError(
            f"{settings.checkpoint or 'The network'} has {depth} layers, the settings say {settings.layers}: "
            "pass the checkpoint that the settings name, or change `layers`."
        )
    return model


def _folder(settings: TeacherSettings) -> Path:
    """Where the checkpoint lies, with weights in safetensors. From the hub come these and the config, nothing else."""
    name, commit = settings.checkpoint, settings.revision
    folder, source = Path(name), repr(name)
    if settings.from_hub:
        source = f"{name!r}, revision={commit!r}"
        files = ["config.json", "model*.safetensors*"]
        try:
            folder = Path(snapshot_download(name, revision=commit, allow_patterns=files))
        except (OSError, ValueError) as error:
            raise FileNotFoundError(
                f"{name} is no folder here, and the hub does not give its commit {commit} "
                f"({str(error).strip().splitlines()[0]}); pass a folder with teacher__checkpoint='folder'."
            ) from error
    if not any(folder.glob("model*.safetensors")):
        raise ValueError(
            f"{name} holds no weights in safetensors, and a pickle (pytorch_model.bin) is not opened here. If you "
            'trust it, convert it once: python -c "from transformers import Wav2Vec2Model as M; '
            f"M.from_pretrained({source}).save_pretrained('folder')\"; then pass teacher__checkpoint='folder'."
        )
    return folder


def build_student(
    teacher: Wav2Vec2ForSequenceClassification, layers: int, initial: str = "teacher"
) -> Wav2Vec2ForSequenceClassification:
    """The teacher's CNN, projection, positional convolution and first `layers` layers, copied (DistilHuBERT).

    The classifier is copied too. With all of the teacher's layers this is a copy of the teacher. initial "random": a
    network of the same shape with fresh weights.
    """
    if not 1 <= layers <= teacher.config.num_hidden_layers:
        raise ValueError(f"A student of {layers} layers cannot be cut from {teacher.config.num_hidden_layers} layers.")
    config = Wav2Vec2Config.from_dict({**teacher.config.to_dict(), "num_hidden_layers": layers})
    student = Wav2Vec2ForSequenceClassification(config)
    if initial == "random":
        return student
    kept = student.state_dict().keys()
    student.load_state_dict({name: value for name, value in teacher.state_dict().items() if name in kept})
    return student


def freeze(teacher: nn.Module) -> nn.Module:
    """Eval mode, no gradients. Kept outside the student's module tree, or `.train()` would undo it."""
    return teacher.eval().requires_grad_(False)


def scale_cnn_gradient(model: Wav2Vec2ForSequenceClassification, factor: float) -> None:
    """Multiply the gradient that enters the convolutional encoder by `factor` (DistilHuBERT: 0.1)."""

    def scale(_module, _inputs, features: Tensor) -> None:
        if features.requires_grad:
            features.register_hook(lambda gradient: gradient * factor)

    model.wav2vec2.feature_extractor.register_forward_hook(scale)


def hidden_states(output: SequenceClassifierOutput, levels: Sequence[int], layers: int) -> list[Tensor]:
    """The (batch, frames, width) states after the given transformer layers, counted from 1.

    Before the encoder's final layer norm where the network has one (tiny: pre-norm layers; wav2vec2-base has none).
    """
    if output.hidden_states is None or len(output.hidden_states) != layers + 1:
        found = 0 if output.hidden_states is None else len(output.hidden_states)
        raise RuntimeError(f"Expected {layers + 1} hidden states, the network returned {found}.")
    return [output.hidden_states[level] for level in levels]


class DistilledStudent(nn.Module):
    """A student with one prediction head per teacher level; every head reads the student's last layer.

    A head is linear, GELU, linear, all of the teacher's width (DistilHuBERT). The heads serve training only: what is
    saved and used afterwards is `.student`.
    """

    def __init__(self, student: Wav2Vec2ForSequenceClassification, levels: Sequence[int], width: int):
        super().__init__()
        self.student = student
        own = student.config.hidden_size
        self.heads = nn.ModuleDict(
            {str(level): nn.Sequential(nn.Linear(own, width), nn.GELU(), nn.Linear(width, width)) for level in levels}
        )

    def forward(self, input_values: Tensor, attention_mask: Tensor | None = None) -> SequenceClassifierOutput:
        """Logits, and as `hidden_states` each level's (batch, frames, width) prediction, in the order of `levels`."""
        output = self.student(input_values, attention_mask=attention_mask, output_hidden_states=True)
        output.hidden_states = tuple(head(output.hidden_states[-1]) for head in self.heads.values())
        return output


def normalise(waves: Tensor, lengths: Tensor) -> Tensor:
    """Zero mean and unit variance over each item's own samples, zeros beyond, as Wav2Vec2FeatureExtractor does.

    waves: (batch, samples) on any device; lengths: (batch,).
    """
    mask = torch.arange(waves.shape[1], device=waves.device) < lengths[:, None]
    mean = (waves * mask).sum(1, keepdim=True) / lengths[:, None]
    centred = (waves - mean) * mask
    variance = centred.square().sum(1, keepdim=True) / lengths[:, None]
    return centred / (variance + 1e-7).sqrt()


def hear(waves: Tensor, lengths: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
    """The network's arguments for waves (batch, samples); mask: (batch, samples), 0 in the padding, where there is."""
    values = {"input_values": normalise(waves, lengths)}
    return values if mask is None else values | {"attention_mask": mask}


def frame_mask(model: Wav2Vec2ForSequenceClassification, frames: int, attention_mask: Tensor) -> Tensor:
    """(batch, frames) booleans: which of the network's 20 ms frames hold samples of the item."""
    return model._get_feature_vector_attention_mask(frames, attention_mask)


def save(model: Wav2Vec2ForSequenceClassification, folder: Path) -> None:
    """As any transformers model, with its feature extractor: `pipeline("audio-classification", folder)` works."""
    model.save_pretrained(folder)
    Wav2Vec2FeatureExtractor(return_attention_mask=model.config.feat_extract_norm == "layer").save_pretrained(folder)
