"""espnet_todm: train one speech recognition supernet with ESPnet, deploy many small models from it.

Importing this package is cheap: torch and ESPnet are imported on the first call.

``espnet_todm.Speech2Text`` is ESPnet's class with this package's encoders and models registered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Optional

if TYPE_CHECKING:
    from espnet_todm.recognizer import Model, Supernet
    from espnet_todm.util.files import PathLike

__version__ = "0.1.0"
__all__ = ["Speech2Text", "load_model", "load_supernet", "register"]


def register() -> None:
    """Register the encoders, models, optimizers and trainers of this package with ESPnet. Idempotent."""
    from espnet_todm.espnet.registry import register as _register

    _register()


def load_supernet(experiment: PathLike, checkpoint: Optional[PathLike] = None) -> Supernet:
    """Load a trained supernet, or a model with one of the ESPnet encoders that supernets support.

    experiment: the folder of the training, or its config.yaml; checkpoint: its weights, by default the best model by
    the configuration's first criterion. Raises UserError if the files do not match or the model is not a supernet.
    """
    register()  # first, since it silences what ESPnet prints when it is imported
    from espnet_todm.recognizer import Supernet

    return Supernet(experiment, checkpoint)


def load_model(folder: PathLike) -> Model:
    """Load an extracted size. Raises UserError if the folder has none, or its weights are not those of its card."""
    register()
    from espnet_todm.recognizer import Model

    return Model(folder)


def __getattr__(name: str) -> Any:
    if name == "Speech2Text":
        register()
        from espnet_todm.recognizer import speech2text

        return speech2text()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
