"""What the readers of collections share: how they report, how they split, and the summary. Knows no file layout."""

import csv
import hashlib
import io
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

import pandas as pd

from mura_ray import store
from mura_ray.domain import ABNORMAL, NORMAL, STUDY_TYPES, Study


@dataclass(frozen=True)
class Problem:
    """Something found in a collection: where (relative to its root; a row as `file.csv:line`), what, and the remedy."""

    path: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.path}: {self.what}; {self.remedy}"


class CollectionError(ValueError):
    """A collection that cannot be read as it is. Its text lists all problems, one a line."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))

    def __reduce__(self) -> tuple[type["CollectionError"], tuple[tuple[Problem, ...]]]:
        return CollectionError, (self.problems,)  # the default would rebuild it from the text


@dataclass(frozen=True)
class Collection:
    """Studies by split.

    Attributes:
        name: what the collection calls itself.
        root: URI that the paths of the views are relative to.
        splits: the studies of `train`, `valid` and `test`, in a fixed order; a split that it lacks is absent.
        split_policy: where the splits come from, in a word or two.
        notes: what was read right but is worth telling.
        patients_known: whether a study's `patient_id` is its patient's; else it only tells the studies apart.
    """

    name: str
    root: str
    splits: dict[str, list[Study]]
    split_policy: str
    notes: tuple[Problem, ...] = ()
    patients_known: bool = True


class Findings:
    """Gathers problems and notes while a reader goes through a collection, so that all are told at once."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self._notes: dict[tuple[str, str], tuple[str, int]] = {}

    def problem(self, path: str, what: str, remedy: str) -> None:
        """Adds something that keeps the collection from being read."""
        self.problems.append(Problem(path, what, remedy))

    def note(self, path: str, what: str, remedy: str) -> None:
        """Adds one case of something harmless; cases with the same words become one note with their number."""
        first, number = self._notes.get((what, remedy), (path, 0))
        self._notes[what, remedy] = (first, number + 1)

    @property
    def notes(self) -> tuple[Problem, ...]:
        """One note for each kind of case, with the path of its first and their number."""
        return tuple(
            Problem(first, f"{what} ({number} in all, this is the first)", remedy)
            for (what, remedy), (first, number) in self._notes.items()
        )

    def raise_problems(self) -> None:
        """Raises `CollectionError` if there are problems."""
        if self.problems:
            raise CollectionError(self.problems)


def fail(path: str, what: str, remedy: str) -> NoReturn:
    """Raises `CollectionError` with the one problem that keeps everything else from being looked at."""
    raise CollectionError([Problem(path, what, remedy)])


def natural(text: str) -> list[tuple[bool, int, str]]:
    """Sort key that puts image2 before image10."""
    return [(not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in re.split(r"([0-9]+)", text)]


def in_order(studies: Iterable[Study]) -> list[Study]:
    """Studies by type, patient and study, whatever order the disk or a file gave them in."""
    return sorted(
        studies,
        key=lambda study: (
            STUDY_TYPES.index(study.study_type),
            natural(study.patient_id),
            natural(study.study_id),
        ),
    )


def read_rows(
    uri: str, required: Sequence[str], findings: Findings, known: Sequence[str] | None = None
) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows of a CSV file with a header, each with its line number; cells are stripped, blank lines skipped.

    Args:
        uri: of the file; UTF-8, with or without a byte order mark, any line ends.
        required: columns that must be there.
        findings: is told of malformed rows, which are left out.
        known: the only columns that may be there; None: any.

    Raises:
        CollectionError: the file is not there or not such a table.
    """
    file = store.name(uri)
    try:
        content = store.read_bytes(uri)
    except ValueError:
        fail(file, "there is no such file", f"put the table with the columns {', '.join(required)} there")
    try:
        reader = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""))
        header = [name.strip() for name in next(reader, [])]
        _check_header(file, header, required, known)
        for cells in reader:
            if len(cells) == len(header):
                yield reader.line_num, dict(zip(header, (cell.strip() for cell in cells), strict=True))
            elif cells:
                what = f"malformed row: {len(cells)} cells, not {len(header)}"
                findings.problem(f"{file}:{reader.line_num}", what, "give the row a cell for each column")
    except (UnicodeDecodeError, csv.Error) as error:
        fail(file, f"not a CSV file in UTF-8 ({error})", "save it as such")


def _check_header(name: str, header: list[str], required: Sequence[str], known: Sequence[str] | None) -> None:
    problems = [
        Problem(f"{name}:1", f"column {column!r} is missing", f"the first line must name {', '.join(required)}")
        for column in required
        if column not in header
    ]
    for column, number in Counter(header).items():
        if number > 1:
            problems.append(Problem(f"{name}:1", f"column {column!r} is there {number} times", "keep one of them"))
        if known is not None and column not in known:
            problems.append(
                Problem(f"{name}:1", f"unknown column {column!r}", f"remove or rename it; known are {', '.join(known)}")
            )
    if problems:
        raise CollectionError(problems)


def split_patients(studies: Sequence[Study], fraction: float, seed: int) -> tuple[list[Study], list[Study]]:
    """Takes a part of the studies out, patient by patient.

    Args:
        studies: what to split.
        fraction: share of the part, between 0 and 1.
        seed: another seed, another part.

    Returns:
        The rest and the part. No patient is in both. Every study type and label is in both if enough patients have it.

    Raises:
        ValueError: the fraction is not between 0 and 1, or there are too few patients.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"cannot split off {fraction!r} of the patients: pass a fraction between 0 and 1")
    parts = deal(studies, lambda study: study.patient_id, {"rest": 1 - fraction, "part": fraction}, seed)
    return parts["rest"], parts["part"]


