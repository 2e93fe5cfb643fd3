"""A user's router that can be made to loop: whoever first finds a file never leaves it."""

import os
from contextlib import suppress

from torch import Tensor

from elasticmoe.model.router import LinearRouter

LOOP = "LOOPING_ROUTER_LOOP"
"""Environment variable: the file. `.taken` is appended to its name by whoever loops."""


class LoopingRouter(LinearRouter):
    def forward(self, tokens_TD: Tensor) -> Tensor:
        path = os.environ[LOOP]
        with suppress(FileNotFoundError):
            os.rename(path, f"{path}.taken")  # one worker only: it has to be found among others
            while True:  # the heart beats on
                pass
        return super().forward(tokens_TD)
