/* The load of the data channel rows: one thread on epoll that plays all the clients of a run, on UDP (peer.c) and on what
   signals for them, and measures what it sees.

   udp open  --peers N --senders S --rate HZ   S of N peers send HZ messages per second each; --spread 0: all of them in phase
                                               (as in measurements.md), 1: evenly spread
   udp hold  --peers N                         opens N, says so on stdout, holds them until stdin ends
   udp cycle --peers N                         connects and disconnects N, at most AT_ONCE at a time

   Common: --dialect session|geckos, the latter for all that speak `/.wrtc/v2`; --port P; --warm, --measure, --watch, --cores as
   in generator.c. Answers with one JSON object on stdout. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/epoll.h>

#include "machine.h"
#include "peer.h"

/* The message: 100 bytes as the sender writes it. `t` has always 16 digits, `n` 7: neither changes its length on the way. */
#define TIME_DIGITS 16
#define TIME_BASE 1000000000000000ull
#define NUMBER_BASE 1000000
#define CONTENT "{\"pos\":[12.5,-3.25,7.75],\"turn\":1,\"t\":%llu"
#define GECKOS_MESSAGE "{\"1v1:move\":" CONTENT ",\"pad\":\"abcdefghijklmnopqrstuvw\"}}"
#define SESSION_MESSAGE "{\"type\":\"1v1:move\",\"content\":" CONTENT "},\"n\":%d}"

#define MS 1000000ull
#define AT_ONCE 16              /* connecting at the same time */
#define PACE (1000 * MS / 80)   /* ns between two beginnings: a server may limit handshakes per second */
#define PATIENCE 60.0           /* seconds for all to connect */
#define PROBE_EVERY (1000 * MS) /* docs/reference/wire.md, "Two links" */
#define HELD (250 * MS)         /* a cycle's channel stays open so long: closed within 20 ms it ends the process of geckos.io */
#define CHECK_EVERY 64          /* deliveries per full check */
#define BUFFER 65536

enum stage { UNUSED, DIALLING, ASKING, ANSWERING, POLLING, UPGRADING, JOINING, SIGNALLED, LEAVING, GONE };

struct client {
    struct peer peer;
    enum stage stage;
    int tcp;
    char id[32];                /* geckos: of the connection */
    char *rest;                 /* BUFFER bytes of what came by TCP and is not complete */
    size_t rest_length;
    uint64_t poll_at;           /* ns: when candidates are asked for again */
    uint64_t heard_at;          /* when the last message came on the data channel */
    uint64_t close_at;          /* cycle */
    uint64_t due_deliveries;
    int number;                 /* of its last message */
};

static struct options {
    const char *mode, *dialect, *watch;
    int port, peers, senders, spread, cores[2];
    double rate, warm, measure;
} options = {.dialect = "session", .peers = 32, .senders = 4, .rate = 60, .warm = 0.6, .measure = 1.2, .watch = "", .cores = {0, 1}};

static struct client *clients;
static int session, total, begun, opened, in_flight, gone, poller, told_to_end;
static uint64_t next_begin;
static struct histogram latency, lateness;
static struct sample started, ended;
static uint64_t window_begin = UINT64_MAX, window_end = UINT64_MAX; /* ns: what is due in between counts */
static uint64_t due_sent, due_deliveries, checked, unstamped, failed, others, by_websocket, closed_by_server;
static char first_failure[200];

static void note(const char *why, size_t length) {
    if (*first_failure) return;
    snprintf(first_failure, sizeof first_failure, "%.*s", (int)length, why);
    for (char *p = first_failure; *p; p++)
        if (*p == '"' || *p == '\\' || (unsigned char)*p < 32) *p = ' ';
}

static int number_of(struct peer *peer) { return (int)((struct client *)peer - clients); } /* the peer comes first */

static void watch(int number, int udp, int fd, uint32_t events, int operation) {
    struct epoll_event event = {.events = events, .data.u64 = (uint64_t)number << 1 | (uint64_t)udp};
    if (epoll_ctl(poller, operation, fd, &event)) die("epoll_ctl: %s", strerror(errno));
}

/* ---- signalling: TCP ---- */

