"""The pages of the runs: live while a run is going, then the report; and closed without the password."""

from __future__ import annotations

import http.client
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn
from fastapi.testclient import TestClient

from pipeline import artifact
from pipeline.artifact import Building, Counts, Identity, Stage
from pipeline.progress import Progress
from pipeline.stages import ROAD
from pipeline.storage import Storage
from tests.local.runs import LONGEST, until
from web import authentication, report, serve
from web.page import template
from web.pages import live

RUN = "manual__2026-11-24T12:00:00+00:00"  # Airflow's own form of an id
NAME = artifact.run_name(RUN)
TIME = re.compile(r"[0-9.]+ s\b")  # how long a stage has been running


def begin(storage: Storage, name: str) -> Building:
    building = artifact.start(storage, NAME, Identity(Stage(name, 1), {}, 1, []))
    assert isinstance(building, Building)
    return building


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    """A run whose extract is finished, and whose pretraining is running."""
    storage = Storage(tmp_path / "root")
    begin(storage, "extract").publish([], Counts(in_=20, kept=12, dropped={"not_200": 8}))
    progress = Progress(storage, begin(storage, "pretrain").progress_folder, "pretrain", "step")
    for step in range(1, 11):
        progress(step, 40, loss=7.0 / step, note="<b>not shown</b>")
    progress.flush()
    return storage


def test_a_run_is_live_until_its_report_is_there(storage: Storage) -> None:
    client = TestClient(serve.application(storage.root))
    page = client.get(f"/runs/{RUN}")
    assert page.status_code == 200
    for text in ("20 in, 12 kept", "10 of 40 steps, loss 0.7", 'value="0.250"', "Pretraining, loss", "waiting"):
        assert text in page.text
    assert "not shown" not in page.text
    part, whole = (TIME.sub("", text) for text in (client.get(f"/runs/{RUN}/stages").text, page.text))
    assert part.strip().startswith("<table") and part.strip() in whole
    begin(storage, "pretrain").publish([])
    report.publish(storage, RUN)
    assert client.get(f"/runs/{RUN}/stages").status_code == 205
    whole = report.served(report.render(report.opened(storage, NAME)))
    assert client.get(f"/runs/{RUN}").text == whole != page.text


def test_a_run_that_goes_on_after_its_report_is_live_and_links_to_it(storage: Storage) -> None:
    client = TestClient(serve.application(storage.root))
    assert client.get(f"/runs/{RUN}/report").status_code == 404
    report.publish(storage, RUN)
    page, part = client.get(f"/runs/{RUN}").text, client.get(f"/runs/{RUN}/stages")
    link = f'href="/runs/{NAME}/report"'
    assert "10 of 40 steps" in page and link in page
    assert part.status_code == 200 and link in part.text
    assert client.get(f"/runs/{RUN}/report").text == report.served(report.render(report.opened(storage, NAME)))


def test_a_report_leads_to_all_runs_where_there_are_any(storage: Storage) -> None:
    published = report.publish(storage, RUN)
    link = '<a href="/">All runs</a>'
    assert link in TestClient(serve.application(storage.root)).get(f"/runs/{RUN}/report").text
    assert link not in storage.read(published.file(report.FILE)).decode(), "the file itself may lie anywhere"


def test_pages_have_an_icon(storage: Storage) -> None:
    client = TestClient(serve.application(storage.root))
    report.publish(storage, RUN)
    assert 'rel="icon" href="/static/favicon.svg"' in client.get("/").text
    assert client.get("/static/favicon.svg").headers["content-type"].startswith("image/svg+xml")
    assert 'rel="icon" href="data:image/svg+xml,%3Csvg' in client.get(f"/runs/{RUN}/report").text


def test_a_report_that_is_made_again_is_no_error(storage: Storage) -> None:
    client = TestClient(serve.application(storage.root))
    begin(storage, "pretrain").publish([])
    published = report.publish(storage, RUN)
    storage.remove(f"{published.folder}/{artifact.MANIFEST}")
    assert 'class="stages"' in client.get(f"/runs/{RUN}").text
    assert client.get(f"/runs/{RUN}/stages").status_code == 200
    assert client.get(f"/runs/{RUN}/report").status_code == 404


def attempt(storage: Storage, steps: range, loss: Callable[[int], float | None]) -> None:
    """An attempt of pretraining takes these steps."""
    pointer = artifact.pointer(storage, NAME, "pretrain")
    assert pointer is not None
    progress = Progress(storage, pointer.progress_folder, "pretrain", "step")
    for step in steps:
        progress(step, 2000, loss=loss(step))
    progress.flush()


def curve(storage: Storage) -> list[tuple[float, float]]:
    pointer = artifact.pointer(storage, NAME, "pretrain")
    assert pointer is not None
    return live.losses(storage, pointer)


