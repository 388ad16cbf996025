import errno

import pytest

from liteasr.files import atomic_folder, atomic_path, recover, write_text


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    file = tmp_path / "metrics.json"
    write_text(file, "old")

    def fill_the_disk():
        with atomic_path(file) as temporary:
            temporary.write_text("half of the n")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        fill_the_disk()
    assert file.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]


def test_a_failed_folder_leaves_the_old_one_and_nothing_else(tmp_path):
    folder = tmp_path / "model"
    with atomic_folder(folder) as temporary:
        (temporary / "weights").write_text("old")

    def be_interrupted():
        with atomic_folder(folder) as temporary:
            (temporary / "weights").write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        be_interrupted()
    assert (folder / "weights").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_finished_folder_replaces_the_old_one_whole(tmp_path):
    folder = tmp_path / "deep" / "model"
    for content, name in (("old", "a"), ("new", "b")):
        with atomic_folder(folder) as temporary:
            (temporary / name).write_text(content)
    assert [path.name for path in folder.iterdir()] == ["b"]
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_what_a_killed_process_left_is_put_right(tmp_path):
    """Killed between taking the old folder away and putting the new one there, and elsewhere."""
    for name in (".model.71.old", ".model.71.tmp", "report", "kept", ".kept.8.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "content").write_text(name)
    (tmp_path / "report" / ".a.png.71.tmp").write_text("half")
    (tmp_path / ".hidden").write_text("the user's own")
    recover(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"model", "report", "kept", ".hidden"}
    assert (tmp_path / "model" / "content").read_text() == ".model.71.old"
    assert (tmp_path / "kept" / "content").read_text() == "kept"
    assert [path.name for path in (tmp_path / "report").iterdir()] == ["content"]
