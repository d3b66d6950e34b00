/* LD_PRELOAD for games that draw with OpenGL through SDL 2: every run shows the same frames.
 *
 * - Time stands still while a frame is made, and moves on by HOOK_STEP_NS at each swap. A sleep of
 *   the main thread costs no time; other threads sleep really, and at most 20 ms at once.
 * - rand() gives the main thread a sequence of its own, and everybody else another one.
 * - From frame HOOK_START on, every HOOK_EVERY-th of HOOK_COUNT frames is appended to HOOK_OUT as
 *   BGR bytes, top row first; then the process ends with status 0. Frames that are not kept are
 *   not rasterised once HOOK_SKIP frames were shown: their draw calls do nothing.
 * - Functions named in HOOK_MUTE (symbols, separated by commas) return at once.
 *
 * Without HOOK_OUT in its environment, a process (a helper of the game) is left alone.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000LL
#define LONGEST_SLEEP (20 * 1000000LL)
#define REALTIME_START (1700000000LL * SECOND) /* no season: some games celebrate */
#define MONOTONIC_START (1000 * SECOND)

static const char *out;
static int64_t step_ns, frame_start_ns, slept_ns;
static long first, every, count, skip_from, frame, kept, clock_reads;
static pid_t main_thread;

static long number(const char *name, long usual)
{
    const char *text = getenv(name);
    return text ? atol(text) : usual;
}

__attribute__((constructor)) static void set_up(void)
{
    if (main_thread)
        return;
    main_thread = (pid_t)syscall(SYS_gettid);
    step_ns = number("HOOK_STEP_NS", 33333333);
    first = number("HOOK_START", 0);
    every = number("HOOK_EVERY", 1);
    count = number("HOOK_COUNT", 0);
    skip_from = number("HOOK_SKIP", 1L << 40);
    out = getenv("HOOK_OUT");
}

static int in_main_thread(void) { return syscall(SYS_gettid) == main_thread; }

/* --- time ------------------------------------------------------------------------------------ */

static int64_t real_ns(clockid_t clock)
{
    struct timespec t;
    syscall(SYS_clock_gettime, clock, &t);
    return t.tv_sec * SECOND + t.tv_nsec;
}

/* Each reading is later than the one before, so that loops that wait for a moment end. */
static int64_t virtual_ns(clockid_t clock)
{
    long reads = __sync_add_and_fetch(&clock_reads, 1);
    int64_t passed = reads < 100000 ? reads : 100000 + (reads - 100000) * 2000;
    int64_t start = clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE ? REALTIME_START
                                                                             : MONOTONIC_START;
    return start + frame_start_ns + slept_ns + passed;
}

static int is_virtual(clockid_t clock)
{
    set_up();
    return out && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE
                   || clock == CLOCK_MONOTONIC || clock == CLOCK_MONOTONIC_RAW
                   || clock == CLOCK_MONOTONIC_COARSE || clock == CLOCK_BOOTTIME);
}

static struct timespec timespec_of(int64_t ns)
{
    return (struct timespec){.tv_sec = ns / SECOND, .tv_nsec = ns % SECOND};
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    if (!is_virtual(clock))
        return (int)syscall(SYS_clock_gettime, clock, now);
    *now = timespec_of(virtual_ns(clock));
    return 0;
}

int gettimeofday(struct timeval *now, void *zone)
{
    struct timespec t;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &t);
    now->tv_sec = t.tv_sec;
    now->tv_usec = t.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *now)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    if (now)
        *now = t.tv_sec;
    return t.tv_sec;
}

static int sleep_for(int64_t ns)
{
    set_up();
    if (ns <= 0)
        return 0;
    if (out && in_main_thread()) {
        slept_ns += ns;
        return 0;
    }
    struct timespec t = timespec_of(out && ns > LONGEST_SLEEP ? LONGEST_SLEEP : ns);
    return (int)syscall(SYS_nanosleep, &t, NULL);
}

int nanosleep(const struct timespec *length, struct timespec *left)
{
    (void)left;
    return sleep_for(length->tv_sec * SECOND + length->tv_nsec);
}

int usleep(useconds_t length) { return sleep_for(length * 1000LL); }

