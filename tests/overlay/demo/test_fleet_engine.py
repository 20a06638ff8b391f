"""What carries the nodes of a lab."""

import pytest

from overlay.demo.box import LabError
from overlay.demo.fleet import default_carriers


def test_labs_take_the_engine_that_is_asked_for() -> None:
    assert default_carriers({}) == ("auto",)
    assert default_carriers({"HOPFARE_LAB_ENGINE": "python"}) == ("qh3",)
    assert default_carriers({"HOPFARE_LAB_ENGINE": "threads"}) == ("threads",)
    assert default_carriers({"HOPFARE_LAB_ENGINE": "mixed"}) == ("native", "qh3")
    with pytest.raises(LabError, match="HOPFARE_LAB_ENGINE"):
        default_carriers({"HOPFARE_LAB_ENGINE": "rust"})
