"""The CNN of DKDFMH: Head Fusion (Xu, Zhang & Zhang, IEEE Access 2021), which fuses attention heads in one point.

Text and released code of that paper differ in the attention. We follow the code; the text's is there to compare with.
"""

from typing import Literal

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoConfig, AutoModelForAudioClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from ser_kd_utils.data.features import log_filter_bank, mfcc

# The features and how many values each has per frame.
BINS = {"log filter bank": 40, "mfcc": 26}


@strict
class HeadFusionConfig(PreTrainedConfig):
    """Defaults: the paper's network on log filter banks; with labels, as any transformers config.

    features: "log filter bank" or "mfcc"; frame_step: samples from one frame of the log filter bank to the next;
    channels: of the convolutions 1 (each of two) to 5; num_attention_heads, head_dim: number and width of the attention
    heads; attention: "code" or "text" (see HeadFusionForAudioClassification); segment: samples of what the network sees
    at once; hop: samples from one segment of a test utterance to the next. Raises huggingface_hub's
    StrictDataclassFieldValidationError for another word or type.
    """

    model_type = "head-fusion"

    features: Literal["log filter bank", "mfcc"] = "log filter bank"
    frame_step: int = 160
    channels: tuple[int, ...] | list[int] = (8, 32, 48, 64, 80)
    num_attention_heads: int = 4
    head_dim: int = 64
    attention: Literal["code", "text"] = "code"
    segment: int = 32_000
    hop: int = 6_400


def segments_of(waves: Tensor, length: int, hop: int) -> Tensor:
    """(batch, samples) -> (batch, count, length): a segment every `hop` samples, as long as whole ones fit.

    What is left at the end is dropped, as in the base's code (which also drops a segment that ends with the last
    sample). A wave shorter than one segment is repeated up to its length (assumed; the base drops the utterance).
    """
    times = -(-length // waves.shape[1])
    return (waves.repeat(1, times)[:, :length] if times > 1 else waves).unfold(1, length, hop)


def features_of(waves: Tensor, config: HeadFusionConfig) -> Tensor:
    """(batch, samples) -> (batch, frames, 40) log filter banks or (batch, 26, frames) MFCC, not yet normalised."""
    return mfcc(waves) if config.features == "mfcc" else log_filter_bank(waves, config.frame_step)


def _block(inputs: int, outputs: int, kernel: tuple[int, int] = (3, 3), padding: tuple[int, int] = (1, 1)) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, padding=padding), nn.BatchNorm2d(outputs), nn.ReLU())


class HeadFusionForAudioClassification(PreTrainedModel):
    """Convolutions over the features as an image, attention heads, one mean over all of them, a linear layer.

    The first convolution is two in parallel, along time and along frequency (for MFCC, whose axes lie the other way
    round in the base's code, along frequency and along time). Query, key and value are 1x1 convolutions.

    attention "code", as released: softmax over the *channels* of query * key, element by element, times the value; the
    heads stand side by side in space, so that the mean after the ReLU goes over positions and heads at once.
    attention "text", as the paper describes it: scaled dot-product attention over the *positions*, then the mean of the
    heads, ReLU, mean over positions. Both have the same parameters.
    """

    config_class = HeadFusionConfig
    main_input_name = "input_values"

    def __init__(self, config: HeadFusionConfig):
        super().__init__(config)
        one, two, three, four, five = config.channels
        self.conv1a = _block(1, one, (10, 2), (4, 0))
        self.conv1b = _block(1, one, (2, 8), (0, 3))
        self.conv2 = nn.Sequential(_block(2 * one, two), nn.MaxPool2d(2))
        self.conv3 = nn.Sequential(_block(two, three), nn.MaxPool2d(2))
        self.conv4 = _block(three, four)
        self.conv5 = _block(four, five)
        self.query_key_value = nn.Conv2d(five, config.num_attention_heads * 3 * config.head_dim, 1)  # all heads at once
        self.output = nn.Linear(config.head_dim, config.num_labels)
        shape = (BINS["mfcc"], 1) if config.features == "mfcc" else (BINS["log filter bank"],)
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("std", torch.ones(shape))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """torch's defaults, as the base: transformers' normal distribution of 0.02 is made for transformers."""
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.reset_parameters()

    @torch.no_grad()
    def fit_normalisation(self, features: Tensor) -> None:
        """Take mean and standard deviation of each filter (or coefficient) from the training part's features.

        features: as from `features_of`. They are saved with the weights. The base does not normalise: assumed.
        """
        std, mean = torch.std_mean(features, (0, 2) if self.mean.ndim == 2 else (0, 1), correction=0)
        self.mean.copy_(mean.view_as(self.mean))
        self.std.copy_(std.clamp(min=1e-5).view_as(self.std))

    def forward(self, input_values: Tensor | None = None, features: Tensor | None = None) -> SequenceClassifierOutput:
        """Logits (batch, labels) of utterances or of single segments: pass one of the two.

        input_values: (batch, samples) waves at 16 kHz, all of one length, nothing padded; the logits are the mean over
        the segments of an utterance (assumed: of logits, not of probabilities). features: of `features_of`, one
        segment an item.
        """
        if features is not None:
            return SequenceClassifierOutput(logits=self._classify(features))
        segments = segments_of(input_values, self.config.segment, self.config.hop)
        features = features_of(segments.flatten(0, 1).float(), self.config)  # spectra need float32
        logits = self._classify(features).unflatten(0, segments.shape[:2]).mean(1)
        return SequenceClassifierOutput(logits=logits)

    def _classify(self, features: Tensor) -> Tensor:
        image = ((features - self.mean) / self.std).to(self.dtype)[:, None]
        # channels last: faster on CPU
        maps = torch.cat([self.conv1a(image), self.conv1b(image)], 1).contiguous(memory_format=torch.channels_last)
        maps = self.query_key_value(self.conv5(self.conv4(self.conv3(self.conv2(maps)))))
        shape = (self.config.num_attention_heads, 3, self.config.head_dim)
        query, key, value = maps.unflatten(1, shape).unbind(2)  # each (batch, heads, head_dim, frames, filters)
        if self.config.attention == "code":
            fused = ((query * key).softmax(2) * value).relu().mean((1, 3, 4))
        else:
            positions = (part.flatten(3).transpose(2, 3) for part in (query, key, value))
            fused = scaled_dot_product_attention(*positions).mean(1).relu().mean(1)
        return self.output(fused)


def prepare_inputs(waves: Tensor, lengths: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
    """The network's keyword arguments for waves (batch, samples) of one length; unlike wav2vec 2.0 with their level."""
    return {"input_values": waves}


AutoConfig.register(HeadFusionConfig.model_type, HeadFusionConfig)
AutoModelForAudioClassification.register(HeadFusionConfig, HeadFusionForAudioClassification)
