import pytest


@pytest.fixture(autouse=True)
def alone(no_credentials):
    """Every test here."""
