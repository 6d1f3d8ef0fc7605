"""What the supernet encoders have in common: an input layer, blocks one after another, a final norm, and options of both.

An encoder is a subclass of :class:`StackedEncoder` with a dataclass of one block's widths, and the block itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import Any, Callable, ClassVar, Optional, TypeVar, cast

from espnet2.asr.encoder.abs_encoder import AbsEncoder
from torch import Tensor, nn

from espnet_todm.components import Cost, Subnet
from espnet_todm.elastic.block import ACTIVATIONS, LAYER_NORM_EPS, ElasticBlock, count_parameters
from espnet_todm.encoders.chunks import Chunk, ChunkOptions, parse_chunk, parse_chunk_options
from espnet_todm.encoders.depth import WHOLE, depth_options, kept_rates
from espnet_todm.encoders.frontends import INPUT_LAYERS, InputLayer, input_names, subsampling_cost
from espnet_todm.encoders.interctc import CONDITIONING, LAYERS, kept_places, parse_places, renumbered
from espnet_todm.encoders.positions import LATEST, LEGACY, position_encoding, relative_kind
from espnet_todm.encoders.supernet import (
    REFERENCE_SECONDS,
    SUPERNET_OPTIONS,
    SubsampledFeatures,
    SupernetEncoder,
    length_mask,
)
from espnet_todm.errors import UserError
from espnet_todm.util.acoustics import FRAMES_PER_SECOND
from espnet_todm.util.checks import together

S = TypeVar("S")


class StackedEncoder(SupernetEncoder):
    """Input layer - blocks - norm.

    Class attributes of a subclass:
        widths: module -> the fields of a block's shape that hold its width and its number of components, None where the
            width says both.
        cut_options: options that say into how many components modules are cut; ``blocks`` has that for extracted models.
        inputs: the input layers that there are.
        stock_class, stock_inputs: ESPnet's own encoder, if there is one, and the input layers that it has, too.
        fixed, ignored: options of ESPnet's encoder that have one form only here, and those that mean nothing here.
        activation, attention: options of the activation and of the type of attention, by ESPnet's names, if there are any.
    """

    widths: ClassVar[Mapping[str, tuple[str, Optional[str]]]]
    cut_options: ClassVar[Sequence[str]]
    inputs: ClassVar[Sequence[Optional[str]]] = tuple(INPUT_LAYERS)
    stock_class: ClassVar[Optional[type[AbsEncoder]]] = None
    stock_inputs: ClassVar[Sequence[Optional[str]]] = ()
    fixed: ClassVar[Mapping[str, Any]] = {}
    ignored: ClassVar[Sequence[str]] = ()
    activation: ClassVar[Optional[str]] = "activation_type"
    attention: ClassVar[Optional[str]] = "selfattention_layer_type"
    chunk_options: Optional[ChunkOptions] = None  # of training
    decode_chunk: Optional[Chunk] = None  # outside of training; None: full context

    def build(
        self,
        options: Mapping[str, Any],
        shapes: Sequence[Any],
        block: Callable[[Any], ElasticBlock],
    ) -> None:
        """Make the parts. ``options`` are those of ``__init__``, ``block`` makes a block of one of the ``shapes``.

        Raises UserError for rates of layers that are none.
        """
        self._options = dict(options)
        self._input = INPUT_LAYERS[options["input_layer"]]
        size = options["output_size"]
        positions = position_encoding(options, self.attention)(size, self.positional_dropout())
        self.embed = self._input.make(
            self.input_size, size, options["dropout_rate"], positions, options["input_channels"]
        )
        self.shapes = tuple(shapes)
        self.encoders = nn.ModuleList(block(shape) for shape in shapes)
        self.after_norm = nn.LayerNorm(size, eps=LAYER_NORM_EPS)
        self._depth = depth_options(options, len(self.shapes))
        if LAYERS in options:
            self.places = self.interctc_layer_idx = parse_places(options, len(self.shapes))
            self.interctc_use_conditioning = bool(options[CONDITIONING])

    def positional_dropout(self) -> float:
        """The dropout of positions, and of the frames that they are added to."""
        return float(self._options["positional_dropout_rate"])

    @classmethod
    def check(cls, options: Mapping[str, Any], stock: Mapping[str, Any], *more: Callable[[], Any]) -> None:
        """What all encoders check of their options, what ESPnet's has besides as ``stock``, and ``more`` that one checks by
        itself. Raises one UserError for all that is not allowed."""
        together(
            lambda: check_stock(cls.name, stock, cls.fixed, cls.ignored),
            lambda: _check_input(options, cls.inputs),
            lambda: check_among(options, cls.activation, ACTIVATIONS) if cls.activation else None,
            lambda: check_among(options, "rel_pos_type", (LATEST, LEGACY)) if "rel_pos_type" in options else None,
            lambda: position_encoding(options, cls.attention),
            *more,
        )

    def subsample(self, features: Tensor, lengths: Tensor, step: Optional[int] = None) -> SubsampledFeatures:
        self._input.check_length(features.size(1))
        embedded, _ = self.embed(features, length_mask(lengths, features.size(1)))
        hidden, positions = embedded if isinstance(embedded, tuple) else (embedded, None)
        lengths = self._input.lengths(lengths)
        mask, chunk = length_mask(lengths, hidden.size(1)), self._chunk(step)
        visible = None if chunk is None else mask & chunk.visible(hidden.size(1), hidden.device)
        depth = self._depth.draw(step) if self.training else WHOLE
        return SubsampledFeatures(hidden, positions, lengths, mask, visible, depth)

    def _chunk(self, step: Optional[int]) -> Optional[Chunk]:
        """What limits attention: drawn in training, as options say outside of it."""
        if step is None:
            return self.decode_chunk
        return self.chunk_options.draw(step) if self.chunk_options is not None else None

    @property
    def options(self) -> Mapping[str, Any]:
        """Those of ``__init__``."""
        return self._options

    @property
    def input_layer(self) -> InputLayer:
        """What shortens the input."""
        return self._input

    def take_chunks(self, options: Mapping[str, Any]) -> None:
        """The options ``chunk`` and ``decode_chunk``. Raises UserError where a frame would see more than its chunk."""
        self.chunk_options = parse_chunk_options(options["chunk"])
        self.decode_chunk = parse_chunk(options["decode_chunk"])
        for key in ("chunk", "decode_chunk"):
            if options[key] is not None:
                check_streaming(key, options)

    def output_norm(self, hidden: Tensor) -> Tensor:
        return self.after_norm(hidden)

    def subsampled(self, frames: int) -> int:
        return self._input.subsampled(frames)

    def shortest(self) -> int:
        return self._input.shortest()

    def front_cost(self) -> Cost:
        cost = subsampling_cost(self.embed, int(REFERENCE_SECONDS * FRAMES_PER_SECOND), self.input_size)
        return Cost(cost.params + count_parameters(self.after_norm), cost.flops / REFERENCE_SECONDS)

    def extracted_conf(self, subnet: Subnet) -> dict[str, Any]:
        small = [asdict(self._kept_shape(layer, modules)) for layer, modules in sorted(subnet.layers.items())]
        conf = {k: v for k, v in self._options.items() if k not in SUPERNET_OPTIONS and k not in self.cut_options}
        layers = sorted(subnet.layers)
        if LAYERS in conf:
            conf[LAYERS] = [renumbered(place, layers) for place in kept_places(self.places, layers)]
        return {**conf, **kept_rates(conf, layers), "num_blocks": len(small), "blocks": small}

    def _kept_shape(self, layer: int, modules: Mapping[str, tuple[int, ...]]) -> Any:
        """The shape of a block that keeps these components of its modules."""
        full, block = self.shapes[layer], cast(ElasticBlock, self.encoders[layer])
        totals = {name: module.components for name, _, module in block.elastic_modules()}
        changes = {}
        for name, (width, components) in self.widths.items():
            kept = len(modules.get(name, ()))
            changes[width] = getattr(full, width) // totals[name] * kept if name in totals else 0
            if components is not None:
                changes[components] = kept
        return replace(full, **changes)

    def uniform_shape(self, conf: Mapping[str, Any]) -> Optional[dict[str, int]]:
        """The entry of ``blocks`` in an extracted model's options if all are alike, as in ESPnet's encoders, else None."""
        first: Optional[dict[str, int]] = next(iter(conf["blocks"]), None)
        return first if all(block == first for block in conf["blocks"]) else None

    def has_stock_front(self) -> bool:
        """Whether ESPnet's own encoders have this input layer and these positions."""
        channels = self._options["input_channels"]
        return (
            self._options["input_layer"] in self.stock_inputs
            and channels in (None, self._options["output_size"])
            and self._options["pos_enc_layer_type"] != "none"
        )

    def stock_options(self, conf: Mapping[str, Any]) -> dict[str, Any]:
        """Those options of an extracted model that ESPnet's own encoder has, too."""
        known = inspect.signature(cast(Callable[..., Any], self.stock_class)).parameters
        return {key: value for key, value in conf.items() if key in known and key != "input_size"}


