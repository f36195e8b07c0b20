"""What each hour of the day usually brings."""

from __future__ import annotations

import math

from scaler.core.values import value_class

HOURS = 24
_HOUR_SECONDS = 3_600.0
_DAY_SECONDS = 86_400.0
_MOST_DAYS = 7.0  # an hour's rate is the mean of about so many days
_QUIET_DAYS = 14.0  # of a longer silence nothing more is learned


@value_class(frozen=True, slots=True)
class Hours:
    """The profile, and the hour that is not over. Counts are of requests; -1: no hour was begun."""

    hour: int = -1
    arrived: float = 0.0
    seconds: float = 0.0  # of the hour, seen
    profile: tuple[tuple[float, float], ...] = ()  # per hour of the day: (arrivals a second, days seen)

    def rate_per_second(self, at_seconds: float) -> tuple[float, float] | None:
        """(arrivals a second, days seen) of that hour of the day, or None."""
        if not self.profile:
            return None
        rate, days = self.profile[_hour(at_seconds)]
        return (rate, days) if days > 0 else None

    def fed(self, arrivals: float, elapsed_seconds: float, now_seconds: float) -> Hours:
        """With what arrived since it was fed last; an hour counts when it is over."""
        hour = _hour(now_seconds)
        if hour == self.hour:
            return Hours(hour, self.arrived + arrivals, self.seconds + elapsed_seconds, self.profile)
        profile = _over(self.profile, self.hour, self.arrived, self.seconds)
        return Hours(hour, arrivals, min(elapsed_seconds, _HOUR_SECONDS), profile)

    def rested(self, since_seconds: float, *, interval_seconds: float, until_seconds: float) -> Hours:
        """As if it had been fed that nothing came, each `interval_seconds` from then until then."""
        hour, arrived, seconds, profile = self.hour, self.arrived, self.seconds, self.profile
        at_seconds = max(since_seconds, until_seconds - _QUIET_DAYS * _DAY_SECONDS)
        while True:
            turns_seconds = (at_seconds // _HOUR_SECONDS + 1.0) * _HOUR_SECONDS
            looks = math.ceil((turns_seconds - at_seconds) / interval_seconds)
            if at_seconds + looks * interval_seconds > until_seconds + 1e-6:
                return Hours(hour, arrived, seconds + until_seconds - at_seconds, profile)
            at_seconds += looks * interval_seconds
            profile = _over(profile, hour, arrived, seconds + (looks - 1) * interval_seconds)
            hour, arrived, seconds = _hour(at_seconds), 0.0, interval_seconds

    def turned(self, seconds: float) -> Hours:
        """With the hours of the day moved, where the clock was put by so much."""
        turned = round(seconds / _HOUR_SECONDS) % HOURS
        if not turned:
            return self
        hour, profile = self.hour, self.profile
        profile = (*profile[HOURS - turned :], *profile[: HOURS - turned]) if profile else profile
        return Hours(hour if hour < 0 else (hour + turned) % HOURS, self.arrived, self.seconds, profile)

    def unbegun(self) -> Hours:
        """Without the hour that is not over: it can't be told any more."""
        return Hours(profile=self.profile)


NO_HOURS = Hours()


def _hour(at_seconds: float) -> int:
    return int(at_seconds % _DAY_SECONDS // _HOUR_SECONDS)


def _over(
    profile: tuple[tuple[float, float], ...], hour: int, arrived: float, seconds: float
) -> tuple[tuple[float, float], ...]:
    """The profile with one more hour, if most of it was seen."""
    if hour < 0 or seconds < 0.5 * _HOUR_SECONDS:
        return profile
    hours = list(profile or ((0.0, 0.0),) * HOURS)
    rate, days = hours[hour]
    days = min(days + 1.0, _MOST_DAYS)
    hours[hour] = (rate + (arrived / seconds - rate) / days, days)
    return tuple(hours)
