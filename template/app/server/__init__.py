"""The HTTP server: uvicorn, with limits on what clients may send and keep."""
