"""What can be said of images that judge a model which edgecnn did not train."""


def taught_line(unseen: bool | str | None, images: int) -> str:
    """Return a sentence on whether test images may have taught an imported model; `unseen`: its importer says that they did not."""
    if unseen:
        return f"By the importer's word, the {images:,} test images did not train the model (--unseen)."
    return (
        f"edgecnn cannot know which images trained an imported model: if the {images:,} test images did, it is less accurate on new ones "
        "than measured. To judge it on others: edgecnn import … --unseen FOLDER"
    )
