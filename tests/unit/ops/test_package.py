"""What goes along with a job, in folders as people have them; nothing here is a real key."""

from __future__ import annotations

import os
import shlex
import subprocess
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray._private.runtime_env.packaging import unzip_package
from ray.job_submission import JobSubmissionClient

from dat_ray.errors import InputError
from dat_ray.ops import package
from dat_ray.ops.package import Package, list_files, pack
from dat_ray.ops.secret_files import secret_by_name, secret_in_content

# Put together here, so that this file does not look like a secret itself.
KEY = "-----BEGIN OPENSSH " + "PRIVATE KEY-----\nbm90IGEga2V5\n"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAT_CACHE", str(tmp_path / "cache"))


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def git(root: Path, command: str) -> None:
    own = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "protocol.file.allow=always"]
    # Whoever runs the tests may sign commits, or have a repository named in the environment.
    bare = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    alone = bare | {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    subprocess.run(["git", *own, "-C", str(root), *shlex.split(command)], check=True, capture_output=True, env=alone)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository with changed, untracked, ignored and deleted files."""
    folder = tmp_path / "work"
    write(folder, {"jobs/run.py": "old", "data/a.csv": "goal\n", "gone.txt": "x", ".gitignore": "runs/\n*.tmp\n"})
    git(folder, "init -q")
    git(folder, "add -A")
    git(folder, "commit -qm first")
    write(folder, {"jobs/run.py": "new", "note.txt": "untracked", "runs/r/x.parquet": "x", "y.tmp": "x", ".venv/lib.py": "x"})
    (folder / "gone.txt").unlink()
    return folder


def packed(made: Package) -> dict[str, str]:
    with zipfile.ZipFile(made.path) as archive:
        found = {name: archive.read(name).decode() for name in archive.namelist()}
    assert {name: len(text.encode()) for name, text in found.items()} == made.sizes, "what is listed is what is in it"
    return found


def test_what_git_tracks_goes_along_as_it_is_in_the_working_tree(root: Path) -> None:
    found = packed(pack(list_files(str(root))))
    assert found == {"jobs/run.py": "new", "data/a.csv": "goal\n", ".gitignore": "runs/\n*.tmp\n"}
    # A folder of the repository is enough, and its parents stay here.
    assert packed(pack(list_files(str(root / "jobs")))) == {"run.py": "new"}


def test_what_is_named_goes_along_though_untracked(root: Path) -> None:
    assert "mine.yaml" not in list_files(str(root)).files
    write(root, {"mine.yaml": "name: m"})
    assert set(list_files(str(root), ["mine.yaml"]).files) == {"jobs/run.py", "data/a.csv", ".gitignore", "mine.yaml"}
    assert "runs/r/x.parquet" in list_files(str(root), include=["runs"]).files
    assert "data/a.csv" not in list_files(str(root), exclude=["data"]).files
    with pytest.raises(InputError, match=r"--include = 'absent/\*': names no file"):
        list_files(str(root), include=["absent/*"])


def test_without_git_a_list_is_required(tmp_path: Path) -> None:
    write(tmp_path / "plain", {"a.py": "", "b/c.csv": "1", "b/d.txt": ""})
    with pytest.raises(InputError, match="Name it with --include"):
        list_files(str(tmp_path / "plain"))
    assert set(list_files(str(tmp_path / "plain"), include=["b/*.csv"]).files) == {"b/c.csv"}
    assert set(list_files(str(tmp_path / "plain"), include=["b", "./a.py"]).files) == {"a.py", "b/c.csv", "b/d.txt"}
    with pytest.raises(InputError, match="no such folder"):
        list_files(str(tmp_path / "absent"))


def test_a_machine_without_git_asks_for_a_list_too(root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="or no git here"):
        list_files(str(root))


def test_another_repository_in_the_environment_is_not_meant(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(tmp_path, "init -q other")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))
    assert "jobs/run.py" in list_files(str(root)).files


def test_submodules_and_pointers_of_large_files(root: Path, tmp_path: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"
    write(tmp_path / "inner", {"lib.py": "lib", "big.bin": pointer})
    git(tmp_path / "inner", "init -q")
    git(tmp_path / "inner", "add -A")
    git(tmp_path / "inner", "commit -qm one")
    git(root, f"submodule add -q {tmp_path / 'inner'} inner")
    made = pack(list_files(str(root)))
    assert packed(made)["inner/lib.py"] == "lib"
    assert made.pointers == ("inner/big.bin",)
    git(root, "submodule -q deinit -f inner")
    listing = list_files(str(root))
    assert not [name for name in listing.files if name.startswith("inner")]
    assert listing.notes == ("inner is a submodule that is not checked out",)


NAMED = [
    *("keys/id_ed25519", "keys/ID_RSA", ".ssh/known_hosts", "home/.aws/config", "x/.netrc", "_netrc", ".git-credentials"),
    *("a/server.pem", "tls.key", "store.P12", "cert.pfx", "app.jks", "vault.kdbx", "putty.ppk", ".envrc", ".env", ".env.local"),
    *("deploy/prod.env", ".pgpass", ".kube/config", "kubeconfig", "dev.kubeconfig", ".docker/config.json", ".gnupg/x"),
    *(".huggingface/token", "cache/huggingface/token", "hf_token", "etc/gcloud/application_default.json"),
]


@pytest.mark.parametrize("name", NAMED)
def test_a_tracked_file_with_the_name_of_a_secret_is_refused(root: Path, name: str) -> None:
    write(root, {name: "x"})
    git(root, "add -Af .")
    listing = list_files(str(root))
    assert name in listing.files
    with pytest.raises(InputError) as error:
        pack(listing)
    assert repr(name) in str(error.value)
    assert not list((root.parent / "cache").rglob("*.zip"))
    assert name not in packed(pack(list_files(str(root), exclude=[name])))


CONTENTS = {
    "notes.txt": f"remember\n{KEY}",
    "sa.json": '{"type": "service_account", "private' + '_key": "0123456789abcdef0123"}',
    "npm/.npmrc": "//registry.example.org/:_auth" + "Token=0123456789",
    ".pypirc": "[pypi]\nusername = me\npassword = hunter2\n",
    "cluster.yaml": "kind: Config\nusers:\n- user:\n    token: 0123456789abcdef0123\n",
    "admin.conf": "    client-key" + "-data: 0123456789abcdef0123\n",
    "fetch.py": "login('hf" + "_" + "aB3" * 12 + "')",
    "ci.yml": "token: ghp" + "_" + "aB3" * 12,
    "key.asc": "-----BEGIN PGP PRIVATE " + "KEY BLOCK-----",
    "pasted.md": "I use correct-horse-battery for it",
    "deploy/credentials": "[default]\naws_secret_access" + "_key = " + "aB3/" * 10,
    "env.sh": "export AWS_SECRET_ACCESS" + "_KEY='" + "aB3+" * 10 + "'",
    "oauth.json": '{"refresh' + '_token": "1//0123456789abcdef0123"}',
    "maps.js": "key: 'AI" + "za" + "aB3_x" * 7 + "'",
}


@pytest.mark.parametrize("name", CONTENTS)
def test_a_tracked_file_that_holds_a_secret_is_refused(root: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAGING_PASSWORD", "correct-horse-battery")
    write(root, {name: "a" * 100_000 + "\n" + CONTENTS[name]})
    git(root, "add -A")
    with pytest.raises(InputError, match="holds what looks like a secret") as error:
        pack(list_files(str(root)))
    assert repr(name) in str(error.value)
    assert "correct-horse" not in str(error.value)


def test_what_only_looks_like_one_goes_along() -> None:
    harmless = ("id_rsa.pub", ".env.example", "prod.env.template", "environment.py", "keys.py", "token.py", "tokenizer/token")
    for name in harmless:
        assert secret_by_name(name) is None, name
    texts = {
        "a.md": "Write a PRIVATE KEY into ~/.ssh/id_rsa, never here; tokens begin with hf_ or sk-.",
        "a.pem.md": "-----BEGIN CERTIFICATE-----",
        ".npmrc": "//registry.example.org/:_authToken=${NPM_TOKEN}",
        "k.yaml": "kind: Config\ncurrent-context: dev\n",
        "aws.md": "Set AWS_SECRET_ACCESS_KEY=... or aws_secret_access_key = <your key>; never commit it.",
        "oauth.md": '{"client_secret": "YOUR SECRET GOES HERE", "refresh_token": ""}',
        "db.md": "postgres://user:password@host/db",
        "risk-free-and-long-and-long-words.md": "task-free-and-long-and-long-words",
    }
    for name, text in texts.items():
        assert secret_in_content(text.encode(), name) is None, name


def test_this_repository_goes_along_as_it_is() -> None:
    """Nothing in it looks like a secret, its tests' made-up ones included."""
    folder = Path(__file__).parents[3]
    if not (folder / ".git").exists():
        pytest.skip("not in a repository")
    listing = list_files(str(folder))
    for name, path in listing.files.items():
        assert secret_by_name(name) is None, name
        if path.stat().st_size < 2**20:
            assert secret_in_content(path.read_bytes(), path.name) is None, name


@pytest.mark.parametrize("target", ["../outside/secret.csv", "/etc/hostname", "../outside", "../nowhere"])
def test_a_link_out_of_the_folder_is_refused(root: Path, target: str) -> None:
    write(root.parent, {"outside/secret.csv": "x"})
    os.symlink(target, root / "data" / "link")
    os.symlink(target if target.startswith("/") else f"../{target}", root / "data" / "link2")
    git(root, "add -A")
    with pytest.raises(InputError, match=r"'data/link2?': leads out of .* by a symbolic link"):
        list_files(str(root))
    assert "data/link" not in list_files(str(root), exclude=["data/link*"]).files


def test_a_file_under_a_folder_that_became_a_link_is_refused(root: Path, tmp_path: Path) -> None:
    write(tmp_path / "outside", {"a.csv": "theirs"})
    (root / "data" / "a.csv").unlink()
    (root / "data").rmdir()
    os.symlink(tmp_path / "outside", root / "data")
    with pytest.raises(InputError, match=r"'data/a.csv': leads out"):
        list_files(str(root))


def test_links_within_the_folder_and_loops(root: Path) -> None:
    for link, target in {
        "same.csv": "data/a.csv",
        "all": "data",
        "jobs/up": "..",
        "self": ".",
        "loop": "loop",
        "one": "two",
        "two": "one",
        "broken": "absent",
        "data/again": ".",
        "ignored": "y.tmp",
    }.items():
        os.symlink(target, root / link)
    git(root, "add -A .")
    listing = list_files(str(root))
    found = packed(pack(listing))
    assert set(found) == {"jobs/run.py", "data/a.csv", ".gitignore", "note.txt", ".venv/lib.py", "same.csv", "all/a.csv"}
    assert found["all/a.csv"] == found["same.csv"] == "goal\n"
    assert len(listing.notes) == 8
    assert "ignored is a link to what does not go along" in listing.notes


def test_a_harmless_name_that_leads_to_a_secret_is_refused(root: Path) -> None:
    write(root, {"private/.netrc": "x"})
    os.symlink("private/.netrc", root / "settings.txt")
    git(root, "add -A .")
    with pytest.raises(InputError, match=r"'settings.txt' \(credentials\)"):
        pack(list_files(str(root), exclude=["nothing"]))


def test_equal_files_are_one_package_and_ray_unpacks_it(root: Path, tmp_path: Path) -> None:
    (root / "jobs" / "run.py").chmod(0o755)
    first = pack(list_files(str(root)))
    os.utime(root / "jobs" / "run.py", (1, 1))
    again = pack(list_files(str(root)))
    assert first == again
    assert Path(first.path).stat().st_mode & 0o077 == 0
    assert again.bytes == Path(again.path).stat().st_size
    copy = tmp_path / "copy.zip"
    copy.write_bytes(Path(first.path).read_bytes())
    unzip_package(str(copy), str(tmp_path / "job"), remove_top_level_directory=False, unlink_zip=True)
    names = {str(path.relative_to(tmp_path / "job")) for path in (tmp_path / "job").rglob("*") if path.is_file()}
    assert names == set(first.sizes)
    # An old one is forgotten.
    os.utime(first.path, (1, 1))
    write(root, {"jobs/run.py": "newer"})
    assert pack(list_files(str(root))).path != first.path
    assert not Path(first.path).exists()


def test_ray_uploads_these_bytes_and_no_others(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own rules about what to leave out take no part: a zip file goes as it is."""
    write(root, {".rayignore": "*.csv\n"})
    monkeypatch.chdir(root)
    made = pack(list_files(str(root), include=[".rayignore"]))
    sent: list[bytes] = []

    def request(method: str, endpoint: str, *, data: bytes = b"", **_: object) -> SimpleNamespace:
        sent.append(data)
        return SimpleNamespace(status_code=404 if method == "GET" else 200)

    client = JobSubmissionClient.__new__(JobSubmissionClient)
    monkeypatch.setattr(client, "_do_request", request)
    runtime_env = {"working_dir": made.path}
    client._upload_working_dir_if_needed(runtime_env)
    assert [data for data in sent if data] == [Path(made.path).read_bytes()]
    assert runtime_env["working_dir"].startswith("gcs://_ray_pkg_")
    assert Path(made.path).exists(), "what the printed line names is still there"


def test_too_large_is_refused_before_the_upload_with_the_largest_files(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package.packaging, "GCS_STORAGE_MAX_SIZE", 2**20)
    (root / "big.npy").write_bytes(b"\0" * (5 * 2**20))
    with pytest.raises(InputError, match=r"5 MiB, Ray's head takes 1; the largest: big.npy \(5.0 MiB\), "):
        pack(list_files(str(root), ["big.npy"]))
    # What only zipping can tell is told too.
    (root / "big.npy").write_bytes(os.urandom(2 * 2**20))
    with pytest.raises(InputError, match=r"2 MiB, Ray's head takes 1"):
        pack(list_files(str(root), ["big.npy"]))
    assert not list(Path(os.environ["DAT_CACHE"]).rglob("*partial")), "nothing is left behind"
