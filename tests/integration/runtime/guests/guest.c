// What the tests of the runtime need a C program to do, by its first argument.
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

extern char **environ;

static int fail(const char *what) {
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    return 1;
}

static int cat(const char *path) {
    char buffer[4096];
    size_t count;
    FILE *file = fopen(path, "r");
    if (file == NULL) return fail(path);
    while ((count = fread(buffer, 1, sizeof buffer, file)) > 0) fwrite(buffer, 1, count, stdout);
    return fclose(file);
}

static int write_file(const char *path, const char *text) {
    FILE *file = fopen(path, "w");
    if (file == NULL) return fail(path);
    if (fputs(text, file) < 0 || fclose(file) != 0) return fail(path);
    return 0;
}

static int list(const char *path) {
    DIR *directory = opendir(path);
    if (directory == NULL) return fail(path);
    for (struct dirent *entry; (entry = readdir(directory)) != NULL;) puts(entry->d_name);
    return closedir(directory);
}

int main(int argc, char **argv) {
    const char *command = argc > 1 ? argv[1] : "";
    if (strcmp(command, "exit") == 0) exit(atoi(argv[2]));
    if (strcmp(command, "trap") == 0) __builtin_trap();
    if (strcmp(command, "cat") == 0) return cat(argv[2]);
    if (strcmp(command, "write") == 0) return write_file(argv[2], argv[3]);
    if (strcmp(command, "unlink") == 0) return unlink(argv[2]) == 0 ? 0 : fail(argv[2]);
    if (strcmp(command, "mkdir") == 0) return mkdir(argv[2], 0777) == 0 ? 0 : fail(argv[2]);
    if (strcmp(command, "ls") == 0) return list(argv[2]);
    if (strcmp(command, "arguments") == 0) {
        for (int i = 0; i < argc; i++) puts(argv[i]);
        for (char **variable = environ; *variable != NULL; variable++) puts(*variable);
        return 0;
    }
    if (strcmp(command, "sleep") == 0) {
        puts("ready");
        fflush(stdout);
        for (;;) sleep(3600);
    }
    if (strcmp(command, "stdin") == 0) {
        puts("ready");
        fflush(stdout);
        printf("read %ld\n", (long)read(0, &(char[16]){0}, 16));
        return 0;
    }
    if (strcmp(command, "flood") == 0) {
        for (int i = 0; i < atoi(argv[2]); i++) printf("%08d %.*s\n", i, atoi(argv[3]), argv[4]);
        return 0;
    }
    if (strcmp(command, "tick") == 0) {
        for (int i = 0;; i++) {
            printf("tick %d\n", i);
            fflush(stdout);
            usleep(1000);
        }
    }
    if (strcmp(command, "print") == 0) {
        fputs(argv[2], stdout);
        if (argc > 3) fputs(argv[3], stderr);
        return 0;
    }
    fprintf(stderr, "unknown command\n");
    return 2;
}
