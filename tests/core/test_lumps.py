"""Service times between two bounds."""

from __future__ import annotations

import pytest

from scaler.core.lumps import NO_LUMPS, Lumps


@pytest.mark.parametrize(
    ("least_seconds", "most_seconds", "service_seconds", "learned_seconds"),
    [
        pytest.param(10.0, 90.0, 5.0, 50.0, id="within: what is known stays"),
        pytest.param(10.0, 90.0, 0.5, 10.0, id="services take longer than was known"),
        pytest.param(10.0, 90.0, 20.0, 90.0, id="... or less long"),
        pytest.param(40.0, 40.0, 5.0, 40.0, id="nothing is left open"),
    ],
)
def test_what_is_known_is_moved_to_the_nearer_bound(
    least_seconds: float, most_seconds: float, service_seconds: float, learned_seconds: float
) -> None:
    found = NO_LUMPS.fed(
        least_seconds=least_seconds,
        most_seconds=most_seconds,
        completions=10.0,
        untold=2.0,
        service_seconds=service_seconds,
    )
    assert found == (NO_LUMPS, learned_seconds, 10.0)


def test_nothing_is_learned_before_several_lumps_were_told() -> None:
    lumps = NO_LUMPS
    for look in range(1, 3):
        lumps, busy_seconds, completions = lumps.fed(
            least_seconds=1.0, most_seconds=4.0, completions=20.0, untold=20.0, service_seconds=0.1
        )
        if look < 2:
            assert (lumps, busy_seconds, completions) == (Lumps(1.0 * look, 4.0 * look, 20.0 * look), 0.0, 0.0)
    assert (lumps, busy_seconds, completions) == (NO_LUMPS, 4.0, 40.0)


def test_nothing_is_learned_of_no_completion() -> None:
    found = NO_LUMPS.fed(least_seconds=1.0, most_seconds=4.0, completions=0.0, untold=0.0, service_seconds=1.0)
    assert found == (Lumps(1.0, 4.0, 0.0), 0.0, 0.0)
