"""`edgecnn datasets`."""

from edgecnn.cli.options import Json, emit_json


def datasets(json: Json = False) -> None:
    """List the datasets that --data accepts by name.

    --data also accepts a folder or a zip of images.

    \b
    Example:
      edgecnn datasets
    """
    from edgecnn.data import DATASETS, PREFIXES
    from edgecnn.images import FORMATS

    described = {name: (source.__doc__ or "").strip().splitlines()[0] for name, source in DATASETS.items()}
    if json:
        emit_json(described)
        return
    for name, text in described.items():
        print(f"{name:15} {text}")
    for kind, source in PREFIXES.items():
        print(f"{f'{kind}:PATH':15} {(source.__doc__ or '').strip().splitlines()[0]}")
    print(f"{'DIR or ZIP':15} Images in DIR/<class>/* or DIR/{{train,val,test}}/<class>/*: {', '.join(FORMATS)}.")
