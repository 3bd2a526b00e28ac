"""Meta-knowledge and curriculum distillation (Zhao et al., IEEE TAFFC 2025) into a variable-token student."""

from ser_kd_utils.methods.base import Method, Notebook

MAIN = Notebook("06_curriculum_meta_distillation", kinds=("main",), needs=("01_teacher_finetuning",))
ABLATIONS = Notebook("07_curriculum_meta_ablations", ("component", "noise"), (*MAIN.needs, MAIN.name), ("ablations",))
METHOD = Method(
    name="mckd",
    package=__name__,
    notebooks=(MAIN, ABLATIONS),
    settings="MCKDSettings",
    experiment="MCKDExperiment",
    demo_ablations=("mc-time-tokens",),
)
