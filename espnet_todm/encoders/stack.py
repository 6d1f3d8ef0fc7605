"""Base class of the supernet encoders: an input layer, a sequence of blocks, and an output norm, built from options.

An encoder is a subclass of :class:`StackedEncoder` with a dataclass of options, a dataclass of one block's widths, and a
block class.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import Any, Callable, ClassVar, Optional, cast

from espnet2.asr.encoder.abs_encoder import AbsEncoder
from torch import Tensor, nn

from espnet_todm.components import FULL, Cost, Subnet
from espnet_todm.elastic.block import LAYER_NORM_EPS, ElasticBlock, count_parameters
from espnet_todm.encoders.chunks import Chunk, ChunkOptions, length_mask, parse_chunk, parse_chunk_options
from espnet_todm.encoders.depth import WHOLE, depth_options, kept_rates
from espnet_todm.encoders.frontends import INPUT_LAYERS, InputLayer, subsampling_cost
from espnet_todm.encoders.interctc import LAYERS, kept_places, parse_places, renumbered
from espnet_todm.encoders.options import (
    CUTS,
    SUPERNET_OPTIONS,
    EncoderOptions,
    InterCtcOptions,
    StreamingOptions,
    signature,
)
from espnet_todm.encoders.passes import SubsampledFeatures
from espnet_todm.encoders.positions import position_encoding
from espnet_todm.encoders.supernet import REFERENCE_SECONDS, SupernetEncoder
from espnet_todm.util.acoustics import FRAMES_PER_SECOND
from espnet_todm.util.host import on_both


class StackedEncoder(SupernetEncoder):
    """Input layer - blocks - output norm.

    Class attributes of a subclass:
        options_type: dataclass of the options.
        block_type: class of a block, constructed from the options and one block's widths.
        widths: module -> names of the fields for its width and its number of components; the second is None if the width
            is the number of components.
        stock_class, stock_inputs: ESPnet's encoder, if there is one, and the input layers that both have.

    Raises:
        UserError: an option is unknown, or a value is not allowed.
    """

    options_type: ClassVar[type[EncoderOptions]]
    block_type: ClassVar[type]
    widths: ClassVar[Mapping[str, tuple[str, Optional[str]]]]
    stock_class: ClassVar[Optional[type[AbsEncoder]]] = None
    stock_inputs: ClassVar[Sequence[Optional[str]]] = ()
    options: Any  # an instance of options_type
    chunk_options: Optional[ChunkOptions] = None  # in training
    decode_chunk: Optional[Chunk] = None  # outside of training; None: full context

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.__signature__ = signature(cls.options_type)  # ESPnet inspects it

    def __init__(self, input_size: int, **options: Any) -> None:
        parsed = self.options_type.parse(self.name, options)
        super().__init__(input_size, parsed.output_size)
        self.options = parsed
        self.shapes = tuple(parsed.shapes())
        self.input_layer: InputLayer = INPUT_LAYERS[parsed.input_layer]  # kernels and strides of the subsampling
        size = parsed.output_size
        positions = position_encoding(parsed)(size, self.positional_dropout())
        self.embed = self.input_layer.make(input_size, size, parsed.dropout_rate, positions, parsed.input_channels)
        self.encoders = nn.ModuleList(self.block_type(parsed, shape) for shape in self.shapes)
        self.after_norm = nn.LayerNorm(size, eps=LAYER_NORM_EPS)
        self._depth = depth_options(parsed, len(self.shapes))
        if isinstance(parsed, InterCtcOptions):
            self.places = self.interctc_layer_idx = parse_places(parsed.interctc_layer_idx, len(self.shapes))
            self.interctc_use_conditioning = bool(parsed.interctc_use_conditioning)
        if isinstance(parsed, StreamingOptions):
            self.chunk_options = parse_chunk_options(parsed.chunk)
            self.decode_chunk = parse_chunk(parsed.decode_chunk)
        self.finish(parsed)

    def positional_dropout(self) -> float:
        """Dropout rate of the position encoding, for positions and frames."""
        return float(self.options.positional_dropout_rate)

    def decode_in(self, chunk: Optional[Chunk]) -> None:
        """Set ``decode_chunk``, the chunks of attention outside of training; None: full context."""
        self.decode_chunk = chunk

    def subsample(self, features: Tensor, lengths: Tensor, step: Optional[int] = None) -> SubsampledFeatures:
        self.input_layer.check_length(features.size(1))
        embedded, _ = self.embed(features, length_mask(lengths, features.size(1)))
        hidden, positions = embedded if isinstance(embedded, tuple) else (embedded, None)
        lengths = on_both(self.input_layer.lengths, lengths)
        mask, chunk = length_mask(lengths, hidden.size(1)), self._chunk(step)
        visible = None if chunk is None else mask & chunk.visible(hidden.size(1), hidden.device)
        depth = self._depth.draw(step) if self.training else WHOLE
        return SubsampledFeatures(hidden, positions, lengths, mask, visible, depth)

    def _chunk(self, step: Optional[int]) -> Optional[Chunk]:
        """The chunk mask of a pass: drawn in training, ``decode_chunk`` outside of training."""
        if step is None:
            return self.decode_chunk
        return self.chunk_options.draw(step) if self.chunk_options is not None else None

    def output_norm(self, hidden: Tensor, size: str = FULL) -> Tensor:
        norm = self.own.after_norm(size)
        result: Tensor = (self.after_norm if norm is None else norm)(hidden)
        return result

    def subsampled(self, frames: int) -> int:
        return self.input_layer.subsampled(frames)

    def shortest(self) -> int:
        return self.input_layer.shortest()

    def front_cost(self) -> Cost:
        cost = subsampling_cost(self.embed, int(REFERENCE_SECONDS * FRAMES_PER_SECOND), self.input_size)
        return Cost(cost.params + count_parameters(self.after_norm), cost.flops / REFERENCE_SECONDS)

    def extracted_conf(self, subnet: Subnet) -> dict[str, Any]:
        small = [asdict(self._kept_shape(layer, modules)) for layer, modules in sorted(subnet.layers.items())]
        own = [f.name for f in fields(self.options_type) if f.metadata != CUTS and f.name not in SUPERNET_OPTIONS]
        conf = {"input_size": self.input_size, **{name: getattr(self.options, name) for name in own}}
        if self.options.attention_heads:
            conf["head_dim"] = self.options.head_width()
        layers = sorted(subnet.layers)
        if LAYERS in conf:
            conf[LAYERS] = [renumbered(place, layers) for place in kept_places(self.places, layers)]
        return {**conf, **kept_rates(conf, layers), "num_blocks": len(small), "blocks": small}

    def _kept_shape(self, layer: int, modules: Mapping[str, tuple[int, ...]]) -> Any:
        """The shape of a block that keeps these components in its modules."""
        full, block = self.shapes[layer], cast(ElasticBlock, self.encoders[layer])
        totals = {name: module.components for name, _, module in block.elastic_modules()}
        changes = {}
        for name, (width, components) in self.widths.items():
            kept = len(modules.get(name, ()))
            changes[width] = getattr(full, width) // totals[name] * kept if name in totals else 0
            if components is not None:
                changes[components] = kept
        return replace(full, **changes)

    def stock_conf(self, subnet: Subnet) -> Optional[dict[str, Any]]:
        conf = self.extracted_conf(subnet)
        first, *others = conf["blocks"] or [None]
        if self.stock_class is None or first is None or any(block != first for block in others):
            return None
        widths = self.stock_widths(type(self.options.shape())(**first))
        even = first["heads"] * conf["head_dim"] == conf["output_size"]
        if widths is None or not even or not self._has_stock_front():
            return None
        known = inspect.signature(cast(Callable[..., Any], self.stock_class)).parameters
        small = {key: value for key, value in conf.items() if key in known and key != "input_size"}
        return {**small, "attention_heads": first["heads"], **widths}

    def stock_widths(self, shape: Any) -> Optional[dict[str, Any]]:
        """Options of ESPnet's encoder for blocks of this shape, without ``attention_heads``; None if ESPnet's encoder cannot
        have such blocks."""
        raise NotImplementedError

    def _has_stock_front(self) -> bool:
        """Whether ESPnet's encoder has this input layer and this position encoding."""
        return (
            self.options.input_layer in self.stock_inputs
            and self.options.input_channels in (None, self.options.output_size)
            and self.options.pos_enc_layer_type != "none"
        )
