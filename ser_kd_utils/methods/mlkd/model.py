"""MLKD's student: the teacher's first layers (DistilHuBERT), with one prediction head for each layer of the teacher."""

from collections.abc import Sequence

from torch import Tensor, nn
from transformers import Wav2Vec2Config, Wav2Vec2ForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutput


def build_student(
    teacher: Wav2Vec2ForSequenceClassification, layers: int, initial: str = "teacher"
) -> Wav2Vec2ForSequenceClassification:
    """The teacher's CNN, projection, positional convolution and first `layers` layers, copied (DistilHuBERT).

    The classifier is copied too. With all of the teacher's layers this is a copy of the teacher. initial "random": a
    network of the same shape with fresh weights. Raises ValueError for a depth that the teacher does not have.
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


def scale_cnn_gradient(model: Wav2Vec2ForSequenceClassification, factor: float) -> None:
    """Multiply the gradient that enters the convolutional encoder by `factor` (DistilHuBERT: 0.1)."""

    def scale(_module, _inputs, features: Tensor) -> None:
        if features.requires_grad:
            features.register_hook(lambda gradient: gradient * factor)

    model.wav2vec2.feature_extractor.register_forward_hook(scale)


class DistilledStudent(nn.Module):
    """A student with one prediction head for each teacher layer; every head reads the student's last layer.

    A head is linear, GELU, linear, all of the teacher's width (DistilHuBERT). The heads serve training only: what is
    saved and used afterwards is `.student`.
    """

    def __init__(self, student: Wav2Vec2ForSequenceClassification, teacher_layers: Sequence[int], width: int):
        super().__init__()
        self.student = student
        own = student.config.hidden_size
        self.heads = nn.ModuleDict(
            {str(n): nn.Sequential(nn.Linear(own, width), nn.GELU(), nn.Linear(width, width)) for n in teacher_layers}
        )

    def forward(self, input_values: Tensor, attention_mask: Tensor | None = None) -> SequenceClassifierOutput:
        """Logits, and as `hidden_states` the (batch, frames, width) prediction of each of `teacher_layers` in turn."""
        output = self.student(input_values, attention_mask=attention_mask, output_hidden_states=True)
        output.hidden_states = tuple(head(output.hidden_states[-1]) for head in self.heads.values())
        return output
