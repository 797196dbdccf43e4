/* The load: one thread on epoll that plays all the clients of a bench run and measures what it sees.

   generator closed --port P --rooms R --size S --window W   keeps W messages of each room in flight
   generator open   --port P --rooms R --size S --rate X     X messages per second, evenly spaced
   generator idle   --port P --rooms R --connections N       opens N, says so on stdout, holds them until stdin ends
   generator get    --port P --connections K                 GET /session/x, one request in flight on each connection
   generator source --port P                                 no client: a server that sends without pause ...
   generator absorb --port P --connections N                 ... and clients that only read: the generator's own limit

   closed and open: --path /session/x the rooms' URL without their number, --type T of the messages, --hello JSON that each
   client sends first. Common: --warm SECONDS --measure SECONDS --watch PID[,PID...] (whose CPU time to count) --cores A,B (whose load to log)
   --poll 1 (never sleep, as the open loop does: to wake a sleeper on the other core costs whoever writes to it about as much
   as the write itself, and a client on another machine does not cost the server that).
   Answers with one JSON object on stdout. WebSocket clients offer no subprotocol (the classic dialect) and know just
   enough of RFC 6455 to be a correct client of a correct server. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/resource.h>

#include "machine.h"

#ifndef IP_BIND_ADDRESS_NO_PORT
#define IP_BIND_ADDRESS_NO_PORT 24
#endif

/* The message: 92 bytes with the usual type, `t` has always 16 digits (below 2^53, so that a JavaScript peer returns it
   unharmed). A classic `1v1:move` goes to the others, not back to its sender. */
#define TIME_DIGITS 16
#define TIME_BASE 1000000000000000ull
#define CONTENT "\"content\":{\"pos\":[12.5,-3.25,7.75],\"turn\":1,\"t\":"
#define LONGEST 125             /* bytes of a message: one byte of frame header says its length */
static char text[LONGEST + 1];
static size_t text_length, time_at; /* where t's first digit is */

#define BUFFER (256 * 1024)     /* bytes per recv */
#define PER_ADDRESS 8000        /* connections from one source address; a loopback address has 28 k ports */
#define AT_ONCE 64              /* handshakes in flight */
#define CHECK_EVERY 64          /* deliveries per full check */
#define QUIET_NS 300000000ull   /* a closed-loop room without a delivery for so long may have stalled */
#define PATIENCE 2.0            /* seconds that it gets to show that it has not */

enum state { UNUSED, CONNECTING, UPGRADING, OPEN, CLOSED };

struct connection {
    int fd;
    enum state state;
    int room;
    uint32_t mask;
    char *rest, *out;           /* a partial frame read; bytes the kernel did not take */
    size_t rest_length, out_length;
    uint64_t asked;             /* get: when the request left, ns */
};

struct room {
    uint64_t sent, delivered, last;
    int next;                   /* whose turn it is to send */
};

static struct options {
    const char *mode;
    int port, rooms, size, window, connections, poll, cores[2];
    double rate, warm, measure;
    const char *watch, *path, *type, *hello;
} options = {.rooms = 1, .size = 2, .window = 1, .connections = 1, .rate = 1000, .warm = 0.3, .measure = 1.2, .watch = "", .path = "/session/bench", .type = "1v1:move", .hello = "", .cores = {0, 1}};

static struct connection *connections;
static struct room *rooms;
static int total, opened, in_flight, poller, messages_flow, measuring, told_to_end;

static struct histogram latency, lateness;
static uint64_t checked, unstamped, failed, others, pings, closed_by_server;
static char first_failure[200];

static struct sample started, ended;

static void start_measuring(void) {
    measuring = 1;
    started = sample(options.watch, options.cores);
}

/* ---- connections ---- */

static void watch(struct connection *c, uint32_t events, int operation) {
    struct epoll_event event = {.events = events, .data.ptr = c};
    if (epoll_ctl(poller, operation, c->fd, &event)) die("epoll_ctl: %s", strerror(errno));
}

