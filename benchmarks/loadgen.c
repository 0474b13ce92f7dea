/* A load generator for one endpoint, JSON or streams, in a closed loop.

   Usage: loadgen port=N path=P model=M clients=N [seconds=S | rounds=R] [stream=1] [key=K]
                  [ramp_ms=T] [grace_s=S] [ideal_ms=T] [bytes=N]
   Every client keeps one connection and asks again when its answer is whole: until `seconds` have
   passed, or `rounds` times. All connect first; with `ramp_ms` the first requests are spread over that time,
   without it they start together. Prints one JSON object; times are microseconds, except where named. `slowed` counts
   streams that took more than 5 % longer than `ideal_ms`. */

#define _GNU_SOURCE
#include <arpa/inet.h>
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

enum { IDLE, HEAD, LENGTH, CHUNK_SIZE, CHUNK_DATA, CHUNK_END, TRAILER };

typedef struct {
    int fd, state, status, rounds, events, last_was_lf;
    char head[8192];
    size_t head_len, left;
    char line[32];
    int line_len;
    double asked_at, first_at, last_at;
} Client;

typedef struct {
    double *at;
    size_t len, cap;
} Series;

static Client *clients;
static Series latencies, firsts, gaps;
static char *port = "0", *path = "/v1/chat/completions", *model = "", *key = "";
static int client_count = 1, rounds, is_stream, epfd, running, text_bytes = 64;
static double seconds, ramp_ms, grace_s = 30, ideal_ms;
static long completed, errors, non_200, unfinished, events, slowed, reads;
static double started_at, stop_at;
static char *request;
static size_t request_len, counter_at;
static long asked;

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void add(Series *s, double value) {
    if (s->len == s->cap) {
        s->cap = s->cap ? s->cap * 2 : 4096;
        if (!(s->at = realloc(s->at, s->cap * sizeof *s->at))) die("realloc");
    }
    s->at[s->len++] = value;
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void print_series(const char *name, Series *s) {
    qsort(s->at, s->len, sizeof *s->at, by_value);
    if (!s->len) {
        printf("\"%s\":null,", name);
        return;
    }
    printf("\"%s\":{\"p50\":%.1f,\"p90\":%.1f,\"p99\":%.1f,\"max\":%.1f},", name, s->at[s->len / 2] * 1e6,
           s->at[s->len * 9 / 10] * 1e6, s->at[s->len * 99 / 100] * 1e6, s->at[s->len - 1] * 1e6);
}

static void make_request(void) {
    char *body, *text = malloc(text_bytes + 1);
    memset(text, 'x', text_bytes);
    for (int i = 8; i < text_bytes; i += 8) text[i] = ' ';
    text[text_bytes] = 0;
    /* The counter makes every text another one. */
    int body_len = asprintf(&body,
                            "{\"model\":\"%s\",\"stream\":%s,\"messages\":[{\"role\":\"user\",\"content\":\"%s#%010d\"}]}",
                            model, is_stream ? "true" : "false", text, 0);
    request_len = asprintf(&request,
                           "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%s\r\nAuthorization: Bearer %s\r\n"
                           "Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
                           path, port, key, body_len, body);
    counter_at = strrchr(request, '#') + 1 - request;
}

static void close_client(Client *c) {
    if (c->state != IDLE) errors++;
    close(c->fd);
    c->fd = -1;
    c->state = IDLE;
    running--;
}

static void ask(Client *c) {
    char digits[11];
    snprintf(digits, sizeof digits, "%010ld", asked++);
    memcpy(request + counter_at, digits, 10);
    c->state = HEAD;
    c->head_len = c->events = c->last_was_lf = 0;
    c->first_at = c->last_at = 0;
    c->asked_at = now_s();
    /* A request is smaller than an empty socket's buffer. */
    if (write(c->fd, request, request_len) != (ssize_t)request_len) close_client(c);
}

static void on_answer(Client *c, double now) {
    c->state = IDLE;
    c->rounds++;
    if (c->status != 200) non_200++;
    else completed++;
    double took = now - c->asked_at;
    add(&latencies, took);
    if (ideal_ms && took * 1000 > ideal_ms * 1.05) slowed++;
    if (rounds ? c->rounds < rounds : now < stop_at) ask(c);
    else close_client(c);
}

/* Counts the blank lines that end events. */
static void count_events(Client *c, const char *data, size_t len, double now) {
    long before = events;
    for (size_t i = 0; i < len; i++) {
        if (data[i] != '\n') c->last_was_lf = 0;
        else if (c->last_was_lf) {
            events++;
            c->last_was_lf = 0;
        } else c->last_was_lf = 1;
    }
    if (!c->first_at) {
        c->first_at = now;
        add(&firsts, now - c->asked_at);
    } else if (events > before) {
        add(&gaps, now - c->last_at);
    }
    if (events > before) c->last_at = now;
}

static int read_head(Client *c, const char *data, size_t len, size_t *used) {
    size_t take = sizeof c->head - 1 - c->head_len, old = c->head_len;
    if (take > len) take = len;
    memcpy(c->head + old, data, take);
    c->head_len += take;
    c->head[c->head_len] = 0;
    char *end = strstr(c->head, "\r\n\r\n");
    if (!end) {
        *used = take;
        return take < len ? -1 : 0;
    }
    *used = end + 4 - c->head - old;
    end[2] = 0;
    c->status = atoi(c->head + 9);
    char *length = strcasestr(c->head, "\r\ncontent-length:");
    if (length) {
        c->left = strtoul(length + 17, NULL, 10);
        c->state = LENGTH;
    } else if (strcasestr(c->head, "\r\ntransfer-encoding: chunked")) {
        c->state = CHUNK_SIZE;
        c->line_len = 0;
    } else {
        return -1;
    }
    return 0;
}

/* Returns -1 for what is no HTTP answer. */
static int feed(Client *c, const char *data, size_t len, double now) {
    size_t i = 0;
    while (i < len || (c->state == LENGTH && !c->left)) {
        size_t used = 0;
        switch (c->state) {
        case IDLE: return -1;
        case HEAD:
            if (read_head(c, data + i, len - i, &used)) return -1;
            i += used;
            break;
        case LENGTH:
        case CHUNK_DATA:
            used = len - i < c->left ? len - i : c->left;
            if (is_stream && used) count_events(c, data + i, used, now);
            i += used;
            c->left -= used;
            if (c->left) break;
            if (c->state == LENGTH) on_answer(c, now);
            else c->state = CHUNK_END, c->left = 2;
            if (c->state == IDLE) return 0;
            if (c->state == HEAD) return i < len ? -1 : 0;
            break;
        case CHUNK_END:
            i++;
            if (!--c->left) c->state = CHUNK_SIZE, c->line_len = 0;
            break;
        case CHUNK_SIZE:
            if (data[i] != '\n') {
                if (c->line_len < 30) c->line[c->line_len++] = data[i];
                i++;
                break;
            }
            i++;
            c->line[c->line_len] = 0;
            c->left = strtoul(c->line, NULL, 16);
            c->state = c->left ? CHUNK_DATA : TRAILER;
            c->line_len = 0;
            break;
        case TRAILER:
            if (data[i++] == '\n') {
                on_answer(c, now);
                return i < len ? -1 : 0;
            }
            break;
        }
    }
    return 0;
}

static void on_readable(Client *c) {
    static char buffer[262144];
    ssize_t n = read(c->fd, buffer, sizeof buffer);
    if (n < 0 && errno == EAGAIN) return;
    reads++;
    if (n <= 0 || feed(c, buffer, n, now_s())) close_client(c);
}

static void connect_all(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(port)), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int one = 1;
    for (int i = 0; i < client_count; i++) {
        int fd = clients[i].fd = socket(AF_INET, SOCK_STREAM, 0);
        if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address)) die("connect");
        fcntl(fd, F_SETFL, O_NONBLOCK);
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = &clients[i]};
        if (epoll_ctl(epfd, EPOLL_CTL_ADD, fd, &event)) die("epoll_ctl");
    }
    running = client_count;
}

