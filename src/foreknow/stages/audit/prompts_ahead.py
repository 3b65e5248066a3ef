"""Prepare the prompts of each chunk while the chunk before it is probed.

Prompts are made by the tokenizer, on the host; a device computes meanwhile. One thread makes them, in the order of the
chunks, so they are the same as without it.
"""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import polars as pl

    from foreknow.inference.prompt_builder import PreparedPrompts, PromptBuilder
    from foreknow.stages.audit.executor import NumberedChunks


def prompts_ahead(
    prompts: PromptBuilder, chunks: NumberedChunks
) -> Generator[tuple[int, pl.DataFrame, PreparedPrompts], None, None]:
    """Yield the number and the rows of each chunk, and its prompts. Raises what making them raises, at its chunk.

    At most one chunk is prepared ahead. The thread has ended when the iterator has, or is closed.
    """
    with ThreadPoolExecutor(1, "prompts") as thread:
        ahead = [thread.submit(prompts.build, rows) for _, rows in chunks[:1]]
        for n, (number, rows) in enumerate(chunks):
            prepared = ahead.pop().result()
            ahead = [thread.submit(prompts.build, after) for _, after in chunks[n + 1 : n + 2]]
            yield number, rows, prepared
