"""A user's router that can be made to loop: whoever first finds a file never leaves it."""

import os
from contextlib import suppress

from torch import Tensor

from elasticmoe.model.router import LinearRouter

LOOP = "LOOPING_ROUTER_LOOP"
"""Environment variable: the file. `.taken` is appended to its name by whoever loops."""
FIRST_CALLS = 50
"""Of a layer in a process: more than 20 steps, so that what a step takes has been measured."""


class LoopingRouter(LinearRouter):
    calls = 0

    def forward(self, tokens_TD: Tensor) -> Tensor:
        path = os.environ[LOOP]
        self.calls += 1
        with suppress(FileNotFoundError):
            if self.calls > FIRST_CALLS:
                os.rename(path, f"{path}.taken")  # one worker only: it has to be found among others
                while True:  # the heart beats on
                    pass
        return super().forward(tokens_TD)
