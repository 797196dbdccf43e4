"""RFC 6455 by the Autobahn cases, the quick ones (docs/reference/conformance.md); all by `make conformance`."""

import pytest

from conformance import GOOD, run


@pytest.mark.timeout(90)
def test_the_quick_cases_all_pass() -> None:
    verdicts = run(quick=True)
    assert len(verdicts) == 247
    assert {number: verdict for number, verdict in verdicts.items() if verdict not in GOOD} == {}
    assert {number for number, verdict in verdicts.items() if verdict == "NON-STRICT"} <= {"6.4.3", "6.4.4"}
