"""The settings of `foreknow extract`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from foreknow.config.shared import DataSettings, ServerSettings
from foreknow.settings import COMMON, Group


class ExtractConfig(DataSettings, ServerSettings):
    """Settings of `foreknow extract`."""

    writes_a_file: ClassVar[bool] = True

    out: Annotated[Path | None, Group.OUTPUT, COMMON] = Field(
        None, description="The file to write: your rows with a new column 'facts'."
    )
    endpoint: Annotated[str, Group.MODEL, COMMON] = Field(
        description="The address of an OpenAI-compatible server, such as http://localhost:8000/v1; OPENAI_API_KEY "
        "holds its key."
    )
    model: Annotated[str, Group.MODEL, COMMON] = Field(description="The name of the model on that server.")
    max_facts: Annotated[int, Group.PROTOCOL, COMMON] = Field(
        8, ge=1, description="Ask for at most this many facts from one row."
    )
    max_answer_words: Annotated[int, Group.PROTOCOL, COMMON] = Field(
        8, ge=1, description="Drop a fact whose answer has more words than this."
    )
    temperature: Annotated[float, Group.PROTOCOL] = Field(
        0.0, ge=0, le=2, description="The temperature at which the server samples its reply."
    )
    max_tokens: Annotated[int, Group.PROTOCOL] = Field(
        1024, ge=1, description="The server may use at most this many tokens for one reply."
    )
    attempts: Annotated[int, Group.PROTOCOL] = Field(
        3, ge=1, description="Ask the server at most this often about a row while its reply cannot be read."
    )
    limit: Annotated[int | None, Group.DATA, COMMON] = Field(
        None, ge=1, description="Ask about only this many rows, drawn evenly over the groups."
    )
