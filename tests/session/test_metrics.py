"""Metrics, read as a scraper reads them."""

import re
import subprocess
import time
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kvmsr.errors import UsageError
from kvmsr.session.metrics import parse_address
from tests.command import call, words_of
from tests.conftest import kvm_missing, need

POLICY = "[[rule]]\nmsr = 0x35\nread = { value = 0x1200 }\n"


@pytest.fixture(params=["kvm", "soft"])
def backend(request):
    if request.param == "soft":
        return ["--backend", "soft"]
    if kvm_missing():
        pytest.skip(f"needs /dev/kvm: {kvm_missing()}")
    return ["--backend", "kvm"]


@pytest.fixture
def image(tmp_path, loop):
    """A function that returns the image of a guest that reads MSR 0x35 so many times."""
    (tmp_path / "policy.toml").write_text(POLICY)
    return loop


def scraped(url):
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    families = text_string_to_metric_families(text)
    return text, {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in families
        for sample in family.samples
    }


@pytest.fixture
def running(tmp_path, image, backend, start):
    """The URL of a run's metrics."""
    words = words_of(
        "run", image(1 << 30), "--mode", "16", "--policy", tmp_path / "policy.toml",
        "--metrics", "0", *backend,
    )  # fmt: skip
    process = start(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    line = process.stderr.readline()
    return re.fullmatch(r"kvmsr: metrics on (http://127\.0\.0\.1:\d+/metrics)\n", line)[1]


def test_what_a_scraper_gets(running, backend):
    counts = []
    for _ in range(2):
        time.sleep(0.5)
        _, found = scraped(running)
        reads = found["kvmsr_accesses_total", "0x35", "MSR_CORE_THREAD_COUNT", "read", "value"]
        counts.append(reads)
        timed = found["kvmsr_access_latency_seconds_count",]
        assert abs(timed - reads) < 100_000 * 0.5
        assert found["kvmsr_access_latency_seconds_bucket", "+Inf"] == timed
        assert 0 < found["kvmsr_access_latency_seconds_sum",] / timed < 0.001
    assert counts[1] > counts[0] > 0
    assert found["kvmsr_vcpus",] == found["kvmsr_vms",] == 1
    assert found["kvmsr_trace_dropped_events_total",] == 0
    assert found["kvmsr_handler_failures_total",] == 0
    [info] = [labels for name, *labels in found if name == "kvmsr_run_info"]
    assert backend[1] in info


def test_promtool_finds_nothing_wrong(running):
    text, _ = scraped(running)
    tool = need("promtool")
    done = subprocess.run(
        [tool, "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("text", ["", "x", "127.0.0.1:", "127.0.0.1:70000", "1:2:x", ":-1", "٣"])
def test_what_is_no_address(text, image):
    done = call("run", image(1), "--mode", "16", "--backend", "soft", "--metrics", text)
    assert done.returncode == 2
    assert done.stderr.startswith(f"kvmsr: --metrics {text!r}: write HOST:PORT")
    assert len(done.stderr.splitlines()) == 1


def test_addresses():
    assert parse_address("9100") == ("127.0.0.1", 9100)
    assert parse_address(":9100") == ("127.0.0.1", 9100)
    assert parse_address("0.0.0.0:0") == ("0.0.0.0", 0)
    assert parse_address("[::1]:9100") == ("::1", 9100)
    with pytest.raises(UsageError):
        parse_address("9100/metrics")


def test_an_address_that_is_taken(running, image):
    port = running.split(":")[2].split("/")[0]
    words = ["run", image(1), "--mode", "16", "--backend", "soft", "--metrics", port]
    done = call(*words)
    assert done.returncode == 4
    assert done.stderr == (
        f"kvmsr: --metrics 127.0.0.1:{port}: cannot listen there: Address already in use\n"
    )
