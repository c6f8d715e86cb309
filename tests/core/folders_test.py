"""Tests of kullback.core.folders."""

import os

import pytest

from kullback.core import folders


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "secret").write_text("key")
    model = tmp_path / "model"
    (model / "parts").mkdir(parents=True)
    (model / "a.safetensors").write_text("a")
    (model / "parts" / "b.safetensors").write_text("b")
    return model


def test_names_of_files_inside(folder, tmp_path):
    assert folders.inside(folder, "a.safetensors") == folder / "a.safetensors"
    assert folders.inside(folder, "parts/b.safetensors").read_text() == "b"
    (folder / "link").symlink_to("parts/b.safetensors")
    assert folders.inside(folder, "link").read_text() == "b"
    (tmp_path / "other").symlink_to(folder)  # The folder is the user's word.
    assert folders.inside(tmp_path / "other", "a.safetensors").read_text() == "a"
    (folder / "absolute").symlink_to(folder.resolve() / "a.safetensors")
    assert folders.inside(tmp_path / "other", "absolute").read_text() == "a"


@pytest.mark.parametrize(
    "name",
    [
        "../secret",
        "parts/../a.safetensors",
        "parts/../../secret",
        "/etc/passwd",
        "",
        ".",
        "..",
        "./a.safetensors",
        "parts//b.safetensors",
        "a\0b",
        "a\nb",
        "\x1b[31m",
        "\ud800",
    ],
)
def test_names_that_lead_elsewhere_are_refused(folder, name):
    with pytest.raises(ValueError, match="must be a name inside") as caught:
        folders.inside(folder, name, named_by="index.json")
    assert str(caught.value).startswith("index.json: ") and str(caught.value).isprintable()


def test_folders_inside(folder, tmp_path):
    assert folders.subfolder(folder, "parts") == folder / "parts"
    (folder / "outside").symlink_to(tmp_path)
    (folder / "link").symlink_to("parts")
    assert folders.subfolder(folder, "link") == folder / "link"
    for name, message in (
        ("outside", "is a link out of the folder"),
        ("..", "must be a name inside"),
        ("a.safetensors", "is no folder"),
        ("nothing", "is missing"),
    ):
        with pytest.raises(ValueError, match=message):
            folders.subfolder(folder, name)


def test_links_are_looked_at_however_deep(folder, tmp_path):
    folders.check_links(folder)
    (folder / "within").symlink_to("parts")
    (folder / "parts" / "back").symlink_to(folder)
    (folder / "parts" / "circle").symlink_to("circle")
    folders.check_links(folder)
    for place, target in (
        (folder / "top", tmp_path),
        (folder / "parts" / "deep", "../../secret"),
        (folder / "parts" / "dangling", tmp_path / "nothing"),
    ):
        place.symlink_to(target)
        with pytest.raises(ValueError, match=f"{place.name} is a link out of the folder"):
            folders.check_links(folder)
        with pytest.raises(ValueError, match=f"{place.name} is a link out of the folder"):
            folders.check_links(folder, ("parts", "top", "none"))
        folders.check_links(folder, ("a.safetensors", "none"))
        place.unlink()


def test_links_out_are_refused(folder, tmp_path):
    (folder / "link").symlink_to("../secret")
    (folder / "outside").symlink_to(tmp_path)
    (folder / "twice").symlink_to("link")
    for name in ("link", "outside/secret", "twice"):
        with pytest.raises(ValueError, match=r"link out of the folder, to .*secret; refused"):
            folders.inside(folder, name)


def test_what_is_no_regular_file_is_refused(folder):
    os.mkfifo(folder / "pipe")
    (folder / "dangling").symlink_to("nothing")
    (folder / "circle").symlink_to("circle")
    for name, message in (
        ("pipe", "is no regular file"),
        ("parts", "is no regular file"),
        ("nothing", "is missing"),
        ("a.safetensors/b", "is missing"),
        ("dangling", "is missing"),
        ("circle", "cannot be opened"),
        ("a" * 300, "cannot be opened"),
    ):
        with pytest.raises(ValueError, match=message):
            folders.inside(folder, name)


def test_blobs_of_a_cache(tmp_path):
    cache = tmp_path / "models--google--gemma"
    snapshot = cache / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    (cache / "blobs" / "9f").write_text("weights")
    (snapshot / "model.safetensors").symlink_to("../../blobs/9f")
    assert folders.inside(snapshot, "model.safetensors").read_text() == "weights"
    # A cache is a stranger's too: its blobs lead nowhere else.
    (tmp_path / "secret").write_text("key")
    (cache / "blobs" / "8e").symlink_to(tmp_path / "secret")
    (snapshot / "config.json").symlink_to("../../blobs/8e")
    (snapshot / "beside").symlink_to("../../refs")
    (cache / "refs").write_text("main")
    for name in ("config.json", "beside"):
        with pytest.raises(ValueError, match="is a link out of the folder"):
            folders.inside(snapshot, name)
    # Nor do blobs beside any other folder count.
    plain = tmp_path / "x" / "model"
    plain.mkdir(parents=True)
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "9f").write_text("weights")
    (plain / "model.safetensors").symlink_to("../../blobs/9f")
    with pytest.raises(ValueError, match="is a link out of the folder"):
        folders.inside(plain, "model.safetensors")


def test_listed_files_that_are_there(folder):
    (folder / "tokenizer.json").write_text("{}")
    (folder / "evil.py").write_text("")
    paths = folders.present(folder, ("tokenizer.json", "tokenizer.model"))
    assert paths == {"tokenizer.json": folder / "tokenizer.json"}
    (folder / "tokenizer.model").symlink_to("../secret")
    with pytest.raises(ValueError, match="is a link out of the folder"):
        folders.present(folder, ("tokenizer.json", "tokenizer.model"))
    (folder / "tokenizer.model").unlink()
    (folder / "tokenizer.model").symlink_to("nowhere")
    with pytest.raises(ValueError, match="is missing"):
        folders.present(folder, ("tokenizer.json", "tokenizer.model"))
