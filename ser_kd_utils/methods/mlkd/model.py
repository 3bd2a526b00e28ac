"""MLKD's student: the teacher's first layers (DistilHuBERT, `encoders.first_layers`), with a head for each level."""

from collections.abc import Sequence

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from ser_kd_utils.methods.teacher.encoders import front_end


def scale_cnn_gradient(model: PreTrainedModel, factor: float) -> None:
    """Multiply the gradient that enters the convolutional encoder by `factor` (DistilHuBERT: 0.1)."""

    def scale(_module, _inputs, features: Tensor) -> None:
        if features.requires_grad:
            features.register_hook(lambda gradient: gradient * factor)

    front_end(model)[-1].register_forward_hook(scale)


class DistilledStudent(nn.Module):
    """A student with one prediction head for each teacher layer; every head reads the student's last layer.

    A head is linear, GELU, linear, all of the teacher's width (DistilHuBERT). The heads serve training only: what is
    saved and used afterwards is `.student`.
    """

    def __init__(self, student: PreTrainedModel, teacher_layers: Sequence[int], width: int):
        super().__init__()
        self.student = student
        self.config, own = student.config, student.config.hidden_size
        self.heads = nn.ModuleDict(
            {str(n): nn.Sequential(nn.Linear(own, width), nn.GELU(), nn.Linear(width, width)) for n in teacher_layers}
        )

    def forward(self, **inputs: Tensor) -> SequenceClassifierOutput:
        """Logits, and as `hidden_states` the (batch, frames, width) prediction of each of `teacher_layers` in turn."""
        output = self.student(**inputs, output_hidden_states=True)
        output.hidden_states = tuple(head(output.hidden_states[-1]) for head in self.heads.values())
        return output