static void hang_up(struct connection *c, const char *why) {
    if (c->state == CONNECTING || c->state == UPGRADING) in_flight--;
    if (!*first_failure) snprintf(first_failure, sizeof first_failure, "%s", why);
    for (char *p = first_failure; *p; p++)
        if (*p == '"' || *p == '\\' || (unsigned char)*p < 32) *p = ' ';
    close(c->fd);
    c->state = CLOSED;
    closed_by_server++;
}

static void put(struct connection *c, const char *bytes, size_t length) {
    ssize_t taken = 0;
    if (!c->out_length) {
        taken = send(c->fd, bytes, length, MSG_NOSIGNAL);
        if (taken == (ssize_t)length) return;
        if (taken < 0 && errno != EAGAIN) return hang_up(c, strerror(errno));
        if (taken < 0) taken = 0;
        watch(c, EPOLLIN | EPOLLOUT, EPOLL_CTL_MOD);
    }
    c->out = realloc(c->out, c->out_length + length - (size_t)taken);
    memcpy(c->out + c->out_length, bytes + taken, length - (size_t)taken);
    c->out_length += length - (size_t)taken;
}

static void put_rest(struct connection *c) {
    ssize_t taken = send(c->fd, c->out, c->out_length, MSG_NOSIGNAL);
    if (taken < 0 && errno != EAGAIN) return hang_up(c, strerror(errno));
    if (taken <= 0) return;
    memmove(c->out, c->out + taken, c->out_length - (size_t)taken);
    if (!(c->out_length -= (size_t)taken)) watch(c, EPOLLIN, EPOLL_CTL_MOD);
}

static void put_frame(struct connection *c, int opcode, const char *payload, size_t length) { /* length < 126, masked */
    char frame[6 + 125];
    frame[0] = (char)(0x80 | opcode);
    frame[1] = (char)(0x80 | length);
    memcpy(frame + 2, &c->mask, 4);
    for (size_t i = 0; i < length; i++) frame[6 + i] = payload[i] ^ frame[2 + (i & 3)];
    put(c, frame, 6 + length);
}

static void say(struct room *room, int first, uint64_t due) { /* the next client in turn sends one message */
    struct connection *c = &connections[first + room->next * options.rooms];
    char message[LONGEST];
    uint64_t stamp = TIME_BASE + due;
    room->next = (room->next + 1) % options.size;
    room->sent++;
    sent++;
    if (c->state != OPEN) return;
    memcpy(message, text, text_length);
    for (int digit = TIME_DIGITS; digit--; stamp /= 10) message[time_at + (size_t)digit] = (char)('0' + stamp % 10);
    put_frame(c, 1, message, text_length);
}

static void dial(struct connection *c, int number) {
    int yes = 1;
    struct sockaddr_in from = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK + 1 + (uint32_t)(number / PER_ADDRESS))};
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)options.port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct linger reset = {1, 0}; /* leaves no TIME_WAIT behind for the next run */
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (c->fd < 0) die("socket %d: %s", number, strerror(errno));
    setsockopt(c->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &yes, sizeof yes);
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    if (bind(c->fd, (struct sockaddr *)&from, sizeof from)) die("bind %d: %s", number, strerror(errno));
    if (connect(c->fd, (struct sockaddr *)&to, sizeof to) && errno != EINPROGRESS) die("connect %d: %s", number, strerror(errno));
    c->room = number % options.rooms;
    c->mask = (uint32_t)random();
    c->state = CONNECTING;
    in_flight++;
    watch(c, EPOLLIN | EPOLLOUT, EPOLL_CTL_ADD);
}

static void ask(struct connection *c) { /* HTTP */
    char request[256];
    int length = snprintf(request, sizeof request, "GET /session/x HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAccept: */*\r\n\r\n", options.port);
    c->asked = now;
    put(c, request, (size_t)length);
}

static void connected(struct connection *c) {
    char request[300];
    watch(c, EPOLLIN, EPOLL_CTL_MOD);
    if (!strcmp(options.mode, "get")) {
        in_flight--;
        opened++;
        c->state = OPEN;
        return;
    }
    int length = snprintf(request, sizeof request,
        "GET %s%d HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n", options.path, c->room, options.port);
    c->state = UPGRADING;
    put(c, request, (size_t)length);
}

