import numpy as np
import pytest

from helpers import UserError, files


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "model.pb"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), files.whole(path) as part:
        part.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_said_in_a_sentence(tmp_path):
    with pytest.raises(UserError, match="disk is full"), files.whole(tmp_path / "x"):
        with open("/dev/full", "w") as full:
            full.write("x" * 10_000)


class Maker:
    """Counts how often it writes a file."""

    def __init__(self, path):
        self.path, self.calls = path, 0

    def __call__(self):
        self.calls += 1
        with files.whole(self.path) as part:
            part.write_text(f"made {self.calls}")


@pytest.fixture
def maker(tmp_path):
    return Maker(tmp_path / "made.pb")


def test_a_file_is_made_once_of_the_same_parts(maker, tmp_path):
    source = tmp_path / "source"
    source.write_text("source")
    for _ in range(2):
        parts = (source, np.arange(2000.0), {"a": 1}, "text", None, files)
        assert files.made_from(maker.path, parts, maker) == maker.path
    assert maker.calls == 1


def test_a_file_is_made_again_of_other_parts(maker, tmp_path, monkeypatch):
    source = tmp_path / "source"
    source.write_text("source")
    array = np.arange(2000.0)
    changed = array.copy()
    changed[1000] = -1  # what a repr of the array would not show
    parts = (source, array, ("per_channel", 8), files)
    others = [
        (source, changed, ("per_channel", 8), files),
        (source, array.reshape(2, -1), ("per_channel", 8), files),
        (source, array, ("per_tensor", 8), files),
        parts,
    ]
    files.made_from(maker.path, parts, maker)
    for calls, other in enumerate(others, 2):
        files.made_from(maker.path, other, maker)
        assert maker.calls == calls
    source.write_text("another")
    files.made_from(maker.path, parts, maker)
    assert maker.calls == 6
    monkeypatch.setattr(files.inspect, "getsource", lambda module: "edited")
    files.made_from(maker.path, parts, maker)
    assert maker.calls == 7 and maker.path.read_text() == "made 7"


def test_a_file_that_changed_or_was_not_finished_is_made_again(maker):
    files.made_from(maker.path, ("a",), maker)
    maker.path.write_text("tampered")
    files.made_from(maker.path, ("a",), maker)
    assert maker.calls == 2 and maker.path.read_text() == "made 2"
    maker.path.write_text(maker.path.read_text()[:3])  # cut short
    files.made_from(maker.path, ("a",), maker)
    maker.path.unlink()
    files.made_from(maker.path, ("a",), maker)
    record = maker.path.with_name("made.pb.json")
    record.write_text(record.read_text()[:20])
    files.made_from(maker.path, ("a",), maker)
    assert maker.calls == 5

    def interrupted():
        maker()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.made_from(maker.path, ("b",), interrupted)
    files.made_from(maker.path, ("b",), maker)
    files.made_from(maker.path, ("b",), maker)
    assert maker.calls == 7


def test_parts_stay_apart(maker):
    files.made_from(maker.path, ("ab", "c"), maker)
    files.made_from(maker.path, ("a", "bc"), maker)
    assert maker.calls == 2