static void put(struct client *c, const char *bytes, size_t length) { /* requests are small: the kernel takes them whole */
    if (c->tcp && send(c->tcp, bytes, length, MSG_NOSIGNAL) != (ssize_t)length) die("TCP to the server: %s", strerror(errno));
}

static void put_frame(struct client *c, const char *payload, size_t length) { /* text, masked with zero */
    char frame[8 + 8192] = {(char)0x81};
    size_t head = 2;
    if (length > 8192) die("frame of %zu bytes", length);
    if (length < 126) frame[1] = (char)(0x80 | length);
    else {
        frame[1] = (char)(0x80 | 126);
        frame[2] = (char)(length >> 8);
        frame[3] = (char)length;
        head = 4;
    }
    memcpy(frame + head + 4, payload, length);
    put(c, frame, head + 4 + length);
}

static void request(struct client *c, const char *method, const char *path, const char *body, enum stage stage) {
    char text[8192];
    int length = snprintf(text, sizeof text,
        "%s /.wrtc/v2/connections%s%s%s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s",
        method, *path ? "/" : "", *path ? c->id : "", path, options.port, strlen(body), body);
    c->stage = stage;
    put(c, text, (size_t)length);
}

static void dial(struct client *c) {
    int yes = 1;
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)options.port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct linger reset = {1, 0}; /* leaves no TIME_WAIT behind for the next run */
    c->tcp = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (c->tcp < 0) die("socket: %s", strerror(errno));
    setsockopt(c->tcp, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    setsockopt(c->tcp, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    if (connect(c->tcp, (struct sockaddr *)&to, sizeof to) && errno != EINPROGRESS) die("connect: %s", strerror(errno));
    c->rest = malloc(BUFFER + 1);
    c->number = NUMBER_BASE;
    c->stage = DIALLING;
    watch((int)(c - clients), 0, c->tcp, EPOLLIN | EPOLLOUT, EPOLL_CTL_ADD);
}

static void dialled(struct client *c) {
    char text[300];
    watch((int)(c - clients), 0, c->tcp, EPOLLIN, EPOLL_CTL_MOD);
    if (!session) {
        request(c, "POST", "", "", ASKING);
        return;
    }
    int length = snprintf(text, sizeof text,
        "GET /session/bench HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: session.v1\r\n\r\n", options.port);
    c->stage = UPGRADING;
    put(c, text, (size_t)length);
}

static void hang_up(struct client *c) { /* all of it has ended, or must */
    if (c->stage == GONE) return;
    peer_close(&c->peer);
    if (c->tcp) close(c->tcp);
    free(c->rest);
    c->rest = NULL;
    c->tcp = 0;
    c->stage = GONE;
    gone++;
}

static void leave(struct client *c) {
    c->close_at = 0;
    if (session) {
        put_frame(c, "{\"type\":\"session:leave\"}", 24);
        c->stage = LEAVING;
    } else request(c, "POST", "/close", "", LEAVING);
    peer_close(&c->peer);
}

/* ---- signalling: what it says ---- */

/* The string of a key in JSON text, unescaped as far as SDP needs it. */
static int string_of(const char *json, const char *key, char *value, size_t size) {
    const char *at = strstr(json, key);
    size_t length = 0;
    if (!at) return 0;
    for (at += strlen(key); *at && *at != '"' && length + 1 < size; at++) {
        if (*at == '\\' && *++at != '/' && *at != '\\' && *at != '"') value[length++] = *at == 'r' ? '\r' : *at == 'n' ? '\n' : ' ';
        else value[length++] = *at;
    }
    value[length] = 0;
    return *at == '"';
}

static void answer_offer(struct client *c, const char *json, const char *key) {
    char offer[8192], sdp[2048], escaped[4096], body[4400], *to = escaped;
    if (!string_of(json, key, offer, sizeof offer)) die("no offer in the answer of the server: %.200s", json);
    peer_accept_offer(&c->peer, offer, sdp, sizeof sdp);
    watch((int)(c - clients), 1, c->peer.fd, EPOLLIN, EPOLL_CTL_ADD);
    for (const char *from = sdp; *from; from++) {
        if (*from == '\r' || *from == '\n') *to++ = '\\';
        *to++ = *from == '\r' ? 'r' : *from == '\n' ? 'n' : *from;
    }
    *to = 0;
    if (!session) {
        snprintf(body, sizeof body, "{\"type\":\"answer\",\"sdp\":\"%s\"}", escaped);
        request(c, "POST", "/remote-description", body, ANSWERING);
        return;
    }
    int length = snprintf(body, sizeof body, "{\"type\":\"session:answer\",\"content\":{\"sdp\":\"%s\"}}", escaped);
    put_frame(c, body, (size_t)length);
    c->stage = SIGNALLED;
    peer_start(&c->peer, now);
}

static void take_candidates(struct client *c, const char *json) {
    const char *at = strstr(json, "candidate:");
    for (; at && !c->peer.has_candidate; at = strstr(at + 1, "candidate:")) peer_candidate(&c->peer, at);
    if (c->peer.has_candidate) {
        c->stage = SIGNALLED;
        peer_start(&c->peer, now);
    } else {
        c->stage = POLLING;
        c->poll_at = now + 20 * MS;
    }
}

static void responded(struct client *c, const char *head, const char *body) {
    if (strncmp(head, "HTTP/1.1 200", 12)) die("answer %.*s to signalling", (int)strcspn(head, "\r"), head);
    if (c->stage == ASKING) {
        if (!string_of(body, "\"id\":\"", c->id, sizeof c->id)) die("no id in the answer of the server: %.200s", body);
        answer_offer(c, body, "\"sdp\":\"");
    } else if (c->stage == ANSWERING || c->stage == POLLING) take_candidates(c, body);
    else if (c->stage == LEAVING) hang_up(c);
}

static size_t responses(struct client *c, char *bytes, size_t length) { /* returns the bytes consumed */
    char *end = memmem(bytes, length, "\r\n\r\n", 4);
    if (!end) return 0;
    char *field = strcasestr(bytes, "\r\ncontent-length:"), *last;
    size_t size = (size_t)(end + 4 - bytes);
    if (field && field < end) size += strtoul(field + 17, NULL, 10);
    else if ((last = memmem(end, length - (size_t)(end - bytes), "\r\n0\r\n\r\n", 7))) size = (size_t)(last + 7 - bytes); /* chunked */
    else return 0;
    if (length < size) return 0;
    responded(c, bytes, end + 4);
    return c->stage == GONE ? length : size;
}

static size_t upgraded(struct client *c, char *bytes, size_t length) {
    static const char join[] = "{\"type\":\"session:join\",\"content\":{}}";
    const char *end = memmem(bytes, length, "\r\n\r\n", 4);
    if (!end) return 0;
    if (strncmp(bytes, "HTTP/1.1 101", 12)) die("answer %.*s to the upgrade", (int)strcspn(bytes, "\r"), bytes);
    c->stage = JOINING;
    put_frame(c, join, sizeof join - 1);
    return (size_t)(end + 4 - bytes);
}

static void framed(struct client *c, int first, char *payload, size_t size) { /* a zero follows the payload */
    char pong[2 + 4 + 125] = {(char)0x8A, (char)(0x80 | size)};
    if (first == 0x89 && size < 126) {
        memcpy(pong + 6, payload, size);
        put(c, pong, 6 + size);
    } else if (first == 0x88) {
        if (c->stage != LEAVING) {
            note(payload + 2, size > 2 ? size - 2 : 0);
            closed_by_server++;
        }
        hang_up(c);
    } else if (strstr(payload, "\"1v1:move\"")) by_websocket++;
    else if (strstr(payload, "\"session:welcome\"")) answer_offer(c, payload, "\"offer\":\"");
    else if (strstr(payload, "\"session:error\"")) note(payload, size);
}

static size_t frames(struct client *c, char *bytes, size_t length) {
    size_t at = 0;
    while (length - at >= 2 && c->stage != GONE) {
        unsigned char *frame = (unsigned char *)bytes + at;
        size_t size = frame[1] & 127, head = size == 126 ? 4 : 2;
        if (size == 127 || (frame[1] & 128)) die("frame with length byte %d from the server", frame[1]);
        if (length - at < head) break;
        if (size == 126) size = (size_t)frame[2] << 8 | frame[3];
        if (length - at - head < size) break;
        char after = bytes[at + head + size];
        bytes[at + head + size] = 0;
        framed(c, frame[0], bytes + at + head, size);
        if (c->stage != GONE) bytes[at + head + size] = after;
        at += head + size;
    }
    return at;
}

static void read_tcp(struct client *c) {
    ssize_t got = recv(c->tcp, c->rest + c->rest_length, BUFFER - c->rest_length, 0);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) {
        if (c->stage != LEAVING) {
            note("TCP connection closed", 21);
            closed_by_server++;
        }
        hang_up(c);
        return;
    }
    c->rest_length += (size_t)got;
    for (size_t used = 1; used && c->rest_length && c->stage != GONE;) {
        c->rest[c->rest_length] = 0;
        if (!session) used = responses(c, c->rest, c->rest_length);
        else used = (c->stage == UPGRADING ? upgraded : frames)(c, c->rest, c->rest_length);
        if (c->stage == GONE) return;
        memmove(c->rest, c->rest + used, c->rest_length -= used);
    }
    if (c->rest_length == BUFFER) die("more than %d bytes without an end", BUFFER);
}

