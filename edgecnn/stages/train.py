"""The stage that trains: it opens the images, gives each photo its split, completes the recipe, starts or continues a run, and trains it.

The list is stored next to the photos, with a copy in each run.

TensorFlow takes seconds to import: each function imports what needs it, so that a wrong name is refused immediately.
"""

import contextlib
import errno
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from edgecnn.data import Dataset, known_images, open_dataset, splits
from edgecnn.data.dataset import require_split
from edgecnn.errors import DatasetError, OutputError, UnknownNameError
from edgecnn.files import csv_text, folder_lock, write_atomic
from edgecnn.inspect.findings import FEW_TRAINING
from edgecnn.labels import SPLITS_CSV, plural
from edgecnn.networks import build_network, network_module
from edgecnn.networks.own import own_network
from edgecnn.networks.pretrained import is_backbone
from edgecnn.recipe import Recipe, Settled
from edgecnn.report.plots import write_curves
from edgecnn.report.table import tuning_line
from edgecnn.run_info import NetworkChoice, RunInfo
from edgecnn.runs import CHOICE, INFO, LEFT_OUT, NETWORK_FILE, RECIPE, Run
from edgecnn.stages import Reporter
from edgecnn.stages.network_choice import other_head
from edgecnn.train import Workers

if TYPE_CHECKING:
    from edgecnn.inspect.groups import Search


NAMED = 3  # pairs of photos, or classes, that a line names

OFF = 0.05
"""A line names a split whose share of the photos, or of a class, is further than this from the recipe's, and by more than one photo."""

WAIT_S = 60.0  # seconds, for another training that writes the list

UNWRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)


class Listed(NamedTuple):
    """The list before this command; where it is now, or why it is not next to the photos; and where an older one was put."""

    known: splits.SplitGroups
    where: str = ""
    why: str = ""
    former: str = ""


def placed(dataset: Dataset, reporter: Reporter, run: Run | None = None, *, keep: bool = True) -> Dataset:
    """Return a dataset with each image in the split of its group, and report what changed; only a user's own photos are placed.

    The list next to the photos is read again and written, unless `keep` is false. If it does not exist, the run's list is used.

    Raises:
        DatasetError: if a list is damaged, the groups that the recipe names cannot be made, or the images cannot be trained on.
        OutputError: if the disk is full.
    """
    dataset.require_groups()
    if dataset.known:
        dataset.split_groups = kept_split_groups(run)
    if dataset.known or not dataset.left_to_edgecnn:
        return dataset
    from edgecnn.inspect.question import ask

    links, found = find(dataset, reporter)
    listed = Listed(dataset.split_groups or kept_split_groups(run))
    if keep and dataset.place:
        result, listed = write_list(dataset, dataset.place, listed.known, links)
    else:
        result = dataset.with_split_groups(listed.known, links)
        if keep:
            listed = listed._replace(why="nothing is written into archives and Frigate's folders")
    usual = not (listed.known or result.anew or result.groups_note or off_shares(result))
    for line in lines(result, listed):
        (reporter.detail if usual else reporter.note)(f"{dataset.name}: {line}")
    if sentence := ask(result, found.looks.items, found.features, reporter.working, reporter.note):
        reporter.note(f"{dataset.name}: {sentence}")
    return result


def find(dataset: Dataset, reporter: Reporter) -> tuple[list[splits.Link], "Search"]:
    """Search a dataset for copies, and for frames of a burst: by hashes only, unless the images are a user's own."""
    from edgecnn.inspect.inspection import find_copies, links_of
    from edgecnn.inspect.look import missing_weights

    missing = None
    if not dataset.own:
        missing = "hashes only"
    elif missing_weights():
        missing = "no search for cut and moved copies: it needs the extra backbones"
        reporter.note(f"{dataset.name}: {missing}")
    found = find_copies(dataset, missing, reporter.working, reporter.note, for_links=True)
    return links_of(dataset, found), found