def deal(
    studies: Sequence[Study], group_of: Callable[[Study], str], shares: Mapping[str, float], seed: int
) -> dict[str, list[Study]]:
    """Deals groups of studies (a patient's, a block's) to splits, each group whole.

    Strata are the pairs of study type and label. The rarest is dealt first, each of its groups to the split that has
    the fewest of its studies for its share (Adams's apportionment, which gives every split one before any gets its
    full share). The order of the groups is a hash of the seed and the group's name: nothing else sways it. A split left
    with nothing takes a group of the fullest.

    Args:
        studies: what to deal.
        group_of: names a study's group.
        shares: each split's share, positive.
        seed: another seed, another deal.

    Returns:
        The studies of each split, in their given order.

    Raises:
        ValueError: there are too few groups to fill every split.
    """
    groups: dict[str, Counter[tuple[str, int]]] = defaultdict(Counter)
    for study in studies:
        groups[group_of(study)][study.study_type, study.label] += 1
    undealt = {group: groups[group] for group in sorted(groups, key=lambda group: _hash(f"{seed} {group}"))}
    dealt: dict[str, str] = {}
    have: dict[str, Counter[tuple[str, int]]] = {split: Counter() for split in shares}
    while undealt:
        left: Counter[tuple[str, int]] = Counter()
        for counts in undealt.values():
            left.update(counts)
        rarest = min(left, key=lambda stratum: (left[stratum], stratum))
        for group in sorted((group for group in undealt if undealt[group][rarest]), key=lambda g: -groups[g][rarest]):
            # With equal need the largest split comes first: training before all else.
            split = min(shares, key=lambda split: (have[split][rarest] / shares[split], -shares[split]))
            dealt[group] = split
            have[split] += undealt.pop(group)
    if len(dealt) < len(shares):
        raise ValueError(
            f"cannot fill the splits {', '.join(shares)} from {len(dealt)} patients: add more, or give the splits"
        )
    for split in [split for split in shares if split not in dealt.values()]:
        fullest = Counter(dealt.values()).most_common(1)[0][0]
        dealt[next(group for group in reversed(dealt) if dealt[group] == fullest)] = split
    parts: dict[str, list[Study]] = {split: [] for split in shares}
    for study in studies:
        parts[dealt[group_of(study)]].append(study)
    return parts


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def summary(collection: Collection) -> str:
    """The collection in the form of the paper's Table 1: studies by type, split and label; then each split's totals."""
    num_studies = Counter(
        (split, study.study_type, study.label) for split, studies in collection.splits.items() for study in studies
    )
    study_types = [name for name in STUDY_TYPES if any(study_type == name for _, study_type, _ in num_studies)]
    table = pd.DataFrame(
        [
            [num_studies[split, study_type, label] for split in collection.splits for label in (NORMAL, ABNORMAL)]
            for study_type in study_types
        ],
        index=study_types,
        columns=pd.MultiIndex.from_product([list(collection.splits), ["normal", "abnormal"]]),
    )
    table.loc["total"] = table.sum()
    table["total", ""] = table.sum(axis=1)
    everything = [study for studies in collection.splits.values() for study in studies]
    totals = pd.DataFrame(
        {
            split: {
                "studies": len(studies),
                "images": sum(len(study.views) for study in studies),
                "patients": len({study.patient_id for study in studies}),
            }
            for split, studies in [*collection.splits.items(), ("total", everything)]
        }
    )
    head = f"{collection.name}, splits: {collection.split_policy}"
    return "\n\n".join([head, table.to_string(), totals.to_string()])
