"""``model: todm``: ESPnet's ASR model with a supernet encoder. Training and validation run subnets. Inference is stock."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Optional, cast

import torch
from espnet2.asr.decoder.transducer_decoder import TransducerDecoder
from espnet2.asr.espnet_model import ESPnetASRModel
from espnet2.asr_transducer.joint_network import JointNetwork
from espnet2.torch_utils.device_funcs import force_gatherable
from torch import Tensor, nn

from espnet_todm.components import FULL, ComponentTable, Subnet
from espnet_todm.decoders.stateless import StatelessDecoder
from espnet_todm.encoders.interctc import Between, Taken
from espnet_todm.encoders.passes import Drop, Gates, SubsampledFeatures
from espnet_todm.encoders.supernet import SupernetEncoder
from espnet_todm.errors import UserError
from espnet_todm.losses.alpha_divergence import Divergence
from espnet_todm.models.autocast import Autocast
from espnet_todm.models.batch import Batch, Features, Posteriors, StepContext, SubnetOutput, shortened
from espnet_todm.models.compiled import CompiledBlocks
from espnet_todm.models.interctc import between
from espnet_todm.models.odd_utterances import ErrorRates, lengthen
from espnet_todm.models.options import check_options, check_outputs
from espnet_todm.models.outside import component_table, outer_state
from espnet_todm.models.reports import evaluate
from espnet_todm.models.subnet_trainer import SubnetTrainer
from espnet_todm.models.tasks import distillation, run_task
from espnet_todm.models.transducer import SimpleJoint, TransducerOptions, TransducerTask, at_least_one
from espnet_todm.models.views import Augment
from espnet_todm.models.weight_average import WeightAverage
from espnet_todm.util.checks import build
from espnet_todm.util.host import on_both, read, values


class TodmModel(ESPnetASRModel):
    """CTC, hybrid CTC/attention, or transducer model (also with CTC if ctc_weight > 0) whose encoder is a supernet.

    All sizes share the predictor of a transducer.

    Args:
        output_layers: "shared", or "per_size": each named size has its own CTC output layer and joiner.
        transducer_conf: options of :class:`espnet_todm.models.transducer.TransducerOptions`.
        distil_attention: also distil the max subnet's attention decoder. Default: only if the model has no CTC.
        autocast: "bfloat16" runs training and validation in mixed precision, see :mod:`espnet_todm.models.autocast`.
            Leave it out if use_amp is on.
        error_rates_every: validation computes error rates of the first of so many batches; 1: of all.
        compile: compile the blocks of each named size, see :mod:`espnet_todm.models.compiled`.
        average_weights: share of the updates over whose weights the models of epochs are averaged, in (0, 1], see
            :class:`espnet_todm.models.weight_average.WeightAverage`; None: they have those of the last update.
        **espnet: arguments of ESPnet's model.

    Raises:
        UserError: the encoder is no supernet, or the configuration has a part that a supernet does not allow.
    """

    encoder: SupernetEncoder
    # ESPnet has no types for these: CTC or None, a decoder or None, a transducer's joiner.
    ctc: Any
    decoder: Any
    joint_network: Any
    error_calculator: Any

    def __init__(
        self,
        autocast: Optional[str] = None,
        output_layers: str = "shared",
        transducer_conf: Optional[Mapping[str, Any]] = None,
        distil_attention: Optional[bool] = None,
        error_rates_every: int = 1,
        compile: bool = False,
        average_weights: Optional[float] = None,
        **espnet: Any,
    ) -> None:
        check_options(autocast, output_layers, distil_attention, error_rates_every, compile, average_weights, espnet)
        decoder, joint = espnet["decoder"], espnet.pop("joint_network", None)
        transducer = isinstance(decoder, (TransducerDecoder, StatelessDecoder))
        if transducer:  # without its joiner: with it, ESPnet needs a loss package that is on no package index
            super().__init__(**{**espnet, "joint_network": None, "ctc_weight": 0.5})  # ESPnet keeps decoder and CTC
            self.ctc_weight = espnet.get("ctc_weight", 0.5)
            self.ctc = self.ctc if self.ctc_weight else None
        else:
            super().__init__(**espnet, joint_network=None)
        check_outputs(self, transducer, output_layers, transducer_conf, distil_attention)
        self.distils_attention = self.decoder is not None and not transducer and (distil_attention or self.ctc is None)
        if self.error_calculator is not None:
            self.error_calculator = ErrorRates(self.error_calculator)
        self.transducer_options = build(TransducerOptions, transducer_conf or {}, "transducer_conf")
        own = [name for name in self.encoder.sizes if name != FULL] if output_layers == "per_size" else []
        self.own_joints = own if transducer else []
        self.size_outputs = nn.ModuleDict({name: copy.deepcopy(self.ctc.ctc_lo) for name in own if self.ctc})
        self.size_joints = nn.ModuleDict()
        self.simple_joint: Optional[SimpleJoint] = None
        if transducer:
            self.use_transducer_decoder = True
            self.join(self.make_joint({}) if joint is None else joint)
        self.autocast = Autocast(autocast, lstm=any(isinstance(module, nn.LSTM) for module in self.modules()))
        self.error_rates_every = error_rates_every
        self.compiled = CompiledBlocks() if compile else None
        self.weight_average = None if average_weights is None else WeightAverage(average_weights)
        self.subnet_trainer: Optional[SubnetTrainer] = None
        self.register_load_state_dict_post_hook(_after_loading)

    def make_joint(self, conf: Mapping[str, Any]) -> nn.Module:
        """Build ESPnet's joiner with the options ``conf``. Raises UserError for an unknown option."""
        try:
            return JointNetwork(self.vocab_size, self.output_size, self.decoder.dunits, **conf)
        except TypeError as error:
            raise UserError(f"joint_net_conf: {dict(conf)!r}: ESPnet's joiner cannot have that ({error})") from None

    @property
    def output_size(self) -> int:
        """Input dimension D of the output layers and decoders."""
        return int((self.postencoder or self.encoder).output_size())

    def join(self, joint: nn.Module) -> None:
        """Set the joiner, and build the modules that depend on it. Raises UserError if its input size does not match."""
        if joint.lin_enc.in_features != self.output_size:  # type: ignore[union-attr]  # ESPnet forgets the post-encoder
            raise UserError(
                f"postencoder: makes {self.output_size} channels of {self.encoder.output_size()}, which ESPnet's joiner does"
                " not take; leave out its input_layer, or take decoder: todm_stateless"
            )
        self.joint_network = joint
        self.size_joints = nn.ModuleDict({name: copy.deepcopy(joint) for name in self.own_joints})
        if self.transducer_options.prune_range:
            self.simple_joint = SimpleJoint(self.output_size, self.decoder.dunits, self.vocab_size)

    def forward(
        self, speech: Tensor, speech_lengths: Tensor, text: Tensor, text_lengths: Tensor, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """speech (B, T, F) or (B, samples), text (B, U), lengths (B,) -> loss, statistics and weight, as in ESPnet.

        ``kwargs`` may have ``step``, ``loss_scale`` and ``error_rates``, see :class:`StepContext`. They are not named in
        the signature: ESPnet passes all named arguments to TensorBoard's graph, which takes only tensors.
        """
        step: Any = kwargs.get("step", 0 if self.training else None)
        context = self.context(step, kwargs.get("loss_scale", 1.0), kwargs.get("error_rates", True))
        read(speech_lengths, text_lengths, text)
        batch = Batch(speech, speech_lengths, shortened(text, text_lengths), text_lengths, context)
        if self.training:
            if self.subnet_trainer is None:
                raise UserError("model: todm can only be trained with a subnet_trainer, such as subnet_trainer: kd")
            loss, stats = self.subnet_trainer.step(self, batch, step)
        else:
            loss, stats = evaluate(self, batch)
        stats["loss"] = loss.detach()
        gathered: tuple[Tensor, dict[str, Tensor], Tensor] = force_gatherable(
            (loss, stats, loss.new_full((), speech.shape[0], dtype=torch.long)), loss.device
        )
        return gathered

    def context(self, step: Optional[int] = None, loss_scale: float = 1.0, error_rates: bool = True) -> StepContext:
        """The context of a pass with the model's current mode (training or not) and precision. Training computes no error
        rates."""
        return StepContext(self.training, step, self.autocast, loss_scale, error_rates and not self.training)

    def run_subsampling(self, batch: Batch) -> SubsampledFeatures:
        """Compute features, SpecAugment, normalisation and subsampling, once for all subnets of a step.

        An utterance that is too short for one output frame has length 0, in any batch.
        """
        return self.run_view(self.run_features(batch), batch, self.specaug)

    def run_features(self, batch: Batch) -> Features:
        """Compute the features before SpecAugment."""
        with torch.autocast(batch.speech.device.type, enabled=False):
            lengths = batch.speech_lengths
            features = batch.speech[:, : max(values(lengths))]
            if self.frontend is not None:
                features, lengths = self.frontend(features, lengths)
            return Features(lengthen(features, 1), on_both(at_least_one, lengths))  # ESPnet fails on zero frames

    def run_view(self, features: Features, batch: Batch, augment: Optional[Augment]) -> SubsampledFeatures:
        """Compute SpecAugment (``augment``, in training only), normalisation and subsampling of features."""
        hidden, lengths, context = features.hidden, features.lengths, batch.context
        with torch.autocast(hidden.device.type, enabled=False):
            if augment is not None and context.training:
                hidden, lengths = augment(hidden, lengths)
            if self.normalize is not None:
                hidden, lengths = self.normalize(hidden, lengths)
        with context.autocast(hidden.device):
            if self.preencoder is not None:
                hidden, lengths = self.preencoder(hidden, lengths)
            hidden = lengthen(hidden, self.encoder.shortest())
            return self.encoder.subsample(hidden, lengths, context.step if context.training else None)

    def run_subnet(
        self,
        subsampled: SubsampledFeatures,
        batch: Batch,
        subnet: Subnet,
        gates: Optional[Gates] = None,
        drop: Optional[Drop] = None,
        teacher: Optional[Posteriors] = None,
    ) -> SubnetOutput:
        """Compute the task loss of one subnet. With ``gates`` the whole supernet runs with soft gates instead.

        The output layer is that of the subnet's size. The subnet uses the pruning ranges of the ``teacher``'s lattice.
        """
        between = self.between(subnet.name)
        encoded = self.run_blocks(subsampled, batch, subnet, gates, drop, between=between)
        return self.task(encoded, subsampled, batch, subnet.name, teacher, between.taken)

    def run_blocks(
        self,
        subsampled: SubsampledFeatures,
        batch: Batch,
        subnet: Subnet,
        gates: Optional[Gates] = None,
        drop: Optional[Drop] = None,
        exits: Sequence[int] = (),
        between: Optional[Between] = None,
    ) -> Tensor:
        """Run :meth:`SupernetEncoder.blocks` in the batch's precision."""
        plain = gates is None and not drop and not exits
        with batch.context.autocast(subsampled.hidden.device):
            if self.compiled is not None and plain and self.compiled.takes(self.encoder, subsampled, subnet):
                return self.compiled.run(self.encoder, subsampled, subnet)
            return self.encoder.blocks(subsampled, subnet, gates, drop, exits, between or self.between(subnet.name))

    def between(self, size: str) -> Between:
        """The intermediate outputs of one pass of a size: it collects them and feeds posteriors back to the blocks."""
        return between(self, size)

    def task(
        self,
        encoded: Tensor,
        subsampled: SubsampledFeatures,
        batch: Batch,
        size: str,
        teacher: Optional[Posteriors] = None,
        taken: Sequence[Taken] = (),
    ) -> SubnetOutput:
        """ESPnet's loss on the encoder's output (B, T, D) for a size, see :func:`espnet_todm.models.tasks.run_task`."""
        return run_task(self, encoded, subsampled, batch, size, teacher, taken)

    def transducer(self, size: str = FULL) -> TransducerTask:
        """The transducer task with the joiner of a size."""
        joint = self.size_joints[size] if size in self.size_joints else self.joint_network
        return TransducerTask(self.decoder, joint, self.simple_joint, self.transducer_options)

    @property
    def lends_ranges(self) -> bool:
        """Whether subnets use the pruning ranges of the max subnet."""
        return self.simple_joint is not None and self.transducer_options.reuse_ranges

    def distillation(self, teacher: Posteriors, student: Posteriors, batch: Batch, divergence: Divergence) -> Tensor:
        """Divergence of a student from a teacher, see :func:`espnet_todm.models.tasks.distillation`."""
        return distillation(self, teacher, student, batch, divergence)

    def output_layer(self, size: str) -> nn.Linear:
        """The CTC output layer (D, V) of a size."""
        return cast(nn.Linear, self.size_outputs[size] if size in self.size_outputs else self.ctc.ctc_lo)

    def outer_state(self, subnet: Subnet) -> dict[str, Tensor]:
        """State of an extracted model without its encoder, with the output layers of the subnet's size."""
        return outer_state(self, subnet)

    def trained_parameters(self) -> list[Tensor]:
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def component_table(self) -> ComponentTable:
        """The encoder's component table. Its rest includes the other parts (output layer, joiner, decoder)."""
        return component_table(self)


def _after_loading(model: TodmModel, _keys: Any) -> None:
    """Restore learned sizes from a checkpoint. Copy the subnet's output layers to where stock inference reads them."""
    if model.subnet_trainer is not None:
        model.subnet_trainer.restore(model)
    name = model.encoder.subnet.name
    if name in model.size_outputs:
        model.ctc.ctc_lo.load_state_dict(model.size_outputs[name].state_dict())
    if name in model.size_joints:
        model.joint_network.load_state_dict(model.size_joints[name].state_dict())