/* ---- reading ---- */

static void check(const char *payload, size_t length) { /* the content came back unharmed, the id is stamped */
    const char *id = memmem(payload, length, "\"id\":", 5);
    checked++;
    if (!id || id[5] < '1' || id[5] > '9') unstamped++;
    if (!memmem(payload, length, CONTENT, sizeof CONTENT - 1)) failed++;
}

static void message(struct connection *c, const char *payload, size_t length) {
    const char *digits;
    uint64_t stamp = 0;
    if (length >= text_length && !memcmp(payload, text, time_at))
        digits = payload + time_at; /* the keys came back in our order: both kinds of server do so */
    else if (memmem(payload, length, options.type, strlen(options.type)) && (digits = memmem(payload, length, "\"t\":1", 5)) && digits + 4 + TIME_DIGITS < payload + length)
        digits += 4;
    else {
        others++; /* connected, joined, left */
        return;
    }
    for (int i = 0; i < TIME_DIGITS; i++) stamp = stamp * 10 + (uint64_t)(digits[i] - '0');
    if (measuring) record(&latency, now > stamp - TIME_BASE ? now - (stamp - TIME_BASE) : 0);
    rooms[c->room].delivered++;
    rooms[c->room].last = now;
    if (++deliveries % CHECK_EVERY == 0) check(payload, length);
}

static size_t frames(struct connection *c, const char *bytes, size_t length) { /* returns the bytes consumed */
    size_t at = 0;
    while (length - at >= 2 && c->state == OPEN) {
        const unsigned char *frame = (const unsigned char *)bytes + at;
        size_t size = frame[1] & 127, header = 2;
        if (size == 126) {
            if (length - at < (header = 4)) break;
            size = (size_t)frame[2] << 8 | frame[3];
        } else if (size == 127) {
            if (length - at < (header = 10)) break;
            size = 0;
            for (int i = 2; i < 10; i++) size = size << 8 | frame[i];
        }
        if (frame[1] & 128) {
            hang_up(c, "masked frame from the server");
            break;
        }
        if (length - at - header < size) break;
        const char *payload = bytes + at + header;
        at += header + size;
        if (frame[0] == 0x81) message(c, payload, size);
        else if (frame[0] == 0x89) {
            pings++;
            put_frame(c, 10, payload, size < 126 ? size : 0);
        } else if (frame[0] == 0x88) {
            char why[160];
            snprintf(why, sizeof why, "closed with %d %.*s", size >= 2 ? (payload[0] & 255) << 8 | (payload[1] & 255) : 0, size > 2 ? (int)size - 2 : 0, payload + 2);
            hang_up(c, why);
        } else others++;
    }
    return at;
}

static size_t upgraded(struct connection *c, const char *bytes, size_t length) {
    const char *end = memmem(bytes, length, "\r\n\r\n", 4);
    if (!end) return 0;
    if (strncmp(bytes, "HTTP/1.1 101", 12)) {
        char why[120];
        snprintf(why, sizeof why, "%.*s", (int)strcspn(bytes, "\r"), bytes);
        hang_up(c, why);
        return length;
    }
    c->state = OPEN;
    in_flight--;
    opened++;
    if (*options.hello) put_frame(c, 1, options.hello, strlen(options.hello));
    return (size_t)(end + 4 - bytes);
}

static size_t answers(struct connection *c, const char *bytes, size_t length) { /* HTTP: whole answers only */
    size_t at = 0;
    for (;;) {
        const char *end = memmem(bytes + at, length - at, "\r\n\r\n", 4);
        if (!end) return at;
        const char *field = strcasestr(bytes + at, "\r\ncontent-length:");
        if (!field || field > end) {
            hang_up(c, "answer without Content-Length");
            return length;
        }
        size_t size = (size_t)(end + 4 - (bytes + at)) + strtoul(field + 17, NULL, 10);
        if (length - at < size) return at;
        if (strncmp(bytes + at, "HTTP/1.1 200", 12)) {
            failed++;
            if (!*first_failure) snprintf(first_failure, sizeof first_failure, "%.*s", (int)strcspn(bytes + at, "\r"), bytes + at);
        }
        at += size;
        if (measuring) record(&latency, now - c->asked);
        deliveries++;
        checked++;
        ask(c);
    }
}