def write_list(
    dataset: Dataset, place: Path, known: splits.SplitGroups, links: list[splits.Link]
) -> tuple[Dataset, Listed]:
    """Write the list, and put one that was divided otherwise next to it."""
    path, former = place / SPLITS_CSV, ""
    busy = DatasetError(f"another command is writing {path}. Run this one again.")
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):  # on file systems without locks
            held.enter_context(folder_lock(place, busy, WAIT_S))
        before = path.read_bytes() if path.exists() else b""
        # another training may have written it since
        known = splits.read_split_groups(before, str(path)) if before else known
        result = dataset.with_split_groups(known, links)
        text = splits.split_groups_text(result.split_groups).encode()
        try:
            if before and result.anew:
                free = (place / f"{path.stem}-{number}.csv" for number in range(1, 10_000))
                older = next(one for one in free if not one.exists())
                write_atomic(older, before)
                former = str(older)
            if text != before:
                write_atomic(path, text)
        except OutputError as error:
            cause = error.__cause__
            if not isinstance(cause, OSError) or cause.errno not in UNWRITABLE:
                raise
            return result, Listed(known, why=f"it cannot be written there ({cause.strerror})")
    return result, Listed(known, str(path), former=former)


def kept_split_groups(run: Run | None) -> splits.SplitGroups:
    path = run.file(SPLITS_CSV) if run else None
    return splits.read_split_groups(path.read_bytes(), str(path)) if path and path.exists() else {}


def write_split_groups(run: Run, dataset: Dataset) -> None:
    """Store the list that a run began with, and the test photos that comparisons leave out."""
    if dataset.split_groups and not (run.file(SPLITS_CSV).exists() and run.file(INFO).exists()):
        write_atomic(run.file(SPLITS_CSV), splits.split_groups_text(dataset.split_groups))
        write_atomic(run.file(LEFT_OUT), csv_text(("sha256", "with"), dataset.tied.items()))


def lines(after: Dataset, listed: Listed) -> Iterator[str]:
    """Yield lines on what changed, and on what a user should know about the groups and the splits."""
    items = {item.hash: item for part in after.items.values() for item in part}
    known = {} if after.anew else listed.known
    fresh = [one for one in items if one not in known]
    if after.groups_note:
        yield after.groups_note
    if after.anew:
        moved = sum(
            one in items and after.split_groups[one].split != split_group.split
            for one, split_group in listed.known.items()
        )
        kept = f"; the list before is now {listed.former}" if listed.former else ""
        yield f"divided anew, since {SPLITS_CSV} was divided otherwise: {plural(moved, 'photo')} changed their split{kept}"
    if splits.is_former(known):
        yield (
            f"{SPLITS_CSV} is of edgecnn 0.2.0, which put all similar photos into one split; it is kept as it is. Remove it, or name "
            "groups with --group-by, to divide all photos anew"
        )
    if known:
        yield f"{plural(len(items) - len(fresh), 'photo')} kept in the split that {SPLITS_CSV} lists; {plural(len(fresh), 'new photo')}"
    yield groups_line(after)
    if off := off_shares(after):
        why = f"photos stay in the split that {SPLITS_CSV} lists" if known else "a class is small, or a group large"
        yield f"{'; '.join(off[:NAMED])}{'; …' if len(off) > NAMED else ''}, since {why}"
    if after.tied:
        pairs = [f"{items[one].source} and {items[other].source}" for one, other in after.tied.items()]
        yield (
            f"model comparisons leave out {plural(len(pairs), 'test photo')} of the same thing as training photos: "
            f"{'; '.join(pairs[:NAMED])}{'; …' if len(pairs) > NAMED else ''}"
        )
    if listed.why:
        yield (
            f"the splits are stored with the run, in its {SPLITS_CSV}, since {listed.why}. Copy that file next to the class folders, and "
            "no photo moves when you add more"
        )
    elif listed.where and fresh:
        yield f"the splits are stored in {listed.where}; photos listed there never move"


def faults_line(dataset: Dataset) -> str:
    """Return a line on the copies and the small classes among a user's own images; "" if it has nothing to say."""
    if not dataset.own:
        return ""
    hashes = Counter(item.hash for items in dataset.items.values() for item in items)
    copies = sum(hashes.values()) - len(hashes)
    training = Counter(item.label for item in dataset.items["train"])
    few = [label for index, label in enumerate(dataset.labels) if training[index] < FEW_TRAINING]
    parts = []
    if copies:
        parts.append(f"{plural(copies, 'file is a copy', 'files are copies')} of another one")
    if few:
        parts.append(
            f"{plural(len(few), 'class has', 'classes have')} fewer than {FEW_TRAINING} training images, such as {few[0]}"
        )
    return f"{dataset.name}: {'; '.join(parts)}. To find more problems: edgecnn inspect" if parts else ""


