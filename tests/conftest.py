"""What every test has: shapes and types of all functions are checked while they run, and properties are tried the same way twice."""

from hypothesis import settings
from jaxtyping import install_import_hook

install_import_hook("unitscope", "shapes.checked")
settings.register_profile("unitscope", deadline=None, derandomize=True)
settings.load_profile("unitscope")
