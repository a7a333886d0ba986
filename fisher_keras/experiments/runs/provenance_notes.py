"""Notes below tables: the origin of the data, and runs of a tree with uncommitted changes."""

import collections
from collections.abc import Mapping, Sequence
from typing import Any

from fisher_keras.experiments.runs.store import Record

# Data whose origin has been looked into, by fingerprint (see `ImageDataset.fingerprint`).
_ORIGINS = {
    "0eea5fd087074c92": "high-quality JPEG copies of the original images, in another order",
    "99976a09f8bff792": "as scikit-learn has them",
}


def provenance_notes(records: Sequence[Record]) -> list[str]:
    """Returns the notes on the provenance of some runs, a sentence each.

    Args:
        records: Of trained networks.

    Returns:
        The origin of each data set; how many runs, if any, have no commit that tells their code,
        or several; how the runs differ in these, and in versions; which metrics were computed
        later.
    """
    data = dict.fromkeys(
        (record.config["training"]["dataset"], record.result.get("data")) for record in records
    )
    notes = [
        f"Data: {name}, {_ORIGINS.get(fingerprint, 'of an origin that is not known')} "
        f"(fingerprint {fingerprint})."
        for name, fingerprint in data
    ]
    commits = [_commits(record.result) for record in records]
    counts = {
        "are of a tree with uncommitted changes": sum(
            any(str(commit).endswith("-dirty") for commit in found) for found in commits
        ),
        "are of a tree with no known commit": sum(None in found for found in commits),
        "went on under another commit": sum(len(found) > 1 for found in commits),
    }
    notes += [f"{count} of {len(records)} runs {what}." for what, count in counts.items() if count]
    return [*notes, *mixture_notes(records), *_added_notes(records)]


def mixture_notes(records: Sequence[Record]) -> list[str]:
    """Returns a sentence for each package, and for commits, if runs are of several of them."""
    found = [record.result.get("versions", {}) for record in records]
    notes = []
    for name in dict.fromkeys(name for versions in found for name in versions):
        several = dict.fromkeys(str(versions.get(name, "not known")) for versions in found)
        if len(several) > 1:
            notes.append(f"The runs are of several versions of {name}: {', '.join(several)}.")
    commits = set[str | None]().union(*(_commits(record.result) for record in records))
    return [*notes, f"The runs are of {len(commits)} commits."] if len(commits) > 1 else notes


def _commits(result: Mapping[str, Any]) -> set[str | None]:
    """Returns the commits of a run: that of its training's start, and those of its processes."""
    return {result.get("git_revision"), *result.get("git_revisions", ())}


def _added_notes(records: Sequence[Record]) -> list[str]:
    """Describes the metrics that were computed later, a sentence for each commit."""
    added = collections.Counter(
        (", ".join(addition["names"]), (addition["git_revision"] or "not known")[:12])
        for record in records
        for addition in record.result.get("added_metrics", ())
    )
    return [
        f"In {count} of {len(records)} runs these metrics were computed later, from the saved "
        f"networks (commit {revision}): {names}."
        for (names, revision), count in added.items()
    ]
