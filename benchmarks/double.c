/* An OpenAI-compatible upstream that is never the bottleneck.

   Usage: double MODEL...
   Listens on a free port of 127.0.0.1 and prints it. A model `bench-C-P` answers with C text deltas,
   one every P milliseconds from the first byte of the request's end; P = 0 sends them at once.
   GET lists the models. Every event is an HTTP chunk of its own, as vLLM sends them. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define PUT(c, text) put(c, text, sizeof text - 1)
#define MAX_FDS 65536
#define MAX_CHUNKS 100000
#define EVENT_HEAD                                                                      \
    "data: {\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion.chunk\",\"created\":1," \
    "\"model\":\"bench\",\"choices\":"

typedef struct {
    char *in, *out;
    size_t in_len, in_cap, out_len, out_cap;
    int is_open, left, sent, heap_at;
    double pace_s, due;
} Conn;

static Conn conns[MAX_FDS];
static int heap[MAX_FDS], heap_len, epfd, model_count;
static char **models;

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static void die(const char *what) {
    perror(what);
    exit(1);
}

/* A binary heap of connections by the time of their next chunk; heap_at is 1-based, 0 is outside. */

static void heap_set(int at, int fd) {
    heap[at - 1] = fd;
    conns[fd].heap_at = at;
}

static void heap_up(int at) {
    int fd = heap[at - 1];
    for (; at > 1 && conns[heap[at / 2 - 1]].due > conns[fd].due; at /= 2) heap_set(at, heap[at / 2 - 1]);
    heap_set(at, fd);
}

static void heap_down(int at) {
    int fd = heap[at - 1];
    for (int child; (child = at * 2) <= heap_len; at = child) {
        if (child < heap_len && conns[heap[child]].due < conns[heap[child - 1]].due) child++;
        if (conns[heap[child - 1]].due >= conns[fd].due) break;
        heap_set(at, heap[child - 1]);
    }
    heap_set(at, fd);
}

static void heap_remove(int fd) {
    int at = conns[fd].heap_at;
    if (!at) return;
    conns[fd].heap_at = 0;
    int last = heap[--heap_len];
    if (last == fd) return;
    heap_set(at, last);
    heap_up(at);
    heap_down(conns[last].heap_at);
}

static void watch(int fd, int writable) {
    struct epoll_event event = {.events = EPOLLIN | (writable ? EPOLLOUT : 0), .data.fd = fd};
    if (epoll_ctl(epfd, EPOLL_CTL_MOD, fd, &event)) die("epoll_ctl");
}

static void drop(int fd) {
    Conn *c = &conns[fd];
    heap_remove(fd);
    c->is_open = c->left = 0;
    c->in_len = c->out_len = 0;
    close(fd);
}

static void put(Conn *c, const char *data, size_t len) {
    if (c->out_len + len > c->out_cap) {
        c->out_cap = (c->out_len + len) * 2;
        if (!(c->out = realloc(c->out, c->out_cap))) die("realloc");
    }
    memcpy(c->out + c->out_len, data, len);
    c->out_len += len;
}

/* Returns 0 where the connection is gone. */
static int flush(int fd) {
    Conn *c = &conns[fd];
    if (!c->out_len) return 1;
    ssize_t n = write(fd, c->out, c->out_len);
    if (n < 0 && errno != EAGAIN) return drop(fd), 0;
    size_t done = n > 0 ? (size_t)n : 0;
    if (done < c->out_len) {
        memmove(c->out, c->out + done, c->out_len - done);
        c->out_len -= done;
        watch(fd, 1);
        return 1;
    }
    c->out_len = 0;
    return 1;
}

static void put_event(Conn *c, const char *rest) {
    char event[512], framed[560];
    int len = snprintf(event, sizeof event, EVENT_HEAD "%s}\n\n", rest);
    int size = snprintf(framed, sizeof framed, "%x\r\n%s\r\n", len, event);
    put(c, framed, size);
}

static void put_delta(Conn *c) {
    char rest[160];
    snprintf(rest, sizeof rest, "[{\"index\":0,\"delta\":{%s\"content\":\" token%d\"},\"finish_reason\":null}]",
             c->sent ? "" : "\"role\":\"assistant\",", c->sent);
    put_event(c, rest);
    c->sent++;
    if (--c->left) return;
    put_event(c, "[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]");
    snprintf(rest, sizeof rest,
             "[],\"usage\":{\"prompt_tokens\":20,\"completion_tokens\":%d,\"total_tokens\":%d}", c->sent, c->sent + 20);
    put_event(c, rest);
    PUT(c, "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n");
}

