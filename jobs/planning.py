"""What a command makes of its input, its model and what its output holds: the job, planned.

Nothing is written and nothing is started here: what cannot be is refused as a wrong command.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from shardrank.actors.config import RerankerConfig
from shardrank.actors.families.choice import family_of
from shardrank.actors.families.family import Family
from shardrank.actors.model.architecture import read_architecture
from shardrank.actors.model.checkpoint import (
    adapter_of,
    checkpoint_fingerprint,
    resolve_checkpoint,
)
from shardrank.jobs.errors import JobError, UnreadableInput, UsageError
from shardrank.jobs.inputs.forms import OpenedInput, open_job_input
from shardrank.jobs.outputs.done import is_finished, read_held
from shardrank.jobs.outputs.files import EMBEDDINGS, SCORES, Output, check_trec_ids
from shardrank.jobs.outputs.growth import begin_growth, find_held, had_trec_run
from shardrank.jobs.outputs.input_files import Job, has_new_input, known_paths
from shardrank.jobs.outputs.job import check_same_job, job_fingerprint
from shardrank.jobs.outputs.manifest import Check, Manifest
from shardrank.jobs.storage import Location
from shardrank.jobs.units.growth import Held
from shardrank.jobs.units.plan import Plan, plan_units

if TYPE_CHECKING:
    from shardrank.jobs.rerank import JobOptions


@dataclass(slots=True)
class PlannedJob:
    """The job of a command. manifest: the output's, None where it has none yet. is_growing: the
    input has grown, and what is new is to be added. wants_trec_run: asked for, or an earlier run
    wrote one, which is to be of the grown input too.
    """

    options: "JobOptions"
    config: RerankerConfig
    output: Output
    opened: OpenedInput
    plan: Plan
    fingerprint: Job
    manifest: Manifest | None
    is_growing: bool
    wants_trec_run: bool

    @property
    def begun(self) -> Manifest:
        """The manifest of a job that has one."""
        assert self.manifest is not None
        return self.manifest

    @property
    def is_finished(self) -> bool:
        """Whether there is nothing to score, nor to score again."""
        retried = self.options.retry_errors
        return self.manifest is not None and is_finished(self.manifest, self.plan, retried)


def plan_job(options: "JobOptions", config: RerankerConfig) -> PlannedJob:
    """Raises UsageError, also for an output that belongs to another job."""
    folder = SCORES if config.embedding is None else EMBEDDINGS
    output = Output(Location.parse(options.output), options.with_rankings, folder)
    manifest = Manifest.read(output)
    opened = _open_input(options, manifest)
    held = read_held(output, manifest)
    plan, job = _plan(options, config, opened, manifest, held)
    is_growing, had_run = False, False
    if manifest is not None:
        is_growing = options.add_new and has_new_input(manifest.job, job)
        had_run = manifest.lacks_trec_run or (is_growing and had_trec_run(output))
        if not is_growing:
            check_same_job(output.directory, manifest.job, job)
    with_run = options.with_trec_run or had_run
    if with_run:
        check_trec_ids(plan)
    return PlannedJob(options, config, output, opened, plan, job, manifest, is_growing, with_run)


def resume(job: PlannedJob, check_lease: Check) -> None:
    """Go on from the output's manifest, or begin one, for who holds the output; what is new is
    planned beside what it has.
    """
    job.config = _for_workers(job.config, job.fingerprint["model"])
    if job.is_growing:
        manifest = still(job.output, job.begun)
        held = find_held(job.output, manifest, job.opened)
        job.plan, job.fingerprint = _plan(job.options, job.config, job.opened, manifest, held)
        manifest.guard = check_lease
        begin_growth(manifest, job.fingerprint, job.opened, held)
    job.manifest = Manifest.held(job.output, job.fingerprint, job.config, check_lease)


def still(output: Output, planned: Manifest) -> Manifest:
    """The directory's manifest. Raises JobError where another run changed the job since this one
    planned with it: what it added would be written over.
    """
    manifest = Manifest.read(output)
    if manifest is None or (manifest.job, manifest.growth) != (planned.job, planned.growth):
        raise JobError(f"{output.directory}: another run changed it meanwhile; run this again")
    return manifest


def _open_input(options: "JobOptions", manifest: Manifest | None) -> OpenedInput:
    """The input, its files in the order in which the job knows them."""
    options.input.check_apart_from(options.output)
    try:
        opened = open_job_input(options.input)
    except UnreadableInput as error:
        raise UsageError(str(error)) from error
    return opened.ordered_as(known_paths(manifest.job)) if manifest else opened


def _plan(
    options: "JobOptions",
    config: RerankerConfig,
    opened: OpenedInput,
    manifest: Manifest | None,
    held: Held | None,
) -> tuple[Plan, Job]:
    """The job's units and its fingerprint; an input that cannot be planned is a wrong command."""
    known = manifest.job if manifest else {}
    goes_on = options.order == "auto" and (options.add_new or held is not None)
    order = known.get("order", "auto") if goes_on else options.order
    unit_pairs, files = options.unit_pairs, known.get("input")
    try:
        plan = plan_units(opened, unit_pairs, order, held=held)
        config, family, model = _model(config)
        plan = replace(plan, input=replace(plan.input, vector=_vector(config)))
        return plan, job_fingerprint(
            opened, plan, config, family, model, unit_pairs, options.with_rankings, files
        )
    except UnreadableInput as error:
        raise UsageError(str(error)) from error


