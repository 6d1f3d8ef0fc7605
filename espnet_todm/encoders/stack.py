"""What the supernet encoders have in common: an input layer, blocks one after another, a final norm, and options of both.

An encoder is a subclass of :class:`StackedEncoder` with a dataclass of one block's widths, and the block itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import Any, Callable, ClassVar, Optional, TypeVar, cast

from torch import Tensor, nn

from espnet_todm.acoustics import FRAMES_PER_SECOND
from espnet_todm.components import Cost, Subnet
from espnet_todm.elastic.block import ACTIVATIONS, LAYER_NORM_EPS, ElasticBlock, count_parameters
from espnet_todm.encoders.chunks import Chunk, ChunkOptions, parse_chunk, parse_chunk_options
from espnet_todm.encoders.frontends import INPUT_LAYERS, InputLayer, subsampling_cost
from espnet_todm.encoders.positions import LATEST, LEGACY, Encoding, relative_kind
from espnet_todm.encoders.supernet import (
    REFERENCE_SECONDS,
    SUPERNET_OPTIONS,
    Front,
    SupernetEncoder,
    length_mask,
)
from espnet_todm.errors import UserError

S = TypeVar("S")


class StackedEncoder(SupernetEncoder):
    """Input layer - blocks - norm.

    Class attributes of a subclass:
        widths: module -> the fields of a block's shape that hold its width and its number of components, None where the
            width says both.
        cut_options: options that say into how many components modules are cut; ``blocks`` has that for extracted models.
    """

    widths: ClassVar[Mapping[str, tuple[str, Optional[str]]]]
    cut_options: ClassVar[Sequence[str]]
    chunk_options: Optional[ChunkOptions] = None  # of training
    decode_chunk: Optional[Chunk] = None  # outside of training; None: full context

    def build(
        self,
        options: Mapping[str, Any],
        encoding: Encoding,
        shapes: Sequence[Any],
        block: Callable[[Any], ElasticBlock],
    ) -> None:
        """Make the parts. ``options`` are those of ``__init__``, ``block`` makes a block of one of the ``shapes``."""
        self._options = dict(options)
        self._input = INPUT_LAYERS[options["input_layer"]]
        size = options["output_size"]
        positions = encoding(size, options["positional_dropout_rate"])
        self.embed = self._input.make(
            self.input_size, size, options["dropout_rate"], positions, options["input_channels"]
        )
        self.shapes = tuple(shapes)
        self.encoders = nn.ModuleList(block(shape) for shape in shapes)
        self.after_norm = nn.LayerNorm(size, eps=LAYER_NORM_EPS)

    def front(self, features: Tensor, lengths: Tensor, step: Optional[int] = None) -> Front:
        self._input.check_length(features.size(1))
        embedded, _ = self.embed(features, length_mask(lengths, features.size(1)))
        hidden, positions = embedded if isinstance(embedded, tuple) else (embedded, None)
        lengths = self._input.lengths(lengths)
        mask, chunk = length_mask(lengths, hidden.size(1)), self._chunk(step)
        visible = None if chunk is None else mask & chunk.visible(hidden.size(1), hidden.device)
        return Front(hidden, positions, lengths, mask, visible)

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

    def finalise(self, hidden: Tensor) -> Tensor:
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
        return {**conf, "num_blocks": len(small), "blocks": small}

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
            self._input.stock
            and channels in (None, self._options["output_size"])
            and self._options["pos_enc_layer_type"] != "none"
        )


def check_options(options: Mapping[str, Any], activation: str = "activation_type") -> None:
    """Options that all encoders have; ``activation`` is the name of one. Raises UserError for an impossible value."""
    input_layer, function = options["input_layer"], options[activation]
    if input_layer not in INPUT_LAYERS:
        raise UserError(f"input_layer: {input_layer!r} is unknown; allowed: {', '.join(INPUT_LAYERS)}")
    if function not in ACTIVATIONS:
        raise UserError(f"{activation}: {function!r} is unknown; allowed: {', '.join(ACTIVATIONS)}")
    if options["input_channels"] is not None:
        check_positive(options, "input_channels")
    if options["rel_pos_type"] not in (LATEST, LEGACY):
        raise UserError(f"rel_pos_type: {options['rel_pos_type']!r} is unknown; allowed: {LATEST}, {LEGACY}")


def check_streaming(key: str, options: Mapping[str, Any]) -> None:
    """Raises UserError where an encoder with these options, which ``key`` asks to work in chunks, cannot."""
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
        allowed = ", ".join(name for name, layer in INPUT_LAYERS.items() if layer.windowed)
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
    for key, value in stock.items():
        if key in ignored:
            continue
        if key not in fixed:
            raise UserError(f"encoder_conf: unknown option {key!r} for {encoder}")
        if value != fixed[key]:
            raise UserError(f"{key}: {value!r} is not possible in a supernet; allowed: {fixed[key]!r}")


def parse_blocks(blocks: Sequence[Mapping[str, int]], shape: type[S]) -> list[S]:
    """The option ``blocks`` as shapes. Raises UserError where an entry has other keys than a shape has fields."""
    names = [field.name for field in fields(shape)]  # type: ignore[arg-type]
    for number, block in enumerate(blocks):
        if sorted(block) != sorted(names):
            raise UserError(f"blocks[{number}]: has the keys {', '.join(block)}; needed: {', '.join(names)}")
    return [shape(**block) for block in blocks]
