"""The student of meta-knowledge and curriculum distillation (Zhao et al., IEEE Trans. Affective Computing 2025).

An inverted transformer (iTransformer, Liu et al., ICLR 2024): each feature channel's whole time series is one token.
Its control is an ordinary transformer whose tokens are time frames.
"""

from collections.abc import Iterable
from dataclasses import field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForAudioClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from ser_kd_utils.data.features import FILTERS, FRAME, HOP, log_filter_bank
from ser_kd_utils.methods.mckd.settings import MCKDSettings
from ser_kd_utils.methods.teacher.encoders import Front


class VariableTokenConfig(PreTrainedConfig):
    """Defaults: iTransformer's sizes on wav2vec2-base's CNN; with labels, as any transformers config.

    features: "encoder" (states of a teacher's, after `feature_layer` layers, 0: after its CNN and projection) or
    "log-mel" (40 filters); tokens: "variable" or "time";
    pooling: what the classifier reads of the tokens, "flatten", all of them (as iTransformer's library), or "mean",
    which cannot tell which channel is which and is set for time tokens, whose number varies; frames: how many the
    network sees, 20 ms each: what is longer is cropped, what is shorter padded with zeros;
    hidden_size, num_hidden_layers, num_attention_heads, intermediate_size, dropout: of the transformer; z_score: each
    channel less its mean over the utterance, by its standard deviation (removes level cues); front: the config
    of the teacher as a dictionary, for "encoder" (what it leaves out is as in wav2vec2-base). Raises ValueError for
    an unknown word.
    """

    model_type = "variable-token"

    features: str = "encoder"
    feature_layer: int = 0
    tokens: str = "variable"
    pooling: str = "flatten"
    frames: int = 326
    hidden_size: int = 512
    num_hidden_layers: int = 2
    num_attention_heads: int = 8
    intermediate_size: int = 2048
    dropout: float = 0.1
    z_score: bool = False
    front: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self, **kwargs):
        MCKDSettings.of("paper", features=self.features, tokens=self.tokens, pooling=self.pooling)
        self.pooling = "mean" if self.tokens == "time" else self.pooling
        super().__post_init__(**kwargs)


