"""Errors say four things, carry an exit code and survive pickle."""

from __future__ import annotations

import pickle

import pytest

from cluster.errors import MantaError, RequestError, ResourceError, all_error_classes


@pytest.mark.parametrize("cls", all_error_classes(), ids=lambda cls: cls.__name__)
def test_every_class_survives_pickle(cls: type[MantaError]) -> None:
    error = cls("Cannot read x", found="it is 3", rule="must be 4", remedy="Make it 4.", details={"path": "x"})
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is cls
    assert again.to_dict() == error.to_dict()
    assert str(again) == "Cannot read x: it is 3; must be 4. Make it 4."


def test_codes_are_unique_and_exit_codes_follow_the_tree() -> None:
    classes = all_error_classes()
    assert len({cls.code for cls in classes}) == len(classes)
    for cls in classes:
        expected = 2 if issubclass(cls, RequestError) else 3 if issubclass(cls, ResourceError) else 1
        assert cls.exit_code == expected
