"""Write what pages in docs/ show from the code, so that they can be read as they are; and the hooks of the site's build.

    python tools/docs.py

A function of GENERATORS writes the Markdown between `<!-- generate: NAME ARGUMENTS -->` and `<!-- end -->`. Each command has a file in
docs/commands/. A test fails if a page differs from the code. On the site, the models' cards, CONTRIBUTING.md, CHANGELOG.md and the JSON
schemas become pages of their own.
"""

import dataclasses
import inspect
import json
import re
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import schema as json_schema

from edgecnn import errors
from edgecnn.boards import list_targets
from edgecnn.cli import COMMANDS, app
from edgecnn.cli.help import sections
from edgecnn.device.service.config import Config
from edgecnn.device.stream.loop import OPTIONS
from edgecnn.networks import NETWORKS
from edgecnn.recipe import Recipe, keys, range_text
from edgecnn.report.table import markdown_table
from edgecnn.runtime.engines import ENGINES
from edgecnn.stress.corruptions import CORRUPTIONS, value_text
from edgecnn.tables import fields_of, value_type

ROOT = Path(__file__).parent.parent
LADDER = ROOT / "tools" / "bench" / "results" / "ladder.png"
DOCS = ROOT / "docs"
GENERATED = re.compile(r"^(<!-- generate: ([^\n]+) -->)$.*?^<!-- end -->$", re.MULTILINE | re.DOTALL)


def built_command(name: str) -> Any:
    """Return a command as built by the command line: a click command."""
    import typer

    group: Any = typer.main.get_command(app)
    return group.get_command(None, name)


def command_page(name: str) -> str:
    """Return a command's page: its help text, usage, arguments and options under their headings, and its examples."""
    command = built_command(name)
    context = command.context_class(command, info_name=f"edgecnn {name}")
    text: list[str] = []
    examples: list[str] = []
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        if paragraph.startswith("\b"):
            heading, *lines = paragraph.removeprefix("\b\n").splitlines()
            kept = examples if heading.startswith("Example") else text
            kept.append("```sh\n" + "\n".join(line.strip() for line in lines) + "\n```")
        else:
            text.append(escaped(" ".join(paragraph.split())))
    parts = [f"# edgecnn {name}", *text, f"```text\n{command.get_usage(context)}\n```"]
    for title, records in sections(command, context).items():
        rows = [(f"`{names}`", escaped(" ".join(about.split()))) for names, about in records]
        parts += [f"## {title}", markdown_table(("name", "meaning"), rows)]
    if examples:
        parts += ["## Examples", *examples]
    return "\n\n".join(parts) + "\n"


def command_table() -> str:
    """Return a table of the commands, each with the first sentence of its help and a link to its page."""
    rows = [
        (f"[`edgecnn {name}`](commands/{name}.md)", escaped(inspect.cleandoc(built_command(name).help).splitlines()[0]))
        for name in COMMANDS
    ]
    return markdown_table(("command", "what it does"), rows)


def recipe_keys() -> str:
    """Return a Markdown table for each recipe table: every key with its type, default, limits and meaning."""
    return "\n\n".join(recipe_tables(Recipe, ""))


def recipe_tables(kind: type, prefix: str) -> Iterator[str]:
    """Yield the Markdown of a recipe's dataclass, followed by its nested ones."""
    known = {key.name: key for key in keys()}
    rows, inner = [], []
    for entry in dataclasses.fields(kind):
        of, name = value_type(entry.type), f"{prefix}{entry.name}"
        if dataclasses.is_dataclass(of):
            inner.append((typing.cast(type, of), f"{name}."))
            continue
        key = known[name]
        stated = "-" if key.default is None else f"`{json.dumps(key.default)}`"
        rows.append((f"`{name}`", key.type, stated, recipe_limits(entry.metadata), escaped(key.meaning)))
    title = f"## `[{prefix.rstrip('.')}]`" if prefix else "## Top level"
    table = markdown_table(("key", "type", "default", "allowed", "meaning"), rows)
    yield f"{title}\n\n{escaped(inspect.getdoc(kind) or '')}\n\n{table}"
    for item, path in inner:
        yield from recipe_tables(item, path)


def service_options() -> str:
    """Return a table of the service's options with their defaults, limits and meanings."""
    rows = [
        (
            f"`{name}`",
            f"`{json.dumps(entry.default)}`",
            recipe_limits(entry.metadata),
            escaped(entry.metadata["meaning"]),
        )
        for name, entry in fields_of(Config).items()
    ]
    return markdown_table(("option", "default", "allowed", "meaning"), rows)


def stream_settings() -> str:
    """Return a table of the settings that `open_stream` takes as arguments, with their defaults and meanings."""
    rows = [
        (f"`{name}`", f"`{entry.default!r}`", escaped(entry.metadata["about"]))
        for group in OPTIONS
        for name, entry in fields_of(group).items()
    ]
    return markdown_table(("argument", "default", "meaning"), rows)


