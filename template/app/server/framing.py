"""HTTP/1.1 framing: h11, without what is ambiguous or slow to parse.

Nothing else in the service depends on h11's internals.
"""

import h11
from h11._readers import ChunkedReader
from h11._receivebuffer import ReceiveBuffer

MAX_HEADERS = 100
# A chunk costs some 10 µs, however small. At most SMALL_CHUNKS of a request, beyond its larger
# ones, may have fewer bytes than SMALL_CHUNK_SIZE.
SMALL_CHUNKS, SMALL_CHUNK_SIZE = 1_000, 128


def check_lines(data: bytes, end: bytes) -> None:
    """Refuse lines that are ambiguous, or that h11 would take seconds to parse.

    What follows `end` is not part of them.
    """
    text = b"".join(data.partition(end)[:2])
    ends = text.count(b"\r\n")
    if ends != text.count(b"\n") or ends != text.removesuffix(b"\r").count(b"\r"):
        raise h11.RemoteProtocolError("a bare CR or LF")
    folded = b"\n " in text or b"\n\t" in text
    if folded or b"\0" in text or b"\v" in text or b"\f" in text:
        raise h11.RemoteProtocolError("a folded line, or a control character")


class Chunks(ChunkedReader):
    """h11's reader, which checks the lines of chunks and trailers as strictly as those of a head."""

    def __call__(self, buffer: ReceiveBuffer) -> h11.Data | h11.EndOfMessage | None:
        if self._reading_trailer:
            check_lines(b"\r\n" + bytes(buffer), b"\r\n\r\n")
        elif not self._bytes_in_chunk:
            check_lines(bytes(buffer).removeprefix(self._bytes_to_discard), b"\r\n")
        return super().__call__(buffer)


class Connection(h11.Connection):
    """h11's connection, without the leniency that lets a proxy see other requests in the same bytes."""

    paused = False
    spare = 0

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        if self.their_state is h11.IDLE and (data := self.trailing_data[0]):
            check_lines(data, b"\r\n\r\n")
        event = super().next_event()
        if event is h11.PAUSED:
            self.paused = True
        elif isinstance(event, h11.Request):
            names = {name for name, _ in event.headers}
            is_1_1 = event.http_version == b"1.1"
            if b"transfer-encoding" in names and (b"content-length" in names or not is_1_1):
                raise h11.RemoteProtocolError("an ambiguous length")
            if not event.target.startswith((b"/", b"*")):  # it may contain a password
                raise h11.RemoteProtocolError("an absolute target")
            if len(event.headers) > MAX_HEADERS or event.http_version not in (b"1.0", b"1.1"):
                raise h11.RemoteProtocolError("too many headers, or another version")
            self.spare = SMALL_CHUNKS * SMALL_CHUNK_SIZE
            if isinstance(self._reader, ChunkedReader):
                self._reader = Chunks()
        elif isinstance(event, h11.Data):
            self.spare += len(event.data) - SMALL_CHUNK_SIZE * event.chunk_start
            if self.spare < 0:
                raise h11.RemoteProtocolError("too many small chunks")
        return event
