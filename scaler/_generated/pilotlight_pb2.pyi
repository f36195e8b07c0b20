from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ColdStartPhase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    COLD_START_PHASE_UNSPECIFIED: _ClassVar[ColdStartPhase]
    COLD_START_PHASE_SCHEDULING: _ClassVar[ColdStartPhase]
    COLD_START_PHASE_PULLING: _ClassVar[ColdStartPhase]
    COLD_START_PHASE_STARTING: _ClassVar[ColdStartPhase]
    COLD_START_PHASE_LOADING: _ClassVar[ColdStartPhase]
COLD_START_PHASE_UNSPECIFIED: ColdStartPhase
COLD_START_PHASE_SCHEDULING: ColdStartPhase
COLD_START_PHASE_PULLING: ColdStartPhase
COLD_START_PHASE_STARTING: ColdStartPhase
COLD_START_PHASE_LOADING: ColdStartPhase

class WorkloadRef(_message.Message):
    __slots__ = ("namespace", "name", "metric_name")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    METRIC_NAME_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    name: str
    metric_name: str
    def __init__(self, namespace: _Optional[str] = ..., name: _Optional[str] = ..., metric_name: _Optional[str] = ...) -> None: ...

class StartingReplica(_message.Message):
    __slots__ = ("started_seconds_ago",)
    STARTED_SECONDS_AGO_FIELD_NUMBER: _ClassVar[int]
    started_seconds_ago: float
    def __init__(self, started_seconds_ago: _Optional[float] = ...) -> None: ...

class FinishedPhase(_message.Message):
    __slots__ = ("phase", "seconds")
    PHASE_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    phase: ColdStartPhase
    seconds: float
    def __init__(self, phase: _Optional[_Union[ColdStartPhase, str]] = ..., seconds: _Optional[float] = ...) -> None: ...

class ReplicaReport(_message.Message):
    __slots__ = ("workload", "ready", "starting", "terminating", "status_replicas", "finished_cold_starts_seconds", "finished_phases")
    WORKLOAD_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    STARTING_FIELD_NUMBER: _ClassVar[int]
    TERMINATING_FIELD_NUMBER: _ClassVar[int]
    STATUS_REPLICAS_FIELD_NUMBER: _ClassVar[int]
    FINISHED_COLD_STARTS_SECONDS_FIELD_NUMBER: _ClassVar[int]
    FINISHED_PHASES_FIELD_NUMBER: _ClassVar[int]
    workload: WorkloadRef
    ready: int
    starting: _containers.RepeatedCompositeFieldContainer[StartingReplica]
    terminating: int
    status_replicas: int
    finished_cold_starts_seconds: _containers.RepeatedScalarFieldContainer[float]
    finished_phases: _containers.RepeatedCompositeFieldContainer[FinishedPhase]
    def __init__(self, workload: _Optional[_Union[WorkloadRef, _Mapping]] = ..., ready: _Optional[int] = ..., starting: _Optional[_Iterable[_Union[StartingReplica, _Mapping]]] = ..., terminating: _Optional[int] = ..., status_replicas: _Optional[int] = ..., finished_cold_starts_seconds: _Optional[_Iterable[float]] = ..., finished_phases: _Optional[_Iterable[_Union[FinishedPhase, _Mapping]]] = ...) -> None: ...

class ReplicaReportAck(_message.Message):
    __slots__ = ("valid_seconds",)
    VALID_SECONDS_FIELD_NUMBER: _ClassVar[int]
    valid_seconds: float
    def __init__(self, valid_seconds: _Optional[float] = ...) -> None: ...

class DecisionStep(_message.Message):
    __slots__ = ("name", "before", "after", "reason")
    NAME_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    name: str
    before: float
    after: float
    reason: str
    def __init__(self, name: _Optional[str] = ..., before: _Optional[float] = ..., after: _Optional[float] = ..., reason: _Optional[str] = ...) -> None: ...

