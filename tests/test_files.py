import errno
import resource
from functools import partial

import pytest
import torch
from safetensors.torch import save_file

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


@pytest.fixture
def small_files():
    """Files of a megabyte at most, in place of a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("save", [torch.save, save_file])
def test_a_full_disk_is_told_as_such_by_torch_and_safetensors(tmp_path, small_files, save):
    file = tmp_path / "weights"
    write = partial(save, {"a": torch.zeros(1_000_000)})
    said = "weights cannot be written; is the disk full?"
    with pytest.raises(OSError, match=said), atomic_path(file) as temporary:
        write(temporary)
    said = "model cannot be written"
    with pytest.raises(OSError, match=said), atomic_folder(tmp_path / "model") as folder:
        write(folder / "weights")
    assert list(tmp_path.iterdir()) == []


def test_other_errors_pass_as_they_are(tmp_path):
    with pytest.raises(RuntimeError, match="size mismatch"), atomic_path(tmp_path / "file"):
        raise RuntimeError("size mismatch")


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
