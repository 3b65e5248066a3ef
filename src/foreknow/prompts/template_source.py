"""Analyse a chat template statically: the variables it reads, the constants it compares them with, and its dates.

A chat template is a Jinja program that comes with a tokenizer. This module parses it without running it;
`chat_templates.py` renders chats to find out what it does.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from foreknow.errors import ConfigError

if TYPE_CHECKING:
    from jinja2 import nodes
    from transformers import PreTrainedTokenizerBase

PROVIDED: Final = frozenset(
    {"messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "raise_exception"}
    | {"strftime_now", "namespace", "range", "dict", "lipsum", "cycler", "joiner"}
)
"""Names that transformers passes to every template, or that Jinja defines: these are not settings of a template."""
DAY: Final = datetime.datetime(2024, 7, 26, tzinfo=datetime.UTC)
"""The date given to every template, so that prompts do not change from day to day. It is Llama 3's own default."""
_DAY_NAMES: Final = {"date_string": "%d %b %Y", "current_date": "%Y-%m-%d", "today": "%d %B %Y"}
"""The variables in which templates receive the day, and the format of each."""


class TemplateSource(NamedTuple):
    """The result of analysing a template.

    `text`: the program, with fixed days in place of those that it would ask the clock for. `variables`: those that it
    reads and does not set itself, except `PROVIDED`. `constants`: by variable, the constants that it is compared with.
    `literals`: all texts in the program. `day`: whether prompts would contain the day.
    """

    text: str
    variables: tuple[str, ...]
    constants: dict[str, tuple[Any, ...]]
    literals: tuple[str, ...]
    day: bool
    generation: bool

    @property
    def dates(self) -> dict[str, str]:
        """Return the variables in which the template receives the day, each with the day in its format."""
        return {name: DAY.strftime(_DAY_NAMES[name]) for name in self.variables if name in _DAY_NAMES}


def template_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the text of a tokenizer's chat template. Raises ConfigError if it has none, or several and no default."""
    template = tokenizer.chat_template
    if isinstance(template, dict):
        named = {str(name): text for name, text in template.items() if text}
        if "default" in named or len(named) == 1:
            return str(named.get("default") or next(iter(named.values())))
        if named:
            raise ConfigError(
                f"--chat-template: this model's tokenizer has the chat templates {', '.join(sorted(named))} and none "
                "named 'default'; save the one to use as chat_template.jinja in the model's folder"
            )
        template = None
    if not template:
        raise ConfigError("--chat-template: this model's tokenizer has no chat template; use --chat-template no")
    return str(template)


def read_source(text: str) -> TemplateSource:
    """Parse a template. Raises ConfigError where it is not valid Jinja."""
    from jinja2 import TemplateError, meta, nodes

    try:
        tree = _environment().parse(text)
        read = meta.find_undeclared_variables(tree)
    except (TemplateError, RecursionError) as error:
        why = " ".join(str(getattr(error, "message", None) or error).split())[:160]
        line = getattr(error, "lineno", None)
        at = f", line {line}" if line else ""
        raise ConfigError(
            f"--chat-template: the model's chat template is not valid Jinja{at}: {why}; repair it in the model's "
            "folder, or leave the flag out"
        ) from None
    formats = set(_day_formats(tree))
    return TemplateSource(
        text=_with_days(text, formats) if formats and None not in formats else text,
        variables=tuple(sorted(read - PROVIDED)),
        constants=_constants(tree),
        literals=tuple(
            [str(node.data) for node in tree.find_all(nodes.TemplateData)]
            + [node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)]
        ),
        day=bool(formats) or bool(read & _DAY_NAMES.keys()),
        generation=re.search(r"\{%-?\s*generation\s*-?%\}", text) is not None,
    )


def _environment() -> Any:
    from jinja2 import Environment
    from jinja2.ext import Extension

    class Generation(Extension):
        """`{% generation %}`, which transformers adds to Jinja: the block is replaced by its content."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    return Environment(extensions=["jinja2.ext.loopcontrols", Generation])  # only parsed, never rendered


def _constants(tree: nodes.Template) -> dict[str, tuple[Any, ...]]:
    """Return by variable the constants that it, or an alias of it, is compared with or looked up in."""
    from jinja2 import nodes

    aliases: dict[str, set[str]] = {}
    for assignment in tree.find_all(nodes.Assign):
        if isinstance(assignment.target, nodes.Name):
            aliases.setdefault(assignment.target.name, set()).update(
                name.name for name in assignment.node.find_all(nodes.Name)
            )
            if isinstance(assignment.node, nodes.Name):
                aliases[assignment.target.name].add(assignment.node.name)
    constants: dict[str, list[Any]] = {}
    for node in tree.find_all((nodes.Compare, nodes.Getitem)):
        values = [value for const in node.find_all(nodes.Const) for value in _constant_values(const.value)]
        for name in _alias_origins({name.name for name in node.find_all(nodes.Name)}, aliases):
            known = constants.setdefault(name, [])
            known.extend(value for value in dict.fromkeys(values) if value not in known)
    return {name: tuple(values) for name, values in constants.items()}


def _constant_values(value: Any) -> list[Any]:
    """Return a constant, the constants in a list, or the keys of a table: Jinja makes constants of all of them."""
    return list(value) if isinstance(value, list | tuple | dict | set) else [value]


def _alias_origins(names: set[str], aliases: dict[str, set[str]]) -> set[str]:
    """Return the names, and all variables that they were assigned from."""
    seen: set[str] = set()
    pending = list(names)
    while pending:
        name = pending.pop()
        if name not in seen:
            seen.add(name)
            pending += aliases.get(name, ())
    return seen


def _day_formats(tree: nodes.Template) -> Iterator[str | None]:
    """Yield the formats in which the template asks the clock for the day; None where the format is computed."""
    from jinja2 import nodes

    for call in tree.find_all(nodes.Call):
        if isinstance(call.node, nodes.Name) and call.node.name == "strftime_now":
            argument = call.args[0] if call.args else None
            yield argument.value if isinstance(argument, nodes.Const) and isinstance(argument.value, str) else None


def _with_days(text: str, formats: set[str | None]) -> str:
    """Prefix the template with a macro that replaces `strftime_now`, because values passed to it cannot be called."""
    days = {form: DAY.strftime(form) for form in formats if form is not None}
    table = "{" + ", ".join(f"{form!r}: {day!r}" for form, day in sorted(days.items())) + "}"
    # the print statement at the end keeps the line break that a block statement would swallow
    return f"{{%- macro strftime_now(form) -%}}{{{{ {table}[form] }}}}{{%- endmacro %}}{{{{ '' }}}}{text}"
