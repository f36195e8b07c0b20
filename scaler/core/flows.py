"""What a standing queue tells where nobody counts arrivals and completions: how fast it grows, by how many slots work.

While something waits all slots work, and what is in the system grows by what arrives less what these complete. Twice as
many slots complete twice as many: from how the growth changes with the slots, and from what arrived before any worked,
follow both the rate of arrivals and that of completions. It is a Kalman filter (1960) of these two, which knows how
sure it is of each and of both together; while as many slots work all the time it learns their difference alone, and
says so: steps.py bounds what that leaves open. What comes more than usual may stop at any moment (a burst), less likely
the longer it has lasted, and so is expected to fade. What is usual wanders slowly.
"""

from __future__ import annotations

import math

from scaler.core.values import value_class

_UNSURE = 2.0  # squared: how far a service time that nobody told may be off (a factor of 4), over it
_KEPT = 300.0  # completions: a service time may wander by its own size, over so many, squared
_WANDERS = 10.0  # time constants of the short rate: so slowly does the usual rate wander
_STOPS = 2.0  # what comes more than usual: its square is added to what is not known of the rate, in a time constant / 2
_RUN_KEPT = 0.8  # of each look for the next: a run of looks of which all are off the same way is a rate that changed
_RUN_MOST = 2.0  # standard deviations that one look adds to it
_SURPRISING = 3.0  # standard deviations of a run
_LEAST_NOISE = 0.25  # requests squared: counts are whole
_UNEVEN = 0.5  # squared coefficient of variation of service times
_TIED = 0.99  # at most: a covariance beyond its variances' mean is a rounding error
_MOST_TIMES = 2.0  # as fast or as slow, after one look