def groups_line(after: Dataset) -> str:
    """Return a line on the groups: how many, and how large, if a user named them; else how many photos share one."""
    photos = {item.hash for part in after.items.values() for item in part}
    sizes = Counter(after.split_groups[one].group for one in photos)
    if rule := splits.rule_of(after.split_groups):
        counts = after.groups()
        assert counts
        each = ", ".join(f"{counts.splits[split]:,} {split}" for split in splits.SPLITS)
        return (
            f"{len(sizes):,} groups by '{rule}' ({each}), of {min(sizes.values()):,} to {max(sizes.values()):,} photos"
        )
    alike = sum(size for size in sizes.values() if size > 1)
    return (
        f"{alike:,} of {len(photos):,} photos are copies of others, or frames of a burst, and share their split"
        if alike
        else f"no two of {len(photos):,} photos show the same thing"
    )


def off_shares(after: Dataset) -> list[str]:
    """Return the splits with another share than the recipe's, of all photos or of a class; a class without a test goes first."""
    labels = Counter((item.label, split) for split, part in after.items.items() for item in part)
    counts: Counter[tuple[str, str]] = Counter()
    for (label, split), count in labels.items():
        counts[f"class {after.labels[label]!r}", split] += count
        counts["the photos", split] += count
    found = []
    for what in sorted({what for what, _ in counts}, key=lambda what: what != "the photos"):
        total = sum(counts[what, split] for split in splits.SPLITS)
        for split, share in after.shares.items():
            apart = abs(counts[what, split] - share * total)
            if apart > OFF * total and apart > 1:
                found.append(
                    (
                        counts[what, split] > 0,
                        f"{split} has {counts[what, split] / total:.0%} of {what}, not {share:.0%}",
                    )
                )
    return [text for _, text in sorted(found, key=lambda pair: pair[0])]


def network_name(recipe: Recipe) -> str:
    own = own_network(recipe.network.name)
    return own.label if own else Path(recipe.network.name).name


def open_images(recipe: Recipe, run: Run | None, reporter: Reporter, cluster: Workers | None) -> Dataset:
    """Open a recipe's data, after checking that its network exists.

    `run` is the run to continue; None for a new one, whose network is then built and checked, after the workers of `cluster` have met.

    Raises:
        ClusterError: if the workers do not meet.
        UnknownNameError: for an unknown network or dataset.
        DatasetError: if the images of the run to continue are gone.
        NetworkError: for a user's own network that cannot be trained.
    """
    code = run.file(NETWORK_FILE) if run else Path((recipe.network.name or "").rpartition(":")[0])
    if code.name == NETWORK_FILE and code.is_file() and code.with_name(RECIPE).is_file():
        reporter.note(f"executing {code}: the network of this run is Python code")
    backbone = is_backbone(recipe.network.name)
    if recipe.network.name and not backbone and (run is None or not run.file(NETWORK_FILE).exists()):
        network_module(recipe.network.name)
    try:
        folds = bool(recipe.folds)  # they divide the images themselves
        begun = run and run.file(INFO).exists() and run.recipe == recipe
        images = known_images(run) if run and begun and not folds else None
        dataset = open_dataset(
            recipe.data, progress=reporter.working, for_training=not folds, note=reporter.note, known=images
        )
    except UnknownNameError:
        if run is None:
            raise
        raise DatasetError(
            f"the images of {run.path} are missing: {recipe.data.source}. Finished epochs are kept. "
            f"Put the images back, then: edgecnn train --resume --out {run.path}"
        ) from None
    if folds and dataset.faults:
        raise DatasetError("\n".join(f"{dataset.name}: {fault}" for fault in dataset.faults))
    if run is None:
        if cluster:
            from edgecnn.train.distribute import open_strategy

            open_strategy(cluster)
        check_network(recipe, dataset)
    return dataset


def run_name(recipe: Recipe, dataset: Dataset) -> str:
    """Return the default name of the run folder: the recipe's, or that of the data, and of the network if known."""
    own = own_network(recipe.network.name)
    name = recipe.network.name
    network = own.short if own else Path(name).stem if is_backbone(name) else name
    return recipe.name or (f"{dataset.name}-{network}" if network else dataset.name)


