"""The server: its answers, its codes, and what it does under load."""

import asyncio
import collections
import concurrent.futures
import contextlib
import http.client
import io
import os
import pathlib
import re
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import zlib

import httpx
import numpy as np
import pytest
from PIL import Image, features
from small_server import BOXES, FOUND, NAMES, SCORE, SIZE, Watched, served, six_boxes, wait_until

from multigrid.data.images import Letterbox, read_image
from multigrid.errors import InputError
from multigrid.pictures import class_colour
from multigrid.prediction.predictor import Predictor
from multigrid.serving import server
from multigrid.serving.app import create_app
from multigrid.serving.libraries import check_libraries
from multigrid.serving.uploads import opened

CHECKOUT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def predictor():
    return Watched(six_boxes(), NAMES, SIZE, batch_size=4)


@pytest.fixture
def watched(predictor):
    """The one predictor, compiled once, as if nobody had used it yet."""
    predictor.open.set()
    predictor.entered.clear()
    predictor.sizes.clear()
    return predictor


@pytest.fixture(scope="module")
def client(predictor):
    app = create_app(predictor, name="six boxes", max_upload_bytes=40_000, max_pixels=300_000, read_seconds=0.5)
    with served(app) as url, httpx.Client(base_url=url) as made:
        yield made


def image(width, height, format="PNG", **options) -> bytes:
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 3, : width // 2] = (200, 40, 90)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format, **options)
    return file.getvalue()


def forged_png(width, height) -> bytes:
    """The head of a PNG of any size, and no pixels."""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", b"")]
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def form(data, name="file"):
    return {"files": {name: ("cell.png", data, "image/png")}}


def raw(data, kind="image/png"):
    return {"content": data, "headers": {"Content-Type": kind}}


GOOD = image(96, 64)
TORN = image(300, 200, "JPEG", quality=95)[:-400]
# The same bytes as a stream, whose length no header tells.
LONG = b"x" * 60_000


@pytest.mark.parametrize("asked", [form, raw, lambda data: raw(data, "application/octet-stream")])
def test_an_image_comes_back_as_boxes_in_its_own_pixels(client, asked):
    answer = client.post("/predict", **asked(image(192, 128)))
    assert answer.status_code == 200
    found = answer.json()
    assert found["image"] == {"width": 192, "height": 128} and found["milliseconds"] > 0
    assert {(one["class"], one["class_id"]) for one in found["detections"]} == {(NAMES[FOUND], FOUND)}
    assert [one["score"] for one in found["detections"]] == pytest.approx([SCORE] * 6, abs=1e-3)
    # 192 × 128 is twice the input
    expected = sorted([2 * side for side in box] for box in BOXES)
    assert sorted(one["box_xyxy"] for one in found["detections"]) == pytest.approx(np.array(expected), abs=0.1)


