"""Base class and interface of all supernet encoders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Optional

import torch
from espnet2.asr.encoder.abs_encoder import AbsEncoder
from torch import Tensor, nn

from espnet_todm.components import FULL, Component, ComponentTable, Cost, Subnet
from espnet_todm.elastic.own import AFTER_NORM, OwnOfSizes, make_own, start_as
from espnet_todm.encoders.interctc import Between, Taken, Weight, kept_places, renumbered, soft_places
from espnet_todm.encoders.latency import LatencyTable, load_latency
from espnet_todm.encoders.options import SubnetOptions
from espnet_todm.encoders.passes import Drop, Gates, SubsampledFeatures, choices
from espnet_todm.errors import UserError
from espnet_todm.sizes import ShareShape, SizeSpec, resolve_sizes
from espnet_todm.util.acoustics import FRAMES_PER_SECOND
from espnet_todm.util.files import PathLike, read_json

# The cost of attention is quadratic in the length, so FLOPs per second depend on the length of the utterance.
REFERENCE_SECONDS = 10.0


class SupernetEncoder(AbsEncoder):
    """An encoder that can run as any of its subnets. Subclasses build ``embed``, ``encoders`` and, if any, ``after_norm``.

    ``forward`` runs ``self.subnet``, which the option ``subnet`` selects, so ESPnet's inference can decode with a subnet.

    Class attributes of a subclass: ``name``, its name in configs, and ``stock_name``, the name of ESPnet's encoder for
    :meth:`stock_conf`, None if ESPnet has no such encoder.
    """

    name: ClassVar[str]
    stock_name: ClassVar[Optional[str]] = None

    encoders: nn.ModuleList
    norm_between: ClassVar[bool] = True  # whether intermediate outputs pass through the output norm

    def __init__(self, input_size: int, output_size: int) -> None:
        super().__init__()
        self.input_size = input_size
        self._output_size = output_size
        self.size_specs: dict[str, SizeSpec] = {}
        self.sizes: dict[str, Subnet] = {}
        self.pending = ""  # why sizes cannot be used yet; empty once a trainer has chosen them
        self.subnet = Subnet(FULL, frozenset())
        self.criterion = "params"
        self.share_shape: ShareShape = "uniform"
        self.latency: Optional[LatencyTable] = None
        self.places: tuple[int, ...] = ()  # of intermediate CTC, see interctc
        self.interctc_use_conditioning = False
        self.conditioning_layer: Optional[nn.Linear] = None  # V -> D; ESPnet's model creates it for self-conditioning

        self.own = OwnOfSizes()

    def finish(self, options: SubnetOptions) -> None:
        """Resolve the named sizes and the subnet of ``forward``. To be called at the end of ``__init__``.

        Raises UserError for a criterion that is unknown or not measured, and as :meth:`measured_in`.
        """
        if options.latency_table is not None:
            self.measured_in(options.latency_table)
        self.component_table().check(options.criterion)
        self.criterion = options.criterion
        sizes = options.sizes or {}
        self.share_shape = options.share_shape
        self.sizes = resolve_sizes(sizes, self.component_table(), options.criterion, self.share_shape)
        self.size_specs = {str(name): spec for name, spec in sizes.items()}
        self.own = make_own(self, options, self.sizes)
        self.select(options.subnet or FULL)

    def espnet_initialization_fn(self) -> None:
        """ESPnet calls this after it has initialised all parameters."""
        for size in self.own:
            self.reset_own(size)

    def own_pairs(self, size: str) -> list[tuple[nn.Module, nn.Module]]:
        """Pairs of a shared norm and the one that a size owns."""
        return self.own.pairs(size, self.encoders, getattr(self, AFTER_NORM, None))

    def reset_own(self, size: str) -> None:
        """Set all that a size owns to its first values: norms as the shared ones, scales as in the option."""
        for shared, own in self.own_pairs(size):
            start_as(shared, own)
        self.own.reset_scales(size)

    def output_size(self) -> int:
        return self._output_size

    def measured_in(self, path: PathLike) -> None:
        """Use the latencies of this file in all costs. Raises UserError when it was measured on another encoder."""
        self.latency = None
        self.latency = load_latency(path, self, self.component_table())

    def select(self, name: str) -> Subnet:
        """Set the subnet of ``forward``, by a name or file as in :meth:`find_subnet`."""
        self.subnet = self.find_subnet(name)
        return self.subnet

    def find_subnet(self, name: str) -> Subnet:
        """A named size, or the subnet of a card file. Raises UserError when it is neither or does not fit this encoder."""
        if name in self.sizes:
            if self.pending and name != FULL:
                raise UserError(f"subnet: {name!r} is not there yet: {self.pending}")
            return self.sizes[name]
        if not Path(name).is_file():
            raise UserError(f"subnet: {name!r} is neither a size ({', '.join(self.sizes)}) nor the file of a card")
        card = read_json(name)
        if not isinstance(card, dict) or "kept" not in card:
            raise UserError(f"subnet: {name} is no card: it has no entry 'kept'")
        subnet = Subnet.from_json(str(card.get("name", name)), card["kept"])
        self.component_table().cost(subnet)
        if self.sizes.get(subnet.name, subnet) != subnet:
            raise UserError(f"subnet: {name} is named {subnet.name!r}, which is another size here; rename the card")
        return subnet

    def subsample(self, features: Tensor, lengths: Tensor, step: Optional[int] = None) -> SubsampledFeatures:
        """features (B, T, F) float, lengths (B,) -> subsampled features. ``step``: number of the training step, which seeds
        random draws; None outside of training. Raises ESPnet's TooShortUttError below one output frame."""
        raise NotImplementedError

    def output_norm(self, hidden: Tensor, size: str = FULL) -> Tensor:
        """The norm of a size after the last block, (B, T, D) -> (B, T, D)."""
        raise NotImplementedError

    def front_cost(self) -> Cost:
        """Cost of ``subsample`` and ``output_norm``."""
        raise NotImplementedError

    def subsampled(self, frames: int) -> int:
        """Number of output frames of ``subsample`` for a number of input frames."""
        raise NotImplementedError

    def shortest(self) -> int:
        """Input frames that ``subsample`` needs for one output frame."""
        raise NotImplementedError

    def extracted_conf(self, subnet: Subnet) -> dict[str, Any]:
        """``encoder_conf`` of the extracted model of this subnet."""
        raise NotImplementedError

    def stock_conf(self, subnet: Subnet) -> Optional[dict[str, Any]]:
        """``encoder_conf`` of ESPnet's encoder that computes the same as the subnet, or None if there is none."""
        return None

    def postpone_sizes(self, why: str) -> None:
        """Make all sizes but the full one unusable until :meth:`choose`. ``why``: reason for the error message."""
        self.pending = why

    def choose(self, sizes: Mapping[str, Subnet]) -> None:
        """Define named sizes as these subnets. Sizes that are not given stay as they are."""
        self.pending = ""
        self.sizes.update(sizes)
        self.subnet = self.sizes.get(self.subnet.name, self.subnet)

    def reorder(self, orders: Mapping[tuple[int, str], tuple[int, ...]], states: Mapping[Tensor, Any]) -> None:
        """Reorder the components of modules, see :meth:`ElasticModule.reorder`. The full encoder's output is unchanged."""
        for layer, block in enumerate(self.encoders):
            for name, _, module in block.elastic_modules():  # type: ignore[operator]
                if (layer, name) in orders:
                    module.reorder(orders[layer, name], states)
                    self.own.reorder(layer, name, module, orders[layer, name], states)

    def blocks(
        self,
        subsampled: SubsampledFeatures,
        subnet: Optional[Subnet] = None,
        gates: Optional[Gates] = None,
        drop: Optional[Drop] = None,
        exits: Sequence[int] = (),
        between: Optional[Between] = None,
    ) -> Tensor:
        """Run all blocks on slices (``subnet``, default ``self.subnet``) or with ``gates``: (B, T, D) -> (B, T, D).

        ``drop``: stochastic depth of modules. ``exits``: numbers of blocks after which to return an output. These outputs
        are stacked, each after the output norm: (exits, B, T, D). ``between``: collects the intermediate outputs for CTC;
        required with self-conditioning.
        """
        hidden, outputs, chosen = subsampled.hidden, [], subnet or self.subnet
        places = self._places(chosen, gates)
        depth, dropout = subsampled.depth, subsampled.dropout
        running = choices(chosen, self.own, len(self.encoders), gates, drop, depth, dropout)
        for layer, (block, choice) in enumerate(zip(self.encoders, running)):
            if choice is not None:
                hidden = block(hidden, subsampled.positions, subsampled.mask, choice, subsampled.visible)
            if layer + 1 in exits:
                outputs.append(self.output_norm(hidden, chosen.name))
            if layer + 1 in places:
                hidden = self._take(hidden, layer + 1, places[layer + 1], between, chosen.name)
        return torch.stack(outputs) if exits else self.output_norm(hidden, chosen.name)

    def _places(self, subnet: Subnet, gates: Optional[Gates]) -> Mapping[int, Weight]:
        """Places of this pass's intermediate outputs, and their weights."""
        if not self.places or gates is not None:
            return soft_places(self.places, gates or {})
        return dict.fromkeys(kept_places(self.places, subnet.layers.keys()), 1.0)

    def _take(self, hidden: Tensor, place: int, weight: Weight, between: Optional[Between], size: str) -> Tensor:
        """Append the output (B, T, D) at a place to ``between``, and add the self-conditioning term, if any."""
        if between is None and self.conditioning_layer is None:
            return hidden
        between = between or Between()
        output = self.output_norm(hidden, size) if self.norm_between else hidden
        between.taken.append(Taken(place, output, weight))
        if self.conditioning_layer is None:
            return hidden
        fed = between.fed_back(output, self.conditioning_layer)
        return hidden + (fed if isinstance(weight, float) else weight * fed)

    def forward(
        self, xs_pad: Tensor, ilens: Tensor, prev_states: Optional[Tensor] = None, ctc: Optional[Any] = None
    ) -> tuple[Any, Tensor, Optional[Tensor]]:
        """Run ``self.subnet``: xs_pad (B, T, F), ilens (B,) -> output (B, T', D), lengths (B,), None.

        With intermediate CTC, the output becomes a pair, as in ESPnet: the output, and a list of (number of blocks before
        the intermediate output, intermediate output). ``ctc``: ESPnet's module, for self-conditioning.
        """
        subsampled, between = self.subsample(xs_pad, ilens), Between(ctc.softmax if ctc is not None else None)
        output = self.blocks(subsampled, between=between)
        layers = self.subnet.layers.keys()
        taken = [(renumbered(place, layers), intermediate) for place, intermediate, _ in between.taken]
        return (output, taken) if taken else output, subsampled.lengths, None

    def component_table(self) -> ComponentTable:
        """Components and costs of the encoder only: FLOPs for utterances of REFERENCE_SECONDS, latencies if measured."""
        frames = self.subsampled(int(REFERENCE_SECONDS * FRAMES_PER_SECOND))
        components: list[Component] = []
        modules: dict[tuple[int, str], Cost] = {}
        layers: dict[int, Cost] = {}
        for layer, block in enumerate(self.encoders):
            components += block.components(layer, frames, 1 / REFERENCE_SECONDS)  # type: ignore[operator]
            costs = block.module_costs(frames, 1 / REFERENCE_SECONDS)  # type: ignore[operator]
            modules.update({(layer, module): cost for module, cost in costs.items()})
            layers[layer] = block.layer_cost()  # type: ignore[operator]
        table = ComponentTable(tuple(components), modules, layers, self.front_cost())
        return self.latency.apply(table) if self.latency is not None else table

    def extracted_state(self, subnet: Subnet) -> dict[str, Tensor]:
        """State dict of the small model: kept blocks, renumbered, with the weights of kept components."""
        outside = (item for item in self.state_dict().items() if not item[0].startswith(("encoders.", "own.")))
        state = {name: value.detach().clone() for name, value in outside}
        state.update(self.own.outer_state(subnet.name))
        for new, (layer, modules) in enumerate(sorted(subnet.layers.items())):
            block = self.encoders[layer]
            small = block.extracted_state(modules, subnet.name)  # type: ignore[operator]
            small = self.own.fold(subnet.name, layer, block, small, modules)
            state.update({f"encoders.{new}.{name}": value for name, value in small.items()})
        return state

    def condition_like(self, state: Mapping[str, Tensor]) -> None:
        """Create the self-conditioning layer if the state dict has one."""
        weight = state.get("conditioning_layer.weight")
        if weight is not None:
            self.conditioning_layer = nn.Linear(weight.size(1), weight.size(0))

    def extract(self, subnet: Subnet) -> SupernetEncoder:
        """A small encoder that computes the same as this one with ``subnet``, with the same dtypes and device."""
        small = type(self)(**self.extracted_conf(subnet))
        state = self.extracted_state(subnet)
        small.condition_like(state)
        for name, tensor in (*small.named_parameters(), *small.named_buffers()):
            tensor.data = tensor.data.to(state.get(name, tensor))
        small.load_state_dict(state)
        return small.train(self.training)
