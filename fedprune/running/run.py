"""One run, from its folder to its summary: build, say what it will do, resume or start, loop, write down, finish.

The folder: config.yaml, run.json (what it is), plan.txt, partition.safetensors, metrics.jsonl, state/, ticket.safetensors, and
summary.json, written last: its presence means done. failed.json says why there is none, and running.json who is at it. With
profile=true also profile.csv and figures/profile.png, .svg and .pdf.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from fedprune.config.instantiate import make
from fedprune.config.secrets import masked_overrides, resolved
from fedprune.data.federate import save_partition
from fedprune.data.population import sizes
from fedprune.execution import employed
from fedprune.experiment.build import build
from fedprune.experiment.estimate import estimate
from fedprune.experiment.experiment import Experiment
from fedprune.federated.masks import Whose
from fedprune.pruning.evidence.gates import is_companion, plain
from fedprune.pruning.mask import density
from fedprune.run_id import RunId, run_id
from fedprune.running import display, loggers
from fedprune.running.display import console
from fedprune.running.earlier import STATE, changed_since, described, refuse_another
from fedprune.running.failure import OF_FAILURE, noted
from fedprune.running.first_look import tell_start
from fedprune.running.lock import held, moment, patience
from fedprune.running.made_with import graphics, made_with
from fedprune.running.resume import DAMAGED, PREVIOUS, end, put_right, resumed, save
from fedprune.running.summary import conclude, provenance
from fedprune.running.widths import tell_widths
from fedprune.storage import digest
from fedprune.storage.checkpoint import save_ticket, write_text
from fedprune.storage.history import METRICS, SUMMARY, line, read
from fedprune.storage.spilled import beyond
from fedprune.types import Json, State

RESULTS = (
    *(SUMMARY, STATE, PREVIOUS, DAMAGED, METRICS),
    *("metrics.csv", "ticket.safetensors", "plan.txt", "partition.safetensors"),
    *("profile.csv", *(f"figures/profile{suffix}" for suffix in (".png", ".svg", ".pdf"))),
)
"""Files of results, which a run with `force` must not take for its own."""


def run(
    config: DictConfig,
    folder: Path,
    names: dict[str, str],
    overrides: Sequence[str],
    sweep: str,
    passes_over: bool = False,
    wanted: str | None = None,
) -> None:
    """Do what the configuration says, and leave the result in `folder`; nothing, if it is there already.

    names: the chosen option of each group. sweep: what the run is grouped by. passes_over: do not wait for another process that
    does this run, whatever `wait` says. wanted: the metric that it is to have at its end. Raises FedpruneError, of which Held
    says that another one writes to the folder; the folder says why the run has no result, if it has none.
    """
    with noted(folder, config.dry_run):
        which, seconds = run_id(config), patience(config.wait, auto=moment())
        if _is_done(config, folder, which):
            return
    if remark := changed_since(folder, which):
        console.print(remark)
    if config.dry_run:
        _brief(build(config, names, wanted), config, names, overrides, _about(config, which, folder, names, overrides, sweep))
        return
    with held(folder, 0 if passes_over else seconds), noted(folder):
        if _is_done(config, folder, which):  # the one that was waited for has done it
            return
        about = _about(config, which, folder, names, overrides, sweep)
        _begin(folder, config, about)
        experiment = build(config, names, wanted)
        _brief(experiment, config, names, overrides, about)
        _describe(folder, experiment, names, about)
        _train(config, folder, experiment, about)


def _is_done(config: DictConfig, folder: Path, which: RunId) -> bool:
    """Return whether the result is there, and is not asked for anew; say so. Raises RunError if the folder has another run."""
    if config.force or config.dry_run:
        return False
    refuse_another(folder, which)
    if (folder / SUMMARY).exists():
        console.print(f"already done: {folder} (force=true does it again)")
        return True
    return False


def _brief(
    experiment: Experiment, config: DictConfig, names: Mapping[str, str], overrides: Sequence[str], about: loggers.About
) -> None:
    """Print what the run is, in short, and of a dry run what it would cost. Facts are added to `about`."""
    about |= _facts(experiment, config)
    about["made_with"]["gpu"] = graphics()  # which is in use only now
    console.print(display.about_text(about))
    console.print(display.brief(_plan_text(experiment, names)))
    others_use_density = "${density}" in json.dumps(OmegaConf.to_container(config))
    if remark := display.idle_text(experiment.plan, names["how_often"], overrides, others_use_density):
        console.print(remark)
    if config.dry_run:
        console.print(display.cost_text(estimate(experiment, config)))


def _plan_text(experiment: Experiment, names: Mapping[str, str]) -> str:
    """Return the plan as lines, with the rewind by the name of its option."""
    options, what = experiment.options, experiment.axes.what
    return display.plan_text(
        experiment.plan,
        rewind=names["rewind"] if options.rewind.goes_back else "",
        emerges=what.emerges,
        own=not options.whose.global_mask,
        untouched=what.untouched,
        of=experiment.config.density_of,
    )


def _begin(folder: Path, config: DictConfig, about: loggers.About) -> None:
    """Make the folder, describe the run in it, and remove results that a run with `force` would mistake for its own."""
    for name in (*OF_FAILURE, *(RESULTS if config.force else ())):
        if (folder / name).is_file():
            (folder / name).unlink()
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(resolved(config))))
    write_text(folder / "run.json", digest.to_json(about))


def _describe(folder: Path, experiment: Experiment, names: dict[str, str], about: loggers.About) -> None:
    write_text(folder / "run.json", digest.to_json(about))
    write_text(folder / "plan.txt", _plan_text(experiment, names) + "\n")
    if experiment.clients.disjoint:  # else clients are drawn, as config.yaml says
        save_partition(experiment.clients, experiment.dataset.y, folder / "partition.safetensors", about["id"])


def _train(config: DictConfig, folder: Path, experiment: Experiment, about: loggers.About) -> None:
    """Do the rounds that are left, write each down as it ends, with a checkpoint every so many seconds; then the results."""
    before, lines = resumed(folder, experiment)
    done, rounds = before.round if before else 0, experiment.plan.rounds
    if before:
        console.print(f"going on from round {done} of {rounds}: {folder}")
    with (
        employed(experiment.executor()) as executor,
        loggers.guarded(make(config.logger), f"logger={about['axes']['logger']}", folder, about) as logger,
        display.live(rounds, done, experiment.task.metric, not experiment.options.whose.global_mask) as live,
    ):
        loop = experiment.loop(executor)
        state = written = before or loop.start()
        what, whole = experiment.axes.what, experiment.axes.what.units(state.server.params)
        if before is None and config.init_from.path is not None:
            console.print("\n".join(tell_start(experiment, loop, state)))
        saved = time.monotonic()
        try:
            while state.round < rounds:
                masks = state.server.mask
                state, metrics = loop.round(state)
                if told := tell_widths(what, masks, state.server.mask, whole):
                    console.print(f"round {state.round:>5}/{rounds}  {told}")
                state = _kept_small(state, loop.whose, (folder / STATE).parent)
                loggers.append(folder, metrics)
                lines += line(metrics)
                written = state
                logger.round(metrics)
                live.round(metrics)
                if time.monotonic() - saved >= config.checkpoint_every:
                    save(folder, state, lines, about["id"])
                    saved = time.monotonic()
            save(folder, state, lines, about["id"])
            summary = _finish(folder, state, about, logger, lines)
            conclude(folder, loop, state)
        except BaseException:
            executor.close(now=True)  # before the logger, which may take its time
            save(folder, written, lines, about["id"])  # interrupted or not, what is written down can be gone on from
            raise
    end(folder, {"status": "done", "id": about["id"], "metrics": summary}, lines)  # nothing is left that could still fail


def _kept_small(state: State, whose: Whose, folder: Path) -> State:
    """Return the same state, with clients' masks in a file once they take more memory than they may."""
    return replace(state, personal=beyond(state.personal, 1e6 * whose.memory_mb, folder))


