"""A recorded network for other programs: as an ONNX graph from waves to logits, or as plain transformers reads it."""

import json
import logging
import warnings
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

from ser_kd_utils.data.audio import SAMPLE_RATE
from ser_kd_utils.data.features import HOP
from ser_kd_utils.deploy.card import card
from ser_kd_utils.deploy.predict import ABOUT, GRAPH, SHORTEST, Model, refuse_unsafe
from ser_kd_utils.files import replaced
from ser_kd_utils.methods import METHODS
from ser_kd_utils.methods.teacher.encoders import normalise
from ser_kd_utils.records import Run

FORMATS = ("onnx", "onnx-int8", "hub")


class LogMel(nn.Module):
    """Whisper's log-mel of waves (batch, samples): (batch, filters, frames), as WhisperFeatureExtractor computes it.

    The Fourier transform is a convolution: onnxruntime takes a tenth of the time of its own STFT, which for 400 points
    is off by up to 3e-3.
    """

    def __init__(self, extractor: AutoFeatureExtractor):
        super().__init__()
        self.hop, window = extractor.hop_length, torch.hann_window(extractor.n_fft, dtype=torch.float64)
        turns = torch.fft.rfft(window.diag()).mT
        self.register_buffer("fourier", torch.cat([turns.real, turns.imag])[:, None].float())
        self.register_buffer("filters", torch.tensor(extractor.mel_filters.T)[..., None].float())

    def forward(self, waves: Tensor) -> Tensor:
        padded = F.pad(waves[:, None], [self.fourier.shape[-1] // 2] * 2, mode="reflect")
        real, imaginary = F.conv1d(padded, self.fourier, stride=self.hop)[..., :-1].square().chunk(2, 1)
        energy = F.conv1d(real + imaginary, self.filters).clamp(min=1e-10).log10()
        return (energy.maximum(energy.amax((1, 2), keepdim=True) - 8) + 4) / 4


class WaveClassifier(nn.Module):
    """A saved network with what its feature extractor does: waves (1, samples) at 16 kHz -> logits (1, labels).

    about: its labels, and the most samples that it is given at a time. Raises ValueError for a folder without
    a network, with a pickle or with code, and for a Whisper whose window is not that of its feature extractor.
    """

    def __init__(self, folder: Path):
        super().__init__()
        refuse_unsafe(folder)
        for method in METHODS.values():  # tells transformers of the classes that are not its own
            if find_spec(module := f"{method.package}.model"):
                import_module(module)
        self.network = AutoModelForAudioClassification.from_pretrained(folder, use_safetensors=True, dtype=torch.float)
        self.extractor, config = AutoFeatureExtractor.from_pretrained(folder), self.network.config
        fixed = config.max_source_positions * HOP if config.model_type == "whisper" else 0
        if fixed and fixed != self.extractor.n_samples:
            raise ValueError(f"{folder}: chunk_length must be the network's window, {fixed / SAMPLE_RATE:g} s.")
        self.log_mel = LogMel(self.extractor) if fixed else None
        self.about = {
            "labels": [config.id2label[index] for index in range(config.num_labels)],
            "window": fixed or HOP * getattr(config, "frames", 500),  # 10 s for what hears recordings of any length
        }
        self.eval()

    def forward(self, waves: Tensor) -> Tensor:
        lengths = waves.new_full((1,), waves.shape[1], dtype=torch.long)
        if self.log_mel:
            waves = self.log_mel(F.pad(waves, (0, self.about["window"] - waves.shape[1])))
        elif segment := getattr(self.network.config, "segment", 0):  # repeated as the network does, which has no graph
            waves = waves[:, torch.arange(torch.sym_max(waves.shape[1], segment)) % lengths]
        elif self.extractor.do_normalize:
            waves = normalise(waves, lengths)
        return self.network(waves).logits


def load(folder: Path) -> Model:
    """The network of a folder, run by torch. Raises ValueError as `WaveClassifier`."""
    classifier = WaveClassifier(folder).requires_grad_(False)
    return Model(lambda wave: classifier(torch.from_numpy(wave)[None])[0].numpy(), **classifier.about)


def export(run: str, to: str, format: str = "onnx") -> int:
    """Write the network of a run's folder into the new folder `to`, with a model card; format: one of FORMATS.

    onnx: model.onnx, from waves (1, samples) to logits, and model.json; onnx-int8: with 8-bit weights in its linear
    layers; hub: what transformers reads. Raises ValueError for what cannot be exported.
    """
    source, target = Path(run), Path(to)
    if format not in FORMATS:
        raise ValueError(f"--format {format}: choose one of {', '.join(FORMATS)}.")
    if target.exists():
        raise ValueError(f"--to {to or 'DIR'}: pass a folder that is not there yet.")
    classifier = WaveClassifier(source / "model")
    with replaced(target, target.with_name(f".unfinished-{target.name}")) as fresh:
        if format == "hub":
            classifier.network.save_pretrained(fresh)
            classifier.extractor.save_pretrained(fresh)
        else:
            write_onnx(classifier, fresh, int8=format == "onnx-int8")
        card(Run(source), format, type(classifier.network).__module__).save(fresh / "README.md")
    print(f"{target}: {sum(path.stat().st_size for path in target.iterdir()) / 1e6:.1f} MB")
    return 0


def write_onnx(classifier: WaveClassifier, folder: Path, int8: bool = False) -> None:
    """model.onnx and model.json into a folder. Raises ValueError where the extra [export] is not installed."""
    if lacking := [name for name in ("onnx", "onnxscript") if not find_spec(name)]:
        raise ValueError(f"{' and '.join(lacking)} must be there: pip install 'ser-kd[export]'.")
    import onnx
    from onnxruntime.quantization import quant_pre_process, quantize_dynamic

    example = torch.sin(torch.arange(classifier.about["window"]) ** 1.5 / 1e3)[None] / 10  # a tone that rises
    if hasattr(classifier.network, "frame_features"):  # the exporter cannot know that there is more than one token
        classifier.network.layers[0].register_forward_pre_hook(lambda _, given: torch._check(given[0].shape[1] > 1))
    classifier(example)  # so that the constants which the package keeps are real ones, not the exporter's
    shapes = {"waves": {1: torch.export.Dim("samples", min=SHORTEST, max=example.shape[1])}}
    how = {"dynamo": True, "verbose": False, "input_names": ["waves"], "output_names": ["logits"]}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # within torch
        model = torch.onnx.export(classifier, (example,), dynamic_shapes=shapes, **how).model_proto
    spectra = [node.name for node in model.graph.node if not any("aten.linear" in p.value for p in node.metadata_props)]
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.initializer):
        part.ClearField("metadata_props")  # where the code lies on this machine
    onnx.save(model, folder / GRAPH)
    if int8:
        quant_pre_process(model, folder / GRAPH, skip_optimization=True, skip_symbolic_shape=True)
        quantize_dynamic(folder / GRAPH, folder / GRAPH, ["MatMul"], per_channel=True, nodes_to_exclude=spectra)
    about = {"sampling_rate": SAMPLE_RATE, "waves": "float32 (1, samples), mono, as recorded", **classifier.about}
    (folder / ABOUT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
