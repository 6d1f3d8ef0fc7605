"""``split_batch`` of the kd and two_stage trainers: each subnet of a step trains on utterances of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Optional

from espnet_todm.encoders.passes import SubsampledFeatures
from espnet_todm.errors import UserError
from espnet_todm.models.batch import Batch
from espnet_todm.util.checks import check_type
from espnet_todm.util.host import on_both


def check_split(split_batch: bool, distils: bool, views: Optional[Mapping[str, Any]] = None) -> None:
    """Raises UserError for another type, and if it is true, for options that compare subnets on the same speech."""
    check_type("split_batch", split_batch, bool)
    if split_batch and distils:
        raise UserError(
            "split_batch: true gives each subnet utterances of its own, so there is nothing to distil; set kd_weight: 0 and"
            " leave out kd_only_share"
        )
    if split_batch and views is not None:
        raise UserError(
            "split_batch: true gives each subnet utterances of its own, not a view of the same; leave out views"
        )


def own_rows(utterances: int, number: int, subnets: int, step: int) -> slice:
    """The utterances of a batch that subnet ``number`` of ``subnets`` trains on in a step.

    Every ``subnets``-th one, since batches are sorted by length. The first one rotates with the step. A batch with fewer
    utterances than subnets is not split.
    """
    if utterances < subnets:
        return slice(None)
    return slice((number + step) % subnets, None, subnets)


def own_part(
    split_batch: bool, subsampled: SubsampledFeatures, batch: Batch, number: int, subnets: int, step: int
) -> tuple[SubsampledFeatures, Batch]:
    """What a subnet trains on, subsampled and as it came: its :func:`own_rows` if ``split_batch``, else all utterances."""
    if not split_batch:
        return subsampled, batch
    rows = own_rows(len(batch.text), number, subnets, step)
    visible = None if subsampled.visible is None else subsampled.visible[rows]
    hidden, mask = subsampled.hidden[rows], subsampled.mask[rows]
    lengths = on_both(lambda whole: whole[rows], subsampled.lengths)
    return replace(subsampled, hidden=hidden, lengths=lengths, mask=mask, visible=visible), batch.rows(rows)
