"""What pyproject.toml cannot say: a package that is built where cargo is has the native engine in it.

Without cargo, or if the crate cannot be built, the package installs without it and nodes use the Python
engine. A checkout installed in place (`scripts/setup`) gets it from `scripts/build-native`, which builds it
again when it changes.
"""

import shutil
import sys

from setuptools import setup
from setuptools_rust import Binding, RustExtension, Strip

native = RustExtension(
    "hopfare_dataplane",
    "dataplane/engine/Cargo.toml",
    args=["--locked"],
    binding=Binding.PyO3,
    debug=False,
    strip=Strip.Debug,
    optional=True,
    py_limited_api=True,
)
wanted = "editable_wheel" not in sys.argv and shutil.which("cargo") is not None
setup(
    rust_extensions=[native] if wanted else [],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if wanted else {},
)
