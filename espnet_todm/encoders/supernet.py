"""What every supernet encoder is to the rest of the package, whatever its blocks are made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Callable, ClassVar, Optional, TypeVar

import torch
from espnet2.asr.encoder.abs_encoder import AbsEncoder
from torch import Tensor, nn

from espnet_todm.components import FULL, Component, ComponentTable, Cost, Subnet
from espnet_todm.elastic.block import LayerChoice
from espnet_todm.elastic.convolution import ElasticConvolution
from espnet_todm.encoders.depth import WHOLE, Depth
from espnet_todm.encoders.interctc import Between, Taken, Weight, kept_places, renumbered, soft_places
from espnet_todm.encoders.latency import LatencyTable, load_latency
from espnet_todm.encoders.options import SubnetOptions
from espnet_todm.errors import UserError
from espnet_todm.sizes import SizeSpec, resolve_sizes
from espnet_todm.util.acoustics import FRAMES_PER_SECOND
from espnet_todm.util.files import PathLike, read_json

# Attention costs grow with the square of the length, so FLOPs per second need a length to be measured at.
REFERENCE_SECONDS = 10.0

Gates = Mapping[tuple[int, str], Tensor]  # (layer, module) -> weights (components,)
Drop = Mapping[tuple[int, str], float]  # (layer, module) -> probability of leaving it out
T = TypeVar("T")


@dataclass(frozen=True)
class SubsampledFeatures:
    """What all subnets of a step share: the subsampled input."""

    hidden: Tensor  # (B, T, D)
    positions: Optional[Tensor]  # (1, 2T-1, D), or None; legacy ones (1, T, D)
    lengths: Tensor  # (B,) int64, frames after subsampling
    mask: Tensor  # (B, 1, T) bool, true at valid frames
    visible: Optional[Tensor] = None  # (B, T, T) bool, what attention sees in chunks of speech; None: all valid frames
    depth: Depth = WHOLE  # layers that this step goes without

    def with_hidden(self, hidden: Tensor) -> SubsampledFeatures:
        return replace(self, hidden=hidden)


class SupernetEncoder(AbsEncoder):
    """An encoder whose blocks run as any subnet. Subclasses build ``embed``, ``encoders`` and, if any, ``after_norm``.

    ``forward`` runs ``self.subnet``, which the option ``subnet`` picks: stock inference decodes one subnet that way.

    Class attributes of a subclass: ``name``, which a config calls it by, and ``stock_name``, that of ESPnet's own encoder
    which :meth:`stock_conf` is for, None where ESPnet has none.
    """

    name: ClassVar[str]
    stock_name: ClassVar[Optional[str]] = None

    encoders: nn.ModuleList
    norm_between: ClassVar[bool] = True  # whether what is taken between blocks goes through the last norm

    def __init__(self, input_size: int, output_size: int) -> None:
        super().__init__()
        self.input_size = input_size
        self._output_size = output_size
        self.size_specs: dict[str, SizeSpec] = {}
        self.sizes: dict[str, Subnet] = {}
        self.pending = ""  # why the sizes are no models yet, while a trainer has still to choose them
        self.subnet = Subnet(FULL, frozenset())
        self.criterion = "params"
        self.latency: Optional[LatencyTable] = None
        self.places: tuple[int, ...] = ()  # between blocks, of intermediate CTC
        self.interctc_use_conditioning = False
        self.conditioning_layer: Optional[nn.Linear] = None  # (V, D); ESPnet's model makes it where it is used

    def finish(self, options: SubnetOptions) -> None:
        """Call at the end of ``__init__``: resolves the named sizes and the subnet that ``forward`` runs.

        Raises UserError for a criterion that is unknown or has no measurements, and as :meth:`measured_in`.
        """
        if options.latency_table is not None:
            self.measured_in(options.latency_table)
        self.component_table().check(options.criterion)
        self.criterion = options.criterion
        sizes = options.sizes or {}
        self.sizes = resolve_sizes(sizes, self.component_table(), options.criterion)
        self.size_specs = {str(name): spec for name, spec in sizes.items()}
        self.select(options.subnet or FULL)

    def output_size(self) -> int:
        return self._output_size

    def measured_in(self, path: PathLike) -> None:
        """Costs have the latencies of this file from now on. Raises UserError when it is of another encoder."""
        self.latency = None
        self.latency = load_latency(path, self, self.component_table())

    def select(self, name: str) -> Subnet:
        """``forward`` runs this subnet from now on: a name as :meth:`find_subnet` takes it."""
        self.subnet = self.find_subnet(name)
        return self.subnet

    def find_subnet(self, name: str) -> Subnet:
        """A named size, or the subnet of a card file. Raises UserError when it is neither or does not fit."""
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
        """features (B, T, F) float, lengths (B,) -> subsampled features. ``step`` is that of training, for what is drawn
        by it; None outside of training. Raises ESPnet's TooShortUttError below one frame."""
        raise NotImplementedError

    def output_norm(self, hidden: Tensor) -> Tensor:
        """After the last block, (B, T, D) -> (B, T, D)."""
        raise NotImplementedError

    def front_cost(self) -> Cost:
        """Cost of ``subsample`` and ``output_norm``."""
        raise NotImplementedError

    def subsampled(self, frames: int) -> int:
        """Frames that ``subsample`` makes of so many input frames."""
        raise NotImplementedError

    def shortest(self) -> int:
        """Input frames that ``subsample`` needs to make one."""
        raise NotImplementedError

    def extracted_conf(self, subnet: Subnet) -> dict[str, Any]:
        """``encoder_conf`` of the small model that the subnet is."""
        raise NotImplementedError

    def stock_conf(self, subnet: Subnet) -> Optional[dict[str, Any]]:
        """``encoder_conf`` of ESPnet's own encoder of the same function, or None when it has no such form."""
        return None

    def postpone_sizes(self, why: str) -> None:
        """Named sizes other than the full one are no models until :meth:`choose`; who asks for one is told why."""
        self.pending = why

    def choose(self, sizes: Mapping[str, Subnet]) -> None:
        """Named sizes mean these sets from now on; those that are not given stay."""
        self.pending = ""
        self.sizes.update(sizes)
        self.subnet = self.sizes.get(self.subnet.name, self.subnet)

    def reorder(self, orders: Mapping[tuple[int, str], tuple[int, ...]], states: Mapping[Tensor, Any]) -> None:
        """Give the components of modules another order, see :meth:`ElasticModule.reorder`; the function stays."""
        for layer, block in enumerate(self.encoders):
            for name, _, module in block.elastic_modules():  # type: ignore[operator]
                if (layer, name) in orders:
                    module.reorder(orders[layer, name], states)

    def blocks(
        self,
        subsampled: SubsampledFeatures,
        subnet: Optional[Subnet] = None,
        gates: Optional[Gates] = None,
        drop: Optional[Drop] = None,
        exits: Sequence[int] = (),
        between: Optional[Between] = None,
    ) -> Tensor:
        """All blocks on slices (``subnet``, default ``self.subnet``), or on soft ``gates``: (B, T, D) -> (B, T, D).

        ``drop`` has the stochastic depth of modules. With ``exits``, numbers of blocks after which an output is wanted, the
        outputs are stacked, each finalised by itself: (exits, B, T, D). ``between`` gets what intermediate CTC takes, and
        is needed where posteriors are fed back.
        """
        hidden, outputs = subsampled.hidden, []
        chosen = subnet or self.subnet
        places = self._places(chosen, gates)
        for layer, block in enumerate(self.encoders):
            dropped, scale = _of_layer(layer, drop or {}), subsampled.depth.scales.get(layer, 1.0)
            if gates is not None:
                choice = LayerChoice(gates=_of_layer(layer, gates), drop=dropped, size="", scale=scale)
            else:
                choice = LayerChoice(kept=chosen.layers.get(layer, {}), drop=dropped, size=chosen.name, scale=scale)
            if layer not in subsampled.depth.without:
                hidden = block(hidden, subsampled.positions, subsampled.mask, choice, subsampled.visible)
            if layer + 1 in exits:
                outputs.append(self.output_norm(hidden))
            if layer + 1 in places:
                hidden = self._take(hidden, layer + 1, places[layer + 1], between)
        return torch.stack(outputs) if exits else self.output_norm(hidden)

    def _places(self, subnet: Subnet, gates: Optional[Gates]) -> Mapping[int, Weight]:
        """Where this pass takes intermediate outputs, and how much there is of them."""
        if not self.places or gates is not None:
            return soft_places(self.places, gates or {})
        return dict.fromkeys(kept_places(self.places, subnet.layers.keys()), 1.0)

    def _take(self, hidden: Tensor, place: int, weight: Weight, between: Optional[Between]) -> Tensor:
        """Hand the blocks' output (B, T, D) at a place to ``between``, and add what is fed back."""
        if between is None and self.conditioning_layer is None:
            return hidden
        between = between or Between()
        output = self.output_norm(hidden) if self.norm_between else hidden
        between.taken.append(Taken(place, output, weight))
        if self.conditioning_layer is None:
            return hidden
        fed = between.fed_back(output, self.conditioning_layer)
        return hidden + (fed if isinstance(weight, float) else weight * fed)

    def forward(
        self, xs_pad: Tensor, ilens: Tensor, prev_states: Optional[Tensor] = None, ctc: Optional[Any] = None
    ) -> tuple[Any, Tensor, Optional[Tensor]]:
        """xs_pad (B, T, F), ilens (B,) -> output (B, T', D), lengths (B,), None, of ``self.subnet``.

        With intermediate CTC, as ESPnet's encoders do, a pair in place of the output: it and a list of pairs, how many
        blocks lie before an intermediate output, and that. ``ctc``: ESPnet's module, where posteriors are fed back.
        """
        subsampled, between = self.subsample(xs_pad, ilens), Between(ctc.softmax if ctc is not None else None)
        output = self.blocks(subsampled, between=between)
        layers = self.subnet.layers.keys()
        taken = [(renumbered(place, layers), intermediate) for place, intermediate, _ in between.taken]
        return (output, taken) if taken else output, subsampled.lengths, None

    def component_table(self) -> ComponentTable:
        """Components and costs of this encoder alone, FLOPs on utterances of REFERENCE_SECONDS, latencies as measured."""
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
        """State dict of the small model: kept blocks renumbered, kept components cut out."""
        state = {k: v.detach().clone() for k, v in self.state_dict().items() if not k.startswith("encoders.")}
        for new, (layer, modules) in enumerate(sorted(subnet.layers.items())):
            for name, value in self.encoders[layer].extracted_state(modules, subnet.name).items():  # type: ignore[operator]
                state[f"encoders.{new}.{name}"] = value
        return state

    def condition_like(self, state: Mapping[str, Tensor]) -> None:
        """Make the layer that feeds posteriors back, if the state dict has one."""
        weight = state.get("conditioning_layer.weight")
        if weight is not None:
            self.conditioning_layer = nn.Linear(weight.size(1), weight.size(0))

    def extract(self, subnet: Subnet) -> SupernetEncoder:
        """The small encoder that computes what this one computes with ``subnet``, in its types and on its device."""
        small = type(self)(**self.extracted_conf(subnet))
        state = self.extracted_state(subnet)
        small.condition_like(state)
        for name, tensor in (*small.named_parameters(), *small.named_buffers()):
            tensor.data = tensor.data.to(state.get(name, tensor))
        small.load_state_dict(state)
        return small.train(self.training)

    def needs_calibration(self, subnet: Subnet) -> bool:
        """Whether its batch norms have no statistics of this subnet: named sizes gathered their own during training."""
        return bool(self._batch_norms()) and self.sizes.get(subnet.name) != subnet

    @torch.no_grad()
    def calibrate(self, utterances: Iterable[SubsampledFeatures], between: Callable[[], Between] = Between) -> None:
        """Estimate the statistics of all batch norms anew, as the mean over utterances. ``between`` makes what a pass needs
        that feeds posteriors back. The encoder is in evaluation mode afterwards."""
        for count, utterance in enumerate(utterances, 1):
            for module in self._batch_norms():
                module.average_over(count)
            self.blocks(utterance, between=between())
        self.eval()

    def _batch_norms(self) -> list[ElasticConvolution]:
        modules = (module for module in self.modules() if isinstance(module, ElasticConvolution))
        return [module for module in modules if isinstance(module.norm, nn.BatchNorm1d)]


def _of_layer(layer: int, values: Mapping[tuple[int, str], T]) -> dict[str, T]:
    """Values of one layer's modules, by module."""
    return {module: value for (la, module), value in values.items() if la == layer}


def length_mask(lengths: Tensor, frames: int) -> Tensor:
    """lengths (B,) -> (B, 1, frames) bool, true at valid frames."""
    return (torch.arange(frames, device=lengths.device) < lengths.unsqueeze(1)).unsqueeze(1)