@pytest.mark.parametrize("size", [(500, 301), (33, 70), (1_000, 60), (96, 64)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_the_network_sees_of_an_upload_what_it_sees_of_a_file(tmp_path, size, kind):
    path = tmp_path / "noise"
    pixels = np.random.default_rng(5).integers(0, 255, (*size, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.fromarray(pixels).save(path, kind, exif=exif)
    with open(path, "rb") as file:
        reduced = opened(file, [SIZE], 1_000_000)
    upright = size[::-1]
    assert reduced.size == upright
    letterbox = Letterbox.fit(upright, SIZE)
    expected = letterbox.apply_image(read_image(path, at_least=letterbox.resized_size))
    found = Letterbox.fit(reduced.pixels.shape[:2], SIZE).apply_image(reduced.pixels)
    np.testing.assert_array_equal(found, expected)
    assert reduced.pixels.size <= max(np.prod(letterbox.resized_size), np.prod(size)) * 3


def test_a_turned_photograph_has_its_boxes_as_it_is_seen(client, watched, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.jpg"
    path.write_bytes(image(150, 70, "JPEG", exif=exif))
    found = client.post("/predict", **form(path.read_bytes())).json()
    assert found["image"] == {"width": 70, "height": 150}
    expected = next(Predictor.stream(watched, str(path)))
    assert [one["box_xyxy"] for one in found["detections"]] == pytest.approx(expected.boxes, abs=0.02)


@pytest.mark.parametrize(
    ("request_", "code", "words"),
    [
        (form(TORN), 422, "truncated"),
        (form(b""), 422, "an empty file"),
        (raw(b""), 422, "an empty file"),
        (form(b"dear diary"), 422, "no known image format"),
        (form(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), 422, "no known image format"),
        (form(LONG), 413, "at most 40000 bytes"),
        (raw(LONG), 413, "at most 40000 bytes"),
        (raw(iter([LONG[:30_000], LONG[30_000:]])), 413, "at most 40000 bytes"),
        (form(b"x" * 41_000), 413, "at most 40000 bytes"),  # less than a form's body may have, too much for its file
        (form(forged_png(1_000, 301)), 413, "at most 300000 pixels, received 1000 × 301"),
        (form(forged_png(60_000, 60_000)), 413, "decompression bomb"),
        (raw(GOOD, "text/plain"), 415, "received text/plain"),
        (raw(GOOD, ""), 415, "received none"),
        (form(GOOD, "picture"), 400, "the field `file`"),
        ({"data": {"file": "words"}, "files": {"x": b""}}, 400, "the field `file`"),
        ({"files": [("file", GOOD), ("file", GOOD)]}, 400, "Too many files"),
        (raw(b"--x\r\nnothing", "multipart/form-data; boundary=x"), 400, "the field `file`"),
        (raw(b"x", "multipart/form-data"), 400, "boundary"),
        ({**form(GOOD), "params": {"threshold": "1.5"}}, 422, "threshold"),
        ({**form(GOOD), "params": {"threshold": "nan"}}, 422, "threshold"),
        ({**form(GOOD), "params": {"format": "gif"}}, 422, "format"),
        ({**form(GOOD), "params": {"treshold": "0.9"}}, 422, "expected threshold or format, received treshold"),
        ({**form(GOOD), "params": {"treshold": "0.9", "format": "gif"}}, 422, "received gif; query: expected"),
    ],
)
def test_what_cannot_be_answered_has_a_code_and_a_reason(client, request_, code, words):
    answer = client.post("/predict", **request_)
    assert answer.status_code == code
    assert list(answer.json()) == ["detail"] and words in answer.json()["detail"]
    assert client.post("/predict", **form(GOOD)).status_code == 200


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_a_damaged_avif_is_named_too(client):
    # Without its table of items; Pillow's reader raises a RuntimeError.
    answer = client.post("/predict", **form(image(61, 40, "AVIF").replace(b"iloc", b"xxxx")))
    assert answer.status_code == 422 and "damaged" in answer.json()["detail"]


@pytest.mark.parametrize(
    "sent",
    [
        b"Content-Length: 40001\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\nEA60\r\n" + LONG + b"\r\n",  # EA60 is 60,000; no chunk says that it was all
    ],
)
def test_an_upload_that_is_too_much_is_refused_before_its_end(client, sent):
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=5) as connection:
        connection.sendall(head + sent)
        assert connection.recv(1_000).startswith(b"HTTP/1.1 413 ")


def test_other_paths_and_methods_are_refused_in_json(client):
    assert (client.get("/nothing").status_code, client.get("/predict").status_code) == (404, 405)
    assert client.get("/nothing").json() == {"detail": "Not Found"}


def test_a_threshold_raises_the_least_score_and_never_lowers_it(client):
    def count(threshold):
        return len(client.post("/predict", params={"threshold": threshold}, **form(GOOD)).json()["detections"])

    assert [count(0), count(SCORE - 0.01), count(SCORE + 0.01)] == [6, 6, 0]


def test_a_picture_comes_back_with_its_boxes(client):
    answer = client.post("/predict", params={"format": "image"}, **form(image(600, 400)))
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/jpeg")
    pixels = np.asarray(Image.open(io.BytesIO(answer.content)).convert("RGB")).astype(int)
    assert pixels.shape == (400, 600, 3)
    # 600 is 6.25 times the input: the middle box of the lower row is (175, 212.5, 425, 387.5). Its left edge is drawn
    # two pixels wide, its middle is black.
    distances = np.abs(pixels[300, [175, 300]] - class_colour(FOUND)).max(axis=-1)
    assert distances[0] < 100 and distances[1] > 150


def test_health_tells_what_the_page_needs(client):
    facts = client.get("/health").json()
    assert (facts["status"], facts["model"], facts["classes"]) == ("ok", "six boxes", list(NAMES))
    assert facts["colours"][0] == "#ff4040" and facts["max_upload_bytes"] == 40_000


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, 200),
        ({"Host": "127.0.0.1", "Origin": "http://127.0.0.1"}, 200),
        ({"Host": "localhost:8000", "Origin": "http://localhost:8000"}, 200),
        ({"Host": "[::1]:8000"}, 200),
        ({"Origin": "https://elsewhere.example"}, 403),
        ({"Origin": "http://127.0.0.1:81"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "elsewhere.example", "Origin": "http://elsewhere.example"}, 403),
        ({"Host": "127.0.0.1.elsewhere.example"}, 403),
        ({"Host": "["}, 403),
    ],
)
def test_a_page_of_another_site_gets_nothing(client, headers, code):
    answer = client.post("/predict", **form(GOOD), headers=headers)
    assert answer.status_code == code
    assert "access-control-allow-origin" not in answer.headers
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_any_name_is_allowed_where_that_is_asked_for(watched):
    with served(create_app(watched, allowed_hosts=["*"])) as url:
        for origin, code in (("http://lab.example", 200), ("http://elsewhere.example", 403)):
            assert httpx.get(url, headers={"Host": "lab.example", "Origin": origin}).status_code == code


def test_an_upload_that_stops_is_given_up(client):
    def stalling():
        yield GOOD[:20]
        time.sleep(1.0)  # the server waits half of it
        yield GOOD[20:]

    assert client.post("/predict", **raw(stalling())).status_code == 408


@pytest.mark.parametrize("sent", [b"", b"GET /health HTTP/1.1\r\nHost:"])
@pytest.mark.parametrize("answered_before", [False, True])
def test_a_connection_whose_request_does_not_come_is_closed(client, sent, answered_before):
    if answered_before and not sent:
        pytest.skip("kept open for the next request")
    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=20) as connection:
        if answered_before:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = http.client.HTTPResponse(connection)  # head and body may come apart
            answer.begin()
            assert answer.status == 200 and answer.read()
        start = time.monotonic()
        connection.sendall(sent)
        for _ in range(4):  # more of the head every 0.2 s; the server waits 0.5 s
            time.sleep(0.2 if sent else 0)
            with contextlib.suppress(OSError):
                connection.sendall(sent and b"x")
        assert connection.recv(100) == b""
        assert time.monotonic() - start > 0.4


