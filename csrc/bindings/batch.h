// What the executors' bindings share: a step's batch from NumPy arrays, its captures as NumPy arrays, times.
#pragma once
#include <cstdint>
#include <tuple>
#include <utility>
#include <vector>

#include "capture.h"
#include "common.h"
#include "profile.h"
#include "step.h"

namespace pyllm {

// All throw Error(array) for an array of another dtype or shape.
Batch batch_of(const py::array& ids, const py::array& positions, const py::array& starts, const py::array& context,
               const py::array& block_table, const py::array& logit_rows);
// What only some programs ask for; None: nothing.
void add_optional(Batch& batch, const py::object& token_types, const py::object& cross_table,
                  const py::object& cross_context);
// (values, weights): the buffers in the order asked for; for each attention the arrays of every sequence.
std::pair<py::list, py::list> lists_of(Capture&& capture);
// For each routine its ops in order, then what comes before and after them: (calls, seconds, seconds waited, bytes).
std::vector<std::vector<std::tuple<int64_t, double, double, double>>> timings_of(
    const std::vector<RoutineTimes>& times);

}  // namespace pyllm
