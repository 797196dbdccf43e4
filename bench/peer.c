/* See peer.h. RFC 8445 and 8489 (ICE, STUN), RFC 6347 (DTLS, by OpenSSL), RFC 9260 and 3758 (SCTP), RFC 8831 and 8832. */

#define _GNU_SOURCE
#include "peer.h"

#include <arpa/inet.h>
#include <errno.h>
#include <openssl/core_names.h>
#include <openssl/ec.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>
#include <openssl/x509.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define MS 1000000ull
#define DATAGRAM 2048
#define WINDOW (4 * 1024 * 1024) /* bytes that we say we can take: all is used at once */
#define PER_READ 64             /* datagrams of one peer before others get their turn */
#define COOKIE 0x2112A442u

enum { DATA, INIT, INIT_ACK, SACK, HEARTBEAT, HEARTBEAT_ACK, ABORT, SHUTDOWN, COOKIE_ECHO = 10, COOKIE_ACK, FORWARD_TSN = 192 };
enum { DCEP = 50, TEXT = 51 };

static SSL_CTX *context;
static char fingerprint[100];
static uint32_t crc32_table[256], crc32c_table[8][256];

static void put16(unsigned char *at, uint16_t value) { value = htons(value); memcpy(at, &value, 2); }
static void put32(unsigned char *at, uint32_t value) { value = htonl(value); memcpy(at, &value, 4); }
static uint16_t get16(const unsigned char *at) { uint16_t value; memcpy(&value, at, 2); return ntohs(value); }
static uint32_t get32(const unsigned char *at) { uint32_t value; memcpy(&value, at, 4); return ntohl(value); }

static void prepare_checksums(void) {
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t a = i, b = i;
        for (int bit = 0; bit < 8; bit++) {
            a = a >> 1 ^ (a & 1 ? 0xEDB88320u : 0);
            b = b >> 1 ^ (b & 1 ? 0x82F63B78u : 0);
        }
        crc32_table[i] = a;
        crc32c_table[0][i] = b;
    }
    for (int slice = 1; slice < 8; slice++)
        for (int i = 0; i < 256; i++) {
            uint32_t before = crc32c_table[slice - 1][i];
            crc32c_table[slice][i] = before >> 8 ^ crc32c_table[0][before & 255];
        }
}

static uint32_t crc32(const unsigned char *bytes, size_t length) { /* STUN's FINGERPRINT */
    uint32_t sum = ~0u;
    while (length--) sum = sum >> 8 ^ crc32_table[(sum ^ *bytes++) & 255];
    return ~sum;
}

static uint32_t crc32c(const unsigned char *bytes, size_t length) { /* SCTP's, eight bytes at a time (little-endian machines) */
    uint32_t sum = ~0u;
    for (; length >= 8; length -= 8, bytes += 8) {
        uint64_t word;
        memcpy(&word, bytes, 8);
        word ^= sum;
        sum = 0;
        for (int i = 0; i < 8; i++) sum ^= crc32c_table[7 - i][word >> (8 * i) & 255];
    }
    while (length--) sum = sum >> 8 ^ crc32c_table[0][(sum ^ *bytes++) & 255];
    return ~sum;
}

static int accept_any(int ok, X509_STORE_CTX *store) { /* the server is on this machine, started by the bench */
    (void)ok;
    (void)store;
    return 1;
}

