"""Tables that a user brings to an evaluation: what readers said of the studies, and what was found in them."""

import io

import pandas as pd

from mura_ray import store
from mura_ray.domain import ABNORMAL, NORMAL

STUDY = "study"
"""The column with a study's key, TYPE/patient/study, as `studies.csv` of an evaluation has it."""


def read_answers(uri: str, what: str, studies: pd.Index) -> pd.DataFrame:
    """A CSV with a row per study: its key in the column `study`, and 0 or 1 in a column for each reader, or finding.

    Args:
        uri: of the file.
        what: the columns are, "reader" or "finding", for the text of errors.
        studies: keys of the studies that are evaluated.

    Returns:
        int64, a column per reader or finding, indexed by study in the order of the evaluated ones; of these, those
        without answers are left out.

    Raises:
        ValueError: no such file or column, a study twice or one that is not evaluated, or an answer that is neither 0
            nor 1.
    """
    uri = store.absolute(uri)
    if not store.is_file(uri):
        raise ValueError(f"{uri} does not exist")
    try:
        content = store.read_bytes(uri)
        table = pd.read_csv(io.BytesIO(content), dtype=str, keep_default_na=False)
        names = pd.read_csv(io.BytesIO(content), dtype=str, keep_default_na=False, header=None, nrows=1).iloc[0]
    except ValueError as error:
        raise ValueError(f"{uri} is no CSV file with a header: {error}") from error
    if names.duplicated().any():  # which `read_csv` would rename
        raise ValueError(f"{uri} has the column {names[names.duplicated()].iloc[0]!r} twice")
    if STUDY not in table or table.shape[1] < 2 or table.empty:
        raise ValueError(
            f"{uri} has {len(table)} rows and the columns {', '.join(table.columns)}: a row for each study, its key in "
            f"{STUDY!r}, and a column for each {what}"
        )
    answers = table.set_index(STUDY)
    if not answers.index.is_unique:
        raise ValueError(f"{uri} has the study {answers.index[answers.index.duplicated()][0]!r} twice")
    for name in answers:
        wrong = answers.index[~answers[name].isin([str(NORMAL), str(ABNORMAL)])]
        if len(wrong):
            raise ValueError(
                f"{uri}: {what} {name!r} has {answers.loc[wrong[0], name]!r} for study {wrong[0]!r}: 0 or 1"
            )
    unknown = answers.index.difference(studies)
    if len(unknown):
        raise ValueError(
            f"{uri} speaks of {len(unknown)} studies that are not evaluated, such as {unknown[0]!r}; keys are written "
            f"like {studies[0]!r}"
        )
    return answers.loc[studies[studies.isin(answers.index)]].astype("int64")