static void take(struct connection *c) {
    static char buffer[BUFFER + 1];
    size_t length = c->rest_length, used = 0;
    if (length) memcpy(buffer, c->rest, length);
    ssize_t got = recv(c->fd, buffer + length, BUFFER - length, 0);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) return hang_up(c, got ? strerror(errno) : "connection closed");
    reads++;
    length += (size_t)got;
    buffer[length] = 0;
    if (!strcmp(options.mode, "get")) used = answers(c, buffer, length);
    else {
        if (c->state == UPGRADING) used = upgraded(c, buffer, length);
        if (c->state == OPEN) used += frames(c, buffer + used, length - used);
    }
    if (c->state != OPEN && c->state != UPGRADING) return;
    if (length - used >= BUFFER / 2) die("frame of more than %d bytes", BUFFER / 2);
    if (length > used) {
        c->rest = realloc(c->rest, length - used);
        memcpy(c->rest, buffer + used, length - used);
    } else if (c->rest) {
        free(c->rest);
        c->rest = NULL;
    }
    c->rest_length = length - used;
}

static void refill(int number) { /* closed loop: as many messages in flight as the window allows */
    struct room *room = &rooms[number];
    uint64_t receivers = (uint64_t)(options.size - 1);
    while (room->sent * receivers <= room->delivered + (uint64_t)(options.window - 1) * receivers) say(room, number, now);
}

/* ---- the loops ---- */

static uint64_t gap, next_due; /* ns; gap is 0 in a closed loop */
static int turn;

static void keep_pace(void) { /* open loop: what is due by now is sent; its stamp is when it was due */
    while (next_due <= now) {
        if (measuring) record(&lateness, now - next_due);
        say(&rooms[turn], turn, next_due);
        turn = (turn + 1) % options.rooms;
        next_due += gap;
    }
}

static int turn_once(int wait) { /* one epoll round; returns the number of events */
    struct epoll_event events[512];
    int count = epoll_wait(poller, events, 512, wait), paced = messages_flow && gap;
    tell_time();
    for (int i = 0; i < count; i++) {
        struct connection *c = events[i].data.ptr;
        if (!c) {
            told_to_end = 1;
            continue;
        }
        if (i) tell_time();
        if (paced) keep_pace();
        if (c->state == CONNECTING) {
            int error = 0;
            socklen_t length = sizeof error;
            getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &length);
            if (error) hang_up(c, strerror(error));
            else connected(c);
            continue;
        }
        if (events[i].events & EPOLLOUT && c->out_length && c->state != CLOSED) put_rest(c);
        if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR) && c->state != CLOSED) take(c);
        if (messages_flow && !gap) refill(c->room);
    }
    return count;
}

static double open_all(void) { /* seconds until the last one was upgraded */
    int dialled = 0;
    while (opened < total) {
        while (dialled < total && in_flight < AT_ONCE) {
            dial(&connections[dialled], dialled);
            dialled++;
        }
        uint64_t before = now;
        if (!turn_once(options.poll ? 0 : 1000)) spun += now - before;
        if (closed_by_server) die("%d of %d connections open, then: %s", opened, total, first_failure);
        if (now > 120000000000ull) die("%d of %d connections open after 120 s", opened, total);
    }
    return (double)now / 1e9;
}

static void run_for(double seconds) {
    tell_time();
    uint64_t until = now + (uint64_t)(seconds * 1e9);
    while (now < until) {
        uint64_t before = now;
        if (!turn_once(options.poll ? 0 : 20)) spun += now - before;
        if (messages_flow && gap) keep_pace();
    }
}

static int count_stalled(uint64_t since) {
    int stalled = 0;
    for (int i = 0; messages_flow && i < options.rooms; i++) stalled += rooms[i].last < since;
    return stalled;
}