/* ---- the data channel ---- */

void peer_opened(struct peer *peer) {
    struct client *c = &clients[number_of(peer)];
    opened++;
    in_flight--;
    if (!strcmp(options.mode, "cycle")) c->close_at = now + HELD;
}

void peer_closed(struct peer *peer, const char *why) {
    struct client *c = &clients[number_of(peer)];
    if (c->stage == LEAVING || c->stage == GONE) return;
    note(why, strlen(why));
    closed_by_server++;
}

static void check(const char *text, size_t length) {
    static const char start[] = "{\"pos\":[12.5,-3.25,7.75],\"turn\":1,\"t\":";
    const char *id = memmem(text, length, "\"id\":", 5);
    checked++;
    if (session && (!id || id[5] < '1' || id[5] > '9')) unstamped++;
    if (!memmem(text, length, start, sizeof start - 1)) failed++;
}

void peer_message(struct peer *peer, const char *text, size_t length) {
    struct client *c = &clients[number_of(peer)];
    const char *digits = memmem(text, length, "\"t\":1", 5);
    uint64_t stamp = 0;
    c->heard_at = now;
    if (!digits || digits + 4 + TIME_DIGITS > text + length) {
        others++;
        return;
    }
    for (int i = 0; i < TIME_DIGITS; i++) stamp = stamp * 10 + (uint64_t)(digits[4 + i] - '0');
    stamp -= TIME_BASE;
    if (++deliveries % CHECK_EVERY == 0) check(text, length);
    if (stamp < window_begin || stamp >= window_end) return;
    c->due_deliveries++;
    due_deliveries++;
    record(&latency, now > stamp ? now - stamp : 0);
}

