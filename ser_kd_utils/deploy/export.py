"""A recorded network for other programs: as an ONNX graph from waves to logits, or as plain transformers reads it."""

import json
import logging
import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

from ser_kd_utils.data.features import HOP
from ser_kd_utils.deploy.card import card
from ser_kd_utils.deploy.predict import GRAPH, SHORTEST, Model, refuse_unsafe
from ser_kd_utils.files import replaced
from ser_kd_utils.methods import METHODS
from ser_kd_utils.methods.teacher.encoders import normalise
from ser_kd_utils.records import Run

FORMATS = ("onnx", "onnx-int8", "hub", "hub-float16")


class LogMel(nn.Module):
    """Whisper's log-mel of waves (batch, samples): (batch, filters, frames), as WhisperFeatureExtractor computes it.

    The Fourier transform is a convolution: onnxruntime takes a tenth of the time of its own STFT, which for 400 points
    is off by up to 3e-3.
    """

    def __init__(self, extractor: AutoFeatureExtractor):
        super().__init__()
        turns = torch.fft.rfft(torch.hann_window(extractor.n_fft, dtype=torch.float64).diag()).mT
        self.register_buffer("fourier", torch.cat([turns.real, turns.imag])[:, None].float())
        self.register_buffer("filters", torch.tensor(extractor.mel_filters.T)[..., None].float())

    def forward(self, waves: Tensor) -> Tensor:
        padded = nn.functional.pad(waves[:, None], [self.fourier.shape[-1] // 2] * 2, mode="reflect")
        real, imaginary = nn.functional.conv1d(padded, self.fourier, stride=HOP // 2)[..., :-1].square().chunk(2, 1)
        energy = nn.functional.conv1d(real + imaginary, self.filters).clamp(min=1e-10).log10()
        return (energy.maximum(energy.amax((1, 2), keepdim=True) - 8) + 4) / 4


class WaveClassifier(nn.Module):
    """A saved network with what its feature extractor does: waves (1, samples) at 16 kHz -> logits (1, labels).

    about: its labels, and as `window` the most samples that it is given at a time. Raises ValueError for a folder
    without a network, with a pickle or with code.
    """

    def __init__(self, folder: Path):
        super().__init__()
        refuse_unsafe(folder)
        [method.experiment_class for method in METHODS.values()]  # tell transformers of the classes not its own
        self.network = AutoModelForAudioClassification.from_pretrained(folder, use_safetensors=True, dtype=torch.float)
        self.extractor, config = AutoFeatureExtractor.from_pretrained(folder), self.network.config
        self.log_mel = LogMel(self.extractor) if config.model_type == "whisper" else None
        # 10 s for what hears recordings of any length
        window = HOP * (config.max_source_positions if self.log_mel else getattr(config, "frames", 500))
        self.about = {"labels": [config.id2label[index] for index in range(config.num_labels)], "window": window}
        self.eval().requires_grad_(False)

    def forward(self, waves: Tensor) -> Tensor:
        lengths = waves.new_full((1,), waves.shape[1], dtype=torch.long)
        if self.log_mel:
            waves = self.log_mel(nn.functional.pad(waves, (0, self.about["window"] - waves.shape[1])))
        elif segment := getattr(self.network.config, "segment", 0):  # repeated as the network does, which has no graph
            waves = waves[:, torch.arange(torch.sym_max(waves.shape[1], segment)) % lengths]
        elif self.extractor.do_normalize:
            waves = normalise(waves, lengths)
        return self.network(waves).logits


def load(folder: Path) -> Model:
    """The network of a folder, run by torch. Raises ValueError as `WaveClassifier`."""
    classifier = WaveClassifier(folder)
    return Model(lambda wave: classifier(torch.from_numpy(wave)[None])[0].numpy(), **classifier.about)


def export(run: str, to: str = "", format: str = "onnx") -> int:
    """Write the network of a run's folder into the new folder `to`, with a model card; format: one of FORMATS.

    onnx: model.onnx, from waves (1, samples) to logits; onnx-int8: with 8-bit weights in its linear and convolutional
    layers; hub: what transformers reads; hub-float16: with weights of half the size. Raises ValueError for what cannot
    be exported.
    """
    source, target = Path(run), Path(to)
    if format not in FORMATS or target.exists():
        raise ValueError(f"Pass with --to a folder not there yet, and with --format one of {', '.join(FORMATS)}.")
    classifier = WaveClassifier(source / "model")
    with replaced(target, target.with_name(f".unfinished-{target.name}")) as fresh:
        if format.startswith("hub"):
            classifier.network.to(torch.half if format == "hub-float16" else torch.float).save_pretrained(fresh)
            classifier.extractor.save_pretrained(fresh)
        else:
            write_onnx(classifier, {format: fresh})
        card(Run(source), format, type(classifier.network).__module__).save(fresh / "README.md")
    print(f"{target}: {sum(path.stat().st_size for path in target.iterdir()) / 1e6:.1f} MB")
    return 0


def write_onnx(classifier: WaveClassifier, folders: Mapping[str, Path]) -> None:
    """model.onnx, which holds labels and window, into a folder for each format, "onnx" or "onnx-int8".

    Torch traces the network once for all of them. Raises ValueError without the extra [export].
    """
    if lacking := [name for name in ("onnx", "onnxscript") if not find_spec(name)]:
        raise ValueError(f"{' and '.join(lacking)} must be there: pip install 'ser-kd[export]'.")
    from onnx import TensorProto, helper, load_model, numpy_helper, save_model
    from onnxruntime.quantization import QuantType, quantize_dynamic

    example = torch.sin(torch.arange(classifier.about["window"]) ** 1.5 / 1e3)[None] / 10  # a tone that rises
    if hasattr(classifier.network, "frame_features"):  # the exporter cannot know that there is more than one token
        classifier.network.layers[0].register_forward_pre_hook(lambda _, given: torch._check(given[0].shape[1] > 1))
    classifier(example)  # so that the constants which the package keeps are real ones, not the exporter's
    shapes = {"waves": {1: torch.export.Dim("samples", min=SHORTEST, max=example.shape[1])}}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision
    program = torch.onnx.export(classifier, (example,), verbose=False, output_names=["logits"], dynamic_shapes=shapes)
    model, layer = program.model_proto, "aten.linear|modules.(conv|batchnorm)"  # norms are part of convolutions
    others = [node.name for node in model.graph.node if not re.search(layer, str(node.metadata_props))]
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.initializer):
        part.ClearField("metadata_props")  # where the code lies on this machine
    # the second: the graph is optimised already, or onnxruntime would warn
    about = {"ser-kd": json.dumps(classifier.about), "onnx.quant.pre_process": "onnxruntime.quant"}
    helper.set_model_props(model, about)
    for format, folder in folders.items():
        written = model
        if format == "onnx-int8":
            # unsigned: products with signed weights overflow 16 bits on a processor without VNNI
            how = {"per_channel": True, "weight_type": QuantType.QUInt8, "nodes_to_exclude": others}
            quantize_dynamic(model, folder / GRAPH, ["MatMul", "Conv"], **how)
            written = load_model(folder / GRAPH)
            for weights in written.graph.initializer:
                if weights.data_type == TensorProto.FLOAT and len(weights.dims) > 1:  # as spectra and positions
                    cast = helper.make_node("Cast", [f"{weights.name}_half"], [weights.name], to=weights.data_type)
                    written.graph.node.insert(0, cast)
                    weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights).astype("f2"), *cast.input))
        save_model(written, folder / GRAPH)