def check_among(options: Mapping[str, Any], name: str, allowed: Iterable[str]) -> None:
    """Raises UserError where an option is none of those that are allowed."""
    if options[name] not in tuple(allowed):
        raise UserError(f"{name}: {options[name]!r} is unknown; allowed: {', '.join(allowed)}")


def _check_input(options: Mapping[str, Any], allowed: Sequence[Optional[str]]) -> None:
    name = options["input_layer"]
    if name not in allowed:
        what = "takes token ids, not speech" if name == "embed" else "is unknown"
        raise UserError(f"input_layer: {name!r} {what}; allowed: {input_names(allowed)}")
    if options["input_channels"] is not None:
        check_positive(options, "input_channels")


def check_streaming(key: str, options: Mapping[str, Any]) -> None:
    """Raises UserError where an encoder with these options, which ``key`` asks to work in chunks, cannot."""
    if options.get(CONDITIONING):
        raise UserError(f"{key}: {CONDITIONING}: true is not possible in chunks; leave it out")
    if not options.get("causal"):
        raise UserError(f"{key}: needs causal: true, or the convolution would see frames to the right of the chunk")
    positions = options["pos_enc_layer_type"]
    if positions not in ("rel_pos", "none"):
        raise UserError(
            f"{key}: pos_enc_layer_type: {positions!r} counts from the start of speech; allowed: rel_pos, none"
        )
    if relative_kind(options) == LEGACY:
        raise UserError(f"{key}: rel_pos_type: 'legacy' counts from the end of speech; say rel_pos_type: latest")
    if not INPUT_LAYERS[options["input_layer"]].windowed:
        allowed = input_names(name for name, layer in INPUT_LAYERS.items() if layer.windowed)
        raise UserError(f"{key}: input_layer: {options['input_layer']!r} pads inside of speech; allowed: {allowed}")