def _vector(config: RerankerConfig) -> pa.DataType | None:
    """The type of a text's vector; None: pairs are scored."""
    if config.embedding is None:
        return None
    precision = {"float32": pa.float32(), "float16": pa.float16()}[config.embedding.precision]
    return pa.list_(precision, config.embedding.dimensions)


def _model(config: RerankerConfig) -> tuple[RerankerConfig, Family, dict[str, str]]:
    """The config with its instruction, and an embedder's dimensions; the model's family, and what
    the manifest says of it. Of a hub's only the settings are fetched here: its weights are for the
    workers.
    """
    try:
        checkpoint = resolve_checkpoint(config, weights=False)
        if checkpoint.parent.name != "snapshots" and not any(checkpoint.glob("*.safetensors")):
            raise ValueError(f"{checkpoint} has no *.safetensors")
        family = family_of(checkpoint, config.task)
        if config.embedding is not None:
            width = read_architecture(checkpoint).text.hidden_size
            dimensions = config.embedding.dimensions or width
            if dimensions > width:
                raise UsageError(
                    f"--dimensions: the vectors of {config.model} have {width}, not {dimensions}"
                )
            config = replace(config, embedding=replace(config.embedding, dimensions=dimensions))
        config = replace(config, instruction=config.resolve(checkpoint).instruction)
        return config, family, checkpoint_fingerprint(checkpoint, adapter_of(config))
    except ValueError as error:
        raise UsageError(f"--model: {error}") from error


def _for_workers(config: RerankerConfig, model: Mapping[str, str]) -> RerankerConfig:
    """The checkpoint that the driver saw, by paths that hold wherever a worker starts.

    A submitted job's workers start in its own copy of the working directory, as the driver does.
    """
    from shardrank.jobs.cluster import is_submitted  # Ray takes seconds, a refusal needs none of it

    config = replace(config, revision=model.get("commit", config.revision))
    if is_submitted():
        return config
    roots = config.media_root
    roots = tuple(map(_absolute, roots)) if isinstance(roots, tuple) else _absolute(roots)
    return replace(
        config,
        model=_absolute(config.model),
        adapter=_absolute(config.adapter),
        media_root=roots,
    )


def _absolute(path: Any) -> Any:
    """A local directory's absolute path; a hub name, an object store's prefix or None as it is."""
    return str(Path(path).resolve()) if path and Path(path).is_dir() else path
