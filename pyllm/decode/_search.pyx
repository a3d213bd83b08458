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
    cdef cppclass Cuts:
        double temperature
        size_t top_k
        double top_p
        double min_p
        Cuts()
    cdef cppclass Row:
        float max
        cbool has_nan
        Row(const float* x, size_t n, cbool summed, float scale, const float* summary) except +
        size_t argmax()
        double log_sum_exp() except +
        cbool normal()
        vector[Candidate] top_k(size_t k) except +
    cdef cppclass CWeights "pyllm::search::Weights":
        CWeights()
        cbool set(const float* x, size_t n, const Cuts& cuts) except +
        double probability(int32_t id)
        int32_t beyond(const CWeights& q, double u) except +
        Choices choices
    cdef cppclass Choices:
        int32_t at(double u)
    RowKernels kRow
    vector[RowKernels] available_row_kernels() except +
    cbool log_softmax(float* x, size_t n) except +
    cbool continuations(const float* x, size_t rows, size_t stride, size_t n, const float* summary,
                        const float* running, size_t k, cbool normalise, vector[Continuation]& out) except +
    void penalise(float* x, const int64_t* ids, size_t count, float penalty) except +
    double philox_uniform(uint64_t key, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3)
    void cut_top_k(float* x, size_t n, size_t k) except +
    int32_t sample_row "pyllm::search::sample"(const float* x, size_t n, const Cuts& cuts, double u,
                                               const float* summary, float summary_scale) except + 
    vector[int32_t] draw_distinct(const Row& row, size_t k, const double* u) except +


cdef size_t _argmax(const float* x, size_t n, const float* summary, cbool* has_nan) except? 0 nogil:
    cdef Row* scanned = new Row(x, n, False, 1.0, summary)
    cdef size_t best = scanned.argmax()
    has_nan[0] = scanned.has_nan
    del scanned
    return best


cdef int _check_rows(const float[:, :] rows) except -1:
    if rows.strides[1] != sizeof(float):
        raise ValueError(f"[search] the values of a row must lie side by side, got a stride of {rows.strides[1]} bytes")
    return 0


cdef const float* _summary(const float[:, :, ::1] blocks, Py_ssize_t rows, Py_ssize_t n) except? NULL:
    """The first row's blocks, NULL without a summary."""
    if blocks is None:
        return NULL
    if blocks.shape[0] != rows or blocks.shape[1] != (n + 63) // 64 or blocks.shape[2] != 2:
        raise ValueError(
            f"[search] a summary of {rows} rows of {n} has shape {(rows, (n + 63) // 64, 2)}, got "
            f"{(blocks.shape[0], blocks.shape[1], blocks.shape[2])}"
        )
    return &blocks[0, 0, 0]


cdef Cuts _cuts(double temperature, size_t top_k, double top_p, double min_p):
    cdef Cuts cuts
    cuts.temperature, cuts.top_k, cuts.top_p, cuts.min_p = temperature, top_k, top_p, min_p
    return cuts


def argmax(const float[::1] row not None):
    cdef size_t best = 0
    cdef cbool has_nan = False
    with nogil:
        best = _argmax(&row[0], row.shape[0], NULL, &has_nan)
    return -1 if has_nan else best


def best_token(const float[:, :] rows not None, const float[:, :, ::1] blocks=None):
    cdef const float* summary = _summary(blocks, rows.shape[0], rows.shape[1])
    cdef size_t best = 0
    cdef cbool has_nan = False
    _check_rows(rows)
    with nogil:
        best = _argmax(&rows[0, 0], rows.shape[1], summary, &has_nan)
    return -1 if has_nan else best


def log_sum_exp(const float[::1] row not None):
    cdef Row* scanned = new Row(&row[0], row.shape[0], True, 1.0, NULL)
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
    cdef Row* scanned = new Row(&row[0], row.shape[0], False, 1.0, NULL)
    cdef vector[Candidate] best
    cdef Candidate one
    try:
        best = scanned.top_k(k)
    finally:
        del scanned
    return [one.value for one in best], [one.id for one in best]


