/* One WebRTC peer of the UDP load: the browser's side of ICE, DTLS 1.2, SCTP and one data channel, on a socket of its own.

   Only what a correct server needs to see: an active answer without candidates, one unordered channel without retransmissions
   that the server opens, SACKs as browsers send them (every second packet, at once on gaps, else after 200 ms), FORWARD-TSN
   for what got lost. No fragments, no congestion control: it plays clients that say 100 bytes at a fixed pace. */

#ifndef PEER_H
#define PEER_H

#include <netinet/in.h>
#include <openssl/ssl.h>
#include <stdint.h>

#define AHEAD 4096             /* TSNs above the cumulative one that are remembered; a power of two */

enum peer_state { PEER_NEW, PEER_CHECKING, PEER_HANDSHAKING, PEER_ASSOCIATING, PEER_OPEN, PEER_CLOSED };

struct peer {
    int fd;
    enum peer_state state;
    int lite;                   /* the server is an ICE-lite one: we control */
    int has_candidate;
    struct sockaddr_in server;
    char ufrag[9], password[33], server_ufrag[260], server_password[260];
    unsigned char tie_breaker[8];
    SSL *ssl;
    BIO *incoming;
    uint64_t next_check, next_chunk; /* ns: when ICE asks again, when the association's set-up is repeated */
    uint32_t tag, server_tag;
    unsigned char cookie[1500];
    size_t cookie_length;
    uint32_t next_tsn, acked;   /* ours: the next one, the last one that the server has in order */
    uint64_t sent_at;           /* ns: our last message */
    uint32_t cumulative;        /* the server's: the last one in order */
    uint8_t received[AHEAD];    /* by TSN: has come out of order */
    uint32_t highest;
    int ahead;                  /* how many of them */
    int unacked;                /* packets since our last SACK */
    uint64_t sack_due;          /* ns; 0 = nothing to acknowledge */
    uint16_t stream;
};

/* Of the caller: the channel is open; a message came; the server ended it. */
void peer_opened(struct peer *peer);
void peer_message(struct peer *peer, const char *text, size_t length);
void peer_closed(struct peer *peer, const char *why);

/* Once, before the first peer. */
void peers_prepare(void);

/* Reads the server's offer (SDP) and writes the answer; opens the socket. Returns 0 where the offer has no candidate that we
   can use: they come later. */
int peer_accept_offer(struct peer *peer, const char *sdp, char *answer, size_t size);
/* "candidate:..." of the server. Returns whether there is one now. */
int peer_candidate(struct peer *peer, const char *candidate);
/* The server has our answer and we have a candidate: begins. `now` in ns here and below. */
void peer_start(struct peer *peer, uint64_t now);
/* Reads what the socket has; returns the datagrams. */
int peer_read(struct peer *peer, uint64_t now);
/* Whatever is due. */
void peer_run(struct peer *peer, uint64_t now);
void peer_send(struct peer *peer, const char *text, size_t length, uint64_t now);
/* Says so to the server and forgets everything. */
void peer_close(struct peer *peer);

#endif
