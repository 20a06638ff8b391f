"""The import rules: who may import whom, and what pure code never touches.

Pure code is every module of the four packages outside an `io/` folder, `overlay/node/`, `overlay/cli/` and
`overlay/demo/`. An exception to a rule is one line in an allow-list below, with its reason.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("overlay", "circuits", "exit", "payments")
FORBIDDEN_PACKAGES = {
    "circuits": {"overlay", "exit", "payments"},
    "exit": {"overlay", "circuits", "payments"},
    "payments": {"overlay", "circuits", "exit"},
    "overlay": set(),
}
DRIVERS = ("overlay.node", "overlay.cli", "overlay.demo")
IMPURE = {
    "asyncio", "click", "ctypes", "fcntl", "logging", "multiprocessing", "os", "random", "secrets", "select",
    "selectors", "shutil", "signal", "socket", "ssl", "structlog", "subprocess", "tempfile", "threading",
    "time", "trio", "pytun", "httpx", "rich", "nacl.utils", "uuid",
}  # fmt: skip

# (module, what it imports): reason
ALLOWED = {
    ("overlay.identity", "nacl.utils"): "a new identity takes the system's randomness unless given another",
    (
        "overlay.identity",
        "overlay.io",
    ): "load and save carry the permission checks, so that none is forgotten",
    ("overlay.logs", "structlog"): "sets up the logging of the processes; only drivers call it",
    ("overlay.links.backends.aioquic_backend", "logging"): "switches the library's own logger off",
    ("overlay.links.backends.aioquic_backend", "ssl"): "the constant CERT_NONE; no sockets",
    ("overlay.links.backends.qh3_backend", "logging"): "switches the library's own logger off",
    ("overlay.links.backends.qh3_backend", "ssl"): "the constant CERT_NONE; no sockets",
}


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_name(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}


def is_pure(module):
    return "io" not in module.split(".") and not module.startswith(DRIVERS)


def find_imports(tree):
    """Return the dotted names that a module imports when it runs, those of functions too."""
    found = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            found += [name for branch in node.orelse for name in find_imports(branch)]
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            found += find_imports(node)
    return found


def is_under(name, prefix):
    return name == prefix or name.startswith(prefix + ".")


def offence(module, imported):
    """Return what of `imported` a pure `module` may not import, or None."""
    for name in IMPURE:
        if is_under(imported, name):
            return name
    parts = imported.split(".")
    if parts[0] in PACKAGES and "io" in parts:
        return ".".join(parts[: parts.index("io") + 1])
    return next((driver for driver in DRIVERS if is_under(imported, driver)), None)


@pytest.mark.parametrize("module", SOURCES)
def test_packages_keep_apart(module):
    imports = find_imports(ast.parse(SOURCES[module].read_text()))
    package = module.split(".")[0]
    assert [name for name in imports if name.split(".")[0] in FORBIDDEN_PACKAGES[package]] == []
    assert "exit" not in imports, "write `from exit.x import y`: `import exit` hides a builtin"


@pytest.mark.parametrize("module", [module for module in SOURCES if is_pure(module)])
def test_pure_code_touches_no_clock_file_socket_or_system_randomness(module):
    tree = ast.parse(SOURCES[module].read_text())
    found = {offence(module, name) for name in find_imports(tree)} - {None}
    assert {name for name in found if (module, name) not in ALLOWED} == set()
    opened = [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("open", "print", "input")
    ]
    assert opened == [], "lines that open files or talk to the terminal"


def test_every_exception_is_still_needed():
    used = {
        (module, offence(module, name))
        for module, path in SOURCES.items()
        if is_pure(module)
        for name in find_imports(ast.parse(path.read_text()))
    }
    assert set(ALLOWED) <= used


@pytest.mark.parametrize("module", SOURCES)
def test_every_module_says_what_it_is(module):
    tree = ast.parse(SOURCES[module].read_text())
    assert ast.get_docstring(tree)
    if SOURCES[module].name == "__init__.py":
        assert len(tree.body) == 1, "an __init__.py is a docstring and nothing else"


@pytest.mark.parametrize("package", PACKAGES)
def test_every_folder_is_a_package(package):
    folders = {path.parent for path in (ROOT / package).rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


def test_no_unfinished_business():
    marker = re.compile(r"\b(TODO|FIXME|XXX)\b")
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for package in (*PACKAGES, "tests", "bench")
        for path in (ROOT / package).rglob("*.py")
        if path != Path(__file__)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if marker.search(line)
    ]
    assert found == []
