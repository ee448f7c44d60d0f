"""Choose a network for the images and only show the choice, for commands that do not train."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgecnn.data import Dataset
    from edgecnn.recipe import Recipe
    from edgecnn.run_info import NetworkChoice
    from edgecnn.stages.reporter import Reporter


def chosen_by(recipe: "Recipe", dataset: "Dataset", reporter: "Reporter") -> "tuple[Recipe, NetworkChoice | None]":
    """Choose the network for the images if the recipe leaves it open; return the recipe and the choice. Nothing is saved."""
    from edgecnn.run_info import NetworkChoice
    from edgecnn.runs import CHOICE
    from edgecnn.stages.network_choice import choose_network, unkept

    with unkept() as run:
        return choose_network(recipe, dataset, run, reporter), run.stored(CHOICE, NetworkChoice)


def print_choice(choice: "NetworkChoice") -> None:
    from edgecnn.cli.console import terminal_width
    from edgecnn.report.choice import HEADINGS, choice_rows, judged_line
    from edgecnn.report.table import text_table

    print(text_table(HEADINGS, choice_rows(choice), terminal_width()))
    print(judged_line(choice))
