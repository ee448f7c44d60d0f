"""The objects that all routes share."""

from typing import NamedTuple

from edgecnn.device.http.auth import Gate
from edgecnn.device.http.board import Board
from edgecnn.device.http.inference import Inference
from edgecnn.device.http.review import Desk
from edgecnn.device.http.upkeep import Upkeep
from edgecnn.device.http.viewers import Viewers


class Site(NamedTuple):
    """The argument of each module's function `routes`, which returns a list of routes."""

    board: Board
    viewers: Viewers
    inference: Inference
    gate: Gate
    upkeep: Upkeep
    desk: Desk | None
