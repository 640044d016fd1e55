#include "core/err.h"

#include <stdarg.h>
#include <stdio.h>

static _Thread_local char error_text[512];

int sid_fail(int code, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(error_text, sizeof error_text, format, arguments);
    va_end(arguments);
    return code;
}

const char *sid_error(void) { return error_text; }
