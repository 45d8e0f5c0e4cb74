"""Local files: only under the allowed folders, and nothing but files."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from captioner import real_files
from captioner.errors import ErrorCode, JobError
from captioner.media import LocalFolders, decode_image, open_source
from captioner.media.files import MOST_FOLDERS, _inside
from captioner.settings import MediaSettings
from captioner.source import Source
from pictures import jpeg

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


@pytest.fixture(autouse=True, params=["the system tells", "step by step", "without /proc"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each way of finding out where a file is."""
    if request.param == "without /proc":
        monkeypatch.setattr(real_files, "_DESCRIPTORS", "/nowhere")
    if request.param == "step by step":
        monkeypatch.setattr(real_files, "_REACH", os.O_CLOEXEC)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "allowed"
    folder.mkdir()
    (folder / "photo.jpg").write_bytes(jpeg())
    (tmp_path / "secret.jpg").write_bytes(jpeg())
    return folder


@pytest.fixture
def limits(root: Path) -> MediaSettings:
    return MediaSettings(allowed_roots=(root,))


def failure(uri: str | Path, limits: MediaSettings) -> JobError:
    with pytest.raises(JobError) as caught:
        open_source(Source(str(uri)), Path("/nowhere"), limits)
    assert caught.value.message.isprintable()
    return caught.value


def test_paths_and_file_urls_are_opened(root: Path, limits: MediaSettings) -> None:
    odd = root / "ä b?#%41.jpg"
    odd.write_bytes(b"odd")
    for uri, expected in (
        (f"{root}/photo.jpg", root / "photo.jpg"),
        (f"file://{root}/photo.jpg", root / "photo.jpg"),
        (f"FILE://localhost{root}/photo.jpg", root / "photo.jpg"),
        (f"file:{root}/photo.jpg", root / "photo.jpg"),
        (f"file://{root}/%C3%A4%20b%3F%23%2541.jpg", odd),
        (str(odd), odd),
    ):
        media = open_source(Source(uri), Path("/nowhere"), limits)
        assert media.path == expected.resolve(), uri
        assert media.name == Source(uri).display


@pytest.mark.parametrize(
    "name",
    [
        "Screenshot at 3.14.15\u202fPM.png",
        "a\u00a0b.png",
        "\u0645\u06cc\u200c\u062e.png",
        "\U0001f469\u200d\U0001f4bb.png",
        "soft\u00adhyphen.png",
    ],
)
def test_spaces_and_joiners_of_ordinary_names_are_opened(
    root: Path, limits: MediaSettings, name: str
) -> None:
    (root / name).write_bytes(b"odd")

    media = open_source(Source(f"{root}/{name}"), Path("/nowhere"), limits)

    assert media.path == (root / name).resolve()


def test_links_inside_the_root_are_followed(root: Path, limits: MediaSettings) -> None:
    (root / "link.jpg").symlink_to("photo.jpg")

    media = open_source(Source(f"{root}/link.jpg"), root, limits)

    assert media.path == (root / "photo.jpg").resolve()


def test_a_root_that_is_a_link_is_resolved(root: Path, tmp_path: Path) -> None:
    alias = tmp_path / "alias"
    alias.symlink_to(root)
    limits = MediaSettings(allowed_roots=(alias,))

    for folder in (alias, root):
        assert open_source(Source(f"{folder}/photo.jpg"), root, limits).path.is_file()