void peers_prepare(void) {
    unsigned char digest[32];
    unsigned int size = sizeof digest;
    EVP_PKEY *key = EVP_EC_gen("P-256");
    X509 *certificate = X509_new();
    prepare_checksums();
    X509_set_version(certificate, 2);
    ASN1_INTEGER_set(X509_get_serialNumber(certificate), 1);
    X509_gmtime_adj(X509_getm_notBefore(certificate), -86400);
    X509_gmtime_adj(X509_getm_notAfter(certificate), 86400);
    X509_NAME_add_entry_by_txt(X509_get_subject_name(certificate), "CN", MBSTRING_ASC, (const unsigned char *)"bench", -1, -1, 0);
    X509_set_issuer_name(certificate, X509_get_subject_name(certificate));
    X509_set_pubkey(certificate, key);
    X509_sign(certificate, key, EVP_sha256());
    X509_digest(certificate, EVP_sha256(), digest, &size);
    for (int i = 0; i < 32; i++) sprintf(fingerprint + 3 * i, "%02X%s", digest[i], i < 31 ? ":" : "");
    context = SSL_CTX_new(DTLS_client_method());
    SSL_CTX_set_max_proto_version(context, DTLS1_2_VERSION);
    SSL_CTX_set_cipher_list(context, "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256"); /* as Chromium's first */
    SSL_CTX_set_verify(context, SSL_VERIFY_PEER, accept_any);
    SSL_CTX_set_options(context, SSL_OP_NO_QUERY_MTU | SSL_OP_NO_TICKET);
    SSL_CTX_set_read_ahead(context, 1);
    SSL_CTX_use_certificate(context, certificate);
    SSL_CTX_use_PrivateKey(context, key);
}

/* ---- offer and answer ---- */

static void attribute(const char *sdp, const char *name, char *value, size_t size) {
    const char *at = strstr(sdp, name);
    *value = 0;
    if (at) snprintf(value, size, "%.*s", (int)strcspn(at + strlen(name), "\r\n"), at + strlen(name));
}

int peer_candidate(struct peer *peer, const char *candidate) {
    char protocol[8], address[64];
    int port;
    struct in_addr parsed;
    if (sscanf(candidate, "candidate:%*s %*d %7s %*u %63s %d", protocol, address, &port) == 3 && !strcasecmp(protocol, "udp") &&
        inet_pton(AF_INET, address, &parsed) == 1 && !peer->has_candidate) {
        peer->server = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr = parsed};
        peer->has_candidate = 1;
    }
    return peer->has_candidate;
}

static void random_word(char *word, size_t length) {
    static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    RAND_bytes((unsigned char *)word, (int)length);
    for (size_t i = 0; i < length; i++) word[i] = letters[word[i] & 63];
    word[length] = 0;
}

int peer_accept_offer(struct peer *peer, const char *sdp, char *answer, size_t size) {
    int buffer = 1024 * 1024;
    *peer = (struct peer){.lite = strstr(sdp, "a=ice-lite") != NULL};
    attribute(sdp, "a=ice-ufrag:", peer->server_ufrag, sizeof peer->server_ufrag);
    attribute(sdp, "a=ice-pwd:", peer->server_password, sizeof peer->server_password);
    random_word(peer->ufrag, 8);
    random_word(peer->password, 32);
    RAND_bytes(peer->tie_breaker, 8);
    for (const char *at = sdp; (at = strstr(at, "a=candidate:")); at++) peer_candidate(peer, at + 2);
    peer->fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
    setsockopt(peer->fd, SOL_SOCKET, SO_RCVBUF, &buffer, sizeof buffer);
    snprintf(answer, size,
        "v=0\r\no=- 1 2 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\na=group:BUNDLE 0\r\na=msid-semantic: WMS\r\n"
        "m=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\nc=IN IP4 0.0.0.0\r\na=ice-ufrag:%s\r\na=ice-pwd:%s\r\n"
        "a=ice-options:trickle\r\na=fingerprint:sha-256 %s\r\na=setup:active\r\na=mid:0\r\na=sctp-port:5000\r\n"
        "a=max-message-size:262144\r\n", peer->ufrag, peer->password, fingerprint);
    return peer->has_candidate;
}

/* ---- ICE ---- */

static unsigned char *add(unsigned char *at, uint16_t type, const void *value, size_t length) {
    put16(at, type);
    put16(at + 2, (uint16_t)length);
    memset(at + 4, 0, (length + 3) & ~3ul);
    if (length) memcpy(at + 4, value, length);
    return at + 4 + ((length + 3) & ~3ul);
}

