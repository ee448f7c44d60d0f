"""What to do about an error, where that takes an option: the sentences that the command line adds to the errors of the stages."""

from edgecnn.errors import EdgeCNNError

ADVICE = {
    # by the kind of a comparison that failed
    "quantization": "Train longer with --qat-epochs, or accept more with --max-drop. Worst layers: edgecnn layers",
    "conversion": "If the file or the run has changed since the export: edgecnn export --force. Otherwise the converter or the engine "
    "rounds differently; worst layers: edgecnn layers. To ship it anyway, on record: --accept-conversion",
    "program": "The program stretches images and resizes them without antialiasing: train with --set data.fit=stretch on images as it sees "
    "them, or accept more with --max-drop.",
    "models": "Check that both read the same range (--input-range) and channel order, or accept more with --max-drop.",
    # by what may help against the corruption that costs most
    "train.robust": "Train with --robust, or accept less with --at-least.",
    "train.augment": "Train with --set train.augment=photo, or accept less with --at-least.",
    "train.cutout": "Train with --set train.cutout=SIDE, about a third of the input's, or accept less with --at-least.",
    "colour order": "Make sure that the frames are RGB, or leave it out with --corruptions.",
    "more images": "Add such images to the training data, or accept less with --at-least.",
    # by name
    "all_images": "Compare on all of them: --split all",
    "frigate_input": "Train one for it: edgecnn train --data frigate:PATH, or on other data --size 224 with --set network.channels=3 and "
    "--set data.fit=stretch",
    "cut_images": "Train without --region, on images that are cut already, such as edgecnn capture --region keeps.",
    "rgb_input": "Train with --set network.channels=3.",
    "choose_model": "See --engine and --precision.",
    "export_again": "Export it again with --force.",
    "fail_on": "Clean the data, as with --fix OUT; or allow more with --fail-on.",
    "go_back": "To go back on purpose: edgecnn slot rollback, or --older",
    "keep_more": "Allow more with --save-cap.",
    "other_classes": "To put it in use all the same: --other-classes",
    "name_bundle": "Name another with --model.",
    "name_camera": "For what a camera sees: --camera, or /dev/video0 and so on.",
    "name_labels": "If the models have more or other classes: --labels FILE, their names in the order of the outputs.",
    "name_images": "Name those with --data.",
    "name_network": "Without --network the images choose one; FILE.py:FUNCTION is one of your own.",
    "name_place": "Say where they are: --data photos/",
    "name_run": "Name another folder with --out.",
    "new_folder": "Name one with --fix that does not exist yet, outside of the data.",
    "other_run": "Or name another folder with --out.",
    "quantize_after": "Replace what is named, or quantize after training instead: --set qat.method=ptq",
    "replace": "Add --force to replace it.",
    "replace_run": "Replace it (--force), or name another folder with --out.",
    "restart_workers": "Start all workers again, worker 0 with --resume.",
    "resume_run": "Continue it (--resume), replace it (--force), or name another folder with --out.",
    "same_command": "Give all workers the same command, except for --worker, --out and the place of the data.",
    "no_stranger": "Train with --set stranger.rate=0, or end the network in a dense layer.",
    "state_range": "State its range with --input-scale and --input-zero-point.",
    "train_again": "Train again with --force, or into another folder with --out.",
    "wait_longer": "--retry-for waits longer.",
    "workers_or_init": "Leave out --workers or --init.",
}
"""By the `advice` of an error."""


def with_advice(error: EdgeCNNError) -> str:
    """Return an error's text, with the sentence that its advice stands for."""
    text = str(error)
    return f"{text}{'' if text.endswith('.') else '.'} {ADVICE[error.advice]}" if error.advice else text
