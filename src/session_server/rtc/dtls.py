"""DTLS 1.2 for one peer: datagrams and `now` in, plaintext and datagrams out. Knows no addresses, and no SCTP.

RFC 6347 (DTLS 1.2), RFC 5288 and RFC 5246 §6.3 (AES-GCM, keys), RFC 8122 §5 (fingerprints). OpenSSL does the handshake
on memory BIOs, with messages only: record numbers, repetition of lost flights and, from the first protected record
on, the records themselves are ours. Hence OpenSSL's 75 kB per peer are given back as soon as the handshake is over,
lost flights are repeated by the `now` of the caller, and a record costs a microsecond.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from secrets import randbits
from struct import Struct, pack
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from OpenSSL import SSL, crypto

MTU: Final = 1200  # bytes of one datagram
HEADER: Final = 13  # bytes of a record's: type 1, version 2, epoch 2, sequence 6, length 2 (RFC 6347 §4.1)
OVERHEAD: Final = HEADER + 8 + 16  # bytes that a record is longer than its plaintext: explicit nonce, tag (RFC 5288 §3)
WINDOW: Final = 128  # records below the newest of which we know whether they came (RFC 6347 §4.1.2.6)
MASK: Final = (1 << WINDOW) - 1

CHANGE_CIPHER_SPEC, ALERT, HANDSHAKE, APPLICATION = 20, 21, 22, 23
VERSION: Final = b"\xfe\xfd"
VERSIONS: Final = (b"\xfe\xff", VERSION)  # a first ClientHello may travel as 1.0
DTLS_1_2: Final = 0xFEFD
CIPHERS: Final = b"ECDHE-ECDSA-AES128-GCM-SHA256"  # which every WebRTC peer must have (RFC 8827 §6.5)
CLOSE_NOTIFY, BAD_CERTIFICATE = 0, 42
WARNING, FATAL = 1, 2

# Seconds until an unanswered flight is repeated, and then twice as long each time. RFC 6347 §4.2.4.1 says one second;
# browsers wait 50 ms (BoringSSL, as WebRTC sets it), and a player would notice a second.
FIRST_TIMEOUT: Final = 0.25
LAST_TIMEOUT: Final = 1.0
SHORTEST_TIMEOUT: Final = 0.04  # the same if the peer repeats the flight before it
TRIES: Final = 16  # repetitions, about 16 s
EARLY: Final = 16  # protected records that may come before the handshake is over; more are dropped

# A protected record's first 21 bytes: type 1 and version 2, epoch and sequence 8, length 2, explicit nonce 8. What is
# sealed with it, and its nonce: 4 secret bytes, then the 8 explicit ones: for us epoch and sequence (RFC 5288 §3).
HEAD: Final = Struct("!3sQHQ")
ASSOCIATED: Final = Struct("!Q3sH").pack
NONCE: Final = Struct("!4sQ").pack
EPOCH_1: Final = 1 << 48
APPLICATION_HEAD: Final = b"\x17\xfe\xfd"
PROTECTED: Final = APPLICATION_HEAD + b"\0\1"  # how a record of the application begins

Item = tuple[int, int, bytes]  # a record before it is numbered and sealed: type, epoch, plaintext


class DtlsError(RuntimeError):
    """We ourselves used a connection in a state that does not allow it. What a peer does is never an exception."""


def accept_any(*_: object) -> bool:
    """For OpenSSL: no authority signs these certificates. `Dtls` compares the fingerprint instead."""
    return True


@dataclass(frozen=True, slots=True)
class Certificate:
    """A self-signed certificate on P-256, and the OpenSSL context that all peers of ours share."""

    der: bytes
    fingerprint: bytes  # SHA-256 of der
    context: SSL.Context

    @classmethod
    def new(cls) -> Certificate:
        """A new key. The dates mean nothing, since only the fingerprint is compared; short names keep flights short."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "rtc")])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(randbits(63) | 1)
            .not_valid_before(datetime(2020, 1, 1))
            .not_valid_after(datetime(2049, 12, 31))
            .sign(key, SHA256())
        )
        der = certificate.public_bytes(Encoding.DER)
        context = SSL.Context(SSL.DTLS_METHOD)
        context.set_min_proto_version(DTLS_1_2)
        context.set_max_proto_version(DTLS_1_2)
        context.set_cipher_list(CIPHERS)
        context.use_certificate(certificate)
        context.use_privatekey(key)
        context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, accept_any)
        context.set_options(SSL.OP_NO_QUERY_MTU | SSL.OP_NO_TICKET | SSL.OP_NO_RENEGOTIATION)
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        return cls(der, sha256(der).digest(), context)