class Explanation(_message.Message):
    __slots__ = ("workload", "source", "policy", "active", "metric_value", "target_value", "desired_replicas", "decided_seconds_ago", "held", "error", "observed", "steps", "ready", "starting", "terminating")
    class ObservedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    WORKLOAD_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_FIELD_NUMBER: _ClassVar[int]
    METRIC_VALUE_FIELD_NUMBER: _ClassVar[int]
    TARGET_VALUE_FIELD_NUMBER: _ClassVar[int]
    DESIRED_REPLICAS_FIELD_NUMBER: _ClassVar[int]
    DECIDED_SECONDS_AGO_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    OBSERVED_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    STARTING_FIELD_NUMBER: _ClassVar[int]
    TERMINATING_FIELD_NUMBER: _ClassVar[int]
    workload: WorkloadRef
    source: str
    policy: str
    active: bool
    metric_value: float
    target_value: float
    desired_replicas: int
    decided_seconds_ago: float
    held: bool
    error: str
    observed: _containers.ScalarMap[str, float]
    steps: _containers.RepeatedCompositeFieldContainer[DecisionStep]
    ready: int
    starting: int
    terminating: int
    def __init__(self, workload: _Optional[_Union[WorkloadRef, _Mapping]] = ..., source: _Optional[str] = ..., policy: _Optional[str] = ..., active: _Optional[bool] = ..., metric_value: _Optional[float] = ..., target_value: _Optional[float] = ..., desired_replicas: _Optional[int] = ..., decided_seconds_ago: _Optional[float] = ..., held: _Optional[bool] = ..., error: _Optional[str] = ..., observed: _Optional[_Mapping[str, float]] = ..., steps: _Optional[_Iterable[_Union[DecisionStep, _Mapping]]] = ..., ready: _Optional[int] = ..., starting: _Optional[int] = ..., terminating: _Optional[int] = ...) -> None: ...

class ExplainRequest(_message.Message):
    __slots__ = ("workload",)
    WORKLOAD_FIELD_NUMBER: _ClassVar[int]
    workload: WorkloadRef
    def __init__(self, workload: _Optional[_Union[WorkloadRef, _Mapping]] = ...) -> None: ...

class ExplainResponse(_message.Message):
    __slots__ = ("explanations",)
    EXPLANATIONS_FIELD_NUMBER: _ClassVar[int]
    explanations: _containers.RepeatedCompositeFieldContainer[Explanation]
    def __init__(self, explanations: _Optional[_Iterable[_Union[Explanation, _Mapping]]] = ...) -> None: ...

class ListRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WarmPoolHint(_message.Message):
    __slots__ = ("workload", "replicas", "valid_seconds", "lead_time_seconds", "expected_demand", "demand_quantile", "quantile", "reason")
    WORKLOAD_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    VALID_SECONDS_FIELD_NUMBER: _ClassVar[int]
    LEAD_TIME_SECONDS_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_DEMAND_FIELD_NUMBER: _ClassVar[int]
    DEMAND_QUANTILE_FIELD_NUMBER: _ClassVar[int]
    QUANTILE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    workload: WorkloadRef
    replicas: int
    valid_seconds: float
    lead_time_seconds: float
    expected_demand: float
    demand_quantile: float
    quantile: float
    reason: str
    def __init__(self, workload: _Optional[_Union[WorkloadRef, _Mapping]] = ..., replicas: _Optional[int] = ..., valid_seconds: _Optional[float] = ..., lead_time_seconds: _Optional[float] = ..., expected_demand: _Optional[float] = ..., demand_quantile: _Optional[float] = ..., quantile: _Optional[float] = ..., reason: _Optional[str] = ...) -> None: ...

class WarmPoolRequest(_message.Message):
    __slots__ = ("workload",)
    WORKLOAD_FIELD_NUMBER: _ClassVar[int]
    workload: WorkloadRef
    def __init__(self, workload: _Optional[_Union[WorkloadRef, _Mapping]] = ...) -> None: ...