def require_same_images(run: Run, dataset: Dataset) -> None:
    for split in dataset.sizes if run.file(INFO).exists() else ():
        require_split(run, dataset, split)


@contextlib.contextmanager
def resumable(run: Run | None, reporter: Reporter) -> Iterator[None]:
    """Report how to continue an interrupted training."""
    try:
        yield
    except KeyboardInterrupt:
        if run:
            reporter.note(f"\nInterrupted; finished work is kept. To continue: edgecnn train --resume --out {run.path}")
        raise


def train_run(
    recipe: Settled, dataset: Dataset, run: Run | None, reporter: Reporter, cluster: Workers | None
) -> RunInfo:
    where = f"run {run.path}" if run else f"worker {cluster.index if cluster else 0}"
    reporter.note(f"{where}: {network_name(recipe)} on {dataset.title}, {len(dataset.labels)} classes")
    with resumable(run, reporter):
        return train_stage(recipe, dataset, run, reporter, cluster)


FOLDS = 5  # the recommended number of folds


def by_folds_line(run: Run, dataset: Dataset, info: RunInfo) -> str:
    """Return a line on the cost and gain of training with folds; "" for a run with folds, or data with their own splits."""
    if info.folds or not dataset.own or dataset.given != {"train"} or info.seconds is None:
        return ""
    choice = run.stored(CHOICE, NetworkChoice)
    minutes = (FOLDS + 1) * (info.seconds + (choice.seconds if choice else 0)) / 60
    duration = "" if info.tuning else f", about {max(1, round(minutes)):,} min here"  # folds train all epochs
    sizes, count = info.data.split_sizes, sum(info.data.split_sizes.values())
    return (
        f"With --folds {FOLDS}{duration}, all {count:,} photos would train the model, not "
        f"{sizes['train']:,}, and all would test it, not {sizes['test']:,}."
    )


def check_network(recipe: Recipe, dataset: Dataset) -> None:
    """Before a run begins, raise NetworkError or ExportError if a user's own network cannot be built or quantized, or has no features."""
    own, network = own_network(recipe.network.name), recipe.network
    if own is None:
        return
    from edgecnn.export import tflite
    from edgecnn.export.onnx import with_features
    from edgecnn.train.train import input_shape
    from edgecnn.verify.model_files import check_quantizable

    model = build_network(network.name, *input_shape(recipe, dataset), len(dataset.labels), network.options)
    if recipe.stranger.rate:
        with_features(tflite.float32(model))
    if recipe.qat.method != "ptq":
        check_quantizable(model, own.label, recipe.input_scale, recipe.input_zero_point)


def train_stage(
    recipe: Settled,
    dataset: Dataset,
    run: Run | None,
    reporter: Reporter,
    workers: Workers | None = None,
) -> RunInfo:
    """Train a run and plot its curves; `run` is None for a worker that is not the first."""
    from edgecnn.stages.last_layer import Int8Files, head_answers
    from edgecnn.train.train import input_line, train

    for line in (*dataset.summary(), faults_line(dataset)):
        if line:
            reporter.note(line)
    reporter.detail(input_line(recipe, dataset))
    if run:
        write_split_groups(run, dataset)
    if run and run.file(INFO).exists() and run.info.head_ships:  # a verdict stands
        info = run.info
    else:
        made = other_head(recipe, run) if run else None
        head = partial(head_answers, recipe, made, dataset, run, reporter) if made and run else None
        info = train(recipe, dataset, run, reporter.training, reporter.working, Int8Files(recipe), workers, head)
    if info.tuning:
        reporter.note(tuning_line(info.tuning))
    if info.int8 and info.int8.skipped:
        reporter.detail(
            f"int8: post-training quantization agrees with the float model on all {info.int8.validation.n:,} validation images, with "
            "nearly the same scores, so quantization-aware training was skipped; --set qat.method=qat requests it"
        )
    for one in dataset.duplicates[:5]:
        reporter.detail(f"kept out of {one.split}: {one.source}, the same as {one.of_source} of {one.of_split}")
    if dataset.duplicates:
        where = f"; all are in {run.path}/run.json" if run else ""
        reporter.note(f"{plural(len(dataset.duplicates), 'exact duplicate')} across splits kept out{where}")
    if run and not (info.tuning and not info.tuning.epochs):
        write_curves(run)
    return info
