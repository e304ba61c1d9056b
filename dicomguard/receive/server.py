"""The acceptor: one listening socket, a thread for each connection, and a way to stop that loses nothing."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from datetime import datetime

from dicomguard.errors import ConfigError
from dicomguard.receive.admission import NO_THREAD, Admission
from dicomguard.receive.census import Census
from dicomguard.receive.chronicle import Chronicle
from dicomguard.receive.conversation import Conversation, House
from dicomguard.receive.offer import Offer
from dicomguard.receive.pdu import encode_reject
from dicomguard.receive.settings import ReceiveSettings
from dicomguard.spool.incoming import Incoming
from dicomguard.spool.journal import JournalWriter
from dicomguard.study import utc_now

# 300 clients at once overrun the five that socketserver allows.
_BACKLOG = 256
# A head start for acceptors with fewer connections.
_COURTESY_S = 0.002
_RETRY_S = 0.05
# What a caller that is turned away has said by then.
_REQUEST_BYTES = 64 * 1024

_LOG = logging.getLogger(__name__)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket, to be handed to several acceptors if need be. Raises ConfigError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"Nothing can listen on {host} port {port}: {error.strerror}.",
            advice="Set node.host and node.port to an address of this machine and a port that is free.",
        ) from error
    listener.setblocking(False)
    return listener


class Doorman:
    """Tells callers 'not now' where they could not be served, instead of letting them wait. For one thread."""

    def __init__(self) -> None:
        self._spare = -1
        self._keep_spare()

    def close(self) -> None:
        """Give back the descriptor that is kept for this."""
        if self._spare >= 0:
            os.close(self._spare)
        self._spare = -1

    def turn_away_next(self, listener: socket.socket) -> bool:
        """Refuse the oldest in the listen queue, with the spare descriptor. False: nobody waits, or none is left."""
        self.close()
        try:
            connection, _ = listener.accept()
        except OSError:
            return False
        else:
            turn_away(connection)
            return True
        finally:
            self._keep_spare()

    def _keep_spare(self) -> None:
        with contextlib.suppress(OSError):  # none left at all: the next turn looks again
            self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)


def turn_away(connection: socket.socket) -> None:
    """Refuse without a thread: one short send into an empty socket buffer cannot block."""
    with contextlib.suppress(OSError):
        connection.setblocking(False)
        with contextlib.suppress(BlockingIOError, MemoryError):
            connection.recv(_REQUEST_BYTES)  # closing over unread bytes would reset the connection
        connection.send(encode_reject(NO_THREAD.result, NO_THREAD.source, NO_THREAD.reason))
        connection.shutdown(socket.SHUT_WR)
    connection.close()


class Receiver:
    """A Storage SCP in this process (PS3.4 Annexes A and B). `start`, then `stop`; not to be started again."""

    def __init__(
        self,
        settings: ReceiveSettings,
        incoming: Incoming,
        journal: JournalWriter,
        *,
        listener: socket.socket | None = None,
        census: Census | None = None,
        offer: Offer | None = None,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        """`listener`, `census` and `offer` are given where several acceptors share them. Raises ConfigError."""
        self._settings = settings
        self._listener = listener or listen(settings.host, settings.port)
        self._census = census or Census()
        admission = Admission(settings.ae_title, settings.peers)
        self._chronicle = Chronicle(journal, knows=admission.knows_address)
        self._stopping = threading.Event()
        self._house = House(
            settings=settings,
            offer=offer or _standard_offer(settings),
            admission=admission,
            census=self._census,
            chronicle=self._chronicle,
            incoming=incoming,
            now=now,
            stopping=self._stopping,
        )
        self._lock = threading.Lock()
        # Ordered sets, oldest first.
        self._half_open: dict[Conversation, None] = {}
        self._open: dict[Conversation, None] = {}
        self._max_half_open = max(4, settings.max_half_open // max(1, settings.acceptors))
        self._doorman = Doorman()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._threads: tuple[threading.Thread, ...] = ()

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return int(self._listener.getsockname()[1])

    @property
    def connections(self) -> int:
        """Connections being served now."""
        with self._lock:
            return len(self._half_open) + len(self._open)

    @property
    def is_stopped(self) -> bool:
        """True once `stop` was called."""
        return self._stopping.is_set()

    def start(self) -> None:
        """Begin to accept."""
        self._threads = (
            threading.Thread(target=self._accept_all, name="accept", daemon=True),
            threading.Thread(target=self._rotate_journal, name="journal", daemon=True),
        )
        for thread in self._threads:
            thread.start()

    def stop(self, grace_s: float) -> None:
        """Stop accepting; let associations finish what they do for `grace_s`, then end them. Returns when all have."""
        deadline = time.monotonic() + grace_s
        self._stopping.set()
        os.eventfd_write(self._wake, 1)
        for thread in self._threads:
            thread.join()
        self._listener.close()
        while self.connections and time.monotonic() < deadline:
            time.sleep(0.02)
        with self._lock:
            rest = [*self._half_open, *self._open]
        for conversation in rest:
            conversation.cut()
        last_call = time.monotonic() + self._settings.linger_s + 5.0
        while self.connections and time.monotonic() < last_call:
            time.sleep(0.02)
        self._chronicle.rotate(is_last=True)
        self._doorman.close()
        os.close(self._wake)

    # --- accepting

    def _accept_all(self) -> None:
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        while True:
            poll.poll()
            if self._stopping.is_set():
                return
            try:
                self._accept_one()
            except Exception:  # noqa: BLE001 - such as no memory: a process that accepts no more must not live on
                _LOG.exception("A connection could not be served; the next one is.")
                self._stopping.wait(_RETRY_S)

    def _accept_one(self) -> None:
        if self._census.is_busier_than_others():
            time.sleep(_COURTESY_S)
        try:
            connection, peer = self._listener.accept()
        except BlockingIOError:
            return  # another acceptor took it
        except OSError as error:
            # Out of file descriptors, or the peer has gone: the loop survives all of them.
            _LOG.warning("A connection could not be accepted: %s.", error.strerror)
            self._doorman.turn_away_next(self._listener)
            self._stopping.wait(_RETRY_S)
            return
        try:
            self._serve(connection, str(peer[0]))
        except BaseException:
            connection.close()
            raise

    def _serve(self, connection: socket.socket, address: str) -> None:
        conversation = Conversation(connection, address, self._house)
        with self._lock:
            crowd = len(self._half_open) - self._max_half_open + 1
            # Honest peers ask within milliseconds: the oldest that have not are the least likely to be.
            evicted = list(self._half_open)[:crowd] if crowd > 0 else []
            self._half_open[conversation] = None
        for other in evicted:
            other.cut()
        self._census.connected()
        try:
            threading.Thread(target=self._run, args=(conversation,), name=f"association {address}", daemon=True).start()
        except (RuntimeError, MemoryError):
            _LOG.exception("No thread for a connection; raise the limit on processes of this user.")
            self._forget(conversation)
            turn_away(connection)

    def _run(self, conversation: Conversation) -> None:
        try:
            conversation.run(lambda: self._established(conversation))
        finally:
            self._forget(conversation)

    def _established(self, conversation: Conversation) -> None:
        with self._lock:
            self._half_open.pop(conversation, None)
            self._open[conversation] = None

    def _forget(self, conversation: Conversation) -> None:
        with self._lock:
            self._half_open.pop(conversation, None)
            self._open.pop(conversation, None)
        self._census.disconnected()

    def _rotate_journal(self) -> None:
        while not self._stopping.wait(self._settings.journal_rotate_s):
            self._chronicle.rotate()


def _standard_offer(settings: ReceiveSettings) -> Offer:
    # Imported here, because acceptor processes get their offer from the parent and stay free of pynetdicom.
    from dicomguard.receive.catalogue import standard_offer  # noqa: PLC0415 - see above

    return standard_offer(settings.private_sop_classes)
