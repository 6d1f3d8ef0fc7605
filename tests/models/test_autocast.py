"""Mixed precision where it helps: told to a CPU that would only emulate it, it is float32."""

from __future__ import annotations

import pytest
import torch

from espnet_todm.models import autocast
from espnet_todm.models.autocast import Autocast
from espnet_todm.util.compat import autocasts_on_cpu

CPU = torch.device("cpu")


def dtype_inside(chosen: Autocast) -> torch.dtype:
    with chosen(CPU):
        return (torch.ones(2, 2) @ torch.ones(2, 2)).dtype


@pytest.mark.parametrize(("name", "capable"), [(None, True), ("bfloat16", True), ("bfloat16", False)])
def test_a_type_is_used_where_the_cpu_has_it(
    name: str, capable: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(autocast, "cpu_has", lambda dtype: capable)
    wanted = name is not None and capable and autocasts_on_cpu(torch.bfloat16)
    assert dtype_inside(Autocast(name)) == (torch.bfloat16 if wanted else torch.float32)
    assert ("float32 there" in caplog.text) == (name is not None and not wanted)
