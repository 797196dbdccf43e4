/* What both load generators measure with: clocks, the CPU time of others, histograms. Each includes it once. */

#ifndef MACHINE_H
#define MACHINE_H

#include <dirent.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define BUCKETS 1000001         /* of 1 us; the last one holds all above 1 s */

struct histogram { uint64_t count; uint32_t buckets[BUCKETS]; };

struct sample { uint64_t at, own, watched, deliveries, sent, reads, spun; double busy[2]; };

static uint64_t begin, now;     /* ns */
static uint64_t deliveries, sent, reads, spun; /* messages that came, messages that left, reads, ns spent on finding nothing */

static void die(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "generator: ");
    vfprintf(stderr, format, arguments);
    fprintf(stderr, "\n");
    va_end(arguments);
    exit(1);
}

static uint64_t clock_ns(clockid_t clock) {
    struct timespec at;
    clock_gettime(clock, &at);
    return (uint64_t)at.tv_sec * 1000000000ull + (uint64_t)at.tv_nsec;
}

static void tell_time(void) { now = clock_ns(CLOCK_MONOTONIC) - begin; }

/* CPU of all threads of processes ("pid,pid"): schedstat counts ns, stat only 10 ms steps. */
static uint64_t watched_ns(const char *pids) {
    uint64_t sum = 0;
    char list[256], *rest = list, *pid;
    snprintf(list, sizeof list, "%s", pids);
    while ((pid = strsep(&rest, ","))) {
        char path[600];
        snprintf(path, sizeof path, "/proc/%s/task", pid);
        DIR *tasks = *pid ? opendir(path) : NULL;
        if (!tasks) continue;
        for (struct dirent *task; (task = readdir(tasks));) {
            if (task->d_name[0] == '.') continue;
            snprintf(path, sizeof path, "/proc/%s/task/%s/schedstat", pid, task->d_name);
            FILE *file = fopen(path, "r");
            unsigned long long ran;
            if (file && fscanf(file, "%llu", &ran) == 1) sum += ran;
            if (file) fclose(file);
        }
        closedir(tasks);
    }
    return sum;
}

static double core_busy(int core) { /* seconds since boot, stolen time included */
    FILE *file = fopen("/proc/stat", "r");
    char line[512], name[16];
    double busy = 0;
    snprintf(name, sizeof name, "cpu%d ", core);
    while (file && fgets(line, sizeof line, file)) {
        unsigned long long user, nice, system, idle, wait, irq, soft, steal;
        if (strncmp(line, name, strlen(name))) continue;
        if (sscanf(line, "%*s %llu %llu %llu %llu %llu %llu %llu %llu", &user, &nice, &system, &idle, &wait, &irq, &soft, &steal) == 8)
            busy = (double)(user + nice + system + irq + soft + steal) / (double)sysconf(_SC_CLK_TCK);
    }
    if (file) fclose(file);
    return busy;
}

/* Where all counters stand; `watch` as for watched_ns. */
static struct sample sample(const char *watch, const int cores[2]) {
    return (struct sample){
        .at = clock_ns(CLOCK_MONOTONIC), .own = clock_ns(CLOCK_PROCESS_CPUTIME_ID), .watched = watched_ns(watch),
        .deliveries = deliveries, .sent = sent, .reads = reads, .spun = spun, .busy = {core_busy(cores[0]), core_busy(cores[1])},
    };
}

static void record(struct histogram *histogram, uint64_t ns) {
    uint64_t us = ns / 1000;
    histogram->buckets[us < BUCKETS ? us : BUCKETS - 1]++;
    histogram->count++;
}

static double percentile(const struct histogram *histogram, double share) { /* ms; the upper edge of the bucket */
    uint64_t seen = 0, wanted = (uint64_t)((double)histogram->count * share);
    for (size_t us = 0; us < BUCKETS; us++)
        if ((seen += histogram->buckets[us]) > wanted) return (double)(us + 1) / 1000.0;
    return 0;
}

#endif
