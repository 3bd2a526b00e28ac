"""The teacher: an encoder fine-tuned on clean speech (notebook 01), from which the other methods distil."""

from ser_kd_utils.methods.base import Method, Notebook

METHOD = Method(
    name="teacher",
    package=__name__,
    notebooks=(Notebook("01_teacher_finetuning", kinds=("main",)),),
    settings="TeacherSettings",
    experiment="TeacherExperiment",
)