static void answer(double setup) {
    double seconds = (double)(ended.at - started.at) / 1e9, own = (double)(ended.own - started.own) / 1e9;
    uint64_t since = now - QUIET_NS;
    int alive = 0;
    measuring = 0;
    if (count_stalled(since)) run_for(PATIENCE); /* a server kept off its core stands still, too */
    int stalled = count_stalled(since);
    for (int i = 0; i < total; i++) alive += connections[i].state == OPEN;
    printf("{\"mode\": \"%s\", \"connections\": %d, \"alive\": %d, \"setup_seconds\": %.6f, \"seconds\": %.6f, ", options.mode, total, alive, setup, seconds);
    uint64_t delivered = ended.deliveries - started.deliveries, read = ended.reads - started.reads;
    printf("\"sent\": %llu, \"deliveries\": %llu, \"rate\": %.1f, ", (unsigned long long)(ended.sent - started.sent), (unsigned long long)delivered, (double)delivered / seconds);
    printf("\"p50_ms\": %.3f, \"p99_ms\": %.3f, \"p999_ms\": %.3f, ", percentile(&latency, .5), percentile(&latency, .99), percentile(&latency, .999));
    printf("\"polls\": %d, ", options.poll);
    printf("\"late_p99_ms\": %.3f, \"own_share\": %.4f, \"spun_share\": %.4f, ", percentile(&lateness, .99), own / seconds, (double)(ended.spun - started.spun) / 1e9 / seconds);
    printf("\"server_cpu_s\": %.6f, \"core_busy_s\": [%.2f, %.2f], ", (double)(ended.watched - started.watched) / 1e9, ended.busy[0] - started.busy[0], ended.busy[1] - started.busy[1]);
    printf("\"per_read\": %.2f, \"checked\": %llu, \"unstamped\": %llu, \"failed\": %llu, ", read ? (double)delivered / (double)read : 0, (unsigned long long)checked, (unsigned long long)unstamped, (unsigned long long)failed);
    printf("\"others\": %llu, \"pings\": %llu, \"closed\": %llu, \"stalled\": %d, \"first_failure\": \"%s\"}\n", (unsigned long long)others, (unsigned long long)pings, (unsigned long long)closed_by_server, stalled, first_failure);
    fflush(stdout);
}

static void source(void) { /* upgrades whoever comes and sends joined frames as fast as they are taken */
    static const char yes[] = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
    static char started_sending[65536]; /* by descriptor */
    static size_t cut[65536];           /* bytes of the join already taken */
    char joined[7 * (2 + LONGEST)], request[4096];
    int one = 1, server = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)options.port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    setsockopt(server, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(server, (struct sockaddr *)&at, sizeof at) || listen(server, 512)) die("port %d: %s", options.port, strerror(errno));
    for (int i = 0; i < 7; i++) {
        char *frame = joined + (size_t)i * (2 + text_length);
        frame[0] = (char)0x81;
        frame[1] = (char)text_length;
        memcpy(frame + 2, text, text_length);
        frame[2 + text_length - 2] = '7'; /* the id */
    }
    poller = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = server}, events[512];
    epoll_ctl(poller, EPOLL_CTL_ADD, server, &event);
    for (;;) {
        int count = epoll_wait(poller, events, 512, -1);
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd;
            if (fd == server) {
                if ((fd = accept4(server, NULL, NULL, SOCK_NONBLOCK)) < 0) continue;
                int small = 16384; /* many small writes, as in a real room, instead of a few huge ones */
                setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
                setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                event = (struct epoll_event){.events = EPOLLIN, .data.fd = fd};
                epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
            } else if (!started_sending[fd & 65535]) {
                if (recv(fd, request, sizeof request, 0) <= 0) close(fd);
                else {
                    started_sending[fd & 65535] = 1;
                    send(fd, yes, sizeof yes - 1, MSG_NOSIGNAL);
                    event = (struct epoll_event){.events = EPOLLOUT, .data.fd = fd};
                    epoll_ctl(poller, EPOLL_CTL_MOD, fd, &event);
                }
            } else {
                size_t *from = &cut[fd & 65535];
                ssize_t taken = send(fd, joined + *from, 7 * (2 + text_length) - *from, MSG_NOSIGNAL);
                if (taken < 0 && errno != EAGAIN) {
                    close(fd);
                    started_sending[fd & 65535] = 0;
                    *from = 0;
                } else if (taken > 0) *from = (*from + (size_t)taken) % (7 * (2 + text_length));
            }
        }
    }
}

