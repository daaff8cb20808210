"""What every test has: shapes and types of all functions are checked while they run, and properties are tried the same way twice."""

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

settings.register_profile("unitscope", deadline=None, derandomize=True)
settings.load_profile("unitscope")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--unchecked", action="store_true", help="don't check shapes and types, which takes half of the time")
    parser.addoption(
        "--only-wrong-types", action="store_true", help="only tests that give what annotations forbid; with --unchecked"
    )


def pytest_configure(config: pytest.Config) -> None:
    if not config.getoption("--unchecked"):
        install_import_hook("unitscope", "shapes.checked")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--only-wrong-types"):
        chosen = [item for item in items if "wrong_types" in getattr(item, "fixturenames", ())]
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = chosen


@pytest.fixture
def wrong_types(request: pytest.FixtureRequest) -> None:
    """For tests that give what annotations forbid: where types are checked, the package's own checks would never see it."""
    if not request.config.getoption("--unchecked"):
        pytest.skip("types are checked before the package sees them")
