/* Arguments that a function does not take, or that are missing, are found by Cython's code before the function's first
   line runs, and PyErr_Format makes the message. In a module that includes this first, the message ends with what was
   meant, or with the signature (cnorm/_hints.py). Nothing is added to a call that succeeds: to take unknown keywords
   as **others would make a dict in each. */

static void cnorm_explain_arguments(void) {
    PyObject *type, *error, *traceback, *hints, *text = NULL;
    PyErr_Fetch(&type, &error, &traceback);
    PyErr_NormalizeException(&type, &error, &traceback);
    hints = PyImport_ImportModule("cnorm._hints");
    if (hints != NULL) {
        text = PyObject_CallMethod(hints, "of_function", "sO", CNORM_MODULE, error);
        Py_DECREF(hints);
    }
    if (text == NULL) {  /* the message as it was */
        PyErr_Clear();
        PyErr_Restore(type, error, traceback);
        return;
    }
    PyErr_SetObject(type, text);
    Py_DECREF(text);
    Py_XDECREF(type);
    Py_XDECREF(error);
    Py_XDECREF(traceback);
}

static PyObject *cnorm_format_error(PyObject *type, const char *format, ...) {
    va_list values;
    va_start(values, format);
    PyErr_FormatV(type, format, values);
    va_end(values);
    if (type == PyExc_TypeError && (strstr(format, "unexpected keyword argument") != NULL ||
                                    strstr(format, "() takes ") != NULL))
        cnorm_explain_arguments();
    return NULL;
}

#define PyErr_Format cnorm_format_error
