"""An MCP server for the tests, made with FastMCP: tools that return every kind of value.

    fastmcp_server.py stdio
    fastmcp_server.py http PORT      (0: any; the log says which)
"""

import asyncio
import os
import sys
from pathlib import Path

from fastmcp import Context, FastMCP
from fastmcp.server.middleware import Middleware
from fastmcp.utilities.types import Image


class Listings(Middleware):
    count = 0

    async def on_list_tools(self, context, call_next):
        self.count += 1
        return await call_next(context)


listings = Listings()
mcp = FastMCP("strangers", middleware=[listings])

# A picture of one pixel.
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de"
    "0000000c49444154789c63606060000000040001f61738550000000049454e44ae426082"
)


@mcp.tool(annotations={"readOnlyHint": True})
def integer() -> int:
    return 7


@mcp.tool
def no() -> bool:
    return False


@mcp.tool
def zero() -> int:
    return 0


@mcp.tool
def empty() -> str:
    return ""


@mcp.tool
def no_items() -> list[int]:
    return []


@mcp.tool
def table() -> dict:
    return {"result": 1, "falsy": [False, 0, "", None]}


@mcp.tool
def none() -> None:
    return None


@mcp.tool
def text() -> str:
    return "two\nlines"


@mcp.tool
def untyped(kind: str):
    return {"no": False, "zero": 0, "empty": "", "no_items": [], "none": None, "table": {"a": 1}}[kind]


@mcp.tool
def picture() -> Image:
    return Image(data=PIXEL, format="png")


@mcp.tool
def fails() -> str:
    raise ValueError("no such row")


@mcp.tool
def huge(length: int):
    """Without a type its result is text alone; with one it would come twice."""
    return "x" * length


@mcp.tool
def process() -> dict:
    """Which process this is, and how often somebody has come to it and listed its tools."""
    return {"id": os.getpid(), "listed": listings.count}


@mcp.tool
async def slow(folder: str, context: Context) -> str:
    """Tells how far it is and waits for ever. A file says that it was cancelled."""
    await context.report_progress(1, 3, "half asleep")
    try:
        await asyncio.sleep(3600)
    except asyncio.CancelledError:
        Path(folder, "cancelled").touch()
        raise
    return "woke up"


if sys.argv[1] == "stdio":
    mcp.run(transport="stdio", show_banner=False)
else:
    mcp.run(transport="http", host="127.0.0.1", port=int(sys.argv[2]), show_banner=False)
