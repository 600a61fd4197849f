"""Run Python as documents show it: `await` may stand outside of a function (asyncio).

Called by tests/docs/sandbox.py with the text as the argument.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import sys
from types import CodeType, FunctionType


def main(text: str) -> None:
    code = compile(text, "<document>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    asyncio.run(_run(code))


async def _run(code: CodeType) -> None:
    result = FunctionType(code, {"__name__": "__main__"})()
    if inspect.isawaitable(result):
        await result


if __name__ == "__main__":
    main(sys.argv[1])
