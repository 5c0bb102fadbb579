"""`dat submit`: checks a recipe, packs what it needs, and runs one stage as a Ray job.

What goes along is listed and looked through for secrets before anything is sent. The job's id follows from the stage and the
run directory, so that Ray refuses a second one that would write the same files. What is printed at the end is the plain
`ray job submit` line that does the same, with the same package.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import posixpath
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from dat_ray.config.loading import fingerprint, list_recipes, load_recipe, recipe_text
from dat_ray.config.schema import Recipe
from dat_ray.config.section import Outside
from dat_ray.data.table_sources import HUB
from dat_ray.data.trust import outside_values
from dat_ray.errors import DatError, InputError, Stopped
from dat_ray.models.embedded import PREFIX, on_hub
from dat_ray.ops.package import Package, PackageFiles, list_files, pack
from dat_ray.ops.secret_files import secret_in_content
from dat_ray.progress import stage_line
from dat_ray.secrets import secrets_in

SCRIPTS = {"generate": "generate", "train": "train", "evaluate": "evaluate", "run": "pipeline"}
# Tells a checkout of this package.
CHECKOUT = "dat_ray/cli.py"
# Stages without actors of their own need no cluster: `pipeline` runs them, or `dat select` and `dat report` at home.
SECONDS_FOR_AN_AGENT = 60.0
SECONDS_BETWEEN_TRIES = 2.0
MOST_BREAKS = 5
# Marks of fields that name what a job reads.
READ = (Outside.FILE, Outside.CODE)
_NOT_YET = ("No available agent", "Connection refused", "503")


@dataclass(frozen=True)
class Submission:
    """One job, ready to be sent.

    Attributes:
        stage: `generate`, `train`, `evaluate` or `run`.
        recipe: checked.
        run_dir: as the cluster's nodes see it.
        submission_id: Ray's id of the job.
        entrypoint: shell command.
        listing: files that go along.
        metadata: stage, run and fingerprint.
    """

    stage: str
    recipe: Recipe
    run_dir: str
    submission_id: str
    entrypoint: str
    listing: PackageFiles
    metadata: dict[str, str]

    def plain_line(self, address: str, package: Package) -> str:
        """The `ray job submit` command that does the same."""
        words = ["ray", "job", "submit", "--address", address, "--submission-id", self.submission_id]
        words += ["--working-dir", package.path]
        words += ["--metadata-json", json.dumps(self.metadata), "--", *shlex.split(self.entrypoint)]
        return shlex.join(words)


@dataclass(frozen=True)
class WorkingDir:
    """The folder that becomes a job's.

    Attributes:
        path: of it, here.
        include, exclude: what goes along; see `list_files`.
    """

    path: str
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()


def prepare(
    stage: str, recipe_name: str, *, run_dir: str | None, settings: Sequence[str], resume: bool, working_dir: WorkingDir
) -> Submission:
    """Checks everything that can be checked here, before anything is sent.

    Args:
        stage: a key of `SCRIPTS`.
        recipe_name: a shipped recipe, or a YAML file in the working directory.
        run_dir: where the run lies, as the cluster's nodes see it.
        settings: `--set` overrides.
        resume: whether the job may continue what is there.
        working_dir: what goes along.

    Raises:
        InputError: a secret on the command line or in the recipe, a bad recipe, one outside the folder, a file of it that
            does not go along, or a run directory that is not shared.
    """
    if run_dir is None:
        raise InputError("--run-dir", None, "name a folder that all nodes of the cluster share, such as /shared/runs/first")
    if "://" not in run_dir and not posixpath.isabs(run_dir):
        raise InputError(
            "--run-dir", run_dir, "a job's own folder is gone after it: give an absolute path on shared storage, or a URI"
        )
    _refuse_secrets(recipe_name, settings, run_dir)
    recipe = load_recipe(recipe_name, settings)
    root = Path(working_dir.path).resolve()
    if recipe_name in list_recipes():
        named, own = recipe_name, []
    else:
        path = Path(recipe_name).resolve()
        if not path.is_relative_to(root):
            raise InputError(
                "RECIPE", recipe_name, f"lies outside the folder that goes along ({working_dir.path}): see --working-dir"
            )
        named = path.relative_to(root).as_posix()
        own = [named]
    listing = list_files(working_dir.path, own, working_dir.include, working_dir.exclude)
    if not listing.files.keys() >= {*own}:
        raise InputError("--exclude", list(working_dir.exclude), "leaves out the recipe itself: name less")
    _check_paths(recipe, listing)
    _check_models(recipe, listing)
    run_dir = run_dir.rstrip("/")
    # The package is part of the image; its checkout, where the working directory is one, takes precedence. In
    # another repository a script of that name is somebody else's.
    script = f"jobs/{SCRIPTS[stage]}.py"
    command = ["python", script] if {script, CHECKOUT} <= listing.files.keys() else ["python", "-m", "dat_ray.cli", stage]
    words = [*command, named, "--run-dir", run_dir]
    words += ["--resume"] if resume else []
    for setting in settings:
        words += ["--set", setting]
    mark = fingerprint(recipe)
    return Submission(
        stage,
        recipe,
        run_dir,
        job_id(stage, run_dir),
        shlex.join(words),
        listing,
        {"stage": stage, "run": run_dir, "fingerprint": mark},
    )


def _refuse_secrets(recipe_name: str, settings: Sequence[str], run_dir: str) -> None:
    """Everybody who may look at the cluster's jobs sees a job's command; its recipe is stored with the run."""
    for option, text, name in [
        *(("--set", setting, setting.partition("=")[0]) for setting in settings),
        ("--run-dir", run_dir, "a path"),
        ("RECIPE", recipe_text(recipe_name), recipe_name),
    ]:
        what = ", ".join(secrets_in(text)) or secret_in_content(text.encode())
        if what:
            remedy = f"holds {what}: name the environment variable (api_key_env) and set it on the nodes, never its value"
            raise InputError(option, name, remedy)


def _check_paths(recipe: Recipe, listing: PackageFiles) -> None:
    """Files that a recipe names by a relative path must go along: the job starts in the folder that is packed."""

    for field, value in ((one.field, one.value) for one in outside_values(recipe, Recipe.model_fields) if one.what in READ):
        if value.startswith((HUB, "/")) or "://" in value or _goes_along(listing, value):
            continue
        there = (listing.root / value).exists() or any(listing.root.glob(value or "."))
        remedy = f"add it to git, or --include {shlex.quote(value)}" if there else "put it there, or on shared storage"
        raise InputError(field, value, f"is not in the folder that goes along ({listing.root}): {remedy}")


def _check_models(recipe: Recipe, listing: PackageFiles) -> None:
    """Models that a recipe names by a relative path must go along too; the names of a hub and of servers are no paths."""
    named = {f"{section}.model": config for section, (config, _) in recipe.engines().items()}
    names = {field: config.model for field, config in named.items() if getattr(config, "endpoint", None) is None}
    if recipe.encoder is not None:
        names["encoder.model"] = recipe.encoder.model
    for field, name in names.items():
        if name.startswith((PREFIX, "/")) or "://" in name or _goes_along(listing, name):
            continue
        # What has the form of a hub's name is a folder's where there is one.
        if not on_hub(name) or (listing.root / name).exists():
            remedy = f"put it on shared storage and give its path, or --include {shlex.quote(name)}"
            raise InputError(field, name, f"is not in the folder that goes along ({listing.root}): {remedy}")


def _goes_along(listing: PackageFiles, value: str) -> bool:
    """Whether a file, something in a folder, or something that a pattern names is among the listed files."""
    place = posixpath.normpath(value)
    return any(path == place or path.startswith(f"{place}/") or ("*" in place and fnmatch(path, place)) for path in listing.files)


def job_id(stage: str, run_dir: str, attempt: int = 1) -> str:
    """The id of the nth job for a stage of a run directory."""
    digest = hashlib.sha256(f"{stage} {run_dir}".encode()).hexdigest()[:12]
    return f"dat-{stage}-{digest}-{attempt}"


def connect(address: str) -> JobSubmissionClient:
    """The job server at an address, waited for.

    Raises:
        DatError: nobody answers there within `SECONDS_FOR_AN_AGENT`, or it wants a token.
    """
    deadline = time.monotonic() + SECONDS_FOR_AN_AGENT
    # The client lets the environment override what it is told; here the option is the truth.
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        os.environ.pop(name, None)
    waiting = False
    while True:
        try:
            return JobSubmissionClient(address)
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            if "oken" in reason:
                raise DatError(f"{address} wants a token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN ({reason})") from error
            if not isinstance(error, ConnectionError) or time.monotonic() > deadline:
                raise DatError(
                    f"no Ray job server answers at {address} ({reason}): start the cluster, or mend --address"
                ) from error
            if not waiting:
                stage_line(f"submit: waiting for {address}")
            waiting = True
            time.sleep(SECONDS_BETWEEN_TRIES)


def running_job(client: JobSubmissionClient, submission: Submission) -> tuple[JobDetails | None, int]:
    """The job that works on the same run directory now, if any, and how many jobs this stage of it has had."""
    attempts, active = 0, None
    for job in client.list_jobs():
        metadata = job.metadata or {}
        if metadata.get("run") != submission.run_dir:
            continue
        if metadata.get("stage") == submission.stage:
            attempts += 1
        if not JobStatus(job.status).is_terminal():
            active = job
    return active, attempts


def submit(client: JobSubmissionClient, submission: Submission, package: Package) -> str:
    """Sends a job with its package, waiting for an agent that takes it.

    Returns:
        Its id.

    Raises:
        Stopped: by a signal while it was sent.
        DatError: a job for this run directory is running, or none was accepted in time.
    """
    deadline = time.monotonic() + SECONDS_FOR_AN_AGENT
    while True:
        try:
            job_id: str = client.submit_job(
                entrypoint=submission.entrypoint,
                submission_id=submission.submission_id,
                runtime_env={"working_dir": package.path},
                metadata=dict(submission.metadata),
            )
            return job_id
        except KeyboardInterrupt as stop:
            job = submission.submission_id
            raise Stopped(f"whether Ray took job {job} says `ray job status {job}`; end it with `ray job stop {job}`") from stop
        except Exception as error:
            reason = " ".join(str(error).split())
            if "already exists" in reason:
                raise already_running(submission.submission_id) from error
            if not any(words in reason for words in _NOT_YET) or time.monotonic() > deadline:
                raise DatError(f"Ray did not take the job: {reason[-300:]}") from error
            stage_line("submit: no agent is ready yet, trying again")
            time.sleep(SECONDS_BETWEEN_TRIES)


def already_running(job: str) -> DatError:
    """The refusal of a second job for one run directory."""
    return DatError(
        f"job {job} works on this run directory already: follow it with `ray job logs -f {job}`, "
        f"end it with `ray job stop {job}`, or choose another --run-dir"
    )


def follow(client: JobSubmissionClient, job: str) -> int:
    """Prints a job's log until it ends.

    Returns:
        Exit status for a shell: the job's own where Ray knows it, else 0 for success and 1.

    Raises:
        Stopped: by a signal, which the job does not get.
    """
    try:
        asyncio.run(_print_log(client, job))
    except KeyboardInterrupt as stop:
        raise Stopped(f"job {job} goes on: follow it with `ray job logs -f {job}`, end it with `ray job stop {job}`") from stop
    details = client.get_job_info(job)
    status = JobStatus(details.status)
    if status == JobStatus.SUCCEEDED:
        stage_line(f"submit: job {job} succeeded")
        return 0
    code = details.driver_exit_code
    message = " ".join(str(details.message or "").split())[:300]
    stage_line(f"submit: job {job} {str(status.value).lower()}" + (f", exit {code}" if code else "") + f": {message}")
    return code if isinstance(code, int) and 0 < code < 256 else 1


async def _print_log(client: JobSubmissionClient, job: str) -> None:
    """Tails the log; where the connection breaks, what was printed is not printed again."""
    printed = breaks = 0
    while True:
        try:
            skipped, whole = 0, True
            async for text in client.tail_job_logs(job):
                fresh = text[max(0, printed - skipped) :]
                skipped += len(text)
                sys.stdout.write(fresh)
                sys.stdout.flush()
                printed = max(printed, skipped)
        except (RuntimeError, OSError) as error:
            stage_line(f"submit: the log's connection broke ({error}); asking again")
            breaks, whole = breaks + 1, False
        # The rest of an ended job's log is still to be had, but not for ever.
        if (whole or breaks > MOST_BREAKS) and JobStatus(client.get_job_status(job)).is_terminal():
            return
        await asyncio.sleep(SECONDS_BETWEEN_TRIES)


def show_package(listing: PackageFiles, package: Package, *, whole: bool) -> None:
    """Says what goes along: how much, the largest, what was left out; with `whole` every file."""
    stage_line(f"submit: from {listing.root}, by {listing.source}: {package.summary()}")
    if whole:
        for name, size in package.sizes.items():
            stage_line(f"{size:>12,} B  {name!r}")
    for note in listing.notes:
        stage_line(f"submit: left out: {note!r}")
    if package.pointers:
        stage_line(
            f"submit: {len(package.pointers)} files are git-lfs pointers without their content, such as {package.pointers[0]!r}: "
            "`git lfs pull` brings it"
        )


def _check_dashboard(address: str) -> None:
    """Raises InputError for what can be no dashboard's address. Others than HTTP's are of a module that Ray knows by its name."""
    remedy = "give the dashboard's address, as in http://localhost:8265"
    try:
        parts = urlsplit(address if "://" in address else f"http://{address}")
        web, host, _ = parts.scheme in ("http", "https"), parts.hostname, parts.port
    except ValueError as error:
        raise InputError("--address", address, f"is no address ({error}): {remedy}") from error
    if parts.scheme == "ray":
        raise InputError("--address", address, f"is where Ray clients connect, and takes no jobs: {remedy}")
    if web and (not host or address.split() != [address]):
        raise InputError("--address", address, f"names no host: {remedy}")


def run_submission(arguments: Any) -> int:
    """The verb: prepares, sends and follows."""
    _check_dashboard(arguments.address)
    submission = prepare(
        arguments.stage,
        arguments.recipe,
        run_dir=arguments.run_dir,
        settings=arguments.set,
        resume=arguments.resume,
        working_dir=WorkingDir(arguments.working_dir, arguments.include, arguments.exclude),
    )
    package = pack(submission.listing)
    show_package(submission.listing, package, whole=arguments.verbose or arguments.dry_run)
    if arguments.print:
        print(submission.plain_line(arguments.address, package))
    if arguments.print or arguments.dry_run:
        return 0
    stage_line(f"submit: {submission.stage} of recipe {submission.recipe.name}, fingerprint {submission.metadata['fingerprint']}")
    client = connect(arguments.address)
    active, attempts = running_job(client, submission)
    if active is not None:
        raise already_running(str(active.submission_id))
    if attempts:
        submission = replace(submission, submission_id=job_id(submission.stage, submission.run_dir, attempts + 1))
    job = submit(client, submission, package)
    stage_line(f"submit: job {job}; without this command it would have been:")
    stage_line(submission.plain_line(arguments.address, package))
    return 0 if arguments.no_wait else follow(client, job)
