/* A folder of a test's own: static char folder[] = "/tmp/dpi-test-NAME-XXXXXX"; */
#ifndef TESTS_FOLDER_KIT_H
#define TESTS_FOLDER_KIT_H

#include <dirent.h>
#include <stdlib.h>
#include <unistd.h>

/* Deletes its files; returns how many there were. Folders within are not looked into. */
static inline int folder_empty(const char *folder)
{
    int count = 0;
    DIR *d = opendir(folder);
    for (struct dirent *e; d && (e = readdir(d));)
        if (e->d_name[0] != '.')
            count += unlinkat(dirfd(d), e->d_name, 0) == 0;
    if (d)
        closedir(d);
    return count;
}

/* Its files, those that begin with a dot not counted; -1: there is no such folder. */
static inline int folder_count(const char *folder)
{
    int count = 0;
    DIR *d = opendir(folder);
    if (!d)
        return -1;
    for (struct dirent *e; (e = readdir(d));)
        count += e->d_name[0] != '.';
    closedir(d);
    return count;
}

/* For cmocka's fixtures: 0 when it is done. */
static inline int folder_make(char *folder) { return mkdtemp(folder) ? 0 : -1; }
static inline int folder_remove(const char *folder)
{
    folder_empty(folder);
    return rmdir(folder);
}

#endif
