"""Options of ``encoder_conf``: each encoder has a frozen dataclass, whose fields are the options.

The annotation of a field gives the allowed type, and its default is what ``--print_config`` shows. ``checks`` has all other
conditions. Options of several encoders are here. Options of one encoder are in that encoder's module.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from functools import partial
from typing import Any, Callable, ClassVar, Optional, TypeVar

from torch import nn

from espnet_todm.elastic.attention import ElasticAttention
from espnet_todm.elastic.block import Activation
from espnet_todm.elastic.convolution import Norm
from espnet_todm.elastic.feed_forward import ElasticFeedForward
from espnet_todm.encoders.chunks import check_streaming, parse_chunk, parse_chunk_options
from espnet_todm.encoders.frontends import INPUT_LAYERS, input_names
from espnet_todm.encoders.positions import PositionOptions, Relative, position_encoding, relative_kind
from espnet_todm.errors import UserError
from espnet_todm.sizes import ShareShape, SizeSpec
from espnet_todm.util.checks import check_type, refusal

Options = TypeVar("Options", bound="EncoderOptions")
Shape = TypeVar("Shape")
Checks = list[Callable[[], Any]]

CUTS = {"cuts": True}  # metadata of options for numbers of components; small models have these in ``blocks``


@dataclass(frozen=True)
class SubnetOptions:
    """Options that define the subnets of a supernet. Extracted models do not have them."""

    sizes: Optional[Mapping[str, SizeSpec]] = None  # named sizes, see espnet_todm.sizes.resolve_sizes
    criterion: str = "params"  # the cost of which a size is a share: params, flops or latency
    share_shape: ShareShape = "uniform"  # what a plain share cuts first, see espnet_todm.sizes.share_order
    own_affine: bool = False  # each named size owns weight and bias of all norms, see espnet_todm.elastic.own
    own_branch_scale: Optional[float] = None  # each named size owns a scale on each residual branch; its first value
    latency_table: Optional[str] = None  # file of measured latencies
    subnet: Optional[str] = None  # subnet of ``forward``: name of a size or card file; default: full


SUPERNET_OPTIONS = tuple(option.name for option in fields(SubnetOptions))


@dataclass(frozen=True)
class EncoderOptions(SubnetOptions, PositionOptions):
    """Options of every encoder.

    Class attributes:
        inputs: allowed input layers.
        fixed, ignored: options of ESPnet's encoder with only one allowed value here, and options without effect here.
    """

    output_size: int = 256
    attention_heads: int = 4
    num_blocks: int = 12
    dropout_rate: float = 0.1
    positional_dropout_rate: float = 0.1
    attention_dropout_rate: float = 0.0
    input_layer: Optional[str] = "conv2d"
    # Channels of the input layer's convolutions, default output_size as in ESPnet. All subnets run them, at a high frame
    # rate: 48 instead of 144 channels make a training step of a 6-block Conformer 1.8 times as fast.
    input_channels: Optional[int] = None
    head_dim: Optional[int] = None  # width of an attention head, default output_size / attention_heads
    adaptive_dropout: bool = True  # dropout rates inside modules shrink with their kept width
    blocks: Optional[Sequence[Mapping[str, int]]] = None  # widths of each block, in extracted models

    inputs: ClassVar[Sequence[Optional[str]]] = tuple(INPUT_LAYERS)
    fixed: ClassVar[Mapping[str, Any]] = {}
    ignored: ClassVar[Sequence[str]] = ()

    @classmethod
    def parse(cls: type[Options], encoder: str, given: Mapping[str, Any]) -> Options:
        """Parse the ``encoder_conf`` of the encoder with this name.

        Raises one UserError for all faults: unknown options, values of a wrong type, and failed ``checks``.
        """
        kinds, names = typing.get_type_hints(cls), [option.name for option in fields(cls)]
        own = {key: value for key, value in given.items() if key in names}
        wrong = {key: refusal(partial(check_type, f"encoder_conf.{key}", own[key], kinds[key])) for key in own}
        # Defaults replace wrong values, so that the error message also names all other faults.
        options = cls(**{key: value for key, value in own.items() if not wrong[key]})
        told = [*cls._foreign(encoder, given), *(line for lines in wrong.values() for line in lines)]
        told += [line for check in options.checks() for line in refusal(check)]
        if told:
            raise UserError("; ".join(told))
        return options

    @classmethod
    def _foreign(cls, encoder: str, given: Mapping[str, Any]) -> Iterator[str]:
        """Faults of options that are not fields. ESPnet's ``fixed`` options are allowed with their one value."""
        names, unclear = [option.name for option in fields(cls)], False
        for key, value in given.items():
            if key in cls.fixed and value != cls.fixed[key]:
                yield f"{key}: {value!r} is not possible in a supernet; allowed: {cls.fixed[key]!r}"
            elif key not in (*names, *cls.fixed, *cls.ignored):
                near = get_close_matches(key, names, 1, cutoff=0.75)
                unclear = unclear or not near
                hint = f" (did you mean {near[0]!r}?)" if near else ""
                yield f"encoder_conf: unknown option {key!r} for {encoder}{hint}"
        if unclear:
            yield f"allowed: {', '.join(names)}"

    def checks(self) -> Checks:
        """Functions that raise UserError for invalid values or combinations of values. Subclasses add theirs."""
        return [
            lambda: check_positive(self, "output_size"),
            self._check_input,
            lambda: position_encoding(self),
        ]

    def _check_input(self) -> None:
        name = self.input_layer
        if name not in self.inputs:
            what = "takes token ids, not speech" if name == "embed" else "is unknown"
            raise UserError(f"input_layer: {name!r} {what}; allowed: {input_names(self.inputs)}")
        if self.input_channels is not None:
            check_positive(self, "input_channels")

    def shape(self) -> Any:
        """Widths of a block without the option ``blocks``, as a dataclass of integers."""
        raise NotImplementedError

    def shapes(self) -> list[Any]:
        """Widths of all blocks. Raises UserError when the keys of an entry of ``blocks`` are not the fields of a shape."""
        uniform = self.shape()
        return [uniform] * self.num_blocks if self.blocks is None else parse_blocks(self.blocks, type(uniform))

    def head_width(self, width: str = "head_dim", heads: str = "attention_heads") -> int:
        """Option ``width``, or output_size divided by the number of heads. Raises UserError when that is not an integer."""
        given, count = getattr(self, width), getattr(self, heads)
        if given is not None:
            check_positive(self, width)
            return int(given)
        if self.output_size % count:
            raise UserError(f"{heads}: {count} does not divide output_size: {self.output_size}")
        return int(self.output_size // count)

    def self_attention(self, heads: int) -> ElasticAttention:
        """The attention module of a block, with this number of heads."""
        width, rate = self.head_width(), self.attention_dropout_rate
        return ElasticAttention(self.output_size, heads, width, rate, relative_kind(self))


@dataclass(frozen=True)
class FeedForwardOptions(EncoderOptions):
    """Options of encoders with feed-forward modules."""

    linear_units: int = 2048
    ffn_chunks: int = field(default=4, metadata=CUTS)  # components of a feed-forward module

    def feed_forward(self, units: int, chunks: int, activation: nn.Module) -> ElasticFeedForward:
        """A feed-forward module with ``units`` hidden dimensions. The dropout rate holds for ``linear_units`` of them."""
        rest = self.dropout_rate, activation, self.adaptive_dropout, self.linear_units
        return ElasticFeedForward(self.output_size, units, chunks, *rest)


@dataclass(frozen=True)
class InterCtcOptions(FeedForwardOptions):
    """Options of encoders with layer drop and intermediate CTC, as in ESPnet."""

    layer_drop_rate: float = 0.0
    interctc_layer_idx: Optional[Sequence[int]] = None
    interctc_use_conditioning: bool = False


@dataclass(frozen=True)
class ConvolutionOptions(FeedForwardOptions):
    """Options of encoders with Conformer-like blocks: macaron feed-forward module, attention and convolution module."""

    macaron_style: bool = False
    macaron_ffn_chunks: Optional[int] = field(default=None, metadata=CUTS)  # default: as ffn_chunks
    selfattention_layer_type: str = "rel_selfattn"
    rel_pos_type: Relative = "latest"
    activation_type: Activation = "swish"
    use_cnn_module: bool = True
    cnn_module_kernel: int = 31
    conv_groups: int = field(default=1, metadata=CUTS)  # components of a convolution module; 1: the whole module
    conv_norm: Norm = "batch_norm"  # as in ESPnet; layer_norm is recommended: it needs no statistics per subnet

    attention: ClassVar[Optional[str]] = "selfattention_layer_type"

    @property
    def size_names(self) -> tuple[str, ...]:
        """Names of the sizes, which have their own batch norm statistics."""
        return tuple(map(str, self.sizes)) if isinstance(self.sizes, Mapping) else ()

    def shape_of_modules(self) -> dict[str, int]:
        """The fields of a block's shape for the modules that these options define."""
        units, chunks = self.linear_units, self.ffn_chunks
        return {
            "macaron_ffn": units if self.macaron_style else 0,
            "macaron_chunks": (self.macaron_ffn_chunks or chunks) if self.macaron_style else 0,
            "heads": self.attention_heads,
            "conv": self.output_size if self.use_cnn_module else 0,
            "conv_groups": self.conv_groups if self.use_cnn_module else 0,
            "ffn": units,
            "ffn_chunks": chunks,
        }


@dataclass(frozen=True)
class StreamingOptions(ConvolutionOptions):
    """Options of encoders that can run in chunks."""

    causal: bool = False  # the convolution sees no frame to the right; needed for streaming
    chunk: Optional[Mapping[str, Any]] = None  # distribution of chunks in training, see ChunkOptions
    # [frames of a chunk, frames of left context] in validation and in extracted models; default full context.
    decode_chunk: Optional[Sequence[int]] = None

    def checks(self) -> Checks:
        asked = [key for key in ("chunk", "decode_chunk") if getattr(self, key) is not None]
        return [
            *super().checks(),
            lambda: parse_chunk_options(self.chunk),
            lambda: parse_chunk(self.decode_chunk),
            *(partial(check_streaming, key, self) for key in asked),
        ]


def signature(options: type[EncoderOptions]) -> inspect.Signature:
    """Signature of an encoder with these options. ESPnet reads defaults from it; the encoder refuses unknown options."""
    kinds, Parameter = typing.get_type_hints(options), inspect.Parameter
    own = [
        Parameter(option.name, Parameter.KEYWORD_ONLY, default=option.default, annotation=kinds[option.name])
        for option in fields(options)
    ]
    size = Parameter("input_size", Parameter.POSITIONAL_OR_KEYWORD, annotation=int)
    return inspect.Signature([size, *own, Parameter("stock", Parameter.VAR_KEYWORD)])


def check_positive(options: Any, *names: str) -> None:
    """Raises UserError when one of these options is not above 0."""
    for name in names:
        if getattr(options, name) < 1:
            raise UserError(f"{name}: {getattr(options, name)!r} must be a whole number above 0")


def parse_blocks(blocks: Any, shape: type[Shape]) -> list[Shape]:
    """Parse the option ``blocks``. Raises UserError when the keys of an entry are not the fields of a shape."""
    names = [option.name for option in fields(shape)]  # type: ignore[arg-type]
    if not isinstance(blocks, Iterable):
        raise UserError(f"blocks: {blocks!r} must be a list of mappings with the keys {', '.join(names)}")
    for number, block in enumerate(blocks):
        if not isinstance(block, Mapping) or sorted(block) != sorted(names):
            keys = ", ".join(map(str, block)) if isinstance(block, Mapping) else repr(block)
            raise UserError(f"blocks[{number}]: has the keys {keys}; needed: {', '.join(names)}")
    return [shape(**block) for block in blocks]
