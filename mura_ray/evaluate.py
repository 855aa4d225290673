"""`python -m mura_ray.evaluate`: how well an ensemble tells abnormal studies, on a split of a converted data set."""

import argparse
import itertools
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import pandas as pd
import torch

from mura_ray import cli, store
from mura_ray.config import THRESHOLD, Locations
from mura_ray.data.leakage import Leakage, find_leakage
from mura_ray.data.manifest import read_manifest, read_table
from mura_ray.distributed.naming import SWEEP_FILE
from mura_ray.evaluation.ablating import ablate
from mura_ray.evaluation.assessment import assess, calibration_notes, calibration_tables, split_notes, strata_metrics
from mura_ray.evaluation.comparing import compare_predictions
from mura_ray.evaluation.inputs import read_answers
from mura_ray.evaluation.localising import localisation_tables
from mura_ray.evaluation.operating import operating_notes, operating_points, parse_rule
from mura_ray.evaluation.predictions import Predictions, predict_split, study_keys
from mura_ray.evaluation.reading import ReaderQuestion, add_findings, add_readers, reader_parts, simulated_readers
from mura_ray.evaluation.writing import provenance, write_evaluation, write_figures, write_tables
from mura_ray.model.ensemble import Ensemble, EnsembleDescription, ensemble_folder, newest_ensemble, read_description
from mura_ray.render.paper_text import paper_text
from mura_ray.render.report import EvaluationResult, evaluation_text, titled_text
from mura_ray.render.tables import Table
from mura_ray.stats.paper import rederive
from mura_ray.training.calibrate import CALIBRATED, calibrate

EPILOG = """examples:
  python -m mura_ray.evaluate --ensemble runs/paper/ensemble --data shards
  python -m mura_ray.evaluate --data shards --readers readers.csv --gold anna ben carla --all-panels
  python -m mura_ray.evaluate --data shards --calibrate
  python -m mura_ray.evaluate --data shards --compare runs/other/ensemble
  python -m mura_ray.evaluate --paper

Prints the numbers and writes report.html and report.pdf, model-card.md, the tables as CSV and LaTeX, the figures as SVG
and PNG, and studies.csv (each study's label and probability)."""


def main(argv: list[str] | None = None) -> int:
    """Parses, evaluates, reports."""
    locations = Locations.from_environment()
    given = sys.argv[1:] if argv is None else argv
    return cli.run(lambda: _run(_parser(locations).parse_args(given), locations.runs, given))


def _parser(locations: Locations) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mura_ray.evaluate",
        description="Study-level AUROC, sensitivity, specificity and Cohen's kappa, by study type and overall.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--ensemble", help="the ensemble's folder (default: the newest under $MURA_RUNS)")
    parser.add_argument("--data", default=locations.data, help="converted data set (default: $MURA_DATA)")
    parser.add_argument("--split", help="train, valid or test (default: test; with --calibrate: valid)")
    parser.add_argument("--out", help="where to write (default: beside the ensemble's folder, named by split and ids)")
    more = parser.add_argument_group("more in the report")
    more.add_argument("--readers", metavar="CSV", help="a row per study: `study`, and 0 or 1 in a column per reader")
    more.add_argument("--gold", nargs=3, metavar="READER", help="whose majority is the gold standard (default: drawn)")
    more.add_argument("--gold-seed", type=int, help="of the draw of these three (default: 0)")
    more.add_argument("--all-panels", action="store_true", help="every choice of three readers for the gold standard")
    more.add_argument("--findings", metavar="CSV", help="a row per study: `study`, and 0 or 1 in a column per finding")
    more.add_argument("--operating-point", action="append", default=[], metavar="RULE",
                      help="youden, or sensitivity=0.9; may be repeated")  # fmt: skip
    more.add_argument("--chosen-on", metavar="SPLIT", help="that operating points are chosen on (default: valid)")
    leaks = parser.add_argument_group("whose patients the ensemble knows")
    leaks.add_argument("--trained-on", metavar="URI", help="the data set of the training, if it is another than --data")
    leaks.add_argument("--allow-leakage", action="store_true", help="report shared patients or images, not refuse them")
    modes = parser.add_argument_group("instead of a report").add_mutually_exclusive_group()
    modes.add_argument("--calibrate", action="store_true", help="fit a calibration; writes a new ensemble with it")
    modes.add_argument("--compare", metavar="URI", help="another ensemble on the same studies: differences")
    modes.add_argument(
        "--ablate", action="store_true", help="one member against all, mean of the views against maximum"
    )
    modes.add_argument("--simulate-readers", action="store_true", help="a reader study of the paper's size, simulated")
    modes.add_argument("--paper", action="store_true", help="the paper's Tables 1 and 2, checked by arithmetic")
    return parser


