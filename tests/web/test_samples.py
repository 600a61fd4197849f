"""What the charts remember, and forget."""

from __future__ import annotations

from s3ws_fs.web.samples import (
    MOUNTS_MAX,
    SAMPLES_MAX,
    SPARK_MAX,
    Sample,
    Samples,
    sample_of,
)


def test_rates_are_of_neighbours() -> None:
    samples = Samples()
    for time_s, sent in ((0.0, 100), (2.0, 300), (4.0, None), (6.0, 10), (8.0, 5), (10.0, 5)):
        samples.note("a", Sample(time_s, time_s / 2, sent))
    assert samples.chart("a") == {
        "time_s": [0.0, 2.0, 4.0, 6.0, 8.0, 10.0],
        "age_s": [0.0, 1.0, 2.0, 3.0, 4.0, 5.0],
        "rate": [None, 100.0, None, None, None, 0.0],
    }


def test_samples_keep_their_distance_and_order() -> None:
    samples = Samples()
    for time_s in (5.0, 5.5, 4.0, 6.0):
        samples.note("a", Sample(time_s, 0, None))
    assert samples.chart("a")["time_s"] == [5.0, 6.0]


def test_there_is_a_limit_to_both() -> None:
    samples = Samples()
    for number in range(SAMPLES_MAX + 5):
        samples.note("a", Sample(number * 2.0, float(number), None))
    assert len(samples.chart("a")["time_s"]) == SAMPLES_MAX
    assert samples.spark("a") == [float(n) for n in range(SAMPLES_MAX + 5)][-SPARK_MAX:]
    for number in range(MOUNTS_MAX):
        samples.note(f"b{number}", Sample(0, 0, None))
    assert samples.chart("a")["time_s"] == [] and samples.chart("b0")["time_s"] == [0]


def test_a_status_of_any_shape_is_a_sample() -> None:
    assert sample_of({}, 1.0) == Sample(1.0, 0.0, None)
    assert sample_of({"dirty": {"oldest_age_s": 2}, "counts": 7}, 1.0) == Sample(1.0, 2.0, None)
    document = {"dirty": {"oldest_age_s": None}, "counts": {"store": {"sent_bytes": 9}}}
    assert sample_of(document, 1.0) == Sample(1.0, 0.0, 9)
