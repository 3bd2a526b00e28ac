"""MLKD (Liu et al., Interspeech 2023): several layers of a clean-speech teacher distilled into a student in noise."""

from ser_kd_utils.methods.base import Method, Notebook

MAIN = Notebook("02_noisy_student_distillation", kinds=("main",), needs=("01_teacher_finetuning",))
KINDS = ("component", "control", "situation")
ABLATIONS = Notebook("03_mlkd_ablations", KINDS, (*MAIN.needs, MAIN.name), ("speech_dir", "ablations"))
METHOD = Method(
    name="mlkd",
    package=__name__,
    notebooks=(MAIN, ABLATIONS),
    settings="MLKDSettings",
    experiment="MLKDExperiment",
    demo_ablations=("two-stage",),
)