static void put_models(Conn *c) {
    char list[8192], head[128];
    int len = snprintf(list, sizeof list, "{\"object\":\"list\",\"data\":[");
    for (int i = 0; i < model_count; i++)
        len += snprintf(list + len, sizeof list - len, "%s{\"id\":\"%s\",\"object\":\"model\"}", i ? "," : "", models[i]);
    len += snprintf(list + len, sizeof list - len, "]}");
    int size = snprintf(head, sizeof head,
                        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n", len);
    put(c, head, size);
    put(c, list, len);
}

static void answer(int fd, const char *body, size_t body_len) {
    Conn *c = &conns[fd];
    const char *model = memmem(body, body_len, "\"bench-", 7);
    int chunks = 0, pace_ms = 0;
    if (model) sscanf(model, "\"bench-%d-%d\"", &chunks, &pace_ms);
    if (chunks < 1 || chunks > MAX_CHUNKS) {
        PUT(c, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
        return;
    }
    PUT(c, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n");
    c->left = chunks;
    c->sent = 0;
    c->pace_s = pace_ms * 1e-3;
    do put_delta(c);
    while (c->left && !pace_ms);
    if (c->left) {
        c->due = now_s() + c->pace_s;
        heap[heap_len++] = fd;
        heap_up(heap_len);
    }
}

/* Answers the request at the start of the buffer, once it is whole. */
static void parse(int fd) {
    Conn *c = &conns[fd];
    if (c->left) return;
    char *end = memmem(c->in, c->in_len, "\r\n\r\n", 4);
    if (!end) return;
    size_t head_len = end + 4 - c->in, body_len = 0;
    *end = 0;
    char *field = strcasestr(c->in, "\r\ncontent-length:");
    if (field) body_len = strtoul(field + 17, NULL, 10);
    *end = '\r';
    if (c->in_len < head_len + body_len) return;
    if (!strncmp(c->in, "GET ", 4)) put_models(c);
    else answer(fd, c->in + head_len, body_len);
    c->in_len -= head_len + body_len;
    memmove(c->in, c->in + head_len + body_len, c->in_len);
}

static void on_readable(int fd) {
    Conn *c = &conns[fd];
    if (c->in_cap - c->in_len < 65536) {
        c->in_cap = c->in_cap ? c->in_cap * 2 : 4096;
        if (c->in_cap - c->in_len < 2048 || !(c->in = realloc(c->in, c->in_cap + 1))) die("realloc");
    }
    ssize_t n = read(fd, c->in + c->in_len, c->in_cap - c->in_len);
    if (n == 0 || (n < 0 && errno != EAGAIN)) {
        drop(fd);
        return;
    }
    if (n < 0) return;
    c->in_len += n;
    parse(fd);
    flush(fd);
}

static void on_accept(int listener) {
    int fd, one = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        if (fd >= MAX_FDS) {
            close(fd);
            continue;
        }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
        if (epoll_ctl(epfd, EPOLL_CTL_ADD, fd, &event)) die("epoll_ctl");
        conns[fd].is_open = 1;
    }
}

static void send_due(void) {
    double now = now_s();
    while (heap_len && conns[heap[0]].due <= now) {
        int fd = heap[0];
        Conn *c = &conns[fd];
        put_delta(c);
        if (c->left) {
            c->due += c->pace_s;
            heap_down(1);
        } else {
            heap_remove(fd);
        }
        flush(fd);
    }
}

int main(int argc, char **argv) {
    models = argv + 1;
    model_count = argc - 1;
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (bind(listener, (struct sockaddr *)&address, size) || listen(listener, 4096)) die("listen");
    getsockname(listener, (struct sockaddr *)&address, &size);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    epfd = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener}, ready[512];
    epoll_ctl(epfd, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        int wait_ms = -1;
        if (heap_len) {
            double left_s = conns[heap[0]].due - now_s();
            wait_ms = left_s > 0 ? (int)(left_s * 1000) + 1 : 0;
        }
        int n = epoll_wait(epfd, ready, 512, wait_ms);
        for (int i = 0; i < n; i++) {
            int fd = ready[i].data.fd;
            if (fd == listener) {
                on_accept(listener);
                continue;
            }
            if (conns[fd].is_open && ready[i].events & EPOLLOUT && flush(fd) && !conns[fd].out_len) watch(fd, 0);
            if (conns[fd].is_open && ready[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) on_readable(fd);
        }
        send_due();
    }
}
