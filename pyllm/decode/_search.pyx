# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
"""The parts of the search that touch every logit: a thin face of csrc/search without the GIL. Types in _search.pyi."""

from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libcpp cimport bool as cbool
from libcpp.vector cimport vector


cdef extern from "search/draw.h" namespace "pyllm::search" nogil:
    cdef struct Candidate:
        float value
        int32_t id
    cdef struct Continuation:
        float score
        int32_t row
        int32_t id
    cdef struct RowKernels:
        pass
    cdef cppclass Row:
        float max
        cbool has_nan
        Row(const float* x, size_t n) except +
        size_t argmax()
        double log_sum_exp() except +
        cbool normal()
        vector[Candidate] top_k(size_t k) except +
    RowKernels kRow
    vector[RowKernels] available_row_kernels() except +
    cbool log_softmax(float* x, size_t n) except +
    cbool continuations(const float* x, size_t rows, size_t stride, size_t n, const float* running, size_t k,
                        cbool normalise, vector[Continuation]& out) except +
    void penalise(float* x, const int64_t* ids, size_t count, float penalty) except +
    double philox_uniform(uint64_t key, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3)
    void cut_top_k(float* x, size_t n, size_t k) except +
    int32_t sample(float* x, size_t n, size_t top_k, double top_p, double min_p, double u) except +
    vector[int32_t] draw_distinct(const Row& row, size_t k, const double* u) except +


def argmax(const float[::1] row not None):
    cdef size_t best = 0
    cdef cbool has_nan = False
    with nogil:
        best = _argmax(&row[0], row.shape[0], &has_nan)
    return -1 if has_nan else best


cdef size_t _argmax(const float* x, size_t n, cbool* has_nan) except? 0 nogil:
    cdef Row* scanned = new Row(x, n)
    cdef size_t best = scanned.argmax()
    has_nan[0] = scanned.has_nan
    del scanned
    return best


def log_sum_exp(const float[::1] row not None):
    cdef Row* scanned = new Row(&row[0], row.shape[0])
    cdef double result = scanned.log_sum_exp()
    del scanned
    return result


def log_softmax_(float[:, :] rows not None):
    cdef Py_ssize_t r
    cdef cbool fine = True
    _check_rows(rows)
    with nogil:
        for r in range(rows.shape[0]):
            fine = log_softmax(&rows[r, 0], rows.shape[1]) and fine
    return fine


def top_k(const float[::1] row not None, size_t k):
    cdef Row* scanned = new Row(&row[0], row.shape[0])
    cdef vector[Candidate] best
    cdef Candidate one
    try:
        best = scanned.top_k(k)
    finally:
        del scanned
    return [one.value for one in best], [one.id for one in best]


cdef int _check_rows(const float[:, :] rows) except -1:
    if rows.strides[1] != sizeof(float):
        raise ValueError(f"[search] the values of a row must lie side by side, got a stride of {rows.strides[1]} bytes")
    return 0


def best_continuations(const float[:, :] rows not None, list running not None, size_t k, cbool normalise):
    cdef vector[float] sums = running
    cdef vector[Continuation] best
    cdef Continuation one
    cdef cbool fine
    _check_rows(rows)
    if sums.size() != <size_t>rows.shape[0]:
        raise ValueError(f"[best_continuations] one sum per row, got {sums.size()} for {rows.shape[0]} rows")
    with nogil:
        fine = continuations(
            &rows[0, 0], rows.shape[0], rows.strides[0] // sizeof(float), rows.shape[1], sums.data(), k, normalise, best
        )
    if not fine:
        return None
    return [(one.score, one.row, one.id) for one in best]


def penalise_(float[::1] row not None, tokens not None, float penalty):
    cdef vector[int64_t] ids
    cdef int64_t token
    ids.reserve(len(tokens))
    for token in tokens:
        if 0 <= token < row.shape[0]:
            ids.push_back(token)
    with nogil:
        penalise(&row[0], ids.data(), ids.size(), penalty)


def cut_top_k_(float[:, :] rows not None, size_t k):
    cdef Py_ssize_t r
    _check_rows(rows)
    with nogil:
        for r in range(rows.shape[0]):
            cut_top_k(&rows[r, 0], rows.shape[1], k)


def uniform(uint64_t seed, uint32_t seed_index, uint32_t sequence, uint32_t step, uint32_t draw_index=0):
    return philox_uniform(seed, step, sequence, seed_index, draw_index)


def sample_(float[::1] row not None, size_t top_k, double top_p, double min_p, double u):
    cdef int32_t token
    with nogil:
        token = sample(&row[0], row.shape[0], top_k, top_p, min_p, u)
    return token


def draw_without_replacement(const float[::1] row not None, list uniforms not None):
    cdef vector[double] u = uniforms
    cdef vector[int32_t] drawn
    cdef Row* scanned = new Row(&row[0], row.shape[0])
    cdef cbool fine = scanned.normal()
    try:
        if fine:
            drawn = draw_distinct(scanned[0], u.size(), u.data())
    finally:
        del scanned
    return drawn if fine else None


def num_kernels():
    return available_row_kernels().size()


def use_kernels(size_t index):
    global kRow
    cdef vector[RowKernels] every = available_row_kernels()
    if index >= every.size():
        raise IndexError(f"[use_kernels] {every.size()} kernels are available, got index {index}")
    kRow = every[index]