class VariableTokenForAudioClassification(PreTrainedModel):
    """Features, normalised by the training part's statistics; tokens; layers as iTransformer's, whose norms come after
    the sums; a norm; the tokens flattened after GELU, with dropout, or their mean; a linear classifier.
    """

    config_class = VariableTokenConfig
    main_input_name = "input_values"

    def __init__(self, config: VariableTokenConfig):
        super().__init__(config)
        width = FILTERS
        if config.features == "encoder":
            front = AutoConfig.for_model(**{"model_type": "wav2vec2"} | config.front)
            width, self.front = front.hidden_size, Front(front, config.feature_layer)
        self.embed = nn.Linear(config.frames if config.tokens == "variable" else width, config.hidden_size)
        shape = (config.hidden_size, config.num_attention_heads, config.intermediate_size, config.dropout)
        layer, count = partial(nn.TransformerEncoderLayer, *shape, "gelu", batch_first=True), config.num_hidden_layers
        self.layers = nn.ModuleList(layer() for _ in range(count))
        self.norm = nn.LayerNorm(config.hidden_size)
        flat = config.pooling == "flatten"
        self.dropout = nn.Dropout(config.dropout * flat)
        self.classifier = nn.Linear(config.hidden_size * (width if flat else 1), config.num_labels)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """torch's defaults, as iTransformer's code."""
        reset = "_reset_parameters" if isinstance(module, nn.MultiheadAttention) else "reset_parameters"
        getattr(module, reset, lambda: None)()

    def frame_features(self, waves: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(batch, frames, width) float32 features of all frames, and (batch,) how many are valid; `forward` crops.

        waves: (batch, samples) at 16 kHz; lengths: (batch,) valid samples, None: all. A frame is valid when all of its
        samples are, the first one always. So padding changes nothing, unless the CNN has a group norm (wav2vec2-base):
        that one hears it.
        """
        if lengths is None:
            lengths = waves.new_full((len(waves),), waves.shape[1], dtype=torch.long)
        waves = waves.float()  # spectra need it
        if self.config.features == "encoder":
            features, counts = self.front(waves, lengths).float(), self.front.inputs.frame_counts(lengths)
        else:
            features, counts = log_filter_bank(waves, HOP), (lengths - FRAME) // HOP + 1
        counts = counts.clamp(min=1)
        return features[:, : counts.max()], counts

    @torch.no_grad()
    def fit_normalisation(self, features: Iterable[Tensor]) -> None:
        """Take mean and standard deviation of each channel from the training part's features.

        features: one utterance's (frames, width) after the other. They are saved with the weights.
        """
        frames, total, squares = 0, 0.0, 0.0
        for item in features:
            item = item.double()
            frames, total, squares = frames + len(item), total + item.sum(0), squares + item.square().sum(0)
        mean = total / frames
        self.mean.copy_(mean)
        self.std.copy_((squares / frames - mean.square()).clamp(min=1e-10).sqrt())

    def forward(
        self, input_values: Tensor | None = None, lengths: Tensor | None = None, features: Tensor | None = None,
        counts: Tensor | None = None, output_attentions: bool = False,
    ) -> SequenceClassifierOutput:  # fmt: skip
        """Logits (batch, labels), and as `hidden_states` one embedding: what the classifier reads, before dropout.

        It is (batch, channels x hidden_size), GELU of all variable tokens in a row, or (batch, hidden_size), the mean
        over the tokens that are not padding.
        Pass either input_values (batch, samples), waves at 16 kHz, with lengths, or features (batch, frames, width),
        as from `frame_features`, with counts (None: all are valid). attentions: of each layer (batch, heads, tokens,
        tokens), where asked for.
        """
        if features is None:
            features, counts = self.frame_features(input_values, lengths)
        x, valid = self._tokens(features, counts)
        padding, attentions = None if valid is None else ~valid, []
        for layer in self.layers:
            if output_attentions:  # the layer itself does not tell
                attentions.append(layer.self_attn(x, x, x, padding, average_attn_weights=False)[1])
            x = layer(x, src_key_padding_mask=padding)
        x = self.norm(x)
        if self.config.pooling == "flatten":
            embedding = F.gelu(x).flatten(1)
        else:
            embedding = x.mean(1) if valid is None else (x * valid[..., None]).sum(1) / valid.sum(1, keepdim=True)
        logits, attentions = self.classifier(self.dropout(embedding)), tuple(attentions) or None
        return SequenceClassifierOutput(logits=logits, hidden_states=(embedding,), attentions=attentions)

    def _tokens(self, features: Tensor, counts: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(batch, tokens, hidden_size), and for time tokens (batch, tokens) booleans: which are not padding."""
        features = features[:, : self.config.frames]
        frames = features.shape[1]
        if counts is None:
            counts = features.new_full((len(features),), frames)
        valid = torch.arange(frames, device=features.device) < counts[:, None]
        values = ((features - self.mean) / self.std) * valid[..., None]
        if self.config.z_score:
            own = valid.sum(1)[:, None, None]
            values = (values - values.sum(1, keepdim=True) / own) * valid[..., None]
            # the floor keeps rounding errors of a constant channel, such as digital silence, small
            values = values / (values.square().sum(1, keepdim=True) / own).clamp(min=1e-6).sqrt()
        values = values.to(self.dtype)
        if self.config.tokens == "variable":
            return self.embed(F.pad(values, (0, 0, 0, self.config.frames - frames)).mT), None
        return self.embed(values) + _positions(frames, self.config.hidden_size).to(values), valid


def _positions(frames: int, size: int) -> Tensor:
    """(frames, size) sines and cosines in turn (Vaswani et al. 2017)."""
    angles = torch.arange(frames)[:, None] / 10_000 ** (torch.arange(0, size, 2, dtype=torch.float64) / size)
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)


def prepare_inputs(waves: Tensor, lengths: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
    """The network's keyword arguments for waves (batch, samples), of which the first `lengths` (batch,) are valid."""
    return {"input_values": waves, "lengths": lengths}


AutoConfig.register(VariableTokenConfig.model_type, VariableTokenConfig)
AutoModelForAudioClassification.register(VariableTokenConfig, VariableTokenForAudioClassification)