static void read_arguments(int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        char *value = strchr(argv[i], '=');
        if (!value) exit(2);
        *value++ = 0;
        if (!strcmp(argv[i], "port")) port = value;
        else if (!strcmp(argv[i], "path")) path = value;
        else if (!strcmp(argv[i], "model")) model = value;
        else if (!strcmp(argv[i], "key")) key = value;
        else if (!strcmp(argv[i], "clients")) client_count = atoi(value);
        else if (!strcmp(argv[i], "rounds")) rounds = atoi(value);
        else if (!strcmp(argv[i], "stream")) is_stream = atoi(value);
        else if (!strcmp(argv[i], "bytes")) text_bytes = atoi(value);
        else if (!strcmp(argv[i], "seconds")) seconds = atof(value);
        else if (!strcmp(argv[i], "ramp_ms")) ramp_ms = atof(value);
        else if (!strcmp(argv[i], "grace_s")) grace_s = atof(value);
        else if (!strcmp(argv[i], "ideal_ms")) ideal_ms = atof(value);
        else exit(2);
    }
}

static void run(void) {
    struct epoll_event ready[512];
    int next = 0;
    started_at = now_s();
    stop_at = started_at + seconds;
    double give_up_at = stop_at + grace_s;
    while (running) {
        double now = now_s();
        if (now > give_up_at) break;
        while (next < client_count && now >= started_at + ramp_ms * 1e-3 * next / client_count) ask(&clients[next++]);
        int n = epoll_wait(epfd, ready, 512, next < client_count ? 1 : 100);
        for (int i = 0; i < n; i++) on_readable(ready[i].data.ptr);
    }
    for (int i = 0; i < client_count; i++) unfinished += clients[i].state != IDLE;
}

int main(int argc, char **argv) {
    read_arguments(argc, argv);
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    if (!(clients = calloc(client_count, sizeof *clients))) die("calloc");
    epfd = epoll_create1(0);
    make_request();
    connect_all();
    run();
    double took_s = now_s() - started_at;
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    double cpu_s = usage.ru_utime.tv_sec + usage.ru_stime.tv_sec + (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e-6;
    printf("{");
    print_series("latency_us", &latencies);
    print_series("first_us", &firsts);
    print_series("gap_us", &gaps);
    printf("\"completed\":%ld,\"non_200\":%ld,\"errors\":%ld,\"unfinished\":%ld,\"events\":%ld,\"reads\":%ld,"
           "\"slowed\":%ld,\"wall_s\":%.4f,\"cpu_s\":%.4f}\n",
           completed, non_200, errors, unfinished, events, reads, slowed, took_s, cpu_s);
}