def recipe_limits(metadata: Mapping[str, Any]) -> str:
    """Describe the values that a recipe key accepts."""
    if "choices" in metadata:
        return ", ".join(f"`{json.dumps(choice)}`" for choice in metadata["choices"])
    if "expected" in metadata:
        return escaped(metadata["expected"])
    if metadata.get("low") is None:
        return "any"
    return range_text(metadata)


def error_kinds() -> dict[str, type[errors.EdgeCNNError]]:
    """Return the error classes by name, in order of exit code."""
    kinds = [item for item in vars(errors).values() if inspect.isclass(item) and issubclass(item, errors.EdgeCNNError)]
    return {kind.__name__: kind for kind in sorted(kinds, key=lambda kind: kind.exit_code)}


def error_table() -> str:
    """Return a table of the exit codes, each with a link to the section on the same page that says what to do."""
    rows = [
        (
            str(kind.exit_code),
            f"[`{name}`](#{name.lower()})",
            ", ".join(base.__name__ for base in kind.__bases__),
            escaped(first_line(kind)),
        )
        for name, kind in error_kinds().items()
        if kind is not errors.EdgeCNNError
    ]
    return markdown_table(("exit code", "kind", "inherits", "meaning"), rows)


def error_line(name: str) -> str:
    """Return the line below an error's heading on the troubleshooting page: its exit code and its meaning."""
    kind = error_kinds()[name]
    return f"**Exit code {kind.exit_code}.** {escaped(first_line(kind))}"


def first_line(item: object) -> str:
    """Return the first line of a docstring."""
    return (inspect.getdoc(item) or "").splitlines()[0]


def target_table() -> str:
    """Return a table of the boards in targets/."""
    rows = [
        (
            f"`{target.name}`",
            target.title,
            target.arch,
            target.cpu_model,
            target.engine + (f" ({target.provider})" if target.provider != "cpu" else ""),
            f"{target.memory_mib:,} MiB" if target.memory_mib else "-",
            target.emulator.cpu if target.emulator else "-",
        )
        for target in list_targets()
    ]
    return markdown_table(("target", "board", "architecture", "processor", "engine", "memory", "emulated as"), rows)


def engine_table() -> str:
    """Return a table of the inference engines, in the order in which automatic selection tries them."""
    rows = [
        (f"`{name}`", f".{kind.format}", ", ".join(f"`{item}`" for item in kind.providers), f"`{kind.install}`")
        for name, kind in ENGINES.items()
    ]
    return markdown_table(("engine", "models", "providers, the default first", "install"), rows)


def network_table() -> str:
    """Return a table of the built-in networks."""
    return markdown_table(
        ("network", "what it is"), [(f"`{name}`", escaped(about)) for name, about in NETWORKS.items()]
    )


def corruption_table() -> str:
    """Return a table of the corruptions in the stress test, with their strengths and the source of their definition."""
    rows = []
    for name, corruption in CORRUPTIONS.items():
        photo, small = (
            "; ".join(filter(None, map(value_text, values))) or "-" for values in (corruption.photo, corruption.small)
        )
        source = f"`{corruption.reference}`" if corruption.reference else "edgecnn's own"
        rows.append((f"`{name}`", corruption.unit, photo, small, source))
    return markdown_table(
        ("corruption", "its strengths are", "photos, 1 to 5", "small images, 1 to 5", "definition"), rows
    )


def schema_tables(name: str) -> str:
    """Return the tables of a JSON schema: each object's fields with their types and meanings."""
    schema = json_schema.schema(name)
    parts = [escaped(schema["description"])]
    for title, node in schema_objects(schema):
        fields = {**node.get("properties", {})}
        about = node.get("description", "")
        rows = [(f"`{key}`", schema_type(item), escaped(described(item, schema))) for key, item in fields.items()]
        parts += [f"### {title}", escaped(about), markdown_table(("field", "type", "meaning"), rows)]
    return "\n\n".join(filter(None, parts))


