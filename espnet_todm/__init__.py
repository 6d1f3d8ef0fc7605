"""espnet_todm: train one speech recognition supernet with ESPnet, deploy many small models from it.

Importing this package is cheap. ``espnet_todm.register()`` makes its names known to ESPnet.
"""

from __future__ import annotations

__version__ = "0.1.0"


def register() -> None:
    """Make the encoders, models, optimizers and trainers of this package known to ESPnet. Idempotent."""
    from espnet_todm.espnet.registry import register as _register

    _register()
