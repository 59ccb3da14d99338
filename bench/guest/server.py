"""What the health checks look at: a port for each agent, which answers a request with 200."""

import asyncio
import sys

_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        # A TCP check closes at once, and then nothing comes.
        if await reader.readline():
            writer.write(_ANSWER)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


async def main() -> None:
    first, count = map(int, sys.argv[1:])
    for port in range(first, first + count):
        await asyncio.start_server(answer, "127.0.0.1", port)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