int clock_nanosleep(clockid_t clock, int flags, const struct timespec *when, struct timespec *left)
{
    if (!is_virtual(clock))
        return syscall(SYS_clock_nanosleep, clock, flags, when, left) ? errno : 0;
    int64_t ns = when->tv_sec * SECOND + when->tv_nsec;
    return sleep_for(flags & TIMER_ABSTIME ? ns - virtual_ns(clock) : ns) ? errno : 0;
}

/* Waits with a deadline in virtual time become real ones of the same length. */
int pthread_cond_clockwait(pthread_cond_t *condition, pthread_mutex_t *mutex, clockid_t clock,
                           const struct timespec *deadline)
{
    static int (*real)(pthread_cond_t *, pthread_mutex_t *, clockid_t, const struct timespec *);
    if (!real)
        real = dlsym(RTLD_NEXT, "pthread_cond_clockwait");
    if (!is_virtual(clock))
        return real(condition, mutex, clock, deadline);
    int64_t left = deadline->tv_sec * SECOND + deadline->tv_nsec - virtual_ns(clock);
    left = left < 0 ? 0 : left > LONGEST_SLEEP ? LONGEST_SLEEP : left;
    struct timespec until = timespec_of(real_ns(CLOCK_MONOTONIC) + left);
    return real(condition, mutex, CLOCK_MONOTONIC, &until);
}

int pthread_cond_timedwait(pthread_cond_t *condition, pthread_mutex_t *mutex,
                           const struct timespec *deadline)
{
    return pthread_cond_clockwait(condition, mutex, CLOCK_REALTIME, deadline);
}

/* --- chance ---------------------------------------------------------------------------------- */

int rand(void)
{
    static uint64_t ours = 1, theirs = 2;
    set_up();
    uint64_t *state = in_main_thread() ? &ours : &theirs;
    *state = *state * 6364136223846793005u + 1442695040888963407u; /* Knuth's MMIX */
    return (int)(*state >> 33);
}

void srand(unsigned seed) { (void)seed; }
long random(void) { return rand(); }
void srandom(unsigned seed) { (void)seed; }

/* --- frames ---------------------------------------------------------------------------------- */

static int is_kept(long which)
{
    return which >= first && (which - first) % every == 0 && kept < count;
}

/* The frame before a kept one is drawn too: what is uploaded while drawing must be there. */
static int is_skipped(void)
{
    return out && frame >= skip_from && !is_kept(frame) && !is_kept(frame + 1);
}

static void *gl(const char *name)
{
    static void *(*find)(const char *);
    if (!find)
        find = dlsym(RTLD_NEXT, "SDL_GL_GetProcAddress");
    return find(name);
}

static void mute_functions(void)
{
#if defined(__x86_64__)
    static const unsigned char code[] = {0xc3};
#elif defined(__aarch64__)
    static const unsigned char code[] = {0xc0, 0x03, 0x5f, 0xd6};
#else
#error "no return instruction is known for this processor"
#endif
    char *names = getenv("HOOK_MUTE") ? strdup(getenv("HOOK_MUTE")) : NULL;
    for (char *rest = names, *name; (name = strtok_r(rest, ",", &rest));) {
        unsigned char *at = dlsym(RTLD_DEFAULT, name);
        if (!at) {
            fprintf(stderr, "gamehook: no function %s\n", name);
            _exit(3);
        }
        void *page = (void *)((uintptr_t)at & ~4095UL);
        mprotect(page, 8192, PROT_READ | PROT_WRITE | PROT_EXEC);
        memcpy(at, code, sizeof code);
        mprotect(page, 8192, PROT_READ | PROT_EXEC);
    }
    free(names);
}

