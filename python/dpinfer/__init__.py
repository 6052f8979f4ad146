"""dpinfer: one model on every device of a machine; batches are split over them, results come back in order."""

from __future__ import annotations

from ._c import VERSION as __version__
from .datasets import DistributedSampled, run
from .errors import *  # noqa: F403
from .export import Compiled, compile
from .images import Preprocess
from .parallel import DataParallel, empty
from .session import Pending, Session

__all__ = ["Compiled", "DataParallel", "DistributedSampled", "Pending", "Preprocess", "Session", "__version__", "compile", "empty", "run"]
