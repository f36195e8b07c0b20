"""What a consumer has done and not committed yet, told from how it commits. Pure.

Who commits each twenty requests leaves ten of them, on average, in the lag that are done. Taken for requests that wait
or are worked on they would show ever more replicas at work, whatever they do: the more consumers there are, the more is
done and not committed. A consumer commits in lumps that are alike, so between two of them it has likely done as much of
the next one as time has passed. It is an estimate, for policies that learn; the lag that KEDA sees is what it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median_high, median_low

_KEPT = 3  # lumps of which the middle one counts: one leap (a reset of the offsets) is no lump
_LEAST = 2  # ... of two the smaller and the longer
_LATE_TIMES = 2.0  # a commit that is so late is not on its way: the consumer works on one request, or is gone
_LONGEST_SECONDS = (
    1_800.0  # who commits less often tells nothing: for twice as long a consumer that died would be missed
)


@dataclass(slots=True)
class Lumps:
    """The commits of one partition: how many messages each of the last moved it by, after how long with lag."""

    recent: tuple[tuple[int, float], ...] = ()
    done_messages: float = 0.0  # likely done, beyond what is committed

    def most_messages(self, lag_messages: int) -> int:
        """As many of the lag may be done: with the last of a lump comes its commit. All, where none was seen yet."""
        most = max([messages for messages, _ in self.recent]) - 1 if self.recent else lag_messages
        return min(most, lag_messages)

    def committed(self, messages: int, still_seconds: float, gap_seconds: float | None) -> None:
        """The offset moved by so many in the last `gap_seconds`, after it stood still; None: nobody knows when."""
        if gap_seconds:
            # What was committed between two looks of which each saw a commit may have been so one by one.
            lump = (messages if still_seconds > 0.0 else 1, still_seconds + gap_seconds)
            self.recent = (*self.recent, lump)[-_KEPT:]
        # What was thought to be done and is not committed now is done a little later, and not counted twice.
        self.done_messages = max(self.done_messages - messages, 0.0)

    def passed(self, still_seconds: float, lag_messages: int) -> None:
        """The offset has stood still for `still_seconds`, with so much lag."""
        if lag_messages == 0:  # most partitions, most of the time
            self.done_messages = 0.0
            return
        if len(self.recent) < _LEAST:
            return
        messages = median_low([lump[0] for lump in self.recent])
        seconds = median_high([lump[1] for lump in self.recent])
        if seconds > _LONGEST_SECONDS or still_seconds > _LATE_TIMES * seconds:
            self.done_messages = 0.0
            return
        likely = min(messages * still_seconds / seconds, messages - 1.0)
        self.done_messages = min(max(self.done_messages, likely), float(lag_messages))

    def forgotten(self) -> None:
        """The offset is another one now: what was done since the last commit is done again, or never will be."""
        self.done_messages = 0.0
