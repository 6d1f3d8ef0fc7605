"""Scores are of the experiment that the tests of reports decode."""

from tests.report.conftest import unscored

__all__ = ["unscored"]
