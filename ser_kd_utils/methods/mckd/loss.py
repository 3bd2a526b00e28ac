"""MCKD's loss: cross-entropy, a supervised contrastive loss, and distillation at temperatures that are learnt."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from accelerate.utils import reduce
from torch import Tensor, nn
from torch.distributed.checkpoint.stateful import Stateful
from torch.func import functional_call

from ser_kd_utils.methods.mckd.settings import MCKDSettings
from ser_kd_utils.methods.mckd.temperature import Temperature, meta_gradient
from ser_kd_utils.training.loop import Objective
from ser_kd_utils.training.losses import kd_loss, promote


def supervised_contrastive(embeddings: Tensor, labels: Tensor, temperature: float = 0.07) -> Tensor:
    r"""Supervised contrastive loss (SupCon, Khosla et al. 2020, eq. 2: the mean over Y(i) outside the log).

    embeddings: (batch, width), normalised here to e; labels: (batch,). With T_c = temperature and Y(i), all other items
    that have the label of item i, returns the scalar

    $$-\frac{1}{B}\sum_i \frac{1}{|Y(i)|} \sum_{j \in Y(i)}
      \log \frac{\exp(e_i \cdot e_j / T_c)}{\sum_{a \ne i} \exp(e_i \cdot e_a / T_c)}$$

    An item without another one of its class adds zero and counts in B, as in the released code. The loss is computed in
    log space and in float32 or wider.
    """
    units = F.normalize(promote(embeddings))
    with torch.autocast(units.device.type, enabled=False):  # it would compute the product in half precision
        logits = units @ units.mT / temperature
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    positive = (labels[:, None] == labels) & ~itself
    log_p = logits - logits.masked_fill(itself, -torch.inf).logsumexp(1, keepdim=True)
    sums = log_p.masked_fill(~positive, 0).sum(1)  # a batch of one item has no finite log_p
    return -(sums / positive.sum(1).clamp_min(1)).mean()


@dataclass(frozen=True)
class MetaCurriculum(Objective):
    """CE + mu SupCon + nu KD (Zhao et al. 2025), with KD at the temperatures of `temperature`; None: no teacher.

    mu and nu are the settings supcon_weight and kd_weight.

    SupCon acts on what the classifier reads, without a projection head, and sees each utterance once (SupContrast has a
    head and two views). The pilot step uses KD alone (MetaDistil uses the whole loss).
    quiz: step -> a held-out meta batch, (arguments of the network, labels). optimizer: of the parameters that the meta
    step updates; None: there are none.
    """

    settings: MCKDSettings
    class_weights: Tensor  # (classes,), of cross-entropy
    temperature: Temperature | None
    head: nn.Module  # of the teacher: its mean state of an utterance -> logits
    quiz: Callable[[int], tuple[dict[str, Tensor], Tensor]]
    optimizer: torch.optim.Optimizer | None

    def __call__(self, batch, student, teacher, progress):
        use, labels = self.settings, batch["labels"]
        terms = {"ce": self._cross_entropy(student.logits, labels)}
        if use.supcon_weight:
            contrast = supervised_contrastive(student.hidden_states[0], labels, use.supcon_temperature)
            terms["supcon"] = use.supcon_weight * contrast
        if self.temperature:
            temperatures = self.temperature(progress * use.epochs)
            theirs = self.head(batch["teacher_embedding"]).detach()
            terms["kd"] = use.kd_weight * kd_loss(student.logits, theirs, *temperatures)
        return terms

    def before_step(self, network, inputs, batch, step, progress):
        """The meta step: a pilot step of the student on this batch, then an update by the loss of the quiz after it."""
        use = self.settings
        if not self.optimizer or step % use.meta_every:
            return
        questions, answers = self.quiz(step)
        base, learned = self.temperature.base(progress * use.epochs).detach(), self.learned

        def distill(call: Callable, learned: Mapping[str, Tensor]) -> Tensor:
            temperatures = base * learned.get("log_factors", self.temperature.log_factors).exp()
            theirs = functional_call(self.head, dict(learned), (batch["teacher_embedding"],))  # takes its own of these
            return use.kd_weight * kd_loss(call(**inputs).logits, theirs, *temperatures)

        def quiz(call: Callable) -> Tensor:
            return self._cross_entropy(call(**questions).logits, answers)

        for name, gradient in meta_gradient(network, distill, quiz, learned, use.lr).items():
            learned[name].grad = reduce(gradient, "mean")  # over the processes that share the batch
        self.optimizer.step()

    @property
    def learned(self) -> dict[str, Tensor]:
        """What the quiz teaches: the teacher's head or the factors of the temperatures."""
        if self.settings.meta == "teacher":
            return dict(self.head.named_parameters())
        return {"log_factors": self.temperature.log_factors}

    @property
    def extra_state(self) -> dict[str, Stateful]:
        """What a checkpoint keeps beside the network."""
        kept = {"temperature": self.temperature, "teacher_head": self.head, "meta_optimizer": self.optimizer}
        return {name: each for name, each in kept.items() if each}

    def state(self):
        if not self.temperature:
            return {}
        student, teacher = self.temperature(0.0)
        return {"tau_student": student.item(), "tau_teacher": teacher.item()}

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, weight=self.class_weights)
