"""Stages for Stokehold pipelines in Python, fed through shared memory without copies.

::

    from stokehold import stage, serve

    @stage("train")
    def train(task, batches):
        for batch in batches:
            loss = step(task.torch(batch))
            task.progress(loss=loss)
        task.save_model(tensors, metrics={"auc": auc})

    serve()

See Task for what a stage can do, Input for what it may keep, serve for how the
program runs, and stokehold.testing for tests without a host.
"""

from importlib.metadata import PackageNotFoundError, version

from .errors import (
    Cancelled,
    HostGoneError,
    KeptBatchesError,
    PermanentError,
    ProtocolError,
    SealsError,
    StokeholdError,
)
from .inputs import Input, copy
from .loan import Loan
from .safetensors import Tensor
from .task import Task
from .worker import Stages, serve, stage

try:
    __version__ = version("stokehold")
except PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "0+unknown"

__all__ = [
    "Cancelled",
    "HostGoneError",
    "Input",
    "KeptBatchesError",
    "Loan",
    "PermanentError",
    "ProtocolError",
    "SealsError",
    "Stages",
    "StokeholdError",
    "Task",
    "Tensor",
    "__version__",
    "copy",
    "serve",
    "stage",
]