def schema_objects(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every object with fields in a schema, with its name: the document, nested objects, and the definitions."""

    def within(title: str, node: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        if "properties" in node:
            yield title, node
        for key, item in node.get("properties", {}).items():
            yield from within(key if title == schema["title"] else f"{title}.{key}", item)
        for item in (node.get("items"), *node.get("oneOf", ())):
            if isinstance(item, dict) and "$ref" not in item:
                yield from within(title, item)

    yield from within(schema["title"], schema)
    for key, node in schema.get("$defs", {}).items():
        yield from within(key, node)


def schema_type(node: dict[str, Any]) -> str:
    """Return a field's type as Markdown."""
    if "$ref" in node:
        return node["$ref"].rsplit("/", 1)[-1]
    if "const" in node:
        return f"`{json.dumps(node['const'])}`"
    if "enum" in node:
        return ", ".join(f"`{json.dumps(item)}`" for item in node["enum"])
    if "oneOf" in node:
        return " or ".join(schema_type(item) for item in node["oneOf"])
    kind = node.get("type", "object")
    if kind == "array":
        return f"array of {schema_type(node['items'])}" if isinstance(node.get("items"), dict) else "array"
    return " or ".join(kind) if isinstance(kind, list) else kind


def described(node: dict[str, Any], schema: dict[str, Any]) -> str:
    """Return a field's description: its own, or that of the definition it refers to."""
    if "description" in node:
        return node["description"]
    return schema["$defs"][node["$ref"].rsplit("/", 1)[-1]].get("description", "") if "$ref" in node else ""


def escaped(text: str) -> str:
    """Escape text so that Markdown shows it literally: help and docstrings contain <, *, | and paths that are not markup."""
    entities = {"<": "&lt;", ">": "&gt;"}  # Python-Markdown shows a backslash before them
    return re.sub(r"(`[^`]*`)|([<>*|_\[\]])", lambda found: found[1] or entities.get(found[2], f"\\{found[2]}"), text)


def example(name: str) -> str:
    """Return a program in docs/examples as a block of code."""
    (path,) = (DOCS / "examples").glob(f"{name}.*")
    return f"```{ {'.py': 'python', '.sh': 'text'}[path.suffix] }\n{path.read_text(encoding='utf-8')}```"


GENERATORS: Mapping[str, Callable[..., str]] = {
    "commands": command_table,
    "recipe-keys": recipe_keys,
    "service-options": service_options,
    "stream-settings": stream_settings,
    "errors": error_table,
    "error": error_line,
    "targets": target_table,
    "engines": engine_table,
    "networks": network_table,
    "corruptions": corruption_table,
    "schema": schema_tables,
    "example": example,
}
"""The generators that a marker in a page may name."""


def with_generated(markdown: str) -> str:
    """Return a page with the text after each marker generated again."""

    def made(found: re.Match[str]) -> str:
        name, *arguments = found[2].split()
        return f"{found[1]}\n{GENERATORS[name](*arguments)}\n<!-- end -->"

    return GENERATED.sub(made, markdown)


def pages() -> dict[Path, str]:
    """Return the files in docs/ that come from the code, in whole or in part: path to content."""
    texts = {path: path.read_text(encoding="utf-8") for path in sorted(DOCS.glob("*.md"))}
    filled = {path: with_generated(text) for path, text in texts.items() if "<!-- generate: " in text}
    return filled | {DOCS / "commands" / f"{name}.md": command_page(name) for name in COMMANDS}


def site_pages() -> dict[str, str]:
    """Return the site's pages that have no file in docs/: path in the site's sources to content."""
    cards = {f"models/{path.parent.name}.md": path for path in sorted((ROOT / "models").glob("*/card.md"))}
    copies = {"contributing.md": ROOT / "CONTRIBUTING.md", "changelog.md": ROOT / "CHANGELOG.md", **cards}
    return {
        **{path: file.read_text(encoding="utf-8") for path, file in copies.items()},
        **{f"schemas/{name}": text for name, text in json_schema.files().items()},
    }


def on_config(config: Any) -> Any:
    """Fill in the navigation's lists of commands and models."""
    for item in config.nav:
        if "Commands" in item:
            item["Commands"] += [{f"edgecnn {name}": f"commands/{name}.md"} for name in COMMANDS]
        if "Models" in item:
            item["Models"] += [path for path in site_pages() if path.startswith("models/")]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages without a file in docs/ to the site's files."""
    from mkdocs.structure.files import File

    for path, content in site_pages().items():
        files.append(File.generated(config, path, content=content))
    files.append(File.generated(config, "assets/ladder.png", abs_src_path=str(LADDER)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Turn a page's links to files of the repository into links to their pages on the site, and file names of schemas into links."""
    # GitHub needs a backslash before a pipe inside a table's code; Python-Markdown would show it
    text = re.sub(
        r"(?m)^\|.*$", lambda row: re.sub(r"`[^`]*`", lambda code: code[0].replace(r"\|", "|"), row[0]), markdown
    )
    text = re.sub(r"`(\w+\.schema\.json)`", r"[`\1`](schemas/\1)", text)
    text = text.replace("](../CONTRIBUTING.md", "](contributing.md")
    text = re.sub(r"\]\((?:\.\./)*models/([\w-]+)/card\.md\)", r"](models/\1.md)", text)
    text = text.replace("](../tools/bench/results/ladder.png)", "](assets/ladder.png)")
    if page.file.src_uri in ("contributing.md", "changelog.md"):
        text = re.sub(r"\]\(docs/", "](", text)
    return text


if __name__ == "__main__":
    for page, text in pages().items():
        page.parent.mkdir(exist_ok=True)
        page.write_text(text, encoding="utf-8")
    for page in set((DOCS / "commands").glob("*.md")) - pages().keys():
        page.unlink()