def check_positive(options: Mapping[str, Any], *names: str) -> None:
    """Raises UserError where one of these options is no whole number above 0."""
    for name in names:
        value = options[name]
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(f"{name}: {value!r} must be a whole number above 0")


def head_width(options: Mapping[str, Any], width: str = "head_dim", heads: str = "attention_heads") -> int:
    """Width of a head, as option ``width`` says or as an even share. Raises UserError where there is no even share."""
    given, size, count = options[width], options["output_size"], options[heads]
    if given is not None:
        check_positive(options, width)
        return int(given)
    if size % count:
        raise UserError(f"{heads}: {count} does not divide output_size: {size}")
    return int(size // count)


def check_stock(encoder: str, stock: Mapping[str, Any], fixed: Mapping[str, Any], ignored: Sequence[str]) -> None:
    """Options of ESPnet's encoder that are not ours: fine at the one value that a supernet has. Raises UserError."""
    told = []
    for key, value in stock.items():
        if key not in (*fixed, *ignored):
            told.append(f"encoder_conf: unknown option {key!r} for {encoder}")
        elif key in fixed and value != fixed[key]:
            told.append(f"{key}: {value!r} is not possible in a supernet; allowed: {fixed[key]!r}")
    if told:
        raise UserError("; ".join(told))


def parse_blocks(blocks: Sequence[Mapping[str, int]], shape: type[S]) -> list[S]:
    """The option ``blocks`` as shapes. Raises UserError where an entry has other keys than a shape has fields."""
    names = [field.name for field in fields(shape)]  # type: ignore[arg-type]
    for number, block in enumerate(blocks):
        if sorted(block) != sorted(names):
            raise UserError(f"blocks[{number}]: has the keys {', '.join(block)}; needed: {', '.join(names)}")
    return [shape(**block) for block in blocks]