def test_a_request_that_takes_longer_than_its_head_may_is_answered(watched):
    with served(create_app(watched, read_seconds=0.3)) as url, concurrent.futures.ThreadPoolExecutor(1) as pool:
        watched.hold()
        with httpx.Client(base_url=url) as made:
            asked = pool.submit(made.post, "/predict", **form(GOOD), timeout=20)
            assert watched.entered.wait(20)
            time.sleep(0.6)
            watched.open.set()
            assert asked.result().status_code == 200
            time.sleep(0.6)  # between two requests it may be silent for longer
            assert made.post("/predict", **form(GOOD)).status_code == 200


def test_metrics_count_requests_images_and_detections(watched):
    with served(create_app(watched)) as url, httpx.Client(base_url=url) as made:
        codes = [made.post("/predict", **form(data)).status_code for data in (GOOD, GOOD, TORN)]
        assert codes == [200, 200, 422] and made.get("/made-up").status_code == 404
        lines = dict(line.rsplit(" ", 1) for line in made.get("/metrics").text.splitlines() if line[0] != "#")
    assert lines['multigrid_requests_total{code="200",path="/predict"}'] == "2.0"
    assert lines['multigrid_requests_total{code="422",path="/predict"}'] == "1.0"
    assert lines['multigrid_requests_total{code="404",path="other"}'] == "1.0"
    assert lines["multigrid_images_total"] == lines["multigrid_predict_seconds_count"] == "2.0"
    assert lines[f'multigrid_detections_total{{class="{NAMES[FOUND]}"}}'] == "12.0"
    assert lines["multigrid_queue_length"] == lines["multigrid_in_work"] == "0.0"


def test_nothing_is_answered_before_the_network_is_compiled(watched):
    watched.hold()
    with served(create_app(watched), ready=False) as url:
        health, asked = httpx.get(f"{url}/health"), httpx.post(f"{url}/predict", **form(GOOD))
        assert (health.status_code, health.json()["status"]) == (503, "warming up")
        assert asked.status_code == 503 and int(asked.headers["retry-after"]) > 0
        watched.open.set()
        wait_until(lambda: httpx.get(f"{url}/health").status_code == 200)
        assert httpx.post(f"{url}/predict", **form(GOOD)).status_code == 200
    # Sizes 1 and 4, each twice, and then the image alone or in a batch that is filled up.
    assert watched.sizes[:4] == [1, 1, 4, 4] and set(watched.sizes) == {1, 4}