static void send_stun(struct peer *peer, unsigned char *message, unsigned char *end, const char *password) {
    unsigned char digest[20], sum[4];
    put16(message + 2, (uint16_t)(end - message - 20 + 24));
    HMAC(EVP_sha1(), password, (int)strlen(password), message, (size_t)(end - message), digest, NULL);
    end = add(end, 0x0008, digest, 20);
    put16(message + 2, (uint16_t)(end - message - 20 + 8));
    put32(sum, crc32(message, (size_t)(end - message)) ^ 0x5354554Eu);
    end = add(end, 0x8028, sum, 4);
    send(peer->fd, message, (size_t)(end - message), 0);
}

static void check(struct peer *peer) {
    unsigned char message[700] = {0}, priority[4], *at = message + 20;
    char user[600];
    put16(message, 0x0001);
    put32(message + 4, COOKIE);
    RAND_bytes(message + 8, 12);
    snprintf(user, sizeof user, "%s:%s", peer->server_ufrag, peer->ufrag);
    at = add(at, 0x0006, user, strlen(user));
    put32(priority, 0x6E7F00FFu);
    at = add(at, 0x0024, priority, 4);
    at = add(at, peer->lite ? 0x802A : 0x8029, peer->tie_breaker, 8);
    if (peer->lite) at = add(at, 0x0025, NULL, 0); /* there is one address only: nominated at once */
    send_stun(peer, message, at, peer->server_password);
}

static void shake_hands(struct peer *peer, uint64_t now) {
    if (peer->state != PEER_CHECKING) return;
    BIO *outgoing = BIO_new_dgram(peer->fd, BIO_NOCLOSE);
    peer->incoming = BIO_new(BIO_s_mem());
    BIO_set_mem_eof_return(peer->incoming, -1);
    BIO_ctrl(outgoing, BIO_CTRL_DGRAM_SET_CONNECTED, 0, &peer->server);
    peer->ssl = SSL_new(context);
    SSL_set_bio(peer->ssl, peer->incoming, outgoing);
    SSL_set_connect_state(peer->ssl);
    SSL_set_mtu(peer->ssl, 1200);
    peer->state = PEER_HANDSHAKING;
    peer->next_chunk = now;
    SSL_do_handshake(peer->ssl);
}

static void read_stun(struct peer *peer, const unsigned char *request, size_t length, uint64_t now) {
    unsigned char message[200] = {0}, address[8] = {0, 1}, *at = message + 20;
    int nominated = 0;
    if (length < 20) return;
    if (get16(request) == 0x0101) {
        peer->next_check = now + 2500 * MS;
        if (peer->lite) shake_hands(peer, now);
        return;
    }
    if (get16(request) != 0x0001) return;
    for (size_t i = 20; i + 4 <= length; i += 4 + ((get16(request + i + 2) + 3u) & ~3u)) nominated |= get16(request + i) == 0x0025;
    memcpy(message, request, 20);
    put16(message, 0x0101);
    put16(address + 2, ntohs(peer->server.sin_port) ^ COOKIE >> 16);
    put32(address + 4, ntohl(peer->server.sin_addr.s_addr) ^ COOKIE);
    at = add(at, 0x0020, address, 8);
    send_stun(peer, message, at, peer->password);
    if (nominated) shake_hands(peer, now);
}

/* ---- SCTP: what goes out ---- */

struct packet { unsigned char bytes[1400]; size_t length; };

static void begin_packet(struct packet *packet, uint32_t tag) {
    put16(packet->bytes, 5000);
    put16(packet->bytes + 2, 5000);
    put32(packet->bytes + 4, tag);
    packet->length = 12;
}

static unsigned char *add_chunk(struct packet *packet, uint8_t type, uint8_t flags, size_t body) { /* returns the body */
    unsigned char *at = packet->bytes + packet->length;
    at[0] = type;
    at[1] = flags;
    put16(at + 2, (uint16_t)(4 + body));
    memset(at + 4 + body, 0, 3); /* the padding */
    packet->length += 4 + ((body + 3) & ~3ul);
    return at + 4;
}

