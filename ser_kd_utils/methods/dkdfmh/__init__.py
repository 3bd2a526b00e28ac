"""DKDFMH (Zhao et al., ICASSP 2023): decoupled distillation into a CNN with fused multi-head attention."""

from ser_kd_utils.methods.base import Method, Notebook

MAIN = Notebook("04_decoupled_distillation", kinds=("main",), needs=("01_teacher_finetuning",))
ABLATIONS = Notebook("05_decoupled_ablations", ("component", "noise"), (*MAIN.needs, MAIN.name), ("ablations",))
METHOD = Method(
    name="dkdfmh",
    package=__name__,
    notebooks=(MAIN, ABLATIONS),
    settings="DKDFMHSettings",
    experiment="DKDFMHExperiment",
    protocols=("P2", "P1"),
    demo_ablations=("cnn-nckd",),
)