def test_what_keeps_the_network_from_being_compiled_ends_the_server(watched, monkeypatch):
    def fail(images):
        raise MemoryError("no room")

    monkeypatch.setattr(watched.model, "predict_on_batch", fail)
    with server.bind("127.0.0.1", 0) as bound, pytest.raises(MemoryError, match="no room"):
        server.serve(create_app(watched), bound, lambda: pytest.fail("ready"))


def test_a_network_that_fails_once_costs_one_answer(watched, monkeypatch):
    with served(create_app(watched)) as url:
        with monkeypatch.context() as patch:
            patch.setattr(watched.model, "predict_on_batch", lambda images: 1 / 0)
            answer = httpx.post(f"{url}/predict", **form(GOOD))
            assert (answer.status_code, answer.json()) == (500, {"detail": "the server failed: ZeroDivisionError"})
        assert httpx.post(f"{url}/predict", **form(GOOD)).status_code == 200


def test_who_finds_the_queue_full_is_sent_away_and_who_waits_is_answered_in_batches(watched):
    app = create_app(watched, max_queue=6)
    with served(app) as url, concurrent.futures.ThreadPoolExecutor(6) as pool:
        watched.sizes.clear()
        watched.hold()
        waiting = [pool.submit(httpx.post, f"{url}/predict", **form(GOOD), timeout=20)]
        assert watched.entered.wait(20)
        waiting += [pool.submit(httpx.post, f"{url}/predict", **form(GOOD), timeout=20) for _ in range(5)]
        wait_until(lambda: "multigrid_queue_length 5.0" in httpx.get(f"{url}/metrics").text)
        refused = httpx.post(f"{url}/predict", **form(GOOD))
        assert refused.status_code == 503 and "6 images" in refused.json()["detail"]
        assert int(refused.headers["retry-after"]) > 0
        watched.open.set()
        assert [one.result().status_code for one in waiting] == [200] * 6
        assert httpx.post(f"{url}/predict", **form(GOOD)).status_code == 200
    assert set(watched.sizes) <= {1, 4}


def test_an_image_nobody_waits_for_any_more_is_not_looked_at(watched):
    with served(create_app(watched)) as url, concurrent.futures.ThreadPoolExecutor(1) as pool:
        watched.sizes.clear()
        watched.hold()
        first = pool.submit(httpx.post, f"{url}/predict", **form(GOOD), timeout=20)
        assert watched.entered.wait(20)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/predict", **form(GOOD), timeout=0.5)
        wait_until(lambda: "multigrid_in_work 1.0" in httpx.get(f"{url}/metrics").text)
        watched.open.set()
        assert first.result().status_code == 200
        assert httpx.post(f"{url}/predict", **form(GOOD)).status_code == 200
        text = httpx.get(f"{url}/metrics").text
    assert 'code="499",path="/predict"} 1.0' in text and "multigrid_images_total 2.0" in text
    assert len(watched.sizes) == 2


def memory(text) -> float:
    found = re.search(r"^process_resident_memory_bytes (\S+)", text, re.MULTILINE)
    if found is None:
        pytest.skip("this system does not tell how much memory a process has")
    return float(found[1])


async def upload(client, url, data, counts):
    """The code that an upload ends with; 503 is counted and tried again, as its header asks for."""
    while (answer := await client.post(f"{url}/predict", **form(data))).status_code == 503:
        assert int(answer.headers["retry-after"]) > 0
        counts[503] += 1
        await asyncio.sleep(0.2)
    return answer.status_code


async def upload_all(url, uploads):
    """Codes in the order of the uploads, how often each was sent away, and the greatest memory meanwhile."""
    counts, memories = collections.Counter(), []
    async with httpx.AsyncClient(limits=httpx.Limits(max_connections=None), timeout=60) as client:

        async def watch():
            while True:
                memories.append(memory((await client.get(f"{url}/metrics")).text))
                await asyncio.sleep(0.05)

        watching = asyncio.ensure_future(watch())
        codes = await asyncio.gather(*(upload(client, url, data, counts) for data in uploads))
        watching.cancel()
    return codes, counts, max(memories)


def test_what_waits_for_the_network_takes_little_room(watched):
    # 9 MB of pixels in 10 kB, 24 times: 216 MB if all of them waited as they are.
    large = image(2_000, 1_500)
    with served(create_app(watched)) as url, concurrent.futures.ThreadPoolExecutor(24) as pool:
        assert httpx.post(f"{url}/predict", **form(large)).status_code == 200
        before = memory(httpx.get(f"{url}/metrics").text)
        watched.hold()
        waiting = [pool.submit(httpx.post, f"{url}/predict", **form(large), timeout=30) for _ in range(24)]
        # the first of them, perhaps as many as make a batch, are with the network
        wait_until(lambda: re.search(r"multigrid_queue_length 2[0-3]\.0", httpx.get(f"{url}/metrics").text))
        assert memory(httpx.get(f"{url}/metrics").text) - before < 100e6
        watched.open.set()
        assert [one.result().status_code for one in waiting] == [200] * 24