def test_the_default_root_is_the_working_folder(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = MediaSettings()
    monkeypatch.chdir(root)
    assert open_source(Source(f"{root}/photo.jpg"), root, limits).path.is_file()

    monkeypatch.chdir("/")
    monkeypatch.chdir(tmp_path / "allowed")
    assert failure(tmp_path / "secret.jpg", limits).code is ErrorCode.SOURCE_NOT_ALLOWED


def test_outside_the_roots_nothing_is_told(
    root: Path, tmp_path: Path, limits: MediaSettings
) -> None:
    (root / "out").symlink_to(tmp_path)
    (root / "out.jpg").symlink_to(tmp_path / "secret.jpg")
    (root / "gone.jpg").symlink_to(tmp_path / "never-there.jpg")
    (tmp_path / "allowed-too").mkdir()  # begins like the root's name
    os.mkfifo(tmp_path / "fifo")
    answers = set()
    for uri in (
        tmp_path / "secret.jpg",
        tmp_path / "missing.jpg",
        tmp_path / "secret.jpg" / "below-a-file",
        tmp_path,
        tmp_path / "fifo",
        tmp_path / "allowed-too" / "photo.jpg",
        root / "out" / "secret.jpg",
        root / "out" / "missing.jpg",
        root / "out.jpg",
        root / "gone.jpg",
        "/etc/passwd",
        "/dev/zero",
        "/proc/self/environ",
        "/" + "x" * 3000,
        f"file://{tmp_path}/secret.jpg",
    ):
        error = failure(uri, limits)
        path = Source(str(uri)).path
        answers.add((error.code, error.retryable, error.message.replace(path, "PATH")))

    assert len(answers) == 1
    assert answers.pop()[:2] == (ErrorCode.SOURCE_NOT_ALLOWED, False)


@pytest.mark.parametrize(
    ("uri", "code", "text"),
    [
        ("{root}/../secret.jpg", ErrorCode.SOURCE_NOT_ALLOWED, ".. is not allowed"),
        ("{root}/x/../photo.jpg", ErrorCode.SOURCE_NOT_ALLOWED, ".. is not allowed"),
        ("file://{root}/%2e%2e/secret.jpg", ErrorCode.SOURCE_NOT_ALLOWED, ".. is not allowed"),
        ("file://{root}/..%2fsecret.jpg", ErrorCode.SOURCE_NOT_ALLOWED, ".. is not allowed"),
        ("file://server.example{root}/photo.jpg", ErrorCode.SOURCE_NOT_ALLOWED, "no host"),
        ("file://127.0.0.1{root}/photo.jpg", ErrorCode.SOURCE_NOT_ALLOWED, "no host"),
        ("file://[{root}/photo.jpg", ErrorCode.INVALID_REQUEST, "cannot be understood"),
        ("file://{root}/photo.jpg?size=1", ErrorCode.INVALID_REQUEST, "%3F"),
        ("file://{root}/photo.jpg%00.png", ErrorCode.INVALID_REQUEST, "control"),
        ("file://{root}/photo.jpg%0aERROR forged", ErrorCode.INVALID_REQUEST, "control"),
        ("file://{root}/photo.jpg%C2%9B2J", ErrorCode.INVALID_REQUEST, "control"),
        ("photo.jpg", ErrorCode.INVALID_REQUEST, "absolute"),
        ("./photo.jpg", ErrorCode.INVALID_REQUEST, "absolute"),
        ("~/photo.jpg", ErrorCode.INVALID_REQUEST, "absolute"),
        ("file:photo.jpg", ErrorCode.INVALID_REQUEST, "absolute"),
        ("{root}/missing.jpg", ErrorCode.FETCH_FAILED, "no such file"),
        ("{root}/photo.jpg/below", ErrorCode.FETCH_FAILED, "no such file"),
        ("{root}", ErrorCode.FETCH_FAILED, "folder"),
        ("{root}/" + "x" * 300, ErrorCode.FETCH_FAILED, "too long"),
    ],
)
def test_each_refusal_has_its_code_and_one_line(
    root: Path, limits: MediaSettings, uri: str, code: ErrorCode, text: str
) -> None:
    error = failure(uri.replace("{root}", str(root)), limits)

    assert error.code is code
    assert text in error.message
    assert not error.retryable


def test_devices_pipes_and_sockets_are_refused_without_waiting(
    root: Path, limits: MediaSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(root / "fifo")
    monkeypatch.chdir(root)
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as server:
        server.bind("socket")  # relative: such names are limited to 108 bytes
        for name in ("fifo", "socket"):
            assert failure(root / name, limits).code is ErrorCode.SOURCE_NOT_ALLOWED
    everything = MediaSettings(allowed_roots=(Path("/"),))
    for device in ("/dev/null", "/dev/zero", "/dev/tty"):
        assert failure(device, everything).code in (
            ErrorCode.SOURCE_NOT_ALLOWED,
            ErrorCode.FETCH_FAILED,
        )


def exchange(path: Path, target: Path) -> None:
    """Put a link where a folder or a file was."""
    path.rename(path.with_name("before"))
    path.symlink_to(target)


@pytest.mark.parametrize("name", ["folder", "folder/photo.jpg"])
def test_what_becomes_a_link_after_the_check_is_not_opened(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Between the check and the opening, by whoever may write under the root."""
    outside = tmp_path / "outside"
    outside.mkdir()
    picture = jpeg()
    (outside / "photo.jpg").write_bytes(picture + b"\0")  # too large: who looks into it says so
    (root / "folder").mkdir()
    (root / "folder/photo.jpg").write_bytes(picture)
    limits = MediaSettings(allowed_roots=(root,), max_image_bytes=len(picture))

    def check(real: str, roots: Sequence[Path]) -> bool:
        inside = _inside(real, roots)
        exchange(root / name, outside if name == "folder" else outside / "photo.jpg")
        return inside

    monkeypatch.setattr("captioner.media.files._inside", check)
    with pytest.raises(JobError) as caught:
        # Where the system tells, the file that was checked is looked into, and not opened again.
        open_source(Source(f"{root}/folder/photo.jpg"), root, limits).open()

    assert caught.value.code is ErrorCode.FETCH_FAILED


@pytest.mark.parametrize("name", ["folder", "folder/photo.jpg"])
def test_nor_is_what_becomes_one_before_it_is_decoded(
    root: Path, tmp_path: Path, limits: MediaSettings, name: str
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "photo.jpg").write_bytes(jpeg())
    (root / "folder").mkdir()
    (root / "folder/photo.jpg").write_bytes(jpeg())
    media = open_source(Source(f"{root}/folder/photo.jpg"), root, limits)
    assert decode_image(media, limits).size == (64, 48)
    exchange(root / name, outside if name == "folder" else outside / "photo.jpg")

    with pytest.raises(JobError) as caught:
        decode_image(media, limits)

    assert caught.value.code is ErrorCode.FETCH_FAILED


def test_a_link_that_is_exchanged_while_it_is_resolved_is_no_accident(
    root: Path, limits: MediaSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(real_files, "_REACH", os.O_CLOEXEC)  # the system leaves no time for it
    (root / "link.jpg").symlink_to("photo.jpg")
    real = os.readlink

    def read(path: str, *arguments: object, **options: object) -> str:
        if str(path).endswith("link.jpg"):
            Path(path).unlink()
            Path(path).touch()
        return real(path, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "readlink", read)

    try:  # by the version of Python
        assert open_source(Source(f"{root}/link.jpg"), root, limits).path == root / "link.jpg"
    except JobError as error:
        assert error.code is ErrorCode.SOURCE_NOT_ALLOWED  # noqa: PT017 (either may happen)


def test_a_fifo_in_the_files_place_blocks_nobody(root: Path, limits: MediaSettings) -> None:
    media = open_source(Source(f"{root}/photo.jpg"), root, limits)
    media.path.unlink()
    os.mkfifo(media.path)

    with pytest.raises(JobError) as caught:
        media.open()

    assert caught.value.code is ErrorCode.SOURCE_NOT_ALLOWED


def test_descriptors_are_closed(root: Path, limits: MediaSettings) -> None:
    os.mkfifo(root / "fifo")
    before = len(list(Path("/dev/fd").iterdir()))
    for _ in range(3):
        open_source(Source(f"{root}/photo.jpg"), root, limits).open().close()
        for name in ("fifo", "missing/photo.jpg", "photo.jpg/below", ""):
            failure(f"{root}/{name}", limits)
    assert len(list(Path("/dev/fd").iterdir())) == before


def test_a_loop_of_links_ends(root: Path, limits: MediaSettings) -> None:
    (root / "a").symlink_to("b")
    (root / "b").symlink_to("a")

    error = failure(root / "a", limits)

    assert error.code is ErrorCode.FETCH_FAILED
    assert not error.retryable


def test_the_byte_limit_is_the_settings(root: Path) -> None:
    size = (root / "photo.jpg").stat().st_size
    fitting = MediaSettings(allowed_roots=(root,), max_image_bytes=size)
    assert open_source(Source(f"{root}/photo.jpg"), root, fitting).path.is_file()

    error = failure(
        root / "photo.jpg", MediaSettings(allowed_roots=(root,), max_image_bytes=size - 1)
    )

    assert error.code is ErrorCode.MEDIA_TOO_LARGE
    assert "CAPTIONER_MEDIA__MAX_IMAGE_BYTES" in error.message


@contextlib.contextmanager
def nobody() -> Iterator[None]:
    """Root may read everything: be someone else for a moment."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_an_unreadable_file_says_so(root: Path, limits: MediaSettings) -> None:
    (root / "photo.jpg").chmod(0)

    with nobody():
        error = failure(root / "photo.jpg", limits)

    assert error.code is ErrorCode.FETCH_FAILED
    assert "may not read" in error.message
    assert not error.retryable


def test_unknown_schemes_name_the_known_ones(limits: MediaSettings) -> None:
    error = failure("ftp://user:secret@files.example/photo.jpg", limits)

    assert error.code is ErrorCode.SOURCE_NOT_ALLOWED
    assert "'ftp'" in error.message
    assert "data, file, http, https" in error.message
    assert "secret" not in error.message


@pytest.mark.parametrize(
    "uri",
    ["user:secret@a.example/a.jpg", "a-user:secret@a.example/a", "http//user:secret@a.example",
     "//user:secret@a.example/a.jpg", "http:/user:secret@a.example", "ftp:user:secret@a.example"],
)  # fmt: skip
def test_credentials_in_mistyped_urls_are_not_repeated(limits: MediaSettings, uri: str) -> None:
    message = failure(uri, limits).message
    assert "secret" not in message
    assert "user" not in message


def names(limits: MediaSettings, *uris: str | Path) -> list[str | ErrorCode]:
    """What a worker finds that begins these one after the other: a file's path, or an error."""
    found: list[str | ErrorCode] = []
    with LocalFolders(limits) as folders:
        for uri in uris:
            try:
                media = folders.open(Source(str(uri)))
            except JobError as error:
                found.append(error.code)
            else:
                assert media.name == Source(str(uri)).display
                assert media.real
                media.open().close()
                found.append(str(media.path))
    return found


def test_many_files_are_found_as_one_alone_would_be(
    root: Path, tmp_path: Path, limits: MediaSettings
) -> None:
    (root / "deep").mkdir()
    (root / "deep/photo.jpg").write_bytes(jpeg())
    (root / "link.jpg").symlink_to("deep/photo.jpg")
    (root / "out.jpg").symlink_to(tmp_path / "secret.jpg")
    (root / "alias").symlink_to("deep")
    (root / "out").symlink_to(tmp_path)
    os.mkfifo(root / "fifo")
    uris = [
        f"{root}/photo.jpg",
        f"{root}/deep/photo.jpg",
        f"file://{root}/deep/photo.jpg",
        f"{root}//photo.jpg",
        f"{root}/deep/./photo.jpg",
        f"{root}/link.jpg",
        f"{root}/alias/photo.jpg",
        f"{root}/out.jpg",
        f"{root}/out/secret.jpg",
        f"{root}/fifo",
        f"{root}/missing.jpg",
        f"{root}/missing/photo.jpg",
        f"{root}/photo.jpg/below",
        f"{root}/deep",
        f"{root}/deep/",
        f"{tmp_path}/secret.jpg",
        f"{root}/../secret.jpg",
        "/photo.jpg",
        "photo.jpg",
    ]
    alone = [name for uri in uris for name in names(limits, uri)]

    assert names(limits, *uris) == alone
    assert names(limits, *reversed(uris)) == alone[::-1]
    deep = str((root / "deep/photo.jpg").resolve())
    assert alone[:7] == [
        str((root / "photo.jpg").resolve()),
        deep,
        deep,
        alone[0],
        deep,
        deep,
        deep,
    ]
    assert all(isinstance(one, ErrorCode) for one in alone[7:])


def test_a_known_folder_is_not_followed_again(
    root: Path, tmp_path: Path, limits: MediaSettings
) -> None:
    """Whoever makes a link of it does not lead out."""
    (root / "folder").mkdir()
    (root / "folder/photo.jpg").write_bytes(jpeg())
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "photo.jpg").write_bytes(jpeg())
    source = Source(f"{root}/folder/photo.jpg")
    with LocalFolders(limits) as folders:
        folders.open(source).open().close()
        exchange(root / "folder", outside)

        with pytest.raises(JobError):
            folders.open(source).open()


def test_limits_hold_in_a_known_folder(root: Path, limits: MediaSettings) -> None:
    size = (root / "photo.jpg").stat().st_size
    (root / "large.jpg").write_bytes(bytes(size + 1))
    small = limits.model_copy(update={"max_image_bytes": size})

    assert names(small, root / "photo.jpg", root / "large.jpg") == [
        str((root / "photo.jpg").resolve()),
        ErrorCode.MEDIA_TOO_LARGE,
    ]


def test_an_unreadable_file_in_a_known_folder_says_so(root: Path, limits: MediaSettings) -> None:
    (root / "closed.jpg").write_bytes(jpeg())
    (root / "closed.jpg").chmod(0)
    with LocalFolders(limits) as folders:
        folders.open(Source(f"{root}/photo.jpg"))
        with nobody(), pytest.raises(JobError) as caught:
            folders.open(Source(f"{root}/closed.jpg"))

    assert caught.value.code is ErrorCode.FETCH_FAILED
    assert "may not read" in caught.value.message


def test_known_folders_are_let_go(root: Path, limits: MediaSettings) -> None:
    (root / "out").symlink_to("/")
    for number in range(2 * MOST_FOLDERS):
        (root / str(number)).mkdir()
        (root / str(number) / "photo.jpg").write_bytes(jpeg())
    many = [root / str(number) / "photo.jpg" for number in range(2 * MOST_FOLDERS)]
    before = len(list(Path("/dev/fd").iterdir()))
    with LocalFolders(limits) as folders:
        for one in many:
            folders.open(Source(str(one)))
            assert len(list(Path("/dev/fd").iterdir())) <= before + MOST_FOLDERS
    for _ in range(3):
        names(limits, root / "photo.jpg", root / "missing/photo.jpg", root / "out/photo.jpg", *many)
    assert len(list(Path("/dev/fd").iterdir())) == before


@pytest.mark.parametrize("there", ["an empty root", "no root", "an empty link", "a dangling link"])
def test_a_drive_that_is_away_is_worth_another_try(tmp_path: Path, there: str) -> None:
    mount = tmp_path / "drive"
    root = tmp_path / "link" if "link" in there else mount
    if "empty" in there:
        mount.mkdir()
    if "link" in there:
        root.symlink_to(mount)
    limits = MediaSettings(allowed_roots=(root,))
    for path in ("photo.jpg", "2026/11/photo.jpg"):
        error = failure(root / path, limits)
        assert (error.code, error.retryable) == (ErrorCode.FETCH_FAILED, True)
        assert error.message.endswith(
            "no such file, and no other in its allowed folder; is that mounted?"
        )
    mount.mkdir(exist_ok=True)
    (mount / "other.jpg").write_bytes(jpeg())
    error = failure(root / "photo.jpg", limits)
    assert (error.code, error.retryable) == (ErrorCode.FETCH_FAILED, False)
    assert error.message.endswith(": no such file")


def test_of_roots_in_roots_one_that_holds_anything_is_enough(tmp_path: Path) -> None:
    outer, inner, beside = tmp_path / "a", tmp_path / "a/b", tmp_path / "aa"
    inner.mkdir(parents=True)
    beside.mkdir()
    (beside / "other.jpg").write_bytes(jpeg())
    both = MediaSettings(allowed_roots=(inner, outer, beside))
    assert not failure(inner / "photo.jpg", both).retryable  # `outer` holds `inner`
    assert failure(inner / "photo.jpg", MediaSettings(allowed_roots=(inner, beside))).retryable