def best_continuations(const float[:, :] rows not None, list running not None, size_t k, cbool normalise,
                       const float[:, :, ::1] blocks=None):
    cdef vector[float] sums = running
    cdef vector[Continuation] best
    cdef Continuation one
    cdef cbool fine
    cdef const float* summary = _summary(blocks, rows.shape[0], rows.shape[1])
    _check_rows(rows)
    if sums.size() != <size_t>rows.shape[0]:
        raise ValueError(f"[best_continuations] one sum per row, got {sums.size()} for {rows.shape[0]} rows")
    with nogil:
        fine = continuations(&rows[0, 0], rows.shape[0], rows.strides[0] // sizeof(float), rows.shape[1], summary,
                             sums.data(), k, normalise, best)
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


def sample(const float[:, :] rows not None, double temperature, size_t top_k, double top_p, double min_p,
           list uniforms not None, const float[:, :, ::1] blocks=None, float scale=1.0):
    cdef vector[double] u = uniforms
    cdef vector[int32_t] tokens
    cdef const float* summary = _summary(blocks, rows.shape[0], rows.shape[1])
    cdef Py_ssize_t r
    cdef size_t width = 2 * ((rows.shape[1] + 63) // 64)
    cdef Cuts cuts = _cuts(temperature, top_k, top_p, min_p)
    _check_rows(rows)
    if u.size() != <size_t>rows.shape[0]:
        raise ValueError(f"[sample] one uniform per row, got {u.size()} for {rows.shape[0]} rows")
    tokens.resize(u.size())
    with nogil:
        for r in range(rows.shape[0]):
            tokens[r] = sample_row(&rows[r, 0], rows.shape[1], cuts, u[r], summary + r * width if summary else NULL,
                                   scale)
    return tokens


cdef class Weights:
    cdef CWeights inner

    def draw(self, double u):
        return self.inner.choices.at(u)

    def probability(self, int32_t token):
        return self.inner.probability(token)

    def draw_beyond(self, Weights other not None, double u):
        return self.inner.beyond(other.inner, u)


def weights(const float[::1] row not None, double temperature, size_t top_k, double top_p, double min_p):
    cdef Weights made = Weights.__new__(Weights)
    cdef cbool fine
    cdef Cuts cuts = _cuts(temperature, top_k, top_p, min_p)
    with nogil:
        fine = made.inner.set(&row[0], row.shape[0], cuts)
    return made if fine else None


cdef struct Lane:
    size_t row
    cbool drawn
    double temperature
    size_t top_k
    double top_p
    double min_p
    uint64_t seed
    uint32_t seed_index
    uint32_t sequence
    size_t prompt_length
    size_t max_length


cdef struct ChoiceFields:  # program.batch.CHOICE
    double temperature
    double top_p
    double min_p
    uint64_t seed
    int32_t top_k
    uint32_t seed_index
    uint32_t sequence
    uint32_t step


cdef class Lanes:
    cdef vector[Lane] lanes
    cdef list histories
    cdef list ends

    def __init__(self):
        self.histories = []
        self.ends = []

    def __len__(self):
        return self.lanes.size()

    def add(self, size_t row, list tokens not None, frozenset ends not None, size_t prompt_length, size_t max_length,
            tuple cuts, uint64_t seed, uint32_t seed_index, uint32_t sequence):
        cdef Lane lane
        lane.row, lane.prompt_length, lane.max_length, lane.drawn = row, prompt_length, max_length, cuts is not None
        lane.temperature, lane.top_k, lane.top_p, lane.min_p = (1.0, 0, 1.0, 0.0) if cuts is None else cuts
        lane.seed, lane.seed_index, lane.sequence = seed, seed_index, sequence
        self.lanes.push_back(lane)
        self.histories.append(tokens)
        self.ends.append(ends)

    def choices(self, unsigned char[::1] out not None, size_t n):
        cdef ChoiceFields* fields = <ChoiceFields*>&out[0] if out.shape[0] else NULL
        cdef size_t i, count = out.shape[0] // sizeof(ChoiceFields)
        cdef int cuts = 0
        cdef cbool by_k
        for i in range(self.lanes.size()):
            if self.lanes[i].row >= count:
                raise IndexError(f"[lanes] row {self.lanes[i].row} of {count}")
            if not self.lanes[i].drawn:
                fields[self.lanes[i].row].temperature = 0.0
                continue
            by_k = 0 < self.lanes[i].top_k < n
            fields[self.lanes[i].row] = ChoiceFields(
                self.lanes[i].temperature, self.lanes[i].top_p, self.lanes[i].min_p, self.lanes[i].seed,
                <int32_t>self.lanes[i].top_k if by_k else 0, self.lanes[i].seed_index, self.lanes[i].sequence,
                <uint32_t>(len(<list>self.histories[i]) - self.lanes[i].prompt_length))
            if self.lanes[i].top_p < 1 and not by_k:
                cuts = 2
            elif by_k or self.lanes[i].min_p > 0:
                cuts = max(cuts, 1)
        return cuts

    def take(self, const int32_t[::1] chosen not None):
        cdef size_t i, most = chosen.shape[0]
        tokens = []
        for i in range(self.lanes.size()):
            if self.lanes[i].row >= most:
                raise IndexError(f"[lanes] row {self.lanes[i].row} of {most}")
            if chosen[self.lanes[i].row] < 0:
                return None, [i]
            tokens.append(chosen[self.lanes[i].row])
        return tokens, self._take(tokens)

    cdef list _take(self, list tokens):
        cdef size_t i
        over = []
        for i in range(self.lanes.size()):
            (<list>self.histories[i]).append(tokens[i])
            if (<size_t>len(<list>self.histories[i]) >= self.lanes[i].max_length
                    or tokens[i] in <frozenset>self.ends[i]):
                over.append(i)
        return over

    def advance(self, const float[:, :] rows not None, const float[:, :, ::1] blocks=None, const float[::1] scales=None):
        cdef const float* summary = _summary(blocks, rows.shape[0], rows.shape[1])
        cdef vector[int32_t] tokens
        cdef size_t i, n = rows.shape[1], width = 2 * ((rows.shape[1] + 63) // 64)
        cdef size_t most = rows.shape[0]
        _check_rows(rows)
        tokens.resize(self.lanes.size())
        for i in range(self.lanes.size()):
            if self.lanes[i].row >= most or (scales is not None and <size_t>scales.shape[0] <= self.lanes[i].row):
                raise IndexError(f"[lanes] row {self.lanes[i].row} of {most}")
        cdef vector[double] u
        u.resize(self.lanes.size())
        for i in range(self.lanes.size()):
            if self.lanes[i].drawn:
                u[i] = philox_uniform(
                    self.lanes[i].seed, <uint32_t>(len(<list>self.histories[i]) - self.lanes[i].prompt_length),
                    self.lanes[i].sequence, self.lanes[i].seed_index, 0)
        with nogil:
            for i in range(self.lanes.size()):
                tokens[i] = _choose(self.lanes[i], &rows[self.lanes[i].row, 0], n, u[i],
                                    summary + self.lanes[i].row * width if summary else NULL,
                                    scales[self.lanes[i].row] if scales is not None else 1.0)
        for i in range(self.lanes.size()):
            if tokens[i] < 0:
                return None, [i]
        chosen = list(tokens)
        return chosen, self._take(chosen)


cdef int32_t _choose(Lane& lane, const float* x, size_t n, double u, const float* summary, float scale) except? -2 nogil:
    cdef Cuts cuts
    cdef cbool has_nan = False
    cdef size_t best
    if not lane.drawn:
        best = _argmax(x, n, summary, &has_nan)
        return -1 if has_nan else <int32_t>best
    cuts.temperature, cuts.top_k, cuts.top_p, cuts.min_p = lane.temperature, lane.top_k, lane.top_p, lane.min_p
    return sample_row(x, n, cuts, u, summary, scale)


def draw_without_replacement(const float[::1] row not None, list uniforms not None):
    cdef vector[double] u = uniforms
    cdef vector[int32_t] drawn
    cdef Row* scanned = new Row(&row[0], row.shape[0], True, 1.0, NULL)
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
