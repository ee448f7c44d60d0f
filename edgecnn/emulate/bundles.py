"""Work for boards: a run's exports as a bundle, or an existing bundle, with its test images if available."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from edgecnn.bundle.manifest import Manifest
from edgecnn.bundle.read import Bundle, read_bundle
from edgecnn.bundle.write import write_bundle
from edgecnn.data import Dataset, Split, open_dataset
from edgecnn.data.known import Known
from edgecnn.emulate.on_boards import OnBoards, verify_on_boards
from edgecnn.emulate.qemu import find_qemu
from edgecnn.errors import DatasetError, DownloadError, RecipeError, UnknownNameError
from edgecnn.evaluate.answers import Progress, input_contract
from edgecnn.evaluate.taught import TIED, read_taught
from edgecnn.export import export_path
from edgecnn.recipe import DataRecipe, build_recipe, merge
from edgecnn.runs import Run
from edgecnn.verify.golden import golden_images, golden_models, golden_photos, npy
from edgecnn.verify.parity_report import BoardRow, BoardsData, BoardsReport
from edgecnn.versions import library_versions, processor


def run_on_boards(
    run: Run, exports: Sequence[tuple[str, str]], split: Split, boards: OnBoards, progress: Progress
) -> list[BoardRow]:
    """Run a run's exports (format, precision) like `verify_on_boards`, in a bundle without a report."""
    contract = input_contract(run)
    images = golden_images(contract)
    models = [(*export, export_path(run, *export).read_bytes()) for export in exports]
    entries, files = golden_models(models, contract, images)
    encoded, golden_encoded = golden_photos(contract)
    manifest = Manifest(
        name=run.name,
        title=run.info.data.title,
        labels=run.info.data.labels,
        input=contract,
        models=entries,
        defaults={},
        golden_images=golden_encoded,
        provenance={"run": run.name},
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{run.name}.edgecnn"
        write_bundle(path, manifest, {"golden/inputs.npy": npy(images)} | files | encoded)
        return verify_on_boards(read_bundle(path), split, boards, progress)


def bundle_on_boards(
    path: Path, boards: OnBoards, data: str | None, note: Callable[[str], None], progress: Progress
) -> BoardsReport:
    """Run a bundle on boards, on the test images it was verified with if they are available, else on its golden images."""
    find_qemu()
    bundle = read_bundle(path)
    try:
        split, described = test_images(bundle, data, progress, note)
    except (DatasetError, DownloadError, RecipeError, UnknownNameError) as error:
        if data is not None:
            raise
        note(f"{error}\nusing only the golden images of {path.name}. Give its test images with --data.")
        split, described = None, None
    rows = verify_on_boards(bundle, split, boards, progress)
    return BoardsReport(
        schema="edgecnn.boards/1",
        bundle=bundle.manifest.name,
        bundle_sha256=bundle.sha256,
        data=described,
        boards=tuple(rows),
        passed=all(row.passed for row in rows),
        machine=processor(),
        versions=library_versions(),
    )


def test_images(
    bundle: Bundle, data: str | None, progress: Progress, note: Callable[[str], None]
) -> tuple[Split, BoardsData]:
    """Load the test images that a bundle was verified with, and describe them. Errors as in `recorded_data`."""
    size = bundle.manifest.input
    dataset = recorded_data(bundle, data, "test", progress, note)
    split = dataset.load(
        ("test",), height=size.height, width=size.width, channels=size.channels, stage="verify", progress=progress
    )["test"]
    return split, BoardsData(
        name=dataset.name, title=dataset.title, test_images=len(split.classes), test_sha256=dataset.hashes["test"]
    )


def recorded_data(
    bundle: Bundle, data: str | None, split: str, progress: Progress, note: Callable[[str], None]
) -> Dataset:
    """Open the data a bundle was made from, at the recipe's location or another. Raises DatasetError if the split is missing or changed."""
    provenance = bundle.manifest.provenance
    recipe, recorded = provenance.get("recipe"), provenance.get("data")
    hashes = recorded.get("split_hashes") if isinstance(recorded, dict) else None
    if not isinstance(recipe, dict) or not isinstance(hashes, dict) or split not in hashes:
        raise DatasetError(f"the bundle {bundle.path} does not record which images it was verified with.")
    given = {} if data is None else {"source": data}
    recipe_data: DataRecipe = build_recipe(merge({"data": recipe.get("data", {})}, {"data": given})).data
    images = Known(labels=bundle.manifest.labels, files={})
    try:
        dataset: Dataset = open_dataset(recipe_data, progress=progress, for_training=False, note=note, known=images)
    except UnknownNameError:
        if data is not None:
            raise
        raise DatasetError(
            f"the images that {bundle.path.name} was made from, {recipe_data.source}, are not here. Say where they are: --data photos/"
        ) from None
    if dataset.hashes[split] != hashes[split] and (taught := read_taught(bundle)):
        dataset = dataset.redivided({digest: "test" if part == TIED else part for digest, part in taught.items()})
    if dataset.hashes[split] != hashes[split]:
        raise DatasetError(
            f"the {split} images of {dataset.name} are not those {bundle.path.name} was verified with. Name the right ones with --data."
        )
    return dataset
