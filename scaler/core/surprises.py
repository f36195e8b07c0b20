"""How far arrivals come above their forecast, and how many come at once: counted in windows of about one cold start."""

from __future__ import annotations

import math

from scaler.core.values import value_class
from scaler.core.window import Smoothed

_KEPT = 40.0  # windows: older ones fade
_NEAR_SECONDS = 1e-3  # a window that is a whole number of intervals long ends with the look that is due then


@value_class(frozen=True, slots=True)
class Surprises:
    """What the windows that are over have shown, and the one that is open. Counts are of requests."""

    at_seconds: float = 0.0  # since when the window is open
    arrived: float = 0.0
    forecast: float = 0.0  # arrivals a second
    error_squares: float = 0.0
    error_base: float = 0.0
    crowd_squares: float = 0.0
    crowd_base: float = 0.0

    @property
    def dispersion(self) -> float:
        """Variance of arrivals around their forecast, over what a Poisson process of that rate would have."""
        return min(max((self.error_squares + 4.0) / (self.error_base + 4.0), 0.5), 100.0)

    @property
    def crowd(self) -> float:
        """How many requests a request finds within one cold start, itself included: what one surprise can make late.

        0: none was seen yet.
        """
        return self.crowd_squares / self.crowd_base if self.crowd_base else 0.0

    def others(self, usual: float) -> float:
        """How many others a request finds within one cold start; `usual`: how many it would if they came at random.

        What comes at random finds as many as usually come in that time, and what comes alone none. One request counts
        as if it had come at random.
        """
        others = max(self.crowd_squares - self.crowd_base, 0.0)  # of what is only guessed, less than one may come
        return (others + usual) / (self.crowd_base + 1.0)

    def fed(self, arrivals: float, rate: float, *, lead_seconds: float, now_seconds: float) -> Surprises:
        """With what arrived since it was fed last; `rate` (a second) is the forecast from now on."""
        arrived, at_seconds, forecast = self.arrived + arrivals, self.at_seconds, self.forecast
        error_squares, error_base = self.error_squares, self.error_base
        crowd_squares, crowd_base = self.crowd_squares, self.crowd_base
        if now_seconds - at_seconds >= lead_seconds - _NEAR_SECONDS:
            expected = forecast * (now_seconds - at_seconds)
            fade = 1.0 - 1.0 / _KEPT
            if arrived > 0:
                crowd_squares = crowd_squares * fade + arrived * arrived
                crowd_base = crowd_base * fade + arrived
            if expected >= 1.0:
                # A burst that sets in is one surprise, not how uneven its traffic is: one window moves it so far only.
                most = 4.0 * (self.dispersion + 1.0) * expected
                above = max(arrived - expected, 0.0)  # only being surprised from above makes anyone late
                error_squares = error_squares * fade + min(2.0 * above * above, most)
                error_base = error_base * fade + expected
            at_seconds, arrived, forecast = now_seconds, 0.0, rate
        elif not arrivals:
            return self
        return Surprises(at_seconds, arrived, forecast, error_squares, error_base, crowd_squares, crowd_base)

    def rested(
        self, short: Smoothed, *, tau_seconds: float, lead_seconds: float, interval_seconds: float, until_seconds: float
    ) -> Surprises:
        """As if it had been fed that nothing came, each `interval_seconds` until then, with `short` as the forecast."""
        known = self
        length_seconds = max(math.ceil((lead_seconds - _NEAR_SECONDS) / interval_seconds - 1e-6), 1) * interval_seconds
        left = int((until_seconds - known.at_seconds) / length_seconds + 1e-6)
        while left > 0 and (known.arrived > 0 or known.forecast * length_seconds >= 1.0):
            left -= 1
            over_seconds = known.at_seconds + length_seconds
            short = short.fed(0.0, over_seconds, tau_seconds)
            known = known.fed(0.0, short.value, lead_seconds=0.0, now_seconds=over_seconds)
        if left > 0:  # nothing expected and nothing come: nothing to learn
            at_seconds = known.at_seconds + left * length_seconds
            rate = short.fed(0.0, at_seconds, tau_seconds).value
            known = Surprises(
                at_seconds, 0.0, rate, known.error_squares, known.error_base, known.crowd_squares, known.crowd_base
            )
        return known


NO_SURPRISES = Surprises()
