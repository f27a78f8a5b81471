"""Find the rows that must stay in one split: the same patient, the same pixels, or near duplicates."""

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

LINKS = ("patient", "sha256", "near_duplicate_of")  # rows with the same value in one of these are linked


def find_groups(reports: pd.DataFrame) -> np.ndarray:
    """The group number of each row: rows linked, directly or through others, share one; blanks link nothing.

    The groups are the connected components of a bipartite graph: an edge from each row to each value that it
    holds.
    """
    row_nodes, value_nodes = [], []
    num_nodes = len(reports)
    for column in LINKS:
        rows = np.flatnonzero(reports[column] != "")
        values = pd.factorize(reports[column].iloc[rows])[0]
        row_nodes.append(rows)
        value_nodes.append(num_nodes + values)
        num_nodes += len(rows)  # at least as many as there are different values
    row_nodes = np.concatenate(row_nodes)
    value_nodes = np.concatenate(value_nodes)
    edges = coo_array((np.ones(len(row_nodes)), (row_nodes, value_nodes)), shape=(num_nodes, num_nodes))
    components = connected_components(edges, directed=False)[1]
    return pd.factorize(components[: len(reports)])[0]  # numbered in the order of the rows
