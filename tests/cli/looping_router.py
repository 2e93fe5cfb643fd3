"""A user's router that can be made to loop: whoever first finds a file never leaves it."""

import os
from contextlib import suppress
from typing import Any

from torch import Tensor

from elasticmoe.model.router import LinearRouter

LOOP = "LOOPING_ROUTER_LOOP"
"""Environment variable: the file. `.taken` is appended to its name by whoever loops."""
FEWEST_CALLS = 50
"""25 steps of two waves: the stall bound comes from measured steps, two of them while saving."""


class LoopingRouter(LinearRouter):
    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._calls = 0

    def forward(self, tokens_TD: Tensor) -> Tensor:
        self._calls += 1
        path = os.environ[LOOP]
        with suppress(FileNotFoundError):
            if self._calls > FEWEST_CALLS:
                os.rename(path, f"{path}.taken")  # by one worker only: it has to be found
                while True:  # the heart beats on
                    pass
        return super().forward(tokens_TD)