static void send_packet(struct peer *peer, struct packet *packet) {
    uint32_t sum;
    memset(packet->bytes + 8, 0, 4);
    sum = crc32c(packet->bytes, packet->length);
    for (int i = 0; i < 4; i++) packet->bytes[8 + i] = (unsigned char)(sum >> (8 * i));
    SSL_write(peer->ssl, packet->bytes, (int)packet->length);
}

static void add_sack(struct peer *peer, struct packet *packet) {
    unsigned char *body = add_chunk(packet, SACK, 0, 12);
    int gaps = 0, in_gap = 0;
    if (peer->ahead) {
        unsigned char *block = body + 12;
        for (uint32_t offset = 1; offset <= peer->highest - peer->cumulative && gaps <= 32; offset++) {
            int has = peer->received[(peer->cumulative + offset) % AHEAD];
            if (has && !in_gap && gaps < 32) put16(block + 4 * gaps++, (uint16_t)offset);
            else if (has && !in_gap) break;
            if (has) put16(block + 4 * (gaps - 1) + 2, (uint16_t)offset);
            in_gap = has;
        }
        put16(body - 2, (uint16_t)(16 + 4 * gaps));
        packet->length += 4 * (size_t)gaps;
    }
    put32(body, peer->cumulative);
    put32(body + 4, WINDOW);
    put16(body + 8, (uint16_t)gaps);
    put16(body + 10, 0);
    peer->unacked = 0;
    peer->sack_due = 0;
}

static void send_sack(struct peer *peer) {
    struct packet packet;
    begin_packet(&packet, peer->server_tag);
    add_sack(peer, &packet);
    send_packet(peer, &packet);
}

static void send_data(struct peer *peer, uint16_t stream, uint32_t protocol, uint8_t flags, const char *bytes, size_t length, uint64_t now) {
    struct packet packet;
    begin_packet(&packet, peer->server_tag);
    if (peer->unacked) add_sack(peer, &packet);
    unsigned char *body = add_chunk(&packet, DATA, flags, 12 + length);
    put32(body, peer->next_tsn++);
    put16(body + 4, stream);
    put16(body + 6, 0);
    put32(body + 8, protocol);
    memcpy(body + 12, bytes, length);
    peer->sent_at = now;
    send_packet(peer, &packet);
}

static void skip_to(struct peer *peer, uint32_t tsn) { /* RFC 3758 §3.5: what is missing up to there is lost */
    struct packet packet;
    begin_packet(&packet, peer->server_tag);
    put32(add_chunk(&packet, FORWARD_TSN, 0, 4), tsn);
    send_packet(peer, &packet);
}

static void associate(struct peer *peer) { /* INIT, or COOKIE-ECHO where the cookie is here: repeated until answered */
    struct packet packet;
    begin_packet(&packet, peer->cookie_length ? peer->server_tag : 0);
    if (peer->cookie_length) memcpy(add_chunk(&packet, COOKIE_ECHO, 0, peer->cookie_length), peer->cookie, peer->cookie_length);
    else {
        unsigned char *body = add_chunk(&packet, INIT, 0, 16 + 4 + 8);
        put32(body, peer->tag);
        put32(body + 4, WINDOW);
        put16(body + 8, 1024);
        put16(body + 10, 1024);
        put32(body + 12, peer->next_tsn);
        memcpy(body + 16, "\xC0\0\0\4\x80\x08\0\6\xC0\x82\0\0", 12); /* FORWARD-TSN; supported: it and RE-CONFIG */
    }
    send_packet(peer, &packet);
}

void peer_send(struct peer *peer, const char *text, size_t length, uint64_t now) {
    if (peer->state == PEER_OPEN) send_data(peer, peer->stream, TEXT, 7, text, length, now); /* unordered, one fragment */
}

/* ---- SCTP: what comes in ---- */

static int is_new(struct peer *peer, uint32_t tsn) {
    uint32_t offset = tsn - peer->cumulative;
    if (offset == 0 || offset >= AHEAD || peer->received[tsn % AHEAD]) return 0;
    if (offset == 1 && !peer->ahead) {
        peer->cumulative = tsn;
        return 1;
    }
    if (!peer->ahead || tsn - peer->highest < AHEAD) peer->highest = tsn;
    peer->received[tsn % AHEAD] = 1;
    peer->ahead++;
    return 1;
}