def _finish(folder: Path, state: State, about: loggers.About, logger: loggers.Logger, lines: bytearray) -> dict[str, float]:
    """Write the ticket, tell the logger of the end, and return the metrics that go into the summary."""
    put_right(folder, lines)
    rows = read(lines).rows
    seconds = sum(row["time/round_s"] for row in rows)
    metrics = rows[-1] | {"time/total_s": seconds}
    ticket = folder / "ticket.safetensors"
    save_ticket(plain(state.ticket), state.server.mask, provenance(about), ticket)
    logger.finish(metrics, [ticket, folder / STATE])
    return metrics


def _about(
    config: DictConfig, which: RunId, folder: Path, names: dict[str, str], overrides: Sequence[str], sweep: str
) -> loggers.About:
    """Describe a run by its configuration. attempt: how often it was begun anew with force=true."""
    before = described(folder)
    return {
        "name": config.name,
        "id": which.digest,
        "id_of_config": which.of_config,
        "inputs": asdict(which.inputs),
        "attempt": before.get("attempt", 0) + bool(before and config.force),
        "sweep": sweep,
        "axes": names,
        "seed": config.seed,
        "density": config.density,
        "overrides": masked_overrides(overrides),
        "made_with": made_with(),
        "config": resolved(config),
    }


def _facts(experiment: Experiment, config: DictConfig) -> Json:
    """Describe a run by its data and its network."""
    plan = experiment.plan
    return {
        "plan": {
            "events": [asdict(event) for event in plan.events],
            "rounds": plan.rounds,
            "gate": plan.gate and str(plan.gate.opens),
        },
        "parameters": sum(t.numel() for name, t in experiment.net.named_parameters() if not is_companion(name)),
        "prunable": sum(dict(experiment.net.named_parameters())[name].numel() for name in experiment.axes.what.names),
        "clients": config.federated.clients,
        "cohort": config.federated.cohort,
        "examples": sum(sizes(experiment.clients.train)),
        "test_examples": len(experiment.dataset.test_y),
        "shape": list(experiment.dataset.shape),
        "classes": experiment.dataset.classes,
        "mean": list(experiment.dataset.mean),
        "std": list(experiment.dataset.std),
        "class_names": list(experiment.dataset.class_names),
        "range": [0, experiment.dataset.white] if experiment.dataset.mean and experiment.dataset.x.dtype == torch.uint8 else [],
        "metric": {"name": experiment.task.metric, "larger_is_better": experiment.task.larger_is_better},
        "begin": None if experiment.ticket is None else {"density": density(experiment.ticket.mask)},
    }
