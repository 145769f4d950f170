"""Which files arguments name, and where their pictures go."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from meinst_d2.visualization.sources import Source, find_sources, plan_outputs


def touch(folder: Path, *names: str) -> list[Path]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return [folder / name for name in names]


def names(sources: list[Source]) -> list[str]:
    return [source.path.name for source in sources]


def test_globs_files_and_duplicates(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.png", "below/c.png")
    assert names(find_sources([str(tmp_path / "b.png"), str(tmp_path / "*.png")])) == ["b.png", "a.png"]
    assert names(find_sources([str(tmp_path / "**/*.png")])) == ["a.png", "b.png", "c.png"]
    touch(tmp_path, "a[1].png", "a1.png")
    assert names(find_sources([str(tmp_path / "a[1].png")])) == ["a[1].png"]


def test_videos_are_known_by_their_suffix_or_by_trying(tmp_path: Path) -> None:
    touch(tmp_path, "a.ts", "b.flv", "c.3gp", "d.MP4", "e.png")
    (tmp_path / "notes.txt").write_text("neither")  # OpenCV would draw it as a terminal shows it
    writer = cv2.VideoWriter(str(tmp_path / "v.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 5, (96, 96))
    writer.write(np.zeros((96, 96, 3), np.uint8))
    writer.release()
    (tmp_path / "v.mp4").rename(tmp_path / "video")
    Image.new("RGB", (4, 4)).save(tmp_path / "image", format="png")
    assert names(find_sources([str(tmp_path)])) == ["a.ts", "b.flv", "c.3gp", "d.MP4", "e.png"]
    is_video = {source.path.name: source.is_video for source in find_sources([str(tmp_path / "*")])}
    assert {name for name, found in is_video.items() if found} == {"a.ts", "b.flv", "c.3gp", "d.MP4", "video"}


def test_a_folder_gives_its_images_and_videos_in_natural_order(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file, folder or pattern matches .*\*\.png"):
        find_sources([str(tmp_path / "*.png")])
    with pytest.raises(FileNotFoundError, match="holds no images or videos"):
        find_sources([str(tmp_path)])
    touch(tmp_path, "f_10.jpg", "f_2.JPG", "notes.txt", "clip.mp4", "below/deep.png")
    sources = find_sources([str(tmp_path)])
    assert names(sources) == ["clip.mp4", "f_2.JPG", "f_10.jpg"]
    assert [source.is_video for source in sources] == [True, False, False]


def test_inputs_of_one_name_have_pictures_of_their_own(tmp_path: Path) -> None:
    paths = ["a/x.jpg", "b/x.jpg", "c/X.jpg", "d/x.gif", "e/clip.avi", "f/clip.mp4"]
    sources = [Source(Path(path), path.endswith((".avi", ".mp4"))) for path in paths]
    found = [path.name for path in plan_outputs(sources, tmp_path)]
    assert found == ["x.jpg", "x-2.jpg", "X-3.jpg", "x.png", "clip.mp4", "clip-2.mp4"]
    sources = [Source(Path(path), False) for path in ("a/x.jpg", "b/x.jpg", "c/x-2.jpg", "d/x-2.jpg")]
    found = [path.name for path in plan_outputs(sources, tmp_path)]
    assert len(set(found)) == 4


def test_one_input_may_name_its_picture(tmp_path: Path) -> None:
    image, video = Source(tmp_path / "a.gif", False), Source(tmp_path / "a.avi", True)
    assert plan_outputs([image], tmp_path / "out.png") == [tmp_path / "out.png"]
    assert plan_outputs([video], tmp_path / "out.mp4") == [tmp_path / "out.mp4"]
    (tmp_path / "folder.png").mkdir()
    assert plan_outputs([image], tmp_path / "folder.png") == [tmp_path / "folder.png/a.png"]
    for sources, output, message in (
        ([image, video], "out.png", "is one file for 2 inputs"),
        ([image], "out.mp4", "a.gif is an image"),
        ([video], "out.avi", "videos are written as .mp4"),
    ):
        with pytest.raises(ValueError, match=message):
            plan_outputs(sources, tmp_path / output)


def test_sources_are_not_replaced_even_through_a_link(tmp_path: Path) -> None:
    (image,) = touch(tmp_path, "real/a.png")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(ValueError, match="would replace the input"):
        plan_outputs([Source(image, False)], tmp_path / "link")