static void say(struct client *c, uint64_t due) {
    char text[200];
    int length = session ? snprintf(text, sizeof text, SESSION_MESSAGE, (unsigned long long)(TIME_BASE + due), ++c->number)
                         : snprintf(text, sizeof text, GECKOS_MESSAGE, (unsigned long long)(TIME_BASE + due));
    sent++;
    if (due >= window_begin && due < window_end) due_sent++;
    peer_send(&c->peer, text, (size_t)length, now);
}

static void probe(struct client *c) { /* as session.js does */
    static const char text[] = "{\"type\":\"session:probe\",\"reliable\":false}";
    if (now - c->peer.sent_at >= PROBE_EVERY && now - c->heard_at >= PROBE_EVERY) peer_send(&c->peer, text, sizeof text - 1, now);
}

/* ---- the loop ---- */

static uint64_t next_look, gap, began, turns; /* ns between the messages of a sender; when and how many so far, of all */

static uint64_t due_of(uint64_t message) {
    uint64_t sender = message % (uint64_t)options.senders;
    return began + message / (uint64_t)options.senders * gap + (options.spread ? sender * gap / (uint64_t)options.senders : 0);
}

static void keep_pace(void) { /* what is due by now is sent; its stamp is when it was due */
    for (uint64_t due; gap && (due = due_of(turns)) <= now; turns++) {
        if (due >= window_begin && due < window_end) record(&lateness, now - due);
        say(&clients[turns % (uint64_t)options.senders], due);
    }
}

