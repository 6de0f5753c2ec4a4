from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.builders import T0, attempt
from wasmlet.pods.record import Ending, PodRecord


def test_a_record_survives_the_disk() -> None:
    record = PodRecord(T0, ending=Ending.DEADLINE_EXCEEDED, kill_at=T0 + timedelta(seconds=30))
    record.conditions["Ready"] = ("True", T0)
    state = record.container("web")
    state.begin(attempt(1, finished=T0 + timedelta(microseconds=5)))
    state.restart_backoff.tried(T0, T0)
    state.begin(attempt(id="c2"))
    state.wait("ImagePullBackOff", 'Back-off pulling image "ü"')
    state.start_failed_at = T0
    assert PodRecord.load(record.dump()) == record


@given(st.integers(min_value=0))
def test_a_part_of_a_record_is_refused(cut: int) -> None:
    record = PodRecord(T0)
    record.container("web").begin(attempt(0))
    data = record.dump()
    with pytest.raises(ValueError, match=r".+"):
        PodRecord.load(data[: cut % len(data)])


@given(st.recursive(st.none() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)))
def test_other_json_is_refused(value: object) -> None:
    import json

    with pytest.raises(ValueError, match=r".+"):
        PodRecord.load(json.dumps(value).encode())