static void parse(int count, char **words) {
    if (count < 2) die("which mode?");
    options.mode = words[1];
    for (int i = 2; i + 1 < count; i += 2) {
        const char *name = words[i], *value = words[i + 1];
        if (!strcmp(name, "--port")) options.port = atoi(value);
        else if (!strcmp(name, "--rooms")) options.rooms = atoi(value);
        else if (!strcmp(name, "--size")) options.size = atoi(value);
        else if (!strcmp(name, "--poll")) options.poll = atoi(value);
        else if (!strcmp(name, "--window")) options.window = atoi(value);
        else if (!strcmp(name, "--connections")) options.connections = atoi(value);
        else if (!strcmp(name, "--rate")) options.rate = atof(value);
        else if (!strcmp(name, "--warm")) options.warm = atof(value);
        else if (!strcmp(name, "--measure")) options.measure = atof(value);
        else if (!strcmp(name, "--watch")) options.watch = value;
        else if (!strcmp(name, "--path")) options.path = value;
        else if (!strcmp(name, "--type")) options.type = value;
        else if (!strcmp(name, "--hello")) options.hello = value;
        else if (!strcmp(name, "--cores")) sscanf(value, "%d,%d", &options.cores[0], &options.cores[1]);
        else die("unknown option %s", name);
    }
    if (!options.port || options.rooms < 1 || options.size < 2 || options.window < 1 || options.rate <= 0) die("impossible options");
    int length = snprintf(text, sizeof text, "{\"type\":\"%s\"," CONTENT "1000000000000000},\"id\":0}", options.type);
    if (length > LONGEST || strlen(options.hello) > LONGEST) die("message of more than %d bytes", LONGEST);
    text_length = (size_t)length;
    time_at = (size_t)(strstr(text, "\"t\":") + 4 - text);
}

int main(int count, char **words) {
    parse(count, words);
    signal(SIGPIPE, SIG_IGN);
    begin = clock_ns(CLOCK_MONOTONIC);
    if (!strcmp(options.mode, "source")) source();
    int closed = !strcmp(options.mode, "closed"), paced = !strcmp(options.mode, "open");
    int idle = !strcmp(options.mode, "idle"), get = !strcmp(options.mode, "get"), absorb = !strcmp(options.mode, "absorb");
    if (!closed && !paced && !idle && !get && !absorb) die("unknown mode %s", options.mode);
    total = closed || paced ? options.rooms * options.size : options.connections;
    connections = calloc((size_t)total, sizeof *connections);
    rooms = calloc((size_t)options.rooms, sizeof *rooms);
    poller = epoll_create1(0);

    if (idle) {
        start_measuring();
        double setup = open_all();
        ended = sample(options.watch, options.cores);
        printf("{\"open\": %d}\n", total);
        fflush(stdout);
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
        if (epoll_ctl(poller, EPOLL_CTL_ADD, 0, &event)) die("stdin cannot be polled");
        while (!told_to_end) turn_once(1000);
        answer(setup);
        return 0;
    }
    double setup = open_all();
    if (!absorb) run_for(0.2); /* the greetings */
    messages_flow = closed || paced;
    tell_time();
    if (paced) {
        gap = (uint64_t)(1e9 / options.rate);
        options.poll = 1;
        next_due = now;
    }
    for (int i = 0; closed && i < options.rooms; i++) refill(i);
    for (int i = 0; get && i < total; i++) ask(&connections[i]);
    run_for(options.warm);
    start_measuring();
    run_for(options.measure);
    ended = sample(options.watch, options.cores);
    answer(setup);
    return 0;
}
