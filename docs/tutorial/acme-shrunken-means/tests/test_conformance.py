"""Whether the plugin behaves as medbench relies on: one test for each check."""

from medbench import conformance


@conformance.parametrize("acme/shrunken-means")
def test_conformance(check):
    """Passes, skips with a reason, or fails with what to mend."""
    check()
