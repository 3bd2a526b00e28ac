"""The teacher: transformers' own Wav2Vec2ForSequenceClassification, built with the guards it needs."""

from collections.abc import Sequence
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from torch import Tensor, nn
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForSequenceClassification

from ser_kd_utils.data.features import HOP
from ser_kd_utils.methods.teacher.settings import TeacherSettings
from ser_kd_utils.training.experiment import names_of_classes

# layerdrop (0.1 by default) would drop the very layers that are distilled; SpecAugment fails under 3,280 samples;
# wav2vec2-base on the hub asks for gradient checkpointing, which would slow the teacher down and not the students.
GUARDS = {"layerdrop": 0.0, "apply_spec_augment": False, "gradient_checkpointing": False}


def build_teacher(settings: TeacherSettings, labels: Sequence[str]) -> Wav2Vec2ForSequenceClassification:
    """A classifier over `labels`, from a checkpoint (hub name and commit, or folder) or from random weights.

    Weights are read from safetensors only, and no code comes with them. Raises ValueError when there are none (a
    pickle does not count), the checkpoint's depth is not the declared one, or its frames are not 20 ms apart (windows
    of speech could not be aligned with them), FileNotFoundError when the hub does not give it.
    """
    classes = names_of_classes(labels)
    if settings.checkpoint:
        folder = _folder(settings)
        config = Wav2Vec2Config.from_pretrained(folder, **classes)
        config.update(GUARDS)
        model = Wav2Vec2ForSequenceClassification.from_pretrained(
            folder, config=config, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
        )
    else:
        model = Wav2Vec2ForSequenceClassification(Wav2Vec2Config(**settings.network, **GUARDS, **classes))
    depth, step = model.config.num_hidden_layers, model.config.inputs_to_logits_ratio
    if depth != settings.num_hidden_layers:
        raise ValueError(
            f"{settings.checkpoint or 'The network'} has {depth} layers, the settings say "
            f"{settings.num_hidden_layers}: pass the checkpoint that the settings name, or change `num_hidden_layers`."
        )
    if step != HOP:
        raise ValueError(f"The frames of {settings.checkpoint or 'the network'} are {step} samples apart, not {HOP}.")
    return model


def _folder(settings: TeacherSettings) -> Path:
    """Where the checkpoint lies, with weights in safetensors. From the hub come these and the config, nothing else."""
    name, commit = settings.checkpoint, settings.revision
    folder, files = Path(name), ["config.json", "model*.safetensors*"]
    if settings.from_hub:
        try:
            folder = Path(snapshot_download(name, revision=commit, allow_patterns=files))
        except (OSError, ValueError) as error:
            raise FileNotFoundError(
                f"{name} is no folder here, and the hub does not give its commit {commit} "
                f"({str(error).strip().splitlines()[0]}); pass a folder with teacher.checkpoint='folder'."
            ) from error
    if not any(folder.glob("model*.safetensors")):
        source = repr(name) + f", revision={commit!r}" * settings.from_hub
        raise ValueError(
            f"{name} holds no weights in safetensors, and a pickle (pytorch_model.bin) is not opened here. If you "
            'trust it, convert it once: python -c "from transformers import Wav2Vec2Model as M; '
            f"M.from_pretrained({source}).save_pretrained('folder')\"; then pass teacher.checkpoint='folder'."
        )
    return folder


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


def prepare_inputs(waves: Tensor, lengths: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
    """The network's arguments for waves (batch, samples); mask: (batch, samples), 0 in the padding, where there is."""
    values = {"input_values": normalise(waves, lengths)}
    return values if mask is None else values | {"attention_mask": mask}


def frame_mask(model: Wav2Vec2ForSequenceClassification, frames: int, lengths: Tensor) -> Tensor:
    """(batch, frames) booleans: which of the network's 20 ms frames hold samples of the item; lengths: (batch,)."""
    counts = model._get_feat_extract_output_lengths(lengths)
    return torch.arange(frames, device=lengths.device) < counts[:, None]


def feature_extractor(model: Wav2Vec2ForSequenceClassification) -> Wav2Vec2FeatureExtractor:
    """What is saved beside the network, so that `pipeline("audio-classification", folder)` hears what it was taught."""
    return Wav2Vec2FeatureExtractor(return_attention_mask=model.config.feat_extract_norm == "layer")
