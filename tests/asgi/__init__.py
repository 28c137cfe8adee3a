"""ASGI applications on the memory link, in trio, and over loopback, in asyncio."""
