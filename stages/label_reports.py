"""Read the findings out of a table of reports.

    python stages/label_reports.py IN.csv --column TEXT --out OUT.csv

OUT.csv is IN.csv with a column for each of the 14 findings and one for `No Finding`: `present`, `absent`,
`uncertain`, or blank where the report does not say.
"""

import argparse
from pathlib import Path

import pandas as pd

from explainmyxray.errors import UserError, exit_on_user_error
from explainmyxray.reports.findings import FINDINGS
from explainmyxray.reports.labeler import label_report
from explainmyxray.tables import NO_FINDING, write_table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", type=Path, metavar="IN.csv", help="a table with a report in each row")
    parser.add_argument("--column", required=True, metavar="TEXT", help="the column that holds the reports")
    parser.add_argument("--out", required=True, type=Path, metavar="OUT.csv", help="the table to write")
    arguments = parser.parse_args()
    if arguments.out.exists() and arguments.table.exists() and arguments.out.samefile(arguments.table):
        raise UserError(f"{arguments.out} is the table that is read: name another file with --out")
    labeled = with_labels(read(arguments.table), arguments.column, arguments.table)
    write(labeled, arguments.out)
    counts = (labeled[[*FINDINGS, NO_FINDING]] == "present").sum()
    print(f"{len(labeled)} reports -> {arguments.out}")
    print(", ".join(f"{name} {count}" for name, count in counts.items()))


def read(path: Path) -> pd.DataFrame:
    """The table at `path`, all of it text.

    Raises UserError where it is missing, empty or no table.
    """
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: name a CSV file that exists") from None
    except (IsADirectoryError, PermissionError) as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except pd.errors.EmptyDataError:
        raise UserError(f"{path} is empty: it needs a header and a row for each report") from None
    except (pd.errors.ParserError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no CSV table in UTF-8: {error}") from None


def with_labels(table: pd.DataFrame, column: str, path: Path) -> pd.DataFrame:
    """The table of `path` with a column for each finding.

    Raises UserError where it has no such `column` of reports, or has a finding's column already, which may be
    labels of another hand.
    """
    if column not in table:
        raise UserError(f"{path} has no column {column}; it has {', '.join(map(str, table.columns))}")
    names = [*FINDINGS, NO_FINDING]
    taken = [name for name in names if name in table]
    if taken:
        raise UserError(f"{path} has a column {', '.join(taken)} already: rename it to keep it, or remove it")
    rows = [label_report(text) for text in table[column]]
    labels = pd.DataFrame(rows, columns=names, index=table.index, dtype=object)
    return pd.concat([table, labels.fillna("")], axis=1)


def write(table: pd.DataFrame, path: Path) -> None:
    """Write the labeled table.

    Raises UserError where `path` is a folder, which writing aside would replace, or may not be written.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder: name a file to write")
    try:
        write_table(path, table)
    except (PermissionError, FileExistsError, NotADirectoryError) as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None


if __name__ == "__main__":
    exit_on_user_error(main)
