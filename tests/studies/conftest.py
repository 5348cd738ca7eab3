import pytest
from studies import tiny


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """See `tiny.make`."""
    return tiny.make(tmp_path_factory.mktemp("world"))