static void advance(struct peer *peer, uint32_t to) { /* the cumulative TSN: to `to`, and over what follows without a gap */
    while ((int32_t)(to - peer->cumulative) > 0 || (peer->ahead && peer->received[(peer->cumulative + 1) % AHEAD])) {
        peer->cumulative++;
        peer->ahead -= peer->received[peer->cumulative % AHEAD];
        peer->received[peer->cumulative % AHEAD] = 0;
    }
}

static void read_data(struct peer *peer, const unsigned char *body, size_t length, uint64_t now) {
    if (length < 12) return;
    uint32_t protocol = get32(body + 8);
    if (!is_new(peer, get32(body))) {
        peer->unacked = 2; /* §6.2: duplicates are acknowledged at once */
        return;
    }
    if (peer->ahead) {
        advance(peer, peer->cumulative);
        if (peer->ahead) peer->unacked = 2; /* and so are gaps */
    }
    if (protocol == DCEP && length > 12 && body[12] == 3) {
        peer->stream = get16(body + 4);
        send_data(peer, peer->stream, DCEP, 3, "\2", 1, now);
        if (peer->state == PEER_ASSOCIATING) {
            peer->state = PEER_OPEN;
            peer_opened(peer);
        }
    } else if (protocol == TEXT) peer_message(peer, (const char *)body + 12, length - 12);
}

static void read_sack(struct peer *peer, const unsigned char *body, size_t length) {
    peer->acked = get32(body);
    int gaps = length >= 12 ? get16(body + 8) : 0;
    if (gaps && length >= 12 + 4 * (size_t)gaps) skip_to(peer, peer->acked + get16(body + 12 + 4 * (gaps - 1) + 2));
}

static void read_init_ack(struct peer *peer, const unsigned char *body, size_t length) {
    peer->server_tag = get32(body);
    peer->cumulative = get32(body + 12) - 1;
    for (size_t at = 16; at + 4 <= length && get16(body + at + 2) >= 4; at += (get16(body + at + 2) + 3u) & ~3u)
        if (get16(body + at) == 7 && at + get16(body + at + 2) <= length && get16(body + at + 2) - 4u < sizeof peer->cookie - 20) {
            peer->cookie_length = get16(body + at + 2) - 4u;
            memcpy(peer->cookie, body + at + 4, peer->cookie_length);
        }
}

static void end(struct peer *peer, const char *why) {
    if (peer->state == PEER_CLOSED) return;
    peer->state = PEER_CLOSED;
    peer_closed(peer, why);
}

static void read_chunk(struct peer *peer, uint8_t type, const unsigned char *body, size_t length, uint64_t now) {
    struct packet packet;
    if (type == INIT_ACK && length >= 16 && peer->state == PEER_HANDSHAKING && !peer->cookie_length) {
        read_init_ack(peer, body, length);
        associate(peer);
    } else if (type == COOKIE_ACK && peer->state == PEER_HANDSHAKING) peer->state = PEER_ASSOCIATING;
    else if (type == DATA && peer->state >= PEER_ASSOCIATING) read_data(peer, body, length, now);
    else if (type == SACK && length >= 12) read_sack(peer, body, length);
    else if (type == FORWARD_TSN && length >= 4) advance(peer, get32(body));
    else if (type == HEARTBEAT) {
        begin_packet(&packet, peer->server_tag);
        memcpy(add_chunk(&packet, HEARTBEAT_ACK, 0, length), body, length);
        send_packet(peer, &packet);
    } else if (type == ABORT) end(peer, "ABORT from the server");
    else if (type == SHUTDOWN) end(peer, "SHUTDOWN from the server");
}