class Records:
    """The protected records of one connection, epoch 1, both directions (RFC 6347 §4.1, RFC 5288)."""

    __slots__ = (
        "_bits", "_decrypt", "_encrypt", "_newest", "_read_iv", "_sequence", "_write_iv", "_writer", "forged",
        "replayed",
    )  # fmt: skip

    def __init__(self, write_key: bytes, write_iv: bytes, read_key: bytes, read_iv: bytes) -> None:
        """Keys of 16 bytes, and the 4 bytes of each nonce that do not travel."""
        self._writer = AESGCM(write_key)
        self._encrypt = self._writer.encrypt
        self._decrypt = AESGCM(read_key).decrypt
        self._write_iv, self._read_iv = write_iv, read_iv
        self._sequence = EPOCH_1  # epoch and number of our next record
        self._newest = EPOCH_1 - 1  # the same of the newest record that was authentic
        self._bits = 0  # bit n: the one n before it came
        self.replayed = 0
        self.forged = 0

    @classmethod
    def derive(cls, secret: bytes, server_random: bytes, client_random: bytes, client: bool) -> Records:
        """Keys from the master secret, for one of the two sides (RFC 5246 §6.3)."""
        block = expand(secret, b"key expansion" + server_random + client_random, 40)
        client_keys, server_keys = (block[0:16], block[32:36]), (block[16:32], block[36:40])
        return cls(*client_keys, *server_keys) if client else cls(*server_keys, *client_keys)

    def seal(self, plaintext: bytes, type: bytes = APPLICATION_HEAD) -> bytes:
        """One record. No two have the same number, so no two have the same nonce. `type` with the version behind it."""
        number = self._sequence
        self._sequence = number + 1
        size = len(plaintext)
        sealed = self._encrypt(NONCE(self._write_iv, number), plaintext, ASSOCIATED(number, type, size))
        return HEAD.pack(type, number, size + 24, number) + sealed

    def open(self, record: bytes) -> bytes | None:
        """The plaintext of a whole record of epoch 1; None if it is forged, or came before, or is too old to tell."""
        if len(record) < OVERHEAD:
            self.forged += 1
            return None
        type, number, size, explicit = HEAD.unpack_from(record)
        ahead = number - self._newest
        if ahead <= 0 and (ahead <= -WINDOW or self._bits >> -ahead & 1):
            self.replayed += 1
            return None
        try:
            plaintext = self._decrypt(NONCE(self._read_iv, explicit), record[21:], ASSOCIATED(number, type, size - 24))
        except InvalidTag:
            self.forged += 1
            return None
        if ahead > 0:
            self._newest = number
            self._bits = (self._bits << ahead | 1) & MASK if ahead < WINDOW else 1
        else:
            self._bits |= 1 << -ahead
        return plaintext

    def reopen(self, record: bytes) -> bytes:
        """The plaintext of a record that OpenSSL sealed for the peer, with the same key."""
        type, number, size, explicit = HEAD.unpack_from(record)
        return self._writer.decrypt(NONCE(self._write_iv, explicit), record[21:], ASSOCIATED(number, type, size - 24))


def expand(secret: bytes, seed: bytes, size: int) -> bytes:
    """The pseudo-random function of TLS 1.2 (RFC 5246 §5), label and seed already joined."""
    found, a = b"", seed
    while len(found) < size:
        a = hmac.digest(secret, a, sha256)
        found += hmac.digest(secret, a + seed, sha256)
    return found[:size]