@value_class(frozen=True, slots=True)
class Flow:
    """What is known of the arrivals a second while something waits, and of them together with a slot's completions."""

    rate: float = 0.0
    rate_variance: float = 0.0
    covariance: float = 0.0  # of the rate and of a slot's completions a second
    run_off: float = 0.0  # requests more than was expected, lately
    run_variance: float = 0.0
    owed: float = 0.0  # arrivals below zero, to be taken from later ones: else chance would only ever add
    stood_seconds: float = 0.0  # for how long something waits

    def fed(
        self,
        change: float,
        *,
        busy: float,
        pace: float,
        weight: float,
        usual_rate: float,
        dispersion: float,
        elapsed_seconds: float,
        tau_seconds: float,
        in_work_told: bool = True,
    ) -> tuple[Flow, float, float, float]:
        """(what is known then, arrivals, completions a second and slot, their weight), after one more look.

        `change`: how many requests more are in the system than `elapsed_seconds` ago, in which `busy` slots worked all
        the time. `pace`: completions a second of a slot as known before, worth `weight` completions; infinite: it is
        believed. `usual_rate`: arrivals a second once a burst is over, `tau_seconds`: over how long the short rate is
        taken. `in_work_told`: somebody tells how many work, also while nothing waits, and so saw what is usual.
        """
        rate, stood_seconds = self.rate, self.stood_seconds + elapsed_seconds
        if in_work_told and rate > usual_rate:
            # Else a burst that is over would be seen as arrivals that faster services hide.
            left = (1.0 - elapsed_seconds / (tau_seconds + stood_seconds)) ** _STOPS
            rate = usual_rate + left * (rate - usual_rate)
        came, done = rate * elapsed_seconds, busy * pace * elapsed_seconds
        rate_variance = self.rate_variance + rate * elapsed_seconds / (_WANDERS * tau_seconds) ** 2
        rate_variance += _STOPS * (rate - usual_rate) ** 2 * elapsed_seconds / tau_seconds
        believed = math.isinf(weight)
        pace_variance = 0.0 if believed else pace * pace * (_UNSURE / weight + done / _KEPT**2)
        most = _TIED * math.sqrt(rate_variance * pace_variance)
        covariance = max(-most, min(self.covariance, most))
        by_pace = -busy * elapsed_seconds
        to_rate = elapsed_seconds * rate_variance + by_pace * covariance
        to_pace = elapsed_seconds * covariance + by_pace * pace_variance
        noise = max(came * dispersion + done, _LEAST_NOISE)
        variance = elapsed_seconds * to_rate + by_pace * to_pace + noise
        off = change - (came - done)
        deviation = math.sqrt(variance)
        run_off = _RUN_KEPT * self.run_off + max(-_RUN_MOST * deviation, min(off, _RUN_MOST * deviation))
        run_variance = _RUN_KEPT**2 * self.run_variance + variance
        if run_off * run_off > _SURPRISING**2 * run_variance:
            more = (off / elapsed_seconds if off > 0 else min(-off / elapsed_seconds, rate)) ** 2
            rate_variance += more
            to_rate += elapsed_seconds * more
            variance += elapsed_seconds * elapsed_seconds * more
            run_off = run_variance = 0.0
        before = rate
        rate += to_rate / variance * max(-_SURPRISING * deviation, off)
        known_pace = pace + to_pace / variance * off
        if believed:
            rate = max(rate, 0.0)
        elif rate < 0.0:  # nothing arrives any more: all that goes is completed, which tells the pace
            tied = covariance / rate_variance if rate_variance > 0.0 else 0.0
            likely_pace = pace - tied * before
            expected = busy * likely_pace * elapsed_seconds
            its_variance = max(pace_variance - tied * covariance, (pace / _KEPT) ** 2)
            gain = its_variance * by_pace / (by_pace * by_pace * its_variance + max(expected, _LEAST_NOISE))
            rate, known_pace = 0.0, likely_pace + gain * (change + expected)
        known_pace = max(pace / _MOST_TIMES, min(known_pace, _MOST_TIMES * pace))
        pace_variance = max(pace_variance - to_pace * to_pace / variance, (known_pace / _KEPT) ** 2)
        arrivals, owed = self._arrivals(
            change,
            rate * elapsed_seconds,
            busy * known_pace * elapsed_seconds,
            dispersion=dispersion,
            in_work_told=in_work_told,
        )
        after = Flow(
            rate,
            max(rate_variance - to_rate * to_rate / variance, 0.0),
            covariance - to_rate * to_pace / variance,
            run_off,
            run_variance,
            owed,
            stood_seconds,
        )
        return after, arrivals, known_pace, weight if believed else _UNSURE * known_pace * known_pace / pace_variance

    def _arrivals(
        self, change: float, came: float, done: float, *, dispersion: float, in_work_told: bool
    ) -> tuple[float, float]:
        """(arrivals, what is owed): what is left to chance is shared as unevenly as both usually are.

        Where it is told how many work, over time no more is completed than so many can, however much at once: the rest
        of it arrived, or didn't. But where few come and go between two looks, each of them is seen.
        """
        least = max(change, 0.0)
        if done <= 0.0:  # nothing was completed: all of the change arrived
            return least, self.owed
        left_over = change - (came - done)
        if in_work_told:
            seen = math.exp(-came - done)  # how likely nothing came and went
            likely = seen * (least + unseen(came, done, abs(change))) + (1.0 - seen) * (came + left_over) - self.owed
        else:
            uneven = came * dispersion
            likely = came + left_over * uneven / (uneven + _UNEVEN * done) - self.owed
        arrivals = max(likely, least)
        return arrivals, arrivals - likely


def unseen(arrivals: float, completions: float, change: float, *, terms: int = 0) -> float:
    """How many requests both arrived and ended unseen, where only the difference of the two was seen.

    Both are taken as Poisson with these means. Given their difference, the number of such pairs has a mean that is a
    ratio of Bessel functions: `terms` of its continued fraction, and Amos's approximation (1974), exact for few and for
    many, for the rest of it. A wrong guess of the service time corrects itself by it: what it explains badly is seen
    less often than it says.
    """
    product, order = 4.0 * arrivals * completions, change + terms
    below = order + 0.5 + math.sqrt((order + 1.5) ** 2 + product)
    for _ in range(terms):
        below = 2.0 * order + product / below
        order -= 1.0
    return 0.5 * product / below
