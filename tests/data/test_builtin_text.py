"""Text that needs no download is there, is divided, and says what it has not."""

import pytest

from jaxforget.data.builtin_text import MOST, TEXTS, documents
from jaxforget.data.sources import DataSource, load_records
from jaxforget.engine.errors import UserError


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_every_text_is_divided_into_two_that_share_nothing(name):
    train, test = documents(name, "train"), documents(name, "test")
    assert train and test and not set(train) & set(test)
    assert 50_000 < sum(map(len, train + test)) <= MOST
    records = load_records(DataSource(f"builtin:{name}", split="test"))
    assert [record.answer for record in records] == test
    assert all(record.prompt == "" for record in records)


def test_what_is_not_there_is_named():
    with pytest.raises(UserError, match="no such text.*python_source"):
        documents("python_sources", "train")
    with pytest.raises(UserError, match="Allowed: train, test"):
        load_records(DataSource("builtin:python_source", split="dev"))
