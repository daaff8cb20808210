"""Notes of units, kept beside the atlas: who may write them, what they may be, and that none is lost."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from explored import explored_atlas, tags_of
from filelock import FileLock
from starlette.testclient import TestClient
from test_web import ELSEWHERE, HERE

from unitscope.atlas import Atlas
from unitscope.web import ExplorerOptions, create_explorer
from unitscope.web.notes import MAX_NOTES_MB, MAX_TAGS, MAX_TEXT_LENGTH


@pytest.fixture(scope="module")
def scanned(tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    return explored_atlas(tmp_path_factory.mktemp("explored"))


@pytest.fixture
def atlas(scanned: Atlas, tmp_path: Path) -> Atlas:
    """A copy, beside which nothing lies."""
    shutil.copytree(scanned.folder, tmp_path / "mine")
    return Atlas(tmp_path / "mine")


def client(atlas: Atlas, **options: Any) -> TestClient:
    return TestClient(create_explorer(atlas, ExplorerOptions(**options)), base_url="http://localhost")


def note(layer: str = "relu", unit: int = 0, **changes: Any) -> dict[str, Any]:
    return {"layer": layer, "unit": unit, "favourite": True, "tags": [], "text": "", "changed_ms": 1} | changes


def empty(site: TestClient) -> dict[str, Any]:
    notes: dict[str, Any] = site.get("/notes.json").json()["notes"]
    return notes | {"units": []}


def put(site: TestClient, units: list[Any], headers: dict[str, str] | None = None, **changes: Any) -> Any:
    """What comes of these notes, put in the place of those that are there."""
    tag = site.get("/notes.json").headers.get("etag", '""')
    content = json.dumps(empty(site) | {"units": units} | changes)
    return site.put(
        "/notes.json", content=content, headers={"Content-Type": "application/json", "If-Match": tag} | (headers or {})
    )


def test_notes_lie_beside_the_atlas_and_survive_it(atlas: Atlas) -> None:
    site, notes = client(atlas), [note(tags=["a b", "<i>"], text="looks for\n\u201cedges\u201d"), note("relu#2", 1, changed_ms=7)]
    assert site.get("/notes.json").json()["notes"]["units"] == []
    answer = put(site, notes)
    assert answer.status_code == 204
    stored = site.get("/notes.json")
    assert (stored.headers["etag"], stored.json()["problem"]) == (answer.headers["etag"], None)
    assert stored.json()["notes"]["units"] == notes
    assert json.loads((atlas.folder.parent / "mine.notes.json").read_text())["units"] == notes
    assert sorted(path.name for path in atlas.folder.parent.iterdir()) == [
        ".mine.notes.lock",
        "mine",
        "mine.notes.json",
    ]
    again = atlas.folder.parent / "again"
    shutil.copytree(atlas.folder, again)
    shutil.rmtree(atlas.folder)
    again.rename(atlas.folder)
    assert client(Atlas(atlas.folder)).get("/notes.json").json()["notes"]["units"] == notes


def test_a_link_to_the_atlas_has_the_same_notes(atlas: Atlas, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "link").symlink_to(atlas.folder)
    assert put(client(Atlas(tmp_path / "elsewhere" / "link")), [note()]).status_code == 204
    assert len(client(atlas).get("/notes.json").json()["notes"]["units"]) == 1
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["link"]


@pytest.mark.parametrize("headers", ELSEWHERE, ids=str)
def test_no_other_site_writes_notes(atlas: Atlas, headers: dict[str, str]) -> None:
    site = client(atlas)
    answer = put(site, [note()], headers)
    assert (answer.status_code, answer.text) == (403, "Another site may not send anything here.")
    assert not (atlas.folder.parent / "mine.notes.json").exists()


@pytest.mark.parametrize("headers", HERE, ids=str)
def test_the_own_pages_write_notes(atlas: Atlas, headers: dict[str, str]) -> None:
    assert put(client(atlas), [note()], headers).status_code == 204


def test_another_host_name_writes_no_notes(atlas: Atlas) -> None:
    site = TestClient(create_explorer(atlas), base_url="http://evil.example")
    assert site.put("/notes.json", content=b"{}").status_code == 400
    assert site.get("/notes.json").status_code == 400


def test_no_other_method_or_form_writes_notes(atlas: Atlas) -> None:
    site = client(atlas)
    for method in ("POST", "DELETE", "PATCH"):
        assert site.request(method, "/notes.json", content=b"{}").status_code == 405
    for content_type in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", "application/jsonp"):
        assert put(site, [note()], {"Content-Type": content_type}).status_code == 415, "what a page may send without being asked"
    assert put(site, [note()], {"Content-Type": "Application/JSON; charset=utf-8"}).status_code == 204


def test_notes_that_changed_meanwhile_are_not_written_over(atlas: Atlas) -> None:
    first, second = client(atlas), client(Atlas(atlas.folder))
    tag = first.get("/notes.json").headers["etag"]
    assert put(second, [note(text="theirs")]).status_code == 204
    answer = put(first, [note(text="mine")], {"If-Match": tag})
    assert (answer.status_code, answer.text) == (412, "'mine.notes.json' has changed meanwhile; get it again.")
    assert first.get("/notes.json").json()["notes"]["units"][0]["text"] == "theirs"
    for wrong in ("*", f"W/{tag}", "nothing"):
        assert put(first, [], {"If-Match": wrong}).status_code == 412
    answer = first.put("/notes.json", content=b"{}", headers={"Content-Type": "application/json"})
    assert answer.status_code == 428


@contextmanager
def served_by_a_process(atlas: Atlas) -> Iterator[httpx.Client]:
    command = [sys.executable, "-m", "unitscope", "serve", str(atlas.folder), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            with httpx.Client(base_url=process.stdout.readline().split()[0], timeout=60) as site:
                yield site
        finally:
            process.terminate()


@pytest.mark.slow
def test_two_servers_of_one_atlas_lose_none_of_each_other_s_notes(atlas: Atlas) -> None:
    """Four programs write at once, by two processes: each notes units of its own, and gets the notes again where others have written."""

    def note_units(site: httpx.Client, layer: str, units: range, rounds: int) -> None:
        for number in range(rounds):
            for unit in units:
                while True:
                    stored = site.get("/notes.json")
                    notes = stored.json()["notes"]
                    own = {"layer": layer, "unit": unit, "favourite": True, "tags": [], "text": f"{number}", "changed_ms": number}
                    notes["units"] = [known for known in notes["units"] if (known["layer"], known["unit"]) != (layer, unit)] + [
                        own
                    ]
                    headers = {"Content-Type": "application/json", "If-Match": stored.headers["etag"]}
                    answer = site.put("/notes.json", content=json.dumps(notes), headers=headers)
                    kept = {(known["layer"], known["unit"]): known["text"] for known in notes["units"]}
                    assert all(kept[layer, earlier] == f"{number}" for earlier in units if earlier <= unit), (
                        "a note of this program is gone"
                    )
                    if answer.status_code == 204:
                        break
                    assert answer.status_code == 412

    with served_by_a_process(atlas) as first, served_by_a_process(atlas) as second, ThreadPoolExecutor(4) as pool:
        programs = [
            (first, "relu", range(2)),
            (second, "relu", range(2, 4)),
            (first, "relu#2", range(2)),
            (second, "relu#2", range(2, 4)),
        ]
        for written in [pool.submit(note_units, *program, rounds=8) for program in programs]:
            written.result()
    units = json.loads((atlas.folder.parent / "mine.notes.json").read_text())["units"]
    assert {(known["layer"], known["unit"], known["text"]) for known in units} == {
        (layer, unit, "7") for layer in ("relu", "relu#2") for unit in range(4)
    }


def test_a_file_that_another_program_holds_is_left_alone(atlas: Atlas, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unitscope.web.notes.MAX_WAIT_S", 0.2)
    site = client(atlas)
    with FileLock(atlas.folder.parent / ".mine.notes.lock"):
        answer = put(site, [note()])
        assert (answer.status_code, "held by another program" in answer.text) == (409, True)
    assert put(site, [note()]).status_code == 204


@pytest.mark.parametrize(
    ("units", "message"),
    [
        ([note("nothing")], "this atlas has no unit 0 of a layer 'nothing'"),
        ([note("../../etc/passwd")], "no unit 0 of a layer '../../etc/passwd'"),
        ([note(unit=4)], "this atlas has no unit 4 of a layer 'relu'"),
        ([note(unit=-1)], ">= 0"),
        ([note(unit=10**30)], "units[0].unit"),
        ([note(unit=0.5)], "Expected `int`"),
        ([note(), note()], "two notes of unit 0 of layer 'relu'"),
        ([note(favourite=1)], "Expected `bool`"),
        ([note(tags="dog")], "Expected `array`"),
        ([note(tags=[""])], "length >= 1"),
        ([note(tags=["x" * 101])], "length <= 100"),
        ([note(tags=["x"] * (MAX_TAGS + 1))], f"length <= {MAX_TAGS}"),
        ([note(text="x" * (MAX_TEXT_LENGTH + 1))], f"length <= {MAX_TEXT_LENGTH}"),
        ([note(text=None)], "Expected `str`"),
        ([note(changed_ms=2**60)], "units[0].changed_ms"),
        ([{"layer": "relu", "unit": 0}], "missing required field"),
        ({"relu": 1}, "Expected `array`"),
    ],
)  # fmt: skip
def test_what_are_no_notes_is_refused(atlas: Atlas, units: Any, message: str) -> None:
    answer = put(client(atlas), units)
    assert answer.status_code == 422
    assert message in answer.text
    assert answer.headers["content-type"].startswith("text/plain")
    assert not (atlas.folder.parent / "mine.notes.json").exists()


@pytest.mark.parametrize("changes", [{"format": "notes"}, {"version": 2}, {"network": "another"}, {"images": None}])
def test_notes_of_something_else_are_refused(atlas: Atlas, changes: dict[str, Any]) -> None:
    assert put(client(atlas), [note()], **changes).status_code == 422


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000, b'"\\ud800"', b"null"])
def test_what_is_no_json_is_refused(atlas: Atlas, content: bytes) -> None:
    site = client(atlas)
    tag = site.get("/notes.json").headers["etag"]
    answer = site.put("/notes.json", content=content, headers={"Content-Type": "application/json", "If-Match": tag})
    assert answer.status_code == 422


def test_too_large_notes_are_refused(atlas: Atlas) -> None:
    site = client(atlas)
    answer = site.put(
        "/notes.json", content=b" " * ((MAX_NOTES_MB << 20) + 1), headers={"Content-Type": "application/json", "If-Match": '""'}
    )
    assert (answer.status_code, answer.text) == (413, f"The notes are larger than {MAX_NOTES_MB} MB.")


def test_a_file_never_grows_so_large_that_it_is_not_read_again(atlas: Atlas) -> None:
    site, text = client(atlas), "x" * MAX_TEXT_LENGTH
    content = empty(site) | {"units": [note("another.layer", number, text=text) for number in range(200)]}
    (atlas.folder.parent / "mine.notes.json").write_text(json.dumps(content))
    assert put(site, [note(text=text)]).status_code == 204
    answer = put(site, [note(unit=number, tags=[f"{tag:0100}" for tag in range(50)], text=text) for number in range(4)])
    assert answer.status_code == 204
    content["units"] += [note("another.layer", number, text=text) for number in range(200, 208)]
    (atlas.folder.parent / "mine.notes.json").write_text(json.dumps(content))
    answer = put(site, [note(unit=number, text=text) for number in range(4)])
    assert (answer.status_code, answer.text) == (409, "'mine.notes.json' would be larger than 4 MB.")
    assert len(json.loads((atlas.folder.parent / "mine.notes.json").read_text())["units"]) == 208


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is damaged"),
        (b'{"format": "unitscope notes", "version": 1}', "is damaged"),
        (b"\xff\xfe", "is damaged"),
        (b" " * ((MAX_NOTES_MB << 20) + 1), "is larger than 4 MB"),
        (
            b'{"format": "unitscope notes", "version": 1, "network": "another", "images": "others", "units": []}',
            "has notes of another network",
        ),
    ],
)
def test_a_damaged_file_is_never_written_over(atlas: Atlas, content: bytes, message: str) -> None:
    (atlas.folder.parent / "mine.notes.json").write_bytes(content)
    site = client(atlas)
    stored = site.get("/notes.json")
    assert stored.status_code == 200
    assert message in stored.json()["problem"]
    assert "etag" not in stored.headers
    answer = put(site, [note()])
    assert answer.status_code == 409
    assert message in answer.text
    assert (atlas.folder.parent / "mine.notes.json").read_bytes() == content


def test_notes_of_layers_that_this_scan_left_out_stay_in_the_file(atlas: Atlas) -> None:
    site = client(atlas)
    content = empty(site) | {"units": [note("another.layer", 3), note(unit=400), note(unit=1)]}
    (atlas.folder.parent / "mine.notes.json").write_text(json.dumps(content))
    assert site.get("/notes.json").json()["notes"]["units"] == [note(unit=1)]
    assert put(site, [note(unit=2)]).status_code == 204
    kept = json.loads((atlas.folder.parent / "mine.notes.json").read_text())["units"]
    assert kept == [note(unit=2), note("another.layer", 3), note(unit=400)]


def test_where_nothing_can_be_written_the_page_says_so(atlas: Atlas) -> None:
    (atlas.folder.parent / "mine.notes.json").mkdir()
    site = client(atlas)
    assert "mine.notes.json" in site.get("/notes.json").json()["problem"]
    assert put(site, [note()]).status_code == 409


def test_a_disk_that_can_only_be_read_is_no_error(atlas: Atlas, monkeypatch: pytest.MonkeyPatch) -> None:
    site = client(atlas)
    content = empty(site) | {"units": [note()]}
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: False if mode & os.W_OK else access(path, mode))
    stored = site.get("/notes.json")
    assert "can't be written to" in stored.json()["problem"]

    def refuse(*paths: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "replace", refuse)
    tag = '"e3b0c44298fc1c149afbf4c8996fb924"'  # of nothing: the beginning of its SHA-256
    headers = {"Content-Type": "application/json", "If-Match": tag}
    answer = site.put("/notes.json", content=json.dumps(content), headers=headers)
    assert (answer.status_code, answer.text) == (409, "'mine.notes.json' can't be written: Read-only file system.")
    assert sorted(path.name for path in atlas.folder.parent.iterdir()) == [".mine.notes.lock", "mine"]


@pytest.mark.parametrize("hosts", [("*",), ("localhost", "192.168.1.7")])
def test_a_server_for_other_machines_keeps_no_notes(atlas: Atlas, hosts: tuple[str, ...]) -> None:
    site = client(atlas, hosts=hosts)
    assert "other machines" in site.get("/notes.json").json()["problem"]
    (atlas.folder.parent / "mine.notes.json").write_text(json.dumps(empty(site) | {"units": [note(text="private")]}))
    assert "private" not in site.get("/notes.json").text
    answer = put(site, [note()])
    assert answer.status_code == 409
    assert "other machines" in answer.text


def test_two_atlases_have_notes_of_their_own(atlas: Atlas, tmp_path: Path) -> None:
    second = explored_atlas(tmp_path / "second", seed=1)
    site = client(atlas, compared_atlas=second)
    assert put(site, [note(text="first")]).status_code == 204
    assert site.get("/compared/notes.json").json()["notes"]["units"] == []
    assert site.get("/compared/notes.json").json()["file"] == "atlas-1.notes.json"
    shared = client(atlas, compared_atlas=second, hosts=("*",))
    assert "other machines" in shared.get("/compared/notes.json").json()["problem"]


def test_pages_say_whose_notes_they_show(atlas: Atlas) -> None:
    site = client(atlas)
    notes = empty(site)
    for path in ("/index.html", "/units/relu/0.html", "/notes.html"):
        html = next(attributes for tag, attributes in tags_of(site.get(path).text) if tag == "html")
        assert (html["data-network"], html["data-images"]) == (notes["network"], notes["images"])
    assert 'href="../../notes.html"' in site.get("/units/relu/0.html").text
