"""How MLKD's students (notebooks 02 and 03) are trained."""

from collections import ChainMap
from functools import cached_property, partial
from typing import Any

import torch

from ser_kd_utils.data.audio import SAMPLE_RATE, AudioCache, cache_audio
from ser_kd_utils.data.corpora import unlabelled
from ser_kd_utils.methods.mlkd.loss import MultiLevel
from ser_kd_utils.methods.mlkd.model import DistilledStudent, scale_cnn_gradient
from ser_kd_utils.methods.teacher import encoders
from ser_kd_utils.methods.teacher.experiment import EncoderExperiment
from ser_kd_utils.training.dataset import SpeechDataset
from ser_kd_utils.training.losses import UNLABELLED, CrossEntropy


class MLKDExperiment(EncoderExperiment):
    """An Experiment (see its arguments) of MLKD."""

    method = "mlkd"

    def __init__(self, *args: Any, speech_dir: str = "", **options: Any):
        """speech_dir: a folder of unlabelled speech, for the variants that use it."""
        self.speech_dir = speech_dir
        super().__init__(*args, **options)
        if self.settings.unlabelled_speech and not speech_dir:
            raise ValueError("mlkd.unlabelled_speech needs unlabelled speech: pass its folder (--speech-dir).")

    def available(self):
        every, several = super().available().items(), len(self.train_types) > 1
        every = [(name, each) for name, each in every if self.speech_dir or "unlabelled_speech" not in each.overrides]
        return {name: each for name, each in every if several or not each.held_out_noise}

    @cached_property
    def speech(self) -> AudioCache:
        """The unlabelled speech."""
        return cache_audio(unlabelled(self.speech_dir))

    def _uses_speech(self, name: str) -> bool:
        use = self.settings_of(name)
        return use.unlabelled_speech and bool(use.teacher_layers)

    def _decides(self, name: str) -> dict[str, Any]:
        return super()._decides(name) | {"speech": self.speech.fingerprint if self._uses_speech(name) else ""}

    def command(self, name: str) -> str:
        return super().command(name) + " --speech-dir SPEECH" * self._uses_speech(name)

    def inputs_of(self, model):
        return encoders.inputs_of(model.config).prepare_inputs

    def student(self, name: str) -> DistilledStudent:
        """The variant's student, with fresh prediction heads and the scaled gradient into its CNN."""
        use, teacher = self.settings_of(name), self.teachers.teacher(name=self.variants[name].teacher)
        torch.manual_seed(self.seed)  # after the teacher, which may have to be trained first
        small = self.variants[name].role == "student"
        depth = use.student_layers if small else teacher.config.num_hidden_layers
        if use.initial == "log-mel":
            network = encoders.log_mel_student(teacher, depth, use.max_seconds)
        else:
            network = encoders.first_layers(teacher, depth, use.initial)
        scale_cnn_gradient(network, use.cnn_gradient)
        return DistilledStudent(network, use.teacher_layers, teacher.config.hidden_size)

    def dataset(self, name: str) -> SpeechDataset:
        """The variant's training set, with what the teacher says of whole clean utterances where that is its target."""
        use, classes, taught = self.settings_of(name), self.classes(self.train), {}
        speech, teacher = self.speech if self._uses_speech(name) else None, self.variants[name].teacher
        if use.label_fraction < 1:
            labelled = self.share_of_each_class(use.label_fraction, "told")
            others = dict.fromkeys(classes, UNLABELLED)
            if use.pseudo_labels:
                told = self.teachers.outputs(self.settings.teacher_layers, name=teacher).logits
                others = {utterance: int(logits.argmax()) for utterance, logits in told.items()}
            classes = {u: label if u in labelled else others[u] for u, label in classes.items()}
        if speech:
            classes |= dict.fromkeys(speech.utterances, UNLABELLED)
            taught["audio"] = ChainMap(self.audio, speech)
        if use.teacher_layers and use.targets == "utterance":
            own = self.settings.teacher_layers  # one pass serves all variants that want no others
            layers = own if set(use.teacher_layers) <= set(own) else use.teacher_layers
            states = self.teachers.outputs(layers, use.target_network == "fine-tuned", speech, teacher)
            logits = torch.stack([states.logits[utterance] for utterance in classes])
            taught |= {"states": states, "layers": use.teacher_layers, "targets": {"teacher_logits": logits}}
        longest = int(use.max_seconds * SAMPLE_RATE)
        return self._windows(name, classes, longest=longest, clean_fraction=use.clean_fraction, **taught)

    def trained(self, name: str):
        use, objective, more, student = self.settings_of(name), CrossEntropy(), {}, self.student(name)
        if use.teacher_layers:
            # of the teacher's frames: at the end of an utterance a student on log-mel may have one more
            teacher = self.all_settings["teacher"]
            mask = partial(encoders.frame_mask, encoders.inputs_of_teacher(teacher))
            objective = MultiLevel(use, teacher.num_hidden_layers, mask)
            if use.targets != "utterance":
                teacher = self.teachers.teacher(use.target_network == "fine-tuned", self.variants[name].teacher)
                more = {"teacher": teacher, "noisy_targets": use.targets == "noisy piece"}
        more["optimizer"] = torch.optim.AdamW(student.parameters(), use.lr, use.betas, weight_decay=use.weight_decay)
        return student.student, self._optimise(name, student, objective, self.dataset(name), **more), []
