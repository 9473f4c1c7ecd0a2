"""How many blends the worker half has at a time."""

from kvblend.vllm_connector.scheduler.admission import Admission


def test_two_whatever_they_cost_and_more_while_they_are_small() -> None:
    admission = Admission(100)
    for name, cost in (("first", 5000), ("second", 5000)):
        assert admission.admits(cost)
        admission.begin(name, cost)
    assert not admission.admits(1)
    admission.end("first")
    assert admission.admits(5000), "one more, however large"
    admission.begin("third", 30)
    admission.end("second")
    admission.begin("fourth", 100)
    assert admission.admits(70) and not admission.admits(71)
    admission.end("never begun")
    assert len(admission) == 2
