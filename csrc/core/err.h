/* Status codes and the thread's error text. */
#ifndef SID_CORE_ERR_H
#define SID_CORE_ERR_H

enum {
    SID_OK = 0,
    SID_EVALUE,     /* an argument is out of its range or does not fit another */
    SID_EMODEL,     /* a configuration or weight that no model can be built from */
    SID_EMEMORY,    /* an allocation failed */
    SID_ECANCELLED, /* the progress callback asked to stop */
    SID_EINTERNAL   /* a library below reported a failure */
};

/* Stores the text for this thread and returns code, so that callers write `return sid_fail(...)`. */
int sid_fail(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The text of this thread's last sid_fail(). */
const char *sid_error(void);

#define SID_TRY(expression)                                  \
    do {                                                     \
        int sid_try_status = (expression);                   \
        if (sid_try_status != SID_OK) return sid_try_status; \
    } while (0)

#endif