def test_a_skipped_step_has_no_loss(storage: Storage) -> None:
    attempt(storage, range(11, 14), lambda step: None if step == 12 else 0.5)
    assert TestClient(serve.application(storage.root)).get(f"/runs/{RUN}").status_code == 200
    assert [step for step, _ in curve(storage)] == [*range(1, 12), 13]


def test_after_a_resume_the_curve_goes_on_where_the_checkpoint_was(storage: Storage) -> None:
    attempt(storage, range(6, 9), lambda step: 0.1)
    assert curve(storage) == [(float(step), 7.0 / step) for step in range(1, 6)] + [(6.0, 0.1), (7.0, 0.1), (8.0, 0.1)]


def test_a_poll_reads_only_what_can_have_changed(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    attempt(storage, range(11, 1200), lambda step: 0.5)
    assert [step for step, _ in curve(storage)] == list(range(1, 1200))
    read: list[str] = []
    monkeypatch.setattr(storage, "read", lambda name: read.append(name) or Storage.read(storage, name))
    assert len(curve(storage)) == 1199
    progress = [name for name in read if name.endswith(".jsonl")]
    assert len(progress) == 1 and progress[0].endswith("/00003.jsonl")
    assert template("live.html.j2") is template("live.html.j2")


def test_health_is_no_list_of_all_runs(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Storage, "names")
    assert TestClient(serve.application(storage.root)).get("/healthz").text == "ok"


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        ("{ok: true, status: 200, text: async () => 'new'}", "new||false"),
        ("{ok: true, status: 205}", "old||true"),
        ("{ok: false, status: 500, text: async () => 'error'}", "old|no answer since HH:MM:SS|false"),
        ("Promise.reject(new TypeError('refused'))", "old|no answer since HH:MM:SS|false"),
    ],
)
def test_a_page_without_an_answer_says_since_when(answer: str, shown: str) -> None:
    script = f"""
        const elements = {{stages: {{innerHTML: "old"}}, "no-answer": {{textContent: ""}}}};
        let reloaded = false, turns = 0;
        global.document = {{getElementById: (id) => elements[id]}};
        global.location = {{pathname: "/runs/one", reload: () => {{ reloaded = true; }}}};
        global.fetch = async () => ({answer});
        global.setTimeout = (call) => turns++ ? console.log(
            [elements.stages.innerHTML, elements["no-answer"].textContent, reloaded].join("|")) : call();
        {(Path(serve.__file__).parent / "static/live.js").read_text()}"""
    done = subprocess.run(["node", "-e", script], capture_output=True, text=True, timeout=60)
    assert re.sub(r"\d\d:\d\d:\d\d", "HH:MM:SS", done.stdout.strip()) == shown, done.stderr


def test_the_live_page_has_the_elements_that_its_script_looks_for(storage: Storage) -> None:
    page = TestClient(serve.application(storage.root)).get(f"/runs/{RUN}").text
    script = (Path(serve.__file__).parent / "static/live.js").read_text()
    for name in re.findall(r'getElementById\("([\w-]+)"\)', script):
        assert f'id="{name}"' in page


def test_an_artifact_that_another_run_makes_again_is_shown_as_missing(storage: Storage) -> None:
    pointer = artifact.pointer(storage, NAME, "extract")
    assert pointer is not None
    storage.remove(f"{pointer.folder}/{artifact.MANIFEST}")
    page = TestClient(serve.application(storage.root)).get(f"/runs/{RUN}")
    assert page.status_code == 200 and "missing at the moment" in page.text


def test_runs_are_listed_the_newest_first(storage: Storage) -> None:
    later = artifact.start(storage, "later", Identity(Stage("filter", 1), {}, 1, []))
    assert isinstance(later, Building)
    text = TestClient(serve.application(storage.root)).get("/").text
    assert text.index("/runs/later") < text.index(f"/runs/{NAME}")
    assert "Pretraining" in text and "Filter" in text


def test_a_run_that_nobody_began_waits(tmp_path: Path) -> None:
    client = TestClient(serve.application(str(tmp_path)))
    assert "No runs yet" in client.get("/").text
    assert client.get("/runs/nothing").text.count('class="waiting"') == len(ROAD)


@pytest.fixture
def address(storage: Storage) -> Iterator[tuple[str, int]]:
    """Address of a server; next to its root is a run that it must not show."""
    outside = Storage(Path(storage.root).parent / "outside")
    artifact.start(outside, "secret", Identity(Stage("extract", 1), {}, 1, []))
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        server = uvicorn.Server(uvicorn.Config(serve.application(storage.root), log_level="error"))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        yield listening.getsockname()
        server.should_exit = True
        thread.join()


