import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaler.core.model import ReplicaView
from scaler.core.replicas import VIEW_STALE_SECONDS, fresh, reachable, remaining_seconds
from scaler.simulator.rules import HpaSpec, Metric, Scale, metric_proposal


@pytest.mark.parametrize(
    ("desired", "status", "expected"),
    [
        pytest.param(9, 8, 9, id="below ten every step counts"),
        pytest.param(11, 10, 12, id="ten to eleven is within the tolerance, so twelve"),
        pytest.param(9, 10, 10, id="ten to nine is within the tolerance, so it stays"),
        pytest.param(8, 10, 8, id="ten to eight is outside"),
        pytest.param(22, 20, 23, id="the bound itself is within"),
        pytest.param(23, 20, 23, id="just outside"),
        pytest.param(11, None, 11, id="unknown status never overshoots"),
        pytest.param(3, 0, 3, id="from zero anything is reached"),
        pytest.param(100, 95, 105, id="beyond the maximum, to which the HPA keeps, since it compares first"),
        pytest.param(100, 90, 100, id="to the maximum, where it is far"),
        pytest.param(100, 101, 100, id="never above the maximum, where more are there"),
    ],
)
def test_only_counts_that_the_hpa_can_reach_are_asked_for(desired: int, status: int | None, expected: int) -> None:
    assert reachable(desired, status, 0.1, 100) == expected


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 300), st.sampled_from([0.0, 0.05, 0.1, 0.2]))
def test_the_hpa_comes_to_its_bounds_from_anywhere(a: int, b: int, there: int, tolerance: float) -> None:
    least, most = min(a, b), max(a, b)
    status = min(max(there, least), most)
    spec = HpaSpec(min_replicas=least, max_replicas=most, tolerance=tolerance)
    for desired in (least, most):
        count = reachable(desired, status, tolerance, most, least)
        proposal = metric_proposal(spec, Metric(float(count), 1.0), Scale(status, status, status))
        assert min(max(status if proposal is None else proposal, least), most) == desired


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([0.0, 0.05, 0.1, 0.2]))
def test_the_hpa_moves_to_what_is_reachable_and_it_is_the_least_that_suffices(
    desired: int, status: int, tolerance: float
) -> None:
    count = reachable(desired, status, tolerance, 10_000)
    spec = HpaSpec(max_replicas=10_000, tolerance=tolerance)

    def moved(to: int) -> int | None:
        return metric_proposal(spec, Metric(float(to), 1.0), Scale(status, status, status))

    assert moved(count) == count >= desired
    assert not [lower for lower in range(desired, count) if moved(lower) == lower]


@pytest.mark.parametrize(("status", "tolerance"), [(2, 0.5), (2, 0.9), (2, 1.0), (50, 1.0)])
def test_no_fewer_than_none_are_asked_for_whatever_the_tolerance(status: int, tolerance: float) -> None:
    assert reachable(1, status, tolerance, 100, 1) == 0


def test_an_old_view_is_no_view() -> None:
    view = ReplicaView(at_seconds=0.0, ready=3)
    assert fresh(view, VIEW_STALE_SECONDS) is view
    assert fresh(view, VIEW_STALE_SECONDS + 0.1) is None
    assert fresh(view, -VIEW_STALE_SECONDS - 0.1) is None  # the clock stepped back since


@given(st.floats(0, 1000), st.floats(1, 300), st.floats(1, 3))
def test_a_starting_replica_is_always_expected_some_time_and_never_longer_than_p95(
    age: float, median: float, ratio: float
) -> None:
    remaining = remaining_seconds(age, median, median * ratio)
    assert 0 < remaining <= median * ratio
