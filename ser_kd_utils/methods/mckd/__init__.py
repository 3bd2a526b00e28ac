"""Meta-knowledge and curriculum distillation (Zhao et al., IEEE TAFFC 2025) into a variable-token student."""

from ser_kd_utils.methods.base import Method, Notebook

MAIN = Notebook("06_curriculum_meta_distillation", kinds=("main",), needs=("01_teacher_finetuning",))
ABLATIONS = Notebook(
    "07_curriculum_meta_ablations", ("component", "noise"), needs=(*MAIN.needs, MAIN.name), parameters=("ablations",)
)
METHOD = Method(
    name="mckd",
    package=__name__,
    notebooks=(MAIN, ABLATIONS),
    settings="MCKDSettings",
    experiment="MCKDExperiment",
    demo_ablations=("mc-time-tokens",),
    styles={
        "mc-alone": ("#E69F00", "^", "-"),
        "mc-full": ("#D55E00", "D", "-"),
        "mc-z-score": ("#CC79A7", "P", "-"),
        "mc-alone-noisy": ("#56B4E9", "v", "--"),
        "mc-kd-noisy": ("#000000", "o", "--"),
        "mc-full-noisy": ("#0072B2", "s", "--"),
    },
)
