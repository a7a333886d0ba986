"""How far the quickstart is: one bar for the whole, and a line for each network."""

import time
from collections.abc import Sequence

import keras
import tqdm


class Progress:
    """A bar over all networks where there is a terminal, and a line for each network."""

    def __init__(self, costs: Sequence[float]) -> None:
        """Shows the bar.

        Args:
            costs: What each network takes, in any unit.
        """
        self._costs = costs
        self._num_finished = 0
        self._done = 0.0
        self._earlier = 0.0  # The part of it that an earlier process has done.
        self._start = time.monotonic()
        self._bar = tqdm.tqdm(
            total=sum(costs),
            disable=None,  # Where there is no terminal.
            leave=False,
            dynamic_ncols=True,
            bar_format="{percentage:3.0f}%|{bar}| {desc}",
        )

    def each_epoch(self, cost: float) -> keras.callbacks.Callback:
        """Returns a callback that moves the bar by the cost of an epoch."""
        return _EachEpoch(self, cost)

    def advance(self, cost: float, *, earlier: bool = False) -> None:
        """Moves the bar.

        Args:
            cost: What has been done.
            earlier: Whether an earlier process has done it.
        """
        self._done += cost
        self._earlier += cost if earlier else 0.0
        self._bar.set_description_str(self._left(), refresh=False)
        self._bar.update(cost)

    def finish_network(self, text: str) -> None:
        """Prints a network's line.

        Args:
            text: What came out of it.
        """
        self._num_finished += 1
        # What an earlier process has trained, and this one only evaluated.
        self.advance(sum(self._costs[: self._num_finished]) - self._done, earlier=True)
        total = len(self._costs)
        count = f"[{self._num_finished:>{len(str(total))}}/{total}]"
        self._bar.write(f"{count} {text}; {self._left()}")

    def close(self) -> None:
        """Removes the bar."""
        self._bar.close()

    def _left(self) -> str:
        worked = self._done - self._earlier
        if not worked:
            return "started"
        seconds = (time.monotonic() - self._start) / worked * (sum(self._costs) - self._done)
        return f"about {max(seconds, 0):.0f} s left"


class _EachEpoch(keras.callbacks.Callback):
    def __init__(self, progress: Progress, cost: float) -> None:
        super().__init__()
        self._progress = progress
        self._cost = cost
        self._is_first = True

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        if self._is_first:
            self._progress.advance(epoch * self._cost, earlier=True)
        self._is_first = False

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self._progress.advance(self._cost)