_NEEDS = {
    "gold": ("readers", "simulate_readers"),
    "gold_seed": ("readers", "simulate_readers"),
    "all_panels": ("readers", "simulate_readers"),
    "chosen_on": ("operating_point",),
}
"""Options that say nothing without one of some others."""

_REPORT_ONLY = ("readers", "findings", "operating_point")
_MODES = ("calibrate", "compare", "ablate", "simulate_readers", "paper")


def _check(arguments: argparse.Namespace) -> None:
    """Refuses options that would be ignored."""
    given = [name for name, value in vars(arguments).items() if value not in (None, False, [])]
    for name, needed in _NEEDS.items():
        if name in given and not set(given) & set(needed):
            raise ValueError(f"{_option(name)} says nothing without {' or '.join(map(_option, needed))}")
    for mode, extra in itertools.product(_MODES, _REPORT_ONLY):
        if mode in given and extra in given:
            raise ValueError(f"{_option(extra)} is for the report, which {_option(mode)} does not make: leave one out")


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _run(arguments: argparse.Namespace, runs: str | None, given: Sequence[str]) -> None:
    _check(arguments)
    if arguments.paper:
        print(paper_text(rederive()))
    elif arguments.simulate_readers:
        _simulate_readers(arguments)
    elif arguments.calibrate:
        _calibrate(arguments, runs)
    elif arguments.compare:
        uris = _ensemble_uri(arguments.ensemble, runs), _ensemble_uri(arguments.compare, None)
        first, second = (_judged(arguments, uri) for uri in uris)
        notes = dict.fromkeys((*first.notes, *second.notes))
        _print_tables(compare_predictions(first.predictions, second.predictions), arguments.out, tuple(notes))
    elif arguments.ablate:
        judged = _judged(arguments, _ensemble_uri(arguments.ensemble, runs))
        _print_tables(ablate(judged.predictions), arguments.out, judged.notes)
    else:
        _report(arguments, runs, shlex.join(["python", "-m", "mura_ray.evaluate", *given]))


def _report(arguments: argparse.Namespace, runs: str | None, command: str) -> None:
    uri, split = _ensemble_uri(arguments.ensemble, runs), arguments.split or "test"
    out = arguments.out and store.absolute(arguments.out)
    if out and f"{out}/".startswith(f"{uri}/"):
        raise ValueError(f"--out {out!r} lies in the ensemble's folder, which is never changed: pass another")
    rules = [parse_rule(text) for text in arguments.operating_point]
    data = cli.location(arguments.data, "data")
    keys = pd.Index(study_keys(read_table(data, split)).unique())
    readers = read_answers(arguments.readers, "reader", keys) if arguments.readers else None
    findings = read_answers(arguments.findings, "finding", keys) if arguments.findings else None
    chosen_on = predict_split(_load(uri), data, arguments.chosen_on or "valid") if rules else None
    predictions, notes = _judged(arguments, uri)
    result = assess(predictions, (*notes, *operating_notes(predictions, chosen_on)))
    tables = [operating_points(result.metrics, predictions, rules, chosen_on), *localisation_tables(predictions)]
    result = replace(result, tables=(*result.tables, *tables))
    if readers is not None:
        result = add_readers(result, readers, _reader_question(arguments))
    if findings is not None:
        result = add_findings(result, findings)
    out = out or default_out(uri, result)
    write_evaluation(result, provenance(predictions.description, command, _choices(predictions, chosen_on)), out)
    print(evaluation_text(result))
    print(f"\nwritten to {out}: report.html, report.pdf, model-card.md, tables, figures")


def default_out(ensemble: str, result: EvaluationResult) -> str:
    """Where an evaluation is written by default: a folder beside the ensemble's, named by split and ids."""
    home, _, _ = ensemble.rpartition("/")
    return store.join(home, f"evaluation-{result.data['split']}-{result.data['id']}-{result.ensemble_id}")


def _choices(predictions: Predictions, chosen_on: Predictions | None) -> dict[str, str]:
    description = predictions.description
    calibration = description.calibration
    chosen = f"split valid of {description.data_id}"
    choices = {"weights": f"split train of {description.data_id}", "epochs": chosen, "members": chosen}
    choices["calibration"] = (
        f"split {calibration.fitted_on.split} of {calibration.fitted_on.data_id}" if calibration else "none"
    )
    choices["threshold"] = f"{description.threshold:g}, fixed beforehand (paper, section 3.1)"
    if chosen_on is not None:
        choices["other operating points"] = f"split {chosen_on.split} of {chosen_on.manifest.id}"
    return choices