def test_200_uploads_at_once_with_broken_ones_among_them_leave_the_server_sound(watched):
    large = image(900, 600)
    broken = [(TORN, 422), (b"", 422), (b"dear diary", 422), (b"x" * 150_000, 413)]
    asked = [broken[index // 5 % 4] if index % 5 == 4 else (large, 200) for index in range(200)]
    app = create_app(watched, max_upload_bytes=100_000, max_queue=32)
    with served(app) as url:
        assert httpx.post(f"{url}/predict", **form(large)).status_code == 200
        before = memory(httpx.get(f"{url}/metrics").text)
        codes, counts, peak = asyncio.run(upload_all(url, [data for data, _ in asked]))
        assert codes == [code for _, code in asked]
        assert collections.Counter(codes) == {200: 160, 422: 30, 413: 10}
        assert counts[503] > 0
        assert peak - before < 150e6
        health, text = httpx.get(f"{url}/health"), httpx.get(f"{url}/metrics").text
    assert health.status_code == 200
    assert "multigrid_images_total 161.0" in text and 'code="500"' not in text
    assert set(watched.sizes) <= {1, 4}


def test_a_port_that_is_taken_and_a_host_of_others_are_named():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(InputError, match=f"expected a free port of this machine, received 127.0.0.1:{port}"):
            server.bind("127.0.0.1", port)
    with pytest.raises(InputError, match="--host: expected a name or an address"):
        server.bind("no such host", 0)


def test_a_library_that_is_missing_is_named_with_what_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    command = "pip install -e '.[serve]'"
    with pytest.raises(InputError, match=rf"library uvicorn.*{re.escape(command)}"):
        check_libraries()
    for document in ("docs/serving.md", "README.md"):
        text = (CHECKOUT / document).read_text("utf-8")
        assert "pip install -e '.[serve" in text and "pip install 'multigrid" not in text


@pytest.fixture
def started(tmp_path):
    """A function that starts the command with options; the processes end with the test."""
    weights, config = tmp_path / "six.weights.h5", tmp_path / "config.yaml"
    six_boxes().save_weights(weights)
    (tmp_path / "classes.txt").write_text("red\ngreen\nblue\n")
    (tmp_path / "anchors.txt").write_text("8,6  12,9\n20,14  14,30\n40,28  48,44\n")
    config.write_text(
        f"data: {{classes: {tmp_path}/classes.txt, anchors: {tmp_path}/anchors.txt}}\n"
        f"model: {{width: 0.0625, depth: 0.125, input_size: [64, 96]}}\n"
    )
    running = []

    def start(*options):
        command = [sys.executable, CHECKOUT / "tools" / "serve.py", "--config", config, "--weights", weights, *options]
        environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
        running.append(
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        )
        return running[-1]

    yield start
    for one in running:
        one.kill()
        one.communicate()


def test_the_command_serves_what_the_page_of_the_docs_asks_for_and_ends_well(started, tmp_path):
    process = started("--port", "0")
    line = process.stdout.readline()
    assert re.match(r"six\.weights\.h5: listening at http://127\.0\.0\.1:\d+,", line), process.stderr.read()
    url = re.search(r"http://[\d.:]+", line)[0]
    port = url.rsplit(":", 1)[1]
    second = started("--port", port)
    assert second.wait(60) == 2
    assert f"expected a free port of this machine, received 127.0.0.1:{port}" in second.stderr.read()
    (tmp_path / "image.jpg").write_bytes(image(192, 128, "JPEG"))
    documented = re.findall(r"^curl .*", (CHECKOUT / "docs" / "serving.md").read_text("utf-8"), re.MULTILINE)
    assert len(documented) == 4
    if shutil.which("curl"):
        for command in documented:
            words = shlex.split(command.replace("http://127.0.0.1:8000", url))
            done = subprocess.run([*words, "--fail", "--silent"], cwd=tmp_path, capture_output=True)
            assert done.returncode == 0, command
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    assert process.stderr.read() == ""


def test_the_command_wants_a_config_or_a_run():
    from multigrid.cli import main

    for options in ([], ["--config", "a.yaml", "--run", "b"]):
        with pytest.raises(SystemExit) as caught:
            main(["serve", *options])
        assert caught.value.code == 2