static void keep_frame(int width, int height)
{
    void (*get)(unsigned, int *) = gl("glGetIntegerv");
    void (*store)(unsigned, int) = gl("glPixelStorei");
    void (*bind)(unsigned, unsigned) = gl("glBindFramebuffer");
    void (*bind_buffer)(unsigned, unsigned) = gl("glBindBuffer");
    void (*source)(unsigned) = gl("glReadBuffer");
    void (*read)(int, int, int, int, unsigned, unsigned, void *) = gl("glReadPixels");
    int framebuffer, buffer, alignment, row_length;
    get(0x8CAA, &framebuffer); /* GL_READ_FRAMEBUFFER_BINDING */
    get(0x88ED, &buffer);      /* GL_PIXEL_PACK_BUFFER_BINDING */
    get(0x0D05, &alignment);   /* GL_PACK_ALIGNMENT */
    get(0x0D02, &row_length);  /* GL_PACK_ROW_LENGTH */
    bind(0x8CA8, 0);
    bind_buffer(0x88EB, 0);
    store(0x0D05, 1);
    store(0x0D02, 0);
    source(0x0405); /* GL_BACK */
    size_t row = (size_t)width * 3;
    unsigned char *pixels = malloc(row * (size_t)height);
    read(0, 0, width, height, 0x80E0, 0x1401, pixels); /* GL_BGR, GL_UNSIGNED_BYTE */
    FILE *file = fopen(out, "ab");
    int failed = !file;
    for (int y = height - 1; y >= 0 && !failed; y--)
        failed = fwrite(pixels + (size_t)y * row, 1, row, file) != row;
    if (failed || fclose(file)) {
        fprintf(stderr, "gamehook: cannot write %s\n", out);
        _exit(4);
    }
    free(pixels);
    bind(0x8CA8, (unsigned)framebuffer);
    bind_buffer(0x88EB, (unsigned)buffer);
    store(0x0D05, alignment);
    store(0x0D02, row_length);
    kept++;
}

typedef struct SDL_Window SDL_Window;

void SDL_GL_SwapWindow(SDL_Window *window)
{
    static void (*swap)(SDL_Window *), (*size)(SDL_Window *, int *, int *);
    set_up();
    if (!swap) {
        swap = dlsym(RTLD_NEXT, "SDL_GL_SwapWindow");
        size = dlsym(RTLD_NEXT, "SDL_GL_GetDrawableSize");
        if (out)
            mute_functions();
    }
    if (out) {
        int width, height;
        size(window, &width, &height);
        if (is_kept(frame))
            keep_frame(width, height);
        if (count && kept >= count)
            _exit(0);
        frame++;
        frame_start_ns += slept_ns > step_ns ? slept_ns : step_ns;
        slept_ns = clock_reads = 0;
    }
    swap(window);
}

/* --- draw calls ------------------------------------------------------------------------------ */

#define DRAW(name, parameters, arguments)   \
    static void(*real_##name) parameters;   \
    static void our_##name parameters       \
    {                                       \
        if (!is_skipped())                  \
            real_##name arguments;          \
    }
typedef const void *P;
typedef unsigned U;
DRAW(glDrawArrays, (U m, int f, int n), (m, f, n))
DRAW(glDrawElements, (U m, int n, U t, P i), (m, n, t, i))
DRAW(glDrawRangeElements, (U m, U a, U b, int n, U t, P i), (m, a, b, n, t, i))
DRAW(glDrawElementsBaseVertex, (U m, int n, U t, P i, int v), (m, n, t, i, v))
DRAW(glDrawArraysInstanced, (U m, int f, int n, int c), (m, f, n, c))
DRAW(glDrawElementsInstanced, (U m, int n, U t, P i, int c), (m, n, t, i, c))
DRAW(glDrawElementsInstancedBaseVertex, (U m, int n, U t, P i, int c, int v), (m, n, t, i, c, v))
DRAW(glDrawElementsInstancedBaseVertexBaseInstance, (U m, int n, U t, P i, int c, int v, U b),
     (m, n, t, i, c, v, b))
DRAW(glDrawElementsIndirect, (U m, U t, P i), (m, t, i))
DRAW(glMultiDrawElementsIndirect, (U m, U t, P i, int n, int s), (m, t, i, n, s))

static const struct {
    const char *name;
    void *ours;
    void **real;
} draws[] = {
#define ENTRY(name) {#name, (void *)our_##name, (void **)&real_##name}
    ENTRY(glDrawArrays),
    ENTRY(glDrawElements),
    ENTRY(glDrawRangeElements),
    ENTRY(glDrawElementsBaseVertex),
    ENTRY(glDrawArraysInstanced),
    ENTRY(glDrawElementsInstanced),
    ENTRY(glDrawElementsInstancedBaseVertex),
    ENTRY(glDrawElementsInstancedBaseVertexBaseInstance),
    ENTRY(glDrawElementsIndirect),
    ENTRY(glMultiDrawElementsIndirect),
};

void *SDL_GL_GetProcAddress(const char *name)
{
    void *real = gl(name);
    set_up();
    for (size_t i = 0; real && out && i < sizeof draws / sizeof *draws; i++)
        if (!strcmp(name, draws[i].name)) {
            *draws[i].real = real;
            return draws[i].ours;
        }
    return real;
}