def test_a_path_leads_nowhere_else(address: tuple[str, int], storage: Storage) -> None:
    """Paths are sent as they are: httpx would normalize the dots."""
    ways = ("..", "%2e%2e", "%252e%252e", "a/../../outside", "../../outside/runs/secret")
    ways += ("..%2f..%2foutside%2fruns%2fsecret", "..%252f..%252foutside%252fruns%252fsecret")
    ways += ("/etc/passwd", "%2fetc%2fpasswd", "..%5coutside", "a%00b", "%00", "..;/outside", ".", "%2e", "x" * 200)
    for path in [f"{start}{way}{end}" for way in ways for start in ("/", "/runs/") for end in ("", "/stages")]:
        connection = http.client.HTTPConnection(*address, timeout=LONGEST)
        connection.putrequest("GET", path, skip_accept_encoding=True)
        connection.endheaders()
        response = connection.getresponse()
        text = response.read().decode()
        connection.close()
        assert response.status in (200, 400, 404), (path, response.status)
        assert response.status != 200 or text.count('class="waiting"') == len(ROAD), path


def test_pages_run_no_script_but_ours_and_are_framed_by_airflow_alone(storage: Storage) -> None:
    policy = TestClient(serve.application(storage.root, framed_by="http://127.0.0.1:8080")).get("/").headers
    assert "script-src 'self'" in policy["Content-Security-Policy"]
    assert "frame-ancestors 'self' http://127.0.0.1:8080" in policy["Content-Security-Policy"]


@pytest.mark.parametrize("typed", ["http://127.0.0.1:8080", "http://localhost:8080"])
def test_airflow_on_this_machine_frames_pages_by_either_name(typed: str, storage: Storage) -> None:
    """A browser compares the name in its address bar, and one that the policy lacks gives a grey tab."""
    policy = TestClient(serve.application(storage.root, framed_by=typed)).get("/").headers["Content-Security-Policy"]
    assert policy.endswith("frame-ancestors 'self' http://127.0.0.1:8080 http://localhost:8080")
    assert serve.ancestors("https://airflow.example.org") == "https://airflow.example.org"


def test_the_password_opens(storage: Storage) -> None:
    client = TestClient(serve.application(storage.root, "open sesame"))
    assert client.get("/healthz").text == "ok"
    for path in ("/", f"/runs/{RUN}", f"/runs/{RUN}/stages", "/static/live.js"):
        assert client.get(path).status_code == 401
        assert client.get(path, auth=("anybody", "open")).status_code == 401
        assert client.get(path, headers={"Authorization": "Basic !"}).status_code == 401
        assert client.get(path, auth=("anybody", "open sesame")).status_code == 200


def test_an_address_that_guesses_is_refused_for_a_while(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr(authentication.time, "monotonic", lambda: now)
    app = serve.application(storage.root, "open sesame")
    client, other = TestClient(app), TestClient(app, client=("10.0.0.9", 1))
    for _ in range(100):
        assert client.get("/").status_code == 401  # a request without a password is no guess
    for _ in range(authentication.MAX_FAILURES):
        assert client.get("/", auth=("anybody", "guess")).status_code == 401
    refused = client.get("/", auth=("anybody", "open sesame"))
    assert refused.status_code == 429 and refused.headers["Retry-After"] == "60"
    assert other.get("/", auth=("anybody", "open sesame")).status_code == 200
    assert client.get("/healthz").status_code == 200
    now += authentication.FAILURE_SECONDS + 1
    assert client.get("/", auth=("anybody", "open sesame")).status_code == 200


def test_passwords_are_compared_in_constant_time(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return False

    monkeypatch.setattr(authentication.hmac, "compare_digest", compare)
    client = TestClient(serve.application(storage.root, "open sesame"))
    assert client.get("/", auth=("anybody", "open sesame")).status_code == 401
    assert compared == [(b"open sesame", b"open sesame")]


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("127.0.0.2", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("web", False)],
)
def test_which_addresses_are_this_machine_s(host: str, local: bool) -> None:
    assert serve.is_loopback(host) is local


def test_the_command_serves_this_machine_and_refuses_others_without_password(storage: Storage) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, "-m", "web.serve", "--root", storage.root, "--port", port]
    refused = subprocess.run([*command, "--host", "0.0.0.0"], capture_output=True, text=True)
    assert refused.returncode and authentication.PASSWORD in refused.stderr
    process = subprocess.Popen(command)
    try:
        client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=LONGEST)

        def healthy() -> bool:
            assert process.poll() is None
            try:
                return client.get("/healthz").text == "ok"
            except httpx.TransportError:
                return False

        until(healthy, 0.1)
        assert client.get("/").status_code == 200
        assert client.get("/", headers={"Host": "evil.example"}).status_code == 400
    finally:
        process.terminate()
        process.wait()