def _calibrate(arguments: argparse.Namespace, runs: str | None) -> None:
    uri, split = _ensemble_uri(arguments.ensemble, runs), arguments.split or "valid"
    data = cli.location(arguments.data, "data")
    leakage = _leakage(arguments, uri, split).of(
        "train"
    )  # that members were chosen on the studies of `valid` hardly moves a calibration
    leakage.refuse(allow=arguments.allow_leakage)
    predictions = predict_split(_load(uri), data, split)
    studies = predictions.studies(predictions.description.threshold)
    dest, description = calibrate(uri, studies, data_id=predictions.manifest.id, split=split, dest=arguments.out)
    assert description.calibration is not None
    before = strata_metrics(studies, THRESHOLD)
    note = f"optimistic: these are the studies that the calibration was fitted on, split {split!r}"
    _print_tables(calibration_tables(studies, description.calibration, before), None, (note, *leakage.notes))
    print(f"ensemble {description.id}, calibrated, in {dest}")


def _simulate_readers(arguments: argparse.Namespace) -> None:
    if not arguments.out:
        raise ValueError("--simulate-readers needs --out, a folder for its tables and figure")
    tables, picture = reader_parts(simulated_readers(), _reader_question(arguments), THRESHOLD)
    tables = [replace(table, title=f"SIMULATED: {table.title}") for table in tables]
    picture.figure.axes[0].set_title("SIMULATED")
    out = _print_tables(tables, arguments.out, ("SIMULATED readers and model: nothing below was seen in radiographs",))
    write_figures([picture], store.join(out, "figures"))
    print(f"the ROC curve: {store.join(out, 'figures', f'{picture.name}.png')}")


def _reader_question(arguments: argparse.Namespace) -> ReaderQuestion:
    return ReaderQuestion(arguments.gold, arguments.gold_seed or 0, arguments.all_panels)


def _print_tables(tables: Sequence[Table], out: str | None, notes: Sequence[str]) -> str:
    for note in notes:
        print(f"NOTE: {note}\n")
    for table in tables:
        print(f"{titled_text(table)}\n")
    if not out:
        return ""
    out = store.absolute(out)
    write_tables(tables, store.join(out, "tables"), notes)
    print(f"written to {out}")
    return out


class _Judged(NamedTuple):
    """Predictions of a split, and why numbers about them are not those of new patients."""

    predictions: Predictions
    notes: tuple[str, ...]


def _judged(arguments: argparse.Namespace, uri: str) -> _Judged:
    data, split = cli.location(arguments.data, "data"), arguments.split or "test"
    description = read_description(uri)
    leakage = _leakage(arguments, uri, split)
    leakage.refuse(allow=arguments.allow_leakage)
    predictions = predict_split(_load(uri), data, split)
    notes = (
        split_notes(description, predictions.manifest, split),
        calibration_notes(description, predictions.manifest, split),
    )
    return _Judged(predictions, (*itertools.chain(*notes), *leakage.notes))


def _leakage(arguments: argparse.Namespace, uri: str, split: str) -> Leakage:
    description = read_description(uri)
    trained_on = arguments.trained_on or training_data(uri, description)
    return find_leakage(cli.location(arguments.data, "data"), split, description.data_id, trained_on)


def training_data(uri: str, description: EnsembleDescription) -> str | None:
    """URI of the data set that an ensemble was made with, if its search says where that is and it still is there."""
    search = store.join(store.parent(uri).removesuffix(CALIBRATED), SWEEP_FILE)
    try:
        data = json.loads(store.read_bytes(search))["data"] if store.exists(search) else None
        return data if data and read_manifest(data).id == description.data_id else None
    except ValueError:  # another bucket's keys, a folder that was removed: the report says that nothing was compared
        return None


def _load(uri: str) -> Ensemble:
    return Ensemble.load(uri, "cuda" if torch.cuda.is_available() else "cpu")


def _ensemble_uri(ensemble: str | None, runs: str | None) -> str:
    if not ensemble and not runs:
        raise ValueError("no ensemble: pass --ensemble DIR, or set MURA_RUNS to take the newest there")
    return ensemble_folder(store.absolute(ensemble or newest_ensemble(store.absolute(str(runs)))))


if __name__ == "__main__":
    raise SystemExit(main())