class Dtls:
    """One connection, as client or as server.

    `state` is "new", "handshaking", "connected", "failed" or "closed"; `reason` says why for the last two. With
    `own_records` False OpenSSL is kept and seals and opens all records: slower, and for tests.
    """

    __slots__ = (
        "_answered", "_certificate", "_client", "_connection", "_datagrams", "_early", "_fingerprint",
        "_flight", "_heard", "_own", "_records", "_sent_at", "_sequence", "_tries", "_verified", "malformed",
        "next_deadline", "reason", "state",
    )  # fmt: skip

    def __init__(self, certificate: Certificate, fingerprint: bytes, client: bool, own_records: bool = True) -> None:
        """`fingerprint`: SHA-256 of the certificate that the other side announced, in DER form."""
        self._certificate = certificate
        self._fingerprint = fingerprint
        self._client = client
        self._own = own_records
        self._connection: SSL.Connection | None = None
        self._records: Records | None = None
        self._datagrams: list[bytes] = []
        self._early: list[bytes] = []
        self._flight: list[Item] = []  # what we sent last of the handshake, for repetition
        self._sequence = 0  # of our next record in epoch 0
        self._heard = -1  # number of the newest handshake message of the peer
        self._answered = -1  # the same when we sent our last flight
        self._sent_at = 0.0
        self._tries = 0
        self._verified = False
        self.state = "new"
        self.reason = ""
        self.malformed = 0  # records that were dropped unread: cut short, of another version, of a later epoch
        self.next_deadline: float | None = None  # when `run` has something to do

    def start(self, now: float) -> None:
        """A client begins; a server needs no call."""
        self._open()
        self._advance(now)

    def _open(self) -> SSL.Connection:
        connection = self._connection = SSL.Connection(self._certificate.context, None)
        if self._client:
            connection.set_connect_state()
        else:
            connection.set_accept_state()
        connection.set_ciphertext_mtu(MTU)
        self.state = "handshaking"
        return connection

    # What comes in

    def receive(self, datagram: bytes, now: float) -> list[bytes]:
        """Takes any bytes; returns what the peer's application sent in them."""
        if (  # one record of the application, as nearly always
            self._records is not None
            and datagram.startswith(PROTECTED)
            and HEADER + int.from_bytes(datagram[11:13], "big") == len(datagram)
            and self.state == "connected"
        ):
            plaintext = self._records.open(datagram)
            return [plaintext] if plaintext else []
        found: list[bytes] = []
        advances = False
        at, end = 0, len(datagram)
        while at < end:
            size = HEADER + int.from_bytes(datagram[at + 11 : at + 13], "big")
            if at + size > end or datagram[at + 1 : at + 3] not in VERSIONS:
                self.malformed += 1
                break
            advances |= self._receive_record(datagram if size == end else datagram[at : at + size], now, found)
            at += size
        if advances:
            self._advance(now, found)
        return found

    def _receive_record(self, record: bytes, now: float, found: list[bytes]) -> bool:
        """Whether OpenSSL has something to read now."""
        epoch = record[4] if record[3] == 0 else 256
        if self.state == "connected":
            if epoch == 1:
                self._receive_protected(record, now, found)
            else:  # a repeated message of the handshake, or a forgery: nothing that counts comes unprotected now
                self.malformed += epoch > 1
        elif self.state in ("new", "handshaking"):
            if epoch > 1 or not CHANGE_CIPHER_SPEC <= record[0] <= APPLICATION:  # no renegotiation, so no epoch 2
                self.malformed += 1
            elif epoch == 1 and record[0] == APPLICATION:  # overtook the end of the handshake
                if len(self._early) < EARLY:
                    self._early.append(record)
            elif self._connection or record[0] == HANDSHAKE:
                connection = self._connection or self._open()
                self._note(record, now)
                connection.bio_write(record)
                return True
        return False

    def _note(self, record: bytes, now: float) -> None:
        """If the peer repeats what we have answered, it did not get the answer, and gets it again (RFC 6347 §4.2.4).

        OpenSSL would wait for its timer. A handshake message has its number, of 2 bytes, at 4 (§4.2.2).
        """
        if record[0] != HANDSHAKE or record[4] or len(record) < HEADER + 6:
            return
        number = int.from_bytes(record[HEADER + 4 : HEADER + 6], "big")
        if number > self._answered:
            self._heard = max(self._heard, number)
        elif now >= self._sent_at + SHORTEST_TIMEOUT:
            self._sent_at = now
            self._emit(self._flight)

    def _receive_protected(self, record: bytes, now: float, found: list[bytes]) -> None:
        if self._records is None:
            self._receive_by_openssl(record, now, found)
            return
        plaintext = self._records.open(record)
        if plaintext is None:
            return
        if record[0] == APPLICATION:
            if plaintext:
                found.append(plaintext)
        elif record[0] == ALERT:
            self._receive_alert(plaintext)
        elif record[0] == HANDSHAKE:  # its last flight again: it did not get our answer (RFC 6347 §4.2.4)
            self._emit(self._flight)

    def _receive_alert(self, alert: bytes) -> None:
        if alert == bytes((WARNING, CLOSE_NOTIFY)):
            self.close("closed by the peer")  # answered in kind (RFC 5246 §7.2.1)
        elif alert[:1] == bytes((FATAL,)):
            self._end("failed", f"the peer sent alert {alert[1:].hex()}")

    def _receive_by_openssl(self, record: bytes, now: float, found: list[bytes]) -> None:
        connection = self._connection
        assert connection is not None
        connection.bio_write(record)
        try:
            while True:
                found.append(connection.recv(65536))
        except SSL.WantReadError:
            self._drain(now)
        except SSL.ZeroReturnError:
            self.close("closed by the peer")
        except SSL.Error as error:
            self._drain(now)
            self._end("failed", f"OpenSSL: {error}")

    # The handshake

    def _advance(self, now: float, found: list[bytes] | None = None) -> None:
        """Lets OpenSSL read what it was given and write what follows from it."""
        connection = self._connection
        assert connection is not None
        try:
            connection.do_handshake()
        except SSL.WantReadError:
            self._drain(now)
            return
        except SSL.Error as error:
            self._drain(now)
            self._end("failed", f"handshake: {error}")
            return
        self._drain(now)
        if self.state != "handshaking" or not self._verify():
            return
        self.state = "connected"
        self.next_deadline = None
        if self._own:
            self._connection = None
        if self._client:  # it has the last word to us, so we have nothing to repeat
            self._flight = []
        early, self._early = self._early, []
        for record in early:
            self._receive_protected(record, now, [] if found is None else found)

    def _drain(self, now: float) -> None:
        """Takes what OpenSSL wrote, as one flight."""
        connection = self._connection
        assert connection is not None
        try:
            data = connection.bio_read(65536)
        except SSL.WantReadError:
            return
        items = []
        at = 0
        while at < len(data):
            end = at + HEADER + int.from_bytes(data[at + 11 : at + 13], "big")
            if data[at + 4] and not self._verify():  # the first that is protected: nothing of it leaves unless
                return
            items.append(self._item(data[at:end]))
            at = end
        flight = [item for item in items if item[0] in (CHANGE_CIPHER_SPEC, HANDSHAKE)]
        if flight and self._own and all(item in self._flight for item in flight):
            return  # OpenSSL repeats itself, by a clock of its own
        self._emit(items)
        if flight:
            self._flight = flight
            self._answered = self._heard
            self._sent_at = now
            self._tries = 0
            self.next_deadline = now + FIRST_TIMEOUT

    def _item(self, record: bytes) -> Item:
        """A record of OpenSSL's, opened, for a number and a seal of ours."""
        epoch = record[4]
        if epoch == 0:
            return record[0], 0, record[HEADER:]
        return record[0], 1, record if self._records is None else self._records.reopen(record)

    def _verify(self) -> bool:
        """Once the peer's certificate is known and before anything protected leaves: is it the announced one?"""
        if self._verified or self.state == "failed":
            return self._verified
        connection = self._connection
        assert connection is not None
        certificate = connection.get_peer_certificate()
        # Not parsed: `cryptography` refuses the certificates of older libdatachannel peers.
        der = crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate) if certificate else b""
        seen = sha256(der).digest()
        if not hmac.compare_digest(seen, self._fingerprint):
            self._emit([(ALERT, 0, bytes((FATAL, BAD_CERTIFICATE)))])
            expected = self._fingerprint[:4].hex(":")
            self._end("failed", f"certificate with fingerprint {seen[:4].hex(':')}:…, expected {expected}:…")
            return False
        secret, server, client = connection.master_key(), connection.server_random(), connection.client_random()
        if self._own:
            assert secret and server and client
            self._records = Records.derive(secret, server, client, self._client)
        self._verified = True
        return True

    # What goes out

    def _emit(self, items: list[Item]) -> None:
        """Numbers and seals; as many records in a datagram as fit."""
        datagram = b""
        for type, epoch, content in items:
            if epoch == 0:
                record = pack("!B2sQH", type, VERSION, self._sequence, len(content)) + content
                self._sequence += 1
            else:
                record = content if self._records is None else self._records.seal(content, b"%c%b" % (type, VERSION))
            if datagram and len(datagram) + len(record) > MTU:
                self._datagrams.append(datagram)
                datagram = b""
            datagram += record
        if datagram:
            self._datagrams.append(datagram)

    def send(self, plaintext: bytes) -> None:
        """One record in one datagram of its own, OVERHEAD bytes longer."""
        self._datagrams.append(self.seal(plaintext))

    def seal(self, plaintext: bytes) -> bytes:
        """The same, for the caller to send: it is not among `take_datagrams`."""
        if self._records is not None and self.state == "connected":
            return self._records.seal(plaintext)
        if self.state != "connected":
            raise DtlsError(f"send in state {self.state!r}, expected 'connected'")
        assert self._connection is not None
        self._connection.send(plaintext)
        return self._connection.bio_read(65536)

    @property
    def sealer(self) -> Callable[[bytes], bytes]:
        """The same as `seal`, from now until the end."""
        return self.seal if self._records is None else self._records.seal

    def take_datagrams(self) -> list[bytes]:
        """What is to be sent now, in order."""
        datagrams = self._datagrams
        self._datagrams = []
        return datagrams

    def run(self, now: float) -> None:
        """Repeats a flight that was not answered (RFC 6347 §4.2.4)."""
        if self.next_deadline is None or now < self.next_deadline:
            return
        if self._connection is not None and not self._own:
            self._connection.DTLSv1_handle_timeout()  # by OpenSSL's own clock: it may do nothing yet
            self._drain(now)
        self._tries += 1
        if self._tries > TRIES:
            self._end("failed", f"handshake: no answer to {self._tries} sendings")
            return
        self.next_deadline = now + min(FIRST_TIMEOUT * 2**self._tries, LAST_TIMEOUT)
        self._sent_at = now
        self._emit(self._flight)

    def close(self, reason: str = "closed by us") -> None:
        """Tells the peer, once; what comes later is not read."""
        if self.state == "connected":
            if self._records is None:
                self._close_by_openssl()
            else:
                self._emit([(ALERT, 1, bytes((WARNING, CLOSE_NOTIFY)))])
        self._end("closed", reason)

    def _close_by_openssl(self) -> None:
        assert self._connection is not None
        try:
            self._connection.shutdown()
            self._datagrams.append(self._connection.bio_read(65536))
        except SSL.Error:  # it has told the peer already
            pass

    def _end(self, state: str, reason: str) -> None:
        if self.state not in ("failed", "closed"):
            self.state, self.reason = state, reason
        self._connection = None
        self._flight, self._early = [], []
        self.next_deadline = None

    @property
    def replayed(self) -> int:
        """Records that came twice."""
        return self._records.replayed if self._records else 0

    @property
    def forged(self) -> int:
        """Records that nobody with the key has written."""
        return self._records.forged if self._records else 0