static void look_round(void) { /* timers, in steps of 5 ms */
    if (now < next_look) return;
    next_look = now + 5 * MS;
    if (begun < total && in_flight < AT_ONCE && now >= next_begin) {
        next_begin = now + PACE;
        in_flight++;
        dial(&clients[begun++]);
    }
    for (int i = 0; i < begun; i++) {
        struct client *c = &clients[i];
        if (c->stage == SIGNALLED) peer_run(&c->peer, now);
        if (c->stage == SIGNALLED && session && c->peer.state == PEER_OPEN) probe(c);
        if (c->stage == POLLING && c->poll_at && now >= c->poll_at) {
            c->poll_at = 0;
            request(c, "GET", "/additional-candidates", "", POLLING);
        }
        if (c->close_at && now >= c->close_at) leave(c);
    }
}

static int turn_once(int wait) { /* one epoll round; returns whether there was anything to do */
    struct epoll_event events[512];
    int count = epoll_wait(poller, events, 512, wait);
    uint64_t before = turns;
    tell_time();
    for (int i = 0; i < count; i++) {
        if (events[i].data.u64 == UINT64_MAX) {
            told_to_end = 1;
            continue;
        }
        struct client *c = &clients[events[i].data.u64 >> 1];
        if (i) tell_time();
        keep_pace();
        if (events[i].data.u64 & 1) reads += (uint64_t)peer_read(&c->peer, now);
        else if (c->stage == DIALLING) dialled(c);
        else if (c->tcp) read_tcp(c);
    }
    keep_pace();
    look_round();
    return count || turns != before;
}

static double open_all(int cycles) { /* seconds until all were open, or gone again */
    tell_time();
    uint64_t from = now;
    while (cycles ? gone < total : opened < total) {
        turn_once(2);
        if (closed_by_server) die("%d of %d peers open, then: %s", opened, total, first_failure);
        if (now - from > (uint64_t)(PATIENCE * 1e9)) die("%d of %d peers open after %g s %s", opened, total, PATIENCE, first_failure);
    }
    return (double)(now - from) / 1e9;
}

static void run_for(double seconds) { /* without sleeping */
    tell_time();
    for (uint64_t until = now + (uint64_t)(seconds * 1e9); now < until;) {
        uint64_t before = now;
        if (!turn_once(0)) spun += now - before;
    }
}

static void play(void) { /* open loop */
    gap = (uint64_t)(1e9 / options.rate);
    tell_time();
    began = now;
    run_for(options.warm);
    by_websocket = 0; /* until the channel is proven, both links are right */
    window_begin = now;
    started = sample(options.watch, options.cores);
    run_for(options.measure);
    window_end = now;
    ended = sample(options.watch, options.cores);
    gap = 0;
    uint64_t before = 0;
    for (int round = 0, still = 0; round < 10 && still < 3; round++) { /* what was due, and is still under way */
        still = before == deliveries ? still + 1 : 0;
        before = deliveries;
        run_for(0.1);
    }
}