static void read_packet(struct peer *peer, const unsigned char *bytes, size_t length, uint64_t now) {
    int has_data = 0;
    for (size_t at = 12; at + 4 <= length && peer->state != PEER_CLOSED;) {
        size_t size = get16(bytes + at + 2);
        if (size < 4 || at + size > length) return;
        has_data |= bytes[at] == DATA || bytes[at] == FORWARD_TSN;
        read_chunk(peer, bytes[at], bytes + at + 4, size - 4, now);
        at += (size + 3) & ~3ul;
    }
    if (!has_data || peer->state == PEER_CLOSED || peer->state < PEER_ASSOCIATING) return;
    peer->unacked++;
    if (peer->unacked >= 2) send_sack(peer);
    else if (!peer->sack_due) peer->sack_due = now + 200 * MS;
}

/* ---- the socket ---- */

static void read_records(struct peer *peer, uint64_t now) {
    unsigned char plain[DATAGRAM];
    int got;
    if (!SSL_is_init_finished(peer->ssl)) {
        SSL_do_handshake(peer->ssl);
        if (!SSL_is_init_finished(peer->ssl)) return;
        RAND_bytes((unsigned char *)&peer->tag, 4);
        peer->tag |= 1;
        peer->next_tsn = peer->tag;
        peer->acked = peer->next_tsn - 1;
        associate(peer);
        peer->next_chunk = now + 200 * MS;
    }
    while (peer->state != PEER_CLOSED && (got = SSL_read(peer->ssl, plain, sizeof plain)) > 0) read_packet(peer, plain, (size_t)got, now);
    if (peer->state != PEER_CLOSED && SSL_get_shutdown(peer->ssl) & SSL_RECEIVED_SHUTDOWN) end(peer, "DTLS closed by the server");
}

int peer_read(struct peer *peer, uint64_t now) {
    unsigned char datagram[DATAGRAM];
    int count = 0;
    while (count < PER_READ && peer->state != PEER_CLOSED) {
        ssize_t got = recv(peer->fd, datagram, sizeof datagram, 0);
        if (got < 0 && errno == EAGAIN) break;
        count++;
        if (got <= 0) continue; /* an ICMP error of a server that has gone: it shows elsewhere */
        if (datagram[0] <= 3) read_stun(peer, datagram, (size_t)got, now);
        else if (peer->ssl) {
            BIO_write(peer->incoming, datagram, (int)got);
            read_records(peer, now);
        }
    }
    return count;
}

void peer_start(struct peer *peer, uint64_t now) {
    connect(peer->fd, (struct sockaddr *)&peer->server, sizeof peer->server);
    peer->state = PEER_CHECKING;
    peer->next_check = now;
    peer_run(peer, now);
}

void peer_run(struct peer *peer, uint64_t now) {
    if (peer->state == PEER_NEW || peer->state == PEER_CLOSED) return;
    if (now >= peer->next_check) { /* a question for consent (RFC 7675), once it works */
        peer->next_check = now + (peer->state == PEER_CHECKING ? 50 : 2500) * MS;
        check(peer);
    }
    if (peer->state == PEER_HANDSHAKING && now >= peer->next_chunk) {
        peer->next_chunk = now + 200 * MS;
        if (SSL_is_init_finished(peer->ssl)) associate(peer);
        else DTLSv1_handle_timeout(peer->ssl);
    }
    if (peer->sack_due && now >= peer->sack_due) send_sack(peer);
    if (peer->state == PEER_OPEN && peer->acked + 1 != peer->next_tsn && now >= peer->sent_at + 300 * MS) {
        peer->sent_at = now; /* the last one is lost, or its acknowledgement */
        skip_to(peer, peer->next_tsn - 1);
    }
}

void peer_close(struct peer *peer) {
    struct packet packet;
    if (peer->state == PEER_OPEN) {
        begin_packet(&packet, peer->server_tag);
        add_chunk(&packet, ABORT, 0, 0);
        send_packet(peer, &packet);
    }
    if (peer->ssl) {
        SSL_shutdown(peer->ssl);
        SSL_free(peer->ssl);
        peer->ssl = NULL;
    }
    if (peer->fd > 0) close(peer->fd);
    peer->fd = 0;
    peer->state = PEER_CLOSED;
}