static void answer(double setup) {
    double seconds = (double)(ended.at - started.at) / 1e9, own = (double)(ended.own - started.own) / 1e9;
    uint64_t delivered = ended.deliveries - started.deliveries, read = ended.reads - started.reads;
    int alive = 0, stalled = 0;
    for (int i = 0; i < total; i++) {
        alive += clients[i].peer.state == PEER_OPEN;
        stalled += due_sent && !clients[i].due_deliveries && (i || options.senders > 1); /* nobody speaks to the only sender */
    }
    printf("{\"mode\": \"%s\", \"peers\": %d, \"alive\": %d, \"setup_seconds\": %.6f, \"seconds\": %.6f, ", options.mode, total, alive, setup, seconds);
    printf("\"sent\": %llu, \"deliveries\": %llu, \"rate\": %.1f, ", (unsigned long long)(ended.sent - started.sent), (unsigned long long)delivered, (double)delivered / seconds);
    printf("\"due\": %llu, \"kept\": %.6f, ", (unsigned long long)(due_sent * (uint64_t)(total - 1)), due_sent ? (double)due_deliveries / (double)(due_sent * (uint64_t)(total - 1)) : 0);
    printf("\"p50_ms\": %.3f, \"p99_ms\": %.3f, \"p999_ms\": %.3f, ", percentile(&latency, .5), percentile(&latency, .99), percentile(&latency, .999));
    printf("\"polls\": 1, \"late_p99_ms\": %.3f, \"own_share\": %.4f, \"spun_share\": %.4f, ", percentile(&lateness, .99), own / seconds, (double)(ended.spun - started.spun) / 1e9 / seconds);
    printf("\"server_cpu_s\": %.6f, \"core_busy_s\": [%.2f, %.2f], ", (double)(ended.watched - started.watched) / 1e9, ended.busy[0] - started.busy[0], ended.busy[1] - started.busy[1]);
    printf("\"per_read\": %.2f, \"checked\": %llu, \"unstamped\": %llu, \"failed\": %llu, ", read ? (double)delivered / (double)read : 0, (unsigned long long)checked, (unsigned long long)unstamped, (unsigned long long)failed);
    printf("\"others\": %llu, \"by_websocket\": %llu, \"closed\": %llu, \"stalled\": %d, \"first_failure\": \"%s\"}\n", (unsigned long long)others, (unsigned long long)by_websocket, (unsigned long long)closed_by_server, stalled, first_failure);
    fflush(stdout);
}

static void parse(int count, char **words) {
    if (count < 2) die("which mode?");
    options.mode = words[1];
    for (int i = 2; i + 1 < count; i += 2) {
        const char *name = words[i], *value = words[i + 1];
        if (!strcmp(name, "--port")) options.port = atoi(value);
        else if (!strcmp(name, "--dialect")) options.dialect = value;
        else if (!strcmp(name, "--peers")) options.peers = atoi(value);
        else if (!strcmp(name, "--senders")) options.senders = atoi(value);
        else if (!strcmp(name, "--spread")) options.spread = atoi(value);
        else if (!strcmp(name, "--rate")) options.rate = atof(value);
        else if (!strcmp(name, "--warm")) options.warm = atof(value);
        else if (!strcmp(name, "--measure")) options.measure = atof(value);
        else if (!strcmp(name, "--watch")) options.watch = value;
        else if (!strcmp(name, "--cores")) sscanf(value, "%d,%d", &options.cores[0], &options.cores[1]);
        else if (strcmp(name, "--poll")) die("unknown option %s", name); /* never sleeps while it measures */
    }
    session = !strcmp(options.dialect, "session");
    if (!options.port || options.peers < 1 || options.senders < 1 || options.senders > options.peers || options.rate <= 0) die("impossible options");
    if (!session && strcmp(options.dialect, "geckos")) die("unknown dialect %s", options.dialect);
}

int main(int count, char **words) {
    parse(count, words);
    signal(SIGPIPE, SIG_IGN);
    begin = clock_ns(CLOCK_MONOTONIC);
    peers_prepare();
    total = options.peers;
    clients = calloc((size_t)total, sizeof *clients);
    poller = epoll_create1(0);
    if (!strcmp(options.mode, "open")) {
        double setup = open_all(0);
        play();
        answer(setup);
    } else if (!strcmp(options.mode, "hold")) {
        started = sample(options.watch, options.cores);
        double setup = open_all(0);
        ended = sample(options.watch, options.cores);
        printf("{\"open\": %d}\n", total);
        fflush(stdout);
        struct epoll_event event = {.events = EPOLLIN, .data.u64 = UINT64_MAX};
        if (epoll_ctl(poller, EPOLL_CTL_ADD, 0, &event)) die("stdin cannot be polled");
        while (!told_to_end) turn_once(5);
        answer(setup);
    } else if (!strcmp(options.mode, "cycle")) {
        started = sample(options.watch, options.cores);
        double setup = open_all(1);
        run_for(0.5); /* what the server puts off */
        ended = sample(options.watch, options.cores);
        answer(setup);
    } else die("unknown mode %s", options.mode);
    return 0;
}
